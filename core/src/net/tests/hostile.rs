//! Peers that send whatever they like: strangers, and members that break the rules.

use super::raw::{NOW, Raw, first_admission, first_greeting, tell_client, tell_server};
use super::std::vec;
use super::std::vec::Vec;
use super::world::{WINDOWS, carve_link, carve_links, cluster, link_config, with_arena};
use crate::arena::Arena;
use crate::format::wire::greeting::GREETING_BYTES_MAX;
use crate::format::wire::message::{
    ClientRequest, LockRecord, LockTell, Outcome, ServerAnswer, ServerRequest,
};
use crate::format::wire::{
    BODY_BYTES_MAX, ErrorCode, Frame, Kind, Malformed, Message, Part, RECORD_MAGIC,
};
use crate::format::{ClientId, Term};
use crate::net::{
    BadRecord, Breach, End, Incoming, Link, LinkEvent, Links, LinksEvent, SessionId, Timing,
};
use outrider_hal::StreamId;
use proptest::prelude::*;
use zerocopy::FromZeros;

const STREAM: StreamId = StreamId(1);
const TERM: Term = Term::new(1, 0);

fn with_server<T>(run: impl FnOnce(&mut Links<'_>) -> T) -> T {
    let mut measure = Arena::measuring();
    carve_links(&mut measure, cluster());
    with_arena(measure.bytes_used(), |arena| {
        let mut links = carve_links(arena, cluster());
        links.begin(TERM);
        run(&mut links)
    })
}

fn with_client<T>(run: impl FnOnce(&mut Link<'_>) -> T) -> T {
    let mut measure = Arena::measuring();
    carve_link(&mut measure, link_config(cluster(), 1));
    with_arena(measure.bytes_used(), |arena| run(&mut carve_link(arena, link_config(cluster(), 1))))
}

/// A client that has been welcomed, and its session.
fn member(links: &mut Links<'_>) -> (Raw, SessionId) {
    let raw = Raw::client(links, &cluster(), STREAM, &first_greeting());
    (raw, links.find(ClientId(9)).unwrap())
}

fn request(seq: u64, request: u64, kind: Kind, payload: &[u8]) -> Frame<'_> {
    Frame { ack: 0, message: Some(Message { seq, request, kind, part: Part::Request, payload }) }
}

/// A payload about a lock, of no meaning.
const LOCK: [u8; 38] = [0; 38];

fn revoke() -> ServerRequest<'static> {
    let lock = LockRecord { kind: LockRecord::REVOKE, ..LockRecord::new_zeroed() };
    ServerRequest::LockTell(LockTell { lock, root: None })
}

/// How a connection ends over which a member sends these frames, before anything is taken.
fn end_of(frames: &[Frame<'_>]) -> Option<End> {
    with_server(|links| {
        let (mut raw, session) = member(links);
        for frame in frames {
            tell_server(links, STREAM, &raw.frame(frame));
            if links.head(session).is_some() {
                let _ = links.take(NOW, session).unwrap();
            }
        }
        links.poll_close().map(|(_, end)| end)
    })
}

#[test]
fn what_may_not_be_said_ends_the_connection() {
    let lock = |seq, name| request(seq, name, Kind::LockAsk, &LOCK);
    let breach = |breach| Some(End::Breach(breach));
    assert_eq!(end_of(&[lock(1, 1), lock(2, 2)]), None);
    assert_eq!(end_of(&[lock(1, 1), lock(1, 1), lock(2, 2)]), None, "doubles are dropped");
    assert_eq!(end_of(&[lock(2, 1)]), breach(Breach::Gap));
    assert_eq!(end_of(&[lock(1, 1), lock(3, 2)]), breach(Breach::Gap));
    assert_eq!(end_of(&[lock(1, 2), lock(2, 2)]), breach(Breach::RequestOrder));
    assert_eq!(end_of(&[Frame { ack: 1, message: None }]), breach(Breach::Ack));
    assert_eq!(end_of(&[request(1, 1, Kind::Recover, &LOCK)]), breach(Breach::Asker));
    let lent = request(1, 1, Kind::Loan, &[0; 31]);
    assert_eq!(end_of(&[lent]), Some(End::Malformed(Malformed::Length)));
    let answer = |kind| {
        let part = Part::Answer(Some(ErrorCode::Io));
        let message = Message { seq: 1, request: 1, kind, part, payload: &[] };
        end_of(&[Frame { ack: 0, message: Some(message) }])
    };
    assert_eq!(answer(Kind::LockTell), breach(Breach::Unasked));
    assert_eq!(answer(Kind::LockAsk), breach(Breach::Unasked));
}

#[test]
fn more_than_the_window_ends_the_connection() {
    let most = u64::from(WINDOWS.answers_max);
    let frames: Vec<_> = (1..=most).map(|n| request(n, n, Kind::LockAsk, &LOCK)).collect();
    assert_eq!(end_of(&frames), None);
    let mut more = frames.clone();
    more.push(request(most + 1, most + 1, Kind::Statfs, &[]));
    assert_eq!(end_of(&more), Some(End::Breach(Breach::Window)));
    // Kinds with a window of their own still get in, once.
    let mut loan = [0; 32];
    loan[0] = 1;
    let mut others = frames.clone();
    others.push(request(most + 1, most + 1, Kind::Loan, &loan));
    assert_eq!(end_of(&others), None);
    others.push(request(most + 2, most + 2, Kind::Loan, &loan));
    assert_eq!(end_of(&others), Some(End::Breach(Breach::Window)));
    // A farewell leaves nothing behind.
    let farewell = request(2, 2, Kind::Farewell, &[]);
    assert_eq!(end_of(&[frames[0], farewell]), Some(End::Breach(Breach::Window)));
}

#[test]
fn an_answer_is_taken_once_and_only_for_what_was_asked() {
    with_server(|links| {
        let (mut raw, session) = member(links);
        links.request(session, &revoke()).unwrap();
        let asked = tell_server(links, STREAM, &[]);
        let body = raw.open(&asked);
        let message = Frame::parse(&body).unwrap().message.unwrap();
        let answer = |seq| {
            let part = Part::Answer(None);
            Frame { ack: 1, message: Some(Message { seq, part, payload: &[], ..message }) }
        };
        tell_server(links, STREAM, &raw.frame(&answer(1)));
        assert!(matches!(links.head(session), Some(Incoming::Answer(_, Outcome::Done(_)))));
        let ticket = links.take(NOW, session).unwrap();
        links.recorded(session, ticket);
        tell_server(links, STREAM, &raw.frame(&answer(2)));
        assert_eq!(links.head(session), None);
        assert_eq!(links.poll_close().unwrap().1, End::Breach(Breach::Unasked));
    });
}

#[test]
fn a_server_that_answers_what_was_not_sent_is_not_believed() {
    with_client(|link| {
        let mut raw = Raw::server(link, &cluster(), STREAM, TERM, &first_admission());
        // Kept, but not on this connection yet.
        link.request(&ClientRequest::LockAsk(LockRecord::new_zeroed())).unwrap();
        let part = Part::Answer(Some(ErrorCode::Busy));
        let message = Message { seq: 1, request: 1, kind: Kind::LockAsk, part, payload: &[] };
        let frame = raw.frame(&Frame { ack: 0, message: Some(message) });
        let space = link.recv_space(STREAM);
        space[..frame.len()].copy_from_slice(&frame);
        link.received(NOW, STREAM, frame.len());
        assert_eq!(link.poll_close(), Some((STREAM, End::Breach(Breach::Unasked))));
    });
}

#[test]
fn a_body_that_is_too_large_is_refused_by_its_length() {
    let header = |body_bytes: u32| {
        let mut bytes = RECORD_MAGIC.to_le_bytes().to_vec();
        bytes.extend(body_bytes.to_le_bytes());
        bytes.extend([0; 4]);
        bytes
    };
    let end = |links: &mut Links<'_>, body_bytes| {
        tell_server(links, STREAM, &header(body_bytes));
        links.poll_close().map(|(_, end)| end)
    };
    // A stranger may send a greeting, a member a frame.
    with_server(|links| {
        links.accept(NOW, STREAM, [0; 16]).unwrap();
        assert_eq!(end(links, GREETING_BYTES_MAX as u32 + 1), Some(End::Record(BadRecord::Length)));
    });
    with_server(|links| {
        member(links);
        assert_eq!(end(links, BODY_BYTES_MAX as u32), None);
    });
    for body_bytes in [0, BODY_BYTES_MAX as u32 + 1, u32::MAX] {
        with_server(|links| {
            member(links);
            assert_eq!(end(links, body_bytes), Some(End::Record(BadRecord::Length)));
        });
    }
}

#[test]
fn a_server_that_does_not_take_stops_reading() {
    with_server(|links| {
        let (mut raw, session) = member(links);
        let frame = raw.frame(&request(1, 1, Kind::Statfs, &[]));
        tell_server(links, STREAM, &frame);
        let mut idle = 0;
        while !links.recv_space(STREAM).is_empty() {
            idle += 1;
            let frame = raw.frame(&Frame { ack: 0, message: None });
            let space = links.recv_space(STREAM);
            let count = space.len().min(frame.len());
            space[..count].copy_from_slice(&frame[..count]);
            links.received(NOW, STREAM, count);
        }
        assert!(idle > 100);
        assert_eq!(links.head(session), Some(Incoming::Request(ClientRequest::Statfs)));
        // However long it takes, this is no silence.
        for seconds in 1..60 {
            links.step(NOW.plus(core::time::Duration::from_secs(seconds)));
        }
        let later = NOW.plus(core::time::Duration::from_secs(60));
        let ticket = links.take(later, session).unwrap();
        links.step(later);
        assert_eq!(links.poll_close(), None);
        assert!(!links.recv_space(STREAM).is_empty());
        let failed = Outcome::<ServerAnswer<'_>>::Failed(ErrorCode::Io, None);
        assert_eq!(links.answer(session, ticket, &failed), Ok(()));
    });
}

#[test]
fn a_damaged_length_costs_one_silence_and_no_more() {
    with_server(|links| {
        let (mut raw, session) = member(links);
        let mut record = raw.frame(&request(1, 1, Kind::Statfs, &[]));
        // The length claims 4 KiB more than there will be.
        record[5] ^= 0x10;
        tell_server(links, STREAM, &record);
        let mut now = NOW;
        while links.is_up(session) {
            now = now.plus(Timing::DEFAULT.keepalive);
            let idle = raw.frame(&Frame { ack: 0, message: None });
            let space = links.recv_space(STREAM);
            space[..idle.len()].copy_from_slice(&idle);
            links.received(now, STREAM, idle.len());
            links.step(now);
        }
        assert_eq!(links.poll_close(), Some((STREAM, End::Silent)));
        assert_eq!(now, NOW.plus(Timing::DEFAULT.silence));
        assert_eq!(links.heard(session), Some(NOW));
    });
}

fn arbitrary_message() -> impl Strategy<Value = (u64, u64, u64, u16, u8, u8, Vec<u8>)> {
    let number = || prop_oneof![0..5u64, any::<u64>()];
    let kind = prop_oneof![0..12u16, 129..134u16, any::<u16>()];
    let payload = prop_oneof![
        Just(Vec::new()),
        Just(vec![0; 8]),
        Just(vec![0; 32]),
        prop::collection::vec(any::<u8>(), 0..300),
    ];
    (number(), number(), number(), kind, 0..3u8, prop_oneof![Just(0), any::<u8>()], payload)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// A stranger's bytes never get past the greeting.
    #[test]
    fn a_strangers_bytes_open_nothing(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..200), 1..10),
        proper in any::<bool>(),
    ) {
        with_server(|links| {
            links.accept(NOW, STREAM, [0; 16]).unwrap();
            let mut raw = Raw::new();
            for chunk in &chunks {
                let bytes = if proper { raw.seal(chunk) } else { chunk.clone() };
                tell_server(links, STREAM, &bytes);
                assert_eq!(links.poll_event(), None);
            }
            assert_eq!(links.sessions().count(), 0);
        });
        with_client(|link| {
            link.connect(NOW, STREAM, [0; 16]);
            let mut raw = Raw::new();
            for chunk in &chunks {
                let bytes = if proper { raw.seal(chunk) } else { chunk.clone() };
                tell_client(link, STREAM, &bytes);
                assert_eq!(link.poll_event(), None);
            }
        });
    }

    /// A member's frames, whatever is in them, are messages in order or the end of the connection.
    #[test]
    fn a_members_frames_are_messages_or_the_end(
        frames in prop::collection::vec(arbitrary_message(), 1..20),
        answer in any::<bool>(),
    ) {
        let sealed = |raw: &mut Raw| -> Vec<Vec<u8>> {
            let seal = |(seq, ack, request, kind, flags, error, payload): &_| {
                let mut body = Vec::new();
                for number in [seq, ack, request] {
                    body.extend(u64::to_le_bytes(*number));
                }
                body.extend(u16::to_le_bytes(*kind));
                body.extend([*flags, *error, 0, 0, 0, 0]);
                body.extend::<&Vec<u8>>(payload);
                raw.seal(&body)
            };
            frames.iter().map(seal).collect()
        };
        with_server(|links| {
            let (mut raw, session) = member(links);
            links.request(session, &revoke()).unwrap();
            let mut taken = 0;
            for record in sealed(&mut raw) {
                tell_server(links, STREAM, &record);
                while let Some(event) = links.poll_event() {
                    assert!(!matches!(event, LinksEvent::Greeted(_, _)));
                }
                while let Some(ticket) = links.take(NOW, session) {
                    taken += 1;
                    let failed = Outcome::Failed(ErrorCode::Busy, None);
                    match answer && ticket.kind().asker() == crate::format::wire::Party::Client {
                        true => links.answer(session, ticket, &failed).unwrap(),
                        false => links.recorded(session, ticket),
                    }
                }
            }
            assert!(taken <= frames.len());
        });
        with_client(|link| {
            let mut raw = Raw::server(link, &cluster(), STREAM, TERM, &first_admission());
            link.request(&ClientRequest::Root).unwrap();
            for record in sealed(&mut raw) {
                tell_client(link, STREAM, &record);
                while let Some(event) = link.poll_event() {
                    assert!(matches!(event, LinkEvent::Up { .. } | LinkEvent::Message));
                }
                while let Some(ticket) = link.take(NOW) {
                    link.recorded(ticket);
                }
            }
        });
    }
}

//! Knocks, and whatever may answer them.

use super::raw::{NOW, hear_server, tell_server};
use super::std::vec::Vec;
use super::world::{carve_links, cluster, with_arena};
use crate::arena::Arena;
use crate::format::Term;
use crate::format::wire::ErrorCode;
use crate::format::wire::greeting::{Greeting, Machine, Role};
use crate::net::{Cluster, ClusterKey, End, Knock, KnockConfig, Links, LinksEvent, Timing};
use outrider_hal::{Instant, StreamId};

const STREAM: StreamId = StreamId(1);

fn config() -> KnockConfig {
    KnockConfig {
        cluster: cluster(),
        timing: Timing::DEFAULT,
        nonce: [6; 16],
        machine: Machine::default(),
    }
}

/// Somebody who knocks, and a server that leads nobody.
fn with_both(server: Cluster, run: impl FnOnce(&mut Knock<'_>, &mut Links<'_>)) {
    let mut measure = Arena::measuring();
    carve_links(&mut measure, server);
    Knock::carve(&mut measure, config()).unwrap();
    with_arena(measure.bytes_used(), |arena| {
        let mut links = carve_links(arena, server);
        links.begin(Term::NONE);
        run(&mut Knock::carve(arena, config()).unwrap(), &mut links);
    });
}

/// Gives bytes to the one who knocks, and takes what it has to say.
fn tell(knock: &mut Knock<'_>, bytes: &[u8]) -> Vec<u8> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let space = knock.recv_space(STREAM);
        let count = space.len().min(rest.len());
        if count == 0 {
            break;
        }
        space[..count].copy_from_slice(&rest[..count]);
        knock.received(NOW, STREAM, count);
        rest = &rest[count..];
    }
    let said = knock.send_bytes(STREAM).to_vec();
    knock.sent(STREAM, said.len());
    said
}

/// Knocks, until nobody has anything more to say; what was heard at the server.
fn knock_at(knock: &mut Knock<'_>, links: &mut Links<'_>) -> Option<Greeting> {
    links.accept(NOW, STREAM, [2; 16]).unwrap();
    knock.knock(NOW, STREAM, [3; 16]);
    let mut said = tell(knock, &[]);
    let mut heard = None;
    while !said.is_empty() {
        let mut answered = tell_server(links, STREAM, &said);
        if let Some(LinksEvent::Greeted(stream, greeting)) = links.poll_event() {
            links.answer_knock(NOW, stream);
            answered.extend(hear_server(links, STREAM));
            heard = Some(greeting);
        }
        said = tell(knock, &answered);
    }
    heard
}

#[test]
fn a_knock_is_heard_by_a_server_that_does_not_lead() {
    with_both(cluster(), |knock, links| {
        for _ in 0..3 {
            let heard = knock_at(knock, links).unwrap();
            assert_eq!((heard.role, heard.nonce), (Role::Knock, [6; 16]));
            assert_eq!(knock.poll_close(), Some((STREAM, End::Knocked)));
            assert!(knock.is_idle());
            links.closed(STREAM);
            assert_eq!(links.poll_close(), Some((STREAM, End::Knocked)));
        }
    });
}

#[test]
fn nobody_is_heard_without_the_key() {
    with_both(Cluster { key: ClusterKey([8; 32]), ..cluster() }, |knock, links| {
        assert_eq!(knock_at(knock, links), None);
        let end = End::Refused { error: ErrorCode::BadMac, proven: false };
        assert_eq!(knock.poll_close(), Some((STREAM, end)));
    });
}

#[test]
fn a_knock_ends_with_its_connection_and_when_nobody_answers() {
    with_both(cluster(), |knock, _| {
        knock.knock(NOW, STREAM, [3; 16]);
        knock.closed(StreamId(2));
        assert!(knock.has(STREAM));
        knock.closed(STREAM);
        assert_eq!(knock.poll_close(), Some((STREAM, End::Closed)));
        knock.knock(NOW, STREAM, [3; 16]);
        let deadline = knock.poll_timeout().unwrap();
        knock.step(Instant(deadline.0 - 1));
        assert_eq!(knock.poll_close(), None);
        knock.step(deadline);
        assert_eq!(knock.poll_close(), Some((STREAM, End::Late)));
    });
}

#[test]
fn whatever_comes_back_ends_it_at_most() {
    with_both(cluster(), |knock, links| {
        links.accept(NOW, STREAM, [2; 16]).unwrap();
        knock.knock(NOW, STREAM, [3; 16]);
        let hello = tell(knock, &[]);
        let challenge = tell_server(links, STREAM, &hello);
        for at in 0..challenge.len() {
            knock.disconnect();
            knock.poll_close();
            knock.knock(NOW, STREAM, [3; 16]);
            let mut broken = challenge.clone();
            broken[at] ^= 1 << (at % 8);
            // More than there is room for, too.
            broken.extend(challenge.iter().cycle().take(1000));
            tell(knock, &broken);
            assert!(knock.poll_close().is_none_or(|(_, end)| end != End::Knocked));
        }
    });
}

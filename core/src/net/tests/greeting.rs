//! Who may come in, and what becomes of everybody else.

use super::raw::{
    NOW, Raw, first_admission, first_greeting, hear_client, hear_server, tell_client, tell_server,
};
use super::std::vec::Vec;
use super::world::{
    LINKS, WINDOWS, carve_link, carve_links, cluster, link_config, with_arena, with_world,
};
use crate::arena::Arena;
use crate::format::key::KeyBytes;
use crate::format::wire::greeting::{Admission, Greeting, Role};
use crate::format::wire::message::{
    ClientRequest, LockRecord, Outcome, ServerAnswer, ServerRequest, Status,
};
use crate::format::wire::{ErrorCode, Kind};
use crate::format::{ClientId, CommitNo, Term};
use crate::net::{
    BadRecord, Breach, Cluster, ClusterKey, End, Incoming, LimitsError, LineLimits, Link,
    LinkConfig, LinkEvent, Links, LinksEvent, LinksLimits, NotSent, SessionLimits, Stale, Timing,
    TooMany,
};
use core::time::Duration;
use outrider_hal::{Instant, StreamId};
use zerocopy::FromZeros;

const TERM: Term = Term::new(4, 2);

/// A server in its term, and a client of each of these configurations.
fn with_nodes<T, const CLIENTS: usize>(
    server: Cluster,
    clients: [LinkConfig; CLIENTS],
    run: impl FnOnce(&mut Links<'_>, &mut [Link<'_>; CLIENTS]) -> T,
) -> T {
    let mut measure = Arena::measuring();
    carve_links(&mut measure, server);
    for config in clients {
        carve_link(&mut measure, config);
    }
    with_arena(measure.bytes_used(), |arena| {
        let mut links = carve_links(arena, server);
        links.begin(TERM);
        run(&mut links, &mut clients.map(|config| carve_link(arena, config)))
    })
}

/// Connects, and lets the bytes flow until nobody says anything. Gives what either side said.
fn greet(
    links: &mut Links<'_>,
    link: &mut Link<'_>,
    stream: StreamId,
    admit: impl Fn(&mut Links<'_>, StreamId, &Greeting),
) -> (Vec<u8>, Vec<u8>) {
    let random = [stream.0 as u8; 16];
    links.accept(NOW, stream, random).unwrap();
    link.connect(NOW, stream, random.map(|byte| !byte));
    let (mut up, mut down) = (Vec::new(), Vec::new());
    let mut said = hear_client(link, stream);
    loop {
        let answered = tell_server(links, stream, &said);
        let next = tell_client(link, stream, &answered);
        let mut greeted = false;
        while let Some(event) = links.poll_event() {
            if let LinksEvent::Greeted(stream, greeting) = event {
                admit(links, stream, &greeting);
                greeted = true;
            }
        }
        let quiet = next.is_empty() && answered.is_empty() && !greeted;
        up.extend(core::mem::replace(&mut said, next));
        down.extend(answered);
        if quiet {
            return (up, down);
        }
    }
}

fn admit_nine(links: &mut Links<'_>, stream: StreamId, _: &Greeting) {
    let _ = links.admit(NOW, stream, ClientId(9));
}

fn nobody(_: &mut Links<'_>, _: StreamId, greeting: &Greeting) {
    panic!("nobody proved the key: {greeting:?}");
}

/// How a greeting between these two ends, at either end, when nobody may get in.
fn refused(server: Cluster, client: Cluster) -> (End, End) {
    with_nodes(server, [link_config(client, 1)], |links, [link]| {
        let stream = StreamId(1);
        greet(links, link, stream, nobody);
        assert_eq!(links.sessions().count(), 0);
        let (_, at_client) = link.poll_close().unwrap();
        links.closed(stream);
        let (_, at_server) = links.poll_close().unwrap();
        assert_eq!(link.client(), None);
        (at_client, at_server)
    })
}

fn hint(error: ErrorCode) -> End {
    End::Refused { error, proven: false }
}

#[test]
fn a_mount_gets_its_id_and_keeps_it() {
    with_nodes(cluster(), [link_config(cluster(), 1)], |links, [link]| {
        let admit = |links: &mut Links<'_>, stream, greeting: &Greeting| {
            assert_eq!((greeting.client, greeting.nonce), (None, [1; 16]));
            links.admit(NOW, stream, ClientId(9)).unwrap();
        };
        greet(links, link, StreamId(1), admit);
        let up = LinkEvent::Up { term: TERM, client: ClientId(9), renewed: true };
        assert_eq!(link.poll_event(), Some(up));
        let session = links.find(ClientId(9)).unwrap();
        assert!(links.is_up(session));
        assert_eq!(links.client(session), Some(ClientId(9)));

        link.disconnect();
        assert_eq!(link.poll_close(), Some((StreamId(1), End::Dropped)));
        let again = |links: &mut Links<'_>, stream, greeting: &Greeting| {
            assert_eq!((greeting.client, greeting.term), (Some(ClientId(9)), TERM));
            assert_eq!(links.admit(NOW, stream, ClientId(9)), Ok(session));
        };
        greet(links, link, StreamId(2), again);
        let up = LinkEvent::Up { term: TERM, client: ClientId(9), renewed: false };
        assert_eq!(link.poll_event(), Some(up));
        assert_eq!(links.poll_close(), Some((StreamId(1), End::Replaced)));
        assert_eq!(links.sessions().count(), 1);
    });
}

#[test]
fn another_volume_is_told_so() {
    let other = Cluster { fsid: 1, ..cluster() };
    let ends = refused(cluster(), other);
    assert_eq!(ends, (hint(ErrorCode::WrongVolume), End::Refusing(ErrorCode::WrongVolume)));
}

#[test]
fn another_version_is_told_so() {
    let newer = Cluster { version_min: 2, version_max: 3, ..cluster() };
    let ends = refused(cluster(), newer);
    assert_eq!(ends, (hint(ErrorCode::BadVersion), End::Refusing(ErrorCode::BadVersion)));
    let ends = refused(newer, cluster());
    assert_eq!(ends, (hint(ErrorCode::BadVersion), End::Refusing(ErrorCode::BadVersion)));
}

#[test]
fn a_missing_feature_is_told() {
    let needs = Cluster { features: 0b110, features_required: 0b100, ..cluster() };
    let knows = Cluster { features: 0b011, ..cluster() };
    for (server, client) in [(needs, knows), (knows, needs)] {
        let ends = refused(server, client);
        assert_eq!(ends, (hint(ErrorCode::BadFeature), End::Refusing(ErrorCode::BadFeature)));
    }
}

#[test]
fn versions_and_features_in_common_are_found() {
    let server = Cluster { version_max: 3, features: 0b110, features_required: 0b10, ..cluster() };
    let client = Cluster { version_max: 2, features: 0b011, ..cluster() };
    with_nodes(server, [link_config(client, 1)], |links, [link]| {
        greet(links, link, StreamId(1), admit_nine);
        assert!(link.is_up());
    });
}

#[test]
fn another_key_is_told_so() {
    let other = Cluster { key: ClusterKey([8; 32]), ..cluster() };
    let ends = refused(cluster(), other);
    assert_eq!(ends, (hint(ErrorCode::BadMac), End::Refusing(ErrorCode::BadMac)));
}

#[test]
fn a_server_that_does_not_know_the_key_is_not_believed() {
    let other = Cluster { key: ClusterKey([8; 32]), ..cluster() };
    with_nodes(cluster(), [link_config(cluster(), 1)], |_, [link]| {
        Raw::server(link, &other, StreamId(1), TERM, &first_admission());
        assert_eq!(link.poll_close(), Some((StreamId(1), End::Refusing(ErrorCode::BadMac))));
        assert_eq!((link.client(), link.term()), (None, Term::NONE));
    });
}

#[test]
fn a_server_of_an_older_term_is_not_listened_to() {
    with_nodes(cluster(), [link_config(cluster(), 1)], |_, [link]| {
        let newer = Term::new(5, 0);
        Raw::server(link, &cluster(), StreamId(1), newer, &first_admission());
        assert!(link.is_up());
        link.disconnect();
        link.poll_close().unwrap();
        Raw::server(link, &cluster(), StreamId(2), TERM, &first_admission());
        assert_eq!(link.poll_close(), Some((StreamId(2), End::OldTerm(TERM))));
        assert_eq!(link.term(), newer);
    });
}

#[test]
fn a_welcome_must_fit_the_session() {
    let end = |first: Admission, then: Admission, term| {
        with_nodes(cluster(), [link_config(cluster(), 1)], |_, [link]| {
            Raw::server(link, &cluster(), StreamId(1), TERM, &first);
            if link.is_up() {
                link.disconnect();
                link.poll_close().unwrap();
                Raw::server(link, &cluster(), StreamId(2), term, &then);
            }
            link.poll_close().map(|(_, end)| end)
        })
    };
    let first = first_admission();
    let breach = |breach| Some(End::Breach(breach));
    let resumed = Admission { fresh: false, ..first };
    assert_eq!(end(first, resumed, TERM), None);
    assert_eq!(end(first, first, Term::new(5, 0)), None);
    // The same server has lost the session, or knows of messages that were never sent.
    assert_eq!(end(first, first, TERM), breach(Breach::Resume));
    assert_eq!(end(first, Admission { received: 1, ..resumed }, TERM), breach(Breach::Resume));
    let ahead = Admission { received: 1, ..first };
    assert_eq!(end(first, ahead, Term::new(5, 0)), breach(Breach::Resume));
    // Another id, none, or more requests than there is room for.
    let other = Admission { client: ClientId(8), ..resumed };
    assert_eq!(end(first, other, TERM), breach(Breach::Identity));
    let none = Admission { client: ClientId(0), ..first };
    assert_eq!(end(none, first, TERM), breach(Breach::Identity));
    let wide = Admission { requests_max: WINDOWS.answers_max + 1, ..first };
    assert_eq!(end(wide, first, TERM), breach(Breach::Window));
}

#[test]
fn a_recorded_conversation_opens_nothing() {
    with_nodes(cluster(), [link_config(cluster(), 1)], |links, [link]| {
        let (up, down) = greet(links, link, StreamId(1), admit_nine);
        assert!(link.is_up());
        let session = links.find(ClientId(9)).unwrap();

        let stream = StreamId(2);
        links.accept(NOW, stream, [0x77; 16]).unwrap();
        let said = tell_server(links, stream, &up);
        assert_ne!(said, down, "another challenge");
        assert!(!matches!(links.poll_event(), Some(LinksEvent::Greeted(_, _))));
        links.closed(stream);
        assert_eq!(links.poll_close(), Some((stream, End::Refusing(ErrorCode::BadMac))));
        assert!(links.is_up(session), "the true connection is untouched");

        link.disconnect();
        link.poll_close().unwrap();
        link.connect(NOW, stream, [0x78; 16]);
        hear_client(link, stream);
        tell_client(link, stream, &down);
        assert_eq!(link.poll_close(), Some((stream, End::Refusing(ErrorCode::BadMac))));
    });
}

#[test]
fn a_mirror_opens_nothing() {
    with_nodes(cluster(), [link_config(cluster(), 1)], |links, [link]| {
        let stream = StreamId(1);
        link.connect(NOW, stream, [0x78; 16]);
        let hello = hear_client(link, stream);
        tell_client(link, stream, &hello);
        let (_, end) = link.poll_close().unwrap();
        assert!(matches!(end, End::Record(_) | End::Malformed(_)), "{end:?}");

        // A server's own challenge, given back as a proof, and a client's proof as a welcome.
        links.accept(NOW, stream, [1; 16]).unwrap();
        let challenge = tell_server(links, stream, &hello);
        tell_server(links, stream, &challenge);
        let (_, end) = links.poll_close().unwrap();
        assert!(matches!(end, End::Record(_) | End::Malformed(_)), "{end:?}");
    });
}

#[test]
fn bytes_of_another_connection_do_not_pass() {
    let configs = [link_config(cluster(), 1), link_config(cluster(), 2)];
    with_nodes(cluster(), configs, |links, [one, two]| {
        greet(links, one, StreamId(1), |links, stream, _| {
            links.admit(NOW, stream, ClientId(1)).unwrap();
        });
        greet(links, two, StreamId(2), |links, stream, _| {
            links.admit(NOW, stream, ClientId(2)).unwrap();
        });
        one.request(&ClientRequest::Statfs).unwrap();
        let said = hear_client(one, StreamId(1));
        tell_server(links, StreamId(2), &said);
        let end = End::Record(BadRecord::Checksum);
        assert_eq!(links.poll_close(), Some((StreamId(2), end)));
        // Nor do they pass in the other direction.
        tell_client(one, StreamId(1), &said);
        assert_eq!(one.poll_close(), Some((StreamId(1), end)));
    });
}

#[test]
fn an_eviction_is_told_by_who_knows_the_key() {
    with_world(|world| {
        world.evicted = true;
        world.connect(0);
        for _ in 0..3 {
            world.client_sends(usize::MAX);
            world.server_receives(0, usize::MAX);
            world.server_sends(0, usize::MAX);
            world.client_receives(usize::MAX);
        }
        assert_eq!(world.ends, [End::Refused { error: ErrorCode::Evicted, proven: true }]);
    });
}

#[test]
fn a_session_that_is_gone_is_not_made_again() {
    with_nodes(cluster(), [link_config(cluster(), 1)], |links, [link]| {
        greet(links, link, StreamId(1), admit_nine);
        let session = links.find(ClientId(9)).unwrap();
        links.dismiss(session);
        assert_eq!(links.poll_close(), Some((StreamId(1), End::Dropped)));
        assert_eq!(
            links.request(session, &ServerRequest::Recover(KeyBytes::ZERO)).err(),
            Some(NOT)
        );
        link.closed(StreamId(1));
        link.poll_close().unwrap();
        greet(links, link, StreamId(2), admit_nine);
        let end = End::Refused { error: ErrorCode::Evicted, proven: true };
        assert_eq!(link.poll_close(), Some((StreamId(2), end)));
    });
}

const NOT: NotSent = NotSent::NotConnected;

#[test]
fn of_two_connections_the_later_made_lives() {
    with_nodes(cluster(), [link_config(cluster(), 1)], |links, _| {
        let second = Greeting { attempt: 2, ..first_greeting() };
        Raw::client(links, &cluster(), StreamId(2), &second);
        let session = links.find(ClientId(9)).unwrap();
        let refused = |links: &mut Links<'_>, stream, greeting: &Greeting| {
            let mut raw = Raw::new();
            links.accept(NOW, stream, [2; 16]).unwrap();
            let ask = crate::net::greeting::Asker::ask;
            let (mut asker, hello) = ask(&cluster(), greeting, [3; 16]);
            use zerocopy::IntoBytes;
            let challenge = tell_server(links, stream, &raw.seal(hello.as_bytes()));
            let proof = asker.on_challenge(&cluster(), &raw.open(&challenge)).unwrap();
            tell_server(links, stream, &raw.seal(proof.as_bytes()));
            links.admit(NOW, stream, ClientId(9))
        };
        // Made before, greeted later.
        let first = refused(links, StreamId(1), &first_greeting());
        assert_eq!(first, Err(ErrorCode::Stale));
        // Another mount with the same id.
        let other = Greeting { nonce: [6; 16], attempt: 3, ..first_greeting() };
        assert_eq!(refused(links, StreamId(3), &other), Err(ErrorCode::Invalid));
        assert!(links.is_up(session));
    });
}

#[test]
fn strangers_keep_nobody_out() {
    with_nodes(cluster(), [link_config(cluster(), 1)], |links, [link]| {
        greet(links, link, StreamId(1), admit_nine);
        let session = links.find(ClientId(9)).unwrap();
        let mut displaced = 0;
        for stream in 100..200 {
            let accepted = links.accept(Instant(NOW.0 + stream), StreamId(stream), [0; 16]);
            displaced += usize::from(accepted.unwrap().is_some());
        }
        // They have all but what is in use.
        let slots = LINKS.slots() as usize;
        assert_eq!(displaced, 100 - (slots - 1));
        assert!(links.is_up(session));
        // Other clients still get in: what has become free is used first, and then the oldest
        // stranger makes room.
        links.dismiss(session);
        while links.poll_close().is_some() {}
        link.closed(StreamId(1));
        link.poll_close().unwrap();
        assert_eq!(links.accept(NOW, StreamId(300), [0; 16]), Ok(None));
        assert!(links.accept(NOW, StreamId(301), [0; 16]).unwrap().is_some());
        // And in the end all strangers are gone.
        links.step(NOW.plus(Timing::DEFAULT.greeting + Duration::from_secs(1)));
        let mut late = 0;
        while let Some((_, end)) = links.poll_close() {
            late += usize::from(end == End::Late);
        }
        assert_eq!(late, slots);
    });
}

#[test]
fn who_has_proved_the_key_is_not_displaced() {
    let configs = [1, 2, 3, 4, 5].map(|nonce| link_config(cluster(), nonce));
    with_nodes(cluster(), configs, |links, [one, two, three, four, five]| {
        let wait = |_: &mut Links<'_>, _: StreamId, _: &Greeting| {};
        for (stream, link) in [(1, one), (2, &mut *two), (5, four), (6, five)] {
            greet(links, link, StreamId(stream), wait);
        }
        assert_eq!(links.accept(NOW, StreamId(3), [0; 16]), Ok(None));
        links.closed(StreamId(3));
        greet(links, three, StreamId(4), wait);
        assert_eq!(links.accept(NOW, StreamId(7), [0; 16]), Err(TooMany));
        links.admit(NOW, StreamId(1), ClientId(1)).unwrap();
        links.admit(NOW, StreamId(4), ClientId(3)).unwrap();
        let full = links.admit(NOW, StreamId(2), ClientId(2));
        assert_eq!(full, Err(ErrorCode::TooMany));
        let said = hear_server(links, StreamId(2));
        tell_client(two, StreamId(2), &said);
        let end = End::Refused { error: ErrorCode::TooMany, proven: true };
        assert_eq!(two.poll_close(), Some((StreamId(2), end)));
    });
}

#[test]
fn a_knock_is_heard_and_opens_nothing() {
    let knock = LinkConfig { role: Role::Knock, ..link_config(cluster(), 1) };
    with_nodes(cluster(), [knock], |links, [link]| {
        let heard = |links: &mut Links<'_>, stream, greeting: &Greeting| {
            assert_eq!(greeting.role, Role::Knock);
            links.answer_knock(NOW, stream);
        };
        greet(links, link, StreamId(1), heard);
        assert_eq!(link.poll_close(), Some((StreamId(1), End::Knocked)));
        links.closed(StreamId(1));
        assert_eq!(links.poll_close(), Some((StreamId(1), End::Knocked)));
        assert_eq!(links.sessions().count(), 0);
    });
}

#[test]
fn a_guest_may_ask_for_the_status_and_nothing_else() {
    let status = LinkConfig { role: Role::Status, ..link_config(cluster(), 1) };
    let admit = |links: &mut Links<'_>, stream, greeting: &Greeting| {
        assert_eq!(greeting.role, Role::Status);
        let _ = links.admit_guest(NOW, stream);
    };
    with_nodes(cluster(), [status, status], |links, [link, other]| {
        greet(links, link, StreamId(1), admit);
        greet(links, other, StreamId(2), admit);
        let end = End::Refused { error: ErrorCode::TooMany, proven: true };
        assert_eq!(other.poll_close(), Some((StreamId(2), end)));

        link.request(&ClientRequest::Status).unwrap();
        let said = hear_client(link, StreamId(1));
        tell_server(links, StreamId(1), &said);
        let Some(LinksEvent::Message(session)) = links.poll_event() else {
            panic!("a message");
        };
        assert_eq!(links.head(session), Some(Incoming::Request(ClientRequest::Status)));
        let ticket = links.take(NOW, session).unwrap();
        let answer = Status {
            term: TERM,
            commit: CommitNo(5),
            leading_ms: 1,
            clients: 0,
            clients_connected: 0,
            clients_recovering: 0,
            clients_quarantined: 0,
            locks: 0,
            lock_waiters: 0,
            blocks_quarantined: 0,
        };
        links.answer(session, ticket, &Outcome::Done(ServerAnswer::Status(answer))).unwrap();
        let said = hear_server(links, StreamId(1));
        tell_client(link, StreamId(1), &said);
        let Some(Incoming::Answer(_, Outcome::Done(got))) = link.head() else {
            panic!("an answer");
        };
        assert_eq!(got, ServerAnswer::Status(answer));

        link.request(&ClientRequest::Root).unwrap();
        let said = hear_client(link, StreamId(1));
        tell_server(links, StreamId(1), &said);
        links.closed(StreamId(2));
        assert_eq!(links.poll_close().unwrap().1, End::Breach(Breach::Guest));
        assert_eq!(links.head(session), None);
        assert_eq!(links.client(session), None);
    });
}

#[test]
fn the_last_answer_is_acknowledged_although_nobody_speaks() {
    with_nodes(cluster(), [link_config(cluster(), 1)], |links, [link]| {
        let stream = StreamId(1);
        greet(links, link, stream, admit_nine);
        let session = links.find(ClientId(9)).unwrap();
        link.request(&ClientRequest::Farewell).unwrap();
        assert_eq!(link.request(&ClientRequest::Statfs), Err(NotSent::Leaving));
        link.step(NOW);
        assert!(link.kept() == 1 && links.kept(session) == 0);

        let said = hear_client(link, stream);
        tell_server(links, stream, &said);
        let ticket = links.take(NOW, session).unwrap();
        let failed = Outcome::Failed(ErrorCode::Busy, None);
        links.answer(session, ticket, &failed).unwrap();
        let said = hear_server(links, stream);
        tell_client(link, stream, &said);
        let ticket = link.take(NOW).unwrap();
        assert!(hear_client(link, stream).is_empty(), "nothing is recorded yet");
        link.recorded(ticket);
        assert!(hear_client(link, stream).is_empty(), "it may still travel with something");
        assert_eq!(links.kept(session), 1);
        let due = link.poll_timeout().unwrap();
        assert_eq!(due, NOW.plus(Timing::DEFAULT.ack_delay));
        link.step(due);
        let said = hear_client(link, stream);
        tell_server(links, stream, &said);
        assert_eq!(links.kept(session), 0);
        assert!(!link.is_parted(), "the farewell failed");
    });
}

#[test]
fn a_farewell_that_was_answered_counts_however_the_connection_ends() {
    with_nodes(cluster(), [link_config(cluster(), 1)], |links, [link]| {
        let stream = StreamId(1);
        greet(links, link, stream, admit_nine);
        let session = links.find(ClientId(9)).unwrap();
        link.request(&ClientRequest::Farewell).unwrap();
        link.step(NOW);
        let said = hear_client(link, stream);
        tell_server(links, stream, &said);
        let ticket = links.take(NOW, session).unwrap();
        links.answer(session, ticket, &Outcome::Done(ServerAnswer::Farewell)).unwrap();
        let said = hear_server(links, stream);
        tell_client(link, stream, &said);
        let ticket = link.take(NOW).unwrap();
        link.recorded(ticket);
        // The server has forgotten the client, and is quicker than the link's next step. Greeting
        // again the link would be told that it was evicted.
        link.closed(stream);
        assert_eq!(link.poll_close(), Some((stream, End::Farewell)));
    });
}

#[test]
fn an_evicted_client_comes_back_as_another() {
    with_nodes(cluster(), [link_config(cluster(), 1)], |links, [link]| {
        greet(links, link, StreamId(1), admit_nine);
        link.request(&ClientRequest::Statfs).unwrap();
        links.dismiss(links.find(ClientId(9)).unwrap());
        while links.poll_close().is_some() {}
        link.closed(StreamId(1));
        link.poll_close().unwrap();

        link.restart([2; 16]);
        assert_eq!((link.kept(), link.client(), link.term()), (0, None, TERM));
        greet(links, link, StreamId(2), |links, stream, greeting| {
            assert_eq!((greeting.client, greeting.nonce), (None, [2; 16]));
            links.admit(NOW, stream, ClientId(10)).unwrap();
        });
        let up = LinkEvent::Up { term: TERM, client: ClientId(10), renewed: true };
        assert_eq!(link.poll_event(), Some(up));
    });
}

#[test]
fn a_term_ends_with_everything_in_flight() {
    with_nodes(cluster(), [link_config(cluster(), 1)], |links, [link]| {
        let stream = StreamId(1);
        greet(links, link, stream, admit_nine);
        let session = links.find(ClientId(9)).unwrap();
        links.request(session, &ServerRequest::Recover(KeyBytes::ZERO)).unwrap();
        link.request(&ClientRequest::Statfs).unwrap();
        let (up, down) = (hear_client(link, stream), hear_server(links, stream));
        tell_server(links, stream, &up);
        tell_client(link, stream, &down);
        let at_server = links.take(NOW, session).unwrap();
        let at_client = link.take(NOW).unwrap();

        let next = Term::new(5, 2);
        links.begin(next);
        assert_eq!(links.poll_close(), Some((stream, End::Dropped)));
        assert_eq!(links.find(ClientId(9)), None);
        let failed = Outcome::Failed(ErrorCode::Stopping, None);
        assert_eq!(links.answer(session, at_server, &failed), Err(Stale));

        link.closed(stream);
        link.poll_close().unwrap();
        greet(links, link, StreamId(2), admit_nine);
        let again = links.find(ClientId(9)).unwrap();
        assert_ne!(again, session);
        // The client's request is there again, the server's is forgotten on both sides.
        assert_eq!(links.head(again), Some(Incoming::Request(ClientRequest::Statfs)));
        assert_eq!(link.head(), None);
        let failed = Outcome::Failed(ErrorCode::Stopping, None);
        assert_eq!(link.answer(at_client, &failed), Err(Stale));
        assert_eq!(links.kept(again), 0);
    });
}

#[test]
fn limits_that_cannot_work_are_named() {
    assert_eq!(LINKS.validate(), Ok(()));
    let limits = LinksLimits { half_open_max: 0, ..LINKS };
    assert_eq!(limits.validate(), Err(LimitsError::NoHalfOpen));
    let short = LineLimits { recv_bytes: 8000, ..LineLimits::MIN };
    assert_eq!(LinksLimits { line: short, ..LINKS }.validate(), Err(LimitsError::Buffers));
    let narrow = SessionLimits { asks_max: 0, ..WINDOWS };
    assert_eq!(LinksLimits { session: narrow, ..LINKS }.validate(), Err(LimitsError::Windows));
    assert!(Timing::DEFAULT.is_valid());
    assert!(!Timing { keepalive: Timing::DEFAULT.silence, ..Timing::DEFAULT }.is_valid());
}

#[test]
fn what_belongs_to_one_term_is_not_sent_to_the_next() {
    with_nodes(cluster(), [link_config(cluster(), 1)], |links, [link]| {
        greet(links, link, StreamId(1), admit_nine);
        let ask = ClientRequest::LockAsk(LockRecord::new_zeroed());
        for request in [ask, ClientRequest::Statfs, ask] {
            link.request(&request).unwrap();
        }
        assert_eq!(link.can_request(Kind::LockAsk), Err(NotSent::Full));
        // Within the term, another connection changes nothing.
        link.disconnect();
        link.poll_close().unwrap();
        greet(links, link, StreamId(2), admit_nine);
        assert_eq!(link.kept(), 3);

        links.begin(Term::new(5, 2));
        link.disconnect();
        link.poll_close().unwrap();
        while links.poll_close().is_some() {}
        greet(links, link, StreamId(3), admit_nine);
        assert_eq!(link.kept(), 1);
        let session = links.find(ClientId(9)).unwrap();
        tell_server(links, StreamId(3), &hear_client(link, StreamId(3)));
        assert_eq!(links.head(session), Some(Incoming::Request(ClientRequest::Statfs)));
    });
}

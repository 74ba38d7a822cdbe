//! The server's locks: the matrix, and hostile peers.

extern crate std;

use super::*;
use crate::format::Ino;
use crate::lock::model::new_server;
use proptest::prelude::*;
use std::vec::Vec;

const LIMITS: Limits =
    Limits { clients: 8, entries: 64, entries_per_client: 16, entries_high: 48, reclaims: 2 };

const A: ClientId = ClientId(1);
const B: ClientId = ClientId(2);
const C: ClientId = ClientId(3);

fn group(number: u64) -> LockName {
    LockName::inode(Ino(number << 10))
}

fn name() -> LockName {
    group(0)
}

fn serving(limits: &Limits, clients: &[ClientId]) -> LockServer<'static> {
    let mut server = new_server(limits);
    server.start();
    for client in clients {
        server.handle_greeting(*client).unwrap();
    }
    work(&mut server);
    server
}

fn work(server: &mut LockServer<'_>) {
    while server.step(Instant(0), 3) == More::Yes {}
}

fn request(server: &mut LockServer<'_>, client: ClientId, name: LockName, mode: Mode) {
    let reply = server.handle_message(Instant(5), client, &ToServer::Request { name, mode });
    assert_eq!(reply, Ok(None));
}

fn release(server: &mut LockServer<'_>, client: ClientId, name: LockName, generation: u64) {
    keep(server, client, name, generation, Mode::Null);
}

fn keep(
    server: &mut LockServer<'_>,
    client: ClientId,
    name: LockName,
    generation: u64,
    kept: Mode,
) {
    let message = ToServer::Release { name, generation, kept };
    assert_eq!(server.handle_message(Instant(6), client, &message), Ok(None));
}

fn granted(server: &mut LockServer<'_>, client: ClientId, name: LockName, mode: Mode) -> u64 {
    match server.poll_message(client) {
        Some(ToClient::Grant { name: granted, generation, mode: as_mode }) => {
            assert_eq!((granted, as_mode), (name, mode));
            generation
        }
        other => panic!("{client} gets {other:?}"),
    }
}

fn silent(server: &mut LockServer<'_>) {
    for client in [A, B, C] {
        assert_eq!(server.poll_message(client), None);
    }
}

fn waits(server: &LockServer<'_>) -> Vec<(ClientId, Mode)> {
    server.waiting().map(|waiting| (waiting.client, waiting.wanted)).collect()
}

fn holds(server: &LockServer<'_>, name: LockName) -> Vec<(ClientId, Mode)> {
    server.holders(&name).map(|holder| (holder.client, holder.mode)).collect()
}

/// Every mode against every mode, of another and of the same client, with the order of messages.
#[test]
fn compatibility_matrix() {
    use Mode::{Null, Read, Write, WriteOnly};
    // Granted, then requested by another and by the same client: what the holder is revoked to.
    let matrix = [
        (Read, Read, None, None),
        (Read, Write, Some(Null), None),
        (Read, WriteOnly, Some(Null), Some(Null)),
        (Write, Read, Some(Read), Some(Read)),
        (Write, Write, Some(Null), Some(Null)),
        (Write, WriteOnly, Some(Null), Some(Null)),
        (WriteOnly, Read, Some(Null), Some(Null)),
        (WriteOnly, Write, Some(Null), Some(Null)),
        (WriteOnly, WriteOnly, None, None),
    ];
    for (held, wanted, by_other, by_same) in matrix {
        for (client, revoked) in [(B, by_other), (A, by_same)] {
            let mut server = serving(&LIMITS, &[A, B]);
            request(&mut server, A, name(), held);
            let generation = granted(&mut server, A, name(), held);
            request(&mut server, client, name(), wanted);
            if let Some(to) = revoked {
                assert_eq!(waits(&server), [(client, wanted)]);
                let revoke = ToClient::Revoke { name: name(), generation, to };
                assert_eq!(server.poll_message(A), Some(revoke), "{held:?} {wanted:?}");
                silent(&mut server);
                keep(&mut server, A, name(), generation, to);
            }
            assert_eq!(waits(&server), []);
            assert!(granted(&mut server, client, name(), wanted) > generation);
            silent(&mut server);
            let left = revoked.unwrap_or(held);
            let mut all = std::vec![(client, wanted)];
            if client != A && left != Null {
                all.insert(0, (A, left));
            }
            assert_eq!(holds(&server, name()), all, "{held:?} {wanted:?}");
        }
    }
}

#[test]
fn who_came_first_is_served_first() {
    let mut server = serving(&LIMITS, &[A, B, C]);
    request(&mut server, A, name(), Mode::Read);
    let first = granted(&mut server, A, name(), Mode::Read);
    request(&mut server, B, name(), Mode::Write);
    // A read would go with A's, but B's write is before it.
    request(&mut server, C, name(), Mode::Read);
    assert_eq!(waits(&server), [(B, Mode::Write), (C, Mode::Read)]);
    assert!(matches!(server.poll_message(A), Some(ToClient::Revoke { to: Mode::Null, .. })));
    request(&mut server, A, name(), Mode::Read);
    silent(&mut server);
    release(&mut server, A, name(), first);
    let second = granted(&mut server, B, name(), Mode::Write);
    let revoke = ToClient::Revoke { name: name(), generation: second, to: Mode::Read };
    assert_eq!(server.poll_message(B), Some(revoke));
    silent(&mut server);
    keep(&mut server, B, name(), second, Mode::Read);
    granted(&mut server, C, name(), Mode::Read);
    granted(&mut server, A, name(), Mode::Read);
    let all = [(B, Mode::Read), (C, Mode::Read), (A, Mode::Read)];
    assert_eq!(holds(&server, name()).len(), all.len());
    assert!(all.iter().all(|holder| holds(&server, name()).contains(holder)));
}

#[test]
fn giving_back_concerns_nobody_else() {
    let mut server = serving(&LIMITS, &[A, B]);
    request(&mut server, A, name(), Mode::Read);
    request(&mut server, B, name(), Mode::Read);
    let generation = granted(&mut server, A, name(), Mode::Read);
    granted(&mut server, B, name(), Mode::Read);
    release(&mut server, A, name(), generation);
    silent(&mut server);
    assert_eq!(holds(&server, name()), [(B, Mode::Read)]);
}

#[test]
fn what_crosses_on_the_way_is_told_apart() {
    let mut server = serving(&LIMITS, &[A, B]);
    request(&mut server, A, name(), Mode::Write);
    let first = granted(&mut server, A, name(), Mode::Write);
    // A gives back unasked while the revoke is on its way: that is the answer.
    request(&mut server, B, name(), Mode::Read);
    assert!(matches!(server.poll_message(A), Some(ToClient::Revoke { .. })));
    release(&mut server, A, name(), first);
    let second = granted(&mut server, B, name(), Mode::Read);
    // A's answer to it, and a repetition, change nothing, nor does one under B's grant.
    for generation in [first, second, 0, u64::MAX] {
        release(&mut server, A, name(), generation);
    }
    release(&mut server, B, name(), first);
    assert_eq!(holds(&server, name()), [(B, Mode::Read)]);
    assert_eq!(server.counters().stale_releases, 5);
    // Given back before the revoke was even sent: it isn't sent any more.
    request(&mut server, A, name(), Mode::Write);
    release(&mut server, B, name(), second);
    assert_eq!(server.poll_message(B), None);
    granted(&mut server, A, name(), Mode::Write);
    // Nobody can give back what has not been sent, or keep more than was granted.
    request(&mut server, B, group(1), Mode::WriteOnly);
    release(&mut server, B, group(1), 4);
    let generation = granted(&mut server, B, group(1), Mode::WriteOnly);
    keep(&mut server, B, group(1), generation, Mode::Read);
    assert_eq!(holds(&server, group(1)), [(B, Mode::WriteOnly)]);
}

#[test]
fn a_grant_goes_out_before_its_revoke() {
    let mut server = serving(&LIMITS, &[A, B]);
    request(&mut server, A, name(), Mode::Write);
    request(&mut server, B, name(), Mode::Write);
    let generation = granted(&mut server, A, name(), Mode::Write);
    let revoke = ToClient::Revoke { name: name(), generation, to: Mode::Null };
    assert_eq!(server.poll_message(A), Some(revoke));
}

#[test]
fn a_second_request_is_a_violation() {
    let mut server = serving(&LIMITS, &[A, B]);
    request(&mut server, A, name(), Mode::Write);
    request(&mut server, B, name(), Mode::Read);
    let again = ToServer::Request { name: name(), mode: Mode::Read };
    assert_eq!(server.handle_message(Instant(0), B, &again), Err(Violation::Outstanding));
    assert_eq!(server.handle_message(Instant(0), C, &again), Err(Violation::Unknown));
}

#[test]
fn status_says_who_waits_for_whom() {
    let mut server = serving(&LIMITS, &[A, B, C]);
    request(&mut server, A, name(), Mode::Write);
    request(&mut server, B, name(), Mode::Read);
    request(&mut server, C, name(), Mode::Write);
    request(&mut server, B, group(1), Mode::Read);
    let waiting: Vec<_> = server.waiting().collect();
    let common =
        Waiting { name: name(), client: B, wanted: Mode::Read, since: Instant(5), ahead: 0 };
    assert_eq!(waiting, [common, Waiting { client: C, wanted: Mode::Write, ahead: 1, ..common }]);
    let holders: Vec<_> = server.holders(&name()).collect();
    let holder = Holder {
        client: A,
        mode: Mode::Write,
        revoke: Some(Mode::Read),
        ghost: false,
        since: Instant(5),
    };
    assert_eq!(holders, [holder]);
}

#[test]
fn a_request_without_room_is_refused() {
    let limits =
        Limits { clients: 3, entries: 4, entries_per_client: 2, entries_high: 3, reclaims: 1 };
    let mut server = serving(&limits, &[A, B, C]);
    for (client, number) in [(A, 0), (A, 1), (B, 2), (B, 3)] {
        request(&mut server, client, group(number), Mode::Read);
    }
    let refused = |server: &mut LockServer<'_>, client, number| {
        let message = ToServer::Request { name: group(number), mode: Mode::Read };
        match server.handle_message(Instant(0), client, &message) {
            Ok(Some(ToClient::Refuse { refusal, .. })) => refusal,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused(&mut server, A, 4), Refusal::ClientFull);
    assert_eq!(refused(&mut server, C, 4), Refusal::Full);
    assert_eq!(server.handle_greeting(ClientId(4)), Err(GreetingError::Full));
    // Above the mark the least recent grant is revoked, one at a time.
    let first = granted(&mut server, A, group(0), Mode::Read);
    granted(&mut server, A, group(1), Mode::Read);
    work(&mut server);
    let revoke = ToClient::Revoke { name: group(0), generation: first, to: Mode::Null };
    assert_eq!(server.poll_message(A), Some(revoke));
    work(&mut server);
    silent_but_grants(&mut server);
    release(&mut server, A, group(0), first);
    work(&mut server);
    silent_but_grants(&mut server);
    request(&mut server, C, group(4), Mode::Read);
    granted(&mut server, C, group(4), Mode::Read);
}

fn silent_but_grants(server: &mut LockServer<'_>) {
    for client in [A, B, C] {
        while let Some(message) = server.poll_message(client) {
            assert!(matches!(message, ToClient::Grant { .. }), "{message:?}");
        }
    }
}

#[test]
fn a_private_zone_is_never_idle() {
    let limits =
        Limits { clients: 3, entries: 4, entries_per_client: 1, entries_high: 1, reclaims: 1 };
    let mut server = serving(&limits, &[A, B, C]);
    for client in [A, B] {
        request(&mut server, client, LockName::private(client), Mode::Write);
        granted(&mut server, client, LockName::private(client), Mode::Write);
    }
    work(&mut server);
    silent(&mut server);
    // Who gets it knows that the client has gone.
    request(&mut server, C, LockName::private(A), Mode::Write);
    assert!(matches!(server.poll_message(A), Some(ToClient::Revoke { .. })));
    server.evict(A);
    work(&mut server);
    granted(&mut server, C, LockName::private(A), Mode::Write);
}

#[test]
fn farewell_leaves_nothing_behind() {
    let mut server = serving(&LIMITS, &[A, B]);
    request(&mut server, A, name(), Mode::Write);
    request(&mut server, A, group(1), Mode::Write);
    request(&mut server, B, name(), Mode::Write);
    request(&mut server, A, name(), Mode::Read);
    server.farewell(A);
    work(&mut server);
    granted(&mut server, B, name(), Mode::Write);
    assert_eq!(server.entries_used(), 1);
    assert_eq!(server.poll_message(A), None);
    let message = ToServer::Request { name: name(), mode: Mode::Read };
    assert_eq!(server.handle_message(Instant(0), A, &message), Err(Violation::Unknown));
}

#[test]
fn what_an_evicted_client_may_write_stays_held() {
    let mut server = serving(&LIMITS, &[A, B]);
    request(&mut server, A, name(), Mode::Write);
    request(&mut server, A, group(1), Mode::Read);
    request(&mut server, A, LockName::RENAME, Mode::Write);
    request(&mut server, B, name(), Mode::Read);
    request(&mut server, B, group(1), Mode::Write);
    request(&mut server, B, LockName::RENAME, Mode::Write);
    server.evict(A);
    work(&mut server);
    // Readers and what covers no file blocks are gone; the writer of file blocks is not.
    granted(&mut server, B, group(1), Mode::Write);
    granted(&mut server, B, LockName::RENAME, Mode::Write);
    silent(&mut server);
    assert_eq!(server.ghosts().collect::<Vec<_>>(), [(A, Some(1))]);
    assert!(server.holders(&name()).all(|holder| holder.ghost));
    assert_eq!(server.handle_greeting(A), Err(GreetingError::Gone));
    server.release_ghost(A);
    server.release_ghost(A);
    work(&mut server);
    granted(&mut server, B, name(), Mode::Read);
    assert_eq!(server.ghosts().count(), 0);
}

fn recovering(clients: &[ClientId]) -> LockServer<'static> {
    recovering_within(&LIMITS, clients)
}

fn recovering_within(limits: &Limits, clients: &[ClientId]) -> LockServer<'static> {
    let mut server = new_server(limits);
    for client in clients {
        server.record(*client).unwrap();
    }
    server.start();
    work(&mut server);
    server
}

fn held(number: u64, mode: Mode) -> Held {
    Held { name: group(number), mode }
}

#[test]
fn nothing_is_granted_until_all_have_reported() {
    let mut server = recovering(&[A, B]);
    server.handle_greeting(C).unwrap();
    server.handle_greeting(A).unwrap();
    assert_eq!(server.poll_message(A), Some(ToClient::Recover { from: Key::MIN }));
    assert_eq!(server.poll_message(A), None);
    request(&mut server, C, group(0), Mode::Write);
    request(&mut server, C, group(9), Mode::Write);
    let batch = [held(0, Mode::Write), held(1, Mode::Read)];
    server.handle_batch(Instant(0), A, &batch).unwrap();
    let from = group(1).start().next().unwrap();
    assert_eq!(server.poll_message(A), Some(ToClient::Recover { from }));
    let early = ToServer::Request { name: group(5), mode: Mode::Read };
    assert_eq!(server.handle_message(Instant(0), A, &early), Err(Violation::NotRecovered));
    server.handle_batch(Instant(0), A, &[]).unwrap();
    work(&mut server);
    assert!(server.is_recovering());
    assert_eq!(server.unrecovered().collect::<Vec<_>>(), [B]);
    silent(&mut server);
    // B has nothing to report: as soon as that is said, all that waited goes on.
    server.handle_greeting(B).unwrap();
    server.poll_message(B);
    server.handle_batch(Instant(0), B, &[]).unwrap();
    assert!(!server.is_recovering());
    work(&mut server);
    granted(&mut server, C, group(9), Mode::Write);
    let revoke = ToClient::Revoke { name: group(0), generation: 0, to: Mode::Null };
    assert_eq!(server.poll_message(A), Some(revoke));
    release(&mut server, A, group(0), 0);
    granted(&mut server, C, group(0), Mode::Write);
}

#[test]
fn crooked_batches_are_violations() {
    let mut server = recovering(&[A, B]);
    assert_eq!(server.handle_batch(Instant(0), C, &[]), Err(Violation::Unknown));
    assert_eq!(server.handle_batch(Instant(0), A, &[]), Err(Violation::NotRecovering));
    for client in [A, B] {
        server.handle_greeting(client).unwrap();
        assert_eq!(server.handle_batch(Instant(0), client, &[]), Err(Violation::NotRecovering));
        server.poll_message(client);
    }
    let twice = [held(1, Mode::Read), held(1, Mode::Read)];
    assert_eq!(server.handle_batch(Instant(0), A, &twice), Err(Violation::Order));
    let conflict = [held(1, Mode::Write)];
    assert_eq!(server.handle_batch(Instant(0), B, &conflict), Err(Violation::Conflict));
    let many: Vec<_> = (2..30).map(|number| held(number, Mode::Read)).collect();
    assert_eq!(server.handle_batch(Instant(0), B, &many), Err(Violation::TooMany));
}

#[test]
fn a_client_that_never_reported_may_write_anywhere() {
    let mut server = recovering(&[A, B]);
    server.handle_greeting(B).unwrap();
    server.poll_message(B);
    server.handle_batch(Instant(0), B, &[held(0, Mode::Read)]).unwrap();
    server.poll_message(B);
    server.handle_batch(Instant(0), B, &[]).unwrap();
    server.evict(A);
    work(&mut server);
    assert_eq!(server.ghosts().collect::<Vec<_>>(), [(A, None)]);
    // Where B reads, A could not write; and an index holds no file blocks.
    request(&mut server, B, group(0), Mode::Write);
    granted(&mut server, B, group(0), Mode::Write);
    let index = LockName::index(crate::format::key::IndexKind::MetaSeq, 0);
    request(&mut server, B, index, Mode::WriteOnly);
    granted(&mut server, B, index, Mode::WriteOnly);
    request(&mut server, B, group(1), Mode::Read);
    work(&mut server);
    silent(&mut server);
    server.release_ghost(A);
    work(&mut server);
    granted(&mut server, B, group(1), Mode::Read);
}

#[test]
fn room_is_kept_for_what_may_be_reported() {
    let limits = Limits { entries: 32, entries_high: 24, ..LIMITS };
    let mut server = recovering_within(&limits, &[A]);
    server.handle_greeting(B).unwrap();
    for number in 16..32 {
        request(&mut server, B, group(number), Mode::Read);
    }
    server.handle_greeting(C).unwrap();
    let message = ToServer::Request { name: group(0), mode: Mode::Read };
    let refuse =
        ToClient::Refuse { name: group(0), mode: Mode::Read, refusal: Refusal::Recovering };
    assert_eq!(server.handle_message(Instant(0), C, &message), Ok(Some(refuse)));
    server.handle_greeting(A).unwrap();
    server.poll_message(A);
    let all: Vec<_> = (0..16).map(|number| held(number, Mode::Write)).collect();
    server.handle_batch(Instant(0), A, &all).unwrap();
}

#[test]
fn limits_must_go_together() {
    assert_eq!(LIMITS.validate(), Ok(()));
    assert_eq!(Limits { clients: 0, ..LIMITS }.validate(), Err(LimitsError::Range));
    assert_eq!(Limits { entries_high: 64, ..LIMITS }.validate(), Err(LimitsError::HighWater));
    assert_eq!(Limits { entries_per_client: 49, ..LIMITS }.validate(), Err(LimitsError::Share));
}

fn any_mode() -> impl Strategy<Value = Mode> {
    (0u8..4).prop_map(|number| Mode::parse(number).unwrap())
}

proptest! {
    /// Whatever clients say, in whatever order: refused or taken, and never the end of the server.
    #[test]
    fn no_client_upsets_the_server(
        recorded in 0u64..3,
        events in proptest::collection::vec(
            (0u8..10, 0u64..4, 0u64..4, any_mode(), 0u64..6), 0..200
        ),
    ) {
        let limits =
            Limits { clients: 3, entries: 7, entries_per_client: 3, entries_high: 4, reclaims: 1 };
        let mut server = new_server(&limits);
        (0..recorded).for_each(|id| server.record(ClientId(id)).unwrap());
        server.start();
        for (kind, id, number, mode, generation) in events {
            let (id, name) = (ClientId(id), group(number));
            let kept = if mode == Mode::Read { Mode::Read } else { Mode::Null };
            match kind {
                0 => {
 let _ = server.handle_greeting(id); }
                1..4 => {
                    let message = if mode == Mode::Null || kind == 1 {
                        ToServer::Release { name, generation, kept }
                    } else {
                        ToServer::Request { name, mode }
                    };
                    let _ = server.handle_message(Instant(0), id, &message);
                }
                4 => {
                    let batch = [Held { name, mode }, Held { name: group(9), mode }];
                    let len = generation.min(2) as usize;
                    let _ = server.handle_batch(Instant(0), id, &batch[..len]);
                }
                5 | 6 => {
 let _ = server.poll_message(id); }
                7 => {
 let _ = server.step(Instant(0), number as u32); }
                8 if generation == 0 => server.evict(id),
                8 if generation == 1 => server.farewell(id),
                _ => server.release_ghost(id),
            }
            prop_assert!(server.entries_used() <= limits.entries);
            for waiting in server.waiting() {
                prop_assert!(waiting.wanted != Mode::Null);
            }
            for (index, number) in (0..4).chain([9]).enumerate() {
                let holders: Vec<_> = server.holders(&group(number)).collect();
                for (at, holder) in holders.iter().enumerate() {
                    for other in &holders[at + 1..] {
                        prop_assert!(holder.mode.admits(other.mode, false), "{index} {holders:?}");
                    }
                }
            }
        }
        // When all have gone, nothing is left.
        for id in 0..4 {
            server.evict(ClientId(id));
            server.release_ghost(ClientId(id));
        }
        work(&mut server);
        prop_assert_eq!(server.entries_used(), 0);
        prop_assert_eq!(server.ghosts().count(), 0);
        prop_assert!(!server.is_recovering());
    }
}

#[test]
fn after_a_reset_there_is_nothing_left_of_the_term_before() {
    let mut server = recovering(&[A, B]);
    server.handle_greeting(A).unwrap();
    assert!(server.poll_message(A).is_some());
    let held = [0, 5].map(|number| Held { name: group(number), mode: Mode::Write });
    server.handle_batch(Instant(0), A, &held).unwrap();
    server.evict(B);
    while server.step(Instant(0), 10) == More::Yes {}
    assert_eq!((server.granted(), server.ghosts().count()), (2, 1));

    server.reset();
    assert_eq!((server.entries_used(), server.granted(), server.ghosts().count()), (0, 0, 0));
    server.start();
    server.handle_greeting(B).unwrap();
    let request = ToServer::Request { name: group(0), mode: Mode::Write };
    while server.step(Instant(0), 10) == More::Yes {}
    assert_eq!(server.handle_message(Instant(0), B, &request), Ok(None));
    let grant = ToClient::Grant { name: group(0), generation: 1, mode: Mode::Write };
    assert_eq!(server.poll_message(B), Some(grant));
    assert_eq!(server.poll_message(A), None);
}

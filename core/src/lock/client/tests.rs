//! The client's locks, case by case.

extern crate std;

use super::*;
use crate::format::{ClientId, Ino};
use crate::lock::model::{new_client, new_server};
use crate::lock::server::{self, LockServer};
use crate::mutant::activate;
use crate::node::More;
use proptest::prelude::*;
use std::vec::Vec;

const LIMITS: Limits = Limits {
    ops: 4,
    holds_per_op: 3,
    locks: 16,
    idle: 3,
    grace: Duration::from_millis(10),
    linger: Duration::from_micros(500),
    retry: Duration::from_millis(50),
    retries: 2,
};

const TERM: Term = Term::new(1, 0);
const START: Instant = Instant(1_000_000_000);
const FOREVER: Instant = Instant(u64::MAX);

fn group(number: u64) -> LockName {
    LockName::inode(Ino(number << 10))
}

fn name() -> LockName {
    group(0)
}

fn at(micros: u64) -> Instant {
    START.plus(Duration::from_micros(micros))
}

fn mounted() -> LockClient<'static> {
    let mut client = new_client(&LIMITS);
    client.handle_greeting(TERM, false).unwrap();
    client.handle_lease(START, FOREVER);
    client
}

fn acquire(
    client: &mut LockClient<'_>,
    op: u32,
    name: LockName,
    mode: Mode,
) -> Result<Acquired, Refused> {
    client.acquire(START, OpId(op), name, mode, Class::Ordinary)
}

fn grant(client: &mut LockClient<'_>, name: LockName, generation: u64, mode: Mode) {
    assert_eq!(client.poll_message(START), Some(ToServer::Request { name, mode }));
    let message = ToClient::Grant { name, generation, mode };
    assert_eq!(client.handle_message(START, TERM, &message), Ok(Reply::Nothing));
}

/// The lock is granted to an operation.
fn hold(client: &mut LockClient<'_>, op: u32, name: LockName, generation: u64, mode: Mode) {
    assert_eq!(acquire(client, op, name, mode), Ok(Acquired::Waiting));
    grant(client, name, generation, mode);
    assert_eq!(client.poll_ready(), Some((OpId(op), Ok(()))));
}

fn revoke(client: &mut LockClient<'_>, now: Instant, generation: u64, to: Mode) -> Reply {
    let message = ToClient::Revoke { name: name(), generation, to };
    client.handle_message(now, TERM, &message).unwrap()
}

fn released(generation: u64, kept: Mode) -> ToServer {
    ToServer::Release { name: name(), generation, kept }
}

fn drops(to: Mode, pass: u32) -> Option<Action> {
    Some(Action::DropCaches { name: name(), to, pass })
}

fn silent(client: &mut LockClient<'_>, now: Instant) {
    assert_eq!(client.poll_message(now), None);
    assert_eq!(client.poll_action(), None);
    assert_eq!(client.poll_ready(), None);
}

#[test]
fn a_revoke_goes_through_its_phases() {
    let mut client = mounted();
    hold(&mut client, 0, name(), 5, Mode::Write);
    client.mark_dirty(&name(), Seq(3));
    client.mark_buffered(START, &name(), true);
    assert_eq!(revoke(&mut client, START, 5, Mode::Null), Reply::Nothing);
    // Grace: while an operation uses it, others join.
    assert!(matches!(acquire(&mut client, 1, name(), Mode::Write), Ok(Acquired::Held { .. })));
    silent(&mut client, START);
    // Its end: no more come in, and those inside leave.
    let end = at(10_000);
    assert_eq!(client.poll_timeout(), Some(end));
    client.handle_timeout(end);
    assert_eq!(acquire(&mut client, 2, name(), Mode::Read), Ok(Acquired::Waiting));
    client.release_all(end, OpId(0));
    silent(&mut client, end);
    client.release_all(end, OpId(1));
    // What is dirty is committed.
    assert_eq!(client.poll_action(), Some(Action::Commit { name: name() }));
    client.mark_buffered(end, &name(), false);
    client.committed(end, Seq(2));
    assert_eq!(client.poll_action(), Some(Action::Commit { name: name() }));
    silent(&mut client, end);
    client.committed(end, Seq(3));
    // What is cached is dropped; until then the lock is held.
    assert_eq!(client.poll_action(), drops(Mode::Null, 0));
    assert_eq!(client.mode(&name()), Mode::Write);
    silent(&mut client, end);
    client.caches_dropped(end, &name());
    // Then it is given back, and only then asked for again.
    assert_eq!(client.poll_message(end), Some(released(5, Mode::Null)));
    let request = ToServer::Request { name: name(), mode: Mode::Read };
    assert_eq!(client.poll_message(end), Some(request));
    silent(&mut client, end);
}

#[test]
fn nothing_dirty_nothing_used_nothing_to_wait_for() {
    let mut client = mounted();
    hold(&mut client, 0, name(), 5, Mode::Write);
    client.release_all(START, OpId(0));
    let later = at(500);
    assert_eq!(revoke(&mut client, later, 5, Mode::Null), Reply::Nothing);
    assert_eq!(client.poll_action(), drops(Mode::Null, 0));
    client.caches_dropped(later, &name());
    assert_eq!(client.poll_message(later), Some(released(5, Mode::Null)));
    silent(&mut client, later);
    assert_eq!(client.locks_used(), 0);
}

#[test]
fn a_writer_that_a_reader_waits_for_keeps_reading() {
    let mut client = mounted();
    hold(&mut client, 0, name(), 5, Mode::Write);
    let Ok(Acquired::Held { refresh }) = acquire(&mut client, 0, name(), Mode::Read) else {
        panic!("it is held");
    };
    client.release_all(START, OpId(0));
    assert!(matches!(acquire(&mut client, 1, name(), Mode::Read), Ok(Acquired::Held { .. })));
    client.mark_dirty(&name(), Seq(1));
    revoke(&mut client, START, 5, Mode::Read);
    client.handle_timeout(at(500));
    // Readers need not leave, and others come in.
    assert_eq!(client.poll_action(), Some(Action::Commit { name: name() }));
    assert!(matches!(acquire(&mut client, 2, name(), Mode::Read), Ok(Acquired::Held { .. })));
    assert_eq!(acquire(&mut client, 3, name(), Mode::Write), Ok(Acquired::Waiting));
    client.committed(at(500), Seq(1));
    assert_eq!(client.poll_action(), drops(Mode::Read, 0));
    client.caches_dropped(at(500), &name());
    assert_eq!(client.poll_message(START), Some(released(5, Mode::Read)));
    assert_eq!(client.mode(&name()), Mode::Read);
    // Back to write without a lapse: what was read is still good.
    grant(&mut client, name(), 6, Mode::Write);
    assert_eq!(client.poll_ready(), Some((OpId(3), Ok(()))));
    let write = acquire(&mut client, 3, name(), Mode::Write);
    assert_eq!(write, Ok(Acquired::Held { refresh }));
}

#[test]
fn reading_anew_needs_a_refresh() {
    let mut client = mounted();
    let mut seen = Vec::new();
    for generation in 1..4 {
        hold(&mut client, 0, name(), generation, Mode::Read);
        match acquire(&mut client, 0, name(), Mode::Read) {
            Ok(Acquired::Held { refresh }) => seen.push(refresh),
            other => panic!("{other:?}"),
        }
        client.release_all(START, OpId(0));
        revoke(&mut client, at(500), generation, Mode::Null);
        assert_eq!(client.poll_action(), drops(Mode::Null, 0));
        client.caches_dropped(at(500), &name());
        assert!(client.poll_message(START).is_some());
    }
    assert!(seen[0] > 0 && seen[0] < seen[1] && seen[1] < seen[2]);
}

#[test]
fn grace_can_not_be_extended() {
    let mut client = mounted();
    hold(&mut client, 0, name(), 5, Mode::Write);
    revoke(&mut client, START, 5, Mode::Null);
    // One operation follows the other without a gap, as long as it is let in.
    let mut served = 0;
    for step in 1..100 {
        let now = at(step * 400);
        let (old, new) = (OpId(served % 2), OpId((served + 1) % 2));
        client.handle_timeout(now);
        let next = client.acquire(now, new, name(), Mode::Write, Class::Ordinary);
        client.release_all(now, old);
        if next == Ok(Acquired::Waiting) {
            assert!(now >= at(10_000) && now < at(10_400));
            break;
        }
        served += 1;
    }
    assert_eq!(served, 24);
    assert_eq!(client.poll_action(), drops(Mode::Null, 0));
}

#[test]
fn a_lock_lingers_for_the_next_operation_of_one_writer() {
    let mut client = mounted();
    hold(&mut client, 0, name(), 5, Mode::Write);
    client.release_all(at(100), OpId(0));
    revoke(&mut client, at(200), 5, Mode::Null);
    assert_eq!(client.poll_timeout(), Some(at(600)));
    let next = client.acquire(at(550), OpId(0), name(), Mode::Write, Class::Ordinary);
    assert!(matches!(next, Ok(Acquired::Held { .. })));
    client.release_all(at(580), OpId(0));
    client.handle_timeout(at(600));
    silent(&mut client, at(600));
    client.handle_timeout(at(1080));
    assert_eq!(client.poll_action(), drops(Mode::Null, 0));
}

#[test]
fn what_a_notification_waits_for_is_served_under_the_old_grant() {
    let mut client = mounted();
    hold(&mut client, 0, name(), 5, Mode::Write);
    client.release_all(START, OpId(0));
    revoke(&mut client, at(500), 5, Mode::Null);
    assert_eq!(client.poll_action(), drops(Mode::Null, 0));
    let now = at(600);
    let ordinary = client.acquire(now, OpId(1), name(), Mode::Read, Class::Ordinary);
    assert_eq!(ordinary, Ok(Acquired::Waiting));
    let notified = client.acquire(now, OpId(2), name(), Mode::Write, Class::Notified);
    assert!(matches!(notified, Ok(Acquired::Held { .. })));
    client.mark_dirty(&name(), Seq(9));
    // The pass ends while it is still there, and what it wrote or let be cached must go too.
    client.caches_dropped(now, &name());
    silent(&mut client, now);
    client.release_all(now, OpId(2));
    assert_eq!(client.poll_action(), Some(Action::Commit { name: name() }));
    client.committed(now, Seq(9));
    assert_eq!(client.poll_action(), drops(Mode::Null, 1));
    client.caches_dropped(now, &name());
    assert_eq!(client.poll_message(now), Some(released(5, Mode::Null)));
}

/// The kernel is told to forget what it has under a lock, and asks for something that this waits
/// for: whether both come to an end.
fn a_question_from_the_kernel_during_a_revoke_ends() -> bool {
    let mut client = mounted();
    hold(&mut client, 0, name(), 5, Mode::Read);
    client.release_all(START, OpId(0));
    revoke(&mut client, at(500), 5, Mode::Null);
    assert_eq!(client.poll_action(), drops(Mode::Null, 0));
    let now = at(600);
    let asked = client.acquire(now, OpId(1), name(), Mode::Read, Class::Notified);
    // Parked, it is only served when the caches are dropped, which waits for its answer.
    if asked == Ok(Acquired::Waiting) {
        client.handle_timeout(at(10_000_000));
        return client.poll_ready().is_some();
    }
    client.release_all(now, OpId(1));
    for pass in 0.. {
        client.caches_dropped(now, &name());
        match client.poll_action() {
            None => return client.poll_message(now) == Some(released(5, Mode::Null)),
            dropped => assert_eq!((dropped, pass), (drops(Mode::Null, 1), 0)),
        }
    }
    false
}

#[test]
fn a_revoke_and_what_it_makes_the_kernel_ask_for_both_end() {
    assert!(a_question_from_the_kernel_during_a_revoke_ends());
}

#[test]
fn parking_what_a_notification_waits_for_would_never_end() {
    activate(Some(Mutant::ParkedInRevoke));
    let ends = a_question_from_the_kernel_during_a_revoke_ends();
    activate(None);
    assert!(!ends);
}

/// A lock was asked for in one term, and again in the next, whose server has granted it to another
/// mount. Then the grant of the older term arrives, which a leader that was stopped has made.
fn holds_by_a_grant_of_an_older_term() -> bool {
    let mut client = mounted();
    assert_eq!(acquire(&mut client, 0, name(), Mode::Write), Ok(Acquired::Waiting));
    assert!(client.poll_message(START).is_some());
    let newer = Term::new(2, 1);
    client.handle_greeting(newer, false).unwrap();
    let asked = ToServer::Request { name: name(), mode: Mode::Write };
    assert_eq!(client.poll_message(START), Some(asked));
    let late = ToClient::Grant { name: name(), generation: 5, mode: Mode::Write };
    let taken = client.handle_message(START, TERM, &late);
    assert_eq!(taken.is_ok(), client.mode(&name()) == Mode::Write);
    taken.is_ok()
}

#[test]
fn a_grant_of_an_older_term_is_not_taken() {
    assert!(!holds_by_a_grant_of_an_older_term());
}

#[test]
fn a_grant_of_an_older_term_would_give_a_lock_to_two() {
    activate(Some(Mutant::GrantOfOldTerm));
    let holds = holds_by_a_grant_of_an_older_term();
    activate(None);
    assert!(holds);
}

#[test]
fn who_holds_a_lock_never_waits_for_it() {
    let mut client = mounted();
    hold(&mut client, 0, name(), 5, Mode::Read);
    revoke(&mut client, START, 5, Mode::Null);
    client.handle_timeout(at(10_000));
    assert!(matches!(acquire(&mut client, 0, name(), Mode::Read), Ok(Acquired::Held { .. })));
    assert_eq!(acquire(&mut client, 0, name(), Mode::Write), Err(Refused::Upgrade));
    assert_eq!(acquire(&mut client, 0, name(), Mode::WriteOnly), Err(Refused::Upgrade));
    assert_eq!(acquire(&mut client, 1, name(), Mode::Read), Ok(Acquired::Waiting));
    client.release_all(at(10_000), OpId(0));
    assert_eq!(client.poll_action(), drops(Mode::Null, 0));
}

#[test]
fn one_operation_holds_a_bounded_number() {
    let mut client = mounted();
    for number in 0..3 {
        hold(&mut client, 0, group(number), number + 1, Mode::Read);
    }
    assert_eq!(acquire(&mut client, 0, group(3), Mode::Read), Err(Refused::Holds));
}

#[test]
fn revokes_of_what_is_gone_are_answered() {
    let mut client = mounted();
    let gone = Reply::Message(released(5, Mode::Null));
    assert_eq!(revoke(&mut client, START, 5, Mode::Null), gone);
    hold(&mut client, 0, name(), 6, Mode::Write);
    client.release_all(START, OpId(0));
    assert_eq!(revoke(&mut client, START, 5, Mode::Null), gone);
    // A repetition is one revoke, and lowers what is left if it asks for more.
    revoke(&mut client, at(500), 6, Mode::Read);
    assert_eq!(client.poll_action(), drops(Mode::Read, 0));
    assert_eq!(revoke(&mut client, at(500), 6, Mode::Read), Reply::Nothing);
    assert_eq!(revoke(&mut client, at(500), 6, Mode::Null), Reply::Nothing);
    client.caches_dropped(at(500), &name());
    assert_eq!(client.poll_action(), drops(Mode::Null, 1));
    client.caches_dropped(at(500), &name());
    // A late confirmation is of nothing.
    client.caches_dropped(at(500), &name());
    assert_eq!(client.poll_message(START), Some(released(6, Mode::Null)));
    silent(&mut client, START);
}

#[test]
fn a_revoke_of_what_is_not_held_any_more_says_what_is() {
    let mut client = mounted();
    hold(&mut client, 0, name(), 6, Mode::Read);
    let reply = revoke(&mut client, START, 6, Mode::Read);
    assert_eq!(reply, Reply::Message(released(6, Mode::Read)));
}

#[test]
fn what_no_server_says_is_a_violation() {
    let mut client = mounted();
    let mut say = |message| client.handle_message(START, TERM, &message).unwrap_err();
    let grant_of = |mode| ToClient::Grant { name: name(), generation: 5, mode };
    let refusal = Refusal::Full;
    let refuse = ToClient::Refuse { name: name(), mode: Mode::Read, refusal };
    assert_eq!(say(grant_of(Mode::Read)), Violation::NotAsked);
    assert_eq!(say(refuse), Violation::NotAsked);
    let recover = ToClient::Recover { from: Key::MIN };
    let asked_first = client.handle_message(START, TERM, &recover);
    assert_eq!(asked_first, Ok(Reply::Batch(Key::MIN)));
    hold(&mut client, 0, name(), 5, Mode::Read);
    let mut say = |message| client.handle_message(START, TERM, &message).unwrap_err();
    assert_eq!(say(recover), Violation::NotAsked);
    assert_eq!(say(grant_of(Mode::Read)), Violation::NotAsked);
    let early = ToClient::Revoke { name: name(), generation: 6, to: Mode::Null };
    assert_eq!(say(early), Violation::Generation);
    assert_eq!(acquire(&mut client, 1, name(), Mode::Write), Ok(Acquired::Waiting));
    assert!(client.poll_message(START).is_some());
    let mut say = |message| client.handle_message(START, TERM, &message).unwrap_err();
    assert_eq!(say(grant_of(Mode::WriteOnly)), Violation::NotAsked);
    assert_eq!(say(grant_of(Mode::Write)), Violation::Generation);
    revoke(&mut client, START, 5, Mode::Null);
    let during = ToClient::Grant { name: name(), generation: 7, mode: Mode::Write };
    assert_eq!(client.handle_message(START, TERM, &during), Err(Violation::Revoking));
}

#[test]
fn the_final_mode_is_asked_for_directly() {
    let mut client = mounted();
    assert_eq!(acquire(&mut client, 0, name(), Mode::Read), Ok(Acquired::Waiting));
    assert_eq!(acquire(&mut client, 1, name(), Mode::Write), Ok(Acquired::Waiting));
    grant(&mut client, name(), 1, Mode::Write);
    assert_eq!(client.poll_ready(), Some((OpId(0), Ok(()))));
    assert_eq!(client.poll_ready(), Some((OpId(1), Ok(()))));
}

#[test]
fn a_refused_request_is_made_again_a_few_times() {
    let mut client = mounted();
    assert_eq!(acquire(&mut client, 0, name(), Mode::Read), Ok(Acquired::Waiting));
    let request = ToServer::Request { name: name(), mode: Mode::Read };
    let mut now = START;
    let mut refuse = |client: &mut LockClient<'_>, refusal| {
        assert_eq!(client.poll_message(now), Some(request));
        let message = ToClient::Refuse { name: name(), mode: Mode::Read, refusal };
        client.handle_message(now, TERM, &message).unwrap();
        if let Some(due) = client.poll_timeout() {
            assert_eq!(due, now.plus(LIMITS.retry));
            assert_eq!(client.poll_message(now), None);
            now = due;
            client.handle_timeout(now);
        }
    };
    for _ in 0..5 {
        refuse(&mut client, Refusal::Recovering);
    }
    for _ in 0..3 {
        refuse(&mut client, Refusal::Full);
    }
    let refused = Err(Refused::Server(Refusal::Full));
    assert_eq!(client.poll_ready(), Some((OpId(0), refused)));
    assert_eq!(client.locks_used(), 0);
    assert_eq!(client.poll_timeout(), None);
}

#[test]
fn past_the_lease_nothing_is_admitted_and_nothing_is_lost() {
    let mut client = new_client(&LIMITS);
    client.handle_greeting(TERM, false).unwrap();
    client.handle_lease(START, at(100));
    hold(&mut client, 0, name(), 5, Mode::Write);
    client.release_all(START, OpId(0));
    let late = at(100);
    assert!(client.is_suspended(late));
    let waits = client.acquire(late, OpId(1), name(), Mode::Read, Class::Ordinary);
    assert_eq!(waits, Ok(Acquired::Waiting));
    silent(&mut client, late);
    assert_eq!(client.mode(&name()), Mode::Write);
    client.handle_lease(late, at(200));
    assert_eq!(client.poll_ready(), Some((OpId(1), Ok(()))));
}

#[test]
fn a_new_server_is_told_what_is_still_held() {
    let mut client = mounted();
    for number in [7, 2, 9, 4] {
        hold(&mut client, 0, group(number), number, Mode::Write);
        client.release_all(START, OpId(0));
    }
    // One is waited for; one is being given back because it is one too many, and one because the
    // server wants it: those are still held.
    assert_eq!(acquire(&mut client, 1, group(5), Mode::Read), Ok(Acquired::Waiting));
    assert!(client.poll_message(START).is_some());
    let name = group(2);
    let message = ToClient::Revoke { name, generation: 2, to: Mode::Read };
    client.handle_message(at(500), TERM, &message).unwrap();
    let dropped = [client.poll_action(), client.poll_action()];
    let drops = |name, to| Some(Action::DropCaches { name, to, pass: 0 });
    assert_eq!(dropped, [drops(group(7), Mode::Null), drops(name, Mode::Read)]);

    let next = Term::new(2, 1);
    client.handle_greeting(next, true).unwrap();
    let stale = ToClient::Grant { name: group(5), generation: 10, mode: Mode::Read };
    assert_eq!(client.handle_message(START, TERM, &stale), Err(Violation::Term));
    assert_eq!(client.handle_message(START, Term::new(3, 0), &stale), Err(Violation::Term));
    assert_eq!(client.handle_greeting(TERM, true), Err(Violation::Term));
    assert_eq!(client.poll_message(START), None);
    // What is held can be used meanwhile.
    assert!(matches!(acquire(&mut client, 0, group(4), Mode::Write), Ok(Acquired::Held { .. })));

    let mut batch = [Held { name: LockName::RENAME, mode: Mode::Null }; 2];
    let held = |number| Held { name: group(number), mode: Mode::Write };
    assert_eq!(client.recover(Key::MIN, &mut batch), 2);
    assert_eq!(batch, [held(2), held(4)]);
    client.caches_dropped(at(500), &name);
    assert_eq!(client.poll_message(START), None);
    assert_eq!(client.recover(group(4).start().next().unwrap(), &mut batch), 2);
    assert_eq!(batch, [held(7), held(9)]);
    assert_eq!(client.recover(Key::MAX, &mut batch), 0);
    let mut sent = Vec::new();
    while let Some(message) = client.poll_message(START) {
        sent.push(message);
    }
    let answer = ToServer::Release { name, generation: 0, kept: Mode::Read };
    assert!(sent.contains(&answer));
    assert!(sent.contains(&ToServer::Request { name: group(5), mode: Mode::Read }));
    assert_eq!(client.handle_greeting(Term::new(3, 0), false), Err(Violation::Forgotten));
}

#[test]
fn idle_locks_beyond_the_limit_are_given_back() {
    let mut client = mounted();
    for number in 0..4 {
        hold(&mut client, 0, group(number), number + 1, Mode::Read);
        client.release_all(START, OpId(0));
    }
    let oldest = group(0);
    let expected = Action::DropCaches { name: oldest, to: Mode::Null, pass: 0 };
    assert_eq!(client.poll_action(), Some(expected));
    assert_eq!(client.poll_action(), None);
    client.caches_dropped(START, &oldest);
    let message = ToServer::Release { name: oldest, generation: 1, kept: Mode::Null };
    assert_eq!(client.poll_message(START), Some(message));
    assert_eq!(client.locks_used(), 3);
}

#[test]
fn an_operation_waits_for_a_slot() {
    let limits = Limits { ops: 2, holds_per_op: 1, locks: 4, idle: 1, ..LIMITS };
    let mut client = new_client(&limits);
    client.handle_greeting(TERM, false).unwrap();
    client.handle_lease(START, FOREVER);
    for number in 0..4 {
        hold(&mut client, 0, group(number), number + 1, Mode::Read);
        client.release_all(START, OpId(0));
    }
    assert_eq!(client.locks_used(), 4);
    assert_eq!(acquire(&mut client, 0, group(4), Mode::Read), Ok(Acquired::Waiting));
    assert_eq!(acquire(&mut client, 1, group(5), Mode::Read), Ok(Acquired::Waiting));
    let mut asked = Vec::new();
    while asked.len() < 2 {
        if let Some(Action::DropCaches { name, .. }) = client.poll_action() {
            client.caches_dropped(START, &name);
        }
        match client.poll_message(START) {
            Some(ToServer::Request { name, .. }) => asked.push(name),
            Some(ToServer::Release { .. }) => {}
            None => panic!("stuck"),
        }
    }
    assert_eq!(asked, [group(4), group(5)]);
}

#[test]
fn an_interrupted_wait_leaves_nothing_behind() {
    let mut client = mounted();
    assert_eq!(acquire(&mut client, 0, name(), Mode::Read), Ok(Acquired::Waiting));
    client.release_all(START, OpId(0));
    silent(&mut client, START);
    assert_eq!(client.locks_used(), 0);
    // Asked for already, the grant comes for nobody, and is kept for whoever comes next.
    assert_eq!(acquire(&mut client, 0, name(), Mode::Read), Ok(Acquired::Waiting));
    assert!(client.poll_message(START).is_some());
    client.release_all(START, OpId(0));
    let message = ToClient::Grant { name: name(), generation: 1, mode: Mode::Read };
    client.handle_message(START, TERM, &message).unwrap();
    assert!(matches!(acquire(&mut client, 1, name(), Mode::Read), Ok(Acquired::Held { .. })));
}

/// Two mounts, each with some operations that write to the same file all the time.
struct Duel {
    now: Instant,
    server: LockServer<'static>,
    clients: [LockClient<'static>; 2],
    /// Operations done in each ownership.
    batches: Vec<u32>,
    owner: usize,
}

impl Duel {
    fn new() -> Duel {
        let mut server = new_server(&server::Limits {
            clients: 2,
            entries: 8,
            entries_per_client: 4,
            entries_high: 6,
            reclaims: 1,
        });
        server.start();
        let clients = [mounted(), mounted()];
        (0..2).for_each(|at| server.handle_greeting(ClientId(at)).unwrap());
        Duel { now: START, server, clients, batches: Vec::new(), owner: 2 }
    }

    /// Delivers all messages, and carries out all actions.
    fn settle(&mut self) {
        for at in [0, 1, 0, 1] {
            let client = &mut self.clients[at];
            client.handle_timeout(self.now);
            while let Some(Action::DropCaches { name, .. }) = client.poll_action() {
                client.caches_dropped(self.now, &name);
            }
            let id = ClientId(at as u64);
            while let Some(message) = client.poll_message(self.now) {
                assert_eq!(self.server.handle_message(self.now, id, &message), Ok(None));
            }
            while let Some(message) = self.server.poll_message(id) {
                client.handle_message(self.now, TERM, &message).unwrap();
            }
            while client.poll_ready().is_some() {}
        }
        assert_eq!(self.server.step(self.now, 9), More::No);
    }

    /// Each operation takes 100 microseconds, and the next of its thread follows after a pause.
    fn run(&mut self, threads: usize, pause: u64) {
        // When each thread's operation ends, or its next begins.
        let mut times = [[(false, 0u64); 3]; 2];
        for micros in (0..150_000).step_by(50) {
            self.now = at(micros);
            for (index, client) in self.clients.iter_mut().enumerate() {
                for (thread, (works, due)) in times[index][..threads].iter_mut().enumerate() {
                    let op = OpId(thread as u32);
                    if *due > micros {
                        continue;
                    }
                    if *works {
                        client.release_all(self.now, op);
                        (*works, *due) = (false, micros + pause);
                        if pause > 0 {
                            continue;
                        }
                    }
                    let held = client.acquire(self.now, op, name(), Mode::Write, Class::Ordinary);
                    if !matches!(held, Ok(Acquired::Held { .. })) {
                        continue;
                    }
                    (*works, *due) = (true, micros + 100);
                    if self.owner != index {
                        self.owner = index;
                        self.batches.push(0);
                    }
                    *self.batches.last_mut().unwrap() += 1;
                }
            }
            self.settle();
        }
    }
}

/// Two mounts that write in turn get many operations done for each time the lock travels, be it by
/// several threads without a gap or by one with a short one; and neither starves.
#[test]
fn ownership_comes_in_batches() {
    for (threads, pause) in [(3, 0), (1, 200)] {
        let mut duel = Duel::new();
        duel.run(threads, pause);
        let (ownerships, operations) =
            (duel.batches.len() as u32, duel.batches.iter().sum::<u32>());
        std::println!("{threads} threads: {operations} operations in {ownerships} ownerships");
        assert!(ownerships > 8, "one of them starves: {:?}", duel.batches);
        assert!(operations / ownerships >= 5, "the lock only travels: {:?}", duel.batches);
    }
}

#[test]
fn limits_must_go_together() {
    assert_eq!(LIMITS.validate(), Ok(()));
    assert_eq!(Limits { ops: 0, ..LIMITS }.validate(), Err(LimitsError::Range));
    assert_eq!(Limits { retries: 255, ..LIMITS }.validate(), Err(LimitsError::Range));
    assert_eq!(Limits { locks: 15, ..LIMITS }.validate(), Err(LimitsError::Locks));
    let linger = Duration::from_secs(1);
    assert_eq!(Limits { linger, ..LIMITS }.validate(), Err(LimitsError::Linger));
}

fn any_mode() -> impl Strategy<Value = Mode> {
    (0u8..4).prop_map(|number| Mode::parse(number).unwrap())
}

proptest! {
    /// Whatever a server says, in whatever order: a violation or taken, and never the end of the
    /// mount; nothing is used in a mode that isn't held.
    #[test]
    fn no_server_upsets_the_client(
        events in proptest::collection::vec(
            (0u8..16, 0u64..4, any_mode(), 0u64..6, 0u32..3), 0..200
        ),
    ) {
        let mut client = mounted();
        let mut now = START;
        let mut round = 1;
        for (kind, number, mode, generation, op) in events {
            let name = group(number);
            let to = if mode == Mode::Read { Mode::Read } else { Mode::Null };
            let message = match kind {
                0..3 => Some(ToClient::Grant { name, generation, mode }),
                3 => Some(ToClient::Revoke { name, generation, to }),
                4 => Some(ToClient::Refuse { name, mode, refusal: Refusal::Full }),
                5 => Some(ToClient::Recover { from: name.start() }),
                _ => None,
            };
            if let Some(message) = message {
                let _ = client.handle_message(now, Term::new(round, 0), &message);
            }
            match kind {
                6..9 if mode != Mode::Null => {
                    let class = if op == 0 { Class::Notified } else { Class::Ordinary };
                    let _ = client.acquire(now, OpId(op), name, mode, class);
                }
                9 => client.release_all(now, OpId(op)),
                10 | 11 => {
 let _ = client.poll_message(now); }
                12 => {
 let _ = client.poll_action(); }
                13 => client.caches_dropped(now, &name),
                14 => {
                    now = now.plus(Duration::from_millis(generation * 3));
                    client.handle_timeout(now);
                }
                15 if generation == 0 => {
                    round += 1;
                    let _ = client.handle_greeting(Term::new(round, 0), op > 0);
                }
                _ => {
                    let mut batch = [Held { name: LockName::RENAME, mode: Mode::Null }; 2];
                    client.recover(Key::MIN, &mut batch);
                }
            }
            for view in client.views() {
                for used in Mode::USED {
                    prop_assert!(view.users[used.index()] == 0 || view.mode.covers(used));
                }
            }
            prop_assert!(client.poll_timeout().is_none_or(|due| due > START));
        }
    }
}

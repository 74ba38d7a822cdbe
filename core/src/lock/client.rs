//! The lock client: what this mount has been granted, which operations use it, and how it gives
//! back what the server revokes.
//!
//! A lock, once granted, stays until the server revokes it, or until it has been idle for longest
//! among too many. Revoking it goes through phases; what is in *italics* is the owner's part:
//!
//! ```text
//!           acquire           Grant                      Revoke
//!   (none) ---------> asked ----------> held, mode M -----------------> grace: as if held, while
//!     ^               |   ^               ^   |                           |    operations use it,
//!     |       Refuse  v   | retry         |   | idle, too many            |    for a bounded time
//!     +<---------- refused                |   v                           |
//!     |  too often                        | draining <--------------------+
//!     |                                   |   |  ^   operations beyond `to` wait, those
//!     |                                   |   |  |   inside leave; *what is dirty is made durable*
//!     |                    `to` is read   |   v  |   something was let in meanwhile: once more
//!     |                    +--------------+ dropping  *what is cached beyond `to` is dropped*
//!     |     `to` is null   |                  |
//!     +--------------------+------------------+
//!           Release(kept = `to`)
//! ```
//!
//! The mode changes at the very end: until then the mount *holds* the lock, reports it as held to a
//! new server, and operations that must not wait because the dropping waits for them
//! ([`Class::Notified`]) are served.
//!
//! # Invariants
//!
//! * An operation is admitted only while a mode is held that covers what it wants, and not past the
//!   lease. Only messages of the term greeted last change what is held.
//! * A grant admits all operations that wait for it before a revoke that follows is looked at.
//! * From the end of grace, which nothing extends, until the release, no operation is admitted that
//!   `to` doesn't cover, but those the owner's own work waits for.
//! * A release follows the commit of everything written, and a dropping during which nothing was
//!   let in.
//! * An operation that holds a lock is never made to wait for it, nor to upgrade it, which two
//!   mounts would do for ever.
//! * Each lock owes the server at most one message at a time, made from its state when it is sent:
//!   first what has been given back, then what is asked for.
//!
//! What this module deliberately doesn't know: items, inodes, pages, the kernel, the session.

use super::list::{Link, List, NONE};
use super::table::Table;
use super::{Held, LockName, Mode, Refusal, ToClient, ToServer};
use crate::arena::{Arena, ArenaFull};
use crate::format::key::Key;
use crate::format::{Seq, Term};
use crate::mutant::{Mutant, is_active};
use core::time::Duration;
use outrider_hal::Instant;

/// What a lock client may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Operations at a time.
    pub ops: u32,
    /// Locks that one operation holds, and one it waits for.
    pub holds_per_op: u32,
    /// Locks: in use, waited for, idle, or being given back.
    pub locks: u32,
    /// Idle locks that are kept. Above, the longest idle is given back.
    pub idle: u32,
    /// How long local operations may go on using a lock from when its revoke has arrived.
    pub grace: Duration,
    /// How long, within the grace, an unused lock is kept for a local operation that follows. One
    /// writer's next write comes sooner than a lock can travel.
    pub linger: Duration,
    /// How long to wait after a refusal before asking again.
    pub retry: Duration,
    /// How often to ask again, when the server has no room, before the waiting operations are
    /// refused. Below 255.
    pub retries: u8,
}

/// Limits under which the client could not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitsError {
    /// Every number must be at least 1, and a number of slots fits in 31 bits.
    Range,
    /// Locks must be more than all operations can hold together and the idle ones: else none could
    /// be given back although an operation waits for a slot.
    Locks,
    /// Lingering is a part of the grace.
    Linger,
}

impl Limits {
    /// Checks that they go together.
    pub fn validate(&self) -> Result<(), LimitsError> {
        let holds = u64::from(self.ops) * u64::from(self.holds_per_op);
        if self.retries == u8::MAX {
            return Err(LimitsError::Range);
        }
        let numbers = [u64::from(self.ops), u64::from(self.locks), holds, u64::from(self.idle)];
        if !numbers.iter().all(|number| (1..1 << 31).contains(number)) {
            return Err(LimitsError::Range);
        }
        if u64::from(self.locks) <= holds + u64::from(self.idle) {
            return Err(LimitsError::Locks);
        }
        if self.linger > self.grace {
            return Err(LimitsError::Linger);
        }
        Ok(())
    }
}

/// An operation of the mount: its slot among those at work, below [`Limits::ops`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u32);

/// Whether an operation may be made to wait for a lock that is being revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// It may.
    Ordinary,
    /// The owner's dropping of caches may wait for it: a kernel that is told to forget a page or a
    /// name waits for the requests that hold it. Served under the old grant.
    Notified,
}

/// What came of acquiring a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acquired {
    /// The operation holds it until it releases it.
    Held {
        /// Changes when the right to read has lapsed meanwhile: what was read under another
        /// number must be read again. Never 0.
        refresh: u64,
    },
    /// The operation is in line; [`LockClient::poll_ready`] will name it.
    Waiting,
}

/// Why an operation can't have a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It holds it in a mode that doesn't cover what it wants now. Two mounts that waited for each
    /// other's read to end, to write, would do so for ever: it must release the lock first.
    Upgrade,
    /// It holds as many locks as one operation may.
    Holds,
    /// The server has had no room, each time it was asked.
    Server(Refusal),
}

/// Something the owner is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Write back what is buffered under the lock and commit what is dirty under it. Tell by
    /// [`LockClient::mark_buffered`] and [`LockClient::committed`].
    Commit {
        /// The lock.
        name: LockName,
    },
    /// Drop everything cached under the lock that `to` doesn't allow, here and in the kernel, and
    /// tell by [`LockClient::caches_dropped`]. Requests of [`Class::Notified`] go on meanwhile.
    DropCaches {
        /// The lock.
        name: LockName,
        /// What will be held afterwards.
        to: Mode,
        /// How often this was done already for this revoke, because something had been let in.
        pass: u32,
    },
}

/// What to send in answer to a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// Nothing now.
    Nothing,
    /// This.
    Message(ToServer),
    /// A batch of [`LockClient::recover`] from this key on.
    Batch(Key),
}

/// A message that no server sends which keeps to the protocol. The session must end; greeting the
/// next term sorts things out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation {
    /// It comes from a term that is not the one greeted last.
    Term,
    /// A grant or a refusal of something that wasn't asked for, or the question what is held after
    /// that was answered.
    NotAsked,
    /// A grant that is not newer than the last, or the revoke of a grant that has not come.
    Generation,
    /// A grant of a lock that is being given back, a grant that takes away what is held, or a
    /// revoke that leaves more than was held.
    Revoking,
    /// The server says that this client has no locks to report, though it holds some.
    Forgotten,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// As if nothing had come, at most until then.
    Grace { until: Instant },
    /// Users leave, then what is dirty is committed: once they have left, the owner is told.
    Draining { told: bool },
    /// The owner drops what is cached.
    Dropping,
}

#[derive(Debug, Clone, Copy)]
struct Revoke {
    to: Mode,
    phase: Phase,
    pass: u32,
    /// Since the dropping began an operation was let in that `to` doesn't cover, or `to` was
    /// lowered.
    disturbed: bool,
}

#[derive(Debug, Clone, Copy)]
struct Lock {
    /// What is held.
    mode: Mode,
    /// What the server of this term takes to be held. More than `mode` when a release is due.
    told: Mode,
    /// Which grant; 0 when it was reported to this term's server.
    generation: u64,
    /// The outstanding request; null when there is none.
    asked: Mode,
    revoke: Option<Revoke>,
    /// Operations that use it, by mode.
    users: [u32; 3],
    /// Holds that wait.
    waiters: List,
    /// How many of them want to write.
    writers_waiting: u32,
    refresh: u64,
    /// The newest transaction in which an item under it was dirtied.
    dirty: Seq,
    /// There are data under it that are in no transaction yet.
    buffered: bool,
    used_at: Instant,
    retry_at: Option<Instant>,
    retries: u8,
}

impl Lock {
    const FREE: Lock = Lock {
        mode: Mode::Null,
        told: Mode::Null,
        generation: 0,
        asked: Mode::Null,
        revoke: None,
        users: [0; 3],
        waiters: List::EMPTY,
        writers_waiting: 0,
        refresh: 0,
        dirty: Seq(0),
        buffered: false,
        used_at: Instant(0),
        retry_at: None,
        retries: 0,
    };

    /// Whether an operation may use it now, the lease aside.
    fn admits(&self, wanted: Mode, class: Class) -> bool {
        let drained = match (self.revoke, class) {
            (None, _) => self.mode,
            (_, Class::Notified) if !is_active(Mutant::ParkedInRevoke) => self.mode,
            (Some(Revoke { to, phase, .. }), Class::Ordinary | Class::Notified) => match phase {
                Phase::Grace { .. } => self.mode,
                Phase::Draining { .. } | Phase::Dropping => to,
            },
        };
        drained.covers(wanted)
    }

    /// Users that hold more than `to`.
    fn users_beyond(&self, to: Mode) -> bool {
        Mode::USED.iter().any(|mode| self.users[mode.index()] > 0 && !to.covers(*mode))
    }

    fn is_dirty(&self, committed: Seq) -> bool {
        self.buffered || self.dirty > committed
    }

    fn is_used(&self) -> bool {
        self.users != [0; 3]
    }

    /// When grace is over although nothing else happens.
    fn grace_end(&self, until: Instant, to: Mode, linger: Duration) -> Instant {
        if self.users_beyond(to) { until } else { until.min(self.used_at.plus(linger)) }
    }

    /// What the operations that wait need to be granted, the first of them at least.
    fn needs(&self, first: Mode) -> Mode {
        let combined =
            if first == Mode::Read && self.writers_waiting > 0 { Mode::Write } else { first };
        // Covered, it waits for the lease, or for a revoke to end.
        if self.mode.covers(first) { Mode::Null } else { combined }
    }

    fn is_idle(&self) -> bool {
        let quiet = self.revoke.is_none() && self.asked == Mode::Null && self.told == self.mode;
        quiet && self.mode != Mode::Null && !self.is_used() && self.waiters.is_empty()
    }

    fn is_gone(&self) -> bool {
        let null = [self.mode, self.told, self.asked] == [Mode::Null; 3];
        null && self.revoke.is_none() && !self.is_used() && self.waiters.is_empty()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HoldState {
    /// The slot is free.
    Free,
    /// In line for the lock.
    Waiting,
    /// In line for a slot for the lock.
    Starved,
    /// The operation uses the lock.
    Using,
}

/// A lock that an operation holds or waits for.
#[derive(Debug, Clone, Copy)]
struct Hold {
    state: HoldState,
    name: LockName,
    /// Slot of the lock, unless starved.
    lock: u32,
    mode: Mode,
    class: Class,
}

impl Hold {
    const FREE: Hold = Hold {
        state: HoldState::Free,
        name: LockName::RENAME,
        lock: NONE,
        mode: Mode::Null,
        class: Class::Ordinary,
    };
}

#[derive(Debug, Clone, Copy)]
struct Op {
    /// The hold it waits for.
    waits: u32,
    /// What came of its waiting.
    result: Result<(), Refused>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// The server is being told what is held, or has not been met yet.
    Recovering,
    Live,
}

/// A lock, for status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// The lock.
    pub name: LockName,
    /// What is held.
    pub mode: Mode,
    /// What has been asked for.
    pub asked: Mode,
    /// What a revoke at work will leave.
    pub revoke: Option<Mode>,
    /// Operations that read, write and write only.
    pub users: [u32; 3],
    /// Operations that wait.
    pub waiters: u32,
}

/// The lock client of a mount.
pub struct LockClient<'m> {
    limits: Limits,
    term: Term,
    standing: Standing,
    /// Past this nothing is admitted.
    lease_until: Instant,
    /// The newest transaction that is durable.
    committed: Seq,
    /// The latest [`Lock::refresh`] given out.
    refresh: u64,
    table: Table<'m>,
    locks: &'m mut [Lock],
    /// [`Limits::holds_per_op`] for each operation.
    holds: &'m mut [Hold],
    ops: &'m mut [Op],
    /// In `Lock::waiters` or `starved`.
    in_waiters: &'m mut [Link],
    /// Holds in line for a slot.
    starved: List,
    /// In `ready`.
    in_ready: &'m mut [Link],
    /// Operations that need no longer wait.
    ready: List,
    in_idle: &'m mut [Link],
    /// Idle locks, the longest idle first.
    idle: List,
    in_outbox: &'m mut [Link],
    /// Locks with a message due.
    outbox: List,
    in_actions: &'m mut [Link],
    /// Locks with an action due: which follows from the phase.
    actions: List,
    in_revoking: &'m mut [Link],
    /// Locks with a revoke.
    revoking: List,
    in_timed: &'m mut [Link],
    /// Locks in grace, or to be asked for again.
    timed: List,
}

impl<'m> LockClient<'m> {
    /// A client of valid limits that holds nothing and knows no server.
    pub fn carve(arena: &mut Arena<'m>, limits: &Limits) -> Result<LockClient<'m>, ArenaFull> {
        let holds = limits.ops * limits.holds_per_op;
        let locks = limits.locks;
        Ok(LockClient {
            limits: *limits,
            term: Term::NONE,
            standing: Standing::Recovering,
            lease_until: Instant(0),
            committed: Seq(0),
            refresh: 0,
            table: Table::carve(arena, locks)?,
            locks: arena.slice(locks, |_| Lock::FREE)?,
            holds: arena.slice(holds, |_| Hold::FREE)?,
            ops: arena.slice(limits.ops, |_| Op { waits: NONE, result: Ok(()) })?,
            in_waiters: arena.slice(holds, |_| Link::FREE)?,
            starved: List::EMPTY,
            in_ready: arena.slice(limits.ops, |_| Link::FREE)?,
            ready: List::EMPTY,
            in_idle: arena.slice(locks, |_| Link::FREE)?,
            idle: List::EMPTY,
            in_outbox: arena.slice(locks, |_| Link::FREE)?,
            outbox: List::EMPTY,
            in_actions: arena.slice(locks, |_| Link::FREE)?,
            actions: List::EMPTY,
            in_revoking: arena.slice(locks, |_| Link::FREE)?,
            revoking: List::EMPTY,
            in_timed: arena.slice(locks, |_| Link::FREE)?,
            timed: List::EMPTY,
        })
    }

    /// A server has been greeted. Messages of other terms are refused from now on. `recorded` says
    /// that the server will ask what is held, as the metadata server does in every term; else it
    /// knows that nothing is. Until that is done
    /// nothing is sent, but what is held can be used. Greeting the same term again changes nothing.
    pub fn handle_greeting(&mut self, term: Term, recorded: bool) -> Result<(), Violation> {
        if term == self.term {
            return Ok(());
        }
        if term < self.term && !is_active(Mutant::GrantOfOldTerm) {
            return Err(Violation::Term);
        }
        if !recorded && !self.holds_nothing() {
            return Err(Violation::Forgotten);
        }
        self.term = term;
        self.standing = Standing::Recovering;
        for slot in 0..self.table.slots() {
            let lock = &mut self.locks[slot as usize];
            lock.told = Mode::Null;
            lock.generation = 0;
            lock.asked = Mode::Null;
            lock.retry_at = None;
            lock.retries = 0;
            if self.table.name(slot).is_some() {
                self.settle(slot);
            }
        }
        if !recorded {
            self.go_live();
        }
        Ok(())
    }

    /// A message from the server of this term.
    pub fn handle_message(
        &mut self,
        now: Instant,
        term: Term,
        message: &ToClient,
    ) -> Result<Reply, Violation> {
        let is_old = term < self.term && is_active(Mutant::GrantOfOldTerm);
        if term != self.term && !is_old {
            return Err(Violation::Term);
        }
        let reply = match *message {
            ToClient::Grant { name, generation, mode } => {
                self.on_grant(now, name, generation, mode)?;
                Reply::Nothing
            }
            ToClient::Revoke { name, generation, to } => {
                self.on_revoke(now, name, generation, to)?
            }
            ToClient::Refuse { name, mode, refusal } => {
                self.on_refuse(now, name, mode, refusal)?;
                Reply::Nothing
            }
            // A client that the server has just come to know is asked too, and has nothing yet.
            ToClient::Recover { from }
                if self.standing == Standing::Recovering || self.holds_nothing() =>
            {
                Reply::Batch(from)
            }
            ToClient::Recover { .. } => return Err(Violation::NotAsked),
        };
        self.trim(now);
        Ok(reply)
    }

    /// Fills the batch with what is held, in the order of the names, from this key on; returns how
    /// many that are. None, and recovery is over. A lock that is being given back is still held.
    pub fn recover(&mut self, from: Key, batch: &mut [Held]) -> usize {
        assert!(!batch.is_empty(), "a batch must be able to hold something");
        let mut len = 0;
        for slot in 0..self.table.slots() {
            let mode = self.locks[slot as usize].mode;
            let Some(name) = self.table.name(slot) else { continue };
            if mode == Mode::Null || name.start() < from {
                continue;
            }
            let at = batch[..len].partition_point(|held| held.name < name);
            if at < batch.len() {
                len = batch.len().min(len + 1);
                batch[at..len].rotate_right(1);
                batch[at] = Held { name, mode };
            }
        }
        for held in &batch[..len] {
            let slot = self.table.find(&held.name).expect("it has just been listed");
            self.locks[slot as usize].told = held.mode;
            self.settle(slot);
        }
        if len == 0 && self.standing == Standing::Recovering {
            self.go_live();
        }
        len
    }

    fn holds_nothing(&self) -> bool {
        self.views().all(|view| view.mode == Mode::Null)
    }

    /// The lease has been renewed: it ends at `until`. What waited for it goes on.
    pub fn handle_lease(&mut self, now: Instant, until: Instant) {
        let was_suspended = self.is_suspended(now);
        self.lease_until = self.lease_until.max(until);
        if was_suspended && !self.is_suspended(now) {
            for op in 0..self.ops.len() {
                let waits = self.ops[op].waits;
                if waits != NONE && self.holds[waits as usize].state == HoldState::Waiting {
                    self.advance(now, self.holds[waits as usize].lock);
                }
            }
        }
        self.trim(now);
    }

    /// Whether the lease is over: nothing that was read may be answered, nothing submitted. What is
    /// held is not lost by that.
    #[must_use]
    pub fn is_suspended(&self, now: Instant) -> bool {
        now >= self.lease_until && !is_active(Mutant::AnswerAfterLease)
    }

    /// Lets the operation use the lock, or puts it in line. To be called again with the same
    /// arguments after a wait; an operation that asks for another lock gives up its place. Holding
    /// a mode that covers what is wanted, it is always answered at once.
    pub fn acquire(
        &mut self,
        now: Instant,
        op: OpId,
        name: LockName,
        mode: Mode,
        class: Class,
    ) -> Result<Acquired, Refused> {
        assert!(mode != Mode::Null, "null can't be acquired");
        if let Some(index) = self.find_hold(op, &name) {
            let hold = self.holds[index as usize];
            match hold.state {
                HoldState::Using if hold.mode.covers(mode) => {
                    let refresh = self.locks[hold.lock as usize].refresh;
                    return Ok(Acquired::Held { refresh });
                }
                HoldState::Using => return Err(Refused::Upgrade),
                HoldState::Waiting | HoldState::Starved
                    if (hold.mode, hold.class) == (mode, class) =>
                {
                    return Ok(Acquired::Waiting);
                }
                HoldState::Free | HoldState::Waiting | HoldState::Starved => {}
            }
        }
        self.give_up_place(now, op);
        let index = self.free_hold(op).ok_or(Refused::Holds)?;
        let hold = Hold { state: HoldState::Starved, name, lock: NONE, mode, class };
        self.holds[index as usize] = hold;
        self.ops[op.0 as usize].waits = index;
        if !self.queue_hold(now, index) {
            self.starved.push_back(self.in_waiters, index);
            self.give_back_idle(now);
        }
        if self.ops[op.0 as usize].waits != NONE {
            return Ok(Acquired::Waiting);
        }
        self.ready.remove(self.in_ready, op.0);
        let lock = self.holds[index as usize].lock;
        Ok(Acquired::Held { refresh: self.locks[lock as usize].refresh })
    }

    /// The operation no longer uses the lock, nor waits for it.
    pub fn release(&mut self, now: Instant, op: OpId, name: &LockName) {
        if let Some(index) = self.find_hold(op, name) {
            self.drop_hold(now, index);
        }
        self.trim(now);
    }

    /// The operation is over: it uses nothing and waits for nothing.
    pub fn release_all(&mut self, now: Instant, op: OpId) {
        for index in self.op_holds(op) {
            self.drop_hold(now, index);
        }
        self.ready.remove(self.in_ready, op.0);
        self.trim(now);
    }

    /// The next operation that need not wait any longer: it holds the lock now, or can't have it.
    pub fn poll_ready(&mut self) -> Option<(OpId, Result<(), Refused>)> {
        let op = self.ready.pop_front(self.in_ready)?;
        Some((OpId(op), self.ops[op as usize].result))
    }

    /// An item under the lock was dirtied in this transaction, by an operation that may write.
    pub fn mark_dirty(&mut self, name: &LockName, seq: Seq) {
        let slot = self.table.find(name).expect("only what is locked is dirtied");
        let lock = &mut self.locks[slot as usize];
        assert!(lock.mode.writes(), "only what is locked to write is dirtied");
        lock.dirty = lock.dirty.max(seq);
    }

    /// There are, or there are no longer, data under the lock that are in no transaction yet.
    pub fn mark_buffered(&mut self, now: Instant, name: &LockName, buffered: bool) {
        let Some(slot) = self.table.find(name) else {
            assert!(!buffered, "only what is locked is dirtied");
            return;
        };
        self.locks[slot as usize].buffered = buffered;
        self.advance(now, slot);
        self.trim(now);
    }

    /// Transactions up to this one are durable.
    pub fn committed(&mut self, now: Instant, seq: Seq) {
        self.committed = self.committed.max(seq);
        let mut next = self.revoking.front();
        while let Some(slot) = next {
            next = List::next(self.in_revoking, slot);
            // What is still dirty was dirtied after the commit began: another one is needed.
            if let Some(Revoke { phase: Phase::Draining { told }, .. }) =
                &mut self.locks[slot as usize].revoke
            {
                *told = false;
            }
            self.advance(now, slot);
        }
        self.trim(now);
    }

    /// What [`Action::DropCaches`] asked for is done. If something was let in meanwhile, it will be
    /// asked for again.
    pub fn caches_dropped(&mut self, now: Instant, name: &LockName) {
        let Some(slot) = self.table.find(name) else { return };
        let told = !self.in_actions[slot as usize].is_linked();
        let lock = &mut self.locks[slot as usize];
        let dirty = lock.is_dirty(self.committed);
        let Some(revoke) = &mut lock.revoke else { return };
        if revoke.phase != Phase::Dropping || !told {
            return;
        }
        if revoke.disturbed || dirty {
            revoke.disturbed = false;
            revoke.pass += 1;
            revoke.phase = Phase::Draining { told: false };
        } else {
            lock.mode = revoke.to;
            lock.revoke = None;
            self.revoking.remove(self.in_revoking, slot);
        }
        self.advance(now, slot);
        self.trim(now);
    }

    /// Does what has become due by `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        let mut next = self.timed.front();
        while let Some(slot) = next {
            next = List::next(self.in_timed, slot);
            let lock = &mut self.locks[slot as usize];
            if lock.retry_at.is_some_and(|at| at <= now) {
                lock.retry_at = None;
            }
            self.advance(now, slot);
        }
        self.trim(now);
    }

    /// When [`handle_timeout`](Self::handle_timeout) must be called. Walks the locks in grace.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let times = self.timed.iter(self.in_timed).filter_map(|slot| {
            let lock = &self.locks[slot as usize];
            match lock.revoke {
                Some(Revoke { phase: Phase::Grace { until }, to, .. }) => {
                    Some(lock.grace_end(until, to, self.limits.linger))
                }
                Some(_) | None => lock.retry_at,
            }
        });
        times.min()
    }

    /// The next thing for the owner to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        let slot = self.actions.pop_front(self.in_actions)?;
        let name = self.table.name(slot).expect("a lock that is being given back");
        let revoke = self.locks[slot as usize].revoke.expect("a lock that is being given back");
        match revoke.phase {
            Phase::Draining { .. } => Some(Action::Commit { name }),
            Phase::Dropping => Some(Action::DropCaches { name, to: revoke.to, pass: revoke.pass }),
            Phase::Grace { .. } => unreachable!("has no action"),
        }
    }

    /// The next message for the server. None while it is being told what is held.
    pub fn poll_message(&mut self, now: Instant) -> Option<ToServer> {
        while let Some(slot) = self.outbox.pop_front(self.in_outbox) {
            let message = self.due(slot);
            let lock = &mut self.locks[slot as usize];
            match message {
                Some(ToServer::Release { kept, .. }) => lock.told = kept,
                Some(ToServer::Request { mode, .. }) => lock.asked = mode,
                None => continue,
            }
            self.settle(slot);
            self.trim(now);
            return message;
        }
        None
    }

    /// All locks, for status.
    pub fn views(&self) -> impl Iterator<Item = View> + '_ {
        (0..self.table.slots()).filter_map(|slot| {
            let lock = &self.locks[slot as usize];
            Some(View {
                name: self.table.name(slot)?,
                mode: lock.mode,
                asked: lock.asked,
                revoke: lock.revoke.map(|revoke| revoke.to),
                users: lock.users,
                waiters: lock.waiters.len(),
            })
        })
    }

    /// How a lock is held.
    #[must_use]
    pub fn mode(&self, name: &LockName) -> Mode {
        self.table.find(name).map_or(Mode::Null, |slot| self.locks[slot as usize].mode)
    }

    /// Locks in the table.
    #[must_use]
    pub fn locks_used(&self) -> u32 {
        self.table.used()
    }

    fn on_grant(
        &mut self,
        now: Instant,
        name: LockName,
        generation: u64,
        mode: Mode,
    ) -> Result<(), Violation> {
        let slot = self.table.find(&name).ok_or(Violation::NotAsked)?;
        let lock = &mut self.locks[slot as usize];
        if lock.asked != mode || mode == Mode::Null {
            return Err(Violation::NotAsked);
        }
        if generation <= lock.generation {
            return Err(Violation::Generation);
        }
        if lock.revoke.is_some() || !mode.covers(lock.mode) {
            return Err(Violation::Revoking);
        }
        if !lock.mode.reads() {
            self.refresh += 1;
            lock.refresh = self.refresh;
        }
        lock.asked = Mode::Null;
        lock.retries = 0;
        lock.generation = generation;
        lock.mode = mode;
        lock.told = mode;
        self.advance(now, slot);
        Ok(())
    }

    fn on_revoke(
        &mut self,
        now: Instant,
        name: LockName,
        generation: u64,
        to: Mode,
    ) -> Result<Reply, Violation> {
        let gone = Reply::Message(ToServer::Release { name, generation, kept: Mode::Null });
        let Some(slot) = self.table.find(&name) else { return Ok(gone) };
        let lock = &self.locks[slot as usize];
        if lock.told == Mode::Null {
            // What is held but has not been reported can't have been granted in this term.
            return if lock.mode == Mode::Null { Ok(gone) } else { Err(Violation::Generation) };
        }
        if generation < lock.generation {
            return Ok(gone);
        }
        if generation > lock.generation {
            return Err(Violation::Generation);
        }
        if !lock.told.covers(to) {
            return Err(Violation::Revoking);
        }
        if !to.covers(lock.mode) {
            self.start_revoke(now, slot, to, Phase::Grace { until: now.plus(self.limits.grace) });
            return Ok(Reply::Nothing);
        }
        let kept = lock.mode;
        let answer_due = lock.told != kept;
        let answer = Reply::Message(ToServer::Release { name, generation, kept });
        Ok(if answer_due { Reply::Nothing } else { answer })
    }

    fn on_refuse(
        &mut self,
        now: Instant,
        name: LockName,
        mode: Mode,
        refusal: Refusal,
    ) -> Result<(), Violation> {
        let slot = self.table.find(&name).ok_or(Violation::NotAsked)?;
        let lock = &mut self.locks[slot as usize];
        if lock.asked != mode || mode == Mode::Null {
            return Err(Violation::NotAsked);
        }
        lock.asked = Mode::Null;
        let final_refusal = match refusal {
            Refusal::Full | Refusal::ClientFull => {
                lock.retries += 1;
                lock.retries > self.limits.retries
            }
            Refusal::Recovering => false,
        };
        if !final_refusal {
            lock.retry_at = Some(now.plus(self.limits.retry));
        } else {
            lock.retries = 0;
            while let Some(index) = self.locks[slot as usize].waiters.front() {
                let op = index / self.limits.holds_per_op;
                self.unqueue_hold(index);
                self.ops[op as usize].result = Err(Refused::Server(refusal));
                self.ready.ensure(self.in_ready, op);
            }
        }
        self.settle(slot);
        if refusal != Refusal::Recovering {
            self.give_back_idle(now);
        }
        Ok(())
    }

    /// Starts to give a lock back, or lowers what a revoke at work will leave.
    fn start_revoke(&mut self, now: Instant, slot: u32, to: Mode, phase: Phase) {
        let lock = &mut self.locks[slot as usize];
        match &mut lock.revoke {
            Some(revoke) => {
                if !to.covers(revoke.to) {
                    revoke.to = to;
                    revoke.disturbed = true;
                }
            }
            None => {
                lock.revoke = Some(Revoke { to, phase, pass: 0, disturbed: false });
                self.revoking.push_back(self.in_revoking, slot);
            }
        }
        self.advance(now, slot);
    }

    /// Gives back the longest idle lock, if any is idle.
    fn give_back_idle(&mut self, now: Instant) {
        if let Some(slot) = self.idle.front() {
            self.start_revoke(now, slot, Mode::Null, Phase::Draining { told: false });
        }
    }

    /// Goes through as many phases as can be gone through, and admits who can be admitted.
    fn advance(&mut self, now: Instant, slot: u32) {
        while let Some(phase) = self.next_phase(now, slot) {
            let lock = &mut self.locks[slot as usize];
            let revoke = lock.revoke.as_mut().expect("it has a next phase");
            revoke.phase = phase;
            match phase {
                Phase::Grace { .. } | Phase::Draining { told: false } => {}
                Phase::Draining { told: true } => {
                    self.actions.ensure(self.in_actions, slot);
                }
                Phase::Dropping => {
                    revoke.disturbed = false;
                    self.actions.ensure(self.in_actions, slot);
                }
            }
        }
        self.admit_waiters(now, slot);
        self.settle(slot);
    }

    fn next_phase(&self, now: Instant, slot: u32) -> Option<Phase> {
        let lock = &self.locks[slot as usize];
        let Revoke { to, phase, .. } = lock.revoke?;
        let used = lock.users_beyond(to);
        match phase {
            Phase::Grace { until } => {
                let over = now >= lock.grace_end(until, to, self.limits.linger);
                over.then_some(Phase::Draining { told: false })
            }
            Phase::Draining { .. } if used => None,
            Phase::Draining { .. } if !lock.is_dirty(self.committed) => Some(Phase::Dropping),
            Phase::Draining { told } => (!told).then_some(Phase::Draining { told: true }),
            Phase::Dropping => None,
        }
    }

    /// Admits, of those in line for the lock, all that can be.
    fn admit_waiters(&mut self, now: Instant, slot: u32) {
        if self.is_suspended(now) {
            return;
        }
        let mut next = self.locks[slot as usize].waiters.front();
        while let Some(index) = next {
            next = List::next(self.in_waiters, index);
            let Hold { mode, class, .. } = self.holds[index as usize];
            let lock = &mut self.locks[slot as usize];
            if !lock.admits(mode, class) {
                continue;
            }
            lock.users[mode.index()] += 1;
            if let Some(revoke) = &mut lock.revoke
                && revoke.phase == Phase::Dropping
                && !revoke.to.covers(mode)
            {
                revoke.disturbed = true;
            }
            let hold = self.holds[index as usize];
            self.unqueue_hold(index);
            self.holds[index as usize] = Hold { state: HoldState::Using, ..hold };
            let op = index / self.limits.holds_per_op;
            self.ops[op as usize].result = Ok(());
            self.ready.ensure(self.in_ready, op);
        }
    }

    /// Puts the lock into the lists its state belongs in, or frees its slot.
    fn settle(&mut self, slot: u32) {
        let due = self.due(slot).is_some();
        let lock = &self.locks[slot as usize];
        let gone = lock.is_gone();
        let idle = lock.is_idle();
        let in_grace = matches!(lock.revoke, Some(Revoke { phase: Phase::Grace { .. }, .. }));
        let timed = !gone && (in_grace || lock.retry_at.is_some());
        let lists = [
            (&mut self.outbox, &mut *self.in_outbox, due),
            (&mut self.idle, &mut *self.in_idle, idle),
            (&mut self.timed, &mut *self.in_timed, timed),
        ];
        for (list, links, belongs) in lists {
            if belongs {
                list.ensure(links, slot);
            } else {
                list.remove(links, slot);
            }
        }
        if gone {
            self.table.remove(slot);
            self.locks[slot as usize] = Lock::FREE;
        }
    }

    /// The message that the lock's state calls for.
    fn due(&self, slot: u32) -> Option<ToServer> {
        if self.standing != Standing::Live {
            return None;
        }
        let lock = &self.locks[slot as usize];
        let name = self.table.name(slot)?;
        if lock.told != lock.mode {
            let (generation, kept) = (lock.generation, lock.mode);
            return Some(ToServer::Release { name, generation, kept });
        }
        let first = self.holds[lock.waiters.front()? as usize].mode;
        let mode = lock.needs(first);
        let free = lock.asked == Mode::Null && lock.revoke.is_none() && lock.retry_at.is_none();
        (free && mode != Mode::Null).then_some(ToServer::Request { name, mode })
    }

    fn go_live(&mut self) {
        self.standing = Standing::Live;
        for slot in 0..self.table.slots() {
            if self.table.name(slot).is_some() {
                self.settle(slot);
            }
        }
    }

    /// Gives back what is idle beyond the limit, or while an operation waits for a slot; and gives
    /// free slots to those that wait for one.
    fn trim(&mut self, now: Instant) {
        loop {
            let wanting = self.starved.len() > self.revoking.len();
            let room = self.table.used() < self.table.slots();
            if let Some(index) = self.starved.front().filter(|_| room) {
                self.starved.remove(self.in_waiters, index);
                assert!(self.queue_hold(now, index), "there is room");
            } else if (self.idle.len() > self.limits.idle || wanting) && !self.idle.is_empty() {
                self.give_back_idle(now);
            } else {
                return;
            }
        }
    }

    /// Puts a hold that is in no list in line for its lock, and admits it if it can be. Says
    /// whether there was a slot for the lock.
    fn queue_hold(&mut self, now: Instant, index: u32) -> bool {
        let Hold { name, mode, .. } = self.holds[index as usize];
        let Some(slot) = self.table.find(&name).or_else(|| self.table.insert(name)) else {
            return false;
        };
        let hold = &mut self.holds[index as usize];
        hold.state = HoldState::Waiting;
        hold.lock = slot;
        let lock = &mut self.locks[slot as usize];
        lock.waiters.push_back(self.in_waiters, index);
        lock.writers_waiting += u32::from(mode == Mode::Write);
        self.advance(now, slot);
        true
    }

    /// Takes a hold out of its line and frees it.
    fn unqueue_hold(&mut self, index: u32) {
        let Hold { state, lock, mode, .. } = self.holds[index as usize];
        match state {
            HoldState::Waiting => {
                let lock = &mut self.locks[lock as usize];
                lock.waiters.remove(self.in_waiters, index);
                lock.writers_waiting -= u32::from(mode == Mode::Write);
            }
            HoldState::Starved => self.starved.remove(self.in_waiters, index),
            HoldState::Free | HoldState::Using => unreachable!("is in no line"),
        }
        self.holds[index as usize] = Hold::FREE;
        self.ops[(index / self.limits.holds_per_op) as usize].waits = NONE;
    }

    fn drop_hold(&mut self, now: Instant, index: u32) {
        let Hold { state, lock: slot, mode, .. } = self.holds[index as usize];
        match state {
            HoldState::Free => {}
            HoldState::Starved => self.unqueue_hold(index),
            HoldState::Waiting => {
                self.unqueue_hold(index);
                self.settle(slot);
            }
            HoldState::Using => {
                let lock = &mut self.locks[slot as usize];
                lock.users[mode.index()] -= 1;
                lock.used_at = now;
                self.holds[index as usize] = Hold::FREE;
                self.advance(now, slot);
            }
        }
    }

    fn give_up_place(&mut self, now: Instant, op: OpId) {
        let waits = self.ops[op.0 as usize].waits;
        if waits != NONE {
            self.drop_hold(now, waits);
        }
    }

    fn op_holds(&self, op: OpId) -> core::ops::Range<u32> {
        let first = op.0 * self.limits.holds_per_op;
        first..first + self.limits.holds_per_op
    }

    fn find_hold(&self, op: OpId, name: &LockName) -> Option<u32> {
        self.op_holds(op).find(|index| {
            let hold = &self.holds[*index as usize];
            hold.state != HoldState::Free && hold.name == *name
        })
    }

    fn free_hold(&self, op: OpId) -> Option<u32> {
        self.op_holds(op).find(|index| self.holds[*index as usize].state == HoldState::Free)
    }
}

#[cfg(test)]
mod tests;

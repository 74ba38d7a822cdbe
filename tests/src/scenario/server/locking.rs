//! What a raw mount does with locks: a few operations that each take one, use it for a while and
//! give it back, under a lease that it renews by asking anything and being answered.
//!
//! # Invariants
//!
//! * Everything goes through the lock client of the core; this file only carries messages.
//! * The lease counts from when the question was made, so it is over well before a server that was
//!   not heard any more may evict.

use crate::check::server::Log;
use crate::rng::Rng;
use crate::time::{MILLI, SECOND};
use outrider_core::arena::{Arena, REGION_ALIGN};
use outrider_core::format::key::{IndexKind, Key};
use outrider_core::format::wire::Kind;
use outrider_core::format::wire::message::{
    ClientAnswer, ClientRequest, HeldLocks, HeldRecord, InoSet, Inos, LockTell, Outcome,
};
use outrider_core::format::{ClientId, Ino, Term};
use outrider_core::lock::client::{Acquired, Action, Class, Limits, LockClient, OpId, Reply};
use outrider_core::lock::{Held, LockName, Mode, ToClient, ToServer};
use outrider_core::net::{Link, RequestId, Ticket};
use outrider_hal::Instant;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem::MaybeUninit;
use std::time::Duration;
use zerocopy::little_endian::U64;

const OPS: u32 = 3;
/// Locks of each kind that the mounts fight for.
const NAMES: u64 = 3;
/// Locks in a batch of what is held: few, so that there are several batches.
const BATCH: usize = 2;

/// What an operation does.
#[derive(Debug, Clone, Copy)]
enum Doing {
    Nothing { until: Instant },
    Waiting { name: LockName },
    Using { name: LockName, until: Instant },
}

/// The locks of one client.
pub(super) struct Locking {
    locks: LockClient<'static>,
    /// How long a mount that was heard may go on.
    lease: Duration,
    term: Term,
    ops: [Doing; OPS as usize],
    /// Messages that are to be sent before all others.
    replies: VecDeque<ToServer>,
    renewal: Option<(RequestId, Instant)>,
    renew_at: Instant,
    lease_until: Instant,
    /// When the question was made that the lease counts from.
    lease_made: Instant,
    /// Grants so far.
    pub(super) grants: u64,
    /// As what each lock was granted last.
    modes: BTreeMap<LockName, Mode>,
    question: Option<(RequestId, Vec<U64>)>,
    ask_at: Instant,
    /// Nameless inodes that it uses.
    uses: BTreeSet<u64>,
}

fn lock_client() -> LockClient<'static> {
    let limits = Limits {
        ops: OPS,
        holds_per_op: 1,
        locks: 12,
        idle: 6,
        grace: 50 * MILLI,
        linger: 5 * MILLI,
        retry: 100 * MILLI,
        retries: 5,
    };
    let mut measure = Arena::measuring();
    drop(LockClient::carve(&mut measure, &limits));
    let region = vec![MaybeUninit::uninit(); measure.bytes_used() + REGION_ALIGN];
    let region: &'static mut [MaybeUninit<u8>] = region.leak();
    let pad = region.as_ptr().align_offset(REGION_ALIGN);
    let mut arena = Arena::new(&mut region[pad..]).expect("aligned");
    LockClient::carve(&mut arena, &limits).expect("measured")
}

impl Locking {
    /// The locks of a new client, which may go on for so long when it was heard.
    pub(super) fn new(lease: Duration) -> Locking {
        Locking {
            locks: lock_client(),
            lease,
            term: Term::NONE,
            ops: [Doing::Nothing { until: Instant(0) }; OPS as usize],
            replies: VecDeque::new(),
            renewal: None,
            renew_at: Instant(0),
            lease_until: Instant(0),
            lease_made: Instant(0),
            grants: 0,
            modes: BTreeMap::new(),
            question: None,
            ask_at: Instant(0),
            uses: BTreeSet::new(),
        }
    }

    /// What is held, whatever the lease.
    pub(super) fn held(&self) -> impl Iterator<Item = (LockName, Mode)> + '_ {
        let views = self.locks.views().map(|view| (view.name, view.mode));
        views.filter(|(_, mode)| *mode != Mode::Null)
    }

    /// When the question was made that the lease counts from, and the one under way.
    pub(super) fn renewals(&self) -> (Instant, Option<Instant>) {
        (self.lease_made, self.renewal.map(|(_, made)| made))
    }

    /// Which nameless inodes this client uses.
    pub(super) fn uses(&self) -> &BTreeSet<u64> {
        &self.uses
    }

    /// How long its operations have waited already: what each waits for.
    pub(super) fn waiting(&self) -> Vec<LockName> {
        let waits = |doing: &Doing| match doing {
            Doing::Waiting { name } => Some(*name),
            Doing::Nothing { .. } | Doing::Using { .. } => None,
        };
        self.ops.iter().filter_map(waits).collect()
    }

    pub(super) fn on_up(&mut self, term: Term, log: &mut Log) {
        if self.term != term {
            // What was to be said to the server before concerns nobody any more.
            self.replies.clear();
        }
        self.term = term;
        let greeted = self.locks.handle_greeting(term, true);
        log.demand(greeted.is_ok(), || format!("greeting {term}: {greeted:?}"));
    }

    pub(super) fn on_tell(&mut self, now: Instant, tell: &LockTell, log: &mut Log) {
        let message = ToClient::parse(&tell.lock);
        log.demand(message.is_ok(), || format!("{tell:?} means nothing"));
        let Ok(message) = message else { return };
        if let (ToClient::Grant { name, mode, .. }, Some(root)) = (&message, &tell.root) {
            log.granted(*name, self.term, root.commit);
            self.modes.insert(*name, *mode);
            self.grants += 1;
        }
        match self.locks.handle_message(now, self.term, &message) {
            Ok(Reply::Message(reply)) => self.replies.push_back(reply),
            Ok(Reply::Nothing) => {}
            Ok(Reply::Batch(_)) => unreachable!("not a message of this kind"),
            Err(violation) => log.demand(false, || format!("{message:?}: {violation:?}")),
        }
    }

    pub(super) fn on_recover(
        &mut self,
        now: Instant,
        link: &mut Link<'static>,
        ticket: Ticket,
        from: Key,
        log: &mut Log,
    ) {
        let reply = self.locks.handle_message(now, self.term, &ToClient::Recover { from });
        log.demand(reply == Ok(Reply::Batch(from)), || format!("asked from {from}: {reply:?}"));
        let mut batch = [Held { name: LockName::RENAME, mode: Mode::Read }; BATCH];
        let len = self.locks.recover(from, &mut batch);
        let records: Vec<HeldRecord> = batch[..len].iter().map(Held::emit).collect();
        let held = HeldLocks::new(&records).expect("in order");
        let _ = link.answer(ticket, &Outcome::Done(ClientAnswer::Recover(held)));
        log.reported += len as u64;
    }

    pub(super) fn in_use(&self, inos: &Inos<'_>) -> InoSet {
        let mut used = InoSet::default();
        for (n, ino) in inos.iter().enumerate() {
            if self.uses.contains(&ino.0) {
                used.insert(n);
            }
        }
        used
    }

    /// A request was answered: the server has heard this client since it was made.
    pub(super) fn on_answer(&mut self, now: Instant, name: RequestId) -> bool {
        let Some((_, made)) = self.renewal.filter(|(asked, _)| *asked == name) else {
            return false;
        };
        self.renewal = None;
        self.lease_made = self.lease_made.max(made);
        self.lease_until = self.lease_made.plus(self.lease);
        self.locks.handle_lease(now, self.lease_until);
        true
    }

    /// The question about nameless inodes was answered.
    pub(super) fn on_orphans(&mut self, unused: Option<InoSet>, me: ClientId, log: &mut Log) {
        let Some((_, inos)) = self.question.take() else { return };
        let Some(unused) = unused else { return };
        for (_, ino) in inos.iter().enumerate().filter(|(n, _)| unused.contains(*n)) {
            log.unused(me, ino.get());
        }
    }

    /// Goes on, and sends what there is to say, unless the mount is about to leave.
    pub(super) fn step(
        &mut self,
        now: Instant,
        link: &mut Link<'static>,
        leaving: bool,
        entropy: &mut Rng,
        log: &mut Log,
    ) {
        self.locks.handle_timeout(now);
        if !self.locks.is_suspended(now) {
            self.step_ops(now, leaving, entropy);
        }
        while let Some(action) = self.locks.poll_action() {
            match action {
                Action::Commit { .. } => {}
                Action::DropCaches { name, .. } => self.locks.caches_dropped(now, &name),
            }
        }
        if link.is_up() && link.term() == self.term && !leaving {
            self.send(now, link, entropy, log);
        }
    }

    fn step_ops(&mut self, now: Instant, leaving: bool, entropy: &mut Rng) {
        for at in 0..OPS {
            let op = OpId(at);
            let doing = &mut self.ops[at as usize];
            match *doing {
                Doing::Nothing { until } if until <= now && !leaving => {
                    let (name, mode) = choose(entropy);
                    *doing = match self.locks.acquire(now, op, name, mode, Class::Ordinary) {
                        Ok(Acquired::Held { .. }) => using(now, name, entropy),
                        Ok(Acquired::Waiting) => Doing::Waiting { name },
                        Err(_) => Doing::Nothing { until: now.plus(SECOND) },
                    };
                }
                Doing::Using { name, until } if until <= now => {
                    self.locks.release(now, op, &name);
                    let pause = entropy.within(1..=200) as u32;
                    *doing = Doing::Nothing { until: now.plus(MILLI * pause) };
                }
                Doing::Nothing { .. } | Doing::Waiting { .. } | Doing::Using { .. } => {}
            }
        }
        while let Some((OpId(at), result)) = self.locks.poll_ready() {
            let doing = &mut self.ops[at as usize];
            if let Doing::Waiting { name } = *doing {
                *doing = match result {
                    Ok(()) => using(now, name, entropy),
                    Err(_) => {
                        self.locks.release_all(now, OpId(at));
                        Doing::Nothing { until: now.plus(SECOND) }
                    }
                };
            }
        }
    }

    fn send(&mut self, now: Instant, link: &mut Link<'static>, entropy: &mut Rng, log: &mut Log) {
        while link.can_request(Kind::LockAsk).is_ok() {
            let message = self.replies.pop_front().or_else(|| self.locks.poll_message(now));
            let Some(message) = message else { break };
            if let ToServer::Release { name, kept, .. } = message
                && self.modes.insert(name, kept) == Some(Mode::Write)
            {
                log.released(name, self.term);
            }
            link.request(&ClientRequest::LockAsk(message.emit())).expect("there was room");
        }
        if self.renewal.is_none() && self.renew_at <= now {
            self.renew_at = now.plus(SECOND / 2);
            let name = link.request(&ClientRequest::Statfs).ok();
            self.renewal = name.map(|name| (name, now));
        }
        if self.question.is_none() && self.ask_at <= now {
            self.ask_at = now.plus(SECOND * 2);
            if entropy.below(2) == 0 {
                self.uses.insert(log.nameless(self.term));
            } else {
                self.uses.pop_first();
            }
            let inos = log.some_inos(self.term, entropy);
            let inos: Vec<U64> = inos.into_iter().map(U64::new).collect();
            if let Ok(asked) = Inos::new(&inos) {
                let name = link.request(&ClientRequest::Orphans(asked)).ok();
                self.question = name.map(|name| (name, inos));
            }
        }
    }

    /// When something is due.
    pub(super) fn timeout(&self, now: Instant) -> Option<Instant> {
        let due = self.ops.iter().filter_map(|doing| match doing {
            Doing::Nothing { until } | Doing::Using { until, .. } => Some(*until),
            Doing::Waiting { .. } => None,
        });
        let due = due.chain([self.renew_at, self.ask_at]).chain(self.locks.poll_timeout());
        due.min().map(|at| at.max(now.plus(Duration::from_millis(5))))
    }
}

fn using(now: Instant, name: LockName, entropy: &mut Rng) -> Doing {
    Doing::Using { name, until: now.plus(MILLI * entropy.within(1..=60) as u32) }
}

fn choose(entropy: &mut Rng) -> (LockName, Mode) {
    let number = entropy.below(NAMES) * 1024;
    match entropy.below(8) {
        0..4 => (LockName::inode(Ino(number)), Mode::Read),
        4..6 => (LockName::inode(Ino(number)), Mode::Write),
        6 => (LockName::index(IndexKind::MetaSeq, number), Mode::WriteOnly),
        _ => (LockName::index(IndexKind::MetaSeq, number), Mode::Read),
    }
}

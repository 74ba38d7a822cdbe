//! What Linux does between the system calls of processes and a FUSE mount: a model of its VFS and
//! of its FUSE client, as far as a mount can tell.
//!
//! ```text
//!   process --system call--> [locks of inodes, names, inodes] --request--> queue
//!      ^                                                                     |  read by the mount
//!      |   answer, or EINTR                                                  v
//!      +------------------------------------------------------------ under way
//! ```
//!
//! Nothing is cached beyond what an answer allows, and answers allow nothing: a name that is known
//! is looked up again each time, and only saves the directory's lock; attributes and bytes aren't
//! kept. What will be kept belongs into `State`: names and attributes with their time, pages with
//! their locks, and the notifications that take them back.
//!
//! # Invariants
//!
//! * The kernel owes the mount one forgotten lookup for each that an answer has counted, and pays
//!   all when it lets go of an inode, some time after its last use.
//! * A request that the mount has read is waited for, whatever signals come; the mount is told of
//!   the first. One that it has not read is dropped if the process is killed.
//! * Locks are taken and held as Linux holds them: a directory's while a name in it is looked up
//!   for the first time, made, moved or removed, or the directory is listed; a file's while it is
//!   written, resized or synced.
//! * A directory that is in use lies in another up to the root, also when its name isn't known any
//!   more. It comes to lie in another only while nobody moves names between directories, and
//!   nobody changes names in the one that it is in: so whoever holds locks of two directories has
//!   taken the upper one first.
//!
//! What this module deliberately doesn't know: what calls are made, and what they should give.

use crate::model::{Done, User};
use crate::platform::{Call, LENT_BYTES, Platform};
use crate::rng::{Chance, Rng};
use history::{History, Life, Ticket};
use outrider_core::client::fs::ROOT;
use outrider_core::client::op::{Attr, NameBuf, Op, OpError};
use outrider_core::format::Ino;
use outrider_core::format::item::FileKind;
use outrider_hal::Instant;
use sema::{Hold, Sema};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use threads::{Moves, until};

pub mod calls;
pub mod history;
pub mod linear;
pub mod sema;
#[cfg(test)]
mod tests;
pub mod threads;

/// Bytes that one READ or WRITE moves at most: as `max_pages` of a mount would say.
pub const IO_BYTES: u32 = 8 << 10;

/// Why a call has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The mount says so.
    Op(OpError),
    /// A signal has come before the mount has heard of it.
    Interrupted,
    /// The connection to the mount has ended: ENOTCONN, or ECONNABORTED.
    NotConnected,
}

/// A signal to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// One that it handles.
    Handled,
    /// One that ends it.
    Kill,
}

/// Names a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pid(pub u32);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Stage {
    /// The mount has not read it.
    Queued,
    /// The mount has it, under this number.
    UnderWay(u64),
    Answered(Result<Done, OpError>),
    /// The connection has ended.
    Cut,
}

#[derive(Debug)]
struct Request {
    call: Call,
    /// Who waits for it, if anybody.
    pid: Option<Pid>,
    stage: Stage,
    /// The mount is to be told, or has been, that a signal has come.
    interrupted: bool,
    ticket: Option<Ticket>,
}

#[derive(Debug, Default)]
struct Running {
    signal: Option<Signal>,
    /// What its calls are part of.
    round: Option<u32>,
}

/// An inode that the kernel knows.
#[derive(Debug, Default)]
struct Inode {
    /// Lookups to be given back.
    lookups: u64,
    /// Open files, and calls that work on it.
    pins: u32,
    /// `i_rwsem`.
    sema: Sema,
    /// The directory in which this one lies, from when it was found there until nobody uses it:
    /// `d_parent` of the only dentry that a directory has. Nothing else has one here.
    parent: Option<Ino>,
}

/// How much was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Requests answered.
    pub requests: u64,
    /// Requests that a signal met under way.
    pub interrupts: u64,
    /// Those of them that ended with EINTR.
    pub given_up: u64,
    /// Requests that were dropped before the mount had read them.
    pub dropped: u64,
    /// Lookups given back.
    pub forgotten: u64,
}

impl Counts {
    /// Adds what was done elsewhere.
    pub fn add(&mut self, other: &Counts) {
        self.requests += other.requests;
        self.interrupts += other.interrupts;
        self.given_up += other.given_up;
        self.dropped += other.dropped;
        self.forgotten += other.forgotten;
    }
}

/// What one kernel knows of one mount.
struct State {
    life: Life,
    history: Rc<RefCell<History>>,
    moves: Moves,
    rng: Rng,
    ids: u64,
    requests: BTreeMap<u64, Request>,
    queue: VecDeque<u64>,
    forgets: VecDeque<(Ino, u64)>,
    /// Forgets that the mount has, which it answers to nobody.
    forgetting: Vec<u64>,
    interrupts: VecDeque<u64>,
    inodes: BTreeMap<Ino, Inode>,
    names: BTreeMap<(Ino, NameBuf), Ino>,
    /// Names that are being looked up for the first time.
    in_lookup: BTreeSet<(Ino, NameBuf)>,
    /// Held across renames from one directory to another.
    rename: Sema,
    processes: BTreeMap<Pid, Running>,
    aborted: bool,
    /// The moment of the last exchange, and that at which the lease was last known to be there.
    exchanged: u64,
    good_until: u64,
    /// Whether an answer proves that.
    sure: bool,
    ticks: u64,
    counts: Counts,
}

/// A kernel's side of one mount.
#[derive(Clone)]
pub struct Kernel(Rc<RefCell<State>>);

/// A lock that is held.
#[must_use]
struct Held {
    kernel: Kernel,
    /// Of this inode; or the one of renames.
    ino: Option<Ino>,
    hold: Hold,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.kernel.0.borrow_mut();
        state.moves.note();
        match self.ino {
            Some(ino) => state.inode(ino).sema.leave(self.hold),
            None => state.rename.leave(self.hold),
        }
    }
}

/// An inode that is in use.
#[must_use]
struct Pin {
    kernel: Kernel,
    ino: Ino,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut state = self.kernel.0.borrow_mut();
        state.inode(self.ino).pins -= 1;
        state.release(self.ino);
    }
}

impl State {
    fn inode(&mut self, ino: Ino) -> &mut Inode {
        self.inodes.entry(ino).or_default()
    }

    /// An answer has counted a lookup.
    fn count_lookup(&mut self, attr: &Attr) {
        self.inode(attr.ino).lookups += 1;
    }

    /// Lets go of the name, and of what is below it.
    fn drop_name(&mut self, dir: Ino, name: &NameBuf) {
        if let Some(ino) = self.names.remove(&(dir, name.clone())) {
            self.drop_below(ino);
            self.release(ino);
            self.release(dir);
        }
    }

    fn drop_below(&mut self, dir: Ino) {
        let below: Vec<NameBuf> =
            self.names.keys().filter(|(at, _)| *at == dir).map(|(_, name)| name.clone()).collect();
        for name in below {
            self.drop_name(dir, &name);
        }
    }

    /// The name is this inode's, which, if it is a directory, has no other.
    fn give_name(&mut self, dir: Ino, name: &NameBuf, ino: Ino, kind: FileKind) {
        if kind == FileKind::Directory {
            self.names.retain(|_, at| *at != ino);
        }
        self.names.insert((dir, name.clone()), ino);
        if kind == FileKind::Directory
            && let Some(left) = self.inode(ino).parent.replace(dir)
        {
            self.release(left);
        }
    }

    /// Whether a name in the directory is known, or a directory that is in use lies in it.
    fn has_below(&self, dir: Ino) -> bool {
        self.names.keys().any(|(at, _)| *at == dir)
            || self.inodes.values().any(|inode| inode.parent == Some(dir))
    }

    /// Whether a process uses it, or a name leads to it or on from it.
    fn is_held(&self, ino: Ino) -> bool {
        let pinned = self.inodes.get(&ino).is_some_and(|inode| inode.pins > 0);
        ino == ROOT
            || pinned
            || self.names.values().any(|named| *named == ino)
            || self.has_below(ino)
    }

    /// A directory that nobody uses any more lies nowhere, and so on upwards.
    fn release(&mut self, ino: Ino) {
        let mut at = ino;
        while !self.is_held(at)
            && let Some(above) = self.inodes.get_mut(&at).and_then(|inode| inode.parent.take())
        {
            at = above;
        }
    }

    fn is_used(&self, ino: Ino) -> bool {
        let locked = self.inodes.get(&ino).is_some_and(|inode| !inode.sema.is_idle());
        locked || self.is_held(ino)
    }

    /// Whether the directory is `ino`, or lies below it.
    fn is_within(&self, dir: Ino, ino: Ino) -> bool {
        let above = |at: &Ino| self.inodes.get(at).and_then(|inode| inode.parent);
        std::iter::successors(Some(dir), above).any(|at| at == ino)
    }

    /// Whether a directory that was found in `dir` may come to lie there: `d_splice_alias`, which
    /// waits for no lock.
    fn check_move(&self, dir: Ino, ino: Ino) -> Result<(), OpError> {
        if self.is_within(dir, ino) {
            return Err(OpError::Loop);
        }
        let parent = self.inodes.get(&ino).and_then(|inode| inode.parent);
        let left = parent.filter(|parent| *parent != dir).and_then(|left| self.inodes.get(&left));
        match left {
            Some(left) if !self.rename.is_idle() || !left.sema.is_open() => Err(OpError::Stale),
            Some(_) | None => Ok(()),
        }
    }

    /// Forgets an inode, if it isn't used.
    fn evict(&mut self, ino: Ino) {
        if self.is_used(ino) {
            return;
        }
        if let Some(inode) = self.inodes.remove(&ino)
            && inode.lookups > 0
        {
            self.forgets.push_back((ino, inode.lookups));
        }
    }

    /// Takes back memory: some names, and inodes that aren't used.
    fn shrink(&mut self, chance: Chance) {
        let names: Vec<_> = self.names.keys().cloned().collect();
        for (dir, name) in names {
            // An open file may have been opened by another name.
            let in_use = |inode: &Inode| inode.parent.is_some() && inode.pins > 0;
            let leaf =
                |ino: &Ino| !self.has_below(*ino) && !self.inodes.get(ino).is_some_and(in_use);
            if self.names.get(&(dir, name.clone())).is_some_and(leaf) && self.rng.chance(chance) {
                self.drop_name(dir, &name);
            }
        }
        let inodes: Vec<Ino> = self.inodes.keys().copied().collect();
        for ino in inodes {
            if self.rng.chance(chance) {
                self.evict(ino);
            }
        }
    }

    fn note_end(&mut self, id: u64, result: Result<Done, OpError>) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        self.counts.requests += 1;
        self.counts.given_up += u64::from(result == Err(OpError::Interrupted));
        let good = !matches!(result, Err(OpError::Io | OpError::Interrupted));
        if good && self.sure {
            self.good_until = self.exchanged;
            self.history.borrow_mut().good(self.life, self.good_until);
        }
        if let Some(ticket) = request.ticket.take() {
            self.history.borrow_mut().end(ticket, Some(&result));
        }
        request.stage = Stage::Answered(result);
        self.moves.note();
        if request.pid.is_none() {
            self.requests.remove(&id);
        }
    }
}

impl Kernel {
    /// A kernel that has just mounted.
    #[must_use]
    pub fn new(life: Life, history: Rc<RefCell<History>>, rng: Rng) -> Kernel {
        let good_until = history.borrow_mut().moment();
        let root = Inode { pins: 1, ..Inode::default() };
        Kernel(Rc::new(RefCell::new(State {
            life,
            history,
            moves: Moves::default(),
            rng,
            ids: 0,
            requests: BTreeMap::new(),
            queue: VecDeque::new(),
            forgets: VecDeque::new(),
            forgetting: Vec::new(),
            interrupts: VecDeque::new(),
            inodes: BTreeMap::from([(ROOT, root)]),
            names: BTreeMap::new(),
            in_lookup: BTreeSet::new(),
            rename: Sema::default(),
            processes: BTreeMap::new(),
            aborted: false,
            exchanged: good_until,
            good_until,
            sure: true,
            ticks: 0,
            counts: Counts::default(),
        })))
    }

    /// What lets its threads go on.
    #[must_use]
    pub fn moves(&self) -> Moves {
        self.0.borrow().moves.clone()
    }

    /// Which mount it is.
    #[must_use]
    pub fn life(&self) -> Life {
        self.0.borrow().life
    }

    /// The last moment at which the mount is known to have had its lease.
    #[must_use]
    pub fn good_until(&self) -> u64 {
        self.0.borrow().good_until
    }

    /// How much was done since this was last asked.
    #[must_use]
    pub fn take_counts(&self) -> Counts {
        std::mem::take(&mut self.0.borrow_mut().counts)
    }

    /// Whether nothing is asked, and nothing is owed.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let state = self.0.borrow();
        state.requests.is_empty()
            && state.forgets.is_empty()
            && state.forgetting.is_empty()
            && state.inodes.keys().all(|ino| *ino == ROOT)
    }

    /// Whether a mount that answers has its lease: one whose clock stood still may be mistaken.
    pub fn set_sure(&self, sure: bool) {
        self.0.borrow_mut().sure = sure;
    }

    /// What it is doing, for people: requests, and locks that are held or waited for.
    #[must_use]
    pub fn describe(&self) -> String {
        let state = self.0.borrow();
        let requests = state.requests.values().map(|at| (&at.call.op, &at.stage));
        let requests: Vec<_> = requests.collect();
        let lookups: u64 = state.inodes.values().map(|inode| inode.lookups).sum();
        let inodes = state.inodes.iter().map(|(ino, inode)| (Some(*ino), &inode.sema));
        let semas = inodes.chain([(None, &state.rename)]);
        let locks: Vec<_> = semas.filter(|(_, sema)| !sema.is_idle()).collect();
        let forgets = state.forgets.len();
        format!("{requests:?}, {lookups} lookups, {forgets} forgets, locks {locks:?}")
    }

    /// Time goes on, by a little.
    pub fn tick(&self) {
        let mut state = self.0.borrow_mut();
        state.ticks += 1;
        state.moves.note();
        if state.rng.chance(Chance(20_000)) {
            state.shrink(Chance(200_000));
        }
    }

    /// Lets go of all that isn't used, as an unmount does.
    pub fn shrink_all(&self) {
        let mut state = self.0.borrow_mut();
        while !state.names.is_empty() {
            state.shrink(Chance::ALWAYS);
        }
        state.shrink(Chance::ALWAYS);
    }

    /// The connection ends: every call fails.
    pub fn abort(&self) {
        let mut guard = self.0.borrow_mut();
        let state = &mut *guard;
        state.aborted = true;
        state.queue.clear();
        state.forgets.clear();
        state.interrupts.clear();
        for request in state.requests.values_mut() {
            match request.stage {
                Stage::Queued | Stage::UnderWay(_) => request.stage = Stage::Cut,
                Stage::Answered(_) | Stage::Cut => {}
            }
            if let Some(ticket) = request.ticket.take() {
                state.history.borrow_mut().end(ticket, None);
            }
        }
        state.requests.retain(|_, request| request.pid.is_some());
        state.moves.note();
    }

    /// Sends a signal to a process.
    pub fn signal(&self, pid: Pid, signal: Signal) {
        let mut guard = self.0.borrow_mut();
        let state = &mut *guard;
        let Some(process) = state.processes.get_mut(&pid) else { return };
        if process.signal != Some(Signal::Kill) {
            process.signal = Some(signal);
        }
        state.moves.note();
        for (id, request) in &mut state.requests {
            if request.pid != Some(pid) || is_forced(&request.call.op) {
                continue;
            }
            let first = !std::mem::replace(&mut request.interrupted, true);
            match request.stage {
                Stage::UnderWay(_) if first => state.interrupts.push_back(*id),
                // The mount will be told when it has read the request.
                Stage::Queued | Stage::UnderWay(_) | Stage::Answered(_) | Stage::Cut => {}
            }
        }
    }

    /// Whether there is something to hand over or to take. If not, the mount has its lease at this
    /// moment, should it answer later.
    #[must_use]
    pub fn has_news(&self, platform: &Platform) -> bool {
        let mut guard = self.0.borrow_mut();
        let state = &mut *guard;
        let ended = |request: &Request| match request.stage {
            Stage::UnderWay(call) => platform.has_ended(call),
            Stage::Queued | Stage::Answered(_) | Stage::Cut => false,
        };
        let news = !state.queue.is_empty()
            || !state.forgets.is_empty()
            || !state.interrupts.is_empty()
            || state.forgetting.iter().any(|call| platform.has_ended(*call))
            || state.requests.values().any(ended);
        if !news {
            state.exchanged = state.history.borrow_mut().moment();
        }
        news
    }

    /// Hands over what is queued, as far as the mount reads it now, and takes what it answers.
    pub fn exchange(&self, platform: &mut Platform, now: Instant) {
        let mut guard = self.0.borrow_mut();
        let state = &mut *guard;
        if state.aborted {
            return;
        }
        let under_way: Vec<(u64, u64)> = state
            .requests
            .iter()
            .filter_map(|(id, request)| match request.stage {
                Stage::UnderWay(call) => Some((*id, call)),
                Stage::Queued | Stage::Answered(_) | Stage::Cut => None,
            })
            .collect();
        for (id, call) in under_way {
            if let Some(result) = platform.take(call) {
                state.note_end(id, result);
            }
        }
        state.exchanged = state.history.borrow_mut().moment();
        state.forgetting.retain(|call| platform.take(*call).is_none());
        while let Some(id) = state.interrupts.pop_front() {
            if let Some(Request { stage: Stage::UnderWay(call), .. }) = state.requests.get(&id) {
                state.counts.interrupts += 1;
                platform.interrupt(now, *call);
            }
        }
        while !state.queue.is_empty() && state.rng.chance(Chance(800_000)) {
            let Some(id) = state.queue.pop_front() else { break };
            let Some(request) = state.requests.get_mut(&id) else { continue };
            let call = platform.call(request.call.clone());
            request.stage = Stage::UnderWay(call);
            if request.interrupted {
                state.interrupts.push_back(id);
            }
        }
        while !state.forgets.is_empty() && state.rng.chance(Chance(500_000)) {
            let Some((ino, lookups)) = state.forgets.pop_front() else { break };
            state.counts.forgotten += lookups;
            let now = state.history.borrow_mut().time();
            let op = Op::Forget { ino, lookups };
            let call = Call { user: User::ROOT, now, op, data: Vec::new() };
            state.forgetting.push(platform.call(call));
        }
    }

    /// Queues a request. What is part of a round is remembered.
    fn send(&self, pid: Option<Pid>, round: Option<u32>, op: Op, data: Vec<u8>) -> Option<u64> {
        let mut guard = self.0.borrow_mut();
        let state = &mut *guard;
        if state.aborted {
            return None;
        }
        state.ids += 1;
        let id = state.ids;
        let mut history = state.history.borrow_mut();
        let now = history.time();
        let room = matches!(op, Op::Readdir { .. } | Op::Readlink { .. }).then_some(LENT_BYTES);
        let ticket =
            round.and_then(|round| history.begin(round, state.life, &op, &data, now, room));
        let call = Call { user: User::ROOT, now, op, data };
        let stage = Stage::Queued;
        // A signal that has come meets every request up to the end of the call.
        let signal = pid.and_then(|pid| state.processes.get(&pid)).and_then(|at| at.signal);
        let interrupted = signal.is_some() && !is_forced(&call.op);
        let request = Request { call, pid, stage, interrupted, ticket };
        state.requests.insert(id, request);
        state.queue.push_back(id);
        Some(id)
    }

    /// Waits for the answer to a request.
    async fn answer(&self, pid: Pid, id: u64) -> Result<Done, Failure> {
        until(|| {
            let mut guard = self.0.borrow_mut();
            let state = &mut *guard;
            let request = state.requests.get_mut(&id)?;
            let killed =
                state.processes.get(&pid).is_some_and(|at| at.signal == Some(Signal::Kill));
            let result = match &request.stage {
                Stage::Answered(result) => result.clone().map_err(Failure::Op),
                Stage::Cut => Err(Failure::NotConnected),
                Stage::Queued if killed && !is_forced(&request.call.op) => {
                    // Nobody has seen it, so it never was.
                    state.counts.dropped += 1;
                    state.queue.retain(|queued| *queued != id);
                    if let Some(ticket) = request.ticket.take() {
                        let never = Err(OpError::Interrupted);
                        state.history.borrow_mut().end(ticket, Some(&never));
                    }
                    Err(Failure::Interrupted)
                }
                Stage::Queued | Stage::UnderWay(_) => return None,
            };
            state.requests.remove(&id);
            Some(result)
        })
        .await
    }

    async fn lock(&self, ino: Option<Ino>, hold: Hold) -> Held {
        let ticket = {
            let mut state = self.0.borrow_mut();
            state.ids += 1;
            let ticket = state.ids;
            match ino {
                Some(ino) => state.inode(ino).sema.wait(ticket, hold),
                None => state.rename.wait(ticket, hold),
            }
            ticket
        };
        until(|| {
            let mut state = self.0.borrow_mut();
            let entered = match ino {
                Some(ino) => state.inode(ino).sema.enter(ticket),
                None => state.rename.enter(ticket),
            };
            if entered {
                state.moves.note();
            }
            entered.then_some(())
        })
        .await;
        Held { kernel: self.clone(), ino, hold }
    }

    fn pin(&self, ino: Ino) -> Pin {
        self.0.borrow_mut().inode(ino).pins += 1;
        Pin { kernel: self.clone(), ino }
    }
}

/// Whether a signal doesn't reach a request: the close of a file must not be lost.
fn is_forced(op: &Op) -> bool {
    matches!(op, Op::Flush { .. } | Op::Release { .. } | Op::Releasedir { .. })
}

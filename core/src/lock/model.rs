//! Mounts and servers in a model world, against a reference.
//!
//! Every mount runs operations that read and write values under locks; values live in a cache, in
//! pages that are read without asking anyone, as a kernel's are, and on a disk that a commit
//! writes. A global truth says what every reader must see. Messages take their time, mounts die,
//! servers are succeeded by others, clocks go on; which of it happens next is drawn at random.

extern crate std;

use super::client::{Acquired, Action, Class, LockClient, OpId, Refused, Reply};
use super::server::{self, LockServer};
use super::{Held, LockName, Mode, ToClient, ToServer, client};
use crate::arena::{Arena, REGION_ALIGN};
use crate::format::key::IndexKind;
use crate::format::{ClientId, Ino, Seq, Term};
use core::mem::MaybeUninit;
use core::time::Duration;
use outrider_hal::Instant;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::vec::Vec;
use std::{println, vec};

/// A region that lives as long as the test: what is carved from it may be moved around freely.
pub(super) fn region(bytes: usize) -> &'static mut [MaybeUninit<u8>] {
    let memory = vec![MaybeUninit::uninit(); bytes + REGION_ALIGN].leak();
    let skip = memory.as_ptr().align_offset(REGION_ALIGN);
    &mut memory[skip..skip + bytes]
}

pub(super) fn new_server(limits: &server::Limits) -> LockServer<'static> {
    limits.validate().unwrap();
    let mut measure = Arena::measuring();
    let _ = LockServer::carve(&mut measure, limits).unwrap();
    let mut arena = Arena::new(region(measure.bytes_used())).unwrap();
    let server = LockServer::carve(&mut arena, limits).unwrap();
    assert_eq!(arena.bytes_used(), measure.bytes_used());
    server
}

pub(super) fn new_client(limits: &client::Limits) -> LockClient<'static> {
    limits.validate().unwrap();
    let mut measure = Arena::measuring();
    let _ = LockClient::carve(&mut measure, limits).unwrap();
    let mut arena = Arena::new(region(measure.bytes_used())).unwrap();
    let client = LockClient::carve(&mut arena, limits).unwrap();
    assert_eq!(arena.bytes_used(), measure.bytes_used());
    client
}

/// The reference: what two mounts may hold at a time.
fn together(a: Mode, b: Mode) -> bool {
    use Mode::{Null, Read, WriteOnly};
    a == Null || b == Null || (a == Read && b == Read) || (a == WriteOnly && b == WriteOnly)
}

const SERVER: server::Limits = server::Limits {
    clients: 16,
    entries: 18,
    entries_per_client: 8,
    entries_high: 14,
    reclaims: 2,
};

const CLIENT: client::Limits = client::Limits {
    ops: OPS as u32,
    holds_per_op: 3,
    locks: 15,
    idle: 2,
    grace: Duration::from_millis(4),
    linger: Duration::from_micros(500),
    retry: Duration::from_millis(1),
    retries: 3,
};

const MOUNTS: usize = 4;
const OPS: usize = 4;
const LEASE: Duration = Duration::from_millis(60);

#[derive(Debug, Clone)]
struct Operation {
    /// In the order of acquisition.
    wants: Vec<(LockName, Mode)>,
    class: Class,
    /// Locks it is known to hold, with the number to refresh by.
    held: Vec<(LockName, Mode, u64)>,
    parked: bool,
}

#[derive(Debug)]
enum Up {
    Message(ToServer),
    Batch(Vec<Held>),
}

struct Mount {
    id: ClientId,
    locks: LockClient<'static>,
    dead: bool,
    term: Term,
    up: VecDeque<Up>,
    down: VecDeque<ToClient>,
    ops: Vec<Option<Operation>>,
    cache: BTreeMap<LockName, (u64, u64)>,
    pages: BTreeMap<LockName, u64>,
    buffered: BTreeSet<LockName>,
    /// What is dirty, and in which transaction.
    dirty: BTreeMap<LockName, u64>,
    open: u64,
    /// The transaction being committed, and what it writes.
    commit: Option<(u64, Vec<(LockName, u64)>)>,
    want_commit: bool,
    /// Being dropped: whether the pages are gone already.
    dropping: Vec<(LockName, Mode, bool)>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    operations: u64,
    interrupted: u64,
    refused: u64,
    grants: u64,
    revokes: u64,
    reclaims: u64,
    stale_releases: u64,
    recovered: u64,
    extra_passes: u64,
    notified_under_revoke: u64,
    commits: u64,
    failovers: u64,
    deaths: u64,
    ghosts: u64,
    spurious: u64,
    duplicates: u64,
    stale_terms: u64,
    suspensions: u64,
}

struct World {
    now: Instant,
    round: u64,
    server: LockServer<'static>,
    mounts: Vec<Mount>,
    /// Mounts that died: what they may still be writing, until the proof that they don't.
    zombies: BTreeMap<ClientId, BTreeSet<LockName>>,
    /// Clients the servers remember, and whether they were evicted.
    recorded: BTreeMap<ClientId, bool>,
    next_id: u64,
    /// Order of requests as they reached the server.
    queues: BTreeMap<LockName, Vec<ClientId>>,
    disk: BTreeMap<LockName, u64>,
    truth: BTreeMap<LockName, u64>,
    last_revoke: Option<(usize, Term, ToClient)>,
    last_release: Option<(usize, ToServer)>,
    counts: Counts,
}

fn names() -> Vec<LockName> {
    let mut names = vec![LockName::RENAME];
    names.extend((0..16).map(|group| LockName::inode(Ino(group << 10))));
    names.extend((0..6).map(|region| LockName::index(IndexKind::MetaSeq, region << 10)));
    names
}

impl World {
    fn new() -> World {
        let mut server = new_server(&SERVER);
        server.start();
        let mut world = World {
            now: Instant(0),
            round: 1,
            server,
            mounts: Vec::new(),
            zombies: BTreeMap::new(),
            recorded: BTreeMap::new(),
            next_id: 1,
            queues: BTreeMap::new(),
            disk: BTreeMap::new(),
            truth: BTreeMap::new(),
            last_revoke: None,
            last_release: None,
            counts: Counts::default(),
        };
        for _ in 0..MOUNTS {
            let mount = world.new_mount();
            world.mounts.push(mount);
        }
        world
    }

    fn new_mount(&mut self) -> Mount {
        let id = ClientId(self.next_id);
        self.next_id += 1;
        Mount {
            id,
            locks: new_client(&CLIENT),
            dead: false,
            term: Term::NONE,
            up: VecDeque::new(),
            down: VecDeque::new(),
            ops: vec![None; OPS],
            cache: BTreeMap::new(),
            pages: BTreeMap::new(),
            buffered: BTreeSet::new(),
            dirty: BTreeMap::new(),
            open: 1,
            commit: None,
            want_commit: false,
            dropping: Vec::new(),
        }
    }

    fn term(&self) -> Term {
        Term::new(self.round, 0)
    }

    fn greet(&mut self, at: usize) {
        let term = self.term();
        let mount = &mut self.mounts[at];
        if mount.dead || mount.term == term {
            return;
        }
        let recorded = self.recorded.contains_key(&mount.id);
        if self.server.handle_greeting(mount.id).is_err() {
            // Ghosts have taken all slots.
            return;
        }
        self.recorded.insert(mount.id, false);
        // What the old session still had to deliver comes too late.
        for message in core::mem::take(&mut mount.down) {
            mount.locks.handle_greeting(term, recorded).unwrap();
            let refused = mount.locks.handle_message(self.now, mount.term, &message);
            assert_eq!(refused, Err(client::Violation::Term));
            self.counts.stale_terms += 1;
        }
        mount.up.clear();
        mount.locks.handle_greeting(term, recorded).unwrap();
        mount.term = term;
    }

    fn renew(&mut self, at: usize) {
        let mount = &mut self.mounts[at];
        if !mount.dead && mount.term == Term::new(self.round, 0) {
            mount.locks.handle_lease(self.now, self.now.plus(LEASE));
        }
    }

    fn server_sends(&mut self, at: usize) {
        let mount = &mut self.mounts[at];
        if mount.term != Term::new(self.round, 0) {
            return;
        }
        if let Some(message) = self.server.poll_message(mount.id) {
            let read = message.emit().map(|record| ToClient::parse(&record).unwrap());
            mount.down.push_back(read.unwrap_or(message));
        }
    }

    fn client_sends(&mut self, at: usize) {
        let mount = &mut self.mounts[at];
        if mount.dead {
            return;
        }
        if let Some(message) = mount.locks.poll_message(self.now) {
            if let ToServer::Release { name, kept, .. } = message {
                assert!(!mount.dirty.contains_key(&name), "released before the commit");
                assert!(!mount.buffered.contains(&name), "released before the write-back");
                let cached = mount.pages.contains_key(&name) && kept == Mode::Null;
                assert!(!cached, "released before the pages were dropped");
                self.last_release = Some((at, message));
            }
            mount.up.push_back(Up::Message(ToServer::parse(&message.emit()).unwrap()));
        }
    }

    fn client_receives(&mut self, at: usize) {
        let mount = &mut self.mounts[at];
        if mount.dead {
            return;
        }
        let Some(message) = mount.down.pop_front() else { return };
        if matches!(message, ToClient::Revoke { .. }) {
            self.last_revoke = Some((at, mount.term, message));
        }
        match mount.locks.handle_message(self.now, mount.term, &message).unwrap() {
            Reply::Nothing => {}
            Reply::Message(message) => mount.up.push_back(Up::Message(message)),
            Reply::Batch(from) => {
                let mut batch = [Held { name: LockName::RENAME, mode: Mode::Null }; 3];
                let len = mount.locks.recover(from, &mut batch);
                mount.up.push_back(Up::Batch(batch[..len].to_vec()));
            }
        }
    }

    fn server_receives(&mut self, at: usize) {
        let mount = &mut self.mounts[at];
        if mount.term != Term::new(self.round, 0) {
            return;
        }
        let Some(message) = mount.up.pop_front() else { return };
        let id = mount.id;
        match message {
            Up::Batch(batch) => self.server.handle_batch(self.now, id, &batch).unwrap(),
            Up::Message(message) => {
                let reply = match self.server.handle_message(self.now, id, &message) {
                    Ok(reply) => reply,
                    Err(server::Violation::Unknown) if self.mounts[at].dead => return,
                    Err(violation) => panic!("{id} {message:?}: {violation:?}"),
                };
                match (message, reply) {
                    (_, Some(reply)) => self.mounts[at].down.push_back(reply),
                    (ToServer::Request { name, .. }, None) => {
                        self.queues.entry(name).or_default().push(id);
                    }
                    (ToServer::Release { .. }, None) => {}
                }
            }
        }
    }

    /// A session may not deliver twice, but nothing breaks if something does.
    fn duplicate(&mut self) {
        if let Some((at, term, message)) = self.last_revoke.take()
            && !self.mounts[at].dead
            && self.mounts[at].term == term
        {
            let mount = &mut self.mounts[at];
            if let Ok(Reply::Message(reply)) = mount.locks.handle_message(self.now, term, &message)
            {
                mount.up.push_back(Up::Message(reply));
            }
            self.counts.duplicates += 1;
        }
        if let Some((at, message)) = self.last_release.take() {
            let sent = !self.mounts[at]
                .up
                .iter()
                .any(|up| matches!(up, Up::Message(ToServer::Release { .. })));
            if sent && self.mounts[at].term == self.term() && !self.mounts[at].dead {
                let id = self.mounts[at].id;
                self.server.handle_message(self.now, id, &message).ok();
                self.counts.duplicates += 1;
            }
        }
    }

    fn start_operation(&mut self, at: usize, slot: usize, word: u32) {
        let mount = &mut self.mounts[at];
        if mount.dead || mount.ops[slot].is_some() {
            return;
        }
        let names = names();
        let mut wants = BTreeMap::new();
        for index in 0..1 + (word & 3).min(2) {
            let bits = word >> (4 + 8 * index);
            // Most operations want the same few locks.
            let name = names
                [if bits & 1 == 0 { bits >> 2 & 31 } else { bits >> 2 & 3 } as usize % names.len()];
            let mode = match bits >> 6 & 3 {
                _ if name.rank().0 == 3 && bits & 4 == 0 => Mode::WriteOnly,
                0 | 1 => Mode::Read,
                _ => Mode::Write,
            };
            wants.insert(name.rank(), (name, mode));
        }
        let notified = word >> 28 == 0 && wants.len() == 1;
        let class = if notified { Class::Notified } else { Class::Ordinary };
        let wants = wants.into_values().collect();
        mount.ops[slot] = Some(Operation { wants, class, held: Vec::new(), parked: false });
        self.run(at, slot);
    }

    /// Runs an operation from the top, up to where it has to wait.
    fn run(&mut self, at: usize, slot: usize) {
        let mount = &mut self.mounts[at];
        if mount.dead {
            return;
        }
        let Some(operation) = &mut mount.ops[slot] else { return };
        let op = OpId(slot as u32);
        for (name, mode) in operation.wants.clone() {
            match mount.locks.acquire(self.now, op, name, mode, operation.class) {
                Ok(Acquired::Held { refresh }) => {
                    operation.parked = false;
                    if operation.held.iter().any(|held| held.0 == name) {
                        continue;
                    }
                    operation.held.push((name, mode, refresh));
                    let revoked = mount.locks.views().any(|view| {
                        view.name == name && view.revoke.is_some_and(|to| !to.covers(mode))
                    });
                    if revoked && operation.class == Class::Notified {
                        self.counts.notified_under_revoke += 1;
                    }
                    if mode.reads() {
                        let value = match mount.cache.get(&name) {
                            Some((number, value)) if *number == refresh => *value,
                            _ => self.disk.get(&name).copied().unwrap_or(0),
                        };
                        let truth = self.truth.get(&name).copied().unwrap_or(0);
                        assert_eq!(value, truth, "{} reads {name}", mount.id);
                        mount.cache.insert(name, (refresh, value));
                    }
                }
                Ok(Acquired::Waiting) => {
                    operation.parked = true;
                    return;
                }
                Err(Refused::Server(_) | Refused::Holds | Refused::Upgrade) => unreachable!(),
            }
        }
    }

    /// An operation that has all its locks does what it came for, and ends.
    fn finish(&mut self, at: usize, slot: usize, buffer: bool) {
        self.run(at, slot);
        let mount = &mut self.mounts[at];
        if mount.dead {
            return;
        }
        let Some(operation) = &mount.ops[slot] else { return };
        if operation.held.len() < operation.wants.len() || mount.locks.is_suspended(self.now) {
            return;
        }
        for (name, mode, refresh) in operation.held.clone() {
            if mode.writes() {
                if mode.reads() {
                    let truth = self.truth.entry(name).or_default();
                    *truth += 1;
                    mount.cache.insert(name, (refresh, *truth));
                }
                if buffer && mode == Mode::Write {
                    mount.buffered.insert(name);
                    mount.locks.mark_buffered(self.now, &name, true);
                } else {
                    mount.dirty.insert(name, mount.open);
                    mount.locks.mark_dirty(&name, Seq(mount.open));
                }
            }
            if mode.reads() {
                mount.pages.insert(name, mount.cache[&name].1);
            }
        }
        mount.ops[slot] = None;
        mount.locks.release_all(self.now, OpId(slot as u32));
        self.counts.operations += 1;
    }

    fn interrupt(&mut self, at: usize, slot: usize) {
        let mount = &mut self.mounts[at];
        if !mount.dead && mount.ops[slot].take().is_some() {
            mount.locks.release_all(self.now, OpId(slot as u32));
            self.counts.interrupted += 1;
        }
    }

    fn drain_ready(&mut self, at: usize) {
        if self.mounts[at].dead {
            return;
        }
        while let Some((op, result)) = self.mounts[at].locks.poll_ready() {
            let slot = op.0 as usize;
            match result {
                Ok(()) => self.run(at, slot),
                Err(_) => {
                    self.mounts[at].ops[slot] = None;
                    self.mounts[at].locks.release_all(self.now, op);
                    self.counts.refused += 1;
                }
            }
        }
    }

    /// Does one piece of what the lock client asks its owner to do.
    fn act(&mut self, at: usize, word: u32) {
        let mount = &mut self.mounts[at];
        if mount.dead {
            return;
        }
        match word & 3 {
            0 => match mount.locks.poll_action() {
                Some(Action::Commit { .. }) => mount.want_commit = true,
                Some(Action::DropCaches { name, to, pass }) => {
                    self.counts.extra_passes += u64::from(pass > 0);
                    mount.dropping.push((name, to, false));
                }
                None => {}
            },
            1 => {
                if let Some(dropping) = mount.dropping.iter_mut().find(|dropping| !dropping.2) {
                    dropping.2 = true;
                    if dropping.1 == Mode::Null {
                        mount.pages.remove(&dropping.0);
                    }
                } else if let Some((name, _, _)) = mount.dropping.pop() {
                    mount.locks.caches_dropped(self.now, &name);
                }
            }
            2 if mount.commit.is_none() && (mount.want_commit || word & 4 != 0) => {
                for name in core::mem::take(&mut mount.buffered) {
                    mount.dirty.insert(name, mount.open);
                    mount.locks.mark_dirty(&name, Seq(mount.open));
                    mount.locks.mark_buffered(self.now, &name, false);
                }
                let value = |name: &LockName| mount.cache.get(name).map_or(0, |cached| cached.1);
                let values = mount.dirty.keys().map(|name| (*name, value(name))).collect();
                mount.commit = Some((mount.open, values));
                mount.open += 1;
                mount.want_commit = false;
            }
            _ => {
                let Some((seq, values)) = mount.commit.take() else { return };
                for (name, value) in values {
                    self.disk.insert(name, value);
                }
                mount.dirty.retain(|_, dirtied| *dirtied > seq);
                mount.locks.committed(self.now, Seq(seq));
                self.counts.commits += 1;
            }
        }
    }

    fn pass_time(&mut self, micros: u64) {
        self.now = self.now.plus(Duration::from_micros(micros));
        for at in 0..self.mounts.len() {
            let mount = &mut self.mounts[at];
            if mount.dead {
                continue;
            }
            self.counts.suspensions += u64::from(mount.locks.is_suspended(self.now));
            if mount.locks.poll_timeout().is_some_and(|due| due <= self.now) {
                mount.locks.handle_timeout(self.now);
                let later = mount.locks.poll_timeout();
                assert!(later.is_none_or(|due| due > self.now), "a deadline is not met");
            }
        }
    }

    fn kill(&mut self, at: usize) {
        let mount = &mut self.mounts[at];
        if mount.dead || mount.term == Term::NONE {
            return;
        }
        mount.dead = true;
        mount.pages.clear();
        let held = mount.ops.iter().flatten().flat_map(|operation| operation.held.iter());
        let writing = held.filter(|(_, mode, _)| *mode == Mode::Write).map(|held| held.0);
        let blocks = writing.filter(LockName::covers_file_blocks);
        self.zombies.insert(mount.id, blocks.collect());
        self.counts.deaths += 1;
    }

    /// A dead mount's lease is long over; a new one takes its place.
    fn evict(&mut self, at: usize) {
        if !self.mounts[at].dead {
            return;
        }
        let id = self.mounts[at].id;
        let fresh = self.new_mount();
        let old = core::mem::replace(&mut self.mounts[at], fresh);
        self.recorded.insert(id, true);
        self.server.evict(id);
        self.counts.ghosts += 1;
        // What it had not committed is lost.
        for (name, view) in old.locks.views().map(|view| (view.name, view)) {
            if view.mode == Mode::Write {
                let value = self.disk.get(&name).copied().unwrap_or(0);
                self.truth.insert(name, value);
            }
        }
    }

    fn prove(&mut self) {
        let mut evicted = self.recorded.iter().filter(|(_, evicted)| **evicted);
        if let Some((&id, _)) = evicted.next() {
            self.server.release_ghost(id);
            self.recorded.remove(&id);
            self.zombies.remove(&id);
        }
    }

    fn fail_over(&mut self) {
        self.note_counts();
        self.round += 1;
        self.server = new_server(&SERVER);
        for id in self.recorded.keys() {
            self.server.record(*id).unwrap();
        }
        self.server.start();
        for (id, _) in self.recorded.iter().filter(|(_, evicted)| **evicted) {
            self.server.evict(*id);
        }
        self.queues.clear();
        self.counts.failovers += 1;
    }

    fn note_counts(&mut self) {
        let counters = self.server.counters();
        self.counts.grants += counters.grants;
        self.counts.revokes += counters.revokes;
        self.counts.reclaims += counters.reclaims;
        self.counts.stale_releases += counters.stale_releases;
        self.counts.recovered += counters.recovered;
    }

    fn happen(&mut self, word: u32) {
        let at = (word >> 8) as usize % MOUNTS;
        let slot = (word >> 10) as usize % OPS;
        let rest = word.rotate_left(16) ^ word.wrapping_mul(0x9e37_79b9);
        match word % 64 {
            0..8 => (0..=rest % 4).for_each(|_| self.server_receives(at)),
            8..16 => (0..=rest % 4).for_each(|_| self.client_receives(at)),
            16..24 => (0..=rest % 4).for_each(|_| self.server_sends(at)),
            24..31 => (0..=rest % 4).for_each(|_| self.client_sends(at)),
            31..39 => self.start_operation(at, slot, rest),
            39..44 => (0..OPS).for_each(|slot| self.finish(at, slot, rest >> slot & 1 == 0)),
            44..54 => (0..=rest % 8).for_each(|index| self.act(at, rest >> (3 + 3 * index))),
            54..57 => self.pass_time(u64::from(rest % 1500)),
            57 => self.renew(at),
            58 | 59 => self.greet(at),
            60 => {
                let _ = self.server.step(self.now, rest % 20);
            }
            61 => match rest % 64 {
                0 => self.kill(at),
                1..16 => (0..MOUNTS).for_each(|at| self.evict(at)),
                16..24 => self.prove(),
                24 => self.fail_over(),
                25..32 => self.interrupt(at, slot),
                _ => self.duplicate(),
            },
            _ => {
                self.counts.spurious += 1;
                self.run(at, slot);
            }
        }
        self.check();
    }

    fn check(&mut self) {
        for at in 0..MOUNTS {
            self.drain_ready(at);
        }
        let mut held: BTreeMap<LockName, Vec<(ClientId, Mode)>> = BTreeMap::new();
        for mount in &self.mounts {
            for view in mount.locks.views() {
                held.entry(view.name).or_default().push((mount.id, view.mode));
                let used: Vec<_> = mount.ops.iter().flatten().flat_map(|op| &op.held).collect();
                for mode in Mode::USED {
                    let users = view.users[mode.index()] as usize;
                    let known = used.iter().filter(|held| (held.0, held.1) == (view.name, mode));
                    assert!(users == known.count(), "{} {view:?}", mount.id);
                    assert!(users == 0 || view.mode.covers(mode), "used beyond what is held");
                }
            }
            if !mount.locks.is_suspended(self.now) {
                for (name, value) in &mount.pages {
                    assert_eq!(
                        self.truth.get(name).copied().unwrap_or(0),
                        *value,
                        "page of {name}"
                    );
                }
            }
        }
        for (id, names) in &self.zombies {
            if self.mounts.iter().all(|mount| mount.id != *id) {
                for name in names {
                    held.entry(*name).or_default().push((*id, Mode::Write));
                }
            }
        }
        for (name, holders) in &held {
            for (index, a) in holders.iter().enumerate() {
                for b in &holders[index + 1..] {
                    assert!(together(a.1, b.1), "{name} is held by {a:?} and {b:?}");
                }
            }
        }
        let mut waiting: BTreeMap<LockName, Vec<ClientId>> = BTreeMap::new();
        for wait in self.server.waiting() {
            waiting.entry(wait.name).or_default().push(wait.client);
        }
        self.queues.retain(|name, queue| {
            let waits = waiting.remove(name).unwrap_or_default();
            queue
                .retain(|id| !self.recorded.get(id).copied().unwrap_or(true) || waits.contains(id));
            assert!(queue.ends_with(&waits), "{name}: {waits:?} is not the rest of {queue:?}");
            *queue = waits;
            !queue.is_empty()
        });
        assert!(waiting.is_empty(), "nobody asked for {waiting:?}");
    }

    /// No more faults: everything that waits must come to an end.
    fn quiesce(&mut self) {
        for round in 0..3000 {
            for at in 0..MOUNTS {
                self.evict(at);
                self.greet(at);
                self.renew(at);
                for word in 0..8 {
                    self.act(at, word);
                }
                for slot in 0..OPS {
                    self.finish(at, slot, false);
                }
                self.client_sends(at);
                self.server_receives(at);
                self.server_sends(at);
                self.client_receives(at);
            }
            self.prove();
            let _ = self.server.step(self.now, 20);
            self.pass_time(100);
            self.check();
            let busy = self.mounts.iter().any(|mount| mount.ops.iter().any(Option::is_some));
            if !busy && round > 40 && self.is_quiet() {
                return;
            }
        }
        let waits: Vec<_> = self.server.waiting().collect();
        let views: Vec<_> =
            self.mounts.iter().map(|m| m.locks.views().collect::<Vec<_>>()).collect();
        panic!("stuck: {waits:#?} {views:#?}");
    }

    fn is_quiet(&self) -> bool {
        let settled = |view: client::View| {
            view.revoke.is_none() && view.asked == Mode::Null && view.users == [0; 3]
        };
        self.server.waiting().next().is_none()
            && self.server.ghosts().next().is_none()
            && self.server.entries_used() <= SERVER.entries_high
            && self.mounts.iter().all(|mount| mount.locks.views().all(settled))
    }
}

fn live(words: impl Iterator<Item = u32>) -> Counts {
    let mut world = World::new();
    for word in words {
        world.happen(word);
    }
    world.quiesce();
    world.note_counts();
    world.counts
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn short_lives(words in proptest::collection::vec(any::<u32>(), 0..1500)) {
        live(words.into_iter());
    }
}

#[test]
fn long_lives() {
    let mut total = Counts::default();
    for seed in 1..=24u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let words = core::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 16) as u32
        });
        let counts = live(words.take(60_000));
        let Counts { operations, interrupted, refused, grants, revokes, reclaims, .. } = counts;
        total.operations += operations;
        total.interrupted += interrupted;
        total.refused += refused;
        total.grants += grants;
        total.revokes += revokes;
        total.reclaims += reclaims;
        total.stale_releases += counts.stale_releases;
        total.recovered += counts.recovered;
        total.extra_passes += counts.extra_passes;
        total.notified_under_revoke += counts.notified_under_revoke;
        total.commits += counts.commits;
        total.failovers += counts.failovers;
        total.deaths += counts.deaths;
        total.ghosts += counts.ghosts;
        total.spurious += counts.spurious;
        total.duplicates += counts.duplicates;
        total.stale_terms += counts.stale_terms;
        total.suspensions += counts.suspensions;
    }
    println!("{total:#?}");
    let Counts { operations, grants, revokes, reclaims, recovered, extra_passes, .. } = total;
    for count in [operations, grants, revokes, reclaims, recovered, extra_passes] {
        assert!(count > 0, "a run in which nothing happens proves nothing");
    }
    let Counts { refused, stale_releases, failovers, ghosts, duplicates, stale_terms, .. } = total;
    for count in [refused, stale_releases, failovers, ghosts, duplicates, stale_terms] {
        assert!(count > 0, "a run in which nothing happens proves nothing");
    }
}

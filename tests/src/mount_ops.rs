//! Mounts that share a lock server and a disk of items, driven by hand: what stands between a
//! mount's file operations and the rest of a node, as plain as can be.
//!
//! # Invariants
//!
//! * What happens next is a function of the seed: which task runs, which message travels, when a
//!   commit begins and ends, where a fill stops.
//! * A commit is durable at once as a whole; what a task reads is the newest root, or cached.
//!
//! What this module deliberately doesn't know: what an operation should answer.

use crate::rng::{Chance, Rng};
use outrider_core::arena::{Arena, REGION_ALIGN};
use outrider_core::client::extents::Span;
use outrider_core::client::fs::{
    self, BlockRun, Blocks, Context, Fs, HOLDS_MAX, Inos, ROOT, Step, Task, Wait, change_needs,
};
use outrider_core::client::items::{self, Generation, ItemCache, Key, Range};
use outrider_core::client::op::{
    Caller, Direction, Extent, Lent, Op, OpError, Place, Reply, Request, Statfs, Transfer,
};
use outrider_core::format::item::{FileKind, Inode, Time};
use outrider_core::format::key::{self, NameSecret};
use outrider_core::format::{BlockNo, ClientId, CommitNo, Ino, Seq, Term};
use outrider_core::lock::client::{self, Action, Class, LockClient, OpId};
use outrider_core::lock::server::{self, LockServer};
use outrider_core::lock::{Mode, ToClient, ToServer};
use outrider_hal::Instant;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem::MaybeUninit;
use std::time::Duration;
use zerocopy::IntoBytes;

/// Tasks of one mount at a time.
pub const TASKS: usize = 4;

const BLOCK: usize = 4096;
const TERM: Term = Term::new(1, 0);
const SECRET: NameSecret = NameSecret([7; 16]);
const GROUP: u64 = 1024;

/// A request at work.
pub struct Running {
    /// Names it.
    pub id: u64,
    /// Who asks.
    pub caller: Caller,
    /// The caller's other groups.
    pub groups: Vec<u32>,
    /// What times become.
    pub now: Time,
    /// What is asked.
    pub op: Op,
    /// Lent memory, and how much of it means something.
    pub lent: Option<(Vec<u8>, usize)>,
    /// The bytes of a write, or those that were read.
    pub data: Vec<u8>,
    task: Task,
    moved: usize,
    wait: Option<Wait>,
    /// It waits for what stands in [`World::outside`].
    parked: bool,
}

/// What a request wants of somebody outside.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "transfers are the usual case")]
pub enum Outside {
    /// That data are moved.
    Transfer(Transfer),
    /// That bytes become zeros on the device.
    Zero(Extent),
    /// To know whether the caller is in this group.
    AskMember(u32),
}

/// How a request ended.
pub struct Ended {
    /// The request.
    pub running: Running,
    /// Its answer.
    pub result: Result<Reply, OpError>,
    /// The inode, if it was a deletion.
    pub deleted: bool,
}

struct Commit {
    generation: Generation,
    seq: Seq,
    items: Vec<(Key, Option<Vec<u8>>)>,
    freed: Vec<BlockRun>,
}

/// A mount.
pub struct Mount<'m> {
    id: ClientId,
    items: ItemCache<'m>,
    locks: LockClient<'m>,
    inos: Inos<'m>,
    blocks: Blocks<'m>,
    /// Its file system.
    pub fs: Fs<'m>,
    tasks: [Option<Running>; TASKS],
    seq: Seq,
    committed: Seq,
    commit: Option<Commit>,
    wants_commit: bool,
    dropping: VecDeque<(outrider_core::lock::LockName, Mode)>,
    up: VecDeque<ToServer>,
    down: VecDeque<ToClient>,
}

/// What happened.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counts {
    /// Requests ended.
    pub requests: u64,
    /// Runs of tasks.
    pub runs: u64,
    /// Runs that ended in a wait, by kind: fill, commit, snapshot, lock, busy, numbers, blocks.
    pub waits: [u64; 7],
    /// Groups asked for.
    pub groups: u64,
    /// Transfers.
    pub transfers: u64,
    /// Tails zeroed.
    pub zeroed: u64,
    /// Commits.
    pub commits: u64,
    /// Locks given back.
    pub revokes: u64,
    /// Inodes deleted.
    pub deleted: u64,
}

impl Counts {
    /// Adds what happened elsewhere.
    pub fn add(&mut self, other: &Counts) {
        self.requests += other.requests;
        self.runs += other.runs;
        for (sum, more) in self.waits.iter_mut().zip(other.waits) {
            *sum += more;
        }
        self.groups += other.groups;
        self.transfers += other.transfers;
        self.zeroed += other.zeroed;
        self.commits += other.commits;
        self.revokes += other.revokes;
        self.deleted += other.deleted;
    }
}

/// All mounts, the lock server and the disk.
pub struct World<'m> {
    /// What is drawn.
    pub rng: Rng,
    /// The mounts.
    pub mounts: Vec<Mount<'m>>,
    server: LockServer<'m>,
    now: Instant,
    root: CommitNo,
    next_seq: u64,
    next_group: u64,
    next_block: u64,
    next_id: u64,
    /// Items that are durable.
    pub disk: BTreeMap<Key, Vec<u8>>,
    /// File data.
    pub device: BTreeMap<u64, Vec<u8>>,
    /// Blocks lent so far.
    pub lent: BTreeSet<u64>,
    /// Blocks that durable transactions have freed.
    pub freed: BTreeSet<u64>,
    orphans: BTreeSet<Ino>,
    /// If data and groups are somebody else's business: what requests of which mounts want.
    pub outside: Option<VecDeque<(usize, u64, Outside)>>,
    /// What happened.
    pub counts: Counts,
}

/// Memory for a world of so many mounts.
#[must_use]
pub fn memory(mounts: usize) -> Vec<MaybeUninit<u8>> {
    let mut bytes = REGION_ALIGN;
    let mut measure = Arena::measuring();
    for _ in 0..mounts {
        let _ = Mount::carve(&mut measure, ClientId(1));
    }
    let _ = LockServer::carve(&mut measure, &server_limits());
    bytes += measure.bytes_used();
    vec![MaybeUninit::uninit(); bytes]
}

fn server_limits() -> server::Limits {
    let (entries, entries_high) = (1000, 900);
    server::Limits { clients: 4, entries, entries_per_client: 800, entries_high, reclaims: 2 }
}

impl<'m> Mount<'m> {
    fn carve(arena: &mut Arena<'m>, id: ClientId) -> Mount<'m> {
        let item_limits = items::Limits { fills: 2, ..items::Limits::least(change_needs()) };
        item_limits.validate().expect("the least works");
        let (ops, holds_per_op) = (TASKS as u32, HOLDS_MAX as u32);
        let lock_limits = client::Limits {
            ops,
            holds_per_op,
            locks: ops * holds_per_op + 20,
            idle: 6,
            grace: Duration::from_millis(4),
            linger: Duration::from_micros(500),
            retry: Duration::from_millis(1),
            retries: 200,
        };
        lock_limits.validate().expect("they go together");
        let limits = fs::Limits { inodes: 4096, handles: 4096 };
        Mount {
            id,
            items: ItemCache::carve(arena, &item_limits).expect("measured"),
            locks: LockClient::carve(arena, &lock_limits).expect("measured"),
            inos: Inos::carve(arena, 8).expect("measured"),
            blocks: Blocks::carve(arena, 8, 32).expect("measured"),
            fs: Fs::carve(arena, &limits, SECRET).expect("measured"),
            tasks: [const { None }; TASKS],
            seq: Seq(0),
            committed: Seq(0),
            commit: None,
            wants_commit: false,
            dropping: VecDeque::new(),
            up: VecDeque::new(),
            down: VecDeque::new(),
        }
    }

    fn context(&mut self, slot: usize, now: Instant) -> (&mut Fs<'m>, Context<'_, 'm>) {
        let volume =
            Statfs { blocks: 1, blocks_free: 1, blocks_available: 1, inodes: 1, inodes_free: 1 };
        let cx = Context {
            items: &mut self.items,
            reader: None,
            locks: &mut self.locks,
            inos: &mut self.inos,
            blocks: &mut self.blocks,
            op: OpId(slot as u32),
            class: Class::Ordinary,
            now,
            seq: self.seq,
            committed: self.committed,
            volume,
        };
        (&mut self.fs, cx)
    }

    /// Ends what the open transaction has used and freed; the latter is this.
    fn cut(&mut self) -> Vec<BlockRun> {
        let spans = self.blocks.freed.spans().iter();
        let run = |span: &Span| BlockRun { first: BlockNo(span.first), len: span.len.into() };
        let freed = spans.map(run).collect();
        self.blocks.used.cut();
        self.blocks.freed.cut();
        self.inos.used.cut();
        freed
    }

    /// The requests at work.
    pub fn running(&self) -> impl Iterator<Item = &Running> {
        self.tasks.iter().flatten()
    }
}

impl<'m> World<'m> {
    /// A world whose disk holds these items.
    #[must_use]
    pub fn new(
        memory: &'m mut [MaybeUninit<u8>],
        mounts: usize,
        seed: u64,
        disk: BTreeMap<Key, Vec<u8>>,
    ) -> World<'m> {
        let skip = memory.as_ptr().align_offset(REGION_ALIGN);
        let mut arena = Arena::new(&mut memory[skip..]).expect("aligned");
        let now = Instant(1_000_000_000);
        let mut server = LockServer::carve(&mut arena, &server_limits()).expect("measured");
        server.start();
        let mounts = (1..=mounts as u64).map(|id| {
            let mut mount = Mount::carve(&mut arena, ClientId(id));
            mount.locks.handle_greeting(TERM, false).expect("the first");
            mount.locks.handle_lease(now, Instant(u64::MAX));
            mount.seq = Seq(id * 300);
            mount
        });
        let mounts: Vec<_> = mounts.collect();
        for mount in &mounts {
            server.handle_greeting(mount.id).expect("there is room");
        }
        World {
            rng: Rng::new(seed),
            next_seq: 300 * mounts.len() as u64,
            mounts,
            server,
            now,
            root: CommitNo(1),
            next_group: GROUP,
            next_block: 1000,
            next_id: 0,
            disk,
            device: BTreeMap::new(),
            lent: BTreeSet::new(),
            freed: BTreeSet::new(),
            orphans: BTreeSet::new(),
            outside: None,
            counts: Counts::default(),
        }
    }

    /// Begins a request, if the mount has a free slot. `data` comes with a write.
    pub fn begin(
        &mut self,
        mount: usize,
        (caller, groups): (Caller, Vec<u32>),
        now: Time,
        op: Op,
        lent: Option<(Vec<u8>, usize)>,
        data: Vec<u8>,
    ) -> Option<u64> {
        let task = Task::answer();
        let id = self.next_id;
        let (moved, wait, parked) = (0, None, false);
        let running =
            Running { id, caller, groups, now, op, lent, data, task, moved, wait, parked };
        let slot = self.mounts[mount].tasks.iter_mut().find(|slot| slot.is_none())?;
        *slot = Some(running);
        self.next_id += 1;
        Some(id)
    }

    /// Whether nothing is at work.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.mounts.iter().all(|mount| mount.tasks.iter().all(Option::is_none))
    }

    /// Whether all that is at work waits for somebody outside.
    #[must_use]
    pub fn is_parked(&self) -> bool {
        self.mounts.iter().all(|mount| mount.running().all(|running| running.parked))
    }

    fn unpark(&mut self, mount: usize, id: u64) -> Option<&mut Running> {
        let mut running = self.mounts[mount].tasks.iter_mut().flatten();
        let running = running.find(|running| running.id == id && running.parked)?;
        running.parked = false;
        Some(running)
    }

    /// Somebody outside has moved data, or written zeros.
    pub fn transferred(&mut self, mount: usize, id: u64, ok: bool) {
        if let Some(running) = self.unpark(mount, id) {
            running.task.transferred(ok);
        }
    }

    /// Somebody outside knows whether the caller is in this group.
    pub fn told(&mut self, mount: usize, id: u64, gid: u32, member: bool) {
        if let Some(running) = self.unpark(mount, id) {
            running.caller.groups.tell(gid, member);
        }
    }

    /// Gives a request up, if it has changed nothing and nobody outside works for it.
    pub fn interrupt(&mut self, at: usize, id: u64) -> Option<Ended> {
        let slot = self.mounts[at].tasks.iter().position(|task| {
            let task = task.as_ref().filter(|running| running.id == id && !running.parked);
            task.is_some_and(|running| !running.task.has_changed())
        })?;
        let mut running = self.mounts[at].tasks[slot].take()?;
        let now = self.now;
        let (fs, mut cx) = self.mounts[at].context(slot, now);
        fs.give_up(&mut cx, &mut running.task);
        Some(Ended { running, result: Err(OpError::Interrupted), deleted: false })
    }

    /// Inodes that have no name and wait to be deleted.
    #[must_use]
    pub fn orphans(&self) -> usize {
        self.orphans.len()
    }

    /// Something happens; maybe a request ends.
    pub fn step(&mut self) -> Option<(usize, Ended)> {
        self.now = self.now.plus(Duration::from_micros(self.rng.below(700)));
        let mount = self.rng.below(self.mounts.len() as u64) as usize;
        match self.rng.below(12) {
            0 => self.settle_commit(mount),
            1 => self.begin_commit(mount),
            2 => self.drop_caches(mount),
            3 => self.delete_orphan(mount),
            4..=6 => self.talk(mount),
            _ => {
                let slot = self.rng.below(TASKS as u64) as usize;
                return self.run(mount, slot).map(|ended| (mount, ended));
            }
        }
        None
    }

    fn talk(&mut self, at: usize) {
        let mount = &mut self.mounts[at];
        mount.locks.handle_timeout(self.now);
        while let Some(message) = mount.locks.poll_message(self.now) {
            mount.up.push_back(message);
        }
        if let Some(message) = mount.up.pop_front() {
            let reply = self.server.handle_message(self.now, mount.id, &message);
            let reply = reply.expect("it keeps to the protocol");
            mount.down.extend(reply);
        }
        let _ = self.server.step(self.now, 4);
        while let Some(message) = self.server.poll_message(mount.id) {
            mount.down.push_back(message);
        }
        if let Some(message) = mount.down.pop_front() {
            let reply = mount.locks.handle_message(self.now, TERM, &message);
            match reply.expect("it keeps to the protocol") {
                client::Reply::Nothing => {}
                client::Reply::Message(message) => mount.up.push_back(message),
                client::Reply::Batch(_) => panic!("nobody recovers"),
            }
        }
        while let Some(action) = mount.locks.poll_action() {
            match action {
                Action::Commit { .. } => mount.wants_commit = true,
                Action::DropCaches { name, to, pass: _ } => mount.dropping.push_back((name, to)),
            }
        }
        while let Some((op, result)) = mount.locks.poll_ready() {
            result.expect("there is room for all locks");
            if let Some(running) = &mut mount.tasks[op.0 as usize] {
                running.wait = None;
            }
        }
    }

    fn drop_caches(&mut self, at: usize) {
        let mount = &mut self.mounts[at];
        let Some((name, to)) = mount.dropping.pop_front() else { return };
        if to == Mode::Null {
            let range = name.range();
            let range = Range { first: key_bytes(range.first()), last: key_bytes(range.last()) };
            while mount.items.invalidate(&range, 7) == outrider_core::node::More::Yes {}
        }
        mount.locks.caches_dropped(self.now, &name);
        self.counts.revokes += 1;
    }

    fn begin_commit(&mut self, at: usize) {
        let spontaneous = self.rng.chance(Chance(50_000));
        let mount = &mut self.mounts[at];
        if mount.commit.is_some() || !(mount.wants_commit || spontaneous) {
            return;
        }
        while mount.items.step(5) == outrider_core::node::More::Yes {}
        mount.wants_commit = false;
        let seq = mount.seq;
        let Ok(generation) = mount.items.commit_begin() else {
            mount.committed = seq;
            self.next_seq += 1;
            mount.seq = Seq(self.next_seq);
            mount.locks.committed(self.now, seq);
            assert_eq!(mount.cut(), [], "freed without an item changed");
            return;
        };
        let mut items = Vec::new();
        while let Some(item) = mount.items.commit_peek() {
            let value = item.value.map(|value| value.flatten().copied().collect());
            items.push((item.key, value));
            mount.items.commit_advance();
        }
        let freed = mount.cut();
        mount.commit = Some(Commit { generation, seq, items, freed });
        // Seqs lie far enough apart that regions of the indices change now and then.
        self.next_seq += self.rng.within(1..=300);
        mount.seq = Seq(self.next_seq);
    }

    fn settle_commit(&mut self, at: usize) {
        let mount = &mut self.mounts[at];
        let Some(commit) = mount.commit.take() else { return };
        self.root = self.root.next();
        for (key, value) in commit.items {
            match value {
                Some(value) => self.disk.insert(key, value),
                None => self.disk.remove(&key),
            };
        }
        for run in commit.freed {
            for block in run.first.0..run.first.0 + run.len {
                assert!(self.freed.insert(block), "block {block} is freed twice");
            }
        }
        assert!(mount.items.commit_done(commit.generation, self.root));
        mount.blocks.used.settle();
        mount.blocks.freed.settle();
        mount.inos.used.settle();
        mount.committed = commit.seq;
        mount.locks.committed(self.now, commit.seq);
        self.counts.commits += 1;
        for running in mount.tasks.iter_mut().flatten() {
            running.wait = running.wait.filter(|wait| *wait != Wait::Commit);
        }
    }

    /// Deletes an inode that no mount uses any more.
    fn delete_orphan(&mut self, at: usize) {
        for mount in &mut self.mounts {
            while let Some(ino) = mount.fs.poll_orphan() {
                self.orphans.insert(ino);
            }
        }
        let used = |ino: &Ino| self.mounts.iter().any(|mount| mount.fs.uses(*ino));
        let Some(ino) = self.orphans.iter().copied().find(|ino| !used(ino)) else { return };
        let (id, now) = (u64::MAX, Time::default());
        let Some(slot) = self.mounts[at].tasks.iter_mut().find(|slot| slot.is_none()) else {
            return;
        };
        self.orphans.remove(&ino);
        *slot = Some(Running {
            id,
            caller: Caller::new(0, 0, 0),
            groups: Vec::new(),
            now,
            op: Op::Statfs,
            lent: None,
            data: Vec::new(),
            task: Task::delete(ino),
            moved: 0,
            wait: None,
            parked: false,
        });
    }

    fn run(&mut self, at: usize, slot: usize) -> Option<Ended> {
        let spurious = self.rng.chance(Chance(30_000));
        let mut running = self.mounts[at].tasks[slot].take_if(|running| !running.parked)?;
        if let Some(wait) = running.wait
            && !self.is_over(at, wait)
            && !spurious
        {
            self.mounts[at].tasks[slot] = Some(running);
            return None;
        }
        self.counts.runs += 1;
        let step = self.run_task(at, slot, &mut running);
        running.wait = None;
        match step {
            Step::Done(result) => {
                let deleted = running.id == u64::MAX;
                self.counts.deleted += u64::from(deleted);
                self.counts.requests += u64::from(!deleted);
                return Some(Ended { running, result, deleted });
            }
            Step::Wait(wait) => {
                self.note_wait(at, wait);
                running.wait = Some(wait);
            }
            Step::Transfer(transfer) if self.outside.is_some() => {
                self.park(at, &mut running, Outside::Transfer(transfer));
            }
            Step::Zero(extent) if self.outside.is_some() => {
                self.park(at, &mut running, Outside::Zero(extent));
            }
            Step::AskMember(gid) if self.outside.is_some() => {
                self.park(at, &mut running, Outside::AskMember(gid));
            }
            Step::Transfer(transfer) => {
                self.transfer(&transfer, &mut running);
                running.task.transferred(true);
                self.counts.transfers += 1;
            }
            Step::Zero(extent) => {
                let Place::Blocks(block) = extent.place else { panic!("nothing to zero") };
                let bytes = self.device.get_mut(&block.0).expect("it was written");
                let from = extent.at as usize % BLOCK;
                bytes[from..from + extent.len as usize].fill(0);
                running.task.transferred(true);
                self.counts.zeroed += 1;
            }
            Step::AskMember(gid) => {
                let member = running.groups.contains(&gid);
                running.caller.groups.tell(gid, member);
                self.counts.groups += 1;
            }
        }
        self.mounts[at].tasks[slot] = Some(running);
        None
    }

    fn park(&mut self, at: usize, running: &mut Running, wants: Outside) {
        running.parked = true;
        if let Some(outside) = &mut self.outside {
            outside.push_back((at, running.id, wants));
        }
    }

    fn run_task(&mut self, at: usize, slot: usize, running: &mut Running) -> Step {
        let now = self.now;
        let (fs, mut cx) = self.mounts[at].context(slot, now);
        let lent = running.lent.as_mut();
        let mut request = Request {
            caller: running.caller.clone(),
            now: running.now,
            op: running.op.clone(),
            lent: lent.map(|(buf, len)| Lent { buf: &mut buf[..], len: *len }),
        };
        let step = fs.run(&mut cx, &mut running.task, &mut request);
        let len = request.lent.map(|lent| lent.len);
        if let (Some(len), Some(lent), Step::Done(_)) = (len, &mut running.lent, &step) {
            lent.1 = len;
        }
        step
    }

    fn is_over(&self, at: usize, wait: Wait) -> bool {
        match wait {
            Wait::Fill { .. } | Wait::Inos(_) | Wait::Blocks | Wait::Snapshot | Wait::Busy(_) => {
                true
            }
            Wait::Commit => self.mounts[at].commit.is_none() && !self.mounts[at].wants_commit,
            Wait::Lock(_) => false,
        }
    }

    fn note_wait(&mut self, at: usize, wait: Wait) {
        let kind = match wait {
            Wait::Fill { at: key, range, asked: _ } => {
                self.fill(at, &key, range);
                0
            }
            Wait::Commit => {
                self.mounts[at].wants_commit = true;
                1
            }
            Wait::Snapshot => 2,
            Wait::Lock(_) => 3,
            Wait::Busy(_) => 4,
            Wait::Inos(_) => {
                self.mounts[at].wants_commit |= self.mounts[at].inos.used.is_long();
                if self.mounts[at].inos.lend(Ino(self.next_group), GROUP) {
                    self.next_group += GROUP;
                }
                5
            }
            Wait::Blocks => {
                self.mounts[at].wants_commit |= self.mounts[at].blocks.used.is_long();
                let len = self.rng.within(1..=40);
                let first = BlockNo(self.next_block);
                if self.mounts[at].blocks.lend(BlockRun { first, len }) {
                    self.lent.extend(first.0..first.0 + len);
                    self.next_block += len + self.rng.below(2);
                }
                6
            }
        };
        self.counts.waits[kind] += 1;
    }

    /// Fills a stretch around the missing key, from the disk.
    fn fill(&mut self, at: usize, key: &Key, range: Range) {
        let items = &mut self.mounts[at].items;
        items.note_root(self.root);
        let before = self.disk.range(range.first..=*key).rev().nth(self.rng.below(4) as usize);
        let first = before.map_or(range.first, |(key, _)| *key);
        let range = Range { first, last: range.last };
        let id = items.fill_begin(&range, key, self.root).expect("there are fills, and no others");
        let stop = self.rng.within(1..=40);
        let mut count = 0;
        for (found, value) in self.disk.range(range.first..=range.last) {
            items.fill_item(id, found, value).expect("nothing comes between");
            count += u64::from(found >= key);
            if count == stop {
                items.fill_abort(id);
                return;
            }
        }
        items.fill_end(id, &range.last).expect("nothing comes between");
    }

    fn transfer(&mut self, transfer: &Transfer, running: &mut Running) {
        for extent in &transfer.extents {
            let (mut at, end) = (extent.at, extent.at + u64::from(extent.len));
            let first = extent.at / BLOCK as u64;
            while at < end {
                let from = at as usize % BLOCK;
                let len = (BLOCK - from).min((end - at) as usize);
                let (place, fresh) = match extent.place {
                    Place::Hole => (None, false),
                    Place::Blocks(block) => (Some(block), false),
                    Place::Fresh(block) => (Some(block), true),
                };
                let place = place.map(|block| block.0 + (at / BLOCK as u64 - first));
                match (transfer.direction, place) {
                    (Direction::Read, None) => running.data.resize(running.data.len() + len, 0),
                    (Direction::Read, Some(block)) => {
                        assert!(!self.freed.contains(&block), "a freed block is read");
                        let bytes = &self.device[&block][from..from + len];
                        running.data.extend_from_slice(bytes);
                    }
                    (Direction::Write, Some(block)) => {
                        assert!(self.lent.contains(&block) && !self.freed.contains(&block));
                        if fresh {
                            self.device.insert(block, vec![0; BLOCK]);
                        }
                        let bytes = self.device.get_mut(&block).expect("data were written");
                        let data = &running.data[running.moved..running.moved + len];
                        bytes[from..from + len].copy_from_slice(data);
                        running.moved += len;
                    }
                    (Direction::Write, None) => panic!("a write to a hole"),
                }
                at += len as u64;
            }
        }
    }

    /// Blocks lent and not used yet.
    #[must_use]
    pub fn blocks_available(&self) -> u64 {
        self.mounts.iter().map(|mount| mount.blocks.available()).sum()
    }

    /// Ends everything: what is dirty becomes durable.
    pub fn sync(&mut self) {
        for at in 0..self.mounts.len() {
            while self.mounts[at].items.usage().dirty_items > 0 {
                self.settle_commit(at);
                self.mounts[at].wants_commit = true;
                self.begin_commit(at);
                while self.mounts[at].items.step(100) == outrider_core::node::More::Yes {}
            }
        }
    }
}

/// A key as the cache and the disk have it.
#[must_use]
pub fn key_bytes(key: key::Key) -> Key {
    let bytes = key::KeyBytes::from(key);
    bytes.as_bytes().try_into().expect("keys are that long")
}

/// The items of a volume that holds a root directory for everybody, and nothing else.
#[must_use]
pub fn root_items() -> BTreeMap<Key, Vec<u8>> {
    let inode = Inode {
        kind: FileKind::Directory,
        permissions: 0o777,
        truncating: false,
        size: 0,
        meta_seq: Seq(0),
        data_seq: Seq(0),
        data_version: 0,
        online_blocks: 0,
        offline_blocks: 0,
        next_readdir_pos: 2,
        next_xattr_id: 0,
        nlink: 2,
        uid: 0,
        gid: 0,
        rdev: 0,
        atime: Time::default(),
        ctime: Time::default(),
        mtime: Time::default(),
        crtime: Time::default(),
    };
    let mut items = BTreeMap::new();
    items.insert(key_bytes(key::Key::inode(ROOT)), inode.emit().as_bytes().to_vec());
    items.insert(key_bytes(key::Key::meta_seq(Seq(0), ROOT)), Vec::new());
    items
}

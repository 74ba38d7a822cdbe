//! Jobs of the server over a store and a disk, without elections and connections: what is merged
//! while everything fails now and then, and what becomes of lists that lie.

extern crate std;

mod full;
mod readers;

use super::compact::{Next, Planner};
use super::limits::ServerLimits;
use super::merge::{Merger, Outcome};
use super::requests::{self, Context, Entered, Halt, Progress, Scratch};
use super::table::Members;
use crate::block::{Chaos, Pins, RequestId};
use crate::btree::rig::{Rng, carve};
use crate::error::{Error, Stop, Wait};
use crate::format::key::{Key, KeyBytes};
use crate::format::records::{FreedKey, LIST_MAX, ManifestEntry, ManifestKey, list};
use crate::format::root::Extent;
use crate::format::run::Value;
use crate::format::super_block::tests::identity;
use crate::format::super_block::{Identity, Super};
use crate::format::wire::message::RUNS_MAX;
use crate::format::{Block, BlockNo, ClientId, CommitNo, Ino, RunId};
use crate::lsm::KeyRange;
use crate::lsm::build::{BuildSpace, Refused, RunBuilder};
use crate::lsm::choose::Policy;
use crate::lsm::manifest::Manifest;
use crate::lsm::read::{Fill, Reach};
use crate::lsm::window::{ITEM_BYTES_MAX, WindowLimits};
use crate::node::More;
use crate::txn::settle::FREE_MIN;
use crate::txn::store::{Store, StoreEvent};
use outrider_hal::{BlockOp, BlockRequest, Completion, Instant, IoError, Tag};
use std::boxed::Box;
use std::collections::BTreeMap;
use std::vec::Vec;
use zerocopy::IntoBytes;

const BLOCKS: u64 = 1 << 14;
const JOB: RequestId = RequestId { index: 0, generation: 0 };
const REQUEST: RequestId = RequestId { index: 1, generation: 0 };
const MERGE: RequestId = RequestId { index: 2, generation: 0 };
const PLAN: RequestId = RequestId { index: 3, generation: 0 };
const TAG_MERGE: Tag = Tag(Store::TAGS);

fn volume() -> Super {
    Super::new(&Identity { blocks: BLOCKS, ..identity() }).unwrap()
}

fn limits() -> ServerLimits {
    let merging = Policy { level_0_runs: 4, level_0_blocks: 40, small_blocks: 4, fanout: 2 };
    ServerLimits { merging, run_blocks: 6, ..ServerLimits::for_clients(1) }
}

struct Rig {
    store: Store<'static>,
    planner: Planner<'static>,
    merger: Merger<'static>,
    members: Members<'static>,
    pins: Pins<'static>,
    /// What chooses, and the merge.
    jobs: [Job; 2],
    scratch: Scratch,
    disk: BTreeMap<u64, Block>,
    flying: Vec<BlockRequest<'static>>,
    rng: Rng,
    model: BTreeMap<KeyBytes, Vec<u8>>,
    /// One transfer of a merge in so many fails. 0: none.
    errors: u64,
    woken: bool,
    now: Instant,
}

/// A job's request.
struct Job {
    request: RequestId,
    pins: Pins<'static>,
    /// It can run.
    ready: bool,
    joined: Option<CommitNo>,
}

impl Job {
    fn new(request: RequestId, limits: &ServerLimits) -> Job {
        let mut pins = carve(|arena| Pins::carve(arena, &limits.cache));
        pins.begin(request);
        Job { request, pins, ready: false, joined: None }
    }
}

type Ran<T> = Result<T, Error>;

impl Rig {
    fn new(seed: u64) -> Rig {
        let limits = limits();
        let mut store = carve(|arena| Store::carve(arena, &limits.cache, &volume(), JOB));
        store.format();
        let mut rig = Rig {
            store,
            planner: carve(|arena| Planner::carve(arena, &limits)),
            merger: carve(|arena| Merger::carve(arena, &limits, &volume())),
            members: carve(|arena| Members::carve(arena, 1)),
            pins: carve(|arena| Pins::carve(arena, &limits.cache)),
            jobs: [Job::new(PLAN, &limits), Job::new(MERGE, &limits)],
            scratch: Scratch::default(),
            disk: BTreeMap::new(),
            flying: Vec::new(),
            rng: Rng(seed),
            model: BTreeMap::new(),
            errors: 0,
            woken: false,
            now: Instant(0),
        };
        rig.pins.begin(REQUEST);
        while rig.store.open_commit().is_none() {
            rig.turn();
        }
        rig
    }

    /// Lets the device, the store and the merge each do something.
    fn turn(&mut self) {
        self.flying.extend(std::iter::from_fn(|| self.store.poll_request()));
        self.flying.extend(std::iter::from_fn(|| self.merger.poll_request(TAG_MERGE)));
        if !self.flying.is_empty() {
            let at = self.rng.below(self.flying.len() as u64) as usize;
            let request = self.flying.swap_remove(at);
            self.transfer(request);
        }
        while self.store.step() == More::Yes {}
        while let Some(woken) = self.store.poll_wake() {
            self.woken |= woken == REQUEST;
            self.jobs.iter_mut().for_each(|job| job.ready |= woken == job.request);
        }
        match self.store.poll_event() {
            Some(StoreEvent::Durable(commit)) => {
                self.store.confirm(commit);
                for at in 0..2 {
                    if self.jobs[at].joined.is_some_and(|joined| joined <= commit) {
                        self.jobs[at].joined = None;
                        self.on_durable(at);
                    }
                }
            }
            Some(event) => panic!("{event:?}"),
            None => {}
        }
        if self.store.is_commit_wanted() || self.rng.one_in(20) {
            self.store.commit();
        }
        self.step_merger();
    }

    fn transfer(&mut self, request: BlockRequest<'static>) {
        let BlockRequest { tag, mut op } = request;
        let of_merge = tag >= TAG_MERGE;
        let fails = self.errors > 0 && self.rng.one_in(self.errors);
        let result = match &mut op {
            // What the trees are made of must be readable, or there is nothing to test.
            BlockOp::Read(blkno, block) => {
                block.0 = self.disk.get(&blkno.0).map_or([0; 4096], |block| block.0);
                let of_run = block.0[4..8] == *b"ORri";
                if of_run && fails { Err(IoError::Device) } else { Ok(()) }
            }
            BlockOp::Write(blkno, block) => {
                self.disk.insert(blkno.0, (**block).clone());
                if of_merge && fails { Err(IoError::Device) } else { Ok(()) }
            }
            BlockOp::Flush => Ok(()),
        };
        let done = Completion { tag, op, result };
        match of_merge {
            true => self.merger.handle_completion(TAG_MERGE, done),
            false => self.store.handle_completion(done),
        }
    }

    fn step_merger(&mut self) {
        self.now = Instant(self.now.0 + 20_000_000);
        let level_runs = self.store.trees.level_runs;
        let due = self.planner.due(self.now, &level_runs, self.merger.inputs());
        if let Some(aim) = due
            && self.merger.is_resting()
        {
            self.planner.begin_own(0, aim);
            self.jobs[0].ready = true;
        }
        self.jobs[1].ready |= self.merger.wake().is_some();
        (0..2).for_each(|at| self.run_job(at));
    }

    fn run_job(&mut self, at: usize) {
        let job = &mut self.jobs[at];
        if job.joined.is_some() || !std::mem::take(&mut job.ready) {
            return;
        }
        let (store, pins) = (&mut self.store, &mut job.pins);
        let scratch = &mut self.scratch;
        let mut cx = Context { store, pins, scratch, volume_blocks: BLOCKS };
        let ran = match at {
            0 => self.planner.run(&mut cx, &mut self.members, self.merger.inputs()),
            _ => self.merger.run(&mut cx),
        };
        if at == 1 && matches!(ran, Ok(Progress::Done)) && self.merger.has_changed() {
            self.planner.on_own_change();
        }
        if ran.is_ok() {
            self.store.cache.release(&mut job.pins);
            job.pins.begin(job.request);
        }
        match ran {
            Ok(Progress::More) | Err(Halt::Stop(Stop::Wait(Wait::Again))) => job.ready = true,
            Ok(Progress::Done) => job.joined = self.store.open_commit(),
            Ok(Progress::Known) => self.on_durable(at),
            Ok(Progress::Waits) | Err(Halt::Stop(Stop::Wait(_))) => {}
            other => panic!("{other:?}"),
        }
    }

    fn on_durable(&mut self, at: usize) {
        if at == 0 {
            match self.planner.on_durable(self.now) {
                Next::Nothing => {}
                Next::Begin => {
                    self.merger.begin(1, self.planner.choice());
                    self.jobs[1].ready = true;
                }
                Next::Ask(..) => panic!("there is nobody to ask"),
            }
            return;
        }
        match self.merger.on_durable() {
            Outcome::GoesOn => self.jobs[1].ready = true,
            Outcome::Made => self.planner.on_own(self.now, None),
            Outcome::GivenUp(error) => self.planner.on_own(self.now, Some(error)),
        }
    }

    fn is_under_way(&self) -> bool {
        self.planner.is_at_work() || !self.merger.is_resting()
    }

    /// Runs a request to its end.
    fn run<T>(
        &mut self,
        mut request: impl FnMut(&mut Context<'_, 'static>) -> Result<T, Stop>,
    ) -> Ran<T> {
        for _ in 0..100_000 {
            let (store, pins) = (&mut self.store, &mut self.pins);
            let scratch = &mut self.scratch;
            let ran = request(&mut Context { store, pins, scratch, volume_blocks: BLOCKS });
            match ran {
                Err(Stop::Wait(Wait::Again)) => {}
                Err(Stop::Wait(_)) => {
                    while !std::mem::take(&mut self.woken) {
                        self.turn();
                    }
                }
                ended => {
                    self.store.cache.release(&mut self.pins);
                    self.pins.begin(REQUEST);
                    return ended.map_err(|stop| match stop {
                        Stop::Fail(error) => error,
                        Stop::Wait(_) => unreachable!("it was run again"),
                    });
                }
            }
        }
        panic!("a request that gets nowhere");
    }

    /// Takes space, from the start of what is free.
    fn take(&mut self, blocks: u64) -> Ran<Extent> {
        self.run(|cx| {
            let (trees, cache) = (&mut cx.store.trees, &mut cx.store.cache);
            let whole = trees.free.find(blocks, cache, cx.pins)?.ok_or(Error::NoSpace)?;
            let part = Extent::new(whole.start(), blocks.min(whole.len()));
            let mut plan = cache.plan();
            let take = trees.free.plan_take(whole, part, &mut plan, cache, cx.pins)?;
            let mut update = cache.reserve(&plan, cx.pins)?;
            Ok(trees.free.take(take, &mut update, cache))
        })
    }

    fn put_freed(&mut self, extents: &[Extent]) {
        self.run(|cx| {
            let (commit, part) = (cx.commit().0, cx.store.freed_lists());
            let (trees, cache) = (&mut cx.store.trees, &mut cx.store.cache);
            let key = FreedKey { commit: commit.into(), part: part.into() };
            let mut plan = cache.plan();
            let bytes = size_of_val(extents);
            trees.freed.plan_insert(key.as_bytes(), bytes, &mut plan, cache, cx.pins)?;
            let mut update = cache.reserve(&plan, cx.pins)?;
            trees.freed.put(key.as_bytes(), extents.as_bytes(), &mut update, cache);
            cx.store.next_freed_list();
            Ok(())
        })
        .unwrap();
    }

    /// Writes a run as a mount does, and records it.
    fn record(&mut self) {
        let extent = self.take(6).unwrap();
        let run = self.store.trees.next_run;
        self.store.trees.next_run = run.next();
        let near = self.rng.below(400);
        let mut items = BTreeMap::new();
        for _ in 0..10 + self.rng.below(40) {
            let key: KeyBytes = Key::inode(Ino(1 + near + self.rng.below(60))).into();
            let bytes = std::vec![self.rng.next() as u8; 40 + self.rng.below(60) as usize];
            items.insert(key, (!self.rng.one_in(4)).then_some(bytes));
        }
        let entry = self.build(&items, run, extent);
        let rest = Extent::new(entry.extent().end(), extent.len() - entry.blocks());
        if !rest.is_empty() {
            self.put_freed(&[rest]);
        }
        self.run(|cx| {
            let (trees, cache) = (&mut cx.store.trees, &mut cx.store.cache);
            let order = trees.next_seq.0 * RUNS_MAX as u64;
            let first = entry.range().unwrap().0;
            let key = ManifestKey { level: 0, first, order: order.into() };
            let mut plan = cache.plan();
            let bytes = size_of_val(&entry);
            trees.manifest.plan_insert(key.as_bytes(), bytes, &mut plan, cache, cx.pins)?;
            let mut update = cache.reserve(&plan, cx.pins)?;
            trees.manifest.put(key.as_bytes(), entry.as_bytes(), &mut update, cache);
            trees.next_seq = trees.next_seq.next();
            trees.level_runs[0] += 1;
            Ok(())
        })
        .unwrap();
        for (key, stored) in items {
            match stored {
                Some(bytes) => drop(self.model.insert(key, bytes)),
                None => drop(self.model.remove(&key)),
            }
        }
    }

    fn build(
        &mut self,
        items: &BTreeMap<KeyBytes, Option<Vec<u8>>>,
        run: RunId,
        extent: Extent,
    ) -> ManifestEntry {
        let fresh = || Box::leak(Box::new(Block::ZERO));
        let (of, filter_key) = (volume().volume(), volume().fields().name_key);
        let space = carve(BuildSpace::carve);
        let mut builder = RunBuilder::new(&of, &filter_key, run, extent, space, [fresh()]);
        for (key, stored) in items {
            let value = stored.as_deref().map_or(Value::Tombstone, Value::Bytes);
            while let Err(refused) = builder.push(key, &value) {
                assert_eq!(refused, Refused::Block, "it was to fit");
                if let Some(sealed) = builder.turn(fresh()) {
                    self.disk.insert(sealed.blkno.0, sealed.block.clone());
                }
            }
        }
        while let (Some(sealed), _) = builder.finish(fresh()) {
            self.disk.insert(sealed.blkno.0, sealed.block.clone());
        }
        builder.entry().0
    }

    /// All items there are.
    fn read(&mut self) -> BTreeMap<KeyBytes, Vec<u8>> {
        let window = WindowLimits { items: 64, bytes: 16 * ITEM_BYTES_MAX };
        let mut fill = carve(|arena| Fill::carve(arena, &window, &volume().fields().name_key));
        let mut found = BTreeMap::new();
        let mut left = Some(KeyRange::all());
        while let Some(range) = left {
            let manifest = Manifest::new(self.store.trees.manifest, BLOCKS);
            fill.begin(&manifest, &range.first, &range, Reach::Wide);
            self.run(|cx| {
                while fill.step(16, &mut cx.store.cache, cx.pins)? == More::Yes {}
                Ok(())
            })
            .unwrap();
            for index in 0..fill.window().len() {
                if let (key, Value::Bytes(bytes)) = fill.window().get(index) {
                    found.insert(*key, bytes.to_vec());
                }
            }
            let end = fill.window().range().last;
            let next = crate::lsm::range::after(&end).filter(|next| *next <= range.last);
            left = next.map(|first| KeyRange { first, last: range.last });
        }
        found
    }

    /// Turns for a minute, and until no merge is under way.
    fn settle(&mut self) {
        let end = self.now.0 + 60_000_000_000;
        for _ in 0..200_000 {
            self.turn();
            if self.now.0 > end && !self.is_under_way() {
                return;
            }
        }
        panic!("merging does not come to an end: {:?}", self.planner.counters());
    }

    /// Enters all freed extents that can be.
    fn enter_freed(&mut self) -> (u64, u64) {
        let (mut from, mut skipped, mut unreadable) = (super::jobs::FIRST_FREED, 0, 0);
        loop {
            let entered = self.run(|cx| match requests::enter_freed(cx, &mut from) {
                Ok(entered) => Ok(entered),
                Err(Halt::Stop(stop)) => Err(stop),
                Err(Halt::Refuse(error)) => panic!("{error}"),
            });
            match entered.unwrap() {
                Entered::Free | Entered::Kept => {}
                Entered::Skipped => skipped += 1,
                Entered::Unreadable => unreadable += 1,
                Entered::Nothing => return (skipped, unreadable),
            }
        }
    }
}

#[test]
fn merging_gets_on_whatever_fails_now_and_then() {
    let mut totals = super::MergeCounters::default();
    for seed in 0..8 {
        let mut rig = Rig::new(seed);
        rig.store.cache.inject((seed % 2 == 0).then(|| Chaos::new(seed, 9)));
        for _ in 0..150 {
            rig.errors = [0, 60, 12][rig.rng.below(3) as usize];
            rig.record();
            (0..rig.rng.below(300)).for_each(|_| rig.turn());
        }
        rig.errors = 0;
        rig.settle();
        rig.store.cache.inject(None);
        assert!(rig.read() == rig.model, "seed {seed}");
        assert!(rig.store.trees.quarantine.is_empty(), "seed {seed}: space was not given back");
        assert!(!limits().merging.is_due(&rig.store.trees.level_runs), "seed {seed}");
        let counters = rig.planner.counters();
        totals.merges += counters.merges;
        totals.moves += counters.moves;
        totals.failures += counters.failures;
        totals.blocks += rig.merger.blocks();
    }
    std::println!("{totals:?}");
    assert!(totals.merges > 150 && totals.moves > 5 && totals.failures > 15);
}

#[test]
fn without_space_nothing_is_merged_and_nobody_waits() {
    let mut rig = Rig::new(1);
    let space = rig.store.trees.free.free_blocks() - FREE_MIN - 30;
    let mut held = Vec::new();
    while held.iter().map(Extent::len).sum::<u64>() < space {
        held.push(rig.take(space).unwrap());
    }
    for _ in 0..12 {
        rig.record();
    }
    rig.settle();
    assert!(rig.planner.counters().failures > 0);
    assert!(rig.store.trees.quarantine.is_empty());
    let crowded = [u64::MAX; crate::format::root::LEVELS];
    assert!(!rig.planner.is_pressed(&crowded, false), "a merge that can't go on holds nobody back");
    assert!(rig.store.trees.level_runs[0] >= 4 && rig.read() == rig.model);
    for extents in held.chunks(LIST_MAX) {
        rig.put_freed(extents);
    }
    rig.enter_freed();
    rig.settle();
    assert!(rig.store.trees.level_runs[0] < 4 && rig.read() == rig.model);
}

#[test]
fn a_term_may_end_anywhere_in_a_merge() {
    let mut in_a_merge = 0;
    for turns in 0..60 {
        let mut rig = Rig::new(7);
        for _ in 0..5 {
            rig.record();
        }
        while !rig.is_under_way() {
            rig.turn();
        }
        (0..turns * 2).for_each(|_| rig.turn());
        in_a_merge += u32::from(rig.is_under_way());
        // What is with the device comes back in the next term at the latest.
        rig.merger.reset();
        rig.planner.reset();
        for job in &mut rig.jobs {
            (job.ready, job.joined) = (false, None);
            rig.store.cache.release(&mut job.pins);
            job.pins.begin(job.request);
        }
        rig.settle();
        assert!(rig.read() == rig.model, "after {turns}");
    }
    assert!(in_a_merge > 10);
}

#[test]
fn what_is_freed_twice_holds_nothing_up() {
    let mut rig = Rig::new(3);
    let taken: Vec<Extent> = (0..8).map(|_| rig.take(10).unwrap()).collect();
    let free = rig.store.trees.free.free_blocks();
    let outside = Extent::new(BlockNo(BLOCKS - 3), 9);
    rig.put_freed(&taken[..4]);
    rig.put_freed(&taken[2..6]);
    rig.put_freed(&[taken[7], outside]);
    // Bytes that are no list.
    let backwards = [taken[6], taken[5]];
    assert!(list(backwards.as_bytes()).is_err());
    rig.put_freed(&backwards);
    rig.put_freed(&taken[6..7]);
    let (skipped, unreadable) = rig.enter_freed();
    assert_eq!((skipped, unreadable), (3, 1));
    assert_eq!(rig.store.trees.free.free_blocks(), free + 80);
}

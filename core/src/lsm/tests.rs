//! Histories of runs and merges against a map, under faults of the cache and the device.

extern crate std;

mod heads;
mod sweeps;
mod turns;

use super::KeyRange;
use super::build::{BuildSpace, Refused, RunBuilder, blocks_for, filter_blocks};
use super::choose::{Choice, Chooser, Chosen, Field, PINS_PER_CHOOSE, Policy, move_down};
use super::manifest::{self, CHANGE_MAX, Change, Manifest, Rank, Run, pins_per_change};
use super::merge::{Merge, PINS_PER_MERGE, POOL_MAX, POOL_MIN, Progress};
use super::read::{Fill, PINS_PER_FILL, Reach, is_stale};
use super::window::{ITEM_BYTES_MAX, WindowLimits};
use crate::block::{Cache, Limits, Pins, RequestId};
use crate::btree::rig::{Disk, Op, Rig, Rng, Setup, VOLUME, carve};
use crate::btree::{Tree, TreeKind};
use crate::error::{Error, Stop};
use crate::format::block::{self, Magic};
use crate::format::key::{Key, KeyBytes};
use crate::format::records::ManifestEntry;
use crate::format::root::{Extent, LEVELS};
use crate::format::run::{SEGMENT_BLOCKS, Value, item_bytes};
use crate::format::{Block, BlockNo, Ino, RunId};
use crate::mutant::{Mutant, activate};
use crate::node::More;
use outrider_hal::{BlockOp, BlockRequest, Completion};
use std::boxed::Box;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::vec::Vec;

const KIND: TreeKind = TreeKind(3);
pub(crate) const FILTER_KEY: [u8; 16] = [9; 16];
/// Blocks below are the trees', the others are the runs'.
const RUNS_START: u64 = 4096;
pub(crate) const VOLUME_BLOCKS: u64 = 1 << 20;

/// What a key holds; None: a tombstone.
pub(crate) type Stored = Option<Vec<u8>>;
pub(crate) type Items = BTreeMap<KeyBytes, Stored>;
/// What there is: newest values.
pub(crate) type Model = BTreeMap<KeyBytes, Vec<u8>>;

#[derive(Clone)]
pub(crate) struct World {
    pub(crate) manifest: Tree,
    level_runs: [u64; LEVELS],
    pub(crate) model: Rc<Model>,
    pub(crate) next_order: u64,
    /// Space that merges have freed, from the first on.
    freed: Rc<Vec<Extent>>,
}

/// Everything the tests share with the requests that run in a rig.
pub(crate) struct Shared {
    /// Blocks to be written at once.
    writes: RefCell<Vec<(BlockNo, Block)>>,
    stale: Cell<u64>,
    fills: Cell<u64>,
    items: Cell<u64>,
    reads: Cell<u64>,
    space: RefCell<RunSpace>,
    busy: RefCell<Vec<RunId>>,
    /// Blocks of the extents that merges are given.
    pub(crate) segment: Cell<u64>,
    choosing: Cell<bool>,
    /// What is chosen next is a sweep, with this patience.
    sweep: Cell<Option<u64>>,
    pub(crate) chooser: RefCell<Chooser>,
    pub(crate) merges: Cell<u64>,
    merged_items: Cell<u64>,
    moves: Cell<u64>,
    joins: Cell<u64>,
    tails: Cell<u64>,
    abandoned: Cell<u64>,
}

fn add(to: &Cell<u64>, count: u64) {
    to.set(to.get() + count);
}

/// Space for runs: extents that are given back are reused first, so that old roots get stale.
struct RunSpace {
    next: u64,
    free: BTreeSet<(u64, u64)>,
    next_run: u64,
}

impl RunSpace {
    fn take(&mut self, blocks: u64) -> Extent {
        let fits = self.free.iter().copied().find(|&(_, len)| len >= blocks);
        let start = match fits {
            Some((start, len)) => {
                self.free.remove(&(start, len));
                if len > blocks {
                    self.free.insert((start + blocks, len - blocks));
                }
                start
            }
            None => {
                self.next += blocks;
                self.next - blocks
            }
        };
        Extent::new(BlockNo(start), blocks)
    }

    fn give(&mut self, extent: Extent) {
        if !extent.is_empty() {
            self.free.insert((extent.start().0, extent.len()));
        }
    }

    fn run(&mut self) -> RunId {
        self.next_run += 1;
        RunId(self.next_run)
    }
}

fn fresh() -> &'static mut Block {
    Box::leak(Box::new(Block([0xee; 4096])))
}

fn value(stored: &Stored) -> Value<'_> {
    stored.as_deref().map_or(Value::Tombstone, Value::Bytes)
}

/// Builds a run of these items, which must fit the extent, and writes it.
fn build(
    items: &Items,
    run: RunId,
    extent: Extent,
    mut write: impl FnMut(BlockNo, Block),
) -> ManifestEntry {
    let space = carve(BuildSpace::carve);
    let filter = (0..filter_blocks(items.len() as u64)).map(|_| fresh());
    let mut builder = RunBuilder::new(&VOLUME, &FILTER_KEY, run, extent, space, filter);
    for (key, stored) in items {
        while let Err(refused) = builder.push(key, &value(stored)) {
            assert_eq!(refused, Refused::Block, "it was to fit");
            if let Some(sealed) = builder.turn(fresh()) {
                write(sealed.blkno, sealed.block.clone());
            }
        }
    }
    while let (Some(sealed), _) = builder.finish(fresh()) {
        write(sealed.blkno, sealed.block.clone());
    }
    builder.entry().0
}

/// Keys of all sorts, close together.
pub(crate) fn key(n: u64) -> KeyBytes {
    let (owner, n) = (Ino(n / 16 % 24 + 1), n % 16);
    let key = match n {
        0 => Key::inode(owner),
        1..4 => Key::xattr(owner, n, 1, 0),
        4..8 => Key::dirent(owner, n, n + 1),
        8..13 => Key::readdir(owner, n),
        13 => Key::orphan(owner),
        14 => Key::meta_seq(crate::format::Seq(owner.0), owner),
        _ => Key::symlink(owner, 0),
    };
    key.into()
}

pub(crate) const KEYS: u64 = 16 * 24;

fn random_items(rng: &mut Rng, most: u64, value_max: u64) -> Items {
    let near = rng.one_in(2).then(|| rng.below(KEYS));
    let deletes = rng.one_in(3);
    let pick = |rng: &mut Rng, at| key(near.map_or_else(|| rng.below(KEYS), |near| near + at));
    (0..1 + rng.below(most))
        .map(|at| {
            let bytes = std::vec![rng.next() as u8; rng.below(value_max + 1) as usize];
            let gone = rng.one_in(if deletes { 2 } else { 5 });
            (pick(rng, at), (!gone).then_some(bytes))
        })
        .collect()
}

/// A request that adds a run to level 0.
fn record(items: Rc<Items>, entry: ManifestEntry) -> Op<World> {
    Box::new(move |world, cache, pins| {
        let runs = [Run::new(0, world.next_order, entry)];
        change(&Change { remove: &[], add: &runs }, world, cache, pins)?;
        let mut model = Model::clone(&world.model);
        for (key, stored) in &*items {
            match stored {
                Some(bytes) => drop(model.insert(*key, bytes.clone())),
                None => drop(model.remove(key)),
            }
        }
        world.model = Rc::new(model);
        world.next_order += 1;
        Ok(())
    })
}

/// A merge on its way.
enum Stage {
    Choosing,
    Moving(Box<(Run, Run)>),
    Merging,
    Changing,
}

/// A request that chooses what to merge, and merges it or gives up on the way.
pub(crate) fn compact(shared: Rc<Shared>, mut rng: Rng) -> Op<World> {
    let mut merge = carve(|arena| Merge::carve(arena, &VOLUME, &FILTER_KEY));
    for _ in 0..POOL_MIN as u64 + rng.below((POOL_MAX - POOL_MIN + 1) as u64) {
        merge.give_block(fresh());
    }
    let patience = if rng.one_in(3) { 1 + rng.below(40) } else { u64::MAX };
    let (mut steps, mut stage, mut started, mut choice) = (0, Stage::Choosing, false, None);
    Box::new(move |world, cache, pins| {
        loop {
            match stage {
                Stage::Choosing => {
                    if !started && shared.choosing.replace(true) {
                        return Ok(());
                    }
                    let manifest = Manifest::new(world.manifest, VOLUME_BLOCKS);
                    let busy = shared.busy.borrow().clone();
                    let (level_runs, merges) = (&world.level_runs, shared.merges.get());
                    let (manifest, busy, next_order) = (&manifest, &busy[..], world.next_order);
                    let pending = &[0; LEVELS];
                    let field = Field { manifest, level_runs, busy, pending, merges, next_order };
                    let mut chooser = shared.chooser.borrow_mut();
                    if !core::mem::replace(&mut started, true) {
                        chooser.aim(shared.sweep.get());
                        chooser.begin(&field);
                    }
                    match chooser.step(&field, cache, pins)? {
                        Chosen::Step => continue,
                        Chosen::Nothing => {
                            shared.choosing.set(false);
                            return Ok(());
                        }
                        Chosen::Choice => {}
                    }
                    choice = Some(chooser.choice().clone());
                    stage = start(chooser.choice(), &mut merge, &shared);
                }
                Stage::Moving(ref runs) => {
                    let (from, to) = ([runs.0], [runs.1]);
                    change(&move_down(&from, &to), world, cache, pins)?;
                    shared.finish(&from);
                    add(&shared.moves, 1);
                    return Ok(());
                }
                Stage::Merging => {
                    steps += 1;
                    let progress = match steps > patience {
                        false => merge.step(1 + rng.below(50) as u32, cache, pins)?,
                        true => Progress::Space,
                    };
                    match progress {
                        Progress::Step => {}
                        Progress::Write => {
                            let sealed = merge.poll_write().unwrap();
                            let block = sealed.block.clone();
                            shared.writes.borrow_mut().push((sealed.blkno, block));
                            merge.give_block(sealed.block);
                        }
                        Progress::Block => panic!("the memory is enough"),
                        Progress::Space => {
                            let mut space = shared.space.borrow_mut();
                            let (extent, run) = (space.take(shared.segment.get()), space.run());
                            if steps > patience || merge.give_space(run, extent).is_err() {
                                space.give(extent);
                                drop(space);
                                give_up(&mut merge, &shared);
                                return Ok(());
                            }
                        }
                        Progress::Change => stage = Stage::Changing,
                    }
                }
                Stage::Changing => {
                    let done = merge.change();
                    let choice = choice.as_ref().unwrap();
                    assert_eq!(choice.check_outputs(done.add), Ok(()));
                    change(&done, world, cache, pins)?;
                    let mut freed = Vec::clone(&world.freed);
                    freed.extend(done.remove.iter().map(|run| run.entry.extent()));
                    freed.extend(merge.unused());
                    world.freed = Rc::new(freed);
                    let items = done.remove.iter().map(|run| u64::from(run.entry.items.get()));
                    add(&shared.merged_items, items.sum());
                    add(&shared.tails, done.add.windows(2).any(|w| w[0].level > w[1].level).into());
                    shared.finish(done.remove);
                    return Ok(());
                }
            }
        }
    })
}

fn start(choice: &Choice, merge: &mut Merge<'_>, shared: &Shared) -> Stage {
    shared.choosing.set(false);
    let mut busy = shared.busy.borrow_mut();
    for run in choice.runs() {
        assert!(!busy.contains(&run.id()), "chosen twice");
        busy.push(run.id());
    }
    merge.begin(choice);
    add(&shared.joins, (choice.target == choice.uppers[0].level).into());
    assert_eq!(choice.check(), Ok(()));
    let moved = choice.moved().map(|to| Box::new((choice.uppers[0], to)));
    moved.map_or(Stage::Merging, Stage::Moving)
}

fn give_up(merge: &mut Merge<'_>, shared: &Shared) {
    merge.abandon();
    add(&shared.abandoned, 1);
    merge.unused().for_each(|extent| shared.space.borrow_mut().give(extent));
    let inputs: Vec<RunId> = merge.inputs().iter().map(Run::id).collect();
    shared.busy.borrow_mut().retain(|run| !inputs.contains(run));
}

fn change(
    change: &Change<'_>,
    world: &mut World,
    cache: &mut Cache<'_>,
    pins: &mut Pins<'_>,
) -> Result<(), Stop> {
    let mut plan = cache.plan();
    change.plan(&world.manifest, &mut plan, cache, pins)?;
    let mut update = cache.reserve(&plan, pins)?;
    change.apply(&mut world.manifest, &mut world.level_runs, &mut update, cache);
    Ok(())
}

impl Shared {
    fn new() -> Shared {
        Shared {
            writes: RefCell::default(),
            stale: Cell::default(),
            fills: Cell::default(),
            items: Cell::default(),
            reads: Cell::default(),
            space: RefCell::new(RunSpace { next: RUNS_START, free: BTreeSet::new(), next_run: 0 }),
            busy: RefCell::default(),
            segment: Cell::new(SEGMENT_BLOCKS),
            choosing: Cell::default(),
            sweep: Cell::default(),
            chooser: RefCell::new(Chooser::new(Policy::STANDARD)),
            merges: Cell::default(),
            merged_items: Cell::default(),
            moves: Cell::default(),
            joins: Cell::default(),
            tails: Cell::default(),
            abandoned: Cell::default(),
        }
    }

    fn finish(&self, inputs: &[Run]) {
        self.busy.borrow_mut().retain(|run| inputs.iter().all(|input| input.id() != *run));
        add(&self.merges, 1);
    }
}

/// What a finished fill says must be what the model says.
fn compare(fill: &Fill<'_>, model: &Model, key: &KeyBytes, within: &KeyRange) {
    let window = fill.window();
    let range = window.range();
    assert!(range.contains(key) && within.first <= range.first && range.last <= within.last);
    let expected: Vec<_> = model.range(range.first..=range.last).collect();
    let found: Vec<_> = (0..window.len())
        .map(|index| match window.get(index) {
            (key, Value::Bytes(bytes)) => (*key, bytes.to_vec()),
            (_, Value::Tombstone) => panic!("a tombstone is left"),
        })
        .collect();
    assert_eq!(expected.len(), found.len(), "in {range:?}");
    assert!(expected.iter().zip(&found).all(|(a, b)| *a.0 == b.0 && *a.1 == b.1));
    assert_eq!(fill.found(), model.get(key).map(|bytes| &bytes[..]));
}

/// What is read: around a key, or the first item of a range.
#[derive(Clone, Copy)]
enum What {
    Around(KeyBytes, KeyRange, Reach),
    First(KeyRange),
}

/// A request that reads from a root, which may be out of date.
fn read(
    (root, model): (Manifest, Rc<Model>),
    what: What,
    limits: WindowLimits,
    budget: u32,
    shared: Rc<Shared>,
) -> Op<World> {
    let mut fill = carve(|arena| Fill::carve(arena, &limits, &FILTER_KEY));
    match what {
        What::Around(key, range, reach) => fill.begin(&root, &key, &range, reach),
        What::First(range) => fill.begin_search(&root, &range),
    }
    Box::new(move |_, cache: &mut Cache<'static>, pins: &mut Pins<'static>| {
        loop {
            match fill.step(budget, cache, pins) {
                Ok(More::Yes) => {}
                Ok(More::No) => break,
                Err(Stop::Fail(error)) if is_stale(&error) => {
                    add(&shared.stale, 1);
                    return Ok(());
                }
                Err(stop) => return Err(stop),
            }
        }
        match what {
            What::Around(key, range, _) => compare(&fill, &model, &key, &range),
            What::First(range) => {
                let expected = model.range(range.first..=range.last).next();
                assert_eq!(fill.first(), expected.map(|(key, bytes)| (key, &bytes[..])));
                compare(&fill, &model, &fill.window().key().clone(), &range);
            }
        }
        add(&shared.fills, 1);
        add(&shared.items, fill.window().len() as u64);
        add(&shared.reads, fill.reads().into());
        Ok(())
    })
}

fn point(n: u64) -> What {
    What::Around(key(n), KeyRange { first: key(n), last: key(n) }, Reach::Point)
}

fn random_read(rng: &mut Rng) -> What {
    let at = key(rng.below(KEYS));
    let reach = if rng.one_in(2) { Reach::Point } else { Reach::Wide };
    let others = [key(rng.below(KEYS)), key(rng.below(KEYS))];
    let first = at.min(others[0]).min(others[1]);
    let last = at.max(others[0]).max(others[1]);
    match rng.below(4) {
        0 => What::Around(at, KeyRange { first: at, last: at }, reach),
        1 => What::Around(at, KeyRange::all(), reach),
        2 => What::Around(at, KeyRange { first, last }, reach),
        _ => What::First(KeyRange { first: at, last }),
    }
}

const SMALLEST: WindowLimits = WindowLimits { items: 1, bytes: ITEM_BYTES_MAX };

fn random_window(rng: &mut Rng) -> WindowLimits {
    match rng.below(3) {
        0 => WindowLimits { items: 1 + rng.below(6) as u32, bytes: ITEM_BYTES_MAX },
        1 => WindowLimits { items: 30, bytes: 4000 },
        _ => WindowLimits { items: 256, bytes: 1 << 16 },
    }
}

/// The trees of these tests have three levels at the most.
fn pins_of(updates: u32) -> u32 {
    assert!(updates * 7 < pins_per_change(updates));
    updates * 7
}

fn setup(rng: &mut Rng, updates: u32) -> Setup {
    let tight = rng.one_in(2);
    let mut slack = || if tight { 0 } else { rng.below(60) as u32 };
    let pins = PINS_PER_FILL.max(PINS_PER_MERGE).max(PINS_PER_CHOOSE);
    let pins = pins.max(pins_of(updates)) + slack();
    let creates = updates * 4;
    let dirty = pins + creates + slack();
    let frames = dirty + pins + slack();
    let requests = 1 + rng.below(12) as u32;
    let limits = Limits { frames, dirty, pins, creates, requests, fresh: 4, freed: pins };
    Setup {
        limits,
        blocks: RUNS_START - 1,
        commit_blocks: u64::from(pins + creates) + rng.below(30),
        chaos: rng.one_in(2),
        read_errors: 0,
        write_errors: 0,
        hostile: false,
    }
}

pub(crate) struct Story {
    pub(crate) rig: Rig<World>,
    pub(crate) shared: Rc<Shared>,
    /// Extents that merges have freed and that have been given back.
    freed: usize,
    /// A root that readers may still have.
    old: (Manifest, Rc<Model>),
    names: u64,
}

impl Story {
    pub(crate) fn new(seed: u64, updates: u32) -> Story {
        let mut rng = Rng(seed);
        let world = World {
            manifest: Tree::empty(KIND),
            level_runs: [0; LEVELS],
            model: Rc::default(),
            next_order: 1,
            freed: Rc::default(),
        };
        Story {
            rig: Rig::new(setup(&mut rng, updates), world, rng.next()),
            shared: Rc::new(Shared::new()),
            freed: 0,
            old: (Manifest::new(Tree::empty(KIND), VOLUME_BLOCKS), Rc::default()),
            names: 0,
        }
    }

    pub(crate) fn run(&mut self, mut op: Op<World>) {
        self.names += 1;
        while let Some(back) = self.rig.offer(self.names, op) {
            op = back;
            self.turn();
        }
    }

    pub(crate) fn turn(&mut self) {
        self.rig.turn();
        self.turn_over();
    }

    /// Takes note of what requests have left behind.
    fn turn_over(&mut self) {
        for (blkno, block) in self.shared.writes.borrow_mut().drain(..) {
            self.rig.disk.0.insert(blkno.0, block);
        }
        // What a durable commit has freed is free.
        let freed = self.rig.durable.world.freed.clone();
        for extent in &freed[self.freed..] {
            self.shared.space.borrow_mut().give(*extent);
        }
        self.freed = freed.len();
        while let Some((_, result)) = self.rig.finished.pop_front() {
            assert_eq!(result, Ok(()));
        }
    }

    pub(crate) fn settle(&mut self) {
        while !self.rig.is_idle() {
            self.turn();
        }
    }

    pub(crate) fn commit(&mut self) {
        if self.rig.rng.one_in(2) {
            self.settle();
        }
        let number = self.rig.durable.number;
        self.rig.start_commit();
        while self.rig.durable.number == number {
            self.turn();
        }
        self.rig.start_commit();
        while self.rig.durable.number < number + 2 {
            self.turn();
        }
    }

    pub(crate) fn record(&mut self, items: Items) {
        let mut space = self.shared.space.borrow_mut();
        let bytes = items.values().map(|stored| item_bytes(&value(stored)) as u64).sum();
        let blocks = blocks_for(items.len() as u64, bytes).unwrap();
        let (extent, run) = (space.take(blocks), space.run());
        drop(space);
        let disk = &mut self.rig.disk.0;
        let entry = build(&items, run, extent, |blkno, block| {
            disk.insert(blkno.0, block);
        });
        let used = entry.blocks();
        let rest = Extent::new(extent.start().plus(used), extent.len() - used);
        self.shared.space.borrow_mut().give(rest);
        self.run(record(Rc::new(items), entry));
    }

    fn root(&self) -> (Manifest, Rc<Model>) {
        let durable = &self.rig.durable.world;
        (Manifest::new(durable.manifest, VOLUME_BLOCKS), durable.model.clone())
    }

    /// Reads from the durable root, or from one that was so once.
    fn read(&mut self, what: What, limits: WindowLimits) {
        let rng = &mut self.rig.rng;
        let (outdated, renewed) = (rng.one_in(4), rng.one_in(20));
        let budget = 1 + rng.below(20) as u32;
        if renewed {
            self.old = self.root();
        }
        let root = if outdated { self.old.clone() } else { self.root() };
        self.run(read(root, what, limits, budget, self.shared.clone()));
    }
}

/// Walks the manifest: the runs there are, by level. Levels below 0 must be in order.
fn census(story: &mut Story) -> Vec<Run> {
    let found = Rc::new(RefCell::new(Vec::<Run>::new()));
    let runs = found.clone();
    let world = story.rig.world.clone();
    let manifest = Manifest::new(world.manifest, VOLUME_BLOCKS);
    story.run(Box::new(move |_, cache, pins| {
        loop {
            let start = manifest::key(0, &Rank { order: 0, first: Key::MIN.into() });
            let last = found.borrow().last().map(Run::key);
            let from = last.map_or(start, |last| manifest::key_after(&last).unwrap());
            match manifest.next(&from, cache, pins)? {
                Some(run) => found.borrow_mut().push(run),
                None => return Ok(()),
            }
            pins.restart();
            cache.drop_leftovers(pins);
        }
    }));
    story.settle();
    let runs = runs.borrow().clone();
    for pair in runs.windows(2).filter(|pair| pair[0].level == pair[1].level) {
        assert!(pair[0].level == 0 || pair[0].range().last < pair[1].range().first);
    }
    for level in 0..LEVELS {
        let count = runs.iter().filter(|run| usize::from(run.level) == level).count();
        assert_eq!(count as u64, world.level_runs[level]);
    }
    runs
}

pub(crate) fn random_policy(rng: &mut Rng) -> Policy {
    if rng.one_in(4) {
        return Policy::STANDARD;
    }
    Policy {
        level_0_runs: 1 + rng.below(8),
        level_0_blocks: 1 + rng.below(60),
        small_blocks: rng.below(12),
        fanout: 2 + rng.below(3),
    }
}

#[derive(Default, Debug)]
struct Totals {
    runs: u64,
    fills: u64,
    items: u64,
    reads: u64,
    stale: u64,
    merges: u64,
    merged_items: u64,
    moves: u64,
    joins: u64,
    tails: u64,
    abandoned: u64,
    deepest: u8,
    commits: u64,
}

/// Records, merges and reads in any order; every read must be right.
fn tell(seed: u64, totals: &mut Totals) {
    let mut story = Story::new(seed, CHANGE_MAX as u32);
    let mut rng = Rng(!seed);
    let value_max = [0, 60, 512, 512][rng.below(4) as usize];
    story.shared.segment.set([3, 4, 5, 9, SEGMENT_BLOCKS][rng.below(5) as usize]);
    *story.shared.chooser.borrow_mut() = Chooser::new(random_policy(&mut rng));
    let items_max = [4, 20, 60][rng.below(3) as usize];
    let (records, merges) = (2 + rng.below(4), 2 + rng.below(12));
    for _ in 0..150 + rng.below(200) {
        if rng.one_in(records) {
            let items = random_items(&mut rng, items_max, value_max);
            story.record(items);
            totals.runs += 1;
        } else if rng.one_in(merges) {
            let sweep = rng.one_in(4).then(|| 1 + rng.below(64));
            story.shared.sweep.set(sweep);
            let op = compact(story.shared.clone(), Rng(rng.next()));
            story.run(op);
        } else {
            story.read(random_read(&mut rng), random_window(&mut rng));
        }
        if rng.one_in(8) {
            story.commit();
        }
    }
    story.settle();
    story.commit();
    let deepest = census(&mut story).iter().map(|run| run.level).max();
    for n in 0..KEYS {
        story.read(point(n), SMALLEST);
    }
    story.settle();
    let shared = &story.shared;
    totals.fills += shared.fills.get();
    totals.items += shared.items.get();
    totals.reads += shared.reads.get();
    totals.stale += shared.stale.get();
    totals.merges += shared.merges.get();
    totals.merged_items += shared.merged_items.get();
    totals.moves += shared.moves.get();
    totals.joins += shared.joins.get();
    totals.tails += shared.tails.get();
    totals.abandoned += shared.abandoned.get();
    totals.deepest = totals.deepest.max(deepest.unwrap_or(0));
    totals.commits += story.rig.counts.commits;
}

#[test]
fn whatever_is_merged_reads_equal_the_model() {
    let mut totals = Totals::default();
    for seed in 0..60 {
        tell(seed, &mut totals);
    }
    std::println!("{totals:?}");
    assert!(totals.fills > 10_000 && totals.items > 50_000 && totals.stale > 10);
    assert!(totals.joins > 10 && totals.moves > 10);
    assert!(totals.merges > 100 && totals.abandoned > 10 && totals.deepest >= 2);
}

#[test]
fn level_0_out_of_order_is_noticed() {
    activate(Some(Mutant::LevelZeroOutOfOrder));
    let noticed = (0..10).position(|seed| {
        let story = std::panic::AssertUnwindSafe(|| tell(seed, &mut Totals::default()));
        std::panic::catch_unwind(story).is_err()
    });
    activate(None);
    assert!(noticed.is_some(), "nothing noticed that newer runs went below older ones");
}

/// Merges until there is nothing to merge.
fn merge_all(story: &mut Story) {
    for round in 0.. {
        let merges = story.shared.merges.get();
        let abandoned = story.shared.abandoned.get();
        let op = compact(story.shared.clone(), Rng(round));
        story.run(op);
        story.settle();
        if (story.shared.merges.get(), story.shared.abandoned.get()) == (merges, abandoned) {
            return;
        }
        assert!(round < 1000, "merging doesn't end");
    }
}

#[test]
fn merging_comes_to_an_end() {
    for seed in 0..10 {
        let mut story = Story::new(seed, CHANGE_MAX as u32);
        let mut rng = Rng(!seed);
        for _ in 0..120 {
            story.record(random_items(&mut rng, 60, 300));
        }
        story.settle();
        merge_all(&mut story);
        let runs = census(&mut story);
        assert!(runs.iter().filter(|run| run.level == 0).count() < 8);
        assert!(runs.iter().filter(|run| run.level == 1).count() <= 10);
        story.commit();
        for n in 0..KEYS {
            story.read(point(n), SMALLEST);
        }
        story.settle();
    }
}

#[test]
fn a_wide_run_goes_down_in_parts() {
    let mut story = Story::new(2, CHANGE_MAX as u32);
    // More runs in level 1 than one merge takes.
    let policy = Policy { level_0_runs: 1, fanout: 10, ..Policy::STANDARD };
    *story.shared.chooser.borrow_mut() = Chooser::new(policy);
    story.shared.segment.set(5);
    let mut rng = Rng(2);
    for byte in 0..6 {
        let stored = |rng: &mut Rng| (!rng.one_in(6)).then(|| std::vec![byte; 500]);
        story.record((0..KEYS).map(|n| (key(n), stored(&mut rng))).collect());
        story.settle();
        merge_all(&mut story);
        story.commit();
        for n in 0..KEYS {
            story.read(point(n), SMALLEST);
        }
        story.settle();
    }
    let runs = census(&mut story);
    let (merges, tails) = (story.shared.merges.get(), story.shared.tails.get());
    std::println!("{merges} merges, {tails} of them in part; {:?}", story.rig.world.level_runs);
    assert!(tails > 3 && runs.iter().all(|run| run.level > 0));
}

#[test]
fn all_deleted_leaves_nothing() {
    let mut story = Story::new(5, CHANGE_MAX as u32);
    let all = |stored: Stored| (0..KEYS).map(|n| (key(n), stored.clone())).collect::<Items>();
    story.record(all(Some(std::vec![1; 100])));
    for _ in 0..8 {
        story.record(all(None));
    }
    story.settle();
    merge_all(&mut story);
    // What is left of level 0 is below its threshold; below it nothing is.
    let runs = census(&mut story);
    assert!(runs.iter().all(|run| run.level == 0), "{:?}", story.rig.world.level_runs);
}

#[test]
fn a_cold_key_costs_few_reads_whatever_level_0_holds() {
    let mut rng = Rng(3);
    let mut story = Story::new(8, 1);
    let roomy = Limits { frames: 4000, dirty: 500, ..story.rig.setup.limits };
    story.rig = Rig::new(
        Setup { limits: roomy, chaos: false, ..story.rig.setup },
        story.rig.world.clone(),
        1,
    );
    // Each run has keys of every owner's, but few of each; all ranges overlap.
    for _ in 0..200 {
        story.record((0..6).map(|_| (key(rng.below(KEYS)), Some(std::vec![7; 300]))).collect());
    }
    story.settle();
    story.commit();
    // What isn't there warms the manifest and the filters, and nothing else.
    for owner in 0..24 {
        let none = [Key::xattr(Ino(owner), 999, 1, 0), Key::orphan(Ino(1000 + owner))];
        for none in none.map(KeyBytes::from) {
            let range = KeyRange { first: none, last: none };
            story.read(What::Around(none, range, Reach::Point), SMALLEST);
            story.settle();
        }
    }
    let cold = story.shared.reads.get();
    let (mut most, mut sum) = (0, 0);
    // Names: of other items filters know only whose they are, and here each owner is in many runs.
    for n in (0..KEYS).filter(|n| (1..8).contains(&(n % 16))) {
        let before = story.shared.reads.get();
        story.read(point(n), SMALLEST);
        story.settle();
        let reads = story.shared.reads.get() - before;
        (most, sum) = (most.max(reads), sum + reads);
    }
    std::println!("the first waits {cold} times, the others {sum} in {KEYS}, {most} at the most");
    assert!(cold > 100 && sum < 2 * KEYS && most < 12);
}

/// Changes one block of a run or of the manifest. Returns its address.
fn harm(story: &mut Story, runs: &[Run], rng: &mut Rng) -> BlockNo {
    let run = &runs[rng.below(runs.len() as u64) as usize];
    let extent = run.entry.extent();
    let blkno = extent.start().plus(rng.below(extent.len()));
    let disk = &mut story.rig.disk;
    let mut block = disk.read(blkno);
    match rng.below(3) {
        0 => block.0[rng.below(4096) as usize] ^= 1 << rng.below(8),
        1 => block = disk.read(extent.start().plus(rng.below(extent.len()))),
        _ => block = Block::ZERO,
    }
    disk.0.insert(blkno.0, block);
    blkno
}

#[test]
fn harm_is_reported_with_its_address() {
    let (mut reported, mut right) = (0, 0);
    for seed in 0..40 {
        let mut rng = Rng(seed);
        let mut story = Story::new(seed, CHANGE_MAX as u32);
        for _ in 0..12 {
            story.record(random_items(&mut rng, 80, 512));
        }
        story.settle();
        if rng.one_in(2) {
            merge_all(&mut story);
        }
        story.commit();
        let runs = census(&mut story);
        let blkno = harm(&mut story, &runs, &mut rng);
        let (setup, durable) = (story.rig.setup, story.rig.durable.clone());
        let mut rig = Rig::open(setup, story.rig.disk.clone(), durable, seed);
        let root = story.root();
        for n in 0..KEYS {
            let mut fill = carve(|arena| Fill::carve(arena, &SMALLEST, &FILTER_KEY));
            let (at, model) = (key(n), root.1.clone());
            fill.begin(&root.0, &at, &KeyRange { first: at, last: at }, Reach::Point);
            let op: Op<World> = Box::new(move |_, cache, pins| {
                while fill.step(10, cache, pins)? == More::Yes {}
                compare(&fill, &model, &at, &KeyRange { first: at, last: at });
                Ok(())
            });
            assert!(rig.submit(n, op));
            rig.settle();
            match rig.finished.pop_front().unwrap().1 {
                Ok(()) => right += 1,
                Err(Error::Corrupt { blkno: of, .. }) => {
                    assert_eq!(of, blkno);
                    reported += 1;
                }
                Err(error) => panic!("{error:?}"),
            }
        }
    }
    std::println!("{reported} lookups reported the harm, {right} did not need the block");
    assert!(reported > 500 && right > 1000);
}

/// Changes some bytes of a block and seals it again: what whoever knows the volume's secret could
/// do.
fn forge(disk: &mut Disk, blkno: BlockNo, rng: &mut Rng) {
    let mut block = disk.read(blkno);
    let (magic, seq) = {
        let header = block::header(&block);
        let kinds = [Magic::RunItems, Magic::RunIndex, Magic::RunFilter, Magic::Btree];
        let magic = kinds.into_iter().find(|kind| *kind as u32 == header.magic.get());
        (magic.unwrap_or(Magic::RunItems), header.seq.get())
    };
    for _ in 0..1 + rng.below(4) {
        let span = [300, 4064][rng.below(2) as usize];
        let at = 32 + rng.below(span) as usize;
        block.0[at] = [0, 1, 255, rng.next() as u8][rng.below(4) as usize];
    }
    block::seal(&mut block, &VOLUME, magic, blkno, seq);
    disk.0.insert(blkno.0, block);
}

#[test]
fn forged_blocks_are_survived() {
    let (mut failed, mut done) = (0, 0);
    for seed in 0..60 {
        let mut rng = Rng(seed);
        let mut story = Story::new(seed, CHANGE_MAX as u32);
        story.shared.segment.set(9);
        for _ in 0..12 {
            story.record(random_items(&mut rng, 40, 200));
        }
        story.settle();
        if rng.one_in(2) {
            merge_all(&mut story);
        }
        for _ in 0..7 {
            story.record(random_items(&mut rng, 40, 200));
        }
        story.settle();
        story.commit();
        let runs = census(&mut story);
        let blocks: Vec<u64> = story.rig.disk.0.keys().copied().collect();
        for _ in 0..1 + rng.below(30) {
            let run = &runs[rng.below(runs.len() as u64) as usize].entry.extent();
            let of_run = run.start().plus(rng.below(run.len()));
            let any = BlockNo(blocks[rng.below(blocks.len() as u64) as usize]);
            forge(&mut story.rig.disk, if rng.one_in(3) { any } else { of_run }, &mut rng);
        }
        let (setup, durable) = (story.rig.setup, story.rig.durable.clone());
        let (root, mut names) = (story.root().0, 0);
        let mut rig = Rig::open(setup, story.rig.disk, durable, seed);
        let mut serve = |op: Op<World>| {
            names += 1;
            assert!(rig.submit(names, op));
            rig.settle();
            match rig.finished.pop_front().unwrap().1 {
                Ok(()) => done += 1,
                Err(_) => failed += 1,
            }
        };
        for _ in 0..60 {
            let limits = random_window(&mut rng);
            let mut fill = carve(|arena| Fill::carve(arena, &limits, &FILTER_KEY));
            match random_read(&mut rng) {
                What::Around(key, range, reach) => fill.begin(&root, &key, &range, reach),
                What::First(range) => fill.begin_search(&root, &range),
            }
            serve(Box::new(move |_, cache, pins| {
                while fill.step(10, cache, pins)? == More::Yes {}
                Ok(())
            }));
        }
        serve(merge_blindly(&runs, &mut rng));
        serve(choose_blindly(root, story.rig.world.level_runs));
    }
    std::println!("{failed} failed, {done} did not");
    assert!(failed > 300 && done > 300);
}

/// A request that merges all of level 0 with level 1, and forgets what comes out.
fn merge_blindly(runs: &[Run], rng: &mut Rng) -> Op<World> {
    let level = |level| runs.iter().filter(move |run| run.level == level).copied();
    let choice = Choice {
        uppers: level(0).take(8).collect(),
        lowers: level(1).take(8).collect(),
        target: 1,
        tail_after: rng.one_in(2).then(|| key(rng.below(KEYS))),
        drop_tombstones: rng.one_in(2),
    };
    let mut merge = carve(|arena| Merge::carve(arena, &VOLUME, &FILTER_KEY));
    (0..POOL_MIN).for_each(|_| merge.give_block(fresh()));
    merge.begin(&choice);
    let mut run = 1 << 20;
    Box::new(move |_, cache, pins| {
        loop {
            match merge.step(20, cache, pins)? {
                Progress::Step => {}
                Progress::Write => {
                    let sealed = merge.poll_write().unwrap();
                    merge.give_block(sealed.block);
                }
                Progress::Block => panic!("the memory is enough"),
                Progress::Space => {
                    run += 1;
                    let extent = Extent::new(BlockNo(run), SEGMENT_BLOCKS);
                    merge.give_space(RunId(run), extent).unwrap();
                }
                Progress::Change => return Ok(()),
            }
        }
    })
}

fn choose_blindly(manifest: Manifest, level_runs: [u64; LEVELS]) -> Op<World> {
    let mut chooser = Chooser::new(Policy::STANDARD);
    let mut started = false;
    Box::new(move |_, cache, pins| {
        let (manifest, level_runs) = (&manifest, &level_runs);
        let (busy, pending) = (&[][..], &[0; LEVELS]);
        let field = Field { manifest, level_runs, busy, pending, merges: 0, next_order: u64::MAX };
        if !core::mem::replace(&mut started, true) {
            chooser.begin(&field);
        }
        while chooser.step(&field, cache, pins)? == Chosen::Step {}
        Ok(())
    })
}

#[test]
fn the_largest_run_is_read_through_both_of_its_index_blocks() {
    let mut story = Story::new(4, 1);
    let stored = |n: u64| (!n.is_multiple_of(9)).then(|| std::vec![n as u8; 512]);
    let keys = (1..=1650).map(|n| KeyBytes::from(Key::inode(Ino(2 * n))));
    story.record(keys.enumerate().map(|(n, key)| (key, stored(n as u64))).collect());
    story.settle();
    story.commit();
    assert_eq!(census(&mut story)[0].entry.index_blocks.get(), 2);
    for n in 1..=3310 {
        let key = KeyBytes::from(Key::inode(Ino(n)));
        let what = match n % 3 {
            0 => What::Around(key, KeyRange { first: key, last: key }, Reach::Point),
            1 => What::Around(key, KeyRange::all(), Reach::Wide),
            _ => What::First(KeyRange { first: key, last: KeyRange::all().last }),
        };
        let limits = random_window(&mut story.rig.rng);
        let root = story.root();
        story.run(read(root, what, limits, 5, story.shared.clone()));
    }
    story.settle();
    assert_eq!((story.shared.fills.get(), story.shared.stale.get()), (3310, 0));
}

/// Three readers share a cache that only reads, and has no frame to spare.
#[test]
fn a_mount_reads_with_the_least_cache_there_can_be() {
    let mut rng = Rng(11);
    let mut story = Story::new(11, CHANGE_MAX as u32);
    for _ in 0..30 {
        story.record(random_items(&mut rng, 60, 300));
    }
    story.settle();
    merge_all(&mut story);
    for _ in 0..30 {
        story.record(random_items(&mut rng, 10, 300));
    }
    story.settle();
    story.commit();
    let (root, model) = story.root();
    let limits = Limits {
        frames: PINS_PER_FILL,
        dirty: 0,
        pins: PINS_PER_FILL,
        creates: 0,
        requests: 3,
        fresh: 0,
        freed: 0,
    };
    assert_eq!(limits.validate(), Ok(()));
    let mut cache = carve(|arena| Cache::carve(arena, &limits, VOLUME));
    let window = WindowLimits { items: 40, bytes: 8000 };
    let mut readers: Vec<_> = (0..3)
        .map(|index| {
            let mut pins = carve(|arena| Pins::carve(arena, &limits));
            pins.begin(RequestId { index, generation: 1 });
            let mut fill = carve(|arena| Fill::carve(arena, &window, &FILTER_KEY));
            let (at, all) = (key(rng.below(KEYS)), KeyRange::all());
            fill.begin(&root, &at, &all, Reach::Wide);
            (pins, fill, at, true)
        })
        .collect();
    let (mut fills, mut transfers) = (0, Vec::new());
    while fills < 300 {
        let (pins, fill, at, ready) = &mut readers[rng.below(3) as usize];
        if core::mem::take(ready) {
            match fill.step(3, &mut cache, pins) {
                Ok(More::Yes) => *ready = true,
                Ok(More::No) => {
                    compare(fill, &model, at, &KeyRange::all());
                    fills += 1;
                    cache.release(pins);
                    *at = key(rng.below(KEYS));
                    let reach = if rng.one_in(2) { Reach::Point } else { Reach::Wide };
                    fill.begin(&root, at, &KeyRange::all(), reach);
                    *ready = true;
                }
                Err(Stop::Wait(_)) => {}
                Err(Stop::Fail(error)) => panic!("{error:?}"),
            }
        }
        transfers.extend(core::iter::from_fn(|| cache.poll_transfer()));
        if !transfers.is_empty() && rng.one_in(2) {
            let at = rng.below(transfers.len() as u64) as usize;
            let BlockRequest { tag, op } = transfers.swap_remove(at);
            let BlockOp::Read(blkno, buffer) = op else { panic!("it only reads") };
            buffer.0.copy_from_slice(&story.rig.disk.read(blkno).0);
            let op = BlockOp::Read(blkno, buffer);
            cache.handle_completion(Completion { tag, op, result: Ok(()) });
        }
        while let Some(request) = cache.poll_wake() {
            readers[request.index as usize].3 = true;
        }
        cache.check();
        let stuck = transfers.is_empty() && readers.iter().all(|reader| !reader.3);
        assert!(!stuck, "everybody waits");
    }
}

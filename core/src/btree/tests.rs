//! Trees against a map, a simulated disk and malice.

extern crate std;

use super::node::{NodeMut, cost, fits};
use super::rig::{Counts, Disk, Durable, Op, Rig, Rng, Setup, VOLUME};
use super::{Above, CREATES_PER_UPDATE, Item, PINS_PER_UPDATE, Tree, TreeKind, UPDATES_MAX};
use crate::block::Limits;
use crate::error::{Corruption, Error, Stop};
use crate::format::block::{Magic, Promise, open, seal};
use crate::format::btree::{
    BlockRef, HEIGHT_MAX, KEY_BYTES_MAX, NODE_BYTES, Node, TreeRoot, VALUE_BYTES_MAX, parse,
};
use core::ops::Bound;
use outrider_hal::{Block, BlockNo};
use proptest::prelude::*;
use std::boxed::Box;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;
use std::vec::Vec;

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

#[derive(Clone)]
struct World {
    trees: Vec<Tree>,
    models: Vec<Model>,
}

impl World {
    fn new(trees: u8) -> World {
        World {
            trees: (0..trees).map(|kind| Tree::empty(TreeKind(kind + 1))).collect(),
            models: (0..trees).map(|_| Model::new()).collect(),
        }
    }
}

/// The n-th key: of any length, often sharing its beginning with others.
fn key(n: u64) -> Vec<u8> {
    let mut rng = Rng(n / 3);
    let len = 1 + rng.below(KEY_BYTES_MAX as u64 - 3) as usize;
    let mut key: Vec<u8> = (0..len).map(|_| b'a' + rng.below(3) as u8).collect();
    key.extend_from_slice(&[(n % 3) as u8, (n >> 8) as u8, n as u8]);
    key
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    Insert,
    Replace,
    Put,
    Delete,
}

#[derive(Clone, Debug)]
struct Update {
    tree: usize,
    what: What,
    key: Vec<u8>,
    value: Vec<u8>,
}

/// Checks what a plan says about an update against the model: whether it will be done.
fn expect_planned(update: &Update, model: &Model, result: Result<(), Stop>) -> Result<bool, Stop> {
    let held = model.contains_key(&update.key);
    let expected = match update.what {
        What::Insert if held => Err(Error::Exists),
        What::Replace | What::Delete if !held => Err(Error::NotFound),
        What::Insert | What::Replace | What::Delete | What::Put => Ok(()),
    };
    match (result, expected) {
        (Ok(()), Ok(())) => Ok(true),
        (Err(Stop::Fail(error)), Err(expected)) if error == expected => Ok(false),
        (Err(Stop::Wait(_) | Stop::Fail(Error::Io { .. } | Error::NoSpace)), _) => {
            result.map(|()| false)
        }
        wrong => panic!("{update:?}: {wrong:?}"),
    }
}

/// A request that changes the trees and the model alike.
fn updates(batch: Vec<Update>, order: u64) -> Op<World> {
    Box::new(move |world, cache, pins| {
        let mut plan = cache.plan();
        let mut todo = Vec::new();
        for update in &batch {
            let (tree, bytes) = (&world.trees[update.tree], update.value.len());
            let key = &update.key;
            let result = match update.what {
                What::Insert => tree.plan_insert(key, bytes, &mut plan, cache, pins),
                What::Replace => tree.plan_replace(key, bytes, &mut plan, cache, pins),
                What::Put => tree.plan_put(key, bytes, &mut plan, cache, pins),
                What::Delete => tree.plan_delete(key, &mut plan, cache, pins),
            };
            if expect_planned(update, &world.models[update.tree], result)? {
                todo.push(update);
            }
        }
        let mut update = cache.reserve(&plan, pins)?;
        Rng(order).shuffle(&mut todo);
        for Update { tree, what, key, value } in todo {
            if *what == What::Delete {
                world.trees[*tree].delete(key, &mut update, cache);
                world.models[*tree].remove(key);
            } else {
                world.trees[*tree].put(key, value, &mut update, cache);
                world.models[*tree].insert(key.clone(), value.clone());
            }
        }
        Ok(())
    })
}

fn owned(item: Item<'_>) -> (Vec<u8>, Vec<u8>) {
    (item.key.to_vec(), item.value.to_vec())
}

/// A request that looks at a key and its neighbours and compares them with the model.
fn reads(tree: usize, key: Vec<u8>) -> Op<World> {
    Box::new(move |world, cache, pins| {
        let (of, model) = (&world.trees[tree], &world.models[tree]);
        assert_eq!(of.lookup(&key, cache, pins)?, model.get(&key).map(Vec::as_slice));
        let pair = |(key, value): (&Vec<u8>, &Vec<u8>)| (key.clone(), value.clone());
        let next = of.next(&key, cache, pins)?.map(owned);
        assert_eq!(next, model.range(key.clone()..).next().map(pair));
        let here: Vec<_> = of.leaf_from(&key, cache, pins)?.map(owned).collect();
        assert!(here.first() == next.as_ref());
        assert!(model.range(key.clone()..).map(pair).take(here.len()).eq(here));
        let prev = of.prev(&key, cache, pins)?.map(owned);
        assert_eq!(prev, model.range(..=key.clone()).next_back().map(pair));
        let after = (Bound::Excluded(key.clone()), Bound::Unbounded);
        let after = model.range(after).next().map(|(key, _)| key.as_slice());
        let (at_or_below, above) = of.around(&key, cache, pins)?;
        assert_eq!(at_or_below.map(owned), prev);
        match above {
            Above::Item(above) => assert_eq!(Some(&above[..]), after),
            Above::Leaf(above) => {
                assert!(key < above.to_vec() && after.is_none_or(|after| *above <= *after));
            }
            Above::Nothing => assert_eq!(after, None),
        }
        Ok(())
    })
}

/// A job that goes over a whole tree and back again, restarting by key; others change it meanwhile.
fn scan(tree: usize) -> Op<World> {
    let (mut forward, mut at) = (true, Vec::new());
    Box::new(move |world, cache, pins| {
        let (of, model) = (&world.trees[tree], &world.models[tree]);
        let mark = pins.mark();
        loop {
            pins.drop_to(mark);
            let pair = |(key, value): (&Vec<u8>, &Vec<u8>)| (key.clone(), value.clone());
            if forward {
                let found = of.next(&at, cache, pins)?.map(owned);
                assert_eq!(found, model.range(at.clone()..).next().map(pair));
                match found {
                    Some((key, _)) => at = key.into_iter().chain([0]).collect(),
                    None => (forward, at) = (false, std::vec![0xff; KEY_BYTES_MAX]),
                }
            } else {
                let found = of.prev(&at, cache, pins)?.map(owned);
                assert_eq!(found, model.range(..=at.clone()).next_back().map(pair));
                match found {
                    Some((key, _)) => at = below(&key),
                    None => return Ok(()),
                }
            }
        }
    })
}

/// A key just below this one, among those that occur.
fn below(key: &[u8]) -> Vec<u8> {
    let mut below = key.to_vec();
    match below.pop() {
        Some(0) | None => below,
        Some(last) => {
            below.push(last - 1);
            below.resize(KEY_BYTES_MAX, 0xff);
            below
        }
    }
}

/// What a walk over the disk alone finds.
#[derive(Default)]
struct Census {
    blocks: BTreeSet<u64>,
    items: Model,
    leaves: usize,
    bytes: usize,
    underfull: usize,
}

fn census(disk: &Disk, tree: &Tree) -> Census {
    let mut census = Census::default();
    let TreeRoot { node, height, .. } = tree.root();
    if height > 0 {
        visit(disk, tree.kind(), node, height - 1, (None, None), &mut census);
    }
    census
}

type Bounds<'k> = (Option<&'k [u8]>, Option<&'k [u8]>);

fn visit(
    disk: &Disk,
    kind: TreeKind,
    at: BlockRef,
    level: u8,
    range: Bounds<'_>,
    census: &mut Census,
) {
    let block = disk.read(at.blkno());
    let promise = Promise { magic: Magic::Btree, blkno: at.blkno(), seq: Some(at.seq()) };
    assert_eq!(open(&block, &VOLUME, &promise), Ok(()));
    assert_eq!(parse(&block), Ok(()));
    assert!(census.blocks.insert(at.blkno().0), "referred to twice");
    let node = Node::new(&block);
    assert_eq!((node.kind(), node.level()), (kind.0, level));
    for index in 0..node.count() {
        let (key, value) = node.item(index);
        if level == 0 || index > 0 {
            assert!(range.0.is_none_or(|low| low <= key));
            assert!(range.1.is_none_or(|high| key < high));
        }
        if level == 0 {
            assert_eq!(census.items.insert(key.to_vec(), value.to_vec()), None);
        } else {
            let low = if index > 0 { Some(key) } else { range.0 };
            let high = (index + 1 < node.count()).then(|| node.key(index + 1)).or(range.1);
            visit(disk, kind, node.child(index), level - 1, (low, high), census);
        }
    }
    if level == 0 {
        census.leaves += 1;
        census.bytes += node.bytes_used();
        census.underfull += usize::from(node.bytes_used() < NODE_BYTES / 4);
    }
}

/// Everything that must hold of what a commit has left behind.
fn check_durable(disk: &Disk, durable: &Durable<World>, blocks: u64) {
    let mut seen = durable.free.clone();
    for (tree, model) in durable.world.trees.iter().zip(&durable.world.models) {
        let census = census(disk, tree);
        assert_eq!(&census.items, model);
        for blkno in census.blocks {
            assert!(seen.insert(blkno), "block {blkno} is in two places");
        }
    }
    assert!(seen.iter().copied().eq(1..=blocks), "a block is in no place");
}

fn limits(updates: u32, height: u32, slack: &mut dyn FnMut() -> u32, requests: u32) -> Limits {
    // A tree of this height needs less than the tallest one.
    let pins = (updates * (3 * height - 2)).max(2 * height) + slack();
    let creates = updates * (height + 1);
    let dirty = pins + creates + slack();
    let frames = dirty + pins + slack();
    Limits { frames, dirty, pins, creates, requests, fresh: 1 + slack(), freed: pins + slack() }
}

fn setup(rng: &mut Rng, updates: u32) -> Setup {
    let tight = rng.one_in(2);
    let requests = 1 + rng.below(16) as u32;
    let mut slack = || if tight { 0 } else { rng.below(40) as u32 };
    let limits = limits(updates, 3, &mut slack, requests);
    Setup {
        limits,
        blocks: 4000,
        commit_blocks: u64::from(limits.pins + limits.creates) + rng.below(40),
        chaos: rng.one_in(2),
        read_errors: 0,
        write_errors: if rng.one_in(3) { 20 } else { 0 },
        hostile: false,
    }
}

/// What kinds of things a run does, and how often: changes every few hundred operations.
struct Mood {
    keys: u64,
    deletes: u64,
    batch: u64,
    value_bytes: u64,
}

impl Mood {
    fn draw(rng: &mut Rng, updates: u32) -> Mood {
        Mood {
            keys: [5, 60, 700, 2500][rng.below(4) as usize],
            deletes: [10, 50, 90][rng.below(3) as usize],
            batch: 1 + rng.below(u64::from(updates)),
            value_bytes: [1, 30, 300, 897][rng.below(4) as usize],
        }
    }

    fn op(&self, trees: usize, rng: &mut Rng) -> Op<World> {
        let tree = rng.below(trees as u64) as usize;
        if rng.one_in(300) {
            return scan(tree);
        }
        if rng.one_in(4) {
            return reads(tree, key(rng.below(self.keys)));
        }
        let mut batch: Vec<Update> = Vec::new();
        let near = rng.one_in(2).then(|| rng.below(self.keys));
        for at in 0..1 + rng.below(self.batch) {
            let tree = if rng.one_in(3) { rng.below(trees as u64) as usize } else { tree };
            let key = key(near.map_or_else(|| rng.below(self.keys), |near| near + at));
            if batch.iter().any(|update| update.tree == tree && update.key == key) {
                continue;
            }
            let what = if rng.below(100) < self.deletes {
                What::Delete
            } else {
                [What::Insert, What::Replace, What::Put, What::Put][rng.below(4) as usize]
            };
            let value = std::vec![rng.next() as u8; rng.below(self.value_bytes) as usize];
            batch.push(Update { tree, what, key, value });
        }
        updates(batch, rng.next())
    }
}

fn story(seed: u64, ops: u64) -> Counts {
    let mut rng = Rng(seed);
    let updates = [1, 1, 2, 5, UPDATES_MAX][rng.below(5) as usize];
    let setup = setup(&mut rng, updates);
    let mut rig = Rig::new(setup, World::new(3), rng.next());
    let mut mood = Mood { keys: 2500, deletes: 5, batch: u64::from(updates), value_bytes: 897 };
    let mut submitted = 0;
    while submitted < ops {
        if rng.one_in(1500) {
            mood = Mood::draw(&mut rng, updates);
        }
        if rng.one_in(2) && rig.submit(submitted, mood.op(3, &mut rng)) {
            submitted += 1;
        }
        rig.turn();
        if let Some((name, result)) = rig.finished.pop_front() {
            assert!(matches!(result, Ok(()) | Err(Error::NoSpace)), "{name}: {result:?}");
        }
        if rng.one_in(6000) {
            let counts = rig.counts;
            let (disk, durable) = rig.crash();
            check_durable(&disk, &durable, setup.blocks);
            rig = Rig::open(setup, disk, durable, rng.next());
            rig.counts = counts;
        }
    }
    rig.settle();
    rig.commit();
    check_durable(&rig.disk, &rig.durable, setup.blocks);
    assert!(rig.world.models == rig.durable.world.models);
    rig.counts
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 40,
        failure_persistence: None,
        ..Default::default()
    })]

    /// Whatever the order of completions, commits and crashes: trees are what the model is.
    #[test]
    fn trees_equal_their_models(seed in any::<u64>()) {
        story(seed, 6000);
    }
}

/// The knobs of a story are worth something: each kind of wait was seen, and trees of three levels.
#[test]
fn stories_are_eventful() {
    let mut sum = Counts::default();
    for seed in 0..12 {
        let counts = story(seed, 6000);
        sum.waits_frame += counts.waits_frame;
        sum.waits_commit += counts.waits_commit;
        sum.waits_block += counts.waits_block;
        sum.commits += counts.commits;
        sum.wakes += counts.wakes;
    }
    assert!(sum.waits_frame > 100 && sum.waits_commit > 1000 && sum.waits_block > 1000, "{sum:?}");
    // Each wake-up answers one wait, and no wait is answered twice.
    assert!(sum.wakes <= sum.waits_frame + sum.waits_commit + sum.waits_block, "{sum:?}");
}

fn roomy(seed: u64) -> Setup {
    let (updates, mut rng) = (4, Rng(seed));
    let pins = updates * PINS_PER_UPDATE;
    let creates = updates * CREATES_PER_UPDATE;
    let dirty = pins + creates;
    let frames = dirty + pins;
    let limits = Limits { frames, dirty, pins, creates, requests: 4, fresh: 60, freed: pins };
    Setup {
        limits,
        blocks: 12_000,
        commit_blocks: u64::from(dirty) + 20,
        chaos: rng.one_in(2),
        read_errors: 0,
        write_errors: 0,
        hostile: false,
    }
}

/// Runs these operations, as many at once as there are requests.
fn run_all(rig: &mut Rig<World>, ops: impl IntoIterator<Item = Op<World>>) {
    for op in ops {
        let mut op = Some(op);
        while let Some(waiting) = op.take() {
            op = rig.offer(0, waiting);
            rig.turn();
        }
    }
    rig.settle();
}

fn single(what: What, key: Vec<u8>, bytes: usize) -> Op<World> {
    let value = std::vec![key[0]; bytes];
    updates(std::vec![Update { tree: 0, what, key, value }], 0)
}

#[test]
fn a_tall_tree_grows_and_goes() {
    let mut rig = Rig::new(roomy(1), World::new(1), 1);
    let mut keys: Vec<Vec<u8>> = (0..9000u64)
        .map(|n| {
            let mut key = std::vec![b'k'; KEY_BYTES_MAX - 8];
            key.extend_from_slice(&Rng(n).next().to_be_bytes());
            key
        })
        .collect();
    run_all(&mut rig, keys.iter().map(|key| single(What::Insert, key.clone(), VALUE_BYTES_MAX)));
    rig.commit();
    assert!(rig.finished.iter().all(|(_, result)| result.is_ok()));
    assert!(rig.world.trees[0].root().height >= 4);
    check_durable(&rig.disk, &rig.durable, rig.setup.blocks);
    let full = census(&rig.disk, &rig.world.trees[0]);
    assert!(full.bytes / full.leaves > NODE_BYTES / 2, "leaves are half full at least, on average");
    rig.rng.clone().shuffle(&mut keys);
    for half in keys.chunks(keys.len() / 2) {
        run_all(&mut rig, half.iter().map(|key| single(What::Delete, key.clone(), 0)));
        rig.commit();
        check_durable(&rig.disk, &rig.durable, rig.setup.blocks);
        let census = census(&rig.disk, &rig.world.trees[0]);
        assert_eq!(census.underfull, 0, "single deletions leave no leaf underfull");
    }
    assert!(rig.world.trees[0].is_empty());
    assert_eq!(rig.world.trees[0].root(), TreeRoot::EMPTY);
}

#[test]
fn ascending_keys_fill_the_leaves() {
    let mut rig = Rig::new(roomy(2), World::new(1), 2);
    for n in 0..3000u32 {
        run_all(&mut rig, [single(What::Insert, n.to_be_bytes().to_vec(), 50)]);
    }
    rig.commit();
    let census = census(&rig.disk, &rig.world.trees[0]);
    assert!(census.bytes / census.leaves > NODE_BYTES * 9 / 10);
}

/// A committed tree of a few hundred leaves.
fn grown(seed: u64) -> Rig<World> {
    let mut rig = Rig::new(roomy(seed), World::new(2), seed);
    let insert = |n| {
        let (tree, value) = ((n % 2) as usize, std::vec![n as u8; (n * 7 % 700) as usize]);
        updates(std::vec![Update { tree, what: What::Put, key: key(n), value }], 0)
    };
    run_all(&mut rig, (0..1500).map(insert));
    rig.commit();
    rig
}

/// Opens what a rig has left after something has been done to its device.
fn reopen(rig: Rig<World>, seed: u64, harm: impl FnOnce(&mut Disk, &mut Rng)) -> Rig<World> {
    let setup = Setup { hostile: true, ..rig.setup };
    let (mut disk, durable) = rig.crash();
    harm(&mut disk, &mut Rng(seed));
    Rig::open(setup, disk, durable, seed)
}

/// Reads everything: each answer must be the model's, or say that exactly these blocks are corrupt.
fn expect_reported(rig: &mut Rig<World>, blknos: &[u64], whats: &[Corruption]) {
    rig.finished.clear();
    run_all(rig, (0..1500).map(|n| reads((n % 2) as usize, key(n))));
    let mut reported = 0;
    for (_, result) in rig.finished.drain(..) {
        match result {
            Ok(()) => {}
            Err(Error::Corrupt { blkno, what }) => {
                assert!(blknos.contains(&blkno.0) && whats.contains(&what), "{blkno} {what:?}");
                reported += 1;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    assert!(reported > 0, "nothing was noticed");
}

fn reachable(rig: &Rig<World>) -> Vec<u64> {
    let trees = rig.world.trees.iter();
    trees.flat_map(|tree| census(&rig.disk, tree).blocks).collect()
}

#[test]
fn flipped_bits_are_reported_with_their_address() {
    let mut rig = grown(3);
    let blocks = reachable(&rig);
    for seed in 0..20 {
        let blkno = blocks[Rng(seed).below(blocks.len() as u64) as usize];
        rig = reopen(rig, seed, |disk, rng| {
            let bit = rng.below(4096 * 8) as usize;
            disk.0.get_mut(&blkno).unwrap().0[bit / 8] ^= 1 << (bit % 8);
        });
        expect_reported(&mut rig, &[blkno], &[Corruption::Checksum]);
        rig = reopen(rig, seed, |disk, rng| {
            let bit = rng.below(4096 * 8) as usize;
            disk.0.get_mut(&blkno).unwrap().0[bit / 8] ^= 1 << (bit % 8);
        });
    }
}

#[test]
fn exchanged_stale_and_lost_blocks_are_reported() {
    let mut rig = grown(4);
    let blocks = reachable(&rig);
    let (a, b, c) = (blocks[3], blocks[40], blocks[50]);
    let good = rig.disk.clone();
    rig = reopen(rig, 1, |disk, _| {
        let (of_a, of_b) = (disk.read(BlockNo(a)), disk.read(BlockNo(b)));
        disk.0.extend([(a, of_b), (b, of_a)]);
    });
    expect_reported(&mut rig, &[a, b], &[Corruption::Misdirected]);
    rig = reopen(rig, 2, |disk, _| {
        let mut stale = good.read(BlockNo(a));
        seal(&mut stale, &VOLUME, Magic::Btree, BlockNo(a), 1 << 40);
        disk.0.extend([(a, stale), (b, good.read(BlockNo(b)))]);
    });
    expect_reported(&mut rig, &[a], &[Corruption::Stale]);
    rig = reopen(rig, 3, |disk, _| {
        disk.0.extend([(a, good.read(BlockNo(a)))]);
        disk.0.remove(&c);
    });
    expect_reported(&mut rig, &[c], &[Corruption::Checksum]);
}

/// Does one malicious thing to a node, and seals it again.
fn maim(disk: &mut Disk, blocks: &[u64], rng: &mut Rng) {
    let blkno = blocks[rng.below(blocks.len() as u64) as usize];
    let mut block = disk.read(BlockNo(blkno));
    if parse(&block).is_err() {
        return;
    }
    let seq = crate::format::block::header(&block).seq.get();
    let mut scratch = Block::ZERO;
    let mut page = NodeMut::new((&mut block, &mut scratch));
    let (count, level) = (page.node().count(), page.node().level());
    let any = |rng: &mut Rng| rng.below(count.max(1) as u64) as usize;
    match rng.below(8) {
        0 | 1 => {
            let end = if rng.one_in(2) { 64 } else { 4064 };
            let at = 32 + rng.below(end) as usize;
            block.0[at] = rng.next() as u8;
        }
        2 if level == 0 => page.remove(0..count),
        2 => page.remove(1..count),
        3 | 4 if level > 0 => {
            // A child becomes the child of two.
            let child = page.node().child(any(rng));
            page.overwrite(any(rng), zerocopy::IntoBytes::as_bytes(&child));
        }
        5 if level > 0 => {
            // A reference to some other block, with the right version.
            let to = blocks[rng.below(blocks.len() as u64) as usize];
            let seq = crate::format::block::header(&disk.read(BlockNo(to))).seq.get();
            let child = BlockRef::new(BlockNo(to), seq);
            page.overwrite(any(rng), zerocopy::IntoBytes::as_bytes(&child));
        }
        6 if level == 0 && count > 0 => {
            let (at, key) = (any(rng), key(rng.below(1500)));
            page.remove(at..at + 1);
            if fits(&page.node(), cost(&key, b"")) {
                page.insert(at, &key, b"");
            }
        }
        _ if count > 1 => {
            let at = any(rng);
            page.remove(at..at + 1);
        }
        _ => {}
    }
    seal(&mut block, &VOLUME, Magic::Btree, BlockNo(blkno), seq);
    disk.0.insert(blkno, block);
}

/// As [`updates`], whatever the answers are.
fn unchecked(batch: Vec<Update>) -> Op<World> {
    Box::new(move |world, cache, pins| {
        let mut plan = cache.plan();
        let mut todo = Vec::new();
        for update in &batch {
            let (tree, bytes) = (&world.trees[update.tree], update.value.len());
            let planned = match update.what {
                What::Delete => tree.plan_delete(&update.key, &mut plan, cache, pins),
                What::Insert | What::Replace | What::Put => {
                    tree.plan_put(&update.key, bytes, &mut plan, cache, pins)
                }
            };
            match planned {
                Ok(()) => todo.push(update),
                Err(Stop::Fail(Error::NotFound)) => {}
                Err(stop) => return Err(stop),
            }
            tree.next(&update.key, cache, pins)?;
            tree.prev(&update.key, cache, pins)?;
        }
        let mut update = cache.reserve(&plan, pins)?;
        for Update { tree, what, key, value } in todo {
            match what {
                What::Delete => world.trees[*tree].delete(key, &mut update, cache),
                What::Insert | What::Replace | What::Put => {
                    world.trees[*tree].put(key, value, &mut update, cache);
                }
            }
        }
        Ok(())
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 60,
        failure_persistence: None,
        ..Default::default()
    })]

    /// A device in the hands of somebody who can seal blocks: anything but a panic or a hang.
    #[test]
    fn malice_is_survived(seed in any::<u64>()) {
        static GROWN: OnceLock<(Disk, Durable<World>, Vec<u64>)> = OnceLock::new();
        let (disk, durable, blocks) = GROWN.get_or_init(|| {
            let rig = grown(5);
            let blocks = reachable(&rig);
            (rig.disk, rig.durable, blocks)
        });
        let (mut disk, mut rng) = (disk.clone(), Rng(seed));
        for _ in 0..1 + rng.below(60) {
            maim(&mut disk, blocks, &mut rng);
        }
        let setup = Setup { hostile: true, ..roomy(5) };
        let mut rig = Rig::open(setup, disk, durable.clone(), seed);
        for _ in 0..300 {
            let near = rng.below(1500);
            let mut batch: Vec<Update> = Vec::new();
            for at in 0..1 + rng.below(3) {
                let what = if rng.one_in(3) { What::Put } else { What::Delete };
                let value = std::vec![7; rng.below(897) as usize];
                let tree = rng.below(2) as usize;
                batch.push(Update { tree, what, key: key(near + 2 * at), value });
            }
            run_all(&mut rig, [unchecked(batch)]);
        }
    }

    /// Bytes of any kind are parsed or refused, and what was parsed can be looked at.
    #[test]
    fn parse_takes_anything(seed in any::<u64>(), edits in 1..40usize) {
        let mut rng = Rng(seed);
        let mut block = Block(*include_bytes!("vectors/leaf.bin"));
        for _ in 0..edits {
            let end = if rng.one_in(2) { 60 } else { 4096 };
            let at = rng.below(end) as usize;
            block.0[at] = rng.next() as u8;
        }
        if parse(&block).is_ok() {
            let node = Node::new(&block);
            let sum: usize = (0..node.count()).map(|at| node.cost(at)).sum();
            assert_eq!(sum, node.bytes_used());
            assert_eq!(node.search(&[0xff; KEY_BYTES_MAX]), Err(node.count()));
        }
    }
}

/// The golden node, with its address and version, holds these items and is made again from them.
fn golden(bytes: &[u8; 4096], at: BlockRef, level: u8, items: &[(&[u8], &[u8])]) {
    let golden = Block(*bytes);
    let promise = Promise { magic: Magic::Btree, blkno: at.blkno(), seq: Some(at.seq()) };
    assert_eq!(open(&golden, &VOLUME, &promise), Ok(()));
    assert_eq!(parse(&golden), Ok(()));
    let node = Node::new(&golden);
    assert_eq!((node.kind(), node.level(), node.count()), (5, level, items.len()));
    let (mut made, mut scratch) = (Block::ZERO, Block::ZERO);
    let mut page = NodeMut::new((&mut made, &mut scratch));
    page.init(5, level);
    for (index, &item) in items.iter().enumerate() {
        assert_eq!(node.item(index), item);
        page.insert(index, item.0, item.1);
    }
    seal(&mut made, &VOLUME, Magic::Btree, at.blkno(), at.seq());
    assert!(made.0 == golden.0);
}

#[test]
fn nodes_are_encoded_as_ever() {
    let long: Vec<u8> = (0..896u32).map(|at| if at < 768 { at as u8 } else { 0 }).collect();
    let leaf: [(&[u8], &[u8]); 3] =
        [(b"apple", b"red"), (b"banana", b""), (&[b'c'; KEY_BYTES_MAX], &long)];
    let leaf_at = BlockRef::new(BlockNo(0x1234), 7);
    golden(include_bytes!("vectors/leaf.bin"), leaf_at, 0, &leaf);
    let low = BlockRef::new(BlockNo(17), 3);
    let high = BlockRef::new(BlockNo(0xffff_ffff_ffff_fff0), 0x1122_3344_5566_7788);
    let bytes = |at: &BlockRef| zerocopy::IntoBytes::as_bytes(at).to_vec();
    let inner: [(&[u8], &[u8]); 2] = [(b"", &bytes(&low)), (b"mango", &bytes(&high))];
    let inner_at = BlockRef::new(BlockNo(0x1235), 8);
    golden(include_bytes!("vectors/inner.bin"), inner_at, 1, &inner);
    let root: &TreeRoot = zerocopy::transmute_ref!(include_bytes!("vectors/root.bin"));
    let tree = Tree::open(TreeKind(5), root).unwrap();
    assert_eq!((tree.root(), tree.root().node, tree.root().height), (*root, inner_at, 2));
}

#[test]
fn roots_without_meaning_are_refused() {
    let node = BlockRef::new(BlockNo(1), 1);
    let open = |root: TreeRoot| Tree::open(TreeKind(1), &root).map(drop);
    let good = TreeRoot { node, height: 1, reserved: [0; 7] };
    assert_eq!(open(good), Ok(()));
    assert_eq!(open(TreeRoot::EMPTY), Ok(()));
    assert_eq!(
        open(TreeRoot { reserved: [0, 0, 0, 0, 0, 0, 1], ..good }),
        Err(Corruption::Reserved)
    );
    let tall = HEIGHT_MAX as u8 + 1;
    assert_eq!(open(TreeRoot { height: tall, ..good }), Err(Corruption::Bounds));
    assert_eq!(open(TreeRoot { height: 0, ..good }), Err(Corruption::Mismatch));
    let nowhere = TreeRoot { node: BlockRef::NONE, ..good };
    assert_eq!(open(nowhere), Err(Corruption::Mismatch));
}

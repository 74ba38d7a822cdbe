//! What a compaction of a mount comes to, whatever of the choices a server may make it was asked
//! for: what a map says, in the very blocks that a server which merges by itself would write.

extern crate std;

use super::{Items, LIMITS, Rig, SPACE, fresh, key, volume};
use crate::block::{Cache, Pins, RequestId};
use crate::btree::rig::carve;
use crate::client::compact::choice;
use crate::error::Stop;
use crate::format::key::KeyBytes;
use crate::format::root::Extent;
use crate::format::run::{self, SEGMENT_BLOCKS, Value};
use crate::format::wire::message::{Compact, CompactRunRecord, CompactSpaceRecord};
use crate::format::{Block, BlockNo, RunId};
use crate::lsm::choose::Choice;
use crate::lsm::manifest::{CHANGE_MAX, Run};
use crate::lsm::merge::{Merge, POOL_MAX, Progress};
use outrider_hal::{BlockOp, BlockRequest, Completion};
use std::collections::BTreeMap;
use std::vec::Vec;

/// What a server asks for.
struct Asked {
    uppers: Vec<CompactRunRecord>,
    lowers: Vec<CompactRunRecord>,
    spaces: Vec<CompactSpaceRecord>,
    target: u8,
    tail_after: Option<KeyBytes>,
    drop_tombstones: bool,
    /// The newest of the order numbers on top.
    order: u64,
    /// Of each key the newest item, tombstones among them.
    newest: Items,
}

impl Asked {
    /// Anything that can be merged: of level 0 several runs, of another one, over some of the next
    /// or over none, or runs of level 0 that stay there.
    fn any(rig: &mut Rig) -> Asked {
        let joins = rig.rng.one_in(4);
        let target = if joins { 0 } else { 1 + rig.rng.below(3) as u8 };
        let mut newest = Items::new();
        let lowers = if joins { Vec::new() } else { lowers(rig, &mut newest) };
        let count = if target > 1 { 1 } else { 1 + rig.rng.below(6) };
        let (mut uppers, mut order) = (Vec::new(), 0);
        for _ in 0..count {
            order += 1 + rig.rng.below(9);
            let (items, entry) = rig.run();
            uppers.push(CompactRunRecord::new(order, &entry));
            newest.extend(items);
        }
        // Which is the newest is said by the numbers, not by the place.
        rig.rng.shuffle(&mut uppers);
        let drop_tombstones = !joins && rig.rng.one_in(2);
        let in_parts = !joins && rig.rng.one_in(3);
        let tail_after = in_parts.then(|| key(rig.rng.below(500)));
        let blocks = [SEGMENT_BLOCKS, 6, 40][rig.rng.below(3) as usize];
        let spaces = (0..CHANGE_MAX - uppers.len() - lowers.len()).map(|piece| {
            let extent = Extent::new(BlockNo(SPACE + piece as u64 * blocks), blocks);
            CompactSpaceRecord::new(RunId(1000 + piece as u64), extent)
        });
        let spaces = spaces.take((4 * SEGMENT_BLOCKS / blocks) as usize).collect();
        Asked { uppers, lowers, spaces, target, tail_after, drop_tombstones, order, newest }
    }

    fn message(&self) -> Compact<'_> {
        let fixed = Compact::fixed(1, self.target, self.drop_tombstones, self.tail_after);
        Compact::new(fixed, &self.uppers, &self.lowers, &self.spaces).unwrap()
    }

    /// What each item that is left comes to stand in.
    fn level_of(&self, key: &KeyBytes) -> u8 {
        match self.tail_after.is_some_and(|after| *key > after) {
            true => self.target - 1,
            false => self.target,
        }
    }

    /// What must come out, by level. What goes to the last level that has any leaves tombstones
    /// behind, what stays above it keeps them.
    fn expected(&self) -> BTreeMap<(u8, KeyBytes), Option<Vec<u8>>> {
        let dropped = |key: &KeyBytes, stored: &Option<Vec<u8>>| {
            stored.is_none() && self.drop_tombstones && self.level_of(key) == self.target
        };
        let kept = self.newest.iter().filter(|(key, stored)| !dropped(key, stored));
        kept.map(|(key, stored)| ((self.level_of(key), *key), stored.clone())).collect()
    }
}

/// Runs that go together in a level: none overlaps another.
fn lowers(rig: &mut Rig, newest: &mut Items) -> Vec<CompactRunRecord> {
    let all: Vec<_> = rig.items(300).into_iter().collect();
    let pieces = rig.rng.below(5) as usize;
    let piece = all.chunks(all.len().div_ceil(pieces.max(1))).take(pieces);
    let mut records = Vec::new();
    for items in piece {
        let items: Items = items.iter().cloned().collect();
        records.push(CompactRunRecord::new(1 + rig.rng.below(99), &rig.build(&items)));
        newest.extend(items);
    }
    records
}

/// What a server writes that merges the same by itself, and the runs that it comes to.
fn by_itself(rig: &Rig, choice: &Choice, asked: &Asked) -> (Vec<Run>, BTreeMap<u64, Block>) {
    let (of, filter_key) = (volume().volume(), volume().fields().name_key);
    let limits = LIMITS.cache();
    let mut cache = carve(|arena| Cache::carve(arena, &limits, of));
    let mut pins = carve(|arena| Pins::carve(arena, &limits));
    let mut merge = carve(|arena| Merge::carve(arena, &of, &filter_key));
    (0..POOL_MAX).for_each(|_| merge.give_block(fresh()));
    merge.begin(choice);
    for (run, extent) in asked.message().spaces() {
        merge.give_space(run, extent).unwrap();
    }
    let request = RequestId { index: 0, generation: 1 };
    pins.begin(request);
    let mut written = BTreeMap::new();
    loop {
        match merge.step(7, &mut cache, &mut pins) {
            Ok(Progress::Step) => {}
            Ok(Progress::Write) => {
                let sealed = merge.poll_write().unwrap();
                written.insert(sealed.blkno.0, sealed.block.clone());
                merge.give_block(sealed.block);
            }
            Ok(Progress::Change) => return (merge.change().add.to_vec(), written),
            Ok(progress @ (Progress::Block | Progress::Space)) => panic!("it wants a {progress:?}"),
            Err(Stop::Fail(error)) => panic!("{error:?}"),
            Err(Stop::Wait(_)) => {
                while let Some(BlockRequest { tag, mut op }) = cache.poll_transfer() {
                    let BlockOp::Read(blkno, block) = &mut op else { panic!("it only reads") };
                    block.0 = rig.disk[&blkno.0].0;
                    cache.handle_completion(Completion { tag, op, result: Ok(()) });
                }
                while cache.poll_wake().is_some() {}
                continue;
            }
        }
        cache.release(&mut pins);
        pins.begin(request);
    }
}

/// What stands in these runs on the disk, by level.
fn read(rig: &Rig, runs: &[Run]) -> BTreeMap<(u8, KeyBytes), Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    for run in runs {
        for nth in 0..run.place().item_blocks() {
            let at = run.place().items(nth);
            let items = run::Items::open(&rig.disk[&at.blkno.0], &volume().volume(), &at).unwrap();
            for n in 0..items.count() {
                let (key, value) = items.get(n);
                let stored = match value {
                    Value::Bytes(bytes) => Some(bytes.to_vec()),
                    Value::Tombstone => None,
                };
                let twice = found.insert((run.level, *key), stored);
                assert!(twice.is_none(), "{key:?} is there twice");
            }
        }
    }
    found
}

#[test]
fn what_is_made_is_what_a_map_says_and_what_a_server_would_write() {
    let (mut tails, mut drops, mut several) = (0, 0, 0);
    for seed in 0..120 {
        let mut rig = Rig::new(seed);
        let asked = Asked::any(&mut rig);
        let choice = choice(&asked.message(), volume().blocks()).unwrap();
        let (runs, blocks) = by_itself(&rig, &choice, &asked);
        rig.compactor.handle_compact(&asked.message()).unwrap();
        while !rig.compactor.has_result() {
            assert!(rig.turn() || rig.compactor.has_result(), "it hangs");
        }
        let result = rig.compactor.result().unwrap();
        assert_eq!(result.error, None);
        let said: Vec<_> = result.runs().copied().collect();
        assert!(said.iter().eq(runs.iter().map(|run| &run.entry)), "seed {seed}");
        for (blkno, block) in blocks {
            assert!(rig.disk[&blkno].0 == block.0, "seed {seed}: block {blkno}");
        }
        assert_eq!(choice.check_outputs(&runs), Ok(()), "seed {seed}");
        assert!(runs.iter().all(|run| run.order == asked.order), "that of the newest input");
        assert!(read(&rig, &runs) == asked.expected(), "seed {seed}");
        tails += u32::from(runs.iter().any(|run| run.level != asked.target));
        drops += u32::from(asked.expected().len() < asked.newest.len());
        several += u32::from(runs.len() > 2);
    }
    assert!(tails > 10 && drops > 10 && several > 3, "{tails} {drops} {several}");
}

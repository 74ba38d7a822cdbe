//! Compactions of a mount over a disk in memory that fails now and then: what comes out is what a
//! map says, or nothing comes out, and what is said of it is true when it is said.

extern crate std;

mod merges;

use super::{CompactLimits, CompactLimitsError, Compactor, Counters, IN_FLIGHT_MAX};
use crate::btree::rig::{Rng, carve};
use crate::format::key::{Key, KeyBytes};
use crate::format::records::ManifestEntry;
use crate::format::root::Extent;
use crate::format::run::{SEGMENT_BLOCKS, Value};
use crate::format::super_block::Super;
use crate::format::super_block::tests::identity;
use crate::format::wire::ErrorCode;
use crate::format::wire::message::{Compact, CompactRunRecord, CompactSpaceRecord};
use crate::format::{Block, BlockNo, Ino, RunId};
use crate::lsm::build::{BuildSpace, Refused, RunBuilder, filter_blocks};
use crate::node::More;
use outrider_hal::{BlockOp, BlockRequest, Completion, IoError};
use std::boxed::Box;
use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

type Items = BTreeMap<KeyBytes, Option<Vec<u8>>>;

const LIMITS: CompactLimits = CompactLimits { at_once: 2, frames: 32 };
/// Blocks from here on are for what is made.
const SPACE: u64 = 8192;

fn volume() -> Super {
    Super::new(&identity()).unwrap()
}

fn fresh() -> &'static mut Block {
    Box::leak(Box::new(Block::ZERO))
}

fn key(n: u64) -> KeyBytes {
    Key::inode(Ino(n + 1)).into()
}

struct Rig {
    compactor: Compactor<'static>,
    disk: BTreeMap<u64, Block>,
    flying: Vec<BlockRequest<'static>>,
    rng: Rng,
    /// One transfer in so many fails. 0: none.
    errors: u64,
    next: u64,
    /// Blocks written since the last flush.
    unflushed: BTreeSet<u64>,
    allowed: std::ops::Range<u64>,
}

impl Rig {
    fn new(seed: u64) -> Rig {
        let mut compactor = carve(|arena| Compactor::carve(arena, &LIMITS, &volume()));
        assert_eq!(compactor.ready().unwrap().at_once, 2);
        compactor.handle_ready_sent();
        compactor.handle_ready_answered(None);
        Rig {
            compactor,
            disk: BTreeMap::new(),
            flying: Vec::new(),
            rng: Rng(seed),
            errors: 0,
            next: 1,
            unflushed: BTreeSet::new(),
            allowed: SPACE..SPACE + 4 * SEGMENT_BLOCKS,
        }
    }

    fn run(&mut self) -> (Items, ManifestEntry) {
        let most = 1 + self.rng.below(200);
        let items = self.items(most);
        let entry = self.build(&items);
        (items, entry)
    }

    fn items(&mut self, most: u64) -> Items {
        let mut items = Items::new();
        for _ in 0..most {
            let bytes = std::vec![self.rng.next() as u8; self.rng.below(200) as usize];
            let gone = self.rng.one_in(4);
            items.insert(key(self.rng.below(500)), (!gone).then_some(bytes));
        }
        items
    }

    /// A run of these items, on the disk.
    fn build(&mut self, items: &Items) -> ManifestEntry {
        let (of, filter_key) = (volume().volume(), volume().fields().name_key);
        let filter = (0..filter_blocks(items.len() as u64)).map(|_| fresh());
        let extent = Extent::new(BlockNo(300 + self.next * 64), 64);
        let (run, space) = (RunId(self.next), carve(BuildSpace::carve));
        self.next += 1;
        let mut builder = RunBuilder::new(&of, &filter_key, run, extent, space, filter);
        for (key, stored) in items {
            let value = stored.as_deref().map_or(Value::Tombstone, Value::Bytes);
            while let Err(refused) = builder.push(key, &value) {
                assert_eq!(refused, Refused::Block);
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

    /// Asks to merge these runs of level 0, the oldest first.
    fn ask(&mut self, id: u64, runs: &[ManifestEntry], at: u64) -> Result<(), ErrorCode> {
        let uppers: Vec<_> =
            (5..).zip(runs).map(|(order, entry)| CompactRunRecord::new(order, entry)).collect();
        let spaces: Vec<_> = (0..2)
            .map(|piece| {
                let extent = Extent::new(BlockNo(at + piece * SEGMENT_BLOCKS), SEGMENT_BLOCKS);
                CompactSpaceRecord::new(RunId(1000 + 2 * id + piece), extent)
            })
            .collect();
        let compact = Compact::new(Compact::fixed(id, 1, true, None), &uppers, &[], &spaces);
        self.compactor.handle_compact(&compact.unwrap())
    }

    /// Lets the compactor and the device each do something. Whether anything is left to do.
    fn turn(&mut self) -> bool {
        let more = self.compactor.step();
        self.flying.extend(std::iter::from_fn(|| self.compactor.poll_request()));
        assert!(self.flying.len() as u32 <= IN_FLIGHT_MAX);
        if self.flying.is_empty() {
            return more == More::Yes;
        }
        let at = self.rng.below(self.flying.len() as u64) as usize;
        let BlockRequest { tag, mut op } = self.flying.swap_remove(at);
        let fails = self.errors > 0 && self.rng.one_in(self.errors);
        match &mut op {
            BlockOp::Read(blkno, block) => block.0 = self.disk[&blkno.0].0,
            BlockOp::Write(blkno, block) => {
                assert!(self.allowed.contains(&blkno.0), "{blkno} was not lent");
                self.disk.insert(blkno.0, (**block).clone());
                self.unflushed.insert(blkno.0);
            }
            BlockOp::Flush if fails => {}
            BlockOp::Flush => self.unflushed.clear(),
        }
        let result = if fails { Err(IoError::Device) } else { Ok(()) };
        self.compactor.handle_completion(Completion { tag, op, result });
        true
    }

    /// What is said in the end, and answered: the error, or the items of the runs that were made.
    fn result(&mut self, id: u64) -> Result<u64, ErrorCode> {
        while !self.compactor.has_result() {
            assert!(self.turn() || self.compactor.has_result(), "it hangs");
        }
        let result = self.compactor.result().unwrap();
        assert_eq!(result.id, id);
        let said = match result.error {
            Some(error) => Err(error),
            None => Ok(result.runs().map(|entry| u64::from(entry.items.get())).sum()),
        };
        let writes = |request: &BlockRequest<'_>| matches!(request.op, BlockOp::Write(..));
        assert!(!self.flying.iter().any(writes), "something is still being written");
        assert!(said.is_err() || self.unflushed.is_empty(), "something was not flushed");
        self.compactor.handle_result_sent();
        assert!(self.compactor.result().is_none(), "one at a time");
        self.compactor.handle_result_answered(Some(ErrorCode::Busy));
        assert!(self.compactor.has_result(), "who was busy is told again");
        assert!(self.compactor.result().is_some());
        self.compactor.handle_result_sent();
        self.compactor.handle_result_answered(None);
        said
    }
}

#[test]
fn what_is_asked_is_merged_or_fails() {
    let mut totals = Counters::default();
    for seed in 0..60 {
        let mut rig = Rig::new(seed);
        let (mut runs, mut model) = (Vec::new(), BTreeMap::new());
        for _ in 0..2 + rig.rng.below(6) {
            let (items, entry) = rig.run();
            runs.push(entry);
            for (key, stored) in items {
                match stored {
                    Some(bytes) => drop(model.insert(key, bytes)),
                    None => drop(model.remove(&key)),
                }
            }
        }
        rig.errors = if seed % 3 == 0 { 40 } else { 0 };
        rig.ask(seed + 1, &runs, SPACE).unwrap();
        match rig.result(seed + 1) {
            Ok(items) => assert_eq!(items, model.len() as u64),
            Err(error) => assert_eq!((error, seed % 3), (ErrorCode::Io, 0)),
        }
        assert!(rig.compactor.is_idle());
        let Counters { done, failed, .. } = rig.compactor.counters();
        (totals.done, totals.failed) = (totals.done + done, totals.failed + failed);
    }
    assert!(totals.done > 40 && totals.failed > 3, "{totals:?}");
}

#[test]
fn a_new_server_hears_of_nothing_until_all_is_over() {
    for turns in 0..40 {
        let mut rig = Rig::new(turns);
        let runs: Vec<_> = (0..4).map(|_| rig.run().1).collect();
        rig.ask(1, &runs[..2], SPACE).unwrap();
        rig.ask(2, &runs[2..], SPACE + 2 * SEGMENT_BLOCKS).unwrap();
        assert_eq!(rig.ask(3, &runs, SPACE), Err(ErrorCode::Busy), "two at a time");
        for _ in 0..turns {
            rig.turn();
        }
        rig.compactor.handle_server();
        assert_eq!(rig.ask(4, &runs, SPACE), Err(ErrorCode::Busy), "it is not ready");
        while rig.compactor.ready().is_none() {
            assert!(!rig.compactor.has_result());
            assert!(rig.turn() || rig.compactor.ready().is_some(), "it hangs");
        }
        let touches = |request: &BlockRequest<'_>| !matches!(request.op, BlockOp::Read(..));
        assert!(!rig.flying.iter().any(touches), "something may still be written");
        rig.compactor.handle_ready_sent();
        assert!(rig.compactor.ready().is_none());
        rig.compactor.handle_ready_answered(None);
        rig.ask(5, &runs, SPACE).unwrap();
        assert!(rig.result(5).is_ok());
        rig.compactor.close();
        assert_eq!(rig.ask(6, &runs, SPACE), Err(ErrorCode::Stopping));
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mut rig = Rig::new(1);
    let runs: Vec<_> = (0..3).map(|_| rig.run().1).collect();
    let upper = [CompactRunRecord::new(7, &runs[0])];
    let two = [upper[0], CompactRunRecord::new(8, &runs[1])];
    let space =
        |run, start, len| [CompactSpaceRecord::new(RunId(run), Extent::new(BlockNo(start), len))];
    let good = space(1000, SPACE, 100);
    let inside = runs[0].extent().start().0;
    for (target, uppers, lowers, spaces) in [
        // Into no level there is.
        (10, &upper[..], &[][..], &good),
        // Two on top, below level 0.
        (2, &two[..], &[][..], &good),
        // Something below what is only joined.
        (0, &two[..], &upper[..], &good),
        // Space that is longer than a segment, outside the volume, an input's, and for its number.
        (1, &upper[..], &[][..], &space(1000, SPACE, SEGMENT_BLOCKS + 1)),
        (1, &upper[..], &[][..], &space(1000, u64::MAX / 2, 100)),
        (1, &upper[..], &[][..], &space(1000, inside, 1)),
        (1, &upper[..], &[][..], &space(runs[0].run().0, SPACE, 100)),
    ] {
        let fixed = Compact::fixed(1, target, false, None);
        match Compact::new(fixed, uppers, lowers, spaces) {
            Ok(asked) => {
                assert_eq!(rig.compactor.handle_compact(&asked), Err(ErrorCode::Invalid));
            }
            Err(_) => assert_eq!(target, 10),
        }
    }
    assert!(rig.compactor.is_idle());
    // A block that is not of this run any more.
    rig.disk.insert(inside, Block::ZERO);
    rig.ask(9, &runs, SPACE).unwrap();
    assert_eq!(rig.result(9), Err(ErrorCode::Corrupt));
}

#[test]
fn limits_are_checked() {
    assert_eq!(LIMITS.validate(), Ok(()));
    assert_eq!(CompactLimits { at_once: 3, ..LIMITS }.validate(), Err(CompactLimitsError::AtOnce));
    assert_eq!(CompactLimits { frames: 3, ..LIMITS }.validate(), Err(CompactLimitsError::Frames));
    let none =
        carve(|arena| Compactor::carve(arena, &CompactLimits { at_once: 0, ..LIMITS }, &volume()));
    assert!(none.ready().is_none());
}

//! The cache's waits, wakes, commits and space, one by one.

extern crate std;

use super::wait::Place;
use super::{
    Cache, Chaos, Extent, FrameId, Limits, LimitsError, Margin, Pins, RequestId, Space, SpaceFull,
    State,
};
use crate::btree::rig::carve;
use crate::error::{Corruption, Error, Stop, Wait};
use crate::format::block::{Magic, Volume, seal};
use crate::format::btree::BlockRef;
use crate::format::key::Key;
use crate::format::run::{FilterWriter, ItemsWriter, RunBlock, Value};
use crate::format::{Ino, RunId};
use crate::node::More;
use outrider_hal::{BlockNo, BlockOp, BlockRequest, BlockResult, Completion, IoError};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::vec::Vec;

impl Cache<'_> {
    /// Panics unless every invariant of the cache's own bookkeeping holds, between two runs.
    pub(crate) fn check(&mut self) {
        let mut found = 0;
        for index in 0..self.frames.len() {
            let frame = &self.frames[index];
            let here = self.find(frame.at.blkno()).is_some_and(|id| id.0 as usize == index);
            let findable = matches!(
                frame.state,
                State::Reading | State::Clean | State::Dirty | State::Writing
            );
            assert_eq!(here, findable, "{:?}", frame.state);
            found += usize::from(here);
            let flying = frame.buffer.is_none();
            let transfers = matches!(frame.state, State::Reading | State::Writing | State::Doomed);
            assert!(transfers || !flying);
            assert!(transfers || frame.waiters.is_empty());
            assert!(frame.state != State::Free || frame.pins == 0);
            assert!(frame.state != State::Orphan || frame.pins > 0);
        }
        let chained = self.buckets.iter().map(|&first| {
            core::iter::successors(first, |id| self.frames[id.0 as usize].chain).count()
        });
        assert_eq!(chained.sum::<usize>(), found);
        let idle = |frame: &super::Frame<'_>| match frame.state {
            State::Free => true,
            State::Clean => frame.pins == 0,
            State::Reading | State::Dirty | State::Writing | State::Doomed | State::Orphan => false,
        };
        let idle = self.frames.iter().filter(|frame| idle(frame)).count();
        assert_eq!(idle, self.idle.len() as usize);
        // The condition under which the first must have been called is never left unnoticed.
        if let Some(index) = self.waiters.frames.front() {
            let waiter = &self.waiters.table[index as usize];
            let Place::Frames(want) = waiter.place else { panic!("in the queue for frames") };
            assert!(want > idle as u32 || waiter.is_called(), "nobody was called");
        }
    }
}

const VOLUME: Volume = Volume { fsid: 3, crc_seed: 4 };
const LIMITS: Limits =
    Limits { frames: 7, dirty: 4, pins: 3, creates: 1, requests: 4, fresh: 2, freed: 3 };

/// A cache, the pins of its requests, and a device on which every block is a sealed one of version
/// 1.
struct Bench {
    cache: Cache<'static>,
    pins: Vec<Pins<'static>>,
}

impl Bench {
    fn new() -> Bench {
        assert_eq!(LIMITS.validate(), Ok(()));
        let cache = carve(|arena| Cache::carve(arena, &LIMITS, VOLUME));
        let pins = (0..LIMITS.requests).map(|index| {
            let mut pins = carve(|arena| Pins::carve(arena, &LIMITS));
            pins.begin(RequestId { index, generation: 1 });
            pins
        });
        Bench { cache, pins: pins.collect() }
    }

    fn get(&mut self, request: usize, blkno: u64) -> Result<FrameId, Stop> {
        let at = BlockRef::new(BlockNo(blkno), 1);
        let got = self.cache.get(at, Magic::Root, &mut self.pins[request]);
        self.cache.check();
        got
    }

    /// Waits for a block and gets it.
    fn fetch(&mut self, request: usize, blkno: u64) -> FrameId {
        assert_eq!(self.get(request, blkno), Err(Wait::Block(BlockNo(blkno)).into()));
        self.serve(|_| Ok(()));
        assert_eq!(self.wakes(), [request as u32]);
        self.get(request, blkno).unwrap()
    }

    fn complete(&mut self, request: BlockRequest<'static>, result: BlockResult) {
        let BlockRequest { tag, mut op } = request;
        if let BlockOp::Read(blkno, buffer) = &mut op {
            buffer.0.fill(blkno.0 as u8);
            seal(buffer, &VOLUME, Magic::Root, *blkno, 1);
        }
        self.cache.handle_completion(Completion { tag, op, result });
        self.cache.check();
    }

    /// Completes every transfer, with the result that this gives for its address.
    fn serve(&mut self, result: impl Fn(u64) -> BlockResult) -> usize {
        let mut count = 0;
        while let Some(request) = self.cache.poll_transfer() {
            let (BlockOp::Read(blkno, _) | BlockOp::Write(blkno, _)) = request.op else {
                panic!("a flush")
            };
            self.complete(request, result(blkno.0));
            count += 1;
        }
        count
    }

    fn wakes(&mut self) -> Vec<u32> {
        core::iter::from_fn(|| self.cache.poll_wake()).map(|request| request.index).collect()
    }

    fn release(&mut self, request: usize) {
        self.cache.release(&mut self.pins[request]);
        let generation = self.pins[request].request.generation + 1;
        self.pins[request].begin(RequestId { index: request as u32, generation });
        self.cache.check();
    }

    /// A commit that may write blocks 1000 to 1099.
    fn open(&mut self) {
        let extent = Extent { blkno: BlockNo(1000), blocks: 100 };
        self.cache.space().give(extent).unwrap();
        self.cache.open_commit(9, Margin::default());
    }

    /// Makes these blocks part of the open commit.
    fn change(&mut self, request: usize, blknos: &[u64]) -> Result<(), Stop> {
        let mut plan = self.cache.plan();
        let mut frames = Vec::new();
        for &blkno in blknos {
            let frame = self.get(request, blkno)?;
            self.cache.touch(frame, None, &mut plan)?;
            frames.push(frame);
        }
        let update = self.cache.reserve(&plan, &mut self.pins[request])?;
        for frame in frames {
            self.cache.dirty(frame, &update);
        }
        self.cache.settle_update();
        Ok(())
    }
}

fn waits(on: Wait) -> Result<FrameId, Stop> {
    Err(on.into())
}

#[test]
fn a_block_is_read_once_for_all_who_want_it() {
    let mut bench = Bench::new();
    for request in 0..3 {
        assert_eq!(bench.get(request, 5), waits(Wait::Block(BlockNo(5))));
    }
    assert_eq!(bench.serve(|_| Ok(())), 1);
    assert_eq!(bench.wakes(), [0, 1, 2]);
    for request in 0..3 {
        let frame = bench.get(request, 5).unwrap();
        assert_eq!(bench.cache.block(frame).0[100], 5);
    }
    assert_eq!(bench.serve(|_| Ok(())), 0);
}

#[test]
fn item_blocks_push_out_only_each_other() {
    let mut bench = Bench::new();
    let volume = VOLUME;
    let item_block = |bench: &mut Bench, blkno: u64| {
        let at = RunBlock { blkno: BlockNo(blkno), run: RunId(1), index: 0 };
        let got = bench.cache.get_run(&at, Magic::RunItems, &mut bench.pins[0]);
        let is_there = got.is_ok();
        if !is_there {
            let BlockRequest { tag, mut op } = bench.cache.poll_transfer().unwrap();
            let BlockOp::Read(_, buffer) = &mut op else { panic!("not a read") };
            let mut items = ItemsWriter::new(buffer);
            items.push(&Key::inode(Ino(9)).into(), &Value::Tombstone);
            items.seal(&volume, &at);
            bench.cache.handle_completion(Completion { tag, op, result: Ok(()) });
        }
        bench.release(0);
        bench.wakes();
        is_there
    };
    for blkno in [5, 6, 7] {
        bench.fetch(0, blkno);
        bench.release(0);
    }
    // As long as frames are free, nothing goes.
    assert!((20..24).all(|blkno| !item_block(&mut bench, blkno)));
    assert!((20..24).all(|blkno| item_block(&mut bench, blkno)));
    assert!((30..60).all(|blkno| !item_block(&mut bench, blkno)));
    for blkno in [5, 6, 7] {
        assert!(bench.get(0, blkno).is_ok());
        bench.release(0);
    }
    // Others push out item blocks.
    for blkno in 8..12 {
        bench.fetch(0, blkno);
        bench.release(0);
    }
    for blkno in 5..12 {
        assert!(bench.get(0, blkno).is_ok());
        bench.release(0);
    }
    assert!((56..60).all(|blkno| !item_block(&mut bench, blkno)));
}

#[test]
fn a_failure_is_told_to_its_waiters_and_forgotten() {
    let mut bench = Bench::new();
    assert_eq!(bench.get(0, 5), waits(Wait::Block(BlockNo(5))));
    assert_eq!(bench.get(1, 5), waits(Wait::Block(BlockNo(5))));
    bench.serve(|_| Err(IoError::Device));
    assert_eq!(bench.wakes(), [0, 1]);
    // Another one, who did not wait, reads again at once.
    assert_eq!(bench.get(2, 5), waits(Wait::Block(BlockNo(5))));
    let failed = Error::Io { blkno: BlockNo(5), error: IoError::Device };
    assert_eq!(bench.get(0, 5), Err(failed.into()));
    assert_eq!(bench.get(1, 5), Err(failed.into()));
    assert_eq!(bench.get(1, 5), waits(Wait::Block(BlockNo(5))));
    bench.serve(|_| Ok(()));
    assert_eq!(bench.wakes(), [2, 1]);
    assert!(bench.get(1, 5).is_ok());
}

#[test]
fn what_is_read_is_verified_against_the_reference() {
    let mut bench = Bench::new();
    let at = BlockRef::new(BlockNo(5), 2);
    let wait = Err(Wait::Block(BlockNo(5)).into());
    assert_eq!(bench.cache.get(at, Magic::Root, &mut bench.pins[0]), wait);
    bench.serve(|_| Ok(()));
    let stale = Error::Corrupt { blkno: BlockNo(5), what: Corruption::Stale };
    assert_eq!(bench.cache.get(at, Magic::Root, &mut bench.pins[0]), Err(stale.into()));
    bench.release(0);
    bench.wakes();
    // A reference to another version than the one in memory is looked up on the device, and the
    // frame with the old one is there for those who have it.
    let frame = bench.fetch(1, 5);
    assert_eq!(bench.cache.get(at, Magic::Root, &mut bench.pins[0]), wait);
    assert_eq!(bench.cache.block(frame).0[100], 5);
    bench.cache.check();
    bench.serve(|_| Ok(()));
    assert_eq!(bench.cache.get(at, Magic::Root, &mut bench.pins[0]), Err(stale.into()));
    bench.release(1);
    bench.release(0);
}

#[test]
fn two_versions_of_a_block_are_read_one_after_the_other() {
    let mut bench = Bench::new();
    let at = BlockRef::new(BlockNo(5), 2);
    let wait = Err(Wait::Block(BlockNo(5)).into());
    let stale = Error::Corrupt { blkno: BlockNo(5), what: Corruption::Stale };
    assert_eq!(bench.cache.get(at, Magic::Root, &mut bench.pins[0]), wait);
    // The other one lets the read come to its end, and then has its own.
    assert_eq!(bench.get(1, 5), wait);
    assert_eq!(bench.serve(|_| Ok(())), 1);
    assert_eq!(bench.wakes(), [0, 1]);
    assert_eq!(bench.get(1, 5), wait);
    assert_eq!(bench.cache.get(at, Magic::Root, &mut bench.pins[0]), Err(stale.into()));
    assert_eq!(bench.serve(|_| Ok(())), 1);
    assert_eq!(bench.wakes(), [1]);
    assert!(bench.get(1, 5).is_ok());
}

#[test]
fn the_least_recently_used_block_goes_first() {
    let mut bench = Bench::new();
    for blkno in 1..=7 {
        bench.fetch(0, blkno);
        bench.release(0);
    }
    bench.get(0, 1).unwrap();
    bench.release(0);
    bench.fetch(0, 8);
    bench.release(0);
    for blkno in [1, 3, 4, 5, 6, 7, 8] {
        assert!(bench.get(0, blkno).is_ok(), "{blkno}");
        bench.release(0);
    }
    assert_eq!(bench.get(0, 2), waits(Wait::Block(BlockNo(2))));
}

#[test]
fn each_frame_that_becomes_free_wakes_one() {
    let mut bench = Bench::new();
    bench.open();
    // Four dirty frames, three pinned by request 0: no frame is left.
    for blkno in 1..=3 {
        bench.fetch(0, blkno);
    }
    bench.change(0, &[1, 2, 3]).unwrap();
    bench.release(0);
    bench.fetch(0, 4);
    bench.change(0, &[4]).unwrap();
    bench.release(0);
    for blkno in 11..=13 {
        bench.fetch(0, blkno);
    }
    for (request, blkno) in [(1, 21), (2, 22), (3, 23)] {
        assert_eq!(bench.get(request, blkno), waits(Wait::Frame));
    }
    assert_eq!(bench.wakes(), []);
    // Three frames become free at once; one is called, and whoever takes one calls the next.
    bench.release(0);
    assert_eq!(bench.wakes(), [1]);
    // Nobody overtakes: a newcomer queues, though there are frames.
    assert_eq!(bench.get(0, 31), waits(Wait::Frame));
    assert_eq!(bench.get(1, 21), waits(Wait::Block(BlockNo(21))));
    assert_eq!(bench.wakes(), [2]);
    // One that gives up passes the call on.
    bench.release(2);
    assert_eq!(bench.wakes(), [3]);
    assert_eq!(bench.get(3, 23), waits(Wait::Block(BlockNo(23))));
    assert_eq!(bench.wakes(), [0]);
    assert_eq!(bench.get(0, 31), waits(Wait::Block(BlockNo(31))));
    bench.serve(|_| Ok(()));
    assert_eq!(bench.wakes(), [1, 3, 0]);
}

#[test]
fn the_senior_keeps_its_pins_and_the_others_give_way() {
    let mut bench = Bench::new();
    for (request, blkno) in [(0, 1), (0, 2), (1, 3), (1, 4), (2, 5), (2, 6), (3, 7)] {
        bench.fetch(request, blkno);
    }
    assert_eq!(bench.get(0, 10), waits(Wait::Frame));
    assert_eq!(bench.wakes(), []);
    // Whoever runs short after the senior drops what it has, and so makes room for the senior.
    assert_eq!(bench.get(1, 11), waits(Wait::Frame));
    assert_eq!(bench.wakes(), [0]);
    assert_eq!(bench.get(0, 10), waits(Wait::Block(BlockNo(10))));
    // Request 1 wants two frames back and one more; one is idle.
    assert_eq!(bench.wakes(), []);
    bench.release(3);
    assert_eq!(bench.wakes(), []);
    bench.release(2);
    assert_eq!(bench.wakes(), [1]);
    bench.serve(|_| Ok(()));
    assert_eq!(bench.wakes(), [0]);
    assert!(bench.get(0, 1).is_ok() && bench.get(0, 2).is_ok() && bench.get(0, 10).is_ok());
}

#[test]
fn commits_are_waited_for_in_order() {
    let mut bench = Bench::new();
    bench.fetch(0, 1);
    assert_eq!(bench.change(0, &[1]), Err(Wait::Commit.into()));
    assert!(bench.cache.is_commit_wanted());
    bench.open();
    assert_eq!(bench.wakes(), [0]);
    assert!(!bench.cache.is_commit_wanted());
    // Another has to wait although there is room: it would overtake.
    bench.fetch(1, 2);
    assert_eq!(bench.change(1, &[2]), Err(Wait::Commit.into()));
    assert_eq!(bench.wakes(), []);
    assert_eq!(bench.change(0, &[1]), Ok(()));
    assert_eq!(bench.wakes(), [1]);
    assert_eq!(bench.change(1, &[2]), Ok(()));
    bench.release(0);
    bench.release(1);
    for blkno in 3..=5 {
        bench.fetch(2, blkno);
    }
    assert_eq!(bench.change(2, &[3, 4, 5]), Err(Wait::Commit.into()));
    assert!(bench.cache.is_commit_wanted());
    bench.cache.close_commit();
    bench.cache.write_back();
    assert_eq!(bench.cache.step_write_back(1), More::Yes);
    assert_eq!(bench.cache.step_write_back(1), More::No);
    assert_eq!(bench.cache.poll_written(), None);
    assert_eq!(bench.serve(|_| Ok(())), 2);
    assert_eq!(bench.cache.poll_written(), Some(Ok(())));
    assert_eq!(bench.wakes(), []);
    bench.cache.space().clear();
    bench.open();
    assert_eq!(bench.wakes(), [2]);
    assert_eq!(bench.change(2, &[3, 4, 5]), Ok(()));
}

#[test]
fn a_plan_that_no_commit_has_space_for_fails() {
    let mut bench = Bench::new();
    bench.cache.space().give(Extent { blkno: BlockNo(1000), blocks: 1 }).unwrap();
    bench.cache.open_commit(9, Margin { dirty: 0, blocks: 1, freed: 0 });
    bench.fetch(0, 1);
    assert_eq!(bench.change(0, &[1]), Err(Error::NoSpace.into()));
    // The margin is for closing the commit.
    let mut plan = bench.cache.plan();
    let frame = bench.get(0, 1).unwrap();
    bench.cache.touch(frame, None, &mut plan).unwrap();
    bench.cache.close_commit();
    let update = bench.cache.reserve_closing(&plan, &mut bench.pins[0]).unwrap();
    let at = bench.cache.dirty(frame, &update);
    assert_eq!((at.blkno(), at.seq()), (BlockNo(1000), 9));
    assert_eq!(bench.cache.space().freed(), [Extent { blkno: BlockNo(1), blocks: 1 }]);
}

#[test]
fn a_failed_write_is_reported_and_can_be_repeated() {
    let mut bench = Bench::new();
    bench.open();
    bench.fetch(0, 1);
    bench.fetch(0, 2);
    bench.change(0, &[1, 2]).unwrap();
    bench.release(0);
    bench.cache.close_commit();
    bench.cache.write_back();
    assert_eq!(bench.cache.step_write_back(9), More::No);
    // Whoever needs a block that is being written waits for it.
    let at = BlockRef::new(BlockNo(1000), 9);
    let get = |bench: &mut Bench| bench.cache.get(at, Magic::Root, &mut bench.pins[1]);
    assert_eq!(get(&mut bench), waits(Wait::Block(BlockNo(1000))));
    bench.serve(|blkno| if blkno == 1000 { Err(IoError::Device) } else { Ok(()) });
    let failed = Error::Io { blkno: BlockNo(1000), error: IoError::Device };
    assert_eq!(bench.cache.poll_written(), Some(Err(failed)));
    assert_eq!(bench.wakes(), [1]);
    assert!(get(&mut bench).is_ok());
    bench.cache.write_back();
    let _ = bench.cache.step_write_back(9);
    assert_eq!(bench.serve(|_| Ok(())), 1);
    assert_eq!(bench.cache.poll_written(), Some(Ok(())));
}

#[test]
fn a_reset_cache_drops_what_was_in_flight() {
    let mut bench = Bench::new();
    assert_eq!(bench.get(0, 1), waits(Wait::Block(BlockNo(1))));
    assert_eq!(bench.get(1, 2), waits(Wait::Block(BlockNo(2))));
    let late = bench.cache.poll_transfer().unwrap();
    (0..4).for_each(|request| bench.release(request));
    bench.cache.reset(VOLUME);
    bench.cache.check();
    assert_eq!(bench.cache.in_flight(), 1);
    assert_eq!(bench.get(0, 1), waits(Wait::Block(BlockNo(1))));
    bench.complete(late, Ok(()));
    assert_eq!(bench.wakes(), []);
    assert_eq!(bench.serve(|_| Ok(())), 1);
    assert_eq!(bench.wakes(), [0]);
    assert!(bench.get(0, 1).is_ok());
}

#[test]
fn leftovers_of_earlier_runs_give_way() {
    let mut bench = Bench::new();
    for blkno in 1..=3 {
        bench.fetch(0, blkno);
    }
    bench.pins[0].restart();
    bench.fetch(0, 4);
    assert!(bench.get(0, 2).is_ok());
    assert_eq!(bench.pins[0].len, 3);
}

#[test]
#[should_panic(expected = "more blocks than it may")]
fn a_run_that_obtains_too_much_is_a_bug() {
    let mut bench = Bench::new();
    for blkno in 1..=4 {
        let _ = bench.get(0, blkno);
        bench.serve(|_| Ok(()));
        for before in 1..=blkno {
            bench.get(0, before).unwrap();
        }
    }
}

#[test]
fn chaos_strikes_and_does_no_harm() {
    let mut bench = Bench::new();
    bench.fetch(0, 1);
    bench.cache.inject(Some(Chaos::new(1, 3)));
    let strikes = (0..300).filter(|_| bench.get(0, 1) == waits(Wait::Again)).count();
    assert!((60..140).contains(&strikes), "{strikes}");
    bench.cache.inject(None);
    assert!((0..300).all(|_| bench.get(0, 1).is_ok()));
}

#[test]
fn limits_that_could_deadlock_are_refused() {
    let with = |change: fn(&mut Limits)| {
        let mut limits = LIMITS;
        change(&mut limits);
        limits.validate()
    };
    assert_eq!(with(|limits| limits.requests = 0), Err(LimitsError::Requests));
    assert_eq!(with(|limits| limits.pins = 0), Err(LimitsError::Requests));
    assert_eq!(with(|limits| limits.frames = 6), Err(LimitsError::Frames));
    assert_eq!(with(|limits| limits.dirty = 3), Err(LimitsError::Dirty));
    assert_eq!(with(|limits| limits.fresh = 0), Err(LimitsError::Fresh));
    assert_eq!(with(|limits| limits.freed = 2), Err(LimitsError::Freed));
    assert_eq!(with(|limits| (limits.dirty, limits.frames) = (0, 3)), Ok(()));
}

proptest! {
    /// Space is a set of blocks that can be taken, one of blocks that were freed, and one of those
    /// of them that are kept.
    #[test]
    fn space_equals_three_sets(steps in proptest::collection::vec((0..8u8, 0..40u64), 1..200)) {
        let limits = Limits { dirty: 200, fresh: 3, freed: 41, ..LIMITS };
        let mut space = carve(|arena| Space::carve(arena, &limits));
        for (blkno, blocks) in [(100, 7), (200, 0), (300, 1), (400, 50)] {
            prop_assert_eq!(space.give(Extent { blkno: BlockNo(blkno), blocks }), Ok(()));
        }
        let full = space.give(Extent { blkno: BlockNo(900), blocks: 1 });
        prop_assert_eq!(full, Err(SpaceFull));
        let mut fresh: BTreeSet<u64> = (100..107).chain(300..301).chain(400..450).collect();
        let mut taken = Vec::new();
        let (mut freed, mut kept) = (BTreeSet::new(), BTreeSet::new());
        prop_assert!(space.is_untouched());
        for (what, number) in steps {
            match what {
                0 | 1 => match space.take() {
                    Some(blkno) => {
                        prop_assert!(fresh.remove(&blkno.0));
                        taken.push(blkno);
                    }
                    None => prop_assert!(fresh.is_empty()),
                },
                2 if !taken.is_empty() => {
                    let blkno = taken.swap_remove(number as usize % taken.len());
                    space.put_back(blkno);
                    fresh.insert(blkno.0);
                }
                3 if !kept.contains(&number) && freed.insert(number) => {
                    space.free(BlockNo(number), 5);
                }
                5 if !freed.contains(&number) && kept.insert(number) => {
                    space.keep_to(4);
                    space.free(BlockNo(number), 4);
                }
                6 if number < 3 => {
                    if let Some(Extent { blkno, blocks }) = space.pop_kept() {
                        (blkno.0..blkno.0 + blocks).for_each(|at| assert!(kept.remove(&at)));
                    }
                }
                7 if number < 2 => {
                    space.forget_kept();
                    freed.append(&mut kept);
                }
                4 if number < 3 => {
                    if let Some(Extent { blkno, blocks }) = space.pop_freed() {
                        (blkno.0..blkno.0 + blocks).for_each(|at| assert!(freed.remove(&at)));
                    }
                }
                _ => {}
            }
            prop_assert_eq!(space.available(), fresh.len() as u64);
            for (extents, set) in [(space.freed(), &freed), (space.kept(), &kept)] {
                prop_assert!(extents.is_sorted_by(|a, b| a.blkno.plus(a.blocks) < b.blkno));
                let blocks = extents.iter().flat_map(|at| at.blkno.0..at.blkno.0 + at.blocks);
                prop_assert!(blocks.eq(set.iter().copied()));
            }
            let listed = space.freed().len() + space.kept().len();
            prop_assert_eq!(space.freed_room(), 41 - listed as u32);
        }
        while let Some(Extent { blkno, blocks }) = space.pop_unused() {
            (blkno.0..blkno.0 + blocks).for_each(|at| assert!(fresh.remove(&at)));
        }
        prop_assert!(fresh.is_empty() && space.available() == 0);
    }
}

#[test]
fn leftovers_make_room_when_nothing_else_can() {
    let limits = Limits { frames: 3, dirty: 0, pins: 3, creates: 0, fresh: 0, freed: 0, ..LIMITS };
    assert_eq!(limits.validate(), Ok(()));
    let mut bench = Bench::new();
    bench.cache = carve(|arena| Cache::carve(arena, &limits, VOLUME));
    for blkno in 1..=3 {
        bench.fetch(0, blkno);
    }
    bench.pins[0].restart();
    bench.fetch(0, 4);
    assert!(bench.get(0, 2).is_ok());
    assert_eq!(bench.pins[0].len, 3);
}

#[test]
fn blocks_of_runs_are_held_against_their_place_in_the_run() {
    let mut bench = Bench::new();
    let at = |index| RunBlock { blkno: BlockNo(9), run: RunId(4), index };
    let filter = |buffer: &mut outrider_hal::Block| {
        buffer.0.copy_from_slice(
            &FilterWriter::new(&mut outrider_hal::Block::ZERO.clone()).seal(&VOLUME, &at(3)).0,
        );
    };
    let mut get = |index, pins: usize| {
        let wait = bench.cache.get_run(&at(index), Magic::RunFilter, &mut bench.pins[pins]);
        assert_eq!(wait, waits(Wait::Block(BlockNo(9))));
        let request = bench.cache.poll_transfer().unwrap();
        let BlockRequest { tag, op: BlockOp::Read(blkno, buffer) } = request else { panic!() };
        filter(buffer);
        let op = BlockOp::Read(blkno, buffer);
        bench.cache.handle_completion(Completion { tag, op, result: Ok(()) });
        bench.cache.get_run(&at(index), Magic::RunFilter, &mut bench.pins[pins])
    };
    assert!(get(3, 0).is_ok());
    let misdirected = Error::Corrupt { blkno: BlockNo(9), what: Corruption::Misdirected };
    assert_eq!(get(2, 1), Err(misdirected.into()));
}

#[test]
fn hints_are_read_and_pin_nothing() {
    let mut bench = Bench::new();
    let at = |blkno| RunBlock { blkno: BlockNo(blkno), run: RunId(1), index: 0 };
    (1..=9).for_each(|blkno| bench.cache.hint_run(&at(blkno), Magic::RunItems));
    // As many frames as a request may pin are left alone.
    let mut reads = 0;
    while let Some(BlockRequest { tag, op }) = bench.cache.poll_transfer() {
        bench.cache.handle_completion(Completion { tag, op, result: Err(IoError::Device) });
        reads += 1;
    }
    assert_eq!(reads, LIMITS.frames - LIMITS.pins);
    assert_eq!(bench.cache.poll_wake(), None);
    bench.cache.check();
}

#[test]
fn leftovers_can_be_dropped() {
    let mut bench = Bench::new();
    for blkno in 1..=3 {
        bench.fetch(0, blkno);
    }
    bench.pins[0].restart();
    bench.get(0, 2).unwrap();
    bench.cache.drop_leftovers(&mut bench.pins[0]);
    assert_eq!(bench.pins[0].len, 1);
    bench.cache.check();
}

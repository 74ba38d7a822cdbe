//! A node without a network: restartable requests, a cache, a simulated disk and commits, driven in
//! an order drawn from a seed. For the tests of everything that lives in trees.
//!
//! The rig plays the parts that are not under test in the simplest way: free blocks are a set, a
//! root is a clone of the world, and a commit is durable when its last block is written.

extern crate std;

use crate::arena::{Arena, REGION_ALIGN};
use crate::block::{Cache, Chaos, Extent, Limits, Margin, Pins, RequestId};
use crate::error::{Error, Stop, Wait};
use crate::format::block::Volume;
use core::mem::MaybeUninit;
use outrider_hal::{Block, BlockNo, BlockOp, BlockRequest, Completion, IoError};
use std::boxed::Box;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::vec::Vec;

pub(crate) const VOLUME: Volume = Volume { fsid: 0x0123_4567_89ab_cdef, crc_seed: 0xfeed_beef };

/// Splitmix64 (Steele, Lea, Flood 2014).
#[derive(Clone)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.below(at as u64 + 1) as usize);
        }
    }
}

/// What has been written, and nothing else.
#[derive(Clone, Default)]
pub(crate) struct Disk(pub(crate) BTreeMap<u64, Block>);

impl Disk {
    pub(crate) fn read(&self, blkno: BlockNo) -> Block {
        self.0.get(&blkno.0).cloned().unwrap_or(Block::ZERO)
    }
}

/// Carves something from memory that is never given back.
pub(crate) fn carve<T>(
    mut with: impl FnMut(&mut Arena<'static>) -> Result<T, crate::arena::ArenaFull>,
) -> T {
    let mut measure = Arena::measuring();
    with(&mut measure).map(drop).unwrap();
    let bytes = measure.bytes_used();
    let region = std::vec![MaybeUninit::uninit(); bytes + REGION_ALIGN].leak();
    let pad = region.as_ptr().addr().next_multiple_of(REGION_ALIGN) - region.as_ptr().addr();
    with(&mut Arena::new(&mut region[pad..][..bytes]).unwrap()).unwrap()
}

/// A restartable function.
pub(crate) type Op<W> =
    Box<dyn FnMut(&mut W, &mut Cache<'static>, &mut Pins<'static>) -> Result<(), Stop>>;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Idle,
    Ready,
    Waiting(Wait),
}

struct Slot<W> {
    pins: Pins<'static>,
    request: RequestId,
    phase: Phase,
    op: Option<Op<W>>,
    /// What the requester calls it.
    name: u64,
    runs: u32,
}

/// How a rig behaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) limits: Limits,
    /// Blocks of the simulated device; addresses start at 1.
    pub(crate) blocks: u64,
    /// Blocks that each commit is given to write.
    pub(crate) commit_blocks: u64,
    pub(crate) chaos: bool,
    /// One read in so many fails. 0: none.
    pub(crate) read_errors: u64,
    /// One write in so many fails. 0: none.
    pub(crate) write_errors: u64,
    /// Whether the device holds what was never written by us, so that free blocks don't add up.
    pub(crate) hostile: bool,
}

/// What survives a crash: the world and the free blocks as of the last commit.
#[derive(Clone)]
pub(crate) struct Durable<W> {
    pub(crate) world: W,
    pub(crate) free: BTreeSet<u64>,
    pub(crate) number: u64,
}

/// What happened, so that a test which tests nothing shows.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Counts {
    pub(crate) done: u64,
    pub(crate) failed: u64,
    pub(crate) commits: u64,
    pub(crate) reads: u64,
    pub(crate) wakes: u64,
    pub(crate) waits_frame: u64,
    pub(crate) waits_commit: u64,
    pub(crate) waits_block: u64,
}

/// See the module.
pub(crate) struct Rig<W> {
    pub(crate) setup: Setup,
    pub(crate) rng: Rng,
    pub(crate) cache: Cache<'static>,
    pub(crate) disk: Disk,
    pub(crate) world: W,
    pub(crate) durable: Durable<W>,
    pub(crate) counts: Counts,
    /// Requests that have finished, and how.
    pub(crate) finished: VecDeque<(u64, Result<(), Error>)>,
    slots: Vec<Slot<W>>,
    flying: Vec<BlockRequest<'static>>,
    /// Free blocks that the open commit doesn't have.
    free: BTreeSet<u64>,
    /// The world as of the commit being written.
    closing: Option<W>,
}

impl<W: Clone> Rig<W> {
    /// A rig over an empty device.
    pub(crate) fn new(setup: Setup, world: W, seed: u64) -> Rig<W> {
        let durable = Durable { world, free: (1..=setup.blocks).collect(), number: 0 };
        Rig::open(setup, Disk::default(), durable, seed)
    }

    /// A rig that starts from what a crash has left.
    pub(crate) fn open(setup: Setup, disk: Disk, durable: Durable<W>, seed: u64) -> Rig<W> {
        let limits = setup.limits;
        assert_eq!(limits.validate(), Ok(()));
        let mut rng = Rng(seed);
        let mut cache = carve(|arena| Cache::carve(arena, &limits, VOLUME));
        cache.inject(setup.chaos.then(|| Chaos::new(rng.next(), 12)));
        let slots = (0..limits.requests).map(|index| Slot {
            pins: carve(|arena| Pins::carve(arena, &limits)),
            request: RequestId { index, generation: 0 },
            phase: Phase::Idle,
            op: None,
            name: 0,
            runs: 0,
        });
        let mut rig = Rig {
            setup,
            rng,
            cache,
            disk,
            world: durable.world.clone(),
            free: durable.free.clone(),
            durable,
            counts: Counts::default(),
            finished: VecDeque::new(),
            slots: slots.collect(),
            flying: Vec::new(),
            closing: None,
        };
        rig.open_commit();
        rig
    }

    /// Starts a request, or hands it back when there is no place for it.
    pub(crate) fn offer(&mut self, name: u64, op: Op<W>) -> Option<Op<W>> {
        let Some(slot) = self.slots.iter_mut().find(|slot| slot.phase == Phase::Idle) else {
            return Some(op);
        };
        slot.request.generation += 1;
        slot.pins.begin(slot.request);
        (slot.phase, slot.op, slot.name, slot.runs) = (Phase::Ready, Some(op), name, 0);
        None
    }

    /// Starts a request, if there is a place for it.
    pub(crate) fn submit(&mut self, name: u64, op: Op<W>) -> bool {
        self.offer(name, op).is_none()
    }

    /// Whether every request has finished.
    pub(crate) fn is_idle(&self) -> bool {
        self.slots.iter().all(|slot| slot.phase == Phase::Idle)
    }

    /// Does one thing: runs a request, completes a transfer, or goes on with a commit. Panics if
    /// there is nothing to do and a request waits: a wake-up was lost.
    pub(crate) fn turn(&mut self) {
        self.take_turn();
        if self.rng.one_in(8) {
            self.cache.check();
        }
    }

    fn take_turn(&mut self) {
        if self.rng.one_in(2) && self.run_one() {
            return;
        }
        if self.rng.one_in(2) && self.complete_one() {
            return;
        }
        if self.go_on_with_commit() || self.run_one() || self.complete_one() {
            return;
        }
        if self.cache.is_commit_wanted() || self.rng.one_in(4) && !self.cache.is_unchanged() {
            return self.begin_commit();
        }
        let waits: Vec<Phase> = self.slots.iter().map(|slot| slot.phase).collect();
        assert!(self.is_idle(), "nothing is in flight, but {waits:?}");
    }

    /// Turns until every request has finished.
    pub(crate) fn settle(&mut self) {
        while !self.is_idle() {
            self.turn();
        }
    }

    /// Commits all there is and waits until it is durable.
    pub(crate) fn commit(&mut self) {
        while self.closing.is_some() {
            self.turn();
        }
        self.begin_commit();
        while self.closing.is_some() {
            self.turn();
        }
    }

    /// Begins to write the open commit, unless the one before still is.
    pub(crate) fn start_commit(&mut self) {
        if self.closing.is_none() {
            self.begin_commit();
        }
    }

    fn run_one(&mut self) -> bool {
        self.wake();
        let ready = self.slots.iter().filter(|slot| slot.phase == Phase::Ready).count() as u64;
        if ready == 0 {
            return false;
        }
        let nth = self.rng.below(ready) as usize;
        let slot = self.slots.iter_mut().filter(|slot| slot.phase == Phase::Ready).nth(nth);
        let slot = slot.unwrap();
        let op = slot.op.as_mut().unwrap();
        slot.runs += 1;
        assert!(slot.runs < 60_000, "a request is run again and again");
        let result = match op(&mut self.world, &mut self.cache, &mut slot.pins) {
            Err(Stop::Wait(wait)) => {
                match wait {
                    Wait::Block(_) => self.counts.waits_block += 1,
                    Wait::Frame => self.counts.waits_frame += 1,
                    Wait::Commit => self.counts.waits_commit += 1,
                    Wait::Again => {}
                }
                let again = wait == Wait::Again;
                slot.phase = if again { Phase::Ready } else { Phase::Waiting(wait) };
                return true;
            }
            Err(Stop::Fail(error)) => Err(error),
            Ok(()) => Ok(()),
        };
        self.cache.release(&mut slot.pins);
        (slot.phase, slot.op) = (Phase::Idle, None);
        self.counts.done += 1;
        self.counts.failed += u64::from(result.is_err());
        self.finished.push_back((slot.name, result));
        true
    }

    fn wake(&mut self) {
        while let Some(request) = self.cache.poll_wake() {
            let slot = &mut self.slots[request.index as usize];
            assert_eq!(slot.request, request, "woken after its end");
            assert!(matches!(slot.phase, Phase::Waiting(_)), "woken without having waited");
            slot.phase = Phase::Ready;
            self.counts.wakes += 1;
        }
    }

    fn complete_one(&mut self) -> bool {
        while let Some(request) = self.cache.poll_transfer() {
            self.flying.push(request);
        }
        if self.flying.is_empty() {
            return false;
        }
        let at = self.rng.below(self.flying.len() as u64) as usize;
        let BlockRequest { tag, mut op } = self.flying.swap_remove(at);
        let fails = |one_in, rng: &mut Rng| one_in > 0 && rng.one_in(one_in);
        let result = match &mut op {
            BlockOp::Read(_, _) if fails(self.setup.read_errors, &mut self.rng) => {
                Err(IoError::Device)
            }
            BlockOp::Write(_, _) if fails(self.setup.write_errors, &mut self.rng) => {
                Err(IoError::Device)
            }
            BlockOp::Read(blkno, buffer) => {
                buffer.0.copy_from_slice(&self.disk.read(*blkno).0);
                self.counts.reads += 1;
                Ok(())
            }
            BlockOp::Write(blkno, buffer) => {
                self.disk.0.insert(blkno.0, buffer.clone());
                Ok(())
            }
            BlockOp::Flush => unreachable!(),
        };
        self.cache.handle_completion(Completion { tag, op, result });
        true
    }

    fn begin_commit(&mut self) {
        self.cache.close_commit();
        self.cache.write_back();
        self.closing = Some(self.world.clone());
    }

    fn go_on_with_commit(&mut self) -> bool {
        if self.closing.is_none() {
            return false;
        }
        let budget = 1 + self.rng.below(3) as u32;
        let _ = self.cache.step_write_back(budget);
        match self.cache.poll_written() {
            None => self.complete_one(),
            Some(Err(_)) => {
                self.cache.write_back();
                true
            }
            Some(Ok(())) => {
                self.end_commit();
                true
            }
        }
    }

    /// The commit is durable: what it freed and what it didn't use is free, and the next one opens.
    fn end_commit(&mut self) {
        let space = self.cache.space();
        let hostile = self.setup.hostile;
        assert!(hostile || space.freed().is_sorted_by(|a, b| a.blkno.plus(a.blocks) < b.blkno));
        while let Some(extent) = space.pop_unused().or_else(|| space.pop_freed()) {
            for blkno in extent.blkno.0..extent.blkno.0 + extent.blocks {
                assert!(self.free.insert(blkno) || hostile, "free twice");
            }
        }
        assert_eq!(space.available(), 0);
        let world = self.closing.take().unwrap();
        let number = self.durable.number + 1;
        self.durable = Durable { world, free: self.free.clone(), number };
        self.counts.commits += 1;
        self.open_commit();
    }

    fn open_commit(&mut self) {
        self.cache.space().clear();
        let (mut left, extents) = (self.setup.commit_blocks, self.setup.limits.fresh);
        for nth in 0..extents {
            if left == 0 {
                break;
            }
            // Short extents from random places, then the longest there are.
            let run = if nth < extents / 2 {
                let from = self.rng.below(self.setup.blocks) + 1;
                let most = 1 + self.rng.below(8);
                self.free_runs(from).next().map(|(first, blocks)| (first, blocks.min(most)))
            } else {
                self.free_runs(0).max_by_key(|&(_, blocks)| blocks)
            };
            let Some((first, blocks)) = run else { continue };
            let blocks = blocks.min(left);
            (first..first + blocks).for_each(|blkno| assert!(self.free.remove(&blkno)));
            self.cache.space().give(Extent { blkno: BlockNo(first), blocks }).unwrap();
            left -= blocks;
        }
        self.cache.open_commit(self.durable.number + 1, Margin::default());
    }

    /// Rows of free blocks from this one on: the first block and how many.
    fn free_runs(&self, from: u64) -> impl Iterator<Item = (u64, u64)> {
        let mut free = self.free.range(from..).copied().peekable();
        core::iter::from_fn(move || {
            let first = free.next()?;
            let mut end = first + 1;
            while free.next_if_eq(&end).is_some() {
                end += 1;
            }
            Some((first, end - first))
        })
    }

    /// What a crash leaves: the last durable world, and a disk that some of the writes in flight
    /// have reached.
    pub(crate) fn crash(mut self) -> (Disk, Durable<W>) {
        while let Some(request) = self.cache.poll_transfer() {
            self.flying.push(request);
        }
        for request in self.flying {
            if let BlockOp::Write(blkno, buffer) = request.op
                && self.rng.one_in(2)
            {
                self.disk.0.insert(blkno.0, buffer.clone());
            }
        }
        (self.disk, self.durable)
    }
}

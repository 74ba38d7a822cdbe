//! Damage is detected: two machines write blocks that say what they are, and read each other's.
//!
//! It exists to prove that the simulator damages blocks, and only when it says so.
//!
//! # Invariants
//!
//! * A block holds its own address, its writer and a version under a checksum.
//! * A machine knows the last version it has written in this life of each of its own blocks; a read
//!   that gives an older one, or no valid block at all, is counted as detected damage.

use crate::check::scrub::Scrubs;
use crate::faults::{Fault, FaultSet, Promise};
use crate::image::Image;
use crate::node::{Boot, Guest, Program};
use crate::rng::{Chance, Rng};
use crate::scenario::Scenario;
use crate::time::{MILLI, MINUTE};
use crate::trace::HostId;
use crate::world::World;
use outrider_core::arena::Arena;
use outrider_core::crc32c::crc32c;
use outrider_core::node::{Action, Event, More, Node};
use outrider_hal::{
    BLOCK_BYTES, Block, BlockNo, BlockOp, BlockRequest, Completion, Instant, StreamId, Tag,
};
use std::collections::BTreeMap;
use std::time::Duration;

const HOSTS: u64 = 2;
const AREA_BLOCKS: u64 = 24;
/// Operations of one machine that settle it.
pub const GOAL: u64 = 300;

/// The scenario.
pub const SCENARIO: Scenario = Scenario {
    name: "scrub",
    demands,
    demanded_work: &[],
    goals: &[],
    fault_goal: Some(1_000),
    world,
    faulty: Duration::from_secs(2),
    settles_within: MINUTE,
};

/// The faults that damage what a read returns.
pub const DAMAGE: [Fault; 5] = [
    Fault::DiskRot,
    Fault::DiskRotOnce,
    Fault::DiskMisdirectedRead,
    Fault::DiskMisdirectedWrite,
    Fault::DiskTornRead,
];

fn demands() -> FaultSet {
    let others = [
        Fault::DiskBadBlock,
        Fault::DiskError,
        Fault::DiskSlow,
        Fault::DiskReorder,
        Fault::DiskQueueFull,
        Fault::NodePause,
    ];
    FaultSet::of(&[&DAMAGE[..], &others[..]].concat())
}

fn world(seed: u64) -> World {
    let blocks = HOSTS * AREA_BLOCKS;
    let promise = Promise {
        survives: demands(),
        hosts_impaired_max: 1,
        blocks_damaged_max: 4,
        damageable: 0..blocks,
    };
    let mut world = World::new(seed, promise, Image::new(blocks));
    for host in 0..HOSTS as u16 {
        world.add_host("scrubber", Scrubbing { me: HostId(host) });
    }
    world.add_checker(Scrubs::default());
    world
}

struct Scrubbing {
    me: HostId,
}

impl Program for Scrubbing {
    fn region_bytes(&self) -> usize {
        2 * size_of::<Block>()
    }

    fn start(&self, boot: Boot) -> Box<dyn Guest> {
        let mut arena = Arena::new(boot.region).expect("regions are aligned");
        let buffers = arena.slice(2, |_| Block::ZERO).expect("the region is that big");
        Box::new(Scrubber {
            me: u64::from(self.me.0),
            rng: boot.entropy,
            free: buffers.iter_mut().collect(),
            written: BTreeMap::new(),
            busy: BTreeMap::new(),
            version: 0,
            flush_at: boot.now,
            flush_due: false,
            reads: 0,
            detected: 0,
            errors: 0,
            done: 0,
        })
    }
}

/// The node.
pub struct Scrubber {
    me: u64,
    rng: Rng,
    free: Vec<&'static mut Block>,
    /// The version of each own block that must at least be there.
    written: BTreeMap<u64, u64>,
    /// What is at the disk, by address: the version written, or none for a read.
    busy: BTreeMap<u64, Option<u64>>,
    version: u64,
    flush_at: Instant,
    flush_due: bool,
    reads: u64,
    detected: u64,
    errors: u64,
    done: u64,
}

impl Scrubber {
    /// Good reads, detected damage, failed requests.
    #[must_use]
    pub fn tally(&self) -> (u64, u64, u64) {
        (self.reads, self.detected, self.errors)
    }

    /// Operations finished.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.done
    }

    fn on_completed(&mut self, done: Completion<'static>) {
        let (blkno, block) = match done.op {
            BlockOp::Read(blkno, block) | BlockOp::Write(blkno, block) => (blkno.0, block),
            BlockOp::Flush => return,
        };
        self.done += 1;
        match (self.busy.remove(&blkno).flatten(), done.result) {
            (_, Err(_)) => self.errors += 1,
            (Some(version), Ok(())) => {
                self.written.insert(blkno, version);
            }
            (None, Ok(())) => {
                let floor = self.written.get(&blkno).copied();
                match open(block) {
                    Some((at, version)) if at == blkno && Some(version) >= floor => {
                        self.reads += 1;
                    }
                    // Never written by anybody, as far as this machine knows.
                    None if floor.is_none() && block.0 == Block::ZERO.0 => self.reads += 1,
                    Some(_) | None => {
                        self.detected += 1;
                        // The damage is known now, and not to be counted again.
                        self.written.remove(&blkno);
                    }
                }
            }
        }
        self.free.push(block);
    }
}

impl Node<'static> for Scrubber {
    fn handle(&mut self, _now: Instant, event: Event<'static>) {
        if let Event::Completed(done) = event {
            self.on_completed(done);
        }
    }

    fn step(&mut self, now: Instant) -> More {
        if self.flush_at <= now {
            self.flush_at = now.plus(20 * MILLI);
            self.flush_due = true;
        }
        More::No
    }

    fn poll_action(&mut self) -> Option<Action<'static>> {
        // What is cached can't rot.
        if std::mem::take(&mut self.flush_due) {
            let op = BlockOp::Flush;
            return Some(Action::Block(BlockRequest { tag: Tag(u64::MAX), op }));
        }
        // Once per busy block at most, so a read is never raced by the machine's own write.
        let write = self.rng.chance(Chance::EVEN);
        let own = self.me * AREA_BLOCKS + self.rng.below(AREA_BLOCKS);
        let blkno = if write { own } else { self.rng.below(HOSTS * AREA_BLOCKS) };
        if self.busy.contains_key(&blkno) {
            return None;
        }
        let block = self.free.pop()?;
        let op = if write {
            self.version += 1;
            seal(block, blkno, self.version);
            self.busy.insert(blkno, Some(self.version));
            BlockOp::Write(BlockNo(blkno), block)
        } else {
            self.busy.insert(blkno, None);
            BlockOp::Read(BlockNo(blkno), block)
        };
        Some(Action::Block(BlockRequest { tag: Tag(blkno), op }))
    }

    fn poll_timeout(&self) -> Option<Instant> {
        Some(self.flush_at)
    }

    fn recv_space(&mut self, _stream: StreamId) -> &mut [u8] {
        &mut []
    }

    fn send_bytes(&self, _stream: StreamId) -> &[u8] {
        &[]
    }
}

fn seal(block: &mut Block, blkno: u64, version: u64) {
    for (index, word) in block.0.chunks_mut(8).enumerate() {
        word.copy_from_slice(&if index % 2 == 0 { blkno } else { version }.to_le_bytes());
    }
    let crc = crc32c(&block.0[..BLOCK_BYTES - 4]);
    block.0[BLOCK_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
}

fn open(block: &Block) -> Option<(u64, u64)> {
    let (body, crc) = block.0.split_last_chunk::<4>()?;
    let word = |at: usize| Some(u64::from_le_bytes(*body.get(at..)?.first_chunk()?));
    (crc32c(body).to_le_bytes() == *crc).then_some((word(0)?, word(8)?))
}

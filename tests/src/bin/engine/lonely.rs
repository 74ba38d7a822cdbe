//! What of a mount reads: its reader and its item cache, with the memory that mounts have by
//! default, and nothing else.
//!
//! What this module deliberately doesn't know: servers, locks that anybody else could want, and
//! operations.

use crate::device::{Device, Traffic};
use crate::measure::{Cold, cold};
use crate::tall::{Tall, build};
use crate::volume::format;
use outrider_core::arena::{Arena, ArenaFull};
use outrider_core::client::items::{ItemCache, Range};
use outrider_core::client::mount::MountLimits;
use outrider_core::client::reader::Reader;
use outrider_core::format::Ino;
use outrider_core::format::key::{Key, KeyBytes};
use outrider_core::format::super_block::Super;
use outrider_core::lock::LockName;
use outrider_core::node::More;
use outrider_hal::{BlockRequest, Completion};
use outrider_tests::region::{Lease, Region};
use outrider_tests::rng::Rng;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};
use zerocopy::transmute;

/// Readers that read one inode each.
const FRESH: usize = 16;
/// Inodes that one reader reads before it is measured: the cache is full then, and what it keeps is
/// what it will keep.
const BEFORE: usize = 12_000;
/// Inodes that are measured.
const SAMPLES: usize = 4000;

/// What was measured in one tree.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Reads {
    /// Inodes in it.
    pub(crate) inodes: u64,
    /// Runs of its uppermost levels.
    pub(crate) levels: [u64; 5],
    /// Blocks from the manifest's root to a leaf.
    pub(crate) manifest_height: u8,
    /// What a reader reads before anybody asks.
    pub(crate) ahead: Cold,
    /// The first inode that it is asked for after that.
    pub(crate) first: Cold,
    /// One of many that it is asked for.
    pub(crate) used: Cold,
}

/// Builds a tree of so many inodes and reads from it.
pub(crate) fn measure(dir: &Path, inodes: u64, seed: u64) -> io::Result<Reads> {
    let mut device = Device::create(dir, (1 << 18) + inodes * 3 / 8)?;
    let volume = format(&mut device);
    let mut rng = Rng::new(seed).fork("reads");
    let tall = build(&mut device, &volume, inodes, &mut rng);
    let (mut ahead, mut first) = (Vec::new(), Vec::new());
    for _ in 0..FRESH {
        let mut lonely = Lonely::new(&volume, &tall);
        ahead.push(lonely.rest(&mut device));
        first.push(lonely.read(tall.random_ino(&mut rng), &mut device));
    }
    let mut lonely = Lonely::new(&volume, &tall);
    lonely.rest(&mut device);
    let mut read = || lonely.read(tall.random_ino(&mut rng), &mut device);
    let used = (0..BEFORE + SAMPLES).map(|_| read()).skip(BEFORE).collect();
    Ok(Reads {
        inodes,
        levels: std::array::from_fn(|level| tall.levels[level]),
        manifest_height: tall.root.height,
        ahead: cold(ahead),
        first: cold(first),
        used: cold(used),
    })
}

struct Lonely {
    // Dropped in this order: what points into the region goes first.
    items: ItemCache<'static>,
    reader: Reader<'static>,
    _lease: Lease,
    _region: Region,
}

impl Lonely {
    fn new(volume: &Super, tall: &Tall) -> Lonely {
        let limits = MountLimits::DEFAULT;
        let carve = |arena: &mut Arena<'static>| -> Result<_, ArenaFull> {
            let items = ItemCache::carve(arena, &limits.items)?;
            Ok((items, Reader::carve(arena, &limits.reader, volume)?))
        };
        let mut measure = Arena::measuring();
        drop(carve(&mut measure));
        let mut region = Region::new(measure.bytes_used());
        let (memory, lease) = region.lend();
        let mut arena = Arena::new(memory).expect("regions are aligned");
        let (items, mut reader) = carve(&mut arena).expect("measured");
        reader.set_root(&tall.root).expect("it can be one");
        Lonely { items, reader, _lease: lease, _region: region }
    }

    /// Goes on until there is nothing to do: what was read for that, and how long it took.
    fn rest(&mut self, device: &mut Device) -> (Traffic, Duration) {
        let (start, mut traffic) = (Instant::now(), Traffic::default());
        loop {
            while self.reader.step(&mut self.items, 64) == More::Yes {}
            let Some(BlockRequest { tag, mut op }) = self.reader.poll_request() else { break };
            device.carry_out(&mut op, &mut traffic);
            self.reader.handle_completion(Completion { tag, op, result: Ok(()) });
        }
        while self.reader.poll_event().is_some() {}
        (traffic, start.elapsed())
    }

    /// Reads the item of an inode, as an operation does that holds the lock of its group.
    fn read(&mut self, ino: Ino, device: &mut Device) -> (Traffic, Duration) {
        let key = Key::inode(ino);
        let at = transmute!(KeyBytes::from(key));
        let Err(miss) = self.items.lookup(&at) else { return Default::default() };
        let lock = LockName::covering(&key).expect("inodes have locks").range();
        let [first, last] = [lock.first(), lock.last()].map(|key| transmute!(KeyBytes::from(key)));
        let Range { first: low, last: high } = miss.gap;
        let range = Range { first: low.max(first), last: high.min(last) };
        self.reader.want(&mut self.items, at, range).expect("nobody else wants anything");
        let read = self.rest(device);
        assert!(matches!(self.items.lookup(&at), Ok(Some(_))), "every inode is there");
        read
    }
}

//! Runs as mounts write them, and reading all that a root's runs hold together.
//!
//! # Invariants
//!
//! * What a run holds is known to whoever decided on it: what the server makes of it is compared
//!   with that.
//! * Reading goes the way a mount's does, through [`Fill`], and sees the blocks that a reader would
//!   see now.

use super::{BLOCKS, volume};
use crate::rng::Rng;
use crate::world::World;
use outrider_core::arena::{Arena, ArenaFull, REGION_ALIGN};
use outrider_core::block::{Cache, Limits, Pins, RequestId};
use outrider_core::btree::Tree;
use outrider_core::error::{Stop, Wait};
use outrider_core::format::key::{Key, KeyBytes};
use outrider_core::format::records::ManifestEntry;
use outrider_core::format::root::{Extent, Root};
use outrider_core::format::run::Value;
use outrider_core::format::{BlockNo, Ino, RunId};
use outrider_core::lsm::build::{BuildSpace, Refused, RunBuilder, Sealed};
use outrider_core::lsm::choose::Policy;
use outrider_core::lsm::manifest::Manifest;
use outrider_core::lsm::read::{Fill, PINS_PER_FILL, Reach};
use outrider_core::lsm::window::{ITEM_BYTES_MAX, WindowLimits};
use outrider_core::lsm::{KeyRange, range};
use outrider_core::node::More;
use outrider_core::server::ServerLimits;
use outrider_core::txn::trees::MANIFEST;
use outrider_hal::{Block, BlockOp, BlockRequest, Completion};
use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::rc::Rc;

/// Blocks of the extent that a run is given.
pub const RUN_BLOCKS: u64 = 4;
/// Keys there are.
const KEYS: u64 = 600;
/// Values are at least so long. With this, the items of one run fill its blocks but for a few.
const VALUE_BYTES: u64 = 40;

/// What a run holds: each key with its value, or with nothing, if it deletes it.
pub type Items = BTreeMap<KeyBytes, Option<Vec<u8>>>;

/// A run, as the mount that made it knows it.
#[derive(Debug, Clone)]
pub struct Made {
    /// What the manifest is told.
    pub entry: ManifestEntry,
    /// What is in it.
    pub items: Rc<Items>,
    /// Its blocks.
    pub blocks: Rc<BTreeMap<u64, Block>>,
}

/// Limits with which so few runs are merged often, and hold transactions back at times.
#[must_use]
pub fn limits(clients: u16) -> ServerLimits {
    let merging = Policy { level_0_runs: 4, level_0_blocks: 20, small_blocks: 4, fanout: 2 };
    ServerLimits { merging, level_0_max: 7, run_blocks: 4, ..ServerLimits::for_clients(clients) }
}

fn key(number: u64) -> KeyBytes {
    let owner = Ino(1 + number / 3);
    match number % 3 {
        0 => Key::inode(owner).into(),
        1 => Key::xattr(owner, number, 1, 0).into(),
        _ => Key::dirent(owner, number, 1).into(),
    }
}

/// Makes runs, one after the other in the same memory.
pub struct Maker {
    space: Option<BuildSpace<'static>>,
    /// A block of items, and a filter's.
    memory: Vec<&'static mut Block>,
}

impl Maker {
    /// Carves it.
    ///
    /// # Errors
    ///
    /// [`ArenaFull`]: the arena is too small.
    pub fn carve(arena: &mut Arena<'static>) -> Result<Maker, ArenaFull> {
        let memory = arena.slice(3, |_| Block::ZERO)?.iter_mut().collect();
        Ok(Maker { space: Some(BuildSpace::carve(arena)?), memory })
    }

    fn fresh(&mut self) -> &'static mut Block {
        self.memory.pop().expect("more than a run needs at a time")
    }

    /// Makes a run of this number, in the extent that begins there.
    ///
    /// # Panics
    ///
    /// Never: what is put in fits.
    #[must_use]
    pub fn make(&mut self, run: u64, start: u64, entropy: &mut Rng) -> Made {
        let items = draw(entropy);
        let space = self.space.take().expect("one run at a time");
        let extent = Extent::new(BlockNo(start), RUN_BLOCKS);
        let (of, filter_key) = (volume().volume(), volume().fields().name_key);
        let filter = [self.fresh()];
        let mut builder = RunBuilder::new(&of, &filter_key, RunId(run), extent, space, filter);
        let mut blocks = BTreeMap::new();
        let mut put = |sealed: Sealed<'static>, memory: &mut Vec<_>| {
            blocks.insert(sealed.blkno.0, sealed.block.clone());
            memory.push(sealed.block);
        };
        for (key, stored) in &items {
            let value = stored.as_deref().map_or(Value::Tombstone, Value::Bytes);
            while let Err(refused) = builder.push(key, &value) {
                assert_eq!(refused, Refused::Block, "it was to fit");
                if let Some(sealed) = builder.turn(self.fresh()) {
                    put(sealed, &mut self.memory);
                }
            }
        }
        loop {
            let (sealed, unused) = builder.finish(self.fresh());
            self.memory.extend(unused);
            match sealed {
                Some(sealed) => put(sealed, &mut self.memory),
                None => break,
            }
        }
        let (entry, space) = builder.entry();
        self.space = Some(space);
        Made { entry, items: Rc::new(items), blocks: Rc::new(blocks) }
    }
}

fn draw(entropy: &mut Rng) -> Items {
    let mut items = Items::new();
    let (near, is_narrow) = (entropy.below(KEYS), entropy.below(2) == 0);
    for _ in 0..entropy.within(3..=30) {
        let at = match entropy.below(3) {
            0 if !is_narrow => entropy.below(KEYS),
            _ => (near + entropy.below(12)).min(KEYS - 1),
        };
        let mut bytes = vec![0; entropy.within(VALUE_BYTES..=2 * VALUE_BYTES) as usize];
        entropy.fill(&mut bytes);
        items.insert(key(at), (entropy.below(4) > 0).then_some(bytes));
    }
    items
}

fn region(bytes: usize) -> &'static mut [MaybeUninit<u8>] {
    let region = vec![MaybeUninit::uninit(); bytes + REGION_ALIGN].leak();
    let pad = region.as_ptr().align_offset(REGION_ALIGN);
    &mut region[pad..][..bytes]
}

const LIMITS: Limits = Limits {
    frames: 64,
    dirty: 0,
    pins: PINS_PER_FILL,
    creates: 0,
    requests: 1,
    fresh: 0,
    freed: 0,
};
const WINDOW: WindowLimits = WindowLimits { items: 64, bytes: 16 * ITEM_BYTES_MAX };
const JOB: RequestId = RequestId { index: 0, generation: 0 };

/// Reads all there is. Carved once.
pub struct Reader {
    cache: Cache<'static>,
    fill: Fill<'static>,
    pins: Pins<'static>,
}

impl Default for Reader {
    fn default() -> Reader {
        let carve = |arena: &mut Arena<'static>| -> Result<_, ArenaFull> {
            let cache = Cache::carve(arena, &LIMITS, volume().volume())?;
            let fill = Fill::carve(arena, &WINDOW, &volume().fields().name_key)?;
            Ok((cache, fill, Pins::carve(arena, &LIMITS)?))
        };
        let mut measure = Arena::measuring();
        drop(carve(&mut measure));
        let mut arena = Arena::new(region(measure.bytes_used())).expect("aligned");
        let (cache, fill, pins) = carve(&mut arena).expect("measured");
        Reader { cache, fill, pins }
    }
}

impl Reader {
    /// All items of a root's runs that are not deleted.
    pub fn read(
        &mut self,
        world: &World,
        root: &Root,
    ) -> Result<BTreeMap<KeyBytes, Vec<u8>>, String> {
        let tree = Tree::open(MANIFEST, &root.fields().manifest);
        let manifest = Manifest::new(tree.map_err(|what| format!("{what:?}"))?, BLOCKS);
        let mut found = BTreeMap::new();
        let mut left = Some(KeyRange::all());
        while let Some(range) = left {
            self.fill.begin(&manifest, &range.first, &range, Reach::Wide);
            self.pins.begin(JOB);
            let filled = self.run(world);
            self.cache.release(&mut self.pins);
            filled?;
            let window = self.fill.window();
            for index in 0..window.len() {
                if let (key, Value::Bytes(bytes)) = window.get(index) {
                    found.insert(*key, bytes.to_vec());
                }
            }
            let next = range::after(&window.range().last);
            let next = next.filter(|next| *next <= range.last);
            left = next.map(|first| KeyRange { first, last: range.last });
        }
        Ok(found)
    }

    fn run(&mut self, world: &World) -> Result<(), String> {
        loop {
            match self.fill.step(64, &mut self.cache, &mut self.pins) {
                Ok(More::No) => return Ok(()),
                Ok(More::Yes) | Err(Stop::Wait(Wait::Again)) => {}
                Err(Stop::Wait(Wait::Block(_) | Wait::Frame)) => {
                    while let Some(BlockRequest { tag, mut op }) = self.cache.poll_transfer() {
                        if let BlockOp::Read(blkno, block) = &mut op {
                            block.0 = world.disk().content(*blkno).0;
                        }
                        self.cache.handle_completion(Completion { tag, op, result: Ok(()) });
                    }
                    while self.cache.poll_wake().is_some() {}
                }
                Err(other) => return Err(format!("the items can't be read: {other:?}")),
            }
        }
    }
}

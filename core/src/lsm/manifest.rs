//! The manifest: the tree that says which runs there are.
//!
//! # Invariants
//!
//! * A run that was read from the tree has been checked: it can be one of this volume, and its key
//!   is that of its least item. What doesn't pass is reported with the address of the leaf.
//! * A [`Change`] is all or nothing: it is planned as a whole and then applied, and the counts of
//!   runs in each level change with it.
//! * Runs are ranked by [`Rank`]: in level 0 the greater is newer. Runs of the same order don't
//!   overlap, as they are parts of one merge's output.
//!
//! What this module deliberately doesn't know: what is in the runs, and which are to be merged.

use super::range::{KeyRange, after, before};
use crate::block::{Cache, Pins, Plan, Reservation};
use crate::btree::{self, Above, Item, PINS_PER_UPDATE, Tree, UPDATES_MAX};
use crate::error::{Corruption, Error, Stop};
use crate::format::key::{Key, KeyBytes};
use crate::format::records::{ManifestEntry, ManifestKey};
use crate::format::root::LEVELS;
use crate::format::run::{INDEX_KEYS, RunBlock};
use crate::format::{BlockNo, RunId};
use zerocopy::{FromBytes, IntoBytes};

/// Runs that one change may remove and add together. Two updates of the plan are left for what
/// becomes of their space.
pub const CHANGE_MAX: usize = UPDATES_MAX as usize - 2;
/// Most blocks that planning a change of this many runs obtains.
#[must_use]
pub const fn pins_per_change(runs: u32) -> u32 {
    runs * PINS_PER_UPDATE
}

/// Which of two runs in level 0 is newer: the greater. Ties are runs that don't overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// Given by the server when it records a run.
    pub order: u64,
    /// The run's least key.
    pub first: KeyBytes,
}

/// A run of the manifest, verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The level it is in, below [`LEVELS`].
    pub level: u8,
    /// Its order number; of a merged run, that of its newest input.
    pub order: u64,
    /// What the manifest says of it.
    pub entry: ManifestEntry,
}

impl Run {
    /// A run to be added to the manifest. The entry must be one that a
    /// [`RunBuilder`](super::build::RunBuilder) made, or have been checked.
    #[must_use]
    pub fn new(level: u8, order: u64, entry: ManifestEntry) -> Run {
        assert!(usize::from(level) < LEVELS && entry.range().is_some());
        Run { level, order, entry }
    }

    /// A run as it is told by somebody else, on a volume of so many blocks.
    pub fn parse(
        key: &ManifestKey,
        entry: &ManifestEntry,
        volume_blocks: u64,
    ) -> Result<Run, Corruption> {
        entry.check(volume_blocks)?;
        if usize::from(key.level) >= LEVELS {
            return Err(Corruption::Value);
        }
        let run = Run { level: key.level, order: key.order.get(), entry: *entry };
        if run.range().first == key.first { Ok(run) } else { Err(Corruption::Mismatch) }
    }

    fn open(item: &Item<'_>, volume_blocks: u64) -> Result<Run, Error> {
        let corrupt = |what| Error::Corrupt { blkno: item.leaf, what };
        let key = ManifestKey::ref_from_bytes(item.key).map_err(|_| corrupt(Corruption::Bounds))?;
        let entry =
            ManifestEntry::ref_from_bytes(item.value).map_err(|_| corrupt(Corruption::Bounds))?;
        Run::parse(key, entry, volume_blocks).map_err(corrupt)
    }

    /// The run's number.
    #[must_use]
    pub fn id(&self) -> RunId {
        self.entry.run()
    }

    /// From its least key to its greatest.
    #[must_use]
    pub fn range(&self) -> KeyRange {
        let (first, last) = self.entry.range().expect("checked: a run has items");
        KeyRange { first, last }
    }

    /// The keys around this one that it has nothing at, as its ranges say; none if one of them has
    /// the key.
    #[must_use]
    pub fn gap(&self, key: &KeyBytes) -> Option<KeyRange> {
        let mut gap = KeyRange::all();
        for zone in self.entry.zones.iter().filter(|zone| !zone.is_empty()) {
            if zone.last < *key {
                gap.first = after(&zone.last).expect("below another key");
            } else if zone.first > *key {
                gap.last = before(&zone.first).expect("above another key");
                break;
            } else {
                return None;
            }
        }
        Some(gap)
    }

    /// Its rank among the runs of its level.
    #[must_use]
    pub fn rank(&self) -> Rank {
        Rank { order: self.order, first: self.range().first }
    }

    /// Its key in the manifest.
    #[must_use]
    pub fn key(&self) -> ManifestKey {
        key(self.level, &self.rank())
    }

    /// Where its blocks stand.
    #[must_use]
    pub fn place(&self) -> RunPlace {
        RunPlace {
            run: self.id(),
            start: self.entry.extent().start(),
            item_blocks: self.entry.item_blocks.get(),
            index_blocks: self.entry.index_blocks.get(),
            filter_blocks: self.entry.filter_blocks.get(),
        }
    }
}

/// Where the blocks of a run stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunPlace {
    run: RunId,
    start: BlockNo,
    item_blocks: u16,
    index_blocks: u16,
    filter_blocks: u16,
}

impl RunPlace {
    fn at(&self, index: u16) -> RunBlock {
        RunBlock { blkno: self.start.plus(index.into()), run: self.run, index: index.into() }
    }

    /// How many item blocks it has; at least one.
    #[must_use]
    pub fn item_blocks(&self) -> u16 {
        self.item_blocks
    }

    /// How many filter blocks it has; with none, every key may be there.
    #[must_use]
    pub fn filter_blocks(&self) -> u16 {
        self.filter_blocks
    }

    /// How many index blocks it has.
    #[must_use]
    pub fn index_blocks(&self) -> u16 {
        self.index_blocks
    }

    /// How many keys an index block has.
    #[must_use]
    pub fn index_keys(&self, nth: u16) -> usize {
        (usize::from(self.item_blocks) - usize::from(nth) * INDEX_KEYS).min(INDEX_KEYS)
    }

    /// An item block.
    #[must_use]
    pub fn items(&self, nth: u16) -> RunBlock {
        assert!(nth < self.item_blocks);
        self.at(nth)
    }

    /// An index block.
    #[must_use]
    pub fn index(&self, nth: u16) -> RunBlock {
        assert!(nth < self.index_blocks);
        self.at(self.item_blocks + nth)
    }

    /// A filter block.
    #[must_use]
    pub fn filter(&self, nth: u16) -> RunBlock {
        assert!(nth < self.filter_blocks);
        self.at(self.item_blocks + self.index_blocks + nth)
    }
}

/// The key of a run in the manifest.
#[must_use]
pub fn key(level: u8, rank: &Rank) -> ManifestKey {
    ManifestKey { level, first: rank.first, order: rank.order.into() }
}

/// The key right behind this one.
#[must_use]
pub fn key_after(key: &ManifestKey) -> Option<ManifestKey> {
    if let Some(order) = key.order.get().checked_add(1) {
        return Some(ManifestKey { order: order.into(), ..*key });
    }
    let (first, level) = match after(&key.first) {
        Some(first) => (first, key.level),
        None => (Key::MIN.into(), key.level.checked_add(1)?),
    };
    Some(ManifestKey { level, first, order: 0.into() })
}

/// The runs of one root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manifest {
    tree: Tree,
    volume_blocks: u64,
}

impl Manifest {
    /// The manifest with this root, on a volume of so many blocks.
    #[must_use]
    pub fn new(tree: Tree, volume_blocks: u64) -> Manifest {
        Manifest { tree, volume_blocks }
    }

    /// What is wrong with several runs together: told with the address of the root.
    pub(super) fn corrupt(&self, what: Corruption) -> Error {
        Error::Corrupt { blkno: self.tree.root().node.blkno(), what }
    }

    /// The run with the lowest key from this one on, of any level. Obtains up to
    /// [`btree::PINS_PER_READ`] blocks.
    pub fn next(
        &self,
        from: &ManifestKey,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<Option<Run>, Stop> {
        let item = self.tree.next(from.as_bytes(), cache, pins)?;
        Ok(item.map(|item| Run::open(&item, self.volume_blocks)).transpose()?)
    }

    /// The runs from this key on, as far as the leaf has them that [`next`](Self::next) is in. None
    /// there: the manifest ends before that.
    pub fn leaf_from<'c>(
        &self,
        from: &ManifestKey,
        cache: &'c mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<impl Iterator<Item = Result<Run, Error>> + use<'c>, Stop> {
        let volume_blocks = self.volume_blocks;
        let items = self.tree.leaf_from(from.as_bytes(), cache, pins)?;
        Ok(items.map(move |item| Run::open(&item, volume_blocks)))
    }

    /// The run of this level, which is not 0, with the greatest least key up to this one: if any
    /// run of the level has the key, it is this.
    pub fn floor(
        &self,
        level: u8,
        at: &KeyBytes,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<Option<Run>, Stop> {
        let probe = key(level, &Rank { order: u64::MAX, first: *at });
        let item = self.tree.prev(probe.as_bytes(), cache, pins)?;
        let run = item.map(|item| Run::open(&item, self.volume_blocks)).transpose()?;
        Ok(run.filter(|run| run.level == level))
    }

    /// What [`floor`](Self::floor) finds, and what can be told of the run after it without
    /// obtaining another block.
    pub fn around(
        &self,
        level: u8,
        at: &KeyBytes,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<(Option<Run>, Ceiling), Stop> {
        let probe = key(level, &Rank { order: u64::MAX, first: *at });
        let parse = |above: &btree::Key| {
            // What leads to a leaf may be the beginning of a key.
            let mut bytes = [0; size_of::<ManifestKey>()];
            match bytes.get_mut(..above.len()) {
                Some(start) => start.copy_from_slice(above),
                None => return Err(self.corrupt(Corruption::Bounds)),
            }
            Ok(zerocopy::transmute!(bytes))
        };
        let (item, above) = self.tree.around(probe.as_bytes(), cache, pins)?;
        let run = item.map(|item| Run::open(&item, self.volume_blocks)).transpose()?;
        let ceiling = match above {
            Above::Item(above) => Ceiling::At(parse(&above)?),
            Above::Leaf(above) => Ceiling::From(parse(&above)?),
            Above::Nothing => Ceiling::Nothing,
        };
        Ok((run.filter(|run| run.level == level), ceiling))
    }

    /// Obtains the tree's root and this child of it. Whether there is one.
    pub fn has_upper(
        &self,
        child: usize,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<bool, Stop> {
        self.tree.has_upper(child, cache, pins)
    }

    /// The last level that has a run.
    pub fn deepest(&self, cache: &mut Cache<'_>, pins: &mut Pins<'_>) -> Result<Option<u8>, Stop> {
        let item = self.tree.last(cache, pins)?;
        let run = item.map(|item| Run::open(&item, self.volume_blocks)).transpose()?;
        Ok(run.map(|run| run.level))
    }
}

/// What is known of the run that comes after a key, in this level or another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ceiling {
    /// This is its key.
    At(ManifestKey),
    /// Its key is not below this one, if there is one.
    From(ManifestKey),
    /// There is none.
    Nothing,
}

/// Runs that go and runs that come, at once.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    /// These are in the manifest. [`Error::NotFound`] if one isn't.
    pub remove: &'a [Run],
    /// These are not, or are among those removed. [`Error::Exists`] if one is.
    pub add: &'a [Run],
}

impl Change<'_> {
    /// Plans the change: at most [`CHANGE_MAX`] runs. Obtains up to [`pins_per_change`] blocks.
    pub fn plan(
        &self,
        manifest: &Tree,
        plan: &mut Plan,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<(), Stop> {
        for run in self.gone() {
            manifest.plan_delete(run.key().as_bytes(), plan, cache, pins)?;
        }
        for run in self.add {
            let key = run.key();
            let bytes = size_of::<ManifestEntry>();
            if self.is_replaced(&key) {
                manifest.plan_replace(key.as_bytes(), bytes, plan, cache, pins)?;
            } else {
                manifest.plan_insert(key.as_bytes(), bytes, plan, cache, pins)?;
            }
        }
        Ok(())
    }

    /// Makes the planned change.
    pub fn apply(
        &self,
        manifest: &mut Tree,
        level_runs: &mut [u64; LEVELS],
        update: &mut Reservation,
        cache: &mut Cache<'_>,
    ) {
        for run in self.gone() {
            manifest.delete(run.key().as_bytes(), update, cache);
        }
        for run in self.add {
            manifest.put(run.key().as_bytes(), run.entry.as_bytes(), update, cache);
            let count = &mut level_runs[usize::from(run.level)];
            *count = count.saturating_add(1);
        }
        // A count that a root got wrong is not worth a halt: merging is all it decides.
        for run in self.remove {
            let count = &mut level_runs[usize::from(run.level)];
            *count = count.saturating_sub(1);
        }
    }

    /// Those removed whose place none takes.
    fn gone(&self) -> impl Iterator<Item = &Run> {
        self.remove.iter().filter(|old| self.add.iter().all(|new| new.key() != old.key()))
    }

    fn is_replaced(&self, key: &ManifestKey) -> bool {
        self.remove.iter().any(|old| old.key() == *key)
    }
}

const _: () = assert!(size_of::<ManifestEntry>() <= crate::format::btree::VALUE_BYTES_MAX);
const _: () = assert!(size_of::<ManifestKey>() <= crate::format::btree::KEY_BYTES_MAX);
const _: () = assert!(CHANGE_MAX <= btree::UPDATES_MAX as usize);

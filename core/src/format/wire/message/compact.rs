//! Payloads about compaction: runs that the server has a client merge.
//!
//! What this file deliberately doesn't know: which runs are merged, and how.

use super::super::{Malformed, named, reserved, take, whole};
use super::space::{end, extends, run_entry, take_slice};
use super::{Emitter, ErrorCode, RunRecord};
use crate::format::key::KeyBytes;
use crate::format::records::ManifestEntry;
use crate::format::root::{Extent, LEVELS};
use crate::format::{BlockNo, RunId};
use crate::record;
use zerocopy::little_endian::{U16, U32, U64};

/// Most runs of one level that are merged together.
pub const COMPACT_UPPERS_MAX: usize = 24;
/// Most runs of the level below.
pub const COMPACT_LOWERS_MAX: usize = 8;
/// Most runs that are merged together.
pub const COMPACT_INPUTS_MAX: usize = 24;
/// Most runs that are merged, and extents for new ones, together.
pub const COMPACT_CHANGE_MAX: usize = 30;
/// Most runs that are made, for at least one is merged.
pub const OUTPUTS_MAX: usize = COMPACT_CHANGE_MAX - 1;
/// Most compactions that a client is asked for at a time.
pub const AT_ONCE_MAX: u8 = 2;

/// In [`CompactRecord::flags`]: no level below the target has older items, so tombstones are left
/// out.
pub const COMPACT_DROP_TOMBSTONES: u8 = 1;
/// In [`CompactRecord::flags`]: `tail_after` means something.
pub const COMPACT_TAIL: u8 = 2;

record! {
    /// Stands before the runs that are to be merged, newer levels first, and the extents for those
    /// that are made of them.
    pub struct CompactRecord [48] {
        /// Number of the compaction. No other has had it.
        id: U64,
        /// The level to merge into. The runs on top are of the level above it, or, if it is 0, of
        /// level 0 too.
        target: u8,
        /// [`COMPACT_DROP_TOMBSTONES`], [`COMPACT_TAIL`].
        flags: u8,
        /// Runs on top.
        uppers: U16,
        /// Runs of the target level.
        lowers: U16,
        /// Extents for new runs.
        spaces: U16,
        /// Keys behind this one stay in the level they come from; zero without [`COMPACT_TAIL`].
        tail_after: KeyBytes,
        /// Zero.
        reserved: [u8; 5],
    }

    /// A run that is to be merged.
    pub struct CompactRunRecord [256] {
        /// Its order number: of two runs of level 0 the greater is newer.
        order: U64,
        /// What the manifest says of it.
        entry: ManifestEntry,
    }

    /// An extent for a run that is made.
    pub struct CompactSpaceRecord [24] {
        /// The run's number.
        run: U64,
        /// The extent's first block.
        start: U64,
        /// How many blocks.
        count: U32,
        /// Zero.
        reserved: [u8; 4],
    }

    /// Stands before the runs that were made, in the order of keys: first those of the target
    /// level, then those that stay in the level above it.
    pub struct CompactedRecord [16] {
        /// Number of the compaction.
        id: U64,
        /// Runs made.
        runs: U16,
        /// Why there are none: an [`ErrorCode`], or 0.
        error: u8,
        /// Zero.
        reserved: [u8; 5],
    }

    /// A client has nothing of an earlier compaction under way.
    pub struct CompactReadyRecord [8] {
        /// How many compactions it can be asked for at a time: 0 to 2.
        at_once: u8,
        /// Zero.
        reserved: [u8; 7],
    }
}

/// What a client is asked to merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compact<'p> {
    /// Number of the compaction.
    pub id: u64,
    /// The level to merge into.
    pub target: u8,
    /// Tombstones are left out.
    pub drop_tombstones: bool,
    /// Keys behind this one stay in the level they come from.
    pub tail_after: Option<KeyBytes>,
    uppers: &'p [CompactRunRecord],
    lowers: &'p [CompactRunRecord],
    spaces: &'p [CompactSpaceRecord],
}

impl CompactRunRecord {
    /// This run, as it travels.
    #[must_use]
    pub fn new(order: u64, entry: &ManifestEntry) -> CompactRunRecord {
        CompactRunRecord { order: order.into(), entry: *entry }
    }
}

impl CompactSpaceRecord {
    /// Space for a run of this number: at most a segment.
    #[must_use]
    pub fn new(run: RunId, extent: Extent) -> CompactSpaceRecord {
        CompactSpaceRecord {
            run: run.into(),
            start: extent.start().0.into(),
            count: u32::try_from(extent.len()).unwrap_or(u32::MAX).into(),
            reserved: [0; 4],
        }
    }

    fn check(&self) -> Result<(), Malformed> {
        reserved(&self.reserved)?;
        named(self.run)?;
        extends(self.start.get(), self.count.get())
    }
}

impl<'p> Compact<'p> {
    pub(super) const BYTES_MAX: usize = size_of::<CompactRecord>()
        + COMPACT_INPUTS_MAX * size_of::<CompactRunRecord>()
        + (COMPACT_CHANGE_MAX - 1) * size_of::<CompactSpaceRecord>();

    /// With these runs and extents, if they are within their bounds and each is in order.
    pub fn new(
        fixed: Compact<'static>,
        uppers: &'p [CompactRunRecord],
        lowers: &'p [CompactRunRecord],
        spaces: &'p [CompactSpaceRecord],
    ) -> Result<Compact<'p>, Malformed> {
        let inputs = uppers.len() + lowers.len();
        if uppers.is_empty()
            || uppers.len() > COMPACT_UPPERS_MAX
            || lowers.len() > COMPACT_LOWERS_MAX
            || inputs > COMPACT_INPUTS_MAX
            || inputs + spaces.len() > COMPACT_CHANGE_MAX
        {
            return Err(Malformed::Count);
        }
        if fixed.id == 0 {
            return Err(Malformed::Zero);
        }
        if usize::from(fixed.target) >= LEVELS {
            return Err(Malformed::Value);
        }
        uppers.iter().chain(lowers).try_for_each(|run| run_entry(&run.entry))?;
        spaces.iter().try_for_each(CompactSpaceRecord::check)?;
        let Compact { id, target, drop_tombstones, tail_after, .. } = fixed;
        Ok(Compact { id, target, drop_tombstones, tail_after, uppers, lowers, spaces })
    }

    /// Without runs and extents: for [`new`](Self::new).
    #[must_use]
    pub fn fixed(
        id: u64,
        target: u8,
        drop_tombstones: bool,
        tail_after: Option<KeyBytes>,
    ) -> Compact<'static> {
        let (uppers, lowers, spaces) = (&[][..], &[][..], &[][..]);
        Compact { id, target, drop_tombstones, tail_after, uppers, lowers, spaces }
    }

    /// The level of the runs on top.
    #[must_use]
    pub fn level(&self) -> u8 {
        self.target.saturating_sub(1)
    }

    /// The runs on top: order number, and what the manifest says. Each can be one of the largest
    /// volume.
    pub fn uppers(&self) -> impl ExactSizeIterator<Item = (u64, &'p ManifestEntry)> + use<'p> {
        self.uppers.iter().map(|run| (run.order.get(), &run.entry))
    }

    /// Those of the target level.
    pub fn lowers(&self) -> impl ExactSizeIterator<Item = (u64, &'p ManifestEntry)> + use<'p> {
        self.lowers.iter().map(|run| (run.order.get(), &run.entry))
    }

    /// Space for new runs: none is empty, and the last block of each has an address.
    pub fn spaces(&self) -> impl ExactSizeIterator<Item = (RunId, Extent)> + use<'p> {
        self.spaces.iter().map(|space| {
            let extent = Extent::new(BlockNo(space.start.get()), space.count.get().into());
            (space.run.into(), extent)
        })
    }

    pub(super) fn parse(payload: &'p [u8]) -> Result<Compact<'p>, Malformed> {
        let (record, rest) = take::<CompactRecord>(payload)?;
        reserved(&record.reserved)?;
        if record.flags & !(COMPACT_DROP_TOMBSTONES | COMPACT_TAIL) != 0 {
            return Err(Malformed::Value);
        }
        let tail_after = match record.flags & COMPACT_TAIL != 0 {
            true => Some(record.tail_after),
            false if record.tail_after == KeyBytes::ZERO => None,
            false => return Err(Malformed::Reserved),
        };
        let (uppers, rest) = take_slice(rest, record.uppers, COMPACT_UPPERS_MAX)?;
        let (lowers, rest) = take_slice(rest, record.lowers, COMPACT_LOWERS_MAX)?;
        let (spaces, rest) = take_slice(rest, record.spaces, COMPACT_CHANGE_MAX)?;
        end(rest)?;
        let drops = record.flags & COMPACT_DROP_TOMBSTONES != 0;
        let fixed = Compact::fixed(record.id.get(), record.target, drops, tail_after);
        Compact::new(fixed, uppers, lowers, spaces)
    }

    pub(super) fn emit(&self, to: &mut Emitter<'_>) {
        let drops = if self.drop_tombstones { COMPACT_DROP_TOMBSTONES } else { 0 };
        let tail = if self.tail_after.is_some() { COMPACT_TAIL } else { 0 };
        to.put(&CompactRecord {
            id: self.id.into(),
            target: self.target,
            flags: drops | tail,
            uppers: (self.uppers.len() as u16).into(),
            lowers: (self.lowers.len() as u16).into(),
            spaces: (self.spaces.len() as u16).into(),
            tail_after: self.tail_after.unwrap_or(KeyBytes::ZERO),
            reserved: [0; 5],
        });
        to.put(self.uppers);
        to.put(self.lowers);
        to.put(self.spaces);
    }
}

/// What has come of a compaction: nothing of it is being written any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compacted<'p> {
    /// Number of the compaction.
    pub id: u64,
    /// Why it was given up, if it was. Then there are no runs.
    pub error: Option<ErrorCode>,
    runs: &'p [RunRecord],
}

impl<'p> Compacted<'p> {
    pub(super) const BYTES_MAX: usize =
        size_of::<CompactedRecord>() + OUTPUTS_MAX * size_of::<RunRecord>();

    /// These runs, if they are not too many and each is in order.
    pub fn new(id: u64, runs: &'p [RunRecord]) -> Result<Compacted<'p>, Malformed> {
        if id == 0 {
            return Err(Malformed::Zero);
        }
        if runs.len() > OUTPUTS_MAX {
            return Err(Malformed::Count);
        }
        runs.iter().try_for_each(|run| run.parse().map(drop))?;
        Ok(Compacted { id, error: None, runs })
    }

    /// It was given up.
    #[must_use]
    pub fn failed(id: u64, error: ErrorCode) -> Compacted<'p> {
        Compacted { id, error: Some(error), runs: &[] }
    }

    /// The runs that were made, in the order of keys. Each can be one of the largest volume.
    pub fn runs(&self) -> impl ExactSizeIterator<Item = &'p ManifestEntry> + use<'p> {
        self.runs.iter().map(|run| &run.entry)
    }

    pub(super) fn parse(payload: &'p [u8]) -> Result<Compacted<'p>, Malformed> {
        let (record, rest) = take::<CompactedRecord>(payload)?;
        reserved(&record.reserved)?;
        let (runs, rest) = take_slice(rest, record.runs, OUTPUTS_MAX)?;
        end(rest)?;
        let id = named(record.id)?;
        match ErrorCode::from_wire(record.error) {
            None => Compacted::new(id, runs),
            Some(error) if runs.is_empty() => Ok(Compacted::failed(id, error)),
            Some(_) => Err(Malformed::Count),
        }
    }

    pub(super) fn emit(&self, to: &mut Emitter<'_>) {
        to.put(&CompactedRecord {
            id: self.id.into(),
            runs: (self.runs.len() as u16).into(),
            error: self.error.map_or(0, ErrorCode::to_wire),
            reserved: [0; 5],
        });
        to.put(self.runs);
    }
}

/// A client has nothing of an earlier compaction under way, and can be asked for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompactReady {
    /// For so many at a time: 0 to [`AT_ONCE_MAX`].
    pub at_once: u8,
}

impl CompactReady {
    pub(super) fn parse(payload: &[u8]) -> Result<CompactReady, Malformed> {
        let record: &CompactReadyRecord = whole(payload)?;
        reserved(&record.reserved)?;
        match record.at_once <= AT_ONCE_MAX {
            true => Ok(CompactReady { at_once: record.at_once }),
            false => Err(Malformed::Count),
        }
    }

    pub(super) fn record(self) -> CompactReadyRecord {
        CompactReadyRecord { at_once: self.at_once, reserved: [0; 7] }
    }
}

//! The records of the trees: each parsed, and asked for the blocks it stands for.
//!
//! # Invariants
//!
//! * An extent that is to be claimed lies in the part of the volume that is allocated from.
//!
//! What this module deliberately doesn't know: who else has claimed it.

use super::TreeName;
use super::map::Map;
use crate::error::Corruption;
use crate::format::key::KeyBytes;
use crate::format::records::{
    BlockKey, ClientKey, ClientPart, ClientRecord, ClientState, FreedKey, LIST_MAX, Length,
    LengthKey, LoanKey, ManifestEntry, ManifestKey, OpenSeq, OpenSeqKey, OwnerKind, Pool,
    QuarantineKey, extent, list,
};
use crate::format::root::{Extent, LEVELS};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// What the extents of a free tree add up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Sum {
    pub(super) extents: u64,
    pub(super) blocks: u64,
}

pub(super) struct Records {
    volume_blocks: u64,
    /// Extents of the record taken last that are to be claimed.
    pub(super) claims: heapless::Vec<Extent, LIST_MAX>,
    /// The run taken last overlaps the one before it.
    pub(super) overlap: bool,
    /// By block, by length.
    pub(super) free_sums: [Sum; 2],
    pub(super) level_runs: [u64; LEVELS],
    /// Behind the last free extent by block.
    free_end: u64,
    /// Level and greatest key of the last run.
    last_run: Option<(u8, KeyBytes)>,
    /// Trees that were not read wholly: one bit each.
    partial: u8,
}

/// A structure that fills these bytes.
fn whole<T>(bytes: &[u8]) -> Result<&T, Corruption>
where
    T: FromBytes + Immutable + KnownLayout + Unaligned,
{
    T::ref_from_bytes(bytes).map_err(|_| Corruption::Bounds)
}

fn nothing(bytes: &[u8]) -> Result<(), Corruption> {
    if bytes.is_empty() { Ok(()) } else { Err(Corruption::Bounds) }
}

/// The run that a record of the manifest stands for.
pub(super) fn run_entry<'v>(
    key: &'v [u8],
    value: &'v [u8],
    volume_blocks: u64,
) -> Result<(&'v ManifestKey, &'v ManifestEntry), Corruption> {
    let (key, entry) = (whole::<ManifestKey>(key)?, whole::<ManifestEntry>(value)?);
    entry.check(volume_blocks)?;
    if usize::from(key.level) >= LEVELS {
        return Err(Corruption::Level);
    }
    match entry.range() {
        Some((first, _)) if first == key.first => Ok((key, entry)),
        Some(_) | None => Err(Corruption::Mismatch),
    }
}

impl Records {
    pub(super) fn new(volume_blocks: u64) -> Records {
        Records {
            volume_blocks,
            claims: heapless::Vec::new(),
            overlap: false,
            free_sums: [Sum::default(); 2],
            level_runs: [0; LEVELS],
            free_end: 0,
            last_run: None,
            partial: 0,
        }
    }

    pub(super) fn begin_tree(&mut self) {
        (self.free_end, self.last_run) = (0, None);
    }

    pub(super) fn is_partial(&self, name: TreeName) -> bool {
        self.partial & 1 << name as u8 != 0
    }

    pub(super) fn set_partial(&mut self, name: TreeName) {
        self.partial |= 1 << name as u8;
    }

    /// Parses a record; what is to be claimed for it is in `claims` afterwards.
    pub(super) fn take(
        &mut self,
        name: TreeName,
        key: &[u8],
        value: &[u8],
        map: &mut Map<'_>,
    ) -> Result<(), Corruption> {
        match name {
            TreeName::FreeByBlock => self.take_free(key, value, map),
            TreeName::FreeByLength => {
                nothing(value)?;
                let free = whole::<LengthKey>(key)?.extent(self.volume_blocks)?;
                self.count_free(1, free, map);
                Ok(())
            }
            TreeName::Manifest => self.take_run(key, value),
            TreeName::Clients => take_client(key, value),
            TreeName::Loans => {
                let extents = list(value)?;
                match Pool::parse(whole::<LoanKey>(key)?.pool)? {
                    Pool::Data | Pool::Runs | Pool::Compaction => self.claim_list(extents),
                    Pool::Inodes | Pool::RunIds => Ok(()),
                }
            }
            TreeName::OpenSeqs => {
                let (key, open) = (whole::<OpenSeqKey>(key)?, whole::<OpenSeq>(value)?);
                // Its number was opened after what its client may still have changed before.
                if open.floor.get() > key.seq.get() { Err(Corruption::Order) } else { Ok(()) }
            }
            TreeName::Freed => {
                whole::<FreedKey>(key)?;
                self.claim_list(list(value)?)
            }
            TreeName::Quarantine => {
                OwnerKind::parse(whole::<QuarantineKey>(key)?.kind)?;
                self.claim_list(list(value)?)
            }
        }
    }

    fn take_free(&mut self, key: &[u8], value: &[u8], map: &mut Map<'_>) -> Result<(), Corruption> {
        let (key, length) = (whole::<BlockKey>(key)?, whole::<Length>(value)?);
        let free = extent(key.last, length, self.volume_blocks)?;
        // Free extents neither overlap nor touch.
        if free.start().0 <= self.free_end {
            return Err(Corruption::Order);
        }
        self.free_end = free.end().0;
        self.count_free(0, free, map);
        self.claim_list(&[free])
    }

    fn count_free(&mut self, tree: usize, free: Extent, map: &mut Map<'_>) {
        let sum = &mut self.free_sums[tree];
        sum.extents += 1;
        sum.blocks = sum.blocks.saturating_add(free.len());
        map.toggle(free);
    }

    fn take_run(&mut self, key: &[u8], value: &[u8]) -> Result<(), Corruption> {
        let (key, entry) = run_entry(key, value, self.volume_blocks)?;
        let (first, last) = entry.range().ok_or(Corruption::Order)?;
        self.level_runs[usize::from(key.level)] += 1;
        let before = self.last_run.replace((key.level, last));
        self.overlap =
            key.level > 0 && before.is_some_and(|(level, end)| level == key.level && end >= first);
        self.claim_list(&[entry.extent()])
    }

    fn claim_list(&mut self, extents: &[Extent]) -> Result<(), Corruption> {
        if !extents.iter().all(|extent| extent.is_inside(self.volume_blocks)) {
            return Err(Corruption::Bounds);
        }
        self.claims.extend_from_slice(extents).expect("a list is bounded");
        Ok(())
    }
}

fn take_client(key: &[u8], value: &[u8]) -> Result<(), Corruption> {
    match ClientPart::parse(whole::<ClientKey>(key)?.part)? {
        ClientPart::TransactionAnswer | ClientPart::LoanAnswer => Ok(()),
        ClientPart::Client => {
            let record = whole::<ClientRecord>(value)?;
            ClientState::parse(record.state)?;
            if record.reserved != [0; 14] {
                return Err(Corruption::Reserved);
            }
            if record.flags & !7 != 0 { Err(Corruption::Value) } else { Ok(()) }
        }
    }
}

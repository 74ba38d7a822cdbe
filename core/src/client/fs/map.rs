//! Changes of a file's extents, as arithmetic.
//!
//! # Invariants
//!
//! * Extents of one file don't overlap, and are in the order of their blocks. Those that could be
//!   one become one where a change touches them.
//! * A patch changes blocks of its region only; outside, each block is mapped as before.
//!
//! What this module deliberately doesn't know: items, and where blocks come from and go to.

use super::pools::BlockRun;
use crate::format::BlockNo;
use crate::format::item::{FileExtent, Mapping};
use crate::format::key::FileBlock;
use heapless::Vec;

/// Most extents that one patch looks at.
pub const PATCH_MAX: usize = 20;

/// Most extents that one patch leaves: two may be split.
const NEW_MAX: usize = PATCH_MAX + 3;

/// Most runs of blocks that one patch frees.
pub const FREED_MAX: usize = PATCH_MAX;

/// What happens to the blocks of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Reserved blocks hold data now.
    Write,
    /// Blocks that hold data read as zeros.
    Blank,
    /// Nothing is mapped there any more.
    Free,
    /// What is a hole all over gets reserved blocks, from this one on.
    Fill(BlockNo),
}

/// A change of a file's extents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patch {
    /// Extents before.
    pub old: Vec<FileExtent, PATCH_MAX>,
    /// Extents after.
    pub new: Vec<FileExtent, NEW_MAX>,
    /// What is freed.
    pub freed: Vec<BlockRun, FREED_MAX>,
    /// How many blocks more hold data.
    pub online: i64,
    /// How many blocks fewer are offline.
    pub offline_gone: u64,
}

/// The mapping so many blocks further.
fn advance(mapping: Mapping, by: u64) -> Mapping {
    match mapping {
        Mapping::Data(at) => Mapping::Data(BlockNo(at.0 + by)),
        Mapping::Reserved(at) => Mapping::Reserved(BlockNo(at.0 + by)),
        Mapping::Offline => Mapping::Offline,
        Mapping::OfflineReserved(at) => Mapping::OfflineReserved(BlockNo(at.0 + by)),
    }
}

/// The part of an extent between two blocks, if there is one.
fn part(extent: &FileExtent, first: u64, last: u64) -> Option<FileExtent> {
    let (from, to) = (extent.first().0.max(first), extent.last.0.min(last));
    (from <= to).then(|| FileExtent {
        last: FileBlock(to),
        len: to - from + 1,
        mapping: advance(extent.mapping, from - extent.first().0),
    })
}

impl Patch {
    /// Plans a change of the blocks from `first` to `last`. `old` are all extents that hold one of
    /// them, in order, at most [`PATCH_MAX`]; and may be their neighbours.
    #[must_use]
    pub fn plan(old: &[FileExtent], first: FileBlock, last: FileBlock, change: Change) -> Patch {
        let new = Vec::new();
        let old_list = Vec::from_slice(old).expect("no more were asked for");
        let mut patch = Patch { old: old_list, new, freed: Vec::new(), online: 0, offline_gone: 0 };
        let (first, last) = (first.0, last.0);
        let mut filling = match change {
            Change::Fill(at) => Some(FileExtent {
                last: FileBlock(last),
                len: last - first + 1,
                mapping: Mapping::Reserved(at),
            }),
            Change::Write | Change::Blank | Change::Free => None,
        };
        for extent in old {
            if extent.first().0 > last
                && let Some(filled) = filling.take()
            {
                patch.push(filled);
            }
            if let Some(head) = first.checked_sub(1).and_then(|end| part(extent, 0, end)) {
                patch.push(head);
            }
            if let Some(middle) = part(extent, first, last) {
                patch.change(middle, change);
            }
            if let Some(tail) = part(extent, last + 1, u64::MAX) {
                patch.push(tail);
            }
        }
        if let Some(filled) = filling {
            patch.push(filled);
        }
        patch
    }

    fn change(&mut self, extent: FileExtent, change: Change) {
        let len = extent.len as i64;
        match (change, extent.mapping) {
            (Change::Write, Mapping::Reserved(at)) => {
                self.online += len;
                self.push(FileExtent { mapping: Mapping::Data(at), ..extent });
            }
            (Change::Blank, Mapping::Data(at)) => {
                self.online -= len;
                self.push(FileExtent { mapping: Mapping::Reserved(at), ..extent });
            }
            (Change::Free, mapping) => self.free(extent.len, mapping),
            (Change::Write | Change::Blank | Change::Fill(_), _) => self.push(extent),
        }
    }

    fn free(&mut self, len: u64, mapping: Mapping) {
        let (run, online) = match mapping {
            Mapping::Data(at) => (Some(at), true),
            Mapping::Reserved(at) | Mapping::OfflineReserved(at) => (Some(at), false),
            Mapping::Offline => (None, false),
        };
        if online {
            self.online -= len as i64;
        }
        if matches!(mapping, Mapping::Offline | Mapping::OfflineReserved(_)) {
            self.offline_gone += len;
        }
        if let Some(first) = run {
            let freed = self.freed.push(BlockRun { first, len });
            assert!(freed.is_ok(), "one for each extent");
        }
    }

    /// Adds an extent behind the others, or to the last of them.
    fn push(&mut self, extent: FileExtent) {
        if let Some(before) = self.new.last_mut()
            && before.last.0 + 1 == extent.first().0
            && advance(before.mapping, before.len) == extent.mapping
        {
            before.last = extent.last;
            before.len += extent.len;
            return;
        }
        let added = self.new.push(extent);
        assert!(added.is_ok(), "two are split at most, and one is added");
    }
}

#[cfg(test)]
mod tests;

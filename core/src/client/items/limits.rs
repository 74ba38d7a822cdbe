//! How large an item cache is, and which sizes work.

use super::change::Edit;
use super::values::{CHUNK_BYTES, VALUE_BYTES_MAX, chunks_of};
use core::fmt;

/// What a change may take at most: reserved before anything is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    /// Items created, changed and deleted.
    pub items: u32,
    /// Bytes in the values written.
    pub value_bytes: u32,
}

impl Needs {
    /// What these edits need.
    #[must_use]
    pub fn of(edits: &[Edit<'_>]) -> Needs {
        edits.iter().fold(Needs::default(), |needs, edit| {
            let bytes = edit.value().map_or(0, <[u8]>::len);
            assert!(bytes <= VALUE_BYTES_MAX);
            needs.plus(Needs { items: 1, value_bytes: bytes as u32 })
        })
    }

    /// The needs of two parts of one change.
    #[must_use]
    pub fn plus(self, other: Needs) -> Needs {
        Needs { items: self.items + other.items, value_bytes: self.value_bytes + other.value_bytes }
    }

    /// Chunks that are enough however the bytes are divided among the items.
    pub(super) fn chunks(self) -> u32 {
        self.items.saturating_add(self.value_bytes / CHUNK_BYTES as u32)
    }

    /// Whether this is at most as much as `other`, in both respects.
    #[must_use]
    pub fn fits(self, other: Needs) -> bool {
        self.items <= other.items && self.value_bytes <= other.value_bytes
    }
}

/// The size of an item cache.
///
/// In bytes: an item takes 112 (44 for its slot, 68 for an entry of index nodes that may be half
/// empty), a chunk 68, a range 134, a fill 104.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Items: the dirty ones, and those that are kept so that the device need not be read.
    pub items: u32,
    /// Chunks of 64 bytes for values; a value of n bytes takes n / 64 of them, rounded up.
    pub chunks: u32,
    /// Items changed since the last durable commit: those of the commit in flight, and those of the
    /// next one.
    pub dirty_items: u32,
    /// Chunks in the values of those.
    pub dirty_chunks: u32,
    /// Ranges of keys that are known, items or none. Each directory, inode or file that is worked
    /// on has one or a few.
    pub ranges: u32,
    /// Fills in progress.
    pub fills: u32,
    /// The largest change: a long extended attribute, or a rename that replaces a file.
    pub change: Needs,
}

/// Why a cache of these limits would not work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitsError {
    /// A change is empty, or larger than the whole dirty budget: it would wait for ever.
    Change,
    /// Too few items beside the dirty budget: what an operation has looked up would be evicted by
    /// what it looks up next, for ever.
    Items,
    /// Too few chunks beside the dirty budget, for the same reason.
    Chunks,
    /// Too few ranges for the keys that one operation finds absent.
    Ranges,
    /// No fill could ever begin.
    Fills,
    /// More than slot numbers can name.
    TooMany,
}

impl fmt::Display for LimitsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LimitsError::Change => "item cache: a change does not fit the dirty budget",
            LimitsError::Items => "item cache: too few items beside the dirty ones",
            LimitsError::Chunks => "item cache: too few value chunks beside the dirty ones",
            LimitsError::Ranges => "item cache: too few ranges",
            LimitsError::Fills => "item cache: no fills",
            LimitsError::TooMany => "item cache: too large",
        })
    }
}

/// Clean items there is always room for, at least.
const CLEAN_MIN: u32 = 32;

/// An operation looks at no more than this many keys for each one that it may change. All of them
/// must be known at once for it to go through, and are: that many protected items (three quarters
/// of the clean ones), their values, and that many ranges, with one more for the fill and one for
/// the half of a range that an eviction splits.
const LOOKS: u32 = 3;

impl Limits {
    /// The least that works for changes of this size.
    #[must_use]
    pub fn least(change: Needs) -> Limits {
        let looks = change.items.saturating_mul(LOOKS);
        let clean_items = looks.saturating_mul(2).max(CLEAN_MIN);
        // A fill adds two neighbours of what it was for.
        let clean_chunks = looks.saturating_add(2).saturating_mul(chunks_of(VALUE_BYTES_MAX));
        Limits {
            items: change.items.saturating_add(clean_items),
            chunks: change.chunks().saturating_add(clean_chunks),
            dirty_items: change.items,
            dirty_chunks: change.chunks(),
            ranges: looks.saturating_add(2),
            fills: 1,
            change,
        }
    }

    /// Whether a cache of these limits always makes progress.
    pub fn validate(&self) -> Result<(), LimitsError> {
        let least = Limits::least(self.change);
        let clean_items = self.items.saturating_sub(self.dirty_items);
        let clean_chunks = self.chunks.saturating_sub(self.dirty_chunks);
        let names = [self.items, self.chunks, self.ranges, self.fills];
        if names.iter().any(|count| *count > 1 << 30) {
            Err(LimitsError::TooMany)
        } else if self.change.items == 0
            || self.dirty_items < least.dirty_items
            || self.dirty_chunks < least.dirty_chunks
        {
            Err(LimitsError::Change)
        } else if clean_items < least.items - least.dirty_items {
            Err(LimitsError::Items)
        } else if clean_chunks < least.chunks - least.dirty_chunks {
            Err(LimitsError::Chunks)
        } else if self.ranges < least.ranges {
            Err(LimitsError::Ranges)
        } else if self.fills < least.fills {
            Err(LimitsError::Fills)
        } else {
            Ok(())
        }
    }

    /// Clean items that there is room for even when the dirty budget is used up.
    pub(super) fn clean_items(&self) -> u32 {
        self.items - self.dirty_items
    }
}

//! The known ranges: an ordered, bounded set of key ranges that neither overlap nor touch.
//!
//! # Invariants
//!
//! * Between two ranges lies at least one key that is in none: ranges that meet become one.
//! * To forget a range is always right, so a full set makes room by forgetting the one used longest
//!   ago.
//!
//! What this module deliberately doesn't know: the items.

use super::index::Index;
use super::key::{FIRST, Key, LAST, predecessor, successor};
use super::list::{Link, List, NONE};
use crate::arena::{Arena, ArenaFull};

/// The index has no use for marks here.
const ANY: u8 = 1;

/// Keys from `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The lowest key.
    pub first: Key,
    /// The highest key.
    pub last: Key,
}

impl Range {
    /// Whether the key is one of these.
    #[must_use]
    pub fn contains(&self, key: &Key) -> bool {
        self.first <= *key && *key <= self.last
    }

    /// Whether some key is in both.
    #[must_use]
    pub fn overlaps(&self, other: &Range) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// The set.
pub(super) struct Ranges<'m> {
    index: Index<'m>,
    slots: &'m mut [Range],
    links: &'m mut [Link],
    used: List,
    /// First free slot; `next_free` names the one after each.
    free: u32,
    next_free: &'m mut [u32],
    forgotten: u64,
}

impl<'m> Ranges<'m> {
    /// Carves a set of up to `count` ranges.
    pub(super) fn carve(arena: &mut Arena<'m>, count: u32) -> Result<Ranges<'m>, ArenaFull> {
        Ok(Ranges {
            index: Index::carve(arena, count)?,
            slots: arena.slice(count, |_| Range { first: FIRST, last: FIRST })?,
            links: arena.slice(count, |_| Link::ALONE)?,
            next_free: arena.slice(count, |id| if id + 1 < count { id + 1 } else { NONE })?,
            used: List::EMPTY,
            free: 0,
            forgotten: 0,
        })
    }

    /// How many ranges there are.
    pub(super) fn len(&self) -> u32 {
        self.used.len()
    }

    /// Ranges forgotten for want of slots so far.
    pub(super) fn forgotten(&self) -> u64 {
        self.forgotten
    }

    fn find_id(&self, key: &Key) -> Option<u32> {
        let id = self.index.floor(key, ANY)?.id;
        (self.slots[id as usize].last >= *key).then_some(id)
    }

    /// The range that has the key.
    pub(super) fn find(&self, key: &Key) -> Option<Range> {
        self.find_id(key).map(|id| self.slots[id as usize])
    }

    /// The range that has the key, which counts as used now.
    pub(super) fn touch(&mut self, key: &Key) -> Option<Range> {
        let id = self.find_id(key)?;
        self.used.touch(self.links, id);
        Some(self.slots[id as usize])
    }

    /// The keys around this one, which is in no range, that are in no range.
    pub(super) fn gap(&self, key: &Key) -> Range {
        let (before, after) = self.index.around(key);
        let before = before.map(|entry| self.slots[entry.id as usize].last);
        let after = after.map(|entry| entry.key);
        let first = before.and_then(|last| successor(&last)).unwrap_or(FIRST);
        let last = after.and_then(|first| predecessor(&first)).unwrap_or(LAST);
        Range { first, last }
    }

    /// Adds the keys of a range, which then counts as used now.
    pub(super) fn add(&mut self, range: Range) {
        let Range { mut first, mut last } = range;
        // Whatever overlaps or meets the new range becomes part of it.
        let reach = successor(&last).unwrap_or(LAST);
        while let Some(entry) = self.index.floor(&reach, ANY) {
            let old = self.slots[entry.id as usize];
            if successor(&old.last).is_some_and(|after| after < first) {
                break;
            }
            if old.first <= first && old.last >= last {
                self.used.touch(self.links, entry.id);
                return;
            }
            if old.first <= first {
                // The common case of a fill that goes on: the range grows in place.
                self.slots[entry.id as usize].last = last;
                self.used.touch(self.links, entry.id);
                return;
            }
            last = last.max(old.last);
            first = first.min(old.first);
            self.release(entry.id);
        }
        self.insert(Range { first, last });
    }

    /// Takes the keys of a range out. What is left of a range keeps its place in the order of use,
    /// except the upper half of one that is split: it needs a slot, and is the newest.
    pub(super) fn subtract(&mut self, range: &Range) {
        while let Some(entry) = self.index.floor(&range.last, ANY) {
            let old = self.slots[entry.id as usize];
            if old.last < range.first {
                return;
            }
            let below = predecessor(&range.first).filter(|last| *last >= old.first);
            let above = successor(&range.last).filter(|first| *first <= old.last);
            match (below, above) {
                (None, None) => self.release(entry.id),
                (Some(last), None) => self.slots[entry.id as usize].last = last,
                (None, Some(first)) => {
                    self.index.remove(&old.first);
                    self.slots[entry.id as usize].first = first;
                    self.index.insert(&first, ANY, entry.id);
                }
                (Some(last), Some(first)) => {
                    self.slots[entry.id as usize].last = last;
                    self.insert(Range { first, last: old.last });
                }
            }
        }
    }

    /// Adds a range that meets no other, in place of the one used longest ago if there is no slot.
    fn insert(&mut self, range: Range) {
        if self.free == NONE
            && let Some(oldest) = self.used.oldest()
        {
            self.release(oldest);
            self.forgotten += 1;
        }
        let id = self.free;
        self.free = self.next_free[id as usize];
        self.slots[id as usize] = range;
        self.index.insert(&range.first, ANY, id);
        self.used.push(self.links, id);
    }

    fn release(&mut self, id: u32) {
        self.index.remove(&self.slots[id as usize].first).expect("each range is in the index");
        self.used.remove(self.links, id);
        self.next_free[id as usize] = self.free;
        self.free = id;
    }

    /// The first range that begins at or after the key.
    #[cfg(test)]
    pub(super) fn next(&self, key: &Key) -> Option<Range> {
        self.index.ceil(key, ANY).map(|entry| self.slots[entry.id as usize])
    }
}

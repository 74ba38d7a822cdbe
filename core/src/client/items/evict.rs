//! Eviction: which clean items make room, and what becomes of the known ranges.
//!
//! Clean items stand on two lists in order of use. What a fill brings along is on *probation*; what
//! an operation asks for is *protected*. The victim is the oldest on probation, or the oldest
//! protected one when there is none, so a long scan pushes out its own leftovers before the items
//! that are used (segmented LRU: Karedla, Love, Wherry 1994).
//!
//! A victim inside a known range takes clean neighbours with it, because each hole in a range costs
//! a range. Taking only what lies between the first and the last of the window, and going to the
//! range's end only if no item is left there, keeps the rest of the range known.
//!
//! # Invariants
//!
//! * Dirty items are on no list; they and protected ones end a window.
//! * One eviction removes at least one item and looks at no more than [`WINDOW`] in each direction,
//!   and then one.
//! * A window in the middle of a range splits it only into slots there are: the range used longest
//!   ago gives its slot, and its items, which stay, become items outside every range.

use super::index::Entry;
use super::key::{predecessor, successor};
use super::ranges::Range;
use super::{ANY, DIRTY, ItemCache, Key, More, PROTECTED};

/// Neighbours taken on each side of a victim, at most.
const WINDOW: u32 = 16;

/// A window is at most this part of the clean items, so that a small cache doesn't lose at once
/// what was just filled in.
const WINDOW_PART: u32 = 64;

impl ItemCache<'_> {
    /// Makes room ahead of need, so that changes and fills find it: evicts until a change of the
    /// largest size fits, in at most `work` evictions.
    pub fn shrink(&mut self, work: u32) -> More {
        let change = self.limits.change;
        for _ in 0..work {
            if self.has_room(change.items, change.chunks()) || !self.evict() {
                return More::No;
            }
        }
        More::Yes
    }

    /// Evicts until this much is free. The caller knows that there are enough clean items.
    pub(super) fn make_room(&mut self, items: u32, chunks: u32) {
        while !self.has_room(items, chunks) {
            assert!(self.evict(), "what is neither free nor dirty is clean");
        }
    }

    fn has_room(&self, items: u32, chunks: u32) -> bool {
        self.free_count >= items && self.values.free_count() >= chunks
    }

    /// Counts a clean item as used now.
    pub(super) fn touch(&mut self, id: u32) {
        let slot = &mut self.slots[id as usize];
        if slot.flags & DIRTY != 0 {
            return;
        }
        if slot.flags & PROTECTED != 0 {
            self.protected.touch(self.links, id);
            return;
        }
        slot.flags |= PROTECTED;
        self.probation.remove(self.links, id);
        self.protected.push(self.links, id);
        // The rest is for newcomers. Limits leave an operation enough of this share.
        if self.protected.len() > self.limits.clean_items() / 4 * 3 {
            let oldest = self.protected.oldest().expect("it is not empty");
            self.protected.remove(self.links, oldest);
            self.slots[oldest as usize].flags &= !PROTECTED;
            self.probation.push(self.links, oldest);
        }
    }

    /// Evicts something, unless all is dirty or free.
    pub(super) fn evict(&mut self) -> bool {
        let Some(victim) = self.probation.oldest().or(self.protected.oldest()) else {
            return false;
        };
        let key = self.slots[victim as usize].key;
        let Some(range) = self.ranges.find(&key) else {
            self.drop_item(&key, victim);
            self.counters.items_evicted += 1;
            return true;
        };
        let (first, bound_first) = self.window_first(&key, &range);
        let (last, bound_last) = self.window_last(&key, &range);
        self.ranges.subtract(&Range { first: bound_first, last: bound_last });
        let mut item = (key, victim);
        if first < last {
            item = self.item_from(&first);
        }
        loop {
            self.drop_item(&item.0, item.1);
            self.counters.items_evicted += 1;
            if item.0 == last {
                return true;
            }
            item = self.item_from(&item.0);
        }
    }

    /// The first item of what is left of a window, from this key on.
    fn item_from(&self, key: &Key) -> (Key, u32) {
        let entry = self.index.ceil(key, ANY).expect("a window ends with an item");
        (entry.key, entry.id)
    }

    fn window_size(&self) -> u32 {
        (self.limits.clean_items() / WINDOW_PART).min(WINDOW)
    }

    /// Goes down from a victim: the first item of its window, and the first key to forget.
    fn window_first(&self, key: &Key, range: &Range) -> (Key, Key) {
        let mut first = *key;
        for taken in 0..=self.window_size() {
            let before = predecessor(&first).and_then(|before| self.index.floor(&before, ANY));
            let Some(entry) = before.filter(|entry| entry.key >= range.first) else {
                return (first, range.first);
            };
            if taken == self.window_size() || self.ends_window(&entry) {
                break;
            }
            first = entry.key;
        }
        (first, first)
    }

    /// Goes up from a victim: the last item of its window, and the last key to forget.
    fn window_last(&self, key: &Key, range: &Range) -> (Key, Key) {
        let mut last = *key;
        for taken in 0..=self.window_size() {
            let after = successor(&last).and_then(|after| self.index.ceil(&after, ANY));
            let Some(entry) = after.filter(|entry| entry.key <= range.last) else {
                return (last, range.last);
            };
            if taken == self.window_size() || self.ends_window(&entry) {
                break;
            }
            last = entry.key;
        }
        (last, last)
    }

    fn ends_window(&self, entry: &Entry) -> bool {
        self.slots[entry.id as usize].flags & (DIRTY | PROTECTED) != 0
    }
}

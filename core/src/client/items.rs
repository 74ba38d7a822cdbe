//! The item cache: what a mount knows of the items under its locks, and what it has changed.
//!
//! An item is a 27-byte key and a value of up to 544 bytes. The cache knows an item because it
//! holds it, and knows that there is *no* item where a *known range* covers the key; about anything
//! else it answers [`Miss`], the node reads that part of the log-structured tree, hands it over as
//! a *fill*, and runs the operation again.
//!
//! # Invariants
//!
//! * A key inside a known range has an item exactly if the cache holds one that is not a tombstone.
//!   An item outside every range (its range was forgotten) is as good as one inside.
//! * What is cached wins over what is filled in, and so does what is known to be absent.
//! * No fill brings back what the cache knew better before it forgot: one whose root is older than
//!   a commit of its keys, or that was begun before its keys were invalidated, ends as
//!   [`FillEnd::Stale`].
//! * A *blind* item, changed under a lock that only lets write, lies outside every range, answers
//!   no question, and leaves the cache when it is durable.
//! * A changed item stays dirty until the commit that took it is durable, whatever happens to that
//!   commit, and only clean items are evicted.
//! * A change is planned (it may stop, and has changed nothing) and then applied (it can't stop).
//!   Nothing but [`plan`](ItemCache::plan), [`reserve`](ItemCache::reserve), fills and
//!   [`shrink`](ItemCache::shrink) evicts.
//! * Clean items can always make room for a fill, and, while the dirty budget lasts, for a change:
//!   see [`Limits::validate`].
//!
//! # An item
//!
//! ```text
//!            create, blind change
//!          +------------------------------------+        +---- commit failed ----+
//!          |                                    v        v                       |
//!   (none) --- fill ---> clean --- change ---> dirty --- copied by a commit ---> in flight
//!      ^                 |   ^                  |                                |   |
//!      +-- evicted, -----+   +---- durable, and not changed since the copy ------|---+
//!      |   invalidated                          |                                |
//!      +-- deleted before it was copied --------+                                |
//!      +-- the same for tombstones and blind items ------------------------------+
//! ```
//!
//! *Persistent* means that the item may exist in a run, so that its deletion leaves a tombstone; an
//! item is so from the moment a commit has copied it. See [`commit`] for why one version of an item
//! is enough while a commit is in flight.
//!
//! What this module deliberately doesn't know: locks (the caller asks only for what its lock
//! allows), the meaning of keys and values, runs, the server, and who waits for what.

pub mod change;
pub mod commit;
mod evict;
pub mod fill;
mod index;
pub mod key;
pub mod limits;
mod list;
mod ranges;
mod values;

pub use change::{Edit, Plan, Stop, Wait};
pub use commit::{Committed, Dirty, Generation, NotNow};
pub use fill::{FillEnd, FillId, FillRefused};
pub use key::{KEY_BYTES, Key};
pub use limits::{Limits, LimitsError, Needs};
pub use ranges::Range;
pub use values::{CHUNK_BYTES, VALUE_BYTES_MAX, Value};

use crate::arena::{Arena, ArenaFull};
use crate::format::CommitNo;
use crate::node::More;
use commit::Phase;
use fill::Fills;
use index::Index;
use key::{FIRST, predecessor, successor};
use list::{Link, List};
use ranges::Ranges;
use values::{Values, chunks_of};

/// Changed while the open generation was an even one, and not durable since.
const DIRTY_EVEN: u8 = 1 << 0;
/// The same for odd generations.
const DIRTY_ODD: u8 = 1 << 1;
/// The item is deleted, which has to be written.
const TOMBSTONE: u8 = 1 << 2;
/// Changed without being known.
const BLIND: u8 = 1 << 3;
/// The key may have an item in a run.
const PERSISTENT: u8 = 1 << 4;
/// On the protected list, while clean.
const PROTECTED: u8 = 1 << 5;

const DIRTY: u8 = DIRTY_EVEN | DIRTY_ODD;

/// Marks of the index, beside the two of dirty items: the item exists and answers questions.
const LIVE: u8 = 1 << 2;
/// The item is blind.
const UNSEEN: u8 = 1 << 3;
/// Any item.
const ANY: u8 = 1 << 4;

/// The marks of an item with these flags.
fn marks(flags: u8) -> u8 {
    let unseen = if flags & BLIND == 0 { 0 } else { UNSEEN };
    let live = if flags & (BLIND | TOMBSTONE) == 0 { LIVE } else { 0 };
    flags & DIRTY | unseen | live | ANY
}

/// An item, or a free slot.
#[derive(Debug, Clone, Copy)]
struct Slot {
    key: Key,
    flags: u8,
    len: u16,
    /// First chunk of the value; in a free slot the next free one.
    head: u32,
}

/// The cache can't say: no known range has the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Miss {
    /// The key that must become known.
    pub at: Key,
    /// All the unknown keys around it. What of them is worth to be filled in along with it, within
    /// the caller's lock, is the caller's choice.
    pub gap: Range,
}

/// A cached item.
#[derive(Clone, Copy)]
pub struct Item<'a> {
    /// Its key.
    pub key: Key,
    /// Its value.
    pub value: Value<'a>,
}

/// What happened so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Questions answered with an item.
    pub hits: u64,
    /// Questions answered with "there is none".
    pub negative_hits: u64,
    /// Questions that needed a fill.
    pub misses: u64,
    /// Fills that ended by covering all of their keys.
    pub fills: u64,
    /// Fills thrown away because they had become too old.
    pub fills_stale: u64,
    /// Items that fills have added.
    pub items_filled: u64,
    /// Items that fills have brought and that were better known already.
    pub items_refused: u64,
    /// Clean items evicted.
    pub items_evicted: u64,
    /// Items dropped by invalidation.
    pub items_invalidated: u64,
    /// Known ranges forgotten for want of slots.
    pub ranges_forgotten: u64,
    /// Changes applied.
    pub edits: u64,
    /// Commits that became durable.
    pub commits: u64,
    /// Commits that failed.
    pub commits_failed: u64,
}

/// How much of the cache is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Items, clean and dirty, tombstones too.
    pub items: u32,
    /// Chunks of 64 bytes in values.
    pub chunks: u32,
    /// Items that are dirty, or were and still wait for [`ItemCache::step`].
    pub dirty_items: u32,
    /// Chunks in their values.
    pub dirty_chunks: u32,
    /// Known ranges.
    pub ranges: u32,
    /// Fills begun and not ended.
    pub fills: u32,
}

/// The cache.
pub struct ItemCache<'m> {
    limits: Limits,
    index: Index<'m>,
    slots: &'m mut [Slot],
    links: &'m mut [Link],
    free: u32,
    free_count: u32,
    values: Values<'m>,
    ranges: Ranges<'m>,
    fills: Fills<'m>,
    /// Clean items that nobody asked for since they came, or not recently.
    probation: List,
    /// Clean items that were asked for.
    protected: List,
    dirty_items: u32,
    dirty_chunks: u32,
    /// How many of each may be dirty: see [`narrow`](Self::narrow).
    dirty_max: (u32, u32),
    /// The generation that changes belong to now.
    open: Generation,
    phase: Phase,
    /// Fills of an older root are refused.
    root_min: CommitNo,
    counters: Counters,
}

impl<'m> ItemCache<'m> {
    /// Carves an empty cache. The limits must be valid.
    pub fn carve(arena: &mut Arena<'m>, limits: &Limits) -> Result<ItemCache<'m>, ArenaFull> {
        assert!(limits.validate().is_ok());
        Ok(ItemCache {
            limits: *limits,
            index: Index::carve(arena, limits.items)?,
            slots: arena.slice(limits.items, |index| Slot {
                key: FIRST,
                flags: 0,
                len: 0,
                head: index + 1,
            })?,
            links: arena.slice(limits.items, |_| Link::ALONE)?,
            free: 0,
            free_count: limits.items,
            values: Values::carve(arena, limits.chunks)?,
            ranges: Ranges::carve(arena, limits.ranges)?,
            fills: Fills::carve(arena, limits.fills)?,
            probation: List::EMPTY,
            protected: List::EMPTY,
            dirty_items: 0,
            dirty_chunks: 0,
            dirty_max: (limits.dirty_items, limits.dirty_chunks),
            open: Generation(1),
            phase: Phase::Idle,
            root_min: CommitNo(0),
            counters: Counters::default(),
        })
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        Counters { ranges_forgotten: self.ranges.forgotten(), ..self.counters }
    }

    /// How much is in use.
    #[must_use]
    pub fn usage(&self) -> Usage {
        Usage {
            items: self.limits.items - self.free_count,
            chunks: self.limits.chunks - self.values.free_count(),
            dirty_items: self.dirty_items,
            dirty_chunks: self.dirty_chunks,
            ranges: self.ranges.len(),
            fills: self.fills.active(),
        }
    }

    /// The value of the item of this key, or none if there is no such item.
    pub fn lookup(&mut self, key: &Key) -> Result<Option<Value<'_>>, Miss> {
        let Some(id) = self.find(key) else {
            self.known_absent(key)?;
            return Ok(None);
        };
        self.touch(id);
        if self.slots[id as usize].flags & TOMBSTONE != 0 {
            self.counters.negative_hits += 1;
            return Ok(None);
        }
        self.counters.hits += 1;
        Ok(Some(self.value(id)))
    }

    /// The first item at or after `key` and not after `last`.
    pub fn next(&mut self, key: &Key, last: &Key) -> Result<Option<Item<'_>>, Miss> {
        let found = self.index.ceil(key, LIVE).filter(|entry| entry.key <= *last);
        let mut at = *key;
        while at <= *last && found.is_none_or(|entry| entry.key != at) {
            let Some(range) = self.ranges.touch(&at) else {
                return Err(self.miss(at));
            };
            if let Some(entry) = found.filter(|entry| entry.key <= range.last) {
                at = entry.key;
            } else if range.last < *last {
                at = successor(&range.last).expect("it is below another key");
            } else {
                self.touch_neighbour(last, &range);
                break;
            }
        }
        let found = found.map(|entry| (entry.key, entry.id));
        Ok(self.answer(found))
    }

    /// The last item at or before `key` and not before `first`.
    pub fn prev(&mut self, key: &Key, first: &Key) -> Result<Option<Item<'_>>, Miss> {
        let found = self.index.floor(key, LIVE).filter(|entry| entry.key >= *first);
        let mut at = *key;
        while at >= *first && found.is_none_or(|entry| entry.key != at) {
            let Some(range) = self.ranges.touch(&at) else {
                return Err(self.miss(at));
            };
            if let Some(entry) = found.filter(|entry| entry.key >= range.first) {
                at = entry.key;
            } else if range.first > *first {
                at = predecessor(&range.first).expect("it is above another key");
            } else {
                self.touch_neighbour(first, &range);
                break;
            }
        }
        let found = found.map(|entry| (entry.key, entry.id));
        Ok(self.answer(found))
    }

    /// Drops everything known about the keys of a range, of which no item may be dirty: the lock
    /// that protected them is being given up. Fills of these keys that were begun before become
    /// stale.
    ///
    /// At most `work` items are dropped; call it again with the same range until it says
    /// [`More::No`]. Meanwhile nobody may ask for these keys.
    pub fn invalidate(&mut self, range: &Range, work: u32) -> More {
        self.expire_fills(range);
        self.ranges.subtract(range);
        for _ in 0..work {
            let Some(entry) = self.first_in(range, ANY) else {
                return More::No;
            };
            self.settle(&entry);
            // A tombstone is gone by now.
            if self.index.find(&entry.key).is_some() {
                let flags = self.slots[entry.id as usize].flags;
                assert!(flags & DIRTY == 0, "invalidated while dirty");
                self.drop_item(&entry.key, entry.id);
            }
            self.counters.items_invalidated += 1;
        }
        match self.first_in(range, ANY) {
            Some(_) => More::Yes,
            None => More::No,
        }
    }

    /// Notes that this root exists, from a lock grant or whatever else tells of one: fills begun
    /// from now on must not read an older one. A grant's root must be noted before the first fill
    /// under that lock, because another mount's changes are in it.
    pub fn note_root(&mut self, root: CommitNo) {
        self.root_min = self.root_min.max(root);
    }

    fn first_in(&self, range: &Range, marks: u8) -> Option<index::Entry> {
        self.index.ceil(&range.first, marks).filter(|entry| entry.key <= range.last)
    }

    /// The slot of an item that answers questions.
    fn find(&self, key: &Key) -> Option<u32> {
        self.index.find(key).filter(|entry| entry.marks & UNSEEN == 0).map(|entry| entry.id)
    }

    fn value(&self, id: u32) -> Value<'_> {
        let slot = &self.slots[id as usize];
        self.values.value(slot.head, slot.len)
    }

    fn answer(&mut self, found: Option<(Key, u32)>) -> Option<Item<'_>> {
        let Some((key, id)) = found else {
            self.counters.negative_hits += 1;
            return None;
        };
        self.counters.hits += 1;
        self.touch(id);
        Some(Item { key, value: self.value(id) })
    }

    fn miss(&mut self, at: Key) -> Miss {
        self.counters.misses += 1;
        Miss { at, gap: self.ranges.gap(&at) }
    }

    /// Whether a key without an item is known to have none.
    fn known_absent(&mut self, key: &Key) -> Result<(), Miss> {
        let Some(range) = self.ranges.touch(key) else {
            return Err(self.miss(*key));
        };
        self.touch_neighbour(key, &range);
        self.counters.negative_hits += 1;
        Ok(())
    }

    /// Marks a neighbour of an absent key as used. A window of evicted items takes from the range
    /// what lies between two of them, or between one and the range's end, so it can't reach the
    /// absent key past this neighbour.
    fn touch_neighbour(&mut self, key: &Key, range: &Range) {
        let (before, after) = self.index.around(key);
        let before = before.filter(|entry| entry.key >= range.first);
        let after = after.filter(|entry| entry.key <= range.last);
        if let Some(entry) = before.or(after) {
            self.touch(entry.id);
        }
    }

    /// A slot for a new item, which is on no list and not in the index yet.
    fn new_slot(&mut self, key: &Key, flags: u8, value: &[u8]) -> u32 {
        let id = self.free;
        let head = self.values.store(value);
        let slot = &mut self.slots[id as usize];
        self.free = slot.head;
        self.free_count -= 1;
        *slot = Slot { key: *key, flags, len: value.len() as u16, head };
        self.index.insert(key, marks(flags), id);
        id
    }

    /// Removes the item of this key, which is on no list.
    fn free_slot(&mut self, key: &Key, id: u32) {
        self.index.remove(key).expect("every item is in the index");
        let slot = &mut self.slots[id as usize];
        self.values.forfeit(slot.head, slot.len);
        slot.head = self.free;
        self.free = id;
        self.free_count += 1;
    }

    /// Removes the clean item of this key.
    fn drop_item(&mut self, key: &Key, id: u32) {
        match self.slots[id as usize].flags & PROTECTED {
            0 => self.probation.remove(self.links, id),
            _ => self.protected.remove(self.links, id),
        }
        self.free_slot(key, id);
    }

    /// Chunks of an item's value.
    fn chunks(&self, id: u32) -> u32 {
        chunks_of(usize::from(self.slots[id as usize].len))
    }
}

#[cfg(test)]
mod tests;

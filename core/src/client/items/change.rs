//! Changes of items: several at once, planned and then applied.
//!
//! ```text
//!   plan(edits) --> Err(Stop::Wait): park, run the operation again from the top
//!               --> Err(Stop::Fail): the operation fails, nothing has changed
//!               --> Ok(Plan) --> apply(plan, edits)
//! ```
//!
//! An operation that changes other things too plans them all first. Between plan and apply nothing
//! else may happen to the cache; both are within one call of the node.

use super::commit::Phase;
use super::fill::one_key;
use super::{BLIND, DIRTY, ItemCache, Key, Miss, Needs, PERSISTENT, PROTECTED, TOMBSTONE, marks};
use crate::error::Error;

/// One change of one item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edit<'a> {
    /// Adds an item that must not exist. The key must be known.
    Create {
        /// Its key.
        key: Key,
        /// Its value.
        value: &'a [u8],
    },
    /// Gives an item that must exist another value.
    Replace {
        /// Its key.
        key: Key,
        /// Its new value.
        value: &'a [u8],
    },
    /// Removes an item that must exist.
    Delete {
        /// Its key.
        key: Key,
    },
    /// Writes an item whether or not there is one, without knowing, under a lock that only lets
    /// write. The key must be in no known range.
    CreateBlind {
        /// Its key.
        key: Key,
        /// Its value.
        value: &'a [u8],
    },
    /// Deletes an item in the same way.
    DeleteBlind {
        /// Its key.
        key: Key,
    },
}

impl<'a> Edit<'a> {
    /// The value written, if one is.
    #[must_use]
    pub fn value(&self) -> Option<&'a [u8]> {
        match self {
            Edit::Create { value, .. }
            | Edit::Replace { value, .. }
            | Edit::CreateBlind { value, .. } => Some(value),
            Edit::Delete { .. } | Edit::DeleteBlind { .. } => None,
        }
    }
}

/// What an operation waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// A fill of the missing key.
    Fill(Miss),
    /// The end of a commit, which is to be begun if none is in flight: the dirty budget is used up.
    Commit,
    /// The end of the copying for a commit. Changes wait for it, questions don't.
    Snapshot,
}

/// Why an operation stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Run it again from the top when this has happened.
    Wait(Wait),
    /// It can't be done: [`Error::Exists`] or [`Error::NotFound`].
    Fail(Error),
}

impl From<Miss> for Stop {
    fn from(miss: Miss) -> Stop {
        Stop::Wait(Wait::Fill(miss))
    }
}

impl From<Wait> for Stop {
    fn from(wait: Wait) -> Stop {
        Stop::Wait(wait)
    }
}

/// Edits that can be applied now.
#[derive(Debug)]
#[must_use]
pub struct Plan {
    needs: Needs,
}

impl ItemCache<'_> {
    /// Makes room for a change of this size, which must be at most [`Limits::change`]. Holds until
    /// the next change or fill.
    ///
    /// Clean items may be evicted for it. Which ones is a matter of use, so that those an operation
    /// has just looked at are the last; but what its edits need is checked afterwards, by
    /// [`plan`](Self::plan). The work is one eviction for each item needed, and more where the
    /// items evicted have shorter values: as many as have been filled in, over time.
    ///
    /// [`Limits::change`]: super::Limits::change
    pub fn reserve(&mut self, needs: Needs) -> Result<(), Wait> {
        assert!(needs.fits(self.limits.change), "the change is larger than the limit for changes");
        match self.phase {
            Phase::Copying { .. } => return Err(Wait::Snapshot),
            Phase::Idle | Phase::InFlight | Phase::Ending { .. } => {}
        }
        if self.dirty_items + needs.items > self.dirty_max.0
            || self.dirty_chunks + needs.chunks() > self.dirty_max.1
        {
            return Err(Wait::Commit);
        }
        self.make_room(needs.items, needs.chunks());
        Ok(())
    }

    /// Lets no more items and chunks be dirty than this, or than the largest change needs, or than
    /// the limits say. Whether that is more than before.
    pub fn narrow(&mut self, items: u32, chunks: u32) -> bool {
        let limits = &self.limits;
        let items = items.clamp(limits.change.items, limits.dirty_items);
        let chunks = chunks.clamp(limits.change.chunks(), limits.dirty_chunks);
        let before = core::mem::replace(&mut self.dirty_max, (items, chunks));
        items > before.0 || chunks > before.1
    }

    /// How many items and chunks may be dirty.
    #[must_use]
    pub fn dirty_max(&self) -> (u32, u32) {
        self.dirty_max
    }

    /// Makes sure that these edits can be applied, all of them, in this order. Their keys must
    /// differ.
    pub fn plan(&mut self, edits: &[Edit<'_>]) -> Result<Plan, Stop> {
        let needs = Needs::of(edits);
        self.reserve(needs)?;
        for edit in edits {
            match edit {
                Edit::Create { key, .. } if self.exists(key)? => {
                    return Err(Stop::Fail(Error::Exists));
                }
                Edit::Replace { key, .. } | Edit::Delete { key } if !self.exists(key)? => {
                    return Err(Stop::Fail(Error::NotFound));
                }
                Edit::Create { .. } | Edit::Replace { .. } | Edit::Delete { .. } => {}
                Edit::CreateBlind { .. } | Edit::DeleteBlind { .. } => {}
            }
        }
        Ok(Plan { needs })
    }

    /// Applies the edits that were planned.
    #[expect(clippy::needless_pass_by_value, reason = "a plan is used once")]
    pub fn apply(&mut self, plan: Plan, edits: &[Edit<'_>]) {
        assert!(plan.needs == Needs::of(edits), "planned were other edits");
        for edit in edits {
            match edit {
                Edit::Create { key, value } => self.create(key, value),
                Edit::Replace { key, value } => {
                    let id = self.find_live(key).expect("planned");
                    self.rewrite(id, Some(value));
                }
                Edit::Delete { key } => self.delete(key),
                Edit::CreateBlind { key, value } => self.write_blind(key, Some(value)),
                Edit::DeleteBlind { key } => self.write_blind(key, None),
            }
        }
        self.counters.edits += edits.len() as u64;
    }

    fn exists(&mut self, key: &Key) -> Result<bool, Miss> {
        Ok(self.lookup(key)?.is_some())
    }

    fn find_live(&self, key: &Key) -> Option<u32> {
        self.find(key).filter(|id| self.slots[*id as usize].flags & TOMBSTONE == 0)
    }

    fn create(&mut self, key: &Key, value: &[u8]) {
        match self.find(key) {
            Some(id) => {
                assert!(self.slots[id as usize].flags & TOMBSTONE != 0, "it exists");
                self.rewrite(id, Some(value));
            }
            None => {
                debug_assert!(self.ranges.find(key).is_some(), "the plan has looked at that");
                self.add_dirty(key, 0, value);
            }
        }
    }

    fn delete(&mut self, key: &Key) {
        let id = self.find_live(key).expect("planned");
        let slot = &self.slots[id as usize];
        if slot.flags & PERSISTENT != 0 {
            self.rewrite(id, None);
            return;
        }
        // It never left this cache, and its range says that there is no other.
        assert!(slot.flags & DIRTY != 0, "an item that is nowhere else is dirty");
        self.dirty_items -= 1;
        self.dirty_chunks -= self.chunks(id);
        self.free_slot(key, id);
    }

    fn write_blind(&mut self, key: &Key, value: Option<&[u8]>) {
        assert!(self.ranges.find(key).is_none(), "a blind change of what is known");
        // A fill of this key would have begun under another lock.
        self.expire_fills(&one_key(key));
        match self.index.find(key) {
            Some(entry) => {
                let flags = self.slots[entry.id as usize].flags;
                assert!(flags & BLIND != 0, "a blind change of what is known");
                self.rewrite(entry.id, value);
            }
            None => {
                let tombstone = if value.is_none() { TOMBSTONE } else { 0 };
                self.add_dirty(key, BLIND | PERSISTENT | tombstone, value.unwrap_or(&[]));
            }
        }
    }

    fn add_dirty(&mut self, key: &Key, flags: u8, value: &[u8]) {
        let id = self.new_slot(key, flags | self.open.bit(), value);
        self.dirty_items += 1;
        self.dirty_chunks += self.chunks(id);
    }

    /// Gives an item another value, or makes it a tombstone.
    fn rewrite(&mut self, id: u32, value: Option<&[u8]>) {
        let old_chunks = self.chunks(id);
        let slot = &mut self.slots[id as usize];
        if slot.flags & DIRTY != 0 {
            self.dirty_chunks -= old_chunks;
        } else {
            self.dirty_items += 1;
            match slot.flags & PROTECTED {
                0 => self.probation.remove(self.links, id),
                _ => self.protected.remove(self.links, id),
            }
        }
        let tombstone = if value.is_none() { TOMBSTONE } else { 0 };
        let old_marks = marks(slot.flags);
        slot.flags = slot.flags & !(TOMBSTONE | PROTECTED) | tombstone | self.open.bit();
        let value = value.unwrap_or(&[]);
        self.values.forfeit(slot.head, slot.len);
        slot.head = self.values.store(value);
        slot.len = value.len() as u16;
        if marks(slot.flags) != old_marks {
            self.index.mark(&slot.key, marks(slot.flags));
        }
        self.dirty_chunks += self.chunks(id);
    }
}

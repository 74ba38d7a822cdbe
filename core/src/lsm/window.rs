//! A window on the items around a key: what is known of a range of keys, as far as memory goes.
//!
//! # Invariants
//!
//! * The window always has its key in it, and only gets narrower.
//! * Of every key in the window that has been put in, the first put in is what the window holds:
//!   callers go from newer runs to older ones.
//! * When memory ends, the window gives up keys from the side of its key that has more items, the
//!   farthest first: so what it holds never has gaps. The item of its own key is never given up.
//! * Items are records in `bytes`, in the order in which they came; `table` has their offsets in
//!   key order. Records that no offset leads to are garbage, and are closed up when room runs out.
//!
//! What this module deliberately doesn't know: where items come from.

use super::range::{KeyRange, after, before};
use crate::arena::{Arena, ArenaFull};
use crate::format::key::KeyBytes;
use crate::format::run::{RunItemHeader, TOMBSTONE, VALUE_BYTES_MAX, Value};
use zerocopy::{FromBytes, IntoBytes};

/// Bytes that the largest item takes of a window.
pub const ITEM_BYTES_MAX: u32 = (size_of::<RunItemHeader>() + VALUE_BYTES_MAX) as u32;

/// How much a window holds at the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowLimits {
    /// Items, tombstones among them.
    pub items: u32,
    /// Bytes of all items, each with 29 more.
    pub bytes: u32,
}

/// The limit that is too small.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowLimitsError {
    /// Not even one item.
    Items,
    /// Not even the largest item, or more than can be numbered.
    Bytes,
}

impl WindowLimits {
    /// Whether a window can hold the item of its own key, whatever it is.
    pub fn validate(&self) -> Result<(), WindowLimitsError> {
        if self.items == 0 {
            return Err(WindowLimitsError::Items);
        }
        if self.bytes < ITEM_BYTES_MAX || self.bytes > i32::MAX as u32 {
            return Err(WindowLimitsError::Bytes);
        }
        Ok(())
    }
}

/// See the module.
#[derive(Debug)]
pub struct Window<'m> {
    key: KeyBytes,
    range: KeyRange,
    bytes: &'m mut [u8],
    bytes_used: usize,
    table: &'m mut [u32],
    len: usize,
}

impl<'m> Window<'m> {
    /// Carves a window. The limits must be valid.
    pub fn carve(arena: &mut Arena<'m>, limits: &WindowLimits) -> Result<Window<'m>, ArenaFull> {
        assert!(limits.validate().is_ok(), "the node checks its limits before");
        Ok(Window {
            key: KeyBytes::ZERO,
            range: KeyRange::all(),
            bytes: arena.slice(limits.bytes, |_| 0)?,
            bytes_used: 0,
            table: arena.slice(limits.items, |_| 0)?,
            len: 0,
        })
    }

    /// Starts over, around a key in this range.
    pub fn begin(&mut self, key: &KeyBytes, range: &KeyRange) {
        assert!(range.contains(key));
        (self.key, self.range) = (*key, *range);
        (self.bytes_used, self.len) = (0, 0);
    }

    /// The key the window is around.
    #[must_use]
    pub fn key(&self) -> &KeyBytes {
        &self.key
    }

    /// What is in the window.
    #[must_use]
    pub fn range(&self) -> &KeyRange {
        &self.range
    }

    /// How many items it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Item number `index`, in the order of keys.
    #[must_use]
    pub fn get(&self, index: usize) -> (&KeyBytes, Value<'_>) {
        self.read(self.table[..self.len][index] as usize)
    }

    /// Number of the item with this key, or of the first one behind it.
    pub fn search(&self, key: &KeyBytes) -> Result<usize, usize> {
        self.table[..self.len].binary_search_by(|&at| self.read(at as usize).0.cmp(key))
    }

    /// Gives up all keys that aren't in this range. The window's key must be.
    pub fn narrow(&mut self, range: &KeyRange) {
        assert!(range.contains(&self.key), "the window would lose its key");
        self.range = self.range.common(range).expect("the key is in both");
        let end = self.search(&self.range.last).map_or_else(|above| above, |at| at + 1);
        self.len = end;
        let start = self.search(&self.range.first).unwrap_or_else(|above| above);
        self.table.copy_within(start..end, 0);
        self.len = end - start;
    }

    /// Puts an item in, unless one of its key is there, or it isn't in the window.
    pub fn put(&mut self, key: &KeyBytes, value: &Value<'_>) {
        if !self.range.contains(key) || self.search(key).is_ok() || !self.make_room(key, value) {
            return;
        }
        let index = self.search(key).expect_err("it isn't there");
        let (bytes, value_bytes) = match value {
            Value::Bytes(bytes) => (*bytes, bytes.len() as u16),
            Value::Tombstone => (&[][..], TOMBSTONE),
        };
        let header = RunItemHeader { key: *key, value_bytes: value_bytes.into() };
        let start = self.bytes_used;
        let (head, rest) = self.bytes[start..].split_at_mut(size_of::<RunItemHeader>());
        head.copy_from_slice(header.as_bytes());
        rest[..bytes.len()].copy_from_slice(bytes);
        self.bytes_used += record_bytes(value);
        self.table.copy_within(index..self.len, index + 1);
        self.table[index] = start as u32;
        self.len += 1;
    }

    /// Takes tombstones out, once nothing older can come.
    pub fn drop_tombstones(&mut self) {
        let mut kept = 0;
        for index in 0..self.len {
            if self.get(index).1 != Value::Tombstone {
                self.table[kept] = self.table[index];
                kept += 1;
            }
        }
        self.len = kept;
    }

    fn read(&self, at: usize) -> (&KeyBytes, Value<'_>) {
        let (header, rest) =
            RunItemHeader::ref_from_prefix(&self.bytes[at..]).expect("a whole record");
        let value = match header.value_bytes.get() {
            TOMBSTONE => Value::Tombstone,
            bytes => Value::Bytes(&rest[..usize::from(bytes)]),
        };
        (&header.key, value)
    }

    /// Gives keys up until there is room for this item. False: it is among them.
    fn make_room(&mut self, key: &KeyBytes, value: &Value<'_>) -> bool {
        let bytes = record_bytes(value);
        loop {
            if self.len < self.table.len() {
                if self.bytes_used + bytes <= self.bytes.len() {
                    return true;
                }
                self.compact();
                if self.bytes_used + bytes <= self.bytes.len() {
                    return true;
                }
            }
            if !self.give_up_one(key) {
                return false;
            }
        }
    }

    /// Gives up the farthest key of the fuller side, the new one counted. False: that is the new
    /// one.
    fn give_up_one(&mut self, new: &KeyBytes) -> bool {
        let middle = self.search(&self.key);
        let below = middle.unwrap_or_else(|above| above);
        let above = self.len - middle.map_or_else(|above| above, |at| at + 1);
        let above = above + usize::from(*new > self.key);
        let below = below + usize::from(*new < self.key);
        let range = if above > 0 && above >= below {
            let top = self.len.checked_sub(1).map_or(new, |top| self.get(top).0).max(new);
            KeyRange { first: self.range.first, last: before(top).expect("above another key") }
        } else {
            assert!(below > 0, "there is room for the item of the window's key");
            let low = if self.len > 0 { self.get(0).0 } else { new }.min(new);
            KeyRange { first: after(low).expect("below another key"), last: self.range.last }
        };
        self.narrow(&range);
        range.contains(new)
    }

    /// Closes up the garbage.
    fn compact(&mut self) {
        let (mut from, mut to) = (0, 0);
        while from < self.bytes_used {
            let (key, value) = self.read(from);
            let bytes = record_bytes(&value);
            // Records move down only, so all that are still to be visited are whole.
            if let Ok(index) = self.search(key)
                && self.table[index] as usize == from
            {
                self.bytes.copy_within(from..from + bytes, to);
                self.table[index] = to as u32;
                to += bytes;
            }
            from += bytes;
        }
        self.bytes_used = to;
    }
}

fn record_bytes(value: &Value<'_>) -> usize {
    let bytes = match value {
        Value::Bytes(bytes) => bytes.len(),
        Value::Tombstone => 0,
    };
    size_of::<RunItemHeader>() + bytes
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::{ITEM_BYTES_MAX, Window, WindowLimits, WindowLimitsError};
    use crate::btree::rig::{Rng, carve};
    use crate::format::Ino;
    use crate::format::key::{Key, KeyBytes};
    use crate::format::run::Value;
    use crate::lsm::KeyRange;
    use std::collections::BTreeMap;
    use std::vec::Vec;

    fn key(n: u64) -> KeyBytes {
        Key::inode(Ino(n)).into()
    }

    #[test]
    fn a_window_is_a_gapless_part_of_what_went_in() {
        let mut cut = 0;
        for seed in 0..300 {
            let mut rng = Rng(seed);
            let limits = WindowLimits {
                items: 1 + rng.below(20) as u32,
                bytes: ITEM_BYTES_MAX + rng.below(2000) as u32,
            };
            let mut window = carve(|arena| Window::carve(arena, &limits));
            let middle = rng.below(60);
            window.begin(&key(middle), &KeyRange { first: key(0), last: key(60) });
            let mut model = BTreeMap::<KeyBytes, Option<Vec<u8>>>::new();
            for _ in 0..rng.below(200) {
                if rng.one_in(40) {
                    let first = key(rng.below(middle + 1));
                    let last = key(middle + rng.below(61 - middle));
                    window.narrow(&KeyRange { first, last });
                    continue;
                }
                let bytes = std::vec![rng.next() as u8; rng.below(513) as usize];
                let stored = (!rng.one_in(4)).then_some(bytes);
                let at = key(rng.below(61));
                let value = stored.as_deref().map_or(Value::Tombstone, Value::Bytes);
                window.put(&at, &value);
                model.entry(at).or_insert(stored);
            }
            let range = *window.range();
            assert!(range.contains(&key(middle)));
            cut += usize::from(range.first > key(0) || range.last < key(60));
            // What was put in after the window had given its key up is not in it, so neither
            // counts.
            let inside: Vec<_> = model.range(range.first..=range.last).collect();
            assert_eq!(inside.len(), window.len());
            for (at, (key, stored)) in inside.iter().enumerate() {
                let value = stored.as_deref().map_or(Value::Tombstone, Value::Bytes);
                assert_eq!(window.get(at), (*key, value));
            }
            window.drop_tombstones();
            assert_eq!(window.len(), inside.iter().filter(|(_, stored)| stored.is_some()).count());
        }
        assert!(cut > 100);
    }

    #[test]
    fn a_window_holds_the_largest_item() {
        let limits = WindowLimits { items: 1, bytes: ITEM_BYTES_MAX };
        assert_eq!(limits.validate(), Ok(()));
        let small = WindowLimits { bytes: ITEM_BYTES_MAX - 1, ..limits };
        assert_eq!(small.validate(), Err(WindowLimitsError::Bytes));
        assert_eq!(WindowLimits { items: 0, ..limits }.validate(), Err(WindowLimitsError::Items));
        let mut window = carve(|arena| Window::carve(arena, &limits));
        window.begin(&key(5), &KeyRange { first: key(0), last: key(9) });
        window.put(&key(6), &Value::Bytes(&[1; 512]));
        window.put(&key(5), &Value::Bytes(&[2; 512]));
        window.put(&key(4), &Value::Tombstone);
        assert_eq!(window.len(), 1);
        assert_eq!(window.get(0), (&key(5), Value::Bytes(&[2; 512])));
    }
}

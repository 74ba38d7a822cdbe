//! An ordered index: a B+-tree in the arena that maps keys to slot numbers.
//!
//! Keys stand in the nodes themselves, 32 bytes an entry, so that a search touches a few contiguous
//! lines in each of a few nodes instead of one line for each comparison, and neighbours in key
//! order are neighbours in memory. The price is up to 68 bytes an item, where a treap over slot
//! numbers would take 12: a test measures both, and the standard library's map. Each entry carries
//! *marks*, and each inner entry the union of the marks below it: the next entry with a given mark
//! is found without looking at those in between.
//!
//! # Invariants
//!
//! * Every node but the root is at least half full, so that [`nodes_max`] nodes always suffice.
//! * An inner entry's key is at most every key below it, and above every key of the entry before
//!   it. The first entry of an inner node has the key of the node's entry in its parent, so that
//!   entries can move between siblings as they are.
//! * An inner entry's marks are exactly the union of the marks below it.
//!
//! What this module deliberately doesn't know: what a slot holds and what a mark means.

use super::Key;
use super::key::FIRST;
use crate::arena::{Arena, ArenaFull};
use heapless::Vec;

/// Entries of a node.
const FANOUT: usize = 32;
/// Entries that every node but the root has.
const HALF: usize = FANOUT / 2;
/// Levels of a tree: half-full nodes of this many levels hold more than 2^32 entries.
const LEVELS_MAX: usize = 9;

/// What the index says about a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    /// The key.
    pub(super) key: Key,
    /// Which searches find it.
    pub(super) marks: u8,
    /// The slot, or the child node.
    pub(super) id: u32,
}

const _: () = assert!(size_of::<Entry>() == 32);

const NO_ENTRY: Entry = Entry { key: FIRST, marks: 0, id: 0 };

struct Node {
    len: u32,
    entries: [Entry; FANOUT],
}

impl Node {
    fn used(&self) -> &[Entry] {
        &self.entries[..self.len as usize]
    }

    fn marks(&self) -> u8 {
        self.marks_among(u8::MAX)
    }

    /// The union of all marks, if it can't be more than `most`: then a look at a few entries is
    /// enough, as a rule.
    fn marks_among(&self, most: u8) -> u8 {
        let mut marks = 0;
        for entry in self.used() {
            marks |= entry.marks;
            if marks == most {
                break;
            }
        }
        marks
    }

    /// Position of the first entry at or above the key, in a leaf.
    fn ceil(&self, key: &Key) -> usize {
        let key = number(key);
        self.used().partition_point(|entry| number(&entry.key) < key)
    }

    /// Position of the child that has the key if any has, in an inner node.
    fn child(&self, key: &Key) -> usize {
        let key = number(key);
        self.used()[1..].partition_point(|entry| number(&entry.key) <= key)
    }

    fn first(&self, marks: u8) -> Option<Entry> {
        self.used().iter().find(|entry| entry.marks & marks != 0).copied()
    }

    fn last(&self, marks: u8) -> Option<Entry> {
        self.used().iter().rfind(|entry| entry.marks & marks != 0).copied()
    }

    fn insert(&mut self, at: usize, entry: Entry) {
        let len = self.len as usize;
        self.entries.copy_within(at..len, at + 1);
        self.entries[at] = entry;
        self.len += 1;
    }

    fn remove(&mut self, at: usize) {
        self.entries.copy_within(at + 1..self.len as usize, at);
        self.len -= 1;
    }
}

/// A key as numbers of the same order, which compare without a call. The 5 bytes that are in both
/// are equal when the second one counts.
fn number(key: &Key) -> (u128, u128) {
    let (first, last) = (key.first_chunk::<16>(), key.last_chunk::<16>());
    (u128::from_be_bytes(*first.expect("27 bytes")), u128::from_be_bytes(*last.expect("27 bytes")))
}

/// Where a descent went: the node, and the position in it.
type Path = Vec<(u32, usize), LEVELS_MAX>;

/// The most nodes a tree of `entries` entries can have.
pub(super) fn nodes_max(entries: u32) -> u32 {
    let mut level = (entries / HALF as u32).max(1);
    let mut nodes = level;
    while level > 1 {
        level = (level / HALF as u32).max(1);
        nodes += level;
    }
    nodes
}

/// The index.
pub(super) struct Index<'m> {
    nodes: &'m mut [Node],
    root: u32,
    /// Inner levels above the leaves.
    height: usize,
    /// First free node; the first entry of a free node names the next one.
    free: u32,
}

impl<'m> Index<'m> {
    /// Carves an index of up to `entries` entries.
    pub(super) fn carve(arena: &mut Arena<'m>, entries: u32) -> Result<Index<'m>, ArenaFull> {
        let nodes = arena.slice(nodes_max(entries), |index| Node {
            len: 0,
            entries: [Entry { id: index + 1, ..NO_ENTRY }; FANOUT],
        })?;
        Ok(Index { nodes, root: 0, height: 0, free: 1 })
    }

    /// The entry of this key.
    pub(super) fn find(&self, key: &Key) -> Option<Entry> {
        let mut node = &self.nodes[self.root as usize];
        for _ in 0..self.height {
            node = &self.nodes[node.entries[node.child(key)].id as usize];
        }
        node.used().get(node.ceil(key)).filter(|entry| entry.key == *key).copied()
    }

    /// The first entry at or after the key that has one of the marks.
    pub(super) fn ceil(&self, key: &Key, marks: u8) -> Option<Entry> {
        let mut node = &self.nodes[self.root as usize];
        let mut right = None;
        for level in (0..self.height).rev() {
            let at = node.child(key);
            if let Some(next) = node.used()[at + 1..].iter().find(|e| e.marks & marks != 0) {
                right = Some((next.id, level));
            }
            node = &self.nodes[node.entries[at].id as usize];
        }
        let found = node.used()[node.ceil(key)..].iter().find(|entry| entry.marks & marks != 0);
        found.copied().or_else(|| self.first_below(right?, marks))
    }

    /// The last entry at or before the key that has one of the marks.
    pub(super) fn floor(&self, key: &Key, marks: u8) -> Option<Entry> {
        let mut node = &self.nodes[self.root as usize];
        let mut left = None;
        for level in (0..self.height).rev() {
            let at = node.child(key);
            if let Some(before) = node.used()[..at].iter().rfind(|e| e.marks & marks != 0) {
                left = Some((before.id, level));
            }
            node = &self.nodes[node.entries[at].id as usize];
        }
        let key = number(key);
        let end = node.used().partition_point(|entry| number(&entry.key) <= key);
        let found = node.used()[..end].iter().rfind(|entry| entry.marks & marks != 0);
        found.copied().or_else(|| self.last_below(left?, marks))
    }

    /// What [`floor`](Self::floor) and [`ceil`](Self::ceil) find of any mark, in one descent.
    pub(super) fn around(&self, key: &Key) -> (Option<Entry>, Option<Entry>) {
        let mut node = &self.nodes[self.root as usize];
        let (mut left, mut right) = (None, None);
        for level in (0..self.height).rev() {
            let at = node.child(key);
            left = at.checked_sub(1).map(|at| (node.entries[at].id, level)).or(left);
            right = node.used().get(at + 1).map(|next| (next.id, level)).or(right);
            node = &self.nodes[node.entries[at].id as usize];
        }
        let at = node.ceil(key);
        let ceil = node.used().get(at).copied().or_else(|| self.first_below(right?, u8::MAX));
        if ceil.is_some_and(|entry| entry.key == *key) {
            return (ceil, ceil);
        }
        let below = at.checked_sub(1).map(|at| node.entries[at]);
        (below.or_else(|| self.last_below(left?, u8::MAX)), ceil)
    }

    /// The first entry with one of the marks below a node that is so many levels above the leaves.
    fn first_below(&self, (mut id, levels): (u32, usize), marks: u8) -> Option<Entry> {
        for _ in 0..levels {
            id = self.nodes[id as usize].first(marks)?.id;
        }
        self.nodes[id as usize].first(marks)
    }

    /// The last one.
    fn last_below(&self, (mut id, levels): (u32, usize), marks: u8) -> Option<Entry> {
        for _ in 0..levels {
            id = self.nodes[id as usize].last(marks)?.id;
        }
        self.nodes[id as usize].last(marks)
    }

    /// Adds an entry. The key must be new, and the index must not be full.
    pub(super) fn insert(&mut self, key: &Key, marks: u8, id: u32) {
        let mut path = self.path(key);
        let mut new = Some(Entry { key: *key, marks, id });
        while let Some((id, at)) = path.pop() {
            let leaf = path.len() == self.height;
            let node = &mut self.nodes[id as usize];
            let Some(entry) = new.take() else {
                node.entries[at].marks |= marks;
                continue;
            };
            // In an inner node `at` is the child that was split: its right half follows it.
            let at = if leaf { at } else { at + 1 };
            assert!(!leaf || node.used().get(at).is_none_or(|entry| entry.key != *key));
            if (node.len as usize) < FANOUT {
                node.insert(at, entry);
                continue;
            }
            new = Some(self.split(id, at, entry));
            if let Some((parent, at)) = path.last() {
                self.nodes[*parent as usize].entries[*at].marks = self.nodes[id as usize].marks();
            }
        }
        if let Some(right) = new {
            let old = self.root;
            let marks = self.nodes[old as usize].marks();
            self.root = self.acquire();
            let root = &mut self.nodes[self.root as usize];
            root.insert(0, Entry { key: FIRST, marks, id: old });
            root.insert(1, right);
            self.height += 1;
        }
    }

    /// Removes the entry of this key and returns its slot.
    pub(super) fn remove(&mut self, key: &Key) -> Option<u32> {
        let mut path = self.path(key);
        let (leaf, at) = path.pop().expect("a path ends in a leaf");
        let node = &mut self.nodes[leaf as usize];
        let found = *node.used().get(at).filter(|entry| entry.key == *key)?;
        node.remove(at);
        let mut child = leaf;
        while let Some((parent, at)) = path.pop() {
            if (self.nodes[child as usize].len as usize) < HALF {
                self.rebalance(parent, at);
            } else {
                let before = self.nodes[parent as usize].entries[at].marks;
                let marks = self.nodes[child as usize].marks_among(before);
                if marks == before {
                    // Neither this level's nodes nor any above have changed.
                    return Some(found.id);
                }
                self.nodes[parent as usize].entries[at].marks = marks;
            }
            child = parent;
        }
        if self.height > 0 && self.nodes[self.root as usize].len == 1 {
            let old = self.root;
            self.root = self.nodes[old as usize].entries[0].id;
            self.height -= 1;
            self.forfeit(old);
        }
        Some(found.id)
    }

    /// Replaces the marks of an entry that exists.
    pub(super) fn mark(&mut self, key: &Key, marks: u8) {
        let mut path = self.path(key);
        let (mut child, at) = path.pop().expect("a path ends in a leaf");
        let entry = &mut self.nodes[child as usize].entries[at];
        assert!(entry.key == *key);
        entry.marks = marks;
        while let Some((parent, at)) = path.pop() {
            let before = self.nodes[parent as usize].entries[at].marks;
            let marks = self.nodes[child as usize].marks_among(before | marks);
            if marks == before {
                return;
            }
            self.nodes[parent as usize].entries[at].marks = marks;
            child = parent;
        }
    }

    /// The way to where the key is or would be inserted.
    fn path(&self, key: &Key) -> Path {
        let mut path = Path::new();
        let mut id = self.root;
        for _ in 0..self.height {
            let at = self.nodes[id as usize].child(key);
            path.push((id, at)).expect("the height is bounded");
            id = self.nodes[id as usize].entries[at].id;
        }
        path.push((id, self.nodes[id as usize].ceil(key))).expect("the height is bounded");
        path
    }

    /// Splits a full node in halves, one of which takes the entry for position `at`. Returns the
    /// parent's entry for the right half.
    fn split(&mut self, id: u32, at: usize, entry: Entry) -> Entry {
        let right_id = self.acquire();
        let [left, right] = self.pair(id, right_id);
        right.entries[..HALF].copy_from_slice(&left.entries[HALF..]);
        (left.len, right.len) = (HALF as u32, HALF as u32);
        match at <= HALF {
            true => left.insert(at, entry),
            false => right.insert(at - HALF, entry),
        }
        Entry { key: right.entries[0].key, marks: right.marks(), id: right_id }
    }

    /// Merges the child at `at`, which has too few entries, with a neighbour, or balances the two.
    fn rebalance(&mut self, parent_id: u32, at: usize) {
        let at = at.max(1);
        let parent = &self.nodes[parent_id as usize];
        let (left_id, right_id) = (parent.entries[at - 1].id, parent.entries[at].id);
        let [left, right] = self.pair(left_id, right_id);
        let (left_len, right_len) = (left.len as usize, right.len as usize);
        let merge = left_len + right_len <= FANOUT;
        let left_want = if merge { left_len + right_len } else { (left_len + right_len) / 2 };
        if left_want >= left_len {
            let moved = left_want - left_len;
            left.entries[left_len..left_want].copy_from_slice(&right.entries[..moved]);
            right.entries.copy_within(moved..right_len, 0);
        } else {
            let moved = left_len - left_want;
            right.entries.copy_within(..right_len, moved);
            right.entries[..moved].copy_from_slice(&left.entries[left_want..left_len]);
        }
        left.len = left_want as u32;
        right.len = (left_len + right_len - left_want) as u32;
        let (left_marks, right_marks) = (left.marks(), right.marks());
        let right_key = right.entries[0].key;
        let parent = &mut self.nodes[parent_id as usize];
        parent.entries[at - 1].marks = left_marks;
        if merge {
            parent.remove(at);
            self.forfeit(right_id);
        } else {
            parent.entries[at].marks = right_marks;
            parent.entries[at].key = right_key;
        }
    }

    fn pair(&mut self, left: u32, right: u32) -> [&mut Node; 2] {
        let pair = self.nodes.get_disjoint_mut([left as usize, right as usize]);
        pair.expect("siblings are two nodes")
    }

    fn acquire(&mut self) -> u32 {
        let id = self.free;
        let node = &mut self.nodes[id as usize];
        self.free = node.entries[0].id;
        node.len = 0;
        id
    }

    fn forfeit(&mut self, id: u32) {
        self.nodes[id as usize].entries[0].id = self.free;
        self.free = id;
    }
}

#[cfg(test)]
mod tests;

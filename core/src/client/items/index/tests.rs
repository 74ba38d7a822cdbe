//! The index against a map.

extern crate std;

use super::{Entry, FANOUT, HALF, Index, nodes_max};
use crate::arena::Arena;
use crate::client::items::key::{FIRST, Key, LAST};
use crate::client::items::tests::{Region, SplitMix};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Instant;
use std::vec::Vec;

const ENTRIES: u32 = 700;

fn key(number: u16) -> Key {
    let mut key = FIRST;
    key[0] = 3;
    key[7..9].copy_from_slice(&number.to_be_bytes());
    key
}

/// Checks a subtree against the invariants; returns its nodes, entries and marks.
fn audit(index: &Index<'_>, id: u32, level: usize, bounds: (&Key, &Key)) -> (u32, u32, u8) {
    let node = &index.nodes[id as usize];
    let used = node.used();
    assert!(id == index.root || used.len() >= HALF);
    assert!(level == 0 || used.len() >= 2);
    assert!(used.len() <= FANOUT);
    assert!(used.is_sorted_by(|a, b| a.key < b.key));
    assert!(used.iter().all(|entry| *bounds.0 <= entry.key && entry.key <= *bounds.1));
    assert!(level == 0 || used[0].key == *bounds.0);
    if level == 0 {
        return (1, used.len() as u32, node.marks());
    }
    let mut sum = (1, 0, 0);
    for (at, entry) in used.iter().enumerate() {
        let last = used.get(at + 1).map_or(bounds.1, |next| &next.key);
        let (nodes, entries, marks) = audit(index, entry.id, level - 1, (&entry.key, last));
        assert_eq!(entry.marks, marks);
        sum = (sum.0 + nodes, sum.1 + entries, sum.2 | marks);
    }
    sum
}

fn free_nodes(index: &Index<'_>) -> u32 {
    let mut count = 0;
    let mut id = index.free;
    while let Some(node) = index.nodes.get(id as usize) {
        count += 1;
        id = node.entries[0].id;
    }
    count
}

fn with_index<R>(entries: u32, run: impl FnOnce(&mut Index<'_>) -> R) -> R {
    let mut region = Region::measured(|arena| Index::carve(arena, entries).map(|_| ()));
    let mut arena = Arena::new(region.bytes()).unwrap();
    run(&mut Index::carve(&mut arena, entries).unwrap())
}

#[derive(Debug, Clone)]
enum Op {
    Insert(u16, u8),
    Remove(u16),
    Mark(u16, u8),
    Search(u16, u8),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let number = 0..1000u16;
    let op = prop_oneof![
        6 => (number.clone(), 1..8u8).prop_map(|(number, marks)| Op::Insert(number, marks)),
        4 => number.clone().prop_map(Op::Remove),
        2 => (number.clone(), 1..8u8).prop_map(|(number, marks)| Op::Mark(number, marks)),
        3 => (number, 1..8u8).prop_map(|(number, marks)| Op::Search(number, marks)),
    ];
    prop::collection::vec(op, 1..3000)
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() }
}

proptest! {
    #![proptest_config(config())]

    /// It does what a map does, with every structural invariant intact.
    #[test]
    fn it_is_a_map(ops in ops()) {
        with_index(ENTRIES, |index| {
            let mut model = BTreeMap::<Key, (u8, u32)>::new();
            for (id, op) in ops.into_iter().enumerate() {
                match op {
                    Op::Insert(number, marks) => {
                        let full = model.len() == ENTRIES as usize;
                        if !full && !model.contains_key(&key(number)) {
                            model.insert(key(number), (marks, id as u32));
                            index.insert(&key(number), marks, id as u32);
                        }
                    }
                    Op::Remove(number) => {
                        let expected = model.remove(&key(number)).map(|(_, id)| id);
                        prop_assert_eq!(index.remove(&key(number)), expected);
                    }
                    Op::Mark(number, marks) => {
                        if let Some(entry) = model.get_mut(&key(number)) {
                            entry.0 = marks;
                            index.mark(&key(number), marks);
                        }
                    }
                    Op::Search(number, marks) => {
                        let at = key(number);
                        let entry = |(key, value): (&Key, &(u8, u32))| {
                            Entry { key: *key, marks: value.0, id: value.1 }
                        };
                        let marked = |entry: &Entry| entry.marks & marks != 0;
                        let up = model.range(at..).map(entry).find(marked);
                        let down = model.range(..=at).rev().map(entry).find(marked);
                        prop_assert_eq!(index.ceil(&at, marks), up);
                        prop_assert_eq!(index.floor(&at, marks), down);
                        let up = model.range(at..).map(entry).next();
                        let down = model.range(..=at).map(entry).next_back();
                        prop_assert_eq!(index.around(&at), (down, up));
                        prop_assert_eq!(index.find(&at), model.get_key_value(&at).map(entry));
                    }
                }
                if id % 16 == 0 {
                    let (nodes, entries, _) =
                        audit(index, index.root, index.height, (&FIRST, &LAST));
                    prop_assert_eq!(entries as usize, model.len());
                    prop_assert_eq!(nodes + free_nodes(index), nodes_max(ENTRIES));
                }
            }
            Ok(())
        })?;
    }
}

/// Ascending, descending and random insertion and removal all stay within the nodes carved.
#[test]
fn the_nodes_carved_are_enough() {
    for entries in [1u32, 15, 16, 17, 31, 32, 33, 255, 256, 257, 513, 4096, 5000] {
        with_index(entries, |index| {
            let numbers: Vec<u16> = (0..entries as u16).collect();
            let reversed = numbers.iter().rev().copied().collect();
            let mut mixed = numbers.clone();
            let mut random = SplitMix(7);
            (1..mixed.len()).rev().for_each(|at| mixed.swap(at, random.below(at as u64 + 1)));
            for order in [numbers, reversed, mixed] {
                order.iter().for_each(|number| index.insert(&key(*number), 1, 0));
                let (nodes, found, _) = audit(index, index.root, index.height, (&FIRST, &LAST));
                assert_eq!(found, entries);
                assert!(nodes <= nodes_max(entries));
                order.iter().for_each(|number| assert_eq!(index.remove(&key(*number)), Some(0)));
                assert_eq!(index.ceil(&FIRST, !0), None);
            }
        });
    }
}

/// The alternative: a treap over slot numbers, whose keys stand in the slots.
struct Treap {
    slots: Vec<(Key, u64, [u32; 2])>,
    root: u32,
}

impl Treap {
    fn insert(&mut self, at: u32, id: u32) -> u32 {
        if at == u32::MAX {
            return id;
        }
        let side = usize::from(self.slots[id as usize].0 > self.slots[at as usize].0);
        let child = self.insert(self.slots[at as usize].2[side], id);
        self.slots[at as usize].2[side] = child;
        if self.slots[child as usize].1 <= self.slots[at as usize].1 {
            return at;
        }
        self.slots[at as usize].2[side] = self.slots[child as usize].2[1 - side];
        self.slots[child as usize].2[1 - side] = at;
        child
    }

    fn find(&self, key: &Key) -> Option<u32> {
        let mut at = self.root;
        while let Some(slot) = self.slots.get(at as usize) {
            match key.cmp(&slot.0) {
                core::cmp::Ordering::Equal => return Some(at),
                core::cmp::Ordering::Less => at = slot.2[0],
                core::cmp::Ordering::Greater => at = slot.2[1],
            }
        }
        None
    }
}

/// Why it is a B+-tree: prints what a search and an insertion take, beside a treap over slot
/// numbers and the standard library's map. Asserts only that all three find everything.
#[test]
fn measured_beside_the_alternatives() {
    for count in [1u64 << 12, 1 << 17] {
        let mut random = SplitMix(1);
        let keys: Vec<Key> = (0..count)
            .map(|_| {
                let mut key = FIRST;
                key[0] = 3;
                // A thousand inodes with some hundred hashed names each.
                key[1..9].copy_from_slice(&(random.next() % 1000).to_be_bytes());
                key[10..18].copy_from_slice(&random.next().to_be_bytes());
                key
            })
            .collect();
        let asked: Vec<Key> = (0..count).map(|_| keys[random.below(count)]).collect();
        let time = |name: &str, what: &str, run: &mut dyn FnMut()| {
            let start = Instant::now();
            run();
            let each = start.elapsed().as_nanos() / u128::from(count);
            std::println!("{count:>7} keys  {name:<8} {what:<6} {each:>5} ns");
        };
        with_index(count as u32, |index| {
            time("index", "insert", &mut || {
                (0..).zip(&keys).for_each(|(id, key)| index.insert(key, 1, id));
            });
            time("index", "find", &mut || {
                assert!(asked.iter().all(|key| index.find(key).is_some()));
            });
            time("index", "mark", &mut || {
                asked.iter().for_each(|key| index.mark(key, 3));
            });
            time("index", "ceil", &mut || {
                assert!(asked.iter().all(|key| index.ceil(key, 1).is_some()));
            });
        });
        let slots = keys.iter().map(|key| (*key, random.next(), [u32::MAX; 2])).collect();
        let mut treap = Treap { slots, root: u32::MAX };
        time("treap", "insert", &mut || {
            (0..count as u32).for_each(|id| treap.root = treap.insert(treap.root, id));
        });
        time("treap", "find", &mut || {
            assert!(asked.iter().all(|key| treap.find(key).is_some()));
        });
        let mut map = BTreeMap::new();
        time("BTreeMap", "insert", &mut || {
            (0u32..).zip(&keys).for_each(|(id, key)| {
                map.insert(*key, id);
            });
        });
        time("BTreeMap", "find", &mut || {
            assert!(asked.iter().all(|key| map.contains_key(key)));
        });
    }
}

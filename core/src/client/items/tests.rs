//! The item cache, case by case and against a model.

extern crate std;

mod model;

use super::key::{FIRST, Key, LAST, predecessor, successor};
use super::list::{List, NONE};
use super::values::chunks_of;
use super::{
    ANY, BLIND, DIRTY, Dirty, Edit, FillEnd, FillRefused, Generation, ItemCache, Limits,
    LimitsError, Miss, Needs, NotNow, PERSISTENT, PROTECTED, Range, Stop, TOMBSTONE,
    VALUE_BYTES_MAX, Wait, marks,
};
use crate::arena::{Arena, ArenaFull, REGION_ALIGN};
use crate::error::Error;
use crate::format::CommitNo;
use crate::mutant::{Mutant, activate};
use crate::node::More;
use core::mem::MaybeUninit;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;
use std::vec::Vec;

/// Memory for an arena, aligned as it wants.
pub(super) struct Region {
    memory: Vec<MaybeUninit<u8>>,
    bytes: usize,
}

impl Region {
    /// As much as carving takes.
    pub(super) fn measured(carve: impl Fn(&mut Arena<'static>) -> Result<(), ArenaFull>) -> Region {
        let mut arena = Arena::measuring();
        carve(&mut arena).unwrap();
        let bytes = arena.bytes_used();
        Region { memory: std::vec![MaybeUninit::uninit(); bytes + REGION_ALIGN], bytes }
    }

    pub(super) fn bytes(&mut self) -> &mut [MaybeUninit<u8>] {
        let addr = self.memory.as_ptr().addr();
        let pad = addr.next_multiple_of(REGION_ALIGN) - addr;
        &mut self.memory[pad..pad + self.bytes]
    }
}

/// Random enough numbers, the same each time.
pub(super) struct SplitMix(pub(super) u64);

impl SplitMix {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: u64) -> usize {
        (self.next() % bound) as usize
    }
}

/// Checks every invariant that one look at the cache can check.
fn audit(cache: &ItemCache<'_>) {
    let (mut items, mut chunks, mut dirty_items, mut dirty_chunks) = (0, 0, 0, 0);
    let mut listed = [BTreeSet::new(), BTreeSet::new()];
    let mut places: Vec<u32> = cache.values.free_chunks().collect();
    let mut at = Some(FIRST);
    while let Some(entry) = at.and_then(|at| cache.index.ceil(&at, ANY)) {
        let slot = &cache.slots[entry.id as usize];
        assert_eq!(slot.key, entry.key);
        assert_eq!(entry.marks, marks(slot.flags));
        items += 1;
        chunks += chunks_of(slot.len.into());
        places.extend(cache.values.chunks(slot.head, chunks_of(slot.len.into())));
        if slot.flags & DIRTY != 0 {
            dirty_items += 1;
            dirty_chunks += chunks_of(slot.len.into());
            assert_eq!(slot.flags & PROTECTED, 0);
        } else {
            assert_eq!(slot.flags & (TOMBSTONE | BLIND), 0);
            assert_ne!(slot.flags & PERSISTENT, 0);
            listed[usize::from(slot.flags & PROTECTED != 0)].insert(entry.id);
        }
        assert!(slot.flags & BLIND == 0 || cache.ranges.find(&slot.key).is_none());
        at = successor(&entry.key);
    }
    let usage = cache.usage();
    assert_eq!(usage.items, items);
    assert_eq!(usage.chunks, chunks);
    // Each chunk is in one value, or free.
    places.sort_unstable();
    assert!(places.iter().copied().eq(0..cache.limits.chunks));
    assert_eq!((usage.dirty_items, usage.dirty_chunks), (dirty_items, dirty_chunks));
    assert!(dirty_items <= cache.limits.dirty_items);
    assert!(dirty_chunks <= cache.limits.dirty_chunks);
    for (list, expected) in [&cache.probation, &cache.protected].into_iter().zip(&listed) {
        let mut found = BTreeSet::new();
        walk(list, cache, |id| assert!(found.insert(id)));
        assert_eq!(&found, expected);
        assert_eq!(list.len() as usize, found.len());
    }
    let mut ranges = 0;
    let mut at = Some(FIRST);
    while let Some(range) = at.and_then(|at| cache.ranges.next(&at)) {
        assert!(range.first <= range.last);
        let touching = predecessor(&range.first).and_then(|before| cache.ranges.find(&before));
        assert_eq!(touching, None);
        ranges += 1;
        at = successor(&range.last);
    }
    assert_eq!(usage.ranges, ranges);
    assert!(ranges <= cache.limits.ranges);
}

fn walk(list: &List, cache: &ItemCache<'_>, mut each: impl FnMut(u32)) {
    let mut at = list.oldest();
    while let Some(id) = at {
        each(id);
        at = Some(cache.links[id as usize].newer).filter(|id| *id != NONE);
    }
}

fn key(number: u16) -> Key {
    let mut key = FIRST;
    key[0] = 3;
    key[9..11].copy_from_slice(&number.to_be_bytes());
    key
}

const ALL: Range = Range { first: FIRST, last: LAST };

const CHANGE: Needs = Needs { items: 12, value_bytes: 12 * VALUE_BYTES_MAX as u32 };

fn with_cache<R>(limits: &Limits, run: impl FnOnce(&mut ItemCache<'_>) -> R) -> R {
    let mut region = Region::measured(|arena| ItemCache::carve(arena, limits).map(|_| ()));
    let mut arena = Arena::new(region.bytes()).unwrap();
    run(&mut ItemCache::carve(&mut arena, limits).unwrap())
}

/// A cache much larger than what a scenario puts in.
fn roomy(run: impl FnOnce(&mut ItemCache<'_>)) {
    let mut limits = Limits::least(CHANGE);
    limits.items += 1000;
    limits.chunks += 9000;
    limits.dirty_items += 500;
    limits.dirty_chunks += 4500;
    limits.fills = 4;
    with_cache(&limits, run);
}

fn read(cache: &mut ItemCache<'_>, number: u16) -> Result<Option<Vec<u8>>, Miss> {
    let mut buffer = [0; VALUE_BYTES_MAX];
    Ok(cache.lookup(&key(number))?.map(|value| value.copy_to(&mut buffer).to_vec()))
}

fn change(cache: &mut ItemCache<'_>, edits: &[Edit<'_>]) {
    let plan = cache.plan(edits).unwrap();
    cache.apply(plan, edits);
}

fn create(cache: &mut ItemCache<'_>, number: u16, value: &[u8]) {
    change(cache, &[Edit::Create { key: key(number), value }]);
}

fn delete(cache: &mut ItemCache<'_>, number: u16) {
    change(cache, &[Edit::Delete { key: key(number) }]);
}

/// Fills everything from a tree that has these items.
fn fill(cache: &mut ItemCache<'_>, root: u64, items: &[(u16, &[u8])]) {
    let id = cache.fill_begin(&ALL, &key(0), CommitNo(root)).unwrap();
    for (number, value) in items {
        cache.fill_item(id, &key(*number), value).unwrap();
    }
    cache.fill_end(id, &LAST).unwrap();
}

/// Begins a commit and copies all of it: the keys, and whether they are tombstones.
fn copy(cache: &mut ItemCache<'_>) -> (Generation, Vec<(Key, bool)>) {
    let snapshot = cache.commit_begin().unwrap();
    let mut copied = Vec::new();
    while let Some(item) = cache.commit_peek() {
        copied.push((item.key, item.value.is_none()));
        cache.commit_advance();
    }
    (snapshot, copied)
}

fn settle(cache: &mut ItemCache<'_>) {
    while cache.step(1) == More::Yes {}
}

/// A fill begins, the item it is about to bring is deleted, the deletion becomes durable and
/// leaves the cache: only then the fill comes to the item.
fn delete_under_a_fill(cache: &mut ItemCache<'_>) -> Result<(), FillEnd> {
    let id = cache.fill_begin(&ALL, &key(5), CommitNo(1)).unwrap();
    // Another fill, of this key alone, is faster.
    let alone = Range { first: key(7), last: key(7) };
    let other = cache.fill_begin(&alone, &key(7), CommitNo(1));
    assert_eq!(other, Err(FillRefused::Running(id)));
    cache.fill_abort(id);
    let other = cache.fill_begin(&alone, &key(7), CommitNo(1)).unwrap();
    let id = cache.fill_begin(&ALL, &key(5), CommitNo(1)).unwrap();
    cache.fill_item(other, &key(7), b"seven").unwrap();
    cache.fill_end(other, &key(7)).unwrap();
    delete(cache, 7);
    let (snapshot, copied) = copy(cache);
    assert_eq!(copied, [(key(7), true)]);
    assert!(cache.commit_done(snapshot, CommitNo(2)));
    settle(cache);
    // What is known of the key is forgotten for want of room.
    cache.ranges.subtract(&alone);
    cache.fill_item(id, &key(7), b"seven")?;
    cache.fill_end(id, &LAST)
}

#[test]
fn a_deleted_item_is_not_resurrected_by_a_fill_under_an_old_root() {
    roomy(|cache| {
        assert_eq!(delete_under_a_fill(cache), Err(FillEnd::Stale));
        let old = cache.fill_begin(&ALL, &key(7), CommitNo(1));
        assert_eq!(old, Err(FillRefused::OldRoot(CommitNo(2))));
        fill(cache, 2, &[]);
        assert_eq!(read(cache, 7), Ok(None));
        assert_eq!(cache.counters().fills_stale, 1);
    });
}

#[test]
fn letting_old_roots_in_would_resurrect_it() {
    roomy(|cache| {
        activate(Some(Mutant::FillUnderOldRoot));
        assert_eq!(delete_under_a_fill(cache), Ok(()));
        assert_eq!(read(cache, 7), Ok(Some(b"seven".to_vec())));
        activate(None);
    });
}

/// Nor does a changed item get its old value back, once it was evicted.
#[test]
fn a_changed_item_does_not_get_its_old_value_back() {
    roomy(|cache| {
        let alone = Range { first: key(7), last: key(7) };
        let other = cache.fill_begin(&alone, &key(7), CommitNo(1)).unwrap();
        let id = cache.fill_begin(&ALL, &key(5), CommitNo(1)).unwrap();
        cache.fill_item(other, &key(7), b"old").unwrap();
        cache.fill_end(other, &key(7)).unwrap();
        change(cache, &[Edit::Replace { key: key(7), value: b"new" }]);
        let (snapshot, _) = copy(cache);
        assert!(cache.commit_done(snapshot, CommitNo(2)));
        // The answer has come, and nobody has gone through the items yet: they stand in the way.
        cache.fill_item(id, &key(6), b"six").unwrap();
        settle(cache);
        assert!(cache.evict());
        assert_eq!(cache.fill_item(id, &key(7), b"old"), Err(FillEnd::Stale));
        assert_eq!(cache.usage().fills, 0);
    });
}

#[test]
fn a_stale_fill_is_begun_again_for_one_key_and_commits_of_others_leave_it_alone() {
    roomy(|cache| {
        let alone = Range { first: key(9), last: key(9) };
        let other = cache.fill_begin(&alone, &key(9), CommitNo(1)).unwrap();
        cache.fill_end(other, &key(9)).unwrap();
        create(cache, 9, b"nine");
        let five = Range { first: key(5), last: key(5) };
        let id = cache.fill_begin(&five, &key(5), CommitNo(1)).unwrap();
        let (snapshot, _) = copy(cache);
        assert!(cache.commit_done(snapshot, CommitNo(2)));
        settle(cache);
        assert_eq!(cache.fill_end(id, &key(5)), Ok(()));
        assert_eq!(read(cache, 5), Ok(None));
    });
}

#[test]
fn a_fill_begun_before_its_keys_were_invalidated_is_thrown_away() {
    roomy(|cache| {
        let id = cache.fill_begin(&ALL, &key(1), CommitNo(1)).unwrap();
        cache.fill_item(id, &key(1), b"one").unwrap();
        // Of keys that it has brought already: those are dropped, the rest may come.
        assert_eq!(cache.invalidate(&Range { first: FIRST, last: key(1) }, 10), More::No);
        cache.fill_item(id, &key(2), b"two").unwrap();
        assert!(read(cache, 1).is_err());
        assert_eq!(cache.invalidate(&Range { first: key(8), last: key(9) }, 10), More::No);
        assert_eq!(cache.fill_item(id, &key(3), b"three"), Err(FillEnd::Stale));
        assert_eq!(read(cache, 2), Ok(Some(b"two".to_vec())));
        assert!(read(cache, 3).is_err());
    });
}

#[test]
fn a_narrowed_fill_brings_what_is_left_of_it_and_stands_in_nobodys_way() {
    roomy(|cache| {
        let id = cache.fill_begin(&ALL, &key(5), CommitNo(1)).unwrap();
        cache.fill_narrow(id, &Range { first: key(3), last: LAST }).unwrap();
        cache.fill_narrow(id, &Range { first: FIRST, last: key(8) }).unwrap();
        let other = cache.fill_begin(&ALL, &key(9), CommitNo(1)).unwrap();
        cache.fill_abort(other);
        assert_eq!(cache.invalidate(&Range { first: key(9), last: LAST }, 10), More::No);
        cache.fill_item(id, &key(6), b"six").unwrap();
        cache.fill_end(id, &key(8)).unwrap();
        let gap = Range { first: FIRST, last: predecessor(&key(3)).unwrap() };
        assert_eq!(cache.lookup(&key(2)).err(), Some(Miss { at: key(2), gap }));
        assert_eq!(read(cache, 3), Ok(None));
        assert_eq!(read(cache, 8), Ok(None));
        assert!(read(cache, 9).is_err());
    });
}

#[test]
fn a_fill_goes_over_to_a_newer_root_unless_it_is_stale() {
    roomy(|cache| {
        let id = cache.fill_begin(&ALL, &key(5), CommitNo(1)).unwrap();
        cache.note_root(CommitNo(3));
        cache.fill_renew(id, CommitNo(3)).unwrap();
        // Its keys have been given up since it began: it must not bring them, whatever the root.
        assert_eq!(cache.invalidate(&Range { first: key(1), last: key(2) }, 10), More::No);
        assert_eq!(cache.fill_renew(id, CommitNo(4)), Err(FillEnd::Stale));
        let id = cache.fill_begin(&ALL, &key(5), CommitNo(4)).unwrap();
        assert_eq!(cache.fill_renew(id, CommitNo(2)), Err(FillEnd::Stale));
        assert_eq!(cache.usage().fills, 0);
    });
}

#[test]
fn what_is_known_wins_over_what_is_filled_in() {
    roomy(|cache| {
        let alone = Range { first: key(7), last: key(8) };
        let first = cache.fill_begin(&alone, &key(7), CommitNo(1)).unwrap();
        let second = cache.fill_begin(&ALL, &key(5), CommitNo(1)).unwrap();
        cache.fill_item(first, &key(8), b"known").unwrap();
        cache.fill_end(first, &key(8)).unwrap();
        cache.fill_item(second, &key(7), b"seven").unwrap();
        cache.fill_item(second, &key(8), b"eight").unwrap();
        cache.fill_end(second, &LAST).unwrap();
        assert_eq!(read(cache, 7), Ok(None));
        assert_eq!(read(cache, 8), Ok(Some(b"known".to_vec())));
        assert_eq!(cache.counters().items_refused, 2);
    });
}

#[test]
fn a_corrupt_source_ends_a_fill() {
    roomy(|cache| {
        let range = Range { first: key(1), last: key(8) };
        let begin = |cache: &mut ItemCache<'_>, at| {
            let id = cache.fill_begin(&range, &key(at), CommitNo(1)).unwrap();
            cache.fill_item(id, &key(2), b"two").unwrap();
            id
        };
        let id = begin(cache, 4);
        assert_eq!(cache.fill_item(id, &key(2), b"two"), Err(FillEnd::Order));
        let id = begin(cache, 4);
        assert_eq!(cache.fill_item(id, &key(9), b"nine"), Err(FillEnd::Order));
        let id = begin(cache, 4);
        assert_eq!(cache.fill_end(id, &key(1)), Err(FillEnd::Order));
        let id = begin(cache, 4);
        let long = [0; VALUE_BYTES_MAX + 1];
        assert_eq!(cache.fill_item(id, &key(3), &long), Err(FillEnd::TooLong));
        // It has ended; its name finds nothing, not even once the slot has another fill.
        let other = begin(cache, 4);
        assert_eq!(cache.fill_item(id, &key(3), b"three"), Err(FillEnd::Stale));
        assert_eq!(cache.fill_end(other, &key(8)), Ok(()));
        assert_eq!(cache.fill_end(other, &key(8)), Err(FillEnd::Stale));
        assert_eq!(cache.usage().fills, 0);
        audit(cache);
    });
}

#[test]
fn an_item_changed_while_its_commit_is_in_flight_stays_dirty() {
    roomy(|cache| {
        fill(cache, 1, &[(1, b"a"), (2, b"b"), (3, b"c")]);
        let value = b"first";
        for number in 1..4 {
            change(cache, &[Edit::Replace { key: key(number), value }]);
        }
        let (snapshot, copied) = copy(cache);
        assert_eq!(copied.len(), 3);
        change(cache, &[Edit::Replace { key: key(2), value: b"second" }]);
        delete(cache, 3);
        let two = Range { first: key(2), last: key(2) };
        let both = Dirty { open: Some(Generation(2)), in_flight: Some(snapshot) };
        assert_eq!(cache.dirty_in(&two), both);
        assert!(cache.commit_done(snapshot, CommitNo(2)));
        assert_eq!(cache.commit_begin(), Err(NotNow::Busy));
        // An answer that comes twice is no other commit's.
        assert!(!cache.commit_done(snapshot, CommitNo(3)));
        let one = Range { first: key(1), last: key(1) };
        assert_eq!(cache.dirty_in(&one), Dirty { open: None, in_flight: None });
        assert_eq!(cache.dirty_in(&two), Dirty { open: Some(Generation(2)), in_flight: None });
        settle(cache);
        assert_eq!(cache.usage().dirty_items, 2);
        let (_, copied) = copy(cache);
        assert_eq!(copied, [(key(2), false), (key(3), true)]);
    });
}

#[test]
fn changes_wait_while_a_snapshot_is_copied_and_questions_do_not() {
    roomy(|cache| {
        fill(cache, 1, &[(1, b"a")]);
        create(cache, 5, b"five");
        create(cache, 6, b"six");
        cache.commit_begin().unwrap();
        let edits = [Edit::Delete { key: key(5) }];
        assert_eq!(cache.plan(&edits).unwrap_err(), Stop::Wait(Wait::Snapshot));
        assert_eq!(read(cache, 6), Ok(Some(b"six".to_vec())));
        cache.commit_advance();
        assert!(cache.plan(&edits).is_err());
        cache.commit_advance();
        assert!(cache.commit_peek().is_none());
        change(cache, &edits);
    });
}

#[test]
fn a_failed_commit_loses_nothing() {
    roomy(|cache| {
        fill(cache, 1, &[(1, b"a")]);
        create(cache, 5, b"five");
        create(cache, 6, b"six");
        delete(cache, 1);
        let (snapshot, _) = copy(cache);
        create(cache, 7, b"seven");
        // It has been copied, so it may be in a run for all we know.
        delete(cache, 5);
        assert!(cache.commit_failed(snapshot));
        let failed = cache.dirty_in(&Range { first: key(6), last: key(6) });
        assert_eq!(failed, Dirty { open: Some(Generation(2)), in_flight: None });
        settle(cache);
        let (again, copied) = copy(cache);
        assert_eq!(again, Generation(2));
        let expected = [(key(1), true), (key(5), true), (key(6), false), (key(7), false)];
        assert_eq!(copied, expected);
        assert!(!cache.commit_done(snapshot, CommitNo(9)));
        assert!(cache.commit_done(again, CommitNo(2)));
        settle(cache);
        assert_eq!(cache.usage().dirty_items, 0);
        audit(cache);
    });
}

#[test]
fn an_item_that_never_left_the_cache_leaves_no_tombstone() {
    roomy(|cache| {
        fill(cache, 1, &[]);
        create(cache, 5, b"five");
        delete(cache, 5);
        assert_eq!(cache.usage().items, 0);
        assert_eq!(cache.commit_begin(), Err(NotNow::Clean));
        assert_eq!(read(cache, 5), Ok(None));
    });
}

#[test]
fn blind_items_answer_nothing_and_leave_at_commit() {
    roomy(|cache| {
        let edits =
            [Edit::CreateBlind { key: key(1), value: b"one" }, Edit::DeleteBlind { key: key(2) }];
        change(cache, &edits);
        assert!(read(cache, 1).is_err());
        assert!(cache.next(&key(0), &key(5)).is_err());
        let (snapshot, copied) = copy(cache);
        assert_eq!(copied, [(key(1), false), (key(2), true)]);
        change(cache, &[Edit::CreateBlind { key: key(2), value: b"two" }]);
        assert!(cache.commit_done(snapshot, CommitNo(2)));
        settle(cache);
        assert_eq!(cache.usage().items, 1);
        let (snapshot, copied) = copy(cache);
        assert_eq!(copied, [(key(2), false)]);
        assert!(cache.commit_done(snapshot, CommitNo(3)));
        settle(cache);
        assert_eq!((cache.usage().items, cache.usage().chunks), (0, 0));
        assert!(read(cache, 1).is_err());
    });
}

/// An item is written without having been read, and committed; another mount deletes it. What a
/// fill under the new root lets be read.
fn deleted_by_another() -> Option<Vec<u8>> {
    let mut seen = None;
    roomy(|cache| {
        change(cache, &[Edit::CreateBlind { key: key(1), value: b"one" }]);
        let (snapshot, _) = copy(cache);
        assert!(cache.commit_done(snapshot, CommitNo(2)));
        settle(cache);
        fill(cache, 3, &[(2, b"two")]);
        assert_eq!(read(cache, 2), Ok(Some(b"two".to_vec())));
        seen = read(cache, 1).unwrap();
    });
    seen
}

#[test]
fn what_another_mount_has_deleted_is_not_read_from_a_blind_write() {
    assert_eq!(deleted_by_another(), None);
}

#[test]
fn keeping_blind_items_would_show_what_others_have_deleted() {
    activate(Some(Mutant::WriteOnlyItemsKept));
    let seen = deleted_by_another();
    activate(None);
    assert_eq!(seen, Some(b"one".to_vec()));
}

/// A fill that nobody stopped when its lock was given up, and the keys became another lock's.
#[test]
fn a_blind_change_makes_fills_of_its_key_stale() {
    roomy(|cache| {
        let id = cache.fill_begin(&ALL, &key(1), CommitNo(1)).unwrap();
        change(cache, &[Edit::CreateBlind { key: key(2), value: b"two" }]);
        assert_eq!(cache.fill_end(id, &LAST), Err(FillEnd::Stale));
        assert_eq!(cache.usage().ranges, 0);
    });
}

#[test]
#[should_panic(expected = "invalidated while dirty")]
fn to_invalidate_what_is_dirty_is_a_defect() {
    roomy(|cache| {
        fill(cache, 1, &[]);
        create(cache, 5, b"five");
        let _ = cache.invalidate(&ALL, 10);
    });
}

#[test]
fn a_change_is_all_or_nothing() {
    roomy(|cache| {
        fill(cache, 1, &[(1, b"a"), (2, b"b")]);
        let exists = [Edit::Delete { key: key(1) }, Edit::Create { key: key(2), value: b"x" }];
        assert_eq!(cache.plan(&exists).unwrap_err(), Stop::Fail(Error::Exists));
        let missing = [Edit::Delete { key: key(1) }, Edit::Replace { key: key(3), value: b"x" }];
        assert_eq!(cache.plan(&missing).unwrap_err(), Stop::Fail(Error::NotFound));
        assert_eq!(cache.usage().dirty_items, 0);
        let moved = [Edit::Delete { key: key(1) }, Edit::Create { key: key(3), value: b"a" }];
        change(cache, &moved);
        let found = cache.next(&FIRST, &LAST).unwrap().unwrap();
        assert_eq!(found.key, key(2));
        assert_eq!(cache.prev(&LAST, &FIRST).unwrap().unwrap().key, key(3));
    });
}

/// The dirty budget is a budget: a change waits for a commit, and then fits.
#[test]
fn a_full_dirty_budget_waits_for_the_commit() {
    with_cache(&Limits::least(CHANGE), |cache| {
        fill(cache, 1, &[]);
        let value = [7; VALUE_BYTES_MAX];
        for number in 0..12 {
            create(cache, number, &value);
        }
        let edit = [Edit::Create { key: key(50), value: &value }];
        assert_eq!(cache.plan(&edit).unwrap_err(), Stop::Wait(Wait::Commit));
        let (snapshot, _) = copy(cache);
        assert_eq!(cache.plan(&edit).unwrap_err(), Stop::Wait(Wait::Commit));
        assert!(cache.commit_done(snapshot, CommitNo(2)));
        settle(cache);
        change(cache, &edit);
        audit(cache);
    });
}

/// With the least memory, an operation that looks at as many keys as it may, all over the tree, and
/// then changes as many as it may, comes to its end; each key is missed once.
#[test]
fn the_least_cache_makes_progress() {
    let mut tree: BTreeMap<Key, Vec<u8>> = BTreeMap::new();
    let mut random = SplitMix(3);
    for number in (0..4000).filter(|number| number % 3 != 0) {
        tree.insert(key(number), std::vec![9; random.below(VALUE_BYTES_MAX as u64 + 1)]);
    }
    with_cache(&Limits::least(CHANGE), |cache| {
        let mut root = 1;
        for _ in 0..200 {
            let mut wanted = BTreeSet::new();
            while wanted.len() < 3 * CHANGE.items as usize {
                wanted.insert(key(random.below(4000) as u16));
            }
            let mut restarts = 0;
            while let Err(miss) = wanted.iter().try_for_each(|key| cache.lookup(key).map(|_| ())) {
                restarts += 1;
                let last = key(random.below(300) as u16).max(miss.at);
                let range = Range { first: miss.gap.first, last: miss.gap.last.min(last) };
                let id = cache.fill_begin(&range, &miss.at, CommitNo(root)).unwrap();
                for (key, value) in tree.range(range.first..=range.last) {
                    cache.fill_item(id, key, value).unwrap();
                }
                cache.fill_end(id, &range.last).unwrap();
                assert!(restarts <= wanted.len());
            }
            audit(cache);
            let value = [8; VALUE_BYTES_MAX];
            let edits: Vec<Edit<'_>> = (wanted.iter().step_by(3))
                .map(|key| match tree.contains_key(key) {
                    true => Edit::Replace { key: *key, value: &value },
                    false => Edit::Create { key: *key, value: &value },
                })
                .collect();
            change(cache, &edits);
            tree.extend(edits.iter().map(|edit| match edit {
                Edit::Replace { key, value } | Edit::Create { key, value } => {
                    (*key, value.to_vec())
                }
                _ => unreachable!(),
            }));
            root += 1;
            let (snapshot, copied) = copy(cache);
            assert_eq!(copied.len(), edits.len());
            assert!(cache.commit_done(snapshot, CommitNo(root)));
            settle(cache);
            audit(cache);
        }
        let counters = cache.counters();
        assert!(counters.items_evicted > 1000 && counters.items_filled > 1000);
    });
}

/// A key that is asked for again and again stays known to be absent, whatever comes and goes.
#[test]
fn absence_that_is_used_stays_known() {
    with_cache(&Limits::least(CHANGE), |cache| {
        let fill = |cache: &mut ItemCache<'_>, range: Range, items: &[u16]| {
            let id = cache.fill_begin(&range, &range.first, CommitNo(1)).unwrap();
            items.iter().for_each(|number| cache.fill_item(id, &key(*number), b"").unwrap());
            cache.fill_end(id, &range.last).unwrap();
        };
        fill(cache, Range { first: key(0), last: key(10) }, &[2, 4]);
        for round in 1000..1400 {
            fill(cache, Range { first: key(2 * round), last: key(2 * round) }, &[2 * round]);
            assert_eq!(read(cache, 2 * round), Ok(Some(Vec::new())));
            assert_eq!(read(cache, 3), Ok(None));
        }
        assert!(read(cache, 2000).is_err());
    });
}

/// Room made ahead of need: afterwards the largest change evicts nothing.
#[test]
fn shrink_makes_room_for_a_change() {
    with_cache(&Limits::least(CHANGE), |cache| {
        let id = cache.fill_begin(&ALL, &key(0), CommitNo(1)).unwrap();
        for number in 0..500 {
            cache.fill_item(id, &key(number), &[1; 100]).unwrap();
        }
        cache.fill_end(id, &LAST).unwrap();
        while cache.shrink(2) == More::Yes {}
        let evicted = cache.counters().items_evicted;
        cache.reserve(CHANGE).unwrap();
        assert_eq!(cache.counters().items_evicted, evicted);
        audit(cache);
    });
}

#[test]
fn limits_that_could_not_work_are_refused() {
    let least = Limits::least(CHANGE);
    assert_eq!(least.validate(), Ok(()));
    let altered = |alter: fn(&mut Limits)| {
        let mut limits = least;
        alter(&mut limits);
        limits.validate()
    };
    assert_eq!(altered(|l| l.items -= 1), Err(LimitsError::Items));
    assert_eq!(altered(|l| l.chunks -= 1), Err(LimitsError::Chunks));
    assert_eq!(altered(|l| l.dirty_items -= 1), Err(LimitsError::Change));
    assert_eq!(altered(|l| l.dirty_items = u32::MAX), Err(LimitsError::Items));
    assert_eq!(altered(|l| l.dirty_chunks -= 1), Err(LimitsError::Change));
    assert_eq!(altered(|l| l.ranges -= 1), Err(LimitsError::Ranges));
    assert_eq!(altered(|l| l.fills = 0), Err(LimitsError::Fills));
    assert_eq!(altered(|l| l.items = u32::MAX), Err(LimitsError::TooMany));
    assert_eq!(altered(|l| l.change.items = 0), Err(LimitsError::Change));
    assert_eq!(altered(|l| l.change.items = u32::MAX), Err(LimitsError::Change));
}

/// What the documents of the limits say about bytes.
#[test]
fn an_item_takes_the_bytes_stated() {
    let measured = |alter: fn(&mut Limits)| {
        let mut limits = Limits::least(CHANGE);
        alter(&mut limits);
        let mut arena = Arena::measuring();
        ItemCache::carve(&mut arena, &limits).unwrap();
        arena.bytes_used() as u64
    };
    let base = measured(|_| ());
    let each = |alter| (measured(alter) - base) / 100_000;
    assert_eq!(each(|limits| limits.items += 100_000), 112);
    assert_eq!(each(|limits| limits.chunks += 100_000), 68);
    assert_eq!(each(|limits| limits.ranges += 100_000), 134);
    assert_eq!(each(|limits| limits.fills += 100_000), 104);
}

/// Prints what the operations take; asserts only that they were done.
#[test]
fn measured() {
    const COUNT: u16 = 20_000;
    let mut limits = Limits::least(CHANGE);
    limits.items += u32::from(COUNT);
    limits.chunks += u32::from(COUNT) * 2;
    limits.dirty_items += 1000;
    limits.dirty_chunks += 3000;
    limits.ranges += 1000;
    with_cache(&limits, |cache| {
        let time = |what: &str, count: u16, run: &mut dyn FnMut()| {
            let start = Instant::now();
            run();
            std::println!("{what:<24} {:>5} ns", start.elapsed().as_nanos() / u128::from(count));
        };
        let mut random = SplitMix(1);
        let half = COUNT / 2;
        let value = [3; 100];
        time("fill", half, &mut || {
            let id = cache.fill_begin(&ALL, &key(0), CommitNo(1)).unwrap();
            (0..half).for_each(|number| cache.fill_item(id, &key(2 * number), &value).unwrap());
            cache.fill_end(id, &key(COUNT)).unwrap();
        });
        let ask: Vec<u16> = (0..half).map(|_| 2 * random.below(half.into()) as u16).collect();
        time("lookup", half, &mut || {
            assert!(ask.iter().all(|number| cache.lookup(&key(*number)).unwrap().is_some()));
        });
        time("lookup, absent", half, &mut || {
            assert!(ask.iter().all(|number| cache.lookup(&key(number + 1)).unwrap().is_none()));
        });
        time("next", half, &mut || {
            assert!(ask.iter().all(|number| cache.next(&key(number + 1), &LAST).is_ok()));
        });
        time("create", 1000, &mut || {
            (0..1000).for_each(|number| create(cache, 2 * number + 1, &value));
        });
        let mut snapshot = None;
        time("copy for a commit", 1000, &mut || snapshot = Some(copy(cache).0));
        assert!(cache.commit_done(snapshot.unwrap(), CommitNo(2)));
        time("settle", 1000, &mut || settle(cache));
        let range = Range { first: key(COUNT), last: LAST };
        time("fill that evicts", COUNT, &mut || {
            let id = cache.fill_begin(&range, &LAST, CommitNo(2)).unwrap();
            (1..COUNT).for_each(|n| cache.fill_item(id, &key(COUNT + n), &value).unwrap());
            cache.fill_abort(id);
        });
        assert!(cache.counters().items_evicted > u64::from(half));
        audit(cache);
    });
}

#[test]
fn keys_count_up_and_down() {
    let mut one = FIRST;
    one[26] = 1;
    assert_eq!(successor(&FIRST), Some(one));
    assert_eq!(predecessor(&one), Some(FIRST));
    assert_eq!((successor(&LAST), predecessor(&FIRST)), (None, None));
    let mut carry = [0xff; 27];
    carry[0] = 2;
    let mut next = FIRST;
    next[0] = 3;
    assert_eq!(successor(&carry), Some(next));
    assert_eq!(predecessor(&next), Some(carry));
}

//! The cache against a model: a map of what is there, a map for each root there ever was, and sets
//! of the keys that are dirty. Every answer must be what the model says, or a miss.

extern crate std;

use super::audit;
use super::{Region, SplitMix};
use crate::arena::Arena;
use crate::client::items::key::{FIRST, Key};
use crate::client::items::{
    Counters, Edit, FillEnd, FillId, FillRefused, Generation, ItemCache, Limits, Needs, NotNow,
    Range, Stop, VALUE_BYTES_MAX, Wait,
};
use crate::error::Error;
use crate::format::CommitNo;
use crate::mutant::{Mutant, activate, is_active};
use crate::node::More;
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::vec;
use std::vec::Vec;

/// Keys under each lock that lets read, and such locks.
const KEYS: u8 = 24;
const LOCKS: u8 = 4;
/// Keys under the lock that only lets write.
const BLIND_KEYS: u8 = 8;

type Items = BTreeMap<Key, Vec<u8>>;

fn key(lock: u8, number: u8) -> Key {
    let mut key = FIRST;
    (key[0], key[3], key[20]) = (3, lock % LOCKS, number % KEYS);
    key
}

fn blind_key(number: u8) -> Key {
    let mut key = FIRST;
    (key[0], key[26]) = (1, number % BLIND_KEYS);
    key
}

fn lock_range(lock: u8) -> Range {
    let (mut first, mut last) = (key(lock, 0), [0xff; 27]);
    first[20] = 0;
    last[..4].copy_from_slice(&first[..4]);
    Range { first, last }
}

fn is_blind(key: &Key) -> bool {
    key[0] == 1
}

#[derive(Debug, Clone)]
enum Op {
    Lookup(u8, u8),
    Next(u8, u8, u8),
    Prev(u8, u8, u8),
    /// Edits of these keys; the bool says whether to delete what exists.
    Change(Vec<(u8, u8, bool)>, u16),
    /// Edits that are refused if what they assume is wrong.
    Assume(u8, u8, u8),
    Blind(u8, bool, u16),
    /// Lock, key, how many roots ago, whether the key alone.
    FillBegin(u8, u8, u8, bool),
    FillItems(u8, u8),
    FillRest(u8),
    FillAbort(u8),
    CommitBegin,
    Copy(u8),
    CommitDone,
    CommitFailed,
    Step(u8),
    Shrink(u8),
    Revoke(u8, u8),
    OtherRoot(bool),
}

fn op() -> impl Strategy<Value = Op> {
    let lock = 0..LOCKS;
    let number = 0..KEYS;
    let one = (lock.clone(), number.clone());
    let edits = prop::collection::vec((lock.clone(), number.clone(), any::<bool>()), 1..=4);
    let bytes = 0..=VALUE_BYTES_MAX as u16;
    prop_oneof![
        12 => one.clone().prop_map(|(l, n)| Op::Lookup(l, n)),
        6 => (lock.clone(), number.clone(), number.clone()).prop_map(|(l, n, e)| Op::Next(l, n, e)),
        6 => (lock.clone(), number.clone(), number.clone()).prop_map(|(l, n, e)| Op::Prev(l, n, e)),
        16 => (edits, bytes.clone()).prop_map(|(edits, bytes)| Op::Change(edits, bytes)),
        4 => (lock.clone(), number.clone(), 0..3u8).prop_map(|(l, n, k)| Op::Assume(l, n, k)),
        4 => (0..BLIND_KEYS, any::<bool>(), bytes).prop_map(|(n, d, b)| Op::Blind(n, d, b)),
        14 => (lock.clone(), number, 0..3u8, prop::bool::weighted(0.2))
            .prop_map(|(l, n, age, alone)| Op::FillBegin(l, n, age, alone)),
        10 => (any::<u8>(), 1..12u8).prop_map(|(fill, n)| Op::FillItems(fill, n)),
        10 => any::<u8>().prop_map(Op::FillRest),
        1 => any::<u8>().prop_map(Op::FillAbort),
        4 => Just(Op::CommitBegin),
        6 => (1..30u8).prop_map(Op::Copy),
        4 => Just(Op::CommitDone),
        1 => Just(Op::CommitFailed),
        6 => (1..30u8).prop_map(Op::Step),
        2 => (1..4u8).prop_map(Op::Shrink),
        2 => (lock, any::<u8>()).prop_map(|(l, seed)| Op::Revoke(l, seed)),
        1 => any::<bool>().prop_map(Op::OtherRoot),
    ]
}

/// Limits from the least that work to a few times that.
fn limits() -> impl Strategy<Value = Limits> {
    let extra = || prop_oneof![Just(0u32), 0..40u32];
    ([extra(), extra(), extra(), extra(), extra()], 0..3u32).prop_map(|(extra, fills)| {
        let change = Needs { items: 4, value_bytes: 4 * VALUE_BYTES_MAX as u32 };
        let least = Limits::least(change);
        Limits {
            items: least.items + extra[0] + extra[1],
            chunks: least.chunks + extra[2] + 9 * extra[1],
            dirty_items: least.dirty_items + extra[1],
            dirty_chunks: least.dirty_chunks + 9 * extra[1],
            ranges: least.ranges + extra[4],
            fills: least.fills + fills,
            change,
        }
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Commit {
    Idle,
    Copying(Generation),
    InFlight(Generation),
    Durable,
    Failed,
}

struct Reading {
    id: FillId,
    root: usize,
    next: Key,
    last: Key,
}

/// What is true.
struct Model {
    /// Every root's items.
    roots: Vec<Items>,
    root_min: usize,
    /// What this mount sees under its locks, and what it has written blindly.
    live: Items,
    /// Dirty in the open generation.
    open: BTreeSet<Key>,
    /// In the commit, and not told of its end yet.
    snapshot: BTreeSet<Key>,
    /// The commit's copies.
    copies: BTreeMap<Key, Option<Vec<u8>>>,
    commit: Commit,
    /// Created here, and never copied.
    fresh: BTreeSet<Key>,
    reading: Vec<Reading>,
    random: SplitMix,
}

type Outcome = Result<(), TestCaseError>;

impl Model {
    fn new() -> Model {
        let mut random = SplitMix(5);
        let mut items = Items::new();
        for lock in 0..LOCKS {
            for number in (0..KEYS).filter(|number| number % 3 != 0) {
                let bytes = random.below(VALUE_BYTES_MAX as u64 + 1);
                items.insert(key(lock, number), std::vec![number; bytes]);
            }
        }
        Model {
            roots: std::vec![items.clone()],
            root_min: 0,
            live: items,
            open: BTreeSet::new(),
            snapshot: BTreeSet::new(),
            copies: BTreeMap::new(),
            commit: Commit::Idle,
            fresh: BTreeSet::new(),
            reading: Vec::new(),
            random,
        }
    }

    fn newest(&self) -> usize {
        self.roots.len() - 1
    }

    fn value(&mut self, bytes: u16) -> Vec<u8> {
        let bytes = self.random.below(u64::from(bytes) + 1);
        let byte = self.random.next() as u8;
        std::vec![byte; bytes]
    }

    fn run(&mut self, cache: &mut ItemCache<'_>, op: &Op) -> Outcome {
        match op {
            Op::Lookup(lock, number) => self.lookup(cache, &key(*lock, *number)),
            Op::Next(lock, number, end) => self.next(cache, key(*lock, *number), key(*lock, *end)),
            Op::Prev(lock, number, end) => self.prev(cache, key(*lock, *number), key(*lock, *end)),
            Op::Change(edits, bytes) => self.change(cache, edits, *bytes),
            Op::Assume(lock, number, kind) => self.assume(cache, key(*lock, *number), *kind),
            Op::Blind(number, delete, bytes) => self.blind(cache, *number, *delete, *bytes),
            Op::FillBegin(lock, number, age, alone) => {
                self.fill_begin(cache, *lock, *number, *age, *alone)
            }
            Op::FillItems(fill, items) => self.fill_items(cache, *fill, *items, false),
            Op::FillRest(fill) => self.fill_items(cache, *fill, u8::MAX, true),
            Op::FillAbort(fill) => {
                if !self.reading.is_empty() {
                    let at = usize::from(*fill) % self.reading.len();
                    cache.fill_abort(self.reading.swap_remove(at).id);
                }
                Ok(())
            }
            Op::CommitBegin => self.commit_begin(cache),
            Op::Copy(items) => self.copy(cache, *items),
            Op::CommitDone => self.commit_done(cache),
            Op::CommitFailed => self.commit_failed(cache),
            Op::Step(work) => self.step(cache, *work),
            Op::Shrink(work) => {
                let _ = cache.shrink(u32::from(*work));
                Ok(())
            }
            Op::Revoke(lock, seed) => self.revoke(cache, *lock, *seed),
            Op::OtherRoot(noted) => {
                self.roots.push(self.roots[self.newest()].clone());
                if *noted {
                    self.root_min = self.newest();
                    cache.note_root(CommitNo(self.root_min as u64));
                }
                Ok(())
            }
        }
    }

    fn lookup(&mut self, cache: &mut ItemCache<'_>, key: &Key) -> Outcome {
        let mut buffer = [0; VALUE_BYTES_MAX];
        match cache.lookup(key) {
            Ok(found) => {
                let found = found.map(|value| value.copy_to(&mut buffer).to_vec());
                prop_assert_eq!(found.as_ref(), self.live.get(key));
            }
            Err(miss) => {
                prop_assert_eq!(miss.at, *key);
                prop_assert!(miss.gap.contains(key));
            }
        }
        Ok(())
    }

    fn next(&mut self, cache: &mut ItemCache<'_>, from: Key, last: Key) -> Outcome {
        let mut buffer = [0; VALUE_BYTES_MAX];
        let there = (from <= last).then(|| self.live.range(from..=last).next()).flatten();
        match cache.next(&from, &last) {
            Ok(found) => {
                let found = found.map(|i| (i.key, i.value.copy_to(&mut buffer).to_vec()));
                prop_assert_eq!(found, there.map(|(key, value)| (*key, value.clone())));
            }
            Err(miss) => {
                prop_assert!(from <= miss.at && miss.at <= last);
                prop_assert!(there.is_none_or(|(key, _)| miss.at <= *key));
            }
        }
        Ok(())
    }

    fn prev(&mut self, cache: &mut ItemCache<'_>, from: Key, first: Key) -> Outcome {
        let mut buffer = [0; VALUE_BYTES_MAX];
        let there = (first <= from).then(|| self.live.range(first..=from).next_back()).flatten();
        match cache.prev(&from, &first) {
            Ok(found) => {
                let found = found.map(|i| (i.key, i.value.copy_to(&mut buffer).to_vec()));
                prop_assert_eq!(found, there.map(|(key, value)| (*key, value.clone())));
            }
            Err(miss) => {
                prop_assert!(first <= miss.at && miss.at <= from);
                prop_assert!(there.is_none_or(|(key, _)| miss.at >= *key));
            }
        }
        Ok(())
    }

    fn is_dirty(&self, key: &Key) -> bool {
        self.open.contains(key) || self.snapshot.contains(key)
    }

    fn change(
        &mut self,
        cache: &mut ItemCache<'_>,
        wanted: &[(u8, u8, bool)],
        bytes: u16,
    ) -> Outcome {
        let wanted: BTreeMap<Key, bool> =
            wanted.iter().map(|(lock, number, delete)| (key(*lock, *number), *delete)).collect();
        let values: Vec<Vec<u8>> = wanted.iter().map(|_| self.value(bytes)).collect();
        let edits: Vec<Edit<'_>> = (wanted.iter().zip(&values))
            .map(|((key, delete), value)| match (self.live.contains_key(key), delete) {
                (false, _) => Edit::Create { key: *key, value },
                (true, false) => Edit::Replace { key: *key, value },
                (true, true) => Edit::Delete { key: *key },
            })
            .collect();
        match cache.plan(&edits) {
            Ok(plan) => cache.apply(plan, &edits),
            Err(Stop::Wait(wait)) => return self.may_wait(cache, wait),
            Err(Stop::Fail(error)) => prop_assert!(false, "{:?}", error),
        }
        for edit in edits {
            match edit {
                Edit::Create { key, value } => {
                    if !self.is_dirty(&key) {
                        self.fresh.insert(key);
                    }
                    self.live.insert(key, value.to_vec());
                    self.open.insert(key);
                }
                Edit::Replace { key, value } => {
                    self.live.insert(key, value.to_vec());
                    self.open.insert(key);
                }
                Edit::Delete { key } => {
                    self.live.remove(&key);
                    if self.fresh.remove(&key) {
                        self.open.remove(&key);
                        self.snapshot.remove(&key);
                    } else {
                        self.open.insert(key);
                    }
                }
                Edit::CreateBlind { .. } | Edit::DeleteBlind { .. } => unreachable!(),
            }
        }
        Ok(())
    }

    fn may_wait(&self, cache: &ItemCache<'_>, wait: Wait) -> Outcome {
        match wait {
            Wait::Snapshot => prop_assert!(matches!(self.commit, Commit::Copying(_))),
            Wait::Commit => {
                let usage = cache.usage();
                let limits = &cache.limits;
                prop_assert!(
                    usage.dirty_items + limits.change.items > limits.dirty_items
                        || usage.dirty_chunks + limits.change.chunks() > limits.dirty_chunks
                );
            }
            Wait::Fill(miss) => prop_assert!(miss.gap.contains(&miss.at)),
        }
        Ok(())
    }

    /// Edits that may be wrong about what exists.
    fn assume(&mut self, cache: &mut ItemCache<'_>, key: Key, kind: u8) -> Outcome {
        let exists = self.live.contains_key(&key);
        let (edit, wrong) = match kind {
            0 => (Edit::Create { key, value: &[] }, exists.then_some(Error::Exists)),
            1 => (Edit::Replace { key, value: &[] }, (!exists).then_some(Error::NotFound)),
            _ => (Edit::Delete { key }, (!exists).then_some(Error::NotFound)),
        };
        match cache.plan(&[edit]) {
            Ok(_) => prop_assert_eq!(wrong, None),
            Err(Stop::Fail(error)) => prop_assert_eq!(wrong, Some(error)),
            Err(Stop::Wait(_)) => {}
        }
        Ok(())
    }

    fn blind(&mut self, cache: &mut ItemCache<'_>, number: u8, del: bool, bytes: u16) -> Outcome {
        let (key, value) = (blind_key(number), self.value(bytes));
        let edits = match del {
            true => [Edit::DeleteBlind { key }],
            false => [Edit::CreateBlind { key, value: &value }],
        };
        match cache.plan(&edits) {
            Ok(plan) => cache.apply(plan, &edits),
            Err(Stop::Wait(wait)) => return self.may_wait(cache, wait),
            Err(Stop::Fail(error)) => prop_assert!(false, "{:?}", error),
        }
        match del {
            true => self.live.remove(&key),
            false => self.live.insert(key, value),
        };
        self.open.insert(key);
        // It answers no question, now or later.
        prop_assert!(cache.lookup(&key).is_err());
        Ok(())
    }

    fn fill_begin(
        &mut self,
        cache: &mut ItemCache<'_>,
        lock: u8,
        number: u8,
        age: u8,
        alone: bool,
    ) -> Outcome {
        let at = key(lock, number);
        let Err(miss) = cache.lookup(&at) else {
            return Ok(());
        };
        let lock = lock_range(lock);
        let mut range =
            Range { first: miss.gap.first.max(lock.first), last: miss.gap.last.min(lock.last) };
        if alone {
            range = Range { first: at, last: at };
        }
        let root = self.newest().saturating_sub(usize::from(age));
        match cache.fill_begin(&range, &at, CommitNo(root as u64)) {
            Ok(id) => {
                prop_assert!(root >= self.root_min || is_active(Mutant::FillUnderOldRoot));
                self.reading.push(Reading { id, root, next: range.first, last: range.last });
            }
            Err(FillRefused::OldRoot(min)) => {
                prop_assert_eq!(min.0, self.root_min as u64);
                prop_assert!(root < self.root_min);
            }
            Err(FillRefused::Running(id)) => {
                let running = self.reading.iter().find(|reading| reading.id == id).unwrap();
                prop_assert!(running.next <= at && at <= running.last);
            }
            Err(FillRefused::Busy) => {
                prop_assert_eq!(self.reading.len(), cache.limits.fills as usize);
            }
        }
        Ok(())
    }

    fn fill_items(&mut self, cache: &mut ItemCache<'_>, fill: u8, items: u8, end: bool) -> Outcome {
        if self.reading.is_empty() {
            return Ok(());
        }
        let at = usize::from(fill) % self.reading.len();
        let Reading { id, root, next, last } = self.reading[at];
        let mut result = Ok(());
        if next <= last {
            for (key, value) in self.roots[root].range(next..=last).take(items.into()) {
                result = cache.fill_item(id, key, value);
                if result.is_err() {
                    break;
                }
                self.reading[at].next = crate::client::items::key::successor(key).unwrap();
            }
        }
        if result.is_ok() && end {
            result = cache.fill_end(id, &last);
            self.reading.swap_remove(at);
            prop_assert!(matches!(result, Ok(()) | Err(FillEnd::Stale)));
        } else if let Err(ended) = result {
            prop_assert_eq!(ended, FillEnd::Stale);
            self.reading.swap_remove(at);
        }
        Ok(())
    }

    fn commit_begin(&mut self, cache: &mut ItemCache<'_>) -> Outcome {
        match cache.commit_begin() {
            Ok(snapshot) => {
                prop_assert_eq!(self.commit, Commit::Idle);
                prop_assert!(!self.open.is_empty());
                self.snapshot = core::mem::take(&mut self.open);
                self.commit = Commit::Copying(snapshot);
                self.copies.clear();
            }
            Err(NotNow::Clean) => {
                prop_assert_eq!(self.commit, Commit::Idle);
                prop_assert!(self.open.is_empty());
            }
            Err(NotNow::Busy) => prop_assert_ne!(self.commit, Commit::Idle),
        }
        Ok(())
    }

    fn copy(&mut self, cache: &mut ItemCache<'_>, items: u8) -> Outcome {
        let mut buffer = [0; VALUE_BYTES_MAX];
        for _ in 0..items {
            let Commit::Copying(snapshot) = self.commit else {
                prop_assert!(cache.commit_peek().is_none());
                return Ok(());
            };
            let copied = cache.commit_peek().unwrap();
            let value = copied.value.map(|value| value.copy_to(&mut buffer).to_vec());
            let expected = self.snapshot.iter().find(|key| !self.copies.contains_key(*key));
            prop_assert_eq!(Some(&copied.key), expected);
            prop_assert_eq!(value.as_ref(), self.live.get(&copied.key));
            self.fresh.remove(&copied.key);
            self.copies.insert(copied.key, value);
            cache.commit_advance();
            if self.copies.len() == self.snapshot.len() {
                self.commit = Commit::InFlight(snapshot);
            }
        }
        Ok(())
    }

    fn commit_done(&mut self, cache: &mut ItemCache<'_>) -> Outcome {
        let Commit::InFlight(snapshot) = self.commit else {
            // Whatever this answers, it isn't the commit in flight.
            let root = CommitNo(self.root_min as u64);
            prop_assert!(!cache.commit_done(Generation(0), root));
            return Ok(());
        };
        let mut items = self.roots[self.newest()].clone();
        for (key, value) in core::mem::take(&mut self.copies) {
            match value {
                Some(value) => items.insert(key, value),
                None => items.remove(&key),
            };
        }
        self.roots.push(items);
        self.root_min = self.newest();
        prop_assert!(cache.commit_done(snapshot, CommitNo(self.root_min as u64)));
        prop_assert!(!cache.commit_done(snapshot, CommitNo(self.root_min as u64)));
        self.commit = Commit::Durable;
        Ok(())
    }

    fn commit_failed(&mut self, cache: &mut ItemCache<'_>) -> Outcome {
        let (Commit::Copying(snapshot) | Commit::InFlight(snapshot)) = self.commit else {
            prop_assert!(!cache.commit_failed(cache.open));
            return Ok(());
        };
        prop_assert!(cache.commit_failed(snapshot));
        self.commit = Commit::Failed;
        Ok(())
    }

    fn step(&mut self, cache: &mut ItemCache<'_>, work: u8) -> Outcome {
        let more = cache.step(u32::from(work));
        if let Commit::Durable | Commit::Failed = self.commit {
            for _ in 0..work {
                let Some(key) = self.snapshot.pop_first() else {
                    self.commit = Commit::Idle;
                    break;
                };
                if self.commit == Commit::Failed {
                    self.open.insert(key);
                }
            }
        }
        let ending = matches!(self.commit, Commit::Durable | Commit::Failed);
        prop_assert_eq!(more == More::Yes, ending);
        Ok(())
    }

    /// Gives a lock up if nothing dirty is under it, lets another mount change some of its items,
    /// and takes it again.
    fn revoke(&mut self, cache: &mut ItemCache<'_>, lock: u8, seed: u8) -> Outcome {
        let range = lock_range(lock);
        let has = |keys: &BTreeSet<Key>| keys.range(range.first..=range.last).next().is_some();
        let (open, snapshot) = (has(&self.open), has(&self.snapshot));
        let dirty = cache.dirty_in(&range);
        let running = matches!(self.commit, Commit::Copying(_) | Commit::InFlight(_));
        let failed = self.commit == Commit::Failed;
        prop_assert_eq!(dirty.open.is_some(), open || failed && snapshot);
        prop_assert_eq!(dirty.in_flight.is_some(), running && snapshot);
        if dirty.open.is_some() || dirty.in_flight.is_some() {
            return Ok(());
        }
        while cache.invalidate(&range, 5) == More::Yes {}
        prop_assert!(cache.index.ceil(&range.first, !0).is_none_or(|e| e.key > range.last));
        self.snapshot.retain(|key| !range.contains(key));
        let mut items = self.roots[self.newest()].clone();
        let mut random = SplitMix(seed.into());
        for _ in 0..6 {
            let key = key(lock, random.next() as u8);
            match random.below(2) {
                0 => items.remove(&key),
                _ => items.insert(key, std::vec![seed; random.below(100)]),
            };
        }
        self.live.retain(|key, _| !range.contains(key));
        self.live.extend(items.range(range.first..=range.last).map(|(k, v)| (*k, v.clone())));
        self.roots.push(items);
        self.root_min = self.newest();
        cache.note_root(CommitNo(self.root_min as u64));
        Ok(())
    }

    /// What must hold whenever nothing is going on.
    fn check(&self, cache: &ItemCache<'_>) -> Outcome {
        audit(cache);
        let dirty: BTreeSet<&Key> = self.open.union(&self.snapshot).collect();
        prop_assert_eq!(cache.usage().dirty_items as usize, dirty.len());
        prop_assert_eq!(cache.usage().fills as usize, self.reading.len());
        // Blind items leave when they are durable; nothing else lies there.
        let blind = dirty.iter().filter(|key| is_blind(key)).count();
        let mut cached = 0;
        let mut at = FIRST;
        while let Some(entry) = cache.index.ceil(&at, !0).filter(|entry| is_blind(&entry.key)) {
            cached += 1;
            at = crate::client::items::key::successor(&entry.key).unwrap();
        }
        prop_assert_eq!(cached, blind);
        // The model itself: what is not dirty is what the newest root has.
        let clean = |(key, _): &(&Key, &Vec<u8>)| !dirty.contains(key) && !is_blind(key);
        let in_tree = self.roots[self.newest()].iter().filter(clean);
        if self.commit == Commit::Idle {
            prop_assert!(self.live.iter().filter(clean).eq(in_tree));
        }
        Ok(())
    }
}

fn play(limits: &Limits, ops: &[Op], mutant: bool) -> Result<Counters, TestCaseError> {
    let mut region = Region::measured(|arena| ItemCache::carve(arena, limits).map(|_| ()));
    let mut arena = Arena::new(region.bytes()).unwrap();
    let mut cache = ItemCache::carve(&mut arena, limits).unwrap();
    activate(mutant.then_some(Mutant::FillUnderOldRoot));
    let mut model = Model::new();
    for (number, op) in ops.iter().enumerate() {
        model.run(&mut cache, op)?;
        if number % 4 == 0 {
            model.check(&cache)?;
        }
    }
    // In the end everything can be committed, and is then what the tree has.
    while model.commit != Commit::Idle || !model.open.is_empty() {
        for op in [Op::CommitBegin, Op::Copy(255), Op::CommitDone, Op::Step(255)] {
            model.run(&mut cache, &op)?;
        }
    }
    model.check(&cache)?;
    let now: Vec<_> = model.live.iter().filter(|(key, _)| !is_blind(key)).collect();
    let tree = &model.roots[model.newest()];
    prop_assert!(now.into_iter().eq(tree.iter().filter(|(key, _)| !is_blind(key))));
    prop_assert_eq!(cache.usage().dirty_chunks, 0);
    Ok(cache.counters())
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(op(), 1..1200)
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..Default::default() }
}

/// What the runs of a test went through, together.
fn sum(total: &mut Counters, run: &Counters) {
    let pairs = [
        (&mut total.hits, run.hits),
        (&mut total.negative_hits, run.negative_hits),
        (&mut total.misses, run.misses),
        (&mut total.fills, run.fills),
        (&mut total.fills_stale, run.fills_stale),
        (&mut total.items_filled, run.items_filled),
        (&mut total.items_refused, run.items_refused),
        (&mut total.items_evicted, run.items_evicted),
        (&mut total.items_invalidated, run.items_invalidated),
        (&mut total.ranges_forgotten, run.ranges_forgotten),
        (&mut total.edits, run.edits),
        (&mut total.commits, run.commits),
        (&mut total.commits_failed, run.commits_failed),
    ];
    pairs.into_iter().for_each(|(total, run)| *total += run);
}

#[test]
fn every_answer_is_true_or_a_miss() {
    let total = RefCell::new(Counters::default());
    let mut runner = TestRunner::new(config(300));
    let result = runner.run(&(limits(), ops()), |(limits, ops)| {
        sum(&mut total.borrow_mut(), &play(&limits, &ops, false)?);
        Ok(())
    });
    let total = total.into_inner();
    std::println!("{total:#?}");
    result.unwrap();
    // A test in which this never happens tests nothing.
    assert!(total.hits > 0 && total.negative_hits > 0 && total.misses > 0);
    assert!(total.fills > 0 && total.fills_stale > 0 && total.items_refused > 0);
    assert!(total.items_evicted > 0 && total.ranges_forgotten > 0 && total.items_invalidated > 0);
    assert!(total.commits > 0 && total.commits_failed > 0);
}

/// The same test sees a fill under an old root, if that is let in.
#[test]
fn a_fill_under_an_old_root_would_be_seen() {
    let config = ProptestConfig { max_shrink_iters: 0, ..config(300) };
    let mut runner = TestRunner::new_with_rng(
        config.clone(),
        proptest::test_runner::TestRng::deterministic_rng(config.rng_algorithm),
    );
    let seen =
        runner.run(&(limits(), ops()), |(limits, ops)| play(&limits, &ops, true).map(|_| ()));
    assert!(seen.is_err());
}

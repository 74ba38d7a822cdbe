//! Histories of a mount that reads, changes and commits while others do, and while runs are merged
//! and their blocks are used again: every answer of the item cache must be the truth.

extern crate std;

use super::{Bench, ROOMY, bytes};
use crate::block::Chaos;
use crate::btree::rig::Rng;
use crate::client::items::key::successor;
use crate::client::items::{self, Edit, Key, Limits, Miss, Needs, Range, Stop};
use crate::client::reader::{Busy, Counters, Now, ReaderEvent, ReaderLimits};
use crate::error::Error;
use crate::format::key::{Key as Fields, KeyBytes};
use crate::lsm::choose::Chooser;
use crate::lsm::tests::{Items, KEYS, Model, compact, key, random_policy};
use crate::lsm::window::WindowLimits;
use crate::node::More;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::vec::Vec;
use zerocopy::transmute;

/// Locks that each cover four inodes, and one that covers the indices.
const LOCKS: usize = 7;
/// Questions at once.
const TASKS: usize = 8;

fn lock_of(key: &Key) -> usize {
    let fields = Fields::from(<KeyBytes as zerocopy::FromBytes>::read_from_bytes(key).unwrap());
    if fields.zone == 1 { 6 } else { ((fields.first - 1) / 4) as usize }
}

fn lock_range(lock: usize) -> Range {
    let (min, max) = (Fields::MIN, Fields::MAX);
    let (first, last) = if lock == 6 {
        (Fields { zone: 1, ..min }, Fields { zone: 1, ..max })
    } else {
        let ino = lock as u64 * 4 + 1;
        (Fields { zone: 3, first: ino, ..min }, Fields { zone: 3, first: ino + 3, ..max })
    };
    Range { first: bytes(first), last: bytes(last) }
}

fn stored(key: Key) -> KeyBytes {
    transmute!(key)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    Ready,
    /// An event for this key.
    Fill(Key),
    /// Any event, or a root.
    Any,
}

/// A question, asked until it is answered.
struct Task {
    at: Key,
    /// The last key of a scan; none for a lookup.
    last: Option<Key>,
    wait: Wait,
}

#[derive(Default, Debug)]
struct Totals {
    answers: u64,
    changes: u64,
    commits: u64,
    searches: u64,
    scanned: u64,
    io_failures: u64,
    merges: u64,
    counters: Counters,
}

struct Mount {
    bench: Bench,
    truth: Model,
    /// Locks that another mount has.
    foreign: [bool; LOCKS],
    tasks: Vec<Task>,
    /// Wants that have been accepted and not answered.
    wanted: BTreeSet<Key>,
    /// A server was asked for its root.
    asked: bool,
    /// The range of the search, and the items of each root that it may read.
    search: Option<(Range, Vec<Rc<Model>>)>,
    /// The items of the newest root that the reader was told.
    told: Rc<Model>,
    totals: Totals,
}

impl Mount {
    fn new(seed: u64) -> Mount {
        let mut rng = Rng(seed);
        let tight = rng.one_in(2);
        let reader = if tight { ReaderLimits::LEAST } else { ROOMY };
        let window = WindowLimits { items: 1 + rng.below(12) as u32, ..reader.window };
        let window = if rng.one_in(2) { window } else { reader.window };
        let ahead = [0, 3, 40][seed as usize % 3];
        let limits = ReaderLimits { fills: 1 + rng.below(4) as u32, window, ahead, ..reader };
        let least = Limits::least(Needs { items: 4, value_bytes: 4 * 512 });
        let room = if rng.one_in(2) { 0 } else { rng.below(200) as u32 };
        let items = Limits {
            items: least.items + room,
            chunks: least.chunks + 9 * room,
            dirty_items: least.dirty_items + room / 2,
            dirty_chunks: least.dirty_chunks + 9 * (room / 2),
            ranges: least.ranges + room / 4,
            fills: 1 + rng.below(4) as u32,
            ..least
        };
        let mut bench = Bench::new(rng.next(), &limits, &items);
        bench.reader.inject(rng.one_in(2).then(|| Chaos::new(rng.next(), 12)));
        bench.read_errors = [0, 0, 20][rng.below(3) as usize];
        bench.story.shared.segment.set([3, 5, 9][rng.below(3) as usize]);
        *bench.story.shared.chooser.borrow_mut() = Chooser::new(random_policy(&mut rng));
        Mount {
            bench,
            truth: Model::new(),
            foreign: [false; LOCKS],
            tasks: Vec::new(),
            wanted: BTreeSet::new(),
            asked: false,
            search: None,
            told: Rc::default(),
            totals: Totals::default(),
        }
    }

    fn below(&mut self, end: u64) -> u64 {
        self.bench.rng.below(end)
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.bench.rng.one_in(count)
    }

    fn random_key(&mut self) -> Key {
        transmute!(key(self.bench.rng.below(KEYS)))
    }

    fn random_value(&mut self) -> Vec<u8> {
        let (byte, len) = (self.bench.rng.next() as u8, self.below(200));
        std::vec![byte; len as usize]
    }

    fn act(&mut self) {
        match self.below(36) {
            0..4 if self.tasks.len() < TASKS => self.ask(),
            4..12 => self.run_one(),
            12..20 => self.step(),
            20..25 => self.complete(),
            25 | 32..36 => self.change(),
            26 => self.other_changes(),
            27 => self.commit(),
            28 => self.merge(),
            29 if self.one_in(3) => self.advance(),
            30 => self.answer(),
            31 if self.one_in(3) => self.start_search(),
            _ => self.bench.story.turn(),
        }
    }

    /// A new question.
    fn ask(&mut self) {
        let at = self.random_key();
        let last = self.one_in(3).then(|| {
            let end = lock_range(lock_of(&at)).last;
            if self.one_in(2) { end } else { self.random_key().clamp(at, end) }
        });
        self.tasks.push(Task { at, last, wait: Wait::Ready });
    }

    /// Runs a question that can run.
    fn run_one(&mut self) {
        let held = |task: &Task, foreign: &[bool]| !foreign[lock_of(&task.at)];
        let ready: Vec<usize> = (0..self.tasks.len())
            .filter(|&at| self.tasks[at].wait == Wait::Ready)
            .filter(|&at| held(&self.tasks[at], &self.foreign))
            .collect();
        if ready.is_empty() {
            return;
        }
        let index = ready[self.below(ready.len() as u64) as usize];
        let (at, last) = (self.tasks[index].at, self.tasks[index].last);
        let answer = match last {
            None => self.check_lookup(at).map(|()| None),
            Some(last) => self.check_next(at, last),
        };
        match answer {
            Ok(Some(next)) => self.tasks[index].at = next,
            Ok(None) => drop(self.tasks.swap_remove(index)),
            Err(miss) => self.tasks[index].wait = self.want(&miss),
        }
    }

    fn check_lookup(&mut self, at: Key) -> Result<(), Miss> {
        let value = self.bench.value(at)?;
        assert_eq!(value.as_ref(), self.truth.get(&transmute!(at)), "{at:?}");
        self.totals.answers += 1;
        Ok(())
    }

    /// One item of a scan; where it goes on.
    fn check_next(&mut self, at: Key, last: Key) -> Result<Option<Key>, Miss> {
        let found = self.bench.items.next(&at, &last)?;
        let found = found.map(|item| (item.key, item.value.copy_to(&mut [0; 600]).to_vec()));
        let expected = self.truth.range(stored(at)..=stored(last)).next();
        let expected = expected.map(|(key, value)| (transmute!(*key), value.clone()));
        assert_eq!(found, expected, "from {at:?} to {last:?}");
        self.totals.answers += 1;
        Ok(found.and_then(|(key, _)| successor(&key)).filter(|next| *next <= last))
    }

    fn want(&mut self, miss: &Miss) -> Wait {
        let lock = lock_range(lock_of(&miss.at));
        let range =
            Range { first: miss.gap.first.max(lock.first), last: miss.gap.last.min(lock.last) };
        let (reader, items) = (&mut self.bench.reader, &mut self.bench.items);
        let wanted = match self.bench.rng.one_in(2) {
            true => reader.want_now(items, miss.at, range),
            false => reader.want(items, miss.at, range).map(|()| Now::Wanted),
        };
        match wanted {
            Ok(Now::Filled) => {
                // Who waits for the key by an event still gets one.
                assert!(!self.wanted.contains(&miss.at));
                Wait::Ready
            }
            Ok(Now::Wanted) => {
                self.wanted.insert(miss.at);
                Wait::Fill(miss.at)
            }
            Err(Busy) => Wait::Any,
        }
    }

    fn step(&mut self) {
        let budget = 1 + self.below(20) as u32;
        let _ = self.bench.reader.step(&mut self.bench.items, budget);
        while let Some(request) = self.bench.reader.poll_request() {
            self.bench.flying.push(request);
        }
        while let Some(event) = self.bench.reader.poll_event() {
            self.on_event(event);
        }
    }

    fn on_event(&mut self, event: ReaderEvent) {
        self.wake_any();
        match event {
            ReaderEvent::Filled { range } => self.on_end(&range),
            ReaderEvent::Failed { at, range, error } => {
                assert!(matches!(error, Error::Io { .. }), "nothing is broken: {error:?}");
                assert!(self.bench.read_errors > 0 && range.contains(&at));
                self.totals.io_failures += 1;
                self.tasks.retain(|task| task.wait != Wait::Fill(at));
                self.on_end(&range);
            }
            ReaderEvent::RootWanted => {
                assert!(!self.asked, "one question at a time");
                self.asked = true;
            }
            ReaderEvent::Searched(found) => self.on_searched(found),
            ReaderEvent::Scanned(result) => self.on_scanned(result),
        }
    }

    /// The wants of this range are answered.
    fn on_end(&mut self, range: &Range) {
        let answered: Vec<Key> = self.wanted.range(range.first..=range.last).copied().collect();
        for at in answered {
            self.wanted.remove(&at);
            let waiting = self.tasks.iter_mut().filter(|task| task.wait == Wait::Fill(at));
            waiting.for_each(|task| task.wait = Wait::Ready);
        }
    }

    fn wake_any(&mut self) {
        let waiting = self.tasks.iter_mut().filter(|task| task.wait == Wait::Any);
        waiting.for_each(|task| task.wait = Wait::Ready);
    }

    fn complete(&mut self) {
        if !self.bench.flying.is_empty() {
            let at = self.below(self.bench.flying.len() as u64) as usize;
            self.bench.complete(at);
        }
    }

    /// Changes an item under a lock that is held, if what there is of it is known.
    fn change(&mut self) {
        let keys: [Key; 8] = core::array::from_fn(|_| self.random_key());
        let known = keys.into_iter().filter(|key| !self.foreign[lock_of(key)]).find_map(|key| {
            let value = self.bench.items.lookup(&key).ok()?;
            Some((key, value.is_some()))
        });
        let Some((key, old)) = known else { return };
        let value = self.random_value();
        let edit = match (old, self.one_in(2)) {
            (false, _) => Edit::Create { key, value: &value },
            (true, false) => Edit::Replace { key, value: &value },
            (true, true) => Edit::Delete { key },
        };
        match self.bench.items.plan(&[edit]) {
            Ok(plan) => self.bench.items.apply(plan, &[edit]),
            Err(Stop::Wait(items::Wait::Commit)) => return self.commit(),
            Err(stop) => panic!("{stop:?}"),
        }
        match edit.value() {
            Some(value) => drop(self.truth.insert(transmute!(key), value.to_vec())),
            None => drop(self.truth.remove(&transmute!(key))),
        }
        self.totals.changes += 1;
    }

    /// This mount's changes become durable.
    fn commit(&mut self) {
        while self.bench.items.step(100) == More::Yes {}
        let Ok(snapshot) = self.bench.items.commit_begin() else { return };
        let mut taken = Items::new();
        while let Some(item) = self.bench.items.commit_peek() {
            let value = item.value.map(|value| value.copy_to(&mut [0; 600]).to_vec());
            taken.insert(transmute!(item.key), value);
            self.bench.items.commit_advance();
        }
        self.bench.story.record(taken);
        self.settle_story();
        assert!(self.bench.items.commit_done(snapshot, self.bench.root().commit));
        self.tell();
        if self.one_in(2) {
            while self.bench.items.step(100) == More::Yes {}
        }
        self.totals.commits += 1;
    }

    /// Another mount takes some of the locks, and changes what is under them.
    fn other_changes(&mut self) {
        let mut changes = Items::new();
        let lock = self.below(LOCKS as u64) as usize;
        for _ in 0..1 + self.below(100) {
            let key = self.random_key();
            let range = lock_range(lock_of(&key));
            if lock_of(&key) != lock {
                continue;
            }
            let dirty = self.bench.items.dirty_in(&range);
            if dirty.open.is_some() || dirty.in_flight.is_some() {
                continue;
            }
            while self.bench.items.invalidate(&range, 10) == More::Yes {}
            self.foreign[lock_of(&key)] = true;
            let value = (!self.one_in(4)).then(|| self.random_value());
            changes.insert(transmute!(key), value);
        }
        if changes.is_empty() {
            return;
        }
        for (key, value) in &changes {
            match value {
                Some(value) => drop(self.truth.insert(*key, value.clone())),
                None => drop(self.truth.remove(key)),
            }
        }
        self.bench.story.record(changes);
        self.bench.story.settle();
    }

    fn merge(&mut self) {
        let rng = Rng(self.bench.rng.next());
        let op = compact(self.bench.story.shared.clone(), rng);
        self.bench.story.run(op);
    }

    /// Everything becomes durable, and the mount may or may not hear of it.
    fn advance(&mut self) {
        self.settle_story();
        if self.one_in(2) {
            self.tell();
        }
    }

    fn settle_story(&mut self) {
        self.bench.story.settle();
        self.bench.story.commit();
    }

    /// The reader knows of the durable root.
    fn on_told(&mut self) {
        self.told = self.bench.story.rig.durable.world.model.clone();
        if let Some((_, models)) = &mut self.search {
            models.push(self.told.clone());
        }
        self.wake_any();
    }

    /// The mount is granted all locks, with the durable root.
    fn tell(&mut self) {
        let durable = &self.bench.story.rig.durable.world;
        if durable.next_order != self.bench.story.rig.world.next_order {
            return;
        }
        let root = self.bench.root();
        self.bench.items.note_root(root.commit);
        self.bench.reader.set_root(&root).unwrap();
        self.foreign = [false; LOCKS];
        self.on_told();
    }

    /// The server answers with its root.
    fn answer(&mut self) {
        if core::mem::take(&mut self.asked) {
            self.bench.reader.answer_root(&self.bench.root()).unwrap();
            self.on_told();
        }
    }

    fn start_search(&mut self) {
        let (a, b) = (self.random_key(), self.random_key());
        let range = Range { first: a.min(b), last: a.max(b) };
        if self.search.is_some() {
            return;
        }
        let begun = match self.one_in(2) {
            true => self.bench.reader.scan(range),
            false => self.bench.reader.search(range),
        };
        if begun.is_ok() {
            self.search = Some((range, std::vec![self.told.clone()]));
            self.totals.searches += 1;
        }
    }

    fn on_searched(&mut self, found: Result<Option<Key>, Error>) {
        let (range, models) = self.search.take().expect("a search was begun");
        match found {
            Ok(found) => {
                let keys = stored(range.first)..=stored(range.last);
                let first = |model: &Model| model.range(keys.clone()).next().map(|item| *item.0);
                let found = found.map(stored);
                assert!(models.iter().any(|model| first(model) == found), "{found:?}");
            }
            Err(error) => {
                assert!(self.bench.read_errors > 0 && matches!(error, Error::Io { .. }));
                self.totals.io_failures += 1;
            }
        }
    }

    fn on_scanned(&mut self, result: Result<(), Error>) {
        let (range, models) = self.search.take().expect("a scan was begun");
        let Err(error) = result else {
            let found = self.bench.reader.scanned().expect("it was told of");
            let (from, to) = (stored(range.first), *found.last());
            assert!(from <= to && to <= stored(range.last));
            let is = |model: &Model| model.range(from..=to).map(|item| item.0).eq(found.keys());
            assert!(models.iter().any(|model| is(model)));
            self.totals.scanned += found.keys().count() as u64;
            self.bench.reader.end_scan();
            return;
        };
        assert!(self.bench.reader.scanned().is_none());
        assert!(self.bench.read_errors > 0 && matches!(error, Error::Io { .. }));
        self.totals.io_failures += 1;
    }

    /// Nothing new happens any more: every question must be answered before long.
    fn drain(&mut self) {
        for round in 0.. {
            assert!(round < 100_000, "questions are not answered: {}", self.tasks.len());
            if self.tasks.is_empty() && self.search.is_none() {
                break;
            }
            if round % 500 == 0 {
                self.settle_story();
                self.tell();
            }
            self.run_one();
            self.step();
            self.complete();
            self.answer();
        }
        assert_eq!(self.wanted, BTreeSet::new());
    }
}

fn tell(seed: u64, totals: &mut Totals) {
    let mut mount = Mount::new(seed);
    for _ in 0..1500 {
        mount.act();
    }
    mount.drain();
    for n in 0..KEYS {
        mount.tasks.push(Task { at: transmute!(key(n)), last: None, wait: Wait::Ready });
        if mount.tasks.len() == TASKS {
            mount.drain();
        }
    }
    mount.drain();
    let (counters, sum) = (mount.bench.reader.counters(), &mut totals.counters);
    sum.fills += counters.fills;
    sum.prompt += counters.prompt;
    sum.joins += counters.joins;
    sum.refusals += counters.refusals;
    sum.overtaken += counters.overtaken;
    sum.items += counters.items;
    sum.reads += counters.reads;
    sum.roots_stale += counters.roots_stale;
    sum.roots_asked += counters.roots_asked;
    sum.io_errors += counters.io_errors;
    sum.failures += counters.failures;
    totals.answers += mount.totals.answers;
    totals.changes += mount.totals.changes;
    totals.commits += mount.totals.commits;
    totals.searches += mount.totals.searches;
    totals.scanned += mount.totals.scanned;
    totals.io_failures += mount.totals.io_failures;
    totals.merges += mount.bench.story.shared.merges.get();
}

#[test]
fn every_answer_is_that_of_the_newest_root() {
    let mut totals = Totals::default();
    for seed in 0..40 {
        tell(seed, &mut totals);
    }
    std::println!("{totals:?}");
    let Totals { answers, changes, commits, searches, scanned, merges, counters, .. } = totals;
    assert!(answers > 10_000 && changes > 1000 && commits > 500 && searches > 100 && merges > 100);
    assert!(scanned > 300);
    assert!(counters.fills > 5_000 && counters.joins > 100 && counters.refusals > 100);
    assert!(counters.prompt > 500 && counters.prompt < counters.fills);
    assert!(counters.overtaken > 50 && counters.roots_stale > 50 && counters.roots_asked > 20);
    assert!(counters.io_errors > 100);
}

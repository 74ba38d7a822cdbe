//! The reader, case by case and against a model.

extern crate std;

mod model;

use super::{Busy, Now, Reader, ReaderEvent, ReaderLimits, ReaderLimitsError};
use crate::btree::rig::{Rng, VOLUME, carve};
use crate::client::items::key::{FIRST, LAST, successor};
use crate::client::items::{ItemCache, Key, Limits, Miss, Needs, Range};
use crate::error::{Corruption, Error};
use crate::format::CommitNo;
use crate::format::Ino;
use crate::format::key::{Key as Fields, KeyBytes};
use crate::format::super_block::{Identity, Super, tests::identity};
use crate::format::wire::message::ManifestRoot;
use crate::lsm::manifest::CHANGE_MAX;
use crate::lsm::tests::{FILTER_KEY, Items, Story, VOLUME_BLOCKS};
use crate::lsm::window::{WindowLimits, WindowLimitsError};
use crate::node::More;
use outrider_hal::{BlockNo, BlockOp, BlockRequest, Completion, IoError};
use std::string::String;
use std::vec::Vec;
use zerocopy::transmute;

const ROOMY: ReaderLimits = ReaderLimits {
    fills: 4,
    frames: 256,
    ahead: 0,
    window: WindowLimits { items: 256, bytes: 1 << 15 },
};

fn bytes(key: Fields) -> Key {
    transmute!(KeyBytes::from(key))
}

fn inode(ino: u64) -> Key {
    bytes(Fields::inode(Ino(ino)))
}

fn item_limits(fills: u32) -> Limits {
    let least = Limits::least(Needs { items: 8, value_bytes: 4096 });
    Limits { items: 2000, chunks: 6000, ranges: 200, fills, ..least }
}

/// A mount's item cache and reader, over a device on which somebody else writes.
struct Bench {
    story: Story,
    items: ItemCache<'static>,
    reader: Reader<'static>,
    flying: Vec<BlockRequest<'static>>,
    /// One read in so many fails. 0: none.
    read_errors: u64,
    rng: Rng,
}

impl Bench {
    fn new(seed: u64, limits: &ReaderLimits, item_limits: &Limits) -> Bench {
        assert_eq!((limits.validate(), item_limits.validate()), (Ok(()), Ok(())));
        let identity = Identity {
            crc_seed: VOLUME.crc_seed,
            name_key: FILTER_KEY,
            blocks: VOLUME_BLOCKS,
            ..identity()
        };
        let volume = Super::new(&identity).unwrap();
        assert_eq!(volume.volume(), VOLUME);
        Bench {
            story: Story::new(seed, CHANGE_MAX as u32),
            items: carve(|arena| ItemCache::carve(arena, item_limits)),
            reader: carve(|arena| Reader::carve(arena, limits, &volume)),
            flying: Vec::new(),
            read_errors: 0,
            rng: Rng(!seed),
        }
    }

    /// A bench on whose device these are.
    fn with(seed: u64, runs: impl IntoIterator<Item = Items>) -> Bench {
        let mut bench = Bench::new(seed, &ROOMY, &item_limits(ROOMY.fills));
        bench.record(runs);
        bench.reader.set_root(&bench.root()).unwrap();
        bench
    }

    fn record(&mut self, runs: impl IntoIterator<Item = Items>) {
        for items in runs {
            self.story.record(items);
            self.story.settle();
        }
        self.story.commit();
    }

    /// The durable root.
    fn root(&self) -> ManifestRoot {
        let durable = &self.story.rig.durable;
        let root = durable.world.manifest.root();
        ManifestRoot {
            commit: CommitNo(durable.number),
            blkno: root.node.blkno(),
            seq: root.node.seq(),
            height: root.height,
        }
    }

    fn want(&mut self, at: Key) -> Result<(), Busy> {
        let miss = self.items.lookup(&at).map(drop).expect_err("it is known");
        self.reader.want(&mut self.items, at, miss.gap)
    }

    fn step(&mut self) {
        while self.reader.step(&mut self.items, 7) == More::Yes {}
        while let Some(request) = self.reader.poll_request() {
            self.flying.push(request);
        }
        assert_eq!(self.reader.in_flight(), self.flying.len() as u32);
    }

    /// Completes the read that was submitted at this place of those in flight.
    fn complete(&mut self, at: usize) {
        let BlockRequest { tag, mut op } = self.flying.remove(at);
        let BlockOp::Read(blkno, buffer) = &mut op else { panic!("it only reads") };
        assert!(tag.0 < Reader::TAGS);
        buffer.0.copy_from_slice(&self.story.rig.disk.read(*blkno).0);
        let fails = self.read_errors > 0 && self.rng.one_in(self.read_errors);
        let result = if fails { Err(IoError::Device) } else { Ok(()) };
        self.reader.handle_completion(Completion { tag, op, result });
    }

    /// Lets everything go on until nothing does: the events.
    fn settle(&mut self) -> Vec<ReaderEvent> {
        let mut events = Vec::new();
        loop {
            self.step();
            events.extend(core::iter::from_fn(|| self.reader.poll_event()));
            if self.flying.is_empty() {
                return events;
            }
            let at = self.rng.below(self.flying.len() as u64) as usize;
            self.complete(at);
        }
    }

    fn value(&mut self, key: Key) -> Result<Option<Vec<u8>>, Miss> {
        let value = self.items.lookup(&key)?;
        Ok(value.map(|value| value.copy_to(&mut [0; 600]).to_vec()))
    }

    /// Looks a key up, and fills as long as that takes.
    fn lookup(&mut self, key: Key) -> Option<Vec<u8>> {
        loop {
            match self.value(key) {
                Ok(value) => return value,
                Err(miss) => self.fill(&miss),
            }
        }
    }

    fn fill(&mut self, miss: &Miss) {
        self.reader.want(&mut self.items, miss.at, miss.gap).unwrap();
        assert!(
            matches!(self.settle()[..], [ReaderEvent::Filled { range }] if range.contains(&miss.at))
        );
    }

    /// Every key of a range, as a scan finds them.
    fn scan(&mut self, range: Range) -> Vec<Key> {
        let (mut keys, mut from) = (Vec::new(), Some(range.first));
        while let Some(at) = from.filter(|at| *at <= range.last) {
            match self.items.next(&at, &range.last).map(|item| item.map(|item| item.key)) {
                Ok(Some(key)) => {
                    keys.push(key);
                    from = successor(&key);
                }
                Ok(None) => return keys,
                Err(miss) => {
                    let last = miss.gap.last.min(range.last);
                    let first = miss.gap.first.max(range.first);
                    self.fill(&Miss { gap: Range { first, last }, ..miss });
                }
            }
        }
        keys
    }

    /// Blocks of the runs that are there.
    fn run_blocks(&self) -> u64 {
        // The story's runs lie from here on, one behind the other while nothing is merged.
        self.story.rig.disk.0.range(4096..).count() as u64
    }

    fn spoil(&mut self, blkno: BlockNo) {
        self.story.rig.disk.0.get_mut(&blkno.0).unwrap().0[2000] ^= 1;
    }
}

fn one(key: Key) -> Range {
    Range { first: key, last: key }
}

/// Inodes with these numbers, one item each.
fn inodes(inos: impl IntoIterator<Item = u64>, value: &str) -> Items {
    let item = |ino| (Fields::inode(Ino(ino)).into(), Some(value.as_bytes().to_vec()));
    inos.into_iter().map(item).collect()
}

fn text(value: Option<Vec<u8>>) -> Option<String> {
    value.map(|bytes| String::from_utf8(bytes).unwrap())
}

#[test]
fn a_missing_key_comes_with_its_neighbours() {
    let mut bench = Bench::with(1, [inodes(1..=20, "old"), inodes([7], "new")]);
    assert_eq!(text(bench.lookup(inode(7))).as_deref(), Some("new"));
    assert_eq!(text(bench.value(inode(7)).unwrap()).as_deref(), Some("new"));
    assert_eq!(text(bench.lookup(inode(9))).as_deref(), Some("old"));
    assert!(bench.reader.counters().fills <= 2);
    assert_eq!(bench.lookup(inode(99)), None);
}

#[test]
fn limits_that_make_no_progress_are_refused() {
    let least = ReaderLimits::LEAST;
    assert_eq!(least.validate(), Ok(()));
    let refused = |limits: ReaderLimits| limits.validate().unwrap_err();
    assert_eq!(refused(ReaderLimits { fills: 0, ..least }), ReaderLimitsError::Fills);
    let frames = least.frames - 1;
    assert_eq!(refused(ReaderLimits { frames, ..least }), ReaderLimitsError::Frames);
    let window = WindowLimits { items: 0, ..least.window };
    let error = ReaderLimitsError::Window(WindowLimitsError::Items);
    assert_eq!(refused(ReaderLimits { window, ..least }), error);
}

#[test]
fn a_want_without_a_root_asks_for_one() {
    let mut bench = Bench::new(1, &ROOMY, &item_limits(4));
    assert_eq!(bench.want(inode(1)), Err(Busy));
    assert_eq!(bench.reader.search(Range { first: FIRST, last: LAST }), Err(Busy));
    assert_eq!(bench.settle(), [ReaderEvent::RootWanted]);
    assert_eq!(bench.want(inode(1)), Err(Busy));
    assert_eq!(bench.settle(), []);
    bench.reader.answer_root(&bench.root()).unwrap();
    // Not even a manifest is there: nothing is read.
    assert_eq!(bench.lookup(inode(1)), None);
    assert_eq!(bench.reader.counters().reads, 0);
    // A root of the item cache's that the reader has not been told of.
    bench.items.note_root(CommitNo(100));
    let _ = bench.items.invalidate(&Range { first: FIRST, last: LAST }, 1);
    assert_eq!(bench.want(inode(1)), Err(Busy));
    assert_eq!(bench.settle(), [ReaderEvent::RootWanted]);
}

#[test]
fn a_root_that_can_not_be_is_refused() {
    let mut bench = Bench::with(1, [inodes([1], "one")]);
    let root = bench.root();
    let commit = CommitNo(root.commit.0 + 1);
    let far = ManifestRoot { commit, blkno: BlockNo(VOLUME_BLOCKS), ..root };
    assert_eq!(bench.reader.set_root(&far), Err(Corruption::Bounds));
    let high = ManifestRoot { commit, height: 99, ..root };
    assert_eq!(bench.reader.answer_root(&high), Err(Corruption::Bounds));
    let empty = ManifestRoot { commit, height: 0, ..root };
    assert_eq!(bench.reader.set_root(&empty), Err(Corruption::Mismatch));
    assert!(bench.lookup(inode(1)).is_some());
}

#[test]
fn what_was_read_ahead_is_not_read_again() {
    let run = |owner: u64| -> Items {
        (0..20)
            .map(|n| (KeyBytes::from(Fields::inode(Ino(owner + 16 * n))), Some(Vec::new())))
            .collect()
    };
    for (ahead, reads) in [(0, 0), (3, 3), (64, 9)] {
        let mut bench = Bench::new(5, &ReaderLimits { ahead, ..ROOMY }, &item_limits(4));
        bench.record((1..9).map(run));
        assert_eq!(bench.root().height, 1);
        bench.reader.set_root(&bench.root()).unwrap();
        assert_eq!(bench.settle(), []);
        // The manifest, and eight filters.
        assert_eq!(bench.reader.counters().reads, reads);
        bench.reader.want(&mut bench.items, inode(19), one(inode(19))).unwrap();
        assert_eq!(bench.settle().len(), 1);
        assert_eq!(bench.value(inode(19)), Ok(Some(Vec::new())));
        assert_eq!(bench.reader.counters().reads, 11, "an index block and an item block more");
    }
}

#[test]
fn wants_join_a_fill_and_hear_as_soon_as_it_gives_them_up() {
    // The newer run says of inode 900 only that it hasn't got it: that narrows the fill.
    let mut bench = Bench::with(1, [inodes(1..1000, "old"), inodes([1, 1500], "new")]);
    let everything = Range { first: FIRST, last: LAST };
    for ino in [900, 3, 901, 900] {
        assert_eq!(bench.reader.want(&mut bench.items, inode(ino), everything), Ok(()));
    }
    assert_eq!(bench.reader.counters().joins, 3);
    let mut events = Vec::new();
    while events.is_empty() {
        bench.step();
        events.extend(core::iter::from_fn(|| bench.reader.poll_event()));
        if !bench.flying.is_empty() {
            bench.complete(0);
        }
    }
    // Those on the other side of what is left of it, and nobody else.
    let told = |ino| {
        let ranges = events.iter().filter_map(|event| match event {
            ReaderEvent::Filled { range } => Some(range),
            _ => None,
        });
        ranges.filter(|range| range.contains(&inode(ino))).count()
    };
    assert_eq!([told(900), told(3), told(901)], [0, 1, 1]);
    assert_eq!(bench.want(inode(3)), Ok(()));
    assert_eq!(bench.reader.counters().joins, 3, "a fill of its own");
    assert_eq!(bench.settle().len(), 2);
    assert!(bench.value(inode(900)).is_ok() && bench.value(inode(3)).is_ok());
}

#[test]
fn as_many_fills_as_there_may_be_run_at_once() {
    let mut bench = Bench::with(1, [inodes(1..1000, "x")]);
    for ino in 1..=4 {
        assert_eq!(bench.reader.want(&mut bench.items, inode(ino), one(inode(ino))), Ok(()));
    }
    assert_eq!(bench.reader.want(&mut bench.items, inode(5), one(inode(5))), Err(Busy));
    assert_eq!(bench.reader.want(&mut bench.items, inode(4), one(inode(4))), Ok(()));
    assert_eq!(bench.settle().len(), 4);
    assert_eq!(bench.reader.want(&mut bench.items, inode(5), one(inode(5))), Ok(()));
    assert_eq!(bench.settle().len(), 1);
    let counters = bench.reader.counters();
    assert_eq!((counters.fills, counters.joins, counters.refusals), (5, 1, 1));
}

#[test]
fn what_is_in_memory_is_brought_at_once() {
    let mut bench = Bench::with(1, [inodes(1..1000, "x"), inodes([7, 3000], "new")]);
    let now = |bench: &mut Bench, ino| {
        bench.reader.want_now(&mut bench.items, inode(ino), one(inode(ino)))
    };
    assert_eq!(now(&mut bench, 7), Ok(Now::Wanted), "the device is asked");
    assert_eq!(bench.settle(), [ReaderEvent::Filled { range: one(inode(7)) }]);
    assert_eq!(text(bench.value(inode(7)).unwrap()).as_deref(), Some("new"));
    // Its answer is in the blocks that were read for the neighbour.
    let reads = bench.reader.counters().reads;
    assert_eq!(now(&mut bench, 8), Ok(Now::Wanted), "but for the older run's");
    assert_eq!(bench.settle().len(), 1);
    assert!(bench.reader.counters().reads > reads);
    let reads = bench.reader.counters().reads;
    assert_eq!(now(&mut bench, 9), Ok(Now::Filled));
    assert_eq!(text(bench.value(inode(9)).unwrap()).as_deref(), Some("x"));
    assert_eq!(bench.settle(), [], "nobody waits");
    assert_eq!((bench.reader.counters().reads, bench.reader.counters().prompt), (reads, 1));
    assert_eq!(bench.items.usage().fills, 0);
    // A fill that runs already is joined.
    assert_eq!(bench.reader.want(&mut bench.items, inode(10), one(inode(10))), Ok(()));
    assert_eq!(now(&mut bench, 10), Ok(Now::Wanted));
    assert_eq!(bench.settle().len(), 1);
    // The item cache knows of a newer root than any that could be read.
    bench.items.note_root(CommitNo(100));
    assert_eq!(now(&mut bench, 11), Err(Busy));
    assert_eq!(bench.settle(), [ReaderEvent::RootWanted]);
}

#[test]
fn what_is_invalidated_meanwhile_is_not_brought() {
    let mut bench = Bench::with(1, [inodes(1..100, "x")]);
    bench.want(inode(5)).unwrap();
    bench.step();
    let _ = bench.items.invalidate(&Range { first: inode(1), last: inode(10) }, 100);
    assert_eq!(bench.settle(), [ReaderEvent::Filled { range: one(inode(5)) }]);
    assert!(bench.value(inode(5)).is_err());
    assert_eq!(bench.reader.counters().overtaken, 1);
    // Begun again, it is for this key alone.
    bench.want(inode(5)).unwrap();
    bench.step();
    let _ = bench.items.invalidate(&Range { first: inode(6), last: inode(10) }, 100);
    assert_eq!(bench.settle(), [ReaderEvent::Filled { range: one(inode(5)) }]);
    assert!(bench.value(inode(5)).is_ok() && bench.value(inode(4)).is_err());
    bench.want(inode(50)).unwrap();
    assert_eq!(bench.settle().len(), 1);
    assert!(bench.value(inode(51)).is_ok());
}

#[test]
fn a_device_that_fails_is_tried_again_a_few_times() {
    let mut bench = Bench::with(1, [inodes(1..100, "x")]);
    bench.want(inode(5)).unwrap();
    for _ in 0..3 {
        bench.read_errors = 1;
        bench.step();
        bench.complete(0);
    }
    bench.read_errors = 0;
    assert_eq!(bench.settle(), [ReaderEvent::Filled { range: one(inode(5)) }]);
    let mut bench = Bench::with(1, [inodes(1..100, "x")]);
    bench.want(inode(5)).unwrap();
    bench.reader.want(&mut bench.items, inode(6), one(inode(6))).unwrap();
    bench.read_errors = 1;
    let [ReaderEvent::Failed { at, range, error: Error::Io { .. } }] = bench.settle()[..] else {
        panic!("it fails")
    };
    assert_eq!((at, range), (inode(5), Range { first: inode(5), last: inode(6) }));
    assert_eq!(bench.reader.counters().io_errors, 4);
    assert_eq!(bench.items.usage().fills, 0);
    bench.read_errors = 0;
    assert!(bench.lookup(inode(6)).is_some());
}

/// The first block that a lookup of this key reads of a run.
fn block_of(bench: &mut Bench, key: Key) -> BlockNo {
    bench.reader.want(&mut bench.items, key, one(key)).unwrap();
    loop {
        bench.step();
        let BlockOp::Read(blkno, _) = bench.flying[0].op else { panic!("it only reads") };
        if blkno.0 >= 4096 {
            break blkno;
        }
        bench.complete(0);
    }
}

#[test]
fn what_fails_under_a_root_that_is_the_newest_is_broken() {
    let mut bench = Bench::with(1, [inodes(1..100, "x")]);
    let blkno = block_of(&mut bench, inode(5));
    bench.spoil(blkno);
    assert_eq!(bench.settle(), [ReaderEvent::RootWanted]);
    // To hear the same root from somebody who wasn't asked says nothing.
    bench.reader.set_root(&bench.root()).unwrap();
    assert_eq!(bench.settle(), []);
    bench.reader.answer_root(&bench.root()).unwrap();
    let error = Error::Corrupt { blkno, what: Corruption::Checksum };
    let failed = ReaderEvent::Failed { at: inode(5), range: one(inode(5)), error };
    assert_eq!(bench.settle(), [failed]);
    assert_eq!((bench.items.usage().fills, bench.reader.counters().failures), (0, 1));
    // Others are asked anew; and a block that can be read again is as good as any.
    bench.want(inode(6)).unwrap();
    assert_eq!(bench.settle(), [ReaderEvent::RootWanted]);
    bench.spoil(blkno);
    bench.reader.answer_root(&bench.root()).unwrap();
    assert_eq!(bench.settle(), [ReaderEvent::Filled { range: one(inode(6)) }]);
    assert!(bench.value(inode(6)).unwrap().is_some());
}

#[test]
fn an_answer_confirms_nothing_that_failed_after_the_question() {
    let mut bench = Bench::with(1, [inodes(1..100, "x")]);
    let blkno = block_of(&mut bench, inode(5));
    bench.spoil(blkno);
    assert_eq!(bench.settle(), [ReaderEvent::RootWanted]);
    bench.reader.want(&mut bench.items, inode(6), one(inode(6))).unwrap();
    assert_eq!(bench.settle(), [], "one question at a time");
    bench.reader.answer_root(&bench.root()).unwrap();
    let events = bench.settle();
    let [ReaderEvent::RootWanted, ReaderEvent::Failed { at, .. }] = events[..] else {
        panic!("the first has failed, the other asks: {events:?}")
    };
    assert_eq!(at, inode(5));
    // A newer root goes before any answer.
    bench.spoil(blkno);
    bench.record([inodes([6], "new")]);
    bench.reader.set_root(&bench.root()).unwrap();
    assert_eq!(bench.settle(), [ReaderEvent::Filled { range: one(inode(6)) }]);
    assert_eq!(text(bench.value(inode(6)).unwrap()).as_deref(), Some("new"));
}

#[test]
fn a_root_older_than_the_newest_known_confirms_nothing() {
    let mut bench = Bench::with(1, [inodes(1..100, "x")]);
    let blkno = block_of(&mut bench, inode(5));
    bench.spoil(blkno);
    assert_eq!(bench.settle(), [ReaderEvent::RootWanted]);
    let root = bench.root();
    let old = ManifestRoot { commit: CommitNo(root.commit.0 - 1), ..root };
    bench.reader.answer_root(&old).unwrap();
    assert_eq!(bench.settle(), [ReaderEvent::RootWanted]);
    // Nor does what is no root at all.
    bench.reader.answer_root(&ManifestRoot { height: 99, ..root }).unwrap_err();
    assert_eq!(bench.settle(), [ReaderEvent::RootWanted]);
    bench.reader.answer_root(&root).unwrap();
    assert!(matches!(bench.settle()[..], [ReaderEvent::Failed { .. }]));
}

#[test]
fn a_parked_fill_whose_lock_is_given_up_does_not_go_on() {
    let mut bench = Bench::with(1, [inodes(1..100, "x")]);
    let blkno = block_of(&mut bench, inode(5));
    bench.spoil(blkno);
    assert_eq!(bench.settle(), [ReaderEvent::RootWanted]);
    let _ = bench.items.invalidate(&one(inode(5)), 10);
    bench.spoil(blkno);
    bench.reader.answer_root(&bench.root()).unwrap();
    assert_eq!(bench.settle(), [ReaderEvent::Filled { range: one(inode(5)) }]);
    assert!(bench.value(inode(5)).is_err());
}

#[test]
fn a_search_finds_the_first_item_and_fills_nothing() {
    let tombstones = inodes(1..300, "x").into_keys().map(|key| (key, None)).collect();
    let mut bench = Bench::with(1, [inodes(1..400, "x"), tombstones]);
    let range = Range { first: inode(2), last: inode(1000) };
    bench.reader.search(range).unwrap();
    assert_eq!(bench.reader.search(range), Err(Busy));
    assert_eq!(bench.settle(), [ReaderEvent::Searched(Ok(Some(inode(300))))]);
    bench.reader.search(Range { first: inode(400), last: LAST }).unwrap();
    assert_eq!(bench.settle(), [ReaderEvent::Searched(Ok(None))]);
    let mut bench = Bench::with(1, [inodes(1..400, "x")]);
    bench.read_errors = 1;
    bench.reader.search(range).unwrap();
    assert!(matches!(bench.settle()[..], [ReaderEvent::Searched(Err(Error::Io { .. }))]));
    bench.read_errors = 0;
    bench.reader.search(range).unwrap();
    assert_eq!(bench.settle(), [ReaderEvent::Searched(Ok(Some(inode(2))))]);
}

#[test]
fn a_scan_shows_what_one_window_takes_until_it_is_ended() {
    let tombstones = inodes(1..300, "x").into_keys().map(|key| (key, None)).collect();
    let mut bench = Bench::with(1, [inodes(1..400, "x"), tombstones]);
    let range = Range { first: inode(2), last: inode(1000) };
    let mut found = Vec::new();
    let mut from = range.first;
    loop {
        bench.reader.scan(Range { first: from, ..range }).unwrap();
        assert_eq!(bench.settle(), [ReaderEvent::Scanned(Ok(()))]);
        assert_eq!(bench.reader.scan(range), Err(Busy));
        assert_eq!(bench.reader.search(range), Err(Busy));
        let shown = bench.reader.scanned().unwrap();
        found.extend(shown.keys().map(|key| -> Key { transmute!(*key) }));
        let last: Key = transmute!(*shown.last());
        assert!(from <= last && last <= range.last);
        bench.reader.end_scan();
        assert!(bench.reader.scanned().is_none());
        match last == range.last {
            true => break,
            false => from = successor(&last).unwrap(),
        }
    }
    assert_eq!(found, (300..400).map(inode).collect::<Vec<_>>());
    bench.read_errors = 1;
    bench.reader.scan(Range { first: inode(1), last: inode(1) }).unwrap();
    assert!(matches!(bench.settle()[..], [ReaderEvent::Scanned(_)]));
    bench.reader.end_scan();
    bench.reader.search(range).unwrap();
}

/// Runs that all have a part of a long directory, of an inode's attributes, and of inodes.
fn long_runs() -> Vec<Items> {
    let dir = Ino(50);
    let entry = |n: u64| Fields::readdir(dir, n);
    let attribute = |n: u64| Fields::xattr(dir, n.wrapping_mul(0x9e37_79b9_7f4a_7c15), n, 0);
    let keys = (0..6000).flat_map(|n| [entry(n), attribute(n), Fields::inode(Ino(100 + n))]);
    let mut runs = std::vec![Items::new(); 3];
    for (n, key) in keys.enumerate() {
        runs[n / 3 % 3].insert(key.into(), Some(std::vec![n as u8; 40]));
    }
    // This one has nothing of the directory, and its filter says so.
    runs.push(inodes([1, 1 << 40], "far apart"));
    runs
}

#[test]
fn a_scan_takes_as_many_fills_as_blocks() {
    let mut bench = Bench::with(1, long_runs());
    let blocks = bench.run_blocks();
    let dir = Ino(50);
    for (first, last) in [
        (Fields::readdir(dir, 0), Fields::readdir(dir, u64::MAX)),
        (Fields::xattr(dir, 0, 0, 0), Fields::xattr(dir, u64::MAX, u64::MAX, u8::MAX)),
        (Fields::inode(Ino(100)), Fields::inode(Ino(6099))),
    ] {
        let before = bench.reader.counters();
        let keys = bench.scan(Range { first: bytes(first), last: bytes(last) });
        assert_eq!(keys.len(), 6000);
        let counters = bench.reader.counters();
        let (fills, reads) = (counters.fills - before.fills, counters.reads - before.reads);
        std::println!("{fills} fills, {reads} reads; {blocks} blocks");
        assert!(fills < blocks / 2, "{fills} fills");
        assert!(reads < blocks, "{reads} reads");
    }
}

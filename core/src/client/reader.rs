//! The reader of a mount: fills the item cache from the runs on the device.
//!
//! ```text
//!   a task misses a key --> want ----> [ reading .. bringing ] ----> Filled: run the task again
//!                            |                |
//!                            v Busy           | the root is out of date
//!                  after the next event       v
//!                            RootWanted --> server --> answer_root, set_root: goes on
//! ```
//!
//! A task that can ask again at once says so ([`want_now`](Reader::want_now)). If all that its fill
//! looks at is in memory, the fill begins and ends in that call: it is [`Now::Filled`], no event
//! comes, and nothing was parked. If a block must be read, or there is too much to look at, the
//! fill goes on like any other.
//!
//! A fill is a read of the log-structured tree ([`Fill`](crate::lsm::read::Fill)) that is
//! registered with the item cache from its beginning to its end, so that what is committed or
//! invalidated meanwhile is not filled over.
//!
//! # Invariants
//!
//! * Each want that is accepted is answered by an event whose range has its key. An event answers
//!   all wants of its range, also those that another fill is still at work on: who asks for such a
//!   key again joins that fill.
//! * A fill that the item cache has let go, because what it was reading may be too old or the lock
//!   may be gone, is ended and never begun anew from here: only who waits for it can tell whether
//!   it still may have the key.
//! * A fill gives up what it can't bring as soon as it knows that, and wakes those who had counted
//!   on it. So it delays nobody by more than one step in vain, and what happens to keys that it
//!   doesn't read can't end it.
//! * Nothing a device has answered passes for items unverified: the block cache holds each block
//!   against the run, place and version that the root promises. What it holds of one version is
//!   dropped when another is asked for, so a root is old only if the device says so.
//! * At most one question for a root is open. What fails under a root that a server, asked after
//!   the failure, calls the newest, and fails so again, is broken.
//!
//! # How far a fill goes
//!
//! What is unknown begins right at the wanted key, if what lies before it has just been looked at:
//! then a scan goes on, and the fill reaches as far as it can ([`Reach::Wide`]). In any other case
//! it reads as little as it can, and brings what comes along ([`Reach::Point`]). So a scan takes a
//! fill for each block's worth of items, even where filters know single keys.
//!
//! # What is read before anybody asks
//!
//! When the first root is known, and no fill has anything to do, the manifest's upper nodes and the
//! filters of the upper levels are read, up to [`ReaderLimits::ahead`] blocks.
//!
//! # Progress
//!
//! A fill that was overtaken is begun again by who waits for it, under a root that is newer, and
//! for its key alone: commits of this mount can't overtake it again, because an unknown key has no
//! dirty item. Roots become old as fast as space is used again, which servers put off.
//!
//! What this module deliberately doesn't know: locks, requests, time, and the server.

mod ahead;
mod job;

use super::items::fill::one_key;
use super::items::key::{FIRST, predecessor, successor};
use super::items::{FillEnd, FillId, FillRefused, ItemCache, Key, Range};
use crate::arena::{Arena, ArenaFull};
use crate::block::{self, Cache, Chaos, RequestId};
use crate::btree::Tree;
use crate::error::{Corruption, Error};
use crate::format::btree::{BlockRef, TreeRoot};
use crate::format::key::KeyBytes;
use crate::format::run::Value;
use crate::format::super_block::Super;
use crate::format::wire::message::ManifestRoot;
use crate::lsm::KeyRange;
use crate::lsm::manifest::Manifest;
use crate::lsm::read::{PINS_PER_FILL, Reach};
use crate::lsm::window::{Window, WindowLimits, WindowLimitsError};
use crate::node::More;
use crate::txn::trees::MANIFEST;
use ahead::Ahead;
use core::fmt;
use job::{Job, Root, State, What};
use outrider_hal::{BlockRequest, Completion};
use zerocopy::transmute;

/// Items that count as one unit of work.
const ITEMS_PER_UNIT: u32 = 8;
/// Units of work that one fill does before it is another's turn.
const SLICE: u32 = 32;

const _: () = assert!(crate::format::run::VALUE_BYTES_MAX <= super::items::VALUE_BYTES_MAX);

/// The size of a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReaderLimits {
    /// Fills at once. More than the item cache has are of no use.
    pub fills: u32,
    /// Blocks in memory: what the fills and the search at work have obtained, and what is kept of
    /// runs and of the manifest so that it needn't be read again.
    pub frames: u32,
    /// Blocks that are read ahead when the first root is known: of the manifest and of filters,
    /// those first that most reads will need.
    pub ahead: u32,
    /// What one fill brings at the most. There are as many windows as fills, and one for the
    /// search or scan.
    pub window: WindowLimits,
}

/// The limit that is too small.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReaderLimitsError {
    /// No fill could ever begin, or there are more than can be numbered.
    Fills,
    /// Not even one fill could obtain all that it needs at once; or more than can be numbered.
    Frames,
    /// A window couldn't hold the largest item.
    Window(WindowLimitsError),
}

impl fmt::Display for ReaderLimitsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ReaderLimitsError::Fills => "reader: no fills, or too many",
            ReaderLimitsError::Frames => "reader: too few blocks for one fill, or too many",
            ReaderLimitsError::Window(WindowLimitsError::Items) => "reader: no items in a fill",
            ReaderLimitsError::Window(WindowLimitsError::Bytes) => {
                "reader: too few bytes in a fill for the largest item, or too many"
            }
        })
    }
}

impl ReaderLimits {
    /// The least that works.
    pub const LEAST: ReaderLimits = ReaderLimits {
        fills: 1,
        frames: PINS_PER_FILL,
        ahead: 0,
        window: WindowLimits { items: 1, bytes: crate::lsm::window::ITEM_BYTES_MAX },
    };

    /// Whether a reader of these limits always makes progress.
    pub fn validate(&self) -> Result<(), ReaderLimitsError> {
        if self.fills == 0 || self.fills >= 1 << 16 {
            return Err(ReaderLimitsError::Fills);
        }
        self.cache().validate().map_err(|_| ReaderLimitsError::Frames)?;
        self.window.validate().map_err(ReaderLimitsError::Window)
    }

    /// Those of a block cache that is only read from.
    fn cache(&self) -> block::Limits {
        block::Limits {
            frames: self.frames,
            dirty: 0,
            pins: PINS_PER_FILL,
            creates: 0,
            requests: self.fills + 2,
            fresh: 0,
            freed: 0,
        }
    }
}

/// Nothing can be begun now. Ask again after the next event, or the next root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Busy;

/// What came of a want that was accepted and worked on at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Now {
    /// What [`ReaderEvent::Filled`] says of this key, which is not told besides.
    Filled,
    /// It is wanted, and will be answered by an event.
    Wanted,
}

/// What the node is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReaderEvent {
    /// All wants that were accepted for keys of this range are answered: run what waits for them
    /// again. It finds its key known, or asks for it again.
    Filled {
        /// From the lowest to the highest of those keys that one fill was to bring.
        range: Range,
    },
    /// The same, but this one key can't be read: what waits for it has failed.
    Failed {
        /// The key.
        at: Key,
        /// As of [`Filled`](Self::Filled); has `at`.
        range: Range,
        /// Why.
        error: Error,
    },
    /// Every root known is out of date: ask the server for its root, and hand over the answer with
    /// [`Reader::answer_root`], however late it comes. Told once for each answer.
    RootWanted,
    /// The search has ended: the key of the first item, if there is one.
    Searched(Result<Option<Key>, Error>),
    /// The scan has ended. If it has found out something, that is [`Reader::scanned`] until
    /// [`Reader::end_scan`].
    Scanned(Result<(), Error>),
}

/// What happened so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Wants for which a fill was begun.
    pub fills: u64,
    /// Those of them that were answered at once.
    pub prompt: u64,
    /// Wants that a running fill was to answer.
    pub joins: u64,
    /// Wants that were turned away.
    pub refusals: u64,
    /// Fills that the item cache let go.
    pub overtaken: u64,
    /// Items handed to the item cache.
    pub items: u64,
    /// Blocks read.
    pub reads: u64,
    /// Fills and searches that found their root out of date, or its blocks broken.
    pub roots_stale: u64,
    /// Questions for a root.
    pub roots_asked: u64,
    /// Reads that the device failed.
    pub io_errors: u64,
    /// Fills and searches that failed.
    pub failures: u64,
    /// Searches and scans.
    pub searches: u64,
}

/// Where a fill is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Free,
    /// Its job is at work.
    Reading,
    /// Items from this one on have yet to be handed over.
    Bringing(usize),
    /// To be told.
    Over(Result<(), Error>),
}

/// A fill, whose job has the same index.
#[derive(Debug, Clone, Copy)]
struct Slot {
    phase: Phase,
    /// Its name with the item cache.
    id: Option<FillId>,
    /// What it was begun for.
    at: Key,
    /// From the lowest key to the highest that it is to answer for.
    wanted: Range,
    /// Keys that it was to answer for, and has given up: below and above those it may still bring.
    /// To be told.
    given_up: [Option<Range>; 2],
    /// What the last fill here was for, if it was overtaken and has not been begun again.
    overtaken: Option<Key>,
}

/// The search, or the scan, whose job comes after those of all fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Search {
    Idle,
    Running,
    /// To be told.
    Over(Result<Option<Key>, Error>),
    Scanning,
    /// To be told.
    Scanned(Result<(), Error>),
    /// What a scan has found is there to be looked at.
    Shown,
}

/// What a scan has found.
pub struct Scanned<'a, 'm> {
    window: &'a Window<'m>,
}

impl Scanned<'_, '_> {
    /// Keys of the items, in order.
    pub fn keys(&self) -> impl Iterator<Item = &KeyBytes> {
        (0..self.window.len()).map(|nth| self.window.get(nth).0)
    }

    /// There are no others up to this key.
    #[must_use]
    pub fn last(&self) -> &KeyBytes {
        &self.window.range().last
    }
}

/// See the module.
pub struct Reader<'m> {
    cache: Cache<'m>,
    volume_blocks: u64,
    newest: Option<Root>,
    jobs: &'m mut [Option<Job<'m>>],
    slots: &'m mut [Slot],
    search: Search,
    /// What is done when there is nothing else to do. Its request comes after those of all jobs.
    ahead: Ahead<'m>,
    /// The job whose turn it is.
    turn: usize,
    /// A want was turned away because no root known is new enough.
    starved: bool,
    /// A question for a root is open.
    asking: bool,
    counters: Counters,
}

fn hull(a: &Range, b: &Range) -> Range {
    Range { first: a.first.min(b.first), last: a.last.max(b.last) }
}

fn key_range(range: &Range) -> KeyRange {
    KeyRange { first: transmute!(range.first), last: transmute!(range.last) }
}

fn range(range: &KeyRange) -> Range {
    Range { first: transmute!(range.first), last: transmute!(range.last) }
}

impl<'m> Reader<'m> {
    /// Tags of its block requests are below this. A node that has others too moves them.
    pub const TAGS: u64 = Cache::TAGS;

    /// Carves a reader of this volume, which knows of no root. The limits must be valid.
    pub fn carve(
        arena: &mut Arena<'m>,
        limits: &ReaderLimits,
        volume: &Super,
    ) -> Result<Reader<'m>, ArenaFull> {
        assert!(limits.validate().is_ok(), "the node checks its limits before");
        let (cache, key) = (limits.cache(), &volume.fields().name_key);
        let count = limits.fills + 1;
        let jobs = arena.slice(count, |_| None)?;
        for index in 0..count {
            let job = Job::carve(arena, index, &cache, &limits.window, key)?;
            // A measuring arena has no jobs, but counts what each would have.
            if let Some(place) = jobs.get_mut(index as usize) {
                *place = Some(job);
            }
        }
        let nothing = one_key(&FIRST);
        let slots = arena.slice(limits.fills, |_| Slot {
            phase: Phase::Free,
            id: None,
            at: nothing.first,
            wanted: nothing,
            given_up: [None; 2],
            overtaken: None,
        })?;
        Ok(Reader {
            cache: Cache::carve(arena, &cache, volume.volume())?,
            volume_blocks: volume.blocks(),
            newest: None,
            jobs,
            slots,
            search: Search::Idle,
            ahead: Ahead::carve(arena, count, &cache, limits.ahead)?,
            turn: 0,
            starved: false,
            asking: false,
            counters: Counters::default(),
        })
    }

    /// Injects spurious waits from now on, or stops to.
    pub fn inject(&mut self, chaos: Option<Chaos>) {
        self.cache.inject(chaos);
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Takes note of a durable root. Older ones than the newest known are ignored.
    ///
    /// Call it with each root that is told to the item cache, before the next [`want`](Self::want).
    /// Fails if there can be no such root.
    pub fn set_root(&mut self, root: &ManifestRoot) -> Result<(), Corruption> {
        let node = BlockRef::new(root.blkno, root.seq);
        let tree = TreeRoot { node, height: root.height, reserved: [0; 7] };
        let tree = Tree::open(MANIFEST, &tree)?;
        if root.blkno.0 >= self.volume_blocks {
            return Err(Corruption::Bounds);
        }
        if self.newest.is_none_or(|newest| newest.commit < root.commit) {
            let manifest = Manifest::new(tree, self.volume_blocks);
            if self.newest.is_none() {
                self.ahead.begin();
            }
            self.newest = Some(Root { commit: root.commit, manifest });
            self.starved = false;
        }
        Ok(())
    }

    /// Takes note of the root that a server has named *after* it was asked, because of
    /// [`ReaderEvent::RootWanted`]. If that is the newest one known, what can't be read under it is
    /// broken.
    pub fn answer_root(&mut self, root: &ManifestRoot) -> Result<(), Corruption> {
        self.asking = false;
        let known = self.set_root(root);
        let commit = known.is_ok().then_some(root.commit);
        self.jobs.iter_mut().flatten().for_each(|job| job.on_answer(commit));
        known
    }

    /// Begins to bring the missing key `at`, and what else of `range` comes with it; `range` is
    /// unknown, and under a lock that lets read. Accepted also if a running fill may bring it.
    ///
    /// Each want that is accepted is answered by a [`ReaderEvent::Filled`] or
    /// [`ReaderEvent::Failed`] whose range has the key; all wants of one key by the same. A want
    /// that is [`Busy`] is answered by nothing.
    pub fn want(&mut self, items: &mut ItemCache<'_>, at: Key, range: Range) -> Result<(), Busy> {
        let begun = self.try_want(items, &at, &range);
        if begun.is_err() {
            self.counters.refusals += 1;
        }
        begun.map(drop)
    }

    /// The same, and a fill that is begun gets its first turn at once: so many units of work to
    /// read, and if that is all it takes, as many to bring what was read.
    pub fn want_now(
        &mut self,
        items: &mut ItemCache<'_>,
        at: Key,
        range: Range,
    ) -> Result<Now, Busy> {
        let begun = self.try_want(items, &at, &range);
        if begun.is_err() {
            self.counters.refusals += 1;
        }
        let Some(index) = begun? else { return Ok(Now::Wanted) };
        self.run_fill(index, items, SLICE);
        if matches!(self.slots[index].phase, Phase::Bringing(_)) {
            self.run_fill(index, items, SLICE);
        }
        let slot = &mut self.slots[index];
        if slot.phase != Phase::Over(Ok(())) || slot.overtaken.is_some() {
            return Ok(Now::Wanted);
        }
        // Nobody can have joined it.
        slot.phase = Phase::Free;
        self.counters.prompt += 1;
        Ok(Now::Filled)
    }

    /// The fill that was begun; or none, if there is one that may bring the key.
    fn try_want(
        &mut self,
        items: &mut ItemCache<'_>,
        at: &Key,
        range: &Range,
    ) -> Result<Option<usize>, Busy> {
        let Some(root) = self.newest else {
            self.starved = true;
            return Err(Busy);
        };
        let again = self.slots.iter().position(|slot| slot.overtaken == Some(*at));
        let range = if again.is_some() { one_key(at) } else { *range };
        let id = match items.fill_begin(&range, at, root.commit) {
            Ok(id) => id,
            Err(FillRefused::Running(id)) => {
                let slot = self.slots.iter_mut().find(|slot| slot.id == Some(id)).ok_or(Busy)?;
                slot.wanted = hull(&slot.wanted, &one_key(at));
                self.counters.joins += 1;
                return Ok(None);
            }
            Err(FillRefused::OldRoot(_)) => {
                self.starved = true;
                return Err(Busy);
            }
            Err(FillRefused::Busy) => return Err(Busy),
        };
        let Some(index) = self.free_slot() else {
            items.fill_abort(id);
            return Err(Busy);
        };
        again.into_iter().for_each(|again| self.slots[again].overtaken = None);
        let slot = &mut self.slots[index];
        (slot.phase, slot.id) = (Phase::Reading, Some(id));
        (slot.at, slot.wanted, slot.overtaken) = (*at, one_key(at), None);
        let reach = reach(at, &range);
        job(self.jobs, index).begin(What::Around(transmute!(*at), key_range(&range), reach), &root);
        self.counters.fills += 1;
        Ok(Some(index))
    }

    /// A place for a fill: one that remembers nothing, if there is one.
    fn free_slot(&self) -> Option<usize> {
        let free = |slot: &Slot| slot.phase == Phase::Free;
        let blank = |slot: &Slot| free(slot) && slot.overtaken.is_none();
        self.slots.iter().position(blank).or_else(|| self.slots.iter().position(free))
    }

    /// Begins to look for the first item in a range, beside the item cache, as of a root no older
    /// than the newest known. One at a time; answered by [`ReaderEvent::Searched`].
    pub fn search(&mut self, range: Range) -> Result<(), Busy> {
        let root = self.newest.filter(|_| self.search == Search::Idle);
        self.starved |= self.newest.is_none();
        let index = self.slots.len();
        job(self.jobs, index).begin(What::First(key_range(&range)), &root.ok_or(Busy)?);
        self.search = Search::Running;
        self.counters.searches += 1;
        Ok(())
    }

    /// Begins to look for the first items in a range, as many as one window takes: as
    /// [`search`](Self::search), beside which it doesn't run. Answered by
    /// [`ReaderEvent::Scanned`].
    pub fn scan(&mut self, range: Range) -> Result<(), Busy> {
        let root = self.newest.filter(|_| self.search == Search::Idle);
        self.starved |= self.newest.is_none();
        let (index, around) = (self.slots.len(), key_range(&range));
        let what = What::Around(around.first, around, Reach::Wide);
        job(self.jobs, index).begin(what, &root.ok_or(Busy)?);
        self.search = Search::Scanning;
        self.counters.searches += 1;
        Ok(())
    }

    /// What the last scan has found, until that is [ended](Self::end_scan).
    #[must_use]
    pub fn scanned(&self) -> Option<Scanned<'_, 'm>> {
        let job = self.jobs.last().and_then(Option::as_ref)?;
        (self.search == Search::Shown).then(|| Scanned { window: job.window() })
    }

    /// What the last scan has found is needed no more.
    pub fn end_scan(&mut self) {
        if self.search == Search::Shown {
            job(self.jobs, self.slots.len()).reset(&mut self.cache);
            self.search = Search::Idle;
        }
    }

    /// Goes on with all that can: looks at `budget` runs, leaves of the manifest or handfuls of
    /// items at the most. To be called after wants, roots and completions, until there is no more
    /// to do.
    pub fn step(&mut self, items: &mut ItemCache<'_>, budget: u32) -> More {
        let mut left = budget;
        loop {
            self.wake();
            let Some(index) = self.next_runnable() else { return self.read_ahead(left) };
            if left == 0 {
                return More::Yes;
            }
            let slice = left.min(SLICE);
            if index < self.slots.len() {
                self.run_fill(index, items, slice);
            } else {
                self.run_search(slice);
            }
            self.turn = (index + 1) % self.jobs.len();
            left -= slice;
        }
    }

    fn read_ahead(&mut self, budget: u32) -> More {
        match &self.newest {
            Some(root) => self.ahead.step(budget, &root.manifest, &mut self.cache),
            None => More::No,
        }
    }

    fn wake(&mut self) {
        while let Some(RequestId { index, generation }) = self.cache.poll_wake() {
            if index as usize == self.jobs.len() {
                self.ahead.wake();
                continue;
            }
            let job = job(self.jobs, index as usize);
            if job.id.generation == generation && job.state == State::Asleep {
                job.state = State::Ready;
            }
        }
    }

    /// The next that can go on, in turn.
    fn next_runnable(&self) -> Option<usize> {
        let count = self.jobs.len();
        (self.turn..self.turn + count).map(|at| at % count).find(|&index| {
            let slot = self.slots.get(index);
            let job = self.jobs[index].as_ref();
            slot.is_some_and(|slot| matches!(slot.phase, Phase::Bringing(_)))
                || job.is_some_and(|job| job.is_runnable(self.newest.as_ref()))
        })
    }

    fn run_search(&mut self, slice: u32) {
        let index = self.slots.len();
        let Some(result) = self.advance(index, slice) else { return };
        if self.search == Search::Scanning {
            self.search = Search::Scanned(result);
            return;
        }
        let job = job(self.jobs, index);
        self.search = Search::Over(result.map(|()| job.first().map(|key| transmute!(*key))));
        job.reset(&mut self.cache);
    }

    fn run_fill(&mut self, index: usize, items: &mut ItemCache<'_>, slice: u32) {
        let id = self.slots[index].id.expect("a fill at work has a name");
        if let Phase::Bringing(from) = self.slots[index].phase {
            return self.bring(index, id, from, items, slice);
        }
        let newest = self.newest.expect("a fill has a root");
        if matches!(job(self.jobs, index).state, State::Parked(_, _))
            && items.fill_renew(id, newest.commit).is_err()
        {
            return self.on_overtaken(index);
        }
        let done = self.advance(index, slice);
        let narrowed = range(&job(self.jobs, index).narrow());
        if items.fill_narrow(id, &narrowed).is_err() {
            return self.on_overtaken(index);
        }
        self.slots[index].narrow(&narrowed);
        match done {
            None => {}
            Some(Ok(())) => self.slots[index].phase = Phase::Bringing(0),
            Some(Err(error)) => {
                items.fill_abort(id);
                self.end(index, Err(error));
            }
        }
    }

    /// Lets a job go on that can. Says how it has ended, if it has.
    fn advance(&mut self, index: usize, slice: u32) -> Option<Result<(), Error>> {
        let newest = self.newest.expect("a job has a root");
        let job = job(self.jobs, index);
        if let State::Parked(_, _) = job.state {
            job.renew(&newest);
        }
        let failure = job.step(slice, &mut self.cache, &newest);
        self.counters.io_errors += u64::from(matches!(failure, Some(Error::Io { .. })));
        match job.state {
            State::Done(result) => {
                self.counters.failures += u64::from(result.is_err());
                Some(result)
            }
            State::Parked(_, _) => {
                self.counters.roots_stale += 1;
                None
            }
            State::Idle | State::Ready | State::Asleep => None,
        }
    }

    /// Hands over what was read, from this item on.
    fn bring(
        &mut self,
        index: usize,
        id: FillId,
        from: usize,
        items: &mut ItemCache<'_>,
        slice: u32,
    ) {
        let window = job(self.jobs, index).window();
        let end = window.len().min(from + (slice * ITEMS_PER_UNIT) as usize);
        let mut result = Ok(());
        for nth in from..end {
            let (key, value) = window.get(nth);
            let Value::Bytes(bytes) = value else { unreachable!("the window has no tombstones") };
            result = result.and_then(|()| items.fill_item(id, &transmute!(*key), bytes));
        }
        let complete = end == window.len();
        if complete {
            result = result.and_then(|()| items.fill_end(id, &range(window.range()).last));
        }
        match result {
            Ok(()) if complete => self.end(index, Ok(())),
            Ok(()) => self.slots[index].phase = Phase::Bringing(end),
            Err(FillEnd::Stale) => return self.on_overtaken(index),
            Err(FillEnd::Order | FillEnd::TooLong) => {
                unreachable!("a window is in order, and its values fit")
            }
        }
        self.counters.items += (end - from) as u64;
    }

    /// The item cache has let the fill go.
    fn on_overtaken(&mut self, index: usize) {
        self.counters.overtaken += 1;
        let slot = &mut self.slots[index];
        slot.overtaken = Some(slot.at);
        self.end(index, Ok(()));
    }

    fn end(&mut self, index: usize, result: Result<(), Error>) {
        job(self.jobs, index).reset(&mut self.cache);
        let slot = &mut self.slots[index];
        (slot.phase, slot.id) = (Phase::Over(result), None);
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<ReaderEvent> {
        if let Some(event) = self.slots.iter_mut().find_map(Slot::poll_event) {
            return Some(event);
        }
        if let Search::Over(result) = self.search {
            self.search = Search::Idle;
            return Some(ReaderEvent::Searched(result));
        }
        if let Search::Scanned(result) = self.search {
            self.search = Search::Shown;
            if result.is_err() {
                self.end_scan();
            }
            return Some(ReaderEvent::Scanned(result));
        }
        self.ask().then_some(ReaderEvent::RootWanted)
    }

    /// Whether a server must be asked for its root.
    fn ask(&mut self) -> bool {
        let newest = self.newest.as_ref();
        let due = self.jobs.iter().flatten().any(|job| job.is_question_due(newest));
        if self.asking || !due && !self.starved {
            return false;
        }
        (self.asking, self.starved) = (true, false);
        self.jobs.iter_mut().flatten().for_each(Job::on_asked);
        self.counters.roots_asked += 1;
        true
    }

    /// The next read to submit. Its completion must be given to
    /// [`handle_completion`](Self::handle_completion).
    pub fn poll_request(&mut self) -> Option<BlockRequest<'m>> {
        let request = self.cache.poll_transfer();
        self.counters.reads += u64::from(request.is_some());
        request
    }

    /// Takes note of a finished read.
    pub fn handle_completion(&mut self, completion: Completion<'m>) {
        self.cache.handle_completion(completion);
    }

    /// Reads that the device has not given back.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.cache.in_flight()
    }
}

impl Slot {
    /// Nothing outside this range will be brought.
    fn narrow(&mut self, to: &Range) {
        let Range { first, last } = self.wanted;
        if let Some(below) = predecessor(&to.first).filter(|below| first <= *below) {
            let gone = Range { first, last: below.min(last) };
            self.given_up[0] = Some(self.given_up[0].map_or(gone, |before| hull(&before, &gone)));
        }
        if let Some(above) = successor(&to.last).filter(|above| *above <= last) {
            let gone = Range { first: above.max(first), last };
            self.given_up[1] = Some(self.given_up[1].map_or(gone, |before| hull(&before, &gone)));
        }
        self.wanted = Range { first: first.max(to.first), last: last.min(to.last) };
    }

    fn poll_event(&mut self) -> Option<ReaderEvent> {
        if let Some(range) = self.given_up.iter_mut().find_map(Option::take) {
            return Some(ReaderEvent::Filled { range });
        }
        let Phase::Over(result) = self.phase else { return None };
        self.phase = Phase::Free;
        let (at, range) = (self.at, self.wanted);
        Some(match result {
            Ok(()) => ReaderEvent::Filled { range },
            Err(error) => ReaderEvent::Failed { at, range, error },
        })
    }
}

fn job<'a, 'm>(jobs: &'a mut [Option<Job<'m>>], index: usize) -> &'a mut Job<'m> {
    jobs[index].as_mut().expect("carved with the others")
}

/// How far a fill goes: see the module.
fn reach(at: &Key, range: &Range) -> Reach {
    if *at == range.first && range.first < range.last { Reach::Wide } else { Reach::Point }
}

#[cfg(test)]
mod tests;

//! Reading: everything the log-structured tree has in a range around a key, as of one root.
//!
//! ```text
//!        begin                     all probed                      all probed
//!   Done -----> Collect ---> Probe -----------> Below(1) ---> Probe ---------> Below(2) ...
//!                  ^           |                                                  |
//!                  +-----------+                                                  v
//!                older runs are left                               no deeper level: Done
//! ```
//!
//! A fill goes from newer runs to older ones and puts what each has into a [`Window`] around the
//! key. Each run makes the window narrower: to that part of it in which everything the run has is
//! in the window. So at the end the window says exactly what there is in its range.
//!
//! # What is known of a run after looking at it
//!
//! * Its manifest entry says that keys outside its range (level 0: outside its range in each zone)
//!   are not in it.
//! * Its filter, if it denies the key, says that none of [`filter_class`] is.
//! * Its index says between which keys all that it has stands in one item block: from the block's
//!   first key to just before the next block's first, and from there to either end of all keys at
//!   the run's ends.
//!
//! A level below 0 is looked at in the same way: the run that holds the key, or the gap it lies in,
//! ends where the next run begins, or where the manifest's leaf ends that would have to say so.
//!
//! # What is not read
//!
//! * Another leaf of the manifest, by a [`Reach::Point`] fill, only to see how far a gap goes.
//! * The filter of the deepest level's run, unless a name is looked for. Who has an inode's number
//!   looks for what there is: if no other level had it, it is there, and the filter, the largest of
//!   all, would say no more than that.
//! * The first of a run's two index blocks, if the key is more likely in the second.
//!
//! # Invariants
//!
//! * Of the runs looked at so far, each is newer than each of the rest; and the window has exactly
//!   the newest versions, among them, of the keys in its range.
//! * The window always has its key in it, so it is never empty and each fill gets on.
//! * A run is looked at as a whole, after all blocks that takes have been obtained, or not at all.
//!   What has been looked at needs no blocks any more: a unit of work obtains at most
//!   [`PINS_PER_FILL`] blocks, and drops them all at its end.
//! * Level 0 may have any number of runs: they are collected [`WIDTH`] at a time, the newest first.
//! * A fill belongs to one root. When blocks of that root's runs are used for something else,
//!   their headers tell, and the fill fails with an error that [`is_stale`] recognizes: the caller
//!   starts over with a newer root.
//!
//! What this module deliberately doesn't know: locks, what items mean, and where roots come from.

use super::manifest::{self, Ceiling, Manifest, Rank, Run, RunPlace};
use super::range::{KeyRange, after, before, filter_class};
use super::window::{Window, WindowLimits};
use crate::arena::{Arena, ArenaFull};
use crate::block::{Cache, FrameId, Pins};
use crate::btree::PINS_PER_READ;
use crate::error::{Corruption, Error, Stop, Wait};
use crate::format::block::Magic;
use crate::format::key::{Key, KeyBytes};
use crate::format::records::ManifestKey;
use crate::format::root::LEVELS;
use crate::format::run::{
    Filter, INDEX_KEYS, Index, Items, RunBlock, Value, filter_block, filter_hash, is_by_name,
};
use crate::node::More;
use heapless::Vec;
use zerocopy::IntoBytes;

/// Runs of level 0 that are collected at a time.
pub const WIDTH: usize = 8;
/// Most blocks that a step of a fill obtains and must keep while it waits: two walks of the
/// manifest. What one run takes (a filter block, two index blocks, an item block) is less.
pub const PINS_PER_FILL: u32 = 2 * PINS_PER_READ;
/// Runs that a [`Reach::Wide`] fill reads although the key is not between their ends.
const EXTRAS_MAX: u32 = 16;

/// How far a fill goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// To the key with as few reads as can be: runs whose filter denies the key are not read.
    Point,
    /// As far as the window and one block of each run reach.
    Wide,
}

/// A run that is to be looked at.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    rank: Rank,
    place: RunPlace,
    /// From its least key to its greatest, in the key's zone.
    range: KeyRange,
    /// Where what the run doesn't have is not there.
    scope: KeyRange,
    /// There are no runs below its level.
    deepest: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Going through the manifest's entries of level 0.
    Collect,
    /// Looking at the runs collected, then at what is below this level.
    Probe(u8),
    /// Looking for the run of this level, which is not 0.
    Below(u8),
    Done,
}

/// See the module. Carved once, and used for one range after the other.
#[derive(Debug)]
pub struct Fill<'m> {
    manifest: Manifest,
    filter_key: [u8; 16],
    window: Window<'m>,
    /// By what filters know the window's key.
    hash: u64,
    reach: Reach,
    phase: Phase,
    /// Where the walk through level 0 goes on.
    cursor: ManifestKey,
    /// Runs of level 0 of this rank or a higher one have been looked at.
    below: Option<Rank>,
    /// The last level of this manifest that has a run, once that matters.
    deepest: Option<u8>,
    /// What has been collected: the oldest first.
    batch: Vec<Candidate, WIDTH>,
    /// More runs were found than the batch takes.
    overflowed: bool,
    /// The cache knows what the batch will be asked for.
    hinted: bool,
    extras: u32,
    reads: u32,
    /// The last key of a search, if this is one.
    sought: Option<KeyBytes>,
}

/// Whether the error may come from a root that is out of date: something else stands where the root
/// says that a block is.
#[must_use]
pub fn is_stale(error: &Error) -> bool {
    match error {
        Error::Corrupt { what, .. } => what.is_stale(),
        Error::Io { .. } | Error::NoSpace | Error::Exists | Error::NotFound => false,
    }
}

fn start_of_level_0() -> ManifestKey {
    manifest::key(0, &Rank { order: 0, first: Key::MIN.into() })
}

impl<'m> Fill<'m> {
    /// Carves a fill. `filter_key` is the volume's `name_key`.
    pub fn carve(
        arena: &mut Arena<'m>,
        limits: &WindowLimits,
        filter_key: &[u8; 16],
    ) -> Result<Fill<'m>, ArenaFull> {
        let nothing = crate::btree::Tree::empty(crate::btree::TreeKind(0));
        Ok(Fill {
            manifest: Manifest::new(nothing, 0),
            filter_key: *filter_key,
            window: Window::carve(arena, limits)?,
            hash: 0,
            reach: Reach::Point,
            phase: Phase::Done,
            cursor: start_of_level_0(),
            below: None,
            deepest: None,
            batch: Vec::new(),
            overflowed: false,
            hinted: false,
            extras: 0,
            reads: 0,
            sought: None,
        })
    }

    /// Starts to read around a key in this range, from the runs of this root.
    pub fn begin(&mut self, manifest: &Manifest, key: &KeyBytes, range: &KeyRange, reach: Reach) {
        self.adopt(manifest);
        self.sought = None;
        self.start(key, range, reach);
    }

    /// Starts to look for the first item of this range: one wide fill behind the other, until there
    /// is an item in the window or the range has ended.
    pub fn begin_search(&mut self, manifest: &Manifest, range: &KeyRange) {
        self.adopt(manifest);
        self.sought = Some(range.last);
        self.start(&range.first, range, Reach::Wide);
    }

    fn adopt(&mut self, manifest: &Manifest) {
        if self.manifest != *manifest {
            (self.manifest, self.deepest) = (*manifest, None);
        }
        self.reads = 0;
    }

    fn start(&mut self, key: &KeyBytes, range: &KeyRange, reach: Reach) {
        self.window.begin(key, range);
        self.hash = filter_hash(&self.filter_key, key);
        (self.reach, self.phase) = (reach, Phase::Collect);
        (self.cursor, self.below) = (start_of_level_0(), None);
        (self.overflowed, self.extras) = (false, 0);
        self.batch.clear();
    }

    /// Goes on reading: `budget` leaves of the manifest or runs at the most. When there is no more
    /// to do, [`window`](Self::window) says what there is.
    ///
    /// Stops like any restartable function; what has been found out until then is kept.
    pub fn step(
        &mut self,
        budget: u32,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<More, Stop> {
        for _ in 0..budget {
            if self.phase == Phase::Done {
                return Ok(More::No);
            }
            let mark = pins.mark();
            let result = self.advance(cache, pins);
            if let Err(Stop::Wait(Wait::Block(_))) = result {
                self.reads += 1;
            }
            result?;
            pins.drop_to(mark);
            cache.drop_leftovers(pins);
        }
        Ok(if self.phase == Phase::Done { More::No } else { More::Yes })
    }

    /// What was found: when the fill is done, these are the items there are in the window's range,
    /// and there are no others.
    #[must_use]
    pub fn window(&self) -> &Window<'m> {
        &self.window
    }

    /// How often the fill has waited for a block.
    #[must_use]
    pub fn reads(&self) -> u32 {
        self.reads
    }

    /// The item of the key, when the fill is done.
    #[must_use]
    pub fn found(&self) -> Option<&[u8]> {
        let at = self.window.search(self.window.key()).ok()?;
        match self.window.get(at).1 {
            Value::Bytes(bytes) => Some(bytes),
            Value::Tombstone => None,
        }
    }

    /// The first item of the window: of a search, what was looked for.
    #[must_use]
    pub fn first(&self) -> Option<(&KeyBytes, &[u8])> {
        if self.window.is_empty() {
            return None;
        }
        match self.window.get(0) {
            (key, Value::Bytes(bytes)) => Some((key, bytes)),
            (_, Value::Tombstone) => None,
        }
    }

    fn advance(&mut self, cache: &mut Cache<'_>, pins: &mut Pins<'_>) -> Result<(), Stop> {
        match self.phase {
            Phase::Collect => self.collect(cache, pins),
            Phase::Probe(level) => self.probe_next(level, cache, pins),
            Phase::Below(level) => self.enter_level(level, cache, pins),
            Phase::Done => Ok(()),
        }
    }

    /// Looks at the next entries of level 0, as many as one leaf has.
    fn collect(&mut self, cache: &mut Cache<'_>, pins: &mut Pins<'_>) -> Result<(), Stop> {
        let manifest = self.manifest;
        let mut next = None;
        for run in manifest.leaf_from(&self.cursor, cache, pins)? {
            let run = run?;
            next = manifest::key_after(&run.key());
            if run.level > 0 || run.range().first > self.window.range().last {
                next = None;
                break;
            }
            if self.below.is_none_or(|below| run.rank() < below) {
                self.consider(&run);
            }
        }
        match next {
            Some(next) => self.cursor = next,
            None => (self.phase, self.hinted) = (Phase::Probe(0), false),
        }
        Ok(())
    }

    /// Notes a run of level 0 if it must be looked at, and else what its ranges say.
    fn consider(&mut self, run: &Run) {
        let key = *self.window.key();
        let zones = run.entry.zones.iter().filter(|zone| !zone.is_empty());
        for range in zones.map(|zone| KeyRange { first: zone.first, last: zone.last }) {
            if !range.overlaps(self.window.range()) {
                continue;
            }
            let same_zone = range.first.zone == key.zone;
            let wide = same_zone && self.reach == Reach::Wide && self.extras < EXTRAS_MAX;
            if !range.contains(&key) && !wide {
                self.window.narrow(&beside(&range, &key));
                continue;
            }
            self.extras += u32::from(!range.contains(&key));
            let (rank, place, scope) = (run.rank(), run.place(), KeyRange::all());
            self.enlist(Candidate { rank, place, range, scope, deepest: false });
        }
    }

    /// Adds a run to the batch, in which the newest have precedence.
    fn enlist(&mut self, candidate: Candidate) {
        let at = self.batch.partition_point(|other| other.rank < candidate.rank);
        if self.batch.is_full() {
            self.overflowed = true;
            if at == 0 {
                return;
            }
            self.batch.remove(0);
        }
        let at = self.batch.partition_point(|other| other.rank < candidate.rank);
        self.batch.insert(at, candidate).map_err(drop).expect("there is room");
    }

    /// Looks at the newest run of the batch, or goes on when there is none.
    fn probe_next(
        &mut self,
        level: u8,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<(), Stop> {
        if let Some(candidate) = self.batch.last().copied() {
            if !core::mem::replace(&mut self.hinted, true) {
                self.hint(cache);
            }
            self.probe(&candidate, cache, pins)?;
            self.batch.pop();
            self.below = Some(candidate.rank);
            let KeyRange { first, last } = *self.window.range();
            if first == last && !self.window.is_empty() {
                self.finish();
                return Ok(());
            }
        }
        if !self.batch.is_empty() {
            return Ok(());
        }
        if self.overflowed {
            (self.overflowed, self.cursor) = (false, start_of_level_0());
            self.phase = Phase::Collect;
        } else {
            self.descend(level + 1);
        }
        Ok(())
    }

    /// Lets the cache read at once what each run of the batch will be asked for first.
    fn hint(&self, cache: &mut Cache<'_>) {
        for run in self.batch.iter().rev() {
            match self.filter_of(run) {
                Some(at) => cache.hint_run(&at, Magic::RunFilter),
                None => {
                    let nth = likely_index(run, self.window.key());
                    cache.hint_run(&run.place.index(nth), Magic::RunIndex);
                }
            }
        }
    }

    fn descend(&mut self, level: u8) {
        if usize::from(level) < LEVELS {
            self.phase = Phase::Below(level);
        } else {
            self.finish();
        }
    }

    fn finish(&mut self) {
        self.window.drop_tombstones();
        self.batch.clear();
        self.phase = Phase::Done;
        if let Some(end) = self.sought
            && self.window.is_empty()
            && self.window.range().last < end
        {
            let first = after(&self.window.range().last).expect("below the end");
            self.start(&first, &KeyRange { first, last: end }, Reach::Wide);
        }
    }

    /// Finds the run of a level that holds the key, or the gap between two that the key is in.
    fn enter_level(
        &mut self,
        level: u8,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<(), Stop> {
        let deepest = match self.deepest {
            Some(deepest) => deepest,
            None => *self.deepest.insert(self.manifest.deepest(cache, pins)?.unwrap_or(0)),
        };
        if level > deepest {
            self.finish();
            return Ok(());
        }
        let key = *self.window.key();
        let mark = pins.mark();
        let next = match self.reach {
            Reach::Wide => self.next_run(level, cache, pins)?,
            Reach::Point => None,
        };
        pins.drop_to(mark);
        let (floor, ceiling) = self.manifest.around(level, &key, cache, pins)?;
        let ceiling = next.as_ref().map_or(ceiling, |next| Ceiling::At(next.key()));
        let mut scope = self.between(level, &floor, &ceiling)?;
        self.phase = Phase::Probe(level);
        let candidate = |run: &Run, scope: KeyRange| {
            let (rank, place, range) = (run.rank(), run.place(), run.range());
            Candidate { rank, place, range, scope, deepest: level == deepest }
        };
        let next = next.filter(|next| next.level == level);
        let mut touches_next = true;
        if let Some(run) = &floor {
            let Some(gap) = run.gap(&key) else {
                scope.first = run.range().first;
                self.enlist(candidate(run, scope));
                return Ok(());
            };
            touches_next = gap.last >= scope.last;
            scope = scope.common(&gap).expect("both have the key");
        }
        match next.filter(|run| touches_next && run.range().overlaps(self.window.range())) {
            Some(run) => {
                scope.last = run.range().last;
                self.enlist(candidate(&run, scope));
            }
            None => self.window.narrow(&scope),
        }
        // Levels without any run needn't be looked for one by one.
        if let Ceiling::At(next) | Ceiling::From(next) = &ceiling
            && next.level > level
            && floor.is_none()
        {
            self.descend(next.level);
        }
        Ok(())
    }

    /// The run that comes after those of this level that begin at the key or before it.
    fn next_run(
        &self,
        level: u8,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<Option<Run>, Stop> {
        let from = manifest::key(level, &Rank { order: u64::MAX, first: *self.window.key() });
        match manifest::key_after(&from) {
            Some(from) => self.manifest.next(&from, cache, pins),
            None => Ok(None),
        }
    }

    /// The keys around the window's that no run of this level has but the floor.
    fn between(
        &self,
        level: u8,
        floor: &Option<Run>,
        ceiling: &Ceiling,
    ) -> Result<KeyRange, Error> {
        let mut between = KeyRange::all();
        if let Ceiling::At(next) | Ceiling::From(next) = ceiling
            && next.level == level
        {
            between.last = before(&next.first).expect("above the key");
        }
        let Some(last) = floor.as_ref().map(|floor| floor.range().last) else {
            return Ok(between);
        };
        if last > between.last {
            // The end of a leaf stays where it was when runs come and go.
            match ceiling {
                Ceiling::At(_) => return Err(self.manifest.corrupt(Corruption::Order)),
                Ceiling::From(_) | Ceiling::Nothing => between.last = last,
            }
        }
        Ok(between)
    }

    /// Puts what the run has near the key into the window.
    fn probe(
        &mut self,
        run: &Candidate,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<(), Stop> {
        if !run.range.overlaps(self.window.range()) {
            let scope = beside(&run.range, self.window.key());
            self.window.narrow(&scope.common(&run.scope).expect("both have the key"));
            return Ok(());
        }
        let key = *self.window.key();
        if self.is_denied(run, cache, pins)? {
            let class = filter_class(&key);
            self.window.narrow(&class.common(&run.scope).expect("both have the key"));
            return Ok(());
        }
        let (at, slice) = find_items(run, &key, cache, pins)?;
        let frame = get_items(&at, &slice, cache, pins)?;
        let items = Items::opened(cache.block(frame));
        let known = slice.known.common(&run.scope).expect("both have the key");
        self.window.narrow(&known);
        // From the key outwards, so that a full window gives up what it would not keep anyway.
        let middle = items.position(&key);
        for index in (middle..items.count()).chain((0..middle).rev()) {
            let (key, value) = items.get(index);
            self.window.put(key, &value);
        }
        Ok(())
    }

    /// Whether the run's filter is asked, and says that the key is not in it.
    fn is_denied(
        &self,
        run: &Candidate,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<bool, Stop> {
        let Some(at) = self.filter_of(run) else { return Ok(false) };
        let frame = cache.get_run(&at, Magic::RunFilter, pins)?;
        Ok(!Filter::opened(cache.block(frame)).may_contain(self.hash))
    }

    /// The filter block that is to be asked for the key; a run may have no filter.
    fn filter_of(&self, run: &Candidate) -> Option<RunBlock> {
        let key = self.window.key();
        let is_found = self.window.search(key).is_ok();
        let is_expected = run.deepest && !is_found && !is_by_name(&Key::from(*key));
        let blocks = u32::from(run.place.filter_blocks());
        if self.reach == Reach::Wide || is_expected || blocks == 0 {
            return None;
        }
        Some(run.place.filter(filter_block(self.hash, blocks) as u16))
    }
}

/// All keys on that side of the range that this key, which is not in it, is on.
fn beside(range: &KeyRange, key: &KeyBytes) -> KeyRange {
    let all = KeyRange::all();
    if *key < range.first {
        KeyRange { last: before(&range.first).expect("there is a key below"), ..all }
    } else {
        KeyRange { first: after(&range.last).expect("there is a key above"), ..all }
    }
}

/// An item block as its index describes it.
struct Slice {
    /// Its first key.
    first: KeyBytes,
    /// Where the run has nothing that isn't in this block.
    known: KeyRange,
}

/// Finds the item block of a run that holds the key, if any does: by the index block that most
/// likely knows, and its neighbour if it doesn't.
fn find_items(
    run: &Candidate,
    key: &KeyBytes,
    cache: &mut Cache<'_>,
    pins: &mut Pins<'_>,
) -> Result<(RunBlock, Slice), Stop> {
    let (run, mut nth) = (&run.place, likely_index(run, key));
    let mut known = KeyRange::all();
    let mut found: Option<(usize, KeyBytes)> = None;
    let (found, first) = loop {
        let frame = get_index(run, nth, cache, pins)?;
        let keys = Index::opened(cache.block(frame)).keys();
        let child = keys.partition_point(|first| first <= key).checked_sub(1);
        if child.is_none() && nth > 0 {
            // The last item block of those that the index block before stands for.
            known.last = before(&keys[0]).expect("above the key");
            match found {
                Some(found) => break found,
                None => nth -= 1,
            }
            continue;
        }
        // The run's first block answers for what lies before it too.
        let child = child.unwrap_or(0);
        let here = (usize::from(nth) * INDEX_KEYS + child, keys[child]);
        if let Some(next) = keys.get(child + 1) {
            known.last = before(next).expect("above another key");
            break here;
        }
        if nth + 1 == run.index_blocks() || known.last < KeyRange::all().last {
            break here;
        }
        found = Some(here);
        nth += 1;
    };
    if found > 0 {
        known.first = first;
    }
    Ok((run.items(found as u16), Slice { first, known }))
}

/// Which of the run's index blocks to look at first: where the key would be if all were as far from
/// each other.
fn likely_index(run: &Candidate, key: &KeyBytes) -> u16 {
    let number = |key: &KeyBytes| {
        let (start, _) = key.as_bytes().split_first_chunk().expect("a key is longer");
        u128::from_be_bytes(*start)
    };
    let (first, last) = (number(&run.range.first), number(&run.range.last));
    let (width, at) = (last - first, number(key).clamp(first, last) - first);
    // So that a product with a number of blocks is not too large.
    let shift = (u128::BITS - width.leading_zeros()).saturating_sub(64);
    let blocks = u128::from(run.place.item_blocks());
    let block = (at >> shift) * blocks / ((width >> shift) + 1);
    block as u16 / INDEX_KEYS as u16
}

fn get_index(
    run: &RunPlace,
    nth: u16,
    cache: &mut Cache<'_>,
    pins: &mut Pins<'_>,
) -> Result<FrameId, Stop> {
    let at = run.index(nth);
    let frame = cache.get_run(&at, Magic::RunIndex, pins)?;
    if Index::opened(cache.block(frame)).keys().len() != run.index_keys(nth) {
        return Err(Error::Corrupt { blkno: at.blkno, what: Corruption::Mismatch }.into());
    }
    Ok(frame)
}

/// Obtains an item block and holds it against its index.
fn get_items(
    at: &RunBlock,
    slice: &Slice,
    cache: &mut Cache<'_>,
    pins: &mut Pins<'_>,
) -> Result<FrameId, Stop> {
    let frame = cache.get_run(at, Magic::RunItems, pins)?;
    let items = Items::opened(cache.block(frame));
    if *items.get(0).0 != slice.first || *items.get(items.count() - 1).0 > slice.known.last {
        return Err(Error::Corrupt { blkno: at.blkno, what: Corruption::Mismatch }.into());
    }
    Ok(frame)
}

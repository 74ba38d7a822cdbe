//! Merging: several runs become others, in which each key is left with its newest version.
//!
//! ```text
//!          begin                     all items taken             the last block is out
//!   Idle ---------> Merging ------------------------> Finishing -----------------------> Done
//!                     ^  |  the run is full, or the tail begins   |
//!                     |  +--------------------------------------> |
//!                     +-------------------------------------------+ more items
//! ```
//!
//! # Invariants
//!
//! * Nothing of a merge can be seen before its [`change`](Merge::change) is applied, so it may be
//!   abandoned at any point.
//! * Inputs are ordered: the newer a run, the earlier it stands; the runs of the level below come
//!   last, and they are disjoint. Of several items with one key the first input's counts.
//! * A tombstone is left out only if whoever chose the inputs knows that nothing older lies below.
//! * Keys behind the *tail's* start stay in the level they come from, tombstones with them; what is
//!   merged down ends there, before the next run of the level below.
//! * An output has at most as many blocks as its extent. The outputs of a level are disjoint.
//! * A step obtains at most one block of each input, and keeps the place it has got to in numbers:
//!   it needs no block to be still there.
//!
//! What this module deliberately doesn't know: what to merge, where space comes from, and who
//! writes.

use super::build::{BuildSpace, FILTER_BLOCKS_MAX, Refused, RunBuilder, Sealed, filter_blocks};
use super::choose::{Choice, LOWERS_MAX, UPPERS_MAX};
use super::manifest::{CHANGE_MAX, Change, Run};
use super::range::KeyRange;
use crate::arena::{Arena, ArenaFull};
use crate::block::{Cache, FrameId, Pins};
use crate::error::{Corruption, Error, Stop};
use crate::format::block::{Magic, Volume};
use crate::format::key::KeyBytes;
use crate::format::root::Extent;
use crate::format::run::{Items, SEGMENT_BLOCKS, Value};
use crate::format::{Block, RunId};
use crate::mutant::{Mutant, is_active};
use heapless::Vec;

/// Most blocks that a step of a merge obtains.
pub const PINS_PER_MERGE: u32 = UPPERS_MAX as u32 + 1;
/// Memory that a merge can hold: the filter of a run, a block of items, and some to spare, so that
/// blocks can be written while others are filled.
pub const POOL_MAX: usize = FILTER_BLOCKS_MAX + 6;
/// With less memory a merge comes to a halt.
pub const POOL_MIN: usize = FILTER_BLOCKS_MAX + 2;
const INPUTS_MAX: usize = UPPERS_MAX + LOWERS_MAX;

/// What a merge needs next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// Another step.
    Step,
    /// That [`Merge::poll_write`] is called until it answers `None`, then another step.
    Write,
    /// Memory: [`Merge::give_block`], for instance once a write has completed.
    Block,
    /// Space for another run: [`Merge::give_space`].
    Space,
    /// That its [`Merge::change`] is made, once all writes have completed and are flushed.
    Change,
}

/// No more space can be used by this merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutputsFull;

/// Runs that are read one after the other, their items in the order of keys.
#[derive(Debug, Clone, Copy)]
struct Source {
    /// Which of the inputs is being read, and where its last one ends.
    input: usize,
    end: usize,
    /// The next item.
    block: u16,
    item: u16,
}

/// The next item of a source.
struct Head<'c> {
    /// Which of the sources, and the items of its present block.
    source: usize,
    items: Items<'c>,
    /// The keys that the present input may have.
    range: KeyRange,
    item: (&'c KeyBytes, Value<'c>),
    /// The item's key as numbers, which are compared with those of all other sources.
    order: (u128, u128),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Merging,
    Finishing,
    Done,
}

/// See the module. Carved once, and used for one merge after the other.
pub struct Merge<'m> {
    volume: Volume,
    filter_key: [u8; 16],
    phase: Phase,
    inputs: Vec<Run, INPUTS_MAX>,
    sources: Vec<Source, { UPPERS_MAX + 1 }>,
    /// The level of the inputs on top, that merged into, and the order of the newest input.
    level: u8,
    target: u8,
    order: u64,
    tail_after: Option<KeyBytes>,
    in_tail: bool,
    drop_tombstones: bool,
    /// The last key taken.
    last: Option<KeyBytes>,
    grants: Vec<(RunId, Extent), CHANGE_MAX>,
    grants_used: usize,
    outputs: Vec<Run, CHANGE_MAX>,
    space: Option<BuildSpace<'m>>,
    builder: Option<RunBuilder<'m>>,
    builder_items: u64,
    sealed: Option<Sealed<'m>>,
    pool: Vec<&'m mut Block, POOL_MAX>,
}

impl<'m> Merge<'m> {
    /// Carves a merge, without the memory for blocks. `filter_key` is the volume's `name_key`.
    pub fn carve(
        arena: &mut Arena<'m>,
        volume: &Volume,
        filter_key: &[u8; 16],
    ) -> Result<Merge<'m>, ArenaFull> {
        Ok(Merge::new(BuildSpace::carve(arena)?, volume, filter_key))
    }

    /// The same, to be made where it is to stay: it is large.
    #[must_use]
    pub fn new(space: BuildSpace<'m>, volume: &Volume, filter_key: &[u8; 16]) -> Merge<'m> {
        Merge {
            volume: *volume,
            filter_key: *filter_key,
            phase: Phase::Idle,
            inputs: Vec::new(),
            sources: Vec::new(),
            level: 0,
            target: 0,
            order: 0,
            tail_after: None,
            in_tail: false,
            drop_tombstones: false,
            last: None,
            grants: Vec::new(),
            grants_used: 0,
            outputs: Vec::new(),
            space: Some(space),
            builder: None,
            builder_items: 0,
            sealed: None,
            pool: Vec::new(),
        }
    }

    /// Starts to merge what was chosen.
    pub fn begin(&mut self, choice: &Choice) {
        assert!(self.builder.is_none() && self.sealed.is_none(), "the merge before was not ended");
        self.inputs.clear();
        self.sources.clear();
        for run in choice.uppers.iter().chain(&choice.lowers) {
            self.inputs.push(*run).expect("as many as can be chosen");
        }
        let uppers = choice.uppers.len();
        self.inputs[..uppers].sort_unstable_by_key(|run| core::cmp::Reverse(run.rank()));
        if is_active(Mutant::OlderVersionKept) {
            self.inputs[..uppers].reverse();
        }
        let source = |input, end| Source { input, end, block: 0, item: 0 };
        self.sources.extend((0..uppers).map(|input| source(input, input + 1)));
        if !choice.lowers.is_empty() {
            self.sources.extend([source(uppers, self.inputs.len())]);
        }
        self.order = choice.uppers.iter().map(|run| run.order).max().expect("something to merge");
        (self.level, self.target) = (choice.uppers[0].level, choice.target);
        (self.tail_after, self.in_tail) = (choice.tail_after, false);
        self.drop_tombstones = choice.drop_tombstones;
        (self.last, self.phase) = (None, Phase::Merging);
        self.grants.clear();
        self.outputs.clear();
        self.grants_used = 0;
    }

    /// Gives the merge memory.
    pub fn give_block(&mut self, block: &'m mut Block) {
        self.pool.push(block).map_err(drop).expect("more memory than a merge can hold");
    }

    /// Takes back memory that isn't in use.
    pub fn take_block(&mut self) -> Option<&'m mut Block> {
        self.pool.pop()
    }

    /// Gives the merge space for a run of this number: at most a segment. Shorter extents make
    /// shorter runs, of which a merge can't have more than [`CHANGE_MAX`], its inputs counted.
    pub fn give_space(&mut self, run: RunId, extent: Extent) -> Result<(), OutputsFull> {
        assert!(extent.len() <= SEGMENT_BLOCKS);
        if self.inputs.len() + self.grants.len() >= CHANGE_MAX {
            return Err(OutputsFull);
        }
        self.grants.push((run, extent)).map_err(|_| OutputsFull)
    }

    /// The next block to be written. Its memory comes back by [`give_block`](Self::give_block).
    pub fn poll_write(&mut self) -> Option<Sealed<'m>> {
        self.sealed.take()
    }

    /// Goes on merging: `budget` items at the most.
    ///
    /// Stops like any restartable function, and fails if an input can't be read: then it is to be
    /// [abandoned](Self::abandon).
    pub fn step(
        &mut self,
        budget: u32,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<Progress, Stop> {
        if self.sealed.is_some() {
            return Ok(Progress::Write);
        }
        match self.phase {
            Phase::Merging => self.merge(budget, cache, pins),
            Phase::Finishing => Ok(self.finish()),
            Phase::Idle | Phase::Done => Ok(Progress::Change),
        }
    }

    /// What is to change in the manifest when the merge is done.
    #[must_use]
    pub fn change(&self) -> Change<'_> {
        assert!(self.phase == Phase::Done, "the merge is not done");
        Change { remove: &self.inputs, add: &self.outputs }
    }

    /// The runs that are being merged.
    #[must_use]
    pub fn inputs(&self) -> &[Run] {
        &self.inputs
    }

    /// Blocks that were given for runs and are not part of any: all, until the merge is done.
    pub fn unused(&self) -> impl Iterator<Item = Extent> {
        self.grants.iter().filter_map(|(run, extent)| {
            let output = self.outputs.iter().find(|output| output.id() == *run);
            let used = output.filter(|_| self.phase == Phase::Done);
            let used = used.map_or(0, |output| output.entry.blocks());
            let rest = Extent::new(extent.start().plus(used), extent.len() - used);
            (!rest.is_empty()).then_some(rest)
        })
    }

    /// Gives up. What has been written means nothing. The space may be written until the last write
    /// has completed.
    pub fn abandon(&mut self) {
        self.drop_builder();
        if let Some(sealed) = self.sealed.take() {
            self.give_block(sealed.block);
        }
        self.phase = Phase::Idle;
        self.outputs.clear();
    }

    fn drop_builder(&mut self) {
        if let Some(builder) = self.builder.take() {
            let (space, blocks) = builder.abandon();
            self.space = Some(space);
            blocks.into_iter().for_each(|block| self.give_block(block));
        }
    }

    /// Takes items until a block of an input ends, the budget does, or something is missing.
    fn merge(
        &mut self,
        budget: u32,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<Progress, Stop> {
        let mark = pins.mark();
        let mut frames = Vec::<(usize, FrameId), { UPPERS_MAX + 1 }>::new();
        for (number, source) in self.sources.iter().enumerate() {
            if source.input < source.end {
                let at = self.inputs[source.input].place().items(source.block);
                let frame = cache.get_run(&at, Magic::RunItems, pins)?;
                frames.push((number, frame)).expect("one for each source");
            }
        }
        cache.drop_leftovers(pins);
        pins.drop_to(mark);
        if frames.is_empty() {
            return Ok(self.end());
        }
        let mut heads: Vec<Head<'_>, { UPPERS_MAX + 1 }> =
            frames.iter().map(|&(number, frame)| self.head(number, cache.block(frame))).collect();
        for _ in 0..budget {
            // Of equal keys that of the first source: the newest.
            let first = heads.iter().min_by_key(|head| head.order).expect("not empty");
            self.check(first)?;
            let (order, (key, value)) = (first.order, first.item);
            if let Some(progress) = self.take(key, &value) {
                return Ok(progress);
            }
            self.last = Some(*key);
            let mut block_ends = false;
            for head in heads.iter_mut().filter(|head| head.order == order) {
                if self.advance(head.source, head.items.count()) {
                    block_ends = true;
                } else {
                    head.item = head.items.get(self.sources[head.source].item);
                    head.order = head.item.0.numbers();
                }
            }
            if block_ends {
                break;
            }
        }
        Ok(Progress::Step)
    }

    /// The next item of a source, which is in this block.
    fn head<'c>(&self, number: usize, block: &'c Block) -> Head<'c> {
        let source = &self.sources[number];
        let (items, range) = (Items::opened(block), self.inputs[source.input].range());
        let item = items.get(source.item);
        Head { source: number, items, range, order: item.0.numbers(), item }
    }

    /// Whether the next key of this source can be: checksums say who wrote a block, not that it was
    /// right.
    fn check(&self, head: &Head<'_>) -> Result<(), Error> {
        let key = head.item.0;
        let corrupt = |what| {
            let source = &self.sources[head.source];
            let blkno = self.inputs[source.input].place().items(source.block).blkno;
            Err(Error::Corrupt { blkno, what })
        };
        if self.last.is_some_and(|last| last >= *key) {
            return corrupt(Corruption::Order);
        }
        if !head.range.contains(key) {
            return corrupt(Corruption::Mismatch);
        }
        Ok(())
    }

    /// Takes one item, or says what is missing for that.
    fn take(&mut self, key: &KeyBytes, value: &Value<'_>) -> Option<Progress> {
        if !self.in_tail && self.tail_after.is_some_and(|after| *key > after) {
            if self.builder.is_some() {
                self.phase = Phase::Finishing;
                return Some(Progress::Step);
            }
            self.in_tail = true;
        }
        if *value == Value::Tombstone && self.drop_tombstones && !self.in_tail {
            return None;
        }
        if self.builder.is_none()
            && let Some(missing) = self.start_output()
        {
            return Some(missing);
        }
        let builder = self.builder.as_mut().expect("started");
        match builder.push(key, value) {
            Ok(()) => {
                self.builder_items += 1;
                None
            }
            Err(Refused::Block) => {
                let Some(block) = self.pool.pop() else { return Some(Progress::Block) };
                self.sealed = builder.turn(block);
                Some(if self.sealed.is_some() { Progress::Write } else { Progress::Step })
            }
            Err(Refused::Full) if self.builder_items == 0 => {
                // An extent that can't hold even one item.
                self.drop_builder();
                Some(Progress::Step)
            }
            Err(Refused::Full) => {
                self.phase = Phase::Finishing;
                Some(Progress::Step)
            }
        }
    }

    /// Starts the next output, or says what is missing for that.
    fn start_output(&mut self) -> Option<Progress> {
        let Some(&(run, extent)) = self.grants.get(self.grants_used) else {
            return Some(Progress::Space);
        };
        let items: u64 = self.inputs.iter().map(|run| u64::from(run.entry.items.get())).sum();
        let blocks: u64 =
            self.inputs.iter().map(|run| u64::from(run.entry.item_blocks.get())).sum();
        let items = (items * extent.len()).div_ceil(blocks.max(1)).min(items);
        let filter = filter_blocks(items);
        if self.pool.len() < filter {
            return Some(Progress::Block);
        }
        let first = self.pool.len() - filter;
        let mut memory = Vec::<&'m mut Block, FILTER_BLOCKS_MAX>::new();
        while self.pool.len() > first {
            memory.extend(self.pool.pop());
        }
        let space = self.space.take().expect("one output at a time");
        let (volume, key) = (&self.volume, &self.filter_key);
        self.builder = Some(RunBuilder::new(volume, key, run, extent, space, memory));
        (self.builder_items, self.grants_used) = (0, self.grants_used + 1);
        None
    }

    /// Moves a source behind its present item. Whether that was the last of its block.
    fn advance(&mut self, number: usize, items: u16) -> bool {
        let source = &mut self.sources[number];
        source.item += 1;
        if source.item < items {
            return false;
        }
        (source.item, source.block) = (0, source.block + 1);
        if source.block == self.inputs[source.input].place().item_blocks() {
            (source.block, source.input) = (0, source.input + 1);
        }
        true
    }

    /// All items have been taken.
    fn end(&mut self) -> Progress {
        if self.builder.is_some() {
            self.phase = Phase::Finishing;
            return Progress::Step;
        }
        self.phase = Phase::Done;
        Progress::Change
    }

    /// Gives out the next block of what completes an output.
    fn finish(&mut self) -> Progress {
        let Some(block) = self.pool.pop() else { return Progress::Block };
        let builder = self.builder.as_mut().expect("an output is being finished");
        let (sealed, unused) = builder.finish(block);
        if let Some(unused) = unused {
            self.give_block(unused);
        }
        if sealed.is_some() {
            self.sealed = sealed;
            return Progress::Write;
        }
        let (entry, space) = self.builder.take().expect("it was there").entry();
        self.space = Some(space);
        let level = if self.in_tail { self.level } else { self.target };
        self.outputs.push(Run::new(level, self.order, entry)).expect("no more than were granted");
        self.phase = Phase::Merging;
        Progress::Step
    }
}

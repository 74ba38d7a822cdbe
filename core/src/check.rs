//! Checks a volume that nobody has mounted, and changes nothing.
//!
//! ```text
//!  Fixed ---------> Reserves ---> Trees ---------> FreeTrees ---> Runs -------> Leaks ---> done
//!  super, spare,    of the        nodes, records   by block and   blocks and    blocks that
//!  quorum, ring     newest root   of all trees     by length      items         nobody has
//! ```
//!
//! # What is checked
//!
//! * The super block and its spare, all quorum blocks, all roots of the ring.
//! * From the newest root: every node (checksum, kind, level, order, range), every record of every
//!   tree, that both free trees hold the same and add up to `free_blocks`, the runs of each level,
//!   and that runs of levels from 1 up don't overlap.
//! * Every block of every run, and every item by itself: order, index, filter, key, value.
//! * That every block of the volume is in exactly one place: free, freed, lent, quarantined, a
//!   reserve, a node, a run, or a file. Blocks in two are told as doubles, blocks in none as leaks.
//!
//! What items must have in common (an entry's three items, a directory's counts, which version of
//! an item counts) is not checked. So blocks that any version of a file's extent names are no
//! leaks, and a file's blocks are not looked at for doubles.
//!
//! # Invariants
//!
//! * It ends, whatever the blocks hold: nodes are visited once, runs are bounded.
//! * What is damaged is told, and checking goes on beside it. Leaks are told only if everything
//!   that could have named the blocks was read.
//! * Memory is three bits for each block of the volume, and a fixed part, whatever is on it.
//! * A step looks at one node, item, record or extent, or passes once over the bits.
//!
//! A root that was being written when power failed can't be told from one that was damaged later:
//! both are told, as what stands in the ring beside the newest root.
//!
//! What this module deliberately doesn't know: how to repair anything, and whether someone writes
//! to the volume meanwhile.

mod map;
mod records;
mod run;
mod walk;

use crate::arena::{Arena, ArenaFull};
use crate::block::{Cache, Limits, Pins, RequestId};
use crate::error::{Corruption, Error, Stop};
use crate::format::btree::TreeRoot;
use crate::format::layout::spare_blkno;
use crate::format::layout::{FIRST_BLKNO, QUORUM_BLKNO, ROOT_BLKNO, ROOT_PAIRS, SUPER_BLKNO};
use crate::format::quorum::{self, SLOTS, Slot};
use crate::format::root::{Extent, RESERVE_EXTENTS, Root, RootBlock, TAKEOVER_ROUNDS};
use crate::format::super_block::{Super, SuperError, Unverified};
use crate::format::{Block, BlockNo};
use crate::node::{Action, Event, More, Node};
use map::Map;
use outrider_hal::{BlockOp, BlockRequest, Completion, Instant, IoError, StreamId, Tag};
use records::Records;
use run::{Ground, Progress, RunCheck};
use walk::{Advance, Walk};

/// What the cache of a check needs.
const LIMITS: Limits = Limits {
    // All of a run, and a path in the manifest.
    frames: 320,
    dirty: 0,
    // A node; or a run's item block, with its index and its filter.
    pins: 8,
    creates: 0,
    requests: 1,
    fresh: 0,
    freed: 0,
};
/// Findings that wait to be taken.
const FINDINGS: usize = 64;
/// Most findings of one step.
const FINDINGS_PER_STEP: usize = 8;
const JOB: RequestId = RequestId { index: 0, generation: 0 };
const TAG_FIXED: Tag = Tag(Cache::TAGS);
const ROOTS: u64 = 2 * ROOT_PAIRS;
/// The super block, its spare, the quorum blocks, the ring.
const FIXED: u64 = 2 + SLOTS as u64 + ROOTS;

/// What a finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Id {
    /// The super block.
    Super,
    /// The spare super block.
    Spare,
    /// A quorum block.
    Quorum,
    /// A root of the ring.
    Ring,
    /// There is no valid root at all.
    Root,
    /// A node of a tree.
    Node,
    /// A record in a leaf of a tree.
    Record,
    /// Blocks that are free in one of the free trees only.
    FreeTrees,
    /// The number of free blocks in the root.
    FreeBlocks,
    /// The number of runs of a level in the root.
    Levels,
    /// An entry of the manifest that its run, or another entry, contradicts.
    Manifest,
    /// An item block of a run.
    RunItems,
    /// A block of a run's index, or an item block that it contradicts.
    RunIndex,
    /// A block of a run's filter, or an item block with an item that it denies.
    RunFilter,
    /// An item in an item block.
    Item,
    /// Blocks that are in two places.
    Double,
    /// Blocks that are in no place.
    Leak,
}

impl Id {
    /// Its name in reports: stable.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Id::Super => "super",
            Id::Spare => "spare",
            Id::Quorum => "quorum",
            Id::Ring => "ring",
            Id::Root => "root",
            Id::Node => "node",
            Id::Record => "record",
            Id::FreeTrees => "free-trees",
            Id::FreeBlocks => "free-blocks",
            Id::Levels => "levels",
            Id::Manifest => "manifest",
            Id::RunItems => "run-items",
            Id::RunIndex => "run-index",
            Id::RunFilter => "run-filter",
            Id::Item => "item",
            Id::Double => "double",
            Id::Leak => "leak",
        }
    }
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// This check failed.
    Corrupt(Corruption),
    /// The device failed.
    Io(IoError),
}

impl From<Corruption> for Wrong {
    fn from(what: Corruption) -> Wrong {
        Wrong::Corrupt(what)
    }
}

impl From<Error> for Wrong {
    fn from(error: Error) -> Wrong {
        match error {
            Error::Corrupt { what, .. } => Wrong::Corrupt(what),
            Error::Io { error, .. } => Wrong::Io(error),
            Error::NoSpace | Error::Exists | Error::NotFound => Wrong::Corrupt(Corruption::Value),
        }
    }
}

/// Something that is wrong with the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finding {
    /// What it is about.
    pub id: Id,
    /// The first block concerned.
    pub blkno: BlockNo,
    /// How many blocks are concerned.
    pub blocks: u64,
    /// What is wrong.
    pub wrong: Wrong,
}

/// What was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Valid roots.
    pub roots: u64,
    /// Nodes of trees.
    pub nodes: u64,
    /// Records in their leaves.
    pub records: u64,
    /// Runs.
    pub runs: u64,
    /// Items in them, all versions.
    pub items: u64,
    /// Free blocks.
    pub free_blocks: u64,
    /// Findings.
    pub findings: u64,
}

/// Findings that wait to be taken.
struct Log {
    findings: heapless::Deque<Finding, FINDINGS>,
    count: u64,
}

impl Log {
    fn put(&mut self, id: Id, extent: Extent, wrong: Wrong) {
        let finding = Finding { id, blkno: extent.start(), blocks: extent.len(), wrong };
        self.findings.push_back(finding).expect("a step begins with room for all it can find");
        self.count += 1;
    }
}

/// The trees of a volume, in the order in which they are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TreeName {
    FreeByBlock,
    FreeByLength,
    Clients,
    Loans,
    OpenSeqs,
    Freed,
    Quarantine,
    Manifest,
}

impl TreeName {
    const ALL: [TreeName; 8] = [
        TreeName::FreeByBlock,
        TreeName::FreeByLength,
        TreeName::Clients,
        TreeName::Loans,
        TreeName::OpenSeqs,
        TreeName::Freed,
        TreeName::Quarantine,
        TreeName::Manifest,
    ];

    /// The number of the kind in its nodes, and the field of the root that leads to it.
    fn place(self, root: &RootBlock) -> (u8, &TreeRoot) {
        match self {
            TreeName::FreeByBlock => (1, &root.free_by_block),
            TreeName::FreeByLength => (2, &root.free_by_length),
            TreeName::Manifest => (3, &root.manifest),
            TreeName::Clients => (4, &root.clients),
            TreeName::Loans => (5, &root.loans),
            TreeName::OpenSeqs => (6, &root.open_seqs),
            TreeName::Freed => (7, &root.freed),
            TreeName::Quarantine => (8, &root.quarantine),
        }
    }

    fn walk(self, root: &RootBlock) -> Walk {
        let (kind, at) = self.place(root);
        Walk::new(kind, at)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The fixed block of this number is read.
    Fixed(u64),
    /// The reserve of this number is claimed.
    Reserves(usize),
    /// The tree of this number is walked.
    Trees(usize),
    /// Free extents that only one tree has are looked for from here on.
    FreeTrees(BlockNo),
    Runs,
    /// Blocks that nobody has are looked for from here on.
    Leaks(BlockNo),
    Done,
}

/// A check of a volume.
pub struct Check<'m> {
    volume: Super,
    phase: Phase,
    cache: Cache<'m>,
    pins: Pins<'m>,
    map: Map<'m>,
    buffer: Option<&'m mut Block>,
    /// The fixed block of the phase is being read.
    reading: bool,
    root: Option<Root>,
    walk: Walk,
    records: Records,
    run: Option<RunCheck>,
    /// Something that could have named blocks was not read.
    partial: bool,
    runnable: bool,
    log: Log,
    counts: Counts,
}

impl<'m> Check<'m> {
    /// Carves the check of a volume whose super block, or its spare, was verified.
    pub fn carve(arena: &mut Arena<'m>, volume: &Super) -> Result<Check<'m>, ArenaFull> {
        let mut pins = Pins::carve(arena, &LIMITS)?;
        pins.begin(JOB);
        Ok(Check {
            volume: *volume,
            phase: Phase::Fixed(0),
            cache: Cache::carve(arena, &LIMITS, volume.volume())?,
            pins,
            map: Map::carve(arena, volume.blocks())?,
            buffer: arena.one(Block::ZERO)?,
            reading: false,
            root: None,
            walk: Walk::none(),
            records: Records::new(volume.blocks()),
            run: None,
            partial: false,
            runnable: true,
            log: Log { findings: heapless::Deque::new(), count: 0 },
            counts: Counts::default(),
        })
    }

    /// The next finding. The check goes on only while there is room for more.
    pub fn poll_finding(&mut self) -> Option<Finding> {
        self.log.findings.pop_front()
    }

    /// Whether the check has come to its end.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    /// What was looked at so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts { findings: self.log.count, ..self.counts }
    }

    /// The newest root, once the ring has been read.
    #[must_use]
    pub fn root(&self) -> Option<&Root> {
        self.root.as_ref()
    }

    fn fixed_blkno(&self, number: u64) -> BlockNo {
        let ring = 2 + SLOTS as u64;
        match number {
            0 => SUPER_BLKNO,
            1 => spare_blkno(self.volume.blocks()),
            number if number < ring => QUORUM_BLKNO.plus(number - 2),
            number => ROOT_BLKNO.plus(number - ring),
        }
    }

    fn on_fixed(&mut self, number: u64, block: &Block, result: Result<(), IoError>) {
        let blkno = self.fixed_blkno(number);
        let id = match number {
            0 => Id::Super,
            1 => Id::Spare,
            number if number < 2 + SLOTS as u64 => Id::Quorum,
            _ => Id::Ring,
        };
        let verdict = match result {
            Err(error) => Err(Wrong::Io(error)),
            Ok(()) => self.judge_fixed(id, blkno, block).map_err(Wrong::Corrupt),
        };
        if let Err(wrong) = verdict {
            self.log.put(id, Extent::new(blkno, 1), wrong);
        }
        self.phase = Phase::Fixed(number + 1);
    }

    fn judge_fixed(&mut self, id: Id, blkno: BlockNo, block: &Block) -> Result<(), Corruption> {
        let (volume, blocks) = (self.volume.volume(), self.volume.blocks());
        match id {
            Id::Super | Id::Spare => match Unverified::new(block).verify(blkno, blocks) {
                Ok(read) if is_same(&read, &self.volume) => Ok(()),
                Ok(_) | Err(SuperError::Truncated { .. } | SuperError::UnknownFeatures(_)) => {
                    Err(Corruption::Mismatch)
                }
                Err(SuperError::NoVolume) => Err(Corruption::Kind),
                Err(SuperError::Corrupt(what)) => Err(what),
            },
            Id::Quorum => {
                let slot = (blkno.0 - QUORUM_BLKNO.0) as u8;
                let slot = Slot::new(slot).expect("one of the slots' blocks");
                quorum::parse(block, &volume, QUORUM_BLKNO, slot).map(drop)
            }
            _ if block.0 == [0; 4096] => Ok(()),
            _ => {
                let root = Root::open(block, &volume, blkno, blocks)?;
                self.counts.roots += 1;
                if self.root.as_ref().is_none_or(|best| root.rank() > best.rank()) {
                    self.root = Some(root);
                }
                Ok(())
            }
        }
    }

    /// The newest root is known, if there is one.
    fn begin_reserves(&mut self) {
        if self.root.is_some() {
            self.phase = Phase::Reserves(0);
            return;
        }
        self.log.put(Id::Root, Extent::new(ROOT_BLKNO, ROOTS), Corruption::Mismatch.into());
        self.phase = Phase::Done;
    }

    fn fields(&self) -> &RootBlock {
        self.root.as_ref().expect("there is a root").fields()
    }

    fn step_reserves(&mut self, number: usize) {
        let root = self.root.as_ref().expect("there is a root");
        let extent = match number.checked_sub(TAKEOVER_ROUNDS) {
            None => root.takeover(root.term().round() + 1 + number as u64),
            Some(number) => root.reserve().get(number).copied(),
        };
        if number == TAKEOVER_ROUNDS + RESERVE_EXTENTS {
            self.enter_tree(0);
            return;
        }
        if let Some(extent) = extent {
            self.records.claims.push(extent).expect("claims are worked off first");
        }
        self.phase = Phase::Reserves(number + 1);
    }

    fn enter_tree(&mut self, number: usize) {
        match TreeName::ALL.get(number) {
            Some(name) => {
                self.walk = name.walk(self.fields());
                self.records.begin_tree();
                self.phase = Phase::Trees(number);
            }
            None => {
                self.check_sums();
                self.phase = Phase::FreeTrees(FIRST_BLKNO);
            }
        }
    }

    /// What the root says of the trees.
    fn check_sums(&mut self) {
        let root = self.root.as_ref().expect("there is a root");
        let extent = Extent::new(root_blkno(root), 1);
        let (fields, records) = (root.fields(), &self.records);
        self.counts.free_blocks = records.free_sums[0].blocks;
        if !records.is_partial(TreeName::FreeByBlock)
            && records.free_sums[0].blocks != fields.free_blocks.get()
        {
            self.log.put(Id::FreeBlocks, extent, Corruption::Mismatch.into());
        }
        let levels = fields.level_runs.map(|runs| runs.get());
        if !records.is_partial(TreeName::Manifest) && records.level_runs != levels {
            self.log.put(Id::Levels, extent, Corruption::Mismatch.into());
        }
    }

    fn step_tree(&mut self, number: usize) -> Result<(), Stop> {
        let name = TreeName::ALL[number];
        match self.walk.advance(&mut self.cache, &mut self.pins)? {
            Advance::Node(blkno) => {
                let extent = Extent::new(blkno, 1);
                if !extent.is_inside(self.volume.blocks()) {
                    self.records.set_partial(name);
                    self.log.put(Id::Node, extent, Corruption::Bounds.into());
                    self.walk.refuse();
                } else if !self.map.visit(blkno) {
                    self.log.put(Id::Double, extent, Corruption::Mismatch.into());
                    self.records.set_partial(name);
                    self.walk.refuse();
                } else {
                    self.counts.nodes += 1;
                    self.records.claims.push(extent).expect("claims are worked off first");
                }
            }
            Advance::Item(blkno, key, value) => {
                self.counts.records += 1;
                if let Err(what) = self.records.take(name, key, value, &mut self.map) {
                    self.records.set_partial(name);
                    self.log.put(Id::Record, Extent::new(blkno, 1), what.into());
                }
                let overlap = core::mem::take(&mut self.records.overlap);
                if overlap {
                    let wrong = Corruption::Order.into();
                    self.log.put(Id::Manifest, Extent::new(blkno, 1), wrong);
                }
            }
            Advance::Damaged(error) => {
                self.records.set_partial(name);
                self.log.put(Id::Node, Extent::new(failed_at(error), 1), error.into());
            }
            Advance::Passed => {}
            Advance::End => self.enter_tree(number + 1),
        }
        Ok(())
    }

    fn step_free_trees(&mut self, from: BlockNo) {
        let trees = [TreeName::FreeByBlock, TreeName::FreeByLength];
        let partial = trees.iter().any(|name| self.records.is_partial(*name));
        if let Some(uneven) = self.map.uneven(from).filter(|_| !partial) {
            self.log.put(Id::FreeTrees, uneven, Corruption::Mismatch.into());
            self.phase = Phase::FreeTrees(uneven.end().plus(1));
            return;
        }
        let [by_block, by_length] = self.records.free_sums;
        if !partial && from == FIRST_BLKNO && by_block != by_length {
            let node = self.fields().free_by_length.node.blkno();
            self.log.put(Id::FreeTrees, Extent::new(node, 1), Corruption::Mismatch.into());
        }
        self.partial = TreeName::ALL.iter().any(|name| self.records.is_partial(*name));
        self.walk = TreeName::Manifest.walk(self.fields());
        self.phase = Phase::Runs;
    }

    fn step_runs(&mut self) -> Result<(), Stop> {
        let Some(run) = &mut self.run else {
            match self.walk.advance(&mut self.cache, &mut self.pins)? {
                Advance::Node(blkno) => {
                    if !Extent::new(blkno, 1).is_inside(self.volume.blocks()) {
                        self.walk.refuse();
                    }
                }
                Advance::Item(_, key, value) => {
                    self.run = records::run_entry(key, value, self.volume.blocks())
                        .ok()
                        .map(|(_, entry)| RunCheck::new(entry));
                    self.counts.runs += u64::from(self.run.is_some());
                }
                Advance::Damaged(_) | Advance::Passed => {}
                Advance::End => self.phase = Phase::Leaks(FIRST_BLKNO),
            }
            return Ok(());
        };
        let volume = self.volume.volume();
        let ground = Ground { volume: &volume, name_key: &self.volume.fields().name_key };
        match run.step(&ground, &mut self.cache, &mut self.pins, &mut self.log)? {
            Progress::More => {}
            Progress::File(extent) if extent.is_inside(self.volume.blocks()) => {
                self.map.mark(extent);
            }
            Progress::File(extent) => {
                self.log.put(Id::Item, extent, Corruption::Bounds.into());
            }
            Progress::Done { whole, items } => {
                self.partial |= !whole;
                self.counts.items += u64::from(items);
                self.run = None;
            }
        }
        Ok(())
    }

    fn step_leaks(&mut self, from: BlockNo) {
        match self.map.leak(from).filter(|_| !self.partial) {
            Some(leak) => {
                self.log.put(Id::Leak, leak, Corruption::Mismatch.into());
                self.phase = Phase::Leaks(leak.end());
            }
            None => self.phase = Phase::Done,
        }
    }

    /// One extent of what was found is claimed.
    fn step_claim(&mut self) -> bool {
        let Some(extent) = self.records.claims.pop() else { return false };
        let (double, rest) = self.map.claim(extent);
        if let Some(double) = double {
            self.log.put(Id::Double, double, Corruption::Mismatch.into());
        }
        if !rest.is_empty() {
            self.records.claims.push(rest).expect("it was taken from there");
        }
        true
    }

    fn step_phase(&mut self) -> Result<(), Stop> {
        match self.phase {
            Phase::Fixed(FIXED) => self.begin_reserves(),
            Phase::Fixed(_) | Phase::Done => self.runnable = false,
            Phase::Reserves(number) => self.step_reserves(number),
            Phase::Trees(number) => self.step_tree(number)?,
            Phase::FreeTrees(from) => self.step_free_trees(from),
            Phase::Runs => self.step_runs()?,
            Phase::Leaks(from) => self.step_leaks(from),
        }
        Ok(())
    }

    fn on_completed(&mut self, completion: Completion<'m>) {
        if completion.tag.0 < Cache::TAGS {
            self.cache.handle_completion(completion);
            while self.cache.poll_wake().is_some() {
                self.runnable = true;
            }
            return;
        }
        let (BlockOp::Read(_, buffer) | BlockOp::Write(_, buffer)) = completion.op else {
            unreachable!("a check doesn't flush")
        };
        if let Phase::Fixed(number) = self.phase {
            self.on_fixed(number, buffer, completion.result);
        }
        self.buffer = Some(buffer);
        (self.reading, self.runnable) = (false, true);
    }
}

/// Where this root stands.
fn root_blkno(root: &Root) -> BlockNo {
    BlockNo(root.fields().header.blkno.get())
}

/// Whether two super blocks say the same, wherever they stand.
fn is_same(one: &Super, other: &Super) -> bool {
    let placeless = |read: &Super| {
        let mut fields = *read.fields();
        fields.header.crc = 0.into();
        fields.header.blkno = 0.into();
        fields
    };
    placeless(one) == placeless(other)
}

impl<'m> Node<'m> for Check<'m> {
    fn handle(&mut self, _: Instant, event: Event<'m>) {
        match event {
            Event::Completed(completion) => self.on_completed(completion),
            Event::Accepted(_)
            | Event::Connected { .. }
            | Event::ConnectFailed { .. }
            | Event::ListenFailed
            | Event::Received { .. }
            | Event::Sent { .. }
            | Event::Closed(_) => {}
        }
    }

    fn step(&mut self, _: Instant) -> More {
        let room = self.log.findings.len() + FINDINGS_PER_STEP <= FINDINGS;
        if !self.runnable || !room {
            return More::No;
        }
        if self.step_claim() {
            return More::Yes;
        }
        match self.step_phase() {
            Ok(()) => {
                self.cache.release(&mut self.pins);
                self.pins.begin(JOB);
            }
            Err(Stop::Wait(_)) => self.runnable = false,
            Err(Stop::Fail(error)) => {
                // A block that was whole can't be read again.
                self.partial = true;
                self.run = None;
                self.log.put(Id::RunItems, Extent::new(failed_at(error), 1), error.into());
                self.cache.release(&mut self.pins);
                self.pins.begin(JOB);
            }
        }
        if self.runnable { More::Yes } else { More::No }
    }

    fn poll_action(&mut self) -> Option<Action<'m>> {
        if let Phase::Fixed(number) = self.phase
            && number < FIXED
            && let Some(buffer) = self.buffer.take()
        {
            self.reading = true;
            let op = BlockOp::Read(self.fixed_blkno(number), buffer);
            return Some(Action::Block(BlockRequest { tag: TAG_FIXED, op }));
        }
        self.cache.poll_transfer().map(Action::Block)
    }

    fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    fn recv_space(&mut self, _: StreamId) -> &mut [u8] {
        &mut []
    }

    fn send_bytes(&self, _: StreamId) -> &[u8] {
        &[]
    }
}

/// The block that an error names.
fn failed_at(error: Error) -> BlockNo {
    match error {
        Error::Corrupt { blkno, .. } | Error::Io { blkno, .. } => blkno,
        Error::NoSpace | Error::Exists | Error::NotFound => BlockNo(0),
    }
}

#[cfg(test)]
mod tests;

//! Checks a volume, and changes nothing.
//!
//! ```text
//!  Fixed -------> Reserves --> Trees --------> Clients ---> FreeTrees --> Clashes ---> Runs
//!  super, spare,  of the       nodes, records  records      by block and  runs that    blocks
//!  quorum, ring   newest root  of all trees    that agree   by length     exclude      and items
//!                                                                         each other      |
//!    +------------------------------------------------------------------------------------+
//!    v
//!  Items --------> Directories -> Peel ---------> Locate --------> Leaks ----> Look ---> Done
//!  the newest of   that the root  what entries    where that       blocks      is there  or Busy,
//!  each key, by    leads to       and indices     stands: only     that nobody a newer   or again
//!  inode                          differ in       if they differ   has         root?  |    ^
//!                                                                                     v    |
//!                                                                              Doubt: did the pin
//!                                                                              hold all the time?
//! ```
//!
//! `CHECK.md` lists what is told, and says what it means.
//!
//! # What is checked
//!
//! * The super block and its spare, all quorum blocks, all roots of the ring.
//! * From the newest root: every node (checksum, kind, level, order, range), every record of every
//!   tree, what the records of clients must have in common, that both free trees hold the same and
//!   add up to `free_blocks`, the runs of each level, and that runs which may not overlap don't.
//! * Every block of every run, and every item by itself: order, index, filter, key, value.
//! * Of the newest versions of all items: what those of one inode must have in common (`inode`);
//!   that each entry has its three items, each inode its entries in the indices, and the other way
//!   round (`differences`); that the root directory leads to every directory (`directories`).
//! * That every block of the volume is in exactly one place: free, freed, lent, quarantined, a
//!   reserve, a node, a run, or a file. Blocks in two are told as doubles, blocks in none as leaks.
//!
//! # Passes and memory
//!
//! Nodes are read once; blocks of runs twice, and a third time if entries and indices differ.
//! Memory is a fixed part, and so much for each block of the volume, whatever is on it: three bits
//! in the map, 0.2 bytes of runs and 0.5 bytes of directories. There is no table of inodes. What
//! there is more of than memory was carved for is not checked, and [`Check::limit`] says so.
//!
//! # A volume in use
//!
//! What a root leads to is never changed, only used again when a newer root is there. So a check
//! that finds all as its root says has seen one state of the volume, even if that is no longer the
//! newest. If a block is not what the root promised, and a newer root is there at the end, the
//! check is made again, and after [`ATTEMPTS`] it ends as [`busy`](Check::is_busy): nothing is
//! known then. Fixed blocks that may be being written are read several times.
//!
//! Somebody may keep what the root leads to from being used again. If that was so until all was
//! read, and the newer root is of the same term, what was not as promised is damage all the same:
//! see [`pin`](Check::pin).
//!
//! # Invariants
//!
//! * It ends, whatever the blocks hold: nodes are visited once, runs and attempts are bounded.
//! * What is damaged is told, and checking goes on beside it. What could be a mere consequence of
//!   something unreadable is not told: items are compared only if all of them could be read, leaks
//!   are told only if everything that could have named the blocks was.
//! * A step looks at one node, or at a bounded number of items, or passes once over a table.
//!
//! A root that was being written when power failed can't be told from one that was damaged later:
//! both are told, as what stands in the ring beside the newest root.
//!
//! What this module deliberately doesn't know: how to repair anything.

mod clients;
mod differences;
mod directories;
mod finding;
mod inode;
mod items;
mod map;
mod merge;
mod records;
mod run;
mod runs;
mod walk;
mod xattr;

pub use finding::{Counts, Finding, Holder, Id, Limit, Wrong};

use crate::arena::{Arena, ArenaFull};
use crate::block::{Cache, Limits, Pins, RequestId};
use crate::error::{Corruption, Error, Stop};
use crate::format::btree::TreeRoot;
use crate::format::layout::spare_blkno;
use crate::format::layout::{FIRST_BLKNO, QUORUM_BLKNO, ROOT_BLKNO, ROOT_PAIRS, SUPER_BLKNO};
use crate::format::quorum::{self, SLOTS, Slot};
use crate::format::root::{Extent, RESERVE_EXTENTS, Root, RootBlock, TAKEOVER_ROUNDS};
use crate::format::super_block::{Super, SuperError, Unverified};
use crate::format::{Block, BlockNo, CommitNo, Term};
use crate::node::{Action, Event, More, Node};
use clients::Clients;
use finding::Log;
use items::Items;
use map::Map;
use outrider_hal::{BlockOp, BlockRequest, Completion, Instant, IoError, StreamId, Tag};
use records::{Claim, Ground, Records};
use run::{Progress, RunCheck};
use runs::{Clash, Runs};
use walk::{Advance, Walk};

/// How often a check is made of a volume that changes meanwhile.
pub const ATTEMPTS: u32 = 5;
/// How often a fixed block is read that is not as it should be.
const READS: u32 = 3;
/// Items that a step looks at.
const BATCH: u32 = 128;
const JOB: RequestId = RequestId { index: 0, generation: 0 };
const TAG_FIXED: Tag = Tag(Cache::TAGS);
const ROOTS: u64 = 2 * ROOT_PAIRS;
/// The super block, its spare, the quorum blocks, the ring.
const FIXED: u64 = 2 + SLOTS as u64 + ROOTS;

/// What the cache of a check needs, for a volume of so many blocks.
const fn limits(blocks: u64) -> Limits {
    // All of a run, and more where there are many runs to be merged.
    let frames = if blocks / 32 < 2048 { blocks as u32 / 32 } else { 2048 };
    Limits {
        frames: if frames < 320 { 320 } else { frames },
        dirty: 0,
        // A node; a run's item block with its index and its filter; three blocks of a merge.
        pins: 8,
        creates: 0,
        requests: 1,
        fresh: 0,
        freed: 0,
    }
}

/// The trees of a volume, in the order in which they are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TreeName {
    Manifest,
    FreeByBlock,
    FreeByLength,
    Clients,
    Loans,
    OpenSeqs,
    Freed,
    Quarantine,
}

impl TreeName {
    const ALL: [TreeName; 8] = [
        TreeName::Manifest,
        TreeName::FreeByBlock,
        TreeName::FreeByLength,
        TreeName::Clients,
        TreeName::Loans,
        TreeName::OpenSeqs,
        TreeName::Freed,
        TreeName::Quarantine,
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
    /// The client, or the extent of numbers, of this place is looked at.
    Clients(usize),
    /// Free extents that only one tree has are looked for from here on.
    FreeTrees(BlockNo),
    /// The runs of this place in an order are held against each other.
    Clashes(Clash, usize),
    /// The run of this place is checked.
    Runs(usize),
    /// What all items must have in common.
    Items,
    /// Blocks that nobody has are looked for from here on.
    Leaks(BlockNo),
    /// The root of this number is read again.
    Look(u64),
    /// Whether the pin has held is asked.
    Doubt,
    Done,
    Busy,
}

/// A check of a volume.
pub struct Check<'m> {
    volume: Super,
    phase: Phase,
    attempt: u32,
    cache: Cache<'m>,
    pins: Pins<'m>,
    map: Map<'m>,
    buffer: Option<&'m mut Block>,
    /// Reads of the fixed block of the phase that have shown nothing good.
    reads: u32,
    root: Option<Root>,
    /// The newest commit that a voter has seen confirmed.
    confirmed: (Term, CommitNo),
    /// A newer root than that has been seen.
    is_outdated: bool,
    /// So has one of a later term.
    is_of_old_term: bool,
    /// Somebody keeps what the root leads to.
    is_pinned: bool,
    walk: Walk,
    records: Records,
    runs: Runs<'m>,
    clients: Clients<'m>,
    run: Option<RunCheck>,
    items: Items<'m>,
    /// Something that could have named blocks was not read.
    partial: bool,
    /// Not all items could be read.
    items_partial: bool,
    runnable: bool,
    log: Log,
    counts: Counts,
}

impl<'m> Check<'m> {
    /// Carves the check of a volume whose super block, or its spare, was verified.
    pub fn carve(arena: &mut Arena<'m>, volume: &Super) -> Result<Check<'m>, ArenaFull> {
        let (blocks, limits) = (volume.blocks(), limits(volume.blocks()));
        let mut pins = Pins::carve(arena, &limits)?;
        pins.begin(JOB);
        Ok(Check {
            volume: *volume,
            phase: Phase::Fixed(0),
            attempt: 1,
            cache: Cache::carve(arena, &limits, volume.volume())?,
            pins,
            map: Map::carve(arena, blocks)?,
            buffer: arena.one(Block::ZERO)?,
            reads: 0,
            root: None,
            confirmed: (Term::NONE, CommitNo(0)),
            is_outdated: false,
            is_of_old_term: false,
            is_pinned: false,
            walk: Walk::none(),
            records: Records::new(blocks),
            runs: Runs::carve(arena, blocks)?,
            clients: Clients::carve(arena)?,
            run: None,
            items: Items::carve(arena, volume)?,
            partial: false,
            items_partial: false,
            runnable: true,
            log: Log::new(),
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
        matches!(self.phase, Phase::Done | Phase::Busy)
    }

    /// Whether the volume was changed too fast to be checked: nothing is known, and what was told
    /// means nothing.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.phase == Phase::Busy
    }

    /// Which attempt this is, from 1. When it changes, what was told before means nothing.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Of what there is too much for the memory that was carved, if of anything.
    #[must_use]
    pub fn limit(&self) -> Option<Limit> {
        self.log.limit
    }

    /// Whether what items have in common was checked: not if some could not be read.
    #[must_use]
    pub fn are_items_compared(&self) -> bool {
        self.is_done() && !self.items_partial
    }

    /// What was looked at so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts { findings: self.log.count, ..self.counts }
    }

    /// The newest root, once the ring has been read.
    #[must_use]
    pub fn root(&self) -> Option<&Root> {
        self.root.as_ref().filter(|_| !matches!(self.phase, Phase::Fixed(_)))
    }

    /// Somebody has kept what the [root](Self::root) leads to from being used again since before
    /// the ring was read, and goes on with that. To be said in each attempt anew.
    pub fn pin(&mut self) {
        self.is_pinned = true;
    }

    /// Whether nothing more is known unless the pin has held: ask now, and say it by
    /// [`pin_held`](Self::pin_held).
    #[must_use]
    pub fn doubts_pin(&self) -> bool {
        self.phase == Phase::Doubt
    }

    /// Whether the pin has held without a break until the check [doubted](Self::doubts_pin) it.
    pub fn pin_held(&mut self, held: bool) {
        if self.phase == Phase::Doubt {
            match held {
                true => self.phase = Phase::Done,
                false => self.begin_again_or_end(),
            }
            self.runnable = true;
        }
    }

    /// The fixed block that the phase is about.
    fn fixed_blkno(&self) -> Option<BlockNo> {
        let ring = 2 + SLOTS as u64;
        match self.phase {
            Phase::Fixed(0) => Some(SUPER_BLKNO),
            Phase::Fixed(1) => Some(spare_blkno(self.volume.blocks())),
            Phase::Fixed(number) if number < ring => Some(QUORUM_BLKNO.plus(number - 2)),
            Phase::Fixed(number) if number < FIXED => Some(ROOT_BLKNO.plus(number - ring)),
            Phase::Look(number) if number < ROOTS => Some(ROOT_BLKNO.plus(number)),
            Phase::Fixed(_)
            | Phase::Reserves(_)
            | Phase::Trees(_)
            | Phase::Clients(_)
            | Phase::FreeTrees(_)
            | Phase::Clashes(..)
            | Phase::Runs(_)
            | Phase::Items
            | Phase::Leaks(_)
            | Phase::Look(_)
            | Phase::Doubt
            | Phase::Done
            | Phase::Busy => None,
        }
    }

    fn on_fixed(
        &mut self,
        number: u64,
        blkno: BlockNo,
        block: &Block,
        result: &Result<(), IoError>,
    ) {
        let id = match number {
            0 => Id::Super,
            1 => Id::Spare,
            number if number < 2 + SLOTS as u64 => Id::Quorum,
            _ => Id::Ring,
        };
        let verdict = match result {
            Err(error) => Err(Wrong::Io(*error)),
            Ok(()) => self.judge_fixed(id, blkno, block).map_err(Wrong::Corrupt),
        };
        self.reads += 1;
        match verdict {
            // Somebody may be writing it.
            Err(_) if self.reads < READS => return,
            Err(wrong) => self.log.put(id, Extent::new(blkno, 1), wrong),
            Ok(()) => {}
        }
        (self.phase, self.reads) = (Phase::Fixed(number + 1), 0);
    }

    fn on_look(&mut self, number: u64, blkno: BlockNo, block: &Block) {
        let (volume, blocks) = (self.volume.volume(), self.volume.blocks());
        let root = Root::open(block, &volume, blkno, blocks).ok();
        let newest = self.root.as_ref().map(Root::rank);
        self.is_outdated |= root.is_some_and(|root| Some(root.rank()) > newest);
        let term = self.root.as_ref().map(Root::term);
        self.is_of_old_term |= root.is_some_and(|root| Some(root.term()) > term);
        self.phase = Phase::Look(number + 1);
    }

    fn judge_fixed(&mut self, id: Id, blkno: BlockNo, block: &Block) -> Result<(), Corruption> {
        let (volume, blocks) = (self.volume.volume(), self.volume.blocks());
        match id {
            Id::Super | Id::Spare => match Unverified::new(block).verify(blkno, blocks) {
                Ok(read) if is_same(&read, &self.volume) => Ok(()),
                Ok(_)
                | Err(
                    SuperError::Truncated { .. }
                    | SuperError::UnknownFeatures(_)
                    | SuperError::Times { .. },
                ) => Err(Corruption::Mismatch),
                Err(SuperError::NoVolume) => Err(Corruption::Kind),
                Err(SuperError::Corrupt(what)) => Err(what),
            },
            Id::Quorum => {
                let slot = (blkno.0 - QUORUM_BLKNO.0) as u8;
                let slot = Slot::new(slot).expect("one of the slots' blocks");
                let ballot = quorum::parse(block, &volume, QUORUM_BLKNO, slot)?;
                let confirmed = ballot.map(|ballot| ballot.confirmed);
                self.confirmed = self.confirmed.max(confirmed.unwrap_or_default());
                Ok(())
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
        match &self.root {
            Some(root) => {
                if root.rank() < self.confirmed {
                    let stale = Wrong::Corrupt(Corruption::Stale);
                    self.log.put(Id::Root, Extent::new(ROOT_BLKNO, ROOTS), stale);
                }
                self.records.begin(root);
                self.phase = Phase::Reserves(0);
            }
            None => {
                self.log.put(Id::Root, Extent::new(ROOT_BLKNO, ROOTS), Wrong::MISMATCH);
                (self.phase, self.items_partial) = (Phase::Done, true);
            }
        }
    }

    /// Forgets all that was found, and begins again.
    fn begin_again(&mut self) {
        self.attempt += 1;
        (self.phase, self.root) = (Phase::Fixed(0), None);
        self.confirmed = (Term::NONE, CommitNo(0));
        (self.is_outdated, self.is_of_old_term, self.is_pinned) = (false, false, false);
        self.map.clear();
        self.runs.clear();
        self.clients.clear();
        self.run = None;
        (self.partial, self.items_partial) = (false, false);
        (self.log, self.counts) = (Log::new(), Counts::default());
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
            self.records.claim(extent, Holder::Reserve, None, &mut self.counts);
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
                self.clients.sort();
                self.phase = Phase::Clients(0);
            }
        }
    }

    /// What the root says of the trees.
    fn check_sums(&mut self) {
        let root = self.root.as_ref().expect("there is a root");
        let extent = Extent::new(root_blkno(root), 1);
        let (fields, records) = (root.fields(), &self.records);
        let (says, is) = (fields.free_blocks.get(), records.free_sums[0].blocks);
        if !records.is_partial(TreeName::FreeByBlock) && says != is {
            self.log.put(Id::FreeBlocks, extent, Wrong::Count { says, is });
        }
        if records.is_partial(TreeName::Manifest) {
            return;
        }
        let levels = fields.level_runs.iter().zip(records.level_runs);
        for (says, is) in levels.map(|(says, is)| (says.get(), is)).filter(|(says, is)| says != is)
        {
            self.log.put(Id::Levels, extent, Wrong::Count { says, is });
        }
    }

    fn step_tree(&mut self, number: usize) -> Result<(), Stop> {
        let name = TreeName::ALL[number];
        match self.walk.advance(&mut self.cache, &mut self.pins)? {
            Advance::Node(blkno) => {
                let extent = Extent::new(blkno, 1);
                if !extent.is_inside(self.volume.blocks()) {
                    self.records.set_partial(name);
                    self.log.put(Id::Node, extent, Corruption::Bounds);
                    self.walk.refuse();
                } else if !self.map.visit(blkno) {
                    self.log.put(Id::Double, extent, Wrong::MISMATCH);
                    self.records.set_partial(name);
                    self.walk.refuse();
                } else {
                    self.counts.nodes += 1;
                    self.records.claim(extent, Holder::Nodes, None, &mut self.counts);
                }
            }
            Advance::Item(blkno, key, value) => {
                self.counts.records += 1;
                let mut ground = Ground {
                    map: &mut self.map,
                    runs: &mut self.runs,
                    clients: &mut self.clients,
                    counts: &mut self.counts,
                    log: &mut self.log,
                };
                if let Err(what) = self.records.take(name, (blkno, key, value), &mut ground) {
                    self.records.set_partial(name);
                    self.log.put(Id::Record, Extent::new(blkno, 1), what);
                }
            }
            Advance::Damaged(error) => {
                self.records.set_partial(name);
                self.log.put(Id::Node, Extent::new(failed_at(error), 1), error);
            }
            Advance::Passed => {}
            Advance::End => self.enter_tree(number + 1),
        }
        Ok(())
    }

    fn step_clients(&mut self, at: usize) {
        let all = [TreeName::Clients, TreeName::Loans, TreeName::OpenSeqs];
        let partial = all.iter().any(|name| self.records.is_partial(*name));
        if partial || at >= self.clients.len().max(self.clients.numbers_len()) {
            let (clients, numbers) = self.clients.are_full();
            let limit = if clients { Some(Limit::Clients) } else { None };
            self.log.limit = limit.or(if numbers { Some(Limit::Numbers) } else { None });
            self.phase = Phase::FreeTrees(FIRST_BLKNO);
            return;
        }
        self.clients.check(at, &mut self.log);
        self.clients.check_numbers(at, &mut self.log);
        self.phase = Phase::Clients(at + 1);
    }

    fn step_free_trees(&mut self, from: BlockNo) {
        let trees = [TreeName::FreeByBlock, TreeName::FreeByLength];
        let partial = trees.iter().any(|name| self.records.is_partial(*name));
        if let Some(uneven) = self.map.uneven(from).filter(|_| !partial) {
            self.log.put(Id::FreeTrees, uneven, Wrong::MISMATCH);
            self.phase = Phase::FreeTrees(uneven.end().plus(1));
            return;
        }
        let [by_block, by_length] = self.records.free_sums;
        if !partial && from == FIRST_BLKNO && by_block != by_length {
            let node = self.fields().free_by_length.node.blkno();
            self.log.put(Id::FreeTrees, Extent::new(node, 1), Wrong::MISMATCH);
        }
        self.partial = TreeName::ALL.iter().any(|name| self.records.is_partial(*name));
        if self.runs.is_full() {
            (self.log.limit, self.partial) = (Some(Limit::Runs), true);
        }
        self.items_partial = self.records.is_partial(TreeName::Manifest) || self.runs.is_full();
        self.runs.sort_by_age();
        self.phase = Phase::Clashes(Clash::Overlap, 0);
    }

    fn step_clashes(&mut self, clash: Clash, at: usize) {
        if at >= self.runs.len() {
            self.phase = match clash {
                Clash::Overlap => {
                    self.runs.sort_by_number();
                    Phase::Clashes(Clash::Number, 0)
                }
                Clash::Number => Phase::Runs(0),
            };
            return;
        }
        let found = self.runs.clash(at, clash).map(|run| Extent::new(run.leaf, 1));
        match (found, clash) {
            (Some(leaf), Clash::Overlap) => {
                self.items_partial = true;
                self.log.put(Id::LevelOrder, leaf, Corruption::Order);
            }
            (Some(leaf), Clash::Number) => self.log.put(Id::Number, leaf, Wrong::MISMATCH),
            (None, _) => {}
        }
        self.phase = Phase::Clashes(clash, at + 1);
    }

    fn step_runs(&mut self, at: usize) -> Result<(), Stop> {
        let Some(run) = &mut self.run else {
            let Some(run) = self.runs.get(at) else {
                self.enter_items();
                return Ok(());
            };
            if self.clients.is_run_lent(run.entry.run().0) {
                self.log.put(Id::Number, Extent::new(run.leaf, 1), Wrong::MISMATCH);
            }
            self.counts.runs += 1;
            self.run = Some(RunCheck::new(run, &mut self.cache));
            return Ok(());
        };
        let volume = self.volume.volume();
        let name_key = &self.volume.fields().name_key;
        let volume_blocks = self.volume.blocks();
        let ground = run::Ground { volume: &volume, volume_blocks, name_key };
        match run.step(&ground, &mut self.cache, &mut self.pins, &mut self.log)? {
            Progress::More => {}
            Progress::Done { whole, items } => {
                self.items_partial |= !whole;
                self.counts.items += u64::from(items);
                (self.run, self.phase) = (None, Phase::Runs(at + 1));
            }
        }
        Ok(())
    }

    fn enter_items(&mut self) {
        self.partial |= self.items_partial;
        let next_ino = self.fields().next_ino.get();
        self.items.begin(next_ino, &self.runs, limits(self.volume.blocks()).frames);
        self.clients.sort();
        self.phase = match self.items_partial {
            true => Phase::Leaks(FIRST_BLKNO),
            false => Phase::Items,
        };
    }

    fn step_items(&mut self) -> Result<(), Stop> {
        let mut ground = items::Ground {
            volume_blocks: self.volume.blocks(),
            runs: &self.runs,
            clients: &mut self.clients,
            records: &mut self.records,
            counts: &mut self.counts,
            log: &mut self.log,
        };
        if self.items.step(&mut ground, &mut self.cache, &mut self.pins)? == More::No {
            self.phase = Phase::Leaks(FIRST_BLKNO);
        }
        Ok(())
    }

    fn step_leaks(&mut self, from: BlockNo) {
        match self.map.leak(from).filter(|_| !self.partial) {
            Some(leak) => {
                self.log.put(Id::Leak, leak, Wrong::MISMATCH);
                self.phase = Phase::Leaks(leak.end());
            }
            None if self.log.is_stale => self.phase = Phase::Look(0),
            None => self.phase = Phase::Done,
        }
    }

    /// The ring has been read again.
    fn finish(&mut self) {
        if !self.is_outdated {
            self.phase = Phase::Done;
        } else if self.is_pinned && !self.is_of_old_term {
            self.phase = Phase::Doubt;
        } else {
            self.begin_again_or_end();
        }
    }

    fn begin_again_or_end(&mut self) {
        match self.attempt {
            ATTEMPTS.. => self.phase = Phase::Busy,
            _ => self.begin_again(),
        }
    }

    /// One extent of what was found is claimed.
    fn step_claim(&mut self) -> bool {
        let Some(Claim { extent, item }) = self.records.claims.pop() else { return false };
        let (double, rest) = self.map.claim(extent);
        if let Some(double) = double {
            self.log.put_blocks(Id::Double, double, item.map(|(_, key)| key));
        }
        if !rest.is_empty() {
            let rest = Claim { extent: rest, item };
            self.records.claims.push(rest).map_err(drop).expect("it was taken from there");
        }
        true
    }

    fn step_phase(&mut self) -> Result<(), Stop> {
        match self.phase {
            Phase::Fixed(FIXED) => self.begin_reserves(),
            Phase::Look(ROOTS) => self.finish(),
            Phase::Fixed(_) | Phase::Look(_) | Phase::Doubt | Phase::Done | Phase::Busy => {
                self.runnable = false;
            }
            Phase::Reserves(number) => self.step_reserves(number),
            Phase::Trees(number) => self.step_tree(number)?,
            Phase::Clients(at) => self.step_clients(at),
            Phase::FreeTrees(from) => self.step_free_trees(from),
            Phase::Clashes(clash, at) => self.step_clashes(clash, at),
            Phase::Runs(at) => self.step_runs(at)?,
            Phase::Items => self.step_items()?,
            Phase::Leaks(from) => self.step_leaks(from),
        }
        Ok(())
    }

    /// Some of the work, and whether there is more that can be done at once.
    fn work(&mut self) -> More {
        if !self.runnable || !self.log.has_room() {
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
                (self.partial, self.items_partial) = (true, true);
                self.log.put(Id::RunItems, Extent::new(failed_at(error), 1), error);
                self.cache.release(&mut self.pins);
                self.pins.begin(JOB);
                self.phase = match self.phase {
                    Phase::Runs(at) => Phase::Runs(at + usize::from(self.run.take().is_some())),
                    _ => Phase::Leaks(FIRST_BLKNO),
                };
            }
        }
        if self.runnable { More::Yes } else { More::No }
    }

    fn on_completed(&mut self, completion: Completion<'m>) {
        if completion.tag.0 < Cache::TAGS {
            self.cache.handle_completion(completion);
            while self.cache.poll_wake().is_some() {
                self.runnable = true;
            }
            return;
        }
        let (BlockOp::Read(blkno, buffer) | BlockOp::Write(blkno, buffer)) = completion.op else {
            unreachable!("a check doesn't flush")
        };
        match self.phase {
            Phase::Fixed(number) => self.on_fixed(number, blkno, buffer, &completion.result),
            Phase::Look(number) => self.on_look(number, blkno, buffer),
            _ => {}
        }
        self.buffer = Some(buffer);
        self.runnable = true;
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
        for _ in 0..BATCH {
            if self.work() == More::No {
                return More::No;
            }
        }
        More::Yes
    }

    fn poll_action(&mut self) -> Option<Action<'m>> {
        if let Some(blkno) = self.fixed_blkno()
            && let Some(buffer) = self.buffer.take()
        {
            let op = BlockOp::Read(blkno, buffer);
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

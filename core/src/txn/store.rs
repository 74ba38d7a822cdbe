//! Commits: how a new version of the trees becomes durable, and who may write it.
//!
//! ```text
//!   front (the open commit)
//!                                      format()
//!   Closed ---> Loading ---> Loaded    Closed ---> Formatting ---+
//!                              |                                 v
//!                              +---> TakingOver ---> Settling   Open
//!                                take_over()          ^  |       ^ |
//!                                                     |  v       | |
//!                                                     | Writing -+ | all written: the tail starts
//!                                                     +------------+ commit(), and the tail is
//!                                                     idle
//!
//!   tail (the commit before it)
//!   Idle ----> FlushingBlocks ----> WritingRoot ----> FlushingRoot ----> Durable ----> Idle
//!     blocks written          flushed           written            flushed     confirm()
//! ```
//!
//! # Invariants
//!
//! * Blocks are flushed before the root that refers to them is written, and the root before anyone
//!   is told that it is durable.
//! * The open commit writes only the reserve that the last root names, and nothing at all before
//!   that root is durable and [`confirm`](Store::confirm)ed: that no later leader has claimed
//!   office. Changes are made in memory meanwhile.
//! * The first commit of a term writes only the takeover reserve of its round, or one whose round
//!   is proven to be over.
//! * Any error ends it: the store has [`failed`](Store::poll_event) and does nothing more. What it
//!   has not confirmed may be durable or not; the next leader finds out.
//!
//! What this module deliberately doesn't know: who asks for changes, and how claims are read.

use super::kept::{Keeping, Kept};
use super::settle::{self, Earlier, MARGIN, RESERVE_MIN, RESERVE_TARGET, Reserve, Settling};
use super::takeover::{Gone, Outcome, TakeoverJob, usable_round};
use super::trees::Trees;
use crate::arena::{Arena, ArenaFull};
use crate::block::{Cache, Limits, Margin, Pins, RequestId};
use crate::error::{Corruption, Error, Stop, Wait};
use crate::format::layout::{FIRST_BLKNO, ROOT_BLKNO, ROOT_PAIRS, spare_blkno};
use crate::format::root::{Extent, Root, RootBlock, TAKEOVER_BLOCKS, TAKEOVER_ROUNDS};
use crate::format::super_block::Super;
use crate::format::{Block, BlockNo, CommitNo, Term};
use crate::mutant::{Mutant, is_active};
use crate::node::More;
use heapless::Vec;
use outrider_hal::{BlockOp, BlockRequest, Completion, Tag};

/// Blocks that one step seals for writing.
const SEALS_PER_STEP: u32 = 16;
/// Roots in the ring.
const ROOTS: u64 = 2 * ROOT_PAIRS;

/// What has happened to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreEvent {
    /// The newest root has been found.
    Loaded,
    /// This commit is durable. Its answers wait for [`Store::confirm`].
    Durable(CommitNo),
    /// The term that was to begin can't. The store must be loaded again.
    Refused(TakeoverError),
    /// It can't go on.
    Failed(Error),
}

/// Why a leader can't start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakeoverError {
    /// The newest root has no reserve for this round, nor one of a round whose leader is proven
    /// gone; or the ring's pair of this round was last written by a leader that isn't. Another
    /// round may do.
    Round,
    /// The newest root is of this term or a later one.
    Late,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Front {
    Closed,
    /// Reading the ring of roots: how many reads have been submitted, and how many completed.
    Loading {
        submitted: u64,
        completed: u64,
    },
    /// The newest root is known; no term has begun.
    Loaded,
    /// Filling the commit with what a takeover changes.
    TakingOver,
    /// Entering what is free on a new volume.
    Formatting(Extent),
    Open,
    Settling,
    Writing,
    Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tail {
    Idle,
    FlushingBlocks,
    WritingRoot,
    FlushingRoot,
    Durable,
}

/// The trees of the volume, and their commits. See the module.
pub struct Store<'m> {
    /// The trees as the open commit has them. Change them only while it is
    /// [open](Store::open_commit).
    pub trees: Trees,
    /// The cache that their nodes are in.
    pub cache: Cache<'m>,
    /// What is kept for readers of older roots.
    pub kept: Kept<'m>,
    volume: Super,
    front: Front,
    tail: Tail,
    /// The newest root known to be durable.
    root: Option<Root>,
    term: Term,
    /// The open commit.
    commit: CommitNo,
    takeover: [u64; TAKEOVER_ROUNDS],
    settling: Settling,
    /// Those who led before this term.
    earlier: Earlier,
    /// What the next commit may write, once this one's blocks are written.
    reserve: Reserve,
    takeover_job: TakeoverJob,
    commit_wanted: bool,
    /// The last settling found nothing more to fill the reserve with.
    exhausted: bool,
    /// The root of the commit that is being made durable, and where it goes.
    sealed: Option<Root>,
    root_blkno: BlockNo,
    root_buffer: Option<&'m mut Block>,
    ring_buffers: &'m mut [Option<&'m mut Block>],
    /// A root write or a flush that is to be submitted.
    wanted: Option<Wanted>,
    job: RequestId,
    pins: Pins<'m>,
    runnable: bool,
    event: Option<StoreEvent>,
}

/// A request of the store's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Root,
    Flush,
}

const TAG_ROOT: Tag = Tag(Cache::TAGS);
const TAG_FLUSH: Tag = Tag(Cache::TAGS + 1);
/// Reads of the ring have this tag and those after it.
const TAG_RING: u64 = Cache::TAGS + 2;
/// Tags of the store's requests lie below this.
const TAGS: u64 = TAG_RING + ROOTS;
/// Reads of the ring in flight.
const RING_READS: u32 = 8;

impl core::fmt::Debug for Store<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Store")
            .field("term", &self.term)
            .field("commit", &self.commit)
            .field("front", &self.front)
            .field("tail", &self.tail)
            .field("free_blocks", &self.trees.free.free_blocks())
            .field("settling", &self.settling)
            .finish_non_exhaustive()
    }
}

impl<'m> Store<'m> {
    /// Tags of the store's requests are below this.
    pub const TAGS: u64 = TAGS;

    /// Carves a store for a volume. `job` names the store among the cache's requests.
    pub fn carve(
        arena: &mut Arena<'m>,
        limits: &Limits,
        volume: &Super,
        job: RequestId,
    ) -> Result<Store<'m>, ArenaFull> {
        let cache = Cache::carve(arena, limits, volume.volume())?;
        let mut buffers = arena.slice(RING_READS + 1, |_| Block::ZERO)?.iter_mut();
        let root_buffer = buffers.next();
        let mut pins = Pins::carve(arena, limits)?;
        pins.begin(job);
        Ok(Store {
            trees: Trees::empty(volume.blocks()),
            cache,
            kept: Kept::carve(arena)?,
            volume: *volume,
            front: Front::Closed,
            tail: Tail::Idle,
            root: None,
            term: Term::NONE,
            commit: CommitNo(0),
            takeover: [0; TAKEOVER_ROUNDS],
            settling: Settling::default(),
            earlier: Earlier::default(),
            reserve: Reserve::new(),
            takeover_job: TakeoverJob::default(),
            commit_wanted: false,
            exhausted: false,
            sealed: None,
            root_blkno: ROOT_BLKNO,
            root_buffer,
            ring_buffers: arena.slice(RING_READS, |_| buffers.next())?,
            wanted: None,
            job,
            pins,
            runnable: false,
            event: None,
        })
    }

    /// Starts to look for the newest root.
    pub fn load(&mut self) {
        assert!(matches!(self.front, Front::Closed | Front::Loaded));
        self.front = Front::Loading { submitted: 0, completed: 0 };
        self.root = None;
    }

    /// The newest root that is known to be durable.
    #[must_use]
    pub fn root(&self) -> Option<&Root> {
        self.root.as_ref()
    }

    /// The term that has begun.
    #[must_use]
    pub fn term(&self) -> Term {
        self.term
    }

    /// The commit that changes join, while one is open.
    #[must_use]
    pub fn open_commit(&self) -> Option<CommitNo> {
        (self.front == Front::Open).then_some(self.commit)
    }

    /// Begins a term on the root that was loaded. What leaders who are `gone` could have written is
    /// free, and not quarantined.
    pub fn take_over(&mut self, term: Term, gone: &Gone) -> Result<(), TakeoverError> {
        assert!(self.front == Front::Loaded && self.tail == Tail::Idle);
        let root = self.root.as_ref().expect("loaded");
        if root.term() >= term {
            return Err(TakeoverError::Late);
        }
        let used = usable_round(root, term, gone).ok_or(TakeoverError::Round)?;
        let own = root.takeover(used).expect("it is usable");
        self.commit = root.commit().next();
        self.takeover = shifted(root, term);
        self.earlier = Earlier { than: term.round(), gone: gone.clone() };
        self.takeover_job = TakeoverJob::begin(term, self.commit, gone.clone(), used);
        self.term = term;
        if is_active(Mutant::TakeoverOutsideReserve) && root.term() != Term::NONE {
            let reserve = Reserve::from_slice(root.reserve()).expect("as many as in a root");
            self.begin_commit(&reserve, Margin::default());
        } else {
            self.begin_commit(&[own], Margin::default());
        }
        self.front = Front::TakingOver;
        Ok(())
    }

    /// Begins the first commit of a new volume: all of it free but for the reserves. What mkfs adds
    /// joins that commit once it is open.
    pub fn format(&mut self) {
        assert!(self.front == Front::Closed);
        let mut next = FIRST_BLKNO;
        let mut cut = |blocks| {
            let extent = Extent::new(next, blocks);
            next = extent.end();
            extent
        };
        let reserve = cut(RESERVE_TARGET);
        self.takeover = core::array::from_fn(|_| cut(TAKEOVER_BLOCKS).start().0);
        self.term = Term::NONE;
        self.commit = CommitNo(1);
        self.begin_commit(&[reserve], MARGIN);
        self.front =
            Front::Formatting(Extent::new(next, spare_blkno(self.volume.blocks()).0 - next.0));
    }

    fn step_formatting(&mut self, free: Extent) -> More {
        let (trees, cache, pins) = (&mut self.trees, &mut self.cache, &mut self.pins);
        let mut plan = cache.plan();
        let planned = trees.free.plan_give(free, &mut plan, cache, pins);
        match planned.and_then(|give| Ok((give, cache.reserve(&plan, pins)?))) {
            Ok((give, mut update)) => {
                trees.free.give(give, &mut update, cache);
                self.cache.release(&mut self.pins);
                self.pins.begin(self.job);
                self.front = Front::Open;
                More::Yes
            }
            Err(stop) => self.on_stop(stop),
        }
    }

    fn begin_commit(&mut self, reserve: &[Extent], margin: Margin) {
        settle::give(reserve, &mut self.cache).expect("limits have room for a root's reserve");
        self.settling = Settling::default();
        self.cache.open_commit(self.commit.0, margin);
        self.cache.space().keep_to(self.kept.version(self.commit));
        self.pins.restart();
        self.runnable = true;
    }

    /// The commit that is under way. What its root leads to is freed by later ones, if ever.
    #[must_use]
    pub fn commit_now(&self) -> CommitNo {
        self.commit
    }

    /// Keeps what readers may come to, or nothing any more. `since` is
    /// [`commit_now`](Self::commit_now), or was and has been kept from since then.
    pub fn keep(&mut self, keeping: Option<Keeping>) {
        assert!(keeping.is_none_or(|keeping| keeping.since <= self.commit));
        self.kept.keep(keeping);
        self.cache.space().keep_to(self.kept.version(self.commit));
    }

    /// These leaders of earlier rounds are proven gone: what they might have written can be used.
    pub fn earlier_gone(&mut self, gone: Gone) {
        if gone != self.earlier.gone {
            (self.earlier.gone, self.exhausted) = (gone, false);
        }
    }

    /// Ends the open commit as soon as the one before it is confirmed.
    pub fn commit(&mut self) {
        self.commit_wanted = true;
    }

    /// Whether the open commit should be ended although nobody asked for it: requests wait for the
    /// next one, or the reserve is small.
    #[must_use]
    pub fn is_commit_wanted(&mut self) -> bool {
        self.front == Front::Open
            && (self.cache.is_commit_wanted()
                || (self.cache.space().available() < RESERVE_MIN && !self.exhausted))
    }

    /// No later leader had claimed office when this commit was durable: its changes may be
    /// answered, and the next commit may be written.
    pub fn confirm(&mut self, commit: CommitNo) {
        let durable = self.root.as_ref().is_some_and(|root| root.commit() == commit);
        assert!(self.tail == Tail::Durable && durable, "not the commit that is durable");
        self.tail = Tail::Idle;
        self.runnable = true;
    }

    /// The number for a list of extents that a request of the open commit frees.
    pub fn next_freed_list(&mut self) -> u32 {
        self.settling.next_list()
    }

    /// The number that [`next_freed_list`](Self::next_freed_list) would give: what a plan counts
    /// on.
    #[must_use]
    pub fn freed_lists(&self) -> u32 {
        self.settling.lists()
    }

    /// Forgets the term and all it changed; what is durable is found again by [`load`](Self::load).
    /// Every request must have been released, and nothing of the store's may be in flight.
    pub fn reset(&mut self) {
        let returned = self.root_buffer.is_some() && self.ring_buffers.iter().all(Option::is_some);
        assert!(returned && self.cache.in_flight() == 0, "a request is in flight");
        self.cache.release(&mut self.pins);
        self.pins.begin(self.job);
        self.cache.reset(self.volume.volume());
        self.trees = Trees::empty(self.volume.blocks());
        (self.front, self.tail) = (Front::Closed, Tail::Idle);
        (self.root, self.sealed, self.wanted, self.event) = (None, None, None, None);
        (self.commit_wanted, self.exhausted, self.runnable) = (false, false, false);
        self.term = Term::NONE;
        (self.settling, self.earlier) = (Settling::default(), Earlier::default());
        self.reserve.clear();
        self.kept.reset();
        self.cache.space().keep_to(0);
    }

    /// What has happened. Once it has failed it says nothing else.
    pub fn poll_event(&mut self) -> Option<StoreEvent> {
        self.event.take()
    }

    /// Does some work.
    pub fn step(&mut self) -> More {
        match self.front {
            Front::TakingOver if self.runnable => self.step_taking_over(),
            Front::Formatting(free) if self.runnable => self.step_formatting(free),
            Front::Open if self.commit_wanted && self.tail == Tail::Idle => {
                self.commit_wanted = false;
                self.cache.close_commit();
                (self.front, self.runnable) = (Front::Settling, true);
                More::Yes
            }
            Front::Settling if self.runnable => self.step_settling(),
            Front::Writing => self.step_writing(),
            Front::Closed
            | Front::Loading { .. }
            | Front::Loaded
            | Front::TakingOver
            | Front::Formatting(_)
            | Front::Open
            | Front::Settling
            | Front::Failed => More::No,
        }
    }

    /// A request to run again, as [`Cache::poll_wake`]; the store keeps its own to itself.
    pub fn poll_wake(&mut self) -> Option<RequestId> {
        loop {
            let woken = self.cache.poll_wake()?;
            if woken != self.job {
                return Some(woken);
            }
            self.runnable = true;
        }
    }

    fn step_taking_over(&mut self) -> More {
        let root = self.root.as_ref().expect("loaded");
        let (trees, cache) = (&mut self.trees, &mut self.cache);
        let job = &mut self.takeover_job;
        let (settling, pins, kept) = (&mut self.settling, &mut self.pins, &mut self.kept);
        match job.run(root, settling, trees, cache, pins, kept) {
            Ok(Outcome::Done(taken)) => {
                if let Some(taken) = taken {
                    let rest = name_rounds(taken, &mut self.takeover);
                    self.settling.taken = Vec::from_slice(&[rest]).expect("room for one");
                }
                self.cache.close_commit();
                self.front = Front::Settling;
                self.pins.restart();
                More::Yes
            }
            Ok(Outcome::Unproven) => {
                self.front = Front::Failed;
                self.event = Some(StoreEvent::Refused(TakeoverError::Round));
                More::No
            }
            Err(stop) => self.on_stop(stop),
        }
    }

    fn step_settling(&mut self) -> More {
        let (trees, cache) = (&mut self.trees, &mut self.cache);
        let (pins, kept) = (&mut self.pins, &mut self.kept);
        match self.settling.run(self.commit, trees, cache, pins, kept, &self.earlier) {
            Ok(reserve) => {
                self.exhausted = self.settling.is_exhausted();
                if let Err(what) = self.seal_root(reserve) {
                    self.fail(Error::Corrupt { blkno: self.root_blkno, what });
                    return More::No;
                }
                self.cache.release(&mut self.pins);
                self.pins.begin(self.job);
                self.cache.write_back();
                self.front = Front::Writing;
                More::Yes
            }
            Err(stop) => self.on_stop(stop),
        }
    }

    fn on_stop(&mut self, stop: Stop) -> More {
        match stop {
            Stop::Wait(Wait::Again) => More::Yes,
            Stop::Wait(Wait::Block(_) | Wait::Frame | Wait::Commit) => {
                self.runnable = false;
                More::No
            }
            Stop::Fail(error) => {
                self.fail(error);
                More::No
            }
        }
    }

    fn fail(&mut self, error: Error) {
        if self.front != Front::Failed {
            self.front = Front::Failed;
            self.event = Some(StoreEvent::Failed(error));
        }
    }

    /// Fixes what the root of this commit says. The trees may change again afterwards. A root that
    /// nobody would accept comes of trees that contradict each other.
    fn seal_root(&mut self, reserve: Reserve) -> Result<(), Corruption> {
        let mut fields = RootBlock::empty();
        self.trees.store(&mut fields);
        fields.term = self.term.into();
        fields.takeover = self.takeover.map(Into::into);
        if !is_active(Mutant::NoCommitReserve) {
            fields.reserve[..reserve.len()].copy_from_slice(&reserve);
        }
        let volume = self.volume.volume();
        let buffer = self.root_buffer.as_deref_mut().expect("no root is being written");
        self.root_blkno = Root::seal(&fields, &volume, self.commit, buffer);
        self.sealed = Some(Root::open(buffer, &volume, self.root_blkno, self.volume.blocks())?);
        self.reserve = reserve;
        Ok(())
    }

    fn step_writing(&mut self) -> More {
        if self.cache.step_write_back(SEALS_PER_STEP) == More::Yes {
            return More::Yes;
        }
        match self.cache.poll_written() {
            None => More::No,
            Some(Err(error)) => {
                self.fail(error);
                More::No
            }
            Some(Ok(())) => {
                (self.tail, self.wanted) = match is_active(Mutant::RootBeforeFlush) {
                    false => (Tail::FlushingBlocks, Some(Wanted::Flush)),
                    true => (Tail::WritingRoot, Some(Wanted::Root)),
                };
                self.commit = self.commit.next();
                let reserve = core::mem::take(&mut self.reserve);
                self.begin_commit(&reserve, MARGIN);
                self.front = Front::Open;
                More::Yes
            }
        }
    }

    /// The next request for the device.
    pub fn poll_request(&mut self) -> Option<BlockRequest<'m>> {
        if self.front == Front::Failed {
            return None;
        }
        if let Front::Loading { submitted, completed } = self.front
            && submitted < ROOTS
            && let Some(buffer) = self.ring_buffers.iter_mut().find_map(Option::take)
        {
            self.front = Front::Loading { submitted: submitted + 1, completed };
            let op = BlockOp::Read(ROOT_BLKNO.plus(submitted), buffer);
            return Some(BlockRequest { tag: Tag(TAG_RING + submitted), op });
        }
        match self.wanted.take() {
            Some(Wanted::Flush) => Some(BlockRequest { tag: TAG_FLUSH, op: BlockOp::Flush }),
            Some(Wanted::Root) => {
                let buffer = self.root_buffer.take().expect("sealed");
                let op = BlockOp::Write(self.root_blkno, buffer);
                Some(BlockRequest { tag: TAG_ROOT, op })
            }
            None => self.cache.poll_transfer(),
        }
    }

    /// Takes note of a finished request: one whose tag is below [`TAGS`](Self::TAGS).
    pub fn handle_completion(&mut self, completion: Completion<'m>) {
        if completion.tag.0 < Cache::TAGS {
            self.cache.handle_completion(completion);
            return;
        }
        let failed = |blkno| completion.result.err().map(|error| Error::Io { blkno, error });
        match completion.op {
            BlockOp::Flush => self.on_flushed(failed(BlockNo(0))),
            BlockOp::Write(blkno, buffer) => {
                self.root_buffer = Some(buffer);
                match failed(blkno) {
                    Some(error) => self.fail(error),
                    None => (self.tail, self.wanted) = (Tail::FlushingRoot, Some(Wanted::Flush)),
                }
            }
            BlockOp::Read(blkno, buffer) => self.on_ring_read(blkno, buffer, failed(blkno)),
        }
    }

    fn on_flushed(&mut self, failed: Option<Error>) {
        if let Some(error) = failed {
            self.fail(error);
            return;
        }
        match self.tail {
            Tail::FlushingBlocks => {
                (self.tail, self.wanted) = (Tail::WritingRoot, Some(Wanted::Root));
            }
            Tail::FlushingRoot => {
                self.tail = Tail::Durable;
                self.root = self.sealed.take();
                let commit = self.root.as_ref().expect("sealed").commit();
                if self.front != Front::Failed {
                    self.event = Some(StoreEvent::Durable(commit));
                }
            }
            Tail::Idle | Tail::WritingRoot | Tail::Durable => unreachable!("no flush was wanted"),
        }
    }

    fn on_ring_read(&mut self, blkno: BlockNo, buffer: &'m mut Block, failed: Option<Error>) {
        let opened = match failed {
            // A root that can't be read may be the newest: nobody may go on from an older one.
            Some(error) => {
                self.fail(error);
                None
            }
            None => Root::open(buffer, &self.volume.volume(), blkno, self.volume.blocks()).ok(),
        };
        let newer = |found: &Root| self.root.as_ref().is_none_or(|best| found.rank() > best.rank());
        if let Some(found) = opened.filter(newer) {
            self.root = Some(found);
        }
        let slot = self.ring_buffers.iter_mut().find(|slot| slot.is_none());
        *slot.expect("as many slots as buffers") = Some(buffer);
        let Front::Loading { submitted, completed } = self.front else { return };
        self.front = Front::Loading { submitted, completed: completed + 1 };
        if completed + 1 == ROOTS {
            self.on_loaded();
        }
    }

    fn on_loaded(&mut self) {
        let corrupt = |what| Error::Corrupt { blkno: ROOT_BLKNO, what };
        let Some(root) = &self.root else {
            return self.fail(corrupt(Corruption::Mismatch));
        };
        match Trees::open(root.fields(), self.volume.blocks()) {
            Ok(trees) => {
                self.trees = trees;
                self.front = Front::Loaded;
                self.event = Some(StoreEvent::Loaded);
            }
            Err(what) => self.fail(corrupt(what)),
        }
    }
}

/// The takeover reserves that a root of this term goes on naming: those of the rounds after it.
fn shifted(root: &Root, term: Term) -> [u64; TAKEOVER_ROUNDS] {
    let mut takeover = [0; TAKEOVER_ROUNDS];
    for (round, start) in (term.round() + 1..).zip(&mut takeover) {
        *start = root.takeover(round).map_or(0, |extent| extent.start().0);
    }
    takeover
}

/// Cuts takeover reserves for the rounds that have none off the end of an extent, as long as it
/// stays large enough for a commit. What is left of it.
fn name_rounds(taken: Extent, takeover: &mut [u64; TAKEOVER_ROUNDS]) -> Extent {
    let mut blocks = taken.len();
    for start in takeover.iter_mut().filter(|start| **start == 0) {
        if blocks < RESERVE_MIN + TAKEOVER_BLOCKS {
            break;
        }
        blocks -= TAKEOVER_BLOCKS;
        *start = taken.start().0 + blocks;
    }
    Extent::new(taken.start(), blocks)
}

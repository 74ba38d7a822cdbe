//! Transactions of a mount: what is dirty becomes runs on the device, and the server records them.
//!
//! ```text
//!           begin        all copied        all written       flushed         handle_done
//!   Idle ---------> Copying ------> Writing ------> Flushing ------> Ready ---------------> Idle
//!    ^                                 |  ^             | again, some     |
//!    |                                 |  +-------------+ times           |
//!    +------- the attempt has failed --+------------------ handle_failed -+
//! ```
//!
//! # Invariants
//!
//! * A transaction is cut between two runs of tasks: the items that are dirty, the blocks and
//!   numbers that are used, and the blocks that are freed, are those of the same changes.
//! * Nothing is begun that might not fit: blocks and numbers for the runs of all dirty items are
//!   reserved before, and memory for the largest transaction is carved. While items are copied
//!   there is no input or output, and nothing to wait for.
//! * What is sent has been flushed, and stays the same until it is answered: whichever server
//!   carries it out, carries it out once, by its number. An answer counts once, by the same.
//! * A failed attempt loses nothing: its items, and what it used and freed, are the open
//!   transaction's again. It has not used its number, because nobody has it but a server that says
//!   that nothing came of it.
//! * A run's number is used in one attempt only. So a late block of a failed one can't pass for one
//!   of its successor.
//! * Each block is written only within blocks lent to this mount for runs, which nobody reads
//!   before the server has recorded the transaction.
//!
//! # What changes bear
//!
//! Changes bear a number, by which locks and those who sync know when they are durable. Up to the
//! snapshot it is that of the open transaction. What comes after the snapshot belongs to the next
//! one, of which the server has said nothing yet; if it bore the same number, the end of the first
//! would pass for its own. So from the snapshot to the answer changes bear the number that follows.
//! The next transaction's own is that or a later one.
//!
//! So what a transaction lacks bears a number above the one that it names, which is that of the
//! open transaction. Servers count on that when they say up to which number nothing more will come.
//!
//! # When the device fails
//!
//! A block whose writing fails is written again, `TRIES` times. It is ours, and in memory.
//!
//! A flush that fails says nothing of what was lost before it: everything that was written since
//! the last one that succeeded may be. Of that the runs are in memory. So all of them are written
//! again, and flushed. File data are not: they were answered when they were written, and their
//! memory went back. They may be lost whatever this mount does, also when the next flush succeeds,
//! and nobody knows which. So [`Committer::write_errors`] counts it, and who asks whether data are
//! durable must be told [`Io`](super::op::OpError::Io) from then on, as long as it can't be said
//! that they were written later. Metadata goes on: to give it up would turn lost data of a few
//! files into lost changes of all of them, and a mount that can commit can still be moved away from
//! the device in good order.
//!
//! # When the server refuses
//!
//! A refusal has changed nothing at the server. [`Busy`](ErrorCode::Busy), [`Io`](ErrorCode::Io)
//! and [`NoSpace`](ErrorCode::NoSpace) are the server's trouble, and pass: begin again after a
//! pause. [`Invalid`](ErrorCode::Invalid), [`TooMany`](ErrorCode::TooMany) and
//! [`Stale`](ErrorCode::Stale) say that server and mount don't agree about what is lent or which
//! transaction is open: nothing more of this mount will become durable. Trying again harms nobody,
//! but whoever drives this ends the mount after some tries. [`Evicted`](ErrorCode::Evicted) ends it
//! at once.
//!
//! What this module deliberately doesn't know: the network, and when a commit is due.

use super::extents::Span;
use super::items::{self, Generation, ItemCache};
use super::loans::{Loans, Piece};
use crate::arena::{Arena, ArenaFull};
use crate::format::block::Volume;
use crate::format::key::KeyBytes;
use crate::format::root::Extent;
use crate::format::run::{self, FILTER_ITEMS, INDEX_KEYS, ITEMS_BYTES, SEGMENT_BLOCKS};
use crate::format::super_block::Super;
use crate::format::wire::ErrorCode;
use crate::format::wire::message::{
    ExtentRecord, Extents, FREED_MAX, ManifestRoot, RUNS_MAX, RunRecord, Transaction,
    TransactionDone, USED_MAX,
};
use crate::format::{Block, BlockNo, CommitNo, Seq};
use crate::lsm::build::{
    BuildSpace, FILTER_BLOCKS_MAX, Refused, RunBuilder, Sealed, blocks_for, filter_blocks,
};
use crate::mutant::{Mutant, is_active};
use crate::node::More;
use heapless::Vec;
use outrider_hal::{BlockOp, BlockRequest, Completion, Tag};
use zerocopy::{FromBytes, FromZeros};

/// The flush. Writes have the tags behind it.
const TAG_FLUSH: Tag = Tag(0);
/// Writes under way at a time.
const WRITES_MAX: u32 = 32;
/// How often a block is written, and the device flushed, before the attempt has failed.
const TRIES: u8 = 4;

/// The size of a committer: the dirty budget of the item cache, all of which one transaction can
/// take. Or a part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CommitLimits {
    /// [`items::Limits::dirty_items`](super::items::Limits).
    pub dirty_items: u32,
    /// [`items::Limits::dirty_chunks`](super::items::Limits).
    pub dirty_chunks: u32,
}

impl CommitLimits {
    /// Blocks that the runs of the largest transaction need, in segments. None: they don't fit the
    /// runs that a transaction can have, and so the limits are not valid.
    #[must_use]
    pub fn run_blocks(&self) -> Option<u64> {
        let mut share = self.share();
        let mut blocks = 0;
        for _ in 0..RUNS_MAX {
            if share.bytes == 0 {
                break;
            }
            let run = share.blocks().unwrap_or(SEGMENT_BLOCKS);
            share.part(run)?;
            blocks += run;
        }
        (share.bytes == 0 && blocks > 0).then_some(blocks)
    }

    /// Blocks of memory for them, however the runs divide the items: each run may end with a block
    /// of each kind that is nearly empty, and one is needed to end a run.
    fn memory_blocks(&self) -> u32 {
        let Share { items, bytes } = self.share();
        let runs = RUNS_MAX as u64;
        let item_blocks = bytes.div_ceil(BYTES_USED_MIN) + runs;
        let index_blocks = item_blocks.div_ceil(INDEX_KEYS as u64) + runs;
        let filter_blocks = (items + runs) / u64::from(FILTER_ITEMS) + runs;
        (item_blocks + index_blocks + filter_blocks).min(runs * SEGMENT_BLOCKS) as u32 + 1
    }

    /// So many sixteenths of it.
    pub(super) fn sixteenths(&self, count: u32) -> CommitLimits {
        let part = |of: u32| (u64::from(of) * u64::from(count) / 16) as u32;
        CommitLimits { dirty_items: part(self.dirty_items), dirty_chunks: part(self.dirty_chunks) }
    }

    /// What it takes in runs at the most.
    pub(super) fn share(&self) -> Share {
        let bytes = bytes_max(self.dirty_items, self.dirty_chunks);
        Share { items: self.dirty_items.into(), bytes }
    }
}

/// Bytes of a full item block that are used at the least: the next item may have been of the
/// largest.
const BYTES_USED_MIN: u64 = ITEMS_BYTES as u64 - (run::VALUE_BYTES_MAX as u64 + ITEM_BYTES);

/// Bytes that an item without a value takes.
const ITEM_BYTES: u64 = size_of::<run::RunItemHeader>() as u64 + 2;

/// Bytes that so many items of the cache take in runs, at the most.
fn bytes_max(items: u32, chunks: u32) -> u64 {
    u64::from(items) * ITEM_BYTES + u64::from(chunks) * items::CHUNK_BYTES as u64
}

/// Items that have no run yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    /// How many.
    pub(super) items: u64,
    /// How many bytes they take in runs.
    pub(super) bytes: u64,
}

impl Share {
    /// Blocks of a run of all of them, if they make one.
    pub(super) fn blocks(&self) -> Option<u64> {
        blocks_for(self.items, self.bytes)
    }

    /// Takes out what a run of so many blocks holds at the least, and says how many of them are for
    /// its filter. None: a run of so few holds nothing.
    pub(super) fn part(&mut self, blocks: u64) -> Option<usize> {
        // How many items those are can be estimated only. A filter that is too small for them is
        // less sharp.
        let bytes = bytes_held(blocks, 1).min(self.bytes);
        let items = (self.items * bytes).div_ceil(self.bytes.max(1));
        let filter = filter_blocks(items);
        let held = bytes_held(blocks, filter as u64);
        self.items -= items;
        self.bytes = self.bytes.saturating_sub(held);
        (held > 0).then_some(filter)
    }
}

/// Bytes of items that a run of so many blocks, with so many for its filter, holds at the least.
fn bytes_held(blocks: u64, filter: u64) -> u64 {
    let keys = INDEX_KEYS as u64;
    blocks.saturating_sub(filter) * keys / (keys + 1) * BYTES_USED_MIN
}

/// Why no transaction can begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotNow {
    /// The number of the first transaction is not known: see [`Committer::open`].
    Closed,
    /// The last one has not ended, or [`Committer::step`] has not gone through its items.
    Busy,
    /// What was lent doesn't suffice for the runs. [`Loans::step`] asks for more; try again when
    /// its request was answered.
    Loan,
}

/// A transaction has become durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// All changes made under this number, and under lower ones, are durable.
    pub seq: Seq,
    /// No change that is still to become durable, of any mount, bears this number, or an earlier
    /// one.
    pub stable: Seq,
    /// The manifest with the transaction in it. The item cache knows of it.
    pub root: ManifestRoot,
}

/// An attempt has failed. Everything is as dirty as before; begin again, after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The device has refused a block several times.
    Write,
    /// The device has refused to flush several times.
    Flush,
    /// The server has.
    Refused(ErrorCode),
}

/// What happened so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Transactions that became durable.
    pub transactions: u64,
    /// Attempts that failed.
    pub failures: u64,
    /// Runs written.
    pub runs: u64,
    /// Items in them.
    pub items: u64,
    /// Blocks written, again ones included.
    pub blocks: u64,
    /// Blocks whose writing failed and was tried again.
    pub writes_failed: u64,
    /// Flushes that succeeded.
    pub flushes: u64,
    /// Flushes that failed.
    pub flushes_failed: u64,
}

/// Where the transaction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// There is none.
    Idle,
    /// Its items are being copied.
    Copying,
    /// Its blocks are being written.
    Writing,
    /// All are written; `asked`: the device has been asked to flush.
    Flushing { asked: bool },
    /// It is, or is to be, at the server.
    Ready { sent: bool },
    /// It has failed, and waits for the device to give back what it has.
    Failing(Failure),
}

/// What is to happen to a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    UnderWay,
    Written,
}

/// A block of a run.
struct Slot<'m> {
    blkno: BlockNo,
    /// None while the device has it.
    block: Option<&'m mut Block>,
    state: State,
    failures: u8,
}

/// The blocks.
struct Blocks<'m> {
    /// Those that are not in use: the first so many.
    spare: &'m mut [Option<&'m mut Block>],
    spare_len: usize,
    /// Those of the runs.
    slots: &'m mut [Slot<'m>],
    len: usize,
    /// The slots before this one are not waiting.
    next: usize,
    written: usize,
    in_flight: u32,
}

impl<'m> Blocks<'m> {
    fn carve(arena: &mut Arena<'m>, count: u32) -> Result<Blocks<'m>, ArenaFull> {
        let mut blocks = arena.slice(count, |_| Block::ZERO)?.iter_mut();
        let spare = arena.slice(count, |_| blocks.next())?;
        let empty = |_| Slot { blkno: BlockNo(0), block: None, state: State::Waiting, failures: 0 };
        let slots = arena.slice(count, empty)?;
        let spare_len = spare.len();
        Ok(Blocks { spare, spare_len, slots, len: 0, next: 0, written: 0, in_flight: 0 })
    }

    fn take(&mut self) -> &'m mut Block {
        let last = self.spare_len.checked_sub(1).expect("there are enough for all dirty items");
        self.spare_len = last;
        self.spare[last].take().expect("the first so many are there")
    }

    fn put(&mut self, block: &'m mut Block) {
        self.spare[self.spare_len] = Some(block);
        self.spare_len += 1;
    }

    fn keep(&mut self, sealed: Sealed<'m>) {
        let Sealed { blkno, block } = sealed;
        let slot = Slot { blkno, block: Some(block), state: State::Waiting, failures: 0 };
        self.slots[self.len] = slot;
        self.len += 1;
    }

    /// All are to be written again.
    fn rewind(&mut self) {
        self.slots[..self.len].iter_mut().for_each(|slot| slot.state = State::Waiting);
        (self.next, self.written) = (0, 0);
    }

    /// None is needed any more, and none is under way.
    fn clear(&mut self) {
        assert_eq!(self.in_flight, 0);
        for index in 0..self.len {
            let block = self.slots[index].block.take().expect("the device has given it back");
            self.put(block);
        }
        (self.len, self.next, self.written) = (0, 0, 0);
    }

    /// The next block to write.
    fn poll(&mut self) -> Option<BlockRequest<'m>> {
        if self.in_flight >= WRITES_MAX {
            return None;
        }
        while self.next < self.len && self.slots[self.next].state != State::Waiting {
            self.next += 1;
        }
        let slot = self.slots[..self.len].get_mut(self.next)?;
        slot.state = State::UnderWay;
        let tag = Tag(TAG_FLUSH.0 + 1 + self.next as u64);
        let block = slot.block.take().expect("it waits");
        self.in_flight += 1;
        Some(BlockRequest { tag, op: BlockOp::Write(slot.blkno, block) })
    }

    /// A write has ended. Says how often this block could not be written.
    fn handle(&mut self, tag: Tag, block: &'m mut Block, ok: bool) -> u8 {
        let index = (tag.0 - TAG_FLUSH.0 - 1) as usize;
        let slot = &mut self.slots[..self.len][index];
        slot.block = Some(block);
        self.in_flight -= 1;
        if ok {
            slot.state = State::Written;
            self.written += 1;
        } else {
            slot.state = State::Waiting;
            slot.failures += 1;
            self.next = self.next.min(index);
        }
        slot.failures
    }
}

/// See the module.
pub struct Committer<'m> {
    volume: Volume,
    filter_key: [u8; 16],
    limits: CommitLimits,
    /// What fitted the pieces that were lent when the last transaction began.
    fitted: CommitLimits,
    /// What that one has taken at the most, while it is under way.
    taken: CommitLimits,
    phase: Phase,
    /// What of the item cache the transaction has taken; none if it has no items.
    generation: Option<Generation>,
    space: Option<BuildSpace<'m>>,
    /// The run being built, in the first of the pieces.
    builder: Option<RunBuilder<'m>>,
    pieces: Vec<Piece, RUNS_MAX>,
    blocks: Blocks<'m>,
    flushes_failed: u8,
    runs: &'m mut [RunRecord],
    runs_len: usize,
    used: &'m mut [ExtentRecord],
    used_len: usize,
    freed: &'m mut [ExtentRecord],
    freed_len: usize,
    root: CommitNo,
    /// The last transaction that was answered.
    number: u64,
    /// What the server calls the next one; none before it has said so.
    open: Option<Seq>,
    /// What changes bear now.
    seq: Seq,
    /// What the last changes bear that the transaction has.
    snapshot: Seq,
    committed: Seq,
    failure: Option<Failure>,
    counters: Counters,
}

impl<'m> Committer<'m> {
    /// Tags of its block requests are below this.
    pub const TAGS: u64 = TAG_FLUSH.0 + 1 + RUNS_MAX as u64 * SEGMENT_BLOCKS;

    /// Carves a committer of this volume, with nothing begun. The limits must be valid: see
    /// [`CommitLimits::run_blocks`].
    pub fn carve(
        arena: &mut Arena<'m>,
        limits: &CommitLimits,
        volume: &Super,
    ) -> Result<Committer<'m>, ArenaFull> {
        assert!(limits.run_blocks().is_some());
        let extent = |_| ExtentRecord::new_zeroed();
        Ok(Committer {
            volume: volume.volume(),
            filter_key: volume.fields().name_key,
            limits: *limits,
            fitted: *limits,
            taken: CommitLimits::default(),
            phase: Phase::Idle,
            generation: None,
            space: Some(BuildSpace::carve(arena)?),
            builder: None,
            pieces: Vec::new(),
            blocks: Blocks::carve(arena, limits.memory_blocks())?,
            flushes_failed: 0,
            runs: arena.slice(RUNS_MAX as u32, |_| RunRecord::new_zeroed())?,
            runs_len: 0,
            used: arena.slice(USED_MAX as u32, extent)?,
            used_len: 0,
            freed: arena.slice(FREED_MAX as u32, extent)?,
            freed_len: 0,
            root: CommitNo(0),
            number: 0,
            open: None,
            seq: Seq(0),
            snapshot: Seq(0),
            committed: Seq(0),
            failure: None,
            counters: Counters::default(),
        })
    }

    /// Tells the number of the first transaction, from the first
    /// [`RootNow`](crate::format::wire::message::RootNow) of this mount. Later calls, and a number
    /// that can't be one, change nothing.
    pub fn open(&mut self, seq: Seq) {
        if self.open.is_none() && seq != Seq(0) {
            self.open = Some(seq);
            self.seq = seq;
        }
    }

    /// The number that changes made now bear: it goes into [`fs::Context::seq`](super::fs::Context)
    /// and so to the locks. Grows with each [`begin`](Self::begin), and may with each
    /// [`handle_done`](Self::handle_done). None until [`open`](Self::open).
    #[must_use]
    pub fn seq(&self) -> Option<Seq> {
        self.open.map(|_| self.seq)
    }

    /// All changes that bear this number, or a lower one, are durable.
    #[must_use]
    pub fn committed(&self) -> Seq {
        self.committed
    }

    /// How much may be dirty, what is under way counted, so that the next transaction fits what is
    /// lent now, and also if it has to take what the one under way had.
    ///
    /// It is less than the whole budget while the longest pieces for runs, of which a transaction
    /// can name some only, hold less: on a fragmented volume commits are smaller, and come sooner.
    pub fn dirty_max(&mut self, loans: &Loans<'_>) -> CommitLimits {
        let fits = loans.fitting();
        if self.is_idle() {
            self.fitted = fits;
            return fits;
        }
        let (taken, fitted) = (&self.taken, &self.fitted);
        CommitLimits {
            dirty_items: (taken.dirty_items + fits.dirty_items).min(fitted.dirty_items),
            dirty_chunks: (taken.dirty_chunks + fits.dirty_chunks).min(fitted.dirty_chunks),
        }
    }

    /// Begins a transaction of everything dirty, used and freed up to now, written over this
    /// manifest; of nothing, if there is nothing, which is for who waits for a number to pass.
    ///
    /// Changes wait ([`items::Wait::Snapshot`](super::items::Wait)) until [`step`](Self::step) has
    /// copied all items: see [`is_copying`](Self::is_copying).
    pub fn begin(
        &mut self,
        items: &mut ItemCache<'_>,
        loans: &mut Loans<'_>,
        root: CommitNo,
    ) -> Result<Option<Generation>, NotNow> {
        if self.open.is_none() {
            return Err(NotNow::Closed);
        }
        if !self.is_idle() {
            return Err(NotNow::Busy);
        }
        let usage = items.usage();
        let (count, chunks) = (usage.dirty_items, usage.dirty_chunks);
        assert!(count <= self.limits.dirty_items && chunks <= self.limits.dirty_chunks);
        let takes = CommitLimits { dirty_items: count, dirty_chunks: chunks };
        let fitted = loans.fitting();
        let pieces = loans.reserve(takes.share()).ok_or(NotNow::Loan)?;
        (self.taken, self.fitted) = (takes, fitted);
        self.generation = match items.commit_begin() {
            Ok(generation) => Some(generation),
            Err(items::NotNow::Clean) => None,
            Err(items::NotNow::Busy) => {
                pieces.iter().for_each(|piece| loans.forfeit(piece, 0, false));
                return Err(NotNow::Busy);
            }
        };
        (self.used_len, self.freed_len) = loans.cut(self.used, self.freed);
        self.pieces = pieces;
        self.runs_len = 0;
        self.flushes_failed = 0;
        self.root = root;
        assert!(Some(self.seq) >= self.open, "what changes bear never falls behind");
        self.snapshot = self.seq;
        self.seq = self.seq.next();
        self.phase = match self.generation {
            Some(_) => Phase::Copying,
            None => Phase::Ready { sent: false },
        };
        Ok(self.generation)
    }

    /// Copies up to `budget` items, or lets the item cache go through as many of a transaction that
    /// has ended.
    pub fn step(&mut self, items: &mut ItemCache<'_>, loans: &mut Loans<'_>, budget: u32) -> More {
        match self.phase {
            Phase::Idle => return items.step(budget),
            Phase::Copying => return self.copy(items, loans, budget),
            Phase::Failing(failure) if self.blocks.in_flight == 0 => {
                self.fail(items, loans, failure);
                return More::Yes;
            }
            Phase::Writing | Phase::Flushing { .. } | Phase::Ready { .. } | Phase::Failing(_) => {}
        }
        More::No
    }

    fn copy(&mut self, items: &mut ItemCache<'_>, loans: &mut Loans<'_>, budget: u32) -> More {
        for _ in 0..budget {
            let Some(item) = items.commit_peek() else {
                self.close_run(loans);
                self.pieces.iter().for_each(|piece| loans.forfeit(piece, 0, false));
                self.pieces.clear();
                self.phase = Phase::Writing;
                return More::No;
            };
            let mut buffer = [0; items::VALUE_BYTES_MAX];
            let value = item.value.map(|value| &*value.copy_to(&mut buffer));
            let value = value.map_or(run::Value::Tombstone, run::Value::Bytes);
            let key = KeyBytes::read_from_bytes(&item.key).expect("as many bytes");
            self.push(loans, &key, &value);
            self.counters.items += 1;
            items.commit_advance();
        }
        More::Yes
    }

    /// Appends an item to the run being built, or to the next one if that is full.
    fn push(&mut self, loans: &mut Loans<'_>, key: &KeyBytes, value: &run::Value<'_>) {
        loop {
            let builder = match &mut self.builder {
                Some(builder) => builder,
                None => {
                    let builder = self.open_run();
                    self.builder.insert(builder)
                }
            };
            match builder.push(key, value) {
                Ok(()) => return,
                Err(Refused::Block) => {
                    if let Some(sealed) = builder.turn(self.blocks.take()) {
                        self.blocks.keep(sealed);
                    }
                }
                Err(Refused::Full) => self.close_run(loans),
            }
        }
    }

    fn open_run(&mut self) -> RunBuilder<'m> {
        let piece = self.pieces.first().expect("there is room for all that was dirty");
        let mut filter: Vec<&'m mut Block, FILTER_BLOCKS_MAX> = Vec::new();
        for _ in 0..piece.filter_blocks {
            let added = filter.push(self.blocks.take());
            assert!(added.is_ok(), "no run has more");
        }
        let at = Extent::new(BlockNo(piece.blocks.first), piece.blocks.len.into());
        let space = self.space.take().expect("no run is being built");
        RunBuilder::new(&self.volume, &self.filter_key, piece.id, at, space, filter)
    }

    /// Ends the run being built, if there is one.
    fn close_run(&mut self, loans: &mut Loans<'_>) {
        let Some(mut builder) = self.builder.take() else { return };
        loop {
            let (sealed, unused) = builder.finish(self.blocks.take());
            if let Some(block) = unused {
                self.blocks.put(block);
            }
            match sealed {
                Some(sealed) => self.blocks.keep(sealed),
                None => break,
            }
        }
        let (entry, space) = builder.entry();
        self.space = Some(space);
        let piece = self.pieces.remove(0);
        loans.forfeit(&piece, entry.blocks() as u32, true);
        self.runs[self.runs_len] = RunRecord::new(&entry);
        self.runs_len += 1;
        self.counters.runs += 1;
    }

    /// Whether changes wait for [`step`](Self::step). When that ends, run what waits for
    /// [`fs::Wait::Snapshot`](super::fs::Wait).
    #[must_use]
    pub fn is_copying(&self) -> bool {
        self.phase == Phase::Copying
    }

    /// Whether nothing is begun.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.phase == Phase::Idle
    }

    /// The transaction, from when it may be sent until it is answered; the same all the time.
    #[must_use]
    pub fn transaction(&self) -> Option<Transaction<'_>> {
        let (Phase::Ready { .. }, Some(seq)) = (self.phase, self.open) else { return None };
        let used = Extents::new(&self.used[..self.used_len]).expect("of our own making");
        let freed = Extents::new(&self.freed[..self.freed_len]).expect("of our own making");
        let runs = &self.runs[..self.runs_len];
        let made = Transaction::new(self.number + 1, seq, self.root, runs, used, freed);
        Some(made.expect("of our own making"))
    }

    /// Whether there is a transaction which has still to be given to the session. That sends it
    /// again when needed.
    #[must_use]
    pub fn is_unsent(&self) -> bool {
        self.phase == (Phase::Ready { sent: false })
    }

    /// The session has taken the transaction.
    pub fn handle_sent(&mut self) {
        if self.is_unsent() {
            self.phase = Phase::Ready { sent: true };
        }
    }

    /// Takes note of an answer. None: it is not that of the transaction that was sent, but of one
    /// that was answered before.
    ///
    /// After it, [`committed`](Self::committed) is for the locks and for who waits for
    /// [`fs::Wait::Commit`](super::fs::Wait).
    pub fn handle_done(
        &mut self,
        items: &mut ItemCache<'_>,
        loans: &mut Loans<'_>,
        done: &TransactionDone<'_>,
    ) -> Option<Committed> {
        if self.phase != (Phase::Ready { sent: true }) || done.number != self.number + 1 {
            return None;
        }
        match self.generation.take() {
            Some(generation) => {
                let ended = items.commit_done(generation, done.root.commit);
                assert!(ended, "its items have been copied");
            }
            None => items.note_root(done.root.commit),
        }
        loans.settle();
        loans.accept(&done.lent);
        self.phase = Phase::Idle;
        self.number = done.number;
        self.open = Some(done.seq_next);
        self.committed = self.snapshot;
        self.seq = self.seq.max(done.seq_next);
        self.counters.transactions += 1;
        Some(Committed { seq: self.committed, stable: done.seq_stable, root: done.root })
    }

    /// The server has refused the transaction that was sent. It has changed nothing there, and
    /// nothing is lost here: see [`poll_failure`](Self::poll_failure).
    pub fn handle_refused(
        &mut self,
        items: &mut ItemCache<'_>,
        loans: &mut Loans<'_>,
        error: ErrorCode,
    ) {
        if self.phase == (Phase::Ready { sent: true }) {
            self.fail(items, loans, Failure::Refused(error));
        }
    }

    /// Ends an attempt. What it has taken is as it was before it.
    fn fail(&mut self, items: &mut ItemCache<'_>, loans: &mut Loans<'_>, failure: Failure) {
        if let Some(generation) = self.generation.take() {
            let ended = items.commit_failed(generation);
            assert!(ended, "it was begun");
        }
        for run in &self.runs[..self.runs_len] {
            let blocks = Span { first: run.entry.blkno.get(), len: run.entry.blocks() as u32 };
            loans.restore_run(run.entry.run(), blocks);
        }
        loans.restore(&self.used[..self.used_len], &self.freed[..self.freed_len]);
        self.blocks.clear();
        self.phase = Phase::Idle;
        self.failure = Some(failure);
        self.counters.failures += 1;
    }

    /// The attempt that has failed since this was last asked.
    pub fn poll_failure(&mut self) -> Option<Failure> {
        self.failure.take()
    }

    /// How many flushes have failed, each of which may have lost file data written before it: see
    /// the module.
    #[must_use]
    pub fn write_errors(&self) -> u64 {
        self.counters.flushes_failed
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The next request for the device.
    pub fn poll_request(&mut self) -> Option<BlockRequest<'m>> {
        match self.phase {
            Phase::Writing => self.blocks.poll(),
            Phase::Flushing { asked: false } => {
                self.phase = Phase::Flushing { asked: true };
                Some(BlockRequest { tag: TAG_FLUSH, op: BlockOp::Flush })
            }
            Phase::Idle
            | Phase::Copying
            | Phase::Flushing { asked: true }
            | Phase::Ready { .. }
            | Phase::Failing(_) => None,
        }
    }

    /// Takes note of a finished request: one whose tag is below [`TAGS`](Self::TAGS).
    pub fn handle_completion(&mut self, completion: Completion<'m>) {
        let Completion { tag, op, result } = completion;
        match op {
            BlockOp::Write(_, block) => self.on_written(tag, block, result.is_ok()),
            BlockOp::Flush => self.on_flushed(result.is_ok()),
            BlockOp::Read(..) => unreachable!("nothing is read"),
        }
    }

    fn on_written(&mut self, tag: Tag, block: &'m mut Block, ok: bool) {
        self.counters.blocks += 1;
        self.counters.writes_failed += u64::from(!ok);
        let failures = self.blocks.handle(tag, block, ok);
        match self.phase {
            Phase::Writing if !ok && failures >= TRIES => {
                self.phase = Phase::Failing(Failure::Write);
            }
            Phase::Writing if self.blocks.written == self.blocks.len => {
                match is_active(Mutant::TransactionBeforeFlush) {
                    false => self.phase = Phase::Flushing { asked: false },
                    true => self.on_flushed(true),
                }
            }
            Phase::Writing
            | Phase::Failing(_)
            | Phase::Idle
            | Phase::Copying
            | Phase::Flushing { .. }
            | Phase::Ready { .. } => {}
        }
    }

    fn on_flushed(&mut self, ok: bool) {
        if ok {
            self.counters.flushes += 1;
            self.blocks.clear();
            self.phase = Phase::Ready { sent: false };
            return;
        }
        self.counters.flushes_failed += 1;
        self.flushes_failed += 1;
        self.blocks.rewind();
        self.phase = match self.flushes_failed < TRIES {
            true => Phase::Writing,
            false => Phase::Failing(Failure::Flush),
        };
    }

    /// Requests that the device has not given back.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.blocks.in_flight + u32::from(self.phase == (Phase::Flushing { asked: true }))
    }
}

#[cfg(test)]
mod tests;

//! Makes a volume: the fixed blocks, and a first commit that holds free space and the root
//! directory.
//!
//! ```text
//!  Unmake ----> Clear -------> Record -------> Commit ------> Spare -----> Publish ----> done
//!  the super    the rest of    the root        the store's    the spare    the super
//!  block: zero  the fixed      directory       first commit   super block  block
//!  flush        blocks         joins commit 1                 flush        flush
//! ```
//!
//! # Invariants
//!
//! * Until the last write nobody finds a volume: what stood in the place of the super block is
//!   gone, durably, before anything else is overwritten, and the new one is written when all it
//!   leads to is durable. So a volume that was there is whole or gone, and the new one is whole or
//!   not there.
//! * Trees and root are made by the same [`Store`] that serves the volume later; only the run of
//!   the root directory and the fixed blocks are written from here.
//! * Any failed transfer ends it. Nothing is tried again, and nothing is written after it.
//!
//! What this module deliberately doesn't know: what stood on the device before, and who is to be
//! asked whether that may go.

use crate::arena::{Arena, ArenaFull};
use crate::block::{Limits, Pins, RequestId};
use crate::error::{Corruption, Error, Stop};
use crate::format::item::{FileKind, Inode, InodeRecord, Time};
use crate::format::key::{FIRST_POS, Key, KeyBytes};
use crate::format::layout::{FIRST_BLKNO, QUORUM_BLKNO, SUPER_BLKNO, spare_blkno};
use crate::format::quorum::{Slot, emit_blank};
use crate::format::records::{ManifestEntry, ManifestKey};
use crate::format::root::Extent;
use crate::format::run::Value;
use crate::format::super_block::{Identity, Super};
use crate::format::{Block, BlockNo, Ino, RunId, Seq};
use crate::lsm::build::{BuildSpace, RunBuilder, Sealed};
use crate::node::{Action, Event, More, Node};
use crate::txn::store::{Store, StoreEvent};
use outrider_hal::{BlockOp, BlockRequest, Completion, Instant, StreamId, Tag};
use zerocopy::IntoBytes;

/// What the store of a volume being made needs.
const LIMITS: Limits = Limits {
    // The dirty ones, and a plan's.
    frames: 352,
    // A plan, what it adds, and what settling may change.
    dirty: 256,
    pins: 96,
    creates: 40,
    // The store's own job, and the root directory.
    requests: 2,
    // The extents of a root's reserve.
    fresh: 64,
    freed: 256,
};
/// Writes of fixed blocks in flight.
const BUFFERS: usize = 16;
/// Blocks of the root directory's run: one of items, one of index, one of filter.
const RUN_BLOCKS: u64 = 3;
/// The level of that run: one that was never a client's.
const RUN_LEVEL: u8 = 1;
/// Transaction that made the root directory.
const SEQ: Seq = Seq(1);
const RUN: RunId = RunId(1);
const ROOT_INO: Ino = Ino(1);

const STORE_JOB: RequestId = RequestId { index: 0, generation: 0 };
const RECORD_JOB: RequestId = RequestId { index: 1, generation: 0 };
const TAG_WRITE: Tag = Tag(Store::TAGS);
const TAG_FLUSH: Tag = Tag(Store::TAGS + 1);

/// What a volume is to be.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Its number, name, size, voters, and secrets.
    pub identity: Identity,
    /// The present, for the root directory.
    pub now: Time,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Unmake,
    Clear,
    Record,
    Commit,
    Spare,
    Publish,
    Done,
    Failed,
}

/// A volume being made.
pub struct Mkfs<'m> {
    volume: Super,
    now: Time,
    phase: Phase,
    store: Store<'m>,
    pins: Pins<'m>,
    space: Option<BuildSpace<'m>>,
    buffers: heapless::Vec<&'m mut Block, BUFFERS>,
    /// Blocks of the run that are to be written.
    sealed: heapless::Vec<Sealed<'m>, { RUN_BLOCKS as usize }>,
    /// Which write of the phase comes next.
    next: u64,
    in_flight: u32,
    flush: Flush,
    outcome: Option<Result<(), Error>>,
}

/// The flush that ends a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flush {
    Ahead,
    InFlight,
    Done,
}

impl<'m> Mkfs<'m> {
    /// Carves what making this volume takes, or what about the identity is unusable.
    pub fn carve(
        arena: &mut Arena<'m>,
        recipe: &Recipe,
    ) -> Result<Result<Mkfs<'m>, Corruption>, ArenaFull> {
        let volume = match Super::new(&recipe.identity) {
            Ok(volume) => volume,
            Err(what) => return Ok(Err(what)),
        };
        let store = Store::carve(arena, &LIMITS, &volume, STORE_JOB)?;
        let mut pins = Pins::carve(arena, &LIMITS)?;
        pins.begin(RECORD_JOB);
        let space = BuildSpace::carve(arena)?;
        let blocks = arena.slice(BUFFERS as u32, |_| Block::ZERO)?;
        Ok(Ok(Mkfs {
            volume,
            now: recipe.now,
            phase: Phase::Unmake,
            store,
            pins,
            space: Some(space),
            buffers: blocks.iter_mut().collect(),
            sealed: heapless::Vec::new(),
            next: 0,
            in_flight: 0,
            flush: Flush::Ahead,
            outcome: None,
        }))
    }

    /// How it ended: once, when it has.
    pub fn poll_outcome(&mut self) -> Option<Result<(), Error>> {
        self.outcome.take()
    }

    fn enter(&mut self, phase: Phase) {
        (self.phase, self.next, self.flush) = (phase, 0, Flush::Ahead);
    }

    fn fail(&mut self, error: Error) {
        if self.phase != Phase::Failed {
            self.enter(Phase::Failed);
            self.outcome = Some(Err(error));
        }
    }

    /// Where write number `index` of this phase goes.
    fn target(&self, index: u64) -> Option<BlockNo> {
        let spare = spare_blkno(self.volume.blocks());
        match self.phase {
            Phase::Unmake | Phase::Publish => (index == 0).then_some(SUPER_BLKNO),
            Phase::Clear if index == SUPER_BLKNO.0 => Some(spare),
            Phase::Clear => (index < FIRST_BLKNO.0).then_some(BlockNo(index)),
            Phase::Spare => (index == 0).then_some(spare),
            Phase::Record | Phase::Commit | Phase::Done | Phase::Failed => None,
        }
    }

    fn fill(&self, blkno: BlockNo, block: &mut Block) {
        block.0.fill(0);
        let slot = blkno.0.checked_sub(QUORUM_BLKNO.0).and_then(|slot| u8::try_from(slot).ok());
        match (self.phase, slot.and_then(Slot::new)) {
            (Phase::Spare | Phase::Publish, _) => self.volume.seal(block, blkno),
            (Phase::Clear, Some(slot)) => {
                emit_blank(block, &self.volume.volume(), QUORUM_BLKNO, slot);
            }
            (Phase::Unmake | Phase::Clear, _) => {}
            (Phase::Record | Phase::Commit | Phase::Done | Phase::Failed, _) => {
                unreachable!("a phase without targets")
            }
        }
    }

    /// The next request of a phase that writes fixed blocks.
    fn next_write(&mut self) -> Option<BlockRequest<'m>> {
        if let Some(blkno) = self.target(self.next) {
            let buffer = self.buffers.pop()?;
            self.fill(blkno, buffer);
            self.next += 1;
            self.in_flight += 1;
            return Some(BlockRequest { tag: TAG_WRITE, op: BlockOp::Write(blkno, buffer) });
        }
        let ended = self.in_flight == 0 && self.flush == Flush::Ahead;
        if !ended || self.phase == Phase::Clear {
            return None;
        }
        self.flush = Flush::InFlight;
        Some(BlockRequest { tag: TAG_FLUSH, op: BlockOp::Flush })
    }

    fn poll_request(&mut self) -> Option<BlockRequest<'m>> {
        match self.phase {
            Phase::Unmake | Phase::Clear | Phase::Spare | Phase::Publish => self.next_write(),
            Phase::Record | Phase::Commit => match self.sealed.pop() {
                Some(Sealed { blkno, block }) => {
                    self.in_flight += 1;
                    Some(BlockRequest { tag: TAG_WRITE, op: BlockOp::Write(blkno, block) })
                }
                None => self.store.poll_request(),
            },
            Phase::Done | Phase::Failed => None,
        }
    }

    fn on_completed(&mut self, completion: Completion<'m>) {
        if completion.tag.0 < Store::TAGS {
            self.store.handle_completion(completion);
            return;
        }
        let blkno = match completion.op {
            BlockOp::Read(blkno, buffer) | BlockOp::Write(blkno, buffer) => {
                self.in_flight -= 1;
                self.buffers.push(buffer).map_err(drop).expect("no more than were carved");
                blkno
            }
            BlockOp::Flush => {
                self.flush = Flush::Done;
                SUPER_BLKNO
            }
        };
        if let Err(error) = completion.result {
            self.fail(Error::Io { blkno, error });
        }
    }

    /// The root directory joins the first commit: space for its run is taken, and the run recorded.
    fn record(&mut self) -> Result<(), Stop> {
        let (trees, cache) = (&mut self.store.trees, &mut self.store.cache);
        let Some(whole) = trees.free.find(RUN_BLOCKS, cache, &mut self.pins)? else {
            return Err(Error::NoSpace.into());
        };
        if whole.len() < RUN_BLOCKS {
            return Err(Error::NoSpace.into());
        }
        let part = Extent::new(whole.start(), RUN_BLOCKS);
        let items = Self::items(self.now);
        let key = ManifestKey { level: RUN_LEVEL, first: items[0].0, order: 0.into() };
        let mut plan = cache.plan();
        let take = trees.free.plan_take(whole, part, &mut plan, cache, &mut self.pins)?;
        let bytes = size_of::<ManifestEntry>();
        trees.manifest.plan_insert(key.as_bytes(), bytes, &mut plan, cache, &mut self.pins)?;
        let mut update = cache.reserve(&plan, &mut self.pins)?;
        let part = trees.free.take(take, &mut update, cache);
        let space = self.space.take().expect("recorded once");
        let mut fresh = || self.buffers.pop().expect("nothing is being written");
        let blocks = core::array::from_fn(|_| fresh());
        let Built { entry, sealed, unused } = build(&self.volume, part, &items, space, blocks);
        self.sealed = sealed.into_iter().collect();
        self.buffers.push(unused).map_err(drop).expect("it was taken from there");
        trees.manifest.put(key.as_bytes(), entry.as_bytes(), &mut update, cache);
        trees.level_runs[usize::from(RUN_LEVEL)] += 1;
        trees.next_run = RUN.next();
        trees.next_seq = SEQ.next();
        cache.release(&mut self.pins);
        Ok(())
    }

    /// The items of an empty root directory, in key order.
    fn items(now: Time) -> [RootItem; 2] {
        let inode = Inode {
            kind: FileKind::Directory,
            permissions: 0o755,
            truncating: false,
            size: 0,
            meta_seq: SEQ,
            data_seq: Seq(0),
            data_version: 0,
            online_blocks: 0,
            offline_blocks: 0,
            next_readdir_pos: FIRST_POS,
            next_xattr_id: 0,
            nlink: 2,
            uid: 0,
            gid: 0,
            rdev: 0,
            atime: now,
            ctime: now,
            mtime: now,
            crtime: now,
        };
        [
            (Key::meta_seq(SEQ, ROOT_INO).into(), None),
            (Key::inode(ROOT_INO).into(), Some(inode.emit())),
        ]
    }

    fn step_store(&mut self) -> More {
        let mut woken = false;
        while self.store.poll_wake().is_some() {
            woken = true;
        }
        let more = self.store.step();
        match self.store.poll_event() {
            Some(StoreEvent::Durable(commit)) => {
                self.store.confirm(commit);
                self.enter(Phase::Spare);
                return More::Yes;
            }
            Some(StoreEvent::Failed(error)) => self.fail(error),
            Some(StoreEvent::Loaded | StoreEvent::Refused(_)) => {
                unreachable!("nothing was loaded")
            }
            None => {}
        }
        if woken { More::Yes } else { more }
    }

    fn step_record(&mut self) -> More {
        let more = self.step_store();
        if self.phase != Phase::Record || self.store.open_commit().is_none() {
            return more;
        }
        match self.record() {
            Ok(()) => {
                self.phase = Phase::Commit;
                More::Yes
            }
            Err(Stop::Wait(_)) => more,
            Err(Stop::Fail(error)) => {
                self.fail(error);
                More::No
            }
        }
    }

    fn step_commit(&mut self) -> More {
        // The commit flushes what has been written by then: the run and the fixed blocks.
        let written = self.sealed.is_empty() && self.in_flight == 0;
        if self.next == 0 && written {
            self.next = 1;
            self.store.commit();
        }
        self.step_store()
    }

    fn step_fixed(&mut self) -> More {
        let written = self.target(self.next).is_none() && self.in_flight == 0;
        let flushed = self.flush == Flush::Done;
        let next = match self.phase {
            Phase::Unmake if flushed => Phase::Clear,
            Phase::Clear if written => Phase::Record,
            Phase::Spare if flushed => Phase::Publish,
            Phase::Publish if flushed => Phase::Done,
            Phase::Unmake | Phase::Clear | Phase::Spare | Phase::Publish => return More::No,
            Phase::Record | Phase::Commit | Phase::Done | Phase::Failed => return More::No,
        };
        self.enter(next);
        match next {
            Phase::Record => self.store.format(),
            Phase::Done => self.outcome = Some(Ok(())),
            Phase::Unmake | Phase::Clear | Phase::Commit => {}
            Phase::Spare | Phase::Publish | Phase::Failed => {}
        }
        More::Yes
    }
}

/// A key of a new volume, and its value if it has one.
type RootItem = (KeyBytes, Option<InodeRecord>);

/// What building the root directory's run gives: what the manifest is to say, the blocks to be
/// written, and the block of memory that was not used.
struct Built<'m> {
    entry: ManifestEntry,
    sealed: [Sealed<'m>; RUN_BLOCKS as usize],
    unused: &'m mut Block,
}

/// Builds the run of these items in an extent of [`RUN_BLOCKS`] blocks.
fn build<'m>(
    volume: &Super,
    extent: Extent,
    items: &[RootItem],
    space: BuildSpace<'m>,
    blocks: [&'m mut Block; RUN_BLOCKS as usize + 1],
) -> Built<'m> {
    let [first, index, unused, filter] = blocks;
    let key = &volume.fields().name_key;
    let mut run = RunBuilder::new(&volume.volume(), key, RUN, extent, space, [filter]);
    assert!(run.turn(first).is_none(), "the first block");
    for (key, record) in items {
        let value = record.as_ref().map_or(&[][..], IntoBytes::as_bytes);
        assert!(run.push(key, &Value::Bytes(value)).is_ok(), "two items fit a block");
    }
    // One block of each kind: the memory comes back but for what the index took.
    let (Some(items), Some(index)) = run.finish(index) else { unreachable!("an item block") };
    let (Some(index), None) = run.finish(index) else { unreachable!("an index block") };
    let (Some(filter), Some(unused)) = run.finish(unused) else { unreachable!("a filter block") };
    let (None, Some(unused)) = run.finish(unused) else { unreachable!("no other block") };
    Built { entry: run.entry().0, sealed: [items, index, filter], unused }
}

impl<'m> Node<'m> for Mkfs<'m> {
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
        match self.phase {
            Phase::Unmake | Phase::Clear | Phase::Spare | Phase::Publish => self.step_fixed(),
            Phase::Record => self.step_record(),
            Phase::Commit => self.step_commit(),
            Phase::Done | Phase::Failed => More::No,
        }
    }

    fn poll_action(&mut self) -> Option<Action<'m>> {
        self.poll_request().map(Action::Block)
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

#[cfg(test)]
pub(crate) mod tests;

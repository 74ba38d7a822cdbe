//! The block cache: a fixed number of frames that hold verified blocks, those of the open commit
//! among them.
//!
//! ```text
//!                  get                  completion, verified             last pin dropped
//!   Free (idle) --------->  Reading  -------------------------> Clean ---------------------> Clean
//!     ^   ^                    |  \                             |  ^                        (idle)
//!     |   |      failed, or    |   \ not wanted any more        |  | written                  |
//!     |   +--- it failed ------+    +-> Doomed --> Free   dirty |  |                     get  |
//!     |                                                         v  |                          v
//!     +------------------- discard ------------------------- Dirty -- seal --> Writing      Clean
//! ```
//!
//! # Invariants
//!
//! * A frame's buffer is with the device exactly while its request is, and nobody looks at it then.
//! * A block is verified once, when it has been read; what a frame holds afterwards is trusted.
//! * At most one frame stands for an address. A frame whose block is out of date, or was freed,
//!   while it is pinned is an *orphan*: no `get` finds it, and its last pin frees it.
//! * *Idle* frames (free, or clean without pins) are the only ones that are taken for another
//!   block. The module `idle` says which goes first.
//! * A frame that a request has asked for is pinned for it at once, also while it is being read, so
//!   that what arrives can't be gone before the request runs.
//! * A failed read is told to each request that waited for it, and to nobody else: not to one that
//!   wants another version of the block, and only waited for its turn.
//!
//! # Why no wake-up is lost, and none is wasted
//!
//! A request waits for one thing, and is listed with it by the same call that returns
//! [`Stop::Wait`].
//!
//! *Blocks.* The list of a frame is emptied by the completion of its transfer, which the device
//! owes us. Only requests that want this very block are in it.
//!
//! *Frames.* Requests that run short form a queue. While there is one, only its first may take a
//! frame, so nobody overtakes. Whenever the number of idle frames grows, or the queue has another
//! first, or the first wants less, `call_frames` checks the one condition *the first has not been
//! called, and as many frames are idle as it wants*, and calls it. So it can't be true and stay
//! unnoticed, and each frame that becomes idle calls at most one request. The one called takes its
//! frame, waits for something else, or finishes: each makes another the first.
//!
//! *Who gives way.* The request that first ran short of all that have not finished, the senior,
//! keeps its pins and goes first. Any other that runs short drops its pins, and wants as many
//! frames as it dropped and one more before it is called, so it does not try in vain. When the
//! senior waits, no read is started; what is in flight ends; everybody else finishes or runs short.
//! Then all frames but the dirty ones and the senior's are idle, and by `Limits::validate` that is
//! one at least. So the senior finishes, the next oldest becomes senior, and so does every request
//! in its turn.
//!
//! *Commits.* Requests that found the open commit too full are served in the order in which they
//! first did. Opening a commit calls the first; when it has been served or has gone, the next is
//! called. If it doesn't fit, nobody is called until the next commit opens. As nobody overtakes,
//! the largest plan finds a commit of its own at last. [`Cache::is_commit_wanted`] tells the node
//! to end the open one.
//!
//! A request that waits for anything else must [`release`](Cache::release) first, which also calls
//! whoever is next.
//!
//! What this module deliberately doesn't know: what a block means beyond its own bytes, when a
//! commit begins and ends, and what a request is.

mod commit;
mod idle;
mod limits;
mod list;
mod pins;
pub mod space;
mod wait;

pub use commit::{Margin, Plan, Reservation};
pub use limits::{Limits, LimitsError};
pub use pins::Pins;
pub use space::{Extent, Space, SpaceFull};

use crate::arena::{Arena, ArenaFull};
use crate::error::{Corruption, Error, Stop, Wait};
use crate::format::RunId;
use crate::format::block::{Magic, Promise, Volume, open};
use crate::format::btree::{self, BlockRef};
use crate::format::run::{Filter, Index, Items, RunBlock};
use commit::Commit;
use idle::Idle;
use list::{Linked, Links, List};
use outrider_hal::{Block, BlockNo, BlockOp, BlockRequest, Completion, Tag};
use wait::{Place, Waiters};

/// A request in the node's table, and which of those that used the place one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestId {
    /// Its place in the table; below `Limits::requests`.
    pub index: u32,
    /// Counts up with each request in this place.
    pub generation: u32,
}

/// A frame of the cache. Means something only while the frame is pinned, or in apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameId(pub(crate) u32);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Holds nothing. Idle.
    Free,
    /// Its read is queued or in flight.
    Reading,
    /// As on the device. Idle when not pinned.
    Clean,
    /// Changed by the open commit.
    Dirty,
    /// Sealed; its write is queued or in flight.
    Writing,
    /// Its transfer is queued or in flight, and what it holds is not wanted.
    Doomed,
    /// Found by nobody; free when its last pin is dropped.
    Orphan,
}

struct Frame<'m> {
    buffer: Option<&'m mut Block>,
    at: BlockRef,
    magic: Magic,
    /// Which block of its run; 0 for a block that is of none.
    index: u32,
    state: State,
    pins: u32,
    /// The plan that last counted on changing this block.
    plan: u64,
    /// Which slot of which frame led that plan here.
    home: Option<(FrameId, usize)>,
    /// Next frame of the same bucket.
    chain: Option<FrameId>,
    /// In the idle frames, the dirty ones, or the queue of transfers.
    links: Links,
    /// Requests that wait for the transfer.
    waiters: List,
}

impl Linked for Frame<'_> {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

/// Makes requests wait for nothing, now and then, in a way that depends only on the seed: a request
/// that can't be run again from the top then breaks at once.
#[derive(Debug, Clone, Copy)]
pub struct Chaos {
    state: u64,
    one_in: u32,
}

impl Chaos {
    /// Strikes one call in `one_in`, on average.
    #[must_use]
    pub fn new(seed: u64, one_in: u32) -> Chaos {
        Chaos { state: seed | 1, one_in: one_in.max(2) }
    }

    fn strikes(&mut self) -> bool {
        // Xorshift (Marsaglia 2003): never zero, long enough a period.
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 32).is_multiple_of(u64::from(self.one_in))
    }
}

/// The block cache, with the open commit.
pub struct Cache<'m> {
    limits: Limits,
    volume: Volume,
    frames: &'m mut [Frame<'m>],
    buckets: &'m mut [Option<FrameId>],
    idle: Idle,
    transfers: List,
    in_flight: u32,
    waiters: Waiters<'m>,
    commit: Commit,
    space: Space<'m>,
    scratch: Option<&'m mut Block>,
    plans: u64,
    chaos: Option<Chaos>,
}

impl<'m> Cache<'m> {
    /// Tags of this cache's transfers are below this; a node that submits its own names them from
    /// here on.
    pub const TAGS: u64 = 1 << 32;

    /// Carves a cache for this volume. The limits must be valid.
    pub fn carve(
        arena: &mut Arena<'m>,
        limits: &Limits,
        volume: Volume,
    ) -> Result<Cache<'m>, ArenaFull> {
        assert!(limits.validate().is_ok(), "the node checks its limits before");
        let mut buffers = arena.slice(limits.frames, |_| Block::ZERO)?.iter_mut();
        let scratch = arena.one(Block::ZERO)?;
        let frames = arena.slice(limits.frames, |_| Frame {
            buffer: buffers.next(),
            at: BlockRef::NONE,
            magic: Magic::Btree,
            index: 0,
            state: State::Free,
            pins: 0,
            plan: 0,
            home: None,
            chain: None,
            links: Links::NONE,
            waiters: List::EMPTY,
        })?;
        let mut idle = Idle::new(limits.frames);
        for index in (0..frames.len() as u32).rev() {
            idle.add(frames, index);
        }
        Ok(Cache {
            limits: *limits,
            volume,
            frames,
            buckets: arena.slice(limits.frames.next_power_of_two(), |_| None)?,
            idle,
            transfers: List::EMPTY,
            in_flight: 0,
            waiters: Waiters::carve(arena, limits)?,
            commit: Commit::CLOSED,
            space: Space::carve(arena, limits)?,
            scratch,
            plans: 0,
            chaos: None,
        })
    }

    /// Injects spurious waits from now on, or stops to.
    pub fn inject(&mut self, chaos: Option<Chaos>) {
        self.chaos = chaos;
    }

    /// Obtains a block for a request: pins its frame until the request is released.
    ///
    /// Stops with [`Wait::Block`] while the block is being transferred, with [`Wait::Frame`] while
    /// there is no frame for it, and with the reason if it has been read in vain for this request.
    pub fn get(
        &mut self,
        at: BlockRef,
        magic: Magic,
        pins: &mut Pins<'_>,
    ) -> Result<FrameId, Stop> {
        self.obtain(at, magic, 0, pins)
    }

    /// Obtains a block of a run, as [`get`](Self::get) does. Its structure has been checked too, so
    /// that it may be looked at with `Items::opened` and its like.
    pub fn get_run(
        &mut self,
        at: &RunBlock,
        magic: Magic,
        pins: &mut Pins<'_>,
    ) -> Result<FrameId, Stop> {
        self.obtain(BlockRef::new(at.blkno, at.run.0), magic, at.index, pins)
    }

    fn obtain(
        &mut self,
        at: BlockRef,
        magic: Magic,
        index: u32,
        pins: &mut Pins<'_>,
    ) -> Result<FrameId, Stop> {
        if self.chaos.as_mut().is_some_and(Chaos::strikes) {
            pins.restart();
            return Err(Wait::Again.into());
        }
        let blkno = at.blkno();
        if let Some(error) = self.waiters.take_failure(pins.request, at) {
            return Err(error.into());
        }
        if let Some(id) = self.find(blkno) {
            let frame = &self.frames[id.0 as usize];
            let (state, wrong) = (frame.state, check(frame, at, magic, index));
            match (state, wrong) {
                (State::Clean | State::Dirty, None) => {
                    self.pin(id, pins);
                    return Ok(id);
                }
                (State::Reading | State::Writing, None) => {
                    self.pin(id, pins);
                    return Err(self.wait_for(id, pins));
                }
                // What is in memory is of another time than the reference. The device decides.
                (State::Clean, Some(_)) => self.displace(id),
                // Two that displaced each other's reads would never see the end of one.
                (State::Reading, Some(_)) => return Err(self.wait_for(id, pins)),
                (State::Dirty | State::Writing, Some(what)) => {
                    return Err(Error::Corrupt { blkno, what }.into());
                }
                (State::Free | State::Doomed | State::Orphan, _) => {
                    unreachable!("a frame that can't be found")
                }
            }
        }
        // A full list gives way first: the request must not wait for a frame that it holds itself.
        if let Some(gone) = pins.give_way() {
            self.unpin(gone);
        }
        self.make_room(1, pins)?;
        let id = self.start_read(at, magic, index);
        self.pin(id, pins);
        Err(self.wait_for(id, pins))
    }

    /// Starts to read a block of a run that will be wanted soon, if it isn't there and nobody is
    /// short of frames. A hint: nothing depends on it.
    pub fn hint_run(&mut self, at: &RunBlock, magic: Magic) {
        let spare = self.waiters.frames.is_empty() && self.idle.len() > self.limits.pins;
        if spare && self.find(at.blkno).is_none() {
            self.start_read(BlockRef::new(at.blkno, at.run.0), magic, at.index);
        }
    }

    /// Takes an idle frame, which must be there, and reads a block into it.
    fn start_read(&mut self, at: BlockRef, magic: Magic, index: u32) -> FrameId {
        let id = self.take_idle();
        let frame = &mut self.frames[id.0 as usize];
        (frame.at, frame.magic, frame.index) = (at, magic, index);
        frame.state = State::Reading;
        self.enter(id);
        self.transfers.push_back(self.frames, id.0);
        id
    }

    /// The block in a frame, between transfers.
    #[must_use]
    pub fn block(&self, id: FrameId) -> &Block {
        self.frames[id.0 as usize].buffer.as_deref().expect("a pinned block that was obtained")
    }

    /// The next transfer to submit. Its completion must be given to
    /// [`handle_completion`](Self::handle_completion).
    pub fn poll_transfer(&mut self) -> Option<BlockRequest<'m>> {
        let index = self.transfers.pop_front(self.frames)?;
        let frame = &mut self.frames[index as usize];
        let blkno = frame.at.blkno();
        let buffer = frame.buffer.take().expect("lent out once");
        self.in_flight += 1;
        let op = match frame.state {
            State::Reading | State::Doomed => BlockOp::Read(blkno, buffer),
            State::Writing => BlockOp::Write(blkno, buffer),
            State::Free | State::Clean | State::Dirty | State::Orphan => {
                unreachable!("nothing to transfer")
            }
        };
        Some(BlockRequest { tag: Tag(u64::from(index)), op })
    }

    /// Takes note of a finished transfer: one whose tag is below [`TAGS`](Self::TAGS).
    pub fn handle_completion(&mut self, completion: Completion<'m>) {
        let id = FrameId(completion.tag.0 as u32);
        let (BlockOp::Read(_, buffer) | BlockOp::Write(_, buffer)) = completion.op else {
            unreachable!("the cache doesn't flush")
        };
        let frame = &mut self.frames[id.0 as usize];
        assert!(frame.buffer.is_none(), "a transfer that was not in flight");
        frame.buffer = Some(buffer);
        self.in_flight -= 1;
        let blkno = frame.at.blkno();
        let result = completion.result.map_err(|error| Error::Io { blkno, error });
        match frame.state {
            State::Reading => self.on_read(id, result),
            State::Writing => self.on_written(id, result),
            State::Doomed => {
                self.vacate(id);
                self.wake_waiters(id, None);
            }
            State::Free | State::Clean | State::Dirty | State::Orphan => {
                unreachable!("no transfer in flight")
            }
        }
        self.waiters.call_frames(self.idle.len());
    }

    fn on_read(&mut self, id: FrameId, result: Result<(), Error>) {
        let frame = &self.frames[id.0 as usize];
        let (at, blkno) = (frame.at, frame.at.blkno());
        let verdict =
            result.and_then(|()| self.verify(frame).map_err(|what| Error::Corrupt { blkno, what }));
        match verdict {
            Ok(()) => self.settle(id),
            Err(_) => {
                self.leave(id);
                self.vacate(id);
            }
        }
        self.wake_waiters(id, verdict.err().map(|error| (at, error)));
    }

    /// Checks what a frame's read has brought.
    fn verify(&self, frame: &Frame<'_>) -> Result<(), Corruption> {
        let block = frame.buffer.as_deref().expect("the transfer has ended");
        let (blkno, seq, volume) = (frame.at.blkno(), frame.at.seq(), &self.volume);
        let of_run = RunBlock { blkno, run: RunId(seq), index: frame.index };
        let promise = Promise { magic: frame.magic, blkno, seq: Some(seq) };
        match frame.magic {
            Magic::Btree => open(block, volume, &promise).and_then(|()| btree::parse(block)),
            Magic::RunItems => Items::open(block, volume, &of_run).map(drop),
            Magic::RunIndex => Index::open(block, volume, &of_run).map(drop),
            Magic::RunFilter => Filter::open(block, volume, &of_run).map(drop),
            Magic::Super | Magic::Quorum | Magic::Root => open(block, volume, &promise),
        }
    }

    /// A request to run again. Called until it answers `None`, after any other call.
    pub fn poll_wake(&mut self) -> Option<RequestId> {
        self.waiters.poll_wake()
    }

    /// Ends all that the request has and waits for. The request is over, or is about to wait for
    /// something that is not the cache's.
    pub fn release(&mut self, pins: &mut Pins<'_>) {
        self.yield_frames(pins);
        self.leave_commit(pins.request);
        self.waiters.call_frames(self.idle.len());
    }

    /// Ends all that the request has and waits for, but not its place among those that wait for a
    /// commit.
    fn yield_frames(&mut self, pins: &mut Pins<'_>) {
        self.leave_wait(pins.request);
        self.waiters.hush(pins.request);
        self.drop_pins(pins);
        if self.waiters.senior == Some(pins.request.index) {
            self.waiters.elect();
        }
    }

    /// Drops the pins that the present run has not obtained. For jobs that have got on, and will
    /// not ask for what was behind them again.
    pub fn drop_leftovers(&mut self, pins: &mut Pins<'_>) {
        while pins.len > pins.cursor {
            pins.len -= 1;
            self.unpin(pins.frames[pins.len]);
        }
        self.waiters.call_frames(self.idle.len());
    }

    /// Transfers that the device has not given back.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Forgets every block and the open commit, and works for this volume from now on. Every
    /// request must have been released. Transfers in flight may complete later; what they carry is
    /// dropped.
    pub fn reset(&mut self, volume: Volume) {
        self.volume = volume;
        self.commit = Commit::CLOSED;
        self.space.clear();
        self.buckets.fill(None);
        (self.idle, self.transfers) = (Idle::new(self.limits.frames), List::EMPTY);
        for index in 0..self.frames.len() as u32 {
            let frame = &mut self.frames[index as usize];
            assert!(frame.pins == 0, "a request was not released");
            (frame.chain, frame.links) = (None, Links::NONE);
            frame.state = if frame.buffer.is_some() { State::Free } else { State::Doomed };
            if frame.state == State::Free {
                self.idle.add(self.frames, index);
            }
        }
    }

    /// Pins the frame for the request, unless it already is.
    fn pin(&mut self, id: FrameId, pins: &mut Pins<'_>) {
        if pins.obtain(id) {
            return;
        }
        let frame = &mut self.frames[id.0 as usize];
        frame.pins += 1;
        if frame.pins == 1 && frame.state == State::Clean {
            self.idle.remove(self.frames, id.0);
        }
        if let Some(gone) = pins.add(id) {
            self.unpin(gone);
            self.waiters.call_frames(self.idle.len());
        }
    }

    fn unpin(&mut self, id: FrameId) {
        let frame = &mut self.frames[id.0 as usize];
        frame.pins -= 1;
        if frame.pins > 0 {
            return;
        }
        match frame.state {
            State::Clean => self.idle.add(self.frames, id.0),
            State::Orphan => {
                frame.state = State::Free;
                self.idle.add(self.frames, id.0);
            }
            State::Reading | State::Dirty | State::Writing | State::Doomed => {}
            State::Free => unreachable!("a free frame has no pins"),
        }
    }

    fn drop_pins(&mut self, pins: &mut Pins<'_>) {
        for at in 0..pins.len {
            self.unpin(pins.frames[at]);
        }
        (pins.len, pins.cursor) = (0, 0);
    }

    /// The request waits for the transfer of this frame.
    fn wait_for(&mut self, id: FrameId, pins: &mut Pins<'_>) -> Stop {
        pins.restart();
        self.leave_wait(pins.request);
        let frame = &mut self.frames[id.0 as usize];
        let blkno = frame.at.blkno();
        self.waiters.put(pins.request, Place::Block(id), Some(&mut frame.waiters));
        self.waiters.call_frames(self.idle.len());
        Wait::Block(blkno).into()
    }

    /// The request waits for nothing any more.
    fn leave_wait(&mut self, request: RequestId) {
        match self.waiters.waiter(request).place {
            Place::Nowhere => {}
            Place::Frames(_) => self.waiters.leave_frames(request),
            Place::Commit => self.waiters.put(request, Place::Nowhere, None),
            Place::Block(id) => {
                let list = &mut self.frames[id.0 as usize].waiters;
                list.remove(self.waiters.table, request.index);
                self.waiters.put(request, Place::Nowhere, None);
            }
        }
    }

    fn wake_waiters(&mut self, id: FrameId, failure: Option<(BlockRef, Error)>) {
        self.waiters.wake_all(&mut self.frames[id.0 as usize].waiters, failure);
    }

    /// Checks that `count` frames are idle and nobody else is to have them, or lets the request
    /// wait for them.
    fn make_room(&mut self, count: u32, pins: &mut Pins<'_>) -> Result<(), Stop> {
        let request = pins.request;
        let first = self.waiters.frames.front().is_none_or(|first| first == request.index);
        if count == 0 || first && self.idle.len() >= count {
            self.leave_wait(request);
            return Ok(());
        }
        let held = pins.len as u32;
        if !matches!(self.waiters.waiter(request).place, Place::Frames(_)) {
            self.leave_wait(request);
        }
        if self.waiters.is_senior(request) {
            self.waiters.put(request, Place::Frames(count), None);
            self.waiters.promote(request.index);
            pins.restart();
        } else {
            self.waiters.put(request, Place::Frames(count + held), None);
            self.drop_pins(pins);
        }
        self.waiters.call_frames(self.idle.len());
        Err(Wait::Frame.into())
    }

    /// Empties the idle frame whose block is missed least. There must be one.
    fn take_idle(&mut self) -> FrameId {
        let id = FrameId(self.idle.pop(self.frames).expect("room was made"));
        match self.frames[id.0 as usize].state {
            State::Clean => self.leave(id),
            State::Free => {}
            State::Reading | State::Dirty | State::Writing | State::Doomed | State::Orphan => {
                unreachable!("an idle frame is free or clean")
            }
        }
        let frame = &mut self.frames[id.0 as usize];
        (frame.plan, frame.index) = (0, 0);
        id
    }

    /// The frame's block is as on the device.
    fn settle(&mut self, id: FrameId) {
        let frame = &mut self.frames[id.0 as usize];
        frame.state = State::Clean;
        if frame.pins == 0 {
            self.idle.add(self.frames, id.0);
        }
    }

    /// The frame, which nobody can find any more, holds nothing.
    fn vacate(&mut self, id: FrameId) {
        let frame = &mut self.frames[id.0 as usize];
        frame.state = if frame.pins == 0 { State::Free } else { State::Orphan };
        if frame.pins == 0 {
            self.idle.add(self.frames, id.0);
        }
    }

    /// Makes a clean block, or one being read, impossible to find: its address stands for another.
    fn displace(&mut self, id: FrameId) {
        self.leave(id);
        let frame = &mut self.frames[id.0 as usize];
        match frame.state {
            State::Reading => frame.state = State::Doomed,
            State::Clean => {
                if frame.pins == 0 {
                    self.idle.remove(self.frames, id.0);
                }
                self.vacate(id);
            }
            State::Free | State::Dirty | State::Writing | State::Doomed | State::Orphan => {
                unreachable!("a block of the open commit, or none")
            }
        }
    }

    fn bucket(&self, blkno: BlockNo) -> usize {
        // Fibonacci hashing: the upper bits of a product with 2^64 / golden ratio.
        let bits = self.buckets.len().trailing_zeros();
        let product = blkno.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        product.checked_shr(64 - bits).unwrap_or(0) as usize
    }

    fn find(&self, blkno: BlockNo) -> Option<FrameId> {
        let mut next = self.buckets[self.bucket(blkno)];
        while let Some(id) = next {
            let frame = &self.frames[id.0 as usize];
            if frame.at.blkno() == blkno {
                return Some(id);
            }
            next = frame.chain;
        }
        None
    }

    /// Makes the frame the one for its address.
    fn enter(&mut self, id: FrameId) {
        let bucket = self.bucket(self.frames[id.0 as usize].at.blkno());
        self.frames[id.0 as usize].chain = self.buckets[bucket].replace(id);
    }

    /// The frame stands for its address no longer.
    fn leave(&mut self, id: FrameId) {
        let bucket = self.bucket(self.frames[id.0 as usize].at.blkno());
        let after = self.frames[id.0 as usize].chain.take();
        if self.buckets[bucket] == Some(id) {
            self.buckets[bucket] = after;
            return;
        }
        let mut at = self.buckets[bucket].expect("the frame is in its bucket");
        while self.frames[at.0 as usize].chain != Some(id) {
            at = self.frames[at.0 as usize].chain.expect("the frame is in its bucket");
        }
        self.frames[at.0 as usize].chain = after;
    }
}

/// What is wrong if this frame is taken for what the reference says.
fn check(frame: &Frame<'_>, at: BlockRef, magic: Magic, index: u32) -> Option<Corruption> {
    if frame.magic != magic {
        Some(Corruption::Kind)
    } else if frame.at != at {
        Some(Corruption::Stale)
    } else if frame.index != index {
        Some(Corruption::Misdirected)
    } else {
        None
    }
}

#[cfg(test)]
mod tests;

//! A simulated machine with a mount: what stands between a mount's core and its users, as plain as
//! can be. It lends memory, looks up groups, and moves file data on the simulated disk.
//!
//! # Invariants
//!
//! * Requests enter the mount in the order in which they came, as far as there is memory to lend.
//! * A partial block is read before it is written; one that means nothing yet is filled with zeros.
//!
//! What this module deliberately doesn't know: what an operation should answer.

use crate::model::{Done, User};
use crate::rng::Rng;
use outrider_core::arena::{Arena, ArenaFull};
use outrider_core::client::mount::{
    Mount, MountConfig, MountLimits, MountState, MountTiming, StartError,
};
use outrider_core::client::op::{
    Answer, Caller, Direction, Extent, Lent, Op, OpError, Place, Reply, Request, RequestId, Resume,
    Transfer,
};
use outrider_core::format::item::Time;
use outrider_core::node::{Action, Event, More, Node};
use outrider_hal::{
    BLOCK_BYTES, Block, BlockNo, BlockOp, BlockRequest, Completion, Instant, IoError, StreamId, Tag,
};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

/// Bytes of one piece of memory that is lent.
pub const LENT_BYTES: usize = 1 << 17;
/// Pieces of it.
const LENT: u32 = 4;
/// Blocks in which file data is moved.
const BUFFERS: u32 = 4;
/// Tags of the platform's own block requests start here.
const TAG_BASE: u64 = 1 << 40;

/// Such a mount is evicted soon, and looks for what nobody uses often.
pub const TIMING: MountTiming = MountTiming {
    lease: Duration::from_secs(4),
    renew: Duration::from_secs(1),
    orphan_scan: Duration::from_secs(10),
    ..MountTiming::NORMAL
};

/// A request of a user.
#[derive(Debug, Clone)]
pub struct Call {
    /// Who asks.
    pub user: User,
    /// What times become.
    pub now: Time,
    /// What is asked.
    pub op: Op,
    /// What comes with it: a symlink's target, an attribute's value, the bytes of a write.
    pub data: Vec<u8>,
}

/// Part of a block to be moved.
#[derive(Debug, Clone)]
struct Piece {
    blkno: Option<BlockNo>,
    within: Range<usize>,
    fresh: bool,
    direction: Direction,
}

/// A request at work.
struct Running {
    call: Call,
    /// Bytes written so far.
    moved: usize,
    /// Bytes read so far.
    read: Vec<u8>,
    pieces: VecDeque<Piece>,
    /// A transfer is under way, and how it has gone so far.
    moving: Option<Result<(), IoError>>,
    /// A block request of it is at the disk.
    at_disk: bool,
}

/// The machine's node.
pub struct Platform {
    /// The mount.
    pub mount: Mount<'static>,
    lent: Vec<&'static mut [u8]>,
    buffers: Vec<&'static mut Block>,
    waiting: VecDeque<(u64, Call)>,
    running: BTreeMap<u64, Running>,
    /// How calls have ended, until that is taken.
    done: BTreeMap<u64, Result<Done, OpError>>,
    actions: VecDeque<Action<'static>>,
    ids: u64,
}

impl Platform {
    /// Carves a mount and what lies around it.
    ///
    /// # Errors
    ///
    /// Those of the mount.
    pub fn carve(
        arena: &mut Arena<'static>,
        limits: &MountLimits,
        config: &MountConfig,
    ) -> Result<Platform, StartError> {
        let mount = Mount::carve(arena, limits, config)?;
        let pieces = |arena: &mut Arena<'static>| -> Result<Vec<&'static mut [u8]>, ArenaFull> {
            (0..LENT).map(|_| arena.slice(LENT_BYTES as u32, |_| 0)).collect()
        };
        let lent = pieces(arena)?;
        let buffers = arena.slice(BUFFERS, |_| Block::ZERO)?.iter_mut().collect();
        Ok(Platform {
            mount,
            lent,
            buffers,
            waiting: VecDeque::new(),
            running: BTreeMap::new(),
            done: BTreeMap::new(),
            actions: VecDeque::new(),
            ids: 0,
        })
    }

    /// What a mount is told at its start, drawn for this life.
    #[must_use]
    pub fn config(
        volume: outrider_core::format::super_block::Super,
        entropy: &mut Rng,
    ) -> MountConfig {
        let (mut nonce, mut secret) = ([0; 16], [0; 32]);
        entropy.fill(&mut nonce);
        entropy.fill(&mut secret);
        MountConfig {
            volume,
            quorum: outrider_core::quorum::Timing::NORMAL,
            net: outrider_core::net::Timing::DEFAULT,
            timing: TIMING,
            nonce,
            machine: outrider_core::format::wire::greeting::Machine::default(),
            secret,
            read_only: false,
        }
    }

    /// Takes a call; returns its number.
    pub fn call(&mut self, call: Call) -> u64 {
        self.ids += 1;
        self.waiting.push_back((self.ids, call));
        self.ids
    }

    /// Nobody waits for a call any more. It ends soon, in this way or another.
    pub fn interrupt(&mut self, now: Instant, id: u64) {
        match self.waiting.iter().position(|(waiting, _)| *waiting == id) {
            Some(at) => {
                self.waiting.remove(at);
                self.done.insert(id, Err(OpError::Interrupted));
            }
            None => self.mount.resume(now, RequestId(id), Resume::Interrupted),
        }
    }

    /// Whether a call has ended.
    #[must_use]
    pub fn has_ended(&self, id: u64) -> bool {
        self.done.contains_key(&id)
    }

    /// How a call has ended: once, when it has.
    pub fn take(&mut self, id: u64) -> Option<Result<Done, OpError>> {
        self.done.remove(&id)
    }

    /// Whether no call is waiting or at work.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// What it is doing, for people.
    #[must_use]
    pub fn describe(&self) -> String {
        let ops: Vec<_> = self.running.values().map(|at| (&at.call.op, at.moving)).collect();
        let (state, counters) = (self.mount.state(), self.mount.counters());
        format!("{state:?} {ops:?} {} wait, {counters:?}", self.waiting.len())
    }

    fn submit_waiting(&mut self, now: Instant) {
        while let Some((id, call)) = self.waiting.pop_front() {
            if self.lent.is_empty() {
                return self.waiting.push_front((id, call));
            }
            let forget = matches!(call.op, Op::Forget { .. });
            let brings = matches!(call.op, Op::Symlink { .. } | Op::Setxattr { .. });
            let takes = matches!(
                call.op,
                Op::Readlink { .. }
                    | Op::Readdir { .. }
                    | Op::Getxattr { .. }
                    | Op::Listxattr { .. }
                    | Op::Query(_)
            );
            let lent = if brings || takes { self.lent.pop() } else { None };
            let lent = lent.map(|buf| {
                let len = if brings { call.data.len() } else { 0 };
                buf[..len].copy_from_slice(&call.data[..len]);
                Lent { buf, len }
            });
            let caller = Caller::new(call.user.uid, call.user.gid, 1);
            let request = Request { caller, now: call.now, op: call.op.clone(), lent };
            if let Err(request) = self.mount.submit(now, RequestId(id), request) {
                self.lent.extend(request.lent.map(|lent| lent.buf));
                match self.mount.state() {
                    MountState::Joining | MountState::Mounted | MountState::Suspended => {
                        return self.waiting.push_front((id, call));
                    }
                    MountState::Leaving
                    | MountState::Left
                    | MountState::Evicted
                    | MountState::Refused => {
                        self.done.insert(id, Err(OpError::Io));
                        continue;
                    }
                }
            }
            if forget {
                self.done.insert(id, Ok(Reply::Empty.into()));
                continue;
            }
            let running = Running {
                call,
                moved: 0,
                read: Vec::new(),
                pieces: VecDeque::new(),
                moving: None,
                at_disk: false,
            };
            self.running.insert(id, running);
        }
    }

    fn take_answers(&mut self, now: Instant) -> bool {
        let mut any = false;
        while let Some((RequestId(id), answer)) = self.mount.poll_answer() {
            any = true;
            let running = self.running.get_mut(&id).expect("it is at work");
            match answer {
                Answer::Done { result, lent } => {
                    let mut data = std::mem::take(&mut running.read);
                    if let Some(lent) = lent {
                        if matches!(result, Ok(Reply::Bytes)) {
                            data = lent.buf[..lent.len].to_vec();
                        }
                        self.lent.push(lent.buf);
                    }
                    self.running.remove(&id);
                    self.done.insert(id, result.map(|reply| Done { reply, data }));
                }
                Answer::Transfer(transfer) => {
                    running.pieces = pieces(&transfer);
                    running.moving = Some(Ok(()));
                }
                Answer::AskMember { gid } => {
                    let member = running.call.user.groups.contains(&gid);
                    self.mount.resume(now, RequestId(id), Resume::Member { gid, member });
                }
            }
        }
        any
    }

    /// Goes on with all transfers; says whether one has ended.
    fn move_data(&mut self, now: Instant) -> bool {
        let mut ended = false;
        for (id, running) in &mut self.running {
            let Some(result) = running.moving else { continue };
            if running.at_disk {
                continue;
            }
            while let Some(piece) = running.pieces.front()
                && piece.blkno.is_none()
            {
                let len = piece.within.len();
                running.read.resize(running.read.len() + len, 0);
                running.pieces.pop_front();
            }
            let Some(piece) = running.pieces.front().filter(|_| result.is_ok()) else {
                running.pieces.clear();
                running.moving = None;
                self.mount.resume(now, RequestId(*id), Resume::Transferred(result));
                ended = true;
                continue;
            };
            let Some(buffer) = self.buffers.pop() else { continue };
            let blkno = piece.blkno.expect("holes were passed");
            let whole = piece.fresh || piece.within.len() == BLOCK_BYTES;
            let op = if piece.direction == Direction::Write && whole {
                buffer.0.fill(0);
                fill(running, buffer);
                BlockOp::Write(blkno, buffer)
            } else {
                BlockOp::Read(blkno, buffer)
            };
            running.at_disk = true;
            let tag = Tag(TAG_BASE + id);
            self.actions.push_back(Action::Block(BlockRequest { tag, op }));
        }
        ended
    }

    fn on_data(&mut self, done: Completion<'static>) {
        let id = done.tag.0 - TAG_BASE;
        let running = self.running.get_mut(&id).expect("it is at work");
        running.at_disk = false;
        let piece = running.pieces.front().cloned().expect("it is being moved");
        match done.op {
            BlockOp::Read(blkno, buffer) => {
                if piece.direction == Direction::Write && done.result.is_ok() {
                    fill(running, buffer);
                    running.at_disk = true;
                    let op = BlockOp::Write(blkno, buffer);
                    let request = BlockRequest { tag: done.tag, op };
                    return self.actions.push_back(Action::Block(request));
                }
                running.read.extend_from_slice(&buffer.0[piece.within.clone()]);
                self.buffers.push(buffer);
            }
            BlockOp::Write(_, buffer) => {
                running.moved += piece.within.len();
                self.buffers.push(buffer);
            }
            BlockOp::Flush => unreachable!("it flushes nothing"),
        }
        running.pieces.pop_front();
        if let Err(error) = done.result {
            running.moving = Some(Err(error));
        }
    }
}

/// Puts the next bytes of a write into a block.
fn fill(running: &Running, block: &mut Block) {
    let piece = running.pieces.front().expect("it is being moved");
    let bytes = &running.call.data[running.moved..][..piece.within.len()];
    block.0[piece.within.clone()].copy_from_slice(bytes);
}

/// A transfer block by block.
fn pieces(transfer: &Transfer) -> VecDeque<Piece> {
    let mut pieces = VecDeque::new();
    let block = BLOCK_BYTES as u64;
    for Extent { at, len, place } in &transfer.extents {
        let (mut from, end) = (*at, at + u64::from(*len));
        while from < end {
            let start = (from % block) as usize;
            let count = (BLOCK_BYTES - start).min((end - from) as usize);
            let index = from / block - at / block;
            let (blkno, fresh) = match place {
                Place::Hole => (None, false),
                Place::Blocks(first) => (Some(BlockNo(first.0 + index)), false),
                Place::Fresh(first) => (Some(BlockNo(first.0 + index)), true),
            };
            let direction = transfer.direction;
            pieces.push_back(Piece { blkno, within: start..start + count, fresh, direction });
            from += count as u64;
        }
    }
    pieces
}

impl Node<'static> for Platform {
    fn handle(&mut self, now: Instant, event: Event<'static>) {
        match event {
            Event::Completed(done) if done.tag.0 >= TAG_BASE => self.on_data(done),
            event => self.mount.handle(now, event),
        }
    }

    fn step(&mut self, now: Instant) -> More {
        self.submit_waiting(now);
        let mut more = self.mount.step(now);
        if self.take_answers(now) | self.move_data(now) {
            more = More::Yes;
        }
        more
    }

    fn poll_action(&mut self) -> Option<Action<'static>> {
        self.mount.poll_action().or_else(|| self.actions.pop_front())
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.mount.poll_timeout()
    }

    fn recv_space(&mut self, stream: StreamId) -> &mut [u8] {
        self.mount.recv_space(stream)
    }

    fn send_bytes(&self, stream: StreamId) -> &[u8] {
        self.mount.send_bytes(stream)
    }
}

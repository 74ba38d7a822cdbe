//! The acceptance test of a machine: a node that uses everything a platform gives, and says what it
//! found.
//!
//! # Parts
//!
//! ```text
//! disk:   Inspect -> Write -> Flush -> Read -> PastEnd -> Done
//! echo:   serve every connection; done when one that was echoed to has closed
//! client: connect -> send a pattern, expect it back -> close
//! linger: sleep until then
//! ```
//!
//! # Invariants
//!
//! * A disk that holds anything but an earlier run's pattern is left alone, and the test fails.
//! * The disk always has as many requests as there are buffers, until a phase runs out of them.
//! * It ends: by success, by the first failure, or after [`PATIENCE`] beyond the time to linger.

use core::net::SocketAddr;
use core::time::Duration;
use heapless::Deque;
use outrider_core::arena::{Arena, ArenaFull};
use outrider_core::node::{Action, Event, More, Node};
use outrider_hal::{
    Block, BlockNo, BlockOp, BlockRequest, Completion, Endpoint, Instant, IoError, StreamId, Tag,
};

/// Requests that the test keeps in flight, and buffers it has.
pub const DEPTH: u32 = 128;
/// Blocks written and read back; a power of two. A smaller disk is tested as far as it goes.
const BLOCKS: u64 = 2048;
/// Connections served at a time.
pub const PEERS: u32 = 48;
const PEER_BYTES: usize = 2048;
/// Bytes the client part sends and expects back.
const CLIENT_BYTES: usize = 256 << 10;
/// Time for everything but lingering.
pub const PATIENCE: Duration = Duration::from_secs(60);

const ATTEMPT: u32 = 1;
const MAGIC: u64 = u64::from_le_bytes(*b"scratch!");

/// What to test.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Blocks of the disk; `None` without a disk.
    pub disk_blocks: Option<u64>,
    /// Port to echo at.
    pub echo: Option<u16>,
    /// Where to connect.
    pub connect: Option<SocketAddr>,
    /// How long to sleep.
    pub linger: Duration,
    /// Makes this run's pattern differ from the last one's.
    pub seed: u64,
}

/// What went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The disk holds something: it is not ours to overwrite.
    NotScratch,
    /// A request failed.
    Disk(BlockNo, IoError),
    /// A block did not come back as it was written.
    Verify(BlockNo),
    /// A request past the end was not refused.
    PastEnd,
    /// A flush failed.
    Flush(IoError),
    /// The port can't be listened at.
    Listen,
    /// The peer could not be reached, or went away.
    Connect,
    /// The peer sent back something else.
    Echo,
    /// It took too long.
    Timeout,
}

/// How far the test is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Going on.
    Running,
    /// Everything that was asked for works.
    Passed,
    /// Something doesn't.
    Failed(Failure),
}

/// Something worth a line in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// A phase of the disk part is over: its name, blocks moved, microseconds taken.
    Disk(&'static str, u64, u64),
    /// Most requests that were in flight.
    Depth(u32),
    /// An echoed connection has closed, after this many bytes.
    Echoed(u64),
    /// The pattern has come back: bytes, microseconds taken.
    Client(u64, u64),
    /// The sleep is over.
    Lingered,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Inspect,
    Write,
    Flush,
    Read,
    PastEnd,
    Done,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Phase::Inspect => "inspect",
            Phase::Write => "write",
            Phase::Flush => "flush",
            Phase::Read => "read",
            Phase::PastEnd => "past end",
            Phase::Done => "done",
        }
    }
}

/// The disk part.
struct DiskPart<'m> {
    disk_blocks: u64,
    phase: Phase,
    phase_start: Instant,
    issued: u64,
    finished: u64,
    buffers: &'m mut [Option<&'m mut Block>],
    idle: u32,
    most_in_flight: u32,
}

/// A connection that is echoed to.
struct Peer {
    stream: Option<StreamId>,
    bytes: [u8; PEER_BYTES],
    start: usize,
    end: usize,
    echoed: u64,
}

enum Client {
    Off,
    Connecting,
    Open { stream: StreamId, sent: usize, received: usize, start: Instant },
    Done,
}

/// The test.
pub struct SelfTest<'m> {
    plan: Plan,
    verdict: Verdict,
    started: Option<Instant>,
    disk: DiskPart<'m>,
    peers: &'m mut [Peer],
    echo_done: bool,
    client: Client,
    /// Two periods of the pattern: a full period starts at each position of the first.
    pattern: [u8; 512],
    received: [u8; 512],
    linger_done: bool,
    actions: Deque<Action<'m>, 8>,
    notes: Deque<Note, 16>,
}

impl<'m> SelfTest<'m> {
    /// A test of this plan, its buffers carved from the arena.
    pub fn new(plan: Plan, arena: &mut Arena<'m>) -> Result<SelfTest<'m>, ArenaFull> {
        let blocks = arena.slice(DEPTH, |_| Block::ZERO)?;
        let mut blocks = blocks.iter_mut();
        let buffers = arena.slice(DEPTH, |_| blocks.next())?;
        let peers = arena.slice(PEERS, |_| Peer {
            stream: None,
            bytes: [0; PEER_BYTES],
            start: 0,
            end: 0,
            echoed: 0,
        })?;
        let disk_blocks = plan.disk_blocks.unwrap_or(0);
        let phase = if disk_blocks == 0 { Phase::Done } else { Phase::Inspect };
        Ok(SelfTest {
            plan,
            verdict: Verdict::Running,
            started: None,
            disk: DiskPart {
                disk_blocks,
                phase,
                phase_start: Instant(0),
                issued: 0,
                finished: 0,
                buffers,
                idle: DEPTH,
                most_in_flight: 0,
            },
            peers,
            echo_done: plan.echo.is_none(),
            client: Client::Off,
            pattern: core::array::from_fn(|index| (index % 256) as u8),
            received: [0; 512],
            linger_done: plan.linger.is_zero(),
            actions: Deque::new(),
            notes: Deque::new(),
        })
    }

    /// How far it is.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// The next thing worth a line in the log.
    pub fn poll_note(&mut self) -> Option<Note> {
        self.notes.pop_front()
    }

    fn fail(&mut self, failure: Failure) {
        if self.verdict == Verdict::Running {
            self.verdict = Verdict::Failed(failure);
        }
    }

    fn note(&mut self, note: Note) {
        // One lost line is no reason to stop.
        let _ = self.notes.push_back(note);
    }

    fn act(&mut self, action: Action<'m>) {
        let pushed = self.actions.push_back(action);
        assert!(pushed.is_ok(), "the parts want fewer actions than there is room for");
    }

    fn start(&mut self, now: Instant) {
        self.started = Some(now);
        self.disk.phase_start = now;
        if let Some(port) = self.plan.echo {
            let at = Endpoint { addr: core::net::Ipv6Addr::UNSPECIFIED, port };
            self.act(Action::Listen(at));
        }
        if let Some(to) = self.plan.connect {
            self.client = Client::Connecting;
            self.act(Action::Connect { attempt: ATTEMPT, to: to.into() });
        }
    }

    fn test_blocks(&self) -> u64 {
        // The largest power of two that fits.
        let most = BLOCKS.min(self.disk.disk_blocks);
        1 << most.ilog2()
    }

    /// Requests of the current phase.
    fn phase_requests(&self) -> u64 {
        match self.disk.phase {
            Phase::Inspect | Phase::Flush => 1,
            Phase::Write | Phase::Read => self.test_blocks(),
            Phase::PastEnd => 2,
            Phase::Done => 0,
        }
    }

    /// The block that the request of this number in the phase is for: all of them, out of order.
    fn address(&self, number: u64) -> BlockNo {
        match self.disk.phase {
            Phase::Inspect => BlockNo(0),
            Phase::Write => BlockNo(number * 5 % self.test_blocks()),
            Phase::Read => BlockNo(number * 11 % self.test_blocks()),
            Phase::Flush | Phase::Done => BlockNo(0),
            Phase::PastEnd => BlockNo(self.disk.disk_blocks + number * (u64::MAX / 4)),
        }
    }

    /// The next request of the current phase, while there is a buffer for it.
    fn next_request(&mut self) -> Option<Action<'m>> {
        if self.verdict != Verdict::Running || self.disk.issued == self.phase_requests() {
            return None;
        }
        let number = self.disk.issued;
        let at = self.address(number);
        if self.disk.phase == Phase::Flush {
            self.disk.issued += 1;
            return Some(Action::Block(BlockRequest { tag: Tag(0), op: BlockOp::Flush }));
        }
        let slot = self.disk.buffers.iter().position(Option::is_some)?;
        let block = self.disk.buffers[slot].take()?;
        self.disk.issued += 1;
        self.disk.idle -= 1;
        self.disk.most_in_flight = self.disk.most_in_flight.max(DEPTH - self.disk.idle);
        let write =
            self.disk.phase == Phase::Write || self.disk.phase == Phase::PastEnd && number == 1;
        let op = if write {
            fill(block, at, self.plan.seed);
            BlockOp::Write(at, block)
        } else {
            block.0.fill(0xa5);
            BlockOp::Read(at, block)
        };
        Some(Action::Block(BlockRequest { tag: Tag(slot as u64), op }))
    }

    fn on_completion(&mut self, now: Instant, completion: Completion<'m>) {
        let Completion { tag, op, result } = completion;
        match (self.disk.phase, &op, result) {
            (Phase::PastEnd, BlockOp::Read(..) | BlockOp::Write(..), Err(IoError::OutOfRange)) => {}
            (Phase::PastEnd, _, _) => self.fail(Failure::PastEnd),
            (_, BlockOp::Flush, Err(error)) => self.fail(Failure::Flush(error)),
            (_, BlockOp::Read(at, _) | BlockOp::Write(at, _), Err(error)) => {
                self.fail(Failure::Disk(*at, error));
            }
            (Phase::Inspect, BlockOp::Read(_, block), Ok(())) => {
                let ours = block.0[..8] == MAGIC.to_le_bytes();
                if !ours && block.0.iter().any(|&byte| byte != 0) {
                    self.fail(Failure::NotScratch);
                }
            }
            (Phase::Read, BlockOp::Read(at, block), Ok(())) => {
                if !matches(block, *at, self.plan.seed) {
                    self.fail(Failure::Verify(*at));
                }
            }
            (_, _, Ok(())) => {}
        }
        match op {
            BlockOp::Read(_, block) | BlockOp::Write(_, block) => {
                if let Some(slot) = self.disk.buffers.get_mut(tag.0 as usize) {
                    *slot = Some(block);
                }
                self.disk.idle += 1;
            }
            BlockOp::Flush => {}
        }
        self.disk.finished += 1;
        if self.disk.finished == self.phase_requests() {
            self.next_phase(now);
        }
    }

    fn next_phase(&mut self, now: Instant) {
        let phase = self.disk.phase;
        let took = now.since(self.disk.phase_start).as_micros() as u64;
        self.note(Note::Disk(phase.name(), self.disk.finished, took));
        self.disk.phase = match phase {
            Phase::Inspect => Phase::Write,
            Phase::Write => Phase::Flush,
            Phase::Flush => Phase::Read,
            Phase::Read => Phase::PastEnd,
            Phase::PastEnd | Phase::Done => Phase::Done,
        };
        if self.disk.phase == Phase::Done {
            self.note(Note::Depth(self.disk.most_in_flight));
        }
        self.disk.phase_start = now;
        self.disk.issued = 0;
        self.disk.finished = 0;
    }

    fn peer(&mut self, stream: StreamId) -> Option<&mut Peer> {
        self.peers.iter_mut().find(|peer| peer.stream == Some(stream))
    }

    fn on_accepted(&mut self, stream: StreamId) {
        match self.peers.iter_mut().find(|peer| peer.stream.is_none()) {
            Some(peer) => {
                peer.stream = Some(stream);
                (peer.start, peer.end, peer.echoed) = (0, 0, 0);
            }
            None => self.act(Action::Close(stream)),
        }
    }

    fn on_received(&mut self, now: Instant, stream: StreamId, len: usize) {
        if let Some(peer) = self.peer(stream) {
            peer.end += len;
            return;
        }
        let Client::Open { stream: open, received, start, .. } = &mut self.client else {
            return;
        };
        let at = *received % 256;
        let good = *open == stream && self.received[..len] == self.pattern[at..at + len];
        *received += len;
        let (done, took) = (*received == CLIENT_BYTES, now.since(*start).as_micros() as u64);
        if !good {
            self.fail(Failure::Echo);
        } else if done {
            self.client = Client::Done;
            self.note(Note::Client(CLIENT_BYTES as u64, took));
            self.act(Action::Close(stream));
        }
    }

    fn on_sent(&mut self, stream: StreamId, len: usize) {
        if let Some(peer) = self.peer(stream) {
            peer.start += len;
            peer.echoed += len as u64;
            if peer.start == peer.end {
                (peer.start, peer.end) = (0, 0);
            }
        } else if let Client::Open { sent, .. } = &mut self.client {
            *sent += len;
        }
    }

    fn on_closed(&mut self, stream: StreamId) {
        if let Some(peer) = self.peer(stream) {
            peer.stream = None;
            let echoed = peer.echoed;
            if echoed > 0 {
                self.echo_done = true;
                self.note(Note::Echoed(echoed));
            }
        } else {
            self.fail(Failure::Connect);
        }
    }

    fn deadlines(&self) -> Option<(Instant, Instant)> {
        let started = self.started?;
        let lingered = started.plus(self.plan.linger);
        Some((lingered, lingered.plus(PATIENCE)))
    }
}

impl<'m> Node<'m> for SelfTest<'m> {
    fn handle(&mut self, now: Instant, event: Event<'m>) {
        match event {
            Event::Completed(completion) => self.on_completion(now, completion),
            Event::Accepted(stream) => self.on_accepted(stream),
            Event::Connected { stream, .. } => {
                self.client = Client::Open { stream, sent: 0, received: 0, start: now };
            }
            Event::ConnectFailed { .. } => self.fail(Failure::Connect),
            Event::ListenFailed => self.fail(Failure::Listen),
            Event::Received { stream, len } => self.on_received(now, stream, len),
            Event::Sent { stream, len } => self.on_sent(stream, len),
            Event::Closed(stream) => self.on_closed(stream),
        }
    }

    fn step(&mut self, now: Instant) -> More {
        if self.started.is_none() {
            self.start(now);
        }
        if let Some((lingered, patience)) = self.deadlines() {
            if !self.linger_done && now >= lingered {
                self.linger_done = true;
                self.note(Note::Lingered);
            }
            if now >= patience {
                self.fail(Failure::Timeout);
            }
        }
        let client_done = matches!(self.client, Client::Off | Client::Done);
        let disk_done = self.disk.phase == Phase::Done;
        if disk_done
            && client_done
            && self.echo_done
            && self.linger_done
            && self.verdict == Verdict::Running
        {
            self.verdict = Verdict::Passed;
        }
        More::No
    }

    fn poll_action(&mut self) -> Option<Action<'m>> {
        self.actions.pop_front().or_else(|| self.next_request())
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let (lingered, patience) = self.deadlines()?;
        match (self.verdict, self.linger_done) {
            (Verdict::Running, false) => Some(lingered),
            (Verdict::Running, true) => Some(patience),
            (Verdict::Passed | Verdict::Failed(_), _) => None,
        }
    }

    fn recv_space(&mut self, stream: StreamId) -> &mut [u8] {
        if let Some(index) = self.peers.iter().position(|peer| peer.stream == Some(stream)) {
            let peer = &mut self.peers[index];
            return &mut peer.bytes[peer.end..];
        }
        match &self.client {
            Client::Open { stream: open, received, .. } if *open == stream => {
                let most = 256.min(CLIENT_BYTES - received);
                &mut self.received[..most]
            }
            Client::Open { .. } | Client::Off | Client::Connecting | Client::Done => &mut [],
        }
    }

    fn send_bytes(&self, stream: StreamId) -> &[u8] {
        if let Some(peer) = self.peers.iter().find(|peer| peer.stream == Some(stream)) {
            return &peer.bytes[peer.start..peer.end];
        }
        match &self.client {
            Client::Open { stream: open, sent, .. } if *open == stream => {
                let (at, most) = (sent % 256, 256.min(CLIENT_BYTES - sent));
                &self.pattern[at..at + most]
            }
            Client::Open { .. } | Client::Off | Client::Connecting | Client::Done => &[],
        }
    }
}

/// What a block of this run holds: the magic number, its address, and words made of both and the
/// seed.
fn words(at: BlockNo, seed: u64) -> impl Iterator<Item = u64> {
    let mut state = seed ^ at.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    [MAGIC, at.0].into_iter().chain(core::iter::repeat_with(move || {
        // Xorshift (Marsaglia 2003), away from its fixed point.
        state |= 1;
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }))
}

fn fill(block: &mut Block, at: BlockNo, seed: u64) {
    for (chunk, word) in block.0.as_chunks_mut::<8>().0.iter_mut().zip(words(at, seed)) {
        *chunk = word.to_le_bytes();
    }
}

fn matches(block: &Block, at: BlockNo, seed: u64) -> bool {
    let expected = words(at, seed).map(u64::to_le_bytes);
    block.0.as_chunks::<8>().0.iter().zip(expected).all(|(chunk, word)| *chunk == word)
}

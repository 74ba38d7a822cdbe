//! A replicated counter: each machine counts to a goal, durably, and tells all others how far it
//! is.
//!
//! It exists to prove the simulator, so it uses everything a node has: in-place writes that a
//! zombie must not undo, flushes before anything is announced, streams that are dialled again,
//! timers, restarts from nothing but the disk.
//!
//! # Invariants
//!
//! * A count is announced when it is durable. A new life makes durable what it has found before it
//!   announces it: its former life may not have come to the flush.
//! * Each life writes two pairs of blocks of its own in turn, so a late write of a former life can
//!   only hit blocks that nobody relies on.
//! * Frames of one stream are numbered. A gap is a broken promise of the network.
//!
//! ```text
//! Reading --all read--> Writing --completed--> Flushing --completed--> Idle --timer--> Writing
//!                          ^------- error, again ---'
//! ```

use crate::check::counter::Counters;
use crate::faults::{Fault, FaultSet, Promise};
use crate::image::Image;
use crate::net::Net;
use crate::node::{Boot, Guest, Program};
use crate::scenario::Scenario;
use crate::time::{MILLI, MINUTE, SECOND};
use crate::trace::HostId;
use crate::world::World;
use outrider_core::arena::Arena;
use outrider_core::crc32c::crc32c;
use outrider_core::node::{Action, Event, More, Node};
use outrider_hal::{
    BLOCK_BYTES, Block, BlockNo, BlockOp, BlockRequest, Completion, Endpoint, Instant, StreamId,
    Tag,
};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

const HOSTS: usize = 3;
const PORT: u16 = 7000;
/// How far each machine counts.
pub const GOAL: u64 = 200;
/// Lives of one machine whose late writes may still be under way.
const LIVES: u64 = 256;
/// Copies of each count, written at once.
const COPIES: u64 = 2;
const AREA_BLOCKS: u64 = 2 * COPIES * LIVES;
const FRAME_BYTES: usize = 4 + 8 + 8 * HOSTS;

/// The scenario.
pub const SCENARIO: Scenario = Scenario {
    name: "counter",
    demands,
    demanded_work: &[],
    goals: &[],
    fault_goal: Some(1_000),
    world,
    faulty: MINUTE,
    settles_within: MINUTE,
};

fn demands() -> FaultSet {
    let damage = [
        Fault::DiskRot,
        Fault::DiskRotOnce,
        Fault::DiskMisdirectedRead,
        Fault::DiskMisdirectedWrite,
        Fault::DiskBadBlock,
        // Nobody reads what another machine writes.
        Fault::DiskTornRead,
    ];
    FaultSet::ALL.without(FaultSet::of(&damage))
}

fn world(seed: u64) -> World {
    let promise = Promise {
        survives: demands(),
        hosts_impaired_max: 2,
        blocks_damaged_max: 0,
        damageable: 0..0,
    };
    let mut world = World::new(seed, promise, Image::new(HOSTS as u64 * AREA_BLOCKS));
    for host in 0..HOSTS as u16 {
        world.add_host("counter", Counting { me: HostId(host) });
    }
    world.add_checker(Counters::new());
    world
}

/// The program.
struct Counting {
    me: HostId,
}

impl Program for Counting {
    fn region_bytes(&self) -> usize {
        COPIES as usize * size_of::<Block>()
    }

    fn start(&self, boot: Boot) -> Box<dyn Guest> {
        let mut arena = Arena::new(boot.region).expect("regions are aligned");
        let buffers = arena.slice(COPIES as u32, |_| Block::ZERO).expect("the region is that big");
        let life = u64::from(boot.boots);
        let listen = Action::Listen(Endpoint { port: PORT, ..boot.addr });
        Box::new(Counter {
            me: usize::from(self.me.0),
            life,
            buffers: buffers.iter_mut().collect(),
            in_flight: 0,
            failed: false,
            phase: Phase::Reading { life: life.saturating_sub(1), slot: 0, best: 0 },
            writes_ever: 0,
            known: [0; HOSTS],
            started: false,
            next_count_at: None,
            next_frame_at: boot.now,
            retry_disk_at: None,
            listen_at: None,
            links: std::array::from_fn(|_| Link::Down { dial_at: boot.now }),
            lines: BTreeMap::new(),
            actions: VecDeque::from([listen]),
            attempts_ever: 0,
            garbled: 0,
            broken: None,
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Looking for the newest former life that has left a count.
    Reading {
        life: u64,
        slot: u64,
        best: u64,
    },
    Writing(u64),
    Flushing(u64),
    Idle,
}

/// The way to a machine that this one dials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Down { dial_at: Instant },
    Dialing { attempt: u32 },
    Up(StreamId),
}

#[derive(Debug)]
struct Line {
    out: Vec<u8>,
    frames_out: u64,
    space: [u8; FRAME_BYTES],
    used: usize,
    frames_in: u64,
    heard_at: Instant,
}

/// The node.
pub struct Counter {
    me: usize,
    life: u64,
    buffers: Vec<&'static mut Block>,
    in_flight: u32,
    /// Whether a request of this phase has failed.
    failed: bool,
    phase: Phase,
    writes_ever: u64,
    known: [u64; HOSTS],
    started: bool,
    next_count_at: Option<Instant>,
    next_frame_at: Instant,
    retry_disk_at: Option<Instant>,
    listen_at: Option<Instant>,
    links: [Link; HOSTS],
    lines: BTreeMap<StreamId, Line>,
    actions: VecDeque<Action<'static>>,
    attempts_ever: u32,
    garbled: u64,
    broken: Option<String>,
}

impl Counter {
    /// How far it knows each machine to be, once it knows how far it is itself.
    #[must_use]
    pub fn known(&self) -> Option<&[u64]> {
        (self.known[self.me] > 0).then_some(&self.known)
    }

    /// What the platform has done that it must not.
    #[must_use]
    pub fn broken(&self) -> Option<&str> {
        self.broken.as_deref()
    }

    /// Frames thrown away because their checksum was wrong.
    #[must_use]
    pub fn garbled(&self) -> u64 {
        self.garbled
    }

    /// Where the copies of a life's even or odd counts stand.
    fn copies(&self, life: u64, slot: u64) -> Range<u64> {
        let first = self.me as u64 * AREA_BLOCKS + COPIES * (2 * (life % LIVES) + slot);
        first..first + COPIES
    }

    fn submit(&mut self, op: BlockOp<'static>) {
        self.in_flight += 1;
        self.actions.push_back(Action::Block(BlockRequest { tag: Tag(0), op }));
    }

    /// Starts what the phase wants from the disk.
    fn start_io(&mut self) {
        match self.phase {
            Phase::Reading { life: 0, best, .. } => {
                self.phase = Phase::Writing(best.max(1));
                self.start_io();
            }
            Phase::Reading { life, slot, .. } => {
                for blkno in self.copies(life, slot) {
                    let buffer = self.buffers.pop().expect("one for each copy");
                    self.submit(BlockOp::Read(BlockNo(blkno), buffer));
                }
            }
            Phase::Writing(count) => {
                for blkno in self.copies(self.life, self.writes_ever % 2) {
                    let buffer = self.buffers.pop().expect("one for each copy");
                    seal(buffer, self.life, count);
                    self.submit(BlockOp::Write(BlockNo(blkno), buffer));
                }
            }
            Phase::Flushing(_) => self.submit(BlockOp::Flush),
            Phase::Idle => {}
        }
    }

    fn on_completed(&mut self, now: Instant, done: Completion<'static>) {
        self.in_flight -= 1;
        self.failed |= done.result.is_err();
        if let BlockOp::Read(_, buffer) | BlockOp::Write(_, buffer) = done.op {
            let found = open(buffer);
            self.buffers.push(buffer);
            if let (Phase::Reading { life, best, .. }, Some((of, count))) = (&mut self.phase, found)
                && of == *life
                && done.result.is_ok()
            {
                *best = count.max(*best);
            }
        }
        if self.in_flight > 0 {
            return;
        }
        if std::mem::take(&mut self.failed) {
            // A failed flush may have dropped the writes: write again.
            if let Phase::Flushing(count) = self.phase {
                self.phase = Phase::Writing(count);
            }
            self.retry_disk_at = Some(now.plus(100 * MILLI));
            return;
        }
        self.phase = self.next_phase();
        self.start_io();
    }

    /// What follows a phase all of whose requests succeeded.
    fn next_phase(&mut self) -> Phase {
        match self.phase {
            Phase::Reading { life, slot: 0, best } => Phase::Reading { life, slot: 1, best },
            Phase::Reading { life, best, .. } if best > 0 || life + LIVES <= self.life => {
                Phase::Writing(best.max(1))
            }
            Phase::Reading { life, .. } => Phase::Reading { life: life - 1, slot: 0, best: 0 },
            Phase::Writing(count) => Phase::Flushing(count),
            Phase::Flushing(count) => {
                self.known[self.me] = count;
                self.writes_ever += 1;
                Phase::Idle
            }
            Phase::Idle => Phase::Idle,
        }
    }

    fn start_line(&mut self, now: Instant, stream: StreamId) {
        let line = Line {
            out: Vec::new(),
            frames_out: 0,
            space: [0; FRAME_BYTES],
            used: 0,
            frames_in: 0,
            heard_at: now,
        };
        self.lines.insert(stream, line);
    }

    fn end_line(&mut self, now: Instant, stream: StreamId) {
        self.lines.remove(&stream);
        for link in &mut self.links {
            if *link == Link::Up(stream) {
                *link = Link::Down { dial_at: now.plus(200 * MILLI) };
            }
        }
    }

    fn on_received(&mut self, now: Instant, stream: StreamId, len: usize) {
        let Some(line) = self.lines.get_mut(&stream) else { return };
        line.used += len;
        line.heard_at = now;
        if line.used < FRAME_BYTES {
            return;
        }
        line.used = 0;
        let word = |at: usize| {
            let bytes = line.space[at..at + 8].try_into();
            u64::from_le_bytes(bytes.expect("eight bytes"))
        };
        if line.space[..4] != crc32c(&line.space[4..]).to_le_bytes() {
            self.garbled += 1;
            self.actions.push_back(Action::Close(stream));
            self.end_line(now, stream);
            return;
        }
        if word(4) != line.frames_in {
            self.broken = Some(format!("frame {} where {} is due", word(4), line.frames_in));
        }
        line.frames_in += 1;
        let counts: [u64; HOSTS] = std::array::from_fn(|index| word(12 + 8 * index));
        for (index, (known, count)) in self.known.iter_mut().zip(counts).enumerate() {
            if index != self.me {
                *known = count.max(*known);
            }
        }
    }

    fn send_frames(&mut self) {
        for line in self.lines.values_mut().filter(|line| line.out.is_empty()) {
            let mut frame = vec![0; 4];
            frame.extend(line.frames_out.to_le_bytes());
            frame.extend(self.known.iter().flat_map(|count| count.to_le_bytes()));
            let crc = crc32c(&frame[4..]);
            frame[..4].copy_from_slice(&crc.to_le_bytes());
            line.frames_out += 1;
            line.out = frame;
        }
    }

    fn step_links(&mut self, now: Instant) {
        let silent = |line: &Line| now.since(line.heard_at) > 5 * SECOND;
        let dead: Vec<StreamId> =
            self.lines.iter().filter(|(_, line)| silent(line)).map(|(id, _)| *id).collect();
        for stream in dead {
            self.actions.push_back(Action::Close(stream));
            self.end_line(now, stream);
        }
        for peer in 0..self.me {
            if let Link::Down { dial_at } = self.links[peer]
                && dial_at <= now
            {
                self.attempts_ever += 1;
                let attempt = self.attempts_ever;
                self.links[peer] = Link::Dialing { attempt };
                let to = Endpoint { addr: Net::addr(HostId(peer as u16)), port: PORT };
                self.actions.push_back(Action::Connect { attempt, to });
            }
        }
    }
}

impl Node<'static> for Counter {
    fn handle(&mut self, now: Instant, event: Event<'static>) {
        match event {
            Event::Completed(done) => self.on_completed(now, done),
            Event::Accepted(stream) => self.start_line(now, stream),
            Event::Connected { attempt, stream } => {
                self.start_line(now, stream);
                let dialed = self.links.iter_mut().find(|l| **l == Link::Dialing { attempt });
                if let Some(link) = dialed {
                    *link = Link::Up(stream);
                }
            }
            Event::ConnectFailed { attempt } => {
                let dialed = self.links.iter_mut().find(|l| **l == Link::Dialing { attempt });
                if let Some(link) = dialed {
                    *link = Link::Down { dial_at: now.plus(200 * MILLI) };
                }
            }
            Event::ListenFailed => self.listen_at = Some(now.plus(SECOND)),
            Event::Received { stream, len } => self.on_received(now, stream, len),
            Event::Sent { stream, len } => {
                if let Some(line) = self.lines.get_mut(&stream) {
                    line.out.drain(..len);
                }
            }
            Event::Closed(stream) => self.end_line(now, stream),
        }
    }

    fn step(&mut self, now: Instant) -> More {
        if !self.started {
            self.started = true;
            self.start_io();
        }
        if self.retry_disk_at.is_some_and(|at| at <= now) {
            self.retry_disk_at = None;
            self.start_io();
        }
        if self.listen_at.is_some_and(|at| at <= now) {
            self.listen_at = None;
            let addr = Net::addr(HostId(self.me as u16));
            self.actions.push_back(Action::Listen(Endpoint { addr, port: PORT }));
        }
        if self.phase == Phase::Idle && self.known[self.me] < GOAL {
            let at = *self.next_count_at.get_or_insert(now.plus(100 * MILLI));
            if at <= now {
                self.next_count_at = None;
                self.phase = Phase::Writing(self.known[self.me] + 1);
                self.start_io();
            }
        }
        if self.next_frame_at <= now {
            self.next_frame_at = now.plus(500 * MILLI);
            self.send_frames();
            self.step_links(now);
        }
        More::No
    }

    fn poll_action(&mut self) -> Option<Action<'static>> {
        self.actions.pop_front()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let next_frame_at = Some(self.next_frame_at);
        let times = [self.retry_disk_at, self.listen_at, self.next_count_at, next_frame_at];
        times.into_iter().flatten().min()
    }

    fn recv_space(&mut self, stream: StreamId) -> &mut [u8] {
        self.lines.get_mut(&stream).map_or(&mut [], |line| &mut line.space[line.used..])
    }

    fn send_bytes(&self, stream: StreamId) -> &[u8] {
        self.lines.get(&stream).map_or(&[], |line| &line.out)
    }
}

fn seal(block: &mut Block, life: u64, count: u64) {
    for (index, word) in block.0.chunks_mut(8).enumerate() {
        word.copy_from_slice(&if index % 2 == 0 { life } else { count }.to_le_bytes());
    }
    let crc = crc32c(&block.0[..BLOCK_BYTES - 4]);
    block.0[BLOCK_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
}

fn open(block: &Block) -> Option<(u64, u64)> {
    let (body, crc) = block.0.split_last_chunk::<4>()?;
    let word = |at: usize| Some(u64::from_le_bytes(*body.get(at..)?.first_chunk()?));
    (crc32c(body).to_le_bytes() == *crc).then_some((word(0)?, word(8)?))
}

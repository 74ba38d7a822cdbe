//! A node on strings: does what a test tells it, and remembers what happened to it.
//!
//! # Invariants
//!
//! * It has no behaviour of its own: it acts when told to, and nothing else.
//! * Everything it is told is in [`Puppet::seen`], in order; bytes are in [`Puppet::heard`].

use crate::node::{Boot, Guest, Program};
use outrider_core::arena::Arena;
use outrider_core::node::{Action, Event, More, Node};
use outrider_hal::{
    Block, BlockNo, BlockOp, BlockRequest, BlockResult, Endpoint, Instant, StreamId, Tag,
};
use std::collections::{BTreeMap, VecDeque};

const RECV_BYTES: usize = 4096;

/// The program of puppets.
#[derive(Debug, Clone, Copy)]
pub struct Puppets {
    /// Requests a puppet can have at the disk.
    pub blocks: u32,
    /// The port it listens at from its start.
    pub port: u16,
}

/// What has happened to a puppet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// A request finished; the first byte of its block.
    Completed(Tag, BlockResult, Option<u8>),
    /// A peer connected.
    Accepted(StreamId),
    /// An attempt succeeded.
    Connected(u32, StreamId),
    /// An attempt failed.
    ConnectFailed(u32),
    /// Its endpoint can't be had.
    ListenFailed,
    /// A stream has ended.
    Closed(StreamId),
    /// The timer has gone off.
    Timer,
}

#[derive(Debug, Default)]
struct Line {
    to_send: Vec<u8>,
    heard: Vec<u8>,
    deaf: bool,
}

/// The node.
#[derive(Debug)]
pub struct Puppet {
    /// What has happened, with the time on the puppet's clock.
    pub seen: Vec<(Instant, Seen)>,
    free: Vec<&'static mut Block>,
    actions: VecDeque<Action<'static>>,
    lines: BTreeMap<StreamId, Line>,
    space: Box<[u8]>,
    timer: Option<Instant>,
}

impl Program for Puppets {
    fn region_bytes(&self) -> usize {
        self.blocks as usize * size_of::<Block>()
    }

    fn start(&self, boot: Boot) -> Box<dyn Guest> {
        let mut arena = Arena::new(boot.region).expect("regions are aligned");
        let blocks = arena.slice(self.blocks, |_| Block::ZERO).expect("the region is that big");
        let listen = Action::Listen(Endpoint { port: self.port, ..boot.addr });
        Box::new(Puppet {
            seen: Vec::new(),
            free: blocks.iter_mut().collect(),
            actions: VecDeque::from([listen]),
            lines: BTreeMap::new(),
            space: vec![0; RECV_BYTES].into_boxed_slice(),
            timer: None,
        })
    }
}

impl Puppet {
    /// Reads a block.
    ///
    /// # Panics
    ///
    /// When all its blocks are at the disk, as [`write`](Self::write) does.
    pub fn read(&mut self, tag: u64, blkno: u64) {
        let to = self.free.pop().expect("the test keeps within the puppet's blocks");
        let op = BlockOp::Read(BlockNo(blkno), to);
        self.actions.push_back(Action::Block(BlockRequest { tag: Tag(tag), op }));
    }

    /// Fills a block with this byte.
    pub fn write(&mut self, tag: u64, blkno: u64, fill: u8) {
        let from = self.free.pop().expect("the test keeps within the puppet's blocks");
        from.0.fill(fill);
        let op = BlockOp::Write(BlockNo(blkno), from);
        self.actions.push_back(Action::Block(BlockRequest { tag: Tag(tag), op }));
    }

    /// Flushes.
    pub fn flush(&mut self, tag: u64) {
        let op = BlockOp::Flush;
        self.actions.push_back(Action::Block(BlockRequest { tag: Tag(tag), op }));
    }

    /// Does this.
    pub fn act(&mut self, action: Action<'static>) {
        if let Action::Close(stream) = &action {
            self.lines.remove(stream);
        }
        self.actions.push_back(action);
    }

    /// Sends these bytes after all others given for the stream.
    pub fn say(&mut self, stream: StreamId, bytes: &[u8]) {
        self.lines.entry(stream).or_default().to_send.extend_from_slice(bytes);
    }

    /// How many bytes given for the stream were not taken yet.
    #[must_use]
    pub fn unsent(&self, stream: StreamId) -> usize {
        self.lines.get(&stream).map_or(0, |line| line.to_send.len())
    }

    /// Everything received from the stream so far, also after its end.
    #[must_use]
    pub fn heard(&self, stream: StreamId) -> &[u8] {
        self.lines.get(&stream).map_or(&[], |line| &line.heard)
    }

    /// Takes nothing more from the stream, or takes again.
    pub fn turn_deaf(&mut self, stream: StreamId, deaf: bool) {
        self.lines.entry(stream).or_default().deaf = deaf;
    }

    /// Wants to be stepped at this time.
    pub fn set_timer(&mut self, at: Instant) {
        self.timer = Some(at);
    }

    /// Whether this has happened.
    #[must_use]
    pub fn has_seen(&self, what: Seen) -> bool {
        self.seen.iter().any(|(_, seen)| *seen == what)
    }

    /// How the request of this tag has ended, if it has.
    #[must_use]
    pub fn result(&self, tag: u64) -> Option<BlockResult> {
        self.seen.iter().find_map(|(_, seen)| match seen {
            Seen::Completed(done, result, _) if *done == Tag(tag) => Some(*result),
            _ => None,
        })
    }

    /// The first stream that came of connecting or accepting.
    #[must_use]
    pub fn stream(&self) -> Option<StreamId> {
        self.seen.iter().find_map(|(_, seen)| match seen {
            Seen::Accepted(stream) | Seen::Connected(_, stream) => Some(*stream),
            _ => None,
        })
    }
}

impl Node<'static> for Puppet {
    fn handle(&mut self, now: Instant, event: Event<'static>) {
        let seen = match event {
            Event::Completed(done) => {
                let (block, byte) = match done.op {
                    BlockOp::Read(_, block) | BlockOp::Write(_, block) => {
                        let byte = block.0[0];
                        (Some(block), Some(byte))
                    }
                    BlockOp::Flush => (None, None),
                };
                self.free.extend(block);
                Seen::Completed(done.tag, done.result, byte)
            }
            Event::Accepted(stream) => Seen::Accepted(stream),
            Event::Connected { attempt, stream } => Seen::Connected(attempt, stream),
            Event::ConnectFailed { attempt } => Seen::ConnectFailed(attempt),
            Event::ListenFailed => Seen::ListenFailed,
            Event::Received { stream, len } => {
                let line = self.lines.entry(stream).or_default();
                line.heard.extend_from_slice(&self.space[..len]);
                return;
            }
            Event::Sent { stream, len } => {
                self.lines.entry(stream).or_default().to_send.drain(..len);
                return;
            }
            Event::Closed(stream) => Seen::Closed(stream),
        };
        self.seen.push((now, seen));
    }

    fn step(&mut self, now: Instant) -> More {
        if self.timer.is_some_and(|at| at <= now) {
            self.timer = None;
            self.seen.push((now, Seen::Timer));
        }
        More::No
    }

    fn poll_action(&mut self) -> Option<Action<'static>> {
        self.actions.pop_front()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.timer
    }

    fn recv_space(&mut self, stream: StreamId) -> &mut [u8] {
        let deaf = self.lines.get(&stream).is_some_and(|line| line.deaf);
        if deaf { &mut [] } else { &mut self.space }
    }

    fn send_bytes(&self, stream: StreamId) -> &[u8] {
        self.lines.get(&stream).map_or(&[], |line| &line.to_send)
    }
}

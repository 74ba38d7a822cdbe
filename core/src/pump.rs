//! Drives a node on a platform: moves what has happened in, and what is wanted out.
//!
//! This is the one file of the core that is generic over the platform. The simulator has a driver
//! of its own.
//!
//! # One turn
//!
//! ```text
//! completions -> accepted connections -> received bytes -> step and actions -> bytes to send
//! ```
//!
//! # Invariants
//!
//! * A turn does a bounded amount of work ([`PumpLimits`]) and never waits. When a bound ended it,
//!   or an event came after the last step, it asks for another turn at once.
//! * Actions are carried out in the node's order. A block request that the device's queue has no
//!   room for stays at the head, and those behind it wait, until it has been taken.
//! * The node hears of a connection only between its `Accepted` or `Connected` and its `Closed`, or
//!   the node's own `Close`.
//! * A connection that the pump has no room to follow is not accepted, or its attempt fails.
//! * Bytes go straight from the network into the node's space, and from the node's bytes into the
//!   network. None wait in here.
//!
//! What this module deliberately doesn't know: any kind of node, any platform, and how to sleep.

use crate::arena::{Arena, ArenaFull};
use crate::node::{Action, Event, More, Node};
use embedded_io::{Read, ReadReady, Write, WriteReady};
use outrider_hal::{BlockDevice, Clock, Instant, NetError, Network, StreamId};

#[cfg(test)]
mod tests;

/// How much a pump follows, and how much one turn does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PumpLimits {
    /// Connections followed at a time, attempts included.
    pub streams: u32,
    /// Completions handed over in a turn.
    pub completions: u32,
    /// Connections accepted in a turn.
    pub accepts: u32,
    /// Reads, and writes, on each connection in a turn.
    pub transfers: u32,
    /// Steps of the node in a turn.
    pub steps: u32,
    /// Actions carried out after a step.
    pub actions: u32,
}

impl PumpLimits {
    /// Limits that suit a device with a queue of some dozens.
    pub const DEFAULT: PumpLimits = PumpLimits {
        streams: 64,
        completions: 128,
        accepts: 4,
        transfers: 4,
        steps: 16,
        actions: 128,
    };

    /// Whether a node gets anywhere with these limits: each turn can do some of everything.
    #[must_use]
    pub fn validate(&self) -> bool {
        let PumpLimits { streams, completions, accepts, transfers, steps, actions } = *self;
        [streams, completions, accepts, transfers, steps, actions].iter().all(|&limit| limit > 0)
    }
}

/// What the platform should wait for before the next turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Wake {
    /// Nothing: there is more to do.
    Now,
    /// A completion, anything on the network, or this time.
    At(Instant),
    /// A completion, or anything on the network.
    Event,
}

/// Why a pump can't be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PumpError {
    /// The limits let nothing happen.
    Limits,
    /// The arena has no room.
    Memory(ArenaFull),
}

/// A connection that is followed.
#[derive(Debug, Clone, Copy)]
struct Link {
    stream: StreamId,
    /// The node's number for the attempt, until it has succeeded.
    attempt: Option<u32>,
}

/// What looking at a connection came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// Nothing more can be moved now.
    Idle,
    /// The bound was reached, or an event was handed over.
    More,
    /// The connection has ended.
    Ended,
}

/// A node with the platform it runs on.
pub struct Pump<'m, N, D, W, C> {
    node: N,
    device: D,
    network: W,
    clock: C,
    limits: PumpLimits,
    links: &'m mut [Option<Link>],
    /// The block request that the device had no room for.
    deferred: Option<Action<'m>>,
}

impl<'m, N, D, W, C> Pump<'m, N, D, W, C>
where
    N: Node<'m>,
    D: BlockDevice<'m>,
    W: Network,
    C: Clock,
{
    /// Puts a node and its platform together.
    pub fn new(
        node: N,
        device: D,
        network: W,
        clock: C,
        limits: PumpLimits,
        arena: &mut Arena<'m>,
    ) -> Result<Self, PumpError> {
        if !limits.validate() {
            return Err(PumpError::Limits);
        }
        let links = arena.slice(limits.streams, |_| None).map_err(PumpError::Memory)?;
        Ok(Pump { node, device, network, clock, limits, links, deferred: None })
    }

    /// Counts, in a measuring arena, what [`new`](Self::new) carves.
    pub fn measure(limits: &PumpLimits, arena: &mut Arena<'_>) -> Result<(), ArenaFull> {
        arena.slice::<Option<Link>>(limits.streams, |_| None).map(drop)
    }

    /// The node.
    pub fn node(&self) -> &N {
        &self.node
    }

    /// The node, for what its owner asks of it between turns.
    pub fn node_mut(&mut self) -> &mut N {
        &mut self.node
    }

    /// The block device, for what its platform does to it between turns.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// The network, for what its platform does to it between turns.
    pub fn network_mut(&mut self) -> &mut W {
        &mut self.network
    }

    /// The clock.
    pub fn clock_mut(&mut self) -> &mut C {
        &mut self.clock
    }

    /// Does one turn, and says what the next one waits for.
    pub fn turn(&mut self) -> Wake {
        let mut more = self.take_completions();
        more |= self.accept();
        more |= self.receive();
        more |= self.work();
        more |= self.send();
        if more {
            return Wake::Now;
        }
        match self.node.poll_timeout() {
            Some(at) if at <= self.clock.now() => Wake::Now,
            Some(at) => Wake::At(at),
            None => Wake::Event,
        }
    }

    /// Hands completions over; `true` when there may be more.
    fn take_completions(&mut self) -> bool {
        for _ in 0..self.limits.completions {
            let Some(completion) = self.device.poll() else {
                return false;
            };
            let now = self.clock.now();
            self.node.handle(now, Event::Completed(completion));
        }
        true
    }

    /// Accepts connections while they can be followed; `true` when there may be more.
    fn accept(&mut self) -> bool {
        for _ in 0..self.limits.accepts {
            let Some(free) = self.links.iter_mut().find(|link| link.is_none()) else {
                return false;
            };
            let Some(stream) = self.network.accept() else {
                return false;
            };
            *free = Some(Link { stream, attempt: None });
            let now = self.clock.now();
            self.node.handle(now, Event::Accepted(stream));
        }
        true
    }

    /// Moves received bytes into the node; `true` when there may be more.
    fn receive(&mut self) -> bool {
        let mut more = false;
        for index in 0..self.links.len() {
            let Some(link) = self.links[index] else {
                continue;
            };
            let flow = match link.attempt {
                Some(attempt) => self.follow_attempt(index, link.stream, attempt),
                None => self.receive_from(link.stream),
            };
            match flow {
                Flow::Idle => {}
                Flow::More => more = true,
                Flow::Ended => self.end(index, link),
            }
        }
        more
    }

    /// Sees how a connection attempt is doing.
    fn follow_attempt(&mut self, index: usize, stream: StreamId, attempt: u32) -> Flow {
        let ready = match self.network.stream(stream) {
            Some(connection) => connection.write_ready(),
            None => Err(NetError::Closed),
        };
        match ready {
            Ok(false) => Flow::Idle,
            Ok(true) => {
                self.links[index] = Some(Link { stream, attempt: None });
                let now = self.clock.now();
                self.node.handle(now, Event::Connected { attempt, stream });
                // Its first bytes may have come already.
                Flow::More
            }
            Err(_) => Flow::Ended,
        }
    }

    fn receive_from(&mut self, stream: StreamId) -> Flow {
        for _ in 0..self.limits.transfers {
            let Some(connection) = self.network.stream(stream) else {
                return Flow::Ended;
            };
            match connection.read_ready() {
                Ok(true) => {}
                Ok(false) => return Flow::Idle,
                Err(_) => return Flow::Ended,
            }
            let space = self.node.recv_space(stream);
            if space.is_empty() {
                return Flow::Idle;
            }
            match connection.read(space) {
                Ok(0) | Err(_) => return Flow::Ended,
                Ok(len) => {
                    let now = self.clock.now();
                    self.node.handle(now, Event::Received { stream, len });
                }
            }
        }
        Flow::More
    }

    /// Forgets a connection that has ended, and tells the node.
    fn end(&mut self, index: usize, link: Link) {
        self.links[index] = None;
        self.network.close(link.stream);
        let event = match link.attempt {
            Some(attempt) => Event::ConnectFailed { attempt },
            None => Event::Closed(link.stream),
        };
        let now = self.clock.now();
        self.node.handle(now, event);
    }

    /// Lets the node work and carries out what it wants; `true` when it has more to do.
    fn work(&mut self) -> bool {
        let mut more = false;
        for _ in 0..self.limits.steps {
            let now = self.clock.now();
            let step = self.node.step(now);
            more = self.act();
            match step {
                More::Yes => more = true,
                More::No => {}
            }
            if !more {
                break;
            }
        }
        more
    }

    /// Carries out actions; `true` when there may be more, or one was answered at once.
    fn act(&mut self) -> bool {
        let mut answered = false;
        for _ in 0..self.limits.actions {
            let Some(action) = self.deferred.take().or_else(|| self.node.poll_action()) else {
                return answered;
            };
            match action {
                Action::Block(request) => {
                    if let Err(request) = self.device.submit(request) {
                        self.deferred = Some(Action::Block(request));
                        return answered;
                    }
                }
                Action::Listen(at) => {
                    if self.network.listen(at).is_err() {
                        answered = true;
                        let now = self.clock.now();
                        self.node.handle(now, Event::ListenFailed);
                    }
                }
                Action::Unlisten => self.network.unlisten(),
                Action::Connect { attempt, to } => {
                    if !self.connect(attempt, to) {
                        answered = true;
                        let now = self.clock.now();
                        self.node.handle(now, Event::ConnectFailed { attempt });
                    }
                }
                Action::Close(stream) => self.close(stream),
            }
        }
        true
    }

    /// Starts an attempt; `false` when it has failed already.
    fn connect(&mut self, attempt: u32, to: outrider_hal::Endpoint) -> bool {
        let Some(free) = self.links.iter_mut().find(|link| link.is_none()) else {
            return false;
        };
        match self.network.connect(to) {
            Ok(stream) => {
                *free = Some(Link { stream, attempt: Some(attempt) });
                true
            }
            Err(_) => false,
        }
    }

    fn close(&mut self, stream: StreamId) {
        let of_stream = |link: &&mut Option<Link>| link.is_some_and(|link| link.stream == stream);
        if let Some(link) = self.links.iter_mut().find(of_stream) {
            *link = None;
            self.network.close(stream);
        }
    }

    /// Moves the node's bytes into the network; `true` when the node must hear of it in a step.
    fn send(&mut self) -> bool {
        let mut more = false;
        for index in 0..self.links.len() {
            let Some(link @ Link { stream, attempt: None }) = self.links[index] else {
                continue;
            };
            match self.send_to(stream) {
                Flow::Idle => {}
                Flow::More => more = true,
                Flow::Ended => {
                    more = true;
                    self.end(index, link);
                }
            }
        }
        more
    }

    fn send_to(&mut self, stream: StreamId) -> Flow {
        let mut flow = Flow::Idle;
        for _ in 0..self.limits.transfers {
            let bytes = self.node.send_bytes(stream);
            if bytes.is_empty() {
                break;
            }
            let Some(connection) = self.network.stream(stream) else {
                return Flow::Ended;
            };
            match connection.write_ready() {
                Ok(true) => {}
                Ok(false) => break,
                Err(_) => return Flow::Ended,
            }
            match connection.write(bytes) {
                Ok(0) => break,
                Ok(len) => {
                    let now = self.clock.now();
                    self.node.handle(now, Event::Sent { stream, len });
                    flow = Flow::More;
                }
                Err(_) => return Flow::Ended,
            }
        }
        flow
    }
}

//! The pump over devices that are made up.

extern crate std;

use super::{Pump, PumpError, PumpLimits, Wake};
use crate::arena::Arena;
use crate::node::{Action, Event, More, Node};
use core::mem::MaybeUninit;
use embedded_io::{ErrorType, Read, ReadReady, Write, WriteReady};
use outrider_hal::{
    Block, BlockDevice, BlockNo, BlockOp, BlockRequest, Clock, Completion, Endpoint, Instant,
    NetError, Network, StreamId, Tag,
};
use proptest::prelude::*;
use std::boxed::Box;
use std::collections::{BTreeMap, VecDeque};
use std::string::String;
use std::{format, vec, vec::Vec};

/// Takes `room` requests, completes them when told to.
struct FakeDevice {
    room: usize,
    held: VecDeque<BlockRequest<'static>>,
    finished: usize,
    submitted: Vec<u64>,
}

impl BlockDevice<'static> for FakeDevice {
    fn blocks(&self) -> u64 {
        1000
    }

    fn submit(&mut self, request: BlockRequest<'static>) -> Result<(), BlockRequest<'static>> {
        if self.held.len() == self.room {
            return Err(request);
        }
        self.submitted.push(request.tag.0);
        self.held.push_back(request);
        Ok(())
    }

    fn poll(&mut self) -> Option<Completion<'static>> {
        self.finished = self.finished.checked_sub(1)?;
        let BlockRequest { tag, op } = self.held.pop_front()?;
        Some(Completion { tag, op, result: Ok(()) })
    }
}

/// What a peer does, and what has reached it.
#[derive(Default)]
struct FakeStream {
    incoming: VecDeque<u8>,
    outgoing: Vec<u8>,
    established: bool,
    finished: bool,
    reset: bool,
    room: usize,
    chunk: usize,
}

impl ErrorType for FakeStream {
    type Error = NetError;
}

impl ReadReady for FakeStream {
    fn read_ready(&mut self) -> Result<bool, NetError> {
        if self.reset {
            return Err(NetError::Closed);
        }
        Ok(!self.incoming.is_empty() || self.finished)
    }
}

impl Read for FakeStream {
    fn read(&mut self, bytes: &mut [u8]) -> Result<usize, NetError> {
        assert!(!bytes.is_empty() && self.read_ready()?);
        let len = bytes.len().min(self.incoming.len()).min(self.chunk);
        for (to, from) in bytes.iter_mut().zip(self.incoming.drain(..len)) {
            *to = from;
        }
        Ok(len)
    }
}

impl WriteReady for FakeStream {
    fn write_ready(&mut self) -> Result<bool, NetError> {
        if self.reset {
            return Err(NetError::Closed);
        }
        Ok(self.established && self.room > 0)
    }
}

impl Write for FakeStream {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, NetError> {
        assert!(self.write_ready()?);
        let len = bytes.len().min(self.room).min(self.chunk);
        self.outgoing.extend_from_slice(&bytes[..len]);
        self.room -= len;
        Ok(len)
    }

    fn flush(&mut self) -> Result<(), NetError> {
        Ok(())
    }
}

#[derive(Default)]
struct FakeNetwork {
    streams: BTreeMap<u64, FakeStream>,
    arriving: VecDeque<FakeStream>,
    next: u64,
    listening: Option<Endpoint>,
    refuse: bool,
}

impl FakeNetwork {
    fn add(&mut self, stream: FakeStream) -> StreamId {
        self.next += 1;
        self.streams.insert(self.next, stream);
        StreamId(self.next)
    }
}

impl Network for FakeNetwork {
    type Stream = FakeStream;

    fn listen(&mut self, at: Endpoint) -> Result<(), NetError> {
        if self.refuse {
            return Err(NetError::Unavailable);
        }
        self.listening = Some(at);
        Ok(())
    }

    fn unlisten(&mut self) {
        self.listening = None;
    }

    fn accept(&mut self) -> Option<StreamId> {
        let stream = self.arriving.pop_front()?;
        Some(self.add(stream))
    }

    fn connect(&mut self, _: Endpoint) -> Result<StreamId, NetError> {
        if self.refuse {
            return Err(NetError::TooMany);
        }
        Ok(self.add(FakeStream { chunk: 100, room: 100, ..FakeStream::default() }))
    }

    fn stream(&mut self, id: StreamId) -> Option<&mut FakeStream> {
        self.streams.get_mut(&id.0)
    }

    fn close(&mut self, id: StreamId) {
        self.streams.remove(&id.0);
    }
}

struct FakeClock(u64);

impl Clock for FakeClock {
    fn now(&mut self) -> Instant {
        Instant(self.0)
    }
}

/// Notes down what it hears, echoes what it receives, and does as it is told.
#[derive(Default)]
struct FakeNode {
    heard: Vec<String>,
    actions: VecDeque<Action<'static>>,
    echo: BTreeMap<u64, Vec<u8>>,
    space: Vec<u8>,
    space_len: usize,
    steps_left: usize,
    steps_done: usize,
    timeout: Option<Instant>,
}

impl Node<'static> for FakeNode {
    fn handle(&mut self, _: Instant, event: Event<'static>) {
        match event {
            Event::Completed(completion) => self.heard.push(format!("done {}", completion.tag.0)),
            Event::Accepted(stream) => self.heard.push(format!("accepted {}", stream.0)),
            Event::Connected { attempt, stream } => {
                self.heard.push(format!("connected {attempt} {}", stream.0));
            }
            Event::ConnectFailed { attempt } => self.heard.push(format!("failed {attempt}")),
            Event::ListenFailed => self.heard.push("listen failed".into()),
            Event::Received { stream, len } => {
                let bytes = self.space[..len].to_vec();
                self.echo.entry(stream.0).or_default().extend(bytes);
            }
            Event::Sent { stream, len } => {
                self.echo.entry(stream.0).or_default().drain(..len);
            }
            Event::Closed(stream) => self.heard.push(format!("closed {}", stream.0)),
        }
    }

    fn step(&mut self, _: Instant) -> More {
        self.steps_done += 1;
        match self.steps_left.checked_sub(1) {
            Some(left) => {
                self.steps_left = left;
                More::Yes
            }
            None => More::No,
        }
    }

    fn poll_action(&mut self) -> Option<Action<'static>> {
        self.actions.pop_front()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.timeout
    }

    fn recv_space(&mut self, _: StreamId) -> &mut [u8] {
        self.space.resize(self.space_len, 0);
        &mut self.space
    }

    fn send_bytes(&self, stream: StreamId) -> &[u8] {
        self.echo.get(&stream.0).map_or(&[], |bytes| bytes)
    }
}

type FakePump = Pump<'static, FakeNode, FakeDevice, FakeNetwork, FakeClock>;

fn limits(of: u32) -> PumpLimits {
    PumpLimits { streams: 3, completions: of, accepts: of, transfers: of, steps: of, actions: of }
}

#[repr(align(4096))]
struct Region([MaybeUninit<u8>; 4096]);

fn pump(node: FakeNode, limits: PumpLimits) -> FakePump {
    let region = Box::leak(Box::new(Region([MaybeUninit::uninit(); 4096])));
    let mut arena = Arena::new(&mut region.0).unwrap();
    let device = FakeDevice { room: 2, held: VecDeque::new(), finished: 0, submitted: Vec::new() };
    let network = FakeNetwork::default();
    Pump::new(node, device, network, FakeClock(0), limits, &mut arena).unwrap()
}

fn write(tag: u64) -> Action<'static> {
    let block = Box::leak(Box::new(Block::ZERO));
    Action::Block(BlockRequest { tag: Tag(tag), op: BlockOp::Write(BlockNo(tag), block) })
}

fn peer() -> FakeStream {
    FakeStream { established: true, room: 1000, chunk: 1000, ..FakeStream::default() }
}

fn somewhere() -> Endpoint {
    "[::1]:7".parse::<core::net::SocketAddr>().unwrap().into()
}

/// Takes turns until the pump waits; fails when it does not within `most`.
fn settle(pump: &mut FakePump, most: usize) -> Wake {
    for _ in 0..most {
        let wake = pump.turn();
        if wake != Wake::Now {
            return wake;
        }
    }
    panic!("the pump never came to rest");
}

#[test]
fn limits_that_let_nothing_happen_are_refused() {
    let mut arena = Arena::measuring();
    let device = FakeDevice { room: 0, held: VecDeque::new(), finished: 0, submitted: Vec::new() };
    let network = FakeNetwork::default();
    let limits = PumpLimits { steps: 0, ..PumpLimits::DEFAULT };
    let made = Pump::new(FakeNode::default(), device, network, FakeClock(0), limits, &mut arena);
    assert_eq!(made.err(), Some(PumpError::Limits));
    assert!(PumpLimits::DEFAULT.validate());
}

#[test]
fn a_full_queue_keeps_the_order_and_what_comes_behind() {
    let mut actions: VecDeque<_> = (1..=5).map(write).collect();
    actions.push_back(Action::Listen(somewhere()));
    let mut pump = pump(FakeNode { actions, ..FakeNode::default() }, limits(8));
    assert_eq!(settle(&mut pump, 4), Wake::Event);
    assert_eq!(pump.device.submitted, [1, 2]);
    assert_eq!(pump.network.listening, None, "it stands behind the requests");
    pump.device.finished = 1;
    assert_eq!(settle(&mut pump, 4), Wake::Event);
    assert_eq!(pump.device.submitted, [1, 2, 3]);
    for _ in 0..4 {
        pump.device.finished = 2;
        let _ = settle(&mut pump, 4);
    }
    assert_eq!(pump.device.submitted, [1, 2, 3, 4, 5]);
    assert_eq!(pump.network.listening, Some(somewhere()));
    assert_eq!(pump.node.heard, ["done 1", "done 2", "done 3", "done 4", "done 5"]);
}

#[test]
fn an_attempt_succeeds_fails_or_never_starts() {
    let connect = |attempt| Action::Connect { attempt, to: somewhere() };
    let actions = [connect(1), connect(2)].into();
    let mut pump = pump(FakeNode { actions, ..FakeNode::default() }, limits(8));
    assert_eq!(settle(&mut pump, 4), Wake::Event);
    assert!(pump.node.heard.is_empty());
    pump.network.streams.get_mut(&1).unwrap().established = true;
    pump.network.streams.get_mut(&2).unwrap().reset = true;
    let _ = settle(&mut pump, 4);
    assert_eq!(pump.node.heard, ["connected 1 1", "failed 2"]);
    assert!(!pump.network.streams.contains_key(&2));
    pump.network.refuse = true;
    pump.node.actions = [connect(3), Action::Listen(somewhere())].into();
    let _ = settle(&mut pump, 4);
    assert_eq!(pump.node.heard[2..], ["failed 3", "listen failed"]);
}

#[test]
fn what_cannot_be_followed_is_not_accepted() {
    let mut pump = pump(FakeNode::default(), limits(8));
    pump.network.arriving = (0..5).map(|_| peer()).collect();
    let _ = settle(&mut pump, 4);
    assert_eq!(pump.node.heard, ["accepted 1", "accepted 2", "accepted 3"]);
    pump.node.actions = [Action::Connect { attempt: 9, to: somewhere() }].into();
    let _ = settle(&mut pump, 4);
    assert_eq!(pump.node.heard[3..], ["failed 9"]);
    pump.node.actions = [Action::Close(StreamId(2)), Action::Close(StreamId(77))].into();
    let _ = settle(&mut pump, 4);
    assert!(!pump.network.streams.contains_key(&2));
    let _ = settle(&mut pump, 4);
    assert_eq!(pump.node.heard[4..], ["accepted 4"]);
    assert_eq!(pump.network.arriving.len(), 1);
}

#[test]
fn an_ended_connection_is_reported_once_and_closed() {
    let mut pump = pump(FakeNode { space_len: 10, ..FakeNode::default() }, limits(8));
    pump.network.arriving = (0..3).map(|_| peer()).collect();
    let _ = settle(&mut pump, 4);
    // One finishes after its last bytes, one is reset, one vanishes from the network.
    let first = pump.network.streams.get_mut(&1).unwrap();
    first.incoming.extend(b"bye");
    first.finished = true;
    pump.network.streams.get_mut(&2).unwrap().reset = true;
    pump.network.streams.remove(&3);
    let _ = settle(&mut pump, 4);
    let _ = settle(&mut pump, 4);
    assert_eq!(pump.node.echo[&1], b"bye");
    assert_eq!(pump.node.heard[3..], ["closed 1", "closed 2", "closed 3"]);
    assert!(pump.network.streams.is_empty());
}

#[test]
fn a_node_without_space_leaves_the_bytes_with_the_peer() {
    let mut pump = pump(FakeNode::default(), limits(8));
    pump.network.arriving = [peer()].into();
    let _ = settle(&mut pump, 4);
    pump.network.streams.get_mut(&1).unwrap().incoming.extend(b"hello");
    assert_eq!(settle(&mut pump, 4), Wake::Event);
    assert_eq!(pump.network.streams[&1].incoming.len(), 5);
    pump.node.space_len = 2;
    let _ = settle(&mut pump, 8);
    assert_eq!(pump.network.streams[&1].outgoing, b"hello");
}

#[test]
fn a_turn_ends_at_its_bounds_and_asks_for_another() {
    let mut node = FakeNode { space_len: 1, steps_left: 10, ..FakeNode::default() };
    node.actions = (1..=2).map(write).collect();
    let mut pump = pump(node, limits(2));
    pump.network.arriving = [peer()].into();
    assert_eq!(pump.turn(), Wake::Now);
    assert_eq!(pump.node.steps_done, 2);
    pump.network.streams.get_mut(&1).unwrap().incoming.extend(b"abcdef");
    assert_eq!(pump.turn(), Wake::Now);
    assert_eq!(pump.network.streams[&1].outgoing, b"ab");
    assert_eq!(settle(&mut pump, 10), Wake::Event);
    assert_eq!(pump.network.streams[&1].outgoing, b"abcdef");
}

#[test]
fn the_nodes_deadline_is_what_is_waited_for() {
    let timeout = Some(Instant(50));
    let mut pump = pump(FakeNode { timeout, ..FakeNode::default() }, limits(2));
    assert_eq!(pump.turn(), Wake::At(Instant(50)));
    pump.clock.0 = 50;
    assert_eq!(pump.turn(), Wake::Now);
}

proptest! {
    /// Whatever the sizes, every byte comes back once and in order, on each connection.
    #[test]
    fn bytes_arrive_once_and_in_order(
        messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..4),
        space_len in 1usize..40,
        chunk in 1usize..40,
        room in 1usize..40,
        of in 1u32..5,
    ) {
        let mut pump = pump(FakeNode { space_len, ..FakeNode::default() }, limits(of));
        for message in &messages {
            let mut stream = FakeStream { chunk, room, ..peer() };
            stream.incoming.extend(message);
            pump.network.arriving.push_back(stream);
        }
        for _ in 0..2000 {
            let _ = pump.turn();
            for stream in pump.network.streams.values_mut() {
                stream.room = room;
            }
        }
        let got: Vec<_> = pump.network.streams.values().map(|s| s.outgoing.clone()).collect();
        prop_assert_eq!(got, messages);
        prop_assert_eq!(vec![Wake::Event; 1], vec![pump.turn()]);
    }
}

//! A server and mounts in one thread, in real time, joined by memory.
//!
//! # Invariants
//!
//! * A node is driven as the pump drives it, and only when something has happened to it, it has
//!   more to do, or it is due.
//! * The server's time is the processor's in its own calls: neither the device's nor that of
//!   others.
//!
//! What this module deliberately doesn't know: what is measured.

use crate::device::{Device, Traffic};
use crate::measure::processor_time;
use outrider_core::arena::Arena;
use outrider_core::client::mount::{Mount, MountConfig, MountLimits, MountState, MountTiming};
use outrider_core::client::op::{Op, OpError};
use outrider_core::format::item::Time;
use outrider_core::format::quorum::{BootId, HostId, Incarnation, Slot};
use outrider_core::format::super_block::Super;
use outrider_core::format::wire::greeting::Machine;
use outrider_core::net::Timing as NetTiming;
use outrider_core::node::{Action, Event, More, Node};
use outrider_core::quorum::{Exclusion, Identity, Timing, Vouched};
use outrider_core::server::{Server, ServerConfig, ServerLimits, ServerTiming};
use outrider_hal::{BlockRequest, Completion, Instant, StreamId};
use outrider_tests::model::{Done, User};
use outrider_tests::platform::{Call, Platform};
use outrider_tests::region::{Lease, Region};
use outrider_tests::rng::Rng;
use std::collections::VecDeque;
use std::time::Duration;

/// Nothing takes longer, however large the volume and however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(3600);
/// Longest rest of the loop when nobody is due.
const REST: Duration = Duration::from_micros(100);

#[expect(clippy::large_enum_variant, reason = "there are two of them")]
enum Guest {
    Server(Server<'static>),
    Mount(Platform),
}

impl Guest {
    fn node(&mut self) -> &mut dyn Node<'static> {
        match self {
            Guest::Server(server) => server,
            Guest::Mount(platform) => platform,
        }
    }
}

/// A node, and what waits for it.
struct Member {
    // Dropped in this order: what points into the region goes first.
    inbox: VecDeque<Event<'static>>,
    guest: Guest,
    _lease: Lease,
    _region: Region,
    bytes: usize,
    more: bool,
    traffic: Traffic,
    /// Time of the processor, of the server only.
    busy: Duration,
}

impl Member {
    fn new(
        mut region: Region,
        bytes: usize,
        carve: impl FnOnce(&mut Arena<'static>) -> Guest,
    ) -> Self {
        let (memory, lease) = region.lend();
        let guest = carve(&mut Arena::new(memory).expect("regions are aligned"));
        Member {
            inbox: VecDeque::new(),
            guest,
            _lease: lease,
            _region: region,
            bytes,
            more: true,
            traffic: Traffic::default(),
            busy: Duration::ZERO,
        }
    }

    fn is_due(&mut self, now: Instant) -> bool {
        let node = self.guest.node();
        self.more || !self.inbox.is_empty() || node.poll_timeout().is_some_and(|at| at <= now)
    }
}

/// Index of the server among the members.
const SERVER: usize = 0;
/// Index of the mount.
const MOUNT: usize = 1;

/// A connection: who has its ends.
type Wire = [(usize, StreamId); 2];

/// The nodes and their device.
pub(crate) struct Cluster {
    /// The device.
    pub(crate) device: Device,
    volume: Super,
    rng: Rng,
    start: std::time::Instant,
    members: Vec<Member>,
    listening: bool,
    wires: Vec<Wire>,
    streams: u64,
}

impl Cluster {
    /// A server on this device, elected.
    pub(crate) fn new(device: Device, volume: Super, seed: u64) -> Cluster {
        let mut rng = Rng::new(seed);
        let config = server_config(volume, &mut rng);
        let limits = ServerLimits::for_clients(64);
        let mut measure = Arena::measuring();
        drop(Server::carve(&mut measure, &limits, &config));
        let bytes = measure.bytes_used();
        let server = Member::new(Region::new(bytes), bytes, |arena| {
            Guest::Server(Server::carve(arena, &limits, &config).expect("measured"))
        });
        let mut cluster = Cluster {
            device,
            volume,
            rng,
            start: std::time::Instant::now(),
            members: vec![server],
            listening: false,
            wires: Vec::new(),
            streams: 0,
        };
        cluster.until("an election", |cluster| cluster.listening);
        cluster
    }

    /// Mounts the volume with the memory that mounts have by default.
    pub(crate) fn mount(&mut self) {
        assert!(self.members.len() == MOUNT, "there is one mount at a time");
        let (mut nonce, mut secret) = ([0; 16], [0; 32]);
        self.rng.fill(&mut nonce);
        self.rng.fill(&mut secret);
        let config = MountConfig {
            volume: self.volume,
            quorum: Timing::NORMAL,
            net: NetTiming::DEFAULT,
            timing: MountTiming::NORMAL,
            nonce,
            secret,
            machine: Machine::default(),
            read_only: false,
        };
        let limits = MountLimits::DEFAULT;
        let mut measure = Arena::measuring();
        drop(Mount::carve(&mut measure, &limits, &config));
        let bytes = measure.bytes_used();
        let mut measure = Arena::measuring();
        drop(Platform::carve(&mut measure, &limits, &config));
        self.members.push(Member::new(Region::new(measure.bytes_used()), bytes, |arena| {
            Guest::Mount(Platform::carve(arena, &limits, &config).expect("measured"))
        }));
        self.until("a mount", |cluster| cluster.platform().mount.state() == MountState::Mounted);
    }

    /// Unmounts.
    pub(crate) fn unmount(&mut self) {
        let now = self.now();
        self.platform().mount.leave(now);
        self.members[MOUNT].more = true;
        self.until("a farewell", |cluster| cluster.platform().mount.state() == MountState::Left);
        self.hang_up(|end| end.0 == MOUNT);
        self.members.pop();
    }

    /// The server.
    pub(crate) fn server(&self) -> &Server<'static> {
        match &self.members[SERVER].guest {
            Guest::Server(server) => server,
            Guest::Mount(_) => unreachable!("the first member is the server"),
        }
    }

    /// What stands around the mount.
    pub(crate) fn platform(&mut self) -> &mut Platform {
        match &mut self.members[MOUNT].guest {
            Guest::Mount(platform) => platform,
            Guest::Server(_) => unreachable!("the second member is the mount"),
        }
    }

    /// What the server, and the mount, have asked of the device.
    pub(crate) fn traffic(&self) -> [Traffic; 2] {
        let of = |index: usize| self.members.get(index).map(|member| member.traffic);
        [SERVER, MOUNT].map(|index| of(index).unwrap_or_default())
    }

    /// Time of the processor spent in the server.
    pub(crate) fn server_time(&self) -> Duration {
        self.members[SERVER].busy
    }

    /// Bytes of memory that the server, and the mount, were carved from.
    pub(crate) fn memory(&self) -> [usize; 2] {
        [SERVER, MOUNT].map(|index| self.members.get(index).map_or(0, |member| member.bytes))
    }

    /// Messages the mount has sent to the server, of all kinds but those that keep its lease.
    pub(crate) fn requests(&mut self) -> u64 {
        let counters = self.platform().mount.counters();
        counters.lock_messages + counters.transactions + counters.loans
    }

    /// Begins a call; its number.
    pub(crate) fn begin(&mut self, op: Op) -> u64 {
        let now = Time { sec: 1_000_000, nsec: 0 };
        let call = Call { user: User::ROOT, now, op, data: Vec::new() };
        self.members[MOUNT].more = true;
        self.platform().call(call)
    }

    /// Makes a call, and waits for its end.
    pub(crate) fn call(&mut self, op: Op) -> Result<Done, OpError> {
        let id = self.begin(op);
        self.until("a call", |cluster| cluster.platform().has_ended(id));
        self.platform().take(id).expect("it has ended")
    }

    /// Runs for so long.
    pub(crate) fn run_for(&mut self, how_long: Duration) {
        let end = self.now().plus(how_long);
        self.until("time to pass", |cluster| cluster.now() >= end);
    }

    /// Runs until this is so.
    pub(crate) fn until(&mut self, what: &str, mut so: impl FnMut(&mut Cluster) -> bool) {
        let deadline = self.now().plus(PATIENCE);
        while !so(self) {
            assert!(self.now() < deadline, "no {what} in {PATIENCE:?}: {}", self.describe());
            if !self.turn() {
                std::thread::sleep(REST);
            }
        }
    }

    /// What everybody is doing.
    fn describe(&mut self) -> String {
        let members = self.members.iter().map(|member| match &member.guest {
            Guest::Server(server) => format!("{:?}", server.counters()),
            Guest::Mount(platform) => {
                format!("{:?}, {:?}", platform.mount.state(), platform.mount.counters())
            }
        });
        members.collect::<Vec<_>>().join("; ")
    }

    fn now(&self) -> Instant {
        Instant(u64::try_from(self.start.elapsed().as_nanos()).expect("five centuries"))
    }

    /// Drives everybody once; says whether anything happened.
    fn turn(&mut self) -> bool {
        let mut any = false;
        for index in 0..self.members.len() {
            let now = self.now();
            if self.members[index].is_due(now) {
                any = true;
                self.drive(index);
            }
        }
        any | self.carry_bytes()
    }

    fn drive(&mut self, index: usize) {
        let (start, now) = (clock_of(index), self.now());
        let member = &mut self.members[index];
        let node = member.guest.node();
        while let Some(event) = member.inbox.pop_front() {
            node.handle(now, event);
        }
        member.more = node.step(now) == More::Yes;
        let mut actions = Vec::new();
        while let Some(action) = node.poll_action() {
            actions.push(action);
        }
        member.busy += clock_of(index) - start;
        for action in actions {
            self.carry_out(index, action);
        }
    }

    fn carry_out(&mut self, index: usize, action: Action<'static>) {
        match action {
            Action::Block(BlockRequest { tag, mut op }) => {
                let member = &mut self.members[index];
                self.device.carry_out(&mut op, &mut member.traffic);
                member.inbox.push_back(Event::Completed(Completion { tag, op, result: Ok(()) }));
            }
            Action::Listen(_) => self.listening = true,
            Action::Unlisten => self.listening = false,
            Action::Connect { attempt, to: _ } if self.listening => {
                self.streams += 2;
                let (here, there) = (StreamId(self.streams), StreamId(self.streams + 1));
                self.wires.push([(index, here), (SERVER, there)]);
                let inbox = &mut self.members[index].inbox;
                inbox.push_back(Event::Connected { attempt, stream: here });
                self.members[SERVER].inbox.push_back(Event::Accepted(there));
            }
            Action::Connect { attempt, to: _ } => {
                self.members[index].inbox.push_back(Event::ConnectFailed { attempt });
            }
            Action::Close(stream) => self.hang_up(|end| end == (index, stream)),
        }
    }

    /// Ends connections of which this end has let go.
    fn hang_up(&mut self, gone: impl Fn((usize, StreamId)) -> bool) {
        let members = &mut self.members;
        self.wires.retain(|wire| {
            let Some(end) = wire.iter().position(|end| gone(*end)) else { return true };
            let (peer, stream) = wire[1 - end];
            members[peer].inbox.push_back(Event::Closed(stream));
            false
        });
    }

    /// Moves what there is to send; says whether there was anything.
    fn carry_bytes(&mut self) -> bool {
        let (now, mut any) = (self.now(), false);
        for wire in &self.wires {
            for (from, to) in [(wire[0], wire[1]), (wire[1], wire[0])] {
                let bytes = self.members[from.0].guest.node().send_bytes(from.1).to_vec();
                let receiver = &mut self.members[to.0];
                // It hears of the connection first.
                if bytes.is_empty() || !receiver.inbox.is_empty() {
                    continue;
                }
                let space = receiver.guest.node().recv_space(to.1);
                let len = bytes.len().min(space.len());
                if len == 0 {
                    continue;
                }
                space[..len].copy_from_slice(&bytes[..len]);
                let start = clock_of(to.0);
                receiver.guest.node().handle(now, Event::Received { stream: to.1, len });
                receiver.more = true;
                receiver.busy += clock_of(to.0) - start;
                let sender = &mut self.members[from.0];
                sender.guest.node().handle(now, Event::Sent { stream: from.1, len });
                sender.more = true;
                any = true;
            }
        }
        any
    }
}

/// The clock that a member's time is told by: it is not cheap to ask, so only the server has one.
fn clock_of(index: usize) -> Duration {
    if index == SERVER { processor_time() } else { Duration::ZERO }
}

fn server_config(volume: Super, rng: &mut Rng) -> ServerConfig {
    let (mut incarnation, mut secret) = ([0; 16], [0; 32]);
    rng.fill(&mut incarnation);
    rng.fill(&mut secret);
    ServerConfig {
        volume,
        slot: Slot::new(0).expect("every volume has it"),
        listen: None,
        identity: Identity {
            incarnation: Incarnation(incarnation),
            host: HostId([1; 16]),
            boot: BootId([1; 16]),
            exclusion: Exclusion::Host,
            vouched: Vouched::Nothing,
            seed: rng.number(),
        },
        quorum: Timing::NORMAL,
        net: NetTiming::DEFAULT,
        timing: ServerTiming::NORMAL,
        secret,
    }
}

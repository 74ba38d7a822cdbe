//! TCP for a node: smoltcp behind `outrider-hal`'s [`Network`], with pools of fixed size.
//!
//! # States of a slot
//!
//! ```text
//!            listen wanted          SYN               ACK              accept()
//!   Free ------------------> Listening ---> HalfOpen -----> Waiting -----------> Open
//!    ^  \                        ^              | too old, or RST                 |  close()
//!    |   \                       +--------------+                                 v
//!    |    +---- connect() -----------------------------------------> Open    Lingering
//!    +----------------------------------------------------------------------------+
//!                     everything sent and acknowledged, or time is up
//! ```
//!
//! # Invariants
//!
//! * One slot, one socket, one pair of buffers: all carved at the start ([`NetLimits`]).
//! * Connections from outside never use up the slots kept for connections that we make.
//! * While a slot for it is left, somebody listens. A half-open connection gives its slot up after
//!   [`NetLimits::half_open`], at once when all of the backlog is half-open and it is older than
//!   [`NetLimits::half_open_least`]: a scan or a flood slows others down, and starves nobody.
//! * A stream's name is never used again.
//! * One call of [`Stack::poll`] does a bounded amount of work.
//!
//! What this module deliberately doesn't know: the network card, and who drives the loop.

use core::net::SocketAddr;
use core::time::Duration;
use embedded_io::{ErrorType, Read, ReadReady, Write, WriteReady};
use outrider_core::arena::{Arena, ArenaFull};
use outrider_hal::{Endpoint, Instant, NetError, Network, StreamId};
use ref_cast::RefCast;
use smoltcp::iface::{
    Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet, SocketStorage,
};
use smoltcp::phy::Device;
use smoltcp::socket::tcp::{CongestionControl, ConnectError, Socket, SocketBuffer, State};
use smoltcp::wire::{
    EthernetAddress, HardwareAddress, IpAddress, IpCidr, IpEndpoint, IpListenEndpoint,
};

use crate::options::Options;

/// How much a node's network may hold, and how long it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetLimits {
    /// Connections from outside: half-open, waiting to be accepted, and open.
    pub accepted: u32,
    /// Connections that we make.
    pub connected: u32,
    /// Slots that listen or are half-open at a time; part of `accepted`.
    pub backlog: u32,
    /// Closed connections that may still be sending; the oldest is cut off when a slot is needed.
    pub lingering: u32,
    /// Bytes received that may wait to be read, for each connection.
    pub receive_bytes: u32,
    /// Bytes written that may wait to be acknowledged, for each connection.
    pub send_bytes: u32,
    /// Frames that one poll looks at.
    pub frames_per_poll: u32,
    /// Time for a peer to complete its handshake.
    pub half_open: Duration,
    /// Time for a peer to complete its handshake when others wait.
    pub half_open_least: Duration,
    /// Time for a peer to answer our connect, or to acknowledge what we sent.
    pub unanswered: Duration,
    /// Time for a closed connection to send what is left.
    pub linger: Duration,
}

impl NetLimits {
    /// Limits for a cluster of 16 hosts and some to spare: at most one connection per mount, one to
    /// each voter, twice over, because a peer that comes back is here before its ghost has gone.
    pub const DEFAULT: NetLimits = NetLimits {
        accepted: 40,
        connected: 16,
        backlog: 8,
        lingering: 8,
        receive_bytes: 32 << 10,
        send_bytes: 32 << 10,
        frames_per_poll: 128,
        half_open: Duration::from_secs(5),
        half_open_least: Duration::from_millis(250),
        unanswered: Duration::from_secs(20),
        linger: Duration::from_secs(3),
    };

    /// Limits for a node that serves this many connections and makes none.
    #[must_use]
    pub const fn serving(connections: u32) -> NetLimits {
        let backlog = NetLimits::DEFAULT.backlog;
        NetLimits { accepted: connections + backlog, connected: 1, ..NetLimits::DEFAULT }
    }

    /// Slots in all: one line for each holder.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.accepted       // from outside
            + self.connected // ours
            + self.lingering // nobody's any more
    }

    /// Whether a node can run with these limits.
    #[must_use]
    pub fn validate(&self) -> bool {
        // A stream's name has 16 bits for its slot.
        self.slots() <= 1 << 16
            // Without a listener nobody is let in, without a slot for us we can't get out.
            && self.backlog > 0 && self.backlog <= self.accepted && self.connected > 0
            // A buffer takes a segment at least; smoltcp scales windows up to 1 GiB.
            && (2048..=1 << 30).contains(&self.receive_bytes)
            && (2048..=1 << 30).contains(&self.send_bytes)
            && self.frames_per_poll > 0
            && self.half_open_least <= self.half_open
    }
}

/// What a slot is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Free,
    Listening,
    HalfOpen { since: Instant },
    Waiting { order: u64 },
    Open { id: StreamId, ours: bool },
    Lingering { since: Instant },
}

/// How many slots of each kind there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Census {
    /// Listening.
    pub listening: u32,
    /// Handshake not complete.
    pub half_open: u32,
    /// Established, not accepted yet.
    pub waiting: u32,
    /// Accepted and open.
    pub accepted: u32,
    /// Made by us.
    pub connected: u32,
    /// Closed, still sending.
    pub lingering: u32,
}

/// A TCP stack on a network card.
pub struct Stack<'m, D: Device> {
    limits: NetLimits,
    interface: Interface,
    device: D,
    sockets: SocketSet<'m>,
    handles: &'m mut [SocketHandle],
    slots: &'m mut [Slot],
    listen_at: Option<IpListenEndpoint>,
    now: Instant,
    serial: u64,
    local_port: u16,
}

/// Why a stack can't be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StackError {
    /// The arena has no room for the pools.
    Memory,
    /// The limits contradict each other.
    Limits,
    /// The addresses or gateways do not fit smoltcp's tables.
    Addresses,
}

impl From<ArenaFull> for StackError {
    fn from(_: ArenaFull) -> StackError {
        StackError::Memory
    }
}

const PORT_FIRST: u16 = 49152;

impl<'m, D: Device> Stack<'m, D> {
    /// Builds a stack with these addresses. `seed` must be unpredictable: sequence numbers and
    /// ports come from it.
    pub fn new(
        limits: NetLimits,
        options: &Options,
        mac: [u8; 6],
        seed: u64,
        mut device: D,
        arena: &mut Arena<'m>,
        now: Instant,
    ) -> Result<Stack<'m, D>, StackError> {
        if !limits.validate() {
            return Err(StackError::Limits);
        }
        let hardware = HardwareAddress::Ethernet(EthernetAddress(mac));
        let mut config = Config::new(hardware);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut device, stamp(now));
        set_addresses(&mut interface, options, mac).ok_or(StackError::Addresses)?;
        let count = limits.slots();
        let mut sockets = SocketSet::new(arena.slice(count, |_| SocketStorage::EMPTY)?);
        let slots = arena.slice(count, |_| Slot::Free)?;
        let handles = arena.slice(count, |_| SocketHandle::default())?;
        for handle in handles.iter_mut() {
            let receive = SocketBuffer::new(arena.slice(limits.receive_bytes, |_| 0)?);
            let send = SocketBuffer::new(arena.slice(limits.send_bytes, |_| 0)?);
            let mut socket = Socket::new(receive, send);
            socket.set_timeout(Some(span(limits.unanswered)));
            socket.set_congestion_control(CongestionControl::Reno);
            // Messages are written whole; waiting for more would only delay the last segment.
            socket.set_nagle_enabled(false);
            *handle = sockets.add(socket);
        }
        let local_port = PORT_FIRST + (seed >> 48) as u16 % (u16::MAX - PORT_FIRST);
        Ok(Stack {
            limits,
            interface,
            device,
            sockets,
            handles,
            slots,
            listen_at: None,
            now,
            serial: 0,
            local_port,
        })
    }

    /// The network card.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// Receives and sends what can be, up to a bound. `true` when the bound was reached first:
    /// there may be more to do at once.
    pub fn poll(&mut self, now: Instant) -> bool {
        self.now = self.now.max(now);
        let stamp = stamp(self.now);
        self.interface.poll_maintenance(stamp);
        let mut frames = 0;
        while frames < self.limits.frames_per_poll {
            let got =
                self.interface.poll_ingress_single(stamp, &mut self.device, &mut self.sockets);
            match got {
                PollIngressSingleResult::None => break,
                PollIngressSingleResult::PacketProcessed
                | PollIngressSingleResult::SocketStateChanged => frames += 1,
            }
            // The next SYN of a burst finds a listener.
            self.review();
        }
        self.review();
        let sent = self.send();
        frames == self.limits.frames_per_poll || sent
    }

    /// Sends what is ready, in rounds of one segment for each socket. `true` when there may be
    /// more.
    fn send(&mut self) -> bool {
        const ROUNDS: u32 = 16;
        for _ in 0..ROUNDS {
            let stamp = stamp(self.now);
            match self.interface.poll_egress(stamp, &mut self.device, &mut self.sockets) {
                PollResult::None => return false,
                PollResult::SocketStateChanged => {}
            }
        }
        true
    }

    /// When [`poll`](Self::poll) has something to do although nothing arrives.
    pub fn poll_timeout(&mut self) -> Option<Instant> {
        let smoltcp = self
            .interface
            .poll_at(stamp(self.now), &self.sockets)
            .map(|at| Instant(u64::try_from(at.total_micros()).unwrap_or(0).saturating_mul(1000)));
        let slots = self.slots.iter().filter_map(|slot| match *slot {
            Slot::HalfOpen { since } => Some(since.plus(self.limits.half_open)),
            Slot::Lingering { since } => Some(since.plus(self.limits.linger)),
            Slot::Free | Slot::Listening | Slot::Waiting { .. } | Slot::Open { .. } => None,
        });
        smoltcp.into_iter().chain(slots).min()
    }

    /// What the slots are used for now.
    #[must_use]
    pub fn census(&self) -> Census {
        let mut census = Census::default();
        for slot in self.slots.iter() {
            match slot {
                Slot::Free => {}
                Slot::Listening => census.listening += 1,
                Slot::HalfOpen { .. } => census.half_open += 1,
                Slot::Waiting { .. } => census.waiting += 1,
                Slot::Open { ours: false, .. } => census.accepted += 1,
                Slot::Open { ours: true, .. } => census.connected += 1,
                Slot::Lingering { .. } => census.lingering += 1,
            }
        }
        census
    }

    fn socket(&mut self, index: usize) -> &mut Socket<'m> {
        self.sockets.get_mut(self.handles[index])
    }

    /// Follows the sockets' states, ends what is overdue, and sees to it that somebody listens.
    fn review(&mut self) {
        for index in 0..self.slots.len() {
            // Nearly all are, most of the time.
            if self.slots[index] == Slot::Free {
                continue;
            }
            let state = self.socket(index).state();
            let next = self.followed(self.slots[index], state);
            if next == Slot::Free && state != State::Closed {
                self.socket(index).abort();
            }
            self.slots[index] = next;
        }
        self.keep_listening();
    }

    /// What becomes of a slot whose socket is in this state.
    fn followed(&mut self, slot: Slot, state: State) -> Slot {
        let overdue = |since: Instant, after: Duration| self.now >= since.plus(after);
        match slot {
            Slot::Free => Slot::Free,
            Slot::Listening | Slot::HalfOpen { .. } => match (state, slot) {
                (State::Closed, _) => Slot::Free,
                (State::Listen, _) => Slot::Listening,
                (State::SynReceived, Slot::HalfOpen { since }) => {
                    if overdue(since, self.limits.half_open) { Slot::Free } else { slot }
                }
                (State::SynReceived, _) => Slot::HalfOpen { since: self.now },
                _ => {
                    self.serial += 1;
                    Slot::Waiting { order: self.serial }
                }
            },
            Slot::Waiting { .. } => {
                if state == State::Closed {
                    Slot::Free
                } else {
                    slot
                }
            }
            Slot::Open { .. } => slot,
            Slot::Lingering { since } => {
                let gone = matches!(state, State::Closed | State::TimeWait);
                if gone || overdue(since, self.limits.linger) { Slot::Free } else { slot }
            }
        }
    }

    fn keep_listening(&mut self) {
        let Some(at) = self.listen_at else {
            return;
        };
        let census = self.census();
        let outside = census.listening + census.half_open + census.waiting + census.accepted;
        let mut room = self.limits.accepted.saturating_sub(outside);
        let mut backlog = self.limits.backlog.saturating_sub(census.listening + census.half_open);
        if census.listening == 0 && (room == 0 || backlog == 0) {
            let freed = u32::from(self.drop_oldest_half_open());
            room += freed;
            backlog += freed;
        }
        for _ in 0..room.min(backlog) {
            let Some(index) = self.free_slot() else {
                return;
            };
            // A socket that has been cut off sends its RST before it is used again.
            if self.socket(index).listen(at).is_err() {
                return;
            }
            self.slots[index] = Slot::Listening;
        }
    }

    fn drop_oldest_half_open(&mut self) -> bool {
        let oldest = (0..self.slots.len())
            .filter_map(|index| match self.slots[index] {
                Slot::HalfOpen { since } => Some((since, index)),
                Slot::Free
                | Slot::Listening
                | Slot::Waiting { .. }
                | Slot::Open { .. }
                | Slot::Lingering { .. } => None,
            })
            .min();
        let Some((since, index)) = oldest else {
            return false;
        };
        if self.now < since.plus(self.limits.half_open_least) {
            return false;
        }
        self.socket(index).abort();
        self.slots[index] = Slot::Free;
        true
    }

    /// A slot to use, if need be that of the connection that has been lingering longest. A socket
    /// that still has to tell its peer about its end is taken last.
    fn free_slot(&mut self) -> Option<usize> {
        let quiet = (0..self.slots.len()).find(|&index| {
            self.slots[index] == Slot::Free && self.socket(index).remote_endpoint().is_none()
        });
        let free = || self.slots.iter().position(|slot| *slot == Slot::Free);
        if let Some(index) = quiet.or_else(free) {
            return Some(index);
        }
        let (_, index) = (0..self.slots.len())
            .filter_map(|index| match self.slots[index] {
                Slot::Lingering { since } => Some((since, index)),
                Slot::Free
                | Slot::Listening
                | Slot::HalfOpen { .. }
                | Slot::Waiting { .. }
                | Slot::Open { .. } => None,
            })
            .min()?;
        self.socket(index).abort();
        self.slots[index] = Slot::Free;
        Some(index)
    }

    fn name(&mut self, index: usize) -> StreamId {
        self.serial += 1;
        StreamId(self.serial << 16 | index as u64)
    }

    fn index_of(&self, id: StreamId) -> Option<usize> {
        let index = (id.0 & 0xffff) as usize;
        match self.slots.get(index) {
            Some(Slot::Open { id: open, .. }) if *open == id => Some(index),
            _ => None,
        }
    }

    /// A local port that no connection to this peer uses.
    fn unused_port(&mut self, to: IpEndpoint) -> Option<u16> {
        for _ in 0..=self.slots.len() {
            self.local_port = self.local_port.checked_add(1).unwrap_or(PORT_FIRST);
            let port = self.local_port;
            let used = self.handles.iter().any(|&handle| {
                let socket = self.sockets.get::<Socket<'m>>(handle);
                socket.remote_endpoint() == Some(to)
                    && socket.local_endpoint().is_some_and(|local| local.port == port)
            });
            if !used {
                return Some(port);
            }
        }
        None
    }
}

impl<D: Device> Network for Stack<'static, D> {
    type Stream = TcpStream;

    fn listen(&mut self, at: Endpoint) -> Result<(), NetError> {
        let at = socket_endpoint(at);
        let any = at.addr.is_unspecified();
        if at.port == 0 || !(any || self.interface.has_ip_addr(at.addr)) {
            return Err(NetError::Unavailable);
        }
        self.unlisten();
        self.listen_at = Some(IpListenEndpoint { addr: (!any).then_some(at.addr), port: at.port });
        self.keep_listening();
        Ok(())
    }

    fn unlisten(&mut self) {
        self.listen_at = None;
        for index in 0..self.slots.len() {
            match self.slots[index] {
                Slot::Listening | Slot::HalfOpen { .. } | Slot::Waiting { .. } => {
                    self.socket(index).abort();
                    self.slots[index] = Slot::Free;
                }
                Slot::Free | Slot::Open { .. } | Slot::Lingering { .. } => {}
            }
        }
    }

    fn accept(&mut self) -> Option<StreamId> {
        let (_, index) = (0..self.slots.len())
            .filter_map(|index| match self.slots[index] {
                Slot::Waiting { order } => Some((order, index)),
                Slot::Free
                | Slot::Listening
                | Slot::HalfOpen { .. }
                | Slot::Open { .. }
                | Slot::Lingering { .. } => None,
            })
            .min()?;
        let id = self.name(index);
        self.slots[index] = Slot::Open { id, ours: false };
        Some(id)
    }

    fn connect(&mut self, to: Endpoint) -> Result<StreamId, NetError> {
        if self.census().connected >= self.limits.connected {
            return Err(NetError::TooMany);
        }
        let to = socket_endpoint(to);
        let index = self.free_slot().ok_or(NetError::TooMany)?;
        let port = self.unused_port(to).ok_or(NetError::TooMany)?;
        let socket = self.sockets.get_mut::<Socket<'static>>(self.handles[index]);
        socket.connect(self.interface.context(), to, port).map_err(|error| match error {
            ConnectError::InvalidState => NetError::TooMany,
            ConnectError::Unaddressable => NetError::Closed,
        })?;
        let id = self.name(index);
        self.slots[index] = Slot::Open { id, ours: true };
        Ok(id)
    }

    fn stream(&mut self, id: StreamId) -> Option<&mut TcpStream> {
        let index = self.index_of(id)?;
        Some(TcpStream::ref_cast_mut(self.sockets.get_mut(self.handles[index])))
    }

    /// What has been written is still sent, for at most [`NetLimits::linger`].
    fn close(&mut self, id: StreamId) {
        if let Some(index) = self.index_of(id) {
            self.socket(index).close();
            self.slots[index] = Slot::Lingering { since: self.now };
        }
    }
}

/// One TCP connection.
#[derive(RefCast)]
#[repr(transparent)]
pub struct TcpStream(Socket<'static>);

impl ErrorType for TcpStream {
    type Error = NetError;
}

impl ReadReady for TcpStream {
    fn read_ready(&mut self) -> Result<bool, NetError> {
        if self.0.can_recv() {
            return Ok(true);
        }
        match self.0.state() {
            State::Closed => Err(NetError::Closed),
            // The peer has finished.
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait => Ok(true),
            State::Listen
            | State::SynSent
            | State::SynReceived
            | State::Established
            | State::FinWait1
            | State::FinWait2 => Ok(false),
        }
    }
}

impl Read for TcpStream {
    fn read(&mut self, bytes: &mut [u8]) -> Result<usize, NetError> {
        if self.0.can_recv() {
            return self.0.recv_slice(bytes).map_err(|_| NetError::Closed);
        }
        if self.0.state() == State::Closed { Err(NetError::Closed) } else { Ok(0) }
    }
}

impl WriteReady for TcpStream {
    fn write_ready(&mut self) -> Result<bool, NetError> {
        match self.0.state() {
            State::SynSent | State::SynReceived | State::Listen => Ok(false),
            State::Established | State::CloseWait => Ok(self.0.can_send()),
            State::Closed
            | State::FinWait1
            | State::FinWait2
            | State::Closing
            | State::LastAck
            | State::TimeWait => Err(NetError::Closed),
        }
    }
}

impl Write for TcpStream {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, NetError> {
        self.0.send_slice(bytes).map_err(|_| NetError::Closed)
    }

    /// Does nothing: what was written is sent without being asked for.
    fn flush(&mut self) -> Result<(), NetError> {
        Ok(())
    }
}

fn set_addresses(interface: &mut Interface, options: &Options, mac: [u8; 6]) -> Option<()> {
    let mut full = false;
    interface.update_ip_addrs(|addrs| {
        let own = options.addresses.iter();
        let own = own.map(|own| IpCidr::new(IpAddress::from(own.addr), own.prefix));
        let has_v6 = options.addresses.iter().any(|own| own.addr.is_ipv6());
        // Neighbours are asked from a link-local address (RFC 4861, 4.3).
        let link_local = has_v6.then(|| IpCidr::new(IpAddress::from(link_local(mac)), 64));
        for addr in own.chain(link_local) {
            full |= addrs.push(addr).is_err();
        }
    });
    for gateway in &options.gateways {
        full |= match *gateway {
            core::net::IpAddr::V4(v4) => interface.routes_mut().add_default_ipv4_route(v4).is_err(),
            core::net::IpAddr::V6(v6) => interface.routes_mut().add_default_ipv6_route(v6).is_err(),
        };
    }
    (!full).then_some(())
}

/// The link-local address of an Ethernet address (RFC 4291, appendix A).
fn link_local(mac: [u8; 6]) -> core::net::IpAddr {
    let [a, b, c, d, e, f] = mac;
    let id = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    core::net::Ipv6Addr::from_bits(0xfe80 << 112 | u128::from(id)).into()
}

fn socket_endpoint(endpoint: Endpoint) -> IpEndpoint {
    let addr = SocketAddr::from(endpoint);
    IpEndpoint { addr: addr.ip().into(), port: addr.port() }
}

fn stamp(now: Instant) -> smoltcp::time::Instant {
    smoltcp::time::Instant::from_micros(i64::try_from(now.0 / 1000).unwrap_or(i64::MAX))
}

fn span(duration: Duration) -> smoltcp::time::Duration {
    smoltcp::time::Duration::from_micros(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;

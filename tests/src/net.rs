//! The network: byte streams between hosts, as TCP gives them on a bad day.
//!
//! ```text
//!  dial ----> syn ----> accepted, syn-ack ----> connected
//!    |         `-> refused                          |
//!    `-> timed out (the acceptor may not know)      v
//!                              send -> segments -> arrived -> recv
//!                                ^                             |
//!                                `----------- ack <------------'
//!  an end: Opening -> Open -> Closed (told its node, or was told by it)
//!                       `---> Gone   (its node died and the peer may not know)
//! ```
//!
//! # Invariants
//!
//! * What one end receives is a prefix of what the other sent: nothing is lost, doubled or swapped
//!   inside a stream. (A garbled bit, where the promise has it, is the one exception.)
//! * An end hears at most once that its stream is closed, and nothing after that. An end whose node
//!   closed it hears nothing.
//! * Unread bytes and bytes under way are bounded by the window, so a reader that doesn't read
//!   stops its writer.
//! * Stream ids are never used twice, by any host.
//! * A host that can't be reached is silent: attempts time out, bytes wait, resets are lost.
//!
//! What this module deliberately doesn't know: what is said over a stream, and when a host reads.

use crate::faults::{Atlas, Fault};
use crate::rng::Rng;
use crate::time::{Agenda, MICRO, MILLI, MINUTE, SECOND, Time};
use crate::trace::{Digest, HostId, Trace};
use outrider_hal::{Endpoint, StreamId};
use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv6Addr;

/// What the network tells a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Notice {
    /// A peer has connected.
    Accepted(StreamId),
    /// An attempt succeeded.
    Connected {
        /// Names the attempt.
        attempt: u32,
        /// The new stream.
        stream: StreamId,
    },
    /// An attempt failed.
    ConnectFailed {
        /// Names the attempt.
        attempt: u32,
    },
    /// There is something to receive, or room to send.
    Ready(StreamId),
    /// The stream has ended.
    Closed(StreamId),
}

/// How much the network has done.
#[derive(Debug, Clone, Copy, Default)]
pub struct NetWork {
    /// Connections established.
    pub connections: u64,
    /// Bytes given to receivers.
    pub bytes_received: u64,
}

#[derive(Debug)]
struct Host {
    addr: Ipv6Addr,
    up: bool,
    listening: Option<Endpoint>,
}

#[derive(Debug)]
struct Dial {
    host: HostId,
    attempt: u32,
    to: Endpoint,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EndState {
    Opening,
    Open,
    Closed,
    Gone,
}

#[derive(Debug)]
struct End {
    host: HostId,
    stream: StreamId,
    state: EndState,
}

#[derive(Debug)]
enum Segment {
    Bytes(Vec<u8>),
    Fin,
}

/// One direction of a connection.
#[derive(Debug, Default)]
struct Pipe {
    flight: VecDeque<Segment>,
    arrived: VecDeque<u8>,
    unacked: usize,
    last_at: Time,
    fin_arrived: bool,
}

#[derive(Debug)]
struct Conn {
    ends: [End; 2],
    /// `pipes[e]` carries what `ends[e]` sends.
    pipes: [Pipe; 2],
    window: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct ConnId(u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct DialId(u64);

#[derive(Debug)]
enum Due {
    Syn(DialId),
    SynAck(DialId, ConnId),
    Refused(DialId),
    DialTimeout(DialId),
    Arrive { conn: ConnId, from: usize },
    Ack { conn: ConnId, from: usize, bytes: usize },
    Reset { conn: ConnId, end: usize },
    GiveUp { conn: ConnId, end: usize },
}

#[derive(Debug, Hash)]
enum Note {
    Dial(u32, Endpoint),
    Listen(Endpoint, bool),
    Sent(StreamId, Digest),
    Received(StreamId, Digest),
    Close(StreamId),
    Told(Notice),
    Blocked(HostId, HostId, Time),
}

/// The network between all hosts.
pub struct Net {
    rng: Rng,
    hosts: BTreeMap<HostId, Host>,
    dials: BTreeMap<DialId, Dial>,
    conns: BTreeMap<ConnId, Conn>,
    streams: BTreeMap<StreamId, (ConnId, usize)>,
    blocked: BTreeMap<(HostId, HostId), Time>,
    newest: BTreeMap<(HostId, HostId), ConnId>,
    agenda: Agenda<Due>,
    notices: VecDeque<(HostId, Notice)>,
    ids_ever: u64,
    window_max: usize,
    work: NetWork,
}

impl Net {
    /// A network without hosts.
    #[must_use]
    pub fn new(root: &Rng) -> Net {
        let mut rng = root.fork("net");
        let window_max = 1 << rng.within(7..=17);
        Net {
            rng,
            hosts: BTreeMap::new(),
            dials: BTreeMap::new(),
            conns: BTreeMap::new(),
            streams: BTreeMap::new(),
            blocked: BTreeMap::new(),
            newest: BTreeMap::new(),
            agenda: Agenda::new(),
            notices: VecDeque::new(),
            ids_ever: 0,
            window_max,
            work: NetWork::default(),
        }
    }

    /// The address of a host.
    #[must_use]
    pub fn addr(host: HostId) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host.0 + 1)
    }

    /// Adds a host, down.
    pub fn add_host(&mut self, host: HostId) {
        let addr = Net::addr(host);
        self.hosts.insert(host, Host { addr, up: false, listening: None });
    }

    /// How much has been done.
    #[must_use]
    pub fn work(&self) -> NetWork {
        self.work
    }

    /// How many connections some end of which is still open.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.conns.len()
    }

    /// The host's node starts.
    pub fn host_up(&mut self, host: HostId) {
        if let Some(host) = self.hosts.get_mut(&host) {
            host.up = true;
        }
    }

    /// The host's node is gone. Its peers hear of it, or don't.
    pub fn host_down(&mut self, now: Time, host: HostId, atlas: &mut Atlas) {
        if let Some(host) = self.hosts.get_mut(&host) {
            host.up = false;
            host.listening = None;
        }
        self.dials.retain(|_, dial| dial.host != host);
        self.notices.retain(|(to, _)| *to != host);
        let ids: Vec<ConnId> = self.conns.keys().copied().collect();
        for id in ids {
            for end in [0, 1] {
                let Some(conn) = self.conns.get_mut(&id) else { break };
                let dead = &mut conn.ends[end];
                if dead.host != host || matches!(dead.state, EndState::Closed | EndState::Gone) {
                    continue;
                }
                dead.state = EndState::Gone;
                self.streams.remove(&dead.stream);
                if atlas.draw(Fault::NetHalfOpen) {
                    atlas.happened(Fault::NetHalfOpen);
                } else {
                    self.cut_and_finish(now, id, end);
                }
                self.forget_if_over(id);
            }
        }
    }

    /// Starts to accept connections for a host. Returns whether that is possible.
    pub fn listen(
        &mut self,
        now: Time,
        host: HostId,
        at: Endpoint,
        atlas: &mut Atlas,
        trace: &mut Trace,
    ) -> bool {
        let own = at.addr == Net::addr(host) || at.addr.is_unspecified();
        let possible = own && !atlas.strike(Fault::NetListenFail);
        trace.note(now, Some(host), &Note::Listen(at, possible));
        if let Some(host) = self.hosts.get_mut(&host) {
            host.listening = possible.then_some(at);
        }
        possible
    }

    /// Stops accepting.
    pub fn unlisten(&mut self, host: HostId) {
        if let Some(host) = self.hosts.get_mut(&host) {
            host.listening = None;
        }
    }

    /// Starts to connect.
    pub fn dial(&mut self, now: Time, host: HostId, attempt: u32, to: Endpoint, trace: &mut Trace) {
        trace.note(now, Some(host), &Note::Dial(attempt, to));
        let id = DialId(self.next_id());
        self.dials.insert(id, Dial { host, attempt, to });
        let syn = now.plus(self.latency());
        self.agenda.push(syn, Due::Syn(id));
        let timeout = now.plus(self.rng.span(3 * SECOND, 20 * SECOND));
        self.agenda.push(timeout, Due::DialTimeout(id));
    }

    /// Takes as many of the bytes as there is room for, which may be none.
    pub fn send(
        &mut self,
        now: Time,
        stream: StreamId,
        bytes: &[u8],
        atlas: &mut Atlas,
        trace: &mut Trace,
    ) -> usize {
        let Some((id, end)) = self.streams.get(&stream).copied() else { return 0 };
        let arrive = self.latency_with_faults(now, atlas);
        let Some(conn) = self.conns.get_mut(&id) else { return 0 };
        let pipe = &mut conn.pipes[end];
        let mut len = bytes.len().min(conn.window - pipe.unacked);
        if len > 1 && atlas.strike(Fault::NetPartialSend) {
            len = self.rng.within(1..=len as u64 - 1) as usize;
        }
        if len == 0 {
            return 0;
        }
        let mut segment = bytes[..len].to_vec();
        trace.note(now, Some(conn.ends[end].host), &Note::Sent(stream, Digest::of(&segment)));
        if atlas.strike(Fault::NetGarble) {
            let bit = self.rng.below(8 * len as u64) as usize;
            segment[bit / 8] ^= 1 << (bit % 8);
        }
        pipe.unacked += len;
        pipe.last_at = pipe.last_at.max(arrive);
        pipe.flight.push_back(Segment::Bytes(segment));
        self.agenda.push(pipe.last_at, Due::Arrive { conn: id, from: end });
        len
    }

    /// Whether there is something to receive.
    #[must_use]
    pub fn is_readable(&self, stream: StreamId) -> bool {
        let found = self.streams.get(&stream).and_then(|(id, end)| {
            let conn = self.conns.get(id)?;
            Some(!conn.pipes[1 - end].arrived.is_empty())
        });
        found.unwrap_or(false)
    }

    /// Puts received bytes at the start of `space`. Returns how many.
    pub fn recv(
        &mut self,
        now: Time,
        stream: StreamId,
        space: &mut [u8],
        atlas: &mut Atlas,
        trace: &mut Trace,
    ) -> usize {
        let Some((id, end)) = self.streams.get(&stream).copied() else { return 0 };
        let latency = self.latency();
        let Some(conn) = self.conns.get_mut(&id) else { return 0 };
        let from = 1 - end;
        let pipe = &mut conn.pipes[from];
        let mut len = space.len().min(pipe.arrived.len());
        if len > 1 && atlas.strike(Fault::NetPartialRecv) {
            len = self.rng.within(1..=len as u64 - 1) as usize;
        }
        if len == 0 {
            return 0;
        }
        for (to, byte) in space.iter_mut().zip(pipe.arrived.drain(..len)) {
            *to = byte;
        }
        self.work.bytes_received += len as u64;
        let note = Note::Received(stream, Digest::of(&space[..len]));
        trace.note(now, Some(conn.ends[end].host), &note);
        self.agenda.push(now.plus(latency), Due::Ack { conn: id, from, bytes: len });
        if pipe.fin_arrived && pipe.arrived.is_empty() {
            self.tell_closed(id, end);
        }
        len
    }

    /// A node ends its stream. Its last bytes arrive, or only the first of them.
    pub fn close(&mut self, now: Time, stream: StreamId, atlas: &mut Atlas, trace: &mut Trace) {
        let Some((id, end)) = self.streams.remove(&stream) else { return };
        let Some(conn) = self.conns.get_mut(&id) else { return };
        trace.note(now, Some(conn.ends[end].host), &Note::Close(stream));
        conn.ends[end].state = EndState::Closed;
        if atlas.draw(Fault::NetReset) {
            atlas.happened(Fault::NetReset);
            self.cut_and_finish(now, id, end);
        } else {
            self.finish_sending(now, id, end);
        }
        self.forget_if_over(id);
    }

    /// Resets one of the connections. Returns whether there was one.
    pub fn reset_one(&mut self, now: Time) -> bool {
        let ids: Vec<ConnId> = self.conns.keys().copied().collect();
        let Some(id) = self.rng.pick(&ids).copied() else { return false };
        let end = self.rng.below(2) as usize;
        self.agenda.push(now, Due::Reset { conn: id, end });
        true
    }

    /// Lets nothing through from one host to another until then. Connections that have bytes under
    /// way may be given up meanwhile, by each end for itself.
    pub fn block(&mut self, now: Time, from: HostId, to: HostId, until: Time, trace: &mut Trace) {
        trace.note(now, None, &Note::Blocked(from, to, until));
        let open_at = self.blocked.entry((from, to)).or_default();
        *open_at = until.max(*open_at);
        let joins = |conn: &Conn| {
            let hosts = [conn.ends[0].host, conn.ends[1].host];
            hosts == [from, to] || hosts == [to, from]
        };
        let ids: Vec<ConnId> =
            self.conns.iter().filter(|(_, conn)| joins(conn)).map(|(id, _)| *id).collect();
        for id in ids {
            for end in [0, 1] {
                let give_up = now.plus(self.rng.span(10 * SECOND, 2 * MINUTE));
                self.agenda.push(give_up, Due::GiveUp { conn: id, end });
            }
        }
    }

    /// Faults have stopped: all links work and everything under way arrives soon.
    pub fn calm(&mut self, now: Time) {
        self.blocked.clear();
        let ids: Vec<ConnId> = self.conns.keys().copied().collect();
        for id in ids {
            for from in [0, 1] {
                let at = now.plus(self.latency());
                let Some(conn) = self.conns.get_mut(&id) else { break };
                let pipe = &mut conn.pipes[from];
                pipe.last_at = at;
                for _ in 0..pipe.flight.len() {
                    self.agenda.push(at, Due::Arrive { conn: id, from });
                }
            }
        }
    }

    /// When [`step`](Self::step) has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        self.agenda.next_at()
    }

    /// Does the next thing that is due. It may lead to [notices](Self::poll_notice).
    pub fn step(&mut self, now: Time, atlas: &mut Atlas) {
        match self.agenda.pop_due(now) {
            None => {}
            Some(Due::Syn(dial)) => self.on_syn(now, dial, atlas),
            Some(Due::SynAck(dial, conn)) => self.on_syn_ack(now, dial, conn, atlas),
            Some(Due::Refused(dial) | Due::DialTimeout(dial)) => {
                if let Some(Dial { host, attempt, .. }) = self.dials.remove(&dial) {
                    self.notices.push_back((host, Notice::ConnectFailed { attempt }));
                }
            }
            Some(Due::Arrive { conn, from }) => self.on_arrive(now, conn, from, atlas),
            Some(Due::Ack { conn, from, bytes }) => self.on_ack(now, conn, from, bytes),
            Some(Due::Reset { conn, end }) => self.on_reset(now, conn, end, atlas),
            Some(Due::GiveUp { conn, end }) => {
                let Some(found) = self.conns.get(&conn) else { return };
                let (own, peer) = (found.ends[end].host, found.ends[1 - end].host);
                let stuck = self.is_blocked(now, own, peer) || self.is_blocked(now, peer, own);
                if found.pipes[end].unacked > 0 && stuck {
                    self.on_reset(now, conn, end, atlas);
                }
            }
        }
    }

    /// The next thing a host is to be told.
    pub fn poll_notice(&mut self, now: Time, trace: &mut Trace) -> Option<(HostId, Notice)> {
        let (host, notice) = self.notices.pop_front()?;
        trace.note(now, Some(host), &Note::Told(notice));
        Some((host, notice))
    }

    fn next_id(&mut self) -> u64 {
        self.ids_ever += 1;
        self.ids_ever
    }

    fn latency(&mut self) -> std::time::Duration {
        self.rng.span(20 * MICRO, 2 * MILLI)
    }

    fn latency_with_faults(&mut self, now: Time, atlas: &mut Atlas) -> Time {
        let mut after = self.latency();
        if atlas.strike(Fault::NetDrop) {
            after += 200 * MILLI * (1 << self.rng.below(4) as u32);
        }
        if atlas.strike(Fault::NetDelay) {
            after += self.rng.span(MILLI, SECOND);
        }
        if atlas.strike(Fault::NetStall) {
            after += self.rng.span(SECOND, 10 * MINUTE);
        }
        now.plus(after)
    }

    fn is_blocked(&self, now: Time, from: HostId, to: HostId) -> bool {
        self.blocked.get(&(from, to)).is_some_and(|until| *until > now)
    }

    /// When something that finds the link blocked tries again.
    fn retry_at(&mut self, from: HostId, to: HostId) -> Option<Time> {
        let until = self.blocked.get(&(from, to)).copied()?;
        Some(until.plus(self.rng.span(MILLI, SECOND)))
    }

    fn on_syn(&mut self, now: Time, id: DialId, atlas: &mut Atlas) {
        let Some(Dial { host: dialer, to, .. }) = self.dials.get(&id) else { return };
        let (dialer, to) = (*dialer, *to);
        let target = self.hosts.iter().find(|(_, host)| host.addr == to.addr);
        let Some((target, host)) = target.filter(|(_, host)| host.up) else { return };
        let target = *target;
        let listens = host.listening.is_some_and(|at| at.port == to.port);
        if self.is_blocked(now, dialer, target) {
            if let Some(at) = self.retry_at(dialer, target) {
                self.agenda.push(at, Due::Syn(id));
            }
            return;
        }
        let answer = now.plus(self.latency());
        if !listens || atlas.strike(Fault::NetRefuse) {
            self.agenda.push(answer, Due::Refused(id));
            return;
        }
        let conn = ConnId(self.next_id());
        let streams = [StreamId(self.next_id()), StreamId(self.next_id())];
        let ghost = atlas.strike(Fault::NetGhost);
        let opening = if ghost { EndState::Gone } else { EndState::Opening };
        let ends = [
            End { host: dialer, stream: streams[0], state: opening },
            End { host: target, stream: streams[1], state: EndState::Open },
        ];
        let window = self.rng.within(64..=self.window_max as u64) as usize;
        self.conns.insert(conn, Conn { ends, pipes: Default::default(), window });
        self.streams.insert(streams[1], (conn, 1));
        self.notices.push_back((target, Notice::Accepted(streams[1])));
        if !ghost {
            self.agenda.push(answer, Due::SynAck(id, conn));
        }
    }

    fn on_syn_ack(&mut self, now: Time, dial: DialId, id: ConnId, atlas: &mut Atlas) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let (dialer, target) = (conn.ends[0].host, conn.ends[1].host);
        if conn.ends[0].state != EndState::Opening {
            return;
        }
        if self.blocked.get(&(target, dialer)).is_some_and(|until| *until > now) {
            if let Some(at) = self.retry_at(target, dialer) {
                self.agenda.push(at, Due::SynAck(dial, id));
            }
            return;
        }
        let Some(Dial { host, attempt, .. }) = self.dials.remove(&dial) else {
            conn.ends[0].state = EndState::Gone;
            atlas.happened(Fault::NetGhost);
            self.forget_if_over(id);
            return;
        };
        conn.ends[0].state = EndState::Open;
        let stream = conn.ends[0].stream;
        self.work.connections += 1;
        self.streams.insert(stream, (id, 0));
        self.notices.push_back((host, Notice::Connected { attempt, stream }));
    }

    fn on_arrive(&mut self, now: Time, id: ConnId, from: usize, atlas: &mut Atlas) {
        let Some(conn) = self.conns.get(&id) else { return };
        let (sender, receiver) = (conn.ends[from].host, conn.ends[1 - from].host);
        let state = conn.ends[1 - from].state;
        let receiver_up = self.hosts.get(&receiver).is_some_and(|host| host.up);
        if self.is_blocked(now, sender, receiver) {
            if let Some(at) = self.retry_at(sender, receiver) {
                self.agenda.push(at, Due::Arrive { conn: id, from });
            }
            return;
        }
        match state {
            EndState::Opening => {
                self.agenda.push(now.plus(MILLI), Due::Arrive { conn: id, from });
            }
            EndState::Gone if !receiver_up => {
                // Nobody answers: sent again, and one day given up.
                let gives_up = self.rng.below(100) == 0;
                let at = now.plus(self.rng.span(SECOND, 4 * SECOND));
                let end = from;
                let next = if gives_up {
                    Due::Reset { conn: id, end }
                } else {
                    Due::Arrive { conn: id, from }
                };
                self.agenda.push(at, next);
            }
            EndState::Gone | EndState::Closed => {
                let at = now.plus(self.latency());
                self.agenda.push(at, Due::Reset { conn: id, end: from });
            }
            EndState::Open => self.deliver(id, from, atlas),
        }
    }

    fn deliver(&mut self, id: ConnId, from: usize, atlas: &mut Atlas) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let hosts = (conn.ends[from].host, conn.ends[1 - from].host);
        let (to, stream) = (hosts.1, conn.ends[1 - from].stream);
        let pipe = &mut conn.pipes[from];
        match pipe.flight.pop_front() {
            None => {}
            Some(Segment::Bytes(bytes)) => {
                pipe.arrived.extend(bytes);
                let newest = self.newest.entry(hosts).or_insert(id);
                if *newest > id {
                    atlas.happened(Fault::NetReorder);
                }
                *newest = id.max(*newest);
                self.notices.push_back((to, Notice::Ready(stream)));
            }
            Some(Segment::Fin) => {
                pipe.fin_arrived = true;
                if pipe.arrived.is_empty() {
                    self.tell_closed(id, 1 - from);
                }
            }
        }
    }

    fn on_ack(&mut self, now: Time, id: ConnId, from: usize, bytes: usize) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let (sender, receiver) = (conn.ends[from].host, conn.ends[1 - from].host);
        if self.blocked.get(&(receiver, sender)).is_some_and(|until| *until > now) {
            if let Some(at) = self.retry_at(receiver, sender) {
                self.agenda.push(at, Due::Ack { conn: id, from, bytes });
            }
            return;
        }
        conn.pipes[from].unacked -= bytes;
        if conn.ends[from].state == EndState::Open {
            self.notices.push_back((sender, Notice::Ready(conn.ends[from].stream)));
        }
    }

    /// An end hears that its connection is reset; the other end may hear of it too.
    fn on_reset(&mut self, now: Time, id: ConnId, end: usize, atlas: &mut Atlas) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let (own, peer) = (conn.ends[end].host, conn.ends[1 - end].host);
        if conn.ends[end].state != EndState::Open {
            return;
        }
        let peer_open = matches!(conn.ends[1 - end].state, EndState::Open | EndState::Opening);
        conn.pipes[1 - end].arrived.clear();
        self.tell_closed(id, end);
        if !peer_open {
            return;
        }
        if self.is_blocked(now, own, peer) || atlas.draw(Fault::NetHalfOpen) {
            atlas.happened(Fault::NetHalfOpen);
            return;
        }
        let at = now.plus(self.latency());
        self.agenda.push(at, Due::Reset { conn: id, end: 1 - end });
    }

    fn tell_closed(&mut self, id: ConnId, end: usize) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let End { host, stream, state } = &mut conn.ends[end];
        if *state == EndState::Open {
            *state = EndState::Closed;
            self.streams.remove(stream);
            self.notices.push_back((*host, Notice::Closed(*stream)));
        }
        self.forget_if_over(id);
    }

    /// Drops the tail of what the end has sent, from any byte on, and ends what is left.
    fn cut_and_finish(&mut self, now: Time, id: ConnId, end: usize) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let flight = &mut conn.pipes[end].flight;
        if !flight.is_empty() {
            flight.truncate(self.rng.within(1..=flight.len() as u64) as usize);
            if let Some(Segment::Bytes(bytes)) = flight.back_mut() {
                bytes.truncate(self.rng.below(bytes.len() as u64 + 1) as usize);
            }
        }
        self.finish_sending(now, id, end);
    }

    fn finish_sending(&mut self, now: Time, id: ConnId, end: usize) {
        let at = now.plus(self.latency());
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let pipe = &mut conn.pipes[end];
        pipe.flight.push_back(Segment::Fin);
        pipe.last_at = pipe.last_at.max(at);
        // A cut may have left more arrivals planned than there are segments: they find nothing.
        self.agenda.push(pipe.last_at, Due::Arrive { conn: id, from: end });
    }

    /// A connection neither end of which has a living node behind it is over, once what one of them
    /// sent before can't reach the other any more.
    fn forget_if_over(&mut self, id: ConnId) {
        let over = |end: &End| matches!(end.state, EndState::Closed | EndState::Gone);
        if self.conns.get(&id).is_some_and(|conn| conn.ends.iter().all(over)) {
            self.conns.remove(&id);
        }
    }
}

impl std::fmt::Debug for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Net").field("conns", &self.conns.len()).finish_non_exhaustive()
    }
}

//! One client, some servers that lead one after the other, and the byte queues between them, with
//! a model of what each owner must see.

use super::std::collections::{BTreeMap, VecDeque};
use crate::arena::Arena;
use crate::format::key::Key;
use crate::format::wire::greeting::{Greeting, Machine, Role};
use crate::format::wire::message::{
    ClientAnswer, ClientRequest, Extent, ExtentRecord, Extents, HeldLocks, LockRecord, LockTell,
    ManifestRoot, Outcome, Pool, ServerAnswer, ServerRequest, Transaction, TransactionDone,
};
use crate::format::wire::{ErrorCode, Kind};
use crate::format::{ClientId, CommitNo, Seq, Term};
use crate::net::{
    Cluster, ClusterKey, End, Incoming, LineLimits, Link, LinkConfig, LinkEvent, LinkLimits, Links,
    LinksConfig, LinksEvent, LinksLimits, NotSent, SessionId, SessionLimits, Stale, Ticket, Timing,
};
use core::mem::MaybeUninit;
use core::time::Duration;
use outrider_hal::{Instant, StreamId};
use zerocopy::FromZeros;

use super::std::vec;
use super::std::vec::Vec;

pub(super) const SERVERS: usize = 3;
pub(super) const FSID: u64 = 0x00f5_1d00;
pub(super) const KEY: ClusterKey = ClusterKey([7; 32]);
pub(super) const WINDOWS: SessionLimits = SessionLimits { asks_max: 3, answers_max: 3 };

pub(super) const LINKS: LinksLimits = LinksLimits {
    clients_max: 2,
    guests_max: 1,
    half_open_max: 2,
    session: WINDOWS,
    line: LineLimits::MIN,
};

pub(super) fn cluster() -> Cluster {
    Cluster::new(FSID, KEY)
}

pub(super) fn link_config(cluster: Cluster, nonce: u8) -> LinkConfig {
    LinkConfig {
        cluster,
        timing: Timing::DEFAULT,
        role: Role::Mount,
        nonce: [nonce; 16],
        machine: Machine::default(),
        read_only: false,
    }
}

/// Memory for one call of `run`, exactly as much as `carve` measured.
pub(super) fn with_arena<T>(bytes: usize, run: impl FnOnce(&mut Arena<'_>) -> T) -> T {
    let align = crate::arena::REGION_ALIGN;
    let mut region = vec![MaybeUninit::uninit(); bytes + align];
    let start = region.as_ptr().align_offset(align);
    run(&mut Arena::new(&mut region[start..start + bytes]).unwrap())
}

pub(super) fn carve_links<'m>(arena: &mut Arena<'m>, cluster: Cluster) -> Links<'m> {
    let config = LinksConfig { cluster, timing: Timing::DEFAULT };
    Links::carve(arena, LINKS, config).unwrap()
}

pub(super) fn carve_link<'m>(arena: &mut Arena<'m>, config: LinkConfig) -> Link<'m> {
    let limits = LinkLimits { session: WINDOWS, line: LineLimits::MIN };
    Link::carve(arena, &limits, config).unwrap()
}

/// Runs a test in a world of its own.
pub(super) fn with_world<T>(run: impl FnOnce(&mut World<'_>) -> T) -> T {
    let mut measure = Arena::measuring();
    World::carve(&mut measure);
    with_arena(measure.bytes_used(), |arena| run(&mut World::carve(arena)))
}

/// A connection, with what is on its way.
pub(super) struct Wire {
    pub(super) server: usize,
    stream: StreamId,
    pub(super) up: VecDeque<u8>,
    pub(super) down: VecDeque<u8>,
    client_open: bool,
    server_open: bool,
}

/// A message that an owner took and is not done with.
struct Pending {
    server: usize,
    session: Option<SessionId>,
    ticket: Ticket,
    /// None for answers, which only want to be recorded.
    serial: Option<u64>,
}

/// What a server's owner has seen.
#[derive(Default)]
struct ServerModel {
    session: Option<SessionId>,
    /// Serials of the requests taken, in order.
    taken: Vec<u64>,
    /// Serials of own requests: whether the answer was taken.
    asked: Vec<bool>,
    /// Names of own requests.
    names: BTreeMap<u64, u64>,
    /// How many of them the client has taken.
    heard: u64,
}

pub(super) struct World<'m> {
    pub(super) now: Instant,
    pub(super) link: Link<'m>,
    pub(super) servers: Vec<Links<'m>>,
    models: Vec<ServerModel>,
    pub(super) wires: Vec<Wire>,
    /// Servers up to this one have been started; the last of them leads.
    pub(super) leader: usize,
    /// Serials of the client's requests: whether the answer was taken, or will not come.
    pub(super) asked: Vec<bool>,
    names: BTreeMap<u64, u64>,
    /// Serials of those that belong to one term, are not answered, and can be.
    of_one_term: Vec<u64>,
    /// Serials of those that were dropped, and the first server that must not see them.
    dropped: BTreeMap<u64, usize>,
    client_pending: Vec<Pending>,
    server_pending: Vec<Pending>,
    transactions: u64,
    /// How many extents a transaction frees.
    pub(super) extents: usize,
    streams: u64,
    /// Why connections ended, at the client.
    pub(super) ends: Vec<End>,
    pub(super) server_ends: Vec<End>,
    /// Bytes delivered so far, up and down, and where to cut.
    pub(super) delivered: [usize; 2],
    pub(super) cut_at: [Option<usize>; 2],
    /// After a cut, go to the next server.
    pub(super) move_on: bool,
    pub(super) evicted: bool,
    pub(super) resumed: u32,
    pub(super) renewed: u32,
}

/// What a server or, as server 0, the client says about a lock.
fn lock(server: usize, serial: u64) -> LockRecord {
    let name = Key { first: server as u64, ..Key::MIN }.into();
    LockRecord { kind: 4, name, generation: serial.into(), ..LockRecord::new_zeroed() }
}

/// Whatever happens to bytes, two nodes that keep the rules never see them broken.
fn assert_honest(end: End) {
    assert!(!matches!(end, End::Breach(_) | End::Malformed(_)), "{end:?}");
}

impl<'m> World<'m> {
    fn carve(arena: &mut Arena<'m>) -> World<'m> {
        let link = carve_link(arena, link_config(cluster(), 1));
        let mut servers: Vec<_> = (0..SERVERS).map(|_| carve_links(arena, cluster())).collect();
        servers[0].begin(Term::new(1, 0));
        World {
            now: Instant(0),
            link,
            servers,
            models: (0..SERVERS).map(|_| ServerModel::default()).collect(),
            wires: Vec::new(),
            leader: 0,
            asked: Vec::new(),
            names: BTreeMap::new(),
            of_one_term: Vec::new(),
            dropped: BTreeMap::new(),
            client_pending: Vec::new(),
            server_pending: Vec::new(),
            transactions: 0,
            extents: 0,
            streams: 0,
            ends: Vec::new(),
            server_ends: Vec::new(),
            delivered: [0, 0],
            cut_at: [None, None],
            move_on: false,
            evicted: false,
            resumed: 0,
            renewed: 0,
        }
    }

    /// Another server leads from now on; the one before doesn't know.
    pub(super) fn next_server(&mut self) {
        if self.leader + 1 < SERVERS {
            self.leader += 1;
            self.servers[self.leader].begin(Term::new(self.leader as u64 + 1, 0));
        }
    }

    /// Connects the client, if it has no connection.
    pub(super) fn connect(&mut self, server: usize) {
        self.step();
        if !self.link.is_idle() || self.link.is_parted() {
            return;
        }
        self.streams += 1;
        let stream = StreamId(self.streams);
        let random = [self.streams as u8; 16];
        let displaced = self.servers[server].accept(self.now, stream, random.map(|byte| !byte));
        if let Some(displaced) = displaced.unwrap() {
            for wire in self.wires.iter_mut().filter(|wire| wire.stream == displaced) {
                wire.server_open = false;
            }
        }
        self.link.connect(self.now, stream, random);
        self.wires.push(Wire {
            server,
            stream,
            up: VecDeque::new(),
            down: VecDeque::new(),
            client_open: true,
            server_open: true,
        });
        self.step();
    }

    /// Ends a connection, and loses what was on its way. The server may not notice.
    pub(super) fn cut(&mut self, wire: usize, server_notices: bool) {
        let Some(wire) = self.wires.get_mut(wire) else {
            return;
        };
        wire.down.clear();
        wire.client_open = false;
        self.link.closed(wire.stream);
        if server_notices {
            wire.up.clear();
            wire.server_open = false;
            self.servers[wire.server].closed(wire.stream);
        }
        self.step();
    }

    /// Moves up to `count` bytes out of the client.
    pub(super) fn client_sends(&mut self, count: usize) {
        for wire in self.wires.iter_mut().filter(|wire| wire.client_open) {
            let bytes = self.link.send_bytes(wire.stream);
            let count = bytes.len().min(count);
            wire.up.extend(&bytes[..count]);
            self.link.sent(wire.stream, count);
        }
        self.step();
    }

    /// Moves up to `count` bytes out of a server.
    pub(super) fn server_sends(&mut self, wire: usize, count: usize) {
        if let Some(wire) = self.wires.get_mut(wire).filter(|wire| wire.server_open) {
            let bytes = self.servers[wire.server].send_bytes(wire.stream);
            let count = bytes.len().min(count);
            if wire.client_open {
                wire.down.extend(&bytes[..count]);
            }
            self.servers[wire.server].sent(wire.stream, count);
        }
        self.step();
    }

    /// Moves up to `count` bytes into a server.
    pub(super) fn server_receives(&mut self, index: usize, count: usize) {
        if let Some(wire) = self.wires.get_mut(index).filter(|wire| wire.server_open) {
            let left = self.cut_at[0].map_or(usize::MAX, |at| at - self.delivered[0]);
            let space = self.servers[wire.server].recv_space(wire.stream);
            let count = space.len().min(count).min(wire.up.len()).min(left);
            space.iter_mut().zip(wire.up.drain(..count)).for_each(|(to, from)| *to = from);
            if count > 0 {
                self.servers[wire.server].received(self.now, wire.stream, count);
            }
            self.delivered[0] += count;
        }
        self.cut_if_due(0, index);
        self.step();
    }

    /// Moves up to `count` bytes into the client.
    pub(super) fn client_receives(&mut self, count: usize) {
        for index in 0..self.wires.len() {
            let wire = &mut self.wires[index];
            if !wire.client_open {
                continue;
            }
            let left = self.cut_at[1].map_or(usize::MAX, |at| at - self.delivered[1]);
            let space = self.link.recv_space(wire.stream);
            let count = space.len().min(count).min(wire.down.len()).min(left);
            space.iter_mut().zip(wire.down.drain(..count)).for_each(|(to, from)| *to = from);
            if count > 0 {
                self.link.received(self.now, wire.stream, count);
            }
            self.delivered[1] += count;
            self.cut_if_due(1, index);
        }
        self.step();
    }

    fn cut_if_due(&mut self, direction: usize, wire: usize) {
        if self.cut_at[direction] == Some(self.delivered[direction]) {
            self.cut_at[direction] = None;
            self.cut(wire, true);
            if self.move_on {
                self.next_server();
            }
        }
    }

    /// Time passes, and what is due is done.
    pub(super) fn tick(&mut self, after: Duration) {
        self.now = self.now.plus(after);
        self.step();
    }

    /// The client asks for the next serial, by lock or by transaction.
    pub(super) fn client_asks(&mut self, kind: Kind) {
        let serial = self.asked.len() as u64;
        let extent = ExtentRecord::new(Extent { pool: Pool::Data, start: serial, count: 1 });
        let freed = vec![extent; self.extents];
        let sent = match kind {
            Kind::Transaction => self.link.request(&ClientRequest::Transaction(
                Transaction::new(
                    self.transactions + 1,
                    Seq(serial + 1),
                    CommitNo(0),
                    &[],
                    Extents::default(),
                    Extents::new(&freed).unwrap(),
                )
                .unwrap(),
            )),
            Kind::Farewell => self.link.request(&ClientRequest::Farewell),
            _ => self.link.request(&ClientRequest::LockAsk(lock(0, serial))),
        };
        match sent {
            Ok(name) => {
                self.transactions += u64::from(kind == Kind::Transaction);
                self.names.insert(name.0, serial);
                self.asked.push(false);
                if kind.is_of_one_term() {
                    self.of_one_term.push(serial);
                }
            }
            Err(NotSent::Full | NotSent::Leaving) => {}
            Err(NotSent::NotConnected) => panic!("a client's session is always there"),
        }
        self.step();
    }

    /// A server asks its client for the next serial.
    pub(super) fn server_asks(&mut self, server: usize, kind: Kind) {
        let model = &mut self.models[server];
        let Some(session) = model.session else {
            return;
        };
        let lock = lock(server, model.asked.len() as u64);
        let request = match kind {
            Kind::Recover => {
                let from = Key { second: lock.generation.get(), ..lock.name.into() };
                ServerRequest::Recover(from.into())
            }
            _ => ServerRequest::LockTell(LockTell { lock, root: None }),
        };
        if let Ok(name) = self.servers[server].request(session, &request) {
            model.names.insert(name.0, model.asked.len() as u64);
            model.asked.push(false);
        }
        self.step();
    }

    /// The client's owner takes a message.
    pub(super) fn client_takes(&mut self) {
        let Some(wire) = self.wires.iter().find(|wire| wire.client_open) else {
            return;
        };
        let server = wire.server;
        let serial = match self.link.head() {
            None => return,
            Some(Incoming::Request(request)) => {
                let (name, serial) = match request {
                    ServerRequest::LockTell(tell) => (tell.lock.name, tell.lock.generation.get()),
                    ServerRequest::Recover(from) => (from, from.second.get()),
                    other => panic!("never asked: {other:?}"),
                };
                assert_eq!(name.first.get() as usize, server, "only the greeted server is heard");
                assert_eq!(serial, self.models[server].heard, "in order, once");
                self.models[server].heard += 1;
                Some(serial)
            }
            Some(Incoming::Answer(name, outcome)) => {
                let serial = self.names[&name.0];
                let answered = match outcome {
                    Outcome::Done(ServerAnswer::LockAsk) => serial,
                    Outcome::Done(ServerAnswer::Transaction(done)) => done.seq_next.0 - 1,
                    Outcome::Done(ServerAnswer::Farewell) => serial,
                    other => panic!("{other:?}"),
                };
                assert_eq!(answered, serial, "the answer to this request");
                assert!(!self.asked[serial as usize], "answered once");
                self.asked[serial as usize] = true;
                self.of_one_term.retain(|open| *open != serial);
                None
            }
        };
        let ticket = self.link.take(self.now).unwrap();
        self.client_pending.push(Pending { server, session: None, ticket, serial });
        self.step();
    }

    /// A server's owner takes a message.
    pub(super) fn server_takes(&mut self, server: usize) {
        let model = &mut self.models[server];
        let Some(session) = model.session else {
            return;
        };
        let serial = match self.servers[server].head(session) {
            None => return,
            Some(Incoming::Request(request)) => {
                let serial = match request {
                    ClientRequest::LockAsk(lock) => {
                        let serial = lock.generation.get();
                        let dropped = self.dropped.get(&serial).is_some_and(|at| *at <= server);
                        assert!(!dropped, "of an older term");
                        serial
                    }
                    ClientRequest::Transaction(transaction) => {
                        let serial = transaction.seq.0 - 1;
                        assert_eq!(transaction.freed.len(), self.extents);
                        assert!(transaction.freed.iter().all(|extent| extent.start == serial));
                        serial
                    }
                    ClientRequest::Farewell => self.asked.len() as u64 - 1,
                    other => panic!("{other:?}"),
                };
                // A farewell is repeated when its answer was lost: the session is gone by then.
                if !matches!(request, ClientRequest::Farewell) {
                    let last = model.taken.last();
                    assert!(last.is_none_or(|last| *last < serial), "in order, once");
                    model.taken.push(serial);
                }
                Some(serial)
            }
            Some(Incoming::Answer(name, outcome)) => {
                let serial = model.names[&name.0];
                match outcome {
                    Outcome::Done(ClientAnswer::LockTell) => {}
                    Outcome::Failed(ErrorCode::Busy, Some(ClientAnswer::Recover(held))) => {
                        assert!(held.records().is_empty());
                    }
                    other => panic!("{other:?}"),
                }
                let answered = &mut model.asked[serial as usize];
                assert!(!*answered, "answered once");
                *answered = true;
                None
            }
        };
        let ticket = self.servers[server].take(self.now, session).unwrap();
        self.server_pending.push(Pending { server, session: Some(session), ticket, serial });
        self.step();
    }

    /// The client's owner is done with one of the messages it took.
    pub(super) fn client_finishes(&mut self, which: usize) {
        if self.client_pending.is_empty() {
            return;
        }
        let pending = self.client_pending.swap_remove(which % self.client_pending.len());
        if pending.serial.is_none() {
            self.link.recorded(pending.ticket);
            return self.step();
        }
        let outcome = match pending.ticket.kind() {
            Kind::Recover => Outcome::Failed(
                ErrorCode::Busy,
                Some(ClientAnswer::Recover(HeldLocks::new(&[]).unwrap())),
            ),
            _ => Outcome::Done(ClientAnswer::LockTell),
        };
        let answered = self.link.answer(pending.ticket, &outcome);
        let of_newest = self.link.term() == self.servers_term(pending.server);
        assert_eq!(answered, if of_newest { Ok(()) } else { Err(Stale) });
        self.step();
    }

    /// A server's owner is done with one of the messages it took, or has at least recorded it.
    pub(super) fn server_finishes(&mut self, which: usize, only_recorded: bool) {
        if self.server_pending.is_empty() {
            return;
        }
        let which = which % self.server_pending.len();
        let Pending { server, session, ticket, serial } = self.server_pending[which];
        let (links, session) = (&mut self.servers[server], session.unwrap());
        if serial.is_none() || only_recorded {
            links.recorded(session, ticket);
        }
        if serial.is_some() && only_recorded {
            return self.step();
        }
        self.server_pending.swap_remove(which);
        let root = ManifestRoot::default();
        if let Some(serial) = serial {
            let answer = match ticket.kind() {
                Kind::Transaction => ServerAnswer::Transaction(TransactionDone {
                    number: 1,
                    seq_next: Seq(serial + 1),
                    seq_stable: Seq(0),
                    root,
                    lent: Extents::default(),
                }),
                Kind::Farewell => ServerAnswer::Farewell,
                _ => ServerAnswer::LockAsk,
            };
            links.answer(session, ticket, &Outcome::Done(answer)).unwrap();
        }
        self.step();
    }

    fn servers_term(&self, server: usize) -> Term {
        Term::new(server as u64 + 1, 0)
    }

    /// All nodes work, and the drivers see to connections that are over.
    pub(super) fn step(&mut self) {
        // A full window of either side, and one of each kind of its own, as carved.
        let kept_max = usize::from(WINDOWS.asks_max + WINDOWS.answers_max) + 5;
        assert!(self.link.kept() <= kept_max);
        for (links, model) in self.servers.iter().zip(&self.models) {
            assert!(model.session.is_none_or(|session| links.kept(session) <= kept_max));
        }
        self.link.step(self.now);
        while let Some(event) = self.link.poll_event() {
            match event {
                LinkEvent::Up { term, client, renewed } => {
                    assert_eq!(client, ClientId(9));
                    if renewed {
                        self.drop_older(term);
                    }
                    self.renewed += u32::from(renewed);
                    self.resumed += u32::from(!renewed);
                }
                LinkEvent::Message => {}
            }
        }
        if let Some((stream, end)) = self.link.poll_close() {
            assert_honest(end);
            self.ends.push(end);
            for wire in self.wires.iter_mut().filter(|wire| wire.stream == stream) {
                wire.client_open = false;
                wire.down.clear();
            }
        }
        for server in 0..=self.leader {
            self.step_server(server);
        }
    }

    /// What belongs to a term before this one will not be answered any more.
    fn drop_older(&mut self, term: Term) {
        let server = (0..SERVERS).find(|server| self.servers_term(*server) == term).unwrap();
        for serial in self.of_one_term.drain(..) {
            self.asked[serial as usize] = true;
            self.names.retain(|_, named| *named != serial);
            self.dropped.insert(serial, server);
        }
    }

    fn step_server(&mut self, server: usize) {
        self.servers[server].step(self.now);
        while let Some(event) = self.servers[server].poll_event() {
            match event {
                LinksEvent::Greeted(stream, greeting) => self.admit(server, stream, &greeting),
                LinksEvent::Up(session) => self.models[server].session = Some(session),
                LinksEvent::Down(_, _) | LinksEvent::Message(_) => {}
            }
        }
        self.servers[server].step(self.now);
        while let Some((stream, end)) = self.servers[server].poll_close() {
            assert_honest(end);
            self.server_ends.push(end);
            for wire in self.wires.iter_mut().filter(|wire| wire.stream == stream) {
                wire.server_open = false;
                if wire.client_open && wire.down.is_empty() {
                    wire.client_open = false;
                    self.link.closed(stream);
                }
            }
        }
    }

    fn admit(&mut self, server: usize, stream: StreamId, greeting: &Greeting) {
        assert!(greeting.client.is_none_or(|client| client == ClientId(9)));
        if self.evicted {
            return self.servers[server].refuse(self.now, stream, ErrorCode::Evicted);
        }
        if let Ok(session) = self.servers[server].admit(self.now, stream, ClientId(9)) {
            self.models[server].session = Some(session);
        }
    }

    /// Everything flows freely, one round.
    pub(super) fn flow(&mut self) {
        if self.link.is_idle() {
            self.connect(self.leader);
        }
        let all = usize::MAX;
        self.client_sends(all);
        for wire in 0..self.wires.len() {
            self.server_receives(wire, all);
            self.server_sends(wire, all);
        }
        self.client_receives(all);
        for server in 0..=self.leader {
            self.server_takes(server);
            self.server_finishes(0, false);
        }
        self.client_takes();
        self.client_finishes(0);
    }

    /// Forgets connections that nobody has any more.
    pub(super) fn sweep(&mut self) {
        self.wires.retain(|wire| wire.client_open || wire.server_open);
    }

    /// Everything flows freely until all is answered, within a bound.
    pub(super) fn settle(&mut self) {
        for _ in 0..4000 {
            let leader = self.leader;
            if self.wires.iter().any(|wire| wire.client_open && wire.server != leader) {
                self.link.disconnect();
                self.step();
            }
            self.flow();
            self.sweep();
            if self.is_settled() {
                return;
            }
            self.tick(Duration::from_millis(5));
        }
        panic!(
            "stuck: {:?} {:?} {:?} at {}",
            self.asked, self.ends, self.server_ends, self.models[self.leader].heard
        );
    }

    fn is_settled(&self) -> bool {
        let leader = &self.models[self.leader];
        let answered = self.asked.iter().chain(&leader.asked).all(|answered| *answered);
        let away = self.link.is_parted() && self.link.is_idle();
        let here = self.link.is_up() && self.link.term() == self.servers_term(self.leader);
        answered && (away || here) && self.client_pending.is_empty()
    }
}

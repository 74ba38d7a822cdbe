//! A server's connections and sessions, for one term.
//!
//! ```text
//!   connection:
//!     (accept) Hello --> Proof --> Admission --admit--> Open        served, one per session
//!                |         |           |                  |
//!                v         v           | refuse,          |         silent, closed, breach,
//!              Refusing <--+-----------+ answer_knock     |         replaced, session over
//!                |         |                              |
//!                v         v                              v
//!               Over <-----+------------------------------+--poll_close--> (free)
//!
//!   session:  (admit) present <--> absent     over: farewell answered, dismissed, end of the term
//! ```
//!
//! # Invariants
//!
//! * A connection is in the way of no served one before it is Open: beside as many as can be served
//!   at once there is room for `half_open_max` in the greeting. Whoever comes may use all that is
//!   not in use, as when all mounts come to a new leader at once; where nothing is left, it
//!   displaces the oldest of those that have not proved the key.
//! * Only an owner's `admit` makes a session, and only for who has proved the key. Before, a
//!   connection has its slot and nothing else; whatever it does ends with it.
//! * Of two connections of one client, the one that the client made later lives, whichever greets
//!   first.
//! * A first greeting that is repeated, because its welcome was lost, finds the session that was
//!   made for it, as long as nothing came over it.
//! * Sessions and connections of one term are gone when the next begins.
//!
//! What this file deliberately doesn't know: which ids and nonces are on record, and what a client
//! that is not heard deserves.

use super::greeting::Answerer;
use super::line::{Line, LineLimits};
use super::session::{
    Incoming, NotSent, RequestId, Session, SessionLimits, Sessions, Stale, Ticket, portion,
};
use super::{Breach, Cluster, End, Timing};
use crate::arena::{Arena, ArenaFull};
use crate::format::wire::greeting::{Admission, Greeting, RANDOM_BYTES, Role, Welcome};
use crate::format::wire::message::{Client, Outcome, Server, ServerAnswer, ServerRequest};
use crate::format::wire::{ErrorCode, Kind, Message};
use crate::format::{ClientId, Term};
use crate::roster::Roster;
use outrider_hal::{Instant, StreamId};
use zerocopy::IntoBytes;

/// Sizes of a server's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinksLimits {
    /// Sessions of clients.
    pub clients_max: u16,
    /// Sessions of programs that ask for reports or pins; each lives as long as its connection.
    pub guests_max: u16,
    /// Connections that there is room for in the greeting, while as many as can be are served.
    pub half_open_max: u16,
    /// The windows of each session: `asks_max` of the server's requests, `answers_max` of the
    /// client's.
    pub session: SessionLimits,
    /// The buffers of each connection.
    pub line: LineLimits,
}

/// Why limits can't work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitsError {
    /// Nobody could greet.
    NoHalfOpen,
    /// A buffer is smaller than a record.
    Buffers,
    /// A client could not be asked for a lock, or could not ask for one.
    Windows,
}

impl LinksLimits {
    /// Checks what must hold.
    pub fn validate(&self) -> Result<(), LimitsError> {
        if self.half_open_max == 0 {
            return Err(LimitsError::NoHalfOpen);
        }
        if !self.line.is_valid() {
            return Err(LimitsError::Buffers);
        }
        if self.session.asks_max == 0 || self.session.answers_max == 0 {
            return Err(LimitsError::Windows);
        }
        Ok(())
    }

    /// Connections: one for each session, and those in the greeting.
    #[must_use]
    pub const fn slots(&self) -> u32 {
        self.clients_max as u32 + self.guests_max as u32 + self.half_open_max as u32
    }

    fn members(&self) -> u32 {
        u32::from(self.clients_max) + u32::from(self.guests_max)
    }
}

/// What a server's table is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinksConfig {
    /// What both ends must agree on.
    pub cluster: Cluster,
    /// How long things wait.
    pub timing: Timing,
}

/// Name of a session; never that of another one, as long as the table lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId {
    index: u16,
    generation: u32,
}

/// All connections in the greeting wait for the owner: the new one must be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMany;

/// Something that has happened at a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinksEvent {
    /// Somebody has proved the key, and waits for `admit`, `admit_guest`, `answer_knock` or
    /// `refuse`.
    Greeted(StreamId, Greeting),
    /// A client's session has a connection.
    Up(SessionId),
    /// A client's session has lost its connection.
    Down(SessionId, End),
    /// A message stands at the head of this session. Said once for each.
    Message(SessionId),
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Free,
    Hello { random: [u8; RANDOM_BYTES] },
    Proof(Answerer),
    Admission { answerer: Answerer, told: bool },
    Refusing(End),
    Open { member: u16 },
    Over(End),
}

impl Phase {
    /// Whether a new connection may take its place: it has not proved the key.
    fn is_displaceable(&self) -> bool {
        match self {
            Phase::Hello { .. } | Phase::Proof(_) | Phase::Refusing(_) => true,
            Phase::Free | Phase::Admission { .. } | Phase::Open { .. } | Phase::Over(_) => false,
        }
    }
}

/// A connection.
struct Slot<'m> {
    stream: StreamId,
    phase: Phase,
    line: Line<'m>,
    /// When the greeting, or the refusal, must be over.
    deadline: Instant,
}

/// A session.
struct Member<'m> {
    session: Session<'m, Server>,
    generation: u32,
    occupant: Occupant,
    nonce: [u8; 16],
    attempt: u64,
    /// The connection.
    slot: Option<u16>,
    /// Why there is none.
    end: End,
    /// What the owner was told last.
    up_told: bool,
    message_told: bool,
    /// The farewell was answered.
    parted: bool,
    /// When the peer was last heard, as long as there is no connection.
    heard: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Occupant {
    Nobody,
    Client(ClientId),
    Guest,
}

/// A server's connections and sessions.
pub struct Links<'m> {
    limits: LinksLimits,
    config: LinksConfig,
    term: Term,
    slots: &'m mut [Slot<'m>],
    members: &'m mut [Member<'m>],
    /// The members that are clients.
    clients: Roster<'m>,
    /// Where the search for messages goes on, so that everybody's turn comes.
    turn: usize,
}

impl<'m> Links<'m> {
    /// Carves a table; `begin` opens it.
    ///
    /// # Panics
    ///
    /// If the limits or the timing are not valid.
    pub fn carve(
        arena: &mut Arena<'m>,
        limits: LinksLimits,
        config: LinksConfig,
    ) -> Result<Links<'m>, ArenaFull> {
        assert!(limits.validate().is_ok() && config.timing.is_valid());
        let count = limits.slots();
        let all = |each: u32| each.checked_mul(count).ok_or(ArenaFull);
        let mut recv = arena.slice(all(limits.line.recv_bytes)?, |_| 0)?;
        let mut send = arena.slice(all(limits.line.send_bytes)?, |_| 0)?;
        let mut sessions = Sessions::carve::<Server>(arena, limits.session, limits.members())?;
        let slots = arena.slice(count, |_| Slot {
            stream: StreamId(0),
            phase: Phase::Free,
            line: Line::new(
                portion(&mut recv, limits.line.recv_bytes),
                portion(&mut send, limits.line.send_bytes),
            ),
            deadline: Instant(0),
        })?;
        let members = arena.slice(limits.members(), |_| Member::vacant(sessions.next()))?;
        let clients = Roster::carve(arena, limits.clients_max.into())?;
        Ok(Links { limits, config, term: Term::NONE, slots, members, clients, turn: 0 })
    }

    /// Begins a term. Everything of the one before is gone: sessions at once, connections as
    /// `poll_close` gives them.
    pub fn begin(&mut self, term: Term) {
        self.term = term;
        for slot in self.slots.iter_mut() {
            slot.end(End::Dropped);
        }
        for member in self.members.iter_mut() {
            member.vacate();
        }
        self.clients.clear();
    }

    /// Takes on a new connection. Gives one to close instead, if another had to make room.
    pub fn accept(
        &mut self,
        now: Instant,
        stream: StreamId,
        random: [u8; RANDOM_BYTES],
    ) -> Result<Option<StreamId>, TooMany> {
        let (index, displaced) = self.room_for_accept().ok_or(TooMany)?;
        let slot = &mut self.slots[index];
        let displaced = displaced.then_some(slot.stream);
        slot.stream = stream;
        slot.phase = Phase::Hello { random };
        slot.line.reset(now);
        slot.deadline = now.plus(self.config.timing.greeting);
        Ok(displaced)
    }

    /// A slot for a new connection, and whether another one stands in it.
    fn room_for_accept(&self) -> Option<(usize, bool)> {
        let find = |free: fn(&Phase) -> bool| self.slots.iter().position(|slot| free(&slot.phase));
        if let Some(index) = find(|phase| matches!(phase, Phase::Free)) {
            return Some((index, false));
        }
        if let Some(index) = find(|phase| matches!(phase, Phase::Over(_))) {
            return Some((index, true));
        }
        let slots = self.slots.iter().enumerate();
        let unproven = slots.filter(|(_, slot)| slot.phase.is_displaceable());
        unproven.min_by_key(|(_, slot)| slot.deadline).map(|(index, _)| (index, true))
    }

    /// The connection has ended by itself.
    pub fn closed(&mut self, stream: StreamId) {
        if let Some(index) = self.slot(stream) {
            self.end(index, End::Closed);
        }
    }

    /// Where the next bytes received go. Empty while nothing more can be taken.
    pub fn recv_space(&mut self, stream: StreamId) -> &mut [u8] {
        let Some(index) = self.slot(stream) else {
            return &mut [];
        };
        let slot = &mut self.slots[index];
        match slot.phase {
            Phase::Free | Phase::Over(_) => &mut [],
            Phase::Hello { .. }
            | Phase::Proof(_)
            | Phase::Admission { .. }
            | Phase::Refusing(_)
            | Phase::Open { .. } => slot.line.recv_space(),
        }
    }

    /// This many bytes were put at the start of `recv_space`, just given.
    pub fn received(&mut self, now: Instant, stream: StreamId, len: usize) {
        let Some(index) = self.slot(stream) else {
            return;
        };
        self.slots[index].line.on_received(len);
        self.advance_or_end(now, index);
    }

    /// The next bytes to send.
    #[must_use]
    pub fn send_bytes(&self, stream: StreamId) -> &[u8] {
        let Some(index) = self.slot(stream) else {
            return &[];
        };
        let slot = &self.slots[index];
        match slot.phase {
            Phase::Free | Phase::Over(_) => &[],
            Phase::Hello { .. }
            | Phase::Proof(_)
            | Phase::Admission { .. }
            | Phase::Refusing(_)
            | Phase::Open { .. } => slot.line.send_bytes(),
        }
    }

    /// This many bytes from the start of `send_bytes` were sent.
    pub fn sent(&mut self, stream: StreamId, len: usize) {
        if let Some(index) = self.slot(stream) {
            self.slots[index].line.on_sent(len);
        }
    }

    /// Does what is due, and puts what there is to send into the buffers. To be called after any
    /// other call that may have given it something to do. Work: every connection's buffers, once.
    pub fn step(&mut self, now: Instant) {
        for index in 0..self.slots.len() {
            // Nearly all are, most of the time.
            if matches!(self.slots[index].phase, Phase::Free) {
                continue;
            }
            self.advance_or_end(now, index);
            if let Err(end) = self.step_slot(now, index) {
                self.end(index, end);
            }
        }
        for index in 0..self.members.len() {
            self.part(index);
        }
    }

    fn step_slot(&mut self, now: Instant, index: usize) -> Result<(), End> {
        let Slot { phase, line, deadline, .. } = &mut self.slots[index];
        match *phase {
            Phase::Hello { .. } | Phase::Proof(_) if *deadline <= now => Err(End::Late),
            Phase::Refusing(end) if *deadline <= now => Err(end),
            Phase::Open { member } => {
                let session = &mut self.members[usize::from(member)].session;
                line.check_silence(now, &self.config.timing)?;
                line.fill(now, &self.config.timing, session);
                Ok(())
            }
            Phase::Free
            | Phase::Hello { .. }
            | Phase::Proof(_)
            | Phase::Admission { .. }
            | Phase::Refusing(_)
            | Phase::Over(_) => Ok(()),
        }
    }

    /// When `step` must be called although nothing happens.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let deadlines = self.slots.iter().filter_map(|slot| match slot.phase {
            Phase::Free | Phase::Admission { .. } | Phase::Over(_) => None,
            Phase::Hello { .. } | Phase::Proof(_) | Phase::Refusing(_) => Some(slot.deadline),
            Phase::Open { .. } => Some(slot.line.deadline(&self.config.timing)),
        });
        deadlines.min()
    }

    /// What has happened.
    pub fn poll_event(&mut self) -> Option<LinksEvent> {
        for slot in self.slots.iter_mut() {
            if let Phase::Admission { answerer, told: told @ false } = &mut slot.phase {
                *told = true;
                return Some(LinksEvent::Greeted(slot.stream, *answerer.greeting()));
            }
        }
        for (index, member) in self.members.iter_mut().enumerate() {
            let up = member.slot.is_some();
            let client = matches!(member.occupant, Occupant::Client(_));
            if client && up != member.up_told {
                member.up_told = up;
                let id = member.id(index);
                return Some(match up {
                    true => LinksEvent::Up(id),
                    false => LinksEvent::Down(id, member.end),
                });
            }
        }
        self.poll_message()
    }

    fn poll_message(&mut self) -> Option<LinksEvent> {
        let count = self.members.len();
        for step in 0..count {
            let index = (self.turn + step) % count;
            let member = &mut self.members[index];
            let line = member.slot.map(|slot| &self.slots[usize::from(slot)].line);
            if !member.message_told && line.is_some_and(|line| line.message().is_some()) {
                member.message_told = true;
                self.turn = (index + 1) % count;
                return Some(LinksEvent::Message(member.id(index)));
            }
        }
        None
    }

    /// A connection that has ended and must be closed, and why.
    pub fn poll_close(&mut self) -> Option<(StreamId, End)> {
        self.slots.iter_mut().find_map(|slot| match slot.phase {
            Phase::Over(end) => {
                slot.phase = Phase::Free;
                Some((slot.stream, end))
            }
            Phase::Free
            | Phase::Hello { .. }
            | Phase::Proof(_)
            | Phase::Admission { .. }
            | Phase::Refusing(_)
            | Phase::Open { .. } => None,
        })
    }

    /// Admits a mount that has greeted, as this client. The owner has a durable record of the id
    /// with the greeting's nonce, and has not evicted it. When the client can't be admitted after
    /// all, it has been told so.
    pub fn admit(
        &mut self,
        now: Instant,
        stream: StreamId,
        client: ClientId,
    ) -> Result<SessionId, ErrorCode> {
        let (slot, answerer) = self.waiting(stream).ok_or(ErrorCode::NotConnected)?;
        match self.place(now, answerer.greeting(), client) {
            Ok((member, fresh)) => Ok(self.open(now, slot, member, &answerer, fresh)),
            Err(error) => {
                self.refuse(now, stream, error);
                Err(error)
            }
        }
    }

    /// Admits a program that asks for reports or a pin.
    pub fn admit_guest(&mut self, now: Instant, stream: StreamId) -> Result<SessionId, ErrorCode> {
        let (slot, answerer) = self.waiting(stream).ok_or(ErrorCode::NotConnected)?;
        let guest = |member: &&Member<'_>| member.occupant == Occupant::Guest;
        let room = self.members.iter().filter(guest).count() < self.limits.guests_max.into();
        match self.vacant_member().filter(|_| room) {
            Some(member) => {
                self.members[member].occupy(now, Occupant::Guest, answerer.greeting());
                Ok(self.open(now, slot, member, &answerer, true))
            }
            None => {
                self.refuse(now, stream, ErrorCode::TooMany);
                Err(ErrorCode::TooMany)
            }
        }
    }

    /// Tells a mount that knocked that it was heard, and ends the connection.
    pub fn answer_knock(&mut self, now: Instant, stream: StreamId) {
        let limits = self.limits.session;
        let admission = Admission {
            client: ClientId(0),
            received: 0,
            fresh: true,
            requests_max: limits.asks_max,
        };
        if let Some((slot, answerer)) = self.waiting(stream) {
            self.dismiss_with(now, slot, &answerer, Ok(&admission), End::Knocked);
        }
    }

    /// Tells who has greeted that there is no way on, and ends the connection.
    pub fn refuse(&mut self, now: Instant, stream: StreamId, error: ErrorCode) {
        if let Some((slot, answerer)) = self.waiting(stream) {
            self.dismiss_with(now, slot, &answerer, Err(error), End::Refusing(error));
        }
    }

    /// Ends a session: its client left or was evicted.
    pub fn dismiss(&mut self, id: SessionId) {
        if let Some(index) = self.member(id) {
            self.vacate(index, End::Dropped);
        }
    }

    /// The session of a client, whether it has a connection or not.
    #[must_use]
    pub fn find(&self, client: ClientId) -> Option<SessionId> {
        let index = self.find_member(client)?;
        Some(self.members[index].id(index))
    }

    /// The client of a session; none for guests, and for sessions that are over.
    #[must_use]
    pub fn client(&self, id: SessionId) -> Option<ClientId> {
        match self.members[self.member(id)?].occupant {
            Occupant::Client(client) => Some(client),
            Occupant::Nobody | Occupant::Guest => None,
        }
    }

    /// All sessions of clients.
    pub fn sessions(&self) -> impl Iterator<Item = (SessionId, ClientId)> {
        self.members.iter().enumerate().filter_map(|(index, member)| match member.occupant {
            Occupant::Client(client) => Some((member.id(index), client)),
            Occupant::Nobody | Occupant::Guest => None,
        })
    }

    /// Whether a session has a connection.
    #[must_use]
    pub fn is_up(&self, id: SessionId) -> bool {
        self.member(id).is_some_and(|index| self.members[index].slot.is_some())
    }

    /// When the peer of a session was last heard.
    #[must_use]
    pub fn heard(&self, id: SessionId) -> Option<Instant> {
        let member = &self.members[self.member(id)?];
        Some(member.slot.map_or(member.heard, |slot| self.slots[usize::from(slot)].line.heard()))
    }

    /// How many messages are kept for a session because they may have to be sent again.
    #[must_use]
    pub fn kept(&self, id: SessionId) -> usize {
        self.member(id).map_or(0, |index| self.members[index].session.kept())
    }

    /// The message at the head of a session, until it is taken or the connection ends.
    #[must_use]
    pub fn head(&self, id: SessionId) -> Option<Incoming<'_, Client>> {
        let slot = self.members[self.member(id)?].slot?;
        self.slots[usize::from(slot)].line.head::<Server>()
    }

    /// Takes the message at the head of a session.
    pub fn take(&mut self, now: Instant, id: SessionId) -> Option<Ticket> {
        let member = &mut self.members[self.member(id)?];
        let slot = usize::from(member.slot?);
        let ticket = self.slots[slot].line.take(now, &mut member.session)?;
        member.message_told = false;
        self.advance_or_end(now, slot);
        Some(ticket)
    }

    /// The outcome of this message is recorded.
    pub fn recorded(&mut self, id: SessionId, ticket: Ticket) {
        if let Some(index) = self.member(id) {
            self.members[index].session.recorded(ticket);
        }
    }

    /// Whether a request of this kind can be sent.
    pub fn can_request(&self, id: SessionId, kind: Kind) -> Result<(), NotSent> {
        let index = self.member(id).ok_or(NotSent::NotConnected)?;
        self.members[index].session.can_request(kind)
    }

    /// Sends a request to a client, now or when it is back.
    pub fn request(
        &mut self,
        id: SessionId,
        request: &ServerRequest<'_>,
    ) -> Result<RequestId, NotSent> {
        let index = self.member(id).ok_or(NotSent::NotConnected)?;
        self.members[index].session.request(request)
    }

    /// Answers a request that was taken. The answer to a farewell is the last thing a client hears.
    ///
    /// # Panics
    ///
    /// If it was answered before, or the answer is of another kind.
    pub fn answer(
        &mut self,
        id: SessionId,
        ticket: Ticket,
        outcome: &Outcome<ServerAnswer<'_>>,
    ) -> Result<(), Stale> {
        let index = self.member(id).ok_or(Stale)?;
        let member = &mut self.members[index];
        member.session.answer(ticket, outcome)?;
        member.parted |= ticket.kind() == Kind::Farewell && outcome.error().is_none();
        Ok(())
    }

    /// The connection of this name, unless it is over.
    fn slot(&self, stream: StreamId) -> Option<usize> {
        self.slots.iter().position(|slot| {
            slot.stream == stream && !matches!(slot.phase, Phase::Free | Phase::Over(_))
        })
    }

    /// The connection of this name, if it waits for the owner.
    fn waiting(&self, stream: StreamId) -> Option<(usize, Answerer)> {
        let index = self.slot(stream)?;
        match self.slots[index].phase {
            Phase::Admission { answerer, .. } => Some((index, answerer)),
            Phase::Free
            | Phase::Hello { .. }
            | Phase::Proof(_)
            | Phase::Refusing(_)
            | Phase::Open { .. }
            | Phase::Over(_) => None,
        }
    }

    fn member(&self, id: SessionId) -> Option<usize> {
        let member = self.members.get(usize::from(id.index))?;
        let present = member.occupant != Occupant::Nobody && member.generation == id.generation;
        present.then_some(id.index.into())
    }

    fn find_member(&self, client: ClientId) -> Option<usize> {
        self.clients.find(client).map(|index| index as usize)
    }

    fn vacant_member(&self) -> Option<usize> {
        self.members.iter().position(|member| member.occupant == Occupant::Nobody)
    }

    /// The session that a greeting goes on with, or a new one.
    fn place(
        &mut self,
        now: Instant,
        greeting: &Greeting,
        client: ClientId,
    ) -> Result<(usize, bool), ErrorCode> {
        let here = greeting.term == self.term;
        if greeting.role != Role::Mount || greeting.term > self.term {
            return Err(ErrorCode::Stale);
        }
        if greeting.requests_max > self.limits.session.answers_max {
            return Err(ErrorCode::Invalid);
        }
        if let Some(index) = self.find_member(client) {
            let member = &mut self.members[index];
            if greeting.nonce != member.nonce {
                return Err(ErrorCode::Invalid);
            }
            // A client that never saw this term's welcome has sent nothing in it.
            if greeting.attempt <= member.attempt || !here && member.session.received() != 0 {
                return Err(ErrorCode::Stale);
            }
            let taken = if here { greeting.received } else { 0 };
            member.session.resume(taken).map_err(|_| ErrorCode::Invalid)?;
            member.attempt = greeting.attempt;
            return Ok((index, false));
        }
        if here && !greeting.farewell {
            return Err(ErrorCode::Evicted);
        }
        let vacant = self.vacant_member().filter(|_| !self.clients.is_full());
        let index = vacant.ok_or(ErrorCode::TooMany)?;
        self.members[index].occupy(now, Occupant::Client(client), greeting);
        self.clients.insert(client, index as u32);
        Ok((index, true))
    }

    /// Welcomes a client, and puts its session on the connection.
    fn open(
        &mut self,
        now: Instant,
        slot: usize,
        index: usize,
        answerer: &Answerer,
        fresh: bool,
    ) -> SessionId {
        if let Some(old) = self.members[index].slot {
            self.end(old.into(), End::Replaced);
        }
        let member = &mut self.members[index];
        let admission = Admission {
            client: match member.occupant {
                Occupant::Client(client) => client,
                Occupant::Nobody | Occupant::Guest => ClientId(0),
            },
            received: member.session.received(),
            fresh,
            requests_max: self.limits.session.asks_max,
        };
        let (welcome, seeds) = answerer.welcome(&self.config.cluster, self.term, Ok(&admission));
        let Slot { phase, line, .. } = &mut self.slots[slot];
        let fits = line.push(now, welcome.as_bytes(), &[]);
        assert!(fits, "the buffer holds challenge and welcome");
        line.rekey(now, seeds.to_server, seeds.to_client);
        *phase = Phase::Open { member: index as u16 };
        member.slot = Some(slot as u16);
        member.id(index)
    }

    /// Ends a greeting with a welcome that opens nothing.
    fn dismiss_with(
        &mut self,
        now: Instant,
        slot: usize,
        answerer: &Answerer,
        outcome: Result<&Admission, ErrorCode>,
        end: End,
    ) {
        let (welcome, _) = answerer.welcome(&self.config.cluster, self.term, outcome);
        let linger = now.plus(self.config.timing.greeting);
        self.slots[slot].refuse(now, welcome.as_bytes(), linger, end);
    }

    /// Reads what a connection has received.
    fn advance_or_end(&mut self, now: Instant, index: usize) {
        if let Err(end) = self.advance(now, index) {
            self.end(index, end);
        }
    }

    fn advance(&mut self, now: Instant, index: usize) -> Result<(), End> {
        let slot = &mut self.slots[index];
        let linger = now.plus(self.config.timing.greeting);
        let cluster = &self.config.cluster;
        loop {
            match slot.phase {
                Phase::Free | Phase::Admission { .. } | Phase::Over(_) => return Ok(()),
                Phase::Refusing(_) => {
                    slot.line.discard();
                    return Ok(());
                }
                Phase::Hello { random } => {
                    let Some(body) = slot.line.body(now)? else {
                        return Ok(());
                    };
                    let (challenge, outcome) = Answerer::on_hello(cluster, random, body)?;
                    slot.line.consume();
                    match outcome {
                        Ok(answerer) => {
                            let fits = slot.line.push(now, challenge.as_bytes(), &[]);
                            assert!(fits, "the buffer is empty and holds any record");
                            slot.phase = Phase::Proof(answerer);
                        }
                        Err(error) => {
                            let end = End::Refusing(error);
                            slot.refuse(now, challenge.as_bytes(), linger, end);
                        }
                    }
                }
                Phase::Proof(mut answerer) => {
                    let Some(body) = slot.line.body(now)? else {
                        return Ok(());
                    };
                    let proven = answerer.on_proof(cluster, body)?;
                    slot.line.consume();
                    if proven {
                        slot.phase = Phase::Admission { answerer, told: false };
                    } else {
                        let error = ErrorCode::BadMac;
                        let welcome = Welcome::new(Term::NONE, Err(error));
                        slot.refuse(now, welcome.as_bytes(), linger, End::Refusing(error));
                    }
                }
                Phase::Open { member } => {
                    let member = &mut self.members[usize::from(member)];
                    slot.line.advance(now, &mut member.session)?;
                    return member.check_guest(&slot.line);
                }
            }
        }
    }

    /// Ends a connection. Its session lives on, unless it was a guest's.
    fn end(&mut self, index: usize, end: End) {
        if let Phase::Open { member } = self.slots[index].phase {
            let member = &mut self.members[usize::from(member)];
            member.slot = None;
            member.end = end;
            member.heard = self.slots[index].line.heard();
            member.message_told = false;
            if member.occupant == Occupant::Guest {
                member.vacate();
            }
        }
        self.slots[index].end(end);
    }

    /// Ends a session, and its connection.
    fn vacate(&mut self, index: usize, end: End) {
        if let Some(slot) = self.members[index].slot {
            self.end(slot.into(), end);
        }
        if let Occupant::Client(client) = self.members[index].occupant {
            self.clients.remove(client);
        }
        self.members[index].vacate();
    }

    /// Ends a session whose farewell was answered: when the client has acknowledged that, or when
    /// the connection ends; then a repeated farewell is answered anew.
    fn part(&mut self, index: usize) {
        let member = &self.members[index];
        if member.parted && (member.slot.is_none() || member.session.kept() == 0) {
            self.vacate(index, End::Farewell);
        }
    }
}

impl Slot<'_> {
    /// The connection is over. If it was being refused, that remains the reason.
    fn end(&mut self, end: End) {
        self.phase = match self.phase {
            Phase::Free => Phase::Free,
            Phase::Over(reason) | Phase::Refusing(reason) => Phase::Over(reason),
            Phase::Hello { .. }
            | Phase::Proof(_)
            | Phase::Admission { .. }
            | Phase::Open { .. } => Phase::Over(end),
        };
    }

    /// Sends a last record. The connection stays a while, so that the peer can read it before it
    /// ends: closing at once, with bytes unread, would throw it away.
    fn refuse(&mut self, now: Instant, record: &[u8], linger: Instant, end: End) {
        self.line.discard();
        let fits = self.line.push(now, record, &[]);
        assert!(fits, "the buffer holds challenge and welcome");
        self.deadline = linger;
        self.phase = Phase::Refusing(end);
    }
}

impl<'m> Member<'m> {
    fn vacant(session: Session<'m, Server>) -> Member<'m> {
        Member {
            session,
            generation: 0,
            occupant: Occupant::Nobody,
            nonce: [0; 16],
            attempt: 0,
            slot: None,
            end: End::Closed,
            up_told: false,
            message_told: false,
            parted: false,
            heard: Instant(0),
        }
    }

    fn id(&self, index: usize) -> SessionId {
        SessionId { index: index as u16, generation: self.generation }
    }

    fn occupy(&mut self, now: Instant, occupant: Occupant, greeting: &Greeting) {
        self.session.clear();
        self.occupant = occupant;
        self.nonce = greeting.nonce;
        self.attempt = greeting.attempt;
        self.heard = now;
    }

    fn vacate(&mut self) {
        if self.occupant != Occupant::Nobody {
            self.generation += 1;
        }
        self.occupant = Occupant::Nobody;
        self.slot = None;
        self.up_told = false;
        self.message_told = false;
        self.parted = false;
    }

    /// Checks that a guest asks for nothing but reports, a pin, and to take an operator's word.
    fn check_guest(&self, line: &Line<'_>) -> Result<(), End> {
        let allowed = |kind| {
            let reports = matches!(kind, Kind::Status | Kind::Statfs | Kind::Clients | Kind::Waits);
            reports || matches!(kind, Kind::Fence | Kind::Pin)
        };
        let strange = |message: Message<'_>| !allowed(message.kind);
        match self.occupant == Occupant::Guest && line.message().is_some_and(strange) {
            true => Err(Breach::Guest.into()),
            false => Ok(()),
        }
    }
}

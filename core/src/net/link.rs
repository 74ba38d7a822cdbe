//! A client's session with whoever leads.
//!
//! ```text
//!   Idle --connect--> Greeting --> Open
//!    ^                   |          |      refused, silent, closed, breach,
//!    |                   v          v      disconnect, farewell answered
//!    +----poll_close--- Over <------+
//! ```
//!
//! # Invariants
//!
//! * There is one connection, so the old one is closed before another server is greeted.
//! * Messages flow only to and from a server of the newest term that has ever welcomed this client;
//!   one of an older term is refused. Greeting a newer term renews the session: what was taken from
//!   the older server can't be answered any more, and nothing more of it is offered.
//! * The client's id is that of the first welcome, for ever.
//!
//! What this file deliberately doesn't know: where servers are, and when to try again.

use super::asking::Asking;
use super::greeting::Admitted;
use super::line::{Line, LineLimits};
use super::session::{
    Incoming, NotSent, RequestId, Session, SessionLimits, Sessions, Stale, Ticket,
};
use super::{Breach, Cluster, End, Timing};
use crate::arena::{Arena, ArenaFull};
use crate::format::wire::greeting::{Greeting, Machine, RANDOM_BYTES, Role};
use crate::format::wire::message::{Client, ClientAnswer, ClientRequest, Outcome, Server};
use crate::format::wire::{Kind, Part};
use crate::format::{ClientId, Term};
use crate::mutant::{Mutant, is_active};
use outrider_hal::{Instant, StreamId};

/// Sizes of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkLimits {
    /// The session's windows.
    pub session: SessionLimits,
    /// The connection's buffers.
    pub line: LineLimits,
}

/// What a link is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkConfig {
    /// What both ends must agree on.
    pub cluster: Cluster,
    /// How long things wait.
    pub timing: Timing,
    /// What its connections are for.
    pub role: Role,
    /// Drawn at random for this mount.
    pub nonce: [u8; 16],
    /// Where it runs.
    pub machine: Machine,
    /// The mount is read-only.
    pub read_only: bool,
}

/// Something that has happened to a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkEvent {
    /// A server has welcomed the client.
    Up {
        /// Its term.
        term: Term,
        /// The client's id.
        client: ClientId,
        /// It is another server than before, or the first: the session was renewed. This is said
        /// even if the connection has ended since.
        renewed: bool,
    },
    /// A message stands at the head. Said once for each.
    Message,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Idle,
    Greeting(Asking),
    Open,
    Over(End),
}

/// A client's session, and its connection, if there is one.
pub struct Link<'m> {
    config: LinkConfig,
    client: Option<ClientId>,
    /// The newest term that has welcomed this link.
    term: Term,
    /// The term that the session goes on in; none before the first welcome.
    session_term: Term,
    attempt: u64,
    session: Session<'m, Client>,
    line: Line<'m>,
    phase: Phase,
    stream: Option<StreamId>,
    /// When the greeting must be over.
    deadline: Instant,
    /// The answer to the farewell was taken.
    parted: bool,
    up: Option<LinkEvent>,
    message_told: bool,
}

impl<'m> Link<'m> {
    /// Carves a link.
    ///
    /// # Panics
    ///
    /// If the limits or the timing are not valid.
    pub fn carve(
        arena: &mut Arena<'m>,
        limits: &LinkLimits,
        config: LinkConfig,
    ) -> Result<Link<'m>, ArenaFull> {
        assert!(limits.line.is_valid() && config.timing.is_valid());
        Ok(Link {
            config,
            client: None,
            term: Term::NONE,
            session_term: Term::NONE,
            attempt: 0,
            session: Sessions::carve::<Client>(arena, limits.session, 1)?.next(),
            line: Line::new(
                arena.slice(limits.line.recv_bytes, |_| 0)?,
                arena.slice(limits.line.send_bytes, |_| 0)?,
            ),
            phase: Phase::Idle,
            stream: None,
            deadline: Instant(0),
            parted: false,
            up: None,
            message_told: false,
        })
    }

    /// Greets the server at the other end of a new connection.
    ///
    /// # Panics
    ///
    /// If there is a connection already: it must be closed first.
    pub fn connect(&mut self, now: Instant, stream: StreamId, random: [u8; RANDOM_BYTES]) {
        assert!(self.is_idle(), "one connection at a time");
        self.attempt += 1;
        let greeting = Greeting {
            role: self.config.role,
            farewell: self.session.is_leaving(),
            read_only: self.config.read_only,
            nonce: self.config.nonce,
            client: self.client,
            term: self.session_term,
            received: self.session.received(),
            attempt: self.attempt,
            machine: self.config.machine,
            requests_max: self.session.limits().asks_max,
        };
        let cluster = &self.config.cluster;
        let asking = Asking::begin(now, cluster, &greeting, random, &mut self.line);
        self.stream = Some(stream);
        self.deadline = now.plus(self.config.timing.greeting);
        self.phase = Phase::Greeting(asking);
    }

    /// Begins again as another client, after an eviction or a farewell: with a new nonce, without
    /// an id, and without any message. Servers of older terms stay refused.
    ///
    /// # Panics
    ///
    /// If there is a connection: it must be closed first.
    pub fn restart(&mut self, nonce: [u8; 16]) {
        assert!(self.is_idle(), "one connection at a time");
        self.config.nonce = nonce;
        self.client = None;
        self.session_term = Term::NONE;
        self.attempt = 0;
        self.parted = false;
        self.session.clear();
    }

    /// Forgets all messages, after an eviction: a farewell is all that follows. It is the same
    /// client still.
    ///
    /// # Panics
    ///
    /// If there is a connection: it must be closed first.
    pub fn forget_messages(&mut self) {
        assert!(self.is_idle(), "one connection at a time");
        self.session_term = Term::NONE;
        self.session.clear();
    }

    /// Ends the connection, if there is one. The session lives on.
    pub fn disconnect(&mut self) {
        self.end(End::Dropped);
    }

    /// The connection has ended by itself.
    pub fn closed(&mut self, stream: StreamId) {
        if self.stream == Some(stream) {
            self.end(End::Closed);
        }
    }

    /// Whether there is no connection, so that `connect` may be called.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle)
    }

    /// Whether messages flow.
    #[must_use]
    pub fn is_up(&self) -> bool {
        matches!(self.phase, Phase::Open)
    }

    /// Whether the farewell was answered: the session is over for good.
    #[must_use]
    pub fn is_parted(&self) -> bool {
        self.parted
    }

    /// The newest term that has welcomed this link.
    #[must_use]
    pub fn term(&self) -> Term {
        self.term
    }

    /// The client's id, once a server has given it.
    #[must_use]
    pub fn client(&self) -> Option<ClientId> {
        self.client
    }

    /// Where the next bytes received go. Empty while nothing more can be taken.
    pub fn recv_space(&mut self, stream: StreamId) -> &mut [u8] {
        match (self.stream == Some(stream), &self.phase) {
            (true, Phase::Greeting(_) | Phase::Open) => self.line.recv_space(),
            (true, Phase::Idle | Phase::Over(_)) | (false, _) => &mut [],
        }
    }

    /// This many bytes were put at the start of `recv_space`, just given.
    pub fn received(&mut self, now: Instant, stream: StreamId, len: usize) {
        if self.stream != Some(stream) {
            return;
        }
        self.line.on_received(len);
        if let Err(end) = self.advance(now) {
            self.end(end);
        }
    }

    /// The next bytes to send.
    #[must_use]
    pub fn send_bytes(&self, stream: StreamId) -> &[u8] {
        match (self.stream == Some(stream), &self.phase) {
            (true, Phase::Greeting(_) | Phase::Open) => self.line.send_bytes(),
            (true, Phase::Idle | Phase::Over(_)) | (false, _) => &[],
        }
    }

    /// This many bytes from the start of `send_bytes` were sent.
    pub fn sent(&mut self, stream: StreamId, len: usize) {
        if self.stream == Some(stream) {
            self.line.on_sent(len);
        }
    }

    /// Does what is due, and puts what there is to send into the buffer. To be called after any
    /// other call that may have given it something to do.
    pub fn step(&mut self, now: Instant) {
        if let Err(end) = self.try_step(now) {
            self.end(end);
        }
    }

    fn try_step(&mut self, now: Instant) -> Result<(), End> {
        match self.phase {
            Phase::Idle | Phase::Over(_) => Ok(()),
            Phase::Greeting(_) if self.deadline <= now => Err(End::Late),
            Phase::Greeting(_) => self.advance(now),
            Phase::Open => {
                self.line.advance(now, &mut self.session)?;
                self.line.check_silence(now, &self.config.timing)?;
                self.line.fill(now, &self.config.timing, &mut self.session);
                self.part(now)
            }
        }
    }

    /// When `step` must be called although nothing happens.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.phase {
            Phase::Idle | Phase::Over(_) => None,
            Phase::Greeting(_) => Some(self.deadline),
            Phase::Open => Some(self.line.deadline(&self.config.timing)),
        }
    }

    /// When it is in doubt whether the server is still there, unless it is heard before. To be
    /// asked after a `step`; none if no messages flow.
    #[must_use]
    pub fn doubt_at(&self) -> Option<Instant> {
        self.is_up().then(|| self.line.doubt_at(&self.config.timing))
    }

    /// What has happened.
    pub fn poll_event(&mut self) -> Option<LinkEvent> {
        if let Some(up) = self.up.take() {
            return Some(up);
        }
        if self.message_told || !self.is_up() || self.line.message().is_none() {
            return None;
        }
        self.message_told = true;
        Some(LinkEvent::Message)
    }

    /// A connection that has ended and must be closed, and why. After it the link is idle.
    pub fn poll_close(&mut self) -> Option<(StreamId, End)> {
        let Phase::Over(end) = self.phase else {
            return None;
        };
        self.phase = Phase::Idle;
        self.stream.take().map(|stream| (stream, end))
    }

    /// How many messages are kept because they may have to be sent again.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.session.kept()
    }

    /// The message at the head, until it is taken or the connection ends.
    #[must_use]
    pub fn head(&self) -> Option<Incoming<'_, Server>> {
        if self.is_up() { self.line.head::<Client>() } else { None }
    }

    /// Takes the message at the head.
    pub fn take(&mut self, now: Instant) -> Option<Ticket> {
        if !self.is_up() {
            return None;
        }
        let part = self.line.message()?.part;
        let ticket = self.line.take(now, &mut self.session)?;
        self.parted |= ticket.kind() == Kind::Farewell && part == Part::Answer(None);
        self.message_told = false;
        if let Err(end) = self.line.advance(now, &mut self.session) {
            self.end(end);
        }
        Some(ticket)
    }

    /// The outcome of this message is recorded.
    pub fn recorded(&mut self, ticket: Ticket) {
        self.session.recorded(ticket);
    }

    /// Whether a request of this kind can be sent.
    pub fn can_request(&self, kind: Kind) -> Result<(), NotSent> {
        if self.parted { Err(NotSent::Leaving) } else { self.session.can_request(kind) }
    }

    /// Sends a request to whoever leads, now or later.
    pub fn request(&mut self, request: &ClientRequest<'_>) -> Result<RequestId, NotSent> {
        if self.parted { Err(NotSent::Leaving) } else { self.session.request(request) }
    }

    /// Answers a request that was taken.
    ///
    /// # Panics
    ///
    /// If it was answered before, or the answer is of another kind.
    pub fn answer(
        &mut self,
        ticket: Ticket,
        outcome: &Outcome<ClientAnswer<'_>>,
    ) -> Result<(), Stale> {
        self.session.answer(ticket, outcome)
    }

    fn end(&mut self, end: End) {
        match self.phase {
            Phase::Idle | Phase::Over(_) => {}
            Phase::Greeting(_) | Phase::Open => {
                // The server may close the connection as soon as it has the acknowledgement.
                self.phase = Phase::Over(if self.parted { End::Farewell } else { end });
                // That requests of the term before were dropped must be heard before more are made.
                self.up = self.up.filter(|up| matches!(up, LinkEvent::Up { renewed: true, .. }));
                self.message_told = false;
            }
        }
    }

    fn advance(&mut self, now: Instant) -> Result<(), End> {
        loop {
            match self.phase {
                Phase::Idle | Phase::Over(_) => return Ok(()),
                Phase::Greeting(mut asking) => {
                    let admitted = asking.advance(now, &self.config.cluster, &mut self.line)?;
                    self.phase = Phase::Greeting(asking);
                    let Some(admitted) = admitted else { return Ok(()) };
                    self.on_admitted(now, &admitted)?;
                }
                Phase::Open => return self.line.advance(now, &mut self.session),
            }
        }
    }

    fn on_admitted(&mut self, now: Instant, admitted: &Admitted) -> Result<(), End> {
        let Admitted { term, admission, seeds } = *admitted;
        let renewed = match self.config.role {
            Role::Knock => return Err(End::Knocked),
            Role::Status => true,
            Role::Mount => self.renews(term, admission.client, admission.fresh)?,
        };
        if admission.requests_max > self.session.limits().answers_max {
            return Err(Breach::Window.into());
        }
        if renewed {
            self.session.renew();
        }
        if renewed && admission.received != 0 {
            return Err(Breach::Resume.into());
        }
        self.session.resume(admission.received)?;
        self.term = term;
        self.session_term = term;
        self.client = Some(admission.client).filter(|client| *client != ClientId(0));
        self.line.rekey(now, seeds.to_client, seeds.to_server);
        self.phase = Phase::Open;
        let renewed = renewed || self.up.is_some();
        self.up = Some(LinkEvent::Up { term, client: admission.client, renewed });
        Ok(())
    }

    /// Whether the session begins anew at this server, if it may be talked to at all.
    fn renews(&self, term: Term, client: ClientId, fresh: bool) -> Result<bool, End> {
        if term < self.term && !is_active(Mutant::GrantOfOldTerm) {
            return Err(End::OldTerm(term));
        }
        if client == ClientId(0) || self.client.is_some_and(|known| known != client) {
            return Err(Breach::Identity.into());
        }
        // Within a term a session is only lost when its farewell was answered.
        if term == self.session_term && fresh && !self.session.is_leaving() {
            return Err(Breach::Resume.into());
        }
        Ok(term != self.session_term || fresh)
    }

    /// Ends the connection when the farewell's answer is taken, recorded and acknowledged.
    fn part(&mut self, now: Instant) -> Result<(), End> {
        let ack = self.session.ack();
        if !self.parted || ack != self.session.received() {
            return Ok(());
        }
        if self.line.ack_sent() != ack {
            self.line.push_ack(now, ack);
        }
        let flushed = self.line.ack_sent() == ack && self.line.send_bytes().is_empty();
        if flushed { Err(End::Farewell) } else { Ok(()) }
    }
}

//! One end of a session: it numbers and keeps what it sends, and checks what it receives.
//!
//! ```text
//! a request to the peer:   request -> kept -> (sent, sent again) -> its answer is taken -> dropped
//! its answer:              offered -> taken -> recorded -> acknowledged, in order a request of the
//! peer:   offered -> taken -> recorded -> acknowledged, in order -> answered (which records it, if
//! need be) its answer:              answer -> kept -> (sent, sent again) -> acknowledged ->
//! dropped
//! ```
//!
//! # Invariants
//!
//! * `received` counts what was taken. A message is taken only as number `received + 1`; older ones
//!   are doubles, and newer ones are a breach.
//! * `acked <= sent <= sent_most <= log.last`: what the peer acknowledged; what was put on this
//!   connection or is known to be taken; what was put on any; what exists.
//! * Everything up to [`ack`](Session::ack) is recorded. What is recorded out of order waits.
//! * At most `asks_max` requests of the shared sort, and one of each other kind, are in the window:
//!   from [`request`](Session::request) until the acknowledgement covers the answer.
//! * An epoch is the time in which numbers count up without a break. Tickets of an earlier one
//!   change nothing.
//!
//! What this file deliberately doesn't know: connections, and time.

use super::log::{Kept, Log};
use super::{Breach, End};
use crate::arena::{Arena, ArenaFull};
use crate::format::wire::message::{Outcome, Payload, Speaker};
use crate::format::wire::{Frame, Kind, Malformed, Message, Part, Party, Window};
use crate::mutant::{Mutant, is_active};
use core::marker::PhantomData;

/// How many requests of the shared sort a session has room for. Both ends' numbers must fit: the
/// greeting fails if one asks more than the other answers.
///
/// A full window makes its owner wait for an answer, so none of the shared sort may wait for
/// something behind it: messages about locks are answered as soon as they are taken, whatever comes
/// of them, and the others when the server has looked. So a window bounds how much is on its way at
/// once, and nothing else; what does not fit waits at its owner, in an order that it chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionLimits {
    /// This end's, until their answers are acknowledged.
    pub asks_max: u16,
    /// The peer's, until their answers are acknowledged.
    pub answers_max: u16,
}

/// Name of a request among those of its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Why a request was not sent. The caller still has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotSent {
    /// The window is full: an answer must be taken and recorded first; before a farewell, all.
    Full,
    /// A farewell was sent, and nothing follows it.
    Leaving,
    /// There is no such session.
    NotConnected,
}

/// The request that a ticket stands for can't be answered any more, nor needs to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stale;

/// A message that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Ticket {
    epoch: u32,
    seq: u64,
    request: u64,
    kind: Kind,
    answer: bool,
}

impl Ticket {
    /// Name of the request that was taken, or whose answer was.
    #[must_use]
    pub fn request(&self) -> RequestId {
        RequestId(self.request)
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

/// A message offered to the owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incoming<'p, P: Speaker> {
    /// The peer wants something.
    Request(P::Request<'p>),
    /// The peer answers this request.
    Answer(RequestId, Outcome<P::Answer<'p>>),
}

/// What to do with a frame that has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing: it only acknowledged, or was received before.
    Skip,
    /// Offer it to the owner.
    Offer,
}

/// A message that was taken and is not done with: a request without an answer, or anything that the
/// acknowledgement does not cover.
#[derive(Debug, Clone, Copy)]
struct Taken {
    seq: u64,
    kind: Kind,
    answer: bool,
    recorded: bool,
}

/// The memory of some sessions.
pub(super) struct Sessions<'m> {
    space: &'m mut [u8],
    entries: &'m mut [Kept],
    taken: &'m mut [Taken],
    limits: SessionLimits,
}

impl<'m> Sessions<'m> {
    /// Carves memory for `count` sessions of this party.
    pub(super) fn carve<S: Speaker>(
        arena: &mut Arena<'m>,
        limits: SessionLimits,
        count: u32,
    ) -> Result<Sessions<'m>, ArenaFull> {
        let (messages, bytes) = room::<S>(limits);
        let none = Taken { seq: 0, kind: Kind::LockAsk, answer: false, recorded: true };
        let all = |each: u32| each.checked_mul(count).ok_or(ArenaFull);
        Ok(Sessions {
            space: arena.slice(all(bytes)?, |_| 0)?,
            entries: arena.slice(all(messages)?, |_| Kept::NONE)?,
            taken: arena.slice(all(messages)?, |_| none)?,
            limits,
        })
    }

    /// The next of them.
    pub(super) fn next<S: Speaker>(&mut self) -> Session<'m, S> {
        let (messages, bytes) = room::<S>(self.limits);
        let entries = portion(&mut self.entries, messages);
        Session {
            log: Log::new(portion(&mut self.space, bytes), entries),
            taken: portion(&mut self.taken, messages),
            taken_len: 0,
            limits: self.limits,
            epoch: 0,
            acked: 0,
            sent: 0,
            sent_most: 0,
            received: 0,
            request_last: 0,
            peer_request_last: 0,
            speaker: PhantomData,
        }
    }
}

/// One end of a session.
pub(super) struct Session<'m, S: Speaker> {
    log: Log<'m>,
    taken: &'m mut [Taken],
    taken_len: usize,
    limits: SessionLimits,
    epoch: u32,
    acked: u64,
    sent: u64,
    /// The most that was ever put on a connection.
    sent_most: u64,
    received: u64,
    /// Name of the last request made.
    request_last: u64,
    /// Name of the last request taken.
    peer_request_last: u64,
    speaker: PhantomData<S>,
}

impl<'m, S: Speaker> Session<'m, S> {
    /// Forgets everything: another peer's session begins.
    pub(super) fn clear(&mut self) {
        self.log.clear();
        self.request_last = 0;
        self.renew();
    }

    /// Begins anew with another server. Requests are kept, and are sent again from number 1, but
    /// for those that mean nothing to it. Answers are dropped, for the new server never asked.
    pub(super) fn renew(&mut self) {
        self.log.retain(|kept| kept.part == Part::Request && !kept.kind.is_of_one_term());
        self.log.renumber();
        self.taken_len = 0;
        self.epoch += 1;
        self.acked = 0;
        self.sent = 0;
        self.sent_most = 0;
        self.received = 0;
        self.peer_request_last = 0;
    }

    /// Goes on over another connection: the peer has taken everything up to `taken`.
    pub(super) fn resume(&mut self, taken: u64) -> Result<(), Breach> {
        if taken < self.acked || taken > self.sent_most {
            return Err(Breach::Resume);
        }
        self.sent = taken;
        Ok(())
    }

    pub(super) fn limits(&self) -> SessionLimits {
        self.limits
    }

    /// Number of the last message taken.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// Everything up to this number is recorded.
    pub(super) fn ack(&self) -> u64 {
        let open = self.taken().iter().filter(|taken| !taken.recorded);
        open.map(|taken| taken.seq - 1).min().unwrap_or(self.received)
    }

    /// How many messages are kept that may have to be sent again.
    pub(super) fn kept(&self) -> usize {
        self.log.entries().len()
    }

    /// Whether a farewell was sent and not answered.
    pub(super) fn is_leaving(&self) -> bool {
        self.asked().any(|kind| kind == Kind::Farewell)
    }

    /// Whether the window has room for a request of this kind.
    pub(super) fn can_request(&self, kind: Kind) -> Result<(), NotSent> {
        if self.is_leaving() {
            return Err(NotSent::Leaving);
        }
        match fits(self.asked(), kind, self.limits.asks_max) {
            true => Ok(()),
            false => Err(NotSent::Full),
        }
    }

    /// Sends a request, now or when there is a connection.
    pub(super) fn request(&mut self, request: &S::Request<'_>) -> Result<RequestId, NotSent> {
        let kind = request.kind();
        self.can_request(kind)?;
        self.request_last += 1;
        self.log.append(self.request_last, kind, Part::Request, Some(request));
        Ok(RequestId(self.request_last))
    }

    /// Answers a request that was taken, now or when there is a connection.
    ///
    /// # Panics
    ///
    /// If it was answered before, or the answer is of another kind.
    pub(super) fn answer(
        &mut self,
        ticket: Ticket,
        outcome: &Outcome<S::Answer<'_>>,
    ) -> Result<(), Stale> {
        assert!(!ticket.answer, "answers are not answered");
        if ticket.epoch != self.epoch {
            return Err(Stale);
        }
        let open = self.taken().iter().position(|taken| taken.seq == ticket.seq);
        let index = open.expect("a request is answered once");
        let answer = outcome.answer();
        assert!(answer.is_none_or(|answer| answer.kind() == ticket.kind), "of the request's kind");
        self.taken.copy_within(index + 1..self.taken_len, index);
        self.taken_len -= 1;
        let part = Part::Answer(outcome.error());
        self.log.append(ticket.request, ticket.kind, part, answer);
        Ok(())
    }

    /// The outcome of this message is recorded: it need not be sent again.
    pub(super) fn recorded(&mut self, ticket: Ticket) {
        if ticket.epoch != self.epoch {
            return;
        }
        for taken in &mut self.taken[..self.taken_len] {
            taken.recorded |= taken.seq == ticket.seq;
        }
        self.forget_acknowledged();
    }

    /// The next message to send on this connection. Its acknowledgement is always the newest.
    pub(super) fn next(&self) -> Option<Frame<'_>> {
        let message = self.log.after(self.sent)?;
        Some(Frame { ack: self.ack(), message: Some(message) })
    }

    /// The message that `next` gave is on its way.
    pub(super) fn on_sent(&mut self) {
        assert!(self.sent < self.log.last(), "`next` gave a message");
        self.sent += 1;
        self.sent_most = self.sent_most.max(self.sent);
        if is_active(Mutant::AnswerKeptTillSent) {
            let sent = self.sent;
            self.log.retain(|kept| kept.part == Part::Request || kept.seq > sent);
        }
    }

    /// Takes note of an acknowledgement.
    pub(super) fn on_ack(&mut self, ack: u64) -> Result<(), Breach> {
        if ack < self.acked || ack > self.sent {
            return Err(Breach::Ack);
        }
        if ack > self.acked {
            self.acked = ack;
            self.log.retain(|kept| kept.part == Part::Request || kept.seq > ack);
        }
        Ok(())
    }

    /// Checks a message that arrived.
    pub(super) fn examine(&self, message: &Message<'_>) -> Result<Verdict, End> {
        if message.seq <= self.received {
            return Ok(Verdict::Skip);
        }
        if message.seq != self.received + 1 {
            return Err(Breach::Gap.into());
        }
        match message.part {
            Part::Request => {
                if message.kind.asker() != S::Peer::PARTY {
                    return Err(Breach::Asker.into());
                }
                if message.request <= self.peer_request_last {
                    return Err(Breach::RequestOrder.into());
                }
                if !fits(self.answering(), message.kind, self.limits.answers_max) {
                    return Err(Breach::Window.into());
                }
            }
            Part::Answer(_) => {
                let asked = self.log.entries().iter().find(|kept| answers(message, kept));
                if asked.is_none_or(|kept| kept.seq > self.sent) {
                    return Err(Breach::Unasked.into());
                }
            }
        }
        Self::parse(message)?;
        Ok(Verdict::Offer)
    }

    /// What a message that was examined means.
    pub(super) fn parse<'p>(message: &Message<'p>) -> Result<Incoming<'p, S::Peer>, Malformed> {
        let Message { kind, payload, .. } = *message;
        Ok(match message.part {
            Part::Request => Incoming::Request(Payload::parse(kind, payload)?),
            Part::Answer(error) => {
                Incoming::Answer(RequestId(message.request), Outcome::parse(kind, error, payload)?)
            }
        })
    }

    /// Takes the message that was examined last: it will not be offered again.
    pub(super) fn take(&mut self, message: &Message<'_>) -> Ticket {
        assert_eq!(message.seq, self.received + 1, "the message was examined");
        let Message { seq, request, kind, part, .. } = *message;
        let answer = part != Part::Request;
        if answer {
            self.log.retain(|kept| !answers(message, kept));
        } else {
            self.peer_request_last = request;
        }
        self.received = seq;
        self.taken[self.taken_len] = Taken { seq, kind, answer, recorded: false };
        self.taken_len += 1;
        Ticket { epoch: self.epoch, seq, request, kind, answer }
    }

    fn taken(&self) -> &[Taken] {
        &self.taken[..self.taken_len]
    }

    /// Drops the answers that the acknowledgement covers. Requests stay until they are answered.
    fn forget_acknowledged(&mut self) {
        let ack = self.ack();
        let mut len = 0;
        for index in 0..self.taken_len {
            let taken = self.taken[index];
            if !taken.answer || taken.seq > ack {
                self.taken[len] = taken;
                len += 1;
            }
        }
        self.taken_len = len;
    }

    /// The kinds in this end's window.
    fn asked(&self) -> impl Iterator<Item = Kind> {
        let waiting = self.log.entries().iter().filter(|kept| kept.part == Part::Request);
        let taken = self.taken().iter().filter(|taken| taken.answer);
        waiting.map(|kept| kept.kind).chain(taken.map(|taken| taken.kind))
    }

    /// The kinds in the peer's window.
    fn answering(&self) -> impl Iterator<Item = Kind> {
        let kept = self.log.entries().iter().filter(|kept| kept.part != Part::Request);
        let taken = self.taken().iter().filter(|taken| !taken.answer);
        kept.map(|kept| kept.kind).chain(taken.map(|taken| taken.kind))
    }
}

/// Whether a message answers this kept one.
fn answers(message: &Message<'_>, kept: &Kept) -> bool {
    kept.part == Part::Request && kept.request == message.request && kept.kind == message.kind
}

/// Whether the kinds in a window leave room for one more. A farewell needs the window for itself:
/// nothing may be left open behind it.
fn fits(mut window: impl Iterator<Item = Kind>, kind: Kind, shared_max: u16) -> bool {
    match kind.window() {
        Window::One if kind == Kind::Farewell => window.next().is_none(),
        Window::One => window.filter(|&other| other == kind).count() == 0,
        Window::Shared => {
            window.filter(|other| other.window() == Window::Shared).count() < shared_max.into()
        }
    }
}

/// Messages that a session keeps at most, and bytes of their payloads: this end's requests and its
/// answers to the peer's, both windows full.
fn room<S: Speaker>(limits: SessionLimits) -> (u32, u32) {
    let (asks, ask_bytes) = window(S::PARTY, limits.asks_max, Kind::request_bytes_max);
    let (answers, answer_bytes) =
        window(S::Peer::PARTY, limits.answers_max, Kind::answer_bytes_max);
    (asks + answers, ask_bytes + answer_bytes)
}

/// Requests in the full window of a party, and bytes that belong to them.
fn window(asker: Party, shared_max: u16, bytes_max: impl Fn(Kind) -> usize) -> (u32, u32) {
    let (mut count, mut bytes, mut shared) = (u32::from(shared_max), 0, 0);
    for kind in Kind::ALL.into_iter().filter(|kind| kind.asker() == asker) {
        match kind.window() {
            Window::One => {
                count += 1;
                bytes += bytes_max(kind) as u32;
            }
            Window::Shared => shared = shared.max(bytes_max(kind) as u32),
        }
    }
    (count, bytes + u32::from(shared_max) * shared)
}

/// Cuts the next portion off a pool; an empty one off a measured pool.
pub(super) fn portion<'m, T>(pool: &mut &'m mut [T], len: u32) -> &'m mut [T] {
    let rest = core::mem::take(pool);
    let (portion, rest) = rest.split_at_mut((len as usize).min(rest.len()));
    *pool = rest;
    portion
}

//! Locks as the server node sees to them: messages between the sessions and the lock server.
//!
//! ```text
//!   LockAsk taken --> lock server --> LockTell, one for each revoke and grant, as the window lets
//!     | answered at once                       a grant with the newest confirmed manifest root
//!     | a refusal that finds the window full waits here, and so does the answer
//!
//!   welcome --> Recover from the first key --> batches --> an empty one: the client is served
//! ```
//!
//! # Invariants
//!
//! * Every client is asked what it holds once in each term, before it is told anything else about
//!   locks. One whose record was made in this term holds nothing.
//! * The root that a grant carries is confirmed, and no older than any that was answered before the
//!   grant: it shows all that was committed under the lock.
//! * Refusals that wait are at most as many as the clients' windows let in, for each of them keeps
//!   the request unanswered that it refuses.
//!
//! What this module deliberately doesn't know: who may have which lock.

use super::Server;
use super::table::{Member, Standing};
use crate::arena::{Arena, ArenaFull};
use crate::format::ClientId;
use crate::format::key::KeyBytes;
use crate::format::wire::message::{
    ClientAnswer, HELD_LOCKS_MAX, HeldLocks, LockRecord, LockTell, Outcome, ServerAnswer,
    ServerRequest,
};
use crate::format::wire::{ErrorCode, Kind};
use crate::lock::server::{GreetingError, Limits, LockServer};
use crate::lock::{Held, ToClient, ToServer};
use crate::net::{Incoming, SessionId, Ticket};
use crate::node::More;
use heapless::Vec;
use outrider_hal::{Instant, StreamId};

/// Units of the lock server's work in a step.
const LOCK_STEPS: u32 = 256;

/// A client did what none does that keeps to the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Breach;

/// A refusal that waits for the window, and the request it answers.
#[derive(Debug, Clone, Copy)]
struct Refused {
    session: SessionId,
    ticket: Ticket,
    tell: ToClient,
}

/// The lock server, and what waits for windows.
pub(super) struct Locks<'m> {
    pub(super) server: LockServer<'m>,
    refused: &'m mut [Option<Refused>],
    refused_len: usize,
}

impl<'m> Locks<'m> {
    pub(super) fn carve(
        arena: &mut Arena<'m>,
        limits: &Limits,
        clients_max: u16,
        asks_max: u16,
    ) -> Result<Locks<'m>, ArenaFull> {
        Ok(Locks {
            server: LockServer::carve(arena, limits)?,
            refused: arena.slice(u32::from(clients_max) * u32::from(asks_max), |_| None)?,
            refused_len: 0,
        })
    }

    /// The term is over.
    pub(super) fn reset(&mut self) {
        self.server.reset();
        self.refused_len = 0;
    }

    fn refuse_later(&mut self, refused: Refused) {
        let place = &mut self.refused[self.refused_len];
        *place = Some(refused);
        self.refused_len += 1;
    }
}

impl Server<'_> {
    /// All records have been read: recovery begins.
    pub(super) fn start_locks(&mut self, now: Instant) {
        for member in self.members.all().iter().filter(|member| !member.is_calm) {
            let recorded = self.locks.server.record(member.client);
            recorded.expect("there is room for all with a record");
        }
        self.locks.server.start();
        for at in 0..self.members.all().len() {
            let Member { client, standing, is_calm, .. } = self.members.all()[at];
            if standing == Standing::Evicting && !is_calm {
                // That it was is durable; what it held is not known any more.
                self.locks.server.evict(client);
                let until = now.plus(self.config.timing.io_lifetime);
                self.members.all_mut()[at].ghost_until = Some(until);
            }
        }
    }

    /// Admits a client that may come in. Who can't has been told why.
    pub(super) fn admit(&mut self, now: Instant, stream: StreamId, client: ClientId) {
        let greeted = self.locks.server.handle_greeting(client);
        match greeted {
            Ok(()) => drop(self.links.admit(now, stream, client)),
            // What others have left behind is being cleared away.
            Err(GreetingError::Full) => self.links.refuse(now, stream, ErrorCode::Busy),
            Err(GreetingError::Gone) => self.links.refuse(now, stream, ErrorCode::Evicted),
        }
    }

    /// A client's message about a lock was taken.
    pub(super) fn on_lock_ask(
        &mut self,
        now: Instant,
        session: SessionId,
        ticket: Ticket,
        client: ClientId,
        record: &LockRecord,
    ) -> Result<(), Breach> {
        let message = ToServer::parse(record).map_err(|_| Breach)?;
        let refusal = self.locks.server.handle_message(now, client, &message);
        if let Some(tell) = refusal.map_err(|_| Breach)? {
            self.locks.refuse_later(Refused { session, ticket, tell });
        } else {
            let done = Outcome::Done(ServerAnswer::LockAsk);
            // The session is there: its message was just taken.
            let _ = self.links.answer(session, ticket, &done);
        }
        Ok(())
    }

    /// A client has answered what it holds.
    pub(super) fn on_held(
        &mut self,
        now: Instant,
        client: ClientId,
        held: &Vec<Held, HELD_LOCKS_MAX>,
    ) -> Result<(), Breach> {
        let member = self.members.find(client).ok_or(Breach)?;
        if core::mem::take(&mut member.is_new) {
            return if held.is_empty() { Ok(()) } else { Err(Breach) };
        }
        self.locks.server.handle_batch(now, client, held).map_err(|_| Breach)
    }

    /// Takes a client's answer at the head of a session.
    pub(super) fn on_answer(&mut self, now: Instant, session: SessionId, client: ClientId) {
        let Some(Incoming::Answer(name, outcome)) = self.links.head(session) else { return };
        let (error, held) = (outcome.error(), held(&outcome));
        let used = match outcome {
            Outcome::Done(ClientAnswer::InUse(used)) => Some(used),
            Outcome::Done(_) | Outcome::Failed(..) => None,
        };
        let Some(ticket) = self.links.take(now, session) else { return };
        self.links.recorded(session, ticket);
        let result = match ticket.kind() {
            Kind::Recover => held.and_then(|held| self.on_held(now, client, &held)),
            Kind::LockTell if error.is_some() => Err(Breach),
            Kind::InUse => {
                self.on_in_use(session, name, used);
                Ok(())
            }
            Kind::Compact => {
                self.on_compact_answer(now, client, name, error);
                Ok(())
            }
            Kind::LockTell
            | Kind::Recall
            | Kind::LockAsk
            | Kind::Orphans
            | Kind::Transaction
            | Kind::Loan
            | Kind::Root
            | Kind::Statfs
            | Kind::Farewell
            | Kind::Status
            | Kind::CompactReady
            | Kind::Compacted
            | Kind::Fence
            | Kind::Clients
            | Kind::Waits
            | Kind::Pin => Ok(()),
        };
        if result.is_err() {
            self.begin_eviction(client);
        }
    }

    /// Moves the lock server on, and sends what it has to say.
    pub(super) fn step_locks(&mut self, now: Instant) -> More {
        let more = self.locks.server.step(now, LOCK_STEPS);
        self.send_refusals();
        for at in 0..self.members.all().len() {
            let Member { client, asked_held, is_new, .. } = self.members.all()[at];
            let Some(session) = self.links.find(client) else { continue };
            if is_new && !asked_held {
                let from = ServerRequest::Recover(KeyBytes::ZERO);
                let asked = self.links.request(session, &from).is_ok();
                self.members.all_mut()[at].asked_held = asked;
            }
            if !is_new || self.members.all()[at].asked_held {
                self.tell(session, client);
            }
        }
        more
    }

    /// Sends a client what the lock server has for it, as the windows let it.
    fn tell(&mut self, session: SessionId, client: ClientId) {
        let can = |server: &Server<'_>, kind| server.links.can_request(session, kind).is_ok();
        while can(self, Kind::LockTell) && can(self, Kind::Recover) {
            let Some(message) = self.locks.server.poll_message(client) else { return };
            let sent = self.send(session, &message);
            assert!(sent, "there was room");
        }
    }

    fn send(&mut self, session: SessionId, message: &ToClient) -> bool {
        let request = match (message, message.emit()) {
            (ToClient::Recover { from }, _) => ServerRequest::Recover((*from).into()),
            (ToClient::Grant { .. }, Some(lock)) => {
                ServerRequest::LockTell(LockTell { lock, root: Some(self.root_confirmed) })
            }
            (ToClient::Revoke { .. } | ToClient::Refuse { .. }, Some(lock)) => {
                ServerRequest::LockTell(LockTell { lock, root: None })
            }
            (ToClient::Grant { .. } | ToClient::Revoke { .. } | ToClient::Refuse { .. }, None) => {
                unreachable!("these are records")
            }
        };
        self.links.request(session, &request).is_ok()
    }

    pub(super) fn send_refusals(&mut self) {
        let mut kept = 0;
        for at in 0..self.locks.refused_len {
            let Some(refused) = self.locks.refused[at] else { continue };
            let Refused { session, ticket, tell } = refused;
            let gone = self.links.client(session).is_none();
            if gone || self.send(session, &tell) {
                let done = Outcome::Done(ServerAnswer::LockAsk);
                let _ = self.links.answer(session, ticket, &done);
            } else {
                self.locks.refused[kept] = Some(refused);
                kept += 1;
            }
        }
        self.locks.refused_len = kept;
    }
}

/// What a client says that it holds.
pub(super) fn held(
    answer: &Outcome<ClientAnswer<'_>>,
) -> Result<Vec<Held, HELD_LOCKS_MAX>, Breach> {
    let records = match answer {
        Outcome::Done(ClientAnswer::Recover(held)) => HeldLocks::records(held),
        Outcome::Done(_) | Outcome::Failed(..) => return Err(Breach),
    };
    records.iter().map(|record| Held::parse(record).map_err(|_| Breach)).collect()
}

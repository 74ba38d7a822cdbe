//! Being heard: the endpoint, new connections, and how many mounts reach this voter.
//!
//! # Invariants
//!
//! * A server listens from when its voter takes part until that ends, whether it leads or not. An
//!   endpoint that can't be listened at is tried again after a pause.
//! * A mount counts as reaching the voter if it is connected, or has knocked lately.
//!
//! What this module deliberately doesn't know: what is said over a connection.

use super::Server;
use crate::node::Action;
use crate::quorum::Role;
use outrider_hal::{Instant, StreamId};

/// The endpoint at which it is heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Listening {
    /// It doesn't listen, and need not.
    Shut,
    /// It is to listen from this time on.
    From(Instant),
    /// It listens.
    Open,
}

impl<'m> Server<'m> {
    /// Mounts that have knocked lately and are not connected.
    pub(super) fn knocking(&self, now: Instant) -> usize {
        let is_connected = |nonce: &[u8; 16]| {
            let members = self.members.all().iter();
            let mut clients = members.filter(|member| member.nonce == *nonce);
            let session = clients.find_map(|member| self.links.find(member.client));
            session.is_some_and(|session| self.links.is_up(session))
        };
        self.knocks.recent(now).filter(|nonce| !is_connected(nonce)).count()
    }

    /// Whether it should be heard: its voter takes part.
    fn wants_to_listen(&self) -> bool {
        match self.voter.role() {
            Role::Following | Role::Standing(_) | Role::Leading(_) | Role::Draining(_) => {
                !self.stopping
            }
            Role::Starting | Role::Stopping | Role::Stopped | Role::Refused(_) => false,
        }
    }

    /// What is to be done about the endpoint now.
    pub(super) fn poll_listening(&mut self, now: Instant) -> Option<Action<'m>> {
        match (self.wants_to_listen(), self.listening) {
            (true, Listening::From(at)) if at > now => None,
            (true, Listening::Shut | Listening::From(_)) => {
                self.listening = Listening::Open;
                self.listening_since = self.serving().map(|_| now);
                Some(Action::Listen(self.config.listen.unwrap_or(self.endpoint)))
            }
            (false, Listening::Open) => {
                self.listening = Listening::Shut;
                Some(Action::Unlisten)
            }
            (false, Listening::Shut | Listening::From(_)) => {
                self.listening = Listening::Shut;
                None
            }
            (true, Listening::Open) => None,
        }
    }

    pub(super) fn on_listen_failed(&mut self, now: Instant) {
        self.counters.listen_failures += 1;
        self.listening_since = None;
        if self.listening == Listening::Open {
            let at = now.plus(self.config.timing.listen_retry);
            self.listening = Listening::From(at);
        }
    }

    pub(super) fn on_accepted(&mut self, now: Instant, stream: StreamId) {
        let random = self.draw();
        match self.links.accept(now, stream, random) {
            Ok(displaced) => {
                if self.listening != Listening::Open {
                    self.links.closed(stream);
                }
                // With so many to close, the peer is left to notice by itself.
                let _ = displaced.map(|stream| self.closes.push_back(stream));
            }
            Err(_) => drop(self.closes.push_back(stream)),
        }
    }
}

//! What happens to a server, for the people who watch it.
//!
//! # Invariants
//!
//! * A fixed number of events is kept. When nobody asks for them, the oldest give way.
//!
//! What this module deliberately doesn't know: who asks, and what they do about it.

use crate::format::wire::ErrorCode;
use crate::format::{ClientId, Term};
use crate::net::End;
use crate::quorum::{Loss, Refusal};
use heapless::Deque;
use outrider_hal::BlockResult;

/// Events that are kept.
const EVENTS: usize = 32;

/// Something that people who watch a server want to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerEvent {
    /// It was elected, and reads what stands on the device.
    Elected(Term),
    /// Mounts may come.
    Serving(Term),
    /// It is durable that it listens.
    Listening(Term),
    /// A client has a connection.
    Up(ClientId),
    /// A client's connection has ended.
    Down(ClientId, End),
    /// A client's farewell is durable.
    Left(ClientId),
    /// A client that was not heard, or broke the protocol, was evicted.
    Evicted(ClientId),
    /// A client has not done what it was asked to merge, or not as it must be done
    /// ([`ErrorCode::Invalid`]), or was not heard of ([`ErrorCode::NotConnected`]).
    CompactionFailed(ClientId, ErrorCode),
    /// Its term is over, against its will.
    Deposed(Term, Loss),
    /// It is durable that its term is over.
    Resigned(Term),
    /// It does not take part.
    Refused(Refusal),
    /// It has let go of its slot. In case of an error the disk does not show that.
    Stopped(BlockResult),
}

/// The latest events that nobody has asked for.
#[derive(Default)]
pub(super) struct Events(Deque<ServerEvent, EVENTS>);

impl Events {
    pub(super) fn push(&mut self, event: ServerEvent) {
        if self.0.is_full() {
            self.0.pop_front();
        }
        assert!(self.0.push_back(event).is_ok(), "room was made");
    }

    pub(super) fn pop(&mut self) -> Option<ServerEvent> {
        self.0.pop_front()
    }
}

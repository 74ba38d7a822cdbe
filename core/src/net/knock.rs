//! Showing a voter that this node reaches it: a greeting that opens nothing.
//!
//! ```text
//!   Idle --knock--> Greeting --heard--> Over --poll_close--> Idle
//!                      |                 ^
//!                      +-----------------+  closed, late, refused, malformed
//! ```
//!
//! # Invariants
//!
//! * One connection at a time, which ends with the welcome, or when the greeting takes too long.
//! * It has room for the records of a greeting, and for nothing else.
//!
//! What this file deliberately doesn't know: who is knocked at, and when.

use super::asking::Asking;
use super::line::Line;
use super::record::OVERHEAD_BYTES;
use super::{Cluster, End, Timing};
use crate::arena::{Arena, ArenaFull};
use crate::format::Term;
use crate::format::wire::greeting::{GREETING_BYTES_MAX, Greeting, Machine, RANDOM_BYTES, Role};
use outrider_hal::{Instant, StreamId};

/// Room for any record of a greeting.
const RECORD_BYTES: u32 = (GREETING_BYTES_MAX + OVERHEAD_BYTES) as u32;

/// What a knock is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnockConfig {
    /// What both ends must agree on.
    pub cluster: Cluster,
    /// How long things wait.
    pub timing: Timing,
    /// Drawn at random for this mount: by it a voter tells those who knock apart.
    pub nonce: [u8; 16],
    /// Where it runs.
    pub machine: Machine,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Idle,
    Greeting(Asking),
    Over(End),
}

/// One node's knocks at one voter.
pub struct Knock<'m> {
    config: KnockConfig,
    line: Line<'m>,
    phase: Phase,
    stream: Option<StreamId>,
    /// Counts its connections.
    attempt: u64,
    /// When the greeting must be over.
    deadline: Instant,
}

impl<'m> Knock<'m> {
    /// Carves one.
    pub fn carve(arena: &mut Arena<'m>, config: KnockConfig) -> Result<Knock<'m>, ArenaFull> {
        let recv = arena.slice(RECORD_BYTES, |_| 0)?;
        // Hello and proof.
        let send = arena.slice(2 * RECORD_BYTES, |_| 0)?;
        Ok(Knock {
            config,
            line: Line::new(recv, send),
            phase: Phase::Idle,
            stream: None,
            attempt: 0,
            deadline: Instant(0),
        })
    }

    /// Knocks at the voter at the other end of a new connection.
    ///
    /// # Panics
    ///
    /// If there is a connection already: it must be closed first.
    pub fn knock(&mut self, now: Instant, stream: StreamId, random: [u8; RANDOM_BYTES]) {
        assert!(self.is_idle(), "one connection at a time");
        self.attempt += 1;
        let greeting = Greeting {
            role: Role::Knock,
            farewell: false,
            read_only: false,
            nonce: self.config.nonce,
            client: None,
            term: Term::NONE,
            received: 0,
            attempt: self.attempt,
            machine: self.config.machine,
            requests_max: 0,
        };
        let cluster = &self.config.cluster;
        let asking = Asking::begin(now, cluster, &greeting, random, &mut self.line);
        self.stream = Some(stream);
        self.deadline = now.plus(self.config.timing.greeting);
        self.phase = Phase::Greeting(asking);
    }

    /// Whether there is no connection, so that `knock` may be called.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle)
    }

    /// Ends the connection, if there is one.
    pub fn disconnect(&mut self) {
        self.end(End::Dropped);
    }

    /// The connection has ended by itself.
    pub fn closed(&mut self, stream: StreamId) {
        if self.stream == Some(stream) {
            self.end(End::Closed);
        }
    }

    /// Whether this is its connection.
    #[must_use]
    pub fn has(&self, stream: StreamId) -> bool {
        self.stream == Some(stream)
    }

    /// Where the next bytes received go. Empty while nothing more can be taken.
    pub fn recv_space(&mut self, stream: StreamId) -> &mut [u8] {
        match (self.has(stream), &self.phase) {
            (true, Phase::Greeting(_)) => self.line.recv_space(),
            (true, Phase::Idle | Phase::Over(_)) | (false, _) => &mut [],
        }
    }

    /// This many bytes were put at the start of `recv_space`, just given.
    pub fn received(&mut self, now: Instant, stream: StreamId, len: usize) {
        if !self.has(stream) {
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
        match (self.has(stream), &self.phase) {
            (true, Phase::Greeting(_)) => self.line.send_bytes(),
            (true, Phase::Idle | Phase::Over(_)) | (false, _) => &[],
        }
    }

    /// This many bytes from the start of `send_bytes` were sent.
    pub fn sent(&mut self, stream: StreamId, len: usize) {
        if self.has(stream) {
            self.line.on_sent(len);
        }
    }

    /// Ends a greeting that takes too long.
    pub fn step(&mut self, now: Instant) {
        if self.poll_timeout().is_some_and(|deadline| deadline <= now) {
            self.end(End::Late);
        }
    }

    /// When `step` must be called although nothing happens.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.phase {
            Phase::Greeting(_) => Some(self.deadline),
            Phase::Idle | Phase::Over(_) => None,
        }
    }

    /// A connection that has ended and must be closed, and why: [`End::Knocked`] if the voter has
    /// heard it.
    pub fn poll_close(&mut self) -> Option<(StreamId, End)> {
        let Phase::Over(end) = self.phase else {
            return None;
        };
        self.phase = Phase::Idle;
        self.stream.take().map(|stream| (stream, end))
    }

    fn end(&mut self, end: End) {
        match self.phase {
            Phase::Idle | Phase::Over(_) => {}
            Phase::Greeting(_) => self.phase = Phase::Over(end),
        }
    }

    fn advance(&mut self, now: Instant) -> Result<(), End> {
        let Phase::Greeting(asking) = &mut self.phase else { return Ok(()) };
        match asking.advance(now, &self.config.cluster, &mut self.line)? {
            Some(_) => Err(End::Knocked),
            None => Ok(()),
        }
    }
}

//! A client's way to whoever leads: it watches the voters' blocks, dials, and greets.
//!
//! # Invariants
//!
//! * There is at most one connection or attempt at a time.
//!
//! What this module deliberately doesn't know: what is asked, and what an eviction means.

use crate::rng::Rng;
use crate::time::MILLI;
use outrider_core::arena::Arena;
use outrider_core::format::Term;
use outrider_core::format::layout::QUORUM_BLKNO;
use outrider_core::format::super_block::Super;
use outrider_core::format::wire::ErrorCode;
use outrider_core::format::wire::greeting::{Machine, Role};
use outrider_core::net::{
    Cluster, ClusterKey, End, Link, LinkConfig, LinkLimits, Timing as NetTiming,
};
use outrider_core::node::{Action, Event};
use outrider_core::quorum::{Timing, Watcher, WatcherBlocks};
use outrider_hal::{Instant, StreamId};
use std::collections::VecDeque;

/// A client's connection.
pub(super) struct Caller {
    pub(super) link: Link<'static>,
    watcher: Watcher<'static>,
    stream: Option<StreamId>,
    attempt: Option<u32>,
    /// Whom the last attempt was for.
    tried: Term,
    attempts_ever: u32,
    dial_at: Instant,
}

impl Caller {
    /// The connection of a mount with this nonce, or of a guest, on this machine.
    pub(super) fn carve(
        arena: &mut Arena<'static>,
        limits: &LinkLimits,
        volume: &Super,
        role: Role,
        nonce: [u8; 16],
        machine: Machine,
    ) -> Caller {
        let config = LinkConfig {
            cluster: Cluster::new(volume.fsid(), ClusterKey(volume.fields().cluster_key)),
            timing: NetTiming::DEFAULT,
            role,
            nonce,
            machine,
            read_only: false,
        };
        let watcher = WatcherBlocks::carve(arena).expect("measured");
        let watcher = Watcher::new(volume.volume(), QUORUM_BLKNO, Timing::NORMAL, 0, watcher);
        let mut watcher = watcher.expect("sane timing");
        watcher.look();
        Caller {
            link: Link::carve(arena, limits, config).expect("measured"),
            watcher,
            stream: None,
            attempt: None,
            tried: Term::NONE,
            attempts_ever: 0,
            dial_at: Instant(0),
        }
    }

    /// Whether it has not been welcomed by anybody yet, and somebody is about to.
    pub(super) fn is_greeting(&self) -> bool {
        self.stream.is_some() && !self.link.is_up() && self.link.client().is_none()
    }

    /// Whether there is a connection, or an attempt at one.
    pub(super) fn is_dialing(&self) -> bool {
        self.stream.is_some() || self.attempt.is_some()
    }

    /// Takes what the network and the watcher's reads bring.
    pub(super) fn handle(
        &mut self,
        now: Instant,
        event: Event<'static>,
        entropy: &mut Rng,
        actions: &mut VecDeque<Action<'static>>,
    ) {
        match event {
            Event::Completed(done) => self.watcher.handle_completion(now, done),
            Event::Connected { attempt, stream } if self.attempt == Some(attempt) => {
                self.attempt = None;
                self.stream = Some(stream);
                let mut random = [0; 16];
                entropy.fill(&mut random);
                self.link.connect(now, stream, random);
            }
            Event::Connected { stream, .. } | Event::Accepted(stream) => {
                actions.push_back(Action::Close(stream));
            }
            Event::ConnectFailed { attempt } => {
                self.attempt = self.attempt.filter(|held| *held != attempt);
                self.dial_at = now.plus(500 * MILLI);
            }
            Event::ListenFailed => {}
            Event::Received { stream, len } => self.link.received(now, stream, len),
            Event::Sent { stream, len } => self.link.sent(stream, len),
            Event::Closed(stream) => {
                self.link.closed(stream);
                self.stream = self.stream.filter(|held| *held != stream);
                self.dial_at = now.plus(200 * MILLI);
            }
        }
    }

    /// Closes what is over. Whether a leader has said that this client is evicted.
    pub(super) fn step(&mut self, now: Instant, actions: &mut VecDeque<Action<'static>>) -> bool {
        self.link.step(now);
        let mut evicted = false;
        while let Some((stream, end)) = self.link.poll_close() {
            evicted |= matches!(end, End::Refused { error: ErrorCode::Evicted, proven: true });
            actions.push_back(Action::Close(stream));
            self.stream = self.stream.filter(|held| *held != stream);
            self.dial_at = now.plus(200 * MILLI);
        }
        evicted
    }

    /// Dials whoever leads, if there is nothing yet and it is time. An attempt at one who leads no
    /// more is given up.
    pub(super) fn dial(&mut self, now: Instant, actions: &mut VecDeque<Action<'static>>) {
        if self.watcher.leader().is_some_and(|leader| leader.term > self.tried) {
            self.attempt = None;
        }
        if self.is_dialing() || self.dial_at > now {
            return;
        }
        self.dial_at = now.plus(100 * MILLI);
        if let Some(leader) = self.watcher.leader().filter(|_| self.link.is_idle()) {
            self.attempts_ever += 1;
            self.tried = leader.term;
            self.attempt = Some(self.attempts_ever);
            let (attempt, to) = (self.attempts_ever, leader.endpoint);
            actions.push_back(Action::Connect { attempt, to });
        }
    }

    /// Gives out the watcher's reads.
    pub(super) fn poll_requests(&mut self, now: Instant, actions: &mut VecDeque<Action<'static>>) {
        while let Some(request) = self.watcher.poll_request(now) {
            actions.push_back(Action::Block(request));
        }
    }

    /// When something is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let dial = (!self.is_dialing()).then_some(self.dial_at);
        let times = [dial, self.link.poll_timeout(), self.watcher.poll_timeout()];
        times.into_iter().flatten().min()
    }
}

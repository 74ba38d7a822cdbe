//! The way to a server: finds who leads, connects, greets, and begins again when that fails.
//!
//! ```text
//!    looking --a leader is known--> connecting --connected--> greeting --welcomed--> up
//!       ^                               |                        |                   |
//!       +-------- after a pause --------+------------------------+-------------------+
//!       +-------- at once, when a later term than theirs is seen to listen ----------+
//! ```
//!
//! # Invariants
//!
//! * One connection to a leader at a time. An attempt that takes too long is given up, and should
//!   it succeed after all, its connection is closed.
//! * Nobody is waited for who is overtaken: an attempt, a greeting and a connection end when the
//!   blocks show that a later term listens. The old connection is closed before the new leader is
//!   connected to.
//! * While a server has welcomed the mount, and is heard, no block is read. When it is in doubt,
//!   they are read until it is heard again.
//! * A leader that was tried in vain is tried again only when its block shows that it lives, and a
//!   new one at once.
//! * As long as there is no server, the mount knocks at all voters.
//! * Pauses double with each failure, up to a bound, and are forgotten once a server has answered.
//!
//! What this module deliberately doesn't know: what is said.

use super::MountConfig;
use super::knocks::Knocks;
use crate::arena::{Arena, ArenaFull};
use crate::format::layout::QUORUM_BLKNO;
use crate::format::wire::greeting::{RANDOM_BYTES, Role};
use crate::net::{Cluster, ClusterKey, End, Link, LinkConfig, LinkLimits};
use crate::node::{Action, Event};
use crate::quorum::{Leader, Watcher, WatcherBlocks};
use blake2::{Blake2s256, Digest};
use core::time::Duration;
use outrider_hal::{Instant, StreamId};

/// An attempt to connect.
#[derive(Debug, Clone, Copy)]
struct Attempt {
    number: u32,
    /// When it is given up.
    deadline: Instant,
}

/// The way to a server.
pub(super) struct Way<'m> {
    pub(super) link: Link<'m>,
    pub(super) watcher: Watcher<'m>,
    knocks: Knocks<'m>,
    secret: [u8; 32],
    draws: u64,
    redial: Duration,
    redial_max: Duration,
    patience: Duration,
    attempt: Option<Attempt>,
    attempts: u32,
    /// The leader that was last connected to, and its block as it was then.
    tried: Option<Leader>,
    /// Failures in a row.
    failures: u32,
    dial_at: Instant,
    /// When the last greeting was sent.
    greeted_at: Instant,
    /// Connections to be closed.
    closes: heapless::Deque<StreamId, 4>,
    /// No server is wanted any more.
    over: bool,
}

impl<'m> Way<'m> {
    /// Carves it. `None` says that the constants don't fit together.
    pub(super) fn carve(
        arena: &mut Arena<'m>,
        limits: &LinkLimits,
        config: &MountConfig,
        tag_base: u64,
    ) -> Result<Option<Way<'m>>, ArenaFull> {
        let volume = &config.volume;
        let link = LinkConfig {
            cluster: Cluster::new(volume.fsid(), ClusterKey(volume.fields().cluster_key)),
            timing: config.net,
            role: Role::Mount,
            nonce: config.nonce,
            machine: config.machine,
            read_only: config.read_only,
        };
        let link = Link::carve(arena, limits, link)?;
        let blocks = WatcherBlocks::carve(arena)?;
        let watcher = Watcher::new(volume.volume(), QUORUM_BLKNO, config.quorum, tag_base, blocks);
        let Ok(watcher) = watcher else { return Ok(None) };
        let knocks = Knocks::carve(arena, config)?;
        Ok(Some(Way {
            link,
            watcher,
            knocks,
            secret: config.secret,
            draws: 0,
            redial: config.timing.redial,
            redial_max: config.timing.redial_max,
            patience: config.net.greeting,
            attempt: None,
            attempts: 0,
            tried: None,
            failures: 0,
            dial_at: Instant(0),
            greeted_at: Instant(0),
            closes: heapless::Deque::new(),
            over: false,
        }))
    }

    /// When the greeting was sent that led to the newest welcome.
    pub(super) fn greeted_at(&self) -> Instant {
        self.greeted_at
    }

    /// A server has welcomed the mount: nobody else is looked for.
    pub(super) fn welcomed(&mut self) {
        if self.link.is_up() {
            self.watcher.rest();
        }
    }

    /// The server has answered: what failed before is forgotten.
    pub(super) fn proven(&mut self) {
        self.failures = 0;
    }

    /// Ends it for good.
    pub(super) fn end(&mut self) {
        self.over = true;
        self.watcher.rest();
        self.link.disconnect();
        self.knocks.end();
    }

    /// Looks for a server again, after [`end`](Self::end).
    pub(super) fn begin_again(&mut self) {
        self.over = false;
        self.watcher.look();
    }

    /// Looks for another leader while the one that has welcomed the mount is not heard, and lets go
    /// of one that is overtaken.
    pub(super) fn step(&mut self, now: Instant) {
        match self.link.doubt_at() {
            Some(at) if at <= now && !self.over => self.watcher.look(),
            Some(_) => self.watcher.rest(),
            None => {}
        }
        if self.is_overtaken() {
            self.attempt = None;
            self.link.disconnect();
        }
    }

    /// Takes what has happened to connections.
    pub(super) fn handle(&mut self, now: Instant, event: &Event<'m>) {
        match *event {
            Event::Accepted(stream) => self.close(stream),
            Event::Connected { attempt, stream } => self.on_connected(now, attempt, stream),
            Event::ConnectFailed { attempt } => {
                self.knocks.connect_failed(attempt);
                if self.attempt.take_if(|at| at.number == attempt).is_some() {
                    self.on_lost(now);
                }
            }
            Event::Received { stream, len } => match self.knocks.find_mut(stream) {
                Some(knock) => knock.received(now, stream, len),
                None => self.link.received(now, stream, len),
            },
            Event::Sent { stream, len } => match self.knocks.find_mut(stream) {
                Some(knock) => knock.sent(stream, len),
                None => self.link.sent(stream, len),
            },
            Event::Closed(stream) => match self.knocks.find_mut(stream) {
                Some(knock) => knock.closed(stream),
                None => self.link.closed(stream),
            },
            Event::Completed(_) | Event::ListenFailed => {}
        }
    }

    fn on_connected(&mut self, now: Instant, attempt: u32, stream: StreamId) {
        let random = self.draw();
        if self.knocks.connected(now, attempt, stream, random) {
            return;
        }
        let awaited = self.attempt.take_if(|at| at.number == attempt).is_some();
        if !awaited || self.over || !self.link.is_idle() {
            return self.close(stream);
        }
        self.greeted_at = now;
        self.link.connect(now, stream, random);
    }

    /// Greets whoever is at the other end, if a server is wanted now; says whether one was.
    #[cfg(test)]
    pub(super) fn greet(&mut self, now: Instant, stream: StreamId) -> bool {
        if self.over || !self.link.is_idle() || self.dial_at > now {
            return false;
        }
        let random = self.draw();
        self.greeted_at = now;
        self.link.connect(now, stream, random);
        true
    }

    /// With so many to close, the peer is left to notice by itself.
    fn close(&mut self, stream: StreamId) {
        let _ = self.closes.push_back(stream);
    }

    fn on_lost(&mut self, now: Instant) {
        let pause = self.redial.saturating_mul(1 << self.failures.min(16));
        self.dial_at = now.plus(pause.min(self.redial_max));
        self.failures = self.failures.saturating_add(1);
        if !self.over {
            self.watcher.look();
        }
    }

    /// A connection that has ended, and why. To be closed unless its peer has done so.
    pub(super) fn poll_lost(&mut self, now: Instant) -> Option<End> {
        let (stream, end) = self.link.poll_close()?;
        match end {
            End::Closed => {}
            End::Record(_)
            | End::Malformed(_)
            | End::Breach(_)
            | End::Silent
            | End::Late
            | End::Refused { .. }
            | End::Refusing(_)
            | End::OldTerm(_)
            | End::Replaced
            | End::Farewell
            | End::Knocked
            | End::Dropped => self.close(stream),
        }
        self.on_lost(now);
        Some(end)
    }

    /// The next thing to do about connections.
    pub(super) fn poll_action(&mut self, now: Instant) -> Option<Action<'m>> {
        let is_lost = !self.over && !self.link.is_up();
        self.knocks.step(now, is_lost, self.link.client().is_some());
        if let Some(stream) = self.closes.pop_front().or_else(|| self.knocks.poll_close()) {
            return Some(Action::Close(stream));
        }
        if let Some(to) = self.knocks.poll_connect(now, self.attempts.wrapping_add(1)) {
            self.attempts = self.attempts.wrapping_add(1);
            return Some(Action::Connect { attempt: self.attempts, to });
        }
        if self.attempt.is_some_and(|at| at.deadline <= now) {
            self.attempt = None;
            self.on_lost(now);
        }
        if self.over || self.attempt.is_some() || !self.link.is_idle() || self.dial_at() > now {
            return None;
        }
        let leader = self.next_leader()?;
        self.tried = Some(leader);
        self.attempts = self.attempts.wrapping_add(1);
        let number = self.attempts;
        self.attempt = Some(Attempt { number, deadline: now.plus(self.patience) });
        Some(Action::Connect { attempt: number, to: leader.endpoint })
    }

    /// The leader, unless it has not been seen to live since it was tried.
    fn next_leader(&self) -> Option<Leader> {
        self.watcher.leader().filter(|leader| self.tried != Some(*leader))
    }

    /// Whether another leads now than who was connected to last, or has welcomed the mount: one
    /// whose host is gone is not waited for.
    fn is_overtaken(&self) -> bool {
        let tried = self.tried.map(|tried| tried.term);
        let current = if self.link.is_up() { Some(self.link.term()) } else { tried };
        let leads = self.watcher.leader().map(|leader| leader.term);
        current.is_some_and(|current| leads.is_some_and(|leads| leads > current))
    }

    /// When it may be connected to: a leader that was never tried, at once.
    fn dial_at(&self) -> Instant {
        let is_tried = |leader: Leader| self.tried.is_some_and(|tried| tried.term == leader.term);
        if self.watcher.leader().is_none_or(is_tried) { self.dial_at } else { Instant(0) }
    }

    /// Where the next bytes received from a connection go.
    pub(super) fn recv_space(&mut self, stream: StreamId) -> &mut [u8] {
        match self.knocks.find_mut(stream) {
            Some(knock) => knock.recv_space(stream),
            None => self.link.recv_space(stream),
        }
    }

    /// The next bytes to send on a connection.
    pub(super) fn send_bytes(&self, stream: StreamId) -> &[u8] {
        match self.knocks.find(stream) {
            Some(knock) => knock.send_bytes(stream),
            None => self.link.send_bytes(stream),
        }
    }

    /// When something is due although nothing happens.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let idle = self.link.is_idle() && self.attempt.is_none() && !self.over;
        // Without a leader the watcher's next completion is what happens.
        let dial = (idle && self.next_leader().is_some()).then_some(self.dial_at());
        let times = [
            dial,
            self.attempt.map(|at| at.deadline),
            self.link.poll_timeout(),
            self.link.doubt_at().filter(|_| !self.watcher.is_looking()),
            self.watcher.poll_timeout(),
            self.knocks.poll_timeout(),
        ];
        times.into_iter().flatten().min()
    }

    /// Bytes that nobody foresees.
    fn draw(&mut self) -> [u8; RANDOM_BYTES] {
        self.draws += 1;
        let mut hash = Blake2s256::new();
        hash.update(self.secret);
        hash.update(self.draws.to_le_bytes());
        let digest = hash.finalize();
        core::array::from_fn(|at| digest[at])
    }
}

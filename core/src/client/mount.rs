//! The mount: what joins the file operations of one machine to the cluster.
//!
//! ```text
//!            greeted, root known            leave                farewell answered
//!   Joining --------------------> Mounted ----------> Leaving -------------------> Left
//!                                  |   ^
//!              no server, or the   v   |   greeted again, the lease renewed
//!              lease is over      Suspended
//!                                  |
//!                                  v   the server has given the mount up
//!                                 Evicted
//! ```
//!
//! # Invariants
//!
//! * Every request taken gets one [`Answer::Done`], and its memory comes back with it; a
//!   [`Op::Forget`](super::op::Op::Forget) is always taken and gets none.
//! * Nothing that was read is answered, and nothing is submitted to the device, past the lease,
//!   which runs from when its renewal was *sent*.
//! * A suspended mount keeps all it has and waits. Only an eviction ends what it has not made
//!   durable: then every request fails with [`OpError::Io`](super::op::OpError::Io).
//! * A root that a grant brings is known to the cache and to the reader before the lock lets
//!   anybody in.
//!
//! What this module deliberately doesn't know: who its users are, sockets, the device, the clock.

use super::op::{self, Answer, Request, Resume};
use crate::arena::{Arena, ArenaFull};
use crate::format::super_block::Super;
use crate::node::{Action, Event, More, Node};
use crate::{net, quorum};
use core::time::Duration;
use outrider_hal::{Instant, StreamId};

mod limits;

pub use limits::{LimitsError, MountLimits};

/// How long a mount waits for things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MountTiming {
    /// What was read may be answered this long after the renewal was sent. Less than the time after
    /// which a server evicts a mount it doesn't hear.
    pub lease: Duration,
    /// The lease is renewed this long after the last renewal was sent.
    pub renew: Duration,
    /// A change becomes durable at latest this long after it was made, if nothing asks for it
    /// before and a server can be reached.
    pub commit_age: Duration,
    /// Numbers of the volume are asked for again when they are older than this.
    pub statfs_age: Duration,
    /// The pause after the first attempt to reach a server has failed. Doubles with each further
    /// one.
    pub redial: Duration,
    /// The longest pause.
    pub redial_max: Duration,
    /// What a server had no answer to is asked again after this; a read that failed, too.
    pub retry: Duration,
    /// How often the volume is searched for inodes that nobody uses and that have no name.
    pub orphan_scan: Duration,
}

impl MountTiming {
    /// For real devices.
    pub const NORMAL: MountTiming = MountTiming {
        lease: Duration::from_secs(10),
        renew: Duration::from_secs(2),
        commit_age: Duration::from_secs(1),
        statfs_age: Duration::from_secs(1),
        redial: Duration::from_millis(50),
        redial_max: Duration::from_secs(2),
        retry: Duration::from_millis(500),
        orphan_scan: Duration::from_secs(60),
    };

    /// Whether a lease is renewed in time.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        let MountTiming { lease, renew, redial, redial_max, retry, orphan_scan, .. } = *self;
        // Two renewals that are lost must not end a lease.
        renew.saturating_mul(3) <= lease
            && redial <= redial_max
            && [renew, redial, retry, orphan_scan].iter().all(|time| !time.is_zero())
    }
}

/// What a mount is told at its start.
#[derive(Debug, Clone, Copy)]
pub struct MountConfig {
    /// The volume, verified.
    pub volume: Super,
    /// The election's constants: how often to look for a leader.
    pub quorum: quorum::Timing,
    /// Those of connections.
    pub net: net::Timing,
    /// Its own.
    pub timing: MountTiming,
    /// Random, new for each mount: tells the server that it is the same mount when it comes again.
    pub nonce: [u8; 16],
    /// Random: what it greets servers with is made from this.
    pub secret: [u8; 32],
    /// Nothing is changed.
    pub read_only: bool,
}

/// Why a mount can't be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartError {
    /// The memory is too small.
    Memory,
    /// The limits don't hold.
    Limits(LimitsError),
    /// The constants don't fit together.
    Timing,
    /// The volume can't be written by this code.
    ReadOnly,
}

impl From<ArenaFull> for StartError {
    fn from(_: ArenaFull) -> StartError {
        StartError::Memory
    }
}

/// Where a mount is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountState {
    /// No server has welcomed it yet. Requests are taken, and wait.
    Joining,
    /// It works.
    Mounted,
    /// No server can be reached, or the lease is over. Requests are taken, and wait.
    Suspended,
    /// It makes everything durable and gives back what it has. No request is taken.
    Leaving,
    /// It has left the volume.
    Left,
    /// The server has given it up. What was not durable is lost, every request fails.
    Evicted,
}

/// What a mount has done since it started, for status and tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Requests answered.
    pub requests: u64,
    /// Runs of operations; what is above `requests` are repeats after a wait.
    pub runs: u64,
    /// Times a server has welcomed it.
    pub greetings: u64,
    /// Connections ended because a server broke the protocol.
    pub violations: u64,
    /// Messages about locks sent.
    pub lock_messages: u64,
    /// Transactions sent.
    pub transactions: u64,
    /// Loan requests sent.
    pub loans: u64,
    /// Roots asked for: renewals of the lease are that.
    pub roots: u64,
    /// Times the volume's numbers were asked for.
    pub statfs: u64,
    /// Questions whether inodes are still in use, sent.
    pub orphan_questions: u64,
    /// Inodes deleted because nobody used them any more.
    pub deleted: u64,
    /// Transactions made durable.
    pub commits: u64,
    /// Revokes obeyed.
    pub revokes: u64,
    /// Items that were dirty when the mount was evicted.
    pub items_lost: u64,
}

/// The mount. See the module.
pub struct Mount<'m> {
    config: MountConfig,
    state: MountState,
    counters: Counters,
    memory: core::marker::PhantomData<&'m mut ()>,
}

impl<'m> Mount<'m> {
    /// Carves a mount of valid limits, or measures it.
    pub fn carve(
        arena: &mut Arena<'m>,
        limits: &MountLimits,
        config: &MountConfig,
    ) -> Result<Mount<'m>, StartError> {
        let _ = (arena, limits);
        Ok(Mount {
            config: *config,
            state: MountState::Joining,
            counters: Counters::default(),
            memory: core::marker::PhantomData,
        })
    }

    /// Takes a request. Gives it back when all slots are taken, which ends with an answer, or when
    /// the mount has ended or is about to: see [`state`](Self::state).
    pub fn submit(
        &mut self,
        now: Instant,
        id: op::RequestId,
        request: Request<&'m mut [u8]>,
    ) -> Result<(), Request<&'m mut [u8]>> {
        let _ = (now, id);
        Err(request)
    }

    /// The next thing to say to the platform. To be asked until there is nothing after each
    /// [`step`](Node::step), before much time goes by: an answer is made under the lease.
    pub fn poll_answer(&mut self) -> Option<(op::RequestId, Answer<&'m mut [u8]>)> {
        None
    }

    /// The platform has done what an answer asked for, or wants the request to end. Of a request
    /// that has ended, nothing.
    pub fn resume(&mut self, now: Instant, id: op::RequestId, resume: Resume) {
        let _ = (now, id, resume);
    }

    /// Leaves the volume: takes no more requests, finishes those at work, makes everything durable,
    /// gives back what was lent, and says farewell. Waits for a server if there is none. The
    /// platform should have closed its handles.
    pub fn leave(&mut self, now: Instant) {
        let _ = now;
    }

    /// Where it is in its life.
    #[must_use]
    pub fn state(&self) -> MountState {
        self.state
    }

    /// What it has done.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What it was told at its start.
    #[must_use]
    pub fn config(&self) -> &MountConfig {
        &self.config
    }
}

impl<'m> Node<'m> for Mount<'m> {
    fn handle(&mut self, now: Instant, event: Event<'m>) {
        let _ = (now, event);
    }

    fn step(&mut self, now: Instant) -> More {
        let _ = now;
        More::No
    }

    fn poll_action(&mut self) -> Option<Action<'m>> {
        None
    }

    fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    fn recv_space(&mut self, stream: StreamId) -> &mut [u8] {
        let _ = stream;
        &mut []
    }

    fn send_bytes(&self, stream: StreamId) -> &[u8] {
        let _ = stream;
        &[]
    }
}

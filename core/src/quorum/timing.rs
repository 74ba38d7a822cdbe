//! The election's constants, and the inequalities between them.
//!
//! What this module deliberately doesn't know: anything safety rests on. A wrong constant costs
//! availability, or lets a paused leader answer from memory for longer; it can't lose a commit.

use crate::format::quorum::{LEASE_MS_MAX, SLOTS};
use core::time::Duration;
use outrider_hal::Instant;

/// How much faster or slower than true time a node's clock may run, in percent.
pub const DRIFT_PERCENT: u32 = 5;

/// How often the pause between readings doubles before it is as long as after a failure.
pub(super) const CLOSE: u32 = 3;

/// How long things take. All of a volume's voters should use the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// A leader may act for this long from the submission of a renewal that became durable.
    pub lease_ms: u32,
    /// A leader submits a renewal this long after the one before.
    pub renew_ms: u32,
    /// A leader's block unchanged for this long, on the observer's clock, proves its lease over.
    pub observe_ms: u32,
    /// A voter that doesn't lead reads all voters' blocks this often; a leader once per lease.
    pub scan_ms: u32,
    /// A voter that doesn't lead writes its own block this often.
    pub heartbeat_ms: u32,
    /// The pause after a first failure. Doubles with each further one.
    pub retry_ms: u32,
    /// The longest pause after failures.
    pub retry_max_ms: u32,
}

/// The inequality that does not hold. One variant for each, in the order they are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimingError {
    /// A duration is zero: something would spin.
    Zero,
    /// The lease is longer than a block may say, so others would refuse the block.
    Lease,
    /// Three renewals don't fit into a lease, so that one lost write would end a term.
    Renew,
    /// An observer whose clock is fast would end the wait for a leader whose clock is slow early.
    Observe,
    /// A voter would look for a new leader less often than once per lease.
    Scan,
    /// A voter would not be seen to write twice while another watches its slot, so that one lost
    /// write would make a used slot look free.
    Heartbeat,
    /// A leader that failed to read would not try again before its next renewal, or pauses would
    /// not grow.
    Retry,
}

impl Timing {
    /// For real devices: a killed leader is replaced within [`failover_ms`](Self::failover_ms),
    /// 2 s and a few transfers.
    pub const NORMAL: Timing = Timing::of_lease(1000);

    /// For tests on a quick device: five times as fast, at five times the transfers. A node that is
    /// not scheduled for 150 ms loses its lease, so a loaded machine may see needless failovers.
    pub const FAST: Timing = Timing::of_lease(200);

    /// What goes with a lease of this length, as the super block names it: everything is in
    /// proportion. Does not hold for a lease of less than 20 ms, or of more than a block may say.
    #[must_use]
    pub const fn of_lease(lease_ms: u32) -> Timing {
        Timing {
            lease_ms,
            renew_ms: lease_ms / 4,
            observe_ms: lease_ms.saturating_add(lease_ms / 4),
            scan_ms: lease_ms / 2,
            heartbeat_ms: lease_ms / 2,
            retry_ms: lease_ms / 20,
            retry_max_ms: lease_ms.saturating_mul(4),
        }
    }

    /// Checks what must hold between the constants.
    pub const fn validate(&self) -> Result<(), TimingError> {
        let Timing { lease_ms, renew_ms, observe_ms, scan_ms, heartbeat_ms, .. } = *self;
        let shortest = [lease_ms, renew_ms, observe_ms, scan_ms, heartbeat_ms, self.retry_ms];
        let mut index = 0;
        while index < shortest.len() {
            if shortest[index] == 0 {
                return Err(TimingError::Zero);
            }
            index += 1;
        }
        if lease_ms > LEASE_MS_MAX {
            return Err(TimingError::Lease);
        }
        if renew_ms as u64 * 3 > lease_ms as u64 {
            return Err(TimingError::Renew);
        }
        // In true time a lease lasts at most lease / (1 - drift), a wait at least
        // observe / (1 + drift).
        let wait = observe_ms as u64 * (100 - DRIFT_PERCENT) as u64;
        if wait < lease_ms as u64 * (100 + DRIFT_PERCENT) as u64 {
            return Err(TimingError::Observe);
        }
        if scan_ms > lease_ms {
            return Err(TimingError::Scan);
        }
        if heartbeat_ms as u64 * 2 > observe_ms as u64 {
            return Err(TimingError::Heartbeat);
        }
        if self.retry_ms > renew_ms || self.retry_max_ms < self.retry_ms {
            return Err(TimingError::Retry);
        }
        Ok(())
    }

    /// The longest time from a leader's last renewal until a healthy voter submits its claim: it
    /// sees that renewal only with its next scan, watches it, and holds back for the longest
    /// jitter. A voter that fewer mounts reach than another holds back for another `observe_ms`.
    #[must_use]
    pub const fn failover_ms(&self) -> u32 {
        self.scan_ms + self.observe_ms + self.renew_ms
    }

    /// A mount that has lost the leader knocks at each voter this often.
    #[must_use]
    pub const fn knock(&self) -> Duration {
        Duration::from_millis(self.lease_ms as u64)
    }

    /// A knock counts for this long: one that is lost, or late, changes nothing.
    #[must_use]
    pub const fn knock_lifetime(&self) -> Duration {
        Duration::from_millis(self.lease_ms as u64 * 3)
    }

    /// Block requests per second of a voter in an otherwise idle cluster, rounded up: reads of all
    /// [`SLOTS`] blocks, and its own write with a flush. The reads of one scan stand at consecutive
    /// addresses and are submitted together, so a platform may merge them into one.
    #[must_use]
    pub const fn idle_requests_per_second(&self, leading: bool) -> u32 {
        let (scan_ms, write_ms) = if leading {
            (self.lease_ms, self.renew_ms)
        } else {
            (self.scan_ms, self.heartbeat_ms)
        };
        (SLOTS as u32 * 1000).div_ceil(scan_ms) + 2000_u32.div_ceil(write_ms)
    }

    pub(super) fn lease(&self) -> Duration {
        ms(self.lease_ms)
    }

    /// A leader lets go that has been denied a reading of the blocks for this long. More than the
    /// longest pause between attempts.
    pub(super) fn blind(&self) -> Duration {
        self.lease() + ms(self.retry_max_ms.max(self.lease_ms))
    }

    pub(super) fn observe(&self) -> Duration {
        ms(self.observe_ms)
    }

    /// How long a block must stay unchanged until a lease of this length in it is over: as much
    /// longer than the lease as this voter's own waits are.
    pub(super) fn window(&self, lease_ms: u32) -> Duration {
        let scaled =
            u64::from(lease_ms) * u64::from(self.observe_ms) / u64::from(self.lease_ms.max(1));
        self.observe().max(Duration::from_millis(scaled))
    }

    /// The pause before the next reading of somebody who waits for a successor, and has read this
    /// often: short at first, because one who lets go in order does so in a few transfers.
    pub(super) fn close(&self, readings: u32) -> Duration {
        ms((self.retry_ms >> CLOSE.saturating_sub(readings)).max(1))
    }

    /// The pause after this many failures in a row; none after none.
    pub(super) fn pause(&self, failures: u32) -> Duration {
        match failures {
            0 => Duration::ZERO,
            _ => {
                let doubled = u64::from(self.retry_ms) << (failures - 1).min(31);
                Duration::from_millis(doubled.min(u64::from(self.retry_max_ms)))
            }
        }
    }
}

pub(super) fn ms(count: u32) -> Duration {
    Duration::from_millis(u64::from(count))
}

/// The earlier of two deadlines, either of which may be absent.
pub(super) fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (Some(at), None) | (None, Some(at)) => Some(at),
        (None, None) => None,
    }
}

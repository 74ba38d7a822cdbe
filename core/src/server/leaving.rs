//! Letting go of the slot when nobody needs this server any more: what the server beside a mount
//! does when that has left.
//!
//! ```text
//!            serves nobody, or another would lead
//!   leave() ------------------------------------------------------------> stop()
//!      |                                                                    ^
//!      | it leads, serves mounts, and nobody else would   another would     |
//!      +--------------------------------------> stays ----------------------+
//! ```
//!
//! Another *would lead* if it writes and isn't leaving itself. A server says in its quorum block
//! that it is leaving, waits until that is durable, and only then reads the other voters' blocks.
//! Of several that leave in the same moment, whoever reads last sees all others leaving. If
//!
//! * it leads: then it stays as long as it serves mounts, and takes back that it is leaving, so
//!   that the others may go;
//! * it doesn't: then it waits until one of the others stays, or all are gone, so that it leads and
//!   knows whom it serves.
//!
//! # Invariants
//!
//! * A server that leaves stops only when it serves nobody, or when a reading after its
//!   announcement shows another that writes and had not announced the same by then; that one will
//!   see this announcement.
//! * Whoever has not begun to vote stops at once, and whoever doesn't come to lead after a bounded
//!   time: it is of no use.
//!
//! What this module deliberately doesn't know: why it is to leave.

use super::Server;
use crate::quorum::Role;
use core::time::Duration;
use outrider_hal::Instant;

impl Server<'_> {
    /// Stops as soon as nobody needs this server. It [`is_over`](Self::is_over) then.
    pub fn leave(&mut self, now: Instant) {
        self.leaving.get_or_insert(now);
    }

    /// Whether it was told to leave, and serves mounts that nobody else would.
    #[must_use]
    pub fn stays(&self) -> bool {
        self.leaving.is_some() && !self.stopping && self.is_needed()
    }

    /// Whether mounts that have not left would find no server if this one stopped: it serves them,
    /// and no other voter would lead.
    #[must_use]
    pub fn is_needed(&self) -> bool {
        self.serving().is_some() && self.has_mounts() && !self.voter.has_successor()
    }

    /// Whether there are mounts that have not left, or not heard yet that they have.
    fn has_mounts(&self) -> bool {
        self.members.all().iter().any(|member| !member.is_out()) || self.connected() > 0
    }

    /// How long it may take to come to lead, when nobody else does.
    fn patience(&self) -> Duration {
        Duration::from_millis(self.config.quorum.failover_ms().into()) * 4
    }

    /// Goes on leaving.
    pub(super) fn step_leaving(&mut self, now: Instant) {
        let Some(since) = self.leaving.filter(|_| !self.stopping) else { return };
        let serves = self.serving().is_some();
        let nobody = serves && !self.has_mounts();
        let begun = !matches!(self.voter.role(), Role::Starting);
        let useless = !serves && (!begun || since.plus(self.patience()) <= now);
        if serves {
            // As long as it is of use, its patience begins anew.
            self.leaving = Some(now);
        }
        // Whoever stays says so, that others may go.
        self.voter.announce_leaving(!self.is_needed());
        let replaced = self.voter.has_looked_around() && self.voter.has_successor();
        if nobody || useless || replaced {
            self.stop();
        }
    }

    /// When it stops though nothing happens.
    pub(super) fn leaving_timeout(&self) -> Option<Instant> {
        let since = self.leaving.filter(|_| !self.stopping && self.serving().is_none());
        since.map(|since| since.plus(self.patience()))
    }
}

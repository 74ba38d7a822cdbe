//! Compaction in a mount: what is said about it, and when.
//!
//! # Invariants
//!
//! * It comes last: what operations, commits and locks have to do in a step is done before, and its
//!   requests are submitted when there are no others.
//! * A farewell is said when nothing of it is under way.
//!
//! What this module deliberately doesn't know: how runs are merged.

use super::talk::Violation;
use super::{Life, Mount};
use crate::format::wire::message::ClientRequest;
use crate::format::wire::{ErrorCode, Kind};
use crate::node::More;
use outrider_hal::Instant;

impl Mount<'_> {
    /// Goes on merging, and tells what has come of it.
    pub(super) fn step_compaction(&mut self, now: Instant) -> More {
        match self.life {
            Life::Joining | Life::Mounted => {}
            Life::Leaving | Life::Left | Life::Evicted | Life::Refused => self.compactor.close(),
        }
        let more = if self.may_submit() { self.compactor.step() } else { More::No };
        if self.way.link.is_up() && !self.ending.parting && self.compact_at <= now {
            self.tell_compactions();
        }
        more
    }

    fn tell_compactions(&mut self) {
        let link = &mut self.way.link;
        if let Some(ready) = self.compactor.ready()
            && link.request(&ClientRequest::CompactReady(ready)).is_ok()
        {
            self.compactor.handle_ready_sent();
        }
        if link.can_request(Kind::Compacted).is_ok()
            && let Some(result) = self.compactor.result()
            && link.request(&ClientRequest::Compacted(result)).is_ok()
        {
            self.compactor.handle_result_sent();
        }
    }

    /// When something is to be told, if it can be. Otherwise the answer to what was told before is
    /// what happens next.
    pub(super) fn compaction_timeout(&self) -> Option<Instant> {
        let can = |kind| self.way.link.can_request(kind).is_ok();
        let waits = self.compactor.ready().is_some() && can(Kind::CompactReady)
            || self.compactor.has_result() && can(Kind::Compacted);
        (waits && self.way.link.is_up() && !self.ending.parting).then_some(self.compact_at)
    }

    /// What was told has been answered.
    pub(super) fn on_compaction_answered(
        &mut self,
        now: Instant,
        kind: Kind,
        error: Option<ErrorCode>,
    ) -> Result<(), Violation> {
        match kind {
            Kind::CompactReady => self.compactor.handle_ready_answered(error),
            Kind::Compacted => self.compactor.handle_result_answered(error),
            Kind::LockAsk
            | Kind::Orphans
            | Kind::Transaction
            | Kind::Loan
            | Kind::Root
            | Kind::Statfs
            | Kind::Farewell
            | Kind::Status
            | Kind::Fence
            | Kind::Clients
            | Kind::Waits
            | Kind::Pin
            | Kind::LockTell
            | Kind::Recover
            | Kind::Recall
            | Kind::InUse
            | Kind::Compact => return Err(Violation),
        }
        if error.is_some() {
            self.compact_at = now.plus(self.config.timing.retry);
        }
        Ok(())
    }
}

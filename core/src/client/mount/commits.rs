//! When changes are made durable, and when what was lent is asked for.
//!
//! # When a commit begins
//!
//! One at a time, while the lease lasts, and only when something asks for it:
//!
//! | what | why |
//! |---|---|
//! | an operation waits for one | fsync, or the dirty budget is used up |
//! | a lock is wanted back | what is dirty under it must be durable first |
//! | half of the dirty budget is used | changes go on while the other half is written |
//! | what was used or freed nearly fills a transaction | so that no change has to wait |
//! | the oldest change is as old as [`MountTiming::commit_age`](super::MountTiming) | a crash loses no more |
//! | others change something, and this mount nothing | so that its number passes: see `feed` |
//! | the mount leaves | all of it |
//!
//! The dirty budget is less than the limits say while the blocks that are lent for runs are in
//! short pieces, of which a transaction can name a few: then commits come sooner, each of what
//! fits. So none has to wait for longer pieces, of which a fragmented volume may have none.
//!
//! What this module deliberately doesn't know: how a commit is written.

use super::slots::Park;
use super::talk::Violation;
use super::{Life, Mount};
use crate::client::commit::{Committed, NotNow};
use crate::format::wire::message::ClientRequest;
use crate::format::wire::{ErrorCode, Kind};
use crate::node::More;
use outrider_hal::Instant;

/// Items copied, or gone through, in a step.
const COMMIT_BUDGET: u32 = 512;

/// What makes the next commit due.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Due {
    /// Since when something has been dirty.
    pub(super) dirty_since: Option<Instant>,
    /// A lock waits for one.
    pub(super) for_lock: bool,
    /// None begins before this time: the last attempt has failed, or there was no room for it.
    pub(super) not_before: Instant,
}

impl Mount<'_> {
    /// Goes on with the commit under way, and begins the next when it is due.
    pub(super) fn step_commit(&mut self, now: Instant) -> More {
        let mut more = self.committer.step(&mut self.items, &mut self.loans, COMMIT_BUDGET);
        while self.committer.poll_failure().is_some() {
            self.due.not_before = now.plus(self.config.timing.retry);
        }
        if self.items.usage().dirty_items == 0 {
            self.due.dirty_since = None;
        } else if self.due.dirty_since.is_none() {
            self.due.dirty_since = Some(now);
        }
        let max = self.committer.dirty_max(&self.loans);
        if self.items.narrow(max.dirty_items, max.dirty_chunks) {
            self.slots.wake(|park| *park == Park::Commit);
            more = More::Yes;
        }
        let may = self.works() && !self.suspended && self.due.not_before <= now;
        let due = may && self.committer.is_idle() && self.is_commit_due(now);
        if due && self.begin_commit(now) == More::Yes {
            more = More::Yes;
        }
        if !self.committer.is_copying() && self.slots.waits(|park| *park == Park::Snapshot) {
            self.slots.wake(|park| *park == Park::Snapshot);
            return More::Yes;
        }
        more
    }

    fn is_commit_due(&self, now: Instant) -> bool {
        let (usage, (items_max, chunks_max)) = (self.items.usage(), self.items.dirty_max());
        self.due.for_lock
            || self.slots.waits(|park| *park == Park::Commit)
            || usage.dirty_items > items_max / 2
            || usage.dirty_chunks > chunks_max / 2
            || self.loans.is_commit_wanted()
            || self.commit_time().is_some_and(|at| at <= now)
            || self.pass_time().is_some_and(|at| at <= now)
            || (self.life == Life::Leaving && usage.dirty_items > 0)
    }

    /// When the oldest change must be made durable.
    fn commit_time(&self) -> Option<Instant> {
        self.due.dirty_since.map(|since| since.plus(self.config.timing.commit_age))
    }

    /// When the next commit begins, if nothing else asks for one.
    pub(super) fn commit_timeout(&self) -> Option<Instant> {
        if !self.works() || self.suspended || !self.committer.is_idle() {
            return None;
        }
        let asked = self.due.for_lock || self.slots.waits(|park| *park == Park::Commit);
        let times = [self.commit_time(), self.pass_time()];
        let at = if asked { Some(Instant(0)) } else { times.into_iter().flatten().min() };
        at.map(|at| at.max(self.due.not_before))
    }

    fn begin_commit(&mut self, now: Instant) -> More {
        match self.committer.begin(&mut self.items, &mut self.loans, self.root) {
            Ok(begun) => {
                self.due.for_lock = false;
                self.due.dirty_since = None;
                self.feed.passes(now, begun.is_none());
                if begun.is_none() {
                    self.on_durable(now);
                }
                More::Yes
            }
            Err(NotNow::Closed | NotNow::Busy) => More::No,
            Err(NotNow::Loan) => {
                self.due.not_before = now.plus(self.config.timing.retry);
                More::No
            }
        }
    }

    /// What the transaction's answer says.
    pub(super) fn on_committed(
        &mut self,
        now: Instant,
        done: Option<Committed>,
    ) -> Result<(), Violation> {
        let Some(done) = done else { return Ok(()) };
        self.counters.commits += 1;
        self.note_transaction_done();
        self.note_root(&done.root)?;
        self.feed.learn(done.stable);
        self.feed.passed(&done.root);
        self.on_durable(now);
        Ok(())
    }

    /// Changes up to some number have become durable.
    fn on_durable(&mut self, now: Instant) {
        self.locks.committed(now, self.committer.committed());
        self.slots.wake(|park| *park == Park::Commit);
    }

    pub(super) fn on_commit_refused(&mut self, now: Instant, error: ErrorCode) {
        self.committer.handle_refused(&mut self.items, &mut self.loans, error);
        self.due.not_before = now.plus(self.config.timing.retry);
        self.note_transaction_refused(now, error);
    }

    /// Sends what is to be recorded, and asks for what is to be lent.
    pub(super) fn step_loans(&mut self, now: Instant) {
        if self.loans.is_short() && self.loan_at <= now {
            self.loans.retry();
        }
        if !self.loans.is_short() {
            self.loan_at = now.plus(self.config.timing.retry * self.loans.patience());
        }
        self.loans.step();
        if self.loans.poll_wake() {
            self.slots.wake(|park| matches!(park, Park::Inos | Park::Blocks));
            self.due.not_before = now;
        }
        if !self.way.link.is_up() || self.ending.parting {
            return;
        }
        if self.committer.is_unsent()
            && !self.suspended
            && self.way.link.can_request(Kind::Transaction).is_ok()
            && let Some(transaction) = self.committer.transaction()
            && self.way.link.request(&ClientRequest::Transaction(transaction)).is_ok()
        {
            self.counters.transactions += 1;
            self.committer.handle_sent();
        }
        if self.loans.is_unsent()
            && self.way.link.can_request(Kind::Loan).is_ok()
            && let Some(request) = self.loans.request()
            && self.way.link.request(&ClientRequest::Loan(request)).is_ok()
        {
            self.counters.loans += 1;
            self.loans.handle_sent();
        }
    }
}

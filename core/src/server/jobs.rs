//! What the server does that nobody has asked for: it looks after free space, and merges.
//!
//! # Invariants
//!
//! * Each job is a request like any other, with a place in the table. At most one looks after
//!   space, one chooses what is merged, and one merges.
//! * Lists of freed extents are entered into the free trees at least as quickly as they are made:
//!   in each commit as many extents as it has room for, and if some list is older than
//!   `COMMITS_MAX` commits, requests that would add to the lists wait until none is, and commits
//!   follow each other without a pause. So what clients free, however quickly and in however many
//!   pieces, is free a bounded number of commits later.
//! * Lists that are kept for readers are passed over, and count as made when they are not kept any
//!   more.
//! * That is never at the cost of requests: entering leaves half of a commit's reserve to them.
//!
//! What this module deliberately doesn't know: how they do it.

use super::requests::{self, Context, Entered, Halt, Progress};
use super::table::{Slot as Place, Stage, Work};
use super::{Counters, Phase, Server};
use crate::format::quorum::Slot;
use crate::format::records::{FreedKey, OwnerKind, QuarantineKey};
use crate::format::{ClientId, CommitNo};
use crate::txn::settle::RESERVE_MIN;
use crate::txn::takeover::Gone;
use core::time::Duration;
use outrider_hal::Instant;
use zerocopy::big_endian::{U16 as BigU16, U32 as BigU32, U64 as BigU64};

/// What is quarantined on account of earlier leaders is looked at so often.
const RELEASE_EVERY: Duration = Duration::from_secs(10);
/// Or after this, if something else was under way.
const RELEASE_RETRY: Duration = Duration::from_millis(200);

/// Extents entered in each commit, whatever room it has.
const ENTERED_MIN: u32 = 16;
/// And at the most.
const ENTERED_MAX: u32 = 2048;
/// With fewer blocks left of its reserve a commit is left to others.
const SPACE_MIN: u64 = RESERVE_MIN / 2;
/// A list that is older than so many commits holds up those who would add to the lists.
pub(super) const COMMITS_MAX: u64 = 16;

/// Before all lists of freed extents.
pub(super) const FIRST_FREED: FreedKey = FreedKey { commit: BigU64::ZERO, part: BigU32::ZERO };
/// From the first quarantined list of a leader on.
const RELEASE: Work = Work::Release {
    from: QuarantineKey { kind: OwnerKind::Round as u8, owner: BigU64::ZERO, part: BigU16::ZERO },
};

/// How far the entering of freed extents is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tidying {
    /// Lists before this one are gone, or can't be read.
    from: FreedKey,
    /// Nothing more is to be entered in this commit.
    is_over: bool,
    /// Entered in this commit.
    entered: u32,
    /// The first list is too old.
    is_behind: bool,
    /// The commit until which the lists were kept that were.
    released: CommitNo,
}

impl Tidying {
    /// At the beginning of a term.
    pub(super) const NEW: Tidying = Tidying {
        from: FIRST_FREED,
        is_over: true,
        entered: 0,
        is_behind: false,
        released: CommitNo(0),
    };

    /// A commit is confirmed: there is a new one to join.
    pub(super) fn on_confirmed(&mut self) {
        (self.is_over, self.entered) = (false, 0);
    }

    /// It can't go on now, and nobody is to wait for it.
    pub(super) fn on_refused(&mut self) {
        (self.is_over, self.is_behind) = (true, false);
    }

    /// Lists from this one on were kept until this commit, and aren't any more. While there are
    /// some that were kept before, these are no newer than they are.
    pub(super) fn on_released(&mut self, first: FreedKey, commit: CommitNo) {
        if self.from.commit.get() >= self.released.0 {
            self.released = commit;
        }
        let place = |key: &FreedKey| (key.commit.get(), key.part.get());
        if place(&first) < place(&self.from) {
            self.from = first;
        }
    }

    /// Whether those who free something are to wait.
    pub(super) fn is_behind(&self) -> bool {
        self.is_behind
    }

    /// Enters one extent, if the commit has room for it.
    pub(super) fn run(
        &mut self,
        cx: &mut Context<'_, '_>,
        counters: &mut Counters,
    ) -> Result<Progress, Halt> {
        let has_room = cx.store.cache.space().available() >= SPACE_MIN;
        if self.entered >= ENTERED_MAX || (self.entered >= ENTERED_MIN && !has_room) {
            self.is_over = true;
            return Ok(Progress::Done);
        }
        let commit = cx.commit();
        match requests::enter_freed(cx, &mut self.from)? {
            Entered::Free => {}
            Entered::Skipped => counters.freed_twice += 1,
            Entered::Unreadable => counters.freed_unreadable += 1,
            // Nothing was looked at but its key.
            Entered::Kept => return Ok(Progress::More),
            Entered::Nothing => {
                (self.is_over, self.is_behind) = (true, false);
                return Ok(Progress::Done);
            }
        }
        self.entered += 1;
        let made = self.released.0.max(self.from.commit.get());
        self.is_behind = commit.0.saturating_sub(made) > COMMITS_MAX;
        Ok(Progress::More)
    }
}

impl Server<'_> {
    /// Begins what nobody has asked for.
    pub(super) fn begin_jobs(&mut self, now: Instant) {
        if !matches!(self.phase, Phase::Serving(_)) {
            return;
        }
        let on_space = |slot: &Place<'_>| {
            slot.stage != Stage::Free && matches!(slot.work, Work::Tidy | Work::Release { .. })
        };
        if let Some(first) = self.store.kept.take_released() {
            self.tidying.on_released(first, self.store.commit_now());
        }
        let trees = &self.store.trees;
        let freed = !self.tidying.is_over && !trees.freed.is_empty();
        let quarantined = self.release_at.is_some_and(|at| at <= now);
        // If all slots are taken, there is a next time. One job after the other, in turns.
        let one_is_on_it = self.table.slots.iter().any(on_space);
        if quarantined {
            self.store.earlier_gone(self.gone());
            let begun = !one_is_on_it && self.table.begin(RELEASE, ClientId(0)).is_ok();
            let pause = if begun { RELEASE_EVERY } else { RELEASE_RETRY };
            self.release_at = Some(now.plus(pause));
        } else if freed && !one_is_on_it {
            let _ = self.table.begin(Work::Tidy, ClientId(0));
        }
        self.begin_compactions(now);
    }

    /// Whether this request is to wait: its runs for level 0 to shrink, what it frees for what was
    /// freed before to be entered.
    pub(super) fn is_to_wait(&self, index: usize) -> bool {
        let slot = &self.table.slots[index];
        let pressed = self.is_pressed();
        let behind = self.tidying.is_behind();
        match slot.work {
            Work::Transaction { .. } => pressed || behind,
            // One that was begun ends with what it has.
            Work::Loan => behind && slot.loan.commit == CommitNo(0),
            Work::Load { .. }
            | Work::Tidy
            | Work::Release { .. }
            | Work::Merge
            | Work::Compact
            | Work::Compacted { .. }
            | Work::CompactReady { .. }
            | Work::Settle { .. }
            | Work::Greet { .. }
            | Work::Farewell
            | Work::Evict(_) => false,
        }
    }

    /// Lets go on what has waited for a step, for level 0, or for freed extents.
    pub(super) fn wake_held(&mut self) {
        if let Some(index) = self.merger.wake() {
            self.table.ready(index);
        }
        if self.held > 0 {
            for index in 0..self.table.slots.len() {
                if self.table.slots[index].stage == Stage::Held && !self.is_to_wait(index) {
                    self.held -= 1;
                    self.table.ready(index);
                }
            }
        }
    }

    /// Whether transactions with runs are to wait for merging.
    pub(super) fn is_pressed(&self) -> bool {
        let own = !self.merger.inputs().is_empty();
        self.planner.is_pressed(&self.store.trees.level_runs, own)
    }

    /// Which leaders of earlier rounds are proven gone, as the last reading of all slots shows. A
    /// configured voter of which it isn't known what it says may be any of them.
    pub(super) fn gone(&self) -> Gone {
        let is_blind = |slot: &Slot| {
            self.config.volume.voter(slot.number()).is_some()
                && !self.voter.sight(*slot).is_certain()
        };
        if Slot::ALL.iter().any(is_blind) {
            return Gone::NOBODY;
        }
        let ballots = Slot::ALL.into_iter().filter_map(|slot| self.voter.sight(slot).ballot());
        let acting = ballots.filter(|ballot| ballot.state.is_active());
        Gone::all_but(acting.map(|ballot| ballot.term.round()))
    }
}

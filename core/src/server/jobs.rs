//! What the server does that nobody has asked for: it looks after free space, and merges.
//!
//! # Invariants
//!
//! * Each job is a request like any other, with a place in the table. At most one looks after
//!   space, one chooses what is merged, and one merges.
//!
//! What this module deliberately doesn't know: how they do it.

use super::table::{Slot as Place, Stage, Work};
use super::{Phase, Server};
use crate::format::ClientId;
use crate::format::quorum::Slot;
use crate::format::records::{FreedKey, OwnerKind, QuarantineKey};
use crate::txn::takeover::Gone;
use core::time::Duration;
use outrider_hal::Instant;
use zerocopy::big_endian::{U16 as BigU16, U32 as BigU32, U64 as BigU64};

/// What is quarantined on account of earlier leaders is looked at so often.
const RELEASE_EVERY: Duration = Duration::from_secs(10);
/// Or after this, if something else was under way.
const RELEASE_RETRY: Duration = Duration::from_millis(200);

/// Before all lists of freed extents.
pub(super) const FIRST_FREED: FreedKey = FreedKey { commit: BigU64::ZERO, part: BigU32::ZERO };
/// From the first quarantined list of a leader on.
const RELEASE: Work = Work::Release {
    from: QuarantineKey { kind: OwnerKind::Round as u8, owner: BigU64::ZERO, part: BigU16::ZERO },
};

impl Server<'_> {
    /// Begins what nobody has asked for.
    pub(super) fn begin_jobs(&mut self, now: Instant) {
        if !matches!(self.phase, Phase::Serving(_)) {
            return;
        }
        let on_space = |slot: &Place<'_>| {
            slot.stage != Stage::Free
                && matches!(slot.work, Work::Tidy { .. } | Work::Release { .. })
        };
        let trees = &self.store.trees;
        let freed = self.tidy_left > 0 && !trees.freed.is_empty();
        let quarantined = self.release_at.is_some_and(|at| at <= now);
        // If all slots are taken, there is a next time. One job after the other, in turns.
        let one_is_on_it = self.table.slots.iter().any(on_space);
        if quarantined {
            let begun = !one_is_on_it && self.table.begin(RELEASE, ClientId(0)).is_ok();
            let pause = if begun { RELEASE_EVERY } else { RELEASE_RETRY };
            self.release_at = Some(now.plus(pause));
        } else if freed && !one_is_on_it {
            let _ = self.table.begin(Work::Tidy { from: self.tidy_from }, ClientId(0));
        }
        self.begin_compactions(now);
    }

    /// Lets go on what has waited for a step, or for level 0.
    pub(super) fn wake_held(&mut self) {
        if let Some(index) = self.merger.wake() {
            self.table.ready(index);
        }
        if self.held > 0 && !self.is_pressed() {
            self.held = 0;
            for index in 0..self.table.slots.len() {
                if self.table.slots[index].stage == Stage::Held {
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

//! Readings of the claims, and who waits for them: a durable commit before it is answered, and a
//! request that met a damaged block before it is refused.
//!
//! A leader that was paused and doesn't know its successor reads blocks that the successor may have
//! written since: to the one they are damaged, to the other they are not. So damage is damage only
//! if nobody led meanwhile.
//!
//! # Invariants
//!
//! * Who waits is served by a reading that began after it came to wait, and found no later leader.
//! * A reading for the sake of refusals begins only when none is under way, so it can't put off the
//!   one that a commit waits for again and again.
//!
//! What this module deliberately doesn't know: how claims are read.

use super::Server;
use super::table::Stage;
use crate::format::CommitNo;
use crate::format::wire::ErrorCode;
use crate::quorum::CheckToken;
use outrider_hal::Instant;

/// The readings, numbered from 1 since the server started.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// The reading that began last.
    begun: u64,
    /// The last one that found no later leader.
    clear: u64,
    /// A commit that is durable and not known to be answerable, and its reading.
    commit: Option<(CommitNo, u64)>,
}

impl Claims {
    /// The term is over: nobody waits any more.
    pub(super) fn reset(&mut self) {
        *self = Claims { begun: self.begun, clear: self.begun, commit: None };
    }
}

impl Server<'_> {
    fn read_claims(&mut self, now: Instant) {
        self.claims.begun += 1;
        self.voter.check_claims(now, CheckToken(self.claims.begun));
    }

    /// A commit is durable.
    pub(super) fn doubt_commit(&mut self, now: Instant, commit: CommitNo) {
        self.read_claims(now);
        self.claims.commit = Some((commit, self.claims.begun));
    }

    /// A request has met a damaged block.
    pub(super) fn doubt_damage(&mut self, now: Instant, index: usize) {
        self.table.slots[index].stage = Stage::Doubted(self.claims.begun + 1);
        if self.claims.begun == self.claims.clear {
            self.read_claims(now);
        }
    }

    /// A reading has found no later leader, and neither have those before it any more.
    pub(super) fn on_claims_clear(&mut self, now: Instant, CheckToken(reading): CheckToken) {
        if !self.voter.may_act(now) {
            return;
        }
        self.claims.clear = reading;
        if let Some((commit, _)) = self.claims.commit.filter(|(_, began)| *began <= reading) {
            self.claims.commit = None;
            self.on_confirmed(now, commit);
        }
        let mut waiting = false;
        for index in 0..self.table.slots.len() {
            if let Stage::Doubted(wanted) = self.table.slots[index].stage {
                match wanted <= reading {
                    true => self.refuse(now, index, ErrorCode::Corrupt),
                    false => waiting = true,
                }
            }
        }
        if waiting && self.claims.begun == reading && self.is_in_office() {
            self.read_claims(now);
        }
    }
}

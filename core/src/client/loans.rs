//! What a mount is lent: blocks for file data and for runs, numbers for inodes and for runs.
//!
//! What this module deliberately doesn't know: the network.

use super::commit::CommitLimits;
use super::fs::{Blocks, Inos};
use crate::arena::{Arena, ArenaFull};
use crate::format::super_block::Super;
use crate::format::wire::ErrorCode;
use crate::format::wire::message::{Loan, LoanRequest, Recall};
use core::marker::PhantomData;

/// How much a mount borrows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoanLimits {
    /// Blocks for file data that it has after a request; with half of that left it asks for more.
    pub data_blocks: u32,
    /// Lock groups of inode numbers: one for each directory that is made or worked in.
    pub ino_groups: u32,
    /// Lock groups that nobody uses yet which it has after a request; with half of that left it
    /// asks for more.
    pub ino_spare: u32,
    /// What runs are needed for.
    pub commit: CommitLimits,
}

/// What happened so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Requests answered, or refused.
    pub requests: u64,
    /// Those of them that brought less than was asked for, or nothing.
    pub short: u64,
    /// Blocks lent.
    pub blocks_lent: u64,
    /// Blocks given back.
    pub blocks_returned: u64,
    /// Extents that were lent although they can't be: outside the volume, or lent before.
    pub unusable: u64,
}

/// See the module.
pub struct Loans<'m> {
    /// For file data.
    pub blocks: Blocks<'m>,
    /// For inodes.
    pub inos: Inos<'m>,
    memory: PhantomData<&'m mut ()>,
}

impl<'m> Loans<'m> {
    /// Carves empty pools. The limits must be valid.
    pub fn carve(
        arena: &mut Arena<'m>,
        limits: &LoanLimits,
        volume: &Super,
    ) -> Result<Loans<'m>, ArenaFull> {
        let _ = (arena, limits, volume);
        todo!()
    }

    /// Makes a request if one is due and none is under way. To be called before
    /// [`request`](Self::request) is asked, at each step of the node.
    pub fn step(&mut self) {
        todo!()
    }

    /// The request, from when it may be sent until it is answered; the same all the time.
    #[must_use]
    pub fn request(&self) -> Option<LoanRequest<'_>> {
        todo!()
    }

    /// Whether it has still to be given to the session, which sends it again when that is needed.
    #[must_use]
    pub fn is_unsent(&self) -> bool {
        todo!()
    }

    /// The session has taken the request.
    pub fn handle_sent(&mut self) {
        todo!()
    }

    /// Takes note of an answer. One that was answered before changes nothing.
    pub fn handle_loan(&mut self, loan: &Loan<'_>) {
        let _ = loan;
        todo!()
    }

    /// The server has refused the request that was sent, which has changed nothing there. Nothing
    /// is asked for again before [`retry`](Self::retry).
    pub fn handle_refused(&mut self, error: ErrorCode) {
        let _ = error;
        todo!()
    }

    /// The server wants something back.
    pub fn handle_recall(&mut self, recall: &Recall) {
        let _ = recall;
        todo!()
    }

    /// Asks again although the last request brought less than was wanted: to be called after a
    /// pause, while [`is_short`](Self::is_short).
    pub fn retry(&mut self) {
        todo!()
    }

    /// Whether the server had less than was asked for.
    #[must_use]
    pub fn is_short(&self) -> bool {
        todo!()
    }

    /// Whether the open transaction must be committed soon: what it used and freed is nearly as
    /// much as a transaction can name.
    #[must_use]
    pub fn is_commit_wanted(&self) -> bool {
        todo!()
    }

    /// Whether, since this was last asked, something has changed for those who wait for
    /// [`fs::Wait::Blocks`](super::fs::Wait) or [`fs::Wait::Inos`](super::fs::Wait): run them
    /// again.
    pub fn poll_wake(&mut self) -> bool {
        todo!()
    }

    /// The mount leaves or was evicted: nobody can take anything any more, and nothing more is
    /// asked for. The farewell, or the eviction, ends all loans.
    pub fn close(&mut self) {
        todo!()
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        todo!()
    }
}

//! Which scenario notices which mistake: the simulator's proof that it would see what it looks for.
//!
//! # Invariants
//!
//! * Every mistake there is has its line here.
//!
//! What this module deliberately doesn't know: how a mistake is made. That is said where the right
//! decision is taken, in the core.

use crate::scenario::{Scenario, mount, server};
use outrider_core::mutant::Mutant;

/// Where a mistake is looked for.
pub struct Hunt {
    /// The scenario that notices it.
    pub scenario: &'static Scenario,
    /// Seeds within which it must.
    pub seeds: u64,
}

/// Where this mistake is looked for; nowhere, if tests of its own part in the core notice it, and
/// whole clusters too seldom.
#[must_use]
pub fn hunt(mutant: Mutant) -> Option<Hunt> {
    let server = |seeds| Some(Hunt { scenario: &server::SCENARIO, seeds });
    let mount = |seeds| Some(Hunt { scenario: &mount::SCENARIO, seeds });
    match mutant {
        Mutant::TakeoverOutsideReserve
        | Mutant::NoCommitReserve
        | Mutant::LevelZeroOutOfOrder
        | Mutant::MergeSpaceUnowned
        | Mutant::CompactionSpaceUnowned
        | Mutant::CompactionBusyIgnored
        | Mutant::InputsFreedEarly
        | Mutant::LoansNotShrunk
        | Mutant::OrphansBeforeRecovery
        | Mutant::GrantInRecovery
        | Mutant::GrantBeforeRelease
        | Mutant::EvictionFreesLoans
        | Mutant::EvictByOwnClock => server(20),
        Mutant::GreetingWithoutNonce
        | Mutant::AnswerBeforeReread
        | Mutant::QuarantineEndsByTime => server(100),
        Mutant::ReserveNotQuarantined => server(200),
        Mutant::WriteOnlyItemsKept | Mutant::AnswerAfterLease | Mutant::StableTooEarly => mount(40),
        Mutant::SharedRoots
        | Mutant::RootBeforeFlush
        | Mutant::LeaseFromCompletion
        | Mutant::ClaimWithoutLook
        | Mutant::ClaimWithoutLease
        | Mutant::FillUnderOldRoot => None,
    }
}

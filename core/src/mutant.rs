//! Deliberate mistakes, so that tests can show that they would notice them.
//!
//! A mutant is a single wrong decision at the place where the right one is made. Builds other than
//! tests, and those with `--cfg outrider_mutants` (the simulator's mutant runs), have none: the
//! question is answered no at compile time.

/// A mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// All leaders write their roots to the same two blocks.
    SharedRoots,
    /// A root is written although the blocks it refers to have not been flushed.
    RootBeforeFlush,
    /// The first commit of a term writes what is left of the last leader's reserve.
    TakeoverOutsideReserve,
    /// A new leader takes the last leader's reserve for its own, proven gone or not.
    ReserveNotQuarantined,
    /// A root doesn't name what the next commit may write.
    NoCommitReserve,
    /// Merging leaves the oldest run of level 0 behind.
    LevelZeroOutOfOrder,
    /// A merge's space is recorded nowhere.
    MergeSpaceUnowned,
    /// What a merge has read is freed, and the manifest goes on naming it.
    InputsFreedEarly,
    /// Locks are granted although recorded clients have not reported what they hold.
    GrantInRecovery,
    /// A lock is granted as soon as what is in its way is being revoked.
    GrantBeforeRelease,
    /// What an evicted client was lent is free for others at once.
    EvictionFreesLoans,
}

impl Mutant {
    /// All of them.
    pub const ALL: &[Mutant] = &[
        Mutant::SharedRoots,
        Mutant::RootBeforeFlush,
        Mutant::TakeoverOutsideReserve,
        Mutant::ReserveNotQuarantined,
        Mutant::NoCommitReserve,
        Mutant::GrantInRecovery,
        Mutant::GrantBeforeRelease,
        Mutant::EvictionFreesLoans,
    ];
}

#[cfg(any(test, outrider_mutants))]
mod switch {
    extern crate std;

    use super::Mutant;
    use std::cell::Cell;

    std::thread_local! {
        static ACTIVE: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Makes this thread's nodes make this mistake from now on, or none.
    pub fn activate(mutant: Option<Mutant>) {
        ACTIVE.set(mutant);
    }

    pub(crate) fn is_active(mutant: Mutant) -> bool {
        ACTIVE.get() == Some(mutant)
    }
}

#[cfg(any(test, outrider_mutants))]
pub use switch::activate;
#[cfg(any(test, outrider_mutants))]
pub(crate) use switch::is_active;

/// Whether this mistake is to be made: no.
#[cfg(not(any(test, outrider_mutants)))]
pub(crate) const fn is_active(_: Mutant) -> bool {
    false
}

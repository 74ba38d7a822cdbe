//! Ways to break the election, so that tests can show that they notice. Outside tests there are
//! none, and every question here is constantly answered no.

#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mutant {
    /// Nothing is broken.
    None,
    /// Says that the claims are clear without having read them.
    AnswerBeforeReread,
    /// Counts a leader's silence from when the voter began to follow, whatever it saw since.
    EvictByOwnClock,
    /// Counts the lease from the completion of a renewal.
    LeaseFromCompletion,
    /// Takes office without having looked for other claims after its own.
    ClaimWithoutLook,
    /// Takes office on a claim that has stood for longer than a lease.
    ClaimWithoutLease,
}

#[cfg(not(test))]
#[derive(Debug, Clone, Copy)]
pub(super) enum Mutant {
    None,
}

#[cfg(test)]
impl Mutant {
    pub(super) fn answers_before_reread(self) -> bool {
        self == Mutant::AnswerBeforeReread
    }

    pub(super) fn evicts_by_own_clock(self) -> bool {
        self == Mutant::EvictByOwnClock
    }

    pub(super) fn leases_from_completion(self) -> bool {
        self == Mutant::LeaseFromCompletion
    }

    pub(super) fn claims_without_look(self) -> bool {
        self == Mutant::ClaimWithoutLook
    }

    pub(super) fn claims_without_lease(self) -> bool {
        self == Mutant::ClaimWithoutLease
    }
}

#[cfg(not(test))]
impl Mutant {
    pub(super) const fn answers_before_reread(self) -> bool {
        match self {
            Mutant::None => false,
        }
    }

    pub(super) const fn evicts_by_own_clock(self) -> bool {
        match self {
            Mutant::None => false,
        }
    }

    pub(super) const fn leases_from_completion(self) -> bool {
        match self {
            Mutant::None => false,
        }
    }

    pub(super) const fn claims_without_look(self) -> bool {
        match self {
            Mutant::None => false,
        }
    }

    pub(super) const fn claims_without_lease(self) -> bool {
        match self {
            Mutant::None => false,
        }
    }
}

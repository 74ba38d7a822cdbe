//! Deliberate mistakes, so that tests can show that they would notice them.
//!
//! A mutant is a single wrong decision at the place where the right one is made. Builds other than
//! tests, and those with `--cfg outrider_mutants` (the simulator's mutant runs), have none: the
//! question is answered no at compile time.

macro_rules! mutants {
    ($( $(#[$doc:meta])* $mutant:ident, )*) => {
        /// A mistake.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Mutant { $( $(#[$doc])* $mutant, )* }

        impl Mutant {
            /// All of them.
            pub const ALL: &[Mutant] = &[ $( Mutant::$mutant, )* ];
        }
    };
}

mutants! {
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
    /// What earlier leaders may still write is free after a while, proven gone or not.
    QuarantineEndsByTime,
    /// Merging leaves the oldest run of level 0 behind.
    LevelZeroOutOfOrder,
    /// A merge's space is recorded nowhere.
    MergeSpaceUnowned,
    /// The space of a client's compaction is recorded nowhere.
    CompactionSpaceUnowned,
    /// What is being merged is chosen again.
    CompactionBusyIgnored,
    /// What a merge has read is freed, and the manifest goes on naming it.
    InputsFreedEarly,
    /// What a transaction has used stays in its client's loans.
    LoansNotShrunk,
    /// A first greeting that is repeated makes another client.
    GreetingWithoutNonce,
    /// Who has not come back to a new server is not asked about nameless inodes.
    OrphansBeforeRecovery,
    /// Locks are granted although recorded clients have not reported what they hold.
    GrantInRecovery,
    /// A lock is granted as soon as what is in its way is being revoked.
    GrantBeforeRelease,
    /// What an evicted client was lent is free for others at once.
    EvictionFreesLoans,
    /// A leader says that the claims are clear without having read them.
    AnswerBeforeReread,
    /// A voter counts a leader's silence from when it began to follow, whatever it saw since.
    EvictByOwnClock,
    /// A leader counts its lease from the completion of a renewal.
    LeaseFromCompletion,
    /// A voter takes office without having looked for other claims after its own.
    ClaimWithoutLook,
    /// A voter takes office on a claim that has stood for longer than a lease.
    ClaimWithoutLease,
    /// What is read under an old root enters the item cache.
    FillUnderOldRoot,
    /// Items that were written without having been read stay in the cache after their commit.
    WriteOnlyItemsKept,
    /// A block is opened whatever its checksum.
    ChecksumSkipped,
    /// A mount tells the server of a transaction whose blocks it has not flushed.
    TransactionBeforeFlush,
    /// A mount goes on answering when its lease is over.
    AnswerAfterLease,
    /// A mount takes the end of its lease for its eviction.
    EvictionByLease,
    /// A mount welcomed by the leader of a newer term goes on with the one of an older.
    GrantOfOldTerm,
    /// What waits for the dropping of caches waits for the lock that is being given back.
    ParkedInRevoke,
    /// A server that leads again goes on from what it had taken for a merge in its last term.
    StaleTermMemory,
    /// A number is called stable although changes made during a commit bear it.
    StableTooEarly,
    /// A numbered request that is sent again is carried out again.
    NumberedTwice,
    /// A transaction or a loan is answered before its commit is durable.
    AnswerBeforeDurable,
    /// What a client gives back stays among its loans.
    ReturnedStaysLent,
    /// Runs of level 0 stand in the order in which their clients opened the transactions.
    RunsInClientsOrder,
    /// Of two versions in level 0 a merge keeps the older one.
    OlderVersionKept,
    /// A merge drops deletions although a deeper level has what they hide.
    DeletionsDroppedEarly,
    /// A block of the last durable tree is written again by the commit that has freed it.
    FreedWrittenAtOnce,
    /// Both roots of a pair stand in the same block.
    RootInPlace,
    /// Any client that comes later proves that an evicted one is gone.
    GoneWithoutProof,
    /// A fence that failed counts as proof that its client is gone.
    FenceFailureIsProof,
    /// A new leader counts the silence of clients from before it listened.
    EvictionWithoutWindow,
    /// An answer is kept until it was sent, and not until it was acknowledged.
    AnswerKeptTillSent,
    /// Of what a client reports to a new leader only the first batch counts.
    FirstBatchOnly,
    /// A lock is given back although changes under it are not durable.
    ReleaseBeforeDurable,
    /// What a reader has had pinned is used again as if it were not.
    PinIgnored,
    /// A leader goes on from the newest root it finds, whatever was confirmed.
    LostRootIgnored,
    /// A mount that leaves believes a leader from before its own welcome that nobody was recorded.
    VacancyBeforeWelcome,
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

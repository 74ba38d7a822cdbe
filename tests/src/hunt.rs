//! What notices which mistake: the simulator's proof that it would see what it looks for.
//!
//! Most mistakes are noticed twice: by a seed of whole clusters, in which chance brings about what
//! makes the mistake matter, and by a story, in which that is said. A seed is looked for from the
//! first one on: a change that shifts what chance does moves the finding, and doesn't end it. These
//! must be there, as long as what they are about is:
//!
//! | mistake | its name |
//! |---|---|
//! | two root blocks for all leaders | [`Mutant::SharedRoots`] |
//! | an answer before the claims are read again | [`Mutant::AnswerBeforeReread`] |
//! | no reserve for the next commit | [`Mutant::NoCommitReserve`] |
//! | a first commit outside its round's reserve | [`Mutant::TakeoverOutsideReserve`] |
//! | loans that don't shrink | [`Mutant::LoansNotShrunk`] |
//! | eviction by a mount's own clock | [`Mutant::EvictionByLease`] |
//! | quarantine that ends by time | [`Mutant::QuarantineEndsByTime`] |
//! | a fill under an old root | [`Mutant::FillUnderOldRoot`] |
//! | level 0 out of order | [`Mutant::LevelZeroOutOfOrder`], [`Mutant::RunsInClientsOrder`] |
//! | items kept that were written blindly | [`Mutant::WriteOnlyItemsKept`] |
//! | a greeting without its nonce | [`Mutant::GreetingWithoutNonce`] |
//! | orphans looked for before recovery has ended | [`Mutant::OrphansBeforeRecovery`] |
//! | parking during a revoke | [`Mutant::ParkedInRevoke`] |
//! | an answer from memory after the lease | [`Mutant::AnswerAfterLease`] |
//! | memory of a term that is over | [`Mutant::StaleTermMemory`] |
//! | a grant taken from an older term | [`Mutant::GrantOfOldTerm`] |
//! | pages cached under a read lock, the file open for writing | none: no pages are cached |
//!
//! These are not noticed by seeds of clusters:
//!
//! * [`Mutant::GrantOfOldTerm`]: mounts go to the leader of the newest term that the voters' blocks
//!   show, and these are never seen to go back. So a mount that has greeted a newer term comes to
//!   no older one; and if it did, the session that it has begun anew would not be taken up there.
//!   The term is looked at by two more layers, which here have nothing left to do.
//! * [`Mutant::FillUnderOldRoot`]: whoever wants an item holds its lock until the fill has brought
//!   it, so that nobody else changes anything meanwhile. What is left is a mount that changes,
//!   commits and forgets for want of room what the fill of a neighbour is about to bring, which the
//!   small volumes of the simulator don't come to. Random histories of the cache, which its tests
//!   hold against a model, do.
//! * [`Mutant::WriteOnlyItemsKept`]: what is written without having been read, the entries of
//!   indices, no operation of a mount reads through its cache.
//! * [`Mutant::ParkedInRevoke`]: what a kernel asks while it is being told to forget. No mount lets
//!   its kernel remember anything yet, so nothing is asked that way.
//! * [`Mutant::ClaimWithoutLease`]: what comes of a claim that is long over is harmless: it has its
//!   own round's blocks, its commits see the later claims, and its clients have greeted a later
//!   term. Random elections show it.
//! * [`Mutant::LeaseFromCompletion`]: two act at once if a leader hears late that it has renewed,
//!   and its next renewals are late too, all within a lease. Hundreds of seeds don't come to that;
//!   random elections do.
//! * [`Mutant::ChecksumSkipped`]: where whole clusters are simulated no block is damaged. The tests
//!   of damage notice it.
//! * [`Mutant::LostRootIgnored`]: no root rots there.
//! * [`Mutant::VacancyBeforeWelcome`]: there, mounts come and go while servers go on. A mount that
//!   is served after an earlier leader has stopped alone shows it.
//! * [`Mutant::TransactionBeforeFlush`]: a cut of power at every write of small workloads shows it.
//!
//! # Invariants
//!
//! * Every mistake there is has its line here.
//!
//! What this module deliberately doesn't know: how a mistake is made. That is said where the right
//! decision is taken, in the core.

use crate::scenario::stories::{self, Story};
use crate::scenario::{Scenario, mount, readers, register, server, storm};
use outrider_core::mutant::Mutant;

/// Where the story of a mistake is told.
#[derive(Debug, Clone, Copy)]
pub enum Told {
    /// Of a cluster.
    Story(Story),
    /// In this test of the core, which in two cases lets chance find an election that shows it.
    Core(&'static str),
    /// In this test of this package, in a build that can make mistakes.
    Test(&'static str),
}

/// Where a mistake is looked for.
pub struct Hunt {
    /// The scenario that notices it, and within how many seeds.
    pub seeds: Option<(&'static Scenario, u64)>,
    /// The story that does.
    pub told: Told,
}

/// Where this mistake is looked for.
#[must_use]
pub fn hunt(mutant: Mutant) -> Hunt {
    let server = |seeds| Some((&server::SCENARIO, seeds));
    let storm = |seeds| Some((&storm::SCENARIO, seeds));
    let register = |seeds| Some((&register::SCENARIO, seeds));
    let (seeds, told) = match mutant {
        Mutant::SharedRoots => (server(200), Told::Story(stories::LEADER_STOPPED_AT_ROOT)),
        Mutant::RootBeforeFlush
        | Mutant::NoCommitReserve
        | Mutant::LevelZeroOutOfOrder
        | Mutant::CompactionSpaceUnowned
        | Mutant::InputsFreedEarly
        | Mutant::LoansNotShrunk
        | Mutant::GrantBeforeRelease
        | Mutant::ReturnedStaysLent
        | Mutant::RunsInClientsOrder
        | Mutant::OlderVersionKept
        | Mutant::DeletionsDroppedEarly
        | Mutant::FreedWrittenAtOnce
        | Mutant::EvictByOwnClock => (server(20), Told::Story(stories::FAIR_WEATHER)),
        Mutant::MergeSpaceUnowned => (server(20), Told::Story(stories::MOUNTS_MERGE_NOTHING)),
        Mutant::PinIgnored => {
            (Some((&readers::SCENARIO, 20)), Told::Story(stories::READ_WHILE_WRITTEN))
        }
        Mutant::CompactionBusyIgnored => (server(20), Told::Story(stories::MOUNT_STOPPED_MERGING)),
        Mutant::TakeoverOutsideReserve
        | Mutant::ReserveNotQuarantined
        | Mutant::QuarantineEndsByTime => {
            (server(100), Told::Story(stories::LEADER_STOPPED_AT_BLOCK))
        }
        Mutant::StaleTermMemory => (server(100), Told::Story(stories::LEADER_STOPPED_MERGING)),
        Mutant::GreetingWithoutNonce => (server(100), Told::Story(stories::WELCOMES_LOST)),
        Mutant::OrphansBeforeRecovery
        | Mutant::GrantInRecovery
        | Mutant::FirstBatchOnly
        | Mutant::EvictionWithoutWindow => (server(200), Told::Story(stories::LEADER_CRASHES)),
        Mutant::RootInPlace => (server(100), Told::Story(stories::LEADER_CRASHES_AT_ROOT)),
        Mutant::NumberedTwice => (server(200), Told::Story(stories::ANSWERS_LOST)),
        Mutant::AnswerKeptTillSent => (server(50), Told::Story(stories::CONNECTION_LOST)),
        Mutant::AnswerBeforeDurable => (server(50), Told::Story(stories::LEADER_STOPPED_AT_BLOCK)),
        Mutant::EvictionFreesLoans | Mutant::GoneWithoutProof => {
            (server(50), Told::Story(stories::MOUNT_STOPPED))
        }
        Mutant::FenceFailureIsProof => (storm(20), Told::Story(stories::MOUNT_NOT_FENCED)),
        Mutant::ReleaseBeforeDurable => (register(20), Told::Story(stories::FAIR_READING)),
        Mutant::AnswerAfterLease => (register(600), Told::Story(stories::MOUNT_CUT_OFF)),
        Mutant::EvictionByLease => (register(20), Told::Story(stories::MOUNT_CUT_OFF_BRIEFLY)),
        Mutant::StableTooEarly => {
            (Some((&mount::SCENARIO, 40)), Told::Story(stories::CHANGE_DURING_COMMIT))
        }
        Mutant::AnswerBeforeReread => (
            server(250),
            Told::Core("a_leader_that_answers_before_it_rereads_the_claims_loses_a_commit"),
        ),
        Mutant::ClaimWithoutLook => (storm(600), Told::Core("each_mutant_is_caught_by_some_seed")),
        Mutant::LeaseFromCompletion => (None, Told::Core("each_mutant_is_caught_by_some_seed")),
        Mutant::ClaimWithoutLease => {
            (None, Told::Core("a_claim_is_a_lease_and_nothing_comes_of_it_after_its_end"))
        }
        Mutant::GrantOfOldTerm => {
            (None, Told::Core("a_grant_of_an_older_term_would_give_a_lock_to_two"))
        }
        Mutant::FillUnderOldRoot => (None, Told::Core("letting_old_roots_in_would_resurrect_it")),
        Mutant::WriteOnlyItemsKept => {
            (None, Told::Core("keeping_blind_items_would_show_what_others_have_deleted"))
        }
        Mutant::ParkedInRevoke => {
            (None, Told::Core("parking_what_a_notification_waits_for_would_never_end"))
        }
        Mutant::LostRootIgnored => {
            (None, Told::Core("a_leader_that_ignores_a_lost_root_would_go_on_from_the_one_before"))
        }
        Mutant::VacancyBeforeWelcome => {
            (None, Told::Core("who_believes_an_earlier_vacancy_would_leave_its_record_behind"))
        }
        Mutant::ChecksumSkipped => (None, Told::Test("a_skipped_checksum_is_noticed")),
        Mutant::TransactionBeforeFlush => (None, Told::Test("forgotten_flushes_are_noticed")),
    };
    Hunt { seeds, told }
}

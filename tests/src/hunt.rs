//! What notices which mistake: the simulator's proof that it would see what it looks for.
//!
//! Most mistakes are noticed twice: by a seed of whole clusters, in which chance brings about what
//! makes the mistake matter, and by a story, in which that is said. These are not noticed by seeds:
//!
//! * [`Mutant::FillUnderOldRoot`]: whoever wants an item holds its lock until the fill has brought
//!   it, so that nobody else changes anything meanwhile. What is left is a mount that changes,
//!   commits and forgets for want of room what the fill of a neighbour is about to bring, which the
//!   small volumes of the simulator don't come to.
//! * [`Mutant::WriteOnlyItemsKept`]: what is written without having been read, the entries of
//!   indices, no operation of a mount reads through its cache.
//! * [`Mutant::ParkedInRevoke`]: what a kernel asks while it is being told to forget. No mount lets
//!   its kernel remember anything yet, so nothing is asked that way.
//! * [`Mutant::ClaimWithoutLease`]: what comes of a claim that is long over is harmless: it has its
//!   own round's blocks, its commits see the later claims, and its clients have greeted a later
//!   term.
//! * [`Mutant::LeaseFromCompletion`]: two act at once if a leader hears late that it has renewed,
//!   and its next renewals are late too, all within a lease. Hundreds of seeds don't come to that.
//! * [`Mutant::ChecksumSkipped`]: where whole clusters are simulated no block is damaged. The tests
//!   of damage notice it.
//! * [`Mutant::TransactionBeforeFlush`]: a cut of power at every write of small workloads shows it.
//!
//! A mistake that can't be made yet has no line: pages that are cached under a read lock although
//! the file is open for writing, as no pages are cached.
//!
//! # Invariants
//!
//! * Every mistake there is has its line here.
//!
//! What this module deliberately doesn't know: how a mistake is made. That is said where the right
//! decision is taken, in the core.

use crate::scenario::stories::{self, Story};
use crate::scenario::{Scenario, mount, register, server};
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
    /// It has none: seeds alone notice it.
    Nowhere,
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
        | Mutant::EvictByOwnClock => (server(20), Told::Story(stories::FAIR_WEATHER)),
        Mutant::MergeSpaceUnowned => (server(20), Told::Story(stories::MOUNTS_MERGE_NOTHING)),
        Mutant::CompactionBusyIgnored => (server(20), Told::Story(stories::MOUNT_STOPPED_MERGING)),
        Mutant::TakeoverOutsideReserve
        | Mutant::ReserveNotQuarantined
        | Mutant::QuarantineEndsByTime
        | Mutant::StaleTermMemory => (server(100), Told::Story(stories::LEADER_STOPPED_AT_BLOCK)),
        Mutant::GreetingWithoutNonce => (server(100), Told::Story(stories::WELCOMES_LOST)),
        Mutant::OrphansBeforeRecovery | Mutant::GrantInRecovery => {
            (server(50), Told::Story(stories::LEADER_CRASHES))
        }
        Mutant::EvictionFreesLoans => (server(20), Told::Story(stories::MOUNT_STOPPED)),
        Mutant::AnswerAfterLease => (register(100), Told::Story(stories::MOUNT_CUT_OFF)),
        Mutant::EvictionByLease => (register(20), Told::Story(stories::MOUNT_CUT_OFF_BRIEFLY)),
        Mutant::StableTooEarly => (Some((&mount::SCENARIO, 40)), Told::Nowhere),
        Mutant::AnswerBeforeReread => (
            server(250),
            Told::Core("a_leader_that_answers_before_it_rereads_the_claims_loses_a_commit"),
        ),
        Mutant::ClaimWithoutLook => (server(400), Told::Core("each_mutant_is_caught_by_some_seed")),
        Mutant::LeaseFromCompletion => (None, Told::Core("each_mutant_is_caught_by_some_seed")),
        Mutant::ClaimWithoutLease => {
            (None, Told::Core("a_claim_is_a_lease_and_nothing_comes_of_it_after_its_end"))
        }
        Mutant::GrantOfOldTerm => {
            (server(250), Told::Core("a_grant_of_an_older_term_would_give_a_lock_to_two"))
        }
        Mutant::FillUnderOldRoot => (None, Told::Core("letting_old_roots_in_would_resurrect_it")),
        Mutant::WriteOnlyItemsKept => {
            (None, Told::Core("keeping_blind_items_would_show_what_others_have_deleted"))
        }
        Mutant::ParkedInRevoke => {
            (None, Told::Core("parking_what_a_notification_waits_for_would_never_end"))
        }
        Mutant::ChecksumSkipped => (None, Told::Test("a_skipped_checksum_is_noticed")),
        Mutant::TransactionBeforeFlush => (None, Told::Test("forgotten_flushes_are_noticed")),
    };
    Hunt { seeds, told }
}

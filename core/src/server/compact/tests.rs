//! Who waits for what clients merge, and how long.

use super::{HOLD_MAX, Job, PATIENCE, Planner};
use crate::btree::rig::carve;
use crate::format::ClientId;
use crate::format::records::ManifestEntry;
use crate::format::root::LEVELS;
use crate::lsm::choose::{Choice, Policy};
use crate::lsm::manifest::Run;
use crate::server::limits::ServerLimits;
use core::time::Duration;
use outrider_hal::Instant;
use zerocopy::FromZeros;

/// Runs of level 0 that are too many for transactions to go on.
const CROWD: u64 = 8;

fn planner() -> Planner<'static> {
    let merging = Policy { level_0_runs: 4, ..ServerLimits::for_clients(1).merging };
    let limits = ServerLimits { merging, level_0_max: CROWD, ..ServerLimits::for_clients(1) };
    carve(|arena| Planner::carve(arena, &limits))
}

/// So many runs of level 0, into the next.
fn choice(runs: u64) -> Choice {
    let run = |order| Run { level: 0, order, entry: ManifestEntry::new_zeroed() };
    let uppers = (0..runs).map(run).collect();
    let lowers = heapless::Vec::new();
    Choice { uppers, lowers, target: 1, tail_after: None, drop_tombstones: false }
}

fn level_0(runs: u64) -> [u64; LEVELS] {
    let mut level_runs = [0; LEVELS];
    level_runs[0] = runs;
    level_runs
}

#[test]
fn nobody_waits_long_for_a_client_that_says_nothing() {
    let planner = planner();
    let asked_at = Instant(0).plus(Duration::from_secs(100));
    assert!(planner.is_pressed(&level_0(CROWD), false), "something is about to be merged");
    assert!(!planner.is_pressed(&level_0(CROWD - 1), true));
    let choice = Some(choice(CROWD));
    planner.jobs[0] = Job { client: ClientId(1), id: 1, choice, asked_at, ..Job::NONE };
    assert!(planner.is_pressed(&level_0(CROWD), false));
    assert_eq!(planner.poll_timeout(), Some(asked_at.plus(HOLD_MAX)));
    planner.jobs[0].is_slow = true;
    assert!(!planner.is_pressed(&level_0(CROWD), false), "all there is would be merged with it");
    assert!(planner.is_pressed(&level_0(CROWD), true), "the server gets on with something else");
    assert!(planner.is_pressed(&level_0(2 * CROWD), false), "there is something else to merge");
    assert_eq!(planner.poll_timeout(), Some(asked_at.plus(PATIENCE)));
}

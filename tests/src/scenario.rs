//! Scenarios: what runs on the machines, what goes wrong, and who looks.
//!
//! # Invariants
//!
//! * A scenario adds nothing to a run that isn't a function of the seed.
//! * Its promise is what its nodes are built to survive, and every fault of it is demanded: over
//!   enough seeds each must have happened.

mod caller;
pub mod counter;
pub mod crowd;
pub mod mount;
pub mod outage;
pub mod readers;
pub mod register;
pub mod scrub;
pub mod server;
pub mod stories;
pub mod storm;

use crate::check::Violation;
use crate::faults::{Coverage, Fault, FaultSet};
use crate::world::World;
use std::time::Duration;

/// What is simulated.
pub struct Scenario {
    /// What it is called.
    pub name: &'static str,
    /// The faults each of which must have happened over enough seeds.
    pub demands: fn() -> FaultSet,
    /// What must have been done over enough seeds, of what a run's report counts.
    pub demanded_work: &'static [&'static str],
    /// What a proof counts, and how much of it there is to be.
    pub goals: &'static [(&'static str, u64)],
    /// How often each of these faults must have happened in a proof, where that is counted too.
    pub fault_goal: Option<u64>,
    /// Makes the world of a seed.
    pub world: fn(u64) -> World,
    /// How long faults go on.
    pub faulty: Duration,
    /// How long after that everything must have settled.
    pub settles_within: Duration,
}

/// Every scenario.
pub const ALL: &[Scenario] = &[
    counter::SCENARIO,
    scrub::SCENARIO,
    server::SCENARIO,
    storm::SCENARIO,
    readers::SCENARIO,
    mount::SCENARIO,
    register::SCENARIO,
];

/// What came of a run.
#[derive(Debug, Clone)]
pub struct Report {
    /// The hash of everything observable.
    pub hash: u64,
    /// What was violated, if anything.
    pub violation: Option<Violation>,
    /// What went wrong how often.
    pub coverage: Coverage,
    /// What was done.
    pub work: Vec<(&'static str, u64)>,
}

impl Scenario {
    /// The scenario of this name.
    #[must_use]
    pub fn find(name: &str) -> Option<&'static Scenario> {
        ALL.iter().find(|scenario| scenario.name == name)
    }

    /// All that a proof counts, and how much of it there is to be.
    pub fn all_goals(&self) -> impl Iterator<Item = (String, u64)> {
        let demanded = (self.demands)();
        let faults = self.fault_goal.into_iter().flat_map(move |goal| {
            let faults = Fault::ALL.iter().filter(move |fault| demanded.has(**fault));
            faults.map(move |fault| (format!("{fault:?}"), goal))
        });
        let work = self.goals.iter().map(|(what, count)| ((*what).to_owned(), *count));
        work.chain(faults)
    }

    /// Runs a world of this scenario: faults first, then none until it has settled.
    pub fn run(&self, world: &mut World) -> Report {
        let result = world.run(self.faulty).and_then(|()| world.settle(self.settles_within));
        Report {
            hash: world.trace().hash(),
            violation: result.err(),
            coverage: world.coverage().clone(),
            work: world.work_report(),
        }
    }
}

//! What was detected was injected: without damage, nothing is found damaged.

use crate::check::Checker;
use crate::faults::Fault;
use crate::scenario::scrub::{DAMAGE, GOAL, Scrubber};
use crate::trace::HostId;
use crate::world::World;
use std::collections::BTreeMap;

/// The checker of the scrubbers.
#[derive(Debug, Default)]
pub struct Scrubs {
    tallies: BTreeMap<(HostId, u32), (u64, u64, u64)>,
}

impl Scrubs {
    fn sum(&self, part: impl Fn(&(u64, u64, u64)) -> u64) -> u64 {
        self.tallies.values().map(part).sum()
    }
}

impl Checker for Scrubs {
    fn name(&self) -> &'static str {
        "scrubs"
    }

    fn after_step(&mut self, world: &World, host: HostId) -> Result<(), String> {
        let Some(node) = world.guest::<Scrubber>(host) else { return Ok(()) };
        self.tallies.insert((host, world.boots(host)), node.tally());
        let injected: u64 = DAMAGE.iter().map(|fault| world.coverage().count(*fault)).sum();
        let (detected, errors) = (self.sum(|tally| tally.1), self.sum(|tally| tally.2));
        if detected > 0 && injected == 0 {
            return Err(format!("{host} found damage that nobody has done"));
        }
        let failing = [Fault::DiskError, Fault::DiskBadBlock];
        if errors > 0 && failing.iter().all(|fault| world.coverage().count(*fault) == 0) {
            return Err(format!("a request of {host} failed for no reason"));
        }
        Ok(())
    }

    fn unsettled(&self, world: &World) -> Option<String> {
        world.hosts().find_map(|host| {
            let done = world.guest::<Scrubber>(host).map_or(0, Scrubber::done);
            (done < GOAL).then(|| format!("{host} has done {done} of {GOAL}"))
        })
    }

    fn work(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("good reads", self.sum(|tally| tally.0)),
            ("damage detected", self.sum(|tally| tally.1)),
            ("requests failed", self.sum(|tally| tally.2)),
        ]
    }
}

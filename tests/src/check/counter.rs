//! Announced counts are durable, known counts were announced, and all come to the goal.

use crate::check::Checker;
use crate::scenario::counter::{Counter, GOAL};
use crate::trace::HostId;
use crate::world::World;
use std::collections::BTreeMap;

/// The checker of the replicated counter.
#[derive(Debug, Default)]
pub struct Counters {
    announced: BTreeMap<HostId, u64>,
    counted: u64,
    garbled: BTreeMap<(HostId, u32), u64>,
}

impl Counters {
    /// A checker that has seen nothing yet.
    #[must_use]
    pub fn new() -> Counters {
        Counters::default()
    }
}

impl Checker for Counters {
    fn name(&self) -> &'static str {
        "counters"
    }

    fn after_step(&mut self, world: &World, host: HostId) -> Result<(), String> {
        let Some(node) = world.guest::<Counter>(host) else { return Ok(()) };
        self.garbled.insert((host, world.boots(host)), node.garbled());
        if let Some(broken) = node.broken() {
            return Err(format!("{host}: {broken}"));
        }
        let Some(known) = node.known() else { return Ok(()) };
        for (index, &count) in known.iter().enumerate() {
            let of = HostId(index as u16);
            let announced = self.announced.entry(of).or_default();
            if of == host {
                if count < *announced {
                    return Err(format!("{host} is back at {count}, had announced {announced}"));
                }
                self.counted += count - *announced;
                *announced = count;
            } else if count > *announced {
                return Err(format!("{host} knows {count} of {of}, which announced {announced}"));
            }
        }
        Ok(())
    }

    fn unsettled(&self, world: &World) -> Option<String> {
        world.hosts().find_map(|host| {
            let known = world.guest::<Counter>(host).and_then(Counter::known);
            let there = known.is_some_and(|known| known.iter().all(|count| *count == GOAL));
            (!there).then(|| format!("{host} knows {known:?}, the goal is {GOAL}"))
        })
    }

    fn work(&self) -> Vec<(&'static str, u64)> {
        vec![("counts announced", self.counted), ("frames garbled", self.garbled.values().sum())]
    }
}

//! The servers and mounts of the scenario `server`, and readers of older roots beside them.
//!
//! # Invariants
//!
//! * All that holds in `server` holds here: a pin costs nobody a block for good, nor a request its
//!   answer.
//!
//! What this module deliberately doesn't know: what readers may find. That is the checker's.

use crate::check::readers::{LOST, Log, Readers, WHOLE};
use crate::faults::FaultSet;
use crate::scenario::Scenario;
use crate::scenario::server::reading::Reading;
use crate::scenario::server::{self, volume};
use crate::time::MINUTE;
use crate::world::World;
use std::cell::RefCell;
use std::rc::Rc;

/// Readers; they come after the mounts.
const READERS: u16 = 2;

/// The scenario.
pub const SCENARIO: Scenario = Scenario {
    name: "readers",
    demands: FaultSet::harmless,
    demanded_work: &[WHOLE, LOST],
    goals: &[],
    fault_goal: None,
    world,
    faulty: MINUTE,
    settles_within: MINUTE.saturating_mul(4),
};

fn world(seed: u64) -> World {
    populate((server::SCENARIO.world)(seed)).0
}

/// The same machines; nothing goes wrong by itself. And what readers find.
#[must_use]
pub fn quiet(seed: u64) -> (World, Rc<RefCell<Log>>) {
    populate(server::quiet(seed, &[]))
}

fn populate(mut world: World) -> (World, Rc<RefCell<Log>>) {
    let log = Rc::new(RefCell::new(Log::default()));
    for _ in 0..READERS {
        world.add_host("reader", Reading { volume: volume(), log: Rc::clone(&log) });
    }
    world.add_checker(Readers::new(Rc::clone(&log)));
    (world, log)
}

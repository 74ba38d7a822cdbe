//! Checkers: what must be true of a cluster, looked at from outside, one file for each.
//!
//! # Invariants
//!
//! * A checker sees everything and changes nothing.
//! * A checker is asked after every step of a node, whenever faults have stopped and all is
//!   settled, and whether its part of the cluster is settled. That question is how hangs are found:
//!   a cluster must settle within a bound once faults have stopped.

pub mod compaction;
pub mod counter;
pub mod feed;
pub mod leaders;
pub mod readers;
pub mod scrub;
pub mod server;

use crate::time::Time;
use crate::trace::HostId;
use crate::world::World;
use std::fmt;

/// Something that must not have happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// When it was noticed.
    pub at: Time,
    /// Who noticed.
    pub checker: &'static str,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}: {}", self.checker, self.at, self.what)
    }
}

/// Looks for one kind of violation.
pub trait Checker {
    /// What it is called in reports.
    fn name(&self) -> &'static str;

    /// Looks at the world after a node was stepped.
    fn after_step(&mut self, _world: &World, _host: HostId) -> Result<(), String> {
        Ok(())
    }

    /// Looks at the world after faults have stopped and everything has settled.
    fn at_rest(&mut self, _world: &World) -> Result<(), String> {
        Ok(())
    }

    /// What is still to be done, if anything. A cluster in which something is left to be done long
    /// after faults have stopped hangs.
    fn unsettled(&self, _world: &World) -> Option<String> {
        None
    }

    /// Whether nothing is still to be done: the same question, for who asks it often.
    fn is_settled(&self, world: &World) -> bool {
        self.unsettled(world).is_none()
    }

    /// What was done, to be summed over runs: runs are counted in work.
    fn work(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

//! What readers of older roots find: all that a root leads to, as long as their pin holds.
//!
//! # Invariants
//!
//! * A reader whose pin has held finds nothing else than what was there when its root was new.
//! * Readers come to an end, with a pin or without: once faults have stopped each does again.
//!
//! What this module deliberately doesn't know: how they read.

use crate::check::Checker;
use crate::trace::HostId;
use crate::world::World;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Roots read wholly while they were pinned, as a demand names them.
pub const WHOLE: &str = "pinned roots read";
/// Pins that were lost.
pub const LOST: &str = "pins lost";
/// Readings of which a later term made nothing.
const SUPERSEDED: &str = "readings of terms that were over";

/// What readers have found.
#[derive(Debug, Default)]
pub struct Log {
    /// Roots read wholly.
    pub whole: u64,
    /// Blocks read.
    pub blocks: u64,
    /// Pins refused.
    pub refused: u64,
    /// Pins lost.
    pub lost: u64,
    /// Readings of which a later term made nothing.
    pub superseded: u64,
    wrong: Option<String>,
}

impl Log {
    /// This must not have been.
    pub fn demand(&mut self, what: String) {
        self.wrong.get_or_insert(what);
    }

    fn ended(&self) -> u64 {
        self.whole + self.refused + self.lost + self.superseded
    }
}

/// Looks at what they find.
pub struct Readers {
    log: Rc<RefCell<Log>>,
    /// Readings that had ended when faults had stopped.
    calm: Cell<Option<u64>>,
}

impl Readers {
    /// A checker of what these readers find.
    #[must_use]
    pub fn new(log: Rc<RefCell<Log>>) -> Readers {
        Readers { log, calm: Cell::new(None) }
    }
}

impl Checker for Readers {
    fn name(&self) -> &'static str {
        "readers"
    }

    fn after_step(&mut self, _: &World, _: HostId) -> Result<(), String> {
        self.log.borrow().wrong.clone().map_or(Ok(()), Err)
    }

    fn unsettled(&self, _: &World) -> Option<String> {
        let ended = self.log.borrow().ended();
        let calm = self.calm.get().unwrap_or(ended);
        self.calm.set(Some(calm));
        (ended < calm + 2).then(|| "readers come to no end".to_owned())
    }

    fn work(&self) -> Vec<(&'static str, u64)> {
        let log = self.log.borrow();
        vec![
            (WHOLE, log.whole),
            ("their blocks", log.blocks),
            ("pins refused", log.refused),
            (LOST, log.lost),
            (SUPERSEDED, log.superseded),
        ]
    }
}

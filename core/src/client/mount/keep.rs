//! Gives locks back: what is dirty under them is made durable, and what is cached is dropped.
//!
//! Nothing is cached in the kernel yet: names, attributes and pages are told with a time-out of
//! nothing. When that changes, dropping begins with the kernel, and what is dropped here follows
//! when the kernel has confirmed.
//!
//! What this module deliberately doesn't know: when a lock is to be given back.

use super::{Mount, lock_range};
use crate::lock::Mode;
use crate::lock::client::Action;
use crate::node::More;
use outrider_hal::Instant;

/// Items dropped in a step.
const DROPS_PER_STEP: u32 = 256;

impl Mount<'_> {
    /// Goes on giving locks back, one dropping at a time.
    pub(super) fn step_locks(&mut self, now: Instant) -> More {
        self.locks.handle_timeout(now);
        loop {
            if let Some((name, to)) = self.dropping {
                if to == Mode::Null
                    && self.items.invalidate(&lock_range(&name), DROPS_PER_STEP) == More::Yes
                {
                    return More::Yes;
                }
                self.dropping = None;
                self.counters.revokes += 1;
                self.locks.caches_dropped(now, &name);
            }
            match self.locks.poll_action() {
                None => return More::No,
                Some(Action::Commit { name: _ }) => self.due.for_lock = true,
                Some(Action::DropCaches { name, to, pass: _ }) => self.dropping = Some((name, to)),
            }
        }
    }
}

//! A reader-writer semaphore as the kernel's `rwsem`: in the order of coming.
//!
//! # Invariants
//!
//! * Who waits is let in in the order of coming; readers that stand behind a waiting writer wait
//!   with it, also while other readers hold it.
//!
//! What this module deliberately doesn't know: what it protects.

use std::collections::VecDeque;

/// How a semaphore is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// With other readers.
    Shared,
    /// Alone.
    Exclusive,
}

/// A semaphore.
#[derive(Debug, Default)]
pub struct Sema {
    readers: u32,
    writer: bool,
    queue: VecDeque<(u64, Hold)>,
}

impl Sema {
    /// Takes a place in the line; `ticket` is nobody else's.
    pub fn wait(&mut self, ticket: u64, hold: Hold) {
        self.queue.push_back((ticket, hold));
    }

    /// Lets the holder of this ticket in, if it is its turn.
    pub fn enter(&mut self, ticket: u64) -> bool {
        let Some((_, hold)) = self.queue.front().filter(|(first, _)| *first == ticket) else {
            return false;
        };
        let free = !self.writer && (*hold == Hold::Shared || self.readers == 0);
        if free {
            match hold {
                Hold::Shared => self.readers += 1,
                Hold::Exclusive => self.writer = true,
            }
            self.queue.pop_front();
        }
        free
    }

    /// Lets go of it.
    pub fn leave(&mut self, hold: Hold) {
        match hold {
            Hold::Shared => self.readers -= 1,
            Hold::Exclusive => self.writer = false,
        }
    }

    /// Whether a reader that doesn't wait would be let in.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.writer && self.queue.is_empty()
    }

    /// Whether nobody holds it or waits.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.readers == 0 && !self.writer && self.queue.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::{Hold, Sema};

    #[test]
    fn readers_wait_behind_a_waiting_writer() {
        let mut sema = Sema::default();
        sema.wait(1, Hold::Shared);
        sema.wait(2, Hold::Shared);
        assert!(!sema.enter(2), "1 came first");
        assert!(sema.enter(1) && sema.enter(2));
        assert!(sema.is_open());
        sema.wait(3, Hold::Exclusive);
        assert!(!sema.is_open());
        sema.wait(4, Hold::Shared);
        assert!(!sema.enter(3) && !sema.enter(4));
        sema.leave(Hold::Shared);
        assert!(!sema.enter(3), "there is a reader");
        sema.leave(Hold::Shared);
        assert!(!sema.enter(4) && sema.enter(3) && !sema.enter(4));
        sema.leave(Hold::Exclusive);
        assert!(sema.enter(4));
        sema.leave(Hold::Shared);
        assert!(sema.is_idle());
    }
}

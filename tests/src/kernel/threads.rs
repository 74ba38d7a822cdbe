//! Threads of a simulated kernel: futures that are polled in turn.
//!
//! # Invariants
//!
//! * Threads are polled in the order in which they began, until none gets further. Nothing else
//!   decides who comes first.
//!
//! What this module deliberately doesn't know: what threads do.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Counts what may let a waiting thread go on.
#[derive(Debug, Clone, Default)]
pub struct Moves(Rc<Cell<u64>>);

impl Moves {
    /// Something has happened that a thread may wait for.
    pub fn note(&self) {
        self.0.set(self.0.get() + 1);
    }
}

/// The threads.
#[derive(Default)]
pub struct Threads {
    all: Vec<Pin<Box<dyn Future<Output = ()>>>>,
}

impl Threads {
    /// Begins a thread.
    pub fn spawn(&mut self, thread: impl Future<Output = ()> + 'static) {
        self.all.push(Box::pin(thread));
    }

    /// Lets all go on until each waits for something that has not happened yet, or has ended.
    pub fn run(&mut self, moves: &Moves) {
        let mut context = Context::from_waker(Waker::noop());
        loop {
            let before = moves.0.get();
            self.all.retain_mut(|thread| thread.as_mut().poll(&mut context).is_pending());
            if moves.0.get() == before {
                return;
            }
        }
    }

    /// How many have not ended.
    #[must_use]
    pub fn count(&self) -> usize {
        self.all.len()
    }
}

/// Waits until there is something.
pub async fn until<T>(mut there: impl FnMut() -> Option<T>) -> T {
    poll_fn(|_| there().map_or(Poll::Pending, Poll::Ready)).await
}

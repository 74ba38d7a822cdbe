//! Threads that move file data, so that no other thread waits for the device.
//!
//! # Invariants
//!
//! * A job that was taken ends, and its memory comes back with how it ended, also when the movers
//!   are told to close.
//! * No job begins past the lease, as far as that is known here: those that wait begin when it is
//!   renewed, or fail when it never will be.
//!
//! What this module deliberately doesn't know: who waits for a job.

use super::data::{Bounce, DataDevice};
use super::memory::Piece;
use crate::clock::BootClock;
use crate::fuse::Buffer;
use outrider_core::client::op::{RequestId, Transfer};
use outrider_hal::{Clock, Instant, IoError};
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Data of a request.
#[derive(Debug)]
pub(super) enum Data {
    /// Room for what is read, from the block that holds the first byte on.
    Room(Piece),
    /// What is to be written.
    Bytes(Buffer),
}

/// A transfer to be made.
#[derive(Debug)]
pub(super) struct Job {
    /// For this request.
    pub(super) id: RequestId,
    /// This.
    pub(super) transfer: Transfer,
    /// The request's first byte in the file.
    pub(super) base: u64,
    /// From or to here.
    pub(super) data: Data,
}

/// Whether jobs may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// Until then.
    Until(Instant),
    /// Never again: they fail.
    Ended,
}

#[derive(Debug)]
struct Jobs {
    waiting: VecDeque<Job>,
    leave: Leave,
    closing: bool,
}

impl Jobs {
    /// The next job, and whether it may be done, if it is known already.
    fn next(&mut self) -> Option<(Job, bool)> {
        let may = match self.leave {
            Leave::Until(end) => BootClock.now() < end,
            Leave::Ended => false,
        };
        let ends = may || self.closing || self.leave == Leave::Ended;
        ends.then(|| self.waiting.pop_front()).flatten().map(|job| (job, may))
    }
}

/// The jobs, for threads that [`run`](Movers::run).
#[derive(Debug)]
pub(super) struct Movers {
    device: DataDevice,
    jobs: Mutex<Jobs>,
    work: Condvar,
}

impl Movers {
    pub(super) fn new(device: DataDevice) -> Movers {
        // Who says nothing of a lease has none.
        let leave = Leave::Until(Instant(u64::MAX));
        let jobs = Jobs { waiting: VecDeque::new(), leave, closing: false };
        Movers { device, jobs: Mutex::new(jobs), work: Condvar::new() }
    }

    fn jobs(&self) -> MutexGuard<'_, Jobs> {
        // A thread that panicked here holds no half-made state: each critical section is one push
        // or pop.
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a job.
    pub(super) fn start(&self, job: Job) {
        self.jobs().waiting.push_back(job);
        self.work.notify_one();
    }

    /// Says whether jobs may begin.
    pub(super) fn allow(&self, leave: Leave) {
        let mut jobs = self.jobs();
        if jobs.leave != leave {
            jobs.leave = leave;
            self.work.notify_all();
        }
    }

    /// Lets the threads end when there are no jobs left.
    pub(super) fn close(&self) {
        self.jobs().closing = true;
        self.work.notify_all();
    }

    fn next(&self) -> Option<(Job, bool)> {
        let mut jobs = self.jobs();
        loop {
            if let Some(next) = jobs.next() {
                return Some(next);
            }
            if jobs.closing {
                return None;
            }
            jobs = self.work.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// What each thread does.
    pub(super) fn run(&self, ended: impl Fn(RequestId, Data, Result<(), IoError>)) {
        let mut bounce = Bounce::new();
        while let Some((Job { id, transfer, base, mut data }, may)) = self.next() {
            let result = match &mut data {
                _ if !may => Err(IoError::Device),
                Data::Room(piece) => self.device.read(&transfer.extents, base, piece),
                Data::Bytes(bytes) => {
                    self.device.write(&transfer.extents, base, bytes, &mut bounce)
                }
            };
            ended(id, data, result);
        }
    }
}

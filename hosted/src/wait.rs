//! The one place where the thread that drives a node sleeps: until a socket is ready, another
//! thread rings, or a deadline comes.
//!
//! # Invariants
//!
//! * A ring is never lost: it stays until the sleeper has taken it, so work may be queued first and
//!   the bell rung after.

use outrider_hal::Instant;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use std::io;
use std::sync::Arc;

/// Wakes the thread that drives a node, from any thread.
#[derive(Debug, Clone)]
pub struct Bell(Arc<OwnedFd>);

impl Bell {
    /// A bell nobody has rung.
    pub fn new() -> io::Result<Bell> {
        Ok(Bell(Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?)))
    }

    /// Wakes the sleeper, now or when it next wants to sleep.
    pub fn ring(&self) {
        // Full means that 2^64 - 2 rings are waiting: it will wake.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    fn take(&self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.0, &mut count);
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Sleeps until one of `sources` can be read, the bell has rung, or it is `until` (never, if
/// `None`).
pub fn wait(
    bell: &Bell,
    sources: &[BorrowedFd<'_>],
    now: Instant,
    until: Option<Instant>,
) -> io::Result<()> {
    let timeout = until.map(|until| {
        let left = until.since(now);
        Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
    });
    let mut fds: Vec<PollFd<'_>> =
        sources.iter().map(|source| PollFd::from_borrowed_fd(*source, PollFlags::IN)).collect();
    fds.push(PollFd::new(bell, PollFlags::IN));
    let result = poll(&mut fds, timeout.as_ref());
    if fds.pop().is_some_and(|bell| !bell.revents().is_empty()) {
        bell.take();
    }
    match result {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

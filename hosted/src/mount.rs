//! A mount: what a kernel asks through FUSE goes to a core, what the core says goes back, and file
//! data go between the kernel's memory and the device.
//!
//! ```text
//!   kernel -> readers -> Sink -- [ queue ] -- lend memory, submit, step --> core (under its lock)
//!                                                                            |
//!   kernel <-- reply <-- Sink <----------------- Done ----------------------+
//!                         |   <--------------- AskMember --> /proc ---------+
//!                         +-- movers <-------- Transfer --------------------+
//!                               pread, pwrite, then Transferred
//! ```
//!
//! # Invariants
//!
//! * Who reads requests never waits: a request that finds no free slot in the core, or no memory,
//!   waits in a queue, and nothing but memory and a lock held for microseconds stands between a
//!   request and the core.
//! * What waits in the queue is bounded by the kernel: each request stands for a process that waits
//!   for it, or is one of the background requests whose number was agreed on.
//! * Memory lent to the core is bought at start. Data of a write stay where the kernel put them.
//! * Data are moved outside the core's lock. The core hears of it after the last byte.
//! * Every request is answered once, and its memory is back before that.
//!
//! # Order of locks
//!
//! The queue's, then the core's. All others (what is pending, free memory, jobs of the movers) are
//! held for a push or a pop, with no other taken meanwhile.
//!
//! # What a mount tells of itself
//!
//! Extended attributes of the root, which are in no list and don't reach the core, so that they can
//! be read whatever it waits for: `outrider.pid`, the process to wait for after unmounting, and for
//! user 0 `outrider.counters` and `outrider.statfs` (lines of a name and a value), and
//! `outrider.locks.SKIP` (a line for each lock but the first so many, as many as fit).
//!
//! What is known of inodes by their number is asked by names of extended attributes as well, and
//! answered by the core: see `queries`.
//!
//! What this module deliberately doesn't know: what an operation does, and who drives the core.

mod data;
mod memory;
mod movers;
mod options;
mod queries;
mod report;
mod sink;

pub use data::DataDevice;
pub use memory::Piece;
pub use movers::Leave;
pub use options::{MountOptions, NoServer, OptionError};
pub use queries::{STAT_XATTR, feed_name, path_xattr, walk_xattr};
pub use report::{COUNTERS_XATTR, Facts, LOCKS_XATTR, PID_XATTR, STATFS_XATTR};
pub use sink::Sink;

use crate::node::Handle;
use outrider_core::client::mount::{Counters, Mount, MountState};
use outrider_core::client::op::{Answer, Request, RequestId, Resume};
use outrider_core::lock::client::View;
use outrider_core::node::Node;
use outrider_hal::Instant;

/// What a mount's front-end asks of its core: see [`Mount`], which says what each means.
pub trait Core {
    /// Takes a request, or gives it back.
    #[allow(clippy::result_large_err, reason = "what isn't taken goes back whole")]
    fn submit(
        &mut self,
        now: Instant,
        id: RequestId,
        request: Request<Piece>,
    ) -> Result<(), Request<Piece>>;

    /// The next thing it has to say.
    fn poll_answer(&mut self) -> Option<(RequestId, Answer<Piece>)>;

    /// Says something about a request in flight.
    fn resume(&mut self, now: Instant, id: RequestId, resume: Resume);

    /// Lets it work for a moment.
    fn work(&mut self, now: Instant);

    /// Where it is in its life.
    fn state(&self) -> MountState;

    /// What it has done.
    fn counters(&self) -> Counters;

    /// What it knows of its volume.
    fn facts(&self) -> Facts;

    /// Its locks.
    fn locks(&self) -> Vec<View>;
}

/// Calls into a core, from any thread, one at a time; whoever drives it goes on afterwards.
pub trait Helm: Send + Sync + 'static {
    /// The core.
    type Core: Core;

    /// Calls into the core, with the time. Short: the core stands still meanwhile.
    fn with<R>(&self, act: impl FnOnce(&mut Self::Core, Instant) -> R) -> R;
}

impl Core for Mount<'static> {
    fn submit(
        &mut self,
        now: Instant,
        id: RequestId,
        request: Request<Piece>,
    ) -> Result<(), Request<Piece>> {
        Mount::submit(self, now, id, request)
    }

    fn poll_answer(&mut self) -> Option<(RequestId, Answer<Piece>)> {
        Mount::poll_answer(self)
    }

    fn resume(&mut self, now: Instant, id: RequestId, resume: Resume) {
        Mount::resume(self, now, id, resume);
    }

    fn work(&mut self, now: Instant) {
        // What is left is for the thread that drives it, which hears of every call.
        let _ = self.step(now);
    }

    fn state(&self) -> MountState {
        Mount::state(self)
    }

    fn counters(&self) -> Counters {
        Mount::counters(self)
    }

    fn facts(&self) -> Facts {
        Facts {
            fsid: self.config().volume.fsid(),
            client: self.client(),
            stable: self.stable(),
            root: self.root(),
        }
    }

    fn locks(&self) -> Vec<View> {
        Mount::locks(self).collect()
    }
}

impl Helm for Handle<Mount<'static>> {
    type Core = Mount<'static>;

    fn with<R>(&self, act: impl FnOnce(&mut Mount<'static>, Instant) -> R) -> R {
        Handle::with(self, act)
    }
}

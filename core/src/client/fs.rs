//! The operations of a file system, on items, under cluster locks: what a mount does without asking
//! anybody.
//!
//! A [`Task`] is one [`Op`] at work, or the deletion of an inode that nothing names any more. The
//! mount runs it, again and again from the top, until it is over:
//!
//! ```text
//!              run                        Step::Done
//!   Task ------------> [plan .. apply] ---------------> its locks are given up
//!          ^               |      |
//!          |   Step::Wait  |      |  Step::Transfer, Step::Zero, Step::AskMember
//!          +---------------+      v
//!          ^                   the driver's turn
//!          +-- transferred, Groups::tell --+
//! ```
//!
//! # Invariants
//!
//! * Up to the one place where edits are applied (`changes`) a run changes nothing
//!   but its task. What it has read, it has read in that run, under locks held in that run: a
//!   precondition is never older than the change it allows.
//! * A miss that takes no device read is filled in the middle of a run, under the locks that the
//!   run holds; a few in each run, so that its work is bounded. Any other stops it.
//! * Every change is of bounded size, which [`change_needs`] gives, and leaves the items
//!   consistent: entries with their twins, counters that equal the extents, one index entry for
//!   each inode. What is longer (truncations, deletions) is a sequence of such changes; a flag in
//!   the inode, or the orphan entry, says that it isn't at its end.
//! * Locks are acquired in the order of [`LockName::rank`](crate::lock::LockName::rank). A task
//!   that finds out too late that it needs an earlier one releases those behind it first.
//! * Only a task of several changes can meet another one in the middle. Those (data, size,
//!   deletion) exclude each other by inode, before they take cluster locks; and renames that look
//!   for ancestors exclude each other.
//! * The index entries of an inode move once per transaction: the inode says where they are, and
//!   they are written blindly, under write-only locks.
//! * A block of a file is [`Reserved`](crate::format::item::Mapping::Reserved) from when it is
//!   allocated until its data are on the device. So no crash shows what a block held before.
//! * What a file's last block holds behind the file's end means nothing, and becomes zero on the
//!   device when the file grows over it. So a truncation or an append that a crash undoes has
//!   changed no byte of the file.
//!
//! What this module deliberately doesn't know: the network, the device, how fills go, how long
//! things take, and who else has a file open: [`Fs::poll_orphan`] names what *this* mount no longer
//! uses.

mod access;
mod attrs;
mod changes;
mod data;
mod delete;
mod locking;
pub mod map;
mod names;
pub mod pools;
mod queries;
mod read;
mod rename;
mod space;
mod table;
mod xattrs;

pub use changes::change_needs;
pub use pools::{BlockRun, Blocks, Inos, Named};

use super::items::{ItemCache, Range};
use super::op::{Caller, Handle, Lent, Op, OpError, Reply, Request, Statfs, Transfer};
use super::reader::Reader;
use crate::arena::{Arena, ArenaFull};
use crate::format::item::Time;
use crate::format::key::{Key, NameSecret};
use crate::format::{Ino, Seq};
use crate::lock::LockName;
use crate::lock::client::{Class, LockClient, OpId};
use changes::Changes;
use heapless::Vec;
use outrider_hal::Instant;
use table::Table;

/// The root directory.
pub const ROOT: Ino = Ino(1);

/// Most locks that one task holds: [`Limits::holds_per_op`](crate::lock::client::Limits) must not
/// be less. A rename that replaces: the rename lock, four inodes, their four old places in an index
/// and the new one, and the orphan's.
pub const HOLDS_MAX: usize = 12;

/// Misses of one run that are filled in the middle of it. With more it stops.
const FILLS_PER_RUN: u32 = 4;

/// How much a mount keeps of what its kernel uses.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Inodes looked up, open, or being worked on.
    pub inodes: u32,
    /// Open files and directories.
    pub handles: u32,
}

/// What a run works on, and for whom.
pub struct Context<'a, 'm> {
    /// The items.
    pub items: &'a mut ItemCache<'m>,
    /// Who brings items that are missed, if that can be at once. Without, each miss is waited for.
    pub reader: Option<&'a mut Reader<'m>>,
    /// The locks.
    pub locks: &'a mut LockClient<'m>,
    /// Numbers for new inodes.
    pub inos: &'a mut Inos<'m>,
    /// Blocks for file data, and those that the open transaction frees.
    pub blocks: &'a mut Blocks<'m>,
    /// The task's name with the locks.
    pub op: OpId,
    /// How the task waits for locks.
    pub class: Class,
    /// Monotonic time, for the locks.
    pub now: Instant,
    /// The open transaction.
    pub seq: Seq,
    /// The newest transaction that is durable.
    pub committed: Seq,
    /// What the server last said of the volume.
    pub volume: Statfs,
}

/// What a task waits for. It is run again when that may have happened; it may be run earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// A fill of the missing key, of which this range may be had: it is unknown, and under the
    /// lock.
    Fill {
        /// The missing key.
        at: super::items::Key,
        /// What may be filled along with it.
        range: Range,
        /// The reader is at it, and will answer.
        asked: bool,
    },
    /// A durable commit, to be begun if none is in flight.
    Commit,
    /// The end of the copying for a commit.
    Snapshot,
    /// A lock: [`LockClient::poll_ready`] names the task.
    Lock(LockName),
    /// Another task of this mount that works on this inode (0: one that renames) must end.
    Busy(Ino),
    /// Numbers for inodes in this directory.
    Inos(Ino),
    /// Blocks for file data.
    Blocks,
}

/// What came of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "there is no heap, and transfers are the usual case")]
pub enum Step {
    /// The task is over, and holds nothing any more.
    Done(Result<Reply, OpError>),
    /// Run it again after this.
    Wait(Wait),
    /// Move file data, then say [`Task::transferred`], and run it again.
    Transfer(Transfer),
    /// Fill these bytes with zeros on the device, then say [`Task::transferred`], and run it again.
    Zero(super::op::Extent),
    /// Tell [`Groups::tell`](super::op::Groups::tell) whether the caller is in this group, and run
    /// it again.
    AskMember(u32),
}

/// Why a run stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    Wait(Wait),
    Fail(OpError),
    Ask(u32),
    /// For [`Task::transfer`].
    Transfer,
    Zero(super::op::Extent),
}

impl From<OpError> for Stop {
    fn from(error: OpError) -> Stop {
        Stop::Fail(error)
    }
}

impl From<Wait> for Stop {
    fn from(wait: Wait) -> Stop {
        Stop::Wait(wait)
    }
}

/// What a task was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// The operation of its request.
    Answer,
    /// Deleting an inode.
    Delete(Ino),
}

/// A transfer that a task has asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moving {
    /// None.
    No,
    /// This many bytes, counted from the request's start.
    Under(u32),
    /// It has ended.
    Done(u32, bool),
}

/// Bytes that a task has made zero on the device, in the order in which it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// What the file's last block holds behind the file's end.
    Tail,
    /// The part of a block that a range begins with.
    RangeHead,
    /// The part of a block that a range ends with.
    RangeTail,
}

/// What an earlier run of a rename has seen; to be seen again under all locks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pair {
    ino: Ino,
    other: Option<Ino>,
}

/// Where the search for ancestors is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Walk {
    /// From the target directory up to what is moved.
    Target(Pair, Ino),
    /// From the source directory up to what is replaced.
    Source(Pair, Ino),
    /// At its end.
    Over(Pair, Result<(), OpError>),
}

/// An operation at work.
#[derive(Debug)]
pub struct Task {
    purpose: Purpose,
    /// Locks it holds or waits for.
    held: Vec<LockName, HOLDS_MAX>,
    /// The one of them it waited for last.
    waits: Option<LockName>,
    /// The inode it excludes others from, and whether readers too.
    busy: Option<(Ino, bool)>,
    /// Whether something was changed: then it goes on.
    changed: bool,
    /// The size that was asked for is set; what is behind it has still to be removed.
    resized: bool,
    /// The inode that an entry named when an earlier run looked.
    guess: Option<Ino>,
    pair: Option<Pair>,
    walk: Option<Walk>,
    moving: Moving,
    /// The transfer to ask for.
    transfer: Option<Transfer>,
    /// Bytes read, written or listed so far.
    progress: u32,
    /// Where an append goes, or a search is.
    at: Option<u64>,
    /// The bytes that were last made zero on the device, and where they begin.
    zeroed: Option<(Stage, u64)>,
    /// The key to go on from.
    cursor: Option<Key>,
    /// The transaction that must become durable.
    sync: Option<Seq>,
    /// The handle it has opened.
    opened: Option<Handle>,
}

impl Task {
    /// A task for a request.
    #[must_use]
    pub fn answer() -> Task {
        Task::new(Purpose::Answer)
    }

    /// A task that deletes an inode which has no name, of which every mount has said that it
    /// doesn't use it. Does nothing if it is in use here.
    #[must_use]
    pub fn delete(ino: Ino) -> Task {
        Task::new(Purpose::Delete(ino))
    }

    fn new(purpose: Purpose) -> Task {
        Task {
            purpose,
            held: Vec::new(),
            waits: None,
            busy: None,
            changed: false,
            resized: false,
            guess: None,
            pair: None,
            walk: None,
            moving: Moving::No,
            transfer: None,
            progress: 0,
            at: None,
            zeroed: None,
            cursor: None,
            sync: None,
            opened: None,
        }
    }

    /// The transfer, or the zeroing, has ended.
    pub fn transferred(&mut self, ok: bool) {
        if let Moving::Under(bytes) = self.moving {
            self.moving = Moving::Done(bytes, ok);
        }
    }

    /// How it can end where it is, if it can: with nothing done, or as a short write. `hopeless`
    /// says that nobody knows when it could go on: then it ends also if bytes on the device have
    /// changed, but nothing else has, which is an error like any other of the device. The platform
    /// isn't moving anything for it.
    #[must_use]
    pub fn ending(&self, op: &Op, hopeless: bool) -> Option<Result<Reply, OpError>> {
        let (reads, writes) = (matches!(op, Op::Read { .. }), matches!(op, Op::Write { .. }));
        let moved = matches!(self.moving, Moving::Done(_, _)) || self.zeroed.is_some();
        if moved && !reads && !hopeless {
            return None;
        }
        if writes && self.progress > 0 {
            return Some(Ok(Reply::Count(self.progress)));
        }
        let nothing = if moved && !reads { OpError::Io } else { OpError::Interrupted };
        (!self.changed).then_some(Err(nothing))
    }

    /// Whether it has changed something, and so must not be given up.
    #[must_use]
    pub fn has_changed(&self) -> bool {
        self.changed
    }
}

/// The file system of a mount.
pub struct Fs<'m> {
    secret: NameSecret,
    table: Table<'m>,
    changes: Changes<'m>,
}

impl<'m> Fs<'m> {
    /// Carves a file system that nobody uses yet. `secret` is the volume's.
    pub fn carve(
        arena: &mut Arena<'m>,
        limits: &Limits,
        secret: NameSecret,
    ) -> Result<Fs<'m>, ArenaFull> {
        Ok(Fs { secret, table: Table::carve(arena, limits)?, changes: Changes::carve(arena)? })
    }

    /// Runs a task: of a request, or of a deletion, for which the request is of no matter.
    pub fn run(
        &mut self,
        cx: &mut Context<'_, 'm>,
        task: &mut Task,
        request: &mut Request<&mut [u8]>,
    ) -> Step {
        let Request { caller, now, op, lent } = request;
        let (lent, fills) = (lent.as_mut(), FILLS_PER_RUN);
        let mut run = Run { fs: self, cx, task, caller, now: *now, lent, fills };
        let result = match run.task.purpose {
            Purpose::Answer => run.execute(op),
            Purpose::Delete(ino) => run.delete(ino).map(|()| Reply::Empty),
        };
        let result = match result {
            Ok(reply) => Ok(reply),
            Err(Stop::Fail(error)) => Err(error),
            Err(Stop::Wait(wait)) => return Step::Wait(wait),
            Err(Stop::Ask(gid)) => return Step::AskMember(gid),
            Err(Stop::Transfer) => {
                let transfer = task.transfer.take();
                return Step::Transfer(transfer.expect("it was just made"));
            }
            Err(Stop::Zero(extent)) => return Step::Zero(extent),
        };
        self.give_up(cx, task);
        Step::Done(result)
    }

    /// Ends a task that has not changed anything, or is over: it holds nothing any more.
    pub fn give_up(&mut self, cx: &mut Context<'_, 'm>, task: &mut Task) {
        if let Some(handle) = task.opened.take() {
            self.table.close(handle);
        }
        cx.locks.release_all(cx.now, cx.op);
        task.held.clear();
        task.waits = None;
        if let Some((ino, exclusive)) = task.busy.take() {
            self.table.unlock(ino, exclusive);
        }
    }

    /// An inode without names that this mount has used, and doesn't any more. It is to be deleted
    /// once all mounts have said the same; named once.
    pub fn poll_orphan(&mut self) -> Option<Ino> {
        self.table.poll_orphan()
    }

    /// Whether this mount still uses the inode, if it has no name: it is open, or the mount has
    /// seen the name go not long ago and its kernel has not let go of the inode. Who deletes it
    /// asks all mounts.
    #[must_use]
    pub fn uses(&self, ino: Ino) -> bool {
        self.table.uses(ino)
    }

    /// A search for what has no name has found this inode. That its kernel has not let go of it
    /// counts for nothing when that happens again.
    pub fn sight(&mut self, ino: Ino) {
        self.table.sight(ino);
    }

    /// Inodes that are looked up, open, worked on, or to be named as orphans.
    #[must_use]
    pub fn inodes_used(&self) -> u32 {
        self.table.inodes_used()
    }

    /// Handles that are open.
    #[must_use]
    pub fn handles_open(&self) -> u32 {
        self.table.handles_open()
    }
}

/// One run of a task.
struct Run<'r, 'a, 'b, 'm> {
    fs: &'r mut Fs<'m>,
    cx: &'r mut Context<'a, 'm>,
    task: &'r mut Task,
    caller: &'r Caller,
    now: Time,
    lent: Option<&'r mut Lent<&'b mut [u8]>>,
    /// Fills it may still make at once.
    fills: u32,
}

impl Run<'_, '_, '_, '_> {
    fn execute(&mut self, op: &Op) -> Result<Reply, Stop> {
        match op {
            Op::Lookup { dir, name } => self.lookup(*dir, name.name()),
            Op::Forget { ino, lookups } => {
                self.fs.table.forget(*ino, *lookups);
                Ok(Reply::Empty)
            }
            Op::Getattr { ino } => self.getattr(*ino),
            Op::Setattr { ino, handle, set } => self.setattr(*ino, *handle, set),
            Op::Access { ino, mask } => self.access(*ino, *mask),
            Op::Readlink { ino } => self.readlink(*ino),
            Op::Symlink { dir, name } => self.symlink(*dir, name.name()),
            Op::Mknod { dir, name, mode, node } => self.mknod(*dir, name.name(), *mode, *node),
            Op::Mkdir { dir, name, mode } => self.mkdir(*dir, name.name(), *mode),
            Op::Create { dir, name, mode, how, exclusive } => {
                self.create(*dir, name.name(), *mode, *how, *exclusive)
            }
            Op::Unlink { dir, name } => self.remove(*dir, name.name(), false),
            Op::Rmdir { dir, name } => self.remove(*dir, name.name(), true),
            Op::Rename { dir, name, to_dir, to_name, mode } => {
                let (name, to_name) = (name.name(), to_name.name());
                self.rename(&rename::Names {
                    dir: *dir,
                    name,
                    to_dir: *to_dir,
                    to_name,
                    mode: *mode,
                })
            }
            Op::Link { ino, dir, name } => self.link(*ino, *dir, name.name()),
            Op::Open { ino, how } => self.open(*ino, *how).map(Reply::Opened),
            Op::Opendir { ino } => self.opendir(*ino),
            Op::Release { ino, handle } | Op::Releasedir { ino, handle } => {
                self.check_handle(*ino, *handle)?;
                self.fs.table.close(*handle);
                Ok(Reply::Empty)
            }
            Op::Readdir { ino, handle, from, plus } => self.readdir(*ino, *handle, *from, *plus),
            Op::Read { ino, handle, at, len } => self.read(*ino, *handle, *at, *len),
            Op::Write { ino, handle, at, len, strip } => {
                self.write(*ino, *handle, *at, *len, *strip)
            }
            Op::Flush { ino, handle } => {
                self.check_handle(*ino, *handle)?;
                Ok(Reply::Empty)
            }
            Op::Fsync { ino, handle, data_only: _ } => self.fsync(*ino, *handle),
            Op::Fallocate { ino, handle, at, len, mode } => {
                self.fallocate(*ino, *handle, *at, *len, *mode)
            }
            Op::Lseek { ino, handle, at, whence } => self.lseek(*ino, *handle, *at, *whence),
            Op::Getxattr { ino, name } => self.getxattr(*ino, name.name()),
            Op::Setxattr { ino, name, mode } => self.setxattr(*ino, name.name(), *mode),
            Op::Listxattr { ino } => self.listxattr(*ino),
            Op::Removexattr { ino, name } => self.removexattr(*ino, name.name()),
            Op::Query(query) => self.query(query),
            Op::Statfs => Ok(Reply::Statfs(self.cx.volume)),
        }
    }

    fn check_handle(&self, ino: Ino, handle: Handle) -> Result<(), Stop> {
        if self.fs.table.is_open(ino, handle) { Ok(()) } else { Err(OpError::BadHandle.into()) }
    }

    /// Everything that was changed before this call has become durable.
    fn fsync(&mut self, ino: Ino, handle: Handle) -> Result<Reply, Stop> {
        self.check_handle(ino, handle)?;
        let seq = *self.task.sync.get_or_insert(self.cx.seq);
        if self.cx.committed >= seq || self.cx.items.usage().dirty_items == 0 {
            Ok(Reply::Empty)
        } else {
            Err(Wait::Commit.into())
        }
    }
}

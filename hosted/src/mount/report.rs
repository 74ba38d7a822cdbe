//! What a mount tells of itself, as extended attributes of its root.
//!
//! What this module deliberately doesn't know: who reads it, and when.

use outrider_core::client::mount::{Counters, MountState};
use outrider_core::client::op::Op;
use outrider_core::format::key::IndexKind;
use outrider_core::format::{ClientId, CommitNo, Seq};
use outrider_core::lock::client::View;
use outrider_core::lock::{Mode, Scope};
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

/// The attribute that holds counters: lines of a name, a blank and a number; only for user 0.
pub const COUNTERS_XATTR: &str = "outrider.counters";
/// The attribute that holds the process of the mount, which ends when the mount has left the
/// volume.
pub const PID_XATTR: &str = "outrider.pid";

/// The attribute that says which volume it is and how far it has come: lines of a name, a blank and
/// a value; only for user 0.
pub const STATFS_XATTR: &str = "outrider.statfs";
/// The attribute that lists locks, with the number of those to skip behind it: lines of kind,
/// number, mode, the mode asked for, the mode that a revoke leaves, operations that read, that
/// write and that only write, and those that wait; only for user 0.
pub const LOCKS_XATTR: &str = "outrider.locks.";
/// Bytes of the longest attribute that the kernel takes.
const BYTES_MAX: usize = 65536;

/// What a mount knows of its volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Which volume it is.
    pub fsid: u64,
    /// Its number among the clients, once it has one.
    pub client: Option<ClientId>,
    /// No change that is still to become durable bears this number, or an earlier one.
    pub stable: Seq,
    /// The newest root it has heard of.
    pub root: CommitNo,
}

impl Facts {
    /// The text of [`STATFS_XATTR`].
    pub(super) fn report(&self) -> String {
        let Facts { fsid, client, stable, root } = *self;
        let client = client.map_or(0, |client| client.0);
        let (stable, root) = (stable.0, root.0);
        format!("fsid {fsid:016x}\nclient {client}\ncommitted_seq {stable}\nroot_commit {root}\n")
    }
}

/// The text of [`LOCKS_XATTR`]: as many lines as fit.
pub(super) fn report_locks(locks: &[View], skip: usize) -> String {
    let mut text = String::new();
    for lock in locks.iter().skip(skip) {
        let (kind, number) = match lock.name.scope() {
            Scope::Group(ino) => ("inodes", ino.0),
            Scope::Index(IndexKind::MetaSeq, number) => ("meta_seq", number),
            Scope::Index(IndexKind::DataSeq, number) => ("data_seq", number),
            Scope::Index(IndexKind::Orphan, number) => ("orphans", number),
            Scope::Private(client) => ("private", client.0),
            Scope::Rename => ("rename", 0),
        };
        let (mode, asked) = (mode_name(lock.mode), mode_name(lock.asked));
        let revoke = lock.revoke.map_or("-", mode_name);
        let ([read, write, write_only], waiters) = (lock.users, lock.waiters);
        let line = format!(
            "{kind} {number} {mode} {asked} {revoke} {read} {write} {write_only} {waiters}\n"
        );
        if text.len() + line.len() > BYTES_MAX {
            break;
        }
        text.push_str(&line);
    }
    text
}

const fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Null => "null",
        Mode::Read => "read",
        Mode::Write => "write",
        Mode::WriteOnly => "write-only",
    }
}

/// What operations are called, in the order of [`index`].
const NAMES: [&str; 31] = [
    "lookup",
    "forget",
    "getattr",
    "setattr",
    "access",
    "readlink",
    "symlink",
    "mknod",
    "mkdir",
    "create",
    "unlink",
    "rmdir",
    "rename",
    "link",
    "open",
    "release",
    "opendir",
    "readdir",
    "releasedir",
    "read",
    "write",
    "flush",
    "fsync",
    "fallocate",
    "lseek",
    "getxattr",
    "setxattr",
    "listxattr",
    "removexattr",
    "statfs",
    "query",
];

const fn index(op: &Op) -> usize {
    match op {
        Op::Lookup { .. } => 0,
        Op::Forget { .. } => 1,
        Op::Getattr { .. } => 2,
        Op::Setattr { .. } => 3,
        Op::Access { .. } => 4,
        Op::Readlink { .. } => 5,
        Op::Symlink { .. } => 6,
        Op::Mknod { .. } => 7,
        Op::Mkdir { .. } => 8,
        Op::Create { .. } => 9,
        Op::Unlink { .. } => 10,
        Op::Rmdir { .. } => 11,
        Op::Rename { .. } => 12,
        Op::Link { .. } => 13,
        Op::Open { .. } => 14,
        Op::Release { .. } => 15,
        Op::Opendir { .. } => 16,
        Op::Readdir { .. } => 17,
        Op::Releasedir { .. } => 18,
        Op::Read { .. } => 19,
        Op::Write { .. } => 20,
        Op::Flush { .. } => 21,
        Op::Fsync { .. } => 22,
        Op::Fallocate { .. } => 23,
        Op::Lseek { .. } => 24,
        Op::Getxattr { .. } => 25,
        Op::Setxattr { .. } => 26,
        Op::Listxattr { .. } => 27,
        Op::Removexattr { .. } => 28,
        Op::Statfs => 29,
        Op::Query(_) => 30,
    }
}

/// What the kernel has asked for.
#[derive(Debug, Default)]
pub(super) struct Tally {
    asked: [AtomicU64; NAMES.len()],
    transfers: AtomicU64,
    queued: AtomicU64,
}

impl Tally {
    pub(super) fn note_request(&self, op: &Op) {
        self.asked[index(op)].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn note_transfer(&self) {
        self.transfers.fetch_add(1, Ordering::Relaxed);
    }

    /// A request found the core or the memory taken.
    pub(super) fn note_queued(&self) {
        self.queued.fetch_add(1, Ordering::Relaxed);
    }

    /// The text of [`COUNTERS_XATTR`].
    pub(super) fn report(&self, state: MountState, core: &Counters) -> String {
        let mut text = format!("state.{} 1\n", name(state));
        let mut line = |group: &str, name: &str, value: u64| {
            writeln!(text, "{group}.{name} {value}").expect("a string takes all");
        };
        for (name, asked) in NAMES.iter().zip(&self.asked) {
            line("fuse", name, asked.load(Ordering::Relaxed));
        }
        line("sink", "transfers", self.transfers.load(Ordering::Relaxed));
        line("sink", "queued", self.queued.load(Ordering::Relaxed));
        let Counters {
            requests,
            runs,
            greetings,
            violations,
            lock_messages,
            transactions,
            loans,
            roots,
            statfs,
            orphan_questions,
            deleted,
            commits,
            revokes,
            reads_failed,
            items_lost,
            compaction,
        } = *core;
        for (name, value) in [
            ("greetings", greetings),
            ("lock_messages", lock_messages),
            ("transactions", transactions),
            ("loans", loans),
            ("roots", roots),
            ("statfs", statfs),
            ("orphan_questions", orphan_questions),
        ] {
            line("sent", name, value);
        }
        for (name, value) in [
            ("requests", requests),
            ("runs", runs),
            ("violations", violations),
            ("deleted", deleted),
            ("commits", commits),
            ("revokes", revokes),
            ("reads_failed", reads_failed),
            ("items_lost", items_lost),
        ] {
            line("mount", name, value);
        }
        for (name, value) in [
            ("begun", compaction.begun),
            ("done", compaction.done),
            ("failed", compaction.failed),
            ("dropped", compaction.dropped),
            ("refused", compaction.refused),
            ("blocks", compaction.blocks),
        ] {
            line("compaction", name, value);
        }
        text
    }
}

/// What a state is called in reports.
pub(super) const fn name(state: MountState) -> &'static str {
    match state {
        MountState::Joining => "joining",
        MountState::Mounted => "mounted",
        MountState::Suspended => "suspended",
        MountState::Leaving => "leaving",
        MountState::Left => "left",
        MountState::Evicted => "evicted",
        MountState::Refused => "refused",
    }
}

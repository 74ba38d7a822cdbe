//! A mount point: what processes ask of it becomes [`Request`]s, and what a [`Filesystem`] answers
//! goes back to them, through Linux's FUSE.
//!
//! ```text
//!   processes -> kernel -> /dev/fuse -> readers -> Filesystem::handle_request   (never waits)
//!   processes <- kernel <- /dev/fuse <------------ Replies::reply              (any thread)
//!                kernel <- /dev/fuse <------------ Notifier                    (may wait)
//! ```
//!
//! # Invariants
//!
//! * Reader threads never wait for anything but the next request. What can't be answered at once is
//!   parked by the [`Filesystem`] and answered later by its [`RequestId`], from any thread. One
//!   reader that waited could be waiting for a request that only it would read (`KERNEL.md`, 7).
//! * Notifications wait inside the kernel for requests under way, so a reader must never send one:
//!   their threads are the caller's.
//! * A signal reaches the request: the kernel keeps its process waiting until the answer, even when
//!   it is being killed, so a mount whose requests may wait for another host must be told. An
//!   interrupt that overtakes its request is sent back to the kernel, which repeats it.
//! * The kernel keeps nothing: names and attributes are valid for no time, files are opened for
//!   direct I/O, there is no write-back cache. Two mounts then see each other's files like two
//!   processes on one host, but for what is said below about mmap.
//!
//! # Why not a library
//!
//! The protocol is spoken here because the crate `fuser` (0.18), the best kept there is, can't do
//! what a cluster file system needs, and hides what would be needed to add it: it answers
//! interrupts with ENOSYS, which switches them off for good, so that a process that waits for
//! another host can't be killed; it drops the flags that say when set-user-ID is to be cleared (of
//! SETATTR and OPEN), without which a mount that checks permissions itself gets that wrong in one
//! way or the other; a notification that found nothing looks like one that did; and there is no
//! notification that only expires, nor that of the epoch. Data of writes lies unaligned in its
//! buffer, where it would have to be copied before a direct transfer. The others answer in the
//! thread that reads, or belong to an executor.
//!
//! # What is negotiated
//!
//! | with the kernel | why |
//! |---|---|
//! | ATOMIC_O_TRUNC | opening with truncation is one request, not two with a gap between |
//! | DONT_MASK | the mount applies the umask, which a default ACL would replace |
//! | HANDLE_KILLPRIV_V2 | the kernel says when to clear set-user-ID, and doesn't itself, by old attributes |
//! | PARALLEL_DIROPS | lookups in one directory don't wait for each other |
//! | MAX_PAGES, BIG_WRITES | requests of 1 MiB |
//! | DO_READDIRPLUS, AUTO | attributes with entries, when the kernel expects to want them |
//! | DIRECT_IO_ALLOW_MMAP | shared mappings of files that are opened for direct I/O |
//! | not `default_permissions` | the mount checks, see [`outrider_core::client::op`] |
//! | not POSIX_LOCKS, FLOCK_LOCKS | locks hold among the processes of one host |
//! | not WRITEBACK_CACHE | it trusts the size and times it has |
//!
//! # mmap
//!
//! Pages of a mapping are in the kernel although the file is opened for direct I/O. On one mount
//! that can't be seen: a read flushes dirty pages first, and a write drops them. On two mounts: a
//! page that was touched once shows later changes of the other mount only after the file was opened
//! again (which drops its pages) or written through this mount; what is stored through a shared
//! mapping reaches the other mount at msync, munmap, or when the kernel writes back, page by page,
//! and a page overwrites whatever the other mount has written to it meanwhile. A program that
//! shares a mapping between hosts must not rely on more than it could over NFS.
//!
//! # Appending
//!
//! The kernel's idea of the end may be old, so the mount places what is appended. The file position
//! after such a write is still the kernel's: a program that asks for it (`lseek(fd, 0, SEEK_CUR)`)
//! while another host appends too may be told a smaller number.
//!
//! What this module deliberately doesn't know: what a request does.

use outrider_core::client::op::{Request, RequestId};

mod buffer;
mod decode;
mod device;
mod encode;
mod groups;
mod mounting;
mod notify;
mod wire;

pub use buffer::Buffer;
pub use device::{Delivery, Mount, Replies};
pub use groups::is_member;
pub use mounting::Options;
pub use notify::{Notified, Notifier};

/// Who executes requests.
pub trait Filesystem: Send + Sync + 'static {
    /// Takes a request, without waiting; it is answered through [`Replies`], also from within.
    /// Nothing is ever answered to [`Op::Forget`](outrider_core::client::op::Op::Forget).
    ///
    /// [`Request::lent`] is the memory the operation wants. For
    /// [`Op::Write`](outrider_core::client::op::Op::Write) it holds the data, from its aligned
    /// start.
    fn handle_request(&self, id: RequestId, request: Request<Buffer>);

    /// The request, which isn't answered yet, need not be any more: its process has got a signal.
    /// An answer is still to be given, soon; see
    /// [`Resume::Interrupted`](outrider_core::client::op::Resume::Interrupted). `false` for a
    /// request that it doesn't know (yet, or any more): the kernel then repeats the interrupt if it
    /// still waits.
    fn handle_interrupt(&self, id: RequestId) -> bool;
}

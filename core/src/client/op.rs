//! What a mount is asked to do, and what it answers: POSIX file operations as plain data.
//!
//! A platform (the FUSE front-end, the simulator) turns whatever its users say into a [`Request`]
//! and hands it to the mount's core, which takes it through these states:
//!
//! ```text
//!                 Request                                 Answer::Done
//!   platform ------------------>  in progress or parked ----------------> platform
//!                                    |            ^
//!                Answer::Transfer    |            |   Resume::Transferred
//!                Answer::AskMember   v            |   Resume::Member
//!                                 the platform's turn
//! ```
//!
//! # Invariants
//!
//! * Every request gets exactly one [`Answer::Done`], and its lent memory comes back with it. Only
//!   [`Op::Forget`] gets no answer.
//! * File data never passes through the core. A [`Transfer`] says which blocks of the device hold
//!   the bytes, or are to hold them; the core keeps what it names (locks, blocks) until the
//!   platform says that it has moved the data. So data is on the device before metadata names it.
//! * Either the whole request happens or, with an error, nothing of it. Only a transfer may be
//!   shorter than was asked for.
//! * The core decides who may do what, under the cluster locks that make the answer true. A kernel
//!   that checked before (FUSE's `default_permissions`) would do so with attributes that another
//!   mount may have changed meanwhile, and would ask for them first: ten requests for a create
//!   instead of six.
//! * Because of that, a platform may let a kernel remember a name only while everybody may search
//!   the name's directory: a remembered name is walked through without asking, by anybody.
//!
//! # Permissions
//!
//! User 0 may do everything, as with NFS servers: capabilities of a process aren't transmitted. For
//! others the owner's, the group's or the others' bits count, the first that apply. Only where the
//! group's bits decide, and the caller's own group isn't it, do supplementary groups matter: then
//! the core asks ([`Answer::AskMember`]), so that there is no limit on how many groups a user may
//! have, and no cost for the many requests that don't depend on them. What was told holds for one
//! request.
//!
//! *Search* below means: the caller may search (execute) the directory. *Change* means: search, and
//! write. A **sticky** directory lets only its owner, the owner of what is named, and user 0 remove
//! or replace an entry ([`OpError::NotPermitted`]).
//!
//! # Times
//!
//! "atime", "mtime" and "ctime" below say which times of which inode become [`Request::now`].
//! Reading doesn't persist atime.
//!
//! # Set-user-ID and set-group-ID
//!
//! *Strips* below means: set-user-ID is cleared, and set-group-ID if the group may execute or the
//! caller isn't in it. A write and a truncation strip when the request says so (`strip`): the
//! kernel knows whether its caller is exempt. An allocation strips for all but user 0; a change of
//! owner or group of anything but a directory always, where user 0 counts as a member of every
//! group.
//!
//! What this module deliberately doesn't know: who asks, through which library, and what an errno
//! is.

use crate::format::item::{
    FileKind, NAME_BYTES_MAX, Name, NameError, SYMLINK_BYTES_MAX, Time, XATTR_BYTES_MAX, XattrName,
};
use crate::format::{BLOCK_BYTES, BlockNo, Ino};
use heapless::Vec;
use outrider_hal::IoError;

mod entry;
pub mod query;

pub use entry::{EntryReader, EntryWriter, ListEntry, entry_bytes};

/// Bytes of lent memory that are enough for any [`Op::Readlink`] and [`Op::Symlink`].
pub const TARGET_BYTES_MAX: usize = SYMLINK_BYTES_MAX as usize;

/// Bytes of lent memory that are enough for any [`Op::Getxattr`] and [`Op::Setxattr`].
pub const VALUE_BYTES_MAX: usize = XATTR_BYTES_MAX;

/// Most extents one [`Transfer`] names. What is left is named by the next one.
pub const EXTENTS_MAX: usize = 16;

/// Most bytes a request reads or writes.
pub const IO_BYTES_MAX: u32 = 1 << 20;

/// Most groups that one request can depend on: of the directories and inodes it names, and the new
/// group of a change.
pub const MEMBERS_MAX: usize = 6;

/// The name of a directory entry. See [`Name`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NameBuf(Vec<u8, NAME_BYTES_MAX, u8>);

impl NameBuf {
    /// The name that has these bytes.
    pub fn parse(bytes: &[u8]) -> Result<NameBuf, NameError> {
        Name::parse(bytes).map(NameBuf::from)
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The name as the formats want it.
    #[must_use]
    pub fn name(&self) -> Name<'_> {
        Name::parse(&self.0).expect("it was made from a name")
    }
}

impl From<Name<'_>> for NameBuf {
    fn from(name: Name<'_>) -> NameBuf {
        NameBuf(Vec::from_slice(name.bytes()).expect("names are that short"))
    }
}

/// The name of an extended attribute. See [`XattrName`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct XattrNameBuf(Vec<u8, NAME_BYTES_MAX, u8>);

impl XattrNameBuf {
    /// The name that has these bytes.
    pub fn parse(bytes: &[u8]) -> Result<XattrNameBuf, NameError> {
        XattrName::parse(bytes).map(XattrNameBuf::from)
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The name as the formats want it.
    #[must_use]
    pub fn name(&self) -> XattrName<'_> {
        XattrName::parse(&self.0).expect("it was made from a name")
    }
}

impl From<XattrName<'_>> for XattrNameBuf {
    fn from(name: XattrName<'_>) -> XattrNameBuf {
        XattrNameBuf(Vec::from_slice(name.bytes()).expect("names are that short"))
    }
}

/// The platform's name for a request in flight. Not used again while it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// The core's name for an open file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(pub u64);

/// Who asks: the credentials that count for files (`fsuid`, `fsgid`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Thread, for the platform to find the other groups by. 0 when the kernel itself asks.
    pub pid: u32,
    /// What is known of the supplementary groups.
    pub groups: Groups,
}

impl Caller {
    /// A caller of whose other groups nothing is known yet.
    #[must_use]
    pub const fn new(uid: u32, gid: u32, pid: u32) -> Caller {
        Caller { uid, gid, pid, groups: Groups { known: Vec::new() } }
    }

    /// Whether the group is one of the caller's; [`None`] while that must be asked.
    #[must_use]
    pub fn is_member(&self, gid: u32) -> Option<bool> {
        if self.gid == gid { Some(true) } else { self.groups.contain(gid) }
    }
}

/// What is known of a caller's supplementary groups.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Groups {
    known: Vec<(u32, bool), MEMBERS_MAX>,
}

impl Groups {
    /// Whether the caller is in this group, if that was told.
    #[must_use]
    pub fn contain(&self, gid: u32) -> Option<bool> {
        self.known.iter().find(|(known, _)| *known == gid).map(|(_, member)| *member)
    }

    /// Takes note of an answer. The oldest is dropped for it when there are too many, which takes
    /// an inode whose group changes while the request waits; the core then asks again.
    pub fn tell(&mut self, gid: u32, member: bool) {
        self.known.retain(|(known, _)| *known != gid);
        if self.known.is_full() {
            self.known.remove(0);
        }
        let told = self.known.push((gid, member));
        debug_assert!(told.is_ok());
    }
}

/// Memory that travels with a request: the core's while it has the request, the platform's before
/// and after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lent<B> {
    /// The memory.
    pub buf: B,
    /// How many bytes at its start are meant: of what the request brings, or of what the answer
    /// does.
    pub len: usize,
}

/// A request. `B` is how memory is lent: `&'m mut [u8]` to a core.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request<B> {
    /// Who asks.
    pub caller: Caller,
    /// The platform's wall clock: what times become.
    pub now: Time,
    /// What is asked.
    pub op: Op,
    /// Memory for the operations that say so.
    pub lent: Option<Lent<B>>,
}

/// What the core says about a request.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "there is no heap, and transfers are the usual case")]
pub enum Answer<B> {
    /// It is finished.
    Done {
        /// How it ended.
        result: Result<Reply, OpError>,
        /// The memory that was lent, with what the operation says in it.
        lent: Option<Lent<B>>,
    },
    /// Move file data, then say [`Resume::Transferred`].
    Transfer(Transfer),
    /// Say whether the caller is in this group: [`Resume::Member`].
    AskMember {
        /// The group.
        gid: u32,
    },
}

/// What the platform says about a request in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    /// The transfer has ended. A write is not yet durable: that is what [`Op::Fsync`] is for.
    Transferred(Result<(), IoError>),
    /// The caller is in the group asked for, or isn't.
    Member {
        /// The group.
        gid: u32,
        /// Whether the caller is in it.
        member: bool,
    },
    /// Nobody may be waiting for the answer any more: a signal has come. A request that isn't over
    /// soon afterwards ends with [`OpError::Interrupted`] if it has changed nothing yet, or is a
    /// short write; any other goes on. It is answered in any case.
    Interrupted,
}

/// Where file data is on the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// Which way.
    pub direction: Direction,
    /// Extents in the order of the file, without gaps.
    pub extents: Vec<Extent, EXTENTS_MAX>,
}

/// Which way data goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the device to the caller.
    Read,
    /// From the caller to the device.
    Write,
}

/// A run of a file's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Offset in the file, in bytes.
    pub at: u64,
    /// How many bytes, at least 1.
    pub len: u32,
    /// Where they are.
    pub place: Place,
}

/// Where bytes of a file are. The block is the one that holds the extent's first byte, at the same
/// offset in the block as in the file's block; those that follow hold the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: they are zero. Not in a write.
    Hole,
    /// In these blocks. A write reads the first and the last if it covers only part of them, and
    /// writes them whole.
    Blocks(BlockNo),
    /// In blocks whose contents mean nothing yet: read as zeros, and a write fills with zeros what
    /// it doesn't cover of the first and the last.
    Fresh(BlockNo),
}

impl Extent {
    /// How many blocks it touches.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        let block = BLOCK_BYTES as u64;
        (self.at % block + u64::from(self.len)).div_ceil(block)
    }
}

/// A file operation. Errors that any of them may end with: [`Io`](OpError::Io),
/// [`Stale`](OpError::Stale) (no such inode), [`Interrupted`](OpError::Interrupted),
/// [`ReadOnly`](OpError::ReadOnly) (if it changes anything), [`NoSpace`](OpError::NoSpace) (if it
/// takes any); and of those that name an entry in a directory,
/// [`NotDirectory`](OpError::NotDirectory) and [`AccessDenied`](OpError::AccessDenied).
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "there is no heap, and a slot must hold the largest")]
pub enum Op {
    /// Finds an entry. Search. [`Reply::Entry`], which counts as one lookup of the inode, so that
    /// it stays usable by number until forgotten, also when its last name goes.
    Lookup {
        /// The directory.
        dir: Ino,
        /// The entry's name.
        name: NameBuf,
    },
    /// Gives lookups back. Not answered, never fails.
    Forget {
        /// The inode.
        ino: Ino,
        /// How many.
        lookups: u64,
    },
    /// Attributes. No permission needed. [`Reply::Attr`].
    Getattr {
        /// The inode.
        ino: Ino,
    },
    /// Changes attributes, all or none. ctime. [`Reply::Attr`]. See [`SetAttr`].
    Setattr {
        /// The inode.
        ino: Ino,
        /// The open file through which it is done: then `size` needs no permission.
        handle: Option<Handle>,
        /// What changes.
        set: SetAttr,
    },
    /// Whether the caller may do all of this; [`AccessDenied`](OpError::AccessDenied) if not.
    /// Execution of a file by user 0 needs one execute bit. [`Reply::Empty`].
    Access {
        /// The inode.
        ino: Ino,
        /// Bits 2 read, 1 write, 0 execute or search, as in a mode.
        mask: u8,
    },
    /// A symlink's target, into the lent memory. [`Invalid`](OpError::Invalid) for anything else.
    /// [`Reply::Bytes`].
    Readlink {
        /// The symlink.
        ino: Ino,
    },
    /// Makes a symlink whose target is in the lent memory, with all permissions. As [`Op::Mknod`].
    /// [`NameTooLong`](OpError::NameTooLong) for a longer target than [`TARGET_BYTES_MAX`],
    /// [`NotFound`](OpError::NotFound) for an empty one.
    Symlink {
        /// The directory.
        dir: Ino,
        /// The name.
        name: NameBuf,
    },
    /// Makes an inode that isn't a directory. Change. Directory: mtime, ctime. The caller owns it;
    /// its group is the directory's if that is set-group-ID, else the caller's. [`Reply::Entry`].
    /// Fails with [`Exists`](OpError::Exists), [`NotFound`](OpError::NotFound) if the directory is
    /// removed; only user 0 makes devices ([`NotPermitted`](OpError::NotPermitted)).
    Mknod {
        /// The directory.
        dir: Ino,
        /// The name.
        name: NameBuf,
        /// Permissions.
        mode: NewMode,
        /// What to make.
        node: NewNode,
    },
    /// Makes a directory. As [`Op::Mknod`]; the directory's nlink grows, which
    /// [`TooManyLinks`](OpError::TooManyLinks) may forbid. Inherits set-group-ID.
    Mkdir {
        /// The directory.
        dir: Ino,
        /// The name.
        name: NameBuf,
        /// Permissions.
        mode: NewMode,
    },
    /// Makes a regular file and opens it, whatever its permissions; opens what exists instead, as
    /// [`Op::Open`], unless `exclusive` ([`Exists`](OpError::Exists)).
    /// [`Reply::Created`].
    Create {
        /// The directory.
        dir: Ino,
        /// The name.
        name: NameBuf,
        /// Permissions.
        mode: NewMode,
        /// How to open it.
        how: OpenHow,
        /// Fail if the name exists.
        exclusive: bool,
    },
    /// Removes a name that isn't a directory's ([`IsDirectory`](OpError::IsDirectory)). Change,
    /// sticky. Directory: mtime, ctime. Inode: ctime. What has no name left lives on while any
    /// mount has it open. [`Reply::Empty`].
    Unlink {
        /// The directory.
        dir: Ino,
        /// The name.
        name: NameBuf,
    },
    /// Removes an empty directory ([`NotEmpty`](OpError::NotEmpty)). Otherwise as [`Op::Unlink`].
    Rmdir {
        /// The directory.
        dir: Ino,
        /// The name.
        name: NameBuf,
    },
    /// Moves an entry, replacing what has the new name. Change in both directories, and of a
    /// directory that gets another parent; sticky in both. Directories: mtime, ctime. The inode and
    /// what is replaced: ctime. A directory replaces only an empty one
    /// ([`NotEmpty`](OpError::NotEmpty), [`NotDirectory`](OpError::NotDirectory)), another inode
    /// only another ([`IsDirectory`](OpError::IsDirectory)); a directory can't move below itself
    /// ([`Invalid`](OpError::Invalid)), nor replace one it lies in
    /// ([`NotEmpty`](OpError::NotEmpty)). Nothing happens when both names are of one inode.
    /// [`Reply::Empty`].
    Rename {
        /// The directory of the entry.
        dir: Ino,
        /// The entry's name.
        name: NameBuf,
        /// The directory it goes to.
        to_dir: Ino,
        /// Its new name.
        to_name: NameBuf,
        /// What to do about what has the new name.
        mode: RenameMode,
    },
    /// Gives an inode that isn't a directory ([`NotPermitted`](OpError::NotPermitted)) one more
    /// name. Change. Directory: mtime, ctime. Inode: ctime. [`NotFound`](OpError::NotFound) if it
    /// has no name any more, [`Exists`](OpError::Exists), [`TooManyLinks`](OpError::TooManyLinks).
    /// [`Reply::Entry`].
    Link {
        /// The inode.
        ino: Ino,
        /// The directory of the new name.
        dir: Ino,
        /// The new name.
        name: NameBuf,
    },
    /// Opens a file, with the permission for it, and truncates it if asked for: as [`Op::Setattr`]
    /// of the size. [`Reply::Opened`].
    Open {
        /// The file.
        ino: Ino,
        /// How.
        how: OpenHow,
    },
    /// Closes a handle of [`Op::Open`] or [`Op::Create`]. [`Reply::Empty`].
    Release {
        /// The file.
        ino: Ino,
        /// The handle.
        handle: Handle,
    },
    /// Opens a directory for reading. [`Reply::Opened`].
    Opendir {
        /// The directory.
        ino: Ino,
    },
    /// Entries, as many as fit, into the lent memory: see [`EntryWriter`]. "." and ".." are at
    /// positions 0 and 1, others where they were put when they were made: who resumes at
    /// [`ListEntry::next`] sees each entry that exists all the time exactly once, whatever is
    /// made, removed and renamed meanwhile. [`Reply::Bytes`], of which there are none at the end.
    Readdir {
        /// The directory.
        ino: Ino,
        /// The handle.
        handle: Handle,
        /// Position to start at: 0, or [`ListEntry::next`].
        from: u64,
        /// Give attributes too. Each entry but "." and ".." then counts as a lookup.
        plus: bool,
    },
    /// Closes a handle of [`Op::Opendir`]. [`Reply::Empty`].
    Releasedir {
        /// The directory.
        ino: Ino,
        /// The handle.
        handle: Handle,
    },
    /// Reads through [`Answer::Transfer`], up to the end of the file. [`Reply::Count`].
    Read {
        /// The file.
        ino: Ino,
        /// The handle.
        handle: Handle,
        /// Offset in bytes.
        at: u64,
        /// How many bytes, at most [`IO_BYTES_MAX`].
        len: u32,
    },
    /// Writes: blocks are reserved, the platform fills them ([`Answer::Transfer`]), then the file
    /// gets them. mtime, ctime. Strips. [`FileTooBig`](OpError::FileTooBig). [`Reply::Count`].
    Write {
        /// The file.
        ino: Ino,
        /// The handle.
        handle: Handle,
        /// Where.
        at: WriteAt,
        /// How many bytes, at most [`IO_BYTES_MAX`].
        len: u32,
        /// Strip.
        strip: bool,
    },
    /// Some descriptor of the open file was closed. [`Reply::Empty`], or the error of an earlier
    /// write that had been answered too soon.
    Flush {
        /// The file.
        ino: Ino,
        /// The handle.
        handle: Handle,
    },
    /// Makes everything about the inode durable: data, size, names it got. [`Reply::Empty`].
    Fsync {
        /// A file or directory.
        ino: Ino,
        /// The handle.
        handle: Handle,
        /// Times may be left out.
        data_only: bool,
    },
    /// Reserves or gives back space. mtime, ctime. Strips. [`NotSupported`](OpError::NotSupported),
    /// [`FileTooBig`](OpError::FileTooBig). [`Reply::Empty`].
    Fallocate {
        /// The file.
        ino: Ino,
        /// The handle.
        handle: Handle,
        /// Offset in bytes.
        at: u64,
        /// How many bytes, at least 1.
        len: u64,
        /// What to do.
        mode: FallocateMode,
    },
    /// The next data or the next hole; the end of the file is a hole. [`Reply::Offset`];
    /// [`NoSuchAddress`](OpError::NoSuchAddress) if there is none, or `at` is at the end or behind
    /// it.
    Lseek {
        /// The file.
        ino: Ino,
        /// The handle.
        handle: Handle,
        /// Offset to search from.
        at: u64,
        /// What for.
        whence: Whence,
    },
    /// An extended attribute's value, into the lent memory. [`Reply::Bytes`], or [`Reply::Size`]
    /// when no memory was lent. [`NoData`](OpError::NoData), [`Range`](OpError::Range) when it
    /// doesn't fit. `user.` needs the file's permission to read, `trusted.` user 0, else there is
    /// none.
    Getxattr {
        /// The inode.
        ino: Ino,
        /// The name.
        name: XattrNameBuf,
    },
    /// Sets an extended attribute to the lent memory's bytes. ctime. [`Reply::Empty`].
    /// [`Exists`](OpError::Exists), [`NoData`](OpError::NoData) by `mode`;
    /// [`TooBig`](OpError::TooBig). `user.` is for files and directories only, and needs permission
    /// to write (in a sticky directory, to own it); `trusted.` and `security.` need user 0; another
    /// prefix is [`NotSupported`](OpError::NotSupported).
    Setxattr {
        /// The inode.
        ino: Ino,
        /// The name.
        name: XattrNameBuf,
        /// Whether it may or must exist.
        mode: XattrMode,
    },
    /// The names of the extended attributes the caller may see, each with a NUL behind it, into the
    /// lent memory. [`Reply::Bytes`], or [`Reply::Size`] when none was lent;
    /// [`Range`](OpError::Range).
    Listxattr {
        /// The inode.
        ino: Ino,
    },
    /// Removes an extended attribute. As [`Op::Setxattr`]; [`NoData`](OpError::NoData).
    Removexattr {
        /// The inode.
        ino: Ino,
        /// The name.
        name: XattrNameBuf,
    },
    /// Numbers of the volume. [`Reply::Statfs`].
    Statfs,
    /// What is known of inodes by their number, into the lent memory: [`Reply::Bytes`]. Changes
    /// nothing. [`NotPermitted`](OpError::NotPermitted), [`Range`](OpError::Range).
    Query(query::Query),
}

/// Which attributes change. Who may: permissions, and times to a value, the owner; times to now,
/// also who may write; the group, the owner, to a group of his; the owner, only user 0
/// ([`NotPermitted`](OpError::NotPermitted)); the size, who may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SetAttr {
    /// The low 12 bits of the mode. Set-group-ID stays off unless the caller is in the group.
    pub permissions: Option<u16>,
    /// Owner. Strips.
    pub uid: Option<u32>,
    /// Group. Strips.
    pub gid: Option<u32>,
    /// Bytes of a regular file; what is behind the end reads as zeros if the file grows again.
    /// mtime. Strips if [`strip`](Self::strip) says so. [`IsDirectory`](OpError::IsDirectory),
    /// [`Invalid`](OpError::Invalid), [`FileTooBig`](OpError::FileTooBig).
    pub size: Option<u64>,
    /// When it was last read.
    pub atime: Option<SetTime>,
    /// When its data were last changed.
    pub mtime: Option<SetTime>,
    /// Strip.
    pub strip: bool,
}

/// What a time becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// [`Request::now`].
    Now,
    /// This.
    To(Time),
}

/// Permissions of something new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewMode {
    /// The low 12 bits, as asked for.
    pub permissions: u16,
    /// The bits the caller doesn't want, applied by the core (where a default ACL would take its
    /// place).
    pub umask: u16,
}

impl NewMode {
    /// The permissions that remain.
    #[must_use]
    pub const fn masked(self) -> u16 {
        self.permissions & !(self.umask & 0o777)
    }
}

/// What [`Op::Mknod`] makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewNode {
    /// A regular file.
    Regular,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device with this number.
    CharDevice(u32),
    /// A block device with this number.
    BlockDevice(u32),
}

impl NewNode {
    /// Its type.
    #[must_use]
    pub const fn kind(self) -> FileKind {
        match self {
            NewNode::Regular => FileKind::Regular,
            NewNode::Fifo => FileKind::Fifo,
            NewNode::Socket => FileKind::Socket,
            NewNode::CharDevice(_) => FileKind::CharDevice,
            NewNode::BlockDevice(_) => FileKind::BlockDevice,
        }
    }

    /// Its device number; 0 if it isn't a device.
    #[must_use]
    pub const fn rdev(self) -> u32 {
        match self {
            NewNode::Regular | NewNode::Fifo | NewNode::Socket => 0,
            NewNode::CharDevice(rdev) | NewNode::BlockDevice(rdev) => rdev,
        }
    }
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenHow {
    /// For what.
    pub access: OpenAccess,
    /// Cut it to nothing. mtime, ctime, also if it is empty.
    pub truncate: bool,
    /// Strip, if it is truncated.
    pub strip: bool,
}

/// What an open file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenAccess {
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Both.
    ReadWrite,
    /// Being executed: needs that permission only.
    Execute,
}

/// Where a write goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteAt {
    /// To this offset, in bytes.
    Offset(u64),
    /// Behind the last byte, wherever that is under the lock of the size.
    End,
}

/// What [`Op::Rename`] does about what has the new name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    /// Replace it.
    Replace,
    /// Fail with [`Exists`](OpError::Exists).
    NoReplace,
    /// Exchange the two, which both must exist. May be [`Invalid`](OpError::Invalid).
    Exchange,
}

/// What [`Op::Fallocate`] does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FallocateMode {
    /// Reserve space; the file grows to hold the range.
    Allocate,
    /// Reserve space; the size stays.
    AllocateKeepSize,
    /// Make a hole; the size stays.
    PunchHole,
    /// Make it read as zeros, with space reserved; the file grows.
    Zero,
    /// Make it read as zeros, with space reserved; the size stays.
    ZeroKeepSize,
}

/// What [`Op::Lseek`] looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whence {
    /// Bytes that are stored.
    Data,
    /// Bytes that aren't, or the end.
    Hole,
}

/// Whether an extended attribute may exist when it is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XattrMode {
    /// It may.
    Any,
    /// It must not.
    Create,
    /// It must.
    Replace,
}

/// How an operation succeeded. Each says which reply it gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// Nothing to say.
    Empty,
    /// An inode, found by name or new.
    Entry(Attr),
    /// An inode's attributes.
    Attr(Attr),
    /// An open file or directory.
    Opened(Handle),
    /// A file, found by name or new, and open.
    Created(Attr, Handle),
    /// What was asked for is in the lent memory.
    Bytes,
    /// So many bytes would have to be lent.
    Size(u32),
    /// So many bytes were read or written.
    Count(u32),
    /// An offset in the file, in bytes.
    Offset(u64),
    /// Numbers of the volume.
    Statfs(Statfs),
}

/// Attributes of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    /// The inode.
    pub ino: Ino,
    /// Type.
    pub kind: FileKind,
    /// The low 12 bits of the mode.
    pub permissions: u16,
    /// How many names it has.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of a device.
    pub rdev: u32,
    /// Bytes.
    pub size: u64,
    /// Space taken, in units of 512 bytes.
    pub sectors: u64,
    /// When it was last read.
    pub atime: Time,
    /// When the data were last changed.
    pub mtime: Time,
    /// When the inode was last changed.
    pub ctime: Time,
    /// When it was created.
    pub crtime: Time,
}

/// Numbers of a volume. Blocks are of [`BLOCK_BYTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statfs {
    /// Blocks of the volume.
    pub blocks: u64,
    /// Blocks that are free.
    pub blocks_free: u64,
    /// Blocks that can still be had.
    pub blocks_available: u64,
    /// Inodes that there can be.
    pub inodes: u64,
    /// Inodes that can still be made.
    pub inodes_free: u64,
}

/// How an operation failed: one for each outcome that POSIX tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OpError {
    /// Only the owner, or user 0, may do that. EPERM
    NotPermitted,
    /// No such name. ENOENT
    NotFound,
    /// A signal came first, and nothing was done. EINTR
    Interrupted,
    /// The device failed, or holds what it must not. EIO
    Io,
    /// No such address: nothing behind the end. ENXIO
    NoSuchAddress,
    /// An argument is too long. E2BIG
    TooBig,
    /// No such handle. EBADF
    BadHandle,
    /// Not now. EAGAIN
    Again,
    /// No memory within the limits. ENOMEM
    NoMemory,
    /// The permissions forbid it. EACCES
    AccessDenied,
    /// In use. EBUSY
    Busy,
    /// The name exists. EEXIST
    Exists,
    /// Not on one volume. EXDEV
    CrossDevice,
    /// Not a directory. ENOTDIR
    NotDirectory,
    /// A directory. EISDIR
    IsDirectory,
    /// No meaning in this. EINVAL
    Invalid,
    /// Too many open files. ENFILE
    TooManyOpen,
    /// Larger than files can be. EFBIG
    FileTooBig,
    /// No space. ENOSPC
    NoSpace,
    /// The mount, or the device, can't be written. EROFS
    ReadOnly,
    /// One more link than there can be. EMLINK
    TooManyLinks,
    /// Doesn't fit in the memory lent. ERANGE
    Range,
    /// Two operations would wait for each other. EDEADLK
    Deadlock,
    /// A name or target longer than there can be. ENAMETOOLONG
    NameTooLong,
    /// The directory isn't empty. ENOTEMPTY
    NotEmpty,
    /// Too many symlinks, or directories, one in another. ELOOP
    Loop,
    /// No such attribute. ENODATA
    NoData,
    /// Not offered. EOPNOTSUPP
    NotSupported,
    /// The inode has gone. ESTALE
    Stale,
    /// The user's quota is used up. EDQUOT
    Quota,
}

impl From<NameError> for OpError {
    fn from(error: NameError) -> OpError {
        match error {
            NameError::Empty => OpError::NotFound,
            NameError::TooLong => OpError::NameTooLong,
            NameError::Forbidden => OpError::Invalid,
        }
    }
}

#[cfg(test)]
mod tests;

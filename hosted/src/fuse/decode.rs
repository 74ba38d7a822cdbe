//! From the bytes of a kernel's request to a file operation.
//!
//! # Invariants
//!
//! * Any bytes may come: what is too short, unknown or out of range becomes a refusal with an
//!   errno, never a panic.
//!
//! What this module deliberately doesn't know: how requests are read, and who executes them.

use super::buffer::Buffer;
use super::wire::{self, InHeader, fattr, opcode, open};
use outrider_core::client::op::{
    FallocateMode, Handle, IO_BYTES_MAX, NameBuf, NewMode, NewNode, Op, OpError, OpenAccess,
    OpenHow, RenameMode, SetAttr, SetTime, TARGET_BYTES_MAX, VALUE_BYTES_MAX, Whence, WriteAt,
    XattrMode, XattrNameBuf,
};
use outrider_core::format::Ino;
use outrider_core::format::item::{FileKind, Time};
use rustix::io::Errno;
use zerocopy::FromBytes;

/// What a message asks for.
#[expect(
    clippy::large_enum_variant,
    reason = "an operation is the usual case, and isn't kept here"
)]
pub(super) enum Message {
    /// A file operation, with the memory it is lent and the form of its answer.
    Operation(Op, Memory, Form),
    /// Several lookups are given back.
    Forget(Vec<(Ino, u64)>),
    /// Nobody waits any more for the request with this number.
    Interrupt(u64),
    /// The connection ends.
    Destroy,
    /// It can't be done.
    Refused(Errno),
}

/// What memory an operation is lent.
#[derive(Debug)]
pub(super) enum Memory {
    /// None.
    None,
    /// Room for an answer of this size.
    Room(usize),
    /// What came with the request.
    Payload(Buffer),
    /// What came behind the first [`HEAD_BYTES`] of a WRITE: the reader has it already.
    Landed(usize),
}

/// What the answer to an operation looks like, where that isn't told by the reply itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// As the reply says.
    Plain,
    /// A list of directory entries.
    Entries,
    /// An open file, with flags for the kernel.
    File,
}

/// Bytes before the data of a WRITE.
pub(super) const HEAD_BYTES: usize = size_of::<InHeader>() + size_of::<wire::WriteIn>();

/// Reads the parts of a request, one behind the other.
struct Parts<'a>(&'a [u8]);

impl<'a> Parts<'a> {
    fn record<T: FromBytes>(&mut self) -> Result<T, Errno> {
        let (record, rest) = T::read_from_prefix(self.0).map_err(|_| Errno::INVAL)?;
        self.0 = rest;
        Ok(record)
    }

    fn text(&mut self) -> Result<&'a [u8], Errno> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or(Errno::INVAL)?;
        let text = &self.0[..end];
        self.0 = &self.0[end + 1..];
        Ok(text)
    }

    fn name(&mut self) -> Result<NameBuf, Errno> {
        let text = self.text()?;
        NameBuf::parse(text).map_err(|error| errno(error.into()))
    }

    fn xattr_name(&mut self) -> Result<XattrNameBuf, Errno> {
        let text = self.text()?;
        XattrNameBuf::parse(text).map_err(|_| Errno::RANGE)
    }
}

/// What the message with this header and body asks for. Of a WRITE the body is only what stands
/// before the data, and `landed` says how many bytes of data came behind it.
pub(super) fn decode(header: &InHeader, body: &[u8], landed: usize) -> Message {
    let mut parts = Parts(body);
    let decoded = match header.opcode {
        opcode::FORGET | opcode::BATCH_FORGET => decode_forget(header, &mut parts),
        opcode::INTERRUPT => {
            parts.record::<wire::InterruptIn>().map(|args| Message::Interrupt(args.unique))
        }
        opcode::DESTROY => Ok(Message::Destroy),
        opcode::READ
        | opcode::WRITE
        | opcode::FLUSH
        | opcode::FSYNC
        | opcode::FSYNCDIR
        | opcode::FALLOCATE
        | opcode::LSEEK => decode_data(header, &mut parts, landed),
        opcode::SETXATTR | opcode::GETXATTR | opcode::LISTXATTR | opcode::REMOVEXATTR => {
            decode_xattr(header, &mut parts)
        }
        opcode::OPEN
        | opcode::CREATE
        | opcode::OPENDIR
        | opcode::RELEASE
        | opcode::RELEASEDIR
        | opcode::READDIR
        | opcode::READDIRPLUS => decode_open(header, &mut parts),
        _ => decode_tree(header, &mut parts),
    };
    decoded.unwrap_or_else(Message::Refused)
}

fn plain(op: Op) -> Message {
    Message::Operation(op, Memory::None, Form::Plain)
}

fn decode_forget(header: &InHeader, parts: &mut Parts<'_>) -> Result<Message, Errno> {
    if header.opcode == opcode::FORGET {
        let args: wire::ForgetIn = parts.record()?;
        return Ok(Message::Forget(vec![(Ino(header.nodeid), args.nlookup)]));
    }
    let args: wire::BatchForgetIn = parts.record()?;
    let mut forgets = Vec::new();
    for _ in 0..args.count {
        let one: wire::ForgetOne = parts.record()?;
        forgets.push((Ino(one.nodeid), one.nlookup));
    }
    Ok(Message::Forget(forgets))
}

/// Names and attributes.
fn decode_tree(header: &InHeader, parts: &mut Parts<'_>) -> Result<Message, Errno> {
    let ino = Ino(header.nodeid);
    Ok(plain(match header.opcode {
        opcode::LOOKUP => Op::Lookup { dir: ino, name: parts.name()? },
        opcode::GETATTR => Op::Getattr { ino },
        opcode::SETATTR => decode_setattr(ino, &parts.record()?)?,
        opcode::ACCESS => {
            let args: wire::AccessIn = parts.record()?;
            Op::Access { ino, mask: (args.mask & 7) as u8 }
        }
        opcode::READLINK => {
            let room = Memory::Room(TARGET_BYTES_MAX);
            return Ok(Message::Operation(Op::Readlink { ino }, room, Form::Plain));
        }
        opcode::SYMLINK => {
            let name = parts.name()?;
            let target = parts.text()?;
            if target.len() > TARGET_BYTES_MAX {
                return Err(Errno::NAMETOOLONG);
            }
            let payload = Memory::Payload(Buffer::copy(target));
            return Ok(Message::Operation(Op::Symlink { dir: ino, name }, payload, Form::Plain));
        }
        opcode::MKNOD => {
            let args: wire::MknodIn = parts.record()?;
            let node = new_node(args.mode, args.rdev)?;
            Op::Mknod { dir: ino, name: parts.name()?, mode: new_mode(args.mode, args.umask), node }
        }
        opcode::MKDIR => {
            let args: wire::MkdirIn = parts.record()?;
            Op::Mkdir { dir: ino, name: parts.name()?, mode: new_mode(args.mode, args.umask) }
        }
        opcode::UNLINK => Op::Unlink { dir: ino, name: parts.name()? },
        opcode::RMDIR => Op::Rmdir { dir: ino, name: parts.name()? },
        opcode::RENAME => {
            let args: wire::RenameIn = parts.record()?;
            decode_rename(ino, args.newdir, 0, parts)?
        }
        opcode::RENAME2 => {
            let args: wire::Rename2In = parts.record()?;
            decode_rename(ino, args.newdir, args.flags, parts)?
        }
        opcode::LINK => {
            let args: wire::LinkIn = parts.record()?;
            Op::Link { ino: Ino(args.oldnodeid), dir: ino, name: parts.name()? }
        }
        opcode::STATFS => Op::Statfs,
        _ => return Err(Errno::NOSYS),
    }))
}

fn new_mode(mode: u32, umask: u32) -> NewMode {
    NewMode { permissions: (mode & 0o7777) as u16, umask: (umask & 0o777) as u16 }
}

fn new_node(mode: u32, rdev: u32) -> Result<NewNode, Errno> {
    match FileKind::of_mode(mode) {
        Some(FileKind::Regular) => Ok(NewNode::Regular),
        Some(FileKind::Fifo) => Ok(NewNode::Fifo),
        Some(FileKind::Socket) => Ok(NewNode::Socket),
        Some(FileKind::CharDevice) => Ok(NewNode::CharDevice(rdev)),
        Some(FileKind::BlockDevice) => Ok(NewNode::BlockDevice(rdev)),
        Some(FileKind::Directory | FileKind::Symlink) | None => Err(Errno::INVAL),
    }
}

fn decode_rename(dir: Ino, to_dir: u64, flags: u32, parts: &mut Parts<'_>) -> Result<Op, Errno> {
    let mode = match flags {
        0 => RenameMode::Replace,
        1 => RenameMode::NoReplace,
        2 => RenameMode::Exchange,
        _ => return Err(Errno::INVAL),
    };
    Ok(Op::Rename { dir, name: parts.name()?, to_dir: Ino(to_dir), to_name: parts.name()?, mode })
}

fn decode_setattr(ino: Ino, args: &wire::SetattrIn) -> Result<Op, Errno> {
    let has = |bit: u32| args.valid & bit != 0;
    let time = |set: u32, now: u32, sec: i64, nsec: u32| match (has(set), has(now)) {
        (_, true) => Ok(Some(SetTime::Now)),
        (true, false) if nsec < 1_000_000_000 => Ok(Some(SetTime::To(Time { sec, nsec }))),
        (true, false) => Err(Errno::INVAL),
        (false, false) => Ok(None),
    };
    let set = SetAttr {
        permissions: has(fattr::MODE).then_some((args.mode & 0o7777) as u16),
        uid: has(fattr::UID).then_some(args.uid),
        gid: has(fattr::GID).then_some(args.gid),
        size: has(fattr::SIZE).then_some(args.size),
        atime: time(fattr::ATIME, fattr::ATIME_NOW, args.atime, args.atimensec)?,
        mtime: time(fattr::MTIME, fattr::MTIME_NOW, args.mtime, args.mtimensec)?,
        strip: has(fattr::KILL_SUIDGID),
    };
    Ok(Op::Setattr { ino, handle: has(fattr::FH).then_some(Handle(args.fh)), set })
}

/// Open files and directories.
fn decode_open(header: &InHeader, parts: &mut Parts<'_>) -> Result<Message, Errno> {
    let ino = Ino(header.nodeid);
    let (op, form) = match header.opcode {
        opcode::OPEN => {
            let args: wire::OpenIn = parts.record()?;
            (Op::Open { ino, how: open_how(args.flags, args.open_flags) }, Form::File)
        }
        opcode::CREATE => {
            let args: wire::CreateIn = parts.record()?;
            let op = Op::Create {
                dir: ino,
                name: parts.name()?,
                mode: new_mode(args.mode, args.umask),
                how: open_how(args.flags, args.open_flags),
                exclusive: args.flags & open::EXCLUSIVE != 0,
            };
            (op, Form::File)
        }
        opcode::OPENDIR => (Op::Opendir { ino }, Form::Plain),
        opcode::RELEASE | opcode::RELEASEDIR => {
            let args: wire::ReleaseIn = parts.record()?;
            let handle = Handle(args.fh);
            if header.opcode == opcode::RELEASE {
                (Op::Release { ino, handle }, Form::Plain)
            } else {
                (Op::Releasedir { ino, handle }, Form::Plain)
            }
        }
        _ => {
            let args: wire::ReadIn = parts.record()?;
            let plus = header.opcode == opcode::READDIRPLUS;
            let op = Op::Readdir { ino, handle: Handle(args.fh), from: args.offset, plus };
            let room = Memory::Room(args.size.min(IO_BYTES_MAX) as usize);
            return Ok(Message::Operation(op, room, Form::Entries));
        }
    };
    Ok(Message::Operation(op, Memory::None, form))
}

fn open_how(flags: u32, open_flags: u32) -> OpenHow {
    let access = match flags & open::ACCESS {
        open::READ_ONLY if flags & open::EXECUTE != 0 => OpenAccess::Execute,
        open::READ_ONLY => OpenAccess::Read,
        open::WRITE_ONLY => OpenAccess::Write,
        _ => OpenAccess::ReadWrite,
    };
    OpenHow {
        access,
        truncate: flags & open::TRUNCATE != 0,
        strip: open_flags & wire::OPEN_KILL_SUIDGID != 0,
    }
}

/// What reads, writes or places file data.
fn decode_data(header: &InHeader, parts: &mut Parts<'_>, landed: usize) -> Result<Message, Errno> {
    let ino = Ino(header.nodeid);
    Ok(plain(match header.opcode {
        opcode::READ => {
            let args: wire::ReadIn = parts.record()?;
            if args.size > IO_BYTES_MAX {
                return Err(Errno::INVAL);
            }
            Op::Read { ino, handle: Handle(args.fh), at: args.offset, len: args.size }
        }
        opcode::WRITE => {
            let args: wire::WriteIn = parts.record()?;
            if args.size as usize != landed {
                return Err(Errno::INVAL);
            }
            let append =
                args.flags & open::APPEND != 0 && args.write_flags & wire::WRITE_CACHE == 0;
            let op = Op::Write {
                ino,
                handle: Handle(args.fh),
                at: if append { WriteAt::End } else { WriteAt::Offset(args.offset) },
                len: args.size,
                strip: args.write_flags & wire::WRITE_KILL_SUIDGID != 0,
            };
            return Ok(Message::Operation(op, Memory::Landed(landed), Form::Plain));
        }
        opcode::FLUSH => {
            let args: wire::FlushIn = parts.record()?;
            Op::Flush { ino, handle: Handle(args.fh) }
        }
        opcode::FSYNC | opcode::FSYNCDIR => {
            let args: wire::FsyncIn = parts.record()?;
            let data_only = args.fsync_flags & wire::FSYNC_DATA_ONLY != 0;
            Op::Fsync { ino, handle: Handle(args.fh), data_only }
        }
        opcode::FALLOCATE => {
            let args: wire::FallocateIn = parts.record()?;
            let mode = match args.mode {
                0 => FallocateMode::Allocate,
                1 => FallocateMode::AllocateKeepSize,
                3 => FallocateMode::PunchHole,
                0x10 => FallocateMode::Zero,
                0x11 => FallocateMode::ZeroKeepSize,
                _ => return Err(Errno::OPNOTSUPP),
            };
            let handle = Handle(args.fh);
            Op::Fallocate { ino, handle, at: args.offset, len: args.length, mode }
        }
        _ => {
            let args: wire::LseekIn = parts.record()?;
            let whence = match args.whence {
                3 => Whence::Data,
                4 => Whence::Hole,
                _ => return Err(Errno::INVAL),
            };
            Op::Lseek { ino, handle: Handle(args.fh), at: args.offset, whence }
        }
    }))
}

fn decode_xattr(header: &InHeader, parts: &mut Parts<'_>) -> Result<Message, Errno> {
    let ino = Ino(header.nodeid);
    let room = |size: u32| match size {
        0 => Memory::None,
        _ => Memory::Room((size as usize).min(BYTES_LISTED_MAX)),
    };
    let (op, memory) = match header.opcode {
        opcode::SETXATTR => {
            let args: wire::SetxattrIn = parts.record()?;
            let name = parts.xattr_name()?;
            let mode = match args.flags {
                0 => XattrMode::Any,
                1 => XattrMode::Create,
                2 => XattrMode::Replace,
                _ => return Err(Errno::INVAL),
            };
            let value = parts.0.get(..args.size as usize).ok_or(Errno::INVAL)?;
            if value.len() > VALUE_BYTES_MAX {
                return Err(Errno::TOOBIG);
            }
            (Op::Setxattr { ino, name, mode }, Memory::Payload(Buffer::copy(value)))
        }
        opcode::GETXATTR => {
            let args: wire::GetxattrIn = parts.record()?;
            (Op::Getxattr { ino, name: parts.xattr_name()? }, room(args.size))
        }
        opcode::LISTXATTR => {
            let args: wire::GetxattrIn = parts.record()?;
            (Op::Listxattr { ino }, room(args.size))
        }
        _ => (Op::Removexattr { ino, name: parts.xattr_name()? }, Memory::None),
    };
    Ok(Message::Operation(op, memory, Form::Plain))
}

/// Longest list of names, and more than the longest value: what the kernel takes.
const BYTES_LISTED_MAX: usize = 65536;

/// The errno of an outcome.
pub(super) fn errno(error: OpError) -> Errno {
    match error {
        OpError::NotPermitted => Errno::PERM,
        OpError::NotFound => Errno::NOENT,
        OpError::Interrupted => Errno::INTR,
        OpError::Io => Errno::IO,
        OpError::NoSuchAddress => Errno::NXIO,
        OpError::TooBig => Errno::TOOBIG,
        OpError::BadHandle => Errno::BADF,
        OpError::Again => Errno::AGAIN,
        OpError::NoMemory => Errno::NOMEM,
        OpError::AccessDenied => Errno::ACCESS,
        OpError::Busy => Errno::BUSY,
        OpError::Exists => Errno::EXIST,
        OpError::CrossDevice => Errno::XDEV,
        OpError::NotDirectory => Errno::NOTDIR,
        OpError::IsDirectory => Errno::ISDIR,
        OpError::Invalid => Errno::INVAL,
        OpError::TooManyOpen => Errno::NFILE,
        OpError::FileTooBig => Errno::FBIG,
        OpError::NoSpace => Errno::NOSPC,
        OpError::ReadOnly => Errno::ROFS,
        OpError::TooManyLinks => Errno::MLINK,
        OpError::Range => Errno::RANGE,
        OpError::Deadlock => Errno::DEADLK,
        OpError::NameTooLong => Errno::NAMETOOLONG,
        OpError::NotEmpty => Errno::NOTEMPTY,
        OpError::Loop => Errno::LOOP,
        OpError::NoData => Errno::NODATA,
        OpError::NotSupported => Errno::OPNOTSUPP,
        OpError::Stale => Errno::STALE,
        OpError::Quota => Errno::DQUOT,
    }
}

#[cfg(test)]
mod tests {
    use super::{InHeader, Memory, Message, decode, opcode};
    use outrider_core::client::op::{NameBuf, NewMode, Op, OpenAccess, OpenHow, WriteAt};
    use outrider_core::format::Ino;
    use proptest::prelude::*;
    use rustix::io::Errno;

    fn header(opcode: u32) -> InHeader {
        InHeader { opcode, nodeid: 5, ..InHeader::default() }
    }

    fn words(words: &[u32], rest: &[u8]) -> Vec<u8> {
        let words = words.iter().flat_map(|word| word.to_ne_bytes());
        words.chain(rest.iter().copied()).collect()
    }

    fn operation(opcode: u32, body: &[u8], landed: usize) -> Result<Op, Errno> {
        match decode(&header(opcode), body, landed) {
            Message::Operation(op, _, _) => Ok(op),
            Message::Refused(errno) => Err(errno),
            Message::Forget(_) | Message::Interrupt(_) | Message::Destroy => Err(Errno::PROTO),
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_operation_or_refused(
            opcode in 0..60u32,
            body in prop::collection::vec(prop_oneof![Just(0), any::<u8>()], 0..300),
            landed in 0..300usize,
        ) {
            let message = decode(&header(opcode), &body, landed);
            if let Message::Operation(_, Memory::Room(room), _) = message {
                prop_assert!(room <= 1 << 20);
            }
        }
    }

    #[test]
    fn a_create_says_how_the_file_is_opened_and_for_whom() {
        let flags = 0o1000 | 0o200 | 1;
        let body = words(&[flags, 0o104_755, 0o22, 1], b"name\0");
        let op = Op::Create {
            dir: Ino(5),
            name: NameBuf::parse(b"name").unwrap(),
            mode: NewMode { permissions: 0o4755, umask: 0o22 },
            how: OpenHow { access: OpenAccess::Write, truncate: true, strip: true },
            exclusive: true,
        };
        assert_eq!(operation(opcode::CREATE, &body, 0), Ok(op));
    }

    #[test]
    fn an_append_goes_to_the_end_unless_pages_are_written_back() {
        for (write_flags, at) in [(0, WriteAt::End), (1, WriteAt::Offset(9))] {
            let body = words(&[7, 0, 9, 0, 100, write_flags, 0, 0, 0o2000, 0], &[]);
            let Ok(Op::Write { at: given, len, .. }) = operation(opcode::WRITE, &body, 100) else {
                panic!("not a write");
            };
            assert_eq!((given, len), (at, 100));
            // Data that are cut off.
            assert_eq!(operation(opcode::WRITE, &body, 99), Err(Errno::INVAL));
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_errno() {
        let long = [&[b'n'; 256][..], b"\0"].concat();
        assert_eq!(operation(opcode::LOOKUP, &long, 0), Err(Errno::NAMETOOLONG));
        assert_eq!(operation(opcode::LOOKUP, b"unended", 0), Err(Errno::INVAL));
        let whiteout = words(&[6, 0, 4, 0], b"a\0b\0");
        assert_eq!(operation(opcode::RENAME2, &whiteout, 0), Err(Errno::INVAL));
        let collapse = words(&[1, 0, 0, 0, 4096, 0, 8, 0], &[]);
        assert_eq!(operation(opcode::FALLOCATE, &collapse, 0), Err(Errno::OPNOTSUPP));
        let directory = words(&[0o040_755, 0, 0, 0], b"d\0");
        assert_eq!(operation(opcode::MKNOD, &directory, 0), Err(Errno::INVAL));
        assert_eq!(operation(opcode::STATFS + 1000, &[], 0), Err(Errno::NOSYS));
    }
}

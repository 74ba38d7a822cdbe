//! Calls made to the kernel, below a directory.
//!
//! # Invariants
//!
//! * A call is made by one thread with the user's credentials, which are put back before anything
//!   else.

use super::User;
use super::script::{
    OpenArg, Outcome, Path, SLOTS, Seen, Snapshot, Stat, Step, Subject, TimeArg, UMASK, Value,
};
use outrider_core::client::op::{FallocateMode, OpError, RenameMode, Whence, XattrMode};
use outrider_core::format::item::FileKind;
use rustix::fs::{
    self, Access, AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RenameFlags, SeekFrom,
    StatxFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, XattrFlags,
};
use rustix::io::Errno;
use rustix::thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// A directory of the host.
#[derive(Debug)]
pub struct Host {
    root: PathBuf,
    slots: [Option<OwnedFd>; SLOTS],
}

type Done<T> = rustix::io::Result<T>;

/// What statfs(2) says of ext4.
const EXT4: i64 = 0xef53;

/// Where a directory to compare with can be made: on ext4, by whose details a model goes where file
/// systems differ (tmpfs leaves a directory's times alone when an entry is replaced).
#[must_use]
pub fn reference_place() -> Option<PathBuf> {
    let mut places = [std::env::temp_dir(), PathBuf::from("/var/tmp")].into_iter();
    places.find(|place| fs::statfs(place).is_ok_and(|statfs| statfs.f_type == EXT4))
}

impl Host {
    /// This directory. Sets the process's umask.
    #[must_use]
    pub fn new(root: PathBuf) -> Host {
        rustix::process::umask(Mode::from_raw_mode(UMASK.into()));
        Host { root, slots: Default::default() }
    }

    /// Whether the file system can make ranges of zeros.
    #[must_use]
    pub fn can_zero(&self) -> bool {
        let path = self.root.join("probe");
        let flags = OFlags::CREATE | OFlags::RDWR;
        let Ok(file) = fs::open(&path, flags, Mode::RWXU) else { return false };
        let can = fs::fallocate(&file, FallocateFlags::ZERO_RANGE, 0, 4096).is_ok();
        let removed = fs::unlink(&path);
        can && removed.is_ok()
    }

    fn at(&self, path: &Path) -> PathBuf {
        let mut at = self.root.clone();
        at.extend(path);
        at
    }

    /// Whether the call isn't one about file systems. Found out as user 0, whoever makes it.
    fn skips(&self, step: &Step) -> bool {
        let kind = |path| {
            let stat = fs::lstat(self.at(path)).ok()?;
            Some(FileType::from_raw_mode(stat.st_mode))
        };
        match step {
            Step::Access { path, .. } | Step::Chmod { path, .. } => {
                kind(path) == Some(FileType::Symlink)
            }
            Step::Open { path, how, .. } if how.create.is_none() => !matches!(
                kind(path),
                None | Some(FileType::RegularFile | FileType::Directory | FileType::Symlink)
            ),
            _ => false,
        }
    }

    fn call(&mut self, step: &Step) -> Done<Value> {
        match step {
            Step::Mkdir { path, mode } => fs::mkdir(self.at(path), bits(*mode)).map(unit),
            Step::Rmdir { path } => fs::rmdir(self.at(path)).map(unit),
            Step::Mknod { path, kind, mode } => {
                let kind = FileType::from_raw_mode(kind.mode());
                let number = if kind == FileType::CharacterDevice { fs::makedev(1, 3) } else { 0 };
                fs::mknodat(CWD, self.at(path), kind, bits(*mode), number).map(unit)
            }
            Step::Symlink { target, path } => fs::symlink(*target, self.at(path)).map(unit),
            Step::Readlink { path } => {
                let target = fs::readlink(self.at(path), Vec::new())?;
                Ok(Value::Bytes(target.into_bytes()))
            }
            Step::Link { path, to } => fs::link(self.at(path), self.at(to)).map(unit),
            Step::Unlink { path } => fs::unlink(self.at(path)).map(unit),
            Step::Rename { path, to, mode } => {
                let flags = match mode {
                    RenameMode::Replace => RenameFlags::empty(),
                    RenameMode::NoReplace => RenameFlags::NOREPLACE,
                    RenameMode::Exchange => RenameFlags::EXCHANGE,
                };
                fs::renameat_with(CWD, self.at(path), CWD, self.at(to), flags).map(unit)
            }
            Step::Stat { path } => Ok(Value::Stat(stat(&fs::lstat(self.at(path))?))),
            Step::List { path } => self.list(path),
            Step::Access { .. } | Step::Chmod { .. } | Step::Chown { .. } | Step::Utimes { .. } => {
                self.call_attribute(step)
            }
            Step::Setxattr { .. }
            | Step::Getxattr { .. }
            | Step::Listxattr { .. }
            | Step::Removexattr { .. } => self.call_xattr(step),
            Step::Open { slot, path, how } => self.open(*slot, path, *how),
            Step::Close { slot } => {
                self.slots[*slot] = None;
                Ok(Value::Unit)
            }
            Step::Fstat { slot }
            | Step::Read { slot, .. }
            | Step::Write { slot, .. }
            | Step::Ftruncate { slot, .. }
            | Step::Fallocate { slot, .. }
            | Step::Seek { slot, .. }
            | Step::Fsync { slot } => match &self.slots[*slot] {
                None => Ok(Value::Skipped),
                Some(file) => call_file(file, step),
            },
        }
    }

    fn call_attribute(&self, step: &Step) -> Done<Value> {
        match step {
            Step::Access { path, mask } => {
                let access = [(4, Access::READ_OK), (2, Access::WRITE_OK), (1, Access::EXEC_OK)];
                let access = access.into_iter().filter(|(bit, _)| mask & bit != 0);
                let access = access.map(|(_, access)| access).collect();
                fs::access(self.at(path), access).map(unit)
            }
            Step::Chmod { path, mode } => fs::chmod(self.at(path), bits(*mode)).map(unit),
            Step::Chown { path, uid, gid } => {
                let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
                fs::chownat(CWD, self.at(path), uid, gid, AtFlags::SYMLINK_NOFOLLOW).map(unit)
            }
            Step::Utimes { path, atime, mtime } => {
                let times = Timestamps {
                    last_access: timespec(*atime),
                    last_modification: timespec(*mtime),
                };
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                fs::utimensat(CWD, self.at(path), &times, flags).map(unit)
            }
            _ => Ok(Value::Skipped),
        }
    }

    fn call_xattr(&self, step: &Step) -> Done<Value> {
        match step {
            Step::Setxattr { path, name, value, mode } => {
                let flags = match mode {
                    XattrMode::Any => XattrFlags::empty(),
                    XattrMode::Create => XattrFlags::CREATE,
                    XattrMode::Replace => XattrFlags::REPLACE,
                };
                fs::lsetxattr(self.at(path), *name, value, flags).map(unit)
            }
            Step::Getxattr { path, name } => {
                let mut value = vec![0; 70000];
                let len = fs::lgetxattr(self.at(path), *name, &mut value)?;
                value.truncate(len);
                Ok(Value::Bytes(value))
            }
            Step::Listxattr { path } => {
                let mut list = vec![0; 65536];
                let len = fs::llistxattr(self.at(path), &mut list)?;
                let names = list[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
                Ok(Value::Names(names.map(|name| (name.to_vec(), None)).collect()))
            }
            Step::Removexattr { path, name } => fs::lremovexattr(self.at(path), *name).map(unit),
            _ => Ok(Value::Skipped),
        }
    }

    fn list(&self, path: &Path) -> Done<Value> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW;
        let directory = fs::open(self.at(path), flags, Mode::empty())?;
        let mut names = BTreeMap::new();
        for entry in fs::Dir::new(directory)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes().to_vec();
            let twice = names.insert(name, Some(kind(entry.file_type())));
            assert!(twice.is_none(), "listed twice: {:?}", entry.file_name());
        }
        Ok(Value::Names(names))
    }

    fn open(&mut self, slot: usize, path: &Path, how: OpenArg) -> Done<Value> {
        let mut flags = match (how.read, how.write) {
            (true, false) => OFlags::RDONLY,
            (false, true) => OFlags::WRONLY,
            (_, _) => OFlags::RDWR,
        };
        flags |= OFlags::NOFOLLOW;
        for (on, flag) in [(how.truncate, OFlags::TRUNC), (how.append, OFlags::APPEND)] {
            flags.set(flag, on);
        }
        if how.create.is_some() {
            flags |= OFlags::CREATE | OFlags::EXCL;
        }
        let file = fs::open(self.at(path), flags, bits(how.create.unwrap_or(0)))?;
        let opened = FileType::from_raw_mode(fs::fstat(&file)?.st_mode);
        if opened != FileType::Directory {
            self.slots[slot] = Some(file);
        }
        Ok(Value::Unit)
    }

    fn look(&self, at: &std::path::Path, path: &str, seen: &mut Snapshot) {
        let flags = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        let Ok(statx) = fs::statx(CWD, at, AtFlags::SYMLINK_NOFOLLOW, flags) else { return };
        let lstat = fs::lstat(at).expect("it was there a moment ago");
        let entry = Seen {
            stat: stat(&lstat),
            id: (statx.stx_ino, statx.stx_btime.tv_sec, statx.stx_btime.tv_nsec),
            mtime: (statx.stx_mtime.tv_sec, statx.stx_mtime.tv_nsec),
            ctime: (statx.stx_ctime.tv_sec, statx.stx_ctime.tv_nsec),
        };
        seen.insert(path.to_owned(), entry);
        if entry.stat.kind == FileKind::Directory {
            for child in std::fs::read_dir(at).expect("root reads every directory") {
                let child = child.expect("root reads every directory");
                let name = child.file_name();
                self.look(&child.path(), &format!("{path}/{}", name.display()), seen);
            }
        }
    }
}

impl Subject for Host {
    fn run(&mut self, user: &User, step: &Step) -> Outcome {
        if self.skips(step) {
            return Ok(Value::Skipped);
        }
        assume(user);
        let done = self.call(step);
        assume(&User::ROOT);
        done.map_err(outcome)
    }

    fn snapshot(&mut self) -> Snapshot {
        let mut seen = Snapshot::new();
        self.look(&self.root.clone(), "", &mut seen);
        seen
    }

    fn contents(&mut self) -> BTreeMap<String, Vec<Vec<u8>>> {
        let snapshot = self.snapshot();
        let mut contents = BTreeMap::new();
        for (path, seen) in snapshot {
            let at = self.root.join(path.trim_start_matches('/'));
            let mut all = Vec::new();
            if seen.stat.kind == FileKind::Regular {
                all.push(std::fs::read(&at).expect("root reads every file"));
            }
            let mut list = vec![0; 65536];
            let len = fs::llistxattr(&at, &mut list).expect("root sees every attribute");
            let names = list[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
            let mut pairs: Vec<_> = names
                .map(|name| {
                    let mut value = vec![0; 70000];
                    let name = std::ffi::OsStr::from_bytes(name);
                    let len = fs::lgetxattr(&at, name, &mut value).expect("it is listed");
                    [name.as_bytes(), b"=", &value[..len]].concat()
                })
                .collect();
            pairs.sort();
            all.extend(pairs);
            contents.insert(path, all);
        }
        contents
    }
}

fn call_file(file: &OwnedFd, step: &Step) -> Done<Value> {
    match *step {
        Step::Fstat { .. } => Ok(Value::Stat(stat(&fs::fstat(file)?))),
        Step::Read { at, len, .. } => {
            let mut bytes = vec![0; len as usize];
            let len = rustix::io::pread(file, &mut bytes, at)?;
            bytes.truncate(len);
            Ok(Value::Bytes(bytes))
        }
        Step::Write { at, len, byte, .. } => {
            let bytes = vec![byte; len as usize];
            Ok(Value::Number(rustix::io::pwrite(file, &bytes, at)? as u64))
        }
        Step::Ftruncate { size, .. } => fs::ftruncate(file, size).map(unit),
        Step::Fallocate { at, len, mode, .. } => {
            let flags = match mode {
                FallocateMode::Allocate => FallocateFlags::empty(),
                FallocateMode::AllocateKeepSize => FallocateFlags::KEEP_SIZE,
                FallocateMode::PunchHole => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                FallocateMode::Zero => FallocateFlags::ZERO_RANGE,
                FallocateMode::ZeroKeepSize => {
                    FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE
                }
            };
            fs::fallocate(file, flags, at, len).map(unit)
        }
        Step::Seek { at, whence, .. } => {
            let to = match whence {
                Whence::Data => SeekFrom::Data(at),
                Whence::Hole => SeekFrom::Hole(at),
            };
            Ok(Value::Number(fs::seek(file, to)?))
        }
        Step::Fsync { .. } => fs::fsync(file).map(unit),
        _ => Ok(Value::Skipped),
    }
}

fn unit(_: ()) -> Value {
    Value::Unit
}

fn bits(mode: u16) -> Mode {
    Mode::from_raw_mode(mode.into())
}

fn timespec(time: TimeArg) -> Timespec {
    match time {
        TimeArg::Omit => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        TimeArg::Now => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        TimeArg::To(tv_sec) => Timespec { tv_sec, tv_nsec: 0 },
    }
}

fn kind(kind: FileType) -> FileKind {
    FileKind::of_mode(kind.as_raw_mode()).expect("the kernel knows no other types")
}

fn stat(stat: &fs::Stat) -> Stat {
    let kind = FileKind::of_mode(stat.st_mode).expect("the kernel knows no other types");
    Stat {
        kind,
        permissions: (stat.st_mode & 0o7777) as u16,
        nlink: stat.st_nlink,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: if kind == FileKind::Directory { 0 } else { stat.st_size.cast_unsigned() },
        rdev: stat.st_rdev,
    }
}

/// Takes on a user's credentials, from user 0 or back to it.
fn assume(user: &User) {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    let groups: Vec<Gid> = user.groups.iter().copied().map(Gid::from_raw).collect();
    if user.uid == 0 {
        set_thread_res_uid(uid, uid, uid).expect("the saved user is 0");
    }
    set_thread_groups(&groups).expect("user 0 may");
    set_thread_res_gid(gid, gid, Gid::ROOT).expect("user 0 may");
    if user.uid != 0 {
        set_thread_res_uid(uid, uid, Uid::ROOT).expect("user 0 may");
    }
}

/// What an errno means.
fn outcome(errno: Errno) -> OpError {
    match errno {
        Errno::PERM => OpError::NotPermitted,
        Errno::NOENT => OpError::NotFound,
        Errno::INTR => OpError::Interrupted,
        Errno::IO => OpError::Io,
        Errno::NXIO => OpError::NoSuchAddress,
        Errno::TOOBIG => OpError::TooBig,
        Errno::BADF => OpError::BadHandle,
        Errno::ACCESS => OpError::AccessDenied,
        Errno::BUSY => OpError::Busy,
        Errno::EXIST => OpError::Exists,
        Errno::XDEV => OpError::CrossDevice,
        Errno::NOTDIR => OpError::NotDirectory,
        Errno::ISDIR => OpError::IsDirectory,
        Errno::INVAL => OpError::Invalid,
        Errno::FBIG => OpError::FileTooBig,
        Errno::NOSPC => OpError::NoSpace,
        Errno::ROFS => OpError::ReadOnly,
        Errno::MLINK => OpError::TooManyLinks,
        Errno::RANGE => OpError::Range,
        Errno::NAMETOOLONG => OpError::NameTooLong,
        Errno::NOTEMPTY => OpError::NotEmpty,
        Errno::LOOP => OpError::Loop,
        Errno::NODATA => OpError::NoData,
        Errno::OPNOTSUPP => OpError::NotSupported,
        Errno::STALE => OpError::Stale,
        errno => panic!("no operation ends with {errno:?}"),
    }
}

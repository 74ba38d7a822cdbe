//! Calls made to a model: what a kernel does between a call and the operations of a file system, as
//! far as it shows.
//!
//! What this module deliberately doesn't know: permissions; it only says what kernels find out
//! before they ask (that a symlink isn't opened, that a descriptor isn't for writing).

use super::script::{
    OpenArg, Outcome, Path, SLOTS, Seen, Snapshot, Stat, Step, Subject, TimeArg, UMASK, Value,
};
use super::{Asked, Done, Model, ROOT, Result, User};
use outrider_core::client::op::{
    Attr, EntryReader, Handle, NameBuf, NewMode, NewNode, Op, OpError, OpenAccess, OpenHow, Reply,
    SetAttr, SetTime, WriteAt, XattrNameBuf,
};
use outrider_core::format::Ino;
use outrider_core::format::item::{FileKind, Time};
use std::collections::BTreeMap;

/// Something that executes operations: a model, or what is compared with one.
pub trait Executes {
    /// Executes a request.
    ///
    /// # Errors
    ///
    /// Those of the operation.
    fn execute(&mut self, asked: &Asked<'_>) -> Result<Done>;
}

impl Executes for Model {
    fn execute(&mut self, asked: &Asked<'_>) -> Result<Done> {
        Model::execute(self, asked)
    }
}

/// A model, or another file system, used through calls.
#[derive(Debug, Clone)]
pub struct Walk<F = Model> {
    /// What executes the operations.
    pub model: F,
    slots: [Option<Descriptor>; SLOTS],
    clock: i64,
}

#[derive(Debug, Clone, Copy)]
struct Descriptor {
    ino: Ino,
    handle: Handle,
    how: OpenArg,
}

/// Enough room for any answer of these scripts.
const ROOM: usize = 1 << 17;

impl Walk {
    /// An empty file system whose root has these permissions.
    #[must_use]
    pub fn new(permissions: u16) -> Walk {
        Walk::over(Model::new(permissions, Walk::<Model>::START))
    }
}

impl<F: Executes> Walk<F> {
    /// The time before the first call.
    pub const START: Time = Time { sec: 1_000_000, nsec: 0 };

    /// Calls made to this file system.
    pub fn over(model: F) -> Walk<F> {
        Walk { model, slots: [None; SLOTS], clock: Self::START.sec }
    }

    fn ask(&mut self, user: &User, op: &Op, data: &[u8]) -> Result<Done> {
        let now = Time { sec: self.clock, nsec: 0 };
        self.model.execute(&Asked { user, now, op, data, room: Some(ROOM) })
    }

    fn entry(&mut self, user: &User, op: &Op, data: &[u8]) -> Result<Attr> {
        let attr = match self.ask(user, op, data)?.reply {
            Reply::Entry(attr) => attr,
            other => panic!("not an entry: {other:?}"),
        };
        // The inode keeps its name for as long as this call needs it.
        let forgotten = self.ask(user, &Op::Forget { ino: attr.ino, lookups: 1 }, &[]);
        forgotten.expect("it was looked up");
        Ok(attr)
    }

    /// The directory that a path's last component is in, and that component.
    fn parent(&mut self, user: &User, path: &Path) -> Result<(Ino, NameBuf)> {
        let (last, directories) = path.split_last().expect("a path has components");
        let mut dir = ROOT;
        for component in directories {
            let name = NameBuf::parse(component.as_bytes())?;
            let attr = self.entry(user, &Op::Lookup { dir, name }, &[])?;
            if attr.kind != FileKind::Directory {
                return Err(OpError::NotDirectory);
            }
            dir = attr.ino;
        }
        self.ask(user, &Op::Access { ino: dir, mask: 1 }, &[])?;
        Ok((dir, NameBuf::parse(last.as_bytes())?))
    }

    fn find(&mut self, user: &User, path: &Path) -> Result<Attr> {
        if path.is_empty() {
            return match self.ask(user, &Op::Getattr { ino: ROOT }, &[])?.reply {
                Reply::Attr(attr) => Ok(attr),
                other => panic!("not attributes: {other:?}"),
            };
        }
        let (dir, name) = self.parent(user, path)?;
        self.entry(user, &Op::Lookup { dir, name }, &[])
    }

    fn is_symlink(&mut self, path: &Path) -> bool {
        self.find(&User::ROOT, path).is_ok_and(|attr| attr.kind == FileKind::Symlink)
    }

    fn call(&mut self, user: &User, step: &Step) -> Outcome {
        match step {
            Step::Mkdir { .. }
            | Step::Rmdir { .. }
            | Step::Mknod { .. }
            | Step::Symlink { .. }
            | Step::Link { .. }
            | Step::Unlink { .. }
            | Step::Rename { .. } => self.change_tree(user, step),
            Step::Readlink { path } => {
                let ino = self.find(user, path)?.ino;
                Ok(Value::Bytes(self.ask(user, &Op::Readlink { ino }, &[])?.data))
            }
            Step::Stat { path } => Ok(Value::Stat(stat(&self.find(user, path)?))),
            Step::List { path } => self.list(user, path),
            Step::Access { .. } | Step::Chmod { .. } | Step::Chown { .. } | Step::Utimes { .. } => {
                self.change_attributes(user, step)
            }
            Step::Setxattr { .. }
            | Step::Getxattr { .. }
            | Step::Listxattr { .. }
            | Step::Removexattr { .. } => self.use_xattr(user, step),
            Step::Open { slot, path, how } => self.open(user, *slot, path, *how),
            Step::Close { slot } => {
                if let Some(Descriptor { ino, handle, .. }) = self.slots[*slot].take() {
                    self.ask(user, &Op::Release { ino, handle }, &[])?;
                }
                Ok(Value::Unit)
            }
            Step::Fstat { slot }
            | Step::Read { slot, .. }
            | Step::Write { slot, .. }
            | Step::Ftruncate { slot, .. }
            | Step::Fallocate { slot, .. }
            | Step::Seek { slot, .. }
            | Step::Fsync { slot } => match self.slots[*slot] {
                None => Ok(Value::Skipped),
                Some(descriptor) => self.use_file(user, descriptor, step),
            },
        }
    }

    fn change_tree(&mut self, user: &User, step: &Step) -> Outcome {
        match step {
            Step::Mkdir { path, mode } => {
                let (dir, name) = self.parent(user, path)?;
                self.entry(user, &Op::Mkdir { dir, name, mode: new_mode(*mode) }, &[])?;
            }
            Step::Mknod { path, kind, mode } => {
                let (dir, name) = self.parent(user, path)?;
                let node = match kind {
                    FileKind::Fifo => NewNode::Fifo,
                    FileKind::Socket => NewNode::Socket,
                    FileKind::CharDevice => NewNode::CharDevice(0x103),
                    _ => NewNode::Regular,
                };
                self.entry(user, &Op::Mknod { dir, name, mode: new_mode(*mode), node }, &[])?;
            }
            Step::Symlink { target, path } => {
                let (dir, name) = self.parent(user, path)?;
                self.entry(user, &Op::Symlink { dir, name }, target.as_bytes())?;
            }
            Step::Link { path, to } => {
                let ino = self.find(user, path)?.ino;
                let (dir, name) = self.parent(user, to)?;
                self.entry(user, &Op::Link { ino, dir, name }, &[])?;
            }
            Step::Unlink { path } => {
                let (dir, name) = self.parent(user, path)?;
                self.ask(user, &Op::Unlink { dir, name }, &[])?;
            }
            Step::Rmdir { path } => {
                let (dir, name) = self.parent(user, path)?;
                self.ask(user, &Op::Rmdir { dir, name }, &[])?;
            }
            Step::Rename { path, to, mode } => {
                let (dir, name) = self.parent(user, path)?;
                let (to_dir, to_name) = self.parent(user, to)?;
                self.ask(user, &Op::Rename { dir, name, to_dir, to_name, mode: *mode }, &[])?;
            }
            _ => return Ok(Value::Skipped),
        }
        Ok(Value::Unit)
    }

    fn change_attributes(&mut self, user: &User, step: &Step) -> Outcome {
        let (path, set) = match step {
            Step::Access { path, .. } | Step::Chmod { path, .. } if self.is_symlink(path) => {
                return Ok(Value::Skipped);
            }
            Step::Access { path, mask } => {
                let ino = self.find(user, path)?.ino;
                self.ask(user, &Op::Access { ino, mask: *mask }, &[])?;
                return Ok(Value::Unit);
            }
            Step::Chmod { path, mode } => {
                (path, SetAttr { permissions: Some(*mode), ..SetAttr::default() })
            }
            Step::Chown { path, uid, gid } => {
                (path, SetAttr { uid: *uid, gid: *gid, ..SetAttr::default() })
            }
            Step::Utimes { path, atime, mtime } => {
                let (atime, mtime) = (set_time(*atime), set_time(*mtime));
                (path, SetAttr { atime, mtime, ..SetAttr::default() })
            }
            _ => return Ok(Value::Skipped),
        };
        let ino = self.find(user, path)?.ino;
        self.ask(user, &Op::Setattr { ino, handle: None, set }, &[])?;
        Ok(Value::Unit)
    }

    fn use_xattr(&mut self, user: &User, step: &Step) -> Outcome {
        let name_of = |name: &str| XattrNameBuf::parse(name.as_bytes()).map_err(OpError::from);
        match step {
            Step::Setxattr { path, name, value, mode } => {
                let (ino, name) = (self.find(user, path)?.ino, name_of(name)?);
                self.ask(user, &Op::Setxattr { ino, name, mode: *mode }, value)?;
                Ok(Value::Unit)
            }
            Step::Getxattr { path, name } => {
                let (ino, name) = (self.find(user, path)?.ino, name_of(name)?);
                Ok(Value::Bytes(self.ask(user, &Op::Getxattr { ino, name }, &[])?.data))
            }
            Step::Listxattr { path } => {
                let ino = self.find(user, path)?.ino;
                let list = self.ask(user, &Op::Listxattr { ino }, &[])?.data;
                let names = list.split(|byte| *byte == 0).filter(|name| !name.is_empty());
                Ok(Value::Names(names.map(|name| (name.to_vec(), None)).collect()))
            }
            Step::Removexattr { path, name } => {
                let (ino, name) = (self.find(user, path)?.ino, name_of(name)?);
                self.ask(user, &Op::Removexattr { ino, name }, &[])?;
                Ok(Value::Unit)
            }
            _ => Ok(Value::Skipped),
        }
    }

    fn list(&mut self, user: &User, path: &Path) -> Outcome {
        let attr = self.find(user, path)?;
        if attr.kind != FileKind::Directory {
            return Err(OpError::NotDirectory);
        }
        let ino = attr.ino;
        let Reply::Opened(handle) = self.ask(user, &Op::Opendir { ino }, &[])?.reply else {
            panic!("not open");
        };
        let list = self.entries(user, ino, handle, 0, false)?;
        self.ask(user, &Op::Releasedir { ino, handle }, &[])?;
        let names = EntryReader::new(&list).map(|entry| (entry.name.to_vec(), Some(entry.kind)));
        Ok(Value::Names(names.collect()))
    }

    /// The entries of an open directory from a position on: what is given may be a part of them.
    fn entries(
        &mut self,
        user: &User,
        ino: Ino,
        handle: Handle,
        mut from: u64,
        plus: bool,
    ) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        loop {
            let part = self.ask(user, &Op::Readdir { ino, handle, from, plus }, &[])?.data;
            let Some(last) = EntryReader::new(&part).last() else { return Ok(all) };
            from = last.next;
            all.extend_from_slice(&part);
        }
    }

    fn open(&mut self, user: &User, slot: usize, path: &Path, how: OpenArg) -> Outcome {
        let access = match (how.read, how.write) {
            (true, false) => OpenAccess::Read,
            (false, true) => OpenAccess::Write,
            (_, _) => OpenAccess::ReadWrite,
        };
        let open_how = OpenHow { access, truncate: how.truncate, strip: user.uid != 0 };
        if let Some(mode) = how.create {
            let (dir, name) = self.parent(user, path)?;
            let mode = new_mode(mode);
            let op = Op::Create { dir, name, mode, how: open_how, exclusive: true };
            let Reply::Created(attr, handle) = self.ask(user, &op, &[])?.reply else {
                panic!("not created");
            };
            self.ask(user, &Op::Forget { ino: attr.ino, lookups: 1 }, &[])?;
            self.put(user, slot, Descriptor { ino: attr.ino, handle, how });
            return Ok(Value::Unit);
        }
        let existing = self.find(&User::ROOT, path).map(|attr| attr.kind);
        if !matches!(
            existing,
            Err(_) | Ok(FileKind::Regular | FileKind::Directory | FileKind::Symlink)
        ) {
            return Ok(Value::Skipped);
        }
        let attr = self.find(user, path)?;
        let ino = attr.ino;
        let directory = attr.kind == FileKind::Directory;
        if directory && !how.write && !how.truncate {
            let Reply::Opened(handle) = self.ask(user, &Op::Opendir { ino }, &[])?.reply else {
                panic!("not open");
            };
            self.ask(user, &Op::Releasedir { ino, handle }, &[])?;
            return Ok(Value::Unit);
        }
        let Reply::Opened(handle) = self.ask(user, &Op::Open { ino, how: open_how }, &[])?.reply
        else {
            panic!("not open");
        };
        self.put(user, slot, Descriptor { ino, handle, how });
        Ok(Value::Unit)
    }

    fn put(&mut self, user: &User, slot: usize, descriptor: Descriptor) {
        if let Some(Descriptor { ino, handle, .. }) = self.slots[slot].replace(descriptor) {
            self.ask(user, &Op::Release { ino, handle }, &[]).expect("it was open");
        }
    }

    fn use_file(&mut self, user: &User, descriptor: Descriptor, step: &Step) -> Outcome {
        let Descriptor { ino, handle, how } = descriptor;
        let strip = user.uid != 0;
        let refuse = |refused: bool, error| if refused { Err(error) } else { Ok(()) };
        let op = match *step {
            Step::Fstat { .. } => Op::Getattr { ino },
            Step::Read { at, len, .. } => {
                refuse(!how.read, OpError::BadHandle)?;
                Op::Read { ino, handle, at, len }
            }
            Step::Write { at, len, .. } => {
                refuse(!how.write, OpError::BadHandle)?;
                let at = if how.append { WriteAt::End } else { WriteAt::Offset(at) };
                Op::Write { ino, handle, at, len, strip }
            }
            Step::Ftruncate { size, .. } => {
                refuse(!how.write, OpError::Invalid)?;
                let set = SetAttr { size: Some(size), strip, ..SetAttr::default() };
                Op::Setattr { ino, handle: Some(handle), set }
            }
            Step::Fallocate { at, len, mode, .. } => {
                refuse(!how.write, OpError::BadHandle)?;
                Op::Fallocate { ino, handle, at, len, mode }
            }
            Step::Seek { at, whence, .. } => Op::Lseek { ino, handle, at, whence },
            Step::Fsync { .. } => Op::Fsync { ino, handle, data_only: false },
            _ => return Ok(Value::Skipped),
        };
        let data = match *step {
            Step::Write { len, byte, .. } => vec![byte; len as usize],
            _ => Vec::new(),
        };
        let done = self.ask(user, &op, &data)?;
        Ok(match (step, done.reply) {
            (Step::Read { .. }, _) => Value::Bytes(done.data),
            (Step::Fstat { .. }, Reply::Attr(attr)) => Value::Stat(stat(&attr)),
            (_, Reply::Count(count)) => Value::Number(count.into()),
            (_, Reply::Offset(offset)) => Value::Number(offset),
            (_, _) => Value::Unit,
        })
    }

    fn look(&mut self, attr: &Attr, path: &str, seen: &mut Snapshot) {
        let entry = Seen {
            stat: stat(attr),
            id: (attr.ino.0, 0, 0),
            mtime: (attr.mtime.sec, attr.mtime.nsec),
            ctime: (attr.ctime.sec, attr.ctime.nsec),
        };
        seen.insert(path.to_owned(), entry);
        if attr.kind == FileKind::Directory {
            for (name, child) in self.children(attr.ino) {
                self.look(&child, &format!("{path}/{name}"), seen);
            }
        }
    }

    fn children(&mut self, ino: Ino) -> Vec<(String, Attr)> {
        let user = User::ROOT;
        let opened = self.ask(&user, &Op::Opendir { ino }, &[]).expect("it is a directory");
        let Reply::Opened(handle) = opened.reply else { panic!("not open") };
        let list = self.entries(&user, ino, handle, 2, true).expect("it is open");
        self.ask(&user, &Op::Releasedir { ino, handle }, &[]).expect("it is open");
        let children: Vec<_> = EntryReader::new(&list)
            .map(|entry| {
                let name = String::from_utf8_lossy(entry.name).into_owned();
                (name, entry.attr.expect("attributes were asked for"))
            })
            .collect();
        for (_, attr) in &children {
            let forget = Op::Forget { ino: attr.ino, lookups: 1 };
            self.ask(&user, &forget, &[]).expect("it was counted");
        }
        children
    }
}

impl<F: Executes> Subject for Walk<F> {
    fn run(&mut self, user: &User, step: &Step) -> Outcome {
        self.clock += 1;
        self.call(user, step)
    }

    fn snapshot(&mut self) -> Snapshot {
        let mut seen = Snapshot::new();
        let root = self.find(&User::ROOT, &Vec::new()).expect("there is a root");
        self.look(&root, "", &mut seen);
        seen
    }

    fn contents(&mut self) -> BTreeMap<String, Vec<Vec<u8>>> {
        let user = User::ROOT;
        let snapshot = self.snapshot();
        let mut contents = BTreeMap::new();
        for (path, seen) in snapshot {
            let ino = Ino(seen.id.0);
            let mut all = Vec::new();
            if seen.stat.kind == FileKind::Regular {
                let how = OpenHow { access: OpenAccess::Read, truncate: false, strip: false };
                let opened = self.ask(&user, &Op::Open { ino, how }, &[]).expect("root may");
                let Reply::Opened(handle) = opened.reply else { panic!("not open") };
                let read = Op::Read { ino, handle, at: 0, len: seen.stat.size as u32 };
                all.push(self.ask(&user, &read, &[]).expect("it is open").data);
                self.ask(&user, &Op::Release { ino, handle }, &[]).expect("it is open");
            }
            let list = self.ask(&user, &Op::Listxattr { ino }, &[]).expect("it exists").data;
            for name in list.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
                let parsed = XattrNameBuf::parse(name).expect("it is listed");
                let value = self.ask(&user, &Op::Getxattr { ino, name: parsed }, &[]);
                all.push([name, b"=", &value.expect("it is listed").data].concat());
            }
            contents.insert(path, all);
        }
        contents
    }
}

fn new_mode(mode: u16) -> NewMode {
    NewMode { permissions: mode, umask: UMASK }
}

fn set_time(time: TimeArg) -> Option<SetTime> {
    match time {
        TimeArg::Omit => None,
        TimeArg::Now => Some(SetTime::Now),
        TimeArg::To(sec) => Some(SetTime::To(Time { sec, nsec: 0 })),
    }
}

fn stat(attr: &Attr) -> Stat {
    let rdev = u64::from(attr.rdev);
    Stat {
        kind: attr.kind,
        permissions: attr.permissions,
        nlink: attr.nlink.into(),
        uid: attr.uid,
        gid: attr.gid,
        size: if attr.kind == FileKind::Directory { 0 } else { attr.size },
        rdev,
    }
}

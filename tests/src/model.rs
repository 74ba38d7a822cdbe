//! A file system in memory, as plain as can be: the oracle that mounts are compared with.
//!
//! It executes the same [`Op`]s as a mount's core, at once and with the caller's groups known, and
//! answers reads with bytes instead of places. Its semantics are Linux's, which a test proves
//! against a real file system: [`script`] makes random sequences of system calls, [`host`] runs
//! them under a directory, and [`walk`] on a model.
//!
//! # Invariants
//!
//! * The same calls give the same answers: there is no clock, no randomness, no order by address.
//! * An operation that fails has changed nothing.
//! * An inode lives as long as it has a name, a lookup that was not given back, or an open handle.
//!
//! What this module deliberately doesn't know: blocks of devices, other mounts, limits of memory.

use outrider_core::client::op::{
    Attr, EntryWriter, FallocateMode, Handle, ListEntry, NameBuf, NewMode, NewNode, Op, OpError,
    OpenAccess, OpenHow, RenameMode, Reply, SetAttr, SetTime, Statfs, TARGET_BYTES_MAX,
    VALUE_BYTES_MAX, Whence, WriteAt, XattrMode, XattrNameBuf,
};
use outrider_core::format::Ino;
use outrider_core::format::item::{FILE_BYTES_MAX, FileKind, LINKS_MAX, Time};
use std::collections::BTreeMap;

mod content;
pub mod host;
pub mod script;
pub mod walk;

use content::{BLOCK, Content};

/// The root directory.
pub const ROOT: Ino = Ino(1);

const SET_UID: u16 = 0o4000;
const SET_GID: u16 = 0o2000;
const STICKY: u16 = 0o1000;
const READ: u8 = 4;
const WRITE: u8 = 2;
const SEARCH: u8 = 1;

/// Who asks, with all groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

impl User {
    /// User 0, who may do everything.
    pub const ROOT: User = User { uid: 0, gid: 0, groups: Vec::new() };

    fn is_root(&self) -> bool {
        self.uid == 0
    }

    fn is_member(&self, gid: u32) -> bool {
        self.is_root() || self.gid == gid || self.groups.contains(&gid)
    }
}

/// A request to a model.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Who asks.
    pub user: &'a User,
    /// What times become.
    pub now: Time,
    /// What is asked.
    pub op: &'a Op,
    /// What comes with it: a symlink's target, an attribute's value, the bytes of a write.
    pub data: &'a [u8],
    /// Room for the answer, if there is any.
    pub room: Option<usize>,
}

/// How a request succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// The reply.
    pub reply: Reply,
    /// What the operation leaves in lent memory, and the bytes of a read.
    pub data: Vec<u8>,
}

impl From<Reply> for Done {
    fn from(reply: Reply) -> Done {
        Done { reply, data: Vec::new() }
    }
}

type Result<T> = std::result::Result<T, OpError>;

/// A file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    nodes: BTreeMap<Ino, Node>,
    last_ino: Ino,
    handles: BTreeMap<Handle, Ino>,
    last_handle: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    attr: Attr,
    body: Body,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    lookups: u64,
    opens: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Body {
    Directory(Directory),
    File(Content),
    Symlink(Vec<u8>),
    Special,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Directory {
    parent: Ino,
    by_name: BTreeMap<NameBuf, u64>,
    by_pos: BTreeMap<u64, (NameBuf, Ino)>,
    next_pos: u64,
}

impl Directory {
    fn new(parent: Ino) -> Directory {
        Directory { parent, by_name: BTreeMap::new(), by_pos: BTreeMap::new(), next_pos: 2 }
    }

    fn find(&self, name: &NameBuf) -> Option<Ino> {
        self.by_name.get(name).map(|pos| self.by_pos[pos].1)
    }

    fn insert(&mut self, name: &NameBuf, ino: Ino) {
        self.by_name.insert(name.clone(), self.next_pos);
        self.by_pos.insert(self.next_pos, (name.clone(), ino));
        self.next_pos += 1;
    }

    fn remove(&mut self, name: &NameBuf) {
        let pos = self.by_name.remove(name).expect("it was found");
        self.by_pos.remove(&pos);
    }
}

impl Node {
    fn is_directory(&self) -> bool {
        self.attr.kind == FileKind::Directory
    }

    fn touch(&mut self, now: Time) {
        self.attr.mtime = now;
        self.attr.ctime = now;
    }

    /// Whether the user has all the permissions in the mask.
    fn may(&self, user: &User, mask: u8) -> Result<()> {
        let attr = &self.attr;
        let bits = if user.is_root() {
            let executable = self.is_directory() || attr.permissions & 0o111 != 0;
            READ | WRITE | if executable { SEARCH } else { 0 }
        } else if user.uid == attr.uid {
            (attr.permissions >> 6) as u8
        } else if user.is_member(attr.gid) {
            (attr.permissions >> 3) as u8
        } else {
            attr.permissions as u8
        };
        if bits & mask == mask { Ok(()) } else { Err(OpError::AccessDenied) }
    }

    fn owned_by(&self, user: &User) -> bool {
        user.is_root() || user.uid == self.attr.uid
    }

    fn strip(&mut self, user: &User) {
        let permissions = &mut self.attr.permissions;
        let member = user.is_member(self.attr.gid);
        *permissions &= !SET_UID;
        if *permissions & 0o010 != 0 || !member {
            *permissions &= !SET_GID;
        }
    }

    fn content(&mut self) -> Result<&mut Content> {
        match &mut self.body {
            Body::File(content) => Ok(content),
            Body::Directory(_) => Err(OpError::IsDirectory),
            Body::Symlink(_) | Body::Special => Err(OpError::Invalid),
        }
    }

    fn resize(&mut self, size: u64) -> Result<()> {
        if size > FILE_BYTES_MAX {
            return Err(OpError::FileTooBig);
        }
        self.content()?.resize(size);
        self.measure();
        Ok(())
    }

    /// Brings the attributes that say how large the contents are up to date.
    fn measure(&mut self) {
        if let Body::File(content) = &self.body {
            self.attr.size = content.size();
            self.attr.sectors = content.block_count() * (BLOCK / 512);
        }
    }
}

impl Model {
    /// An empty file system, whose root has these permissions and belongs to user and group 0.
    #[must_use]
    pub fn new(permissions: u16, now: Time) -> Model {
        let mut model = Model {
            nodes: BTreeMap::new(),
            last_ino: Ino(0),
            handles: BTreeMap::new(),
            last_handle: 0,
        };
        let body = Body::Directory(Directory::new(ROOT));
        let root = model.add(&User::ROOT, FileKind::Directory, permissions, 0, body, now);
        let root = model.nodes.get_mut(&root).expect("it was just made");
        root.attr.nlink = 2;
        root.lookups = 1;
        model
    }

    /// Executes a request.
    pub fn execute(&mut self, asked: &Asked<'_>) -> Result<Done> {
        let (user, now) = (asked.user, asked.now);
        match asked.op {
            Op::Lookup { dir, name } => self.lookup(user, *dir, name),
            Op::Forget { ino, lookups } => {
                let node = self.node_mut(*ino)?;
                node.lookups = node.lookups.saturating_sub(*lookups);
                self.reap(*ino);
                Ok(Reply::Empty.into())
            }
            Op::Getattr { ino } => Ok(Reply::Attr(self.node(*ino)?.attr).into()),
            Op::Setattr { ino, handle, set } => self.setattr(user, now, *ino, *handle, set),
            Op::Access { ino, mask } => {
                self.node(*ino)?.may(user, *mask)?;
                Ok(Reply::Empty.into())
            }
            Op::Readlink { .. }
            | Op::Symlink { .. }
            | Op::Mknod { .. }
            | Op::Mkdir { .. }
            | Op::Create { .. } => self.make(asked),
            Op::Unlink { dir, name } => self.remove(user, now, *dir, name, false),
            Op::Rmdir { dir, name } => self.remove(user, now, *dir, name, true),
            Op::Rename { dir, name, to_dir, to_name, mode } => {
                self.rename(user, now, (*dir, name), (*to_dir, to_name), *mode)
            }
            Op::Link { ino, dir, name } => self.link(user, now, *ino, *dir, name),
            Op::Open { ino, how } => self.open(user, now, *ino, *how),
            Op::Opendir { ino } => {
                self.directory(*ino)?;
                self.node(*ino)?.may(user, READ)?;
                Ok(Reply::Opened(self.add_handle(*ino)).into())
            }
            Op::Release { ino, handle } | Op::Releasedir { ino, handle } => {
                self.handle(*ino, *handle)?;
                self.handles.remove(handle);
                self.node_mut(*ino)?.opens -= 1;
                self.reap(*ino);
                Ok(Reply::Empty.into())
            }
            Op::Readdir { ino, handle, from, plus } => {
                self.handle(*ino, *handle)?;
                self.readdir(*ino, *from, *plus, asked.room.unwrap_or(0))
            }
            Op::Read { .. }
            | Op::Write { .. }
            | Op::Flush { .. }
            | Op::Fsync { .. }
            | Op::Fallocate { .. }
            | Op::Lseek { .. } => self.transfer(asked),
            Op::Getxattr { .. }
            | Op::Setxattr { .. }
            | Op::Listxattr { .. }
            | Op::Removexattr { .. } => self.xattr(asked),
            Op::Statfs => Ok(Reply::Statfs(self.statfs()).into()),
            Op::Query(_) => Err(OpError::NotSupported),
        }
    }

    /// How many names an inode has, if it is there.
    #[must_use]
    pub fn links(&self, ino: Ino) -> Option<u32> {
        self.nodes.get(&ino).map(|node| node.attr.nlink)
    }

    /// How many inodes there are, also without names.
    #[must_use]
    pub fn count_inodes(&self) -> usize {
        self.nodes.len()
    }

    /// How many handles are open.
    #[must_use]
    pub fn count_handles(&self) -> usize {
        self.handles.len()
    }

    fn node(&self, ino: Ino) -> Result<&Node> {
        self.nodes.get(&ino).ok_or(OpError::Stale)
    }

    fn node_mut(&mut self, ino: Ino) -> Result<&mut Node> {
        self.nodes.get_mut(&ino).ok_or(OpError::Stale)
    }

    fn directory(&self, ino: Ino) -> Result<&Directory> {
        match &self.node(ino)?.body {
            Body::Directory(directory) => Ok(directory),
            Body::File(_) | Body::Symlink(_) | Body::Special => Err(OpError::NotDirectory),
        }
    }

    fn directory_mut(&mut self, ino: Ino) -> Result<&mut Directory> {
        match &mut self.node_mut(ino)?.body {
            Body::Directory(directory) => Ok(directory),
            Body::File(_) | Body::Symlink(_) | Body::Special => Err(OpError::NotDirectory),
        }
    }

    fn handle(&self, ino: Ino, handle: Handle) -> Result<()> {
        if self.handles.get(&handle) == Some(&ino) { Ok(()) } else { Err(OpError::BadHandle) }
    }

    fn add_handle(&mut self, ino: Ino) -> Handle {
        self.last_handle += 1;
        let handle = Handle(self.last_handle);
        self.handles.insert(handle, ino);
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.opens += 1;
        }
        handle
    }

    fn add(
        &mut self,
        user: &User,
        kind: FileKind,
        permissions: u16,
        rdev: u32,
        body: Body,
        now: Time,
    ) -> Ino {
        self.last_ino = self.last_ino.next();
        let ino = self.last_ino;
        let size = match &body {
            Body::Symlink(target) => target.len() as u64,
            Body::Directory(_) | Body::File(_) | Body::Special => 0,
        };
        let attr = Attr {
            ino,
            kind,
            permissions,
            nlink: 0,
            uid: user.uid,
            gid: user.gid,
            rdev,
            size,
            sectors: 0,
            atime: now,
            mtime: now,
            ctime: now,
            crtime: now,
        };
        let node = Node { attr, body, xattrs: BTreeMap::new(), lookups: 0, opens: 0 };
        self.nodes.insert(ino, node);
        ino
    }

    /// Deletes an inode that nothing holds any more.
    fn reap(&mut self, ino: Ino) {
        let unused = |node: &Node| node.attr.nlink == 0 && node.lookups == 0 && node.opens == 0;
        if self.nodes.get(&ino).is_some_and(unused) {
            self.nodes.remove(&ino);
        }
    }

    /// The entry of this name, for one who may search.
    fn find(&self, user: &User, dir: Ino, name: &NameBuf) -> Result<Option<Ino>> {
        let directory = self.directory(dir)?;
        self.node(dir)?.may(user, SEARCH)?;
        Ok(directory.find(name))
    }

    fn entry(&mut self, ino: Ino) -> Result<Attr> {
        let node = self.node_mut(ino)?;
        node.lookups += 1;
        Ok(node.attr)
    }

    fn lookup(&mut self, user: &User, dir: Ino, name: &NameBuf) -> Result<Done> {
        let ino = self.find(user, dir, name)?.ok_or(OpError::NotFound)?;
        Ok(Reply::Entry(self.entry(ino)?).into())
    }

    /// Checks that a name can be put into a directory.
    fn check_new(&self, user: &User, dir: Ino, name: &NameBuf) -> Result<()> {
        if self.find(user, dir, name)?.is_some() {
            return Err(OpError::Exists);
        }
        if self.node(dir)?.attr.nlink == 0 {
            return Err(OpError::NotFound);
        }
        self.node(dir)?.may(user, WRITE)
    }

    /// Checks that an entry can be taken out of a directory, as that of a directory or not.
    fn check_removal(&self, user: &User, dir: Ino, ino: Ino, as_directory: bool) -> Result<()> {
        let (parent, node) = (self.node(dir)?, self.node(ino)?);
        parent.may(user, WRITE | SEARCH)?;
        let sticky = parent.attr.permissions & STICKY != 0;
        if sticky && !parent.owned_by(user) && !node.owned_by(user) {
            return Err(OpError::NotPermitted);
        }
        match (as_directory, node.is_directory()) {
            (true, false) => Err(OpError::NotDirectory),
            (false, true) => Err(OpError::IsDirectory),
            (true, true) | (false, false) => Ok(()),
        }
    }

    fn make(&mut self, asked: &Asked<'_>) -> Result<Done> {
        let (user, now) = (asked.user, asked.now);
        match asked.op {
            Op::Readlink { ino } => match &self.node(*ino)?.body {
                Body::Symlink(target) => Ok(Done { reply: Reply::Bytes, data: target.clone() }),
                Body::Directory(_) | Body::File(_) | Body::Special => Err(OpError::Invalid),
            },
            Op::Symlink { dir, name } => {
                if asked.data.len() > TARGET_BYTES_MAX {
                    return Err(OpError::NameTooLong);
                }
                if asked.data.is_empty() {
                    return Err(OpError::NotFound);
                }
                let body = Body::Symlink(asked.data.to_vec());
                let mode = NewMode { permissions: 0o777, umask: 0 };
                let ino =
                    self.make_node(user, now, (*dir, name), FileKind::Symlink, mode, 0, body)?;
                Ok(Reply::Entry(self.entry(ino)?).into())
            }
            Op::Mknod { dir, name, mode, node } => {
                self.check_new(user, *dir, name)?;
                let is_device = matches!(node, NewNode::CharDevice(_) | NewNode::BlockDevice(_));
                if is_device && !user.is_root() {
                    return Err(OpError::NotPermitted);
                }
                let body = match node.kind() {
                    FileKind::Regular => Body::File(Content::default()),
                    _ => Body::Special,
                };
                let at = (*dir, name);
                let ino = self.make_node(user, now, at, node.kind(), *mode, node.rdev(), body)?;
                Ok(Reply::Entry(self.entry(ino)?).into())
            }
            Op::Mkdir { dir, name, mode } => {
                let permissions = mode.permissions & (0o777 | STICKY);
                let mode = NewMode { permissions, ..*mode };
                let body = Body::Directory(Directory::new(*dir));
                let at = (*dir, name);
                let ino = self.make_node(user, now, at, FileKind::Directory, mode, 0, body)?;
                Ok(Reply::Entry(self.entry(ino)?).into())
            }
            Op::Create { dir, name, mode, how, exclusive } => {
                if let Some(ino) = self.find(user, *dir, name)? {
                    if *exclusive {
                        return Err(OpError::Exists);
                    }
                    let opened = self.open(user, now, ino, *how)?;
                    let Reply::Opened(handle) = opened.reply else { return Err(OpError::Io) };
                    return Ok(Reply::Created(self.entry(ino)?, handle).into());
                }
                let body = Body::File(Content::default());
                let at = (*dir, name);
                let ino = self.make_node(user, now, at, FileKind::Regular, *mode, 0, body)?;
                let attr = self.entry(ino)?;
                Ok(Reply::Created(attr, self.add_handle(ino)).into())
            }
            _ => Err(OpError::Invalid),
        }
    }

    /// Makes an inode with its first name.
    #[expect(clippy::too_many_arguments, reason = "each is a field of what is made")]
    fn make_node(
        &mut self,
        user: &User,
        now: Time,
        (dir, name): (Ino, &NameBuf),
        kind: FileKind,
        mode: NewMode,
        rdev: u32,
        body: Body,
    ) -> Result<Ino> {
        self.check_new(user, dir, name)?;
        let parent = self.node(dir)?.attr;
        let is_directory = kind == FileKind::Directory;
        if is_directory && parent.nlink >= LINKS_MAX {
            return Err(OpError::TooManyLinks);
        }
        let mut permissions = mode.masked();
        let mut owner = User { groups: Vec::new(), ..user.clone() };
        if parent.permissions & SET_GID != 0 {
            owner.gid = parent.gid;
            if is_directory {
                permissions |= SET_GID;
            } else if mode.permissions & 0o010 != 0 && !user.is_member(parent.gid) {
                permissions &= !SET_GID;
            }
        }
        let ino = self.add(&owner, kind, permissions, rdev, body, now);
        self.node_mut(ino)?.attr.nlink = if is_directory { 2 } else { 1 };
        self.directory_mut(dir)?.insert(name, ino);
        let parent = self.node_mut(dir)?;
        parent.attr.nlink += u32::from(is_directory);
        parent.touch(now);
        Ok(ino)
    }

    fn link(&mut self, user: &User, now: Time, ino: Ino, dir: Ino, name: &NameBuf) -> Result<Done> {
        self.check_new(user, dir, name)?;
        let node = self.node(ino)?;
        if node.is_directory() {
            return Err(OpError::NotPermitted);
        }
        match node.attr.nlink {
            0 => return Err(OpError::NotFound),
            LINKS_MAX.. => return Err(OpError::TooManyLinks),
            1..LINKS_MAX => {}
        }
        let node = self.node_mut(ino)?;
        node.attr.nlink += 1;
        node.attr.ctime = now;
        self.directory_mut(dir)?.insert(name, ino);
        self.node_mut(dir)?.touch(now);
        Ok(Reply::Entry(self.entry(ino)?).into())
    }

    fn remove(
        &mut self,
        user: &User,
        now: Time,
        dir: Ino,
        name: &NameBuf,
        as_directory: bool,
    ) -> Result<Done> {
        let ino = self.find(user, dir, name)?.ok_or(OpError::NotFound)?;
        self.check_removal(user, dir, ino, as_directory)?;
        if as_directory && !self.directory(ino)?.by_name.is_empty() {
            return Err(OpError::NotEmpty);
        }
        self.directory_mut(dir)?.remove(name);
        self.node_mut(dir)?.touch(now);
        self.drop_link(dir, ino, now)?;
        Ok(Reply::Empty.into())
    }

    /// One name of the inode, which was in this directory, has gone.
    fn drop_link(&mut self, dir: Ino, ino: Ino, now: Time) -> Result<()> {
        let node = self.node_mut(ino)?;
        node.attr.ctime = now;
        if node.is_directory() {
            node.attr.nlink = 0;
            self.node_mut(dir)?.attr.nlink -= 1;
        } else {
            node.attr.nlink -= 1;
        }
        self.reap(ino);
        Ok(())
    }

    /// Whether the directory is `ino`, or lies below it.
    fn is_within(&self, mut dir: Ino, ino: Ino) -> Result<bool> {
        while dir != ROOT && dir != ino {
            dir = self.directory(dir)?.parent;
        }
        Ok(dir == ino)
    }

    fn rename(
        &mut self,
        user: &User,
        now: Time,
        (dir, name): (Ino, &NameBuf),
        (to_dir, to_name): (Ino, &NameBuf),
        mode: RenameMode,
    ) -> Result<Done> {
        let found = self.find(user, dir, name)?;
        let replaced = self.find(user, to_dir, to_name)?;
        let ino = found.ok_or(OpError::NotFound)?;
        match (mode, replaced) {
            (RenameMode::NoReplace, Some(_)) => return Err(OpError::Exists),
            (RenameMode::Exchange, None) => return Err(OpError::NotFound),
            (RenameMode::Replace, _)
            | (RenameMode::NoReplace, None)
            | (RenameMode::Exchange, Some(_)) => {}
        }
        if dir != to_dir && self.is_within(to_dir, ino)? {
            return Err(OpError::Invalid);
        }
        if let Some(other) = replaced
            && dir != to_dir
            && self.is_within(dir, other)?
        {
            let exchange = mode == RenameMode::Exchange;
            return Err(if exchange { OpError::Invalid } else { OpError::NotEmpty });
        }
        if replaced == Some(ino) {
            return Ok(Reply::Empty.into());
        }
        self.check_rename(user, (dir, ino), (to_dir, replaced), mode)?;
        if mode == RenameMode::Exchange
            && let Some(other) = replaced
        {
            self.exchange(now, (dir, name, ino), (to_dir, to_name, other))?;
            return Ok(Reply::Empty.into());
        }
        if let Some(other) = replaced {
            self.directory_mut(to_dir)?.remove(to_name);
            self.drop_link(to_dir, other, now)?;
        }
        self.directory_mut(dir)?.remove(name);
        self.put_moved(now, ino, dir, to_dir, to_name)?;
        self.node_mut(dir)?.touch(now);
        Ok(Reply::Empty.into())
    }

    fn check_rename(
        &self,
        user: &User,
        (dir, ino): (Ino, Ino),
        (to_dir, replaced): (Ino, Option<Ino>),
        mode: RenameMode,
    ) -> Result<()> {
        let is_directory = self.node(ino)?.is_directory();
        let exchange = mode == RenameMode::Exchange;
        self.check_removal(user, dir, ino, is_directory)?;
        let target = self.node(to_dir)?;
        match replaced {
            None if target.attr.nlink == 0 => return Err(OpError::NotFound),
            None => target.may(user, WRITE | SEARCH)?,
            Some(other) => {
                let as_directory =
                    if exchange { self.node(other)?.is_directory() } else { is_directory };
                self.check_removal(user, to_dir, other, as_directory)?;
            }
        }
        if dir != to_dir {
            if is_directory {
                self.node(ino)?.may(user, WRITE)?;
            }
            if let Some(other) = replaced
                && exchange
                && self.node(other)?.is_directory()
            {
                self.node(other)?.may(user, WRITE)?;
            }
            if is_directory && target.attr.nlink >= LINKS_MAX {
                return Err(OpError::TooManyLinks);
            }
        }
        match replaced {
            Some(other)
                if !exchange && is_directory && !self.directory(other)?.by_name.is_empty() =>
            {
                Err(OpError::NotEmpty)
            }
            Some(_) | None => Ok(()),
        }
    }

    fn exchange(
        &mut self,
        now: Time,
        (dir, name, ino): (Ino, &NameBuf, Ino),
        (to_dir, to_name, other): (Ino, &NameBuf, Ino),
    ) -> Result<()> {
        self.directory_mut(dir)?.remove(name);
        self.directory_mut(to_dir)?.remove(to_name);
        self.put_moved(now, ino, dir, to_dir, to_name)?;
        self.put_moved(now, other, to_dir, dir, name)
    }

    /// Puts an inode that was taken out of one directory into another.
    fn put_moved(&mut self, now: Time, ino: Ino, from: Ino, to: Ino, name: &NameBuf) -> Result<()> {
        self.directory_mut(to)?.insert(name, ino);
        self.node_mut(ino)?.attr.ctime = now;
        if self.node(ino)?.is_directory() {
            self.node_mut(from)?.attr.nlink -= 1;
            self.node_mut(to)?.attr.nlink += 1;
            self.directory_mut(ino)?.parent = to;
        }
        self.node_mut(to)?.touch(now);
        Ok(())
    }

    fn setattr(
        &mut self,
        user: &User,
        now: Time,
        ino: Ino,
        handle: Option<Handle>,
        set: &SetAttr,
    ) -> Result<Done> {
        self.check_setattr(user, ino, handle, set)?;
        let node = self.node_mut(ino)?;
        if let Some(size) = set.size {
            node.resize(size)?;
            node.attr.mtime = now;
            if set.strip {
                node.strip(user);
            }
        }
        if (set.uid.is_some() || set.gid.is_some()) && !node.is_directory() {
            node.strip(user);
        }
        node.attr.uid = set.uid.unwrap_or(node.attr.uid);
        node.attr.gid = set.gid.unwrap_or(node.attr.gid);
        if let Some(permissions) = set.permissions {
            let member = user.is_member(node.attr.gid);
            node.attr.permissions = if member { permissions } else { permissions & !SET_GID };
        }
        let time = |time: Option<SetTime>, old: Time| match time {
            None => old,
            Some(SetTime::Now) => now,
            Some(SetTime::To(to)) => to,
        };
        node.attr.atime = time(set.atime, node.attr.atime);
        node.attr.mtime = time(set.mtime, node.attr.mtime);
        node.attr.ctime = now;
        Ok(Reply::Attr(node.attr).into())
    }

    fn check_setattr(
        &self,
        user: &User,
        ino: Ino,
        handle: Option<Handle>,
        set: &SetAttr,
    ) -> Result<()> {
        let node = self.node(ino)?;
        let owner = node.owned_by(user);
        let refuse = |refused: bool| if refused { Err(OpError::NotPermitted) } else { Ok(()) };
        if let Some(size) = set.size {
            match &node.body {
                Body::File(_) => {}
                Body::Directory(_) => return Err(OpError::IsDirectory),
                Body::Symlink(_) | Body::Special => return Err(OpError::Invalid),
            }
            match handle {
                Some(handle) => self.handle(ino, handle)?,
                None => node.may(user, WRITE)?,
            }
            if size > FILE_BYTES_MAX {
                return Err(OpError::FileTooBig);
            }
        }
        if let Some(uid) = set.uid {
            refuse(!(user.is_root() || owner && uid == node.attr.uid))?;
        }
        if let Some(gid) = set.gid {
            refuse(!(owner && (user.is_member(gid) || gid == node.attr.gid)))?;
        }
        refuse(set.permissions.is_some() && !owner)?;
        match (set.atime, set.mtime) {
            (None, None) => Ok(()),
            (Some(SetTime::Now), Some(SetTime::Now)) if owner => Ok(()),
            (Some(SetTime::Now), Some(SetTime::Now)) => node.may(user, WRITE),
            (_, _) => refuse(!owner),
        }
    }

    fn open(&mut self, user: &User, now: Time, ino: Ino, how: OpenHow) -> Result<Done> {
        let node = self.node_mut(ino)?;
        match node.attr.kind {
            FileKind::Directory => return Err(OpError::IsDirectory),
            FileKind::Symlink => return Err(OpError::Loop),
            FileKind::Regular
            | FileKind::Fifo
            | FileKind::Socket
            | FileKind::CharDevice
            | FileKind::BlockDevice => {}
        }
        let mask = match how.access {
            OpenAccess::Read => READ,
            OpenAccess::Write => WRITE,
            OpenAccess::ReadWrite => READ | WRITE,
            OpenAccess::Execute => SEARCH,
        };
        node.may(user, if how.truncate { mask | WRITE } else { mask })?;
        if how.truncate {
            node.resize(0)?;
            node.touch(now);
            if how.strip {
                node.strip(user);
            }
        }
        Ok(Reply::Opened(self.add_handle(ino)).into())
    }

    fn readdir(&mut self, ino: Ino, from: u64, plus: bool, room: usize) -> Result<Done> {
        let directory = self.directory(ino)?;
        let dots = [(0, &b"."[..], ino), (1, &b".."[..], directory.parent)];
        let dots = dots.into_iter().filter(|_| self.nodes[&ino].attr.nlink > 0);
        let others = directory.by_pos.iter().map(|(pos, (name, ino))| (*pos, name.bytes(), *ino));
        let mut data = vec![0; room];
        let mut writer = EntryWriter::new(&mut data);
        let mut looked_up = Vec::new();
        for (pos, name, named) in dots.chain(others).filter(|(pos, _, _)| *pos >= from) {
            let attr = self.node(named)?.attr;
            let (kind, attr) = (attr.kind, plus.then_some(attr));
            if !writer.push(&ListEntry { ino: named, kind, next: pos + 1, name, attr }) {
                break;
            }
            if plus && pos >= 2 {
                looked_up.push(named);
            }
        }
        let len = writer.len();
        for ino in looked_up {
            self.node_mut(ino)?.lookups += 1;
        }
        data.truncate(len);
        Ok(Done { reply: Reply::Bytes, data })
    }

    fn transfer(&mut self, asked: &Asked<'_>) -> Result<Done> {
        let (user, now) = (asked.user, asked.now);
        match *asked.op {
            Op::Read { ino, handle, at, len } => {
                self.handle(ino, handle)?;
                let data = self.node_mut(ino)?.content()?.read(at, len);
                Ok(Done { reply: Reply::Count(data.len() as u32), data })
            }
            Op::Write { ino, handle, at, len, strip } => {
                self.handle(ino, handle)?;
                let data = asked.data.get(..len as usize).ok_or(OpError::Invalid)?;
                let node = self.node_mut(ino)?;
                let content = node.content()?;
                let at = match at {
                    WriteAt::Offset(at) => at,
                    WriteAt::End => content.size(),
                };
                if at.checked_add(len.into()).is_none_or(|end| end > FILE_BYTES_MAX) {
                    return Err(OpError::FileTooBig);
                }
                if len > 0 {
                    content.write(at, data);
                    node.measure();
                    node.touch(now);
                    if strip {
                        node.strip(user);
                    }
                }
                Ok(Reply::Count(len).into())
            }
            Op::Flush { ino, handle } | Op::Fsync { ino, handle, .. } => {
                self.handle(ino, handle)?;
                Ok(Reply::Empty.into())
            }
            Op::Fallocate { ino, handle, at, len, mode } => {
                self.handle(ino, handle)?;
                if at.checked_add(len).is_none_or(|end| end > FILE_BYTES_MAX) {
                    return Err(OpError::FileTooBig);
                }
                let node = self.node_mut(ino)?;
                fallocate(node.content()?, at, len, mode);
                node.measure();
                node.touch(now);
                if !user.is_root() {
                    node.strip(user);
                }
                Ok(Reply::Empty.into())
            }
            Op::Lseek { ino, handle, at, whence } => {
                self.handle(ino, handle)?;
                let found = self.node_mut(ino)?.content()?.seek(at, whence == Whence::Data);
                Ok(Reply::Offset(found.ok_or(OpError::NoSuchAddress)?).into())
            }
            _ => Err(OpError::Invalid),
        }
    }

    fn xattr(&mut self, asked: &Asked<'_>) -> Result<Done> {
        let (user, now) = (asked.user, asked.now);
        match asked.op {
            Op::Getxattr { ino, name } => {
                let node = self.node(*ino)?;
                check_xattr(node, user, name, READ)?;
                let value = node.xattrs.get(name.bytes()).ok_or(OpError::NoData)?;
                give(value.clone(), asked.room)
            }
            Op::Listxattr { ino } => {
                let names = self.node(*ino)?.xattrs.keys();
                let shown = names.filter(|name| user.is_root() || !name.starts_with(b"trusted."));
                let list = shown.flat_map(|name| name.iter().copied().chain([0])).collect();
                give(list, asked.room)
            }
            Op::Setxattr { ino, name, mode } => {
                let node = self.node_mut(*ino)?;
                check_xattr(node, user, name, WRITE)?;
                if asked.data.len() > VALUE_BYTES_MAX {
                    return Err(OpError::TooBig);
                }
                match (mode, node.xattrs.contains_key(name.bytes())) {
                    (XattrMode::Create, true) => return Err(OpError::Exists),
                    (XattrMode::Replace, false) => return Err(OpError::NoData),
                    (XattrMode::Any, _)
                    | (XattrMode::Create, false)
                    | (XattrMode::Replace, true) => {}
                }
                node.xattrs.insert(name.bytes().to_vec(), asked.data.to_vec());
                node.attr.ctime = now;
                Ok(Reply::Empty.into())
            }
            Op::Removexattr { ino, name } => {
                let node = self.node_mut(*ino)?;
                check_xattr(node, user, name, WRITE)?;
                node.xattrs.remove(name.bytes()).ok_or(OpError::NoData)?;
                node.attr.ctime = now;
                Ok(Reply::Empty.into())
            }
            _ => Err(OpError::Invalid),
        }
    }

    fn statfs(&self) -> Statfs {
        let blocks = 1 << 20;
        let used: u64 = self.nodes.values().map(|node| node.attr.sectors / 8).sum();
        let inodes_free = (1 << 20) - self.nodes.len() as u64;
        Statfs {
            blocks,
            blocks_free: blocks - used,
            blocks_available: blocks - used,
            inodes: 1 << 20,
            inodes_free,
        }
    }
}

fn fallocate(content: &mut Content, at: u64, len: u64, mode: FallocateMode) {
    let size = content.size();
    match mode {
        FallocateMode::Allocate | FallocateMode::AllocateKeepSize => content.reserve(at, len),
        FallocateMode::PunchHole => content.punch(at, len),
        FallocateMode::Zero | FallocateMode::ZeroKeepSize => {
            content.punch(at, len);
            content.reserve(at, len);
        }
    }
    match mode {
        FallocateMode::Allocate | FallocateMode::Zero if at + len > size => {
            content.grow(at + len);
        }
        FallocateMode::Allocate
        | FallocateMode::AllocateKeepSize
        | FallocateMode::PunchHole
        | FallocateMode::Zero
        | FallocateMode::ZeroKeepSize => {}
    }
}

/// Bytes for a caller who has so much room, or only wants to know how much it takes.
fn give(data: Vec<u8>, room: Option<usize>) -> Result<Done> {
    match room {
        None => Ok(Reply::Size(data.len() as u32).into()),
        Some(room) if data.len() > room => Err(OpError::Range),
        Some(_) => Ok(Done { reply: Reply::Bytes, data }),
    }
}

/// Whether the user may read or write the attribute of this name.
fn check_xattr(node: &Node, user: &User, name: &XattrNameBuf, mask: u8) -> Result<()> {
    let hidden = if mask == WRITE { OpError::NotPermitted } else { OpError::NoData };
    let allowed = |allowed: bool| if allowed { Ok(()) } else { Err(hidden) };
    let bytes = name.bytes();
    let prefix = bytes.iter().position(|byte| *byte == b'.').map_or(bytes, |dot| &bytes[..=dot]);
    match prefix {
        b"user." => {
            let attr = &node.attr;
            allowed(matches!(attr.kind, FileKind::Regular | FileKind::Directory))?;
            let sticky = node.is_directory() && attr.permissions & STICKY != 0;
            allowed(!(sticky && mask == WRITE) || node.owned_by(user))?;
            node.may(user, mask)?;
        }
        b"trusted." => allowed(user.is_root())?,
        b"security." => allowed(user.is_root() || mask == READ)?,
        _ => {
            node.may(user, mask)?;
            return Err(OpError::NotSupported);
        }
    }
    if prefix == bytes { Err(OpError::Invalid) } else { Ok(()) }
}

#[cfg(test)]
mod tests;

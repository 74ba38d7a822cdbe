//! Mounts against the model: random operations, several at a time, on small caches and under a lock
//! server that takes locks away; then the items that are left must be those of a sound file system.
#![allow(clippy::unwrap_used)] // A test that can't go on has failed.

use outrider_core::client::fs::ROOT;
use outrider_core::client::op::{
    Attr, Caller, EntryReader, FallocateMode, Handle, NameBuf, NewMode, NewNode, Op, OpError,
    OpenAccess, OpenHow, RenameMode, Reply, SetAttr, SetTime, Whence, WriteAt, XattrMode,
    XattrNameBuf,
};
use outrider_core::format::item::{Dirent, FileExtent, FileKind, Inode, Mapping, Time};
use outrider_core::format::key::{ItemKey, KeyBytes};
use outrider_core::format::{Ino, Seq};
use outrider_tests::model::{Asked, Model, User};
use outrider_tests::mount_ops::{Counts, Ended, Running, World, memory, root_items};
use outrider_tests::rng::{Chance, Rng};
use std::collections::{BTreeMap, BTreeSet};
use zerocopy::FromBytes;

const NAMES: [&str; 6] = ["a", "b", "cc", "ddd", "a-name-that-is-longer", "e"];
const XATTRS: [&str; 4] = ["user.a", "user.bb", "trusted.c", "other.d"];

/// What may go on at a time: operations of one change, on anything; those that move data, each on a
/// file of its own; or anything, alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Names,
    Data,
    Alone,
}

/// An open file or directory, on both sides.
#[derive(Debug, Clone, Copy)]
struct Open {
    mount: usize,
    handle: Handle,
    model: Handle,
    ino: Ino,
    directory: bool,
}

/// An operation on data, the bytes to write with where they are, and memory lent to it.
type DataOp = (Op, Option<(Vec<u8>, usize)>, Vec<u8>);

struct Play<'m> {
    world: World<'m>,
    model: Model,
    rng: Rng,
    users: Vec<User>,
    /// Inodes of the model by those of the mounts.
    inos: BTreeMap<Ino, Ino>,
    /// Of each mount: what it has looked up, and how often.
    known: Vec<BTreeMap<Ino, (FileKind, u64)>>,
    opens: Vec<Open>,
    /// Inodes and handles that requests at work need.
    used: BTreeMap<u64, (Vec<Ino>, Option<Handle>)>,
    phase: Phase,
    left: u64,
    clock: i64,
    errors: BTreeMap<OpError, u64>,
}

/// The inodes an operation names, for the model to be asked with others.
fn inos_of(op: &mut Op) -> Vec<&mut Ino> {
    match op {
        Op::Lookup { dir, .. }
        | Op::Symlink { dir, .. }
        | Op::Mknod { dir, .. }
        | Op::Mkdir { dir, .. }
        | Op::Create { dir, .. }
        | Op::Unlink { dir, .. }
        | Op::Rmdir { dir, .. } => vec![dir],
        Op::Rename { dir, to_dir, .. } => vec![dir, to_dir],
        Op::Link { ino, dir, .. } => vec![ino, dir],
        Op::Forget { ino, .. }
        | Op::Getattr { ino }
        | Op::Setattr { ino, .. }
        | Op::Access { ino, .. }
        | Op::Readlink { ino }
        | Op::Open { ino, .. }
        | Op::Release { ino, .. }
        | Op::Opendir { ino }
        | Op::Readdir { ino, .. }
        | Op::Releasedir { ino, .. }
        | Op::Read { ino, .. }
        | Op::Write { ino, .. }
        | Op::Flush { ino, .. }
        | Op::Fsync { ino, .. }
        | Op::Fallocate { ino, .. }
        | Op::Lseek { ino, .. }
        | Op::Getxattr { ino, .. }
        | Op::Setxattr { ino, .. }
        | Op::Listxattr { ino }
        | Op::Removexattr { ino, .. } => vec![ino],
        Op::Statfs | Op::Query(_) => vec![],
    }
}

fn handle_of(op: &mut Op) -> Option<&mut Handle> {
    match op {
        Op::Setattr { handle, .. } => handle.as_mut(),
        Op::Release { handle, .. }
        | Op::Readdir { handle, .. }
        | Op::Releasedir { handle, .. }
        | Op::Read { handle, .. }
        | Op::Write { handle, .. }
        | Op::Flush { handle, .. }
        | Op::Fsync { handle, .. }
        | Op::Fallocate { handle, .. }
        | Op::Lseek { handle, .. } => Some(handle),
        _ => None,
    }
}

impl<'m> Play<'m> {
    fn new(memory: &'m mut [std::mem::MaybeUninit<u8>], mounts: usize, seed: u64) -> Play<'m> {
        let user = |uid, gid, groups: &[u32]| User { uid, gid, groups: groups.to_vec() };
        Play {
            world: World::new(memory, mounts, seed, root_items()),
            model: Model::new(0o777, Time::default()),
            rng: Rng::new(seed ^ 0x5eed),
            users: vec![User::ROOT, user(1, 10, &[20, 30]), user(2, 20, &[10])],
            inos: BTreeMap::from([(ROOT, outrider_tests::model::ROOT)]),
            known: vec![BTreeMap::from([(ROOT, (FileKind::Directory, 1))]); mounts],
            opens: Vec::new(),
            used: BTreeMap::new(),
            phase: Phase::Names,
            left: 0,
            clock: 1000,
            errors: BTreeMap::new(),
        }
    }

    fn name(&mut self) -> NameBuf {
        let name = self.rng.pick(&NAMES).unwrap();
        NameBuf::parse(name.as_bytes()).unwrap()
    }

    fn xattr_name(&mut self) -> XattrNameBuf {
        let name = self.rng.pick(&XATTRS).unwrap();
        XattrNameBuf::parse(name.as_bytes()).unwrap()
    }

    fn inode(&mut self, mount: usize, wanted: impl Fn(FileKind) -> bool) -> Ino {
        let known = self.known[mount].iter().filter(|(_, (kind, _))| wanted(*kind));
        let known: Vec<_> = known.map(|(ino, _)| *ino).collect();
        *self.rng.pick(&known).unwrap_or(&ROOT)
    }

    fn any(&mut self, mount: usize) -> Ino {
        self.inode(mount, |_| true)
    }

    fn dir(&mut self, mount: usize) -> Ino {
        if self.rng.chance(Chance(50_000)) {
            return self.any(mount);
        }
        self.inode(mount, |kind| kind == FileKind::Directory)
    }

    fn open_of(&mut self, mount: usize, directory: bool) -> Option<Open> {
        let fit = |open: &&Open| open.mount == mount && open.directory == directory;
        let fitting: Vec<_> = self.opens.iter().filter(fit).copied().collect();
        self.rng.pick(&fitting).copied()
    }

    fn mode(&mut self) -> NewMode {
        let all = [0o777, 0o755, 0o640, 0o4755, 0o2755, 0o2775, 0o1777, 0o2644];
        let permissions = *self.rng.pick(&all).unwrap();
        NewMode { permissions, umask: *self.rng.pick(&[0, 0o022]).unwrap() }
    }

    fn how(&mut self, truncate: bool) -> OpenHow {
        let all = [
            OpenAccess::Read,
            OpenAccess::Write,
            OpenAccess::ReadWrite,
            OpenAccess::ReadWrite,
            OpenAccess::Execute,
        ];
        let access = *self.rng.pick(&all).unwrap();
        OpenHow { access, truncate, strip: self.rng.chance(Chance::EVEN) }
    }

    fn time(&mut self) -> Option<SetTime> {
        match self.rng.below(4) {
            0 => Some(SetTime::Now),
            1 => Some(SetTime::To(Time { sec: self.rng.below(100) as i64 - 50, nsec: 5 })),
            _ => None,
        }
    }

    fn name_op(&mut self, mount: usize) -> (Op, Option<(Vec<u8>, usize)>) {
        let room = Some((vec![0; 70_000], 0));
        let op = match self.rng.below(28) {
            0..=4 => Op::Lookup { dir: self.dir(mount), name: self.name() },
            5 => Op::Getattr { ino: self.any(mount) },
            6 => Op::Access { ino: self.any(mount), mask: self.rng.below(8) as u8 },
            7 => return (Op::Readlink { ino: self.any(mount) }, room),
            8 => {
                let len = *self.rng.pick(&[1, 10, 511, 512, 513, 4095, 4096, 0]).unwrap();
                let op = Op::Symlink { dir: self.dir(mount), name: self.name() };
                return (op, Some((vec![b'x'; len], len)));
            }
            9 => {
                let all =
                    [NewNode::Regular, NewNode::Fifo, NewNode::Socket, NewNode::CharDevice(9)];
                let node = *self.rng.pick(&all).unwrap();
                let (dir, name) = (self.dir(mount), self.name());
                Op::Mknod { dir, name, mode: self.mode(), node }
            }
            10..=12 => Op::Mkdir { dir: self.dir(mount), name: self.name(), mode: self.mode() },
            13..=15 => {
                let (dir, name, mode) = (self.dir(mount), self.name(), self.mode());
                let exclusive = self.rng.chance(Chance::EVEN);
                Op::Create { dir, name, mode, how: self.how(false), exclusive }
            }
            16..=17 => Op::Unlink { dir: self.dir(mount), name: self.name() },
            18 => Op::Rmdir { dir: self.dir(mount), name: self.name() },
            19..=21 => {
                let all = [
                    RenameMode::Replace,
                    RenameMode::Replace,
                    RenameMode::NoReplace,
                    RenameMode::Exchange,
                ];
                let mode = *self.rng.pick(&all).unwrap();
                let (dir, name) = (self.dir(mount), self.name());
                Op::Rename { dir, name, to_dir: self.dir(mount), to_name: self.name(), mode }
            }
            22 => Op::Link { ino: self.any(mount), dir: self.dir(mount), name: self.name() },
            23 => Op::Opendir { ino: self.dir(mount) },
            24 => {
                let Some(open) = self.open_of(mount, true) else {
                    return (Op::Statfs, None);
                };
                let (from, plus) = (self.rng.below(8), self.rng.chance(Chance::EVEN));
                let op = Op::Readdir { ino: open.ino, handle: open.handle, from, plus };
                let room = *self.rng.pick(&[10, 300, 1000, 9000]).unwrap();
                return (op, Some((vec![0; room], 0)));
            }
            25 => {
                let mut set =
                    SetAttr { atime: self.time(), mtime: self.time(), ..Default::default() };
                match self.rng.below(4) {
                    0 => set.permissions = Some(self.mode().permissions),
                    1 => set.uid = Some(self.rng.below(3) as u32),
                    2 => set.gid = Some(10 * self.rng.below(4) as u32),
                    _ => {}
                }
                Op::Setattr { ino: self.any(mount), handle: None, set }
            }
            26 => return self.xattr_op(mount),
            _ => Op::Open { ino: self.any(mount), how: self.how(false) },
        };
        (op, None)
    }

    fn xattr_op(&mut self, mount: usize) -> (Op, Option<(Vec<u8>, usize)>) {
        let (ino, name) = (self.any(mount), self.xattr_name());
        match self.rng.below(4) {
            0 => (Op::Removexattr { ino, name }, None),
            1 => {
                let room = *self.rng.pick(&[None, Some(5), Some(70_000)]).unwrap();
                (Op::Getxattr { ino, name }, room.map(|room| (vec![0; room], 0)))
            }
            _ => {
                let all = [XattrMode::Any, XattrMode::Any, XattrMode::Create, XattrMode::Replace];
                let mode = *self.rng.pick(&all).unwrap();
                let len = *self.rng.pick(&[0, 1, 500, 505, 1500, 9000, 65535]).unwrap();
                let mut value = vec![0; len];
                self.rng.fill(&mut value);
                (Op::Setxattr { ino, name, mode }, Some((value, len)))
            }
        }
    }

    fn offset(&mut self) -> u64 {
        let far = self.rng.chance(Chance(50_000));
        let block = self.rng.below(if far { 2000 } else { 20 });
        let within = if self.rng.chance(Chance::EVEN) { 0 } else { self.rng.below(4096) };
        block * 4096 + within
    }

    fn data_op(&mut self, mount: usize) -> Option<DataOp> {
        if self.rng.chance(Chance(80_000)) {
            let op = match self.rng.below(3) {
                0 => Op::Open { ino: self.any(mount), how: self.how(true) },
                1 => {
                    return Some((
                        Op::Listxattr { ino: self.any(mount) },
                        Some((vec![0; 300], 0)),
                        vec![],
                    ));
                }
                _ => {
                    let set =
                        SetAttr { size: Some(self.offset()), strip: true, ..Default::default() };
                    Op::Setattr { ino: self.any(mount), handle: None, set }
                }
            };
            return Some((op, None, vec![]));
        }
        let Open { handle, ino, .. } = self.open_of(mount, false)?;
        let at = self.offset();
        let len = *self.rng.pick(&[1, 100, 4096, 5000, 20_000, 100_000]).unwrap();
        let op = match self.rng.below(16) {
            0..=6 => {
                let mut data = vec![0; len as usize];
                self.rng.fill(&mut data);
                let end = self.rng.chance(Chance(300_000));
                let at = if end { WriteAt::End } else { WriteAt::Offset(at) };
                let strip = self.rng.chance(Chance::EVEN);
                return Some((Op::Write { ino, handle, at, len, strip }, None, data));
            }
            7..=9 => Op::Read { ino, handle, at, len: len * 2 },
            10 => {
                let set = SetAttr { size: Some(at), ..Default::default() };
                Op::Setattr { ino, handle: Some(handle), set }
            }
            11..=12 => {
                let all = [
                    FallocateMode::Allocate,
                    FallocateMode::AllocateKeepSize,
                    FallocateMode::PunchHole,
                    FallocateMode::Zero,
                    FallocateMode::ZeroKeepSize,
                ];
                let mode = *self.rng.pick(&all).unwrap();
                Op::Fallocate { ino, handle, at, len: len.into(), mode }
            }
            13 => Op::Lseek { ino, handle, at, whence: Whence::Data },
            14 => Op::Lseek { ino, handle, at, whence: Whence::Hole },
            _ => Op::Fsync { ino, handle, data_only: false },
        };
        Some((op, None, vec![]))
    }

    /// Begins something, if the phase lets it.
    fn begin(&mut self) {
        if self.left == 0 {
            if self.world.is_idle() {
                let all = [Phase::Names, Phase::Names, Phase::Data, Phase::Alone];
                self.phase = *self.rng.pick(&all).unwrap();
                self.left = if self.phase == Phase::Alone { 1 } else { self.rng.within(5..=60) };
            }
            return;
        }
        if self.phase == Phase::Alone && !self.world.is_idle() {
            return;
        }
        let mount = self.rng.below(self.known.len() as u64) as usize;
        let (mut op, lent, data) = match self.phase {
            Phase::Names if self.rng.chance(Chance(150_000)) => return self.close_or_forget(mount),
            Phase::Names => {
                let (op, lent) = self.name_op(mount);
                (op, lent, Vec::new())
            }
            Phase::Data => match self.data_op(mount) {
                Some(op) => op,
                None => {
                    self.left -= 1;
                    return;
                }
            },
            Phase::Alone => {
                let (dir, name, mode) = (self.dir(mount), self.name(), self.mode());
                let how = self.how(true);
                (Op::Create { dir, name, mode, how, exclusive: false }, None, Vec::new())
            }
        };
        let inos: Vec<Ino> = inos_of(&mut op).into_iter().map(|ino| *ino).collect();
        let handle = handle_of(&mut op).map(|handle| *handle);
        let busy = self.used.values().any(|(used, _)| used.iter().any(|ino| inos.contains(ino)));
        if self.phase == Phase::Data && busy {
            return;
        }
        self.left -= 1;
        self.start(mount, op, inos, handle, lent, data);
    }

    fn start(
        &mut self,
        mount: usize,
        op: Op,
        inos: Vec<Ino>,
        handle: Option<Handle>,
        lent: Option<(Vec<u8>, usize)>,
        data: Vec<u8>,
    ) {
        let user = self.rng.pick(&self.users).unwrap().clone();
        let user = if self.rng.chance(Chance::EVEN) { User::ROOT } else { user };
        self.clock += self.rng.below(2) as i64;
        let now = Time { sec: self.clock, nsec: 0 };
        let caller = (Caller::new(user.uid, user.gid, 1), user.groups);
        if let Some(id) = self.world.begin(mount, caller, now, op, lent, data) {
            self.used.insert(id, (inos, handle));
        }
    }

    /// Closes a handle or gives lookups back, of what no request at work needs.
    fn close_or_forget(&mut self, mount: usize) {
        let directory = self.rng.chance(Chance::EVEN);
        if self.rng.chance(Chance::EVEN)
            && let Some(open) = self.open_of(mount, directory)
        {
            if self.used.values().all(|(_, handle)| *handle != Some(open.handle)) {
                self.close(open);
            }
            return;
        }
        let ino = self.any(mount);
        let used = self.used.values().any(|(inos, _)| inos.contains(&ino));
        if ino != ROOT && !used {
            self.forget(mount, ino);
        }
    }

    fn close(&mut self, open: Open) {
        self.opens.retain(|other| (other.mount, other.handle) != (open.mount, open.handle));
        let Open { ino, handle, .. } = open;
        let op = match open.directory {
            true => Op::Releasedir { ino, handle },
            false => Op::Release { ino, handle },
        };
        let model = match open.directory {
            true => Op::Releasedir { ino: self.inos[&ino], handle: open.model },
            false => Op::Release { ino: self.inos[&ino], handle: open.model },
        };
        let asked =
            Asked { user: &User::ROOT, now: Time::default(), op: &model, data: &[], room: None };
        self.model.execute(&asked).unwrap();
        self.alone(open.mount, &op);
    }

    fn forget(&mut self, mount: usize, ino: Ino) {
        let (_, lookups) = self.known[mount].remove(&ino).unwrap();
        let model = Op::Forget { ino: self.inos[&ino], lookups };
        let asked =
            Asked { user: &User::ROOT, now: Time::default(), op: &model, data: &[], room: None };
        self.model.execute(&asked).unwrap();
        self.alone(mount, &Op::Forget { ino, lookups });
    }

    /// An operation that can't wait, now.
    fn alone(&mut self, mount: usize, op: &Op) {
        let caller = (Caller::new(0, 0, 0), Vec::new());
        let begun = loop {
            match self.world.begin(mount, caller.clone(), Time::default(), op.clone(), None, vec![])
            {
                Some(id) => break id,
                None => self.step(),
            }
        };
        self.used.insert(begun, (Vec::new(), None));
        while self.world.mounts[mount].running().any(|running| running.id == begun) {
            self.step();
        }
    }

    fn step(&mut self) {
        if let Some((mount, ended)) = self.world.step() {
            if ended.deleted {
                assert_eq!(ended.result, Ok(Reply::Empty));
            } else {
                self.used.remove(&ended.running.id);
                self.compare(mount, ended);
            }
        }
    }

    /// Asks the model the same, and compares.
    fn compare(&mut self, mount: usize, ended: Ended) {
        let Ended { running, result, .. } = ended;
        if matches!(running.op, Op::Forget { .. } | Op::Release { .. } | Op::Releasedir { .. }) {
            assert_eq!(result, Ok(Reply::Empty));
            return;
        }
        if matches!(running.op, Op::Statfs) {
            return;
        }
        let mut op = running.op.clone();
        let mut inos = inos_of(&mut op).into_iter();
        if result == Err(OpError::Stale) && inos.any(|ino| self.may_go(mount, *ino)) {
            *self.errors.entry(OpError::Stale).or_default() += 1;
            return;
        }
        for ino in inos_of(&mut op) {
            *ino = self.inos[&*ino];
        }
        if let Some(handle) = handle_of(&mut op) {
            let open = self.opens.iter().find(|open| (open.mount, open.handle) == (mount, *handle));
            *handle = open.unwrap().model;
        }
        let (uid, gid) = (running.caller.uid, running.caller.gid);
        let user = User { uid, gid, groups: running.groups.clone() };
        let brings = matches!(op, Op::Symlink { .. } | Op::Setxattr { .. });
        let lent = running.lent.as_ref();
        let data = match lent {
            Some((buf, len)) if brings => &buf[..*len],
            Some(_) | None => &running.data[..],
        };
        let mut room = lent.map(|(buf, _)| buf.len());
        if let (Op::Readdir { .. }, Ok(Reply::Bytes)) = (&op, &result) {
            // A shorter list is as good, but there must be one if there are entries.
            let len = lent.unwrap().1;
            room = if len > 0 { Some(len) } else { room };
        }
        let asked = Asked { user: &user, now: running.now, op: &op, data, room };
        let done = self.model.execute(&asked);
        let context = || format!("{:?} by {user:?}", running.op);
        let (reply, done) = match (result, done) {
            (Err(error), Err(expected)) => {
                // A removed directory no longer says what it was below; the model remembers.
                let lost = [OpError::Invalid, OpError::NotEmpty, OpError::Stale];
                let removed = lost.contains(&expected)
                    && error == OpError::NotFound
                    && matches!(running.op, Op::Rename { .. });
                let error = if removed { expected } else { error };
                assert_eq!(error, expected, "{}", context());
                *self.errors.entry(error).or_default() += 1;
                return;
            }
            (Ok(reply), Ok(done)) => (reply, done),
            (result, done) => panic!("{result:?} instead of {done:?}: {}", context()),
        };
        match (reply, done.reply) {
            (Reply::Entry(attr), Reply::Entry(expected)) => {
                self.same(&attr, &expected, &running);
                self.look_up(mount, &attr);
            }
            (Reply::Attr(attr), Reply::Attr(expected)) => self.same(&attr, &expected, &running),
            (Reply::Created(attr, handle), Reply::Created(expected, model)) => {
                self.same(&attr, &expected, &running);
                self.look_up(mount, &attr);
                let ino = attr.ino;
                self.opens.push(Open { mount, handle, model, ino, directory: false });
            }
            (Reply::Opened(handle), Reply::Opened(model)) => {
                let (ino, directory) = match running.op {
                    Op::Open { ino, .. } => (ino, false),
                    Op::Opendir { ino } => (ino, true),
                    _ => panic!("opened by {}", context()),
                };
                self.opens.push(Open { mount, handle, model, ino, directory });
            }
            (Reply::Bytes, Reply::Bytes) => self.same_bytes(mount, &running, &done.data),
            (Reply::Count(count), Reply::Count(expected)) => {
                assert_eq!(count, expected, "{}", context());
                if matches!(running.op, Op::Read { .. }) {
                    assert!(running.data == done.data, "other data: {}", context());
                }
            }
            (reply, expected) => assert_eq!(reply, expected, "{}", context()),
        }
    }

    /// Whether another mount has removed the inode's last name, and this one doesn't have it open:
    /// then it goes, although the kernel remembers it.
    fn may_go(&mut self, mount: usize, ino: Ino) -> bool {
        let op = Op::Getattr { ino: self.inos[&ino] };
        let user = &User::ROOT;
        let asked = Asked { user, now: Time::default(), op: &op, data: &[], room: None };
        let named = match self.model.execute(&asked) {
            Ok(done) => !matches!(done.reply, Reply::Attr(attr) if attr.nlink == 0),
            Err(_) => false,
        };
        let open = self.opens.iter().any(|open| (open.mount, open.ino) == (mount, ino));
        !named && !open && !self.world.mounts[mount].fs.uses(ino)
    }

    fn look_up(&mut self, mount: usize, attr: &Attr) {
        self.known[mount].entry(attr.ino).or_insert((attr.kind, 0)).1 += 1;
    }

    fn same(&mut self, attr: &Attr, expected: &Attr, running: &Running) {
        let model = *self.inos.entry(attr.ino).or_insert(expected.ino);
        let directory = attr.kind == FileKind::Directory;
        let size = if directory { expected.size } else { attr.size };
        let attr = Attr { ino: model, sectors: expected.sectors, size, ..*attr };
        assert_eq!(attr, *expected, "{:?}", running.op);
    }

    fn same_bytes(&mut self, mount: usize, running: &Running, expected: &[u8]) {
        let (buf, len) = running.lent.as_ref().unwrap();
        let bytes = &buf[..*len];
        match running.op {
            Op::Listxattr { .. } => {
                let names = |bytes: &[u8]| -> BTreeSet<Vec<u8>> {
                    bytes.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect()
                };
                assert_eq!(names(bytes), names(expected));
                assert_eq!(bytes.len(), expected.len());
            }
            Op::Readdir { plus, .. } => {
                let ours: Vec<_> = EntryReader::new(bytes).collect();
                let theirs: Vec<_> = EntryReader::new(expected).collect();
                assert_eq!(ours.len(), theirs.len(), "{:?}", running.op);
                for (ours, theirs) in ours.iter().zip(&theirs) {
                    let model = *self.inos.entry(ours.ino).or_insert(theirs.ino);
                    assert_eq!((model, ours.kind), (theirs.ino, theirs.kind));
                    assert_eq!((ours.next, ours.name), (theirs.next, theirs.name));
                    if let (Some(attr), Some(expected)) = (&ours.attr, &theirs.attr) {
                        self.same(attr, expected, running);
                        if plus && ours.next > 2 {
                            self.look_up(mount, attr);
                        }
                    }
                }
            }
            _ => assert!(bytes == expected, "other bytes: {:?}", running.op),
        }
    }

    fn finish(&mut self) {
        self.left = 0;
        while !self.world.is_idle() {
            self.step();
        }
        while let Some(open) = self.opens.first().copied() {
            self.close(open);
        }
        for mount in 0..self.known.len() {
            let known: Vec<_> = self.known[mount].keys().copied().collect();
            for ino in known.into_iter().filter(|ino| *ino != ROOT) {
                self.forget(mount, ino);
            }
        }
        for _ in 0..2000 {
            self.step();
        }
        while self.world.orphans() > 0 || !self.world.is_idle() {
            self.step();
        }
        self.world.sync();
    }
}

/// Checks that the items are those of a sound file system; returns how many inodes there are.
fn audit(world: &World<'_>) -> usize {
    let mut inodes = BTreeMap::new();
    let mut entries = BTreeMap::new();
    let mut twins = BTreeSet::new();
    let mut extents: BTreeMap<Ino, Vec<FileExtent>> = BTreeMap::new();
    let (mut metas, mut datas) = (BTreeMap::new(), BTreeMap::new());
    let mut xattrs = BTreeSet::new();
    for (key, value) in &world.disk {
        let key = ItemKey::parse(&KeyBytes::read_from_bytes(key).unwrap().into()).unwrap();
        match key {
            ItemKey::MetaSeq { seq, ino } => assert!(metas.insert(ino, seq).is_none()),
            ItemKey::DataSeq { seq, ino } => assert!(datas.insert(ino, seq).is_none()),
            ItemKey::Orphan(ino) => panic!("an orphan is left: {ino}"),
            ItemKey::Inode(ino) => {
                inodes.insert(ino, Inode::parse(value).unwrap());
            }
            ItemKey::Dirent { dir, hash: _, pos } => {
                let entry = Dirent::parse(value).unwrap();
                assert!(entry.agrees(&key));
                let name = entry.name.bytes().to_vec();
                assert!(entries.insert((dir, name), (entry.ino, entry.kind, pos)).is_none());
                twins.insert((entry.ino, dir, pos, value.clone(), false));
                twins.insert((entry.ino, dir, pos, value.clone(), true));
            }
            ItemKey::Xattr { ino, .. } | ItemKey::Symlink { ino, .. } => {
                xattrs.insert(ino);
            }
            ItemKey::Extent { ino, last } => {
                extents.entry(ino).or_default().push(FileExtent::parse(last, value).unwrap());
            }
            ItemKey::Readdir { .. } | ItemKey::Backref { .. } => {}
        }
    }
    for (key, value) in &world.disk {
        let key = ItemKey::parse(&KeyBytes::read_from_bytes(key).unwrap().into()).unwrap();
        let twin = match key {
            ItemKey::Readdir { dir, pos } => {
                let entry = Dirent::parse(value).unwrap();
                Some((entry.ino, dir, pos, value.clone(), false))
            }
            ItemKey::Backref { ino, dir, pos } => Some((ino, dir, pos, value.clone(), true)),
            _ => None,
        };
        assert!(twin.is_none_or(|twin| twins.remove(&twin)), "an item without its twin: {key:?}");
    }
    assert!(twins.is_empty(), "entries without their twins");
    assert!(xattrs.iter().all(|ino| inodes.contains_key(ino)));
    check_inodes(&inodes, &entries, &metas, &datas);
    check_blocks(world, &inodes, &extents);
    inodes.len()
}

type Entries = BTreeMap<(Ino, Vec<u8>), (Ino, FileKind, u64)>;

fn check_inodes(
    inodes: &BTreeMap<Ino, Inode>,
    entries: &Entries,
    metas: &BTreeMap<Ino, Seq>,
    datas: &BTreeMap<Ino, Seq>,
) {
    for (ino, inode) in inodes {
        let names = entries.values().filter(|(named, _, _)| named == ino);
        assert!(names.clone().all(|(_, kind, _)| *kind == inode.kind));
        let names = names.count() as u32;
        assert_eq!(metas.get(ino), Some(&inode.meta_seq));
        let data = (inode.kind == FileKind::Regular).then_some(&inode.data_seq);
        assert_eq!(datas.get(ino), data);
        assert!(!inode.truncating);
        if inode.kind == FileKind::Directory {
            let own = entries.iter().filter(|((dir, _), _)| dir == ino);
            let size: usize = own.clone().map(|((_, name), _)| name.len()).sum();
            let kinds = own.clone().map(|(_, (_, kind, _))| *kind);
            let below = kinds.filter(|kind| *kind == FileKind::Directory).count() as u32;
            assert_eq!((inode.size, inode.nlink), (size as u64, 2 + below));
            assert_eq!(names, u32::from(*ino != ROOT));
            assert!(own.clone().all(|(_, (_, _, pos))| *pos < inode.next_readdir_pos));
        } else {
            assert_eq!(inode.nlink, names, "{ino}");
        }
    }
    assert_eq!(metas.len(), inodes.len());
    assert!(datas.keys().all(|ino| inodes.contains_key(ino)));
    assert!(entries.keys().all(|(dir, _)| inodes.contains_key(dir)));
}

fn check_blocks(
    world: &World<'_>,
    inodes: &BTreeMap<Ino, Inode>,
    extents: &BTreeMap<Ino, Vec<FileExtent>>,
) {
    let mut mapped = BTreeSet::new();
    for (ino, extents) in extents {
        let mut online = 0;
        let mut next = 0;
        for extent in extents {
            assert!(extent.first().0 >= next, "extents overlap");
            next = extent.last.0 + 1;
            let at = match extent.mapping {
                Mapping::Data(at) => {
                    online += extent.len;
                    at
                }
                Mapping::Reserved(at) => at,
                Mapping::Offline | Mapping::OfflineReserved(_) => panic!("nothing is archived"),
            };
            for block in at.0..at.0 + extent.len {
                assert!(mapped.insert(block), "mapped twice");
            }
        }
        assert_eq!(inodes[ino].online_blocks, online, "{ino}");
    }
    let counted = inodes.iter().filter(|(ino, _)| !extents.contains_key(ino));
    assert!(counted.clone().all(|(_, inode)| inode.online_blocks == 0));
    assert!(mapped.is_disjoint(&world.freed));
    assert!(mapped.iter().chain(&world.freed).all(|block| world.lent.contains(block)));
    let pools = world.lent.len() - mapped.len() - world.freed.len();
    assert_eq!(pools as u64, world.blocks_available(), "blocks are lost");
}

fn play(mounts: usize, seeds: std::ops::Range<u64>, operations: u64) {
    let started = std::time::Instant::now();
    let mut total = Counts::default();
    let (mut errors, mut inodes) = (BTreeMap::new(), 0);
    for seed in seeds {
        eprintln!("seed {seed}");
        let mut memory = memory(mounts);
        let mut play = Play::new(&mut memory, mounts, seed);
        while play.world.counts.requests < operations {
            if play.rng.chance(Chance(300_000)) {
                play.begin();
            }
            play.step();
        }
        play.finish();
        inodes += audit(&play.world);
        assert_eq!(audit(&play.world), play.model.count_inodes());
        total.add(&play.world.counts);
        for (error, count) in play.errors {
            *errors.entry(error).or_insert(0) += count;
        }
    }
    println!("{mounts} mounts, {inodes} inodes left, {:?}", started.elapsed());
    println!("{total:?}");
    println!("refused as by the model: {errors:?}");
}

#[test]
fn one_mount_answers_as_the_model_does() {
    play(1, 0..60, 2500);
}

#[test]
fn two_mounts_answer_as_one_model_does() {
    play(2, 1000..1060, 2500);
}

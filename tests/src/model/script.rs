//! Sequences of system calls, drawn from a seed, and what they give.
//!
//! # Invariants
//!
//! * A sequence is a function of its seed alone.
//! * Paths never lead through symlinks, nor through names that could be one: following them is the
//!   kernel's business, not a file system's.
//!
//! What this module deliberately doesn't know: what a call should give.

use super::User;
use outrider_core::client::op::{FallocateMode, OpError, RenameMode, Whence, XattrMode};
use outrider_core::format::item::FileKind;
use std::collections::BTreeMap;

/// The bits of new files' permissions that every caller refuses to give.
pub const UMASK: u16 = 0o022;

/// Descriptors that can be open at a time.
pub const SLOTS: usize = 4;

/// A path below the root: its components.
pub type Path = Vec<&'static str>;

/// A system call.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are the arguments of the call of that name")]
pub enum Step {
    Mkdir { path: Path, mode: u16 },
    Rmdir { path: Path },
    Mknod { path: Path, kind: FileKind, mode: u16 },
    Symlink { target: &'static str, path: Path },
    Readlink { path: Path },
    Link { path: Path, to: Path },
    Unlink { path: Path },
    Rename { path: Path, to: Path, mode: RenameMode },
    Stat { path: Path },
    Access { path: Path, mask: u8 },
    List { path: Path },
    Chmod { path: Path, mode: u16 },
    Chown { path: Path, uid: Option<u32>, gid: Option<u32> },
    Utimes { path: Path, atime: TimeArg, mtime: TimeArg },
    Open { slot: usize, path: Path, how: OpenArg },
    Close { slot: usize },
    Fstat { slot: usize },
    Read { slot: usize, at: u64, len: u32 },
    Write { slot: usize, at: u64, len: u32, byte: u8 },
    Ftruncate { slot: usize, size: u64 },
    Fallocate { slot: usize, at: u64, len: u64, mode: FallocateMode },
    Seek { slot: usize, at: u64, whence: Whence },
    Fsync { slot: usize },
    Setxattr { path: Path, name: &'static str, value: Vec<u8>, mode: XattrMode },
    Getxattr { path: Path, name: &'static str },
    Listxattr { path: Path },
    Removexattr { path: Path, name: &'static str },
}

/// A time in a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeArg {
    /// Left as it is.
    Omit,
    /// Now.
    Now,
    /// This second.
    To(i64),
}

/// How to open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenArg {
    /// For reading.
    pub read: bool,
    /// For writing.
    pub write: bool,
    /// It must not exist, and is made with this mode.
    pub create: Option<u16>,
    /// Cut to nothing.
    pub truncate: bool,
    /// Write at the end.
    pub append: bool,
}

/// What a call gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Success.
    Unit,
    /// So many bytes, or an offset.
    Number(u64),
    /// Bytes.
    Bytes(Vec<u8>),
    /// Attributes.
    Stat(Stat),
    /// Names, with types in a directory.
    Names(BTreeMap<Vec<u8>, Option<FileKind>>),
    /// It wasn't made: it isn't about file systems (opening a pipe, following a symlink, a closed
    /// slot).
    Skipped,
}

/// How a call ends.
pub type Outcome = Result<Value, OpError>;

/// Attributes that all file systems agree about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Type.
    pub kind: FileKind,
    /// The low 12 bits of the mode.
    pub permissions: u16,
    /// Names; subdirectories and 2.
    pub nlink: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes; 0 for a directory.
    pub size: u64,
    /// Number of a device.
    pub rdev: u64,
}

/// A file as seen in passing, for seeing what a call has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Attributes.
    pub stat: Stat,
    /// Something no other file had before.
    pub id: (u64, i64, u32),
    /// When the data changed.
    pub mtime: (i64, u32),
    /// When the inode changed.
    pub ctime: (i64, u32),
}

/// All files, by path.
pub type Snapshot = BTreeMap<String, Seen>;

/// Something that executes calls.
pub trait Subject {
    /// Makes a call as this user.
    fn run(&mut self, user: &User, step: &Step) -> Outcome;

    /// Looks at every file, as user 0.
    fn snapshot(&mut self) -> Snapshot;

    /// The contents of every regular file, and all extended attributes, as user 0.
    fn contents(&mut self) -> BTreeMap<String, Vec<Vec<u8>>>;
}

/// What has become of each file: its attributes, and which times changed since `before`.
#[must_use]
pub fn changes(before: &Snapshot, after: &Snapshot) -> BTreeMap<String, (Stat, Option<[bool; 2]>)> {
    let old: BTreeMap<_, _> = before.values().map(|seen| (seen.id, seen)).collect();
    let change = |seen: &Seen| {
        let old = old.get(&seen.id)?;
        Some([old.mtime != seen.mtime, old.ctime != seen.ctime])
    };
    after.iter().map(|(path, seen)| (path.clone(), (seen.stat, change(seen)))).collect()
}

/// A sequence of random numbers: splitmix64.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The sequence of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn one_of<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// Which users make calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cast {
    /// User 0 only.
    Root,
    /// Several.
    Everyone,
}

/// Which calls about space are made. A file system may say of reserved space that it holds data, so
/// holes are looked for only where nothing is reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// Holes are made and looked for.
    Holes,
    /// Space is reserved.
    Reserved,
    /// And made zero, which few file systems can.
    ReservedAndZero,
}

/// A sequence of calls, each with who makes it.
#[derive(Debug, Clone)]
pub struct Script {
    random: Random,
    users: Vec<User>,
    space: Space,
    value: u32,
}

const FREE_NAMES: [&str; 4] = ["a", "b", "c", "d"];
const LINK_NAMES: [&str; 2] = ["s", "t"];
const XATTRS: [&str; 7] =
    ["user.one", "user.two", "trusted.x", "security.y", "user.", "none", "other.z"];

impl Script {
    /// The sequence of this seed.
    #[must_use]
    pub fn new(seed: u64, cast: Cast, space: Space) -> Script {
        let user = |uid, gid, groups: &[u32]| User { uid, gid, groups: groups.to_vec() };
        let users = match cast {
            Cast::Root => vec![User::ROOT],
            Cast::Everyone => {
                vec![User::ROOT, user(1000, 1000, &[2000]), user(1001, 1001, &[1000, 3000])]
            }
        };
        Script { random: Random::new(seed), users, space, value: 0 }
    }

    fn path(&mut self, last: &[&'static str]) -> Path {
        let mut path: Path = Vec::new();
        while path.len() < 2 && self.random.chance(40) {
            path.push(self.random.one_of(&FREE_NAMES));
        }
        path.push(self.random.one_of(last));
        path
    }

    fn any_path(&mut self) -> Path {
        let last = if self.random.chance(15) { &LINK_NAMES[..] } else { &FREE_NAMES[..] };
        self.path(last)
    }

    fn two_paths(&mut self, mode: RenameMode) -> (Path, Path) {
        if self.random.chance(15) {
            return (self.path(&LINK_NAMES), self.path(&LINK_NAMES));
        }
        let to_link = mode != RenameMode::Exchange && self.random.chance(5);
        let last = if to_link { &LINK_NAMES[..] } else { &FREE_NAMES[..] };
        (self.path(&FREE_NAMES), self.path(last))
    }

    fn mode(&mut self) -> u16 {
        self.random.one_of(&[
            0o755, 0o777, 0o700, 0o770, 0o750, 0o644, 0o600, 0o666, 0o640, 0o000, 0o4755, 0o2755,
            0o2770, 0o6777, 0o2666, 0o1777, 0o2777, 0o2644, 0o777, 0o1777,
        ])
    }

    fn offset(&mut self) -> u64 {
        let blocks = self.random.below(12) * 4096;
        if self.random.chance(50) { blocks } else { blocks + self.random.below(4096) }
    }

    fn tree_step(&mut self, user: &User) -> Step {
        match self.random.below(40) {
            0..8 => Step::Mkdir { path: self.any_path(), mode: self.mode() },
            8..11 => Step::Rmdir { path: self.any_path() },
            11..15 => {
                let kinds = [
                    FileKind::Regular,
                    FileKind::Regular,
                    FileKind::Fifo,
                    FileKind::Socket,
                    FileKind::CharDevice,
                ];
                let kind = self.random.one_of(&kinds);
                Step::Mknod { path: self.any_path(), kind, mode: self.mode() }
            }
            15..17 => {
                let target = self.random.one_of(&["x", "../y", "/absolute/target"]);
                Step::Symlink { target, path: self.path(&LINK_NAMES) }
            }
            17..19 => Step::Readlink { path: self.any_path() },
            // Kernels may forbid others than the owner to link.
            19..23 if user.is_root() => {
                let (path, to) = self.two_paths(RenameMode::Replace);
                Step::Link { path, to }
            }
            19..27 => Step::Unlink { path: self.any_path() },
            27..37 => {
                let modes = [
                    RenameMode::Replace,
                    RenameMode::Replace,
                    RenameMode::NoReplace,
                    RenameMode::Exchange,
                ];
                let mode = self.random.one_of(&modes);
                let (path, to) = self.two_paths(mode);
                Step::Rename { path, to, mode }
            }
            _ => {
                let mut path = self.any_path();
                if self.random.chance(30) {
                    path.clear();
                }
                Step::List { path }
            }
        }
    }

    fn attribute_step(&mut self, user: &User) -> Step {
        let path = self.any_path();
        match self.random.below(16) {
            0..3 => Step::Stat { path },
            3..6 => Step::Access { path, mask: self.random.below(7) as u8 + 1 },
            6..10 => Step::Chmod { path, mode: self.mode() },
            10..13 => {
                let uid = self.random.one_of(&[None, Some(0), Some(1000), Some(user.uid)]);
                let gids = [Some(0), Some(1000), Some(2000), Some(user.gid)];
                let gid = self.random.one_of(&gids);
                Step::Chown { path, uid, gid }
            }
            _ => {
                let times = [TimeArg::Now, TimeArg::Now, TimeArg::To(12345), TimeArg::To(-5)];
                let mtime = self.random.one_of(&times);
                let atime = if self.random.chance(60) { mtime } else { TimeArg::Omit };
                Step::Utimes { path, atime, mtime }
            }
        }
    }

    fn xattr_step(&mut self) -> Step {
        let few = self.random.chance(70);
        let path = if few { vec![self.random.one_of(&FREE_NAMES)] } else { self.any_path() };
        let name = self.random.one_of(if few { &XATTRS[..4] } else { &XATTRS });
        match self.random.below(8) {
            0..3 => {
                self.value += 1;
                let mut value = self.value.to_le_bytes().to_vec();
                value.resize(4 + self.random.below(60) as usize, b'v');
                let modes = [XattrMode::Any, XattrMode::Create, XattrMode::Replace];
                Step::Setxattr { path, name, value, mode: self.random.one_of(&modes) }
            }
            3..5 => Step::Getxattr { path, name },
            5 => Step::Listxattr { path },
            _ => Step::Removexattr { path, name },
        }
    }

    fn file_step(&mut self) -> Step {
        let slot = self.random.below(SLOTS as u64) as usize;
        let (at, len) = (self.offset(), self.random.below(9000) as u32);
        match self.random.below(34) {
            0..7 => {
                let create = self.random.chance(60).then(|| self.mode());
                let access = self.random.below(3);
                let how = OpenArg {
                    read: access != 1,
                    write: access != 0,
                    create,
                    truncate: self.random.chance(20),
                    append: self.random.chance(15),
                };
                Step::Open { slot, path: self.any_path(), how }
            }
            7..9 => Step::Close { slot },
            9..11 => Step::Fstat { slot },
            11..16 => Step::Read { slot, at, len },
            16..25 => Step::Write { slot, at, len, byte: self.random.below(256) as u8 },
            25..28 => Step::Ftruncate { slot, size: at },
            28..31 => {
                let modes = [
                    FallocateMode::Zero,
                    FallocateMode::ZeroKeepSize,
                    FallocateMode::Allocate,
                    FallocateMode::AllocateKeepSize,
                    FallocateMode::PunchHole,
                ];
                let mode = self.random.one_of(match self.space {
                    Space::Holes => &modes[4..],
                    Space::Reserved => &modes[2..],
                    Space::ReservedAndZero => &modes,
                });
                Step::Fallocate { slot, at, len: u64::from(len) + 1, mode }
            }
            31..33 if self.space == Space::Holes => {
                let whence = self.random.one_of(&[Whence::Data, Whence::Hole]);
                Step::Seek { slot, at, whence }
            }
            _ => Step::Fsync { slot },
        }
    }
}

/// Endless: the next call, and who makes it.
impl Iterator for Script {
    type Item = (User, Step);

    fn next(&mut self) -> Option<(User, Step)> {
        let user = self.random.below(self.users.len() as u64) as usize;
        let user = self.users[user].clone();
        let step = match self.random.below(100) {
            0..42 => self.tree_step(&user),
            42..58 => self.attribute_step(&user),
            58..66 => self.xattr_step(),
            _ => self.file_step(),
        };
        Some((user, step))
    }
}

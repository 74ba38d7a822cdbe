//! A small cluster on an image: a server and a mount, as quick as their clocks let them be, and
//! what a user of the mount sees.
//!
//! # Invariants
//!
//! * Nothing fails in it, and it is a function of its image and its seed.
//! * A call that doesn't end in a minute ends with an error that no operation has.
//!
//! What this module deliberately doesn't know: what the image has been through.

use crate::image::Image;
use crate::model::walk::Executes;
use crate::model::{Asked, Done, User};
use crate::node::{Boot, Guest, Program};
use crate::platform::{Call, Platform};
use crate::rng::Rng;
use crate::scenario::mount::formatted;
use crate::time::{MINUTE, SECOND};
use crate::trace::HostId;
use crate::world::World;
use outrider_core::arena::Arena;
use outrider_core::client::mount::{MountConfig, MountLimits, MountState, MountTiming};
use outrider_core::client::op::{
    EntryReader, Handle, Op, OpError, OpenAccess, OpenHow, Reply, SetAttr, XattrNameBuf,
};
use outrider_core::format::item::{FileKind, Time};
use outrider_core::format::quorum::{BootId, HostId as QuorumHost, Incarnation, Slot};
use outrider_core::format::super_block::Super;
use outrider_core::format::{BLOCK_BYTES, Ino};
use outrider_core::net::Timing as NetTiming;
use outrider_core::quorum::{Exclusion, Identity, Timing, Vouched};
use outrider_core::server::{Server, ServerConfig, ServerLimits, ServerTiming};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

const SERVER: HostId = HostId(0);
const MOUNT: HostId = HostId(1);
/// A mount, those that crashed before it, and some.
const CLIENTS: u16 = 4;
/// The root directory.
const ROOT: Ino = Ino(1);
/// Room for any answer.
const ROOM: usize = 1 << 17;
/// When things are done to the image by those who only look.
const NOW: Time = Time { sec: 2_000_000, nsec: 0 };

/// Turns of a world in a minute of which nothing comes, as a bound on livelocks.
const TURNS_MAX: u64 = 1_000_000;
/// What an error of [`Cluster::until`] begins with when nodes are stepped on and on.
pub const SPINS: &str = "stepped on and on";

/// Who has crashed is evicted soon.
const SERVER_TIMING: ServerTiming = ServerTiming {
    recovery: Duration::from_secs(2),
    io_lifetime: Duration::from_secs(2),
    ..ServerTiming::NORMAL
};

const MOUNT_TIMING: MountTiming = MountTiming {
    lease: Duration::from_millis(1500),
    renew: Duration::from_millis(500),
    commit_age: Duration::from_millis(200),
    ..MountTiming::NORMAL
};

struct Serving {
    volume: Super,
    clients: u16,
    /// Machines that lost power have another boot id when they are back.
    power: u8,
}

impl Serving {
    fn config(&self, entropy: &mut Rng) -> ServerConfig {
        let (mut incarnation, mut secret) = ([0; 16], [0; 32]);
        entropy.fill(&mut incarnation);
        entropy.fill(&mut secret);
        ServerConfig {
            volume: self.volume,
            slot: Slot::new(0).expect("a slot"),
            listen: None,
            identity: Identity {
                incarnation: Incarnation(incarnation),
                host: QuorumHost([1; 16]),
                boot: BootId([self.power; 16]),
                exclusion: Exclusion::Host,
                vouched: Vouched::Nothing,
                seed: entropy.number(),
            },
            quorum: Timing::NORMAL,
            net: NetTiming::DEFAULT,
            timing: SERVER_TIMING,
            secret,
        }
    }
}

impl Program for Serving {
    fn region_bytes(&self) -> usize {
        let mut arena = Arena::measuring();
        let limits = ServerLimits::for_clients(self.clients);
        drop(Server::carve(&mut arena, &limits, &self.config(&mut Rng::new(0))));
        arena.bytes_used()
    }

    fn start(&self, mut boot: Boot) -> Box<dyn Guest> {
        let config = self.config(&mut boot.entropy);
        let mut arena = Arena::new(boot.region).expect("regions are aligned");
        let limits = ServerLimits::for_clients(self.clients);
        Box::new(Server::carve(&mut arena, &limits, &config).expect("measured"))
    }
}

struct Mounting {
    volume: Super,
}

impl Mounting {
    fn config(&self, entropy: &mut Rng) -> MountConfig {
        MountConfig { timing: MOUNT_TIMING, ..Platform::config(self.volume, entropy) }
    }
}

impl Program for Mounting {
    fn region_bytes(&self) -> usize {
        let mut arena = Arena::measuring();
        let config = self.config(&mut Rng::new(0));
        drop(Platform::carve(&mut arena, &MountLimits::small(), &config));
        arena.bytes_used()
    }

    fn start(&self, mut boot: Boot) -> Box<dyn Guest> {
        let config = self.config(&mut boot.entropy);
        let mut arena = Arena::new(boot.region).expect("regions are aligned");
        let carved = Platform::carve(&mut arena, &MountLimits::small(), &config);
        Box::new(carved.expect("measured"))
    }
}

/// An empty volume, and what its super block says.
#[must_use]
pub fn made() -> (Image, Super) {
    formatted(1)
}

/// A server and a mount on an image.
#[derive(Clone)]
pub struct Cluster {
    world: Rc<RefCell<World>>,
}

impl Cluster {
    /// Machines that boot on this image, after so many losses of power.
    #[must_use]
    pub fn new(image: Image, volume: Super, power: u8) -> Cluster {
        Cluster::with_clients(image, volume, power, CLIENTS)
    }

    /// Such a cluster, on a volume where so many clients may have left a record.
    #[must_use]
    pub fn with_clients(image: Image, volume: Super, power: u8, clients: u16) -> Cluster {
        let mut world = World::calm(power.into(), image);
        world.add_host("server", Serving { volume, clients, power });
        world.add_host("mount", Mounting { volume });
        Cluster { world: Rc::new(RefCell::new(world)) }
    }

    /// The world it is in.
    #[must_use]
    pub fn world(&self) -> &RefCell<World> {
        &self.world
    }

    /// Runs until this is so of the mount.
    ///
    /// # Errors
    ///
    /// What the mount does instead, if it doesn't become so in a minute.
    pub fn until(&self, what: &str, mut so: impl FnMut(&Platform) -> bool) -> Result<(), String> {
        let mut world = self.world.borrow_mut();
        let turns_end = world.work().turns + TURNS_MAX;
        let is_so = world.run_until(MINUTE, |world| {
            world.work().turns > turns_end || world.guest(MOUNT).is_some_and(&mut so)
        });
        if world.work().turns > turns_end {
            return Err(format!("{SPINS}: {what}"));
        }
        if is_so.map_err(|violation| violation.to_string())? {
            return Ok(());
        }
        let mount = world.guest(MOUNT).map(Platform::describe).unwrap_or_default();
        let server = world.guest(SERVER).map(Server::counters);
        Err(format!("no end of {what}: {mount}, {server:?}"))
    }

    /// Waits until the volume is mounted.
    ///
    /// # Errors
    ///
    /// As [`until`](Self::until).
    pub fn mount(&self) -> Result<(), String> {
        self.until("mounting", |at| at.mount.state() == MountState::Mounted)
    }

    /// Waits until the mount has made everything durable.
    ///
    /// # Errors
    ///
    /// As [`until`](Self::until).
    pub fn idle(&self) -> Result<(), String> {
        self.until("commits", |at| at.is_idle() && at.mount.usage().dirty_items == 0)
    }

    /// Waits until the server has made no commit for a second: nothing of one that isn't durable is
    /// on the disk then, which might lie where the root before the newest one has something.
    ///
    /// # Errors
    ///
    /// When that takes longer than a minute.
    pub fn rest(&self) -> Result<(), String> {
        for _ in 0..60 {
            let before = self.commits();
            let seconds = self.world.borrow_mut().run_until(SECOND, |_| false);
            seconds.map_err(|violation| violation.to_string())?;
            if self.commits() == before {
                return Ok(());
            }
        }
        Err("there is no end of commits".to_owned())
    }

    fn commits(&self) -> Option<u64> {
        let world = self.world.borrow();
        world.guest::<Server<'static>>(SERVER).map(|server| server.counters().commits)
    }

    /// Leaves the volume, and waits until that is done.
    ///
    /// # Errors
    ///
    /// As [`until`](Self::until).
    pub fn unmount(&self) -> Result<(), String> {
        let leave = |at: &mut Platform, now| at.mount.leave(now);
        self.world.borrow_mut().with(MOUNT, leave);
        self.until("leaving", |at| at.mount.state() == MountState::Left)
    }
}

impl Executes for Cluster {
    fn execute(&mut self, asked: &Asked<'_>) -> Result<Done, OpError> {
        let (user, op) = (asked.user.clone(), asked.op.clone());
        let call = Call { user, now: asked.now, op, data: asked.data.to_vec() };
        let id = self.world.borrow_mut().with(MOUNT, |at: &mut Platform, _| at.call(call));
        let id = id.ok_or(OpError::Interrupted)?;
        self.until("a call", |at| at.has_ended(id)).map_err(|_| OpError::Interrupted)?;
        let ended = self.world.borrow_mut().with(MOUNT, |at: &mut Platform, _| at.take(id));
        ended.flatten().ok_or(OpError::Interrupted)?
    }
}

/// What a user sees of a file.
#[derive(Clone, PartialEq, Eq)]
pub struct Seen {
    /// The first path that leads to the same inode.
    pub first: String,
    /// Type.
    pub kind: FileKind,
    /// The low 12 bits of the mode.
    pub permissions: u16,
    /// How many names it has.
    pub nlink: u32,
    /// Bytes of a file.
    pub size: u64,
    /// When the data were last changed.
    pub mtime: Time,
    /// When the inode was last changed.
    pub ctime: Time,
    /// What is in a file.
    pub data: Vec<u8>,
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Seen { first, kind, nlink, size, mtime, ctime, xattrs, .. } = self;
        let mut stretches: Vec<(u8, usize)> = Vec::new();
        for byte in &self.data {
            match stretches.last_mut() {
                Some((last, count)) if last == byte => *count += 1,
                Some(_) | None => stretches.push((*byte, 1)),
            }
        }
        let (mtime, ctime, values) = (mtime.sec, ctime.sec, xattrs.len());
        write!(f, "{kind:?} {first} {nlink} links {size} bytes {mtime} {ctime} ")?;
        write!(f, "{values} xattrs (byte, times): {stretches:?}")
    }
}

/// All files, by path.
pub type Tree = BTreeMap<String, Seen>;

/// Looks at all there is in a file system; says of which inode each path is the first name.
///
/// # Errors
///
/// That of the first operation that fails.
pub fn look(fs: &mut impl Executes) -> Result<(Tree, BTreeMap<String, Ino>), OpError> {
    let mut tree = Tree::new();
    let mut firsts = BTreeMap::from([(ROOT, String::new())]);
    let mut todo = vec![(String::new(), ROOT)];
    while let Some((path, ino)) = todo.pop() {
        let first = firsts.entry(ino).or_insert_with(|| path.clone()).clone();
        let seen = look_at(fs, ino, first)?;
        if seen.kind == FileKind::Directory {
            let mut entries = entries(fs, ino)?;
            entries.sort_by(|one, other| other.cmp(one));
            let below = |(name, child)| (format!("{path}/{name}"), child);
            todo.extend(entries.into_iter().map(below));
        }
        tree.insert(path, seen);
    }
    Ok((tree, firsts.into_iter().map(|(ino, path)| (path, ino)).collect()))
}

/// Whether zeros are found behind the end of each file when it is made as long as its blocks.
///
/// # Errors
///
/// That of the first operation that fails.
pub fn tails_are_zero(
    fs: &mut impl Executes,
    tree: &Tree,
    inos: &BTreeMap<String, Ino>,
) -> Result<bool, OpError> {
    for (path, &ino) in inos {
        let Some(seen) = tree.get(path) else { continue };
        let end = seen.size.next_multiple_of(BLOCK_BYTES as u64);
        if end > seen.size {
            let set = SetAttr { size: Some(end), ..SetAttr::default() };
            ask(fs, &Op::Setattr { ino, handle: None, set })?;
            let data = read(fs, ino, end)?;
            // Of a file that claims more than can be read, there is none.
            let tail = data.get(seen.size as usize..).unwrap_or_default();
            if tail.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

fn ask(fs: &mut impl Executes, op: &Op) -> Result<Done, OpError> {
    fs.execute(&Asked { user: &User::ROOT, now: NOW, op, data: &[], room: Some(ROOM) })
}

fn opened(fs: &mut impl Executes, op: &Op) -> Result<Handle, OpError> {
    match ask(fs, op)?.reply {
        Reply::Opened(handle) => Ok(handle),
        _ => Err(OpError::Invalid),
    }
}

fn entries(fs: &mut impl Executes, ino: Ino) -> Result<Vec<(String, Ino)>, OpError> {
    let handle = opened(fs, &Op::Opendir { ino })?;
    let (mut all, mut from) = (Vec::new(), 2);
    loop {
        let part = ask(fs, &Op::Readdir { ino, handle, from, plus: false })?.data;
        let before = all.len();
        for entry in EntryReader::new(&part) {
            from = entry.next;
            all.push((String::from_utf8_lossy(entry.name).into_owned(), entry.ino));
        }
        if all.len() == before {
            break;
        }
    }
    ask(fs, &Op::Releasedir { ino, handle })?;
    Ok(all)
}

fn read(fs: &mut impl Executes, ino: Ino, size: u64) -> Result<Vec<u8>, OpError> {
    let how = OpenHow { access: OpenAccess::Read, truncate: false, strip: false };
    let handle = opened(fs, &Op::Open { ino, how })?;
    let data = ask(fs, &Op::Read { ino, handle, at: 0, len: size as u32 })?.data;
    ask(fs, &Op::Release { ino, handle })?;
    Ok(data)
}

fn look_at(fs: &mut impl Executes, ino: Ino, first: String) -> Result<Seen, OpError> {
    let Reply::Attr(attr) = ask(fs, &Op::Getattr { ino })?.reply else {
        return Err(OpError::Invalid);
    };
    let regular = attr.kind == FileKind::Regular;
    let data = if regular { read(fs, ino, attr.size)? } else { Vec::new() };
    let list = ask(fs, &Op::Listxattr { ino })?.data;
    let mut xattrs = BTreeMap::new();
    for name in list.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let parsed = XattrNameBuf::parse(name).map_err(OpError::from)?;
        xattrs.insert(name.to_vec(), ask(fs, &Op::Getxattr { ino, name: parsed })?.data);
    }
    Ok(Seen {
        first,
        kind: attr.kind,
        permissions: attr.permissions,
        nlink: attr.nlink,
        size: if regular { attr.size } else { 0 },
        mtime: attr.mtime,
        ctime: attr.ctime,
        data,
        xattrs,
    })
}

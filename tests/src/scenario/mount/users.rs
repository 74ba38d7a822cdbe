//! Users of mounts: each writes versions of files of its own, and reads those of others.
//!
//! # Invariants
//!
//! * A file is written by one machine only, each time with the next version in every word. So what
//!   anybody reads is a version that was begun, and none older than what an fsync has promised;
//!   where nothing fails, none older than the last write that had ended.
//! * A machine whose mount was evicted is started anew, as its operator would.

use crate::check::Checker;
use crate::model::{Done, User as Name};
use crate::platform::{Call, Platform};
use crate::rng::{Chance, Rng};
use crate::time::MILLI;
use crate::trace::HostId;
use crate::world::{Workload, World};
use outrider_core::client::fs::ROOT;
use outrider_core::client::mount::{Counters, MountState};
use outrider_core::client::op::{
    Handle, NameBuf, NewMode, Op, OpError, OpenAccess, OpenHow, RenameMode, Reply, WriteAt,
};
use outrider_core::format::Ino;
use outrider_core::format::item::Time;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// Files of each machine.
const FILES: u64 = 3;
/// Calls that each machine must get through once faults have stopped.
const GOAL: u64 = 60;
const WORD: usize = 8;

/// What is known of a file.
#[derive(Debug, Default, Clone, Copy)]
struct Versions {
    /// Begun to be written.
    begun: u64,
    /// Written, by a call that has ended.
    written: u64,
    /// Promised to be durable.
    synced: u64,
}

/// What all users know.
#[derive(Debug, Default)]
pub struct Log {
    files: BTreeMap<(HostId, u64), Versions>,
    calls: BTreeMap<HostId, u64>,
    /// Calls of each machine when faults had stopped.
    calm: Option<BTreeMap<HostId, u64>>,
    /// Nothing fails: what was written is seen by all.
    strict: bool,
    reads: u64,
    restarts: u64,
    errors: BTreeMap<OpError, u64>,
    wrong: Option<String>,
}

impl Log {
    /// Of a world in which something fails, or nothing.
    #[must_use]
    pub fn new(strict: bool) -> Log {
        Log { strict, ..Log::default() }
    }

    /// Calls of a machine since faults have stopped, if they have.
    fn calm_calls(&self, host: HostId) -> Option<u64> {
        let count = |of: &BTreeMap<HostId, u64>| of.get(&host).copied().unwrap_or(0);
        self.calm.as_ref().map(|calm| count(&self.calls) - count(calm))
    }
}

/// What a user is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Begin,
    /// Finds, or makes, its own directory.
    FindOwn,
    MakeOwn,
    /// Works in it.
    Create {
        file: u64,
    },
    Write {
        file: u64,
        ino: Ino,
        handle: Handle,
        version: u64,
    },
    Fsync {
        file: u64,
        ino: Ino,
        handle: Handle,
        version: u64,
    },
    MakeScratch,
    MoveScratch,
    RemoveScratch,
    /// Reads another's.
    FindOther {
        other: HostId,
        file: u64,
    },
    FindFile {
        other: HostId,
        file: u64,
        dir: Ino,
    },
    Open {
        other: HostId,
        file: u64,
        ino: Ino,
    },
    Read {
        other: HostId,
        file: u64,
        ino: Ino,
        handle: Handle,
        least: u64,
    },
    Release {
        ino: Ino,
        handle: Handle,
    },
    Forget,
}

/// One machine's user.
struct User {
    host: HostId,
    boots: u32,
    stage: Stage,
    /// The call under way.
    call: Option<u64>,
    /// Its own directory.
    dir: Option<Ino>,
    /// Inodes looked up, to be given back.
    looked_up: Vec<Ino>,
}

/// All users.
pub struct Users {
    users: Vec<User>,
    rng: Rng,
    log: Rc<RefCell<Log>>,
    clock: i64,
}

fn name(text: &str) -> NameBuf {
    NameBuf::parse(text.as_bytes()).expect("a name")
}

fn bytes_of(file: u64) -> usize {
    (WORD * 700) * (file as usize + 1)
}

impl Users {
    /// Users of these machines.
    #[must_use]
    pub fn new(hosts: impl Iterator<Item = HostId>, rng: Rng, log: Rc<RefCell<Log>>) -> Users {
        let user = |host| User {
            host,
            boots: 0,
            stage: Stage::Begin,
            call: None,
            dir: None,
            looked_up: Vec::new(),
        };
        Users { users: hosts.map(user).collect(), rng, log, clock: 1_000_000 }
    }

    /// What to ask for next, and what comes with it.
    fn op(&mut self, at: usize) -> (Op, Vec<u8>) {
        let all = OpenHow { access: OpenAccess::ReadWrite, truncate: false, strip: false };
        let mode = NewMode { permissions: 0o755, umask: 0 };
        let others: Vec<HostId> = self.users.iter().map(|user| user.host).collect();
        let user = &mut self.users[at];
        if user.stage == Stage::Begin {
            let file = self.rng.below(FILES);
            user.stage = match self.rng.below(8) {
                _ if user.dir.is_none() => Stage::FindOwn,
                0..=3 => Stage::Create { file },
                4 => Stage::MakeScratch,
                _ => Stage::FindOther { other: *self.rng.pick(&others).expect("one"), file },
            };
        }
        let own = user.dir.unwrap_or(ROOT);
        let home = |host: HostId| name(&format!("machine-{}", host.0));
        let mut log = self.log.borrow_mut();
        let op = match user.stage {
            Stage::Begin => unreachable!("it was just left"),
            Stage::FindOwn => Op::Lookup { dir: ROOT, name: home(user.host) },
            Stage::MakeOwn => Op::Mkdir { dir: ROOT, name: home(user.host), mode },
            Stage::Create { file } => {
                let name = name(&format!("file-{file}"));
                Op::Create { dir: own, name, mode, how: all, exclusive: false }
            }
            Stage::Write { file, ino, handle, version } => {
                let versions = log.files.entry((user.host, file)).or_default();
                versions.begun = version;
                let data = version.to_le_bytes().repeat(bytes_of(file) / WORD);
                let (at, len) = (WriteAt::Offset(0), data.len() as u32);
                return (Op::Write { ino, handle, at, len, strip: false }, data);
            }
            Stage::Fsync { ino, handle, .. } => Op::Fsync { ino, handle, data_only: false },
            Stage::MakeScratch => Op::Mkdir { dir: own, name: name("scratch"), mode },
            Stage::MoveScratch => Op::Rename {
                dir: own,
                name: name("scratch"),
                to_dir: own,
                to_name: name("moved"),
                mode: RenameMode::Replace,
            },
            Stage::RemoveScratch => Op::Rmdir { dir: own, name: name("moved") },
            Stage::FindOther { other, .. } => Op::Lookup { dir: ROOT, name: home(other) },
            Stage::FindFile { file, dir, .. } => {
                Op::Lookup { dir, name: name(&format!("file-{file}")) }
            }
            Stage::Open { ino, .. } => {
                Op::Open { ino, how: OpenHow { access: OpenAccess::Read, ..all } }
            }
            Stage::Read { file, ino, handle, .. } => {
                Op::Read { ino, handle, at: 0, len: bytes_of(file) as u32 }
            }
            Stage::Release { ino, handle } => Op::Release { ino, handle },
            Stage::Forget => {
                let ino = user.looked_up.pop().unwrap_or(ROOT);
                Op::Forget { ino, lookups: 1 }
            }
        };
        (op, Vec::new())
    }

    /// Goes on from how the call has ended.
    fn on_ended(&mut self, at: usize, result: Result<Done, OpError>) {
        let mut log = self.log.borrow_mut();
        let user = &mut self.users[at];
        *log.calls.entry(user.host).or_default() += 1;
        let done = match result {
            Ok(done) => done,
            Err(error) => {
                *log.errors.entry(error).or_default() += 1;
                user.stage = match (user.stage, error) {
                    (Stage::FindOwn, OpError::NotFound) => Stage::MakeOwn,
                    (Stage::MakeScratch, OpError::Exists) => Stage::MoveScratch,
                    (Stage::MoveScratch, _) => Stage::RemoveScratch,
                    (
                        Stage::Write { ino, handle, .. }
                        | Stage::Fsync { ino, handle, .. }
                        | Stage::Read { ino, handle, .. },
                        _,
                    ) => Stage::Release { ino, handle },
                    (_, _) => Stage::Forget,
                };
                return;
            }
        };
        user.stage = match (user.stage, done.reply) {
            (Stage::FindOwn | Stage::MakeOwn, Reply::Entry(attr)) => {
                user.dir = Some(attr.ino);
                Stage::Begin
            }
            (Stage::Create { file }, Reply::Created(attr, handle)) => {
                user.looked_up.push(attr.ino);
                let version = log.files.entry((user.host, file)).or_default().begun + 1;
                Stage::Write { file, ino: attr.ino, handle, version }
            }
            (Stage::Write { file, ino, handle, version }, Reply::Count(count)) => {
                let whole = count as usize == bytes_of(file);
                if whole {
                    log.files.entry((user.host, file)).or_default().written = version;
                }
                match whole && self.rng.chance(Chance::EVEN) {
                    true => Stage::Fsync { file, ino, handle, version },
                    false => Stage::Release { ino, handle },
                }
            }
            (Stage::Fsync { file, ino, handle, version }, Reply::Empty) => {
                log.files.entry((user.host, file)).or_default().synced = version;
                Stage::Release { ino, handle }
            }
            (Stage::MakeScratch, Reply::Entry(attr)) => {
                user.looked_up.push(attr.ino);
                Stage::MoveScratch
            }
            (Stage::MoveScratch, _) => Stage::RemoveScratch,
            (Stage::FindOther { other, file }, Reply::Entry(attr)) => {
                user.looked_up.push(attr.ino);
                Stage::FindFile { other, file, dir: attr.ino }
            }
            (Stage::FindFile { other, file, .. }, Reply::Entry(attr)) => {
                user.looked_up.push(attr.ino);
                Stage::Open { other, file, ino: attr.ino }
            }
            (Stage::Open { other, file, ino }, Reply::Opened(handle)) => {
                let versions = log.files.get(&(other, file)).copied().unwrap_or_default();
                let least = if log.strict { versions.written } else { versions.synced };
                Stage::Read { other, file, ino, handle, least }
            }
            (Stage::Read { other, file, ino, handle, least }, Reply::Count(_)) => {
                check(&mut log, (other, file), least, &done.data);
                Stage::Release { ino, handle }
            }
            (Stage::RemoveScratch | Stage::Release { .. }, _) => Stage::Forget,
            (Stage::Forget, _) if user.looked_up.is_empty() => Stage::Begin,
            (Stage::Forget, _) => Stage::Forget,
            (stage, reply) => panic!("{reply:?} to {stage:?}"),
        };
        if user.stage == Stage::Forget && user.looked_up.is_empty() {
            user.stage = Stage::Begin;
        }
    }

    /// Whether a user has got through what it must, and has let go of all that it held.
    fn rests(&mut self, at: usize) -> bool {
        let user = &mut self.users[at];
        let calls = self.log.borrow().calm_calls(user.host);
        if user.stage != Stage::Begin || calls.is_none_or(|calls| calls < GOAL) {
            return false;
        }
        user.looked_up.extend(user.dir.take());
        if !user.looked_up.is_empty() {
            user.stage = Stage::Forget;
        }
        user.looked_up.is_empty()
    }

    fn drive(&mut self, world: &mut World, at: usize) {
        let (host, boots) = (self.users[at].host, self.users[at].boots);
        if world.boots(host) != boots {
            let (stage, call, dir, looked_up) = (Stage::Begin, None, None, Vec::new());
            let boots = world.boots(host);
            self.users[at] = User { host, boots, stage, call, dir, looked_up };
        }
        let state = world.guest::<Platform>(host).map(|at| at.mount.state());
        assert!(state != Some(MountState::Refused), "server and mount disagree");
        if state == Some(MountState::Evicted) && world.is_running(host) {
            self.log.borrow_mut().restarts += 1;
            world.crash(host);
            return world.boot(host);
        }
        if let Some(call) = self.users[at].call {
            let ended = world.with(host, |platform: &mut Platform, _| platform.take(call));
            let Some(result) = ended.flatten() else { return };
            self.users[at].call = None;
            self.on_ended(at, result);
        }
        if state != Some(MountState::Mounted) && state != Some(MountState::Suspended) {
            return;
        }
        if self.rests(at) {
            return;
        }
        let (op, data) = self.op(at);
        self.clock += 1;
        let now = Time { sec: self.clock, nsec: 0 };
        let call = Call { user: Name::ROOT, now, op, data };
        self.users[at].call = world.with(host, |platform: &mut Platform, _| platform.call(call));
        assert!(self.users[at].call.is_some() || !world.is_running(host));
    }
}

/// Each word that was read is a version that may be there.
fn check(log: &mut Log, (owner, file): (HostId, u64), least: u64, data: &[u8]) {
    log.reads += 1;
    let most = log.files.get(&(owner, file)).map_or(0, |versions| versions.begun);
    if data.len() != bytes_of(file) && least > 0 {
        let what = format!("file {file} of {owner} has {} bytes", data.len());
        log.wrong.get_or_insert(what);
    }
    for (at, word) in data.chunks_exact(WORD).enumerate() {
        let version = u64::from_le_bytes(word.try_into().expect("a word"));
        if !(least..=most).contains(&version) {
            let what = format!(
                "word {at} of file {file} of {owner} has version {version}, not {least} to {most}"
            );
            log.wrong.get_or_insert(what);
            return;
        }
    }
}

impl Workload for Users {
    fn tick(&mut self, world: &mut World) -> Option<Duration> {
        for at in 0..self.users.len() {
            self.drive(world, at);
        }
        Some(5 * MILLI)
    }
}

/// Looks at what users know, and whether they get on.
pub struct Mounts {
    log: Rc<RefCell<Log>>,
    violations: Cell<u64>,
    commits: Cell<u64>,
}

impl Mounts {
    /// A checker.
    #[must_use]
    pub fn new(log: Rc<RefCell<Log>>) -> Mounts {
        let (violations, commits) = (Cell::new(0), Cell::new(0));
        Mounts { log, violations, commits }
    }
}

impl Checker for Mounts {
    fn name(&self) -> &'static str {
        "mounts"
    }

    fn after_step(&mut self, world: &World, host: HostId) -> Result<(), String> {
        if let Some(platform) = world.guest::<Platform>(host) {
            let Counters { violations, commits, .. } = platform.mount.counters();
            self.violations.set(self.violations.get().max(violations));
            self.commits.set(self.commits.get().max(commits));
            if violations > 0 {
                return Err(format!("{host} says that a server breaks the protocol"));
            }
        }
        self.log.borrow().wrong.clone().map_or(Ok(()), Err)
    }

    fn unsettled(&self, world: &World) -> Option<String> {
        let log = &mut *self.log.borrow_mut();
        log.calm.get_or_insert_with(|| log.calls.clone());
        world.hosts().find_map(|host| {
            let platform = world.guest::<Platform>(host)?;
            let done = log.calm_calls(host).unwrap_or(0);
            (done < GOAL).then(|| format!("{host}: {done} calls, {}", platform.describe()))
        })
    }

    fn is_settled(&self, world: &World) -> bool {
        let log = &mut *self.log.borrow_mut();
        log.calm.get_or_insert_with(|| log.calls.clone());
        let mut mounts = world.hosts().filter(|host| world.guest::<Platform>(*host).is_some());
        mounts.all(|host| log.calm_calls(host).unwrap_or(0) >= GOAL)
    }

    fn work(&self) -> Vec<(&'static str, u64)> {
        let log = self.log.borrow();
        vec![
            ("calls", log.calls.values().sum()),
            ("files read", log.reads),
            ("commits of one mount", self.commits.get()),
            ("mounts evicted and restarted", log.restarts),
            ("calls failed", log.errors.values().sum()),
        ]
    }
}

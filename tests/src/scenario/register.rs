//! Mounts whose users keep numbers in the attributes of files, and read each other's: whether what
//! is answered from a mount's memory is what the cluster would say.
//!
//! Each machine has a few files of its own and gives them one number after the other; now and then
//! it makes one durable. Everywhere users look these numbers up, most often without any exchange
//! with a server: what a mount remembers is right while it has its locks, and its lease.
//!
//! # Invariants
//!
//! * Numbers of a file only grow. Who looks one up is told none that is older than what had been
//!   made durable before it asked, or than what anybody on another machine had been told before.
//! * A mount is evicted by a server. That it has lost its lease is no reason.
//!
//! A machine whose clock stands still while it does would answer from its memory once it goes on;
//! such a machine is stopped by the witness that watches it, which is not simulated. So here clocks
//! don't stand still.
//!
//! What this module deliberately doesn't know: how a mount remembers.

use crate::check::Checker;
use crate::check::leaders::Leaders;
use crate::faults::{Fault, FaultSet, Promise};
use crate::model::{Done, User as Name};
use crate::platform::{Call, Platform};
use crate::rng::{Chance, Rng};
use crate::scenario::Scenario;
use crate::scenario::mount::{Mounting, Serving, formatted};
use crate::time::{MILLI, MINUTE};
use crate::trace::HostId;
use crate::world::{Workload, World};
use outrider_core::client::fs::ROOT;
use outrider_core::client::mount::{MountLimits, MountState};
use outrider_core::client::op::{
    Handle, NameBuf, NewMode, Op, OpError, OpenAccess, OpenHow, Reply, SetAttr, SetTime,
};
use outrider_core::format::Ino;
use outrider_core::format::item::Time;
use outrider_core::format::super_block::Super;
use outrider_core::server::Server;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// Servers; the mounts come after them.
pub const SERVERS: u16 = 2;
const MOUNTS: u16 = 3;
/// Files of each machine.
const FILES: u64 = 2;
/// Numbers that each machine must have looked up after faults have stopped.
const GOAL: u64 = 60;

/// The scenario.
pub const SCENARIO: Scenario = Scenario {
    name: "register",
    demands,
    demanded_work: &[],
    goals: &[],
    fault_goal: None,
    world,
    faulty: MINUTE.saturating_mul(2),
    settles_within: MINUTE.saturating_mul(6),
};

fn demands() -> FaultSet {
    FaultSet::harmless().without(FaultSet::of(&[Fault::NodeClockFrozen]))
}

fn world(seed: u64) -> World {
    let promise = Promise {
        survives: demands(),
        hosts_impaired_max: 3,
        blocks_damaged_max: 0,
        damageable: 0..0,
    };
    let (image, volume) = formatted(SERVERS);
    populate(World::new(seed, promise, image), seed, volume)
}

/// The same machines, and nothing goes wrong by itself.
#[must_use]
pub fn quiet(seed: u64) -> World {
    let (image, volume) = formatted(SERVERS);
    populate(World::calm(seed, image), seed, volume)
}

fn populate(mut world: World, seed: u64, volume: Super) -> World {
    for me in 0..SERVERS {
        world.add_host("server", Serving { me, volume });
    }
    let limits = MountLimits::small();
    let mounting = || Mounting { volume, limits, tells_boot: false };
    let mounts = (0..MOUNTS).map(|_| world.add_host("mount", mounting()));
    let mounts: Vec<HostId> = mounts.collect();
    let log = Rc::new(RefCell::new(Log::default()));
    let users = mounts.iter().flat_map(|host| {
        let watching = mounts.iter().map(|watched| User::new(*host, Some(*watched)));
        watching.chain([User::new(*host, None)])
    });
    let rng = Rng::new(seed).fork("users");
    world.set_workload(Users { users: users.collect(), rng, log: Rc::clone(&log) });
    world.add_checker(Registers { log, evictions: BTreeMap::new(), calm: RefCell::new(None) });
    world.add_checker(Leaders::new(volume));
    world
}

/// A file: its machine, and which of its files it is.
type Register = (HostId, u64);

/// What is known of a file's numbers.
#[derive(Debug, Default, Clone, Copy)]
struct Numbers {
    /// The last that anybody tried to give it.
    begun: i64,
    /// No older one may be told any more.
    least: i64,
}

#[derive(Debug, Default)]
struct Log {
    registers: BTreeMap<Register, Numbers>,
    /// Numbers that were looked up on each machine.
    reads: BTreeMap<HostId, u64>,
    changes: u64,
    durable: u64,
    failed: u64,
    /// Mounts that say that they were evicted.
    evicted: u64,
    wrong: Option<String>,
}

impl Log {
    /// Somebody was told this number, having asked when none older than `least` might be told.
    fn read(&mut self, reader: HostId, of: Register, least: i64, number: i64) {
        *self.reads.entry(reader).or_default() += 1;
        let numbers = self.registers.entry(of).or_default();
        if !(least..=numbers.begun).contains(&number) {
            let most = numbers.begun;
            self.wrong.get_or_insert(format!(
                "file {} of {} has number {number} on {reader}, not {least} to {most}",
                of.1, of.0
            ));
        }
        // What another machine sees has been made durable before its lock was given back.
        if reader != of.0 {
            numbers.least = numbers.least.max(number);
        }
    }

    fn least(&self, of: Register) -> i64 {
        self.registers.get(&of).map_or(0, |numbers| numbers.least)
    }
}

/// What a user does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Begin,
    Create { file: u64 },
    Change { file: u64, ino: Ino, handle: Handle, number: i64 },
    Fsync { file: u64, ino: Ino, handle: Handle, number: i64 },
    Release { ino: Ino, handle: Handle },
    Lookup { of: Register, least: i64 },
    Getattr { of: Register, least: i64, ino: Ino },
    Forget { ino: Ino },
}

#[derive(Debug, Clone, Copy)]
struct User {
    host: HostId,
    /// Whose files it looks up; without it, the user changes those of its own machine.
    watches: Option<HostId>,
    boots: u32,
    stage: Stage,
    call: Option<u64>,
}

impl User {
    fn new(host: HostId, watches: Option<HostId>) -> User {
        User { host, watches, boots: 0, stage: Stage::Begin, call: None }
    }
}

struct Users {
    users: Vec<User>,
    rng: Rng,
    log: Rc<RefCell<Log>>,
}

fn name(of: Register) -> NameBuf {
    NameBuf::parse(format!("{}-{}", of.0, of.1).as_bytes()).expect("a name")
}

impl Users {
    /// Decides what to do next, where nothing was begun.
    fn begin(&mut self, at: usize) -> Stage {
        let file = self.rng.below(FILES);
        match self.users[at].watches {
            Some(host) => Stage::Lookup { of: (host, file), least: 0 },
            None => Stage::Create { file },
        }
    }

    fn op(&mut self, at: usize) -> Op {
        if self.users[at].stage == Stage::Begin {
            self.users[at].stage = self.begin(at);
        }
        let mut log = self.log.borrow_mut();
        let user = &mut self.users[at];
        match &mut user.stage {
            Stage::Begin => unreachable!("it was just left"),
            Stage::Create { file } => Op::Create {
                dir: ROOT,
                name: name((user.host, *file)),
                mode: NewMode { permissions: 0o644, umask: 0 },
                how: OpenHow { access: OpenAccess::ReadWrite, truncate: false, strip: false },
                exclusive: false,
            },
            Stage::Change { file, ino, number, .. } => {
                let numbers = log.registers.entry((user.host, *file)).or_default();
                numbers.begun += 1;
                *number = numbers.begun;
                let mtime = Some(SetTime::To(Time { sec: *number, nsec: 0 }));
                Op::Setattr {
                    ino: *ino,
                    handle: None,
                    set: SetAttr { mtime, ..SetAttr::default() },
                }
            }
            Stage::Fsync { ino, handle, .. } => {
                Op::Fsync { ino: *ino, handle: *handle, data_only: false }
            }
            Stage::Release { ino, handle } => Op::Release { ino: *ino, handle: *handle },
            Stage::Lookup { of, least } => {
                *least = log.least(*of);
                Op::Lookup { dir: ROOT, name: name(*of) }
            }
            Stage::Getattr { of, least, ino } => {
                *least = log.least(*of);
                Op::Getattr { ino: *ino }
            }
            Stage::Forget { ino } => Op::Forget { ino: *ino, lookups: 1 },
        }
    }

    /// Goes on from how the call has ended.
    fn on_ended(&mut self, at: usize, result: Result<Done, OpError>) {
        let mut log = self.log.borrow_mut();
        let again = self.rng.chance(Chance::EVEN);
        let User { host, stage, .. } = self.users[at];
        let next = match (stage, result.map(|done| done.reply)) {
            (Stage::Create { file }, Ok(Reply::Created(attr, handle))) => {
                Stage::Change { file, ino: attr.ino, handle, number: 0 }
            }
            (Stage::Change { file, ino, handle, number }, Ok(Reply::Attr(_))) => {
                log.changes += 1;
                Stage::Fsync { file, ino, handle, number }
            }
            (Stage::Fsync { file, ino, handle, number }, Ok(Reply::Empty)) => {
                log.durable += 1;
                let numbers = log.registers.entry((host, file)).or_default();
                numbers.least = numbers.least.max(number);
                match again {
                    true => Stage::Change { file, ino, handle, number },
                    false => Stage::Release { ino, handle },
                }
            }
            (Stage::Lookup { of, least }, Ok(Reply::Entry(attr))) => {
                log.read(host, of, least, attr.mtime.sec);
                Stage::Getattr { of, least, ino: attr.ino }
            }
            (Stage::Getattr { of, least, ino }, Ok(Reply::Attr(attr))) => {
                log.read(host, of, least, attr.mtime.sec);
                match again {
                    true => stage,
                    false => Stage::Forget { ino },
                }
            }
            (Stage::Release { ino, .. }, _) => Stage::Forget { ino },
            (Stage::Forget { .. }, _) => Stage::Begin,
            (stage, Err(error)) => {
                log.failed += 1;
                match (stage, error) {
                    (Stage::Lookup { of, least }, OpError::NotFound) if least > 0 => {
                        let what = format!("file {} of {} is lost", of.1, of.0);
                        log.wrong.get_or_insert(what);
                        Stage::Begin
                    }
                    (Stage::Change { ino, handle, .. } | Stage::Fsync { ino, handle, .. }, _) => {
                        Stage::Release { ino, handle }
                    }
                    (Stage::Getattr { ino, .. }, _) => Stage::Forget { ino },
                    (_, _) => Stage::Begin,
                }
            }
            (stage, Ok(reply)) => panic!("{reply:?} to {stage:?}"),
        };
        self.users[at].stage = next;
    }

    fn drive(&mut self, world: &mut World, at: usize) {
        let host = self.users[at].host;
        let boots = world.boots(host);
        if self.users[at].boots != boots {
            self.users[at] = User { boots, ..User::new(host, self.users[at].watches) };
        }
        let state = world.guest::<Platform>(host).map(|at| at.mount.state());
        if state == Some(MountState::Evicted) && world.is_running(host) {
            self.log.borrow_mut().evicted += 1;
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
        let op = self.op(at);
        let (user, now) = (Name::ROOT, Time { sec: 0, nsec: 0 });
        let call = Call { user, now, op, data: Vec::new() };
        self.users[at].call = world.with(host, |platform: &mut Platform, _| platform.call(call));
    }
}

impl Workload for Users {
    fn tick(&mut self, world: &mut World) -> Option<Duration> {
        for at in 0..self.users.len() {
            self.drive(world, at);
        }
        Some(10 * MILLI)
    }
}

/// The checker.
struct Registers {
    log: Rc<RefCell<Log>>,
    /// Evictions that each life of a server has begun.
    evictions: BTreeMap<(HostId, u32), u64>,
    /// What had been looked up when faults had stopped.
    calm: RefCell<Option<BTreeMap<HostId, u64>>>,
}

impl Checker for Registers {
    fn name(&self) -> &'static str {
        "registers"
    }

    fn after_step(&mut self, world: &World, host: HostId) -> Result<(), String> {
        let log = self.log.borrow();
        if let Some(server) = world.guest::<Server<'static>>(host) {
            self.evictions.insert((host, world.boots(host)), server.counters().evictions);
        }
        if let Some(platform) = world.guest::<Platform>(host)
            && platform.mount.counters().violations > 0
        {
            return Err(format!("{host} says that a server breaks the protocol"));
        }
        let begun = self.evictions.values().sum::<u64>();
        if log.evicted > begun {
            return Err(format!("{} mounts say that they were evicted, {begun} were", log.evicted));
        }
        log.wrong.clone().map_or(Ok(()), Err)
    }

    fn unsettled(&self, world: &World) -> Option<String> {
        let log = self.log.borrow();
        let mut calm = self.calm.borrow_mut();
        let calm = calm.get_or_insert_with(|| log.reads.clone());
        world.hosts().find_map(|host| {
            let platform = world.guest::<Platform>(host)?;
            let count = |of: &BTreeMap<HostId, u64>| of.get(&host).copied().unwrap_or(0);
            let done = count(&log.reads) - count(calm);
            (done < GOAL).then(|| format!("{host}: {done} looked up, {}", platform.describe()))
        })
    }

    fn work(&self) -> Vec<(&'static str, u64)> {
        let log = self.log.borrow();
        vec![
            ("numbers looked up", log.reads.values().sum()),
            ("numbers changed", log.changes),
            ("numbers made durable", log.durable),
            ("mounts evicted and restarted", log.evicted),
            ("evictions begun", self.evictions.values().sum()),
            ("calls failed", log.failed),
        ]
    }
}

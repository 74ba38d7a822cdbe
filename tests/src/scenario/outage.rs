//! A leader that ends while all mounts are at work, and how long their users wait for the next one.
//!
//! ```text
//!   the leader ends --> its slot says so --> another is elected --> serves --> welcomes all mounts
//!                                                                                    |
//!                                      of every user a whole new file is durable <---+
//! ```
//!
//! Each mount has one user, who makes one file durable after the other, in a directory of its own.
//!
//! # Invariants
//!
//! * Nothing goes wrong but that, so times are the protocol's doing: in virtual time a step of a
//!   node costs some microseconds, a transfer of a block and a message some tenths of a
//!   millisecond.
//!
//! What this module deliberately doesn't know: how long is too long.

use super::mount::voters;
use crate::check::Violation;
use crate::model::User as Name;
use crate::platform::{Call, Platform};
use crate::time::{MILLI, MINUTE, SECOND, Time};
use crate::trace::HostId;
use crate::world::{Workload, World};
use outrider_core::client::fs::ROOT;
use outrider_core::client::mount::MountState;
use outrider_core::client::op::{
    Handle, NameBuf, NewMode, Op, OpError, OpenAccess, OpenHow, Reply,
};
use outrider_core::format::Ino;
use outrider_core::format::item::Time as FileTime;
use outrider_core::quorum::Role;
use outrider_core::server::Server;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

const SERVERS: u16 = 3;
const MOUNTS: u16 = 3;
/// How often users look whether a call has ended.
const LOOK: Duration = Duration::from_micros(500);

/// How the leader ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It is asked to.
    Stopped,
    /// Its process is killed, and its host ends its connections.
    Killed,
    /// Its host dies, or is cut off from everything: nobody is told.
    HostDies,
}

/// When each of these was so, counted from the leader's end, in virtual time.
#[derive(Debug, Clone, Copy)]
pub struct Took {
    /// The old leader's slot said that it was stopped. Nothing, if it wasn't.
    pub let_go: Duration,
    /// Another was elected.
    pub elected: Duration,
    /// It served.
    pub serving: Duration,
    /// It had welcomed the first mount.
    pub first: Duration,
    /// It had welcomed all.
    pub welcomed: Duration,
    /// The longest that any user waited for a file.
    pub waited: Duration,
    /// Blocks that were read meanwhile, by all machines.
    pub reads: u64,
}

/// Ends the leader of a cluster, at a moment that differs from seed to seed, and waits until
/// everybody goes on.
///
/// # Errors
///
/// What a checker found, or what didn't come to be.
///
/// # Panics
///
/// If a call fails.
pub fn run(seed: u64, end: End) -> Result<Took, Violation> {
    let mut world = voters(seed, SERVERS, MOUNTS);
    let log = Rc::new(RefCell::new(Log::default()));
    let users = mounts().map(User::new).collect();
    world.set_workload(Users { users, log: Rc::clone(&log) });
    demand(&mut world, "all work", |world| {
        leader(world).is_some() && log.borrow().last.len() == usize::from(MOUNTS)
    })?;
    world.run_until(SECOND * 5 + MILLI * (seed as u32 * 37 % 1000), |_| false)?;
    let first = leader(&world).expect("nothing has gone wrong");
    let (ended, reads) = (world.now(), world.disk().work().reads);
    log.borrow_mut().longest = Duration::ZERO;
    let mut seen =
        Seen { welcomes: mounts().map(|host| welcomes(&world, host)).collect(), ..Seen::default() };
    bring_about(&mut world, first, end);
    demand(&mut world, "all go on", |world| {
        seen.look(world, first, world.now().since(ended));
        let begun = |host| log.borrow().last.get(&host).is_some_and(|begun| *begun >= ended);
        seen.welcomed.is_some() && mounts().all(begun)
    })?;
    Ok(Took {
        let_go: seen.let_go.unwrap_or_default(),
        elected: seen.elected.unwrap_or_default(),
        serving: seen.serving.unwrap_or_default(),
        first: seen.first.unwrap_or_default(),
        welcomed: seen.welcomed.unwrap_or_default(),
        waited: log.borrow().longest,
        reads: world.disk().work().reads - reads,
    })
}

fn bring_about(world: &mut World, leader: HostId, end: End) {
    match end {
        End::Stopped => {
            world.with(leader, |server: &mut Server<'_>, _| server.stop());
        }
        End::Killed => world.crash(leader),
        End::HostDies => {
            for host in world.hosts().filter(|host| *host != leader) {
                world.block(leader, host, MINUTE * 60);
                world.block(host, leader, MINUTE * 60);
            }
            world.crash(leader);
        }
    }
}

fn demand(world: &mut World, what: &str, so: impl FnMut(&World) -> bool) -> Result<(), Violation> {
    if world.run_until(MINUTE, so)? {
        return Ok(());
    }
    Err(Violation { at: world.now(), checker: "outage", what: format!("it is not so that {what}") })
}

fn mounts() -> impl Iterator<Item = HostId> {
    (SERVERS..SERVERS + MOUNTS).map(HostId)
}

fn servers() -> impl Iterator<Item = HostId> {
    (0..SERVERS).map(HostId)
}

/// Who serves and may act.
fn leader(world: &World) -> Option<HostId> {
    servers().find(|host| {
        let server = world.guest::<Server<'static>>(*host);
        server.is_some_and(|at| at.serving().is_some() && at.voter().may_act(world.clock(*host)))
    })
}

/// How often servers have welcomed a mount.
fn welcomes(world: &World, mount: HostId) -> u64 {
    world.guest::<Platform>(mount).map_or(0, |at| at.mount.counters().greetings)
}

/// When something was first so.
#[derive(Default)]
struct Seen {
    /// Before the end.
    welcomes: Vec<u64>,
    let_go: Option<Duration>,
    elected: Option<Duration>,
    serving: Option<Duration>,
    first: Option<Duration>,
    welcomed: Option<Duration>,
}

impl Seen {
    fn look(&mut self, world: &World, old: HostId, now: Duration) {
        let note = |at: &mut Option<Duration>, so: bool| *at = at.or(so.then_some(now));
        let role = |host| world.guest::<Server<'static>>(host).map(|at| at.voter().role());
        note(&mut self.let_go, role(old) == Some(Role::Stopped));
        let others = || servers().filter(|host| *host != old);
        let leads = |host| matches!(role(host), Some(Role::Leading(_)));
        note(&mut self.elected, others().any(leads));
        let serves = leader(world).is_some_and(|host| host != old);
        note(&mut self.serving, serves);
        let mut again =
            mounts().zip(&self.welcomes).map(|(host, had)| welcomes(world, host) > *had);
        note(&mut self.first, again.any(|again| again));
        let mut again =
            mounts().zip(&self.welcomes).map(|(host, had)| welcomes(world, host) > *had);
        note(&mut self.welcomed, again.all(|again| again));
    }
}

/// What users have waited for.
#[derive(Default)]
struct Log {
    longest: Duration,
    /// When the last file was begun that is durable.
    last: BTreeMap<HostId, Time>,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    Begin,
    Mkdir,
    Create,
    Fsync { ino: Ino, handle: Handle },
    Release { ino: Ino, handle: Handle },
}

/// The user of a mount.
struct User {
    host: HostId,
    stage: Stage,
    dir: Ino,
    files: u64,
    begun: Time,
    call: Option<u64>,
}

impl User {
    fn new(host: HostId) -> User {
        User { host, stage: Stage::Begin, dir: ROOT, files: 0, begun: Time(0), call: None }
    }

    fn op(&self) -> Op {
        let mode = NewMode { permissions: 0o755, umask: 0 };
        let name = |text: String| NameBuf::parse(text.as_bytes()).expect("a name");
        match self.stage {
            Stage::Begin | Stage::Mkdir => {
                Op::Mkdir { dir: ROOT, name: name(format!("of{}", self.host.0)), mode }
            }
            Stage::Create => Op::Create {
                dir: self.dir,
                name: name(format!("file{}", self.files)),
                mode,
                how: OpenHow { access: OpenAccess::ReadWrite, truncate: false, strip: false },
                exclusive: true,
            },
            Stage::Fsync { ino, handle } => Op::Fsync { ino, handle, data_only: false },
            Stage::Release { ino, handle } => Op::Release { ino, handle },
        }
    }

    /// What comes after how a call has ended.
    fn next(&mut self, now: Time, reply: Result<Reply, OpError>, log: &mut Log) -> Stage {
        match (self.stage, reply) {
            (Stage::Mkdir, Ok(Reply::Entry(attr))) => {
                (self.dir, self.begun) = (attr.ino, now);
                Stage::Create
            }
            (Stage::Create, Ok(Reply::Created(attr, handle))) => {
                Stage::Fsync { ino: attr.ino, handle }
            }
            (Stage::Fsync { ino, handle }, Ok(Reply::Empty)) => Stage::Release { ino, handle },
            (Stage::Release { .. }, Ok(Reply::Empty)) => {
                log.longest = log.longest.max(now.since(self.begun));
                log.last.insert(self.host, self.begun);
                (self.files, self.begun) = (self.files + 1, now);
                Stage::Create
            }
            (stage, reply) => panic!("{reply:?} to {stage:?}"),
        }
    }
}

struct Users {
    users: Vec<User>,
    log: Rc<RefCell<Log>>,
}

impl Workload for Users {
    fn tick(&mut self, world: &mut World) -> Option<Duration> {
        for user in &mut self.users {
            let host = user.host;
            let state = world.guest::<Platform>(host).map(|at| at.mount.state());
            match (user.call, user.stage) {
                (None, Stage::Begin) if state == Some(MountState::Mounted) => {
                    user.stage = Stage::Mkdir;
                }
                (None, _) => continue,
                (Some(call), _) => {
                    let ended = world.guest(host).is_some_and(|at: &Platform| at.has_ended(call));
                    if !ended {
                        continue;
                    }
                    let done = world.with(host, |at: &mut Platform, _| at.take(call)).flatten();
                    let Some(result) = done else { continue };
                    let reply = result.map(|done| done.reply);
                    user.stage = user.next(world.now(), reply, &mut self.log.borrow_mut());
                }
            }
            let now = FileTime { sec: 0, nsec: 0 };
            let call = Call { user: Name::ROOT, now, op: user.op(), data: Vec::new() };
            user.call = world.with(host, |at: &mut Platform, _| at.call(call));
        }
        Some(LOOK)
    }
}

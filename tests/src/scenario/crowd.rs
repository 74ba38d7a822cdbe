//! As many mounts as a volume lets in, each with as many locks as it may have, and a leader that
//! crashes.
//!
//! ```text
//!   gather: each mount is granted its own locks to write, and those of all to read
//!   the leader is killed, another takes over
//!   recover: each mount tells it what it holds, and is granted one more lock, of a neighbour
//! ```
//!
//! # Invariants
//!
//! * Nothing goes wrong but that: how long it takes is the protocol's doing, in virtual time, in
//!   which a step of a node costs some microseconds and a message some tenths of a millisecond.
//! * What a mount was granted it holds until it is asked to give it back, and reports to whoever
//!   asks.
//!
//! What this module deliberately doesn't know: what is done under locks.

use super::caller::Caller;
use super::server::{Serving, formatted, volume_of};
use crate::check::Violation;
use crate::faults::Promise;
use crate::node::{Boot, Guest, Program};
use crate::rng::Rng;
use crate::time::{MINUTE, Time};
use crate::trace::HostId;
use crate::world::World;
use outrider_core::arena::Arena;
use outrider_core::format::Ino;
use outrider_core::format::key::Key;
use outrider_core::format::super_block::{ClusterLimits, Super};
use outrider_core::format::wire::Kind;
use outrider_core::format::wire::greeting::{Machine, Role};
use outrider_core::format::wire::message::{
    ClientAnswer, ClientRequest, HELD_LOCKS_MAX, HeldLocks, HeldRecord, LockTell, Outcome,
    ServerRequest,
};
use outrider_core::lock::{GROUP_KEYS, Held, LockName, Mode, ToClient, ToServer};
use outrider_core::net::{Incoming, LineLimits, LinkEvent, LinkLimits, SessionLimits};
use outrider_core::node::{Action, Event, More, Node};
use outrider_core::server::{Server, ServerLimits, ServerTiming};
use outrider_hal::{Instant, StreamId};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Servers; the mounts come after them.
const SERVERS: u16 = 2;
/// Locks that all mounts hold, to read.
const SHARED: u32 = 8;
/// How long anything may take.
const PATIENCE: Duration = MINUTE.saturating_mul(60);

/// How many there are.
#[derive(Debug, Clone, Copy)]
pub struct Crowd {
    /// Mounts.
    pub mounts: u16,
    /// Locks that each of them holds for itself.
    pub locks: u32,
}

/// How it went, in virtual time.
#[derive(Debug, Clone, Copy)]
pub struct Took {
    /// Locks granted to all mounts before the leader was killed.
    pub granted: u64,
    /// From the start until all were.
    pub gathering: Duration,
    /// From the kill until another took office.
    pub election: Duration,
    /// From then on until it had welcomed all mounts.
    pub welcome: Duration,
    /// Until all had told it what they hold, and were granted more.
    pub recovery: Duration,
    /// Locks they told it of.
    pub recovered: u64,
    /// The memory of a server of so many, in bytes.
    pub server_bytes: usize,
}

/// A cluster of this size.
pub struct Gathering {
    world: World,
    crowd: Crowd,
    server_bytes: usize,
}

impl Crowd {
    fn limits(self) -> ClusterLimits {
        let each = self.locks + SHARED + 2;
        ClusterLimits {
            locks_per_client: each.into(),
            locks: (each * u32::from(self.mounts)).into(),
            ..ClusterLimits::for_clients(self.mounts.into())
        }
    }

    /// The cluster, before anything has happened.
    #[must_use]
    pub fn gather(self, seed: u64) -> Gathering {
        let volume = volume_of(self.limits());
        let limits = ServerLimits::of(&volume.fields().limits);
        let mut world = World::new(seed, Promise::nothing(), formatted(&volume));
        let mut server_bytes = 0;
        for me in 0..SERVERS {
            let serving = Serving { me, volume, limits, timing: ServerTiming::NORMAL };
            server_bytes = serving.region_bytes();
            world.add_host("server", serving);
        }
        for me in 0..self.mounts {
            world.add_host("mount", Holding { me, crowd: self, volume });
        }
        Gathering { world, crowd: self, server_bytes }
    }
}

impl Gathering {
    /// Lets the mounts have their locks, kills the leader, and waits until all goes on.
    ///
    /// # Errors
    ///
    /// What took longer than an hour of virtual time, or was wrong.
    pub fn run(&mut self) -> Result<Took, Violation> {
        let Crowd { mounts, locks } = self.crowd;
        let each = locks + SHARED;
        self.until("all locks are granted", |holder| holder.granted() == each)?;
        let gathered = self.world.now();
        let first = leader(&self.world).expect("it has granted the locks");
        self.world.crash(first);
        let killed = self.world.now();
        let led = self.world.run_until(PATIENCE, |world| leader(world).is_some())?;
        self.demand(led, "nobody has taken over")?;
        let elected = self.world.now();
        self.until("all are welcomed", |holder| holder.servers == 2)?;
        let welcomed = self.world.now();
        self.until("all go on", Holder::goes_on)?;
        let recovered = self.holders().map(|holder| holder.reported).sum();
        Ok(Took {
            granted: u64::from(each) * u64::from(mounts),
            gathering: gathered.since(Time(0)),
            election: elected.since(killed),
            welcome: welcomed.since(elected),
            recovery: self.world.now().since(elected),
            recovered,
            server_bytes: self.server_bytes,
        })
    }

    fn demand(&self, holds: bool, what: &str) -> Result<(), Violation> {
        let violation = Violation { at: self.world.now(), checker: "crowd", what: what.to_owned() };
        if holds { Ok(()) } else { Err(violation) }
    }

    fn holders(&self) -> impl Iterator<Item = &Holder> {
        self.world.hosts().filter_map(|host| self.world.guest::<Holder>(host))
    }

    fn until(&mut self, what: &str, so: impl Fn(&Holder) -> bool) -> Result<(), Violation> {
        let mounts = SERVERS..SERVERS + self.crowd.mounts;
        // Whoever was not so when it was looked at last is looked at first.
        let mut last = HostId(mounts.start);
        let is_so = |world: &World, host| world.guest::<Holder>(host).is_some_and(&so);
        let all = |world: &World| {
            if !is_so(world, last) {
                return false;
            }
            let other = mounts.clone().map(HostId).find(|host| !is_so(world, *host));
            last = other.unwrap_or(last);
            other.is_none()
        };
        let done = self.world.run_until(PATIENCE, all)?;
        self.demand(done, &format!("it is not so that {what}"))
    }
}

/// Who serves.
fn leader(world: &World) -> Option<HostId> {
    let serves = |host: &HostId| {
        let server = world.guest::<Server<'static>>(*host);
        server.is_some_and(|server| server.serving().is_some())
    };
    (0..SERVERS).map(HostId).find(serves)
}

/// A mount's program.
struct Holding {
    me: u16,
    crowd: Crowd,
    volume: Super,
}

const LINK: LinkLimits =
    LinkLimits { session: SessionLimits { asks_max: 8, answers_max: 16 }, line: LineLimits::MIN };

impl Program for Holding {
    fn region_bytes(&self) -> usize {
        let mut arena = Arena::measuring();
        let machine = Machine::default();
        let _ = Caller::carve(&mut arena, &LINK, &self.volume, Role::Mount, [0; 16], machine);
        arena.bytes_used()
    }

    fn start(&self, mut boot: Boot) -> Box<dyn Guest> {
        let mut arena = Arena::new(boot.region).expect("regions are aligned");
        let mut nonce = [0; 16];
        boot.entropy.fill(&mut nonce);
        Box::new(Holder {
            me: self.me.into(),
            crowd: self.crowd,
            caller: Caller::carve(
                &mut arena,
                &LINK,
                &self.volume,
                Role::Mount,
                nonce,
                Machine::default(),
            ),
            entropy: boot.entropy,
            servers: 0,
            known: false,
            wanted: VecDeque::new(),
            held: BTreeMap::new(),
            replies: VecDeque::new(),
            more: None,
            reported: 0,
            actions: VecDeque::new(),
        })
    }
}

/// A mount.
struct Holder {
    me: u32,
    crowd: Crowd,
    caller: Caller,
    entropy: Rng,
    /// Servers that have welcomed it.
    servers: u32,
    /// The last of them knows what it holds: before, nothing may be asked.
    known: bool,
    /// What is still to be asked for.
    wanted: VecDeque<(LockName, Mode)>,
    /// In the order in which it is reported.
    held: BTreeMap<Key, Held>,
    /// What is to be said before anything is asked for.
    replies: VecDeque<ToServer>,
    /// The neighbour's lock that the second server was asked for; whether it has granted it.
    more: Option<(LockName, bool)>,
    /// Locks that a server was told of.
    reported: u64,
    actions: VecDeque<Action<'static>>,
}

/// The lock of a group of inodes.
fn lock(group: u32) -> LockName {
    LockName::inode(Ino(u64::from(group) * GROUP_KEYS))
}

impl Holder {
    fn granted(&self) -> u32 {
        self.held.len() as u32
    }

    /// Whether a second server has granted it something.
    fn goes_on(&self) -> bool {
        self.more.is_some_and(|(_, granted)| granted)
    }

    /// A lock that this mount has for itself.
    fn own(&self, mount: u32, at: u32) -> LockName {
        lock(SHARED + mount * self.crowd.locks + at)
    }

    fn on_up(&mut self, renewed: bool) {
        self.servers += u32::from(renewed);
        self.known &= !renewed;
        match (renewed, self.servers) {
            (true, 1) => {
                let own = (0..self.crowd.locks).map(|at| (self.own(self.me, at), Mode::Write));
                let shared = (0..SHARED).map(|at| (lock(at), Mode::Read));
                self.wanted = shared.chain(own).collect();
            }
            (true, 2) => {
                let name = self.own((self.me + 1) % u32::from(self.crowd.mounts), 0);
                self.more = Some((name, false));
                self.wanted.push_back((name, Mode::Write));
            }
            (true, _) => panic!("nothing else goes wrong"),
            (false, _) => {}
        }
    }

    fn on_message(&mut self, now: Instant) {
        match self.caller.link.head() {
            Some(Incoming::Request(ServerRequest::LockTell(tell))) => {
                let ticket = self.caller.link.take(now).expect("it was there");
                let told = Outcome::Done(ClientAnswer::LockTell);
                self.caller.link.answer(ticket, &told).expect("it was asked");
                self.on_tell(&tell);
            }
            Some(Incoming::Request(ServerRequest::Recover(from))) => {
                let ticket = self.caller.link.take(now).expect("it was there");
                let held = self.held.range(Key::from(from)..).take(HELD_LOCKS_MAX);
                let records: Vec<HeldRecord> = held.map(|(_, held)| held.emit()).collect();
                let held = HeldLocks::new(&records).expect("in order");
                let answer = Outcome::Done(ClientAnswer::Recover(held));
                self.caller.link.answer(ticket, &answer).expect("it was asked");
                self.reported += records.len() as u64;
                self.known = records.is_empty();
            }
            Some(Incoming::Answer(..)) => {
                let ticket = self.caller.link.take(now).expect("it was there");
                self.caller.link.recorded(ticket);
            }
            Some(Incoming::Request(_)) | None => panic!("nothing else is asked"),
        }
    }

    fn on_tell(&mut self, tell: &LockTell) {
        match ToClient::parse(&tell.lock).expect("from a server") {
            ToClient::Grant { name, mode, .. } => {
                self.held.insert(name.start(), Held { name, mode });
                if let Some((more, granted)) = &mut self.more {
                    *granted |= *more == name;
                }
            }
            ToClient::Revoke { name, generation, .. } => {
                self.held.remove(&name.start());
                self.replies.push_back(ToServer::Release { name, generation, kept: Mode::Null });
            }
            ToClient::Refuse { name, mode, .. } => self.wanted.push_back((name, mode)),
            ToClient::Recover { .. } => unreachable!("not a message of this kind"),
        }
    }

    fn send(&mut self) {
        while self.known
            && self.caller.link.is_up()
            && self.caller.link.can_request(Kind::LockAsk).is_ok()
        {
            let message = match self.replies.pop_front() {
                Some(reply) => Some(reply),
                None => {
                    self.wanted.pop_front().map(|(name, mode)| ToServer::Request { name, mode })
                }
            };
            let Some(message) = message else { return };
            let request = ClientRequest::LockAsk(message.emit());
            self.caller.link.request(&request).expect("there was room");
        }
    }
}

impl Node<'static> for Holder {
    fn handle(&mut self, now: Instant, event: Event<'static>) {
        self.caller.handle(now, event, &mut self.entropy, &mut self.actions);
    }

    fn step(&mut self, now: Instant) -> More {
        let evicted = self.caller.step(now, &mut self.actions);
        assert!(!evicted, "all are heard");
        self.caller.dial(now, &mut self.actions);
        while let Some(event) = self.caller.link.poll_event() {
            match event {
                LinkEvent::Up { renewed, .. } => self.on_up(renewed),
                LinkEvent::Message => self.on_message(now),
            }
        }
        self.send();
        self.caller.link.step(now);
        self.caller.poll_requests(now, &mut self.actions);
        More::No
    }

    fn poll_action(&mut self) -> Option<Action<'static>> {
        self.actions.pop_front()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.caller.poll_timeout()
    }

    fn recv_space(&mut self, stream: StreamId) -> &mut [u8] {
        self.caller.link.recv_space(stream)
    }

    fn send_bytes(&self, stream: StreamId) -> &[u8] {
        self.caller.link.send_bytes(stream)
    }
}

//! The machines of the scenario of servers, in bad weather: leaders are stopped with their writes
//! under way, killed, cut off and told to stop one after the other, mounts are stopped until they
//! are evicted, or all come at once, and who was evicted is fenced, if that succeeds.
//!
//! # Invariants
//!
//! * What befalls machines stays within what the promise allows.
//! * A fence tells of success only when it is so: nothing of the machine gets to the device any
//!   more before it is started anew, as another client. Everything else that comes of it proves
//!   nothing: it fails, having cut the machine off or not, or nobody hears of it any more.
//! * How many machines there are, how long anything lasts, what befalls them how often, and how
//!   much room servers have is drawn anew for each seed.
//!
//! What this module deliberately doesn't know: what servers make of it. The checkers look at that.

mod fences;

use super::server::{self, Manners, Mount, SERVERS, Setting};
use crate::check::Checker;
use crate::check::compaction::{BEGUN, COMPLETED, DROPPED, EVICTED, HALF_WAY, LOST};
use crate::faults::{Atlas, Fault, FaultSet, Promise};
use crate::node::Blow;
use crate::rng::{Chance, Rng};
use crate::scenario::Scenario;
use crate::time::{MILLI, MINUTE, Time};
use crate::trace::HostId;
use crate::world::{Workload, World};
use fences::{FAILED, Fences, LATE, SUCCEEDED};
use outrider_core::server::Server;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::rc::Rc;
use std::time::Duration;

/// The scenario.
pub const SCENARIO: Scenario = Scenario {
    name: "storm",
    demands,
    demanded_work: &[BEGUN, COMPLETED, LOST, EVICTED, DROPPED, SUCCEEDED, FAILED, LATE],
    goals: &[
        ("failovers", 100_000),
        ("wake-ups late, and it landed", 100_000),
        ("commits confirmed", 1_000_000),
        ("crashes", 10_000),
        ("evictions begun", 10_000),
        (HALF_WAY, 10_000),
        (SUCCEEDED, 1_000),
        (FAILED, 1_000),
        (LATE, 1_000),
    ],
    fault_goal: Some(1_000),
    world,
    faulty: MINUTE.saturating_mul(2),
    settles_within: MINUTE.saturating_mul(4),
};

fn demands() -> FaultSet {
    FaultSet::harmless()
}

fn world(seed: u64) -> World {
    let root = Rng::new(seed);
    let mut rng = root.fork("storm");
    let promise = Promise {
        survives: demands(),
        hosts_impaired_max: rng.within(3..=5) as u32,
        ..Promise::nothing()
    };
    let setting = Setting {
        manners: Manners::Any,
        mounts: rng.within(2..=4) as u16,
        clients: rng.within(10..=48) as u16,
        recovery: MILLI * rng.within(1_500..=6_000) as u32,
        io_lifetime: MILLI * rng.within(500..=8_000) as u32,
        names_machines: true,
        rest: MILLI * rng.within(10..=60) as u32,
        data_blocks: rng.within(1..=10),
    };
    // What a node has under way when it stands still is to land after it has gone on.
    let atlas = Atlas::swarm(&root, promise).with(Fault::DiskHeldWrite, Chance(900_000));
    let world = World::with_atlas(&root, atlas, server::formatted(&server::volume()));
    let (mut world, log) = server::populate(world, &setting);
    let seen = Rc::new(RefCell::new(Seen::default()));
    world.add_checker(Weather(Rc::clone(&seen)));
    world.set_workload(Storm::new(rng, &setting, Fences::new(log, Rc::clone(&seen)), seen));
    world
}

/// What has befallen the machines.
#[derive(Debug, Default)]
struct Seen(BTreeMap<&'static str, u64>);

impl Seen {
    fn count(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }
}

/// Reports it.
struct Weather(Rc<RefCell<Seen>>);

impl Checker for Weather {
    fn name(&self) -> &'static str {
        "weather"
    }

    fn work(&self) -> Vec<(&'static str, u64)> {
        self.0.borrow().0.iter().map(|(what, count)| (*what, *count)).collect()
    }
}

/// What may befall machines.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// The leader stands still past its lease, with writes under way.
    LeaderPaused,
    /// Any voter does.
    VoterPaused,
    /// A mount stands still, past its lease or until it is evicted, with writes under way.
    MountPaused,
    /// The leader crashes with writes under way.
    LeaderKilled,
    /// A mount does.
    MountKilled,
    /// The leader loses its disk, not its network.
    LeaderWithoutDisk,
    /// The leader loses its network, in one direction or both, and not its disk.
    LeaderWithoutNet,
    /// The leader is told to stop.
    HandOver,
    /// All mounts crash, and come back at once.
    AllMountsKilled,
}

impl Kind {
    /// Each, what it is called in reports, and how often it happens beside others.
    const ALL: [(Kind, &'static str, u64); 9] = [
        (Kind::LeaderPaused, "storm: leader paused", 8),
        (Kind::VoterPaused, "storm: voter paused", 3),
        (Kind::MountPaused, "storm: mount paused", 5),
        (Kind::LeaderKilled, "storm: leader killed", 2),
        (Kind::MountKilled, "storm: mount killed", 1),
        (Kind::LeaderWithoutDisk, "storm: leader's disk cut", 1),
        (Kind::LeaderWithoutNet, "storm: leader's net cut", 1),
        (Kind::HandOver, "storm: leader told to stop", 1),
        (Kind::AllMountsKilled, "storm: all mounts killed", 1),
    ];
}

/// How often the storm looks at its machines.
const EVERY: Duration = Duration::from_millis(100);

/// The storm.
struct Storm {
    rng: Rng,
    seen: Rc<RefCell<Seen>>,
    fences: Fences,
    recovery: Duration,
    mounts: u16,
    /// Each kind once for each time that it happens beside others.
    kinds: Vec<(Kind, &'static str)>,
    /// The longest time between two blows.
    pace: u64,
    blow_at: Time,
    /// Nobody is left standing still for longer.
    patience: Duration,
    /// Machines that are to be started anew, if they haven't been.
    restarts: Vec<(Time, HostId, u32)>,
}

impl Storm {
    fn new(mut rng: Rng, setting: &Setting, fences: Fences, seen: Rc<RefCell<Seen>>) -> Storm {
        let mut kinds = Vec::new();
        for (kind, name, weight) in Kind::ALL {
            let times = if rng.below(4) == 0 { 0 } else { weight << rng.below(3) };
            kinds.extend((0..times).map(|_| (kind, name)));
        }
        let pace = rng.within(200..=1_500);
        let patience = MILLI * rng.within(4_000..=12_000) as u32;
        let Setting { recovery, mounts, .. } = *setting;
        let (blow_at, restarts) = (Time(0), Vec::new());
        Storm { rng, seen, fences, recovery, mounts, kinds, pace, blow_at, patience, restarts }
    }

    fn millis(&mut self, range: RangeInclusive<u64>) -> Duration {
        Duration::from_millis(self.rng.within(range))
    }

    fn mounts(&self) -> impl Iterator<Item = HostId> + use<> {
        (SERVERS..SERVERS + self.mounts).map(HostId)
    }

    /// Some mount: rather one that merges something for the others.
    fn mount(&mut self, world: &World) -> HostId {
        let is_merging = |host: &HostId| world.guest(*host).is_some_and(Mount::is_merging);
        let merging = self.mounts().find(is_merging);
        let any = HostId(SERVERS + self.rng.below(self.mounts.into()) as u16);
        merging.unwrap_or(any)
    }

    /// Longer than a leader's lease, and most often not by much.
    fn past_a_lease(&mut self) -> Duration {
        match self.rng.below(8) {
            0 => self.millis(1_050..=20_000),
            _ => self.millis(1_050..=3_500),
        }
    }

    /// Lets one thing befall a machine, if that may be. Whether it did.
    fn blow(&mut self, world: &mut World) -> bool {
        let Some(&(kind, name)) = self.rng.pick(&self.kinds) else { return false };
        let host = match kind {
            Kind::LeaderPaused
            | Kind::LeaderKilled
            | Kind::LeaderWithoutDisk
            | Kind::LeaderWithoutNet
            | Kind::HandOver => leader(world),
            Kind::VoterPaused => Some(HostId(self.rng.below(SERVERS.into()) as u16)),
            Kind::MountPaused | Kind::MountKilled | Kind::AllMountsKilled => {
                Some(self.mount(world))
            }
        };
        let runs = |host: &HostId| world.is_running(*host) && world.atlas().may_impair(*host);
        let Some(host) = host.filter(runs) else { return false };
        self.seen.borrow_mut().count(name);
        let soon = self.millis(10..=1_500);
        match kind {
            Kind::LeaderPaused | Kind::VoterPaused => {
                let how_long = self.past_a_lease();
                world.strike_at_write(host, Blow::Pause(how_long));
            }
            Kind::MountPaused => {
                let lease = self.recovery.as_millis() as u64 * 7 / 12;
                let how_long = self.millis(lease + 50..=2 * lease + 500);
                world.strike_at_write(host, Blow::Pause(how_long));
            }
            Kind::LeaderKilled | Kind::MountKilled => {
                world.strike_at_write(host, Blow::Crash(soon));
            }
            Kind::LeaderWithoutDisk => {
                world.cut_disk(host);
                self.restart_later(world, host, soon * 4);
            }
            Kind::LeaderWithoutNet => self.cut_net(world, host),
            Kind::HandOver => {
                world.with(host, |server: &mut Server<'static>, _| server.stop());
                self.restart_later(world, host, soon);
            }
            Kind::AllMountsKilled => {
                for mount in self.mounts() {
                    world.restart_after(mount, soon);
                }
            }
        }
        true
    }

    fn restart_later(&mut self, world: &World, host: HostId, how_long: Duration) {
        self.restarts.push((world.now().plus(how_long), host, world.boots(host)));
    }

    /// Lets nothing through between a leader and some or all mounts, in some direction.
    fn cut_net(&mut self, world: &mut World, leader: HostId) {
        let how_long = self.millis(500..=8_000);
        let (to, from, all) = (self.rng.below(3), self.rng.below(3), self.rng.below(2) == 0);
        for mount in self.mounts() {
            if !all && self.rng.below(2) == 0 {
                continue;
            }
            if to > 0 {
                world.block(leader, mount, how_long);
            }
            if from > 0 {
                world.block(mount, leader, how_long);
            }
        }
    }

    /// What operators do: they start anew what has stopped, and let go on what stands still.
    fn operate(&mut self, world: &mut World) {
        let now = world.now();
        let due = |restart: &(Time, HostId, u32)| restart.0 <= now;
        while let Some(at) = self.restarts.iter().position(due) {
            let (_, host, boots) = self.restarts.swap_remove(at);
            if world.boots(host) == boots {
                world.crash(host);
                world.boot(host);
            }
        }
        for host in world.hosts() {
            let is_down = || {
                world.guest::<Server<'static>>(host).is_none()
                    && world.guest::<Mount>(host).is_none()
            };
            if world.paused_for(host).is_some_and(|paused| paused > self.patience) {
                world.resume(host);
            } else if is_down() && self.rng.below(40) == 0 {
                world.boot(host);
            }
        }
    }
}

impl Workload for Storm {
    fn tick(&mut self, world: &mut World) -> Option<Duration> {
        self.operate(world);
        self.fences.step(world, &mut self.rng);
        while let Some((host, boots)) = self.fences.poll_cut_off() {
            let at = world.now().plus(self.millis(100..=5_000));
            self.restarts.push((at, host, boots));
        }
        let is_due = !world.atlas().is_calm() && self.blow_at <= world.now();
        if is_due && self.blow(world) {
            let pace = self.pace;
            self.blow_at = world.now().plus(self.millis(pace / 8..=pace));
        }
        Some(EVERY)
    }
}

/// The server that serves, if one does and runs.
fn leader(world: &World) -> Option<HostId> {
    let mut servers = (0..SERVERS).map(HostId);
    servers.find(|host| {
        let server = world.guest::<Server<'static>>(*host).filter(|_| world.is_running(*host));
        server.is_some_and(|server| {
            server.serving().is_some() && server.voter().may_act(world.clock(*host))
        })
    })
}

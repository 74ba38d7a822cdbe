//! Metadata servers and mounts, whose users make calls: some to the mounts, and some to a kernel
//! between.
//!
//! What a crashed voter may still write is bounded as in the scenario of servers, and what a
//! crashed mount may by the lifetime that servers are told.

use crate::check::compaction::{ABANDONED, BEGUN, COMPLETED, Compactions, EVICTED, LOST};
use crate::check::feed::{self, Feeds};
use crate::faults::{FaultSet, Promise};
use crate::image::Image;
use crate::model::walk::Executes;
use crate::model::{Asked, Done};
use crate::net::Net;
use crate::node::{Boot, Guest, Program};
use crate::platform::{self, Call, Platform};
use crate::rng::Rng;
use crate::scenario::Scenario;
use crate::time::{MINUTE, Time};
use crate::trace::HostId;
use crate::world::{Workload, World};
use applications::{Applications, Linearizable, Mishaps, Seen};
use outrider_core::arena::{Arena, REGION_ALIGN};
use outrider_core::client::mount::{MountLimits, MountState};
use outrider_core::client::op::OpError;
use outrider_core::format::item::Time as FileTime;
use outrider_core::format::layout::SUPER_BLKNO;
use outrider_core::format::quorum::{BootId, HostId as QuorumHost, Incarnation, Slot};
use outrider_core::format::super_block::{ClusterLimits, Identity as Volume, Super, Unverified};
use outrider_core::format::wire::greeting::Machine;
use outrider_core::lsm::choose::Policy;
use outrider_core::mkfs::{Mkfs, Recipe};
use outrider_core::net::Timing as NetTiming;
use outrider_core::node::{Action, Event, More, Node};
use outrider_core::quorum::{Exclusion, Identity, Timing, Vouched};
use outrider_core::server::{Server, ServerConfig, ServerLimits, ServerTiming};
use outrider_hal::{BlockOp, BlockRequest, Completion, Endpoint, Instant};
use readers::Readers;
use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::rc::Rc;
use std::time::Duration;
use users::{Log, Mounts, Users};
use vanishing::Vanishing;

pub mod applications;
pub mod readers;
pub mod users;
mod vanishing;

/// Blocks of the volume.
pub const BLOCKS: u64 = 1 << 16;
const PORT: u16 = 7000;
/// Clients whose record may be there at once: a mount that crashes leaves one behind.
pub const CLIENTS: u16 = 100;
const SERVERS: u16 = 2;
const MOUNTS: u16 = 3;

/// Mounts are evicted within the time that faults go on.
const TIMING: ServerTiming = ServerTiming {
    recovery: Duration::from_secs(10),
    io_lifetime: Duration::from_secs(12),
    ..ServerTiming::NORMAL
};

/// The scenario.
pub const SCENARIO: Scenario = Scenario {
    name: "mount",
    demands,
    demanded_work: &[BEGUN, COMPLETED, LOST, EVICTED, ABANDONED],
    goals: &[("operations in rounds", 10_000_000), ("rounds linearizable", 10_000)],
    fault_goal: None,
    world,
    faulty: MINUTE,
    settles_within: MINUTE.saturating_mul(6),
};

fn demands() -> FaultSet {
    FaultSet::harmless()
}

fn world(seed: u64) -> World {
    let promise = Promise {
        survives: demands(),
        hosts_impaired_max: 3,
        blocks_damaged_max: 0,
        damageable: 0..0,
    };
    let (image, volume) = formatted(SERVERS);
    populate(World::new(seed, promise, image), seed, volume, false)
}

/// The same machines, and nothing fails.
#[must_use]
pub fn fair_weather(seed: u64) -> World {
    let (image, volume) = formatted(SERVERS);
    populate(World::calm(seed, image), seed, volume, true)
}

fn populate(mut world: World, seed: u64, volume: Super, strict: bool) -> World {
    for host in 0..SERVERS {
        world.add_host("server", Serving { me: host, volume });
    }
    let limits = MountLimits::small();
    let mounts = (0..MOUNTS)
        .map(|_| world.add_host("mount", Mounting { volume, limits, tells_boot: false }));
    let mounts: Vec<HostId> = mounts.collect();
    let log = Rc::new(RefCell::new(Log::new(strict)));
    let rng = Rng::new(seed).fork("users");
    let told = Rc::new(RefCell::new(feed::Log::default()));
    let users = Users::new(mounts.iter().copied(), rng, Rc::clone(&log));
    let users = Readers::beside(users, &mounts, Rc::clone(&told));
    world.add_checker(Mounts::new(log));
    world.add_checker(Compactions::default());
    world.add_checker(Feeds::new(told));
    let seen = Rc::new(RefCell::new(Seen::default()));
    let rng = Rng::new(seed).fork("applications");
    let mishaps = if strict { Mishaps::SIGNALS } else { Mishaps::SOME };
    let applications = Applications::new(mounts.into_iter(), rng, mishaps, Rc::clone(&seen));
    world.add_checker(Linearizable::new(seen, strict));
    let crowd = Crowd::new(vec![Box::new(users), Box::new(applications)]);
    match strict {
        true => world.set_workload(crowd),
        false => {
            let rng = Rng::new(seed).fork("vanishing");
            world.set_workload(Vanishing::beside(crowd, rng));
        }
    }
    world
}

/// Several workloads on one world.
struct Crowd {
    members: Vec<(Box<dyn Workload>, Time)>,
}

impl Crowd {
    fn new(members: Vec<Box<dyn Workload>>) -> Crowd {
        Crowd { members: members.into_iter().map(|member| (member, Time(0))).collect() }
    }
}

impl Workload for Crowd {
    fn tick(&mut self, world: &mut World) -> Option<Duration> {
        let now = world.now();
        let due = self.members.iter_mut().filter(|(_, at)| *at <= now);
        for (member, at) in due {
            *at = member.tick(world).map_or(Time(u64::MAX), |after| now.plus(after));
        }
        let next = self.members.iter().map(|(_, at)| *at).min()?;
        Some(next.since(now))
    }
}

/// The volume, as mkfs makes it, with so many voters and blocks.
fn recipe(servers: u16, blocks: u64) -> Recipe {
    let mut voters = [None; 7];
    for host in 0..servers {
        voters[usize::from(host)] = Some(Endpoint { addr: Net::addr(HostId(host)), port: PORT });
    }
    let identity = Volume {
        fsid: 0x5ca1ab1e,
        uuid: [5; 16],
        label: [0; 64],
        blocks,
        crc_seed: 77,
        name_key: [7; 16],
        cluster_key: [9; 32],
        voters,
        limits: ClusterLimits::standard(),
    };
    Recipe { identity, now: FileTime { sec: 1_000_000, nsec: 0 } }
}

/// A device with an empty volume, and what its super block says.
///
/// # Panics
///
/// When making it fails.
#[must_use]
pub fn formatted(servers: u16) -> (Image, Super) {
    formatted_with(servers, BLOCKS)
}

/// The same, with so many blocks.
fn formatted_with(servers: u16, blocks: u64) -> (Image, Super) {
    let recipe = recipe(servers, blocks);
    let mut image = Image::new(blocks);
    let mut measure = Arena::measuring();
    drop(Mkfs::carve(&mut measure, &recipe));
    let mut region = vec![MaybeUninit::uninit(); measure.bytes_used() + REGION_ALIGN];
    let pad = region.as_ptr().align_offset(REGION_ALIGN);
    let mut arena = Arena::new(&mut region[pad..]).expect("aligned");
    let mut mkfs = Mkfs::carve(&mut arena, &recipe).expect("measured").expect("a sane volume");
    let now = Instant(1);
    loop {
        let more = mkfs.step(now);
        let mut acted = false;
        while let Some(action) = mkfs.poll_action() {
            acted = true;
            let Action::Block(BlockRequest { tag, mut op }) = action else { continue };
            match &mut op {
                BlockOp::Read(blkno, block) => block.0 = image.block(blkno.0).0,
                BlockOp::Write(blkno, block) => image.write(blkno.0, Rc::new((**block).clone())),
                BlockOp::Flush => {}
            }
            mkfs.handle(now, Event::Completed(Completion { tag, op, result: Ok(()) }));
        }
        if let Some(outcome) = mkfs.poll_outcome() {
            outcome.expect("nothing fails");
            break;
        }
        assert!(acted || more == More::Yes, "mkfs hangs");
    }
    image.settle();
    let volume = volume(&image).expect("it was just made");
    (image, volume)
}

/// What the super block of an image says, if it is sane.
#[must_use]
pub fn volume(image: &Image) -> Option<Super> {
    let block = image.block(SUPER_BLKNO.0);
    Unverified::new(block).verify(SUPER_BLKNO, image.blocks()).ok()
}

/// Limits with which the mounts have something to merge all the time.
fn limits() -> ServerLimits {
    let merging = Policy { level_0_runs: 2, level_0_blocks: 64, small_blocks: 2, fanout: 2 };
    ServerLimits { merging, run_blocks: 16, ..ServerLimits::for_clients(CLIENTS) }
}

/// A server's program.
pub struct Serving {
    /// Its slot.
    pub me: u16,
    /// The volume.
    pub volume: Super,
}

impl Serving {
    fn config(&self, entropy: &mut Rng, boots: u32) -> ServerConfig {
        let mut incarnation = [0; 16];
        entropy.fill(&mut incarnation);
        let mut secret = [0; 32];
        entropy.fill(&mut secret);
        ServerConfig {
            volume: self.volume,
            slot: Slot::new(self.me as u8).expect("a slot"),
            listen: None,
            identity: Identity {
                incarnation: Incarnation(incarnation),
                host: QuorumHost([self.me as u8 + 1; 16]),
                boot: BootId([boots as u8; 16]),
                exclusion: Exclusion::Host,
                vouched: Vouched::Nothing,
                seed: entropy.number(),
            },
            quorum: Timing::NORMAL,
            net: NetTiming::DEFAULT,
            timing: TIMING,
            secret,
        }
    }
}

impl Program for Serving {
    fn io_lifetime(&self) -> Duration {
        Duration::ZERO
    }

    fn lease(&self) -> Duration {
        Duration::from_millis(Timing::NORMAL.lease_ms.into())
    }

    fn region_bytes(&self) -> usize {
        let mut arena = Arena::measuring();
        let limits = limits();
        drop(Server::carve(&mut arena, &limits, &self.config(&mut Rng::new(0), 0)));
        arena.bytes_used()
    }

    fn start(&self, mut boot: Boot) -> Box<dyn Guest> {
        let config = self.config(&mut boot.entropy, boot.boots);
        let mut arena = Arena::new(boot.region).expect("regions are aligned");
        let limits = limits();
        Box::new(Server::carve(&mut arena, &limits, &config).expect("measured"))
    }
}

/// A mount's program.
pub struct Mounting {
    /// The volume.
    pub volume: Super,
    /// The size of the mount.
    pub limits: MountLimits,
    /// It tells servers which boot it is of, and nothing of an earlier one is under way.
    pub tells_boot: bool,
}

impl Program for Mounting {
    fn io_lifetime(&self) -> Duration {
        TIMING.io_lifetime
    }

    fn lease(&self) -> Duration {
        platform::TIMING.lease
    }

    fn region_bytes(&self) -> usize {
        let mut arena = Arena::measuring();
        let config = Platform::config(self.volume, &mut Rng::new(0));
        drop(Platform::carve(&mut arena, &self.limits, &config));
        arena.bytes_used()
    }

    fn start(&self, mut boot: Boot) -> Box<dyn Guest> {
        let mut config = Platform::config(self.volume, &mut boot.entropy);
        if self.tells_boot {
            let host = QuorumHost(boot.addr.addr.octets());
            config.machine = Machine { host, boot: BootId([boot.boots as u8; 16]) };
        }
        let mut arena = Arena::new(boot.region).expect("regions are aligned");
        Box::new(Platform::carve(&mut arena, &self.limits, &config).expect("measured"))
    }
}

/// A world without faults: a server, then mounts, all up.
#[must_use]
pub fn calm(seed: u64, mounts: u16, limits: MountLimits) -> World {
    calm_with(seed, mounts, limits, BLOCKS)
}

/// The same, on a volume of so many blocks.
#[must_use]
pub fn calm_with(seed: u64, mounts: u16, limits: MountLimits, blocks: u64) -> World {
    let (image, volume) = formatted_with(1, blocks);
    let mut world = World::calm(seed, image);
    world.add_host("server", Serving { me: 0, volume });
    for _ in 0..mounts {
        world.add_host("mount", Mounting { volume, limits, tells_boot: true });
    }
    world
}

/// A world without faults: several servers, and as many mounts as are asked for.
#[must_use]
pub fn voters(seed: u64, servers: u16, mounts: u16) -> World {
    let (image, volume) = formatted(servers);
    let mut world = World::calm(seed, image);
    for me in 0..servers {
        world.add_host("server", Serving { me, volume });
    }
    for _ in 0..mounts {
        let limits = MountLimits::small();
        world.add_host("mount", Mounting { volume, limits, tells_boot: true });
    }
    world
}

/// The file system as one mount of a world shows it: a call runs the world until it has ended.
#[derive(Clone)]
pub struct Shown {
    /// The world.
    pub world: Rc<RefCell<World>>,
    /// The machine that makes the calls.
    pub host: HostId,
}

impl Shown {
    /// Runs the world until this is so.
    ///
    /// # Panics
    ///
    /// If it doesn't become so in a minute.
    pub fn until(&self, what: &str, mut so: impl FnMut(&Platform) -> bool) {
        let mut world = self.world.borrow_mut();
        let host = self.host;
        let is_so = world.run_until(MINUTE, |world| world.guest(host).is_some_and(&mut so));
        let describe = || world.guest::<Platform>(host).map(Platform::describe);
        assert!(is_so.expect("no violation"), "{what}: {:?}", describe());
    }

    /// Waits until it is mounted.
    pub fn mount(&self) {
        self.until("mounting", |at| at.mount.state() == MountState::Mounted);
    }

    /// Leaves the volume.
    pub fn unmount(&self) {
        let left = self.world.borrow_mut().with(self.host, |at: &mut Platform, now| {
            at.mount.leave(now);
        });
        left.expect("it runs");
        self.until("leaving", |at| at.mount.state() == MountState::Left);
    }

    /// Starts the machine anew.
    pub fn restart(&self) {
        let mut world = self.world.borrow_mut();
        world.crash(self.host);
        world.boot(self.host);
    }
}

impl Shown {
    /// Begins a call, and doesn't wait for its end.
    ///
    /// # Panics
    ///
    /// If the machine doesn't run.
    pub fn begin(&self, asked: &Asked<'_>) -> u64 {
        let call = Call {
            user: asked.user.clone(),
            now: asked.now,
            op: asked.op.clone(),
            data: asked.data.to_vec(),
        };
        let id = self.world.borrow_mut().with(self.host, |at: &mut Platform, _| at.call(call));
        id.expect("it runs")
    }

    /// A signal comes for a call.
    pub fn interrupt(&self, id: u64) {
        self.world.borrow_mut().with(self.host, |at: &mut Platform, now| at.interrupt(now, id));
    }

    /// Runs the world for this long. How a call has ended, if it has.
    ///
    /// # Panics
    ///
    /// If a checker finds something.
    pub fn ended_within(&self, id: u64, how_long: Duration) -> Option<Result<Done, OpError>> {
        let mut world = self.world.borrow_mut();
        let host = self.host;
        let ended = |world: &World| world.guest(host).is_some_and(|at: &Platform| at.has_ended(id));
        world.run_until(how_long, ended).expect("no violation");
        world.with(host, |at: &mut Platform, _| at.take(id)).flatten()
    }
}

impl Executes for Shown {
    fn execute(&mut self, asked: &Asked<'_>) -> Result<Done, OpError> {
        let id = self.begin(asked);
        self.until(&format!("{:?}", asked.op), |at| at.has_ended(id));
        let ended = self.world.borrow_mut().with(self.host, |at: &mut Platform, _| at.take(id));
        ended.flatten().expect("it has ended")
    }
}

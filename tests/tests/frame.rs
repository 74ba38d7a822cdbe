//! The simulator proves itself: equal seeds give equal runs, hangs and leaks are found, every fault
//! happens.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use outrider_core::node::{Action, Event, More, Node};
use outrider_hal::{Block, BlockNo, BlockOp, BlockRequest, Instant, StreamId, Tag};
use outrider_tests::check::Checker;
use outrider_tests::faults::{Coverage, Fault, FaultSet};
use outrider_tests::image::Image;
use outrider_tests::node::{Boot, Guest, Program};
use outrider_tests::scenario::{ALL, Scenario};
use outrider_tests::time::{MILLI, SECOND};
use outrider_tests::trace::HostId;
use outrider_tests::world::{Workload, World};
use std::collections::HashMap;
use std::time::Duration;

#[test]
fn the_same_seed_gives_the_same_run_and_another_seed_another() {
    for scenario in ALL {
        // A run of whole clusters takes a hundred times as long as one of the small scenarios.
        let seeds = if ["counter", "scrub"].contains(&scenario.name) { 40 } else { 4 };
        let mut hashes = std::collections::BTreeSet::new();
        for seed in 0..seeds {
            // Both worlds stand at once, so that no address is the same in both.
            let (mut one, mut two) = ((scenario.world)(seed), (scenario.world)(seed));
            // Keeping the text must not matter.
            if seed % 4 == 0 {
                two.trace_mut().keep_lines();
            }
            let (one, two) = (scenario.run(&mut one), scenario.run(&mut two));
            assert_eq!(one.violation, None);
            assert_eq!(one.hash, two.hash, "{} seed {seed}", scenario.name);
            assert_eq!(one.coverage, two.coverage);
            hashes.insert(one.hash);
        }
        assert_eq!(hashes.len() as u64, seeds);
    }
}

#[test]
fn every_fault_happens() {
    let mut all = Coverage::new();
    let seeds = |scenario: &Scenario| if scenario.name == "counter" { 400 } else { 30 };
    // The first takes two connections between the same two machines, which the nodes of a cluster
    // seldom have: hundreds of their seeds, or the counters, which have many. The second takes a
    // crash while something is written, and where there are files that is seldom so.
    let rare = |scenario: &Scenario| match scenario.name {
        "register" | "mount" => FaultSet::of(&[Fault::NetReorder, Fault::DiskLateWrite]),
        _ => FaultSet::of(&[Fault::NetReorder]),
    };
    for scenario in ALL {
        let mut coverage = Coverage::new();
        for seed in 0..seeds(scenario) {
            let report = scenario.run(&mut (scenario.world)(seed));
            assert_eq!(report.violation, None, "{} seed {seed}", scenario.name);
            coverage.add(&report.coverage);
        }
        let demands = (scenario.demands)().without(rare(scenario));
        assert_eq!(coverage.missing(demands), [], "{}", scenario.name);
        all.add(&coverage);
    }
    println!("{}", all.report());
    assert_eq!(all.missing(FaultSet::ALL), []);
}

/// A node that wakes every millisecond and misbehaves in one way.
struct Misfit {
    how: How,
    map: HashMap<u64, u64>,
    buffer: Option<&'static mut Block>,
    next_at: Instant,
    ticks: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// Not at all.
    Well,
    /// Does things in the order of a hash map.
    HashOrder,
    /// Takes an address for a number.
    Address,
    /// Reads the wall clock.
    WallClock,
    /// Stops working after a while.
    Hangs,
    /// Always has more to do.
    Spins,
    /// Wants to be woken in the past.
    WakesInThePast,
}

struct Misfits(How);

impl Program for Misfits {
    fn region_bytes(&self) -> usize {
        size_of::<Block>()
    }

    fn start(&self, boot: Boot) -> Box<dyn Guest> {
        let mut arena = outrider_core::arena::Arena::new(boot.region).unwrap();
        Box::new(Misfit {
            how: self.0,
            map: (0..20).map(|number| (number, number)).collect(),
            buffer: arena.one(Block::ZERO).unwrap(),
            next_at: boot.now,
            ticks: 0,
        })
    }
}

impl Node<'static> for Misfit {
    fn handle(&mut self, _now: Instant, event: Event<'static>) {
        if let Event::Completed(done) = event
            && let BlockOp::Read(_, buffer) | BlockOp::Write(_, buffer) = done.op
        {
            self.buffer = Some(buffer);
        }
    }

    fn step(&mut self, now: Instant) -> More {
        if self.next_at <= now && !(self.how == How::Hangs && self.ticks >= 50) {
            self.ticks += 1;
            self.next_at = now.plus(MILLI);
        }
        if self.how == How::Spins { More::Yes } else { More::No }
    }

    fn poll_action(&mut self) -> Option<Action<'static>> {
        if self.ticks >= 100 {
            return None;
        }
        let buffer = self.buffer.take()?;
        let number = match self.how {
            How::HashOrder => *self.map.keys().next().expect("there are twenty"),
            How::Address => buffer.0.as_ptr().addr() as u64 / 4096 % 4096,
            How::WallClock => {
                let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
                u64::from(since.subsec_nanos())
            }
            How::Well | How::Hangs | How::Spins | How::WakesInThePast => 3,
        };
        buffer.0[..8].copy_from_slice(&number.to_le_bytes());
        let op = BlockOp::Write(BlockNo(1), buffer);
        Some(Action::Block(BlockRequest { tag: Tag(0), op }))
    }

    fn poll_timeout(&self) -> Option<Instant> {
        match self.how {
            How::WakesInThePast => Some(Instant(0)),
            How::Hangs if self.ticks >= 50 => None,
            _ => Some(self.next_at),
        }
    }

    fn recv_space(&mut self, _stream: StreamId) -> &mut [u8] {
        &mut []
    }

    fn send_bytes(&self, _stream: StreamId) -> &[u8] {
        &[]
    }
}

/// Demands a hundred ticks.
struct HundredTicks;

impl Checker for HundredTicks {
    fn name(&self) -> &'static str {
        "ticks"
    }

    fn unsettled(&self, world: &World) -> Option<String> {
        let ticks = world.guest::<Misfit>(HostId(0)).map_or(0, |node| node.ticks);
        (ticks < 100).then(|| format!("{ticks} ticks"))
    }
}

fn misfit(how: How) -> World {
    let mut world = World::calm(1, Image::new(8));
    world.add_host("misfit", Misfits(how));
    world.add_checker(HundredTicks);
    world
}

/// Runs the same world again and again until two runs differ, at most sixteen times.
fn differs(how: How) -> bool {
    let mut worlds: Vec<World> = (0..16).map(|_| misfit(how)).collect();
    let hash = |world: &mut World| {
        world.settle(SECOND * 10).unwrap();
        world.trace().hash()
    };
    let hashes: Vec<u64> = worlds.iter_mut().map(hash).collect();
    hashes.iter().any(|hash| *hash != hashes[0])
}

#[test]
fn leaks_of_nondeterminism_show_in_the_trace() {
    assert!(!differs(How::Well));
    for how in [How::HashOrder, How::Address, How::WallClock] {
        assert!(differs(how), "{how:?}");
    }
}

#[test]
fn a_node_that_hangs_is_found() {
    assert_eq!(misfit(How::Well).settle(10 * SECOND), Ok(()));
    let violation = misfit(How::Hangs).settle(10 * SECOND).unwrap_err();
    assert_eq!(violation.what, "hangs: 50 ticks");
    assert_eq!(violation.checker, "ticks");
}

#[test]
fn a_node_that_never_rests_does_not_stop_time() {
    for how in [How::Spins, How::WakesInThePast] {
        let mut world = misfit(how);
        assert_eq!(world.settle(10 * SECOND), Ok(()), "{how:?}");
    }
}

/// Waits for what never comes.
struct Waiting;

impl Checker for Waiting {
    fn name(&self) -> &'static str {
        "waiting"
    }

    fn unsettled(&self, _world: &World) -> Option<String> {
        Some("waits".to_owned())
    }
}

#[test]
fn a_node_that_is_busy_with_nothing_is_found() {
    let mut world = misfit(How::Spins);
    world.add_checker(Waiting);
    world.limit_turns(100_000);
    let violation = world.settle(10_000 * SECOND).unwrap_err();
    assert_eq!(violation.what, "is stepped on and on: waits");
}

/// Never satisfied.
struct Sulking;

impl Checker for Sulking {
    fn name(&self) -> &'static str {
        "sulking"
    }

    fn after_step(&mut self, world: &World, host: HostId) -> Result<(), String> {
        let ticks = world.guest::<Misfit>(host).map_or(0, |node| node.ticks);
        if ticks == 7 { Err("seven".to_owned()) } else { Ok(()) }
    }
}

#[test]
fn what_a_checker_finds_ends_the_run_at_once() {
    let mut world = misfit(How::Well);
    world.add_checker(Sulking);
    let violation = world.run(10 * SECOND).unwrap_err();
    assert_eq!((violation.checker, violation.what.as_str()), ("sulking", "seven"));
    assert!(violation.at <= world.now() && world.now().0 < 2_000_000_000);
}

/// Makes the node tick once more each second.
struct Nudging(u32);

impl Workload for Nudging {
    fn tick(&mut self, world: &mut World) -> Option<Duration> {
        world.with(HostId(0), |node: &mut Misfit, _| node.ticks += 1);
        self.0 -= 1;
        (self.0 > 0).then_some(SECOND)
    }
}

#[test]
fn a_workload_reaches_the_nodes() {
    let mut world = misfit(How::Hangs);
    world.run_until(2 * SECOND, |_| false).unwrap();
    world.set_workload(Nudging(3));
    world.run_until(10 * SECOND, |_| false).unwrap();
    assert_eq!(world.guest::<Misfit>(HostId(0)).unwrap().ticks, 50 + 3);
}

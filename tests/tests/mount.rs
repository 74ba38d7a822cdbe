//! Mounts of one volume against the model, over a real server, a real session and real runs on a
//! simulated disk.
#![allow(clippy::unwrap_used)] // A test that can't go on has failed.

use outrider_core::client::fs::{self, ROOT};
use outrider_core::client::mount::{MountLimits, MountState};
use outrider_core::client::op::{
    Handle, NameBuf, NewMode, NewNode, Op, OpError, OpenAccess, OpenHow, Reply, WriteAt,
};
use outrider_core::format::Ino;
use outrider_core::format::item::Time;
use outrider_core::server::{Fence, Server, ServerEvent};
use outrider_tests::model::script::{Cast, Random, Script, Snapshot, Space, Step, Subject};
use outrider_tests::model::walk::{Executes, Walk};
use outrider_tests::model::{Asked, Done, User};
use outrider_tests::platform::Platform;
use outrider_tests::scenario::mount::{SCENARIO, Shown, calm, fair_weather};
use outrider_tests::trace::HostId;
use outrider_tests::world::World;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// Mounts of a world, as a user sees them.
fn mounts(seed: u64, count: u16) -> Vec<Walk<Shown>> {
    let world = Rc::new(RefCell::new(calm(seed, count, MountLimits::small())));
    let shown = (1..=count).map(|host| Shown { world: Rc::clone(&world), host: HostId(host) });
    let shown: Vec<_> = shown.collect();
    shown.iter().for_each(Shown::mount);
    shown.into_iter().map(Walk::over).collect()
}

/// Makes calls on mounts in turn, and on a model, and compares; then all unmount, and one that
/// comes later sees the same.
fn play(seed: u64, count: u16, calls: usize) {
    let mut mounts = mounts(seed, count);
    let mut model = Walk::new(0o755);
    let mut random = Random::new(seed);
    let script = Script::new(seed, Cast::Everyone, Space::Reserved);
    for (at, (user, step)) in script.take(calls).enumerate() {
        // A descriptor stays with the mount that opened it.
        let drawn = random.below(count.into()) as usize;
        let mount = slot_of(&step).map_or(drawn, |slot| slot % usize::from(count));
        let expected = model.run(&user, &step);
        let result = mounts[mount].run(&user, &step);
        let lost = [Err(OpError::Invalid), Err(OpError::NotEmpty), Err(OpError::Stale)];
        if result == Err(OpError::NotFound) && lost.contains(&expected) {
            continue;
        }
        assert_eq!(result, expected, "call {at} on {mount}: {step:?} by {user:?}");
    }
    assert!(model.snapshot().len() > 3, "the script does something");
    for mount in &mut mounts {
        compare(mount, &mut model);
    }
    mounts.iter().for_each(|mount| mount.model.unmount());
    mounts[0].model.restart();
    mounts[0].model.mount();
    compare(&mut mounts[0], &mut model);
}

fn slot_of(step: &Step) -> Option<usize> {
    match step {
        Step::Open { slot, .. }
        | Step::Close { slot }
        | Step::Fstat { slot }
        | Step::Read { slot, .. }
        | Step::Write { slot, .. }
        | Step::Ftruncate { slot, .. }
        | Step::Fallocate { slot, .. }
        | Step::Seek { slot, .. }
        | Step::Fsync { slot } => Some(*slot),
        _ => None,
    }
}

fn compare(mount: &mut Walk<Shown>, model: &mut Walk) {
    let stats =
        |seen: Snapshot| seen.into_iter().map(|(path, seen)| (path, seen.stat)).collect::<Vec<_>>();
    assert_eq!(stats(mount.snapshot()), stats(model.snapshot()));
    // In which order attributes are listed is nobody's business.
    let sorted = |contents: BTreeMap<String, Vec<Vec<u8>>>| -> BTreeMap<_, _> {
        let sort = |(path, mut all): (String, Vec<Vec<u8>>)| {
            all.sort();
            (path, all)
        };
        contents.into_iter().map(sort).collect()
    };
    assert_eq!(sorted(mount.contents()), sorted(model.contents()));
}

#[test]
fn a_mount_comes_and_goes() {
    let mount = mounts(7, 1).remove(0).model;
    mount.unmount();
    mount.restart();
    mount.mount();
    mount.unmount();
}

/// What has become of clients since this was last asked, as the server has it.
fn ends(shown: &Shown) -> Vec<&'static str> {
    let events = shown.world.borrow_mut().with(HostId(0), |at: &mut Server<'_>, _| {
        std::iter::from_fn(|| at.poll_event()).collect::<Vec<_>>()
    });
    let ends = events.into_iter().flatten().filter_map(|event| match event {
        ServerEvent::Evicted(_) => Some("evicted"),
        ServerEvent::Left(_) => Some("left"),
        _ => None,
    });
    ends.collect()
}

/// A machine crashes, boots, and mounts again. Its first mount is evicted, and what that was lent
/// is free at once, because a boot ends all that the one before it had under way.
#[test]
fn a_new_boot_of_its_machine_proves_that_a_mount_is_gone() {
    let shown = mounts(12, 1).remove(0).model;
    shown.restart();
    shown.mount();
    assert_eq!(ends(&shown), [""; 0], "nobody is given up before the time");
    shown.world.borrow_mut().run(Duration::from_secs(15)).unwrap();
    assert_eq!(ends(&shown), ["evicted", "left"]);
    shown.until("it works on", |at| at.mount.state() == MountState::Mounted);
    shown.unmount();
    assert_eq!(ends(&shown), ["left"]);
}

/// A mount is not heard for so long that it is evicted. When it hears of that nothing of it is
/// under way, and it says so: what it was lent is quarantined no longer than that.
#[test]
fn an_evicted_mount_says_farewell_and_what_it_was_lent_is_free() {
    let (server, host) = (HostId(0), HostId(1));
    let mounts = mounts(11, 1);
    let shown = mounts[0].model.clone();
    assert_eq!(ends(&shown), [""; 0]);
    {
        let mut world = shown.world.borrow_mut();
        world.block(server, host, Duration::from_secs(20));
        world.block(host, server, Duration::from_secs(20));
        world.run(Duration::from_secs(15)).unwrap();
    }
    assert_eq!(ends(&shown), ["evicted"]);
    shown.until("farewell", |at| at.mount.has_parted());
    assert_eq!(ends(&shown), ["left"]);
    assert!(matches!(shown.world.borrow().guest::<Platform>(host), Some(at)
        if at.mount.state() == MountState::Evicted));
    shown.restart();
    shown.mount();
}

/// Answers who is to be cut off, until there is somebody, with this; who that was.
fn fence(shown: &Shown, is_gone: bool) -> Fence {
    let mut asked = None;
    let mut world = shown.world.borrow_mut();
    for _ in 0..200 {
        world.run(Duration::from_millis(100)).unwrap();
        world.with(HostId(0), |at: &mut Server<'_>, now| {
            asked = at.poll_fence(now);
            if let Some(fence) = asked {
                assert_eq!(at.poll_fence(now), None, "one at a time");
                at.fenced(now, fence.client, is_gone);
            }
        });
        if let Some(fence) = asked {
            world.run(Duration::from_secs(3)).unwrap();
            return fence;
        }
    }
    panic!("nobody is to be fenced");
}

/// A machine dies and stays dead. The server asks for its mount to be fenced once it is evicted,
/// again a while after that has failed, and nothing of it is left when it has succeeded.
#[test]
fn a_dead_mount_is_fenced_and_what_it_was_lent_is_free() {
    let shown = mounts(13, 1).remove(0).model;
    let blocks = |shown: &Shown| {
        let counted = |at: &mut Server<'_>, _| {
            let reading = at.store().root().unwrap().fields().quarantine.node.blkno();
            (reading.0 != 0, at.counters().fences)
        };
        shown.world.borrow_mut().with(HostId(0), counted).unwrap()
    };
    shown.world.borrow_mut().crash(HostId(1));
    let first = fence(&shown, false);
    assert_eq!((first.failures, ends(&shown)), (0, vec!["evicted"]));
    assert_eq!(blocks(&shown), (true, 0), "a failure proves nothing");
    let second = fence(&shown, true);
    assert_eq!((second.client, second.failures), (first.client, 1));
    assert_eq!(ends(&shown), ["left"]);
    shown.world.borrow_mut().run(Duration::from_secs(2)).unwrap();
    assert_eq!(blocks(&shown), (false, 1));
}

#[test]
fn one_mount_answers_as_the_model_does_and_so_does_the_next() {
    for seed in 1..5 {
        play(seed, 1, 300);
    }
}

#[test]
fn two_mounts_answer_as_one_model_does() {
    for seed in 100..104 {
        play(seed, 2, 300);
    }
}

/// How much of something was done in a world.
fn work(world: &World, what: &str) -> u64 {
    let report = world.work_report();
    report.iter().find(|(name, _)| *name == what).map_or(0, |(_, count)| *count)
}

#[test]
fn three_mounts_see_what_each_of_them_writes() {
    for seed in 0..4 {
        let mut world = fair_weather(seed);
        world.run(Duration::from_secs(5)).unwrap();
        world.settle(Duration::from_secs(30)).unwrap_or_else(|wrong| panic!("{seed}: {wrong}"));
        for (what, count) in world.work_report() {
            println!("{count:8} {what}");
        }
        assert!(work(&world, "rounds linearizable") > 3, "processes were busy");
        assert!(work(&world, "operations at the same time") > 500, "and met each other");
        assert_eq!(work(&world, "rounds cut short"), 0);
    }
}

#[test]
fn mounts_survive_what_they_are_built_to_survive() {
    for seed in 0..2 {
        let report = SCENARIO.run(&mut (SCENARIO.world)(seed));
        assert!(report.violation.is_none(), "seed {seed}: {:?}", report.violation);
    }
}

fn name(text: &str) -> NameBuf {
    NameBuf::parse(text.as_bytes()).unwrap()
}

static USER: User = User::ROOT;

/// A request of user 0, at the start of all time.
fn asked(op: &Op) -> Asked<'_> {
    let now = Time { sec: 1_000_000, nsec: 0 };
    Asked { user: &USER, now, op, data: &[7; 9000], room: None }
}

const INTERRUPTED: Option<Result<Done, OpError>> = Some(Err(OpError::Interrupted));

/// A mount, and a file that is open on it.
fn mount_with_file(seed: u64) -> (Shown, Ino, Handle) {
    let mut mount = mounts(seed, 1).remove(0).model;
    let op = Op::Create {
        dir: ROOT,
        name: name("file"),
        mode: NewMode { permissions: 0o644, umask: 0 },
        how: OpenHow { access: OpenAccess::ReadWrite, truncate: false, strip: false },
        exclusive: true,
    };
    let Reply::Created(attr, handle) = mount.execute(&asked(&op)).unwrap().reply else { panic!() };
    (mount, attr.ino, handle)
}

#[test]
fn who_waits_for_an_absent_server_can_be_killed() {
    let (mut mount, ino, handle) = mount_with_file(3);
    let at = WriteAt::Offset(0);
    let write = Op::Write { ino, handle, at, len: 9000, strip: false };
    let fsync = Op::Fsync { ino, handle, data_only: false };
    mount.execute(&asked(&write)).unwrap();
    let server = HostId(0);
    mount.world.borrow_mut().crash(server);
    // One call waits for a durable commit, the others for a lease.
    let synced = mount.begin(&asked(&fsync));
    mount.until("it waits", |at| at.mount.state() == MountState::Suspended);
    let others = [Op::Getattr { ino }, write.clone(), Op::Lookup { dir: ROOT, name: name("x") }];
    let others = others.map(|op| mount.begin(&asked(&op)));
    assert_eq!(mount.ended_within(synced, Duration::from_secs(3)), None);
    for id in others.into_iter().chain([synced]) {
        mount.interrupt(id);
        assert_eq!(mount.ended_within(id, Duration::from_secs(2)), INTERRUPTED);
    }
    mount.world.borrow_mut().boot(server);
    mount.execute(&asked(&fsync)).unwrap();
    let read = mount.execute(&asked(&Op::Read { ino, handle, at: 0, len: 10_000 })).unwrap();
    assert_eq!(read.data, [7; 9000]);
}

#[test]
fn who_waits_for_a_server_from_the_start_can_be_killed() {
    let world = Rc::new(RefCell::new(calm(5, 1, MountLimits::small())));
    world.borrow_mut().run(Duration::from_millis(1)).unwrap();
    let mount = Shown { world, host: HostId(1) };
    mount.until("it runs", |_| true);
    mount.world.borrow_mut().crash(HostId(0));
    let id = mount.begin(&asked(&Op::Getattr { ino: ROOT }));
    assert_eq!(mount.ended_within(id, Duration::from_secs(10)), None);
    mount.interrupt(id);
    assert_eq!(mount.ended_within(id, Duration::from_secs(2)), INTERRUPTED);
}

#[test]
fn a_signal_does_not_end_what_ends_soon_anyway() {
    let (mount, ino, handle) = mount_with_file(4);
    let id = mount.begin(&asked(&Op::Fsync { ino, handle, data_only: false }));
    assert_eq!(mount.ended_within(id, Duration::from_micros(200)), None);
    mount.interrupt(id);
    assert!(matches!(mount.ended_within(id, Duration::from_secs(2)), Some(Ok(_))));
}

#[test]
fn more_files_are_looked_at_than_there_is_room_for() {
    let limits =
        MountLimits { fs: fs::Limits { inodes: 160, handles: 16 }, ..MountLimits::small() };
    let world = Rc::new(RefCell::new(calm(6, 2, limits)));
    let mut mounts = [1, 2].map(|host| Shown { world: Rc::clone(&world), host: HostId(host) });
    mounts.iter().for_each(Shown::mount);
    // The kernel forgets none of them.
    let mut inos = Vec::new();
    for number in 0..400 {
        let name = name(&format!("file-{number}"));
        let mode = NewMode { permissions: 0o644, umask: 0 };
        let op = Op::Mknod { dir: ROOT, name, mode, node: NewNode::Regular };
        let Reply::Entry(attr) = mounts[0].execute(&asked(&op)).unwrap().reply else { panic!() };
        inos.push(attr.ino);
    }
    for (number, ino) in inos.iter().enumerate() {
        let op = Op::Lookup { dir: ROOT, name: name(&format!("file-{number}")) };
        for mount in &mut mounts {
            let Reply::Entry(attr) = mount.execute(&asked(&op)).unwrap().reply else { panic!() };
            assert_eq!(attr.ino, *ino);
        }
    }
    // What the kernel has by number only is there all the same, and so is what it forgets.
    for ino in &inos {
        mounts[0].execute(&asked(&Op::Getattr { ino: *ino })).unwrap();
        let forget = Op::Forget { ino: *ino, lookups: 2 };
        mounts[0].execute(&asked(&forget)).unwrap();
    }
    mounts[0].until("all is forgotten", |at| at.mount.inodes_used() == 0);
}

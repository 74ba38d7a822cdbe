//! Mounts of one volume against the model, over a real server, a real session and real runs on a
//! simulated disk.
#![allow(clippy::unwrap_used)] // A test that can't go on has failed.

use outrider_core::client::mount::{MountLimits, MountState};
use outrider_core::client::op::OpError;
use outrider_core::server::{Server, ServerEvent};
use outrider_tests::model::script::{Cast, Random, Script, Snapshot, Space, Step, Subject};
use outrider_tests::model::walk::Walk;
use outrider_tests::platform::Platform;
use outrider_tests::scenario::mount::{SCENARIO, Shown, calm, fair_weather};
use outrider_tests::trace::HostId;
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

/// A mount is not heard for so long that it is evicted. When it hears of that nothing of it is under
/// way, and it says so: what it was lent is quarantined no longer than that.
#[test]
fn an_evicted_mount_says_farewell_and_what_it_was_lent_is_free() {
    let (server, host) = (HostId(0), HostId(1));
    let mounts = mounts(11, 1);
    let shown = mounts[0].model.clone();
    let mut seen = Vec::new();
    let mut look = |shown: &Shown| {
        let mut world = shown.world.borrow_mut();
        let events = world.with(server, |at: &mut Server<'_>, _| {
            std::iter::from_fn(|| at.poll_event()).collect::<Vec<_>>()
        });
        seen.extend(events.into_iter().flatten().filter_map(|event| match event {
            ServerEvent::Evicted(_) => Some("evicted"),
            ServerEvent::Left(_) => Some("left"),
            _ => None,
        }));
        seen.clone()
    };
    assert_eq!(look(&shown), [""; 0]);
    {
        let mut world = shown.world.borrow_mut();
        world.block(server, host, Duration::from_secs(20));
        world.block(host, server, Duration::from_secs(20));
        world.run(Duration::from_secs(15)).unwrap();
    }
    assert_eq!(look(&shown), ["evicted"]);
    shown.until("farewell", |at| at.mount.has_parted());
    assert_eq!(look(&shown), ["evicted", "left"]);
    assert!(matches!(shown.world.borrow().guest::<Platform>(host), Some(at)
        if at.mount.state() == MountState::Evicted));
    shown.restart();
    shown.mount();
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

#[test]
fn three_mounts_see_what_each_of_them_writes() {
    let mut world = fair_weather(1);
    world.run(Duration::from_secs(5)).unwrap();
    world.settle(Duration::from_secs(30)).unwrap();
}

#[test]
fn mounts_survive_what_they_are_built_to_survive() {
    for seed in 0..2 {
        let report = SCENARIO.run(&mut (SCENARIO.world)(seed));
        assert!(report.violation.is_none(), "seed {seed}: {:?}", report.violation);
    }
}

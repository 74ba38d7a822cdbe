//! Mounts of one volume against the model, over a real server, a real session and real runs on a
//! simulated disk.
#![allow(clippy::unwrap_used)] // A test that can't go on has failed.

use outrider_core::client::mount::MountLimits;
use outrider_core::client::op::OpError;
use outrider_tests::model::script::{Cast, Script, Space, Subject, changes};
use outrider_tests::model::walk::Walk;
use outrider_tests::scenario::mount::{Shown, calm};
use outrider_tests::trace::HostId;
use std::cell::RefCell;
use std::rc::Rc;

/// Mounts of a world, as a user sees them.
fn mounts(seed: u64, count: u16) -> Vec<Walk<Shown>> {
    let world = Rc::new(RefCell::new(calm(seed, count, MountLimits::small())));
    let shown = (1..=count).map(|host| Shown { world: Rc::clone(&world), host: HostId(host) });
    let shown: Vec<_> = shown.collect();
    shown.iter().for_each(Shown::mount);
    shown.into_iter().map(Walk::over).collect()
}

fn play(seed: u64, count: u16, calls: usize) {
    let mut mounts = mounts(seed, count);
    let mut model = Walk::new(0o755);
    let script = Script::new(seed, Cast::Everyone, Space::Reserved);
    for (at, (user, step)) in script.take(calls).enumerate() {
        let expected = model.run(&user, &step);
        let result = mounts[0].run(&user, &step);
        let lost = [Err(OpError::Invalid), Err(OpError::NotEmpty), Err(OpError::Stale)];
        if result == Err(OpError::NotFound) && lost.contains(&expected) {
            continue;
        }
        assert_eq!(result, expected, "call {at}: {step:?} by {user:?}");
    }
    let expected = model.snapshot();
    assert!(changes(&expected, &expected).len() > 1, "the script does something");
    let same = |mount: &mut Walk<Shown>, model: &mut Walk| {
        let stats = |seen: outrider_tests::model::script::Snapshot| {
            seen.into_iter().map(|(path, seen)| (path, seen.stat)).collect::<Vec<_>>()
        };
        assert_eq!(stats(mount.snapshot()), stats(model.snapshot()));
        assert_eq!(mount.contents(), model.contents());
    };
    same(&mut mounts[0], &mut model);
    mounts[0].model.unmount();
    mounts[0].model.restart();
    mounts[0].model.mount();
    same(&mut mounts[0], &mut model);
}

#[test]
fn a_mount_comes_and_goes() {
    let mount = mounts(7, 1).remove(0).model;
    mount.unmount();
    mount.restart();
    mount.mount();
    mount.unmount();
}

#[test]
fn one_mount_answers_as_the_model_does_and_so_does_the_next() {
    play(1, 1, 400);
}

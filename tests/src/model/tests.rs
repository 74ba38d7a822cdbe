//! The model against the kernel, call by call.

use super::script::{Cast, Script, Space, Subject, changes};
use super::{Model, OpError, User, host, script, walk};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Says why a test can't be made here; it is counted by whoever reads the output.
fn skipped(needs: &str) {
    println!("skipped: needs {needs}");
}

fn empty_directory(dir: &tempfile::TempDir, name: &str) -> PathBuf {
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open.clone()).unwrap();
    let root = dir.path().join(name);
    std::fs::create_dir(&root).unwrap();
    std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o777)).unwrap();
    root
}

/// How often each call ended in each way.
type Coverage = BTreeMap<(String, Option<OpError>), u64>;

/// The name of a call.
fn name(step: &script::Step) -> String {
    let text = format!("{step:?}");
    text.split(' ').next().unwrap_or_default().to_owned()
}

const REASONS: [OpError; 12] = [
    OpError::NotPermitted,
    OpError::NotFound,
    OpError::NoSuchAddress,
    OpError::BadHandle,
    OpError::Exists,
    OpError::NotDirectory,
    OpError::IsDirectory,
    OpError::Invalid,
    OpError::NotEmpty,
    OpError::Loop,
    OpError::NoData,
    OpError::NotSupported,
];

/// Checks that every call was seen to succeed, and to fail for each of these reasons.
fn check_coverage(seen: &Coverage, reasons: &[OpError]) {
    for ((call, ending), count) in seen {
        println!("{count:6} {call} {ending:?}");
    }
    let calls: BTreeSet<&String> = seen.keys().map(|(call, _)| call).collect();
    assert_eq!(calls.len(), 27);
    for call in calls {
        assert!(seen.contains_key(&(call.clone(), None)), "{call} never succeeded");
    }
    for reason in reasons {
        assert!(seen.keys().any(|(_, ending)| *ending == Some(*reason)), "never {reason:?}");
    }
}

/// Runs the same calls on the kernel and on a model, and compares after every one.
fn compare(place: &Path, seed: u64, cast: Cast, steps: usize, seen: &mut Coverage) {
    let dir = tempfile::tempdir_in(place).unwrap();
    let mut kernel = host::Host::new(empty_directory(&dir, "root"));
    let mut model = walk::Walk::new(0o777);
    let space = match (seed % 2, kernel.can_zero()) {
        (0, _) => Space::Holes,
        (_, false) => Space::Reserved,
        (_, true) => Space::ReservedAndZero,
    };
    let script = Script::new(seed, cast, space);
    let (mut kernel_was, mut model_was) = (kernel.snapshot(), model.snapshot());
    for (number, (user, step)) in script.take(steps).enumerate() {
        let (there, here) = (kernel.run(&user, &step), model.run(&user, &step));
        if there != Ok(script::Value::Skipped) {
            *seen.entry((name(&step), there.as_ref().err().copied())).or_default() += 1;
        }
        let at = format!("seed {seed}, step {number}, user {}: {step:?}", user.uid);
        assert_eq!(there, here, "kernel and model differ: {at}");
        let (kernel_is, model_is) = (kernel.snapshot(), model.snapshot());
        let there = changes(&kernel_was, &kernel_is);
        let here = changes(&model_was, &model_is);
        assert_eq!(there, here, "after it, kernel and model differ: {at}");
        (kernel_was, model_was) = (kernel_is, model_is);
    }
    assert_eq!(kernel.contents(), model.contents(), "seed {seed}");
}

#[test]
fn the_model_does_what_the_kernel_does_for_user_0() {
    if !rustix::process::geteuid().is_root() {
        return skipped("root");
    }
    let Some(place) = host::reference_place() else { return skipped("ext4") };
    let mut seen = Coverage::new();
    for seed in 0..20 {
        compare(&place, seed, Cast::Root, 500, &mut seen);
    }
    check_coverage(&seen, &REASONS);
}

#[test]
fn the_model_does_what_the_kernel_does_for_everyone() {
    if !rustix::process::geteuid().is_root() {
        return skipped("root");
    }
    let Some(place) = host::reference_place() else { return skipped("ext4") };
    let mut seen = Coverage::new();
    for seed in 100..140 {
        compare(&place, seed, Cast::Everyone, 500, &mut seen);
    }
    check_coverage(&seen, &REASONS);
    check_coverage(&seen, &[OpError::AccessDenied]);
}

#[test]
fn nothing_is_left_of_what_was_removed() {
    let mut model = walk::Walk::new(0o777);
    let script = Script::new(7, Cast::Everyone, Space::ReservedAndZero);
    for (user, step) in script.take(3000) {
        let before: Model = model.model.clone();
        let failed = model.run(&user, &step).is_err();
        assert!(!failed || model.model == before, "{step:?} failed and changed something");
    }
    for slot in 0..script::SLOTS {
        let _ = model.run(&User::ROOT, &script::Step::Close { slot });
    }
    assert_eq!(model.model.count_handles(), 0);
    let named: BTreeSet<_> = model.snapshot().values().map(|seen| seen.id).collect();
    assert_eq!(model.model.count_inodes(), named.len());
}

//! `check` on a volume that kernel mounts work on: the leader keeps for it what it reads, so it
//! finds a state that is whole, in its first attempt, even if it is stopped for a while; and when
//! all is over it finds what the mounts have left there. If it is stopped for longer than the
//! leader keeps anything, or the leader dies, it still finds a state that is whole.
//!
//! Needs user 0 and /dev/fuse, and says so where they are lacking.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use process::{Process, memory_dir, program, unused_port};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

#[path = "common/process.rs"]
mod process;

const ROUNDS: u32 = 24;
/// Bytes that a check has read when it has begun, and not ended.
const MIDWAY: u64 = 600_000;
/// Longer than a leader keeps anything for somebody who doesn't ask.
const LONGER_THAN_PINS: Duration = Duration::from_secs(17);

/// A mount that is gone with this, whatever comes.
struct Mount {
    process: Process,
    at: PathBuf,
}

impl Mount {
    fn start(device: &Path, at: PathBuf) -> Mount {
        fs::create_dir_all(&at).unwrap();
        let mut command = Command::new(program());
        command.args(["mount", "-f"]).arg(device).arg(&at);
        let mut mount = Mount { process: Process::start(&mut command), at };
        mount.process.hear("is mounted at");
        mount
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.process.kill();
        let mut umount = Command::new("umount");
        let _ = umount.arg("-l").arg(&self.at).stderr(Stdio::null()).status();
    }
}

/// Whether there are mounts here; says so if there are none.
fn has_mounts() -> bool {
    let has = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    if !has {
        println!("skipped: needs root and /dev/fuse");
    }
    has
}

/// A volume with so many voters.
fn make(device: &Path, voters: u16) {
    let mut mkfs = Command::new(program());
    mkfs.args(["mkfs", "-s", "256M"]);
    for slot in 0..voters {
        mkfs.args(["-Q", &format!("{slot},127.0.0.1,{}", unused_port())]);
    }
    assert!(mkfs.arg(device).stdout(Stdio::null()).status().unwrap().success());
}

fn serve(device: &Path, slot: &str) -> Process {
    let mut server = Command::new(program());
    Process::start(server.args(["server", "--slot", slot]).arg(device))
}

fn check(device: &Path) -> Output {
    Command::new(program()).args(["check", "--json"]).arg(device).output().unwrap()
}

/// A check that is stopped somewhere in the middle.
fn check_stopped_midway(device: &Path) -> Child {
    let midway = || {
        let mut check = Command::new(program());
        check.args(["check", "--json"]).arg(device).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut check = check.spawn().unwrap();
        let pid = Pid::from_child(&check);
        process::until("it has read something, or ended", || {
            let io = fs::read_to_string(format!("/proc/{}/io", pid.as_raw_pid())).ok()?;
            let read = io.lines().find_map(|line| line.strip_prefix("rchar: "))?;
            (read.parse::<u64>().unwrap() > MIDWAY || check.try_wait().unwrap().is_some())
                .then_some(())
        });
        let stopped =
            kill_process(pid, Signal::STOP).is_ok() && check.try_wait().unwrap().is_none();
        stopped.then_some(check)
    };
    process::until("a check is stopped before it ends", midway)
}

fn go_on(check: Child) -> Output {
    kill_process(Pid::from_child(&check), Signal::CONT).unwrap();
    check.wait_with_output().unwrap()
}

/// Nothing is wrong with what was seen, whoever kept it.
fn is_clean(output: &Output) {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["clean"], &report["items_compared"]), (&true.into(), &true.into()));
}

/// The same, stopped for longer than the mounts take to change everything.
fn check_stopped(device: &Path) -> Output {
    let mut check = Command::new(program());
    check.args(["check", "--json"]).arg(device).stdout(Stdio::piped()).stderr(Stdio::piped());
    let check = check.spawn().unwrap();
    let pid = Pid::from_child(&check);
    thread::sleep(Duration::from_millis(60));
    // It may have ended.
    if kill_process(pid, Signal::STOP).is_ok() {
        thread::sleep(Duration::from_millis(1500));
        kill_process(pid, Signal::CONT).unwrap();
    }
    check.wait_with_output().unwrap()
}

/// Whether a state was seen that is whole, and in how many attempts.
fn attempts(output: &Output) -> u64 {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["pinned"], true, "{report}");
    report["attempts"].as_u64().unwrap()
}

/// Does some of everything that changes a volume.
fn work(top: &Path, round: u32) {
    let dir = top.join(format!("dir{}", round % 3)).join(format!("sub{round}"));
    fs::create_dir_all(&dir).unwrap();
    for number in 0..20u32 {
        let path = dir.join(format!("file{number}"));
        let mut file = File::create(&path).unwrap();
        file.write_all(&vec![number as u8; number as usize * 1300]).unwrap();
        match number % 7 {
            0 => fs::hard_link(&path, dir.join(format!("link{number}"))).unwrap(),
            1 => fs::rename(&path, top.join(format!("moved{round}-{number}"))).unwrap(),
            2 => fs::remove_file(&path).unwrap(),
            3 => file.set_len(u64::from(number) * 500).unwrap(),
            4 => file.write_all_at(b"behind a hole", 300_000).unwrap(),
            5 => symlink("t".repeat(700), dir.join(format!("symlink{number}"))).unwrap(),
            _ => {
                rustix::fs::fsetxattr(
                    &file,
                    "user.name",
                    &[7; 900],
                    rustix::fs::XattrFlags::CREATE,
                )
                .unwrap();
            }
        }
    }
    let moved = top.join(format!("renamed{round}"));
    fs::rename(&dir, &moved).unwrap();
    if round.is_multiple_of(3) {
        fs::remove_dir_all(&moved).unwrap();
    }
    File::open(top).unwrap().sync_all().unwrap();
}

/// Inodes below a directory, each once.
fn inodes(top: &Path) -> std::collections::BTreeSet<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut found = std::collections::BTreeSet::new();
    for entry in fs::read_dir(top).unwrap().map(Result::unwrap) {
        let is_new = found.insert(entry.metadata().unwrap().ino());
        if is_new && entry.file_type().unwrap().is_dir() {
            found.extend(inodes(&entry.path()));
        }
    }
    found
}

#[test]
fn a_volume_in_use_is_seen_whole_at_the_first_attempt() {
    if !has_mounts() {
        return;
    }
    let dir = memory_dir();
    let device = dir.path().join("volume");
    make(&device, 1);
    let mut server = serve(&device, "0");
    server.hear("listens at");
    let mounts = ["one", "two"].map(|name| Mount::start(&device, dir.path().join(name)));
    let done = AtomicBool::new(false);
    let checked = thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut checked = Vec::new();
            while !done.load(Ordering::Relaxed) {
                let output = match checked.len() % 4 {
                    3 => check_stopped(&device),
                    _ => check(&device),
                };
                checked.push(attempts(&output));
            }
            checked
        });
        for (mount, name) in mounts.iter().zip(["a", "b"]) {
            let top = mount.at.join(name);
            scope.spawn(move || {
                fs::create_dir(&top).unwrap();
                (0..ROUNDS).for_each(|round| work(&top, round));
            });
        }
        // Both that work are over when their directories are complete.
        let last = format!("renamed{}", ROUNDS - 2);
        for (mount, name) in mounts.iter().zip(["a", "b"]) {
            process::until("all is done", || {
                mount.at.join(name).join(&last).exists().then_some(())
            });
        }
        done.store(true, Ordering::Relaxed);
        watching.join().unwrap()
    });
    assert!(checked.len() > 3 && checked.iter().all(|attempts| *attempts == 1), "{checked:?}");
    let there = inodes(&mounts[0].at).len() as u64;
    for mut mount in mounts {
        mount.process.stop();
    }
    server.stop();
    // Nobody leads, and nobody is needed.
    let output = check(&device);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    // The root directory is nobody's entry.
    assert_eq!(report["counts"]["inodes"], there + 1, "{report}");
    assert_eq!(report["items_compared"], true);
    assert_eq!(report["pinned"], false);
}

#[test]
fn a_check_outlives_its_pin_and_its_leader() {
    if !has_mounts() {
        return;
    }
    let dir = memory_dir();
    let device = dir.path().join("volume");
    make(&device, 2);
    let mut leader = serve(&device, "0");
    leader.hear("listens at");
    let mut next = serve(&device, "1");
    let mut mount = Mount::start(&device, dir.path().join("one"));
    let top = mount.at.join("a");
    fs::create_dir(&top).unwrap();
    let mut rounds = 0..;
    let mut work = |count: usize| rounds.by_ref().take(count).for_each(|round| work(&top, round));
    work(ROUNDS as usize);

    let stopped = check_stopped_midway(&device);
    let since = Instant::now();
    while since.elapsed() < LONGER_THAN_PINS {
        work(1);
        thread::sleep(Duration::from_millis(200));
    }
    is_clean(&go_on(stopped));

    let stopped = check_stopped_midway(&device);
    leader.kill();
    next.hear("listens at");
    work(ROUNDS as usize);
    is_clean(&go_on(stopped));

    mount.process.stop();
    next.stop();
    is_clean(&check(&device));
}

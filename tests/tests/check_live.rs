//! `check` on a volume that two kernel mounts work on: the leader keeps for it what it reads, so it
//! finds a state that is whole, in its first attempt, even if it is stopped for a while; and when
//! all is over it finds what the mounts have left there.
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
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

#[path = "common/process.rs"]
mod process;

const ROUNDS: u32 = 24;

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

fn check(device: &Path) -> Output {
    Command::new(program()).args(["check", "--json"]).arg(device).output().unwrap()
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
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        println!("skipped: needs root and /dev/fuse");
        return;
    }
    let dir = memory_dir();
    let device = dir.path().join("volume");
    let voter = format!("0,127.0.0.1,{}", unused_port());
    let mut mkfs = Command::new(program());
    mkfs.args(["mkfs", "-s", "256M", "-Q", &voter]).arg(&device);
    assert!(mkfs.stdout(Stdio::null()).status().unwrap().success());
    let mut server = Command::new(program());
    let mut server = Process::start(server.args(["server", "--slot", "0"]).arg(&device));
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

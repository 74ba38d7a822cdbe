//! Mounts that are voters too: they serve themselves and others, are unmounted in any order,
//! killed, refused, and left alone.
//!
//! Needs user 0 and /dev/fuse, and says so where they are lacking.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use process::{program, until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use volume::{Mount, Volume};

#[path = "common/process.rs"]
mod process;
#[path = "common/volume.rs"]
mod volume;

/// What a mount had that was killed is others' soon.
const RECOVERY_MS: u32 = 11_000;
/// Longer than an unmount takes that waits for nobody.
const PROMPT: Duration = Duration::from_secs(15);

fn outrider(args: &[&str], path: &Path) -> Output {
    Command::new(program()).args(args).arg(path).output().unwrap()
}

fn status(of: &Path) -> Value {
    let output = outrider(&["status", "--json"], of);
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Whoever leads does so in this slot, and answers.
fn await_leader(volume: &Volume, slot: u8) {
    until("this slot leads", || {
        let status = status(&volume.device());
        let term = status["leader"]["term"].as_str().unwrap_or_default();
        let leads = status["leader"]["answers"] == true && term.ends_with(&format!(".{slot}"));
        leads.then_some(())
    });
}

fn write(at: &Path, name: &str) {
    let mut file = File::create(at.join(name)).unwrap();
    file.write_all(name.as_bytes()).unwrap();
    file.sync_all().unwrap();
}

fn vote_in(volume: &Volume, slot: u8) -> (Mount, std::path::PathBuf) {
    volume.mount_with(&format!("voter{slot}"), &format!("quorum_slot_nr={slot}"))
}

/// The server beside a mount.
fn server_of(mount: &Mount) -> Pid {
    let pid = mount.process.id();
    until("the mount has a server", || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let children =
            tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok());
        let children: Vec<String> = children.collect();
        let mut pids = children.iter().flat_map(|pids| pids.split_whitespace());
        pids.find_map(|pid| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let serves = words.split(|byte| *byte == 0).any(|word| word == b"server");
            serves.then(|| Pid::from_raw(pid.parse().unwrap()).unwrap())
        })
    })
}

fn promptly(mount: Mount) {
    let begun = Instant::now();
    mount.stop();
    assert!(begun.elapsed() < PROMPT, "unmounting took {:?}", begun.elapsed());
}

#[test]
fn a_mount_serves_itself_and_is_unmounted_while_it_leads() {
    let Some(volume) = Volume::of_voters("256M", 1, RECOVERY_MS) else { return };
    let (mount, at) = vote_in(&volume, 0);
    await_leader(&volume, 0);
    write(&at, "one");
    assert_eq!(status(&at)["slots_here"], serde_json::json!([0]));
    promptly(mount);
    let after = status(&volume.device());
    assert_eq!(after["voters"][0]["state"], "stopped");
    assert_eq!(after["slots_here"], serde_json::json!([]));
    // The program lets go of the terminal, and its server with it.
    let at = volume.at("voter0");
    let device = volume.device();
    let options = ["mount", "-o", "quorum_slot_nr=0", device.to_str().unwrap()];
    let mounted = outrider(&options, &at);
    assert!(mounted.status.success(), "{mounted:?}");
    assert_eq!(fs::read(at.join("one")).unwrap(), b"one");
    let unmounted = outrider(&["umount"], &at);
    assert!(unmounted.status.success(), "{unmounted:?}");
    assert_eq!(status(&volume.device())["voters"][0]["state"], "stopped");
    volume.check();
}

#[test]
fn a_slot_that_cannot_be_had_is_a_reason_not_to_mount() {
    let Some(volume) = Volume::of_voters("256M", 1, RECOVERY_MS) else { return };
    let device = volume.device();
    let mut server = volume.serve();
    let at = volume.at("refused");
    for (slot, says) in [("1", "has no server in slot 1"), ("0", "is in use on this host")] {
        for front in [&["-f"][..], &[]] {
            let options = format!("quorum_slot_nr={slot}");
            let mut args = vec!["mount", "-o", &options];
            args.extend(front);
            args.push(device.to_str().unwrap());
            let refused = outrider(&args, &at);
            let said = String::from_utf8(refused.stderr).unwrap();
            assert!(!refused.status.success() && said.contains(says), "{said}");
            assert!(said.lines().all(|line| line.contains(says)), "{said}");
        }
    }
    server.stop();
}

#[test]
fn voters_and_others_are_unmounted_in_any_order() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [0, 2, 1]] {
        let Some(volume) = Volume::of_voters("256M", 2, RECOVERY_MS) else { return };
        let (zero, _) = vote_in(&volume, 0);
        await_leader(&volume, 0);
        let (one, _) = vote_in(&volume, 1);
        let (plain, at) = volume.mount("plain");
        let mut mounts = [Some(zero), Some(one), Some(plain)];
        for (done, which) in order.into_iter().enumerate() {
            promptly(mounts[which].take().unwrap());
            if mounts[2].is_some() {
                // Also when it is the last one, and no voter has a mount any more.
                write(&at, &format!("after{done}"));
            }
        }
        until("the last server ends by itself", || {
            let status = status(&volume.device());
            let stopped = |slot: usize| status["voters"][slot]["state"] == "stopped";
            (stopped(0) && stopped(1)).then_some(())
        });
        volume.check();
    }
}

#[test]
fn what_is_killed_is_there_again_in_its_slot() {
    let Some(volume) = Volume::of_voters("256M", 1, RECOVERY_MS) else { return };
    let (mut mount, at) = vote_in(&volume, 0);
    await_leader(&volume, 0);
    write(&at, "one");
    // The server alone: the mount stays, and has another one soon.
    let server = server_of(&mount);
    kill_process(server, Signal::KILL).unwrap();
    mount.process.hear("another starts");
    write(&at, "two");
    let another = server_of(&mount);
    assert_ne!(another, server);
    // Asked like a server of its own it goes on: it is the mount's.
    kill_process(another, Signal::TERM).unwrap();
    write(&at, "three");
    // Stopped, it is killed by its witness; the mount is not.
    kill_process(another, Signal::STOP).unwrap();
    mount.process.hear("another starts");
    write(&at, "four");
    // The mount, which takes its server with it.
    mount.kill();
    let (mount, _) = vote_in(&volume, 0);
    await_leader(&volume, 0);
    promptly(mount);
    volume.check();
}

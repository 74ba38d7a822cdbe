//! Programs that succeed, fail, hang, or aren't there.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::{Fence, Program, fencer};
use outrider_core::format::ClientId;
use outrider_core::format::quorum::{BootId, HostId};
use outrider_core::format::super_block::{ClusterLimits, Identity, Super};
use outrider_core::format::wire::greeting::Machine;
use outrider_hal::Endpoint;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const HERE: Machine = Machine { host: HostId([1; 16]), boot: BootId([2; 16]) };
const FENCE: Fence = Fence {
    client: ClientId(7),
    machine: Machine { host: HostId([0xab; 16]), boot: BootId([0xcd; 16]) },
    failures: 3,
};

/// A script in a directory of its own.
fn script(body: &str) -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("fence");
    std::fs::write(&path, format!("#!/bin/sh\ncd \"${{0%/*}}\"\n{body}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    (dir, path)
}

fn program(path: &Path, patience: Duration) -> Program {
    let device = PathBuf::from("/dev/sd a");
    let uuid = "0123".repeat(8);
    Program { path: path.to_owned(), device, uuid, own: HERE, patience }
}

fn run(body: &str) -> Result<(), String> {
    let (_dir, path) = script(body);
    program(&path, Duration::from_secs(60)).run(&FENCE, &AtomicBool::new(false))
}

#[test]
fn only_success_is_proof() {
    assert_eq!(run("exit 0"), Ok(()));
    assert!(run("exit 3").unwrap_err().contains("exit status: 3"));
    assert!(run("kill -9 $$").unwrap_err().contains("signal: 9"));
    let absent = program(Path::new("/nowhere/fence"), Duration::from_secs(60));
    assert!(absent.run(&FENCE, &AtomicBool::new(false)).unwrap_err().contains("can't be started"));
}

#[test]
fn it_is_told_who_is_to_be_cut_off() {
    let (dir, path) = script("echo $#:$1; env | grep OUTRIDER_ | sort");
    let said = program(&path, Duration::from_secs(60)).command(&FENCE).output().unwrap();
    let expected = format!(
        "1:7\nOUTRIDER_BOOT_ID={}\nOUTRIDER_CLIENT=7\nOUTRIDER_DEVICE=/dev/sd a\n\
         OUTRIDER_FAILURES=3\nOUTRIDER_HOST_ID={}\nOUTRIDER_OWN_BOOT=0\nOUTRIDER_UUID={}\n",
        "cd".repeat(16),
        "ab".repeat(16),
        "0123".repeat(8)
    );
    assert_eq!(String::from_utf8(said.stdout).unwrap(), expected);
    let own = Fence { machine: HERE, ..FENCE };
    let said = program(&path, Duration::from_secs(60)).command(&own).output().unwrap();
    assert!(String::from_utf8(said.stdout).unwrap().contains("OUTRIDER_OWN_BOOT=1\n"));
    drop(dir);
}

#[test]
fn one_that_hangs_is_killed_with_all_it_has_started() {
    let (dir, path) = script("sleep 600 & echo $! > pid; sleep 600");
    let began = Instant::now();
    let hanging = program(&path, Duration::from_millis(500));
    assert!(hanging.run(&FENCE, &AtomicBool::new(false)).unwrap_err().contains("killed"));
    assert!(began.elapsed() < Duration::from_secs(30));
    let pid = std::fs::read_to_string(dir.path().join("pid")).unwrap();
    let stat = format!("/proc/{}/stat", pid.trim());
    let is_gone = || {
        // What is left of it until somebody waits for it.
        std::fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z "))
    };
    while !is_gone() {
        assert!(began.elapsed() < Duration::from_secs(30), "{}", pid.trim());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn its_thread_tells_what_came_of_it_and_ends_with_who_asks() {
    let addr = Ipv4Addr::LOCALHOST.to_ipv6_mapped();
    let volume = Super::new(&Identity {
        fsid: 1,
        uuid: [1; 16],
        label: [0; 64],
        blocks: 1 << 20,
        crc_seed: 1,
        name_key: [0; 16],
        cluster_key: [0; 32],
        voters: [Some(Endpoint { addr, port: 1 }); 7],
        limits: ClusterLimits::standard(),
    });
    let (_dir, path) = script("test -e tried && exec sleep 600; touch tried; test $1 = 7");
    let (fencing, fencer) = fencer(&path, Path::new("/dev/null"), &volume.unwrap(), HERE);
    let (told, hear) = channel();
    let thread = fencer.start(move |client, is_gone| told.send((client, is_gone)).unwrap());
    fencing.ask(FENCE);
    assert_eq!(hear.recv(), Ok((ClientId(7), true)));
    // This one hangs, and is not waited for when the node ends.
    fencing.ask(FENCE);
    drop(fencing);
    thread.unwrap().join().unwrap();
    assert_ne!(hear.recv(), Ok((ClientId(7), true)));
}

//! `outrider server` as people run it: it serves, is killed, stopped, doubled, pestered and given
//! what it can't serve.
#![allow(clippy::unwrap_used, reason = "tests")]

use outrider_core::format::layout::SUPER_BLKNO;
use process::{PATIENCE, Process, memory_dir, program, unused_port};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use tempfile::TempDir;

#[path = "common/process.rs"]
mod process;

/// A volume in the file `v`, with a server at a port nobody uses.
struct Volume {
    dir: TempDir,
    port: u16,
}

fn volume() -> Volume {
    let volume = Volume { dir: memory_dir(), port: unused_port() };
    let voter = format!("0,127.0.0.1,{}", volume.port);
    let made = volume.outrider(&["mkfs", "-s", "64M", "-Q", &voter, "v"]);
    assert!(made.status.success(), "{made:?}");
    volume
}

impl Volume {
    fn path(&self) -> PathBuf {
        self.dir.path().join("v")
    }

    fn outrider(&self, args: &[&str]) -> Output {
        Command::new(program()).args(args).current_dir(self.dir.path()).output().unwrap()
    }

    fn file(&self) -> File {
        OpenOptions::new().read(true).write(true).open(self.path()).unwrap()
    }

    /// A server, which need not have come to anything yet.
    fn start(&self) -> Process {
        let mut command = Command::new(program());
        command.args(["server", "--slot", "0", "v"]).current_dir(self.dir.path());
        Process::start(&mut command)
    }

    /// A server that listens.
    fn serve(&self) -> Process {
        let mut server = self.start();
        server.hear("listens at");
        server
    }

    fn status(&self) -> (i32, Value) {
        let output = self.outrider(&["status", "--json", "v"]);
        (output.status.code().unwrap(), serde_json::from_slice(&output.stdout).unwrap())
    }

    fn assert_served(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (code, status) = self.status();
            if code == 0 {
                assert_eq!(status["leader"]["answers"], true);
                assert_eq!(status["leader"]["clients"], 0);
                assert_eq!(status["voters"][0]["state"], "listening");
                return;
            }
            assert!(Instant::now() < deadline, "nobody answers: {status}");
        }
    }

    /// Refused in one line that says this, and the volume is as it was.
    fn refuses(&self, args: &[&str], says: &str) {
        let before = std::fs::read(self.path()).unwrap();
        let output = self.outrider(args);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
        assert!(said.starts_with("outrider: ") && said.contains(says), "{args:?}: {said}");
        assert!(!output.status.success(), "{args:?}");
        assert!(std::fs::read(self.path()).unwrap() == before, "{args:?} wrote");
    }
}

#[test]
fn a_port_in_use_is_named_once_and_tried_until_it_is_free() {
    const AT: &str = "can't listen at";
    let volume = volume();
    let taken = TcpListener::bind(("127.0.0.1", volume.port)).unwrap();
    let mut server = volume.start();
    server.hear(AT);
    // It tries each second.
    std::thread::sleep(Duration::from_millis(2500));
    drop(taken);
    let said = server.hear_all("listens at");
    assert!(said.iter().all(|line| !line.contains(AT)), "{said:?}");
    volume.assert_served();
    server.stop();
}

#[test]
fn it_serves_answers_and_stops_in_good_order() {
    let volume = volume();
    assert_eq!(volume.status().0, 3);
    let mut server = volume.serve();
    volume.assert_served();
    let df = volume.outrider(&["df", "--json", "v"]);
    assert!(df.status.success(), "{df:?}");
    let df: Value = serde_json::from_slice(&df.stdout).unwrap();
    assert_eq!(df["bytes"], 64 << 20);
    let free = df["bytes_free"].as_u64().unwrap();
    assert!(free > 0 && free < 64 << 20, "{df}");
    server.stop();
    let (code, status) = volume.status();
    assert_eq!((code, &status["voters"][0]["state"]), (3, &"stopped".into()));
    let checked = volume.outrider(&["check", "v"]);
    assert_eq!(checked.status.code(), Some(0), "{checked:?}");
}

#[test]
fn what_a_server_had_is_not_lost_to_its_successor_in_the_slot() {
    let volume = volume();
    volume.serve().stop();
    let mut server = volume.serve();
    server.kill();
    volume.serve().stop();
    let shown = volume.outrider(&["print", "--json", "v", "alloc"]);
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["alloc"]["quarantine"], Value::Array(Vec::new()));
}

#[test]
fn it_serves_again_after_a_kill() {
    let volume = volume();
    let mut server = volume.serve();
    server.kill();
    let mut server = volume.serve();
    volume.assert_served();
    server.stop();
}

#[test]
fn a_slot_in_use_is_refused_at_once_and_so_is_mkfs() {
    let volume = volume();
    let mut server = volume.start();
    server.hear("memory");
    for (args, says) in [
        (["server", "--slot", "0", "v"].as_slice(), "slot 0 of v is in use on this host"),
        (["mkfs", "-f", "v"].as_slice(), "in use"),
    ] {
        let output = volume.outrider(args);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(says), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    server.stop();
}

#[test]
fn who_is_stopped_past_its_lease_is_killed() {
    let volume = volume();
    let mut server = volume.serve();
    server.signal(Signal::STOP);
    let status = server.end();
    assert_eq!(status.signal(), Some(9));
    server.hear("is killed");
    server.hear("has ended");
    volume.serve().stop();
}

#[test]
fn who_loses_its_witness_ends_in_good_order() {
    let volume = volume();
    let mut server = volume.serve();
    let children = format!("/proc/{0}/task/{0}/children", server.id());
    let witness: i32 = std::fs::read_to_string(children).unwrap().trim().parse().unwrap();
    let witness = Pid::from_raw(witness).unwrap();
    kill_process(witness, Signal::KILL).unwrap();
    server.hear("its witness is gone");
    assert_eq!(server.end().code(), Some(1));
    assert_eq!(volume.status().1["voters"][0]["state"], "stopped");
}

#[test]
fn strangers_at_its_port_disturb_nobody() {
    let volume = volume();
    let mut server = volume.serve();
    let connect = || TcpStream::connect(("127.0.0.1", volume.port)).unwrap();
    let mut held = Vec::new();
    for round in 0..30u32 {
        // A port scan; rubbish; a record that says it is huge; half a record, and silence.
        drop(connect());
        let mut garbage = connect();
        let bytes: Vec<u8> =
            (0..4096u32).map(|at| (at.wrapping_mul(2_654_435_761 ^ round) >> 13) as u8).collect();
        let _ = garbage.write_all(&bytes);
        let mut oversized = connect();
        let _ = oversized.write_all(&[0xff; 64]);
        let mut half = connect();
        let _ = half.write_all(&[0; 3]);
        held.extend([garbage, oversized, half]);
    }
    volume.assert_served();
    for stranger in &mut held {
        stranger.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut byte = [0; 512];
        // It is left to itself, told to go, or its connection ends.
        while let Ok(1..) = stranger.read(&mut byte) {}
    }
    volume.assert_served();
    assert_eq!(volume.status().1["leader"]["term"], "1.0", "it led all the time");
    server.stop();
    assert_eq!(volume.outrider(&["check", "v"]).status.code(), Some(0));
}

#[test]
fn what_cannot_be_served_is_refused_and_left_as_it_is() {
    let volume = volume();
    let serve = ["server", "--slot", "0", "v"];
    volume.refuses(&["server", "--slot", "1", "v"], "no server in slot 1; it has them in 0");
    volume.refuses(&["server", "--slot", "7", "v"], "numbered from 0 to 6");
    volume.refuses(&["server", "v"], "--slot");
    volume.refuses(&["server", "--slot", "0", "--listen", "nowhere", "v"], "--listen");
    volume.refuses(&["server", "--slot", "0", "absent"], "cannot open absent");
    volume.refuses(&["server", "--slot", "0", "/dev/null"], "neither a block device nor a file");
    let (file, at) = (volume.file(), SUPER_BLKNO.0 * 4096);
    let mut good = [0; 4096];
    file.read_exact_at(&mut good, at).unwrap();
    let altered = |place: usize, byte: u8, reseal: bool| {
        let mut block = good;
        block[place] ^= byte;
        if reseal {
            let crc = outrider_core::crc32c::crc32c(&block[4..]);
            block[..4].copy_from_slice(&crc.to_le_bytes());
        }
        file.write_all_at(&block, at).unwrap();
    };
    altered(1000, 1, false);
    volume.refuses(&serve, "the super block of v is damaged");
    altered(32, 1, true);
    volume.refuses(&serve, "holds no Outrider volume");
    file.write_all_at(&[0; 4096], at).unwrap();
    volume.refuses(&serve, "holds no Outrider volume");
    let incompat = std::mem::offset_of!(outrider_core::format::super_block::SuperBlock, incompat);
    altered(incompat + 7, 0x80, true);
    volume.refuses(&serve, "use a newer outrider");
    let ro_compat = std::mem::offset_of!(outrider_core::format::super_block::SuperBlock, ro_compat);
    altered(ro_compat + 7, 0x80, true);
    volume.refuses(&serve, "can only read; use a newer outrider");
    let limits = std::mem::offset_of!(outrider_core::format::super_block::SuperBlock, limits);
    // The recovery window: 48 ms are left of it.
    altered(limits + 17, 0x75, true);
    for args in [&serve[..], &["tune", "-L", "x", "v"], &["check", "v"]] {
        volume.refuses(args, "times that contradict each other");
    }
    file.write_all_at(&good, at).unwrap();
    file.set_len((64 << 20) - 4096).unwrap();
    volume.refuses(&serve, "give the device back the size it had");
    file.set_len(100).unwrap();
    volume.refuses(&serve, "holds no Outrider volume");
}

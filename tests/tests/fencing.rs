//! Mounts that have died, and proof of it: a program that fences them, and an operator's word.
//!
//! Needs user 0 and /dev/fuse, and says so where they are lacking.
#![allow(clippy::unwrap_used, reason = "tests")]

use process::{Process, memory_dir, program, until, unused_port};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

#[path = "common/process.rs"]
mod process;

/// A volume in the file `v`, whose mounts are evicted as soon as can be.
struct Volume(TempDir);

/// A mount, unmounted in the end, whatever becomes of its process.
struct Mount(Process, PathBuf);

impl Mount {
    /// Unmounts it.
    fn stop(mut self) {
        assert!(Command::new("umount").arg(&self.1).status().unwrap().success());
        assert!(self.0.end().success());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.0.kill();
        let _ = Command::new("umount").arg("-l").arg(&self.1).stderr(Stdio::null()).status();
    }
}

impl Volume {
    fn make() -> Option<Volume> {
        Volume::make_with("11000")
    }

    /// The same with another recovery window.
    fn make_with(recovery_ms: &str) -> Option<Volume> {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
            println!("skipped: needs root and /dev/fuse");
            return None;
        }
        let volume = Volume(memory_dir());
        let voter = format!("0,127.0.0.1,{}", unused_port());
        let args = ["mkfs", "-s", "64M", "--recovery-ms", recovery_ms, "-Q", &voter, "v"];
        assert!(volume.outrider(&args).status.success());
        Some(volume)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args(args).current_dir(self.0.path());
        command
    }

    fn outrider(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn serve(&self, more: &[&str]) -> Process {
        let mut server =
            Process::start(&mut self.command(&[&["server", "--slot", "0"], more, &["v"]].concat()));
        server.hear("listens at");
        server
    }

    /// A mount that has written something, and that nobody watches, as if its host had died.
    fn mount(&self) -> Mount {
        self.mount_with("at", &["-o", "nowitness"])
    }

    fn mount_with(&self, name: &str, more: &[&str]) -> Mount {
        let at = self.0.path().join(name);
        fs::create_dir_all(&at).unwrap();
        let args = [&["mount", "-f"], more, &["v", name]].concat();
        let mut mount = Mount(Process::start(&mut self.command(&args)), at);
        mount.0.hear("is mounted at");
        fs::write(mount.1.join("file"), [7; 10_000]).unwrap();
        fs::File::open(mount.1.join("file")).unwrap().sync_all().unwrap();
        mount
    }

    /// What the leader says.
    fn leader(&self) -> Value {
        let output = self.outrider(&["status", "--json", "v"]);
        let mut status: Value = serde_json::from_slice(&output.stdout).unwrap();
        status["leader"].take()
    }

    /// The only mount's number.
    fn client(&self) -> String {
        let output = self.outrider(&["print", "--json", "v", "clients"]);
        let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
        shown["clients"]["mounted"][0]["client"].to_string()
    }

    fn refused(&self, args: &[&str], says: &str) {
        let output = self.outrider(args);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(says), "{args:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }

    fn generation(&self) -> Value {
        let output = self.outrider(&["print", "--json", "v", "super"]);
        let mut shown: Value = serde_json::from_slice(&output.stdout).unwrap();
        shown["super"]["generation"].take()
    }

    fn assert_clean(&self) {
        let output = self.outrider(&["check", "v"]);
        assert!(output.status.success(), "{output:?}");
    }
}

#[test]
fn what_a_dead_mount_was_lent_is_free_when_it_is_fenced() {
    let Some(volume) = Volume::make() else { return };
    let script = volume.0.path().join("fence");
    // It fails the first time.
    let body = "#!/bin/sh\ncd \"${0%/*}\"\necho $1 >> asked\ntest $OUTRIDER_FAILURES -gt 0\n";
    fs::write(&script, body).unwrap();
    volume.refused(&["server", "--slot", "0", "--fence", "v", "v"], "--fence names one");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let mut server = volume.serve(&["--fence", script.to_str().unwrap()]);
    let mut mount = volume.mount();
    let client = volume.client();
    mount.0.kill();
    server.hear(&format!("client {client} is evicted"));
    server.hear(&format!("client {client} is not fenced"));
    let leader = volume.leader();
    assert_eq!(leader["clients_quarantined"], 1, "{leader}");
    assert_ne!(leader["blocks_quarantined"], 0, "{leader}");
    server.hear(&format!("client {client} is fenced"));
    server.hear(&format!("client {client} has left the volume"));
    let leader = volume.leader();
    assert_eq!((&leader["clients"], &leader["blocks_quarantined"]), (&0.into(), &0.into()));
    let asked = fs::read_to_string(volume.0.path().join("asked")).unwrap();
    assert_eq!(asked, format!("{client}\n{client}\n"));
    server.stop();
    volume.assert_clean();
}

/// Nothing that a killed mount had is waited for: neither for a recovery window, nor for what it
/// may still write into its files.
#[test]
fn a_mount_that_is_killed_is_proven_gone_by_its_witness() {
    let Some(volume) = Volume::make_with("60000") else { return };
    let mut server = volume.serve(&[]);
    let mut killed = volume.mount_with("killed", &[]);
    let client = volume.client();
    let other = volume.mount_with("other", &[]);
    let began = Instant::now();
    killed.0.kill();
    server.hear(&format!("client {client} is evicted"));
    server.hear(&format!("client {client} has left the volume"));
    fs::write(other.1.join("file"), [8; 10_000]).unwrap();
    assert_eq!(fs::read(other.1.join("file")).unwrap(), [8; 10_000]);
    assert!(began.elapsed() < Duration::from_secs(20), "it took {:?}", began.elapsed());
    let leader = volume.leader();
    assert_eq!((&leader["clients"], &leader["blocks_quarantined"]), (&1.into(), &0.into()));
    volume.refused(&["fenced", "v", &client], "knows no mount");
    drop(killed);
    other.stop();
    // There is nobody to be told. When a leader listens again, it is.
    let mut again = volume.mount_with("killed", &[]);
    let client = volume.client();
    server.kill();
    again.0.kill();
    let mut server = volume.serve(&[]);
    server.hear(&format!("client {client} has left the volume"));
    drop(again);
    server.stop();
    volume.assert_clean();
}

#[test]
fn an_operators_word_ends_the_waiting_for_a_dead_mount() {
    let Some(volume) = Volume::make() else { return };
    volume.refused(&["fenced", "v", "1"], "no server listens");
    let mut server = volume.serve(&[]);
    let mut mount = volume.mount();
    let client = volume.client();
    volume.refused(&["fenced", "v", &client], "is connected");
    volume.refused(&["fenced", "v", "4711"], "knows no mount 4711");
    mount.0.kill();
    until("its connection has ended", || (volume.leader()["clients_connected"] == 0).then_some(()));
    let said = volume.outrider(&["fenced", "v", &client]);
    assert!(said.status.success(), "{said:?}");
    // Nobody had to wait for a recovery window, nor is anything kept back.
    let leader = volume.leader();
    assert_eq!((&leader["clients"], &leader["blocks_quarantined"]), (&0.into(), &0.into()));
    volume.refused(&["fenced", "v", &client], "knows no mount");
    server.stop();
    volume.assert_clean();
}

/// What a copy of a volume in use looks like: nobody was stopped, and a mount is recorded.
#[test]
fn a_configuration_waits_for_recorded_mounts_unless_an_operator_answers_for_them() {
    let Some(volume) = Volume::make() else { return };
    let mut server = volume.serve(&[]);
    let mut mount = volume.mount();
    let client = volume.client();
    mount.0.kill();
    server.kill();
    volume.refused(&["tune", "-L", "copy", "v"], &format!("mount {client} of v is recorded"));
    volume.refused(&["tune", "--forget-commits", "v"], "say so with --fenced any");
    assert_eq!(volume.generation(), 1);
    let said = volume.outrider(&["tune", "-L", "copy", "--fenced", "any", "v"]);
    assert!(said.status.success(), "{said:?}");
    assert_eq!(volume.generation(), 2);
    let mut server = volume.serve(&[]);
    let said = volume.outrider(&["fenced", "v", &client]);
    assert!(said.status.success(), "{said:?}");
    server.stop();
    volume.assert_clean();
    let said = volume.outrider(&["tune", "-L", "again", "v"]);
    assert!(said.status.success(), "{said:?}");
}

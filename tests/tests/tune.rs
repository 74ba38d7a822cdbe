//! `outrider tune` as people run it: what it changes, and whom it is refused for.
#![allow(clippy::unwrap_used, reason = "tests")]

use outrider_core::format::layout::QUORUM_BLKNO;
use outrider_hal::BLOCK_BYTES;
use process::{Process, memory_dir, program, unused_port};
use serde_json::Value;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::process::{Command, Output};
use tempfile::TempDir;

#[path = "common/process.rs"]
mod process;

/// A volume in the file `v`, with servers in slots 0 and 1.
struct Volume {
    dir: TempDir,
    voters: [String; 3],
}

impl Volume {
    fn make() -> Volume {
        let voters = [0, 1, 2].map(|slot| format!("{slot},127.0.0.1,{}", unused_port()));
        let volume = Volume { dir: memory_dir(), voters };
        let [zero, one, _] = &volume.voters;
        let made = volume.outrider(&["mkfs", "-s", "64M", "-Q", zero, "-Q", one, "v"]);
        assert!(made.status.success(), "{made:?}");
        volume
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args(args).current_dir(self.dir.path());
        command
    }

    fn outrider(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn serve(&self, slot: &str) -> Process {
        let mut server = Process::start(&mut self.command(&["server", "--slot", slot, "v"]));
        server.hear("listens at");
        server
    }

    fn read(&self) -> Vec<u8> {
        std::fs::read(self.dir.path().join("v")).unwrap()
    }

    /// Refused in one line that says this, and the volume is as it was.
    fn refuses(&self, args: &[&str], status: i32, says: &str) {
        let before = self.read();
        let output = self.outrider(args);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.lines().count()), (Some(status), 1), "{said}");
        assert!(said.starts_with("outrider: ") && said.contains(says), "{args:?}: {said}");
        assert!(self.read() == before, "{args:?} wrote");
    }

    fn succeeds(&self, args: &[&str]) {
        let output = self.outrider(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
    }

    fn print(&self, section: &str) -> Value {
        let output = self.outrider(&["print", "--json", "v", section]);
        let mut shown: Value = serde_json::from_slice(&output.stdout).unwrap();
        shown[section].take()
    }
}

#[test]
fn voters_times_and_label_are_changed_and_the_volume_is_served_on() {
    let volume = Volume::make();
    volume.serve("0").stop();
    let [zero, _, two] = &volume.voters;
    volume.succeeds(&["tune", "-Q", zero, "-Q", two, "-L", "new", "--lease-ms", "300", "v"]);
    let found = volume.print("super");
    assert_eq!((&found["generation"], &found["label"]), (&2.into(), &"new".into()));
    assert_eq!(found["limits"]["lease_ms"], 300);
    assert_eq!(found["limits"]["recovery_ms"], 30_000);
    volume.refuses(&["server", "--slot", "1", "v"], 1, "has no server in slot 1");
    let mut server = volume.serve("2");
    assert_eq!(volume.outrider(&["status", "v"]).status.code(), Some(0));
    server.stop();
    volume.serve("0").stop();
    volume.succeeds(&["tune", "--recovery-ms", "9600", "--io-lifetime-ms", "9000", "v"]);
    assert_eq!(volume.print("super")["limits"]["io_lifetime_ms"], 9000);
    volume.serve("2").stop();
    volume.succeeds(&["check", "v"]);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let volume = Volume::make();
    let [zero, ..] = &volume.voters;
    for (args, says) in [
        (&["tune", "v"][..], "nothing is to be changed"),
        (&["tune", "-Q", zero, "-Q", "0,10.0.0.1,7", "v"], "slot 0 is given twice"),
        (&["tune", "-Q", "7,10.0.0.1,7", "v"], "NR is at most 6"),
        (&["tune", "-Q", "0,0.0.0.0,7", "v"], "nobody can connect"),
        (&["tune", "--lease-ms", "99", "v"], "--lease-ms is from 100 to 60000"),
        (&["tune", "--recovery-ms", "10999", "v"], "--recovery-ms is at least 11000"),
        (&["tune", "--lease-ms", "40000", "v"], "--recovery-ms is at least 89000"),
        (&["tune", "--io-lifetime-ms", "0", "v"], "at least 1"),
        (&["tune", "-L", "x", "--fenced", "x", "v"], "32 hexadecimal digits"),
    ] {
        volume.refuses(args, 2, says);
    }
}

#[test]
fn who_uses_the_volume_is_not_changed_under() {
    let volume = Volume::make();
    let mut server = volume.serve("0");
    let refused = volume.outrider(&["tune", "-L", "x", "v"]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && said.contains("in use"), "{said}");
    assert_eq!(volume.print("super")["generation"], 1);
    // One that was killed here is gone for certain, and its claim with it.
    server.kill();
    assert_eq!(volume.print("quorum")[0]["state"], "listening");
    let one = &volume.voters[1];
    volume.succeeds(&["tune", "-Q", one, "v"]);
    let voters = volume.print("quorum");
    assert_eq!((&voters[0]["state"], &voters[1]["state"]), (&"stopped".into(), &"blank".into()));
    volume.serve("1").stop();
    volume.succeeds(&["check", "v"]);
}

#[test]
fn a_damaged_spare_or_voters_block_is_no_obstacle_where_nobody_else_can_be() {
    let volume = Volume::make();
    let file = OpenOptions::new().write(true).open(volume.dir.path().join("v")).unwrap();
    let at = QUORUM_BLKNO.0 * BLOCK_BYTES as u64;
    file.write_all_at(&[0xff; 64], at).unwrap();
    file.write_all_at(&[0xff; 64], (64 << 20) - BLOCK_BYTES as u64).unwrap();
    assert_eq!(volume.outrider(&["check", "v"]).status.code(), Some(4));
    volume.succeeds(&["tune", "-L", "x", "v"]);
    volume.serve("0").stop();
    volume.succeeds(&["check", "v"]);
}

/// The newest root is there no more, as if its block had rotted. What it made durable is confirmed,
/// so nobody goes on from the one before it unless an operator says so.
#[test]
fn a_newest_root_that_rots_is_noticed_and_forgotten_only_when_an_operator_says_so() {
    let volume = Volume::make();
    volume.serve("0").stop();
    let roots = volume.print("roots");
    let newest = roots.as_array().unwrap().iter().find(|root| root["newest"] == true).unwrap();
    let says = &volume.print("quorum")[0];
    assert_eq!((&says["confirmed"], &says["confirmed_term"]), (&newest["commit"], &newest["term"]));
    volume.succeeds(&["check", "v"]);
    let file = OpenOptions::new().write(true).open(volume.dir.path().join("v")).unwrap();
    let at = newest["blkno"].as_u64().unwrap() * BLOCK_BYTES as u64;
    file.write_all_at(&[0xff; 64], at + 100).unwrap();

    let checked = volume.outrider(&["check", "v"]);
    let found = String::from_utf8(checked.stdout).unwrap();
    assert_eq!(checked.status.code(), Some(4), "{found}");
    assert!(found.contains("E-ROOT "), "{found}");
    for slot in ["0", "1"] {
        let served = volume.outrider(&["server", "--slot", slot, "v"]);
        let said = String::from_utf8(served.stderr).unwrap();
        let lost = format!("commit {} was confirmed", newest["commit"]);
        assert!(!served.status.success() && said.contains(&lost), "slot {slot}: {said}");
    }
    // Neither is left as if it led, so nobody has to say that it is gone.
    for slot in volume.print("quorum").as_array().unwrap() {
        assert!(slot["state"] == "stopped" || slot["state"] == "blank", "{slot}");
    }
    volume.succeeds(&["tune", "-L", "x", "v"]);
    assert_eq!(volume.print("quorum")[0]["confirmed"], newest["commit"]);
    volume.succeeds(&["tune", "--forget-commits", "v"]);
    volume.serve("0").stop();
    volume.serve("1").stop();
    let checked = volume.outrider(&["check", "v"]);
    let found = String::from_utf8(checked.stdout).unwrap();
    assert!(!found.contains("E-ROOT "), "{found}");
}

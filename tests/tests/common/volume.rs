//! A volume of a test, with the program as its server and its mounts.
#![allow(dead_code, reason = "each test uses some of it")]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use super::process::{Process, memory_dir, program, unused_port};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// A mount that is of use, and is gone with this, whatever comes.
pub(crate) struct Mount {
    pub(crate) process: Process,
    at: PathBuf,
}

impl Mount {
    pub(crate) fn kill(mut self) {
        self.process.kill();
    }

    pub(crate) fn stop(mut self) {
        self.process.stop();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.process.kill();
        let mut umount = Command::new("umount");
        let _ = umount.arg("-l").arg(&self.at).stderr(Stdio::null()).status();
    }
}

/// A volume, with voters in slots 0, 1, ...
pub(crate) struct Volume {
    dir: TempDir,
}

impl Volume {
    /// With one voter. None, where there can't be mounts.
    pub(crate) fn make(size: &str) -> Option<Volume> {
        Volume::of_voters(size, 1, 30_000)
    }

    /// With these many, and mounts that are given up after this time.
    pub(crate) fn of_voters(size: &str, voters: u8, recovery_ms: u32) -> Option<Volume> {
        let root = rustix::process::geteuid().is_root();
        if !root || !Path::new("/dev/fuse").exists() {
            println!("skipped: needs {}", if root { "/dev/fuse" } else { "root" });
            return None;
        }
        let volume = Volume { dir: memory_dir() };
        let mut mkfs = Command::new(program());
        mkfs.args(["mkfs", "-s", size, "--recovery-ms", &recovery_ms.to_string()]);
        for slot in 0..voters {
            mkfs.arg("-Q").arg(format!("{slot},127.0.0.1,{}", unused_port()));
        }
        mkfs.arg(volume.device());
        assert!(mkfs.stdout(Stdio::null()).status().unwrap().success());
        Some(volume)
    }

    pub(crate) fn device(&self) -> PathBuf {
        self.dir.path().join("volume")
    }

    pub(crate) fn serve(&self) -> Process {
        let mut command = Command::new(program());
        command.args(["server", "--slot", "0"]).arg(self.device());
        let mut server = Process::start(&mut command);
        server.hear("listens at");
        server
    }

    pub(crate) fn mount(&self, name: &str) -> (Mount, PathBuf) {
        self.mount_with(name, "rw")
    }

    /// With these options.
    pub(crate) fn mount_with(&self, name: &str, options: &str) -> (Mount, PathBuf) {
        let at = self.at(name);
        let mut command = Command::new(program());
        command.args(["mount", "-f", "-o", options]).arg(self.device()).arg(&at);
        let mut mount = Mount { process: Process::start(&mut command), at: at.clone() };
        mount.process.hear("is mounted at");
        (mount, at)
    }

    /// Where something is mounted: a directory.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        let at = self.dir.path().join(name);
        fs::create_dir_all(&at).unwrap();
        at
    }

    /// That all is where it belongs, once nobody uses the volume.
    pub(crate) fn check(&self) {
        let output = Command::new(program()).arg("check").arg(self.device()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

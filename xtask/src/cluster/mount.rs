//! A mount of a cluster: the process that serves it, and its directory.
//!
//! * However it goes, the directory is no mount point afterwards.

use super::process::{Farewell, LOOK, Output, Process, until};
use crate::tools::{FUSERMOUNT, Failure, mounted_below};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Time for a mount to become usable.
const PATIENCE: Duration = Duration::from_secs(120);
/// Time for the users of a mount to go away.
const BUSY: Duration = Duration::from_secs(5);
/// Time for an unmount, and for what a mount does after it.
const LEAVE: Duration = Duration::from_secs(30);

/// A mount.
pub(crate) struct Mount {
    pub(crate) dir: PathBuf,
    /// It is a voter too.
    pub(crate) votes: bool,
    process: Option<Process>,
}

impl Mount {
    /// Mounts the volume at this directory, which is made; as the voter of a slot, if there is one.
    pub(crate) fn start(
        name: &str,
        outrider: &Path,
        volume: &Path,
        dir: PathBuf,
        slot: Option<u8>,
    ) -> Result<Mount, Failure> {
        fs::create_dir(&dir).map_err(|error| Failure(format!("{}: {error}", dir.display())))?;
        let mut command = Command::new(outrider);
        command.args(["mount", "-f"]);
        if let Some(slot) = slot {
            command.arg("-o").arg(format!("quorum_slot_nr={slot}"));
        }
        command.arg(volume).arg(&dir);
        let process = Process::start(name, &command, Output::Lines, Farewell::Signal)?;
        Ok(Mount { dir, votes: slot.is_some(), process: Some(process) })
    }

    /// Its process.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// The process of its server, if it has one.
    pub(crate) fn server(&self) -> Option<u32> {
        let pid = self.pid().filter(|_| self.votes)?;
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
        let children = tasks
            .filter_map(Result::ok)
            .filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
        let children: Vec<String> = children.collect();
        let mut pids = children.iter().flat_map(|pids| pids.split_whitespace());
        pids.find_map(|pid| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let serves = words.split(|byte| *byte == 0).any(|word| word == b"server");
            pid.parse().ok().filter(|_| serves)
        })
    }

    /// When its server said last that it listens.
    pub(crate) fn listening(&self) -> u64 {
        self.process.as_ref().map_or(0, Process::listening)
    }

    /// Waits until it can be used, or `interrupted`.
    pub(crate) fn wait(&mut self, interrupted: impl Fn() -> bool) -> Result<(), Failure> {
        let Mount { dir, process, .. } = self;
        let process = process.as_mut().expect("it was started");
        let outcome = until(PATIENCE, || {
            if mounted_below(dir) {
                return Some(Ok(()));
            }
            if let Some(status) = process.ended() {
                return Some(Err(Failure(format!("{} ended: {status}", process.name()))));
            }
            interrupted().then(|| Err(Failure::new("interrupted")))
        });
        outcome.unwrap_or_else(|| {
            Err(Failure(format!("{} was not there after {PATIENCE:?}", process.name())))
        })
    }

    /// How its process ended, if it has, told once.
    pub(crate) fn lost(&mut self) -> Option<(String, ExitStatus)> {
        let status = self.process.as_mut()?.ended()?;
        let process = self.process.take()?;
        Some((process.name().to_owned(), status))
    }

    /// Unmounts. `false` when it had to be forced.
    pub(crate) fn end(mut self) -> bool {
        let mut in_order = true;
        let deadline = Instant::now() + BUSY;
        while mounted_below(&self.dir) {
            if fusermount(&self.dir, "-u") {
                break;
            }
            if Instant::now() >= deadline {
                eprintln!("xtask: {} is busy, and is detached", self.dir.display());
                in_order = false;
                fusermount(&self.dir, "-uz");
                break;
            }
            thread::sleep(LOOK * 10);
        }
        if let Some(process) = self.process.take() {
            let status = process.wait_or_kill(LEAVE);
            in_order &= status.is_some_and(|status| status.success());
        }
        if mounted_below(&self.dir) {
            fusermount(&self.dir, "-uz");
        }
        in_order
    }
}

/// Runs fusermount3, for a bounded time.
fn fusermount(dir: &Path, option: &str) -> bool {
    let mut command = Command::new(FUSERMOUNT.program);
    command.arg(option).arg(dir).stdin(Stdio::null()).stderr(Stdio::null());
    let Ok(mut child) = command.spawn() else { return false };
    let status = until(LEAVE, || child.try_wait().ok().flatten());
    if status.is_none() {
        // Fails only when it has ended already.
        let _ = child.kill();
        let _ = child.wait();
    }
    status.is_some_and(|status| status.success())
}

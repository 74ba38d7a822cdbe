//! Fencing: a program of the operator's cuts hosts off from the device, and says whether they are.
//!
//! The program is run for one client at a time, which has been evicted already. It gets who that is
//! in its environment:
//!
//! | variable | is |
//! |---|---|
//! | `OUTRIDER_CLIENT` | the client's number, also its only argument |
//! | `OUTRIDER_HOST_ID`, `OUTRIDER_BOOT_ID` | where it ran, 32 hexadecimal digits each |
//! | `OUTRIDER_OWN_BOOT` | 1 if that is the very boot that the program runs in, else 0 |
//! | `OUTRIDER_DEVICE`, `OUTRIDER_UUID` | the volume |
//! | `OUTRIDER_FAILURES` | how often fencing this client has failed in this term |
//!
//! # Invariants
//!
//! * The exit status 0 is the only proof. Another status, a signal, a program that can't be started
//!   or takes longer than [`PATIENCE`] are none.
//! * A program that takes too long is killed, with all of its process group, before the failure is
//!   told; so is one that is at work when the node ends.
//! * The node never waits: the program has a thread of its own beside it.
//!
//! What this module deliberately doesn't know: who is to be fenced, and when it is tried again.

use crate::host::show_id;
use crate::report::tell;
use outrider_core::format::ClientId;
use outrider_core::format::super_block::Super;
use outrider_core::format::wire::greeting::Machine;
use outrider_core::server::Fence;
use rustix::process::{Pid, Signal, kill_process_group};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long the program may take.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Who is asked to fence, from beside the node.
#[derive(Debug)]
pub struct Fencing {
    to: Sender<Fence>,
    ends: Arc<AtomicBool>,
}

impl Fencing {
    /// Passes on who is to be fenced. Doesn't wait.
    pub fn ask(&self, fence: Fence) {
        // Its thread lives as long as this.
        let _ = self.to.send(fence);
    }
}

impl Drop for Fencing {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
    }
}

/// The thread that fences; not started yet.
#[derive(Debug)]
pub struct Fencer {
    program: Program,
    from: Receiver<Fence>,
    ends: Arc<AtomicBool>,
}

/// What is run, and what it is told each time.
#[derive(Debug)]
struct Program {
    path: PathBuf,
    device: PathBuf,
    uuid: String,
    own: Machine,
    patience: Duration,
}

/// A fencer that runs this program, and what asks it.
#[must_use]
pub fn fencer(path: &Path, device: &Path, volume: &Super, own: Machine) -> (Fencing, Fencer) {
    let (to, from) = channel();
    let ends = Arc::new(AtomicBool::new(false));
    let program = Program {
        path: path.to_owned(),
        device: device.to_owned(),
        uuid: show_id(volume.fields().uuid),
        own,
        patience: PATIENCE,
    };
    (Fencing { to, ends: Arc::clone(&ends) }, Fencer { program, from, ends })
}

/// Whether this can be run, as far as its permissions say.
#[must_use]
pub fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

impl Fencer {
    /// Starts the thread, which ends with its [`Fencing`]. It calls `told` with what has come of
    /// each fence.
    ///
    /// # Errors
    ///
    /// If there is no thread to be had.
    pub fn start(
        self,
        told: impl Fn(ClientId, bool) + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let Fencer { program, from, ends } = self;
        std::thread::Builder::new().name("fence".to_owned()).spawn(move || {
            for fence in from {
                if ends.load(Ordering::SeqCst) {
                    return;
                }
                let client = fence.client;
                let outcome = program.run(&fence, &ends);
                let path = program.path.display();
                match &outcome {
                    Ok(()) => tell(&format!("client {client} is fenced, says {path}")),
                    Err(why) => tell(&format!("client {client} is not fenced: {path} {why}")),
                }
                told(client, outcome.is_ok());
            }
        })
    }
}

impl Program {
    /// Runs the program for one client. Why that is no proof, if it isn't.
    fn run(&self, fence: &Fence, ends: &AtomicBool) -> Result<(), String> {
        // What it says is for people, like what the server tells.
        let started = self.command(fence).stdout(io::stderr()).spawn();
        let mut child = started.map_err(|error| format!("can't be started: {error}"))?;
        let until = Instant::now() + self.patience;
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return judge(status),
                Ok(None) if Instant::now() >= until => {
                    kill(&mut child);
                    let seconds = self.patience.as_secs();
                    return Err(format!("has taken more than {seconds} s, and was killed"));
                }
                Ok(None) if ends.load(Ordering::SeqCst) => {
                    kill(&mut child);
                    return Err("was killed: the server ends".to_owned());
                }
                Ok(None) => std::thread::sleep(LOOK),
                Err(error) => {
                    kill(&mut child);
                    return Err(format!("can't be waited for: {error}"));
                }
            }
        }
    }

    fn command(&self, fence: &Fence) -> Command {
        let client = fence.client.0.to_string();
        let is_own = fence.machine == self.own;
        let mut command = Command::new(&self.path);
        command
            .arg(&client)
            .env("OUTRIDER_CLIENT", &client)
            .env("OUTRIDER_HOST_ID", show_id(fence.machine.host.0))
            .env("OUTRIDER_BOOT_ID", show_id(fence.machine.boot.0))
            .env("OUTRIDER_OWN_BOOT", if is_own { "1" } else { "0" })
            .env("OUTRIDER_DEVICE", &self.device)
            .env("OUTRIDER_UUID", &self.uuid)
            .env("OUTRIDER_FAILURES", fence.failures.to_string())
            .stdin(Stdio::null())
            .process_group(0);
        command
    }
}

fn judge(status: ExitStatus) -> Result<(), String> {
    match status.success() {
        true => Ok(()),
        false => Err(format!("has ended with {status}")),
    }
}

/// Kills the program and what it has started, and waits for it.
fn kill(child: &mut Child) {
    if let Some(group) = Pid::from_raw(child.id().cast_signed()) {
        // It may have ended just now.
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait();
}

#[cfg(test)]
mod tests;

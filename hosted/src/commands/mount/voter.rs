//! The server beside a mount that is a voter: started, looked after, and let go.
//!
//! ```text
//!   mount                                      outrider server --attached
//!     |  starts it; its standard input is open  |
//!     |----------------------------------------->|
//!     |            ready, or failed WHY           |  it takes part in the elections
//!     |<-----------------------------------------|
//!     |          left (the mount is gone,         |  it lets go: at once if another voter
//!     |           in good order)                  |  writes or nobody needs it
//!     |----------------------------------------->|
//!     |            stays, or its end              |
//!     |<-----------------------------------------|
//! ```
//!
//! # Invariants
//!
//! * The server is a process of its own. What ends it, its witness first of all, doesn't end the
//!   mount, which has changes that nobody else has; and who doesn't lead for want of processor time
//!   may mount on.
//! * However the mount ends, its server notices the end of its standard input, and ends.
//! * A server that ends by itself is started again, after a pause that grows. One that ends before
//!   it has taken part for the first time is a reason not to mount.
//!
//! What this module deliberately doesn't know: what a server does, and what the mount does.

use super::super::server::{FAILED, LEFT, READY, STAYS};
use outrider_core::format::quorum::Slot;
use outrider_hosted::report::tell;
use outrider_hosted::wait::Bell;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The pause before a server is started again, at first and at most.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// How servers of this mount are started.
struct Recipe {
    device: PathBuf,
    settings: Settings,
}

/// How a mount's server is to run.
pub(super) struct Settings {
    pub(super) slot: Slot,
    pub(super) witness: bool,
    /// Nobody sees its standard error.
    pub(super) logs: bool,
    /// The program that evicted mounts are cut off by.
    pub(super) fence: Option<PathBuf>,
}

/// How the server stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stand {
    /// It has not taken part yet.
    Starting,
    /// It has, or another before it.
    Ready,
    /// It never did, for this reason.
    Failed(String),
    /// The mount has left, and it stays as long as others need it.
    Stays,
    /// The mount has left, and it has ended.
    Over,
}

struct State {
    stand: Stand,
    /// Open as long as the mount is there.
    stdin: Option<ChildStdin>,
    /// The mount has left, or never came to be.
    ending: bool,
}

struct Shared {
    recipe: Recipe,
    state: Mutex<State>,
    ended: Condvar,
    /// Rings when it stands otherwise than before.
    bell: Bell,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stands(&self, stand: Stand) {
        self.lock().stand = stand;
        self.bell.ring();
    }

    /// Starts another server after a pause; none if the mount has gone.
    fn start_again(&self, pause: Duration) -> Option<(Child, ChildStdout)> {
        let slot = self.recipe.settings.slot;
        let mut state = self.lock();
        state.stdin = None;
        while !state.ending {
            tell(&format!("slot {slot}: its server has ended; another starts in {pause:?}"));
            let waited = self.ended.wait_timeout_while(state, pause, |state| !state.ending);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            if state.ending {
                break;
            }
            match self.recipe.start() {
                Ok((child, stdin, stdout)) => {
                    state.stdin = Some(stdin);
                    return Some((child, stdout));
                }
                Err(error) => tell(&format!("slot {slot}: no server can be started: {error}")),
            }
        }
        None
    }
}

/// A mount's server, which a thread looks after.
pub(super) struct Voter {
    shared: Arc<Shared>,
}

impl Voter {
    /// Starts it. The bell rings when it stands otherwise than before.
    pub(super) fn start(device: &Path, settings: Settings, bell: Bell) -> io::Result<Voter> {
        let recipe = Recipe { device: std::path::absolute(device)?, settings };
        let (child, stdin, stdout) = recipe.start()?;
        let state = State { stand: Stand::Starting, stdin: Some(stdin), ending: false };
        let shared =
            Arc::new(Shared { recipe, state: Mutex::new(state), ended: Condvar::new(), bell });
        let thread = std::thread::Builder::new().name("voter".to_owned());
        let theirs = Arc::clone(&shared);
        thread.spawn(move || look_after(&theirs, child, stdout))?;
        Ok(Voter { shared })
    }

    /// How it stands.
    pub(super) fn stand(&self) -> Stand {
        self.shared.lock().stand.clone()
    }

    /// Says that the mount is gone; in good order, so that it may stay if others need it. It then
    /// [stands](Self::stand) as over, or stays, in a while.
    pub(super) fn let_go(&self, in_order: bool) {
        let mut state = self.shared.lock();
        state.ending = true;
        if let Some(mut stdin) = state.stdin.take()
            && in_order
        {
            // Who is gone has ended.
            let _ = stdin.write_all(&[LEFT]);
        }
        drop(state);
        self.shared.ended.notify_all();
    }
}

impl Drop for Voter {
    /// Who is not waited for ends all the same.
    fn drop(&mut self) {
        self.let_go(false);
    }
}

impl Recipe {
    fn start(&self) -> io::Result<(Child, ChildStdin, ChildStdout)> {
        let Settings { slot, witness, logs, fence } = &self.settings;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("outrider").args(["server", "--attached"]);
        command.args(["--slot", &slot.to_string()]);
        if !witness {
            command.arg("--no-witness");
        }
        if *logs {
            command.arg("--log").stderr(Stdio::null());
        }
        if let Some(program) = fence {
            command.arg("--fence").arg(program);
        }
        command.arg("--").arg(&self.device).stdin(Stdio::piped()).stdout(Stdio::piped());
        // What is typed at the terminal is for the mount, which then lets go of its server.
        let mut child = command.process_group(0).spawn()?;
        let stdin = child.stdin.take().expect("it was asked for");
        let stdout = child.stdout.take().expect("it was asked for");
        Ok((child, stdin, stdout))
    }
}

/// Hears what servers say, and starts them again, until the mount has left and the last has ended.
fn look_after(shared: &Shared, mut child: Child, mut stdout: ChildStdout) {
    let mut pause = PAUSE;
    loop {
        let was_ready = hear(shared, stdout);
        let status = child.wait();
        let stand = shared.lock().stand.clone();
        if matches!(stand, Stand::Starting | Stand::Failed(_)) {
            let status = status.map_or("unknown".to_owned(), |status| status.to_string());
            let what =
                format!("the server of slot {} has ended: {status}", shared.recipe.settings.slot);
            if stand == Stand::Starting {
                shared.stands(Stand::Failed(what));
            }
            return;
        }
        pause = if was_ready { PAUSE } else { (pause * 2).min(PAUSE_MAX) };
        match shared.start_again(pause) {
            Some(next) => (child, stdout) = next,
            None => {
                shared.stands(Stand::Over);
                return;
            }
        }
    }
}

/// Hears a server until it closes its standard output; whether it took part.
fn hear(shared: &Shared, stdout: ChildStdout) -> bool {
    let mut was_ready = false;
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        if line == READY {
            was_ready = true;
            shared.stands(Stand::Ready);
        } else if line == STAYS {
            shared.stands(Stand::Stays);
        } else if let Some(why) = line.strip_prefix(FAILED) {
            let first = shared.lock().stand == Stand::Starting;
            match first {
                true => shared.stands(Stand::Failed(why.to_owned())),
                false => tell(why),
            }
        }
    }
    was_ready
}

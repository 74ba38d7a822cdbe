//! The program as a process, for tests of what people run.
#![allow(dead_code, reason = "each test uses some of it")]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longer than anything takes on a machine that does other things as well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// How often what is waited for is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// The program, built first: cargo builds only the programs of the package that is tested.
pub(crate) fn program() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let test = std::env::current_exe().unwrap();
        let target = test.parent().and_then(Path::parent).unwrap();
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--package", "outrider-hosted", "--bin", "outrider"]);
        cargo.arg("--target-dir").arg(target.parent().unwrap());
        if target.ends_with("release") {
            cargo.arg("--release");
        }
        cargo.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        assert!(cargo.status().unwrap().success(), "the program can't be built");
        target.join("outrider")
    })
}

/// A directory in memory if possible: a lease is short, and a busy disk's flush is not.
pub(crate) fn memory_dir() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

/// A port of this host that nobody uses, and that the system gives to nobody who leaves the choice
/// to it, as everybody who connects to something does.
pub(crate) fn unused_port() -> u16 {
    const PORTS: Range<u16> = 10_000..32_000;
    static ASKED: AtomicU16 = AtomicU16::new(0);
    // Processes that run side by side look in different places.
    let first = std::process::id().wrapping_mul(61);
    let asked = || first.wrapping_add(ASKED.fetch_add(1, Ordering::Relaxed).into());
    let port = |nth: u32| PORTS.start + (nth % u32::from(PORTS.end - PORTS.start)) as u16;
    let mut ports = PORTS.map(|_| port(asked()));
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}

/// Waits until there is something, and fails when there never is.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited for ever until {what}");
        thread::sleep(LOOK);
    }
}

/// A process that ends with this, whatever comes.
pub(crate) struct Process {
    child: Child,
    /// What it says goes somewhere as long as this lives.
    lines: Receiver<String>,
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> Process {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let (told, lines) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        thread::spawn(move || {
            for line in stderr.lines() {
                // It must be able to speak, though nobody listens.
                let _ = told.send(line.unwrap());
            }
        });
        Process { child, lines }
    }

    /// Waits for a line that says this.
    pub(crate) fn hear(&mut self, what: &str) -> String {
        self.hear_all(what).pop().expect("the last line says it")
    }

    /// The same, with all the lines before.
    pub(crate) fn hear_all(&mut self, what: &str) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut said = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            said.push(line.unwrap_or_else(|_| panic!("it never said {what:?}")));
            if said.last().is_some_and(|line| line.contains(what)) {
                return said;
            }
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end.
    pub(crate) fn end(&mut self) -> ExitStatus {
        let child = &mut self.child;
        until("it ends", || child.try_wait().unwrap())
    }

    /// Kills it, if it hasn't ended yet.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Ends it in order, as a signal has it.
    pub(crate) fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = self.end();
        // What it has started may live on, and speak.
        let said: Vec<String> = self.lines.try_iter().collect();
        assert!(status.success(), "{status}: {said:#?}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

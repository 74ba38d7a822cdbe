//! One process of a cluster: started, shown, and ended.
//!
//! * What it prints is shown line by line, with its name in front, until it has closed its output.
//! * It has a process group of its own, so that Ctrl-C reaches only who then ends it in order.
//! * It is told to end when the thread that started it ends, whatever ends that.
//! * It is ended by its handle, asked first, killed when it has not ended in time.

use crate::decode::Decoder;
use crate::tools::{Failure, find};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How often something that can't be waited for is looked at.
pub(crate) const LOOK: Duration = Duration::from_millis(20);
/// What a guest and a program say when they listen.
const LISTENING: [&str; 2] = ["INFO listening", "listens at"];
/// Counts who said that, and when, in the order of saying.
static SAID: AtomicU64 = AtomicU64::new(0);
/// Time for the last lines of a process that has ended.
const LAST_LINES: Duration = Duration::from_secs(2);

/// What a process prints.
pub(crate) enum Output {
    /// Lines.
    Lines,
    /// Lines, and log frames of an image.
    Frames(Box<Decoder>),
}

/// How a process is asked to end.
pub(crate) enum Farewell {
    /// With SIGTERM.
    Signal,
    /// With this byte on its standard input.
    Byte(u8),
}

/// A process that was started.
pub(crate) struct Process {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    farewell: Farewell,
    readers: Vec<JoinHandle<()>>,
    /// When it said last that it listens, by that count; 0 if it never did.
    listening: Arc<AtomicU64>,
}

impl Process {
    /// Starts it.
    pub(crate) fn start(
        name: &str,
        command: &Command,
        output: Output,
        farewell: Farewell,
    ) -> Result<Process, Failure> {
        let fail = |error| Failure(format!("{name} can't be started: {error}"));
        let mut command = bound_to_us(command);
        command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.stdin(match farewell {
            Farewell::Signal => Stdio::null(),
            Farewell::Byte(_) => Stdio::piped(),
        });
        let mut child = command.spawn().map_err(fail)?;
        let stdin = child.stdin.take();
        let listening = Arc::new(AtomicU64::new(0));
        let mut readers = Vec::new();
        let shower = |output| Shower { name: name.into(), output, listening: listening.clone() };
        if let Some(stdout) = child.stdout.take() {
            let shower = shower(output);
            readers.push(thread::spawn(move || shower.show_all(stdout)));
        }
        if let Some(stderr) = child.stderr.take() {
            let shower = shower(Output::Lines);
            readers.push(thread::spawn(move || shower.show_all(stderr)));
        }
        let name = name.to_owned();
        Ok(Process { name, child, stdin, farewell, readers, listening })
    }

    /// What it is called.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it ever said that it is listening.
    pub(crate) fn is_listening(&self) -> bool {
        self.listening() > 0
    }

    /// When it said so last, compared with others: the largest number is the latest.
    pub(crate) fn listening(&self) -> u64 {
        self.listening.load(Ordering::Relaxed)
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        // An error would mean that it is not ours.
        self.child.try_wait().ok().flatten()
    }

    /// Asks it to end, and kills it when it has not ended in time. How it ended.
    pub(crate) fn end(mut self, patience: Duration) -> Option<ExitStatus> {
        if self.ended().is_none() {
            self.ask();
        }
        self.wait_or_kill(patience)
    }

    /// Waits until it ends, and kills it when it has not ended in time.
    pub(crate) fn wait_or_kill(mut self, patience: Duration) -> Option<ExitStatus> {
        let status = until(patience, || self.ended());
        if status.is_none() {
            eprintln!("xtask: {} has not ended for {patience:?}, and is killed", self.name);
            self.kill();
        }
        let status = status.or_else(|| self.child.wait().ok());
        until(LAST_LINES, || self.readers.iter().all(JoinHandle::is_finished).then_some(()));
        status
    }

    /// Asks it to end.
    pub(crate) fn ask(&mut self) {
        // Who can't be asked has ended, or is killed in the end.
        match self.farewell {
            Farewell::Signal => {
                if let Ok(raw) = i32::try_from(self.pid())
                    && let Some(pid) = Pid::from_raw(raw)
                {
                    let _ = kill_process(pid, Signal::TERM);
                }
            }
            Farewell::Byte(byte) => {
                if let Some(stdin) = &mut self.stdin {
                    let _ = stdin.write_all(&[byte]);
                }
            }
        }
    }

    /// Kills it, even when it is stopped.
    pub(crate) fn kill(&mut self) {
        // Fails only when it has ended already.
        let _ = self.child.kill();
    }

    /// Whether it is stopped, by a signal or a debugger.
    pub(crate) fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()));
        // The state follows the name, which may hold anything.
        let state = stat.ok().and_then(|stat| {
            let (_, rest) = stat.rsplit_once(')')?;
            rest.trim_start().chars().next()
        });
        matches!(state, Some('T' | 't'))
    }
}

/// The command, under util-linux's setpriv where that is: the process gets SIGTERM when the thread
/// that started it is gone. The process itself is still the command's.
fn bound_to_us(command: &Command) -> Command {
    let Some(setpriv) = find("setpriv") else {
        let mut same = Command::new(command.get_program());
        same.args(command.get_args());
        return same;
    };
    let mut bound = Command::new(setpriv);
    bound.args(["--pdeathsig", "TERM", "--"]).arg(command.get_program()).args(command.get_args());
    bound
}

/// Shows what a process prints.
struct Shower {
    name: String,
    output: Output,
    listening: Arc<AtomicU64>,
}

impl Shower {
    fn show_all(self, mut from: impl Read) {
        let Shower { name, output, listening } = self;
        let show = |line: &str| {
            if LISTENING.iter().any(|said| line.contains(said)) {
                listening.store(SAID.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            }
            // Whoever read it has gone; the process shall go on.
            let _ = writeln!(std::io::stdout(), "{name}: {line}");
        };
        match output {
            Output::Lines => {
                let lines = BufReader::new(from).split(b'\n').map_while(Result::ok);
                lines.for_each(|line| show(&String::from_utf8_lossy(&line)));
            }
            Output::Frames(mut decoder) => {
                let mut bytes = [0; 4096];
                while let Ok(len @ 1..) = from.read(&mut bytes) {
                    decoder.take(&bytes[..len]).iter().for_each(|line| show(line));
                }
            }
        }
    }
}

/// Looks for something until it is there, or time is up.
pub(crate) fn until<T>(patience: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::{Farewell, Output, Process, until};
    use std::process::Command;
    use std::time::Duration;

    fn shell(script: &str, farewell: Farewell) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Process::start("test", &command, Output::Lines, farewell).unwrap()
    }

    #[test]
    fn it_ends_when_asked_or_is_killed() {
        const SOON: Duration = Duration::from_secs(20);
        let asked = shell("read line; exit 7", Farewell::Byte(b'\n'));
        assert_eq!(asked.end(SOON).unwrap().code(), Some(7));
        let mut deaf =
            shell("trap '' TERM; echo it listens at once; sleep 60 & wait", Farewell::Signal);
        until(SOON, || deaf.is_listening().then_some(())).unwrap();
        assert!(deaf.ended().is_none());
        assert_eq!(deaf.end(Duration::from_millis(50)).unwrap().code(), None);
    }
}

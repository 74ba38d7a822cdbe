//! A process that stands beside a node, kills it when its lease is over and it doesn't say that it
//! has stopped acting, and knows when it has ended.
//!
//! ```text
//!   node                         pipe              witness
//!   Witness::report(Report) -----------------> deadline
//!                                                 | a later report   | the deadline passes
//!                                                 v                  v
//!                                              next deadline      SIGKILL
//!                                                                    | pidfd: it has ended
//!                                                                    v
//!                                                                  tells, ends
//!
//!   Witness::name(Name) ---------------------> name                   | of a mount
//!   Witness::left() -------------------------> none                   v that has not left
//!                                                                  its name
//! ```
//!
//! No process can see that it is about to be stopped, between a look at its clock and the write
//! that the look allowed. What it does when it goes on, an hour later, is as if it were still the
//! leader, or still had its locks. For metadata that is harmless by design. The witness is for the
//! rest: that an old leader, stopped and woken, tells anybody anything, or that an old mount
//! answers what it had read, or writes into a file that is another's by now.
//!
//! # What it gives
//!
//! * A node that is stopped (SIGSTOP, a debugger, the freezer), stuck, or starved, and therefore
//!   doesn't report in time, is killed a while after the lease that it reported last: a server
//!   [`grace`] later, before another may lead; a mount [`mount_grace`] later, before another may
//!   have its locks. SIGKILL
//!   ends what is stopped, and after the process has ended nothing of it is submitted or answered
//!   any more: transfers that the system had already begun are over by then. A node reports a lease
//!   before it acts under it.
//! * A node that reports itself suspended while transfers are under way has
//!   [`SUSPENDED_FOR`] to see them end. A slow device is no reason to kill it; one that hangs
//!   for longer is, so that whoever restarts servers does so. A mount repeats that report as long
//!   as it lives: to kill it would not end a transfer that hangs, and would lose what it keeps.
//! * The end of a process that was killed is told on standard error. It is also proven to whoever
//!   starts in its slot on this host, by the lock on the slot, and by that one's first write to the
//!   other voters.
//! * When a mount has ended that had a name among the clients and has not left, whatever has ended
//!   it, [`watch`] gives that name: nothing of it is under way any more, which is proof for the
//!   leader.
//!
//! # What it doesn't give
//!
//! * If the whole host stands still, the witness does too. It wakes first or second.
//! * If the witness is killed, [`Witness::report`] fails. A server then ends itself in good order;
//!   a mount starts another.
//!
//! What this module deliberately doesn't know: what the node is, and its clockwork; deadlines are
//! absolute times of `CLOCK_BOOTTIME`, which both read.

use crate::clock::BootClock;
use crate::report::tell;
use outrider_core::format::ClientId;
use outrider_hal::{Clock, Instant};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, getppid, pidfd_open, pidfd_send_signal};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

/// The command that is the witness, for the program's own use.
pub const COMMAND: &str = "witness";

/// How long a node that has stopped acting may wait for its transfers.
pub const SUSPENDED_FOR: Duration = Duration::from_secs(60);

/// How long after the end of its lease a node may take to say that it has stopped acting. Others
/// take a lease for over a quarter of its length after its end, less what clocks may drift.
#[must_use]
pub fn grace(lease: Duration) -> Duration {
    lease / 10
}

/// The same for a mount. A server gives its locks to others when it has not heard it for a recovery
/// window, which is no shorter counted from when the lease was asked for. So this is most of what
/// lies between the two: a mount that was stopped for less can go on.
#[must_use]
pub fn mount_grace(lease: Duration, recovery: Duration) -> Duration {
    recovery.saturating_sub(lease) * 3 / 4
}

/// How a node stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// It doesn't act, and nothing that it did is under way.
    Quiet,
    /// It may act until then, and will report again soon after at the latest.
    Acting(Instant),
    /// It has stopped acting, and something that it did is still under way.
    Suspended(Instant),
}

/// How servers know a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name {
    /// Its number.
    pub client: ClientId,
    /// What it was given at its start, which no other has.
    pub nonce: [u8; 16],
}

/// What goes through the pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Message {
    Stands(Report),
    Named(Name),
    Left,
}

/// Bytes of a message in the pipe: small enough to be written whole or not at all.
const MESSAGE_BYTES: usize = 32;

impl Message {
    fn to_bytes(self) -> [u8; MESSAGE_BYTES] {
        let (kind, number, nonce) = match self {
            Message::Stands(Report::Quiet) => (0u64, 0, [0; 16]),
            Message::Stands(Report::Acting(until)) => (1, until.0, [0; 16]),
            Message::Stands(Report::Suspended(since)) => (2, since.0, [0; 16]),
            Message::Named(Name { client, nonce }) => (3, client.0, nonce),
            Message::Left => (4, 0, [0; 16]),
        };
        let mut bytes = [0; MESSAGE_BYTES];
        bytes[..8].copy_from_slice(&kind.to_le_bytes());
        bytes[8..16].copy_from_slice(&number.to_le_bytes());
        bytes[16..].copy_from_slice(&nonce);
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Message> {
        let bytes: &[u8; MESSAGE_BYTES] = bytes.try_into().ok()?;
        let (kind, rest) = bytes.split_first_chunk()?;
        let (number, nonce) = rest.split_first_chunk()?;
        let number = u64::from_le_bytes(*number);
        match u64::from_le_bytes(*kind) {
            0 => Some(Message::Stands(Report::Quiet)),
            1 => Some(Message::Stands(Report::Acting(Instant(number)))),
            2 => Some(Message::Stands(Report::Suspended(Instant(number)))),
            3 => {
                let (client, nonce) = (ClientId(number), nonce.try_into().ok()?);
                Some(Message::Named(Name { client, nonce }))
            }
            4 => Some(Message::Left),
            _ => None,
        }
    }
}

impl Report {
    /// When the next report must have come.
    fn deadline(self, grace: Duration) -> Option<Instant> {
        match self {
            Report::Quiet => None,
            Report::Acting(until) => Some(until.plus(grace)),
            Report::Suspended(since) => Some(since.plus(SUSPENDED_FOR)),
        }
    }
}

/// The node's end of the pipe. Without it the witness knows that the node is about to end.
#[derive(Debug)]
pub struct Witness {
    pipe: ChildStdin,
    child: Child,
    last: Report,
    named: bool,
}

impl Witness {
    /// Starts the witness of this process, which may be late by so much. If nobody is to see its
    /// standard error, it tells what it does in the system's log. That of a mount tells the leader
    /// of the volume on this device when the mount has ended.
    ///
    /// # Errors
    ///
    /// If the program can't be started a second time.
    pub fn start(grace: Duration, logs: bool, mount_of: Option<&Path>) -> io::Result<Witness> {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("outrider").arg(COMMAND);
        if logs {
            command.arg("--log").stderr(Stdio::null());
        }
        if let Some(device) = mount_of {
            command.arg("--device").arg(std::path::absolute(device)?);
        }
        let mut child = command
            .arg(std::process::id().to_string())
            .arg(grace.as_millis().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // It is in nobody's way.
            .current_dir("/")
            // What is typed at the terminal is for the node, which then dismisses its witness.
            .process_group(0)
            .spawn()?;
        let pipe = child.stdin.take().expect("it was asked for");
        rustix::fs::fcntl_setfl(&pipe, OFlags::NONBLOCK)?;
        Ok(Witness { pipe, child, last: Report::Quiet, named: false })
    }

    /// Tells how the node stands, if that has changed. Doesn't wait.
    ///
    /// # Errors
    ///
    /// If there is no witness any more, or it has not listened for thousands of reports.
    pub fn report(&mut self, report: Report) -> io::Result<()> {
        if report != self.last {
            self.say(Message::Stands(report))?;
            self.last = report;
        }
        Ok(())
    }

    /// Tells the mount's name, if it was not told yet. Doesn't wait.
    ///
    /// # Errors
    ///
    /// Those of [`report`](Self::report).
    pub fn name(&mut self, name: Name) -> io::Result<()> {
        if !self.named {
            self.say(Message::Named(name))?;
            self.named = true;
        }
        Ok(())
    }

    /// Tells that the mount has left: what becomes of it concerns nobody any more. Doesn't wait.
    ///
    /// # Errors
    ///
    /// Those of [`report`](Self::report).
    pub fn left(&mut self) -> io::Result<()> {
        self.say(Message::Left)
    }

    fn say(&self, message: Message) -> io::Result<()> {
        // It fits whole or not at all.
        rustix::io::write(&self.pipe, &message.to_bytes())?;
        Ok(())
    }

    /// Waits for the end of a witness that doesn't listen any more.
    pub fn bury(mut self) {
        // If it still runs, it is of no use.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

/// Where the witness has got to.
struct Watch {
    node: OwnedFd,
    timer: OwnedFd,
    grace: Duration,
    last: Report,
    name: Option<Name>,
    /// The node holds the other end of the pipe.
    connected: bool,
    killed: bool,
}

/// Is the witness of the process `pid`, which must be the parent: until that has ended. The name of
/// a mount that has not left, and of which nothing is under way any more.
///
/// # Errors
///
/// If that is not the parent, or the system can't watch it. Standard input then ends, and the node
/// learns of it.
pub fn watch(pid: u32, grace: Duration, mut reports: impl Read + AsFd) -> io::Result<Option<Name>> {
    // Whoever stops the node by a signal to all its processes means the node. It ends, and then
    // this does.
    let _signals = crate::signals::Signals::catch()?;
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(ErrorKind::InvalidInput)?;
    let node = pidfd_open(raw, PidfdFlags::empty())?;
    if getppid() != Some(raw) {
        // It ended before it could be watched, and its number may be somebody else's.
        return Err(ErrorKind::NotFound.into());
    }
    let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC)?;
    rustix::fs::fcntl_setfl(&reports, OFlags::NONBLOCK)?;
    let (last, name) = (Report::Quiet, None);
    let mut watch = Watch { node, timer, grace, last, name, connected: true, killed: false };
    while watch.wait(&reports)? {
        watch.read(&mut reports)?;
        watch.judge(pid)?;
    }
    if watch.killed {
        tell(&format!("process {pid} has ended, and with it all that it did"));
    }
    // What it had said last, before anybody looked.
    watch.read(&mut reports)?;
    Ok(watch.name)
}

impl Watch {
    /// Waits for a report, a deadline or the end; whether the process is still there.
    fn wait(&self, reports: &impl AsFd) -> io::Result<bool> {
        let due = self.last.deadline(self.grace).filter(|_| !self.killed);
        // A time of zero disarms it.
        let at = due.map_or(0, |due| due.0.max(1));
        let spec = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec {
                tv_sec: (at / 1_000_000_000).cast_signed(),
                tv_nsec: (at % 1_000_000_000).cast_signed(),
            },
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &spec)?;
        let mut fds =
            vec![PollFd::new(&self.node, PollFlags::IN), PollFd::new(&self.timer, PollFlags::IN)];
        if self.connected {
            fds.push(PollFd::new(reports, PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => Ok(fds[0].revents().is_empty()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes all reports that have come.
    fn read(&mut self, reports: &mut impl Read) -> io::Result<()> {
        let mut bytes = [0; 64 * MESSAGE_BYTES];
        while self.connected {
            match reports.read(&mut bytes) {
                Ok(0) => self.connected = false,
                Ok(len) => {
                    // Each was written whole.
                    for bytes in bytes[..len].chunks(MESSAGE_BYTES) {
                        match Message::from_bytes(bytes).ok_or(ErrorKind::InvalidData)? {
                            Message::Stands(report) => self.last = report,
                            Message::Named(name) => self.name = Some(name),
                            Message::Left => self.name = None,
                        }
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Kills the process if its time is over.
    fn judge(&mut self, pid: u32) -> io::Result<()> {
        let now = BootClock.now();
        let over = self.last.deadline(self.grace).is_some_and(|deadline| deadline <= now);
        if !over || self.killed {
            return Ok(());
        }
        self.killed = true;
        match pidfd_send_signal(&self.node, Signal::KILL) {
            // It has just ended by itself.
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
        tell(&match self.last {
            Report::Quiet => return Ok(()),
            Report::Acting(until) => {
                let ms = now.since(until).as_millis();
                format!(
                    "process {pid} is killed: its lease has been over for {ms} ms, and it didn't \
                     say that it has stopped acting"
                )
            }
            Report::Suspended(since) => {
                let s = now.since(since).as_secs();
                format!(
                    "process {pid} is killed: its lease is over, and its transfers have not ended \
                     for {s} s; see what is wrong with the device"
                )
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Message, Name, Report, SUSPENDED_FOR, grace, mount_grace};
    use outrider_core::client::mount::MountTiming;
    use outrider_core::format::ClientId;
    use outrider_core::quorum::{DRIFT_PERCENT, Timing};
    use outrider_hal::Instant;
    use std::time::Duration;

    #[test]
    fn a_message_is_what_it_was_and_rubbish_is_none() {
        for message in [
            Message::Stands(Report::Quiet),
            Message::Stands(Report::Acting(Instant(7))),
            Message::Stands(Report::Suspended(Instant(1))),
            Message::Named(Name { client: ClientId(3), nonce: *b"drawn at random!" }),
            Message::Left,
        ] {
            assert_eq!(Message::from_bytes(&message.to_bytes()), Some(message));
        }
        for rubbish in [&[0xff; 32][..], &[3; 31], &[0; 31], &[]] {
            assert_eq!(Message::from_bytes(rubbish), None);
        }
    }

    #[test]
    fn who_acts_is_killed_before_another_may_lead() {
        for timing in [Timing::NORMAL, Timing::FAST] {
            let lease = Duration::from_millis(timing.lease_ms.into());
            let killed = Report::Acting(Instant(0).plus(lease)).deadline(grace(lease)).unwrap();
            let slow = Duration::from_nanos(killed.0) * (100 + DRIFT_PERCENT);
            let fast = Duration::from_millis(timing.observe_ms.into()) * (100 - DRIFT_PERCENT);
            assert!(slow < fast, "{timing:?}");
        }
        for seconds in [6, 30, 600] {
            let recovery = Duration::from_secs(seconds);
            let timing = MountTiming::of_recovery(recovery);
            assert!(timing.is_valid());
            let acts = timing.lease + mount_grace(timing.lease, recovery);
            assert!(acts * (100 + DRIFT_PERCENT) < recovery * (100 - DRIFT_PERCENT));
        }
        assert_eq!(Report::Quiet.deadline(Duration::ZERO), None);
        let suspended = Report::Suspended(Instant(5)).deadline(Duration::ZERO);
        assert_eq!(suspended, Some(Instant(5).plus(SUSPENDED_FOR)));
    }
}

//! A process that stands beside a node, and kills it when its lease is over and it doesn't say that
//! it has stopped acting.
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

/// Bytes of a report in the pipe: small enough to be written whole or not at all.
const REPORT_BYTES: usize = 16;

impl Report {
    fn to_bytes(self) -> [u8; REPORT_BYTES] {
        let (kind, at) = match self {
            Report::Quiet => (0u64, Instant(0)),
            Report::Acting(until) => (1, until),
            Report::Suspended(since) => (2, since),
        };
        let mut bytes = [0; REPORT_BYTES];
        bytes[..8].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&at.0.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Report> {
        let (kind, at) = bytes.split_first_chunk()?;
        let at = Instant(u64::from_le_bytes(at.try_into().ok()?));
        match u64::from_le_bytes(*kind) {
            0 => Some(Report::Quiet),
            1 => Some(Report::Acting(at)),
            2 => Some(Report::Suspended(at)),
            _ => None,
        }
    }

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
}

impl Witness {
    /// Starts the witness of this process, which may be late by so much. If nobody is to see its
    /// standard error, it tells what it does in the system's log.
    ///
    /// # Errors
    ///
    /// If the program can't be started a second time.
    pub fn start(grace: Duration, logs: bool) -> io::Result<Witness> {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("outrider").arg(COMMAND);
        if logs {
            command.arg("--log").stderr(Stdio::null());
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
        Ok(Witness { pipe, child, last: Report::Quiet })
    }

    /// Tells how the node stands, if that has changed. Doesn't wait.
    ///
    /// # Errors
    ///
    /// If there is no witness any more, or it has not listened for thousands of reports.
    pub fn report(&mut self, report: Report) -> io::Result<()> {
        if report != self.last {
            // It fits whole or not at all.
            rustix::io::write(&self.pipe, &report.to_bytes())?;
            self.last = report;
        }
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
    /// The node holds the other end of the pipe.
    connected: bool,
    killed: bool,
}

/// Is the witness of the process `pid`, which must be the parent: until that has ended.
///
/// # Errors
///
/// If that is not the parent, or the system can't watch it. Standard input then ends, and the node
/// learns of it.
pub fn watch(pid: u32, grace: Duration, mut reports: impl Read + AsFd) -> io::Result<()> {
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
    let last = Report::Quiet;
    let mut watch = Watch { node, timer, grace, last, connected: true, killed: false };
    while watch.wait(&reports)? {
        watch.read(&mut reports)?;
        watch.judge(pid)?;
    }
    if watch.killed {
        tell(&format!("process {pid} has ended, and with it all that it did"));
    }
    Ok(())
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
        let mut bytes = [0; 64 * REPORT_BYTES];
        while self.connected {
            match reports.read(&mut bytes) {
                Ok(0) => self.connected = false,
                Ok(len) => {
                    // Each was written whole.
                    let newest = bytes[..len].chunks_exact(REPORT_BYTES).next_back();
                    let newest = newest.and_then(Report::from_bytes);
                    self.last = newest.ok_or(ErrorKind::InvalidData)?;
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
    use super::{Report, SUSPENDED_FOR, grace, mount_grace};
    use outrider_core::client::mount::MountTiming;
    use outrider_core::quorum::{DRIFT_PERCENT, Timing};
    use outrider_core::server::ServerTiming;
    use outrider_hal::Instant;
    use std::time::Duration;

    #[test]
    fn a_report_is_what_it_was_and_rubbish_is_none() {
        for report in [Report::Quiet, Report::Acting(Instant(7)), Report::Suspended(Instant(1))] {
            assert_eq!(Report::from_bytes(&report.to_bytes()), Some(report));
        }
        assert_eq!(Report::from_bytes(&[0xff; 16]), None);
        assert_eq!(Report::from_bytes(&[]), None);
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
        let (lease, recovery) = (MountTiming::NORMAL.lease, ServerTiming::NORMAL.recovery);
        let grace = mount_grace(lease, recovery);
        assert!((lease + grace) * (100 + DRIFT_PERCENT) < recovery * (100 - DRIFT_PERCENT));
        assert_eq!(Report::Quiet.deadline(Duration::ZERO), None);
        let suspended = Report::Suspended(Instant(5)).deadline(Duration::ZERO);
        assert_eq!(suspended, Some(Instant(5).plus(SUSPENDED_FOR)));
    }
}

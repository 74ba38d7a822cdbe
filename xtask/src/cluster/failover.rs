//! The benchmark `failover`: how long the users of a mount wait when the leader of three servers,
//! processes or guests, is killed, or stopped in order, and how long it takes from nothing to a
//! mount.
//!
//! What is timed are new files that are written and synced: that needs a commit, and a commit needs
//! a leader. They follow each other without a pause from the signal until one was begun after the
//! leader's end; the longest counts. The same with nothing wrong stands beside it. Nothing is
//! asserted.
//!
//! * A server that was ended is started again at once, and the next one is ended only when leases
//!   have long passed, at another moment of the leader's renewals each time.

use super::mount::Mount;
use super::process::Process;
use super::starter::{Seat, Starter};
use super::volume::{self, Volume};
use super::{Interrupt, Options, STATUS_STOPPED, STOP_PATIENCE, seats};
use crate::guest::Scratch;
use crate::image;
use crate::tools::{FUSERMOUNT, Failure, QEMU, Tools, build_program};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

const SERVERS: u8 = 3;
const KILLS: u32 = 20;
/// Times the whole cluster is started.
const STARTS: u32 = 5;

/// What is measured, and how long it may take.
struct Setting {
    name: &'static str,
    lease: Duration,
    killed_max: Duration,
}

const SETTINGS: [Setting; 2] = [
    Setting { name: "default", lease: Duration::from_secs(1), killed_max: Duration::from_secs(3) },
    Setting { name: "fast", lease: Duration::from_millis(200), killed_max: Duration::from_secs(1) },
];
const STOPPED_MAX: Duration = Duration::from_millis(200);
const STARTED_MAX: Duration = Duration::from_secs(2);

/// Measures, and prints what came of it.
pub(crate) fn run(tools: &Tools, options: &[String]) -> Result<(), Failure> {
    let Choice { kills, qemu } = Choice::parse(options)?;
    for (tool, needed) in [(&FUSERMOUNT, true), (&QEMU, qemu)] {
        if needed && !tools.have(tool) {
            return Err(Failure(format!("{} is needed", tool.program)));
        }
    }
    let image = if qemu { Some(image::build()?) } else { None };
    let outrider = build_program(true)?;
    let interrupt = Interrupt::catch()?;
    let scratch = Scratch::in_memory("failover").map_err(Failure)?;
    let mut report = vec![format!(
        "failover: {SERVERS} {}, one mount, the volume in {}; a file written and synced",
        if qemu { "guests" } else { "servers" },
        scratch.0.display()
    )];
    // Where others keep the processors busy, times say little.
    let load = || fs::read_to_string("/proc/loadavg").unwrap_or_default();
    report.push(format!("  load of the machine before: {}", load().trim_end()));
    // Guests on an emulator are too slow for leases that suit processes.
    let settings = if qemu { &SETTINGS[..1] } else { &SETTINGS[..] };
    for setting in settings {
        let dir = scratch.0.join(setting.name);
        fs::create_dir(&dir).map_err(|error| Failure(format!("{}: {error}", dir.display())))?;
        let mut rig = Rig::new(setting, &outrider, &dir, image.as_deref(), &interrupt, &scratch)?;
        measure(setting, &mut rig, kills, &mut report)?;
    }
    report.push(format!("  and after: {}", load().trim_end()));
    for line in report {
        println!("{line}");
    }
    Ok(())
}

/// What is asked for.
struct Choice {
    kills: u32,
    qemu: bool,
}

impl Choice {
    fn parse(options: &[String]) -> Result<Choice, Failure> {
        let mut choice = Choice { kills: KILLS, qemu: false };
        let mut options = options.iter();
        while let Some(option) = options.next() {
            match option.as_str() {
                "--qemu" => choice.qemu = true,
                "--kills" => {
                    let count = options.next().and_then(|count| count.parse().ok());
                    let count = count.filter(|count| *count > 0);
                    choice.kills = count.ok_or_else(|| Failure::new("--kills takes a number"))?;
                }
                _ => return Err(Failure::new("failover takes --kills N, --qemu, nothing else")),
            }
        }
        Ok(choice)
    }
}

fn measure(
    setting: &Setting,
    rig: &mut Rig,
    kills: u32,
    report: &mut Vec<String>,
) -> Result<(), Failure> {
    let mut started = Vec::new();
    for start in 0..STARTS {
        started.push(rig.start()?);
        if start + 1 < STARTS {
            rig.stop()?;
        }
    }
    let (mut well, mut killed, mut stopped) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..kills {
        rig.settle(round)?;
        well.push(rig.write()?);
        killed.push(rig.end_leader(Process::kill)?);
        rig.settle(round)?;
        stopped.push(rig.end_leader(Process::ask)?);
    }
    rig.stop()?;
    let lease_ms = setting.lease.as_millis();
    report.push(format!("  {}: leases of {lease_ms} ms, {kills} rounds", setting.name));
    report.push(row("nothing is wrong", well, None));
    report.push(row("the leader is killed", killed, Some(setting.killed_max)));
    report.push(row("the leader is stopped", stopped, Some(STOPPED_MAX)));
    report.push(row("from nothing to mounted", started, Some(STARTED_MAX)));
    report.push(format!("    servers that ended by themselves: {}", rig.died));
    Ok(())
}

fn row(what: &str, mut times: Vec<Duration>, wanted: Option<Duration>) -> String {
    times.sort_unstable();
    let (middle, most) = (times[times.len() / 2].as_millis(), times[times.len() - 1].as_millis());
    let wanted = wanted.map_or(String::new(), |wanted| {
        let missed = times.iter().filter(|time| **time >= wanted).count();
        format!(", below {} ms wanted, missed {missed} of {}", wanted.as_millis(), times.len())
    });
    format!("    {what:<26} p50 {middle:>5} ms, max {most:>5} ms{wanted}")
}

struct Server {
    seat: Seat,
    process: Process,
}

/// The cluster that is measured. Its processes end with this, in order if they can.
struct Rig {
    outrider: PathBuf,
    volume: Volume,
    starter: Starter,
    seats: Vec<Seat>,
    dir: PathBuf,
    lease: Duration,
    interrupt: Interrupt,
    servers: Vec<Server>,
    mount: Option<Mount>,
    files: u32,
    mounts: u32,
    /// Servers that ended and were not told to: their witness killed them, for they were not let
    /// run for as long as a lease.
    died: u32,
}

impl Rig {
    /// A new volume in a directory; servers are guests, if there is an image.
    fn new(
        setting: &Setting,
        outrider: &Path,
        dir: &Path,
        image: Option<&Path>,
        interrupt: &Interrupt,
        scratch: &Scratch,
    ) -> Result<Rig, Failure> {
        let path = dir.join("volume");
        let lease_ms = setting.lease.as_millis().to_string();
        volume::make(outrider, &path, "1G", SERVERS, &["--lease-ms", &lease_ms])?;
        let volume = Volume::prepare(outrider, &path, "1G", SERVERS)?;
        let starter = match image {
            Some(image) => {
                let options = Options::for_command(String::new());
                Starter::guests(image.to_path_buf(), &volume, &options, scratch)?
            }
            None => Starter::Hosted,
        };
        let (seats, _) = seats(&volume, SERVERS, dir, false)?;
        Ok(Rig {
            outrider: outrider.to_path_buf(),
            volume,
            starter,
            seats,
            dir: dir.to_path_buf(),
            lease: setting.lease,
            interrupt: interrupt.clone(),
            servers: Vec::new(),
            mount: None,
            files: 0,
            mounts: 0,
            died: 0,
        })
    }

    /// Starts everything at once; how long it took until the mount was there.
    fn start(&mut self) -> Result<Duration, Failure> {
        let began = Instant::now();
        for seat in self.seats.clone() {
            let server = self.server(seat)?;
            self.servers.push(server);
        }
        self.mounts += 1;
        let dir = self.dir.join(format!("mnt{}", self.mounts));
        let mount = Mount::start("mount", &self.outrider, &self.volume.path, dir, None)?;
        let interrupt = self.interrupt.clone();
        self.mount.insert(mount).wait(|| interrupt.came())?;
        Ok(began.elapsed())
    }

    fn server(&self, seat: Seat) -> Result<Server, Failure> {
        let process = self.starter.start(&self.outrider, &self.volume, &seat)?;
        Ok(Server { seat, process })
    }

    /// Ends everything in order.
    fn stop(&mut self) -> Result<(), Failure> {
        let mut in_order = self.mount.take().is_none_or(Mount::end);
        let expected = if self.starter.is_guests() { STATUS_STOPPED } else { 0 };
        for mut server in self.servers.drain(..) {
            if server.process.ended().is_some() {
                self.died += 1;
                continue;
            }
            let status = server.process.end(STOP_PATIENCE).and_then(|status| status.code());
            in_order &= status == Some(expected);
        }
        if in_order { Ok(()) } else { Err(Failure::new("the cluster did not stop in order")) }
    }

    /// Lets leases pass, and a part of another one, with all servers running.
    fn settle(&mut self, round: u32) -> Result<(), Failure> {
        for at in 0..self.servers.len() {
            if self.servers[at].process.ended().is_some() {
                self.died += 1;
                self.servers[at] = self.server(self.servers[at].seat.clone())?;
            }
        }
        let part = self.lease * (round * 37 % 100) / 100;
        thread::sleep(self.lease * 2 + Duration::from_millis(500) + part);
        Ok(())
    }

    /// How long it takes to write and sync a file.
    fn write(&mut self) -> Result<Duration, Failure> {
        if self.interrupt.came() {
            return Err(Failure::new("interrupted"));
        }
        self.files += 1;
        let mount = self.mount.as_ref().ok_or_else(|| Failure::new("nothing is mounted"))?;
        let path = mount.dir.join(format!("file{}", self.files));
        let began = Instant::now();
        let written = File::create(&path).and_then(|mut file| {
            file.write_all(b"it is there")?;
            file.sync_all()
        });
        written.map_err(|error| Failure(format!("{}: {error}", path.display())))?;
        Ok(began.elapsed())
    }

    /// Ends the leader and starts it again; the longest that a file took meanwhile, of those that
    /// were written one after the other until one was begun after the leader's end.
    fn end_leader(&mut self, end: impl FnOnce(&mut Process)) -> Result<Duration, Failure> {
        // Leases have passed: whoever said it last has said it.
        let by_time = |server: &Server| server.process.listening();
        let leader = (0..self.servers.len()).max_by_key(|at| by_time(&self.servers[*at]));
        let mut server = self.servers.remove(leader.ok_or_else(|| Failure::new("no servers"))?);
        end(&mut server.process);
        let mut longest = Duration::ZERO;
        loop {
            let ended = server.process.ended().is_some();
            longest = longest.max(self.write()?);
            if ended {
                break;
            }
        }
        server.process.wait_or_kill(STOP_PATIENCE);
        let again = self.server(server.seat)?;
        self.servers.push(again);
        Ok(longest)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // It fails only after something else has.
        let _ = self.stop();
    }
}

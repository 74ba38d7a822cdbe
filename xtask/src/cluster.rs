//! A cluster on this machine: servers, mounts of their volume, and a command that uses them.
//!
//! ```text
//!   build -> volume -> servers -> one listens -> mounts -> command, or until Ctrl-C
//!         -> unmount -> stop the servers -> remove the directories
//! ```
//!
//! # Invariants
//!
//! * However it ends, what was started is unmounted, stopped and removed, in this order, each in
//!   bounded time.
//! * Only processes that were started here are ended, by their handles.
//! * A guest's process that is stopped for longer than a lease is killed: nobody knows how long ago
//!   what it does next was decided. This sees signals and debuggers, and not a guest that is paused
//!   through QEMU's monitor or held up by a busy machine.

pub(crate) mod failover;
mod faults;
pub(crate) mod idle;
mod mount;
mod process;
mod starter;
mod volume;
mod wire;

use crate::guest::{MEMORY, Machine, Scratch};
use crate::image;
use crate::tools::{FUSERMOUNT, Failure, QEMU, Tools, build_program, free_ports, succeed};
use faults::Faults;
pub(crate) use faults::Plan;
use mount::Mount;
use process::{LOOK, Process, until};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use starter::{Seat, Starter};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use volume::Volume;
use wire::Wire;

/// Time for the first server to listen.
const LISTEN: Duration = Duration::from_secs(120);
/// Time for a server to stop in order.
const STOP_PATIENCE: Duration = Duration::from_secs(20);
/// Time for the command to end after it was asked to.
const COMMAND_PATIENCE: Duration = Duration::from_secs(10);
/// How long a guest's process may be stopped: a leader's lease.
const STOPPED_MAX: Duration = Duration::from_secs(1);
/// How often processes are looked at.
const WATCH: Duration = Duration::from_millis(200);
/// A server that has died is started again after this.
const RESTART: Duration = Duration::from_secs(1);
/// Status of a process that was interrupted, as shells have it.
const INTERRUPTED: u8 = 130;
/// QEMU's status when the image was stopped in order.
const STATUS_STOPPED: i32 = 33;

/// What servers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The image, on QEMU.
    Qemu,
    /// The program.
    Hosted,
}

/// How guests are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum AccelChoice {
    /// KVM, if a guest really starts with it, else TCG.
    Auto,
    /// The processor, through the kernel.
    Kvm,
    /// QEMU's emulator.
    Tcg,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Servers, in slots 0, 1, ...
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u8).range(1..=7))]
    slots: u8,
    /// Mounts.
    #[arg(long, value_name = "N", default_value_t = 1)]
    mounts: u16,
    /// So many of the mounts are voters too, in the slots after those of the servers.
    #[arg(long, value_name = "N", default_value_t = 0)]
    voting: u8,
    /// The volume: a block device or a file, made if there is none. Without this one is made for
    /// this run.
    #[arg(long, value_name = "FILE")]
    volume: Option<PathBuf>,
    /// Size of a volume that is made, with K, M, G or T.
    #[arg(long, default_value = "8G")]
    size: String,
    /// The guests' machine.
    #[arg(long, value_enum, default_value_t = Machine::Microvm)]
    machine: Machine,
    /// How guests are run.
    #[arg(long, value_enum, default_value_t = AccelChoice::Auto)]
    accel: AccelChoice,
    /// The guests' memory.
    #[arg(long, default_value = MEMORY)]
    memory: String,
    /// Run this with sh, with MNT (the first mount), MNT0, MNT1, ..., VOLUME, OUTRIDER (the
    /// program), NODE0, ... (the servers' process ids) in its environment; then end with its
    /// status. Else all stays until Ctrl-C.
    #[arg(long, value_name = "COMMAND")]
    run: Option<String>,
    /// Start servers that die again. Their process ids then differ from NODE0, ...
    #[arg(long)]
    restart: bool,
    /// Build the program without optimisation.
    #[arg(long)]
    dev: bool,
}

impl Options {
    /// One server and one mount of a volume of their own, for a command.
    pub(crate) fn for_command(run: String) -> Options {
        Options {
            slots: 1,
            mounts: 1,
            voting: 0,
            volume: None,
            size: "1G".to_owned(),
            machine: Machine::Microvm,
            accel: AccelChoice::Auto,
            memory: MEMORY.to_owned(),
            run: Some(run),
            restart: false,
            dev: false,
        }
    }

    /// The same with these servers, and these mounts, of which some are voters; servers that die
    /// are started again.
    pub(crate) fn with(self, slots: u8, mounts: u16, voting: u8, machine: Machine) -> Options {
        Options { slots, mounts, voting, machine, restart: true, ..self }
    }

    /// The same, with or without an optimised program.
    pub(crate) fn built(self, dev: bool) -> Options {
        Options { dev, ..self }
    }

    /// The same with so many mounts of a volume of this size.
    pub(crate) fn on(self, mounts: u16, size: &str) -> Options {
        Options { mounts, size: size.to_owned(), ..self }
    }

    /// The same with the program built without optimisation, if so.
    pub(crate) fn built_for(self, dev: bool) -> Options {
        Options { dev, ..self }
    }
}

/// Whether somebody wants all this to end.
#[derive(Clone)]
struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    fn catch() -> Result<Interrupt, Failure> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&flag))
                .map_err(|error| Failure(format!("signals can't be caught: {error}")))?;
        }
        Ok(Interrupt(flag))
    }

    fn came(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Runs a cluster; the status to end with.
pub(crate) fn run(kind: Kind, tools: &Tools, options: &Options) -> Result<u8, Failure> {
    run_under(kind, tools, options, None)
}

/// The same while something goes wrong with its voters. Then the volume is checked, too.
pub(crate) fn run_under(
    kind: Kind,
    tools: &Tools,
    options: &Options,
    plan: Option<Plan>,
) -> Result<u8, Failure> {
    let needs = [(&QEMU, kind == Kind::Qemu), (&FUSERMOUNT, options.mounts > 0)];
    for (tool, needed) in needs {
        if needed && !tools.have(tool) {
            return Err(Failure(format!("{} is needed", tool.program)));
        }
    }
    let outrider = build_program(options.dev)?;
    let image = match kind {
        Kind::Qemu => Some(image::build()?),
        Kind::Hosted => None,
    };
    let interrupt = Interrupt::catch()?;
    let scratch = Scratch::new("cluster").map_err(Failure)?;
    let path = options.volume.clone().unwrap_or_else(|| scratch.0.join("volume"));
    let voters = options.slots + options.voting;
    let volume = Volume::prepare(&outrider, &path, &options.size, voters)?;
    let starter = match image {
        Some(image) => Starter::guests(image, &volume, options, &scratch)?,
        None => Starter::Hosted,
    };
    let (seats, wires) = seats(&volume, options.slots, &scratch.0, plan.is_some())?;
    let mut cluster = Cluster {
        options,
        outrider,
        volume,
        starter,
        interrupt,
        servers: Vec::new(),
        mounts: Vec::new(),
        faults: plan.map(|plan| Faults::new(plan, wires)),
        watched: Instant::now(),
    };
    let outcome = cluster.start(seats, &scratch.0).and_then(|()| cluster.work());
    let in_order = cluster.tear_down();
    let outcome = outcome.and_then(|status| cluster.account().map(|()| status));
    match outcome {
        Ok(0) if !in_order => Err(Failure::new("the cluster did not stop in order")),
        Err(_) if cluster.interrupt.came() => Ok(INTERRUPTED),
        outcome => outcome,
    }
}

/// Where servers are; behind wires that can be cut, or at once where the volume says.
fn seats(
    volume: &Volume,
    slots: u8,
    scratch: &Path,
    wired: bool,
) -> Result<(Vec<Seat>, Vec<Wire>), Failure> {
    let ports = free_ports(slots.into())?;
    let (mut seats, mut wires) = (Vec::new(), Vec::new());
    for (slot, port) in (0..slots).zip(ports) {
        let mut at = volume.voters[usize::from(slot)];
        if wired {
            let behind = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            wires.push(Wire::new(at, behind)?);
            at = behind;
        }
        seats.push(Seat { slot, at, control: scratch.join(format!("monitor{slot}")) });
    }
    Ok((seats, wires))
}

/// A server's slot, and who is in it.
struct Server {
    seat: Seat,
    process: Option<Process>,
    pid: u32,
    stopped_since: Option<Instant>,
    restart_at: Option<Instant>,
}

/// What was started.
struct Cluster<'a> {
    options: &'a Options,
    outrider: PathBuf,
    volume: Volume,
    starter: Starter,
    interrupt: Interrupt,
    servers: Vec<Server>,
    mounts: Vec<Mount>,
    faults: Option<Faults>,
    watched: Instant,
}

impl Cluster<'_> {
    fn start(&mut self, seats: Vec<Seat>, scratch: &Path) -> Result<(), Failure> {
        for seat in seats {
            let process = self.starter.start(&self.outrider, &self.volume, &seat)?;
            let pid = process.pid();
            let process = Some(process);
            self.servers.push(Server { seat, process, pid, stopped_since: None, restart_at: None });
        }
        self.wait_for_leader()?;
        let slots = u16::from(self.options.slots);
        for number in 0..self.options.mounts {
            let (name, dir) = (format!("mount {number}"), scratch.join(format!("mnt{number}")));
            let slot = (number < self.options.voting.into()).then_some(slots + number);
            let slot = slot.and_then(|slot| u8::try_from(slot).ok());
            let mount = Mount::start(&name, &self.outrider, &self.volume.path, dir, slot)?;
            self.mounts.push(mount);
        }
        let interrupt = self.interrupt.clone();
        self.mounts.iter_mut().try_for_each(|mount| mount.wait(|| interrupt.came()))
    }

    fn wait_for_leader(&mut self) -> Result<(), Failure> {
        let outcome = until(LISTEN, || {
            if self.interrupt.came() {
                return Some(Err(Failure::new("interrupted")));
            }
            for server in &mut self.servers {
                let process = server.process.as_mut()?;
                if let Some(status) = process.ended() {
                    let what = format!("{} ended: {status}", process.name());
                    return Some(Err(Failure(what)));
                }
            }
            let mut processes = self.servers.iter().filter_map(|server| server.process.as_ref());
            processes.any(Process::is_listening).then_some(Ok(()))
        });
        outcome.unwrap_or_else(|| {
            Err(Failure(format!("no server listened for {LISTEN:?}; see what they say above")))
        })
    }

    /// Runs the command, or waits; the status to end with.
    fn work(&mut self) -> Result<u8, Failure> {
        let Some(line) = &self.options.run else {
            for mount in &self.mounts {
                eprintln!("xtask: mounted at {}", mount.dir.display());
            }
            eprintln!("xtask: Ctrl-C ends it");
            while !self.interrupt.came() {
                self.watch();
                thread::sleep(LOOK);
            }
            return Ok(0);
        };
        let mut command = Command::new("sh");
        command.arg("-c").arg(line);
        for (number, mount) in self.mounts.iter().enumerate() {
            command.env(format!("MNT{number}"), &mount.dir);
        }
        if let Some(first) = self.mounts.first() {
            command.env("MNT", &first.dir);
        }
        for server in &self.servers {
            command.env(format!("NODE{}", server.seat.slot), server.pid.to_string());
        }
        command.env("VOLUME", &self.volume.path).env("OUTRIDER", &self.outrider);
        let mut child =
            command.spawn().map_err(|error| Failure(format!("sh can't be run: {error}")))?;
        loop {
            if let Some(status) = child.try_wait().map_err(Failure::new)? {
                return Ok(shell_status(status));
            }
            if self.interrupt.came() {
                end_command(child);
                return Ok(INTERRUPTED);
            }
            self.watch();
            if let Some(faults) = &mut self.faults {
                faults.tick(&mut self.servers, &self.mounts, self.starter.is_guests());
            }
            thread::sleep(LOOK);
        }
    }

    /// Looks after what runs.
    fn watch(&mut self) {
        if self.watched.elapsed() < WATCH {
            return;
        }
        self.watched = Instant::now();
        for mount in &mut self.mounts {
            if let Some((name, status)) = mount.lost() {
                eprintln!("xtask: {name} has ended: {status}");
            }
        }
        for index in 0..self.servers.len() {
            self.watch_server(index);
        }
    }

    fn watch_server(&mut self, index: usize) {
        let is_guest = self.starter.is_guests();
        let server = &mut self.servers[index];
        if let Some(process) = &mut server.process {
            if let Some(status) = process.ended() {
                eprintln!("xtask: {} has ended: {status}", process.name());
                server.process = None;
                server.restart_at = self.options.restart.then(|| Instant::now() + RESTART);
            } else if is_guest && process.is_stopped() {
                let since = *server.stopped_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= STOPPED_MAX {
                    eprintln!("xtask: {} is stopped for a lease, and is killed", process.name());
                    process.kill();
                }
            } else {
                server.stopped_since = None;
            }
        } else if server.restart_at.is_some_and(|at| at <= Instant::now()) {
            let started = self.starter.start(&self.outrider, &self.volume, &server.seat);
            let server = &mut self.servers[index];
            match started {
                Ok(process) => {
                    (server.process, server.restart_at) = (Some(process), None);
                }
                Err(failure) => {
                    eprintln!("xtask: {failure}");
                    server.restart_at = Some(Instant::now() + RESTART);
                }
            }
        }
    }

    /// What went wrong, and that nothing is wrong with the volume for all that.
    fn account(&self) -> Result<(), Failure> {
        let Some(faults) = &self.faults else { return Ok(()) };
        println!("torture: {faults}");
        succeed("outrider check", Command::new(&self.outrider).arg("check").arg(&self.volume.path))
    }

    /// Ends all that runs. `false` when something had to be forced.
    fn tear_down(&mut self) -> bool {
        if let Some(faults) = &mut self.faults {
            faults.heal();
        }
        let mut in_order = true;
        for mount in self.mounts.drain(..).rev() {
            in_order &= mount.end();
        }
        let expected = if self.starter.is_guests() { STATUS_STOPPED } else { 0 };
        for server in self.servers.drain(..) {
            let Some(mut process) = server.process else { continue };
            // Who has died before is no failure of the tear-down.
            let died = process.ended().is_some();
            let status = process.end(STOP_PATIENCE);
            if !died && status.is_none_or(|status| status.code() != Some(expected)) {
                let status = status.map_or("unknown".into(), |status| status.to_string());
                eprintln!("xtask: server {} did not stop in order: {status}", server.seat.slot);
                in_order = false;
            }
        }
        in_order
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        self.tear_down();
    }
}

/// A status as the shell has it.
fn shell_status(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}

/// Ends the command, whose own processes are its business.
fn end_command(mut child: Child) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
        // Fails only when it has ended already.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    if until(COMMAND_PATIENCE, || child.try_wait().ok().flatten()).is_none() {
        // As above.
        let _ = child.kill();
        let _ = child.wait();
    }
}

//! Applications: processes that make system calls on all mounts at once, in the same directories,
//! are signalled and killed; and mounts whose connection is cut.
//!
//! # Invariants
//!
//! * What all of them see is one file system: see [`History`].
//! * Once faults have stopped, every process gets through some calls and ends; then nothing is left
//!   open, and no mount remembers an inode.
//! * A mount whose connection was cut leaves the volume, and its machine is started anew.

use crate::check::Checker;
use crate::check::leaders::is_slow;
use crate::kernel::calls::{File, OpenFlags, Path, Process};
use crate::kernel::history::{History, Life};
use crate::kernel::threads::Threads;
use crate::kernel::{Counts, Failure, Kernel, Pid, Signal};
use crate::platform::Platform;
use crate::rng::{Chance, Rng};
use crate::time::{MICRO, Time};
use crate::trace::HostId;
use crate::world::{Workload, World};
use outrider_core::client::mount::{Mount, MountState};
use outrider_core::client::op::{NameBuf, OpError, RenameMode};
use outrider_hal::Instant;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// Processes of each mount.
const PROCESSES: usize = 4;
/// Files that a process has open at most.
const FILES: usize = 3;
/// Calls that the processes of each mount must get through once faults have stopped.
const GOAL: u64 = 60;
/// How long a tick is.
const TICK: Duration = MICRO.saturating_mul(500);

/// Chances of what befalls a mount, at each tick.
#[derive(Debug, Clone, Copy)]
pub struct Mishaps {
    /// A process gets a signal that it handles.
    pub signal: Chance,
    /// A process is killed.
    pub kill: Chance,
    /// The connection is cut.
    pub cut: Chance,
}

impl Mishaps {
    /// As often as is good for a test.
    pub const SOME: Mishaps = Mishaps { signal: Chance(3_000), kill: Chance(300), cut: Chance(5) };
    /// Signals only.
    pub const SIGNALS: Mishaps = Mishaps { cut: Chance::NEVER, ..Mishaps::SOME };
}

/// What is known of all applications.
#[derive(Debug, Default)]
pub struct Seen {
    history: Rc<RefCell<History>>,
    /// Calls of each mount, and when faults had stopped.
    calls: BTreeMap<HostId, u64>,
    calm: Option<BTreeMap<HostId, u64>>,
    /// What each mount that isn't at rest is doing.
    busy: BTreeMap<HostId, String>,
    failed: BTreeMap<OpError, u64>,
    kills: u64,
    cuts: u64,
    counts: Counts,
}

impl Seen {
    fn has_done_enough(&self, host: HostId) -> bool {
        let count = |of: &BTreeMap<HostId, u64>| of.get(&host).copied().unwrap_or(0);
        self.calm.as_ref().is_some_and(|calm| count(&self.calls) - count(calm) >= GOAL)
    }

    /// How often a call ended in this way.
    #[must_use]
    pub fn failures(&self, error: OpError) -> u64 {
        self.failed.get(&error).copied().unwrap_or(0)
    }
}

/// A machine with a mount and its processes.
struct Seat {
    host: HostId,
    boots: u32,
    mounted: Option<Mounted>,
    lives: u32,
}

struct Mounted {
    kernel: Kernel,
    threads: Threads,
    processes: Vec<Process>,
    /// Its connection was cut.
    cut: bool,
    /// When it went on last, and its clock then.
    clock: Option<(Time, Instant)>,
    /// Its clock stood still up to here: whether it has its lease it only knows from what it asks
    /// later.
    doubt: Option<Instant>,
}

/// All applications.
pub struct Applications {
    seats: Vec<Seat>,
    rng: Rng,
    mishaps: Mishaps,
    pids: u32,
    seen: Rc<RefCell<Seen>>,
}

impl Applications {
    /// Applications on these machines.
    #[must_use]
    pub fn new(
        hosts: impl Iterator<Item = HostId>,
        rng: Rng,
        mishaps: Mishaps,
        seen: Rc<RefCell<Seen>>,
    ) -> Applications {
        let seat = |host| Seat { host, boots: 0, mounted: None, lives: 0 };
        Applications { seats: hosts.map(seat).collect(), rng, mishaps, pids: 0, seen }
    }

    fn drive(&mut self, world: &mut World, at: usize) {
        let (host, boots) = (self.seats[at].host, self.seats[at].boots);
        let alive = world.guest::<Platform>(host).is_some();
        if !alive || world.boots(host) != boots {
            self.end(at, false);
            self.seats[at].boots = world.boots(host);
        }
        if !alive || !world.is_running(host) {
            return;
        }
        let state = world.guest::<Platform>(host).map(|at| at.mount.state());
        if self.seats[at].mounted.as_ref().is_some_and(|mounted| mounted.cut) {
            if state == Some(MountState::Left) {
                self.end(at, true);
                world.crash(host);
                world.boot(host);
            }
            return;
        }
        self.begin(at);
        self.befall(world, at);
        self.go_on(world, at);
    }

    /// Mounts, and begins as many processes as there are to be.
    fn begin(&mut self, at: usize) {
        let seat = &mut self.seats[at];
        let seen = Rc::clone(&self.seen);
        let mounted = seat.mounted.get_or_insert_with(|| {
            seat.lives += 1;
            let life = Life { host: seat.host, number: seat.lives };
            let rng = Rng::new(self.rng.number());
            let kernel = Kernel::new(life, Rc::clone(&seen.borrow().history), rng);
            let (threads, processes) = (Threads::default(), Vec::new());
            Mounted { kernel, threads, processes, cut: false, clock: None, doubt: None }
        });
        let enough = self.seen.borrow().has_done_enough(seat.host);
        mounted.processes.retain(|process| !process.has_ended());
        while mounted.processes.len() < PROCESSES && !enough {
            self.pids += 1;
            let process = Process::new(&mounted.kernel, Pid(self.pids));
            mounted.processes.push(process.clone());
            let rng = Rng::new(self.rng.number());
            let application = Application {
                process,
                rng: RefCell::new(rng),
                seen: Rc::clone(&self.seen),
                files: RefCell::new(Vec::new()),
            };
            mounted.threads.spawn(application.run());
        }
    }

    /// Lets something happen to the mount's processes, or to all of it.
    fn befall(&mut self, world: &mut World, at: usize) {
        let Mishaps { signal, kill, cut } = self.mishaps;
        let seat = &mut self.seats[at];
        let Some(mounted) = &mut seat.mounted else { return };
        let calm = self.seen.borrow().calm.is_some();
        for (chance, sent) in [(signal, Signal::Handled), (kill, Signal::Kill)] {
            if self.rng.chance(chance)
                && let Some(process) = self.rng.pick(&mounted.processes)
            {
                process.signal(sent);
                self.seen.borrow_mut().kills += u64::from(sent == Signal::Kill);
            }
        }
        if !calm && self.rng.chance(cut) {
            self.seen.borrow_mut().cuts += 1;
            mounted.cut = true;
            mounted.kernel.abort();
            mounted.threads.run(&mounted.kernel.moves());
            world.with(seat.host, |platform: &mut Platform, now| platform.mount.leave(now));
        }
    }

    /// Lets requests and answers pass, and processes go on.
    fn go_on(&mut self, world: &mut World, at: usize) {
        let seat = &mut self.seats[at];
        let Some(mounted) = seat.mounted.as_mut().filter(|mounted| !mounted.cut) else { return };
        let kernel = mounted.kernel.clone();
        let clock = (world.now(), world.clock(seat.host));
        if mounted.clock.replace(clock).is_some_and(|before| is_slow(before, clock)) {
            mounted.doubt = Some(clock.1);
        }
        let mount = world.guest(seat.host).map(|platform: &Platform| &platform.mount);
        mounted.doubt = mounted.doubt.filter(|since| {
            let asked_before = |mount: &Mount<'_>| {
                let length = mount.config().timing.lease;
                mount.lease_end().is_none_or(|end| end <= since.plus(length))
            };
            mount.is_none_or(asked_before)
        });
        kernel.set_sure(mounted.doubt.is_none());
        kernel.tick();
        if world.guest(seat.host).is_some_and(|platform| kernel.has_news(platform)) {
            world.with(seat.host, |platform: &mut Platform, now| kernel.exchange(platform, now));
        }
        mounted.threads.run(&kernel.moves());
        let mut seen = self.seen.borrow_mut();
        seen.counts.add(&kernel.take_counts());
        if seen.has_done_enough(seat.host) && mounted.threads.count() == 0 {
            kernel.shrink_all();
        }
        let rests = mounted.threads.count() == 0 && kernel.is_idle();
        match seen.calm.is_some() && !rests {
            true => drop(seen.busy.insert(seat.host, kernel.describe())),
            false => drop(seen.busy.remove(&seat.host)),
        }
    }

    /// The mount has ended: in good order, or not.
    fn end(&mut self, at: usize, left: bool) {
        let Some(mut mounted) = self.seats[at].mounted.take() else { return };
        mounted.kernel.abort();
        mounted.threads.run(&mounted.kernel.moves());
        assert_eq!(mounted.threads.count(), 0, "processes can't live on an ended mount");
        let seen = self.seen.borrow();
        let life = mounted.kernel.life();
        match left {
            true => seen.history.borrow_mut().left(life),
            false => seen.history.borrow_mut().died(life, mounted.kernel.good_until()),
        }
    }
}

impl Workload for Applications {
    fn tick(&mut self, world: &mut World) -> Option<Duration> {
        for at in 0..self.seats.len() {
            self.drive(world, at);
        }
        let seen = self.seen.borrow();
        if seen.calm.is_some() && self.seats.iter().all(|seat| seen.has_done_enough(seat.host)) {
            seen.history.borrow_mut().close();
        }
        Some(TICK)
    }
}

/// What a process runs.
struct Application {
    process: Process,
    rng: RefCell<Rng>,
    seen: Rc<RefCell<Seen>>,
    /// What it has open, and in which round it was opened.
    files: RefCell<Vec<(u32, File)>>,
}

impl Application {
    fn below(&self, bound: u64) -> u64 {
        self.rng.borrow_mut().below(bound)
    }

    async fn run(self) {
        let host = self.process.kernel().life().host;
        let history = Rc::clone(&self.seen.borrow().history);
        while !self.process.is_over() && !self.seen.borrow().has_done_enough(host) {
            self.process.sleep(self.below(6)).await;
            let round = history.borrow().round();
            self.close_others(round).await;
            if !self.enter(&history, round).await {
                continue;
            }
            self.process.play(Some(round));
            let result = self.call(round).await;
            let mut seen = self.seen.borrow_mut();
            *seen.calls.entry(host).or_default() += 1;
            if let Err(Failure::Op(error)) = result {
                *seen.failed.entry(error).or_default() += 1;
            }
        }
        self.close_others(u32::MAX).await;
        self.process.exit();
    }

    /// Sees to it that the round's directory is there.
    async fn enter(&self, history: &Rc<RefCell<History>>, round: u32) -> bool {
        if history.borrow().dir(round).is_some() {
            return true;
        }
        if history.borrow_mut().is_to_be_made(round) {
            self.process.play(None);
            let made = self.process.mkdir(&root_of(round)).await;
            let life = self.process.kernel().life();
            let made = made.ok().map(|attr| (attr.ino, attr.crtime));
            history.borrow_mut().made(round, life, made);
        }
        false
    }

    /// Closes what was opened in other rounds.
    async fn close_others(&self, round: u32) {
        while let Some((opened, file)) = self.take_other(round) {
            self.process.play(Some(opened));
            // A file is closed whatever that says.
            let _ = self.process.close(file).await;
        }
    }

    fn take_other(&self, round: u32) -> Option<(u32, File)> {
        let mut files = self.files.borrow_mut();
        let at = files.iter().position(|(opened, _)| *opened != round)?;
        Some(files.remove(at))
    }

    fn path(&self, round: u32) -> Path {
        let mut path = root_of(round);
        let names = ["a", "b", "c", "d"];
        while path.len() < 3 && self.below(100) < 35 {
            path.push(name(names[self.below(4) as usize]));
        }
        path.push(name(names[self.below(4) as usize]));
        path
    }

    async fn call(&self, round: u32) -> Result<(), Failure> {
        let path = self.path(round);
        match self.below(100) {
            0..9 => self.process.mkdir(&path).await.map(|_| ()),
            9..14 => self.process.remove(&path, true).await,
            14..23 => self.process.remove(&path, false).await,
            23..27 => self.process.link(&path, &self.path(round)).await,
            27..29 => self.process.symlink(&path, b"target").await.map(|_| ()),
            29..31 => self.process.readlink(&path).await.map(|_| ()),
            31..43 => {
                let modes = [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange];
                let mode = modes[self.below(5).saturating_sub(2) as usize];
                self.process.rename(&path, &self.path(round), mode).await
            }
            43..50 => self.process.stat(&path).await,
            50..55 => self.process.list(&path).await.map(|_| ()),
            55..57 => {
                let root = root_of(round);
                self.process.list(&root).await.map(|_| ())
            }
            57..60 => {
                let permissions = 0o600 + self.below(0o200) as u16;
                self.process.chmod(&path, permissions).await
            }
            60..74 => self.open(round, &path).await,
            _ => self.use_file().await,
        }
    }

    async fn open(&self, round: u32, path: &Path) -> Result<(), Failure> {
        if self.files.borrow().len() >= FILES {
            return self.close_one().await;
        }
        let flags = OpenFlags {
            create: self.below(3) > 0,
            exclusive: self.below(3) == 0,
            truncate: self.below(5) == 0,
            append: self.below(3) == 0,
        };
        let file = self.process.open(path, flags).await?;
        self.files.borrow_mut().push((round, file));
        Ok(())
    }

    async fn close_one(&self) -> Result<(), Failure> {
        let count = self.files.borrow().len() as u64;
        if count == 0 {
            return Ok(());
        }
        let (_, file) = self.files.borrow_mut().remove(self.below(count) as usize);
        self.process.close(file).await
    }

    async fn use_file(&self) -> Result<(), Failure> {
        let count = self.files.borrow().len() as u64;
        if count == 0 {
            return Ok(());
        }
        // It is put back afterwards: no other call of this process needs it meanwhile.
        let (round, file) = self.files.borrow_mut().remove(self.below(count) as usize);
        let at = self.below(5) * 4096 + self.below(2) * self.below(4096);
        let long = if self.below(6) == 0 { 20_000 } else { 3_000 };
        let len = 1 + self.below(long);
        let result = match self.below(30) {
            0..8 => self.process.read(&file, at, len as u32).await.map(|_| ()),
            8..18 => {
                let first = self.below(256) as usize;
                let data: Vec<u8> = (0..len as usize).map(|at| (first + at * 7) as u8).collect();
                self.process.write(&file, at, &data).await.map(|_| ())
            }
            18..22 => self.process.ftruncate(&file, at).await,
            22..25 => self.process.fsync(&file).await,
            25..27 => self.process.fstat(&file).await,
            _ => return self.process.close(file).await,
        };
        self.files.borrow_mut().push((round, file));
        result
    }
}

fn name(text: &str) -> NameBuf {
    NameBuf::parse(text.as_bytes()).expect("a name")
}

fn root_of(round: u32) -> Path {
    vec![name(&format!("round-{round}"))]
}

/// Looks at what applications have seen, and whether they get on and leave nothing behind.
pub struct Linearizable {
    seen: Rc<RefCell<Seen>>,
    /// Nothing fails: every history must be decided.
    strict: bool,
}

impl Linearizable {
    /// A checker.
    #[must_use]
    pub fn new(seen: Rc<RefCell<Seen>>, strict: bool) -> Linearizable {
        Linearizable { seen, strict }
    }
}

impl Checker for Linearizable {
    fn name(&self) -> &'static str {
        "linearizable"
    }

    fn after_step(&mut self, _world: &World, _host: HostId) -> Result<(), String> {
        let seen = self.seen.borrow();
        let history = seen.history.borrow();
        if self.strict && history.checked().undecided > 0 {
            return Err(String::from("a history is undecided"));
        }
        history.wrong().cloned().map_or(Ok(()), Err)
    }

    fn unsettled(&self, world: &World) -> Option<String> {
        let seen = &mut *self.seen.borrow_mut();
        seen.calm.get_or_insert_with(|| seen.calls.clone());
        world.hosts().find_map(|host| {
            let platform = world.guest::<Platform>(host)?;
            if let Some(busy) = seen.busy.get(&host) {
                return Some(format!("{host}: {busy}, {}", platform.describe()));
            }
            if !seen.has_done_enough(host) {
                return Some(format!("{host} makes no calls, {}", platform.describe()));
            }
            let (inodes, handles) = (platform.mount.inodes_used(), platform.mount.handles_open());
            let left = inodes > 0 || handles > 0;
            left.then(|| format!("{host} keeps {inodes} inodes and {handles} handles"))
        })
    }

    fn is_settled(&self, world: &World) -> bool {
        let seen = &mut *self.seen.borrow_mut();
        seen.calm.get_or_insert_with(|| seen.calls.clone());
        world.hosts().all(|host| {
            world.guest::<Platform>(host).is_none_or(|Platform { mount, .. }| {
                let is_empty = mount.inodes_used() == 0 && mount.handles_open() == 0;
                !seen.busy.contains_key(&host) && seen.has_done_enough(host) && is_empty
            })
        })
    }

    fn work(&self) -> Vec<(&'static str, u64)> {
        let seen = self.seen.borrow();
        let checked = seen.history.borrow().checked();
        vec![
            ("system calls", seen.calls.values().sum()),
            ("system calls failed", seen.failed.values().sum()),
            ("processes killed", seen.kills),
            ("connections cut", seen.cuts),
            ("rounds linearizable", checked.rounds),
            ("rounds cut short", checked.cut),
            ("rounds undecided", checked.undecided),
            ("operations in rounds", checked.operations),
            ("operations at the same time", checked.overlaps),
            ("requests met by a signal", seen.counts.interrupts),
            ("requests given up for one", seen.counts.given_up),
            ("requests never read", seen.counts.dropped),
            ("lookups forgotten", seen.counts.forgotten),
        ]
    }
}

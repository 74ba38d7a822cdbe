//! `outrider mount`: a volume becomes part of this host's tree.
//!
//! ```text
//!   join -- welcomed --> mount -- usable --> serve -- unmounted --> leave -- durable --> end
//!     |                                        ^
//!     +-- no server in time: an error          +-- SIGTERM: unmount, lazily if it is in use
//! ```
//!
//! # Invariants
//!
//! * Who started it is told of success only when the mount can be used, and of a failure in one
//!   line.
//! * With a quorum slot, a server runs beside it from before its first welcome until it has left
//!   the volume: the mount is a client like any other, of whoever leads.
//! * However it was unmounted, the process ends only when the mount has left the volume, or it is
//!   asked to end a second time. One that the servers have given up, or refuse, waits only a moment
//!   for the answer to its farewell.
//!
//! What this module deliberately doesn't know: what the mount does.

mod voter;

use super::Failure;
use super::device::{Image, hold, system};
use clap::Args;
use outrider_core::arena::{Arena, ArenaFull};
use outrider_core::client::mount::{
    Mount as Node, MountConfig, MountLimits, MountState, MountTiming, StartError,
};
use outrider_core::client::op::{Answer, RequestId};
use outrider_core::format::quorum::Slot;
use outrider_core::format::super_block::Super;
use outrider_core::format::wire::ErrorCode;
use outrider_core::pump::PumpLimits;
use outrider_core::{net, quorum};
use outrider_hal::{Clock, Entropy, Instant};
use outrider_hosted::clock::{BootClock, SystemEntropy};
use outrider_hosted::disk::{Access, FileDevice};
use outrider_hosted::fuse::{self, Mount};
use outrider_hosted::host::machine;
use outrider_hosted::memory::region;
use outrider_hosted::mount::{DataDevice, Leave, MountOptions, NoServer, Piece, Sink};
use outrider_hosted::net::TcpNetwork;
use outrider_hosted::node::{Handle, HostedPump, Next, Owner, Runner};
use outrider_hosted::report::{tell, to_system_log};
use outrider_hosted::signals::Signals;
use outrider_hosted::wait::{Bell, wait};
use outrider_hosted::witness::{Name, Report, Witness, mount_grace};
use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use voter::{Settings, Stand, Voter};

/// How long the first welcome is waited for, unless an option says so.
const WELCOME: Duration = Duration::from_secs(60);
/// How long a mount that has failed may take to tell the servers that it is gone.
const PARTING: Duration = Duration::from_secs(10);
/// How often one without a lease whose transfers don't end shows that it lives.
const BEAT: Duration = Duration::from_secs(5);

/// Mount a volume at a directory.
///
/// Returns when the mount can be used; a process stays. outrider umount, umount(8) or SIGTERM to
/// that process end it.
///
/// Options: ro, nodev, nosuid, noexec, allow_other (the default) or noallow_other;
/// noserver=wait or noserver=eio:SECONDS, what requests do while no server can be reached;
/// quorum_slot_nr=NR, to run the metadata server of this slot beside the mount, see below;
/// locallocks, which is how locks are: they hold among the processes of this host;
/// nowitness, see below.
///
/// Beside the process runs a second one, its witness, which kills it if it is stopped (by SIGSTOP,
/// or a debugger) for so long that others may have its locks. What a process that stays has to tell
/// is in the system's log.
///
/// With quorum_slot_nr=NR this host votes in slot NR of the volume, as outrider server does, and
/// serves all mounts while it is elected. Such a server ends when the mount has left, however
/// that comes about; only if it serves other mounts, and no other server is there, it stays until
/// they have left too, or it gets SIGTERM.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Mount options, with commas between them.
    #[arg(short = 'o', value_name = "OPTS")]
    options: Vec<String>,
    /// Stay in the foreground.
    #[arg(short)]
    foreground: bool,
    /// For mount(8): look whether it could be done.
    #[arg(long, hide = true)]
    fake: bool,
    /// For mount(8): ignore options that are unknown.
    #[arg(long, hide = true)]
    sloppy: bool,
    /// Tell on standard output when the mount can be used, and let go of the terminal then.
    #[arg(long, hide = true)]
    background: bool,
    /// The block device or file.
    device: PathBuf,
    /// Where.
    dir: PathBuf,
}

/// What the process in the background tells when the mount can be used.
const READY: &str = "ready";

type Front = Sink<Handle<Node<'static>>>;

/// Mounts; the status.
pub(crate) fn run(options: &Options) -> Result<u8, Failure> {
    let parsed = MountOptions::parse(&options.options.join(","), options.sloppy);
    let parsed = parsed.map_err(|error| Failure::new(error.to_string()))?;
    let volume = Image::open(&options.device)?.volume()?;
    if !options.dir.is_dir() {
        return Err(Failure::new(format!("{} is not a directory", options.dir.display())));
    }
    if let Some(slot) = parsed.quorum_slot {
        super::server::check_slot(&options.device, &volume, slot)?;
    }
    if options.fake {
        return Ok(0);
    }
    if options.foreground || options.background {
        return serve(options, &parsed, &volume).map(|()| 0);
    }
    start(options).map_err(|error| Failure::new(format!("cannot start a process: {error}")))
}

/// Starts the process that stays, and waits until it tells that the mount can be used; the status.
fn start(options: &Options) -> io::Result<u8> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg0("outrider").args(["mount", "--background"]);
    for list in &options.options {
        command.arg("-o").arg(list);
    }
    if options.sloppy {
        command.arg("--sloppy");
    }
    command.arg("--").arg(&options.device).arg(&options.dir);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut said)?;
    }
    if said.trim_end() == READY {
        return Ok(0);
    }
    // What was wrong it has told itself.
    let status = child.wait()?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).filter(|code| *code > 0).unwrap_or(1))
}

/// Lets go of the terminal and of the directory it was started in.
fn detach() -> io::Result<()> {
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    println!("{READY}");
    io::stdout().flush()?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    to_system_log();
    std::env::set_current_dir("/")
}

/// What the mount's thread tells the one that waits.
#[derive(Debug)]
struct Life {
    now: Mutex<Known>,
    /// The node is not to be driven any more, however far it is.
    given_up: AtomicBool,
    over: Bell,
}

/// How the mount stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    state: MountState,
    /// Why it is refused.
    refusal: Option<ErrorCode>,
    /// A server has heard its farewell.
    parted: bool,
}

impl Known {
    const NEW: Known = Known { state: MountState::Joining, refusal: None, parted: false };

    fn of(node: &Node<'static>) -> Known {
        let (refusal, parted) = (node.refusal(), node.has_parted());
        Known { state: node.state(), refusal, parted }
    }
}

impl Life {
    fn known(&self) -> Known {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stands between the node and the front-end.
struct Watch {
    life: Arc<Life>,
    front: Arc<OnceLock<Arc<Front>>>,
    answers: VecDeque<(RequestId, Answer<Piece>)>,
    witness: Option<Witness>,
    /// What the witness is to be told.
    report: Report,
    /// How servers know the mount, once one has welcomed it.
    name: Option<Name>,
    device: PathBuf,
    leave: Leave,
    /// Nobody sees its standard error.
    logs: bool,
    /// What the witness lets pass after the end of a lease.
    grace: Duration,
    /// How long requests wait while there is no server.
    patience: Option<Duration>,
    /// Since when there is none.
    alone: Option<Instant>,
    failing: bool,
}

impl Owner<Node<'static>> for Watch {
    fn collect(&mut self, now: Instant, node: &mut Node<'static>) -> Next {
        self.answers.extend(std::iter::from_fn(|| node.poll_answer()));
        let new = Known::of(node);
        let state = new.state;
        self.alone = match state {
            MountState::Joining | MountState::Suspended => self.alone.or(Some(now)),
            MountState::Mounted
            | MountState::Leaving
            | MountState::Left
            | MountState::Evicted
            | MountState::Refused => None,
        };
        let mut known = self.life.now.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != new {
            *known = new;
            self.life.over.ring();
        }
        drop(known);
        self.look(now, node);
        let given_up = self.life.given_up.load(Ordering::SeqCst);
        match self.report {
            _ if state == MountState::Left || given_up => Next::End,
            Report::Suspended(since) => Next::SleepUntil(since.plus(BEAT)),
            Report::Quiet | Report::Acting(_) => Next::Sleep,
        }
    }

    fn deliver(&mut self) {
        self.tell_witness();
        let Some(front) = self.front.get() else { return };
        front.allow_transfers(self.leave);
        front.deliver(&mut self.answers);
        let now = BootClock.now();
        let waited = self.alone.map(|since| now.since(since));
        let failing = waited.zip(self.patience).is_some_and(|(waited, patience)| waited > patience);
        if failing != self.failing {
            self.failing = failing;
            front.fail_requests(failing);
        }
    }
}

impl Watch {
    /// What the witness and the movers must know.
    fn look(&mut self, now: Instant, node: &Node<'static>) {
        let nonce = node.config().nonce;
        self.name = node.client().map(|client| Name { client, nonce });
        let lease = node.lease_end();
        self.leave = match (lease, node.state()) {
            (Some(end), _) => Leave::Until(end),
            (None, MountState::Left | MountState::Evicted | MountState::Refused) => Leave::Ended,
            (
                None,
                MountState::Joining
                | MountState::Mounted
                | MountState::Suspended
                | MountState::Leaving,
            ) => Leave::Until(Instant(0)),
        };
        self.report = match (lease, self.report) {
            (Some(end), _) => Report::Acting(end),
            (None, _) if node.is_quiet() => Report::Quiet,
            // Said again and again as long as this lives.
            (None, Report::Suspended(since)) if now.since(since) < BEAT => self.report,
            (None, _) => Report::Suspended(now),
        };
    }

    fn tell_witness(&mut self) {
        let Some(witness) = &mut self.witness else { return };
        let named = self.name.map_or(Ok(()), |name| witness.name(name));
        if named.and_then(|()| witness.report(self.report)).is_ok() {
            return;
        }
        // To end would harm its users more than to go on for a moment without one.
        self.witness.take().into_iter().for_each(Witness::bury);
        match Witness::start(self.grace, self.logs, Some(&self.device)) {
            Ok(mut witness) => {
                tell("its witness is gone; here is another");
                // If that is gone already, it is found out with the next report.
                let _ = self.name.map_or(Ok(()), |name| witness.name(name));
                let _ = witness.report(self.report);
                self.witness = Some(witness);
            }
            Err(error) => tell(&format!("its witness is gone, and no other starts: {error}")),
        }
    }
}

impl Drop for Watch {
    /// The node has ended. What has not left is told of by the witness, when the process has ended
    /// too.
    fn drop(&mut self) {
        let known = self.life.known();
        if (known.parted || known.state == MountState::Left)
            && let Some(witness) = &mut self.witness
        {
            // Without it nobody tells anything.
            let _ = witness.left();
        }
    }
}

fn serve(options: &Options, parsed: &MountOptions, volume: &Super) -> Result<(), Failure> {
    let path = &options.device;
    let failed = |error| system(path, "mount", &error);
    if options.background {
        // Fails if it leads a group already, which a child doesn't.
        let _ = rustix::process::setsid();
    }
    let _held = hold(path)?;
    let mut signals = Signals::catch().map_err(failed)?;
    let (bell, over) = (Bell::new().map_err(failed)?, Bell::new().map_err(failed)?);
    let access = if parsed.read_only { Access::ReadOnly } else { Access::ReadWrite };
    let device = FileDevice::open(path, access, bell.clone()).map_err(failed)?;
    let data = DataDevice::open(path, access).map_err(failed)?;
    let config = config(parsed, volume)?;
    let pump = carve(path, &config, device)?;
    let now = Mutex::new(Known::NEW);
    let life = Arc::new(Life { now, given_up: AtomicBool::new(false), over });
    let front = Arc::new(OnceLock::new());
    let grace = mount_grace(config.timing.lease, volume.fields().limits.recovery());
    let witness = || Witness::start(grace, options.background, Some(path));
    let witness = parsed.witness.then(witness).transpose();
    let witness = witness.map_err(|error| {
        Failure::new(format!("cannot start a witness: {error}; -o nowitness does without"))
    })?;
    let voter = match parsed.quorum_slot {
        Some(slot) => Some(vote(options, parsed, slot, &life.over, &mut signals)?),
        None => None,
    };
    let watch = Watch {
        life: Arc::clone(&life),
        witness,
        report: Report::Quiet,
        name: None,
        device: std::path::absolute(path).map_err(failed)?,
        leave: Leave::Until(Instant(0)),
        logs: options.background,
        grace,
        front: Arc::clone(&front),
        answers: VecDeque::new(),
        patience: match parsed.no_server {
            Some(NoServer::Fail(patience)) => Some(patience),
            Some(NoServer::Wait) | None => None,
        },
        alone: None,
        failing: false,
    };
    let runner = Runner::start(pump, bell, watch).map_err(failed)?;
    let handle = runner.handle();
    let sink = Sink::new(handle.clone(), data).map_err(failed)?;
    let _ = front.set(Arc::clone(&sink));
    let mounted = join(path, parsed, &life, &mut signals)
        .and_then(|()| attach(options, parsed, &sink))
        .and_then(|mount| attend(options, mount, &life, &mut signals).map_err(failed));
    handle.with(|node, now| node.leave(now));
    let left = leave(path, &life, &mut signals);
    life.given_up.store(true, Ordering::SeqCst);
    handle.wake();
    runner.join().map_err(failed)?;
    sink.close();
    if let Some(voter) = voter {
        let gone = mounted.is_ok();
        voter.let_go(gone);
        let ended = |stand: &Stand| matches!(stand, Stand::Over | Stand::Stays);
        // Asked to end a second time, it leaves its server to itself.
        let _ = stand(&voter, options, &life.over, &mut signals, ended);
    }
    mounted.and(left)
}

/// Starts the server beside the mount, and waits until it takes part.
fn vote(
    options: &Options,
    parsed: &MountOptions,
    slot: Slot,
    over: &Bell,
    signals: &mut Signals,
) -> Result<Voter, Failure> {
    let path = &options.device;
    let (witness, logs, fence) = (parsed.witness, options.background, parsed.fence.clone());
    let voter = Voter::start(path, Settings { slot, witness, logs, fence }, over.clone());
    let voter = voter.map_err(|error| system(path, "start a server of", &error))?;
    let stand = stand(&voter, options, over, signals, |stand| *stand != Stand::Starting)?;
    match stand {
        Stand::Failed(why) => Err(Failure::new(why)),
        Stand::Starting | Stand::Ready | Stand::Stays | Stand::Over => Ok(voter),
    }
}

/// Waits until the server stands like this; an error if a signal comes before.
fn stand(
    voter: &Voter,
    options: &Options,
    over: &Bell,
    signals: &mut Signals,
    so: impl Fn(&Stand) -> bool,
) -> Result<Stand, Failure> {
    let failed = |error| system(&options.device, "mount", &error);
    loop {
        let stand = voter.stand();
        if so(&stand) {
            return Ok(stand);
        }
        wait(over, &[signals.as_fd()], BootClock.now(), None).map_err(failed)?;
        if signals.take().map_err(failed)? {
            let name = options.device.display();
            return Err(Failure::new(format!("{name}: ended by a signal")));
        }
    }
}

fn config(parsed: &MountOptions, volume: &Super) -> Result<MountConfig, Failure> {
    let entropy = SystemEntropy::open();
    let mut entropy =
        entropy.map_err(|error| Failure::new(format!("cannot read /dev/urandom: {error}")))?;
    let (mut nonce, mut secret) = ([0; 16], [0; 32]);
    entropy.fill(&mut nonce);
    entropy.fill(&mut secret);
    let machine = machine(volume)
        .map_err(|error| Failure::new(format!("cannot tell who this host is: {error}")))?;
    Ok(MountConfig {
        volume: *volume,
        quorum: quorum::Timing::of_lease(volume.fields().limits.lease_ms.get()),
        net: net::Timing::DEFAULT,
        timing: MountTiming::of_recovery(volume.fields().limits.recovery()),
        nonce,
        machine,
        secret,
        read_only: parsed.read_only,
    })
}

/// Buys the memory, and makes the mount in it.
fn carve(
    path: &Path,
    config: &MountConfig,
    device: FileDevice,
) -> Result<HostedPump<Node<'static>>, Failure> {
    let name = path.display();
    let refused = |error| {
        Failure::new(match error {
            StartError::Memory => format!("a mount of {name} needs more memory than there is"),
            StartError::Limits(what) => format!("{name} can't be mounted: {what:?}"),
            StartError::Timing => format!("{name} can't be mounted: its times don't fit together"),
            StartError::ReadOnly => format!(
                "{name} has features that this program can only read; mount with -o ro, or use a \
                 newer outrider"
            ),
        })
    };
    let full = |ArenaFull| refused(StartError::Memory);
    let (limits, pump) = (MountLimits::DEFAULT, PumpLimits::DEFAULT);
    let mut measure = Arena::measuring();
    Node::carve(&mut measure, &limits, config).map_err(refused)?;
    HostedPump::<Node<'static>>::measure(&pump, &mut measure).map_err(full)?;
    let region = region(measure.bytes_used()).map_err(|_| full(ArenaFull))?;
    let mut arena = Arena::new(region).map_err(full)?;
    let node = Node::carve(&mut arena, &limits, config).map_err(refused)?;
    let network = TcpNetwork::new().map_err(|error| system(path, "mount", &error))?;
    let pump = HostedPump::new(node, device, network, BootClock, pump, &mut arena);
    pump.map_err(|_| full(ArenaFull))
}

/// Waits for the first welcome.
fn join(
    path: &Path,
    parsed: &MountOptions,
    life: &Life,
    signals: &mut Signals,
) -> Result<(), Failure> {
    let until = match parsed.no_server {
        Some(NoServer::Wait) => None,
        Some(NoServer::Fail(patience)) => Some(BootClock.now().plus(patience)),
        None => Some(BootClock.now().plus(WELCOME)),
    };
    loop {
        let name = path.display();
        let known = life.known();
        match known.state {
            MountState::Mounted => return Ok(()),
            MountState::Joining | MountState::Suspended => {}
            MountState::Leaving | MountState::Left | MountState::Evicted | MountState::Refused => {
                return Err(Failure::new(format!("{name}: {}", describe(known))));
            }
        }
        let now = BootClock.now();
        if until.is_some_and(|until| until <= now) {
            return Err(Failure::new(format!(
                "no server of {name} can be reached; start one with outrider server, or wait for \
                 one with -o noserver=wait"
            )));
        }
        wait(&life.over, &[signals.as_fd()], now, until)
            .map_err(|error| system(path, "mount", &error))?;
        if signals.take().map_err(|error| system(path, "mount", &error))? {
            return Err(Failure::new(format!("ended by a signal before {name} was mounted")));
        }
    }
}

fn attach(options: &Options, parsed: &MountOptions, sink: &Arc<Front>) -> Result<Mount, Failure> {
    let shown = options.device.canonicalize().unwrap_or_else(|_| options.device.clone());
    let fuse_options = fuse::Options {
        source: shown.display().to_string(),
        read_only: parsed.read_only,
        allow_other: parsed.allow_other,
        nodev: parsed.nodev,
        nosuid: parsed.nosuid,
        noexec: parsed.noexec,
        ..fuse::Options::default()
    };
    let mount = Mount::new(&options.dir, &fuse_options, |replies| {
        sink.attach(replies);
        Arc::clone(sink)
    });
    mount.map_err(|error| system(&options.dir, "mount at", &error))
}

/// Stays until it is unmounted, by whomever.
fn attend(
    options: &Options,
    mount: Mount,
    life: &Arc<Life>,
    signals: &mut Signals,
) -> io::Result<()> {
    let mount = Arc::new(mount);
    let ended = Arc::new(AtomicBool::new(false));
    let waiter = {
        let (mount, life, ended) = (Arc::clone(&mount), Arc::clone(life), Arc::clone(&ended));
        std::thread::Builder::new().name("unmounted".to_owned()).spawn(move || {
            mount.wait();
            ended.store(true, Ordering::SeqCst);
            life.over.ring();
        })?
    };
    if options.background {
        detach()?;
    } else {
        tell(&format!("{} is mounted at {}", options.device.display(), options.dir.display()));
    }
    let (mut asked, mut told) = (false, MountState::Mounted);
    while !ended.load(Ordering::SeqCst) {
        wait(&life.over, &[signals.as_fd()], BootClock.now(), None)?;
        if signals.take()? {
            match (asked, mount.unmount()) {
                (true, _) => mount.abort()?,
                (false, Ok(())) => {}
                (false, Err(_)) => mount.detach()?,
            }
            asked = true;
        }
        let known = life.known();
        if known.state != told {
            told = known.state;
            tell(&format!("{}: {}", options.dir.display(), describe(known)));
        }
    }
    // It has nothing left to wait for.
    let _ = waiter.join();
    Ok(())
}

fn describe(known: Known) -> String {
    let what = match known.state {
        MountState::Joining => "waits for a server to welcome it",
        MountState::Mounted => "works again",
        MountState::Suspended => "no server can be reached; everything waits",
        MountState::Leaving => "leaves the volume",
        MountState::Left => "has left the volume",
        MountState::Evicted => {
            "the servers have given this mount up: what was not durable is lost; unmount it"
        }
        MountState::Refused => {
            let why = known.refusal.map_or_else(String::new, |error| format!(" ({error})"));
            return format!(
                "the servers refuse what this mount has changed{why}: what was not durable is \
                 lost; unmount it, and see what outrider check says"
            );
        }
    };
    what.to_owned()
}

/// Waits until the mount has left the volume.
fn leave(path: &Path, life: &Life, signals: &mut Signals) -> Result<(), Failure> {
    let failed = |error| system(path, "leave", &error);
    let patient_until = BootClock.now().plus(PARTING);
    loop {
        let (known, now) = (life.known(), BootClock.now());
        let until = match known.state {
            MountState::Left => return Ok(()),
            MountState::Evicted | MountState::Refused => {
                if known.parted || patient_until <= now {
                    let what = format!("{}: {}", path.display(), describe(known));
                    return Err(Failure::new(what));
                }
                Some(patient_until)
            }
            MountState::Joining
            | MountState::Mounted
            | MountState::Suspended
            | MountState::Leaving => None,
        };
        wait(&life.over, &[signals.as_fd()], now, until).map_err(failed)?;
        if signals.take().map_err(failed)? {
            return Err(Failure::new(format!(
                "{}: ended before all was durable; the servers give the mount up in a while",
                path.display()
            )));
        }
    }
}

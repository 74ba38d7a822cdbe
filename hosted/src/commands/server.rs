//! `outrider server`: a voter without a mount, in the foreground.
//!
//! The server of a mount that is a voter is this command too, attached to the mount's process by
//! its standard input and output; see [`super::mount`].
//!
//! # Invariants
//!
//! * The device is looked at before anything is written to it, and nothing is unless it holds a
//!   volume that this program may write, with a voter in this slot, which nobody else on this host
//!   has.
//! * The memory is bought before the first step.
//! * It ends with 0 if it was asked to and its slot shows it. It is asked by SIGTERM, SIGINT or
//!   SIGHUP; a second one ends it without waiting for the device. One that is attached to a mount
//!   is asked by the end of its standard input, and takes no notice of signals before: what stops
//!   all processes of a mount means the mount, which needs its server until it has left.
//!
//! What this module deliberately doesn't know: what the server does.

use super::Failure;
use super::device::{Image, hold, system};
use super::size;
use clap::Args;
use outrider_core::arena::{Arena, ArenaFull};
use outrider_core::format::quorum::{Incarnation, SLOTS, Slot};
use outrider_core::format::super_block::Super;
use outrider_core::net;
use outrider_core::pump::PumpLimits;
use outrider_core::quorum::{Exclusion, Loss, Refusal, Role, Timing, Trouble, Vouched};
use outrider_core::server::{
    Fence, Server, ServerConfig, ServerEvent, ServerLimits, ServerTiming, StartError,
};
use outrider_hal::{Clock, Endpoint, Entropy, Instant};
use outrider_hosted::clock::{BootClock, SystemEntropy};
use outrider_hosted::disk::{Access, FileDevice};
use outrider_hosted::fence::{Fencing, fencer, is_program};
use outrider_hosted::host::{self, FileLock, SlotLock, lock_in_file, machine};
use outrider_hosted::memory::region;
use outrider_hosted::net::TcpNetwork;
use outrider_hosted::node::{HostedPump, Next, Owner, Runner};
use outrider_hosted::report::{tell, to_system_log};
use outrider_hosted::signals::Signals;
use outrider_hosted::wait::{Bell, wait};
use outrider_hosted::witness::{Report, Witness, grace};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Run a metadata server for a volume, in the foreground.
///
/// It takes part in the elections of the volume's servers, and while it is elected it serves the
/// mounts. One is enough; others take over when it fails. End it with SIGTERM, or Ctrl-C: it lets
/// go of its slot, and the others need not wait.
///
/// Beside it runs a second process, its witness, which kills it if it is stopped for longer than
/// its lease lasts. Let something restart it (systemd: Restart=on-failure).
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The slot it votes in, one of those that mkfs was given with -Q.
    #[arg(long, value_name = "NR", value_parser = parse_slot)]
    slot: Slot,
    /// Accept connections here instead of at the address that the volume names for the slot.
    ///
    /// Mounts connect to the address in the volume all the same, so that must lead here: another
    /// address of this host, or a port that is forwarded. `0.0.0.0` or `[::]` means all addresses.
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// The operator's word that the slot's last user, of this id, is gone for good.
    ///
    /// Needed only if that ran on another host and was not stopped in good order; the refusal names
    /// the id. `any` if the slot's block is damaged. If it comes back it can destroy metadata.
    #[arg(long, value_name = "ID", value_parser = parse_vouched)]
    fenced: Option<Vouched>,
    /// A program that cuts evicted mounts off from the device, and tells by status 0 that they are.
    ///
    /// What was lent to a mount that has died is used again when somebody proves that it writes no
    /// more; this is one such proof. The program is run when a mount has been evicted, in the
    /// background, for at most 60 seconds, and again after a pause if that fails. Its argument is
    /// the mount's number. OUTRIDER_HOST_ID and OUTRIDER_BOOT_ID in its environment say where the
    /// mount ran, OUTRIDER_OWN_BOOT=1 that this is where the program runs, OUTRIDER_DEVICE,
    /// OUTRIDER_UUID, OUTRIDER_FAILURES the rest. `outrider fenced` tells the same by hand.
    #[arg(long, value_name = "PROGRAM")]
    fence: Option<PathBuf>,
    /// Run without a witness: a server that was stopped may then answer from what it remembers.
    #[arg(long)]
    no_witness: bool,
    /// Of a mount: it ends with its standard input.
    #[arg(long, hide = true)]
    attached: bool,
    /// Tell in the system's log.
    #[arg(long, hide = true)]
    log: bool,
    /// The block device or file.
    device: PathBuf,
}

/// What an attached server says on its standard output when it takes part in the elections.
pub(crate) const READY: &str = "ready";
/// What it says with the reason behind it when it ends for one.
pub(crate) const FAILED: &str = "failed ";
/// What it says when its mount has left, and others need it.
pub(crate) const STAYS: &str = "stays";
/// What it is told when its mount has left in good order. If its standard input ends without, the
/// mount has died.
pub(crate) const LEFT: u8 = b'L';

/// How long an attached server waits for the slot: that of a mount that was killed ends by itself.
const SLOT_PATIENCE: Duration = Duration::from_secs(5);
/// How often what can't be waited for is looked at.
const LOOK: Duration = Duration::from_millis(50);

fn parse_slot(text: &str) -> Result<Slot, String> {
    let slot = text.parse().ok().and_then(Slot::new);
    slot.ok_or_else(|| format!("slots are numbered from 0 to {}", SLOTS - 1))
}

pub(super) fn parse_vouched(text: &str) -> Result<Vouched, String> {
    if text == "any" {
        return Ok(Vouched::Anyone);
    }
    let id = u128::from_str_radix(text, 16).ok().filter(|_| text.len() == 32);
    let id = id.ok_or("give the 32 hexadecimal digits of the id, or any")?;
    Ok(Vouched::Gone(Incarnation(id.to_be_bytes())))
}

type Node = Server<'static>;

/// Serves; the status.
pub(crate) fn run(options: &Options) -> Result<u8, Failure> {
    if options.log {
        to_system_log();
    }
    match serve(options) {
        Ok(()) => Ok(0),
        Err(Failure { status, what }) if options.attached => {
            say(&format!("{FAILED}{what}"));
            Ok(status)
        }
        Err(failure) => Err(failure),
    }
}

/// Says it to the mount it is attached to. If that is gone, nobody needs to hear it.
fn say(what: &str) {
    let mut stdout = io::stdout().lock();
    let _ = writeln!(stdout, "{what}").and_then(|()| stdout.flush());
}

/// Takes the slot on this host.
fn take_slot(options: &Options, volume: &Super) -> io::Result<Option<SlotLock>> {
    let until = BootClock.now().plus(SLOT_PATIENCE);
    loop {
        let lock = SlotLock::take(volume, options.slot)?;
        if lock.is_some() || !options.attached || BootClock.now() >= until {
            return Ok(lock);
        }
        std::thread::sleep(LOOK);
    }
}

fn serve(options: &Options) -> Result<(), Failure> {
    let (path, slot) = (&options.device, options.slot);
    let failed = |error| system(path, "serve", &error);
    let volume = Image::open(path)?.volume()?;
    let endpoint = endpoint(options, &volume)?;
    if let Some(program) = options.fence.as_deref().filter(|program| !is_program(program)) {
        let what =
            format!("{} is no program that can be run; --fence names one", program.display());
        return Err(Failure::new(what));
    }
    let _held = hold(path)?;
    let lock = take_slot(options, &volume).map_err(failed)?;
    let in_use = || {
        let name = path.display();
        Failure::new(format!("slot {slot} of {name} is in use on this host; stop that one first"))
    };
    let _lock = lock.ok_or_else(in_use)?;
    let file_lock = lock_in_file(path, slot).map_err(failed)?;
    let exclusion = match file_lock {
        FileLock::Held(_) => Exclusion::Volume,
        FileLock::InUse => return Err(in_use()),
        FileLock::Unproven => Exclusion::Host,
    };
    let config = config(options, &volume, exclusion)?;
    let mut signals = Signals::catch().map_err(failed)?;
    let (bell, over) = (Bell::new().map_err(failed)?, Bell::new().map_err(failed)?);
    let device = FileDevice::open(path, Access::ReadWrite, bell.clone());
    let device = device.map_err(|error| system(path, "open", &error))?;
    let network = TcpNetwork::new().map_err(failed)?;
    let pump = carve(path, &config, device, network)?;
    let lease = Duration::from_millis(config.quorum.lease_ms.into());
    let witness = if options.no_witness {
        None
    } else {
        Some(Witness::start(grace(lease), options.log, None))
    };
    let witness = witness.transpose().map_err(|error| {
        Failure::new(format!("cannot start a witness: {error}; --no-witness does without"))
    })?;
    let own = machine(&volume).map_err(failed)?;
    let fence = options.fence.as_deref().map(|program| fencer(program, path, &volume, own));
    let (fencing, fencer) = fence.unzip();
    let (told, outcome) = sync_channel(1);
    let watch = Watch {
        slot,
        endpoint,
        witness,
        report: Report::Quiet,
        witness_lost: false,
        lines: Vec::new(),
        trouble: None,
        listen_failures: 0,
        outcome: None,
        takes_part: false,
        told: Some(told),
        over: RingsAtEnd(over.clone()),
        fencing,
        fence: None,
    };
    let runner = Runner::start(pump, bell, watch).map_err(failed)?;
    let handle = runner.handle();
    let told = move |client, is_gone| {
        handle.with(|server, now| server.fenced(now, client, is_gone));
    };
    let fencer = fencer.map(|fencer| fencer.start(told)).transpose().map_err(failed)?;
    let outcome = if options.attached {
        attend_attached(runner, &mut signals, &over, &outcome)
    } else {
        attend(runner, &mut signals, &over, &outcome)
    };
    let outcome = outcome.map_err(failed)?;
    // It ends what is at work. After a second signal nobody waits for it.
    drop(fencer.filter(|_| outcome.is_ok()).map(JoinHandle::join));
    outcome.map_err(|what| Failure::new(format!("{}: {what}", path.display())))
}

/// Where it listens, if the volume has a voter in the slot.
fn endpoint(options: &Options, volume: &Super) -> Result<Endpoint, Failure> {
    let named = check_slot(&options.device, volume, options.slot)?;
    Ok(options.listen.map_or(named, Endpoint::from))
}

/// Where the server of this slot listens, if the volume has one.
pub(crate) fn check_slot(device: &Path, volume: &Super, slot: Slot) -> Result<Endpoint, Failure> {
    volume.voter(slot.number()).ok_or_else(|| {
        let has = |slot: &Slot| volume.voter(slot.number()).is_some();
        let slots: Vec<String> =
            Slot::ALL.iter().filter(|slot| has(slot)).map(Slot::to_string).collect();
        Failure::new(format!(
            "{} has no server in slot {slot}; it has them in {}",
            device.display(),
            slots.join(", ")
        ))
    })
}

fn config(
    options: &Options,
    volume: &Super,
    exclusion: Exclusion,
) -> Result<ServerConfig, Failure> {
    let failed = |error| Failure::new(format!("cannot tell who this host is: {error}"));
    let mut entropy = SystemEntropy::open().map_err(failed)?;
    let vouched = options.fenced.unwrap_or(Vouched::Nothing);
    let identity = host::identity(volume, &mut entropy, vouched, exclusion).map_err(failed)?;
    let mut secret = [0; 32];
    entropy.fill(&mut secret);
    Ok(ServerConfig {
        volume: *volume,
        slot: options.slot,
        listen: options.listen.map(Endpoint::from),
        identity,
        quorum: Timing::of_lease(volume.fields().limits.lease_ms.get()),
        net: net::Timing::DEFAULT,
        timing: ServerTiming::of(volume),
        secret,
    })
}

/// Buys the memory, and makes the server in it.
fn carve(
    path: &Path,
    config: &ServerConfig,
    device: FileDevice,
    network: TcpNetwork,
) -> Result<HostedPump<Node>, Failure> {
    let name = path.display();
    let limits = ServerLimits::of(&config.volume.fields().limits);
    // Those that end, and those that make room, are followed a little longer.
    let streams = limits.links.slots() + 16;
    let pump = PumpLimits { streams, ..PumpLimits::DEFAULT };
    let refused = |error| {
        Failure::new(match error {
            StartError::Memory => format!("a server of {name} needs more memory than there is"),
            StartError::Limits(what) => {
                format!("{name} asks for more than a server can do ({what:?}); use mkfs's limits")
            }
            StartError::Voter(what) => format!("{name} can't be served from this slot: {what:?}"),
            StartError::ReadOnly => {
                format!("{name} has features that this program can only read; use a newer outrider")
            }
        })
    };
    let full = |ArenaFull| refused(StartError::Memory);
    let mut measure = Arena::measuring();
    Server::carve(&mut measure, &limits, config).map_err(refused)?;
    let server_bytes = measure.bytes_used();
    HostedPump::<Node>::measure(&pump, &mut measure).map_err(full)?;
    let bytes = measure.bytes_used();
    let region = region(bytes).map_err(|_| full(ArenaFull))?;
    let mut arena = Arena::new(region).map_err(full)?;
    let server = Server::carve(&mut arena, &limits, config).map_err(refused)?;
    let pump = HostedPump::new(server, device, network, BootClock, pump, &mut arena);
    tell(&format!(
        "slot {}: memory {}: {} for a server of {} mounts, {} for {streams} connections",
        config.slot,
        size::show(bytes as u64),
        size::show(server_bytes as u64),
        limits.links.clients_max,
        size::show((bytes - server_bytes) as u64),
    ));
    pump.map_err(|_| full(ArenaFull))
}

/// What became of the server: nothing more, or what the operator has to know.
type Outcome = Result<(), String>;

/// What has become of it, once its thread is over.
fn outcome_of(
    runner: &mut Option<Runner<Node>>,
    said: &Receiver<Outcome>,
) -> io::Result<Option<Outcome>> {
    let outcome = match said.try_recv() {
        Ok(outcome) => outcome,
        // It ended without a word: joining it tells why.
        Err(TryRecvError::Disconnected) => Err("it has ended".to_owned()),
        Err(TryRecvError::Empty) => return Ok(None),
    };
    runner.take().map_or(Ok(()), Runner::join)?;
    Ok(Some(outcome))
}

fn ended_early() -> Outcome {
    let what = "ended by a second signal, and its slot doesn't show it: the next start on another \
                host needs --fenced";
    Err(what.to_owned())
}

/// Passes signals on until the end.
fn attend(
    runner: Runner<Node>,
    signals: &mut Signals,
    over: &Bell,
    said: &Receiver<Outcome>,
) -> io::Result<Outcome> {
    let (handle, mut runner) = (runner.handle(), Some(runner));
    let mut asked = false;
    loop {
        if let Some(outcome) = outcome_of(&mut runner, said)? {
            return Ok(outcome);
        }
        wait(over, &[signals.as_fd()], BootClock.now(), None)?;
        if !signals.take()? {
            continue;
        }
        if asked {
            return Ok(ended_early());
        }
        asked = true;
        handle.with(|server, _| server.stop());
    }
}

/// Serves beside a mount, and after it as long as others need it; until the end.
fn attend_attached(
    runner: Runner<Node>,
    signals: &mut Signals,
    over: &Bell,
    said: &Receiver<Outcome>,
) -> io::Result<Outcome> {
    let (handle, mut runner) = (runner.handle(), Some(runner));
    let mount = MountLife::watch(over.clone())?;
    let (mut ready, mut stays, mut asked) = (false, false, false);
    loop {
        if let Some(outcome) = outcome_of(&mut runner, said)? {
            return Ok(outcome);
        }
        let life = mount.get();
        let (takes_part, needed) = handle.with(|server, now| {
            match life {
                MountLife::There => {}
                MountLife::Left if !asked => server.leave(now),
                MountLife::Left | MountLife::Died => server.stop(),
            }
            (takes_part(server), server.stays())
        });
        if takes_part && !ready {
            ready = true;
            say(READY);
        }
        if needed && !stays {
            stays = true;
            say(STAYS);
        }
        let now = BootClock.now();
        let leaves = life == MountLife::Left && !asked;
        wait(over, &[signals.as_fd()], now, leaves.then(|| now.plus(LOOK)))?;
        if signals.take()? {
            if asked || life == MountLife::Died {
                return Ok(ended_early());
            }
            asked = life != MountLife::There;
        }
    }
}

/// Whether it has begun to vote.
fn takes_part(server: &Node) -> bool {
    match server.voter().role() {
        Role::Following | Role::Standing(_) | Role::Leading(_) | Role::Draining(_) => true,
        Role::Starting | Role::Stopping | Role::Stopped | Role::Refused(_) => false,
    }
}

/// What has become of the mount that a server is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MountLife {
    There,
    Left,
    Died,
}

impl MountLife {
    /// Learns it from standard input, and rings.
    fn watch(bell: Bell) -> io::Result<Arc<Watched>> {
        let watched = Arc::new(Watched(Mutex::new(MountLife::There)));
        let told = Arc::clone(&watched);
        std::thread::Builder::new().name("mount".to_owned()).spawn(move || {
            let mut first = [0];
            let life = match io::stdin().read(&mut first) {
                Ok(1) if first == [LEFT] => MountLife::Left,
                Ok(_) | Err(_) => MountLife::Died,
            };
            *told.0.lock().unwrap_or_else(PoisonError::into_inner) = life;
            bell.ring();
        })?;
        Ok(watched)
    }
}

struct Watched(Mutex<MountLife>);

impl Watched {
    fn get(&self) -> MountLife {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Rings when it is dropped: when the thread that owns it is over, whatever the reason.
struct RingsAtEnd(Bell);

impl Drop for RingsAtEnd {
    fn drop(&mut self) {
        self.0.ring();
    }
}

/// Watches the server from beside its pump.
struct Watch {
    slot: Slot,
    endpoint: Endpoint,
    witness: Option<Witness>,
    /// What the witness is to be told.
    report: Report,
    /// It was not heard any more.
    witness_lost: bool,
    /// What is to be told to people.
    lines: Vec<String>,
    trouble: Option<Trouble>,
    listen_failures: u64,
    /// It has begun to vote.
    takes_part: bool,
    outcome: Option<Outcome>,
    told: Option<SyncSender<Outcome>>,
    over: RingsAtEnd,
    fencing: Option<Fencing>,
    /// Who is to be fenced.
    fence: Option<Fence>,
}

impl Owner<Node> for Watch {
    fn collect(&mut self, now: Instant, server: &mut Node) -> Next {
        while let Some(event) = server.poll_event() {
            self.on_event(event);
        }
        if self.fencing.is_some() && self.fence.is_none() {
            self.fence = server.poll_fence(now);
        }
        self.look(server);
        if takes_part(server) != self.takes_part {
            self.takes_part = !self.takes_part;
            self.over.0.ring();
        }
        self.report = match (server.voter().lease_end(), self.report) {
            (Some(until), _) => Report::Acting(until),
            (None, _) if server.is_quiet() => Report::Quiet,
            (None, Report::Suspended(since)) => Report::Suspended(since),
            (None, Report::Quiet | Report::Acting(_)) => Report::Suspended(now),
        };
        if self.witness_lost && self.outcome.is_none() {
            self.outcome = Some(Err("its witness is gone; start it again".to_owned()));
            server.stop();
            return Next::Again;
        }
        if server.is_over() { Next::End } else { Next::Sleep }
    }

    fn deliver(&mut self) {
        if let (Some(fencing), Some(fence)) = (&self.fencing, self.fence.take()) {
            fencing.ask(fence);
        }
        if let Some(witness) = &mut self.witness {
            self.witness_lost |= witness.report(self.report).is_err();
        }
        for line in self.lines.drain(..) {
            tell(&format!("slot {}: {line}", self.slot));
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let (Some(told), Some(outcome)) = (self.told.take(), self.outcome.take()) {
            // Nobody waits for it after a second signal.
            let _ = told.send(outcome);
        }
    }
}

impl Watch {
    fn on_event(&mut self, event: ServerEvent) {
        let line = match event {
            ServerEvent::Elected(term) => format!("elected in term {term}"),
            ServerEvent::Serving(term) => format!("serves in term {term}"),
            ServerEvent::Listening(term) => {
                format!("listens at {} in term {term}", self.endpoint)
            }
            ServerEvent::Up(client) => format!("client {client} is connected"),
            ServerEvent::Down(client, end) => {
                format!("client {client} is not connected any more ({end:?})")
            }
            ServerEvent::Left(client) => format!("client {client} has left the volume"),
            ServerEvent::Evicted(client) => format!("client {client} is evicted"),
            ServerEvent::CompactionFailed(client, error) => {
                format!("client {client} has not merged what it was asked to: {error}")
            }
            ServerEvent::Deposed(term, loss) => format!("deposed from term {term}: {}", lost(loss)),
            ServerEvent::Resigned(term) => {
                format!("resigned from term {term}: nothing of it is under way any more")
            }
            ServerEvent::Refused(refusal) => {
                self.outcome.get_or_insert(Err(refused(refusal, self.slot)));
                return;
            }
            ServerEvent::Stopped(Ok(())) => {
                self.outcome.get_or_insert(Ok(()));
                "stopped".to_owned()
            }
            ServerEvent::Stopped(Err(_)) => {
                let what = "it was stopped, but could not write that into its slot: the next \
                            start on another host needs --fenced";
                self.outcome.get_or_insert(Err(what.to_owned()));
                return;
            }
        };
        self.lines.push(line);
    }

    /// Tells of what goes wrong when it begins, and when it is over.
    fn look(&mut self, server: &Node) {
        let failures = server.counters().listen_failures;
        if failures > 0 && self.listen_failures == 0 {
            let at = self.endpoint;
            self.lines.push(format!(
                "can't listen at {at}, and tries again each second; is the port in use, or the \
                 address another host's?"
            ));
        }
        self.listen_failures = failures;
        let trouble = server.voter().trouble();
        if trouble != self.trouble {
            self.lines.push(match trouble {
                None => "its trouble with the quorum blocks is over".to_owned(),
                Some(Trouble::OwnWrite(error)) => {
                    format!("its quorum block can't be written ({error:?}); it tries on")
                }
                Some(Trouble::Blind(slot)) if slot == self.slot => {
                    "its quorum block can't be read or is damaged; a damaged one is written anew \
                     when the longest lease is over, if nobody else can have used it"
                        .to_owned()
                }
                Some(Trouble::Blind(slot)) => format!(
                    "the quorum block of slot {slot} can't be read or is damaged, so nobody can \
                     be elected; start that slot's server"
                ),
            });
            self.trouble = trouble;
        }
    }
}

/// Why a term ended.
fn lost(loss: Loss) -> String {
    match loss {
        Loss::LeaseOver => "its lease was not renewed in time".to_owned(),
        Loss::LaterClaim(term) => format!("another claims term {term}"),
        Loss::Blind => "it can't read the voters' blocks".to_owned(),
        Loss::Outnumbered(slot) => format!("more mounts reach the server of slot {slot}"),
        Loss::Outranked(term) => format!("term {term} has begun already"),
        Loss::Refused(_) => "it takes no part any more".to_owned(),
    }
}

/// Why it doesn't take part, and what to do.
fn refused(refusal: Refusal, slot: Slot) -> String {
    match refusal {
        Refusal::SlotInUse => format!(
            "slot {slot} is in use on another host; stop that server, or give this one a slot of \
             its own"
        ),
        Refusal::Unproven { incarnation, .. } => {
            let id = u128::from_be_bytes(incarnation.0);
            format!(
                "the last server in slot {slot} ran on another host and was not stopped in good \
                 order; start it there again, or, if that host is gone for good, start outrider \
                 server here with --fenced {id:032x}"
            )
        }
        Refusal::Damaged => format!(
            "the block of slot {slot} is damaged; if no other server of that slot is there any \
             more, start outrider server with --fenced any"
        ),
        Refusal::OutdatedConfig(generation) => format!(
            "the volume's servers were configured anew (generation {generation}); start it again"
        ),
        Refusal::RoundsExhausted => {
            "the quorum blocks name a round that can't have been; outrider check says more"
                .to_owned()
        }
        Refusal::RootLost { confirmed: (term, confirmed), newest: (older, newest) } => format!(
            "commit {confirmed} was confirmed in term {term}, and the newest root that can be read \
             is that of commit {newest} in term {older}: the volume is damaged; outrider check \
             says what is left, and outrider tune --forget-commits goes on from there"
        ),
    }
}

//! The server on this machine: reads whose volume it is, carves it, drives it, says what happens to
//! it, and ends it when told to.
//!
//! * The end of transmission (4, what Ctrl-D types) on the console asks for a clean stop: the term
//!   ends, the slot is let go, and the machine exits with success. The console is looked at
//!   whenever the processor wakes, and a voter that does nothing else wakes twice a second.
//! * A server that is refused its slot says why, and the machine exits with a failure.
//! * A pause of the machine is time that has passed: the clock says so at its next look, by which
//!   the lease of a server that was stopped for long is over, and it is suspended. What it would do
//!   before that look is what whoever runs QEMU has to bound, and nothing durable rests on it.

use crate::Platform;
use crate::machine::clock::MachineClock;
use crate::machine::cpu::wait_for_interrupt;
use crate::machine::exit::{self, refuse};
use crate::machine::serial::{self, say};
use crate::run::{MachinePump, advance, open_disk, open_network, settle_clock, sleep, take_arena};
use crate::virtio::Disk;
use core::net::Ipv6Addr;
use core::time::Duration;
use outrider_core::arena::Arena;
use outrider_core::format::layout::SUPER_BLKNO;
use outrider_core::format::quorum::{BootId, HostId, Incarnation, Slot};
use outrider_core::format::super_block::{Super, SuperError, Unverified};
use outrider_core::pump::{Pump, PumpLimits, Wake};
use outrider_core::quorum::{Exclusion, Identity, Loss, Refusal, Timing, Vouched};
use outrider_core::server::{
    Server, ServerConfig, ServerEvent, ServerLimits, ServerTiming, StartError,
};
use outrider_core::{format, net};
use outrider_hal::{Block, BlockDevice, BlockOp, BlockRequest, Clock, Endpoint, Entropy, Tag};
use outrider_unikernel::net::NetLimits;

/// Asks for a clean stop, on the console.
const STOP: u8 = 4;
/// How long the disk has for the first block that is read from it.
const PATIENCE: Duration = Duration::from_secs(30);
/// Turns in which what was said last leaves.
const LAST_TURNS: u32 = 64;

/// Serves until told to stop.
pub(crate) fn run(mut platform: Platform, slot: Slot) -> ! {
    let mut arena = take_arena(&mut platform);
    let mut disk = open_disk(&mut platform, &mut arena);
    if disk.read_only() {
        refuse!("the disk is read-only, and a server writes");
    }
    let volume = read_super(&mut disk, &mut platform.clock, &mut arena);
    let limits = ServerLimits::of(&volume.fields().limits);
    let links = limits.links;
    let connections = links.clients_max + links.guests_max + links.half_open_max;
    let net_limits = NetLimits::serving(connections.into());
    let network = open_network(&mut platform, net_limits, &mut arena);
    let config = configure(&mut platform, volume, slot);
    let before = arena.bytes_used();
    let server = match Server::carve(&mut arena, &limits, &config) {
        Ok(server) => server,
        Err(StartError::Memory) => refuse_memory(&limits, &config),
        Err(StartError::Voter(_)) => refuse!("the volume has no voter in slot {}", slot.number()),
        Err(StartError::ReadOnly) => refuse!("the volume has features that this server lacks"),
        Err(StartError::Limits(error)) => refuse!("the volume's limits can't be met: {error:?}"),
    };
    let streams = net_limits.slots();
    let pump_limits = PumpLimits { streams, ..PumpLimits::DEFAULT };
    let carved = arena.bytes_used() - before;
    let clock = settle_clock(platform.clock);
    let pump = Pump::new(server, disk, network, clock, pump_limits, &mut arena);
    let Ok(pump) = pump else {
        refuse!("not enough memory for the pump");
    };
    defmt::info!(
        "memory: the server of {=u16} clients takes {=usize} bytes, all together {=usize}",
        links.clients_max,
        carved,
        arena.bytes_used()
    );
    serve(pump)
}

/// Waits for the super block.
fn read_super(disk: &mut Disk, clock: &mut MachineClock, arena: &mut Arena<'static>) -> Super {
    let Some(block) = arena.slice(1, |_| Block::ZERO).ok().and_then(<[Block]>::first_mut) else {
        refuse!("not enough memory for a block");
    };
    let request = BlockRequest { tag: Tag(0), op: BlockOp::Read(SUPER_BLKNO, block) };
    if disk.submit(request).is_err() {
        refuse!("the disk takes no requests");
    }
    disk.kick();
    let patience = clock.now().plus(PATIENCE);
    let done = loop {
        while disk.acknowledge() {}
        if let Some(done) = disk.poll() {
            break done;
        }
        if clock.now() > patience {
            refuse!("the disk does not answer");
        }
        clock.arm(Duration::from_millis(10));
        wait_for_interrupt();
    };
    let BlockOp::Read(blkno, block) = done.op else {
        refuse!("the disk answers what it was not asked");
    };
    if let Err(error) = done.result {
        refuse!("the super block can't be read: {error:?}");
    }
    match Unverified::new(block).verify(blkno, disk.blocks()) {
        Ok(volume) => volume,
        Err(SuperError::NoVolume) => {
            refuse!("the disk holds no Outrider volume; outrider mkfs makes one")
        }
        Err(SuperError::Corrupt(what)) => {
            refuse!("the super block is damaged ({what:?}); outrider check says what is left")
        }
        Err(SuperError::UnknownFeatures(bits)) => {
            refuse!("the volume has features that this server doesn't know: {bits:#x}")
        }
        Err(SuperError::Truncated { volume, device }) => {
            refuse!("the volume has {volume} blocks, and the disk only {device}")
        }
        Err(SuperError::Times { lease_ms, recovery_ms, io_lifetime_ms }) => {
            refuse!(
                "the volume's times contradict each other: a lease of {lease_ms} ms, a recovery \
                 window of {recovery_ms} ms, {io_lifetime_ms} ms for late I/O"
            )
        }
    }
}

/// Puts together what the server is told.
fn configure(platform: &mut Platform, volume: Super, slot: Slot) -> ServerConfig {
    let Platform { options, entropy, .. } = platform;
    let mut id = || {
        let mut bytes = [0; 16];
        entropy.fill(&mut bytes);
        bytes
    };
    let (incarnation, boot, host) = (Incarnation(id()), BootId(id()), HostId(id()));
    let (mut seed, mut secret) = ([0; 8], [0; 32]);
    entropy.fill(&mut seed);
    entropy.fill(&mut secret);
    let identity = Identity {
        incarnation,
        host: options.host.unwrap_or(host),
        boot: options.boot.unwrap_or(boot),
        exclusion: options.alone.unwrap_or(Exclusion::Host),
        vouched: options.vouched.unwrap_or(Vouched::Nothing),
        seed: u64::from_le_bytes(seed),
    };
    defmt::info!(
        "volume {=u64:016x}: slot {=u8}, incarnation {=u128:032x}, host {=u128:032x}",
        volume.fsid(),
        slot.number(),
        u128::from_be_bytes(identity.incarnation.0),
        u128::from_be_bytes(identity.host.0)
    );
    let listen = options.listen.map(|port| Endpoint { addr: Ipv6Addr::UNSPECIFIED, port });
    ServerConfig {
        volume,
        slot,
        listen,
        identity,
        quorum: Timing::of_lease(volume.fields().limits.lease_ms.get()),
        net: net::Timing::DEFAULT,
        timing: ServerTiming::of(&volume),
        secret,
    }
}

fn refuse_memory(limits: &ServerLimits, config: &ServerConfig) -> ! {
    let mut measure = Arena::measuring();
    // Only how much it would take is of interest.
    drop(Server::carve(&mut measure, limits, config));
    refuse!(
        "not enough memory: the server alone takes {} KiB for the volume's {} mounts",
        measure.bytes_used() / 1024,
        limits.links.clients_max
    )
}

fn serve(mut pump: MachinePump<Server<'static>>) -> ! {
    let mut last = None;
    loop {
        let wake = advance(&mut pump);
        while let Some(event) = pump.node_mut().poll_event() {
            log(event);
            last = Some(event);
        }
        if pump.node().is_over() {
            break;
        }
        if serial::take() == Some(STOP) {
            defmt::info!("told to stop");
            pump.node_mut().stop();
        } else {
            sleep(&mut pump, wake);
        }
    }
    // What was said last still has to leave.
    for _ in 0..LAST_TURNS {
        if advance(&mut pump) != Wake::Now {
            break;
        }
    }
    match last {
        Some(ServerEvent::Refused(refusal)) => explain(refusal),
        Some(ServerEvent::Stopped(Err(error))) => {
            refuse!("stopped, but the disk does not show it: {error:?}")
        }
        _ => {
            say!("outrider: stopped");
            exit::success()
        }
    }
}

/// Why the server does not take part, and what to do.
fn explain(refusal: Refusal) -> ! {
    match refusal {
        Refusal::SlotInUse => refuse!("the slot is in use elsewhere; give this server another"),
        Refusal::Unproven { incarnation, host } => refuse!(
            "the slot's last user, {:032x} on host {:032x}, was not stopped and may write yet; \
             when it is gone for good, say fenced={:032x}",
            u128::from_be_bytes(incarnation.0),
            u128::from_be_bytes(host.0),
            u128::from_be_bytes(incarnation.0)
        ),
        Refusal::Damaged => refuse!(
            "the slot's block is damaged; when its last user is gone for good, say fenced=any"
        ),
        Refusal::OutdatedConfig(generation) => {
            refuse!("the volume has a newer configuration, {generation}; start again")
        }
        Refusal::RoundsExhausted => refuse!("no round is left: a quorum block must be forged"),
        Refusal::RootLost { confirmed: (term, confirmed), newest: (older, newest) } => refuse!(
            "the root of commit {confirmed} in term {term} is lost, the newest left is that of \
             {newest} in term {older}; outrider check says what is left, and outrider tune \
             --forget-commits goes on from there"
        ),
    }
}

fn log(event: ServerEvent) {
    let parts = |term: format::Term| (term.round(), term.slot());
    match event {
        ServerEvent::Elected(term) => {
            let (round, slot) = parts(term);
            defmt::info!("elected: round {=u64}, slot {=u8}", round, slot);
        }
        ServerEvent::Serving(term) => {
            defmt::info!("serving: round {=u64}", term.round());
        }
        ServerEvent::Listening(term) => {
            defmt::info!("listening: round {=u64}", term.round());
        }
        ServerEvent::Up(client) => defmt::info!("client {=u64} up", client.0),
        ServerEvent::Down(client, end) => {
            defmt::info!("client {=u64} down: {}", client.0, defmt::Debug2Format(&end));
        }
        ServerEvent::Left(client) => defmt::info!("client {=u64} has left", client.0),
        ServerEvent::Evicted(client) => defmt::warn!("client {=u64} is evicted", client.0),
        ServerEvent::CompactionFailed(client, error) => {
            defmt::warn!("client {=u64} did not merge: error {=u8}", client.0, error.to_wire());
        }
        ServerEvent::Deposed(term, loss) => {
            let round = term.round();
            match loss {
                Loss::LeaseOver => defmt::warn!("deposed: round {=u64}: lease over", round),
                Loss::LaterClaim(by) | Loss::Outranked(by) => {
                    let (later, slot) = parts(by);
                    defmt::warn!(
                        "deposed: round {=u64}: slot {=u8} stands for round {=u64}",
                        round,
                        slot,
                        later
                    );
                }
                Loss::Outnumbered(slot) => defmt::warn!(
                    "deposed: round {=u64}: more mounts reach slot {=u8}",
                    round,
                    slot.number()
                ),
                Loss::Blind => defmt::warn!("deposed: round {=u64}: can't read the voters", round),
                Loss::Refused(_) => defmt::warn!("deposed: round {=u64}: refused", round),
            }
        }
        ServerEvent::Resigned(term) => defmt::info!("resigned: round {=u64}", term.round()),
        ServerEvent::Refused(_) => defmt::error!("refused"),
        ServerEvent::Stopped(_) => defmt::info!("slot let go"),
    }
}

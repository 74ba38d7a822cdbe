//! The loop: poll the network, turn the pump, sleep when there is nothing to do.
//!
//! * The processor halts only after every device's interrupt has been acknowledged and everything
//!   that the devices had done by then has been taken: what they do from then on ends the halt.

use crate::acceptance::accept_machine;
use crate::machine::clock::MachineClock;
use crate::machine::cpu::wait_for_interrupt;
use crate::machine::exit::{self, refuse};
use crate::machine::serial::say;
use crate::virtio::{BlockError, Disk, Durability, NetworkCard, RECEIVE_FRAMES, SEND_FRAMES};
use crate::{Platform, acceptance, serve};
use core::time::Duration;
use outrider_core::arena::Arena;
use outrider_core::node::Node;
use outrider_core::pump::{Pump, PumpLimits, Wake};
use outrider_hal::{BlockDevice, Clock, Entropy, Instant};
use outrider_unikernel::net::{NetLimits, Stack};
use outrider_unikernel::options::Mode;
use outrider_unikernel::selftest::{Note, Plan, SelfTest, Verdict};

/// A node on this machine.
pub(crate) type MachinePump<N> = Pump<'static, N, Disk, Stack<'static, NetworkCard>, MachineClock>;

/// Acknowledges the devices' interrupts until none is left. This ends: a device that nobody serves
/// soon has nothing to interrupt for.
fn acknowledge<N: Node<'static>>(pump: &mut MachinePump<N>) {
    while pump.device_mut().acknowledge() | pump.network_mut().device_mut().acknowledge() {}
}

/// Moves everything once; answers what to wait for, which is [`Wake::Now`] when something has still
/// to be moved.
pub(crate) fn advance<N: Node<'static>>(pump: &mut MachinePump<N>) -> Wake {
    acknowledge(pump);
    let now = pump.clock_mut().now();
    let received = pump.network_mut().poll(now);
    let wake = pump.turn();
    let now = pump.clock_mut().now();
    let sent = pump.network_mut().poll(now);
    pump.device_mut().kick();
    pump.network_mut().device_mut().kick();
    if received || sent || pump.device_mut().ready() { Wake::Now } else { wake }
}

/// Halts until an interrupt, the time to wake at, or the network's next deadline.
pub(crate) fn sleep<N: Node<'static>>(pump: &mut MachinePump<N>, wake: Wake) {
    let node = match wake {
        Wake::Now => return,
        Wake::At(at) => Some(at),
        Wake::Event => None,
    };
    let network = pump.network_mut().poll_timeout();
    let now = pump.clock_mut().now();
    let longest = now.plus(pump.clock_mut().longest_sleep());
    let until = node.into_iter().chain(network).fold(longest, Instant::min);
    let sleep = until.since(now);
    if sleep > Duration::ZERO {
        pump.clock_mut().arm(sleep);
        wait_for_interrupt();
    }
}

/// Takes the disk into use, or says why not.
pub(crate) fn open_disk(platform: &mut Platform, arena: &mut Arena<'static>) -> Disk {
    let Some(transport) = platform.devices.disk.take() else {
        refuse!("no virtio disk");
    };
    let durability =
        if platform.options.write_through { Durability::WriteThrough } else { Durability::Flush };
    let disk = match Disk::new(transport, durability, arena) {
        Ok(disk) => disk,
        Err(BlockError::NoFlush) => refuse!(
            "the disk has no FLUSH, so nothing on it is known to be durable; if it writes \
             through, say disk=writethrough"
        ),
        Err(error) => refuse!("the disk can't be used: {error:?}"),
    };
    let how = match disk.durability() {
        Durability::Flush => "flush",
        Durability::WriteThrough => "write-through",
    };
    let access = if disk.read_only() { "read-only" } else { "read-write" };
    defmt::info!("disk: {=u64} blocks, {=str}, {=str}", disk.blocks(), access, how);
    disk
}

/// Takes the network into use, or says why not.
pub(crate) fn open_network(
    platform: &mut Platform,
    limits: NetLimits,
    arena: &mut Arena<'static>,
) -> Stack<'static, NetworkCard> {
    let Some(transport) = platform.devices.card.take() else {
        refuse!("no virtio network card");
    };
    let card = match NetworkCard::new(transport, arena) {
        Ok(card) => card,
        Err(error) => refuse!("the network card can't be used: {error:?}"),
    };
    let mac = card.mac();
    let mut seed = [0; 8];
    platform.entropy.fill(&mut seed);
    let seed = u64::from_le_bytes(seed);
    let now = platform.clock.now();
    let stack = match Stack::new(limits, &platform.options, mac, seed, card, arena, now) {
        Ok(stack) => stack,
        Err(error) => refuse!("the network can't be set up: {error:?}"),
    };
    let (slots, frames) = (limits.slots(), RECEIVE_FRAMES + SEND_FRAMES);
    let addresses = platform.options.addresses.len();
    defmt::info!(
        "net: {=[u8; 6]:02x}, {=usize} addresses, {=u32} sockets, {=usize} frames",
        mac,
        addresses,
        slots,
        frames
    );
    stack
}

/// Runs what the options ask for.
pub(crate) fn run(platform: Platform) -> ! {
    match platform.options.mode {
        Mode::Fault(fault) => acceptance::commit(fault),
        Mode::Server(slot) => serve::run(platform, slot),
        Mode::SelfTest => run_self_test(platform),
    }
}

/// The clock, at the rate that a node lives by.
pub(crate) fn settle_clock(mut clock: MachineClock) -> MachineClock {
    let Some(rates) = clock.settle() else {
        refuse!("no clock: what the timers say of the counter's rate changes all the time");
    };
    let (kilohertz, timer) = (rates.counter_hertz / 1000, rates.timer_hertz / 1000);
    defmt::info!("clock: {=u64} kHz ({=str}), timer {=u64} kHz", kilohertz, rates.source, timer);
    clock
}

/// The arena that a node is carved from: all that is left of memory.
pub(crate) fn take_arena(platform: &mut Platform) -> Arena<'static> {
    match Arena::new(core::mem::take(&mut platform.region)) {
        Ok(arena) => arena,
        Err(_) => refuse!("the region of memory is not aligned"),
    }
}

fn run_self_test(mut platform: Platform) -> ! {
    accept_machine(&mut platform);
    let mut arena = take_arena(&mut platform);
    let disk = open_disk(&mut platform, &mut arena);
    let network = open_network(&mut platform, NetLimits::DEFAULT, &mut arena);
    let mut seed = [0; 8];
    platform.entropy.fill(&mut seed);
    let plan = Plan {
        disk_blocks: Some(disk.blocks()),
        echo: platform.options.echo,
        connect: platform.options.connect,
        linger: Duration::from_secs(platform.options.linger_s.unwrap_or(0).into()),
        seed: u64::from_le_bytes(seed),
    };
    let Ok(test) = SelfTest::new(plan, &mut arena) else {
        refuse!("not enough memory for the self-test");
    };
    let limits = PumpLimits::DEFAULT;
    let clock = settle_clock(platform.clock);
    let pump = Pump::new(test, disk, network, clock, limits, &mut arena);
    let Ok(pump) = pump else {
        refuse!("not enough memory for the pump");
    };
    defmt::info!("memory: {=usize} KiB of the node's region in use", arena.bytes_used() / 1024);
    self_test(pump)
}

fn self_test(mut pump: MachinePump<SelfTest<'static>>) -> ! {
    let verdict = loop {
        let wake = advance(&mut pump);
        while let Some(note) = pump.node_mut().poll_note() {
            log(note);
        }
        match pump.node().verdict() {
            Verdict::Running => sleep(&mut pump, wake),
            verdict @ (Verdict::Passed | Verdict::Failed(_)) => break verdict,
        }
    };
    // What the last turn wrote still has to leave.
    while advance(&mut pump) == Wake::Now {}
    let (now, missed) = (pump.clock_mut().now(), pump.clock_mut().missed());
    let agrees = pump.clock_mut().agrees_with_rtc();
    let census = pump.network_mut().census();
    defmt::info!(
        "net: {=u32} listening, {=u32} half open, {=u32} accepted, {=u32} lingering",
        census.listening,
        census.half_open,
        census.accepted,
        census.lingering
    );
    say!(
        "selftest: clock {} ms, of which {} ms not counted",
        now.0 / 1_000_000,
        missed.as_millis()
    );
    match verdict {
        Verdict::Failed(failure) => refuse!("selftest failed: {failure:?}"),
        Verdict::Running | Verdict::Passed if !agrees => {
            refuse!("selftest failed: the clock and the real-time clock disagree")
        }
        Verdict::Running | Verdict::Passed => {
            say!("selftest: passed");
            exit::success()
        }
    }
}

fn log(note: Note) {
    match note {
        Note::Disk(phase, requests, micros) => {
            defmt::info!("disk: {=str}: {=u64} requests in {=u64} us", phase, requests, micros);
        }
        Note::Depth(requests) => defmt::info!("disk: up to {=u32} requests at a time", requests),
        Note::Echoed(bytes) => {
            defmt::info!("net: echoed {=u64} bytes", bytes);
            say!("selftest: echoed {bytes} bytes");
        }
        Note::Client(bytes, micros) => {
            defmt::info!("net: client got {=u64} bytes back in {=u64} us", bytes, micros);
        }
        Note::Lingered => defmt::info!("lingered"),
    }
}

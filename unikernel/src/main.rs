//! The bare-metal server: one image that QEMU boots (PVH, x86-64), and nothing beside it.
//!
//! ```text
//! boot.s -> boot() -> page tables, interrupts, devices, entropy, clock -> a node, pumped for ever
//! ```
//!
//! # Invariants
//!
//! * One processor, one stack, no preemption: interrupts are enabled only while the processor
//!   halts, and all they do is to end that.
//! * No allocation: a node lives in one region, what the image and the page tables leave of memory.
//! * Whatever is missing or wrong at the start is said in one line of plain text, and the machine
//!   exits with a failure.
#![no_std]
#![no_main]
#![allow(unsafe_code)]

mod acceptance;
mod machine;
mod run;
mod serve;
mod virtio;

use crate::machine::clock::{MachineClock, Measurement};
use crate::machine::entropy::Source;
use crate::machine::exit::refuse;
use crate::machine::serial::say;
use crate::machine::traps::{Hardware, MAIN_STACK_END, STACKS};
use crate::machine::{interrupts, paging, serial, traps};
use crate::virtio::Devices;
use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use outrider_unikernel::options::Options;
use outrider_unikernel::pvh::{self, Area, COMMAND_LINE_MAX, MapEntry, StartInfo};

global_asm!(
    include_str!("machine/boot.s"),
    main_stack = sym STACKS,
    main_stack_end = const MAIN_STACK_END,
    exit_port = const machine::exit::PORT,
    exit_failure = const machine::exit::FAILURE,
    boot = sym boot,
    options(att_syntax)
);
global_asm!(include_str!("machine/memory.s"), options(att_syntax));

/// What the machine has, once it is set up.
struct Platform {
    options: Options,
    clock: MachineClock,
    entropy: Source,
    devices: Devices,
    region: &'static mut [MaybeUninit<u8>],
}

/// Called by the boot code on the main stack, with interrupts off and everything mapped.
extern "sysv64" fn boot(start_info: u64) -> ! {
    serial::init();
    say!("outrider: unikernel {}", env!("CARGO_PKG_VERSION"));
    traps::init();
    let image = paging::image();
    let (command_line, mut areas) = read_start_info(start_info, image.whole);
    if paging::init(&image, &mut areas, &traps::guard_pages()).is_err() {
        refuse!("not enough memory for the page tables");
    }
    if !interrupts::init() {
        refuse!("the interrupt controllers can't be mapped");
    }
    let measurement = Measurement::start();
    let options = match Options::parse(command_line) {
        Ok(options) => options,
        Err(error) => refuse!("{error}"),
    };
    let mut devices = Devices::find();
    if devices.unused > 0 {
        defmt::warn!("{=u32} virtio devices that nothing here uses", devices.unused);
    }
    let Some(entropy) = Source::find(devices.entropy.take()) else {
        refuse!(
            "no entropy: the processor has no RDSEED or RDRAND that works, nor is there a \
                 virtio-rng device"
        );
    };
    defmt::info!("entropy: {=str}", entropy.name());
    let Some(clock) = measurement.and_then(MachineClock::new) else {
        refuse!("no clock: neither CPUID nor an interval timer tells the counter's rate");
    };
    if !clock.has_rtc() {
        defmt::warn!("clock: no real-time clock; time that the machine stands still is not seen");
    }
    let region = region(&areas, image.whole);
    run::run(Platform { options, clock, entropy, devices, region })
}

/// Copies what the start info says: the command line, and the memory that may be used.
fn read_start_info(
    start_info: u64,
    image: Area,
) -> (&'static str, heapless::Vec<Area, { pvh::AREAS_MAX }>) {
    // SAFETY: the boot protocol says where the structure is, and the first page tables map it.
    let info = unsafe { (start_info as *const StartInfo).read_unaligned() };
    if info.magic != pvh::MAGIC || info.version == 0 {
        refuse!("not started through PVH with a memory map");
    }
    let line = read_command_line(info.command_line);
    let count = (info.memory_map_entries as usize).min(pvh::AREAS_MAX);
    let mut map = heapless::Vec::<MapEntry, { pvh::AREAS_MAX }>::new();
    for index in 0..count {
        // SAFETY: as for the structure; the map has this many entries.
        let entry = unsafe { (info.memory_map as *const MapEntry).add(index).read_unaligned() };
        map.push(entry).expect("counted to the capacity");
    }
    match pvh::usable(&map, image) {
        Some(areas) => (line, areas),
        None => refuse!("the memory map makes no sense"),
    }
}

/// Copies the text at `addr`, which ends with a 0.
fn read_command_line(addr: u64) -> &'static str {
    static COMMAND_LINE: Hardware<[u8; COMMAND_LINE_MAX]> =
        Hardware(UnsafeCell::new([0; COMMAND_LINE_MAX]));
    if addr == 0 {
        return "";
    }
    // SAFETY: called once, so nobody else has the buffer.
    let line = unsafe { &mut *COMMAND_LINE.0.get() };
    // SAFETY: the text is mapped like the structure that names it, and ends with a 0.
    let text = (0..).map(|index| unsafe { (addr as *const u8).add(index).read() });
    let mut len = 0;
    for byte in text.take_while(|&byte| byte != 0) {
        let Some(place) = line.get_mut(len) else {
            refuse!("the command line is longer than {COMMAND_LINE_MAX} bytes");
        };
        *place = byte;
        len += 1;
    }
    match core::str::from_utf8(&line[..len]) {
        Ok(line) => line,
        Err(_) => refuse!("the command line is not UTF-8"),
    }
}

/// The region a node lives in: the largest area that is left.
fn region(areas: &[Area], image: Area) -> &'static mut [MaybeUninit<u8>] {
    let largest = areas.iter().max_by_key(|area| area.bytes());
    let area = largest.expect("the area of the image is among them");
    let left = areas.iter().map(Area::bytes).sum::<u64>() - area.bytes();
    defmt::info!(
        "memory: image {=u64} KiB, node {=u64} KiB, unused {=u64} KiB",
        image.bytes() / 1024,
        area.bytes() / 1024,
        left / 1024
    );
    // SAFETY: the area is mapped, aligned to a page, used by nobody, and given away once.
    unsafe {
        core::slice::from_raw_parts_mut(area.start as *mut MaybeUninit<u8>, area.bytes() as usize)
    }
}

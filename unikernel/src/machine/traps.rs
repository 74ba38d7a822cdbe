//! Segments, the task state, the vectors, and what is said when the processor objects.
//!
//! * Every vector runs on a stack of its own, between pages that nobody may touch.
//! * An exception is the end: it is reported and the machine exits with a failure.
//! * An interrupt only ends a HLT.

use super::cpu::fault_address;
use super::exit;
use super::serial::say;
use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::mem::{offset_of, size_of};
use core::sync::atomic::{AtomicBool, Ordering};

/// Vector of the timer and of all devices.
pub(crate) const INTERRUPT_VECTOR: u8 = 0x30;
/// Vector the local APIC uses when an interrupt has vanished.
pub(crate) const SPURIOUS_VECTOR: u8 = 0xff;

const CODE: u16 = 8;
const DATA: u16 = 16;
const TASK: u16 = 24;

/// Bytes of the main stack. A node of some dozens of kilobytes is put together on it, and moved.
pub(crate) const MAIN_STACK_BYTES: usize = 512 << 10;
const VECTOR_STACK_BYTES: usize = 8 << 10;

#[repr(C, align(4096))]
struct Guard([u8; 4096]);

/// All stacks, each with a guard page below it.
#[repr(C, align(4096))]
pub(crate) struct Stacks {
    main_guard: Guard,
    main: [u8; MAIN_STACK_BYTES],
    exception_guard: Guard,
    exception: [u8; VECTOR_STACK_BYTES],
    fault_guard: Guard,
    fault: [u8; VECTOR_STACK_BYTES],
    interrupt_guard: Guard,
    interrupt: [u8; VECTOR_STACK_BYTES],
}

/// Offset of the main stack's end in [`STACKS`].
pub(crate) const MAIN_STACK_END: usize = offset_of!(Stacks, main) + MAIN_STACK_BYTES;

/// A static that only the boot code and the processor use.
pub(crate) struct Hardware<T>(pub(crate) UnsafeCell<T>);

// SAFETY: there is one processor and no preemption; each use says why it is alone.
unsafe impl<T> Sync for Hardware<T> {}

/// The memory of the stacks.
// SAFETY: (of the zeroes) the stacks are plain bytes.
pub(crate) static STACKS: Hardware<Stacks> =
    Hardware(UnsafeCell::new(unsafe { core::mem::zeroed() }));

/// Addresses of the guard pages.
pub(crate) fn guard_pages() -> [u64; 4] {
    let base = STACKS.0.get().addr();
    [
        offset_of!(Stacks, main_guard),
        offset_of!(Stacks, exception_guard),
        offset_of!(Stacks, fault_guard),
        offset_of!(Stacks, interrupt_guard),
    ]
    .map(|offset| (base + offset) as u64)
}

/// The 64-bit task state segment (Intel SDM volume 3, figure 8-11).
#[repr(C, packed(4))]
struct TaskState {
    reserved0: u32,
    privileged_stacks: [u64; 3],
    reserved1: u64,
    interrupt_stacks: [u64; 7],
    reserved2: u64,
    reserved3: u16,
    io_map: u16,
}

/// Index into `interrupt_stacks`, plus 1, for each kind of vector.
const STACK_EXCEPTION: u8 = 1;
const STACK_FAULT: u8 = 2;
const STACK_INTERRUPT: u8 = 3;

/// An interrupt gate (Intel SDM volume 3, figure 6-8).
#[repr(C)]
#[derive(Clone, Copy)]
struct Gate {
    offset_low: u16,
    selector: u16,
    stack: u8,
    kind: u8,
    offset_middle: u16,
    offset_high: u32,
    reserved: u32,
}

impl Gate {
    const NONE: Gate = Gate {
        offset_low: 0,
        selector: 0,
        stack: 0,
        kind: 0,
        offset_middle: 0,
        offset_high: 0,
        reserved: 0,
    };

    fn new(entry: u64, stack: u8) -> Gate {
        Gate {
            offset_low: entry as u16,
            selector: CODE,
            stack,
            kind: 0x8e,
            offset_middle: (entry >> 16) as u16,
            offset_high: (entry >> 32) as u32,
            reserved: 0,
        }
    }
}

struct Tables {
    task: TaskState,
    segments: [u64; 5],
    gates: [Gate; 256],
}

// SAFETY: (of the zeroes) the tables are plain numbers.
static TABLES: Hardware<Tables> = Hardware(UnsafeCell::new(unsafe { core::mem::zeroed() }));

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

unsafe extern "C" {
    static exception_vectors: [u64; 32];
    fn interrupt_entry();
    fn spurious_entry();
}

global_asm!(
    include_str!("vectors.s"),
    report = sym report,
    apic_eoi = const super::interrupts::APIC_EOI,
    options(att_syntax)
);

/// Loads segments, task state and vectors. Called once, by the boot code.
pub(crate) fn init() {
    let stacks = STACKS.0.get() as u64;
    let top = |offset: usize| stacks + (offset + VECTOR_STACK_BYTES) as u64;
    // SAFETY: called once, before any interrupt: nothing else uses the tables.
    let tables = unsafe { &mut *TABLES.0.get() };
    let mut interrupt_stacks = [0; 7];
    interrupt_stacks[usize::from(STACK_EXCEPTION) - 1] = top(offset_of!(Stacks, exception));
    interrupt_stacks[usize::from(STACK_FAULT) - 1] = top(offset_of!(Stacks, fault));
    interrupt_stacks[usize::from(STACK_INTERRUPT) - 1] = top(offset_of!(Stacks, interrupt));
    tables.task.interrupt_stacks = interrupt_stacks;
    tables.task.io_map = size_of::<TaskState>() as u16;
    let task = &raw const tables.task as u64;
    let limit = size_of::<TaskState>() as u64 - 1;
    tables.segments = [
        0,
        0x00af_9a00_0000_ffff,
        0x00cf_9200_0000_ffff,
        limit | (task & 0xff_ffff) << 16 | 0x89 << 40 | (task >> 24 & 0xff) << 56,
        task >> 32,
    ];
    tables.gates = [Gate::NONE; 256];
    // SAFETY: the array is constant.
    for (number, entry) in unsafe { exception_vectors }.into_iter().enumerate() {
        // A double fault and a non-maskable interrupt may come while the exception stack is in use.
        let stack = if matches!(number, 2 | 8) { STACK_FAULT } else { STACK_EXCEPTION };
        tables.gates[number] = Gate::new(entry, stack);
    }
    tables.gates[usize::from(INTERRUPT_VECTOR)] =
        Gate::new(interrupt_entry as *const () as u64, STACK_INTERRUPT);
    tables.gates[usize::from(SPURIOUS_VECTOR)] =
        Gate::new(spurious_entry as *const () as u64, STACK_INTERRUPT);
    let segments =
        Pointer { limit: size_of::<[u64; 5]>() as u16 - 1, base: tables.segments.as_ptr() as u64 };
    let gates =
        Pointer { limit: size_of::<[Gate; 256]>() as u16 - 1, base: tables.gates.as_ptr() as u64 };
    // SAFETY: the tables are static, and say the same as the boot code's about the segments in use.
    unsafe {
        asm!(
            "lgdt [{segments}]",
            "push {code}",
            "lea {scratch}, [rip + 2f]",
            "push {scratch}",
            "retfq",
            "2:",
            "mov ds, {data:e}",
            "mov es, {data:e}",
            "mov ss, {data:e}",
            "ltr {task:x}",
            "lidt [{gates}]",
            segments = in(reg) &raw const segments,
            gates = in(reg) &raw const gates,
            code = const CODE as u64,
            data = in(reg) u64::from(DATA),
            task = in(reg) u64::from(TASK),
            scratch = out(reg) _,
        );
    }
}

/// Cuts the vectors off behind the double fault's and faults: neither the page fault nor the
/// protection fault that follows can be delivered.
pub(crate) fn commit_double_fault() {
    let base = TABLES.0.get() as u64 + offset_of!(Tables, gates) as u64;
    let gates = Pointer { limit: size_of::<[Gate; 9]>() as u16 - 1, base };
    // SAFETY: none; the processor must stop it.
    unsafe { asm!("lidt [{}]", "mov al, [8]", in(reg) &raw const gates, out("al") _) };
}

/// What the entry points leave on the stack.
#[repr(C)]
struct Frame {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rbp: u64,
    rdi: u64,
    rsi: u64,
    rdx: u64,
    rcx: u64,
    rbx: u64,
    rax: u64,
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

fn name(vector: u64) -> &'static str {
    match vector {
        0 => "divide error",
        1 => "debug",
        2 => "non-maskable interrupt",
        3 => "breakpoint",
        6 => "invalid opcode",
        7 => "device not available",
        8 => "double fault",
        11 => "segment not present",
        12 => "stack fault",
        13 => "general protection fault",
        14 => "page fault",
        16 | 19 => "floating point error",
        17 => "alignment check",
        18 => "machine check",
        21 => "control protection fault",
        _ => "exception",
    }
}

/// What a page fault tried to do (Intel SDM volume 3, 4.7).
fn access(error: u64) -> &'static str {
    match (error & 1 != 0, error & 2 != 0, error & 16 != 0) {
        (_, _, true) => "execute",
        (false, true, false) => "write unmapped",
        (false, false, false) => "read unmapped",
        (true, true, false) => "write protected",
        (true, false, false) => "read protected",
    }
}

/// Says what happened and ends. A fault in here ends without a word.
extern "sysv64" fn report(frame: &Frame) -> ! {
    static REPORTING: AtomicBool = AtomicBool::new(false);
    if REPORTING.swap(true, Ordering::Relaxed) {
        exit::failure();
    }
    let cr2 = fault_address();
    say!(
        "outrider: {} (vector {}, error {:#x}) at rip {:#018x}",
        name(frame.vector),
        frame.vector,
        frame.error,
        frame.rip
    );
    if frame.vector == 14 {
        let guard = guard_pages().contains(&(cr2 & !0xfff));
        let overflow = if guard { ", stack overflow" } else { "" };
        say!("  {} at {:#018x}{overflow}", access(frame.error), cr2);
    }
    let f = frame;
    say!("  rsp {:#018x} cs {:#x} ss {:#x} rflags {:#x}", f.rsp, f.cs, f.ss, f.rflags);
    say!("  rax {:#018x} rbx {:#018x} rcx {:#018x} rdx {:#018x}", f.rax, f.rbx, f.rcx, f.rdx);
    say!("  rsi {:#018x} rdi {:#018x} rbp {:#018x} cr2 {:#018x}", f.rsi, f.rdi, f.rbp, cr2);
    say!("  r8  {:#018x} r9  {:#018x} r10 {:#018x} r11 {:#018x}", f.r8, f.r9, f.r10, f.r11);
    say!("  r12 {:#018x} r13 {:#018x} r14 {:#018x} r15 {:#018x}", f.r12, f.r13, f.r14, f.r15);
    exit::failure()
}

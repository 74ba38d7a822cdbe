//! What the self-test looks at that no node can see: the processor's side of the machine.

use crate::Platform;
use crate::machine::exit::refuse;
use crate::machine::serial::say;
use core::arch::asm;
use core::hint::black_box;
use core::time::Duration;
use outrider_hal::{Clock, Entropy};
use outrider_unikernel::options::Fault;

/// Checks the memory functions, the clock and the entropy source; refuses to go on when one is
/// wrong.
pub(crate) fn accept_machine(platform: &mut Platform) {
    if !memory_functions_work() {
        refuse!("selftest failed: memory functions");
    }
    if !clock_works(&mut platform.clock) {
        refuse!("selftest failed: clock");
    }
    let mut bytes = [[0u8; 32]; 2];
    for sample in &mut bytes {
        platform.entropy.fill(sample);
    }
    let ones: u32 = bytes.as_flattened().iter().map(|byte| byte.count_ones()).sum();
    // 512 fair bits lie outside of this once in 10^15 runs.
    if bytes[0] == bytes[1] || !(165..=347).contains(&ones) {
        refuse!("selftest failed: entropy");
    }
    say!("selftest: memory functions, clock and entropy are fine");
}

/// Time does not go backwards, and passes as fast as the timer says.
fn clock_works(clock: &mut impl Clock) -> bool {
    let start = clock.now();
    let mut last = start;
    for _ in 0..1000 {
        let now = clock.now();
        if now < last {
            return false;
        }
        last = now;
    }
    last > start && last.since(start) < Duration::from_secs(2)
}

/// All lengths and overlaps that take another path through the assembly, against plain loops.
fn memory_functions_work() -> bool {
    const BYTES: usize = 160;
    let source: [u8; BYTES] = core::array::from_fn(|index| (index * 7 + 3) as u8);
    for len in 0..=80 {
        for (from, to) in [(0, 0), (0, 80), (3, 64), (1, 0), (0, 1), (16, 0), (0, 16), (0, 40)] {
            let mut moved = source;
            black_box(&mut moved).copy_within(from..from + len, to);
            let good = (0..BYTES).all(|index| {
                let inside = (to..to + len).contains(&index);
                let expected = if inside { source[index - to + from] } else { source[index] };
                moved[index] == expected
            });
            let mut copied = [0u8; BYTES];
            black_box(&mut copied)[to..to + len]
                .copy_from_slice(&black_box(&source)[from..from + len]);
            let same = copied[to..to + len].iter().eq(&source[from..from + len])
                && copied.iter().filter(|&&byte| byte != 0).count() <= len;
            let mut filled = source;
            black_box(&mut filled)[to..to + len].fill(black_box(0x5a));
            let set = (0..BYTES).all(|index| {
                let inside = (to..to + len).contains(&index);
                filled[index] == if inside { 0x5a } else { source[index] }
            });
            if !(good && same && set) {
                return false;
            }
        }
        let mut other = source;
        other[len] ^= 0x80;
        let (left, right) = (&black_box(&source)[..], &black_box(&other)[..]);
        let less = source[len] < other[len];
        if left[..len] != right[..len] || left[..=len] == right[..=len] || (left < right) != less {
            return false;
        }
    }
    true
}

/// Commits the planted fault. Whatever comes back from it means that a guard is missing.
pub(crate) fn commit(fault: Fault) -> ! {
    say!("selftest: now committing {fault:?}");
    match fault {
        Fault::Panic => panic!("a panic was asked for"),
        Fault::WriteText => {
            let text = commit as *const () as *mut u8;
            // SAFETY: none; the page tables must stop it.
            unsafe { text.write_volatile(text.read_volatile()) };
        }
        Fault::ExecuteData => {
            // A `ret`, which would come back here.
            let data = black_box([0xc3u8; 16]);
            // SAFETY: none; the page tables must stop it.
            unsafe { asm!("call {}", in(reg) data.as_ptr(), clobber_abi("sysv64")) };
        }
        Fault::Null => {
            // SAFETY: none; the page tables must stop it.
            unsafe { asm!("mov al, [{}]", in(reg) 8u64, out("al") _) };
        }
        Fault::Stack => {
            black_box(recurse(black_box(u64::MAX)));
        }
        Fault::Divide => {
            // SAFETY: none; the processor must stop it.
            unsafe {
                asm!("xor edx, edx", "div {0:e}", in(reg) 0u32, out("eax") _, out("edx") _);
            }
        }
        Fault::DoubleFault => crate::machine::traps::commit_double_fault(),
    }
    refuse!("selftest failed: nothing stopped {fault:?}")
}

/// Uses up the stack.
fn recurse(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    if depth == 0 { frame[0] } else { recurse(depth - 1) + black_box(frame)[1] }
}

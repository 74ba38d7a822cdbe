//! The clock: the time stamp counter, corrected by what the real-time clock proves it has missed.
//!
//! * Never goes backwards.
//! * The real-time clock is read at most once in [`RTC_INTERVAL`] of counted time, because each of
//!   its registers costs an exit to the emulator.

use super::cpu::{inb, outb, tsc};
use super::interrupts::{arm_timer, timer_ticks};
use core::arch::x86_64::__cpuid;
use core::time::Duration;
use outrider_hal::{Clock, Instant};
use outrider_unikernel::time::{Pauses, RtcRegisters, Scale};

/// Counted time between two looks at the real-time clock, at least.
const RTC_INTERVAL: Duration = Duration::from_millis(16);
/// Once the real-time clock's phase is known this well, idle machines need not wake to learn it.
const PHASE_KNOWN: Duration = Duration::from_millis(50);
/// After this long, the phase is taken as it is.
const PHASE_EFFORT: Duration = Duration::from_secs(3);
/// What was missed is worth a line in the log from here on. Less is drift between the clocks.
const PAUSE_WORTH_TELLING: Duration = Duration::from_millis(200);

/// The machine's clock.
pub(crate) struct MachineClock {
    scale: Scale,
    start_ticks: u64,
    missed: Duration,
    pauses: Pauses,
    /// Seconds that the real-time clock showed at the start; `None` without one.
    rtc_start: Option<u64>,
    rtc_read_nanos: u64,
    timer_hertz: u64,
}

/// How fast the counter and the timer run, and who said so.
pub(crate) struct Rates {
    /// Ticks of the counter in a second.
    pub(crate) counter_hertz: u64,
    /// Ticks of the local APIC's timer in a second.
    pub(crate) timer_hertz: u64,
    /// Where the counter's rate is from.
    pub(crate) source: &'static str,
}

impl MachineClock {
    /// Measures the rates and starts the clock at zero; `None` when nothing on this machine tells
    /// how fast its counter runs.
    pub(crate) fn new() -> Option<(MachineClock, Rates)> {
        let rates = measure_rates()?;
        let rtc_start = read_rtc_patiently();
        let clock = MachineClock {
            scale: Scale::new(rates.counter_hertz)?,
            start_ticks: tsc(),
            missed: Duration::ZERO,
            pauses: Pauses::default(),
            rtc_start,
            rtc_read_nanos: 0,
            timer_hertz: rates.timer_hertz,
        };
        Some((clock, rates))
    }

    /// Whether pauses can be noticed at all.
    pub(crate) fn has_rtc(&self) -> bool {
        self.rtc_start.is_some()
    }

    /// Whether as much time has passed here as on the real-time clock, as far as that can tell.
    pub(crate) fn agrees_with_rtc(&mut self) -> bool {
        /// The real-time clock's step, and some time to come here.
        const SLACK: Duration = Duration::from_millis(1200);
        let Some(start) = self.rtc_start else {
            return true;
        };
        let now = Duration::from_nanos(self.now().0);
        read_rtc_patiently().is_some_and(|seconds| {
            now.abs_diff(Duration::from_secs(seconds.saturating_sub(start))) <= SLACK
        })
    }

    /// How long it takes to read the real-time clock.
    pub(crate) fn rtc_cost(&self) -> Duration {
        let ticks = tsc();
        // Only the time it takes is of interest.
        let _ = read_rtc();
        Duration::from_nanos(self.scale.nanos(tsc() - ticks))
    }

    /// All the time that the counter has missed.
    pub(crate) fn missed(&self) -> Duration {
        self.missed
    }

    fn nanos(&self) -> u64 {
        let ticks = tsc().saturating_sub(self.start_ticks);
        self.scale.nanos(ticks).saturating_add(self.missed.as_nanos() as u64)
    }

    fn look_at_rtc(&mut self, now: u64) -> u64 {
        self.rtc_read_nanos = now;
        let Some(seconds) = read_rtc() else {
            return now;
        };
        let behind = self.pauses.behind(now, seconds);
        self.missed += behind;
        if behind >= PAUSE_WORTH_TELLING {
            let (missed, total) = (behind.as_millis() as u64, self.missed.as_millis() as u64);
            defmt::warn!(
                "clock: the machine stood still for {=u64} ms, {=u64} in all",
                missed,
                total
            );
        }
        let now = now.saturating_add(behind.as_nanos() as u64);
        self.rtc_read_nanos = now;
        now
    }

    /// How long the machine may sleep at most, by the clock's needs.
    pub(crate) fn longest_sleep(&self) -> Duration {
        let learning = self.has_rtc()
            && self.pauses.uncertainty() > PHASE_KNOWN
            && self.nanos() < PHASE_EFFORT.as_nanos() as u64;
        if learning { RTC_INTERVAL } else { Duration::from_secs(1) }
    }

    /// Makes the timer interrupt after this long; earlier when it is very long.
    pub(crate) fn arm(&self, after: Duration) {
        let ticks = after.as_nanos() * u128::from(self.timer_hertz) / 1_000_000_000;
        arm_timer(u32::try_from(ticks).unwrap_or(u32::MAX));
    }
}

impl Clock for MachineClock {
    fn now(&mut self) -> Instant {
        let mut now = self.nanos();
        if self.has_rtc()
            && now.saturating_sub(self.rtc_read_nanos) >= RTC_INTERVAL.as_nanos() as u64
        {
            now = self.look_at_rtc(now);
        }
        super::log::stamp(now / 1000);
        Instant(now)
    }
}

/// Asks the processor how fast its counter runs: the hypervisor's leaf, or Intel's.
fn counter_hertz_from_cpuid() -> Option<(u64, &'static str)> {
    const HYPERVISOR: u32 = 0x4000_0000;
    if __cpuid(1).ecx >> 31 != 0 && __cpuid(HYPERVISOR).eax >= HYPERVISOR + 0x10 {
        let kilohertz = u64::from(__cpuid(HYPERVISOR + 0x10).eax);
        if kilohertz != 0 {
            return Some((kilohertz * 1000, "hypervisor"));
        }
    }
    if __cpuid(0).eax >= 0x15 {
        let leaf = __cpuid(0x15);
        let (denominator, numerator, crystal) =
            (u64::from(leaf.eax), u64::from(leaf.ebx), u64::from(leaf.ecx));
        if denominator != 0 && numerator != 0 && crystal != 0 {
            return Some((crystal * numerator / denominator, "cpuid"));
        }
    }
    None
}

/// Measures against the interval timer until two measurements agree, or against the counter where
/// its rate is known.
fn measure_rates() -> Option<Rates> {
    /// Measurements that may disagree with the one before.
    const TRIES: u32 = 8;
    let known = counter_hertz_from_cpuid();
    arm_timer(u32::MAX);
    if let Some((counter_hertz, source)) = known {
        let (ticks, timer) = (tsc(), timer_ticks());
        while tsc() - ticks < counter_hertz / 200 {}
        let passed = u64::from(timer - timer_ticks());
        let timer_hertz = passed * counter_hertz / (tsc() - ticks);
        return Some(Rates { counter_hertz, timer_hertz, source });
    }
    let mut last = measure_against_pit()?;
    for _ in 0..TRIES {
        let next = measure_against_pit()?;
        if next.counter_hertz.abs_diff(last.counter_hertz) <= next.counter_hertz / 500 {
            return Some(next);
        }
        last = next;
    }
    None
}

/// Measures once against the interval timer. Wrong when the host held the machine up for so long
/// that the interval timer came round.
fn measure_against_pit() -> Option<Rates> {
    const PIT_HERTZ: u64 = 1_193_182;
    /// Of the interval timer: ten milliseconds.
    const WINDOW: u64 = PIT_HERTZ / 100;
    const LOOKS: u32 = 1_000_000;
    arm_timer(u32::MAX);
    start_pit();
    let first = sample()?;
    let passed = |sample: &Sample| u64::from(first.pit.wrapping_sub(sample.pit));
    let last = (0..LOOKS).find_map(|_| sample().filter(|sample| passed(sample) >= WINDOW))?;
    let window = passed(&last);
    let counter_hertz = (last.counter - first.counter) * PIT_HERTZ / window;
    let timer_hertz = u64::from(first.timer - last.timer) * PIT_HERTZ / window;
    Some(Rates { counter_hertz, timer_hertz, source: "interval timer" })
}

/// The three timers, read together.
struct Sample {
    counter: u64,
    timer: u32,
    pit: u16,
}

/// Counts channel 0 of the interval timer down from its end once. It interrupts nobody.
fn start_pit() {
    outb(0x43, 0x30);
    outb(0x40, 0xff);
    outb(0x40, 0xff);
}

fn read_pit() -> u16 {
    outb(0x43, 0);
    let low = inb(0x40);
    u16::from(inb(0x40)) << 8 | u16::from(low)
}

/// Reads the timers a few times, and keeps the reading that the host disturbed least.
fn sample() -> Option<Sample> {
    const READINGS: u32 = 5;
    let mut best: Option<(u64, Sample)> = None;
    for _ in 0..READINGS {
        let before = tsc();
        let pit = read_pit();
        let counter = tsc();
        let timer = timer_ticks();
        let took = tsc() - before;
        if best.as_ref().is_none_or(|(quickest, _)| took < *quickest) {
            best = Some((took, Sample { counter, timer, pit }));
        }
    }
    best.map(|(_, sample)| sample)
}

/// Reads the real-time clock as soon as it shows something; `None` when there is none.
fn read_rtc_patiently() -> Option<u64> {
    // An update takes two milliseconds at most; a look takes a microsecond at least.
    (0..10_000).find_map(|_| read_rtc())
}

/// Reads the real-time clock; `None` while it changes, or when there is none.
fn read_rtc() -> Option<u64> {
    const UPDATING: u8 = 1 << 7;
    let register = |number: u8| {
        outb(0x70, number);
        inb(0x71)
    };
    if register(10) & UPDATING != 0 {
        return None;
    }
    let fields = [0, 2, 4, 7, 8, 9].map(register);
    let mode = register(11);
    // A second that has changed meanwhile may have changed the rest as well.
    if register(0) != fields[0] {
        return None;
    }
    RtcRegisters { fields, mode }.seconds()
}

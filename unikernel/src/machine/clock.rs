//! The clock: the time stamp counter, corrected by what the real-time clock proves it has missed.
//!
//! ```text
//! Measurement::start -> (other work) -> MachineClock::new -> (other work) -> settle
//!                                       good to a percent                    good to 1/500
//! ```
//!
//! * Never goes backwards, not when its rate is settled either.
//! * The rate that a node lives by was found twice, by measurements that agree. The machine is
//!   brought up while they go on: only what is left of a measurement's time is waited for.
//! * The real-time clock is read at most once in [`RTC_INTERVAL`] of counted time, because each of
//!   its registers costs an exit to the emulator.

use super::cpu::{inb, outb, tsc};
use super::interrupts::{arm_timer, timer_ticks};
use core::arch::x86_64::__cpuid;
use core::time::Duration;
use outrider_hal::{Clock, Instant};
use outrider_unikernel::time::{PIT_HERTZ, Pauses, RtcRegisters, Scale, pit_ticks};

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
    measurement: Measurement,
    counter_hertz: u64,
    /// Ticks of the timer, and of the counter in the same time.
    timer_rate: (u64, u64),
    scale: Scale,
    /// What the counter showed when the clock, without what was missed, showed `start_nanos`.
    start_ticks: u64,
    start_nanos: u64,
    missed: Duration,
    pauses: Pauses,
    /// Seconds that the real-time clock showed at the start; `None` without one.
    rtc_start: Option<u64>,
    rtc_read_nanos: u64,
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
    /// Starts the clock at zero, at a rate that is good enough to wait by; `None` when nothing on
    /// this machine tells how fast its counter runs.
    pub(crate) fn new(measurement: Measurement) -> Option<MachineClock> {
        let last = measurement.sample_after(FIRST_WINDOW_MICROS, None)?;
        let first = &measurement.first;
        let counter_hertz = measurement.counter_hertz(&last, None)?;
        let timer_rate = (u64::from(first.timer - last.timer), last.counter - first.counter);
        Some(MachineClock {
            measurement,
            counter_hertz,
            timer_rate,
            scale: Scale::new(counter_hertz)?,
            start_ticks: tsc(),
            start_nanos: 0,
            missed: Duration::ZERO,
            pauses: Pauses::default(),
            rtc_start: read_rtc_patiently(),
            rtc_read_nanos: 0,
        })
    }

    /// Goes on at a rate that two measurements agree about, the second since the first's start: the
    /// later this is called, the better it is, and the less is waited. `None` when none agree.
    pub(crate) fn settle(&mut self) -> Option<Rates> {
        /// Measurements that may disagree with the one before.
        const TRIES: u32 = 8;
        for _ in 0..TRIES {
            let last = self.counter_hertz;
            let sample = self.measurement.sample_after(WINDOW_MICROS, Some(last))?;
            let next = self.measurement.counter_hertz(&sample, Some(last))?;
            self.run_at(next)?;
            if next.abs_diff(last) <= next / 500 {
                let source = self.measurement.known.map_or("interval timer", |(_, source)| source);
                let (counter_hertz, timer_hertz) = (next, self.timer_hertz());
                return Some(Rates { counter_hertz, timer_hertz, source });
            }
            self.measurement = Measurement::start()?;
        }
        None
    }

    /// Goes on at this rate.
    fn run_at(&mut self, counter_hertz: u64) -> Option<()> {
        let ticks = tsc();
        self.start_nanos += self.scale.nanos(ticks.saturating_sub(self.start_ticks));
        self.start_ticks = ticks;
        self.scale = Scale::new(counter_hertz)?;
        self.counter_hertz = counter_hertz;
        Some(())
    }

    fn timer_hertz(&self) -> u64 {
        let (timer, counter) = self.timer_rate;
        timer * self.counter_hertz / counter.max(1)
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

    /// All the time that the counter has missed.
    pub(crate) fn missed(&self) -> Duration {
        self.missed
    }

    fn nanos(&self) -> u64 {
        let ticks = tsc().saturating_sub(self.start_ticks);
        let counted = self.start_nanos.saturating_add(self.scale.nanos(ticks));
        counted.saturating_add(self.missed.as_nanos() as u64)
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
        let ticks = after.as_nanos() * u128::from(self.timer_hertz()) / 1_000_000_000;
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

/// Time of a measurement that only has to be good enough to wait by.
const FIRST_WINDOW_MICROS: u64 = 3_000;
/// Time of one that lasts.
const WINDOW_MICROS: u64 = 10_000;

/// A measurement of the rates that has begun.
pub(crate) struct Measurement {
    first: Sample,
    /// Rate of the counter, where the processor tells, and who says so.
    known: Option<(u64, &'static str)>,
}

impl Measurement {
    /// Starts the timers.
    pub(crate) fn start() -> Option<Measurement> {
        arm_timer(u32::MAX);
        start_pit();
        Some(Measurement { first: sample()?, known: counter_hertz_from_cpuid() })
    }

    /// Looks at the timers as soon as the start was so long ago; `None` when they don't move.
    /// `expected` is what the counter's rate is thought to be.
    fn sample_after(&self, micros: u64, expected: Option<u64>) -> Option<Sample> {
        const LOOKS: u32 = 1_000_000;
        let reached = |sample: &Sample| match self.known {
            Some((hertz, _)) => sample.counter - self.first.counter >= hertz / 1_000_000 * micros,
            None => self.pit_ticks(sample, expected) >= PIT_HERTZ * micros / 1_000_000,
        };
        (0..LOOKS).find_map(|_| sample().filter(reached))
    }

    /// Ticks of the interval timer since the start. Without `expected`, wrong when the host held
    /// the machine up for so long that the interval timer came round.
    fn pit_ticks(&self, sample: &Sample, expected: Option<u64>) -> u64 {
        let passed = self.first.pit.wrapping_sub(sample.pit).into();
        let ticks = sample.counter - self.first.counter;
        expected.map_or(passed, |hertz| pit_ticks(passed, ticks, hertz))
    }

    /// The counter's rate from the start to this sample.
    fn counter_hertz(&self, sample: &Sample, expected: Option<u64>) -> Option<u64> {
        if let Some((hertz, _)) = self.known {
            return Some(hertz);
        }
        let ticks = u128::from(sample.counter - self.first.counter) * u128::from(PIT_HERTZ);
        u64::try_from(ticks.checked_div(self.pit_ticks(sample, expected).into())?).ok()
    }
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

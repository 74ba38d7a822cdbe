//! Time from two clocks: one that is quick to read, and one that goes on while the machine stands
//! still.
//!
//! The time stamp counter of a stopped guest stands still; its real-time clock does not, but shows
//! whole seconds only. [`Pauses`] learns how far the real-time clock is ahead of the counter, and
//! says how much of the present the counter has missed.
//!
//! # Invariants
//!
//! * Time only moves forward. A real-time clock that is set back changes nothing; one that is set
//!   forward looks like a pause, which is the safe way to be wrong: waits end early, leases are
//!   held for shorter than granted.
//! * `behind` never says more than the real-time clock proves. A whole pause shows within a second
//!   of reading, the phase within the second having been learned before.
//!
//! What this module deliberately doesn't know: how either clock is read.

use core::time::Duration;

const SECOND: i64 = 1_000_000_000;

/// Turns counter ticks into nanoseconds.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    nanos_per_tick_q32: u64,
}

impl Scale {
    /// For a counter of this many ticks a second; `None` unless it is between 1 MHz and 100 GHz.
    #[must_use]
    pub fn new(hertz: u64) -> Option<Scale> {
        if !(1_000_000..=100_000_000_000).contains(&hertz) {
            return None;
        }
        Some(Scale { nanos_per_tick_q32: ((SECOND as u64) << 32) / hertz })
    }

    /// Nanoseconds that this many ticks take.
    #[must_use]
    pub fn nanos(&self, ticks: u64) -> u64 {
        let nanos = (u128::from(ticks) * u128::from(self.nanos_per_tick_q32)) >> 32;
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }
}

/// Ticks of a PC's interval timer (8254) in a second.
pub const PIT_HERTZ: u64 = 1_193_182;
/// Ticks after which the interval timer comes round.
const PIT_ROUND: u64 = 1 << 16;

/// How often the interval timer has ticked while a counter of about `hertz` did so `ticks` times:
/// `passed`, but for whole rounds. Right as long as `hertz` is wrong by less than half a round.
#[must_use]
pub fn pit_ticks(passed: u64, ticks: u64, hertz: u64) -> u64 {
    let expected = u128::from(ticks) * u128::from(PIT_HERTZ) / u128::from(hertz.max(1));
    let expected = u64::try_from(expected).unwrap_or(u64::MAX);
    let rounds = expected.saturating_sub(passed).saturating_add(PIT_ROUND / 2) / PIT_ROUND;
    passed + rounds * PIT_ROUND
}

/// Finds out from a clock of whole seconds what a counter has missed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pauses {
    /// Bounds of (real-time clock - own clock), in nanoseconds.
    ahead: Option<(i64, i64)>,
}

impl Pauses {
    /// Takes one look at both clocks: `now`, nanoseconds of the own clock with all that was missed
    /// before added, and the seconds of the real-time clock. Answers how much `now` is behind.
    pub fn behind(&mut self, now: u64, rtc_seconds: u64) -> Duration {
        let (Ok(now), Ok(rtc)) = (i64::try_from(now), i64::try_from(rtc_seconds)) else {
            return Duration::ZERO;
        };
        let Some(rtc) = rtc.checked_mul(SECOND) else {
            return Duration::ZERO;
        };
        // The real-time clock shows `rtc` from then on for one second.
        let (low, high) = (rtc - now, rtc - now + SECOND);
        let Some((least, most)) = self.ahead else {
            self.ahead = Some((low, high));
            return Duration::ZERO;
        };
        let missed = low - most;
        self.ahead = Some((least.max(low).min(most), most.min(high)));
        Duration::from_nanos(u64::try_from(missed).unwrap_or(0))
    }

    /// How exactly the phase of the real-time clock is known; at first, to a second.
    #[must_use]
    pub fn uncertainty(&self) -> Duration {
        let (least, most) = self.ahead.unwrap_or((0, SECOND));
        Duration::from_nanos(u64::try_from(most - least).unwrap_or(0))
    }
}

/// The registers of a PC's real-time clock (MC146818).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RtcRegisters {
    /// Registers 0, 2, 4, 7, 8 and 9: second, minute, hour, day, month, year of the century.
    pub fields: [u8; 6],
    /// Register B: whether the fields are binary, and the hours count to 24.
    pub mode: u8,
}

impl RtcRegisters {
    /// Seconds since the start of 2000; `None` when the registers hold no date.
    #[must_use]
    pub fn seconds(&self) -> Option<u64> {
        const BINARY: u8 = 1 << 2;
        const HOURS_24: u8 = 1 << 1;
        const PM: u8 = 1 << 7;
        let number = |raw: u8| {
            if self.mode & BINARY != 0 {
                Some(u64::from(raw))
            } else {
                (raw & 15 < 10 && raw >> 4 < 10).then(|| u64::from((raw >> 4) * 10 + (raw & 15)))
            }
        };
        let [second, minute, hour, day, month, year] = self.fields;
        let hour = if self.mode & HOURS_24 != 0 {
            number(hour)?
        } else {
            let half = number(hour & !PM).filter(|hour| (1..=12).contains(hour))? % 12;
            half + if hour & PM != 0 { 12 } else { 0 }
        };
        let (second, minute) = (number(second)?, number(minute)?);
        let (day, month, year) = (number(day)?, number(month)?, number(year)?);
        let valid = second < 60
            && minute < 60
            && hour < 24
            && (1..=31).contains(&day)
            && (1..=12).contains(&month)
            && year < 100;
        valid.then(|| ((days(year, month, day) * 24 + hour) * 60 + minute) * 60 + second)
    }
}

/// Days from the start of 2000 to this date, `year` of 2000. Months count from 1.
fn days(year: u64, month: u64, day: u64) -> u64 {
    const BEFORE: [u64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let leap_day = u64::from(year.is_multiple_of(4) && month > 2);
    let leap_years = year.div_ceil(4);
    year * 365 + leap_years + BEFORE[month as usize - 1] + leap_day + day - 1
}

#[cfg(test)]
mod tests {
    use super::{PIT_HERTZ, PIT_ROUND, Pauses, RtcRegisters, Scale, pit_ticks};
    use core::time::Duration;

    const MILLI: u64 = 1_000_000;

    /// Looks at both clocks every `step` ms from `from` to `to`, the real-time clock being
    /// `ahead` ms ahead. Returns what was found missing, in ms, and adds it to the own clock.
    fn watch(pauses: &mut Pauses, from: u64, to: u64, step: u64, ahead: u64) -> u64 {
        let mut missed = 0;
        for now in (from..to).step_by(step as usize) {
            let own = (now + missed) * MILLI;
            missed += pauses.behind(own, (now + ahead) / 1000).as_millis() as u64;
        }
        missed
    }

    #[test]
    fn a_steady_pair_of_clocks_misses_nothing() {
        for ahead in [0, 1, 499, 999, 5_000] {
            let mut pauses = Pauses::default();
            assert_eq!(watch(&mut pauses, 0, 60_000, 16, ahead), 0);
            assert!(pauses.uncertainty() <= Duration::from_millis(16));
        }
    }

    #[test]
    fn a_pause_is_found_whole_within_a_second() {
        for ahead in [0, 250, 999] {
            for pause in [1_100, 6_000, 59_999, 60_000, 3_600_000] {
                let mut pauses = Pauses::default();
                watch(&mut pauses, 0, 3_000, 16, ahead);
                let found = watch(&mut pauses, 3_000, 4_100, 16, ahead + pause);
                assert!(found <= pause && found + 40 >= pause, "{found} of {pause}");
            }
        }
    }

    #[test]
    fn a_clock_set_back_changes_nothing_and_time_goes_on() {
        let mut pauses = Pauses::default();
        watch(&mut pauses, 0, 3_000, 16, 100_000);
        assert_eq!(watch(&mut pauses, 3_000, 20_000, 16, 50_000), 0);
    }

    #[test]
    fn ticks_become_nanoseconds() {
        let scale = Scale::new(2_500_000_000).unwrap();
        let year = 365 * 86_400;
        let off = scale.nanos(2_500_000_000 * year).abs_diff(year * 1_000_000_000);
        assert!(off < year * 10);
        assert!(Scale::new(0).is_none());
    }

    #[test]
    fn the_interval_timers_rounds_are_counted() {
        for hertz in [1_000_000_000, 2_600_000_000, 5_000_000_000] {
            for pit in [3_580, 11_932, 65_535, 65_536, 65_537, 100_000, 1_193_182, 2_000_000] {
                let ticks = pit * hertz / PIT_HERTZ;
                for thought in [hertz, hertz - hertz / 100, hertz + hertz / 100] {
                    assert_eq!(pit_ticks(pit % PIT_ROUND, ticks, thought), pit);
                }
            }
        }
        assert_eq!(pit_ticks(7, 0, 0), 7);
    }

    #[test]
    fn dates_are_read_in_both_notations() {
        let binary = RtcRegisters { fields: [7, 42, 21, 22, 11, 26], mode: 6 };
        let bcd = RtcRegisters { fields: [0x07, 0x42, 0x21, 0x22, 0x11, 0x26], mode: 2 };
        let twelve = RtcRegisters { fields: [0x07, 0x42, 0x89, 0x22, 0x11, 0x26], mode: 0 };
        // date -u -d '2026-11-22 21:42:07' +%s, less that of 2000-01-01.
        let expected = 1_795_383_727 - 946_684_800;
        assert_eq!(binary.seconds(), Some(expected));
        assert_eq!(bcd.seconds(), Some(expected));
        assert_eq!(twelve.seconds(), Some(expected));
        let none = RtcRegisters { fields: [0xff; 6], mode: 0xff };
        assert_eq!(none.seconds(), None);
    }
}

//! When the volume is swept: merged although no level has too many runs, to let go of what was
//! deleted.
//!
//! ```text
//!              quiet for FIRST         nothing worth it          nothing worth it
//!   Waiting -------------------> 4 -----------------------> 8 ---- ... ----------> 64 --> Over
//!      ^                             a sweep: once more
//!      +--- runs are recorded, or a term begins, at any time ---
//! ```
//!
//! # Invariants
//!
//! * A volume is swept only after it was quiet: no transaction brought runs for as many seconds as
//!   the *patience* with which a sweep is then chosen, see [`choose`](crate::lsm::choose). So who
//!   writes all the time is never swept for, and who writes now and then only for what costs little
//!   beside what was deleted.
//! * It comes to rest: with each patience sweeps follow each other until there is none, which they
//!   do, because each takes items down; one that fails counts as none. After the last nothing is
//!   looked at until runs are recorded again.
//! * One sweep at a time, when nothing else is merged.
//!
//! What this module deliberately doesn't know: what a sweep is worth, and who makes it.

use core::time::Duration;
use outrider_hal::Instant;

/// The first patience.
const FIRST: u64 = 4;
/// The last.
const LAST: u64 = 64;
/// Something else is under way: a look is put off by this.
const PUT_OFF: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sweeps {
    /// Since when nothing was recorded, as far as this term knows.
    quiet_since: Option<Instant>,
    patience: u64,
    /// When to look next. None: not before something is recorded.
    at: Option<Instant>,
}

impl Sweeps {
    /// At the beginning of a term.
    pub(super) const NEW: Sweeps = Sweeps { quiet_since: None, patience: FIRST, at: None };

    /// A transaction has brought runs.
    pub(super) fn on_recorded(&mut self, now: Instant) {
        (self.quiet_since, self.patience) = (Some(now), FIRST);
        self.look_after(now);
    }

    fn look_after(&mut self, since: Instant) {
        let quiet = Duration::from_secs(self.patience);
        self.at = (self.patience <= LAST).then_some(since.plus(quiet));
    }

    /// With how much patience to look for a sweep now, if at all.
    pub(super) fn due(&mut self, now: Instant) -> Option<u64> {
        if self.quiet_since.is_none() {
            self.on_recorded(now);
        }
        self.at.is_some_and(|at| at <= now).then_some(self.patience)
    }

    /// Nobody can be asked now.
    pub(super) fn put_off(&mut self, now: Instant) {
        self.at = self.at.map(|at| at.max(now.plus(PUT_OFF)));
    }

    /// There was nothing with this patience, or it failed.
    pub(super) fn on_nothing(&mut self) {
        self.patience = self.patience.saturating_mul(2);
        if let Some(since) = self.quiet_since {
            self.look_after(since);
        }
    }

    /// When to look.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(at: u64) -> Instant {
        Instant(0).plus(Duration::from_secs(at))
    }

    #[test]
    fn a_quiet_volume_is_looked_over_less_and_less_and_then_not_at_all() {
        let mut sweeps = Sweeps::NEW;
        assert_eq!(sweeps.due(second(10)), None);
        for (quiet, patience) in [(4, 4), (8, 8), (16, 16), (32, 32), (64, 64)] {
            assert_eq!(sweeps.poll_timeout(), Some(second(10 + quiet)));
            assert_eq!(sweeps.due(second(9 + quiet)), None);
            assert_eq!(sweeps.due(second(10 + quiet)), Some(patience));
            // As long as there are any, it stays at that.
            assert_eq!(sweeps.due(second(11 + quiet)), Some(patience));
            sweeps.on_nothing();
        }
        assert_eq!((sweeps.due(second(10_000)), sweeps.poll_timeout()), (None, None));
        sweeps.on_recorded(second(20_000));
        assert_eq!(sweeps.due(second(20_003)), None);
        assert_eq!(sweeps.due(second(20_004)), Some(4));
    }

    #[test]
    fn who_writes_all_the_time_is_not_swept_for() {
        let mut sweeps = Sweeps::NEW;
        for at in (0..1000).step_by(3) {
            assert_eq!(sweeps.due(second(at)), None);
            sweeps.on_recorded(second(at));
        }
    }

    #[test]
    fn what_can_t_be_made_now_is_looked_for_again() {
        let mut sweeps = Sweeps::NEW;
        sweeps.on_recorded(second(0));
        sweeps.put_off(second(4));
        assert_eq!((sweeps.due(second(4)), sweeps.due(second(5))), (None, Some(4)));
    }
}

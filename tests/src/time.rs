//! Virtual time, and the agenda of what happens in it.
//!
//! # Invariants
//!
//! * [`Time`] is the simulator's own: no node ever sees it. A node sees its own drifting
//!   [`Instant`](outrider_hal::Instant), made from it by the host's clock.
//! * An [`Agenda`] gives its entries back in order of time, entries of one time in the order they
//!   were put in. Nothing else decides the order: no hash, no address.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// A microsecond.
pub const MICRO: Duration = Duration::from_micros(1);
/// A millisecond.
pub const MILLI: Duration = Duration::from_millis(1);
/// A second.
pub const SECOND: Duration = Duration::from_secs(1);
/// A minute.
pub const MINUTE: Duration = Duration::from_secs(60);

/// Nanoseconds since the simulated world began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(pub u64);

impl Time {
    /// The time `after` later.
    #[must_use]
    pub fn plus(self, after: Duration) -> Time {
        Time(self.0.saturating_add(u64::try_from(after.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// How much later this is than `earlier`; zero when it is not.
    #[must_use]
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:09}", self.0 / 1_000_000_000, self.0 % 1_000_000_000);
        f.pad(&text)
    }
}

/// What is going to happen, in order.
#[derive(Debug)]
pub struct Agenda<T> {
    entries: BTreeMap<(Time, u64), T>,
    entries_ever: u64,
}

impl<T> Agenda<T> {
    /// An empty agenda.
    #[must_use]
    pub fn new() -> Agenda<T> {
        Agenda { entries: BTreeMap::new(), entries_ever: 0 }
    }

    /// Notes that `what` happens at `at`.
    pub fn push(&mut self, at: Time, what: T) {
        self.entries.insert((at, self.entries_ever), what);
        self.entries_ever += 1;
    }

    /// When the next entry is due.
    #[must_use]
    pub fn next_at(&self) -> Option<Time> {
        self.entries.first_key_value().map(|((at, _), _)| *at)
    }

    /// Takes the next entry that is due at `now`.
    pub fn pop_due(&mut self, now: Time) -> Option<T> {
        let entry = self.entries.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is going to happen.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl<T> Default for Agenda<T> {
    fn default() -> Agenda<T> {
        Agenda::new()
    }
}

#[cfg(test)]
mod tests {
    use super::{Agenda, Time};

    #[test]
    fn entries_come_in_order_of_time_then_of_arrival() {
        let mut agenda = Agenda::new();
        for (at, what) in [(5, 'c'), (1, 'a'), (5, 'd'), (2, 'b')] {
            agenda.push(Time(at), what);
        }
        assert_eq!(agenda.pop_due(Time(0)), None);
        let order: Vec<char> = std::iter::from_fn(|| agenda.pop_due(Time(9))).collect();
        assert_eq!(order, ['a', 'b', 'c', 'd']);
    }
}

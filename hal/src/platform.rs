//! Time, entropy and a console.

use core::fmt;
use core::time::Duration;

/// A point in time: nanoseconds since an arbitrary start, never going backwards on one node and
/// never compared between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(pub u64);

impl Instant {
    /// The instant `after` later, at most the end of time.
    #[must_use]
    pub fn plus(self, after: Duration) -> Instant {
        Instant(self.0.saturating_add(u64::try_from(after.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// How much later this is than `earlier`; zero when it is not.
    #[must_use]
    pub fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}s", self.0 / 1_000_000_000, self.0 / 1_000 % 1_000_000)
    }
}

/// The node's clock.
pub trait Clock {
    /// The present. Time during which the whole node stood still (a stopped guest, a suspended
    /// host) must show as time that went by, as far as the platform can see it at all.
    fn now(&mut self) -> Instant;
}

/// Unpredictable bytes.
pub trait Entropy {
    /// Fills the buffer. A platform that can't must refuse to start a node rather than to return
    /// guessable bytes here.
    fn fill(&mut self, bytes: &mut [u8]);
}

/// Where a node's log goes: already encoded frames, in order, best effort.
pub trait Console {
    /// Writes the bytes, or drops them when they can't be taken.
    fn write(&mut self, bytes: &[u8]);
}

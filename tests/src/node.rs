//! A simulated machine: a node, its memory, its clock, and what stands between it and the world.
//!
//! ```text
//!            boot                    pause
//!   Down ------------> Running ------------------> Paused
//!    ^                   | ^                          | |
//!    |       crash       | `----------- resume -------' |
//!    `-------------------+------------------------------'  crash
//! ```
//!
//! # Invariants
//!
//! * Each boot starts a node from nothing but the program, a fresh region, fresh entropy and a
//!   clock that begins anywhere. Whatever survives is on the disk.
//! * Everything of a life that may point into its region is in its [`Life`], counted by the lease,
//!   and gone before the next boot.
//! * The clock a node sees never goes backwards within a life.
//!
//! What this module deliberately doesn't know: other machines, and when anything happens.

use crate::disk::RequestId;
use crate::region::{Lease, Lent, Region};
use crate::rng::Rng;
use crate::time::{MINUTE, Time};
use outrider_core::node::{Action, Event, Node};
use outrider_hal::{BlockRequest, Endpoint, Instant, StreamId};
use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem::MaybeUninit;
use std::time::Duration;

/// A node that can be looked at from outside, by checkers and workloads that know its type.
pub trait Guest: Node<'static> + Any {}

impl<T: Node<'static> + Any> Guest for T {}

/// What runs on a machine: makes its node anew at every boot.
pub trait Program {
    /// Bytes of memory a node is given.
    fn region_bytes(&self) -> usize;

    /// How long a request may be under way after its node has crashed.
    fn io_lifetime(&self) -> Duration {
        10 * MINUTE
    }

    /// How long its node may act without hearing anything: a pause that is longer makes it one
    /// that others have given up.
    fn lease(&self) -> Duration {
        Duration::ZERO
    }

    /// Starts a node. What it carves from [`Boot::region`] it keeps to itself; see
    /// [`Region::lend`].
    fn start(&self, boot: Boot) -> Box<dyn Guest>;
}

/// What a node has when it starts.
pub struct Boot {
    /// All its memory.
    pub region: &'static mut [MaybeUninit<u8>],
    /// The present, on its clock.
    pub now: Instant,
    /// Where it can be reached, at port 0.
    pub addr: Endpoint,
    /// Tells the boots of one machine apart, as a boot id does; counts from 1.
    pub boots: u32,
    /// Size of the device in blocks.
    pub blocks: u64,
    /// Its source of entropy.
    pub entropy: Rng,
}

/// A clock that drifts and jumps.
#[derive(Debug, Clone)]
pub struct Clock {
    since: Time,
    shown: u64,
    per_million: u64,
}

impl Clock {
    /// A clock that shows `shown` now and advances so many microseconds each second.
    #[must_use]
    pub fn new(now: Time, shown: Instant, per_million: u64) -> Clock {
        Clock { since: now, shown: shown.0, per_million }
    }

    /// What the clock shows.
    #[must_use]
    pub fn now(&self, now: Time) -> Instant {
        let run = u128::from(now.0.saturating_sub(self.since.0)) * u128::from(self.per_million);
        Instant(self.shown.saturating_add((run / 1_000_000) as u64))
    }

    /// The first time at which the clock shows `at` or later.
    #[must_use]
    pub fn when(&self, at: Instant) -> Time {
        let ahead = u128::from(at.0.saturating_sub(self.shown)) * 1_000_000;
        let run = ahead.div_ceil(u128::from(self.per_million));
        Time(self.since.0.saturating_add(u64::try_from(run).unwrap_or(u64::MAX)))
    }

    /// Jumps forward.
    pub fn jump(&mut self, now: Time, ahead: Duration) {
        self.shown = self.now(now).plus(ahead).0;
        self.since = now;
    }

    /// Stands still from now until `until`.
    pub fn freeze(&mut self, now: Time, until: Time) {
        self.shown = self.now(now).0;
        self.since = until;
    }

    /// Ends a freeze early.
    pub fn thaw(&mut self, now: Time) {
        self.since = self.since.min(now);
    }
}

/// What befalls a node at a moment of somebody's choosing.
#[derive(Debug, Clone, Copy)]
pub enum Blow {
    /// It stands still for so long.
    Pause(Duration),
    /// It crashes, and its machine is booted after so long.
    Crash(Duration),
}

/// One life of a node: everything that ends with a crash.
pub struct Life {
    // Dropped in this order: whatever points into the region goes before the last lease.
    /// The node.
    pub node: Lent<Box<dyn Guest>>,
    /// Events it has not been told yet.
    pub inbox: VecDeque<Lent<Event<'static>>>,
    /// An action it has decided on, not yet carried out.
    pub held: Option<Lent<Action<'static>>>,
    /// Requests at the disk. Their buffers wait here; the disk has copies.
    pub flying: BTreeMap<RequestId, Lent<BlockRequest<'static>>>,
    /// Its streams.
    pub streams: BTreeSet<StreamId>,
    /// Until when it stands still.
    pub paused_until: Option<Time>,
    /// Since when, if it does.
    pub paused_at: Time,
    /// What befalls it as soon as a write of it is under way.
    pub at_write: Option<Blow>,
    /// It was woken past its lease, and has not done yet what it had decided on before.
    pub is_zombie: bool,
    /// When it is stepped next, if that is planned, and the number of that plan. Older plans are
    /// void.
    pub wake: Option<(Time, u64)>,
    /// Counts this life's hold on the region.
    pub lease: Lease,
}

/// A machine.
pub struct Machine {
    /// What it is called in reports.
    pub name: String,
    /// What runs on it.
    pub program: Box<dyn Program>,
    /// Its clock, of this life.
    pub clock: Clock,
    /// The node, while there is one.
    pub life: Option<Life>,
    /// Boots so far.
    pub boots: u32,
    region: Region,
}

impl Machine {
    /// A machine that has not booted yet.
    #[must_use]
    pub fn new(name: &str, program: Box<dyn Program>) -> Machine {
        let region = Region::new(program.region_bytes());
        Machine {
            name: name.to_owned(),
            program,
            clock: Clock::new(Time(0), Instant(0), 1_000_000),
            life: None,
            boots: 0,
            region,
        }
    }

    /// Starts a node.
    ///
    /// # Panics
    ///
    /// When something of the life before is still there: a bug of the simulator.
    pub fn boot(&mut self, now: Time, clock: Clock, addr: Endpoint, blocks: u64, entropy: Rng) {
        assert!(self.life.is_none(), "booted twice");
        self.boots += 1;
        self.clock = clock;
        let (region, lease) = self.region.lend();
        let shown = self.clock.now(now);
        let boot = Boot { region, now: shown, addr, boots: self.boots, blocks, entropy };
        let node = Lent::new(self.program.start(boot), &lease);
        self.life = Some(Life {
            node,
            inbox: VecDeque::new(),
            held: None,
            flying: BTreeMap::new(),
            streams: BTreeSet::new(),
            paused_until: None,
            paused_at: now,
            at_write: None,
            is_zombie: false,
            wake: None,
            lease,
        });
    }

    /// Ends the node's life; its memory is the machine's again.
    pub fn crash(&mut self) {
        self.life = None;
        assert!(!self.region.is_lent(), "a node's life left memory behind");
    }

    /// Whether a node runs, and is not paused.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.life.as_ref().is_some_and(|life| life.paused_until.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::Clock;
    use crate::rng::Rng;
    use crate::time::{MINUTE, SECOND, Time};
    use outrider_hal::Instant;

    #[test]
    fn a_deadline_is_reached_and_not_before() {
        let mut rng = Rng::new(3);
        for _ in 0..1000 {
            let rate = rng.within(990_000..=1_010_000);
            let start = Time(rng.below(1 << 40));
            let clock = Clock::new(start, Instant(rng.below(1 << 50)), rate);
            let deadline = clock.now(start).plus(rng.span(SECOND, MINUTE));
            let when = clock.when(deadline);
            assert!(clock.now(when) >= deadline);
            assert!(clock.now(Time(when.0 - 1)) < deadline);
        }
    }

    #[test]
    fn a_frozen_clock_goes_on_where_it_stood() {
        let mut clock = Clock::new(Time(0), Instant(100), 1_000_000);
        clock.freeze(Time(50), Time(500));
        assert_eq!(clock.now(Time(400)), Instant(150));
        assert_eq!(clock.now(Time(510)), Instant(160));
        clock.jump(Time(510), SECOND);
        assert_eq!(clock.now(Time(510)), Instant(1_000_000_160));
        clock.freeze(Time(510), Time(9999));
        clock.thaw(Time(600));
        assert_eq!(clock.now(Time(601)), Instant(1_000_000_161));
    }
}

//! Machines that vanish just when a mount merges for the others: that mount's, or the leader's.
//! Merging is over so soon that ordinary faults seldom meet it.
//!
//! What this module deliberately doesn't know: what becomes of the merge.

use crate::platform::Platform;
use crate::rng::Rng;
use crate::time::{SECOND, Time};
use crate::trace::HostId;
use crate::world::{Workload, World};
use outrider_core::client::compact::Counters;
use outrider_core::server::Server;
use std::time::Duration;

/// How often it happens in a run at the most.
const TIMES: u32 = 3;
/// And not after this: then faults are about to stop.
const UNTIL: Duration = SECOND.saturating_mul(45);

/// A merge may be over after this.
const EVERY: Duration = Duration::from_micros(250);

/// Lets machines vanish, beside what others do.
pub(super) struct Vanishing<W> {
    others: W,
    /// When it is their turn.
    next: Option<Time>,
    rng: Rng,
    left: u32,
}

impl<W: Workload> Vanishing<W> {
    /// Beside these.
    pub(super) fn beside(others: W, rng: Rng) -> Vanishing<W> {
        Vanishing { others, next: Some(Time(0)), rng, left: TIMES }
    }
}

/// Whether the mount of this machine is at work on a compaction.
fn merges(world: &World, host: HostId) -> bool {
    world.guest::<Platform>(host).is_some_and(|platform| {
        let Counters { begun, done, failed, dropped, .. } = platform.mount.counters().compaction;
        begun > done + failed + dropped
    })
}

fn leads(world: &World, host: HostId) -> bool {
    world.guest::<Server<'static>>(host).is_some_and(|server| server.serving().is_some())
}

impl<W: Workload> Vanishing<W> {
    fn look(&mut self, world: &mut World) {
        let Some(merging) = world.hosts().find(|host| merges(world, *host)) else { return };
        if self.rng.below(8) > 0 {
            return;
        }
        let leader = world.hosts().find(|host| leads(world, *host));
        let host = leader.filter(|_| self.rng.below(3) == 0).unwrap_or(merging);
        self.left -= 1;
        world.crash(host);
        world.boot(host);
    }
}

impl<W: Workload> Workload for Vanishing<W> {
    fn tick(&mut self, world: &mut World) -> Option<Duration> {
        let now = world.now();
        let looks = self.left > 0 && now < Time(0).plus(UNTIL);
        if looks {
            self.look(world);
        }
        if self.next.is_some_and(|at| at <= now) {
            self.next = self.others.tick(world).map(|after| now.plus(after));
        }
        let theirs = self.next.map(|at| at.since(now));
        theirs.map(|theirs| if looks { theirs.min(EVERY) } else { theirs })
    }
}

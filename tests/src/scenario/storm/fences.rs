//! Programs that cut evicted mounts off from the device, as leaders ask for it.
//!
//! ```text
//!   asked --+--> the machine is cut off --+--> success, soon or late
//!           |                             `--> failure, or nobody hears of it
//!           `--> failure, or nothing at all until the platform gives it up
//! ```
//!
//! # Invariants
//!
//! * Success is told only after the machine was cut off, and may be told to a leader whose term has
//!   ended meanwhile: it is true all the same.
//! * A machine that was started anew since its client came is left alone: only what the device
//!   still has of its former lives is dropped.
//! * What was asked by a server that is gone is answered to nobody.
//!
//! What this module deliberately doesn't know: what space waits for the answer.

use super::Seen;
use crate::check::server::Log;
use crate::net::Net;
use crate::rng::Rng;
use crate::scenario::server::SERVERS;
use crate::time::Time;
use crate::trace::HostId;
use crate::world::World;
use outrider_core::format::ClientId;
use outrider_core::server::{Fence, Server};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

/// Fences that succeeded, as a demand names them.
pub(super) const SUCCEEDED: &str = "fences succeeded";
/// Those that failed.
pub(super) const FAILED: &str = "fences failed";
/// Those that took longer than anybody likes to wait.
pub(super) const LATE: &str = "fences late";

/// A fence under way.
#[derive(Debug)]
struct Running {
    /// Who asked for it, in which life.
    server: HostId,
    boots: u32,
    client: ClientId,
    /// The machine, until it is cut off, and when it will be.
    cuts: Option<(HostId, Time)>,
    ends: Time,
    succeeds: bool,
}

/// All fences.
pub(super) struct Fences {
    log: Rc<RefCell<Log>>,
    seen: Rc<RefCell<Seen>>,
    running: Vec<Running>,
    /// Machines that were cut off, in which life, and that nobody has heard of.
    cut_off: Vec<(HostId, u32)>,
}

impl Fences {
    pub(super) fn new(log: Rc<RefCell<Log>>, seen: Rc<RefCell<Seen>>) -> Fences {
        Fences { log, seen, running: Vec::new(), cut_off: Vec::new() }
    }

    /// Takes what leaders ask for, and goes on with it.
    pub(super) fn step(&mut self, world: &mut World, rng: &mut Rng) {
        for server in (0..SERVERS).map(HostId) {
            let serves =
                world.guest::<Server<'static>>(server).is_some_and(|s| s.serving().is_some());
            if serves
                && let Some(Some(fence)) =
                    world.with(server, |server: &mut Server<'static>, now| server.poll_fence(now))
            {
                self.begin(world, rng, server, &fence);
            }
        }
        let running = std::mem::take(&mut self.running);
        self.running = running.into_iter().filter_map(|fence| self.go_on(world, fence)).collect();
    }

    /// A machine that was cut off and is to be started anew, by who runs it.
    pub(super) fn poll_cut_off(&mut self) -> Option<(HostId, u32)> {
        self.cut_off.pop()
    }

    fn begin(&mut self, world: &World, rng: &mut Rng, server: HostId, fence: &Fence) {
        let calm = world.atlas().is_calm();
        let late = !calm && rng.below(8) == 0;
        let (cut, succeeds) = match rng.below(8) {
            _ if calm => (true, true),
            0 | 1 => (false, false),
            2 => (true, false),
            _ => (true, true),
        };
        let longest = if late { 60_000 } else { 2_000 };
        let took = Duration::from_millis(rng.within(longest / 20..=longest));
        let (now, ends) = (world.now(), world.now().plus(took));
        let is_meant = |host: &HostId| Net::addr(*host).octets() == fence.machine.host.0;
        let host = world.hosts().find(is_meant);
        let cut_at = Time(rng.within(now.0..=ends.0));
        let cuts = host.filter(|_| cut).map(|host| (host, cut_at));
        let succeeds = succeeds && cuts.is_some();
        let mut seen = self.seen.borrow_mut();
        if late {
            seen.count(LATE);
        }
        seen.count(if succeeds { SUCCEEDED } else { FAILED });
        let (boots, client) = (world.boots(server), fence.client);
        self.running.push(Running { server, boots, client, cuts, ends, succeeds });
    }

    /// Goes on with a fence, and hands it back if it isn't over.
    fn go_on(&mut self, world: &mut World, mut fence: Running) -> Option<Running> {
        let now = world.now();
        if let Some((host, _)) = fence.cuts.take_if(|(_, at)| *at <= now) {
            let mut log = self.log.borrow_mut();
            match log.life(fence.client).is_some_and(|life| life != world.boots(host)) {
                true => world.fence_former(host),
                false => {
                    world.fence(host);
                    self.cut_off.push((host, world.boots(host)));
                }
            }
            if fence.succeeds {
                log.gone(fence.client);
            }
        }
        if fence.ends > now {
            return Some(fence);
        }
        if world.boots(fence.server) != fence.boots {
            return None;
        }
        let Running { client, succeeds, .. } = fence;
        let told = world.with(fence.server, |server: &mut Server<'static>, now| {
            server.fenced(now, client, succeeds);
        });
        // Who stands still, or is down, hears of it later, or never.
        told.is_none().then_some(fence)
    }
}

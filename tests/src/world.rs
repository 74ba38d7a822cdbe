//! A simulated world: machines, one disk, one network, virtual time, and what goes wrong.
//!
//! Each turn takes the earliest thing that is due, lets it happen, and then lets the machine it
//! concerns do what a driver does: hand over events, step the node, carry out its actions, move the
//! bytes of its streams. Faults come in at three places: inside disk and network, at a timer for
//! what befalls whole machines, and between any two effects of a node.
//!
//! # Invariants
//!
//! * A run is a function of its seed, its programs and its promise. Its [trace](World::trace) hash
//!   says whether two runs were the same.
//! * Time never stands still for ever: each step of a node costs some.
//! * A paused machine does nothing and is told nothing; what the disk and the network do for it
//!   goes on. An action it had decided on before the pause is carried out after it, unseen by the
//!   node.
//! * After [`settle`](World::settle) began, nothing goes wrong any more, and every machine runs.
//!
//! What this module deliberately doesn't know: what the nodes are for.

use crate::check::{Checker, Violation};
use crate::disk::{Command, Disk, Done};
use crate::faults::{Atlas, Coverage, Fault, Promise};
use crate::image::Image;
use crate::net::{Net, Notice};
use crate::node::{Blow, Clock, Machine, Program};
use crate::region::Lent;
use crate::rng::{Chance, Rng};
use crate::time::{Agenda, MICRO, MILLI, MINUTE, SECOND, Time};
use crate::trace::{HostId, Trace};
use outrider_core::node::{Action, Event, More};
use outrider_hal::{Block, BlockOp, BlockRequest, Completion, Endpoint, Instant, StreamId};
use std::any::Any;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// Turns a world may take to settle, as a bound on livelocks.
const SETTLE_TURNS_MAX: u64 = 20_000_000;

/// Does something to the nodes from outside, as users do.
pub trait Workload {
    /// Acts, and says when to be called again.
    fn tick(&mut self, world: &mut World) -> Option<Duration>;
}

#[derive(Debug, Clone, Copy)]
enum Happening {
    Boot { host: HostId, boots: u32 },
    Wake { host: HostId, plan: u64 },
    Resume { host: HostId, boots: u32 },
    Repair { host: HostId, boots: u32 },
    Reconnect { host: HostId },
    FaultTick,
    Workload,
}

#[derive(Debug, Hash)]
enum Note {
    Boot(u32, Instant),
    Step(Instant, bool, Option<Instant>),
    Unlisten,
    Crash,
    Pause(Time),
    Resume,
    ClockJump(Duration),
    Calm,
}

/// What may come between a node's decision and its effect.
enum Interruption {
    Crash(Fault),
    Pause(Fault),
    /// What was to befall the node at its next write.
    Blow(Blow),
}

/// How much has happened to the machines.
#[derive(Debug, Clone, Copy, Default)]
pub struct WorldWork {
    /// Things that happened.
    pub turns: u64,
    /// Boots of nodes.
    pub boots: u64,
    /// Steps of nodes.
    pub steps: u64,
    /// Crashes of nodes.
    pub crashes: u64,
    /// Nodes that were paused and have gone on.
    pub wakeups: u64,
    /// Those of them with writes in their queues, decided on or submitted before.
    pub zombies: u64,
    /// Those of these that were paused for longer than their lease.
    pub late_zombies: u64,
}

/// The world.
pub struct World {
    now: Time,
    rng: Rng,
    trace: Trace,
    atlas: Atlas,
    disk: Disk,
    net: Net,
    machines: Vec<Machine>,
    agenda: Agenda<Happening>,
    isolated_until: BTreeMap<HostId, Time>,
    plans_ever: u64,
    checkers: Vec<Box<dyn Checker>>,
    workload: Option<Box<dyn Workload>>,
    violation: Option<Violation>,
    settle_turns_max: u64,
    work: WorldWork,
}

impl World {
    /// A world in which whatever the promise allows may go wrong, with knobs drawn from the seed.
    #[must_use]
    pub fn new(seed: u64, promise: Promise, image: Image) -> World {
        let root = Rng::new(seed);
        let atlas = Atlas::swarm(&root, promise);
        World::with_atlas(&root, atlas, image)
    }

    /// A world in which nothing goes wrong by itself.
    #[must_use]
    pub fn calm(seed: u64, image: Image) -> World {
        World::new(seed, Promise::nothing(), image)
    }

    /// A world with these knobs.
    #[must_use]
    pub fn with_atlas(root: &Rng, atlas: Atlas, image: Image) -> World {
        World {
            now: Time(0),
            rng: root.fork("world"),
            trace: Trace::new(),
            atlas,
            disk: Disk::new(root, image),
            net: Net::new(root),
            machines: Vec::new(),
            agenda: Agenda::new(),
            isolated_until: BTreeMap::new(),
            plans_ever: 0,
            checkers: Vec::new(),
            workload: None,
            violation: None,
            settle_turns_max: SETTLE_TURNS_MAX,
            work: WorldWork::default(),
        }
    }

    /// Adds a machine, which boots within the first second.
    pub fn add_host(&mut self, name: &str, program: impl Program + 'static) -> HostId {
        let host = HostId(self.machines.len() as u16);
        self.machines.push(Machine::new(name, Box::new(program)));
        self.net.add_host(host);
        let at = self.now.plus(self.rng.span(MICRO, SECOND));
        self.agenda.push(at, Happening::Boot { host, boots: 0 });
        host
    }

    /// Adds a checker.
    pub fn add_checker(&mut self, checker: impl Checker + 'static) {
        self.checkers.push(Box::new(checker));
    }

    /// Sets the workload, which is called from now on.
    pub fn set_workload(&mut self, workload: impl Workload + 'static) {
        self.workload = Some(Box::new(workload));
        self.agenda.push(self.now, Happening::Workload);
    }

    /// Sets how many turns the world may take to settle.
    pub fn limit_turns(&mut self, turns_max: u64) {
        self.settle_turns_max = turns_max;
    }

    /// The present.
    #[must_use]
    pub fn now(&self) -> Time {
        self.now
    }

    /// All machines.
    pub fn hosts(&self) -> impl Iterator<Item = HostId> + use<> {
        (0..self.machines.len() as u16).map(HostId)
    }

    /// The disk.
    #[must_use]
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// The disk, to record it or to damage it.
    pub fn disk_mut(&mut self) -> &mut Disk {
        &mut self.disk
    }

    /// The network.
    #[must_use]
    pub fn net(&self) -> &Net {
        &self.net
    }

    /// What went wrong how often.
    #[must_use]
    pub fn coverage(&self) -> &Coverage {
        self.atlas.coverage()
    }

    /// The fault atlas.
    #[must_use]
    pub fn atlas(&self) -> &Atlas {
        &self.atlas
    }

    /// The trace.
    #[must_use]
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// The trace, to have its text kept or printed.
    pub fn trace_mut(&mut self) -> &mut Trace {
        &mut self.trace
    }

    /// How much has happened to the machines.
    #[must_use]
    pub fn work(&self) -> WorldWork {
        self.work
    }

    /// What was done, in the words of the world and of its checkers.
    #[must_use]
    pub fn work_report(&self) -> Vec<(&'static str, u64)> {
        let (disk, net) = (self.disk.work(), self.net.work());
        let mut report = vec![
            ("virtual seconds", self.now.since(Time(0)).as_secs()),
            ("turns", self.work.turns),
            ("steps", self.work.steps),
            ("boots", self.work.boots),
            ("crashes", self.work.crashes),
            ("wake-ups from a pause", self.work.wakeups),
            ("wake-ups with queued I/O", self.work.zombies),
            ("wake-ups late with queued I/O", self.work.late_zombies),
            ("wake-ups late, and it landed", disk.zombies),
            ("blocks read", disk.reads),
            ("blocks written", disk.writes),
            ("flushes", disk.flushes),
            ("connections", net.connections),
            ("bytes received", net.bytes_received),
        ];
        report.extend(self.checkers.iter().flat_map(|checker| checker.work()));
        report
    }

    /// The node of a machine, if it is up and of this type.
    #[must_use]
    pub fn guest<T: Any>(&self, host: HostId) -> Option<&T> {
        let life = self.machines.get(usize::from(host.0))?.life.as_ref()?;
        let any: &dyn Any = &**life.node.value();
        any.downcast_ref()
    }

    /// Does something to the node of a machine, if it runs and is of this type; it is stepped soon.
    pub fn with<T: Any, R>(
        &mut self,
        host: HostId,
        act: impl FnOnce(&mut T, Instant) -> R,
    ) -> Option<R> {
        let machine = self.machines.get_mut(usize::from(host.0)).filter(|m| m.is_running())?;
        let now = machine.clock.now(self.now);
        let any: &mut dyn Any = &mut **machine.life.as_mut()?.node.value_mut();
        let result = act(any.downcast_mut()?, now);
        self.wake_soon(host);
        Some(result)
    }

    /// Whether the machine is up, and not paused.
    #[must_use]
    pub fn is_running(&self, host: HostId) -> bool {
        self.machines.get(usize::from(host.0)).is_some_and(Machine::is_running)
    }

    /// How often the machine has booted.
    #[must_use]
    pub fn boots(&self, host: HostId) -> u32 {
        self.machines.get(usize::from(host.0)).map_or(0, |machine| machine.boots)
    }

    /// What the machine's clock shows.
    #[must_use]
    pub fn clock(&self, host: HostId) -> Instant {
        let machine = self.machines.get(usize::from(host.0));
        machine.map_or(Instant(0), |machine| machine.clock.now(self.now))
    }

    /// Runs for a while, with faults.
    ///
    /// # Errors
    ///
    /// What a checker found.
    pub fn run(&mut self, how_long: Duration) -> Result<(), Violation> {
        self.agenda.push(self.now, Happening::FaultTick);
        self.run_until(how_long, |_| false).map(|_| ())
    }

    /// Runs until this is so, or for this long. Returns whether it became so.
    ///
    /// # Errors
    ///
    /// What a checker found.
    pub fn run_until(
        &mut self,
        how_long: Duration,
        mut so: impl FnMut(&World) -> bool,
    ) -> Result<bool, Violation> {
        let end = self.now.plus(how_long);
        while !so(self) {
            if self.next_at().is_none_or(|at| at > end) {
                self.now = end;
                return Ok(so(self));
            }
            self.turn();
            if let Some(violation) = &self.violation {
                return Err(violation.clone());
            }
        }
        Ok(true)
    }

    /// Stops all faults, gets every machine running, and waits until the checkers say that nothing
    /// is left to be done.
    ///
    /// # Errors
    ///
    /// What a checker found, or what is left to be done after `bound`: then something hangs.
    pub fn settle(&mut self, bound: Duration) -> Result<(), Violation> {
        self.stop_faults();
        let turns_end = self.work.turns + self.settle_turns_max;
        let settled =
            self.run_until(bound, |world| world.is_settled() || world.work.turns > turns_end)?;
        if let Some((checker, what)) = self.unsettled() {
            let how = if settled { "is stepped on and on" } else { "hangs" };
            return Err(Violation { at: self.now, checker, what: format!("{how}: {what}") });
        }
        let mut checkers = std::mem::take(&mut self.checkers);
        let result = checkers.iter_mut().try_for_each(|checker| {
            let (at, name) = (self.now, checker.name());
            checker.at_rest(self).map_err(|what| Violation { at, checker: name, what })
        });
        self.checkers = checkers;
        result
    }

    /// Crashes a machine's node. It stays down until it is [booted](Self::boot), or faults stop.
    pub fn crash(&mut self, host: HostId) {
        let machine = &mut self.machines[usize::from(host.0)];
        if machine.life.is_none() {
            return;
        }
        self.trace.note(self.now, Some(host), &Note::Crash);
        machine.crash();
        self.work.crashes += 1;
        let lifetime = machine.program.io_lifetime();
        self.disk.crash(self.now, host, lifetime, &mut self.atlas, &mut self.trace);
        self.net.host_down(self.now, host, &mut self.atlas);
        self.review(host);
    }

    /// Boots a machine that is down.
    pub fn boot(&mut self, host: HostId) {
        let machine = &mut self.machines[usize::from(host.0)];
        if machine.life.is_some() {
            return;
        }
        let mut per_million = 1_000_000;
        if self.atlas.strike(Fault::NodeClockDrift) {
            per_million = self.rng.within(999_000..=1_001_000);
        }
        let shown = Instant(self.rng.below(1 << 50));
        let clock = Clock::new(self.now, shown, per_million);
        let entropy = Rng::new(self.rng.number());
        let addr = Endpoint { addr: Net::addr(host), port: 0 };
        machine.boot(self.now, clock, addr, self.disk.blocks(), entropy);
        self.work.boots += 1;
        self.trace.note(self.now, Some(host), &Note::Boot(machine.boots, shown));
        self.net.host_up(host);
        self.review(host);
        self.wake_soon(host);
    }

    /// Lets a machine's node stand still for a while. Its clock may stand still as well.
    pub fn pause(&mut self, host: HostId, how_long: Duration) {
        let until = self.now.plus(how_long);
        let machine = &mut self.machines[usize::from(host.0)];
        if !machine.is_running() {
            return;
        }
        let Some(life) = &mut machine.life else { return };
        self.trace.note(self.now, Some(host), &Note::Pause(until));
        (life.paused_until, life.paused_at) = (Some(until), self.now);
        life.wake = None;
        if self.atlas.strike(Fault::NodeClockFrozen) {
            machine.clock.freeze(self.now, until);
        }
        self.disk.pause(host, until, &mut self.atlas);
        self.agenda.push(until, Happening::Resume { host, boots: machine.boots });
        self.review(host);
    }

    /// Lets a paused machine's node go on.
    pub fn resume(&mut self, host: HostId) {
        let machine = &mut self.machines[usize::from(host.0)];
        let Some(life) = machine.life.as_mut().filter(|life| life.paused_until.is_some()) else {
            return;
        };
        self.trace.note(self.now, Some(host), &Note::Resume);
        life.paused_until = None;
        let queued = life.held.as_ref().is_some_and(|held| is_write(held.value()))
            || self.disk.is_writing(host);
        let late = self.now.since(life.paused_at) > machine.program.lease();
        self.work.wakeups += 1;
        self.work.zombies += u64::from(queued);
        if queued && late {
            self.work.late_zombies += 1;
            life.is_zombie = true;
            self.disk.watch(host, self.work.late_zombies);
        }
        machine.clock.thaw(self.now);
        self.review(host);
        self.wake_soon(host);
    }

    /// Lets nothing through from one machine to another for a while.
    pub fn block(&mut self, from: HostId, to: HostId, how_long: Duration) {
        self.net.block(self.now, from, to, self.now.plus(how_long), &mut self.trace);
    }

    /// Lets every request of a machine fail until it is booted anew.
    pub fn cut_disk(&mut self, host: HostId) {
        self.disk.kill_path(self.now, host, &mut self.trace);
    }

    /// Lets this befall a machine's node when a write of it is under way next, instead of what was
    /// to befall it before.
    pub fn strike_at_write(&mut self, host: HostId, blow: Blow) {
        let life = self.machines.get_mut(usize::from(host.0)).and_then(|m| m.life.as_mut());
        if let Some(life) = life {
            life.at_write = Some(blow);
        }
    }

    /// Crashes a machine's node, and boots it after so long.
    pub fn restart_after(&mut self, host: HostId, how_long: Duration) {
        self.crash(host);
        let boots = self.boots(host);
        self.agenda.push(self.now.plus(how_long), Happening::Boot { host, boots });
    }

    /// Cuts a machine off from the device: nothing that it has submitted, in this life or one
    /// before, gets there any more, nor anything else until it is booted anew.
    pub fn fence(&mut self, host: HostId) {
        let former = self.machines[usize::from(host.0)].life.is_none();
        self.disk.fence(self.now, host, former, &mut self.trace);
        self.review(host);
    }

    /// Nothing that a machine has submitted in earlier lives gets to the device any more.
    pub fn fence_former(&mut self, host: HostId) {
        self.disk.fence(self.now, host, true, &mut self.trace);
    }

    /// For how long a machine's node has stood still, or `None` if it runs, or is down.
    #[must_use]
    pub fn paused_for(&self, host: HostId) -> Option<Duration> {
        let life = self.machines.get(usize::from(host.0))?.life.as_ref()?;
        life.paused_until.map(|_| self.now.since(life.paused_at))
    }

    /// All power is lost: every node crashes, and of what no flush covered only some survives. The
    /// machines stay down until they are booted, or faults stop.
    pub fn lose_power(&mut self) {
        self.disk.lose_power(self.now, &[], &mut self.atlas, &mut self.trace);
        for host in self.hosts() {
            self.crash(host);
        }
    }

    fn next_at(&self) -> Option<Time> {
        let sources = [self.disk.poll_timeout(), self.net.poll_timeout(), self.agenda.next_at()];
        sources.into_iter().flatten().min()
    }

    /// Lets the next thing happen.
    fn turn(&mut self) {
        let Some(at) = self.next_at() else { return };
        self.now = at.max(self.now);
        self.work.turns += 1;
        if self.disk.poll_timeout().is_some_and(|at| at <= self.now) {
            let done = self.disk.step(self.now, &mut self.atlas, &mut self.trace);
            if let Some(done) = done {
                self.on_done(&done);
            }
        } else if self.net.poll_timeout().is_some_and(|at| at <= self.now) {
            self.net.step(self.now, &mut self.atlas);
            self.pass_on_notices();
        } else if let Some(happening) = self.agenda.pop_due(self.now) {
            self.on_happening(happening);
        }
    }

    fn on_happening(&mut self, happening: Happening) {
        match happening {
            Happening::Boot { host, boots } if self.boots(host) == boots => self.boot(host),
            Happening::Resume { host, boots } if self.boots(host) == boots => {
                let life = self.machines[usize::from(host.0)].life.as_ref();
                if life.and_then(|life| life.paused_until).is_some_and(|until| until <= self.now) {
                    self.resume(host);
                }
            }
            Happening::Repair { host, boots } if self.boots(host) == boots => {
                self.crash(host);
                self.boot(host);
            }
            Happening::Boot { .. } | Happening::Resume { .. } | Happening::Repair { .. } => {}
            Happening::Wake { host, plan } => {
                let life = self.machines[usize::from(host.0)].life.as_mut();
                let planned = life.filter(|l| l.wake.is_some_and(|(_, number)| number == plan));
                if let Some(life) = planned {
                    life.wake = None;
                    self.wake(host);
                }
            }
            Happening::Reconnect { host } => self.review(host),
            Happening::FaultTick => self.on_fault_tick(),
            Happening::Workload => {
                if let Some(mut workload) = self.workload.take() {
                    let again = workload.tick(self);
                    self.workload = Some(workload);
                    if let Some(after) = again {
                        self.agenda.push(self.now.plus(after), Happening::Workload);
                    }
                }
            }
        }
    }

    /// A request finished: its buffer goes back to the node.
    fn on_done(&mut self, done: &Done) {
        let Some(life) = &mut self.machines[usize::from(done.host.0)].life else { return };
        let Some(request) = life.flying.remove(&done.id) else { return };
        let event = request.hand_over(|BlockRequest { tag, mut op }, lease| {
            if let (BlockOp::Read(_, to), Some(data)) = (&mut op, &done.data) {
                to.0 = data.0;
            }
            Lent::new(Event::Completed(Completion { tag, op, result: done.result }), lease)
        });
        life.inbox.push_back(event);
        self.wake_soon(done.host);
    }

    fn pass_on_notices(&mut self) {
        while let Some((host, notice)) = self.net.poll_notice(self.now, &mut self.trace) {
            self.on_notice(host, notice);
        }
    }

    fn on_notice(&mut self, host: HostId, notice: Notice) {
        let Some(life) = &mut self.machines[usize::from(host.0)].life else { return };
        let event = match notice {
            Notice::Accepted(stream) => Some(Event::Accepted(stream)),
            Notice::Connected { attempt, stream } => Some(Event::Connected { attempt, stream }),
            Notice::ConnectFailed { attempt } => Some(Event::ConnectFailed { attempt }),
            Notice::Closed(stream) => Some(Event::Closed(stream)),
            Notice::Ready(_) => None,
        };
        life.inbox.extend(event.map(|event| Lent::new(event, &life.lease)));
        self.wake_soon(host);
    }

    /// Has the machine's node stepped after the little while that a driver takes.
    fn wake_soon(&mut self, host: HostId) {
        let at = self.now.plus(self.rng.span(MICRO, 50 * MICRO));
        self.plan_wake(host, at);
    }

    fn plan_wake(&mut self, host: HostId, at: Time) {
        let machine = &mut self.machines[usize::from(host.0)];
        let Some(life) = machine.life.as_mut().filter(|life| life.paused_until.is_none()) else {
            return;
        };
        if life.wake.is_none_or(|(planned, _)| at < planned) {
            self.plans_ever += 1;
            life.wake = Some((at, self.plans_ever));
            self.agenda.push(at, Happening::Wake { host, plan: self.plans_ever });
        }
    }

    /// One round of a node's driver.
    fn wake(&mut self, host: HostId) {
        let outcome = self.drive(host);
        self.work.steps += 1;
        match outcome {
            Ok(()) => {}
            Err(Interruption::Crash(fault)) => {
                self.atlas.happened(fault);
                self.crash(host);
                self.boot_later(host);
            }
            Err(Interruption::Pause(fault)) => {
                self.atlas.happened(fault);
                let how_long = self.rng.span(MILLI, 10 * MINUTE);
                self.pause(host, how_long);
            }
            Err(Interruption::Blow(Blow::Pause(how_long))) => {
                self.atlas.happened(Fault::NodePauseAtWrite);
                self.pause(host, how_long);
            }
            Err(Interruption::Blow(Blow::Crash(how_long))) => {
                self.atlas.happened(Fault::NodeCrashAtWrite);
                self.restart_after(host, how_long);
            }
        }
        let mut checkers = std::mem::take(&mut self.checkers);
        for checker in &mut checkers {
            if let Err(what) = checker.after_step(self, host) {
                let violation = Violation { at: self.now, checker: checker.name(), what };
                self.violation.get_or_insert(violation);
            }
        }
        self.checkers = checkers;
    }

    fn drive(&mut self, host: HostId) -> Result<(), Interruption> {
        // Decided before the last pause, or handed back by a full queue: done before the node can
        // think again.
        self.carry_out_actions(host, true)?;
        self.watch_zombie(host);
        let machine = &mut self.machines[usize::from(host.0)];
        let Some(life) = &mut machine.life else { return Ok(()) };
        let now = machine.clock.now(self.now);
        while let Some(event) = life.inbox.pop_front() {
            if stream_event_is_due(&mut life.streams, event.value()) {
                event.hand_over(|event, _| life.node.value_mut().handle(now, event));
            }
        }
        let more = life.node.value_mut().step(now);
        self.carry_out_actions(host, false)?;
        let moved = self.move_bytes(host)?;
        self.plan_next(host, moved || more == More::Yes);
        if self.disk.is_writing(host) && self.atlas.may_impair(host) {
            if self.atlas.draw(Fault::NodeCrashAtWrite) {
                return Err(Interruption::Crash(Fault::NodeCrashAtWrite));
            }
            if self.atlas.draw(Fault::NodePauseAtWrite) {
                return Err(Interruption::Pause(Fault::NodePauseAtWrite));
            }
            let life = self.machines[usize::from(host.0)].life.as_mut();
            if let Some(blow) = life.and_then(|life| life.at_write.take()) {
                return Err(Interruption::Blow(blow));
            }
        }
        Ok(())
    }

    /// A node that was woken past its lease has done what it had decided on before.
    fn watch_zombie(&mut self, host: HostId) {
        let life = self.machines[usize::from(host.0)].life.as_mut();
        if life.is_some_and(|life| std::mem::take(&mut life.is_zombie)) {
            self.disk.watch(host, self.work.late_zombies);
        }
    }

    /// Carries out what the node has decided on; only what it had held back, if `held_only`.
    fn carry_out_actions(&mut self, host: HostId, held_only: bool) -> Result<(), Interruption> {
        loop {
            let Some(life) = &mut self.machines[usize::from(host.0)].life else { return Ok(()) };
            let action = match life.held.take() {
                Some(held) => held,
                None if held_only => return Ok(()),
                None => match life.node.value_mut().poll_action() {
                    Some(action) => Lent::new(action, &life.lease),
                    None => return Ok(()),
                },
            };
            if let Some(interruption) = interruption(&mut self.atlas, host) {
                life.held = Some(action);
                return Err(interruption);
            }
            if let Some(refused) = self.carry_out(host, action) {
                let life = self.machines[usize::from(host.0)].life.as_mut();
                if let Some(life) = life {
                    life.held = Some(refused);
                }
                // The queue takes it when something has completed; if it is full for no reason,
                // it is tried again all the same.
                self.plan_wake(host, self.now.plus(MILLI));
                return Ok(());
            }
        }
    }

    /// Carries out one action, or hands it back.
    fn carry_out(
        &mut self,
        host: HostId,
        action: Lent<Action<'static>>,
    ) -> Option<Lent<Action<'static>>> {
        let World { now, disk, net, atlas, trace, machines, .. } = self;
        let life = machines[usize::from(host.0)].life.as_mut()?;
        match action.value() {
            Action::Block(request) => {
                let command = match &request.op {
                    BlockOp::Read(blkno, _) => Command::Read(*blkno),
                    BlockOp::Write(blkno, from) => {
                        Command::Write(*blkno, Rc::new(Block::clone(from)))
                    }
                    BlockOp::Flush => Command::Flush,
                };
                match disk.submit(*now, host, command, atlas, trace) {
                    Err(_) => return Some(action),
                    Ok(id) => action.hand_over(|action, lease| {
                        if let Action::Block(request) = action {
                            life.flying.insert(id, Lent::new(request, lease));
                        }
                    }),
                }
            }
            Action::Listen(at) => {
                if !net.listen(*now, host, *at, atlas, trace) {
                    life.inbox.push_back(Lent::new(Event::ListenFailed, &life.lease));
                    self.wake_soon(host);
                }
            }
            Action::Unlisten => {
                trace.note(*now, Some(host), &Note::Unlisten);
                net.unlisten(host);
            }
            Action::Connect { attempt, to } => net.dial(*now, host, *attempt, *to, trace),
            Action::Close(stream) => {
                life.streams.remove(stream);
                net.close(*now, *stream, atlas, trace);
            }
        }
        None
    }

    /// Sends and receives once on each stream. Returns whether any byte moved.
    fn move_bytes(&mut self, host: HostId) -> Result<bool, Interruption> {
        let World { now, net, atlas, trace, machines, .. } = self;
        let machine = &mut machines[usize::from(host.0)];
        let Some(life) = &mut machine.life else { return Ok(false) };
        // With an action held back, the driver is stuck before the bytes.
        if life.held.is_some() {
            return Ok(false);
        }
        let local = machine.clock.now(*now);
        let streams: Vec<StreamId> = life.streams.iter().copied().collect();
        let mut moved = false;
        for stream in streams {
            let node = life.node.value_mut();
            let bytes = node.send_bytes(stream);
            if !bytes.is_empty() {
                if let Some(interruption) = interruption(atlas, host) {
                    return Err(interruption);
                }
                let len = net.send(*now, stream, bytes, atlas, trace);
                if len > 0 {
                    moved = true;
                    node.handle(local, Event::Sent { stream, len });
                }
            }
            if net.is_readable(stream) {
                let len = net.recv(*now, stream, node.recv_space(stream), atlas, trace);
                if len > 0 {
                    moved = true;
                    node.handle(local, Event::Received { stream, len });
                }
            }
        }
        self.pass_on_notices();
        Ok(moved)
    }

    fn plan_next(&mut self, host: HostId, busy: bool) {
        let machine = &mut self.machines[usize::from(host.0)];
        let Some(life) = &mut machine.life else { return };
        let timeout = life.node.value().poll_timeout();
        let note = Note::Step(machine.clock.now(self.now), busy, timeout);
        self.trace.note(self.now, Some(host), &note);
        if let Some(deadline) = timeout {
            let mut at = machine.clock.when(deadline).max(self.now.plus(MICRO));
            if self.atlas.strike(Fault::NodeLateTimer) {
                at = at.plus(self.rng.span(MILLI, 2 * SECOND));
            }
            self.plan_wake(host, at);
        }
        if busy {
            self.wake_soon(host);
        }
        if self.atlas.strike(Fault::NodeSpuriousStep) {
            let at = self.now.plus(self.rng.span(MICRO, SECOND));
            self.plan_wake(host, at);
        }
    }

    fn boot_later(&mut self, host: HostId) {
        let at = self.now.plus(self.rng.span(MILLI, MINUTE));
        let boots = self.boots(host);
        self.agenda.push(at, Happening::Boot { host, boots });
    }

    /// Keeps the atlas's books about whether something is wrong with the host.
    fn review(&mut self, host: HostId) {
        let isolated = self.isolated_until.get(&host).is_some_and(|until| *until > self.now);
        if self.is_running(host) && !isolated && !self.disk.is_path_dead(host) {
            self.atlas.restore(host);
        } else {
            self.atlas.impair(host);
        }
    }

    fn is_settled(&self) -> bool {
        self.checkers.iter().all(|checker| checker.is_settled(self))
    }

    fn unsettled(&self) -> Option<(&'static str, String)> {
        self.checkers.iter().find_map(|checker| {
            let what = checker.unsettled(self)?;
            Some((checker.name(), what))
        })
    }

    fn stop_faults(&mut self) {
        self.trace.note(self.now, None, &Note::Calm);
        self.atlas.calm();
        self.disk.calm(self.now);
        self.net.calm(self.now);
        self.isolated_until.clear();
        for host in self.hosts() {
            if self.disk.is_path_dead(host) {
                self.crash(host);
            }
            self.resume(host);
            self.boot(host);
            self.review(host);
        }
    }

    /// What befalls whole machines, or the whole world.
    fn on_fault_tick(&mut self) {
        if self.atlas.is_calm() {
            return;
        }
        let next = self.now.plus(self.rng.span(10 * MILLI, 2 * SECOND));
        self.agenda.push(next, Happening::FaultTick);
        self.befall_nodes();
        self.befall_links();
        self.befall_disk();
    }

    /// A machine that may be impaired, or is.
    fn victim(&mut self) -> Option<HostId> {
        let up = |host: &HostId| self.machines[usize::from(host.0)].life.is_some();
        let hosts: Vec<HostId> =
            self.hosts().filter(up).filter(|host| self.atlas.may_impair(*host)).collect();
        self.rng.pick(&hosts).copied()
    }

    fn befall_nodes(&mut self) {
        if self.atlas.draw(Fault::NodeCrash)
            && let Some(host) = self.victim()
        {
            self.atlas.happened(Fault::NodeCrash);
            self.crash(host);
            self.boot_later(host);
        }
        if self.atlas.draw(Fault::NodePause)
            && let Some(host) = self.victim().filter(|host| self.is_running(*host))
        {
            self.atlas.happened(Fault::NodePause);
            let how_long = self.rng.span(MILLI, 10 * MINUTE);
            self.pause(host, how_long);
        }
        if self.atlas.draw(Fault::NodeClockJump)
            && let Some(host) = self.victim().filter(|host| self.is_running(*host))
        {
            self.atlas.happened(Fault::NodeClockJump);
            let ahead = self.rng.span(MILLI, 60 * MINUTE);
            self.trace.note(self.now, Some(host), &Note::ClockJump(ahead));
            self.machines[usize::from(host.0)].clock.jump(self.now, ahead);
            self.wake_soon(host);
        }
    }

    fn befall_links(&mut self) {
        if self.atlas.draw(Fault::NetReset) && self.net.reset_one(self.now) {
            self.atlas.happened(Fault::NetReset);
        }
        let one_way = self.atlas.draw(Fault::NetOneWay);
        let partition = self.atlas.draw(Fault::NetPartition);
        if (one_way || partition)
            && self.machines.len() > 1
            && let Some(victim) = self.victim()
        {
            let how_long = self.rng.span(100 * MILLI, 2 * MINUTE);
            self.isolate(victim, how_long, !partition);
        }
    }

    /// Cuts a machine, or as many as may be impaired, off from the others.
    fn isolate(&mut self, victim: HostId, how_long: Duration, one_way: bool) {
        let until = self.now.plus(how_long);
        let mut cut_off = vec![victim];
        self.atlas.impair(victim);
        for host in self.hosts() {
            let joins = !one_way && self.rng.chance(Chance::EVEN) && host != victim;
            if joins && cut_off.len() + 1 < self.machines.len() && self.atlas.may_impair(host) {
                self.atlas.impair(host);
                cut_off.push(host);
            }
        }
        let outbound = self.rng.chance(Chance::EVEN);
        for host in &cut_off {
            self.isolated_until.insert(*host, until);
            self.agenda.push(until, Happening::Reconnect { host: *host });
            for other in self.hosts().filter(|other| !cut_off.contains(other)) {
                if !one_way || outbound {
                    self.block(*host, other, how_long);
                }
                if !one_way || !outbound {
                    self.block(other, *host, how_long);
                }
            }
        }
        self.atlas.happened(if one_way { Fault::NetOneWay } else { Fault::NetPartition });
    }

    fn befall_disk(&mut self) {
        if self.atlas.draw(Fault::DiskPathDead)
            && let Some(host) = self.victim()
        {
            self.atlas.happened(Fault::DiskPathDead);
            self.disk.kill_path(self.now, host, &mut self.trace);
            self.repair_later(host);
        }
        if self.atlas.strike(Fault::DiskFull) {
            let until = self.now.plus(self.rng.span(10 * MILLI, 10 * SECOND));
            self.disk.fill_up(self.now, until, &mut self.trace);
        }
        if self.atlas.strike(Fault::DiskReset) {
            let up = |host: &HostId| self.machines[usize::from(host.0)].life.is_some();
            let hosts: Vec<HostId> = self.hosts().filter(up).collect();
            self.disk.lose_power(self.now, &hosts, &mut self.atlas, &mut self.trace);
            for host in hosts {
                self.repair_later(host);
            }
        }
        if self.atlas.strike(Fault::PowerLoss) {
            self.lose_power();
            for host in self.hosts() {
                self.boot_later(host);
            }
        }
    }

    /// A machine without a working path to its disk is restarted by its operator.
    fn repair_later(&mut self, host: HostId) {
        self.review(host);
        let at = self.now.plus(self.rng.span(SECOND, MINUTE));
        let boots = self.boots(host);
        self.agenda.push(at, Happening::Repair { host, boots });
    }
}

/// Whether the node is to hear of this event now, going by the streams it has; keeps them.
fn stream_event_is_due(
    streams: &mut std::collections::BTreeSet<StreamId>,
    event: &Event<'static>,
) -> bool {
    match event {
        Event::Accepted(stream) | Event::Connected { stream, .. } => streams.insert(*stream),
        Event::Closed(stream) => streams.remove(stream),
        Event::Sent { .. } | Event::Received { .. } => true,
        Event::Completed(_) | Event::ConnectFailed { .. } | Event::ListenFailed => true,
    }
}

fn is_write(action: &Action<'_>) -> bool {
    matches!(action, Action::Block(BlockRequest { op: BlockOp::Write(..), .. }))
}

/// Whether something comes between a node's decision and its effect.
fn interruption(atlas: &mut Atlas, host: HostId) -> Option<Interruption> {
    if atlas.may_impair(host) {
        if atlas.draw(Fault::NodeCrashAtEffect) {
            return Some(Interruption::Crash(Fault::NodeCrashAtEffect));
        }
        if atlas.draw(Fault::NodePauseAtEffect) {
            return Some(Interruption::Pause(Fault::NodePauseAtEffect));
        }
    }
    None
}

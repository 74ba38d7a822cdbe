//! What goes wrong with a cluster while it is used: voters are killed, stopped for a while, and cut
//! off from their mounts; and now and then a mount is stopped.
//!
//! * One fault at a time, and the next only when the one before is over and all voters run: what is
//!   promised is that some voter can lead soon.
//! * Half of the time it is the voter that leads.
//! * What is drawn follows from the seed. When it happens doesn't.

use super::Server;
use super::mount::Mount;
use super::starter::Seat;
use super::wire::{Weather, Wire};
use crate::guest;
use crate::tools::Failure;
use rustix::process::{Pid, Signal, kill_process};
use std::fmt;
use std::time::{Duration, Instant};

/// Longest time for which a voter is stopped or cut off, in milliseconds.
const AWAY_MS_MAX: u64 = 4000;
/// All voters have run for so long when something goes wrong.
const CALM: Duration = Duration::from_secs(2);

/// How often something goes wrong, and what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) every: Duration,
    pub(crate) how_long: Duration,
    pub(crate) seed: u64,
}

/// A voter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Server(usize),
    /// The one beside this mount.
    Mount(usize),
}

/// What is to be ended.
#[derive(Debug)]
enum Away {
    /// A guest that is stopped, with its monitor.
    Guest(Seat),
    /// A process that is stopped.
    Process(u32),
    /// This wire is cut.
    Cut(usize),
}

/// What goes wrong.
pub(super) struct Faults {
    plan: Plan,
    /// One for each server.
    pub(super) wires: Vec<Wire>,
    end: Option<Instant>,
    next: Instant,
    /// Not all voters ran at this time.
    troubled: Instant,
    away: Option<(Away, Instant)>,
    draws: u64,
    kills: u32,
    stops: u32,
    cuts: u32,
    mounts: u32,
}

impl Faults {
    pub(super) fn new(plan: Plan, wires: Vec<Wire>) -> Faults {
        let now = Instant::now();
        Faults {
            plan,
            wires,
            end: None,
            next: now,
            troubled: now,
            away: None,
            draws: plan.seed,
            kills: 0,
            stops: 0,
            cuts: 0,
            mounts: 0,
        }
    }

    /// Goes on, now that the cluster is used: something may happen at any time.
    pub(super) fn tick(&mut self, servers: &mut [Server], mounts: &[Mount], guests: bool) {
        let now = Instant::now();
        let end = *self.end.get_or_insert_with(|| now + self.plan.how_long);
        if self.away.as_ref().is_some_and(|(_, until)| *until <= now) {
            self.heal();
        }
        let voters = voters(servers, mounts);
        let running = voters.len() == servers.len() + mounts.iter().filter(|m| m.votes).count();
        if !running || self.away.is_some() {
            self.troubled = now;
        }
        if now < self.next || now >= end || now < self.troubled + CALM {
            return;
        }
        let leader = voters.iter().max_by_key(|(_, _, heard)| *heard);
        let drawn = match leader {
            Some(leader) if self.draw(2) == 0 => Some(leader),
            Some(_) | None => {
                let at = self.draw(voters.len() as u64);
                voters.get(at as usize)
            }
        };
        let Some((victim, pid, _)) = drawn.copied() else { return };
        let kind = self.draw(11);
        let length = Duration::from_millis(200 + self.draw(AWAY_MS_MAX - 200));
        let part = u32::try_from(50 + self.draw(100)).unwrap_or(100);
        self.next = now + self.plan.every * part / 100;
        match (kind, victim) {
            (0..4, _) => self.kill(victim, pid, servers),
            (4..6, Victim::Server(index)) if index < self.wires.len() => {
                let weather = if kind == 4 { Weather::Silent } else { Weather::Broken };
                self.wires[index].turn(weather);
                eprintln!("xtask: {victim} is cut off for {length:?}: {weather:?}");
                self.away = Some((Away::Cut(index), now + length));
                self.cuts += 1;
            }
            (10, _) => {
                let at = self.draw(mounts.len() as u64) as usize;
                let Some(pid) = mounts.get(at).and_then(Mount::pid) else { return };
                eprintln!("xtask: mount {at} is stopped for {length:?}");
                signal(pid, Signal::STOP);
                self.away = Some((Away::Process(pid), now + length));
                self.mounts += 1;
            }
            _ => {
                let away = match victim {
                    Victim::Server(index) if guests => Away::Guest(servers[index].seat.clone()),
                    Victim::Server(_) | Victim::Mount(_) => Away::Process(pid),
                };
                eprintln!("xtask: {victim} is stopped for {length:?}");
                self.stops += u32::from(stop(&away, true).is_ok());
                self.away = Some((away, now + length));
            }
        }
    }

    fn kill(&mut self, victim: Victim, pid: u32, servers: &mut [Server]) {
        eprintln!("xtask: {victim} is killed");
        self.kills += 1;
        match victim {
            Victim::Server(index) => {
                if let Some(process) = &mut servers[index].process {
                    process.kill();
                }
            }
            Victim::Mount(_) => signal(pid, Signal::KILL),
        }
    }

    /// Ends what goes wrong.
    pub(super) fn heal(&mut self) {
        match self.away.take() {
            Some((Away::Cut(index), _)) => self.wires[index].turn(Weather::Fair),
            // It may have been killed meanwhile, by its witness.
            Some((away, _)) => drop(stop(&away, false)),
            None => {}
        }
    }

    /// A number below `bound`: splitmix64.
    fn draw(&mut self, bound: u64) -> u64 {
        self.draws = self.draws.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.draws;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound.max(1)
    }
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Victim::Server(index) => write!(f, "server {index}"),
            Victim::Mount(index) => write!(f, "the server of mount {index}"),
        }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Faults { kills, stops, cuts, mounts, .. } = self;
        write!(
            f,
            "voters were killed {kills} times, stopped {stops} times, cut off {cuts} times; mounts \
             were stopped {mounts} times"
        )
    }
}

/// Voters that run, with the process that they are, and when they said last that they listen.
fn voters(servers: &[Server], mounts: &[Mount]) -> Vec<(Victim, u32, u64)> {
    let servers = servers.iter().enumerate().filter_map(|(index, server)| {
        let process = server.process.as_ref()?;
        Some((Victim::Server(index), process.pid(), process.listening()))
    });
    let mounts = mounts.iter().enumerate().filter_map(|(index, mount)| {
        Some((Victim::Mount(index), mount.server()?, mount.listening()))
    });
    servers.chain(mounts).collect()
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // Fails only when it has ended already.
        let _ = kill_process(pid, signal);
    }
}

/// Stops something, or lets it go on.
fn stop(away: &Away, stops: bool) -> Result<(), Failure> {
    match away {
        Away::Guest(seat) => {
            let command = if stops { "stop" } else { "cont" };
            guest::control(&seat.control, &[command]).map_err(Failure)
        }
        Away::Process(pid) => {
            signal(*pid, if stops { Signal::STOP } else { Signal::CONT });
            Ok(())
        }
        Away::Cut(_) => Ok(()),
    }
}

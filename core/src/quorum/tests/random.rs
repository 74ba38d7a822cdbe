//! Random schedules: whatever happens, no answered commit is lost or taken for lost, and once the
//! faults stop somebody leads.

extern crate std;

use super::super::Exclusion;
use super::sim::{Counts, MS, Memory, Prey, Rng, SECOND, Sim};
use crate::mutant::{Mutant, activate};
use std::string::String;
use std::vec::Vec;

/// One voter that runs is enough: somebody listens within this time after the last fault. It is the
/// longest pause after failures (4 s); or a start (1.25 s and a scan); then a failover (2 s) with
/// the handicap of a voter that few mounts reach (1.25 s); and slow requests still under way.
const LIVENESS_MS: u64 = 10_000;

struct Outcome {
    counts: Counts,
    violations: Vec<String>,
}

/// One fault, more often than not at whoever leads.
fn fault(sim: &mut Sim<'_>) {
    let mut node = sim.rng.below(sim.nodes.len() as u64) as usize;
    if let Some(leader) = sim.leader()
        && sim.rng.one_in(2)
    {
        node = leader;
    }
    if !sim.is_up(node) {
        sim.start(node);
        return;
    }
    // Pauses from a scheduling hiccup to a minute, at all scales alike.
    let scale = sim.rng.below(7);
    let pause = ((15 * MS) << (2 * scale)).min(60 * SECOND);
    let pause = sim.rng.between(pause / 2, pause);
    let blind = !sim.clocks_are_honest && sim.rng.one_in(2);
    let stalls_io = sim.rng.one_in(2);
    match sim.rng.below(12) {
        0 if sim.counts.crashes.is_multiple_of(2) => sim.crash(node),
        0 => sim.reboot(node),
        1 | 2 => sim.pause(node, pause, blind, stalls_io),
        3..=5 => sim.ambush(node, Prey::Any, pause, blind, stalls_io),
        6 => sim.slow(node, pause.min(5 * SECOND)),
        7 => {
            let one_in = sim.rng.between(1, 20);
            sim.fail_io(node, pause.min(5 * SECOND), one_in);
        }
        8 => sim.resign(node),
        9 => {
            let mounts = sim.rng.below(4) as u32;
            sim.reach(node, mounts);
        }
        10 => sim.stop(node),
        // All at once: they meet again in an election.
        _ => (0..sim.nodes.len()).for_each(|node| sim.resign(node)),
    }
}

fn is_over(sim: &Sim<'_>, node: usize) -> bool {
    let voter = sim.nodes[node].voter.as_ref();
    voter.is_some_and(|voter| {
        matches!(voter.role(), super::super::Role::Stopped) && voter.is_quiescent()
    })
}

fn schedule(seed: u64, mutant: Option<Mutant>) -> Outcome {
    activate(mutant);
    let mut memory = Memory::new(48);
    let mut draw = Rng::new(seed);
    let voters = [1, 2, 2, 3, 3, 3, 5, 7][draw.below(8) as usize];
    let mut sim = Sim::new(&mut memory, voters, seed);
    sim.hiccups = true;
    sim.confirms = true;
    sim.clocks_are_honest = !draw.one_in(3);
    sim.commit_every_ms = [5, 20, 100, 400][draw.below(4) as usize];
    let every = [100, 400, 1000, 2500][draw.below(4) as usize] * MS;
    for node in 0..voters {
        if !draw.one_in(4) {
            sim.start(node);
        }
    }
    if draw.one_in(3) {
        sim.exclusion = Exclusion::Volume;
    }
    let end = sim.now + draw.between(4, 16) * SECOND;
    while sim.now < end && sim.violations.is_empty() {
        let next = sim.now + draw.below(2 * every);
        sim.run_until(next);
        for node in 0..voters {
            if is_over(&sim, node) {
                sim.crash(node);
            }
        }
        fault(&mut sim);
    }
    settle(&mut sim, &mut draw, seed);
    Outcome { counts: sim.counts.clone(), violations: sim.violations.clone() }
}

/// No more faults, at least one voter runs: one of them leads soon.
fn settle(sim: &mut Sim<'_>, draw: &mut Rng, seed: u64) {
    let voters = sim.nodes.len();
    let must_run = draw.below(voters as u64) as usize;
    for node in 0..voters {
        sim.nodes[node].mend();
        if node == must_run || draw.one_in(2) {
            if !sim.is_up(node) || sim.nodes[node].is_leaving() {
                sim.crash(node);
                sim.start(node);
            }
        } else if sim.is_up(node) && draw.one_in(2) {
            sim.crash(node);
        }
    }
    let resumed = sim.nodes.iter().map(|node| node.resumes_at()).max().unwrap_or(0).max(sim.now);
    let up = sim.nodes[must_run].voter.is_some();
    sim.run_until(resumed);
    let late = sim.run_while(resumed + LIVENESS_MS * MS, |sim| sim.listening().is_none());
    if late && up {
        let roles: Vec<_> =
            sim.nodes.iter().map(|node| node.voter.as_ref().map(|voter| voter.role())).collect();
        sim.violations.push(std::format!("seed {seed}: nobody leads: {roles:?}"));
    }
    sim.counts.slowest_ms = (sim.now - resumed) / MS;
}

fn run(seeds: core::ops::Range<u64>) -> Counts {
    let mut counts = Counts::default();
    let schedules = seeds.end - seeds.start;
    for seed in seeds {
        let outcome = schedule(seed, None);
        assert!(outcome.violations.is_empty(), "seed {seed}: {:#?}", outcome.violations);
        counts.add(&outcome.counts);
    }
    std::println!("{schedules} schedules: {counts:#?}");
    counts
}

/// `OUTRIDER_SCHEDULES=20000` runs that many.
#[test]
fn random_schedules_lose_no_answered_commit() {
    let wanted = std::env::var("OUTRIDER_SCHEDULES").ok();
    let schedules = wanted.and_then(|wanted| wanted.parse().ok()).unwrap_or(1500);
    let counts = run(0..schedules);
    // A simulator that tests nothing shows.
    assert!(counts.elections > 2 * schedules && counts.answers > 50 * schedules);
    assert!(counts.crashes > schedules && counts.pauses > schedules && counts.torn > 100);
    assert!(counts.late_claims > 100 && counts.late_roots > 20 && counts.checks_denied > 100);
    assert!(counts.blind_pauses > 500 && counts.io_errors > schedules);
}

/// The first violation from this seed on.
fn first_violation(mutant: Mutant, from: u64) -> Option<(u64, String)> {
    (from..from + 4000).find_map(|seed| {
        let outcome = schedule(seed, Some(mutant));
        outcome.violations.into_iter().next().map(|what| (seed, what))
    })
}

/// The search begins shortly before a seed known to catch the mutant, and goes on when a change to
/// the schedules has moved it.
#[test]
fn each_mutant_is_caught_by_some_seed() {
    for (mutant, from) in [
        (Mutant::AnswerBeforeReread, 70),
        (Mutant::EvictByOwnClock, 0),
        (Mutant::LeaseFromCompletion, 400),
        (Mutant::ClaimWithoutLook, 80),
        (Mutant::ClaimWithoutLease, 5700),
    ] {
        let caught = first_violation(mutant, from);
        std::println!("{mutant:?}: {caught:?}");
        assert!(caught.is_some(), "{mutant:?} was not noticed");
    }
    activate(None);
}

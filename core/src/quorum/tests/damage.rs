//! What becomes of a voter whose own block is damaged.

extern crate std;

use super::sim::{BASE, MS, Memory, SECOND, Sim, VOLUME};
use crate::format::quorum::{Ballot, LEASE_MS_MAX, SEQ_MAX, Slot, State, parse};
use crate::quorum::{Exclusion, Refusal, Role, Vouched};
use outrider_hal::Block;

/// The longest lease that a block may have spoken of.
const LONGEST: u64 = LEASE_MS_MAX as u64 * MS;

fn role(sim: &Sim<'_>, node: usize) -> Role {
    sim.nodes[node].voter.as_ref().unwrap().role()
}

fn damage(sim: &mut Sim<'_>, slot: usize) {
    sim.blocks[slot] = Block([0xa5; 4096]);
}

/// Runs until somebody leads, or for two minutes.
fn run_until_led(sim: &mut Sim<'_>) -> Option<usize> {
    let end = sim.now + 120 * SECOND;
    sim.run_while(end, |sim| sim.leader().is_none());
    sim.leader()
}

#[test]
fn the_only_voter_writes_its_block_anew_when_nobody_else_can_have_used_it() {
    for seed in 0..5 {
        let mut memory = Memory::new(2);
        let mut sim = Sim::new(&mut memory, 1, seed);
        sim.exclusion = Exclusion::Volume;
        sim.start(0);
        sim.run_until_led();
        let now = sim.now + 2 * SECOND;
        sim.run_until(now);
        let first = sim.term(0);
        sim.crash(0);
        damage(&mut sim, 0);
        let started = sim.now;
        sim.start(0);
        assert_eq!(run_until_led(&mut sim), Some(0));
        assert!(sim.now - started >= LONGEST, "{} ms", (sim.now - started) / MS);
        assert!(parse(&sim.blocks[0], &VOLUME, BASE, Slot::ALL[0]).is_ok());
        // It finds out by the roots which rounds there were.
        let now = sim.now + 5 * SECOND;
        sim.run_until(now);
        assert!(sim.term(0) > first && first.is_some());
        // Its first term came a second time, and ended when it had read the roots.
        let again = |said: &std::string::String| said.ends_with("term 1.0 of 0 was (0, 1)'s");
        assert!(sim.violations.iter().all(again), "{:?}", sim.violations);
    }
}

#[test]
fn where_another_host_may_have_used_it_nothing_but_a_word_helps() {
    let mut memory = Memory::new(3);
    let mut sim = Sim::new(&mut memory, 1, 5);
    sim.start(0);
    sim.run_until_led();
    sim.crash(0);
    damage(&mut sim, 0);
    sim.start(0);
    let now = sim.now + 3 * SECOND;
    sim.run_until(now);
    assert_eq!(role(&sim, 0), Role::Refused(Refusal::Damaged));
    assert!(sim.blocks[0].0 == [0xa5; 4096], "nothing was written");
    sim.crash(0);
    let started = sim.now;
    sim.start_in(0, Slot::ALL[0], Vouched::Anyone);
    assert_eq!(run_until_led(&mut sim), Some(0));
    assert!(sim.now - started >= LONGEST);
}

#[test]
fn a_block_that_somebody_heals_is_in_use() {
    for exclusion in [Exclusion::Host, Exclusion::Volume] {
        let mut memory = Memory::new(2);
        let mut sim = Sim::new(&mut memory, 2, 6);
        sim.exclusion = exclusion;
        sim.start(0);
        sim.run_until_led();
        damage(&mut sim, 0);
        // Its lock reaches less far than it believes, or the operator is wrong.
        sim.start_in(1, Slot::ALL[0], Vouched::Anyone);
        let now = sim.now + 5 * SECOND;
        sim.run_until(now);
        assert_eq!(role(&sim, 1), Role::Refused(Refusal::SlotInUse));
        assert_eq!(sim.leader(), Some(0));
        assert_eq!(sim.terms_elected(), 1);
    }
}

#[test]
fn a_block_is_written_anew_under_a_leader_that_goes_on() {
    let mut memory = Memory::new(2);
    let mut sim = Sim::new(&mut memory, 2, 7);
    sim.exclusion = Exclusion::Volume;
    sim.start(0);
    sim.run_until_led();
    damage(&mut sim, 1);
    sim.start(1);
    let now = sim.now + 2 * LONGEST;
    sim.run_until(now);
    assert_eq!((sim.leader(), sim.terms_elected()), (Some(0), 1));
    let ballot = parse(&sim.blocks[1], &VOLUME, BASE, Slot::ALL[1]).unwrap().unwrap();
    assert_eq!(ballot.state, State::Idle);
    assert!(sim.violations.is_empty(), "{:?}", sim.violations);
}

/// A voter that was stopped in good order left its block, and it now says that this was its
/// write's number.
fn say_seq(sim: &mut Sim<'_>, seq: u64) {
    sim.start(0);
    sim.run_until_led();
    sim.stop(0);
    let now = sim.now + 2 * SECOND;
    sim.run_until(now);
    let last = sim.ballot(0).unwrap();
    assert_eq!(last.state, State::Stopped);
    sim.crash(0);
    Ballot { seq, ..last }.emit(&mut sim.blocks[0], &VOLUME, BASE);
}

#[test]
fn who_finds_the_greatest_number_in_its_slot_counts_from_one_and_leads() {
    let mut memory = Memory::new(3);
    let mut sim = Sim::new(&mut memory, 2, 8);
    say_seq(&mut sim, SEQ_MAX);
    sim.start(0);
    sim.run_until_led();
    assert_eq!((sim.leader(), sim.terms_elected()), (Some(0), 2));
    // Others read what it writes now, and see it live.
    sim.start(1);
    let now = sim.now + 5 * SECOND;
    sim.run_until(now);
    assert_eq!((sim.leader(), sim.terms_elected()), (Some(0), 2));
    assert!((3..100).contains(&sim.ballot(0).unwrap().seq));
    assert!(sim.violations.is_empty(), "{:?}", sim.violations);
}

#[test]
fn a_number_that_cannot_be_is_damage_like_any_other() {
    for seq in [SEQ_MAX + 1, u64::MAX] {
        let mut memory = Memory::new(3);
        let mut sim = Sim::new(&mut memory, 1, 9);
        say_seq(&mut sim, seq);
        sim.start(0);
        let now = sim.now + 3 * SECOND;
        sim.run_until(now);
        assert_eq!(role(&sim, 0), Role::Refused(Refusal::Damaged));
        sim.crash(0);
        sim.start_in(0, Slot::ALL[0], Vouched::Anyone);
        assert_eq!(run_until_led(&mut sim), Some(0));
        assert!(sim.ballot(0).unwrap().seq < 100);
    }
}

//! Each test tells the story of one failure.

extern crate std;

use super::super::*;
use super::sim::{BASE, MS, Memory, Prey, Reads, SECOND, Sim, VOLUME};
use crate::format::quorum::{Ballot, ROUND_MAX, Slot, State, parse};
use crate::format::{CommitNo, Term};
use crate::mutant::{Mutant, activate};
use outrider_hal::Block;

const LEASE: u64 = 1000 * MS;

fn role(sim: &Sim<'_>, node: usize) -> Role {
    sim.nodes[node].voter.as_ref().unwrap().role()
}

fn state(sim: &Sim<'_>, slot: usize) -> State {
    sim.ballot(slot).unwrap().state
}

#[test]
fn one_voter_alone_leads_and_says_so_in_order() {
    let mut memory = Memory::new(1);
    let mut sim = Sim::new(&mut memory, 1, 1);
    sim.start(0);
    assert!(!sim.run_while(5 * SECOND, |sim| sim.term(0).is_none()));
    // Elected is on the disk before the owner hears of it, and Listening only once it accepts.
    let elected = sim.ballot(0).unwrap();
    assert_eq!(elected.state, State::Elected);
    assert_eq!(elected.endpoint, None);
    assert_eq!(sim.run_until_led(), 0);
    let listening = sim.ballot(0).unwrap();
    assert_eq!((listening.state, listening.term), (State::Listening, elected.term));
    assert_eq!(listening.seq, elected.seq + 1);
    assert_eq!(listening.endpoint, Some(super::sim::endpoint(0)));
}

#[test]
fn a_killed_leader_is_replaced_well_within_three_seconds() {
    let mut slowest = 0;
    for seed in 0..40 {
        let mut memory = Memory::new(7);
        let mut sim = Sim::new(&mut memory, 3, seed);
        (0..3).for_each(|node| assert!(sim.start(node)));
        let first = sim.run_until_led();
        let term = sim.term(first).unwrap();
        let after = sim.now + seed * 37 * MS;
        sim.run_until(after);
        sim.crash(first);
        let killed = sim.now;
        let second = sim.run_until_led();
        assert!(sim.term(second).unwrap() > term);
        slowest = slowest.max(sim.now - killed);
    }
    std::println!("slowest failover: {} ms", slowest / MS);
    assert!(slowest < 2500 * MS);
}

#[test]
fn a_clean_hand_over_does_not_wait_for_the_lease() {
    let mut memory = Memory::new(3);
    let mut sim = Sim::new(&mut memory, 3, 4);
    (0..3).for_each(|node| assert!(sim.start(node)));
    let first = sim.run_until_led();
    let now = sim.now + 700 * MS;
    sim.run_until(now);
    sim.resign(first);
    let resigned = sim.now;
    let second = sim.run_until_led();
    assert_ne!(first, second);
    assert!(sim.now - resigned < LEASE, "{} ms", (sim.now - resigned) / MS);
    assert_eq!(state(&sim, first), State::Resigned);
}

#[test]
fn voters_stop_in_any_order_without_waiting_for_each_other() {
    let mut memory = Memory::new(4);
    let mut sim = Sim::new(&mut memory, 3, 5);
    (0..3).for_each(|node| assert!(sim.start(node)));
    let leader = sim.run_until_led();
    let order = [(leader + 1) % 3, leader, (leader + 2) % 3];
    for node in order {
        sim.stop(node);
        let deadline = sim.now + 500 * MS;
        assert!(!sim.run_while(deadline, |sim| !sim.has_noticed(node, Notice::Stopped(Ok(())))));
        assert_eq!(role(&sim, node), Role::Stopped);
        assert_eq!(state(&sim, node), State::Stopped);
    }
    let requests = sim.nodes[leader].requests;
    let now = sim.now + 5 * SECOND;
    sim.run_until(now);
    assert_eq!(sim.nodes[leader].requests, requests, "a stopped voter is silent");
    // The next start finds nobody to wait for but its own watch.
    sim.crash(leader);
    sim.start(leader);
    let started = sim.now;
    sim.run_until_led();
    assert!(sim.now - started < 2500 * MS);
}

#[test]
fn the_same_slot_on_two_hosts_is_refused_and_nothing_is_written() {
    let mut memory = Memory::new(2);
    let mut sim = Sim::new(&mut memory, 2, 6);
    sim.start(0);
    assert_eq!(sim.run_until_led(), 0);
    sim.start_in(1, Slot::ALL[0], Vouched::Anyone);
    let incarnation = sim.ballot(0).unwrap().incarnation;
    let end = sim.now + 3 * SECOND;
    while sim.now < end {
        assert_eq!(sim.ballot(0).unwrap().incarnation, incarnation);
        let next = sim.now + 20 * MS;
        sim.run_until(next);
    }
    assert_eq!(role(&sim, 1), Role::Refused(Refusal::SlotInUse));
    assert_eq!(sim.leader(), Some(0));
}

#[test]
fn a_slot_moves_to_another_host_only_when_its_last_user_is_proven_gone() {
    let mut memory = Memory::new(4);
    let mut sim = Sim::new(&mut memory, 2, 7);
    sim.start(0);
    sim.run_until_led();
    let last = sim.ballot(0).unwrap();
    // Its host is stopped, with writes in flight that will reach the slot's block a minute later.
    sim.pause(0, 60 * SECOND, false, true);
    sim.start_in(1, Slot::ALL[0], Vouched::Nothing);
    let now = sim.now + 5 * SECOND;
    sim.run_until(now);
    let Ballot { incarnation, host, .. } = last;
    assert_eq!(role(&sim, 1), Role::Refused(Refusal::Unproven { incarnation, host }));
    assert_eq!(sim.ballot(0).unwrap().incarnation, incarnation, "nothing was written");
    // The operator switches it off and says so.
    sim.crash(0);
    sim.crash(1);
    sim.start_in(1, Slot::ALL[0], Vouched::Gone(incarnation));
    assert_eq!(sim.run_until_led(), 1);
    assert!(sim.term(1).unwrap() > last.term);
}

#[test]
fn a_rebooted_host_takes_its_slot_back_by_itself() {
    let mut memory = Memory::new(2);
    let mut sim = Sim::new(&mut memory, 1, 8);
    sim.start(0);
    sim.run_until_led();
    let term = sim.term(0).unwrap();
    sim.reboot(0);
    sim.start(0);
    assert_eq!(sim.run_until_led(), 0);
    assert!(sim.term(0).unwrap() > term);
}

#[test]
fn a_voter_killed_in_office_is_back_at_once_in_the_same_boot_and_watches_after_another() {
    for seed in 0..20 {
        let mut memory = Memory::new(3);
        let mut sim = Sim::new(&mut memory, 1, seed);
        sim.start(0);
        sim.run_until_led();
        for (reboots, least, most) in [(false, 0, 400), (true, 1200, 2500)] {
            let term = sim.term(0).unwrap();
            if reboots {
                sim.reboot(0);
            } else {
                sim.crash(0);
            }
            let killed = sim.now;
            sim.start(0);
            assert_eq!(sim.run_until_led(), 0);
            assert!(sim.term(0).unwrap() > term);
            let took = (sim.now - killed) / MS;
            assert!((least..most).contains(&took), "{took} ms");
        }
        assert!(sim.violations.is_empty(), "{:?}", sim.violations);
    }
}

#[test]
fn a_voter_whose_lock_reaches_as_far_as_the_volume_starts_and_comes_back_at_once() {
    for seed in 0..20 {
        let mut memory = Memory::new(3);
        let mut sim = Sim::new(&mut memory, 2, seed);
        sim.exclusion = Exclusion::Volume;
        let started = sim.now;
        sim.start(0);
        sim.run_until_led();
        assert!(sim.now - started < 60 * MS, "{} ms", (sim.now - started) / MS);
        sim.stop(0);
        let now = sim.now + 500 * MS;
        sim.run_until(now);
        assert_eq!(state(&sim, 0), State::Stopped);
        sim.reboot(0);
        sim.start(0);
        sim.run_until_led();
        assert!(sim.now - now < 60 * MS, "{} ms", (sim.now - now) / MS);
        // The lease of another slot is waited for all the same.
        sim.crash(0);
        let killed = sim.now;
        sim.start(1);
        assert_eq!(sim.run_until_led(), 1);
        assert!(sim.now - killed > LEASE);
        assert!(sim.violations.is_empty(), "{:?}", sim.violations);
    }
}

/// Two hosts are told to use one slot, the second this much later: how many terms were held, how
/// many of the hosts were refused, and whether all was well.
fn two_hosts_in_one_slot(later: u64, seed: u64, exclusion: Exclusion) -> (usize, usize, bool) {
    let mut memory = Memory::new(2);
    let mut sim = Sim::new(&mut memory, 2, seed);
    sim.exclusion = exclusion;
    sim.start(0);
    let now = sim.now + later;
    sim.run_until(now);
    sim.start_in(1, Slot::ALL[0], Vouched::Nothing);
    let now = sim.now + 6 * SECOND;
    sim.run_until(now);
    let refused = |node: &&usize| matches!(role(&sim, **node), Role::Refused(_));
    (sim.terms_elected(), [0, 1].iter().filter(refused).count(), sim.violations.is_empty())
}

#[test]
fn of_two_hosts_that_start_in_one_blank_slot_one_is_refused() {
    for seed in 0..200 {
        // From the same moment to long after the first one leads.
        let later = seed * seed * MS / 20;
        let outcome = two_hosts_in_one_slot(later, seed, Exclusion::Host);
        assert_eq!(outcome, (1, 1, true), "{} ms later", later / MS);
    }
    let lied = |seed: u64| !two_hosts_in_one_slot(seed * MS / 10, seed, Exclusion::Volume).2;
    assert!((0..200).any(lied), "a lock that reaches less far than it is said to harms nobody");
}

#[test]
fn a_copy_of_a_host_is_another_host_as_long_as_the_first_one_runs() {
    let mut memory = Memory::new(2);
    let mut sim = Sim::new(&mut memory, 2, 21);
    sim.start(0);
    sim.run_until_led();
    sim.nodes[1].host = sim.nodes[0].host;
    sim.nodes[1].boots = 7;
    sim.start_in(1, Slot::ALL[0], Vouched::Nothing);
    let now = sim.now + 3 * SECOND;
    sim.run_until(now);
    assert_eq!(role(&sim, 1), Role::Refused(Refusal::SlotInUse));
    assert_eq!(sim.leader(), Some(0));
}

/// A leader is stopped for a minute just after it has submitted a root, and all it has in flight
/// with it. Its successor commits. Then the leader wakes, and its writes land.
fn minute_long_pause(blind: bool, mutant: Option<Mutant>) -> std::vec::Vec<std::string::String> {
    let mut memory = Memory::new(2);
    activate(mutant);
    let mut sim = Sim::new(&mut memory, 2, 9);
    sim.clocks_are_honest = !blind;
    sim.commit_every_ms = 20;
    sim.start(0);
    sim.run_until_led();
    sim.start(1);
    let joined = sim.now + 3 * SECOND;
    sim.run_until(joined);
    let old = sim.term(0).unwrap();
    sim.ambush(0, Prey::Root, 60 * SECOND, blind, true);
    let paused = sim.now + 200 * MS;
    sim.run_until(paused);
    let answered = sim.answers_of(old);
    assert_eq!(sim.run_until_led(), 1);
    let new = sim.term(1).unwrap();
    let woken = sim.now + 63 * SECOND;
    sim.run_until(woken);
    assert!(sim.answers_of(new) > 10);
    assert!(sim.counts.late_roots >= 1, "its root landed after the successor's commits");
    assert_eq!(sim.leader(), Some(1));
    if mutant.is_none() {
        assert_eq!(sim.answers_of(old), answered, "the old leader answered nothing more");
        assert_eq!(role(&sim, 0), Role::Following);
        assert_eq!(sim.term(1), Some(new), "nor did it depose its successor");
    }
    activate(None);
    sim.violations.clone()
}

/// Whether the renewal reached the disk, before the voter wrote its block again.
fn renewal_a_minute_late(seed: u64) -> bool {
    let mut memory = Memory::new(2);
    let mut sim = Sim::new(&mut memory, 2, seed);
    sim.start(0);
    sim.run_until_led();
    sim.start(1);
    let joined = sim.now + 3 * SECOND;
    sim.run_until(joined);
    let old = sim.term(0).unwrap();
    sim.ambush(0, Prey::Own, 60 * SECOND, false, true);
    let now = sim.now + 10 * SECOND;
    sim.run_until(now);
    assert_eq!(sim.leader(), Some(1));
    let (new, before) = (sim.term(1), sim.ballot(0).unwrap());
    let end = sim.now + 60 * SECOND;
    let missing = sim.run_while(end, |sim| {
        assert_ne!(sim.leader(), Some(0));
        sim.ballot(0).unwrap().seq == before.seq
    });
    assert!(!missing);
    let landed = sim.ballot(0).unwrap();
    sim.run_until(end);
    assert!(sim.has_noticed(0, Notice::Deposed(old, Loss::LeaseOver)));
    assert_eq!((sim.leader(), sim.term(1)), (Some(1), new), "the successor was not disturbed");
    assert_eq!(state(&sim, 0), State::Resigned);
    (landed.term, landed.state) == (old, State::Listening)
}

#[test]
fn a_renewal_that_lands_a_minute_late_renews_nothing() {
    let landed = (0..10).filter(|seed| renewal_a_minute_late(*seed)).count();
    assert!(landed > 0);
}

#[test]
fn a_leader_paused_for_a_minute_wakes_and_harms_nothing() {
    assert!(minute_long_pause(false, None).is_empty());
}

#[test]
fn a_leader_that_did_not_notice_its_pause_is_told_by_the_claims() {
    assert!(minute_long_pause(true, None).is_empty());
}

#[test]
fn a_leader_that_answers_before_it_rereads_the_claims_loses_a_commit() {
    let violations = minute_long_pause(true, Some(Mutant::AnswerBeforeReread));
    assert!(violations.iter().any(|what| what.contains("had not read")), "{violations:?}");
}

#[test]
fn two_candidates_claim_at_once_and_one_leads() {
    let mut met = 0;
    for seed in 0..200 {
        let mut memory = Memory::new(4);
        let mut sim = Sim::new(&mut memory, 2, seed);
        sim.start(0);
        sim.start(1);
        let standing = |sim: &Sim<'_>, node| matches!(role(sim, node), Role::Standing(_));
        let end = sim.now + 4 * SECOND;
        let go_on =
            |sim: &Sim<'_>| sim.listening().is_none() && !(standing(sim, 0) && standing(sim, 1));
        sim.run_while(end, go_on);
        met += u64::from(sim.listening().is_none());
        sim.run_until_led();
        let now = sim.now + 5 * SECOND;
        sim.run_until(now);
        assert!(sim.violations.is_empty(), "{:?}", sim.violations);
        assert_eq!(sim.terms_elected(), 1, "who lost did not come back");
    }
    std::println!("met {met} times");
    assert!(met > 0, "no two claims ever met");
}

/// A candidate is stopped at each millisecond of its claim for longer than others wait for a claim
/// that comes to nothing, and then goes on with what it had read before.
fn candidate_paused_in_its_claim(mutant: Option<Mutant>) -> usize {
    activate(mutant);
    let mut violations = 0;
    for offset in 0..24 {
        let mut memory = Memory::new(2);
        let mut sim = Sim::new(&mut memory, 2, 3);
        sim.start(0);
        let claims = |sim: &Sim<'_>| sim.ballot(0).is_some_and(|b| b.state == State::Claiming);
        assert!(
            !sim.run_while(5 * SECOND, |sim| { !claims(sim) && sim.nodes[0].notices.is_empty() })
        );
        sim.start(1);
        let now = sim.now + offset * MS / 2;
        sim.run_until(now);
        sim.pause(0, 5 * SECOND, false, true);
        let now = sim.now + 15 * SECOND;
        sim.run_until(now);
        assert!(sim.listening().is_some());
        violations += sim.violations.len();
    }
    activate(None);
    violations
}

#[test]
fn a_claim_is_a_lease_and_nothing_comes_of_it_after_its_end() {
    assert_eq!(candidate_paused_in_its_claim(None), 0);
    assert!(candidate_paused_in_its_claim(Some(Mutant::ClaimWithoutLease)) > 0);
}

#[test]
fn a_disk_error_on_a_renewal_is_survived_and_a_dead_disk_ends_the_term() {
    let mut memory = Memory::new(2);
    let mut sim = Sim::new(&mut memory, 2, 11);
    sim.start(0);
    sim.run_until_led();
    sim.start(1);
    let now = sim.now + 3 * SECOND;
    sim.run_until(now);
    sim.commit_every_ms = 100_000;
    let now = sim.now + SECOND;
    sim.run_until(now);
    let term = sim.term(0).unwrap();
    // Everything fails for less than a lease: the next renewal succeeds in time.
    sim.fail_io(0, 300 * MS, 1);
    let now = sim.now + 200 * MS;
    sim.run_until(now);
    let now = sim.now + 3 * SECOND;
    sim.run_until(now);
    assert_eq!(sim.term(0), Some(term));
    // Everything fails for good.
    sim.fail_io(0, 1000 * SECOND, 1);
    let failed = sim.now;
    let requests = sim.nodes[0].requests;
    let end = sim.now + 2 * SECOND;
    assert!(!sim.run_while(end, |sim| sim.leader().is_some()));
    assert!(sim.now - failed <= LEASE * 11 / 10);
    assert!(sim.has_noticed(0, Notice::Deposed(term, Loss::LeaseOver)));
    assert_eq!(sim.run_until_led(), 1);
    let now = sim.now + 20 * SECOND;
    sim.run_until(now);
    let spent = sim.nodes[0].requests - requests;
    assert!(spent < 300, "{spent} requests to a dead disk");
    let trouble = sim.nodes[0].voter.as_ref().unwrap().trouble();
    assert!(trouble.is_some());
}

/// The renewals of a leader get through, and its readings of the blocks don't: it could stay in
/// office for ever and answer nothing, and nobody deposes one that renews.
#[test]
fn a_leader_that_is_denied_its_readings_lets_one_lead_that_is_not() {
    for how in [Reads::Fail, Reads::Hang] {
        let mut memory = Memory::new(2);
        let mut sim = Sim::new(&mut memory, 2, 14);
        sim.start(0);
        assert_eq!(sim.run_until_led(), 0);
        sim.start(1);
        let now = sim.now + 5 * SECOND;
        sim.run_until(now);
        let term = sim.term(0).unwrap();
        sim.spoil_reads(0, 2 * SECOND, how);
        let now = sim.now + 4 * SECOND;
        sim.run_until(now);
        assert_eq!(sim.term(0), Some(term), "what passes ends no term");
        sim.spoil_reads(0, 100 * SECOND, how);
        let end = sim.now + 10 * SECOND;
        assert!(!sim.run_while(end, |sim| sim.listening() != Some(1)), "{how:?}");
        assert!(sim.has_noticed(0, Notice::Deposed(term, Loss::Blind)));
        let later = sim.term(1).unwrap();
        let answers = sim.answers_of(later);
        let now = sim.now + 3 * SECOND;
        sim.run_until(now);
        assert!(sim.answers_of(later) > answers, "commits are answered again");
    }
}

#[test]
fn rejoining_never_deposes_a_leader_that_renews() {
    let mut memory = Memory::new(50);
    let mut sim = Sim::new(&mut memory, 3, 12);
    sim.start(0);
    assert_eq!(sim.run_until_led(), 0);
    let term = sim.term(0).unwrap();
    sim.start(1);
    sim.start(2);
    for round in 0..40 {
        let node = 1 + round % 2;
        let next = sim.now + (97 * round as u64 % 2900) * MS;
        sim.run_until(next);
        sim.crash(node);
        sim.start(node);
    }
    let now = sim.now + 5 * SECOND;
    sim.run_until(now);
    assert_eq!(sim.term(0), Some(term));
    assert_eq!(sim.terms_elected(), 1);
    let highest = (0..3).map(|slot| sim.ballot(slot).unwrap().highest_round).max();
    assert_eq!(highest, Some(term.round()));
}

#[test]
fn two_voters_work_and_then_one_does() {
    let mut memory = Memory::new(4);
    let mut sim = Sim::new(&mut memory, 2, 13);
    sim.start(0);
    sim.start(1);
    let first = sim.run_until_led();
    sim.crash(first);
    assert_eq!(sim.run_until_led(), 1 - first);
    sim.crash(1 - first);
    sim.start(first);
    assert_eq!(sim.run_until_led(), first);
}

#[test]
fn a_leader_that_hears_fewer_mounts_hands_over_and_a_tie_changes_nothing() {
    let mut memory = Memory::new(2);
    let mut sim = Sim::new(&mut memory, 2, 14);
    sim.reach(0, 2);
    sim.reach(1, 2);
    sim.start(0);
    sim.run_until_led();
    sim.start(1);
    let now = sim.now + 10 * SECOND;
    sim.run_until(now);
    assert_eq!(sim.leader(), Some(0));
    assert_eq!(sim.terms_elected(), 1);
    // A mount that lost the leader knocks at the other voter, and soon is back.
    sim.reach(1, 3);
    let now = sim.now + SECOND;
    sim.run_until(now);
    sim.reach(1, 2);
    let now = sim.now + 5 * SECOND;
    sim.run_until(now);
    assert_eq!(sim.terms_elected(), 1);
    // It stays.
    sim.reach(1, 3);
    let term = sim.term(0).unwrap();
    let now = sim.now + 8 * SECOND;
    sim.run_until(now);
    assert!(sim.has_noticed(0, Notice::Deposed(term, Loss::Outnumbered(Slot::ALL[1]))));
    assert_eq!(sim.leader(), Some(1));
    let now = sim.now + 10 * SECOND;
    sim.run_until(now);
    assert_eq!(sim.terms_elected(), 2, "and there it stays");
}

#[test]
fn nobody_is_elected_while_a_configured_block_is_damaged_and_its_voter_heals_it() {
    // Zeros are damage like any other: a blank block has a checksum.
    for byte in [0xa5, 0] {
        nobody_is_elected_while_a_configured_block_is(&Block([byte; 4096]));
    }
}

fn nobody_is_elected_while_a_configured_block_is(damaged: &Block) {
    let mut memory = Memory::new(4);
    let mut sim = Sim::new(&mut memory, 2, 15);
    sim.blocks[1] = damaged.clone();
    // Slots that are not configured may hold what they like.
    sim.blocks[5] = Block([0xa5; 4096]);
    sim.start(0);
    let now = sim.now + 20 * SECOND;
    sim.run_until(now);
    assert_eq!(sim.terms_elected(), 0);
    let voter = sim.nodes[0].voter.as_ref().unwrap();
    assert_eq!(voter.trouble(), Some(Trouble::Blind(Slot::ALL[1])));
    // Its own voter can't tell who used it last, and asks for the operator's word.
    sim.start(1);
    let now = sim.now + 3 * SECOND;
    sim.run_until(now);
    assert_eq!(role(&sim, 1), Role::Refused(Refusal::Damaged));
    sim.crash(1);
    sim.start_in(1, Slot::ALL[1], Vouched::Anyone);
    // The block may have spoken of any lease.
    let now = sim.now + 80 * SECOND;
    sim.run_until(now);
    sim.run_until_led();
    assert!(parse(&sim.blocks[1], &VOLUME, BASE, Slot::ALL[1]).is_ok());
    // Who has looked in vain for long looks less often.
    let now = sim.now + 5 * SECOND;
    sim.run_until(now);
    assert_eq!(sim.nodes[0].voter.as_ref().unwrap().trouble(), None);
}

#[test]
fn a_leader_that_finds_a_later_root_stands_again_in_a_later_round() {
    let mut memory = Memory::new(1);
    let mut sim = Sim::new(&mut memory, 1, 17);
    // The quorum area was made anew, the ring of roots was not.
    sim.plant_root(Term::new(50, 0));
    sim.start(0);
    sim.run_until_led();
    assert_eq!(sim.term(0), Some(Term::new(51, 0)));
    let first = Term::new(1, 0);
    assert!(sim.has_noticed(0, Notice::Deposed(first, Loss::Outranked(Term::new(50, 0)))));
}

#[test]
fn a_newer_configuration_ends_the_term_of_a_leader_that_goes_by_an_older_one() {
    let mut memory = Memory::new(1);
    let mut sim = Sim::new(&mut memory, 1, 18);
    sim.start(0);
    sim.run_until_led();
    let term = sim.term(0).unwrap();
    let newer = Ballot {
        slot: Slot::ALL[4],
        state: State::Idle,
        term: Term::NONE,
        held: Term::NONE,
        config_gen: 2,
        endpoint: None,
        ..sim.ballot(0).unwrap()
    };
    newer.emit(&mut sim.blocks[4], &VOLUME, BASE);
    let now = sim.now + 3 * SECOND;
    sim.run_until(now);
    let refusal = Refusal::OutdatedConfig(2);
    assert!(sim.has_noticed(0, Notice::Deposed(term, Loss::Refused(refusal))));
    assert_eq!(role(&sim, 0), Role::Refused(refusal));
    let left = sim.ballot(0).unwrap();
    let now = sim.now + 3 * SECOND;
    sim.run_until(now);
    assert_eq!(sim.ballot(0), Some(left), "it writes nothing more");
}

#[test]
fn a_voter_stopped_while_it_watches_has_written_nothing() {
    let mut memory = Memory::new(1);
    let mut sim = Sim::new(&mut memory, 1, 20);
    sim.start(0);
    let now = sim.now + 500 * MS;
    sim.run_until(now);
    sim.stop(0);
    let now = sim.now + 5 * SECOND;
    sim.run_until(now);
    assert!(sim.has_noticed(0, Notice::Stopped(Ok(()))));
    assert_eq!(sim.ballot(0), None);
}

#[test]
fn an_idle_cluster_costs_what_it_says() {
    let mut memory = Memory::new(3);
    let mut sim = Sim::new(&mut memory, 3, 16);
    sim.commit_every_ms = 1_000_000;
    sim.start(0);
    sim.run_until_led();
    sim.start(1);
    sim.start(2);
    let now = sim.now + 5 * SECOND;
    sim.run_until(now);
    let before: std::vec::Vec<u64> = sim.nodes.iter().map(|node| node.requests).collect();
    let now = sim.now + 100 * SECOND;
    sim.run_until(now);
    for (node, before) in before.iter().enumerate() {
        let spent = (sim.nodes[node].requests - before) as f64 / 100.0;
        let most = sim.timing.idle_requests_per_second(node == 0);
        std::println!("voter {node}: {spent} requests per second, at most {most}");
        assert!(most < 20 && spent <= f64::from(most) * 1.06);
    }
}

/// A leader that is killed has said which commits were confirmed, and others have read it: who then
/// finds older roots only doesn't lead.
#[test]
fn what_was_confirmed_outlives_the_leader_and_who_finds_an_older_root_is_refused() {
    let (first, earlier) = (Term::new(1, 0), Term::NONE);
    for (newest, lost) in [
        ((first, CommitNo(6)), true),
        ((first, CommitNo(7)), false),
        ((first, CommitNo(8)), false),
        // Of a leader that was deposed before.
        ((earlier, CommitNo(7)), true),
        ((earlier, CommitNo(8)), true),
    ] {
        let mut memory = Memory::new(2);
        let mut sim = Sim::new(&mut memory, 2, 19);
        sim.start(0);
        sim.run_until_led();
        sim.start(1);
        let now = sim.now + 3 * SECOND;
        sim.run_until(now);
        sim.nodes[0].voter.as_mut().unwrap().commit_confirmed(CommitNo(7));
        let now = sim.now + 2 * SECOND;
        sim.run_until(now);
        assert_eq!(sim.term(0), Some(first));
        assert_eq!(sim.ballot(0).unwrap().confirmed, (first, CommitNo(7)));
        assert_eq!(sim.ballot(1).unwrap().confirmed, (first, CommitNo(7)));
        // Its own block is lost too.
        sim.crash(0);
        let last = sim.ballot(0).unwrap();
        let confirmed = (Term::NONE, CommitNo(0));
        let stopped = Ballot { state: State::Stopped, confirmed, endpoint: None, ..last };
        stopped.emit(&mut sim.blocks[0], &VOLUME, BASE);
        assert_eq!(sim.run_until_led(), 1);
        let now = sim.nodes[1].local(sim.now);
        assert_eq!(sim.nodes[1].voter.as_mut().unwrap().has_lost(now, newest), lost);
        let now = sim.now + 5 * SECOND;
        sim.run_until(now);
        let refused = Refusal::RootLost { confirmed: (first, CommitNo(7)), newest };
        assert_eq!(role(&sim, 1) == Role::Refused(refused), lost, "{:?}", role(&sim, 1));
    }
}

/// Two voters of which the first has led and confirmed this commit, was stopped in good order at
/// once, and is followed by the second.
fn followed_after(sim: &mut Sim<'_>, commit: CommitNo) {
    sim.start(0);
    sim.run_until_led();
    sim.start(1);
    let now = sim.now + 3 * SECOND;
    sim.run_until(now);
    sim.nodes[0].voter.as_mut().unwrap().commit_confirmed(commit);
    sim.stop(0);
    assert_eq!(sim.run_until_led(), 1);
    assert_eq!(sim.ballot(0).unwrap().confirmed, (FIRST, commit));
}

/// The term of a first leader in slot 0.
const FIRST: Term = Term::new(1, 0);

/// Whether this is lost for who finds this commit of that leader.
fn has_lost(sim: &mut Sim<'_>, node: usize, newest: CommitNo) -> bool {
    let now = sim.nodes[node].local(sim.now);
    let newest = (FIRST, newest);
    sim.nodes[node].voter.as_mut().unwrap().has_lost(now, newest)
}

/// What a voter's block in the slot of this number says, whose voter has long stopped.
fn stopped(sim: &mut Sim<'_>, slot: u8, confirmed: (Term, CommitNo)) {
    let blkno = usize::from(slot);
    let said = sim.ballot(1).unwrap();
    let slot = Slot::new(slot).unwrap();
    let (term, held, state) = (Term::NONE, Term::NONE, State::Stopped);
    let said = Ballot { slot, term, held, state, confirmed, endpoint: None, ..said };
    said.emit(&mut sim.blocks[blkno], &VOLUME, BASE);
}

#[test]
fn a_leader_stopped_in_good_order_leaves_nothing_that_could_be_lost_unnoticed() {
    let mut memory = Memory::new(2);
    let mut sim = Sim::new(&mut memory, 2, 23);
    followed_after(&mut sim, CommitNo(7));
    assert!(!has_lost(&mut sim, 1, CommitNo(7)));
    assert!(has_lost(&mut sim, 1, CommitNo(6)));
}

/// With the mistake it would undo what was answered.
#[test]
fn a_leader_that_ignores_a_lost_root_would_go_on_from_the_one_before() {
    let mut memory = Memory::new(2);
    let mut sim = Sim::new(&mut memory, 2, 23);
    followed_after(&mut sim, CommitNo(7));
    activate(Some(Mutant::LostRootIgnored));
    let goes_on = !has_lost(&mut sim, 1, CommitNo(6));
    activate(None);
    assert!(goes_on);
    assert!(has_lost(&mut sim, 1, CommitNo(6)));
}

/// A leader whose claim was still to be seen confirms and says so late: its root was written after
/// the reading that its successor goes by.
#[test]
fn what_is_confirmed_during_a_term_is_carried_on_and_is_not_missed_in_it() {
    let mut memory = Memory::new(2);
    let mut sim = Sim::new(&mut memory, 2, 23);
    followed_after(&mut sim, CommitNo(7));
    let late = Ballot { confirmed: (FIRST, CommitNo(9)), ..sim.ballot(0).unwrap() };
    let late = Ballot { seq: late.seq + 1, ..late };
    late.emit(&mut sim.blocks[0], &VOLUME, BASE);
    let now = sim.now + 3 * SECOND;
    sim.run_until(now);
    assert_eq!(sim.ballot(1).unwrap().confirmed, (FIRST, CommitNo(9)));
    assert!(!has_lost(&mut sim, 1, CommitNo(7)));
}

/// Slots may be taken out of the configuration, and what was confirmed by then stays so. A block
/// may say what it likes: it is only compared.
#[test]
fn a_slot_that_is_not_configured_says_what_was_confirmed_too() {
    for (confirmed, lost) in [(5, false), (6, false), (7, true), (u64::MAX, true)] {
        let mut memory = Memory::new(2);
        let mut sim = Sim::new(&mut memory, 2, 23);
        sim.start(1);
        sim.run_until_led();
        stopped(&mut sim, 5, (FIRST, CommitNo(confirmed)));
        sim.start(0);
        let now = sim.now + 3 * SECOND;
        sim.run_until(now);
        sim.stop(1);
        assert_eq!(sim.run_until_led(), 0);
        assert_eq!(has_lost(&mut sim, 0, CommitNo(6)), lost, "{confirmed}");
    }
}

fn root_lost(confirmed: u64, newest: u64) -> Refusal {
    Refusal::RootLost { confirmed: (FIRST, CommitNo(confirmed)), newest: (FIRST, CommitNo(newest)) }
}

/// Who is elected and finds the root lost has done nothing that could be under way. Its block says
/// so, and anybody may follow it in its slot without proof.
#[test]
fn who_finds_the_newest_root_lost_lets_go_of_its_slot_in_good_order() {
    let mut memory = Memory::new(3);
    let mut sim = Sim::new(&mut memory, 2, 23);
    followed_after(&mut sim, CommitNo(7));
    let term = sim.term(1).unwrap();
    assert!(has_lost(&mut sim, 1, CommitNo(6)));
    let now = sim.now + 5 * SECOND;
    sim.run_until(now);
    assert_eq!(role(&sim, 1), Role::Refused(root_lost(7, 6)));
    assert!(sim.has_noticed(1, Notice::Refused(root_lost(7, 6))));
    assert!(!sim.has_noticed(1, Notice::Stopped(Ok(()))));
    let left = sim.ballot(1).unwrap();
    assert_eq!((left.state, left.term, left.held), (State::Stopped, term, term));
    assert_eq!(left.confirmed, (FIRST, CommitNo(7)));
    sim.crash(0);
    sim.crash(1);
    sim.start_in(0, Slot::ALL[1], Vouched::Nothing);
    assert_eq!(sim.run_until_led(), 0);
    assert!(has_lost(&mut sim, 0, CommitNo(6)));
}

/// Killed before that is durable, it is like any leader that was killed: its own host may start it
/// again, another needs proof.
#[test]
fn who_is_killed_while_it_lets_go_counts_as_killed() {
    let mut memory = Memory::new(4);
    let mut sim = Sim::new(&mut memory, 2, 23);
    followed_after(&mut sim, CommitNo(7));
    assert!(has_lost(&mut sim, 1, CommitNo(6)));
    sim.crash(1);
    assert!(state(&sim, 1).is_active());
    sim.crash(0);
    sim.start_in(0, Slot::ALL[1], Vouched::Nothing);
    let now = sim.now + 5 * SECOND;
    sim.run_until(now);
    assert!(matches!(role(&sim, 0), Role::Refused(Refusal::Unproven { .. })));
    sim.start(1);
    assert_eq!(sim.run_until_led(), 1);
    assert!(has_lost(&mut sim, 1, CommitNo(6)));
    let now = sim.now + 5 * SECOND;
    sim.run_until(now);
    assert_eq!(state(&sim, 1), State::Stopped);
}

/// The device fails just then: it ends all the same, and the block shows what it did.
#[test]
fn who_cannot_say_that_it_lets_go_is_refused_all_the_same() {
    let mut memory = Memory::new(2);
    let mut sim = Sim::new(&mut memory, 2, 23);
    sim.commit_every_ms = 1_000_000;
    followed_after(&mut sim, CommitNo(7));
    let now = sim.now + SECOND;
    sim.run_until(now);
    assert!(has_lost(&mut sim, 1, CommitNo(6)));
    sim.fail_io(1, 5 * SECOND, 1);
    let now = sim.now + 5 * SECOND;
    sim.run_until(now);
    assert_eq!(role(&sim, 1), Role::Refused(root_lost(7, 6)));
    assert!(state(&sim, 1).is_active());
}

/// However often somebody starts it again: each time it takes one round, a few requests, and ends.
#[test]
fn who_is_refused_for_more_rounds_than_the_ring_has_ends_each_time_and_does_nothing_more() {
    let mut memory = Memory::new(50);
    let mut sim = Sim::new(&mut memory, 2, 23);
    sim.exclusion = Exclusion::Volume;
    followed_after(&mut sim, CommitNo(7));
    let mut before = sim.term(1).unwrap().round() - 1;
    for _ in 0..40 {
        assert!(has_lost(&mut sim, 1, CommitNo(6)));
        let now = sim.now + 2 * SECOND;
        sim.run_until(now);
        assert_eq!(role(&sim, 1), Role::Refused(root_lost(7, 6)));
        let left = sim.ballot(1).unwrap();
        assert_eq!((left.state, left.held.round()), (State::Stopped, before + 1));
        assert_eq!(left.highest_round, before + 1);
        before = left.highest_round;
        let requests = sim.nodes[1].requests;
        let now = sim.now + 10 * SECOND;
        sim.run_until(now);
        assert_eq!(sim.nodes[1].requests, requests);
        sim.crash(1);
        sim.start(1);
        assert_eq!(sim.run_until_led(), 1);
        assert!(sim.nodes[1].requests - requests < 200);
    }
    assert!(sim.violations.is_empty(), "{:?}", sim.violations);
}

/// No round is left, as far as a forged block says: who can't claim any more lets go too.
#[test]
fn who_finds_no_round_left_lets_go_of_its_slot_in_good_order() {
    let mut memory = Memory::new(2);
    let mut sim = Sim::new(&mut memory, 1, 23);
    sim.start(0);
    sim.run_until_led();
    sim.stop(0);
    let now = sim.now + SECOND;
    sim.run_until(now);
    let forged = Ballot { highest_round: ROUND_MAX, ..sim.ballot(0).unwrap() };
    sim.crash(0);
    forged.emit(&mut sim.blocks[0], &VOLUME, BASE);
    sim.start(0);
    let now = sim.now + 5 * SECOND;
    sim.run_until(now);
    assert_eq!(role(&sim, 0), Role::Refused(Refusal::RoundsExhausted));
    let left = sim.ballot(0).unwrap();
    assert_eq!((left.state, left.highest_round), (State::Stopped, ROUND_MAX));
    assert!(left.seq > forged.seq);
}

/// A leader is stopped with its first root in flight, and its successor commits the same number,
/// answers it and is stopped in good order. The first one's root lands, nobody having been told of
/// it, and the successor's rots: what is left has the number that was confirmed, and isn't it.
#[test]
fn a_deposed_leaders_root_of_the_same_number_hides_no_loss() {
    let mut memory = Memory::new(2);
    let mut sim = Sim::new(&mut memory, 2, 24);
    (sim.confirms, sim.commit_every_ms) = (true, 1_000_000);
    sim.start(0);
    let end = sim.now + 10 * SECOND;
    assert!(!sim.run_while(end, |sim| sim.term(0).is_none()));
    let deposed = sim.term(0).unwrap();
    sim.ambush(0, Prey::Root, 60 * SECOND, false, true);
    let now = sim.now + SECOND;
    sim.run_until(now);
    sim.start(1);
    assert_eq!(sim.run_until_led(), 1);
    let lost = sim.term(1).unwrap();
    let now = sim.now + 70 * SECOND;
    sim.run_until(now);
    assert_eq!((sim.answers_of(deposed), sim.answers_of(lost)), (0, 1));
    assert!(sim.violations.is_empty(), "{:?}", sim.violations);
    sim.stop(1);
    sim.lose_roots(lost);
    let end = sim.now + 10 * SECOND;
    sim.run_while(end, |sim| !matches!(role(sim, 0), Role::Refused(_)));
    let (confirmed, newest) = ((lost, CommitNo(1)), (deposed, CommitNo(1)));
    assert_eq!(role(&sim, 0), Role::Refused(Refusal::RootLost { confirmed, newest }));
}

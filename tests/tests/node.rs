//! Machines: lives, pauses, clocks, memory.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{finish, pull, puppet, puppets, wait};
use outrider_hal::BlockNo;
use outrider_tests::faults::Fault;
use outrider_tests::puppet::Seen;
use outrider_tests::time::{MILLI, MINUTE, SECOND};
use outrider_tests::trace::HostId;

#[test]
fn each_life_starts_from_nothing_in_the_same_memory() {
    let late = [Fault::DiskLateWrite, Fault::NetHalfOpen, Fault::DiskTorn];
    let mut world = puppets(0, 2, &late, 1);
    for life in 1..500 {
        assert_eq!(world.boots(HostId(0)), life);
        assert!(puppet(&world, 0).seen.is_empty());
        pull(&mut world, 0, |puppet| (0..32).for_each(|tag| puppet.write(tag, tag, 7)));
        pull(&mut world, 0, |puppet| puppet.flush(99));
        // Some requests are at the disk, some finished and not yet heard of, some held back.
        world.run_until(MILLI / 2, |_| false).unwrap();
        world.crash(HostId(0));
        assert!(world.guest::<outrider_tests::puppet::Puppet>(HostId(0)).is_none());
        world.boot(HostId(0));
    }
}

#[test]
fn a_paused_node_is_told_nothing_and_hears_it_all_afterwards() {
    let mut world = puppets(0, 1, &[], 1);
    pull(&mut world, 0, |puppet| puppet.write(1, 3, 1));
    wait(&mut world, |world| world.disk().in_flight() == 1);
    world.pause(HostId(0), MINUTE);
    let before = world.clock(HostId(0));
    world.run_until(MINUTE - SECOND, |_| false).unwrap();
    assert!(puppet(&world, 0).seen.is_empty());
    assert_eq!(world.disk().content(BlockNo(3)).0[0], 1, "the disk has gone on");
    assert!(finish(&mut world, 0, 1));
    let (heard_at, _) = puppet(&world, 0).seen[0];
    assert!(heard_at.since(before) >= MINUTE, "its clock has gone on");
}

#[test]
fn a_clock_may_stand_still_while_its_node_does() {
    let mut world = puppets(0, 1, &[Fault::NodeClockFrozen], 1000);
    let before = world.clock(HostId(0));
    world.pause(HostId(0), MINUTE);
    world.run_until(MINUTE, |_| false).unwrap();
    assert_eq!(world.clock(HostId(0)), before);
    world.run_until(SECOND, |_| false).unwrap();
    assert_eq!(world.clock(HostId(0)).since(before), SECOND);
}

#[test]
fn what_was_decided_before_a_pause_is_done_after_it() {
    let mut caught = 0;
    for seed in 0..60 {
        // Half of all actions meet a pause.
        let mut world = puppets(seed, 1, &[Fault::NodePauseAtEffect], 1000);
        if !world.is_running(HostId(0)) {
            continue;
        }
        pull(&mut world, 0, |puppet| puppet.write(1, 3, 1));
        world.run_until(MILLI / 10, |_| false).unwrap();
        if world.is_running(HostId(0)) {
            continue;
        }
        caught += 1;
        assert_eq!(world.disk().in_flight(), 0, "not yet submitted");
        assert_eq!(world.disk().content(BlockNo(3)).0[0], 0);
        let paused_at = world.clock(HostId(0));
        assert!(finish(&mut world, 0, 1));
        let (heard_at, _) = puppet(&world, 0).seen[0];
        assert!(heard_at > paused_at);
    }
    assert!(caught > 10, "{caught}");
}

#[test]
fn a_crash_may_come_between_any_two_actions() {
    let mut written = std::collections::BTreeSet::new();
    for seed in 0..300 {
        let mut world = puppets(seed, 1, &[Fault::NodeCrashAtEffect], 1000);
        if !world.is_running(HostId(0)) {
            continue;
        }
        pull(&mut world, 0, |puppet| (0..4).for_each(|tag| puppet.write(tag, tag, 1)));
        world.run_until(MILLI / 10, |_| false).unwrap();
        let boots = world.boots(HostId(0));
        if boots > 1 || !world.is_running(HostId(0)) {
            let submitted = |blkno: &u64| world.disk().content(BlockNo(*blkno)).0[0] != 0;
            written.insert((0..4).filter(submitted).count());
            assert!(world.coverage().count(Fault::NodeCrashAtEffect) > 0);
        }
    }
    assert!(written.len() > 2, "crashes came after {written:?} writes");
}

#[test]
fn timers_go_off_on_the_clock_of_the_node() {
    for seed in 0..30 {
        let mut world = puppets(seed, 1, &[Fault::NodeClockDrift], 1000);
        let start = world.now();
        let deadline = world.clock(HostId(0)).plus(1000 * SECOND);
        pull(&mut world, 0, |puppet| puppet.set_timer(deadline));
        wait(&mut world, |world| puppet(world, 0).has_seen(Seen::Timer));
        let (at, _) = puppet(&world, 0).seen[0];
        assert!(at >= deadline && at.since(deadline) < MILLI);
        let took = world.now().since(start);
        assert!(
            took >= 998 * SECOND && took <= 1002 * SECOND,
            "a thousandth off at most: {took:?}"
        );
    }
}

#[test]
fn a_clock_jump_makes_a_timer_due() {
    let mut world = puppets(3, 1, &[Fault::NodeClockJump], 1000);
    let deadline = world.clock(HostId(0)).plus(10 * MINUTE);
    pull(&mut world, 0, |puppet| puppet.set_timer(deadline));
    let start = world.now();
    world.run(5 * MINUTE).unwrap();
    assert!(puppet(&world, 0).has_seen(Seen::Timer));
    assert!(world.now().since(start) <= 5 * MINUTE);
    assert!(world.coverage().count(Fault::NodeClockJump) > 0);
}

//! Streams are streams: nothing lost, doubled or swapped inside one, whatever else goes wrong.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{closed, connect, dial, endpoint, pull, puppet, puppets, wait};
use outrider_core::node::Action;
use outrider_hal::StreamId;
use outrider_tests::faults::{Coverage, Fault};
use outrider_tests::puppet::Seen;
use outrider_tests::rng::Rng;
use outrider_tests::time::{MINUTE, SECOND};
use outrider_tests::trace::HostId;

const UNRELIABLE: &[Fault] = &[
    Fault::NetDrop,
    Fault::NetDelay,
    Fault::NetStall,
    Fault::NetPartialSend,
    Fault::NetPartialRecv,
    Fault::NetHalfOpen,
    Fault::NetOneWay,
    Fault::NetPartition,
];

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Rng::new(seed).fill(&mut bytes);
    bytes
}

#[test]
fn everything_arrives_once_and_in_order() {
    let mut coverage = Coverage::new();
    for seed in 0..60 {
        // Without partitions, which may end a connection.
        let mut world = puppets(seed, 2, &UNRELIABLE[..5], 4);
        let (here, there) = connect(&mut world, 0, 1);
        let (out, back) = (noise(seed, 5000), noise(seed + 1, 3000));
        pull(&mut world, 0, |puppet| puppet.say(here, &out));
        pull(&mut world, 1, |puppet| puppet.say(there, &back));
        wait(&mut world, |world| {
            let (got_out, got_back) = (puppet(world, 1).heard(there), puppet(world, 0).heard(here));
            assert!(out.starts_with(got_out) && back.starts_with(got_back));
            got_out.len() == out.len() && got_back.len() == back.len()
        });
        coverage.add(world.coverage());
    }
    for fault in &UNRELIABLE[..5] {
        assert!(coverage.count(*fault) > 0, "{fault:?}");
    }
}

#[test]
fn a_cut_leaves_a_prefix_of_any_length() {
    let mut lens = std::collections::BTreeSet::new();
    let (mut resets, mut half_open) = (0, 0);
    for seed in 0..200 {
        let faults = [UNRELIABLE, &[Fault::NetReset]].concat();
        let mut world = puppets(seed, 2, &faults, 10);
        let (here, there) = connect(&mut world, 0, 1);
        let out = noise(seed, 4000);
        pull(&mut world, 0, |puppet| puppet.say(here, &out));
        world.run(5 * SECOND).unwrap();
        world.crash(HostId(0));
        world.run_until(5 * MINUTE, |world| closed(world, 1, there)).unwrap();
        let got = puppet(&world, 1).heard(there).to_vec();
        assert!(out.starts_with(&got));
        lens.insert(got.len());
        resets += world.coverage().count(Fault::NetReset);
        half_open += world.coverage().count(Fault::NetHalfOpen);
    }
    assert!(resets > 20 && half_open > 20, "{resets} resets, {half_open} half open");
    assert!(lens.len() > 20, "only these lengths: {lens:?}");
}

#[test]
fn the_last_words_before_a_close_arrive() {
    let mut world = puppets(5, 2, &[Fault::NetDelay, Fault::NetPartialRecv], 10);
    let (here, there) = connect(&mut world, 0, 1);
    let out = noise(1, 50);
    pull(&mut world, 0, |puppet| puppet.say(here, &out));
    wait(&mut world, |world| puppet(world, 0).unsent(here) == 0);
    pull(&mut world, 0, |puppet| puppet.act(Action::Close(here)));
    wait(&mut world, |world| closed(world, 1, there));
    assert_eq!(puppet(&world, 1).heard(there), out);
    assert!(!closed(&world, 0, here), "who closes hears nothing of it");
}

#[test]
fn a_close_may_cut_the_last_words_at_any_byte() {
    let mut lens = std::collections::BTreeSet::new();
    for seed in 0..60 {
        // The bytes travel in one piece: they fit the smallest window.
        let mut world = puppets(seed, 2, &[Fault::NetReset], 1000);
        let (here, there) = connect(&mut world, 0, 1);
        let out = noise(seed, 60);
        pull(&mut world, 0, |puppet| puppet.say(here, &out));
        wait(&mut world, |world| puppet(world, 0).unsent(here) == 0);
        pull(&mut world, 0, |puppet| puppet.act(Action::Close(here)));
        wait(&mut world, |world| closed(world, 1, there));
        assert!(out.starts_with(puppet(&world, 1).heard(there)));
        lens.insert(puppet(&world, 1).heard(there).len());
    }
    assert!(lens.len() > 10, "only these lengths: {lens:?}");
}

#[test]
fn a_reader_that_does_not_read_stops_its_writer() {
    for seed in 0..10 {
        let mut world = puppets(seed, 2, &[], 1);
        let (here, there) = connect(&mut world, 0, 1);
        let out = noise(seed, 1 << 18);
        pull(&mut world, 1, |puppet| puppet.turn_deaf(there, true));
        pull(&mut world, 0, |puppet| puppet.say(here, &out));
        world.run_until(MINUTE, |_| false).unwrap();
        let unsent = puppet(&world, 0).unsent(here);
        assert!(unsent >= (1 << 18) - (1 << 17), "a window of {} bytes", (1 << 18) - unsent);
        assert!(puppet(&world, 1).heard(there).is_empty());
        pull(&mut world, 1, |puppet| puppet.turn_deaf(there, false));
        wait(&mut world, |world| puppet(world, 1).heard(there).len() == out.len());
        assert_eq!(puppet(&world, 1).heard(there), out);
    }
}

#[test]
fn nobody_there_and_nobody_listening_are_told_apart() {
    let mut world = puppets(0, 3, &[], 1);
    pull(&mut world, 1, |puppet| puppet.act(Action::Unlisten));
    world.run_until(SECOND, |_| false).unwrap();
    let start = world.now();
    dial(&mut world, 0, 1);
    wait(&mut world, |world| puppet(world, 0).has_seen(Seen::ConnectFailed(1)));
    assert!(world.now().since(start) < SECOND, "refused at once");
    world.crash(HostId(2));
    let (start, to) = (world.now(), endpoint(2));
    pull(&mut world, 0, |puppet| puppet.act(Action::Connect { attempt: 2, to }));
    wait(&mut world, |world| puppet(world, 0).has_seen(Seen::ConnectFailed(2)));
    assert!(world.now().since(start) > SECOND, "only time tells");
}

#[test]
fn a_half_open_peer_is_found_by_sending() {
    let mut world = puppets(0, 2, &[Fault::NetHalfOpen], 1000);
    let (here, _) = connect(&mut world, 0, 1);
    world.crash(HostId(1));
    world.boot(HostId(1));
    world.run_until(10 * MINUTE, |_| false).unwrap();
    assert!(!closed(&world, 0, here), "nobody has told it");
    pull(&mut world, 0, |puppet| puppet.say(here, b"anybody there?"));
    wait(&mut world, |world| closed(world, 0, here));
    assert!(puppet(&world, 1).seen.is_empty(), "the new life never had that stream");
}

#[test]
fn a_one_way_cut_lets_the_other_way_through() {
    let mut world = puppets(0, 2, &[], 1);
    let (here, there) = connect(&mut world, 0, 1);
    world.block(HostId(0), HostId(1), 8 * SECOND);
    let start = world.now();
    pull(&mut world, 0, |puppet| puppet.say(here, b"ping"));
    pull(&mut world, 1, |puppet| puppet.say(there, b"pong"));
    wait(&mut world, |world| puppet(world, 0).heard(here) == b"pong");
    assert!(world.now().since(start) < SECOND);
    wait(&mut world, |world| puppet(world, 1).heard(there) == b"ping");
    assert!(world.now().since(start) >= 8 * SECOND);
}

#[test]
fn a_long_cut_is_given_up_by_who_has_something_to_say() {
    let mut given_up = 0;
    for seed in 0..10 {
        let mut world = puppets(seed, 2, &[], 1);
        let (here, there) = connect(&mut world, 0, 1);
        world.block(HostId(0), HostId(1), 10 * MINUTE);
        pull(&mut world, 0, |puppet| puppet.say(here, b"ping"));
        world.run_until(9 * MINUTE, |_| false).unwrap();
        given_up += u32::from(closed(&world, 0, here));
        assert!(!closed(&world, 1, there), "that can't have come through");
    }
    assert!(given_up > 5);
}

#[test]
fn a_stream_ends_once_and_ids_are_never_used_again() {
    for seed in 0..60 {
        let faults = [UNRELIABLE, &[Fault::NetReset, Fault::NetGhost, Fault::NetRefuse]].concat();
        let mut world = puppets(seed, 2, &faults, 20);
        for _ in 0..20 {
            dial(&mut world, 0, 1);
            world.run(2 * SECOND).unwrap();
        }
        let mut begun = std::collections::BTreeSet::<StreamId>::new();
        for host in 0..2 {
            let mut open = std::collections::BTreeSet::new();
            for (_, seen) in &puppet(&world, host).seen {
                match seen {
                    Seen::Accepted(stream) | Seen::Connected(_, stream) => {
                        assert!(begun.insert(*stream) && open.insert(*stream));
                    }
                    Seen::Closed(stream) => assert!(open.remove(stream)),
                    _ => {}
                }
            }
        }
    }
}

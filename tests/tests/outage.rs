//! How long users wait when a leader ends, in virtual time.
#![allow(clippy::unwrap_used, reason = "tests")]

use outrider_tests::scenario::outage::{End, Took, run};
use std::time::Duration;

const SEEDS: u64 = 8;

/// What many leaders' ends have taken, one line for each step of the way.
fn tell(end: End) -> Vec<Took> {
    let all: Vec<Took> = (0..SEEDS).map(|seed| run(seed, end).unwrap()).collect();
    let row = |what: &str, of: fn(&Took) -> Duration| {
        let mut times: Vec<u128> = all.iter().map(|took| of(took).as_millis()).collect();
        times.sort_unstable();
        let (middle, most) = (times[times.len() / 2], times[times.len() - 1]);
        println!("{end:?}: {what:<9} {:>5} {middle:>5} {most:>5} ms", times[0]);
    };
    row("let go", |took| took.let_go);
    row("elected", |took| took.elected);
    row("serving", |took| took.serving);
    row("first", |took| took.first);
    row("welcomed", |took| took.welcomed);
    row("waited", |took| took.waited);
    let reads = all.iter().map(|took| took.reads).max();
    println!("{end:?}: reads at most {}", reads.unwrap_or(0));
    all
}

#[track_caller]
fn assert_all(took: &[Took], bound: Duration) {
    let late = took.iter().find(|took| took.waited >= bound);
    assert!(late.is_none(), "{late:?}");
}

#[test]
fn users_wait_briefly_for_the_successor_of_a_leader_that_is_stopped() {
    assert_all(&tell(End::Stopped), Duration::from_millis(100));
}

#[test]
fn users_wait_for_the_lease_of_a_leader_that_is_killed() {
    assert_all(&tell(End::Killed), Duration::from_millis(2000));
}

#[test]
fn a_host_that_dies_is_noticed_soon() {
    assert_all(&tell(End::HostDies), Duration::from_millis(2500));
}

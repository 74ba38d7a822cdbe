//! Servers and mounts in a storm: a few seeds, one of them run twice.
#![allow(clippy::unwrap_used, reason = "tests")]

use outrider_tests::scenario::storm::SCENARIO;
use std::collections::BTreeMap;

#[test]
fn leaders_come_and_go_and_nothing_of_those_that_wake_does_any_harm() {
    let mut work: BTreeMap<&str, u64> = BTreeMap::new();
    let again = SCENARIO.run(&mut (SCENARIO.world)(0));
    for seed in 0..6 {
        let report = SCENARIO.run(&mut (SCENARIO.world)(seed));
        assert_eq!(report.violation, None, "seed {seed}");
        assert!(seed > 0 || report.hash == again.hash, "two runs of a seed differ");
        for (what, count) in report.work {
            *work.entry(what).or_default() += count;
        }
    }
    println!("{work:?}");
    for (what, least) in [
        ("failovers", 60),
        ("wake-ups late, and it landed", 30),
        ("commits confirmed", 500),
        ("evictions begun", 30),
        ("evicted clients proven gone", 20),
        ("fences succeeded", 30),
        ("fences failed", 5),
    ] {
        assert!(work[what] >= least, "too little was done to prove anything: {what}");
    }
}

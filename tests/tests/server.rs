//! The metadata server among faults: a few seeds, each run twice.

use outrider_tests::scenario::server::SCENARIO;
use std::collections::BTreeMap;

#[test]
fn every_commit_passes_the_census_and_every_mount_gets_home() {
    let mut work: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in 0..12 {
        let report = SCENARIO.run(&mut (SCENARIO.world)(seed));
        assert_eq!(report.violation, None, "seed {seed}");
        let again = SCENARIO.run(&mut (SCENARIO.world)(seed));
        assert_eq!(report.hash, again.hash, "seed {seed}");
        for (what, count) in report.work {
            *work.entry(what).or_default() += count;
        }
    }
    println!("{work:?}");
    for (what, least) in [
        ("commits confirmed", 1000),
        ("terms served", 40),
        ("transactions answered", 800),
        ("farewells answered", 70),
        ("requests dropped", 5),
        ("terms lost", 5),
        ("evictions begun", 10),
        ("locks granted", 1000),
        ("locks reported", 10),
        ("inodes unused", 50),
    ] {
        assert!(work[what] >= least, "too little was done to prove anything: {what}");
    }
}

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
    ] {
        assert!(work[what] >= least, "too little was done to prove anything: {what}");
    }
}

/// With `RUSTFLAGS="--cfg outrider_mutants"`: the seeds would notice if the server made one of these
/// mistakes.
#[cfg(outrider_mutants)]
#[test]
fn mistakes_of_merging_are_noticed() {
    use outrider_core::mutant::{Mutant, activate};

    for mutant in [Mutant::LevelZeroOutOfOrder, Mutant::MergeSpaceUnowned, Mutant::InputsFreedEarly]
    {
        let noticed = (0..20).find_map(|seed| {
            activate(Some(mutant));
            let report =
                std::panic::catch_unwind(|| SCENARIO.run(&mut (SCENARIO.world)(seed)).violation);
            activate(None);
            match report {
                Ok(violation) => violation.map(|violation| (seed, violation.to_string())),
                Err(_) => Some((seed, "a panic".to_owned())),
            }
        });
        let (seed, what) = noticed.unwrap_or_else(|| panic!("{mutant:?} was not noticed"));
        println!("{mutant:?}: seed {seed}: {what}");
    }
}

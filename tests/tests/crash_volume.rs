//! A mounted volume after power cuts: whatever was promised to be durable is there, all else is
//! there wholly or not at all, and the check of the volume is clean.

use outrider_tests::crash::Bounds;
use outrider_tests::crash::cuts::Cuts;
use outrider_tests::crash::workload::{Act, all};

/// Of workloads of three operations, every so manieth is tried; `cargo xtask crash` tries all.
const EVERY: usize = 9;
/// Power cuts in recoveries tear writes in these two ways.
const FEW_TEARS: Bounds = Bounds { tears: &[0x01, 0xfe], ..Bounds::USUAL };

#[test]
fn every_power_cut_in_a_workload_leaves_what_was_promised() {
    let mut cuts = Cuts::new().expect("nothing fails");
    let workloads = [all(1), all(2), all(3).into_iter().step_by(EVERY).collect()].concat();
    for acts in workloads {
        cuts.of_workload(&acts, &Bounds::USUAL).unwrap_or_else(|what| panic!("{what}"));
    }
    println!("{}", cuts.totals());
    assert!(cuts.totals().cuts.subsets > 10_000);
}

#[test]
fn every_power_cut_in_a_recovery_leaves_what_was_promised() {
    let mut cuts = Cuts::new().expect("nothing fails");
    for acts in all(1) {
        cuts.of_recoveries(&acts, &FEW_TEARS).unwrap_or_else(|what| panic!("{what}"));
    }
    println!("{}", cuts.totals());
    assert!(cuts.totals().recoveries > 20);
}

/// An append is written behind the end of the file, in its last block. A power cut leaves that, and
/// the file as it was; when it grows, zeros are found there. What a truncation has cut off stays
/// on the device until then, so that it is still there if a power cut undoes the truncation.
#[test]
fn what_is_behind_the_end_of_a_file_means_nothing() {
    let mut cuts = Cuts::new().expect("nothing fails");
    for acts in [[Act::Fsync, Act::Append], [Act::Fsync, Act::Truncate]] {
        cuts.of_workload(&acts, &Bounds::USUAL).unwrap_or_else(|what| panic!("{what}"));
    }
}

/// With `RUSTFLAGS="--cfg outrider_mutants"`: forgotten flushes are noticed.
#[cfg(outrider_mutants)]
#[test]
fn forgotten_flushes_are_noticed() {
    use outrider_core::mutant::{Mutant, activate};
    for mutant in [Mutant::RootBeforeFlush, Mutant::TransactionBeforeFlush] {
        let mut cuts = Cuts::new().expect("nothing fails");
        activate(Some(mutant));
        let found = all(2).iter().find_map(|acts| cuts.of_workload(acts, &Bounds::USUAL).err());
        activate(None);
        println!("{mutant:?} after {} workloads:", cuts.totals().workloads);
        println!("{}", found.unwrap_or_else(|| panic!("{mutant:?} is not noticed")));
    }
}

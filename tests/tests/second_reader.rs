//! Disks that clusters under faults have left, read by our own code and by the reader in Python.
#![allow(clippy::unwrap_used, reason = "tests")]

use outrider_tests::scenario::mount;
use outrider_tests::second_reader::{Agreed, agree};

#[test]
fn a_reader_of_another_hand_agrees_on_what_clusters_leave() {
    let mut agreed = Agreed::default();
    for seed in 0..6 {
        let mut world = (mount::SCENARIO.world)(seed);
        assert_eq!(mount::SCENARIO.run(&mut world).violation, None);
        let image = world.disk().image();
        let volume = mount::volume(&image).unwrap();
        agreed.add(agree(&image, &volume, mount::CLIENTS).unwrap());
    }
    println!("{agreed:?}");
    assert!(agreed.paths > 60);
}

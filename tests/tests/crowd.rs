//! A leader of many mounts that hold many locks crashes.

use outrider_tests::scenario::crowd::Crowd;
use std::time::Duration;

/// What recovery may take, in virtual time, for two hundred mounts with ten thousand locks each.
const LIMIT: Duration = Duration::from_secs(5);

#[test]
fn what_many_mounts_hold_is_recovered_quickly() {
    let took = Crowd { mounts: 200, locks: 100 }.gather(1).run().unwrap();
    println!("{took:?}");
    assert_eq!(took.granted, took.recovered);
    assert!(took.recovery < LIMIT, "{took:?}");
}

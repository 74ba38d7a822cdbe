//! Runs of level 0 that begin at one and the same key: a search that went on behind the first key
//! of each run it has met would see one of them only.

use super::*;

#[test]
fn runs_that_begin_at_one_key_are_all_read() {
    let mut story = Story::new(11, CHANGE_MAX as u32);
    let first = (0..KEYS).map(key).min().unwrap();
    for turn in 1..60 {
        let own = key(turn * 7 % KEYS);
        let value = |len| Some(std::vec![turn as u8; len]);
        // Now and then a tombstone hides the key that all of them begin with.
        let head = if turn % 5 == 0 { None } else { value(40) };
        story.record([(own, value(300)), (first, head)].into_iter().collect());
    }
    story.settle();
    story.commit();
    assert!(census(&mut story).iter().filter(|run| run.level == 0).count() == 59);
    for n in 0..KEYS {
        story.read(point(n), SMALLEST);
    }
    story.settle();
}

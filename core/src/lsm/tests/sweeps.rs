//! What sweeps do: at rest, they let go of what was deleted.

use super::*;

/// Sweeps with more and more patience until there is nothing to sweep with this one.
fn sweep_all(story: &mut Story, last: u64) {
    let mut patience = 4;
    while patience <= last {
        story.shared.sweep.set(Some(patience));
        merge_all(story);
        patience *= 2;
    }
    story.shared.sweep.set(None);
}

/// A tree of random items, merged as it grew.
fn grown(seed: u64) -> Story {
    let mut story = Story::new(seed, CHANGE_MAX as u32);
    let mut rng = Rng(!seed);
    *story.shared.chooser.borrow_mut() = Chooser::new(random_policy(&mut rng));
    story.shared.segment.set([9, 16, SEGMENT_BLOCKS][rng.below(3) as usize]);
    for _ in 0..60 + rng.below(60) {
        story.record(random_items(&mut rng, 60, 300));
        if rng.one_in(3) {
            let op = compact(story.shared.clone(), Rng(rng.next()));
            story.run(op);
        }
    }
    story.settle();
    story
}

/// Reads all keys.
fn read_all(story: &mut Story) {
    story.commit();
    for n in 0..KEYS {
        story.read(point(n), SMALLEST);
    }
    story.settle();
}

#[test]
fn a_tree_of_which_all_is_deleted_has_no_runs_in_the_end() {
    for seed in 0..20 {
        let mut story = grown(seed);
        merge_all(&mut story);
        let model = Model::clone(&story.rig.world.model);
        let keys: Vec<KeyBytes> = model.into_keys().collect();
        for some in keys.chunks(60) {
            story.record(some.iter().map(|key| (*key, None)).collect());
        }
        story.settle();
        merge_all(&mut story);
        sweep_all(&mut story, 64);
        let left = census(&mut story);
        assert!(left.is_empty(), "seed {seed}: {left:?}");
        read_all(&mut story);
    }
}

/// However little a sweep is worth, and however often one is asked for, there is a last one. Then
/// tombstones are left only where they hide something.
#[test]
fn sweeps_come_to_an_end() {
    for seed in 0..10 {
        let mut story = grown(seed);
        merge_all(&mut story);
        story.shared.sweep.set(Some(u64::MAX));
        merge_all(&mut story);
        let runs = census(&mut story);
        let tombstones = runs.iter().map(|run| run.entry.tombstones.get()).sum::<u32>();
        assert_eq!(tombstones, 0, "seed {seed}: {runs:?}");
        read_all(&mut story);
    }
}

#[test]
fn what_costs_more_than_it_lets_go_of_is_left() {
    let mut story = Story::new(3, CHANGE_MAX as u32);
    let many: Items = (0..KEYS).map(|n| (key(n), Some(std::vec![1; 400]))).collect();
    story.record(many.clone());
    story.settle();
    let policy = Policy { level_0_runs: 1, level_0_blocks: 1, ..Policy::STANDARD };
    *story.shared.chooser.borrow_mut() = Chooser::new(policy);
    merge_all(&mut story);
    // One of some hundred, and what they were made of.
    let deleted = KEYS / 50;
    let some = many.keys().step_by(50).take(deleted as usize);
    story.record(some.map(|key| (*key, None)).collect());
    story.settle();
    let before = story.shared.merges.get();
    sweep_all(&mut story, 16);
    assert_eq!(story.shared.merges.get(), before, "a tree is rewritten for {deleted} items");
    sweep_all(&mut story, 64);
    assert!(story.shared.merges.get() > before);
    assert!(census(&mut story).iter().all(|run| run.entry.tombstones == 0 && run.level > 0));
    read_all(&mut story);
}

/// A run of hardly anything costs hardly anything to be joined with another.
#[test]
fn crumbs_are_gathered() {
    let mut story = Story::new(4, CHANGE_MAX as u32);
    for n in 0..5 {
        story.record(Items::from([(key(n), Some(std::vec![1; 9]))]));
    }
    story.settle();
    sweep_all(&mut story, 4);
    assert_eq!(census(&mut story).len(), 1);
    read_all(&mut story);
}

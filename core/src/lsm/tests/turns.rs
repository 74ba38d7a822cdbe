//! Which run of a full level goes down, in manifests that name runs nobody has written.

use super::*;
use crate::format::key::Zone;

/// The run of level 1 that is always busy.
const LAST: u64 = 10;

/// A run of this number over these inodes, of a hundred blocks.
fn run(level: u8, number: u64, first: u64, last: u64) -> Run {
    let mut entry: ManifestEntry = zerocopy::FromZeros::new_zeroed();
    let zone = &mut entry.zones[usize::from(Zone::Fs as u8 - Zone::Index as u8)];
    (zone.first, zone.last) = (Key::inode(Ino(first)).into(), Key::inode(Ino(last)).into());
    (entry.run, entry.blkno) = (RunId(number).into(), (RUNS_START + 256 * number).into());
    (entry.items, entry.item_blocks) = (98.into(), 98.into());
    (entry.index_blocks, entry.filter_blocks) = (1.into(), 1.into());
    Run::new(level, 1, entry)
}

/// A story with these runs, and a chooser that finds too many in level 1 if there are four.
fn story(runs: Vec<Run>) -> (Story, Chooser) {
    let mut story = Story::new(1, CHANGE_MAX as u32);
    for run in runs {
        story.run(Box::new(move |world, cache, pins| {
            change(&Change { remove: &[], add: &[run] }, world, cache, pins)
        }));
    }
    story.settle();
    (story, Chooser::new(Policy { fanout: 3, ..Policy::STANDARD }))
}

/// What is chosen if these are busy, and the last of level 1: its first run, of how many.
fn choose(story: &mut Story, chooser: &mut Chooser, busy: &[u64]) -> Option<(u64, usize)> {
    let busy: Vec<RunId> = busy.iter().chain(&[LAST]).copied().map(RunId).collect();
    let moved = core::mem::replace(chooser, Chooser::new(Policy::STANDARD));
    let shared = Rc::new(RefCell::new((moved, None)));
    let (of, mut started) = (shared.clone(), false);
    story.run(Box::new(move |world, cache, pins| {
        let manifest = &Manifest::new(world.manifest, VOLUME_BLOCKS);
        let (level_runs, busy, pending) = (&world.level_runs, &busy[..], &[0; LEVELS]);
        let field = Field { manifest, level_runs, busy, pending, merges: 0, next_order: u64::MAX };
        let (chooser, chosen) = &mut *of.borrow_mut();
        if !core::mem::replace(&mut started, true) {
            chooser.begin(&field);
        }
        loop {
            match chooser.step(&field, cache, pins)? {
                Chosen::Step => {}
                Chosen::Nothing => return Ok(()),
                Chosen::Choice => {
                    let choice = chooser.choice();
                    assert_eq!(choice.check(), Ok(()));
                    *chosen = Some((choice.uppers[0].id().0, choice.runs().count()));
                    return Ok(());
                }
            }
        }
    }));
    story.settle();
    let mut shared = shared.borrow_mut();
    core::mem::swap(chooser, &mut shared.0);
    shared.1
}

/// Three runs with three, one and two runs below them, and one that makes them too many.
fn four() -> Vec<Run> {
    let mut runs = Vec::from([run(1, 1, 1, 30), run(1, 2, 31, 60), run(1, 3, 61, 90)]);
    runs.push(run(1, LAST, 91, 99));
    runs.extend([run(2, 4, 2, 9), run(2, 5, 10, 19), run(2, 6, 20, 29)]);
    runs.extend([run(2, 7, 40, 50), run(2, 8, 62, 70), run(2, 9, 71, 80)]);
    runs
}

#[test]
fn the_run_with_the_least_below_goes_down() {
    let (mut story, mut chooser) = story(four());
    assert_eq!(choose(&mut story, &mut chooser, &[]), Some((2, 2)));
    // A busy one isn't looked at, nor one above a busy one.
    assert_eq!(choose(&mut story, &mut chooser, &[2]), Some((3, 3)));
    assert_eq!(choose(&mut story, &mut chooser, &[7]), Some((3, 3)));
    assert_eq!(choose(&mut story, &mut chooser, &[7, 9]), Some((1, 4)));
    // Whatever is left is found.
    assert_eq!(choose(&mut story, &mut chooser, &[2, 3]), Some((1, 4)));
    assert_eq!(choose(&mut story, &mut chooser, &[7, 9, 4]), None);
}

#[test]
fn the_run_with_the_most_below_has_its_turn() {
    let (mut story, mut chooser) = story(four());
    let chosen: BTreeSet<u64> = (0..64)
        .map(|_| choose(&mut story, &mut chooser, &[]).expect("nothing is busy").0)
        .collect();
    assert_eq!(chosen, BTreeSet::from([1, 2, 3]));
}

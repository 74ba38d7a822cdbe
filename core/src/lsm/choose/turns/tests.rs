//! Turns in a level whose runs have keys, sizes and blocks below, and nothing else.

extern crate std;

use super::{Contest, LOOKS_MAX, TURN, Turns, Verdict};
use crate::format::Ino;
use crate::format::key::{Key, KeyBytes};
use crate::format::records::ManifestEntry;
use crate::lsm::manifest::Run;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::vec::Vec;
use zerocopy::FromZeros;

const LEVEL: u8 = 3;

/// A run, and the blocks below it.
#[derive(Debug, Clone, Copy)]
struct Stake {
    run: Run,
    below: u64,
}

impl Stake {
    fn new(number: usize, blocks: u16, below: u64) -> Stake {
        let mut entry = ManifestEntry::new_zeroed();
        let key = KeyBytes::from(Key::inode(Ino(number as u64 + 1)));
        (entry.zones[2].first, entry.zones[2].last) = (key, key);
        entry.item_blocks = blocks.into();
        Stake { run: Run::new(LEVEL, 0, entry), below }
    }

    fn key(&self) -> KeyBytes {
        self.run.range().first
    }

    fn is_cheaper(&self, other: &Stake) -> bool {
        self.below * other.run.entry.blocks() < other.below * self.run.entry.blocks()
    }
}

/// Goes once through all that can go down, as the chooser does. Which one does, and those that
/// were looked at.
fn choose(turns: &mut Turns, stakes: &[Stake], idle: impl Fn(usize) -> bool) -> Option<Vec<usize>> {
    let (mut contest, from) = turns.begin(LEVEL);
    let start = stakes.partition_point(|stake| stake.key() < from);
    let mut seen = Vec::new();
    for at in (start..stakes.len()).chain(0..start).filter(|at| idle(*at)) {
        seen.push(at);
        match contest.weigh(&stakes[at].run, stakes[at].below) {
            Verdict::Next => {}
            Verdict::Take => break,
            Verdict::Before => return Some(end(turns, &contest, stakes, seen)),
        }
    }
    contest.best().is_some().then(|| end(turns, &contest, stakes, seen))
}

/// What goes down is the last of what was looked at.
fn end(turns: &mut Turns, contest: &Contest, stakes: &[Stake], seen: Vec<usize>) -> Vec<usize> {
    turns.taken(contest);
    let best = contest.best().unwrap();
    let at = stakes.iter().position(|stake| stake.run == best).unwrap();
    let others = seen.into_iter().filter(|other| *other != at);
    others.chain([at]).collect()
}

fn level() -> impl Strategy<Value = Vec<Stake>> {
    let stake = (1..256_u16, prop_oneof![Just(0), 1..2000_u64]);
    prop::collection::vec(stake, 1..60).prop_map(|all| {
        let numbered = all.into_iter().enumerate();
        numbered.map(|(at, (blocks, below))| Stake::new(at, blocks, below)).collect()
    })
}

proptest! {
    /// What is taken is the cheapest of those looked at, or has its turn; something is taken as
    /// long as anything can go down, and everything has its turn.
    #[test]
    fn the_cheapest_goes_and_each_has_its_turn(
        stakes in level(),
        busy in any::<u64>(),
    ) {
        let mut turns = Turns::new();
        let idle = |at: usize| busy >> (at % 64) & 1 == 0;
        let all = (0..stakes.len()).filter(|at| idle(*at)).count();
        let mut last = BTreeMap::new();
        for choice in 0..3 * all * usize::from(TURN) {
            let Some(mut others) = choose(&mut turns, &stakes, idle) else {
                panic!("of {all} none was taken");
            };
            let taken = others.pop().unwrap();
            prop_assert!(idle(taken) && others.len() < LOOKS_MAX as usize);
            let is_turn = (choice + 1) % usize::from(TURN) == 0;
            prop_assert!(!is_turn || others.is_empty());
            for other in others {
                prop_assert!(!stakes[other].is_cheaper(&stakes[taken]));
            }
            last.insert(taken, choice);
        }
        if all == 0 {
            prop_assert_eq!(choose(&mut turns, &stakes, idle), None);
        }
        // Three rounds of turns: in the last two of them, each at least once.
        prop_assert_eq!(last.len(), all);
        prop_assert!(last.values().all(|choice| *choice >= all * usize::from(TURN)));
    }
}

#[test]
fn a_run_with_nothing_below_is_taken_at_once() {
    let stakes = [Stake::new(0, 9, 90), Stake::new(1, 1, 0), Stake::new(2, 9, 0)];
    let mut turns = Turns::new();
    assert_eq!(choose(&mut turns, &stakes, |_| true), Some(std::vec![0, 1]));
    // The next choice goes on behind it.
    assert_eq!(choose(&mut turns, &stakes, |_| true), Some(std::vec![2]));
}

#[test]
fn what_was_not_taken_is_looked_at_again() {
    let turns = Turns::new();
    let (mut contest, from) = turns.begin(LEVEL);
    let stake = Stake::new(4, 9, 90);
    assert_eq!(contest.weigh(&stake.run, stake.below), Verdict::Next);
    assert_eq!(turns.begin(LEVEL).1, from);
}

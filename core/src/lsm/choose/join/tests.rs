//! What joining costs, counted in runs that have sizes and nothing else.

extern crate std;

use super::super::UPPERS_DOWN_MAX;
use super::{Join, find};
use crate::format::Ino;
use crate::format::key::{Key, KeyBytes};
use crate::format::records::ManifestEntry;
use crate::lsm::choose::{Policy, UPPERS_MAX};
use crate::lsm::manifest::Run;
use proptest::prelude::*;
use std::vec::Vec;
use zerocopy::FromZeros;

const POLICY: Policy = Policy::STANDARD;
/// Items that a block holds.
const ITEMS: u32 = 45;

fn run(order: u64, items: u32) -> Run {
    let mut entry = ManifestEntry::new_zeroed();
    let key = KeyBytes::from(Key::inode(Ino(order)));
    (entry.zones[2].first, entry.zones[2].last) = (key, key);
    entry.items = items.into();
    entry.item_blocks = (items.div_ceil(ITEMS) as u16).into();
    (entry.index_blocks, entry.filter_blocks) = (1.into(), 1.into());
    Run::new(0, order, entry)
}

fn items(runs: &[Run]) -> u64 {
    runs.iter().map(|run| u64::from(run.entry.items.get())).sum()
}

fn blocks(runs: &[Run]) -> u64 {
    runs.iter().map(|run| run.entry.blocks()).sum()
}

/// What runs owe: see the module.
fn owed(runs: &[Run]) -> f64 {
    let most = 3.0 * POLICY.level_0_blocks as f64;
    let blocks = runs.iter().map(|run| run.entry.blocks() as f64);
    blocks.map(|blocks| blocks * (most / blocks).log(1.5)).sum()
}

/// What became of runs that came one by one.
#[derive(Default, Debug)]
struct Cost {
    arrived: u64,
    joins: u64,
    forced: u64,
    /// Blocks written by joins.
    blocks: u64,
    down: u64,
}

/// Adds runs of these sizes to level 0, and joins them whenever it has too many.
fn feed(sizes: impl Iterator<Item = u32>) -> Cost {
    let (mut cost, mut level) = (Cost::default(), Vec::new());
    for (order, size) in (1..).zip(sizes) {
        level.push(run(order, size));
        cost.arrived += 1;
        while level.len() as u64 >= POLICY.level_0_runs {
            let first = &level[..UPPERS_DOWN_MAX.min(level.len())];
            let join = find(&level, &POLICY, |_| true);
            let Some(Join { from, count, balanced, .. }) =
                join.filter(|_| blocks(first) < POLICY.level_0_blocks)
            else {
                level.drain(..first.len());
                cost.down += 1;
                continue;
            };
            let joined = &level[from..from + count];
            let made = run(joined[count - 1].order, items(joined) as u32);
            let most = joined.iter().map(|run| run.entry.blocks()).max().unwrap();
            assert_eq!(balanced, 3 * most <= 2 * blocks(joined));
            let paid = owed(joined) - owed(&[made]);
            assert!(!balanced || made.entry.blocks() as f64 <= paid, "more than was owed");
            cost.joins += 1;
            cost.forced += u64::from(!balanced);
            cost.blocks += made.entry.blocks();
            level.splice(from..from + count, [made]);
        }
    }
    cost
}

/// Small transactions of one size until there are 4 MiB of them: joins are much cheaper than the
/// bound, and take in four runs and more.
#[test]
fn small_transactions_are_joined_a_few_times() {
    for size in [1, 5, 20, 60u32] {
        let arrived = 30_000 / size as usize;
        let cost = feed(std::iter::repeat_n(size, arrived));
        std::println!("{size}: {cost:?}");
        assert_eq!((cost.down, cost.forced), (0, 0));
        assert!(cost.blocks <= 8 * cost.arrived && cost.joins * 3 <= cost.arrived);
    }
}

/// Now and then a large one comes between them: it is not written again for their sake.
#[test]
fn large_runs_are_left_alone() {
    let sizes = |n: u32| if n.is_multiple_of(40) { 4000 } else { 5 };
    let cost = feed((1..=400).map(sizes));
    std::println!("{cost:?}");
    assert!(cost.blocks < 6 * cost.arrived, "those of 4000 have 90 blocks");
}

proptest! {
    /// What is chosen can be joined; and whenever anything can, something is.
    #[test]
    fn what_is_chosen_can_be_joined(
        made in prop::collection::vec((1u32..9000, any::<bool>(), any::<bool>()), 0..UPPERS_MAX),
    ) {
        let mut order = 0;
        let runs: Vec<Run> = made.iter().map(|(items, idle, same)| {
            order += u64::from(!same || order == 0);
            // Whether it is idle is told by its first block.
            let mut run = run(order, if items % 2 == 0 { *items } else { items % 100 + 1 });
            run.entry.blkno = u64::from(*idle).into();
            run
        }).collect();
        let idle = |run: &Run| run.entry.blkno.get() == 1;
        let can = |from: usize, to: usize| {
            let joined = &runs[from..to];
            let small = |run: &Run| run.entry.blocks() < POLICY.small_blocks && idle(run);
            joined.iter().all(small)
                && joined[0].order != joined[joined.len() - 1].order
                && runs.get(to).is_none_or(|next| next.order != joined[joined.len() - 1].order)
                && blocks(joined) <= POLICY.level_0_blocks
                && blocks(joined).div_ceil(256) < joined.len() as u64
        };
        match find(&runs, &POLICY, idle) {
            Some(join) => prop_assert!(can(join.from, join.from + join.count)),
            None => {
                let ends = |from: usize| (from + 1..=runs.len()).map(move |to| (from, to));
                prop_assert!(!(0..runs.len()).flat_map(ends).any(|(from, to)| can(from, to)));
            }
        }
    }
}

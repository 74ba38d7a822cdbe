//! Patches against maps of single blocks.

extern crate std;

use super::{Change, Patch, advance};
use crate::client::fs::BlockRun;
use crate::format::BlockNo;
use crate::format::item::{FileExtent, Mapping};
use crate::format::key::FileBlock;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::vec::Vec;

type Blocks = BTreeMap<u64, Mapping>;

fn blocks(extents: &[FileExtent]) -> Blocks {
    let each = |extent: &FileExtent| {
        let extent = *extent;
        (0..extent.len).map(move |at| (extent.first().0 + at, advance(extent.mapping, at)))
    };
    extents.iter().flat_map(each).collect()
}

fn mapping(kind: u8, at: BlockNo) -> Mapping {
    match kind {
        0 => Mapping::Data(at),
        1 => Mapping::Reserved(at),
        2 => Mapping::OfflineReserved(at),
        _ => Mapping::Offline,
    }
}

/// Extents in order, with holes between some: `gap` blocks before each. Some could be one.
fn extents() -> impl Strategy<Value = Vec<FileExtent>> {
    let extent = (0u64..3, 1u64..4, 0u8..4, prop_oneof![Just(0u64), 100u64..200]);
    prop::collection::vec(extent, 0..9).prop_map(|parts| {
        let mut next = 0;
        let place = |(gap, len, kind, shift): (u64, u64, u8, u64)| {
            let first = next + gap;
            next = first + len;
            let mapping = mapping(kind, BlockNo(1000 + first + shift));
            FileExtent { last: FileBlock(next - 1), len, mapping }
        };
        parts.into_iter().map(place).collect()
    })
}

/// What the block becomes.
fn changed(change: Change, mapping: Mapping) -> Option<Mapping> {
    match (change, mapping) {
        (Change::Free, _) => None,
        (Change::Write, Mapping::Reserved(at)) => Some(Mapping::Data(at)),
        (Change::Blank, Mapping::Data(at)) => Some(Mapping::Reserved(at)),
        (Change::Write | Change::Blank | Change::Fill(_), mapping) => Some(mapping),
    }
}

fn count(blocks: &Blocks, which: impl Fn(&Mapping) -> bool) -> i64 {
    blocks.values().filter(|mapping| which(mapping)).count() as i64
}

fn is_offline(mapping: &Mapping) -> bool {
    matches!(mapping, Mapping::Offline | Mapping::OfflineReserved(_))
}

fn place(mapping: &Mapping) -> Option<u64> {
    match mapping {
        Mapping::Data(at) | Mapping::Reserved(at) | Mapping::OfflineReserved(at) => Some(at.0),
        Mapping::Offline => None,
    }
}

/// Holds a patch against what its blocks were and shall be.
fn check(patch: &Patch, old: &Blocks, expected: &Blocks) -> Result<(), TestCaseError> {
    let new = blocks(&patch.new);
    prop_assert_eq!(&new, expected);
    for pair in patch.new.windows(2) {
        prop_assert!(pair[0].last < pair[1].first(), "they overlap");
        let touch = pair[0].last.0 + 1 == pair[1].first().0;
        let goes_on = advance(pair[0].mapping, pair[0].len) == pair[1].mapping;
        prop_assert!(!(touch && goes_on), "they could be one");
    }
    let is_data = |mapping: &Mapping| matches!(mapping, Mapping::Data(_));
    prop_assert_eq!(patch.online, count(&new, is_data) - count(old, is_data));
    let gone = count(old, is_offline) - count(&new, is_offline);
    prop_assert_eq!(patch.offline_gone as i64, gone);
    let freed = patch.freed.iter().flat_map(|BlockRun { first, len }| first.0..first.0 + len);
    let gone = old.iter().filter(|(block, _)| !new.contains_key(block));
    let gone: Vec<u64> = gone.filter_map(|(_, mapping)| place(mapping)).collect();
    prop_assert_eq!(freed.collect::<Vec<_>>(), gone);
    Ok(())
}

proptest! {
    #[test]
    fn a_patch_changes_each_block_of_its_region_and_no_other(
        old in extents(), first in 0u64..30, len in 1u64..20, change in 0usize..3,
    ) {
        let last = first + len - 1;
        let change = [Change::Write, Change::Blank, Change::Free][change];
        let patch = Patch::plan(&old, FileBlock(first), FileBlock(last), change);
        let mapped = blocks(&old);
        let expected = mapped.iter().filter_map(|(&block, &mapping)| {
            let inside = (first..=last).contains(&block);
            let after = if inside { changed(change, mapping) } else { Some(mapping) };
            after.map(|after| (block, after))
        });
        check(&patch, &mapped, &expected.collect())?;
    }

    #[test]
    fn a_hole_that_is_filled_joins_what_it_meets(
        old in extents(), first in 0u64..30, most in 1u64..6,
        shift in prop_oneof![Just(0u64), 300u64..400],
    ) {
        let mapped = blocks(&old);
        let hole = (first..first + most).take_while(|block| !mapped.contains_key(block));
        let len = hole.count() as u64;
        prop_assume!(len > 0);
        let at = BlockNo(1000 + first + shift);
        let last = FileBlock(first + len - 1);
        let patch = Patch::plan(&old, FileBlock(first), last, Change::Fill(at));
        let mut expected = mapped.clone();
        expected.extend((0..len).map(|by| (first + by, Mapping::Reserved(BlockNo(at.0 + by)))));
        check(&patch, &mapped, &expected)?;
    }
}

#[test]
fn the_last_block_there_can_be_is_no_special_case() {
    let last = FileBlock::MAX;
    let extent = FileExtent { last, len: 4, mapping: Mapping::Data(BlockNo(10)) };
    let patch = Patch::plan(&[extent], FileBlock(last.0 - 1), last, Change::Free);
    let left = FileExtent { last: FileBlock(last.0 - 2), len: 2, ..extent };
    assert_eq!(patch.new, [left]);
    assert_eq!(patch.freed, [BlockRun { first: BlockNo(12), len: 2 }]);
    assert_eq!((patch.online, patch.offline_gone), (-2, 0));
}

//! Blocks of runs against a map, and with bytes that lie.

extern crate std;

use super::{
    FILTER_ITEMS, Filter, FilterWriter, Index, IndexWriter, Items, ItemsWriter, RunBlock, Value,
    filter_block, filter_hash, item_bytes,
};
use crate::crc32c::crc32c_seeded;
use crate::error::Corruption;
use crate::format::block::Volume;
use crate::format::key::{Key, KeyBytes};
use crate::format::{Block, BlockNo, Ino, RunId};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::vec::Vec;

const VOLUME: Volume = Volume { fsid: 1, crc_seed: 2 };
const AT: RunBlock = RunBlock { blkno: BlockNo(700), run: RunId(8), index: 3 };

type Model = BTreeMap<KeyBytes, Option<Vec<u8>>>;

fn value(stored: &Option<Vec<u8>>) -> Value<'_> {
    stored.as_deref().map_or(Value::Tombstone, Value::Bytes)
}

/// Fills a block with as much of the model as fits, and says how much that is.
fn fill(block: &mut Block, model: &Model) -> usize {
    let mut writer = ItemsWriter::new(block);
    let mut count = 0;
    for (key, stored) in model {
        if !writer.fits(&value(stored)) {
            break;
        }
        writer.push(key, &value(stored));
        count += 1;
    }
    writer.seal(&VOLUME, &AT);
    count
}

fn keys() -> impl Strategy<Value = KeyBytes> {
    (0u8..4, 0u64..20, 0u8..8, 0u64..20, any::<u64>(), any::<u8>()).prop_map(
        |(zone, first, kind, second, third, fourth)| {
            KeyBytes::from(Key { zone, first, kind, second, third, fourth })
        },
    )
}

fn models() -> impl Strategy<Value = Model> {
    let values = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..=512));
    proptest::collection::btree_map(keys(), values, 1..200)
}

/// Makes the checksum right after a change, as a bug in a writer would.
fn reseal(block: &mut Block) {
    let crc = crc32c_seeded(VOLUME.crc_seed, &block.0[4..]);
    block.0[..4].copy_from_slice(&crc.to_le_bytes());
}

proptest! {
    #[test]
    fn items_are_found_where_the_model_has_them(
        model in models(),
        probes in proptest::collection::vec(keys(), 50),
    ) {
        let mut block = Block::ZERO;
        let count = fill(&mut block, &model);
        let items = Items::open(&block, &VOLUME, &AT).unwrap();
        prop_assert_eq!(usize::from(items.count()), count);
        for (index, (key, stored)) in model.iter().take(count).enumerate() {
            prop_assert_eq!(items.get(index as u16), (key, value(stored)));
            prop_assert_eq!(usize::from(items.position(key)), index);
        }
        let inside: Vec<_> = model.keys().take(count).collect();
        for probe in probes {
            let expected = inside.partition_point(|key| **key < probe);
            prop_assert_eq!(usize::from(items.position(&probe)), expected);
        }
    }

    #[test]
    fn no_bytes_with_a_right_checksum_make_an_item_block_lie(
        model in models(),
        changes in proptest::collection::vec((32usize..4096, any::<u8>()), 1..6),
    ) {
        let mut block = Block::ZERO;
        fill(&mut block, &model);
        for (at, byte) in changes {
            block.0[at] = byte;
        }
        reseal(&mut block);
        if let Ok(items) = Items::open(&block, &VOLUME, &AT) {
            let all: Vec<_> = (0..items.count()).map(|index| items.get(index)).collect();
            prop_assert!(all.is_sorted_by(|a, b| a.0 < b.0));
            let bytes: usize = all.iter().map(|(_, value)| item_bytes(value)).sum();
            prop_assert!(bytes <= super::ITEMS_BYTES);
        }
        let _ = Index::open(&block, &VOLUME, &AT);
    }

    #[test]
    fn index_points_at_the_block_that_covers_a_key(
        keys in proptest::collection::btree_set(keys(), 1..=super::INDEX_KEYS),
        probe in keys(),
    ) {
        let mut block = Block::ZERO;
        let mut writer = IndexWriter::new(&mut block);
        for key in &keys {
            writer.push(key);
        }
        writer.seal(&VOLUME, &AT);
        let index = Index::open(&block, &VOLUME, &AT).unwrap();
        let covering = keys.iter().rposition(|first| *first <= probe);
        prop_assert_eq!(index.child(&probe), covering);
        prop_assert!(index.keys().iter().eq(keys.iter()));
    }
}

#[test]
fn a_filter_never_denies_and_seldom_errs() {
    let secret = [5; 16];
    let hash = |ino: u64| filter_hash(&secret, &KeyBytes::from(Key::inode(Ino(ino))));
    let mut blocks = [Block::ZERO, Block::ZERO, Block::ZERO];
    let inserted = u64::from(FILTER_ITEMS) * 3;
    let mut writers = blocks.each_mut().map(FilterWriter::new);
    for ino in 0..inserted {
        writers[filter_block(hash(ino), 3) as usize].insert(hash(ino));
    }
    let contains = |ino: u64| {
        Filter::opened(&blocks[filter_block(hash(ino), 3) as usize]).may_contain(hash(ino))
    };
    assert!((0..inserted).all(contains));
    let wrong = (inserted..inserted + 100_000).filter(|ino| contains(*ino)).count();
    std::println!("{wrong} of 100000 absent keys passed a full filter");
    assert!(wrong < 2_000, "{wrong} of 100000");
}

#[test]
fn entries_are_filtered_by_name_and_all_else_by_owner() {
    let secret = [5; 16];
    let hash = |key: Key| filter_hash(&secret, &KeyBytes::from(key));
    let (dir, other) = (Ino(7), Ino(8));
    assert_eq!(hash(Key::dirent(dir, 1, 2)), hash(Key::dirent(dir, 1, 3)));
    assert_ne!(hash(Key::dirent(dir, 1, 2)), hash(Key::dirent(dir, 2, 2)));
    assert_ne!(hash(Key::dirent(dir, 1, 2)), hash(Key::xattr(dir, 1, 2, 0)));
    assert_eq!(hash(Key::inode(dir)), hash(Key::readdir(dir, 9)));
    assert_ne!(hash(Key::inode(dir)), hash(Key::inode(other)));
}

#[test]
fn another_block_of_a_run_is_not_taken_for_this_one() {
    let mut block = Block::ZERO;
    let mut writer = ItemsWriter::new(&mut block);
    writer.push(&KeyBytes::from(Key::inode(Ino(1))), &Value::Bytes(b"x"));
    writer.seal(&VOLUME, &AT);
    let open = |at: RunBlock| Items::open(&block, &VOLUME, &at).map(|_| ());
    assert_eq!(open(AT), Ok(()));
    assert_eq!(open(RunBlock { index: 4, ..AT }), Err(Corruption::Misdirected));
    assert_eq!(open(RunBlock { run: RunId(9), ..AT }), Err(Corruption::Stale));
    let index = Index::open(&block, &VOLUME, &AT).map(|_| ());
    assert_eq!(index, Err(Corruption::Kind));
    let mut filter = Block::ZERO;
    FilterWriter::new(&mut filter).seal(&VOLUME, &AT);
    assert!(!Filter::open(&filter, &VOLUME, &AT).unwrap().may_contain(77));
}

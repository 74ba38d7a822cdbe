//! Built runs, read back as a reader does.

extern crate std;

use super::{
    BuildSpace, FILTER_BLOCKS_MAX, Refused, RunBuilder, Sealed, blocks_for, filter_blocks,
};
use crate::arena::Arena;
use crate::arena::tests::region;
use crate::format::block::Volume;
use crate::format::key::{Key, KeyBytes};
use crate::format::records::ManifestEntry;
use crate::format::root::Extent;
use crate::format::run::{
    Filter, Index, Items, RunBlock, SEGMENT_BLOCKS, Value, filter_block, filter_hash, item_bytes,
};
use crate::format::{Block, BlockNo, Ino, RunId};
use proptest::prelude::*;
use std::boxed::Box;
use std::collections::BTreeMap;
use std::vec::Vec;

const VOLUME: Volume = Volume { fsid: 1, crc_seed: 2 };
const FILTER_KEY: [u8; 16] = [3; 16];
const START: BlockNo = BlockNo(5000);

type Model = BTreeMap<KeyBytes, Option<Vec<u8>>>;

fn value(stored: &Option<Vec<u8>>) -> Value<'_> {
    stored.as_deref().map_or(Value::Tombstone, Value::Bytes)
}

fn fresh() -> &'static mut Block {
    Box::leak(Box::new(Block([0xee; 4096])))
}

/// Builds a run of as much of the model as fits `blocks`; what was written, and how many items.
fn build(model: &Model, blocks: u64) -> (ManifestEntry, Vec<Block>, usize) {
    let mut measure = Arena::measuring();
    BuildSpace::carve(&mut measure).unwrap();
    let space = BuildSpace::carve(&mut Arena::new(region(measure.bytes_used())).unwrap()).unwrap();
    let filter = (0..filter_blocks(model.len() as u64)).map(|_| fresh());
    let extent = Extent::new(START, blocks);
    let mut run = RunBuilder::new(&VOLUME, &FILTER_KEY, RunId(77), extent, space, filter);
    let mut written = Vec::new();
    let mut write = |sealed: Option<Sealed<'static>>| {
        if let Some(sealed) = sealed {
            assert_eq!(sealed.blkno, START.plus(written.len() as u64), "written out of order");
            written.push(sealed.block.clone());
        }
    };
    let mut count = 0;
    'items: for (key, stored) in model {
        while let Err(refused) = run.push(key, &value(stored)) {
            match refused {
                Refused::Block => write(run.turn(fresh())),
                Refused::Full => break 'items,
            }
        }
        count += 1;
    }
    loop {
        let (sealed, unused) = run.finish(fresh());
        let done = sealed.is_none();
        write(sealed);
        if done {
            assert!(unused.is_some());
            break;
        }
    }
    (run.entry().0, written, count)
}

/// Looks a key up as a reader does: filter, index, items.
fn lookup(entry: &ManifestEntry, blocks: &[Block], key: &KeyBytes) -> Option<Option<Vec<u8>>> {
    let at = |index: u32| RunBlock { blkno: START.plus(index.into()), run: entry.run(), index };
    let block = |index: u32| &blocks[index as usize];
    let items = u32::from(entry.item_blocks.get());
    let filter_at = items + u32::from(entry.index_blocks.get());
    let hash = filter_hash(&FILTER_KEY, key);
    let filter_at = filter_at + filter_block(hash, entry.filter_blocks.get().into());
    let filter = Filter::open(block(filter_at), &VOLUME, &at(filter_at)).unwrap();
    let mut child = None;
    for number in 0..u32::from(entry.index_blocks.get()) {
        let index = Index::open(block(items + number), &VOLUME, &at(items + number)).unwrap();
        let before = number * super::INDEX_KEYS as u32;
        child = index.child(key).map(|child| before + child as u32).or(child);
    }
    let child = child?;
    let items = Items::open(block(child), &VOLUME, &at(child)).unwrap();
    let position = items.position(key);
    let found = (position < items.count()).then(|| items.get(position)).filter(|it| it.0 == key)?;
    assert!(filter.may_contain(hash), "the filter denies what is there");
    Some(match found.1 {
        Value::Bytes(bytes) => Some(bytes.to_vec()),
        Value::Tombstone => None,
    })
}

fn keys() -> impl Strategy<Value = KeyBytes> {
    let fields = (1u8..=4, 0u64..50, 0u8..8, 0u64..50, any::<u64>(), any::<u8>());
    fields.prop_map(|(zone, first, kind, second, third, fourth)| {
        KeyBytes::from(Key { zone, first, kind, second, third, fourth })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_run_holds_what_went_in(
        model in proptest::collection::btree_map(
            keys(), proptest::option::of(proptest::collection::vec(any::<u8>(), 0..=512)), 1..600),
        absent in proptest::collection::vec(keys(), 40),
        blocks in 3u64..=SEGMENT_BLOCKS,
    ) {
        let (entry, written, count) = build(&model, blocks);
        prop_assume!(count > 0);
        prop_assert_eq!(entry.check(1 << 20), Ok(()));
        prop_assert_eq!(entry.blocks(), written.len() as u64);
        prop_assert!(entry.blocks() <= blocks);
        prop_assert_eq!(entry.items.get() as usize, count);
        let inside: Model = model.iter().take(count).map(|(k, v)| (*k, v.clone())).collect();
        let tombstones = inside.values().filter(|stored| stored.is_none()).count();
        prop_assert_eq!(entry.tombstones.get() as usize, tombstones);
        let (first, last) = (*inside.keys().next().unwrap(), *inside.keys().last().unwrap());
        prop_assert_eq!(entry.range(), Some((first, last)));
        for (key, stored) in &inside {
            let found = lookup(&entry, &written, key);
            prop_assert_eq!(found.as_ref(), Some(stored));
            let zone = &entry.zones[usize::from(key.zone) - 1];
            prop_assert!(zone.first <= *key && *key <= zone.last);
        }
        for key in absent.iter().filter(|key| !inside.contains_key(key)) {
            prop_assert_eq!(lookup(&entry, &written, key), None);
        }
    }

    #[test]
    fn the_estimate_is_enough(
        sizes in proptest::collection::vec(proptest::option::of(0usize..=512), 1..1000),
    ) {
        let model: Model = sizes.iter().enumerate().map(|(ino, size)| {
            (KeyBytes::from(Key::inode(Ino(ino as u64 + 1))), size.map(|size| std::vec![1; size]))
        }).collect();
        let bytes = model.values().map(|stored| item_bytes(&value(stored)) as u64).sum();
        if let Some(blocks) = blocks_for(model.len() as u64, bytes) {
            prop_assert_eq!(build(&model, blocks).2, model.len());
        }
    }
}

#[test]
fn a_segment_of_the_smallest_items_is_filled() {
    let model: Model =
        (1..40_000).map(|ino| (KeyBytes::from(Key::orphan(Ino(ino))), None)).collect();
    let (entry, written, count) = build(&model, SEGMENT_BLOCKS);
    assert!(count < model.len());
    assert_eq!(written.len() as u64, SEGMENT_BLOCKS);
    assert_eq!(usize::from(entry.filter_blocks.get()), FILTER_BLOCKS_MAX);
    std::println!("{count} items of no value in a segment");
}

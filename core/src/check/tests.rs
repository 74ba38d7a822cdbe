//! Volumes that are whole, that are damaged in every structure, and that are half made.

extern crate std;

use super::{Check, Counts, Finding, Holder, Id, TreeName, Wrong};
use crate::arena::Arena;
use crate::arena::tests::region;
use crate::error::Corruption;
use crate::format::block::{self, Magic};
use crate::format::key::Key;
use crate::format::layout::{QUORUM_BLKNO, ROOT_BLKNO, SUPER_BLKNO, spare_blkno};
use crate::format::records::{ManifestEntry, ManifestKey};
use crate::format::root::{Extent, Root, RootBlock};
use crate::format::super_block::{Identity, Super};
use crate::format::{Block, BlockNo, Ino, Term};
use crate::mkfs::tests::{BLOCKS, Disk, Step, found, made, make, recipe};
use crate::node::{Action, Event, More, Node};
use outrider_hal::{BlockOp, BlockRequest, Completion, Instant};
use std::cell::RefCell;
use std::vec::Vec;
use zerocopy::FromBytes;

std::thread_local! {
    /// The check of the volume that was checked last: its memory lives as long as the thread.
    static LAST: RefCell<Option<Check<'static>>> = const { RefCell::new(None) };
}

fn carve(volume: &Super) -> Check<'static> {
    let mut measure = Arena::measuring();
    Check::carve(&mut measure, volume).unwrap();
    let mut arena = Arena::new(region(measure.bytes_used())).unwrap();
    let check = Check::carve(&mut arena, volume).unwrap();
    assert_eq!(arena.bytes_used(), measure.bytes_used());
    check
}

/// Checks what is on a disk as this volume.
fn check(disk: &mut Disk, volume: &Super) -> (Vec<Finding>, Counts) {
    let last = LAST.take().filter(|last| super::is_same(&last.volume, volume));
    let mut check = last.unwrap_or_else(|| carve(volume));
    check.begin_again();
    check.cache.reset(volume.volume());
    let mut findings = Vec::new();
    while !check.is_done() {
        disk.drive(&mut check, &mut 1);
        while let Some(finding) = check.poll_finding() {
            findings.push(finding);
        }
    }
    let counts = check.counts();
    LAST.set(Some(check));
    (findings, counts)
}

fn newest(disk: &Disk) -> Root {
    let volume = found(disk).unwrap();
    let open = |at| Root::open(&disk.block(at), &volume.volume(), at, BLOCKS).ok();
    (0..64).filter_map(|at| open(ROOT_BLKNO.plus(at))).max_by_key(Root::rank).unwrap()
}

/// The only run of a new volume, and the leaf that names it.
fn run(disk: &Disk) -> (BlockNo, ManifestKey, ManifestEntry) {
    let leaf = newest(disk).fields().manifest.node.blkno();
    let block = disk.block(leaf);
    let (key, value) = crate::format::btree::Node::new(&block).item(0);
    let key = *ManifestKey::ref_from_bytes(key).unwrap();
    (leaf, key, *ManifestEntry::ref_from_bytes(value).unwrap())
}

fn flip(disk: &mut Disk, blkno: BlockNo, byte: usize) {
    disk.blocks.get_mut(&blkno.0).unwrap().0[byte] ^= 0x10;
}

/// Changes a block and seals it again, as a bug of ours would have.
fn forge(disk: &mut Disk, blkno: BlockNo, magic: Magic, change: impl FnOnce(&mut Block)) {
    let volume = found(disk).unwrap().volume();
    let block = disk.blocks.get_mut(&blkno.0).unwrap();
    let seq = block::header(block).seq.get();
    change(block);
    block::seal(block, &volume, magic, blkno, seq);
}

fn forge_root(disk: &mut Disk, change: impl FnOnce(&mut RootBlock)) {
    let blkno = super::root_blkno(&newest(disk));
    forge(disk, blkno, Magic::Root, |block| {
        change(RootBlock::mut_from_bytes(&mut block.0).unwrap());
    });
}

fn finding(id: Id, blkno: BlockNo, blocks: u64, what: Corruption) -> Finding {
    Finding { id, blkno, blocks, key: None, wrong: Wrong::Corrupt(what) }
}

fn miscount(id: Id, blkno: BlockNo, says: u64, is: u64) -> Finding {
    Finding { id, blkno, blocks: 1, key: None, wrong: Wrong::Count { says, is } }
}

/// All that is wrong after a change to a new volume.
fn after(change: impl FnOnce(&mut Disk)) -> Vec<Finding> {
    let mut disk = made();
    let volume = found(&disk).unwrap();
    change(&mut disk);
    check(&mut disk, &volume).0
}

#[test]
fn a_new_volume_is_clean() {
    let mut disk = made();
    let volume = found(&disk).unwrap();
    let (findings, counts) = check(&mut disk, &volume);
    assert_eq!(findings, []);
    let mut blocks = [0; Holder::ALL.len()];
    blocks[Holder::Free as usize] = newest(&disk).fields().free_blocks.get();
    blocks[Holder::Reserve as usize] = BLOCKS - 256 - 1 - 3 - 3 - blocks[Holder::Free as usize];
    (blocks[Holder::Nodes as usize], blocks[Holder::Runs as usize]) = (3, 3);
    let expected = Counts {
        roots: 1,
        nodes: 3,
        records: 3,
        runs: 1,
        items: 2,
        items_newest: 2,
        inodes: 1,
        directories: 1,
        blocks,
        findings: 0,
    };
    assert_eq!(counts, expected);
}

#[test]
fn flipped_bits_are_found_in_every_block_there_is() {
    let whole = made();
    let volume = found(&whole).unwrap();
    let entry = run(&whole).2.extent();
    let top = newest(&whole);
    let root = super::root_blkno(&top);
    let trees: Vec<BlockNo> = (TreeName::ALL.iter())
        .map(|name| name.place(top.fields()).1)
        .filter(|tree| tree.height > 0)
        .map(|tree| tree.node.blkno())
        .collect();
    assert_eq!(trees.len(), 3);
    let mut seen = 0;
    for blkno in whole.blocks.keys().copied().map(BlockNo) {
        let id = match blkno {
            SUPER_BLKNO => Id::Super,
            at if at == spare_blkno(BLOCKS) => Id::Spare,
            at if (QUORUM_BLKNO.0..QUORUM_BLKNO.0 + 7).contains(&at.0) => Id::Quorum,
            at if (ROOT_BLKNO.0..ROOT_BLKNO.0 + 64).contains(&at.0) => Id::Ring,
            at if at == entry.start() => Id::RunItems,
            at if at == entry.start().plus(1) => Id::RunIndex,
            at if at == entry.start().plus(2) => Id::RunFilter,
            at if trees.contains(&at) => Id::Node,
            // Nothing of ours.
            _ => continue,
        };
        for byte in [0, 5, 40, 2000, 4095] {
            let mut disk = whole.clone();
            flip(&mut disk, blkno, byte);
            let (findings, _) = check(&mut disk, &volume);
            let mut expected = std::vec![finding(id, blkno, 1, Corruption::Checksum)];
            if id == Id::Super || id == Id::Spare {
                // The signature is looked at first.
                expected[0].wrong = findings[0].wrong;
            }
            if blkno == root {
                expected.push(finding(Id::Root, ROOT_BLKNO, 64, Corruption::Mismatch));
            }
            assert_eq!(findings, expected, "block {blkno}, byte {byte}");
            seen += 1;
        }
    }
    assert_eq!(seen, 5 * (2 + 7 + 64 + 3 + 3));
}

#[test]
fn blocks_in_two_places_or_in_none_are_found() {
    let whole = newest(&made());
    let free = whole.fields().free_blocks.get();
    let cut = after(|disk| forge_root(disk, |root| root.reserve[0].blocks -= 3));
    let end = whole.reserve()[0].end().0;
    let last = BlockNo(end - 3);
    assert_eq!(cut, [finding(Id::Leak, last, 3, Corruption::Mismatch)]);
    let overlap = after(|disk| {
        forge_root(disk, |root| root.takeover[4] = root.takeover[3]);
    });
    let [third, fourth] = [3, 4].map(|index| BlockNo(whole.fields().takeover[index].get()));
    let expected = [
        finding(Id::Double, third, 48, Corruption::Mismatch),
        finding(Id::Leak, fourth, 48, Corruption::Mismatch),
    ];
    assert_eq!(overlap, expected);
    let sum = after(|disk| forge_root(disk, |root| root.free_blocks -= 1));
    let at = super::root_blkno(&whole);
    assert_eq!(sum, [miscount(Id::FreeBlocks, at, free - 1, free)]);
    assert!(free > BLOCKS / 2);
}

#[test]
fn levels_and_trees_that_are_not_what_the_root_says_are_found() {
    let whole = newest(&made());
    let at = super::root_blkno(&whole);
    let levels = after(|disk| forge_root(disk, |root| root.level_runs[2] = 1.into()));
    assert_eq!(levels, [miscount(Id::Levels, at, 1, 0)]);
    // The tree by length leads to the node of the tree by block: a node of another kind, in two.
    let by_block = whole.fields().free_by_block.node.blkno();
    let twice = after(|disk| forge_root(disk, |root| root.free_by_length = root.free_by_block));
    assert_eq!(twice, [finding(Id::Double, by_block, 1, Corruption::Mismatch)]);
    let stale = after(|disk| forge_root(disk, |root| root.manifest.node.seq += 1));
    let leaf = whole.fields().manifest.node.blkno();
    assert_eq!(stale, [finding(Id::Node, leaf, 1, Corruption::Stale)]);
    let higher = after(|disk| forge_root(disk, |root| root.manifest.height += 1));
    assert_eq!(higher, [finding(Id::Node, leaf, 1, Corruption::Level)]);
}

#[test]
fn free_trees_that_differ_are_found() {
    let whole = newest(&made());
    let fields = whole.fields();
    let leaf = fields.free_by_length.node.blkno();
    // The one free extent ends at the volume's end; the tree by length has it shorter.
    let differs = after(|disk| {
        forge(disk, leaf, Magic::Btree, |block| {
            // The item stands at the end of the block: 4 bytes, then length and last block.
            let length = &mut block.0[4096 - 16..4096 - 8];
            let blocks = u64::from_be_bytes(<[u8; 8]>::try_from(&*length).unwrap());
            length.copy_from_slice(&(blocks - 5).to_be_bytes());
        });
    });
    let start = BlockNo(spare_blkno(BLOCKS).0 - fields.free_blocks.get());
    assert_eq!(differs, [finding(Id::FreeTrees, start, 5, Corruption::Mismatch)]);
}

#[test]
fn a_run_that_contradicts_itself_is_found() {
    let whole = made();
    let (_, _, entry) = run(&whole);
    let at = |index| entry.extent().start().plus(index);
    let denied = after(|disk| {
        forge(disk, at(2), Magic::RunFilter, |block| block.0[40..].fill(0));
    });
    // Both items are denied.
    assert_eq!(denied, [finding(Id::RunFilter, at(0), 1, Corruption::Mismatch); 2]);
    let index = after(|disk| {
        forge(disk, at(1), Magic::RunIndex, |block| block.0[40 + 26] ^= 1);
    });
    assert_eq!(index, [finding(Id::RunIndex, at(0), 1, Corruption::Mismatch)]);
    let mode = after(|disk| {
        // Behind the header and the first item, which has no value, stands the inode.
        let mode = 40 + 29 + 29 + 84;
        forge(disk, at(0), Magic::RunItems, |block| block.0[mode..mode + 4].fill(0));
    });
    let key = Some(Key::inode(Ino(1)));
    let inode = Finding { key, ..finding(Id::Item, at(0), 1, Corruption::Value) };
    // So it isn't known whether there is a root directory.
    assert_eq!((mode[0], mode[1].id), (inode, Id::RootDirectory));
}

#[test]
fn an_entry_that_its_run_contradicts_is_found() {
    let whole = made();
    let (leaf, _, entry) = run(&whole);
    let patch = |offset: usize, byte: u8| {
        after(|disk| {
            forge(disk, leaf, Magic::Btree, |block| block.0[4096 - 248 + offset] = byte);
        })
    };
    let extent = entry.extent();
    let expected = finding(Id::Manifest, extent.start(), extent.len(), Corruption::Mismatch);
    assert_eq!(patch(16, 3), [expected], "items");
    assert_eq!(patch(20, 1), [expected], "tombstones");
    assert_eq!(patch(24, 0), [finding(Id::Record, leaf, 1, Corruption::Value)], "item blocks");
}

#[test]
fn an_interrupted_mkfs_leaves_no_volume_or_a_clean_one() {
    let mut old = Disk::default();
    let mut first = recipe();
    first.identity.fsid = 5;
    first.identity.crc_seed = 6;
    make(&mut old, &first, 3).unwrap();
    old.steps.clear();
    for start in [Disk::default(), old] {
        let mut disk = start.clone();
        make(&mut disk, &recipe(), 8).unwrap();
        let (mut olds, mut news) = (0, 0);
        let (mut now, mut flushed) = (start.clone(), start);
        let steps = core::mem::take(&mut disk.steps);
        for step in &steps {
            // All that was written is there; or, of what was not flushed, only the last write.
            let mut only = flushed.clone();
            match step {
                Step::Write(blkno, block) => {
                    now.blocks.insert(*blkno, (**block).clone());
                    only.blocks.insert(*blkno, (**block).clone());
                }
                Step::Flush => flushed = now.clone(),
            }
            for cut in [&mut now, &mut only, &mut flushed] {
                let Some(volume) = found(cut) else { continue };
                assert_eq!(check(cut, &volume).0, []);
                match volume.fsid() {
                    5 => olds += 1,
                    _ => news += 1,
                }
            }
        }
        // The old one is found only until the first flush, the new one from the last write on.
        assert!(olds <= 2 && news >= 4, "{olds} {news}");
    }
}

#[test]
fn no_damage_makes_it_panic_or_loop() {
    let whole = made();
    let volume = found(&whole).unwrap();
    let mut seed = 1u64;
    let mut random = |end: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % end
    };
    let ours: Vec<BlockNo> =
        whole.blocks.keys().map(|at| BlockNo(*at)).filter(|at| at.0 >= 256 || at.0 == 65).collect();
    let mut wrong = 0;
    for _ in 0..600 {
        let mut disk = whole.clone();
        for _ in 0..=random(3) {
            let blkno = ours[random(ours.len() as u64) as usize];
            let (byte, value) = (32 + random(4064) as usize, random(256) as u8);
            let near = random(2) == 0;
            let byte = if near { 32 + byte % 300 } else { byte };
            let magic = match &disk.block(blkno).0[4..8] {
                b"ORrt" => Magic::Root,
                b"ORbt" => Magic::Btree,
                b"ORri" => Magic::RunItems,
                b"ORrx" => Magic::RunIndex,
                b"ORrf" => Magic::RunFilter,
                _ => continue,
            };
            forge(&mut disk, blkno, magic, |block| block.0[byte] = value);
        }
        wrong += usize::from(!check(&mut disk, &volume).0.is_empty());
    }
    // Most bytes of a nearly empty volume mean nothing.
    assert!(wrong > 100, "only {wrong} were noticed");
}

#[test]
fn the_numbers_of_the_trees_are_those_of_the_store() {
    use crate::txn::trees::{CLIENTS, FREED, LOANS, MANIFEST, OPEN_SEQS, QUARANTINE};
    let kinds = [
        (TreeName::FreeByBlock, crate::alloc::BY_BLOCK),
        (TreeName::FreeByLength, crate::alloc::BY_LENGTH),
        (TreeName::Manifest, MANIFEST),
        (TreeName::Clients, CLIENTS),
        (TreeName::Loans, LOANS),
        (TreeName::OpenSeqs, OPEN_SEQS),
        (TreeName::Freed, FREED),
        (TreeName::Quarantine, QUARANTINE),
    ];
    for (name, kind) in kinds {
        assert_eq!(name.place(&RootBlock::empty()).0, kind.0);
    }
}

#[test]
fn a_spare_of_another_generation_is_found() {
    let disk = made();
    let volume = found(&disk).unwrap();
    let spare = spare_blkno(BLOCKS);
    let other = after(|disk| {
        let label = [b'x'; 64];
        let other = Super::new(&Identity { label, ..recipe().identity }).unwrap();
        other.seal(disk.blocks.get_mut(&spare.0).unwrap(), spare);
    });
    assert_eq!(other, [finding(Id::Spare, spare, 1, Corruption::Mismatch)]);
    assert!(Extent::new(spare, 1).end().0 == volume.blocks());
}

/// Checks a volume of which a block is damaged as soon as its root was read, while a newer root of
/// this term is written. `pin` is what is said of a pin, if there is one.
fn check_changing(term: Term, pin: Option<bool>) -> (u32, u32, Vec<Finding>) {
    let mut disk = made();
    let volume = found(&disk).unwrap();
    let mut check = carve(&volume);
    let (mut attempt, mut told, mut doubts) = (0, false, 0);
    let mut findings = Vec::new();
    while !check.is_done() {
        while check.step(Instant(0)) == More::Yes {}
        if attempt != check.attempt() {
            (attempt, told) = (check.attempt(), false);
            findings.clear();
        }
        if let Some(root) = check.root().copied().filter(|_| !told) {
            told = true;
            if pin.is_some() {
                check.pin();
            }
            if attempt == 1 {
                let fields = RootBlock { term: term.into(), ..*root.fields() };
                let mut block = Block::ZERO;
                let next = root.commit().next();
                let at = Root::seal(&fields, &volume.volume(), next, &mut block);
                let damaged = run(&disk).2.extent().start();
                flip(&mut disk, damaged, 100);
                disk.blocks.insert(at.0, block);
            }
        }
        findings.extend(core::iter::from_fn(|| check.poll_finding()));
        if check.doubts_pin() {
            doubts += 1;
            check.pin_held(pin.unwrap());
        }
        while let Some(Action::Block(BlockRequest { tag, mut op })) = check.poll_action() {
            let BlockOp::Read(blkno, block) = &mut op else { panic!("a check writes") };
            block.0 = disk.block(*blkno).0;
            check.handle(Instant(0), Event::Completed(Completion { tag, op, result: Ok(()) }));
        }
    }
    (attempt, doubts, findings)
}

#[test]
fn damage_under_a_pin_that_held_is_damage() {
    let (old, new) = (Term::NONE, Term::new(3, 1));
    // The damage stays, and is found when there is no newer root any more.
    let told = |(attempts, doubts, findings): (u32, u32, Vec<Finding>)| {
        assert!(findings.iter().any(|finding| finding.id == Id::RunItems), "{findings:?}");
        (attempts, doubts)
    };
    assert_eq!(told(check_changing(old, None)), (2, 0), "no pin");
    assert_eq!(told(check_changing(old, Some(true))), (1, 1), "it held");
    assert_eq!(told(check_changing(old, Some(false))), (2, 1), "it was lost");
    assert_eq!(told(check_changing(new, Some(true))), (2, 0), "its term is over");
}

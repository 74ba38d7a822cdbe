//! What `check` finds: for each of its findings a volume that has just that, and none on a volume
//! that is whole.
#![allow(clippy::unwrap_used, reason = "tests")]

use outrider_core::check::{ATTEMPTS, Holder, Id};
use outrider_core::format::block::{self, Magic, header};
use outrider_core::format::item::{FileKind, Mapping};
use outrider_core::format::key::{FileBlock, Key, KeyBytes};
use outrider_core::format::layout::{QUORUM_BLKNO, ROOT_BLKNO, SUPER_BLKNO, spare_blkno};
use outrider_core::format::records::{
    BlockKey, ClientKey, ClientPart, ClientState, Length, LengthKey, LoanKey, ManifestEntry,
    ManifestKey, Pool,
};
use outrider_core::format::root::{Extent, RootBlock};
use outrider_core::format::{ClientId, Ino, Seq};
use outrider_hal::{Block, BlockNo};
use outrider_tests::image::Image;
use outrider_tests::planted::{Checks, Draft, Layout, Report, Tree, VOLUME_BLOCKS, root_at};
use std::collections::BTreeSet;
use std::rc::Rc;
use zerocopy::{FromBytes, IntoBytes};

/// What is made wrong.
enum Plant {
    /// Items, or what clients have.
    Draft(fn(&mut Draft)),
    /// Records, the root, or blocks of runs.
    Layout(fn(&mut Layout)),
    /// Bytes on the device.
    Image(fn(&mut Image)),
}

/// What is found, and what else must be found along with it.
struct Case {
    id: Id,
    implied: &'static [Id],
    plant: Plant,
}

fn draft(id: Id, implied: &'static [Id], plant: fn(&mut Draft)) -> Case {
    Case { id, implied, plant: Plant::Draft(plant) }
}

fn layout(id: Id, implied: &'static [Id], plant: fn(&mut Layout)) -> Case {
    Case { id, implied, plant: Plant::Layout(plant) }
}

fn image(id: Id, implied: &'static [Id], plant: fn(&mut Image)) -> Case {
    Case { id, implied, plant: Plant::Image(plant) }
}

fn flip(image: &mut Image, blkno: BlockNo, byte: usize) {
    let mut block = (**image.block(blkno.0)).clone();
    block.0[byte] ^= 4;
    image.write(blkno.0, Rc::new(block));
}

/// Removes a key of the draft's items.
fn remove(draft: &mut Draft, key: Key) {
    assert!(draft.items.remove(&key).is_some(), "{key}");
}

/// Changes a sealed block of a run, and seals it again.
fn reseal(layout: &mut Layout, blkno: u64, magic: Magic, change: impl FnOnce(&mut Block)) {
    let volume = layout.volume.volume();
    let block = layout.blocks.get_mut(&blkno).unwrap();
    let seq = header(block).seq.get();
    change(block);
    block::seal(block, &volume, magic, BlockNo(blkno), seq);
}

/// The runs in the manifest.
fn runs(layout: &mut Layout) -> Vec<(ManifestKey, ManifestEntry)> {
    let records = layout.of_tree(Tree::Manifest).iter();
    let parsed = records.map(|(key, value)| {
        (ManifestKey::read_from_bytes(key).unwrap(), ManifestEntry::read_from_bytes(value).unwrap())
    });
    parsed.collect()
}

fn replace_run(layout: &mut Layout, at: usize, change: fn(&mut ManifestKey, &mut ManifestEntry)) {
    let (mut key, mut entry) = runs(layout)[at];
    layout.of_tree(Tree::Manifest).remove(key.as_bytes());
    change(&mut key, &mut entry);
    layout.put(Tree::Manifest, key.as_bytes(), entry.as_bytes());
}

/// Moves an entry of the draft to another directory, by its items.
fn move_entry(draft: &mut Draft, from: u64, pos: u64, name: &str, to: u64) {
    let hash = draft.hash(name);
    let moved = Ino(draft.items.keys().find_map(|key| backref_of(key, from, pos)).unwrap());
    for key in [
        Key::dirent(Ino(from), hash, pos),
        Key::readdir(Ino(from), pos),
        Key::backref(moved, Ino(from), pos),
    ] {
        remove(draft, key);
    }
    let kind = draft.get(moved.0).kind;
    let is_directory = u32::from(kind == FileKind::Directory);
    draft.change(from, |dir| {
        dir.size -= name.len() as u64;
        dir.nlink -= is_directory;
    });
    let pos = draft.get(to).next_readdir_pos;
    draft.entry(to, pos, name, hash, moved.0, kind);
    draft.change(to, |dir| {
        dir.size += name.len() as u64;
        dir.nlink += is_directory;
        dir.next_readdir_pos += 1;
    });
}

fn backref_of(key: &Key, dir: u64, pos: u64) -> Option<u64> {
    let ino = Ino(key.first);
    (*key == Key::backref(ino, Ino(dir), pos)).then_some(key.first)
}

/// Blocks that are in nothing but the free trees.
const FREE: u64 = 9000;

fn cases() -> Vec<Case> {
    let mut cases = blocks();
    cases.extend(trees());
    cases.extend(entries());
    cases.extend(inodes());
    cases
}

/// What is wrong with single blocks.
fn blocks() -> Vec<Case> {
    vec![
        image(Id::Super, &[], |image| flip(image, SUPER_BLKNO, 100)),
        image(Id::Spare, &[], |image| flip(image, spare_blkno(VOLUME_BLOCKS), 100)),
        image(Id::Quorum, &[], |image| flip(image, QUORUM_BLKNO.plus(3), 100)),
        image(Id::Ring, &[], |image| flip(image, ROOT_BLKNO.plus(20), 100)),
        image(Id::Root, &[Id::Ring], |image| flip(image, root_at(), 100)),
        image(Id::Node, &[], |image| flip(image, Tree::Loans.leaf(), 4000)),
        image(Id::RunItems, &[], |image| flip(image, BlockNo(512), 60)),
        image(Id::RunIndex, &[], |image| {
            let at = last_of_run(image, *b"ORrx");
            flip(image, at, 60);
        }),
        image(Id::RunFilter, &[], |image| {
            let at = last_of_run(image, *b"ORrf");
            flip(image, at, 60);
        }),
        layout(Id::RunFilter, &[], |layout| {
            let (_, entry) = runs(layout)[1];
            let at = entry.extent().end().0 - 1;
            reseal(layout, at, Magic::RunFilter, |block| block.0[40..].fill(0));
        }),
        layout(Id::RunIndex, &[], |layout| {
            let (_, entry) = runs(layout)[1];
            let at = entry.blkno.get() + u64::from(entry.item_blocks.get());
            reseal(layout, at, Magic::RunIndex, |block| block.0[40 + 26] ^= 1);
        }),
        draft(Id::Item, &[Id::DirSize, Id::Backref, Id::DirentTwin], |draft| {
            // A position that isn't that of the key.
            let value = draft.items.get_mut(&Key::readdir(Ino(1), 3)).unwrap();
            value[16] ^= 1;
        }),
    ]
}

/// The last block of a kind among the runs.
fn last_of_run(image: &Image, magic: [u8; 4]) -> BlockNo {
    let is_so = |at: &u64| image.block(*at).0[4..8] == magic;
    BlockNo((512..700).rev().find(is_so).unwrap())
}

/// What is wrong with records of trees, and with the root.
fn trees() -> Vec<Case> {
    vec![
        layout(Id::Record, &[], |layout| layout.put(Tree::Loans, &[0; 11], &[])),
        layout(Id::FreeTrees, &[], |layout| {
            let free = Extent::new(BlockNo(FREE), 1);
            layout.put(Tree::FreeByLength, LengthKey::of(&free).as_bytes(), &[]);
        }),
        layout(Id::FreeBlocks, &[], |layout| layout.root.free_blocks += 1),
        layout(Id::Levels, &[], |layout| layout.root.level_runs[2] += 1),
        layout(Id::LevelOrder, &[Id::Levels], |layout| {
            // What was in level 0 is in level 1.
            while let Some(at) = runs(layout).iter().position(|(key, _)| key.level == 0) {
                replace_run(layout, at, |key, _| key.level = 1);
            }
        }),
        layout(Id::LevelOrder, &[], |layout| {
            // All runs of level 0 have one age, and some overlap.
            let ages: Vec<(u8, u64)> =
                runs(layout).iter().map(|(key, _)| (key.level, key.order.get())).collect();
            for (at, age) in ages.iter().enumerate() {
                if *age == (0, 499) {
                    replace_run(layout, at, |key, _| key.order = 500.into());
                }
            }
            assert!(ages.contains(&(0, 499)) && ages.contains(&(0, 500)));
        }),
        layout(Id::Next, &[], |layout| layout.root.next_client = 3.into()),
        layout(Id::Next, &[], |layout| layout.root.next_ino = 2000.into()),
        layout(Id::Next, &[], |layout| layout.root.next_seq = 201.into()),
        layout(Id::Next, &[], |layout| layout.root.next_run = 45.into()),
        draft(Id::Number, &[], |draft| {
            let lent = (Pool::Inodes, Extent::new(BlockNo(1100), 10));
            draft.clients[2].loans.insert(0, lent);
        }),
        draft(Id::Number, &[], |draft| {
            let lent = (Pool::Inodes, Extent::new(BlockNo(7), 1));
            draft.clients[2].loans.insert(0, lent);
        }),
        draft(Id::Number, &[], |draft| {
            draft.clients[2].loans.push((Pool::RunIds, Extent::new(BlockNo(11), 1)));
        }),
        draft(Id::Client, &[], |draft| {
            draft.clients.pop();
            draft.clients[1].number = 3;
        }),
        layout(Id::Client, &[], |layout| {
            let key = LoanKey { client: 77.into(), pool: 3, part: 0.into() };
            layout.put(Tree::Loans, key.as_bytes(), Extent::new(BlockNo(3000), 1).as_bytes());
        }),
        layout(Id::Client, &[], |layout| {
            let key = ClientKey::new(ClientId(0), ClientPart::LoanAnswer);
            layout.put(Tree::Clients, key.as_bytes(), &[]);
        }),
        draft(Id::OpenSeq, &[], |draft| draft.clients[0].open_seqs.clear()),
        draft(Id::OpenSeq, &[], |draft| draft.clients[0].open_seqs.push(202)),
        draft(Id::OpenSeq, &[], |draft| {
            draft.clients[0].record.state = ClientState::Evicted as u8;
        }),
        draft(Id::Answer, &[], |draft| draft.clients[0].answers[0] = false),
        draft(Id::Answer, &[], |draft| draft.clients[1].answers[1] = true),
        layout(Id::Lists, &[Id::Leak], |layout| {
            let key = LoanKey { client: 1.into(), pool: 1, part: 0.into() };
            layout.of_tree(Tree::Loans).remove(key.as_bytes()).unwrap();
        }),
        layout(Id::Manifest, &[], |layout| {
            let last = runs(layout).len() - 1;
            replace_run(layout, last, |_, entry| entry.tombstones += 1);
        }),
        layout(Id::Double, &[], |layout| {
            layout.root.takeover[7] = 1000.into();
            assert!(layout.blocks.keys().all(|at| *at < 1000));
        }),
        draft(Id::Double, &[Id::FileBlocks], |draft| {
            draft.extent(7, 0, 1, Mapping::Data(BlockNo(4097)));
            draft.change(7, |inode| inode.size = 4096);
        }),
        layout(Id::Leak, &[], |layout| {
            let whole = layout.of_tree(Tree::FreeByBlock).keys().next_back().unwrap().clone();
            let old = Length::read_from_bytes(&layout.of_tree(Tree::FreeByBlock)[&whole]).unwrap();
            let last = BlockKey::read_from_bytes(&whole).unwrap().last.get();
            let count = old.count.get();
            let lengths = layout.of_tree(Tree::FreeByLength);
            let old = LengthKey { blocks: count.into(), last: last.into() };
            lengths.remove(old.as_bytes()).unwrap();
            let new = LengthKey { blocks: (count - 4).into(), last: last.into() };
            lengths.insert(new.as_bytes().to_vec(), Vec::new());
            let new = Length::new(count - 4);
            layout.of_tree(Tree::FreeByBlock).insert(whole, new.as_bytes().to_vec());
            layout.root.free_blocks -= 4;
        }),
    ]
}

/// What is wrong with names.
fn entries() -> Vec<Case> {
    vec![
        draft(Id::DirentTwin, &[], |draft| {
            let hash = draft.hash("other");
            remove(draft, Key::dirent(Ino(1), hash, 4));
        }),
        draft(Id::DirentTwin, &[], |draft| {
            // Another spelling, which has the right hash.
            let hash = draft.hash("other");
            remove(draft, Key::dirent(Ino(1), hash, 4));
            let mut value = draft.items[&Key::readdir(Ino(1), 4)].clone();
            let hash = draft.hash("OTHER");
            value[25..].copy_from_slice(b"OTHER");
            value[8..16].copy_from_slice(&hash.to_le_bytes());
            draft.items.insert(Key::dirent(Ino(1), hash, 4), value);
        }),
        draft(Id::Backref, &[Id::LinkCount], |draft| {
            remove(draft, Key::backref(Ino(3), Ino(1), 4));
        }),
        draft(Id::Backref, &[Id::DirentTwin, Id::DirSize], |draft| {
            remove(draft, Key::readdir(Ino(1), 4));
        }),
        draft(Id::DirentHash, &[], |draft| {
            let hash = draft.hash("other");
            remove(draft, Key::dirent(Ino(1), hash, 4));
            draft.entry(1, 4, "other", hash ^ 1, 3, FileKind::Regular);
        }),
        draft(Id::DirentName, &[], |draft| draft.name(1, "pipe", 3)),
        draft(Id::DirentKind, &[], |draft| {
            let hash = draft.hash("pipe");
            draft.entry(1, 6, "pipe", hash, 5, FileKind::Socket);
        }),
        draft(Id::DirSize, &[], |draft| draft.change(1, |inode| inode.size += 3)),
        draft(Id::DirPos, &[], |draft| draft.change(1, |inode| inode.next_readdir_pos = 6)),
        draft(Id::DirRemoved, &[Id::DirSize], |draft| {
            let hash = draft.hash("x");
            draft.entry(10, 2, "x", hash, 3, FileKind::Regular);
            draft.change(10, |inode| inode.next_readdir_pos = 3);
            draft.change(3, |inode| inode.nlink += 1);
        }),
        draft(Id::Parent, &[], |draft| draft.name(2, "again", 6)),
        draft(Id::Parent, &[], |draft| {
            // A directory that nobody names.
            draft.inode(12, FileKind::Directory);
        }),
        draft(Id::LinkCount, &[], |draft| draft.change(3, |inode| inode.nlink = 7)),
        draft(Id::LinkCount, &[], |draft| draft.change(2, |inode| inode.nlink = 3)),
        draft(Id::DirLoop, &[], |draft| move_entry(draft, 1, 2, "a", 6)),
        draft(Id::RootDirectory, &[Id::InodeNone, Id::MetaIndex], |draft| {
            remove(draft, Key::inode(Ino(1)));
        }),
        draft(Id::RootDirectory, &[], |draft| draft.name(2, "root", 1)),
        draft(Id::Unnamed, &[Id::MetaIndex], |draft| {
            for ino in 0..9000 {
                draft.items.insert(Key::meta_seq(Seq(100), Ino(20 + ino)), Vec::new());
            }
        }),
    ]
}

/// What is wrong with inodes and what belongs to them.
fn inodes() -> Vec<Case> {
    vec![
        draft(Id::InodeNone, &[Id::MetaIndex], |draft| remove(draft, Key::inode(Ino(5)))),
        draft(Id::InodeKind, &[Id::Double], |draft| {
            draft.extent(5, 0, 1, Mapping::Data(BlockNo(4096)));
        }),
        draft(Id::InodeSize, &[], |draft| draft.change(5, |inode| inode.size = 1)),
        draft(Id::MetaIndex, &[], |draft| remove(draft, Key::meta_seq(Seq(53), Ino(3)))),
        draft(Id::MetaIndex, &[], |draft| {
            draft.items.insert(Key::meta_seq(Seq(99), Ino(3)), Vec::new());
        }),
        draft(Id::DataIndex, &[], |draft| remove(draft, Key::data_seq(Seq(83), Ino(3)))),
        draft(Id::DataIndex, &[], |draft| {
            draft.items.insert(Key::data_seq(Seq(85), Ino(5)), Vec::new());
        }),
        draft(Id::Orphan, &[], |draft| remove(draft, Key::orphan(Ino(9)))),
        draft(Id::Orphan, &[], |draft| {
            draft.items.insert(Key::orphan(Ino(3)), Vec::new());
        }),
        draft(Id::XattrParts, &[], |draft| {
            let hash = draft.hash("user.long");
            remove(draft, Key::xattr(Ino(7), hash, 1, 1));
        }),
        draft(Id::XattrParts, &[], |draft| {
            let hash = draft.hash("user.short");
            draft.items.insert(Key::xattr(Ino(7), hash, 0, 1), vec![1]);
        }),
        draft(Id::XattrHash, &[], |draft| {
            let hash = draft.hash("user.short");
            let value = draft.items.remove(&Key::xattr(Ino(7), hash, 0, 0)).unwrap();
            draft.items.insert(Key::xattr(Ino(7), hash ^ 1, 0, 0), value);
        }),
        draft(Id::XattrName, &[], |draft| draft.attribute(7, "user.short", b"again")),
        draft(Id::XattrNumber, &[], |draft| draft.change(7, |inode| inode.next_xattr_id = 1)),
        draft(Id::Symlink, &[], |draft| draft.change(4, |inode| inode.size = 1201)),
        draft(Id::Symlink, &[], |draft| remove(draft, Key::symlink(Ino(4), 2))),
        draft(Id::ExtentOrder, &[Id::FileBlocks], |draft| {
            draft.extent(3, 4, 3, Mapping::Data(BlockNo(FREE)));
            assert!(draft.items.contains_key(&Key::extent(Ino(3), FileBlock(6))));
        }),
        draft(Id::ExtentEnd, &[], |draft| draft.change(3, |inode| inode.size = 22 * 4096)),
        draft(Id::FileBlocks, &[], |draft| draft.change(3, |inode| inode.online_blocks = 9)),
        draft(Id::FileBlocks, &[], |draft| draft.change(3, |inode| inode.offline_blocks = 9)),
    ]
}

fn planted(plant: &Plant) -> (Layout, Image) {
    let mut draft = Draft::whole();
    if let Plant::Draft(plant) = plant {
        plant(&mut draft);
    }
    let mut layout = draft.lay_out();
    if let Plant::Layout(plant) = plant {
        plant(&mut layout);
    }
    let mut image = layout.image();
    if let Plant::Image(plant) = plant {
        plant(&mut image);
    }
    (layout, image)
}

fn names(ids: impl IntoIterator<Item = Id>) -> BTreeSet<&'static str> {
    ids.into_iter().map(Id::name).collect()
}

fn found(report: &Report) -> BTreeSet<&'static str> {
    names(report.findings.iter().map(|finding| finding.id))
}

#[test]
fn a_volume_that_is_whole_is_clean() {
    let layout = Draft::whole().lay_out();
    let mut checks = Checks::new(&layout.volume);
    let report = checks.check(&layout.image());
    assert_eq!(report.findings, []);
    assert!(report.are_items_compared && !report.is_busy && report.attempts == 1);
    let counts = report.counts;
    assert_eq!((counts.inodes, counts.directories, counts.nodes), (11, 5, 8));
    assert_eq!(counts.items_newest, Draft::whole().items.len() as u64);
    assert!(counts.runs >= 8 && counts.items > counts.items_newest);
    assert_eq!(counts.blocks.iter().sum::<u64>(), VOLUME_BLOCKS - 256 - 1);
    assert!(Holder::ALL.iter().all(|holder| counts.blocks[*holder as usize] > 0));
}

#[test]
fn each_finding_is_found_where_it_was_planted_and_nothing_else() {
    let mut checks = Checks::new(&Draft::whole().volume);
    let mut wrong = Vec::new();
    for (at, case) in cases().iter().enumerate() {
        let report = checks.check(&planted(&case.plant).1);
        let expected = names(case.implied.iter().copied().chain([case.id]));
        if found(&report) != expected || report.is_busy {
            wrong.push(format!("case {at}: {expected:?} expected, {:?}", report.findings));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_finding_is_without_a_case() {
    let planted: BTreeSet<Id> = cases().iter().map(|case| case.id).collect();
    assert_eq!(names(planted), names(Id::ALL.iter().copied()));
    assert_eq!(names(Id::ALL.iter().copied()).len(), Id::ALL.len(), "names are all different");
}

#[test]
fn the_document_has_every_finding_and_no_other() {
    let document = include_str!("../../core/CHECK.md");
    let rows = document.lines().filter_map(|line| line.strip_prefix("| E-")?.split_once(" |"));
    let documented: Vec<String> = rows.map(|(name, _)| format!("E-{name}")).collect();
    let names: Vec<&str> = Id::ALL.iter().map(|id| id.name()).collect();
    assert_eq!(documented, names);
}

#[test]
fn findings_have_the_address_and_the_key() {
    let mut checks = Checks::new(&Draft::whole().volume);
    for case in entries().into_iter().chain(inodes()) {
        let (layout, image) = planted(&case.plant);
        for finding in checks.check(&image).findings.iter().filter(|of| of.id == case.id) {
            let (Some(key), id) = (finding.key, finding.id.name()) else {
                assert_eq!(finding.id, Id::Unnamed);
                continue;
            };
            if finding.blkno == BlockNo(0) {
                assert_eq!((finding.id, key), (Id::RootDirectory, Key::inode(Ino(1))), "{id}");
                continue;
            }
            // The item is in that block.
            let block = &layout.blocks[&finding.blkno.0];
            let bytes = KeyBytes::from(key);
            let mut places = block.0.windows(27);
            assert!(places.any(|bytes_there| bytes_there == bytes.as_bytes()), "{id} {key}");
        }
    }
}

#[test]
fn what_is_unreadable_hides_only_what_depends_on_it() {
    let mut checks = Checks::new(&Draft::whole().volume);
    let mut draft = Draft::whole();
    draft.change(3, |inode| inode.nlink = 7);
    draft.clients[0].open_seqs.clear();
    let mut image = draft.lay_out().image();
    flip(&mut image, BlockNo(512), 60);
    let report = checks.check(&image);
    assert_eq!(found(&report), names([Id::RunItems, Id::OpenSeq]));
    assert!(!report.are_items_compared);
}

#[test]
fn a_volume_that_changes_meanwhile_is_checked_again_or_said_to_be_busy() {
    let layout = Draft::whole().lay_out();
    let mut checks = Checks::new(&layout.volume);
    let whole = layout.image();
    let mut damaged = whole.clone();
    flip(&mut damaged, BlockNo(512), 60);
    for changes in [1, ATTEMPTS - 1, ATTEMPTS] {
        // The first so many attempts meet a block that is used again, and find a newer root.
        let (mut ring, mut reads) = (0, 0);
        let report = checks.check_with(|blkno| {
            ring += u32::from(blkno == ROOT_BLKNO);
            reads += u32::from(blkno == BlockNo(512));
            // Each attempt reads the ring when it begins, and at its end if it failed.
            let attempt = ring.div_ceil(2);
            if blkno == root_at() {
                return newer(&layout, u64::from(ring));
            }
            let image = if attempt <= changes { &damaged } else { &whole };
            image.block(blkno.0).clone()
        });
        assert_eq!(report.is_busy, changes == ATTEMPTS, "{changes}");
        assert_eq!(report.attempts, ATTEMPTS.min(changes + 1));
        if !report.is_busy {
            assert_eq!(report.findings, []);
        }
        assert!(reads >= ATTEMPTS.min(changes + 1));
    }
    // If nothing is newer, it is damage.
    let report = checks.check(&damaged);
    assert_eq!((found(&report), report.attempts), (names([Id::RunItems]), 1));
}

/// The root, a few commits later: with nothing changed but its number.
fn newer(layout: &Layout, times: u64) -> Rc<Block> {
    let mut block = (**layout.image().block(root_at().0)).clone();
    let seq = header(&block).seq.get() + 2 * times;
    assert!(RootBlock::ref_from_bytes(&block.0).is_ok());
    block::seal(&mut block, &layout.volume.volume(), Magic::Root, root_at(), seq);
    Rc::new(block)
}

#[test]
fn no_change_of_an_item_or_record_makes_it_panic_or_loop() {
    let mut checks = Checks::new(&Draft::whole().volume);
    let whole = Draft::whole();
    let mut noticed = 0;
    let mut seed = 5u64;
    let mut random = |end: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % end
    };
    let keys: Vec<Key> = whole.items.keys().copied().collect();
    for _ in 0..400 {
        let mut draft = whole.clone();
        let key = keys[random(keys.len())];
        match random(4) {
            0 => drop(draft.items.remove(&key)),
            1 => {
                let from = draft.items[&keys[random(keys.len())]].clone();
                draft.items.insert(key, from);
            }
            _ => {
                let value = draft.items.get_mut(&key).unwrap();
                if let Some(at) = value.len().checked_sub(1).map(|last| random(last + 1)) {
                    value[at] = value[at].wrapping_add(1 + random(255) as u8);
                }
            }
        }
        let mut layout = draft.lay_out();
        if random(4) == 0 {
            let tree = Tree::ALL[random(8)];
            let records = layout.of_tree(tree);
            let key = records.keys().nth(random(records.len())).unwrap().clone();
            let mut value = records.remove(&key).unwrap();
            if let Some(last) = value.len().checked_sub(1) {
                value[random(last + 1)] ^= 1 << random(8);
                records.insert(key, value);
            }
        }
        let report = checks.check(&layout.image());
        assert!(!report.is_busy);
        noticed += u32::from(!report.findings.is_empty());
    }
    // What is left are times, owners and permissions.
    assert!(noticed > 250, "{noticed}");
}

//! Damage to every structure of a volume: it is found, with its address and with what is wrong, and
//! nobody takes it for what was written.
//!
//! The volume has all kinds of files and all trees, and is in use when its power fails. Who may
//! meet the damage is the check of the volume, and the server and the mount that start afterwards.
//! These two needn't meet it: what they don't read harms nobody, and of the super block and the
//! quorum blocks there are others to go by. Without the newest root nobody serves, until an
//! operator says that what it made durable is to be forgotten.
#![allow(clippy::unwrap_used)] // A test that can't go on has failed.

use outrider_core::check::{Finding, Id, Wrong};
use outrider_core::client::op::{RenameMode, XattrMode};
use outrider_core::error::Corruption;
use outrider_core::format::block::{Magic, Promise, header, open, seal};
use outrider_core::format::item::FileKind;
use outrider_core::format::layout::{QUORUM_BLKNO, SUPER_BLKNO};
use outrider_core::format::quorum::{Ballot, Slot, parse};
use outrider_core::format::root::RootBlock;
use outrider_core::format::super_block::{Super, SuperError, Unverified};
use outrider_core::format::{BLOCK_BYTES, Block, CommitNo, Term};
use outrider_core::quorum::{Refusal, Role};
use outrider_core::server::Server;
use outrider_core::tune::{forget_commits, settle};
use outrider_tests::crash::parts::{Part, Place, parts};
use outrider_tests::crash::recovery::{check, tree as files};
use outrider_tests::crash::volume::{Cluster, SPINS, Tree, made};
use outrider_tests::image::Image;
use outrider_tests::model::User;
use outrider_tests::model::script::{OpenArg, Step, Subject};
use outrider_tests::model::walk::Walk;
use outrider_tests::trace::HostId;
use outrider_tests::world::World;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;
use zerocopy::FromBytes;

/// A volume that lost power while it was in use.
struct Sample {
    image: Image,
    volume: Super,
    places: Vec<Place>,
    /// Its files.
    tree: Tree,
}

/// Files of all types.
fn populate(mount: &mut Walk<Cluster>, number: usize) {
    let names = ["file", "fifo", "link", "dir", "other"];
    let [file, fifo, link, dir, other] = names.map(|name| vec!["top", name]);
    let how = OpenArg { read: true, write: true, create: None, truncate: false, append: false };
    let create = OpenArg { create: Some(0o644), ..how };
    let name = ["user.one", "user.two"][number % 2];
    let calls = [
        Step::Mkdir { path: vec!["top"], mode: 0o755 },
        Step::Open { slot: 0, path: file.clone(), how: create },
        Step::Write { slot: 0, at: 5000 * number as u64, len: 9000, byte: 7 + number as u8 },
        Step::Close { slot: 0 },
        Step::Mknod { path: fifo, kind: FileKind::Fifo, mode: 0o600 },
        Step::Symlink { target: "somewhere/else", path: link },
        Step::Link { path: file.clone(), to: other.clone() },
        Step::Mkdir { path: dir.clone(), mode: 0o700 },
        Step::Setxattr { path: file.clone(), name, value: vec![9; 900], mode: XattrMode::Any },
        Step::Rename { path: other, to: vec!["top", "dir", "x"], mode: RenameMode::Replace },
        // In use, and without a name when power fails.
        Step::Open { slot: 1, path: vec!["gone"], how: create },
        Step::Write { slot: 1, at: 0, len: 100_000, byte: 5 },
        Step::Unlink { path: vec!["gone"] },
    ];
    for call in calls {
        // What is there already stays.
        let _ = mount.run(&User::ROOT, &call);
    }
}

fn sample() -> Sample {
    let (mut image, volume) = made();
    for power in 1..4 {
        let cluster = Cluster::new(image, volume, power);
        cluster.mount().unwrap();
        let mut mount = Walk::over(cluster.clone());
        // The mount that crashed before is evicted meanwhile, and what it was lent quarantined.
        cluster.world().borrow_mut().run_until(Duration::from_secs(8), |_| false).unwrap();
        for number in 0..4 {
            populate(&mut mount, number + usize::from(power));
            cluster.idle().unwrap();
        }
        cluster.rest().unwrap();
        image = cluster.world().borrow().disk().image();
    }
    assert_eq!(check(&image, &volume), []);
    let tree = files(image.clone(), &volume, 9).unwrap();
    assert!(tree.len() > 6, "{tree:?}");
    let places = parts(&image, &volume);
    Sample { image, volume, places, tree }
}

/// Stops the voter of slot 0, and has it say that this commit was confirmed.
fn say_confirmed(image: &mut Image, volume: &Super, confirmed: Option<(Term, CommitNo)>) {
    let (slot, key) = (Slot::new(0).unwrap(), volume.volume());
    let blkno = slot.blkno(QUORUM_BLKNO);
    let said = parse(image.block(blkno.0), &key, QUORUM_BLKNO, slot);
    let last = said.unwrap().unwrap();
    let stopped = settle(slot, said, last.host, &[]).unwrap().unwrap_or(last);
    let ballot = match confirmed {
        Some(confirmed) => {
            let highest_round = stopped.highest_round.max(confirmed.0.round());
            Ballot { confirmed, highest_round, ..stopped }
        }
        None => forget_commits(stopped),
    };
    let mut block = Block::ZERO;
    ballot.emit(&mut block, &key, QUORUM_BLKNO);
    image.write(blkno.0, Rc::new(block));
}

/// Why the server of a cluster on this image takes no part, if it doesn't within a minute.
fn refusal(image: &Image, volume: &Super) -> Option<Refusal> {
    let cluster = Cluster::new(image.clone(), *volume, 9);
    let mut refusal = None;
    cluster
        .world()
        .borrow_mut()
        .run_until(Duration::from_secs(60), |world| {
            if let Some(Role::Refused(why)) = role(world) {
                refusal = Some(why);
            }
            refusal.is_some()
        })
        .unwrap();
    refusal
}

fn role(world: &World) -> Option<Role> {
    world.guest::<Server<'static>>(HostId(0)).map(|server| server.voter().role())
}

impl Sample {
    /// One place of each part.
    fn one_of_each(&self) -> Vec<Place> {
        let all: BTreeMap<Part, Place> =
            self.places.iter().rev().map(|place| (place.part, *place)).collect();
        all.into_values().collect()
    }

    fn damaged(&self, place: &Place, change: impl FnOnce(&mut Block)) -> Image {
        let mut image = self.image.clone();
        let mut block = Block(image.block(place.blkno.0).0);
        change(&mut block);
        image.write(place.blkno.0, Rc::new(block));
        image
    }

    /// The check says this of the block, and nothing that isn't so.
    fn is_found(&self, image: &Image, place: &Place, what: Option<Corruption>) -> bool {
        let says = |finding: &Finding| {
            let Wrong::Corrupt(wrong) = finding.wrong else { return false };
            let first = matches!(place.part, Part::Super | Part::Spare);
            finding.blkno == place.blkno && (first || what.is_none_or(|what| what == wrong))
        };
        check(image, &self.volume).iter().any(says)
    }

    /// Whether a server and a mount that start here notice something; otherwise they must see the
    /// files as they are, and nobody starts without the newest root.
    fn is_refused(&self, image: Image, place: &Place, context: &str) -> bool {
        match files(image, &self.volume, 9) {
            Ok(found) => {
                assert!(place.part != Part::Root, "{context}: it is not missed");
                assert!(found == self.tree, "{context}: {found:?}");
                false
            }
            Err(what) => {
                assert!(!what.starts_with(SPINS), "{context}: {what}");
                true
            }
        }
    }
}

/// What became of damage, by part.
#[derive(Default)]
struct Told(BTreeMap<Part, [u64; 4]>);

impl Told {
    fn add(&mut self, part: Part, counts: [u64; 4]) {
        let told = self.0.entry(part).or_default();
        told.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    }

    fn print(&self, what: &str) {
        println!("{what}: damages, found by the check, starts refused, starts unharmed");
        for (part, counts) in &self.0 {
            println!("  {:<10} {counts:?}", format!("{part:?}"));
        }
    }
}

#[test]
fn all_trees_and_all_kinds_of_blocks_are_there() {
    let sample = sample();
    let there: Vec<Part> = sample.one_of_each().iter().map(|place| place.part).collect();
    println!("{} blocks: {there:?}", sample.places.len());
    for kind in [1, 2, 3, 4, 5, 6, 8] {
        assert!(there.contains(&Part::Node(kind)), "no tree of kind {kind}");
    }
    assert!(there.contains(&Part::Items) && there.contains(&Part::Filter));
}

#[test]
fn every_flipped_byte_of_every_kind_of_block_is_found_at_the_gate() {
    let sample = sample();
    let mut flips = 0;
    for place in sample.one_of_each() {
        let block = sample.image.block(place.blkno.0);
        let (part, blkno) = (place.part, place.blkno);
        let seq = part.has_version().then(|| header(block).seq.get());
        let promise = Promise { magic: part.magic(), blkno, seq };
        let volume = part.volume(&sample.volume);
        assert_eq!(open(block, &volume, &promise), Ok(()), "{place:?}");
        for byte in 0..BLOCK_BYTES {
            let mut damaged = Block(block.0);
            damaged.0[byte] ^= 1 << (byte % 8);
            let found = open(&damaged, &volume, &promise);
            assert_eq!(found, Err(Corruption::Checksum), "byte {byte} of {place:?}");
            flips += 1;
        }
    }
    println!("{flips} flipped bytes found");
}

#[test]
fn flipped_bytes_are_found_by_whoever_reads_them() {
    let sample = sample();
    let mut told = Told::default();
    for place in sample.one_of_each() {
        let near = (0..64).chain((64..BLOCK_BYTES).step_by(199));
        for byte in near.chain([BLOCK_BYTES - 1]) {
            let image = sample.damaged(&place, |block| block.0[byte] ^= 1 << (byte % 8));
            let context = format!("byte {byte} of {place:?}");
            assert!(sample.is_found(&image, &place, Some(Corruption::Checksum)), "{context}");
            told.add(place.part, [1, 1, 0, 0]);
            if [0, 20, 50, 4095].contains(&byte) {
                let refused = sample.is_refused(image, &place, &context);
                told.add(place.part, [0, 0, refused.into(), (!refused).into()]);
            }
        }
    }
    told.print("flipped bytes");
    let refused = |part| told.0.get(&part).is_some_and(|counts| counts[2] > 0);
    // A server can't do without its trees, a mount not without items.
    for part in [Part::Node(1), Part::Node(3), Part::Node(4), Part::Items] {
        assert!(refused(part), "{part:?} is not read");
    }
}

#[test]
fn blocks_that_are_not_what_was_meant_are_found() {
    let sample = sample();
    let mut told = Told::default();
    let mut found = |place: &Place, image: Image, what: Option<Corruption>, context: &str| {
        let context = format!("{context}: {place:?}");
        assert!(sample.is_found(&image, place, what), "{context}: {what:?}");
        let refused = sample.is_refused(image, place, &context);
        told.add(place.part, [1, 1, refused.into(), (!refused).into()]);
    };
    for place in sample.one_of_each() {
        let (part, blkno) = (place.part, place.blkno);
        let volume = part.volume(&sample.volume);
        let seq = header(sample.image.block(blkno.0)).seq.get();
        let sealed = |magic: Magic, blkno, seq| {
            sample.damaged(&place, |block| seal(block, &volume, magic, blkno, seq))
        };
        let other = if part.magic() == Magic::Btree { Magic::Root } else { Magic::Btree };
        found(&place, sealed(other, blkno, seq), Some(Corruption::Kind), "another kind");
        let misdirected = sealed(part.magic(), blkno.plus(1), seq);
        found(&place, misdirected, Some(Corruption::Misdirected), "another address");
        if part.has_version() {
            let stale = sealed(part.magic(), blkno, seq - 1);
            found(&place, stale, Some(Corruption::Stale), "an older version");
        }
        if !matches!(part, Part::Super | Part::Spare) {
            let mut volume = volume;
            volume.fsid ^= 1;
            let foreign =
                sample.damaged(&place, |block| seal(block, &volume, part.magic(), blkno, seq));
            found(&place, foreign, Some(Corruption::Volume), "another volume");
        }
        // A root that is all zero has never been written.
        if !matches!(part, Part::Root | Part::OldRoot) {
            found(&place, sample.damaged(&place, |block| block.0.fill(0)), None, "zeros");
        }
        // The same kind of block from elsewhere. Without two roots there is an older one.
        let is_twin = |twin: &&Place| twin.blkno != blkno && twin.part.magic() == part.magic();
        if part.magic() != Magic::Root
            && let Some(twin) = sample.places.iter().find(is_twin)
        {
            let mut image = sample.image.clone();
            let (one, two) = (image.block(blkno.0).clone(), image.block(twin.blkno.0).clone());
            image.write(blkno.0, two);
            image.write(twin.blkno.0, one);
            found(&place, image, Some(Corruption::Misdirected), "two blocks changed places");
        }
    }
    told.print("other blocks");
}

#[test]
fn a_device_that_is_cut_short_is_refused() {
    let sample = sample();
    let block = sample.image.block(SUPER_BLKNO.0);
    let blocks = sample.volume.blocks();
    for short in [0, 1, 17, blocks / 2, blocks - 1] {
        let verified = Unverified::new(block).verify(SUPER_BLKNO, short);
        assert!(matches!(verified, Err(SuperError::Truncated { .. })), "{short}: {verified:?}");
    }
}

/// Meaningful bytes are changed and the checksum made right: what a hostile writer, or a bug, would
/// leave. Anything may be found, or nothing; nobody panics, and nothing goes on for ever.
#[test]
fn nothing_that_is_well_sealed_makes_anybody_panic_or_hang() {
    let sample = sample();
    let mut told = Told::default();
    for place in sample.one_of_each() {
        let block = sample.image.block(place.blkno.0).clone();
        let means = |byte: &usize| *byte < 128 || block.0[*byte] != 0;
        let bytes: Vec<usize> = (32..BLOCK_BYTES).filter(means).collect();
        let stride = (bytes.len() / 100).max(1);
        for (turn, &byte) in bytes.iter().step_by(stride).enumerate() {
            let mut image = sample.image.clone();
            place.forge(&mut image, &sample.volume, |block| forge(block, byte, turn));
            let context = format!("byte {byte} of {place:?}, change {turn}");
            let found = survives(&context, || look(&image, &sample.volume, turn.is_multiple_of(8)));
            told.add(place.part, found);
        }
    }
    told.print("forged blocks");
}

/// The numbers of runs only decide when to merge.
#[test]
fn a_root_may_be_wrong_about_its_numbers_of_runs() {
    let sample = sample();
    let root = sample.places.iter().find(|place| place.part == Part::Root).unwrap();
    for claimed in [0, 1 << 32, 1 << 63, u64::MAX] {
        let mut image = sample.image.clone();
        root.forge(&mut image, &sample.volume, |block| {
            RootBlock::mut_from_bytes(&mut block.0).unwrap().level_runs.fill(claimed.into());
        });
        let context = format!("{claimed} runs in each level");
        assert!(!check(&image, &sample.volume).is_empty(), "{context}");
        let seen = survives(&context, || files(image, &sample.volume, 9));
        assert_eq!(seen.as_ref(), Ok(&sample.tree), "{context}");
    }
}

/// A count that can't be stops whoever goes by it, before it is written again.
#[test]
fn a_root_that_is_wrong_about_its_free_blocks_makes_nobody_panic() {
    let sample = sample();
    let root = sample.places.iter().find(|place| place.part == Part::Root).unwrap();
    let mut told = Told::default();
    for claimed in [0, 1, 63, 255, 1000, sample.volume.blocks() - 1, sample.volume.blocks()] {
        let mut image = sample.image.clone();
        root.forge(&mut image, &sample.volume, |block| {
            RootBlock::mut_from_bytes(&mut block.0).unwrap().free_blocks = claimed.into();
        });
        let context = format!("{claimed} free blocks");
        let seen = survives(&context, || look(&image, &sample.volume, true));
        assert_eq!(seen[1], 1, "{context}: the check finds it");
        told.add(root.part, seen);
    }
    told.print("wrong counts of free blocks");
}

fn is_stale(finding: &Finding) -> bool {
    (finding.id, finding.wrong) == (Id::Root, Wrong::Corrupt(Corruption::Stale))
}

/// The newest root is lost: the check and the server say so, and the server goes on from the one
/// before it once what was confirmed is forgotten.
#[test]
fn without_its_newest_root_a_volume_is_served_only_if_that_is_forgotten() {
    let sample = sample();
    let root = sample.places.iter().find(|place| place.part == Part::Root).unwrap();
    let block = sample.image.block(root.blkno.0);
    let term = RootBlock::ref_from_bytes(&block.0).unwrap().term.into();
    let confirmed = (term, CommitNo(header(block).seq.get()));
    let mut lost = sample.damaged(root, |block| *block = Block::ZERO);
    let newest = match refusal(&lost, &sample.volume) {
        Some(Refusal::RootLost { confirmed: said, newest }) if said == confirmed => newest,
        other => panic!("{confirmed:?} is confirmed: {other:?}"),
    };
    assert!(newest < confirmed, "{newest:?} {confirmed:?}");
    assert!(check(&lost, &sample.volume).iter().any(is_stale));
    say_confirmed(&mut lost, &sample.volume, None);
    assert!(!check(&lost, &sample.volume).iter().any(is_stale));
    let found = files(lost, &sample.volume, 9).unwrap();
    assert!(found.len() > 6, "{found:?}");
}

/// Whatever a forged block says was confirmed, nobody panics, and forgetting it ends it.
#[test]
fn a_forged_confirmation_stops_everybody_until_it_is_forgotten() {
    let sample = sample();
    let newest = sample.places.iter().find(|place| place.part == Part::Root).unwrap();
    let block = sample.image.block(newest.blkno.0);
    let term: Term = RootBlock::ref_from_bytes(&block.0).unwrap().term.into();
    let later = Term::new(term.round() + 1, 3);
    // A number that can't be, and one that has been, of a later term.
    for forged in [(term, CommitNo(u64::MAX)), (later, CommitNo(1))] {
        let mut image = sample.image.clone();
        say_confirmed(&mut image, &sample.volume, Some(forged));
        let refused = refusal(&image, &sample.volume);
        assert!(
            matches!(refused, Some(Refusal::RootLost { confirmed, .. }) if confirmed == forged),
            "{refused:?}"
        );
        assert!(check(&image, &sample.volume).iter().any(is_stale));
        say_confirmed(&mut image, &sample.volume, None);
        assert_eq!(files(image, &sample.volume, 9).as_ref(), Ok(&sample.tree));
    }
}

/// Changes a byte, or eight from there on.
fn forge(block: &mut Block, byte: usize, turn: usize) {
    let end = (byte + 8).min(BLOCK_BYTES);
    match turn % 4 {
        0 => block.0[byte] ^= 0x01,
        1 => block.0[byte] ^= 0x80,
        2 => block.0[byte..end].fill(0xff),
        _ => block.0[byte] = block.0[byte].wrapping_add(1),
    }
}

/// Has whoever may read an image do so; says what they say.
fn look(image: &Image, volume: &Super, start: bool) -> [u64; 4] {
    let read = Unverified::new(image.block(SUPER_BLKNO.0)).verify(SUPER_BLKNO, volume.blocks());
    let volume = read.as_ref().unwrap_or(volume);
    let found = !check(image, volume).is_empty() || read.is_err();
    if !start || !volume.is_writable() {
        return [1, found.into(), 0, 0];
    }
    let refused = match files(image.clone(), volume, 9) {
        Ok(_) => false,
        Err(what) => {
            assert!(!what.starts_with(SPINS), "{what}");
            true
        }
    };
    [1, found.into(), refused.into(), (!refused).into()]
}

fn survives<T>(context: &str, act: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|_| panic!("{context}: a panic"))
}

/// With `RUSTFLAGS="--cfg outrider_mutants"`: it would be noticed if no checksum were looked at.
#[cfg(outrider_mutants)]
#[test]
fn a_skipped_checksum_is_noticed() {
    use outrider_core::mutant::{Mutant, activate};
    let sample = sample();
    activate(Some(Mutant::ChecksumSkipped));
    let missed = sample.one_of_each().into_iter().filter(|place| {
        let image = sample.damaged(place, |block| block.0[0] ^= 1);
        !sample.is_found(&image, place, Some(Corruption::Checksum))
    });
    let missed: Vec<Part> = missed.map(|place| place.part).collect();
    activate(None);
    println!("not found: {missed:?}");
    assert!(missed.len() > 8);
}

//! Every decoder of bytes that come from a device or a peer, with bytes nobody meant.
//!
//! Inputs are mutations of what is meant: the golden vectors of the core, the blocks and records
//! of a volume. A test is a target; each has its number of inputs, or with `FUZZ_SECONDS` set goes
//! on for so long from a seed in `FUZZ_SEED`. FUSE requests are tried beside their decoder, in the
//! crate that has it.
//!
//! # Invariants
//!
//! * Nothing panics, and no input takes a minute.
//! * What is accepted of messages and items is the one way to say it: said again, it is the same.
//! * An input is a function of the seed and its number; a failure prints it.

#![allow(clippy::unwrap_used)] // A test that can't go on has failed.

use outrider_core::format::block::{header, seal};
use outrider_core::format::btree::{self, Node};
use outrider_core::format::item::{
    Dirent, FileExtent, Inode, Name, XattrHead, XattrName, parse_empty, parse_symlink_part,
};
use outrider_core::format::key::{FileBlock, ItemKey, Key, KeyBytes};
use outrider_core::format::layout::{QUORUM_BLKNO, SUPER_BLKNO};
use outrider_core::format::quorum::{self, Slot};
use outrider_core::format::records::{
    BlockKey, ClientPart, ClientState, Length, LengthKey, ManifestEntry, OwnerKind, Pool, extent,
    list,
};
use outrider_core::format::root::Root;
use outrider_core::format::run::{Filter, Index, Items, RunBlock};
use outrider_core::format::super_block::{Super, Unverified};
use outrider_core::format::wire::greeting::{Challenge, Hello, Proof, Welcome};
use outrider_core::format::wire::message::{
    ClientAnswer, ClientRequest, Emitter, HeldRecord, LockRecord, Payload, ServerAnswer,
    ServerRequest,
};
use outrider_core::format::wire::{ErrorCode, Frame, Kind};
use outrider_core::format::{BLOCK_BYTES, Block, RunId};
use outrider_core::lock::{Held, ToClient, ToServer};
use outrider_tests::crash::parts::{Part, Place, parts};
use outrider_tests::crash::recovery::{check, tree};
use outrider_tests::crash::volume::SPINS;
use outrider_tests::crash::workload::Beginning;
use outrider_tests::image::Image;
use outrider_tests::rng::Rng;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use zerocopy::{FromBytes, IntoBytes};

/// Numbers at the edge of something.
const EDGES: [u64; 10] =
    [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, u32::MAX as u64, i64::MAX as u64, u64::MAX];
/// How often it is looked whether an input takes too long.
const WATCH: Duration = Duration::from_secs(60);

/// Changes some bytes of one of the seeds.
fn mutate(rng: &mut Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = rng.pick(seeds).cloned().unwrap_or_default();
    for _ in 0..rng.within(1..=6) {
        let len = bytes.len() as u64;
        let at = rng.below(len.max(1)) as usize;
        match rng.below(9) {
            0 if len > 0 => bytes[at] ^= 1 << rng.below(8),
            1 if len > 0 => bytes[at] = rng.number() as u8,
            2 | 3 => {
                let edge = *rng.pick(&EDGES).unwrap();
                let edge = edge.wrapping_add(rng.below(3)).wrapping_sub(1);
                let width = 1usize << rng.below(4);
                let little = rng.below(2) == 0;
                let all = if little { edge.to_le_bytes() } else { edge.to_be_bytes() };
                let part = if little { &all[..width] } else { &all[8 - width..] };
                let end = bytes.len().min(at + width);
                bytes[at..end].copy_from_slice(&part[..end - at]);
            }
            4 => bytes.truncate(at),
            5 => bytes.extend((0..rng.below(40)).map(|byte| byte as u8)),
            6 if len > 0 => drop(bytes.remove(at)),
            7 => bytes.insert(at, rng.number() as u8),
            // A stretch of another seed, or of the same one.
            _ => {
                let other = rng.pick(seeds).cloned().unwrap_or_default();
                let from = rng.below(other.len().max(1) as u64) as usize;
                let end = other.len().min(from + 1 + rng.below(64) as usize);
                let stretch = other.get(from..end).unwrap_or_default();
                let space = bytes.len().min(at + stretch.len()) - at.min(bytes.len());
                bytes[at..at + space].copy_from_slice(&stretch[..space]);
            }
        }
    }
    bytes
}

/// Tries inputs made from the seed and their numbers.
fn fuzz<I>(
    target: &str,
    count: u64,
    mut make: impl FnMut(&mut Rng) -> I,
    mut show: impl FnMut(&I) -> String,
    mut run: impl FnMut(&I) -> bool,
) {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let seconds = number("FUZZ_SECONDS").map(Duration::from_secs);
    let seed = number("FUZZ_SEED").unwrap_or(0);
    let root = Rng::new(seed).fork(target);
    let done = Arc::new(AtomicU64::new(0));
    let now = Arc::new(Mutex::new(String::new()));
    watch(target, &done, &now);
    let (start, mut accepted, mut inputs) = (Instant::now(), 0, 0);
    while seconds.map_or(inputs < count, |seconds| start.elapsed() < seconds) {
        let input = make(&mut root.fork(&inputs.to_string()));
        *now.lock().unwrap() = show(&input);
        match catch_unwind(AssertUnwindSafe(|| run(&input))) {
            Ok(good) => accepted += u64::from(good),
            Err(panic) => {
                eprintln!("{target}, seed {seed}, input {inputs}: {}", show(&input));
                resume_unwind(panic);
            }
        }
        inputs += 1;
        done.store(inputs, Ordering::Relaxed);
    }
    done.store(u64::MAX, Ordering::Relaxed);
    println!("{target}: {inputs} inputs, {accepted} of them accepted");
}

/// Ends the process if one input takes too long: an endless loop can't be stopped otherwise.
fn watch(target: &str, done: &Arc<AtomicU64>, now: &Arc<Mutex<String>>) {
    let (target, done, now) = (target.to_owned(), Arc::clone(done), Arc::clone(now));
    std::thread::spawn(move || {
        let mut last = done.load(Ordering::Relaxed);
        loop {
            std::thread::sleep(WATCH);
            let reached = done.load(Ordering::Relaxed);
            if reached == u64::MAX {
                return;
            }
            if reached == last {
                eprintln!("{target}: input {last} takes too long: {}", now.lock().unwrap());
                std::process::abort();
            }
            last = reached;
        }
    });
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Tries mutations of these seeds.
fn fuzz_bytes(target: &str, count: u64, seeds: &[Vec<u8>], mut run: impl FnMut(&[u8]) -> bool) {
    assert!(!seeds.is_empty(), "{target} has nothing to begin with");
    let make = |rng: &mut Rng| mutate(rng, seeds);
    fuzz(target, count, make, |input| hex(input), |input: &Vec<u8>| run(input));
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        text.chars().filter_map(|digit| digit.to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// The golden vectors of the wire: a name, then lines of bytes.
fn wire_vectors() -> BTreeMap<String, Vec<u8>> {
    let text = include_str!("../../core/src/format/wire/golden/version1.hex");
    let mut vectors: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut name = String::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        match line.strip_prefix("  ") {
            Some(bytes) => vectors.entry(name.clone()).or_default().extend(unhex(bytes)),
            None => {
                line.clone_into(&mut name);
                vectors.entry(name.clone()).or_default();
            }
        }
    }
    vectors
}

/// Vectors that stand in lines, a name and bytes.
fn line_vectors(text: &str) -> Vec<Vec<u8>> {
    let bytes = |line: &str| line.split(' ').nth(1).map(unhex);
    text.lines().filter(|line| !line.starts_with('#')).filter_map(bytes).collect()
}

/// Where the error stands in what a client says of a compaction.
const COMPACTED_ERROR: usize = 10;

/// Whether a payload is accepted as what it is for any kind; then it must be emitted as it came.
/// Only an error that is newer than its reader is one that isn't known.
fn is_payload<'p, P: Payload<'p>>(bytes: &'p [u8]) -> bool {
    let mut accepted = false;
    for kind in Kind::ALL {
        let Ok(payload) = P::parse(kind, bytes) else { continue };
        assert!(payload.kind() == kind, "{kind:?} is read as another kind");
        let mut space = vec![0; bytes.len() + 64];
        let mut emitter = Emitter::new(&mut space);
        payload.emit(&mut emitter);
        let used = emitter.used();
        let mut came = bytes.to_vec();
        if kind == Kind::Compacted && space[COMPACTED_ERROR] == ErrorCode::Unknown as u8 {
            came[COMPACTED_ERROR] = ErrorCode::Unknown as u8;
        }
        assert_eq!(hex(&space[..used]), hex(&came), "{kind:?} is said in another way");
        accepted = true;
    }
    accepted
}

#[test]
fn messages() {
    let seeds: Vec<Vec<u8>> = wire_vectors().into_values().collect();
    assert!(seeds.len() > 20);
    fuzz_bytes("messages", 60_000, &seeds, |bytes| {
        let mut accepted = is_payload::<ClientRequest<'_>>(bytes);
        accepted |= is_payload::<ClientAnswer<'_>>(bytes);
        accepted |= is_payload::<ServerRequest<'_>>(bytes);
        accepted | is_payload::<ServerAnswer<'_>>(bytes)
    });
}

#[test]
fn frames_and_greetings() {
    let seeds: Vec<Vec<u8>> = wire_vectors().into_values().collect();
    fuzz_bytes("frames_and_greetings", 100_000, &seeds, |bytes| {
        let frame = Frame::parse(bytes);
        if let Ok(frame) = &frame {
            let payload = frame.message.map_or(&[][..], |message| message.payload);
            // Codes of errors that a later version may have are all read as one.
            let said = [frame.header().as_bytes(), payload].concat();
            assert_eq!(Frame::parse(&said), Ok(*frame), "a frame is said in another way");
        }
        let greeting = Hello::parse(bytes).is_ok() | Challenge::parse(bytes).is_ok();
        frame.is_ok() | greeting | Proof::parse(bytes).is_ok() | Welcome::parse(bytes).is_ok()
    });
}

#[test]
fn locks() {
    let seeds = line_vectors(include_str!("../../core/src/lock/message/golden.txt"));
    fuzz_bytes("locks", 100_000, &seeds, |bytes| {
        let mut accepted = false;
        if let Ok((record, _)) = LockRecord::ref_from_prefix(bytes) {
            if let Ok(message) = ToServer::parse(record) {
                assert!(message.emit() == *record);
                accepted = true;
            }
            if let Ok(message) = ToClient::parse(record) {
                assert!(message.emit() == Some(*record));
                accepted = true;
            }
        }
        if let Ok((record, _)) = HeldRecord::ref_from_prefix(bytes)
            && let Ok(held) = Held::parse(record)
        {
            assert!(held.emit() == *record);
            accepted = true;
        }
        accepted
    });
}

#[test]
fn items() {
    let mut seeds = line_vectors(include_str!("../../core/src/format/item/golden.txt"));
    seeds.extend(line_vectors(include_str!("../../core/src/format/key/golden.txt")));
    fuzz_bytes("items", 100_000, &seeds, |bytes| {
        let mut accepted = false;
        if let Ok((key, _)) = KeyBytes::ref_from_prefix(bytes) {
            let key = Key::from(*key);
            accepted |= ItemKey::parse(&key).is_ok();
            assert!(KeyBytes::from(key).as_bytes() == &bytes[..size_of::<KeyBytes>()]);
        }
        if let Ok(extent) = FileExtent::parse(FileBlock(bytes.len() as u64 * 1000), bytes) {
            assert!(extent.emit().as_bytes() == bytes && extent.first() <= extent.last);
            accepted = true;
        }
        if let Ok(head) = XattrHead::parse(bytes) {
            assert!(head.parse_part(0, bytes).is_err(), "the first part is the head");
            accepted = true;
        }
        let target = parse_symlink_part(bytes, 0, bytes.len() as u64).is_ok();
        let name = Name::parse(bytes).is_ok() | XattrName::parse(bytes).is_ok();
        accepted |= Inode::parse(bytes).is_ok() | Dirent::parse(bytes).is_ok();
        accepted | target | name | parse_empty(bytes).is_ok()
    });
}

fn sample() -> (Image, Super, Vec<Place>) {
    let beginning = Beginning::new().unwrap();
    let image = beginning.image().clone();
    let places = parts(&image, beginning.volume());
    (image, *beginning.volume(), places)
}

#[test]
fn records() {
    let (image, volume, places) = sample();
    let mut seeds = Vec::new();
    for place in places.iter().filter(|place| matches!(place.part, Part::Node(_))) {
        let node = Node::new(image.block(place.blkno.0));
        for index in 0..node.count() {
            let (key, value) = node.item(index);
            seeds.extend([key.to_vec(), value.to_vec()]);
        }
    }
    let blocks = volume.blocks();
    fuzz_bytes("records", 100_000, &seeds, |bytes| {
        let mut accepted = false;
        if let Ok((key, rest)) = BlockKey::ref_from_prefix(bytes)
            && let Ok((length, _)) = Length::ref_from_prefix(rest)
            && let Ok(extent) = extent(key.last, length, blocks)
        {
            assert!(extent.is_inside(blocks) && BlockKey::of(&extent) == *key);
            accepted = true;
        }
        if let Ok((key, _)) = LengthKey::ref_from_prefix(bytes)
            && let Ok(extent) = key.extent(blocks)
        {
            assert!(extent.is_inside(blocks) && LengthKey::of(&extent) == *key);
            accepted = true;
        }
        if let Ok(extents) = list(bytes) {
            assert!(extents.iter().map(|extent| extent.end().0).is_sorted());
            accepted = true;
        }
        if let Ok((entry, _)) = ManifestEntry::ref_from_prefix(bytes)
            && entry.check(blocks).is_ok()
        {
            assert!(entry.extent().is_inside(blocks));
            let _ = (entry.range(), entry.run());
            accepted = true;
        }
        let first = bytes.first().copied().unwrap_or(0);
        let numbers = Pool::parse(first).is_ok() | ClientPart::parse(first).is_ok();
        accepted | numbers | OwnerKind::parse(first).is_ok() | ClientState::parse(first).is_ok()
    });
}

/// A block that was changed, and where it stands; it is sealed as if it were meant so.
struct Forged {
    place: Place,
    block: Block,
}

/// One of these blocks, with some bytes changed.
fn forge(rng: &mut Rng, image: &Image, volume: &Super, places: &[Place]) -> Forged {
    let place = *rng.pick(places).unwrap();
    let original = image.block(place.blkno.0);
    // Where something stands is changed more often than where nothing does.
    let used = original.0.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
    let part = rng.below(used as u64) as usize;
    let end = BLOCK_BYTES.min(part + 1 + rng.below(64) as usize);
    let mut block = Block(original.0);
    let changed = mutate(rng, &[block.0[part..end].to_vec()]);
    let len = changed.len().min(BLOCK_BYTES - part);
    block.0[part..part + len].copy_from_slice(&changed[..len]);
    let seq = header(original).seq.get();
    seal(&mut block, &place.part.volume(volume), place.part.magic(), place.blkno, seq);
    Forged { place, block }
}

#[test]
fn blocks() {
    let (image, volume, places) = sample();
    let make = |rng: &mut Rng| forge(rng, &image, &volume, &places);
    let show = |forged: &Forged| format!("{:?} {}", forged.place, hex(&forged.block.0));
    fuzz("blocks", 30_000, make, show, |forged| {
        let Forged { place: Place { part, blkno }, block } = forged;
        let at = |index| {
            let run = RunId(header(block).seq.get());
            RunBlock { blkno: *blkno, run, index }
        };
        // Which block of its run it is stands behind the header.
        let index = u32::from_le_bytes(block.0[32..36].try_into().unwrap());
        match part {
            Part::Super | Part::Spare => {
                Unverified::new(block).verify(SUPER_BLKNO, volume.blocks()).is_ok()
            }
            Part::Quorum => {
                let slot = Slot::new((blkno.0 - QUORUM_BLKNO.0) as u8).unwrap();
                quorum::parse(block, &volume.volume(), QUORUM_BLKNO, slot).is_ok()
            }
            Part::Root | Part::OldRoot => {
                Root::open(block, &volume.volume(), *blkno, volume.blocks()).is_ok()
            }
            Part::Node(_) => btree::parse(block).is_ok() && walk(block),
            Part::Items => match Items::open(block, &volume.volume(), &at(index)) {
                Ok(items) => (0..items.count()).all(|index| items.get(index).0.zone < u8::MAX),
                Err(_) => false,
            },
            Part::Index => match Index::open(block, &volume.volume(), &at(index)) {
                Ok(keys) => keys.keys().iter().all(|key| keys.child(key).is_some()),
                Err(_) => false,
            },
            Part::Filter => match Filter::open(block, &volume.volume(), &at(index)) {
                Ok(filter) => (0..64).any(|hash| filter.may_contain(hash << 56)),
                Err(_) => false,
            },
        }
    });
}

/// Looks at all there is in a node that was accepted.
fn walk(block: &Block) -> bool {
    let node = Node::new(block);
    for index in 0..node.count() {
        let (key, _) = node.item(index);
        assert_eq!(node.search(key), Ok(index));
        if node.level() > 0 {
            let _ = node.child(index).blkno();
        }
    }
    node.bytes_used() <= BLOCK_BYTES
}

/// A volume with several forged blocks is checked, then mounted and looked at.
#[test]
fn volumes() {
    let (image, volume, places) = sample();
    let places: Vec<Place> =
        places.into_iter().filter(|at| !matches!(at.part, Part::Super | Part::Spare)).collect();
    let make = |rng: &mut Rng| -> Vec<Forged> {
        (0..rng.within(1..=3)).map(|_| forge(rng, &image, &volume, &places)).collect()
    };
    let show = |forged: &Vec<Forged>| {
        let block = |forged: &Forged| format!("{:?} {}\n", forged.place, hex(&forged.block.0));
        forged.iter().map(block).collect()
    };
    let mut number = 0u64;
    fuzz("volumes", 600, make, show, |forged| {
        let mut image = image.clone();
        for Forged { place, block } in forged {
            image.write(place.blkno.0, Rc::new(Block(block.0)));
        }
        number += 1;
        let clean = check(&image, &volume).is_empty();
        if number.is_multiple_of(4)
            && let Err(what) = tree(image, &volume, 9)
        {
            assert!(!what.starts_with(SPINS), "{what}");
        }
        clean
    });
}

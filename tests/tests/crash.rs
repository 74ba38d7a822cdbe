//! The crash explorer finds what a journal gets wrong, and finds nothing where all is right.
//!
//! The journal: entry `k` is a data block at `2 k + 1` and a commit block at `2 k + 2`. The data
//! goes first and is flushed, then the commit block, and the flush after that acknowledges the
//! entry. The commit block holds the entry's number in its first and its data in its last sector,
//! and a checksum of both.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{finish, pull, puppets};
use outrider_core::crc32c::crc32c;
use outrider_hal::{BLOCK_BYTES, Block};
use outrider_tests::crash::{Bounds, Counts, Cut, Recording, Step, explore};
use outrider_tests::image::Image;

const ENTRIES: u64 = 4;

/// What a journal forgets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Nothing,
    FlushBeforeCommit,
    FlushBeforeAnswer,
    Checksum,
}

fn commit_block(number: u64, data: u8) -> Block {
    let mut block = Block::ZERO;
    block.0[..8].copy_from_slice(&number.to_le_bytes());
    block.0[BLOCK_BYTES - 8] = data;
    let crc = crc32c(&block.0[..BLOCK_BYTES - 4]);
    block.0[BLOCK_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    block
}

fn record(fault: Fault) -> Recording {
    let mut disk = Recording::new(Image::new(64));
    for number in 1..=ENTRIES {
        let data = 100 + number as u8;
        disk.write(2 * number + 1, Block([data; BLOCK_BYTES]));
        if fault != Fault::FlushBeforeCommit {
            disk.flush();
        }
        disk.write(2 * number + 2, commit_block(number, data));
        if fault != Fault::FlushBeforeAnswer {
            disk.flush();
        }
        disk.mark(number);
    }
    disk
}

/// Recovers, and demands that what is committed is whole, and what is acknowledged committed.
fn recover(cut: &Cut, image: &Image, fault: Fault) -> Result<(), String> {
    for number in 1..=ENTRIES {
        let commit = &image.block(2 * number + 2).0;
        let (body, crc) = commit.split_at(BLOCK_BYTES - 4);
        let numbered = body[..8] == number.to_le_bytes();
        let whole = fault == Fault::Checksum || crc == crc32c(body).to_le_bytes();
        if !(numbered && whole) {
            if cut.acknowledged.contains(&number) {
                return Err(format!("entry {number} was acknowledged and is gone"));
            }
            return Ok(());
        }
        let data = body[BLOCK_BYTES - 8];
        if data != 100 + number as u8 || image.block(2 * number + 1).0 != [data; BLOCK_BYTES] {
            return Err(format!("entry {number} is committed and not whole"));
        }
    }
    Ok(())
}

fn try_journal(fault: Fault) -> Result<Counts, String> {
    let recording = record(fault);
    let result = explore(&recording, &Bounds::USUAL, |cut, image| recover(cut, &image, fault));
    result.map_err(|failure| failure.to_string())
}

#[test]
fn a_correct_journal_passes() {
    let counts = try_journal(Fault::Nothing).unwrap();
    // Each entry: a data write, a commit write, two flushes and a mark; and the start. A write is
    // visited landed (lost was visited before), and torn in nine ways; start and marks as they are.
    assert_eq!(counts.cuts, 1 + 5 * ENTRIES);
    assert_eq!(counts.subsets, 1 + 3 * ENTRIES);
    assert_eq!(counts.torn, 2 * 9 * ENTRIES);
    assert_eq!(counts.cuts_sampled, 0);
}

#[test]
fn a_missing_flush_before_the_commit_is_caught() {
    let story = try_journal(Fault::FlushBeforeCommit).unwrap_err();
    assert!(story.starts_with("power cut after step 2: entry 1 is committed and not whole"));
    let lines: Vec<&str> = story.lines().collect();
    assert!(lines[3].contains("block        3") && lines[3].ends_with("lost"), "{story}");
    assert!(lines[4].contains("block        4") && lines[4].ends_with("landed"), "{story}");
    assert_eq!(lines.len(), 5, "{story}");
}

#[test]
fn a_missing_flush_before_the_answer_is_caught() {
    let story = try_journal(Fault::FlushBeforeAnswer).unwrap_err();
    assert!(story.starts_with("power cut after step 4: entry 1 was acknowledged and is gone"));
}

#[test]
fn blindness_for_torn_writes_is_caught() {
    let story = try_journal(Fault::Checksum).unwrap_err();
    assert!(story.contains("entry 1 is committed and not whole") && story.contains("torn"));
}

#[test]
fn every_subset_of_the_open_writes_is_seen_once() {
    let mut recording = Recording::new(Image::new(64));
    recording.write(1, Block([1; BLOCK_BYTES]));
    recording.flush();
    (2..8).for_each(|blkno| recording.write(blkno, Block([1; BLOCK_BYTES])));
    let mut seen = std::collections::BTreeSet::new();
    let bounds = Bounds { tears: &[], ..Bounds::USUAL };
    let counts = explore(&recording, &bounds, |_, image| {
        let there: Vec<bool> = (1..8).map(|blkno| image.block(blkno).0[0] == 1).collect();
        assert!(seen.insert(there), "seen before");
        Ok(())
    });
    // Block 1 there or not alone, then the 63 other subsets of six with block 1.
    assert_eq!(counts.unwrap().subsets, 2 + 63);
    assert_eq!(seen.len(), 65);
}

#[test]
fn later_writes_of_a_block_win_and_covered_ones_stay() {
    let mut recording = Recording::new(Image::new(64));
    recording.write(1, Block([1; BLOCK_BYTES]));
    recording.write(1, Block([2; BLOCK_BYTES]));
    recording.flush();
    recording.mark(0);
    recording.write(1, Block([3; BLOCK_BYTES]));
    let mut after_flush = std::collections::BTreeSet::new();
    let bounds = Bounds { tears: &[], ..Bounds::USUAL };
    explore(&recording, &bounds, |cut, image| {
        if cut.acknowledged == [0] {
            after_flush.insert(image.block(1).0[0]);
        }
        Ok(())
    })
    .unwrap();
    assert_eq!(after_flush.into_iter().collect::<Vec<u8>>(), [2, 3]);
}

/// The same through the simulator: what a node does is recorded at its disk.
#[test]
fn a_node_in_the_simulator_is_recorded() {
    let mut world = puppets(1, 1, &[], 1);
    world.disk_mut().record();
    for number in 1..=3 {
        pull(&mut world, 0, |puppet| puppet.write(10 * number, number, number as u8));
        assert!(finish(&mut world, 0, 10 * number));
        pull(&mut world, 0, |puppet| puppet.flush(10 * number + 1));
        assert!(finish(&mut world, 0, 10 * number + 1));
        world.disk_mut().mark(number);
    }
    let recording = world.disk_mut().take_recording().unwrap();
    let covers = recording.steps().iter().filter_map(|step| match step {
        Step::Flushed { covers } => Some(covers.len()),
        Step::Write { .. } | Step::Mark(_) => None,
    });
    assert_eq!(covers.collect::<Vec<usize>>(), [1, 1, 1]);
    let check = |cut: &Cut, image: Image| {
        let there = |number: &&u64| image.block(**number).0[9] == **number as u8;
        let lost = cut.acknowledged.iter().find(|number| !there(number));
        lost.map_or(Ok(()), |number| Err(format!("{number} is gone")))
    };
    let counts = explore(&recording, &Bounds::USUAL, check).unwrap();
    assert_eq!(counts.cuts, 1 + 3 * 3);
}

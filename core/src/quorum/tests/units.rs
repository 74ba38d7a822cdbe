//! The constants, and the watcher by itself.

extern crate std;

use super::super::*;
use super::sim::{BASE, MS, VOLUME};
use crate::arena::{Arena, REGION_ALIGN};
use crate::format::quorum::{Ballot, BootId, HostId, Incarnation, SLOTS, Slot, State, emit_blank};
use crate::format::{CommitNo, Term};
use core::mem::MaybeUninit;
use outrider_hal::{Block, BlockOp, Completion, Endpoint, Instant, IoError};
use std::vec::Vec;

#[test]
fn the_shipped_constants_hold_and_each_broken_one_has_its_name() {
    assert_eq!(Timing::NORMAL.validate(), Ok(()));
    assert_eq!(Timing::FAST.validate(), Ok(()));
    assert!((20..=60_000).all(|lease_ms| Timing::of_lease(lease_ms).validate() == Ok(())));
    for wrong in [0, 19, 60_001, u32::MAX] {
        assert!(Timing::of_lease(wrong).validate().is_err(), "{wrong}");
    }
    assert!(Timing::NORMAL.failover_ms() <= 2000);
    assert!(Timing::NORMAL.idle_requests_per_second(true) < 20);
    assert!(Timing::NORMAL.idle_requests_per_second(false) < 20);
    let good = Timing::NORMAL;
    for (timing, error) in [
        (Timing { renew_ms: 0, ..good }, TimingError::Zero),
        (Timing { lease_ms: 60_001, ..good }, TimingError::Lease),
        (Timing { renew_ms: 334, ..good }, TimingError::Renew),
        (Timing { observe_ms: 1100, ..good }, TimingError::Observe),
        (Timing { scan_ms: 1001, ..good }, TimingError::Scan),
        (Timing { heartbeat_ms: 626, ..good }, TimingError::Heartbeat),
        (Timing { retry_ms: 251, ..good }, TimingError::Retry),
        (Timing { retry_max_ms: 49, ..good }, TimingError::Retry),
    ] {
        assert_eq!(timing.validate(), Err(error));
    }
}

#[test]
fn pauses_grow_to_the_longest_and_stay_there_however_often_something_failed() {
    for timing in [Timing::NORMAL, Timing::FAST, Timing::of_lease(60_000)] {
        let longest = core::time::Duration::from_millis(timing.retry_max_ms.into());
        let pauses: Vec<_> = (0..200).map(|failures| timing.pause(failures)).collect();
        assert!(pauses.is_sorted() && pauses[0].is_zero() && pauses[199] == longest);
        assert_eq!(timing.pause(u32::MAX), longest);
    }
}

#[repr(align(4096))]
struct Region([MaybeUninit<u8>; (SLOTS + 1) * REGION_ALIGN]);

fn ballot(slot: usize, state: State, round: u64) -> Ballot {
    let term = if round == 0 { Term::NONE } else { Term::new(round, slot as u8) };
    Ballot {
        slot: Slot::ALL[slot],
        seq: 10 + round,
        state,
        term,
        held: if state == State::Claiming { Term::NONE } else { term },
        highest_round: round,
        config_gen: 1,
        confirmed: (term, CommitNo(round)),
        lease_ms: 1000,
        mounts: 0,
        incarnation: Incarnation::default(),
        host: HostId::default(),
        boot: BootId::default(),
        endpoint: (state == State::Listening).then_some(endpoint(slot)),
        leaving: false,
        vacant: false,
    }
}

fn endpoint(slot: usize) -> Endpoint {
    std::net::SocketAddr::from(([192, 0, 2, slot as u8], 12345)).into()
}

/// Answers a watcher's requests with these blocks, and counts them.
fn serve(watcher: &mut Watcher<'_>, now: Instant, blocks: &[Option<Block>]) -> usize {
    let mut requests = Vec::new();
    while let Some(request) = watcher.poll_request(now) {
        requests.push(request);
    }
    let count = requests.len();
    for mut request in requests {
        let BlockOp::Read(blkno, block) = &mut request.op else { panic!("a watcher reads") };
        let result = match &blocks[(blkno.0 - BASE.0) as usize] {
            Some(found) => {
                **block = found.clone();
                Ok(())
            }
            None => Err(IoError::Device),
        };
        watcher.handle_completion(now, Completion { tag: request.tag, op: request.op, result });
    }
    count
}

fn disk(ballots: &[Ballot]) -> Vec<Option<Block>> {
    let mut blocks = Vec::new();
    for slot in Slot::ALL {
        let mut block = Block::ZERO;
        match ballots.iter().find(|ballot| ballot.slot == slot) {
            Some(ballot) => ballot.emit(&mut block, &VOLUME, BASE),
            None => emit_blank(&mut block, &VOLUME, BASE, slot),
        }
        blocks.push(Some(block));
    }
    blocks
}

fn with_watcher(test: impl FnOnce(&mut Watcher<'_>)) {
    let mut region = Region([MaybeUninit::uninit(); (SLOTS + 1) * REGION_ALIGN]);
    let mut arena = Arena::new(&mut region.0).unwrap();
    let blocks = WatcherBlocks::carve(&mut arena).unwrap();
    test(&mut Watcher::new(VOLUME, BASE, Timing::NORMAL, 0, blocks).unwrap());
}

#[test]
fn only_the_newest_leader_that_listens_is_reported() {
    let old = ballot(0, State::Listening, 4);
    let leader = |slot, round| Leader {
        term: Term::new(round, slot as u8),
        endpoint: endpoint(slot),
        seq: 10 + round,
    };
    for (ballots, expected) in [
        (&[][..], None),
        (&[old], Some(leader(0, 4))),
        (&[old, ballot(1, State::Elected, 5)], None),
        (&[old, ballot(1, State::Listening, 5)], Some(leader(1, 5))),
        (&[old, ballot(1, State::Resigned, 5)], None),
        // A claim may yet be withdrawn.
        (&[old, ballot(1, State::Claiming, 5)], Some(leader(0, 4))),
        (&[ballot(0, State::Stopped, 4), ballot(1, State::Idle, 0)], None),
    ] {
        with_watcher(|watcher| {
            assert_eq!(serve(watcher, Instant(MS), &disk(ballots)), SLOTS);
            assert_eq!(watcher.leader(), expected, "{ballots:?}");
        });
    }
}

#[test]
fn damage_counts_as_no_leader_but_can_be_told_from_a_blank_block() {
    with_watcher(|watcher| {
        let mut blocks = disk(&[ballot(2, State::Listening, 3)]);
        blocks[0] = Some(Block::ZERO);
        blocks[1] = None;
        serve(watcher, Instant(MS), &blocks);
        assert_eq!(watcher.leader().map(|leader| leader.term), Some(Term::new(3, 2)));
        assert!(matches!(watcher.sight(Slot::ALL[0]), Sight::Invalid(_)));
        assert_eq!(watcher.sight(Slot::ALL[1]), &Sight::Unreadable(IoError::Device));
        assert_eq!(watcher.sight(Slot::ALL[3]), &Sight::Blank);
    });
}

#[test]
fn a_watcher_reads_once_an_interval_less_often_on_a_dead_disk_and_not_at_rest() {
    with_watcher(|watcher| {
        let blocks = disk(&[]);
        let mut reads = 0;
        for ms in 0..10_000 {
            reads += serve(watcher, Instant(ms * MS), &blocks);
        }
        // 3 pauses of 6 ms, 4 each of 12 and 25, 8 each of 50, 100, 200 and 400, and then 500.
        assert_eq!(reads, 51 * SLOTS);
        let dead: Vec<Option<Block>> = (0..SLOTS).map(|_| None).collect();
        let mut reads = 0;
        for ms in 10_000..50_000 {
            reads += serve(watcher, Instant(ms * MS), &dead);
        }
        assert!(reads <= 20 * SLOTS, "{reads}");
        watcher.rest();
        assert_eq!(serve(watcher, Instant(100_000 * MS), &blocks), 0);
        assert_eq!(watcher.poll_timeout(), None);
        watcher.look();
        assert_eq!(serve(watcher, Instant(100_000 * MS), &blocks), SLOTS);
    });
}

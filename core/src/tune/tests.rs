//! Every way to cut a change off, and who stands against one.

extern crate std;

use super::{Obstacle, Tune, forget_commits, settle};
use crate::btree::rig::carve;
use crate::error::{Corruption, Error};
use crate::format::layout::{QUORUM_BLKNO, SUPER_BLKNO, spare_blkno};
use crate::format::quorum::{
    Ballot, BootId, HostId, Incarnation, SEQ_MAX, SLOTS, Slot, State, emit_blank, parse,
};
use crate::format::super_block::tests::{BLOCKS, identity};
use crate::format::super_block::{Changes, Super, Unverified};
use crate::format::{Block, CommitNo, Term};
use crate::node::{Action, Event, Node};
use crate::quorum::Vouched;
use core::net::Ipv6Addr;
use outrider_hal::{BlockOp, Completion, Endpoint, Instant, IoError};
use std::collections::BTreeMap;
use std::vec::Vec;

const HERE: HostId = HostId([1; 16]);
const ELSEWHERE: HostId = HostId([2; 16]);
const KEY: [u8; 32] = [0x77; 32];

fn ballot(slot: Slot, state: State, host: HostId) -> Ballot {
    let held = Term::new(4, slot.number());
    let term = if state == State::Claiming { Term::new(9, slot.number()) } else { held };
    let at = Endpoint { addr: Ipv6Addr::LOCALHOST, port: 9 };
    Ballot {
        slot,
        seq: 17,
        state,
        term,
        held,
        highest_round: 9,
        config_gen: 1,
        confirmed: (held, CommitNo(3)),
        lease_ms: 1000,
        mounts: 0,
        incarnation: Incarnation([slot.number() + 1; 16]),
        host,
        boot: BootId([5; 16]),
        endpoint: (state == State::Listening).then_some(at),
        leaving: false,
        vacant: false,
    }
}

/// A device with a volume whose slot 2 has a voter that was killed while it led.
fn device() -> (Super, BTreeMap<u64, Block>) {
    let volume = Super::new(&identity()).unwrap();
    let mut disk = BTreeMap::new();
    for blkno in [SUPER_BLKNO, spare_blkno(BLOCKS)] {
        let mut block = Block::ZERO;
        volume.seal(&mut block, blkno);
        disk.insert(blkno.0, block);
    }
    for slot in Slot::ALL {
        let mut block = Block::ZERO;
        match slot.number() {
            2 => {
                let led = ballot(slot, State::Listening, ELSEWHERE);
                led.emit(&mut block, &volume.volume(), QUORUM_BLKNO);
            }
            _ => emit_blank(&mut block, &volume.volume(), QUORUM_BLKNO, slot),
        }
        disk.insert(slot.blkno(QUORUM_BLKNO).0, block);
    }
    (volume, disk)
}

fn changes() -> Changes {
    let mut voters = [None; SLOTS];
    voters[0] = Some(Endpoint { addr: Ipv6Addr::LOCALHOST, port: 7 });
    Changes { voters: Some(voters), lease_ms: Some(200), ..Changes::default() }
}

fn says(disk: &BTreeMap<u64, Block>, volume: &Super, slot: Slot) -> Option<Ballot> {
    parse(&disk[&slot.blkno(QUORUM_BLKNO).0], &volume.volume(), QUORUM_BLKNO, slot).unwrap()
}

fn tune(volume: &Super, disk: &BTreeMap<u64, Block>) -> Tune<'static> {
    let slot = Slot::new(2).unwrap();
    let last = Ok(says(disk, volume, slot));
    let gone = [Vouched::Gone(Incarnation([3; 16]))];
    let mut ballots = [None; SLOTS];
    ballots[2] = settle(slot, last, HERE, &gone).unwrap();
    carve(|arena| Tune::carve(arena, volume, &changes(), KEY, ballots)).unwrap()
}

/// What the change writes, and where it flushes.
fn record(volume: &Super, disk: &BTreeMap<u64, Block>) -> Vec<Option<(u64, Block)>> {
    let (mut tune, mut all) = (tune(volume, disk), Vec::new());
    while let Some(Action::Block(request)) = tune.poll_action() {
        assert!(tune.poll_action().is_none(), "one at a time");
        all.push(match &request.op {
            BlockOp::Write(blkno, block) => Some((blkno.0, (**block).clone())),
            BlockOp::Flush => None,
            BlockOp::Read(..) => unreachable!(),
        });
        let done = Completion { tag: request.tag, op: request.op, result: Ok(()) };
        tune.handle(Instant(0), Event::Completed(done));
    }
    assert_eq!(tune.poll_outcome(), Some(Ok(())));
    all
}

fn verified(disk: &BTreeMap<u64, Block>, blkno: crate::format::BlockNo) -> Super {
    Unverified::new(&disk[&blkno.0]).verify(blkno, BLOCKS).unwrap()
}

/// Whatever of the change is there: it is one of the two, and can be done again.
fn assert_whole(volume: &Super, new: &Super, disk: &BTreeMap<u64, Block>) -> bool {
    let found = verified(disk, SUPER_BLKNO);
    let spare = verified(disk, spare_blkno(BLOCKS));
    let same = |a: &Super, b: &Super| {
        (a.generation(), a.voter(0), a.voter(2)) == (b.generation(), b.voter(0), b.voter(2))
            && a.fields().cluster_key == b.fields().cluster_key
    };
    assert!(same(&found, volume) || same(&found, new));
    assert!(same(&spare, volume) || same(&spare, new));
    assert!(spare.generation() >= found.generation(), "the spare is older");
    let last = says(disk, volume, Slot::new(2).unwrap()).unwrap();
    let is_new = same(&found, new);
    assert!(!is_new || last.state == State::Stopped, "a claim is left behind");
    assert_eq!((last.held, last.highest_round), (Term::new(4, 2), 9));
    is_new
}

#[test]
fn wherever_it_is_cut_off_the_configuration_is_the_old_one_or_the_new_one() {
    let (volume, before) = device();
    let all = record(&volume, &before);
    let new = volume.changed(&changes(), KEY).unwrap();
    let (mut old_seen, mut new_seen) = (0, 0);
    for cut in 0..=all.len() {
        // What was flushed is there; of what came after it any sector, or none.
        let flushed = all[..cut].iter().rposition(Option::is_none).unwrap_or(0);
        let mut disk = before.clone();
        for (blkno, block) in all[..flushed].iter().flatten() {
            disk.insert(*blkno, block.clone());
        }
        let open: Vec<_> = all[flushed..cut].iter().flatten().collect();
        assert!(open.len() <= 1, "one write between two flushes");
        for sectors in 0..=if open.is_empty() { 0 } else { 255 } {
            let mut disk = disk.clone();
            for (blkno, block) in &open {
                let there = disk.get_mut(blkno).unwrap();
                for sector in (0..8).filter(|sector| sectors >> sector & 1 == 1) {
                    let at = sector * 512..(sector + 1) * 512;
                    there.0[at.clone()].copy_from_slice(&block.0[at]);
                }
            }
            match assert_whole(&volume, &new, &disk) {
                true => new_seen += 1,
                false => old_seen += 1,
            }
            let found = verified(&disk, SUPER_BLKNO);
            for (blkno, block) in record(&found, &disk).into_iter().flatten() {
                disk.insert(blkno, block);
            }
            assert_eq!(verified(&disk, SUPER_BLKNO).generation(), found.generation() + 1);
        }
    }
    assert!(old_seen > 100 && new_seen > 100);
}

#[test]
fn a_failed_transfer_ends_it() {
    let (volume, disk) = device();
    let requests = record(&volume, &disk).len();
    for failing in 0..requests {
        let (mut tune, mut count) = (tune(&volume, &disk), 0);
        while let Some(Action::Block(request)) = tune.poll_action() {
            let result = if count == failing { Err(IoError::Device) } else { Ok(()) };
            count += 1;
            let done = Completion { tag: request.tag, op: request.op, result };
            tune.handle(Instant(0), Event::Completed(done));
        }
        assert_eq!(count, failing + 1);
        assert!(matches!(tune.poll_outcome(), Some(Err(Error::Io { .. }))));
    }
}

#[test]
fn who_is_not_stopped_must_be_proven_gone() {
    let slot = Slot::new(3).unwrap();
    let gone = [Vouched::Gone(Incarnation([4; 16]))];
    let other = [Vouched::Gone(Incarnation([9; 16]))];
    assert_eq!(settle(slot, Ok(None), HERE, &[]), Ok(None));
    for state in [State::Idle, State::Claiming, State::Elected, State::Listening, State::Resigned] {
        let idle = state == State::Idle;
        let mut last = ballot(slot, state, ELSEWHERE);
        if idle {
            (last.term, last.held) = (Term::NONE, Term::NONE);
        }
        let incarnation = last.incarnation;
        let unproven = Err(Obstacle::Unproven { slot, incarnation, state });
        assert_eq!(settle(slot, Ok(Some(last)), HERE, &[]), unproven);
        assert_eq!(settle(slot, Ok(Some(last)), HERE, &other), unproven);
        for (here, vouched) in [(ELSEWHERE, &[][..]), (HERE, &gone), (HERE, &[Vouched::Anyone])] {
            let settled = settle(slot, Ok(Some(last)), here, vouched).unwrap().unwrap();
            assert_eq!((settled.state, settled.seq), (State::Stopped, 18));
            let (mut block, volume) = (Block::ZERO, Super::new(&identity()).unwrap().volume());
            settled.emit(&mut block, &volume, QUORUM_BLKNO);
            assert_eq!(parse(&block, &volume, QUORUM_BLKNO, slot), Ok(Some(settled)));
        }
    }
    let stopped = ballot(slot, State::Stopped, ELSEWHERE);
    assert_eq!(settle(slot, Ok(Some(stopped)), HERE, &[]), Ok(None));
    let damaged = Err(Corruption::Checksum);
    let obstacle = Err(Obstacle::Damaged(slot, Corruption::Checksum));
    assert_eq!(settle(slot, damaged, ELSEWHERE, &gone), obstacle);
    assert_eq!(settle(slot, damaged, HERE, &[Vouched::Anyone]), Ok(None));
}

/// A block that says the greatest number there is can be followed by one that is understood.
#[test]
fn a_slot_is_settled_and_forgets_whatever_number_its_last_write_had() {
    let slot = Slot::new(3).unwrap();
    let last = Ballot { seq: SEQ_MAX, ..ballot(slot, State::Elected, HERE) };
    let settled = settle(slot, Ok(Some(last)), HERE, &[]).unwrap().unwrap();
    assert_eq!(settled.seq, 1);
    let forgot = forget_commits(Ballot { seq: SEQ_MAX, ..settled });
    let (mut block, volume) = (Block::ZERO, Super::new(&identity()).unwrap().volume());
    forgot.emit(&mut block, &volume, QUORUM_BLKNO);
    assert_eq!(parse(&block, &volume, QUORUM_BLKNO, slot), Ok(Some(forgot)));
}

#[test]
fn what_cannot_be_is_refused() {
    let volume = Super::new(&identity()).unwrap();
    let none = Changes { voters: Some([None; SLOTS]), ..Changes::default() };
    assert_eq!(volume.changed(&none, KEY), Err(Corruption::Value), "somebody must vote");
    let longer = Changes { lease_ms: Some(60_001), ..Changes::default() };
    assert_eq!(volume.changed(&longer, KEY), Err(Corruption::Value));
    let same = volume.changed(&Changes::default(), KEY).unwrap();
    assert_eq!((same.generation(), same.label()), (2, "test"));
    assert_eq!(same.fields().limits, volume.fields().limits);
}

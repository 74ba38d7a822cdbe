//! Quorum blocks: golden vectors, and what is refused.

extern crate std;

use super::*;
use crate::format::Record;
use proptest::prelude::*;
use std::string::String;
use std::vec::Vec;

const VOLUME: Volume = Volume { fsid: 0x1122_3344_5566_7788, crc_seed: 0xcafe_f00d };
const BASE: BlockNo = BlockNo(18);

fn at(text: &str) -> Endpoint {
    text.parse::<core::net::SocketAddr>().unwrap().into()
}

/// The ballots of `golden.txt`, by name.
fn golden_ballot(name: &str) -> Option<Ballot> {
    let ballot = Ballot {
        slot: Slot(2),
        seq: 41,
        state: State::Listening,
        term: Term::new(9, 2),
        held: Term::new(9, 2),
        highest_round: 11,
        config_gen: 3,
        confirmed: (Term::new(8, 4), CommitNo(5)),
        lease_ms: 1000,
        mounts: 4,
        incarnation: Incarnation(*b"an incarnation!!"),
        host: HostId(*b"a host's number."),
        boot: BootId(*b"one boot of it.."),
        endpoint: Some(at("192.0.2.7:12345")),
        leaving: false,
        vacant: false,
    };
    Some(match name {
        "blank" => return None,
        "listening" => ballot,
        "claiming" => Ballot {
            state: State::Claiming,
            term: Term::new(12, 2),
            highest_round: 12,
            endpoint: None,
            ..ballot
        },
        "idle" => Ballot {
            state: State::Idle,
            term: Term::NONE,
            held: Term::NONE,
            endpoint: None,
            ..ballot
        },
        "leaving" => Ballot { leaving: true, ..ballot },
        "stopped" => Ballot { state: State::Stopped, endpoint: None, ..ballot },
        "vacant" => Ballot { state: State::Stopped, endpoint: None, vacant: true, ..ballot },
        _ => panic!("no ballot called {name}"),
    })
}

fn emitted(ballot: Option<&Ballot>, slot: Slot) -> Block {
    let mut block = Block([0xee; BLOCK_BYTES]);
    match ballot {
        Some(ballot) => ballot.emit(&mut block, &VOLUME, BASE),
        None => emit_blank(&mut block, &VOLUME, BASE, slot),
    }
    block
}

use super::super::BLOCK_BYTES;

#[test]
fn golden_blocks_decode_and_encode() {
    let mut names = Vec::new();
    for line in include_str!("golden.txt").lines().filter(|line| !line.starts_with('#')) {
        let (name, hex) = line.split_once(' ').unwrap();
        let mut block = Block::ZERO;
        for (index, pair) in hex.as_bytes().chunks(2).enumerate() {
            block.0[index] = u8::from_str_radix(core::str::from_utf8(pair).unwrap(), 16).unwrap();
        }
        let ballot = golden_ballot(name);
        assert_eq!(parse(&block, &VOLUME, BASE, Slot(2)), Ok(ballot), "{name}");
        let again = emitted(ballot.as_ref(), Slot(2));
        let end = again.0.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        let hex_again: String = again.0[..end].iter().map(|b| std::format!("{b:02x}")).collect();
        assert_eq!(hex, hex_again, "{name}");
        names.push(name);
    }
    let all = ["blank", "idle", "claiming", "listening", "leaving", "stopped", "vacant"];
    assert_eq!(names, all);
}

#[test]
fn every_version_differs_from_every_other_in_its_first_sector_only() {
    let old = emitted(golden_ballot("listening").as_ref(), Slot(2));
    let new = emitted(golden_ballot("claiming").as_ref(), Slot(2));
    assert_eq!(QuorumBlock::FIELDS.iter().map(|field| field.bytes).sum::<usize>(), 512);
    assert_eq!(old.0[512..], new.0[512..]);
    assert_ne!(old.0[..512], new.0[..512]);
}

#[test]
fn a_ballot_of_another_slot_or_volume_is_refused() {
    let block = emitted(golden_ballot("idle").as_ref(), Slot(2));
    assert_eq!(parse(&block, &VOLUME, BASE, Slot(3)), Err(Corruption::Misdirected));
    let other = Volume { fsid: 1, ..VOLUME };
    assert_eq!(parse(&block, &other, BASE, Slot(2)), Err(Corruption::Volume));
    // The right address, because the area starts elsewhere, and still not its slot.
    assert_eq!(parse(&block, &VOLUME, BASE.plus(1), Slot(1)), Err(Corruption::Mismatch));
    assert_eq!(parse(&Block::ZERO, &VOLUME, BASE, Slot(2)), Err(Corruption::Checksum));
}

#[test]
fn each_meaningless_field_has_its_refusal() {
    let listening = golden_ballot("listening").unwrap();
    let claiming = golden_ballot("claiming").unwrap();
    let vacant = golden_ballot("vacant").unwrap();
    let cases = [
        (Ballot { held: Term::new(8, 2), ..listening }, Corruption::Mismatch),
        (Ballot { endpoint: None, ..listening }, Corruption::Mismatch),
        (Ballot { endpoint: Some(at("[::1]:0")), ..listening }, Corruption::Mismatch),
        (Ballot { state: State::Idle, endpoint: None, ..listening }, Corruption::Mismatch),
        (Ballot { term: Term::new(9, 3), ..listening }, Corruption::Mismatch),
        (Ballot { held: Term::new(12, 2), ..claiming }, Corruption::Mismatch),
        (Ballot { vacant: true, ..listening }, Corruption::Mismatch),
        (Ballot { term: Term::NONE, held: Term::NONE, ..vacant }, Corruption::Mismatch),
        (Ballot { highest_round: 8, ..listening }, Corruption::Bounds),
        (Ballot { highest_round: ROUND_MAX + 1, ..listening }, Corruption::Bounds),
        (Ballot { lease_ms: 0, ..listening }, Corruption::Bounds),
        (Ballot { lease_ms: LEASE_MS_MAX + 1, ..listening }, Corruption::Bounds),
        (Ballot { confirmed: (Term::new(12, 0), CommitNo(5)), ..listening }, Corruption::Bounds),
        (Ballot { confirmed: (Term::new(9, 7), CommitNo(5)), ..listening }, Corruption::Value),
        (Ballot { seq: 0, ..listening }, Corruption::Value),
        (Ballot { seq: SEQ_MAX + 1, ..listening }, Corruption::Bounds),
        (Ballot { seq: u64::MAX, ..listening }, Corruption::Bounds),
    ];
    for (ballot, why) in cases {
        let block = emitted(Some(&ballot), Slot(2));
        assert_eq!(parse(&block, &VOLUME, BASE, Slot(2)), Err(why), "{ballot:?}");
    }
    for (at, why) in [
        (146, Corruption::Value),
        (148, Corruption::Value),
        (149, Corruption::Reserved),
        (151, Corruption::Reserved),
        (160, Corruption::Reserved),
        (4000, Corruption::Reserved),
    ] {
        let mut block = emitted(Some(&listening), Slot(2));
        block.0[at] = 6;
        block::seal(&mut block, &VOLUME, Magic::Quorum, Slot(2).blkno(BASE), 41);
        assert_eq!(parse(&block, &VOLUME, BASE, Slot(2)), Err(why), "byte {at}");
    }
}

#[test]
fn writes_are_counted_to_the_greatest_number_and_then_from_one() {
    assert_eq!([0, 1, SEQ_MAX - 1].map(seq_after), [1, 2, SEQ_MAX]);
    assert_eq!(seq_after(SEQ_MAX), 1);
    let last = Ballot { seq: SEQ_MAX, ..golden_ballot("listening").unwrap() };
    let block = emitted(Some(&last), Slot(2));
    assert_eq!(parse(&block, &VOLUME, BASE, Slot(2)), Ok(Some(last)));
}

fn ballots() -> impl Strategy<Value = Ballot> {
    let numbers = (1..=SEQ_MAX, 0..1000u64, 0..1000u64, any::<u64>(), any::<u64>());
    let ids = (any::<[u8; 16]>(), any::<[u8; 16]>(), any::<[u8; 16]>(), any::<[u8; 16]>());
    let rest = (any::<u32>(), 1..=u16::MAX, any::<bool>(), any::<bool>());
    (0..7u8, 0..6u8, numbers, ids, 1..=LEASE_MS_MAX, rest).prop_map(
        |(
            slot,
            state,
            (seq, held, more, config_gen, confirmed),
            ids,
            lease_ms,
            (mounts, port, leaving, vacant),
        )| {
            let state = State::parse(state).unwrap();
            let term_of = |round| if round == 0 { Term::NONE } else { Term::new(round, slot) };
            let held = match state {
                State::Idle => 0,
                State::Elected | State::Listening | State::Resigned => held + 1,
                State::Claiming | State::Stopped => held,
            };
            let claimed = if state == State::Claiming { held + 1 + more } else { held };
            Ballot {
                slot: Slot(slot),
                seq,
                state,
                term: term_of(claimed),
                held: term_of(held),
                highest_round: claimed + more,
                config_gen,
                confirmed: (
                    Term::new(claimed.min(confirmed), (confirmed % 7) as u8),
                    CommitNo(confirmed),
                ),
                lease_ms,
                mounts,
                incarnation: Incarnation(ids.0),
                host: HostId(ids.1),
                boot: BootId(ids.2),
                endpoint: (state == State::Listening)
                    .then_some(Endpoint { addr: ids.3.into(), port }),
                leaving,
                vacant: vacant && state == State::Stopped && held > 0,
            }
        },
    )
}

proptest! {
    #[test]
    fn what_is_emitted_parses_to_the_same(ballot in ballots()) {
        let block = emitted(Some(&ballot), ballot.slot);
        prop_assert_eq!(parse(&block, &VOLUME, BASE, ballot.slot), Ok(Some(ballot)));
    }

    /// Arbitrary bytes behind a good seal are refused or understood, and what is understood is
    /// emitted as the same bytes again.
    #[test]
    fn sealed_nonsense_is_refused_or_means_exactly_itself(
        ballot in ballots(),
        flips in proptest::collection::vec((32usize..160, any::<u8>()), 0..4),
    ) {
        let mut block = emitted(Some(&ballot), ballot.slot);
        for (at, byte) in flips {
            block.0[at] = byte;
        }
        block::seal(&mut block, &VOLUME, Magic::Quorum, ballot.slot.blkno(BASE), ballot.seq);
        if let Ok(Some(understood)) = parse(&block, &VOLUME, BASE, ballot.slot) {
            let again = emitted(Some(&understood), ballot.slot);
            prop_assert_eq!(&again.0[..], &block.0[..]);
        }
    }
}

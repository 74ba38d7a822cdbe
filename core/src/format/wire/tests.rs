//! Every record and message against bytes in files, and against whatever else comes.

extern crate std;

use super::greeting::{
    Admission, Challenge, Greeting, Hello, MAC_BYTES, Machine, Proof, RANDOM_BYTES, Role, Welcome,
};
use super::message::{
    AT_ONCE_MAX, COMPACT_CHANGE_MAX, COMPACT_INPUTS_MAX, COMPACT_UPPERS_MAX, ClientAnswer,
    ClientList, ClientRequest, ClientStanding, ClientStatusRecord, Compact, CompactReady,
    CompactRunRecord, CompactSpaceRecord, Compacted, Emitter, Extent, ExtentRecord, Extents,
    FREED_MAX, Gone, HELD_LOCKS_MAX, HeldLocks, HeldLocksRecord, HeldRecord, INOS_MAX, InoSet,
    Inos, LOAN_EXTENTS_MAX, Loan, LoanRequest, LockRecord, LockTell, LockWaitRecord, ManifestRoot,
    OUTPUTS_MAX, Outcome, Payload, Pin, PinRequest, Pool, RETURNED_MAX, RUNS_MAX, Recall, RootNow,
    RunRecord, ServerAnswer, ServerRequest, Statfs, Status, Transaction, TransactionDone, USED_MAX,
    WaitList,
};
use super::{
    BODY_BYTES_MAX, ErrorCode, Frame, FrameHeader, Kind, Malformed, Message, PAYLOAD_BYTES_MAX,
    Part, Party, RECORD_MAGIC, RecordHeader,
};
use crate::format::key::{Key, KeyBytes};
use crate::format::quorum::{BootId, HostId};
use crate::format::records::ManifestEntry;
use crate::format::root;
use crate::format::{BlockNo, ClientId, CommitNo, Field, Ino, Record, RunId, Seq, Term};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

const GOLDEN: &str = include_str!("golden/version1.hex");

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let digit = |byte: u8| (byte as char).to_digit(16).unwrap() as u8;
    digits.chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

/// The vectors: a name on a line of its own, then indented lines of hex.
fn golden() -> BTreeMap<&'static str, Vec<u8>> {
    let mut vectors = BTreeMap::new();
    let mut name = "";
    for line in GOLDEN.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if line.starts_with(' ') {
            vectors.entry(name).or_insert_with(Vec::new).extend(unhex(line));
        } else {
            name = line;
            vectors.insert(name, Vec::new());
        }
    }
    vectors
}

fn payload<'p>(payload: &impl Payload<'p>) -> Vec<u8> {
    let mut space = vec![0xee; PAYLOAD_BYTES_MAX];
    let mut emitter = Emitter::new(&mut space);
    payload.emit(&mut emitter);
    let used = emitter.used();
    space.truncate(used);
    space
}

fn key(first: u64) -> KeyBytes {
    Key { zone: 3, first, kind: 1, second: 2, third: 3, fourth: 4 }.into()
}

fn lock(kind: u8) -> LockRecord {
    LockRecord { kind, mode: 1, name: key(5), generation: 0x77.into(), refusal: 0 }
}

fn inos() -> [U64; 3] {
    [0x1234.into(), U64::MAX_VALUE, 1.into()]
}

fn root() -> ManifestRoot {
    ManifestRoot { commit: CommitNo(0x1122), blkno: BlockNo(0x3344), seq: 0x5566, height: 2 }
}

fn extents() -> Vec<ExtentRecord> {
    let extent = |pool, start, count| ExtentRecord::new(Extent { pool, start, count });
    vec![
        extent(Pool::Data, 0x1000, 0x20),
        extent(Pool::Runs, 0x2000, 1),
        extent(Pool::Inodes, u64::MAX, 1),
        extent(Pool::RunIds, 7, u32::MAX),
    ]
}

fn run() -> RunRecord {
    let mut entry = ManifestEntry::new_zeroed();
    entry.run = 77.into();
    entry.blkno = 0x2000.into();
    entry.items = 1000.into();
    entry.tombstones = 10.into();
    entry.item_blocks = 7.into();
    entry.index_blocks = 1.into();
    entry.filter_blocks = 1.into();
    for (zone, ino) in [(0, 5), (2, 7)] {
        let key = |ino| Key { zone: zone + 1, first: ino, ..Key::MIN };
        entry.zones[usize::from(zone)].append(&key(ino).into());
        entry.zones[usize::from(zone)].append(&key(ino + 1).into());
    }
    RunRecord::new(&entry)
}

fn input() -> CompactRunRecord {
    CompactRunRecord::new(0x808, &ManifestEntry::read_from_prefix(run().as_bytes()).unwrap().0)
}

fn space() -> CompactSpaceRecord {
    CompactSpaceRecord::new(RunId(78), root::Extent::new(BlockNo(0x3000), 0x20))
}

fn greeting() -> Greeting {
    Greeting {
        role: Role::Mount,
        farewell: true,
        read_only: true,
        nonce: [0xa1; 16],
        client: Some(ClientId(9)),
        term: Term::new(5, 1),
        received: 44,
        attempt: 3,
        machine: Machine { host: HostId([0xe5; 16]), boot: BootId([0xf6; 16]) },
        requests_max: 64,
    }
}

/// All vectors as this code writes them.
fn written() -> BTreeMap<&'static str, Vec<u8>> {
    let mut vectors = BTreeMap::new();
    let extents = extents();
    let lent = Extents::new(&extents).unwrap();
    let inos = inos();
    let inos = Inos::new(&inos).unwrap();
    for (name, request) in client_requests(lent, &[run()], inos) {
        vectors.insert(name, payload(&request));
    }
    for (name, answer) in server_answers(lent) {
        vectors.insert(name, payload(&answer));
    }
    let recall = Recall { pool: Pool::Data, count: 4096 };
    let revoke = LockTell { lock: lock(LockRecord::REVOKE), root: None };
    let grant = LockTell { lock: lock(LockRecord::GRANT), root: Some(root()) };
    let held = [HeldRecord { name: key(1), mode: 3 }, HeldRecord { name: key(2), mode: 2 }];
    let (inputs, spaces) = ([input()], [space()]);
    let fixed = Compact::fixed(0x55, 2, true, Some(key(6)));
    let compact = Compact::new(fixed, &inputs, &inputs, &spaces).unwrap();
    for (name, request) in [
        ("request compact", ServerRequest::Compact(compact)),
        ("request locktell", ServerRequest::LockTell(revoke)),
        ("request locktell grant", ServerRequest::LockTell(grant)),
        ("request recover", ServerRequest::Recover(key(4))),
        ("request recall", ServerRequest::Recall(recall)),
        ("request inuse", ServerRequest::InUse(inos)),
    ] {
        vectors.insert(name, payload(&request));
    }
    for (name, answer) in [
        ("answer locktell", ClientAnswer::LockTell),
        ("answer compact", ClientAnswer::Compact),
        ("answer recover", ClientAnswer::Recover(HeldLocks::new(&held).unwrap())),
        ("answer recall", ClientAnswer::Recall),
        ("answer inuse", ClientAnswer::InUse(InoSet(0b101))),
    ] {
        vectors.insert(name, payload(&answer));
    }
    vectors.extend(greeting_records());
    vectors.extend(frames());
    vectors
}

fn client_requests<'p>(
    extents: Extents<'p>,
    runs: &'p [RunRecord],
    inos: Inos<'p>,
) -> [(&'static str, ClientRequest<'p>); 18] {
    let transaction =
        Transaction::new(12, Seq(0x99), CommitNo(0x1121), runs, extents, extents).unwrap();
    let loan = LoanRequest {
        number: 4,
        data_blocks: 16384,
        run_blocks: 1024,
        inodes: 10240,
        run_ids: 100,
        returned: extents,
    };
    let term = Term::new(5, 1);
    let renew = PinRequest::Renew { term, number: 0x77, commit: Some(CommitNo(0x1124)) };
    [
        ("request lockask", ClientRequest::LockAsk(lock(LockRecord::RELEASE))),
        ("request orphans", ClientRequest::Orphans(inos)),
        ("request transaction", ClientRequest::Transaction(transaction)),
        ("request loan", ClientRequest::Loan(loan)),
        ("request root", ClientRequest::Root),
        ("request statfs", ClientRequest::Statfs),
        ("request farewell", ClientRequest::Farewell),
        ("request status", ClientRequest::Status),
        ("request compactready", ClientRequest::CompactReady(CompactReady { at_once: 2 })),
        ("request compacted", ClientRequest::Compacted(Compacted::new(0x55, runs).unwrap())),
        (
            "request compacted failed",
            ClientRequest::Compacted(Compacted::failed(0x56, ErrorCode::NoSpace)),
        ),
        ("request fence", ClientRequest::Fence(gone(None))),
        ("request fence witness", ClientRequest::Fence(gone(Some([0xa7; 16])))),
        ("request clients", ClientRequest::Clients(ClientId(0x1235))),
        ("request waits", ClientRequest::Waits(0x20)),
        ("request pin", ClientRequest::Pin(PinRequest::New)),
        ("request pin renew", ClientRequest::Pin(renew)),
        ("request pin end", ClientRequest::Pin(PinRequest::End { term, number: 0x77 })),
    ]
}

fn gone(nonce: Option<[u8; 16]>) -> Gone {
    Gone { client: ClientId(0x1234), nonce }
}

const CLIENTS: &[ClientStatusRecord] = &[ClientStatusRecord {
    client: U64::new(0x1235),
    host_id: [0xe5; 16],
    boot_id: [0xf6; 16],
    blocks_quarantined: U64::new(0x4321),
    awaited_ms: U32::new(29_000),
    locked_ms: U32::new(59_000),
    fences_failed: U16::new(3),
    standing: ClientStanding::Evicted as u8,
    flags: ClientStatusRecord::RECOVERING,
    reserved: [0; 4],
}];

const WAITS: &[LockWaitRecord] = &[LockWaitRecord {
    waiter: U64::new(5),
    holder: U64::new(6),
    waits_ms: U32::new(1500),
    name: KeyBytes::ZERO,
    wanted: 2,
    held: 1,
    flags: LockWaitRecord::GHOST,
    reserved: [0; 14],
}];

fn server_answers(lent: Extents<'_>) -> [(&'static str, ServerAnswer<'_>); 14] {
    let (seq_next, seq_stable) = (Seq(0xaa), Seq(0x98));
    let done = TransactionDone { number: 12, seq_next, seq_stable, root: root(), lent };
    let statfs = Statfs { blocks: 1 << 30, blocks_free: 1 << 29, ino_next: Ino(0x1234) };
    let status = Status {
        term: Term::new(5, 1),
        commit: CommitNo(0x1122),
        leading_ms: 60_000,
        clients: 4,
        clients_connected: 3,
        clients_recovering: 2,
        clients_quarantined: 1,
        locks: 1000,
        lock_waiters: 10,
        blocks_quarantined: 512,
    };
    let (term, commit) = (Term::new(5, 1), CommitNo(0x1123));
    let pin = Pin { term, number: 0x77, commit, lease_ms: 15_000 };
    [
        ("answer lockask", ServerAnswer::LockAsk),
        ("answer orphans", ServerAnswer::Orphans(InoSet(0b010))),
        ("answer transaction", ServerAnswer::Transaction(done)),
        ("answer loan", ServerAnswer::Loan(Loan { number: 4, lent })),
        (
            "answer root",
            ServerAnswer::Root(RootNow { root: root(), seq_stable, seq_open: Seq(0xab) }),
        ),
        ("answer statfs", ServerAnswer::Statfs(statfs)),
        ("answer farewell", ServerAnswer::Farewell),
        ("answer status", ServerAnswer::Status(status)),
        ("answer compactready", ServerAnswer::CompactReady),
        ("answer compacted", ServerAnswer::Compacted),
        ("answer fence", ServerAnswer::Fence),
        ("answer clients", ServerAnswer::Clients(ClientList::new(CLIENTS).unwrap())),
        ("answer waits", ServerAnswer::Waits(WaitList::new(WAITS).unwrap())),
        ("answer pin", ServerAnswer::Pin(pin)),
    ]
}

fn greeting_records() -> Vec<(&'static str, Vec<u8>)> {
    let hello = Hello {
        version_min: 1.into(),
        version_max: 2.into(),
        features: 0x30.into(),
        features_required: 0x10.into(),
        fsid: 0xf51d.into(),
        random: [0xb2; RANDOM_BYTES],
        ..Hello::new(&greeting())
    };
    let challenge = Challenge {
        version: 1.into(),
        version_min: 1.into(),
        version_max: 1.into(),
        features: 0x10.into(),
        features_required: 0x10.into(),
        fsid: 0xf51d.into(),
        random: [0xc3; RANDOM_BYTES],
        ..Challenge::new(None)
    };
    let refusal = Challenge { fsid: 0xf51e.into(), ..Challenge::new(Some(ErrorCode::WrongVolume)) };
    let admission = Admission { client: ClientId(9), received: 55, fresh: true, requests_max: 32 };
    let mac = [0xd4; MAC_BYTES];
    let welcome = Welcome { mac, ..Welcome::new(Term::new(6, 0), Ok(&admission)) };
    let evicted = Welcome { mac, ..Welcome::new(Term::new(6, 0), Err(ErrorCode::Evicted)) };
    vec![
        ("greeting hello", hello.as_bytes().to_vec()),
        ("greeting challenge", challenge.as_bytes().to_vec()),
        ("greeting challenge refused", refusal.as_bytes().to_vec()),
        ("greeting proof", Proof::new(mac).as_bytes().to_vec()),
        ("greeting welcome", welcome.as_bytes().to_vec()),
        ("greeting welcome refused", evicted.as_bytes().to_vec()),
    ]
}

fn frames() -> Vec<(&'static str, Vec<u8>)> {
    let message =
        Message { seq: 17, request: 5, kind: Kind::LockAsk, part: Part::Request, payload: &[] };
    let failed = Part::Answer(Some(ErrorCode::NoSpace));
    let answer = Message { kind: Kind::Loan, part: failed, ..message };
    let frame = |message| Frame { ack: 16, message }.header().as_bytes().to_vec();
    let record =
        RecordHeader { magic: RECORD_MAGIC.into(), body_bytes: 32.into(), crc: 0xabcd.into() };
    vec![
        ("record header", record.as_bytes().to_vec()),
        ("frame idle", frame(None)),
        ("frame request", frame(Some(message))),
        ("frame failed answer", frame(Some(answer))),
    ]
}

/// What a vector's bytes mean, written again.
fn rewritten(name: &str, bytes: &[u8]) -> Result<Vec<u8>, Malformed> {
    let (what, which) = name.split_once(' ').unwrap();
    let named = which.split(' ').next().unwrap();
    let kind = Kind::ALL.into_iter().find(|kind| format!("{kind:?}").to_lowercase() == named);
    Ok(match (what, kind.map(|kind| (kind, kind.asker()))) {
        ("request", Some((kind, Party::Client))) => payload(&ClientRequest::parse(kind, bytes)?),
        ("request", Some((kind, Party::Server))) => payload(&ServerRequest::parse(kind, bytes)?),
        ("answer", Some((kind, Party::Client))) => payload(&ServerAnswer::parse(kind, bytes)?),
        ("answer", Some((kind, Party::Server))) => payload(&ClientAnswer::parse(kind, bytes)?),
        ("greeting", None) => rewritten_greeting(which, bytes)?,
        ("frame", None) => Frame::parse(bytes)?.header().as_bytes().to_vec(),
        ("record", None) => super::whole::<RecordHeader>(bytes)?.as_bytes().to_vec(),
        other => panic!("{other:?}"),
    })
}

fn rewritten_greeting(which: &str, bytes: &[u8]) -> Result<Vec<u8>, Malformed> {
    Ok(match which {
        "hello" => {
            let (hello, greeting) = Hello::parse(bytes)?;
            let again = Hello {
                version_min: hello.version_min,
                version_max: hello.version_max,
                features: hello.features,
                features_required: hello.features_required,
                fsid: hello.fsid,
                random: hello.random,
                ..Hello::new(&greeting)
            };
            again.as_bytes().to_vec()
        }
        "challenge" | "challenge refused" => {
            let (challenge, error) = Challenge::parse(bytes)?;
            let Challenge { step, error: code, .. } = Challenge::new(error);
            Challenge { step, error: code, ..*challenge }.as_bytes().to_vec()
        }
        "proof" => Proof::new(Proof::parse(bytes)?.mac).as_bytes().to_vec(),
        "welcome" | "welcome refused" => {
            let (welcome, outcome) = Welcome::parse(bytes)?;
            let again = Welcome::new(welcome.term.into(), outcome.as_ref().map_err(|error| *error));
            Welcome { mac: welcome.mac, ..again }.as_bytes().to_vec()
        }
        other => panic!("{other}"),
    })
}

#[test]
fn what_is_written_is_what_was_always_written() {
    let (written, golden) = (written(), golden());
    let mut expected = String::new();
    for (name, bytes) in &written {
        expected += &format!("{name}\n");
        bytes.chunks(32).for_each(|line| expected += &format!("  {}\n", hex(line)));
    }
    assert!(written == golden, "golden/version1.hex must be:\n{expected}");
}

#[test]
fn what_was_written_is_read_and_written_the_same() {
    for (name, bytes) in golden() {
        assert_eq!(rewritten(name, &bytes), Ok(bytes), "{name}");
    }
}

#[test]
fn a_byte_too_few_or_too_many_is_noticed() {
    for (name, mut bytes) in golden() {
        bytes.push(0);
        // The payload of a frame is not the frame's business.
        if !name.starts_with("frame") {
            assert_eq!(rewritten(name, &bytes), Err(Malformed::Length), "{name}");
        }
        bytes.truncate(bytes.len().saturating_sub(2));
        if !golden()[name].is_empty() {
            assert_eq!(rewritten(name, &bytes), Err(Malformed::Length), "{name}");
        }
    }
}

#[test]
fn the_largest_messages_fit() {
    let extent = extents()[0];
    let (used, freed) = (vec![extent; USED_MAX], vec![extent; FREED_MAX]);
    let (runs, lent) = (vec![run(); RUNS_MAX], vec![extent; LOAN_EXTENTS_MAX]);
    let (used, freed) = (Extents::new(&used).unwrap(), Extents::new(&freed).unwrap());
    let transaction = Transaction::new(1, Seq(1), CommitNo(1), &runs, used, freed).unwrap();
    let request = ClientRequest::Transaction(transaction);
    let bytes = payload(&request);
    assert_eq!(bytes.len(), PAYLOAD_BYTES_MAX);
    assert_eq!(bytes.len(), Kind::Transaction.request_bytes_max());
    assert_eq!(ClientRequest::parse(Kind::Transaction, &bytes), Ok(request));
    assert_eq!(BODY_BYTES_MAX, size_of::<FrameHeader>() + bytes.len());

    let lent = Extents::new(&lent).unwrap();
    let bytes = payload(&ServerAnswer::Loan(Loan { number: 1, lent }));
    assert_eq!(bytes.len(), Kind::Loan.answer_bytes_max());
    let held = |index| HeldRecord { name: key(index), mode: 1 };
    let locks: Vec<_> = (0..HELD_LOCKS_MAX as u64).map(held).collect();
    let bytes = payload(&ClientAnswer::Recover(HeldLocks::new(&locks).unwrap()));
    assert_eq!(bytes.len(), Kind::Recover.answer_bytes_max());
    let inos = [U64::new(1); INOS_MAX];
    let bytes = payload(&ServerRequest::InUse(Inos::new(&inos).unwrap()));
    assert_eq!(bytes.len(), Kind::InUse.request_bytes_max());
    assert_eq!(bytes.len(), Kind::Orphans.request_bytes_max());
    let grant = LockTell { lock: lock(LockRecord::GRANT), root: Some(root()) };
    let bytes = payload(&ServerRequest::LockTell(grant));
    assert_eq!(bytes.len(), Kind::LockTell.request_bytes_max());
    let (inputs, spaces) = ([input(); COMPACT_INPUTS_MAX], [space(); COMPACT_CHANGE_MAX]);
    let spaces = &spaces[..COMPACT_CHANGE_MAX - COMPACT_INPUTS_MAX];
    let compact = Compact::new(Compact::fixed(1, 0, false, None), &inputs, &[], spaces);
    let bytes = payload(&ServerRequest::Compact(compact.unwrap()));
    assert!(bytes.len() <= Kind::Compact.request_bytes_max());
    let made = [run(); OUTPUTS_MAX];
    let bytes = payload(&ClientRequest::Compacted(Compacted::new(1, &made).unwrap()));
    assert_eq!(bytes.len(), Kind::Compacted.request_bytes_max());
}

#[test]
fn counts_above_their_bounds_are_refused() {
    let extent = extents()[0];
    let many = vec![extent; USED_MAX + FREED_MAX];
    let none = Extents::default();
    let too_many = |count| Extents::new(&many[..count]).unwrap();
    let transaction =
        |runs, used, freed| Transaction::new(1, Seq(1), CommitNo(1), runs, used, freed);
    let runs = vec![run(); RUNS_MAX + 1];
    assert_eq!(transaction(&runs, none, none).err(), Some(Malformed::Count));
    assert_eq!(transaction(&[], too_many(USED_MAX + 1), none).err(), Some(Malformed::Count));
    assert_eq!(transaction(&[], none, too_many(FREED_MAX + 1)).err(), Some(Malformed::Count));
    let lock = HeldRecord { name: key(0), mode: 1 };
    assert_eq!(HeldLocks::new(&[lock; HELD_LOCKS_MAX + 1]).err(), Some(Malformed::Count));
    assert_eq!(HeldLocks::new(&[lock; 2]).err(), Some(Malformed::Range));
    let inos = [U64::new(1); INOS_MAX + 1];
    assert_eq!(Inos::new(&inos).err(), Some(Malformed::Count));
    assert_eq!(Inos::new(&[]).err(), Some(Malformed::Count));

    let (inputs, spaces) = ([input(); COMPACT_UPPERS_MAX + 1], [space(); COMPACT_CHANGE_MAX]);
    let compact = |uppers: usize, lowers: usize, spaces: &[CompactSpaceRecord]| {
        let fixed = Compact::fixed(1, 1, false, None);
        Compact::new(fixed, &inputs[..uppers], &inputs[..lowers], spaces).err()
    };
    for (uppers, lowers) in [(0, 1), (COMPACT_UPPERS_MAX + 1, 0), (8, 9), (20, 5)] {
        assert_eq!(compact(uppers, lowers, &[]), Some(Malformed::Count));
    }
    assert_eq!(compact(1, 0, &spaces), Some(Malformed::Count));
    assert_eq!(compact(1, 0, &spaces[1..]), None);
    let made = [run(); OUTPUTS_MAX + 1];
    assert_eq!(Compacted::new(1, &made).err(), Some(Malformed::Count));

    let number = 4;
    let (data_blocks, run_blocks, inodes, run_ids) = (0, 0, 0, 0);
    let returned = too_many(RETURNED_MAX + 1);
    let loan = LoanRequest { number, data_blocks, run_blocks, inodes, run_ids, returned };
    let bytes = payload(&ClientRequest::Loan(loan));
    assert_eq!(ClientRequest::parse(Kind::Loan, &bytes), Err(Malformed::Count));
}

#[test]
fn meaningless_values_are_refused() {
    let refused = |name: &str, at: usize, value: u8| {
        let mut bytes = golden()[name].clone();
        bytes[at] = value;
        rewritten(name, &bytes).expect_err(name)
    };
    // A grant without a manifest, and a revoke with one.
    assert_eq!(refused("request locktell", 0, LockRecord::GRANT), Malformed::Length);
    assert_eq!(refused("request locktell grant", 0, LockRecord::REVOKE), Malformed::Length);
    assert_eq!(refused("request inuse", 16, 0), Malformed::Zero);
    assert_eq!(refused("request transaction", 0, 0), Malformed::Zero);
    assert_eq!(refused("request transaction", 31, 1), Malformed::Reserved);
    // A run without a number, outside of any volume, with bytes that mean nothing, and with a zone
    // that isn't one.
    assert_eq!(refused("request transaction", 32, 0), Malformed::Value);
    assert_eq!(refused("request transaction", 32 + 15, 1), Malformed::Range);
    assert_eq!(refused("request transaction", 32 + 30, 1), Malformed::Reserved);
    assert_eq!(refused("request transaction", 32 + 32, 9), Malformed::Range);
    assert_eq!(refused("request transaction", 32 + 255, 1), Malformed::Reserved);
    // An extent of nothing, and one of no pool.
    assert_eq!(refused("request loan", 32 + 8, 0), Malformed::Range);
    assert_eq!(refused("request loan", 32 + 12, 9), Malformed::Value);
    // An extent past the last number.
    assert_eq!(refused("request loan", 64 + 8, 2), Malformed::Range);
    assert_eq!(refused("request locktell grant", 38 + 24, 0), Malformed::Value);
    assert_eq!(refused("answer recover", 2, 1), Malformed::Reserved);
    assert_eq!(refused("answer statfs", 12, 1), Malformed::Range);
    // Nothing is merged without a number, into no level, under a flag that isn't one, or into an
    // extent for no run, or of nothing; and space for that is no pool to be told of.
    assert_eq!(refused("request compact", 0, 0), Malformed::Zero);
    assert_eq!(refused("request compact", 8, 99), Malformed::Value);
    assert_eq!(refused("request compact", 9, 4), Malformed::Value);
    assert_eq!(refused("request compact", 9, 1), Malformed::Reserved);
    assert_eq!(refused("request compact", 47, 1), Malformed::Reserved);
    assert_eq!(refused("request compact", 48 + 512, 0), Malformed::Zero);
    assert_eq!(refused("request compact", 48 + 512 + 16, 0), Malformed::Range);
    assert_eq!(refused("request compacted", 0, 0), Malformed::Zero);
    assert_eq!(refused("request compacted", 10, 3), Malformed::Count);
    assert_eq!(refused("request compactready", 0, AT_ONCE_MAX + 1), Malformed::Count);
    assert_eq!(refused("request loan", 32 + 12, Pool::Compaction as u8), Malformed::Value);
    assert_eq!(refused("greeting hello", 1, 0), Malformed::Value);
    assert_eq!(refused("greeting hello", 2, 4), Malformed::Value);
    assert_eq!(refused("greeting hello", 4, 3), Malformed::Range);
    assert_eq!(refused("greeting hello", 88, 0), Malformed::Zero);
    assert_eq!(refused("greeting welcome", 0, 3), Malformed::Kind);
}

#[test]
fn frames_that_contradict_themselves_are_refused() {
    let refused = |name: &str, at: usize, value: u8| {
        let mut bytes = golden()[name].clone();
        bytes[at] = value;
        Frame::parse(&bytes).expect_err(name)
    };
    // A message without a number, a request without a name, with an error, of an unknown kind.
    assert_eq!(refused("frame request", 0, 0), Malformed::Zero);
    assert_eq!(refused("frame request", 16, 0), Malformed::Zero);
    assert_eq!(refused("frame request", 27, 3), Malformed::Value);
    assert_eq!(refused("frame request", 24, 200), Malformed::Kind);
    assert_eq!(refused("frame request", 24, 0), Malformed::Kind);
    assert_eq!(refused("frame request", 26, 2), Malformed::Value);
    assert_eq!(refused("frame request", 28, 1), Malformed::Reserved);
    // An acknowledgement that is more than one.
    for at in [16, 24, 26, 27] {
        assert_eq!(refused("frame idle", at, 1), Malformed::Zero);
    }
    let mut long = golden()["frame idle"].clone();
    long.push(0);
    assert_eq!(Frame::parse(&long), Err(Malformed::Zero));
}

#[test]
fn error_codes_are_distinct_and_newer_ones_are_unknown() {
    for code in ErrorCode::ALL {
        assert_eq!(ErrorCode::from_wire(code.to_wire()), Some(*code));
    }
    assert_eq!(ErrorCode::from_wire(0), None);
    assert_eq!(ErrorCode::from_wire(200), Some(ErrorCode::Unknown));
}

#[test]
fn an_error_keeps_its_payload() {
    let bytes = &golden()["answer loan"];
    let with = Outcome::<ServerAnswer<'_>>::parse(Kind::Loan, Some(ErrorCode::NoSpace), bytes);
    let with = with.unwrap();
    assert_eq!(with.error(), Some(ErrorCode::NoSpace));
    assert_eq!(payload(with.answer().unwrap()), *bytes);
    let without = Outcome::<ServerAnswer<'_>>::parse(Kind::Loan, Some(ErrorCode::NoSpace), &[]);
    assert_eq!(without, Ok(Outcome::Failed(ErrorCode::NoSpace, None)));
    let missing = Outcome::<ServerAnswer<'_>>::parse(Kind::Loan, None, &[]);
    assert_eq!(missing, Err(Malformed::Length));
}

#[test]
fn fields_leave_no_gaps() {
    fn check<T: Record>() {
        let end = T::FIELDS.iter().fold(0, |offset, field: &Field| {
            assert_eq!(field.offset, offset, "{} {}", T::NAME, field.name);
            offset + field.bytes
        });
        assert_eq!(end, size_of::<T>(), "{}", T::NAME);
    }
    check::<RecordHeader>();
    check::<FrameHeader>();
    check::<Hello>();
    check::<Challenge>();
    check::<Proof>();
    check::<Welcome>();
    check::<RunRecord>();
    check::<ExtentRecord>();
    check::<LockRecord>();
    check::<HeldRecord>();
    check::<HeldLocksRecord>();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5000, ..ProptestConfig::default() })]

    /// Whatever bytes come: they are refused, or mean what is written as the same bytes. Nothing
    /// is read past, and nothing has two spellings.
    #[test]
    fn bytes_are_refused_or_canonical(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let golden: Vec<_> = golden().into_iter().collect();
        let (name, mut bytes) = golden[which.index(golden.len())].clone();
        for (at, value) in changes {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len() + 1));
        }
        // Error codes only a newer peer knows are the one exception.
        let newer = |at: usize| {
            bytes.get(at).is_some_and(|code| {
                ErrorCode::from_wire(*code) == Some(ErrorCode::Unknown)
            })
        };
        let lossy = name.starts_with("frame") && newer(27)
            || name.starts_with("request compacted") && newer(10)
            || name.starts_with("greeting challenge") && newer(1)
            || name.starts_with("greeting welcome") && bytes.get(1).is_some_and(|code| *code != 0);
        if let Ok(again) = rewritten(name, &bytes) && !lossy {
            prop_assert_eq!(&again[..], &bytes[..again.len()]);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        for kind in Kind::ALL {
            let _ = ClientRequest::parse(kind, &bytes);
            let _ = ServerRequest::parse(kind, &bytes);
            let _ = ClientAnswer::parse(kind, &bytes);
            let _ = ServerAnswer::parse(kind, &bytes);
        }
        let _ = Frame::parse(&bytes);
    }
}

#[test]
fn a_set_of_inodes_is_about_its_question() {
    for count in 1..=INOS_MAX {
        let inos = vec![U64::new(7); count];
        let inos = Inos::new(&inos).unwrap();
        let mut used = InoSet::default();
        used.insert(count - 1);
        let unused = inos.all().without(used);
        for n in 0..INOS_MAX + 1 {
            assert_eq!(inos.all().contains(n), n < count);
            assert_eq!(unused.contains(n), n + 1 < count);
        }
        assert_eq!(unused.union(used), inos.all());
    }
}

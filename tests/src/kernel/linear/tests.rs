//! Histories that could have happened, and histories that could not.

use super::{Operation, Outcome, Verdict, check};
use crate::kernel::history::{DIR_PERMISSIONS, Life};
use crate::model::Done;
use crate::trace::HostId;
use outrider_core::client::op::{
    Attr, Handle, NameBuf, NewMode, Op, OpError, OpenAccess, OpenHow, Reply, WriteAt,
};
use outrider_core::format::Ino;
use outrider_core::format::item::{FileKind, Time};

const DIR: Ino = Ino(77);
const FILE: Ino = Ino(1000);
const MADE: Time = Time { sec: 1, nsec: 0 };

fn at(sec: i64) -> Time {
    Time { sec, nsec: 0 }
}

fn name() -> NameBuf {
    NameBuf::parse(b"x").unwrap()
}

fn file(size: u64, changed: i64) -> Attr {
    Attr {
        ino: FILE,
        kind: FileKind::Regular,
        permissions: 0o644,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        size,
        sectors: 8,
        atime: at(2),
        mtime: at(changed),
        ctime: at(changed),
        crtime: at(2),
    }
}

/// An operation between two moments, whose time is that at which it began.
fn operation(host: u16, op: Op, (begun, ended): (u64, u64), outcome: Outcome) -> Operation {
    let mount = Life { host: HostId(host), number: 1 };
    let (now, data) = (at(begun as i64), b"data".to_vec());
    Operation { mount, op, data, now, room: None, begun, ended, outcome }
}

fn known(reply: Reply) -> Outcome {
    Outcome::Known(Ok(Done { reply, data: Vec::new() }))
}

fn failed(error: OpError) -> Outcome {
    Outcome::Known(Err(error))
}

fn create(host: u16, span: (u64, u64), outcome: Outcome) -> Operation {
    let how = OpenHow { access: OpenAccess::ReadWrite, truncate: false, strip: false };
    let mode = NewMode { permissions: 0o644, umask: 0 };
    let op = Op::Create { dir: DIR, name: name(), mode, how, exclusive: true };
    operation(host, op, span, outcome)
}

fn created() -> Outcome {
    known(Reply::Created(file(0, 2), Handle(5)))
}

fn write(span: (u64, u64), outcome: Outcome) -> Operation {
    let at = WriteAt::End;
    operation(
        1,
        Op::Write { ino: FILE, handle: Handle(5), at, len: 4, strip: false },
        span,
        outcome,
    )
}

fn lookup(host: u16, span: (u64, u64), outcome: Outcome) -> Operation {
    operation(host, Op::Lookup { dir: DIR, name: name() }, span, outcome)
}

fn unlink(host: u16, span: (u64, u64), outcome: Outcome) -> Operation {
    operation(host, Op::Unlink { dir: DIR, name: name() }, span, outcome)
}

fn read(span: (u64, u64), bytes: &[u8]) -> Operation {
    let reply = Reply::Count(bytes.len() as u32);
    let outcome = Outcome::Known(Ok(Done { reply, data: bytes.to_vec() }));
    let op = Op::Read { ino: FILE, handle: Handle(5), at: 0, len: 100 };
    operation(1, op, span, outcome)
}

fn found(size: u64, changed: i64) -> Outcome {
    known(Reply::Entry(file(size, changed)))
}

fn verdict(operations: &[Operation]) -> Verdict {
    check(operations, DIR, DIR_PERMISSIONS, MADE)
}

fn is_right(operations: &[Operation]) -> bool {
    match verdict(operations) {
        Verdict::Linearizable => true,
        Verdict::Not(_) => false,
        Verdict::Undecided => panic!("undecided"),
    }
}

#[test]
fn what_comes_after_sees_what_came_before() {
    let seen = [create(1, (2, 3), created()), lookup(2, (4, 5), found(0, 2))];
    assert!(is_right(&seen));
    let missed = [create(1, (2, 3), created()), lookup(2, (4, 5), failed(OpError::NotFound))];
    assert!(!is_right(&missed));
}

#[test]
fn what_overlaps_may_come_first_or_last() {
    for outcome in [found(0, 2), failed(OpError::NotFound)] {
        assert!(is_right(&[create(1, (2, 9), created()), lookup(2, (4, 5), outcome)]));
    }
    // One sees the file, and another, later, doesn't.
    let both = [
        create(1, (2, 9), created()),
        lookup(2, (3, 4), found(0, 2)),
        lookup(3, (5, 6), failed(OpError::NotFound)),
    ];
    assert!(!is_right(&both));
}

#[test]
fn only_one_makes_a_name() {
    let exists = create(2, (2, 9), failed(OpError::Exists));
    assert!(is_right(&[create(1, (2, 9), created()), exists.clone()]));
    assert!(!is_right(&[exists]), "nobody has made it");
    let other = Reply::Created(Attr { ino: Ino(1001), ..file(0, 2) }, Handle(6));
    assert!(!is_right(&[create(1, (2, 9), created()), create(2, (2, 9), known(other))]));
}

#[test]
fn attributes_and_bytes_are_those_of_the_last_write() {
    let written = [create(1, (2, 3), created()), write((4, 5), known(Reply::Count(4)))];
    let and = |operation: Operation| [&written[..], &[operation]].concat();
    assert!(is_right(&and(lookup(2, (6, 7), found(4, 4)))));
    assert!(!is_right(&and(lookup(2, (6, 7), found(0, 2)))), "it is stale");
    assert!(is_right(&and(read((6, 7), b"data"))));
    assert!(!is_right(&and(read((6, 7), b"dat"))));
    assert!(!is_right(&and(read((6, 7), b"dada"))));
    let short = [create(1, (2, 3), created()), write((4, 5), known(Reply::Count(2)))];
    assert!(is_right(&[&short[..], &[read((6, 7), b"da")]].concat()));
    assert!(!is_right(&[&short[..], &[read((6, 7), b"data")]].concat()));
}

#[test]
fn what_a_signal_has_ended_has_not_happened() {
    let given_up = create(1, (2, 3), failed(OpError::Interrupted));
    assert!(is_right(&[given_up.clone(), lookup(2, (4, 5), failed(OpError::NotFound))]));
    assert!(!is_right(&[given_up, lookup(2, (4, 5), found(0, 2))]));
}

#[test]
fn what_nobody_knows_of_has_happened_or_not() {
    let unknown = create(1, (2, u64::MAX), Outcome::Unknown);
    let absent = |span| lookup(2, span, failed(OpError::NotFound));
    assert!(is_right(&[unknown.clone(), absent((4, 5))]));
    assert!(is_right(&[unknown.clone(), absent((4, 5)), lookup(2, (6, 7), found(0, 2))]));
    assert!(!is_right(&[unknown, lookup(2, (4, 5), found(0, 2)), absent((6, 7))]));
    // What failed on the device may have left any bytes there, but doesn't make the file longer.
    let failed = [create(1, (2, 3), created()), write((4, 5), Outcome::Unknown)];
    assert!(is_right(&[&failed[..], &[read((6, 7), b"dxyz")]].concat()));
    assert!(!is_right(&[&failed[..], &[read((6, 7), b"too long")]].concat()));
}

#[test]
fn only_what_has_no_name_and_is_not_open_is_stale() {
    let getattr = |host, span| operation(host, Op::Getattr { ino: FILE }, span, stale());
    fn stale() -> Outcome {
        failed(OpError::Stale)
    }
    let made = [create(1, (2, 3), created()), lookup(2, (4, 5), found(0, 2))];
    assert!(!is_right(&[&made[..], &[getattr(2, (6, 7))]].concat()));
    let removed = [&made[..], &[unlink(2, (6, 7), known(Reply::Empty))]].concat();
    assert!(is_right(&[&removed[..], &[getattr(2, (8, 9))]].concat()));
    assert!(!is_right(&[&removed[..], &[getattr(1, (8, 9))]].concat()), "it is open there");
    let remote = [&made[..], &[unlink(2, (6, 9), known(Reply::Empty)), getattr(2, (7, 8))]];
    assert!(is_right(&remote.concat()), "it may have gone already");
}

#[test]
fn what_a_mount_had_open_is_not_what_the_next_one_there_opens() {
    let next = |operation: Operation| {
        let mount = Life { number: 2, ..operation.mount };
        Operation { mount, ..operation }
    };
    let how = OpenHow { access: OpenAccess::ReadWrite, truncate: false, strip: false };
    let open = operation(1, Op::Open { ino: FILE, how }, (6, 7), known(Reply::Opened(Handle(5))));
    let made = [create(1, (2, 3), created()), lookup(2, (4, 5), found(0, 2))];
    assert!(is_right(&[&made[..], &[next(open.clone())]].concat()));
    assert!(!is_right(&[&made[..], &[open]].concat()), "that one is open");
    let removed = [&made[..], &[unlink(2, (6, 7), known(Reply::Empty))]].concat();
    let getattr = operation(1, Op::Getattr { ino: FILE }, (8, 9), failed(OpError::Stale));
    assert!(is_right(&[&removed[..], &[next(getattr)]].concat()), "it isn't open there any more");
}

//! Traps that cluster file systems of this kind have fallen into, each as a scenario of real
//! servers and mounts on simulated machines. `traps.md` has the list.
#![allow(clippy::unwrap_used)] // A test that can't go on has failed.

use outrider_core::client::fs::ROOT;
use outrider_core::client::mount::MountLimits;
use outrider_core::client::op::query::{Query, StatRecord};
use outrider_core::client::op::{
    Attr, FallocateMode, Handle, NameBuf, NewMode, NewNode, Op, OpError, OpenAccess, OpenHow,
    RenameMode, Reply, SetAttr, SetTime, WriteAt,
};
use outrider_core::format::Ino;
use outrider_core::format::item::Time;
use outrider_core::server::Server;
use outrider_tests::model::walk::Executes;
use outrider_tests::model::{Asked, Done, User};
use outrider_tests::platform::Platform;
use outrider_tests::scenario::mount::{Shown, calm, voters};
use outrider_tests::trace::HostId;
use outrider_tests::world::World;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use zerocopy::FromBytes;

type Result<T> = std::result::Result<T, OpError>;

static USER: User = User::ROOT;
const MODE: NewMode = NewMode { permissions: 0o755, umask: 0 };
const START: i64 = 1_000_000;
/// Less than any exchange with a server takes.
const MOMENT: Duration = Duration::from_micros(50);

/// Two mounts of a volume with one server, which is machine 0.
fn two(seed: u64) -> [Shown; 2] {
    mounted(calm(seed, 2, MountLimits::small()), [1, 2])
}

fn mounted<const N: usize>(world: World, hosts: [u16; N]) -> [Shown; N] {
    let world = Rc::new(RefCell::new(world));
    let mounts = hosts.map(|host| Shown { world: Rc::clone(&world), host: HostId(host) });
    mounts.iter().for_each(Shown::mount);
    mounts
}

fn name(text: &str) -> NameBuf {
    NameBuf::parse(text.as_bytes()).unwrap()
}

/// A request of user 0 at this second.
fn asked<'a>(sec: i64, op: &'a Op, data: &'a [u8]) -> Asked<'a> {
    Asked { user: &USER, now: Time { sec, nsec: 0 }, op, data, room: Some(1 << 17) }
}

fn call(on: &Shown, op: &Op) -> Result<Done> {
    on.clone().execute(&asked(START, op, &[]))
}

/// Makes two calls, the second so long after the first, which goes on meanwhile.
fn both(calls: [(&Shown, &Op); 2], later: Duration) -> [Result<Done>; 2] {
    let begun = calls.map(|(on, op)| {
        let id = on.begin(&asked(START, op, &[]));
        run(on, later);
        (on, id)
    });
    begun.map(|(on, id)| on.ended_within(id, Duration::from_secs(60)).expect("it ends"))
}

fn run(on: &Shown, how_long: Duration) {
    on.world.borrow_mut().run(how_long).unwrap();
}

fn create(text: &str) -> Op {
    let how = OpenHow { access: OpenAccess::ReadWrite, truncate: false, strip: false };
    Op::Create { dir: ROOT, name: name(text), mode: MODE, how, exclusive: true }
}

fn created(on: &Shown, text: &str) -> (Ino, Handle) {
    match call(on, &create(text)).unwrap().reply {
        Reply::Created(attr, handle) => (attr.ino, handle),
        reply => panic!("{reply:?}"),
    }
}

fn opened(on: &Shown, ino: Ino) -> Handle {
    let how = OpenHow { access: OpenAccess::Read, truncate: false, strip: false };
    match call(on, &Op::Open { ino, how }).unwrap().reply {
        Reply::Opened(handle) => handle,
        reply => panic!("{reply:?}"),
    }
}

fn lookup(on: &Shown, dir: Ino, text: &str) -> Result<Attr> {
    match call(on, &Op::Lookup { dir, name: name(text) })?.reply {
        Reply::Entry(attr) => Ok(attr),
        reply => panic!("{reply:?}"),
    }
}

fn attributes(on: &Shown, ino: Ino) -> Attr {
    match call(on, &Op::Getattr { ino }).unwrap().reply {
        Reply::Attr(attr) => attr,
        reply => panic!("{reply:?}"),
    }
}

fn write(on: &Shown, (ino, handle): (Ino, Handle), data: &[u8]) {
    let at = WriteAt::Offset(0);
    let op = Op::Write { ino, handle, at, len: data.len() as u32, strip: false };
    on.clone().execute(&asked(START, &op, data)).unwrap();
}

fn fsync(on: &Shown, (ino, handle): (Ino, Handle)) {
    call(on, &Op::Fsync { ino, handle, data_only: false }).unwrap();
}

fn contents(on: &Shown, ino: Ino) -> Vec<u8> {
    let handle = opened(on, ino);
    let data = call(on, &Op::Read { ino, handle, at: 0, len: 1 << 16 }).unwrap().data;
    call(on, &Op::Release { ino, handle }).unwrap();
    data
}

fn resize(on: &Shown, ino: Ino, size: u64) {
    let set = SetAttr { size: Some(size), ..SetAttr::default() };
    call(on, &Op::Setattr { ino, handle: None, set }).unwrap();
}

fn unlink(text: &str) -> Op {
    Op::Unlink { dir: ROOT, name: name(text) }
}

/// Transactions that a mount has sent.
fn transactions(on: &Shown) -> u64 {
    let world = on.world.borrow();
    world.guest::<Platform>(on.host).map_or(0, |at| at.mount.counters().transactions)
}

/// Inodes that a mount has deleted.
fn deleted(on: &Shown) -> u64 {
    let world = on.world.borrow();
    world.guest::<Platform>(on.host).map_or(0, |at| at.mount.counters().deleted)
}

#[test]
fn of_two_mounts_that_make_one_name_one_does() {
    let [one, other] = two(1);
    let (ino, _) = created(&one, "linked");
    for (at, new) in [
        |name| Op::Mkdir { dir: ROOT, name, mode: MODE },
        |name| Op::Mknod { dir: ROOT, name, mode: MODE, node: NewNode::Regular },
    ]
    .into_iter()
    .cycle()
    .take(12)
    .enumerate()
    {
        let text = format!("name-{at}");
        let link = Op::Link { ino, dir: ROOT, name: name(&text) };
        let new = if at % 3 == 2 { link } else { new(name(&text)) };
        let ends = both([(&one, &create(&text)), (&other, &new)], MOMENT * at as u32);
        let won = ends.iter().filter(|end| end.is_ok()).count();
        assert_eq!(won, 1, "{text}: {ends:?}");
        assert!(ends.contains(&Err(OpError::Exists)), "{text}: {ends:?}");
        assert_eq!(lookup(&one, ROOT, &text), lookup(&other, ROOT, &text));
    }
}

#[test]
fn of_two_mounts_that_remove_one_name_one_does() {
    let [one, other] = two(2);
    for at in 0..6 {
        let text = format!("name-{at}");
        let (ino, _) = created(&one, &text);
        call(&one, &Op::Link { ino, dir: ROOT, name: name(&format!("kept-{at}")) }).unwrap();
        let rename = Op::Rename {
            dir: ROOT,
            name: name(&text),
            to_dir: ROOT,
            to_name: name(&format!("moved-{at}")),
            mode: RenameMode::NoReplace,
        };
        assert_eq!(lookup(&other, ROOT, &text).unwrap().nlink, 2);
        let ends = both([(&one, &unlink(&text)), (&other, &rename)], MOMENT * at);
        let lost = ends.iter().filter(|end| **end == Err(OpError::NotFound)).count();
        assert_eq!(lost, 1, "{text}: {ends:?}");
        let left = 1 + u32::from(ends[1].is_ok());
        assert_eq!(attributes(&one, ino).nlink, left);
        assert_eq!(attributes(&other, ino).nlink, left);
    }
}

#[test]
fn what_one_mount_has_open_is_there_until_it_is_closed_there() {
    let [one, other] = two(3);
    let file = created(&one, "file");
    write(&one, file, &[7; 9000]);
    fsync(&one, file);
    let ino = lookup(&other, ROOT, "file").unwrap().ino;
    let handle = opened(&other, ino);
    call(&one, &unlink("file")).unwrap();
    call(&one, &Op::Release { ino, handle: file.1 }).unwrap();
    call(&one, &Op::Forget { ino, lookups: 1 }).unwrap();
    // Longer than it takes to look for what nobody uses.
    run(&one, Duration::from_secs(30));
    assert_eq!(deleted(&one) + deleted(&other), 0);
    let read = Op::Read { ino, handle, at: 0, len: 1 << 16 };
    assert_eq!(call(&other, &read).unwrap().data, [7; 9000]);
    call(&other, &Op::Release { ino, handle }).unwrap();
    call(&other, &Op::Forget { ino, lookups: 1 }).unwrap();
    run(&one, Duration::from_secs(60));
    assert_eq!(deleted(&one) + deleted(&other), 1);
}

#[test]
fn what_a_dead_mount_has_left_without_a_name_is_deleted_by_another() {
    let [one, other] = two(4);
    let file = created(&one, "file");
    write(&one, file, &[7; 9000]);
    call(&one, &unlink("file")).unwrap();
    fsync(&one, file);
    one.world.borrow_mut().crash(one.host);
    run(&other, Duration::from_secs(90));
    assert_eq!(deleted(&other), 1);
}

#[test]
fn a_link_to_what_loses_its_last_name_is_made_or_not() {
    let [one, other] = two(5);
    let mut made = 0;
    for at in 0..12 {
        let (text, second) = (format!("first-{at}"), format!("second-{at}"));
        let file = created(&one, &text);
        write(&one, file, &[at; 5000]);
        fsync(&one, file);
        call(&one, &Op::Release { ino: file.0, handle: file.1 }).unwrap();
        let ino = lookup(&other, ROOT, &text).unwrap().ino;
        let link = Op::Link { ino, dir: ROOT, name: name(&second) };
        let mut calls = [(&one, &unlink(&text)), (&other, &link)];
        calls.rotate_left(usize::from(at % 2));
        let mut ends = both(calls, MOMENT * u32::from(at));
        ends.rotate_left(usize::from(at % 2));
        assert!(ends[0].is_ok());
        made += u8::from(ends[1].is_ok());
        for on in [&one, &other] {
            call(on, &Op::Forget { ino, lookups: 1 }).unwrap();
        }
        // What is to be deleted is.
        run(&one, Duration::from_secs(15));
        for on in [&one, &other] {
            match (&ends[1], lookup(on, ROOT, &second)) {
                (Ok(_), Ok(attr)) => {
                    assert_eq!((attr.ino, attr.nlink), (ino, 1));
                    assert_eq!(contents(on, ino), [at; 5000]);
                }
                (Err(_), Err(OpError::NotFound)) => {}
                (linked, found) => panic!("{linked:?}, but {found:?}"),
            }
        }
    }
    assert!((1..12).contains(&made), "{made} links were made");
}

#[test]
fn a_file_that_is_cut_and_grows_again_ends_in_zeros_everywhere() {
    let [one, other] = two(6);
    let file = created(&one, "file");
    write(&one, file, &[7; 9000]);
    fsync(&one, file);
    resize(&one, file.0, 4500);
    resize(&one, file.0, 9000);
    let expected = [[7; 4500], [0; 4500]].concat();
    assert_eq!(contents(&one, file.0), expected);
    let ino = lookup(&other, ROOT, "file").unwrap().ino;
    assert_eq!(contents(&other, ino), expected);
    one.restart();
    one.mount();
    assert_eq!(contents(&one, ino), expected);
}

#[test]
fn a_file_moves_into_the_root_and_what_it_replaces_knows_when() {
    let [one, other] = two(7);
    let Reply::Entry(dir) =
        call(&one, &Op::Mkdir { dir: ROOT, name: name("dir"), mode: MODE }).unwrap().reply
    else {
        panic!()
    };
    let node = NewNode::Regular;
    for (dir, text) in [(dir.ino, "file"), (ROOT, "file")] {
        call(&one, &Op::Mknod { dir, name: name(text), mode: MODE, node }).unwrap();
    }
    let replaced = lookup(&one, ROOT, "file").unwrap().ino;
    call(&one, &Op::Link { ino: replaced, dir: ROOT, name: name("kept") }).unwrap();
    let moved = lookup(&other, dir.ino, "file").unwrap().ino;
    let rename = Op::Rename {
        dir: dir.ino,
        name: name("file"),
        to_dir: ROOT,
        to_name: name("file"),
        mode: RenameMode::Replace,
    };
    other.clone().execute(&asked(START + 50, &rename, &[])).unwrap();
    assert_eq!(lookup(&one, ROOT, "file").unwrap().ino, moved);
    assert_eq!(lookup(&one, dir.ino, "file"), Err(OpError::NotFound));
    let kept = lookup(&one, ROOT, "kept").unwrap();
    assert_eq!((kept.ino, kept.nlink, kept.ctime.sec), (replaced, 1, START + 50));
}

#[test]
fn what_was_changed_just_before_unmounting_is_there() {
    let [one, other] = two(8);
    let file = created(&one, "file");
    write(&one, file, &[7; 9000]);
    let gone = created(&one, "gone");
    write(&one, gone, &[8; 9000]);
    call(&one, &unlink("gone")).unwrap();
    for (ino, handle) in [file, gone] {
        call(&one, &Op::Release { ino, handle }).unwrap();
    }
    resize(&one, file.0, 100);
    one.unmount();
    let ino = lookup(&other, ROOT, "file").unwrap().ino;
    assert_eq!(contents(&other, ino), [7; 100]);
    assert_eq!(lookup(&other, ROOT, "gone"), Err(OpError::NotFound));
    run(&other, Duration::from_secs(60));
    assert_eq!(deleted(&one) + deleted(&other), 1, "with all its blocks");
}

/// Nobody who waits for a lock stands in the way of what its holder must say to give it back.
#[test]
fn more_is_taken_back_at_once_than_may_be_asked_at_once() {
    let [one, other] = two(9);
    let mut dirs = Vec::new();
    for at in 0..48 {
        let op = Op::Mkdir { dir: ROOT, name: name(&format!("dir-{at}")), mode: MODE };
        let Reply::Entry(attr) = call(&one, &op).unwrap().reply else { panic!() };
        dirs.push(attr.ino);
    }
    for turn in 0..3 {
        for ino in &dirs {
            let mtime = Some(SetTime::To(Time { sec: START + turn, nsec: 0 }));
            let set = SetAttr { mtime, ..SetAttr::default() };
            call(&one, &Op::Setattr { ino: *ino, handle: None, set }).unwrap();
        }
        // Both want all of them in the same moment.
        let op = |ino: &Ino| Op::Getattr { ino: *ino };
        let asks: Vec<_> = dirs
            .iter()
            .flat_map(|ino| [&other, &one].map(|on| (on, on.begin(&asked(START, &op(ino), &[])))))
            .collect();
        for (on, id) in asks {
            let end = on.ended_within(id, Duration::from_secs(30)).expect("it ends").unwrap();
            let Reply::Attr(attr) = end.reply else { panic!() };
            assert_eq!(attr.mtime.sec, START + turn);
        }
    }
}

/// A change under a lock that is wanted back isn't durable yet, and the leader that wants it goes,
/// at any moment of that. The next one hears of the lock as it is held, not as it will be.
#[test]
fn a_leader_that_goes_while_a_lock_is_taken_back_loses_no_change() {
    let [one, other] = mounted(voters(10, 2, 2), [2, 3]);
    let file = created(&one, "file");
    fsync(&one, file);
    let ino = lookup(&other, ROOT, "file").unwrap().ino;
    // Changes that were not on their way, on their way, and through when the leader went.
    let mut times = [0; 3];
    for turn in 0..28 {
        let mtime = Some(SetTime::To(Time { sec: START + turn, nsec: 0 }));
        let set = SetAttr { mtime, ..SetAttr::default() };
        call(&one, &Op::Setattr { ino, handle: None, set }).unwrap();
        let before = transactions(&one);
        let id = other.begin(&asked(START, &Op::Getattr { ino }, &[]));
        run(&one, MOMENT * 24 * turn as u32);
        let over = |at: &Platform| at.has_ended(id);
        times[match other.world.borrow().guest(other.host).is_some_and(over) {
            true => 2,
            false => usize::from(transactions(&one) > before),
        }] += 1;
        let leads = |host: &HostId| {
            let world = one.world.borrow();
            world.guest::<Server<'static>>(*host).is_some_and(|at| at.serving().is_some())
        };
        let leader = [HostId(0), HostId(1)].into_iter().find(leads).expect("one leads");
        one.world.borrow_mut().crash(leader);
        let end = other.ended_within(id, Duration::from_secs(30)).expect("it ends").unwrap();
        let Reply::Attr(attr) = end.reply else { panic!() };
        assert_eq!(attr.mtime.sec, START + turn, "turn {turn}");
        one.world.borrow_mut().boot(leader);
        run(&one, Duration::from_secs(2));
    }
    assert!(times.iter().all(|count| *count > 1), "{times:?}");
}

/// What is cut off a file belongs to it until that is durable: a crash before brings it back.
#[test]
fn what_a_crash_brings_back_has_not_been_written_over() {
    let [one, other] = two(11);
    let file = created(&one, "file");
    write(&one, file, &[7; 60_000]);
    fsync(&one, file);
    for at in 0..20 {
        resize(&one, file.0, 0);
        let next = created(&one, &format!("next-{at}"));
        write(&one, next, &[8; 60_000]);
        write(&one, file, &[9; 60_000]);
    }
    // Whatever of this was durable by itself: the file is one of what it was.
    one.world.borrow_mut().crash(one.host);
    run(&other, Duration::from_secs(30));
    let ino = lookup(&other, ROOT, "file").unwrap().ino;
    let found = contents(&other, ino);
    let same = |byte: u8| found.iter().all(|found| *found == byte);
    assert!(same(7) || same(9) || same(0), "{:?}", &found[..16.min(found.len())]);
}

/// Mounts come, use the volume, and go, in good order or not: nothing stays theirs.
#[test]
fn mounts_that_come_and_go_keep_nothing() {
    let [one, other] = two(12);
    for turn in 0..6 {
        let file = created(&one, &format!("file-{turn}"));
        write(&one, file, &[7; 60_000]);
        fsync(&one, file);
        if turn % 2 == 0 {
            call(&one, &Op::Release { ino: file.0, handle: file.1 }).unwrap();
            one.unmount();
        }
        one.restart();
        one.mount();
        run(&other, Duration::from_secs(20));
    }
    for on in [&one, &other] {
        on.unmount();
    }
    run(&one, Duration::from_secs(20));
    let left = one.world.borrow_mut().with(HostId(0), |at: &mut Server<'_>, _| {
        let fields = at.store().root().unwrap().fields();
        let trees = [&fields.loans, &fields.quarantine, &fields.clients, &fields.open_seqs];
        trees.map(|tree| tree.height)
    });
    assert_eq!(left, Some([0; 4]));
}

#[test]
fn growing_by_allocation_is_a_change_of_data() {
    let [one, _] = two(13);
    let file = created(&one, "file");
    fsync(&one, file);
    let numbers = |on: &Shown| {
        let done = call(on, &Op::Query(Query::Stat { ino: file.0 })).unwrap();
        let stat = StatRecord::read_from_bytes(&done.data).unwrap();
        (stat.data_seq.get(), stat.data_version.get())
    };
    let before = numbers(&one);
    let (ino, handle) = file;
    let mode = FallocateMode::Allocate;
    call(&one, &Op::Fallocate { ino, handle, at: 0, len: 100_000, mode }).unwrap();
    assert_eq!(attributes(&one, ino).size, 100_000);
    let after = numbers(&one);
    assert!(after.0 > before.0 && after.1 > before.1, "{before:?} {after:?}");
}

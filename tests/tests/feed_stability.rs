//! What holds back the feeds of changes, and what doesn't: mounts and servers of a simulated world
//! that end at the wrong moment.
#![allow(clippy::unwrap_used)] // A test that can't go on has failed.

use outrider_core::client::fs::ROOT;
use outrider_core::client::mount::MountLimits;
use outrider_core::client::op::query::{Feed, Page, Position, Query, StatRecord};
use outrider_core::client::op::{
    Handle, NameBuf, NewMode, Op, OpError, OpenAccess, OpenHow, Reply, WriteAt,
};
use outrider_core::format::item::Time;
use outrider_core::format::{Ino, Seq};
use outrider_tests::model::walk::Executes;
use outrider_tests::model::{Asked, Done, User};
use outrider_tests::scenario::mount::{Shown, calm};
use outrider_tests::time::SECOND;
use outrider_tests::trace::HostId;
use std::cell::RefCell;
use std::rc::Rc;
use zerocopy::FromBytes;

const SERVER: HostId = HostId(0);

/// Mounts of a world, all up.
fn mounts(seed: u64, count: u16) -> Vec<Shown> {
    let world = Rc::new(RefCell::new(calm(seed, count, MountLimits::small())));
    let shown = (1..=count).map(|host| Shown { world: Rc::clone(&world), host: HostId(host) });
    let shown: Vec<_> = shown.collect();
    shown.iter().for_each(Shown::mount);
    shown
}

fn call(at: &mut Shown, op: &Op, data: &[u8]) -> Result<Done, OpError> {
    at.execute(&Asked { user: &User::ROOT, now: Time { sec: 1, nsec: 0 }, op, data, room: None })
}

/// Makes a file, durably; the number that it bears.
fn make(at: &mut Shown, name: &str) -> Seq {
    let name = NameBuf::parse(name.as_bytes()).unwrap();
    let mode = NewMode { permissions: 0o644, umask: 0 };
    let how = OpenHow { access: OpenAccess::ReadWrite, truncate: false, strip: false };
    let made = call(at, &Op::Create { dir: ROOT, name, mode, how, exclusive: true }, &[]);
    let Reply::Created(attr, handle) = made.unwrap().reply else { panic!("no file") };
    write(at, attr.ino, handle);
    let stat = call(at, &Op::Query(Query::Stat { ino: attr.ino }), &[]).unwrap();
    Seq(StatRecord::read_from_bytes(&stat.data[..]).unwrap().data_seq.get())
}

fn write(at: &mut Shown, ino: Ino, handle: Handle) {
    let (place, len) = (WriteAt::Offset(0), 4);
    call(at, &Op::Write { ino, handle, at: place, len, strip: false }, b"data").unwrap();
    call(at, &Op::Fsync { ino, handle, data_only: false }, &[]).unwrap();
}

/// Up to which number a feed is stable, and the numbers in it.
fn walk(at: &mut Shown, feed: Feed) -> (Seq, Vec<Seq>) {
    let (mut first, mut seqs) = (Position::FIRST, Vec::new());
    loop {
        let query = Query::Walk { feed, first, last: Position::LAST };
        let done = call(at, &Op::Query(query), &[]).unwrap();
        let page = Page::parse(&done.data).unwrap();
        seqs.extend(page.entries().map(|place| place.seq));
        match page.through.next().filter(|_| !page.end) {
            Some(next) => first = next,
            None => return (page.stable, seqs),
        }
    }
}

fn wait(at: &Shown, time: std::time::Duration) {
    let mut world = at.world.borrow_mut();
    let until = world.now().plus(time);
    world.run_until(time, |world| world.now() >= until).unwrap();
}

fn restart_server(at: &Shown) {
    let mut world = at.world.borrow_mut();
    world.crash(SERVER);
    world.boot(SERVER);
}

#[test]
fn an_open_number_of_a_mount_that_is_gone_holds_feeds_back_until_its_eviction() {
    let mut mounts = mounts(1, 2);
    let (gone, rest) = mounts.split_first_mut().unwrap();
    let here = &mut rest[0];
    // It has changed nothing, so nobody waits for a lock of it.
    gone.world.borrow_mut().crash(gone.host);
    // Several in a row, so that it is not its own number that holds them back.
    let seq = (0..4).map(|file| make(here, &format!("{file}"))).max().unwrap();
    assert!(walk(here, Feed::Data).0 < seq);
    // The next server finds the open number of the one that is gone.
    restart_server(here);
    let (stable, seqs) = walk(here, Feed::Data);
    assert!(stable < seq && !seqs.contains(&seq), "{stable} {seqs:?}");
    // It is evicted, and the number ends.
    wait(here, 30 * SECOND);
    let (stable, seqs) = walk(here, Feed::Data);
    assert!(stable >= seq && seqs.contains(&seq), "{stable} {seqs:?}");
}

#[test]
fn who_leaves_holds_nothing_back() {
    let mut mounts = mounts(2, 2);
    let (leaves, rest) = mounts.split_first_mut().unwrap();
    let here = &mut rest[0];
    make(leaves, "before");
    let seq = (0..4).map(|file| make(here, &format!("{file}"))).max().unwrap();
    let (stable, _) = walk(here, Feed::Data);
    assert!(stable < seq, "{stable} {seq}");
    leaves.unmount();
    let (stable, seqs) = walk(here, Feed::Data);
    assert!(stable >= seq && seqs.contains(&seq), "{stable} {seqs:?}");
}

#[test]
fn mounts_that_change_nothing_let_feeds_get_on_and_come_to_rest() {
    let mut mounts = mounts(3, 3);
    let seq = make(&mut mounts[0], "file");
    wait(&mounts[0], 20 * SECOND);
    let counts = |mounts: &[Shown]| -> Vec<u64> {
        let count = |at: &Shown| {
            let world = at.world.borrow();
            let platform = world.guest::<outrider_tests::platform::Platform>(at.host).unwrap();
            platform.mount.counters().transactions
        };
        mounts.iter().map(count).collect()
    };
    for at in &mut mounts {
        let (stable, seqs) = walk(at, Feed::Meta);
        assert!(stable >= seq && seqs.contains(&seq), "{stable} {seqs:?}");
    }
    let before = counts(&mounts);
    assert!(before.iter().all(|count| *count > 0));
    wait(&mounts[0], 30 * SECOND);
    assert_eq!(counts(&mounts), before, "nobody changes anything");
}

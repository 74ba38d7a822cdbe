//! A tiny volume that is full all the time, until everything is deleted.
#![allow(clippy::unwrap_used)] // A test that can't go on has failed.

use outrider_core::client::fs::ROOT;
use outrider_core::client::mount::MountLimits;
use outrider_core::client::op::{
    NameBuf, NewMode, Op, OpError, OpenAccess, OpenHow, Reply, WriteAt,
};
use outrider_core::format::item::Time;
use outrider_core::format::root::Extent;
use outrider_core::server::Server;
use outrider_tests::model::walk::Executes;
use outrider_tests::model::{Asked, User};
use outrider_tests::rng::Rng;
use outrider_tests::scenario::mount::{Shown, calm_with};
use outrider_tests::trace::HostId;
use outrider_tests::world::World;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

const BLOCKS: u64 = 1 << 14;
const SERVER: HostId = HostId(0);
/// The time in which a volume that is left alone comes to rest.
const SETTLED: Duration = Duration::from_secs(300);
/// Bytes of the longest file.
const LEN_MAX: u64 = 40_000;
/// Blocks that mounts may have more than at first.
const KEPT: u64 = 1200;

static USER: User = User::ROOT;
static DATA: [u8; LEN_MAX as usize] = [7; LEN_MAX as usize];

fn asked(op: &Op) -> Asked<'_> {
    let now = Time { sec: 1_000_000, nsec: 0 };
    Asked { user: &USER, now, op, data: &DATA, room: None }
}

fn name(number: u64) -> NameBuf {
    NameBuf::parse(format!("f{number}").as_bytes()).unwrap()
}

/// Makes a file of so many bytes; what there is no room for is left out.
fn make(mount: &mut Shown, number: u64, len: u64) -> Result<(), OpError> {
    let op = Op::Create {
        dir: ROOT,
        name: name(number),
        mode: NewMode { permissions: 0o644, umask: 0 },
        how: OpenHow { access: OpenAccess::ReadWrite, truncate: false, strip: false },
        exclusive: true,
    };
    let Reply::Created(attr, handle) = mount.execute(&asked(&op))?.reply else { panic!() };
    let ino = attr.ino;
    let at = WriteAt::Offset(0);
    let write = Op::Write { ino, handle, at, len: len as u32, strip: false };
    let written = mount.execute(&asked(&write)).map(drop);
    let flushed = mount.execute(&asked(&Op::Flush { ino, handle })).map(drop);
    mount.execute(&asked(&Op::Release { ino, handle })).unwrap();
    mount.execute(&asked(&Op::Forget { ino, lookups: 1 })).unwrap();
    written.and(flushed)
}

fn free_blocks(mount: &Shown) -> u64 {
    let world = mount.world.borrow();
    world.guest::<Server<'_>>(SERVER).unwrap().store().trees.free.free_blocks()
}

/// Blocks that are free or kept for the next commit, and runs: all that is the same at rest as on a
/// new volume. How many blocks a commit has to spare depends on what those before it took.
fn at_rest(world: &World) -> (u64, u64) {
    let store = world.guest::<Server<'_>>(SERVER).unwrap().store();
    let reserve = store.root().unwrap().reserve().iter().map(Extent::len).sum::<u64>();
    (store.trees.free.free_blocks() + reserve, store.trees.level_runs.iter().sum())
}

/// Runs the world until so many blocks are free. How many are.
fn settle(mount: &Shown, blocks: u64, how_long: Duration) -> u64 {
    for _ in 0..how_long.as_secs() {
        mount.world.borrow_mut().run(Duration::from_secs(1)).unwrap();
        if free_blocks(mount) >= blocks {
            break;
        }
    }
    free_blocks(mount)
}

/// Two mounts make and delete files of a few blocks on a volume that has no room for more. In the
/// end all are deleted, and the space is free again: to the last block, when the mounts have left.
#[test]
fn a_full_volume_stays_in_use_and_comes_free() {
    let world = calm_with(9, 2, MountLimits::small(), BLOCKS);
    let world = Rc::new(RefCell::new(world));
    let mut mounts = [1, 2].map(|host| Shown { world: Rc::clone(&world), host: HostId(host) });
    mounts.iter().for_each(Shown::mount);
    make(&mut mounts[0], 0, 1).unwrap();
    make(&mut mounts[1], 1, 1).unwrap();
    let fresh = settle(&mounts[0], BLOCKS, Duration::from_secs(5));
    let mut rng = Rng::new(9);
    let (mut files, mut made, mut refused) = (vec![0, 1], 2, 0);
    let mut calls = 0;
    while calls < 6000 {
        let mount = &mut mounts[rng.below(2) as usize];
        // Once it is full there is a file to be deleted for each that is made.
        if refused > 0 && rng.below(2) == 0 {
            let number = files.swap_remove(rng.below(files.len() as u64) as usize);
            mount.execute(&asked(&Op::Unlink { dir: ROOT, name: name(number) })).unwrap();
        } else {
            match make(mount, made, 1 + rng.below(LEN_MAX)) {
                Ok(()) => files.push(made),
                Err(OpError::NoSpace) => refused += 1,
                Err(error) => panic!("{error:?}"),
            }
            made += 1;
        }
        calls += u64::from(refused > 0);
    }
    let full = free_blocks(&mounts[0]);
    println!("{} files, {made} made, {refused} refused, {full} of {fresh} free", files.len());
    assert!(refused < made / 2, "{refused} of {made}");
    for number in 0..made {
        let mount = &mut mounts[rng.below(2) as usize];
        match mount.execute(&asked(&Op::Unlink { dir: ROOT, name: name(number) })) {
            Ok(_) | Err(OpError::NotFound) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
    let least = fresh - KEPT;
    let free = settle(&mounts[0], least, Duration::from_secs(60));
    assert!(free >= least, "{free} of {fresh}");
    mounts.iter().for_each(Shown::unmount);
    let mut new = calm_with(9, 0, MountLimits::small(), BLOCKS);
    new.run(SETTLED).unwrap();
    world.borrow_mut().run(SETTLED).unwrap();
    assert_eq!(at_rest(&world.borrow()), at_rest(&new));
    // It comes to rest: nothing is written any more.
    let commits = |world: &World| world.guest::<Server<'_>>(SERVER).unwrap().counters().commits;
    let before = commits(&world.borrow());
    world.borrow_mut().run(SETTLED).unwrap();
    assert_eq!(commits(&world.borrow()), before);
}

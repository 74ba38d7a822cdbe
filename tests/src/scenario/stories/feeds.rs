//! The story of a change that is made while its mount's last transaction is on its way.
//!
//! # Invariants
//!
//! * The change is made without a server: its mount holds all locks that it needs.
//!
//! What this module deliberately doesn't know: what a page may show. That is the checker's.

use super::run;
use crate::check::Violation;
use crate::check::feed::{Feeds, Log};
use crate::model::{Done, User};
use crate::platform::{Call, Platform};
use crate::scenario::mount;
use crate::time::{MINUTE, SECOND};
use crate::trace::HostId;
use crate::world::World;
use outrider_core::client::fs::ROOT;
use outrider_core::client::mount::{MountLimits, MountState};
use outrider_core::client::op::query::{Feed, Page, Position, Query};
use outrider_core::client::op::{
    Handle, NameBuf, NewMode, Op, OpenAccess, OpenHow, Reply, SetAttr, SetTime,
};
use outrider_core::format::Ino;
use outrider_core::format::item::Time;
use std::cell::RefCell;
use std::rc::Rc;

const WRITER: HostId = HostId(1);
const OTHER: HostId = HostId(2);
/// Between two transactions of a mount there may be one of nothing, with which the numbers fall
/// another way. Not every time.
const TURNS: i64 = 6;

/// A file that a mount has open.
#[derive(Clone, Copy)]
struct File {
    host: HostId,
    ino: Ino,
    handle: Handle,
}

/// Tells the story.
pub(super) fn change_during_commit() -> Result<(), Violation> {
    let mut world = mount::calm(13, 2, MountLimits::small());
    let log = Rc::new(RefCell::new(Log::default()));
    world.add_checker(Feeds::new(Rc::clone(&log)));
    let is_mounted = |world: &World, host| {
        let platform = world.guest::<Platform>(host);
        platform.is_some_and(|at| at.mount.state() == MountState::Mounted)
    };
    world.run_until(MINUTE, |world| is_mounted(world, WRITER) && is_mounted(world, OTHER))?;
    let [one, other] = [create(&mut world, WRITER)?, create(&mut world, OTHER)?];
    for turn in 0..TURNS {
        change(&mut world, one, 2 * turn)?;
        commit(&mut world, other, turn)?;
        let before = sent(&world);
        let fsync = begin(&mut world, WRITER, fsync(one));
        // The next transaction is being opened, and the mount hasn't heard of it.
        world.run_until(SECOND, |world| sent(world) > before)?;
        change(&mut world, one, 2 * turn + 1)?;
        end(&mut world, WRITER, fsync)?;
        // Numbers get on, and so does what is stable.
        for _ in 0..3 {
            commit(&mut world, other, turn)?;
        }
        read(&mut world, &log)?;
        // With another change it would stand at another number.
        call(&mut world, WRITER, self::fsync(one))?;
        commit(&mut world, other, turn)?;
        read(&mut world, &log)?;
    }
    Ok(())
}

/// Transactions that the mount has sent.
fn sent(world: &World) -> u64 {
    let platform = world.guest::<Platform>(WRITER);
    platform.map_or(0, |at| at.mount.counters().transactions)
}

fn begin(world: &mut World, host: HostId, op: Op) -> u64 {
    let call = Call { user: User::ROOT, now: Time { sec: 1, nsec: 0 }, op, data: Vec::new() };
    world.with(host, |at: &mut Platform, _| at.call(call)).expect("it runs")
}

fn end(world: &mut World, host: HostId, call: u64) -> Result<Done, Violation> {
    let has_ended = |at: &Platform| at.has_ended(call);
    world.run_until(MINUTE, |world| world.guest(host).is_some_and(has_ended))?;
    let done = world.with(host, |at: &mut Platform, _| at.take(call)).flatten();
    Ok(done.expect("it ends").expect("nothing fails"))
}

fn call(world: &mut World, host: HostId, op: Op) -> Result<Done, Violation> {
    let call = begin(world, host, op);
    end(world, host, call)
}

fn create(world: &mut World, host: HostId) -> Result<File, Violation> {
    let op = Op::Create {
        dir: ROOT,
        name: NameBuf::parse(format!("of {host}").as_bytes()).expect("a name"),
        mode: NewMode { permissions: 0o644, umask: 0 },
        how: OpenHow { access: OpenAccess::ReadWrite, truncate: false, strip: false },
        exclusive: true,
    };
    match call(world, host, op)?.reply {
        Reply::Created(attr, handle) => Ok(File { host, ino: attr.ino, handle }),
        reply => panic!("{reply:?} to a creation"),
    }
}

/// Gives the file another time.
fn change(world: &mut World, file: File, sec: i64) -> Result<(), Violation> {
    let mtime = Some(SetTime::To(Time { sec, nsec: 0 }));
    let set = SetAttr { mtime, ..SetAttr::default() };
    call(world, file.host, Op::Setattr { ino: file.ino, handle: None, set }).map(drop)
}

fn fsync(File { ino, handle, .. }: File) -> Op {
    Op::Fsync { ino, handle, data_only: false }
}

/// The same, durably.
fn commit(world: &mut World, file: File, sec: i64) -> Result<(), Violation> {
    change(world, file, sec)?;
    call(world, file.host, fsync(file)).map(drop)
}

/// The other mount reads what changed, from the beginning.
fn read(world: &mut World, log: &RefCell<Log>) -> Result<(), Violation> {
    let mut first = Position::FIRST;
    loop {
        let begun = world.now();
        let query = Query::Walk { feed: Feed::Meta, first, last: Position::LAST };
        let done = call(world, OTHER, Op::Query(query))?;
        let page = Page::parse(&done.data).expect("the mount has made it");
        log.borrow_mut().read(OTHER, (Feed::Meta, first), (begun, world.now()), &page);
        match page.through.next().filter(|_| !page.end) {
            Some(next) => first = next,
            None => return run(world, SECOND / 10),
        }
    }
}

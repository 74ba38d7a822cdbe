//! Stories: clusters to which one thing happens, told so that a certain mistake can't be missed.
//!
//! Each is true of clusters that make no mistake; with the mistake it is told for, a checker finds
//! something. What happens is the same each time.
//!
//! # Invariants
//!
//! * A story needs nothing of chance but the ordinary jitter of devices and networks: whatever goes
//!   wrong in it is said in it.
//!
//! What this module deliberately doesn't know: which mistakes there are.

mod feeds;

use crate::check::Violation;
use crate::faults::Fault;
use crate::scenario::{readers, register, server};
use crate::time::{MILLI, MINUTE, SECOND};
use crate::trace::HostId;
use crate::world::World;
use outrider_core::format::layout::{FIRST_BLKNO, ROOT_BLKNO};
use outrider_core::server::{MergeCounters, Server};
use std::ops::Range;
use std::time::Duration;

/// A story.
#[derive(Debug, Clone, Copy)]
pub struct Story {
    /// What it is about.
    pub name: &'static str,
    /// Tells it; what a checker found, if anything.
    pub tell: fn() -> Result<(), Violation>,
}

/// All of them.
pub const ALL: &[Story] = &[
    FAIR_WEATHER,
    MOUNTS_MERGE_NOTHING,
    MOUNT_STOPPED_MERGING,
    LEADER_STOPPED_AT_ROOT,
    LEADER_STOPPED_AT_BLOCK,
    LEADER_STOPPED_MERGING,
    LEADER_CRASHES,
    LEADER_CRASHES_AT_ROOT,
    ANSWERS_LOST,
    CONNECTION_LOST,
    MOUNT_STOPPED,
    MOUNT_NOT_FENCED,
    WELCOMES_LOST,
    FAIR_READING,
    MOUNT_CUT_OFF,
    MOUNT_CUT_OFF_BRIEFLY,
    CHANGE_DURING_COMMIT,
    READ_WHILE_WRITTEN,
];

/// Nothing goes wrong.
pub const FAIR_WEATHER: Story = Story { name: "nothing goes wrong", tell: fair_weather };

fn fair_weather() -> Result<(), Violation> {
    run(&mut server::quiet(1, &[]), SECOND * 30)
}

/// Nothing goes wrong, and no mount merges anything.
pub const MOUNTS_MERGE_NOTHING: Story =
    Story { name: "the leader merges by itself", tell: mounts_merge_nothing };

fn mounts_merge_nothing() -> Result<(), Violation> {
    run(&mut server::unhelped(1), SECOND * 30)
}

/// Mounts are stopped while they merge, not for so long that anybody else is asked for the same.
pub const MOUNT_STOPPED_MERGING: Story =
    Story { name: "a mount is stopped while it merges", tell: mount_stopped_merging };

fn mount_stopped_merging() -> Result<(), Violation> {
    let mut world = server::quiet(7, &[]);
    for _ in 0..4 {
        let mut merges = None;
        world.run_until(MINUTE, |world| {
            let is_merging = |host: &HostId| {
                world.guest::<server::Mount>(*host).is_some_and(server::Mount::is_merging)
            };
            merges = world.hosts().find(is_merging);
            merges.is_some()
        })?;
        world.pause(merges.expect("mounts merge"), SECOND * 4);
        run(&mut world, SECOND * 6)?;
    }
    Ok(())
}

/// Leaders are stopped one after the other while a root is under way, which lands long after.
pub const LEADER_STOPPED_AT_ROOT: Story =
    Story { name: "a leader's root lands a minute late", tell: || leader_stopped(is_root, 2..6) };

/// The same while a commit's blocks are under way.
pub const LEADER_STOPPED_AT_BLOCK: Story =
    Story { name: "a leader's blocks land a minute late", tell: || leader_stopped(is_block, 2..3) };

fn is_root(blkno: u64) -> bool {
    (ROOT_BLKNO.0..FIRST_BLKNO.0).contains(&blkno)
}

fn is_block(blkno: u64) -> bool {
    blkno >= FIRST_BLKNO.0
}

fn leader_stopped(at: fn(u64) -> bool, seeds: Range<u64>) -> Result<(), Violation> {
    // How many commits the next leader has made when the write lands differs from seed to seed.
    for seed in seeds {
        let mut world = server::quiet(seed, &[Fault::DiskHeldWrite]);
        for _ in 0..4 {
            run(&mut world, SECOND * 5)?;
            let writer = writing_leader(&mut world, at)?;
            world.pause(writer, SECOND * 45);
            run(&mut world, SECOND * 18)?;
        }
    }
    Ok(())
}

/// A leader is stopped in the middle of a merge, loses its office to another, and leads again when
/// that one is stopped, without having been started anew.
pub const LEADER_STOPPED_MERGING: Story =
    Story { name: "a leader is stopped while it merges, and leads again", tell: stopped_merging };

fn stopped_merging() -> Result<(), Violation> {
    let mut world = server::unhelped(7);
    run(&mut world, SECOND * 5)?;
    let first = leader(&world).expect("nothing has gone wrong");
    // What a merge writes, it has taken space for.
    let mut before = merging(&world, first);
    world.run_until(MINUTE, |world| {
        let now = merging(world, first);
        let writes = now.merges == before.merges && now.blocks > before.blocks;
        before.merges = now.merges;
        before.blocks = if writes { before.blocks } else { now.blocks };
        writes
    })?;
    world.pause(first, SECOND * 10);
    run(&mut world, SECOND * 15)?;
    let others: Vec<HostId> = servers().filter(|server| *server != first).collect();
    others.iter().for_each(|server| world.pause(*server, SECOND * 40));
    run(&mut world, SECOND * 45)
}

fn merging(world: &World, host: HostId) -> MergeCounters {
    let server = world.guest::<Server<'static>>(host);
    server.map_or_else(MergeCounters::default, |server| server.counters().merging)
}

/// The leader crashes, and one mount comes to the next one later than the others, in its lease.
pub const LEADER_CRASHES: Story =
    Story { name: "a mount comes late to a new leader", tell: leader_crashes };

fn leader_crashes() -> Result<(), Violation> {
    let mut world = server::quiet(3, &[]);
    for turn in 0..12 {
        run(&mut world, SECOND * 6)?;
        let Some(leader) = leader(&world) else { continue };
        let late = mounts().cycle().nth(turn).expect("there are some");
        cut_off(&mut world, late, server::SERVERS, SECOND * 5);
        world.crash(leader);
        run(&mut world, SECOND * 10)?;
        world.boot(leader);
    }
    Ok(())
}

/// Leaders crash while a root is under way, of which some sectors land.
pub const LEADER_CRASHES_AT_ROOT: Story =
    Story { name: "a leader crashes in the middle of a root", tell: crashes_at_root };

fn crashes_at_root() -> Result<(), Violation> {
    let mut world = server::quiet(8, &[Fault::DiskTorn]);
    for _ in 0..12 {
        run(&mut world, SECOND * 5)?;
        let writer = writing_leader(&mut world, is_root)?;
        world.crash(writer);
        run(&mut world, SECOND * 8)?;
        world.boot(writer);
    }
    Ok(())
}

/// A leader goes on hearing mounts, which don't hear it. Then it crashes, and they ask the next one
/// for what it has carried out.
pub const ANSWERS_LOST: Story =
    Story { name: "answers are lost, and their leader crashes", tell: answers_lost };

fn answers_lost() -> Result<(), Violation> {
    let mut world = server::quiet(9, &[]);
    for _ in 0..4 {
        run(&mut world, SECOND * 4)?;
        let Some(leader) = leader(&world) else { continue };
        mounts().for_each(|mount| world.block(leader, mount, SECOND * 6));
        run(&mut world, SECOND)?;
        world.crash(leader);
        run(&mut world, SECOND * 8)?;
        world.boot(leader);
    }
    Ok(())
}

/// What a leader and a mount say to each other is lost for so long that they connect again, and
/// everything comes to its end.
pub const CONNECTION_LOST: Story =
    Story { name: "connections are lost within a term", tell: connection_lost };

fn connection_lost() -> Result<(), Violation> {
    let mut world = server::quiet(10, &[]);
    for _ in 0..3 {
        run(&mut world, SECOND * 3)?;
        mounts().for_each(|mount| cut_off(&mut world, mount, server::SERVERS, SECOND * 5));
        run(&mut world, SECOND * 6)?;
    }
    world.settle(MINUTE * 2)
}

/// A mount is stopped for so long that it is evicted, with writes under way.
pub const MOUNT_STOPPED: Story =
    Story { name: "a mount is stopped and evicted", tell: mount_stopped };

fn mount_stopped() -> Result<(), Violation> {
    let mut world = server::quiet(4, &[Fault::DiskHeldWrite]);
    let mount = HostId(server::SERVERS);
    run(&mut world, SECOND * 5)?;
    world.run_until(MINUTE, |world| world.disk().is_writing(mount))?;
    world.pause(mount, SECOND * 25);
    run(&mut world, SECOND * 40)
}

/// The same, and nobody succeeds in cutting it off from the device.
pub const MOUNT_NOT_FENCED: Story =
    Story { name: "a mount is stopped, and fencing it fails", tell: mount_not_fenced };

fn mount_not_fenced() -> Result<(), Violation> {
    let mut world = server::quiet(4, &[Fault::DiskHeldWrite]);
    let mount = HostId(server::SERVERS);
    run(&mut world, SECOND * 5)?;
    world.run_until(MINUTE, |world| world.disk().is_writing(mount))?;
    world.pause(mount, SECOND * 25);
    for _ in 0..400 {
        run(&mut world, MILLI * 100)?;
        for server in servers() {
            world.with(server, |server: &mut Server<'_>, now| {
                if let Some(fence) = server.poll_fence(now) {
                    server.fenced(now, fence.client, false);
                }
            });
        }
    }
    Ok(())
}

/// Mounts greet for the first time, and don't hear the answer.
pub const WELCOMES_LOST: Story = Story { name: "first welcomes are lost", tell: welcomes_lost };

fn welcomes_lost() -> Result<(), Violation> {
    let mut world = server::quiet(5, &[]);
    for _ in 0..4 {
        let mut greets = None;
        world.run_until(MINUTE, |world| {
            let is_greeting = |host: &HostId| {
                world.guest::<server::Mount>(*host).is_some_and(server::Mount::is_greeting)
            };
            greets = world.hosts().find(is_greeting);
            greets.is_some()
        })?;
        // It has proven by now who it is; its record is not durable yet.
        run(&mut world, MILLI * 5)?;
        for server in servers() {
            world.block(server, greets.expect("mounts come"), SECOND * 6);
        }
        run(&mut world, SECOND * 8)?;
    }
    let evictions = |host| world.guest::<Server<'static>>(host).map(|at| at.counters().evictions);
    match world.hosts().filter_map(evictions).sum::<u64>() {
        0 => Ok(()),
        _ => Err(Violation {
            at: world.now(),
            checker: "story",
            what: "a mount was evicted that had only just come".to_owned(),
        }),
    }
}

/// Nothing goes wrong where numbers are looked up.
pub const FAIR_READING: Story =
    Story { name: "nothing goes wrong, and mounts read what others write", tell: fair_reading };

fn fair_reading() -> Result<(), Violation> {
    run(&mut register::quiet(11), SECOND * 30)
}

/// A mount is cut off from all servers, and others go on to change what it remembers.
pub const MOUNT_CUT_OFF: Story =
    Story { name: "a mount is cut off and evicted", tell: || mount_cut_off(SECOND * 25) };

/// A mount is cut off for longer than its lease, and comes back before anybody evicts it.
pub const MOUNT_CUT_OFF_BRIEFLY: Story =
    Story { name: "a mount's lease is over for a while", tell: || mount_cut_off(SECOND * 6) };

fn mount_cut_off(how_long: Duration) -> Result<(), Violation> {
    // What the mount is asked for while it is cut off, and remembers, differs.
    for seed in 6..12 {
        let mut world = register::quiet(seed);
        for turn in 0..3 {
            run(&mut world, SECOND * 10)?;
            cut_off(&mut world, HostId(register::SERVERS + turn), register::SERVERS, how_long);
            run(&mut world, how_long)?;
        }
        run(&mut world, SECOND * 10)?;
    }
    Ok(())
}

/// A mount changes something while its last transaction is on its way, and others get on.
pub const CHANGE_DURING_COMMIT: Story =
    Story { name: "a change is made during a commit", tell: feeds::change_during_commit };

/// Nothing goes wrong, and older roots are read, slowly, while mounts write and merge.
pub const READ_WHILE_WRITTEN: Story =
    Story { name: "roots are read that are long left behind", tell: read_while_written };

fn read_while_written() -> Result<(), Violation> {
    let (mut world, log) = readers::quiet(12);
    run(&mut world, MINUTE)?;
    match log.borrow().whole {
        0..2 => Err(Violation {
            at: world.now(),
            checker: "story",
            what: format!("hardly a root was read: {:?}", log.borrow()),
        }),
        _ => Ok(()),
    }
}

fn run(world: &mut World, how_long: Duration) -> Result<(), Violation> {
    world.run_until(how_long, |_| false).map(|_| ())
}

fn servers() -> impl Iterator<Item = HostId> + Clone {
    (0..server::SERVERS).map(HostId)
}

fn mounts() -> impl Iterator<Item = HostId> + Clone {
    (server::SERVERS..server::SERVERS + server::MOUNTS).map(HostId)
}

/// Runs until a leader writes such a block: which one.
fn writing_leader(world: &mut World, at: fn(u64) -> bool) -> Result<HostId, Violation> {
    let mut writer = None;
    world.run_until(MINUTE, |world| {
        writer = leader(world).filter(|leader| {
            world.disk().writes().any(|(host, blkno)| host == *leader && at(blkno.0))
        });
        writer.is_some()
    })?;
    Ok(writer.expect("leaders write"))
}

fn cut_off(world: &mut World, mount: HostId, servers: u16, how_long: Duration) {
    for server in (0..servers).map(HostId) {
        world.block(server, mount, how_long);
        world.block(mount, server, how_long);
    }
}

/// The server that leads, if one does and runs.
fn leader(world: &World) -> Option<HostId> {
    world.hosts().find(|host| {
        let server = world.guest::<Server<'static>>(*host).filter(|_| world.is_running(*host));
        server.is_some_and(|server| {
            server.serving().is_some() && server.voter().may_act(world.clock(*host))
        })
    })
}

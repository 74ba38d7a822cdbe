//! The disk keeps what it promises, and no more.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{finish, pull, puppet, puppets, wait};
use outrider_hal::{BLOCK_BYTES, BlockNo, IoError};
use outrider_tests::faults::{Coverage, Fault};
use outrider_tests::puppet::Seen;
use outrider_tests::rng::Rng;
use outrider_tests::time::{MILLI, MINUTE, SECOND};
use outrider_tests::trace::HostId;
use outrider_tests::world::World;

const UNRELIABLE: &[Fault] = &[
    Fault::DiskSlow,
    Fault::DiskReorder,
    Fault::DiskLost,
    Fault::DiskTorn,
    Fault::DiskTornRead,
    Fault::DiskLateWrite,
    Fault::DiskHeldWrite,
    Fault::DiskNarrowFlush,
    Fault::DiskError,
    Fault::DiskQueueFull,
];

/// Writes each of eight blocks again and again, flushing now and then, until the power goes at any
/// time. A block then holds the last version that a flush covered, or a later one, or sectors of
/// those.
fn write_until_power_is_lost(seed: u64, coverage: &mut Coverage) {
    let mut world = puppets(seed, 2, UNRELIABLE, 4);
    let mut rng = Rng::new(seed);
    // By block: what it was written with, in order, and the first of these that may be there.
    let mut versions = vec![vec![0u8]; 8];
    let mut floors = [0usize; 8];
    let tag = |fill: u8| 2 * u64::from(fill);
    for fill in 1..=rng.within(1..=60) as u8 {
        let block = rng.below(8) as usize;
        if let Some(before) = versions[block].last().filter(|fill| **fill > 0) {
            // One write of a block at a time: their order is nobody's promise.
            finish(&mut world, 0, tag(*before));
        }
        versions[block].push(fill);
        pull(&mut world, 0, |puppet| puppet.write(tag(fill), block as u64, fill));
        if rng.below(4) > 0 {
            finish(&mut world, 0, tag(fill));
        }
        if rng.below(4) == 0 {
            let done = |fill: &u8| puppet(&world, 0).result(tag(*fill)) == Some(Ok(()));
            let certain = |versions: &Vec<u8>| versions.iter().rposition(done).unwrap_or(0);
            let certain: Vec<usize> = versions.iter().map(certain).collect();
            pull(&mut world, 0, |puppet| puppet.flush(tag(fill) + 1));
            if finish(&mut world, 0, tag(fill) + 1) {
                for (floor, certain) in floors.iter_mut().zip(certain) {
                    *floor = certain.max(*floor);
                }
            }
        }
    }
    world.lose_power();
    for (block, versions) in versions.iter().enumerate() {
        let content = world.disk().content(BlockNo(block as u64));
        for sector in content.0.chunks(512) {
            assert!(sector.iter().all(|byte| *byte == sector[0]), "a sector is torn");
            let at = versions.iter().position(|fill| *fill == sector[0]);
            assert!(
                at.unwrap() >= floors[block],
                "seed {seed}: block {block} lost a flushed write"
            );
        }
    }
    coverage.add(world.coverage());
}

#[test]
fn a_flushed_write_survives_the_loss_of_power_and_others_may_not() {
    let mut coverage = Coverage::new();
    for seed in 0..300 {
        write_until_power_is_lost(seed, &mut coverage);
    }
    let wanted = [Fault::DiskLost, Fault::DiskTorn, Fault::DiskSlow, Fault::DiskReorder];
    for fault in wanted {
        assert!(coverage.count(fault) > 10, "{fault:?}: {}", coverage.count(fault));
    }
}

#[test]
fn a_crash_of_the_node_loses_nothing_that_has_landed() {
    for seed in 0..50 {
        let mut world = puppets(seed, 1, UNRELIABLE, 1);
        pull(&mut world, 0, |puppet| puppet.write(1, 5, 77));
        let done = finish(&mut world, 0, 1);
        world.crash(HostId(0));
        world.boot(HostId(0));
        world.run_until(SECOND, |_| false).unwrap();
        if done {
            assert_eq!(world.disk().content(BlockNo(5)).0, [77; BLOCK_BYTES]);
            assert_eq!(world.disk().durable().block(5).0, [0; BLOCK_BYTES]);
        }
    }
}

#[test]
fn every_host_sees_every_completed_write() {
    let mut world = puppets(1, 3, &[], 1);
    pull(&mut world, 0, |puppet| puppet.write(1, 9, 42));
    assert!(finish(&mut world, 0, 1));
    for host in 1..3 {
        pull(&mut world, host, |puppet| puppet.read(2, 9));
        assert!(finish(&mut world, host, 2));
        let last = puppet(&world, host).seen.last().unwrap().1;
        assert_eq!(last, Seen::Completed(outrider_hal::Tag(2), Ok(()), Some(42)));
    }
}

#[test]
fn a_request_past_the_end_fails() {
    let mut world = puppets(1, 1, &[], 1);
    pull(&mut world, 0, |puppet| puppet.write(1, common::BLOCKS, 1));
    assert!(!finish(&mut world, 0, 1));
    assert_eq!(puppet(&world, 0).result(1), Some(Err(IoError::OutOfRange)));
}

/// Tags in the order in which their requests finished.
fn finished(world: &World, host: u16) -> Vec<u64> {
    let tag = |seen: &Seen| match seen {
        Seen::Completed(tag, ..) => Some(tag.0),
        _ => None,
    };
    puppet(world, host).seen.iter().filter_map(|(_, seen)| tag(seen)).collect()
}

#[test]
fn each_host_has_a_queue_of_its_own() {
    for seed in 0..20 {
        let mut world = puppets(seed, 2, &[], 1);
        // More than any queue takes at once: the rest waits in the host, in order.
        pull(&mut world, 0, |puppet| (0..20).for_each(|tag| puppet.write(tag, tag, 1)));
        pull(&mut world, 1, |puppet| puppet.write(99, 50, 1));
        wait(&mut world, |world| finished(world, 0).len() == 20);
        let expected: Vec<u64> = (0..20).collect();
        assert_eq!(finished(&world, 0), expected, "nothing reorders in this run");
        assert_eq!(finished(&world, 1), [99]);
    }
}

#[test]
fn requests_are_reordered_where_that_may_happen() {
    let sorted = |seed: &u64| {
        let mut world = puppets(*seed, 1, &[Fault::DiskReorder], 1);
        pull(&mut world, 0, |puppet| (0..8).for_each(|tag| puppet.write(tag, tag, 1)));
        wait(&mut world, |world| finished(world, 0).len() == 8);
        finished(&world, 0).is_sorted()
    };
    assert!((0..20).filter(sorted).count() < 10);
}

/// Runs until block 3 holds something, and says when.
fn landing(world: &mut World) -> u64 {
    wait(world, |world| world.disk().content(BlockNo(3)).0[0] != 0);
    world.now().0
}

#[test]
fn a_zombie_write_lands_after_the_crash_of_its_node() {
    let mut late_by_minutes = 0;
    for seed in 0..40 {
        let mut world = puppets(seed, 1, &[Fault::DiskLateWrite], 1000);
        pull(&mut world, 0, |puppet| puppet.write(1, 3, 1));
        wait(&mut world, |world| world.disk().in_flight() == 1);
        world.crash(HostId(0));
        let crashed = world.now().0;
        world.boot(HostId(0));
        let landed = landing(&mut world);
        assert!(landed >= crashed + MILLI.as_nanos() as u64);
        late_by_minutes += u32::from(landed > crashed + 60_000_000_000);
        assert_eq!(world.coverage().count(Fault::DiskLateWrite), 1);
        assert!(puppet(&world, 0).seen.is_empty(), "its new life hears nothing of it");
    }
    assert!(late_by_minutes > 0);
}

#[test]
fn queued_writes_of_a_paused_node_land_after_it_has_resumed() {
    let mut world = puppets(0, 1, &[Fault::DiskHeldWrite], 1000);
    pull(&mut world, 0, |puppet| puppet.write(1, 3, 1));
    wait(&mut world, |world| world.disk().in_flight() == 1);
    let paused = world.now().0;
    world.pause(HostId(0), 100 * SECOND);
    let landed = landing(&mut world);
    assert!(landed > paused + 100_000_000_000 && world.is_running(HostId(0)));
    assert!(finish(&mut world, 0, 1), "and the node hears of it");
    assert_eq!(world.coverage().count(Fault::DiskHeldWrite), 1);
    assert_eq!((world.work().wakeups, world.work().zombies), (1, 1));
}

#[test]
fn nothing_of_a_fenced_host_lands_in_whatever_life_it_was_submitted() {
    let faults = [Fault::DiskLateWrite, Fault::DiskHeldWrite];
    for seed in 0..20 {
        let mut world = puppets(seed, 1, &faults, 1000);
        pull(&mut world, 0, |puppet| puppet.write(1, 3, 1));
        wait(&mut world, |world| world.disk().in_flight() == 1);
        if seed % 2 == 0 {
            world.crash(HostId(0));
            world.boot(HostId(0));
        } else {
            world.pause(HostId(0), 10 * SECOND);
        }
        world.fence(HostId(0));
        assert_eq!(world.disk().writes().count(), 0);
        wait(&mut world, |world| world.is_running(HostId(0)));
        pull(&mut world, 0, |puppet| puppet.write(2, 3, 1));
        if seed % 3 == 0 {
            wait(&mut world, |world| world.disk().in_flight() > 0);
            assert_eq!(world.disk().writes().count(), 0, "it never lands");
        } else {
            assert!(!finish(&mut world, 0, 2), "its path is dead");
        }
        world.crash(HostId(0));
        world.run_until(60 * MINUTE, |_| false).unwrap();
        assert_eq!(world.disk().content(BlockNo(3)).0, [0; BLOCK_BYTES], "seed {seed}");
        world.boot(HostId(0));
        pull(&mut world, 0, |puppet| puppet.write(3, 3, 1));
        assert!(finish(&mut world, 0, 3), "who was started anew may write");
    }
}

#[test]
fn damage_is_done_where_it_may_be_and_no_more_of_it_than_may_be() {
    let damage = [Fault::DiskRot, Fault::DiskBadBlock, Fault::DiskMisdirectedWrite];
    let mut coverage = Coverage::new();
    for seed in 0..20 {
        let mut world = puppets(seed, 1, &damage, 30);
        for tag in 0..100 {
            let blkno = tag % 16;
            pull(&mut world, 0, |puppet| match tag / 16 % 3 {
                0 => puppet.write(tag, blkno, 200),
                1 => puppet.flush(tag),
                _ => puppet.read(tag, blkno),
            });
            finish(&mut world, 0, tag);
            assert!(world.atlas().damaged().len() <= 4);
            for blkno in 16..common::BLOCKS {
                let strayed = world.atlas().damaged().contains(&blkno);
                let content = world.disk().content(BlockNo(blkno));
                assert!(strayed || content.0 == [0; BLOCK_BYTES]);
            }
        }
        coverage.add(world.coverage());
    }
    for fault in damage {
        assert!(coverage.count(fault) > 0, "{fault:?}");
    }
}

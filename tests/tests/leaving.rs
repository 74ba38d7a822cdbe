//! Voters whose mounts leave, in any order and in the same moment, and what becomes of the others.
//!
//! Here each voter belongs to a mount, as servers do that run beside one: when that has left, the
//! voter is told to leave, and not started again any more.
#![allow(clippy::unwrap_used, reason = "tests")]

use outrider_core::client::mount::MountState;
use outrider_core::quorum::Role;
use outrider_core::server::Server;
use outrider_tests::platform::Platform;
use outrider_tests::rng::Rng;
use outrider_tests::scenario::mount::voters;
use outrider_tests::time::{MILLI, SECOND};
use outrider_tests::trace::HostId;
use outrider_tests::world::World;
use std::time::Duration;

/// Longer than anybody has to wait for another leader, and for that one to hear all mounts.
const LONG: Duration = Duration::from_secs(60);

/// Voters, which come first among the machines, their mounts, and one mount that has none.
struct Cluster {
    world: World,
    voters: u16,
}

impl Cluster {
    fn new(seed: u64, count: u16) -> Cluster {
        let mut cluster = Cluster { world: voters(seed, count, count + 1), voters: count };
        cluster.until("all are mounted", |cluster| {
            cluster.mounts().all(|mount| cluster.state(mount) == Some(MountState::Mounted))
        });
        cluster
    }

    fn mounts(&self) -> impl Iterator<Item = HostId> + use<> {
        (self.voters..=2 * self.voters).map(HostId)
    }

    fn servers(&self) -> impl Iterator<Item = HostId> + use<> {
        (0..self.voters).map(HostId)
    }

    fn mount_of(&self, voter: HostId) -> HostId {
        HostId(voter.0 + self.voters)
    }

    /// The one without a voter.
    fn plain(&self) -> HostId {
        HostId(2 * self.voters)
    }

    fn state(&self, mount: HostId) -> Option<MountState> {
        Some(self.world.guest::<Platform>(mount)?.mount.state())
    }

    fn has_left(&self, mount: HostId) -> bool {
        self.state(mount) == Some(MountState::Left)
    }

    fn role(&self, voter: HostId) -> Option<Role> {
        Some(self.world.guest::<Server<'static>>(voter)?.voter().role())
    }

    fn has_stopped(&self, voter: HostId) -> bool {
        self.role(voter) == Some(Role::Stopped)
    }

    fn leader(&self) -> Option<HostId> {
        self.servers().find(|host| {
            let server = self.world.guest::<Server<'static>>(*host);
            server.is_some_and(|at| {
                at.serving().is_some() && at.voter().may_act(self.world.clock(*host))
            })
        })
    }

    fn unmount(&mut self, mount: HostId) {
        self.world.with(mount, |at: &mut Platform, now| at.mount.leave(now));
    }

    /// Tells voters that their mounts have left, and goes on for this long. Their processes end
    /// with them. Whoever starts one after that does so for other mounts, and waits until it votes.
    fn run(&mut self, how_long: Duration) {
        for voter in self.servers() {
            let votes = self.role(voter) != Some(Role::Starting);
            if votes && self.has_left(self.mount_of(voter)) {
                self.world.with(voter, |server: &mut Server<'_>, now| server.leave(now));
            }
        }
        self.world.run_until(how_long, |_| false).unwrap();
    }

    /// Goes on until all mounts have left, and their servers have stopped.
    #[track_caller]
    fn until_ended(&mut self) {
        self.until("all have left", |cluster| {
            cluster.mounts().all(|mount| cluster.has_left(mount))
        });
        self.until("all have stopped", |cluster| {
            cluster.servers().all(|voter| cluster.has_stopped(voter))
        });
    }

    #[track_caller]
    fn until(&mut self, what: &str, so: impl Fn(&Cluster) -> bool) {
        let mut left = LONG;
        while !so(self) {
            let describe = |host| self.world.guest::<Platform>(host).map(Platform::describe);
            let mounts: Vec<_> = self.mounts().map(describe).collect();
            let roles: Vec<_> = self.servers().map(|voter| self.role(voter)).collect();
            assert!(!left.is_zero(), "never: {what}: {roles:?} {mounts:#?}");
            left = left.saturating_sub(20 * MILLI);
            self.run(20 * MILLI);
        }
    }
}

#[test]
fn voters_that_leave_in_the_same_moment_leave_one_for_the_mounts_that_are_left() {
    let mut stayed = [0; 3];
    for seed in 0..60 {
        let count = 2 + (seed % 2) as u16;
        let mut cluster = Cluster::new(seed, count);
        cluster.run(SECOND + MILLI * (seed as u32 * 71 % 1000));
        let leader = cluster.leader().unwrap();
        // The first is told this much before the next.
        let between = MILLI * [0, 1, 4, 9, 30, 120, 300, 600][seed as usize % 8];
        let mut order: Vec<HostId> = cluster.servers().collect();
        order.rotate_left((seed % u64::from(count)) as usize);
        for voter in order {
            cluster.world.with(voter, |server: &mut Server<'_>, now| server.leave(now)).unwrap();
            cluster.world.run_until(between, |_| false).unwrap();
        }
        cluster.until("all but one have stopped", |cluster| {
            let stopped = cluster.servers().filter(|voter| cluster.has_stopped(*voter)).count();
            stopped + 1 == usize::from(count)
        });
        cluster.run(SECOND * 15);
        let stays = cluster.leader().expect("one stays");
        stayed[usize::from(stays == leader)] += 1;
        assert!(cluster.world.guest::<Server<'static>>(stays).unwrap().stays(), "seed {seed}");
        let mounts: Vec<HostId> = cluster.mounts().collect();
        for mount in &mounts {
            assert_eq!(cluster.state(*mount), Some(MountState::Mounted), "seed {seed}");
        }
        for mount in mounts {
            cluster.unmount(mount);
            cluster.until("it has left", |cluster| cluster.has_left(mount));
        }
        cluster.until("the last has stopped", |cluster| cluster.has_stopped(stays));
    }
    println!(
        "another stayed than the one that led {} times, the same {} times",
        stayed[0], stayed[1]
    );
}

#[test]
fn mounts_and_their_voters_leave_in_any_order_while_leaders_are_killed() {
    for seed in 0..40 {
        let mut rng = Rng::new(seed).fork("unmounts");
        let mut cluster = Cluster::new(seed, 3);
        let mut mounts: Vec<HostId> = cluster.mounts().collect();
        for at in (1..mounts.len()).rev() {
            mounts.swap(at, rng.below(at as u64 + 1) as usize);
        }
        for mount in mounts {
            cluster.run(rng.span(MILLI, 800 * MILLI));
            // Its server is started again as long as the mount is there.
            if let Some(leader) = cluster.leader().filter(|_| rng.below(2) == 0)
                && !cluster.has_left(cluster.mount_of(leader))
            {
                cluster.world.crash(leader);
                cluster.run(rng.span(MILLI, 100 * MILLI));
                cluster.world.boot(leader);
            }
            cluster.unmount(mount);
        }
        cluster.until_ended();
    }
}

#[test]
fn a_lost_answer_to_the_last_farewell_keeps_nobody() {
    let mut alone = 0;
    for after in 0..40 {
        let mut cluster = Cluster::new(after, 1);
        let (server, own, last) = (HostId(0), HostId(1), cluster.plain());
        cluster.unmount(own);
        cluster.until("it has left", |cluster| cluster.has_left(own));
        cluster.unmount(last);
        // From some moment on nothing of the server's reaches it any more.
        cluster.run(MILLI * after as u32 / 2);
        cluster.world.block(server, last, LONG * 10);
        let left = cluster.has_left(last);
        cluster.until_ended();
        alone += u32::from(!left && cluster.world.boots(server) == 1);
    }
    assert!(alone > 10, "some farewells are heard, and their answers lost: {alone}");
}

#[test]
fn voters_and_others_leave_in_any_order_whatever_becomes_of_leaders_and_answers() {
    let mut killed = 0;
    for seed in 0..60 {
        let mut rng = Rng::new(seed).fork("farewells");
        let mut cluster = Cluster::new(seed, 1 + (seed % 3) as u16);
        let mut mounts: Vec<HostId> = cluster.mounts().collect();
        for at in (1..mounts.len()).rev() {
            mounts.swap(at, rng.below(at as u64 + 1) as usize);
        }
        for mount in mounts {
            cluster.unmount(mount);
            // At any step of this farewell, or of those before it.
            cluster.run(rng.span(Duration::ZERO, 40 * MILLI));
            let Some(leader) = cluster.leader() else { continue };
            if rng.below(2) == 0 {
                // Not for so long that it is evicted: then it waits for a server.
                cluster.world.block(leader, mount, rng.span(SECOND, 5 * SECOND));
                cluster.run(rng.span(Duration::ZERO, 20 * MILLI));
            }
            if rng.below(2) == 0 {
                // Also one whose mount has left: it is started for those that have not.
                killed += 1;
                cluster.world.crash(leader);
                cluster.run(rng.span(MILLI, SECOND));
                cluster.world.boot(leader);
            }
        }
        cluster.until_ended();
    }
    assert!(killed > 30, "{killed}");
}

#[test]
fn a_mount_waits_as_long_as_a_server_may_keep_something_for_it() {
    let mut cluster = Cluster::new(3, 1);
    let (server, own, last) = (HostId(0), HostId(1), cluster.plain());
    // A leader before theirs has left nobody recorded; this one is killed, and has them recorded.
    for mount in [own, last] {
        cluster.unmount(mount);
    }
    cluster.until_ended();
    for host in [server, own, last] {
        cluster.world.crash(host);
        cluster.world.boot(host);
    }
    cluster.until("all are mounted", |cluster| {
        [own, last].iter().all(|mount| cluster.state(*mount) == Some(MountState::Mounted))
    });
    cluster.world.crash(server);
    for mount in [own, last] {
        cluster.unmount(mount);
    }
    cluster.run(LONG);
    assert!(![own, last].iter().any(|mount| cluster.has_left(*mount)));
    // One that comes later and stops at once has them recorded, too.
    cluster.world.boot(server);
    cluster.until("it serves", |cluster| cluster.leader().is_some());
    cluster.world.block(server, own, LONG * 10);
    cluster.until("the other has left", |cluster| cluster.has_left(last));
    cluster.world.with(server, |server: &mut Server<'_>, _| server.stop()).unwrap();
    cluster.until("it has stopped", |cluster| cluster.has_stopped(server));
    cluster.run(LONG);
    assert!(!cluster.has_left(own));
}

#[test]
fn a_voter_that_leaves_stays_until_another_writes() {
    let mut cluster = Cluster::new(5, 2);
    let leader = cluster.leader().unwrap();
    let other = HostId(1 - leader.0);
    cluster.world.with(other, |server: &mut Server<'_>, _| server.stop()).unwrap();
    cluster.until("it has stopped", |cluster| cluster.has_stopped(other));
    cluster.unmount(cluster.mount_of(leader));
    cluster.run(SECOND * 20);
    assert_eq!(cluster.leader(), Some(leader));
    assert_eq!(cluster.state(cluster.plain()), Some(MountState::Mounted));
    cluster.world.crash(other);
    cluster.world.boot(other);
    cluster.until("it has gone over", |cluster| {
        cluster.has_stopped(leader) && cluster.leader() == Some(other)
    });
    cluster.run(SECOND * 10);
    assert_eq!(cluster.state(cluster.plain()), Some(MountState::Mounted));
}

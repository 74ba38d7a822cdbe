//! Which voter leads when not every mount reaches every voter: what is cut is the network, or a
//! voter's way to the disk, and nothing else goes wrong.
#![allow(clippy::unwrap_used, reason = "tests")]

use outrider_core::client::mount::MountState;
use outrider_core::format::Term;
use outrider_core::format::quorum::Slot;
use outrider_core::quorum::Loss;
use outrider_core::server::{Server, ServerEvent};
use outrider_tests::platform::Platform;
use outrider_tests::scenario::mount::voters;
use outrider_tests::time::{MINUTE, SECOND};
use outrider_tests::trace::HostId;
use outrider_tests::world::World;
use std::time::Duration;

/// Voters, which come first among the machines, and mounts.
struct Cluster {
    world: World,
    voters: u16,
    mounts: u16,
}

impl Cluster {
    /// All are up, and the mounts are mounted.
    fn new(seed: u64, count: u16, mounts: u16) -> Cluster {
        let mut cluster = Cluster { world: voters(seed, count, mounts), voters: count, mounts };
        let all: Vec<HostId> = cluster.mounts().collect();
        cluster.until("all are mounted", |cluster| all.iter().all(|host| cluster.works(*host)));
        cluster
    }

    fn mounts(&self) -> impl Iterator<Item = HostId> + use<> {
        (self.voters..self.voters + self.mounts).map(HostId)
    }

    fn server(&self, host: HostId) -> &Server<'static> {
        self.world.guest(host).unwrap()
    }

    /// Who serves and may act.
    fn leader(&self) -> Option<(HostId, Term)> {
        (0..self.voters).map(HostId).find_map(|host| {
            let server: &Server<'static> = self.world.guest(host)?;
            let term = server.serving()?;
            server.voter().may_act(self.world.clock(host)).then_some((host, term))
        })
    }

    fn works(&self, mount: HostId) -> bool {
        let platform: Option<&Platform> = self.world.guest(mount);
        platform.is_some_and(|at| at.mount.state() == MountState::Mounted)
    }

    fn run(&mut self, how_long: Duration) {
        self.world.run(how_long).unwrap();
    }

    #[track_caller]
    fn until(&mut self, what: &str, so: impl Fn(&Cluster) -> bool) {
        for _ in 0..600 {
            if so(self) {
                return;
            }
            self.run(Duration::from_millis(100));
        }
        panic!("never: {what}");
    }

    /// The network between two machines is cut, in both directions.
    fn cut(&mut self, one: HostId, other: HostId, how_long: Duration) {
        self.world.block(one, other, how_long);
        self.world.block(other, one, how_long);
    }

    /// Why a server was deposed last.
    fn loss(&mut self, host: HostId) -> Option<Loss> {
        let events = self.world.with(host, |server: &mut Server<'_>, _| {
            std::iter::from_fn(|| server.poll_event()).collect::<Vec<_>>()
        });
        events?.into_iter().rev().find_map(|event| match event {
            ServerEvent::Deposed(_, loss) => Some(loss),
            _ => None,
        })
    }
}

fn slot(host: HostId) -> Slot {
    Slot::ALL[usize::from(host.0)]
}

#[test]
fn a_leader_that_no_mount_reaches_hands_over_to_a_voter_that_they_reach() {
    for seed in 0..4 {
        let mut cluster = Cluster::new(seed, 3, 2);
        let (first, term) = cluster.leader().unwrap();
        let mounts: Vec<HostId> = cluster.mounts().collect();
        for mount in &mounts {
            cluster.cut(first, *mount, MINUTE * 2);
        }
        cluster.until("another leads", |cluster| {
            cluster.leader().is_some_and(|(host, later)| host != first && later > term)
        });
        let (second, _) = cluster.leader().unwrap();
        let Some(Loss::Outnumbered(by)) = cluster.loss(first) else {
            panic!("seed {seed}: it did not let go by itself");
        };
        assert_ne!(by, slot(first));
        cluster.until("the mounts work again", |cluster| {
            mounts.iter().all(|mount| cluster.works(*mount))
        });
        // There it stays, also when the way to the first is whole again.
        let elected = cluster.leader().unwrap();
        cluster.run(MINUTE * 3);
        assert_eq!(cluster.leader(), Some(elected), "seed {seed}");
        assert_eq!(elected.0, second, "seed {seed}");
        assert!(mounts.iter().all(|mount| cluster.works(*mount)));
    }
}

#[test]
fn a_voter_that_no_mount_reaches_lets_another_lead_when_the_leader_is_killed() {
    for seed in 0..4 {
        let mut cluster = Cluster::new(seed, 3, 2);
        let (first, _) = cluster.leader().unwrap();
        let mut others = (0..3).map(HostId).filter(|host| *host != first);
        let (unreached, reached) = (others.next().unwrap(), others.next().unwrap());
        let mounts: Vec<HostId> = cluster.mounts().collect();
        for mount in &mounts {
            cluster.cut(unreached, *mount, MINUTE * 5);
        }
        cluster.run(SECOND);
        cluster.world.crash(first);
        // Whoever claims first may be the one that nobody reaches; it doesn't stay.
        cluster.until("the mounts work again", |cluster| {
            let leads = cluster.leader().is_some_and(|(host, _)| host == reached);
            leads && mounts.iter().all(|mount| cluster.works(*mount))
        });
    }
}

#[test]
fn a_tie_changes_nothing() {
    let mut cluster = Cluster::new(7, 2, 2);
    let (first, term) = cluster.leader().unwrap();
    let other = HostId(1 - first.0);
    let lost = cluster.mounts().next().unwrap();
    cluster.cut(first, lost, MINUTE);
    cluster.until("it knocks at the other voter", |cluster| {
        cluster.server(other).counters().knocks > 0
    });
    cluster.run(SECOND * 20);
    assert_eq!(cluster.leader(), Some((first, term)));
}

#[test]
fn a_voter_without_a_disk_deposes_nobody() {
    let mut cluster = Cluster::new(8, 2, 2);
    let (first, term) = cluster.leader().unwrap();
    let other = HostId(1 - first.0);
    cluster.world.cut_disk(other);
    cluster.run(SECOND * 5);
    let mounts: Vec<HostId> = cluster.mounts().collect();
    for mount in &mounts {
        cluster.cut(first, *mount, SECOND * 30);
    }
    cluster.until("they knock at the other voter", |cluster| {
        cluster.server(other).counters().knocks > 0
    });
    cluster.run(SECOND * 20);
    assert_eq!(cluster.leader(), Some((first, term)), "nobody else could lead");
}

#[test]
fn a_leader_without_a_disk_is_followed_by_another_and_still_hears_knocks() {
    let mut cluster = Cluster::new(9, 2, 2);
    let (first, term) = cluster.leader().unwrap();
    cluster.world.cut_disk(first);
    let mounts: Vec<HostId> = cluster.mounts().collect();
    cluster.until("another leads", |cluster| {
        cluster.leader().is_some_and(|(host, later)| host != first && later > term)
    });
    cluster
        .until("the mounts work again", |cluster| mounts.iter().all(|mount| cluster.works(*mount)));
    assert!(cluster.server(first).counters().knocks > 0);
}

#[test]
fn the_last_voter_that_writes_is_needed_as_long_as_a_mount_is_there() {
    let mut cluster = Cluster::new(10, 2, 2);
    let (first, _) = cluster.leader().unwrap();
    let other = HostId(1 - first.0);
    assert!(!cluster.server(first).is_needed(), "another would lead");
    assert!(!cluster.server(other).is_needed(), "it doesn't lead");
    cluster.world.with(first, |server: &mut Server<'_>, _| server.stop()).unwrap();
    let mounts: Vec<HostId> = cluster.mounts().collect();
    cluster.until("the mounts have gone over", |cluster| {
        let over = cluster.leader().is_some_and(|(host, _)| host == other);
        over && mounts.iter().all(|mount| cluster.works(*mount))
    });
    cluster.until("nobody else writes", |cluster| cluster.server(other).is_needed());
    for mount in &mounts {
        assert!(cluster.server(other).is_needed(), "a mount is there");
        cluster.world.with(*mount, |at: &mut Platform, now| at.mount.leave(now)).unwrap();
        cluster.until("it has left", |cluster| {
            let platform: Option<&Platform> = cluster.world.guest(*mount);
            platform.is_none_or(|at| at.mount.state() == MountState::Left)
        });
    }
    assert!(!cluster.server(other).is_needed(), "all have left");
}

//! Worlds of puppets, for tests of the simulator itself.
#![allow(dead_code, reason = "each test uses some of it")]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use outrider_hal::{Endpoint, StreamId};
use outrider_tests::faults::{Atlas, Fault, FaultSet, Promise};
use outrider_tests::image::Image;
use outrider_tests::net::Net;
use outrider_tests::puppet::{Puppet, Puppets, Seen};
use outrider_tests::rng::Rng;
use outrider_tests::time::{MINUTE, SECOND};
use outrider_tests::trace::HostId;
use outrider_tests::world::World;

pub(crate) const BLOCKS: u64 = 64;
pub(crate) const PORT: u16 = 9;

/// A world of `hosts` running puppets in which only these faults happen, `times` as often as usual.
pub(crate) fn puppets(seed: u64, hosts: u16, faults: &[Fault], times: u32) -> World {
    let promise = Promise {
        survives: FaultSet::ALL,
        hosts_impaired_max: 1,
        blocks_damaged_max: 4,
        damageable: 0..BLOCKS,
    };
    let root = Rng::new(seed);
    let atlas = Atlas::fixed(&root, promise, FaultSet::of(faults), times);
    let mut world = World::with_atlas(&root, atlas, Image::new(BLOCKS));
    for _ in 0..hosts {
        world.add_host("puppet", Puppets { blocks: 32, port: PORT });
    }
    wait(&mut world, |world| world.hosts().all(|host| world.is_running(host)));
    world.run_until(SECOND, |_| false).unwrap();
    world
}

/// Waits until something is so, and fails when it never is.
pub(crate) fn wait(world: &mut World, so: impl FnMut(&World) -> bool) {
    assert!(world.run_until(30 * MINUTE, so).unwrap(), "it never came to that");
}

pub(crate) fn puppet(world: &World, host: u16) -> &Puppet {
    world.guest(HostId(host)).expect("it is up")
}

/// Pulls a puppet's strings.
pub(crate) fn pull<R>(world: &mut World, host: u16, act: impl FnOnce(&mut Puppet) -> R) -> R {
    world.with(HostId(host), |puppet: &mut Puppet, _| act(puppet)).expect("it runs")
}

/// Waits for the request of this tag. Returns whether it succeeded.
pub(crate) fn finish(world: &mut World, host: u16, tag: u64) -> bool {
    wait(world, |world| puppet(world, host).result(tag).is_some());
    puppet(world, host).result(tag).unwrap().is_ok()
}

pub(crate) fn endpoint(host: u16) -> Endpoint {
    Endpoint { addr: Net::addr(HostId(host)), port: PORT }
}

pub(crate) fn dial(world: &mut World, from: u16, to: u16) {
    let connect = outrider_core::node::Action::Connect { attempt: 1, to: endpoint(to) };
    pull(world, from, |puppet| puppet.act(connect));
}

/// Connects two puppets. Returns the ends.
pub(crate) fn connect(world: &mut World, from: u16, to: u16) -> (StreamId, StreamId) {
    dial(world, from, to);
    wait(world, |world| [from, to].iter().all(|host| puppet(world, *host).stream().is_some()));
    (puppet(world, from).stream().unwrap(), puppet(world, to).stream().unwrap())
}

pub(crate) fn closed(world: &World, host: u16, stream: StreamId) -> bool {
    puppet(world, host).has_seen(Seen::Closed(stream))
}

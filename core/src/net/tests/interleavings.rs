//! Everything that can happen to two endpoints, in any order.

use super::std;
use super::std::collections::BTreeMap;
use super::std::format;
use super::std::string::String;
use super::std::vec;
use super::world::{SERVERS, World, with_world};
use crate::format::wire::Kind;
use crate::format::wire::message::FREED_MAX;
use core::time::Duration;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

#[derive(Debug, Clone)]
enum Op {
    ClientSends(usize),
    ServerReceives(usize, usize),
    ServerSends(usize, usize),
    ClientReceives(usize),
    Tick(u64),
    ClientAsks(Kind),
    ServerAsks(usize, Kind),
    ClientTakes,
    ServerTakes(usize),
    ClientFinishes(usize),
    ServerFinishes(usize, bool),
    Flow,
    Connect(usize),
    Cut(usize, bool),
    NextServer,
    Flip { wire: usize, up: bool, at: usize, bit: u8 },
}

fn op() -> impl Strategy<Value = Op> {
    let count = prop_oneof![Just(1usize), 1..40usize, 100..5000usize, Just(usize::MAX)];
    let wire = 0..3usize;
    let client_kind = prop_oneof![3 => Just(Kind::LockAsk), 1 => Just(Kind::Transaction)];
    let server_kind = prop_oneof![3 => Just(Kind::LockTell), 1 => Just(Kind::Recover)];
    prop_oneof![
        8 => count.clone().prop_map(Op::ClientSends),
        8 => (wire.clone(), count.clone())
            .prop_map(|(wire, count)| Op::ServerReceives(wire, count)),
        8 => (wire.clone(), count.clone()).prop_map(|(wire, count)| Op::ServerSends(wire, count)),
        8 => count.prop_map(Op::ClientReceives),
        2 => (0..3000u64).prop_map(Op::Tick),
        8 => client_kind.prop_map(Op::ClientAsks),
        6 => (0..SERVERS, server_kind).prop_map(|(server, kind)| Op::ServerAsks(server, kind)),
        6 => Just(Op::ClientTakes),
        6 => (0..SERVERS).prop_map(Op::ServerTakes),
        6 => (0..4usize).prop_map(Op::ClientFinishes),
        6 => (0..4usize, any::<bool>()).prop_map(|(which, only)| Op::ServerFinishes(which, only)),
        8 => Just(Op::Flow),
        12 => (0..SERVERS).prop_map(Op::Connect),
        2 => (wire.clone(), any::<bool>()).prop_map(|(wire, notices)| Op::Cut(wire, notices)),
        1 => Just(Op::NextServer),
        3 => (wire, any::<bool>(), 0..200usize, 0..8u8)
            .prop_map(|(wire, up, at, bit)| Op::Flip { wire, up, at, bit }),
    ]
}

fn apply(world: &mut World<'_>, op: &Op) {
    match *op {
        Op::ClientSends(count) => world.client_sends(count),
        Op::ServerReceives(wire, count) => world.server_receives(wire, count),
        Op::ServerSends(wire, count) => world.server_sends(wire, count),
        Op::ClientReceives(count) => world.client_receives(count),
        Op::Tick(ms) => world.tick(Duration::from_millis(ms)),
        Op::ClientAsks(kind) => world.client_asks(kind),
        Op::ServerAsks(server, kind) => world.server_asks(server.min(world.leader), kind),
        Op::ClientTakes => world.client_takes(),
        Op::ServerTakes(server) => world.server_takes(server.min(world.leader)),
        Op::ClientFinishes(which) => world.client_finishes(which),
        Op::ServerFinishes(which, only_recorded) => world.server_finishes(which, only_recorded),
        Op::Flow => world.flow(),
        Op::Connect(server) => world.connect(server.min(world.leader)),
        Op::Cut(wire, server_notices) => world.cut(wire, server_notices),
        Op::NextServer => world.next_server(),
        Op::Flip { wire, up, at, bit } => {
            if let Some(wire) = world.wires.get_mut(wire) {
                let bytes = if up { &mut wire.up } else { &mut wire.down };
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << bit;
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_each_request_is_answered_once(
        ops in prop::collection::vec(op(), 1..500),
        extents in 0..=FREED_MAX,
    ) {
        with_world(|world| {
            world.extents = extents;
            for op in &ops {
                apply(world, op);
            }
            world.settle();
        });
    }
}

/// A test that reaches nothing proves nothing: what a fixed sample of the same operations does.
#[test]
fn the_operations_reach_what_they_are_for() {
    let mut runner = TestRunner::deterministic();
    let mut reached: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..600 {
        let ops = prop::collection::vec(op(), 1..500).new_tree(&mut runner).unwrap().current();
        with_world(|world| {
            for op in &ops {
                apply(world, op);
            }
            world.settle();
            let ends = world.ends.iter().map(|end| format!("client {end:?}"));
            let server_ends = world.server_ends.iter().map(|end| format!("server {end:?}"));
            for what in ends.chain(server_ends) {
                *reached.entry(what).or_default() += 1;
            }
            *reached.entry("requests".into()).or_default() += world.asked.len() as u32;
            *reached.entry("servers".into()).or_default() += world.leader as u32 + 1;
            *reached.entry("resumed".into()).or_default() += world.resumed;
            *reached.entry("renewed".into()).or_default() += world.renewed;
        });
    }
    std::println!("{reached:#?}");
    for (what, least) in [
        ("requests", 3000),
        ("servers", 500),
        ("resumed", 300),
        ("renewed", 300),
        ("client Closed", 100),
        ("client Silent", 10),
        ("client Late", 10),
        ("client Refused { error: Stale, proven: true }", 10),
        ("client Record(Checksum)", 10),
        ("server Record(Checksum)", 10),
        ("server Refusing(Stale)", 5),
        ("server Replaced", 10),
        ("server Silent", 10),
    ] {
        assert!(reached.get(what).is_some_and(|count| *count >= least), "{what}: {reached:#?}");
    }
}

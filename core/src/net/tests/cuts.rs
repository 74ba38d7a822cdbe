//! A whole conversation, cut at every byte, in both directions.

use super::world::{World, with_world};
use crate::format::wire::Kind;
use core::time::Duration;

/// Requests of both sides and of several kinds, a pause, and more of them.
fn converse(world: &mut World<'_>) {
    for round in 0..2 {
        for kind in
            [Kind::LockAsk, Kind::Transaction, Kind::LockAsk, Kind::LockAsk, Kind::Transaction]
        {
            world.client_asks(kind);
            world.flow();
            world.server_asks(world.leader, [Kind::LockTell, Kind::Recover][round]);
        }
        for _ in 0..10 {
            world.flow();
            world.tick(Duration::from_millis(30));
        }
    }
}

fn cut_everywhere(move_on: bool, farewell: bool) {
    let total = with_world(|world| {
        world.connect(0);
        converse(world);
        world.settle();
        if farewell {
            world.client_asks(Kind::Farewell);
            world.settle();
        }
        assert!(world.asked.len() >= 6);
        world.delivered
    });
    for (direction, total) in total.into_iter().enumerate() {
        for at in 0..total {
            with_world(|world| {
                world.cut_at[direction] = Some(at);
                world.move_on = move_on;
                world.connect(0);
                converse(world);
                world.settle();
                if farewell {
                    world.client_asks(Kind::Farewell);
                    world.settle();
                    assert!(world.link.is_parted());
                }
                assert_eq!(world.cut_at[direction], None, "cut at {at} of {direction}");
            });
        }
    }
}

#[test]
fn a_cut_at_any_byte_changes_nothing() {
    cut_everywhere(false, false);
}

#[test]
fn a_cut_at_any_byte_and_another_server_change_nothing() {
    cut_everywhere(true, false);
}

#[test]
fn a_farewell_ends_the_session_whatever_is_cut() {
    cut_everywhere(false, true);
}

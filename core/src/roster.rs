//! Slots of clients, found by the client's number.
//!
//! # Invariants
//!
//! * A client has at most one slot.
//! * The numbers are in order, so that finding one takes as many looks as their count has bits.
//!   Taking one in or out moves those behind it, which is for who comes and goes.
//!
//! What this module deliberately doesn't know: what is kept in a slot.

use crate::arena::{Arena, ArenaFull};
use crate::format::ClientId;

/// Slots of clients, found by the client's number.
pub(crate) struct Roster<'m> {
    places: &'m mut [(ClientId, u32)],
    len: usize,
}

impl<'m> Roster<'m> {
    /// A roster of at most so many clients, with none yet.
    pub(crate) fn carve(arena: &mut Arena<'m>, clients: u32) -> Result<Roster<'m>, ArenaFull> {
        Ok(Roster { places: arena.slice(clients, |_| (ClientId(0), 0))?, len: 0 })
    }

    fn search(&self, client: ClientId) -> Result<usize, usize> {
        self.places[..self.len].binary_search_by_key(&client, |(client, _)| *client)
    }

    /// The slot of a client.
    pub(crate) fn find(&self, client: ClientId) -> Option<u32> {
        self.search(client).ok().map(|at| self.places[at].1)
    }

    /// Whether there are as many clients as there may be.
    pub(crate) fn is_full(&self) -> bool {
        self.len == self.places.len()
    }

    /// Gives a client that has none a slot.
    ///
    /// # Panics
    ///
    /// If it has one, or there are as many clients as there may be.
    pub(crate) fn insert(&mut self, client: ClientId, slot: u32) {
        let at = self.search(client).expect_err("a client has one slot");
        assert!(!self.is_full(), "there is room for each slot's client");
        self.places.copy_within(at..self.len, at + 1);
        self.places[at] = (client, slot);
        self.len += 1;
    }

    /// The client has no slot any more.
    pub(crate) fn remove(&mut self, client: ClientId) {
        if let Ok(at) = self.search(client) {
            self.places.copy_within(at + 1..self.len, at);
            self.len -= 1;
        }
    }

    /// No client has a slot any more.
    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::Roster;
    use crate::arena::Arena;
    use crate::arena::tests::region;
    use crate::format::ClientId;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn it_is_a_map(steps in proptest::collection::vec((0u8..3, 0u64..12), 0..200)) {
            let mut arena = Arena::new(region(1 << 8)).unwrap();
            let mut roster = Roster::carve(&mut arena, 12).unwrap();
            let mut model = BTreeMap::new();
            for (slot, (step, client)) in (0..).zip(steps) {
                let client = ClientId(client);
                match step {
                    0 if !model.contains_key(&client) => {
                        roster.insert(client, slot);
                        model.insert(client, slot);
                    }
                    1 => {
                        roster.remove(client);
                        model.remove(&client);
                    }
                    _ => {}
                }
                for id in (0..12).map(ClientId) {
                    prop_assert_eq!(roster.find(id), model.get(&id).copied());
                }
            }
            roster.clear();
            prop_assert!((0..12).all(|id| roster.find(ClientId(id)).is_none()));
        }
    }
}

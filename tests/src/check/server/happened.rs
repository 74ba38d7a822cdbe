//! What the transactions that have happened come to: who uses which block, which runs were
//! recorded, and which version of each item is the newest.
//!
//! # Invariants
//!
//! * A transaction is added once, when a confirmed root says first that it happened. It stays so in
//!   every later root, so nothing is ever taken out.
//!
//! What this module deliberately doesn't know: what stands on the device.

use super::Planned;
use crate::scenario::server::BLOCKS;
use crate::scenario::server::merge::Made;
use crate::world::World;
use outrider_core::format::key::KeyBytes;
use outrider_core::format::root::Extent;
use outrider_core::format::{BlockNo, ClientId, Seq};
use outrider_hal::Block;
use std::collections::BTreeMap;
use std::rc::Rc;

/// What gives versions their order: what a transaction's end opened, and which of its runs it was.
type Order = (Seq, usize);

/// All that has happened.
#[derive(Debug)]
pub(super) struct Happened {
    /// Each client's last transaction.
    last: BTreeMap<ClientId, u64>,
    /// How often each block was used, and not freed.
    files: Vec<i32>,
    runs: BTreeMap<u64, Recorded>,
    /// The newest version of each key, and what gave it its place.
    newest: BTreeMap<KeyBytes, (Order, Option<Vec<u8>>)>,
}

/// A run that was recorded.
#[derive(Debug)]
struct Recorded {
    made: Made,
    /// Its blocks on the device, as they were found right.
    found: Vec<Rc<Block>>,
}

impl Happened {
    pub(super) fn new() -> Happened {
        let files = vec![0; BLOCKS as usize];
        Happened { last: BTreeMap::new(), files, runs: BTreeMap::new(), newest: BTreeMap::new() }
    }

    /// The last transaction of a client that is known to have happened.
    pub(super) fn last(&self, client: ClientId) -> u64 {
        self.last.get(&client).copied().unwrap_or_default()
    }

    /// Adds a transaction, which opened this one.
    pub(super) fn add(&mut self, client: ClientId, number: u64, opened: Seq, planned: &Planned) {
        self.last.insert(client, number);
        for (extents, change) in [(&planned.used, 1), (&planned.freed, -1)] {
            for &(start, len) in extents {
                let blocks = &mut self.files[start as usize..(start + len) as usize];
                blocks.iter_mut().for_each(|uses| *uses += change);
            }
        }
        for (index, made) in planned.runs.iter().enumerate() {
            let order = (opened, index);
            for (key, stored) in made.items.iter() {
                let known = self.newest.get(key);
                if known.is_none_or(|(newest, _)| *newest <= order) {
                    self.newest.insert(*key, (order, stored.clone()));
                }
            }
            let recorded = Recorded { made: made.clone(), found: Vec::new() };
            self.runs.insert(made.entry.run.get(), recorded);
        }
    }

    /// Whether a run was recorded.
    pub(super) fn is_recorded(&self, run: u64) -> bool {
        self.runs.contains_key(&run)
    }

    /// What files have, by block.
    pub(super) fn files(&self) -> &[i32] {
        &self.files
    }

    /// The newest version of each key that is not deleted.
    pub(super) fn items(&self) -> BTreeMap<&KeyBytes, &Vec<u8>> {
        let stored =
            self.newest.iter().filter_map(|(key, (_, stored))| Some((key, stored.as_ref()?)));
        stored.collect()
    }

    /// Checks that the runs that are there hold what their mounts gave them: it was written and
    /// flushed before the transaction was sent, and never again until the run is merged away.
    pub(super) fn check_blocks(
        &mut self,
        world: &World,
        there: &BTreeMap<u64, Extent>,
    ) -> Result<(), String> {
        for run in there.keys() {
            let Some(Recorded { made, found }) = self.runs.get_mut(run) else { continue };
            let now = || made.blocks.keys().map(|at| world.disk().content(BlockNo(*at)));
            let same = |(one, other): (&Rc<Block>, &Rc<Block>)| Rc::ptr_eq(one, other);
            if found.len() == made.blocks.len() && found.iter().zip(now()).all(same) {
                continue;
            }
            if !made.blocks.values().zip(now()).all(|(block, now)| block.0 == now.0) {
                return Err(format!("run {run} holds something else"));
            }
            *found = now().cloned().collect();
        }
        Ok(())
    }
}

//! What a client is lent of one pool: a set of extents, kept in a few lists of the tree of loans.
//!
//! # Invariants
//!
//! * The lists of a client and pool are numbered from 0 without gaps, and together ascend.
//! * They are [`PARTS_MAX`] at the most, so that a request which changes all pools of a client
//!   still is one plan.
//! * Extents that touch are one: who is lent two pieces in a row need not know where one ends.
//! * A set is read, changed in memory, and written whole: what was taken out is out, and what could
//!   not be taken out or does not fit has changed nothing in the tree.
//!
//! What this module deliberately doesn't know: what is lent to whom, and why.

use super::trees::Trees;
use crate::block::{Cache, Pins, Plan, Reservation};
use crate::error::{Corruption, Error, Stop};
use crate::format::records::{LIST_MAX, LoanKey, Pool, list};
use crate::format::root::Extent;
use crate::format::{BlockNo, ClientId};
use heapless::Vec;
use zerocopy::IntoBytes;

/// Lists of one client and pool.
pub const PARTS_MAX: usize = 3;
/// Extents of one client and pool.
pub const EXTENTS_MAX: usize = PARTS_MAX * LIST_MAX;
/// With this many extents a client is lent no more of the pool: the rest is room for the holes that
/// its transactions make.
pub const EXTENTS_HIGH: usize = EXTENTS_MAX / 2;

/// The set does not allow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotSo {
    /// Not all of it is lent.
    NotLent,
    /// Some of it is lent already.
    Lent,
    /// The set would have more extents than fit.
    Full,
}

/// What a client is lent of one pool, in memory.
#[derive(Debug, Default)]
pub struct Loans {
    extents: Vec<Extent, EXTENTS_MAX>,
    /// Lists there are in the tree.
    parts: usize,
    changed: bool,
}

impl Loans {
    /// Reads the set.
    pub fn read(
        &mut self,
        client: ClientId,
        pool: Pool,
        trees: &Trees,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<(), Stop> {
        let node = trees.loans.root().node.blkno();
        let corrupt = |what| Error::Corrupt { blkno: node, what };
        self.extents.clear();
        (self.parts, self.changed) = (0, false);
        while let Some(value) =
            trees.loans.lookup(key(client, pool, self.parts).as_bytes(), cache, pins)?
        {
            let extents = list(value).map_err(corrupt)?;
            let fits = self.extents.extend_from_slice(extents);
            fits.map_err(|_| corrupt(Corruption::Bounds))?;
            self.parts += 1;
        }
        match self.extents.is_sorted_by(|a, b| a.end() <= b.start()) {
            true => Ok(()),
            false => Err(corrupt(Corruption::Order).into()),
        }
    }

    /// The extents, ascending.
    #[must_use]
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Adds an extent.
    pub fn add(&mut self, extent: Extent) -> Result<(), NotSo> {
        let at = self.extents.partition_point(|held| held.start() < extent.start());
        let (before, after) = (at.checked_sub(1).map(|at| self.extents[at]), self.extents.get(at));
        let overlaps = before.is_some_and(|before| before.end() > extent.start())
            || after.is_some_and(|after| after.start() < extent.end());
        if overlaps {
            return Err(NotSo::Lent);
        }
        let before = before.filter(|before| before.end() == extent.start());
        let after = after.copied().filter(|after| after.start() == extent.end());
        let start = before.map_or(extent.start(), |before| before.start());
        let end = after.map_or(extent.end(), |after| after.end());
        let whole = Extent::new(start, end.0 - start.0);
        match (before, after) {
            (Some(_), Some(_)) => {
                self.extents[at - 1] = whole;
                self.extents.remove(at);
            }
            (Some(_), None) => self.extents[at - 1] = whole,
            (None, Some(_)) => self.extents[at] = whole,
            (None, None) => self.extents.insert(at, extent).map_err(|_| NotSo::Full)?,
        }
        self.changed = true;
        Ok(())
    }

    /// Takes an extent out, which may lie within one that was lent.
    pub fn remove(&mut self, extent: Extent) -> Result<(), NotSo> {
        let end = extent.checked_end().filter(|_| !extent.is_empty()).ok_or(NotSo::NotLent)?;
        let at = self.extents.partition_point(|held| held.end() <= extent.start());
        let held = *self.extents.get(at).ok_or(NotSo::NotLent)?;
        if held.start() > extent.start() || held.end() < end {
            return Err(NotSo::NotLent);
        }
        let part = |from: BlockNo, to: BlockNo| Extent::new(from, to.0 - from.0);
        let left = part(held.start(), extent.start());
        let right = part(end, held.end());
        match (left.is_empty(), right.is_empty()) {
            (true, true) => drop(self.extents.remove(at)),
            (true, false) => self.extents[at] = right,
            (false, true) => self.extents[at] = left,
            (false, false) => {
                self.extents.insert(at + 1, right).map_err(|_| NotSo::Full)?;
                self.extents[at] = left;
            }
        }
        self.changed = true;
        Ok(())
    }

    /// Plans to write the set, if it was changed.
    pub fn plan_write(
        &self,
        client: ClientId,
        pool: Pool,
        trees: &Trees,
        plan: &mut Plan,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<(), Stop> {
        if !self.changed {
            return Ok(());
        }
        for (part, list) in self.extents.chunks(LIST_MAX).enumerate() {
            let (key, bytes) = (key(client, pool, part), size_of_val(list));
            trees.loans.plan_put(key.as_bytes(), bytes, plan, cache, pins)?;
        }
        for part in self.extents.len().div_ceil(LIST_MAX)..self.parts {
            let key = key(client, pool, part);
            trees.loans.plan_delete(key.as_bytes(), plan, cache, pins)?;
        }
        Ok(())
    }

    /// Writes what was planned.
    pub fn write(
        &self,
        client: ClientId,
        pool: Pool,
        trees: &mut Trees,
        update: &mut Reservation,
        cache: &mut Cache<'_>,
    ) {
        if !self.changed {
            return;
        }
        for (part, list) in self.extents.chunks(LIST_MAX).enumerate() {
            let key = key(client, pool, part);
            trees.loans.put(key.as_bytes(), list.as_bytes(), update, cache);
        }
        for part in self.extents.len().div_ceil(LIST_MAX)..self.parts {
            trees.loans.delete(key(client, pool, part).as_bytes(), update, cache);
        }
    }
}

fn key(client: ClientId, pool: Pool, part: usize) -> LoanKey {
    LoanKey { client: client.0.into(), pool: pool as u8, part: (part as u16).into() }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::{EXTENTS_MAX, Extent, Loans, NotSo};
    use crate::format::BlockNo;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::vec::Vec;

    proptest! {
        #[test]
        fn a_set_is_a_set(
            changes in prop::collection::vec((any::<bool>(), 0u64..600, 1u64..9), 0..400),
        ) {
            let mut loans = Loans::default();
            let mut model: BTreeSet<u64> = BTreeSet::new();
            for (add, start, len) in changes {
                let extent = Extent::new(BlockNo(start), len);
                let held = (start..start + len).filter(|blkno| model.contains(blkno));
                let held = held.count() as u64;
                let result = if add { loans.add(extent) } else { loans.remove(extent) };
                match result {
                    Ok(()) if add => model.extend(start..start + len),
                    Ok(()) => model.retain(|blkno| !(start..start + len).contains(blkno)),
                    Err(NotSo::Lent) => prop_assert!(add && held > 0),
                    Err(NotSo::NotLent) => prop_assert!(!add && held < len),
                    Err(NotSo::Full) => prop_assert!(loans.extents().len() == EXTENTS_MAX),
                }
                if result.is_ok() {
                    prop_assert_eq!(held, if add { 0 } else { len });
                }
            }
            let blocks = loans.extents().iter().flat_map(|extent| extent.start().0..extent.end().0);
            prop_assert_eq!(blocks.collect::<Vec<_>>(), model.into_iter().collect::<Vec<_>>());
        }
    }
}

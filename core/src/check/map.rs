//! What is known of every block of the volume: whether somebody has it, whether it was visited as a
//! node, and where free extents begin and end.
//!
//! # Invariants
//!
//! * Three bits for each block of the volume, and nothing else that grows with it.
//! * An edge is toggled where a free extent begins and behind its last block, by both free trees.
//!   So edges are left exactly where a block is free in one tree and not in the other.
//!
//! What this module deliberately doesn't know: whose a block is.

use crate::arena::{Arena, ArenaFull};
use crate::format::BlockNo;
use crate::format::layout::{FIRST_BLKNO, spare_blkno};
use crate::format::root::Extent;

pub(super) struct Map<'m> {
    owned: &'m mut [u64],
    nodes: &'m mut [u64],
    edges: &'m mut [u64],
    blocks: u64,
}

/// The bit of a block in its word.
fn bit(blkno: u64) -> (usize, u64) {
    ((blkno / 64) as usize, 1 << (blkno % 64))
}

/// The first block from `at` on, before `end`, whose bit is `set`; else `end`.
fn find(words: &[u64], mut at: u64, end: u64, set: bool) -> u64 {
    while at < end {
        let word = if set { words[(at / 64) as usize] } else { !words[(at / 64) as usize] };
        let ahead = word >> (at % 64);
        if ahead != 0 {
            return end.min(at + u64::from(ahead.trailing_zeros()));
        }
        at = (at / 64 + 1) * 64;
    }
    end
}

impl<'m> Map<'m> {
    pub(super) fn carve(arena: &mut Arena<'m>, blocks: u64) -> Result<Map<'m>, ArenaFull> {
        let words = u32::try_from(blocks.div_ceil(64)).map_err(|_| ArenaFull)?;
        Ok(Map {
            owned: arena.slice(words, |_| 0)?,
            nodes: arena.slice(words, |_| 0)?,
            edges: arena.slice(words, |_| 0)?,
            blocks,
        })
    }

    /// Nobody has anything any more.
    pub(super) fn clear(&mut self) {
        self.owned.fill(0);
        self.nodes.fill(0);
        self.edges.fill(0);
    }

    /// Somebody has this extent, which lies in the volume. Stops behind the first blocks that
    /// somebody had before, and tells those and what is left to be claimed.
    pub(super) fn claim(&mut self, extent: Extent) -> (Option<Extent>, Extent) {
        let (start, end) = (extent.start().0, extent.end().0);
        let double = find(self.owned, start, end, true);
        self.mark(Extent::new(BlockNo(start), double - start));
        let upto = find(self.owned, double, end, false);
        let rest = Extent::new(BlockNo(upto), end - upto);
        let double = Extent::new(BlockNo(double), upto - double);
        ((!double.is_empty()).then_some(double), rest)
    }

    /// Somebody has this extent, which lies in the volume.
    fn mark(&mut self, extent: Extent) {
        let (mut at, end) = (extent.start().0, extent.end().0);
        while at < end {
            let upto = end.min((at / 64 + 1) * 64);
            let mask = (u64::MAX >> (64 - (upto - at))) << (at % 64);
            self.owned[(at / 64) as usize] |= mask;
            at = upto;
        }
    }

    /// Whether this block of the volume is visited for the first time as a node.
    pub(super) fn visit(&mut self, blkno: BlockNo) -> bool {
        let (word, mask) = bit(blkno.0);
        let first = self.nodes[word] & mask == 0;
        self.nodes[word] |= mask;
        first
    }

    /// A free tree has this extent, which lies in the volume and before the spare super block.
    pub(super) fn toggle(&mut self, extent: Extent) {
        for edge in [extent.start(), extent.end()] {
            let (word, mask) = bit(edge.0);
            self.edges[word] ^= mask;
        }
    }

    fn range(&self, from: BlockNo) -> (u64, u64) {
        (from.0.max(FIRST_BLKNO.0), spare_blkno(self.blocks).0)
    }

    /// The next blocks from `from` on that nobody has.
    pub(super) fn leak(&self, from: BlockNo) -> Option<Extent> {
        let (at, end) = self.range(from);
        let start = find(self.owned, at, end, false);
        let upto = find(self.owned, start, end, true);
        (start < end).then(|| Extent::new(BlockNo(start), upto - start))
    }

    /// The next blocks from `from` on that are free in one tree only.
    pub(super) fn uneven(&self, from: BlockNo) -> Option<Extent> {
        let (at, end) = self.range(from);
        let start = find(self.edges, at, end, true);
        let upto = find(self.edges, start + 1, end, true);
        (start < end).then(|| Extent::new(BlockNo(start), upto - start))
    }
}

#[cfg(test)]
mod tests {
    use super::{Extent, Map};
    use crate::arena::Arena;
    use crate::arena::tests::region;
    use crate::format::BlockNo;
    use proptest::prelude::*;

    const BLOCKS: u64 = 1000;

    fn map() -> Map<'static> {
        let mut measure = Arena::measuring();
        Map::carve(&mut measure, BLOCKS).unwrap();
        Map::carve(&mut Arena::new(region(measure.bytes_used())).unwrap(), BLOCKS).unwrap()
    }

    fn extent(start: u64, blocks: u64) -> Extent {
        Extent::new(BlockNo(start), blocks)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn claims_are_those_of_an_array(
            claims in prop::collection::vec((256u64..999, 1u64..300), 1..12),
        ) {
            let (mut map, mut owned) = (map(), [0u32; BLOCKS as usize]);
            for (start, blocks) in claims {
                let mut rest = extent(start, blocks.min(999 - start));
                let whole = start..rest.end().0;
                let mut doubles = [false; BLOCKS as usize];
                while !rest.is_empty() {
                    let (double, left) = map.claim(rest);
                    for blkno in double.iter().flat_map(|d| d.start().0..d.end().0) {
                        doubles[blkno as usize] = true;
                    }
                    prop_assert!(left.len() < rest.len());
                    rest = left;
                }
                for blkno in whole {
                    prop_assert_eq!(doubles[blkno as usize], owned[blkno as usize] > 0);
                    owned[blkno as usize] += 1;
                }
            }
            let (mut at, mut leaked) = (BlockNo(0), [false; BLOCKS as usize]);
            while let Some(leak) = map.leak(at) {
                leaked[leak.start().0 as usize..leak.end().0 as usize].fill(true);
                at = leak.end();
            }
            for blkno in 256..999 {
                prop_assert_eq!(leaked[blkno], owned[blkno] == 0);
            }
        }
    }

    #[test]
    fn what_is_free_in_one_tree_only_stands_out() {
        let mut map = map();
        for free in [extent(256, 10), extent(300, 699)] {
            map.toggle(free);
        }
        assert_eq!(map.uneven(BlockNo(0)), Some(extent(256, 10)));
        map.toggle(extent(256, 10));
        map.toggle(extent(300, 600));
        assert_eq!(map.uneven(BlockNo(0)), Some(extent(900, 99)));
        assert_eq!(map.uneven(BlockNo(999)), None);
        map.toggle(extent(900, 99));
        assert_eq!(map.uneven(BlockNo(0)), None);
    }

    #[test]
    fn a_node_is_new_once() {
        let mut map = map();
        assert!(map.visit(BlockNo(300)) && !map.visit(BlockNo(300)) && map.visit(BlockNo(301)));
    }
}

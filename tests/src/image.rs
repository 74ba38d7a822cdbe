//! The content of a device as a value: copying one costs nothing, changing the copy costs what
//! changed.
//!
//! # Invariants
//!
//! * A block that was never written reads as zeroes.
//! * Changing an image never changes one it was copied from.

use crate::trace::Digest;
use outrider_hal::Block;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// Which blocks of an image were read, in the order in which they first were.
#[derive(Debug, Default)]
pub struct ReadLog {
    order: Vec<u64>,
    seen: BTreeSet<u64>,
}

/// A log that a watched image and its copies share.
pub type Reads = Rc<RefCell<ReadLog>>;

impl ReadLog {
    /// Each block that was read, once.
    #[must_use]
    pub fn order(&self) -> &[u64] {
        &self.order
    }
}

/// What stands on a device.
#[derive(Clone)]
pub struct Image {
    blocks: u64,
    below: Rc<BTreeMap<u64, Rc<Block>>>,
    above: BTreeMap<u64, Rc<Block>>,
    zero: Rc<Block>,
    reads: Option<Reads>,
}

impl Image {
    /// A device of `blocks` blocks of zeroes.
    #[must_use]
    pub fn new(blocks: u64) -> Image {
        let zero = Rc::new(Block::ZERO);
        Image { blocks, below: Rc::default(), above: BTreeMap::new(), zero, reads: None }
    }

    /// Size of the device in blocks.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// A copy that logs what is read from it, and from its copies.
    #[must_use]
    pub fn watched(&self) -> (Image, Reads) {
        let reads = Reads::default();
        (Image { reads: Some(reads.clone()), ..self.clone() }, reads)
    }

    /// The content of a block. Zeroes past the end of the device.
    #[must_use]
    pub fn block(&self, blkno: u64) -> &Rc<Block> {
        if let Some(reads) = &self.reads {
            let mut reads = reads.borrow_mut();
            if reads.seen.insert(blkno) {
                reads.order.push(blkno);
            }
        }
        self.above.get(&blkno).or_else(|| self.below.get(&blkno)).unwrap_or(&self.zero)
    }

    /// Replaces the content of a block. Nothing happens past the end of the device.
    pub fn write(&mut self, blkno: u64, block: Rc<Block>) {
        if blkno < self.blocks {
            self.above.insert(blkno, block);
        }
    }

    /// Makes copies cheap again after many writes: moves them below, where copies share them.
    pub fn settle(&mut self) {
        let above = std::mem::take(&mut self.above);
        if !above.is_empty() {
            Rc::make_mut(&mut self.below).extend(above);
        }
    }

    /// The digest of everything that was ever written.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let mut bytes = Vec::new();
        let numbers = self.below.keys().chain(self.above.keys());
        let numbers: std::collections::BTreeSet<u64> = numbers.copied().collect();
        for blkno in numbers {
            let content = Digest::of(&self.block(blkno).0);
            bytes.extend_from_slice(format!("{blkno} {content:?};").as_bytes());
        }
        Digest::of(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::Image;
    use outrider_hal::Block;
    use std::rc::Rc;

    #[test]
    fn copies_are_independent() {
        let filled = |byte| Rc::new(Block([byte; 4096]));
        let mut first = Image::new(10);
        first.write(3, filled(1));
        first.settle();
        let mut second = first.clone();
        second.write(3, filled(2));
        second.settle();
        second.write(4, filled(3));
        first.write(10, filled(9));
        let bytes = |image: &Image| [3, 4, 10].map(|blkno| image.block(blkno).0[7]);
        assert_eq!(bytes(&first), [1, 0, 0]);
        assert_eq!(bytes(&second), [2, 3, 0]);
        assert_ne!(first.digest(), second.digest());
    }
}

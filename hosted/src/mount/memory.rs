//! Memory that is lent to requests: bought once, aligned for direct transfers, used again.
//!
//! # Invariants
//!
//! * It never grows. Who finds none waits until some is given back.
//! * A piece has its length for life, which is how it finds its way back to its class.
//!
//! What this module deliberately doesn't know: what a piece is used for.

use outrider_core::client::op::IO_BYTES_MAX;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A piece of lent memory. Its start is aligned to a page.
pub type Piece = &'static mut [u8];

/// What direct transfers want.
const ALIGN: usize = 4096;

/// How long the pieces of a class are, and how many there are.
const CLASSES: [(usize, usize); 4] = [
    // Targets of symlinks, most attributes, small reads and lists.
    (4096, 128),
    // What getdents(2) of the C library asks for.
    (32 << 10, 32),
    // The longest extended attribute, and the longest list of their names.
    (64 << 10, 32),
    // The largest read, begun in the middle of a block.
    (IO_BYTES_MAX as usize + ALIGN, 16),
];

/// The pieces that nobody uses.
#[derive(Debug)]
pub(super) struct Memory {
    free: Mutex<[Vec<Piece>; CLASSES.len()]>,
}

impl Memory {
    /// Buys all there will be.
    pub(super) fn new() -> Memory {
        let free = CLASSES.map(|(bytes, count)| {
            // For as long as the process lives: a core keeps what it was lent.
            let mut rest = Vec::leak(vec![0; bytes * count + ALIGN]);
            let skip = rest.as_ptr().addr().next_multiple_of(ALIGN) - rest.as_ptr().addr();
            rest = &mut rest[skip..];
            let mut pieces = Vec::with_capacity(count);
            for _ in 0..count {
                let (piece, behind) = rest.split_at_mut(bytes);
                pieces.push(piece);
                rest = behind;
            }
            pieces
        });
        Memory { free: Mutex::new(free) }
    }

    fn free(&self) -> MutexGuard<'_, [Vec<Piece>; CLASSES.len()]> {
        // A thread that panicked here holds no half-made state: each critical section is one push
        // or pop.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shortest free piece with this many bytes or more.
    pub(super) fn take(&self, bytes: usize) -> Option<Piece> {
        let mut free = self.free();
        let classes = CLASSES.iter().zip(free.iter_mut());
        classes.filter(|((len, _), _)| *len >= bytes).find_map(|(_, pieces)| pieces.pop())
    }

    /// The longest free piece with this many bytes or fewer.
    pub(super) fn take_within(&self, bytes: usize) -> Option<Piece> {
        let mut free = self.free();
        let classes = CLASSES.iter().zip(free.iter_mut()).rev();
        classes.filter(|((len, _), _)| *len <= bytes).find_map(|(_, pieces)| pieces.pop())
    }

    /// Takes a piece back.
    pub(super) fn give(&self, piece: Piece) {
        let class = CLASSES.iter().position(|(len, _)| *len == piece.len());
        let class = class.expect("pieces keep their length");
        self.free()[class].push(piece);
    }
}

/// The shortest piece there is: a list must have room for it.
pub(super) const PIECE_BYTES_MIN: usize = CLASSES[0].0;
/// The longest.
#[cfg(test)]
const PIECE_BYTES_MAX: usize = CLASSES[CLASSES.len() - 1].0;

#[cfg(test)]
mod tests {
    use super::{ALIGN, CLASSES, Memory, PIECE_BYTES_MAX};

    #[test]
    fn pieces_are_aligned_and_fit() {
        let memory = Memory::new();
        for (asked, given) in [(0, 4096), (1, 4096), (4097, 32768), (65536, 65536)] {
            let piece = memory.take(asked).unwrap();
            assert_eq!((piece.len(), piece.as_ptr().addr() % ALIGN), (given, 0));
            memory.give(piece);
        }
        assert!(memory.take(PIECE_BYTES_MAX + 1).is_none());
        for (room, given) in [(4096, 4096), (40_000, 32768), (1 << 20, 65536)] {
            let piece = memory.take_within(room).unwrap();
            assert_eq!(piece.len(), given);
            memory.give(piece);
        }
        assert!(memory.take_within(4095).is_none());
    }

    #[test]
    fn what_is_gone_is_gone_until_it_comes_back() {
        let memory = Memory::new();
        let mut taken: Vec<_> = std::iter::from_fn(|| memory.take(1)).collect();
        assert_eq!(taken.len(), CLASSES.iter().map(|(_, count)| count).sum());
        assert!(memory.take(0).is_none() && memory.take_within(usize::MAX).is_none());
        let large = taken.iter().position(|piece| piece.len() == PIECE_BYTES_MAX).unwrap();
        memory.give(taken.swap_remove(large));
        assert_eq!(memory.take(1).unwrap().len(), PIECE_BYTES_MAX);
    }
}

//! Whether the root directory leads to every directory.
//!
//! # Invariants
//!
//! * Directories come in the order of their numbers, so that each is found by bisection.
//! * Each is climbed up from at most once: what is known of it serves all below it.
//! * Memory is bounded by [`capacity`]; with more directories than that nothing is told.
//!
//! What this module deliberately doesn't know: names; and whether a parent that isn't there was
//! told, which is done where entries and links back are compared.

use super::inode::ROOT;
use crate::arena::{Arena, ArenaFull};
use crate::format::{BlockNo, Ino};

/// Directories that memory is carved for on a volume of so many blocks.
pub(super) const fn capacity(blocks: u64) -> u32 {
    let most = 65_536 + blocks / 64;
    let fit = blocks;
    let least = if most < fit { most } else { fit };
    if least > 1 << 28 { 1 << 28 } else { least as u32 }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Unknown,
    /// On the way that is being climbed.
    Passed,
    /// The way up ends somewhere.
    Ends,
}

#[derive(Clone, Copy)]
struct Directory {
    ino: Ino,
    parent: Ino,
    blkno: BlockNo,
    state: State,
}

pub(super) struct Directories<'m> {
    table: &'m mut [Directory],
    len: usize,
    is_full: bool,
}

impl<'m> Directories<'m> {
    pub(super) fn carve(arena: &mut Arena<'m>, blocks: u64) -> Result<Directories<'m>, ArenaFull> {
        let nothing =
            Directory { ino: Ino(0), parent: Ino(0), blkno: BlockNo(0), state: State::Unknown };
        let table = arena.slice(capacity(blocks), |_| nothing)?;
        Ok(Directories { table, len: 0, is_full: false })
    }

    pub(super) fn clear(&mut self) {
        (self.len, self.is_full) = (0, false);
    }

    /// Adds a directory with a greater number than all before.
    pub(super) fn push(&mut self, ino: Ino, parent: Ino, blkno: BlockNo) {
        match self.table.get_mut(self.len) {
            Some(place) => {
                *place = Directory { ino, parent, blkno, state: State::Unknown };
                self.len += 1;
            }
            None => self.is_full = true,
        }
    }

    /// Whether there are more than were kept.
    pub(super) fn is_full(&self) -> bool {
        self.is_full
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    fn find(&self, ino: Ino) -> Option<usize> {
        self.table[..self.len].binary_search_by_key(&ino, |directory| directory.ino).ok()
    }

    /// Climbs up from the directory of this place. Where that leads back to one that was passed,
    /// gives the one of that ring with the least number: each ring is told once.
    pub(super) fn climb(&mut self, from: usize) -> Option<(Ino, BlockNo)> {
        let (mut at, mut ring) = (from, None);
        while self.table[at].state == State::Unknown {
            self.table[at].state = State::Passed;
            let Directory { ino, parent, .. } = self.table[at];
            let above = self.find(parent).filter(|_| ino != ROOT);
            let Some(above) = above else { break };
            if self.table[above].state == State::Passed {
                ring = Some(self.least(above));
                break;
            }
            at = above;
        }
        at = from;
        while self.table[at].state == State::Passed {
            self.table[at].state = State::Ends;
            let Some(above) = self.find(self.table[at].parent) else { break };
            at = above;
        }
        ring.map(|at| (self.table[at].ino, self.table[at].blkno))
    }

    /// The least of the ring that this one is in.
    fn least(&self, start: usize) -> usize {
        let (mut least, mut at) = (start, start);
        loop {
            least = least.min(at);
            match self.find(self.table[at].parent) {
                Some(above) if above != start => at = above,
                Some(_) | None => return least,
            }
        }
    }
}

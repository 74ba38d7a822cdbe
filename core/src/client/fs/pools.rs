//! What a mount has been lent: numbers for new inodes, and blocks for file data.
//!
//! # Invariants
//!
//! * A number is given out once. Each directory draws from a lock group of its own, and a new
//!   directory is the first of a group whose other numbers are for what is made in it: so mounts
//!   that work in sibling directories never meet.
//! * What a transaction frees is not lent again before it is durable: it goes onto a list of its
//!   own, which is emptied when the server is told.
//!
//! What this module deliberately doesn't know: when more is asked for, and how.

use crate::arena::{Arena, ArenaFull};
use crate::format::{BlockNo, Ino};

/// Numbers from `next` to the one before `end`.
#[derive(Debug, Clone, Copy)]
struct Group {
    /// The directory whose inodes they are for; 0 for none yet.
    dir: Ino,
    next: u64,
    end: u64,
    used: u64,
}

impl Group {
    fn is_empty(&self) -> bool {
        self.next >= self.end
    }
}

/// Numbers for new inodes.
pub struct Inos<'m> {
    groups: &'m mut [Group],
    clock: u64,
    /// The server has none left.
    refused: bool,
}

impl<'m> Inos<'m> {
    /// Carves a pool of up to so many lock groups, empty.
    pub fn carve(arena: &mut Arena<'m>, groups: u32) -> Result<Inos<'m>, ArenaFull> {
        let empty = Group { dir: Ino(0), next: 0, end: 0, used: 0 };
        Ok(Inos { groups: arena.slice(groups, |_| empty)?, clock: 0, refused: false })
    }

    /// Adds the numbers from `first` on, all of one lock group. Says whether there was room.
    pub fn lend(&mut self, first: Ino, count: u64) -> bool {
        self.refused = false;
        let Some(group) = self.groups.iter_mut().find(|group| group.is_empty()) else {
            return false;
        };
        *group = Group { dir: Ino(0), next: first.0, end: first.0 + count, used: 0 };
        true
    }

    /// How many lock groups of numbers nobody uses yet.
    #[must_use]
    pub fn spare(&self) -> usize {
        self.groups.iter().filter(|group| !group.is_empty() && group.dir == Ino(0)).count()
    }

    /// The server has none left: who needs one fails.
    pub fn refuse(&mut self) {
        self.refused = true;
    }

    pub(super) fn is_refused(&self) -> bool {
        self.refused
    }

    /// The number that an inode made next in this directory gets.
    pub(super) fn peek(&self, dir: Ino, directory: bool) -> Option<Ino> {
        self.find(dir, directory).map(|at| Ino(self.groups[at].next))
    }

    /// Gives out the number that was peeked at.
    pub(super) fn take(&mut self, dir: Ino, directory: bool) {
        let at = self.find(dir, directory).expect("it was peeked at");
        self.clock += 1;
        let group = &mut self.groups[at];
        let fresh = directory && group.dir == Ino(0);
        group.dir = if fresh { Ino(group.next) } else { dir };
        group.next += 1;
        group.used = self.clock;
    }

    /// The directory's own group; else one that is nobody's; else the one used longest ago.
    fn find(&self, dir: Ino, directory: bool) -> Option<usize> {
        let owned = |group: &Group| group.dir == dir && !directory;
        let rank = |group: &Group| match group.dir {
            _ if owned(group) => (0, 0),
            Ino(0) => (1, group.next),
            Ino(_) => (2, group.used),
        };
        let full = self.groups.iter().enumerate().filter(|(_, group)| !group.is_empty());
        full.min_by_key(|(_, group)| rank(group)).map(|(at, _)| at)
    }
}

/// Blocks of the device in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockRun {
    /// The first.
    pub first: BlockNo,
    /// How many.
    pub len: u64,
}

/// Blocks for file data, and those that were freed.
pub struct Blocks<'m> {
    free: &'m mut [BlockRun],
    free_len: usize,
    freed: &'m mut [BlockRun],
    freed_len: usize,
    refused: bool,
}

const NO_BLOCKS: BlockRun = BlockRun { first: BlockNo(0), len: 0 };

impl<'m> Blocks<'m> {
    /// Carves lists of up to so many runs to take from, and of up to so many freed in a
    /// transaction. There must be room for at least [`FREED_MAX`](super::map::FREED_MAX) of these.
    pub fn carve(arena: &mut Arena<'m>, free: u32, freed: u32) -> Result<Blocks<'m>, ArenaFull> {
        Ok(Blocks {
            free: arena.slice(free, |_| NO_BLOCKS)?,
            free_len: 0,
            freed: arena.slice(freed, |_| NO_BLOCKS)?,
            freed_len: 0,
            refused: false,
        })
    }

    /// Adds a run. Says whether there was room.
    pub fn lend(&mut self, run: BlockRun) -> bool {
        self.refused = false;
        let room = self.free_len < self.free.len();
        if room && run.len > 0 {
            self.free[self.free_len] = run;
            self.free_len += 1;
        }
        room
    }

    /// The server has none left: who needs one fails.
    pub fn refuse(&mut self) {
        self.refused = true;
    }

    pub(super) fn is_refused(&self) -> bool {
        self.refused
    }

    /// Blocks that can be taken.
    #[must_use]
    pub fn available(&self) -> u64 {
        self.free[..self.free_len].iter().map(|run| run.len).sum()
    }

    /// What was freed since this was last asked; the list is empty then.
    pub fn take_freed(&mut self) -> impl Iterator<Item = BlockRun> + '_ {
        let len = core::mem::take(&mut self.freed_len);
        self.freed[..len].iter().copied()
    }

    /// Whether so many runs can be freed.
    pub(super) fn has_room(&self, runs: usize) -> bool {
        self.freed.len() - self.freed_len >= runs
    }

    /// What is taken next by one who wants so many.
    pub(super) fn peek(&self, wanted: u64) -> Option<BlockRun> {
        let run = self.free[..self.free_len].last()?;
        Some(BlockRun { first: run.first, len: run.len.min(wanted) })
    }

    /// Takes the run that was peeked at.
    pub(super) fn take(&mut self, taken: BlockRun) {
        let run = &mut self.free[self.free_len - 1];
        assert!(run.first == taken.first && run.len >= taken.len, "it was peeked at");
        run.first = BlockNo(run.first.0 + taken.len);
        run.len -= taken.len;
        if run.len == 0 {
            self.free_len -= 1;
        }
    }

    /// Frees a run, for which there is room.
    pub(super) fn free(&mut self, run: BlockRun) {
        self.freed[self.freed_len] = run;
        self.freed_len += 1;
    }
}

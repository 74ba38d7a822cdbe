//! What a mount has been lent to make files of: numbers for new inodes, and blocks for file data.
//!
//! # Invariants
//!
//! * A number is given out once. Each directory draws from a lock group of its own, and a new
//!   directory is the first of a group whose other numbers are for what is made in it: so mounts
//!   that work in sibling directories never meet.
//! * What is taken, and what is freed, is noted in the same run of a task in which the items change
//!   that say so. Between two runs, items and notes agree: a snapshot of the one is cut together
//!   with the other.
//! * What was freed never comes back from here: it is the server's when it is told, and may be lent
//!   again when that is durable.
//! * Nothing is taken or freed that a transaction could not name any more beside what the one in
//!   flight names, which may fail, so that the next has to name both.
//!
//! What this module deliberately doesn't know: when more is asked for, and how.

use crate::arena::{Arena, ArenaFull};
use crate::client::extents::{Extents, Span};
use crate::format::wire::message::{FREED_MAX, USED_MAX};
use crate::format::{BlockNo, Ino};

/// Extents of blocks that a transaction and the next one can name together as used.
pub const USES_MAX: usize = USED_MAX - INO_USES_MAX;
/// Extents of inode numbers that they can. Each lock group gives its numbers out in a row, so these
/// are hardly more than there are groups, however many files are made.
pub const INO_USES_MAX: usize = 72;
/// With as many the open transaction should be closed.
const INO_USES_LONG: usize = INO_USES_MAX - 4;

/// Whether anything may be taken from a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// What is there.
    Open,
    /// Nothing: who needs something waits.
    Wait,
    /// Nothing: who needs something fails.
    Fail,
}

/// What transactions name of blocks: the open one, and how much the one in flight does.
pub struct Named<'m> {
    open: Extents<'m>,
    /// Extents that the transaction in flight names.
    in_flight: usize,
    max: usize,
}

impl<'m> Named<'m> {
    fn carve(arena: &mut Arena<'m>, max: usize) -> Result<Named<'m>, ArenaFull> {
        Ok(Named { open: Extents::carve(arena, max as u32)?, in_flight: 0, max })
    }

    /// Extents that can be noted.
    fn room(&self) -> usize {
        self.max.saturating_sub(self.in_flight + self.open.len())
    }

    /// What is taken or freed again has been noted before: only broken items can say so, and what
    /// they say then is not told.
    fn note(&mut self, span: Span) {
        let _ = self.open.add(span);
    }

    /// What the open transaction names.
    #[must_use]
    pub fn spans(&self) -> &[Span] {
        self.open.spans()
    }

    /// The open transaction goes on its way, and the next begins with nothing.
    pub fn cut(&mut self) {
        self.in_flight = self.open.len();
        self.open.clear();
    }

    /// The transaction on its way is durable.
    pub fn settle(&mut self) {
        self.in_flight = 0;
    }

    /// It has failed: what it named, which is this, the open one names too.
    pub fn restore(&mut self, spans: impl Iterator<Item = Span>) {
        self.in_flight = 0;
        spans.for_each(|span| self.note(span));
    }

    /// Whether the open transaction names so much that it should be closed.
    #[must_use]
    pub fn is_long(&self) -> bool {
        self.open.len() >= self.max / 2
    }
}

/// What transactions name of inode numbers.
pub struct NamedInos<'m> {
    /// What the open one names.
    open: Extents<'m>,
    /// What it and the one in flight do.
    both: Extents<'m>,
}

impl<'m> NamedInos<'m> {
    fn carve(arena: &mut Arena<'m>) -> Result<NamedInos<'m>, ArenaFull> {
        let mut carve = || Extents::carve(arena, INO_USES_MAX as u32);
        Ok(NamedInos { open: carve()?, both: carve()? })
    }

    /// Whether this number can be noted: there is room, or it follows others in both.
    fn has_room_for(&self, number: u64) -> bool {
        let follows = |named: &Extents<'_>| named.spans().iter().any(|span| span.end() == number);
        let room = self.open.room().min(self.both.room());
        room > 0 || (follows(&self.open) && follows(&self.both))
    }

    /// A number that was noted before is one that the server has lent twice: it isn't told again.
    fn note(&mut self, number: u64) {
        let span = Span { first: number, len: 1 };
        if self.both.add(span).is_ok() {
            let _ = self.open.add(span);
        }
    }

    /// What the open transaction names.
    #[must_use]
    pub fn spans(&self) -> &[Span] {
        self.open.spans()
    }

    /// The open transaction goes on its way, and the next begins with nothing.
    pub fn cut(&mut self) {
        self.open.clear();
    }

    /// The transaction on its way is durable.
    pub fn settle(&mut self) {
        self.both.copy_from(&self.open);
    }

    /// It has failed: what it named, the open one names too.
    pub fn restore(&mut self) {
        self.open.copy_from(&self.both);
    }

    /// Whether the open transaction names so much that it should be closed.
    #[must_use]
    pub fn is_long(&self) -> bool {
        self.open.len() >= INO_USES_LONG
    }
}

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
    /// Numbers given out.
    pub used: NamedInos<'m>,
    /// The server has none left.
    refused: bool,
    gate: Gate,
}

impl<'m> Inos<'m> {
    /// Carves a pool of up to so many lock groups, empty.
    pub fn carve(arena: &mut Arena<'m>, groups: u32) -> Result<Inos<'m>, ArenaFull> {
        let empty = Group { dir: Ino(0), next: 0, end: 0, used: 0 };
        Ok(Inos {
            groups: arena.slice(groups, |_| empty)?,
            clock: 0,
            used: NamedInos::carve(arena)?,
            refused: false,
            gate: Gate::Open,
        })
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

    /// How many more lock groups there is room for.
    #[must_use]
    pub fn room(&self) -> usize {
        self.groups.iter().filter(|group| group.is_empty()).count()
    }

    /// Whether some of the numbers from `first` to the one before `end` are here.
    #[must_use]
    pub fn has_some_of(&self, first: u64, end: u64) -> bool {
        let mut full = self.groups.iter().filter(|group| !group.is_empty());
        full.any(|group| group.next < end && first < group.end)
    }

    /// Numbers that can be given out.
    #[must_use]
    pub fn available(&self) -> u64 {
        self.groups.iter().map(|group| group.end - group.next).sum()
    }

    /// The server has none left: who needs one, when there are none, fails.
    pub fn refuse(&mut self) {
        self.refused = true;
    }

    /// Whether any may be taken from now on.
    pub fn gate(&mut self, gate: Gate) {
        self.gate = gate;
    }

    pub(in crate::client) fn is_refused(&self) -> bool {
        self.gate == Gate::Fail || (self.refused && self.available() == 0)
    }

    /// The number that an inode made next in this directory gets.
    pub(in crate::client) fn peek(&self, dir: Ino, directory: bool) -> Option<Ino> {
        let next = self.groups[self.find(dir, directory)?].next;
        (self.gate == Gate::Open && self.used.has_room_for(next)).then_some(Ino(next))
    }

    /// Gives out the number that was peeked at.
    pub(in crate::client) fn take(&mut self, dir: Ino, directory: bool) {
        let at = self.find(dir, directory).expect("it was peeked at");
        self.clock += 1;
        let group = &mut self.groups[at];
        let fresh = directory && group.dir == Ino(0);
        group.dir = if fresh { Ino(group.next) } else { dir };
        self.used.note(group.next);
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
    free: Extents<'m>,
    /// Blocks taken.
    pub used: Named<'m>,
    /// Blocks freed.
    pub freed: Named<'m>,
    /// The server has none left.
    refused: bool,
    gate: Gate,
}

impl<'m> Blocks<'m> {
    /// Carves lists of up to so many extents to take from, and of up to so many freed in one
    /// transaction and the next: at least [`map::FREED_MAX`](super::map::FREED_MAX), at most as
    /// many as a message can name.
    pub fn carve(arena: &mut Arena<'m>, free: u32, freed: u32) -> Result<Blocks<'m>, ArenaFull> {
        let freed = freed as usize;
        assert!((super::map::FREED_MAX..=FREED_MAX).contains(&freed));
        Ok(Blocks {
            free: Extents::carve(arena, free)?,
            used: Named::carve(arena, USES_MAX)?,
            freed: Named::carve(arena, freed)?,
            refused: false,
            gate: Gate::Open,
        })
    }

    /// Adds blocks, if there is room and they are not in yet. Says whether they were added.
    pub fn lend(&mut self, run: BlockRun) -> bool {
        let Ok(len) = u32::try_from(run.len) else { return false };
        self.refused = false;
        self.free.add(Span { first: run.first.0, len }).is_ok()
    }

    /// The server has none left: who needs some, when there are none, fails.
    pub fn refuse(&mut self) {
        self.refused = true;
    }

    /// Whether any may be taken from now on.
    pub fn gate(&mut self, gate: Gate) {
        self.gate = gate;
    }

    pub(in crate::client) fn is_refused(&self) -> bool {
        self.gate == Gate::Fail || (self.refused && self.free.is_empty())
    }

    /// Blocks that can be taken.
    #[must_use]
    pub fn available(&self) -> u64 {
        self.free.count()
    }

    /// Extents that there is room for.
    #[must_use]
    pub fn room(&self) -> usize {
        self.free.room()
    }

    /// Takes up to `wanted` of the highest blocks out, to be given back: those that would be used
    /// last.
    pub fn give_back(&mut self, wanted: u32) -> Option<Span> {
        let last = self.free.len().checked_sub(1)?;
        Some(self.free.take_last(last, wanted))
    }

    /// Whether so many extents can be freed.
    pub(in crate::client) fn has_room(&self, extents: usize) -> bool {
        self.freed.room() >= extents
    }

    /// What is taken next by one who wants so many.
    pub(in crate::client) fn peek(&self, wanted: u64) -> Option<BlockRun> {
        let can = self.gate == Gate::Open && self.used.room() > 0;
        let span = self.free.spans().first().filter(|_| can)?;
        Some(BlockRun { first: BlockNo(span.first), len: u64::from(span.len).min(wanted) })
    }

    /// Takes the run that was peeked at.
    pub(in crate::client) fn take(&mut self, taken: BlockRun) {
        let span = self.free.take(0, taken.len as u32);
        let same = span.first == taken.first.0 && u64::from(span.len) == taken.len;
        assert!(same, "it was peeked at");
        self.used.note(span);
    }

    /// Frees a run, for which there is room. Of one too long for that, in a message's numbers, the
    /// end is not told.
    pub(in crate::client) fn free(&mut self, run: BlockRun) {
        let mut left = run;
        while left.len > 0 {
            let len = left.len.min(u32::MAX.into());
            self.freed.note(Span { first: left.first.0, len: len as u32 });
            left = BlockRun { first: left.first.plus(len), len: left.len - len };
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use crate::arena::tests::region;

    const GROUP: u64 = 1024;

    fn group(ino: Ino) -> u64 {
        ino.0 / GROUP
    }

    fn make(inos: &mut Inos<'_>, dir: Ino, directory: bool) -> Option<Ino> {
        let ino = inos.peek(dir, directory)?;
        inos.take(dir, directory);
        Some(ino)
    }

    /// Two mounts never meet in what they make in two directories: each draws from lock groups of
    /// its own, however their calls mix.
    #[test]
    fn directories_draw_from_groups_of_their_own() {
        let mut arena = Arena::new(region(1 << 16)).unwrap();
        let mut inos = Inos::carve(&mut arena, 8).unwrap();
        for lent in 5..11 {
            assert!(inos.lend(Ino(lent * GROUP), GROUP));
        }
        let [a, b] = [Ino(1), Ino(2)];
        let groups = |inos: &mut Inos<'_>, dir| {
            let made: std::vec::Vec<Ino> =
                (0..100).map(|_| make(inos, dir, false).unwrap()).collect();
            assert!(made.windows(2).all(|pair| pair[0].0 + 1 == pair[1].0), "in a row");
            (group(made[0]), group(made[99]))
        };
        let of_a = groups(&mut inos, a);
        let of_b = groups(&mut inos, b);
        assert_eq!((of_a.0, of_b.0), (of_a.1, of_b.1));
        assert_ne!(of_a.0, of_b.0);
        // A directory made in one of them begins a group, from which what is in it is numbered.
        let sub = make(&mut inos, a, true).unwrap();
        assert!(group(sub) != of_a.0 && group(sub) != of_b.0);
        assert_eq!(make(&mut inos, sub, false), Some(Ino(sub.0 + 1)));
        assert_eq!(groups(&mut inos, a).0, of_a.0);
    }

    /// No number is given out twice, and the last of a group is followed by another group's first.
    #[test]
    fn each_number_is_given_out_once() {
        let mut arena = Arena::new(region(1 << 16)).unwrap();
        let mut inos = Inos::carve(&mut arena, 2).unwrap();
        assert!(inos.lend(Ino(GROUP), 3) && inos.lend(Ino(2 * GROUP), 2));
        assert!(!inos.lend(Ino(9 * GROUP), 1), "there is no room");
        let made: std::vec::Vec<Ino> =
            core::iter::from_fn(|| make(&mut inos, Ino(1), false)).collect();
        let numbers = [GROUP, GROUP + 1, GROUP + 2, 2 * GROUP, 2 * GROUP + 1];
        assert_eq!(made, numbers.map(Ino));
    }
    /// What transactions name does not grow with the number of files, and a failed one costs no
    /// room: directories in turn, each with a group of its own.
    #[test]
    fn files_of_all_directories_in_turn_fit_a_transaction() {
        let mut arena = Arena::new(region(1 << 16)).unwrap();
        let dirs = INO_USES_MAX as u64 - 12;
        let mut inos = Inos::carve(&mut arena, dirs as u32).unwrap();
        // None beside another: what is used of two would be one extent.
        for dir in 1..=dirs {
            assert!(inos.lend(Ino(2 * dir * GROUP), GROUP));
        }
        let round = |inos: &mut Inos<'_>| {
            (1..=dirs).for_each(|dir| assert!(make(inos, Ino(dir), false).is_some()));
        };
        (0..400).for_each(|_| round(&mut inos));
        assert_eq!(inos.used.spans().len() as u64, dirs);
        assert!(!inos.used.is_long());
        // The next one goes on where that in flight ended; that fails, and both are one again.
        inos.used.cut();
        (0..400).for_each(|_| round(&mut inos));
        inos.used.restore();
        assert!(inos.used.spans().iter().all(|span| span.len == 800));
        assert_eq!(inos.used.spans().len() as u64, dirs);
        inos.used.cut();
        round(&mut inos);
        inos.used.settle();
        inos.used.restore();
        assert!(inos.used.spans().iter().all(|span| span.len == 1));
    }

    /// When no more extents can be named, numbers that follow others still can.
    #[test]
    fn a_full_list_takes_what_follows() {
        let mut arena = Arena::new(region(1 << 16)).unwrap();
        let groups = INO_USES_MAX as u64 + 1;
        let mut inos = Inos::carve(&mut arena, groups as u32).unwrap();
        for dir in 1..=groups {
            assert!(inos.lend(Ino(2 * dir * GROUP), GROUP));
        }
        let made: std::vec::Vec<_> =
            (1..=groups).map(|dir| make(&mut inos, Ino(dir), false)).collect();
        assert!(made[..INO_USES_MAX].iter().all(Option::is_some) && made[INO_USES_MAX].is_none());
        assert!(inos.used.is_long() && make(&mut inos, Ino(1), false).is_some());
        // They wait until what is in flight is durable.
        inos.used.cut();
        assert_eq!(make(&mut inos, Ino(1), false), None);
        inos.used.settle();
        assert!(
            (1..=groups).all(|dir| make(&mut inos, Ino(dir), false).is_some() == (dir < groups))
        );
    }
}

//! A set of numbers, of blocks or of inodes, as extents in carved memory.
//!
//! # Invariants
//!
//! * Extents ascend and are disjoint. Two that touch are one, unless that would be longer than a
//!   message can say.
//! * What doesn't fit, or overlaps what is in, changes nothing.
//!
//! What this module deliberately doesn't know: what the numbers mean.

use crate::arena::{Arena, ArenaFull};

/// Numbers in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The first.
    pub first: u64,
    /// How many.
    pub len: u32,
}

impl Span {
    /// The number behind the last.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.first.saturating_add(self.len.into())
    }
}

/// Why a span was not added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotAdded {
    /// Some of it is in.
    Overlaps,
    /// There are too many extents.
    Full,
}

/// The set.
#[derive(Debug)]
pub struct Extents<'m> {
    spans: &'m mut [Span],
    len: usize,
}

impl<'m> Extents<'m> {
    /// Carves an empty set of up to so many extents.
    pub fn carve(arena: &mut Arena<'m>, extents: u32) -> Result<Extents<'m>, ArenaFull> {
        Ok(Extents { spans: arena.slice(extents, |_| Span { first: 0, len: 0 })?, len: 0 })
    }

    /// The extents, ascending.
    #[must_use]
    pub fn spans(&self) -> &[Span] {
        &self.spans[..self.len]
    }

    /// How many extents there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is in.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Extents that can be added, whatever they are.
    #[must_use]
    pub fn room(&self) -> usize {
        self.spans.len() - self.len
    }

    /// How many numbers are in.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.spans().iter().map(|span| u64::from(span.len)).sum()
    }

    /// Adds a span.
    pub fn add(&mut self, new: Span) -> Result<(), NotAdded> {
        if new.len == 0 {
            return Ok(());
        }
        let at = self.spans().partition_point(|span| span.first < new.first);
        let before = at.checked_sub(1).map(|at| self.spans[at]);
        let after = self.spans().get(at).copied();
        if before.is_some_and(|before| before.end() > new.first)
            || after.is_some_and(|after| new.end() > after.first)
        {
            return Err(NotAdded::Overlaps);
        }
        let before = before.filter(|before| before.end() == new.first);
        let joined = before.and_then(|before| join(before, new));
        let whole = joined.unwrap_or(new);
        let tail = after.filter(|after| new.end() == after.first);
        let tail = tail.and_then(|after| join(whole, after));
        match (joined, tail) {
            (Some(_), Some(all)) => {
                self.spans[at - 1] = all;
                self.remove(at);
            }
            (Some(joined), None) => self.spans[at - 1] = joined,
            (None, Some(all)) => self.spans[at] = all,
            (None, None) if self.room() == 0 => return Err(NotAdded::Full),
            (None, None) => {
                self.spans.copy_within(at..self.len, at + 1);
                self.spans[at] = new;
                self.len += 1;
            }
        }
        Ok(())
    }

    /// Takes the first `len` numbers of an extent, or as many as it has, out.
    pub fn take(&mut self, index: usize, len: u32) -> Span {
        let span = &mut self.spans[..self.len][index];
        let taken = Span { first: span.first, len: span.len.min(len) };
        span.first = span.first.saturating_add(taken.len.into());
        span.len -= taken.len;
        if span.len == 0 {
            self.remove(index);
        }
        taken
    }

    /// Takes the last `len` numbers of an extent, or as many as it has, out.
    pub fn take_last(&mut self, index: usize, len: u32) -> Span {
        let span = &mut self.spans[..self.len][index];
        let len = span.len.min(len);
        span.len -= len;
        let taken = Span { first: span.end(), len };
        if span.len == 0 {
            self.remove(index);
        }
        taken
    }

    /// Takes everything out.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Becomes the same as another, which has no more extents than there is room for.
    pub fn copy_from(&mut self, other: &Extents<'_>) {
        self.spans[..other.len].copy_from_slice(other.spans());
        self.len = other.len;
    }

    fn remove(&mut self, index: usize) {
        self.spans.copy_within(index + 1..self.len, index);
        self.len -= 1;
    }
}

/// Two spans that touch, as one.
fn join(a: Span, b: Span) -> Option<Span> {
    a.len.checked_add(b.len).map(|len| Span { first: a.first, len })
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::{Extents, NotAdded, Span};
    use crate::arena::Arena;
    use crate::arena::tests::region;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::vec::Vec;

    #[derive(Debug, Clone)]
    enum Step {
        Add(u64, u32),
        Take(usize, u32),
        TakeLast(usize, u32),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => (0u64..200, 0u32..9).prop_map(|(first, len)| Step::Add(first, len)),
            1 => (0usize..9, 1u32..9).prop_map(|(index, len)| Step::Take(index, len)),
            1 => (0usize..9, 1u32..9).prop_map(|(index, len)| Step::TakeLast(index, len)),
        ];
        prop::collection::vec(step, 0..200)
    }

    fn numbers(span: Span) -> std::ops::Range<u64> {
        span.first..span.end()
    }

    proptest! {
        #[test]
        fn a_set_is_a_set(steps in steps()) {
            let mut arena = Arena::new(region(4096)).unwrap();
            let mut set = Extents::carve(&mut arena, 9).unwrap();
            let mut model: BTreeSet<u64> = BTreeSet::new();
            for step in steps {
                let len = set.len();
                match step {
                    Step::Add(first, len) => {
                        let span = Span { first, len };
                        let before: Vec<Span> = set.spans().to_vec();
                        match set.add(span) {
                            Ok(()) => numbers(span).for_each(|n| assert!(model.insert(n))),
                            Err(NotAdded::Full) => {
                                prop_assert_eq!(set.room(), 0);
                                prop_assert_eq!(set.spans(), &before[..]);
                            }
                            Err(NotAdded::Overlaps) => {
                                prop_assert!(numbers(span).any(|n| model.contains(&n)));
                                prop_assert_eq!(set.spans(), &before[..]);
                            }
                        }
                    }
                    Step::Take(index, count) if index < len => {
                        numbers(set.take(index, count)).for_each(|n| assert!(model.remove(&n)));
                    }
                    Step::TakeLast(index, count) if index < len => {
                        let taken = set.take_last(index, count);
                        numbers(taken).for_each(|n| assert!(model.remove(&n)));
                    }
                    Step::Take(..) | Step::TakeLast(..) => {}
                }
                prop_assert!(set.spans().iter().all(|span| span.len > 0));
                prop_assert!(set.spans().is_sorted_by(|a, b| a.end() < b.first));
                let held: Vec<u64> = set.spans().iter().flat_map(|span| numbers(*span)).collect();
                prop_assert_eq!(held, model.iter().copied().collect::<Vec<_>>());
                prop_assert_eq!(set.count(), model.len() as u64);
            }
        }
    }

    #[test]
    fn what_is_too_long_for_a_message_stays_in_two() {
        let mut arena = Arena::new(region(4096)).unwrap();
        let mut set = Extents::carve(&mut arena, 4).unwrap();
        set.add(Span { first: 0, len: u32::MAX }).unwrap();
        set.add(Span { first: u64::from(u32::MAX), len: 1 }).unwrap();
        assert_eq!((set.len(), set.count()), (2, 1 << 32));
    }
}

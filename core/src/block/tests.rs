extern crate std;

use super::wait::Place;
use super::{Cache, State};

impl Cache<'_> {
    /// Panics unless every invariant of the cache's own bookkeeping holds, between two runs.
    pub(crate) fn check(&mut self) {
        let mut found = 0;
        for index in 0..self.frames.len() {
            let frame = &self.frames[index];
            let here = self.find(frame.at.blkno()).is_some_and(|id| id.0 as usize == index);
            let findable = matches!(
                frame.state,
                State::Reading | State::Clean | State::Dirty | State::Writing
            );
            assert_eq!(here, findable, "{:?}", frame.state);
            found += usize::from(here);
            let flying = frame.buffer.is_none();
            let transfers = matches!(frame.state, State::Reading | State::Writing | State::Doomed);
            assert!(transfers || !flying);
            assert!(transfers || frame.waiters.is_empty());
            assert!(frame.state != State::Free || frame.pins == 0);
            assert!(frame.state != State::Orphan || frame.pins > 0);
        }
        let chained = self.buckets.iter().map(|&first| {
            core::iter::successors(first, |id| self.frames[id.0 as usize].chain).count()
        });
        assert_eq!(chained.sum::<usize>(), found);
        let idle = |frame: &super::Frame<'_>| match frame.state {
            State::Free => true,
            State::Clean => frame.pins == 0,
            State::Reading | State::Dirty | State::Writing | State::Doomed | State::Orphan => false,
        };
        let idle = self.frames.iter().filter(|frame| idle(frame)).count();
        assert_eq!(idle, self.idle.len() as usize);
        // The condition under which the first must have been called is never left unnoticed.
        if let Some(index) = self.waiters.frames.front() {
            let waiter = &self.waiters.table[index as usize];
            let Place::Frames(want) = waiter.place else { panic!("in the queue for frames") };
            assert!(want > idle as u32 || waiter.is_called(), "nobody was called");
        }
    }
}

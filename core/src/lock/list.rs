//! Doubly linked lists over slots of a pool.
//!
//! The links of all lists of one kind are one array beside the pool, and a slot is in at most one
//! list of the kind at a time. The caller knows which.
//!
//! What this module deliberately doesn't know: what the slots hold.

/// No slot.
pub(super) const NONE: u32 = u32::MAX;

/// A slot's neighbours.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    prev: u32,
    next: u32,
    linked: bool,
}

impl Link {
    /// Of a slot that is in no list.
    pub(super) const FREE: Link = Link { prev: NONE, next: NONE, linked: false };

    pub(super) fn is_linked(&self) -> bool {
        self.linked
    }
}

/// The ends of a list.
#[derive(Debug, Clone, Copy)]
pub(super) struct List {
    head: u32,
    tail: u32,
    len: u32,
}

impl List {
    pub(super) const EMPTY: List = List { head: NONE, tail: NONE, len: 0 };

    pub(super) fn len(&self) -> u32 {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn front(&self) -> Option<u32> {
        (self.head != NONE).then_some(self.head)
    }

    /// The slot behind this one.
    pub(super) fn next(links: &[Link], at: u32) -> Option<u32> {
        let next = links[at as usize].next;
        (next != NONE).then_some(next)
    }

    /// Appends a slot that is in no list of the kind.
    pub(super) fn push_back(&mut self, links: &mut [Link], at: u32) {
        assert!(!links[at as usize].linked, "already in a list");
        links[at as usize] = Link { prev: self.tail, next: NONE, linked: true };
        match self.tail {
            NONE => self.head = at,
            tail => links[tail as usize].next = at,
        }
        self.tail = at;
        self.len += 1;
    }

    /// Appends a slot unless it is in the list.
    pub(super) fn ensure(&mut self, links: &mut [Link], at: u32) {
        if !links[at as usize].linked {
            self.push_back(links, at);
        }
    }

    /// Takes a slot out, if it is in the list.
    pub(super) fn remove(&mut self, links: &mut [Link], at: u32) {
        let Link { prev, next, linked } = links[at as usize];
        if !linked {
            return;
        }
        match prev {
            NONE => self.head = next,
            prev => links[prev as usize].next = next,
        }
        match next {
            NONE => self.tail = prev,
            next => links[next as usize].prev = prev,
        }
        links[at as usize] = Link::FREE;
        self.len -= 1;
    }

    /// Takes the first slot out.
    pub(super) fn pop_front(&mut self, links: &mut [Link]) -> Option<u32> {
        let at = self.front()?;
        self.remove(links, at);
        Some(at)
    }

    /// The slots, from the first.
    pub(super) fn iter<'l>(&self, links: &'l [Link]) -> impl Iterator<Item = u32> + use<'l> {
        core::iter::successors(self.front(), |at| List::next(links, *at))
    }
}

//! Doubly linked lists threaded through the elements of a slice, so that an element can be taken
//! out of the middle without a search.
//!
//! # Invariants
//!
//! * An element is in at most one list at a time; which one, its owner knows.
//! * Links are indices into the slice that every call is given.
//!
//! What this module deliberately doesn't know: what is listed, and why.

/// No element.
const NONE: u32 = u32::MAX;

/// An element's place in the list it is in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Links {
    prev: u32,
    next: u32,
}

impl Links {
    /// Of an element that is in no list.
    pub(super) const NONE: Links = Links { prev: NONE, next: NONE };
}

/// Something that can be listed.
pub(super) trait Linked {
    /// Its links.
    fn links(&mut self) -> &mut Links;
}

/// Both ends of a list, and its length.
#[derive(Debug, Clone, Copy)]
pub(super) struct List {
    head: u32,
    tail: u32,
    len: u32,
}

impl List {
    /// The list of nothing.
    pub(super) const EMPTY: List = List { head: NONE, tail: NONE, len: 0 };

    /// How many elements are listed.
    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// Whether nothing is listed.
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Index of the first element.
    pub(super) fn front(&self) -> Option<u32> {
        (self.head != NONE).then_some(self.head)
    }

    /// Lists `index` last.
    pub(super) fn push_back<T: Linked>(&mut self, items: &mut [T], index: u32) {
        *items[index as usize].links() = Links { prev: self.tail, next: NONE };
        match self.tail {
            NONE => self.head = index,
            tail => items[tail as usize].links().next = index,
        }
        self.tail = index;
        self.len += 1;
    }

    /// Lists `index` first.
    pub(super) fn push_front<T: Linked>(&mut self, items: &mut [T], index: u32) {
        *items[index as usize].links() = Links { prev: NONE, next: self.head };
        match self.head {
            NONE => self.tail = index,
            head => items[head as usize].links().prev = index,
        }
        self.head = index;
        self.len += 1;
    }

    /// Takes `index`, which must be in this list, out of it.
    pub(super) fn remove<T: Linked>(&mut self, items: &mut [T], index: u32) {
        let Links { prev, next } = core::mem::replace(items[index as usize].links(), Links::NONE);
        match prev {
            NONE => self.head = next,
            prev => items[prev as usize].links().next = next,
        }
        match next {
            NONE => self.tail = prev,
            next => items[next as usize].links().prev = prev,
        }
        self.len -= 1;
    }

    /// Takes the first element out.
    pub(super) fn pop_front<T: Linked>(&mut self, items: &mut [T]) -> Option<u32> {
        let index = self.front()?;
        self.remove(items, index);
        Some(index)
    }
}

//! Lists in order of use, by slot number: the links stand in one slice, the ends in each list.
//!
//! What this module deliberately doesn't know: what is listed, and which list a slot is on.

/// No slot.
pub(super) const NONE: u32 = u32::MAX;

/// A slot's neighbours in the list it is on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    pub(super) newer: u32,
    older: u32,
}

impl Link {
    /// On no list.
    pub(super) const ALONE: Link = Link { newer: NONE, older: NONE };
}

/// The ends of a list.
#[derive(Debug)]
pub(super) struct List {
    newest: u32,
    oldest: u32,
    len: u32,
}

impl List {
    /// A list of nothing.
    pub(super) const EMPTY: List = List { newest: NONE, oldest: NONE, len: 0 };

    /// How many slots are on it.
    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// The slot used longest ago.
    pub(super) fn oldest(&self) -> Option<u32> {
        (self.oldest != NONE).then_some(self.oldest)
    }

    /// Puts a slot that is on no list in as the newest.
    pub(super) fn push(&mut self, links: &mut [Link], id: u32) {
        links[id as usize] = Link { newer: NONE, older: self.newest };
        match self.newest {
            NONE => self.oldest = id,
            newest => links[newest as usize].newer = id,
        }
        self.newest = id;
        self.len += 1;
    }

    /// Takes off a slot that is on this list.
    pub(super) fn remove(&mut self, links: &mut [Link], id: u32) {
        let Link { newer, older } = links[id as usize];
        match newer {
            NONE => self.newest = older,
            newer => links[newer as usize].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => links[older as usize].newer = newer,
        }
        self.len -= 1;
    }

    /// Makes a slot that is on this list the newest.
    pub(super) fn touch(&mut self, links: &mut [Link], id: u32) {
        if self.newest != id {
            self.remove(links, id);
            self.push(links, id);
        }
    }
}

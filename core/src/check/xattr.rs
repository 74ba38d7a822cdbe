//! The extended attributes of one inode: whether their parts make up whole ones.
//!
//! # Invariants
//!
//! * What is wrong with an attribute's parts is told once, at its first part.
//!
//! What this module deliberately doesn't know: what attributes mean.

use super::finding::{Id, Log, Wrong};
use super::inode::Place;
use crate::error::Corruption;
use crate::format::item::{NAME_BYTES_MAX, VALUE_BYTES_MAX, XattrHead};
use crate::format::key::{ItemKey, NameSecret, name_hash};

/// An attribute whose parts are being gone through.
#[derive(Clone, Copy)]
struct Open {
    hash: u64,
    number: u64,
    place: Place,
    /// The part that comes next, and bytes that are still to come.
    part: u8,
    left: usize,
    is_bad: bool,
}

pub(super) struct XattrCheck {
    secret: NameSecret,
    open: Option<Open>,
    last_name: (u64, heapless::Vec<u8, NAME_BYTES_MAX>),
}

impl XattrCheck {
    pub(super) fn new(secret: NameSecret) -> XattrCheck {
        XattrCheck { secret, open: None, last_name: (0, heapless::Vec::new()) }
    }

    /// Takes a part; `next` is the number that the inode's next attribute gets, if it is known.
    pub(super) fn take(
        &mut self,
        item: &ItemKey,
        value: &[u8],
        place: Place,
        next: Option<u64>,
        log: &mut Log,
    ) {
        let ItemKey::Xattr { hash, id: number, part, .. } = *item else { return };
        let is_same = |open: &Open| (open.hash, open.number) == (hash, number);
        if !self.open.as_ref().is_some_and(is_same) {
            self.end(log);
            let (part, left) = (0, 0);
            self.open = Some(Open { hash, number, place, part, left, is_bad: false });
            if let Some(next) = next.filter(|next| number >= *next) {
                log.put_item(Id::XattrNumber, place, Wrong::Count { says: number, is: next });
            }
            if part == 0 {
                self.take_head(value, log);
            }
        }
        let Some(open) = &mut self.open else { return };
        let expected = open.left.min(VALUE_BYTES_MAX);
        if part != open.part || value.len() != expected || expected == 0 {
            open.is_bad = true;
        }
        open.left = open.left.saturating_sub(value.len());
        open.part = part.saturating_add(1);
    }

    /// The first part says how many bytes there are in all of them.
    fn take_head(&mut self, value: &[u8], log: &mut Log) {
        let Some(open) = &mut self.open else { return };
        let Ok(head) = XattrHead::parse(value) else {
            open.is_bad = true;
            return;
        };
        let name = head.name.bytes();
        open.left = value.len() - head.start.len() + head.value_len;
        if name_hash(&self.secret, name) != open.hash {
            log.put_item(Id::XattrHash, open.place, Wrong::MISMATCH);
        }
        if self.last_name.0 == open.hash && self.last_name.1 == name {
            log.put_item(Id::XattrName, open.place, Wrong::MISMATCH);
        }
        let name = heapless::Vec::from_slice(name).expect("a name is bounded");
        self.last_name = (open.hash, name);
    }

    /// There are no more parts of the last one.
    pub(super) fn end(&mut self, log: &mut Log) {
        if let Some(open) = self.open.take()
            && (open.is_bad || open.left > 0)
        {
            log.put_item(Id::XattrParts, open.place, Corruption::Bounds);
        }
    }
}

//! Values in chains of 64-byte chunks.
//!
//! A value of n bytes takes n / 64 chunks, rounded up, and nothing else: the waste is below 64
//! bytes a value and 4 bytes of link a chunk, whatever the mix of sizes, and any free chunk serves
//! any value. (Size classes would give slices in one piece, and run out of one class while others
//! are idle.) Readers copy a value out, or go through its pieces.
//!
//! What this module deliberately doesn't know: whose value it is.

use super::list::NONE;
use crate::arena::{Arena, ArenaFull};

/// Bytes of a chunk.
pub const CHUNK_BYTES: usize = 64;

/// The largest value.
pub const VALUE_BYTES_MAX: usize = 544;

/// Chunks of a value of this many bytes.
pub(super) fn chunks_of(value_bytes: usize) -> u32 {
    value_bytes.div_ceil(CHUNK_BYTES) as u32
}

/// The chunks.
pub(super) struct Values<'m> {
    chunks: &'m mut [[u8; CHUNK_BYTES]],
    /// The chunk after each one, in its value or among the free.
    links: &'m mut [u32],
    free: u32,
    free_count: u32,
}

impl<'m> Values<'m> {
    /// Carves `count` chunks.
    pub(super) fn carve(arena: &mut Arena<'m>, count: u32) -> Result<Values<'m>, ArenaFull> {
        let chunks = arena.slice(count, |_| [0; CHUNK_BYTES])?;
        let links = arena.slice(count, |index| index + 1)?;
        Ok(Values { chunks, links, free: 0, free_count: count })
    }

    /// Chunks not in use.
    pub(super) fn free_count(&self) -> u32 {
        self.free_count
    }

    /// Stores a value, for which there must be room, and returns its first chunk.
    pub(super) fn store(&mut self, value: &[u8]) -> u32 {
        let mut head = NONE;
        // Back to front, so that each chunk knows the one after it.
        for piece in value.chunks(CHUNK_BYTES).rev() {
            let id = self.free;
            self.free = self.links[id as usize];
            self.free_count -= 1;
            self.chunks[id as usize][..piece.len()].copy_from_slice(piece);
            self.links[id as usize] = head;
            head = id;
        }
        head
    }

    /// Gives the chunks of a value back, as one piece of the list of free ones. A value of one
    /// chunk, as most are, is not looked at for that.
    pub(super) fn forfeit(&mut self, head: u32, len: u16) {
        let count = chunks_of(usize::from(len));
        if count > 0 {
            let last = (1..count).fold(head, |id, _| self.links[id as usize]);
            self.links[last as usize] = self.free;
            self.free = head;
            self.free_count += count;
        }
    }

    /// The chunks of a value.
    #[cfg(test)]
    pub(super) fn chunks(&self, head: u32, count: u32) -> impl Iterator<Item = u32> {
        let after = |id: &u32| Some(self.links[*id as usize]);
        core::iter::successors(Some(head), after).take(count as usize)
    }

    /// The chunks of no value.
    #[cfg(test)]
    pub(super) fn free_chunks(&self) -> impl Iterator<Item = u32> {
        self.chunks(self.free, self.free_count)
    }

    /// A stored value.
    pub(super) fn value(&self, head: u32, len: u16) -> Value<'_> {
        Value { chunks: self.chunks, links: self.links, head, left: len }
    }
}

/// The value of a cached item; as an iterator, the rest of it in pieces.
#[derive(Clone, Copy)]
pub struct Value<'a> {
    chunks: &'a [[u8; CHUNK_BYTES]],
    links: &'a [u32],
    head: u32,
    left: u16,
}

impl Value<'_> {
    /// Its size in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.left)
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// Copies as much of it as fits and returns what was written to.
    pub fn copy_to<'b>(&self, buffer: &'b mut [u8]) -> &'b mut [u8] {
        let len = buffer.len().min(self.len());
        let buffer = &mut buffer[..len];
        for (to, piece) in buffer.chunks_mut(CHUNK_BYTES).zip(*self) {
            to.copy_from_slice(&piece[..to.len()]);
        }
        buffer
    }
}

impl<'a> Iterator for Value<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let chunk = self.chunks.get(self.head as usize).filter(|_| self.left > 0)?;
        let len = self.len().min(CHUNK_BYTES);
        self.left -= len as u16;
        self.head = self.links[self.head as usize];
        Some(&chunk[..len])
    }
}

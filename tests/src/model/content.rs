//! The bytes of a file, with holes.
//!
//! # Invariants
//!
//! * Blocks lie before the end of the file, but for reserved ones; what is behind the end in the
//!   last block is zero.

use std::collections::BTreeMap;

/// Bytes of a block.
pub(super) const BLOCK: u64 = 4096;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Stored {
    /// Bytes were written.
    Data(Box<[u8; BLOCK as usize]>),
    /// There is space, which reads as zeros.
    Reserved,
}

/// A file's bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Content {
    size: u64,
    blocks: BTreeMap<u64, Stored>,
}

impl Content {
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn block_count(&self) -> u64 {
        self.blocks.len() as u64
    }

    pub(super) fn read(&self, at: u64, len: u32) -> Vec<u8> {
        let end = self.size.min(at.saturating_add(len.into()));
        let mut bytes = Vec::new();
        for (block, from, to) in pieces(at, end) {
            match self.blocks.get(&block) {
                Some(Stored::Data(data)) => bytes.extend_from_slice(&data[from..to]),
                Some(Stored::Reserved) | None => bytes.resize(bytes.len() + to - from, 0),
            }
        }
        bytes
    }

    pub(super) fn write(&mut self, at: u64, bytes: &[u8]) {
        let end = at + bytes.len() as u64;
        let mut rest = bytes;
        for (block, from, to) in pieces(at, end) {
            let (head, tail) = rest.split_at(to - from);
            self.data(block)[from..to].copy_from_slice(head);
            rest = tail;
        }
        self.size = self.size.max(end);
    }

    fn data(&mut self, block: u64) -> &mut [u8; BLOCK as usize] {
        let stored = self.blocks.entry(block).or_insert(Stored::Reserved);
        if *stored == Stored::Reserved {
            *stored = Stored::Data(Box::new([0; BLOCK as usize]));
        }
        match stored {
            Stored::Data(data) => data,
            Stored::Reserved => unreachable!("it was just filled"),
        }
    }

    pub(super) fn resize(&mut self, size: u64) {
        if size <= self.size {
            self.blocks.retain(|block, _| *block < size.div_ceil(BLOCK));
            self.blank(size, size.next_multiple_of(BLOCK));
        }
        self.size = size;
    }

    /// Zeroes what is stored of these bytes.
    fn blank(&mut self, at: u64, end: u64) {
        for (block, from, to) in pieces(at, end) {
            if let Some(Stored::Data(data)) = self.blocks.get_mut(&block) {
                data[from..to].fill(0);
            }
        }
    }

    /// Makes the file longer; reserved space behind the old end stays.
    pub(super) fn grow(&mut self, size: u64) {
        self.size = self.size.max(size);
    }

    pub(super) fn reserve(&mut self, at: u64, len: u64) {
        for (block, _, _) in pieces(at, at + len) {
            self.blocks.entry(block).or_insert(Stored::Reserved);
        }
    }

    /// Makes a hole. What covers the last block up to the end of the file covers it wholly.
    pub(super) fn punch(&mut self, at: u64, len: u64) {
        let end = at + len;
        let end = if end < self.size { end } else { end.next_multiple_of(BLOCK) };
        self.blank(at, end);
        for (block, from, to) in pieces(at, end) {
            if to - from == BLOCK as usize {
                self.blocks.remove(&block);
            }
        }
    }

    /// The next offset whose block holds data, or doesn't.
    pub(super) fn seek(&self, at: u64, data: bool) -> Option<u64> {
        if at >= self.size {
            return None;
        }
        let is_data = |block: u64| matches!(self.blocks.get(&block), Some(Stored::Data(_)));
        let found = pieces(at, self.size).find(|(block, _, _)| is_data(*block) == data);
        match found {
            Some((block, from, _)) => Some(block * BLOCK + from as u64),
            None if data => None,
            None => Some(self.size),
        }
    }
}

/// The blocks that bytes from `at` to `end` lie in, each with the range of its bytes.
fn pieces(at: u64, end: u64) -> impl Iterator<Item = (u64, usize, usize)> {
    let blocks = if at < end { at / BLOCK..end.div_ceil(BLOCK) } else { 0..0 };
    blocks.map(move |block| {
        let start = block * BLOCK;
        let from = at.saturating_sub(start) as usize;
        (block, from, (end - start).min(BLOCK) as usize)
    })
}

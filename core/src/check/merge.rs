//! All items of the volume in the order of their keys, of each key the newest version.
//!
//! Each run of level 0 has a cursor, and each level below has one, which goes through its runs one
//! after the other. The cursor with the least key, and of several with one key the one in the
//! newest run, is at the top of a heap.
//!
//! # Invariants
//!
//! * A key is given once: by the newest version there is, which may be a tombstone.
//! * What stops for a block has changed nothing; the blocks of a cursor are read ahead.
//! * The runs have been checked: their items ascend, and begin where the manifest says.
//!
//! What this module deliberately doesn't know: what items mean.

use super::runs::{Run, Runs, capacity};
use crate::arena::{Arena, ArenaFull};
use crate::block::{Cache, FrameId, Pins};
use crate::error::{Corruption, Error, Stop};
use crate::format::BlockNo;
use crate::format::block::Magic;
use crate::format::key::KeyBytes;
use crate::format::run::Items;

/// Blocks that a cursor is ahead with reading at the most.
const AHEAD_MAX: u32 = 64;

#[derive(Clone, Copy)]
struct Cursor {
    /// Of the item it stands at.
    key: KeyBytes,
    age: (u8, u64),
    /// The run it is in, and the one it ends before.
    run: u32,
    end: u32,
    block: u16,
    item: u16,
}

const NOWHERE: Cursor =
    Cursor { key: KeyBytes::ZERO, age: (0, 0), run: 0, end: 0, block: 0, item: 0 };

/// An item: the frame that holds it, its number in it, and the block.
pub(super) struct At {
    pub(super) frame: FrameId,
    pub(super) item: u16,
    pub(super) blkno: BlockNo,
    pub(super) key: KeyBytes,
}

/// What a merge has come to.
pub(super) enum Next {
    /// An item.
    Item(At),
    /// One that has been given, or an older version of it.
    Passed,
    /// There is nothing more.
    End,
}

pub(super) struct Merge<'m> {
    cursors: &'m mut [Cursor],
    /// The heap is the first so many of them.
    len: usize,
    last: Option<KeyBytes>,
    ahead: u32,
}

impl<'m> Merge<'m> {
    pub(super) fn carve(arena: &mut Arena<'m>, blocks: u64) -> Result<Merge<'m>, ArenaFull> {
        let cursors = arena.slice(capacity(blocks), |_| NOWHERE)?;
        Ok(Merge { cursors, len: 0, last: None, ahead: 1 })
    }

    /// Starts from the first item.
    pub(super) fn begin(&mut self, runs: &Runs<'_>, frames: u32) {
        (self.len, self.last) = (0, None);
        let mut at = 0;
        while let Some(run) = runs.get(at) {
            let level = run.key.level;
            let mut end = at + 1;
            while level > 0 && runs.get(end).is_some_and(|next| next.key.level == level) {
                end += 1;
            }
            let (key, age) = (run.first(), run.age());
            self.cursors[self.len] =
                Cursor { key, age, run: at as u32, end: end as u32, ..NOWHERE };
            self.len += 1;
            at = end;
        }
        for at in (0..self.len).rev() {
            self.sink(at);
        }
        self.ahead = (frames / 2 / (self.len as u32).max(1)).clamp(1, AHEAD_MAX);
    }

    /// Goes on by an item, or past one: of three blocks at the most.
    pub(super) fn next(
        &mut self,
        runs: &Runs<'_>,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<Next, Stop> {
        if self.len == 0 {
            return Ok(Next::End);
        }
        if Some(self.cursors[0].key) == self.last {
            self.advance(runs, cache, pins)?;
            return Ok(Next::Passed);
        }
        let Cursor { key, run, block, item, .. } = self.cursors[0];
        let run = runs.get(run as usize).expect("a cursor is in a run");
        let frame = self.obtain(run, block, item == 0, cache, pins)?;
        let blkno = run.block(block.into()).blkno;
        let items = Items::opened(cache.block(frame));
        // It was there when the run was checked: the device has changed its mind.
        if item >= items.count() || *items.get(item).0 != key {
            return Err(Error::Corrupt { blkno, what: Corruption::Mismatch }.into());
        }
        self.last = Some(key);
        Ok(Next::Item(At { frame, item, blkno, key }))
    }

    /// Lets the first cursor go on to its next item.
    fn advance(
        &mut self,
        runs: &Runs<'_>,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<(), Stop> {
        let mut cursor = self.cursors[0];
        let run = runs.get(cursor.run as usize).expect("a cursor is in a run");
        let frame = self.obtain(run, cursor.block, false, cache, pins)?;
        let items = Items::opened(cache.block(frame));
        if cursor.item + 1 < items.count() {
            cursor.item += 1;
            cursor.key = *items.get(cursor.item).0;
        } else if cursor.block + 1 < run.entry.item_blocks.get() {
            (cursor.block, cursor.item) = (cursor.block + 1, 0);
            let frame = self.obtain(run, cursor.block, true, cache, pins)?;
            cursor.key = *Items::opened(cache.block(frame)).get(0).0;
        } else if cursor.run + 1 < cursor.end {
            let run = runs.get(cursor.run as usize + 1).expect("before the end");
            let (key, age) = (run.first(), run.age());
            cursor = Cursor { key, age, run: cursor.run + 1, end: cursor.end, ..NOWHERE };
        } else {
            self.len -= 1;
            self.cursors[0] = self.cursors[self.len];
            self.sink(0);
            return Ok(());
        }
        self.cursors[0] = cursor;
        self.sink(0);
        Ok(())
    }

    fn obtain(
        &self,
        run: &Run,
        block: u16,
        is_new: bool,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<FrameId, Stop> {
        if is_new {
            let end = u32::from(run.entry.item_blocks.get());
            for index in (u32::from(block) + 1..end).take(self.ahead as usize) {
                cache.hint_run(&run.block(index), Magic::RunItems);
            }
        }
        cache.get_run(&run.block(block.into()), Magic::RunItems, pins)
    }

    /// Moves a cursor down the heap to where it belongs.
    fn sink(&mut self, mut at: usize) {
        let order = |cursor: &Cursor| (cursor.key, cursor.age);
        loop {
            let child = 2 * at + 1;
            if child >= self.len {
                return;
            }
            let right = child + 1;
            let is_right =
                right < self.len && order(&self.cursors[right]) < order(&self.cursors[child]);
            let least = if is_right { right } else { child };
            if order(&self.cursors[at]) <= order(&self.cursors[least]) {
                return;
            }
            self.cursors.swap(at, least);
            at = least;
        }
    }
}

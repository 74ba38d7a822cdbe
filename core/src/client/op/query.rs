//! What can be asked about inodes beside what programs ask: which changed, where they are, and what
//! else is known of them.
//!
//! # Invariants
//!
//! * An answer is a record, and what stands behind it, in the memory that was lent. A reader of
//!   anything else than what was written there gets less, and never panics.
//! * What a [`Page`] of changes says of the numbers up to its `stable` stays so: no entry appears
//!   there later, on any mount. Entries disappear when their inode changes again or is deleted.
//!
//! What this module deliberately doesn't know: who may ask, and where the answers come from.

use crate::format::{Ino, Seq};
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, IntoBytes};

/// Bytes of lent memory that are enough for any [`Query`].
pub const QUERY_BYTES_MAX: usize = 1 << 16;

crate::record! {
    /// Stands before the entries of a walk.
    pub struct PageRecord [40] {
        /// No change that is still to become durable bears this number, or an earlier one.
        stable: U64,
        /// The last position that the walk has come to: a number,
        through_seq: U64,
        /// and an inode.
        through_ino: U64,
        /// 1: nothing is to be told behind this.
        end: U64,
        /// Entries that follow.
        entries: U64,
    }

    /// An entry of a walk.
    pub struct EntryRecord [16] {
        /// The transaction that changed the inode last.
        seq: U64,
        /// The inode.
        ino: U64,
    }

    /// Stands before a path.
    pub struct PathRecord [16] {
        /// The directory that its last entry is in.
        dir: U64,
        /// Where in it.
        pos: U64,
    }

    /// What more there is of an inode.
    pub struct StatRecord [40] {
        /// The transaction that last changed it.
        meta_seq: U64,
        /// The transaction that last changed its data.
        data_seq: U64,
        /// Counts the versions of its data.
        data_version: U64,
        /// Blocks that the device has.
        online_blocks: U64,
        /// Blocks that an archive has.
        offline_blocks: U64,
    }
}

/// Which changes are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feed {
    /// Those of anything: each inode stands where it was changed last.
    Meta,
    /// Those of data: each regular file stands where its data were changed last.
    Data,
}

/// A place in a feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The transaction.
    pub seq: Seq,
    /// The inode.
    pub ino: Ino,
}

impl Position {
    /// Before all others.
    pub const FIRST: Position = Position { seq: Seq(0), ino: Ino(0) };
    /// Behind all others.
    pub const LAST: Position = Position { seq: Seq(u64::MAX), ino: Ino(u64::MAX) };

    /// The next one, if there is one.
    #[must_use]
    pub fn next(self) -> Option<Position> {
        match (self.ino.0.checked_add(1), self.seq.0.checked_add(1)) {
            (Some(ino), _) => Some(Position { ino: Ino(ino), ..self }),
            (None, Some(seq)) => Some(Position { seq: Seq(seq), ino: Ino(0) }),
            (None, None) => None,
        }
    }
}

/// A link to an inode: where an entry is that names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    /// The directory.
    pub dir: Ino,
    /// The entry's place in it.
    pub pos: u64,
}

impl Link {
    /// Before all others.
    pub const FIRST: Link = Link { dir: Ino(0), pos: 0 };

    /// The next one, if there is one.
    #[must_use]
    pub fn next(self) -> Option<Link> {
        match (self.pos.checked_add(1), self.dir.0.checked_add(1)) {
            (Some(pos), _) => Some(Link { pos, ..self }),
            (None, Some(dir)) => Some(Link { dir: Ino(dir), pos: 0 }),
            (None, None) => None,
        }
    }
}

/// A question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Query {
    /// Which inodes changed, from one position to another: a [`Page`] of those that changed with a
    /// number that is stable. For user 0: it shows what directories hide.
    Walk {
        /// The feed.
        feed: Feed,
        /// Where it begins.
        first: Position,
        /// Where it ends.
        last: Position,
    },
    /// The path of the inode by its first link from `from` on: a [`Path`].
    /// [`NotFound`](super::OpError::NotFound) if there is none, as for the root;
    /// [`Again`](super::OpError::Again) if a directory went meanwhile. For user 0.
    Path {
        /// The inode.
        ino: Ino,
        /// Where to begin.
        from: Link,
    },
    /// A [`StatRecord`].
    Stat {
        /// The inode.
        ino: Ino,
    },
}

/// Part of a feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page<'a> {
    /// No change that is still to become durable bears this number, or an earlier one.
    pub stable: Seq,
    /// The walk has come this far: all there is before this position, and at it, was told.
    pub through: Position,
    /// There is nothing behind that is stable, and was asked for.
    pub end: bool,
    entries: &'a [EntryRecord],
}

impl<'a> Page<'a> {
    /// The page in the memory that was lent for it, if there is one.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Page<'a>> {
        let (record, rest) = PageRecord::ref_from_prefix(bytes).ok()?;
        let count = usize::try_from(record.entries.get()).ok()?;
        let (entries, _) = <[EntryRecord]>::ref_from_prefix_with_elems(rest, count).ok()?;
        let through =
            Position { seq: Seq(record.through_seq.get()), ino: Ino(record.through_ino.get()) };
        let (stable, end) = (Seq(record.stable.get()), record.end.get() != 0);
        Some(Page { stable, through, end, entries })
    }

    /// Where changed inodes stand, in order.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = Position> + use<'a> {
        let place =
            |entry: &EntryRecord| Position { seq: Seq(entry.seq.get()), ino: Ino(entry.ino.get()) };
        self.entries.iter().map(place)
    }
}

/// Writes a page into the memory that was lent for it.
pub struct PageWriter<'a> {
    head: &'a mut PageRecord,
    entries: &'a mut [EntryRecord],
    used: usize,
}

impl<'a> PageWriter<'a> {
    /// A page without entries. None: there is no room even for that, or for no entry.
    pub fn new(bytes: &'a mut [u8]) -> Option<PageWriter<'a>> {
        let (head, rest) = PageRecord::mut_from_prefix(bytes).ok()?;
        let count = rest.len() / size_of::<EntryRecord>();
        let (entries, _) = <[EntryRecord]>::mut_from_prefix_with_elems(rest, count).ok()?;
        (count > 0).then_some(PageWriter { head, entries, used: 0 })
    }

    /// Adds an entry. False: there is no room for it.
    pub fn push(&mut self, at: Position) -> bool {
        let Some(place) = self.entries.get_mut(self.used) else { return false };
        *place = EntryRecord { seq: at.seq.0.into(), ino: at.ino.0.into() };
        self.used += 1;
        true
    }

    /// Whether there is room for no more.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.used == self.entries.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Ends it; the bytes it takes.
    pub fn finish(self, stable: Seq, through: Position, end: bool) -> usize {
        *self.head = PageRecord {
            stable: stable.0.into(),
            through_seq: through.seq.0.into(),
            through_ino: through.ino.0.into(),
            end: u64::from(end).into(),
            entries: (self.used as u64).into(),
        };
        size_of::<PageRecord>() + self.used * size_of::<EntryRecord>()
    }
}

/// The path of an inode, from the root, without a slash before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path<'a> {
    /// The link that it ends with. Others come behind it.
    pub link: Link,
    /// Names with slashes between them.
    pub bytes: &'a [u8],
}

impl<'a> Path<'a> {
    /// The path in the memory that was lent for it, if there is one.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Path<'a>> {
        let (record, bytes) = PathRecord::ref_from_prefix(bytes).ok()?;
        let link = Link { dir: Ino(record.dir.get()), pos: record.pos.get() };
        Some(Path { link, bytes })
    }
}

/// Writes a path into the memory that was lent for it, from its end: names are found that way.
pub struct PathWriter<'a> {
    bytes: &'a mut [u8],
}

impl<'a> PathWriter<'a> {
    /// Goes on with a path.
    #[must_use]
    pub fn new(bytes: &'a mut [u8]) -> PathWriter<'a> {
        PathWriter { bytes }
    }

    /// Writes a name before the `used` bytes there are, and says how many there are then. None:
    /// there is no room for it.
    pub fn prepend(&mut self, used: usize, name: &[u8]) -> Option<usize> {
        let slash = usize::from(used > 0);
        let now = used + slash + name.len();
        let start = self.bytes.len().checked_sub(now)?;
        if start < size_of::<PathRecord>() {
            return None;
        }
        self.bytes[start..start + name.len()].copy_from_slice(name);
        self.bytes[start + name.len()..][..slash].fill(b'/');
        Some(now)
    }

    /// Notes the link that the path ends with. False: there is no room for it.
    pub fn link(&mut self, link: Link) -> bool {
        let record = PathRecord { dir: link.dir.0.into(), pos: link.pos.into() };
        record.write_to_prefix(self.bytes).is_ok()
    }

    /// Ends it; the bytes it takes.
    #[must_use]
    pub fn finish(self, used: usize) -> usize {
        let start = self.bytes.len() - used;
        self.bytes.copy_within(start.., size_of::<PathRecord>());
        size_of::<PathRecord>() + used
    }
}

#[cfg(test)]
mod tests;

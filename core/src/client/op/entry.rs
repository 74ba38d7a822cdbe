//! Directory entries, one behind the other, in memory that was lent for them.
//!
//! # Invariants
//!
//! * An entry takes exactly [`entry_bytes`], which is what the same entry takes in an answer to
//!   FUSE's READDIR or READDIRPLUS: what fits here fits there, so no entry has to be taken back.
//! * A reader of anything else than what a writer wrote stops early; it never panics.
//!
//! What this module deliberately doesn't know: how a kernel wants it.

use super::Attr;
use crate::format::item::{FileKind, Time};
use crate::format::{Ino, item::NAME_BYTES_MAX};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Entries without attributes: bytes before the name.
const PLAIN_BYTES: usize = 24;
/// Entries with attributes: bytes before the name.
const PLUS_BYTES: usize = PLAIN_BYTES + 128;
/// Entries start at multiples of this.
const ALIGN: usize = 8;

/// How much memory an entry takes.
#[must_use]
pub const fn entry_bytes(name_len: usize, plus: bool) -> usize {
    let head = if plus { PLUS_BYTES } else { PLAIN_BYTES };
    (head + name_len).next_multiple_of(ALIGN)
}

/// A directory entry in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListEntry<'a> {
    /// The inode that is named.
    pub ino: Ino,
    /// Its type.
    pub kind: FileKind,
    /// The position to resume at, behind this entry.
    pub next: u64,
    /// The name; "." and ".." are among them.
    pub name: &'a [u8],
    /// The inode's attributes; in a list all entries have them or none.
    pub attr: Option<Attr>,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Head {
    ino: [u8; 8],
    next: [u8; 8],
    name_len: u8,
    kind: u8,
    plus: u8,
    reserved: [u8; 5],
}

const _: () = assert!(size_of::<Head>() == PLAIN_BYTES);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Default)]
#[repr(C)]
struct Attributes {
    size: [u8; 8],
    sectors: [u8; 8],
    seconds: [[u8; 8]; 4],
    nanoseconds: [[u8; 4]; 4],
    nlink: [u8; 4],
    uid: [u8; 4],
    gid: [u8; 4],
    rdev: [u8; 4],
    permissions: [u8; 2],
    reserved: [[u8; 23]; 2],
}

const _: () = assert!(size_of::<Attributes>() == PLUS_BYTES - PLAIN_BYTES);

impl Attributes {
    fn emit(attr: &Attr) -> Attributes {
        let times = [attr.atime, attr.mtime, attr.ctime, attr.crtime];
        Attributes {
            size: attr.size.to_ne_bytes(),
            sectors: attr.sectors.to_ne_bytes(),
            seconds: times.map(|time| time.sec.to_ne_bytes()),
            nanoseconds: times.map(|time| time.nsec.to_ne_bytes()),
            nlink: attr.nlink.to_ne_bytes(),
            uid: attr.uid.to_ne_bytes(),
            gid: attr.gid.to_ne_bytes(),
            rdev: attr.rdev.to_ne_bytes(),
            permissions: attr.permissions.to_ne_bytes(),
            reserved: Default::default(),
        }
    }

    fn parse(&self, ino: Ino, kind: FileKind) -> Attr {
        let time = |index: usize| Time {
            sec: i64::from_ne_bytes(self.seconds[index]),
            nsec: u32::from_ne_bytes(self.nanoseconds[index]),
        };
        Attr {
            ino,
            kind,
            permissions: u16::from_ne_bytes(self.permissions),
            nlink: u32::from_ne_bytes(self.nlink),
            uid: u32::from_ne_bytes(self.uid),
            gid: u32::from_ne_bytes(self.gid),
            rdev: u32::from_ne_bytes(self.rdev),
            size: u64::from_ne_bytes(self.size),
            sectors: u64::from_ne_bytes(self.sectors),
            atime: time(0),
            mtime: time(1),
            ctime: time(2),
            crtime: time(3),
        }
    }
}

/// Appends entries to lent memory.
#[derive(Debug)]
pub struct EntryWriter<'b> {
    buf: &'b mut [u8],
    len: usize,
}

impl<'b> EntryWriter<'b> {
    /// An empty list in this memory.
    #[must_use]
    pub fn new(buf: &'b mut [u8]) -> EntryWriter<'b> {
        EntryWriter { buf, len: 0 }
    }

    /// Whether an entry with a name of this length still fits.
    #[must_use]
    pub fn fits(&self, name_len: usize, plus: bool) -> bool {
        name_len <= NAME_BYTES_MAX && self.buf.len() - self.len >= entry_bytes(name_len, plus)
    }

    /// Appends the entry; says whether it fitted. The list is as it was when it didn't.
    #[must_use]
    pub fn push(&mut self, entry: &ListEntry<'_>) -> bool {
        let plus = entry.attr.is_some();
        if !self.fits(entry.name.len(), plus) {
            return false;
        }
        let head = Head {
            ino: entry.ino.0.to_ne_bytes(),
            next: entry.next.to_ne_bytes(),
            name_len: entry.name.len() as u8,
            kind: entry.kind as u8,
            plus: plus.into(),
            reserved: [0; 5],
        };
        let attributes = entry.attr.as_ref().map(Attributes::emit);
        let attributes = attributes.as_ref().map_or(&[][..], IntoBytes::as_bytes);
        let mut at = self.len;
        for piece in [head.as_bytes(), attributes, entry.name] {
            self.buf[at..at + piece.len()].copy_from_slice(piece);
            at += piece.len();
        }
        self.len += entry_bytes(entry.name.len(), plus);
        self.buf[at..self.len].fill(0);
        true
    }

    /// How many bytes were written.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// The entries that an [`EntryWriter`] wrote.
#[derive(Debug, Clone)]
pub struct EntryReader<'b>(&'b [u8]);

impl<'b> EntryReader<'b> {
    /// The entries in these bytes.
    #[must_use]
    pub fn new(bytes: &'b [u8]) -> EntryReader<'b> {
        EntryReader(bytes)
    }
}

impl<'b> Iterator for EntryReader<'b> {
    type Item = ListEntry<'b>;

    fn next(&mut self) -> Option<ListEntry<'b>> {
        let (head, rest) = Head::ref_from_prefix(self.0).ok()?;
        let (ino, kind) = (Ino(u64::from_ne_bytes(head.ino)), FileKind::parse(head.kind)?);
        let (attr, rest) = match head.plus {
            0 => (None, rest),
            _ => {
                let (attributes, rest) = Attributes::ref_from_prefix(rest).ok()?;
                (Some(attributes.parse(ino, kind)), rest)
            }
        };
        let name = rest.get(..head.name_len.into())?;
        self.0 = self.0.get(entry_bytes(name.len(), attr.is_some())..)?;
        Some(ListEntry { ino, kind, next: u64::from_ne_bytes(head.next), name, attr })
    }
}

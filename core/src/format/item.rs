//! Values of items: what stands behind a key.
//!
//! | item | value |
//! |---|---|
//! | inode | [`InodeRecord`] |
//! | directory entry (by name, position, link back: the same) | [`DirentRecord`], then the name |
//! | xattr part 0 | [`XattrRecord`], then the name, then the start of the value |
//! | xattr part 1.. | the value goes on |
//! | symlink part | the target's bytes, without a terminating NUL |
//! | file extent | [`ExtentRecord`] |
//! | index entries, orphan | nothing |
//!
//! # Invariants
//!
//! * No value is longer than [`VALUE_BYTES_MAX`]. A value in parts has parts of exactly that size,
//!   but for the last, which is shorter or as long, and never empty.
//! * The types of this module that aren't records hold only what has been checked; what a `parse`
//!   accepts, its `emit` writes again byte for byte.
//!
//! What this module deliberately doesn't know: what several items must have in common (sums, twins,
//! counts), which is for whoever reads more than one.

use super::key::{FIRST_POS, FileBlock, ItemKey, LAST_POS, SYMLINK_PARTS_MAX};
use super::{BlockNo, Ino, Seq};
use crate::error::Corruption;
use crate::record;
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

/// Longest value of an item, in bytes.
pub const VALUE_BYTES_MAX: usize = 512;

/// Room for one value.
pub type ValueBuf = [u8; VALUE_BYTES_MAX];

/// Longest name of a directory entry or an extended attribute, in bytes.
pub const NAME_BYTES_MAX: usize = 255;

/// Longest target of a symlink, in bytes.
pub const SYMLINK_BYTES_MAX: u64 = 4095;

/// Longest value of an extended attribute, in bytes.
pub const XATTR_BYTES_MAX: usize = 65535;

/// Largest size of a file, in bytes.
pub const FILE_BYTES_MAX: u64 = i64::MAX as u64;

/// Most names one inode can have.
pub const LINKS_MAX: u32 = i32::MAX as u32;

/// [`InodeRecord::version`] that this program writes.
pub const INODE_VERSION: u16 = 1;

record! {
    /// A point in time.
    pub struct TimeRecord [12] {
        /// Seconds since 1970 began in UTC, without leap seconds. May be negative.
        sec: I64,
        /// Nanoseconds to add, below 10^9.
        nsec: U32,
    }

    /// An inode.
    pub struct InodeRecord [144] {
        /// 1: the fields below. A later version appends fields, and a feature bit of the volume
        /// keeps programs away that don't know it.
        version: U16,
        /// Zero.
        reserved: [u8; 2],
        /// Bit 0: a truncation to `size` is in progress, extents behind it are to be removed.
        flags: U32,
        /// Bytes of a file or of a symlink's target; of a directory, the sum of its names' lengths.
        size: U64,
        /// Transaction that last changed the inode. There is an index entry for it.
        meta_seq: U64,
        /// Transaction that last changed the file's data. Regular files have an index entry for it.
        data_seq: U64,
        /// Grows whenever the file's data changes, but not when they come back from an archive.
        data_version: U64,
        /// Blocks that hold data.
        online_blocks: U64,
        /// Blocks whose data only an archive holds.
        offline_blocks: U64,
        /// Position of the directory's next entry: from 2, never reused. 0 in all but directories.
        next_readdir_pos: U64,
        /// Number of the next extended attribute. Never reused.
        next_xattr_id: U64,
        /// How many names the inode has; of a directory, 2 and one for each directory in it.
        nlink: U32,
        /// Owner.
        uid: U32,
        /// Group.
        gid: U32,
        /// Type and permissions, as POSIX systems number them: `S_IFMT` and the low 12 bits.
        mode: U32,
        /// Of a device: bits 0-7 and 20-31 the minor number, bits 8-19 the major. Else 0.
        rdev: U32,
        /// Zero.
        reserved_2: [u8; 4],
        /// When it was last read.
        atime: TimeRecord,
        /// When the inode was last changed.
        ctime: TimeRecord,
        /// When the data were last changed.
        mtime: TimeRecord,
        /// When it was created.
        crtime: TimeRecord,
    }

    /// A directory entry. The name follows, up to the value's end.
    pub struct DirentRecord [25] {
        /// The inode that is named.
        ino: U64,
        /// Hash of the name, see [`name_hash`](super::key::name_hash).
        hash: U64,
        /// Position in the directory, from 2.
        pos: U64,
        /// Type of the inode: a [`FileKind`].
        kind: u8,
    }

    /// Start of an extended attribute. The name follows, then the value, through all the parts.
    pub struct XattrRecord [3] {
        /// Bytes of the name, at least 1.
        name_len: u8,
        /// Bytes of the value.
        value_len: U16,
    }

    /// A run of a file's blocks. Its last block stands in the key.
    pub struct ExtentRecord [17] {
        /// Block of the device that holds the first; 0 when none does.
        map: U64,
        /// Blocks of the run, at least 1.
        len: U64,
        /// Bit 0, OFFLINE: only an archive has the data. Bit 1, UNWRITTEN: the blocks of the device
        /// are reserved and read as zeros. A run has blocks of the device or is OFFLINE, or both,
        /// and then it is UNWRITTEN too: room for data that are to come back from the archive.
        flags: u8,
    }
}

/// Inodes don't need a generation: their numbers are never reused.
const INODE_TRUNCATING: u32 = 1;

const EXTENT_OFFLINE: u8 = 1;
const EXTENT_UNWRITTEN: u8 = 2;

/// Type of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FileKind {
    /// A named pipe.
    Fifo = 0,
    /// A character device.
    CharDevice = 1,
    /// A directory.
    Directory = 2,
    /// A block device.
    BlockDevice = 3,
    /// A regular file.
    Regular = 4,
    /// A symbolic link.
    Symlink = 5,
    /// A socket.
    Socket = 6,
}

impl FileKind {
    /// The mask of a mode's type bits.
    pub const MODE_MASK: u32 = 0o170_000;

    /// The type of this number in a directory entry.
    #[must_use]
    pub const fn parse(number: u8) -> Option<FileKind> {
        match number {
            0 => Some(FileKind::Fifo),
            1 => Some(FileKind::CharDevice),
            2 => Some(FileKind::Directory),
            3 => Some(FileKind::BlockDevice),
            4 => Some(FileKind::Regular),
            5 => Some(FileKind::Symlink),
            6 => Some(FileKind::Socket),
            _ => None,
        }
    }

    /// The type that the mode's type bits say.
    #[must_use]
    pub const fn of_mode(mode: u32) -> Option<FileKind> {
        match mode & FileKind::MODE_MASK {
            0o010_000 => Some(FileKind::Fifo),
            0o020_000 => Some(FileKind::CharDevice),
            0o040_000 => Some(FileKind::Directory),
            0o060_000 => Some(FileKind::BlockDevice),
            0o100_000 => Some(FileKind::Regular),
            0o120_000 => Some(FileKind::Symlink),
            0o140_000 => Some(FileKind::Socket),
            _ => None,
        }
    }

    /// The type bits of a mode.
    #[must_use]
    pub const fn mode(self) -> u32 {
        match self {
            FileKind::Fifo => 0o010_000,
            FileKind::CharDevice => 0o020_000,
            FileKind::Directory => 0o040_000,
            FileKind::BlockDevice => 0o060_000,
            FileKind::Regular => 0o100_000,
            FileKind::Symlink => 0o120_000,
            FileKind::Socket => 0o140_000,
        }
    }

    const fn is_device(self) -> bool {
        matches!(self, FileKind::CharDevice | FileKind::BlockDevice)
    }
}

/// A point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time {
    /// Seconds since 1970 began in UTC.
    pub sec: i64,
    /// Nanoseconds to add, below 10^9.
    pub nsec: u32,
}

impl Time {
    fn parse(record: &TimeRecord) -> Result<Time, Corruption> {
        let time = Time { sec: record.sec.get(), nsec: record.nsec.get() };
        if time.nsec < 1_000_000_000 { Ok(time) } else { Err(Corruption::Value) }
    }

    fn emit(self) -> TimeRecord {
        TimeRecord { sec: self.sec.into(), nsec: self.nsec.into() }
    }
}

/// An inode. The fields are those of [`InodeRecord`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inode {
    /// Type; the type bits of `mode` in the record.
    pub kind: FileKind,
    /// The low 12 bits of `mode`: permissions, setuid, setgid, sticky.
    pub permissions: u16,
    /// A truncation is in progress.
    pub truncating: bool,
    /// Bytes.
    pub size: u64,
    /// Transaction that last changed the inode.
    pub meta_seq: Seq,
    /// Transaction that last changed the data.
    pub data_seq: Seq,
    /// Version of the data.
    pub data_version: u64,
    /// Blocks that hold data.
    pub online_blocks: u64,
    /// Blocks whose data only an archive holds.
    pub offline_blocks: u64,
    /// Position of the next entry, in a directory.
    pub next_readdir_pos: u64,
    /// Number of the next extended attribute.
    pub next_xattr_id: u64,
    /// How many names it has.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of a device.
    pub rdev: u32,
    /// When it was last read.
    pub atime: Time,
    /// When the inode was last changed.
    pub ctime: Time,
    /// When the data were last changed.
    pub mtime: Time,
    /// When it was created.
    pub crtime: Time,
}

impl Inode {
    /// What the value of an inode's item says.
    pub fn parse(value: &[u8]) -> Result<Inode, Corruption> {
        let record = InodeRecord::ref_from_bytes(value).map_err(|_| Corruption::Bounds)?;
        if record.version.get() != INODE_VERSION || record.flags.get() & !INODE_TRUNCATING != 0 {
            return Err(Corruption::Value);
        }
        if record.reserved != [0; 2] || record.reserved_2 != [0; 4] {
            return Err(Corruption::Reserved);
        }
        let mode = record.mode.get();
        let kind = FileKind::of_mode(mode).ok_or(Corruption::Value)?;
        let inode = Inode {
            kind,
            permissions: u16::try_from(mode & !FileKind::MODE_MASK)
                .map_err(|_| Corruption::Value)?,
            truncating: record.flags.get() & INODE_TRUNCATING != 0,
            size: record.size.get(),
            meta_seq: record.meta_seq.into(),
            data_seq: record.data_seq.into(),
            data_version: record.data_version.get(),
            online_blocks: record.online_blocks.get(),
            offline_blocks: record.offline_blocks.get(),
            next_readdir_pos: record.next_readdir_pos.get(),
            next_xattr_id: record.next_xattr_id.get(),
            nlink: record.nlink.get(),
            uid: record.uid.get(),
            gid: record.gid.get(),
            rdev: record.rdev.get(),
            atime: Time::parse(&record.atime)?,
            ctime: Time::parse(&record.ctime)?,
            mtime: Time::parse(&record.mtime)?,
            crtime: Time::parse(&record.crtime)?,
        };
        if inode.is_sane() { Ok(inode) } else { Err(Corruption::Value) }
    }

    /// Whether the fields can be those of one inode.
    fn is_sane(&self) -> bool {
        let sizes = match self.kind {
            FileKind::Symlink => 1..=SYMLINK_BYTES_MAX,
            FileKind::Fifo
            | FileKind::CharDevice
            | FileKind::Directory
            | FileKind::BlockDevice
            | FileKind::Regular
            | FileKind::Socket => 0..=FILE_BYTES_MAX,
        };
        let positions = match self.kind {
            FileKind::Directory => FIRST_POS..=LAST_POS + 1,
            FileKind::Fifo
            | FileKind::CharDevice
            | FileKind::BlockDevice
            | FileKind::Regular
            | FileKind::Symlink
            | FileKind::Socket => 0..=0,
        };
        let blocks_max = match self.kind {
            FileKind::Regular => FileBlock::MAX.0 + 1,
            FileKind::Fifo
            | FileKind::CharDevice
            | FileKind::Directory
            | FileKind::BlockDevice
            | FileKind::Symlink
            | FileKind::Socket => 0,
        };
        sizes.contains(&self.size)
            && positions.contains(&self.next_readdir_pos)
            && self.online_blocks <= blocks_max
            && self.offline_blocks <= blocks_max
            && self.nlink <= LINKS_MAX
            && (self.rdev == 0 || self.kind.is_device())
    }

    /// The bytes of the item.
    #[must_use]
    pub fn emit(&self) -> InodeRecord {
        InodeRecord {
            version: INODE_VERSION.into(),
            reserved: [0; 2],
            flags: if self.truncating { INODE_TRUNCATING } else { 0 }.into(),
            size: self.size.into(),
            meta_seq: self.meta_seq.into(),
            data_seq: self.data_seq.into(),
            data_version: self.data_version.into(),
            online_blocks: self.online_blocks.into(),
            offline_blocks: self.offline_blocks.into(),
            next_readdir_pos: self.next_readdir_pos.into(),
            next_xattr_id: self.next_xattr_id.into(),
            nlink: self.nlink.into(),
            uid: self.uid.into(),
            gid: self.gid.into(),
            mode: self.mode().into(),
            rdev: self.rdev.into(),
            reserved_2: [0; 4],
            atime: self.atime.emit(),
            ctime: self.ctime.emit(),
            mtime: self.mtime.emit(),
            crtime: self.crtime.emit(),
        }
    }

    /// Type and permissions in one number, as POSIX systems have them.
    #[must_use]
    pub fn mode(&self) -> u32 {
        self.kind.mode() | u32::from(self.permissions)
    }
}

/// Name of a directory entry: 1 to 255 bytes, none of them NUL or `/`, and not `.` or `..`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Name<'a>(&'a [u8]);

/// Why bytes can't be a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameError {
    /// Empty.
    Empty,
    /// Longer than [`NAME_BYTES_MAX`].
    TooLong,
    /// A NUL or, in a directory entry, a `/`; or `.` or `..`, which every directory has anyway.
    Forbidden,
}

impl From<NameError> for Corruption {
    fn from(error: NameError) -> Corruption {
        match error {
            NameError::Empty | NameError::TooLong => Corruption::Bounds,
            NameError::Forbidden => Corruption::Value,
        }
    }
}

impl<'a> Name<'a> {
    /// The name that has these bytes.
    pub fn parse(bytes: &'a [u8]) -> Result<Name<'a>, NameError> {
        if bytes.contains(&b'/') || bytes == b"." || bytes == b".." {
            return Err(NameError::Forbidden);
        }
        Ok(Name(XattrName::parse(bytes)?.0))
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.0
    }
}

/// Name of an extended attribute, with its prefix: 1 to 255 bytes, none of them NUL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct XattrName<'a>(&'a [u8]);

impl<'a> XattrName<'a> {
    /// The name that has these bytes.
    pub fn parse(bytes: &'a [u8]) -> Result<XattrName<'a>, NameError> {
        if bytes.is_empty() {
            return Err(NameError::Empty);
        }
        if bytes.len() > NAME_BYTES_MAX {
            return Err(NameError::TooLong);
        }
        if bytes.contains(&0) {
            return Err(NameError::Forbidden);
        }
        Ok(XattrName(bytes))
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.0
    }
}

/// A directory entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dirent<'a> {
    /// The inode that is named.
    pub ino: Ino,
    /// Hash of the name.
    pub hash: u64,
    /// Position in the directory.
    pub pos: u64,
    /// Type of the inode.
    pub kind: FileKind,
    /// The name.
    pub name: Name<'a>,
}

impl<'a> Dirent<'a> {
    /// What the value of any of an entry's three items says.
    pub fn parse(value: &'a [u8]) -> Result<Dirent<'a>, Corruption> {
        let (record, name) =
            DirentRecord::ref_from_prefix(value).map_err(|_| Corruption::Bounds)?;
        let name = Name::parse(name)?;
        let kind = FileKind::parse(record.kind).ok_or(Corruption::Value)?;
        let (ino, pos) = (Ino::from(record.ino), record.pos.get());
        if ino == Ino(0) || !(FIRST_POS..=LAST_POS).contains(&pos) {
            return Err(Corruption::Value);
        }
        Ok(Dirent { ino, hash: record.hash.get(), pos, kind, name })
    }

    /// Writes the value; returns its bytes.
    pub fn emit<'b>(&self, buf: &'b mut ValueBuf) -> &'b [u8] {
        let record = DirentRecord {
            ino: self.ino.into(),
            hash: self.hash.into(),
            pos: self.pos.into(),
            kind: self.kind as u8,
        };
        let len = gather(buf, 0, &[record.as_bytes(), self.name.bytes()]);
        &buf[..len]
    }

    /// Whether this can be the value behind the key. The inode and the position stand in both; so
    /// does the hash in the key by name.
    #[must_use]
    pub fn agrees(&self, key: &ItemKey) -> bool {
        match *key {
            ItemKey::Dirent { dir: _, hash, pos } => (hash, pos) == (self.hash, self.pos),
            ItemKey::Readdir { dir: _, pos } => pos == self.pos,
            ItemKey::Backref { ino, dir: _, pos } => (ino, pos) == (self.ino, self.pos),
            ItemKey::MetaSeq { .. }
            | ItemKey::DataSeq { .. }
            | ItemKey::Orphan(_)
            | ItemKey::Inode(_)
            | ItemKey::Xattr { .. }
            | ItemKey::Symlink { .. }
            | ItemKey::Extent { .. } => false,
        }
    }
}

/// An extended attribute, to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Xattr<'a> {
    name: XattrName<'a>,
    value: &'a [u8],
}

impl<'a> Xattr<'a> {
    /// An attribute, unless its value is longer than [`XATTR_BYTES_MAX`].
    #[must_use]
    pub fn new(name: XattrName<'a>, value: &'a [u8]) -> Option<Xattr<'a>> {
        (value.len() <= XATTR_BYTES_MAX).then_some(Xattr { name, value })
    }

    /// How many items it takes.
    #[must_use]
    pub fn parts(&self) -> u8 {
        xattr_parts(self.name.0.len(), self.value.len())
    }

    /// Writes the value of a part; returns its bytes, none behind the last part.
    pub fn emit<'b>(&self, part: u8, buf: &'b mut ValueBuf) -> &'b [u8] {
        let record = XattrRecord {
            name_len: self.name.0.len() as u8,
            value_len: (self.value.len() as u16).into(),
        };
        let skip = usize::from(part) * VALUE_BYTES_MAX;
        let len = gather(buf, skip, &[record.as_bytes(), self.name.0, self.value]);
        &buf[..len]
    }
}

/// How many items an extended attribute takes.
fn xattr_parts(name_len: usize, value_len: usize) -> u8 {
    let bytes = size_of::<XattrRecord>() + name_len + value_len;
    u8::try_from(bytes.div_ceil(VALUE_BYTES_MAX)).expect("the lengths are bounded")
}

/// The first part of an extended attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XattrHead<'a> {
    /// The name.
    pub name: XattrName<'a>,
    /// Bytes of the whole value.
    pub value_len: usize,
    /// As many of them as are in the first part.
    pub start: &'a [u8],
}

impl<'a> XattrHead<'a> {
    /// What the value of part 0 says.
    pub fn parse(value: &'a [u8]) -> Result<XattrHead<'a>, Corruption> {
        let (record, rest) = XattrRecord::ref_from_prefix(value).map_err(|_| Corruption::Bounds)?;
        let (name, start) =
            rest.split_at_checked(record.name_len.into()).ok_or(Corruption::Bounds)?;
        let name = XattrName::parse(name)?;
        let head = XattrHead { name, value_len: record.value_len.get().into(), start };
        if value.len() == head.part_len(0) { Ok(head) } else { Err(Corruption::Bounds) }
    }

    /// How many items the attribute takes.
    #[must_use]
    pub fn parts(&self) -> u8 {
        xattr_parts(self.name.0.len(), self.value_len)
    }

    /// What the value of a later part says: more of the attribute's value.
    pub fn parse_part<'b>(&self, part: u8, value: &'b [u8]) -> Result<&'b [u8], Corruption> {
        if part > 0 && part < self.parts() && value.len() == self.part_len(part) {
            Ok(value)
        } else {
            Err(Corruption::Bounds)
        }
    }

    fn part_len(&self, part: u8) -> usize {
        let bytes = size_of::<XattrRecord>() + self.name.0.len() + self.value_len;
        bytes.saturating_sub(usize::from(part) * VALUE_BYTES_MAX).min(VALUE_BYTES_MAX)
    }
}

/// How many items a symlink's target takes.
#[must_use]
pub fn symlink_parts(target_len: u64) -> u8 {
    let parts = target_len.div_ceil(VALUE_BYTES_MAX as u64);
    parts.min(SYMLINK_PARTS_MAX.into()) as u8
}

/// The value of a part of a symlink's target; none behind the last part.
#[must_use]
pub fn symlink_part(target: &[u8], part: u8) -> &[u8] {
    target.chunks(VALUE_BYTES_MAX).nth(part.into()).unwrap_or(&[])
}

/// What the value of a symlink's part says: bytes of a target that has `target_len` of them.
pub fn parse_symlink_part(value: &[u8], part: u8, target_len: u64) -> Result<&[u8], Corruption> {
    let before = u64::from(part) * VALUE_BYTES_MAX as u64;
    let len = target_len.saturating_sub(before).min(VALUE_BYTES_MAX as u64);
    if target_len > SYMLINK_BYTES_MAX || len == 0 || value.len() as u64 != len {
        return Err(Corruption::Bounds);
    }
    if value.contains(&0) { Err(Corruption::Value) } else { Ok(value) }
}

/// Where a run of a file's blocks stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mapping {
    /// These and the following blocks of the device hold the data.
    Data(BlockNo),
    /// These and the following blocks of the device are reserved; the data are zeros.
    Reserved(BlockNo),
    /// Only an archive has the data.
    Offline,
    /// Only an archive has the data; these and the following blocks are reserved for them.
    OfflineReserved(BlockNo),
}

/// A run of a file's blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileExtent {
    /// Its last block.
    pub last: FileBlock,
    /// How many blocks it has, at least 1.
    pub len: u64,
    /// Where they stand.
    pub mapping: Mapping,
}

impl FileExtent {
    /// What the value says of the extent whose key has this last block.
    pub fn parse(last: FileBlock, value: &[u8]) -> Result<FileExtent, Corruption> {
        let record = ExtentRecord::ref_from_bytes(value).map_err(|_| Corruption::Bounds)?;
        let (map, len) = (record.map.get(), record.len.get());
        let in_file = len > 0 && last <= FileBlock::MAX && len - 1 <= last.0;
        if !in_file || map.checked_add(len).is_none() {
            return Err(Corruption::Bounds);
        }
        let at = BlockNo(map);
        let mapping = match (map != 0, record.flags) {
            (true, 0) => Mapping::Data(at),
            (true, EXTENT_UNWRITTEN) => Mapping::Reserved(at),
            (false, EXTENT_OFFLINE) => Mapping::Offline,
            (true, flags) if flags == EXTENT_OFFLINE | EXTENT_UNWRITTEN => {
                Mapping::OfflineReserved(at)
            }
            _ => return Err(Corruption::Value),
        };
        Ok(FileExtent { last, len, mapping })
    }

    /// The bytes of the item.
    #[must_use]
    pub fn emit(&self) -> ExtentRecord {
        let (map, flags) = match self.mapping {
            Mapping::Data(at) => (at, 0),
            Mapping::Reserved(at) => (at, EXTENT_UNWRITTEN),
            Mapping::Offline => (BlockNo(0), EXTENT_OFFLINE),
            Mapping::OfflineReserved(at) => (at, EXTENT_OFFLINE | EXTENT_UNWRITTEN),
        };
        ExtentRecord { map: map.0.into(), len: self.len.into(), flags }
    }

    /// Its first block.
    #[must_use]
    pub fn first(&self) -> FileBlock {
        FileBlock(self.last.0 - (self.len - 1))
    }
}

/// Checks the value of an item that has none: an index entry, or an orphan.
pub fn parse_empty(value: &[u8]) -> Result<(), Corruption> {
    if value.is_empty() { Ok(()) } else { Err(Corruption::Bounds) }
}

/// Fills the buffer from the concatenation of the pieces, without its first `skip` bytes; returns
/// how many bytes that are.
fn gather(buf: &mut ValueBuf, mut skip: usize, pieces: &[&[u8]]) -> usize {
    let mut len = 0;
    for piece in pieces {
        let skipped = skip.min(piece.len());
        skip -= skipped;
        let piece = &piece[skipped..];
        let copied = piece.len().min(buf.len() - len);
        buf[len..len + copied].copy_from_slice(&piece[..copied]);
        len += copied;
    }
    len
}

#[cfg(test)]
mod tests;

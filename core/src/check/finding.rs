//! What a check tells: findings, each with a stable name, and counts of what was looked at.
//!
//! # Invariants
//!
//! * A name, once released, means what it meant: a finding of another kind gets another name.
//!   `CHECK.md` lists them all, and a test compares the two.
//!
//! What this module deliberately doesn't know: how anything is found.

use crate::error::{Corruption, Error};
use crate::format::BlockNo;
use crate::format::key::Key;
use crate::format::root::Extent;
use outrider_hal::IoError;

/// Findings that wait to be taken.
pub(super) const FINDINGS: usize = 64;
/// Most findings of one step: an inode can be wrong in so many ways at once.
pub(super) const FINDINGS_PER_STEP: usize = 16;

macro_rules! ids {
    ($( $(#[doc = $doc:literal])* $variant:ident = $name:literal, )*) => {
        /// What a finding is about.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Id { $( $(#[doc = $doc])* $variant, )* }

        impl Id {
            /// All there are.
            pub const ALL: &[Id] = &[ $( Id::$variant, )* ];

            /// Its name in reports: stable.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $( Id::$variant => $name, )* }
            }
        }
    };
}

ids! {
    /// The super block.
    Super = "E-SUPER",
    /// The spare super block.
    Spare = "E-SPARE",
    /// A quorum block.
    Quorum = "E-QUORUM",
    /// A root of the ring.
    Ring = "E-RING",
    /// There is no valid root at all, or only one before a commit that was confirmed.
    Root = "E-ROOT",
    /// A node of a tree.
    Node = "E-NODE",
    /// A record in a leaf of a tree.
    Record = "E-RECORD",
    /// Blocks that are free in one of the free trees only.
    FreeTrees = "E-FREE-TREES",
    /// The number of free blocks in the root.
    FreeBlocks = "E-FREE-BLOCKS",
    /// The number of runs of a level in the root.
    Levels = "E-LEVEL-RUNS",
    /// Runs of which none is the newer overlap.
    LevelOrder = "E-LEVEL-ORDER",
    /// A number in use that the root says was never given out.
    Next = "E-NEXT",
    /// A number that is given twice: to two runs, in two loans, or lent though it is in use.
    Number = "E-NUMBER",
    /// Something that belongs to a client of which there is no record.
    Client = "E-CLIENT",
    /// A client's open transactions don't suit its state.
    OpenSeq = "E-OPEN-SEQ",
    /// The answers kept for a client are not those its record speaks of.
    Answer = "E-ANSWER",
    /// Lists of one client and pool, or of one owner, that don't go on one behind the other.
    Lists = "E-LISTS",
    /// An entry of the manifest that its run contradicts.
    Manifest = "E-MANIFEST",
    /// An item block of a run.
    RunItems = "E-RUN-ITEMS",
    /// A block of a run's index, or an item block that it contradicts.
    RunIndex = "E-RUN-INDEX",
    /// A block of a run's filter, or an item block with an item that it denies.
    RunFilter = "E-RUN-FILTER",
    /// An item in an item block.
    Item = "E-ITEM",
    /// Blocks that are in two places.
    Double = "E-DOUBLE",
    /// Blocks that are in no place.
    Leak = "E-LEAK",
    /// The root directory isn't there, or isn't one.
    RootDirectory = "E-ROOT-DIR",
    /// Items of an inode that isn't there.
    InodeNone = "E-INODE-NONE",
    /// An item that an inode of this type doesn't have.
    InodeKind = "E-INODE-KIND",
    /// What has neither data nor a target nor entries has a size.
    InodeSize = "E-INODE-SIZE",
    /// The index by metadata change and the inodes disagree.
    MetaIndex = "E-META-INDEX",
    /// The index by data change and the files disagree.
    DataIndex = "E-DATA-INDEX",
    /// The index of orphans and the inodes without names disagree.
    Orphan = "E-ORPHAN",
    /// The link count is not the number of names, or of subdirectories and 2.
    LinkCount = "E-NLINK",
    /// A directory with another number of names than one.
    Parent = "E-PARENT",
    /// Directories that no way leads to from the root directory.
    DirLoop = "E-DIR-LOOP",
    /// A removed directory has entries.
    DirRemoved = "E-DIR-REMOVED",
    /// A directory's size is not the sum of its names' lengths.
    DirSize = "E-DIR-SIZE",
    /// An entry's position is not below the directory's next one.
    DirPos = "E-DIR-POS",
    /// An entry by name and the one by position disagree, or one is missing.
    DirentTwin = "E-DIRENT-TWIN",
    /// An entry and the link back to it disagree, or one is missing.
    Backref = "E-BACKREF",
    /// The hash of an entry isn't that of its name.
    DirentHash = "E-DIRENT-HASH",
    /// A directory has two entries of one name.
    DirentName = "E-DIRENT-NAME",
    /// An entry says another type than the inode it names.
    DirentKind = "E-DIRENT-KIND",
    /// The parts of an extended attribute don't make up one.
    XattrParts = "E-XATTR-PARTS",
    /// The hash of an extended attribute isn't that of its name.
    XattrHash = "E-XATTR-HASH",
    /// An inode has two extended attributes of one name.
    XattrName = "E-XATTR-NAME",
    /// An extended attribute's number is not below the inode's next one.
    XattrNumber = "E-XATTR-NUMBER",
    /// The parts of a symlink's target don't make up one of its size.
    Symlink = "E-SYMLINK",
    /// Extents of a file overlap.
    ExtentOrder = "E-EXTENT-ORDER",
    /// Data behind the end of a file that is not being truncated.
    ExtentEnd = "E-EXTENT-END",
    /// A file's counts of blocks are not those of its extents.
    FileBlocks = "E-FILE-BLOCKS",
    /// Entries or indices disagree in more places than could be found out one by one.
    Unnamed = "E-UNNAMED",
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// This check failed.
    Corrupt(Corruption),
    /// The device failed.
    Io(IoError),
    /// A number is not what it must be.
    Count {
        /// What is written.
        says: u64,
        /// What it must be, or must be below.
        is: u64,
    },
}

impl Wrong {
    /// Two structures that must agree don't.
    pub(super) const MISMATCH: Wrong = Wrong::Corrupt(Corruption::Mismatch);

    /// Whether it may come from a root that is out of date: something else stands where the root
    /// says that a block is.
    pub(super) fn is_stale(&self) -> bool {
        match self {
            Wrong::Corrupt(what) => what.is_stale(),
            Wrong::Io(_) | Wrong::Count { .. } => false,
        }
    }
}

impl From<Corruption> for Wrong {
    fn from(what: Corruption) -> Wrong {
        Wrong::Corrupt(what)
    }
}

impl From<Error> for Wrong {
    fn from(error: Error) -> Wrong {
        match error {
            Error::Corrupt { what, .. } => Wrong::Corrupt(what),
            Error::Io { error, .. } => Wrong::Io(error),
            Error::NoSpace | Error::Exists | Error::NotFound => Wrong::Corrupt(Corruption::Value),
        }
    }
}

/// Something that is wrong with the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finding {
    /// What it is about.
    pub id: Id,
    /// The first block concerned; for an item, the block it stands in.
    pub blkno: BlockNo,
    /// How many blocks are concerned.
    pub blocks: u64,
    /// The item concerned, if it is one.
    pub key: Option<Key>,
    /// What is wrong.
    pub wrong: Wrong,
}

/// Who has blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Holder {
    /// The free trees.
    Free,
    /// The list of what was freed and is not yet in the free trees.
    Freed,
    /// Clients, to whom they are lent.
    Lent,
    /// Nobody, until somebody is proven gone.
    Quarantine,
    /// The root, for commits and takeovers.
    Reserve,
    /// Nodes of trees.
    Nodes,
    /// Runs.
    Runs,
    /// Files.
    Files,
}

impl Holder {
    /// All there are.
    pub const ALL: [Holder; 8] = [
        Holder::Free,
        Holder::Freed,
        Holder::Lent,
        Holder::Quarantine,
        Holder::Reserve,
        Holder::Nodes,
        Holder::Runs,
        Holder::Files,
    ];

    /// Its name in reports: stable.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Holder::Free => "free",
            Holder::Freed => "freed",
            Holder::Lent => "lent",
            Holder::Quarantine => "quarantine",
            Holder::Reserve => "reserve",
            Holder::Nodes => "nodes",
            Holder::Runs => "runs",
            Holder::Files => "files",
        }
    }
}

/// What was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Valid roots.
    pub roots: u64,
    /// Nodes of trees.
    pub nodes: u64,
    /// Records in their leaves.
    pub records: u64,
    /// Runs.
    pub runs: u64,
    /// Items in them, all versions.
    pub items: u64,
    /// Items that count: the newest of each key, unless it is deleted.
    pub items_newest: u64,
    /// Inodes.
    pub inodes: u64,
    /// Directories among them.
    pub directories: u64,
    /// Blocks by who has them, in the order of [`Holder::ALL`].
    pub blocks: [u64; Holder::ALL.len()],
    /// Findings.
    pub findings: u64,
}

/// Of what there is more than memory was carved for: it was not checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Runs.
    Runs,
    /// Clients.
    Clients,
    /// Extents of numbers that are lent.
    Numbers,
    /// Directories.
    Directories,
}

/// Findings that wait to be taken.
pub(super) struct Log {
    pub(super) findings: heapless::Deque<Finding, FINDINGS>,
    pub(super) count: u64,
    /// A finding may come from a root that is out of date.
    pub(super) is_stale: bool,
    pub(super) limit: Option<Limit>,
}

impl Log {
    pub(super) const fn new() -> Log {
        Log { findings: heapless::Deque::new(), count: 0, is_stale: false, limit: None }
    }

    /// Whether what one step can find will fit.
    pub(super) fn has_room(&self) -> bool {
        self.findings.len() + FINDINGS_PER_STEP <= FINDINGS
    }

    /// Something about blocks.
    pub(super) fn put(&mut self, id: Id, extent: Extent, wrong: impl Into<Wrong>) {
        let (blkno, blocks) = (extent.start(), extent.len());
        self.add(Finding { id, blkno, blocks, key: None, wrong: wrong.into() });
    }

    /// Something about blocks that an item may name.
    pub(super) fn put_blocks(&mut self, id: Id, extent: Extent, key: Option<Key>) {
        let (blkno, blocks) = (extent.start(), extent.len());
        self.add(Finding { id, blkno, blocks, key, wrong: Wrong::MISMATCH });
    }

    /// Something about an item.
    pub(super) fn put_item(&mut self, id: Id, at: (BlockNo, Key), wrong: impl Into<Wrong>) {
        let (blkno, key) = at;
        self.add(Finding { id, blkno, blocks: 1, key: Some(key), wrong: wrong.into() });
    }

    fn add(&mut self, finding: Finding) {
        self.findings.push_back(finding).expect("a step begins with room for all it can find");
        self.count += 1;
        let fixed = matches!(finding.id, Id::Super | Id::Spare | Id::Quorum | Id::Ring);
        self.is_stale |= !fixed && finding.wrong.is_stale();
    }
}

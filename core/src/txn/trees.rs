//! Everything that a root leads to, as the open commit has it.
//!
//! # Invariants
//!
//! * What stands here is either as the durable root says or as the open commit has changed it;
//!   entering it into a root and opening that root gives the same again.
//!
//! What this module deliberately doesn't know: when a root is written.

use crate::alloc::FreeSpace;
use crate::btree::{Tree, TreeKind};
use crate::error::Corruption;
use crate::format::root::{LEVELS, RootBlock};
use crate::format::{BlockNo, ClientId, Ino, RunId, Seq};

/// Kind of the nodes of the manifest.
pub const MANIFEST: TreeKind = TreeKind(3);
/// Kind of the nodes of the tree of clients.
pub const CLIENTS: TreeKind = TreeKind(4);
/// Kind of the nodes of the tree of loans.
pub const LOANS: TreeKind = TreeKind(5);
/// Kind of the nodes of the tree of open transactions.
pub const OPEN_SEQS: TreeKind = TreeKind(6);
/// Kind of the nodes of the tree of freed extents.
pub const FREED: TreeKind = TreeKind(7);
/// Kind of the nodes of the tree of quarantined extents.
pub const QUARANTINE: TreeKind = TreeKind(8);

/// The trees, and the numbers that count up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trees {
    /// Free space.
    pub free: FreeSpace,
    /// Which runs there are.
    pub manifest: Tree,
    /// Mounted clients.
    pub clients: Tree,
    /// What is lent to them.
    pub loans: Tree,
    /// Their open transactions.
    pub open_seqs: Tree,
    /// Extents that were freed.
    pub freed: Tree,
    /// Extents that somebody may still write.
    pub quarantine: Tree,
    /// The next new client's number.
    pub next_client: ClientId,
    /// The lowest inode number that was never lent.
    pub next_ino: Ino,
    /// The next transaction's number.
    pub next_seq: Seq,
    /// The lowest run number that was never lent.
    pub next_run: RunId,
    /// The next compaction's number.
    pub next_job: u64,
    /// Where the next search for a segment's space begins.
    pub cursor: BlockNo,
    /// Runs in each level.
    pub level_runs: [u64; LEVELS],
}

impl Trees {
    /// Those of a volume in which nothing is, of this many blocks.
    #[must_use]
    pub fn empty(volume_blocks: u64) -> Trees {
        Trees {
            free: FreeSpace::empty(volume_blocks),
            manifest: Tree::empty(MANIFEST),
            clients: Tree::empty(CLIENTS),
            loans: Tree::empty(LOANS),
            open_seqs: Tree::empty(OPEN_SEQS),
            freed: Tree::empty(FREED),
            quarantine: Tree::empty(QUARANTINE),
            next_client: ClientId(1),
            next_ino: Ino(2),
            next_seq: Seq(1),
            next_run: RunId(1),
            next_job: 1,
            cursor: BlockNo(0),
            level_runs: [0; LEVELS],
        }
    }

    /// Those that a verified root leads to.
    pub fn open(root: &RootBlock, volume_blocks: u64) -> Result<Trees, Corruption> {
        Ok(Trees {
            free: FreeSpace::open(root, volume_blocks)?,
            manifest: Tree::open(MANIFEST, &root.manifest)?,
            clients: Tree::open(CLIENTS, &root.clients)?,
            loans: Tree::open(LOANS, &root.loans)?,
            open_seqs: Tree::open(OPEN_SEQS, &root.open_seqs)?,
            freed: Tree::open(FREED, &root.freed)?,
            quarantine: Tree::open(QUARANTINE, &root.quarantine)?,
            next_client: root.next_client.into(),
            next_ino: root.next_ino.into(),
            next_seq: root.next_seq.into(),
            next_run: root.next_run.into(),
            next_job: root.next_job.get(),
            cursor: BlockNo(root.cursor.get()),
            level_runs: root.level_runs.map(|runs| runs.get()),
        })
    }

    /// Enters them into a root.
    pub fn store(&self, root: &mut RootBlock) {
        self.free.store(root);
        root.manifest = self.manifest.root();
        root.clients = self.clients.root();
        root.loans = self.loans.root();
        root.open_seqs = self.open_seqs.root();
        root.freed = self.freed.root();
        root.quarantine = self.quarantine.root();
        root.next_client = self.next_client.into();
        root.next_ino = self.next_ino.into();
        root.next_seq = self.next_seq.into();
        root.next_run = self.next_run.into();
        root.next_job = self.next_job.into();
        root.cursor = self.cursor.0.into();
        root.level_runs = self.level_runs.map(Into::into);
    }
}

//! The root: one block from which everything that changes is reached, written last by each commit.
//!
//! # Invariants
//!
//! * Round r of the election writes only pair `r mod 32` of the ring, the two blocks in turn by
//!   commit number. Readers take the valid root with the highest (term, commit) of all 64, so a
//!   late write of a deposed leader can neither win against a newer root nor destroy it.
//! * A root names *before use* every block that may be written before the next root: the commit
//!   reserve, for its own leader's next commit, and a takeover reserve for the first commit of each
//!   of the next 31 rounds.
//! * `free_blocks` is the sum of the extents in the free tree, and is changed nowhere but where
//!   that tree is.

use super::block::{self, BlockHeader, Magic, Promise, Volume};
use super::btree::{HEIGHT_MAX, TreeRoot};
use super::layout::{FIRST_BLKNO, root_blkno, spare_blkno};
use super::{Block, BlockNo, ClientId, CommitNo, Term};
use crate::error::Corruption;
use crate::record;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// Rounds for which a root names a takeover reserve: all that fit the ring besides its own.
pub const TAKEOVER_ROUNDS: usize = 31;
/// Blocks of a takeover reserve. DESIGN.md adds up what a first commit writes.
pub const TAKEOVER_BLOCKS: u64 = 48;
/// Extents in which the commit reserve can be.
pub const RESERVE_EXTENTS: usize = 64;
/// Levels of the log-structured tree: with a fanout of 8 the last is due 8^9 segments, 128 TiB.
pub const LEVELS: usize = 10;

record! {
    /// Blocks that follow each other; in loans also numbers.
    pub struct Extent [16] {
        /// The first.
        blkno: U64,
        /// How many.
        blocks: U64,
    }

    /// A root.
    pub struct RootBlock [4096] {
        /// `magic` is `ORrt`, `seq` the number of the commit.
        header: BlockHeader,
        /// The term of the leader that wrote it.
        term: U64,
        /// Number the next new client gets.
        next_client: U64,
        /// Lowest inode number that was never lent.
        next_ino: U64,
        /// Lowest transaction sequence number that was never given out.
        next_seq: U64,
        /// Lowest run number that was never given out.
        next_run: U64,
        /// Number the next compaction gets.
        next_job: U64,
        /// Blocks in the free tree.
        free_blocks: U64,
        /// Where the next search for a segment's space begins.
        cursor: U64,
        /// Free extents by address, see [`records`](super::records).
        free_by_block: TreeRoot,
        /// The same by length.
        free_by_length: TreeRoot,
        /// Which runs the log-structured tree is made of.
        manifest: TreeRoot,
        /// Mounted clients.
        clients: TreeRoot,
        /// What is lent to them.
        loans: TreeRoot,
        /// Their open transactions.
        open_seqs: TreeRoot,
        /// Extents that were freed, and wait to be entered into the free tree.
        freed: TreeRoot,
        /// Space that may still be written by somebody who is not proven gone.
        quarantine: TreeRoot,
        /// Runs in each level.
        level_runs: [U64; LEVELS],
        /// Start of the takeover reserve of round `term.round + 1 + index`; 0: none.
        takeover: [U64; TAKEOVER_ROUNDS],
        /// The commit reserve: ascending extents, then zeroes.
        reserve: [Extent; RESERVE_EXTENTS],
        /// Zero.
        reserved_end: [u8; 2456],
    }
}

impl Extent {
    /// No blocks.
    pub const NONE: Extent = Extent { blkno: U64::new(0), blocks: U64::new(0) };

    /// The extent of `blocks` blocks from `blkno`.
    #[must_use]
    pub fn new(blkno: BlockNo, blocks: u64) -> Extent {
        Extent { blkno: blkno.0.into(), blocks: blocks.into() }
    }

    /// First block.
    #[must_use]
    pub fn start(&self) -> BlockNo {
        BlockNo(self.blkno.get())
    }

    /// How many blocks.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.blocks.get()
    }

    /// Whether it has no blocks.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The block after the last.
    #[must_use]
    pub fn end(&self) -> BlockNo {
        self.start().plus(self.len())
    }

    /// The block after the last, if there can be one: not so in bytes that were never checked.
    #[must_use]
    pub fn checked_end(&self) -> Option<BlockNo> {
        self.blkno.get().checked_add(self.len()).map(BlockNo)
    }

    /// Last block of an extent that isn't empty.
    #[must_use]
    pub fn last(&self) -> BlockNo {
        BlockNo(self.end().0 - 1)
    }

    /// Whether it lies wholly in the part of a volume of `blocks` blocks that is allocated from.
    #[must_use]
    pub fn is_inside(&self, blocks: u64) -> bool {
        !self.is_empty()
            && self.start() >= FIRST_BLKNO
            && self.len() <= blocks
            && self.end() <= spare_blkno(blocks)
    }
}

/// A verified root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Root(RootBlock);

impl Root {
    /// Checks a block that was read from `blkno` of a volume of `blocks` blocks.
    pub fn open(
        block: &Block,
        volume: &Volume,
        blkno: BlockNo,
        blocks: u64,
    ) -> Result<Root, Corruption> {
        block::open(block, volume, &Promise { magic: Magic::Root, blkno, seq: None })?;
        let fields = RootBlock::ref_from_bytes(&block.0).expect("a root has the size of a block");
        fields.check(blocks)?;
        let root = Root(*fields);
        if root_blkno(root.term(), root.commit()) != blkno {
            return Err(Corruption::Misdirected);
        }
        Ok(root)
    }

    /// Fills a block with the root of this commit, and says where it goes.
    pub fn seal(
        fields: &RootBlock,
        volume: &Volume,
        commit: CommitNo,
        block: &mut Block,
    ) -> BlockNo {
        let blkno = root_blkno(fields.term.into(), commit);
        block.0.copy_from_slice(fields.as_bytes());
        block::seal(block, volume, Magic::Root, blkno, commit.0);
        blkno
    }

    /// The fields as they stand on the disk.
    #[must_use]
    pub fn fields(&self) -> &RootBlock {
        &self.0
    }

    /// The term of the leader that wrote it.
    #[must_use]
    pub fn term(&self) -> Term {
        self.0.term.into()
    }

    /// The commit it completes.
    #[must_use]
    pub fn commit(&self) -> CommitNo {
        CommitNo(self.0.header.seq.get())
    }

    /// What decides between two roots.
    #[must_use]
    pub fn rank(&self) -> (Term, CommitNo) {
        (self.term(), self.commit())
    }

    /// The number the next client gets.
    #[must_use]
    pub fn next_client(&self) -> ClientId {
        self.0.next_client.into()
    }

    /// The takeover reserve for this round, if the root names one.
    #[must_use]
    pub fn takeover(&self, round: u64) -> Option<Extent> {
        let index = round.checked_sub(self.term().round() + 1)?;
        let start = self.0.takeover.get(usize::try_from(index).ok()?)?.get();
        (start != 0).then(|| Extent::new(BlockNo(start), TAKEOVER_BLOCKS))
    }

    /// The extents of the commit reserve.
    #[must_use]
    pub fn reserve(&self) -> &[Extent] {
        let used = self.0.reserve.iter().take_while(|extent| !extent.is_empty()).count();
        &self.0.reserve[..used]
    }
}

impl RootBlock {
    /// The root of a volume in which nothing is: what mkfs starts from.
    #[must_use]
    pub fn empty() -> RootBlock {
        RootBlock::new_zeroed()
    }

    fn check(&self, blocks: u64) -> Result<(), Corruption> {
        if self.reserved_end.iter().any(|byte| *byte != 0) {
            return Err(Corruption::Reserved);
        }
        let bounded = [self.free_blocks, self.cursor];
        if bounded.iter().any(|value| value.get() > blocks) {
            return Err(Corruption::Value);
        }
        let trees = [
            &self.free_by_block,
            &self.free_by_length,
            &self.manifest,
            &self.clients,
            &self.loans,
            &self.open_seqs,
            &self.freed,
            &self.quarantine,
        ];
        trees.iter().try_for_each(|tree| check_tree(tree, blocks))?;
        let used = self.reserve.iter().take_while(|extent| !extent.is_empty()).count();
        let (used, unused) = self.reserve.split_at(used);
        if unused.iter().any(|extent| *extent != Extent::NONE) {
            return Err(Corruption::Value);
        }
        let starts = self.takeover.iter().filter(|start| start.get() != 0);
        let mut takeover = starts.map(|start| Extent::new(BlockNo(start.get()), TAKEOVER_BLOCKS));
        if !used.iter().copied().chain(&mut takeover).all(|extent| extent.is_inside(blocks)) {
            return Err(Corruption::Bounds);
        }
        if !used.is_sorted_by(|a, b| a.end() <= b.start()) {
            return Err(Corruption::Order);
        }
        Ok(())
    }
}

fn check_tree(tree: &TreeRoot, blocks: u64) -> Result<(), Corruption> {
    if tree.reserved != [0; 7] {
        return Err(Corruption::Reserved);
    }
    let node = Extent::new(tree.node.blkno(), 1);
    match usize::from(tree.height) {
        0 if *tree == TreeRoot::EMPTY => Ok(()),
        0 => Err(Corruption::Value),
        1..=HEIGHT_MAX if node.is_inside(blocks) => Ok(()),
        1..=HEIGHT_MAX => Err(Corruption::Bounds),
        _ => Err(Corruption::Level),
    }
}

#[cfg(test)]
mod tests {
    use super::{Extent, Root, RootBlock};
    use crate::crc32c::crc32c_seeded;
    use crate::error::Corruption;
    use crate::format::block::Volume;
    use crate::format::layout::{FIRST_BLKNO, ROOT_BLKNO, root_blkno};
    use crate::format::{Block, BlockNo, CommitNo, Term};
    use zerocopy::FromBytes;

    const VOLUME: Volume = Volume { fsid: 3, crc_seed: 4 };
    const BLOCKS: u64 = 1 << 16;
    const TERM: Term = Term::new(70, 2);

    fn sealed() -> (Block, BlockNo) {
        let mut fields = RootBlock::empty();
        fields.term = TERM.into();
        fields.takeover[0] = 1000.into();
        fields.reserve[0] = Extent::new(FIRST_BLKNO, 64);
        fields.reserve[1] = Extent::new(BlockNo(500), 1);
        let mut block = Block::ZERO;
        let blkno = Root::seal(&fields, &VOLUME, CommitNo(9), &mut block);
        (block, blkno)
    }

    fn altered(change: impl FnOnce(&mut RootBlock)) -> Result<Root, Corruption> {
        let (mut block, blkno) = sealed();
        change(RootBlock::mut_from_bytes(&mut block.0).unwrap());
        let crc = crc32c_seeded(VOLUME.crc_seed, &block.0[4..]);
        block.0[..4].copy_from_slice(&crc.to_le_bytes());
        Root::open(&block, &VOLUME, blkno, BLOCKS)
    }

    #[test]
    fn a_root_stands_in_its_rounds_pair() {
        let (block, blkno) = sealed();
        assert_eq!(blkno, ROOT_BLKNO.plus(2 * (70 % 32) + 1));
        let root = Root::open(&block, &VOLUME, blkno, BLOCKS).unwrap();
        assert_eq!(root.rank(), (TERM, CommitNo(9)));
        assert_eq!(root.reserve().len(), 2);
        assert_eq!(root.takeover(70), None);
        assert_eq!(root.takeover(71).unwrap().start(), BlockNo(1000));
        assert_eq!(root.takeover(72), None);
        assert_eq!(root.takeover(71 + 31), None);
        let other = root_blkno(TERM, CommitNo(10));
        assert_eq!(Root::open(&block, &VOLUME, other, BLOCKS), Err(Corruption::Misdirected));
    }

    #[test]
    fn terms_rank_before_commits() {
        assert!((Term::new(2, 0), CommitNo(1)) > (Term::new(1, 6), CommitNo(99)));
        assert!((Term::new(2, 1), CommitNo(1)) > (Term::new(2, 0), CommitNo(2)));
    }

    #[test]
    fn every_meaningless_field_is_refused() {
        assert!(altered(|_| ()).is_ok());
        let far = Extent::new(BlockNo(BLOCKS - 2), 2);
        let overlapping = Extent::new(BlockNo(499), 2);
        assert_eq!(altered(|r| r.reserved_end[0] = 1), Err(Corruption::Reserved));
        assert_eq!(altered(|r| r.free_blocks = (BLOCKS + 1).into()), Err(Corruption::Value));
        assert_eq!(altered(|r| r.reserve[2] = far), Err(Corruption::Bounds));
        assert_eq!(altered(|r| r.reserve[2] = overlapping), Err(Corruption::Order));
        assert_eq!(altered(|r| r.reserve[3] = far), Err(Corruption::Value));
        assert_eq!(altered(|r| r.takeover[30] = 7.into()), Err(Corruption::Bounds));
        assert_eq!(altered(|r| r.term = Term::new(71, 2).into()), Err(Corruption::Misdirected));
    }
}

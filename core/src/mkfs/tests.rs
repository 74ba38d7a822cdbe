//! Making volumes on a device in memory.

extern crate std;

use super::{Mkfs, Recipe};
use crate::arena::Arena;
use crate::arena::tests::region;
use crate::error::{Corruption, Error};
use crate::format::item::Time;
use crate::format::layout::{SUPER_BLKNO, spare_blkno};
use crate::format::super_block::tests::identity;
use crate::format::super_block::{Identity, Super, Unverified};
use crate::format::{Block, BlockNo};
use crate::node::{Action, Event, More, Node};
use outrider_hal::{BlockOp, BlockRequest, Completion, Instant, IoError};
use std::boxed::Box;
use std::collections::BTreeMap;
use std::vec::Vec;

pub(crate) const BLOCKS: u64 = 1 << 14;

/// A device in memory: a block that was never written reads as zeroes.
#[derive(Clone, Default)]
pub(crate) struct Disk {
    pub(crate) blocks: BTreeMap<u64, Block>,
    /// Writes and flushes, in the order in which they were carried out.
    pub(crate) steps: Vec<Step>,
    /// The write of this number fails.
    pub(crate) fails_at: Option<usize>,
}

#[derive(Clone)]
pub(crate) enum Step {
    Write(u64, Box<Block>),
    Flush,
}

impl Disk {
    pub(crate) fn block(&self, blkno: BlockNo) -> Block {
        self.blocks.get(&blkno.0).cloned().unwrap_or(Block::ZERO)
    }

    fn transfer(&mut self, op: &mut BlockOp<'static>) -> Result<(), IoError> {
        let fails = self.fails_at == Some(self.steps.len());
        match op {
            BlockOp::Read(blkno, block) => block.0 = self.block(*blkno).0,
            BlockOp::Write(..) | BlockOp::Flush if fails => return Err(IoError::Device),
            BlockOp::Write(blkno, block) => {
                assert!(blkno.0 < BLOCKS);
                self.blocks.insert(blkno.0, block.clone());
                self.steps.push(Step::Write(blkno.0, Box::new(block.clone())));
            }
            BlockOp::Flush => self.steps.push(Step::Flush),
        }
        Ok(())
    }

    /// Lets a node work until it has nothing more to do; requests in flight complete in any order.
    pub(crate) fn drive(&mut self, node: &mut impl Node<'static>, seed: &mut u64) {
        let mut queue: Vec<BlockRequest<'static>> = Vec::new();
        loop {
            while node.step(Instant(0)) == More::Yes {}
            while let Some(action) = node.poll_action() {
                let Action::Block(request) = action else { panic!("not for a device") };
                queue.push(request);
            }
            if queue.is_empty() {
                return;
            }
            *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let mut request = queue.swap_remove((*seed >> 33) as usize % queue.len());
            let result = self.transfer(&mut request.op);
            let BlockRequest { tag, op } = request;
            node.handle(Instant(0), Event::Completed(Completion { tag, op, result }));
        }
    }
}

pub(crate) fn recipe() -> Recipe {
    let identity = Identity { blocks: BLOCKS, ..identity() };
    Recipe { identity, now: Time { sec: 1_700_000_000, nsec: 5 } }
}

fn carve(recipe: &Recipe) -> Result<Mkfs<'static>, Corruption> {
    let mut measure = Arena::measuring();
    Mkfs::carve(&mut measure, recipe).unwrap()?;
    let mut arena = Arena::new(region(measure.bytes_used())).unwrap();
    let made = Mkfs::carve(&mut arena, recipe).unwrap();
    assert_eq!(arena.bytes_used(), measure.bytes_used());
    made
}

/// Makes a volume on this disk.
pub(crate) fn make(disk: &mut Disk, recipe: &Recipe, seed: u64) -> Result<(), Error> {
    let mut mkfs = carve(recipe).unwrap();
    disk.drive(&mut mkfs, &mut seed.clone());
    mkfs.poll_outcome().expect("it ended")
}

/// The disk of a new volume.
pub(crate) fn made() -> Disk {
    let mut disk = Disk::default();
    make(&mut disk, &recipe(), 1).unwrap();
    disk
}

/// The volume that a reader finds.
pub(crate) fn found(disk: &Disk) -> Option<Super> {
    Unverified::new(&disk.block(SUPER_BLKNO)).verify(SUPER_BLKNO, BLOCKS).ok()
}

#[test]
fn a_volume_is_made_with_a_spare_super_block() {
    let disk = made();
    let volume = found(&disk).unwrap();
    assert_eq!(volume.label(), "test");
    let spare = disk.block(spare_blkno(BLOCKS));
    let spare = Unverified::new(&spare).verify(spare_blkno(BLOCKS), BLOCKS).unwrap();
    assert_eq!(spare.volume(), volume.volume());
    assert!(matches!(disk.steps.last(), Some(Step::Flush)));
}

#[test]
fn two_volumes_of_one_recipe_are_the_same_however_requests_complete() {
    let mut other = Disk::default();
    make(&mut other, &recipe(), 99).unwrap();
    let bytes = |disk: &Disk| -> Vec<(u64, [u8; 4096])> {
        disk.blocks.iter().map(|(blkno, block)| (*blkno, block.0)).collect()
    };
    assert!(bytes(&other) == bytes(&made()));
}

#[test]
fn any_failed_write_or_flush_ends_it_without_a_volume() {
    let steps = made().steps.len();
    for fails_at in 0..steps {
        let mut disk = Disk { fails_at: Some(fails_at), ..Disk::default() };
        let ended = make(&mut disk, &recipe(), 7);
        assert!(matches!(ended, Err(Error::Io { error: IoError::Device, .. })), "{fails_at}");
        // The last of all is the flush behind the super block.
        assert_eq!(found(&disk).is_some(), fails_at == steps - 1, "{fails_at}");
    }
}

#[test]
fn an_identity_that_is_none_is_refused() {
    let refused = |change: fn(&mut Identity)| {
        let mut recipe = recipe();
        change(&mut recipe.identity);
        carve(&recipe).err()
    };
    assert_eq!(refused(|identity| identity.blocks = 100), Some(Corruption::Value));
    assert_eq!(refused(|identity| identity.crc_seed = 0), Some(Corruption::Value));
    assert_eq!(refused(|identity| identity.voters = [None; 7]), Some(Corruption::Value));
}

//! Volumes that are made up item by item and record by record, so that any one of them can be
//! wrong: what `check` is tried on.
//!
//! ```text
//!   Draft --------------> Layout ----------------> Image
//!   items, and who has    runs in blocks, records   what stands on
//!   what, of a volume     of all trees, the root    the device
//! ```
//!
//! # Invariants
//!
//! * A draft that nobody has changed makes a volume that is whole. What changes a layout or an
//!   image changes nothing else: checksums, counts and sums are not made to fit it.
//! * Items are spread over several runs and levels, with old versions and tombstones among them,
//!   in the same way each time.
//! * Items, runs and roots are written by core; only a leaf of a tree is written here, because core
//!   writes one only through a commit.
//!
//! What this module deliberately doesn't know: what a check makes of a volume.

mod draft;
mod layout;

pub use draft::{Draft, IDENTITY, VOLUME_BLOCKS};
pub use layout::{Layout, Tree, root_at};

use crate::image::Image;
use crate::region::Region;
use outrider_core::arena::Arena;
use outrider_core::check::{Check, Counts, Finding};
use outrider_core::format::super_block::Super;
use outrider_core::node::{Action, Event, More, Node};
use outrider_hal::{Block, BlockNo, BlockOp, BlockRequest, Completion, Instant};
use std::rc::Rc;

/// What a check has come to.
#[derive(Debug, Clone)]
pub struct Report {
    /// What it found.
    pub findings: Vec<Finding>,
    /// What it looked at.
    pub counts: Counts,
    /// The volume was changed too fast.
    pub is_busy: bool,
    /// How often it was made.
    pub attempts: u32,
    /// What items have in common was checked.
    pub are_items_compared: bool,
}

/// Checks volumes, all in the same memory.
pub struct Checks {
    volume: Super,
    region: Region,
}

impl Checks {
    /// Checks of this volume.
    ///
    /// # Panics
    ///
    /// When a check can't be measured.
    #[must_use]
    pub fn new(volume: &Super) -> Checks {
        let mut arena = Arena::measuring();
        drop(Check::carve(&mut arena, volume).expect("measuring"));
        Checks { volume: *volume, region: Region::new(arena.bytes_used()) }
    }

    /// Checks what is on this device.
    pub fn check(&mut self, image: &Image) -> Report {
        self.check_with(|blkno| image.block(blkno.0).clone())
    }

    /// Checks a device that answers each read with what this function gives.
    ///
    /// # Panics
    ///
    /// When the check comes to a halt before its end, or asks for anything but reads.
    pub fn check_with(&mut self, mut read: impl FnMut(BlockNo) -> Rc<Block>) -> Report {
        let (memory, lease) = self.region.lend();
        let mut arena = Arena::new(memory).expect("regions are aligned");
        let mut check = Check::carve(&mut arena, &self.volume).expect("measured");
        let (mut findings, mut attempt) = (Vec::new(), check.attempt());
        while !check.is_done() {
            let mut worked = check.step(Instant(0)) == More::Yes;
            if attempt != check.attempt() {
                attempt = check.attempt();
                findings.clear();
            }
            while let Some(finding) = check.poll_finding() {
                findings.push(finding);
                worked = true;
            }
            while let Some(action) = check.poll_action() {
                let Action::Block(BlockRequest { tag, op }) = action else { panic!("no request") };
                let BlockOp::Read(blkno, buffer) = op else { panic!("a check only reads") };
                buffer.0 = read(blkno).0;
                let completion =
                    Completion { tag, op: BlockOp::Read(blkno, buffer), result: Ok(()) };
                check.handle(Instant(0), Event::Completed(completion));
                worked = true;
            }
            assert!(worked || check.is_done(), "the check has come to a halt");
        }
        let report = Report {
            findings,
            counts: check.counts(),
            is_busy: check.is_busy(),
            attempts: check.attempt(),
            are_items_compared: check.are_items_compared(),
        };
        drop(check);
        drop(lease);
        report
    }
}

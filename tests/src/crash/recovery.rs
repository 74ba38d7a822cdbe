//! Recovery of a disk that a power cut has left: it is checked, then mounted and looked at.
//!
//! ```text
//!   image --> check --> boot a server and a mount --> look at every file --> Recovered
//! ```
//!
//! # Invariants
//!
//! * A recovery is a function of the blocks it reads. So it is made once for all images that hold
//!   the same in all of these: most writes that no root refers to are read by nobody.
//! * What was recovered from one image is never told of another that differs in a block that was
//!   read, in the order in which it was read.
//!
//! What this module deliberately doesn't know: what should have been found.

use super::Recording;
use super::volume::{Cluster, Tree, look, tails_are_zero};
use crate::image::{Image, Reads};
use crate::region::Region;
use outrider_core::arena::Arena;
use outrider_core::check::{Check, Finding};
use outrider_core::format::super_block::Super;
use outrider_core::node::{Action, Event, More, Node};
use outrider_hal::{Block, BlockOp, BlockRequest, Completion, Instant};
use std::rc::Rc;

/// Steps of a check without anything new after which it hangs.
const STEPS_MAX: u64 = 1 << 24;

/// What was found on a disk.
#[derive(Debug)]
pub struct Recovered {
    /// What the check found.
    pub findings: Vec<Finding>,
    /// The files; or what went wrong on the way to them.
    pub tree: Result<Tree, String>,
}

/// Checks an image, all of it.
///
/// # Panics
///
/// When the check hangs.
#[must_use]
pub fn check(image: &Image, volume: &Super) -> Vec<Finding> {
    let mut measure = Arena::measuring();
    drop(Check::carve(&mut measure, volume));
    let mut region = Region::new(measure.bytes_used());
    let (memory, lease) = region.lend();
    let mut arena = Arena::new(memory).expect("regions are aligned");
    let mut check = Check::carve(&mut arena, volume).expect("measured");
    let mut findings = Vec::new();
    let now = Instant(1);
    for _ in 0..STEPS_MAX {
        let more = check.step(now);
        let mut acted = more == More::Yes;
        while let Some(finding) = check.poll_finding() {
            findings.push(finding);
            acted = true;
        }
        while let Some(action) = check.poll_action() {
            acted = true;
            let Action::Block(BlockRequest { tag, mut op }) = action else { continue };
            if let BlockOp::Read(blkno, block) = &mut op {
                block.0 = image.block(blkno.0).0;
            }
            check.handle(now, Event::Completed(Completion { tag, op, result: Ok(()) }));
        }
        if check.is_done() {
            drop(check);
            drop(lease);
            return findings;
        }
        assert!(acted, "the check hangs");
    }
    panic!("the check has no end");
}

/// Boots a cluster on an image, and looks at all files.
///
/// # Errors
///
/// What keeps it from that.
pub fn tree(image: Image, volume: &Super, power: u8) -> Result<Tree, String> {
    let mut cluster = Cluster::new(image, *volume, power);
    cluster.mount()?;
    let (tree, inos) = look(&mut cluster).map_err(|error| format!("{error:?}"))?;
    let zero = tails_are_zero(&mut cluster, &tree, &inos).map_err(|error| format!("{error:?}"))?;
    if zero { Ok(tree) } else { Err("old bytes behind the end of a file".to_owned()) }
}

/// Boots a cluster on an image and records what it does to the disk until all there is has been
/// seen.
///
/// # Errors
///
/// What keeps it from that.
pub fn record(image: Image, volume: &Super, power: u8) -> Result<Recording, String> {
    let mut cluster = Cluster::new(image, *volume, power);
    cluster.world().borrow_mut().disk_mut().record();
    cluster.mount()?;
    look(&mut cluster).map_err(|error| format!("{error:?}"))?;
    cluster.idle()?;
    let recording = cluster.world().borrow_mut().disk_mut().take_recording();
    recording.ok_or_else(|| "nothing was recorded".to_owned())
}

/// Recovers an image.
#[must_use]
pub fn recover(image: &Image, volume: &Super, power: u8) -> Recovered {
    Recovered { findings: check(image, volume), tree: tree(image.clone(), volume, power) }
}

/// What was recovered from images that began alike, by what they hold next.
enum Known {
    Read { blkno: u64, then: Vec<(Rc<Block>, Known)> },
    End(Rc<Recovered>),
}

/// Recoveries that need not be made again.
pub struct Recoveries {
    volume: Super,
    power: u8,
    known: Option<Known>,
    made: u64,
}

impl Recoveries {
    /// None yet. They are made after so many losses of power.
    #[must_use]
    pub fn new(volume: Super, power: u8) -> Recoveries {
        Recoveries { volume, power, known: None, made: 0 }
    }

    /// How many were made.
    #[must_use]
    pub fn made(&self) -> u64 {
        self.made
    }

    /// What recovery finds on this image.
    pub fn of(&mut self, image: &Image) -> Rc<Recovered> {
        if let Some(found) = find(self.known.as_ref(), image) {
            return found;
        }
        let (watched, reads) = image.watched();
        let recovered = Rc::new(recover(&watched, &self.volume, self.power));
        self.made += 1;
        drop(watched);
        learn(&mut self.known, image, &reads, &recovered);
        recovered
    }
}

fn find(mut known: Option<&Known>, image: &Image) -> Option<Rc<Recovered>> {
    loop {
        match known? {
            Known::End(recovered) => return Some(recovered.clone()),
            Known::Read { blkno, then } => {
                let block = image.block(*blkno);
                let same = |(seen, _): &&(Rc<Block>, Known)| is_same(seen, block);
                known = then.iter().find(same).map(|(_, next)| next);
            }
        }
    }
}

fn is_same(one: &Rc<Block>, other: &Rc<Block>) -> bool {
    Rc::ptr_eq(one, other) || one.0 == other.0
}

fn learn(known: &mut Option<Known>, image: &Image, reads: &Reads, recovered: &Rc<Recovered>) {
    let mut end = Some(Known::End(recovered.clone()));
    let reads = reads.borrow();
    let mut rest = reads.order().iter();
    let Some(first) = rest.next() else {
        *known = end;
        return;
    };
    let mut at = known.get_or_insert_with(|| Known::Read { blkno: *first, then: Vec::new() });
    let mut blkno = *first;
    loop {
        let Known::Read { blkno: expected, then } = at else {
            panic!("a recovery that had ended goes on");
        };
        assert_eq!(*expected, blkno, "a recovery depends on more than what it reads");
        let block = image.block(blkno);
        let index = match then.iter().position(|(seen, _)| is_same(seen, block)) {
            Some(index) => index,
            None => {
                let next = match rest.clone().next() {
                    Some(next) => Known::Read { blkno: *next, then: Vec::new() },
                    None => end.take().expect("it ends once"),
                };
                then.push((block.clone(), next));
                then.len() - 1
            }
        };
        let Some(next) = rest.next() else { return };
        blkno = *next;
        at = &mut then[index].1;
    }
}

//! Exhaustive crash tests: every state a power cut could have left behind, one recovery for each.
//!
//! A [`Recording`] lists the writes and flushes of a workload in order, and the points from which
//! on it relied on something being durable. [`explore`] cuts the power after each step and visits
//! the disks that may be found then:
//!
//! * every write that a successful flush covers is there;
//! * of the others, the *open* ones, any subset is there, or has reached the disk up to some
//!   sector.
//!
//! # Invariants
//!
//! * With at most [`Bounds::whole_max`] open writes, every subset is visited, for every prefix.
//!   Subsets that were visited at an earlier step with the same acknowledged marks are not visited
//!   again: after a write, those that contain it are new; after a flush, none is.
//! * With more, every subset is visited that lacks or has at most [`Bounds::few`] of them.
//! * With at most [`Bounds::torn_max`] open writes, each write of each subset is also torn, at each
//!   of [`Bounds::tears`]; with more, only in the subsets that lack nothing or have nothing else.
//! * Two writes of one workload to one block are not in flight at once: once the later of them is
//!   covered, the earlier is gone. (Blocks that violate this are the simulator's to try.)
//!
//! What this module deliberately doesn't know: what is on the disk, and how recovery works. To cut
//! the power during recovery too, record it and explore that recording.

pub mod cuts;
pub mod parts;
pub mod recovery;
pub mod volume;
pub mod workload;

use crate::disk::{RequestId, copy_sectors};
use crate::image::Image;
use crate::trace::{Digest, HostId};
use outrider_hal::Block;
use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::rc::Rc;

/// One step of a workload.
#[derive(Debug, Clone)]
pub enum Step {
    /// A write was submitted.
    Write {
        /// Names the write.
        id: RequestId,
        /// Whose it is.
        host: HostId,
        /// Where to.
        blkno: u64,
        /// What.
        data: Rc<Block>,
    },
    /// A flush completed.
    Flushed {
        /// The writes it made durable.
        covers: Vec<RequestId>,
    },
    /// From here on somebody relies on this being durable.
    Mark(u64),
}

/// What a workload did to a disk.
#[derive(Clone)]
pub struct Recording {
    start: Image,
    steps: Vec<Step>,
}

impl Recording {
    /// An empty recording that starts from this disk.
    #[must_use]
    pub fn new(mut start: Image) -> Recording {
        start.settle();
        Recording { start, steps: Vec::new() }
    }

    /// Adds a step.
    pub fn push(&mut self, step: Step) {
        self.steps.push(step);
    }

    /// Marks that somebody relies on `label` from here on.
    pub fn mark(&mut self, label: u64) {
        self.push(Step::Mark(label));
    }

    /// Adds a write, for workloads that have no disk under them.
    pub fn write(&mut self, blkno: u64, data: Block) {
        let id = RequestId(self.steps.len() as u64);
        self.push(Step::Write { id, host: HostId(0), blkno, data: Rc::new(data) });
    }

    /// Adds a flush that covers every write so far, for workloads that have no disk under them.
    pub fn flush(&mut self) {
        let written = |step: &Step| match step {
            Step::Write { id, .. } => Some(*id),
            Step::Flushed { .. } | Step::Mark(_) => None,
        };
        let covers = self.steps.iter().filter_map(written).collect();
        self.push(Step::Flushed { covers });
    }

    /// Which block this step writes.
    #[must_use]
    pub fn blkno(&self, step: usize) -> Option<u64> {
        match self.steps.get(step)? {
            Step::Write { blkno, .. } => Some(*blkno),
            Step::Flushed { .. } | Step::Mark(_) => None,
        }
    }

    /// The steps, in order.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }
}

/// How much is visited.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Up to so many open writes, every subset of them.
    pub whole_max: u32,
    /// With more, the subsets that have or lack at most so many.
    pub few: u32,
    /// Up to so many open writes, every subset with each of its writes torn.
    pub torn_max: u32,
    /// The sectors of a torn write that reach the disk, as bits.
    pub tears: &'static [u8],
}

impl Bounds {
    /// Every subset of up to eight open writes; tears after each sector and before the last, in
    /// subsets of up to four.
    pub const USUAL: Bounds = Bounds {
        whole_max: 8,
        few: 2,
        torn_max: 4,
        tears: &[0x01, 0x03, 0x07, 0x0f, 0x1f, 0x3f, 0x7f, 0x80, 0xfe],
    };
}

/// A power cut: what of the recording is on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// How many steps were done.
    pub steps: usize,
    /// The open writes that are on the disk, by step.
    pub landed: Vec<usize>,
    /// The open writes that are not.
    pub lost: Vec<usize>,
    /// One of `landed` that is there in part, and its sectors that are.
    pub torn: Option<(usize, u8)>,
    /// What somebody relies on.
    pub acknowledged: Vec<u64>,
}

/// How much was visited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Steps after which the power was cut.
    pub cuts: u64,
    /// Disks with whole writes only.
    pub subsets: u64,
    /// Disks with a torn write.
    pub torn: u64,
    /// Cuts with more open writes than [`Bounds::whole_max`].
    pub cuts_sampled: u64,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} cuts, {} subsets and {} torn variants recovered ({} cuts not exhaustive)",
            self.cuts, self.subsets, self.torn, self.cuts_sampled
        )
    }
}

/// A power cut after which recovery failed: the earliest; of these one without a torn write, if
/// there is one, with the fewest writes lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The cut.
    pub cut: Cut,
    /// What the check said.
    pub what: String,
    /// The open writes, one line each.
    pub listing: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cut { steps, acknowledged, .. } = &self.cut;
        let Failure { what, listing, .. } = self;
        writeln!(f, "power cut after step {steps}: {what}")?;
        write!(f, "acknowledged: {acknowledged:?}\nwrites no flush covered:\n{listing}")
    }
}

/// Visits the disks that power cuts may leave, and has `check` recover each.
///
/// # Errors
///
/// The smallest cut at the first step at which `check` failed.
pub fn explore(
    recording: &Recording,
    bounds: &Bounds,
    mut check: impl FnMut(&Cut, Image) -> Result<(), String>,
) -> Result<Counts, Box<Failure>> {
    let mut explorer = Explorer {
        recording,
        bounds,
        base: recording.start.clone(),
        open: Vec::new(),
        acknowledged: Vec::new(),
        counts: Counts::default(),
    };
    explorer.visit(0, None, &mut check)?;
    for (index, step) in recording.steps.iter().enumerate() {
        match step {
            Step::Write { .. } => {
                explorer.open.push(index);
                explorer.visit(index + 1, Some(index), &mut check)?;
            }
            Step::Flushed { covers } => {
                explorer.cover(covers);
                explorer.counts.cuts += 1;
            }
            Step::Mark(label) => {
                explorer.acknowledged.push(*label);
                explorer.visit(index + 1, None, &mut check)?;
            }
        }
    }
    Ok(explorer.counts)
}

struct Explorer<'r> {
    recording: &'r Recording,
    bounds: &'r Bounds,
    /// What is certainly on the disk.
    base: Image,
    /// Steps of the writes that may be.
    open: Vec<usize>,
    acknowledged: Vec<u64>,
    counts: Counts,
}

impl Explorer<'_> {
    fn written(&self, step: usize) -> Option<(RequestId, u64, &Rc<Block>)> {
        match self.recording.steps.get(step)? {
            Step::Write { id, blkno, data, .. } => Some((*id, *blkno, data)),
            Step::Flushed { .. } | Step::Mark(_) => None,
        }
    }

    /// Moves covered writes, and what they have replaced, from the open ones into the base.
    fn cover(&mut self, covers: &[RequestId]) {
        let covers: BTreeSet<RequestId> = covers.iter().copied().collect();
        let mut certain = Vec::new();
        let mut open = Vec::new();
        for &step in self.open.iter().rev() {
            let Some((id, blkno, data)) = self.written(step) else { continue };
            let replaced = certain.iter().any(|(covered, _)| *covered == blkno);
            if covers.contains(&id) {
                certain.push((blkno, data.clone()));
            } else if !replaced {
                open.push(step);
            }
        }
        for (blkno, data) in certain.into_iter().rev() {
            self.base.write(blkno, data);
        }
        self.base.settle();
        open.reverse();
        self.open = open;
    }

    /// Visits the disks possible after so many steps; with `newest`, only those that have it.
    fn visit(
        &mut self,
        steps: usize,
        newest: Option<usize>,
        check: &mut impl FnMut(&Cut, Image) -> Result<(), String>,
    ) -> Result<(), Box<Failure>> {
        self.counts.cuts += 1;
        let open = self.open.len() as u32;
        self.counts.cuts_sampled += u64::from(open > self.bounds.whole_max);
        let mut failures: Vec<Failure> = Vec::new();
        for chosen in subsets(open, self.bounds) {
            let pick = |index: &u32| self.open[*index as usize];
            let landed: Vec<usize> = chosen.iter().map(pick).collect();
            if newest.is_some_and(|newest| !landed.contains(&newest)) {
                continue;
            }
            let is_lost = |step: &&usize| !landed.contains(step);
            let lost: Vec<usize> = self.open.iter().filter(is_lost).copied().collect();
            let tear = open <= self.bounds.torn_max || lost.is_empty() || landed.len() == 1;
            let tears =
                landed.iter().flat_map(|step| self.bounds.tears.iter().map(|t| (*step, *t)));
            let torn: Vec<(usize, u8)> = if tear { tears.collect() } else { Vec::new() };
            for torn in std::iter::once(None).chain(torn.into_iter().map(Some)) {
                let (landed, lost) = (landed.clone(), lost.clone());
                let acknowledged = self.acknowledged.clone();
                let cut = Cut { steps, landed, lost, torn, acknowledged };
                let count =
                    if torn.is_some() { &mut self.counts.torn } else { &mut self.counts.subsets };
                *count += 1;
                if let Err(what) = check(&cut, self.image(&cut)) {
                    let listing = self.listing(&cut);
                    failures.push(Failure { cut, what, listing });
                }
            }
        }
        let size = |failure: &Failure| (failure.cut.torn.is_some(), failure.cut.lost.len());
        failures.into_iter().min_by_key(size).map_or(Ok(()), |smallest| Err(Box::new(smallest)))
    }

    fn image(&self, cut: &Cut) -> Image {
        let mut image = self.base.clone();
        for &step in &cut.landed {
            let Some((_, blkno, data)) = self.written(step) else { continue };
            match cut.torn {
                Some((torn, sectors)) if torn == step => {
                    let mut mixed = Block(image.block(blkno).0);
                    copy_sectors(&mut mixed, data, sectors);
                    image.write(blkno, Rc::new(mixed));
                }
                Some(_) | None => image.write(blkno, data.clone()),
            }
        }
        image
    }

    fn listing(&self, cut: &Cut) -> String {
        let mut text = String::new();
        for &step in &self.open {
            let Some((_, blkno, data)) = self.written(step) else { continue };
            let fate = match cut.torn {
                Some((torn, sectors)) if torn == step => format!("torn, sectors {sectors:#010b}"),
                Some(_) | None if cut.lost.contains(&step) => "lost".to_owned(),
                Some(_) | None => "landed".to_owned(),
            };
            let digest = Digest::of(&data.0);
            let _ = writeln!(text, "  step {step:>5}  block {blkno:>8}  {digest:?}  {fate}");
        }
        text
    }
}

/// The subsets of `0..len` to be visited, each in ascending order.
fn subsets(len: u32, bounds: &Bounds) -> Vec<Vec<u32>> {
    if len <= bounds.whole_max {
        let has = |mask: u64| (0..len).filter(move |index| mask & 1 << index != 0);
        return (0..1u64 << len).map(|mask| has(mask).collect()).collect();
    }
    let mut few = vec![Vec::new()];
    let mut start = 0;
    for _ in 0..bounds.few {
        let end = few.len();
        for index in start..end {
            let next = few[index].last().map_or(0, |last| last + 1);
            for item in next..len {
                let mut longer: Vec<u32> = few[index].clone();
                longer.push(item);
                few.push(longer);
            }
        }
        start = end;
    }
    let rest = |lacks: &Vec<u32>| (0..len).filter(|item| !lacks.contains(item)).collect();
    let most: Vec<Vec<u32>> = few.iter().map(rest).collect();
    let all: BTreeSet<Vec<u32>> = few.into_iter().chain(most).collect();
    all.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::{Bounds, subsets};

    #[test]
    fn every_subset_up_to_the_bound_and_the_extremes_beyond() {
        assert_eq!(subsets(0, &Bounds::USUAL), [Vec::<u32>::new()]);
        assert_eq!(subsets(8, &Bounds::USUAL).len(), 256);
        // 1 + 10 + 45 that have at most two of ten, and as many that lack at most two.
        assert_eq!(subsets(10, &Bounds::USUAL).len(), 2 * 56);
        let bounds = Bounds { whole_max: 2, few: 2, ..Bounds::USUAL };
        assert_eq!(subsets(3, &bounds).len(), 8);
    }
}

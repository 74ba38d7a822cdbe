//! Power cuts in workloads, and in the recoveries from them.
//!
//! What this module deliberately doesn't know: what an operation does.

use super::recovery::{Recoveries, record};
use super::workload::{Act, Beginning, Recorded};
use super::{Bounds, Counts, Cut, Recording, explore};
use crate::image::Image;
use std::fmt;

/// Losses of power before the workload's machines boot, and before those that recover.
const FIRST: u8 = 3;
const SECOND: u8 = 4;

/// How much was looked at.
#[derive(Debug, Clone, Copy, Default)]
pub struct Totals {
    /// Workloads.
    pub workloads: u64,
    /// Power cuts in them.
    pub cuts: Counts,
    /// Recoveries in which power was cut again.
    pub recoveries: u64,
    /// Power cuts in those.
    pub cuts_in_recovery: Counts,
    /// Recoveries that had to be made: those that read something no other has.
    pub made: u64,
}

impl Counts {
    /// Adds those of another recording.
    pub fn add(&mut self, other: &Counts) {
        self.cuts += other.cuts;
        self.subsets += other.subsets;
        self.torn += other.torn;
        self.cuts_sampled += other.cuts_sampled;
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Totals { workloads, cuts, recoveries, cuts_in_recovery, made } = self;
        writeln!(f, "{workloads} workloads: {cuts}")?;
        writeln!(f, "{recoveries} recoveries cut off: {cuts_in_recovery}")?;
        write!(f, "{made} recoveries that read something new")
    }
}

/// Cuts workloads off, and recovers.
pub struct Cuts {
    beginning: Beginning,
    first: Recoveries,
    second: Recoveries,
    totals: Totals,
}

impl Cuts {
    /// Makes the volume on which workloads begin.
    ///
    /// # Errors
    ///
    /// What keeps it from being made.
    pub fn new() -> Result<Cuts, String> {
        let beginning = Beginning::new()?;
        let [first, second] = [FIRST, SECOND].map(|at| Recoveries::new(*beginning.volume(), at));
        Ok(Cuts { beginning, first, second, totals: Totals::default() })
    }

    /// How much was looked at so far.
    #[must_use]
    pub fn totals(&self) -> Totals {
        Totals { made: self.first.made() + self.second.made(), ..self.totals }
    }

    /// Records a workload, and recovers from every power cut in it.
    ///
    /// # Errors
    ///
    /// The smallest cut after which something is wrong.
    pub fn of_workload(&mut self, acts: &[Act], bounds: &Bounds) -> Result<(), String> {
        let recorded = self.beginning.record(acts)?;
        let counts = explore(recorded.recording(), bounds, |cut, image| {
            let torn = torn(cut, recorded.recording());
            recorded.judge(least(cut), torn, &self.first.of(&image))
        });
        self.totals.cuts.add(&counts.map_err(|failure| format!("{acts:?}: {failure}"))?);
        self.totals.workloads += 1;
        Ok(())
    }

    /// Records a workload; of every power cut in it that leaves whole blocks, and is not recovered
    /// from as an earlier one is, records the recovery; and recovers from every power cut in that.
    ///
    /// # Errors
    ///
    /// The smallest cut after which something is wrong.
    pub fn of_recoveries(&mut self, acts: &[Act], bounds: &Bounds) -> Result<(), String> {
        let recorded = self.beginning.record(acts)?;
        let whole = Bounds { tears: &[], ..*bounds };
        let mut left: Vec<(usize, Image)> = Vec::new();
        let mut first = Recoveries::new(*self.beginning.volume(), FIRST);
        let counts = explore(recorded.recording(), &whole, |cut, image| {
            let made = first.made();
            let recovered = first.of(&image);
            if first.made() > made {
                left.push((least(cut), image));
            }
            recorded.judge(least(cut), None, &recovered)
        });
        counts.map_err(|failure| format!("{acts:?}: {failure}"))?;
        for (least, image) in left {
            self.of_recovery(&recorded, least, image, bounds)
                .map_err(|what| format!("{acts:?}, in a recovery: {what}"))?;
        }
        Ok(())
    }

    fn of_recovery(
        &mut self,
        recorded: &Recorded,
        least: usize,
        image: Image,
        bounds: &Bounds,
    ) -> Result<(), String> {
        let recovery = record(image, self.beginning.volume(), FIRST)?;
        let counts = explore(&recovery, bounds, |cut, image| {
            recorded.judge(least, torn(cut, &recovery), &self.second.of(&image))
        });
        let counts = counts.map_err(|failure| failure.to_string())?;
        self.totals.cuts_in_recovery.add(&counts);
        self.totals.recoveries += 1;
        Ok(())
    }
}

fn torn(cut: &Cut, recording: &Recording) -> Option<u64> {
    cut.torn.and_then(|(step, _)| recording.blkno(step))
}

/// How many operations must be there.
fn least(cut: &Cut) -> usize {
    cut.acknowledged.last().map_or(0, |acts| *acts as usize)
}

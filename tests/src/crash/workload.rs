//! Workloads of a few operations on a small volume, and what may be found after a power cut.
//!
//! # What must be found
//!
//! The files as they were after the first so many operations, for a number not below that of those
//! that a completed fsync covers. So each operation is there wholly or not at all, and none without
//! those before it.
//!
//! Bytes that replace others are written in place, before what says that they were: each sector of
//! them may be found early. (So may those that are appended after a truncation that isn't there.)
//!
//! # Invariants
//!
//! * A workload does the same whenever it is recorded, up to its first operation that differs from
//!   another's.
//!
//! What this module deliberately doesn't know: which power cuts there are.

use super::Recording;
use super::recovery::Recovered;
use super::volume::{Cluster, Tree, look, made};
use crate::disk::SECTOR_BYTES;
use crate::image::Image;
use crate::model::script::{OpenArg, Path, Step, Subject, Value};
use crate::model::walk::Walk;
use crate::model::{Model, User};
use outrider_core::check::{Finding, Id};
use outrider_core::client::op::{OpError, RenameMode, XattrMode};
use outrider_core::format::super_block::Super;

/// The volume on which all workloads begin.
pub struct Beginning {
    image: Image,
    volume: Super,
    /// What is on it, as the model has it.
    model: Model,
}

/// An operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// A new file is made.
    Create,
    /// Bytes of a file are replaced, across the border of two blocks.
    Write,
    /// Bytes are added to a file, into its last block and behind it.
    Append,
    /// The file is made durable.
    Fsync,
    /// So is another, in which nothing has changed.
    Sync,
    /// Another file takes the file's name.
    RenameOver,
    /// The file gets another name.
    Link,
    /// The file's name is removed.
    Unlink,
    /// The file is cut off within a block.
    Truncate,
    /// A directory is made.
    Mkdir,
    /// A directory is removed.
    Rmdir,
    /// The file gets an extended attribute.
    Setxattr,
}

impl Act {
    /// All of them.
    pub const ALL: [Act; 12] = [
        Act::Create,
        Act::Write,
        Act::Append,
        Act::Fsync,
        Act::Sync,
        Act::RenameOver,
        Act::Link,
        Act::Unlink,
        Act::Truncate,
        Act::Mkdir,
        Act::Rmdir,
        Act::Setxattr,
    ];

    /// The calls it is made of, as the operation of this number.
    fn calls(self, number: usize) -> Vec<Step> {
        let file: Path = vec!["dir", "file"];
        let byte = 10 + number as u8;
        let on = |path: Path, how: OpenArg, call: Option<Step>| {
            let mut calls = vec![Step::Open { slot: 0, path, how }];
            calls.extend(call);
            calls.push(Step::Close { slot: 0 });
            calls
        };
        match self {
            Act::Create => {
                let how = OpenArg { create: Some(0o644), ..BOTH };
                on(vec![["new-0", "new-1", "new-2", "new-3"][number % 4]], how, None)
            }
            Act::Write => {
                let write = Step::Write { slot: 0, at: 3000, len: 2000, byte };
                on(file, BOTH, Some(write))
            }
            Act::Append => {
                let write = Step::Write { slot: 0, at: 0, len: 5000, byte };
                on(file, OpenArg { append: true, ..BOTH }, Some(write))
            }
            Act::Fsync => on(file, BOTH, Some(Step::Fsync { slot: 0 })),
            Act::Sync => on(vec!["other"], BOTH, Some(Step::Fsync { slot: 0 })),
            Act::RenameOver => {
                let mode = RenameMode::Replace;
                vec![Step::Rename { path: vec!["rival"], to: file, mode }]
            }
            Act::Link => {
                let to = vec![["link-0", "link-1", "link-2", "link-3"][number % 4]];
                vec![Step::Link { path: file, to }]
            }
            Act::Unlink => vec![Step::Unlink { path: file }],
            Act::Truncate => {
                let cut = Step::Ftruncate { slot: 0, size: 5500 - 2000 * (number as u64 % 3) };
                on(file, BOTH, Some(cut))
            }
            Act::Mkdir => {
                let path = vec!["dir", ["sub-0", "sub-1", "sub-2", "sub-3"][number % 4]];
                vec![Step::Mkdir { path, mode: 0o755 }]
            }
            Act::Rmdir => vec![Step::Rmdir { path: vec!["empty"] }],
            Act::Setxattr => {
                let (name, mode) = ("user.one", XattrMode::Any);
                vec![Step::Setxattr { path: file, name, value: vec![byte; 40], mode }]
            }
        }
    }
}

const BOTH: OpenArg =
    OpenArg { read: true, write: true, create: None, truncate: false, append: false };

/// Makes calls, one after the other; the first that fails ends them.
fn make<F: Subject>(at: &mut F, calls: &[Step]) -> Result<(), OpError> {
    for call in calls {
        if at.run(&User::ROOT, call)? == Value::Skipped {
            return Err(OpError::NotSupported);
        }
    }
    Ok(())
}

/// What is on the volume before a workload.
fn prelude() -> Vec<Step> {
    let create = OpenArg { create: Some(0o644), ..BOTH };
    let file = |path: Path, len, byte| {
        let open = Step::Open { slot: 0, path, how: create };
        let write = Step::Write { slot: 0, at: 0, len, byte };
        [open, write, Step::Close { slot: 0 }]
    };
    let mut calls = vec![
        Step::Mkdir { path: vec!["dir"], mode: 0o755 },
        Step::Mkdir { path: vec!["empty"], mode: 0o755 },
    ];
    calls.extend(file(vec!["dir", "file"], 7000, 1));
    calls.extend(file(vec!["rival"], 3000, 2));
    calls.extend(file(vec!["other"], 100, 3));
    calls
}

impl Beginning {
    /// Makes the volume.
    ///
    /// # Errors
    ///
    /// What a mount does instead of its work.
    pub fn new() -> Result<Beginning, String> {
        let (image, volume) = made();
        let cluster = Cluster::new(image, volume, 1);
        cluster.mount()?;
        let (mut mount, mut model) = (Walk::over(cluster.clone()), Walk::new(0o755));
        for at in [make(&mut mount, &prelude()), make(&mut model, &prelude())] {
            at.map_err(|error| format!("the volume is not made: {error:?}"))?;
        }
        cluster.idle()?;
        cluster.unmount()?;
        let image = cluster.world().borrow().disk().image();
        Ok(Beginning { image, volume, model: model.model })
    }

    /// What its super block says.
    #[must_use]
    pub fn volume(&self) -> &Super {
        &self.volume
    }

    /// What is on the device.
    #[must_use]
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Mounts the volume, records these operations, and works out what each of them gives.
    ///
    /// # Errors
    ///
    /// What a mount does instead of its work.
    pub fn record(&self, acts: &[Act]) -> Result<Recorded, String> {
        let cluster = Cluster::new(self.image.clone(), self.volume, 2);
        cluster.mount()?;
        let mut mount = Walk::over(cluster.clone());
        let mut model = Walk::over(self.model.clone());
        // Clocks go on from where they were when the volume was made.
        for _ in prelude() {
            let look = [Step::Stat { path: Vec::new() }];
            make(&mut mount, &look).and(make(&mut model, &look)).map_err(|e| format!("{e:?}"))?;
        }
        // What is under way when the recording begins is on no image of it.
        cluster.rest()?;
        cluster.world().borrow_mut().disk_mut().record();
        let mut states = vec![state(&model)?];
        for (number, act) in acts.iter().enumerate() {
            let calls = act.calls(number);
            let (made, expected) = (make(&mut mount, &calls), make(&mut model, &calls));
            if made != expected {
                return Err(format!("{act:?} gives {made:?}, not {expected:?}"));
            }
            states.push(state(&model)?);
            if matches!(act, Act::Fsync | Act::Sync) && made.is_ok() {
                cluster.world().borrow_mut().disk_mut().mark(number as u64 + 1);
            }
        }
        cluster.idle()?;
        let mut world = cluster.world().borrow_mut();
        world.disk_mut().mark(acts.len() as u64);
        let recording = world.disk_mut().take_recording().ok_or("nothing was recorded")?;
        Ok(Recorded { acts: acts.to_vec(), recording, states })
    }
}

fn state(model: &Walk) -> Result<Tree, String> {
    Ok(look(&mut model.model.clone()).map_err(|error| format!("{error:?}"))?.0)
}

/// A workload that was recorded.
pub struct Recorded {
    acts: Vec<Act>,
    recording: Recording,
    /// The files before the first operation and after each.
    states: Vec<Tree>,
}

impl Recorded {
    /// What it did to the disk.
    #[must_use]
    pub fn recording(&self) -> &Recording {
        &self.recording
    }

    /// Whether this may be found when so many operations must be there, and this block may have
    /// been torn.
    ///
    /// # Errors
    ///
    /// What may not.
    pub fn judge(
        &self,
        least: usize,
        torn: Option<u64>,
        recovered: &Recovered,
    ) -> Result<(), String> {
        let may_be_torn = |finding: &Finding| match finding.id {
            Id::Ring | Id::Quorum => Some(finding.blkno.0) == torn,
            _ => false,
        };
        let found = recovered.findings.iter().find(|finding| !may_be_torn(finding));
        if let Some(finding) = found {
            return Err(format!("{:?}: check finds {finding:?}", self.acts));
        }
        let tree = recovered.tree.as_ref().map_err(|what| format!("{:?}: {what}", self.acts))?;
        let may_be = |state: usize| self.is_found(state, tree);
        if (least..self.states.len()).any(may_be) {
            return Ok(());
        }
        let mut what = format!("{:?}: of {least} operations, and no more, there is\n", self.acts);
        for (path, seen) in tree {
            what += &format!("  {path}: {seen:?}\n");
        }
        Err(what)
    }

    /// Whether this is the state after so many operations, but for what was written in place.
    fn is_found(&self, done: usize, tree: &Tree) -> bool {
        let state = &self.states[done];
        let later: Vec<&Tree> = (self.acts.iter().zip(&self.states[1..]).skip(done))
            .filter(|(act, _)| matches!(act, Act::Write | Act::Append))
            .map(|(_, state)| state)
            .collect();
        state.len() == tree.len()
            && state.iter().all(|(path, expected)| {
                let Some(seen) = tree.get(path) else { return false };
                if seen == expected {
                    return true;
                }
                let data = expected.data.clone();
                let same = super::volume::Seen { data, ..seen.clone() } == *expected;
                same && seen.data.len() == expected.data.len()
                    && sectors_are(&seen.data, &expected.data, &later, path)
            })
    }
}

/// Whether each sector is as expected, or as one of the later states has it.
fn sectors_are(seen: &[u8], expected: &[u8], later: &[&Tree], path: &str) -> bool {
    let sector = |data: &[u8], at: usize| -> Vec<u8> {
        data.iter().skip(at).take(SECTOR_BYTES.min(seen.len() - at)).copied().collect()
    };
    (0..seen.len()).step_by(SECTOR_BYTES).all(|at| {
        let found = sector(seen, at);
        let is = |tree: &&Tree| tree.get(path).is_some_and(|file| sector(&file.data, at) == found);
        found == sector(expected, at) || later.iter().any(is)
    })
}

/// All workloads of one, two or three operations.
#[must_use]
pub fn all(operations: u32) -> Vec<Vec<Act>> {
    (0..operations).fold(vec![Vec::new()], |shorter, _| {
        let longer = |acts: &Vec<Act>| Act::ALL.map(|act| [acts.as_slice(), &[act]].concat());
        shorter.iter().flat_map(longer).collect()
    })
}

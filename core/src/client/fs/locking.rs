//! Which locks a task holds, and in which order it gets them.
//!
//! What this module deliberately doesn't know: why.

use super::{HOLDS_MAX, Run, Stop, Wait};
use crate::client::op::OpError;
use crate::format::item::{FileKind, Inode};
use crate::format::key::IndexKind;
use crate::format::{Ino, Seq};
use crate::lock::client::{Acquired, Refused};
use crate::lock::{LockName, Mode};
use heapless::Vec;

/// Locks that a task wants at a time.
pub(super) type Wanted = Vec<(LockName, Mode), HOLDS_MAX>;

impl Run<'_, '_, '_, '_> {
    /// Excludes other tasks of this mount that need several changes from the inode; or, if not
    /// exclusive, only those that change it. One inode for each task.
    pub(super) fn exclude(&mut self, ino: Ino, exclusive: bool) -> Result<(), Stop> {
        if let Some(busy) = self.task.busy {
            assert!(busy == (ino, exclusive), "a task excludes from one inode");
            return Ok(());
        }
        if !self.fs.table.lock(ino, exclusive)? {
            // The other task may wait for a lock that isn't given again before this one lets go.
            while let Some(held) = self.task.held.last().copied() {
                self.release(&held);
            }
            self.task.waits = None;
            return Err(Wait::Busy(ino).into());
        }
        self.task.busy = Some((ino, exclusive));
        Ok(())
    }

    /// Holds the groups of these inodes, in this mode each.
    pub(super) fn lock_inodes(&mut self, inodes: &[(Ino, Mode)]) -> Result<(), Stop> {
        let mut wanted = Wanted::new();
        for (ino, mode) in inodes {
            want(&mut wanted, LockName::inode(*ino), *mode);
        }
        self.lock(wanted)
    }

    /// Holds the index regions that a change of these inodes writes to: where their entries are,
    /// and where they will be. `true` says that the data change too, and for a new inode.
    pub(super) fn lock_indices(&mut self, inodes: &[(Option<&Inode>, bool)]) -> Result<(), Stop> {
        self.lock(self.indices(inodes))
    }

    pub(super) fn indices(&self, inodes: &[(Option<&Inode>, bool)]) -> Wanted {
        let seq = self.cx.seq;
        let mut wanted = Wanted::new();
        let mut add = |kind, at: Seq| {
            want(&mut wanted, LockName::index(kind, at.0), Mode::WriteOnly);
        };
        for (inode, data) in inodes {
            match inode {
                None => add(IndexKind::MetaSeq, seq),
                Some(inode) if inode.meta_seq != seq => {
                    add(IndexKind::MetaSeq, inode.meta_seq);
                    add(IndexKind::MetaSeq, seq);
                }
                Some(_) => {}
            }
            match inode {
                None if *data => add(IndexKind::DataSeq, seq),
                Some(inode)
                    if *data && inode.kind == FileKind::Regular && inode.data_seq != seq =>
                {
                    add(IndexKind::DataSeq, inode.data_seq);
                    add(IndexKind::DataSeq, seq);
                }
                None | Some(_) => {}
            }
        }
        wanted
    }

    /// Holds these locks, and maybe others.
    pub(super) fn lock(&mut self, mut wanted: Wanted) -> Result<(), Stop> {
        wanted.sort_unstable_by_key(|(name, _)| name.rank());
        for (name, mode) in &wanted {
            loop {
                // What stands behind in the order is released first, and so is what would have to
                // be upgraded: two mounts that did so would wait for each other for ever.
                self.give_up_place(name);
                self.release_from(name.rank(), *mode, name);
                if self.task.held.contains(name) || self.task.held.len() < HOLDS_MAX {
                    break;
                }
                let held = self.task.held.iter().rev().copied();
                let mut spare = held.filter(|held| wanted.iter().all(|(name, _)| name != held));
                let spare = spare.next().expect("no more is wanted than can be held");
                self.release(&spare);
            }
            let (now, op, class) = (self.cx.now, self.cx.op, self.cx.class);
            match self.cx.locks.acquire(now, op, *name, *mode, class) {
                Ok(acquired) => {
                    if !self.task.held.contains(name) {
                        let held = self.task.held.push(*name);
                        assert!(held.is_ok(), "there is room");
                    }
                    match acquired {
                        Acquired::Held { refresh: _ } => self.task.waits.take_if(|at| at == name),
                        Acquired::Waiting => {
                            self.task.waits = Some(*name);
                            return Err(Wait::Lock(*name).into());
                        }
                    };
                }
                Err(Refused::Server(_)) => return Err(OpError::Again.into()),
                Err(Refused::Upgrade | Refused::Holds) => unreachable!("released before"),
            }
        }
        Ok(())
    }

    /// Makes way for a lock: nothing behind it is held, unless it is held itself in that mode.
    fn release_from(&mut self, rank: (u8, u8, u64), mode: Mode, name: &LockName) {
        let (now, op, class) = (self.cx.now, self.cx.op, self.cx.class);
        if self.task.held.contains(name) {
            match self.cx.locks.acquire(now, op, *name, mode, class) {
                Ok(_) => return,
                Err(Refused::Upgrade | Refused::Holds | Refused::Server(_)) => {}
            }
        }
        while let Some(held) = self.task.held.iter().copied().find(|held| held.rank() >= rank) {
            self.release(&held);
        }
    }

    /// Leaves the line for another lock than this, or gives up what came of waiting in it.
    fn give_up_place(&mut self, name: &LockName) {
        if !self.task.held.contains(name)
            && let Some(waits) = self.task.waits.take()
        {
            self.release(&waits);
        }
    }

    fn release(&mut self, name: &LockName) {
        self.cx.locks.release(self.cx.now, self.cx.op, name);
        self.task.held.retain(|held| held != name);
    }
}

/// Adds a lock to those wanted, in the stronger mode if it is among them.
pub(super) fn want(wanted: &mut Wanted, name: LockName, mode: Mode) {
    match wanted.iter_mut().find(|(wanted, _)| *wanted == name) {
        Some((_, known)) if known.covers(mode) => {}
        Some((_, known)) => *known = mode,
        None => {
            let added = wanted.push((name, mode));
            assert!(added.is_ok(), "no task wants more");
        }
    }
}

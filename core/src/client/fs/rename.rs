//! Moving an entry.
//!
//! A directory mustn't be moved below itself. Who moves one to another directory holds the rename
//! lock, under which no directory gets another parent, and walks up from both directories, with one
//! inode's lock at a time; only then come the locks of what is changed, in their order, and the
//! names are looked at again.
//!
//! What this module deliberately doesn't know: anything but names.

use super::access::{SEARCH, WRITE};
use super::locking::{Wanted, want};
use super::read::Found;
use super::{Pair, ROOT, Run, Stop, Walk};
use crate::client::op::{OpError, RenameMode, Reply};
use crate::format::Ino;
use crate::format::item::{FileKind, Inode, LINKS_MAX, Name};
use crate::format::key::{IndexKind, Key};
use crate::lock::{LockName, Mode};

/// What the mount excludes renames from: no inode.
const RENAMES: Ino = Ino(0);

/// What is asked for.
pub(super) struct Names<'n> {
    pub(super) dir: Ino,
    pub(super) name: Name<'n>,
    pub(super) to_dir: Ino,
    pub(super) to_name: Name<'n>,
    pub(super) mode: RenameMode,
}

/// What was found under all the locks.
struct Seen {
    source: Inode,
    /// The same as `source` if there is one directory.
    target: Inode,
    moved: (Found, Inode),
    replaced: Option<(Found, Inode)>,
}

fn is_directory(inode: &Inode) -> bool {
    inode.kind == FileKind::Directory
}

impl Run<'_, '_, '_, '_> {
    pub(super) fn rename(&mut self, names: &Names<'_>) -> Result<Reply, Stop> {
        loop {
            let mut wanted = Wanted::new();
            if self.task.walk.is_some() {
                self.exclude(RENAMES, true)?;
                want(&mut wanted, LockName::RENAME, Mode::Write);
            }
            let searched = match self.task.walk {
                Some(Walk::Over(pair, result)) => Some((pair, result)),
                Some(walk @ (Walk::Target(..) | Walk::Source(..))) => {
                    self.lock(wanted)?;
                    self.task.walk = Some(self.climb(names, walk)?);
                    continue;
                }
                None => None,
            };
            let known = self.task.pair;
            let moved = known.into_iter().flat_map(|pair| [Some(pair.ino), pair.other]).flatten();
            for ino in [names.dir, names.to_dir].into_iter().chain(moved) {
                want(&mut wanted, LockName::inode(ino), Mode::Write);
            }
            self.lock(wanted)?;
            let Some((found, replaced)) = self.find_both(names)? else {
                return Ok(Reply::Empty);
            };
            let pair = Pair { ino: found.ino, other: replaced.map(|found| found.ino) };
            if known != Some(pair) {
                self.task.pair = Some(pair);
                continue;
            }
            let kinds = [Some(found.kind), replaced.map(|found| found.kind)];
            if names.dir != names.to_dir && kinds.contains(&Some(FileKind::Directory)) {
                match searched {
                    Some((searched, result)) if searched == pair => result?,
                    Some(_) | None => {
                        self.task.walk = Some(Walk::Target(pair, names.to_dir));
                        continue;
                    }
                }
            }
            return self.rename_found(names, found, replaced);
        }
    }

    /// Goes one directory up.
    fn climb(&mut self, names: &Names<'_>, walk: Walk) -> Result<Walk, Stop> {
        let (pair, at, top) = match walk {
            Walk::Target(pair, at) if at == pair.ino => {
                return Ok(Walk::Over(pair, Err(OpError::Invalid)));
            }
            Walk::Source(pair, at) if Some(at) == pair.other => {
                let exchange = names.mode == RenameMode::Exchange;
                let error = if exchange { OpError::Invalid } else { OpError::NotEmpty };
                return Ok(Walk::Over(pair, Err(error)));
            }
            Walk::Target(pair, at) => (pair, at, Walk::Source(pair, names.dir)),
            Walk::Source(pair, at) => (pair, at, Walk::Over(pair, Ok(()))),
            Walk::Over(..) => return Ok(walk),
        };
        if at == ROOT {
            return Ok(top);
        }
        self.lock_inodes(&[(at, Mode::Read)])?;
        Ok(match (self.parent(at)?, walk) {
            (Some(parent), Walk::Target(..)) => Walk::Target(pair, parent),
            (Some(parent), Walk::Source(..) | Walk::Over(..)) => Walk::Source(pair, parent),
            // It has been removed, so nothing can be put into it any more.
            (None, _) => top,
        })
    }

    /// Both entries, if there is something to do.
    fn find_both(&mut self, names: &Names<'_>) -> Result<Option<(Found, Option<Found>)>, Stop> {
        let source = self.directory(names.dir)?;
        self.may(&source, SEARCH)?;
        let found = self.entry(names.dir, names.name)?;
        let target = self.directory(names.to_dir)?;
        self.may(&target, SEARCH)?;
        let replaced = self.entry(names.to_dir, names.to_name)?;
        let found = found.ok_or(OpError::NotFound)?;
        match (names.mode, replaced) {
            (RenameMode::NoReplace, Some(_)) => return Err(OpError::Exists.into()),
            (RenameMode::Exchange, None) => return Err(OpError::NotFound.into()),
            (RenameMode::Replace, _)
            | (RenameMode::NoReplace, None)
            | (RenameMode::Exchange, Some(_)) => {}
        }
        let same = replaced.is_some_and(|replaced| replaced.ino == found.ino);
        Ok((!same).then_some((found, replaced)))
    }

    fn rename_found(
        &mut self,
        names: &Names<'_>,
        found: Found,
        replaced: Option<Found>,
    ) -> Result<Reply, Stop> {
        let source = self.directory(names.dir)?;
        let target = self.directory(names.to_dir)?;
        let moved = self.find_inode(found.ino)?.ok_or(OpError::Io)?;
        let replaced = match replaced {
            Some(other) => Some((other, self.find_inode(other.ino)?.ok_or(OpError::Io)?)),
            None => None,
        };
        let seen = Seen { source, target, moved: (found, moved), replaced };
        self.check_rename(names, &seen)?;
        self.apply_rename(names, &seen)
    }

    fn check_rename(&self, names: &Names<'_>, seen: &Seen) -> Result<(), Stop> {
        let (_, moved) = &seen.moved;
        let moves_directory = is_directory(moved);
        let exchange = names.mode == RenameMode::Exchange;
        self.may_remove(&seen.source, moved, moves_directory)?;
        match &seen.replaced {
            None if seen.target.nlink == 0 => return Err(OpError::NotFound.into()),
            None => self.may(&seen.target, WRITE | SEARCH)?,
            Some((_, other)) => {
                let as_directory = if exchange { is_directory(other) } else { moves_directory };
                self.may_remove(&seen.target, other, as_directory)?;
            }
        }
        if names.dir != names.to_dir {
            if moves_directory {
                self.may(moved, WRITE)?;
            }
            if let Some((_, other)) = &seen.replaced
                && exchange
                && is_directory(other)
            {
                self.may(other, WRITE)?;
                if seen.source.nlink >= LINKS_MAX {
                    return Err(OpError::TooManyLinks.into());
                }
            }
            if moves_directory && seen.target.nlink >= LINKS_MAX {
                return Err(OpError::TooManyLinks.into());
            }
        }
        match &seen.replaced {
            Some((_, other)) if !exchange && moves_directory && other.size != 0 => {
                Err(OpError::NotEmpty.into())
            }
            Some(_) | None => Ok(()),
        }
    }

    fn apply_rename(&mut self, names: &Names<'_>, seen: &Seen) -> Result<Reply, Stop> {
        let (found, inode) = &seen.moved;
        let one = names.dir == names.to_dir;
        let exchange = names.mode == RenameMode::Exchange;
        self.fs.changes.clear();
        // With one directory, everything happens to `target`.
        let (mut source, mut target) = (seen.source, seen.target);
        let mut moved = *inode;
        moved.ctime = self.now;
        let mut other = seen.replaced;
        let mut last = None;
        if let Some((gone, inode)) = &mut other {
            self.drop_entry(names.to_dir, &mut target, names.to_name, gone)?;
            if exchange {
                inode.ctime = self.now;
            } else if self.drop_name(&mut target, inode)? {
                last = Some(gone.ino);
            }
        }
        let from = if one { &mut target } else { &mut source };
        self.drop_entry(names.dir, from, names.name, found)?;
        self.add_entry(names.to_dir, &mut target, names.to_name, found.ino, found.kind)?;
        if !one && is_directory(&moved) {
            source.nlink = source.nlink.checked_sub(1).ok_or(OpError::Io)?;
            target.nlink += 1;
        }
        if let (Some((back, inode)), true) = (&other, exchange) {
            let to = if one { &mut target } else { &mut source };
            self.add_entry(names.dir, to, names.name, back.ino, back.kind)?;
            if !one && is_directory(inode) {
                target.nlink = target.nlink.checked_sub(1).ok_or(OpError::Io)?;
                source.nlink += 1;
            }
        }
        let olds = [Some(&seen.target), Some(inode)];
        let more = [seen.replaced.as_ref().map(|(_, inode)| inode), (!one).then_some(&seen.source)];
        let olds: heapless::Vec<_, 4> =
            olds.into_iter().chain(more).flatten().map(|inode| (Some(inode), false)).collect();
        let mut wanted = self.indices(&olds);
        if let Some(last) = last {
            want(&mut wanted, LockName::index(IndexKind::Orphan, last.0), Mode::WriteOnly);
            self.fs.changes.create_blind(Key::orphan(last));
        }
        self.lock(wanted)?;
        self.rewrite_inode(names.to_dir, &seen.target, target, false);
        if !one {
            self.rewrite_inode(names.dir, &seen.source, source, false);
        }
        self.rewrite_inode(found.ino, inode, moved, false);
        if let (Some((gone, old)), Some((_, new))) = (&seen.replaced, &other) {
            self.rewrite_inode(gone.ino, old, *new, false);
        }
        self.commit()?;
        if let Some(last) = last {
            self.fs.table.lose_names(last);
        }
        Ok(Reply::Empty)
    }
}

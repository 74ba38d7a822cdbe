//! Who may do what. The rules stand in [`op`](crate::client::op).
//!
//! What this module deliberately doesn't know: operations.

use super::{Run, Stop};
use crate::client::op::OpError;
use crate::format::item::{FileKind, Inode};

pub(super) const SET_UID: u16 = 0o4000;
pub(super) const SET_GID: u16 = 0o2000;
pub(super) const STICKY: u16 = 0o1000;
pub(super) const READ: u8 = 4;
pub(super) const WRITE: u8 = 2;
pub(super) const SEARCH: u8 = 1;

const GROUP_EXECUTE: u16 = 0o010;
const ANY_EXECUTE: u16 = 0o111;

impl Run<'_, '_, '_, '_> {
    pub(super) fn is_root(&self) -> bool {
        self.caller.uid == 0
    }

    /// Whether the caller is in the group; stops to ask if it isn't known.
    pub(super) fn is_member(&self, gid: u32) -> Result<bool, Stop> {
        if self.is_root() { Ok(true) } else { self.caller.is_member(gid).ok_or(Stop::Ask(gid)) }
    }

    pub(super) fn is_owner(&self, inode: &Inode) -> bool {
        self.is_root() || self.caller.uid == inode.uid
    }

    /// Whether the caller has all the permissions in the mask.
    pub(super) fn may(&self, inode: &Inode, mask: u8) -> Result<(), Stop> {
        let bits = inode.permissions;
        let bits = if self.is_root() {
            let executable = inode.kind == FileKind::Directory || bits & ANY_EXECUTE != 0;
            READ | WRITE | if executable { SEARCH } else { 0 }
        } else if self.caller.uid == inode.uid {
            (bits >> 6) as u8
        } else if self.group_matters(bits, mask) && self.is_member(inode.gid)? {
            (bits >> 3) as u8
        } else {
            bits as u8
        };
        if bits & mask == mask { Ok(()) } else { Err(OpError::AccessDenied.into()) }
    }

    /// Whether the answer differs between members of the group and others.
    fn group_matters(&self, bits: u16, mask: u8) -> bool {
        let grants = |bits: u8| bits & mask == mask;
        grants((bits >> 3) as u8) != grants(bits as u8)
    }

    /// Clears set-user-ID, and set-group-ID where it would give something away.
    pub(super) fn strip(&self, inode: &mut Inode) -> Result<(), Stop> {
        let bits = &mut inode.permissions;
        *bits &= !SET_UID;
        if *bits & SET_GID != 0 && (*bits & GROUP_EXECUTE != 0 || !self.is_member(inode.gid)?) {
            *bits &= !SET_GID;
        }
        Ok(())
    }

    /// Whether the caller may take an entry out of the directory, as that of a directory or not.
    pub(super) fn may_remove(
        &self,
        dir: &Inode,
        inode: &Inode,
        as_directory: bool,
    ) -> Result<(), Stop> {
        self.may(dir, WRITE | SEARCH)?;
        let sticky = dir.permissions & STICKY != 0;
        if sticky && !self.is_owner(dir) && !self.is_owner(inode) {
            return Err(OpError::NotPermitted.into());
        }
        match (as_directory, inode.kind == FileKind::Directory) {
            (true, false) => Err(OpError::NotDirectory.into()),
            (false, true) => Err(OpError::IsDirectory.into()),
            (true, true) | (false, false) => Ok(()),
        }
    }

    /// Permissions and group of what is made in this directory.
    pub(super) fn inherit(
        &self,
        parent: &Inode,
        kind: FileKind,
        asked: u16,
        masked: u16,
    ) -> Result<(u16, u32), Stop> {
        if parent.permissions & SET_GID == 0 {
            return Ok((masked, self.caller.gid));
        }
        if kind == FileKind::Directory {
            return Ok((masked | SET_GID, parent.gid));
        }
        let given = masked & SET_GID != 0 && asked & GROUP_EXECUTE != 0;
        let taken = given && !self.is_member(parent.gid)?;
        Ok((if taken { masked & !SET_GID } else { masked }, parent.gid))
    }
}

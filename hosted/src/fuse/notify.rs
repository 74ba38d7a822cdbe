//! What the kernel is told to forget. Each call may wait inside the kernel for requests under way;
//! `KERNEL.md` says for which.

use super::device::Device;
use super::wire::{self, OutHeader, notify};
use outrider_core::client::op::NameBuf;
use outrider_core::format::Ino;
use rustix::io::Errno;
use std::io::{self, IoSlice};
use std::sync::Arc;
use zerocopy::IntoBytes;

/// Sends notifications. Not for threads that read requests.
#[derive(Debug, Clone)]
pub struct Notifier(pub(super) Arc<Device>);

/// What a notification found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notified {
    /// The kernel has forgotten it.
    Forgotten,
    /// The kernel didn't know the inode or the name. Its first answer may still be on the way to
    /// it.
    Unknown,
}

impl Notifier {
    /// Attributes of an inode.
    pub fn drop_attributes(&self, ino: Ino) -> io::Result<Notified> {
        let args = wire::InvalInodeOut { ino: ino.0, off: -1, len: 0 };
        self.send(notify::INVAL_INODE, &[args.as_bytes()])
    }

    /// Attributes of an inode, and all its pages; dirty ones are written first.
    pub fn drop_pages(&self, ino: Ino) -> io::Result<Notified> {
        let args = wire::InvalInodeOut { ino: ino.0, off: 0, len: 0 };
        self.send(notify::INVAL_INODE, &[args.as_bytes()])
    }

    /// A name. What is mounted on or below it is unmounted.
    pub fn drop_entry(&self, dir: Ino, name: &NameBuf) -> io::Result<Notified> {
        self.send_entry(dir, name, 0)
    }

    /// That a name is still valid: it is looked up before its next use.
    pub fn expire_entry(&self, dir: Ino, name: &NameBuf) -> io::Result<Notified> {
        self.send_entry(dir, name, notify::EXPIRE_ONLY)
    }

    /// A name, because it was removed: processes that watch it are told.
    pub fn delete_entry(&self, dir: Ino, name: &NameBuf, child: Ino) -> io::Result<Notified> {
        let namelen = name.bytes().len() as u32;
        let args = wire::DeleteOut { parent: dir.0, child: child.0, namelen, padding: 0 };
        self.send(notify::DELETE, &[args.as_bytes(), name.bytes(), b"\0"])
    }

    /// That any name is still valid. Never waits. What is mounted below is unmounted when it is
    /// next walked through. Fails on kernels before Linux 6.16.
    pub fn expire_all(&self) -> io::Result<Notified> {
        self.send(notify::INC_EPOCH, &[])
    }

    fn send_entry(&self, dir: Ino, name: &NameBuf, flags: u32) -> io::Result<Notified> {
        let namelen = name.bytes().len() as u32;
        let args = wire::InvalEntryOut { parent: dir.0, namelen, flags };
        self.send(notify::INVAL_ENTRY, &[args.as_bytes(), name.bytes(), b"\0"])
    }

    fn send(&self, code: i32, parts: &[&[u8]]) -> io::Result<Notified> {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        let len = (size_of::<OutHeader>() + bytes) as u32;
        let header = OutHeader { len, error: code, unique: 0 };
        let mut slices = vec![IoSlice::new(header.as_bytes())];
        slices.extend(parts.iter().map(|part| IoSlice::new(part)));
        match self.0.write(&slices) {
            Ok(()) => Ok(Notified::Forgotten),
            Err(Errno::NOENT) => Ok(Notified::Unknown),
            Err(error) => Err(error.into()),
        }
    }
}

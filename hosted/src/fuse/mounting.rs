//! Mount points: how one comes to be, and how it goes away.
//!
//! # Invariants
//!
//! * Only our own mount is ever unmounted: it is known by the number of its device, because another
//!   may lie at, or over, the same path.
//!
//! A mount whose process died (also by SIGKILL) answers ENOTCONN to everything; `umount -l`, or
//! `fusermount3 -u -z` for a user, takes it away, and mounting over it says so.

use crate::mounts::mounts;
use rustix::cmsg_space;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::ffi::CString;
use std::fs;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How a file system is mounted.
#[derive(Debug, Clone)]
pub struct Options {
    /// What stands in the first column of the table of mounts.
    pub source: String,
    /// Nothing can be changed through it.
    pub read_only: bool,
    /// Users other than the one who mounts get in, with the permissions they have. Off is for
    /// experiments: the mount of a disk is for everybody.
    pub allow_other: bool,
    /// Device files don't work. Off when root mounts, as with other disk file systems: whoever can
    /// write the shared device is trusted anyway. A user's mount always has it.
    pub nodev: bool,
    /// Set-user-ID has no effect. As [`nodev`](Self::nodev).
    pub nosuid: bool,
    /// Nothing can be executed.
    pub noexec: bool,
    /// Threads that read requests.
    pub readers: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            source: "outrider".to_owned(),
            read_only: false,
            allow_other: true,
            nodev: false,
            nosuid: false,
            noexec: false,
            readers: 2,
        }
    }
}

/// A mount point of ours.
#[derive(Debug)]
pub(super) struct MountPoint {
    path: PathBuf,
    /// `major:minor` of the device the kernel made for it.
    device: String,
    by_helper: bool,
}

/// A way to take a mount away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Detach {
    /// Unless something in it is in use.
    IfIdle,
    /// From the tree at once; it lives on for those who use it.
    Lazily,
}

/// Mounts at an existing directory, and gives the connection to the kernel.
pub(super) fn attach(at: &Path, options: &Options) -> io::Result<(OwnedFd, MountPoint)> {
    let path = fs::canonicalize(at)?;
    match rustix::fs::stat(&path) {
        Err(Errno::NOTCONN) => {
            let left = format!(
                "{0}: a mount whose process has died is still here; `umount -l {0}` removes it",
                path.display()
            );
            return Err(io::Error::new(io::ErrorKind::NotConnected, left));
        }
        stat => drop(stat?),
    }
    let (device, by_helper) = match attach_as_root(&path, options) {
        Err(Errno::PERM | Errno::ACCESS) => (attach_by_helper(&path, options)?, true),
        attached => (attached?, false),
    };
    // It is there: nobody else can have mounted over it before the first request is answered,
    // because the path can't be walked until then.
    let number = device_at(&path)?.ok_or(Errno::NOENT)?;
    Ok((device, MountPoint { path, device: number, by_helper }))
}

fn attach_as_root(path: &Path, options: &Options) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let device = rustix::fs::open("/dev/fuse", flags, Mode::empty())?;
    let mut data = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    if options.allow_other {
        data.push_str(",allow_other");
    }
    let data = CString::new(data).expect("there is no NUL in it");
    let flags = [
        (options.read_only, MountFlags::RDONLY),
        (options.nodev, MountFlags::NODEV),
        (options.nosuid, MountFlags::NOSUID),
        (options.noexec, MountFlags::NOEXEC),
    ];
    let flags = flags.into_iter().filter(|(on, _)| *on).map(|(_, flag)| flag).collect();
    mount(options.source.as_str(), path, "fuse.outrider", flags, data.as_c_str())?;
    Ok(device)
}

/// Users mount through the set-user-ID program of the package fuse3, which hands the connection
/// back through a socket: here its standard input.
fn attach_by_helper(path: &Path, options: &Options) -> io::Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut list = format!("fsname={},subtype=outrider,nodev,nosuid", options.source);
    for (on, option) in [
        (options.read_only, ",ro"),
        (options.noexec, ",noexec"),
        (options.allow_other, ",allow_other"),
    ] {
        list.push_str(if on { option } else { "" });
    }
    let child = Command::new("fusermount3")
        .args(["-o", &list, "--"])
        .arg(path)
        .env("_FUSE_COMMFD", "0")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), "mounting as a user needs fusermount3"))?;
    let received = receive_descriptor(&ours);
    let output = child.wait_with_output()?;
    match received? {
        Some(device) => Ok(device),
        None => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(io::Error::new(io::ErrorKind::PermissionDenied, said))
        }
    }
}

fn receive_descriptor(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0; 1];
    let mut space = [std::mem::MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut byte)];
    recvmsg(socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok(descriptors.next().and_then(|mut descriptors| descriptors.next()))
}

impl MountPoint {
    /// Whether our mount is what is found at the path.
    fn is_there(&self) -> io::Result<bool> {
        Ok(device_at(&self.path)?.as_ref() == Some(&self.device))
    }

    /// Takes the mount from the tree. Nothing happens if it isn't there any more.
    pub(super) fn detach(&self, how: Detach) -> io::Result<()> {
        if !self.is_there()? {
            return Ok(());
        }
        if self.by_helper {
            return self.detach_by_helper(how);
        }
        let flags = match how {
            Detach::IfIdle => UnmountFlags::NOFOLLOW,
            Detach::Lazily => UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
        };
        Ok(unmount(&self.path, flags)?)
    }

    fn detach_by_helper(&self, how: Detach) -> io::Result<()> {
        let mut command = Command::new("fusermount3");
        command.args(["-u", "-q"]);
        if how == Detach::Lazily {
            command.arg("-z");
        }
        if command.arg("--").arg(&self.path).status()?.success() {
            return Ok(());
        }
        Err(Errno::BUSY.into())
    }

    /// Ends the connection: everything under way, and everything that comes later, fails. Doesn't
    /// touch the tree of the mount, so it works whatever hangs in there.
    pub(super) fn abort(&self) -> io::Result<()> {
        let minor = self.device.split_once(':').map_or("", |(_, minor)| minor);
        match fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), "1") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            aborted => return aborted,
        }
        if !self.is_there()? {
            return Ok(());
        }
        match unmount(&self.path, UnmountFlags::NOFOLLOW | UnmountFlags::FORCE) {
            // Whoever uses it keeps it in the tree; the connection has ended all the same.
            Err(Errno::BUSY) => Ok(()),
            result => Ok(result?),
        }
    }
}

/// `major:minor` of what is mounted on top at the path, if anything is, from the table of mounts:
/// asking the path itself could wait for the mount.
fn device_at(path: &Path) -> io::Result<Option<String>> {
    let there = mounts()?.into_iter().rfind(|mount| mount.path == path);
    Ok(there.map(|mount| mount.device))
}

#[cfg(test)]
mod tests {
    use super::device_at;
    use std::path::Path;

    #[test]
    fn the_table_of_mounts_is_read() {
        assert!(device_at(Path::new("/proc")).unwrap().is_some());
        assert_eq!(device_at(Path::new("/proc/self")).unwrap(), None);
    }
}

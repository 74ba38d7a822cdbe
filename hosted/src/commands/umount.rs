//! `outrider umount`: unmounts, and waits until the mount has left the volume.
//!
//! What this module deliberately doesn't know: what leaving takes. The mount's process does that,
//! whoever unmounts.

use super::Failure;
use super::device::system;
use clap::Args;
use outrider_hosted::mount::PID_XATTR;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Unmount, and wait until the mount has left the volume: all is written, and nothing is lent to it
/// any more.
///
/// umount(8) and fusermount3 -u unmount, too, and return while the mount still leaves.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Detach it now, also when it is in use; it leaves when nobody uses it any more, which is not
    /// waited for.
    #[arg(short = 'l')]
    lazy: bool,
    /// End everything that is under way in it with an error.
    #[arg(short = 'f')]
    force: bool,
    /// Where it is mounted.
    dir: PathBuf,
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let dir = std::fs::canonicalize(&options.dir);
    let dir = dir.map_err(|error| system(&options.dir, "unmount", &error))?;
    // Held before it is unmounted: its number may mean another process afterwards.
    let process = pidfd_open(daemon(&dir)?, PidfdFlags::empty());
    let mut flags = UnmountFlags::NOFOLLOW;
    if options.lazy {
        flags |= UnmountFlags::DETACH;
    }
    if options.force {
        flags |= UnmountFlags::FORCE;
    }
    match unmount(&dir, flags) {
        Err(Errno::PERM) => unmount_by_helper(&dir, options.lazy)?,
        Err(Errno::BUSY) => {
            let name = dir.display();
            let what = format!("{name} is in use; end what uses it (fuser -m {name} lists it)");
            return Err(Failure::new(what));
        }
        result => result.map_err(|error| system(&dir, "unmount", &error.into()))?,
    }
    match process {
        // It has ended already.
        Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(system(&dir, "wait for the mount of", &error.into())),
        Ok(_) if options.lazy => Ok(()),
        Ok(process) => loop {
            match poll(&mut [PollFd::new(&process, PollFlags::IN)], None) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(system(&dir, "wait for the mount of", &error.into())),
            }
        },
    }
}

/// The process of the mount.
fn daemon(dir: &Path) -> Result<Pid, Failure> {
    let mut told = [0; 16];
    let len = match rustix::fs::getxattr(dir, PID_XATTR, &mut told) {
        Ok(len) => len,
        Err(Errno::NOTCONN) => {
            let name = dir.display();
            let what = format!("the process of the mount at {name} is gone; umount -l {name}");
            return Err(Failure::new(what));
        }
        Err(_) => 0,
    };
    let told = std::str::from_utf8(&told[..len]).ok().and_then(|told| told.parse().ok());
    told.and_then(Pid::from_raw).ok_or_else(|| {
        Failure::new(format!("{} is not where an Outrider volume is mounted", dir.display()))
    })
}

fn unmount_by_helper(dir: &Path, lazy: bool) -> Result<(), Failure> {
    let mut command = Command::new("fusermount3");
    command.args(if lazy { &["-u", "-z", "--"][..] } else { &["-u", "--"] }).arg(dir);
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error: io::Error| {
        Failure::new(format!("unmounting as a user needs fusermount3: {error}"))
    })?;
    if output.status.success() {
        return Ok(());
    }
    Err(Failure::new(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

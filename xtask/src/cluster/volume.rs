//! The volume of a cluster: found or made, and what its super block says.

use crate::tools::{Failure, free_ports, output, succeed};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::{FlockOperation, OFlags, flock, fstatfs};
use std::fs::{File, OpenOptions};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a guest's process holds as long as these are open in it.
pub(crate) struct Held {
    pub(crate) files: [File; 2],
    /// Whoever uses the slot anywhere would hold the same.
    pub(crate) everywhere: bool,
}

/// A volume that servers can use.
pub(crate) struct Volume {
    pub(crate) path: PathBuf,
    fsid: String,
    /// Where the voters of slots 0, 1, ... listen.
    pub(crate) voters: Vec<SocketAddr>,
}

impl Volume {
    /// Looks at the volume, after making it if there is none, and finds these many voters.
    pub(crate) fn prepare(
        outrider: &Path,
        path: &Path,
        size: &str,
        slots: u8,
    ) -> Result<Volume, Failure> {
        if !path.exists() {
            make(outrider, path, size, slots, &[])?;
        }
        let path = path.canonicalize().map_err(|error| fail(path, &error))?;
        let mut print = Command::new(outrider);
        print.args(["print", "--json"]).arg(&path).arg("super");
        let text = output("outrider print", &mut print)?;
        let wrong = || Failure::new("outrider print does not say what is expected of it");
        let json: serde_json::Value = serde_json::from_str(&text).map_err(|_| wrong())?;
        let fsid = json["super"]["fsid"].as_str().ok_or_else(wrong)?.to_owned();
        let voter = |slot: u8| {
            let at = json["super"]["voters"][slot.to_string()].as_str();
            let at = at.and_then(|at| at.parse::<SocketAddr>().ok());
            at.filter(|at| at.ip().is_loopback()).ok_or_else(|| {
                Failure(format!(
                    "{} has no voter with a loopback address in slot {slot}; ask for fewer \
                     --slots, or make it with outrider mkfs -Q {slot},127.0.0.1,PORT",
                    path.display()
                ))
            })
        };
        let voters = (0..slots).map(voter).collect::<Result<_, _>>()?;
        Ok(Volume { path, fsid, voters })
    }

    /// Whether it can be read and written directly, as every user of it on this machine then does.
    pub(crate) fn is_direct(&self) -> bool {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(OFlags::DIRECT.bits().cast_signed());
        options.open(&self.path).is_ok()
    }

    /// Takes hold of a slot of the volume for a guest on this machine, and of the volume, so that
    /// nobody makes another one of it. Whoever has the files open holds them: they are passed on to
    /// the guest's process, and so held until that has ended, with all its transfers, even if this
    /// process is killed before.
    pub(crate) fn hold(&self, slot: u8) -> Result<Held, Failure> {
        let volume = File::options().read(true).write(true).open(&self.path);
        let volume = volume.map_err(|error| fail(&self.path, &error))?;
        flock(&volume, FlockOperation::NonBlockingLockShared).map_err(|_| {
            Failure(format!("{} is in use; stop what uses it first", self.path.display()))
        })?;
        let dir = Path::new("/run/lock");
        let dir = if dir.is_dir() { dir.to_path_buf() } else { std::env::temp_dir() };
        let path = dir.join(format!("outrider-guest-{}-{slot}", self.fsid));
        let mut options = OpenOptions::new();
        let file = options.create(true).write(true).truncate(false).open(&path);
        let file = file.map_err(|error| fail(&path, &error))?;
        let in_use = || {
            Failure(format!(
                "slot {slot} of {} is in use on this machine; stop that first",
                self.path.display()
            ))
        };
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| in_use())?;
        let everywhere = self.lock_in_file(&volume, slot).ok_or_else(in_use)?;
        Ok(Held { files: [volume, file], everywhere })
    }

    /// Locks the slot in the volume's file as `outrider server` does: whether that proves that
    /// nobody has the slot anywhere. None: somebody has it.
    fn lock_in_file(&self, volume: &File, slot: u8) -> Option<bool> {
        // Those of ext, XFS, Btrfs and F2FS, and what is in memory or laid over these.
        const LOCAL: [u32; 6] =
            [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0x0102_1994, 0x794c_7630];
        let local = fstatfs(volume).ok().and_then(|found| u32::try_from(found.f_type).ok());
        if !local.is_some_and(|local| LOCAL.contains(&local)) || !self.path.is_file() {
            return Some(false);
        }
        let lock = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: (1 << 62) + i64::from(slot),
            l_len: 1,
            l_pid: 0,
        };
        match fcntl(volume, FcntlArg::F_OFD_SETLK(&lock)) {
            Ok(_) => Some(true),
            Err(Errno::EAGAIN | Errno::EACCES) => None,
            Err(_) => Some(false),
        }
    }
}

/// Makes it, with more options of mkfs.
pub(crate) fn make(
    outrider: &Path,
    path: &Path,
    size: &str,
    slots: u8,
    more: &[&str],
) -> Result<(), Failure> {
    let mut mkfs = Command::new(outrider);
    mkfs.args(["mkfs", "-s", size]).args(more);
    for (slot, port) in free_ports(slots.into())?.into_iter().enumerate() {
        mkfs.arg("-Q").arg(format!("{slot},127.0.0.1,{port}"));
    }
    succeed("outrider mkfs", mkfs.arg(path))
}

fn fail(path: &Path, error: &std::io::Error) -> Failure {
    Failure(format!("{}: {error}", path.display()))
}

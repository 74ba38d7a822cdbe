//! Who a voter on this host is, and that no other voter of its slot runs beside it.
//!
//! A voter may follow another in its slot only when all I/O of the one before has ended. On the
//! same host that is known without an operator's word: see [`SlotLock`]. So a voter that was killed
//! is back at once. If the volume is a file, [`lock_in_file`] proves more.
//!
//! # Invariants
//!
//! * A host's name on a volume is the same after a reboot, and tells nobody who doesn't know it
//!   already the machine's id: it is that id, hashed with the volume's. Hosts must not share a
//!   machine id: containers share one only together with the network namespace, copies of a virtual
//!   machine not at all (`systemd-machine-id-setup`).
//! * A machine without an id is named after its boot: it knows itself until the next reboot, after
//!   which somebody has to vouch for a voter that was not stopped in good order.
//!
//! What this module deliberately doesn't know: the election.

use crate::clock::SystemEntropy;
use blake2::{Blake2s256, Digest};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use outrider_core::format::quorum::{BootId, HostId, Incarnation, Slot};
use outrider_core::format::super_block::Super;
use outrider_core::format::wire::greeting::Machine;
use outrider_core::quorum::{Exclusion, Identity, Vouched};
use outrider_hal::Entropy;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;

/// Where the machine's id may stand: 32 hexadecimal digits, see machine-id(5).
const MACHINE_ID: [&str; 2] = ["/etc/machine-id", "/var/lib/dbus/machine-id"];
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Sockets with a name: a line for each.
const SOCKETS: &str = "/proc/net/unix";

/// Who a voter is that starts here and now.
///
/// # Errors
///
/// If the system doesn't tell its boot's id.
pub fn identity(
    volume: &Super,
    entropy: &mut SystemEntropy,
    vouched: Vouched,
    exclusion: Exclusion,
) -> io::Result<Identity> {
    let Machine { host, boot } = machine(volume)?;
    let (mut incarnation, mut seed) = ([0; 16], [0; 8]);
    entropy.fill(&mut incarnation);
    entropy.fill(&mut seed);
    Ok(Identity {
        incarnation: Incarnation(incarnation),
        host,
        boot,
        exclusion,
        vouched,
        seed: u64::from_le_bytes(seed),
    })
}

/// What this machine is called on a volume, and its boot.
///
/// # Errors
///
/// If the system doesn't tell its boot's id.
pub fn machine(volume: &Super) -> io::Result<Machine> {
    let boot = fs::read_to_string(BOOT_ID)?;
    let boot = parse_id(&boot).ok_or(ErrorKind::InvalidData)?;
    let id = MACHINE_ID.iter().find_map(|path| parse_id(&fs::read_to_string(path).ok()?));
    let host = HostId(digest(b"outrider host", volume, &id.unwrap_or(boot)));
    Ok(Machine { host, boot: BootId(boot) })
}

/// An id as 32 hexadecimal digits.
#[must_use]
pub fn show_id(id: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(id))
}

/// 32 hexadecimal digits, with or without the dashes of a UUID, and not all zero.
fn parse_id(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    if digits.len() != 32 || !digits.chars().all(|c| c.is_ascii_hexdigit()) {
        return None;
    }
    let id = u128::from_str_radix(&digits, 16).ok()?;
    (id != 0).then(|| id.to_be_bytes())
}

/// Something that is different on each volume, and that only who can read the volume can make.
fn digest(purpose: &[u8], volume: &Super, what: &[u8]) -> [u8; 16] {
    let mut hash = Blake2s256::new();
    hash.update(purpose);
    hash.update(volume.fsid().to_le_bytes());
    hash.update(volume.fields().cluster_key);
    hash.update(what);
    let digest = hash.finalize();
    std::array::from_fn(|at| digest[at])
}

/// The right to run a voter in a slot of a volume on this host, for one process at a time.
///
/// It is a socket with an abstract name. So it needs no directory and no permission, leaves nothing
/// behind, and the system takes it back only when the last thread of the process has ended: none of
/// the process's transfers is under way any more by then, also not after SIGKILL.
#[derive(Debug)]
pub struct SlotLock {
    _held: UnixDatagram,
}

impl SlotLock {
    /// Takes it; `None` if another process has it.
    ///
    /// # Errors
    ///
    /// If the system has no sockets to give.
    pub fn take(volume: &Super, slot: Slot) -> io::Result<Option<SlotLock>> {
        let name = slot_name(volume, slot);
        match UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name)?) {
            Ok(held) => Ok(Some(SlotLock { _held: held })),
            Err(error) if error.kind() == ErrorKind::AddrInUse => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn slot_name(volume: &Super, slot: Slot) -> String {
    let name = digest(b"outrider slot", volume, &[slot.number()]);
    format!("outrider/{:032x}", u128::from_be_bytes(name))
}

/// Those of these slots that are taken on this host, as long as nobody takes or leaves one.
///
/// # Errors
///
/// If the system doesn't tell its sockets.
pub fn slots_held(volume: &Super, slots: impl Iterator<Item = Slot>) -> io::Result<Vec<Slot>> {
    let sockets = fs::read(SOCKETS)?;
    let sockets = String::from_utf8_lossy(&sockets);
    // An abstract name stands last in its line, behind an @.
    let names: Vec<&str> =
        sockets.lines().filter_map(|line| line.rsplit_once(" @")).map(|(_, name)| name).collect();
    Ok(slots.filter(|slot| names.contains(&slot_name(volume, *slot).as_str())).collect())
}

/// File systems that no other kernel uses at the same time, so that whoever opens a file meets all
/// locks on it: those of ext, XFS, Btrfs and F2FS, and what is in memory or laid over these.
const LOCAL: [u32; 6] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0x0102_1994, 0x794c_7630];
/// Where a volume's file is locked for its slot 0; those of the others follow. Nothing is there.
const SLOT_BYTES: i64 = 1 << 62;

/// What locking a slot in the volume's file has come to.
#[derive(Debug)]
pub enum FileLock {
    /// Nobody who can use the volume has the slot as long as this is open, here or in a process
    /// that it was passed on to. It counts for images that are run from the file too.
    Held(File),
    /// Somebody else has it.
    InUse,
    /// The volume is no file, or other kernels may use it: a lock would prove nothing.
    Unproven,
}

/// Locks a slot in the file that the volume is. As of [`SlotLock`], the system takes the lock back
/// only when the last thread of the last process that holds it has ended.
///
/// # Errors
///
/// If the file can't be opened or locked.
pub fn lock_in_file(path: &Path, slot: Slot) -> io::Result<FileLock> {
    let file = File::options().read(true).write(true).open(path)?;
    let local = u32::try_from(rustix::fs::fstatfs(&file)?.f_type).is_ok_and(|t| LOCAL.contains(&t));
    if !local || !file.metadata()?.is_file() {
        return Ok(FileLock::Unproven);
    }
    let lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: SLOT_BYTES + i64::from(slot.number()),
        l_len: 1,
        l_pid: 0,
    };
    match fcntl(&file, FcntlArg::F_OFD_SETLK(&lock)) {
        Ok(_) => Ok(FileLock::Held(file)),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(FileLock::InUse),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::{FileLock, SlotLock, identity, lock_in_file, parse_id, slots_held};
    use crate::clock::SystemEntropy;
    use outrider_core::format::quorum::Slot;
    use outrider_core::format::super_block::{ClusterLimits, Identity, Super};
    use outrider_core::quorum::{Exclusion, Vouched};
    use outrider_hal::Endpoint;
    use std::net::Ipv4Addr;

    fn volume(fsid: u64) -> Super {
        let addr = Ipv4Addr::LOCALHOST.to_ipv6_mapped();
        Super::new(&Identity {
            fsid,
            uuid: [1; 16],
            label: [0; 64],
            blocks: 1 << 20,
            crc_seed: 1,
            name_key: [0; 16],
            cluster_key: std::array::from_fn(|at| at as u8),
            voters: [Some(Endpoint { addr, port: 1 }); 7],
            limits: ClusterLimits::standard(),
        })
        .unwrap()
    }

    #[test]
    fn a_host_is_itself_on_one_volume_and_somebody_else_on_another() {
        let mut entropy = SystemEntropy::open().unwrap();
        let mut who = |fsid| {
            identity(&volume(fsid), &mut entropy, Vouched::Nothing, Exclusion::Host).unwrap()
        };
        let (first, second, elsewhere) = (who(1), who(1), who(2));
        assert_eq!((first.host, first.boot), (second.host, second.boot));
        assert_ne!(first.incarnation, second.incarnation);
        assert_ne!(first.host, elsewhere.host);
    }

    #[test]
    fn only_an_id_is_an_id() {
        let id = Some([0xab; 16]);
        assert_eq!(parse_id(&"ab".repeat(16)), id);
        assert_eq!(parse_id("abababab-abab-abab-abab-abababababab\n"), id);
        for wrong in ["", "uninitialized\n", &"0".repeat(32), &"g".repeat(32), &"a".repeat(31)] {
            assert_eq!(parse_id(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_slot_is_held_by_one_at_a_time() {
        let [one, other] = [Slot::new(0).unwrap(), Slot::new(1).unwrap()];
        let volume = volume(u64::from(std::process::id()));
        let held = SlotLock::take(&volume, one).unwrap();
        assert!(held.is_some());
        assert_eq!(slots_held(&volume, [one, other].into_iter()).unwrap(), [one]);
        assert!(SlotLock::take(&volume, one).unwrap().is_none());
        assert!(SlotLock::take(&volume, other).unwrap().is_some());
        drop(held);
        assert!(SlotLock::take(&volume, one).unwrap().is_some());
    }

    #[test]
    fn a_slot_of_a_file_is_held_by_one_at_a_time_and_nowhere_else_is_it_said_to_be() {
        let [one, other] = [Slot::new(0).unwrap(), Slot::new(1).unwrap()];
        let file = tempfile::NamedTempFile::new().unwrap();
        let lock = |slot| lock_in_file(file.path(), slot).unwrap();
        let FileLock::Held(held) = lock(one) else { panic!("this is no local file system") };
        assert!(matches!(lock(one), FileLock::InUse));
        assert!(matches!(lock(other), FileLock::Held(_)));
        let passed_on = held.try_clone().unwrap();
        drop(held);
        assert!(matches!(lock(one), FileLock::InUse));
        drop(passed_on);
        assert!(matches!(lock(one), FileLock::Held(_)));
        let device = lock_in_file(std::path::Path::new("/dev/null"), one).unwrap();
        assert!(matches!(device, FileLock::Unproven));
    }
}

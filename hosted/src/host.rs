//! Who a voter on this host is, and that no other voter of its slot runs beside it.
//!
//! A voter may follow another in its slot only when all I/O of the one before has ended. On the
//! same host that is known without an operator's word: see [`SlotLock`]. So a voter that was killed
//! is back as soon as it has watched its slot for a lease.
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
use outrider_core::format::quorum::{BootId, HostId, Incarnation, Slot};
use outrider_core::format::super_block::Super;
use outrider_core::quorum::{Identity, Vouched};
use outrider_hal::Entropy;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Where the machine's id may stand: 32 hexadecimal digits, see machine-id(5).
const MACHINE_ID: [&str; 2] = ["/etc/machine-id", "/var/lib/dbus/machine-id"];
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Who a voter is that starts here and now.
///
/// # Errors
///
/// If the system doesn't tell its boot's id.
pub fn identity(
    volume: &Super,
    entropy: &mut SystemEntropy,
    vouched: Vouched,
) -> io::Result<Identity> {
    let boot = fs::read_to_string(BOOT_ID)?;
    let boot = parse_id(&boot).ok_or(ErrorKind::InvalidData)?;
    let machine = MACHINE_ID.iter().find_map(|path| parse_id(&fs::read_to_string(path).ok()?));
    let (mut incarnation, mut seed) = ([0; 16], [0; 8]);
    entropy.fill(&mut incarnation);
    entropy.fill(&mut seed);
    Ok(Identity {
        incarnation: Incarnation(incarnation),
        host: HostId(digest(b"outrider host", volume, &machine.unwrap_or(boot))),
        boot: BootId(boot),
        vouched,
        seed: u64::from_le_bytes(seed),
    })
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
        let name = digest(b"outrider slot", volume, &[slot.number()]);
        let name = format!("outrider/{:032x}", u128::from_be_bytes(name));
        match UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name)?) {
            Ok(held) => Ok(Some(SlotLock { _held: held })),
            Err(error) if error.kind() == ErrorKind::AddrInUse => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{SlotLock, identity, parse_id};
    use crate::clock::SystemEntropy;
    use outrider_core::format::quorum::Slot;
    use outrider_core::format::super_block::{Identity, Super};
    use outrider_core::quorum::Vouched;
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
        })
        .unwrap()
    }

    #[test]
    fn a_host_is_itself_on_one_volume_and_somebody_else_on_another() {
        let mut entropy = SystemEntropy::open().unwrap();
        let mut who = |fsid| identity(&volume(fsid), &mut entropy, Vouched::Nothing).unwrap();
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
        assert!(SlotLock::take(&volume, one).unwrap().is_none());
        assert!(SlotLock::take(&volume, other).unwrap().is_some());
        drop(held);
        assert!(SlotLock::take(&volume, one).unwrap().is_some());
    }
}

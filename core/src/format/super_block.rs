//! The super block: what a volume is, written by mkfs and by offline changes of its configuration.
//!
//! # Invariants
//!
//! * It stands at a fixed place and has a spare copy in the device's last block. A node reads the
//!   first and works with nothing that doesn't verify; the spare is there for a repair.
//! * It is the one block whose checksum isn't seeded, because it holds the seed.
//! * Everything it says stands in its first 512 bytes, and the rest is zero: a write that is torn
//!   at a sector leaves the old version or the new one.
//! * Nothing that changes while the volume is in use stands here: that is the root's.
//! * [`Unverified`] bytes become a [`Super`] only by [`verify`](Unverified::verify), which has
//!   looked at every field.

use super::block::{self, BlockHeader, Magic, Promise, Volume};
use super::layout::{BLOCKS_MAX, BLOCKS_MIN, SLOTS, SUPER_BLKNO, spare_blkno};
use super::quorum::LEASE_MS_MAX;
use super::{Block, BlockNo};
use crate::error::Corruption;
use crate::record;
use core::net::Ipv6Addr;
use core::time::Duration;
use outrider_hal::Endpoint;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

/// What stands behind the header of every Outrider super block, for tools that identify volumes:
/// 64 KiB and 32 bytes into the device.
pub const SIGNATURE: [u8; 16] = *b"Outrider volume\n";

/// Incompatible features this code knows: a volume with any other can't be used.
pub const INCOMPAT_KNOWN: u64 = 0;
/// Features this code must know to write: a volume with any other can be read only.
pub const RO_COMPAT_KNOWN: u64 = 0;

/// The most mounts that a volume may have at one time.
pub const CLIENTS_MAX: u32 = 4096;
/// The shortest lease of a leader, in milliseconds: shorter than that, a node that is not scheduled
/// for a moment loses it.
pub const LEASE_MS_MIN: u32 = 100;

/// The shortest time for which leaders with this lease may wait for a silent mount, both in
/// milliseconds.
///
/// A leader that was stopped, and whose clock was too, may renew the lease of a mount until it
/// reads the claims again, for as long as that mount has not given up the connection. Its successor
/// waits for long enough that this lease is over before it evicts the mount, whatever the drift of
/// their clocks: inequality I8 of `PROOFS.md`.
#[must_use]
pub const fn recovery_ms_min(lease_ms: u32) -> u32 {
    lease_ms.saturating_mul(2).saturating_add(9_000)
}

record! {
    /// The super block.
    pub struct SuperBlock [4096] {
        /// `magic` is `ORsb`, `fsid` the volume's number, `seq` the generation, and `crc` is not
        /// seeded.
        header: BlockHeader,
        /// [`SIGNATURE`].
        signature: [u8; 16],
        /// Identifies the volume to people and tools.
        uuid: [u8; 16],
        /// UTF-8, zero-padded.
        label: [u8; 64],
        /// Features old code may ignore.
        compat: U64,
        /// Features old code must know to write.
        ro_compat: U64,
        /// Features old code must know to use the volume at all.
        incompat: U64,
        /// Size of the volume in blocks, the spare super block included.
        blocks: U64,
        /// Seed of every other checksum: a secret, never 0.
        crc_seed: U32,
        /// Zero.
        reserved: U32,
        /// Key of the hash of names: a secret.
        name_key: [u8; 16],
        /// Proves that a node may join: whoever can read the device knows it.
        cluster_key: [u8; 32],
        /// What every leader must be able to carry.
        limits: ClusterLimits,
        /// The voters, by slot.
        voters: [VoterSlot; SLOTS],
        /// Zero.
        reserved_end: [u8; 3680],
    }

    /// Limits and times that bind all nodes of a volume.
    pub struct ClusterLimits [32] {
        /// Mounts at one time.
        clients: U32,
        /// Locks granted to one mount.
        locks_per_client: U32,
        /// Locks in the cluster.
        locks: U32,
        /// How long a leader's lease runs from when its renewal was sent, in milliseconds.
        lease_ms: U32,
        /// How long a listening leader waits for a silent mount before it evicts it, in
        /// milliseconds.
        recovery_ms: U32,
        /// How long file ranges of an evicted mount stay locked without proof, in milliseconds.
        io_lifetime_ms: U32,
        /// Zero.
        reserved: [u8; 8],
    }

    /// A voter's place in the configuration.
    pub struct VoterSlot [24] {
        /// Where it listens when it leads: an IPv6 address, IPv4 ones mapped.
        addr: [u8; 16],
        /// The TCP port; 0: nobody has this slot, and the address is zero.
        port: U16,
        /// Zero.
        reserved: [u8; 6],
    }
}

const _: () = assert!(core::mem::offset_of!(SuperBlock, reserved_end) <= 512);

impl ClusterLimits {
    /// What mkfs writes unless told otherwise.
    #[must_use]
    pub const fn standard() -> ClusterLimits {
        ClusterLimits::for_clients(64)
    }

    /// The same for so many mounts at one time: 1024 locks for each, and for four that have as many
    /// as one may have.
    ///
    /// # Panics
    ///
    /// If there are more than [`CLIENTS_MAX`] of them.
    #[must_use]
    pub const fn for_clients(clients: u32) -> ClusterLimits {
        assert!(clients <= CLIENTS_MAX, "more mounts than a server can serve");
        const LOCKS: u32 = 1024;
        ClusterLimits {
            clients: U32::new(clients),
            locks_per_client: U32::new(4 * LOCKS),
            locks: U32::new((clients + 4) * LOCKS),
            lease_ms: U32::new(1_000),
            recovery_ms: U32::new(30_000),
            io_lifetime_ms: U32::new(60_000),
            reserved: [0; 8],
        }
    }

    /// How long a listening leader waits for a silent mount.
    #[must_use]
    pub fn recovery(&self) -> Duration {
        Duration::from_millis(self.recovery_ms.get().into())
    }

    /// Whether the times go together, as the proof of the lease needs them.
    #[must_use]
    pub fn times_fit(&self) -> bool {
        let (lease_ms, recovery_ms) = (self.lease_ms.get(), self.recovery_ms.get());
        (LEASE_MS_MIN..=LEASE_MS_MAX).contains(&lease_ms)
            && recovery_ms >= recovery_ms_min(lease_ms)
            && self.io_lifetime_ms.get() > 0
    }

    /// Whether these can be worked with: nothing is zero, what one mount may have is at most what
    /// all may have, and times go together.
    #[must_use]
    pub fn is_sane(&self) -> bool {
        (1..=CLIENTS_MAX).contains(&self.clients.get())
            && self.locks_per_client.get() > 0
            && self.locks.get() >= self.locks_per_client.get()
            && self.times_fit()
            && self.reserved == [0; 8]
    }
}

impl VoterSlot {
    /// A slot nobody has.
    pub const EMPTY: VoterSlot = VoterSlot { addr: [0; 16], port: U16::new(0), reserved: [0; 6] };

    /// The slot of a voter that listens there.
    #[must_use]
    pub fn at(endpoint: Endpoint) -> VoterSlot {
        VoterSlot { addr: endpoint.addr.octets(), port: endpoint.port.into(), reserved: [0; 6] }
    }

    /// Where the voter listens, if somebody has the slot.
    #[must_use]
    pub fn endpoint(&self) -> Option<Endpoint> {
        let addr = Ipv6Addr::from(self.addr);
        (self.port.get() != 0).then(|| Endpoint { addr, port: self.port.get() })
    }

    fn check(&self) -> Result<(), Corruption> {
        match self.endpoint() {
            _ if self.reserved != [0; 6] => Err(Corruption::Reserved),
            None if self.addr != [0; 16] => Err(Corruption::Value),
            Some(at) if at.addr.is_multicast() || at.addr.is_unspecified() => {
                Err(Corruption::Value)
            }
            None | Some(_) => Ok(()),
        }
    }
}

/// A block that may be a super block.
#[derive(Debug)]
pub struct Unverified<'a>(&'a Block);

/// Why bytes are not a super block this code can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SuperError {
    /// There is no Outrider volume here.
    NoVolume,
    /// There is one, and its super block is damaged.
    Corrupt(Corruption),
    /// It has incompatible features this code doesn't know.
    UnknownFeatures(u64),
    /// The device has fewer blocks than the volume.
    Truncated {
        /// Blocks of the volume.
        volume: u64,
        /// Blocks of the device.
        device: u64,
    },
    /// Its times contradict each other: with them a mount could answer what is not true any more.
    Times {
        /// A leader's lease, in milliseconds.
        lease_ms: u32,
        /// The recovery window, in milliseconds.
        recovery_ms: u32,
        /// How long file ranges of an evicted mount stay locked, in milliseconds.
        io_lifetime_ms: u32,
    },
}

impl<'a> Unverified<'a> {
    /// Looks at a block as one.
    #[must_use]
    pub fn new(block: &'a Block) -> Unverified<'a> {
        Unverified(block)
    }

    fn fields(&self) -> &'a SuperBlock {
        SuperBlock::ref_from_bytes(&self.0.0).expect("a super block has the size of a block")
    }

    /// Whether a volume ever stood here, judged by the signature alone: what mkfs asks before it
    /// overwrites one, and what tells a damaged volume from none.
    #[must_use]
    pub fn has_signature(&self) -> bool {
        self.fields().signature == SIGNATURE
    }

    /// Checks everything about the block, which was read from `blkno` of a device of
    /// `device_blocks` blocks.
    pub fn verify(&self, blkno: BlockNo, device_blocks: u64) -> Result<Super, SuperError> {
        if !self.has_signature() {
            return Err(SuperError::NoVolume);
        }
        let fields = self.fields();
        let volume = Volume { fsid: fields.header.fsid.get(), crc_seed: 0 };
        let promise = Promise { magic: Magic::Super, blkno, seq: None };
        block::open(self.0, &volume, &promise).map_err(SuperError::Corrupt)?;
        // Features first: with unknown ones the other fields may mean something else.
        let unknown = fields.incompat.get() & !INCOMPAT_KNOWN;
        if unknown != 0 {
            return Err(SuperError::UnknownFeatures(unknown));
        }
        let limits = &fields.limits;
        if !limits.times_fit() {
            return Err(SuperError::Times {
                lease_ms: limits.lease_ms.get(),
                recovery_ms: limits.recovery_ms.get(),
                io_lifetime_ms: limits.io_lifetime_ms.get(),
            });
        }
        fields.check().map_err(SuperError::Corrupt)?;
        let blocks = fields.blocks.get();
        if blocks > device_blocks {
            return Err(SuperError::Truncated { volume: blocks, device: device_blocks });
        }
        if blkno != SUPER_BLKNO && blkno != spare_blkno(blocks) {
            return Err(SuperError::Corrupt(Corruption::Misdirected));
        }
        Ok(Super(*fields))
    }
}

/// What mkfs decides about a volume.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The volume's number: random, not 0.
    pub fsid: u64,
    /// Random, or given by the operator.
    pub uuid: [u8; 16],
    /// UTF-8, zero-padded.
    pub label: [u8; 64],
    /// Size in blocks.
    pub blocks: u64,
    /// Random, not 0.
    pub crc_seed: u32,
    /// Random.
    pub name_key: [u8; 16],
    /// Random.
    pub cluster_key: [u8; 32],
    /// The voters, by slot.
    pub voters: [Option<Endpoint>; SLOTS],
    /// What binds all nodes.
    pub limits: ClusterLimits,
}

/// What is changed about a volume; what is [`None`] stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Changes {
    /// All voters, by slot.
    pub voters: Option<[Option<Endpoint>; SLOTS]>,
    /// UTF-8, zero-padded.
    pub label: Option<[u8; 64]>,
    /// A leader's lease, in milliseconds.
    pub lease_ms: Option<u32>,
    /// The recovery window, in milliseconds.
    pub recovery_ms: Option<u32>,
    /// How long file ranges of an evicted mount stay locked without proof, in milliseconds.
    pub io_lifetime_ms: Option<u32>,
}

/// A verified super block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Super(SuperBlock);

impl Super {
    /// The super block of a new volume, or what about the identity is unusable.
    pub fn new(identity: &Identity) -> Result<Super, Corruption> {
        let fields = SuperBlock {
            header: BlockHeader {
                crc: 0.into(),
                magic: (Magic::Super as u32).into(),
                fsid: identity.fsid.into(),
                blkno: SUPER_BLKNO.0.into(),
                seq: 1.into(),
            },
            signature: SIGNATURE,
            uuid: identity.uuid,
            label: identity.label,
            compat: 0.into(),
            ro_compat: 0.into(),
            incompat: 0.into(),
            blocks: identity.blocks.into(),
            crc_seed: identity.crc_seed.into(),
            reserved: 0.into(),
            name_key: identity.name_key,
            cluster_key: identity.cluster_key,
            limits: identity.limits,
            voters: identity.voters.map(|voter| voter.map_or(VoterSlot::EMPTY, VoterSlot::at)),
            reserved_end: [0; 3680],
        };
        fields.check()?;
        Ok(Super(fields))
    }

    /// The super block of the same volume with these changes and this cluster key, as its next
    /// generation, or what about it is unusable.
    pub fn changed(&self, changes: &Changes, cluster_key: [u8; 32]) -> Result<Super, Corruption> {
        let mut fields = SuperBlock { cluster_key, ..self.0 };
        let next = self.generation().checked_add(1).ok_or(Corruption::Value)?;
        fields.header.seq = next.into();
        if let Some(voters) = changes.voters {
            fields.voters = voters.map(|voter| voter.map_or(VoterSlot::EMPTY, VoterSlot::at));
        }
        fields.label = changes.label.unwrap_or(fields.label);
        let limits = &mut fields.limits;
        let set = |field: &mut U32, value: Option<u32>| *field = value.map_or(*field, U32::new);
        set(&mut limits.lease_ms, changes.lease_ms);
        set(&mut limits.recovery_ms, changes.recovery_ms);
        set(&mut limits.io_lifetime_ms, changes.io_lifetime_ms);
        fields.check()?;
        Ok(Super(fields))
    }

    /// Fills a block with this super block, to be written at `blkno`.
    pub fn seal(&self, block: &mut Block, blkno: BlockNo) {
        block.0.copy_from_slice(self.0.as_bytes());
        let volume = Volume { fsid: self.fsid(), crc_seed: 0 };
        block::seal(block, &volume, Magic::Super, blkno, self.generation());
    }

    /// The fields as they stand on the disk.
    #[must_use]
    pub fn fields(&self) -> &SuperBlock {
        &self.0
    }

    /// The volume's number.
    #[must_use]
    pub fn fsid(&self) -> u64 {
        self.0.header.fsid.get()
    }

    /// Counts the changes of the configuration.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.0.header.seq.get()
    }

    /// What all of the volume's other blocks have in common.
    #[must_use]
    pub fn volume(&self) -> Volume {
        Volume { fsid: self.fsid(), crc_seed: self.0.crc_seed.get() }
    }

    /// Size in blocks.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.0.blocks.get()
    }

    /// Where the voter of this slot listens, if somebody has it.
    #[must_use]
    pub fn voter(&self, slot: u8) -> Option<Endpoint> {
        self.0.voters.get(usize::from(slot))?.endpoint()
    }

    /// Whether the volume may be written by this code.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.0.ro_compat.get() & !RO_COMPAT_KNOWN == 0
    }

    /// The volume's name, as far as the operator gave one.
    #[must_use]
    pub fn label(&self) -> &str {
        let label = &self.0.label;
        let bytes = label.iter().position(|byte| *byte == 0).unwrap_or(label.len());
        core::str::from_utf8(&label[..bytes]).expect("verified")
    }
}

impl SuperBlock {
    fn check(&self) -> Result<(), Corruption> {
        let zeroes = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
        if self.reserved.get() != 0 || !zeroes(&self.reserved_end) {
            return Err(Corruption::Reserved);
        }
        let blocks = self.blocks.get();
        let label_bytes = self.label.iter().position(|byte| *byte == 0).unwrap_or(64);
        if !(BLOCKS_MIN..=BLOCKS_MAX).contains(&blocks)
            || self.crc_seed.get() == 0
            || !self.limits.is_sane()
            || core::str::from_utf8(&self.label[..label_bytes]).is_err()
            || !zeroes(&self.label[label_bytes..])
            || self.voters.iter().all(|slot| slot.endpoint().is_none())
        {
            return Err(Corruption::Value);
        }
        self.voters.iter().try_for_each(VoterSlot::check)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{
        CLIENTS_MAX, Changes, ClusterLimits, Identity, LEASE_MS_MAX, LEASE_MS_MIN, Super,
        SuperBlock, SuperError, Unverified, recovery_ms_min,
    };
    use crate::crc32c::crc32c;
    use crate::error::Corruption;
    use crate::format::layout::{SUPER_BLKNO, spare_blkno};
    use core::net::Ipv4Addr;
    use outrider_hal::{Block, Endpoint};
    use zerocopy::FromBytes;

    pub(crate) const BLOCKS: u64 = 1 << 20;

    pub(crate) fn identity() -> Identity {
        let mut label = [0; 64];
        label[..4].copy_from_slice(b"test");
        let addr = Ipv4Addr::LOCALHOST.to_ipv6_mapped();
        let mut voters = [None; 7];
        voters[2] = Some(Endpoint { addr, port: 12345 });
        Identity {
            fsid: 0x0123_4567_89ab_cdef,
            uuid: *b"0123456789abcdef",
            label,
            blocks: BLOCKS,
            crc_seed: 0xdead_beef,
            name_key: [7; 16],
            cluster_key: [9; 32],
            voters,
            limits: ClusterLimits::standard(),
        }
    }

    fn sealed() -> Block {
        let mut block = Block::ZERO;
        Super::new(&identity()).unwrap().seal(&mut block, SUPER_BLKNO);
        block
    }

    fn verify(block: &Block) -> Result<Super, SuperError> {
        Unverified::new(block).verify(SUPER_BLKNO, BLOCKS)
    }

    /// Changes a field and makes the checksum right again, as hostile or buggy code would.
    fn altered(change: impl FnOnce(&mut SuperBlock)) -> Result<Super, SuperError> {
        let mut block = sealed();
        let fields = SuperBlock::mut_from_bytes(&mut block.0).unwrap();
        change(fields);
        let crc = crc32c(&block.0[4..]);
        block.0[..4].copy_from_slice(&crc.to_le_bytes());
        verify(&block)
    }

    #[test]
    fn what_was_sealed_verifies() {
        let read = verify(&sealed()).unwrap();
        assert_eq!(read.fsid(), identity().fsid);
        assert_eq!(read.label(), "test");
        assert_eq!(read.voter(2).unwrap().port, 12345);
        assert_eq!(read.voter(0), None);
        assert_eq!(read.voter(200), None);
        assert!(read.is_writable());
        let mut spare = Block::ZERO;
        read.seal(&mut spare, spare_blkno(BLOCKS));
        let spare_read = Unverified::new(&spare).verify(spare_blkno(BLOCKS), BLOCKS).unwrap();
        assert_eq!(spare_read.volume(), read.volume());
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        for bit in 0..4096 * 8 {
            let mut block = sealed();
            block.0[bit / 8] ^= 1 << (bit % 8);
            let error = verify(&block).unwrap_err();
            let in_signature = (32..48).contains(&(bit / 8));
            let expected = match in_signature {
                true => SuperError::NoVolume,
                false => SuperError::Corrupt(Corruption::Checksum),
            };
            assert_eq!(error, expected, "bit {bit}");
        }
    }

    #[test]
    fn every_meaningless_field_is_refused() {
        let corrupt = |what| Err(SuperError::Corrupt(what));
        assert_eq!(verify(&Block::ZERO), Err(SuperError::NoVolume));
        assert_eq!(altered(|s| s.incompat = 2.into()), Err(SuperError::UnknownFeatures(2)));
        assert!(altered(|s| s.compat = 2.into()).unwrap().is_writable());
        assert!(!altered(|s| s.ro_compat = 2.into()).unwrap().is_writable());
        assert_eq!(altered(|s| s.reserved_end[9] = 1), corrupt(Corruption::Reserved));
        assert_eq!(altered(|s| s.blocks = 9.into()), corrupt(Corruption::Value));
        assert_eq!(altered(|s| s.crc_seed = 0.into()), corrupt(Corruption::Value));
        assert_eq!(altered(|s| s.label[63] = 1), corrupt(Corruption::Value));
        for clients in [0, CLIENTS_MAX + 1] {
            let wrong = altered(|s| s.limits.clients = clients.into());
            assert_eq!(wrong, corrupt(Corruption::Value));
        }
        assert_eq!(altered(|s| s.voters[2].port = 0.into()), corrupt(Corruption::Value));
        assert_eq!(altered(|s| s.voters[2].addr[0] = 0xff), corrupt(Corruption::Value));
        assert_eq!(altered(|s| s.voters[1].reserved[0] = 1), corrupt(Corruption::Reserved));
        let (volume, device) = (BLOCKS + 1, BLOCKS);
        let truncated = Err(SuperError::Truncated { volume, device });
        assert_eq!(altered(|s| s.blocks = volume.into()), truncated);
        let mut misplaced = Block::ZERO;
        verify(&sealed()).unwrap().seal(&mut misplaced, SUPER_BLKNO.plus(1));
        assert_eq!(verify(&misplaced), corrupt(Corruption::Misdirected));
    }

    /// Whether a volume of these times is made, made by a change, and read. All three agree.
    fn is_usable(lease_ms: u32, recovery_ms: u32, io_lifetime_ms: u32) -> bool {
        let mut new = identity();
        let limits = &mut new.limits;
        limits.lease_ms = lease_ms.into();
        limits.recovery_ms = recovery_ms.into();
        limits.io_lifetime_ms = io_lifetime_ms.into();
        let made = Super::new(&new).map(drop);
        let changes = Changes {
            lease_ms: Some(lease_ms),
            recovery_ms: Some(recovery_ms),
            io_lifetime_ms: Some(io_lifetime_ms),
            ..Changes::default()
        };
        let before = verify(&sealed()).unwrap();
        assert_eq!(before.changed(&changes, [1; 32]).map(drop), made);
        let read = altered(|s| s.limits = new.limits).map(drop);
        let times = SuperError::Times { lease_ms, recovery_ms, io_lifetime_ms };
        match made {
            Ok(()) => assert_eq!(read, Ok(())),
            Err(what) => assert_eq!((what, read), (Corruption::Value, Err(times))),
        }
        made.is_ok()
    }

    #[test]
    fn times_that_contradict_each_other_are_refused_wherever_they_stand() {
        for lease_ms in [LEASE_MS_MIN, 101, 1000, 40_000, LEASE_MS_MAX] {
            let least = recovery_ms_min(lease_ms);
            assert!(is_usable(lease_ms, least, 1));
            assert!(is_usable(lease_ms, u32::MAX, u32::MAX));
            for recovery_ms in [0, 1, lease_ms, least - 1] {
                assert!(!is_usable(lease_ms, recovery_ms, 60_000), "{lease_ms} {recovery_ms}");
            }
            assert!(!is_usable(lease_ms, least, 0));
        }
        for lease_ms in [0, LEASE_MS_MIN - 1, LEASE_MS_MAX + 1, u32::MAX / 2, u32::MAX] {
            assert!(!is_usable(lease_ms, u32::MAX, 60_000), "{lease_ms}");
        }
    }

    #[test]
    fn a_volume_of_the_last_generation_is_not_changed_any_more() {
        let mut block = Block::ZERO;
        let mut last = Super::new(&identity()).unwrap();
        last.0.header.seq = u64::MAX.into();
        last.seal(&mut block, SUPER_BLKNO);
        let last = verify(&block).unwrap();
        assert_eq!(last.changed(&Changes::default(), [1; 32]), Err(Corruption::Value));
    }
}

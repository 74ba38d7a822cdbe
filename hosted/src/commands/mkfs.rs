//! `outrider mkfs`: makes a volume.
//!
//! # Invariants
//!
//! * Nothing is written, and no file made, before everything that can be refused was looked at.
//! * A device that holds anything is refused, unless told otherwise.

use super::device::{Image, carved, drive, open_alone, system};
use super::{Failure, USAGE, signature, size};
use clap::Args;
use clap::builder::RangedI64ValueParser;
use outrider_core::error::Error;
use outrider_core::format::item::Time;
use outrider_core::format::layout::{BLOCKS_MAX, BLOCKS_MIN, SLOTS};
use outrider_core::format::quorum::LEASE_MS_MAX;
use outrider_core::format::super_block::{
    CLIENTS_MAX, ClusterLimits, Identity, LEASE_MS_MIN, recovery_ms_min,
};
use outrider_core::mkfs::{Mkfs, Recipe};
use outrider_hal::{BLOCK_BYTES, Endpoint, Entropy};
use outrider_hosted::clock::SystemEntropy;
use outrider_hosted::disk::Access;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// Make a volume on a block device or in a file.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Make it even if the device holds something, which is lost then.
    #[arg(short)]
    force: bool,
    /// A voter: its slot (0 to 6), and the address and TCP port where it listens when it leads. May
    /// be given several times; without any it is 0,127.0.0.1,12345.
    #[arg(short = 'Q', value_name = "NR,ADDR,PORT", value_parser = parse_voter)]
    voters: Vec<Voter>,
    /// A name for the volume, of at most 64 bytes.
    #[arg(short = 'L', value_name = "LABEL", value_parser = parse_label)]
    label: Option<Label>,
    /// The volume's UUID; random if not given.
    #[arg(short = 'U', value_name = "UUID", value_parser = parse_uuid)]
    uuid: Option<Uuid>,
    /// Make a sparse file of this size, or give the file this size: a number of bytes, or one with
    /// K, M, G or T behind it.
    #[arg(short = 's', value_name = "SIZE", value_parser = size::parse)]
    size: Option<u64>,
    /// How many mounts there may be at one time: from 1 to 4096, 64 if not given.
    ///
    /// Each costs the server memory, whether it is there or not: some 0.4 MiB.
    #[arg(long, value_name = "NR", value_parser = parse_clients())]
    clients: Option<u32>,
    /// How long the leader's lease runs, in milliseconds: from 100 to 60000, 1000 if not given.
    ///
    /// When the leader is killed, another leads after about twice that. A server whose host doesn't
    /// let it run, or whose device doesn't answer, for about as long loses the lead. 200 suits a
    /// quick device and hosts with time to spare.
    #[arg(long, value_name = "MS")]
    lease_ms: Option<u32>,
    /// How long the leader waits for a mount that it doesn't hear before it evicts it, in
    /// milliseconds: at least 9000 and two leases; 30000 if not given.
    ///
    /// A mount that reaches no server goes on for a third of that, and then waits for one.
    #[arg(long, value_name = "MS")]
    recovery_ms: Option<u32>,
    /// The block device or file.
    device: PathBuf,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Voter {
    slot: usize,
    endpoint: Endpoint,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Label(pub(super) [u8; 64]);

#[derive(Debug, Clone, Copy)]
struct Uuid([u8; 16]);

fn parse_clients() -> RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=CLIENTS_MAX.into())
}

pub(super) fn parse_voter(text: &str) -> Result<Voter, String> {
    let wrong = |what: &str| format!("{what}; give NR,ADDR,PORT as in 0,10.0.0.1,12345");
    let parts: Vec<&str> = text.split(',').collect();
    let [slot, addr, port] = parts[..] else { return Err(wrong("not three parts")) };
    let slot: usize = slot.parse().map_err(|_| wrong("NR is not a number"))?;
    if slot >= SLOTS {
        return Err(wrong("NR is at most 6"));
    }
    let addr: IpAddr = addr.parse().map_err(|_| wrong("ADDR is not an IP address"))?;
    if addr.is_unspecified() || addr.is_multicast() {
        return Err(wrong("nobody can connect to this ADDR"));
    }
    let port: u16 = port.parse().map_err(|_| wrong("PORT is not a number up to 65535"))?;
    if port == 0 {
        return Err(wrong("PORT is at least 1"));
    }
    Ok(Voter { slot, endpoint: SocketAddr::new(addr, port).into() })
}

pub(super) fn parse_label(text: &str) -> Result<Label, String> {
    let mut label = [0; 64];
    if text.len() > label.len() {
        return Err(format!("it has {} bytes, at most 64 fit", text.len()));
    }
    if text.contains('\0') {
        return Err("it has a NUL byte".to_owned());
    }
    label[..text.len()].copy_from_slice(text.as_bytes());
    Ok(Label(label))
}

fn parse_uuid(text: &str) -> Result<Uuid, String> {
    let wrong = "give 32 hexadecimal digits, as in 01234567-89ab-cdef-0123-456789abcdef";
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
    let dashed = text.len() == 36 && [8, 13, 18, 23].iter().all(|at| text.as_bytes()[*at] == b'-');
    if digits.len() != 32 || !(dashed || text.len() == 32) {
        return Err(wrong.to_owned());
    }
    let mut uuid = [0; 16];
    for (byte, pair) in uuid.iter_mut().zip(digits.chunks(2)) {
        let nibble = |digit: u8| char::from(digit).to_digit(16).ok_or(wrong);
        *byte = (nibble(pair[0])? << 4 | nibble(pair[1])?) as u8;
    }
    Ok(Uuid(uuid))
}

/// A UUID as people write it.
pub(super) fn show_uuid(uuid: &[u8; 16]) -> String {
    let hex: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let voters = voters(&options.voters)?;
    let path = &options.device;
    let name = path.display();
    let found = path.metadata();
    let exists = found.is_ok();
    match (&found, options.size) {
        (Err(error), _) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(system(path, "look at", error));
        }
        (Err(_), None) => {
            let what = format!("{name} does not exist; -s SIZE makes a file of that size");
            return Err(Failure::new(what));
        }
        (Ok(found), Some(_)) if !found.is_file() => {
            let what = format!("{name} is no file, and keeps its size; leave -s out");
            return Err(Failure::new(what));
        }
        (Err(_) | Ok(_), Some(bytes)) => check_size(bytes, "SIZE")?,
        (Ok(_), None) => {}
    }
    let file = open_alone(path, !exists)?;
    let image = Image::of(file.try_clone().map_err(|error| system(path, "use", &error))?, path)?;
    let present = image.blocks() * BLOCK_BYTES as u64;
    let bytes = options.size.unwrap_or(present);
    check_size(bytes, &name.to_string())?;
    let held = signature::find(&file, present).map_err(|error| system(path, "read", &error))?;
    if let Some(what) = held.filter(|_| !options.force) {
        return Err(Failure::new(format!("{name} holds {what}; -f overwrites it")));
    }
    if options.size.is_some() {
        file.set_len(bytes).map_err(|error| system(path, "resize", &error))?;
    }
    let blocks = (bytes / BLOCK_BYTES as u64).min(BLOCKS_MAX);
    let identity = identity(options, voters, blocks)?;
    make(options, identity)
}

fn check_size(bytes: u64, what: &str) -> Result<(), Failure> {
    let bytes_min = BLOCKS_MIN * BLOCK_BYTES as u64;
    if bytes >= bytes_min {
        return Ok(());
    }
    let (has, least) = (size::show(bytes), size::show(bytes_min));
    Err(Failure::new(format!(
        "{what} is {has}, too small for a volume; at least {least} are needed"
    )))
}

/// The voters by slot; one, if none is given.
pub(super) fn voters(given: &[Voter]) -> Result<[Option<Endpoint>; SLOTS], Failure> {
    let mut voters = [None; SLOTS];
    for voter in given {
        if voters[voter.slot].replace(voter.endpoint).is_some() {
            let what = format!("slot {} is given twice; each -Q needs its own NR", voter.slot);
            return Err(Failure { status: USAGE, what });
        }
    }
    if given.is_empty() {
        voters[0] = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 12345)).into());
    }
    Ok(voters)
}

/// What binds all nodes of the volume.
fn limits(options: &Options) -> Result<ClusterLimits, Failure> {
    let standard = options.clients.map_or_else(ClusterLimits::standard, ClusterLimits::for_clients);
    let lease_ms = options.lease_ms.unwrap_or(standard.lease_ms.get());
    let recovery_ms = options.recovery_ms.unwrap_or(standard.recovery_ms.get());
    check_times(lease_ms, recovery_ms)?;
    let (lease_ms, recovery_ms) = (lease_ms.into(), recovery_ms.into());
    Ok(ClusterLimits { lease_ms, recovery_ms, ..standard })
}

/// Whether these go together.
pub(super) fn check_times(lease_ms: u32, recovery_ms: u32) -> Result<(), Failure> {
    let wrong = |what: String| Err(Failure { status: USAGE, what });
    if !(LEASE_MS_MIN..=LEASE_MS_MAX).contains(&lease_ms) {
        return wrong(format!("--lease-ms is from {LEASE_MS_MIN} to {LEASE_MS_MAX}"));
    }
    let least = recovery_ms_min(lease_ms);
    if recovery_ms < least {
        return wrong(format!("--recovery-ms is at least {least} with this lease"));
    }
    Ok(())
}

fn identity(
    options: &Options,
    voters: [Option<Endpoint>; SLOTS],
    blocks: u64,
) -> Result<Identity, Failure> {
    let mut entropy = SystemEntropy::open()
        .map_err(|error| Failure::new(format!("cannot open /dev/urandom: {error}")))?;
    let mut identity = Identity {
        fsid: 0,
        uuid: [0; 16],
        label: options.label.map_or([0; 64], |label| label.0),
        blocks,
        crc_seed: 0,
        name_key: [0; 16],
        cluster_key: [0; 32],
        voters,
        limits: limits(options)?,
    };
    // Neither may be 0.
    while identity.fsid == 0 || identity.crc_seed == 0 {
        let (mut fsid, mut seed) = ([0; 8], [0; 4]);
        entropy.fill(&mut fsid);
        entropy.fill(&mut seed);
        identity.fsid = u64::from_le_bytes(fsid);
        identity.crc_seed = u32::from_le_bytes(seed);
    }
    entropy.fill(&mut identity.name_key);
    entropy.fill(&mut identity.cluster_key);
    match options.uuid {
        Some(uuid) => identity.uuid = uuid.0,
        None => {
            entropy.fill(&mut identity.uuid);
            // A random one, as RFC 9562 marks it.
            identity.uuid[6] = identity.uuid[6] & 0x0f | 0x40;
            identity.uuid[8] = identity.uuid[8] & 0x3f | 0x80;
        }
    }
    Ok(identity)
}

fn make(options: &Options, identity: Identity) -> Result<(), Failure> {
    let path = &options.device;
    let (uuid, blocks) = (show_uuid(&identity.uuid), identity.blocks);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let sec = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    let now = Time { sec, nsec: since.subsec_nanos() };
    let recipe = Recipe { identity, now };
    let mut mkfs = carved(|arena| Mkfs::carve(arena, &recipe))?.map_err(|what| {
        Failure::new(format!("no volume can be so ({})", super::corruption(what)))
    })?;
    let mut outcome = None;
    drive(&mut mkfs, path, Access::ReadWrite, |mkfs| {
        outcome = mkfs.poll_outcome().or(outcome);
    })?;
    let name = path.display();
    match outcome {
        Some(Ok(())) => {
            let bytes = size::show(blocks * BLOCK_BYTES as u64);
            let line = format!("{name}: volume {uuid} of {bytes} ({blocks} blocks)\n");
            super::report::put(line.as_bytes())
        }
        Some(Err(Error::Io { blkno, .. })) => Err(Failure::new(format!(
            "cannot write block {blkno} of {name}, which holds no volume now; \
             see the system's log, and make it again"
        ))),
        Some(Err(_)) | None => Err(Failure::new(format!("no volume could be made on {name}"))),
    }
}

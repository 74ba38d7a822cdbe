//! A voter's quorum block: what one voter says about itself, and the only block it ever writes for
//! the election.
//!
//! # Invariants
//!
//! * The block of slot `s` stands at `base + s`, always, for all [`SLOTS`] slots, whether a voter
//!   is configured there or not. `mkfs` writes all of them blank.
//! * Everything a version of the block says stands in its first 512 bytes, and the rest is zero in
//!   every version. A write torn at a sector therefore leaves the old version or the new one, never
//!   a third: an invalid block is damage, not a crash.
//! * `header.seq` counts the writes of the slot, across voters that follow each other in it, and
//!   begins again at 1 after [`SEQ_MAX`]. 0 is the blank block; two versions of one writer never
//!   share a number.
//! * `term` is what the slot stands for: its claim while [`State::Claiming`], else the last term it
//!   was elected in. `held` is that last term always, so that a claim can be withdrawn.
//!
//! [`QuorumBlock`] is bytes that may be anything; [`Ballot`] is what they were found to mean.
//!
//! What this module deliberately doesn't know: who wins.

use super::block::{self, BlockHeader, Magic, Promise, Volume};
use super::{Block, BlockNo, CommitNo, Term};
use crate::error::Corruption;
use crate::record;
use core::net::Ipv6Addr;
use outrider_hal::Endpoint;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// Slots for voters that a volume has, and blocks in its quorum area.
pub const SLOTS: usize = 7;

/// The latest round a block may speak of. Rounds start at 1 and cost an election each, so this is
/// never reached; a block that says more is damaged or forged.
pub const ROUND_MAX: u64 = 1 << 48;

/// The greatest number a write may have. A slot that is written each millisecond has as many in
/// 8900 years, so a block that says more is damaged or forged; and the number after it can be
/// counted.
pub const SEQ_MAX: u64 = 1 << 48;

/// The longest lease a block may speak of, in milliseconds.
pub const LEASE_MS_MAX: u32 = 60_000;

/// In [`QuorumBlock::flags`]: the writer stops as soon as another voter would lead in its place.
pub const LEAVING: u8 = 1;

/// In [`QuorumBlock::flags`]: when the term `held` ended, no client was recorded.
pub const VACANT: u8 = 2;

record! {
    /// What stands at the start of a voter's block. The rest of the block is zero.
    pub struct QuorumBlock [512] {
        /// Magic [`Magic::Quorum`]; `seq` counts the writes of the slot.
        header: BlockHeader,
        /// The term claimed, held, or last held: (round << 8 | slot), 0 for none.
        term: U64,
        /// The last term the slot was elected in, 0 for none.
        held: U64,
        /// The latest round the writer has seen anywhere.
        highest_round: U64,
        /// Generation of the quorum configuration the writer goes by.
        config_gen: U64,
        /// The newest commit that any voter has seen confirmed; `confirmed_term` is its leader's.
        confirmed: U64,
        /// How long the writer's lease runs from the submission of this write, in milliseconds.
        lease_ms: U32,
        /// Mounts that reach the writer, its own counted.
        mounts: U32,
        /// Drawn at random when the writer was started.
        incarnation: [u8; 16],
        /// The host the writer runs on, the same after a reboot.
        host: [u8; 16],
        /// The boot of that host, different after a reboot.
        boot: [u8; 16],
        /// IPv6 address the leader listens at; zero unless it listens.
        addr: [u8; 16],
        /// TCP port it listens at; zero unless it listens.
        port: U16,
        /// A [`State`].
        state: u8,
        /// The slot, 0 to 6.
        slot: u8,
        /// [`LEAVING`], [`VACANT`].
        flags: u8,
        /// Zero.
        reserved: [u8; 3],
        /// The term of the leader that confirmed `confirmed`.
        confirmed_term: U64,
        /// Zero.
        reserved_end: [u8; 352],
    }
}

/// One of the volume's slots for voters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u8);

impl Slot {
    /// All of them, in order.
    pub const ALL: [Slot; SLOTS] = [Slot(0), Slot(1), Slot(2), Slot(3), Slot(4), Slot(5), Slot(6)];

    /// The slot of this number, if the volume has it.
    #[must_use]
    pub const fn new(number: u8) -> Option<Slot> {
        if (number as usize) < SLOTS { Some(Slot(number)) } else { None }
    }

    /// Its number, from 0.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }

    /// Its place in an array of all slots.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Address of its block in the quorum area that starts at `base`.
    #[must_use]
    pub const fn blkno(self, base: BlockNo) -> BlockNo {
        base.plus(self.0 as u64)
    }
}

impl core::fmt::Display for Slot {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.0.fmt(f)
    }
}

/// One life of a voter: drawn at random when it is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Incarnation(pub [u8; 16]);

/// A machine, across its reboots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct HostId(pub [u8; 16]);

/// One boot of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct BootId(pub [u8; 16]);

/// What a voter is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// It runs, and has never been elected.
    Idle = 0,
    /// It claims its term, and may not act yet.
    Claiming = 1,
    /// It is elected in its term, and doesn't accept connections yet.
    Elected = 2,
    /// It leads, and accepts connections at its endpoint.
    Listening = 3,
    /// It runs; its last term is over, and nothing of that term is in flight any more.
    Resigned = 4,
    /// It was stopped, or has let go by itself, in good order. This was its last write.
    Stopped = 5,
}

impl State {
    fn parse(byte: u8) -> Option<State> {
        Some(match byte {
            0 => State::Idle,
            1 => State::Claiming,
            2 => State::Elected,
            3 => State::Listening,
            4 => State::Resigned,
            5 => State::Stopped,
            _ => return None,
        })
    }

    /// Whether a voter in this state acts as leader, or may do so without being seen to write first
    /// what it became.
    #[must_use]
    pub const fn is_active(self) -> bool {
        match self {
            State::Claiming | State::Elected | State::Listening => true,
            State::Idle | State::Resigned | State::Stopped => false,
        }
    }
}

/// What a voter's block says, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ballot {
    /// The slot.
    pub slot: Slot,
    /// Number of this write in the slot: 1 to [`SEQ_MAX`].
    pub seq: u64,
    /// What the voter is doing.
    pub state: State,
    /// What the slot stands for: the term claimed, held, or last held; [`Term::NONE`] if it never
    /// was elected and claims nothing.
    pub term: Term,
    /// The last term the slot was elected in.
    pub held: Term,
    /// The latest round the voter has seen anywhere, its own included.
    pub highest_round: u64,
    /// Generation of the quorum configuration the voter goes by.
    pub config_gen: u64,
    /// The newest commit that the voter has seen confirmed by any leader, as roots rank: its root
    /// was durable before this was written, so the newest root never ranks before it.
    pub confirmed: (Term, CommitNo),
    /// How long its lease runs from the submission of this write, in milliseconds.
    pub lease_ms: u32,
    /// Mounts that reach the voter, its own counted.
    pub mounts: u32,
    /// This life of the voter.
    pub incarnation: Incarnation,
    /// Its host.
    pub host: HostId,
    /// The boot of its host.
    pub boot: BootId,
    /// Where it listens. Present exactly in [`State::Listening`].
    pub endpoint: Option<Endpoint>,
    /// It stops as soon as another voter would lead in its place: nobody else's successor.
    pub leaving: bool,
    /// When the term it held last ended, every client that had been welcomed in that term or before
    /// was gone from the records, and that was confirmed. Only in [`State::Stopped`].
    pub vacant: bool,
}

/// The number of the write of a slot after this one. Who follows a forged greatest number begins
/// again; no block says 0 but a blank one.
#[must_use]
pub const fn seq_after(seq: u64) -> u64 {
    if seq < SEQ_MAX { seq + 1 } else { 1 }
}

impl Ballot {
    /// Writes the ballot into a block and seals it for its address.
    pub fn emit(&self, block: &mut Block, volume: &Volume, base: BlockNo) {
        let endpoint = self.endpoint.unwrap_or(Endpoint { addr: Ipv6Addr::UNSPECIFIED, port: 0 });
        let mut record = QuorumBlock::new_zeroed();
        record.term = self.term.into();
        record.held = self.held.into();
        record.highest_round = self.highest_round.into();
        record.config_gen = self.config_gen.into();
        let (confirmed_term, confirmed) = self.confirmed;
        record.confirmed = confirmed.0.into();
        record.confirmed_term = confirmed_term.into();
        record.lease_ms = self.lease_ms.into();
        record.mounts = self.mounts.into();
        record.incarnation = self.incarnation.0;
        record.host = self.host.0;
        record.boot = self.boot.0;
        record.addr = endpoint.addr.octets();
        record.port = endpoint.port.into();
        record.state = self.state as u8;
        record.slot = self.slot.0;
        record.flags = if self.leaving { LEAVING } else { 0 };
        record.flags |= if self.vacant { VACANT } else { 0 };
        seal(&record, block, volume, self.slot.blkno(base), self.seq);
    }
}

/// Writes the block of a slot that no voter has used yet.
pub fn emit_blank(block: &mut Block, volume: &Volume, base: BlockNo, slot: Slot) {
    let mut record = QuorumBlock::new_zeroed();
    record.slot = slot.0;
    seal(&record, block, volume, slot.blkno(base), 0);
}

fn seal(record: &QuorumBlock, block: &mut Block, volume: &Volume, blkno: BlockNo, seq: u64) {
    let (head, rest) = block.0.split_at_mut(size_of::<QuorumBlock>());
    head.copy_from_slice(record.as_bytes());
    rest.fill(0);
    block::seal(block, volume, Magic::Quorum, blkno, seq);
}

/// What the block just read from the slot says; `None` if no voter has used the slot yet.
pub fn parse(
    block: &Block,
    volume: &Volume,
    base: BlockNo,
    slot: Slot,
) -> Result<Option<Ballot>, Corruption> {
    let promise = Promise { magic: Magic::Quorum, blkno: slot.blkno(base), seq: None };
    block::open(block, volume, &promise)?;
    let (record, rest) =
        QuorumBlock::ref_from_prefix(&block.0).expect("a block is larger than its record");
    let reserved = record.reserved.iter().chain(&record.reserved_end);
    if reserved.chain(rest).any(|byte| *byte != 0) {
        return Err(Corruption::Reserved);
    }
    if record.slot != slot.0 {
        return Err(Corruption::Mismatch);
    }
    if record.header.seq.get() == 0 {
        return parse_blank(record);
    }
    let ballot = Ballot {
        slot,
        seq: record.header.seq.get(),
        state: State::parse(record.state).ok_or(Corruption::Value)?,
        term: record.term.into(),
        held: record.held.into(),
        highest_round: record.highest_round.get(),
        config_gen: record.config_gen.get(),
        confirmed: (record.confirmed_term.into(), CommitNo(record.confirmed.get())),
        lease_ms: record.lease_ms.get(),
        mounts: record.mounts.get(),
        incarnation: Incarnation(record.incarnation),
        host: HostId(record.host),
        boot: BootId(record.boot),
        endpoint: parse_endpoint(record),
        leaving: record.flags & LEAVING != 0,
        vacant: record.flags & VACANT != 0,
    };
    if record.flags & !(LEAVING | VACANT) != 0 {
        return Err(Corruption::Value);
    }
    check(&ballot)?;
    Ok(Some(ballot))
}

fn parse_blank(record: &QuorumBlock) -> Result<Option<Ballot>, Corruption> {
    let blank = QuorumBlock { header: record.header, slot: record.slot, ..FromZeros::new_zeroed() };
    if *record == blank { Ok(None) } else { Err(Corruption::Value) }
}

fn parse_endpoint(record: &QuorumBlock) -> Option<Endpoint> {
    let at = Endpoint { addr: Ipv6Addr::from(record.addr), port: record.port.get() };
    (at != Endpoint { addr: Ipv6Addr::UNSPECIFIED, port: 0 }).then_some(at)
}

/// Checks that the fields of a ballot can stand beside each other.
fn check(ballot: &Ballot) -> Result<(), Corruption> {
    let of_slot = |term: Term| term == Term::NONE || term.slot() == ballot.slot.0;
    if !of_slot(ballot.term) || !of_slot(ballot.held) {
        return Err(Corruption::Mismatch);
    }
    // Who reads of a term reads of its round in the same block.
    let (confirmed_term, _) = ballot.confirmed;
    if Slot::new(confirmed_term.slot()).is_none() {
        return Err(Corruption::Value);
    }
    if ballot.seq > SEQ_MAX || confirmed_term.round() > ballot.highest_round {
        return Err(Corruption::Bounds);
    }
    if ballot.term.round() > ballot.highest_round || ballot.highest_round > ROUND_MAX {
        return Err(Corruption::Bounds);
    }
    if ballot.lease_ms == 0 || ballot.lease_ms > LEASE_MS_MAX {
        return Err(Corruption::Bounds);
    }
    let Ballot { term, held, .. } = *ballot;
    let terms_fit = match ballot.state {
        State::Idle => term == Term::NONE && held == Term::NONE,
        State::Claiming => term > held,
        State::Elected | State::Listening | State::Resigned => term == held && held != Term::NONE,
        State::Stopped => term == held,
    };
    let listening = ballot.state == State::Listening;
    let endpoint_fits = match ballot.endpoint {
        Some(at) => listening && at.port != 0,
        None => !listening,
    };
    let vacancy_fits = !ballot.vacant || ballot.state == State::Stopped && held != Term::NONE;
    if terms_fit && endpoint_fits && vacancy_fits { Ok(()) } else { Err(Corruption::Mismatch) }
}

#[cfg(test)]
mod tests;

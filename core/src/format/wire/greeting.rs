//! The four records that open a connection.
//!
//! ```text
//!   client                                        server
//!     Hello      who, which volume, versions  ->
//!                <-  versions, a random number      Challenge
//!     Proof      MAC over all of the above    ->
//!                <-  term, id, MAC over all         Welcome
//! ```
//!
//! A server that can't go on says why in the record it would have sent, and closes. The reason in a
//! challenge is only a hint, because nothing proves who gave it; that in a welcome carries a MAC,
//! unless it is that the client's was wrong.
//!
//! Client and server prove that they know the cluster key, over both random numbers, with
//! different labels: neither a recorded conversation nor a mirrored one passes.

use super::{ErrorCode, Malformed, named, reserved, whole};
use crate::format::quorum::{BootId, HostId};
use crate::format::{ClientId, Term};
use crate::record;
use zerocopy::little_endian::{U16, U64};

/// Bytes of a random number that challenges the other side.
pub const RANDOM_BYTES: usize = 16;

/// Bytes of a message authentication code (keyed BLAKE2s-256, RFC 7693).
pub const MAC_BYTES: usize = 32;

/// The largest record of a greeting: no more is buffered for who has not proved the key.
pub const GREETING_BYTES_MAX: usize = size_of::<Hello>();

record! {
    /// Opens a connection.
    pub struct Hello [136] {
        /// 1.
        step: u8,
        /// What the connection is for: a [`Role`].
        role: u8,
        /// [`HELLO_FAREWELL`], [`HELLO_READ_ONLY`].
        flags: u8,
        /// Zero.
        reserved: u8,
        /// Oldest protocol version the client speaks.
        version_min: U16,
        /// Newest protocol version the client speaks.
        version_max: U16,
        /// Features the client knows.
        features: U64,
        /// Those of them that it can't do without.
        features_required: U64,
        /// The volume.
        fsid: U64,
        /// Drawn once per mount, and stored with the client's record: a first greeting that is
        /// repeated finds the id that it was given.
        nonce: [u8; 16],
        /// Drawn for this connection.
        random: [u8; RANDOM_BYTES],
        /// The id that an earlier welcome gave; 0 before.
        client: U64,
        /// The newest term the client has been welcomed by; 0 is none.
        term: U64,
        /// Last message the client took from the server of that term.
        received: U64,
        /// Counts the client's connections: of two of them, the one with the higher number lives.
        attempt: U64,
        /// The machine it runs on, the same after a reboot; 0 if that means nothing.
        host_id: [u8; 16],
        /// What the machine calls its present boot.
        boot_id: [u8; 16],
        /// Most unanswered requests of the shared sort that the client will have.
        requests_max: U16,
        /// Zero.
        reserved_end: [u8; 6],
    }

    /// Answers a hello.
    pub struct Challenge [48] {
        /// 2.
        step: u8,
        /// Why there is no way on: an [`ErrorCode`], or 0.
        error: u8,
        /// The version both will speak.
        version: U16,
        /// Oldest version the server speaks.
        version_min: U16,
        /// Newest version the server speaks.
        version_max: U16,
        /// Features both will use, or, with an error, those the server knows.
        features: U64,
        /// Features the server can't do without.
        features_required: U64,
        /// The server's volume.
        fsid: U64,
        /// Drawn for this connection.
        random: [u8; RANDOM_BYTES],
    }

    /// Proves that the client knows the key.
    pub struct Proof [40] {
        /// 3.
        step: u8,
        /// Zero.
        reserved: [u8; 7],
        /// Over hello and challenge.
        mac: [u8; MAC_BYTES],
    }

    /// Proves that the server knows the key, and opens the session.
    pub struct Welcome [64] {
        /// 4.
        step: u8,
        /// Why there is no way on: an [`ErrorCode`], or 0.
        error: u8,
        /// [`WELCOME_FRESH`].
        flags: u8,
        /// Zero.
        reserved: u8,
        /// Most unanswered requests of the shared sort that the server will have.
        requests_max: U16,
        /// Zero.
        reserved_mid: [u8; 2],
        /// The server's term.
        term: U64,
        /// The client's id.
        client: U64,
        /// Last message the server took from the client in this term.
        received: U64,
        /// Over hello, challenge, proof and the fields above; zero when the client's was wrong.
        mac: [u8; MAC_BYTES],
    }
}

/// In [`Hello::flags`]: the client is leaving, and may have left already.
pub const HELLO_FAREWELL: u8 = 1;
/// In [`Hello::flags`]: the mount is read-only.
pub const HELLO_READ_ONLY: u8 = 2;
/// In [`Welcome::flags`]: the server has no session of this client; both begin at message 1.
pub const WELCOME_FRESH: u8 = 1;

const STEP_HELLO: u8 = 1;
const STEP_CHALLENGE: u8 = 2;
const STEP_PROOF: u8 = 3;
const STEP_WELCOME: u8 = 4;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// A mount's session with the leader.
    Mount = 1,
    /// A mount that has lost the leader shows a voter that it reaches it. Ends with the welcome.
    Knock = 2,
    /// A program that asks for the status. Has no session beyond the connection.
    Status = 3,
}

impl Role {
    fn from_wire(raw: u8) -> Result<Role, Malformed> {
        match raw {
            1 => Ok(Role::Mount),
            2 => Ok(Role::Knock),
            3 => Ok(Role::Status),
            _ => Err(Malformed::Value),
        }
    }
}

/// Where a client runs. A boot ends all I/O of the boots before it, so a client of a later one
/// proves that those of an earlier one are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Machine {
    /// The machine; 0 if that means nothing.
    pub host: HostId,
    /// Its boot.
    pub boot: BootId,
}

impl Machine {
    /// Whether the other one is another boot of the same machine.
    #[must_use]
    pub fn has_rebooted(&self, other: &Machine) -> bool {
        self.host != HostId::default() && self.host == other.host && self.boot != other.boot
    }
}

/// A hello's checked meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Greeting {
    /// What the connection is for.
    pub role: Role,
    /// The client is leaving, and may have left already.
    pub farewell: bool,
    /// The mount is read-only.
    pub read_only: bool,
    /// Drawn once per mount.
    pub nonce: [u8; 16],
    /// The id the client was given, if it knows it.
    pub client: Option<ClientId>,
    /// The newest term the client has been welcomed by.
    pub term: Term,
    /// Last message it took in that term.
    pub received: u64,
    /// Counts the client's connections.
    pub attempt: u64,
    /// Where it runs.
    pub machine: Machine,
    /// Most unanswered requests of the shared sort that it will have.
    pub requests_max: u16,
}

/// A welcome's meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admission {
    /// The client's id; 0 for those that have no session.
    pub client: ClientId,
    /// Last message the server took from the client in this term.
    pub received: u64,
    /// The server has no session of this client.
    pub fresh: bool,
    /// Most unanswered requests of the shared sort that the server will have.
    pub requests_max: u16,
}

impl Hello {
    /// Checks everything but the version, the volume and the features.
    pub fn parse(body: &[u8]) -> Result<(&Hello, Greeting), Malformed> {
        let hello: &Hello = whole(body)?;
        step(hello.step, STEP_HELLO)?;
        reserved(&[hello.reserved])?;
        reserved(&hello.reserved_end)?;
        if hello.flags & !(HELLO_FAREWELL | HELLO_READ_ONLY) != 0 {
            return Err(Malformed::Value);
        }
        if hello.version_min > hello.version_max {
            return Err(Malformed::Range);
        }
        let client = match hello.client.get() {
            0 => None,
            id => Some(ClientId(id)),
        };
        let greeting = Greeting {
            role: Role::from_wire(hello.role)?,
            farewell: hello.flags & HELLO_FAREWELL != 0,
            read_only: hello.flags & HELLO_READ_ONLY != 0,
            nonce: hello.nonce,
            client,
            term: hello.term.into(),
            received: hello.received.get(),
            attempt: named(hello.attempt)?,
            machine: Machine { host: HostId(hello.host_id), boot: BootId(hello.boot_id) },
            requests_max: hello.requests_max.get(),
        };
        Ok((hello, greeting))
    }

    /// A hello with this meaning; versions, features, volume and random number are still 0.
    #[must_use]
    pub fn new(greeting: &Greeting) -> Hello {
        let farewell = if greeting.farewell { HELLO_FAREWELL } else { 0 };
        let read_only = if greeting.read_only { HELLO_READ_ONLY } else { 0 };
        Hello {
            step: STEP_HELLO,
            role: greeting.role as u8,
            flags: farewell | read_only,
            reserved: 0,
            version_min: 0.into(),
            version_max: 0.into(),
            features: 0.into(),
            features_required: 0.into(),
            fsid: 0.into(),
            nonce: greeting.nonce,
            random: [0; RANDOM_BYTES],
            client: greeting.client.unwrap_or_default().into(),
            term: greeting.term.into(),
            received: greeting.received.into(),
            attempt: greeting.attempt.into(),
            host_id: greeting.machine.host.0,
            boot_id: greeting.machine.boot.0,
            requests_max: greeting.requests_max.into(),
            reserved_end: [0; 6],
        }
    }
}

impl Challenge {
    /// Checks the form, and gives the error it reports, if it does.
    pub fn parse(body: &[u8]) -> Result<(&Challenge, Option<ErrorCode>), Malformed> {
        let challenge: &Challenge = whole(body)?;
        step(challenge.step, STEP_CHALLENGE)?;
        Ok((challenge, ErrorCode::from_wire(challenge.error)))
    }

    /// A challenge that says nothing yet.
    #[must_use]
    pub fn new(error: Option<ErrorCode>) -> Challenge {
        Challenge {
            step: STEP_CHALLENGE,
            error: error.map_or(0, ErrorCode::to_wire),
            version: 0.into(),
            version_min: 0.into(),
            version_max: 0.into(),
            features: 0.into(),
            features_required: 0.into(),
            fsid: 0.into(),
            random: [0; RANDOM_BYTES],
        }
    }
}

impl Proof {
    /// Checks the form.
    pub fn parse(body: &[u8]) -> Result<&Proof, Malformed> {
        let proof: &Proof = whole(body)?;
        step(proof.step, STEP_PROOF)?;
        reserved(&proof.reserved)?;
        Ok(proof)
    }

    /// A proof that carries this code.
    #[must_use]
    pub fn new(mac: [u8; MAC_BYTES]) -> Proof {
        Proof { step: STEP_PROOF, reserved: [0; 7], mac }
    }
}

impl Welcome {
    /// Checks the form. Its content means nothing before its code has been checked.
    pub fn parse(body: &[u8]) -> Result<(&Welcome, Result<Admission, ErrorCode>), Malformed> {
        let welcome: &Welcome = whole(body)?;
        step(welcome.step, STEP_WELCOME)?;
        reserved(&[welcome.reserved])?;
        reserved(&welcome.reserved_mid)?;
        if welcome.flags & !WELCOME_FRESH != 0 {
            return Err(Malformed::Value);
        }
        let outcome = match ErrorCode::from_wire(welcome.error) {
            Some(error) => Err(error),
            None => Ok(Admission {
                client: welcome.client.into(),
                received: welcome.received.get(),
                fresh: welcome.flags & WELCOME_FRESH != 0,
                requests_max: welcome.requests_max.get(),
            }),
        };
        Ok((welcome, outcome))
    }

    /// A welcome of this term with this meaning; its code is still 0.
    #[must_use]
    pub fn new(term: Term, outcome: Result<&Admission, ErrorCode>) -> Welcome {
        let mut welcome = Welcome {
            step: STEP_WELCOME,
            error: 0,
            flags: 0,
            reserved: 0,
            requests_max: 0.into(),
            reserved_mid: [0; 2],
            term: term.into(),
            client: 0.into(),
            received: 0.into(),
            mac: [0; MAC_BYTES],
        };
        match outcome {
            Ok(admission) => {
                welcome.flags = if admission.fresh { WELCOME_FRESH } else { 0 };
                welcome.requests_max = admission.requests_max.into();
                welcome.client = admission.client.into();
                welcome.received = admission.received.into();
            }
            Err(error) => welcome.error = error.to_wire(),
        }
        welcome
    }
}

fn step(got: u8, wanted: u8) -> Result<(), Malformed> {
    if got == wanted { Ok(()) } else { Err(Malformed::Kind) }
}

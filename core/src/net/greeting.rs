//! Both ends of the greeting: four records, two proofs.
//!
//! Each end keeps a running hash of all records so far. A proof is a MAC, keyed with the cluster's
//! key, over a label that names the direction and that hash, which holds both ends' random numbers:
//! it fits no other connection and not the other direction. The seeds of the checksums afterwards
//! come from the same hash.
//!
//! ```text
//!   Asker:     ask -> Hello    on_challenge -> Proof     on_welcome -> Admitted
//!   Answerer:  on_hello -> Challenge    on_proof    welcome -> Welcome, Seeds
//! ```
//!
//! # Invariants
//!
//! * Before `on_proof` succeeds nothing that the client said is believed, and before `on_welcome`
//!   succeeds nothing that the server said.
//! * MACs are compared in constant time.
//!
//! What this file deliberately doesn't know: connections, sessions, and who may be admitted.

use super::{Cluster, End};
use crate::format::Term;
use crate::format::wire::ErrorCode;
use crate::format::wire::greeting::{
    Admission, Challenge, Greeting, Hello, MAC_BYTES, Proof, RANDOM_BYTES, Welcome,
};
use blake2::digest::{FixedOutput, KeyInit, Mac, Update};
use blake2::{Blake2s256, Blake2sMac256};
use zerocopy::IntoBytes;

/// Seeds of the checksums of all records after the greeting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seeds {
    pub(super) to_server: u32,
    pub(super) to_client: u32,
}

/// What a client learns from a welcome.
#[derive(Debug, Clone, Copy)]
pub(super) struct Admitted {
    pub(super) term: Term,
    pub(super) admission: Admission,
    pub(super) seeds: Seeds,
}

/// The client's end of a greeting.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asker {
    transcript: Transcript,
}

/// The server's end of a greeting.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answerer {
    transcript: Transcript,
    greeting: Greeting,
}

impl Asker {
    /// Begins a greeting.
    pub(super) fn ask(
        cluster: &Cluster,
        greeting: &Greeting,
        random: [u8; RANDOM_BYTES],
    ) -> (Asker, Hello) {
        let hello = Hello {
            version_min: cluster.version_min.into(),
            version_max: cluster.version_max.into(),
            features: cluster.features.into(),
            features_required: cluster.features_required.into(),
            fsid: cluster.fsid.into(),
            random,
            ..Hello::new(greeting)
        };
        let mut transcript = Transcript::NEW;
        transcript.add(hello.as_bytes());
        (Asker { transcript }, hello)
    }

    /// Checks what the server offers, and proves the key.
    pub(super) fn on_challenge(&mut self, cluster: &Cluster, body: &[u8]) -> Result<Proof, End> {
        let (challenge, error) = Challenge::parse(body)?;
        if let Some(error) = error {
            return Err(End::Refused { error, proven: false });
        }
        let version = challenge.version.get();
        let features = challenge.features.get();
        if challenge.fsid.get() != cluster.fsid {
            return Err(End::Refusing(ErrorCode::WrongVolume));
        }
        if version < cluster.version_min || version > cluster.version_max {
            return Err(End::Refusing(ErrorCode::BadVersion));
        }
        let needed = cluster.features_required | challenge.features_required.get();
        if features & !cluster.features != 0 || needed & !features != 0 {
            return Err(End::Refusing(ErrorCode::BadFeature));
        }
        self.transcript.add(body);
        let proof = Proof::new(self.transcript.mac(cluster, Label::Proof, &[]));
        self.transcript.add(proof.as_bytes());
        Ok(proof)
    }

    /// Checks that the server knows the key, and then what it says.
    pub(super) fn on_welcome(mut self, cluster: &Cluster, body: &[u8]) -> Result<Admitted, End> {
        let (welcome, outcome) = Welcome::parse(body)?;
        let unsigned = Welcome { mac: [0; MAC_BYTES], ..*welcome };
        let proven = self.transcript.verify(cluster, Label::Welcome, &unsigned, &welcome.mac);
        let admission = match outcome {
            Err(error) => return Err(End::Refused { error, proven }),
            Ok(_) if !proven => return Err(End::Refusing(ErrorCode::BadMac)),
            Ok(admission) => admission,
        };
        self.transcript.add(body);
        Ok(Admitted { term: welcome.term.into(), admission, seeds: self.transcript.seeds(cluster) })
    }
}

impl Answerer {
    /// Checks whether the client can be talked to at all. The challenge goes out in either case.
    pub(super) fn on_hello(
        cluster: &Cluster,
        random: [u8; RANDOM_BYTES],
        body: &[u8],
    ) -> Result<(Challenge, Result<Answerer, ErrorCode>), End> {
        let (hello, greeting) = Hello::parse(body)?;
        let offer = Challenge {
            version_min: cluster.version_min.into(),
            version_max: cluster.version_max.into(),
            features: cluster.features.into(),
            features_required: cluster.features_required.into(),
            fsid: cluster.fsid.into(),
            ..Challenge::new(None)
        };
        let version = match common_version(cluster, hello) {
            Ok(version) => version,
            Err(error) => return Ok((Challenge { error: error.to_wire(), ..offer }, Err(error))),
        };
        let features = (cluster.features & hello.features.get()).into();
        let challenge = Challenge { version: version.into(), features, random, ..offer };
        let mut transcript = Transcript::NEW;
        transcript.add(body);
        transcript.add(challenge.as_bytes());
        Ok((challenge, Ok(Answerer { transcript, greeting })))
    }

    /// Checks that the client knows the key. False means that it doesn't.
    pub(super) fn on_proof(&mut self, cluster: &Cluster, body: &[u8]) -> Result<bool, End> {
        let proof = Proof::parse(body)?;
        let proven = self.transcript.verify(cluster, Label::Proof, &(), &proof.mac);
        self.transcript.add(body);
        Ok(proven)
    }

    /// What the client said in its hello.
    pub(super) fn greeting(&self) -> &Greeting {
        &self.greeting
    }

    /// Proves the key, and ends the greeting.
    pub(super) fn welcome(
        mut self,
        cluster: &Cluster,
        term: Term,
        outcome: Result<&Admission, ErrorCode>,
    ) -> (Welcome, Seeds) {
        let mut welcome = Welcome::new(term, outcome);
        welcome.mac = self.transcript.mac(cluster, Label::Welcome, welcome.as_bytes());
        self.transcript.add(welcome.as_bytes());
        (welcome, self.transcript.seeds(cluster))
    }
}

fn common_version(cluster: &Cluster, hello: &Hello) -> Result<u16, ErrorCode> {
    if hello.fsid.get() != cluster.fsid {
        return Err(ErrorCode::WrongVolume);
    }
    let version = cluster.version_max.min(hello.version_max.get());
    if version < cluster.version_min.max(hello.version_min.get()) {
        return Err(ErrorCode::BadVersion);
    }
    let needed = cluster.features_required | hello.features_required.get();
    if needed & !(cluster.features & hello.features.get()) != 0 {
        return Err(ErrorCode::BadFeature);
    }
    Ok(version)
}

/// What a code is made for. Two uses never share one.
#[derive(Debug, Clone, Copy)]
enum Label {
    Proof,
    Welcome,
    Seeds,
}

impl Label {
    fn text(self) -> &'static [u8] {
        match self {
            Label::Proof => b"outrider greeting: client to server: proof",
            Label::Welcome => b"outrider greeting: server to client: welcome",
            Label::Seeds => b"outrider greeting: seeds of the checksums",
        }
    }
}

/// A running hash of the records of a greeting.
#[derive(Debug, Clone, Copy)]
struct Transcript([u8; 32]);

impl Transcript {
    const NEW: Transcript = Transcript([0; 32]);

    fn add(&mut self, record: &[u8]) {
        let mut hash = Blake2s256::default();
        Update::update(&mut hash, &self.0);
        Update::update(&mut hash, record);
        self.0 = hash.finalize_fixed().into();
    }

    fn keyed(&self, cluster: &Cluster, label: Label, more: &[u8]) -> Blake2sMac256 {
        let mut mac = <Blake2sMac256 as KeyInit>::new_from_slice(&cluster.key.0)
            .expect("a key is as long as the function takes");
        Update::update(&mut mac, label.text());
        Update::update(&mut mac, &self.0);
        Update::update(&mut mac, more);
        mac
    }

    fn mac(&self, cluster: &Cluster, label: Label, more: &[u8]) -> [u8; MAC_BYTES] {
        self.keyed(cluster, label, more).finalize_fixed().into()
    }

    fn verify<T: IntoBytes + zerocopy::Immutable>(
        &self,
        cluster: &Cluster,
        label: Label,
        more: &T,
        mac: &[u8; MAC_BYTES],
    ) -> bool {
        self.keyed(cluster, label, more.as_bytes()).verify(mac.into()).is_ok()
    }

    fn seeds(&self, cluster: &Cluster) -> Seeds {
        let [a, b, c, d, e, f, g, h, ..] = self.mac(cluster, Label::Seeds, &[]);
        Seeds {
            to_server: u32::from_le_bytes([a, b, c, d]),
            to_client: u32::from_le_bytes([e, f, g, h]),
        }
    }
}

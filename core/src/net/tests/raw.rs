//! Peers that know the key and the rules, and need not keep to them.

use super::std::vec;
use super::std::vec::Vec;
use super::world::{KEY, WINDOWS};
use crate::format::wire::greeting::{Admission, Greeting, Machine, Role};
use crate::format::wire::{BODY_BYTES_MAX, Frame};
use crate::format::{ClientId, Term};
use crate::net::greeting::{Answerer, Asker};
use crate::net::record::{Channel, OVERHEAD_BYTES};
use crate::net::{Cluster, Link, Links, LinksEvent};
use outrider_hal::{Instant, StreamId};
use zerocopy::IntoBytes;

pub(super) const NOW: Instant = Instant(1_000_000);

/// Gives bytes to a server, and takes what it has to say.
pub(super) fn tell_server(links: &mut Links<'_>, stream: StreamId, bytes: &[u8]) -> Vec<u8> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let space = links.recv_space(stream);
        let count = space.len().min(rest.len());
        if count == 0 {
            break;
        }
        space[..count].copy_from_slice(&rest[..count]);
        links.received(NOW, stream, count);
        rest = &rest[count..];
    }
    hear_server(links, stream)
}

pub(super) fn hear_server(links: &mut Links<'_>, stream: StreamId) -> Vec<u8> {
    links.step(NOW);
    let said = links.send_bytes(stream).to_vec();
    links.sent(stream, said.len());
    said
}

/// Gives bytes to a client, and takes what it has to say.
pub(super) fn tell_client(link: &mut Link<'_>, stream: StreamId, bytes: &[u8]) -> Vec<u8> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let space = link.recv_space(stream);
        let count = space.len().min(rest.len());
        if count == 0 {
            break;
        }
        space[..count].copy_from_slice(&rest[..count]);
        link.received(NOW, stream, count);
        rest = &rest[count..];
    }
    hear_client(link, stream)
}

pub(super) fn hear_client(link: &mut Link<'_>, stream: StreamId) -> Vec<u8> {
    link.step(NOW);
    let said = link.send_bytes(stream).to_vec();
    link.sent(stream, said.len());
    said
}

/// A greeting as a new mount would send it.
pub(super) fn first_greeting() -> Greeting {
    Greeting {
        role: Role::Mount,
        farewell: false,
        read_only: false,
        nonce: [5; 16],
        client: None,
        term: Term::NONE,
        received: 0,
        attempt: 1,
        machine: Machine::default(),
        requests_max: WINDOWS.asks_max,
    }
}

/// One end of a connection that seals what it likes.
pub(super) struct Raw {
    outgoing: Channel,
    incoming: Channel,
}

impl Raw {
    pub(super) fn new() -> Raw {
        Raw { outgoing: Channel::NEW, incoming: Channel::NEW }
    }

    pub(super) fn seal(&mut self, body: &[u8]) -> Vec<u8> {
        let mut record = vec![0; OVERHEAD_BYTES];
        record.extend(body);
        self.outgoing.seal(&mut record);
        record
    }

    pub(super) fn frame(&mut self, frame: &Frame<'_>) -> Vec<u8> {
        let mut body = frame.header().as_bytes().to_vec();
        body.extend(frame.message.map_or(&[][..], |message| message.payload));
        self.seal(&body)
    }

    /// The body of the one record that `bytes` are.
    pub(super) fn open(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        let body_bytes = self.incoming.open(&mut bytes, BODY_BYTES_MAX).unwrap().unwrap();
        assert_eq!(bytes.len(), OVERHEAD_BYTES + body_bytes);
        bytes[OVERHEAD_BYTES..].to_vec()
    }

    /// A client that a server has welcomed.
    pub(super) fn client(
        links: &mut Links<'_>,
        cluster: &Cluster,
        stream: StreamId,
        greeting: &Greeting,
    ) -> Raw {
        let mut raw = Raw::new();
        assert_eq!(links.accept(NOW, stream, [2; 16]), Ok(None));
        let (mut asker, hello) = Asker::ask(cluster, greeting, [3; 16]);
        let challenge = tell_server(links, stream, &raw.seal(hello.as_bytes()));
        let proof = asker.on_challenge(cluster, &raw.open(&challenge)).unwrap();
        tell_server(links, stream, &raw.seal(proof.as_bytes()));
        assert!(matches!(links.poll_event(), Some(LinksEvent::Greeted(_, _))));
        links.admit(NOW, stream, ClientId(9)).unwrap();
        let welcome = hear_server(links, stream);
        let admitted = asker.on_welcome(cluster, &raw.open(&welcome)).unwrap();
        raw.outgoing.rekey(admitted.seeds.to_server);
        raw.incoming.rekey(admitted.seeds.to_client);
        raw
    }

    /// A server that has answered a client's hello: it says what it likes in the welcome.
    pub(super) fn server(
        link: &mut Link<'_>,
        cluster: &Cluster,
        stream: StreamId,
        term: Term,
        admission: &Admission,
    ) -> Raw {
        let mut raw = Raw::new();
        link.connect(NOW, stream, [4; 16]);
        let hello = hear_client(link, stream);
        let (challenge, answerer) =
            Answerer::on_hello(cluster, [5; 16], &raw.open(&hello)).unwrap();
        let proof = tell_client(link, stream, &raw.seal(challenge.as_bytes()));
        let mut answerer = answerer.unwrap();
        let proven = answerer.on_proof(cluster, &raw.open(&proof)).unwrap();
        assert_eq!(proven, cluster.key == KEY);
        let (welcome, seeds) = answerer.welcome(cluster, term, Ok(admission));
        let welcome = raw.seal(welcome.as_bytes());
        // What the client says next is under the seeds.
        raw.outgoing.rekey(seeds.to_client);
        raw.incoming.rekey(seeds.to_server);
        tell_client(link, stream, &welcome);
        raw
    }
}

/// A welcome for a client of no history.
pub(super) fn first_admission() -> Admission {
    Admission { client: ClientId(9), received: 0, fresh: true, requests_max: WINDOWS.asks_max }
}

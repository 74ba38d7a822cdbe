//! A client's greeting on a connection: its records go through the connection's buffers.
//!
//! ```text
//!   begin --hello--> Challenge --proof--> Welcome --> Admitted
//! ```
//!
//! # Invariants
//!
//! * Nothing but records of the greeting is read or written until it is over.
//!
//! What this file deliberately doesn't know: what the connection is for, and how long it may take.

use super::greeting::{Admitted, Asker};
use super::line::Line;
use super::{Cluster, End};
use crate::format::wire::greeting::{Greeting, RANDOM_BYTES};
use outrider_hal::Instant;
use zerocopy::IntoBytes;

/// A greeting under way.
#[derive(Debug, Clone, Copy)]
pub(super) enum Asking {
    /// The challenge is waited for.
    Challenge(Asker),
    /// The welcome is.
    Welcome(Asker),
}

impl Asking {
    /// Says hello on a new connection.
    pub(super) fn begin(
        now: Instant,
        cluster: &Cluster,
        greeting: &Greeting,
        random: [u8; RANDOM_BYTES],
        line: &mut Line<'_>,
    ) -> Asking {
        let (asker, hello) = Asker::ask(cluster, greeting, random);
        line.reset(now);
        let fits = line.push(now, hello.as_bytes(), &[]);
        assert!(fits, "the buffer is empty and holds any record of a greeting");
        Asking::Challenge(asker)
    }

    /// Goes on with what was received. What came of it, when it is over.
    pub(super) fn advance(
        &mut self,
        now: Instant,
        cluster: &Cluster,
        line: &mut Line<'_>,
    ) -> Result<Option<Admitted>, End> {
        if let Asking::Challenge(asker) = self {
            let Some(body) = line.body(now)? else { return Ok(None) };
            let proof = asker.on_challenge(cluster, body)?;
            line.consume();
            let fits = line.push(now, proof.as_bytes(), &[]);
            assert!(fits, "the buffer holds hello and proof");
            *self = Asking::Welcome(*asker);
        }
        let Asking::Welcome(asker) = *self else { return Ok(None) };
        let Some(body) = line.body(now)? else { return Ok(None) };
        let admitted = asker.on_welcome(cluster, body)?;
        line.consume();
        Ok(Some(admitted))
    }
}

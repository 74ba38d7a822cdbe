//! What a run looked like from outside: one hash of everything observable, and a text on request.
//!
//! # Invariants
//!
//! * Whatever a node does, and whatever is done to it, is noted: two runs with one hash did the
//!   same things at the same times in the same order.
//! * Keeping the text changes nothing else about a run.

use crate::time::Time;
use outrider_core::crc32c::crc32c;
use siphasher::sip::SipHasher13;
use std::fmt;
use std::hash::{Hash, Hasher};

/// One simulated machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(pub u16);

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "h{}", self.0)
    }
}

/// Stands for bytes in a note: two equal digests are taken for equal bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest {
    len: u32,
    crc: u32,
}

impl Digest {
    /// The digest of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Digest {
        Digest { len: bytes.len() as u32, crc: crc32c(bytes) }
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} B #{:08x}", self.len, self.crc)
    }
}

/// The record of a run.
#[derive(Debug)]
pub struct Trace {
    hasher: SipHasher13,
    notes_ever: u64,
    lines: Option<Vec<String>>,
    to_stdout: bool,
}

impl Trace {
    /// A trace that only hashes.
    #[must_use]
    pub fn new() -> Trace {
        Trace { hasher: SipHasher13::new(), notes_ever: 0, lines: None, to_stdout: false }
    }

    /// Keeps the text from now on, for [`lines`](Self::lines).
    pub fn keep_lines(&mut self) {
        self.lines.get_or_insert_default();
    }

    /// Prints the text from now on.
    pub fn print_lines(&mut self) {
        self.to_stdout = true;
    }

    /// Notes that something happened, at a host or to the world.
    pub fn note<N: Hash + fmt::Debug + ?Sized>(&mut self, now: Time, at: Option<HostId>, note: &N) {
        now.hash(&mut self.hasher);
        at.hash(&mut self.hasher);
        note.hash(&mut self.hasher);
        self.notes_ever += 1;
        if self.to_stdout || self.lines.is_some() {
            let host = at.map_or(String::new(), |host| host.to_string());
            let line = format!("{now:>16} {host:4} {note:?}");
            if self.to_stdout {
                println!("{line}");
            }
            if let Some(lines) = &mut self.lines {
                lines.push(line);
            }
        }
    }

    /// The hash of everything noted so far.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hasher.finish()
    }

    /// How many notes there were.
    #[must_use]
    pub fn notes_ever(&self) -> u64 {
        self.notes_ever
    }

    /// The text, if it was kept.
    #[must_use]
    pub fn lines(&self) -> &[String] {
        self.lines.as_deref().unwrap_or_default()
    }
}

impl Default for Trace {
    fn default() -> Trace {
        Trace::new()
    }
}

#[cfg(test)]
mod tests {
    use super::{Digest, HostId, Trace};
    use crate::time::Time;

    #[test]
    fn the_hash_tells_time_place_and_content_apart() {
        let hash = |now, at, bytes: &[u8], text: bool| {
            let mut trace = Trace::new();
            if text {
                trace.keep_lines();
            }
            trace.note(Time(now), at, &Digest::of(bytes));
            trace.hash()
        };
        let one = hash(1, Some(HostId(1)), b"abc", false);
        assert_eq!(one, hash(1, Some(HostId(1)), b"abc", true));
        assert_ne!(one, hash(2, Some(HostId(1)), b"abc", false));
        assert_ne!(one, hash(1, Some(HostId(2)), b"abc", false));
        assert_ne!(one, hash(1, Some(HostId(1)), b"abd", false));
    }
}

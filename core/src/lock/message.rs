//! What lock client and server say to each other.
//!
//! Each message is one [`LockRecord`], but for the question what is held: that is a key, and the
//! answer a batch of [`HeldRecord`]s.
//!
//! What this module deliberately doesn't know: frames, sessions, sequence numbers.

use super::{LockName, Mode};
use crate::error::Corruption;
use crate::format::key::Key;
use crate::format::wire::message::{HeldRecord, LockRecord};

/// From client to server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToServer {
    /// "Grant me this lock in this mode." Answered by a grant or a refusal.
    Request {
        /// The lock.
        name: LockName,
        /// What is wanted: never null.
        mode: Mode,
    },
    /// "Of this grant I keep only this." Answers a revoke, or comes unasked. Not answered.
    Release {
        /// The lock.
        name: LockName,
        /// Which grant.
        generation: u64,
        /// What is kept: null or read.
        kept: Mode,
    },
}

/// From server to client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToClient {
    /// The lock is granted. Replaces what the client had been granted before.
    Grant {
        /// The lock.
        name: LockName,
        /// Names the grant.
        generation: u64,
        /// As it was wanted.
        mode: Mode,
    },
    /// "Give back this grant", or all of it but reading. Answered by a release.
    Revoke {
        /// The lock.
        name: LockName,
        /// Which grant.
        generation: u64,
        /// What may be kept: null or read.
        to: Mode,
    },
    /// The request could not be taken.
    Refuse {
        /// The lock.
        name: LockName,
        /// What was wanted.
        mode: Mode,
        /// Why.
        refusal: Refusal,
    },
    /// "Which locks do you hold, from this key on?" Answered by a batch in the order of the names;
    /// an empty batch says there are no more.
    Recover {
        /// Where to go on.
        from: Key,
    },
}

/// Why the server could not take a request. It can be made again later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Refusal {
    /// The server's table is full; it is revoking idle grants.
    Full = 1,
    /// The client has as many locks as one may.
    ClientFull = 2,
    /// The server keeps its room for what recovering clients have still to report.
    Recovering = 3,
}

/// A lock that a client holds, as it reports to a new server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The lock.
    pub name: LockName,
    /// How it is held: never null.
    pub mode: Mode,
}

fn record(kind: u8, mode: Mode, name: Key, generation: u64, refusal: u8) -> LockRecord {
    let (mode, name, generation) = (mode as u8, name.into(), generation.into());
    LockRecord { kind, mode, name, generation, refusal }
}

fn wanted(mode: u8) -> Result<Mode, Corruption> {
    Mode::parse(mode).and_then(|mode| match mode {
        Mode::Null => Err(Corruption::Value),
        Mode::Read | Mode::Write | Mode::WriteOnly => Ok(mode),
    })
}

fn kept(mode: u8) -> Result<Mode, Corruption> {
    Mode::parse(mode).and_then(|mode| match mode {
        Mode::Null | Mode::Read => Ok(mode),
        Mode::Write | Mode::WriteOnly => Err(Corruption::Value),
    })
}

fn same<T>(message: T, emitted: LockRecord, record: &LockRecord) -> Result<T, Corruption> {
    if emitted == *record { Ok(message) } else { Err(Corruption::Reserved) }
}

impl ToServer {
    /// The message that these bytes are.
    pub fn parse(record: &LockRecord) -> Result<ToServer, Corruption> {
        let name = LockName::parse(&record.name.into())?;
        let generation = record.generation.get();
        let message = match record.kind {
            LockRecord::REQUEST => ToServer::Request { name, mode: wanted(record.mode)? },
            LockRecord::RELEASE => ToServer::Release { name, generation, kept: kept(record.mode)? },
            _ => return Err(Corruption::Kind),
        };
        same(message, message.emit(), record)
    }

    /// Its bytes.
    #[must_use]
    pub fn emit(&self) -> LockRecord {
        match *self {
            ToServer::Request { name, mode } => {
                record(LockRecord::REQUEST, mode, name.start(), 0, 0)
            }
            ToServer::Release { name, generation, kept } => {
                record(LockRecord::RELEASE, kept, name.start(), generation, 0)
            }
        }
    }
}

impl ToClient {
    /// The message that these bytes are.
    pub fn parse(record: &LockRecord) -> Result<ToClient, Corruption> {
        let name = LockName::parse(&record.name.into())?;
        let generation = record.generation.get();
        let message = match record.kind {
            LockRecord::GRANT => ToClient::Grant { name, generation, mode: wanted(record.mode)? },
            LockRecord::REVOKE => ToClient::Revoke { name, generation, to: kept(record.mode)? },
            LockRecord::REFUSE => {
                let refusal = Refusal::parse(record.refusal)?;
                ToClient::Refuse { name, mode: wanted(record.mode)?, refusal }
            }
            _ => return Err(Corruption::Kind),
        };
        let emitted = message.emit().ok_or(Corruption::Kind)?;
        same(message, emitted, record)
    }

    /// Its bytes; none of the question what is held, which is its key.
    #[must_use]
    pub fn emit(&self) -> Option<LockRecord> {
        Some(match *self {
            ToClient::Grant { name, generation, mode } => {
                record(LockRecord::GRANT, mode, name.start(), generation, 0)
            }
            ToClient::Revoke { name, generation, to } => {
                record(LockRecord::REVOKE, to, name.start(), generation, 0)
            }
            ToClient::Refuse { name, mode, refusal } => {
                record(LockRecord::REFUSE, mode, name.start(), 0, refusal as u8)
            }
            ToClient::Recover { .. } => return None,
        })
    }
}

impl Refusal {
    fn parse(number: u8) -> Result<Refusal, Corruption> {
        match number {
            1 => Ok(Refusal::Full),
            2 => Ok(Refusal::ClientFull),
            3 => Ok(Refusal::Recovering),
            _ => Err(Corruption::Value),
        }
    }
}

impl Held {
    /// The lock that these bytes report.
    pub fn parse(record: &HeldRecord) -> Result<Held, Corruption> {
        let name = LockName::parse(&record.name.into())?;
        Ok(Held { name, mode: wanted(record.mode)? })
    }

    /// Its bytes.
    #[must_use]
    pub fn emit(&self) -> HeldRecord {
        HeldRecord { name: self.name.start().into(), mode: self.mode as u8 }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use crate::format::Ino;
    use proptest::prelude::*;
    use std::string::String;
    use zerocopy::{FromBytes, IntoBytes};

    proptest! {
        /// Whatever the bytes are: refused, or meant exactly as they stand.
        #[test]
        fn nothing_is_accepted_that_would_not_be_sent(
            kind in 0u8..8, mode in 0u8..5, zone in 0u8..5, number in 0u64..3,
            generation in 0u64..2, refusal in 0u8..4, bytes: [u8; 38],
        ) {
            let name = Key { zone, first: number << 10, ..Key::MIN }.into();
            let record = LockRecord { kind, mode, name, generation: generation.into(), refusal };
            for record in [record, LockRecord::read_from_bytes(&bytes).unwrap()] {
                if let Ok(message) = ToServer::parse(&record) {
                    prop_assert_eq!(message.emit(), record);
                }
                if let Ok(message) = ToClient::parse(&record) {
                    prop_assert_eq!(message.emit(), Some(record));
                }
            }
            let held = HeldRecord { name, mode };
            if let Ok(parsed) = Held::parse(&held) {
                prop_assert_eq!(parsed.emit(), held);
            }
        }
    }

    #[test]
    fn golden() {
        let name = LockName::inode(Ino(1024));
        let refuse = ToClient::Refuse { name, mode: Mode::Read, refusal: Refusal::Recovering };
        let messages = [
            ("request", ToServer::Request { name, mode: Mode::WriteOnly }.emit()),
            ("release", ToServer::Release { name, generation: 7, kept: Mode::Read }.emit()),
            ("grant", ToClient::Grant { name, generation: 7, mode: Mode::Write }.emit().unwrap()),
            ("revoke", ToClient::Revoke { name, generation: 7, to: Mode::Null }.emit().unwrap()),
            ("refuse", refuse.emit().unwrap()),
        ];
        assert_eq!(ToClient::Recover { from: Key::MIN }.emit(), None);
        let held = Held { name, mode: Mode::Write }.emit();
        let hex = |bytes: &[u8]| -> String {
            bytes.iter().map(|byte| std::format!("{byte:02x}")).collect()
        };
        let mut text = String::new();
        for (name, record) in &messages {
            text += &std::format!("{name} {}\n", hex(record.as_bytes()));
        }
        text += &std::format!("held {}\n", hex(held.as_bytes()));
        assert_eq!(text, include_str!("message/golden.txt"));
    }

    #[test]
    fn every_message_is_read_back() {
        let name = LockName::inode(Ino(5000));
        for message in [
            ToServer::Request { name, mode: Mode::WriteOnly },
            ToServer::Release { name, generation: u64::MAX, kept: Mode::Read },
        ] {
            assert_eq!(ToServer::parse(&message.emit()), Ok(message));
            assert_eq!(ToClient::parse(&message.emit()), Err(Corruption::Kind));
        }
        for message in [
            ToClient::Grant { name, generation: 7, mode: Mode::Write },
            ToClient::Revoke { name, generation: 7, to: Mode::Null },
            ToClient::Refuse { name, mode: Mode::Read, refusal: Refusal::ClientFull },
        ] {
            let record = message.emit().unwrap();
            assert_eq!(ToClient::parse(&record), Ok(message));
            assert!(ToServer::parse(&record).is_err());
        }
        let mut record = ToServer::Request { name, mode: Mode::Read }.emit();
        record.refusal = 1;
        assert_eq!(ToServer::parse(&record), Err(Corruption::Reserved));
    }
}

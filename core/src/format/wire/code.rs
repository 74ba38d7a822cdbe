//! Every error that one node can tell another.

use crate::error::Error;
use core::fmt;

macro_rules! codes {
    ($( $(#[$meta:meta])* $name:ident = $code:literal, $text:literal; )*) => {
        /// Why a peer can't have what it asked for. The number is that on the wire.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub enum ErrorCode {
            $( $(#[$meta])* $name = $code, )*
            /// A code that only a newer peer knows. Never sent.
            Unknown = 255,
        }

        impl ErrorCode {
            /// All that are sent.
            pub const ALL: &'static [ErrorCode] = &[ $( ErrorCode::$name, )* ];

            /// The error of this number on the wire; 0 is none.
            #[must_use]
            pub fn from_wire(raw: u8) -> Option<ErrorCode> {
                match raw {
                    0 => None,
                    $( $code => Some(ErrorCode::$name), )*
                    _ => Some(ErrorCode::Unknown),
                }
            }
        }

        impl fmt::Display for ErrorCode {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $( ErrorCode::$name => $text, )*
                    ErrorCode::Unknown => "an error only newer nodes know",
                })
            }
        }
    };
}

codes! {
    /// It doesn't exist.
    NotFound = 1, "not found";
    /// It exists already.
    Exists = 2, "exists";
    /// The volume has no space left for it.
    NoSpace = 3, "no space left";
    /// The server's device failed.
    Io = 4, "the server's device failed";
    /// A block on the device is not what it must be.
    Corrupt = 5, "the volume is corrupt";
    /// The request contradicts itself, or what the server has recorded.
    Invalid = 6, "invalid request";
    /// Not now; the same request may succeed later.
    Busy = 7, "busy";
    /// The volume, or the session, is read-only.
    ReadOnly = 8, "read-only";
    /// A bound that all nodes agree on would be exceeded.
    TooMany = 9, "too many";
    /// The request or the greeting belongs to an older state than the one recorded.
    Stale = 10, "stale";
    /// The client was evicted; it must come back as a new one.
    Evicted = 11, "evicted";
    /// This node does not lead.
    NotLeader = 12, "not the leader";
    /// The peer belongs to another volume.
    WrongVolume = 13, "another volume";
    /// No protocol version is known to both.
    BadVersion = 14, "no common protocol version";
    /// A feature that one needs is unknown to the other.
    BadFeature = 15, "a needed feature is missing";
    /// The peer did not prove that it knows the volume's key.
    BadMac = 16, "the volume's key was not proved";
    /// The client that this concerns is not known.
    NotConnected = 17, "not connected";
    /// The server is stopping.
    Stopping = 18, "the server is stopping";
}

impl ErrorCode {
    /// The number on the wire.
    #[must_use]
    pub const fn to_wire(self) -> u8 {
        self as u8
    }
}

impl From<Error> for ErrorCode {
    fn from(error: Error) -> ErrorCode {
        match error {
            Error::Corrupt { .. } => ErrorCode::Corrupt,
            Error::Io { .. } => ErrorCode::Io,
            Error::NoSpace => ErrorCode::NoSpace,
            Error::Exists => ErrorCode::Exists,
            Error::NotFound => ErrorCode::NotFound,
        }
    }
}

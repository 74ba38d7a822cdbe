//! Modes, and which of them go together.
//!
//! What this module deliberately doesn't know: locks, and who holds them.

use crate::error::Corruption;

/// What the holder of a lock may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Mode {
    /// Nothing: not held.
    Null = 0,
    /// Read, together with other readers.
    Read = 1,
    /// Read and write, alone.
    Write = 2,
    /// Write without reading, together with others who do the same.
    WriteOnly = 3,
}

impl Mode {
    /// The mode of this number.
    pub const fn parse(number: u8) -> Result<Mode, Corruption> {
        match number {
            0 => Ok(Mode::Null),
            1 => Ok(Mode::Read),
            2 => Ok(Mode::Write),
            3 => Ok(Mode::WriteOnly),
            _ => Err(Corruption::Value),
        }
    }

    /// Whether a holder in this mode may read.
    #[must_use]
    pub const fn reads(self) -> bool {
        match self {
            Mode::Null | Mode::WriteOnly => false,
            Mode::Read | Mode::Write => true,
        }
    }

    /// Whether a holder in this mode may write.
    #[must_use]
    pub const fn writes(self) -> bool {
        match self {
            Mode::Null | Mode::Read => false,
            Mode::Write | Mode::WriteOnly => true,
        }
    }

    /// Whether who holds this mode may do what `wanted` allows. Write covers read; else only equal
    /// modes cover each other, and everything covers null.
    #[must_use]
    pub const fn covers(self, wanted: Mode) -> bool {
        match (self, wanted) {
            (_, Mode::Null)
            | (Mode::Write, Mode::Read | Mode::Write)
            | (Mode::Read, Mode::Read)
            | (Mode::WriteOnly, Mode::WriteOnly) => true,
            (Mode::Null | Mode::WriteOnly, Mode::Read)
            | (Mode::Null | Mode::Read | Mode::WriteOnly, Mode::Write)
            | (Mode::Null | Mode::Read | Mode::Write, Mode::WriteOnly) => false,
        }
    }

    /// Whether this grant may stay as it is while `wanted` is granted. `own` says that the same
    /// client asks: its read becomes write without a moment in between, so its cache stays valid.
    #[must_use]
    pub const fn admits(self, wanted: Mode, own: bool) -> bool {
        match (self, wanted) {
            (Mode::Null, _)
            | (_, Mode::Null)
            | (Mode::Read, Mode::Read)
            | (Mode::WriteOnly, Mode::WriteOnly) => true,
            (Mode::Read, Mode::Write) => own,
            (Mode::Read, Mode::WriteOnly)
            | (Mode::Write, Mode::Read | Mode::Write | Mode::WriteOnly)
            | (Mode::WriteOnly, Mode::Read | Mode::Write) => false,
        }
    }

    /// What is left of this grant when it is revoked because of a request for `wanted`: a writer
    /// that a reader waits for keeps reading.
    #[must_use]
    pub const fn revoked_for(self, wanted: Mode) -> Mode {
        match (self, wanted) {
            (Mode::Read | Mode::Write, Mode::Read) => Mode::Read,
            (Mode::Null | Mode::WriteOnly, Mode::Read)
            | (_, Mode::Null | Mode::Write | Mode::WriteOnly) => Mode::Null,
        }
    }

    /// Index of a mode that can be used, for counters: read, write, write-only.
    pub(super) const fn index(self) -> usize {
        match self {
            Mode::Null => panic!("null is not used"),
            Mode::Read => 0,
            Mode::Write => 1,
            Mode::WriteOnly => 2,
        }
    }

    /// The modes that can be used, by their index.
    pub(super) const USED: [Mode; 3] = [Mode::Read, Mode::Write, Mode::WriteOnly];
}

//! Numbers that name things, each a type of its own.

use core::fmt;

macro_rules! number {
    ($( $(#[$meta:meta])* $name:ident )*) => { $(
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl $name {
            /// The number after this one. Numbers are never reused and can't run out: 2^64 of them
            /// at one a nanosecond last five centuries.
            #[must_use]
            pub const fn next(self) -> $name {
                $name(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<zerocopy::little_endian::U64> for $name {
            fn from(from: zerocopy::little_endian::U64) -> $name {
                $name(from.get())
            }
        }

        impl From<$name> for zerocopy::little_endian::U64 {
            fn from(from: $name) -> zerocopy::little_endian::U64 {
                from.0.into()
            }
        }
    )* };
}

number! {
    /// A mount, for as long as it is mounted. Unique on the volume for ever; 0 is nobody.
    ClientId
    /// A commit of the server's trees. Counts up by one, across terms; 0 is what mkfs wrote.
    CommitNo
    /// An inode. Never reused; 1 is the root directory, 0 is none.
    Ino
    /// A sorted run of items. Never reused; 0 is none.
    RunId
    /// A client transaction, in the order in which they were opened. 0 is none.
    Seq
}

/// A leader's time in office: a round of the election and the slot that won it. Ordered by round,
/// then slot, so that two leaders of one round still differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Term(u64);

impl Term {
    /// Before the first: what mkfs wrote.
    pub const NONE: Term = Term(0);

    /// The term of this round and slot. Rounds stay below 2^56.
    #[must_use]
    pub const fn new(round: u64, slot: u8) -> Term {
        assert!(round < 1 << 56);
        Term(round << 8 | slot as u64)
    }

    /// The round of the election.
    #[must_use]
    pub const fn round(self) -> u64 {
        self.0 >> 8
    }

    /// The slot of the leader.
    #[must_use]
    pub const fn slot(self) -> u8 {
        self.0 as u8
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.round(), self.slot())
    }
}

impl From<zerocopy::little_endian::U64> for Term {
    fn from(from: zerocopy::little_endian::U64) -> Term {
        Term(from.get())
    }
}

impl From<Term> for zerocopy::little_endian::U64 {
    fn from(from: Term) -> zerocopy::little_endian::U64 {
        from.0.into()
    }
}

//! Every byte that crosses a boundary: the disk, and the wire.
//!
//! Structures are declared with `record!`, which makes them padding-free, little-endian and of
//! alignment 1, asserts their size at compile time, and lists their fields, so that a test can hold
//! `FORMAT.md` against them.
//!
//! # Invariants
//!
//! * Every byte of a structure has a name. Bytes named `reserved` are written zero, and are checked
//!   to be zero when read.
//! * A block is opened by one gate ([`block::open`]) and sealed by its mirror ([`block::seal`]).
//!   What they can't check (counts, order, ranges) is checked by the structure's own `parse`.
//! * A field whose every value has a meaning is read as it is; any other is parsed into a type that
//!   can't hold a meaningless one.
//!
//! What this module deliberately doesn't know: where a block comes from, and what changes it.

pub mod block;
pub mod btree;
pub mod id;
pub mod item;
pub mod key;
pub mod layout;
pub mod quorum;
pub mod records;
pub mod root;
pub mod run;
pub mod super_block;
pub mod wire;

pub use id::{ClientId, CommitNo, Ino, RunId, Seq, Term};
pub use outrider_hal::{BLOCK_BYTES, Block, BlockNo};

/// A field of a [`Record`]: where it stands, for documents and dumps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Name of the field.
    pub name: &'static str,
    /// Bytes from the start of the structure.
    pub offset: usize,
    /// Size in bytes.
    pub bytes: usize,
}

/// A structure on the disk or on the wire.
pub trait Record: zerocopy::FromBytes + zerocopy::IntoBytes + zerocopy::Immutable {
    /// Its name in `FORMAT.md` or `WIRE.md`.
    const NAME: &'static str;
    /// Its fields, in order, without gaps.
    const FIELDS: &'static [Field];
}

/// Declares structures of the disk or the wire.
///
/// ```text
/// record! {
///     /// What it is.
///     pub struct Name [size in bytes] {
///         /// What it means, and its unit.
///         field: Type,
///     }
/// }
/// ```
#[macro_export]
macro_rules! record {
    ($(
        $(#[$meta:meta])*
        pub struct $name:ident [$bytes:expr] {
            $( $(#[$field_meta:meta])* $field:ident : $type:ty ),* $(,)?
        }
    )*) => { $(
        $(#[$meta])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq,
            ::zerocopy::FromBytes, ::zerocopy::IntoBytes, ::zerocopy::Immutable,
            ::zerocopy::KnownLayout, ::zerocopy::Unaligned,
        )]
        #[repr(C)]
        pub struct $name {
            $( $(#[$field_meta])* pub $field: $type, )*
        }

        const _: () = assert!(::core::mem::size_of::<$name>() == $bytes);

        impl $crate::format::Record for $name {
            const NAME: &'static str = stringify!($name);
            const FIELDS: &'static [$crate::format::Field] = &[
                $( $crate::format::Field {
                    name: stringify!($field),
                    offset: ::core::mem::offset_of!($name, $field),
                    bytes: ::core::mem::size_of::<$type>(),
                }, )*
            ];
        }
    )* };
}

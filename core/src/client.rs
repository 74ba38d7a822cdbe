//! The mount: everything a client keeps and decides on its own.
//!
//! What this module deliberately doesn't know: the server. The two meet in messages and on the
//! device, never in code.

pub mod commit;
pub mod compact;
pub mod extents;
pub mod fs;
pub mod items;
pub mod loans;
pub mod mount;
pub mod op;
pub mod reader;

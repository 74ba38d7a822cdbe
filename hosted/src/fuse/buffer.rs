//! Memory for requests' data, aligned so that it can be written to a device directly, and used
//! again.
//!
//! # Invariants
//!
//! * Taking a buffer never waits: a reader that waited for one could be waiting for a write that
//!   can only end when another request has been read. Up to [`KEPT`] large buffers are kept for the
//!   next user; all others come from the heap, bounded by how many processes are inside write(2) at
//!   a time.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of a pool's buffers: the largest write.
pub(super) const BUFFER_BYTES: usize = outrider_core::client::op::IO_BYTES_MAX as usize;

/// Buffers that a pool keeps.
const KEPT: usize = 64;
/// What direct transfers want.
const ALIGN: usize = 4096;

/// Memory that was lent to a request. Its start is aligned to a page.
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
    pool: Option<Arc<Pool>>,
}

/// Where buffers of [`BUFFER_BYTES`] go when they are dropped.
#[derive(Default)]
pub(super) struct Pool(Mutex<Vec<Vec<u8>>>);

impl Buffer {
    /// Zeroed memory of this size.
    #[must_use]
    pub fn new(len: usize) -> Buffer {
        Buffer::around(vec![0; len + ALIGN], len, None)
    }

    /// A copy of these bytes.
    #[must_use]
    pub fn copy(bytes: &[u8]) -> Buffer {
        let mut buffer = Buffer::new(bytes.len());
        buffer.copy_from_slice(bytes);
        buffer
    }

    fn around(bytes: Vec<u8>, len: usize, pool: Option<Arc<Pool>>) -> Buffer {
        let start = bytes.as_ptr().addr().next_multiple_of(ALIGN) - bytes.as_ptr().addr();
        Buffer { bytes, start, len, pool }
    }
}

impl Pool {
    /// A buffer of [`BUFFER_BYTES`], whatever it held before still in it.
    pub(super) fn take(self: &Arc<Pool>) -> Buffer {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bytes = kept.unwrap_or_else(|| vec![0; BUFFER_BYTES + ALIGN]);
        Buffer::around(bytes, BUFFER_BYTES, Some(Arc::clone(self)))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(pool) = &self.pool {
            let mut kept = pool.0.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() < KEPT {
                kept.push(std::mem::take(&mut self.bytes));
            }
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}

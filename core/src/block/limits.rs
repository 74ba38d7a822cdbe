//! How much memory the block cache has, and the inequalities without which it could come to a halt.

/// Sizes of the block cache's pools, fixed when it is carved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Blocks held in memory. Each is dirty, pinned, being transferred, or idle.
    pub frames: u32,
    /// Blocks the open commit may have changed. 0 for a cache that only reads.
    pub dirty: u32,
    /// Blocks one run of a request may obtain: the paths of all trees it walks, with the siblings a
    /// deletion may need.
    pub pins: u32,
    /// Blocks one plan may add: a split on every level, and a new root, for each of its updates.
    pub creates: u32,
    /// Requests in flight.
    pub requests: u32,
    /// Extents a commit is given to write to.
    pub fresh: u32,
    /// Extents a commit may have freed, before merging.
    pub freed: u32,
}

/// The limit that is too small.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitsError {
    /// There are no requests, or none could obtain a block.
    Requests,
    /// `frames` is less than `dirty + pins`, or more than can be numbered.
    Frames,
    /// `dirty` is less than `pins + creates`.
    Dirty,
    /// `fresh` is 0 though blocks may be changed.
    Fresh,
    /// `freed` is less than `pins`.
    Freed,
}

impl Limits {
    /// Whether these limits rule out that requests wait for each other for ever.
    pub fn validate(&self) -> Result<(), LimitsError> {
        if self.requests == 0 || self.pins == 0 {
            return Err(LimitsError::Requests);
        }
        // Dirty frames stay until the commit is written. The senior request keeps its pins while it
        // waits, and in the end everybody else has none: what is left must be enough for the senior
        // to go on. A block it adds was counted in `dirty` before it is made.
        let frames = u64::from(self.dirty) + u64::from(self.pins);
        if u64::from(self.frames) < frames || self.frames >= 1 << 31 {
            return Err(LimitsError::Frames);
        }
        if self.dirty == 0 {
            return Ok(());
        }
        // A plan changes at most what it has pinned, and adds at most `creates`. An empty commit
        // must have room for any plan, or it would wait for a commit that is never larger.
        if u64::from(self.dirty) < u64::from(self.pins) + u64::from(self.creates) {
            return Err(LimitsError::Dirty);
        }
        if self.fresh == 0 {
            return Err(LimitsError::Fresh);
        }
        // A plan frees at most the old place of each block it changes, each an extent of its own.
        if self.freed < self.pins {
            return Err(LimitsError::Freed);
        }
        Ok(())
    }
}

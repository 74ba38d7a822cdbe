//! Transactions of a mount: what is dirty becomes runs on the device, and the server records them.
//!
//! ```text
//!           begin        all copied        all written       flushed         handle_done
//!   Idle ---------> Copying ------> Writing ------> Flushing ------> Ready ---------------> Idle
//!    ^                                 |  ^             | again, some     |
//!    |                                 |  +-------------+ times           |
//!    +------- the attempt has failed --+------------------ handle_failed -+
//! ```
//!
//! What this module deliberately doesn't know: the network, and when a commit is due.

use super::items::{Generation, ItemCache};
use super::loans::Loans;
use crate::arena::{Arena, ArenaFull};
use crate::format::super_block::Super;
use crate::format::wire::ErrorCode;
use crate::format::wire::message::{ManifestRoot, Transaction, TransactionDone};
use crate::format::{CommitNo, Seq};
use crate::node::More;
use outrider_hal::{BlockRequest, Completion};

/// The size of a committer: the dirty budget of the item cache, all of which one transaction can
/// take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitLimits {
    /// [`items::Limits::dirty_items`](super::items::Limits).
    pub dirty_items: u32,
    /// [`items::Limits::dirty_chunks`](super::items::Limits).
    pub dirty_chunks: u32,
}

/// Why no transaction can begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotNow {
    /// The number of the first transaction is not known: see [`Committer::open`].
    Closed,
    /// The last one has not ended, or [`Committer::step`] has not gone through its items.
    Busy,
    /// What was lent doesn't suffice for the runs. [`Loans::step`] asks for more; try again when
    /// its request was answered.
    Loan,
}

/// A transaction has become durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// All changes made under this number, and under lower ones, are durable.
    pub seq: Seq,
    /// No transaction up to this one is open.
    pub stable: Seq,
    /// The manifest with the transaction in it. The item cache knows of it.
    pub root: ManifestRoot,
}

/// An attempt has failed. Everything is as dirty as before; begin again, after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The device has refused a block several times.
    Write,
    /// The device has refused to flush several times.
    Flush,
    /// The server has.
    Refused(ErrorCode),
}

/// What happened so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Transactions that became durable.
    pub transactions: u64,
    /// Attempts that failed.
    pub failures: u64,
    /// Runs written.
    pub runs: u64,
    /// Items in them.
    pub items: u64,
    /// Blocks written, again ones included.
    pub blocks: u64,
    /// Blocks whose writing failed and was tried again.
    pub writes_failed: u64,
    /// Flushes that succeeded.
    pub flushes: u64,
    /// Flushes that failed.
    pub flushes_failed: u64,
}

/// See the module.
pub struct Committer<'m> {
    memory: core::marker::PhantomData<&'m mut ()>,
}

impl<'m> Committer<'m> {
    /// Tags of its block requests are below this.
    pub const TAGS: u64 = 2049;

    /// Carves a committer of this volume, with nothing begun. The limits must be valid.
    pub fn carve(
        arena: &mut Arena<'m>,
        limits: &CommitLimits,
        volume: &Super,
    ) -> Result<Committer<'m>, ArenaFull> {
        let _ = (arena, limits, volume);
        todo!()
    }

    /// Tells the number of the first transaction, from the first
    /// [`RootNow`](crate::format::wire::message::RootNow) of this mount. Later calls change
    /// nothing.
    pub fn open(&mut self, seq: Seq) {
        let _ = seq;
        todo!()
    }

    /// The number that changes made now bear: it goes into [`fs::Context::seq`](super::fs::Context)
    /// and so to the locks. Grows with each [`begin`](Self::begin) and each
    /// [`handle_done`](Self::handle_done). None until [`open`](Self::open).
    #[must_use]
    pub fn seq(&self) -> Option<Seq> {
        todo!()
    }

    /// All changes that bear this number, or a lower one, are durable.
    #[must_use]
    pub fn committed(&self) -> Seq {
        todo!()
    }

    /// Begins a transaction of everything dirty, used and freed up to now, written over this
    /// manifest; of nothing, if there is nothing, which is for who waits for a number to pass.
    ///
    /// Changes wait ([`items::Wait::Snapshot`](super::items::Wait)) until [`step`](Self::step) has
    /// copied all items: see [`is_copying`](Self::is_copying).
    pub fn begin(
        &mut self,
        items: &mut ItemCache<'_>,
        loans: &mut Loans<'_>,
        root: CommitNo,
    ) -> Result<Option<Generation>, NotNow> {
        let _ = (items, loans, root);
        todo!()
    }

    /// Copies up to `budget` items, or lets the item cache go through as many of a transaction that
    /// has ended.
    pub fn step(&mut self, items: &mut ItemCache<'_>, loans: &mut Loans<'_>, budget: u32) -> More {
        let _ = (items, loans, budget);
        todo!()
    }

    /// Whether changes wait for [`step`](Self::step). When that ends, run what waits for
    /// [`fs::Wait::Snapshot`](super::fs::Wait).
    #[must_use]
    pub fn is_copying(&self) -> bool {
        todo!()
    }

    /// Whether nothing is begun: [`begin`](Self::begin) won't say [`NotNow::Busy`].
    #[must_use]
    pub fn is_idle(&self) -> bool {
        todo!()
    }

    /// The transaction, from when it may be sent until it is answered; the same all the time.
    #[must_use]
    pub fn transaction(&self) -> Option<Transaction<'_>> {
        todo!()
    }

    /// Whether it has still to be given to the session, which sends it again when that is needed.
    #[must_use]
    pub fn is_unsent(&self) -> bool {
        todo!()
    }

    /// The session has taken the transaction.
    pub fn handle_sent(&mut self) {
        todo!()
    }

    /// Takes note of an answer. None: it is not that of the transaction that was sent, but one that
    /// was answered before.
    pub fn handle_done(
        &mut self,
        items: &mut ItemCache<'_>,
        loans: &mut Loans<'_>,
        done: &TransactionDone<'_>,
    ) -> Option<Committed> {
        let _ = (items, loans, done);
        todo!()
    }

    /// The server has refused the transaction that was sent. It has changed nothing there, and
    /// nothing is lost here.
    pub fn handle_refused(
        &mut self,
        items: &mut ItemCache<'_>,
        loans: &mut Loans<'_>,
        error: ErrorCode,
    ) {
        let _ = (items, loans, error);
        todo!()
    }

    /// The attempt that has failed since this was last asked.
    pub fn poll_failure(&mut self) -> Option<Failure> {
        todo!()
    }

    /// How many flushes have failed: each may have lost file data that was written before, which
    /// nobody can write again. An fsync that finds this larger than when its file was opened must
    /// fail.
    #[must_use]
    pub fn write_errors(&self) -> u64 {
        todo!()
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        todo!()
    }

    /// The next request for the device.
    pub fn poll_request(&mut self) -> Option<BlockRequest<'m>> {
        todo!()
    }

    /// Takes note of a finished request: one whose tag is below [`TAGS`](Self::TAGS).
    pub fn handle_completion(&mut self, completion: Completion<'m>) {
        let _ = completion;
        todo!()
    }

    /// Requests that the device has not given back.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        todo!()
    }
}

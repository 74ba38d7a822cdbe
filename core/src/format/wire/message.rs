//! Requests and answers: a closed set for each direction.
//!
//! | asked by | kind | request | answer |
//! |---|---|---|---|
//! | client | lock ask | a lock's request or release, [`LockRecord`] | nothing, at once |
//! | | orphans | nameless [`Inos`] | those that nobody uses, [`InoSet`] |
//! | | transaction | [`Transaction`] | [`TransactionDone`], when it is durable |
//! | | loan | [`LoanRequest`] | [`Loan`], when it is durable |
//! | | root | nothing | [`RootNow`] |
//! | | statfs | nothing | [`Statfs`] |
//! | | farewell | nothing | nothing, when it is durable |
//! | | status | nothing | [`Status`] |
//! | | compact ready | [`CompactReady`] | nothing, when what earlier compactions had is given back |
//! | | compacted | [`Compacted`] | nothing, when it is durable |
//! | | fence | [`Gone`] | nothing, when it is durable that nothing of it is waited for |
//! | | clients | from which number on | [`ClientList`]; none is the end |
//! | | waits | how many to pass over | [`WaitList`]; none is the end |
//! | | pin | [`PinRequest`] | [`Pin`], a new one when a root that it can be used for is durable |
//! | server | lock tell | a lock's grant, revoke or refusal, [`LockTell`] | nothing, at once |
//! | | recover | first key | [`HeldLocks`] from there on; none is the end |
//! | | in use | nameless [`Inos`] | those that the client uses, [`InoSet`] |
//! | | recall | [`Recall`] | nothing; space comes back by a loan request |
//! | | compact | [`Compact`] | nothing, at once; what comes of it is said by compacted |
//!
//! # Exactly once, across servers
//!
//! A session delivers a request once to each server, and a request that is unanswered when the
//! server changes is delivered again to the next. Those that change the volume therefore carry a
//! number of their own, [`Transaction::number`] and [`LoanRequest::number`], each counting up by
//! one per client, and at most one of each kind is unanswered. The commit that carries one out
//! stores its number and its whole answer in the client's record. A server compares: the stored
//! number is answered from the record and changes nothing, the next one is carried out, any other
//! is [`ErrorCode::Invalid`]. Messages about locks belong to one server: they are not delivered to
//! the next ([`Kind::is_of_one_term`]), which asks what is held instead. So do those about
//! compactions: a client drops what the server before has asked for, and tells the next by compact
//! ready when nothing of it is being written any more. All other requests may be carried out again
//! without harm.
//!
//! What this module deliberately doesn't know: what a key, a lock or a run is good for.

mod compact;
mod gone;
mod lock;
mod orphan;
mod pin;
mod space;
mod status;

pub use compact::{
    AT_ONCE_MAX, COMPACT_CHANGE_MAX, COMPACT_DROP_TOMBSTONES, COMPACT_INPUTS_MAX,
    COMPACT_LOWERS_MAX, COMPACT_TAIL, COMPACT_UPPERS_MAX, Compact, CompactReady,
    CompactReadyRecord, CompactRecord, CompactRunRecord, CompactSpaceRecord, Compacted,
    CompactedRecord, OUTPUTS_MAX,
};
pub use gone::{Gone, GoneRecord};
pub use lock::{HELD_LOCKS_MAX, HeldLocks, HeldLocksRecord, HeldRecord, LockRecord, LockTell};
pub use orphan::{INOS_MAX, InoSet, Inos};
pub use pin::{Pin, PinRecord, PinRequest, PinRequestRecord};
pub use space::{
    Extent, ExtentRecord, Extents, FREED_MAX, LOAN_EXTENTS_MAX, Loan, LoanRecord, LoanRequest,
    LoanRequestRecord, ManifestRoot, Pool, RETURNED_MAX, RUNS_MAX, Recall, RecallRecord, RootNow,
    RootNowRecord, RootRecord, RunRecord, Transaction, TransactionDone, TransactionDoneRecord,
    TransactionRecord, USED_MAX,
};
pub use status::{
    ClientList, ClientStanding, ClientStatusRecord, LIST_RECORDS_MAX, LockWaitRecord, Statfs,
    StatfsRecord, Status, StatusRecord, WaitList,
};

use super::{ErrorCode, Kind, Malformed, Party, whole};
use crate::format::ClientId;
use crate::format::key::KeyBytes;
use zerocopy::little_endian::U64;
use zerocopy::{Immutable, IntoBytes};

/// Requests of one party, or its answers: a kind, and bytes that mean something for it.
pub trait Payload<'p>: Sized {
    /// The kind of the request, or of the request that is answered.
    fn kind(&self) -> Kind;

    /// Reads a payload of this kind, which must be as long as it says.
    fn parse(kind: Kind, payload: &'p [u8]) -> Result<Self, Malformed>;

    /// Writes the payload, at most the bound of its kind.
    fn emit(&self, to: &mut Emitter<'_>);
}

/// A party and what it says.
pub trait Speaker {
    /// Which party it is.
    const PARTY: Party;
    /// The other party.
    type Peer: Speaker;
    /// What it asks.
    type Request<'p>: Payload<'p>;
    /// What it answers to the requests of its peer.
    type Answer<'p>: Payload<'p>;
}

/// What a client says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {}

/// What the server says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {}

impl Speaker for Client {
    const PARTY: Party = Party::Client;
    type Peer = Server;
    type Request<'p> = ClientRequest<'p>;
    type Answer<'p> = ClientAnswer<'p>;
}

impl Speaker for Server {
    const PARTY: Party = Party::Server;
    type Peer = Client;
    type Request<'p> = ServerRequest<'p>;
    type Answer<'p> = ServerAnswer<'p>;
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome<A> {
    /// With this answer.
    Done(A),
    /// With an error, and the answer as far as it goes.
    Failed(ErrorCode, Option<A>),
}

/// What a client asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientRequest<'p> {
    /// [`Kind::LockAsk`]: a request or a release.
    LockAsk(LockRecord),
    /// [`Kind::Orphans`].
    Orphans(Inos<'p>),
    /// [`Kind::Transaction`].
    Transaction(Transaction<'p>),
    /// [`Kind::Loan`].
    Loan(LoanRequest<'p>),
    /// [`Kind::Root`].
    Root,
    /// [`Kind::Statfs`].
    Statfs,
    /// [`Kind::Farewell`].
    Farewell,
    /// [`Kind::Status`].
    Status,
    /// [`Kind::CompactReady`].
    CompactReady(CompactReady),
    /// [`Kind::Compacted`].
    Compacted(Compacted<'p>),
    /// [`Kind::Fence`].
    Fence(Gone),
    /// [`Kind::Clients`]: from this one on.
    Clients(ClientId),
    /// [`Kind::Waits`]: without the first so many.
    Waits(u64),
    /// [`Kind::Pin`].
    Pin(PinRequest),
}

/// What the server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerAnswer<'p> {
    /// [`Kind::LockAsk`].
    LockAsk,
    /// [`Kind::Orphans`]: those that nobody uses.
    Orphans(InoSet),
    /// [`Kind::Transaction`].
    Transaction(TransactionDone<'p>),
    /// [`Kind::Loan`].
    Loan(Loan<'p>),
    /// [`Kind::Root`].
    Root(RootNow),
    /// [`Kind::Statfs`].
    Statfs(Statfs),
    /// [`Kind::Farewell`].
    Farewell,
    /// [`Kind::Status`].
    Status(Status),
    /// [`Kind::CompactReady`].
    CompactReady,
    /// [`Kind::Compacted`].
    Compacted,
    /// [`Kind::Fence`].
    Fence,
    /// [`Kind::Clients`].
    Clients(ClientList<'p>),
    /// [`Kind::Waits`].
    Waits(WaitList<'p>),
    /// [`Kind::Pin`].
    Pin(Pin),
}

/// What the server asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerRequest<'p> {
    /// [`Kind::LockTell`]: a grant, a revoke or a refusal.
    LockTell(LockTell),
    /// [`Kind::Recover`]: locks from this key on.
    Recover(KeyBytes),
    /// [`Kind::Recall`].
    Recall(Recall),
    /// [`Kind::InUse`].
    InUse(Inos<'p>),
    /// [`Kind::Compact`].
    Compact(Compact<'p>),
}

/// What a client answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAnswer<'p> {
    /// [`Kind::LockTell`].
    LockTell,
    /// [`Kind::Recover`].
    Recover(HeldLocks<'p>),
    /// [`Kind::Recall`].
    Recall,
    /// [`Kind::InUse`]: those that the client uses.
    InUse(InoSet),
    /// [`Kind::Compact`]: it has begun.
    Compact,
}

impl<'p> Payload<'p> for ClientRequest<'p> {
    fn kind(&self) -> Kind {
        match self {
            ClientRequest::LockAsk(_) => Kind::LockAsk,
            ClientRequest::Orphans(_) => Kind::Orphans,
            ClientRequest::Transaction(_) => Kind::Transaction,
            ClientRequest::Loan(_) => Kind::Loan,
            ClientRequest::Root => Kind::Root,
            ClientRequest::Statfs => Kind::Statfs,
            ClientRequest::Farewell => Kind::Farewell,
            ClientRequest::Status => Kind::Status,
            ClientRequest::CompactReady(_) => Kind::CompactReady,
            ClientRequest::Compacted(_) => Kind::Compacted,
            ClientRequest::Fence(_) => Kind::Fence,
            ClientRequest::Clients(_) => Kind::Clients,
            ClientRequest::Waits(_) => Kind::Waits,
            ClientRequest::Pin(_) => Kind::Pin,
        }
    }

    fn parse(kind: Kind, payload: &'p [u8]) -> Result<Self, Malformed> {
        Ok(match kind {
            Kind::LockAsk => ClientRequest::LockAsk(LockRecord::open(payload)?),
            Kind::Orphans => ClientRequest::Orphans(Inos::parse(payload)?),
            Kind::Transaction => ClientRequest::Transaction(Transaction::parse(payload)?),
            Kind::Loan => ClientRequest::Loan(LoanRequest::parse(payload)?),
            Kind::Root => empty(payload, ClientRequest::Root)?,
            Kind::Statfs => empty(payload, ClientRequest::Statfs)?,
            Kind::Farewell => empty(payload, ClientRequest::Farewell)?,
            Kind::Status => empty(payload, ClientRequest::Status)?,
            Kind::CompactReady => ClientRequest::CompactReady(CompactReady::parse(payload)?),
            Kind::Compacted => ClientRequest::Compacted(Compacted::parse(payload)?),
            Kind::Fence => ClientRequest::Fence(Gone::parse(payload)?),
            Kind::Clients => ClientRequest::Clients((*whole::<U64>(payload)?).into()),
            Kind::Waits => ClientRequest::Waits(whole::<U64>(payload)?.get()),
            Kind::Pin => ClientRequest::Pin(PinRequest::parse(payload)?),
            Kind::LockTell | Kind::Recover | Kind::Recall | Kind::InUse | Kind::Compact => {
                return Err(Malformed::Kind);
            }
        })
    }

    fn emit(&self, to: &mut Emitter<'_>) {
        match self {
            ClientRequest::LockAsk(lock) => to.put(lock),
            ClientRequest::Orphans(inos) => inos.emit(to),
            ClientRequest::Transaction(transaction) => transaction.emit(to),
            ClientRequest::Loan(loan) => loan.emit(to),
            ClientRequest::CompactReady(ready) => to.put(&ready.record()),
            ClientRequest::Compacted(compacted) => compacted.emit(to),
            ClientRequest::Fence(gone) => gone.emit(to),
            ClientRequest::Clients(client) => to.put(&U64::new(client.0)),
            ClientRequest::Waits(skip) => to.put(&U64::new(*skip)),
            ClientRequest::Pin(request) => to.put(&request.record()),
            ClientRequest::Root
            | ClientRequest::Statfs
            | ClientRequest::Farewell
            | ClientRequest::Status => {}
        }
    }
}

impl<'p> Payload<'p> for ServerAnswer<'p> {
    fn kind(&self) -> Kind {
        match self {
            ServerAnswer::LockAsk => Kind::LockAsk,
            ServerAnswer::Orphans(_) => Kind::Orphans,
            ServerAnswer::Transaction(_) => Kind::Transaction,
            ServerAnswer::Loan(_) => Kind::Loan,
            ServerAnswer::Root(_) => Kind::Root,
            ServerAnswer::Statfs(_) => Kind::Statfs,
            ServerAnswer::Farewell => Kind::Farewell,
            ServerAnswer::Status(_) => Kind::Status,
            ServerAnswer::CompactReady => Kind::CompactReady,
            ServerAnswer::Compacted => Kind::Compacted,
            ServerAnswer::Fence => Kind::Fence,
            ServerAnswer::Clients(_) => Kind::Clients,
            ServerAnswer::Waits(_) => Kind::Waits,
            ServerAnswer::Pin(_) => Kind::Pin,
        }
    }

    fn parse(kind: Kind, payload: &'p [u8]) -> Result<Self, Malformed> {
        Ok(match kind {
            Kind::LockAsk => empty(payload, ServerAnswer::LockAsk)?,
            Kind::Orphans => ServerAnswer::Orphans(InoSet::open(payload)?),
            Kind::Transaction => ServerAnswer::Transaction(TransactionDone::parse(payload)?),
            Kind::Loan => ServerAnswer::Loan(Loan::parse(payload)?),
            Kind::Root => ServerAnswer::Root(RootNow::parse(payload)?),
            Kind::Statfs => ServerAnswer::Statfs(Statfs::parse(payload)?),
            Kind::Farewell => empty(payload, ServerAnswer::Farewell)?,
            Kind::Status => ServerAnswer::Status(Status::parse(payload)?),
            Kind::CompactReady => empty(payload, ServerAnswer::CompactReady)?,
            Kind::Compacted => empty(payload, ServerAnswer::Compacted)?,
            Kind::Fence => empty(payload, ServerAnswer::Fence)?,
            Kind::Clients => ServerAnswer::Clients(ClientList::parse(payload)?),
            Kind::Waits => ServerAnswer::Waits(WaitList::parse(payload)?),
            Kind::Pin => ServerAnswer::Pin(Pin::parse(payload)?),
            Kind::LockTell | Kind::Recover | Kind::Recall | Kind::InUse | Kind::Compact => {
                return Err(Malformed::Kind);
            }
        })
    }

    fn emit(&self, to: &mut Emitter<'_>) {
        match self {
            ServerAnswer::Orphans(unused) => to.put(&unused.record()),
            ServerAnswer::Transaction(done) => done.emit(to),
            ServerAnswer::Loan(loan) => loan.emit(to),
            ServerAnswer::Root(root) => to.put(&root.record()),
            ServerAnswer::Statfs(statfs) => to.put(&statfs.record()),
            ServerAnswer::Status(status) => to.put(&status.record()),
            ServerAnswer::Clients(clients) => clients.emit(to),
            ServerAnswer::Waits(waits) => waits.emit(to),
            ServerAnswer::Pin(pin) => to.put(&pin.record()),
            ServerAnswer::LockAsk
            | ServerAnswer::Farewell
            | ServerAnswer::CompactReady
            | ServerAnswer::Compacted
            | ServerAnswer::Fence => {}
        }
    }
}

impl<'p> Payload<'p> for ServerRequest<'p> {
    fn kind(&self) -> Kind {
        match self {
            ServerRequest::LockTell(_) => Kind::LockTell,
            ServerRequest::Recover(_) => Kind::Recover,
            ServerRequest::Recall(_) => Kind::Recall,
            ServerRequest::InUse(_) => Kind::InUse,
            ServerRequest::Compact(_) => Kind::Compact,
        }
    }

    fn parse(kind: Kind, payload: &'p [u8]) -> Result<Self, Malformed> {
        Ok(match kind {
            Kind::LockTell => ServerRequest::LockTell(LockTell::parse(payload)?),
            Kind::Recover => ServerRequest::Recover(*whole(payload)?),
            Kind::Recall => ServerRequest::Recall(Recall::parse(payload)?),
            Kind::InUse => ServerRequest::InUse(Inos::parse(payload)?),
            Kind::Compact => ServerRequest::Compact(Compact::parse(payload)?),
            Kind::LockAsk
            | Kind::Orphans
            | Kind::Transaction
            | Kind::Loan
            | Kind::Root
            | Kind::Statfs
            | Kind::Farewell
            | Kind::Status
            | Kind::CompactReady
            | Kind::Compacted
            | Kind::Fence
            | Kind::Clients
            | Kind::Waits
            | Kind::Pin => return Err(Malformed::Kind),
        })
    }

    fn emit(&self, to: &mut Emitter<'_>) {
        match self {
            ServerRequest::LockTell(tell) => tell.emit(to),
            ServerRequest::Recover(from) => to.put(from),
            ServerRequest::Recall(recall) => to.put(&recall.record()),
            ServerRequest::InUse(inos) => inos.emit(to),
            ServerRequest::Compact(compact) => compact.emit(to),
        }
    }
}

impl<'p> Payload<'p> for ClientAnswer<'p> {
    fn kind(&self) -> Kind {
        match self {
            ClientAnswer::LockTell => Kind::LockTell,
            ClientAnswer::Recover(_) => Kind::Recover,
            ClientAnswer::Recall => Kind::Recall,
            ClientAnswer::InUse(_) => Kind::InUse,
            ClientAnswer::Compact => Kind::Compact,
        }
    }

    fn parse(kind: Kind, payload: &'p [u8]) -> Result<Self, Malformed> {
        Ok(match kind {
            Kind::LockTell => empty(payload, ClientAnswer::LockTell)?,
            Kind::Recover => ClientAnswer::Recover(HeldLocks::parse(payload)?),
            Kind::Recall => empty(payload, ClientAnswer::Recall)?,
            Kind::InUse => ClientAnswer::InUse(InoSet::open(payload)?),
            Kind::Compact => empty(payload, ClientAnswer::Compact)?,
            Kind::LockAsk
            | Kind::Orphans
            | Kind::Transaction
            | Kind::Loan
            | Kind::Root
            | Kind::Statfs
            | Kind::Farewell
            | Kind::Status
            | Kind::CompactReady
            | Kind::Compacted
            | Kind::Fence
            | Kind::Clients
            | Kind::Waits
            | Kind::Pin => return Err(Malformed::Kind),
        })
    }

    fn emit(&self, to: &mut Emitter<'_>) {
        match self {
            ClientAnswer::Recover(held) => held.emit(to),
            ClientAnswer::InUse(used) => to.put(&used.record()),
            ClientAnswer::LockTell | ClientAnswer::Recall | ClientAnswer::Compact => {}
        }
    }
}

impl<'p, A: Payload<'p>> Outcome<A> {
    /// Reads an answer. One that failed has a payload or none.
    pub fn parse(
        kind: Kind,
        error: Option<ErrorCode>,
        payload: &'p [u8],
    ) -> Result<Outcome<A>, Malformed> {
        match error {
            None => Ok(Outcome::Done(A::parse(kind, payload)?)),
            Some(error) if payload.is_empty() => Ok(Outcome::Failed(error, None)),
            Some(error) => Ok(Outcome::Failed(error, Some(A::parse(kind, payload)?))),
        }
    }

    /// The error, if it failed.
    #[must_use]
    pub fn error(&self) -> Option<ErrorCode> {
        match self {
            Outcome::Done(_) => None,
            Outcome::Failed(error, _) => Some(*error),
        }
    }

    /// The answer, if there is one.
    #[must_use]
    pub fn answer(&self) -> Option<&A> {
        match self {
            Outcome::Done(answer) => Some(answer),
            Outcome::Failed(_, answer) => answer.as_ref(),
        }
    }
}

impl Kind {
    /// Largest payload of a request of this kind.
    #[must_use]
    pub const fn request_bytes_max(self) -> usize {
        match self {
            Kind::LockAsk => size_of::<LockRecord>(),
            Kind::LockTell => LockTell::BYTES_MAX,
            Kind::Orphans | Kind::InUse => INOS_MAX * size_of::<U64>(),
            Kind::Transaction => Transaction::BYTES_MAX,
            Kind::Loan => LoanRequest::BYTES_MAX,
            Kind::Root | Kind::Statfs | Kind::Farewell | Kind::Status => 0,
            Kind::Recover => size_of::<KeyBytes>(),
            Kind::Recall => size_of::<RecallRecord>(),
            Kind::CompactReady => size_of::<CompactReadyRecord>(),
            Kind::Compacted => Compacted::BYTES_MAX,
            Kind::Fence => Gone::BYTES,
            Kind::Clients | Kind::Waits => size_of::<U64>(),
            Kind::Pin => size_of::<PinRequestRecord>(),
            Kind::Compact => Compact::BYTES_MAX,
        }
    }

    /// Largest payload of an answer to a request of this kind.
    #[must_use]
    pub const fn answer_bytes_max(self) -> usize {
        match self {
            Kind::Orphans | Kind::InUse => size_of::<U64>(),
            Kind::Transaction => TransactionDone::BYTES_MAX,
            Kind::Loan => Loan::BYTES_MAX,
            Kind::Root => size_of::<RootNowRecord>(),
            Kind::Statfs => size_of::<StatfsRecord>(),
            Kind::Status => size_of::<StatusRecord>(),
            Kind::Clients => ClientList::BYTES_MAX,
            Kind::Waits => WaitList::BYTES_MAX,
            Kind::Pin => size_of::<PinRecord>(),
            Kind::Recover => HeldLocks::BYTES_MAX,
            Kind::LockAsk
            | Kind::LockTell
            | Kind::Farewell
            | Kind::Recall
            | Kind::CompactReady
            | Kind::Compacted
            | Kind::Fence
            | Kind::Compact => 0,
        }
    }
}

const _: () = {
    let mut index = 0;
    while index < Kind::ALL.len() {
        let kind = Kind::ALL[index];
        assert!(kind.request_bytes_max() <= super::PAYLOAD_BYTES_MAX);
        assert!(kind.answer_bytes_max() <= super::PAYLOAD_BYTES_MAX);
        index += 1;
    }
};

/// Puts structures one behind the other.
#[derive(Debug)]
pub struct Emitter<'b> {
    space: &'b mut [u8],
    used: usize,
}

impl<'b> Emitter<'b> {
    /// Writes from the start of `space`.
    pub fn new(space: &'b mut [u8]) -> Emitter<'b> {
        Emitter { space, used: 0 }
    }

    /// Appends a structure, or an array of them.
    ///
    /// # Panics
    ///
    /// If it does not fit: payloads are bounded, and the space is made for the bound.
    pub fn put<T: IntoBytes + Immutable + ?Sized>(&mut self, what: &T) {
        let bytes = what.as_bytes();
        self.space[self.used..][..bytes.len()].copy_from_slice(bytes);
        self.used += bytes.len();
    }

    /// Bytes written.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used
    }
}

fn empty<T>(payload: &[u8], what: T) -> Result<T, Malformed> {
    if payload.is_empty() { Ok(what) } else { Err(Malformed::Length) }
}

//! Clients, and what is recorded of each in four trees.
//!
//! # Invariants
//!
//! * Records of clients come first and in the order of their numbers, so that each is found by
//!   bisection.
//! * Memory is bounded; of clients beyond it nothing is told.
//!
//! What this module deliberately doesn't know: which blocks are lent, which is the map's.

use super::finding::{Id, Log, Wrong};
use crate::arena::{Arena, ArenaFull};
use crate::format::records::{ClientPart, ClientRecord, ClientState, Pool};
use crate::format::root::Extent;
use crate::format::{BlockNo, ClientId, Ino};

/// Clients that memory is carved for, mounted or evicted.
const CLIENTS: u32 = 1024;
/// Extents of numbers that memory is carved for: a few for each client, as a rule it has two.
const NUMBERS: u32 = 8192;

#[derive(Clone, Copy)]
struct Client {
    number: ClientId,
    leaf: BlockNo,
    state: Option<ClientState>,
    /// Whether the record speaks of an answer to a transaction, and to a loan request.
    says: [bool; 2],
    has: [bool; 2],
    open_seqs: u32,
}

/// Numbers that are lent.
#[derive(Clone, Copy)]
struct Numbers {
    pool: u8,
    first: u64,
    end: u64,
    leaf: BlockNo,
}

pub(super) struct Clients<'m> {
    clients: &'m mut [Client],
    len: usize,
    is_full: bool,
    numbers: &'m mut [Numbers],
    numbers_len: usize,
    are_numbers_full: bool,
    /// Where the search for lent inodes goes on.
    next_lent: usize,
}

impl<'m> Clients<'m> {
    pub(super) fn carve(arena: &mut Arena<'m>) -> Result<Clients<'m>, ArenaFull> {
        let client = Client {
            number: ClientId(0),
            leaf: BlockNo(0),
            state: None,
            says: [false; 2],
            has: [false; 2],
            open_seqs: 0,
        };
        let numbers = Numbers { pool: 0, first: 0, end: 0, leaf: BlockNo(0) };
        Ok(Clients {
            clients: arena.slice(CLIENTS, |_| client)?,
            len: 0,
            is_full: false,
            numbers: arena.slice(NUMBERS, |_| numbers)?,
            numbers_len: 0,
            are_numbers_full: false,
            next_lent: 0,
        })
    }

    pub(super) fn clear(&mut self) {
        (self.len, self.is_full) = (0, false);
        (self.numbers_len, self.are_numbers_full) = (0, false);
        self.next_lent = 0;
    }

    /// Whether there are more clients, and more numbers, than were kept.
    pub(super) fn are_full(&self) -> (bool, bool) {
        (self.is_full, self.are_numbers_full)
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    fn find(&mut self, number: ClientId) -> Option<&mut Client> {
        let at = self.clients[..self.len].binary_search_by_key(&number, |client| client.number);
        self.clients.get_mut(at.ok()?)
    }

    /// A record of a client, in the order of the tree; false if it belongs to no client.
    pub(super) fn take_part(
        &mut self,
        number: ClientId,
        part: ClientPart,
        record: Option<&ClientRecord>,
        leaf: BlockNo,
    ) -> bool {
        let part = match part {
            ClientPart::Client => None,
            ClientPart::TransactionAnswer => Some(0),
            ClientPart::LoanAnswer => Some(1),
        };
        if let Some(part) = part {
            let is_full = self.is_full;
            let client = self.find(number);
            return client.map(|client| client.has[part] = true).is_some() || is_full;
        }
        let Some(place) = self.clients.get_mut(self.len) else {
            self.is_full = true;
            return true;
        };
        let says = record.map(|record| [record.transaction.get() > 0, record.loan.get() > 0]);
        let state = record.and_then(|record| ClientState::parse(record.state).ok());
        let (says, has) = (says.unwrap_or_default(), [false; 2]);
        *place = Client { number, leaf, state, says, has, open_seqs: 0 };
        self.len += 1;
        true
    }

    /// Whether there is such a client; true too if that isn't known.
    pub(super) fn has(&mut self, number: ClientId) -> bool {
        self.is_full || self.find(number).is_some()
    }

    /// An open transaction; false if it belongs to no client.
    pub(super) fn take_open_seq(&mut self, number: ClientId) -> bool {
        let is_full = self.is_full;
        self.find(number).map(|client| client.open_seqs += 1).is_some() || is_full
    }

    /// Numbers that are lent.
    pub(super) fn take_numbers(&mut self, pool: Pool, extents: &[Extent], leaf: BlockNo) {
        for extent in extents {
            let (first, end) = (extent.start().0, extent.end().0);
            match self.numbers.get_mut(self.numbers_len) {
                Some(place) => {
                    *place = Numbers { pool: pool as u8, first, end, leaf };
                    self.numbers_len += 1;
                }
                None => self.are_numbers_full = true,
            }
        }
    }

    /// Gets ready to be asked for numbers.
    pub(super) fn sort(&mut self) {
        self.numbers[..self.numbers_len].sort_unstable_by_key(|lent| (lent.pool, lent.first));
        self.next_lent = 0;
    }

    pub(super) fn numbers_len(&self) -> usize {
        self.numbers_len
    }

    /// Tells if the numbers of this place are lent a second time.
    pub(super) fn check_numbers(&self, at: usize, log: &mut Log) {
        let numbers = &self.numbers[..self.numbers_len];
        if let Some(before) = at.checked_sub(1).and_then(|before| numbers.get(before))
            && let Some(lent) = numbers.get(at)
            && before.pool == lent.pool
            && before.end > lent.first
        {
            let wrong = Wrong::Count { says: lent.first, is: before.end };
            log.put(Id::Number, Extent::new(lent.leaf, 1), wrong);
        }
    }

    /// Whether this number is lent to somebody as one to be used. Inodes are asked for in the order
    /// of their numbers.
    pub(super) fn is_ino_lent(&mut self, ino: Ino) -> bool {
        let pool = Pool::Inodes as u8;
        let numbers = &self.numbers[..self.numbers_len];
        while let Some(lent) = numbers.get(self.next_lent)
            && (lent.pool, lent.end) <= (pool, ino.0)
        {
            self.next_lent += 1;
        }
        numbers.get(self.next_lent).is_some_and(|lent| lent.pool == pool && lent.first <= ino.0)
    }

    /// Whether the number of a run is lent as one to be used.
    pub(super) fn is_run_lent(&self, run: u64) -> bool {
        let numbers = &self.numbers[..self.numbers_len];
        let place = (Pool::RunIds as u8, run);
        let at = numbers.partition_point(|lent| (lent.pool, lent.first) <= place);
        let lent = at.checked_sub(1).map(|at| numbers[at]);
        lent.is_some_and(|lent| lent.pool == place.0 && run < lent.end)
    }

    /// Tells what is wrong with the client of this place.
    pub(super) fn check(&self, at: usize, log: &mut Log) {
        let Some(client) = self.clients[..self.len].get(at) else { return };
        let extent = Extent::new(client.leaf, 1);
        let open = u64::from(client.open_seqs);
        let least = u64::from(client.state == Some(ClientState::Mounted));
        let most = u64::from(client.state != Some(ClientState::Evicted));
        if open < least || open > most {
            log.put(Id::OpenSeq, extent, Wrong::Count { says: open, is: most });
        }
        if client.says != client.has {
            log.put(Id::Answer, extent, Wrong::MISMATCH);
        }
    }
}

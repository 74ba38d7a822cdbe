//! What a metadata server must keep, looked at with each commit that a server has confirmed: every
//! block is in one place, every numbered request happened once or not at all, what was answered is
//! there, and all runs together, however they were merged, hold the newest versions of what the
//! transactions wrote.
//!
//! # Invariants
//!
//! * The census is taken of the root a server has confirmed, from the blocks a reader would see
//!   then.
//! * A client's record says up to which number its transactions happened. The files' extents and
//!   the runs that must be there follow from the logged requests up to that number, and from
//!   nothing else.

mod happened;

use crate::check::Checker;
use crate::rng::Rng;
use crate::scenario::server::merge::{Made, Reader};
use crate::scenario::server::{BLOCKS, FAREWELLS, GRANTS, Mount, SERVERS, volume};
use crate::time::Time;
use crate::trace::HostId;
use crate::world::World;
use happened::Happened;
use outrider_core::format::block::{Magic, Promise, open};
use outrider_core::format::btree::{Node, TreeRoot, parse};
use outrider_core::format::key::KeyBytes;
use outrider_core::format::layout::{FIRST_BLKNO, spare_blkno};
use outrider_core::format::records::{
    BlockKey, ClientKey, ClientPart, ClientRecord, ClientState, Length, LengthKey, LoanKey,
    ManifestEntry, ManifestKey, OwnerKind, Pool, QuarantineKey, extent, list,
};
use outrider_core::format::root::{Extent, LEVELS, Root, TAKEOVER_BLOCKS};
use outrider_core::format::wire::message::{Payload, ServerAnswer};
use outrider_core::format::wire::{ErrorCode, Kind};
use outrider_core::format::{BlockNo, ClientId, CommitNo, Seq, Term};
use outrider_core::lock::{LockName, Mode};
use outrider_core::server::{Counters, Server};
use outrider_hal::Instant;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;
use zerocopy::FromBytes;

/// A transaction as its mount decided on it.
#[derive(Debug, Clone)]
struct Planned {
    runs: Vec<Made>,
    used: Vec<(u64, u64)>,
    freed: Vec<(u64, u64)>,
}

/// What the mounts have asked, and what they were told.
#[derive(Debug, Default)]
pub struct Log {
    /// How long a mount that was heard may go on.
    lease: Duration,
    planned: BTreeMap<(ClientId, u64), Planned>,
    answered: BTreeMap<ClientId, u64>,
    loans: BTreeMap<ClientId, u64>,
    parted: BTreeSet<ClientId>,
    /// Clients that write no more: they have said so, or are cut off from the device.
    gone: BTreeSet<ClientId>,
    nonces: BTreeMap<ClientId, [u8; 16]>,
    /// In which life of its machine each client is, or was.
    lives: BTreeMap<ClientId, u32>,
    clients_max: ClientId,
    /// The transaction that was opened when one was recorded: what gives runs their order.
    opened: BTreeMap<(ClientId, u64), Seq>,
    numbers: [BTreeSet<(u64, u64)>; 2],
    seqs: BTreeSet<u64>,
    stable: Seq,
    refusals: u64,
    /// What each client is lent and has not used, as far as it knows.
    lent: BTreeMap<ClientId, Vec<(u64, u64)>>,
    /// The newest manifest that each lock was left with: the newest that was told of until then
    /// by the leader it was given back to, or by one before. Mounts that still have their leases
    /// from a leader that was stopped know nothing of what its successor does, which does nothing
    /// to what they hold.
    left: BTreeMap<LockName, CommitNo>,
    /// The newest manifest that the leader of each term has told anybody of.
    told: BTreeMap<Term, CommitNo>,
    /// In whose term each nameless inode came to be; their numbers count from 1.
    inos: Vec<Term>,
    /// Who was told that nobody else uses an inode, since this was looked at.
    claims: Vec<(ClientId, u64)>,
    grants: u64,
    evicted: u64,
    evicted_now: Option<ClientId>,
    /// Something was granted in the last step with a manifest that is too old: by a leader that
    /// others have followed, or in a message that had waited while the mount stood still. What is
    /// wrong with it, unless the mount's lease was over.
    granted_late: Option<String>,
    orphans: u64,
    /// Locks that were reported to a new server.
    pub reported: u64,
    wrong: Option<String>,
}

impl Log {
    /// A log of mounts that may go on for so long when they were heard.
    #[must_use]
    pub fn of_lease(lease: Duration) -> Log {
        Log { lease, ..Log::default() }
    }

    /// What stands in each 16 bytes of a block that a transaction wrote.
    #[must_use]
    pub fn stamp(client: ClientId, number: u64) -> [u8; 16] {
        let mut stamp = [0; 16];
        stamp[..8].copy_from_slice(&client.0.to_le_bytes());
        stamp[8..].copy_from_slice(&number.to_le_bytes());
        stamp
    }

    /// Takes note of what is wrong first.
    pub fn demand(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds && self.wrong.is_none() {
            self.wrong = Some(what());
        }
    }

    /// In which life of its machine a client is, or was, if it was ever welcomed.
    #[must_use]
    pub fn life(&self, client: ClientId) -> Option<u32> {
        self.lives.get(&client).copied()
    }

    /// A mount was welcomed, in this life of its machine.
    pub fn greeted(&mut self, client: ClientId, nonce: [u8; 16], boots: u32) {
        self.lives.insert(client, boots);
        match self.nonces.get(&client) {
            Some(known) => {
                let same = *known == nonce;
                self.demand(same, || format!("two mounts are client {client}"));
            }
            None => {
                self.clients_max = self.clients_max.max(client);
                self.nonces.insert(client, nonce);
            }
        }
    }

    /// A mount has heard that it was evicted.
    pub fn evicted(&mut self, client: ClientId) {
        self.evicted += 1;
        self.evicted_now = Some(client);
    }

    /// What a client is lent now, and has not used.
    pub fn has<'e>(&mut self, client: ClientId, extents: impl Iterator<Item = &'e (u64, u64)>) {
        self.lent.insert(client, extents.copied().collect());
    }

    /// The leader of this term has told somebody of this manifest.
    pub fn saw(&mut self, term: Term, root: CommitNo) {
        let told = self.told.entry(term).or_default();
        *told = root.max(*told);
    }

    /// A lock is given back to the leader of this term.
    pub fn released(&mut self, name: LockName, term: Term) {
        let told = self.told.range(..=term).map(|(_, root)| *root).max().unwrap_or_default();
        let left = self.left.entry(name).or_default();
        *left = told.max(*left);
    }

    /// A lock was granted by the leader of this term, with this manifest.
    pub fn granted(&mut self, name: LockName, term: Term, root: CommitNo) {
        self.grants += 1;
        let left = self.left.get(&name).copied().unwrap_or_default();
        if root < left {
            let what = format!("{name} was granted in {term} with {root}, left with {left}");
            self.granted_late = Some(what);
        }
    }

    /// A new nameless inode, in this term.
    pub fn nameless(&mut self, term: Term) -> u64 {
        self.inos.push(term);
        self.inos.len() as u64
    }

    /// Some of the nameless inodes that a mount can know of which has heard of no later term.
    pub fn some_inos(&self, term: Term, entropy: &mut Rng) -> Vec<u64> {
        let known = (1..).zip(&self.inos).filter(|(_, made)| **made <= term).map(|(ino, _)| ino);
        let known: Vec<u64> = known.collect();
        known[known.len().saturating_sub(entropy.within(1..=64) as usize)..].to_vec()
    }

    /// A client was told that nobody else uses this inode.
    pub fn unused(&mut self, asker: ClientId, ino: u64) {
        self.orphans += 1;
        self.claims.push((asker, ino));
    }

    /// A transaction will be sent.
    pub fn plan(
        &mut self,
        client: ClientId,
        number: u64,
        runs: Vec<Made>,
        used: &[(u64, u64)],
        freed: &[(u64, u64)],
    ) {
        let planned = Planned { runs, used: used.to_vec(), freed: freed.to_vec() };
        self.planned.insert((client, number), planned);
    }

    /// A transaction was answered.
    pub fn answered(&mut self, client: ClientId, number: u64, expected: u64) {
        self.demand(number == expected, || {
            format!("client {client} was answered {number} for {expected}")
        });
        self.answered.insert(client, number);
    }

    /// A loan was answered.
    pub fn answered_loan(&mut self, client: ClientId, number: u64, expected: u64) {
        self.demand(number == expected, || {
            format!("client {client} was answered loan {number} for {expected}")
        });
        self.loans.insert(client, number);
    }

    /// A transaction was opened.
    pub fn opened(&mut self, closed: Seq, opened: Seq, stable: Seq) {
        let fresh = self.seqs.insert(opened.0);
        self.demand(fresh && opened > closed, || format!("transaction {opened} after {closed}"));
        self.demand(stable < opened, || format!("stable {stable}, though {opened} is open"));
        self.stable = self.stable.max(stable);
    }

    /// A transaction was recorded when this one was opened.
    pub fn recorded(&mut self, client: ClientId, number: u64, opened: Seq) {
        self.opened.insert((client, number), opened);
    }

    fn lent(&mut self, pool: usize, what: (u64, u64)) {
        let overlap = self.numbers[pool].range(..(what.0 + what.1, 0)).next_back();
        let overlaps = overlap.is_some_and(|(start, len)| start + len > what.0);
        self.demand(!overlaps, || format!("numbers {what:?} of pool {pool} are lent twice"));
        self.numbers[pool].insert(what);
    }

    /// Run numbers were lent.
    pub fn lent_ids(&mut self, what: (u64, u64)) {
        self.lent(0, what);
    }

    /// Inode numbers were lent.
    pub fn lent_inodes(&mut self, what: (u64, u64)) {
        self.lent(1, what);
    }

    /// A farewell was answered.
    pub fn parted(&mut self, client: ClientId) {
        self.parted.insert(client);
    }

    /// From now on the client writes no more, and nothing of it is under way.
    pub fn gone(&mut self, client: ClientId) {
        self.gone.insert(client);
    }

    /// A request was refused.
    pub fn refused(&mut self, client: ClientId, error: ErrorCode) {
        self.refusals += 1;
        let expected = matches!(error, ErrorCode::NoSpace | ErrorCode::Io | ErrorCode::TooMany);
        self.demand(expected, || format!("client {client} was refused: {error}"));
    }
}

/// The checker.
pub struct Servers {
    log: Rc<RefCell<Log>>,
    seen: BTreeMap<(HostId, u32), Counters>,
    confirmed: (Term, CommitNo),
    history: BTreeMap<CommitNo, Term>,
    censuses: u64,
    /// Reads all items, now and then: runs were merged since, or a server was started.
    reader: Reader,
    happened: Happened,
    /// Runs, as they were read last.
    read: BTreeSet<u64>,
    readings: u64,
    items_read: u64,
    leases: BTreeMap<HostId, Lease>,
    /// Clients that were evicted, as their records said last.
    out: BTreeMap<ClientId, Out>,
    /// Those of them whose records are there no more.
    proven: u64,
}

/// What the record of an evicted client says.
#[derive(Debug, Clone, Copy)]
struct Out {
    /// Its last transaction.
    transaction: u64,
    /// What that one opened.
    opened: Option<Seq>,
    /// The record is still there.
    there: bool,
}

/// What is known of a mount's lease, as time really passes. Its own clock may have stood still.
#[derive(Debug, Clone, Copy)]
struct Lease {
    boots: u32,
    /// The question under way, on the mount's clock, and when that was.
    asked: (Instant, Time),
    /// When the question was made that it counts from.
    from: Option<Time>,
}

impl Servers {
    /// A checker of what is logged there.
    #[must_use]
    pub fn new(log: Rc<RefCell<Log>>) -> Servers {
        let confirmed = (Term::NONE, CommitNo(0));
        let (seen, history) = (BTreeMap::new(), BTreeMap::new());
        Servers {
            log,
            seen,
            confirmed,
            history,
            censuses: 0,
            reader: Reader::default(),
            happened: Happened::new(),
            read: BTreeSet::new(),
            readings: 0,
            items_read: 0,
            leases: BTreeMap::new(),
            out: BTreeMap::new(),
            proven: 0,
        }
    }

    /// Keeps what is known of evicted clients, and checks that none is given up without proof that
    /// it writes no more.
    fn check_evicted(&mut self, census: &Census<'_>) -> Result<(), String> {
        for (client, out) in &mut self.out {
            let gone = !census.clients.contains_key(client);
            if gone && out.there && !self.log.borrow().gone.contains(client) {
                return Err(format!("client {client} was given up, and nothing proves it gone"));
            }
            self.proven += u64::from(gone && out.there);
            out.there = !gone;
        }
        for (client, record) in census.clients.iter().filter(|(_, record)| is_out(record)) {
            let opened = census.opened.get(client).copied();
            let transaction = record.transaction.get();
            self.out.insert(*client, Out { transaction, opened, there: true });
        }
        Ok(())
    }

    /// Checks that what mounts hold during their leases goes together.
    fn check_locks(&mut self, world: &World, host: HostId) -> Result<(), String> {
        let Some(mount) = world.guest::<Mount>(host) else { return Ok(()) };
        let now = world.now();
        let boots = world.boots(host);
        let length = self.log.borrow().lease;
        let is_live = |lease: &Lease, host: HostId| {
            let ends = lease.from.map(|from| from.plus(length));
            lease.boots == world.boots(host)
                && ends.is_some_and(|ends| ends > now)
                && world.is_running(host)
        };
        let fresh = Lease { boots, asked: (Instant(0), Time(0)), from: None };
        let mut lease = *self.leases.get(&host).filter(|l| l.boots == boots).unwrap_or(&fresh);
        let (evicted, granted_late) = {
            let mut log = self.log.borrow_mut();
            (log.evicted_now.take(), log.granted_late.take())
        };
        if let Some(client) = evicted {
            if is_live(&lease, host) {
                return Err(format!("client {client} was evicted during its lease"));
            }
            lease = fresh;
        }
        if let Some(what) = granted_late.filter(|_| is_live(&lease, host)) {
            return Err(what);
        }
        let (counts_from, under_way) = mount.renewals();
        // If leader and mount both stood still with their clocks, while another came to lead, one
        // goes on to renew the other's lease. That this leader acts at all isn't looked at here.
        let is_followed = mount.term() < self.confirmed.0;
        if lease.asked.0 == counts_from && counts_from != Instant(0) && !is_followed {
            lease.from = Some(lease.asked.1);
        }
        if let Some(asked) = under_way.filter(|asked| *asked != lease.asked.0) {
            lease.asked = (asked, now);
        }
        self.leases.insert(host, lease);
        let leases = &self.leases;
        let is_live = |host: HostId| leases.get(&host).is_some_and(|lease| is_live(lease, host));
        let claims = std::mem::take(&mut self.log.borrow_mut().claims);
        for other in world.hosts().filter(|other| *other != host && is_live(*other)) {
            let Some(theirs) = world.guest::<Mount>(other) else { continue };
            if let Some((asker, ino)) = claims.iter().find(|(_, ino)| theirs.uses(*ino)) {
                return Err(format!("{asker} may delete inode {ino}, used on {other}"));
            }
        }
        if !is_live(host) {
            return Ok(());
        }
        for other in world.hosts().filter(|other| *other != host && is_live(*other)) {
            let Some(theirs) = world.guest::<Mount>(other) else { continue };
            for (name, mode) in mount.held() {
                let with = theirs.held().find(|(their_name, _)| *their_name == name);
                if let Some((_, their_mode)) = with.filter(|(_, their)| !goes(mode, *their)) {
                    return Err(format!("{name}: {host} holds {mode:?}, {other} {their_mode:?}"));
                }
            }
        }
        Ok(())
    }

    fn check(&mut self, world: &World, root: &Root) -> Result<(), String> {
        self.censuses += 1;
        let mut census = Census::new(world);
        census.take(root)?;
        self.check_evicted(&census)?;
        let log = Rc::clone(&self.log);
        let mut log = log.borrow_mut();
        for (client, answered) in &log.answered {
            let there = census.clients.get(client).map(|record| record.transaction.get());
            if there.is_some_and(|there| there < *answered) {
                return Err(format!("client {client} was answered {answered}, has {there:?}"));
            }
        }
        for (client, loans) in &log.loans {
            let there = census.clients.get(client).map(|record| record.loan.get());
            if there.is_some_and(|there| there < *loans) {
                return Err(format!("client {client} was lent {loans}, has {there:?}"));
            }
        }
        for (client, _) in census.clients.iter().filter(|(_, record)| is_out(record)) {
            let kept = census.kept.get(client).map(Vec::as_slice).unwrap_or_default();
            let lent = log.lent.get(client).into_iter().flatten();
            for blkno in lent.flat_map(|&(start, len)| start..start + len) {
                if !kept.iter().any(|extent| (extent.start().0..extent.end().0).contains(&blkno)) {
                    return Err(format!("block {blkno} of {client}, evicted, is not kept back"));
                }
            }
        }
        if let Some(client) = log.parted.iter().find(|client| census.clients.contains_key(client)) {
            return Err(format!("client {client} has left, and has a record"));
        }
        self.add_happened(&mut log, &census)?;
        self.happened.check_blocks(world, &census.runs)?;
        let ids = &log.numbers[0];
        let lent = |run: u64| {
            let before = ids.range(..(run + 1, 0)).next_back();
            before.is_some_and(|(start, len)| start + len > run)
        };
        let is_strange = |run: &&u64| !self.happened.is_recorded(**run) && lent(**run);
        if let Some(run) = census.runs.keys().find(is_strange) {
            return Err(format!("run {run} should not be there"));
        }
        census.files(self.happened.files())?;
        census.writes()?;
        drop(log);
        // What only came is read when something has gone too.
        let is_gone = |run: &u64| !census.runs.contains_key(run);
        if self.read.iter().any(is_gone) || self.censuses.is_multiple_of(16) {
            self.read = census.runs.keys().copied().collect();
            self.compare(world, root)?;
        }
        Ok(())
    }

    /// Takes note of the transactions that have happened by now.
    fn add_happened(&mut self, log: &mut Log, census: &Census<'_>) -> Result<(), String> {
        let mut later = BTreeMap::new();
        for ((client, number), planned) in std::mem::take(&mut log.planned) {
            // Whoever has no record any more, and was not evicted, has left after its last
            // transaction, answered.
            let out = self.out.get(&client);
            let there = census.clients.get(&client).map(|record| record.transaction.get());
            let done = there.or(out.map(|out| out.transaction)).unwrap_or(u64::MAX);
            let last = self.happened.last(client);
            if done < last {
                return Err(format!("transaction {last} of {client} has not happened any more"));
            }
            if number > done {
                later.insert((client, number), planned);
                continue;
            }
            let opened = log.opened.remove(&(client, number));
            let opened = opened.or_else(|| census.opened.get(&client).copied());
            let opened = opened.or_else(|| out.and_then(|out| out.opened));
            let opened = opened.ok_or(format!("nobody knows when {client} was answered"))?;
            self.happened.add(client, number, opened, &planned);
        }
        log.planned = later;
        Ok(())
    }

    /// All items that can be read are those that were written last.
    fn compare(&mut self, world: &World, root: &Root) -> Result<(), String> {
        let expected = self.happened.items();
        let found = self.reader.read(world, root)?;
        self.readings += 1;
        self.items_read += found.len() as u64;
        let differs = |(key, stored): (&KeyBytes, &Vec<u8>)| expected.get(key) != Some(&stored);
        if let Some((key, _)) = found.iter().find(|item| differs(*item)) {
            let known = expected.contains_key(key);
            return Err(format!("{key:?} has a version that is not the newest, known: {known}"));
        }
        match expected.keys().find(|key| !found.contains_key(**key)) {
            Some(key) => Err(format!("{key:?} is lost")),
            None => Ok(()),
        }
    }
}

/// Whether the client was evicted.
fn is_out(record: &ClientRecord) -> bool {
    record.state == ClientState::Evicted as u8
}

/// Whether two mounts may hold a lock like this.
fn goes(one: Mode, other: Mode) -> bool {
    one == other && matches!(one, Mode::Read | Mode::WriteOnly)
}

struct Census<'w> {
    world: &'w World,
    /// Whose each block is, as an index of `names`; the first of them is nobody's.
    owners: Vec<u8>,
    names: Vec<&'static str>,
    clients: BTreeMap<ClientId, ClientRecord>,
    /// What each client's last answered transaction opened.
    opened: BTreeMap<ClientId, Seq>,
    runs: BTreeMap<u64, Extent>,
    level_runs: [u64; LEVELS],
    /// Level and greatest key of the last run.
    last_run: Option<(u8, KeyBytes)>,
    /// What is lent to each client, or quarantined on account of it.
    kept: BTreeMap<ClientId, Vec<Extent>>,
}

type Visit<'a> = dyn FnMut(&mut Census<'_>, &[u8], &[u8]) -> Result<(), String> + 'a;

impl<'w> Census<'w> {
    fn new(world: &'w World) -> Census<'w> {
        Census {
            world,
            owners: vec![0; BLOCKS as usize],
            names: vec!["nobody"],
            clients: BTreeMap::new(),
            opened: BTreeMap::new(),
            runs: BTreeMap::new(),
            level_runs: [0; LEVELS],
            last_run: None,
            kept: BTreeMap::new(),
        }
    }

    fn add(&mut self, extent: Extent, owner: &'static str) -> Result<(), String> {
        if !extent.is_inside(BLOCKS) {
            return Err(format!("{owner}: {extent:?} is outside of the volume"));
        }
        let known = self.names.iter().position(|name| *name == owner);
        let index = known.unwrap_or(self.names.len());
        if known.is_none() {
            self.names.push(owner);
        }
        let (start, end) = (extent.start().0, extent.end().0);
        let owners = &mut self.owners[start as usize..end as usize];
        if let Some(at) = owners.iter().position(|owner| *owner != 0) {
            let (blkno, other) = (start + at as u64, self.names[usize::from(owners[at])]);
            return Err(format!("block {blkno} belongs to {other} and to {owner}"));
        }
        owners.fill(index as u8);
        Ok(())
    }

    fn keep(&mut self, client: ClientId, extents: &[Extent]) {
        self.kept.entry(client).or_default().extend(extents);
    }

    fn tree(&mut self, at: &TreeRoot, each: &mut Visit<'_>) -> Result<(), String> {
        if at.height == 0 {
            return Ok(());
        }
        let blkno = at.node.blkno();
        let world = self.world;
        let block = world.disk().content(blkno);
        let promise = Promise { magic: Magic::Btree, blkno, seq: Some(at.node.seq()) };
        open(block, &volume().volume(), &promise).map_err(|what| format!("{blkno}: {what:?}"))?;
        parse(block).map_err(|what| format!("{blkno}: {what:?}"))?;
        self.add(Extent::new(blkno, 1), "a node")?;
        let node = Node::new(block);
        for index in 0..node.count() {
            if node.level() > 0 {
                let (height, reserved) = (at.height - 1, [0; 7]);
                self.tree(&TreeRoot { node: node.child(index), height, reserved }, each)?;
            } else {
                let (key, value) = node.item(index);
                each(self, key, value)?;
            }
        }
        Ok(())
    }

    /// Looks at all that a root leads to.
    fn take(&mut self, root: &Root) -> Result<(), String> {
        let fields = root.fields();
        let mut free = BTreeMap::new();
        self.tree(&fields.free_by_block, &mut |census, key, value| {
            let key = BlockKey::ref_from_bytes(key).map_err(|_| "a key")?;
            let length = Length::ref_from_bytes(value).map_err(|_| "a length")?;
            let found = extent(key.last, length, BLOCKS).map_err(|what| format!("{what:?}"))?;
            free.insert(found.start(), found.len());
            census.add(found, "free space")
        })?;
        self.tree(&fields.free_by_length, &mut |_, key, _| {
            let key = LengthKey::ref_from_bytes(key).map_err(|_| "a key")?;
            let found = key.extent(BLOCKS).map_err(|what| format!("{what:?}"))?;
            match free.get(&found.start()) == Some(&found.len()) {
                true => Ok(()),
                false => Err(format!("{found:?} is free by length only")),
            }
        })?;
        if free.values().sum::<u64>() != fields.free_blocks.get() {
            return Err("the count of free blocks is wrong".to_owned());
        }
        self.tree(&fields.loans, &mut |census, key, value| {
            let key = LoanKey::ref_from_bytes(key).map_err(|_| "a key")?;
            let pool = Pool::parse(key.pool).map_err(|_| "a pool")?;
            let extents = list(value).map_err(|what| format!("{what:?}"))?;
            match pool {
                Pool::Data | Pool::Runs | Pool::Compaction => {
                    census.keep(ClientId(key.client.get()), extents);
                    extents.iter().try_for_each(|extent| census.add(*extent, "a loan"))
                }
                Pool::Inodes | Pool::RunIds => Ok(()),
            }
        })?;
        self.tree(&fields.freed, &mut |census, _, value| {
            let extents = list(value).map_err(|what| format!("{what:?}"))?;
            extents.iter().try_for_each(|extent| census.add(*extent, "what was freed"))
        })?;
        self.tree(&fields.quarantine, &mut |census, key, value| {
            let key = QuarantineKey::ref_from_bytes(key).map_err(|_| "a key")?;
            let extents = list(value).map_err(|what| format!("{what:?}"))?;
            if key.kind == OwnerKind::Client as u8 {
                census.keep(ClientId(key.owner.get()), extents);
            }
            extents.iter().try_for_each(|extent| census.add(*extent, "what waits"))
        })?;
        self.tree(&fields.manifest, &mut |census, key, value| {
            let key = ManifestKey::ref_from_bytes(key).map_err(|_| "a key")?;
            let entry = ManifestEntry::ref_from_bytes(value).map_err(|_| "an entry")?;
            let (first, last) = entry.range().ok_or("a run without items")?;
            let before = census.last_run.replace((key.level, last));
            if key.level > 0
                && before.is_some_and(|(level, end)| level == key.level && end >= first)
            {
                return Err(format!("run {} overlaps the one before it", entry.run()));
            }
            census.level_runs[usize::from(key.level)] += 1;
            if census.runs.insert(entry.run.get(), entry.extent()).is_some() {
                return Err(format!("run {} is there twice", entry.run()));
            }
            census.add(entry.extent(), "a run")
        })?;
        if fields.level_runs.map(|runs| runs.get()) != self.level_runs {
            return Err(format!("the root counts other runs than {:?}", self.level_runs));
        }
        self.tree(&fields.clients, &mut |census, key, value| {
            let key = ClientKey::ref_from_bytes(key).map_err(|_| "a key")?;
            if key.part == ClientPart::TransactionAnswer as u8
                && let Ok(ServerAnswer::Transaction(done)) =
                    ServerAnswer::parse(Kind::Transaction, value)
            {
                census.opened.insert(ClientId(key.client.get()), done.seq_next);
            }
            if key.part == ClientPart::Client as u8 {
                let record = ClientRecord::read_from_bytes(value).map_err(|_| "a record")?;
                let twin = census.clients.iter().find(|(_, other)| other.nonce == record.nonce);
                if let Some((twin, _)) = twin {
                    return Err(format!("{twin} and {} have drawn the same nonce", key.client));
                }
                census.clients.insert(ClientId(key.client.get()), record);
            }
            Ok(())
        })?;
        self.tree(&fields.open_seqs, &mut |_, _, _| Ok(()))?;
        for start in fields.takeover.iter().filter(|start| start.get() != 0) {
            let reserve = Extent::new(BlockNo(start.get()), TAKEOVER_BLOCKS);
            self.add(reserve, "a takeover reserve")?;
        }
        root.reserve().iter().try_for_each(|extent| self.add(*extent, "the commit reserve"))
    }

    /// What may still be written, by whomever, belongs to nobody else: a late write is harmless.
    fn writes(&self) -> Result<(), String> {
        let inside = FIRST_BLKNO.0..spare_blkno(BLOCKS).0;
        let writes = self.world.disk().writes().filter(|(_, blkno)| inside.contains(&blkno.0));
        for (host, blkno) in writes {
            let owner = self.names[usize::from(self.owners[blkno.0 as usize])];
            let lent: &[&str] = match host.0 < SERVERS {
                true => &["the commit reserve", "a takeover reserve"],
                false => &["a loan"],
            };
            if owner != "what waits" && !lent.contains(&owner) {
                return Err(format!("{host} may still write block {blkno}, {owner}"));
            }
        }
        Ok(())
    }

    /// What is left must be the files', all of it.
    fn files(&mut self, files: &[i32]) -> Result<(), String> {
        for (blkno, uses) in (0..).zip(files) {
            match uses {
                0 => {}
                1 => self.add(Extent::new(BlockNo(blkno), 1), "a file")?,
                _ => return Err(format!("block {blkno} is in {uses} files")),
            }
        }
        let mut all = FIRST_BLKNO.0..spare_blkno(BLOCKS).0;
        match all.find(|blkno| self.owners[*blkno as usize] == 0) {
            Some(blkno) => Err(format!("block {blkno} has leaked")),
            None => Ok(()),
        }
    }
}

impl Checker for Servers {
    fn name(&self) -> &'static str {
        "servers"
    }

    fn after_step(&mut self, world: &World, host: HostId) -> Result<(), String> {
        if let Some(wrong) = &self.log.borrow().wrong {
            return Err(wrong.clone());
        }
        self.check_locks(world, host)?;
        let Some(server) = world.guest::<Server<'static>>(host) else { return Ok(()) };
        let counters = server.counters();
        let before = self.seen.insert((host, world.boots(host)), counters).unwrap_or_default();
        if before.commits == counters.commits {
            return Ok(());
        }
        let Some(root) = server.store().root().copied() else { return Ok(()) };
        // A leader that was stopped after it had looked for claims confirms late what its successor
        // has read. So commits may be confirmed out of order, but they are one history.
        let (term, commit) = root.rank();
        let before = self.history.range(..commit).next_back().is_some_and(|(_, of)| *of > term);
        let after =
            self.history.range(commit..).next().is_some_and(|(at, of)| *at == commit || *of < term);
        if before || after {
            return Err(format!("{term} has confirmed {commit}, against {:?}", self.confirmed));
        }
        self.history.insert(commit, term);
        if root.rank() < self.confirmed {
            return Ok(());
        }
        self.confirmed = root.rank();
        self.check(world, &root)
    }

    fn unsettled(&self, world: &World) -> Option<String> {
        world.hosts().find_map(|host| {
            let mount = world.guest::<Mount>(host);
            match mount {
                Some(mount) if mount.farewells() < FAREWELLS || mount.grants() < GRANTS => {
                    Some(format!("{host}: {} farewells, {}", mount.farewells(), mount.describe()))
                }
                Some(_) | None => None,
            }
        })
    }

    fn is_settled(&self, world: &World) -> bool {
        let mut mounts = world.hosts().filter_map(|host| world.guest::<Mount>(host));
        mounts.all(|mount| mount.farewells() >= FAREWELLS && mount.grants() >= GRANTS)
    }

    fn work(&self) -> Vec<(&'static str, u64)> {
        let sum = |of: fn(&Counters) -> u64| self.seen.values().map(of).sum();
        let log = self.log.borrow();
        vec![
            ("elections", sum(|counters| counters.elections)),
            ("terms served", sum(|counters| counters.terms_served)),
            ("terms lost", sum(|counters| counters.terms_lost)),
            ("requests dropped", sum(|counters| counters.dropped)),
            ("listen failures", sum(|counters| counters.listen_failures)),
            ("censuses", self.censuses),
            ("merges", sum(|counters| counters.merging.merges)),
            ("runs moved down", sum(|counters| counters.merging.moves)),
            ("blocks merged", sum(|counters| counters.merging.blocks)),
            ("transactions held", sum(|counters| counters.held)),
            ("extents freed twice", sum(|counters| counters.freed_twice)),
            ("readings of all items", self.readings),
            ("items read", self.items_read),
            ("clients", log.nonces.len() as u64),
            ("transactions answered", log.answered.values().sum()),
            ("loans answered", log.loans.values().sum()),
            ("farewells answered", log.parted.len() as u64),
            ("refusals", log.refusals),
            ("evictions begun", sum(|counters| counters.evictions)),
            ("evictions heard of", log.evicted),
            ("evicted clients proven gone", self.proven),
            ("locks granted", log.grants),
            ("locks reported", log.reported),
            ("inodes unused", log.orphans),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::Log;
    use outrider_core::format::{CommitNo, Term};
    use outrider_core::lock::LockName;

    #[test]
    fn a_manifest_must_be_as_new_as_what_the_lock_was_left_with() {
        let (before, after) = (Term::new(1, 0), Term::new(2, 0));
        let granted = |log: &mut Log, term, root| {
            log.granted(LockName::RENAME, term, CommitNo(root));
            log.granted_late.take().is_some()
        };
        let mut log = Log::default();
        log.saw(before, CommitNo(5));
        log.released(LockName::RENAME, before);
        assert!(granted(&mut log, before, 4) && !granted(&mut log, before, 5));
        assert!(granted(&mut log, after, 4), "what was left to one leader is left to the next");
        // Mounts of a leader that was stopped hand a lock on, of which its successor knows nothing.
        log.saw(after, CommitNo(9));
        log.released(LockName::RENAME, before);
        assert!(!granted(&mut log, before, 5));
        // Once it was handed on by the successor, the other may not.
        log.released(LockName::RENAME, after);
        assert!(granted(&mut log, before, 5) && !granted(&mut log, after, 9));
        log.released(LockName::RENAME, before);
        assert!(granted(&mut log, before, 5), "nothing is forgotten");
    }
}

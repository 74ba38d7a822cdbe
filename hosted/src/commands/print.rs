//! `outrider print`: shows what stands on a device.
//!
//! # Invariants
//!
//! * Nothing is written. What is damaged is told and not guessed at.
//! * If somebody leads, it is asked to keep what is read as it is.
//! * Trees are read node by node, and only as far as their keys ascend: it ends on any device.

use super::device::Image;
use super::mkfs::show_uuid;
use super::pinning::Pinning;
use super::{Failure, USAGE, corruption, items, report, size};
use clap::{Args, ValueEnum};
use outrider_core::error::Corruption;
use outrider_core::format::block::{self, Magic, Promise};
use outrider_core::format::btree::{self, Node, TreeRoot};
use outrider_core::format::key::Key;
use outrider_core::format::layout::{QUORUM_BLKNO, ROOT_BLKNO, ROOT_PAIRS};
use outrider_core::format::quorum::{self, Slot, State};
use outrider_core::format::records::{
    BlockKey, ClientKey, ClientPart, ClientRecord, ClientState, FreedKey, Length, LoanKey,
    ManifestEntry, ManifestKey, OpenSeq, OpenSeqKey, QuarantineKey, extent, list,
};
use outrider_core::format::root::{Extent, Root, RootBlock};
use outrider_core::format::super_block::Super;
use outrider_core::format::{BLOCK_BYTES, Block, BlockNo};
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Show what a volume holds, without mounting it.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Show it as JSON.
    #[arg(long)]
    json: bool,
    /// The block device or file.
    device: PathBuf,
    /// What to show; all but items and segments if not given.
    section: Option<Section>,
    /// For `items`: the first and the last key; for `segment`: the number of the run.
    #[arg(num_args = 0..=2, value_name = "FROM TO | NR")]
    places: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Section {
    /// The super block.
    Super,
    /// The voters' quorum blocks.
    Quorum,
    /// The ring of roots.
    Roots,
    /// The runs of the log-structured tree.
    Manifest,
    /// The items, of each key the newest, from a key and up to one if given.
    Items,
    /// One run, with all that it holds: NR.
    Segment,
    /// Free, freed, quarantined and reserved space.
    Alloc,
    /// Mounted clients, and what is lent to them.
    Clients,
    /// Locks: they are in the memory of the server that leads, and on no device.
    Locks,
}

/// A volume that is read.
pub(crate) struct Volume {
    pub(crate) image: Image,
    pub(crate) found: Super,
}

/// A run in the manifest.
#[derive(Clone, Copy)]
pub(crate) struct Run {
    pub(crate) key: ManifestKey,
    pub(crate) entry: ManifestEntry,
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let image = Image::open(&options.device)?;
    let found = image.volume()?;
    let volume = Volume { image, found };
    let takes = match options.section {
        Some(Section::Items) => 0..=2,
        Some(Section::Segment) => 1..=1,
        Some(
            Section::Super
            | Section::Quorum
            | Section::Roots
            | Section::Manifest
            | Section::Alloc
            | Section::Clients
            | Section::Locks,
        )
        | None => 0..=0,
    };
    if !takes.contains(&options.places.len()) {
        let what = "items takes [FROM [TO]], segment takes NR, nothing else takes more";
        return Err(Failure { status: USAGE, what: what.to_owned() });
    }
    let blocks_only = matches!(
        options.section,
        Some(Section::Super | Section::Quorum | Section::Roots | Section::Locks)
    );
    // Each root that is read from here on leads to what it says, as long as this is there.
    let _pin = match blocks_only {
        true => None,
        false => Pinning::begin(&volume.image, &volume.found),
    };
    let value = match options.section {
        Some(Section::Items) => return items(&volume, options),
        Some(Section::Locks) => {
            let what = "locks are in the memory of the server that leads, and on no device";
            return Err(Failure { status: USAGE, what: what.to_owned() });
        }
        Some(Section::Segment) => {
            json!({ "segment": items::segment(&volume, &options.places[0])? })
        }
        Some(section) => volume.sections(&[section])?,
        None => volume.sections(&[
            Section::Super,
            Section::Quorum,
            Section::Roots,
            Section::Manifest,
            Section::Alloc,
            Section::Clients,
        ])?,
    };
    report::show(&value, options.json)
}

fn items(volume: &Volume, options: &Options) -> Result<(), Failure> {
    let key = |at: usize, default: Key| match options.places.get(at) {
        None => Ok(default),
        Some(text) => text.parse().map_err(|_| Failure {
            status: USAGE,
            what: format!("{text:?} is not a key; give six numbers, as in 3.1.1.0.0.0"),
        }),
    };
    let (from, to) = (key(0, Key::MIN)?, key(1, Key::MAX)?);
    items::print(volume, from, to, options.json)
}

/// A structure that fills these bytes.
fn whole<T>(bytes: &[u8]) -> Result<&T, Corruption>
where
    T: FromBytes + Immutable + KnownLayout + Unaligned,
{
    T::ref_from_bytes(bytes).map_err(|_| Corruption::Bounds)
}

fn extents(extents: &[Extent]) -> Value {
    extents.iter().map(|extent| format!("{}+{}", extent.start(), extent.len())).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What is shown of an item of a tree.
type Each<'a> = dyn FnMut(&[u8], &[u8]) -> Result<(), Corruption> + 'a;

impl Volume {
    fn sections(&self, sections: &[Section]) -> Result<Value, Failure> {
        let mut all = Map::new();
        for section in sections {
            let (name, value) = match section {
                Section::Super => ("super", self.super_block()),
                Section::Quorum => ("quorum", self.quorum()?),
                Section::Roots => ("roots", self.roots()?),
                Section::Manifest => ("manifest", self.manifest()?),
                Section::Alloc => ("alloc", self.alloc()?),
                Section::Clients => ("clients", self.clients()?),
                Section::Items | Section::Segment | Section::Locks => continue,
            };
            all.insert(name.to_owned(), value);
        }
        Ok(Value::Object(all))
    }

    pub(crate) fn damaged(&self, blkno: BlockNo, what: Corruption) -> Failure {
        let (name, what) = (self.image.name(), corruption(what));
        Failure::new(format!(
            "block {blkno} of {name} is damaged ({what}); outrider check finds all that is"
        ))
    }

    fn super_block(&self) -> Value {
        let fields = self.found.fields();
        let voters: Map<String, Value> = (0..7u8)
            .filter_map(|slot| Some((slot.to_string(), self.found.voter(slot)?.to_string().into())))
            .collect();
        let limits = &fields.limits;
        json!({
            "fsid": format!("{:016x}", self.found.fsid()),
            "uuid": show_uuid(&fields.uuid),
            "label": self.found.label(),
            "generation": self.found.generation(),
            "blocks": self.found.blocks(),
            "size": size::show(self.found.blocks().saturating_mul(BLOCK_BYTES as u64)),
            "features": {
                "compat": fields.compat.get(),
                "ro_compat": fields.ro_compat.get(),
                "incompat": fields.incompat.get(),
            },
            "limits": {
                "clients": limits.clients.get(),
                "locks_per_client": limits.locks_per_client.get(),
                "locks": limits.locks.get(),
                "lease_ms": limits.lease_ms.get(),
                "recovery_ms": limits.recovery_ms.get(),
                "io_lifetime_ms": limits.io_lifetime_ms.get(),
            },
            "voters": voters,
        })
    }

    pub(super) fn quorum(&self) -> Result<Value, Failure> {
        let volume = self.found.volume();
        let show = |slot: Slot| {
            let block = self.image.read(slot.blkno(QUORUM_BLKNO))?;
            let ballot = match quorum::parse(&block, &volume, QUORUM_BLKNO, slot) {
                Ok(Some(ballot)) => ballot,
                Ok(None) => return Ok(json!({ "slot": slot.number(), "state": "blank" })),
                Err(what) => {
                    let slot = slot.number();
                    return Ok(json!({ "slot": slot, "damaged": corruption(what) }));
                }
            };
            Ok(json!({
                "slot": slot.number(),
                "state": state(ballot.state),
                "writes": ballot.seq,
                "term": ballot.term.to_string(),
                "held": ballot.held.to_string(),
                "highest_round": ballot.highest_round,
                "mounts": ballot.mounts,
                "leaving": ballot.leaving,
                "lease_ms": ballot.lease_ms,
                "config_gen": ballot.config_gen,
                "confirmed": ballot.confirmed.1.0,
                "confirmed_term": ballot.confirmed.0.to_string(),
                "endpoint": ballot.endpoint.map(|at| at.to_string()),
                "host": hex(&ballot.host.0),
                "boot": hex(&ballot.boot.0),
            }))
        };
        Slot::ALL.into_iter().map(show).collect()
    }

    fn ring(&self) -> Result<Vec<Place>, Failure> {
        let (volume, blocks) = (self.found.volume(), self.found.blocks());
        let read = |at| {
            let blkno = ROOT_BLKNO.plus(at);
            let block = self.image.read(blkno)?;
            Ok((
                blkno,
                match block.0 == [0; BLOCK_BYTES] {
                    true => Ok(None),
                    false => Root::open(&block, &volume, blkno, blocks).map(Some),
                },
            ))
        };
        (0..2 * ROOT_PAIRS).map(read).collect()
    }

    /// The newest root.
    pub(crate) fn newest(&self) -> Result<Root, Failure> {
        let roots = self.ring()?.into_iter().filter_map(|(_, root)| root.ok().flatten());
        roots.max_by_key(Root::rank).ok_or_else(|| {
            let name = self.image.name();
            Failure::new(format!("{name} has no valid root; outrider check says what is left"))
        })
    }

    fn roots(&self) -> Result<Value, Failure> {
        let newest = self.newest().ok().map(|root| root.rank());
        let show = |(blkno, root): Place| match root {
            Ok(None) => None,
            Err(what) => Some(json!({ "blkno": blkno.0, "damaged": corruption(what) })),
            Ok(Some(root)) => {
                let mut value = show_root(&root);
                value["blkno"] = blkno.0.into();
                value["newest"] = (newest == Some(root.rank())).into();
                Some(value)
            }
        };
        Ok(self.ring()?.into_iter().filter_map(show).collect())
    }

    /// Shows each item of a tree.
    fn each(&self, tree: &TreeRoot, kind: u8, each: &mut Each<'_>) -> Result<(), Failure> {
        let mut last = Vec::new();
        match tree.height {
            0 => Ok(()),
            height => self.each_below(tree.node, height - 1, kind, &mut last, each),
        }
    }

    fn each_below(
        &self,
        at: btree::BlockRef,
        level: u8,
        kind: u8,
        last: &mut Vec<u8>,
        each: &mut Each<'_>,
    ) -> Result<(), Failure> {
        let blkno = at.blkno();
        let damaged = |what| self.damaged(blkno, what);
        let block = self.image.read(blkno)?;
        let promise = Promise { magic: Magic::Btree, blkno, seq: Some(at.seq()) };
        block::open(&block, &self.found.volume(), &promise).map_err(damaged)?;
        btree::parse(&block).map_err(damaged)?;
        let node = Node::new(&block);
        if node.kind() != kind || node.level() != level {
            return Err(damaged(Corruption::Level));
        }
        for index in 0..node.count() {
            if level > 0 {
                self.each_below(node.child(index), level - 1, kind, last, each)?;
                continue;
            }
            let (key, value) = node.item(index);
            if !last.is_empty() && key <= &last[..] {
                return Err(damaged(Corruption::Order));
            }
            key.clone_into(last);
            each(key, value).map_err(damaged)?;
        }
        Ok(())
    }

    /// The runs, in the order of the manifest.
    pub(crate) fn runs(&self) -> Result<Vec<Run>, Failure> {
        let (root, mut runs) = (self.newest()?, Vec::new());
        self.each(&root.fields().manifest, 3, &mut |key, value| {
            let entry = *whole::<ManifestEntry>(value)?;
            entry.check(self.found.blocks())?;
            runs.push(Run { key: *whole(key)?, entry });
            Ok(())
        })?;
        Ok(runs)
    }

    fn manifest(&self) -> Result<Value, Failure> {
        Ok(self.runs()?.iter().map(Run::show).collect())
    }

    fn lists(&self, tree: &TreeRoot, kind: u8, show: Show) -> Result<Value, Failure> {
        let mut values = Vec::new();
        self.each(tree, kind, &mut |key, value| {
            let mut shown = show(key)?;
            shown["extents"] = extents(list(value)?);
            values.push(shown);
            Ok(())
        })?;
        Ok(values.into())
    }

    fn alloc(&self) -> Result<Value, Failure> {
        let (root, blocks) = (self.newest()?, self.found.blocks());
        let fields = root.fields();
        let mut free = Vec::new();
        self.each(&fields.free_by_block, 1, &mut |key, value| {
            free.push(extent(whole::<BlockKey>(key)?.last, whole::<Length>(value)?, blocks)?);
            Ok(())
        })?;
        let freed = self.lists(&fields.freed, 7, |key| {
            Ok(json!({ "commit": whole::<FreedKey>(key)?.commit.get() }))
        })?;
        let quarantine = self.lists(&fields.quarantine, 8, |key| {
            let key = whole::<QuarantineKey>(key)?;
            let owner = if key.kind == 1 { "round" } else { "client" };
            Ok(json!({ owner: key.owner.get() }))
        })?;
        let rounds = root.term().round() + 1..;
        let takeover = rounds.zip(&fields.takeover).filter(|(_, start)| start.get() != 0);
        let takeover: Map<String, Value> =
            takeover.map(|(round, start)| (round.to_string(), start.get().into())).collect();
        Ok(json!({
            "free_blocks": fields.free_blocks.get(),
            "cursor": fields.cursor.get(),
            "free": extents(&free),
            "freed": freed,
            "quarantine": quarantine,
            "reserve": extents(root.reserve()),
            "takeover": takeover,
        }))
    }

    /// The clients that are recorded, and how.
    pub(super) fn recorded(&self) -> Result<Vec<(u64, &'static str)>, Failure> {
        let root = self.newest()?;
        let mut clients = Vec::new();
        self.each(&root.fields().clients, 4, &mut |key, value| {
            let key = whole::<ClientKey>(key)?;
            if key.part == ClientPart::Client as u8 {
                let record = whole::<ClientRecord>(value)?;
                let state = match ClientState::parse(record.state)? {
                    ClientState::Mounted => "mounted",
                    ClientState::Leaving => "leaving",
                    ClientState::Evicted => "evicted",
                };
                clients.push((key.client.get(), state));
            }
            Ok(())
        })?;
        Ok(clients)
    }

    fn clients(&self) -> Result<Value, Failure> {
        let root = self.newest()?;
        let fields = root.fields();
        let mut clients = Vec::new();
        self.each(&fields.clients, 4, &mut |key, value| {
            let key = whole::<ClientKey>(key)?;
            if key.part == ClientPart::Client as u8 {
                clients.push(show_client(key, whole::<ClientRecord>(value)?));
            }
            Ok(())
        })?;
        let loans = self.lists(&fields.loans, 5, |key| {
            let key = whole::<LoanKey>(key)?;
            let pools = ["data", "runs", "inodes", "run-ids", "compaction"];
            let pool = usize::from(key.pool).checked_sub(1).and_then(|pool| pools.get(pool));
            let pool = pool.ok_or(Corruption::Value)?;
            Ok(json!({ "client": key.client.get(), "pool": pool }))
        })?;
        let mut open_seqs = Vec::new();
        self.each(&fields.open_seqs, 6, &mut |key, value| {
            let (key, open) = (whole::<OpenSeqKey>(key)?, whole::<OpenSeq>(value)?);
            let (seq, client) = (key.seq.get(), key.client.get());
            open_seqs.push(json!({ "seq": seq, "client": client, "floor": open.floor.get() }));
            Ok(())
        })?;
        Ok(json!({ "mounted": clients, "loans": loans, "open_seqs": open_seqs }))
    }

    /// Reads a block of a run, unverified.
    pub(crate) fn block(&self, run: &Run, index: u32) -> Result<Box<Block>, Failure> {
        self.image.read(run.entry.extent().start().plus(index.into()))
    }
}

/// A block of the ring, and what stands there: nothing, a root, or something else.
type Place = (BlockNo, Result<Option<Root>, Corruption>);

/// What is shown of a list's key.
type Show = fn(&[u8]) -> Result<Value, Corruption>;

impl Run {
    /// What the manifest says of it.
    pub(crate) fn show(&self) -> Value {
        let entry = &self.entry;
        let range = entry.range().map(|(first, last)| (Key::from(first), Key::from(last)));
        json!({
            "run": entry.run().0,
            "level": self.key.level,
            "order": self.key.order.get(),
            "blkno": entry.extent().start().0,
            "item_blocks": entry.item_blocks.get(),
            "index_blocks": entry.index_blocks.get(),
            "filter_blocks": entry.filter_blocks.get(),
            "items": entry.items.get(),
            "tombstones": entry.tombstones.get(),
            "first": range.map(|(first, _)| first.to_string()),
            "last": range.map(|(_, last)| last.to_string()),
        })
    }
}

const fn state(state: State) -> &'static str {
    match state {
        State::Idle => "idle",
        State::Claiming => "claiming",
        State::Elected => "elected",
        State::Listening => "listening",
        State::Resigned => "resigned",
        State::Stopped => "stopped",
    }
}

fn show_root(root: &Root) -> Value {
    let RootBlock { next_client, next_ino, next_seq, next_run, next_job, .. } = *root.fields();
    let fields = root.fields();
    let trees = [
        ("free_by_block", &fields.free_by_block),
        ("free_by_length", &fields.free_by_length),
        ("manifest", &fields.manifest),
        ("clients", &fields.clients),
        ("loans", &fields.loans),
        ("open_seqs", &fields.open_seqs),
        ("freed", &fields.freed),
        ("quarantine", &fields.quarantine),
    ];
    let trees: Map<String, Value> = trees
        .iter()
        .filter(|(_, tree)| tree.height > 0)
        .map(|(name, tree)| {
            let place = json!({ "blkno": tree.node.blkno().0, "height": tree.height });
            ((*name).to_owned(), place)
        })
        .collect();
    json!({
        "blkno": null,
        "newest": null,
        "term": root.term().to_string(),
        "commit": root.commit().0,
        "free_blocks": fields.free_blocks.get(),
        "next_client": next_client.get(),
        "next_ino": next_ino.get(),
        "next_seq": next_seq.get(),
        "next_run": next_run.get(),
        "next_job": next_job.get(),
        "level_runs": fields.level_runs.map(|runs| runs.get()),
        "trees": trees,
    })
}

fn show_client(key: &ClientKey, record: &ClientRecord) -> Value {
    let name = record.name.split(|byte| *byte == 0).next().unwrap_or_default();
    let states = ["mounted", "leaving", "evicted"];
    let state = usize::from(record.state).checked_sub(1).and_then(|state| states.get(state));
    json!({
        "client": key.client.get(),
        "name": String::from_utf8_lossy(name),
        "state": state,
        "read_only": record.flags & 1 != 0,
        "voter": record.flags & 2 != 0,
        "host": hex(&record.host_id),
        "boot": hex(&record.boot_id),
        "transaction": record.transaction.get(),
        "loan": record.loan.get(),
    })
}

//! A leader that works while older roots are read: nothing that a reader was promised is written,
//! and no commit has less for it.

use super::super::kept::Keeping;
use super::*;
use crate::format::RunId;

/// Somebody who reads a root.
struct Reader {
    since: CommitNo,
    chosen: Option<CommitNo>,
}

/// What has happened.
#[derive(Debug, Default)]
struct Tally {
    commits: u64,
    readers: u64,
    lost: u64,
    /// Most blocks that were kept at a time.
    kept: u64,
    entered: u64,
}

struct Rig {
    disk: Disk,
    rng: Rng,
    leader: Leader,
    readers: Vec<Reader>,
    /// The nodes of each root, by its commit.
    roots: BTreeMap<CommitNo, BTreeSet<u64>>,
    tally: Tally,
}

/// The blocks of a tree's nodes.
fn nodes(disk: &Disk, at: &TreeRoot, found: &mut BTreeSet<u64>) {
    if at.height == 0 {
        return;
    }
    found.insert(at.node.blkno().0);
    let node = Node::new(&disk.blocks[&at.node.blkno().0]);
    for index in (0..node.count()).filter(|_| at.height > 1) {
        let child = TreeRoot { node: node.child(index), height: at.height - 1, reserved: [0; 7] };
        nodes(disk, &child, found);
    }
}

impl Rig {
    fn new(seed: u64) -> Rig {
        let World { mut disk, mut rng, .. } = World::new(seed);
        let mut leader = loaded(1, &mut disk, &mut rng);
        leader.store.take_over(Term::new(1, 0), &Gone::all_but([])).unwrap();
        let commit = first_commit(&mut leader, &mut disk, &mut rng);
        leader.store.confirm(commit);
        let (readers, roots) = (Vec::new(), BTreeMap::new());
        Rig { disk, rng, leader, readers, roots, tally: Tally::default() }
    }

    /// Says to the store who reads, and to the disk what.
    fn keep(&mut self) {
        let any = CommitNo(u64::MAX);
        let keeping = self.readers.iter().map(|reader| reader.since).min().map(|since| Keeping {
            since,
            upto: self.readers.iter().map(|reader| reader.chosen.unwrap_or(any)).max().unwrap(),
            runs: RunId(u64::MAX),
        });
        self.leader.store.keep(keeping);
        self.note_read();
    }

    fn note_read(&mut self) {
        self.disk.read.clear();
        for reader in &self.readers {
            for (commit, nodes) in self.roots.range(reader.since..) {
                if reader.chosen.is_none_or(|chosen| chosen == *commit) {
                    self.disk.read.extend(nodes);
                }
            }
        }
    }

    fn turn(&mut self) {
        self.leader.turn(&mut self.disk, &mut self.rng);
        if self.leader.store.kept.take_lost() {
            self.tally.lost += self.readers.len() as u64;
            self.readers.clear();
            self.keep();
        }
        match self.leader.store.poll_event() {
            Some(StoreEvent::Durable(commit)) => {
                let root = newest_root(&self.disk);
                assert_eq!(root.commit(), commit);
                census(&self.disk, root.fields());
                let RootBlock {
                    free_by_block,
                    free_by_length,
                    loans,
                    open_seqs,
                    freed,
                    quarantine,
                    ..
                } = root.fields();
                let mut all = BTreeSet::new();
                for tree in [free_by_block, free_by_length, loans, open_seqs, freed, quarantine] {
                    nodes(&self.disk, tree, &mut all);
                }
                self.roots.insert(commit, all);
                self.note_read();
                self.leader.store.confirm(commit);
                self.tally.commits += 1;
            }
            Some(event) => panic!("{event:?} {:?}", self.leader.store),
            None => {}
        }
        self.tally.kept = self.tally.kept.max(self.leader.store.kept.blocks());
    }

    /// Moves one freed extent into the free trees, of a list that isn't kept.
    fn enter(&mut self) {
        let (disk, rng) = (&mut self.disk, &mut self.rng);
        let keys = self.leader.run(disk, rng, |trees, cache, pins| {
            let (mut keys, mut from) = (Vec::new(), [0; 12]);
            while let Some(item) = trees.freed.next(&from, cache, pins)? {
                let key = *FreedKey::ref_from_bytes(item.key).unwrap();
                let behind = FreedKey { part: (key.part.get() + 1).into(), ..key };
                from.copy_from_slice(behind.as_bytes());
                keys.push(key);
                pins.restart();
            }
            Ok(keys)
        });
        let kept = &self.leader.store.kept;
        let Some(key) = keys.unwrap_or_default().into_iter().find(|key| !kept.has(key)) else {
            return;
        };
        let entered = self.leader.run(disk, rng, |trees, cache, pins| {
            let value = trees.freed.lookup(key.as_bytes(), cache, pins)?.unwrap();
            let extents = list(value).unwrap().to_vec();
            let (last, rest) = extents.split_last().unwrap();
            let mut plan = cache.plan();
            let give = trees.free.plan_give(*last, &mut plan, cache, pins)?;
            match rest.is_empty() {
                true => trees.freed.plan_delete(key.as_bytes(), &mut plan, cache, pins)?,
                false => {
                    let bytes = size_of_val(rest);
                    trees.freed.plan_replace(key.as_bytes(), bytes, &mut plan, cache, pins)?;
                }
            }
            let mut update = cache.reserve(&plan, pins)?;
            trees.free.give(give, &mut update, cache);
            match rest.is_empty() {
                true => trees.freed.delete(key.as_bytes(), &mut update, cache),
                false => trees.freed.put(key.as_bytes(), rest.as_bytes(), &mut update, cache),
            }
            Ok(())
        });
        self.tally.entered += u64::from(entered.is_ok());
    }

    /// Changes something, as leaders do.
    fn work(&mut self) {
        let (disk, rng) = (&mut self.disk, &mut self.rng);
        let number = rng.below(400) as u16;
        match rng.below(8) {
            0..=3 if self.leader.model.contains_key(&number) => {
                self.leader.reclaim(number, disk, rng);
            }
            0..=3 => {
                let blocks = 1 + rng.below(9);
                self.leader.lend(number, blocks, disk, rng);
            }
            4 | 5 => self.enter(),
            6 => self.leader.store.commit(),
            _ => {}
        }
        if self.leader.store.is_commit_wanted() {
            self.leader.store.commit();
        }
    }

    /// Readers come, choose and go.
    fn read(&mut self) {
        match self.rng.below(300) {
            0 if self.readers.len() < 4 => {
                let since = self.leader.store.commit_now();
                self.readers.push(Reader { since, chosen: None });
                self.tally.readers += 1;
            }
            1 if !self.readers.is_empty() => {
                let at = self.rng.below(self.readers.len() as u64) as usize;
                self.readers.swap_remove(at);
            }
            2..=10 if !self.readers.is_empty() => {
                let at = self.rng.below(self.readers.len() as u64) as usize;
                let reader = &mut self.readers[at];
                let there: Vec<_> = self.roots.range(reader.since..).map(|(at, _)| *at).collect();
                if reader.chosen.is_none() && !there.is_empty() {
                    let back = self.rng.below(2.min(there.len() as u64)) as usize;
                    reader.chosen = Some(there[there.len() - 1 - back]);
                }
            }
            _ => return,
        }
        self.keep();
    }

    fn run(&mut self, steps: u32) {
        for _ in 0..steps {
            self.turn();
            self.work();
            self.read();
        }
    }
}

#[test]
fn what_readers_were_promised_is_not_written() {
    let mut total = Tally::default();
    for seed in 0..12 {
        let mut rig = Rig::new(seed);
        rig.run(8000);
        // When nobody reads any more, what was kept comes back.
        rig.readers.clear();
        rig.keep();
        assert_eq!(rig.leader.store.kept.blocks(), 0);
        let Tally { commits, readers, lost, kept, entered } = rig.tally;
        total.commits += commits;
        total.readers += readers;
        total.lost += lost;
        total.kept = total.kept.max(kept);
        total.entered += entered;
    }
    std::println!("{total:?}");
    assert!(total.commits > 1000 && total.readers > 200 && total.kept > 50, "{total:?}");
    assert!(total.lost < total.readers / 4, "{total:?}");
}

#[test]
fn using_what_is_read_again_is_noticed() {
    for seed in 0..12 {
        let outcome = std::panic::catch_unwind(|| {
            activate(Some(Mutant::PinIgnored));
            Rig::new(seed).run(8000);
        });
        activate(None);
        if outcome.is_err() {
            std::println!("caught by seed {seed}");
            return;
        }
    }
    panic!("it was not noticed");
}

/// One reader for ever, who has chosen: what is kept for it stops growing when nothing of its root
/// is left, whatever is written after that.
#[test]
fn what_is_kept_is_what_was_there() {
    let mut rig = Rig::new(40);
    rig.run(3000);
    rig.readers.clear();
    let since = rig.leader.store.commit_now();
    rig.readers.push(Reader { since, chosen: None });
    rig.keep();
    while !rig.roots.contains_key(&since) {
        rig.leader.store.commit();
        rig.turn();
    }
    rig.readers[0].chosen = Some(since);
    rig.keep();
    let nodes = rig.roots[&since].len() as u64;
    for _ in 0..20_000 {
        rig.turn();
        rig.work();
    }
    assert_eq!(rig.readers.len(), 1, "it was lost");
    let kept = rig.leader.store.kept.blocks();
    assert!(kept > nodes / 2 && kept <= nodes, "{kept} of {nodes}");
    census(&rig.disk, newest_root(&rig.disk).fields());
}

/// On a full volume readers lose, and commits go on.
#[test]
fn a_commit_has_its_reserve_whoever_reads() {
    let mut lost = 0;
    for seed in 50..54 {
        let mut rig = Rig::new(seed);
        let mut number = 0;
        while rig.leader.store.trees.free.free_blocks() > 0 {
            let (disk, rng) = (&mut rig.disk, &mut rig.rng);
            let taken = rig.leader.run(disk, rng, |trees, cache, pins| {
                let whole = trees.free.find(u64::MAX, cache, pins)?.ok_or(Error::NoSpace)?;
                let part = Extent::new(whole.start(), whole.len().min(70));
                let mut plan = cache.plan();
                let take = trees.free.plan_take(whole, part, &mut plan, cache, pins)?;
                let key = loan_key(number);
                trees.loans.plan_insert(key.as_bytes(), 16, &mut plan, cache, pins)?;
                let mut update = cache.reserve(&plan, pins)?;
                let part = trees.free.take(take, &mut update, cache);
                trees.loans.put(key.as_bytes(), [part].as_bytes(), &mut update, cache);
                Ok(part)
            });
            if let Ok(part) = taken {
                rig.leader.model.insert(number, vec![part]);
                number += 1;
            }
            rig.turn();
        }
        for _ in 0..4000 {
            rig.turn();
            if rig.readers.is_empty() {
                let since = rig.leader.store.commit_now();
                rig.readers.push(Reader { since, chosen: None });
                rig.keep();
            }
            let back = rig.rng.below(u64::from(number)) as u16;
            if rig.leader.model.contains_key(&back) && rig.rng.one_in(20) {
                rig.leader.reclaim(back, &mut rig.disk, &mut rig.rng);
            }
            rig.leader.store.commit();
        }
        assert!(rig.tally.commits > 100, "{:?}", rig.tally);
        lost += rig.tally.lost;
    }
    assert!(lost > 0);
}

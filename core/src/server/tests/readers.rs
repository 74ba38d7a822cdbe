//! Merging while an older root is read: the runs it leads to stay as they are.

use super::super::readers::Readers;
use super::*;
use crate::format::wire::ErrorCode;

use crate::txn::kept::Keeping;
use std::collections::BTreeSet;
use zerocopy::FromBytes;

impl Rig {
    /// Ends the open commit, and waits until it is confirmed.
    fn commit(&mut self) -> CommitNo {
        while self.store.open_commit().is_none() {
            self.turn();
        }
        let commit = self.store.commit_now();
        self.store.commit();
        while self.store.root().is_none_or(|root| root.commit() < commit) {
            self.turn();
        }
        commit
    }

    /// The blocks of all runs.
    fn run_blocks(&mut self) -> BTreeSet<u64> {
        let mut all = BTreeSet::new();
        let mut from = [0; size_of::<ManifestKey>()].to_vec();
        loop {
            let found = self.run(|cx| {
                let (trees, cache) = (&cx.store.trees, &mut cx.store.cache);
                let item = trees.manifest.next(&from, cache, cx.pins)?;
                Ok(item.map(|item| (item.key.to_vec(), item.value.to_vec())))
            });
            let Some((key, value)) = found.unwrap() else { return all };
            let extent = ManifestEntry::read_from_bytes(&value).unwrap().extent();
            all.extend(extent.start().0..extent.end().0);
            from = key;
            from.push(0);
        }
    }

    fn free_blocks_now(&mut self) -> BTreeSet<u64> {
        let (mut all, mut from) = (BTreeSet::new(), BlockNo(1));
        loop {
            let found =
                self.run(|cx| cx.store.trees.free.find_at(from, &mut cx.store.cache, cx.pins));
            let Some(extent) = found.unwrap() else { return all };
            all.extend(extent.start().0..extent.end().0);
            from = extent.end();
        }
    }
}

#[test]
fn runs_that_are_read_are_not_free_before_their_reader_goes() {
    let mut kept = 0;
    for seed in 20..26 {
        let mut rig = Rig::new(seed);
        (0..12).for_each(|_| rig.record());
        rig.settle();
        let since = rig.commit();
        let later = rig.store.commit_now();
        let keeping = Keeping { since: later, upto: later, runs: rig.store.trees.next_run };
        rig.store.keep(Some(keeping));
        assert_eq!(rig.commit(), since.next());
        let read = rig.run_blocks();
        for _ in 0..12 {
            rig.record();
            (0..200).for_each(|_| rig.turn());
            rig.enter_freed();
            assert!(rig.free_blocks_now().is_disjoint(&read), "seed {seed}");
        }
        rig.settle();
        let gone: BTreeSet<u64> = read.difference(&rig.run_blocks()).copied().collect();
        kept += gone.len() as u64;
        assert!(rig.store.kept.blocks() >= gone.len() as u64);
        // What was written meanwhile and merged away is free.
        rig.enter_freed();
        rig.store.keep(None);
        let first = rig.store.kept.take_released();
        assert!(first.is_some_and(|first| first.commit.get() > later.0) || gone.is_empty());
        rig.enter_freed();
        assert!(gone.is_subset(&rig.free_blocks_now()), "seed {seed}");
        assert!(rig.read() == rig.model, "seed {seed}");
    }
    assert!(kept > 30, "{kept} blocks were merged away while they were read");
}

fn at(seconds: u64) -> Instant {
    Instant(seconds * 1_000_000_000)
}

fn readers() -> Readers<'static> {
    carve(|arena| Readers::carve(arena, &limits()))
}

#[test]
fn readers_are_few_and_hold_nothing_longer_than_their_lease() {
    let mut readers = readers();
    let (max, mut begun, mut ended) = (u64::from(limits().readers_max), 0, 0);
    // Somebody asks again and again.
    for second in 0..100 {
        while let Some(over) = readers.expire(at(second), false) {
            ended += 1;
            let renewed = readers.renew(over.number, None, CommitNo(500), at(second + 15));
            assert_eq!(renewed.err(), Some(ErrorCode::NotFound));
        }
        while readers.begin(CommitNo(second), at(second + 15), None).is_ok() {
            begun += 1;
        }
        assert_eq!((begun, ended), ((second / 15 + 1) * max, second / 15 * max));
    }
    assert!(readers.expire(at(100), true).is_some() && readers.timeout().is_some());
    readers.reset();
    assert_eq!((readers.keeping(), readers.timeout()), (None, None));
}

#[test]
fn a_pin_lasts_as_long_as_it_is_asked_for() {
    let mut readers = readers();
    readers.begin(CommitNo(7), at(15), None).unwrap();
    for second in (10..100).step_by(10) {
        assert!(readers.expire(at(second), false).is_none());
        readers.renew(1, None, CommitNo(9), at(second + 15)).unwrap();
        assert_eq!(readers.timeout(), Some(at(second + 15)));
    }
    assert!(readers.expire(at(104), false).is_none());
    assert_eq!(readers.expire(at(105), false).map(|reader| reader.number), Some(1));
    assert_eq!(readers.renew(1, None, CommitNo(9), at(200)).err(), Some(ErrorCode::NotFound));
}

#[test]
fn what_is_kept_is_what_any_reader_may_come_to() {
    let mut readers = readers();
    let (any, run) = (CommitNo(u64::MAX), RunId(u64::MAX));
    let keeping = |since, upto, runs| Some(Keeping { since: CommitNo(since), upto, runs });
    readers.begin(CommitNo(7), at(15), None).unwrap();
    assert_eq!(readers.keeping(), keeping(7, any, run));
    let mut choose = |number, commit, runs| {
        let chosen = Some((CommitNo(commit), RunId(runs)));
        readers.renew(number, chosen, CommitNo(9), at(15)).map(|_| readers.keeping())
    };
    assert_eq!(choose(1, 6, 50).err(), Some(ErrorCode::Invalid), "older than the pin");
    assert_eq!(choose(1, 10, 50).err(), Some(ErrorCode::Invalid), "not there yet");
    assert_eq!(choose(1, 8, 50), Ok(keeping(7, CommitNo(8), RunId(50))));
    assert_eq!(choose(1, 8, 60), Ok(keeping(7, CommitNo(8), RunId(50))), "said again");
    assert_eq!(choose(1, 9, 60).err(), Some(ErrorCode::Invalid), "another root");
    readers.begin(CommitNo(12), at(15), None).unwrap();
    assert_eq!(readers.keeping(), keeping(7, any, run));
    let chosen = Some((CommitNo(12), RunId(70)));
    readers.renew(2, chosen, CommitNo(12), at(15)).unwrap();
    assert_eq!(readers.keeping(), keeping(7, CommitNo(12), RunId(70)));
    readers.end(1).unwrap();
    assert_eq!(readers.keeping(), keeping(12, CommitNo(12), RunId(70)));
}

//! A full volume: what is lent of it, and how what is freed becomes free.

use super::super::jobs::{COMMITS_MAX, FIRST_FREED, Tidying};
use super::super::requests::{LoanState, Opened};
use super::*;
use crate::format::Seq;
use crate::format::quorum::{BootId, HostId};
use crate::format::records::Pool;
use crate::format::wire::ErrorCode;
use crate::format::wire::greeting::Machine;
use crate::format::wire::message::{
    Extent as Lent, ExtentRecord, Extents, LoanRequest, Transaction,
};
use crate::server::Counters;
use crate::txn::settle::{RESERVE_TARGET, data_floor, lend_floor};
use zerocopy::FromBytes;

impl Rig {
    fn greet(&mut self) -> (ClientId, Seq) {
        let machine = Machine { host: HostId([1; 16]), boot: BootId([2; 16]) };
        let greeted = self.run(|cx| match requests::greet(cx, [3; 16], machine) {
            Ok(greeted) => Ok(greeted),
            Err(Halt::Stop(stop)) => Err(stop),
            Err(Halt::Refuse(error)) => panic!("{error}"),
        });
        greeted.unwrap()
    }

    /// Asks for blocks for data and for runs. What is lent, if anything is.
    fn borrow(&mut self, client: ClientId, number: u64, wanted: [u32; 2]) -> Option<Vec<Lent>> {
        let [data_blocks, run_blocks] = wanted;
        let returned = Extents::default();
        let (inodes, run_ids) = (0, 0);
        let request = LoanRequest { number, data_blocks, run_blocks, inodes, run_ids, returned };
        let mut state = LoanState::default();
        loop {
            let ran = self.run(|cx| match requests::loan(cx, client, &request, &mut state) {
                Ok(progress) => Ok(Some(progress)),
                Err(Halt::Stop(stop)) => Err(stop),
                Err(Halt::Refuse(error)) => {
                    assert_eq!(error, ErrorCode::NoSpace);
                    Ok(None)
                }
            });
            match ran.unwrap()? {
                Progress::More => {}
                Progress::Done => break,
                other => panic!("{other:?}"),
            }
        }
        Some(Extents::new(&state.lent).unwrap().iter().collect())
    }

    /// A transaction without runs.
    fn record_transaction(
        &mut self,
        client: ClientId,
        number: u64,
        seq: Seq,
        used: &[Lent],
        freed: &[Lent],
    ) -> Seq {
        let records = |of: &[Lent]| of.iter().map(|of| ExtentRecord::new(*of)).collect::<Vec<_>>();
        let (used, freed) = (records(used), records(freed));
        let (used, freed) = (Extents::new(&used).unwrap(), Extents::new(&freed).unwrap());
        let request = Transaction::new(number, seq, CommitNo(1), &[], used, freed).unwrap();
        let opened = self.run(|cx| match requests::transaction(cx, client, &request) {
            Ok(opened) => Ok(opened),
            Err(Halt::Stop(stop)) => Err(stop),
            Err(Halt::Refuse(error)) => panic!("{error}"),
        });
        match opened.unwrap() {
            Opened::Now { seq_next, .. } => seq_next,
            Opened::Before { .. } => panic!("it is new"),
        }
    }

    /// The free extents.
    fn free(&mut self) -> Vec<Extent> {
        let (mut found, mut from) = (Vec::new(), BlockNo(1));
        while let Some(next) = self
            .run(|cx| {
                let (trees, cache) = (&cx.store.trees, &mut cx.store.cache);
                trees.free.find_at(from, cache, cx.pins)
            })
            .unwrap()
        {
            from = next.end();
            found.push(next);
        }
        found
    }

    /// Enters what one commit has room for, and makes the next begin. Whether a list is left.
    fn tidy(&mut self, tidying: &mut Tidying) -> bool {
        let mut counters = Counters::default();
        tidying.on_confirmed();
        loop {
            let ran = self.run(|cx| match tidying.run(cx, &mut counters) {
                Ok(progress) => Ok(progress),
                Err(Halt::Stop(stop)) => Err(stop),
                Err(Halt::Refuse(error)) => panic!("{error}"),
            });
            match ran.unwrap() {
                Progress::More => {}
                Progress::Done => break,
                other => panic!("{other:?}"),
            }
        }
        let commit = self.store.open_commit();
        self.store.commit();
        while commit.is_some() && self.store.open_commit() == commit {
            self.turn();
        }
        !self.store.trees.freed.is_empty()
    }

    /// How many commits ago the first list was made.
    fn age(&mut self) -> u64 {
        let first = self.run(|cx| {
            let (trees, cache) = (&cx.store.trees, &mut cx.store.cache);
            let first = trees.freed.next(FIRST_FREED.as_bytes(), cache, cx.pins)?;
            Ok(first.map(|item| FreedKey::read_from_bytes(item.key).unwrap().commit.get()))
        });
        let commit = self.store.open_commit().map_or(0, |commit| commit.0);
        first.unwrap().map_or(0, |first| commit.saturating_sub(first))
    }
}

/// However a full volume is fragmented by files of a few blocks that come and go, what is kept back
/// is in one piece, or in few: runs of level 0 can be merged, and a mount gets space for its own.
#[test]
fn what_is_kept_back_of_a_full_volume_is_no_splinters() {
    let mut rig = Rig::new(5);
    let (client, mut seq) = rig.greet();
    let (mut files, mut number, mut transactions) = (Vec::<Lent>::new(), 0, 0);
    for round in 0..150 {
        // Files get all that there is.
        while let Some(lent) = rig.borrow(client, number + 1, [2000, 0]) {
            (number, transactions) = (number + 1, transactions + 1);
            seq = rig.record_transaction(client, transactions, seq, &lent, &[]);
            files.extend(lent);
        }
        if round == 149 {
            break;
        }
        // And lose a few blocks in the middle.
        let mut freed = Vec::new();
        while freed.len() < 100 {
            let at = rig.rng.below(files.len() as u64) as usize;
            let Lent { pool, start, count } = files.swap_remove(at);
            let len = count.min(1 + rig.rng.below(5) as u32);
            let skip = rig.rng.below(u64::from(count - len) + 1) as u32;
            let piece = |from, count| Lent { pool, start: start + u64::from(from), count };
            let rests = [piece(0, skip), piece(skip + len, count - skip - len)];
            files.extend(rests.into_iter().filter(|rest| rest.count > 0));
            freed.push(piece(skip, len));
        }
        transactions += 1;
        seq = rig.record_transaction(client, transactions, seq, &[], &freed);
        rig.enter_freed();
    }
    // All but what commits took meanwhile.
    let long: u64 = rig.free().iter().map(Extent::len).filter(|len| *len >= 64).sum();
    assert!(long + 2 * RESERVE_TARGET > data_floor(BLOCKS), "{long} of {}", data_floor(BLOCKS));
    // A mount gets what it needs for a run in one piece.
    let lent = rig.borrow(client, number + 1, [0, 64]).unwrap();
    assert!(matches!(lent[..], [Lent { pool: Pool::Runs, count: 64, .. }]), "{lent:?}");
    for _ in 0..12 {
        rig.record();
    }
    rig.settle();
    assert!(rig.store.trees.level_runs[0] < 4 && rig.read() == rig.model);
    assert!(rig.store.trees.free.free_blocks() + 200 > lend_floor(BLOCKS));
}

/// Several lists a commit, of extents that lie anywhere, are free a few commits later.
#[test]
fn freed_extents_are_entered_as_quickly_as_they_come() {
    let mut rig = Rig::new(6);
    let whole = rig.take(12_000).unwrap();
    let free = rig.store.trees.free.free_blocks();
    // Every other block, so that none joins with another before half of them are free.
    let mut singles: Vec<Extent> =
        (0..whole.len()).map(|at| Extent::new(whole.start().plus(at), 1)).collect();
    singles.sort_by_key(|extent| (extent.start().0 % 2, extent.start().0.wrapping_mul(0x9e3779b9)));
    let mut tidying = Tidying::NEW;
    let (mut left, mut oldest) = (&singles[..], 0);
    while !left.is_empty() {
        if !tidying.is_behind() {
            for _ in 0..6 {
                let (list, rest) = left.split_at(LIST_MAX.min(left.len()));
                let mut list = list.to_vec();
                list.sort_by_key(|extent| extent.start().0);
                rig.put_freed(&list);
                left = rest;
                if left.is_empty() {
                    break;
                }
            }
        }
        rig.tidy(&mut tidying);
        oldest = oldest.max(rig.age());
    }
    assert!(oldest <= COMMITS_MAX + 4, "{oldest}");
    let commits = (0..200).take_while(|_| rig.tidy(&mut tidying)).count();
    assert!(commits < 40, "{commits}");
    assert!(rig.store.trees.free.free_blocks() + 1500 > free + whole.len());
}

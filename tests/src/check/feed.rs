//! What readers of the feeds of changes are told, on any mount: what they have seen up to a number
//! that was stable is all there will ever be up to it.
//!
//! # Invariants
//!
//! * Pages in which nothing else than what a page promises is taken for granted: what stands in the
//!   part of a feed that was read first by anybody is held against every page of that part whose
//!   reading began later.
//! * Readers get on: once faults have stopped, what is stable grows at each of them.

use crate::check::Checker;
use crate::time::Time;
use crate::trace::HostId;
use crate::world::World;
use outrider_core::client::op::query::{Feed, Page, Position};
use outrider_core::format::Seq;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// Part of a feed, up to a position, and when its first reading had ended.
#[derive(Debug, Clone, Copy)]
struct Part {
    last: Position,
    read: Time,
}

/// A feed, as far as anybody has read it.
#[derive(Debug, Default)]
struct Known {
    /// In order, without gaps.
    parts: Vec<Part>,
    /// What stood in each when it was read first.
    entries: BTreeSet<Position>,
}

impl Known {
    /// Holds a page against what is known, and learns from it.
    fn compare(&mut self, first: Position, begun: Time, ended: Time, page: &Page<'_>) -> bool {
        let news = |at: &Position| {
            let part = self.parts.iter().find(|part| *at <= part.last);
            part.is_some_and(|part| part.read <= begun) && !self.entries.contains(at)
        };
        if page.entries().any(|at| news(&at)) {
            return false;
        }
        let next = self.parts.last().map_or(Some(Position::FIRST), |part| part.last.next());
        if next.is_some_and(|next| first <= next && next <= page.through) {
            self.entries.extend(page.entries().filter(|at| next.is_some_and(|next| next <= *at)));
            self.parts.push(Part { last: page.through, read: ended });
        }
        true
    }
}

/// What all readers know.
#[derive(Debug, Default)]
pub struct Log {
    feeds: BTreeMap<Feed, Known>,
    stable: BTreeMap<HostId, Seq>,
    pages: u64,
    entries: u64,
    wrong: Option<String>,
}

impl Log {
    /// A reader on this machine has asked for a page from this position on, and has got it.
    pub fn read(
        &mut self,
        host: HostId,
        (feed, first): (Feed, Position),
        (begun, ended): (Time, Time),
        page: &Page<'_>,
    ) {
        self.pages += 1;
        self.entries += page.entries().len() as u64;
        let places: Vec<Position> = page.entries().collect();
        let sorted = places.is_sorted_by(|a, b| a < b);
        let inside = page.entries().all(|at| first <= at && at <= page.through);
        if !sorted || !inside || page.through.seq > page.stable {
            self.demand(format!("a page of {feed:?} at {host} is no page: {page:?}"));
        }
        let known = self.feeds.entry(feed).or_default();
        if !known.compare(first, begun, ended, page) {
            let what = format!("a page of {feed:?} at {host} has what wasn't there: {page:?}");
            self.demand(what);
        }
        let stable = self.stable.entry(host).or_default();
        *stable = page.stable.max(*stable);
    }

    fn demand(&mut self, what: String) {
        self.wrong.get_or_insert(what);
    }
}

/// Looks at what readers know.
pub struct Feeds {
    log: Rc<RefCell<Log>>,
    /// What was stable at each reader when faults had stopped.
    calm: RefCell<Option<BTreeMap<HostId, Seq>>>,
}

impl Feeds {
    /// A checker of what these readers know.
    #[must_use]
    pub fn new(log: Rc<RefCell<Log>>) -> Feeds {
        Feeds { log, calm: RefCell::new(None) }
    }
}

impl Checker for Feeds {
    fn name(&self) -> &'static str {
        "feeds"
    }

    fn after_step(&mut self, _: &World, _: HostId) -> Result<(), String> {
        self.log.borrow().wrong.clone().map_or(Ok(()), Err)
    }

    fn unsettled(&self, _: &World) -> Option<String> {
        let log = self.log.borrow();
        let mut calm = self.calm.borrow_mut();
        let calm = calm.get_or_insert_with(|| log.stable.clone());
        let stands = log.stable.iter().find(|(host, stable)| calm.get(host) >= Some(stable));
        stands.map(|(host, stable)| format!("at {host} no number after {stable} becomes stable"))
    }

    fn work(&self) -> Vec<(&'static str, u64)> {
        let log = self.log.borrow();
        let most = log.stable.values().max().map_or(0, |stable| stable.0);
        vec![
            ("pages of feeds", log.pages),
            ("changes in them", log.entries),
            ("numbers that became stable", most),
        ]
    }
}

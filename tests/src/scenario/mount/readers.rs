//! Readers of the feeds of changes, one at each mount, each from the beginning, again and again.
//!
//! What this module deliberately doesn't know: what they may see. That is the checker's.

use crate::check::feed::Log;
use crate::model::User;
use crate::platform::{Call, Platform};
use crate::time::{MILLI, Time as Moment};
use crate::trace::HostId;
use crate::world::{Workload, World};
use outrider_core::client::mount::MountState;
use outrider_core::client::op::Op;
use outrider_core::client::op::query::{Feed, Page, Position, Query};
use outrider_core::format::item::Time;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

/// From the end of one page to the next. Each page brings a root, and so renews the lease: not
/// much more often than without readers.
const PAUSE: Duration = MILLI.saturating_mul(700);

/// A reader.
struct Reader {
    host: HostId,
    boots: u32,
    feed: Feed,
    /// Where its next page begins.
    first: Position,
    /// The page it has asked for, and when.
    call: Option<(u64, Moment)>,
    /// When it asks for the next.
    next: Moment,
}

/// All readers, and what else works.
pub struct Readers<W> {
    others: W,
    /// When the others are to work again.
    next: Option<Moment>,
    readers: Vec<Reader>,
    log: Rc<RefCell<Log>>,
}

impl<W: Workload> Readers<W> {
    /// A reader at each of these mounts, beside what others do.
    pub fn beside(others: W, mounts: &[HostId], log: Rc<RefCell<Log>>) -> Readers<W> {
        let reader = |host: &HostId| Reader {
            host: *host,
            boots: 0,
            feed: Feed::Meta,
            first: Position::FIRST,
            call: None,
            next: Moment(0),
        };
        let readers = mounts.iter().map(reader).collect();
        Readers { others, next: Some(Moment(0)), readers, log }
    }
}

impl Reader {
    fn drive(&mut self, world: &mut World, log: &RefCell<Log>) {
        let (host, now) = (self.host, world.now());
        if world.boots(host) != self.boots {
            (self.boots, self.first, self.call) = (world.boots(host), Position::FIRST, None);
        }
        if let Some((call, begun)) = self.call {
            let ended = world.with(host, |at: &mut Platform, _| at.take(call)).flatten();
            let Some(result) = ended else { return };
            (self.call, self.next) = (None, now.plus(PAUSE));
            // What fails is asked again.
            let Ok(done) = result else { return };
            let page = Page::parse(&done.data).expect("the mount has made it");
            log.borrow_mut().read(host, (self.feed, self.first), (begun, now), &page);
            match page.through.next().filter(|_| !page.end) {
                Some(next) => self.first = next,
                None => {
                    self.first = Position::FIRST;
                    self.feed = if self.feed == Feed::Meta { Feed::Data } else { Feed::Meta };
                }
            }
        }
        if now < self.next {
            return;
        }
        let state = world.guest::<Platform>(host).map(|at| at.mount.state());
        if !matches!(state, Some(MountState::Mounted | MountState::Suspended)) {
            return;
        }
        let query = Query::Walk { feed: self.feed, first: self.first, last: Position::LAST };
        let time = Time { sec: 1, nsec: 0 };
        let call = Call { user: User::ROOT, now: time, op: Op::Query(query), data: Vec::new() };
        let call = world.with(host, |at: &mut Platform, _| at.call(call));
        self.call = call.map(|call| (call, now));
    }
}

impl<W: Workload> Workload for Readers<W> {
    fn tick(&mut self, world: &mut World) -> Option<Duration> {
        let now = world.now();
        if self.next.is_some_and(|next| next <= now) {
            self.next = self.others.tick(world).map(|pause| now.plus(pause));
        }
        for reader in &mut self.readers {
            reader.drive(world, &self.log);
        }
        let next = self.next.map_or(PAUSE, |next| next.since(now));
        Some(next.min(PAUSE))
    }
}

//! The shared block device, with a volatile cache in front of a medium that may fail.
//!
//! ```text
//!          submit                land                     flush            power loss
//! host ------------> in flight --------> cache (versions) --------> medium <---------- cache
//!                        |                  |                                any version of each
//!                        `--- finish: the host hears of it                   block, or a mix
//! ```
//!
//! # Invariants
//!
//! * Every accepted request of a living host finishes exactly once, in any order.
//! * A write lands whole or, on its way, sector by sector; at any time until the node hears of it,
//!   and after a crash or pause of its node at any later time, or never.
//! * Every host sees the cache. A flush that succeeds makes durable at least the writes of its own
//!   host and life that had completed when it was submitted.
//! * A loss of power leaves of each block the durable version or one of the later ones, or, if
//!   torn, of each sector.
//! * A crash of a node loses nothing that has landed.
//!
//! What this module deliberately doesn't know: what a block holds, and whose memory it came from
//! (data is copied in at submission, and out at completion by the host).

use crate::crash::{Recording, Step};
use crate::faults::{Atlas, Fault};
use crate::image::Image;
use crate::rng::{Chance, Rng};
use crate::time::{Agenda, MICRO, MILLI, SECOND, Time};
use crate::trace::{Digest, HostId, Trace};
use outrider_hal::{Block, BlockNo, BlockResult, IoError};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

/// Bytes that a device writes whole.
pub const SECTOR_BYTES: usize = 512;

/// Versions of one block kept in the cache; older ones have reached the medium.
const VERSIONS_MAX: usize = 16;

/// Blocks whose changes are counted together.
const REGION_BLOCKS: u64 = 64;

/// The disk's name for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// What a request asks for.
#[derive(Debug, Clone)]
pub enum Command {
    /// Read a block.
    Read(BlockNo),
    /// Write a block.
    Write(BlockNo, Rc<Block>),
    /// Make completed writes durable.
    Flush,
}

/// A request that finished.
#[derive(Debug)]
pub struct Done {
    /// Whose it is.
    pub host: HostId,
    /// Which it is.
    pub id: RequestId,
    /// How it ended.
    pub result: BlockResult,
    /// What a read has read.
    pub data: Option<Rc<Block>>,
}

/// How much the device has done.
#[derive(Debug, Clone, Copy, Default)]
pub struct DiskWork {
    /// Blocks read.
    pub reads: u64,
    /// Blocks written.
    pub writes: u64,
    /// Flushes that succeeded.
    pub flushes: u64,
    /// Wake-ups with writes under way that have [landed](Disk::watch) after it.
    pub zombies: u64,
}

/// A life of a host: a node's restart begins a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Owner {
    host: HostId,
    life: u32,
}

#[derive(Debug)]
struct Flying {
    owner: Owner,
    command: Command,
    covers: Vec<RequestId>,
    landed: bool,
    orphan: bool,
    held: bool,
    /// Its host was fenced before it came: it never lands.
    is_void: bool,
    /// The wake-up that it is watched for.
    zombie: Option<u64>,
    turn: u32,
    /// How long the host waits to hear of it once it has landed.
    unheard: Duration,
    result: BlockResult,
    data: Option<Rc<Block>>,
}

#[derive(Debug)]
struct Version {
    write: RequestId,
    partial: bool,
    data: Rc<Block>,
}

#[derive(Debug)]
struct Completed {
    owner: Owner,
    blkno: u64,
}

#[derive(Debug)]
enum Due {
    LandPart { id: RequestId, turn: u32, sectors: u8 },
    Land { id: RequestId, turn: u32 },
    Finish { id: RequestId },
}

#[derive(Debug, Hash)]
enum Note {
    Read(RequestId, u64),
    Write(RequestId, u64, Digest),
    Flush(RequestId, usize),
    LandedPart(RequestId, u8),
    Landed(RequestId),
    LandedLate(RequestId),
    Finished(RequestId, bool, Option<Digest>),
    Misdirected(RequestId, u64),
    Rot(u64),
    BadBlock(u64),
    PathDead,
    FullUntil(Time),
    LostPower(usize),
    Fenced(usize),
}

/// The device.
pub struct Disk {
    rng: Rng,
    medium: Image,
    cache: BTreeMap<u64, Vec<Version>>,
    /// How often what a read would return has changed, in each region.
    changes: Vec<u64>,
    completed: BTreeMap<RequestId, Completed>,
    flying: BTreeMap<RequestId, Flying>,
    agenda: Agenda<Due>,
    lives: BTreeMap<HostId, u32>,
    /// When the last request of each host lands and finishes, for runs without reordering.
    last: BTreeMap<HostId, (Time, Time)>,
    bad: BTreeSet<u64>,
    dead_paths: BTreeSet<HostId>,
    /// Hosts that were fenced in their present life.
    fenced: BTreeSet<HostId>,
    full_until: Time,
    /// Wake-ups whose writes have landed.
    zombies: BTreeSet<u64>,
    queue_max: usize,
    requests_ever: u64,
    work: DiskWork,
    recording: Option<Recording>,
}

impl Disk {
    /// A device that holds `image`.
    #[must_use]
    pub fn new(root: &Rng, image: Image) -> Disk {
        let mut rng = root.fork("disk");
        let queue_max = rng.within(4..=64) as usize;
        let changes = vec![0; image.blocks().div_ceil(REGION_BLOCKS) as usize];
        Disk {
            rng,
            medium: image,
            cache: BTreeMap::new(),
            changes,
            completed: BTreeMap::new(),
            flying: BTreeMap::new(),
            agenda: Agenda::new(),
            lives: BTreeMap::new(),
            last: BTreeMap::new(),
            bad: BTreeSet::new(),
            dead_paths: BTreeSet::new(),
            fenced: BTreeSet::new(),
            full_until: Time(0),
            zombies: BTreeSet::new(),
            queue_max,
            requests_ever: 0,
            work: DiskWork::default(),
            recording: None,
        }
    }

    /// Size in blocks.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.medium.blocks()
    }

    /// How much has been done.
    #[must_use]
    pub fn work(&self) -> DiskWork {
        DiskWork { zombies: self.zombies.len() as u64, ..self.work }
    }

    /// What a read would return now if nothing went wrong.
    #[must_use]
    pub fn content(&self, blkno: BlockNo) -> &Rc<Block> {
        let cached = self.cache.get(&blkno.0).and_then(|versions| versions.last());
        cached.map_or_else(|| self.medium.block(blkno.0), |version| &version.data)
    }

    /// A number that grows when what a read of one of these blocks would return changes. Others may
    /// let it grow too.
    #[must_use]
    pub fn changes(&self, blocks: Range<u64>) -> u64 {
        let regions = blocks.start / REGION_BLOCKS..blocks.end.div_ceil(REGION_BLOCKS);
        self.changes[regions.start as usize..regions.end as usize].iter().sum()
    }

    fn note_change(&mut self, blkno: u64) {
        if let Some(changes) = self.changes.get_mut((blkno / REGION_BLOCKS) as usize) {
            *changes += 1;
        }
    }

    /// What is durable: what the device holds if it loses power now and every cached write with it.
    #[must_use]
    pub fn durable(&self) -> &Image {
        &self.medium
    }

    /// Everything a reader would see now, as an image.
    #[must_use]
    pub fn image(&self) -> Image {
        let mut image = self.medium.clone();
        for (blkno, versions) in &self.cache {
            if let Some(version) = versions.last() {
                image.write(*blkno, version.data.clone());
            }
        }
        image.settle();
        image
    }

    /// Records every write and flush from now on, and lets a flush cover what its host has written
    /// and nothing else.
    pub fn record(&mut self) {
        self.recording = Some(Recording::new(self.image()));
    }

    /// Marks the recording: from here on the caller relies on `label` being durable.
    pub fn mark(&mut self, label: u64) {
        if let Some(recording) = &mut self.recording {
            recording.mark(label);
        }
    }

    /// Ends the recording and hands it over.
    pub fn take_recording(&mut self) -> Option<Recording> {
        self.recording.take()
    }

    /// Whether a write of this host's node is in flight.
    #[must_use]
    pub fn is_writing(&self, host: HostId) -> bool {
        let owner = self.owner(host);
        self.flying.values().any(|flying| {
            let writes = matches!(flying.command, Command::Write(..)) && !flying.landed;
            writes && flying.owner == owner && !flying.orphan
        })
    }

    /// Every write that may still land, zombies' included: whose it is, and where it goes.
    pub fn writes(&self) -> impl Iterator<Item = (HostId, BlockNo)> + '_ {
        let may_land = |flying: &&Flying| !flying.landed && !flying.is_void;
        self.flying.values().filter(may_land).filter_map(|flying| match flying.command {
            Command::Write(blkno, _) => Some((flying.owner.host, blkno)),
            Command::Read(_) | Command::Flush => None,
        })
    }

    /// How many requests are in flight, zombies' included.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.flying.len()
    }

    /// Takes a request, or hands it back when the host's queue is full.
    pub fn submit(
        &mut self,
        now: Time,
        host: HostId,
        command: Command,
        atlas: &mut Atlas,
        trace: &mut Trace,
    ) -> Result<RequestId, Command> {
        let owner = self.owner(host);
        let queued = self.flying.values().filter(|f| f.owner == owner && !f.orphan).count();
        if queued >= self.queue_max || (queued > 0 && atlas.strike(Fault::DiskQueueFull)) {
            return Err(command);
        }
        let id = RequestId(self.requests_ever);
        self.requests_ever += 1;
        let covers = self.covers(owner, &command, atlas);
        self.note_submission(now, id, host, &command, covers.len(), trace);
        let (land, unheard) = self.landing_time(now, host, &command, atlas);
        if matches!(command, Command::Write(..)) && atlas.draw(Fault::DiskTornRead) {
            let early = Time(self.rng.within(now.0..=land.0));
            let sectors = self.some_sectors();
            self.agenda.push(early, Due::LandPart { id, turn: 0, sectors });
        }
        self.agenda.push(land, Due::Land { id, turn: 0 });
        let flying = Flying {
            owner,
            command,
            covers,
            landed: false,
            orphan: false,
            held: false,
            is_void: self.fenced.contains(&host),
            zombie: None,
            turn: 0,
            unheard,
            result: Ok(()),
            data: None,
        };
        self.flying.insert(id, flying);
        Ok(id)
    }

    /// When [`step`](Self::step) has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        self.agenda.next_at()
    }

    /// Does the next thing that is due. Returns the request that finished, if it was that.
    pub fn step(&mut self, now: Time, atlas: &mut Atlas, trace: &mut Trace) -> Option<Done> {
        match self.agenda.pop_due(now)? {
            Due::LandPart { id, turn, sectors } => {
                let lands = |f: &&Flying| f.turn == turn && !f.landed && !f.is_void;
                let flying = self.flying.get(&id).filter(lands)?;
                if let Command::Write(blkno, data) = &flying.command {
                    let (blkno, data) = (blkno.0, data.clone());
                    trace.note(now, Some(flying.owner.host), &Note::LandedPart(id, sectors));
                    self.store_part(id, blkno, &data, sectors);
                }
                None
            }
            Due::Land { id, turn } => {
                self.land(now, id, turn, atlas, trace);
                None
            }
            Due::Finish { id } => self.finish(now, id, atlas, trace),
        }
    }

    /// The host's node has crashed: its requests in flight are done now, later, but within
    /// `lifetime`, in part, or never. The next request of this host belongs to a new life, with a
    /// working path.
    pub fn crash(
        &mut self,
        now: Time,
        host: HostId,
        lifetime: Duration,
        atlas: &mut Atlas,
        trace: &mut Trace,
    ) {
        let owner = self.owner(host);
        let mine = self.flying.iter().filter(|(_, f)| f.owner == owner && !f.orphan);
        let mine: Vec<(RequestId, bool)> = mine.map(|(id, f)| (*id, f.landed)).collect();
        for (id, landed) in mine {
            let Some(flying) = self.flying.get_mut(&id) else { continue };
            let over = landed || flying.is_void;
            let (Command::Write(blkno, data), false) = (&flying.command, over) else {
                self.flying.remove(&id);
                continue;
            };
            flying.orphan = true;
            flying.turn += 1;
            let (turn, blkno, data) = (flying.turn, blkno.0, data.clone());
            if lifetime > MILLI && atlas.draw(Fault::DiskLateWrite) {
                let at = now.plus(self.rng.span(MILLI, lifetime));
                self.agenda.push(at, Due::Land { id, turn });
                continue;
            }
            if atlas.strike(Fault::DiskTorn) {
                let sectors = self.some_sectors();
                trace.note(now, Some(host), &Note::LandedPart(id, sectors));
                self.store_part(id, blkno, &data, sectors);
            } else if self.rng.chance(Chance::EVEN) {
                trace.note(now, Some(host), &Note::Landed(id));
                self.store(id, blkno, data, false);
            }
            self.flying.remove(&id);
        }
        *self.lives.entry(host).or_default() += 1;
        self.dead_paths.remove(&host);
        self.fenced.remove(&host);
    }

    /// The host's node stands still until then: some of its queue lands only afterwards.
    pub fn pause(&mut self, host: HostId, until: Time, atlas: &mut Atlas) {
        let owner = self.owner(host);
        for (id, flying) in &mut self.flying {
            if flying.owner == owner && !flying.orphan && !flying.landed {
                if !atlas.draw(Fault::DiskHeldWrite) {
                    continue;
                }
                flying.held = true;
                flying.turn += 1;
                let at = until.plus(self.rng.span(MICRO, 10 * SECOND));
                self.agenda.push(at, Due::Land { id: *id, turn: flying.turn });
            }
        }
    }

    /// The host's node goes on after a pause: whether what it has under way lands is counted for
    /// this wake-up.
    pub fn watch(&mut self, host: HostId, wakeup: u64) {
        let owner = self.owner(host);
        let flying = self.flying.values_mut();
        let mine = flying.filter(|f| f.owner == owner && !f.orphan && !f.landed);
        for flying in mine.filter(|f| matches!(f.command, Command::Write(..))) {
            flying.zombie = Some(wakeup);
        }
    }

    /// Nothing that the host has submitted lands any more, in former lives only, or in its present
    /// one too, in which every request fails from now on.
    pub fn fence(&mut self, now: Time, host: HostId, former: bool, trace: &mut Trace) {
        let under_way = |(_, f): &(&RequestId, &Flying)| {
            f.owner.host == host && !f.landed && (f.orphan || !former)
        };
        let ids: Vec<RequestId> = self.flying.iter().filter(under_way).map(|(id, _)| *id).collect();
        trace.note(now, Some(host), &Note::Fenced(ids.len()));
        if !former {
            self.fenced.insert(host);
            self.dead_paths.insert(host);
        }
        for id in ids {
            let Some(flying) = self.flying.get_mut(&id) else { continue };
            if flying.orphan {
                self.flying.remove(&id);
                continue;
            }
            flying.turn += 1;
            flying.landed = true;
            flying.result = Err(IoError::Device);
            self.agenda.push(now.plus(MILLI), Due::Finish { id });
        }
    }

    /// The device loses power. Whatever was in flight fails, every host that lives on finds its
    /// path dead, and of the cache only some survives.
    pub fn lose_power(
        &mut self,
        now: Time,
        hosts: &[HostId],
        atlas: &mut Atlas,
        trace: &mut Trace,
    ) {
        trace.note(now, None, &Note::LostPower(self.cache.len()));
        let ids: Vec<RequestId> = self.flying.keys().copied().collect();
        for id in ids {
            let Some(flying) = self.flying.get_mut(&id) else { continue };
            let under_way = match &flying.command {
                Command::Write(blkno, data) if !flying.landed && !flying.is_void => {
                    Some((blkno.0, data.clone()))
                }
                Command::Read(_) | Command::Write(..) | Command::Flush => None,
            };
            if flying.orphan {
                self.flying.remove(&id);
            } else {
                flying.turn += 1;
                flying.landed = true;
                flying.result = Err(IoError::Device);
                self.agenda.push(now.plus(MILLI), Due::Finish { id });
            }
            if let Some((blkno, data)) = under_way
                && self.rng.chance(Chance::EVEN)
            {
                self.store(id, blkno, data, false);
            }
        }
        for (blkno, versions) in std::mem::take(&mut self.cache) {
            self.survive(blkno, &versions, atlas);
        }
        self.completed.clear();
        self.dead_paths.extend(hosts);
    }

    /// From now on every request of the host fails, until its node is restarted.
    pub fn kill_path(&mut self, now: Time, host: HostId, trace: &mut Trace) {
        trace.note(now, Some(host), &Note::PathDead);
        self.dead_paths.insert(host);
    }

    /// Whether every request of the host fails.
    #[must_use]
    pub fn is_path_dead(&self, host: HostId) -> bool {
        self.dead_paths.contains(&host)
    }

    /// Writes fail until then.
    pub fn fill_up(&mut self, now: Time, until: Time, trace: &mut Trace) {
        trace.note(now, None, &Note::FullUntil(until));
        self.full_until = until;
    }

    /// Faults have stopped: there is room again, and what living hosts wait for lands soon. Late
    /// writes of former lives stay late, and what was damaged stays so until it is rewritten.
    pub fn calm(&mut self, now: Time) {
        self.last.clear();
        self.full_until = Time(0);
        let mut at = now;
        for (id, flying) in &mut self.flying {
            if !flying.orphan && !flying.landed {
                flying.turn += 1;
                at = at.plus(self.rng.span(MICRO, MILLI));
                self.agenda.push(at, Due::Land { id: *id, turn: flying.turn });
            }
        }
    }

    fn owner(&self, host: HostId) -> Owner {
        Owner { host, life: self.lives.get(&host).copied().unwrap_or_default() }
    }

    fn some_sectors(&mut self) -> u8 {
        self.rng.within(1..=254) as u8
    }

    /// The writes that a flush submitted now promises to make durable.
    fn covers(&self, owner: Owner, command: &Command, atlas: &mut Atlas) -> Vec<RequestId> {
        if !matches!(command, Command::Flush) {
            return Vec::new();
        }
        let drawn = atlas.draw(Fault::DiskNarrowFlush);
        // Who explores a recording wants to know what is promised, and no more.
        let narrow = drawn || self.recording.is_some();
        let covered = |done: &Completed| !narrow || done.owner == owner;
        let covers = self.completed.iter().filter(|(_, done)| covered(done));
        let covers: Vec<RequestId> = covers.map(|(id, _)| *id).collect();
        if drawn && covers.len() < self.completed.len() {
            atlas.happened(Fault::DiskNarrowFlush);
        }
        covers
    }

    fn note_submission(
        &mut self,
        now: Time,
        id: RequestId,
        host: HostId,
        command: &Command,
        covers: usize,
        trace: &mut Trace,
    ) {
        let note = match command {
            Command::Read(blkno) => Note::Read(id, blkno.0),
            Command::Write(blkno, data) => {
                if let Some(recording) = &mut self.recording {
                    let step = Step::Write { id, host, blkno: blkno.0, data: data.clone() };
                    recording.push(step);
                }
                Note::Write(id, blkno.0, Digest::of(&data.0))
            }
            Command::Flush => Note::Flush(id, covers),
        };
        trace.note(now, Some(host), &note);
    }

    fn landing_time(
        &mut self,
        now: Time,
        host: HostId,
        command: &Command,
        atlas: &mut Atlas,
    ) -> (Time, Duration) {
        let (min, max) = match command {
            Command::Read(_) => (50 * MICRO, 500 * MICRO),
            Command::Write(..) => (50 * MICRO, MILLI),
            Command::Flush => (200 * MICRO, 5 * MILLI),
        };
        let mut latency: Duration = self.rng.span(min, max);
        let mut unheard = self.rng.span(MICRO, 200 * MICRO);
        if atlas.strike(Fault::DiskSlow) {
            let slow = self.rng.span(100 * MILLI, 30 * SECOND);
            let late = if self.rng.chance(Chance::EVEN) { &mut latency } else { &mut unheard };
            *late += slow;
        }
        let mut land = now.plus(latency);
        let (last_land, _) = self.last.entry(host).or_default();
        if !atlas.is_on(Fault::DiskReorder) {
            land = land.max(*last_land);
        }
        *last_land = land.max(*last_land);
        (land, unheard)
    }

    fn land(&mut self, now: Time, id: RequestId, turn: u32, atlas: &mut Atlas, trace: &mut Trace) {
        let Some(flying) = self.flying.get(&id).filter(|f| f.turn == turn && !f.landed) else {
            return;
        };
        let (host, orphan, held) = (flying.owner.host, flying.orphan, flying.held);
        let (unheard, zombie) = (flying.unheard, flying.zombie);
        let command = flying.command.clone();
        let (result, data) = if !orphan && self.dead_paths.contains(&host) {
            (Err(IoError::Device), None)
        } else {
            self.perform(now, id, &command, atlas, trace)
        };
        if result.is_ok() {
            self.zombies.extend(zombie);
        }
        if (orphan || held) && matches!(command, Command::Write(..)) {
            let fault = if orphan { Fault::DiskLateWrite } else { Fault::DiskHeldWrite };
            atlas.happened(fault);
            trace.note(now, Some(host), &Note::LandedLate(id));
        } else {
            trace.note(now, Some(host), &Note::Landed(id));
        }
        if orphan {
            self.flying.remove(&id);
            return;
        }
        let mut finish = now.plus(unheard);
        let (_, last_finish) = self.last.entry(host).or_default();
        if !atlas.is_on(Fault::DiskReorder) {
            finish = finish.max(*last_finish);
        }
        *last_finish = finish.max(*last_finish);
        self.agenda.push(finish, Due::Finish { id });
        if let Some(flying) = self.flying.get_mut(&id) {
            flying.landed = true;
            flying.result = result;
            flying.data = data;
        }
    }

    fn perform(
        &mut self,
        now: Time,
        id: RequestId,
        command: &Command,
        atlas: &mut Atlas,
        trace: &mut Trace,
    ) -> (BlockResult, Option<Rc<Block>>) {
        match command {
            Command::Read(blkno) | Command::Write(blkno, _) if blkno.0 >= self.blocks() => {
                (Err(IoError::OutOfRange), None)
            }
            Command::Read(blkno) => self.read(now, id, blkno.0, atlas, trace),
            Command::Write(blkno, data) => (self.write(now, id, blkno.0, data, atlas, trace), None),
            Command::Flush if atlas.strike(Fault::DiskError) => (Err(IoError::Device), None),
            Command::Flush => {
                let covers = self.flying.get_mut(&id).map(|f| std::mem::take(&mut f.covers));
                let covers = covers.unwrap_or_default();
                for write in &covers {
                    self.make_durable(*write, atlas);
                }
                if let Some(flying) = self.flying.get_mut(&id) {
                    flying.covers = covers;
                }
                (Ok(()), None)
            }
        }
    }

    fn read(
        &mut self,
        now: Time,
        id: RequestId,
        blkno: u64,
        atlas: &mut Atlas,
        trace: &mut Trace,
    ) -> (BlockResult, Option<Rc<Block>>) {
        if atlas.may_damage(blkno) && !self.cache.contains_key(&blkno) {
            if atlas.strike(Fault::DiskRot) {
                trace.note(now, None, &Note::Rot(blkno));
                let rotten = self.flip_a_bit(self.medium.block(blkno).clone());
                self.medium.write(blkno, rotten);
                self.note_change(blkno);
                atlas.damage(blkno);
            } else if atlas.strike(Fault::DiskBadBlock) {
                trace.note(now, None, &Note::BadBlock(blkno));
                self.bad.insert(blkno);
                atlas.damage(blkno);
            }
        }
        if self.bad.contains(&blkno) || atlas.strike(Fault::DiskError) {
            return (Err(IoError::Device), None);
        }
        if self.cache.get(&blkno).and_then(|v| v.last()).is_some_and(|v| v.partial) {
            atlas.happened(Fault::DiskTornRead);
        }
        let mut data = self.content(BlockNo(blkno)).clone();
        if atlas.may_damage(blkno) {
            if atlas.strike(Fault::DiskRotOnce) {
                data = self.flip_a_bit(data);
            } else if atlas.draw(Fault::DiskMisdirectedRead) {
                let other = self.rng.below(self.blocks());
                if other != blkno {
                    atlas.happened(Fault::DiskMisdirectedRead);
                    trace.note(now, None, &Note::Misdirected(id, other));
                    data = self.content(BlockNo(other)).clone();
                }
            }
        }
        (Ok(()), Some(data))
    }

    fn write(
        &mut self,
        now: Time,
        id: RequestId,
        blkno: u64,
        data: &Rc<Block>,
        atlas: &mut Atlas,
        trace: &mut Trace,
    ) -> BlockResult {
        if now < self.full_until {
            return Err(IoError::Device);
        }
        if atlas.strike(Fault::DiskError) {
            if self.rng.chance(Chance::EVEN) {
                self.store(id, blkno, data.clone(), false);
            }
            return Err(IoError::Device);
        }
        if atlas.may_damage(blkno) && atlas.draw(Fault::DiskMisdirectedWrite) {
            let range = atlas.damageable();
            let other = self.rng.within(range.start..=range.end - 1);
            if self.misdirect(blkno, other, data, atlas) {
                trace.note(now, None, &Note::Misdirected(id, other));
                return Ok(());
            }
        }
        self.store(id, blkno, data.clone(), false);
        Ok(())
    }

    /// Writes `data` at `other` instead of `blkno`, if both may be damaged. Blocks with versions in
    /// the cache are left alone: it is the medium's head that goes astray.
    fn misdirect(&mut self, blkno: u64, other: u64, data: &Rc<Block>, atlas: &mut Atlas) -> bool {
        let cached = self.cache.contains_key(&blkno) || self.cache.contains_key(&other);
        if cached || other == blkno || other >= self.blocks() {
            return false;
        }
        let was_damaged = atlas.damaged().contains(&blkno);
        atlas.damage(blkno);
        if !atlas.may_damage(other) {
            if !was_damaged {
                atlas.heal(blkno);
            }
            return false;
        }
        atlas.damage(other);
        atlas.happened(Fault::DiskMisdirectedWrite);
        self.medium.write(other, data.clone());
        self.note_change(other);
        true
    }

    fn finish(
        &mut self,
        now: Time,
        id: RequestId,
        atlas: &mut Atlas,
        trace: &mut Trace,
    ) -> Option<Done> {
        let flying = self.flying.remove(&id)?;
        let host = flying.owner.host;
        let older = |(_, f): (&RequestId, &Flying)| f.owner == flying.owner && !f.orphan;
        if self.flying.range(..id).any(older) {
            atlas.happened(Fault::DiskReorder);
        }
        if flying.result.is_ok() {
            match &flying.command {
                Command::Read(_) => self.work.reads += 1,
                Command::Write(blkno, _) => {
                    self.work.writes += 1;
                    let completed = Completed { owner: flying.owner, blkno: blkno.0 };
                    self.completed.insert(id, completed);
                }
                Command::Flush => {
                    self.work.flushes += 1;
                    if let Some(recording) = &mut self.recording {
                        recording.push(Step::Flushed { covers: flying.covers });
                    }
                }
            }
        }
        let digest = flying.data.as_ref().map(|data| Digest::of(&data.0));
        trace.note(now, Some(host), &Note::Finished(id, flying.result.is_ok(), digest));
        Some(Done { host, id, result: flying.result, data: flying.data })
    }

    fn store(&mut self, write: RequestId, blkno: u64, data: Rc<Block>, partial: bool) {
        if blkno >= self.blocks() {
            return;
        }
        self.bad.remove(&blkno);
        self.note_change(blkno);
        let versions = self.cache.entry(blkno).or_default();
        versions.push(Version { write, partial, data });
        if versions.len() > VERSIONS_MAX {
            let oldest = versions.remove(0);
            self.medium.write(blkno, oldest.data);
        }
    }

    fn store_part(&mut self, write: RequestId, blkno: u64, data: &Block, sectors: u8) {
        let mut mixed = Block(self.content(BlockNo(blkno)).0);
        copy_sectors(&mut mixed, data, sectors);
        self.store(write, blkno, Rc::new(mixed), true);
    }

    /// Raises the floor of a block to this write: a power loss can't take it any more.
    fn make_durable(&mut self, write: RequestId, atlas: &mut Atlas) {
        let Some(Completed { blkno, .. }) = self.completed.remove(&write) else { return };
        let Some(versions) = self.cache.get_mut(&blkno) else { return };
        let Some(index) = versions.iter().rposition(|version| version.write == write) else {
            return;
        };
        for version in versions.drain(..=index) {
            self.medium.write(blkno, version.data);
        }
        if versions.is_empty() {
            self.cache.remove(&blkno);
        }
        atlas.heal(blkno);
    }

    /// Decides what a power loss leaves of a block.
    fn survive(&mut self, blkno: u64, versions: &[Version], atlas: &mut Atlas) {
        let mut candidates = vec![self.medium.block(blkno).clone()];
        candidates.extend(versions.iter().map(|version| version.data.clone()));
        let last = candidates.len() - 1;
        let lossy = atlas.draw(Fault::DiskLost);
        let chosen = if lossy { self.rng.below(candidates.len() as u64) as usize } else { last };
        let mut data = candidates[chosen].clone();
        if lossy && atlas.draw(Fault::DiskTorn) {
            let other = self.rng.below(candidates.len() as u64) as usize;
            let sectors = self.some_sectors();
            let mut mixed = Block(data.0);
            copy_sectors(&mut mixed, &candidates[other], sectors);
            if candidates.iter().all(|candidate| candidate.0 != mixed.0) {
                atlas.happened(Fault::DiskTorn);
            }
            data = Rc::new(mixed);
        }
        if data.0 != candidates[last].0 {
            atlas.happened(Fault::DiskLost);
        }
        if chosen > 0 {
            atlas.heal(blkno);
        }
        self.medium.write(blkno, data);
        self.note_change(blkno);
    }

    fn flip_a_bit(&mut self, block: Rc<Block>) -> Rc<Block> {
        let bit = self.rng.below(8 * block.0.len() as u64);
        let mut block = Rc::unwrap_or_clone(block);
        block.0[(bit / 8) as usize] ^= 1 << (bit % 8);
        Rc::new(block)
    }
}

/// Copies the sectors whose bits are set.
pub fn copy_sectors(to: &mut Block, from: &Block, sectors: u8) {
    let pairs = to.0.chunks_mut(SECTOR_BYTES).zip(from.0.chunks(SECTOR_BYTES));
    for (index, (to, from)) in pairs.enumerate() {
        if sectors & 1 << index != 0 {
            to.copy_from_slice(from);
        }
    }
}

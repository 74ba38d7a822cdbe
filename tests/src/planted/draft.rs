//! A volume as it is meant: its items, its clients and what they are lent.
//!
//! What this module deliberately doesn't know: in which blocks anything stands.

use super::layout::Layout;
use outrider_core::format::item::{
    Dirent, FileExtent, FileKind, Inode, Mapping, Name, Time, VALUE_BYTES_MAX, Xattr, XattrName,
    symlink_part, symlink_parts,
};
use outrider_core::format::key::{FIRST_POS, FileBlock, Key, NameSecret, name_hash};
use outrider_core::format::records::{ClientRecord, ClientState, Pool};
use outrider_core::format::root::Extent;
use outrider_core::format::super_block::{Identity, Super};
use outrider_core::format::{BlockNo, Ino, Seq};
use outrider_hal::Endpoint;
use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use zerocopy::{FromZeros, IntoBytes};

/// Size of the volumes: the least there is.
pub const VOLUME_BLOCKS: u64 = 1 << 14;

/// What the volumes are called.
pub const IDENTITY: Identity = Identity {
    fsid: 77,
    uuid: [7; 16],
    label: [0; 64],
    blocks: VOLUME_BLOCKS,
    crc_seed: 0x0bad_cafe,
    name_key: [3; 16],
    cluster_key: [4; 32],
    voters: [
        Some(Endpoint { addr: Ipv6Addr::LOCALHOST, port: 7 }),
        None,
        None,
        None,
        None,
        None,
        None,
    ],
};

/// Where data of files, and what is lent, stands.
pub(super) const DATA: u64 = 4096;
/// The sequence numbers of the inodes' last changes begin here.
const SEQS: u64 = 50;

/// A client.
#[derive(Debug, Clone)]
pub struct Client {
    /// Its number.
    pub number: u64,
    /// Its record.
    pub record: ClientRecord,
    /// Whether an answer is kept, to a transaction and to a loan request.
    pub answers: [bool; 2],
    /// Its open transactions.
    pub open_seqs: Vec<u64>,
    /// What it is lent.
    pub loans: Vec<(Pool, Extent)>,
}

/// See the module.
#[derive(Clone)]
pub struct Draft {
    /// The volume.
    pub volume: Super,
    /// All items, in their newest version.
    pub items: BTreeMap<Key, Vec<u8>>,
    /// The clients.
    pub clients: Vec<Client>,
    /// Space that was freed.
    pub freed: Vec<Extent>,
    /// Space that client 2, who was evicted, may still write.
    pub quarantine: Vec<Extent>,
    /// Blocks for data that were given out.
    next_data: u64,
}

fn extent(start: u64, blocks: u64) -> Extent {
    Extent::new(BlockNo(start), blocks)
}

fn client(number: u64, state: ClientState, answers: [bool; 2]) -> Client {
    let mut record = ClientRecord::new_zeroed();
    record.state = state as u8;
    record.transaction = u64::from(answers[0]).into();
    record.loan = u64::from(answers[1]).into();
    Client { number, record, answers, open_seqs: Vec::new(), loans: Vec::new() }
}

impl Draft {
    /// A volume with something of everything in it.
    ///
    /// | inode | is |
    /// |---|---|
    /// | 1 | the root directory: `a`, `file`, `other`, `link`, `pipe` |
    /// | 2 | directory `a`: `deep`, `attributes`, `below` |
    /// | 3 | `file` and `other`: data, a hole, reserved blocks |
    /// | 4 | symlink `link` of three parts |
    /// | 5 | named pipe `pipe` |
    /// | 6 | directory `a/deep`: `shrinking` |
    /// | 7 | `a/attributes`, with extended attributes |
    /// | 8 | `a/deep/shrinking`, that is being truncated |
    /// | 9 | a file without a name |
    /// | 10 | a directory without a name |
    /// | 11 | directory `a/below`, whose number is less than none above it |
    ///
    /// # Panics
    ///
    /// Never: the identity is a volume's.
    #[must_use]
    pub fn whole() -> Draft {
        let mut draft = Draft {
            volume: Super::new(&IDENTITY).expect("a volume"),
            items: BTreeMap::new(),
            clients: Vec::new(),
            freed: vec![extent(DATA + 3000, 7), extent(DATA + 3100, 1)],
            quarantine: vec![extent(DATA + 3200, 40)],
            next_data: DATA,
        };
        let kinds = [
            FileKind::Directory,
            FileKind::Directory,
            FileKind::Regular,
            FileKind::Symlink,
            FileKind::Fifo,
            FileKind::Directory,
            FileKind::Regular,
            FileKind::Regular,
            FileKind::Regular,
            FileKind::Directory,
            FileKind::Directory,
        ];
        for (ino, kind) in (1..).zip(kinds) {
            draft.inode(ino, kind);
        }
        for (dir, name, ino) in [
            (1, "a", 2),
            (1, "file", 3),
            (1, "other", 3),
            (1, "link", 4),
            (1, "pipe", 5),
            (2, "deep", 6),
            (2, "attributes", 7),
            (2, "below", 11),
            (6, "shrinking", 8),
        ] {
            draft.name(dir, name, ino);
        }
        draft.unname(9);
        draft.unname(10);
        draft.target(4, &[b't'; 1200]);
        draft.attribute(7, "user.short", b"value");
        draft.attribute(7, "user.long", &[9; 1200]);
        for (ino, first, blocks, is_data) in
            [(3, 0, 5, true), (3, 20, 3, true), (3, 23, 8, false), (8, 0, 9, true), (9, 2, 2, true)]
        {
            draft.data(ino, first, blocks, is_data);
        }
        draft.change(3, |inode| inode.size = 23 * 4096 - 5);
        draft.change(8, |inode| (inode.size, inode.truncating) = (4096, true));
        draft.change(9, |inode| inode.size = 4 * 4096);
        draft.whole_clients();
        draft
    }

    fn whole_clients(&mut self) {
        let mut one = client(1, ClientState::Mounted, [true, true]);
        one.open_seqs.push(200);
        one.loans = vec![
            (Pool::Data, extent(DATA + 2000, 100)),
            (Pool::Data, extent(DATA + 2200, 10)),
            (Pool::Runs, extent(DATA + 2300, 30)),
            (Pool::Inodes, extent(1024, 100)),
            (Pool::RunIds, extent(40, 10)),
        ];
        let two = client(2, ClientState::Evicted, [true, false]);
        let mut three = client(3, ClientState::Mounted, [false, true]);
        three.open_seqs.push(201);
        three.loans = vec![(Pool::Inodes, extent(2048, 50))];
        self.clients = vec![one, two, three];
    }

    /// Adds an inode with nothing in it.
    pub fn inode(&mut self, ino: u64, kind: FileKind) {
        let is_directory = kind == FileKind::Directory;
        let (meta_seq, data_seq) = (Seq(SEQS + ino), Seq(SEQS + ino + 30));
        let inode = Inode {
            kind,
            permissions: 0o644,
            truncating: false,
            size: u64::from(kind == FileKind::Symlink),
            meta_seq,
            data_seq,
            data_version: 0,
            online_blocks: 0,
            offline_blocks: 0,
            next_readdir_pos: if is_directory { FIRST_POS } else { 0 },
            next_xattr_id: 0,
            nlink: if is_directory { 2 } else { 0 },
            uid: 0,
            gid: 0,
            rdev: 0,
            atime: Time::default(),
            ctime: Time::default(),
            mtime: Time::default(),
            crtime: Time::default(),
        };
        self.items.insert(Key::inode(Ino(ino)), inode.emit().as_bytes().to_vec());
        self.items.insert(Key::meta_seq(meta_seq, Ino(ino)), Vec::new());
        if kind == FileKind::Regular {
            self.items.insert(Key::data_seq(data_seq, Ino(ino)), Vec::new());
        }
    }

    /// The inode.
    ///
    /// # Panics
    ///
    /// When there is none, or it is no inode.
    #[must_use]
    pub fn get(&self, ino: u64) -> Inode {
        Inode::parse(&self.items[&Key::inode(Ino(ino))]).expect("an inode")
    }

    /// Changes the inode.
    pub fn change(&mut self, ino: u64, change: impl FnOnce(&mut Inode)) {
        let mut inode = self.get(ino);
        change(&mut inode);
        self.items.insert(Key::inode(Ino(ino)), inode.emit().as_bytes().to_vec());
    }

    /// The hash of a name.
    #[must_use]
    pub fn hash(&self, name: &str) -> u64 {
        name_hash(&NameSecret(self.volume.fields().name_key), name.as_bytes())
    }

    /// Gives an inode a name: the next entry of the directory.
    pub fn name(&mut self, dir: u64, name: &str, ino: u64) {
        let (pos, kind) = (self.get(dir).next_readdir_pos, self.get(ino).kind);
        self.entry(dir, pos, name, self.hash(name), ino, kind);
        self.change(dir, |dir| {
            dir.next_readdir_pos += 1;
            dir.size += name.len() as u64;
            dir.nlink += u32::from(kind == FileKind::Directory);
        });
        self.change(ino, |inode| inode.nlink += u32::from(kind != FileKind::Directory));
    }

    /// Puts in the three items of an entry.
    ///
    /// # Panics
    ///
    /// When the name can't be one.
    pub fn entry(&mut self, dir: u64, pos: u64, name: &str, hash: u64, ino: u64, kind: FileKind) {
        let (dir, ino) = (Ino(dir), Ino(ino));
        let name = Name::parse(name.as_bytes()).expect("a name");
        let mut buf = [0; VALUE_BYTES_MAX];
        let value = Dirent { ino, hash, pos, kind, name }.emit(&mut buf).to_vec();
        self.items.insert(Key::dirent(dir, hash, pos), value.clone());
        self.items.insert(Key::readdir(dir, pos), value.clone());
        self.items.insert(Key::backref(ino, dir, pos), value);
    }

    /// The inode has no names, and waits for its deletion.
    pub fn unname(&mut self, ino: u64) {
        self.change(ino, |inode| inode.nlink = 0);
        self.items.insert(Key::orphan(Ino(ino)), Vec::new());
    }

    /// Gives a symlink its target.
    pub fn target(&mut self, ino: u64, target: &[u8]) {
        self.change(ino, |inode| inode.size = target.len() as u64);
        for part in 0..symlink_parts(target.len() as u64) {
            let value = symlink_part(target, part).to_vec();
            self.items.insert(Key::symlink(Ino(ino), part), value);
        }
    }

    /// Gives an inode an extended attribute.
    ///
    /// # Panics
    ///
    /// When it can't be one.
    pub fn attribute(&mut self, ino: u64, name: &str, value: &[u8]) {
        let (number, hash) = (self.get(ino).next_xattr_id, self.hash(name));
        self.change(ino, |inode| inode.next_xattr_id += 1);
        let name = XattrName::parse(name.as_bytes()).expect("a name");
        let xattr = Xattr::new(name, value).expect("a value");
        for part in 0..xattr.parts() {
            let mut buf = [0; VALUE_BYTES_MAX];
            let value = xattr.emit(part, &mut buf).to_vec();
            self.items.insert(Key::xattr(Ino(ino), hash, number, part), value);
        }
    }

    /// Gives a file blocks of its own.
    pub fn data(&mut self, ino: u64, first: u64, blocks: u64, is_data: bool) {
        let at = BlockNo(self.next_data);
        self.next_data += blocks;
        let mapping = if is_data { Mapping::Data(at) } else { Mapping::Reserved(at) };
        self.extent(ino, first, blocks, mapping);
        self.change(ino, |inode| inode.online_blocks += if is_data { blocks } else { 0 });
    }

    /// Puts in a file's extent.
    pub fn extent(&mut self, ino: u64, first: u64, len: u64, mapping: Mapping) {
        let last = FileBlock(first + len - 1);
        let value = FileExtent { last, len, mapping }.emit().as_bytes().to_vec();
        self.items.insert(Key::extent(Ino(ino), last), value);
    }

    /// Lays the volume out in blocks.
    #[must_use]
    pub fn lay_out(&self) -> Layout {
        Layout::of(self)
    }
}

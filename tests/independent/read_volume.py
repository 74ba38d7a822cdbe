#!/usr/bin/env python3
"""Reads an Outrider volume and says what is in it, as JSON.

Written from core/FORMAT.md alone, with nothing but Python's standard library: a second opinion on
what the bytes mean. Every checksum and structure that can be reached from the newest root is
verified; the first thing that is wrong ends it, with one line on stderr and status 1.

    read_volume.py [--tree] IMAGE

With --tree every path is told, with what is there.
"""

import json
import struct
import sys

BLOCK = 4096
FIRST = 256


class Wrong(Exception):
    pass


def demand(condition, what):
    if not condition:
        raise Wrong(what)


# Checksums.

def crc_table():
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table


TABLE = crc_table()


def crc32c(data, seed):
    register = ~seed & 0xFFFFFFFF
    for byte in data:
        register = TABLE[(register ^ byte) & 0xFF] ^ register >> 8
    return ~register & 0xFFFFFFFF


# SipHash (Aumasson and Bernstein), with c rounds for each word and d at the end.

MASK = (1 << 64) - 1


def siphash(c, d, key, data):
    k0, k1 = struct.unpack("<QQ", key)
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D,
         k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]

    def rotate(x, bits):
        return (x << bits | x >> 64 - bits) & MASK

    def rounds(count):
        for _ in range(count):
            v[0] = v[0] + v[1] & MASK
            v[1] = rotate(v[1], 13) ^ v[0]
            v[0] = rotate(v[0], 32)
            v[2] = v[2] + v[3] & MASK
            v[3] = rotate(v[3], 16) ^ v[2]
            v[0] = v[0] + v[3] & MASK
            v[3] = rotate(v[3], 21) ^ v[0]
            v[2] = v[2] + v[1] & MASK
            v[1] = rotate(v[1], 17) ^ v[2]
            v[2] = rotate(v[2], 32)

    tail = bytes(data) + bytes(7 - len(data) % 8) + bytes([len(data) & 0xFF])
    for (word,) in struct.iter_unpack("<Q", tail):
        v[3] ^= word
        rounds(c)
        v[0] ^= word
    v[2] ^= 0xFF
    rounds(d)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


class Volume:
    def __init__(self, path):
        self.file = open(path, "rb")
        self.file.seek(0, 2)
        self.device_blocks = self.file.tell() // BLOCK
        self.seed = 0
        self.fsid = None
        self.owners = {}

    def read(self, blkno):
        demand(blkno < self.device_blocks, f"block {blkno} lies behind the device's end")
        self.file.seek(blkno * BLOCK)
        return self.file.read(BLOCK)

    def open(self, blkno, magic, seq=None, seed=None):
        """A metadata block, checked as far as its header goes; its seq and its bytes."""
        data = self.read(blkno)
        crc, kind, fsid, at, found = struct.unpack_from("<I4sQQQ", data)
        seed = self.seed if seed is None else seed
        demand(crc == crc32c(data[4:], seed), f"block {blkno}: checksum")
        demand(kind == magic, f"block {blkno}: {kind} is not {magic}")
        demand(self.fsid in (None, fsid), f"block {blkno}: another volume's")
        demand(at == blkno, f"block {blkno}: written for {at}")
        demand(seq in (None, found), f"block {blkno}: version {found}, not {seq}")
        return found, data

    def claim(self, start, blocks, owner):
        demand(blocks > 0 and FIRST <= start and start + blocks <= self.blocks - 1,
               f"{owner}: {start}+{blocks} lies outside")
        for blkno in range(start, start + blocks):
            demand(blkno not in self.owners,
                   f"block {blkno} belongs to {self.owners.get(blkno)} and to {owner}")
            self.owners[blkno] = owner

    # The super block.

    def read_super(self, blkno):
        generation, data = self.open(blkno, b"ORsb", seed=0)
        demand(data[32:48] == b"Outrider volume\n", "no signature")
        compat, ro_compat, incompat, blocks = struct.unpack_from("<QQQQ", data, 128)
        demand(incompat == 0, f"unknown features {incompat:#x}")
        crc_seed, reserved = struct.unpack_from("<II", data, 160)
        demand(reserved == 0 and not any(data[416:]), "super: reserved bytes")
        demand(16384 <= blocks <= 1 << 52 and blocks <= self.device_blocks, "super: blocks")
        demand(crc_seed != 0, "super: crc_seed")
        label, _, rest = data[64:128].partition(b"\0")
        demand(not any(rest), "super: label")
        limits = struct.unpack_from("<IIIIII", data, 216)
        clients, per_client, locks, lease, recovery, _ = limits
        demand(all(limits) and clients <= 4096 and locks >= per_client, "super: limits")
        demand(100 <= lease <= 60000 and recovery >= 9000 + 2 * lease, "super: times")
        demand(not any(data[240:248]), "super: limits' reserved bytes")
        voters = {}
        for slot in range(7):
            addr, port, zero = struct.unpack_from("<16sH6s", data, 248 + 24 * slot)
            demand(not any(zero), "super: a voter's reserved bytes")
            if port:
                voters[slot] = (addr.hex(), port)
            else:
                demand(not any(addr), "super: an address without a port")
        demand(voters, "super: no voter")
        return {
            "fsid": struct.unpack_from("<Q", data, 8)[0], "generation": generation,
            "uuid": data[48:64].hex(), "label": label.decode("utf-8"), "blocks": blocks,
            "crc_seed": crc_seed, "name_key": data[168:184], "voters": voters,
            "rest": data[32:],
        }

    def begin(self):
        found = self.read_super(16)
        self.fsid, self.blocks = found["fsid"], found["blocks"]
        spare = self.read_super(self.blocks - 1)
        demand(spare["rest"] == found["rest"], "the spare super block differs")
        self.seed, self.name_key = found["crc_seed"], found["name_key"]
        return found

    # Quorum blocks.

    def read_quorum(self, slot):
        """The state of a voter's block; None when it is blank."""
        seq, data = self.open(32 + slot, b"ORqu")
        demand(data[148] <= 3, f"slot {slot}: flags")
        demand(not any(data[149:152]) and not any(data[160:]), f"slot {slot}: reserved bytes")
        confirmed_term, = struct.unpack_from("<Q", data, 152)
        term, held, highest, _, _, lease, _ = struct.unpack_from("<QQQQQII", data, 32)
        port, state, number = struct.unpack_from("<HBB", data, 144)
        demand(number == slot, f"slot {slot}: says {number}")
        if seq == 0:
            demand(not any(data[32:147]) and not any(data[148:160]), f"slot {slot}: not blank")
            return None
        demand(seq <= 1 << 48, f"slot {slot}: number of the write")
        demand(state <= 5, f"slot {slot}: state {state}")
        for each in (term, held):
            demand(each == 0 or each & 0xFF == slot, f"slot {slot}: another slot's term")
        demand(term >> 8 <= highest <= 1 << 48, f"slot {slot}: round")
        demand(confirmed_term & 0xFF < 7, f"slot {slot}: slot of the confirmed term")
        demand(confirmed_term >> 8 <= highest, f"slot {slot}: round of the confirmed term")
        demand(1 <= lease <= 60000, f"slot {slot}: lease")
        fits = [term == held == 0, term > held, term == held != 0, term == held != 0,
                term == held != 0, term == held][state]
        demand(fits, f"slot {slot}: terms don't fit state {state}")
        demand(data[148] < 2 or state == 5 and held, f"slot {slot}: vacant in state {state}")
        demand((state == 3) == (port != 0 and any(data[128:144])), f"slot {slot}: endpoint")
        return state

    # Roots.

    def tree(self, data, offset):
        blkno, seq, height, zero = struct.unpack_from("<QQB7s", data, offset)
        demand(not any(zero) and height <= 6, "root: a tree's reference")
        if height == 0:
            demand(blkno == seq == 0, "root: an empty tree with a node")
        else:
            demand(FIRST <= blkno < self.blocks - 1, "root: a tree outside")
        return blkno, seq, height

    def read_root(self, at):
        """A valid root, or None."""
        try:
            commit, data = self.open(64 + at, b"ORrt")
            term, _, _, _, _, _, free_blocks, cursor = struct.unpack_from("<8Q", data, 32)
            demand(at == 2 * ((term >> 8) % 32) + commit % 2, "root: in another's place")
            demand(not any(data[1640:]), "root: reserved bytes")
            demand(free_blocks <= self.blocks and cursor <= self.blocks, "root: a count")
            names = ["free_by_block", "free_by_length", "manifest", "clients", "loans",
                     "open_seqs", "freed", "quarantine"]
            trees = {name: self.tree(data, 96 + 24 * i) for i, name in enumerate(names)}
            levels = list(struct.unpack_from("<10Q", data, 288))
            takeover = [start for start in struct.unpack_from("<31Q", data, 368) if start]
            takeover = [(start, 48) for start in takeover]
            reserve = list(struct.iter_unpack("<QQ", data[616:1640]))
            while reserve and reserve[-1] == (0, 0):
                reserve.pop()
            for start, blocks in takeover + reserve:
                demand(blocks and FIRST <= start and start + blocks <= self.blocks - 1,
                       "root: a reserve outside")
            for one, other in zip(reserve, reserve[1:]):
                demand(sum(one) <= other[0], "root: reserves overlap")
        except Wrong:
            return None
        return {"term": term, "commit": commit, "free_blocks": free_blocks, "trees": trees,
                "levels": levels, "takeover": takeover, "reserve": reserve}

    # Btrees.

    def items(self, ref, kind, low=b"", high=None):
        """All items of a tree, in order."""
        blkno, seq, height = ref
        if height == 0:
            return
        self.claim(blkno, 1, "a node")
        _, data = self.open(blkno, b"ORbt", seq)
        found, level, count, heap, holes = struct.unpack_from("<BBHHH", data, 32)
        demand(found == kind and level == height - 1, f"node {blkno}: kind or level")
        demand(not any(data[40:48]), f"node {blkno}: reserved bytes")
        demand(48 + 2 * count <= heap <= BLOCK, f"node {blkno}: bounds")
        entries, covered = [], 0
        for slot in range(count):
            (offset,) = struct.unpack_from("<H", data, 48 + 2 * slot)
            demand(heap <= offset <= BLOCK - 4, f"node {blkno}: offset")
            key_bytes, zero, value_bytes = struct.unpack_from("<BBH", data, offset)
            end = offset + 4 + key_bytes + value_bytes
            demand(zero == 0 and end <= BLOCK, f"node {blkno}: item {slot}")
            demand(key_bytes <= 48 and value_bytes <= 896, f"node {blkno}: item {slot}'s sizes")
            covered += end - offset
            key = data[offset + 4:offset + 4 + key_bytes]
            entries.append((key, data[offset + 4 + key_bytes:end]))
        demand(covered + holes == BLOCK - heap, f"node {blkno}: holes")
        keys = [key for key, _ in entries]
        demand(all(a < b for a, b in zip(keys, keys[1:])), f"node {blkno}: order")
        if level == 0:
            demand(all(keys), f"node {blkno}: an empty key")
            demand(all(low <= key and (high is None or key < high) for key in keys),
                   f"node {blkno}: keys outside its range")
            yield from entries
            return
        demand(count > 0 and keys[0] == b"", f"node {blkno}: the first key of an inner node")
        keys[0] = low
        for slot, (_, value) in enumerate(entries):
            demand(len(value) == 16, f"node {blkno}: no reference")
            child = struct.unpack("<QQ", value) + (height - 1,)
            upper = keys[slot + 1] if slot + 1 < count else high
            yield from self.items(child, kind, keys[slot], upper)

    def extents(self, value):
        """The extents of a list."""
        demand(value and len(value) % 16 == 0 and len(value) <= 896, "a list's size")
        extents = list(struct.iter_unpack("<QQ", value))
        demand(all(blocks for _, blocks in extents), "a list with an empty extent")
        demand(all(sum(a) <= b[0] for a, b in zip(extents, extents[1:])), "a list's order")
        return extents

    def read_trees(self, root):
        """Walks all trees but the manifest; how many items each has."""
        counts, trees = {}, root["trees"]
        free = []
        for key, value in self.items(trees["free_by_block"], 1):
            (last,), (blocks,) = struct.unpack(">Q", key), struct.unpack("<Q", value)
            self.claim(last - blocks + 1, blocks, "free space")
            free.append((blocks, last))
        counts["free_by_block"] = len(free)
        by_length = []
        for key, value in self.items(trees["free_by_length"], 2):
            demand(not value, "free by length: a value")
            by_length.append(struct.unpack(">QQ", key))
        counts["free_by_length"] = len(by_length)
        demand(sorted(free) == by_length, "the free trees differ")
        demand(sum(blocks for blocks, _ in free) == root["free_blocks"], "free_blocks")
        for kind, name in ((4, "clients"), (6, "open_seqs")):
            counts[name] = sum(1 for _ in self.items(trees[name], kind))
        for kind, name in ((5, "loans"), (7, "freed"), (8, "quarantine")):
            counts[name] = 0
            for key, value in self.items(trees[name], kind):
                counts[name] += 1
                extents = self.extents(value)
                if name == "loans" and key[8] in (3, 4):
                    continue
                for start, blocks in extents:
                    self.claim(start, blocks, name)
        return counts

    # Runs.

    def read_manifest(self, root):
        runs, levels = [], [0] * 10
        for key, value in self.items(root["trees"]["manifest"], 3):
            demand(len(key) == 36 and len(value) == 248, "manifest: sizes")
            level, (order,) = key[0], struct.unpack(">Q", key[28:])
            run, blkno, items, tombstones, item_blocks, index_blocks, filter_blocks, zero = \
                struct.unpack_from("<QQIIHHHH", value)
            zones = [(value[32 + 54 * i:59 + 54 * i], value[59 + 54 * i:86 + 54 * i])
                     for i in range(4)]
            used = [zone for zone in zones if any(zone[0]) or any(zone[1])]
            demand(level < 10 and zero == 0 and run and item_blocks and used, "manifest: a run")
            demand(index_blocks == -(-item_blocks // 150), "manifest: index blocks")
            demand(used[0][0] == key[1:28], "manifest: a run's least key")
            levels[level] += 1
            if level and runs and runs[-1]["level"] == level:
                demand(runs[-1]["last"] < used[0][0], "manifest: runs overlap")
            self.claim(blkno, item_blocks + index_blocks + filter_blocks, f"run {run}")
            runs.append({
                "level": level, "order": order, "run": run, "blkno": blkno, "items": items,
                "tombstones": tombstones, "blocks": (item_blocks, index_blocks, filter_blocks),
                "zones": zones, "last": used[-1][1],
            })
        demand(levels == root["levels"], "the root's runs in each level")
        return runs

    def run_block(self, run, index, magic):
        blkno = run["blkno"] + index
        _, data = self.open(blkno, magic, run["run"])
        number, count, zero = struct.unpack_from("<IHH", data, 32)
        demand(number == index and zero == 0, f"block {blkno}: of another place in the run")
        return count, data

    def is_filtered(self, filters, key):
        zone, first, kind, second = struct.unpack_from(">BQBQ", key)
        if zone != 3 or kind not in (2, 3):
            kind = second = 0
        data = struct.pack("<BBQQ", zone, kind, first, second)
        h = siphash(1, 3, self.name_key, data)
        bits = filters[h * len(filters) >> 64]
        f, s = h & 0xFFFFFFFF, h >> 24 & 0xFFFFFFFF | 1
        for i in range(6):
            bit = (f + i * s & 0xFFFFFFFF) * 32448 >> 32
            if not bits[40 + bit // 8] >> bit % 8 & 1:
                return False
        return True

    def read_run(self, run):
        """The items of a run; None for the value of a tombstone."""
        item_blocks, index_blocks, filter_blocks = run["blocks"]
        index, filters, items = [], [], []
        for number in range(index_blocks):
            count, data = self.run_block(run, item_blocks + number, b"ORrx")
            demand(count == min(150, item_blocks - 150 * number), "an index block's count")
            index += [data[40 + 27 * i:67 + 27 * i] for i in range(count)]
        for number in range(filter_blocks):
            count, data = self.run_block(run, item_blocks + index_blocks + number, b"ORrf")
            demand(count == 0, "a filter block's count")
            filters.append(data)
        for number in range(item_blocks):
            count, data = self.run_block(run, number, b"ORri")
            demand(count > 0, "an item block without items")
            expected = 40
            for slot in range(count):
                (offset,) = struct.unpack_from("<H", data, 4094 - 2 * slot)
                demand(offset == expected, "an item's offset")
                key = data[offset:offset + 27]
                (value_bytes,) = struct.unpack_from("<H", data, offset + 27)
                value = None
                expected = offset + 29
                if value_bytes != 65535:
                    demand(value_bytes <= 512, "a value's length")
                    value = data[expected:expected + value_bytes]
                    expected += value_bytes
                demand(expected <= BLOCK - 2 * count, "an item outside its block")
                demand(slot or key == index[number], "the index differs")
                demand(not items or items[-1][0] < key, "items out of order")
                demand(self.is_filtered(filters, key), "the filter denies an item")
                items.append((key, value))
        demand(len(items) == run["items"], "the manifest's count of items")
        dead = sum(1 for _, value in items if value is None)
        demand(dead == run["tombstones"], "the manifest's count of tombstones")
        for number, (first, last) in enumerate(run["zones"], 1):
            keys = [key for key, _ in items if key[0] == number]
            told = (keys[0], keys[-1]) if keys else (bytes(27), bytes(27))
            demand(told == (first, last), "the manifest's zones")
        return items


# What the items mean.

KINDS = {0o010000: 0, 0o020000: 1, 0o040000: 2, 0o060000: 3, 0o100000: 4, 0o120000: 5, 0o140000: 6}
DIRECTORY, REGULAR, SYMLINK = 2, 4, 5
OFFLINE, UNWRITTEN = 1, 2


class Inode:
    def __init__(self, ino, value):
        demand(len(value) == 144, f"inode {ino}: size")
        (version, zero, self.flags, self.size, self.meta_seq, self.data_seq, _, self.online,
         self.offline, self.next_pos, self.next_xattr, self.nlink, self.uid, self.gid, self.mode,
         self.rdev, zero_2) = struct.unpack_from("<HHI8QIIIIII", value)
        times = [struct.unpack_from("<qI", value, at) for at in (96, 108, 120, 132)]
        self.atime, self.ctime, self.mtime, self.crtime = times
        demand(version == 1 and zero == zero_2 == 0, f"inode {ino}: version or reserved bytes")
        demand(all(nsec < 10 ** 9 for _, nsec in times), f"inode {ino}: a time")
        demand(self.flags & ~1 == 0, f"inode {ino}: flags")
        demand(self.mode & 0o170000 in KINDS, f"inode {ino}: mode {self.mode:o}")
        self.ino, self.kind = ino, KINDS[self.mode & 0o170000]
        demand(self.rdev == 0 or self.kind in (1, 3), f"inode {ino}: rdev")
        demand(self.size == 0 or self.kind in (DIRECTORY, REGULAR, SYMLINK), f"inode {ino}: size")
        # What belongs to it: extents by last block, parts by number, entries by position.
        self.extents, self.target, self.xattrs, self.entries, self.by_name = [], [], {}, {}, {}
        self.backs = []


class Files:
    """All inodes and what belongs to them, every item being of use to somebody."""

    def __init__(self, volume, items):
        self.volume = volume
        keys = [(struct.unpack(">BQBQQB", key), value) for key, value in sorted(items.items())
                if value is not None]
        self.inodes = {key[1]: Inode(key[1], value) for key, value in keys
                       if (key[0], key[2]) == (3, 1)}
        self.changes, self.data_changes, self.orphans = set(), set(), set()
        for key, value in keys:
            if key[0] == 1:
                self.take_index(key, value)
            else:
                demand(key[0] == 3, f"an item of zone {key[0]}")
                demand(key[1] in self.inodes, f"an item of inode {key[1]}, which there is not")
                self.take(self.inodes[key[1]], key, value)

    def take_index(self, key, value):
        _, first, kind, second, third, fourth = key
        demand(first == fourth == 0 and not value, f"an index item {key}")
        if kind == 8:
            demand(third == 0, "an orphan's key")
            self.orphans.add(second)
        else:
            demand(kind in (1, 2), f"an index {kind}")
            (self.changes if kind == 1 else self.data_changes).add((second, third))

    def take(self, inode, key, value):
        _, ino, kind, second, third, fourth = key
        demand(fourth == 0 or kind == 2, f"inode {ino}: a part of {key}")
        if kind == 1:
            demand(second == third == 0, f"inode {ino}: key")
        elif kind == 2:
            parts = inode.xattrs.setdefault((second, third), [])
            demand(len(parts) == fourth and value, f"inode {ino}: parts of attribute {third}")
            demand(not parts or len(parts[-1]) == 512, f"inode {ino}: a short part of {third}")
            parts.append(value)
        elif kind in (3, 4, 5):
            demand(len(value) > 25, f"inode {ino}: an entry's size")
            named, hashed, pos, typed = struct.unpack_from("<QQQB", value)
            entry = (named, hashed, pos, typed, value[25:])
            if kind == 5:
                demand(pos == third, f"inode {ino}: a link's position")
                inode.backs.append((second, entry))
                return
            demand(inode.kind == DIRECTORY, f"inode {ino}: an entry of no directory")
            told = (hashed, pos) if kind == 3 else (pos, 0)
            demand((second, third) == told, f"inode {ino}: an entry's key")
            (inode.by_name if kind == 3 else inode.entries)[pos] = entry
        elif kind == 6:
            demand(inode.kind == SYMLINK, f"inode {ino}: a target")
            demand(second == len(inode.target) and third == 0, f"inode {ino}: the target's parts")
            demand(second == 0 or len(inode.target[-1]) == 512, f"inode {ino}: a short part")
            inode.target.append(value)
        else:
            demand(kind == 7 and third == 0 and len(value) == 17, f"inode {ino}: {key}")
            demand(inode.kind == REGULAR, f"inode {ino}: an extent of no file")
            inode.extents.append((second,) + struct.unpack("<QQB", value))

    def verify(self):
        seqs, data_seqs = set(), set()
        for inode in self.inodes.values():
            seqs.add((inode.meta_seq, inode.ino))
            if inode.kind == REGULAR:
                data_seqs.add((inode.data_seq, inode.ino))
            self.verify_extents(inode)
            self.verify_xattrs(inode)
            self.verify_entries(inode)
            self.verify_names(inode)
            target = b"".join(inode.target)
            fits = inode.kind != SYMLINK or (0 < inode.size == len(target) < 4096
                                             and 0 not in target)
            demand(fits, f"inode {inode.ino}: the target")
        demand(seqs == self.changes, "the index by metadata change differs")
        demand(data_seqs == self.data_changes, "the index by data change differs")
        nameless = {inode.ino for inode in self.inodes.values() if inode.nlink == 0}
        demand(nameless == self.orphans, "the orphans differ")

    def verify_extents(self, inode):
        end, online, offline = 0, 0, 0
        blocks = -(-inode.size // BLOCK)
        for last, start, count, flags in inode.extents:
            what = f"inode {inode.ino}: the extent that ends with {last}"
            demand(flags & ~3 == 0 and 0 < count <= last + 1, what)
            demand(last + 1 - count >= end, f"{what} overlaps")
            demand(start or flags & OFFLINE, f"{what} is nowhere")
            demand(bool(start and flags & OFFLINE) <= bool(flags & UNWRITTEN), f"{what}: flags")
            end = last + 1
            online += 0 if flags else count
            offline += count if flags & OFFLINE else 0
            reserved = flags & UNWRITTEN and not flags & OFFLINE
            demand(end <= blocks or reserved or inode.flags & 1, f"{what} lies behind the end")
            if start:
                self.volume.claim(start, count, f"inode {inode.ino}")
        demand((online, offline) == (inode.online, inode.offline), f"inode {inode.ino}: blocks")

    def verify_xattrs(self, inode):
        inode.values = {}
        for (hashed, number), parts in inode.xattrs.items():
            what = f"inode {inode.ino}: attribute {number}"
            whole = b"".join(parts)
            demand(len(whole) >= 3, what)
            name_len, value_len = struct.unpack_from("<BH", whole)
            name = whole[3:3 + name_len]
            demand(name_len and len(whole) == 3 + name_len + value_len, f"{what}: lengths")
            demand(hashed == siphash(2, 4, self.volume.name_key, name), f"{what}: hash")
            demand(number < inode.next_xattr and name not in inode.values, f"{what}: number, name")
            inode.values[name] = whole[3 + name_len:]

    def verify_entries(self, inode):
        demand(inode.by_name == inode.entries, f"directory {inode.ino}: two orders of entries")
        names = set()
        for pos, entry in inode.entries.items():
            named, hashed, told, kind, name = entry
            what = f"directory {inode.ino}: entry {pos}"
            demand(told == pos and 2 <= pos < inode.next_pos, f"{what}: position")
            demand(hashed == siphash(2, 4, self.volume.name_key, name), f"{what}: hash")
            demand(named in self.inodes and name not in names, f"{what}: inode or name")
            names.add(name)
            demand(self.inodes[named].kind == kind, f"{what}: type")
            demand((inode.ino, entry) in self.inodes[named].backs, f"{what}: no link back")
        if inode.kind == DIRECTORY:
            demand(inode.size == sum(map(len, names)), f"directory {inode.ino}: size")
            demand(inode.nlink or not names, f"directory {inode.ino}: entries without a name")
        else:
            demand(inode.next_pos == 0, f"inode {inode.ino}: next position")

    def verify_names(self, inode):
        for parent, entry in inode.backs:
            there = self.inodes[parent].entries.get(entry[2]) if parent in self.inodes else None
            demand(there == entry and entry[0] == inode.ino, f"inode {inode.ino}: a link back")
        names = len(inode.backs)
        if inode.kind != DIRECTORY:
            demand(inode.nlink == names, f"inode {inode.ino}: {inode.nlink} links, {names} names")
        elif inode.ino == 1 or inode.nlink:
            below = sum(1 for entry in inode.entries.values() if entry[3] == DIRECTORY)
            demand(names == (inode.ino != 1), f"directory {inode.ino}: {names} names")
            demand(inode.nlink == 2 + below, f"directory {inode.ino}: links")
        else:
            demand(names == 0, f"directory {inode.ino}: a name")

    def content(self, inode):
        """What is in a file: what has no block reads as zeros."""
        data = bytearray(-(-inode.size // BLOCK) * BLOCK)
        for last, start, count, flags in inode.extents:
            for number in range(count if start and not flags else 0):
                at = (last + 1 - count + number) * BLOCK
                if at < len(data):
                    data[at:at + BLOCK] = self.volume.read(start + number)
        return bytes(data[:inode.size])

    def walk(self):
        """Every path, in order, and what is there."""
        told, todo, seen = [], [(b"", 1)], set()
        while todo:
            path, ino = todo.pop()
            inode = self.inodes[ino]
            if inode.kind == DIRECTORY:
                demand(ino not in seen, f"directory {ino} is reached twice")
                seen.add(ino)
                todo += [(path + b"/" + name, named)
                         for named, _, _, _, name in inode.entries.values()]
            data = self.content(inode) if inode.kind == REGULAR else b"".join(inode.target)
            told.append({
                "path": path.decode("utf-8", "replace"), "ino": ino, "kind": inode.kind,
                "permissions": inode.mode & 0o7777, "nlink": inode.nlink, "size": inode.size,
                "mtime": list(inode.mtime), "ctime": list(inode.ctime), "crc": crc32c(data, 0),
                "xattrs": {name.decode("utf-8", "replace"): crc32c(value, 0)
                           for name, value in inode.values.items()},
            })
        named = {inode.ino for inode in self.inodes.values()
                 if inode.kind == DIRECTORY and inode.nlink}
        demand(named == seen, "directories that no path leads to")
        return sorted(told, key=lambda one: one["path"])

    def describe_root_directory(self):
        inode = self.inodes[1]
        entries = [{"name": name.decode("utf-8", "replace"), "ino": ino, "pos": pos, "kind": kind}
                   for ino, _, pos, kind, name in inode.entries.values()]
        told = {"mode": inode.mode, "nlink": inode.nlink, "uid": inode.uid, "gid": inode.gid,
                "size": inode.size, "meta_seq": inode.meta_seq,
                "next_readdir_pos": inode.next_pos, "mtime": list(inode.mtime)}
        return {"inode": told, "entries": entries}


def summary(path, with_tree):
    volume = Volume(path)
    found = volume.begin()
    voted = [volume.read_quorum(slot) for slot in range(7)]
    roots = [root for root in map(volume.read_root, range(64)) if root]
    demand(roots, "no valid root")
    root = max(roots, key=lambda root: (root["term"], root["commit"]))
    for start, blocks in root["takeover"] + root["reserve"]:
        volume.claim(start, blocks, "a reserve")
    counts = volume.read_trees(root)
    runs = volume.read_manifest(root)
    counts["manifest"] = len(runs)
    items = {}
    # From older to newer, so that the newest is left.
    for run in sorted(runs, key=lambda run: (-run["level"], run["order"])):
        items.update(volume.read_run(run))
    files = Files(volume, items)
    demand(1 in files.inodes, "no root directory")
    files.verify()
    tree = files.walk()
    leaked = volume.blocks - 1 - FIRST - len(volume.owners)
    demand(leaked == 0, f"{leaked} blocks are nowhere")
    told = {
        "fsid": f"{found['fsid']:016x}", "uuid": found["uuid"], "label": found["label"],
        "blocks": found["blocks"], "voters": len(found["voters"]),
        "quorum_blank": voted.count(None), "term": root["term"], "commit": root["commit"],
        "free_blocks": root["free_blocks"], "trees": counts,
        "items": sum(1 for value in items.values() if value is not None),
        "inodes": len(files.inodes), "orphans": len(files.orphans), "paths": len(tree),
        "root": files.describe_root_directory(),
    }
    return told | ({"tree": tree} if with_tree else {})


def main():
    try:
        with_tree = sys.argv[1] == "--tree"
        print(json.dumps(summary(sys.argv[-1], with_tree), indent=2))
    except (Wrong, OSError, struct.error, IndexError) as error:
        print(f"{sys.argv[-1]}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

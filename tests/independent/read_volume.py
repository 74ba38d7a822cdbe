#!/usr/bin/env python3
"""Reads an Outrider volume and says what is in it, as JSON.

Written from core/FORMAT.md alone, with nothing but Python's standard library: a second opinion on
what the bytes mean. Every checksum and structure that can be reached from the newest root is
verified; the first thing that is wrong ends it, with one line on stderr and status 1.

    read_volume.py IMAGE
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
        demand(all(limits[:5]) and locks >= per_client and recovery >= lease, "super: limits")
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
        demand(not any(data[148:]), f"slot {slot}: reserved bytes")
        term, held, highest, _, _, lease, _ = struct.unpack_from("<QQQQQII", data, 32)
        port, state, number = struct.unpack_from("<HBB", data, 144)
        demand(number == slot, f"slot {slot}: says {number}")
        if seq == 0:
            demand(not any(data[32:147]), f"slot {slot}: not blank")
            return None
        demand(state <= 5, f"slot {slot}: state {state}")
        for each in (term, held):
            demand(each == 0 or each & 0xFF == slot, f"slot {slot}: another slot's term")
        demand(term >> 8 <= highest <= 1 << 48, f"slot {slot}: round")
        demand(1 <= lease <= 60000, f"slot {slot}: lease")
        fits = [term == held == 0, term > held, term == held != 0, term == held != 0,
                term == held != 0, term == held][state]
        demand(fits, f"slot {slot}: terms don't fit state {state}")
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


def describe_root_directory(items):
    """What the volume's items say of inode 1."""
    root = {"inode": None, "entries": [], "index": []}
    for key, value in sorted(items.items()):
        zone, first, kind, second, third, _ = struct.unpack(">BQBQQB", key)
        if value is None:
            continue
        if (zone, first, kind) == (3, 1, 1):
            demand(len(value) == 144, "an inode's size")
            version, flags, size, meta_seq = struct.unpack_from("<H2xIQQ", value)
            nlink, uid, gid, mode = struct.unpack_from("<IIII", value, 72)
            (next_pos,) = struct.unpack_from("<Q", value, 56)
            mtime = struct.unpack_from("<qI", value, 120)
            demand(version == 1, "an inode's version")
            root["inode"] = {"mode": mode, "nlink": nlink, "uid": uid, "gid": gid, "size": size,
                             "meta_seq": meta_seq, "next_readdir_pos": next_pos,
                             "mtime": list(mtime)}
        elif (zone, first, kind) == (3, 1, 4):
            ino, _, pos, entry_kind = struct.unpack_from("<QQQB", value)
            name = value[25:].decode("utf-8", "replace")
            root["entries"].append({"name": name, "ino": ino, "pos": pos, "kind": entry_kind})
        elif (zone, kind, third) == (1, 1, 1):
            root["index"].append(second)
    return root


def summary(path):
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
    for key, value in items.items():
        if value is not None and key[0] == 3 and key[9] == 7:
            start, blocks, _ = struct.unpack("<QQB", value)
            if start:
                volume.claim(start, blocks, "a file")
    leaked = volume.blocks - 1 - FIRST - len(volume.owners)
    demand(leaked == 0, f"{leaked} blocks are nowhere")
    return {
        "fsid": f"{found['fsid']:016x}", "uuid": found["uuid"], "label": found["label"],
        "blocks": found["blocks"], "voters": len(found["voters"]),
        "quorum_blank": voted.count(None), "term": root["term"], "commit": root["commit"],
        "free_blocks": root["free_blocks"], "trees": counts,
        "items": sum(1 for value in items.values() if value is not None),
        "root": describe_root_directory(items),
    }


def main():
    try:
        print(json.dumps(summary(sys.argv[1]), indent=2))
    except (Wrong, OSError, struct.error, IndexError) as error:
        print(f"{sys.argv[1]}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

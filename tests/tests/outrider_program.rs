//! The program `outrider` as people run it: volumes are made, shown and checked; what can't be done
//! is refused in one line; damage is found where it is; and a reader that shares no code with it
//! agrees on what the bytes mean.
#![allow(clippy::unwrap_used, reason = "tests")]

use process::program;
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::process::{Command, Output};
use tempfile::TempDir;

#[path = "common/process.rs"]
mod process;

const BLOCK: u64 = 4096;
/// The smallest volume.
const BLOCKS: u64 = 16384;

fn outrider(dir: &Path, args: &[&str]) -> Output {
    Command::new(program()).args(args).current_dir(dir).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Runs it; what it wrote, when all went well.
fn succeed(dir: &Path, args: &[&str]) -> String {
    let output = outrider(dir, args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "", "{args:?}");
    text(&output.stdout).to_owned()
}

fn report(dir: &Path, args: &[&str]) -> Value {
    serde_json::from_str(&succeed(dir, args)).unwrap()
}

/// Runs what is refused: with this status, and one line that says this.
fn refused(dir: &Path, args: &[&str], status: i32, says: &str) {
    let output = outrider(dir, args);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{args:?}: {said}");
    assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
    assert!(said.starts_with("outrider: ") && said.contains(says), "{args:?}: {said}");
    assert_eq!(text(&output.stdout), "", "{args:?}");
}

/// A directory with a volume in the file `v`.
fn made() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    succeed(dir.path(), &["mkfs", "-s", "64M", "-L", "archive", "v"]);
    dir
}

fn open(dir: &Path, name: &str) -> File {
    OpenOptions::new().read(true).write(true).open(dir.join(name)).unwrap()
}

/// The file's length, and its blocks that aren't zero.
fn content(dir: &Path, name: &str) -> (u64, Vec<(u64, Vec<u8>)>) {
    let bytes = std::fs::read(dir.join(name)).unwrap();
    let blocks = bytes.chunks(BLOCK as usize).enumerate();
    let used = blocks.filter(|(_, block)| block.iter().any(|byte| *byte != 0));
    (bytes.len() as u64, used.map(|(at, block)| (at as u64, block.to_vec())).collect())
}

#[test]
fn a_volume_is_made_shown_and_clean() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let uuid = "01234567-89ab-4def-8123-456789abcdef";
    let voters = ["-Q", "0,10.0.0.1,7000", "-Q", "2,fe80::1,7001"];
    let mut args = vec!["mkfs", "-L", "archive", "-U", uuid, "-s", "80M"];
    args.extend(voters);
    args.push("v");
    assert!(succeed(dir, &args).contains(uuid));
    assert_eq!(dir.join("v").metadata().unwrap().len(), 80 << 20);

    assert!(succeed(dir, &["check", "v"]).contains("is clean"));
    let checked = report(dir, &["check", "--json", "v"]);
    assert_eq!((&checked["clean"], &checked["commit"]), (&true.into(), &1.into()));
    assert_eq!(checked["findings"], Value::Array(Vec::new()));

    let all = report(dir, &["print", "--json", "v"]);
    let found = &all["super"];
    assert_eq!((&found["uuid"], &found["label"]), (&uuid.into(), &"archive".into()));
    assert_eq!(found["blocks"], 80 << 8);
    assert_eq!(found["voters"]["0"], "10.0.0.1:7000");
    assert_eq!(found["voters"]["2"], "[fe80::1]:7001");
    assert_eq!(all["quorum"].as_array().unwrap().len(), 7);
    assert!(all["quorum"].as_array().unwrap().iter().all(|slot| slot["state"] == "blank"));
    assert_eq!(all["roots"].as_array().unwrap().len(), 1);
    assert_eq!((&all["roots"][0]["blkno"], &all["roots"][0]["newest"]), (&65.into(), &true.into()));
    assert_eq!(all["manifest"][0]["level"], 1);
    assert_eq!(all["alloc"]["free_blocks"], checked["counts"]["free_blocks"]);
    assert_eq!(all["clients"]["mounted"], Value::Array(Vec::new()));

    let items = report(dir, &["print", "--json", "v", "items"]);
    assert_eq!(items["items"].as_array().unwrap().len(), 2);
    let root = report(dir, &["print", "--json", "v", "items", "3.1.1.0.0.0", "3.1.1.0.0.0"]);
    let root = root["items"].as_array().unwrap();
    assert_eq!(root.len(), 1);
    assert_eq!((&root[0]["mode"], &root[0]["nlink"]), (&"040755".into(), &2.into()));
    assert_eq!(report(dir, &["print", "--json", "v", "segment", "1"])["segment"]["items"], 2);

    let sections = ["super", "quorum", "roots", "manifest", "items", "alloc", "clients"];
    for section in sections {
        assert!(!succeed(dir, &["print", "v", section]).is_empty(), "{section}");
        report(dir, &["print", "--json", "v", section]);
    }
    assert!(succeed(dir, &["print", "v", "segment", "1"]).contains("ino 1"));
    assert!(succeed(dir, &["print", "v"]).contains("label: archive"));
}

#[test]
fn a_new_volume_differs_from_the_last_and_replaces_it_wholly() {
    let dir = made();
    let dir = dir.path();
    let identity = |dir| report(dir, &["print", "--json", "v", "super"])["super"].clone();
    let first = identity(dir);
    // Something behind the fixed blocks, and a stale root, must not matter.
    open(dir, "v").write_all_at(&[0x5a; 4096], 300 * BLOCK).unwrap();
    succeed(dir, &["mkfs", "-f", "v"]);
    let second = identity(dir);
    for field in ["fsid", "uuid"] {
        assert_ne!(first[field], second[field], "{field}");
    }
    assert_eq!(second["label"], "");
    assert_eq!(second["voters"]["0"], "127.0.0.1:12345");
    succeed(dir, &["check", "v"]);
}

#[test]
fn mkfs_refuses_what_holds_something_is_too_small_or_in_use() {
    let dir = made();
    let dir = dir.path();
    let holding = |at: u64, bytes: &[u8]| {
        let file = File::create(dir.join("other")).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(bytes, at).unwrap();
    };
    let cases: [(u64, &[u8], &str); 7] = [
        (0x438, &[0x53, 0xef], "ext"),
        (0, b"XFSB", "XFS"),
        (0x10040, b"_BHRfS_M", "btrfs"),
        (4086, b"SWAPSPACE2", "swap"),
        (512, b"LABELONE", "LVM"),
        (510, &[0x55, 0xaa], "MBR"),
        (1_000_000, &[1], "data"),
    ];
    for (at, bytes, says) in cases {
        holding(at, bytes);
        let before = content(dir, "other");
        refused(dir, &["mkfs", "other"], 1, says);
        assert_eq!(content(dir, "other"), before, "{says}");
    }
    succeed(dir, &["mkfs", "-f", "other"]);
    succeed(dir, &["check", "other"]);

    let before = content(dir, "v");
    refused(dir, &["mkfs", "v"], 1, "holds an Outrider volume; -f");
    File::create(dir.join("small")).unwrap().set_len((64 << 20) - 4096).unwrap();
    refused(dir, &["mkfs", "small"], 1, "too small");
    refused(dir, &["mkfs", "-f", "small"], 1, "64 MiB are needed");
    refused(dir, &["mkfs", "-s", "1M", "fresh"], 1, "too small");
    refused(dir, &["mkfs", "fresh"], 1, "-s SIZE");
    refused(dir, &["mkfs", "-f", "/dev/null"], 1, "neither a block device nor a file");
    refused(dir, &["mkfs", "-f", "."], 1, "cannot open");
    let held = open(dir, "v");
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    refused(dir, &["mkfs", "-f", "v"], 1, "in use");
    assert!(!dir.join("fresh").exists(), "nothing is made before all was looked at");
    assert_eq!(content(dir, "v"), before);
    assert!(content(dir, "small").1.is_empty());
}

#[test]
fn a_command_line_that_is_wrong_gets_one_line_and_the_right_status() {
    let dir = made();
    let dir = dir.path();
    refused(dir, &[], 2, "a command is missing");
    refused(dir, &["mkfs"], 2, "<DEVICE>");
    refused(dir, &["resize", "v"], 2, "unrecognized subcommand 'resize'");
    refused(dir, &["mkfs", "-s", "12X", "v"], 2, "not a size");
    refused(dir, &["mkfs", "-U", "12", "v"], 2, "hexadecimal");
    refused(dir, &["mkfs", "-L", &"x".repeat(65), "v"], 2, "at most 64");
    for voter in ["7,1.2.3.4,5", "0,host,5", "0,1.2.3.4,0", "0,0.0.0.0,5", "0,224.0.0.1,5", "0,1"] {
        refused(dir, &["mkfs", "-Q", voter, "v"], 2, "0,10.0.0.1,12345");
    }
    refused(dir, &["mkfs", "-Q", "1,::1,5", "-Q", "1,::1,6", "v"], 2, "slot 1 is given twice");
    refused(dir, &["print", "v", "locks"], 2, "locks");
    refused(dir, &["print", "v", "items", "3.1"], 2, "six numbers");
    refused(dir, &["print", "v", "super", "1"], 2, "nothing else takes more");
    refused(dir, &["print", "v", "segment"], 2, "segment takes NR");
    refused(dir, &["print", "v", "segment", "9"], 1, "no run 9");
    refused(dir, &["check"], 16, "<DEVICE>");
    refused(dir, &["check", "--what", "v"], 16, "--what");
    refused(dir, &["check", "--repair", "v"], 16, "not possible yet");
    refused(dir, &["check", "absent"], 8, "cannot open absent");
    refused(dir, &["print", "absent"], 1, "cannot open absent");
    succeed(dir, &["check", "v"]);
}

#[test]
fn what_is_no_volume_or_no_whole_one_is_refused_and_left_as_it_is() {
    let change = |change: fn(&File), check: i32, says: &str| {
        let dir = made();
        let dir = dir.path();
        change(&open(dir, "v"));
        let before = content(dir, "v");
        refused(dir, &["print", "v"], 1, says);
        if check == 8 {
            refused(dir, &["check", "v"], 8, says);
        } else {
            assert_eq!(outrider(dir, &["check", "v"]).status.code(), Some(check), "{says}");
        }
        assert_eq!(content(dir, "v"), before, "{says}");
    };
    change(|file| file.set_len(0).unwrap(), 8, "holds no Outrider volume");
    change(|file| file.set_len(60_000).unwrap(), 8, "holds no Outrider volume");
    change(|file| file.set_len(100_000).unwrap(), 8, "give the device back the size");
    change(|file| file.write_all_at(&[0; 4096], 16 * BLOCK).unwrap(), 8, "holds no Outrider");
    change(|file| file.set_len(40 << 20).unwrap(), 8, "give the device back the size");
    change(|file| file.write_all_at(&[9], 16 * BLOCK + 60).unwrap(), 4, "is damaged (checksum)");
    change(|file| reseal_super(file, 144), 8, "features that this program doesn't know");
    // The recovery window: 560 ms.
    change(|file| reseal_super(file, 233), 8, "times that contradict each other");
}

/// Sets a byte of the super block, and makes its checksum right again.
fn reseal_super(file: &File, at: usize) {
    let mut block = [0; 4096];
    file.read_exact_at(&mut block, 16 * BLOCK).unwrap();
    block[at] = 2;
    let crc = outrider_core::crc32c::crc32c(&block[4..]);
    block[..4].copy_from_slice(&crc.to_le_bytes());
    file.write_all_at(&block, 16 * BLOCK).unwrap();
}

#[test]
fn planted_damage_is_found_with_its_name_and_address() {
    let dir = made();
    let dir = dir.path();
    let all = report(dir, &["print", "--json", "v"]);
    let number = |value: &Value| value.as_u64().unwrap();
    let trees = all["roots"][0]["trees"].as_object().unwrap();
    let mut targets =
        vec![("E-SUPER", 16), ("E-SPARE", BLOCKS - 1), ("E-RING", 65), ("E-RING", 70)];
    targets.extend((32..39).map(|blkno| ("E-QUORUM", blkno)));
    targets.extend(trees.values().map(|tree| ("E-NODE", number(&tree["blkno"]))));
    let run = number(&all["manifest"][0]["blkno"]);
    let parts = ["E-RUN-ITEMS", "E-RUN-INDEX", "E-RUN-FILTER"];
    targets.extend(parts.into_iter().zip(run..));
    assert_eq!(targets.len(), 4 + 7 + 3 + 3);
    let file = open(dir, "v");
    for (id, blkno) in targets {
        for byte in [100, 3000] {
            let at = blkno * BLOCK + byte;
            let mut old = [0];
            file.read_exact_at(&mut old, at).unwrap();
            file.write_all_at(&[old[0] ^ 4], at).unwrap();
            let output = outrider(dir, &["check", "--json", "v"]);
            assert_eq!(output.status.code(), Some(4), "{id} {blkno}");
            let found: Value = serde_json::from_slice(&output.stdout).unwrap();
            let first = &found["findings"][0];
            let expected = (&id.into(), &blkno.into(), &1.into(), &"checksum".into());
            let told = (&first["id"], &first["blkno"], &first["blocks"], &first["wrong"]);
            assert_eq!(told, expected);
            let more = found["findings"].as_array().unwrap().len();
            assert_eq!(more, if blkno == 65 { 2 } else { 1 }, "{found}");
            assert_eq!(outrider(dir, &["check", "v"]).status.code(), Some(4));
            file.write_all_at(&old, at).unwrap();
        }
    }
    succeed(dir, &["check", "v"]);
}

#[test]
fn it_answers_by_other_names_and_describes_itself() {
    let dir = made();
    let dir = dir.path();
    for name in ["mkfs.outrider", "fsck.outrider"] {
        symlink(program(), dir.join(name)).unwrap();
    }
    let by = |name: &str, args: &[&str]| {
        let output = Command::new(dir.join(name)).args(args).current_dir(dir).output().unwrap();
        (output.status.code().unwrap(), text(&output.stderr).to_owned())
    };
    assert_eq!(by("fsck.outrider", &["-a", "v"]), (0, String::new()));
    assert_eq!(by("fsck.outrider", &["-y", "v"]).0, 16);
    assert_eq!(by("mkfs.outrider", &["v"]).0, 1);
    assert_eq!(by("mkfs.outrider", &["-f", "v"]), (0, String::new()));
    for shell in ["bash", "fish", "zsh"] {
        assert!(succeed(dir, &["completions", shell]).contains("mkfs"));
    }
    succeed(dir, &["man", "."]);
    for page in ["outrider.1", "outrider-mkfs.1", "outrider-print.1", "outrider-check.1"] {
        assert!(dir.join(page).exists(), "{page}");
    }
    refused(dir, &["man", "absent"], 1, "cannot write manual pages");
    assert!(succeed(dir, &["--help"]).contains("Usage"));
    assert!(succeed(dir, &["mkfs", "--help"]).contains("NR,ADDR,PORT"));
    assert!(succeed(dir, &["--version"]).starts_with("outrider "));
}

/// The reader in Python; None, with a note, where there is no Python.
fn independent(dir: &Path, name: &str) -> Option<Output> {
    let reader = concat!(env!("CARGO_MANIFEST_DIR"), "/independent/read_volume.py");
    match Command::new("python3").arg(reader).arg(name).current_dir(dir).output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: needs python3");
            None
        }
        Err(error) => panic!("python3: {error}"),
    }
}

#[test]
fn a_reader_of_another_hand_agrees() {
    for size in ["64M", "65M", "1G", "3T"] {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        succeed(dir, &["mkfs", "-s", size, "-L", size, "v"]);
        if size == "3T" {
            // Too many blocks to count one by one in Python: ours alone.
            succeed(dir, &["check", "v"]);
            continue;
        }
        let Some(output) = independent(dir, "v") else { return };
        assert!(output.status.success(), "{}", text(&output.stderr));
        let theirs: Value = serde_json::from_slice(&output.stdout).unwrap();
        let ours = report(dir, &["print", "--json", "v"]);
        let checked = report(dir, &["check", "--json", "v"]);
        for field in ["fsid", "blocks", "label"] {
            assert_eq!(theirs[field], ours["super"][field], "{field}");
        }
        let uuid = ours["super"]["uuid"].as_str().unwrap().replace('-', "");
        assert_eq!(theirs["uuid"], uuid);
        let root = &ours["roots"][0];
        assert_eq!((&theirs["commit"], &theirs["term"]), (&root["commit"], &0.into()));
        assert_eq!(theirs["free_blocks"], root["free_blocks"]);
        assert_eq!(theirs["quorum_blank"], 7);
        let trees = theirs["trees"].as_object().unwrap();
        let records: u64 = trees.values().map(|count| count.as_u64().unwrap()).sum();
        assert_eq!(checked["counts"]["records"], records);
        assert_eq!(checked["counts"]["items"], theirs["items"]);
        let items = report(dir, &["print", "--json", "v", "items", "3.1.0.0.0.0"]);
        let (inode, told) = (&theirs["root"]["inode"], &items["items"][0]);
        for field in ["nlink", "uid", "gid", "size", "meta_seq", "next_readdir_pos"] {
            assert_eq!(inode[field], told[field], "{field}");
        }
        let mode = u64::from_str_radix(told["mode"].as_str().unwrap(), 8).unwrap();
        assert_eq!(inode["mode"], mode);
        assert_eq!(theirs["root"]["entries"], Value::Array(Vec::new()));
    }
}

#[test]
fn the_reader_of_another_hand_sees_damage_too() {
    let dir = made();
    let dir = dir.path();
    let (_, blocks) = content(dir, "v");
    let file = open(dir, "v");
    for (blkno, block) in blocks {
        let at = blkno * BLOCK + 2000;
        file.write_all_at(&[block[2000] ^ 0x80], at).unwrap();
        let Some(output) = independent(dir, "v") else { return };
        assert_eq!(output.status.code(), Some(1), "block {blkno}");
        assert_eq!(outrider(dir, &["check", "v"]).status.code(), Some(4), "block {blkno}");
        file.write_all_at(&block[2000..2001], at).unwrap();
    }
    succeed(dir, &["check", "v"]);
}

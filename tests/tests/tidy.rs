//! The workspace is tidy, and the rules that say so find what they are for.

use outrider_tests::tidy::{check_file, check_workspace};
use std::path::Path;

#[test]
fn the_workspace_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let findings = check_workspace(root).unwrap();
    let list: Vec<String> = findings.iter().map(ToString::to_string).collect();
    assert!(findings.is_empty(), "{} findings:\n{}", list.len(), list.join("\n"));
}

/// What is found in a file of this path whose code, below a module doc, is this.
fn found(path: &str, code: &str) -> Vec<(usize, String)> {
    let findings = check_file(path, &format!("//! Doc.\n{code}"));
    findings.into_iter().map(|finding| (finding.line, finding.what)).collect()
}

fn assert_found(path: &str, code: &str, what: &str) {
    let found = found(path, code);
    assert!(found.len() == 1 && found[0].1.contains(what), "{path}: {code}\n{found:?}");
}

fn assert_clean(path: &str, code: &str) {
    assert_eq!(found(path, code), [], "{path}: {code}");
}

#[test]
fn crates_depend_one_way() {
    for (path, code) in [
        ("hal/src/a.rs", "use outrider_core::node;"),
        ("core/src/error.rs", "use outrider_hosted::run;"),
        ("hosted/src/a.rs", "use outrider_tests::world::World;"),
        ("unikernel/src/a.rs", "fn f() { outrider_hosted::run() }"),
        ("xtask/src/main.rs", "use outrider_core as core;"),
    ] {
        assert_found(path, code, "must not depend on");
    }
    assert_clean("hosted/src/a.rs", "use outrider_core::node;\nuse outrider_hal::Block;");
    assert_clean("tests/src/a.rs", "// use outrider_hosted::run;");
    let manifest = "[dependencies]\noutrider-core.workspace = true\n";
    assert_eq!(check_file("hal/Cargo.toml", manifest)[0].what, "hal must not depend on core");
    assert_eq!(check_file("xtask/Cargo.toml", manifest).len(), 1);
    assert_eq!(check_file("hosted/Cargo.toml", manifest), []);
    assert_eq!(check_file("hal/Cargo.toml", "[package]\nname = \"outrider-hal\"\n"), []);
}

#[test]
fn modules_of_core_depend_one_way() {
    for (path, code) in [
        ("core/src/quorum.rs", "use crate::block::Cache;"),
        ("core/src/net/session.rs", "use crate::{format::Term, block};"),
        ("core/src/lock/table.rs", "use super::super::block::Cache;"),
        ("core/src/lock.rs", "use super::block::Cache;"),
        ("core/src/server.rs", "fn f() { crate::client::mount() }"),
        ("core/src/client/mount.rs", "use crate::{\n    error::Stop,\n    server::Server,\n};"),
        ("core/src/block.rs", "use crate::btree::Tree;"),
        ("core/src/format/id.rs", "use crate::{error::{Error, Stop}, net::Line};"),
        ("core/src/alloc.rs", "use crate::lsm::Manifest;"),
        ("core/src/check.rs", "use crate::txn::Txn;"),
        ("core/src/error.rs", "use crate::format::Term;"),
        ("core/src/txn.rs", "use crate::pump::Pump;"),
    ] {
        assert_found(path, code, "must not import");
    }
    for (path, code) in [
        ("core/src/quorum.rs", "use crate::format::{block, net};\nuse crate::error::Error;"),
        ("core/src/net/session.rs", "use super::block::Frame;\nuse crate::net::block;"),
        ("core/src/server/commit.rs", "use crate::{txn::Txn, quorum, lock::Table};"),
        ("core/src/check.rs", "use crate::{btree, lsm};"),
        ("core/src/pump.rs", "use crate::{client, server};"),
        ("core/src/quorum.rs", "use crate::record;\n// crate::block is not for us\n"),
        ("core/src/lock.rs", "#[cfg(test)]\nmod tests {\n    use crate::block::Cache;\n}"),
        ("core/src/lock/tests.rs", "use crate::block::Cache;"),
        ("core/src/lock.rs", "#[cfg(test)]\nmod tests;\n"),
    ] {
        assert_clean(path, code);
    }
    assert_found("core/src/magic.rs", "", "has no place in tidy's rules");
    assert_found(
        "core/src/lock.rs",
        "#[cfg(test)]\nmod tests;\nuse crate::block::Cache;",
        "must not import",
    );
}

#[test]
fn only_the_pump_knows_devices() {
    let code = "use outrider_hal::{Block, BlockDevice};";
    assert_found("core/src/server.rs", code, "only pump is generic over BlockDevice");
    assert_clean("core/src/pump.rs", code);
    assert_clean("core/src/server.rs", "use outrider_hal::{Block, Endpoint, Instant, StreamId};");
}

#[test]
fn core_allocates_nothing_hides_nothing_and_waits_for_nothing() {
    for code in [
        "use std::fmt;",
        "extern crate alloc;",
        "fn f(v: Option<u8>) -> u8 { v.unwrap() }",
        "use core::cell::RefCell;",
        "async fn f() {}",
        "fn f() -> Box<u8> { g() }",
    ] {
        assert_eq!(found("core/src/error.rs", code).len(), 1, "{code}");
        assert_eq!(found("hal/src/net.rs", code).len(), 1, "{code}");
        let test = format!("#[cfg(test)]\nmod tests {{\n    {code}\n}}");
        assert_clean("core/src/error.rs", &test);
        assert_clean("hosted/src/a.rs", code);
    }
    assert_clean("core/src/txn.rs", "use crate::alloc::Extent;");
    assert_clean("core/src/error.rs", "const A: &str = \"std::fmt .unwrap() \\\" async\";");
    assert_clean(
        "core/src/error.rs",
        "const A: &str = r#\"an async \" std::\"#; /* /* async */ Vec */",
    );
    assert_clean("core/src/error.rs", "fn f<'async_>(a: &'async_ u8, b: char) { b == '\"'; }");
}

#[test]
fn unsafe_has_few_places() {
    let code = "fn f() { unsafe { g() } }";
    for path in ["core/src/node.rs", "hal/src/a.rs", "hosted/src/a.rs", "tests/src/disk.rs"] {
        assert_found(path, code, "unsafe has no place here");
    }
    for path in ["core/src/arena.rs", "core/src/crc32c/sse42.rs", "unikernel/src/boot.rs"] {
        assert_clean(path, code);
    }
    assert_clean("core/src/node.rs", "#![deny(unsafe_code)] // no unsafe here");
}

#[test]
fn files_are_plain_and_short() {
    assert_eq!(
        check_file("hosted/src/a.rs", "use a::b;\n")[0].what,
        "doesn't start with a module doc"
    );
    assert_found("hosted/src/a.rs", "// na\u{ef}ve", "not ASCII");
    assert_found("hosted/src/a.rs", concat!("// TO", "DO: later"), "do it, or write down why not");
    assert_clean("hosted/src/a.rs", concat!("// a TO", "DOS is fine"));
    assert_found("hosted/src/a.rs", &format!("// {}", "x".repeat(98)), "more than 100 columns");
    assert_clean("hosted/src/a.rs", &format!("// {}", "x".repeat(97)));
    assert_found("hosted/src/a.rs", &"// x\n".repeat(10_000), "more than 46080");
    assert_eq!(check_file("README.md", concat!("a FIX", "ME\n")).len(), 1);
}

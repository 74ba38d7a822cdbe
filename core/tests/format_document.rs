//! Holds `FORMAT.md` and `WIRE.md` against the structures: every record has its table there, with
//! the fields, the offsets and the sizes it has here.
//!
//! `OUTRIDER_BLESS=1 cargo test -p outrider-core --test format_document` rewrites the offsets and
//! sizes in the documents; what a field means is written by hand.

use outrider_core::format::wire::{self, greeting, message};
use outrider_core::format::{
    Record, block, btree, item, key, quorum, records, root, run, super_block,
};
use std::fmt::Write as _;

/// The table of one record: a heading, then a row for each field, meanings taken from `document`.
fn section<R: Record>(document: &str) -> String {
    let heading = format!("### {} ({} bytes)", R::NAME, size_of::<R>());
    let old = old_section(document, R::NAME);
    let mut text =
        format!("{heading}\n\n| offset | bytes | field | meaning |\n|---|---|---|---|\n");
    for field in R::FIELDS {
        let meaning = old.and_then(|old| old_meaning(old, field.name)).unwrap_or("?");
        writeln!(text, "| {} | {} | {} | {meaning} |", field.offset, field.bytes, field.name)
            .expect("a string takes all");
    }
    text
}

fn old_section<'d>(document: &'d str, name: &str) -> Option<&'d str> {
    let start = document.find(&format!("### {name} ("))?;
    let rest = &document[start..];
    let end = rest[3..].find("\n#").map_or(rest.len(), |end| end + 4);
    Some(&rest[..end])
}

fn old_meaning<'d>(section: &'d str, field: &str) -> Option<&'d str> {
    let row = section.lines().find(|row| row.split('|').nth(3).map(str::trim) == Some(field))?;
    row.split('|').nth(4).map(str::trim)
}

fn old_table(section: &str) -> String {
    let table = section
        .lines()
        .take_while(|line| line.starts_with("###") || line.starts_with('|') || line.is_empty());
    let mut text: String = table.map(|line| format!("{line}\n")).collect();
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

/// Fields follow each other without gaps and fill the structure.
fn assert_every_byte_has_a_name<R: Record>() {
    let mut end = 0;
    for field in R::FIELDS {
        assert_eq!(field.offset, end, "{} {}", R::NAME, field.name);
        end += field.bytes;
    }
    assert_eq!(end, size_of::<R>());
}

macro_rules! records {
    ($sections:ident: $($record:ty),* $(,)?) => {
        /// Every record: its name, and its section with today's numbers.
        fn $sections(document: &str) -> Vec<(&'static str, String)> {
            $( assert_every_byte_has_a_name::<$record>(); )*
            vec![$( (<$record as Record>::NAME, section::<$record>(document)) ),*]
        }
    };
}

records! { disk:
    block::BlockHeader,
    super_block::SuperBlock,
    super_block::ClusterLimits,
    super_block::VoterSlot,
    quorum::QuorumBlock,
    root::RootBlock,
    root::Extent,
    btree::BlockRef,
    btree::TreeRoot,
    btree::NodeHeader,
    btree::NodeItemHeader,
    run::RunHeader,
    run::RunItemHeader,
    records::BlockKey,
    records::LengthKey,
    records::Length,
    records::ManifestKey,
    records::ManifestEntry,
    records::ZoneRange,
    records::ClientKey,
    records::ClientRecord,
    records::LoanKey,
    records::OpenSeqKey,
    records::OpenSeq,
    records::FreedKey,
    records::QuarantineKey,
    key::KeyBytes,
    item::TimeRecord,
    item::InodeRecord,
    item::DirentRecord,
    item::XattrRecord,
    item::ExtentRecord,
}

records! { line:
    wire::RecordHeader,
    wire::FrameHeader,
    greeting::Hello,
    greeting::Challenge,
    greeting::Proof,
    greeting::Welcome,
    message::LockRecord,
    message::HeldRecord,
    message::HeldLocksRecord,
    message::RootRecord,
    message::ExtentRecord,
    message::RunRecord,
    message::TransactionRecord,
    message::TransactionDoneRecord,
    message::LoanRequestRecord,
    message::LoanRecord,
    message::RecallRecord,
    message::RootNowRecord,
    message::CompactRecord,
    message::CompactRunRecord,
    message::CompactSpaceRecord,
    message::CompactedRecord,
    message::CompactReadyRecord,
    message::GoneRecord,
    message::StatfsRecord,
    message::StatusRecord,
    message::ClientStatusRecord,
    message::LockWaitRecord,
    message::PinRequestRecord,
    message::PinRecord,
}

/// A document's name, and what makes its sections.
type Document = (&'static str, fn(&str) -> Vec<(&'static str, String)>);

#[test]
fn the_documents_say_what_the_structures_are() {
    let documents: [Document; 2] = [("FORMAT.md", disk), ("WIRE.md", line)];
    for (name, sections) in documents {
        check(name, sections);
    }
}

fn check(file: &str, sections: fn(&str) -> Vec<(&'static str, String)>) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let mut document = std::fs::read_to_string(&path).expect("the document is there");
    let bless = std::env::var_os("OUTRIDER_BLESS").is_some();
    let mut wrong = Vec::new();
    for (name, new) in sections(&document.clone()) {
        let old = old_section(&document, name).map(old_table);
        if old.as_deref() == Some(new.as_str()) && !new.contains("| ? |") {
            continue;
        }
        if bless {
            document = match old {
                Some(old) => document.replace(&old, &new),
                None => format!("{document}\n{new}"),
            };
        }
        wrong.push(format!("{name}: {file} should say\n\n{new}"));
    }
    if bless {
        std::fs::write(&path, &document).expect("the document can be written");
        return;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

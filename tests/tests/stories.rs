//! Each story is true of a cluster that makes no mistake; and, with
//! `RUSTFLAGS="--cfg outrider_mutants"`, shows the mistake that it is told for.
#![allow(clippy::unwrap_used, reason = "tests")]

use outrider_core::mutant::Mutant;
use outrider_tests::hunt::{Told, hunt};
use outrider_tests::scenario::stories;
use std::path::Path;

#[test]
fn no_story_shows_a_mistake_where_none_is_made() {
    for story in stories::ALL {
        assert_eq!((story.tell)(), Ok(()), "{}", story.name);
    }
}

/// The sources below a directory, one after the other.
fn sources(at: &Path, text: &mut String) {
    for entry in std::fs::read_dir(at).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else {
            text.push_str(&std::fs::read_to_string(path).unwrap_or_default());
        }
    }
}

#[test]
fn every_mistake_has_its_story() {
    let (mut core, mut here) = (String::new(), String::new());
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../core/src"), &mut core);
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests"), &mut here);
    for mutant in Mutant::ALL {
        let (text, test) = match hunt(*mutant).told {
            Told::Core(test) => (&core, test),
            Told::Test(test) => (&here, test),
            Told::Story(_) | Told::Nowhere => continue,
        };
        assert!(text.contains(&format!("#[test]\nfn {test}()")), "{mutant:?}: {test}");
    }
}

#[cfg(outrider_mutants)]
#[test]
fn every_story_shows_the_mistake_it_is_told_for() {
    for mutant in Mutant::ALL {
        let Told::Story(story) = hunt(*mutant).told else { continue };
        outrider_core::mutant::activate(Some(*mutant));
        let told = std::panic::catch_unwind(story.tell);
        outrider_core::mutant::activate(None);
        assert!(!matches!(told, Ok(Ok(()))), "{mutant:?}: {}", story.name);
    }
}

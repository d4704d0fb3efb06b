//! The fuzz targets as plain tests: over the kept corpus, its mutations, and generated input.
//!
//! `protocol/fuzz` has the targets for cargo-fuzz; an input that it finds is kept under `protocol/fuzz/corpus/TARGET`.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

#[allow(unreachable_pub, reason = "in the fuzz crate these functions are public")]
#[path = "../fuzz/src/lib.rs"]
mod targets;

/// Says whether it understood its input.
type Target = fn(&[u8]) -> bool;
const TARGETS: &[(&str, Target)] = &[
    ("frame", targets::frame),
    ("control", targets::control),
    ("snapshot", targets::snapshot),
    ("invite", targets::invite),
    ("target", targets::target),
    ("ticket", targets::ticket),
    ("config", targets::config),
];

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut names: Vec<String> =
        entries.map(|e| e.expect("an entry").file_name().into_string().expect("UTF-8")).collect();
    names.sort();
    names
}

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let dir = fuzz().join("corpus").join(target);
    names(&dir).into_iter().map(|name| (name.clone(), fs::read(dir.join(name)).expect("readable"))).collect()
}

#[test]
fn every_fuzz_target_has_a_corpus_and_runs_here() {
    let mut here: Vec<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    here.sort();
    assert_eq!(names(&fuzz().join("corpus")), here);
    let files: Vec<String> = here.iter().map(|name| format!("{name}.rs")).collect();
    assert_eq!(names(&fuzz().join("fuzz_targets")), files);
}

#[test]
fn the_kept_corpus_is_understood_or_refused_as_its_names_say() {
    for (target, run) in TARGETS {
        let inputs = corpus(target);
        for beginning in ["good-", "bad-"] {
            assert!(inputs.iter().any(|(name, _)| name.starts_with(beginning)), "{target} has no {beginning} input");
        }
        for (name, input) in inputs {
            assert_eq!(run(&input), name.starts_with("good-"), "{target}/{name}");
        }
    }
}

#[test]
fn every_kind_of_control_frame_has_a_kept_input() {
    let numbers: Vec<u8> = corpus("control").iter().filter_map(|(_, input)| input.first().copied()).collect();
    for kind in malai_protocol::codec::Kind::ALL {
        // Kinds without a payload, or with raw bytes, have nothing to decode.
        let raw = kind.cap() == 0 || format!("{kind:?}").starts_with("Std") && !format!("{kind:?}").ends_with("Ack");
        assert!(raw || numbers.contains(&(*kind as u8)), "no input for {kind:?}");
    }
}

#[test]
fn every_beginning_of_a_kept_input_breaks_no_promise() {
    for (target, run) in TARGETS {
        for (_, input) in corpus(target) {
            // The config's parser is slow to do it for each byte.
            let step = 1 + input.len() / 128;
            for end in (0..input.len()).step_by(step) {
                run(&input[..end]);
            }
        }
    }
}

/// One corpus input of each target, with some bytes changed, put in or cut.
fn mutated(name: &'static str) -> impl Strategy<Value = Vec<u8>> {
    let inputs: Vec<Vec<u8>> = corpus(name).into_iter().map(|(_, input)| input).collect();
    let change = (any::<prop::sample::Index>(), any::<u8>(), 0..3u8);
    (prop::sample::select(inputs), prop::collection::vec(change, 1..6)).prop_map(|(mut input, changes)| {
        for (at, byte, how) in changes {
            let at = at.index(input.len() + 1);
            match how {
                0 => input.insert(at, byte),
                1 if at < input.len() => input[at] = byte,
                _ if at < input.len() => {
                    input.remove(at);
                }
                _ => {}
            }
        }
        input
    })
}

macro_rules! generated {
    ($($target:ident)*) => {$(
        mod $target {
            use super::*;

            proptest! {
                #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

                #[test]
                fn mutations_of_the_corpus_break_no_promise(input in mutated(stringify!($target))) {
                    targets::$target(&input);
                }

                #[test]
                fn no_bytes_break_a_promise(input in prop::collection::vec(any::<u8>(), 0..512)) {
                    targets::$target(&input);
                }
            }
        }
    )*};
}

generated!(frame control snapshot invite target ticket config);

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_well_formed_target_parses_to_its_parts(
        user in prop::option::of("[a-zA-Z_][a-zA-Z0-9_.-]{0,31}"),
        machine in "[a-z0-9][a-z0-9-]{0,31}",
        cluster in prop::option::of("[a-z0-9][a-z0-9-]{0,31}"),
    ) {
        let target = malai_protocol::target::Target { user, machine, cluster };
        prop_assert_eq!(target.to_string().parse(), Ok(target));
    }

    #[test]
    fn no_text_breaks_a_text_decoder(text in "\\PC{0,200}", lines in "([a-z.\\[\\]{}=\"', #*@\n0-9\u{430}\u{0}]|id52|machine|group){0,120}") {
        for text in [&text, &lines] {
            targets::target(text.as_bytes());
            targets::config(text.as_bytes());
            targets::invite(text.as_bytes());
            targets::ticket(text.as_bytes());
        }
    }
}

//! Connections that are cut anywhere, and what got through in the end.

use std::io::Cursor;

use bytes::Bytes;
use futures_util::stream;
use malai_protocol::codec::Kind;
use proptest::prelude::*;
use tokio::time::timeout;

use super::lab::{Dials, Reader, SOON, Wish, parts};
use super::target::{Cut, Target, WHOLE};
use crate::session::{InputBegin, SessionEnd, follow};

fn script() -> Vec<(Kind, Bytes)> {
    let pieces: [(Kind, &[u8]); 5] = [
        (Kind::Stdout, b"first line\n"),
        (Kind::Stderr, b"an error\n"),
        (Kind::Stdout, b"x"),
        (Kind::Stdout, b"second\xff\x00line\n"),
        (Kind::Stderr, b"the last word"),
    ];
    pieces.map(|(kind, bytes)| (kind, Bytes::from_static(bytes))).to_vec()
}

/// Runs a session over connections that are cut so, and then over one that is not; checks that everything arrived, once.
fn run(script: Vec<(Kind, Bytes)>, stdin: &[u8], cuts: &[Cut]) -> Target {
    run_with(InputBegin::AtOnce, script, stdin, cuts)
}

/// The same with an input that is read at once, or when the command has started.
fn run_with(begin: InputBegin, script: Vec<(Kind, Bytes)>, stdin: &[u8], cuts: &[Cut]) -> Target {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (stdout, stderr) = (Reader::default(), Reader::default());
    let mut target = Target::new(script);
    let outcome = runtime.block_on(async {
        let Dials { connect, mut others, .. } = Dials::new();
        let wish = Wish { stdin: Some(Box::new(Cursor::new(stdin.to_vec()))), begin, ..Wish::default() };
        let session = tokio::spawn(follow(parts(wish, connect, stream::pending(), (&stdout, &stderr))));
        let mut cuts = cuts.iter();
        let serving = async {
            while let Some((_, stream)) = others.recv().await {
                if target.serve(stream, cuts.next().copied().unwrap_or(WHOLE)).await {
                    return;
                }
            }
        };
        timeout(SOON, serving).await.expect("served in time");
        timeout(SOON, session).await.expect("in time").expect("no panic")
    });
    assert!(matches!(&outcome, Ok(SessionEnd::Ended(record)) if record.exit_code() == 7), "{cuts:?}: {outcome:?}");
    assert_eq!(stdout.bytes(), target.output(Kind::Stdout), "{cuts:?}");
    assert_eq!(stderr.bytes(), target.output(Kind::Stderr), "{cuts:?}");
    assert!(target.stdin == stdin, "{cuts:?}: {} of {} bytes of input", target.stdin.len(), stdin.len());
    assert_eq!(target.runs, 1, "{cuts:?}");
    target
}

#[test]
fn a_cut_after_any_byte_in_either_direction_loses_nothing_and_doubles_nothing() {
    let stdin = b"0123456789 typed";
    let most = run(script(), stdin, &[]).most;
    for up in 0..most.up {
        run(script(), stdin, &[Cut { up, ..WHOLE }]);
    }
    for down in 0..most.down {
        run(script(), stdin, &[Cut { down, ..WHOLE }]);
    }
}

#[test]
fn an_input_that_is_read_when_the_command_has_started_survives_cuts_too() {
    let stdin = b"0123456789 typed";
    let most = run_with(InputBegin::Started, script(), stdin, &[]).most;
    for up in 0..most.up {
        run_with(InputBegin::Started, script(), stdin, &[Cut { up, ..WHOLE }]);
    }
    for down in 0..most.down {
        run_with(InputBegin::Started, script(), stdin, &[Cut { down, ..WHOLE }]);
    }
}

#[test]
fn input_beyond_the_credit_survives_cuts() {
    let stdin: Vec<u8> = (0..900_000_u32).map(|n| (n % 251).to_le_bytes()[0]).collect();
    let cuts = [100_000, 300_000, 270_000, 1000, 262_144].map(|up| Cut { up, ..WHOLE });
    run(script(), &stdin, &cuts);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_number_of_cuts_anywhere_loses_nothing_and_doubles_nothing(
        points in prop::collection::vec((0..1500_usize, 0..1500_usize), 0..10),
        pieces in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 1..200)), 0..20),
        stdin in prop::collection::vec(any::<u8>(), 0..3000),
    ) {
        let cuts: Vec<Cut> = points.into_iter().map(|(up, down)| Cut { up, down }).collect();
        let kind = |out| if out { Kind::Stdout } else { Kind::Stderr };
        let script = pieces.into_iter().map(|(out, bytes)| (kind(out), Bytes::from(bytes))).collect();
        run(script, &stdin, &cuts);
    }
}

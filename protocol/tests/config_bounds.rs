//! Hostile config texts are refused in bounded time, with a position, on a thread with an ordinary stack.

use std::time::{Duration, Instant};

use malai_protocol::config::Config;
use malai_protocol::snapshot::MAX_TEXT;

/// Generous: an unoptimised build on a busy machine reads 4 MiB in about 2 s. Unbounded work takes minutes.
const LIMIT: Duration = Duration::from_secs(60);

/// The first problem of a text, by both readers, each within the limit.
fn refused(what: &str, text: &str) -> (usize, usize, String) {
    let begin = Instant::now();
    let strict = Config::check(text).expect_err(what);
    assert!(Config::read(text).is_err(), "{what}");
    assert!(begin.elapsed() < LIMIT, "{what}: {:?}", begin.elapsed());
    assert!(strict.len() <= 20, "{what}");
    assert!(strict.iter().all(|p| p.message.len() < 1024), "{what}: a message repeats the text");
    (strict[0].line, strict[0].column, strict[0].message.clone())
}

#[test]
fn a_text_of_100_mb_is_refused_by_its_length() {
    let (.., message) = refused("100 MB", &"#".repeat(100_000_000));
    assert!(message.contains("100000000 bytes"), "{message}");
    assert!(refused("over", &"\n".repeat(MAX_TEXT + 1)).2.contains("bytes"));
}

#[test]
fn deep_nesting_is_refused_where_it_becomes_too_deep() {
    let message = "nested too deeply for a config".to_owned();
    assert_eq!(refused("arrays", &format!("a = {}", "[".repeat(4_000_000))), (1, 13, message.clone()));
    assert_eq!(refused("tables", &"a={".repeat(1_000_000)), (1, 27, message.clone()));
    assert_eq!(refused("dots", &format!("a{} = 1", ".a".repeat(2_000_000))), (1, 18, message.clone()));
    assert_eq!(refused("header", &format!("[a{}]", ".a".repeat(2_000_000))), (1, 19, message));
}

#[test]
fn nesting_by_dotted_keys_inside_tables_does_not_overflow_the_stack() {
    let key = ["a"; 79].join(".");
    let text = format!("x = {}1{}", format!("{{ {key} = ").repeat(79), "}".repeat(79));
    assert!(refused("product", &text).2.contains("nested too deeply"));
    // Brackets that do not match must not hide the depth from the check and show it to the parser.
    refused("mismatched", &format!("x = {}", "[}".repeat(1_000_000)));
    refused("mismatched", &format!("x = {}", "{a.a.a.a.a.a.a.a = ]".repeat(200_000)));
}

#[test]
fn control_and_reordering_characters_are_refused_at_their_place() {
    for (c, shown) in
        [('\0', "U+0000"), ('\u{1b}', "U+001B"), ('\u{7f}', "U+007F"), ('\u{202e}', "U+202E"), ('\u{85}', "U+0085")]
    {
        let (line, column, message) = refused(shown, &format!("# fine\n# b{c}d\n"));
        assert_eq!((line, column), (2, 4), "{shown}");
        assert!(message.contains(shown), "{message}");
    }
    refused("all NUL", &"\0".repeat(MAX_TEXT));
}

#[test]
fn the_same_thing_a_million_times_is_refused_at_the_second() {
    assert_eq!(refused("keys", &"a = 1\n".repeat(600_000)), (2, 1, "`a` appears twice".into()));
    assert_eq!(refused("tables", &"[a]\n".repeat(1_000_000)), (2, 2, "`a` appears twice".into()));
}

#[test]
fn hundreds_of_thousands_of_problems_cost_no_more_than_reading_them() {
    let keys: String = (0..300_000).map(|i| format!("k{i} = 1\n")).collect();
    refused("unknown keys", &keys);
    let machines: String = (0..100_000).map(|i| format!("[machine.m{i}]\n")).collect();
    refused("machines without a key", &machines);
    let names: String = (0..400_000).map(|i| format!("\"n{i}\",")).collect();
    refused("unknown names", &format!("[group.a]\nmembers = [{names}]\n"));
}

#[test]
fn a_ring_of_a_hundred_thousand_groups_is_found() {
    let groups: String =
        (0..100_000).map(|i| format!("[group.g{i}]\nmembers = [\"g{}\"]\n", (i + 1) % 100_000)).collect();
    let begin = Instant::now();
    let problems = Config::check(&groups).expect_err("a ring");
    assert!(begin.elapsed() < LIMIT);
    assert!(problems.iter().any(|p| p.message.contains("contains itself: g0 → g1 → ")), "{problems:?}");
}

use proptest::prelude::*;

use super::*;
use crate::escape::json;

fn entry() -> Entry {
    Entry { at_ms: 1, ..Entry::new(Event::Start, "c", "00".into(), "id".into()) }
}

fn with_words(words: &[&[u8]]) -> Entry {
    let words: Vec<ByteBuf> = words.iter().map(|word| ByteBuf::from(*word)).collect();
    let mut entry = entry();
    entry.set_words(&words);
    entry
}

/// What these texts take in a line as a list.
fn taken(texts: &[String]) -> usize {
    texts.iter().flat_map(|text| text.chars()).map(json_len).sum::<usize>() + 3 * texts.len()
}

#[test]
fn bytes_that_are_not_utf8_are_told_from_those_that_spell_an_escape() {
    assert_eq!(printable(b"a\xffb"), "a\\xffb");
    assert_eq!(printable(b"a\\xffb"), "a\\\\xffb");
    assert_eq!(printable("grün".as_bytes()), "grün");
}

#[test]
fn words_that_fit_stand_as_they_are_and_have_no_hash() {
    let fits = vec![b'x'; MAX_LINE_WORDS_BYTES - 3];
    for words in [vec![b"echo".as_slice(), b"a b", b""], vec![&fits], vec![]] {
        let entry = with_words(&words);
        assert_eq!(entry.words.len(), words.len());
        assert_eq!((entry.words_bytes, entry.words_blake3), (None, None));
    }
}

#[test]
fn of_longer_words_the_beginning_is_kept_and_the_length_and_the_hash_are_told() {
    let long = vec![b'x'; MAX_LINE_WORDS_BYTES - 2];
    let entry = with_words(&[&long]);
    let kept = entry.words.concat();
    assert!(kept.len() > 4000 && kept.ends_with('…') && kept.starts_with("xxx"), "{kept}");
    assert_eq!(entry.words_bytes, Some(long.len() as u64 + 1));
    // As `printf '%s\\0' WORD | b3sum` says.
    let expected = blake3::hash(&[&long[..], &[0]].concat()).to_hex().to_string();
    assert_eq!(entry.words_blake3, Some(expected));
    // Where a word ends is a part of what is hashed.
    let (one, two) = (with_words(&[&long, b"ab", b"c"]), with_words(&[&long, b"a", b"bc"]));
    assert_eq!(one.words_bytes, two.words_bytes);
    assert_ne!(one.words_blake3, two.words_blake3);
}

#[test]
fn a_million_empty_words_take_no_more_than_one_long_one() {
    let words = vec![ByteBuf::new(); 1 << 20];
    let mut entry = entry();
    entry.set_words(&words);
    assert_eq!(taken(&entry.words), MAX_LINE_WORDS_BYTES / 3 * 3);
    assert_eq!(entry.words_bytes, Some(1 << 20));
}

#[test]
fn a_word_of_many_bytes_is_cut_between_two_characters() {
    let long = "漢".repeat(3000);
    let entry = with_words(&[long.as_bytes()]);
    assert_eq!(entry.words.concat().trim_matches('漢'), "…");
    assert!(taken(&entry.words) <= MAX_LINE_WORDS_BYTES + CUT_MARK.len_utf8());
}

#[test]
fn names_that_have_no_room_are_counted_and_texts_are_cut_once() {
    let mut entry = entry();
    entry.env = (0..1000).map(|number| format!("NAME_{number:04}")).collect();
    entry.reason = Some("\u{202e}".repeat(MAX_REASON_BYTES / 3));
    entry.outcome = Some("x".repeat(1 << 20));
    entry.bound();
    assert_eq!(entry.env_count, Some(1000));
    assert!(entry.env.len() > 50 && entry.env.starts_with(&["NAME_0000".into(), "NAME_0001".into()]));
    assert!(!entry.reason.as_ref().is_some_and(|reason| reason.ends_with('…')), "an allowed reason was cut");
    assert!(entry.outcome.as_ref().is_some_and(|outcome| outcome.ends_with("x…")));
    let once = entry.clone();
    entry.bound();
    assert_eq!(entry.env.len(), once.env.len());
    assert_eq!(entry.env_count, once.env_count);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn no_line_is_longer_than_lines_may_be(
        words in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9000), 0..4),
        text in "\\PC{0,40}|[\u{0}-\u{9f}\u{200b}-\u{202e}\"\\\\]{0,9000}",
    ) {
        let words: Vec<ByteBuf> = words.into_iter().map(ByteBuf::from).collect();
        let some = || Some(text.clone());
        let mut entry = Entry {
            cluster: text.clone(), session: text.clone(), id52: text.clone(),
            who: some(), owner: some(), owner_name: some(), named: some(), user: some(), reason: some(), outcome: some(),
            env: vec![text.clone(); 8],
            ..entry()
        };
        entry.set_words(&words);
        entry.bound();
        let texts = [&entry.cluster, &entry.session, &entry.id52].into_iter()
            .chain([&entry.who, &entry.owner, &entry.owner_name, &entry.named, &entry.user].into_iter().flatten())
            .chain([&entry.reason, &entry.outcome].into_iter().flatten());
        let texts: usize = texts.flat_map(|text| text.chars()).map(json_len).sum();
        // 1 KiB for names of fields and numbers.
        prop_assert!(texts + taken(&entry.words) + taken(&entry.env) + 1024 <= MAX_LINE_BYTES);
        prop_assert!(json(&entry.words.concat()).chars().all(|c| c == '\n' || !crate::escape::is_risky(c)));
    }
}

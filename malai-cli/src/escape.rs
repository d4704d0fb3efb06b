//! Makes text harmless for a terminal: it shows the characters of [`malai_protocol::escape`] and does not obey them.

use std::fmt::Write as _;

use malai_protocol::escape::is_risky;
pub(crate) use malai_protocol::escape::json;

fn escape(text: &str, keep: &[char]) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_risky(c) && !keep.contains(&c) {
            as_rust(&mut out, c);
        } else {
            out.push(c);
        }
    }
    out
}

fn as_rust(out: &mut String, c: char) {
    // Writing to a String cannot fail.
    let _ = match c {
        '\n' => out.write_str("\\n"),
        '\r' => out.write_str("\\r"),
        '\t' => out.write_str("\\t"),
        c if (c as u32) < 0x100 => write!(out, "\\x{:02x}", c as u32),
        c => write!(out, "\\u{{{:x}}}", c as u32),
    };
}

/// Escapes one line: a name, a word, a path.
pub(crate) fn line(text: &str) -> String {
    escape(text, &[])
}

/// Escapes text of several lines, such as a config: line ends and tabs stay.
pub(crate) fn text(text: &str) -> String {
    escape(text, &['\n', '\t'])
}

/// Quotes words as a shell reads them, so that one word with a space differs from two words.
pub(crate) fn words<S: AsRef<str>>(words: &[S]) -> String {
    let quoted: Vec<String> = words.iter().map(|w| quote(w.as_ref())).collect();
    quoted.join(" ")
}

fn quote(word: &str) -> String {
    // A backslash that escaping adds is not part of the word, and no shell gets it.
    let is_plain = !word.is_empty() && !word.contains('\\');
    let plain = |c: char| c.is_alphanumeric() || "_-./:=@%+,\\{}".contains(c);
    let word = line(word);
    if is_plain && word.chars().all(plain) { word } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_and_not_obeyed() {
        assert_eq!(line("a\x1b[2Jb\r\n\u{9b}c\x7f"), "a\\x1b[2Jb\\r\\n\\x9bc\\x7f");
    }

    #[test]
    fn direction_changes_and_invisible_characters_are_shown() {
        assert_eq!(line("web\u{202e}10\u{200b}\u{feff}\u{2066}"), "web\\u{202e}10\\u{200b}\\u{feff}\\u{2066}");
    }

    #[test]
    fn other_text_stays_as_it_is() {
        assert_eq!(line("grün 漢字 🦀 é"), "grün 漢字 🦀 é");
        assert_eq!(text("a\n\tb\x07"), "a\n\tb\\x07");
    }

    #[test]
    fn an_escaped_document_is_the_same_document() {
        let value = serde_json::json!({ "name": "a\u{202e}\x1b\u{e0041}\n" });
        let plain = value.to_string();
        let escaped = json(&plain);
        assert!(escaped.is_ascii(), "{escaped}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped).expect("json"), value);
    }

    #[test]
    fn one_word_with_a_space_is_told_from_two() {
        assert_eq!(words(&["echo", "a b", "", "it's"]), "echo 'a b' '' 'it'\\''s'");
        assert_eq!(words(&["CORP\\alice@web01", "a\u{9b}"]), "'CORP\\alice@web01' a\\x9b");
    }
}

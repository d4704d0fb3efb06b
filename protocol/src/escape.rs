//! Characters that do more in a terminal than show themselves: control characters could move the cursor or retitle the
//! window, and invisible or direction-changing ones could make one name look like another.

use std::fmt::Write as _;

/// Tells whether a character can do more than show itself, or shows nothing at all.
pub fn is_risky(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{70f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            // Zero-width characters, direction marks, line and paragraph separators, overrides and isolates.
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            // Fillers that look like a blank.
            | '\u{2800}' | '\u{3164}' | '\u{ffa0}'
            | '\u{fe00}'..='\u{fe0d}' | '\u{feff}' | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
            // Tags, which are invisible, and variation selectors beyond the common ones.
            | '\u{e0000}'..='\u{e0fff}')
}

/// Tells whether [`json`] writes this character as `\uXXXX`: also the two variation selectors that say how an emoji looks,
/// since by them two texts differ that look alike.
fn is_escaped(c: char) -> bool {
    is_risky(c) || matches!(c, '\u{fe0e}' | '\u{fe0f}')
}

/// Returns the same JSON document with risky characters as `\uXXXX`. Outside of its strings a document has none of them
/// but line ends, which stay.
pub fn json(document: &str) -> String {
    let mut out = String::with_capacity(document.len());
    for c in document.chars() {
        if c != '\n' && is_escaped(c) {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// Returns how many bytes this character takes in a string of a document that went through [`json`].
pub fn json_len(c: char) -> usize {
    match c {
        '"' | '\\' | '\u{8}' | '\t' | '\n' | '\u{c}' | '\r' => 2,
        c if is_escaped(c) => 6 * c.len_utf16(),
        c => c.len_utf8(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_hides_or_turns_text_around_is_risky_and_letters_are_not() {
        for c in ['\u{1b}', '\u{9b}', '\u{7f}', '\0', '\u{202e}', '\u{2066}', '\u{200b}', '\u{feff}', '\u{e0041}'] {
            assert!(is_risky(c), "{c:?}");
        }
        for c in ['\u{34f}', '\u{115f}', '\u{3164}', '\u{2800}', '\u{fe00}', '\u{fffa}', '\u{1d173}', '\u{180e}'] {
            assert!(is_risky(c), "{c:?}");
        }
        for c in "az09 ~\u{a0}é\u{301}漢字ضア🦀\u{fe0f}".chars() {
            assert!(!is_risky(c), "{c:?}");
        }
    }
}

//! Edits of a config's text as a person makes them in an editor: line by line, the rest untouched.

/// The text with this `key = value` line in `[section]`, in place of another line of the same key.
pub(crate) fn set(text: &str, section: &str, line: &str) -> String {
    let key = key(line);
    let header = format!("[{section}]");
    let mut text = unset(text, section, key);
    match text.lines().position(|found| heading(found) == Some(&header)) {
        Some(at) => {
            let mut lines: Vec<&str> = text.lines().collect();
            lines.insert(at + 1, line);
            lines.join("\n") + "\n"
        }
        None => {
            text.push_str(&format!("\n{header}\n{line}\n"));
            text
        }
    }
}

/// The text without the line of this key in `[section]`.
pub(crate) fn unset(text: &str, section: &str, unwanted: &str) -> String {
    let header = format!("[{section}]");
    let mut inside = false;
    let mut kept = String::new();
    for line in text.lines() {
        if let Some(found) = heading(line) {
            inside = found == header;
        }
        if !(inside && line.contains('=') && key(line) == unwanted) {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

fn key(line: &str) -> &str {
    line.split('=').next().unwrap_or_default().trim()
}

/// `[section]`, without a comment after it.
fn heading(line: &str) -> Option<&str> {
    let end = line.starts_with('[').then(|| line.find(']'))??;
    line.get(..=end)
}

#[cfg(test)]
mod tests {
    use super::{set, unset};

    const TEXT: &str = "# note\n[a]   # first\nx = 1\ny = 2\n\n[b]\nx = 3\n";

    #[test]
    fn a_line_takes_the_place_of_the_one_with_its_key() {
        assert_eq!(set(TEXT, "b", "x = 4"), "# note\n[a]   # first\nx = 1\ny = 2\n\n[b]\nx = 4\n");
        assert_eq!(set(TEXT, "a", "z = 5"), "# note\n[a]   # first\nz = 5\nx = 1\ny = 2\n\n[b]\nx = 3\n");
        assert_eq!(set("[a]\n", "c", "x = 1"), "[a]\n\n[c]\nx = 1\n");
    }

    #[test]
    fn a_line_is_removed_from_its_section_only() {
        assert_eq!(unset(TEXT, "a", "x"), "# note\n[a]   # first\ny = 2\n\n[b]\nx = 3\n");
    }
}

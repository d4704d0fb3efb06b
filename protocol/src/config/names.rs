//! Names: their grammar, those that are reserved, and the nearest one to a misspelt word.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

/// Bounds a name, in characters: a DNS label has at most 63, and two names with a dot fit one line of a table.
pub const MAX_NAME_CHARS: usize = 32;

/// Lists words that mean "everyone", "nobody" or "this one" where names are listed.
const RESERVED_WORDS: &[&str] = &["all", "any", "localhost", "none", "self"];

/// Lists malai's own commands: what `malai status` means must never depend on the config.
const RESERVED_COMMANDS: &[&str] = &[
    "agent", "attach", "audit", "can", "cluster", "config", "connect", "daemon", "doctor", "exec", "executor", "help",
    "kill", "machine", "metrics", "ping", "ps", "relay", "rescan", "sessions", "status", "version", "wait",
];

/// Names a cluster, a machine, a group or a named command: `[a-z0-9][a-z0-9-]{0,31}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

/// Says why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// There is nothing.
    #[error("a name cannot be empty")]
    Empty,
    /// It has more than [`MAX_NAME_CHARS`] characters.
    #[error("a name has at most {MAX_NAME_CHARS} characters")]
    TooLong,
    /// It begins with a hyphen.
    #[error("a name begins with a letter or a digit")]
    Start,
    /// A character of ASCII that names do not have.
    #[error("a name has only a-z, 0-9 and `-`, not `{}`", .0.escape_default())]
    Character(char),
    /// A character beyond ASCII, perhaps one that looks like a letter.
    #[error("a name has only a-z, 0-9 and `-`: the character U+{:04X} is not one of them, even if it looks the same", u32::from(*.0))]
    NotAscii(char),
}

impl Name {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the name that a host name stands for: its first label in lower case, other characters as `-`. None
    /// where nothing usable is left, or only a reserved word.
    pub fn from_hostname(hostname: &str) -> Option<Self> {
        let label = hostname.split('.').next().unwrap_or_default();
        let text: String = label
            .chars()
            .take(MAX_NAME_CHARS)
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
            .collect();
        let name: Self = text.trim_matches('-').parse().ok()?;
        if name.reserved().is_some() { None } else { Some(name) }
    }

    /// Tells why this name may not be given to a machine or a group; None when it may.
    pub fn reserved(&self) -> Option<&'static str> {
        if RESERVED_WORDS.contains(&self.as_str()) {
            Some("it has a meaning of its own in lists")
        } else if RESERVED_COMMANDS.contains(&self.as_str()) {
            Some("it is a command of malai")
        } else {
            None
        }
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        for c in text.chars().take(MAX_NAME_CHARS + 1) {
            match c {
                'a'..='z' | '0'..='9' | '-' => {}
                c if c.is_ascii() => return Err(NameError::Character(c)),
                c => return Err(NameError::NotAscii(c)),
            }
        }
        match text.chars().next() {
            None => Err(NameError::Empty),
            Some('-') => Err(NameError::Start),
            Some(_) if text.len() > MAX_NAME_CHARS => Err(NameError::TooLong),
            Some(_) => Ok(Self(text.to_owned())),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// Bounds a user's name, in bytes: what Linux accepts, without the final NUL.
pub const MAX_USER_BYTES: usize = 255;

/// Tells whether this may be the name of a user: ASCII letters, digits, `_`, `.` and `-`; `@` and `\` between them, as
/// directory services write names with their domain; and `$` at the end, as machine accounts have it. It does not
/// begin with `-` or `.`, and is not a number, which would leave open whether a name or a uid is meant.
pub fn is_user(text: &str) -> bool {
    let name = text.strip_suffix('$').unwrap_or(text);
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '@' | '\\');
    !name.is_empty()
        && text.len() <= MAX_USER_BYTES
        && name.chars().all(allowed)
        && !name.starts_with(['-', '.', '@', '\\'])
        && !name.ends_with(['@', '\\'])
        && !name.chars().all(|c| c.is_ascii_digit())
}

/// Says what a name must be that [`is_user`] refuses.
pub(crate) const USER_FORM: &str = "must be the name of a user on the machine, such as \"deploy\": ASCII letters, digits, `_`, \
     `.` and `-`, with `@` or `\\` before or after a domain, and no number";

/// Writes the name of a user as a TOML string.
pub(crate) fn quoted_user(user: &str) -> String {
    if user.contains('\\') { format!("'{user}'") } else { format!("\"{user}\"") }
}

/// Writes foreign text for a message: at most 64 characters, control characters escaped.
pub(crate) fn shown(text: &str) -> String {
    let mut out: String = text.chars().take(64).flat_map(char::escape_debug).collect();
    if text.chars().nth(64).is_some() {
        out.push('…');
    }
    out
}

/// Returns the candidate nearest to a misspelt word, if one is near enough to have been meant.
pub fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Longer words are no typing errors, and the distance costs the product of both lengths.
    if word.len() > 2 * MAX_NAME_CHARS {
        return None;
    }
    let most = 1 + word.chars().count() / 4;
    candidates
        .filter(|c| c.len().abs_diff(word.len()) <= most)
        .map(|c| (strsim::levenshtein(word, c), c))
        .filter(|(distance, _)| *distance <= most)
        .min()
        .map(|(_, c)| c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_what_the_grammar_says() {
        for good in ["a", "0", "web01", "on-call", "a-", &"a".repeat(32)] {
            assert_eq!(good.parse::<Name>().map(|n| n.to_string()), Ok(good.to_owned()));
        }
        assert_eq!("".parse::<Name>(), Err(NameError::Empty));
        assert_eq!("-a".parse::<Name>(), Err(NameError::Start));
        assert_eq!("a".repeat(33).parse::<Name>(), Err(NameError::TooLong));
        for bad in ['W', '_', '.', ' ', '*', '@', '\0', '\n'] {
            assert_eq!(format!("a{bad}").parse::<Name>(), Err(NameError::Character(bad)));
        }
    }

    #[test]
    fn a_letter_that_only_looks_latin_is_refused_by_its_number() {
        let error = "web\u{430}".parse::<Name>().expect_err("Cyrillic a");
        assert!(error.to_string().contains("U+0430"), "{error}");
    }

    #[test]
    fn a_host_name_becomes_its_first_label_in_lower_case() {
        fn name(hostname: &str) -> Option<String> {
            Name::from_hostname(hostname).map(|name| name.0)
        }
        assert_eq!(name("Web_01.example.com").as_deref(), Some("web-01"));
        assert_eq!(name("büro").as_deref(), Some("b-ro"));
        assert_eq!(name(&"x".repeat(64)).map(|n| n.len()), Some(32));
        assert_eq!(name("localhost"), None);
        assert_eq!(name("status.example.com"), None);
        assert_eq!(name(""), None);
        assert_eq!(name("___"), None);
    }

    #[test]
    fn the_nearest_word_is_found_and_a_far_one_is_not() {
        let keys = ["allow_from", "allow_shell", "username", "users"];
        let near = |w| nearest(w, keys.into_iter());
        assert_eq!(near("allow_form"), Some("allow_from"));
        assert_eq!(near("user_name"), Some("username"));
        assert_eq!(near("allowfrom"), Some("allow_from"));
        assert_eq!(near("colour"), None);
        assert_eq!(near(&"x".repeat(1_000_000)), None);
    }

    #[test]
    fn users_are_named_as_unix_names_them() {
        let long = "a".repeat(MAX_USER_BYTES);
        for good in ["root", "www-data", "_apt", "j.doe", "Admin", "0day", "svc$", &long] {
            assert!(is_user(good), "{good}");
        }
        for bad in
            ["", "-x", "a b", "a/b", "grün", ".", "$", "a$b", "a:b", "a\"b", "a'b", "*", "a\n", &(long.clone() + "a")]
        {
            assert!(!is_user(bad), "{bad}");
        }
    }

    #[test]
    fn users_of_a_domain_are_named_as_directory_services_name_them() {
        for good in ["alice@corp.example.com", "CORP\\alice", "CORP\\svc$", "alice@corp$"] {
            assert!(is_user(good), "{good}");
        }
        for bad in ["@corp", "alice@", "\\alice", "CORP\\", "alice@$", "@", "\\"] {
            assert!(!is_user(bad), "{bad}");
        }
        assert_eq!((quoted_user("a@b").as_str(), quoted_user("C\\a").as_str()), ("\"a@b\"", "'C\\a'"));
    }

    #[test]
    fn a_number_in_whichever_form_is_no_user() {
        for bad in ["0", "1000", "00", "+0", "-0", " 0", "0 ", " root", "root ", "root\0", "0\0", "0$", "0x0 ", "١"] {
            assert!(!is_user(bad), "{bad:?}");
        }
    }
}

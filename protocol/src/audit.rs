//! A line of the audit: one before the start of every attempt, refused ones too, and one at its end; and one before whatever
//! a caller does with a session of another machine.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::escape::json_len;
use crate::session::MAX_REASON_BYTES;

/// Bounds what a line keeps of a command's words, in bytes of the line. Of longer ones the length and the hash are there.
pub const MAX_LINE_WORDS_BYTES: usize = 4096;
/// Bounds what a line keeps of the names of environment additions, in bytes of the line.
const MAX_LINE_ENV_BYTES: usize = 1024;
/// Bounds the reason in a line, in bytes of the line: one that is allowed fits, whatever has to be escaped of it.
const MAX_LINE_REASON_BYTES: usize = 6 * MAX_REASON_BYTES;
/// Bounds the outcome in a line, in bytes of the line.
const MAX_LINE_OUTCOME_BYTES: usize = 1536;
/// Bounds each other text in a line, in bytes of the line.
const MAX_LINE_NAME_BYTES: usize = 256;
/// Bounds a line, in bytes, its end included: all of the above, and numbers.
pub const MAX_LINE_BYTES: usize = 16 * 1024;
/// Stands at the end of a text that was cut off.
const CUT_MARK: char = '…';

/// Says how many older parts of the audit log are kept, besides the one being written.
pub const KEPT: u32 = 5;

/// Holds one line of `audit.jsonl`. Standard input and environment values are never in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When the line was written, milliseconds since the epoch.
    pub at_ms: u64,
    /// What the line is about.
    pub event: Event,
    /// The alias of the cluster here.
    pub cluster: String,
    /// The session's id, 32 hexadecimal digits; empty for `left-out`.
    pub session: String,
    /// The caller's name in the config at that time; absent when it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub who: Option<String>,
    /// The caller's id52.
    pub id52: String,
    /// The id52 of the session's owner, where that is not the caller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// The owner's name in the config at that time; absent when it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner_name: Option<String>,
    /// The words as given; bytes that are not UTF-8 as `\xNN`.
    pub words: Vec<String>,
    /// How long the words are in all, each with a NUL byte after it; only where `words` has not all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub words_bytes: Option<u64>,
    /// The BLAKE3 hash of the words as they were sent, each with a NUL byte after it, in hexadecimal digits; only where
    /// `words` has not all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub words_blake3: Option<String>,
    /// The named command, when the words named one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub named: Option<String>,
    /// The user it runs as; absent when nothing was granted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Names of environment additions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// How many environment additions there are in all; only where `env` has not all of their names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env_count: Option<u64>,
    /// The caller's reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The signal that was sent, by its number on Linux, for `signal` and `kill`; absent = the session was ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<u8>,
    /// The exit code that the caller gets, for `end`, `refused` and `left-out`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<u8>,
    /// What ended it, or why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// How many refused attempts a line stands for, for `left-out`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Bytes of standard output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout_bytes: Option<u64>,
    /// Bytes of standard error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr_bytes: Option<u64>,
    /// From start to end, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
}

impl Entry {
    /// Makes a line that says only what happened, to which session of which cluster, by whom; the time is still 0, and
    /// what else is known is put in.
    #[must_use]
    pub fn new(event: Event, cluster: &str, session: String, id52: String) -> Self {
        Self {
            at_ms: 0,
            event,
            cluster: cluster.to_owned(),
            session,
            who: None,
            id52,
            owner: None,
            owner_name: None,
            words: Vec::new(),
            words_bytes: None,
            words_blake3: None,
            named: None,
            user: None,
            env: Vec::new(),
            env_count: None,
            reason: None,
            signal: None,
            code: None,
            outcome: None,
            count: None,
            stdout_bytes: None,
            stderr_bytes: None,
            duration_ms: None,
        }
    }

    /// Puts in a command's words, up to what a line keeps. Where that is not all, adds the length and the hash.
    pub fn set_words(&mut self, words: &[ByteBuf]) {
        let mut room = Room(MAX_LINE_WORDS_BYTES);
        let mut whole = true;
        self.words = Vec::new();
        for word in words {
            // No byte takes less than one in the line: what is beyond these would be cut off again.
            let head = word.get(..word.len().min(room.0 + 4)).unwrap_or_default();
            let Some((text, fits)) = room.take(&printable(head)) else {
                whole = false;
                break;
            };
            self.words.push(text);
            if !fits {
                whole = false;
                break;
            }
        }
        (self.words_bytes, self.words_blake3) = (None, None);
        if !whole {
            let mut hash = blake3::Hasher::new();
            for word in words {
                hash.update(word).update(&[0]);
            }
            self.words_bytes = Some(hash.count());
            self.words_blake3 = Some(hash.finalize().to_hex().to_string());
        }
    }

    /// Cuts every text down to what a line keeps of it, so that the line has at most [`MAX_LINE_BYTES`].
    pub fn bound(&mut self) {
        let mut room = Room(MAX_LINE_WORDS_BYTES);
        let kept: Vec<String> = self.words.iter().map_while(|word| room.take(word)).map(|(word, _)| word).collect();
        self.words = kept;
        let mut room = Room(MAX_LINE_ENV_BYTES);
        let kept: Vec<String> = self.env.iter().map_while(|name| room.take(name)).map(|(name, _)| name).collect();
        if kept != self.env {
            self.env_count.get_or_insert(self.env.len() as u64);
            self.env = kept;
        }
        cut(self.reason.as_mut(), MAX_LINE_REASON_BYTES);
        cut(self.outcome.as_mut(), MAX_LINE_OUTCOME_BYTES);
        let names = [Some(&mut self.cluster), Some(&mut self.session), Some(&mut self.id52)];
        let more = [&mut self.who, &mut self.owner, &mut self.owner_name, &mut self.named, &mut self.user];
        let hash = self.words_blake3.as_mut();
        for name in names.into_iter().chain(more.map(Option::as_mut)).chain([hash]) {
            cut(name, MAX_LINE_NAME_BYTES);
        }
    }
}

/// Counts the bytes of a line that are left for texts.
struct Room(usize);

impl Room {
    /// Takes one element of a list of texts, cut off where it does not fit as a whole; says whether it did. None when
    /// there is no room for any more.
    fn take(&mut self, text: &str) -> Option<(String, bool)> {
        const QUOTES_AND_COMMA: usize = 3;
        self.0 = self.0.checked_sub(QUOTES_AND_COMMA)?;
        let (kept, length) = prefix(text, self.0);
        if kept.len() == text.len() {
            self.0 -= length;
            return Some((text.to_owned(), true));
        }
        self.0 = 0;
        Some((shortened(kept), false))
    }
}

/// Returns the longest beginning that takes no more than these bytes in a line, and how many it takes.
fn prefix(text: &str, most: usize) -> (&str, usize) {
    let (mut end, mut length) = (0, 0);
    for c in text.chars() {
        if length + json_len(c) > most {
            break;
        }
        length += json_len(c);
        end += c.len_utf8();
    }
    (text.get(..end).unwrap_or_default(), length)
}

/// Marks a text as cut off. One that was cut off before has the mark already.
fn shortened(kept: &str) -> String {
    let mut text = kept.trim_end_matches(CUT_MARK).to_owned();
    text.push(CUT_MARK);
    text
}

fn cut(text: Option<&mut String>, most: usize) {
    if let Some(text) = text {
        let (kept, _) = prefix(text, most);
        if kept.len() < text.len() {
            *text = shortened(kept);
        }
    }
}

/// Says what a line of the audit is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Event {
    /// It was allowed and is about to start.
    Start,
    /// It ended, or could not be started after all.
    End,
    /// It was refused.
    Refused,
    /// One caller was refused too often in a short time for a line each: this one counts the attempts that have none.
    /// It belongs to no session.
    #[serde(rename = "left-out")]
    LeftOut,
    /// The caller may follow another machine's session, and is about to.
    Attach,
    /// The caller may take over another machine's session, and is about to.
    #[serde(rename = "take-over")]
    TakeOver,
    /// The first input to another machine's session, or the first closing of its input or output, over one attachment.
    Control,
    /// A signal to the command of another machine's session.
    Signal,
    /// Another machine's session is about to be ended, or sent TERM or KILL.
    Kill,
}

/// Bytes as text: UTF-8 as it is, other bytes as `\xNN`, a backslash doubled so that no two words look alike.
pub fn printable(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c == '\\' {
                out.push_str("\\\\");
            } else {
                out.push(c);
            }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

#[cfg(test)]
mod tests;

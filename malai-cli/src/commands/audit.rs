//! `malai audit`.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use malai_daemon::store::lines::{Line, Lines};
use malai_protocol::audit::{Entry, Event, KEPT, MAX_LINE_BYTES, printable};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::Home;
use serde::Serialize;

use super::Context;
use crate::output::Output;
use crate::{duration, escape, timestamp};

/// Bounds how much of a broken line is shown, in bytes.
const MAX_SHOWN_LINE_BYTES: usize = 200;

/// Show which commands ran on this machine, and which were refused
///
/// Also shows what machines did with other machines' sessions: attach, take-over, control (it typed), signal, kill. The
/// oldest line comes first; all audit files of this home are read. With --json it prints one object per line.
#[derive(Debug, clap::Args)]
pub(crate) struct Audit {
    /// Only lines since then: 30m, 2h, 7d, or a time in UTC such as 2026-01-31T08:00
    #[arg(long, value_name = "DURATION|TIME", value_parser = parse_since)]
    since: Option<u64>,
}

fn parse_since(text: &str) -> Result<u64, String> {
    if let Some(ms) = timestamp::parse(text) {
        return Ok(ms);
    }
    let ago = duration::parse(text).map_err(|e| format!("{e}; or a time such as 2026-01-31T08:00"))?;
    Ok(timestamp::now_ms().saturating_sub(duration::millis(ago)))
}

/// Describes a line that is no entry, for `--json`. Its `event` tells it from entries.
#[derive(Debug, Serialize)]
struct Broken {
    event: &'static str,
    file: String,
    line: u64,
    bytes: u64,
    text: String,
}

impl Audit {
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        let files = files(&cx.home);
        if files.is_empty() {
            cx.out.note("no command has run on this machine, and none was refused");
        }
        let mut sound = true;
        for path in &files {
            // One part that cannot be read hides nothing of the others.
            sound &= show(cx.out, path, self.since.unwrap_or(0)).unwrap_or_else(|failure| {
                cx.out.explain(&failure);
                false
            });
        }
        Ok(u8::from(!sound))
    }
}

/// Returns the audit files that exist, oldest first.
fn files(home: &Home) -> Vec<PathBuf> {
    let older = (1..=KEPT).rev().map(|number| home.audit_part(number));
    older.chain([home.audit()]).filter(|path| path.exists()).collect()
}

/// Shows one file, and tells whether all its lines could be read.
fn show(out: Output, path: &Path, since_ms: u64) -> Result<bool, Failure> {
    let fail = |e: std::io::Error| {
        Failure::new(Kind::Internal, format!("{} cannot be read: {e}", path.display()))
            .hint(format!("see what it is, and whose: ls -l {}", path.display()))
    };
    if !std::fs::metadata(path).map_err(fail)?.is_file() {
        return Err(fail(std::io::Error::other("it is not a regular file")));
    }
    let mut lines = Lines::new(BufReader::new(File::open(path).map_err(fail)?), MAX_LINE_BYTES);
    let (mut buffer, mut broken) = (Vec::new(), 0);
    while let Some(line) = lines.next(&mut buffer).map_err(fail)? {
        let entry = if line.is_whole() { serde_json::from_slice::<Entry>(line.bytes).ok() } else { None };
        match entry {
            Some(entry) if entry.at_ms < since_ms => {}
            Some(entry) if out.json => out.document(&entry)?,
            Some(entry) => out.row(&text(&entry))?,
            None => {
                broken += 1;
                let found = Broken::new(path, &line);
                if out.json { out.document(&found)? } else { out.row(&found.row())? }
            }
        }
    }
    if broken > 0 {
        let lines = if broken == 1 { "line" } else { "lines" };
        out.note(&format!("error: cannot read {broken} {lines} of {} as audit entries", path.display()));
    }
    Ok(broken == 0)
}

impl Broken {
    fn new(path: &Path, line: &Line<'_>) -> Self {
        let shown = line.bytes.get(..MAX_SHOWN_LINE_BYTES).unwrap_or(line.bytes);
        let mut text = printable(shown);
        if shown.len() as u64 != line.length {
            text.push('…');
        }
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self { event: "broken", file, line: line.number, bytes: line.length, text }
    }

    /// Returns the line for a person.
    fn row(&self) -> String {
        let Self { event, file, line, bytes, text } = self;
        format!("{event}: line {line} of {file}, {bytes} bytes: {}", escape::line(text))
    }
}

/// Writes an entry as a line for a person.
fn text(entry: &Entry) -> String {
    let event = match entry.event {
        Event::Start => "start",
        Event::End => "end",
        Event::Refused => "refused",
        Event::LeftOut => "left-out",
        Event::Attach => "attach",
        Event::TakeOver => "take-over",
        Event::Control => "control",
        Event::Signal => "signal",
        Event::Kill => "kill",
    };
    let short = |id52: &String| id52.chars().take(10).collect();
    let caller = entry.who.clone().unwrap_or_else(|| short(&entry.id52));
    let owner = entry.owner_name.clone().or_else(|| entry.owner.as_ref().map(short));
    let session: String = if entry.session.is_empty() { "-" } else { &entry.session }.chars().take(8).collect();
    let mut parts = vec![
        timestamp::utc(entry.at_ms),
        format!("{session:<8}"),
        format!("{event:<9}"),
        format!("{caller}.{}", entry.cluster),
    ];
    let mut add = |name: &str, value: Option<String>| parts.extend(value.map(|value| format!("{name}={value}")));
    add("owner", owner);
    add("signal", entry.signal.map(|number| number.to_string()));
    add("as", entry.user.clone());
    add("code", entry.code.map(|code| code.to_string()));
    add("by", entry.outcome.as_ref().map(|outcome| escape::words(&[outcome])));
    add("count", entry.count.map(|n| n.to_string()));
    add("out", entry.stdout_bytes.map(|n| n.to_string()));
    add("err", entry.stderr_bytes.map(|n| n.to_string()));
    add("ms", entry.duration_ms.map(|n| n.to_string()));
    add("env", (!entry.env.is_empty()).then(|| escape::words(&[entry.env.join(",")])));
    add("envs", entry.env_count.map(|n| n.to_string()));
    add("reason", entry.reason.as_ref().map(|reason| escape::words(&[reason])));
    add("named", entry.named.clone());
    if entry.owner.is_none() || !entry.words.is_empty() {
        parts.push(format!("-- {}", escape::words(&entry.words)));
    }
    if let (Some(bytes), Some(hash)) = (entry.words_bytes, &entry.words_blake3) {
        parts.push(format!("(cut off: {bytes} bytes, blake3 {hash})"));
    }
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry {
            at_ms: 1_767_225_600_000,
            who: Some("laptop".into()),
            words: vec!["echo".into(), "a b\x1b[2J".into()],
            user: Some("deploy".into()),
            env: vec!["LANG".into()],
            reason: Some("release 7".into()),
            code: Some(0),
            outcome: Some("self".into()),
            stdout_bytes: Some(3),
            stderr_bytes: Some(0),
            duration_ms: Some(12),
            ..Entry::new(
                Event::End,
                "company",
                "0123456789abcdef0123456789abcdef".into(),
                "0123456789abcdefghij".into(),
            )
        }
    }

    #[test]
    fn an_entry_is_one_harmless_line() {
        insta::assert_snapshot!(text(&entry()), @r"2026-01-01T00:00:00Z 01234567 end       laptop.company as=deploy code=0 by=self out=3 err=0 ms=12 env=LANG reason='release 7' -- echo 'a b\x1b[2J'");
        let refused = Entry {
            event: Event::Refused,
            who: None,
            user: None,
            env: Vec::new(),
            reason: None,
            outcome: Some("denied: no rule".into()),
            stdout_bytes: None,
            stderr_bytes: None,
            duration_ms: None,
            code: Some(254),
            ..entry()
        };
        insta::assert_snapshot!(text(&refused), @r"2026-01-01T00:00:00Z 01234567 refused   0123456789.company code=254 by='denied: no rule' -- echo 'a b\x1b[2J'");
    }

    #[test]
    fn what_was_done_with_another_machines_session_says_whose_it_is() {
        let act = Entry {
            event: Event::TakeOver,
            owner: Some("abcdefghijklmnop".into()),
            owner_name: Some("web02".into()),
            words: Vec::new(),
            user: None,
            env: Vec::new(),
            reason: None,
            code: None,
            outcome: None,
            stdout_bytes: None,
            stderr_bytes: None,
            duration_ms: None,
            ..entry()
        };
        assert_eq!(text(&act), "2026-01-01T00:00:00Z 01234567 take-over laptop.company owner=web02");
        let signal = Entry { event: Event::Signal, owner_name: None, signal: Some(10), ..act };
        assert_eq!(text(&signal), "2026-01-01T00:00:00Z 01234567 signal    laptop.company owner=abcdefghij signal=10");
    }

    #[test]
    fn of_words_that_were_cut_off_the_length_and_the_hash_are_shown() {
        let cut =
            Entry { words: vec!["aa…".into()], words_bytes: Some(9000), words_blake3: Some("0f".into()), ..entry() };
        assert!(text(&cut).ends_with("-- 'aa…' (cut off: 9000 bytes, blake3 0f)"), "{}", text(&cut));
    }

    #[test]
    fn a_broken_line_is_shown_as_such_escaped_and_cut() {
        let bytes = [b"\xffa\0\x1b[2J\\x", &b"y".repeat(300)[..]].concat();
        let line = Line { number: 7, at: 0, length: 1 << 30, bytes: &bytes, ended: true };
        let row = Broken::new(Path::new("/home/audit.jsonl.2"), &line).row();
        let start = "broken: line 7 of audit.jsonl.2, 1073741824 bytes: \\xffa\\x00\\x1b[2J\\\\xyyy";
        assert!(row.starts_with(start) && row.ends_with("y…") && row.len() < 300, "{row}");
    }

    #[test]
    fn rotated_files_come_oldest_first() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["audit.jsonl", "audit.jsonl.2", "audit.jsonl.5", "audit.jsonl.1", "audit.jsonl.tmp", "other"] {
            std::fs::write(dir.path().join(name), "").expect("writes");
        }
        let found = files(&Home::new(dir.path()));
        let names: Vec<_> = found.iter().map(|p| p.file_name().expect("a name").to_str().expect("text")).collect();
        assert_eq!(names, ["audit.jsonl.5", "audit.jsonl.2", "audit.jsonl.1", "audit.jsonl"]);
    }

    #[test]
    fn since_is_a_span_or_a_time() {
        assert_eq!(parse_since("2026-01-01"), Ok(1_767_225_600_000));
        assert!(parse_since("1h").expect("a span") < timestamp::now_ms());
        assert!(parse_since("yesterday").is_err());
    }
}

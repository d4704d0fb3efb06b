//! Start lines without their end lines, as a daemon or an executor leaves them that was killed.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};

use malai_protocol::audit::{Entry, Event, KEPT};
use malai_protocol::home::Home;
use malai_protocol::plan::SessionName;
use serde::Deserialize;

/// The longest line that is read: the largest request, with each of its bytes written as `\\xNN`.
const MAX_LINE: u64 = 16 * 1024 * 1024;

/// What the audit says of the sessions that an executor tells of, and of those that nobody knows.
#[derive(Debug, Default)]
pub(crate) struct Unended {
    /// Sessions that were asked for, whose end line is there.
    pub(crate) written: HashSet<SessionName>,
    /// Start lines of other sessions, without an end line.
    pub(crate) starts: Vec<Entry>,
}

/// The part of a line that says whose it is.
#[derive(Deserialize)]
struct Head<'a> {
    event: Event,
    #[serde(borrow)]
    session: Cow<'a, str>,
    #[serde(borrow)]
    id52: Cow<'a, str>,
}

/// Reads all parts of the audit, the oldest first: `live` sessions are owed no end yet, and of `ended` ones it is asked
/// whether it is there. Blocks.
///
/// # Errors
/// What the disk says.
pub(crate) fn unended(home: &Home, live: &[SessionName], ended: &[SessionName]) -> io::Result<Unended> {
    let mut files = Vec::new();
    for path in (1..=KEPT).rev().map(|part| home.audit_part(part)).chain([home.audit()]) {
        match File::open(path) {
            // Anything else has no end that can be read to.
            Ok(file) if file.metadata()?.is_file() => files.push(file),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    // Where a start line is, by its session: the lines themselves may be long. A session has one of each.
    let mut starts: HashMap<String, (usize, u64)> = HashMap::new();
    let mut asked: HashMap<String, (SessionName, bool)> =
        ended.iter().map(|name| (key(&name.id.to_string(), &name.caller.to_string()), (*name, false))).collect();
    for (number, file) in files.iter().enumerate() {
        each_line(file, |at, line| {
            let Ok(Head { event, session, id52 }) = serde_json::from_slice(line) else { return };
            let is_end = match event {
                Event::Start => false,
                Event::End => true,
                Event::Refused | Event::LeftOut => return,
            };
            let key = key(&session, &id52);
            if let Some((_, is_written)) = asked.get_mut(&key) {
                *is_written = is_end;
            } else if is_end {
                starts.remove(&key);
            } else {
                starts.insert(key, (number, at));
            }
        })?;
    }
    for name in live {
        starts.remove(&key(&name.id.to_string(), &name.caller.to_string()));
    }
    let mut places: Vec<_> = starts.into_values().collect();
    places.sort_unstable();
    let lines = places.into_iter().map(|(number, at)| read_at(files.get(number), at));
    Ok(Unended {
        written: asked.into_values().filter_map(|(name, is_written)| is_written.then_some(name)).collect(),
        starts: lines.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect(),
    })
}

fn key(session: &str, id52: &str) -> String {
    [session, id52].concat()
}

fn each_line(file: &File, mut take: impl FnMut(u64, &[u8])) -> io::Result<()> {
    let mut file = BufReader::with_capacity(256 * 1024, file);
    let (mut at, mut line) = (0, Vec::new());
    loop {
        line.clear();
        let length = (&mut file).take(MAX_LINE).read_until(b'\n', &mut line)?;
        if length == 0 {
            return Ok(());
        }
        take(at, &line);
        at += length as u64;
    }
}

fn read_at(file: Option<&File>, at: u64) -> io::Result<Option<Entry>> {
    let Some(mut file) = file else { return Ok(None) };
    file.seek(SeekFrom::Start(at))?;
    let mut line = Vec::new();
    BufReader::new(file).take(MAX_LINE).read_until(b'\n', &mut line)?;
    Ok(serde_json::from_slice(&line).ok())
}

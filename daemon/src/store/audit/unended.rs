//! Start lines without their end lines, as a daemon or an executor leaves them that was killed.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufReader, Seek, SeekFrom};

use malai_protocol::audit::{Entry, Event, KEPT};
use malai_protocol::home::Home;
use malai_protocol::plan::SessionName;
use serde::Deserialize;

use crate::store::lines::Lines;

/// Bounds a line that is read, in bytes. None that is written is nearly as long.
const MAX_LINE_BYTES: usize = 16 * 1024 * 1024;

/// Holds what the audit says of the sessions that an executor reports, and of those that no executor knows.
#[derive(Debug, Default)]
pub(crate) struct Unended {
    /// The sessions among those asked for whose end line is there.
    pub(crate) written: HashSet<SessionName>,
    /// The start lines of other sessions that have no end line.
    pub(crate) starts: Vec<Entry>,
}

/// Reads the part of a line that says to which session it belongs.
#[derive(Deserialize)]
struct Head<'a> {
    event: Event,
    #[serde(borrow)]
    session: Cow<'a, str>,
    #[serde(borrow)]
    id52: Cow<'a, str>,
}

/// Reads all parts of the audit, the oldest first. Leaves out `live` sessions, which need no end line yet, and says of
/// `ended` ones whether their end line is there. Blocks.
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
                _ => return,
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
    let mut lines = Lines::new(BufReader::with_capacity(256 * 1024, file), MAX_LINE_BYTES);
    let mut buffer = Vec::new();
    while let Some(line) = lines.next(&mut buffer)? {
        if line.is_whole() {
            take(line.at, line.bytes);
        }
    }
    Ok(())
}

fn read_at(file: Option<&File>, at: u64) -> io::Result<Option<Entry>> {
    let Some(mut file) = file else { return Ok(None) };
    file.seek(SeekFrom::Start(at))?;
    let (mut lines, mut buffer) = (Lines::new(BufReader::new(file), MAX_LINE_BYTES), Vec::new());
    Ok(lines.next(&mut buffer)?.and_then(|line| serde_json::from_slice(line.bytes).ok()))
}

#[cfg(test)]
mod tests {
    use malai_protocol::id::{MachineId, SessionId};
    use proptest::prelude::*;

    use super::*;
    use crate::store::keys::MachineKey;

    fn caller() -> MachineId {
        MachineKey::generate().expect("a key").id()
    }

    fn name(caller: MachineId, number: u8) -> SessionName {
        SessionName { caller, id: SessionId::from_bytes([number; 16]) }
    }

    fn line(event: Event, name: &SessionName) -> String {
        let event = if event == Event::Start { "start" } else { "end" };
        let SessionName { caller, id } = name;
        format!(
            "{{\"at_ms\":1,\"event\":\"{event}\",\"cluster\":\"c\",\"session\":\"{id}\",\"id52\":\"{caller}\",\
             \"words\":[\"a \\\"quoted\\\" word\"]}}\n"
        )
    }

    fn home() -> (tempfile::TempDir, Home) {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home::new(dir.path());
        (dir, home)
    }

    #[test]
    fn a_start_is_known_by_its_caller_too_and_lines_that_do_not_read_are_passed_over() {
        let (_dir, home) = home();
        let (one, other) = (name(caller(), 1), name(caller(), 1));
        let spoilt = "{\"event\":\"start\",\"session\":7}\nno JSON\n\u{1}\n";
        let half = line(Event::End, &one).split_at(40).0.to_owned();
        let text =
            [line(Event::Start, &one), spoilt.into(), line(Event::Start, &other), line(Event::End, &other), half];
        std::fs::write(home.audit(), text.concat()).expect("written");
        let found = unended(&home, &[], &[]).expect("reads");
        let told: Vec<_> = found.starts.iter().map(|start| (start.id52.clone(), start.session.clone())).collect();
        assert_eq!(told, [(one.caller.to_string(), one.id.to_string())]);
        assert!(unended(&home, &[one], &[]).expect("reads").starts.is_empty(), "it lives");
    }

    #[test]
    fn an_audit_that_is_not_there_or_no_file_has_no_lines() {
        let (_dir, home) = home();
        let asked = [name(caller(), 1)];
        for _ in 0..2 {
            let found = unended(&home, &[], &asked).expect("reads");
            assert!(found.starts.is_empty() && found.written.is_empty());
            drop(std::os::unix::fs::symlink("/dev/full", home.audit()));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

        /// An id may be used again when its session is over; the parts break the lines anywhere.
        #[test]
        fn what_is_open_is_what_the_last_line_leaves_open(
            lines in proptest::collection::vec((0..6u8, any::<bool>()), 0..40),
            breaks in proptest::collection::vec(0..40usize, 0..KEPT as usize),
        ) {
            let (_dir, home) = home();
            let caller = caller();
            let mut parts = vec![String::new()];
            let mut open = HashMap::new();
            for (at, (number, ends)) in lines.iter().enumerate() {
                if breaks.contains(&at) && parts.len() <= KEPT as usize {
                    parts.push(String::new());
                }
                let event = if *ends { Event::End } else { Event::Start };
                parts.last_mut().expect("one").push_str(&line(event, &name(caller, *number)));
                open.insert(name(caller, *number), !ends);
            }
            for (part, text) in parts.iter().rev().enumerate() {
                let path = if part == 0 { home.audit() } else { home.audit_part(u32::try_from(part).expect("few")) };
                std::fs::write(path, text).expect("written");
            }
            let (live, asked) = (name(caller, 4), name(caller, 5));
            let found = unended(&home, &[live], &[asked]).expect("reads");
            prop_assert_eq!(found.written.contains(&asked), open.remove(&asked) == Some(false));
            open.remove(&live);
            let mut expected: Vec<_> =
                open.into_iter().filter(|(_, open)| *open).map(|(name, _)| name.id.to_string()).collect();
            let mut starts: Vec<_> = found.starts.into_iter().map(|start| start.session).collect();
            expected.sort();
            starts.sort();
            prop_assert_eq!(starts, expected);
        }
    }
}

//! `malai kill`.

use malai_protocol::failure::{EXIT_NOT_BY_ITSELF, Failure};
use malai_protocol::id::SessionId;
use malai_protocol::session::{EndedBy, ExitRecord};
use serde::Serialize;

use super::Context;
use super::explain::state_of;
use super::place::SessionPlace;
use crate::client;
use crate::session::{self, Killed, SessionName};

/// Names the signals in the order of their numbers on Linux, from 1 on: those numbers travel.
const SIGNAL_NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];
/// Is the highest number of a signal on Linux.
const MAX_SIGNAL_NUMBER: u8 = 64;

/// End a session with all its processes, or signal its command
///
/// To end another machine's session, or to send it TERM or KILL, this machine must be in the target's `allow_sessions` or
/// `allow_control`. Any other signal needs `allow_control`.
#[derive(Debug, clap::Args)]
#[command(allow_missing_positional = true)]
pub(crate) struct Kill {
    /// Only send this signal to the command: TERM, SIGTERM or 15
    #[arg(long, value_name = "NAME|NUMBER", value_parser = parse_signal)]
    signal: Option<u8>,
    #[command(flatten)]
    place: SessionPlace,
}

/// Reads a name, with or without `SIG`, or a number.
fn parse_signal(text: &str) -> Result<u8, String> {
    if text.bytes().all(|b| b.is_ascii_digit()) {
        let number = text.parse().ok().filter(|number| (1..=MAX_SIGNAL_NUMBER).contains(number));
        return number.ok_or_else(|| format!("a signal's number is 1 to {MAX_SIGNAL_NUMBER}"));
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = SIGNAL_NAMES.iter().zip(1..).find(|(known, _)| **known == name).map(|(_, number)| number);
    number.ok_or_else(|| "no such signal: a name is TERM or SIGTERM, a number 15".into())
}

/// Is the answer of `malai kill --json`.
#[derive(Serialize)]
struct Done<'a> {
    session: String,
    target: String,
    id: SessionId,
    /// The signal that was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<u8>,
    /// How it ended, where it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    record: Option<&'a ExitRecord>,
}

impl Kill {
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        let typed = self.place.typed()?;
        let (name, killed) = client::block_on(async {
            let (name, owner) = self.place.find(cx, &typed).await?;
            let mut dialler = client::dialler(&cx.home, cx.out);
            let killed = session::kill(&mut dialler, &name, owner, self.signal, self.place.connect_timeout).await?;
            Ok((name, killed))
        })?;
        let record = match &killed {
            Killed::Signalled => None,
            Killed::Ended(record) => Some(record),
        };
        let left = record.is_some_and(|record| record.left > 0);
        record.iter().for_each(|record| cx.out.note(&words(&name, record)));
        if left {
            cx.out.note(&format!("hint: on {}, as root: kill -9 with these process ids", name.target));
        }
        if cx.out.json {
            let (session, target) = (name.to_string(), name.target.to_string());
            cx.out.document(&Done { session, target, id: name.id, signal: self.signal, record })?;
        }
        Ok(if left { EXIT_NOT_BY_ITSELF } else { 0 })
    }
}

fn words(name: &SessionName, record: &ExitRecord) -> String {
    match record.ended_by {
        _ if record.left > 0 => {
            let reason = record.reason.as_deref().unwrap_or("they are not named");
            format!("{name} was ended, but some of its processes are left ({reason})")
        }
        EndedBy::Killed => format!("{name} is ended"),
        _ => format!("{name} had already ended: {}", state_of(record)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use malai_protocol::session::Status;

    #[test]
    fn a_signal_is_a_name_in_either_case_or_a_number() {
        for text in ["TERM", "term", "SIGTERM", "sigTerm", "15", "015"] {
            assert_eq!(parse_signal(text), Ok(15), "{text}");
        }
        assert_eq!(parse_signal("usr1"), Ok(10));
        assert_eq!(parse_signal("64"), Ok(64));
        for text in ["", "0", "65", "256", "-9", "+9", "SIG", "SIG15", "NONE", "TERM "] {
            assert!(parse_signal(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_was_over_before_is_not_called_ended_by_this() {
        let name = SessionName { target: "web01".parse().expect("a target"), id: SessionId::from_bytes([0; 16]) };
        let (status, ended_by) = (Status::Exited { code: 3 }, EndedBy::Itself);
        let record = ExitRecord {
            status,
            ended_by,
            stdout_bytes: 0,
            stderr_bytes: 0,
            duration_ms: 0,
            output_open: false,
            reason: None,
            left: 0,
        };
        assert_eq!(words(&name, &record), format!("{name} had already ended: exited 3"));
        let killed = ExitRecord { ended_by: EndedBy::Killed, ..record };
        assert_eq!(words(&name, &killed), format!("{name} is ended"));
        let left = ExitRecord { left: 2, reason: Some("by me; 2 processes are left: 7 a, 8 b".into()), ..killed };
        let but = "was ended, but some of its processes are left (by me; 2 processes are left: 7 a, 8 b)";
        assert_eq!(words(&name, &left), format!("{name} {but}"));
    }
}

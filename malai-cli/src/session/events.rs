//! The objects of `malai exec --json` and `malai attach --json`, one a line on standard output. docs/exit-codes.md documents them.

use bytes::Bytes;
use malai_protocol::failure::Failure;
use malai_protocol::session::{ExitRecord, Output, Reached, Started};
use serde::Serialize;

/// Is one object.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub(crate) enum SessionEvent<'a> {
    /// The request is on its way, over this path.
    Reached {
        target: &'a str,
        #[serde(flatten)]
        reached: &'a Reached,
    },
    /// The command runs.
    Started {
        target: &'a str,
        #[serde(flatten)]
        started: &'a Started,
    },
    /// Output, cut anywhere.
    Stdout(Chunk<'a>),
    /// Error output, cut anywhere.
    Stderr(Chunk<'a>),
    /// The machine is not there, and malai waits for it.
    Waiting { target: &'a str },
    /// The connection is lost, and the command goes on.
    Lost { target: &'a str },
    /// The command is followed again.
    Back {
        target: &'a str,
        /// How long it was not followed.
        after_ms: u64,
    },
    /// The session belongs to another machine, and this one may only watch it.
    Watching { target: &'a str },
    /// Output is missing here: it is not kept any more.
    Missing {
        target: &'a str,
        /// How many bytes.
        bytes: u64,
    },
    /// This process leaves the session, which goes on; last.
    Left {
        target: &'a str,
        /// What `malai` exits with.
        code: u8,
    },
    /// The command ended; last.
    Exit {
        target: &'a str,
        /// What `malai` exits with.
        code: u8,
        #[serde(flatten)]
        record: &'a ExitRecord,
    },
    /// There is no result; last.
    Error {
        target: &'a str,
        /// What `malai` exits with.
        code: u8,
        error: &'a Failure,
    },
}

/// Holds bytes: as text where they are UTF-8, else in base64.
#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Chunk<'a> {
    /// `{"text": …}`
    Text(&'a str),
    /// `{"base64": …}`
    Base64(String),
}

impl<'a> SessionEvent<'a> {
    /// Returns the object for a piece of output.
    pub(crate) fn output(stream: Output, bytes: &'a [u8]) -> Self {
        let chunk = match std::str::from_utf8(bytes) {
            Ok(text) => Chunk::Text(text),
            Err(_) => Chunk::Base64(data_encoding::BASE64.encode(bytes)),
        };
        match stream {
            Output::Stdout => Self::Stdout(chunk),
            Output::Stderr => Self::Stderr(chunk),
        }
    }

    /// Returns the object as a line.
    pub(crate) fn line(&self) -> Result<Bytes, Failure> {
        crate::output::json_line(self).map(Bytes::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use malai_protocol::failure::Kind;
    use malai_protocol::id::Incarnation;
    use malai_protocol::session::{EndedBy, Status};

    fn line(event: &SessionEvent<'_>) -> String {
        String::from_utf8(event.line().expect("json").to_vec()).expect("text")
    }

    #[test]
    fn the_objects_are_as_documented() {
        let started = Started {
            incarnation: Incarnation::from_bytes([1; 16]),
            hostname: "web01".into(),
            pid: 7,
            user: "u".into(),
            grace_ms: None,
        };
        let record = ExitRecord {
            status: Status::Exited { code: 3 },
            ended_by: EndedBy::Itself,
            stdout_bytes: 1,
            stderr_bytes: 2,
            duration_ms: 4,
            output_open: false,
            reason: None,
            left: 0,
        };
        let failure = Failure::new(Kind::Denied, "no").hint("ask");
        let reached = Reached {
            path: "direct 192.0.2.7:4001".into(),
            rtt_us: 1200,
            found_by: Some("directory (by db01)".into()),
        };
        let all = [
            line(&SessionEvent::Reached { target: "web01.c", reached: &reached }),
            line(&SessionEvent::Started { target: "web01.c", started: &started }),
            line(&SessionEvent::output(Output::Stdout, b"hi\n\x1b")),
            line(&SessionEvent::output(Output::Stderr, b"\xff")),
            line(&SessionEvent::Waiting { target: "web01.c" }),
            line(&SessionEvent::Lost { target: "web01.c" }),
            line(&SessionEvent::Back { target: "web01.c", after_ms: 12_345 }),
            line(&SessionEvent::Watching { target: "web01.c" }),
            line(&SessionEvent::Missing { target: "web01.c", bytes: 9 }),
            line(&SessionEvent::Left { target: "web01.c", code: 130 }),
            line(&SessionEvent::Exit { target: "web01.c", code: 3, record: &record }),
            line(&SessionEvent::Error { target: "web01.c", code: 254, error: &failure }),
        ];
        insta::assert_snapshot!(all.concat(), @r#"
        {"event":"reached","target":"web01.c","path":"direct 192.0.2.7:4001","rtt_us":1200,"found_by":"directory (by db01)"}
        {"event":"started","target":"web01.c","incarnation":"01010101010101010101010101010101","hostname":"web01","pid":7,"user":"u"}
        {"event":"stdout","text":"hi\n\u001b"}
        {"event":"stderr","base64":"/w=="}
        {"event":"waiting","target":"web01.c"}
        {"event":"lost","target":"web01.c"}
        {"event":"back","target":"web01.c","after_ms":12345}
        {"event":"watching","target":"web01.c"}
        {"event":"missing","target":"web01.c","bytes":9}
        {"event":"left","target":"web01.c","code":130}
        {"event":"exit","target":"web01.c","code":3,"status":{"exited":{"code":3}},"ended_by":"self","stdout_bytes":1,"stderr_bytes":2,"duration_ms":4,"output_open":false}
        {"event":"error","target":"web01.c","code":254,"error":{"kind":"denied","message":"no","hint":"ask"}}
        "#);
    }
}

//! The command of the model: what it is given decides every byte that it writes.

use std::path::PathBuf;

use malai_protocol::plan::{Plan, SessionName};
use malai_protocol::session::{Output, Resend};

use super::super::harness::{Lab, patient, plan};

/// Notes in `$0` that it started and in `$1` what it read, and answers each line on both streams, made longer by `$2`.
const SCRIPT: &str = r#"
echo started >> "$0"
exec 3>> "$1"
while IFS= read -r line; do
    echo "$line" >&3
    echo "o $line$2"
    echo "e $line$2" >&2
done
printf %s "$line" >&3
exit 7
"#;

/// What it exits with after the end of its input.
pub(super) const CODE: u8 = 7;
/// Bytes of one line of its input: a number of seven digits.
pub(super) const LINE: u64 = 8;

/// One command, which may start once.
pub(super) struct Command {
    starts: PathBuf,
    read: PathBuf,
    padding: usize,
}

impl Command {
    /// Its lines are longer by `padding` bytes than they have to be.
    pub(super) fn new(lab: &Lab, name: usize, padding: usize) -> Self {
        let path = |what| lab.dir.path().join(format!("{what}-{name}"));
        Self { starts: path("starts"), read: path("read"), padding }
    }

    pub(super) fn plan(&self, session: SessionName, resend: Option<Resend>) -> Plan {
        let (starts, read) = (self.starts.display().to_string(), self.read.display().to_string());
        let argv = ["/bin/sh", "-c", SCRIPT, &starts, &read, &".".repeat(self.padding)];
        Plan { session, stdin: true, resend, ..patient(plan(&argv)) }
    }

    /// Bytes of one line of one of its streams.
    fn line(&self) -> u64 {
        2 + LINE + self.padding as u64
    }

    /// Bytes that it writes to each stream when it was given so many.
    pub(super) fn answers(&self, given: u64) -> u64 {
        given / LINE * self.line()
    }

    /// What it writes at this offset of a stream.
    pub(super) fn byte(&self, stream: Output, at: u64) -> u8 {
        let (line, column) = (at / self.line(), at % self.line());
        let mark = if stream == Output::Stdout { b'o' } else { b'e' };
        match column {
            0 => mark,
            1 => b' ',
            _ if column == self.line() - 1 => b'\n',
            _ if column - 2 < LINE - 1 => input(line * LINE + column - 2),
            _ => b'.',
        }
    }

    /// It started once at the most, and read nothing but the first `sent` bytes of its input, each once.
    pub(super) fn check(&self, sent: u64) {
        let starts = std::fs::read_to_string(&self.starts).unwrap_or_default();
        assert!(starts.is_empty() || starts == "started\n", "it started more than once: {starts}");
        let read = self.read();
        assert!(read.len() as u64 <= sent, "it read {} bytes of {sent}", read.len());
        let wrong = read.iter().zip(0..).find(|(byte, at)| **byte != input(*at));
        assert_eq!(wrong, None, "it read something else than was sent");
    }

    /// What it read so far.
    pub(super) fn read(&self) -> Vec<u8> {
        std::fs::read(&self.read).unwrap_or_default()
    }
}

/// The byte at this offset of its input, which has no end.
pub(super) fn input(at: u64) -> u8 {
    let (line, column) = (at / LINE, at % LINE);
    if column == LINE - 1 {
        return b'\n';
    }
    let place = u32::try_from(LINE - 2 - column).expect("small");
    b'0' + u8::try_from(line / 10_u64.pow(place) % 10).expect("a digit")
}

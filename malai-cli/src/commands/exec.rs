//! `malai exec`, and what `malai <target>` is short for.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

use malai_daemon::runtime::random::random;
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::{FollowerId, SessionId};
use malai_protocol::peer::DETACH;
use malai_protocol::session::{ExecSpec, MAX_REASON_BYTES, Started};
use malai_protocol::target::Target;
use serde::Serialize;
use serde_bytes::ByteBuf;
use tokio::time::Instant;

use super::Context;
use super::explain::{explain, refuse, unasked};
use super::meant::TypedCommand;
use crate::output::{self, Output};
use crate::session::{
    InputBegin, InputSource, OutputManner, OutputSink, SessionEnd, SessionLimits, SessionName, SessionParts,
    SessionRequest, SessionSubject, SignalStream, follow,
};
use crate::{client, duration};

/// Bounds how long a machine may take to answer, unless a time is given.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Bounds the same for a machine that is known to have gone.
const GONE_TIMEOUT: Duration = Duration::from_secs(1);
/// Is how long `--wait` waits without a time: a hundred years, and so until a signal ends it.
const WAIT_WITHOUT_END: &str = "36500d";

/// Run a command on a machine
///
/// Standard input, output and error, signals and the exit code are the command's own. Everything after the target is the
/// command's argv, word by word; no shell reads it again. The first word may be a named command of the cluster's config.
/// After `--` it is always a program.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "malai [exec] [OPTIONS] <TARGET> [--] <ARGV>...\n       malai [exec] [OPTIONS] -c <STRING> <TARGET>"
)]
pub(crate) struct Exec {
    /// Working directory on the target; a relative one starts at the user's home, which is the default
    #[arg(long, value_name = "DIR", allow_hyphen_values = true)]
    cwd: Option<OsString>,
    /// Set a variable; without a value, to what it is on this machine. May be repeated
    #[arg(long, value_name = "NAME[=VALUE]", allow_hyphen_values = true)]
    env: Vec<OsString>,
    /// User to run as, if the config allows it; the same as USER@ before the target
    #[arg(long)]
    user: Option<String>,
    /// Kill the command after this time, and exit with 252: 500ms, 5s, 1m, 2h
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    timeout: Option<Duration>,
    /// Run STRING by the user's shell on the target
    #[arg(short = 'c', value_name = "STRING", allow_hyphen_values = true)]
    shell: Option<OsString>,
    /// Send no standard input: the command reads /dev/null, and a loop around malai keeps its input
    #[arg(short = 'n')]
    no_stdin: bool,
    /// Read a pipe or terminal at once, without waiting for the command to start
    ///
    /// The first byte arrives one round trip sooner. If nothing starts, the next reader does not get what malai has read.
    #[arg(long, conflicts_with = "no_stdin")]
    eager_stdin: bool,
    /// Also wait until background processes have closed the command's output
    #[arg(long)]
    wait_output: bool,
    /// How long to wait for the machine's answer; default: 10s, or 1s when it is known to be gone
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    connect_timeout: Option<Duration>,
    /// If the machine is offline, wait for it, and then run the command; without a time, until interrupted
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, num_args = 0..=1, require_equals = true, default_missing_value = WAIT_WITHOUT_END)]
    wait: Option<Duration>,
    /// After the connection is lost, how long to try to follow the command again; default: as long as the target waits
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    lost_after: Option<Duration>,
    /// End the command when the connection is lost
    #[arg(long)]
    kill_on_lost: bool,
    /// Leave the command running, and print the session's name, for malai attach, wait and kill
    ///
    /// It ends by itself, by its --timeout, or by malai kill, and not because of this machine or the connection. It gets no
    /// standard input, and the target keeps its output. --detach may also stand directly after the target.
    #[arg(long, conflicts_with = "kill_on_lost")]
    detach: bool,
    /// Why you run this, for the target's audit; at most 1024 bytes
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    reason: Option<String>,
    /// Say how the machine was found, where the command runs, and how it ended
    #[arg(short, long)]
    verbose: bool,
    /// The machine: web01.company, or deploy@web01.company
    target: String,
}

impl Exec {
    /// Runs the command, and returns its exit code. Reports a failure with a hint at what was probably meant.
    ///
    pub(super) fn run(self, cx: &Context, literal: bool, words: Vec<OsString>) -> Result<u8, Failure> {
        let (typed, mut failed) = (words.clone(), None);
        let code = match self.follow(cx, literal, words, &mut failed) {
            Ok(code) => code,
            Err(failure) => cx.out.failure(failed.insert(failure)),
        };
        let typed = TypedCommand::new(&cx.head, &self.target, literal, &typed, self.shell.as_deref());
        let is_cluster = |alias: &str| cx.home.cluster(alias).root().is_dir();
        let meant = typed.zip(failed).and_then(|(typed, failure)| typed.meant(&failure, is_cluster));
        meant.iter().for_each(|meant| cx.out.last_note(&format!("hint: {meant}")));
        Ok(code)
    }

    /// Runs the command, and returns its exit code; `failed` gets a failure that was reported.
    fn follow(
        &self,
        cx: &Context,
        literal: bool,
        words: Vec<OsString>,
        failed: &mut Option<Failure>,
    ) -> Result<u8, Failure> {
        let started = Instant::now();
        let (target, spec) = match self.plan(literal, words) {
            Ok(planned) => planned,
            Err(failure) if self.detach => return Err(failure),
            Err(failure) => return Ok(refuse(cx.out, &self.target, failed.insert(failure))),
        };
        let name = SessionName { target: target.clone(), id: spec.id };
        let outcome = client::block_on(async {
            let begin = if self.eager_stdin { InputBegin::AtOnce } else { InputBegin::Started };
            let source = if spec.stdin { Some(InputSource::stdin(begin)?) } else { None };
            let subject = SessionSubject::Command(Box::new(spec));
            let parts = SessionParts {
                dialler: client::dialler(&cx.home, cx.out),
                request: SessionRequest { target, subject, follower: FollowerId::from_bytes(random()?) },
                signals: SignalStream::listen()?,
                source,
                sink: OutputSink::standard()?,
                // A command that is started and left has one document, not one for each event.
                manner: OutputManner { json: cx.out.json && !self.detach, verbose: self.verbose },
                limits: self.limits(started),
            };
            Ok(follow(parts).await)
        });
        if let Ok(Ok(SessionEnd::Left { signal, .. })) = &outcome {
            cx.out.last_note(&format!("interrupted; nothing was started on {}", name.target));
            return Ok(128u8.saturating_add(*signal));
        }
        if self.detach {
            return outcome
                .and_then(|end| end)
                .map_err(|e| with_name(e, &name))
                .and_then(|end| detached(cx.out, &name, &end));
        }
        let target = name.target.to_string();
        match outcome {
            Err(failure) => Ok(refuse(cx.out, &target, failed.insert(failure))),
            Ok(Err(failure)) => {
                cx.out.last_words(&failure);
                Ok(failed.insert(failure).kind.exit_code())
            }
            Ok(Ok(SessionEnd::Ended(record))) => {
                explain(cx.out, &target, &record, self.timeout, self.verbose);
                Ok(record.exit_code())
            }
            Ok(Ok(SessionEnd::Detached(_) | SessionEnd::Left { .. })) => Err(unasked()),
        }
    }

    fn limits(&self, started: Instant) -> SessionLimits {
        let connect = self.connect_timeout.unwrap_or(CONNECT_TIMEOUT);
        let gone = self.connect_timeout.is_none().then_some(GONE_TIMEOUT);
        let limits = SessionLimits { gone, ..SessionLimits::new(started, connect, self.lost_after) };
        self.wait.map_or(limits, |wait| limits.wait_for_machine(started, wait))
    }

    /// Returns the request that was typed.
    fn plan(&self, literal: bool, words: Vec<OsString>) -> Result<(Target, ExecSpec), Failure> {
        let mut target: Target = self.target.parse()?;
        let user = match (target.user.take(), self.user.clone()) {
            (Some(a), Some(b)) if a != b => {
                return Err(Failure::new(Kind::Usage, format!("two users are named: `{a}` and `{b}`")));
            }
            (a, b) => a.or(b),
        };
        if let Some(reason) = self.reason.as_ref().filter(|reason| reason.len() > MAX_REASON_BYTES) {
            let message = format!("--reason has {} bytes; at most {MAX_REASON_BYTES} are possible", reason.len());
            return Err(Failure::new(Kind::Usage, message).hint("give a shorter one, such as the number of a ticket"));
        }
        let words = match &self.shell {
            Some(string) if words.is_empty() => vec![string.clone()],
            Some(_) => {
                return Err(Failure::new(Kind::Usage, "with -c STRING, nothing may follow the target")
                    .hint("put everything into STRING, or leave out -c"));
            }
            None if words.is_empty() => return Err(no_command(&target)),
            None => words,
        };
        let bytes = |word: OsString| ByteBuf::from(word.into_vec());
        let spec = ExecSpec {
            id: SessionId::from_bytes(random()?),
            words: words.into_iter().map(bytes).collect(),
            literal: literal || self.shell.is_some(),
            shell: self.shell.is_some(),
            env: self.env.iter().map(|typed| addition(typed)).collect::<Result<_, _>>()?,
            cwd: self.cwd.clone().map(bytes),
            user,
            stdin: !self.no_stdin && !self.detach,
            timeout_ms: self.timeout.map(duration::millis),
            wait_output: self.wait_output,
            reason: self.reason.clone(),
            follower: None,
            resend: None,
            kill_on_lost: self.kill_on_lost,
            detach: self.detach,
            needs: if self.detach { vec![DETACH.into()] } else { Vec::new() },
        };
        Ok((target, spec))
    }
}

/// Is the answer of `malai --detach --json`.
#[derive(Serialize)]
struct Detached<'a> {
    session: String,
    target: String,
    id: SessionId,
    started: &'a Started,
}

/// Prints the name of a command that was started and left.
fn detached(out: Output, name: &SessionName, end: &SessionEnd) -> Result<u8, Failure> {
    let SessionEnd::Detached(started) = end else { return Err(with_name(unasked(), name)) };
    let session = name.to_string();
    let printed = if out.json {
        out.document(&Detached { session, target: name.target.to_string(), id: name.id, started })
    } else {
        out.row(&session)
    };
    // A user who does not get the name has no other way to learn it.
    printed.map_err(|e| Failure { message: format!("{}; the command runs as session {name}", e.message), ..e })?;
    if output::has_lost_its_reader() {
        out.last_note(&format!("nobody reads standard output; the command runs as session {name}"));
    }
    Ok(0)
}

/// Adds the session's name to a failure after which it is not known whether the command started: it is how to find out.
fn with_name(failure: Failure, name: &SessionName) -> Failure {
    if failure.kind != Kind::Unknown {
        return failure;
    }
    let message = format!("{}; if the command started, it runs as session {name}", failure.message);
    Failure::new(Kind::Unknown, message).hint(format!("see: malai sessions {}", name.target))
}

fn no_command(target: &Target) -> Failure {
    let failure = Failure::new(
        Kind::Unsupported,
        format!("without a command, `{target}` means a shell; malai has no shells yet"),
    );
    match target.cluster {
        Some(_) => failure.hint(format!("give a command: malai {target} -- uptime")),
        None => failure.hint(format!("give a command: malai {target} -- uptime; malai's own commands: malai --help")),
    }
}

/// Reads `NAME=VALUE`, or `NAME` with the value that it has here.
fn addition(typed: &OsStr) -> Result<(ByteBuf, ByteBuf), Failure> {
    let bytes = typed.as_bytes();
    let at = bytes.iter().position(|b| *b == b'=');
    let name = &bytes[..at.unwrap_or(bytes.len())];
    if name.is_empty() {
        return Err(Failure::new(Kind::Usage, format!("--env {} does not name a variable", typed.display())));
    }
    let value = match at {
        Some(at) => bytes[at + 1..].to_vec(),
        None => std::env::var_os(OsStr::from_bytes(name))
            .ok_or_else(|| {
                Failure::new(Kind::Usage, format!("--env {}: this variable is not set here", typed.display()))
                    .hint(format!("give a value: --env {}=…", typed.display()))
            })?
            .into_vec(),
    };
    Ok((ByteBuf::from(name), ByteBuf::from(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_addition_has_its_own_value_or_the_one_from_here() {
        let pair = |name: &[u8], value: &[u8]| (ByteBuf::from(name), ByteBuf::from(value));
        assert_eq!(addition(OsStr::new("A=b=c")), Ok(pair(b"A", b"b=c")));
        assert_eq!(addition(OsStr::new("A=")), Ok(pair(b"A", b"")));
        let path = std::env::var_os("PATH").expect("PATH").into_vec();
        assert_eq!(addition(OsStr::new("PATH")), Ok(pair(b"PATH", &path)));
        assert_eq!(addition(OsStr::new("=x")).expect_err("no name").kind, Kind::Usage);
        assert_eq!(addition(OsStr::new("MALAI_NOT_SET_HERE")).expect_err("unset").kind, Kind::Usage);
    }
}

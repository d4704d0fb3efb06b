//! `malai exec`, and what `malai <target>` is short for.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::{FollowerId, SessionId};
use malai_protocol::peer::DETACH;
use malai_protocol::session::{ExecSpec, MAX_REASON_BYTES, Started};
use malai_protocol::target::Target;
use serde::Serialize;
use serde_bytes::ByteBuf;
use tokio::time::Instant;

use super::Context;
use super::explain::explain;
use super::meant::Typed;
use crate::output::{self, Output};
use crate::random::random_id;
use crate::session::{
    InputBegin, InputSource, OutputManner, OutputSink, SessionEnd, SessionEvent, SessionLimits, SessionName,
    SessionParts, SessionRequest, SessionSubject, SignalStream, follow,
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
/// Standard input, output and error, signals and the exit code are the command's own. Everything after the target is
/// its argv, word by word: no shell reads it again. The first word may be the name of a named command of the cluster's
/// config; after `--` it never is.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "malai [exec] [OPTIONS] <TARGET> [--] <ARGV>...\n       malai [exec] [OPTIONS] -c <STRING> <TARGET>"
)]
pub(crate) struct Exec {
    /// Working directory there; default: the user's home, where a relative one begins
    #[arg(long, value_name = "DIR", allow_hyphen_values = true)]
    cwd: Option<OsString>,
    /// Add to the environment; without a value, what it is here. May be repeated
    #[arg(long, value_name = "NAME[=VALUE]", allow_hyphen_values = true)]
    env: Vec<OsString>,
    /// User to run as, of those that the config allows; the same as USER@ before the target
    #[arg(long)]
    user: Option<String>,
    /// Kill the command after this time, and exit with 252: 500ms, 5s, 1m, 2h
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    timeout: Option<Duration>,
    /// Have the user's shell there run STRING
    #[arg(short = 'c', value_name = "STRING", allow_hyphen_values = true)]
    shell: Option<OsString>,
    /// Send no standard input: the command has /dev/null, and a loop around malai keeps its input
    #[arg(short = 'n')]
    no_stdin: bool,
    /// Read a pipe or terminal at once, without waiting for the command to start
    ///
    /// The first byte comes a round trip sooner. When nothing starts, what was read is lost to the next reader.
    #[arg(long, conflicts_with = "no_stdin")]
    eager_stdin: bool,
    /// Wait until background processes have closed the command's output, too
    #[arg(long)]
    wait_output: bool,
    /// How long to wait until the machine answers; default: 10s, and 1s for one that is known to have gone
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    connect_timeout: Option<Duration>,
    /// Wait for a machine that is not there to come, and run the command then; without a time: until interrupted
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, num_args = 0..=1, require_equals = true, default_missing_value = WAIT_WITHOUT_END)]
    wait: Option<Duration>,
    /// How long to try to follow the command again when the connection is lost; default: as long as the machine waits
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    lost_after: Option<Duration>,
    /// End the command when the connection is lost
    #[arg(long)]
    kill_on_lost: bool,
    /// Leave the command running, and print the session's name, for malai attach, wait and kill
    ///
    /// It ends when it is done, or by its --timeout or malai kill, whatever becomes of this machine and of the
    /// connection. No standard input is sent; its output is kept there. May stand right after the target, too.
    #[arg(long, conflicts_with = "kill_on_lost")]
    detach: bool,
    /// Why, for the audit of the machine; at most 1024 bytes
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    reason: Option<String>,
    /// Say which way the machine was found, where the command runs, and how it ended
    #[arg(short, long)]
    verbose: bool,
    /// The machine: web01.company, or deploy@web01.company
    target: String,
}

impl Exec {
    /// Runs it and returns its exit code.
    ///
    /// # Errors
    /// Never: it reports failures itself, with a hint at what was probably meant.
    pub(super) fn run(self, cx: &Context, literal: bool, words: Vec<OsString>) -> Result<u8, Failure> {
        let (typed, mut failed) = (words.clone(), None);
        let code = match self.follow(cx, literal, words, &mut failed) {
            Ok(code) => code,
            Err(failure) => cx.out.failure(failed.insert(failure)),
        };
        let typed = Typed::new(&cx.head, &self.target, literal, &typed, self.shell.as_deref());
        let is_cluster = |alias: &str| cx.home.cluster(alias).root().is_dir();
        let meant = typed.zip(failed).and_then(|(typed, failure)| typed.meant(&failure, is_cluster));
        meant.iter().for_each(|meant| cx.out.last_hint(meant));
        Ok(code)
    }

    /// Runs it and returns its exit code; `failed` gets a failure that was reported.
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
                request: SessionRequest { target, subject, follower: FollowerId::from_bytes(random_id()?) },
                signals: SignalStream::listen()?,
                source,
                sink: OutputSink::standard()?,
                // What is started and left has one document, and not one for each event.
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

    /// What was typed, as the request that it means.
    fn plan(&self, literal: bool, words: Vec<OsString>) -> Result<(Target, ExecSpec), Failure> {
        let mut target: Target = self.target.parse()?;
        let user = match (target.user.take(), self.user.clone()) {
            (Some(a), Some(b)) if a != b => {
                return Err(Failure::new(Kind::Usage, format!("two users are named: `{a}` and `{b}`")));
            }
            (a, b) => a.or(b),
        };
        if let Some(reason) = self.reason.as_ref().filter(|reason| reason.len() > MAX_REASON_BYTES) {
            let message = format!("--reason has {} bytes, and may have {MAX_REASON_BYTES}", reason.len());
            return Err(Failure::new(Kind::Usage, message).hint("give a shorter one, such as the number of a ticket"));
        }
        let words = match &self.shell {
            Some(string) if words.is_empty() => vec![string.clone()],
            Some(_) => {
                return Err(Failure::new(Kind::Usage, "after -c STRING nothing may follow the target")
                    .hint("put it all into STRING, or leave -c out"));
            }
            None if words.is_empty() => return Err(no_command(&target)),
            None => words,
        };
        let bytes = |word: OsString| ByteBuf::from(word.into_vec());
        let spec = ExecSpec {
            id: SessionId::from_bytes(random_id()?),
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

/// Tells a failure from before the session, in the form that the stream of objects would have.
pub(super) fn refuse(out: Output, target: &str, error: &Failure) -> u8 {
    let code = error.kind.exit_code();
    out.explain(error);
    if out.json {
        // The failure was told above; a standard output that fails too changes nothing about it.
        drop(out.document(&SessionEvent::Error { target, code, error }));
    }
    code
}

/// `malai --detach --json`.
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
    // Whoever is not told the name has no other way to know it.
    printed.map_err(|e| Failure { message: format!("{}; the command runs as {name}", e.message), ..e })?;
    if output::has_lost_its_reader() {
        out.last_note(&format!("nobody reads standard output; the command runs as {name}"));
    }
    Ok(0)
}

/// Where it is not known whether the command started, its name is how to find out.
fn with_name(failure: Failure, name: &SessionName) -> Failure {
    if failure.kind != Kind::Unknown {
        return failure;
    }
    let message = format!("{}; if it did, it runs as {name}", failure.message);
    Failure::new(Kind::Unknown, message).hint(format!("see: malai sessions {}", name.target))
}

/// A session that ended as nobody asked for.
pub(super) fn unasked() -> Failure {
    Failure::new(Kind::Unknown, "the command was followed in another way than it was asked for")
}

fn no_command(target: &Target) -> Failure {
    let failure =
        Failure::new(Kind::Unsupported, format!("`{target}` without a command is a shell, and shells come later"));
    match target.cluster {
        Some(_) => failure.hint(format!("give a command: malai {target} -- uptime")),
        None => failure.hint(format!("give a command: malai {target} -- uptime; malai's own commands: malai --help")),
    }
}

/// `NAME=VALUE`, or `NAME` with the value that it has here.
fn addition(typed: &OsStr) -> Result<(ByteBuf, ByteBuf), Failure> {
    let bytes = typed.as_bytes();
    let at = bytes.iter().position(|b| *b == b'=');
    let name = &bytes[..at.unwrap_or(bytes.len())];
    if name.is_empty() {
        return Err(Failure::new(Kind::Usage, format!("--env {} names no variable", typed.display())));
    }
    let value = match at {
        Some(at) => bytes[at + 1..].to_vec(),
        None => std::env::var_os(OsStr::from_bytes(name))
            .ok_or_else(|| {
                Failure::new(Kind::Usage, format!("--env {}: it is not set here", typed.display()))
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

//! `malai exec`, and what `malai <target>` is short for.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::Home;
use malai_protocol::id::{FollowerId, SessionId};
use malai_protocol::session::{EndedBy, ExecSpec, ExitRecord};
use malai_protocol::target::Target;
use serde_bytes::ByteBuf;
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::Context;
use crate::output::Output;
use crate::session::{Connect, Dial, Line, Manner, Parts, Patience, Request, Signals, Sink, Source, follow};
use crate::stdio::Descriptor;
use crate::{client, duration};

/// How long HUP or TERM may take to end the command before the caller counts as gone.
const ENDING: Duration = Duration::from_secs(5);
/// Two INT within this time mean that the caller is gone.
const SECOND_INT: Duration = Duration::from_secs(2);
/// The daemon gives up on an unreachable machine by `--connect-timeout`, and so much later the CLI gives up on the
/// daemon: of two answers the one that knows why has to win.
const ANSWER_MARGIN: Duration = Duration::from_millis(500);
/// Between two tries to follow a command again.
const RETRY: Duration = Duration::from_secs(1);
/// A loss is told when it lasts longer.
const SAY_AFTER: Duration = Duration::from_secs(1);

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
    /// Working directory there; default: the user's home
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
    /// Send no standard input: the command has /dev/null
    #[arg(short = 'n')]
    no_stdin: bool,
    /// Wait until background processes have closed the command's output, too
    #[arg(long)]
    wait_output: bool,
    /// How long to wait until the machine answers
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, default_value = "10s")]
    connect_timeout: Duration,
    /// How long to try to follow the command again when the connection is lost; default: as long as the machine waits
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    lost_after: Option<Duration>,
    /// End the command when the connection is lost
    #[arg(long)]
    kill_on_lost: bool,
    /// Why, for the audit of the machine
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    reason: Option<String>,
    /// Say where the command runs, and how it ended
    #[arg(short, long)]
    verbose: bool,
    /// The machine: web01.company, or deploy@web01.company
    target: String,
}

impl Exec {
    /// Runs it and returns its exit code.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn run(self, cx: &Context, literal: bool, words: Vec<OsString>) -> Result<u8, Failure> {
        let started = Instant::now();
        let manner = Manner { json: cx.out.json, verbose: self.verbose };
        let (target, spec) = match self.plan(literal, words) {
            Ok(planned) => planned,
            Err(failure) => return Ok(refuse(cx.out, &self.target, &failure)),
        };
        let name = target.to_string();
        let outcome = client::block_on(async {
            let source = if spec.stdin { Some(source()?) } else { None };
            let parts = Parts {
                connect: connect(&cx.home),
                request: Request { target, spec, follower: FollowerId::from_bytes(random()?) },
                signals: Signals::listen().map_err(|e| local(&e))?,
                source,
                sink: sink()?,
                manner,
                patience: self.patience(started),
            };
            Ok(follow(parts).await)
        });
        match outcome {
            Err(failure) => Ok(refuse(cx.out, &name, &failure)),
            Ok(Err(failure)) => {
                cx.out.last_words(&failure);
                Ok(failure.kind.exit_code())
            }
            Ok(Ok(record)) => {
                explain(cx.out, &name, &record, self.timeout, self.verbose);
                Ok(record.exit_code())
            }
        }
    }

    fn patience(&self, started: Instant) -> Patience {
        let connect_by = started + self.connect_timeout;
        Patience {
            connect_by,
            answer_by: connect_by + ANSWER_MARGIN,
            reconnect: self.connect_timeout,
            retry: RETRY,
            say_after: SAY_AFTER,
            lost_after: self.lost_after,
            ending: ENDING,
            second_int: SECOND_INT,
        }
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
            id: SessionId::from_bytes(random()?),
            words: words.into_iter().map(bytes).collect(),
            literal: literal || self.shell.is_some(),
            shell: self.shell.is_some(),
            env: self.env.iter().map(|typed| addition(typed)).collect::<Result<_, _>>()?,
            cwd: self.cwd.clone().map(bytes),
            user,
            stdin: !self.no_stdin,
            timeout_ms: self.timeout.map(duration::millis),
            wait_output: self.wait_output,
            reason: self.reason.clone(),
            follower: None,
            resend: None,
            kill_on_lost: self.kill_on_lost,
            detach: false,
            needs: Vec::new(),
        };
        Ok((target, spec))
    }
}

/// Tells a failure from before the session, in the form that the stream of objects would have.
fn refuse(out: Output, target: &str, error: &Failure) -> u8 {
    let code = error.kind.exit_code();
    out.explain(error);
    if out.json {
        // The failure was told above; a standard output that fails too changes nothing about it.
        drop(out.document(&Line::Error { target, code, error }));
    }
    code
}

fn no_command(target: &Target) -> Failure {
    let failure =
        Failure::new(Kind::Unsupported, format!("`{target}` without a command is a shell, and shells come later"));
    match target.cluster {
        Some(_) => failure.hint(format!("give a command: malai {target} -- uptime")),
        None => failure.hint(format!("give a command: malai {target} -- uptime; malai's own commands: malai --help")),
    }
}

fn random() -> Result<[u8; 16], Failure> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|e| Failure::new(Kind::Internal, format!("no random numbers: {e}")))?;
    Ok(bytes)
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

/// Connections to the daemon, or to an agent.
fn connect(home: &Home) -> Connect<UnixStream> {
    let home = home.clone();
    Box::new(move |Dial { within, agent }| {
        let home = home.clone();
        Box::pin(async move {
            if agent {
                return client::dial_or_start(&home, within).await;
            }
            client::dial(&home).await?.ok_or_else(|| Failure::new(Kind::Internal, "no daemon runs here"))
        })
    })
}

fn local(e: &std::io::Error) -> Failure {
    Failure::new(Kind::Internal, format!("this process cannot get what it needs: {e}"))
}

fn source() -> Result<Source, Failure> {
    Descriptor::of(&std::io::stdin()).and_then(Source::start).map_err(|e| local(&e))
}

fn sink() -> Result<Sink, Failure> {
    let stdout = Descriptor::of(&std::io::stdout()).map_err(|e| local(&e))?;
    let stderr = Descriptor::of(&std::io::stderr()).map_err(|e| local(&e))?;
    Sink::start(stdout, stderr).map_err(|e| local(&e))
}

/// Says on standard error what the exit code alone does not.
fn explain(out: Output, target: &str, record: &ExitRecord, timeout: Option<Duration>, verbose: bool) {
    let why = match record.ended_by {
        EndedBy::Itself => None,
        EndedBy::Timeout => {
            let after = timeout.map(|t| format!(" after {t:?}")).unwrap_or_default();
            Some(format!("the command on {target} was killed{after}, by its --timeout"))
        }
        EndedBy::Killed => Some(format!("the command on {target} was killed by `malai kill`")),
        EndedBy::CallerGone => Some(format!("the command on {target} was ended because its caller went away")),
        EndedBy::Grace => Some(format!("the command on {target} was ended because nobody followed it")),
        EndedBy::Revoked => Some(format!("the command on {target} was ended: access was withdrawn")),
        EndedBy::Shutdown => Some(format!("the command on {target} was ended: the daemon there was stopped")),
    };
    if let Some(why) = why {
        out.note(&record.reason.as_ref().map_or(why.clone(), |reason| format!("{why} ({reason})")));
    }
    if record.output_open {
        out.note(&format!(
            "other processes on {target} still hold the command's output, and what they write is not shown; \
             --wait-output waits for it"
        ));
    }
    if verbose {
        let ExitRecord { stdout_bytes, stderr_bytes, duration_ms, .. } = record;
        out.note(&format!(
            "{target}: exit {} after {duration_ms} ms, {stdout_bytes} bytes of output, {stderr_bytes} of error output",
            record.exit_code()
        ));
    }
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

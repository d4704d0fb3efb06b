//! Processes that outlive the CLI: the background daemon and the agent. Both are this program again, which tells
//! through its standard output, one JSON line each, what happened until it was ready, and then closes it.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::fd::RawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::Home;
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

use crate::home::VARIABLE;

/// The log is renamed at a start when it is longer, in bytes; one older log is kept.
const MAX_LOG: u64 = 10 * 1024 * 1024;

/// The variable that says what is logged, in the syntax of `tracing_subscriber::EnvFilter`.
const LOG_VARIABLE: &str = "MALAI_LOG";
/// What is logged otherwise.
const LOG_DEFAULT: &str = "warn,malai=info,malai_daemon=info";

/// Parts of other crates that log the URL of a proxy, or what is sent to it, whatever `MALAI_LOG` says.
const LOG_CAPPED: [&str; 4] = [
    "iroh_relay::client::tls=info",
    "reqwest::connect=info",
    "hyper_util::client::proxy=info",
    "hyper_util::client::legacy::connect=info",
];

/// What a relay logs otherwise: iroh's server has a line for every stranger who says something else than expected.
const LOG_RELAY: &str = "warn,malai=info,malai_daemon=info,iroh_relay=off";

/// Starts to log, as `MALAI_LOG` says.
pub(crate) fn log(to: impl for<'a> tracing_subscriber::fmt::MakeWriter<'a> + Send + Sync + 'static) {
    log_or(LOG_DEFAULT, to);
}

/// The same for a relay.
pub(crate) fn log_relay(to: impl for<'a> tracing_subscriber::fmt::MakeWriter<'a> + Send + Sync + 'static) {
    log_or(LOG_RELAY, to);
}

fn log_or(default: &str, to: impl for<'a> tracing_subscriber::fmt::MakeWriter<'a> + Send + Sync + 'static) {
    let filter = filter(std::env::var(LOG_VARIABLE).ok().as_deref(), default);
    // An error of the log itself would be printed to standard error, which is that log; and printing panics when the disk is
    // full. What a task does is worth more than what it says of it.
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).log_internal_errors(false);
    subscriber.with_writer(to).init();
}

/// Returns the filter that this text wants, if it is one, and never what would show a proxy's password.
fn filter(wanted: Option<&str>, default: &str) -> EnvFilter {
    let wanted = wanted.and_then(|text| EnvFilter::try_new(text).ok());
    let filter = wanted.unwrap_or_else(|| EnvFilter::new(default));
    let capped = LOG_CAPPED.iter().filter_map(|directive| directive.parse().ok());
    capped.fold(filter, EnvFilter::add_directive)
}

/// What a starting process tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Report {
    /// It goes on, but somebody should know this.
    Warning(String),
    /// It is ready; last.
    Ready {
        /// Its process id.
        pid: u32,
    },
    /// It is not and ends; last.
    Failed(Failure),
}

/// What is new of a process that starts.
#[derive(Debug)]
pub(crate) enum News {
    /// Nothing: it is on its way.
    Nothing,
    /// It says something.
    Report(Report),
    /// It says nothing more: it has let go, or it has ended.
    Closed,
}

/// A process that was started and may not be ready yet.
#[derive(Debug)]
pub(crate) struct Child {
    reports: Receiver<Report>,
}

impl Child {
    /// Starts this program again with these words, which name a hidden subcommand.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start(home: &Home, words: &[&str]) -> Result<Self, Failure> {
        let name = words.join(" ");
        let fail = |e: io::Error| Failure::new(Kind::Internal, format!("`malai {name}` cannot be started: {e}"));
        let mut child = Command::new(program()?)
            .args(words)
            .env(VARIABLE, home.root())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(fail)?;
        let stdout = child.stdout.take().ok_or_else(|| fail(io::Error::other("no pipe")))?;
        // Two are enough: what is not taken keeps the thread waiting, not the process.
        let (sender, reports) = sync_channel(2);
        std::thread::Builder::new()
            .name("reports".into())
            .spawn(move || read_reports(stdout).try_for_each(|report| sender.send(report)))
            .map_err(fail)?;
        Ok(Self { reports })
    }

    /// How far it is: what it reported next, if it did by now.
    pub(crate) fn news(&mut self) -> News {
        match self.reports.try_recv() {
            Ok(report) => News::Report(report),
            Err(TryRecvError::Empty) => News::Nothing,
            Err(TryRecvError::Disconnected) => News::Closed,
        }
    }

    /// The next report; `None` when the process has closed its end.
    pub(crate) fn wait(&mut self) -> Option<Report> {
        self.reports.recv().ok()
    }
}

fn read_reports(stdout: ChildStdout) -> impl Iterator<Item = Report> {
    BufReader::new(stdout).lines().map_while(Result::ok).filter_map(|line| serde_json::from_str(&line).ok())
}

/// The path of this program.
///
/// # Errors
/// When the system does not tell.
pub(crate) fn program() -> Result<std::path::PathBuf, Failure> {
    std::env::current_exe()
        .map_err(|e| Failure::new(Kind::Internal, format!("where this program is cannot be found out: {e}")))
}

/// In the child, first of all: own session, cwd `/`, and no descriptor but the standard ones. A shell's pipe that was
/// passed on by accident would otherwise stay open for as long as this process lives.
///
/// # Errors
/// When the system refuses one of them.
pub(crate) fn detach() -> Result<(), Failure> {
    let fail = |what: &str, e: &dyn std::fmt::Display| Failure::new(Kind::Internal, format!("{what}: {e}"));
    close_inherited().map_err(|e| fail("inherited descriptors cannot be closed", &e))?;
    // It fails with EPERM where this is the leader of a session already, which is what is wanted.
    match nix::unistd::setsid() {
        Ok(_) | Err(nix::errno::Errno::EPERM) => {}
        Err(e) => return Err(fail("no session of its own", &e)),
    }
    std::env::set_current_dir("/").map_err(|e| fail("the directory / cannot be entered", &e))
}

fn close_inherited() -> io::Result<()> {
    let is_number = |name: &OsStr| name.to_str().and_then(|n| n.parse::<RawFd>().ok());
    let open: Vec<RawFd> =
        std::fs::read_dir("/dev/fd")?.filter_map(|entry| is_number(&entry.ok()?.file_name())).collect();
    for fd in open.into_iter().filter(|fd| *fd > 2) {
        match nix::unistd::close(fd) {
            // The directory that was read above is in its own listing, and closed by now.
            Ok(()) | Err(nix::errno::Errno::EBADF) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// In the child: tells the parent.
///
/// # Errors
/// When the parent cannot be told for another reason than that it is gone.
pub(crate) fn tell(report: &Report) -> io::Result<()> {
    let line = serde_json::to_string(report)? + "\n";
    match crate::stdio::Descriptor::of(&io::stdout())?.write_all(line.as_bytes()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

/// In the child: lets go of the parent.
///
/// # Errors
/// When /dev/null cannot be opened.
pub(crate) fn let_go() -> io::Result<()> {
    let null = OpenOptions::new().write(true).open("/dev/null")?;
    nix::unistd::dup2_stdout(&null).map_err(Into::into)
}

/// In the child: standard error goes to the daemon's log, which is renamed first when it is long.
///
/// # Errors
/// When the log cannot be opened.
pub(crate) fn log_to(home: &Home) -> Result<(), Failure> {
    open_log(home).and_then(|log| nix::unistd::dup2_stderr(&log).map_err(Into::into)).map_err(|e| {
        let hint = malai_daemon::store::disk_failure("write", &home.log(), &e).hint;
        let failure = Failure::new(Kind::BadConfig, format!("the log {} cannot be written: {e}", home.log().display()));
        hint.map_or(failure.clone(), |hint| failure.hint(hint))
    })
}

/// The daemon's log, to be written at its end.
///
/// # Errors
/// When it cannot be opened.
pub(crate) fn open_log(home: &Home) -> io::Result<File> {
    std::os::unix::fs::DirBuilderExt::mode(std::fs::DirBuilder::new().recursive(true), 0o700).create(home.root())?;
    let path = home.log();
    if std::fs::metadata(&path).is_ok_and(|meta| meta.len() > MAX_LOG) {
        std::fs::rename(&path, path.with_extension("log.1"))?;
    }
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_is_kept_once_under_another_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home::new(dir.path().join("home"));
        open_log(&home).expect("opens").set_len(MAX_LOG + 1).expect("grows");
        open_log(&home).expect("opens").write_all(b"new").expect("writes");
        assert_eq!(std::fs::metadata(home.root().join("daemon.log.1")).expect("kept").len(), MAX_LOG + 1);
        assert_eq!(std::fs::read(home.log()).expect("reads"), b"new");
    }

    #[test]
    fn no_filter_shows_what_is_sent_to_a_proxy() {
        for wanted in [None, Some("trace"), Some("iroh_relay=trace,reqwest=debug"), Some("[[")] {
            let shown = filter(wanted, LOG_DEFAULT).to_string();
            assert!(LOG_CAPPED.iter().all(|capped| shown.contains(capped)), "{wanted:?}: {shown}");
        }
        assert!(filter(Some("trace"), LOG_DEFAULT).to_string().contains("trace"));
    }

    #[test]
    fn a_report_survives_the_pipe() {
        let failed = Report::Failed(Failure::new(Kind::Conflict, "pid 7 runs already").hint("malai daemon stop"));
        for report in [Report::Warning("x".into()), Report::Ready { pid: 7 }, failed] {
            let line = serde_json::to_string(&report).expect("json");
            assert_eq!(serde_json::from_str::<Report>(&line).expect("reads"), report);
        }
    }
}

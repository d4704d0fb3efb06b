//! Processes that outlive the CLI: the background daemon and the agent. Both are this program again. Until it is ready, it
//! reports on its standard output, one JSON line each; then it closes that.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::fd::RawFd;
use std::process::{ChildStdout, Command, Stdio};

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::Home;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::home::HOME_VARIABLE;

/// Says how far a starting process came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Report {
    /// It goes on, but the user should know this.
    Warning(String),
    /// It is ready; last.
    Ready {
        /// Its process id.
        pid: u32,
    },
    /// It cannot run, and ends; last.
    Failed(Failure),
}

/// Holds a process that was started and may not be ready yet.
#[derive(Debug)]
pub(crate) struct Child {
    reports: mpsc::Receiver<Report>,
}

impl Child {
    /// Starts this program again with these words, which name a hidden subcommand.
    pub(crate) fn start(home: &Home, words: &[&str]) -> Result<Self, Failure> {
        let name = words.join(" ");
        let fail = |e: io::Error| Failure::new(Kind::Internal, format!("`malai {name}` cannot be started: {e}"));
        let mut child = Command::new(program()?)
            .args(words)
            .env(HOME_VARIABLE, home.root())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(fail)?;
        let stdout = child.stdout.take().ok_or_else(|| fail(io::Error::other("no pipe")))?;
        // Room for two is enough: when it is full the thread waits, not the process.
        let (sender, reports) = mpsc::channel(2);
        std::thread::Builder::new()
            .name("reports".into())
            .spawn(move || read_reports(stdout).try_for_each(|report| sender.blocking_send(report)))
            .map_err(fail)?;
        Ok(Self { reports })
    }

    /// Returns its next report; `None` when it reports nothing more, because it runs on its own, or has ended. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<Report> {
        self.reports.recv().await
    }
}

fn read_reports(stdout: ChildStdout) -> impl Iterator<Item = Report> {
    BufReader::new(stdout).lines().map_while(Result::ok).filter_map(|line| serde_json::from_str(&line).ok())
}

/// Returns the path of this program.
pub(crate) fn program() -> Result<std::path::PathBuf, Failure> {
    std::env::current_exe()
        .map_err(|e| Failure::new(Kind::Internal, format!("cannot find this program's own path: {e}")))
}

/// Detaches the child, first of all: into a session of its own, with cwd `/` and no descriptor but the standard ones. A
/// shell's pipe that the child inherited by accident would otherwise stay open as long as the child lives.
pub(crate) fn detach() -> Result<(), Failure> {
    let fail = |what: &str, e: &dyn std::fmt::Display| Failure::new(Kind::Internal, format!("{what}: {e}"));
    close_inherited().map_err(|e| fail("inherited descriptors cannot be closed", &e))?;
    // EPERM says that this process leads a session already, which is what is wanted.
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
            // The listing above contains its own directory, which is closed by now.
            Ok(()) | Err(nix::errno::Errno::EBADF) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Reports from the child to its parent.
///
/// # Errors
/// When that fails for another reason than that the parent is gone.
pub(crate) fn send_report(report: &Report) -> io::Result<()> {
    let line = serde_json::to_string(report)? + "\n";
    match crate::stdio::Descriptor::of(&io::stdout())?.write_all(line.as_bytes()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

/// Closes the child's connection to its parent.
pub(crate) fn close_reports() -> io::Result<()> {
    let null = OpenOptions::new().write(true).open("/dev/null")?;
    nix::unistd::dup2_stdout(&null).map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_survives_the_pipe() {
        let failed = Report::Failed(Failure::new(Kind::Conflict, "pid 7 runs already").hint("malai daemon stop"));
        for report in [Report::Warning("x".into()), Report::Ready { pid: 7 }, failed] {
            let line = serde_json::to_string(&report).expect("json");
            assert_eq!(serde_json::from_str::<Report>(&line).expect("reads"), report);
        }
    }
}

//! Commands on a host: started, followed line by line, signalled, waited for.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child as Process, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use super::account::Account;
use super::disk;
use super::machine::{Inside, start_in};
use super::netns::on_own_thread;

/// How long a command may take, unless told.
const DEADLINE: Duration = Duration::from_secs(30);
/// The search path of commands on a host; the lab's own programs come first.
const PATH: &str = "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin";

/// A command to be run on a host. Its environment holds PATH, HOME, USER, LOGNAME, MALAI_HOME and LANG, nothing else.
#[derive(Debug, Clone)]
pub struct Cmd {
    argv: Vec<OsString>,
    stdin: Stdin,
    environment: Vec<(OsString, OsString)>,
    user: String,
    directory: Option<OsString>,
    timeout: Duration,
}

#[derive(Debug, Clone)]
enum Stdin {
    Nothing,
    Bytes(Vec<u8>),
    Open,
}

impl Cmd {
    /// A command with its arguments. Its standard input is `/dev/null`.
    pub fn new<S: AsRef<OsStr>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self {
            argv: argv
                .into_iter()
                .map(|word| word.as_ref().to_owned())
                .collect(),
            stdin: Stdin::Nothing,
            environment: Vec::new(),
            user: "root".to_owned(),
            directory: None,
            timeout: DEADLINE,
        }
    }

    /// Gives it these bytes, then the end.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Stdin::Bytes(bytes.into());
        self
    }

    /// Leaves its standard input open, for [`Child::write`] and [`Child::close_stdin`].
    #[must_use]
    pub fn stdin_open(mut self) -> Self {
        self.stdin = Stdin::Open;
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment
            .push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Runs it as this user of the host, in the user's home.
    #[must_use]
    pub fn user(mut self, name: &str) -> Self {
        name.clone_into(&mut self.user);
        self
    }

    /// Runs it in this directory.
    #[must_use]
    pub fn cwd(mut self, directory: impl AsRef<OsStr>) -> Self {
        self.directory = Some(directory.as_ref().to_owned());
        self
    }

    /// How long [`Host::run`](super::Host::run) waits for its end, instead of 30 s.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    pub(crate) fn deadline(&self) -> Duration {
        self.timeout
    }

    fn describe(&self, host: &str) -> String {
        let words: Vec<_> = self
            .argv
            .iter()
            .map(|word| word.to_string_lossy())
            .collect();
        format!("`{}` on {host}", words.join(" "))
    }

    /// The command for the calling thread, which is inside the host.
    fn prepare(&self) -> Result<Command> {
        let (program, arguments) = self.argv.split_first().context("the command is empty")?;
        ensure!(
            program != disk::MALAI || disk::malai().is_some(),
            "a test runs malai, and MALAI_BIN does not say where its binary is"
        );
        let account = Account::find(&self.user)?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", PATH)
            .env("LANG", "C.UTF-8");
        command
            .env("HOME", &account.home)
            .env("USER", &self.user)
            .env("LOGNAME", &self.user);
        command.env("MALAI_HOME", account.home.join("malai-home"));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.current_dir(
            self.directory
                .as_deref()
                .unwrap_or(account.home.as_os_str()),
        );
        if account.uid != 0 {
            command.uid(account.uid).gid(account.gid);
        }
        let input = if matches!(self.stdin, Stdin::Nothing) {
            Stdio::null()
        } else {
            Stdio::piped()
        };
        command
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok(command)
    }
}

impl<S: AsRef<OsStr>, const N: usize> From<[S; N]> for Cmd {
    fn from(argv: [S; N]) -> Self {
        Self::new(argv)
    }
}

impl<S: AsRef<OsStr>> From<Vec<S>> for Cmd {
    fn from(argv: Vec<S>) -> Self {
        Self::new(argv)
    }
}

impl<S: AsRef<OsStr>> From<&[S]> for Cmd {
    fn from(argv: &[S]) -> Self {
        Self::new(argv)
    }
}

/// How a command ended, and what it printed.
#[derive(Debug)]
pub struct Output {
    /// The command, for messages.
    what: String,
    /// Its exit status, signals told apart from codes.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Its exit code; `None` when a signal ended it.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Standard output as text, without the white space at its end.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    /// Standard error as text, without the white space at its end.
    #[must_use]
    pub fn error_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim_end().to_owned()
    }

    /// Itself, if it exited with 0.
    ///
    /// # Errors
    ///
    /// Otherwise, with all that it printed.
    pub fn success(self) -> Result<Self> {
        self.exited(0)
    }

    /// Itself, if it exited with this code.
    ///
    /// # Errors
    ///
    /// Otherwise, with all that it printed.
    pub fn exited(self, code: i32) -> Result<Self> {
        if self.code() == Some(code) {
            return Ok(self);
        }
        let printed = printed(&self.stdout, &self.stderr);
        bail!(
            "{} ended with {}, not with exit code {code}; {printed}",
            self.what,
            self.status
        );
    }
}

/// A command that runs on a host; dropping it kills it.
#[derive(Debug)]
pub struct Child {
    what: String,
    process: Pid,
    stdin: Option<ChildStdin>,
    progress: Arc<Progress>,
}

/// What is known of a running command, for whoever waits.
#[derive(Debug, Default)]
struct Progress {
    known: Mutex<Known>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Known {
    streams: [Stream; 2],
    /// How it ended; its process id means nothing any more.
    status: Option<ExitStatus>,
}

#[derive(Debug, Default)]
struct Stream {
    bytes: Vec<u8>,
    ended: bool,
}

const STDOUT: usize = 0;
const STDERR: usize = 1;

impl Child {
    pub(crate) fn spawn(inside: &Inside, host: &str, command: Cmd) -> Result<Self> {
        let what = command.describe(host);
        let mut process = on_own_thread(|| {
            let processes = inside.commands()?;
            inside.enter()?;
            let mut prepared = command.prepare()?;
            start_in(&mut prepared, processes);
            Ok(prepared.spawn()?)
        })
        .with_context(|| format!("cannot start {what}"))?;
        let progress = Arc::new(Progress::default());
        if let Some(stdout) = process.stdout.take() {
            progress.follow(STDOUT, stdout);
        }
        if let Some(stderr) = process.stderr.take() {
            progress.follow(STDERR, stderr);
        }
        let mut stdin = process.stdin.take();
        let id = Pid::from_raw(process.id().cast_signed());
        progress.follow_end(process);
        if let Stdin::Bytes(bytes) = command.stdin
            && let Some(mut pipe) = stdin.take()
        {
            // A command that does not read all of its input is no error of the lab.
            thread::spawn(move || drop(pipe.write_all(&bytes)));
        }
        Ok(Self {
            what,
            process: id,
            stdin,
            progress,
        })
    }

    /// Waits for a line of standard output that contains `text`, and returns it.
    ///
    /// # Errors
    ///
    /// When none has come by the deadline, or the stream ends without.
    pub fn wait_for_line(&self, text: &str, deadline: Duration) -> Result<String> {
        self.line(STDOUT, text, deadline)
    }

    /// Waits for a line of standard error that contains `text`, and returns it.
    ///
    /// # Errors
    ///
    /// When none has come by the deadline, or the stream ends without.
    pub fn wait_for_error_line(&self, text: &str, deadline: Duration) -> Result<String> {
        self.line(STDERR, text, deadline)
    }

    fn line(&self, stream: usize, text: &str, deadline: Duration) -> Result<String> {
        let line = self.progress.wait(deadline, |known| {
            let stream = &known.streams[stream];
            stream
                .line_with(text)
                .map(Some)
                .or(stream.ended.then_some(None))
        });
        line.flatten().with_context(|| {
            format!(
                "{} printed no line with {text:?} within {deadline:?}; {}",
                self.what,
                self.printed()
            )
        })
    }

    /// Standard output so far.
    #[must_use]
    pub fn stdout(&self) -> Vec<u8> {
        self.progress
            .with(|known| known.streams[STDOUT].bytes.clone())
    }

    /// Standard error so far.
    #[must_use]
    pub fn stderr(&self) -> Vec<u8> {
        self.progress
            .with(|known| known.streams[STDERR].bytes.clone())
    }

    /// Whether it has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.progress.with(|known| known.status.is_some())
    }

    /// Writes to its standard input, which the [`Cmd`] left open.
    ///
    /// # Errors
    ///
    /// When its input is not open, or it does not read any more.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let stdin = self
            .stdin
            .as_mut()
            .with_context(|| format!("the input of {} is not open", self.what))?;
        stdin
            .write_all(bytes)
            .with_context(|| format!("cannot write to {}", self.what))
    }

    /// Ends its standard input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Sends it a signal.
    ///
    /// # Errors
    ///
    /// When it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let sent = self.progress.with(|known| match known.status {
            Some(status) => bail!("it has ended with {status}"),
            None => Ok(kill(self.process, signal)?),
        });
        sent.with_context(|| format!("cannot send {signal} to {}", self.what))
    }

    /// Its process id as seen from outside of the host.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.process.as_raw()
    }

    /// Waits for its end and the end of its output.
    ///
    /// # Errors
    ///
    /// When that has not come by the deadline; then it is killed, and the message holds what it printed so far.
    pub fn output_within(self, deadline: Duration) -> Result<Output> {
        let status = self.wait(deadline)?;
        let streams = self.progress.wait(deadline, |known| {
            known
                .streams
                .iter()
                .all(|stream| stream.ended)
                .then(|| std::mem::take(&mut known.streams))
        });
        let Some([stdout, stderr]) = streams else {
            bail!(
                "{} ended, but something of it holds its output open; {}",
                self.what,
                self.printed()
            );
        };
        Ok(Output {
            what: self.what.clone(),
            status,
            stdout: stdout.bytes,
            stderr: stderr.bytes,
        })
    }

    /// Waits for its end, whatever becomes of its output.
    ///
    /// # Errors
    ///
    /// When that has not come by the deadline; it goes on running.
    pub fn wait(&self, deadline: Duration) -> Result<ExitStatus> {
        let status = self.progress.wait(deadline, |known| known.status);
        status.with_context(|| {
            format!(
                "{} did not end within {deadline:?}; {}",
                self.what,
                self.printed()
            )
        })
    }

    fn printed(&self) -> String {
        self.progress
            .with(|known| printed(&known.streams[STDOUT].bytes, &known.streams[STDERR].bytes))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let running = self
            .progress
            .with(|known| known.status.is_none() && kill(self.process, Signal::SIGKILL).is_ok());
        if running && self.wait(DEADLINE).is_err() {
            tracing::warn!("{} may be left behind", self.what);
        }
    }
}

impl Progress {
    fn with<T>(&self, work: impl FnOnce(&mut Known) -> T) -> T {
        work(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn change(&self, work: impl FnOnce(&mut Known)) {
        self.with(work);
        self.changed.notify_all();
    }

    /// Waits until `look` finds something; `None` when the deadline passes first.
    fn wait<T>(
        &self,
        deadline: Duration,
        mut look: impl FnMut(&mut Known) -> Option<T>,
    ) -> Option<T> {
        let until = Instant::now() + deadline;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(found) = look(&mut known) {
                return Some(found);
            }
            let left = until.checked_duration_since(Instant::now())?;
            known = self
                .changed
                .wait_timeout(known, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn follow(self: &Arc<Self>, stream: usize, mut pipe: impl Read + Send + 'static) {
        let progress = Arc::clone(self);
        thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(length @ 1..) = pipe.read(&mut buffer) {
                let bytes = buffer.get(..length).unwrap_or_default();
                progress.change(|known| known.streams[stream].bytes.extend_from_slice(bytes));
            }
            progress.change(|known| known.streams[stream].ended = true);
        });
    }

    /// Reaps a process as soon as it ends: process 1 of a host does not go before the last zombie in its process table.
    ///
    /// Waiting and reaping are two steps, so that its id stays its own until the end is known.
    fn follow_end(self: &Arc<Self>, mut process: Process) {
        let progress = Arc::clone(self);
        let id = Pid::from_raw(process.id().cast_signed());
        thread::spawn(move || {
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
            while waitid(Id::Pid(id), flags) == Err(nix::errno::Errno::EINTR) {}
            progress.change(|known| known.status = process.wait().ok());
        });
    }
}

impl Stream {
    fn line_with(&self, text: &str) -> Option<String> {
        let complete = self
            .bytes
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1);
        let lines = String::from_utf8_lossy(self.bytes.get(..complete)?).into_owned();
        lines
            .lines()
            .find(|line| line.contains(text))
            .map(str::to_owned)
    }
}

fn printed(stdout: &[u8], stderr: &[u8]) -> String {
    let (stdout, stderr) = (
        String::from_utf8_lossy(stdout),
        String::from_utf8_lossy(stderr),
    );
    format!("its output:\n{stdout}\nits errors:\n{stderr}")
}

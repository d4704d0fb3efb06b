//! What to run on a host, and how that ended.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::account::Account;
use super::disk;

/// How long a command may take, unless told.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
/// The search path of commands on a host; the lab's own programs come first.
const PATH: &str = "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin";

/// A command to be run on a host. Its environment holds PATH, HOME, USER, LOGNAME, MALAI_HOME and LANG, nothing else.
#[derive(Debug, Clone)]
pub struct Cmd {
    argv: Vec<OsString>,
    pub(crate) stdin: Stdin,
    environment: Vec<(OsString, OsString)>,
    user: String,
    directory: Option<OsString>,
    timeout: Duration,
}

/// What a command reads.
#[derive(Debug, Clone)]
pub(crate) enum Stdin {
    Nothing,
    Bytes(Vec<u8>),
    Open,
}

impl Cmd {
    /// A command with its arguments. Its standard input is `/dev/null`.
    pub fn new<S: AsRef<OsStr>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self {
            argv: argv.into_iter().map(|word| word.as_ref().to_owned()).collect(),
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

    /// Leaves its standard input open, for [`Child::write`](super::Child::write) and
    /// [`Child::close_stdin`](super::Child::close_stdin).
    #[must_use]
    pub fn stdin_open(mut self) -> Self {
        self.stdin = Stdin::Open;
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
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

    /// How long it may take.
    pub(crate) fn deadline(&self) -> Duration {
        self.timeout
    }

    /// The command in words, for messages.
    pub(crate) fn describe(&self, host: &str) -> String {
        let words: Vec<_> = self.argv.iter().map(|word| word.to_string_lossy()).collect();
        format!("`{}` on {host}", words.join(" "))
    }

    /// The command for the calling thread, which is inside the host.
    pub(crate) fn prepare(&self) -> Result<Command> {
        let (program, arguments) = self.argv.split_first().context("the command is empty")?;
        ensure!(
            program != disk::MALAI || disk::malai().is_some(),
            "a test runs malai, and MALAI_BIN does not say where its binary is"
        );
        let account = Account::find(&self.user)?;
        let mut command = Command::new(program);
        command.args(arguments).env_clear().env("PATH", PATH).env("LANG", "C.UTF-8");
        command.env("HOME", &account.home).env("USER", &self.user).env("LOGNAME", &self.user);
        command.env("MALAI_HOME", account.home.join("malai-home"));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.current_dir(self.directory.as_deref().unwrap_or(account.home.as_os_str()));
        if account.uid != 0 {
            command.uid(account.uid).gid(account.gid);
        }
        let input = if matches!(self.stdin, Stdin::Nothing) { Stdio::null() } else { Stdio::piped() };
        command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
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
    pub(crate) what: String,
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
        bail!("{} ended with {}, not with exit code {code}; {printed}", self.what, self.status);
    }
}

/// What a command printed, for messages.
pub(crate) fn printed(stdout: &[u8], stderr: &[u8]) -> String {
    let (stdout, stderr) = (String::from_utf8_lossy(stdout), String::from_utf8_lossy(stderr));
    format!("its output:\n{stdout}\nits errors:\n{stderr}")
}

//! One row of the table: a command, how its caller's shell calls it, and the comparison.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::ExitStatusExt as _;

use anyhow::{Result, ensure};
use malai_e2e::lab::{Cmd, Output};

use crate::stage::{Stage, USER};

/// What login(1) gives root to search.
const ROOT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// And everybody else.
const USER_PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games";
/// How a caller's shell runs the words and nothing else.
const PLAIN: &str = r#"exec "$@""#;
/// What the test's own process had open besides is not for the command.
const CLEAN: &str = "umask 022; for f in /proc/$$/fd/*; do n=${f##*/}; [ $n -le 2 ] || eval \"exec $n>&-\"; done; cd";
/// Bytes of a difference that a failure shows.
const SHOWN: usize = 2000;

/// A command that is run at both places.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    name: String,
    words: Vec<OsString>,
    line: String,
    line_here: Option<String>,
    stdin: Vec<u8>,
    environment: Vec<&'static str>,
    directory: Option<&'static str>,
    user: Option<&'static str>,
    /// `malai -c STRING`, and the user's shell here.
    by_shell: bool,
    status_only: bool,
    /// Further options of malai that have no counterpart here.
    options: Vec<&'static str>,
}

/// A row whose command is these words.
pub(crate) fn argv<S: AsRef<OsStr>>(name: &str, words: impl IntoIterator<Item = S>) -> Row {
    Row {
        name: name.to_owned(),
        words: words.into_iter().map(|word| word.as_ref().to_owned()).collect(),
        line: PLAIN.to_owned(),
        line_here: None,
        stdin: Vec::new(),
        environment: Vec::new(),
        directory: None,
        user: None,
        by_shell: false,
        status_only: false,
        options: Vec::new(),
    }
}

/// A row whose command is `sh -c SCRIPT`.
pub(crate) fn sh(name: &str, script: &str) -> Row {
    argv(name, ["sh", "-c", script])
}

/// A row that has the user's own shell read the string.
pub(crate) fn by_shell(name: &str, string: &str) -> Row {
    Row { by_shell: true, ..argv(name, [string]) }
}

/// How it is called.
impl Row {
    /// The caller's shell runs this line, in which `"$@"` is the command.
    pub(crate) fn line(self, line: &str) -> Self {
        Self { line: line.to_owned(), ..self }
    }

    /// The caller's shell on the machine itself runs this line instead.
    pub(crate) fn line_here(self, line: &str) -> Self {
        Self { line_here: Some(line.to_owned()), ..self }
    }

    /// Its input, by a pipe.
    pub(crate) fn stdin(self, bytes: impl Into<Vec<u8>>) -> Self {
        Self { stdin: bytes.into(), ..self }
    }

    /// Adds `NAME=VALUE` to its environment.
    pub(crate) fn env(mut self, addition: &'static str) -> Self {
        self.environment.push(addition);
        self
    }

    /// Runs it in this directory.
    pub(crate) fn cwd(self, directory: &'static str) -> Self {
        Self { directory: Some(directory), ..self }
    }

    /// Runs it as the user of the target that is not root.
    pub(crate) fn by_user(self) -> Self {
        Self { user: Some(USER), ..self }
    }

    /// Gives malai this option.
    pub(crate) fn option(mut self, option: &'static str) -> Self {
        self.options.push(option);
        self
    }

    /// Compares nothing but the exit status: the words are those of another program.
    pub(crate) fn status_only(self) -> Self {
        Self { status_only: true, ..self }
    }

    /// What it is called in reports.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

/// Running it.
impl Row {
    /// Runs it here and there, and says how the results differ.
    pub(crate) fn compare(&self, stage: &Stage) -> Result<()> {
        let here = Ended::of(stage.web01().run(self.here())?);
        let there = Ended::of(stage.laptop().run(self.there())?);
        let same = if self.status_only { here.status == there.status } else { here == there };
        ensure!(same, "`{}`\non the machine itself: {here}\nthrough malai: {there}", self.describe());
        Ok(())
    }

    /// On the machine itself, with what a login of the user would find.
    pub(crate) fn here(&self) -> Cmd {
        let user = self.user.unwrap_or("root");
        let (home, path, shell) = match self.user {
            None => ("/root".to_owned(), ROOT_PATH, "bash"),
            Some(name) => (format!("/home/{name}"), USER_PATH, "sh"),
        };
        let mut words: Vec<OsString> = Vec::new();
        if self.user.is_some() {
            words.extend(["setpriv", "--reuid", user, "--regid", user, "--init-groups"].map(OsString::from));
        }
        words.extend(["env", "-i"].map(OsString::from));
        words.extend(self.directory.map(|directory| format!("--chdir={directory}").into()));
        let shell_path = format!("/bin/{shell}");
        let own = [("HOME", &*home), ("USER", user), ("LOGNAME", user), ("SHELL", &*shell_path), ("PATH", path)];
        words.push(format!("PWD={}", self.directory.unwrap_or(&home)).into());
        words.extend(own.map(|(name, value)| format!("{name}={value}").into()));
        words.push("MALAI_SESSION=here".into());
        words.extend(self.environment.iter().map(|addition| (*addition).into()));
        if self.by_shell {
            words.extend([shell.into(), "-c".into()]);
        }
        words.extend(self.words.iter().cloned());
        let line = self.line_here.as_ref().unwrap_or(&self.line);
        self.called(&format!("{CLEAN} {home}; {line}"), words)
    }

    /// Through malai, by a caller with other surroundings.
    pub(crate) fn there(&self) -> Cmd {
        let mut words: Vec<OsString> = vec!["malai".into()];
        words.extend(self.options.iter().map(|option| (*option).into()));
        words.extend(self.directory.map(|directory| format!("--cwd={directory}").into()));
        words.extend(self.environment.iter().map(|addition| format!("--env={addition}").into()));
        let target = OsString::from(self.user.map_or("web01.company".into(), |user| format!("{user}@web01.company")));
        if self.by_shell {
            words.push("-c".into());
            words.extend(self.words.iter().cloned());
            words.push(target);
        } else {
            words.extend([target, "--".into()]);
            words.extend(self.words.iter().cloned());
        }
        self.called(&format!("umask 077; cd /usr; {}", self.line), words)
    }

    fn called(&self, line: &str, words: Vec<OsString>) -> Cmd {
        let caller = ["bash", "-c", line, "caller"].map(OsString::from);
        Cmd::new(caller.into_iter().chain(words)).stdin(self.stdin.clone())
    }

    fn describe(&self) -> String {
        let words: Vec<_> = self.words.iter().map(|word| shown(word.as_bytes())).collect();
        format!("{} ({})", words.join(" "), self.line)
    }
}

/// How a command ended: what is compared.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    /// As a shell shows it in `$?`.
    pub(crate) status: i32,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Ended {
    /// Of a command that ran.
    pub(crate) fn of(output: Output) -> Self {
        let by_signal = output.status.signal().map(|number| 128 + number);
        let status = output.status.code().or(by_signal).unwrap_or(-1);
        Self { status, stdout: output.stdout, stderr: output.stderr }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { status, stdout, stderr } = self;
        write!(f, "status {status}")?;
        for (name, bytes) in [("stdout", stdout), ("stderr", stderr)] {
            write!(f, "\n  {name}, {} bytes: {}", bytes.len(), shown(bytes))?;
        }
        Ok(())
    }
}

/// Bytes for a person, cut where they are many.
fn shown(bytes: &[u8]) -> String {
    let cut = bytes.get(..SHOWN).unwrap_or(bytes);
    let dots = if cut.len() < bytes.len() { "…" } else { "" };
    format!("{}{dots}", cut.escape_ascii())
}

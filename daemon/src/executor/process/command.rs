//! From a plan to what fork and exec need, and from what they say to words for a person.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::plan::Plan;

use crate::runtime::secrecy;

use super::env::{Env, string};
use super::spawn::{Directory, Prepared, Pwd, Stage, Trouble};
use super::tree::tag;
use super::user::{self, User};
use crate::executor::shown;

/// A command that is ready to be started, and this side's ends of its pipes.
#[derive(Debug)]
pub(crate) struct Command {
    /// For the fork.
    pub(crate) prepared: Prepared,
    /// The user's name.
    pub(crate) user: String,
    /// To write its standard input to, if it has one.
    pub(crate) stdin: Option<OwnedFd>,
    /// To read its standard output from.
    pub(crate) stdout: OwnedFd,
    /// To read its standard error from.
    pub(crate) stderr: OwnedFd,
}

/// Prepares the command of a plan. Blocks: it may ask a directory service for the user.
pub(crate) fn prepare(
    plan: &Plan,
    mark: &str,
    cgroup: Option<File>,
    open_files: Option<u64>,
) -> Result<Command, Failure> {
    let user = user::find(plan.user.as_deref())?;
    let env = Env::new(&user, &plan.env, mark);
    let (programs, argv) = words(plan, &user, &env)?;
    let home = user.home.as_os_str().as_bytes();
    let directories = match &plan.cwd {
        Some(cwd) if cwd.starts_with(b"/") => vec![directory(cwd.to_vec(), "the working directory")?],
        Some(cwd) => vec![directory([home, b"/", cwd].concat(), "the working directory")?],
        // As with ssh, a user without a home directory is not kept out.
        None => vec![directory(home.to_vec(), "the home directory")?, directory(b"/".to_vec(), "the root")?],
    };
    let pipes = || -> io::Result<_> {
        let (stdin, to_stdin) = if plan.stdin {
            let (read, write) = io::pipe()?;
            (OwnedFd::from(read), Some(OwnedFd::from(write)))
        } else {
            (OpenOptions::new().read(true).open("/dev/null")?.into(), None)
        };
        Ok((stdin, to_stdin, io::pipe()?, io::pipe()?))
    };
    let (stdin, to_stdin, stdout, stderr) = pipes().map_err(|error| {
        Failure::new(Kind::Busy, format!("cannot make the command's pipes: {error}"))
            .hint("that machine is short of open files; try again when fewer commands run there")
    })?;
    let tag = cgroup.is_none().then(|| tag(mark));
    let prepared = Prepared {
        programs,
        argv,
        env: env.strings()?,
        directories,
        identity: user.identity,
        cgroup: cgroup.map(OwnedFd::from),
        stdio: [stdin, stdout.1.into(), stderr.1.into()],
        open_files,
        core: secrecy::given_core_limit(),
        tag,
    };
    Ok(Command { prepared, user: user.name, stdin: to_stdin, stdout: stdout.0.into(), stderr: stderr.0.into() })
}

/// A working directory, and `PWD` for it: its name as it was given, unless shells would not believe that.
fn directory(path: Vec<u8>, what: &str) -> Result<Directory, Failure> {
    let is_plain =
        path.starts_with(b"/") && !path.split(|byte| *byte == b'/').any(|part| part == b"." || part == b"..");
    let path = string(path, what)?;
    let pwd = if is_plain { Pwd::Named(string([b"PWD=", path.as_bytes()].concat(), what)?) } else { Pwd::Asked };
    Ok(Directory { path, pwd })
}

type Words = Vec<std::ffi::CString>;

/// Where the program may be, and its arguments.
fn words(plan: &Plan, user: &User, env: &Env) -> Result<(Words, Words), Failure> {
    let Some(program) = plan.argv.first() else {
        return Err(Failure::new(Kind::Usage, "there is no command to run"));
    };
    if plan.shell {
        let name = user.shell.file_name().unwrap_or(user.shell.as_os_str());
        let argv = vec![
            string(name.as_bytes().to_vec(), "the shell's name")?,
            c"-c".to_owned(),
            string(program.to_vec(), "the command")?,
        ];
        return Ok((vec![string(user.shell.as_os_str().as_bytes().to_vec(), "the shell's path")?], argv));
    }
    let argv = plan.argv.iter().map(|word| string(word.to_vec(), "an argument")).collect::<Result<_, _>>()?;
    Ok((env.candidates(program)?, argv))
}

/// What a child's trouble means to the caller.
pub(crate) fn failure(plan: &Plan, user: &str, trouble: Trouble) -> Failure {
    let why = io::Error::from_raw_os_error(trouble.errno);
    let program = plan.argv.first().map(|word| shown(word)).unwrap_or_default();
    let program = if plan.shell { format!("the login shell of {user}") } else { program };
    match (trouble.stage, trouble.errno) {
        (Stage::Stdio | Stage::Cgroup, _) => {
            let part = if trouble.stage == Stage::Cgroup { "cgroup" } else { "descriptors" };
            Failure::new(Kind::Internal, format!("cannot set up the command's {part}: {why}"))
        }
        (Stage::Identity, _) => Failure::new(Kind::NoUser, format!("cannot become the user {user}: {why}")),
        (Stage::Directory, _) => {
            let cwd = plan.cwd.as_ref().map(|cwd| shown(cwd)).unwrap_or_default();
            let below = if cwd.starts_with('/') { "" } else { " in the home" };
            Failure::new(Kind::NoDirectory, format!("cannot enter the directory {cwd}{below} as {user}: {why}"))
                .hint("give a directory that exists there with `--cwd DIR`, or leave it out for the user's home")
        }
        (Stage::Exec, libc::ENOENT) if program.contains('/') || plan.shell => {
            Failure::new(Kind::NotFound, format!("{program}: not found"))
        }
        (Stage::Exec, libc::ENOENT) => {
            Failure::new(Kind::NotFound, format!("{program}: not found in the PATH of {user}"))
                .hint("check the spelling, or give the program's full path")
        }
        (Stage::Exec, libc::EAGAIN | libc::ENOMEM | libc::ENFILE | libc::EMFILE) => {
            Failure::new(Kind::Busy, format!("{program}: cannot be started now: {why}"))
        }
        (Stage::Exec, _) => Failure::new(Kind::NotExecutable, format!("{program}: cannot be executed: {why}")),
        (Stage::Interpreter, _) => Failure::new(
            Kind::NotExecutable,
            format!("{program}: cannot be executed: the interpreter that it names is not there"),
        ),
    }
}

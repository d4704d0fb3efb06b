//! The executor as a process of its own, under the daemon's handle of it. This program is both: with the argument
//! `executor` and a home it is the executor, with `greet` and a socket a process that tries it, with the words of
//! `bombs` a command that does not want to end, else the tests.

use std::ffi::OsString;
use std::future::Future;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use libtest_mimic::{Arguments, Failed, Trial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::mpsc;

use malai_daemon::supervisor::{Event, Executor, Mode, Resume, StartOptions};
use malai_protocol::codec::{Frame, Kind};
use malai_protocol::failure;
use malai_protocol::home::Home;
use malai_protocol::plan::{Attachment, Ended, Hello, Outcome, SessionName, Sessions, VERSION};
use malai_protocol::session::{EndedBy, ExitRecord, Started};

mod bombs;
mod endless;
#[path = "../support/plan.rs"]
mod plan;
#[path = "../support/process.rs"]
mod process;

use plan::plan;
use process::{lives, until, within};

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    if let [_, executor, home] = &args[..]
        && executor == "executor"
    {
        let ended = malai_daemon::executor::main(Home::new(PathBuf::from(home)), None);
        return if ended.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    if let [_, greet, socket] = &args[..]
        && greet == "greet"
    {
        return try_socket(socket.as_ref());
    }
    if let Some(code) = endless::main(&args) {
        return code;
    }
    macro_rules! trials {
        ($($name:path)*) => { vec![$(Trial::test(name(stringify!($name)), || block_on($name()))),*] };
    }
    let trials = trials! {
        a_command_runs_in_a_process_that_has_nothing_of_the_daemon
        a_daemon_finds_the_executor_that_another_started
        when_the_handle_is_dropped_sessions_go_on_and_the_next_daemon_has_them
        without_sessions_the_executor_ends_when_the_handle_is_dropped
        a_killed_executor_is_told_its_sessions_are_killed_and_the_next_tells_of_them
        a_shutdown_returns_when_sessions_and_process_are_gone
        an_in_process_executor_does_the_same
        a_program_that_is_no_executor_is_a_failure_with_a_hint
        a_terminated_executor_ends_its_sessions_first
        another_user_is_turned_away_although_the_directory_lets_it_in
        an_executor_of_a_neighbouring_version_is_worked_with_and_no_other
        bombs::without_cgroups_a_bomb_of_the_executors_own_user_is_gone_within_ten_seconds
        bombs::a_bomb_of_a_user_who_runs_nothing_else_is_gone_within_five_seconds_every_time
        bombs::with_cgroups_a_bomb_is_gone_within_five_seconds_every_time
        bombs::what_is_left_is_named_and_counted
        bombs::a_user_who_runs_something_else_keeps_it
        bombs::others_sessions_go_on_and_are_answered_while_a_bomb_is_ended
        bombs::a_bomb_that_an_executor_left_when_it_was_killed_is_ended_by_the_next
        bombs::a_process_whose_first_thread_ended_is_ended_too
        bombs::a_tree_that_forks_to_shut_down_is_given_its_time
    };
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Without its module.
fn name(path: &str) -> &str {
    path.rsplit(' ').next().unwrap_or(path)
}

fn block_on(test: impl Future<Output = ()>) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(test);
    Ok(())
}

fn send(pid: u32, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).expect("a pid")), signal).expect("it is there");
}

fn first(session: SessionName) -> Attachment {
    Attachment { session, by: session.caller, follower: None, number: 1, binding: true, watches: false }
}

/// A daemon, as far as the executor sees one.
struct Daemon {
    executor: Executor,
    events: mpsc::Receiver<Event>,
}

impl Daemon {
    async fn start(home: &Home) -> Self {
        Self::of("executor", home).await
    }

    /// With an executor as this program plays it by this word.
    async fn of(word: &str, home: &Home) -> Self {
        let program = std::env::current_exe().expect("this program");
        let args = vec![word.into(), home.root().as_os_str().to_owned()];
        Self::with(home, Mode::Process { program, args }).await.expect("an executor")
    }

    async fn with(home: &Home, mode: Mode) -> Result<Self, failure::Failure> {
        let (sender, events) = mpsc::channel(16);
        let executor = Executor::start(StartOptions { home: home.clone(), mode, events: sender }).await?;
        Ok(Self { executor, events })
    }

    fn pid(&self) -> u32 {
        self.executor.pid().expect("a process")
    }

    /// Starts `sleep`; returns its session, its pid, and what keeps it attached.
    async fn sleep(&self) -> (SessionName, u32, impl Sized + use<>) {
        let plan = plan(&["sleep", "1000"]);
        let session = plan.session;
        self.executor.plan(plan).await.expect("sent");
        let mut attached = self.executor.attach(first(session)).await.expect("attached");
        let frame = within("it starts", attached.next()).await.expect("open").expect("a frame");
        let Started { pid, .. } = frame.expect(Kind::Started, "started").expect("decodes");
        (session, pid, attached)
    }

    /// Runs a command; returns its output.
    async fn run(&self, argv: &[&str]) -> (String, ExitRecord) {
        let plan = plan(argv);
        let mut attached = self.executor.attach(first(plan.session)).await.expect("attached");
        self.executor.plan(plan).await.expect("sent");
        let mut out = Vec::new();
        loop {
            let frame = within("a frame", attached.next()).await.expect("an end").expect("a frame");
            match frame.kind {
                Kind::Stdout => out.extend_from_slice(&frame.payload),
                Kind::Exit => return (String::from_utf8(out).expect("UTF-8"), frame.decode().expect("decodes")),
                Kind::Refused => panic!("{}", frame.decode::<failure::Failure>().expect("decodes")),
                _ => {}
            }
        }
    }

    async fn event(&mut self) -> Event {
        within("an event", self.events.recv()).await.expect("an event")
    }

    async fn ended(&mut self) -> Ended {
        match self.event().await {
            Event::Ended(ended) => ended,
            Event::Lost => panic!("the executor is lost"),
        }
    }

    /// Stops the executor as a daemon does; returns how sessions ended meanwhile.
    async fn stop(mut self) -> Vec<Ended> {
        let executor = self.executor.clone();
        let audit = async {
            let mut all = Vec::new();
            while let Some(event) = self.events.recv().await {
                let Event::Ended(ended) = event else { panic!("an ordered end is no loss") };
                executor.audited(ended.session).await.expect("it waits for this");
                all.push(ended);
            }
            all
        };
        let (stopped, all) = within("it stops", async { tokio::join!(self.executor.shutdown("a test"), audit) }).await;
        stopped.expect("in good order");
        all
    }
}

fn home() -> (tempfile::TempDir, Home) {
    let dir = tempfile::tempdir().expect("a directory");
    let home = Home::new(dir.path());
    (dir, home)
}

fn ended_by(ended: &Ended) -> EndedBy {
    match &ended.outcome {
        Outcome::Exit(record) => record.ended_by,
        Outcome::Refused(failure) => panic!("{failure}"),
    }
}

async fn a_command_runs_in_a_process_that_has_nothing_of_the_daemon() {
    let (_dir, home) = home();
    let daemon = Daemon::start(&home).await;
    let (out, record) = daemon.run(&["echo", "hi"]).await;
    assert_eq!((out.as_str(), record.exit_code()), ("hi\n", 0));
    let pid = daemon.pid();
    assert_ne!(pid, std::process::id());
    for fd in 0..3 {
        let link = std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).expect("open");
        assert_eq!(link, PathBuf::from("/dev/null"), "descriptor {fd}");
    }
    assert_eq!(std::fs::read_link(format!("/proc/{pid}/cwd")).expect("reads"), PathBuf::from("/"));
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("reads");
    let fields: Vec<&str> = stat.rsplit_once(") ").expect("fields").1.split(' ').collect();
    assert_eq!(fields[3], pid.to_string(), "it leads a session of its own");
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(home.executor_socket()).expect("a socket").permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    daemon.stop().await;
    assert!(!home.executor_socket().exists());
}

async fn a_daemon_finds_the_executor_that_another_started() {
    let (_dir, home) = home();
    let first = Daemon::start(&home).await;
    let (session, pid, _attached) = first.sleep().await;
    let mut second = Daemon::start(&home).await;
    assert_eq!(second.pid(), first.pid());
    assert_eq!(second.executor.incarnation(), first.executor.incarnation());
    let live: Vec<_> = second.executor.sessions().live.iter().map(|live| live.session).collect();
    assert_eq!(live, [session]);
    // The first one is told that it has lost the executor, and its going changes nothing.
    let Daemon { executor, mut events } = first;
    assert!(matches!(within("an event", events.recv()).await, Some(Event::Lost)));
    drop(executor);
    assert!(lives(pid));
    let end = malai_protocol::plan::End { session, cause: EndedBy::Killed, reason: None };
    second.executor.end(end).await.expect("sent");
    assert_eq!(ended_by(&second.ended().await), EndedBy::Killed);
    second.executor.audited(session).await.expect("sent");
    second.stop().await;
}

async fn when_the_handle_is_dropped_sessions_go_on_and_the_next_daemon_has_them() {
    let (_dir, home) = home();
    let daemon = Daemon::start(&home).await;
    let (session, pid, _attached) = daemon.sleep().await;
    let executor = daemon.pid();
    drop(daemon);
    // Longer than it stays for nothing.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(lives(pid) && lives(executor));
    let next = Daemon::start(&home).await;
    assert_eq!(next.pid(), executor);
    let live: Vec<_> = next.executor.sessions().live.iter().map(|live| live.session).collect();
    assert_eq!(live, [session]);
    next.stop().await;
    assert!(!lives(pid));
}

async fn without_sessions_the_executor_ends_when_the_handle_is_dropped() {
    let (_dir, home) = home();
    let daemon = Daemon::start(&home).await;
    let executor = daemon.pid();
    drop(daemon);
    until("the executor ends", || !lives(executor)).await;
    assert!(!home.executor_socket().exists());
}

async fn a_killed_executor_is_told_its_sessions_are_killed_and_the_next_tells_of_them() {
    let (_dir, home) = home();
    let mut daemon = Daemon::start(&home).await;
    let (session, pid, _attached) = daemon.sleep().await;
    send(daemon.pid(), Signal::SIGKILL);
    assert!(matches!(daemon.event().await, Event::Lost));
    assert_eq!(daemon.executor.plan(plan(&["true"])).await.err().map(|f| f.kind), Some(failure::Kind::Internal));
    let next = Daemon::start(&home).await;
    assert!(!lives(pid), "killed before the next one serves");
    let told = &next.executor.sessions().ended;
    assert_eq!((told.len(), told[0].session), (1, session));
    let Outcome::Refused(failure) = &told[0].outcome else { panic!("a record that nobody made") };
    assert_eq!(failure.kind, failure::Kind::Unknown);
    next.executor.audited(session).await.expect("sent");
    assert_eq!(next.run(&["echo", "hi"]).await.0, "hi\n");
    next.stop().await;
}

async fn a_shutdown_returns_when_sessions_and_process_are_gone() {
    let (_dir, home) = home();
    let daemon = Daemon::start(&home).await;
    let (session, pid, _attached) = daemon.sleep().await;
    let executor = daemon.pid();
    let ended = daemon.stop().await;
    assert_eq!((ended.len(), ended[0].session, ended_by(&ended[0])), (1, session, EndedBy::Shutdown));
    assert!(!lives(pid));
    assert!(!lives(executor));
    let next = Daemon::start(&home).await;
    assert!(next.executor.sessions().ended.is_empty(), "all was confirmed");
    next.stop().await;
}

async fn an_in_process_executor_does_the_same() {
    let (_dir, home) = home();
    let daemon = Daemon::with(&home, Mode::InProcess).await.expect("an executor");
    assert_eq!(daemon.executor.pid(), None);
    assert_eq!(daemon.run(&["echo", "hi"]).await.0, "hi\n");
    let (session, pid, _attached) = daemon.sleep().await;
    let ended = daemon.stop().await;
    assert_eq!(ended.last().map(|ended| (ended.session, ended_by(ended))), Some((session, EndedBy::Shutdown)));
    assert!(!lives(pid));
}

async fn a_program_that_is_no_executor_is_a_failure_with_a_hint() {
    let (_dir, home) = home();
    let missing = Mode::Process { program: "/no/such/malai".into(), args: Vec::new() };
    let failure = Daemon::with(&home, missing).await.err().expect("a failure");
    assert!(failure.message.contains("/no/such/malai") && failure.hint.is_some(), "{failure:?}");
    let wrong = Mode::Process { program: "/bin/false".into(), args: Vec::new() };
    let failure = Daemon::with(&home, wrong).await.err().expect("a failure");
    assert!(failure.message.contains("Exited { code: 1 }") && failure.hint.is_some(), "{failure:?}");
}

async fn a_terminated_executor_ends_its_sessions_first() {
    let (_dir, home) = home();
    let mut daemon = Daemon::start(&home).await;
    let (session, pid, _attached) = daemon.sleep().await;
    send(daemon.pid(), Signal::SIGTERM);
    let ended = daemon.ended().await;
    assert_eq!((ended.session, ended_by(&ended)), (session, EndedBy::Shutdown));
    assert!(!lives(pid));
    daemon.executor.audited(session).await.expect("sent");
    assert!(matches!(daemon.event().await, Event::Lost));
    assert!(!home.executor_socket().exists());
}

/// The public key of RFC 8032's second test: another machine than the caller.
const GUEST: [u8; 32] = [
    0x3d, 0x40, 0x17, 0xc3, 0xe8, 0x43, 0x89, 0x5a, 0x92, 0xb7, 0x0a, 0xa7, 0x4d, 0x1b, 0x7e, 0xbc, 0x9c, 0x98, 0x2c,
    0xcf, 0x2e, 0xc4, 0x96, 0x8c, 0xc0, 0xcd, 0x55, 0xf1, 0x2a, 0xf4, 0x66, 0x0c,
];

/// An executor of this version, as far as its greeting goes.
async fn greets(listener: &tokio::net::UnixListener, version: u32) {
    let (stream, _) = listener.accept().await.expect("a connection");
    let mut framed = tokio_util::codec::Framed::new(stream, malai_protocol::codec::FrameCodec::new());
    let hello = framed.next().await.expect("open").expect("a frame");
    let Hello::Control { version: ours } = hello.decode().expect("a greeting") else { panic!("not a daemon") };
    assert_eq!(ours, VERSION);
    let incarnation = malai_protocol::id::Incarnation::from_bytes([7; 16]);
    let tree = malai_protocol::plan::Tree::Marker;
    let sessions =
        Sessions { version, incarnation, tree, live: Vec::new(), ended: Vec::new(), program: None, more: false };
    framed.send(Frame::control(Kind::Sessions, &sessions).expect("fits")).await.expect("sent");
    // Until the daemon leaves.
    while framed.next().await.is_some() {}
}

async fn an_executor_of_a_neighbouring_version_is_worked_with_and_no_other() {
    let (_dir, home) = home();
    std::fs::create_dir_all(home.root()).expect("made");
    let listener = tokio::net::UnixListener::bind(home.executor_socket()).expect("binds");
    for (version, works) in [(VERSION - 1, true), (VERSION + 1, true), (VERSION - 2, false), (VERSION + 2, false)] {
        let daemon = async {
            let program = Mode::Process { program: "/bin/false".into(), args: Vec::new() };
            Daemon::with(&home, program).await.map(|daemon| daemon.executor.version())
        };
        let (_, told) = within("both are done", async { tokio::join!(greets(&listener, version), daemon) }).await;
        match told {
            Ok(told) => assert_eq!((told, works), (version, true)),
            Err(failure) => assert_eq!((failure.kind, works), (failure::Kind::Unsupported, false), "{version}"),
        }
    }
    // What an older one does not know is not asked of it.
    let asked = async {
        let program = Mode::Process { program: "/bin/false".into(), args: Vec::new() };
        let daemon = Daemon::with(&home, program).await.expect("a neighbour");
        let session = plan(&["true"]).session;
        let guest = malai_protocol::id::MachineId::from_bytes(GUEST).expect("a key");
        let attachment = Attachment { by: guest, watches: true, binding: false, ..first(session) };
        let resume = Resume { attachment, out_offset: 0, from_end: false, take_over: false, resend: None };
        daemon.executor.resume(resume).await
    };
    let (_, asked) = within("both are done", async { tokio::join!(greets(&listener, VERSION - 1), asked) }).await;
    let failure = asked.expect_err("it does not know that");
    assert_eq!(failure.kind, failure::Kind::Unsupported);
}

/// Answered by the executor.
const ANSWERED: u8 = 10;
/// Let in by the directory and the socket, and closed without an answer.
const CLOSED: u8 = 11;

/// Greets as a daemon does, and tells by its exit code what came of it.
fn try_socket(socket: &Path) -> ExitCode {
    let Ok(mut stream) = std::os::unix::net::UnixStream::connect(socket) else { return ExitCode::FAILURE };
    let hello = Frame::control(Kind::ExecutorHello, &Hello::Control { version: VERSION }).expect("fits");
    drop(stream.write_all(&hello.to_bytes()));
    let mut byte = [0];
    match stream.read(&mut byte) {
        Ok(1) => ANSWERED.into(),
        _ => CLOSED.into(),
    }
}

#[allow(clippy::print_stderr, reason = "says why it proves nothing")]
async fn another_user_is_turned_away_although_the_directory_lets_it_in() {
    if !nix::unistd::Uid::effective().is_root() {
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "only root can play another user");
        return eprintln!("not shown: only root can play another user");
    }
    let (dir, home) = home();
    let daemon = Daemon::start(&home).await;
    for (path, mode) in [(dir.path(), 0o755), (home.executor_socket().as_path(), 0o666)] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(path, mode).expect("its mode changes");
    }
    let greet = |uid: u32| {
        // By this name nobody's permissions on the way to the program matter.
        let mut command = tokio::process::Command::new("/proc/self/exe");
        command.arg("greet").arg(home.executor_socket()).current_dir("/").uid(uid).status()
    };
    let nobody = within("it is turned away", greet(65534)).await.expect("it ran");
    assert_eq!(nobody.code(), Some(CLOSED.into()));
    // The daemon's own user is answered, by the same program.
    let own = within("it is answered", greet(0)).await.expect("it ran");
    assert_eq!(own.code(), Some(ANSWERED.into()));
    drop(daemon);
}

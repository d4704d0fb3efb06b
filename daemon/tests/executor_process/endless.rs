//! Commands that do not want to end, as this program plays them. All of them end by themselves after a while.

use std::ffi::OsString;
use std::io::Read as _;
use std::process::{Command, ExitCode};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use malai_daemon::executor::{Incoming, Options, run};
use malai_protocol::home::Home;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{ForkResult, fork, setsid};
use tokio_util::sync::CancellationToken;

/// How many processes of a bomb do not rest.
const RESTLESS_PROCESS_COUNT: usize = 2;
/// How long they go on at most, so that a failed test leaves nothing for longer.
const MAX_LIFE_TIME: Duration = Duration::from_secs(60);

/// Plays what the first word says; none when it says none of these.
pub(crate) fn main(args: &[OsString]) -> Option<ExitCode> {
    let words: Vec<&str> = args.iter().skip(1).filter_map(|word| word.to_str()).collect();
    match words[..] {
        ["executor-without-cgroups", home] => executor(home),
        ["executor-without-kill", home] => executor_without_kill(home),
        ["keeps", ref words @ ..] => keeps(words),
        ["bomb", token, width] => bomb(token, width.parse().ok()?),
        ["hop", _token, until, pause] => hop(until.parse().ok()?, Duration::from_millis(pause.parse().ok()?)),
        ["headless", _token] => headless(),
        ["become", uid, _token] => stay_as(uid.parse().ok()?),
        _ => return None,
    }
    Some(ExitCode::SUCCESS)
}

/// The executor as `malai_daemon::executor::main` runs it, but for the cgroups.
fn executor(home: &str) {
    #[cfg(target_os = "linux")]
    nix::sys::prctl::set_child_subreaper(true).expect("a subreaper");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let options = Options { home: Home::new(home), cgroups: false, stop: CancellationToken::new(), log: None };
    runtime.block_on(run(options, Incoming::Socket)).expect("it runs");
}

/// The same without the right to signal other users' processes, as a daemon has it that is not root.
#[allow(unsafe_code, reason = "no safe interface drops a capability")]
fn executor_without_kill(home: &str) {
    use std::os::unix::process::CommandExt as _;
    const CAP_KILL: libc::c_ulong = 5;
    // SAFETY: integers.
    let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, CAP_KILL, 0, 0, 0) };
    assert_eq!(dropped, 0, "root may drop it");
    panic!("{}", Command::new("/proc/self/exe").args(["executor-without-cgroups", home]).exec());
}

/// Starts this program with these words, and waits for it.
fn keeps(words: &[&str]) {
    let mut kept = Command::new("/proc/self/exe").args(words).spawn().expect("it starts");
    drop(kept.wait());
}

fn now_ms() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis()
}

/// Starts `width` processes that fork and leave, without an environment, and stays. A few of them never rest; the others
/// do, so that the machine has some time for the tests beside this one.
fn bomb(token: &str, width: usize) {
    // What forks and leaves is not told, and this is not asked.
    ignore_term();
    let until = (now_ms() + MAX_LIFE_TIME.as_millis()).to_string();
    // They wait for the end of this pipe, so that all can start before the first goes off.
    let (gate, hold) = std::io::pipe().expect("a pipe");
    for number in 0..width {
        let pause = if number < RESTLESS_PROCESS_COUNT { "0" } else { "50" };
        let mut hopper = Command::new("/proc/self/exe");
        let hopper = hopper.env_clear().args(["hop", token, &until, pause]).stdin(gate.try_clone().expect("a copy"));
        drop(hopper.spawn().expect("one of a bomb"));
    }
    drop((gate, hold));
    std::thread::sleep(MAX_LIFE_TIME);
}

#[allow(unsafe_code, reason = "no handler runs")]
fn ignore_term() {
    // SAFETY: ignoring a signal runs nothing.
    unsafe { signal(Signal::SIGTERM, SigHandler::SigIgn) }.expect("it may be ignored");
}

/// Leads a session of its own, forks, and leaves; and so does the child. There are never more than there were.
#[allow(unsafe_code, reason = "this process has one thread")]
fn hop(until: u128, pause: Duration) {
    drop(std::io::stdin().read(&mut [0]));
    while now_ms() < until {
        std::thread::sleep(pause);
        // The first one leads a group, perhaps.
        let _refused = setsid();
        // SAFETY: there is no other thread that could hold a lock.
        if let Ok(ForkResult::Parent { .. }) = unsafe { fork() } {
            // SAFETY: it ends this process.
            unsafe { libc::_exit(0) }
        }
    }
}

/// Ends its first thread, and lives on in another.
#[allow(unsafe_code, reason = "no safe interface ends the first thread alone")]
fn headless() {
    ignore_term();
    std::thread::spawn(|| std::thread::sleep(MAX_LIFE_TIME));
    // SAFETY: nothing on this thread's stack is used by the other one.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
}

/// Becomes another user for good, which a child of root may do, and stays.
fn stay_as(uid: u32) {
    ignore_term();
    nix::unistd::setuid(uid.into()).expect("root may");
    std::thread::sleep(MAX_LIFE_TIME);
}

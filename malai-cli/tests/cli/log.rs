//! What becomes of a daemon whose log goes nowhere, and what it logs at all.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Home, Stopped, made, sees_what_is_open, until, wait};

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).expect("a pid")), signal).expect("signals");
}

fn runs(home: &Home, script: &str, code: i32) {
    let ended = home.run(&["laptop.company", "--", "sh", "-c", script]);
    assert_eq!(ended.code, code, "{ended}");
}

fn is_ready(home: &Home) -> bool {
    home.run(&["daemon", "status"]).code == 0
}

fn status(home: &Home) -> serde_json::Value {
    let ended = home.run(&["daemon", "status", "--json"]);
    serde_json::from_str::<serde_json::Value>(&ended.stdout).expect("a document")["daemon"].take()
}

fn pid(home: &Home, which: &str) -> u32 {
    u32::try_from(status(home)[which].as_u64().expect("a pid")).expect("a pid")
}

/// A daemon in the foreground whose standard error is this, or is closed.
fn foreground(home: &Home, stderr: Option<Stdio>) -> Child {
    let mut command = Command::new("sh");
    home.prepare(&mut command);
    let script =
        if stderr.is_none() { "exec \"$0\" daemon --foreground 2>&-" } else { "exec \"$0\" daemon --foreground" };
    command.args(["-c", script, env!("CARGO_BIN_EXE_malai")]).stderr(stderr.unwrap_or_else(Stdio::null));
    command.spawn().expect("starts")
}

/// Runs commands under such a daemon, also after SIGHUP, and ends it.
fn serves(stderr: Option<Stdio>, check: impl FnOnce(&Home, u32)) {
    let home = made();
    let _stopped = Stopped(&home);
    let child = foreground(&home, stderr);
    until("it is ready", || is_ready(&home));
    assert_eq!(child.id(), pid(&home, "pid"));
    runs(&home, "exit 7", 7);
    signal(child.id(), Signal::SIGHUP);
    runs(&home, "exit 3", 3);
    check(&home, child.id());
    signal(child.id(), Signal::SIGTERM);
    let ended = wait(child);
    assert_eq!(ended.code, 0, "{ended}");
    assert!(!is_ready(&home));
}

#[test]
fn a_daemon_whose_log_is_on_a_full_disk_serves_and_says_what_the_log_lacks() {
    serves(Some(File::options().write(true).open("/dev/full").expect("opens").into()), |home, _| {
        let shown = home.run(&["daemon", "status"]).stdout;
        assert!(shown.contains(" lines were not written: No space left"), "{shown}");
        let metrics = home.run(&["metrics"]).stdout;
        let lost = metrics.lines().find_map(|line| line.strip_prefix("malai_log_lines_lost_total ")).expect("a number");
        assert!(lost.parse::<u64>().expect("a number") > 0, "{metrics}");
        let doctor = home.run(&["doctor"]).stdout;
        assert!(doctor.contains("note    log: "), "{doctor}");
    });
}

#[test]
#[cfg(target_os = "linux")]
fn a_daemon_whose_standard_error_is_closed_serves_and_opens_nothing_in_its_place() {
    serves(None, |_, pid| {
        if !sees_what_is_open() {
            return;
        }
        let stderr = std::fs::read_link(format!("/proc/{pid}/fd/2")).expect("there is one");
        assert_eq!(stderr, Path::new("/dev/null"));
    });
}

#[test]
fn a_daemon_whose_log_has_lost_its_reader_serves() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    serves(Some(writer.into()), |home, _| assert!(status(home)["lost_log"]["lines"].as_u64() > Some(0)));
}

#[test]
fn a_daemon_whose_log_nobody_reads_serves() {
    let (_reader, mut writer) = std::io::pipe().expect("a pipe");
    let filler = writer.try_clone().expect("a copy");
    // Fills the pipe, and then waits in vain, as the daemon must not.
    std::thread::spawn(move || {
        let mut filler = filler;
        filler.write_all(&vec![b'x'; 4 * 1024 * 1024])
    });
    until("the pipe is full", || {
        use std::os::fd::AsFd as _;
        let mut asked = [nix::poll::PollFd::new(writer.as_fd(), nix::poll::PollFlags::POLLOUT)];
        nix::poll::poll(&mut asked, nix::poll::PollTimeout::ZERO) == Ok(0)
    });
    writer.flush().expect("nothing is held back");
    serves(Some(writer.into()), |_, _| {});
}

#[test]
fn a_background_daemon_and_its_executor_serve_without_a_log() {
    for full in [true, false] {
        let home = made();
        let _stopped = Stopped(&home);
        let log = home.path().join("daemon.log");
        if full {
            std::os::unix::fs::symlink("/dev/full", &log).expect("linked");
        } else {
            std::fs::create_dir(&log).expect("made");
        }
        let started = home.run(&["daemon"]);
        assert_eq!(started.code, 0, "{started}");
        // What cannot be opened is known before it is written.
        assert_eq!(started.stderr.contains("daemon.log cannot be written: Is a directory"), !full, "{started}");
        runs(&home, "exit 7", 7);
        let executor = pid(&home, "executor_pid");
        signal(executor, Signal::SIGHUP);
        runs(&home, "exit 3", 3);
        assert_eq!(pid(&home, "executor_pid"), executor);
        // The executor's first lines are lost in any case.
        assert!(status(&home)["lost_log"]["lines"].as_u64() > Some(0), "{}", status(&home));
        let stopped = home.run(&["daemon", "stop"]);
        assert_eq!(stopped.code, 0, "{stopped}");
    }
}

#[test]
fn sighup_has_daemon_executor_and_agent_open_the_log_again_and_ends_none() {
    let home = made();
    let _stopped = Stopped(&home);
    let log = home.path().join("daemon.log");
    assert_eq!(home.run(&["-n", "laptop.company", "true"]).code, 0, "an agent runs it");
    let reopens = |pid: u32| {
        until("there is a log", || log.exists());
        std::fs::rename(&log, log.with_extension("moved")).expect("moved");
        signal(pid, Signal::SIGHUP);
        until("it is made again", || log.exists());
    };
    let agent = pid(&home, "pid");
    reopens(agent);
    assert_eq!(pid(&home, "pid"), agent);

    assert_eq!(home.run(&["daemon"]).code, 0);
    let (daemon, executor) = (pid(&home, "pid"), pid(&home, "executor_pid"));
    reopens(daemon);
    reopens(executor);
    runs(&home, "exit 7", 7);
    assert_eq!((pid(&home, "pid"), pid(&home, "executor_pid")), (daemon, executor));
}

#[test]
fn a_daemon_that_was_started_by_nohup_opens_its_log_again_and_its_commands_end_by_sighup() {
    let home = made();
    let _stopped = Stopped(&home);
    let mut command = Command::new("sh");
    home.prepare(&mut command).args(["-c", "trap '' HUP; exec \"$0\" daemon", env!("CARGO_BIN_EXE_malai")]);
    let started = wait(command.spawn().expect("starts"));
    assert_eq!(started.code, 0, "{started}");
    let (log, daemon) = (home.path().join("daemon.log"), pid(&home, "pid"));
    until("there is a log", || log.exists());
    std::fs::rename(&log, log.with_extension("moved")).expect("moved");
    signal(daemon, Signal::SIGHUP);
    until("it is made again", || log.exists());
    runs(&home, "kill -HUP $$; exit 0", 129);
    assert_eq!(pid(&home, "pid"), daemon);
}

#[test]
fn a_relay_opens_its_log_again_by_sighup_and_ends_by_sigterm() {
    let home = Home::new();
    let manager = made();
    let token = manager.run(&["cluster", "invite", "company", "--relay"]).stdout;
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
    let (url, listen) = (format!("https://127.0.0.1:{free}"), format!("127.0.0.1:{free}"));
    let made = home.run(&["relay", "init", token.trim(), "--url", &url, "--listen", &listen]);
    assert_eq!(made.code, 0, "{made}");
    let child = home.malai(&["relay", "run"]).stderr(Stdio::null()).spawn().expect("starts");
    until("it is there", || home.run(&["relay", "status"]).code == 0);
    signal(child.id(), Signal::SIGHUP);
    std::fs::remove_file(home.path().join("relay/relay.sock")).expect("removed");
    let status = home.run(&["relay", "status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status.stdout).expect("a document");
    assert_eq!(status["relay"]["pid"].as_u64(), Some(child.id().into()), "its socket is back");
    signal(child.id(), Signal::SIGTERM);
    assert_eq!(wait(child).code, 0);
    assert_eq!(home.run(&["relay", "status"]).code, 1);
}

#[test]
fn a_filter_that_is_not_understood_is_told_and_the_default_counts() {
    let home = made();
    let _stopped = Stopped(&home);
    for bad in ["inof", "malai_daemon=loud"] {
        let started = wait(home.malai(&["daemon"]).env("MALAI_LOG", bad).spawn().expect("starts"));
        assert_eq!(started.code, 0, "{started}");
        let told = format!("malai: warning: MALAI_LOG={bad} is not understood, and `warn,malai=info");
        assert!(started.stderr.starts_with(&told), "{started}");
        let log = home.path().join("daemon.log");
        until("the default counts", || read(&log).contains("INFO malai_daemon::executor: executor ready"));
        assert_eq!(home.run(&["daemon", "stop"]).code, 0);
    }
}

fn read(path: &PathBuf) -> String {
    let mut text = String::new();
    // It may be between two names just now.
    let _missing = File::open(path).and_then(|mut file| file.read_to_string(&mut text));
    text
}

#[test]
fn commands_cost_the_log_nothing_and_refusals_a_few_lines() {
    let home = made();
    let _stopped = Stopped(&home);
    assert_eq!(home.run(&["daemon"]).code, 0);
    let log = home.path().join("daemon.log");
    until("it has started", || read(&log).contains("a daemon is here"));
    let before = read(&log).len();
    for _ in 0..20 {
        runs(&home, "exit 7", 7);
        let refused = home.run(&["nobody@laptop.company", "--", "true"]);
        assert_eq!(refused.code, 254, "{refused}");
    }
    assert_eq!(home.run(&["daemon", "stop"]).code, 0);
    let text = read(&log);
    let text = text.get(before..).expect("it only grew");
    assert_eq!(text.matches(" refused").count(), 5, "{text}");
    assert!(!text.contains("granted") && !text.contains("session started"), "{text}");
    assert!(text.len() < 4000, "{text}");
}

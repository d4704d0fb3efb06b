//! The life of a daemon, as the one who types sees it.

use std::path::Path;

use crate::harness::{Home, Stopped, made, sees_what_is_open, until};

fn pid(home: &Home) -> u64 {
    let status = home.run(&["daemon", "status", "--json"]).stdout;
    let status: serde_json::Value = serde_json::from_str(&status).expect("a document");
    status["daemon"]["pid"].as_u64().expect("a pid")
}

#[test]
fn a_daemon_starts_once_says_its_pid_and_stops() {
    let home = Home::new();
    let _stopped = Stopped(&home);
    let started = home.run(&["daemon"]);
    assert_eq!((started.code, started.stdout.as_str()), (0, ""), "{started}");
    let pid = pid(&home);
    assert!(started.stderr.ends_with(&format!("malai: daemon ready, pid {pid}\n")), "{started}");
    assert_eq!(home.run(&["daemon", "status"]).code, 0);

    let second = home.run(&["daemon"]);
    assert_eq!(second.code, 255, "{second}");
    assert!(second.stderr.contains(&pid.to_string()), "{second}");

    assert_eq!(home.run(&["daemon", "stop"]).code, 0);
    assert_eq!(home.run(&["daemon", "status"]).code, 1);
    assert!(home.run(&["daemon"]).code == 0, "it starts again at once");
}

#[test]
fn a_daemon_in_the_foreground_stops_by_sigterm_in_good_order() {
    let home = Home::new();
    let mut child = home.malai(&["daemon", "--foreground"]).spawn().expect("starts");
    let stderr = child.stderr.take().expect("a pipe");
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(stderr));
    let ready = format!("malai: daemon ready, pid {}", child.id());
    assert!(lines.any(|line| line.expect("text") == ready));
    // The rest is read too, or a full pipe would hold the daemon.
    let rest = std::thread::spawn(move || lines.count());
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("signals");
    let ended = crate::harness::wait(child);
    assert_eq!(ended.code, 0, "{ended}");
    rest.join().expect("no panic");
    assert_eq!(home.run(&["daemon", "status"]).code, 1);
}

#[test]
#[cfg(target_os = "linux")]
fn an_agent_keeps_nothing_of_the_one_that_started_it() {
    let home = Home::new();
    let _stopped = Stopped(&home);
    // A shell passes its descriptors on.
    let mut shell = std::process::Command::new("sh");
    let script = "exec 9<\"$MALAI_HOME\"; exec \"$0\" -n web01.company true";
    shell.args(["-c", script, env!("CARGO_BIN_EXE_malai")]);
    let ended = crate::harness::wait(home.prepare(&mut shell).spawn().expect("starts"));
    assert_eq!(ended.code, 255, "{ended}");
    assert_eq!(home.run(&["daemon", "status"]).code, 1, "an agent is no daemon");

    let process = Path::new("/proc").join(pid(&home).to_string());
    let stat = std::fs::read_to_string(process.join("stat")).expect("reads");
    let session = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(3)).expect("a session");
    assert_eq!(session, pid(&home).to_string(), "it leads its own session");
    if !sees_what_is_open() {
        return;
    }
    let link = |name: &str| std::fs::read_link(process.join(name)).expect("a link");
    for name in ["fd/0", "fd/1", "fd/2"] {
        assert_eq!(link(name), Path::new("/dev/null"), "{name}");
    }
    assert_eq!(link("cwd"), Path::new("/"));
    let open = std::fs::read_dir(process.join("fd")).expect("reads");
    let directories = open.filter_map(|fd| std::fs::read_link(fd.expect("an entry").path()).ok());
    assert_eq!(directories.filter(|to| to == home.path()).count(), 0);
}

#[test]
fn several_at_once_share_one_agent() {
    let home = Home::new();
    let _stopped = Stopped(&home);
    let all: Vec<_> = (0..5).map(|_| home.malai(&["web01.company", "true"]).spawn().expect("starts")).collect();
    for child in all {
        let ended = crate::harness::wait(child);
        assert_eq!(ended.code, 255, "{ended}");
        assert!(!ended.stderr.contains("socket"), "{ended}");
    }
}

#[test]
fn a_restart_replaces_the_daemon_and_is_refused_where_none_runs() {
    let home = Home::new();
    let _stopped = Stopped(&home);
    let refused = home.run(&["daemon", "restart"]);
    assert_eq!(refused.code, 255);
    assert!(refused.stderr.contains("hint: start one: malai daemon\n"), "{refused}");

    assert_eq!(home.run(&["daemon"]).code, 0);
    let old = pid(&home);
    let restarted = home.run(&["daemon", "restart", "--json"]);
    assert_eq!(restarted.code, 0, "{restarted}");
    let new = pid(&home);
    assert_ne!(new, old);
    assert_eq!(restarted.stdout, format!("{{\"pid\":{new},\"ready\":true}}\n"));

    let stopped = home.run(&["daemon", "stop", "--keep-sessions"]);
    assert_eq!(stopped.code, 0, "{stopped}");
    assert!(stopped.stderr.contains("daemon stopped; its sessions go on"), "{stopped}");
    assert_eq!(home.run(&["daemon", "status"]).code, 1);

    // An agent is no daemon.
    assert_eq!(home.run(&["-n", "web01.company", "true"]).code, 255);
    assert_eq!(home.run(&["daemon", "restart"]).code, 255);
}

#[test]
fn a_restart_succeeds_though_commands_start_agents_in_between() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let home = Home::new();
    let _stopped = Stopped(&home);
    assert_eq!(home.run(&["daemon"]).code, 0);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                home.run(&["-n", "web01.company", "true"]);
            }
        });
        let restarts: Vec<_> = (0..4).map(|_| home.run(&["daemon", "restart"])).collect();
        done.store(true, Ordering::Relaxed);
        for ended in restarts {
            assert_eq!(ended.code, 0, "{ended}");
        }
    });
    assert_eq!(home.run(&["daemon", "status"]).code, 0);
}

/// Runs a command on this machine, by its daemon.
fn runs(home: &Home) {
    let ended = home.run(&["laptop.company", "--", "sh", "-c", "exit 7"]);
    assert_eq!(ended.code, 7, "{ended}");
}

#[test]
fn a_daemon_whose_sockets_are_removed_is_not_taken_for_gone_and_serves_on() {
    let home = made();
    let _stopped = Stopped(&home);
    assert_eq!(home.run(&["daemon"]).code, 0);
    let daemon = pid(&home);
    let remove = || {
        for name in ["malai.sock", "executor.sock"] {
            std::fs::remove_file(home.path().join(name)).expect("removed");
        }
    };
    remove();
    let status = home.run(&["daemon", "status"]);
    assert_eq!((status.code, status.stdout.contains(&format!("daemon pid {daemon}, "))), (0, true), "{status}");
    until("the executor's is back too", || home.path().join("executor.sock").exists());
    remove();
    runs(&home);
    until("both are back", || home.path().join("executor.sock").exists());
    remove();
    let doctor = home.run(&["doctor"]);
    assert!(doctor.stdout.contains(&format!("ok      daemon: malai 0.1.0, pid {daemon}\n")), "{doctor}");
    until("both are back", || home.path().join("executor.sock").exists());
    remove();
    let second = home.run(&["daemon"]);
    assert_eq!(second.code, 255, "{second}");
    assert!(second.stderr.contains(&format!("pid {daemon}\n")), "{second}");
    until("both are back", || home.path().join("executor.sock").exists());
    remove();
    let stopped = home.run(&["daemon", "stop"]);
    assert_eq!((stopped.code, stopped.stderr.as_str()), (0, "malai: daemon stopped\n"), "{stopped}");
    assert!(!is_alive(daemon), "it is gone");
}

fn is_alive(pid: u64) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
#[cfg(target_os = "linux")]
fn a_daemon_that_cannot_bind_its_socket_again_is_said_to_run_and_is_stopped_by_a_signal_with_its_sessions() {
    let home = made();
    let _stopped = Stopped(&home);
    assert_eq!(home.run(&["daemon"]).code, 0);
    let daemon = pid(&home);
    let detached = home.run(&["laptop.company", "--detach", "--", "sleep", "1000"]);
    assert_eq!(detached.code, 0, "{detached}");
    // No file takes the place of a directory.
    let socket = home.path().join("malai.sock");
    std::fs::remove_file(&socket).expect("removed");
    std::fs::create_dir(&socket).expect("made");

    let unreached =
        format!("a daemon, pid {daemon}, runs on this machine, but does not answer at {}", socket.display());
    let status = home.run(&["daemon", "status"]);
    assert_eq!((status.code, status.stdout.as_str()), (1, format!("{unreached}\n").as_str()), "{status}");
    let doctor = home.run(&["doctor"]);
    assert!(doctor.code == 1 && doctor.stdout.contains(&format!("broken  daemon: {unreached}\n")), "{doctor}");
    let command = home.run(&["laptop.company", "true"]);
    assert!(command.code == 255 && command.stderr.contains(&unreached), "{command}");
    let waits = format!(
        "malai: a daemon, pid {daemon}, holds the lock but does not answer at its socket yet; waiting for it…\n"
    );
    assert!(command.stderr.starts_with(&waits) && !command.stderr.contains("no daemon runs here"), "{command}");
    let second = home.run(&["daemon"]);
    assert_eq!(second.code, 255, "{second}");
    assert!(second.stderr.contains(&format!("does not answer: pid {daemon}\n")), "{second}");
    assert!(second.stderr.contains("malai daemon stop"), "{second}");

    let stopped = home.run(&["daemon", "stop"]);
    assert_eq!(stopped.code, 0, "{stopped}");
    assert!(stopped.stderr.contains("ending it by SIGTERM\nmalai: daemon stopped\n"), "{stopped}");
    assert!(!is_alive(daemon), "it is gone");
    let audit = home.run(&["audit", "--json"]).stdout;
    assert_eq!(audit.matches("\"event\":\"start\"").count(), audit.matches("\"event\":\"end\"").count(), "{audit}");
    std::fs::remove_dir(&socket).expect("removed");
    assert_eq!(home.run(&["daemon", "stop"]).stderr, "malai: no daemon runs here\n");
}

#[test]
#[cfg(target_os = "linux")]
fn the_pid_of_another_process_in_the_lock_costs_that_process_nothing() {
    let home = made();
    let _stopped = Stopped(&home);
    let mut bystander = std::process::Command::new("sleep").arg("1000").spawn().expect("starts");
    assert_eq!(home.run(&["daemon"]).code, 0);
    let daemon = pid(&home);
    let socket = home.path().join("malai.sock");
    std::fs::remove_file(&socket).expect("removed");
    std::fs::create_dir(&socket).expect("made");
    std::fs::write(home.path().join("malai.lock"), format!("{}\n", bystander.id())).expect("written");
    let stopped = home.run(&["daemon", "stop"]);
    assert_eq!(stopped.code, 255, "{stopped}");
    assert!(stopped.stderr.contains("the system does not say which process it is"), "{stopped}");
    assert!(is_alive(daemon) && is_alive(bystander.id().into()));
    bystander.kill().expect("ends");
    bystander.wait().expect("ends");
    std::fs::remove_dir(&socket).expect("removed");
}

#[test]
fn a_daemon_whose_lock_and_socket_are_removed_keeps_its_home() {
    let home = made();
    let _stopped = Stopped(&home);
    assert_eq!(home.run(&["daemon"]).code, 0);
    let daemon = pid(&home);
    let lock = home.path().join("malai.lock");
    std::fs::remove_file(&lock).expect("removed");
    let second = home.run(&["daemon"]);
    assert!(second.code == 255 && second.stderr.contains(&format!("pid {daemon}\n")), "{second}");
    std::fs::remove_file(&lock).expect("removed");
    std::fs::remove_file(home.path().join("malai.sock")).expect("removed");
    until("both are back", || lock.exists() && home.path().join("malai.sock").exists());
    assert_eq!(pid(&home), daemon);
    runs(&home);
}

#[test]
fn results_that_were_not_written_are_no_success() {
    use std::process::Stdio;
    let home = made();
    for words in [&["--help"][..], &["--version"], &["config", "show", "company"], &["daemon", "stop", "--json"]] {
        let full = std::fs::File::options().write(true).open("/dev/full").expect("opens");
        let ended = crate::harness::wait(home.malai(words).stdout(full).spawn().expect("starts"));
        assert_eq!(ended.code, 255, "{words:?}: {ended}");
        assert!(ended.stderr.contains("standard output cannot be written: No space left"), "{ended}");
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let ended = crate::harness::wait(home.malai(words).stdout(Stdio::from(writer)).spawn().expect("starts"));
        assert_eq!(ended.code, 141, "{words:?}: {ended}");
        assert!(!ended.stderr.contains("panicked"), "{ended}");
    }
}

//! What of malai's memory others can have: no core of it, and none of its limits for commands.

#![cfg(target_os = "linux")]

use crate::harness::{Home, Stopped, wait};

/// The limits of cores of a process, soft and hard, in bytes.
fn core_limits(pid: &serde_json::Value) -> (String, String) {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("reads");
    let line = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).expect("a limit");
    let mut fields = line.split_whitespace().map(str::to_owned);
    (fields.next().expect("soft"), fields.next().expect("hard"))
}

#[test]
fn malai_leaves_no_core_and_a_command_has_the_limit_that_the_daemon_was_started_with() {
    let home = Home::new();
    let _stopped = Stopped(&home);
    let me = nix::unistd::User::from_uid(nix::unistd::geteuid()).expect("looks").expect("a user").name;
    let made = home.run(&["cluster", "init", "company", "--name", "laptop", "--private", "--username", &me]);
    assert_eq!(made.code, 0, "{made}");
    // Blocks of 512 bytes.
    let script = "ulimit -H -c 4000 && ulimit -S -c 2000 && exec \"$0\" daemon";
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", script, env!("CARGO_BIN_EXE_malai")]);
    let started = wait(home.prepare(&mut shell).spawn().expect("starts"));
    assert_eq!(started.code, 0, "{started}");
    let status = home.run(&["daemon", "status", "--json"]).stdout;
    let status: serde_json::Value = serde_json::from_str(&status).expect("a document");
    for process in ["pid", "executor_pid"] {
        let (soft, hard) = core_limits(&status["daemon"][process]);
        assert_eq!((soft.as_str(), hard), ("0", (4000 * 512).to_string()), "{process}");
    }
    let ran = home.run(&["laptop.company", "--", "sh", "-c", "ulimit -S -c; ulimit -H -c"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "2000\n4000\n"), "{ran}");
}

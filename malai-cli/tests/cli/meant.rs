//! What people type first, and the hint that says what was meant: after the error, on standard error, and no exit code
//! changes for it.

use malai_protocol::codec::Kind;
use malai_protocol::failure::{self, Failure};

use crate::harness::{Daemon, Ended, Home, record, wait};

/// A home that knows the cluster `lab`.
fn home() -> Home {
    let home = Home::new();
    std::fs::create_dir_all(home.path().join("clusters/lab")).expect("a directory");
    home
}

/// Runs it against a daemon that refuses with this kind.
fn refused(args: &[&str], kind: failure::Kind) -> Ended {
    let home = home();
    let daemon = Daemon::bind(&home);
    let child = home.malai(args).spawn().expect("starts");
    let mut peer = daemon.accept();
    peer.request();
    peer.greet();
    peer.send(Kind::Refused, &Failure::new(kind, "no such thing").hint("its own hint"));
    wait(child)
}

/// What is said after the error and its own hint.
fn hint(ended: &Ended, error: &str) -> Option<String> {
    let rest = ended.stderr.strip_prefix(error).unwrap_or_else(|| panic!("{ended}"));
    let hint = rest.strip_prefix("malai: hint: ");
    assert!(hint.is_some() != rest.is_empty() && rest.lines().count() < 2, "one line more, or none: {ended}");
    hint.map(|hint| hint.trim_end_matches('\n').to_owned())
}

const REFUSED: &str = "malai: error: no such thing\nmalai: hint: its own hint\n";

fn check(kind: failure::Kind, cases: &[(&[&str], &str)]) {
    for (args, meant) in cases {
        let ended = refused(args, kind);
        assert_eq!((ended.code, ended.stdout.as_str()), (i32::from(kind.exit_code()), ""), "{args:?}: {ended}");
        let meant = (!meant.is_empty()).then(|| (*meant).to_owned());
        assert_eq!(hint(&ended, REFUSED), meant, "{args:?}");
    }
}

#[test]
fn options_of_malai_after_the_target_are_shown_before_it() {
    check(
        failure::Kind::NotFound,
        &[
            (
                &["web01.lab", "-n", "echo", "hi"],
                "malai's own options go before the target: malai -n web01.lab echo hi",
            ),
            (
                &["web01.lab", "-n", "--", "echo", "hi"],
                "malai's own options go before the target: malai -n web01.lab -- echo hi",
            ),
            (&["web01.lab", "-c", "echo hi"], "malai's own options go before the target: malai -c 'echo hi' web01.lab"),
            (
                &["web01.lab", "-nc", "echo hi"],
                "malai's own options go before the target: malai -nc 'echo hi' web01.lab",
            ),
            (&["web01.lab", "-cls"], "malai's own options go before the target: malai -cls web01.lab"),
            (
                &["-v", "u@web01.lab", "--timeout", "5s", "--json", "sleep", "9"],
                "malai's own options go before the target: malai -v --timeout 5s --json u@web01.lab sleep 9",
            ),
            (&["web01.lab", "-n"], "malai's own options go before the target: malai -n web01.lab COMMAND"),
            (&["web01.lab", "--", "-c", "ls"], "malai's own options go before the target: malai -c ls web01.lab"),
            (&["web01.lab", "--help"], "help about malai itself: malai exec --help"),
            (&["web01.lab", "-t", "top"], ""),
            (&["web01.lab", "--no-such-option"], ""),
        ],
    );
}

#[test]
fn a_command_line_in_one_word_is_shown_as_words_or_for_a_shell() {
    check(
        failure::Kind::NotFound,
        &[
            (
                &["web01.lab", "--", "ls /tmp"],
                "`ls /tmp` is one word, so malai looks for a program of that name: malai web01.lab -- ls /tmp",
            ),
            (
                &["web01.lab", "ls -l", "/my files"],
                "`ls -l` is one word, so malai looks for a program of that name: malai web01.lab ls -l '/my files'",
            ),
            (
                &["web01.lab", "--", "ls | wc -l"],
                "`ls | wc -l` is one word, and no shell splits it: malai -c 'ls | wc -l' web01.lab",
            ),
            (
                &["web01.lab", "--", "cd /tmp; ls"],
                "`cd /tmp; ls` is one word, and no shell splits it: malai -c 'cd /tmp; ls' web01.lab",
            ),
            (
                &["web01.lab", "--", "FOO=1 env"],
                "`FOO=1 env` is one word, and no shell splits it: malai -c 'FOO=1 env' web01.lab",
            ),
            (&["web01.lab", "--", "no-such-program", "a b"], ""),
        ],
    );
}

#[test]
fn what_only_a_shell_obeys_is_shown_for_a_shell_or_as_an_option() {
    check(
        failure::Kind::NotFound,
        &[
            (
                &["web01.lab", "--", "cd", "/tmp"],
                "`cd` is a word of a shell, not a program; set the directory with --cwd: malai --cwd /tmp web01.lab -- COMMAND",
            ),
            (
                &["web01.lab", "cd", "/tmp", "&&", "ls"],
                "`cd` is a word of a shell, not a program: malai -c 'cd /tmp && ls' web01.lab",
            ),
            (
                &["web01.lab", "--", "source", "/my env"],
                "`source` is a word of a shell, not a program: malai -c 'source '\\''/my env'\\''' web01.lab",
            ),
            (
                &["-n", "web01.lab", "FOO=1", "BAR=a b", "env", "-0"],
                "no shell reads these words; set a variable with --env: malai -n --env FOO=1 --env 'BAR=a b' web01.lab -- env -0",
            ),
            (&["web01.lab", "--", "$HOME/bin/x"], "no shell reads these words: malai -c '$HOME/bin/x' web01.lab"),
            (&["web01.lab", "--", "~/x", "*.log"], "no shell reads these words: malai -c '~/x *.log' web01.lab"),
        ],
    );
}

#[test]
fn machines_that_a_shell_made_of_braces_are_shown_in_a_loop() {
    let many: Vec<String> = (1..=20).map(|n| format!("web{n:02}.lab")).chain(["uptime".to_owned()]).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    check(
        failure::Kind::NotFound,
        &[
            (
                &["web01.lab", "web02.lab", "web03.lab", "--", "df", "-h"],
                "a command runs on one machine, and `web02.lab` was taken as the command; for several machines: \
                 for m in web01.lab web02.lab web03.lab; do malai -n \"$m\" -- df -h; done",
            ),
            (
                &many,
                "a command runs on one machine, and `web02.lab` was taken as the command; for several machines: \
                 for m in web01.lab web02.lab … web20.lab; do malai -n \"$m\" -- uptime; done",
            ),
            (
                &["web01", "web02"],
                "a command runs on one machine, and `web02` was taken as the command; for several machines: \
                 for m in web01 web02; do malai -n \"$m\" -- COMMAND; done",
            ),
            (&["web01.lab", "nginx.conf"], ""),
            (&["web01", "web"], ""),
        ],
    );
}

#[test]
fn a_misspelt_command_is_shown_as_it_is_spelt() {
    check(
        failure::Kind::UnknownTarget,
        &[
            (&["stauts", "--json"], "did you mean: malai status --json"),
            (&["pnig", "web01.lab"], "did you mean: malai ping web01.lab"),
            (&["clutser", "list"], "did you mean: malai cluster list"),
        ],
    );
    check(
        failure::Kind::NotConfigured,
        &[(&["stauts", "--", "x"], ""), (&["stauts.lab", "x"], ""), (&["-n", "stauts", "x"], ""), (&["db01", "x"], "")],
    );
    let ended = refused(&["--json", "statsu", "x"], failure::Kind::UnknownTarget);
    assert!(ended.stderr.ends_with("malai: hint: did you mean: malai status x --json\n"), "{ended}");
    let ended = Home::new().run(&["stauts"]);
    insta::assert_snapshot!(ended, @r"
    exit 255
    --- stdout
    --- stderr
    malai: error: without a command, `stauts` means a shell; malai has no shells yet
    malai: hint: give a command: malai stauts -- uptime; malai's own commands: malai --help
    malai: hint: did you mean: malai status
    ");
    let ended = Home::new().run(&["Status"]);
    assert!(ended.code == 2 && ended.stderr.ends_with("malai: hint: did you mean: malai status\n"), "{ended}");
}

#[test]
fn a_word_before_the_machine_is_shown_to_be_needless() {
    check(
        failure::Kind::UnknownTarget,
        &[
            (
                &["run", "web01.lab", "--", "uptime"],
                "`run` is not a command, and malai needs none: malai web01.lab -- uptime",
            ),
            (&["run", "web01.lab"], "`run` is not a command, and malai needs none: malai web01.lab -- COMMAND"),
            (&["ssh", "web01", "uptime"], "`ssh` is not a command, and malai needs none: malai web01 -- uptime"),
            (
                &["ssh", "-n", "u@web01.lab", "uptime"],
                "`ssh` is not a command, and malai needs none: malai -n u@web01.lab -- uptime",
            ),
            (&["please", "web01.lab", "x"], "`please` is not a command, and malai needs none: malai web01.lab -- x"),
            (&["db01", "backup.sh"], ""),
        ],
    );
    let ended = Home::new().run(&["run"]);
    let meant = "malai: hint: `run` is not a command, and malai needs none: malai TARGET -- COMMAND\n";
    assert!(ended.code == 255 && ended.stderr.ends_with(meant), "{ended}");
}

#[test]
fn a_time_of_wait_that_stands_apart_is_shown_in_its_word() {
    check(
        failure::Kind::UnknownTarget,
        &[
            (
                &["--wait", "5s", "web01.lab", "--", "x", "y z"],
                "write the time into the same word as --wait: malai --wait=5s web01.lab -- x 'y z'",
            ),
            (&["--wait", "web01", "x"], ""),
            (&["5s", "x"], ""),
        ],
    );
    let ended = Home::new().run(&["-n", "--wait", "5m"]);
    let meant = "malai: hint: write the time into the same word as --wait: malai -n --wait=5m TARGET -- COMMAND\n";
    assert!(ended.code == 255 && ended.stderr.ends_with(meant), "{ended}");
}

#[test]
fn a_target_right_after_c_is_shown_last() {
    let meant = "write the string directly after -c, and the target last: ";
    let home = home();
    for (args, line) in [
        (&["-c", "web01.lab", "echo hi"][..], "malai -c 'echo hi' web01.lab"),
        (&["-nc", "web01.lab", "echo hi"], "malai -n -c 'echo hi' web01.lab"),
        (&["-c", "web01.lab", "echo", "hi"], "malai -c 'echo hi' web01.lab"),
    ] {
        let ended = home.run(args);
        let hint = format!("malai: hint: {meant}{line}\n");
        assert!(ended.code == 2 && ended.stderr.ends_with(&hint), "{args:?}: {ended}");
    }
    let line = format!("{meant}malai -c uptime web01.lab");
    check(
        failure::Kind::UnknownTarget,
        &[
            (&["-c", "web01.lab", "uptime"], &line),
            (&["-c", "deploy.sh", "db01"], ""),
            (&["-c", "echo hi", "db01"], ""),
        ],
    );
}

#[test]
fn a_hint_is_never_among_the_data_and_never_where_nothing_went_wrong() {
    let ended = refused(&["--json", "web01.lab", "-n", "echo"], failure::Kind::NotFound);
    assert!(
        ended
            .stderr
            .ends_with("malai: hint: malai's own options go before the target: malai --json -n web01.lab echo\n")
    );
    let error: serde_json::Value = serde_json::from_str(&ended.stdout).expect("one object");
    assert_eq!((ended.code, error["error"]["hint"].as_str()), (127, Some("its own hint")));
    for kind in [failure::Kind::Denied, failure::Kind::Unreachable, failure::Kind::NotExecutable] {
        assert_eq!(hint(&refused(&["web01.lab", "-n", "ls /tmp"], kind), REFUSED), None);
    }
    // A program may well have such a name, and end as it likes.
    for code in [0, 127] {
        let home = Home::new();
        let daemon = Daemon::bind(&home);
        let child = home.malai(&["web01.lab", "--", "ls /tmp"]).spawn().expect("starts");
        let mut peer = daemon.accept();
        peer.start();
        peer.exit(&record(code, 0, 0));
        let ended = wait(child);
        assert_eq!((ended.code, ended.stderr.as_str()), (i32::from(code), ""));
    }
}

#[test]
fn a_hint_drives_no_terminal_and_has_a_bound() {
    let ended = refused(&["web01.lab", "--", "ls \x1b[2J"], failure::Kind::NotFound);
    assert!(!ended.stderr.contains('\x1b') && ended.stderr.contains("\\x1b[2J"), "{ended}");
    let long = format!("ls {}", "x".repeat(5000));
    assert_eq!(hint(&refused(&["web01.lab", "--", &long], failure::Kind::NotFound), REFUSED), None);
}

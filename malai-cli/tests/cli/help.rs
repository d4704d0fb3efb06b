//! What help and usage errors look like.

use crate::harness::Home;

#[test]
fn help_shows_the_two_forms_and_every_command() {
    insta::assert_snapshot!(Home::new().run(&["--help"]), @r"
    exit 0
    --- stdout
    Run commands on the machines of a cluster, found by public key

    Usage: malai [OPTIONS] <TARGET> [--] <ARGV>...
           malai <COMMAND>

    Commands:
      exec      Run a command on a machine
      sessions  List the sessions of a machine, or of all machines
      attach    Follow a session: its output, and how it ends
      wait      Wait until a session ends, and exit with its command's code
      kill      End a session with all its processes, or signal its command
      cluster   Make clusters, and let machines in and out
      machine   Join and leave clusters with this machine
      daemon    Run the daemon of all clusters of this home
      relay     Run a relay for the machines of a cluster; its host need not be a machine of the cluster
      rescan    Check, sign and publish an edited cluster.toml
      config    Show, check and compare a cluster's config
      status    Show this machine, its clusters, and which of their machines answer
      doctor    Find what is broken on this machine, and say how to fix it
      metrics   Show what the daemon has counted since it started, as Prometheus text
      ping      Show whether a machine answers, how fast, and over which path
      connect   Connect to a machine, and show how it was found
      can       Explain whether a machine may run a command on a target
      audit     Show which commands ran on this machine, and which were refused
      help      Print this message or the help of the given subcommand(s)

    Options:
          --json     Print JSON: one document, or for a stream one object per line
      -h, --help     Print help
      -V, --version  Print version

    Run a command on a machine:
      malai web01.company -- uptime           options before the target are malai's: malai exec --help
      malai deploy@web01.company ls -l /srv   everything after the target is the command, word by word
      malai web01.company --detach -- make    start it, and leave it running

    If a machine has the name of a command above, use its full name, or malai exec.
    malai keeps its files in $MALAI_HOME; the default is the platform's data directory.
    --- stderr
    ");
}

#[test]
fn help_of_exec_shows_its_options() {
    insta::assert_snapshot!(Home::new().run(&["exec", "--help"]), @r"
    exit 0
    --- stdout
    Run a command on a machine

    Standard input, output and error, signals and the exit code are the command's own. Everything after
    the target is the command's argv, word by word; no shell reads it again. The first word may be a
    named command of the cluster's config. After `--` it is always a program.

    Usage: malai [exec] [OPTIONS] <TARGET> [--] <ARGV>...
           malai [exec] [OPTIONS] -c <STRING> <TARGET>

    Arguments:
      <TARGET>
              The machine: web01.company, or deploy@web01.company

    Options:
          --cwd <DIR>
              Working directory on the target; a relative one starts at the user's home, which is the
              default

          --json
              Print JSON: one document, or for a stream one object per line

          --env <NAME[=VALUE]>
              Set a variable; without a value, to what it is on this machine. May be repeated

          --user <USER>
              User to run as, if the config allows it; the same as USER@ before the target

          --timeout <DURATION>
              Kill the command after this time, and exit with 252: 500ms, 5s, 1m, 2h

      -c <STRING>
              Run STRING by the user's shell on the target

      -n
              Send no standard input: the command reads /dev/null, and a loop around malai keeps its
              input

          --eager-stdin
              Read a pipe or terminal at once, without waiting for the command to start
              
              The first byte arrives one round trip sooner. If nothing starts, the next reader does not
              get what malai has read.

          --wait-output
              Also wait until background processes have closed the command's output

          --connect-timeout <DURATION>
              How long to wait for the machine's answer; default: 10s, or 1s when it is known to be gone

          --wait[=<DURATION>]
              If the machine is offline, wait for it, and then run the command; without a time, until
              interrupted

          --lost-after <DURATION>
              After the connection is lost, how long to try to follow the command again; default: as
              long as the target waits

          --kill-on-lost
              End the command when the connection is lost

          --detach
              Leave the command running, and print the session's name, for malai attach, wait and kill
              
              It ends by itself, by its --timeout, or by malai kill, and not because of this machine or
              the connection. It gets no standard input, and the target keeps its output. --detach may
              also stand directly after the target.

          --reason <TEXT>
              Why you run this, for the target's audit; at most 1024 bytes

      -v, --verbose
              Say how the machine was found, where the command runs, and how it ended

      -h, --help
              Print help (see a summary with '-h')
    --- stderr
    ");
}

#[test]
fn help_of_every_command_is_there() {
    let all: &[&[&str]] = &[
        &["sessions"],
        &["attach"],
        &["wait"],
        &["kill"],
        &["cluster"],
        &["cluster", "init"],
        &["cluster", "list"],
        &["cluster", "invite"],
        &["cluster", "invites"],
        &["cluster", "revoke"],
        &["cluster", "pending"],
        &["cluster", "approve"],
        &["cluster", "remove"],
        &["machine"],
        &["machine", "init"],
        &["machine", "join"],
        &["machine", "leave"],
        &["daemon"],
        &["daemon", "stop"],
        &["daemon", "restart"],
        &["daemon", "status"],
        &["relay"],
        &["relay", "init"],
        &["relay", "run"],
        &["relay", "status"],
        &["rescan"],
        &["config"],
        &["config", "show"],
        &["config", "check"],
        &["config", "diff"],
        &["status"],
        &["doctor"],
        &["metrics"],
        &["ping"],
        &["connect"],
        &["can"],
        &["audit"],
    ];
    for command in all {
        let ended = Home::new().run(&[command, &["--help"][..]].concat());
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{command:?}");
        assert!(ended.stdout.contains("Usage: malai "), "{command:?}: {}", ended.stdout);
        assert!(ended.stdout.lines().all(|line| line.chars().count() <= 120), "{command:?}: {}", ended.stdout);
    }
}

#[test]
fn nothing_typed_is_a_usage_error_that_shows_the_help() {
    let ended = Home::new().run(&[]);
    assert_eq!((ended.code, ended.stdout.as_str()), (2, ""));
    assert!(ended.stderr.contains("Usage: malai "), "{}", ended.stderr);
}

#[test]
fn an_unknown_option_before_the_target_is_named() {
    insta::assert_snapshot!(Home::new().run(&["--bogus", "web01.company", "true"]), @r"
    exit 2
    --- stdout
    --- stderr
    malai: error: unexpected argument '--bogus' found

      tip: to pass '--bogus' as a value, use '-- --bogus'

    Usage: malai [exec] [OPTIONS] <TARGET> [--] <ARGV>...
           malai [exec] [OPTIONS] -c <STRING> <TARGET>

    For more information, try '--help'.
    ");
}

#[test]
fn options_of_exec_before_another_command_are_usage_errors() {
    let ended = Home::new().run(&["--timeout", "5", "status"]);
    assert_eq!(ended.code, 2, "{ended}");
}

#[test]
fn a_span_that_is_none_says_what_one_is() {
    insta::assert_snapshot!(Home::new().run(&["--timeout", "5w", "web01.company", "true"]), @r"
    exit 2
    --- stdout
    --- stderr
    malai: error: invalid value '5w' for '--timeout <DURATION>': a span of time is a number and ms, s, m, h or d; a bare number is seconds

    For more information, try '--help'.
    ");
}

#[test]
fn a_usage_error_is_a_document_where_json_was_asked_for() {
    let ended = Home::new().run(&["status", "--json", "--bogus"]);
    assert_eq!(ended.code, 2);
    assert_eq!(ended.stdout, "{\"error\":{\"kind\":\"usage\",\"message\":\"unexpected argument '--bogus' found\"}}\n");
}

#[test]
fn a_target_without_a_command_says_that_shells_come_later() {
    insta::assert_snapshot!(Home::new().run(&["web01.company"]), @r"
    exit 255
    --- stdout
    --- stderr
    malai: error: without a command, `web01.company` means a shell; malai has no shells yet
    malai: hint: give a command: malai web01.company -- uptime
    ");
    assert_eq!(Home::new().run(&["web01.company", "--"]).code, 255);
    assert_eq!(Home::new().run(&["exec", "web01"]).code, 255);
}

/// One byte more than a reason may have.
const LONG_REASON: &str = match std::str::from_utf8(&[b'x'; 1025]) {
    Ok(text) => text,
    Err(_) => "",
};

#[test]
fn what_contradicts_itself_is_a_usage_error() {
    let home = Home::new();
    let wrong: &[&[&str]] = &[
        &["-c", "echo", "web01.company", "more"],
        &["--user", "a", "b@web01.company", "true"],
        &["--env", "=x", "web01.company", "true"],
        &["--reason", LONG_REASON, "web01.company", "true"],
        &["--env", "MALAI_SURELY_NOT_SET", "web01.company", "true"],
        &["Web01.company", "true"],
        &["a.b.c", "true"],
        &["machine", "join", "hello"],
        &["machine", "init", "hello", "company"],
        &["can", "laptop"],
        &["--detach", "--kill-on-lost", "web01.company", "true"],
        &["--kill-on-lost", "web01.company", "--detach", "true"],
        &["sessions", "web01.company", "more"],
        &["sessions", "a.b.c"],
        &["attach"],
        &["attach", "web01.company", "0011", "more"],
        &["wait", "00112233445566778899aabbccddeeff"],
        &["wait", "web01.company", "001"],
        &["kill", "web01.company/0011", "--signal", "NONE"],
        &["kill", "--signal", "0", "web01.company/0011"],
        &["kill", "web01.company", "web02.company/0011"],
        &["cluster", "invite", "company", "--uses", "0"],
        &["cluster", "invite", "company", "--relay", "--uses", "2"],
        &["relay", "init", "hello", "--url", "https://a"],
        &["relay", "init", "-", "--cert", "cert.pem"],
        &["daemon", "--foreground", "stop"],
    ];
    for line in wrong {
        let ended = home.run(line);
        assert_eq!((ended.code, ended.stdout.as_str()), (2, ""), "{line:?}: {ended}");
        assert!(ended.stderr.starts_with("malai: error: "), "{line:?}: {ended}");
    }
}

#[test]
fn a_home_too_deep_for_a_socket_is_named() {
    let home = Home::new();
    let deep = home.path().join("x".repeat(100));
    let child = home.malai(&["status"]).env("MALAI_HOME", &deep).spawn().expect("starts");
    let ended = crate::harness::wait(child);
    assert_eq!(ended.code, 255);
    assert!(ended.stderr.contains(deep.to_str().expect("text")) && ended.stderr.contains("MALAI_HOME="), "{ended}");
}

//! The real binary against a daemon that speaks frames by hand: descriptors, signals and exit codes as a shell sees them.

use std::io::{Read, Write};
use std::process::Stdio;
use std::time::Duration;

use malai_protocol::codec::{Frame, Kind};
use malai_protocol::failure::{self, Failure};
use malai_protocol::local::Request;
use malai_protocol::session::{EndedBy, ExecSpec, ExitRecord, Output, Signal, Status, StopOutput};
use nix::sys::signal::Signal as Number;

use crate::harness::{Daemon, Home, Stopped, heed, record, send_signal, wait};

#[test]
fn the_request_carries_what_was_typed_byte_by_byte() {
    use std::os::unix::ffi::OsStrExt;
    let home = Home::new();
    let daemon = Daemon::bind(&home);
    let odd = std::ffi::OsStr::from_bytes(b"\xff --");
    let mut command = home.malai(&["--cwd", "/srv", "--env", "A=1", "--timeout", "1m", "-n", "--reason", "test"]);
    let child = command.args(["deploy@web01.company", "--", "-x", ""]).arg(odd).spawn().unwrap();
    let mut peer = daemon.accept();
    let Request::Session(to) = peer.request() else { panic!("a session") };
    assert_eq!((to.machine.as_str(), to.cluster.as_deref()), ("web01", Some("company")));
    assert!((1..=10_000).contains(&to.connect_timeout_ms), "{to:?}");
    let spec: ExecSpec = peer.next().expect(Kind::Exec, "the command").unwrap();
    let words: Vec<&[u8]> = spec.words.iter().map(|word| word.as_slice()).collect();
    assert_eq!(words, [&b"-x"[..], b"", b"\xff --"]);
    assert!(spec.literal && !spec.shell && !spec.stdin && !spec.wait_output, "{spec:?}");
    assert_eq!((spec.user.as_deref(), spec.reason.as_deref()), (Some("deploy"), Some("test")));
    assert_eq!(spec.cwd.as_ref().map(|dir| dir.as_slice()), Some(&b"/srv"[..]));
    assert_eq!((spec.timeout_ms, spec.env.len()), (Some(60_000), 1));
    peer.start();
    peer.exit(&record(0, 0, 0));
    assert_eq!(peer.next().kind, Kind::Goodbye);
    assert_eq!(wait(child).code, 0);
}

#[test]
fn the_exit_code_is_the_records() {
    let signalled = Status::Signalled { signal: 15, core: false };
    let cases = [
        (record(0, 0, 0), 0, ""),
        (record(255, 0, 0), 255, ""),
        (ExitRecord { status: signalled, ..record(0, 0, 0) }, 143, ""),
        (
            ExitRecord { ended_by: EndedBy::Timeout, ..record(0, 0, 0) },
            252,
            "malai: the command on web01.company was killed, by its --timeout\n",
        ),
        (
            ExitRecord {
                ended_by: EndedBy::Revoked,
                reason: Some("no grant since generation 7".into()),
                ..record(0, 0, 0)
            },
            253,
            "malai: the command on web01.company was ended: access was withdrawn (no grant since generation 7)\n",
        ),
        (
            ExitRecord { output_open: true, ..record(3, 0, 0) },
            3,
            "malai: other processes on web01.company still have the command's output open; what they write is not shown \
             (--wait-output waits for it)\n",
        ),
    ];
    for (record, code, words) in cases {
        let home = Home::new();
        let daemon = Daemon::bind(&home);
        let child = home.malai(&["web01.company", "true"]).spawn().unwrap();
        let mut peer = daemon.accept();
        peer.start();
        peer.exit(&record);
        let ended = wait(child);
        assert_eq!((ended.code, ended.stderr.as_str()), (code, words));
    }
}

#[test]
fn a_refusal_is_told_with_its_hint_and_nothing_of_it_drives_the_terminal() {
    let home = Home::new();
    let daemon = Daemon::bind(&home);
    let child = home.malai(&["web01.company", "true"]).spawn().unwrap();
    let mut peer = daemon.accept();
    peer.greet();
    let failure = Failure::new(failure::Kind::Denied, "no\x1b[2J\nmalai: fine").hint("allow_from = [\"laptop\"]");
    peer.send(Kind::Refused, &failure);
    let ended = wait(child);
    assert_eq!(ended.code, 254);
    assert_eq!(ended.stderr, "malai: error: no\\x1b[2J\n  malai: fine\nmalai: hint: allow_from = [\"laptop\"]\n");
}

#[test]
fn a_command_that_could_not_be_ended_is_unknown_whatever_the_refusal_says() {
    let home = Home::new();
    let daemon = Daemon::bind(&home);
    let child = home.malai(&["web01.company", "sudo", "sleep", "9"]).spawn().unwrap();
    let mut peer = daemon.accept();
    peer.start();
    let failure = Failure::new(failure::Kind::Denied, "it could not be ended: 1 process is left: 7 sudo");
    peer.send(Kind::Refused, &failure);
    let ended = wait(child);
    assert_eq!(ended.code, 253);
    assert_eq!(ended.stderr, "malai: error: it could not be ended: 1 process is left: 7 sudo\n");
}

#[test]
fn a_daemon_that_dies_and_comes_back_costs_nothing() {
    let home = Home::new();
    let daemon = Daemon::bind(&home);
    let mut child = home.malai(&["web01.company", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut peer = daemon.accept();
    peer.start();
    stdin.write_all(b"typed").unwrap();
    drop(stdin);
    peer.await_kind(Kind::StdinEof);
    peer.output(Kind::Stdout, b"one ");
    peer.await_kind(Kind::Ack);
    drop(peer);
    drop(daemon);
    std::fs::remove_file(home.path().join("malai.sock")).unwrap();
    let daemon = Daemon::bind(&home);
    let mut peer = daemon.accept();
    let attach = peer.attach();
    assert_eq!((attach.number, attach.out_offset), (2, 4));
    peer.attached(4, 2);
    assert_eq!(peer.await_kind(Kind::Stdin).payload, &b"ped"[..]);
    peer.await_kind(Kind::StdinEof);
    peer.output(Kind::Stdout, b"two");
    peer.exit(&record(0, 7, 0));
    let ended = wait(child);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "one two"), "{ended}");
}

#[test]
fn a_connection_that_stays_lost_is_told_and_its_outcome_is_unknown() {
    let home = Home::new();
    let daemon = Daemon::bind(&home);
    let child = home.malai(&["--json", "--lost-after", "1500ms", "web01.company", "true"]).spawn().unwrap();
    let mut peer = daemon.accept();
    peer.start();
    drop(peer);
    let mut peer = daemon.accept();
    peer.attach();
    let ended = wait(child);
    assert_eq!(ended.code, 253, "{ended}");
    assert_eq!(peer.rest(), []);
    insta::assert_snapshot!(ended.stderr, @r"
    malai: connection to web01.company lost, the command goes on; retrying…
    malai: error: connection to web01.company lost for 1500 ms; whether the command ended is not known, and it may still run there until 10 min after the loss
    malai: hint: wait longer: --lost-after 1h; whether the machine is there: malai status
    ");
    let last = ended.stdout.lines().last().unwrap();
    assert!(last.starts_with(r#"{"event":"error","target":"web01.company","code":253,"#), "{last}");
}

#[test]
fn an_agent_takes_over_from_a_daemon_that_is_gone() {
    let home = Home::new();
    let _stopped = Stopped(&home);
    let daemon = Daemon::bind(&home);
    let child = home.malai(&["-n", "--lost-after", "5s", "web01.company", "true"]).spawn().unwrap();
    let mut peer = daemon.accept();
    peer.start();
    drop(daemon);
    drop(peer);
    // The agent of this home cannot follow either, and says why.
    let ended = wait(child);
    assert_eq!(ended.code, 253, "{ended}");
    assert!(ended.stderr.contains("after the loss (this machine is in no cluster)\n"), "{ended}");
    assert_eq!(home.run(&["daemon", "status"]).code, 1, "an agent is no daemon");
}

#[test]
fn signals_go_to_the_command_and_the_cli_waits_for_its_end() {
    let numbers = [(Number::SIGINT, 2), (Number::SIGTERM, 15), (Number::SIGHUP, 1), (Number::SIGQUIT, 3)];
    for (signal, number) in numbers {
        let home = Home::new();
        let daemon = Daemon::bind(&home);
        heed(signal);
        let child = home.malai(&["web01.company", "sleep", "600"]).stdin(Stdio::null()).spawn().unwrap();
        let mut peer = daemon.accept();
        peer.start();
        // What it wrote shows that it knows that the command runs.
        peer.output(Kind::Stdout, b"x");
        peer.await_kind(Kind::Ack);
        send_signal(&child, signal);
        assert_eq!(peer.await_kind(Kind::Signal).decode::<Signal>().unwrap(), Signal { number, order: 1 });
        peer.exit(&ExitRecord { status: Status::Signalled { signal: number, core: false }, ..record(0, 1, 0) });
        assert_eq!(wait(child).code, 128 + i32::from(number));
    }
}

#[test]
fn a_second_interrupt_leaves_without_a_goodbye_though_the_reader_pauses() {
    let home = Home::new();
    let daemon = Daemon::bind(&home);
    // Nobody reads either stream, and both are one pipe.
    let (_reader, writer) = std::io::pipe().unwrap();
    let mut command = home.malai(&["-n", "web01.company", "yes"]);
    let child = command.stdout(writer.try_clone().unwrap()).stderr(writer).spawn().unwrap();
    let mut peer = daemon.accept();
    peer.start();
    peer.output(Kind::Stdout, b"x");
    peer.await_kind(Kind::Ack);
    for _ in 0..64 {
        peer.send_frame(&Frame::data(Kind::Stdout, vec![b'y'; 65536].into()));
    }
    send_signal(&child, Number::SIGINT);
    peer.await_kind(Kind::Signal);
    // Between two that come at once nobody presses the keys again.
    std::thread::sleep(Duration::from_millis(150));
    send_signal(&child, Number::SIGINT);
    let kinds = peer.rest();
    assert!(!kinds.contains(&Kind::Goodbye), "{kinds:?}");
    assert_eq!(wait(child).code, 253);
}

#[test]
fn an_ignored_signal_stays_ignored() {
    let home = Home::new();
    let daemon = Daemon::bind(&home);
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "trap '' HUP; exec \"$0\" -n web01.company sleep 600", env!("CARGO_BIN_EXE_malai")]);
    let child = home.prepare(&mut shell).spawn().unwrap();
    let mut peer = daemon.accept();
    peer.start();
    peer.output(Kind::Stdout, b"x");
    peer.await_kind(Kind::Ack);
    send_signal(&child, Number::SIGHUP);
    send_signal(&child, Number::SIGTERM);
    // Signals of one process are delivered in the order of their numbers: HUP would come first.
    assert_eq!(peer.await_kind(Kind::Signal).decode::<Signal>().unwrap().number, 15);
    peer.exit(&record(0, 1, 0));
    assert_eq!(wait(child).code, 0);
}

#[test]
fn a_reader_that_leaves_stops_the_output_and_the_result_stays() {
    let home = Home::new();
    let daemon = Daemon::bind(&home);
    let (reader, writer) = std::io::pipe().unwrap();
    let child = home.malai(&["-n", "web01.company", "yes"]).stdout(writer).spawn().unwrap();
    drop(reader);
    let mut peer = daemon.accept();
    peer.start();
    peer.output(Kind::Stdout, b"y\n");
    let stop: StopOutput = peer.await_kind(Kind::StopOutput).decode().unwrap();
    assert_eq!(stop.stream, Output::Stdout);
    peer.exit(&ExitRecord { status: Status::Signalled { signal: 13, core: false }, ..record(0, 2, 0) });
    let ended = wait(child);
    assert_eq!((ended.code, ended.stderr.as_str()), (141, ""));
}

#[test]
fn a_full_disk_is_never_a_success() {
    let home = Home::new();
    let daemon = Daemon::bind(&home);
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let child = home.malai(&["-n", "web01.company", "true"]).stdout(full).spawn().unwrap();
    let mut peer = daemon.accept();
    peer.start();
    peer.output(Kind::Stdout, b"x");
    peer.exit(&record(0, 1, 0));
    let ended = wait(child);
    assert_eq!(ended.code, 253);
    assert!(ended.stderr.contains("standard output could not be written"), "{}", ended.stderr);
}

#[test]
fn input_from_a_pipe_streams_and_ends_with_it() {
    let home = Home::new();
    let daemon = Daemon::bind(&home);
    let mut child = home.malai(&["web01.company", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut peer = daemon.accept();
    peer.start();
    for text in ["one", "two"] {
        stdin.write_all(text.as_bytes()).unwrap();
        assert_eq!(peer.await_kind(Kind::Stdin).payload, text.as_bytes());
    }
    drop(stdin);
    peer.await_kind(Kind::StdinEof);
    peer.exit(&record(0, 0, 0));
    assert_eq!(wait(child).code, 0);
}

#[test]
fn an_input_that_never_ends_does_not_hold_the_end_up() {
    let home = Home::new();
    let daemon = Daemon::bind(&home);
    let (reader, _writer) = std::io::pipe().unwrap();
    let child = home.malai(&["web01.company", "true"]).stdin(reader).spawn().unwrap();
    let mut peer = daemon.accept();
    peer.start();
    peer.exit(&record(0, 0, 0));
    assert_eq!(wait(child).code, 0);
}

#[test]
fn streams_that_are_set_non_blocking_lose_nothing() {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let home = Home::new();
    let daemon = Daemon::bind(&home);
    let (mut reader, writer) = std::io::pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let child = home.malai(&["-n", "web01.company", "yes"]).stdout(writer).spawn().unwrap();
    let mut peer = daemon.accept();
    peer.start();
    let length = 40 * 65536;
    let read = std::thread::spawn(move || {
        let mut all = Vec::new();
        reader.read_to_end(&mut all).map(|_| all)
    });
    for _ in 0..40 {
        peer.send_frame(&Frame::data(Kind::Stdout, vec![b'y'; 65536].into()));
    }
    peer.exit(&record(0, length, 0));
    assert_eq!(wait(child).code, 0);
    assert_eq!(read.join().unwrap().unwrap().len() as u64, length);
}

#[test]
fn a_home_that_others_can_write_to_is_not_trusted() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::new();
    let _daemon = Daemon::bind(&home);
    std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let ended = wait(home.malai(&["web01.company", "true"]).spawn().unwrap());
    assert_eq!(ended.code, 255);
    assert!(ended.stderr.contains("others can write to"), "{}", ended.stderr);
}

#[test]
fn where_it_ran_is_said_only_when_asked_for() {
    let home = Home::new();
    let daemon = Daemon::bind(&home);
    let child = home.malai(&["-v", "web01.company", "true"]).spawn().unwrap();
    let mut peer = daemon.accept();
    peer.start();
    peer.output(Kind::Stderr, b"own\n");
    peer.exit(&record(3, 0, 4));
    let ended = wait(child);
    insta::assert_snapshot!(ended, @r"
    exit 3
    --- stdout
    --- stderr
    malai: web01.company runs it on host web01 as u, pid 7
    own
    malai: web01.company: exit 3 after 1 ms, 0 bytes of output, 4 of error output
    ");
}

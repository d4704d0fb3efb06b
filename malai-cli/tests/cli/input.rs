//! Until a command has started, standard input belongs to its next reader.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Stdio};

use malai_protocol::codec::Kind;
use malai_protocol::failure::{self, Failure};
use malai_protocol::session::{Reached, STDIN_CREDIT, Sent};
use nix::sys::signal::Signal as Number;

use crate::harness::{Daemon, Ended, Home, Peer, heed, record, send_signal, wait};

const INPUT: &str = "first\nsecond\nthird\n";
/// What a shell does with the input after malai.
const REST: &str = "\"$MALAI\" $OPTIONS web01.company -- wc -l; echo \"$?\"; cat";

/// A shell that runs this script, in which `$MALAI` is the program.
fn shell(home: &Home, options: &str, script: &str, stdin: impl Into<Stdio>) -> Child {
    let mut command = std::process::Command::new("sh");
    home.prepare(&mut command).args(["-c", script]).stdin(stdin);
    command.env("MALAI", env!("CARGO_BIN_EXE_malai")).env("OPTIONS", options);
    command.spawn().expect("a shell")
}

fn file_with(home: &Home, text: &str) -> File {
    let path = home.path().join("in.txt");
    std::fs::write(&path, text).expect("written");
    File::open(path).expect("opened")
}

fn pipe_with(text: &str) -> OwnedFd {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    writer.write_all(text.as_bytes()).expect("room in the pipe");
    reader.into()
}

/// A terminal with this typed, and its other end, which keeps it open.
fn terminal_with(text: &str) -> (OwnedFd, OwnedFd) {
    let pty = nix::pty::openpty(None, None).expect("a terminal");
    let mut keyboard = File::from(pty.master.try_clone().expect("a descriptor"));
    keyboard.write_all(text.as_bytes()).expect("typed");
    (pty.slave, pty.master)
}

/// Takes a request, and answers nothing but the greeting.
fn asked(daemon: &Daemon) -> Peer {
    let mut peer = daemon.accept();
    peer.request();
    assert_eq!(peer.next().kind, Kind::Exec);
    peer.greet();
    peer
}

/// Serves a request so far that everything but the start is known to the CLI, which has said so.
fn all_but_started(daemon: &Daemon) -> Peer {
    let mut peer = asked(daemon);
    peer.send(Kind::Sent, &Sent { met: None, reached: Some(Reached::default()) });
    peer
}

/// Refuses a request, as the daemon here or as the target: the one that has such a reason.
fn refuse(daemon: &Daemon, kind: failure::Kind) {
    let mut peer = if is_known_here(kind) { asked(daemon) } else { all_but_started(daemon) };
    peer.send(Kind::Refused, &Failure::new(kind, "no"));
}

fn is_known_here(kind: failure::Kind) -> bool {
    matches!(kind, failure::Kind::UnknownTarget | failure::Kind::Unreachable)
}

const KINDS: [failure::Kind; 7] = [
    failure::Kind::Denied,
    failure::Kind::NotAMember,
    failure::Kind::UnknownTarget,
    failure::Kind::Unreachable,
    failure::Kind::NotFound,
    failure::Kind::NoDirectory,
    failure::Kind::Busy,
];

fn left_whole(ended: &Ended, kind: failure::Kind) {
    assert_eq!(ended.stdout, format!("{}\n{INPUT}", kind.exit_code()), "{kind:?}: {ended}");
}

#[test]
fn a_file_is_left_whole_by_a_command_that_did_not_start() {
    for kind in KINDS {
        let home = Home::new();
        let daemon = Daemon::bind(&home);
        let child = shell(&home, "", REST, file_with(&home, INPUT));
        let mut peer = if is_known_here(kind) { asked(&daemon) } else { all_but_started(&daemon) };
        // It goes ahead of the answer, so that it costs no round trip.
        assert_eq!(peer.await_kind(Kind::Stdin).payload, INPUT.as_bytes());
        peer.send(Kind::Refused, &Failure::new(kind, "no"));
        left_whole(&wait(child), kind);
    }
}

#[test]
fn a_pipe_and_a_here_document_are_left_whole_by_a_command_that_did_not_start() {
    let here = format!("{{ {REST}; }} <<'END'\n{INPUT}END\n");
    for kind in KINDS {
        let home = Home::new();
        let daemon = Daemon::bind(&home);
        let child = shell(&home, "", REST, pipe_with(INPUT));
        refuse(&daemon, kind);
        left_whole(&wait(child), kind);
        let child = shell(&home, "--json", &here.replace("wc -l;", "wc -l >/dev/null;"), Stdio::null());
        refuse(&daemon, kind);
        left_whole(&wait(child), kind);
    }
}

#[test]
fn what_was_typed_at_a_terminal_is_left_by_a_command_that_did_not_start() {
    let home = Home::new();
    let daemon = Daemon::bind(&home);
    let (terminal, _keyboard) = terminal_with("typed ahead\n");
    let child = shell(&home, "", &REST.replace("cat", "head -n 1"), terminal);
    refuse(&daemon, failure::Kind::Denied);
    assert_eq!(wait(child).stdout, "254\ntyped ahead\n");
}

#[test]
fn input_is_left_whole_where_no_daemon_could_be_asked_or_the_request_is_wrong() {
    let home = Home::new();
    let daemon = Daemon::bind(&home);
    for (options, code) in [("--bogus", 2), ("--env =", 2), ("--user a b@", 2)] {
        for stdin in [OwnedFd::from(file_with(&home, INPUT)), pipe_with(INPUT)] {
            let ended = wait(shell(&home, options, REST, stdin));
            assert_eq!(ended.stdout, format!("{code}\n{INPUT}"), "{options}: {ended}");
        }
    }
    drop(daemon);
    std::fs::remove_file(home.path().join("malai.sock")).expect("removed");
    // An agent cannot start here, and says so.
    std::fs::write(home.path().join("malai.toml"), "nonsense").expect("written");
    for stdin in [OwnedFd::from(file_with(&home, INPUT)), pipe_with(INPUT)] {
        let ended = wait(shell(&home, "", REST, stdin));
        assert_eq!(ended.stdout, format!("255\n{INPUT}"), "{ended}");
    }
}

/// Whether all of it is still there for who reads next.
fn is_whole(stdin: &OwnedFd) -> bool {
    let mut file = File::from(stdin.try_clone().expect("a descriptor"));
    file.stream_position().map_or_else(|_| waiting(stdin) == INPUT.len(), |position| position == 0)
}

#[test]
fn input_is_left_whole_by_a_waiting_that_is_interrupted_and_by_a_target_that_does_not_answer() {
    heed(Number::SIGINT);
    for wait_first in [true, false] {
        for is_file in [true, false] {
            let home = Home::new();
            let daemon = Daemon::bind(&home);
            let stdin = if is_file { file_with(&home, INPUT).into() } else { pipe_with(INPUT) };
            let patience = if wait_first { "--wait" } else { "--connect-timeout=500ms" };
            let mut command = home.malai(&[patience, "web01.company", "--", "wc", "-l"]);
            let child = command.stdin(stdin.try_clone().expect("a descriptor")).spawn().expect("starts");
            let mut peer = daemon.accept();
            peer.request();
            if wait_first {
                send_signal(&child, Number::SIGINT);
                peer.rest();
            }
            let code = if wait_first { 130 } else { 253 };
            let ended = if wait_first {
                drop(peer);
                wait(child)
            } else {
                wait(child)
            };
            assert_eq!((ended.code, is_whole(&stdin)), (code, true), "{patience}, file: {is_file}: {ended}");
        }
    }
}

#[test]
fn a_pipe_is_not_read_before_the_command_has_started_and_then_is() {
    let home = Home::new();
    let daemon = Daemon::bind(&home);
    let stdin = pipe_with(INPUT);
    let seen = stdin.try_clone().expect("a descriptor");
    let mut command = home.malai(&["-v", "web01.company", "--", "wc", "-l"]);
    let mut child = command.stdin(stdin).spawn().expect("starts");
    drop(command);
    let mut peer = all_but_started(&daemon);
    let mut said = std::io::BufReader::new(child.stderr.take().expect("a pipe"));
    // What it says of the way shows that it has taken in all but the start.
    let mut line = String::new();
    std::io::BufRead::read_line(&mut said, &mut line).expect("a line");
    assert!(line.starts_with("malai: web01.company: "), "{line}");
    assert_eq!(waiting(&seen), INPUT.len());
    peer.started();
    assert_eq!(peer.await_kind(Kind::Stdin).payload, INPUT.as_bytes());
    peer.await_kind(Kind::StdinEof);
    peer.exit(&record(0, 0, 0));
    assert_eq!(wait(child).code, 0);
}

/// How many bytes wait in a pipe.
#[allow(unsafe_code, reason = "nix has no FIONREAD")]
fn waiting(pipe: &impl AsFd) -> usize {
    use std::os::fd::AsRawFd;
    let mut bytes: libc::c_int = 0;
    // SAFETY: the call writes one int, which is there.
    let done = unsafe { libc::ioctl(pipe.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    usize::try_from(bytes).expect("a count")
}

#[test]
fn eager_stdin_reads_a_pipe_before_the_command_has_started() {
    let home = Home::new();
    let daemon = Daemon::bind(&home);
    let child = home.malai(&["--eager-stdin", "web01.company", "wc"]).stdin(pipe_with(INPUT)).spawn().expect("starts");
    let mut peer = all_but_started(&daemon);
    assert_eq!(peer.await_kind(Kind::Stdin).payload, INPUT.as_bytes());
    peer.send(Kind::Refused, &Failure::new(failure::Kind::Denied, "no"));
    assert_eq!(wait(child).code, 254);
}

#[test]
fn the_end_of_the_null_device_is_told_before_the_command_has_started() {
    let home = Home::new();
    let daemon = Daemon::bind(&home);
    let child = home.malai(&["web01.company", "wc"]).spawn().expect("starts");
    let mut peer = all_but_started(&daemon);
    peer.await_kind(Kind::StdinEof);
    peer.started();
    peer.exit(&record(0, 0, 0));
    assert_eq!(wait(child).code, 0);
}

#[test]
fn a_file_moves_on_when_the_command_has_started_and_is_read_from_where_it_was() {
    let home = Home::new();
    let daemon = Daemon::bind(&home);
    let long = "0123456789abcde\n".repeat(64 * 1024);
    let mut file = file_with(&home, &long);
    file.seek(std::io::SeekFrom::Start(16)).expect("moved");
    let stdin = file.try_clone().expect("a descriptor");
    let child = home.malai(&["web01.company", "wc"]).stdin(stdin).spawn().expect("starts");
    let mut peer = all_but_started(&daemon);
    let mut sent = peer.await_kind(Kind::Stdin).payload.to_vec();
    assert_eq!(file.stream_position().expect("a position"), 16);
    peer.started();
    while sent.len() < long.len() - 16 {
        peer.take_input(sent.len());
        sent.extend_from_slice(&peer.await_kind(Kind::Stdin).payload);
    }
    peer.await_kind(Kind::StdinEof);
    assert!(sent == long.as_bytes()[16..], "{} bytes", sent.len());
    assert_eq!(file.stream_position().expect("a position"), long.len() as u64);
    peer.exit(&record(0, 0, 0));
    assert_eq!(wait(child).code, 0);
}

#[test]
fn a_file_moves_on_when_the_start_was_told_only_after_a_loss() {
    for is_closed in [false, true] {
        let home = Home::new();
        let daemon = Daemon::bind(&home);
        let mut file = file_with(&home, INPUT);
        let stdin = file.try_clone().expect("a descriptor");
        let child = home.malai(&["web01.company", "wc"]).stdin(stdin).spawn().expect("starts");
        let mut peer = all_but_started(&daemon);
        peer.await_kind(Kind::StdinEof);
        drop(peer);
        let mut peer = daemon.accept();
        peer.request();
        assert_eq!(peer.next().kind, Kind::Exec);
        assert_eq!(file.stream_position().expect("a position"), 0);
        // It has ended its input by itself, or has not.
        peer.attached_as(0, INPUT.len() as u64, is_closed);
        peer.exit(&record(0, 0, 0));
        let ended = wait(child);
        assert_eq!(ended.code, 0, "{ended}");
        assert_eq!(file.stream_position().expect("a position"), INPUT.len() as u64, "closed: {is_closed}");
    }
}

#[test]
fn two_commands_that_share_a_file_skip_nothing_of_it() {
    let home = Home::new();
    let daemon = Daemon::bind(&home);
    let long = "0123456789abcde\n".repeat(64 * 1024);
    let mut file = file_with(&home, &long);
    let mut both = Vec::new();
    for _ in 0..2 {
        let stdin = file.try_clone().expect("a descriptor");
        let child = home.malai(&["web01.company", "wc"]).stdin(stdin).spawn().expect("starts");
        let mut peer = all_but_started(&daemon);
        let mut ahead = 0;
        while ahead < STDIN_CREDIT {
            ahead += peer.await_kind(Kind::Stdin).payload.len() as u64;
        }
        both.push((child, peer));
    }
    assert_eq!(file.stream_position().expect("a position"), 0);
    for (child, mut peer) in both {
        peer.started();
        // What was read ahead is all that it has when it ends, and that is where the next reader goes on.
        peer.exit(&record(0, 0, 0));
        assert_eq!(wait(child).code, 0);
        assert_eq!(file.stream_position().expect("a position"), STDIN_CREDIT);
    }
}

#[test]
fn a_file_stays_where_it_was_though_malai_is_killed_before_the_command_has_started() {
    let home = Home::new();
    let daemon = Daemon::bind(&home);
    let mut file = file_with(&home, INPUT);
    let stdin = file.try_clone().expect("a descriptor");
    let mut child = home.malai(&["web01.company", "wc"]).stdin(stdin).spawn().expect("starts");
    let mut peer = all_but_started(&daemon);
    peer.await_kind(Kind::StdinEof);
    child.kill().expect("killed");
    child.wait().expect("gone");
    assert_eq!(file.stream_position().expect("a position"), 0);
}

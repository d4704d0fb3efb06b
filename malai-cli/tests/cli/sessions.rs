//! Commands that are left running: starting, listing, following, waiting for and ending them, as a shell sees it.

use malai_protocol::codec::Kind;
use malai_protocol::failure::{self, Failure};
use malai_protocol::id::{ClusterId, FollowerId, MachineId, SessionId};
use malai_protocol::local::{
    ClusterState, ClusterStatus, DaemonStatus, MachineStatus, Request, Response, Role, SessionTarget, Status,
};
use malai_protocol::session::{Attach, EndedBy, ExecSpec, ExitRecord, Status as Ending, Superseded};
use malai_protocol::sessions::{self, Listed, State, Summary};
use nix::sys::signal::{Signal as Number, kill};
use nix::unistd::Pid;

use crate::harness::{Daemon, Ended, Home, Peer, record, wait};

const ID: &str = "00112233445566778899aabbccddeeff";

/// The public key of RFC 8032's first test vector, and of its second.
const KEYS: [&str; 2] =
    ["qtd9g0c2m45bflabvr9sip07787e2snjraj269df08d6hto7a4d0", "7l01fgv88e4ll4ln1ajkq6runie9gb6f5r29d360plav2ankco60"];

fn key(n: usize) -> MachineId {
    KEYS[n].parse().expect("a key")
}

fn summary(state: State) -> Summary {
    Summary {
        owner: key(0),
        id: ID.parse().expect("an id"),
        command: "make release".into(),
        detached: true,
        user: Some("deploy".into()),
        since_ms: 1_767_225_600_000,
        state,
    }
}

fn status(machines: &[&str], state: ClusterState) -> Status {
    let machine = |name: &&str| MachineStatus {
        name: (*name).to_owned(),
        id: key(usize::from(*name != "laptop")),
        this: *name == "laptop",
        manager: false,
        connection: None,
        generation: None,
        last_seen_ms: None,
        probed: false,
        malai: None,
    };
    let cluster = ClusterStatus {
        alias: "company".into(),
        cluster: Some(ClusterId::from_bytes(*key(0).as_bytes()).expect("a key")),
        role: Role::Machine,
        machine: Some("laptop".into()),
        machine_id: Some(key(0)),
        state,
        generation: Some(1),
        alarm: None,
        addresses: Vec::new(),
        join_addresses: Vec::new(),
        machines: machines.iter().map(machine).collect(),
        relays: Vec::new(),
        discovery_failures: Vec::new(),
    };
    let daemon = DaemonStatus {
        pid: 1,
        version: "0.1.0".into(),
        agent: true,
        ready: true,
        tree: None,
        executor_pid: None,
        sessions: 0,
        lost_log: None,
    };
    Status { daemon, clusters: vec![cluster] }
}

/// Takes a question for a machine, and the frame that asks it.
fn question(daemon: &Daemon, kind: Kind) -> (Peer, SessionTarget, malai_protocol::codec::Frame) {
    let mut peer = daemon.accept();
    peer.greet();
    let Request::Session(to) = peer.request() else { panic!("a session") };
    let frame = peer.next();
    assert_eq!(frame.kind, kind);
    (peer, to, frame)
}

/// Answers the question that comes before every other one: which sessions there are.
fn list(daemon: &Daemon, sessions: Vec<Summary>) {
    let (mut peer, to, _) = question(daemon, Kind::List);
    assert_eq!((to.machine.as_str(), to.cluster.as_deref()), ("web01", Some("company")));
    peer.send(Kind::Listed, &Listed { sessions, more: false });
    assert_eq!(peer.rest(), [Kind::Goodbye]);
}

/// Shows the sessions where every machine is asked, and answers so.
fn sessions(args: &[&str], status: Status, answer: impl Fn(&str) -> Option<Result<Listed, Failure>>) -> Ended {
    let home = Home::new();
    let daemon = Daemon::bind(&home);
    let count = if args.len() > 1 && !args[1].starts_with('-') { 1 } else { status.clusters[0].machines.len() };
    let child = home.malai(args).spawn().expect("starts");
    assert_eq!(daemon.answer(&[Response::Status(status)]), Request::Status);
    // All are asked before one is answered.
    let asked: Vec<_> = (0..count).map(|_| question(&daemon, Kind::List)).collect();
    for (mut peer, to, _) in asked {
        assert!((1..=10_000).contains(&to.connect_timeout_ms), "{to:?}");
        match answer(&to.machine) {
            Some(Ok(listed)) => peer.send(Kind::Listed, &listed),
            Some(Err(failure)) => peer.send(Kind::Refused, &failure),
            None => {}
        }
    }
    wait(child)
}

#[test]
fn a_detached_command_leaves_its_name_alone_on_standard_output() {
    for (args, is_json) in [
        (&["--detach", "deploy@web01.company", "--", "make"][..], false),
        (&["deploy@web01.company", "--detach", "--", "make"], false),
        (&["--json", "--detach", "deploy@web01.company", "make"], true),
    ] {
        let home = Home::new();
        let daemon = Daemon::bind(&home);
        let child = home.malai(args).spawn().expect("starts");
        let mut peer = daemon.accept();
        peer.request();
        let spec: ExecSpec = peer.next().expect(Kind::Exec, "the command").expect("decodes");
        assert!(spec.detach && !spec.stdin && !spec.kill_on_lost, "{spec:?}");
        assert_eq!((spec.needs, spec.user.as_deref()), (vec!["detach".to_owned()], Some("deploy")));
        peer.start();
        assert_eq!(peer.rest(), [Kind::Goodbye]);
        let ended = wait(child);
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{ended}");
        let id = spec.id;
        if is_json {
            let started = r#"{"incarnation":"01010101010101010101010101010101","hostname":"web01","pid":7,"user":"u"}"#;
            let document = format!(
                "{{\"session\":\"web01.company/{id}\",\"target\":\"web01.company\",\"id\":\"{id}\",\"started\":{started}}}\n"
            );
            assert_eq!(ended.stdout, document);
        } else {
            assert_eq!(ended.stdout, format!("web01.company/{id}\n"));
        }
    }
}

#[test]
fn a_command_after_two_dashes_may_be_called_detach() {
    let home = Home::new();
    let daemon = Daemon::bind(&home);
    let child = home.malai(&["web01.company", "--", "--detach"]).spawn().expect("starts");
    let mut peer = daemon.accept();
    peer.request();
    let spec: ExecSpec = peer.next().expect(Kind::Exec, "the command").expect("decodes");
    assert!(!spec.detach && spec.needs.is_empty() && spec.words == [&b"--detach"[..]], "{spec:?}");
    peer.start();
    peer.exit(&record(0, 0, 0));
    assert_eq!(wait(child).code, 0);
}

#[test]
fn a_start_whose_outcome_is_unknown_tells_the_name_to_look_for() {
    let home = Home::new();
    let daemon = Daemon::bind(&home);
    let child = home.malai(&["--connect-timeout", "1s", "--detach", "web01.company", "make"]).spawn().expect("starts");
    let mut peer = daemon.accept();
    peer.request();
    let spec: ExecSpec = peer.next().expect(Kind::Exec, "the command").expect("decodes");
    let ended = wait(child);
    assert_eq!((ended.code, ended.stdout.as_str()), (253, ""));
    let words = format!(
        "malai: error: web01.company did not answer in time; whether the command started is not known; if the command started, \
         it runs as session web01.company/{}\nmalai: hint: see: malai sessions web01.company\n",
        spec.id
    );
    assert_eq!(ended.stderr, words);
}

#[test]
fn a_name_that_nobody_reads_is_told_on_standard_error() {
    let home = Home::new();
    let daemon = Daemon::bind(&home);
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let child = home.malai(&["--detach", "web01.company", "make"]).stdout(writer).spawn().expect("starts");
    let mut peer = daemon.accept();
    peer.request();
    let spec: ExecSpec = peer.next().expect(Kind::Exec, "the command").expect("decodes");
    peer.start();
    assert_eq!(peer.rest(), [Kind::Goodbye]);
    let ended = wait(child);
    let said = format!("malai: nobody reads standard output; the command runs as session web01.company/{}\n", spec.id);
    assert_eq!((ended.code, ended.stderr), (141, said));
}

#[test]
fn a_name_that_cannot_be_printed_is_told_with_the_failure() {
    let home = Home::new();
    let daemon = Daemon::bind(&home);
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("opens");
    let child = home.malai(&["--detach", "web01.company", "make"]).stdout(full).spawn().expect("starts");
    let mut peer = daemon.accept();
    peer.request();
    let spec: ExecSpec = peer.next().expect(Kind::Exec, "the command").expect("decodes");
    peer.start();
    let ended = wait(child);
    assert_eq!(ended.code, 255);
    assert!(ended.stderr.contains(&format!("; the command runs as session web01.company/{}\n", spec.id)), "{ended}");
}

#[test]
fn a_detached_command_that_is_refused_is_one_document_too() {
    let home = Home::new();
    let daemon = Daemon::bind(&home);
    let child = home.malai(&["--json", "--detach", "web01.company", "make"]).spawn().expect("starts");
    let mut peer = daemon.accept();
    peer.greet();
    peer.send(Kind::Refused, &Failure::new(failure::Kind::Denied, "no"));
    let ended = wait(child);
    let document = "{\"error\":{\"kind\":\"denied\",\"message\":\"no\"}}\n";
    assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (254, document, "malai: error: no\n"));
}

#[test]
fn the_sessions_of_all_machines_are_a_table() {
    let over = |status, ended_by| State::Ended(ExitRecord { status, ended_by, ..record(0, 0, 0) });
    let all = [
        State::Running,
        over(Ending::Exited { code: 0 }, EndedBy::Itself),
        over(Ending::Signalled { signal: 9, core: false }, EndedBy::Itself),
        over(Ending::Signalled { signal: 15, core: false }, EndedBy::Grace),
        State::Failed(Failure::new(failure::Kind::Unknown, "nobody knows")),
    ];
    let ended = sessions(&["sessions"], status(&["laptop", "web01"], ClusterState::Ready), |machine| {
        let mut sessions: Vec<Summary> = all.iter().cloned().map(summary).collect();
        sessions.push(Summary { detached: false, ..summary(State::Running) });
        Some(Ok(Listed { sessions: if machine == "web01" { sessions } else { Vec::new() }, more: false }))
    });
    insta::assert_snapshot!(ended, @r"
    exit 0
    --- stdout
    SESSION                                         OWNER   STATE               SINCE                 COMMAND
    web01.company/00112233445566778899aabbccddeeff  laptop  running, detached   2026-01-01T00:00:00Z  make release
    web01.company/00112233445566778899aabbccddeeff  laptop  exited 0            2026-01-01T00:00:00Z  make release
    web01.company/00112233445566778899aabbccddeeff  laptop  killed by signal 9  2026-01-01T00:00:00Z  make release
    web01.company/00112233445566778899aabbccddeeff  laptop  ended: grace        2026-01-01T00:00:00Z  make release
    web01.company/00112233445566778899aabbccddeeff  laptop  unknown             2026-01-01T00:00:00Z  make release
    web01.company/00112233445566778899aabbccddeeff  laptop  running             2026-01-01T00:00:00Z  make release
    --- stderr
    ");
}

#[test]
fn what_a_machine_says_of_its_sessions_does_not_drive_the_terminal() {
    let one = Summary { command: "a\x1b[2J\nmalai: fine\u{202e}".into(), owner: key(1), ..summary(State::Running) };
    let answer = |_: &str| Some(Ok(Listed { sessions: vec![one.clone()], more: false }));
    let ended = sessions(&["sessions", "web01.company"], status(&["laptop"], ClusterState::Ready), answer);
    insta::assert_snapshot!(ended, @r"
    exit 0
    --- stdout
    SESSION                                         OWNER       STATE              SINCE                 COMMAND
    web01.company/00112233445566778899aabbccddeeff  7l01fgv88e  running, detached  2026-01-01T00:00:00Z  a\x1b[2J\nmalai: fine\u{202e}
    --- stderr
    ");
    let ended = sessions(&["sessions", "web01.company", "--json"], status(&["laptop"], ClusterState::Ready), answer);
    insta::assert_snapshot!(ended, @r#"
    exit 0
    --- stdout
    {"sessions":[{"session":"web01.company/00112233445566778899aabbccddeeff","target":"web01.company","id":"00112233445566778899aabbccddeeff","owner":"7l01fgv88e4ll4ln1ajkq6runie9gb6f5r29d360plav2ankco60","owner_name":null,"detached":true,"user":"deploy","since_ms":1767225600000,"command":"a\u001b[2J\nmalai: fine\u202e","state":"running"}],"unreachable":[]}
    --- stderr
    "#);
}

#[test]
fn a_machine_that_could_not_be_asked_makes_the_list_not_whole() {
    let answer = |machine: &str| match machine {
        "web01" => Some(Ok(Listed { sessions: vec![summary(State::Running)], more: false })),
        "web02" => Some(Err(Failure::new(failure::Kind::Denied, "no\x1b[2J").hint("ask"))),
        _ => None,
    };
    let all = status(&["web01", "web02", "web03"], ClusterState::Waiting("the manager".into()));
    insta::assert_snapshot!(sessions(&["sessions"], all.clone(), answer), @r"
    exit 255
    --- stdout
    SESSION                                         OWNER       STATE              SINCE                 COMMAND
    web01.company/00112233445566778899aabbccddeeff  qtd9g0c2m4  running, detached  2026-01-01T00:00:00Z  make release
    --- stderr
    malai: error: company: there is no config yet: the manager
    malai: error: web02.company: no\x1b[2J
    malai: hint: ask
    malai: error: web03.company: connection to web03.company lost before all its sessions were listed
    malai: hint: whether the machine is there: malai status
    ");
    let ended = sessions(&["sessions", "--json"], all, answer);
    assert_eq!(ended.code, 255);
    insta::assert_snapshot!(ended.stdout, @r#"{"sessions":[{"session":"web01.company/00112233445566778899aabbccddeeff","target":"web01.company","id":"00112233445566778899aabbccddeeff","owner":"qtd9g0c2m45bflabvr9sip07787e2snjraj269df08d6hto7a4d0","owner_name":null,"detached":true,"user":"deploy","since_ms":1767225600000,"command":"make release","state":"running"}],"unreachable":[{"target":"company","error":{"kind":"not-configured","message":"there is no config yet: the manager"}},{"target":"web02.company","error":{"kind":"denied","message":"no\u001b[2J","hint":"ask"}},{"target":"web03.company","error":{"kind":"unreachable","message":"connection to web03.company lost before all its sessions were listed","hint":"whether the machine is there: malai status"}}]}"#);
}

#[test]
fn no_sessions_are_said_and_not_shown() {
    let none = |_: &str| Some(Ok(Listed { sessions: Vec::new(), more: false }));
    let ended = sessions(&["sessions"], status(&["laptop"], ClusterState::Ready), none);
    assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (0, "", "malai: there are no sessions\n"));
    let home = Home::new();
    let daemon = Daemon::bind(&home);
    let child = home.malai(&["sessions"]).spawn().expect("starts");
    daemon.answer(&[Response::Status(Status { clusters: Vec::new(), ..status(&[], ClusterState::Ready) })]);
    let ended = wait(child);
    assert_eq!(ended.code, 255);
    assert!(ended.stderr.starts_with("malai: error: no cluster was made or joined here\nmalai: hint: "), "{ended}");
}

#[test]
fn a_session_is_attached_to_by_its_name_or_a_prefix_and_its_code_is_the_exit_code() {
    for args in [&["attach", "web01.company", "0011"][..], &["attach", &format!("web01.company/{ID}")]] {
        let home = Home::new();
        let daemon = Daemon::bind(&home);
        let child = home.malai(args).spawn().expect("starts");
        list(&daemon, vec![summary(State::Running)]);
        let mut peer = daemon.accept();
        let attach: Attach = peer.attach();
        assert_eq!((attach.id.to_string().as_str(), attach.owner), (ID, Some(key(0))));
        assert!(attach.take_over && !attach.binding && !attach.from_end, "{attach:?}");
        peer.attached(2, 0);
        peer.output(Kind::Stdout, b"output\n");
        peer.exit(&ExitRecord { ended_by: EndedBy::Timeout, ..record(0, 9, 0) });
        assert_eq!(peer.await_kind(Kind::Goodbye).kind, Kind::Goodbye);
        let ended = wait(child);
        assert_eq!((ended.code, ended.stdout.as_str()), (252, "output\n"), "{ended}");
        let words = "malai: the target no longer has the first 2 bytes of output\nmalai: the command on web01.company was killed, \
                     by its --timeout\n";
        assert_eq!(ended.stderr, words);
    }
}

#[test]
fn a_whole_id_that_is_not_listed_is_asked_for_all_the_same() {
    let home = Home::new();
    let daemon = Daemon::bind(&home);
    let child = home.malai(&["attach", "--from-end", "web01.company", ID]).spawn().expect("starts");
    list(&daemon, Vec::new());
    let mut peer = daemon.accept();
    let attach = peer.attach();
    assert!(
        attach.owner.is_none() && attach.from_end && attach.id == ID.parse::<SessionId>().expect("an id"),
        "{attach:?}"
    );
    peer.greet();
    peer.send(Kind::Refused, &Failure::new(failure::Kind::Unknown, "no such session"));
    let ended = wait(child);
    assert_eq!((ended.code, ended.stderr.as_str()), (253, "malai: error: no such session\n"));
}

#[test]
fn a_prefix_of_no_session_names_those_that_are_there() {
    let home = Home::new();
    let daemon = Daemon::bind(&home);
    let child = home.malai(&["kill", "web01.company/ffff"]).spawn().expect("starts");
    list(&daemon, vec![summary(State::Running)]);
    insta::assert_snapshot!(wait(child), @r"
    exit 255
    --- stdout
    --- stderr
    malai: error: no session at web01.company begins with ffff; there are web01.company/00112233445566778899aabbccddeeff
    malai: hint: see: malai sessions web01.company
    ");
}

#[test]
fn an_interrupt_leaves_the_command_running_and_says_how_to_come_back() {
    let home = Home::new();
    let daemon = Daemon::bind(&home);
    let child = home.malai(&["attach", "--json", "web01.company", "0011"]).spawn().expect("starts");
    list(&daemon, vec![summary(State::Running)]);
    let mut peer = daemon.accept();
    peer.attach();
    peer.attached(0, 0);
    peer.output(Kind::Stdout, b"x");
    peer.await_kind(Kind::Ack);
    kill(Pid::from_raw(i32::try_from(child.id()).expect("a pid")), Number::SIGTERM).expect("sent");
    assert_eq!(peer.rest(), [Kind::Goodbye]);
    let ended = wait(child);
    assert_eq!(ended.code, 143);
    assert_eq!(ended.stderr, format!("malai: the command goes on; malai attach web01.company/{ID} follows it again\n"));
    let last = ended.stdout.lines().last().expect("a line");
    assert_eq!(last, r#"{"event":"left","target":"web01.company","code":143}"#);
}

#[test]
fn waiting_ends_as_the_command_did() {
    for json in [false, true] {
        let home = Home::new();
        let daemon = Daemon::bind(&home);
        let mut command = home.malai(&["wait", "web01.company", "0011"]);
        let child = if json { command.arg("--json") } else { &mut command }.spawn().expect("starts");
        list(&daemon, vec![summary(State::Running)]);
        let (mut peer, _, frame) = question(&daemon, Kind::Wait);
        let asked: sessions::Wait = frame.decode().expect("decodes");
        assert_eq!((asked.owner, asked.id.to_string().as_str()), (Some(key(0)), ID));
        let over = ExitRecord { ended_by: EndedBy::Killed, reason: Some("by laptop".into()), ..record(0, 0, 0) };
        peer.exit(&if json { record(7, 1, 2) } else { over });
        assert_eq!(peer.rest(), [Kind::Goodbye]);
        let ended = wait(child);
        if json {
            insta::assert_snapshot!(ended, @r#"
            exit 7
            --- stdout
            {"session":"web01.company/00112233445566778899aabbccddeeff","target":"web01.company","id":"00112233445566778899aabbccddeeff","code":7,"record":{"status":{"exited":{"code":7}},"ended_by":"self","stdout_bytes":1,"stderr_bytes":2,"duration_ms":1,"output_open":false}}
            --- stderr
            "#);
        } else {
            insta::assert_snapshot!(ended, @r"
            exit 253
            --- stdout
            --- stderr
            malai: the command on web01.company was killed by `malai kill` (by laptop)
            ");
        }
    }
}

#[test]
fn a_wait_outlives_the_daemon_here() {
    let home = Home::new();
    let daemon = Daemon::bind(&home);
    let child = home.malai(&["wait", "web01.company", "0011"]).spawn().expect("starts");
    list(&daemon, vec![summary(State::Running)]);
    drop(question(&daemon, Kind::Wait));
    let (mut peer, ..) = question(&daemon, Kind::Wait);
    peer.exit(&record(3, 0, 0));
    assert_eq!(wait(child).code, 3);
}

#[test]
fn a_kill_says_how_the_session_ended_and_a_signal_nothing() {
    let ended_by = |ended_by| ExitRecord { ended_by, ..record(3, 0, 0) };
    let words = |what: &str| format!("malai: web01.company/{ID} {what}\n");
    let cases: [(&[&str], _, _); 4] = [
        (&["kill"], Some(ended_by(EndedBy::Killed)), words("is ended")),
        (&["kill"], Some(ended_by(EndedBy::Itself)), words("had already ended: exited 3")),
        (&["kill", "--signal", "sigusr1"], None, String::new()),
        (&["kill", "--json", "--signal", "10"], None, String::new()),
    ];
    for (args, answer, words) in cases {
        let home = Home::new();
        let daemon = Daemon::bind(&home);
        let child = home.malai(args).args(["web01.company", "0011"]).spawn().expect("starts");
        list(&daemon, vec![summary(State::Running)]);
        let (mut peer, _, frame) = question(&daemon, Kind::Kill);
        let asked: sessions::Kill = frame.decode().expect("decodes");
        assert_eq!((asked.owner, asked.signal), (Some(key(0)), answer.is_none().then_some(10)));
        match &answer {
            Some(record) => peer.exit(record),
            None => peer.send_frame(&malai_protocol::codec::Frame::empty(Kind::Killed)),
        }
        let ended = wait(child);
        assert_eq!((ended.code, &ended.stderr), (0, &words));
        let document = format!(
            "{{\"session\":\"web01.company/{ID}\",\"target\":\"web01.company\",\"id\":\"{ID}\",\"signal\":10}}\n"
        );
        assert_eq!(ended.stdout, if args.contains(&"--json") { document } else { String::new() });
    }
}

#[test]
fn a_kill_that_left_processes_names_them_and_is_no_success() {
    let home = Home::new();
    let daemon = Daemon::bind(&home);
    let child = home.malai(&["kill", "web01.company", "0011"]).spawn().expect("starts");
    list(&daemon, vec![summary(State::Running)]);
    let (mut peer, ..) = question(&daemon, Kind::Kill);
    let reason = Some("by laptop; 2 processes are left: 7 a, 8 b".into());
    peer.exit(&ExitRecord { ended_by: EndedBy::Killed, reason, left: 2, ..record(0, 0, 0) });
    insta::assert_snapshot!(wait(child), @r"
    exit 253
    --- stdout
    --- stderr
    malai: web01.company/00112233445566778899aabbccddeeff was ended, but some of its processes are left (by laptop; 2 processes are left: 7 a, 8 b)
    malai: hint: on web01.company, as root: kill -9 with these process ids
    ");
}

#[test]
fn a_kill_that_is_not_answered_is_unknown() {
    let home = Home::new();
    let daemon = Daemon::bind(&home);
    let child = home.malai(&["kill", "web01.company", "0011"]).spawn().expect("starts");
    list(&daemon, vec![summary(State::Running)]);
    drop(question(&daemon, Kind::Kill));
    insta::assert_snapshot!(wait(child), @r"
    exit 253
    --- stdout
    --- stderr
    malai: error: connection to web01.company lost before it answered; whether web01.company/00112233445566778899aabbccddeeff was ended is not known
    malai: hint: see: malai sessions web01.company
    ");
}

/// Follows a session that another process takes over, with a daemon that answers so when it is asked who that is.
fn displaced(args: &[&str], known: Option<Status>) -> Ended {
    let home = Home::new();
    let daemon = Daemon::bind(&home);
    let child = home.malai(args).spawn().expect("starts");
    list(&daemon, vec![summary(State::Running)]);
    let mut peer = daemon.accept();
    peer.attach();
    peer.attached(0, 0);
    peer.send(Kind::Superseded, &Superseded { by: key(1), follower: FollowerId::from_bytes([0xab; 16]) });
    match known {
        Some(status) => assert_eq!(daemon.answer(&[Response::Status(status)]), Request::Status),
        None => drop(daemon),
    }
    wait(child)
}

#[test]
fn an_attach_that_is_displaced_names_the_machine_that_displaced_it() {
    let name = format!("web01.company/{ID}");
    let ended = displaced(&["attach", &name], Some(status(&["laptop", "web02"], ClusterState::Ready)));
    assert_eq!(ended.code, 253);
    let words = "the command on web01.company goes on and is followed from elsewhere now, by process abababab of machine \
        web02.company; that process will say how it ends";
    assert_eq!(ended.stderr, format!("malai: error: {words}\n"));
    let ended = displaced(&["attach", "--json", &name], Some(status(&["web02"], ClusterState::Ready)));
    let last: serde_json::Value = serde_json::from_str(ended.stdout.lines().last().expect("a line")).expect("json");
    assert_eq!((last["code"].as_u64(), last["error"]["message"].as_str()), (Some(253), Some(words)));
}

#[test]
fn an_attach_that_is_displaced_by_a_machine_without_a_name_here_tells_its_key() {
    let name = format!("web01.company/{ID}");
    for known in [None, Some(status(&["laptop"], ClusterState::Ready))] {
        let ended = displaced(&["attach", &name], known);
        assert_eq!(ended.code, 253);
        assert!(ended.stderr.contains(&format!("by process abababab of machine {};", KEYS[1])), "{ended}");
    }
}

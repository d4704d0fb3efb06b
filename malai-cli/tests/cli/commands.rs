//! What the other commands ask and how they show the answer.

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::local::{
    CameBy, Changed, Config, Connect, DaemonStatus, InviteEntry, InviteState, Invited, Publication, Redemption,
    Request, RescanOutcome, Rescanned, Response, Verdict,
};
use malai_protocol::plan::Tree;
use malai_protocol::session::Reached;

use crate::harness::{Daemon, Ended, Home, wait};

/// Runs a command against a daemon that answers so.
fn ask(args: &[&str], responses: &[Response]) -> (Request, Ended) {
    let home = Home::new();
    let daemon = Daemon::bind(&home);
    let child = home.malai(args).spawn().expect("starts");
    let request = daemon.answer(responses);
    (request, wait(child))
}

fn daemon_status(agent: bool, ready: bool) -> Response {
    Response::Daemon(DaemonStatus {
        pid: 4711,
        version: "0.1.0".into(),
        agent,
        ready,
        tree: Some(Tree::Cgroup),
        executor_pid: Some(4712),
        sessions: 2,
        lost_log: None,
    })
}

fn publication(published: bool) -> Publication {
    Publication { generation: 12, published, holding: vec!["laptop".into()], missing: vec!["db01".into()] }
}

#[test]
fn daemon_status_is_0_only_for_a_daemon_that_is_ready() {
    let (request, ended) = ask(&["daemon", "status"], &[daemon_status(false, true)]);
    assert_eq!(request, Request::DaemonStatus);
    insta::assert_snapshot!(ended, @r"
    exit 0
    --- stdout
    daemon pid 4711, malai 0.1.0: ready
    cgroups: used; no process of a command stays behind
    sessions: 2, executor pid 4712
    --- stderr
    ");
    assert_eq!(ask(&["daemon", "status"], &[daemon_status(true, true)]).1.code, 1);
    assert_eq!(ask(&["daemon", "status"], &[daemon_status(false, false)]).1.code, 1);
    insta::assert_snapshot!(Home::new().run(&["daemon", "status"]), @r"
    exit 1
    --- stdout
    no daemon runs here
    --- stderr
    ");
    assert_eq!(Home::new().run(&["daemon", "status", "--json"]).stdout, "{\"daemon\":null}\n");
}

#[test]
fn daemon_stop_waits_until_the_lock_is_free() {
    let home = Home::new();
    let daemon = Daemon::bind(&home);
    let lock = std::fs::File::create(home.path().join("malai.lock")).expect("a lock");
    lock.lock().expect("locks");
    let mut child = home.malai(&["daemon", "stop"]).spawn().expect("starts");
    assert_eq!(daemon.answer(&[Response::Done]), Request::Stop);
    // It was answered, and another run has time to begin and to end.
    assert_eq!(home.run(&["--version"]).code, 0);
    assert!(child.try_wait().expect("asks").is_none());
    drop(lock);
    let ended = wait(child);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, "malai: daemon stopped\n"));
}

#[test]
fn daemon_stop_without_a_daemon_says_so() {
    let ended = Home::new().run(&["daemon", "stop"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, "malai: no daemon runs here\n"));
}

#[test]
fn the_token_is_alone_on_standard_output() {
    let invited = Invited {
        id: "1a2b3c4d".into(),
        token: "malai1abc".into(),
        expires_ms: 1_767_225_600_000,
        join_addresses: vec!["192.0.2.1:4002".into()],
    };
    let (request, ended) = ask(&["cluster", "invite", "company", "--name", "web01"], &[Response::Invited(invited)]);
    let Request::ClusterInvite(asked) = request else { panic!("{request:?}") };
    assert_eq!((asked.uses, asked.expires_s, asked.name.as_deref()), (1, 3600, Some("web01")));
    insta::assert_snapshot!(ended, @r"
    exit 0
    --- stdout
    malai1abc
    --- stderr
    malai: invite 1a2b3c4d, expires 2026-01-01T00:00:00Z
    malai: newcomers reach this machine at 192.0.2.1:4002
    malai: no --username: commands run as `username` of [defaults]; without that, as the account of the newcomer's daemon, and a daemon that is root refuses them
    malai: hint: on the newcomer: malai machine join TOKEN; malai daemon
    ");
}

#[test]
fn rescan_is_0_only_when_all_is_published_and_says_who_has_it() {
    let one = |outcome| Response::Rescanned(vec![Rescanned { alias: "company".into(), outcome, warnings: Vec::new() }]);
    let (_, ended) =
        ask(&["rescan"], &[Response::Progress("asking db01".into()), one(RescanOutcome::Published(publication(true)))]);
    insta::assert_snapshot!(ended, @r"
    exit 0
    --- stdout
    --- stderr
    malai: asking db01
    malai: company: signed
    malai: company: generation 12
    malai: company: these machines have it: laptop
    malai: company: not reached: db01; they get it from the next machine that has it
    ");
    let (_, ended) = ask(&["rescan"], &[one(RescanOutcome::Published(publication(false)))]);
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("malai: not published: no daemon runs here\n"), "{ended}");
    let broken = Failure::new(Kind::BadConfig, "cluster.toml:3:1: unknown key `nam`").hint("did you mean `name`?");
    let (request, ended) = ask(&["rescan", "company", "--yes", "--over", "7"], &[one(RescanOutcome::Failed(broken))]);
    let Request::Rescan(asked) = request else { panic!("{request:?}") };
    assert_eq!((asked.cluster.as_deref(), asked.check, asked.yes, asked.over), (Some("company"), false, true, Some(7)));
    insta::assert_snapshot!(ended, @r"
    exit 1
    --- stdout
    --- stderr
    malai: error: company: cluster.toml:3:1: unknown key `nam`
    malai: hint: did you mean `name`?
    ");
}

#[test]
fn a_check_that_warns_is_in_order_all_the_same_and_tells_the_warning_in_json_too() {
    let warning = "cluster.toml: line 9, column 15: `GIT_*` in `accept_env` of [defaults] matches `GIT_SSH_COMMAND`";
    let checked = || {
        let outcome = RescanOutcome::Checked { diff: String::new() };
        Response::Rescanned(vec![Rescanned { alias: "company".into(), outcome, warnings: vec![warning.into()] }])
    };
    for words in [["rescan", "--check"], ["config", "check"]] {
        let (_, ended) = ask(&words, &[checked()]);
        insta::allow_duplicates! {
            insta::assert_snapshot!(ended, @r"
            exit 0
            --- stdout
            --- stderr
            malai: company: warning: cluster.toml: line 9, column 15: `GIT_*` in `accept_env` of [defaults] matches `GIT_SSH_COMMAND`
            malai: company: correct, and already signed
            ");
        }
    }
    let (_, ended) = ask(&["rescan", "--check", "--json"], &[checked()]);
    let document: serde_json::Value = serde_json::from_str(&ended.stdout).expect("a document");
    assert_eq!((ended.code, document[0]["warnings"][0].as_str()), (0, Some(warning)));
}

#[test]
fn a_failure_is_one_document_where_json_was_asked_for() {
    let failure = Failure::new(Kind::NotConfigured, "no cluster `x`").hint("malai cluster list");
    let (_, ended) = ask(&["--json", "config", "show", "x"], &[Response::Failed(failure)]);
    insta::assert_snapshot!(ended, @r#"
    exit 255
    --- stdout
    {"error":{"hint":"malai cluster list","kind":"not-configured","message":"no cluster `x`"}}
    --- stderr
    malai: error: no cluster `x`
    malai: hint: malai cluster list
    "#);
}

#[test]
fn config_diff_is_1_where_there_is_one() {
    let config = |edited: Option<&str>, diff: &str| {
        Response::Config(Config {
            alias: "company".into(),
            generation: 1,
            signed: "a = 1\n".into(),
            edited: edited.map(Into::into),
            diff: diff.into(),
        })
    };
    let (_, ended) = ask(&["config", "diff", "company"], &[config(Some("a = 2\n"), "-a = 1\n+a = 2\n")]);
    assert_eq!((ended.code, ended.stdout.as_str()), (1, "-a = 1\n+a = 2\n"));
    assert_eq!(ask(&["config", "diff", "company"], &[config(Some("a = 1\n"), "")]).1.code, 0);
    assert_eq!(ask(&["config", "diff", "company"], &[config(None, "")]).1.code, 255);
    assert_eq!(ask(&["config", "show", "company"], &[config(None, "")]).1.stdout, "a = 1\n");
}

#[test]
fn can_asks_for_the_words_and_its_exit_code_is_the_verdict() {
    let verdict = Verdict { allowed: false, steps: vec!["no rule names db01".into()], hint: Some("allow_from".into()) };
    let (request, ended) = ask(&["can", "db01", "root@web01.company", "--", "ls", "-l"], &[Response::Verdict(verdict)]);
    let Request::Can(asked) = request else { panic!("{request:?}") };
    assert_eq!((asked.who.as_str(), asked.machine.as_str(), asked.user.as_deref()), ("db01", "web01", Some("root")));
    assert_eq!((asked.words, asked.literal), (vec!["ls".to_owned(), "-l".into()], true));
    insta::assert_snapshot!(ended, @r"
    exit 1
    --- stdout
    denied
      no rule names db01
    --- stderr
    malai: hint: allow_from
    ");
}

#[test]
fn a_daemon_that_dies_before_it_answers_is_not_taken_for_done() {
    let home = Home::new();
    let daemon = Daemon::bind(&home);
    let child = home.malai(&["rescan"]).spawn().expect("starts");
    let mut peer = daemon.accept();
    peer.greet();
    peer.request();
    drop(peer);
    let ended = wait(child);
    assert_eq!(ended.code, 253, "{ended}");
    assert!(ended.stderr.contains("it is not known whether it did what was asked"), "{ended}");
}

#[test]
fn audit_shows_all_files_and_names_lines_that_are_none() {
    let home = Home::new();
    assert_eq!(home.run(&["audit"]).code, 0);
    let line = |at: u64, word: &str| {
        format!(
            r#"{{"at_ms":{at},"event":"refused","cluster":"company","session":"00","id52":"abc","words":["{word}"],"code":254}}"#
        ) + "\n"
    };
    std::fs::write(home.path().join("audit.jsonl.1"), line(1000, "old")).expect("writes");
    std::fs::write(home.path().join("audit.jsonl"), line(2000, "new\\u001b") + "nonsense\n").expect("writes");
    let ended = home.run(&["audit"]);
    assert_eq!(ended.code, 1, "{ended}");
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert!(lines.len() == 3 && lines[0].ends_with("-- old") && lines[1].ends_with("-- new\\x1b"), "{ended}");
    assert_eq!(lines[2], "broken: line 2 of audit.jsonl, 8 bytes: nonsense");
    assert!(
        ended.stderr.contains("error: cannot read 1 line of ")
            && ended.stderr.contains("/audit.jsonl as audit entries"),
        "{ended}"
    );
    let ended = home.run(&["audit", "--json", "--since", "1970-01-01T00:00:02"]);
    assert!(ended.stdout.starts_with("{\"at_ms\":2000,") && ended.stdout.lines().count() == 2, "{ended}");
    let broken = r#"{"event":"broken","file":"audit.jsonl","line":2,"bytes":8,"text":"nonsense"}"#;
    assert_eq!(ended.stdout.lines().last(), Some(broken));
}

#[test]
fn a_broken_line_hides_no_other_whatever_it_is() {
    let home = Home::new();
    let line = |word: &str| {
        format!(
            r#"{{"at_ms":1000,"event":"refused","cluster":"c","session":"00","id52":"abc","words":["{word}"],"code":254}}"#
        )
        .into_bytes()
    };
    let deep = "[".repeat(100_000).into_bytes();
    let half = line("half").split_at(40).0.to_vec();
    let broken = [&b"\xff\xfe\x9b2J\xe2\x80\xae"[..], &[0; 5000], &half, &deep, b"", b"null", b"{}"];
    let mut older = Vec::new();
    for (number, bytes) in broken.iter().enumerate() {
        older.extend([&line(&format!("word{number}"))[..], b"\n", bytes, b"\n"].concat());
    }
    std::fs::write(home.path().join("audit.jsonl.2"), &older).expect("writes");
    // In between a part that nobody can read, and one with a line of 1 GiB.
    std::fs::create_dir(home.path().join("audit.jsonl.3")).expect("made");
    let hole = std::fs::File::create(home.path().join("audit.jsonl.1")).expect("made");
    hole.set_len(1 << 30).expect("a hole");
    let end = [b"\n", &line("after")[..], b"\n"].concat();
    std::os::unix::fs::FileExt::write_all_at(&hole, &end, 1 << 30).expect("writes");
    // The last line has no end, as a crash leaves it.
    std::fs::write(home.path().join("audit.jsonl"), [&line("last")[..], b"\n", &half].concat()).expect("writes");
    for args in [&["audit"][..], &["audit", "--json"]] {
        let ended = home.run(args);
        assert_eq!(ended.code, 1, "{ended}");
        let shown: Vec<&str> = ended.stdout.lines().collect();
        assert_eq!(shown.len(), 2 * broken.len() + 4, "{ended}");
        for (number, pair) in shown.chunks(2).take(broken.len()).enumerate() {
            assert!(pair[0].contains(&format!("word{number}")) && pair[1].contains("broken"), "{pair:?}");
            assert!(
                pair[1].contains(&format!("line {}", 2 * number + 2))
                    || pair[1].contains(&format!("\"line\":{}", 2 * number + 2))
            );
        }
        let rest = shown.get(2 * broken.len()..).expect("more");
        assert!(rest[0].contains("broken") && rest[0].contains(&(1u64 << 30).to_string()), "{rest:?}");
        assert!(rest[1].contains("after") && rest[2].contains("last") && rest[3].contains("broken"), "{rest:?}");
        assert!(shown.iter().all(|line| line.len() < 2000), "a broken line is not cut");
        let is_harmless = |c: char| c == '\n' || c == '…' || (' '..='~').contains(&c);
        assert!(ended.stdout.chars().all(is_harmless), "{ended}");
        assert!(ended.stderr.contains("audit.jsonl.3 cannot be read"), "{ended}");
    }
}

#[test]
fn connect_asks_for_one_address_and_shows_how_the_machine_was_reached() {
    let reached = Reached {
        path: "direct 192.0.2.7:4001".into(),
        rtt_us: 1_230,
        found_by: Some("directory (by db01\u{1b}[31m)".into()),
    };
    let answer = [Response::Connected(reached)];
    let (request, ended) = ask(&["connect", "web01.company", "--connect-timeout", "3s"], &answer);
    let asked =
        Connect { machine: "web01".into(), cluster: Some("company".into()), at: None, connect_timeout_ms: 3000 };
    assert_eq!(request, Request::Connect(asked.clone()));
    insta::assert_snapshot!(ended, @r"
    exit 0
    --- stdout
    web01.company: direct 192.0.2.7:4001, 1.2 ms, found by directory (by db01\x1b[31m)
    --- stderr
    ");
    let args = ["connect", "--json", "root@web01.company", "--at", "192.0.2.7:4001", "--connect-timeout", "3s"];
    let (request, ended) = ask(&args, &answer);
    assert_eq!(request, Request::Connect(Connect { at: Some("192.0.2.7:4001".into()), ..asked }));
    let document: serde_json::Value = serde_json::from_str(&ended.stdout).expect("a document");
    assert_eq!(document["target"], "web01.company");
    assert_eq!(document["rtt_us"], 1_230);
    assert_eq!(document["path"], "direct 192.0.2.7:4001");
}

fn listed(state: InviteState) -> InviteEntry {
    InviteEntry {
        id: "1a2b3c4d".into(),
        state,
        uses: 5,
        uses_left: 4,
        expires_ms: 1_767_225_600_000,
        revoked_ms: None,
        forgotten_ms: 1_767_312_000_000,
        name: None,
        groups: vec!["admins".into(), "devs".into()],
        username: Some("deploy".into()),
        redeemed: vec![Redemption { machine: "web01".into(), id: machine_id(), at_ms: Some(1), removed: true }],
    }
}

fn machine_id() -> malai_protocol::id::MachineId {
    "tl4ihhh8q71cdqn90cs90mclc4kli9pqbhhvidhmo5319b476v8g".parse().expect("an id52")
}

#[test]
fn invites_are_a_table_for_people_and_one_document_for_programs() {
    let open = InviteEntry {
        expires_ms: u64::MAX / 4,
        groups: Vec::new(),
        username: None,
        redeemed: Vec::new(),
        ..listed(InviteState::Open)
    };
    let both = || vec![listed(InviteState::Expired), InviteEntry { id: "5e6f7a8b".into(), ..open.clone() }];
    let (request, ended) = ask(&["cluster", "invites", "company"], &[Response::Invites(both())]);
    assert_eq!(request, Request::ClusterInvites { cluster: "company".into() });
    let lines: Vec<String> =
        ended.stdout.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(lines[0], "ID USES LEFT EXPIRES NAME GROUPS USERNAME REDEEMED BY");
    assert!(lines[1].starts_with("1a2b3c4d 4 of 5 expired "), "{ended}");
    assert!(lines[1].ends_with(" ago - admins, devs deploy web01 (removed)"), "{ended}");
    assert!(lines[2].starts_with("5e6f7a8b 4 of 5 in ") && lines[2].ends_with(" d - - - -"), "{ended}");
    assert_eq!(ended.stderr, "malai: hint: end one: malai cluster revoke company ID\n");
    let (_, ended) = ask(&["cluster", "invites", "company", "--json"], &[Response::Invites(both())]);
    let document: serde_json::Value = serde_json::from_str(&ended.stdout).expect("a document");
    assert_eq!((document[0]["id"].as_str(), document[0]["state"].as_str()), (Some("1a2b3c4d"), Some("expired")));
    let (_, ended) = ask(&["cluster", "invites", "company"], &[Response::Invites(Vec::new())]);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, "malai: company has no invites\n"));
}

#[test]
fn revoke_says_what_ended_and_who_stays() {
    let mut revoked = listed(InviteState::Revoked);
    revoked.redeemed[0].removed = false;
    let (request, ended) = ask(&["cluster", "revoke", "company", "1a2b"], &[Response::Revoked(revoked)]);
    assert_eq!(request, Request::ClusterRevoke { cluster: "company".into(), id: "1a2b".into() });
    insta::assert_snapshot!(ended, @r"
    exit 0
    --- stdout
    --- stderr
    malai: company: revoked the invite 1a2b3c4d; 4 uses were left
    malai: machines that joined with it stay: web01
    ");
}

#[test]
fn remove_says_that_the_invite_lets_others_in_and_how_it_is_ended() {
    let changed = |invites| {
        let publication = Publication { missing: Vec::new(), ..publication(true) };
        Response::Changed(Changed { machine: "web01".into(), id: machine_id(), publication, warning: None, invites })
    };
    let came = |revoked| CameBy { id: "1a2b3c4d".into(), uses_left: 4, expires_ms: 1_767_225_600_000, revoked };
    let (request, ended) = ask(&["cluster", "remove", "company", "web01"], &[changed(vec![came(false)])]);
    let wanted =
        |revoke_invite| Request::ClusterRemove { cluster: "company".into(), machine: "web01".into(), revoke_invite };
    assert_eq!(request, wanted(false));
    insta::assert_snapshot!(ended, @r"
    exit 0
    --- stdout
    --- stderr
    malai: web01.company removed, id52 tl4ihhh8q71cdqn90cs90mclc4kli9pqbhhvidhmo5319b476v8g
    malai: company: generation 12
    malai: company: these machines have it: laptop
    malai: web01 joined with the invite 1a2b3c4d; 4 uses are left until 2026-01-01T00:00:00Z
    malai: hint: a holder of its token can come back; to end it: malai cluster revoke company 1a2b3c4d
    ");
    let words = ["cluster", "remove", "company", "web01", "--revoke-invite"];
    let (request, ended) = ask(&words, &[changed(vec![came(true)])]);
    assert_eq!(request, wanted(true));
    let told = "malai: revoked the invite 1a2b3c4d, with which web01 joined; 4 uses were left\n";
    assert!(ended.code == 0 && ended.stderr.ends_with(told), "{ended}");
    let (_, ended) = ask(&words, &[changed(Vec::new())]);
    assert!(ended.stderr.ends_with("malai: web01 joined with no invite that is still open\n"), "{ended}");
    let (_, ended) = ask(&["cluster", "remove", "company", "web01", "--json"], &[changed(vec![came(false)])]);
    let document: serde_json::Value = serde_json::from_str(&ended.stdout).expect("a document");
    assert_eq!(
        (document["invites"][0]["id"].as_str(), document["invites"][0]["revoked"].as_bool()),
        (Some("1a2b3c4d"), Some(false))
    );
}

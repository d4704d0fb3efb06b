//! What works on the disk alone, with no daemon or only an agent.

use std::io::{BufRead, BufReader};

use malai_protocol::id::ClusterId;
use malai_protocol::invite::Invite;

use crate::harness::{Daemon, Home, Stopped, wait};

/// A home with a cluster `company`, whose first machine is `laptop`.
fn made() -> Home {
    let home = Home::new();
    let ended = home.run(&["cluster", "init", "company", "--name", "laptop", "--private"]);
    assert_eq!(ended.code, 0, "{ended}");
    ended.stdout.trim_end().parse::<ClusterId>().expect("the cluster's id52 is alone on standard output");
    home
}

#[test]
fn a_cluster_is_made_checked_and_asked_about_without_a_daemon() {
    let home = made();
    assert_eq!(home.run(&["config", "check"]).code, 0);
    let diff = home.run(&["config", "diff"]);
    assert_eq!((diff.code, diff.stdout.as_str()), (0, ""), "{diff}");
    let shown = home.run(&["config", "show", "company"]);
    let file = std::fs::read_to_string(home.path().join("clusters/company/cluster.toml")).expect("reads");
    assert_eq!((shown.code, shown.stdout), (0, file));
    let can = home.run(&["can", "laptop", "laptop.company", "--", "true"]);
    assert!(can.stdout.starts_with("allowed\n") || can.stdout.starts_with("denied\n"), "{can}");
    assert_eq!(can.code, i32::from(can.stdout.starts_with("denied")), "{can}");
}

#[test]
fn without_a_daemon_nothing_is_published_and_rescan_says_so() {
    let home = made();
    let ended = home.run(&["rescan"]);
    assert_eq!(ended.code, 1, "{ended}");
    assert!(ended.stderr.contains("malai: not published: no daemon runs here\n"), "{ended}");
    std::fs::write(home.path().join("clusters/company/cluster.toml"), "[cluster]\nnam = 1\n").expect("writes");
    let ended = home.run(&["config", "check", "company"]);
    assert_eq!(ended.code, 1, "{ended}");
    assert!(ended.stderr.starts_with("malai: error: company: "), "{ended}");
}

#[test]
fn an_invite_made_without_a_daemon_is_a_token_alone_on_standard_output() {
    let ended = made().run(&["cluster", "invite", "company", "--name", "web01"]);
    assert_eq!(ended.code, 0, "{ended}");
    ended.stdout.trim_end().parse::<Invite>().expect("a token");
    assert!(ended.stderr.contains("no daemon runs here, so no machine can join yet"), "{ended}");
}

#[test]
fn an_invite_that_names_no_user_has_none_whoever_makes_it() {
    let home = made();
    assert_eq!(home.run(&["cluster", "invite", "company", "--name", "web01"]).code, 0);
    let listed = home.run(&["cluster", "invites", "company", "--json"]);
    assert_eq!(listed.code, 0, "{listed}");
    let listed: serde_json::Value = serde_json::from_str(&listed.stdout).expect("JSON");
    assert_eq!(listed.pointer("/0/name").and_then(serde_json::Value::as_str), Some("web01"), "{listed}");
    assert!(listed.pointer("/0/username").is_none_or(serde_json::Value::is_null), "{listed}");
}

#[test]
fn a_cluster_that_root_makes_runs_commands_as_root_on_its_machine_and_says_so() {
    let home = Home::new();
    let ended = home.run(&["cluster", "init", "company", "--name", "laptop", "--private"]);
    let is_root = nix::unistd::geteuid().is_root();
    assert_eq!(
        ended.stderr.contains("commands on this machine run as root: `username` under [machine.laptop]"),
        is_root
    );
    let config = std::fs::read_to_string(home.path().join("clusters/company/cluster.toml")).expect("reads");
    assert_eq!(config.contains("username = \"root\""), is_root, "{config}");
}

#[test]
fn what_lies_beside_the_only_cluster_does_not_make_it_one_of_several() {
    let home = made();
    for left in [".company.1a2b.tmp", ".DS_Store"] {
        std::fs::create_dir(home.path().join("clusters").join(left)).expect("made");
    }
    let shown = home.run(&["config", "show"]);
    assert_eq!(shown.code, 0, "{shown}");
}

#[test]
fn an_agent_is_not_asked_to_change_a_cluster() {
    let home = made();
    let agent = Daemon::bind(&home);
    let child = home.malai(&["config", "show", "company"]).spawn().expect("starts");
    let mut peer = agent.accept();
    peer.greet_as(true);
    assert_eq!(peer.rest().len(), 1, "a greeting and nothing else");
    assert_eq!(wait(child).code, 0);
}

#[test]
fn a_cluster_that_is_not_there_is_named() {
    let ended = Home::new().run(&["config", "show"]);
    assert_eq!(ended.code, 255, "{ended}");
    assert!(ended.stderr.contains("no cluster was made or joined here"), "{ended}");
    let ended = made().run(&["rescan", "other"]);
    assert_ne!(ended.code, 0, "{ended}");
    assert!(ended.stderr.contains("other"), "{ended}");
}

#[test]
fn a_token_comes_by_argument_by_standard_input_or_by_the_environment() {
    let home = Home::new();
    let said = "malai: error: not an invite token";
    assert!(home.run(&["machine", "join", "x"]).stderr.starts_with(said));
    assert!(home.run(&["machine", "join", "-"]).stderr.starts_with(said));
    let child = home.malai(&["machine", "join"]).env("MALAI_INVITE", "x").spawn().expect("starts");
    assert!(wait(child).stderr.starts_with(said));
    assert_eq!(home.run(&["machine", "join"]).code, 2);
}

#[test]
fn invites_are_listed_and_revoked_without_a_daemon() {
    let home = made();
    let made = home.run(&["cluster", "invite", "company", "--uses", "3", "--json"]);
    let document: serde_json::Value = serde_json::from_str(&made.stdout).expect("a document");
    let id = document["id"].as_str().expect("an id").to_owned();
    assert!(made.stderr.contains(&format!("malai: invite {id}, expires ")), "{made}");
    let ended = home.run(&["cluster", "invites", "company"]);
    assert!(ended.code == 0 && ended.stdout.contains(&id) && ended.stdout.contains("3 of 3"), "{ended}");
    let ended = home.run(&["cluster", "revoke", "company", "nothing"]);
    assert!(ended.code != 0 && ended.stderr.contains(&format!("hint: there is {id}")), "{ended}");
    assert_eq!(home.run(&["cluster", "revoke", "company", &id[..4]]).code, 0);
    let ended = home.run(&["cluster", "revoke", "company", &id]);
    assert!(ended.code != 0 && ended.stderr.contains("was revoked before"), "{ended}");
    let ended = home.run(&["cluster", "invites", "company"]);
    assert!(ended.stdout.contains("revoked 0 s ago"), "{ended}");
}

#[test]
fn joining_under_a_taken_alias_hints_at_another_alias() {
    let (manager, home) = (made(), made());
    let _stopped = Stopped(&home);
    let token = manager.run(&["cluster", "invite", "company", "--name", "web01"]).stdout;
    for alias in [&[][..], &["--alias", "company"]] {
        let ended = home.run(&[&["machine", "join", token.trim_end()], alias].concat());
        insta::allow_duplicates! {
            insta::assert_snapshot!(ended, @r"
            exit 255
            --- stdout
            --- stderr
            malai: error: there is a cluster company here already
            malai: hint: join under another name: malai machine join --alias NAME TOKEN; or leave the existing one: malai machine leave company
            ");
        }
    }
    let other = manager.run(&["cluster", "list", "--json"]).stdout;
    let other: serde_json::Value = serde_json::from_str(&other).expect("a document");
    let id = other[0]["cluster"].as_str().expect("an id52");
    let ended = home.run(&["machine", "init", id, "company"]);
    let hint = format!("malai: hint: choose another name: malai machine init {id} NAME …; or leave the existing one: ");
    assert!(ended.code == 255 && ended.stderr.contains(&hint), "{ended}");
}

/// Reads standard error up to the line that says this, and returns all lines.
fn read_until(stderr: &mut impl BufRead, words: &str) -> String {
    let mut all = String::new();
    while !all.contains(words) {
        assert!(stderr.read_line(&mut all).expect("reads") > 0, "it ended: {all}");
    }
    all
}

const STARTS: &str = "no daemon runs here, and the agent is still starting; waiting for it…";

#[test]
fn an_agent_that_is_long_on_its_way_is_waited_for_which_is_told_and_takes_nothing_of_the_machines_time() {
    let home = Home::new();
    let _stopped = Stopped(&home);
    // As one does that looks at it or is about to leave: no agent gets ready meanwhile.
    let lock = std::fs::File::create(home.path().join("malai.lock")).expect("a lock");
    lock.lock().expect("locks");
    let mut child = home.malai(&["-n", "--connect-timeout", "1s", "web01.company", "true"]).spawn().expect("starts");
    let mut stderr = BufReader::new(child.stderr.take().expect("a pipe"));
    read_until(&mut stderr, STARTS);
    drop(lock);
    let said = read_until(&mut stderr, "machine join");
    assert!(said.starts_with("malai: error: this machine is in no cluster\n"), "{said}");
    assert_eq!(wait(child).code, 255);
}

#[test]
fn an_agent_that_finds_the_home_held_by_one_who_leaves_is_followed_by_another() {
    let home = Home::new();
    let _stopped = Stopped(&home);
    let lock = std::fs::File::create(home.path().join("malai.lock")).expect("a lock");
    lock.lock().expect("locks");
    let mut child = home.malai(&["sessions"]).spawn().expect("starts");
    let mut stderr = BufReader::new(child.stderr.take().expect("a pipe"));
    read_until(&mut stderr, STARTS);
    drop(lock);
    let said = read_until(&mut stderr, "error");
    assert!(said.starts_with("malai: error: no cluster was made or joined here\n"), "{said}");
    assert_eq!(wait(child).code, 255);
}

//! What works on the disk alone, with no daemon or only an agent.

use malai_protocol::id::ClusterId;
use malai_protocol::invite::Invite;

use crate::harness::{Daemon, Home, wait};

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
    assert!(ended.stderr.contains("no daemon runs here, so nobody can join yet"), "{ended}");
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

//! A relay on the disk; one that runs is tried in the lab.

use crate::harness::{Home, wait};

/// A token for the host of a relay.
fn token() -> String {
    let manager = Home::new();
    assert_eq!(manager.run(&["cluster", "init", "company", "--private", "--name", "laptop"]).code, 0);
    let ended = manager.run(&["cluster", "invite", "company", "--relay"]);
    assert_eq!((ended.code, ended.stdout.lines().count()), (0, 1), "{ended}");
    assert!(ended.stderr.contains("malai relay init TOKEN --url https://HOST:7443"), "{ended}");
    ended.stdout.trim().to_owned()
}

#[test]
fn relay_init_prints_the_entry_of_the_config_alone_on_standard_output() {
    let (host, token) = (Home::new(), token());
    let ended = host.run(&["relay", "init", &token, "--url", "https://203.0.113.5:7443"]);
    let (entry, rest) = ended.stdout.split_once('\n').expect("a line");
    assert_eq!((ended.code, rest), (0, ""), "{ended}");
    assert!(entry.starts_with("{ url = \"https://203.0.113.5:7443\", sha256 = \""), "{ended}");
    assert!(ended.stderr.contains("malai rescan company") && ended.stderr.contains("malai relay run"), "{ended}");
    // By the environment, for what is there already.
    let child = host.malai(&["relay", "init", "--json"]).env("MALAI_INVITE", &token).spawn().expect("starts");
    let again: serde_json::Value = serde_json::from_str(&wait(child).stdout).expect("a document");
    assert!(entry.contains(again["sha256"].as_str().expect("a hash")), "{again}");
    assert_eq!(again["clusters"], serde_json::json!(["company"]));
}

#[test]
fn relay_status_is_1_where_none_runs() {
    let ended = Home::new().run(&["relay", "status"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (1, "no relay runs here\n"), "{ended}");
    assert_eq!(Home::new().run(&["relay", "status", "--json"]).stdout, "{\"relay\":null}\n");
}

#[test]
fn a_token_for_a_relay_lets_no_machine_in() {
    let ended = Home::new().run(&["machine", "join", &token()]);
    assert_eq!(ended.code, 2, "{ended}");
    assert!(ended.stderr.contains("for a relay of") && ended.stderr.contains("without --relay"), "{ended}");
}

use malai_protocol::config::Config;
use malai_protocol::invite::Invite;
use malai_protocol::local::{Can, ClusterInit, ClusterInvite, MachineInit, Rescan};

use super::machine::machine_init;
use super::publish::rescan;
use super::show::{can, config_show};
use super::*;
use crate::store::clusters;
use crate::store::keys::ClusterKey;

const NOW: u64 = 1_700_000_000_000;

fn home() -> (tempfile::TempDir, Home) {
    let temp = tempfile::tempdir().expect("a directory");
    let home = Home::new(temp.path().join("home"));
    (temp, home)
}

fn init(cluster: &str) -> ClusterInit {
    ClusterInit { cluster: cluster.into(), name: Some("laptop".into()), private: false, username: None }
}

fn made(home: &Home, ask: &ClusterInit) -> Result<malai_protocol::local::ClusterMade, Failure> {
    cluster_init(&Changes::begin(home).expect("free"), ask, NOW)
}

#[test]
fn a_new_cluster_has_its_keys_its_config_and_a_signed_snapshot() {
    let (_temp, home) = home();
    let told = made(&home, &init("company")).expect("made");
    let cluster = clusters::load(&home, "company").expect("loads");
    assert_eq!((cluster.id, cluster.machine_key.id()), (told.cluster, told.machine_id));
    let snapshot = cluster.snapshot.expect("is signed");
    assert_eq!(std::fs::read_to_string(&told.config).expect("reads"), snapshot.text());
    let config = Config::check(snapshot.text()).expect("is in order");
    assert_eq!(config.machine("laptop").map(|m| m.id), Some(told.machine_id));
    assert_eq!(snapshot.header().generation, NOW);
    assert_eq!(told.join_addresses, Vec::<String>::new());
}

#[test]
fn the_first_machine_is_named_after_its_host_and_runs_as_it_was_told() {
    let (_temp, home) = home();
    let ask = ClusterInit { name: None, username: Some("root".into()), private: true, ..init("company") };
    let told = made(&home, &ask).expect("made");
    assert!(told.machine.parse::<malai_protocol::config::Name>().is_ok());
    let config = Config::check(config_show(&home, "company").expect("is there").signed.as_str()).expect("is in order");
    assert_eq!(config.machine(&told.machine).and_then(|m| m.username.as_deref()), Some("root"));
    assert_eq!(config.network.relays, Some(Vec::new()));
    assert_eq!(config.network.discovery, Some(vec!["mdns".to_owned()]));
}

#[test]
fn a_taken_or_impossible_name_makes_no_cluster() {
    let (_temp, home) = home();
    let first = made(&home, &init("company")).expect("made").cluster;
    assert_eq!(made(&home, &init("company")).expect_err("taken").kind, Kind::Conflict);
    assert_eq!(clusters::load(&home, "company").expect("loads").id, first);
    for (cluster, name, username) in
        [("../x", "laptop", None), ("b", "Laptop", None), ("b", "status", None), ("b", "a", Some("x y"))]
    {
        let ask = ClusterInit {
            cluster: cluster.into(),
            name: Some(name.into()),
            private: false,
            username: username.map(str::to_owned),
        };
        assert_eq!(made(&home, &ask).expect_err(cluster).kind, Kind::Usage);
    }
    assert_eq!(clusters::list(&home).expect("lists").len(), 1);
}

#[test]
fn an_invite_whose_token_nobody_would_read_is_refused() {
    let (_temp, home) = home();
    let told = made(&home, &init("company")).expect("made");
    let text = std::fs::read_to_string(&told.config).expect("reads");
    let ca = |length| format!("-----BEGIN CERTIFICATE-----{}-----END CERTIFICATE-----", "A".repeat(length));
    let changes = Changes::begin(&home).expect("free");
    for (length, token) in [(6 * 1024, Ok(())), (12 * 1024, Err(Kind::BadConfig))] {
        std::fs::write(&told.config, format!("{text}\n[network]\nca = \"{}\"\n", ca(length))).expect("written");
        let rescan = Rescan { cluster: None, check: false, yes: false, over: None };
        super::publish::rescan(&changes, &rescan, NOW + length as u64).expect("rescanned");
        let ask = ClusterInvite {
            cluster: "company".into(),
            name: None,
            uses: 1,
            expires_s: 60,
            groups: Vec::new(),
            username: None,
        };
        let invited = Manager::load(&changes, "company").expect("loads").invite(&ask, Vec::new(), NOW);
        assert_eq!(invited.map(|i| assert!(i.token.parse::<Invite>().is_ok())).map_err(|f| f.kind), token);
    }
}

#[test]
fn a_broken_cluster_does_not_stop_the_rescan_of_the_others() {
    let (_temp, home) = home();
    for alias in ["a", "b", "c"] {
        made(&home, &init(alias)).expect("made");
    }
    std::fs::write(home.cluster("a").config(), "[cluster").expect("written");
    std::fs::remove_file(home.cluster("b").machine_key()).expect("removed");
    let ask = Rescan { cluster: None, check: false, yes: false, over: None };
    let scanned = rescan(&Changes::begin(&home).expect("free"), &ask, NOW).expect("scans");
    let Response::Rescanned(scanned) = scanned.answer else { panic!("another answer") };
    let failed = |outcome: &RescanOutcome| match outcome {
        RescanOutcome::Failed(failure) => Some(failure.kind),
        _ => None,
    };
    let outcomes: Vec<(&str, Option<Kind>)> = scanned.iter().map(|s| (s.alias.as_str(), failed(&s.outcome))).collect();
    assert_eq!(outcomes, [("a", Some(Kind::BadConfig)), ("b", Some(Kind::BadConfig)), ("c", None)]);
}

#[test]
fn a_rescan_where_nothing_is_managed_says_where_to_go() {
    let (_temp, home) = home();
    let ask = |over| Rescan { cluster: None, check: false, yes: false, over };
    let changes = Changes::begin(&home).expect("free");
    assert_eq!(rescan(&changes, &ask(None), NOW).expect_err("nothing").kind, Kind::NotConfigured);
    assert_eq!(rescan(&changes, &ask(Some(7)), NOW).expect_err("of which?").kind, Kind::Usage);
}

#[test]
fn a_machine_made_without_an_invite_tells_the_same_key_and_lines_again() {
    let (_temp, home) = home();
    let cluster = ClusterKey::generate().expect("randomness").id();
    let ask = |cluster| MachineInit {
        cluster,
        alias: "company".into(),
        private: true,
        relays: Vec::new(),
        at: vec!["192.0.2.1:4002".into()],
    };
    let changes = Changes::begin(&home).expect("free");
    let told = machine_init(&changes, &ask(cluster)).expect("made");
    assert_eq!(told.toml, format!("[machine.{}]\nid52 = \"{}\"\n", told.name, told.machine_id));
    assert_eq!(machine_init(&changes, &ask(cluster)), Ok(told));
    let joining = clusters::load(&home, "company").expect("loads").joining.expect("is there");
    assert_eq!((joining.relays, joining.discovery), (Some(Vec::new()), Some(vec!["mdns".to_owned()])));
    let other = ClusterKey::generate().expect("randomness").id();
    assert_eq!(machine_init(&changes, &ask(other)).expect_err("taken").kind, Kind::Conflict);
    let wrong = MachineInit { at: vec!["example.com".into()], ..ask(cluster) };
    assert_eq!(machine_init(&changes, &wrong).expect_err("no address").kind, Kind::Usage);
}

#[test]
fn a_repeated_join_has_the_key_of_the_first_attempt_and_ends_with_the_snapshot() {
    let (_temp, home) = home();
    let key = ClusterKey::generate().expect("randomness");
    let invite = Invite {
        cluster: key.id(),
        name: "company".into(),
        secret: serde_bytes::ByteArray::new([7; 32]),
        expires_ms: 1,
        addresses: vec!["192.0.2.1:4002".into()],
        relays: None,
        discovery: None,
        ca: None,
        pinned: Vec::new(),
        ticket: None,
    };
    let changes = Changes::begin(&home).expect("free");
    let first = join_begin(&changes, &invite, None).expect("prepared").machine_key.id();
    let second = join_begin(&changes, &invite, None).expect("prepared");
    assert_eq!((second.alias.as_str(), second.machine_key.id()), ("company", first));
    let other = ClusterKey::generate().expect("randomness").sign(1, 1, String::new()).expect("signs");
    assert_eq!(join_finish(&changes, "company", &other).expect_err("another's").kind, Kind::Conflict);
    let snapshot = key.sign(1, 1, String::new()).expect("signs");
    join_finish(&changes, "company", &snapshot).expect("stored");
    assert_eq!(clusters::load(&home, "company").expect("loads").snapshot, Some(snapshot));
    assert_eq!(join_begin(&changes, &invite, None).expect_err("has joined").kind, Kind::Conflict);
}

#[test]
fn a_manager_leaves_only_by_force_and_a_machine_at_once() {
    let (_temp, home) = home();
    made(&home, &init("company")).expect("made");
    let changes = Changes::begin(&home).expect("free");
    let refused = machine_leave(&changes, "company", false).expect_err("is the manager");
    assert_eq!(refused.kind, Kind::Conflict);
    assert!(refused.hint.is_some_and(|hint| hint.contains("cluster.key") && hint.ends_with("--force")));
    machine_leave(&changes, "company", true).expect("left");
    assert_eq!(machine_leave(&changes, "company", true).expect_err("gone").kind, Kind::NotConfigured);
    assert_eq!(std::fs::read_dir(home.clusters()).expect("lists").count(), 0);
}

#[test]
fn can_explains_by_the_stored_config_and_asks_which_cluster_is_meant() {
    let (_temp, home) = home();
    made(&home, &init("company")).expect("made");
    let ask = |cluster: Option<&str>, machine: &str| Can {
        who: "laptop".into(),
        machine: machine.into(),
        cluster: cluster.map(str::to_owned),
        user: None,
        words: vec!["uptime".into()],
        literal: true,
    };
    assert!(!can(&home, &ask(None, "laptop")).expect("explains").steps.is_empty());
    assert_eq!(can(&home, &ask(None, "web01")).expect_err("no such").kind, Kind::UnknownTarget);
    assert_eq!(can(&home, &ask(Some("x"), "laptop")).expect_err("no such").kind, Kind::NotConfigured);
    made(&home, &init("other")).expect("made");
    let refused = can(&home, &ask(None, "laptop")).expect_err("which?");
    assert_eq!(refused.kind, Kind::AmbiguousTarget);
    assert_eq!(refused.hint.as_deref(), Some("say which: laptop.company, laptop.other"));
    can(&home, &ask(Some("other"), "laptop")).expect("explains");
}

#[test]
fn the_edited_text_is_shown_with_its_difference() {
    let (_temp, home) = home();
    made(&home, &init("company")).expect("made");
    assert_eq!(config_show(&home, "company").expect("shows").diff, "");
    let path = home.cluster("company").config();
    let text = std::fs::read_to_string(&path).expect("reads");
    std::fs::write(&path, format!("{text}# more\n")).expect("written");
    let shown = config_show(&home, "company").expect("shows");
    assert!(shown.diff.ends_with("\n+# more\n"), "{}", shown.diff);
    assert_eq!(shown.edited, Some(format!("{text}# more\n")));
}

use super::*;

/// A machine's key, another for each number.
pub(crate) fn machine_id(number: u8) -> MachineId {
    let key = ed25519_dalek::SigningKey::from_bytes(&[number; 32]).verifying_key();
    MachineId::from_bytes(key.to_bytes()).expect("a key")
}

fn cluster_id() -> String {
    machine_id(200).to_string()
}

/// A config in order, to which a test adds its own lines.
fn base() -> String {
    format!(
        "[cluster]\nname = \"company\"\nid52 = \"{}\"\nmanager = \"laptop\"\n\n\
         [machine.laptop]\nid52 = \"{}\"\n\n[machine.web01]\nid52 = \"{}\"\n",
        cluster_id(),
        machine_id(1),
        machine_id(2)
    )
}

fn with(lines: &str) -> String {
    base() + lines
}

/// The only problem of a text, as it is shown, and its hint.
fn only(text: &str) -> (String, String) {
    let problems = Config::check(text).expect_err("a problem");
    assert_eq!(problems.len(), 1, "{problems:?}");
    (problems[0].to_string(), problems[0].hint.clone().unwrap_or_default())
}

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

#[test]
fn every_key_of_a_full_config_is_read() {
    let text = with(
        r#"allow_from = ["admins", "*"]
allow_shell = ["admins"]
allow_sessions = ["laptop"]
allow_control = ["admins"]
username = "deploy"
users = ["postgres"]
addresses = ["192.0.2.7:4001", "[2001:db8::7]:4001"]
grace = "2h"
accept_env = ["DEPLOY_*"]
[machine.web01.command.restart-nginx]
command = ["systemctl", "restart", "nginx"]
allow_from = ["on-call"]
username = "root"
accept_env = ["DEPLOY_REF"]
[network]
relays = []
discovery = ["mdns", "https://dns.example.com/pkarr"]
directory = false
[defaults]
allow_from = ["admins"]
username = "nobody"
grace = "10m"
accept_env = []
[group.admins]
members = ["laptop", "on-call"]
[group.on-call]
members = []
"#,
    );
    let config = Config::check(&text).expect("in order");
    assert_eq!(Config::read(&text).as_ref(), Ok(&config));
    let machine = config.machine("web01").expect("web01");
    let allow = machine.allow_from.as_ref().expect("a list");
    assert!(!config.network.has_directory() && Network::default().has_directory());
    assert!(allow.everyone && allow.names.contains("admins"));
    assert_eq!(machine.users, ["postgres"]);
    assert_eq!(machine.addresses[1], "[2001:db8::7]:4001".parse().expect("an address"));
    assert_eq!(machine.grace, Some(Duration::from_secs(7200)));
    assert_eq!(machine.commands[&name("restart-nginx")].command, ["systemctl", "restart", "nginx"]);
    assert_eq!(machine.commands[&name("restart-nginx")].accept_env, Some(vec!["DEPLOY_REF".to_owned()]));
    assert_eq!(config.network.relays, Some(Vec::new()));
    assert_eq!(config.defaults.accept_env, Some(Vec::new()));
    assert_eq!(config.machine_by_id(&machine_id(2)).map(|(name, _)| name.as_str()), Some("web01"));
    assert_eq!(config.machine_by_id(&machine_id(3)), None);
}

#[test]
fn an_unknown_key_is_shown_with_its_place_and_the_nearest_known_one() {
    let (problem, hint) = only(&with("allow_form = [\"laptop\"]\n"));
    assert_eq!(problem, "line 11, column 1: unknown key `allow_form` in [machine.web01]");
    assert_eq!(hint, "did you mean `allow_from`?");
    let (problem, hint) = only(&with("[machines.db01]\n"));
    assert_eq!(problem, "line 11, column 2: unknown key `machines` at the top");
    assert_eq!(hint, "did you mean `machine`?");
}

#[test]
fn a_key_in_the_wrong_section_is_told_where_it_belongs() {
    let (_, hint) = only(&with("[defaults]\nallow_shell = [\"laptop\"]\n"));
    assert_eq!(hint, "`allow_shell` belongs under [machine.NAME]");
}

#[test]
fn a_comma_string_is_answered_with_the_array() {
    let (problem, hint) = only(&with("allow_from = \"laptop, web01\"\n"));
    assert_eq!(problem, "line 11, column 14: `allow_from` must be an array of strings, this is a string");
    assert_eq!(hint, "write allow_from = [\"laptop\", \"web01\"]");
    let (_, hint) = only(&with("allow_from = [\"laptop, web01\"]\n"));
    assert_eq!(hint, "write [\"laptop\", \"web01\"]");
}

#[test]
fn an_unknown_name_in_a_list_is_shown_with_its_position() {
    let (problem, hint) = only(&with("allow_from = [\"laptop\", \"web1\"]\n"));
    assert_eq!(
        problem,
        "line 11, column 25: `web1` in `allow_from` of [machine.web01] is neither a machine nor a group"
    );
    assert_eq!(hint, "did you mean `web01`?");
    let (problem, _) = only(&with("[group.a]\nmembers = [\"nobody-here\"]\n"));
    assert!(problem.contains("line 12, column 12: `nobody-here`"), "{problem}");
}

#[test]
fn every_kind_of_mistake_has_its_own_words_and_place() {
    let key = machine_id(9);
    let table = [
        ("[group.web01]\nmembers = []\n", "line 11, column 8: `web01` is a machine already"),
        ("[group.all]\nmembers = []\n", "line 11, column 8: `all` cannot be the name of a group"),
        ("[machine.status]\nid52 = \"KEY\"\n", "line 11, column 10: `status` cannot be the name of a machine"),
        ("[machine.db_1]\nid52 = \"KEY\"\n", "line 11, column 10: `db_1` is not a name"),
        (
            "[machine.\"d\u{430}b\"]\nid52 = \"KEY\"\n",
            "line 11, column 10: `dаb` is not a name: a name has only a-z, 0-9 and `-`: the character U+0430",
        ),
        ("[machine.db]\n", "line 11, column 10: [machine.db] has no `id52`"),
        ("[machine.db]\nid52 = \"abc\"\n", "line 12, column 8: `id52` of [machine.db]: an id52 has 52 characters"),
        ("[machine.web01]\n", "line 11, column 10: `web01` appears twice"),
        ("id52 = \"KEY\"\n", "line 11, column 1: `id52` appears twice"),
        ("[[machine.db]]\nid52 = \"KEY\"\n", "line 11, column 11: [machine.db] must be a table, this is an array"),
        ("users = [\"-x\"]\n", "line 11, column 10: `-x` in `users` must be the name of a user"),
        ("username = 0\n", "line 11, column 12: `username` must be a string in quotes, this is an integer"),
        ("addresses = [\"web01:22\"]\n", "line 11, column 14: `web01:22` in `addresses` must be IP:PORT"),
        ("grace = \"soon\"\n", "line 11, column 9: `grace` must be a whole number and s, m, h or d"),
        (
            "accept_env = [\"LD_PRELOAD\"]\n",
            "line 11, column 15: `LD_PRELOAD` in `accept_env` names variables that no machine accepts: the dynamic",
        ),
        ("accept_env = [\"*\"]\n", "line 11, column 15: `*` in `accept_env` must name variables"),
        ("[machine.web01.command.x]\n", "line 11, column 24: [machine.web01.command.x] has no `command`"),
        ("[machine.web01.command.x]\ncommand = []\n", "line 12, column 1: `command` must name a program"),
        (
            "[machine.web01.command.x]\ncommand = [\"a\", \"\\u0000\"]\n",
            "line 12, column 1: a word of a command cannot",
        ),
        ("[network]\nrelays = [\"relay\"]\n", "line 12, column 11: `relay` in `relays` must be a URL"),
        ("[network]\ndiscovery = [\"lan\"]\n", "line 12, column 14: `lan` in `discovery` must be"),
        ("[network]\nca = \"x\"\n", "line 12, column 6: `ca` must be one or more certificates"),
        ("[group.a]\nmembers = [\"*\"]\n", "line 12, column 12: `*` cannot be a member of a group"),
        ("[group.a]\n", "line 11, column 8: [group.a] has no `members`"),
        ("x = \n", "line 11, column 5: not TOML"),
    ];
    for (lines, wanted) in table {
        let lines = lines.replace("KEY", &key.to_string());
        let (problem, _) = only(&with(&lines));
        assert!(problem.starts_with(wanted), "{lines}\nwanted: {wanted}\ngot:    {problem}");
    }
}

#[test]
fn a_key_that_two_machines_have_is_refused_at_the_second() {
    let text = with(&format!("[machine.db]\nid52 = \"{}\"\n", machine_id(1)));
    let (problem, _) = only(&text);
    assert_eq!(problem, "line 12, column 8: [machine.db] has the id52 of [machine.laptop]");
    assert!(Config::read(&text).is_err(), "a member must not guess which it is either");
    let (problem, _) = only(&with(&format!("[machine.db]\nid52 = \"{}\"\n", cluster_id())));
    assert!(problem.contains("has the cluster's id52"), "{problem}");
}

#[test]
fn the_manager_has_to_be_a_machine() {
    let (problem, _) = only(&base().replace("\"laptop\"", "\"desktop\""));
    assert_eq!(problem, "line 4, column 11: `manager` names `desktop`, and there is no [machine.desktop]");
    let (problem, hint) = only("");
    assert_eq!(
        (problem.as_str(), hint.as_str()),
        ("line 1, column 1: there is no [cluster]", "`malai cluster init` writes it")
    );
}

#[test]
fn groups_that_contain_themselves_are_refused_and_nesting_is_not() {
    let (problem, _) =
        only(&with("[group.a]\nmembers = [\"b\"]\n[group.b]\nmembers = [\"c\"]\n[group.c]\nmembers = [\"b\"]\n"));
    assert_eq!(problem, "line 14, column 1: [group.b] contains itself: b → c → b");
    let (problem, _) = only(&with("[group.a]\nmembers = [\"a\"]\n"));
    assert_eq!(problem, "line 12, column 1: [group.a] contains itself: a → a");
    let diamond = "[group.a]\nmembers = [\"b\", \"c\"]\n[group.b]\nmembers = [\"d\"]\n[group.c]\nmembers = [\"d\"]\n[group.d]\nmembers = []\n";
    assert!(Config::check(&with(diamond)).is_ok());
}

#[test]
fn several_problems_come_at_once_in_the_order_of_the_text_and_no_more_than_the_cap() {
    let problems = Config::check(&with("zeta = 1\nalpha = 2\n[network]\nrelay = []\n")).expect_err("three");
    assert_eq!(problems.iter().map(|p| p.line).collect::<Vec<_>>(), [11, 12, 14]);
    let many: String = (0..1000).map(|i| format!("key{i} = 1\n")).collect();
    assert_eq!(Config::check(&with(&many)).expect_err("many").len(), MAX_PROBLEMS);
}

#[test]
fn patterns_that_reach_more_than_their_author_has_in_mind_are_warned_of_where_they_stand() {
    let text = with(
        "accept_env = [\"DEPLOY_*\", \"GIT_*\", \"CI_JOB_ID\"]\n\
         [machine.web01.command.pull]\ncommand = [\"git\", \"pull\"]\naccept_env = [\"G*\"]\n\
         [defaults]\naccept_env = [\"A_*\"]\n",
    );
    let (config, warnings) = Config::review(&text).expect("in order");
    assert_eq!(Config::check(&text), Ok(config));
    let told: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 3, "{told:?}");
    let wanted = "line 11, column 27: `GIT_*` in `accept_env` of [machine.web01] matches `GIT_SSH_COMMAND` and ";
    assert!(told[0].starts_with(wanted) && told[0].ends_with(" others, which are always refused"), "{}", told[0]);
    let wanted = "line 14, column 15: `G*` in `accept_env` of [machine.web01.command.pull] matches `";
    assert!(told[1].starts_with(wanted), "{}", told[1]);
    let wanted = "line 16, column 15: `A_*` in `accept_env` of [defaults] accepts every variable that begins with `A_`";
    assert_eq!(told[2], wanted);
    assert!(warnings.iter().all(|warning| warning.hint.as_deref() == Some("name the variables that you need")));
    assert_eq!(Config::review(&with("accept_env = [\"DEPLOY_*\"]\n")).map(|(_, warnings)| warnings), Ok(Vec::new()));
}

#[test]
fn the_warnings_of_a_text_are_bounded() {
    let list = vec!["\"G*\""; 1000].join(", ");
    let (_, warnings) = Config::review(&with(&format!("accept_env = [{list}]\n"))).expect("in order");
    assert_eq!(warnings.len(), MAX_PROBLEMS);
}

#[test]
fn a_member_goes_on_with_a_list_of_an_older_manager_that_names_what_is_refused_now() {
    let text = with("accept_env = [\"EDITOR\", \"LD_*\"]\n");
    assert!(Config::check(&text).is_err());
    let config = Config::read(&text).expect("in order");
    assert_eq!(config.blocked(&name("web01")), None);
}

#[test]
fn a_member_reads_unknown_keys_and_refuses_only_where_they_touch_it() {
    let table = [
        ("only_at = \"9-17\"\n", Some("machine.web01.only_at"), None),
        ("allow_from = { any = true }\n", Some("machine.web01.allow_from"), None),
        ("allow_from = [\"tag:ops\"]\n", Some("machine.web01.allow_from"), None),
        (
            "[machine.web01.command.x]\ncommand = [\"a\"]\napproval = 2\n",
            Some("machine.web01.command.x.approval"),
            None,
        ),
        ("[machine.web01.command.X]\ncommand = [\"a\"]\n", Some("machine.web01.command.X"), None),
        ("[machine.laptop.command.x]\ncommand = []\n", None, Some("machine.laptop.command.x.command")),
        ("[defaults]\nmfa = true\n", Some("defaults.mfa"), Some("defaults.mfa")),
        ("[group.a]\nmembers = []\nuntil = 1\n", Some("group.a.until"), Some("group.a.until")),
        ("[group.a]\n", Some("group.a.members"), Some("group.a.members")),
        ("[notify]\nurl = \"x\"\n", None, None),
        ("[network]\nquic = 2\n", None, None),
        ("[machine.db]\nid52 = \"from-the-future\"\n", None, None),
    ];
    for (lines, web01, laptop) in table {
        let text = with(lines);
        assert!(Config::check(&text).is_err(), "{lines}");
        let config = Config::read(&text).unwrap_or_else(|problems| panic!("{lines}: {problems:?}"));
        for (machine, wanted) in [("web01", web01), ("laptop", laptop)] {
            let blocked = config.blocked(&name(machine));
            let wanted = wanted.map(|key| {
                format!("the config has `{key}`, which this version of malai does not understand and so cannot obey")
            });
            assert_eq!(blocked, wanted, "{machine}: {lines}");
        }
    }
}

#[test]
fn a_member_leaves_out_an_unknown_right_at_every_level_and_of_every_type_and_the_manager_refuses_it() {
    let command = "[machine.web01.command.x]\ncommand = [\"a\"]\n";
    let others = "[machine.laptop.command.x]\ncommand = [\"a\"]\n";
    let levels = [
        ("", Some("machine.web01"), None),
        (command, Some("machine.web01.command.x"), None),
        (others, None, Some("machine.laptop.command.x")),
        ("[defaults]\n", Some("defaults"), Some("defaults")),
        ("[group.a]\nmembers = []\n", Some("group.a"), Some("group.a")),
    ];
    let values = ["[\"laptop\"]", "\"*\"", "true", "1", "1.5", "2026-01-01", "{ who = [\"*\"] }", "[[1], [2]]", "[]"];
    for (lines, web01, laptop) in levels {
        for value in values {
            let text = with(&format!("{lines}allow_tunnel = {value}\n"));
            let problems = Config::check(&text).expect_err("the manager does not know it either");
            assert!(problems[0].message.starts_with("unknown key `allow_tunnel` in ["), "{text}: {problems:?}");
            let config = Config::read(&text).unwrap_or_else(|problems| panic!("{text}: {problems:?}"));
            let without = Config::read(&with(lines)).expect("in order");
            assert_eq!(
                Config { ignored: BTreeMap::new(), ..config.clone() },
                without,
                "it changes something else: {text}"
            );
            for (machine, wanted) in [("web01", web01), ("laptop", laptop)] {
                assert_eq!(config.blocked(&name(machine)), None, "{machine}: {text}");
                let told = config.ungranted(&name(machine));
                let wanted = wanted.map(|place| format!("the config has `{place}.allow_tunnel`, which"));
                assert_eq!(told.is_some(), wanted.is_some(), "{machine}: {text}: {told:?}");
                assert!(told.unwrap_or_default().starts_with(&wanted.unwrap_or_default()), "{machine}: {text}");
            }
        }
    }
}

#[test]
fn an_unknown_right_hides_no_unknown_restriction_and_no_value_that_is_not_understood() {
    let table = [
        ("allow_tunnel = []\nmfa = true\n", "machine.web01.mfa"),
        ("mfa = true\nallow_tunnel = []\n", "machine.web01.mfa"),
        ("[defaults]\nallow_tunnel = []\nmfa = true\n", "defaults.mfa"),
        ("[group.a]\nmembers = []\nallow_tunnel = []\nuntil = 1\n", "group.a.until"),
        // What is a right that this version knows has to be understood: it may grant less than an earlier one.
        ("allow_tunnel = []\nallow_shell = true\n", "machine.web01.allow_shell"),
        ("allow_from = [\"tag:ops\"]\n", "machine.web01.allow_from"),
        // It only looks like one.
        ("Allow_tunnel = []\n", "machine.web01.Allow_tunnel"),
        ("allow = []\n", "machine.web01.allow"),
        ("allow-tunnel = []\n", "machine.web01.allow-tunnel"),
        ("disallow_tunnel = []\n", "machine.web01.disallow_tunnel"),
    ];
    for (lines, key) in table {
        let config = Config::read(&with(lines)).unwrap_or_else(|problems| panic!("{lines}: {problems:?}"));
        let blocked = config.blocked(&name("web01")).unwrap_or_else(|| panic!("not blocked: {lines}"));
        assert!(blocked.contains(&format!("`{key}`")), "{lines}: {blocked}");
    }
}

#[test]
fn rights_in_hostile_names_are_shown_harmlessly_and_a_known_right_in_the_wrong_place_grants_nothing() {
    let text = with("\"allow_\\u001b[2J\\n\" = 1\n");
    let config = Config::read(&text).expect("in order");
    let told = config.ungranted(&name("web01")).expect("left out");
    assert!(!told.chars().any(char::is_control), "{told:?}");
    let config = Config::read(&with("[defaults]\nallow_shell = [\"*\"]\n")).expect("in order");
    assert_eq!(config.blocked(&name("web01")), None);
    assert!(config.ungranted(&name("web01")).is_some_and(|told| told.contains("`defaults.allow_shell`")));
    assert_eq!(config.machine("web01").and_then(|machine| machine.allow_shell.clone()), None);
    assert_eq!(Config::read(&base()).expect("in order").ungranted(&name("web01")), None);
}

#[test]
fn a_member_uses_what_it_understands_of_a_network_and_never_a_public_service_in_place_of_the_rest() {
    let none = || Some(Vec::new());
    let list = |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
    let own = "https://relay.example.com";
    let table = [
        ("quic = 2\n".to_owned(), "quic", None, None),
        (format!("relays = [\"moq://x\", \"{own}\"]\n"), "relays", list(&[own]), None),
        ("relays = [\"moq://x\"]\n".to_owned(), "relays", none(), None),
        ("relays = [{ url = \"x\" }]\n".to_owned(), "relays.url", none(), None),
        (format!("relays = [{{ url = \"{own}\", spki = \"x\" }}]\n"), "relays.spki", none(), None),
        (format!("relays = [{{ url = \"{own}\", sha256 = 1 }}]\n"), "relays.sha256", none(), None),
        (format!("relays = [{{ url = \"{own}\", id52 = \"x\" }}]\n"), "relays.id52", none(), None),
        ("relays = \"best\"\n".to_owned(), "relays", none(), None),
        ("discovery = [\"dht\", \"mdns\"]\n".to_owned(), "discovery", None, list(&["mdns"])),
        ("discovery = { dht = true }\n".to_owned(), "discovery", None, none()),
        ("directory = \"some\"\n".to_owned(), "directory", None, None),
        (
            format!("relays = [\"{own}\"]\ndiscovery = [\"mdns\", \"{own}\"]\nca = [\"x\"]\n"),
            "ca",
            none(),
            list(&["mdns"]),
        ),
    ];
    for (lines, key, relays, discovery) in table {
        let text = with(&format!("[network]\n{lines}"));
        assert!(Config::check(&text).is_err(), "{lines}");
        let config = Config::read(&text).unwrap_or_else(|problems| panic!("{lines}: {problems:?}"));
        let urls = config.network.relays.as_ref().map(|all| all.iter().map(|relay| relay.url.clone()).collect());
        assert_eq!((&urls, &config.network.discovery), (&relays, &discovery), "{lines}");
        assert_eq!(config.network.has_directory(), key != "directory", "{lines}");
        assert!(config.unheeded().is_some_and(|text| text.contains(&format!("`network.{key}`"))), "{lines}");
        assert_eq!(config.blocked(&name("web01")), None, "{lines}");
    }
}

#[test]
fn relays_are_urls_or_tables_with_a_pin() {
    let pin = "AB".repeat(32);
    let lines = format!(
        "[network]\nrelays = [\"https://a.example.com\", {{ url = \"https://192.0.2.5:7443\", sha256 = \"{pin}\", \
         id52 = \"{}\" }}, {{ url = \"https://192.0.2.5:7444\", sha256 = \"{}\" }}]\n",
        machine_id(7),
        "cd".repeat(32)
    );
    let config = Config::check(&with(&lines)).expect("in order");
    let wanted = [
        Relay::at("https://a.example.com"),
        Relay { url: "https://192.0.2.5:7443".into(), sha256: Some([0xab; 32]), id: Some(machine_id(7)) },
        Relay { url: "https://192.0.2.5:7444".into(), sha256: Some([0xcd; 32]), id: None },
    ];
    assert_eq!(config.network.relays.as_deref(), Some(&wanted[..]));
    assert_eq!(Config::read(&with(&lines)).as_ref(), Ok(&config));
    let (plain, pinned) = Relay::split(config.network.relays.as_deref());
    assert_eq!((plain.as_deref(), pinned.len()), (Some(&["https://a.example.com".to_owned()][..]), 2));
    assert_eq!(Relay::unite(plain.as_deref(), &pinned), config.network.relays);
}

#[test]
fn every_mistake_in_a_relay_has_its_own_words_and_place() {
    let pin = "ab".repeat(32);
    let table = [
        ("1", "line 12, column 11: `relays` must have URLs or tables only", "write a URL in quotes"),
        ("{ }", "line 12, column 11: a relay in `relays` has no `url`", "write it as {"),
        ("{ url = \"h\" }", "line 12, column 19: `h` in `url` must be a URL such as", ""),
        (
            "{ url = \"https://h\", sha265 = \"PIN\" }",
            "line 12, column 32: unknown key `sha265` in [network.relays]",
            "did you mean `sha256`?",
        ),
        (
            "{ url = \"https://h\", sha256 = \"abcd\" }",
            "line 12, column 41: `sha256` must be 64 hexadecimal digits without colons",
            "`malai relay status`",
        ),
        ("{ url = \"https://h\", sha256 = \"PINPIN\" }", "line 12, column 41: `sha256` must be 64", ""),
        ("{ url = \"https://h\", sha256 = 1 }", "line 12, column 41: `sha256` must be a string", ""),
        ("{ url = \"https://h\", id52 = \"x\" }", "line 12, column 39: `id52` of a relay: an id52 has 52", ""),
        ("{ url = \"http://h\", sha256 = \"PIN\" }", "line 12, column 13: `http://h` has a `sha256`", "write https://"),
        (
            "\"https://h\", { url = \"https://H:443/\", sha256 = \"PIN\" }",
            "line 12, column 24: the relay `https://H:443/` appears twice",
            "",
        ),
        (
            "\"https://h\", { url = \"https://h:444\", sha256 = \"PIN\" }",
            "line 12, column 11: `https://h` needs a `sha256`, as another relay on its host has one",
            "a pin is valid for the whole host",
        ),
    ];
    for (items, wanted, hint) in table {
        let (problem, told) = only(&with(&format!("[network]\nrelays = [{}]\n", items.replace("PIN", &pin))));
        assert!(problem.starts_with(wanted), "{items}\nwanted: {wanted}\ngot:    {problem}");
        assert!(told.starts_with(hint), "{items}: {told}");
    }
    let many: Vec<String> = (0..=MAX_RELAYS).map(|i| format!("\"https://r{i}\"")).collect();
    let (problem, _) = only(&with(&format!("[network]\nrelays = [{}]\n", many.join(", "))));
    assert!(problem.ends_with("`relays` has more than 16 relays"), "{problem}");
}

#[test]
fn a_member_that_understands_nothing_of_a_network_asks_no_public_service() {
    for network in ["network = 1\n", "network = []\n"] {
        let text = network.to_owned() + &base();
        assert!(Config::check(&text).is_err());
        let config = Config::read(&text).expect("read");
        assert_eq!(config.network, Network::nothing(), "{network}");
        assert!(config.unheeded().is_some_and(|text| text.contains("`network`")), "{:?}", config.unheeded());
    }
    assert_eq!(Config::read(&base()).expect("read").unheeded(), None);
}

#[test]
fn a_member_accepts_a_name_that_a_later_or_earlier_version_reserves() {
    let text = with(&format!("[machine.status]\nid52 = \"{}\"\n", machine_id(5)));
    assert!(Config::check(&text).is_err());
    assert_eq!(Config::read(&text).expect("read").blocked(&name("web01")), None);
}

#[test]
fn members_of_nested_groups_are_in_the_list_by_the_shortest_way() {
    let lines = "[group.a]\nmembers = [\"b\"]\n[group.b]\nmembers = [\"c\"]\n[group.c]\nmembers = [\"web01\"]\n";
    let config = Config::check(&with(lines)).expect("in order");
    let list = |names: &[&str]| Allow { everyone: false, names: names.iter().map(|n| name(n)).collect() };
    let via = |names: &[&str]| config.via(&list(names), &name("web01"));
    assert_eq!(via(&["a"]), Some(Via::Groups(vec![name("a"), name("b"), name("c")])));
    assert_eq!(via(&["a", "c"]), Some(Via::Groups(vec![name("c")])));
    assert_eq!(via(&["a", "web01"]), Some(Via::Itself));
    assert_eq!(via(&[]), None);
    assert_eq!(config.via(&list(&["a"]), &name("laptop")), None);
    let everyone = Allow { everyone: true, ..Allow::default() };
    assert_eq!(config.via(&everyone, &name("laptop")), Some(Via::Everyone));
}

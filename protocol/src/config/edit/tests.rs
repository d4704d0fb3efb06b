use super::*;
use crate::config::tests::machine_id;

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn new(text: &str, number: u8, groups: &[&str], username: Option<&str>) -> NewMachine {
    NewMachine {
        name: name(text),
        id: machine_id(number),
        groups: groups.iter().map(|g| name(g)).collect(),
        username: username.map(str::to_owned),
    }
}

fn template_of(private: bool, username: Option<&str>) -> String {
    let template = Template {
        cluster: name("company"),
        id: ClusterId::from_bytes(*machine_id(200).as_bytes()).expect("a key"),
        machine: name("laptop"),
        machine_id: machine_id(1),
        private,
        username: username.map(str::to_owned),
    };
    super::template(&template).expect("in order")
}

/// The lines that one text has and the other has not.
fn added(before: &str, after: &str) -> String {
    let had: Vec<&str> = before.lines().collect();
    after.lines().filter(|line| !had.contains(line)).map(|line| format!("{line}\n")).collect()
}

#[test]
fn a_new_clusters_config_lets_its_machine_call_and_opens_no_shell() {
    let config = Config::check(&template_of(false, None)).expect("in order");
    assert_eq!(config.network, crate::config::Network::default());
    assert!(config.defaults.allow_from.as_ref().is_some_and(|list| config.via(list, &name("laptop")).is_some()));
    assert_eq!(config.machine("laptop").and_then(|m| m.allow_shell.clone()), None);
}

#[test]
fn a_private_clusters_config_names_no_relay_and_only_the_local_network() {
    let config = Config::check(&template_of(true, None)).expect("in order");
    assert_eq!(config.network.relays, Some(Vec::new()));
    assert_eq!(config.network.discovery, Some(vec!["mdns".to_owned()]));
}

#[test]
fn a_username_of_root_says_what_it_means() {
    assert!(template_of(false, Some("root")).contains("username = \"root\"  # a caller that may run commands here"));
    assert!(template_of(false, Some("deploy")).contains("username = \"deploy\"\n"));
    let text = add_machine(&template_of(false, None), &new("web01", 2, &[], Some("root"))).expect("added");
    assert!(text.contains("username = \"root\"  # a caller that may run commands here"), "{text}");
}

#[test]
fn enrolling_adds_the_key_the_groups_and_the_user_and_nothing_else() {
    let before = template_of(false, None);
    let after = add_machine(&before, &new("web01", 2, &["admins"], Some("deploy"))).expect("added");
    let wanted = format!(
        "[machine.web01]\nid52 = \"{}\"\nusername = \"deploy\"\nmembers = [\"laptop\", \"web01\"]\n",
        machine_id(2)
    );
    assert_eq!(added(&before, &after), wanted);
    assert_eq!(added(&after, &before), "members = [\"laptop\"]\n");
    assert!(after.contains("\n\n[machine.web01]") && after.contains("\n\n[group.admins]"), "{after}");
}

#[test]
fn removing_an_enrolled_machine_gives_the_text_back() {
    for groups in [&["admins"][..], &[]] {
        let before = template_of(true, Some("root"));
        let after = add_machine(&before, &new("web01", 2, groups, None)).expect("added");
        assert_eq!(remove_machine(&after, &name("web01")).as_ref(), Ok(&before));
    }
}

#[test]
fn comments_order_and_form_stay() {
    let before = format!(
        "# top\n[cluster] # c\nname=\"company\"\nid52='{}'\nmanager = \"laptop\"\n\n# -- people --\n[group.admins]\nmembers = [\n  \"laptop\", # mine\n  # more\n]\n\n\
         # -- machines --\n\n# the old one\n[machine.old]\nid52 = \"{}\"\n\n# mine\n[machine.laptop]   # x\nid52 = \"{}\"\nallow_from = [\"old\", \"admins\"]\n# end\n",
        machine_id(200),
        machine_id(3),
        machine_id(1)
    );
    let after = add_machine(&before, &new("web01", 2, &["admins"], None)).expect("added");
    assert!(
        after.contains("  \"laptop\",") && after.contains("# mine\n") && after.contains("\n  \"web01\""),
        "{after}"
    );
    for line in before.lines() {
        assert!(after.contains(line.trim_end_matches("# mine").trim_end()), "lost: {line}\n{after}");
    }
    let after = remove_machine(&before, &name("old")).expect("removed");
    assert!(after.contains("# -- machines --\n\n# mine\n[machine.laptop]   # x\n"), "{after}");
    assert!(after.contains("allow_from = [\"admins\"]\n# end\n"), "{after}");
    assert!(!after.contains("old"), "{after}");
}

#[test]
fn machines_in_any_form_of_toml_are_edited_or_refused_but_never_mangled() {
    let head = format!("[cluster]\nname = \"c\"\nid52 = \"{}\"\nmanager = \"a\"\n", machine_id(200));
    let (a, b) = (machine_id(1), machine_id(3));
    let forms = [
        format!(
            "machine = {{ a = {{ id52 = \"{a}\" }}, b = {{ id52 = \"{b}\" }} }}\ngroup = {{ g = {{ members = [\"b\"] }} }}\n{head}"
        ),
        format!("machine.a.id52 = \"{a}\"\nmachine.b.id52 = \"{b}\"\ngroup.g.members = [\"b\"]\n{head}"),
        format!("{head}[machine]\na = {{ id52 = \"{a}\" }}\nb.id52 = \"{b}\"\n[group]\ng.members = [\"b\",]\n"),
        format!("{head}[group.g]\nmembers = [ \"b\" ]\n[machine.b]\nid52 = \"{b}\"\n[machine.a]\nid52 = \"{a}\"\n"),
    ];
    for text in forms {
        Config::check(&text).expect("in order");
        // What comes back was compared with what it should mean.
        let more = add_machine(&text, &new("n", 7, &["g"], Some("root"))).unwrap_or_else(|e| panic!("{e}\n{text}"));
        remove_machine(&more, &name("n")).unwrap_or_else(|e| panic!("{e}\n{more}"));
        remove_machine(&text, &name("b")).unwrap_or_else(|e| panic!("{e}\n{text}"));
    }
}

#[test]
fn a_removed_machine_is_in_no_list_any_more() {
    let lists = "allow_from = [\"web01\", \"laptop\"]\nallow_shell = [\"web01\"]\nallow_sessions = [\"laptop\", \"web01\"]\n\
                 allow_control = [\"web01\"]\n\
                 [machine.laptop.command.x]\ncommand = [\"web01\"]\nallow_from = [\"web01\"]\n";
    let text = template_of(false, None).replace("\n[group", &format!("{lists}\n[group"));
    // The lists name it before it is there, so both come at once.
    let text = text + &format!("\n[machine.web01]\nid52 = \"{}\"\n", machine_id(2));
    let after = remove_machine(&text, &name("web01")).expect("removed");
    assert_eq!(after.matches("web01").count(), 1, "only the named command's own word is left:\n{after}");
    assert!(after.contains("allow_from = [\"laptop\"]") && after.contains("allow_shell = []"), "{after}");
}

#[test]
fn what_cannot_be_enrolled_or_removed_is_refused_by_its_kind() {
    let text = template_of(false, None);
    let table = [
        (new("laptop", 2, &[], None), Kind::Conflict, "there is a machine `laptop` already"),
        (new("admins", 2, &[], None), Kind::Conflict, "there is a group `admins` already"),
        (new("web01", 1, &[], None), Kind::Conflict, "this key is in the config already, as `laptop`"),
        (
            new("status", 2, &[], None),
            Kind::Usage,
            "`status` cannot be the name of a machine: it is a command of malai",
        ),
        (new("web01", 2, &["ops"], None), Kind::Usage, "there is no group `ops`"),
        (new("web01", 2, &[], Some("a\"b")), Kind::Usage, "`a\\\"b` is not the name of a user"),
    ];
    for (machine, kind, message) in table {
        let failure = add_machine(&text, &machine).expect_err(message);
        assert_eq!((failure.kind, failure.message.as_str()), (kind, message));
        assert!(failure.hint.is_some());
    }
    assert_eq!(remove_machine(&text, &name("laptop")).expect_err("manager").kind, Kind::Conflict);
    assert_eq!(remove_machine(&text, &name("web01")).expect_err("unknown").kind, Kind::UnknownTarget);
    let broken = add_machine("[cluster", &new("web01", 2, &[], None)).expect_err("broken");
    assert_eq!(broken.kind, Kind::BadConfig);
    assert!(broken.message.starts_with("cluster.toml: line 1, column "), "{broken}");
}

#[test]
fn machines_enrolled_since_the_base_of_an_edit_are_told_from_those_taken_out() {
    let text = template_of(false, None);
    let base = add_machine(&text, &new("old", 3, &[], None)).expect("added");
    let signed = add_machine(&base, &new("late", 4, &[], None)).expect("added");
    let [edited, base, signed] = [&text, &base, &signed].map(|text| Config::check(text).expect("in order"));
    assert_eq!(enrolled_since(Some(&base), &edited, &signed), [name("late")]);
    assert_eq!(enrolled_since(None, &edited, &signed), [name("late"), name("old")]);
    assert_eq!(enrolled_since(Some(&base), &signed, &signed), []);
}

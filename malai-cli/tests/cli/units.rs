//! The units for systemd, as far as they can be read without it.

use std::collections::HashMap;

use crate::harness::Home;

/// The entries of a unit, by section and name. A name that stands twice has both values.
fn read(name: &str) -> HashMap<String, Vec<String>> {
    let path = format!("{}/../docs/{name}", env!("CARGO_MANIFEST_DIR"));
    let mut entries: HashMap<String, Vec<String>> = HashMap::new();
    let mut section = String::new();
    for line in std::fs::read_to_string(path).expect("reads").lines() {
        match line {
            line if line.is_empty() || line.starts_with('#') => {}
            line if line.starts_with('[') => section = line.trim_matches(['[', ']']).to_owned(),
            line => {
                let (name, value) = line.split_once('=').expect("a name and a value");
                entries.entry(format!("{section}.{name}")).or_default().push(value.to_owned());
            }
        }
    }
    entries
}

#[track_caller]
fn one<'a>(unit: &'a HashMap<String, Vec<String>>, name: &str) -> &'a str {
    let values = unit.get(name).map(Vec::as_slice).unwrap_or_default();
    assert_eq!(values.len(), 1, "{name}: {values:?}");
    &values[0]
}

#[test]
fn the_units_restart_always_and_what_they_start_is_a_command() {
    let home = Home::new();
    for name in ["malai.service", "malai-relay.service"] {
        let unit = read(name);
        for (entry, value) in
            [("Unit.StartLimitIntervalSec", "0"), ("Service.Restart", "always"), ("Service.Type", "notify")]
        {
            assert_eq!(one(&unit, entry), value, "{name}: {entry}");
        }
        let directory = one(&unit, "Service.StateDirectory");
        assert_eq!(one(&unit, "Service.Environment"), format!("MALAI_HOME=/var/lib/{directory}"), "{name}");
        assert_eq!(one(&unit, "Service.StateDirectoryMode"), "0700", "{name}");
        let words: Vec<&str> = one(&unit, "Service.ExecStart").split(' ').chain(["--help"]).collect();
        assert_eq!(words[0], "/usr/local/bin/malai", "{name}");
        let help = home.run(&words[1..]);
        assert_eq!(help.code, 0, "{name}: {help}");
    }
}

#[test]
fn commands_of_the_daemons_unit_get_a_bounded_part_of_the_tasks_of_the_machine() {
    assert_eq!(one(&read("malai.service"), "Service.TasksMax"), "33%");
}

#[test]
fn the_relays_unit_runs_it_as_a_user_of_its_own_with_no_more_than_a_low_port() {
    let unit = read("malai-relay.service");
    assert_eq!(one(&unit, "Service.DynamicUser"), "yes");
    assert_eq!(one(&unit, "Service.User"), "malai-relay");
    for entry in ["Service.AmbientCapabilities", "Service.CapabilityBoundingSet"] {
        assert_eq!(one(&unit, entry), "CAP_NET_BIND_SERVICE");
    }
}

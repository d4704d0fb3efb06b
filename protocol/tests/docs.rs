//! The examples of docs/config.md are in order, and its tables have every key; docs/environment.md has every variable.

use malai_protocol::config::{Config, Family, REFUSED_VARIABLES, Refused};

const DOC: &str = include_str!("../../docs/config.md");

/// The fenced TOML blocks.
fn examples() -> Vec<&'static str> {
    DOC.split("```toml\n").skip(1).map(|rest| rest.split("```").next().expect("an end")).collect()
}

/// The keys in the first column of the tables below a heading.
fn keys(heading: &str) -> Vec<&'static str> {
    let (_, below) = DOC.split_once(&format!("\n## `{heading}`\n")).expect(heading);
    // What follows below a heading of its own is about values.
    let section = below.split("\n## ").next().and_then(|section| section.split("\n### ").next()).expect("a section");
    section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect()
}

#[test]
fn every_example_of_the_documentation_passes_the_check() {
    let examples = examples();
    assert_eq!(examples.len(), 3);
    let config = Config::check(examples[0]).unwrap_or_else(|problems| panic!("{problems:?}"));
    assert!(config.machine("web01").is_some_and(|machine| machine.commands.contains_key("restart-nginx")));
    // The others are parts: they take the place of the same section in the first.
    let (before, network) = examples[0].split_once("[network]").expect("a network");
    let (_, after) = network.split_once("[defaults]").expect("defaults");
    let with = |part: &str| Config::check(&format!("{before}{part}[defaults]{after}")).expect("in order");
    assert_eq!(with(examples[1]).network.relays, Some(Vec::new()));
    let relays = with(examples[2]).network.relays.unwrap_or_default();
    assert_eq!(relays.iter().map(|relay| relay.sha256.is_some()).collect::<Vec<_>>(), [false, true]);
}

#[test]
fn the_documentation_has_the_keys_that_are_known_and_no_others() {
    for heading in [
        "[cluster]",
        "[network]",
        "[[network.relays]]",
        "[defaults]",
        "[machine.NAME]",
        "[machine.NAME.command.NAME]",
        "[group.NAME]",
    ] {
        let section = heading.replace("machine.NAME", "machine.m").replace(".NAME", ".n");
        // An unknown key's hint, far from any known one, lists all that are.
        let problems = Config::check(&format!("{section}\nxxxxxxxxxxxxxxxx = 1\n")).expect_err("unknown");
        let hint = problems.iter().find(|p| p.message.contains("xxxx")).and_then(|p| p.hint.clone()).expect("a hint");
        let known = hint.strip_prefix("known here: ").expect("the keys");
        let mut documented = keys(heading);
        if heading == "[machine.NAME]" {
            documented.push("command");
        }
        assert_eq!(known, documented.join(", "), "{heading}");
    }
}

/// Returns the table of each family of variables that no machine accepts.
fn refused_variables() -> String {
    let mut page = String::new();
    for Family { title, refused } in REFUSED_VARIABLES {
        page += &format!("\n## {title}\n\n| variables | why | described in |\n|---|---|---|\n");
        for Refused { names, why, source } in *refused {
            let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
            page += &format!("| {} | {why} | {source} |\n", names.join(", "));
        }
    }
    page
}

#[test]
fn the_page_of_refused_variables_has_every_table_of_the_code() {
    let page = include_str!("../../docs/environment.md");
    let (_, tables) = page.split_once("<!-- The tables of the code. -->\n").expect("the mark");
    for (found, wanted) in tables.lines().zip(refused_variables().lines()) {
        assert_eq!(found, wanted);
    }
    assert_eq!(tables.len(), refused_variables().len());
    for Family { title, .. } in REFUSED_VARIABLES {
        assert!(DOC.contains(&format!("| {title} |")), "docs/config.md has no line for {title}");
    }
}

//! The sections of a config, each read from its table.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use toml::de::DeTable;

use super::names::{USER_FORM, is_user, shown};
use super::problem::Problem;
use super::walk::{Findings, Mode, Scope, Section, Walk, at_key};
use super::{
    Cluster, Command, Config, Defaults, Group, Machine, Name, Network, check, environment, keys, relays, values,
};
use crate::id::IdError;

/// Bounds the words of a named command, in bytes: an executor's plan has room for them beside all else.
const MAX_COMMAND_BYTES: usize = 64 * 1024;

/// Reads the whole config; beside it, what is in order and yet to be warned of.
pub(super) fn read<'w>(
    text: &'w str,
    root: &'w DeTable<'w>,
    mode: Mode,
) -> Result<(Config, Vec<Problem>), Vec<Problem>> {
    let mut walk = Walk::new(text, root, mode);
    let top = Section { path: String::new(), scope: Scope::Whole, at: 0, table: root };
    walk.known(&top, keys::TOP);
    let cluster = match walk.section(&top, "cluster", Scope::Whole) {
        Some(section) => cluster(&mut walk, &section),
        None => {
            if !root.contains_key("cluster") {
                walk.problem(0, "there is no [cluster]".into(), Some("`malai cluster init` writes it".into()));
            }
            None
        }
    };
    let network = match walk.section(&top, "network", Scope::Network) {
        Some(section) => network(&mut walk, &section),
        None if root.contains_key("network") => Network::nothing(),
        None => Network::default(),
    };
    let defaults = walk.section(&top, "defaults", Scope::Shared).map(|s| defaults(&mut walk, &s)).unwrap_or_default();
    let machines = children(&mut walk, &top, "machine", Scope::Whole, |name| Scope::Machine(name.to_owned()), machine);
    let groups = children(&mut walk, &top, "group", Scope::Shared, |_| Scope::Shared, group);
    check::references(&mut walk, &top, cluster.as_ref(), &machines, &groups);
    let Findings { unsupported, ignored, warnings } = walk.finish()?;
    let cluster = cluster.ok_or_else(|| vec![Problem::at(text, 0, "there is no usable [cluster]".into(), None)])?;
    Ok((Config { cluster, network, defaults, machines, groups, unsupported, ignored }, warnings))
}

/// Reads all tables `[kind.NAME]`. `all` and `each` say which machines are touched when something is wrong with `kind`
/// itself, and with one of them.
fn children<'w, T>(
    walk: &mut Walk<'w>,
    parent: &Section<'w>,
    kind: &str,
    all: Scope,
    each: impl Fn(&str) -> Scope,
    read: impl Fn(&mut Walk<'w>, &Section<'w>) -> Option<T>,
) -> BTreeMap<Name, T> {
    let Some(parent) = walk.section(parent, kind, all) else { return BTreeMap::new() };
    let mut found = BTreeMap::new();
    for key in parent.table.keys() {
        let key = key.get_ref().as_ref();
        let Some(section) = walk.section(&parent, key, each(key)) else { continue };
        let value = read(walk, &section);
        match key.parse() {
            Ok(name) => found.extend(value.map(|value| (name, value))),
            Err(error) => {
                let hint = Name::from_hostname(key).map(|name| format!("such as [{}.{name}]", parent.path));
                let message = format!("`{}` is not a name: {error}", shown(key));
                // It is the name that is wrong, a key of the table above.
                let named = Section { path: parent.path.clone(), ..section };
                walk.wrong(&named, key, named.at, message, hint);
            }
        }
    }
    found
}

fn cluster<'w>(walk: &mut Walk<'w>, section: &Section<'w>) -> Option<Cluster> {
    walk.known(section, keys::CLUSTER);
    required(walk, section, keys::CLUSTER);
    let name = walk.name(section, "name");
    let id = id52(walk, section);
    let manager = walk.name(section, "manager");
    Some(Cluster { name: name?.1, id: id?, manager: manager?.1 })
}

fn network<'w>(walk: &mut Walk<'w>, section: &Section<'w>) -> Network {
    walk.known(section, keys::NETWORK);
    let mut relays = relays::read(walk, section);
    let mut discovery = parsed(walk, section, "discovery", |text| match text {
        "dns" | "mdns" => Ok(text.to_owned()),
        url if values::url(url).is_ok() => Ok(url.to_owned()),
        _ => Err("must be \"dns\", \"mdns\", or the URL of a server"),
    });
    let ca = one(walk, section, "ca", |text| values::certificates(text).map(|()| text.to_owned()));
    // What is there and not understood is nothing, and not the default: that is public services.
    let there = |key| section.table.contains_key(key);
    if ca.is_none() && there("ca") {
        // Nor are servers trusted by the web's certificates that are to be trusted by others.
        relays = Some(Vec::new());
        discovery = discovery.map(|ways| ways.into_iter().filter(|way| way == "dns" || way == "mdns").collect());
    }
    Network {
        relays: relays.or_else(|| there("relays").then(Vec::new)),
        discovery: discovery.or_else(|| there("discovery").then(Vec::new)),
        ca,
        // Whatever else it may be meant to say, it restricts: then nobody is asked.
        directory: walk.boolean(section, "directory").or_else(|| there("directory").then_some(false)),
    }
}

fn defaults<'w>(walk: &mut Walk<'w>, section: &Section<'w>) -> Defaults {
    walk.known(section, keys::DEFAULTS);
    Defaults {
        allow_from: walk.allow(section, "allow_from"),
        username: username(walk, section),
        grace: grace(walk, section),
        accept_env: accept_env(walk, section),
    }
}

fn machine<'w>(walk: &mut Walk<'w>, section: &Section<'w>) -> Option<Machine> {
    walk.known(section, keys::MACHINE);
    required(walk, section, &["id52"]);
    let id = id52(walk, section);
    let own = section.scope.clone();
    let machine = Machine {
        allow_from: walk.allow(section, "allow_from"),
        allow_shell: walk.allow(section, "allow_shell"),
        allow_sessions: walk.allow(section, "allow_sessions"),
        allow_control: walk.allow(section, "allow_control"),
        username: username(walk, section),
        users: parsed(walk, section, "users", user).unwrap_or_default(),
        addresses: parsed(walk, section, "addresses", address).unwrap_or_default(),
        grace: grace(walk, section),
        accept_env: accept_env(walk, section),
        commands: children(walk, section, "command", own.clone(), |_| own.clone(), command),
        id: id?,
    };
    Some(machine)
}

fn command<'w>(walk: &mut Walk<'w>, section: &Section<'w>) -> Option<Command> {
    walk.known(section, keys::COMMAND);
    required(walk, section, &["command"]);
    let allow_from = walk.allow(section, "allow_from");
    let username = username(walk, section);
    let accept_env = accept_env(walk, section);
    let words = walk.strings(section, "command")?;
    let at = at_key(section, "command");
    let wrong = if words.first().is_none_or(|(_, word)| word.is_empty()) {
        Some("`command` must name a program, then its arguments")
    } else if words.iter().any(|(_, word)| word.contains('\0')) {
        Some("a word of a command cannot contain a NUL byte")
    } else if words.iter().map(|(_, word)| word.len() + 1).sum::<usize>() > MAX_COMMAND_BYTES {
        Some("`command` is too long: put it into a script on the machine")
    } else {
        None
    };
    if let Some(message) = wrong {
        walk.wrong(section, "command", at, message.into(), Some("write command = [\"PROGRAM\", \"ARGUMENT\"]".into()));
        return None;
    }
    let command = words.into_iter().map(|(_, word)| word.to_owned()).collect();
    Some(Command { command, allow_from, username, accept_env })
}

fn group<'w>(walk: &mut Walk<'w>, section: &Section<'w>) -> Option<Group> {
    walk.known(section, keys::GROUP);
    required(walk, section, keys::GROUP);
    let mut members = BTreeSet::new();
    for (at, text) in walk.strings(section, "members")? {
        if text == "*" {
            let hint = "write \"*\" in the list that should allow everybody".to_owned();
            walk.wrong(section, "members", at, "`*` cannot be a member of a group".into(), Some(hint));
        } else {
            members.extend(walk.reference(section, "members", at, text));
        }
    }
    Some(Group { members })
}

fn required(walk: &mut Walk<'_>, section: &Section<'_>, keys: &[&str]) {
    for key in keys.iter().filter(|key| !section.table.contains_key(**key)) {
        walk.wrong(section, key, section.at, format!("[{}] has no `{key}`", section.path), None);
    }
}

/// Reads the id52 of a section, of the kind that its type says.
fn id52<'w, T: FromStr<Err = IdError>>(walk: &mut Walk<'w>, section: &Section<'w>) -> Option<T> {
    let (at, text) = walk.string(section, "id52")?;
    match text.parse() {
        Ok(id) => Some(id),
        Err(error) => {
            let hint = "`malai status` on the machine prints it".to_owned();
            walk.wrong(section, "id52", at, format!("`id52` of [{}]: {error}", section.path), Some(hint));
            None
        }
    }
}

/// Reads the value under a key, by a parser that says what it must be.
fn one<'w, T>(
    walk: &mut Walk<'w>,
    section: &Section<'w>,
    key: &str,
    parse: impl Fn(&str) -> Result<T, &'static str>,
) -> Option<T> {
    let (at, text) = walk.string(section, key)?;
    let value = parse(text);
    value.map_err(|why| walk.wrong(section, key, at, format!("`{key}` {why}"), None)).ok()
}

/// Reads the array under a key, each item by a parser that says what it must be.
fn parsed<'w, T>(
    walk: &mut Walk<'w>,
    section: &Section<'w>,
    key: &str,
    parse: impl Fn(&str) -> Result<T, &'static str>,
) -> Option<Vec<T>> {
    let items = walk.strings(section, key)?;
    let mut values = Vec::with_capacity(items.len());
    for (at, text) in items {
        match parse(text) {
            Ok(value) => values.push(value),
            Err(why) => walk.wrong(section, key, at, format!("`{}` in `{key}` {why}", shown(text)), None),
        }
    }
    Some(values)
}

fn username<'w>(walk: &mut Walk<'w>, section: &Section<'w>) -> Option<String> {
    one(walk, section, "username", user)
}

fn user(text: &str) -> Result<String, &'static str> {
    if is_user(text) { Ok(text.to_owned()) } else { Err(USER_FORM) }
}

fn address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse().map_err(|_| "must be IP:PORT, such as \"192.0.2.7:4001\" or \"[2001:db8::7]:4001\"")
}

fn grace<'w>(walk: &mut Walk<'w>, section: &Section<'w>) -> Option<Duration> {
    one(walk, section, "grace", values::duration)
}

fn accept_env<'w>(walk: &mut Walk<'w>, section: &Section<'w>) -> Option<Vec<String>> {
    let items = walk.strings(section, "accept_env")?;
    let mut patterns = Vec::with_capacity(items.len());
    for (at, text) in items {
        let pattern = shown(text);
        if let Err(why) = environment::check_form(text) {
            walk.wrong(section, "accept_env", at, format!("`{pattern}` in `accept_env` {why}"), None);
            continue;
        }
        // Others do not ask: a name that no machine accepts allows nothing, and an earlier version may have signed it.
        if walk.picky()
            && let Some(why) = environment::in_vain(text)
        {
            let message = format!("`{pattern}` in `accept_env` names variables that no machine accepts: {why}");
            walk.wrong(section, "accept_env", at, message, Some("take it out of the list".into()));
            continue;
        }
        if walk.picky()
            && let Some(why) = environment::too_wide(text)
        {
            let message = format!("`{pattern}` in `accept_env` of [{}] {why}", section.path);
            walk.warn(at, message, Some("name the variables that you need".into()));
        }
        patterns.push(text.to_owned());
    }
    Some(patterns)
}

//! References between tables, which no table can check by itself.

use std::collections::BTreeMap;

use super::groups::cycles;
use super::walk::{Scope, Section, Walk, at_key};
use super::{Cluster, Group, Machine, Name};
use crate::id::MachineId;

/// Checks names and keys across the sections.
pub(super) fn references(
    walk: &mut Walk<'_>,
    top: &Section<'_>,
    cluster: Option<&Cluster>,
    machines: &BTreeMap<Name, Machine>,
    groups: &BTreeMap<Name, Group>,
) {
    if let Some(cluster) = cluster
        && !subtable(top, "machine").is_some_and(|all| all.table.contains_key(cluster.manager.as_str()))
    {
        let at = value_at(top, "cluster", "manager");
        let message = format!("`manager` names `{}`, and there is no [machine.{0}]", cluster.manager);
        walk.problem(at, message, None);
    }
    for name in groups.keys().filter(|name| machines.contains_key(*name)) {
        let message = format!("`{name}` is a machine already, and cannot be a group as well");
        walk.problem(header_at(top, "group", name), message, Some("give the group another name".into()));
    }
    keys(walk, top, cluster, machines);
    if walk.strict() {
        reserved(walk, top, "machine", machines.keys());
        reserved(walk, top, "group", groups.keys());
        rings(walk, top, groups);
    }
}

/// Checks that each key is of one machine: a target knows its caller by the key alone.
fn keys(walk: &mut Walk<'_>, top: &Section<'_>, cluster: Option<&Cluster>, machines: &BTreeMap<Name, Machine>) {
    let mut seen: BTreeMap<&MachineId, &Name> = BTreeMap::new();
    let mut named: Vec<(usize, &Name, &Machine)> =
        machines.iter().map(|(name, machine)| (id_at(top, name), name, machine)).collect();
    named.sort_by_key(|(at, ..)| *at);
    for (at, name, machine) in named {
        if cluster.is_some_and(|cluster| cluster.id.as_bytes() == machine.id.as_bytes()) {
            let message = format!("[machine.{name}] has the cluster's id52; a machine needs a key of its own");
            walk.problem(at, message, Some("`malai status` on the machine prints it".into()));
        }
        if let Some(other) = seen.insert(&machine.id, name) {
            let message = format!("[machine.{name}] has the id52 of [machine.{other}]");
            walk.problem(at, message, Some("one machine has one name: delete one of the two".into()));
        }
    }
}

fn reserved<'a>(walk: &mut Walk<'_>, top: &Section<'_>, kind: &str, names: impl Iterator<Item = &'a Name>) {
    for name in names {
        if let Some(why) = name.reserved() {
            let message = format!("`{name}` cannot be the name of a {kind}: {why}");
            walk.problem(header_at(top, kind, name), message, Some("choose another name".into()));
        }
    }
}

fn rings(walk: &mut Walk<'_>, top: &Section<'_>, groups: &BTreeMap<Name, Group>) {
    for ring in cycles(groups) {
        let Some(first) = ring.first() else { continue };
        let names: Vec<&str> = ring.iter().chain([first]).map(Name::as_str).collect();
        // A ring may be as long as the config.
        let shown = match names.get(..8) {
            Some(beginning) if names.len() > 8 => format!("{} → …", beginning.join(" → ")),
            _ => names.join(" → "),
        };
        let section = format!("group.{first}");
        let at = subtable(top, "group").and_then(|groups| subtable(&groups, first.as_str()));
        let at = at.map_or(0, |group| at_key(&group, "members"));
        walk.problem(at, format!("[{section}] contains itself: {shown}"), Some("take one of them out".into()));
    }
}

fn header_at(top: &Section<'_>, kind: &str, name: &Name) -> usize {
    subtable(top, kind).map_or(0, |parent| at_key(&parent, name.as_str()))
}

fn id_at(top: &Section<'_>, name: &Name) -> usize {
    let machine = subtable(top, "machine").and_then(|machines| subtable(&machines, name.as_str()));
    machine.and_then(|machine| machine.table.get("id52")).map_or(0, |id| id.span().start)
}

fn value_at(top: &Section<'_>, section: &str, key: &str) -> usize {
    subtable(top, section).and_then(|s| s.table.get(key).map(|v| v.span().start)).unwrap_or(0)
}

fn subtable<'w>(parent: &Section<'w>, key: &str) -> Option<Section<'w>> {
    let (name, value) = parent.table.get_key_value(key)?;
    let table = value.get_ref().as_table()?;
    Some(Section { path: String::new(), scope: Scope::Whole, at: name.span().start, table })
}

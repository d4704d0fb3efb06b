//! Takes a machine out of the config: its own section, and its name from every list.

use toml_edit::{DocumentMut, Item, Table, TableLike};

use super::super::{Allow, Config, Name, Problem};
use super::{as_meant, parse, subtable};
use crate::failure::{Failure, Kind};

/// Lists the keys whose lists may have a machine's name.
const MACHINE_LIST_KEYS: &[&str] = &["allow_from", "allow_shell", "allow_sessions", "allow_control", "members"];

/// Takes a machine out of the text: its table, and its name in every list and group.
///
/// # Errors
/// [`Kind::UnknownTarget`] when there is no such machine, [`Kind::Conflict`] when it is the cluster manager,
/// [`Kind::BadConfig`] when the text is not in order.
pub fn remove_machine(text: &str, name: &Name) -> Result<String, Failure> {
    let config = Config::check_edit(text).map_err(|problems| Problem::failure(&problems, "cluster.toml"))?;
    if !config.machines.contains_key(name) {
        return Err(Failure::new(Kind::UnknownTarget, format!("the config has no machine `{name}`"))
            .hint("`malai status` lists the machines"));
    }
    if config.cluster.manager == *name {
        return Err(Failure::new(Kind::Conflict, format!("`{name}` is the cluster manager, and cannot be removed"))
            .hint("only a machine that does not hold the cluster key can be removed"));
    }
    let mut document = parse(text)?;
    let above = comments_above(&mut document, name);
    subtable(document.as_table_mut(), "machine")?.remove(name.as_str());
    if let Some((position, comments)) = above {
        put_back(&mut document, position, &comments);
    }
    strike(document.as_table_mut(), name, 0);
    as_meant(document.to_string(), &without(config, name))
}

/// Returns what the edited text has to mean.
fn without(mut config: Config, name: &Name) -> Config {
    config.machines.remove(name);
    let mut lists: Vec<&mut Allow> = config.defaults.allow_from.iter_mut().collect();
    for machine in config.machines.values_mut() {
        lists.extend(machine.allow_from.iter_mut().chain(&mut machine.allow_shell));
        lists.extend(machine.allow_sessions.iter_mut().chain(&mut machine.allow_control));
        lists.extend(machine.commands.values_mut().filter_map(|command| command.allow_from.as_mut()));
    }
    for list in lists {
        list.names.remove(name);
    }
    for group in config.groups.values_mut() {
        group.members.remove(name);
    }
    config
}

/// Takes the name out of all lists below this table. Four levels are all that a checked config has.
fn strike(table: &mut dyn TableLike, name: &Name, level: u8) {
    for (key, item) in table.iter_mut() {
        if let Some(array) = item.as_array_mut() {
            if !MACHINE_LIST_KEYS.contains(&key.get()) {
                continue;
            }
            let first = array.get(0).and_then(|v| v.as_str()) == Some(name.as_str());
            array.retain(|value| value.as_str() != Some(name.as_str()));
            let begins_line = |prefix: &str| prefix.contains('\n');
            if first
                && let Some(value) = array.get_mut(0)
                && !value.decor().prefix().and_then(|p| p.as_str()).is_some_and(begins_line)
            {
                value.decor_mut().set_prefix("");
            }
        } else if level < 4
            && let Some(below) = item.as_table_like_mut()
        {
            strike(below, name, level + 1);
        }
    }
}

/// Returns the comments above the machine's table that a blank line separates from it, and so are not about it; and
/// the table's place in the text.
fn comments_above(document: &mut DocumentMut, name: &Name) -> Option<(isize, String)> {
    let machine = document.get("machine")?.get(name.as_str())?.as_table()?;
    let prefix = machine.decor().prefix()?.as_str()?;
    let comments = prefix.get(..=prefix.rfind("\n\n")?)?;
    if comments.contains('#') { Some((machine.position()?, comments.to_owned())) } else { None }
}

/// Puts comments above the section that follows this place, or at the end of the text.
fn put_back(document: &mut DocumentMut, position: isize, comments: &str) {
    match next_after(document.as_table_mut(), position) {
        Some(table) => {
            let own = table.decor().prefix().and_then(|p| p.as_str()).unwrap_or_default();
            let both = format!("{comments}{own}");
            table.decor_mut().set_prefix(both);
        }
        None => {
            let both = format!("{comments}{}", document.trailing().as_str().unwrap_or_default());
            document.set_trailing(both);
        }
    }
}

/// Returns the table that comes next after this place in the text. A checked config nests four deep.
fn next_after(table: &mut Table, position: isize) -> Option<&mut Table> {
    let mut next: Option<&mut Table> = None;
    for (_, item) in table.iter_mut() {
        let Item::Table(below) = item else { continue };
        let found =
            if below.position().is_some_and(|at| at > position) { Some(below) } else { next_after(below, position) };
        let place = |table: &Option<&mut Table>| table.as_ref().and_then(|t| t.position()).unwrap_or(isize::MAX);
        if place(&found) < place(&next) {
            next = found;
        }
    }
    next
}

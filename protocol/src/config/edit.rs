//! Edits of the config's text that malai makes itself: comments and order stay as the administrator left them.

mod remove;

use toml_edit::{Array, DocumentMut, InlineTable, Item, Table, TableLike, Value};

pub use remove::remove_machine;

use super::names::{USER_FORM, is_user, quoted_user, shown};
use super::{Config, Machine, Name, Problem};
use crate::failure::{Failure, Kind};
use crate::id::{ClusterId, MachineId};

/// Holds what a new cluster's config is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// The cluster's name.
    pub cluster: Name,
    /// The cluster's key.
    pub id: ClusterId,
    /// The first machine, which is the manager.
    pub machine: Name,
    /// Its key.
    pub machine_id: MachineId,
    /// No public service is ever contacted.
    pub private: bool,
    /// The user that commands run as on it; absent = the daemon's own.
    pub username: Option<String>,
}

/// Describes a machine to be enrolled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewMachine {
    /// Its name.
    pub name: Name,
    /// Its key.
    pub id: MachineId,
    /// The groups it joins.
    pub groups: Vec<Name>,
    /// The user that commands run as on it; absent = as the defaults say, else the daemon's own.
    pub username: Option<String>,
}

/// Writes the config of a new cluster: its machine may call itself and those that join, and no machine may open a
/// shell.
///
/// # Errors
/// [`Kind::Usage`] when a name or the user cannot be used, [`Kind::BadConfig`] when the result is not in order.
pub fn template(new: &Template) -> Result<String, Failure> {
    usable(&new.machine)?;
    let username = username_line(new.username.as_deref())?;
    let Template { cluster, id, machine, machine_id, .. } = new;
    let network = if new.private {
        "[network]                            # goes to every machine\n\
         relays    = []                       # no relay: machines reach each other directly or not at all\n\
         discovery = [\"mdns\"]                 # only on the local network: no public service is contacted\n"
    } else {
        "# [network]                          # goes to every machine; without it, iroh's public services are used\n\
         # relays    = [\"https://relay.example.com\"]\n\
         # discovery = [\"dns\", \"mdns\"]\n"
    };
    let text = format!(
        "# The config of the cluster \"{cluster}\". What each key means: docs/config.md.\n\
         # After an edit run `malai rescan`: it checks the text, signs it and sends it to every machine.\n\
         # What no list allows is refused.\n\
         \n\
         [cluster]\n\
         name    = \"{cluster}\"\n\
         id52    = \"{id}\"\n\
         manager = \"{machine}\"\n\
         \n\
         {network}\
         \n\
         [defaults]\n\
         allow_from = [\"admins\"]              # may run commands on machines without a list of their own\n\
         # allow_shell = [\"admins\"] under a machine: may open a shell there; without it, no machine may\n\
         \n\
         [machine.{machine}]\n\
         id52 = \"{machine_id}\"\n\
         {username}\
         \n\
         [group.admins]\n\
         members = [\"{machine}\"]\n"
    );
    match Config::check(&text) {
        Ok(_) => Ok(text),
        Err(problems) => Err(Problem::failure(&problems, "the new config")),
    }
}

/// Adds a machine to the text: its id52, its username and its groups, and nothing else.
///
/// # Errors
/// [`Kind::Conflict`] when the name or the key is taken, [`Kind::Usage`] when a name, the user or a group cannot be
/// used, [`Kind::BadConfig`] when the text is not in order.
pub fn add_machine(text: &str, new: &NewMachine) -> Result<String, Failure> {
    let config = Config::check_edit(text).map_err(|problems| Problem::failure(&problems, "cluster.toml"))?;
    addable(&config, new)?;
    let mut document = parse(text)?;
    let machines = subtable(document.as_table_mut(), "machine")?;
    let inline = machines.iter().next().is_some_and(|(_, item)| item.is_inline_table());
    let mut keys: Vec<(&str, String)> = vec![("id52", new.id.to_string())];
    keys.extend(new.username.iter().map(|user| ("username", user.clone())));
    let item = if inline {
        Item::Value(Value::InlineTable(InlineTable::from_iter(keys)))
    } else {
        let mut table = Table::from_iter(keys);
        table.decor_mut().set_prefix("\n");
        if let (Some("root"), Some(value)) = (new.username.as_deref(), table.get_mut("username")) {
            comment(value, ROOT_COMMENT);
        }
        Item::Table(table)
    };
    machines.insert(new.name.as_str(), item);
    for group in &new.groups {
        let groups = subtable(document.as_table_mut(), "group")?;
        let members = subtable(groups, group.as_str())?.get_mut("members").and_then(Item::as_array_mut);
        push(members.ok_or_else(|| not_editable("group"))?, new.name.as_str());
    }
    as_meant(document.to_string(), &with(config, new))
}

/// Returns what the edited text has to mean.
fn with(mut config: Config, new: &NewMachine) -> Config {
    for group in &new.groups {
        if let Some(group) = config.groups.get_mut(group) {
            group.members.insert(new.name.clone());
        }
    }
    let machine = Machine { username: new.username.clone(), ..Machine::new(new.id) };
    config.machines.insert(new.name.clone(), machine);
    config
}

/// Returns the machines that `signed` has and `edited` would drop, although nobody took them out: they were enrolled
/// after `base`, the signed text that the edit began from. Without a base every dropped machine counts.
pub fn enrolled_since(base: Option<&Config>, edited: &Config, signed: &Config) -> Vec<Name> {
    let has = |config: &Config, id| config.machine_by_id(id).is_some();
    let dropped = signed.machines.iter().filter(|(_, machine)| !has(edited, &machine.id));
    let new = dropped.filter(|(_, machine)| base.is_none_or(|base| !has(base, &machine.id)));
    new.map(|(name, _)| name.clone()).collect()
}

const ROOT_COMMENT: &str = "  # a caller that may run commands here may do everything";

fn username_line(username: Option<&str>) -> Result<String, Failure> {
    let Some(user) = username else { return Ok(String::new()) };
    user_usable(user)?;
    let meaning = if user == "root" { ROOT_COMMENT } else { "" };
    Ok(format!("username = {}{meaning}\n", quoted_user(user)))
}

fn addable(config: &Config, new: &NewMachine) -> Result<(), Failure> {
    usable(&new.name)?;
    if let Some(user) = &new.username {
        user_usable(user)?;
    }
    let name = &new.name;
    if let Some((other, _)) = config.machine_by_id(&new.id) {
        let failure = Failure::new(Kind::Conflict, format!("this key is in the config already, as `{other}`"));
        return Err(failure.hint(format!("use it as `{other}`, or first remove that machine")));
    }
    if config.machines.contains_key(name) || config.groups.contains_key(name) {
        let what = if config.machines.contains_key(name) { "machine" } else { "group" };
        let failure = Failure::new(Kind::Conflict, format!("there is a {what} `{name}` already"));
        return Err(failure.hint("choose another name with --name"));
    }
    if let Some(group) = new.groups.iter().find(|group| !config.groups.contains_key(*group)) {
        let known: Vec<&str> = config.groups.keys().take(20).map(Name::as_str).collect();
        let failure = Failure::new(Kind::Usage, format!("there is no group `{group}`"));
        return Err(failure.hint(format!("groups of this cluster: {}", known.join(", "))));
    }
    Ok(())
}

fn usable(name: &Name) -> Result<(), Failure> {
    match name.reserved() {
        Some(why) => Err(Failure::new(Kind::Usage, format!("`{name}` cannot be the name of a machine: {why}"))
            .hint("choose another name with --name")),
        None => Ok(()),
    }
}

fn user_usable(user: &str) -> Result<(), Failure> {
    if is_user(user) {
        Ok(())
    } else {
        Err(Failure::new(Kind::Usage, format!("`{}` is not the name of a user", shown(user)))
            .hint(format!("--username {USER_FORM}")))
    }
}

/// Returns the edited text if it is in order and means exactly what it was edited for.
fn as_meant(text: String, meant: &Config) -> Result<String, Failure> {
    match Config::check_edit(&text) {
        Ok(config) if config == *meant => Ok(text),
        Ok(_) => Err(not_editable("machine")),
        Err(problems) => Err(Problem::failure(&problems, "the edited config")),
    }
}

fn parse(text: &str) -> Result<DocumentMut, Failure> {
    text.parse().map_err(|error: toml_edit::TomlError| {
        Failure::new(Kind::BadConfig, format!("cluster.toml is not TOML: {}", error.message()))
    })
}

/// Returns the table under this key, in any of TOML's forms.
fn subtable<'d>(table: &'d mut dyn TableLike, key: &str) -> Result<&'d mut dyn TableLike, Failure> {
    table.get_mut(key).and_then(Item::as_table_like_mut).ok_or_else(|| not_editable(key))
}

fn not_editable(key: &str) -> Failure {
    Failure::new(Kind::BadConfig, format!("`{key}` of cluster.toml is written in a way that malai cannot edit"))
        .hint("make the change by hand, then run `malai rescan`")
}

fn comment(item: &mut Item, text: &str) {
    if let Some(value) = item.as_value_mut() {
        value.decor_mut().set_suffix(text);
    }
}

/// Appends to an array in the form that its last item has.
fn push(array: &mut Array, text: &str) {
    let prefix = array.iter().last().and_then(|last| last.decor().prefix()?.as_str().map(str::to_owned));
    let mut value = Value::from(text);
    match prefix.as_deref().and_then(|prefix| prefix.rfind('\n').and_then(|at| prefix.get(at..))) {
        Some(line) => value.decor_mut().set_prefix(line),
        None if !array.is_empty() => value.decor_mut().set_prefix(" "),
        None => {}
    }
    array.push_formatted(value);
}

#[cfg(test)]
mod tests;

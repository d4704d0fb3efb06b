//! The cluster's config: what it says, and whether it is in order.
//!
//! The manager reads its text strictly ([`Config::check`]); a member reads what the manager signed tolerantly
//! ([`Config::read`]), since it may be older than the manager. Every key is described in docs/config.md. A *rule* is a
//! table that grants: `[defaults]`, `[machine.NAME]` and `[machine.NAME.command.NAME]`.
//!
//! A newer version that adds a *restriction* has to put it under a machine, the defaults or a group: there a member
//! that does not know it refuses to run commands. A key there that only *adds rights* has a name that begins with
//! `allow_`, and a member that does not know it leaves it out. Unknown keys elsewhere are ignored. Of `[network]` a
//! member uses what it understands, and never a public service in place of what it does not.

mod check;
pub mod edit;
pub(crate) mod environment;
mod groups;
mod keys;
mod names;
mod problem;
mod relays;
mod sections;
mod shape;
mod values;
mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use toml::de::DeTable;

pub use environment::{Family, REFUSED_VARIABLES, Refused};
pub use groups::Via;
pub use names::{MAX_NAME_CHARS, MAX_USER_BYTES, Name, NameError, is_user, nearest};
pub(crate) use names::{quoted_user, shown};
pub use problem::{MAX_PROBLEMS, Problem};
pub use relays::{MAX_RELAYS, Relay};

use crate::id::{ClusterId, MachineId};
use crate::session::DEFAULT_GRACE_MS;
use walk::{Mode, Scope};

/// Holds a cluster's config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The cluster itself.
    pub cluster: Cluster,
    /// How its machines find each other.
    pub network: Network,
    /// The rule for what a machine's own does not say.
    pub defaults: Defaults,
    /// Its machines.
    pub machines: BTreeMap<Name, Machine>,
    /// Its groups.
    pub groups: BTreeMap<Name, Group>,
    /// In each scope the first key that this version does not understand.
    unsupported: BTreeMap<Scope, String>,
    /// In each scope the first key that this version does not know and leaves out.
    ignored: BTreeMap<Scope, String>,
}

/// Holds `[cluster]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// The cluster's name.
    pub name: Name,
    /// The key that signs its snapshots.
    pub id: ClusterId,
    /// The machine that holds that key.
    pub manager: Name,
}

/// Holds `[network]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    /// The relays; absent = iroh's public ones, empty = none.
    pub relays: Option<Vec<Relay>>,
    /// `dns`, `mdns`, or the URL of a pkarr/DNS server; absent = `dns` and `mdns`, empty = none.
    pub discovery: Option<Vec<String>>,
    /// Certificates in PEM that the relays and servers above are trusted by; absent = the web's.
    pub ca: Option<String>,
    /// Whether machines ask each other where another one is; absent = they do.
    pub directory: Option<bool>,
}

impl Network {
    /// Returns a network without any relay or discovery service.
    fn nothing() -> Self {
        Self { relays: Some(Vec::new()), discovery: Some(Vec::new()), ca: None, directory: Some(false) }
    }

    /// Tells whether machines ask each other where another one is.
    pub fn has_directory(&self) -> bool {
        self.directory.unwrap_or(true)
    }
}

/// Holds `[defaults]`: the rule for what a machine's own does not say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Defaults {
    /// Who may run commands; absent = nobody.
    pub allow_from: Option<Allow>,
    /// The user that commands run as.
    pub username: Option<String>,
    /// How long a session waits for its caller to come back.
    pub grace: Option<Duration>,
    /// Names of environment variables that callers may set; `*` at the end of one means all that begin so.
    pub accept_env: Option<Vec<String>>,
}

/// Holds `[machine.NAME]`: a machine, and the rule for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The machine's key.
    pub id: MachineId,
    /// Who may run commands; absent = as the defaults say.
    pub allow_from: Option<Allow>,
    /// Who may open a shell; absent = nobody.
    pub allow_shell: Option<Allow>,
    /// Who, besides its owner, may list, watch, wait for and kill a session; absent = nobody.
    pub allow_sessions: Option<Allow>,
    /// Who, besides its owner, may also type into a session, signal it otherwise, and take it over; absent = nobody.
    pub allow_control: Option<Allow>,
    /// The user that commands run as; absent = as the defaults say, else the daemon's own.
    pub username: Option<String>,
    /// Further users that callers may ask for.
    pub users: Vec<String>,
    /// Fixed addresses.
    pub addresses: Vec<SocketAddr>,
    /// How long a session waits for its caller to come back; absent = as the defaults say.
    pub grace: Option<Duration>,
    /// Names of environment variables that callers may set; absent = as the defaults say.
    pub accept_env: Option<Vec<String>>,
    /// Named commands.
    pub commands: BTreeMap<Name, Command>,
}

impl Machine {
    /// Makes a machine whose rule is empty.
    pub fn new(id: MachineId) -> Self {
        Self {
            id,
            allow_from: None,
            allow_shell: None,
            allow_sessions: None,
            allow_control: None,
            username: None,
            users: Vec::new(),
            addresses: Vec::new(),
            grace: None,
            accept_env: None,
            commands: BTreeMap::new(),
        }
    }
}

/// Holds `[machine.NAME.command.NAME]`: a named command, and the rule for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Program and arguments; at least one word.
    pub command: Vec<String>,
    /// Who may run it; absent = who may run commands on the machine.
    pub allow_from: Option<Allow>,
    /// The user that it runs as; absent = as the machine says.
    pub username: Option<String>,
    /// Names of environment variables that callers may set; absent = none beside those that are always accepted.
    pub accept_env: Option<Vec<String>>,
}

/// Holds `[group.NAME]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Group {
    /// Machines and other groups.
    pub members: BTreeSet<Name>,
}

/// Lists who may do something.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allow {
    /// `"*"`: every member of the cluster.
    pub everyone: bool,
    /// Machines and groups.
    pub names: BTreeSet<Name>,
}

impl Config {
    /// Reads the text as the manager does before it signs: everything has to be known and in order.
    ///
    /// # Errors
    /// What is wrong with it, in the order of the text, at most [`MAX_PROBLEMS`].
    pub fn check(text: &str) -> Result<Self, Vec<Problem>> {
        Self::review(text).map(|(config, _)| config)
    }

    /// Reads the text as [`Config::check`] does, and tells what is in order and yet hardly what is meant: at most
    /// [`MAX_PROBLEMS`] warnings, in the order of the text.
    ///
    /// # Errors
    /// As [`Config::check`].
    pub fn review(text: &str) -> Result<(Self, Vec<Problem>), Vec<Problem>> {
        Self::parse(text, Mode::Strict)
    }

    /// Reads the text as [`Config::check`] does, for an edit that is no person's: what an earlier version signed, and this
    /// one would not let a person write, must not keep a machine in the cluster.
    fn check_edit(text: &str) -> Result<Self, Vec<Problem>> {
        Self::parse(text, Mode::Edit).map(|(config, _)| config)
    }

    /// Reads the text as a member does after it has verified the signature: what this version does not understand is
    /// noted, and [`Config::blocked`] tells which machines it touches.
    ///
    /// # Errors
    /// What is wrong with it, as far as no newer version could mean anything by it.
    pub fn read(text: &str) -> Result<Self, Vec<Problem>> {
        Self::parse(text, Mode::Tolerant).map(|(config, _)| config)
    }

    fn parse(text: &str, mode: Mode) -> Result<(Self, Vec<Problem>), Vec<Problem>> {
        shape::check(text).map_err(|problem| vec![problem])?;
        let root = DeTable::parse(text).map_err(|error| vec![syntax(text, &error)])?;
        sections::read(text, root.get_ref(), mode)
    }

    /// Tells why this config lets nothing run on this machine: a key, under the machine itself, the defaults or a
    /// group, that this version does not understand, and that may be a restriction.
    pub fn blocked(&self, me: &Name) -> Option<String> {
        let own = self.unsupported.get(&Scope::Machine(me.to_string()));
        let key = own.or_else(|| self.unsupported.get(&Scope::Shared))?;
        Some(format!("the config has `{key}`, which this version of malai does not understand and so cannot obey"))
    }

    /// Returns how long the sessions of this machine wait for their callers to come back.
    pub fn grace(&self, machine: &Machine) -> Duration {
        machine.grace.or(self.defaults.grace).unwrap_or(Duration::from_millis(DEFAULT_GRACE_MS))
    }

    /// Tells what of `[network]` this version does not understand. It uses the rest, which may be too little to be
    /// reached.
    pub fn unheeded(&self) -> Option<String> {
        let key = self.unsupported.get(&Scope::Network)?;
        Some(format!(
            "the config has `{key}`, which this version of malai does not understand; it uses the rest of [network]"
        ))
    }

    /// Returns the first right on this machine that this version leaves out; absent = none. That is an unknown key that
    /// begins with `allow_`, under the machine itself, the defaults or a group. What it grants is not granted here.
    pub fn ungranted(&self, me: &Name) -> Option<String> {
        let own = self.ignored.get(&Scope::Machine(me.to_string()));
        let key = own.or_else(|| self.ignored.get(&Scope::Shared))?;
        Some(format!(
            "the config has `{key}`, which this version of malai does not know; it ignores that key, which grants nothing here, and obeys the rest"
        ))
    }

    /// Returns the machine with this key.
    pub fn machine_by_id(&self, id: &MachineId) -> Option<(&Name, &Machine)> {
        self.machines.iter().find(|(_, machine)| machine.id == *id)
    }

    /// Returns the machine of this name.
    pub fn machine(&self, name: &str) -> Option<&Machine> {
        self.machines.get(name)
    }
}

/// Returns the parser's error with its place.
fn syntax(text: &str, error: &toml::de::Error) -> Problem {
    let span = error.span().unwrap_or_default();
    let message = match (error.message(), text.get(span.clone())) {
        ("duplicate key", Some(key)) => format!("`{}` appears twice", shown(key)),
        (message, _) => format!("not TOML: {}", message.trim()),
    };
    Problem::at(text, span.start, message, None)
}

#[cfg(test)]
pub(crate) mod tests;

//! The keys that each table of a config may have.

pub(super) const TOP: &[&str] = &["cluster", "network", "defaults", "machine", "group"];
pub(super) const CLUSTER: &[&str] = &["name", "id52", "manager"];
pub(super) const NETWORK: &[&str] = &["relays", "discovery", "ca", "directory"];
pub(super) const DEFAULTS: &[&str] = &["allow_from", "username", "grace", "accept_env"];
pub(super) const COMMAND: &[&str] = &["command", "allow_from", "username", "accept_env"];
pub(super) const RELAY: &[&str] = &["url", "sha256", "id52"];
pub(super) const GROUP: &[&str] = &["members"];
pub(super) const MACHINE: &[&str] = &[
    "id52",
    "allow_from",
    "allow_shell",
    "allow_sessions",
    "allow_control",
    "username",
    "users",
    "addresses",
    "grace",
    "accept_env",
    "command",
];
const PLACES: &[(&str, &[&str])] =
    &[("machine.NAME", MACHINE), ("network", NETWORK), ("cluster", CLUSTER), ("group.NAME", GROUP)];

/// Returns the table to which a key belongs that stands in the wrong one.
pub(super) fn table_of(key: &str) -> Option<&'static str> {
    PLACES.iter().find(|(_, keys)| keys.contains(&key)).map(|(table, _)| *table)
}

//! `malai status`.

use malai_protocol::failure::Failure;
use malai_protocol::local::{
    ClusterState, ClusterStatus, Connection, MachineStatus, RelayState, RelayStatus, Request, Role,
};
use malai_protocol::session::Reached;

use super::{Context, NO_CLUSTER, NO_CLUSTER_HINT, daemon};
use crate::output::Output;
use crate::{output, timestamp};

/// Show this machine, its clusters, and which of their machines answer
///
/// Asks all machines at once, for up to 2 s. A machine is shown as connected only if it answered; for the others, status
/// shows when they were last seen.
#[derive(Debug, clap::Args)]
pub(crate) struct Status {
    /// Ask only the machines to which there is a connection, and dial no other
    #[arg(long)]
    no_probe: bool,
}

impl Status {
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        let request = if self.no_probe { Request::Status } else { Request::Probe };
        let status = ask!(cx, Agent, request => Status);
        if cx.out.json {
            cx.out.document(&status)?;
            return Ok(0);
        }
        cx.out.rows(daemon::describe(Some(&status.daemon)))?;
        let now = timestamp::now_ms();
        for cluster in &status.clusters {
            cx.out.rows(describe(cluster, now))?;
            alarms(cx.out, cluster);
        }
        if status.clusters.is_empty() {
            cx.out.note(NO_CLUSTER);
            cx.out.hint(NO_CLUSTER_HINT);
        }
        Ok(0)
    }
}

/// Describes a cluster: what this machine is in it, and a table of all machines.
fn describe(cluster: &ClusterStatus, now_ms: u64) -> Vec<String> {
    let ClusterStatus { alias, role, machine, machine_id, generation, addresses, join_addresses, .. } = cluster;
    let role = match role {
        Role::Manager => "this machine is the cluster manager",
        Role::Machine => "this machine is a member",
    };
    let mut lines = vec![String::new(), format!("{alias}: {role}")];
    let mut field = |name: &str, value: Option<String>| {
        lines.extend(value.map(|value| format!("  {name:<12}{value}")));
    };
    field("cluster", cluster.cluster.map(|id| id.to_string()));
    field("machine", machine.clone());
    field("id52", machine_id.map(|id| id.to_string()));
    field("generation", generation.map(|generation| generation.to_string()));
    let list = |all: &[String]| (!all.is_empty()).then(|| all.join(", "));
    field("addresses", list(addresses));
    field("join", list(join_addresses));
    cluster.relays.iter().for_each(|relay| field("relay", Some(describe_relay(relay))));
    field("not asked", list(&cluster.discovery_failures));
    if let ClusterState::Waiting(what) = &cluster.state {
        field("waiting", Some(what.clone()));
    }
    if !cluster.machines.is_empty() {
        let rows = cluster.machines.iter().map(|machine| row(machine, now_ms));
        lines.extend(output::table(["  MACHINE", "ID52", "GENERATION", "MALAI", "STATE"], rows));
    }
    lines
}

/// Describes a relay. Why it cannot be used is in part its own words.
fn describe_relay(relay: &RelayStatus) -> String {
    let state = match relay.state {
        RelayState::Connected => "connected",
        RelayState::Connecting => "no answer yet",
        RelayState::Spare => "not in use, another is connected",
        RelayState::Failed => "cannot be used",
    };
    let error = relay.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
    format!("{}  {state}{error}", relay.url)
}

fn row(machine: &MachineStatus, now_ms: u64) -> [String; 5] {
    let mark = if machine.manager { " (manager)" } else { "" };
    let (generation, malai) = (output::or_dash(machine.generation), output::or_dash(machine.malai.as_ref()));
    [format!("  {}{mark}", machine.name), machine.id.short(), generation, malai, state(machine, now_ms)]
}

/// Describes a machine; as connected only where there is a live connection.
fn state(machine: &MachineStatus, now_ms: u64) -> String {
    if machine.this {
        return "this machine".into();
    }
    match (&machine.connection, machine.last_seen_ms) {
        (Some(connection), _) => {
            let Connection { since_ms, path, rtt_us, found_by, sent_bytes, received_bytes } = connection.clone();
            let since = timestamp::ago(since_ms, now_ms);
            let (sent, received) = (bytes(sent_bytes), bytes(received_bytes));
            let reached = Reached { path, rtt_us, found_by }.words();
            format!("connected, {reached}, for {since}, {sent} sent, {received} received")
        }
        (None, Some(seen)) => format!("{}, last seen {} ago", absent(machine), timestamp::ago(seen, now_ms)),
        (None, None) => format!("{}, never seen", absent(machine)),
    }
}

fn absent(machine: &MachineStatus) -> &'static str {
    if machine.probed { "no answer" } else { "no connection" }
}

/// Writes a number of bytes for people.
fn bytes(count: u64) -> String {
    const BYTE_UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    let mut size = count as f64 / 1e3;
    for unit in BYTE_UNITS {
        if size < 999.5 || unit == BYTE_UNITS[BYTE_UNITS.len() - 1] {
            return format!("{size:.1} {unit}");
        }
        size /= 1e3;
    }
    format!("{count} B")
}

fn alarms(out: Output, cluster: &ClusterStatus) {
    let name = &cluster.alias;
    if let ClusterState::Broken(failure) = &cluster.state {
        out.explain(&Failure { message: format!("{name}: {}", failure.message), ..failure.clone() });
    }
    cluster.alarm.iter().for_each(|alarm| out.note(&format!("alarm: {name}: {alarm}")));
}

#[cfg(test)]
mod tests {
    use super::*;
    use malai_protocol::id::{ClusterId, MachineId};

    /// The public key of RFC 8032's first test vector.
    const KEY: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

    fn key() -> [u8; 32] {
        data_encoding::HEXLOWER.decode(KEY.as_bytes()).expect("hex").try_into().expect("32 bytes")
    }

    fn machine(name: &str) -> MachineStatus {
        MachineStatus {
            name: name.into(),
            id: MachineId::from_bytes(key()).expect("a key"),
            this: false,
            manager: false,
            connection: None,
            generation: None,
            last_seen_ms: None,
            probed: false,
            malai: None,
        }
    }

    fn relay(url: &str, state: RelayState, error: Option<&str>) -> RelayStatus {
        RelayStatus { url: url.into(), state, error: error.map(str::to_owned) }
    }

    #[test]
    fn a_machine_without_a_live_connection_is_never_called_connected() {
        for last_seen_ms in [None, Some(0), Some(u64::MAX)] {
            let words = state(&MachineStatus { last_seen_ms, ..machine("web01") }, 1);
            assert!(words.starts_with("no connection, "), "{words}");
            let words = state(&MachineStatus { last_seen_ms, probed: true, ..machine("web01") }, 1);
            assert!(words.starts_with("no answer, "), "{words}");
        }
    }

    #[test]
    fn bytes_have_the_unit_that_a_person_would_use() {
        let cases = [(0, "0.0 kB"), (999, "1.0 kB"), (12_345, "12.3 kB"), (2_500_000_000, "2.5 GB")];
        for (count, text) in cases {
            assert_eq!(bytes(count), text);
        }
    }

    fn connection() -> Connection {
        Connection {
            since_ms: 0,
            path: "direct 192.0.2.7:4001".into(),
            rtt_us: 41_234,
            found_by: Some("mdns".into()),
            sent_bytes: 12_345,
            received_bytes: 2_000_000,
        }
    }

    #[test]
    fn a_cluster_is_shown_as_a_table() {
        let cluster = ClusterStatus {
            alias: "company".into(),
            cluster: Some(ClusterId::from_bytes(key()).expect("a key")),
            role: Role::Manager,
            machine: Some("laptop".into()),
            machine_id: Some(MachineId::from_bytes(key()).expect("a key")),
            state: ClusterState::Ready,
            generation: Some(12),
            alarm: None,
            addresses: vec!["192.0.2.1:4001".into()],
            join_addresses: vec!["192.0.2.1:4002".into()],
            machines: vec![
                MachineStatus { this: true, manager: true, generation: Some(12), ..machine("laptop") },
                MachineStatus {
                    connection: Some(connection()),
                    generation: Some(12),
                    malai: Some("0.1.0".into()),
                    ..machine("web01")
                },
                MachineStatus { last_seen_ms: Some(10_000), generation: Some(11), ..machine("db01") },
                machine("new"),
            ],
            relays: vec![
                relay("https://a.example.com", RelayState::Connected, None),
                relay("https://b.example.com", RelayState::Spare, None),
                relay("https://c.example.com", RelayState::Connecting, None),
                relay(
                    "https://192.0.2.5:7443",
                    RelayState::Failed,
                    Some("the relay refuses this machine: not a member"),
                ),
            ],
            discovery_failures: vec!["http://192.0.2.9/pkarr: connection refused".into()],
        };
        insta::assert_snapshot!(describe(&cluster, 100_000).join("\n"), @r"

        company: this machine is the cluster manager
          cluster     qtd9g0c2m45bflabvr9sip07787e2snjraj269df08d6hto7a4d0
          machine     laptop
          id52        qtd9g0c2m45bflabvr9sip07787e2snjraj269df08d6hto7a4d0
          generation  12
          addresses   192.0.2.1:4001
          join        192.0.2.1:4002
          relay       https://a.example.com  connected
          relay       https://b.example.com  not in use, another is connected
          relay       https://c.example.com  no answer yet
          relay       https://192.0.2.5:7443  cannot be used: the relay refuses this machine: not a member
          not asked   http://192.0.2.9/pkarr: connection refused
          MACHINE           ID52        GENERATION  MALAI  STATE
          laptop (manager)  qtd9g0c2m4  12          -      this machine
          web01             qtd9g0c2m4  12          0.1.0  connected, direct 192.0.2.7:4001, 41.2 ms, found by mdns, for 100 s, 12.3 kB sent, 2.0 MB received
          db01              qtd9g0c2m4  11          -      no connection, last seen 90 s ago
          new               qtd9g0c2m4  -           -      no connection, never seen
        ");
    }
}

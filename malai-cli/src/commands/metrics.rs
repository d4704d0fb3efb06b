//! `malai metrics`.

use std::fmt::Write as _;

use malai_protocol::failure::Failure;
use malai_protocol::local::{ClusterMetrics, Metrics as Counted, Request};

use super::Context;

/// Show what the daemon has counted since it started, as Prometheus text
///
/// Totals never go back while the daemon runs. Needs a daemon.
#[derive(Debug, clap::Args)]
pub(crate) struct Metrics;

impl Metrics {
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        let counted = ask!(cx, Disk, Request::Metrics => Metrics);
        if cx.out.json {
            cx.out.document(&counted)?;
        } else {
            cx.out.data(&exposition(&counted))?;
        }
        Ok(0)
    }
}

/// Is one number of a family: its labels besides the cluster, and where it is found.
type Number = (&'static str, fn(&ClusterMetrics) -> Option<u64>);

/// Holds a family of numbers: its name, its kind, what it counts, and the numbers.
struct Family(&'static str, &'static str, &'static str, &'static [Number]);

const METRIC_FAMILIES: &[Family] = &[
    Family("malai_connections", "gauge", "Open connections to other machines.", &[("", |m| Some(m.connections))]),
    Family(
        "malai_connections_total",
        "counter",
        "Connections to other machines, by the side that dialled.",
        &[("direction=\"dialed\"", |m| Some(m.dialed)), ("direction=\"accepted\"", |m| Some(m.accepted))],
    ),
    Family(
        "malai_handshakes_total",
        "counter",
        "Handshakes of connections, in both directions.",
        &[("result=\"ok\"", |m| Some(m.handshakes_ok)), ("result=\"failed\"", |m| Some(m.handshakes_failed))],
    ),
    Family(
        "malai_reconnects_total",
        "counter",
        "Connections to a machine after all earlier ones were lost.",
        &[("", |m| Some(m.reconnects))],
    ),
    Family(
        "malai_sessions",
        "gauge",
        "Running sessions: followed from this machine, and on this machine.",
        &[("role=\"caller\"", |m| Some(m.called_now)), ("role=\"target\"", |m| Some(m.served_now))],
    ),
    Family(
        "malai_sessions_total",
        "counter",
        "Commands sent from this machine, and commands started on it.",
        &[("role=\"caller\"", |m| Some(m.called)), ("role=\"target\"", |m| Some(m.served))],
    ),
    Family(
        "malai_refusals_total",
        "counter",
        "Connections of strangers, and commands, that this machine refused.",
        &[("what=\"connection\"", |m| Some(m.connections_refused)), ("what=\"session\"", |m| Some(m.sessions_refused))],
    ),
    Family(
        "malai_sent_bytes_total",
        "counter",
        "Bytes sent over connections, including what QUIC adds.",
        &[("", |m| Some(m.sent_bytes))],
    ),
    Family(
        "malai_received_bytes_total",
        "counter",
        "Bytes received over connections, including what QUIC adds.",
        &[("", |m| Some(m.received_bytes))],
    ),
    Family(
        "malai_config_generation",
        "gauge",
        "Generation of the config that this machine holds.",
        &[("", |m| Some(m.generation))],
    ),
    Family(
        "malai_link_up",
        "gauge",
        "Whether the link to the cluster manager is up; the manager itself has no link.",
        &[("", |m| m.link_up.map(u64::from))],
    ),
];

/// Writes the text format of Prometheus, version 0.0.4.
fn exposition(counted: &Counted) -> String {
    let mut text = String::new();
    let version = label(&counted.version);
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "# HELP malai_build_info The version of the daemon.\n# TYPE malai_build_info gauge\n\
         malai_build_info{{version=\"{version}\"}} 1\n\
         # HELP malai_panics_total Faults of malai itself; the daemon's log has the details.\n\
         # TYPE malai_panics_total counter\n\
         malai_panics_total{{process=\"daemon\"}} {}\nmalai_panics_total{{process=\"executor\"}} {}\n\
         # HELP malai_log_lines_lost_total Lines missing in the logs of the daemon and its executor.\n\
         # TYPE malai_log_lines_lost_total counter\nmalai_log_lines_lost_total {}\n",
        counted.panics, counted.executor_panics, counted.lost_log_lines
    );
    for Family(name, kind, help, numbers) in METRIC_FAMILIES {
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for cluster in &counted.clusters {
            for (labels, number) in *numbers {
                let Some(number) = number(cluster) else { continue };
                let more = if labels.is_empty() { String::new() } else { format!(",{labels}") };
                let _ = writeln!(text, "{name}{{cluster=\"{}\"{more}}} {number}", label(&cluster.alias));
            }
        }
    }
    text
}

/// Returns the value of a label, escaped.
fn label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn company() -> ClusterMetrics {
        ClusterMetrics {
            alias: "company".into(),
            generation: 12,
            link_up: Some(true),
            connections: 2,
            dialed: 3,
            accepted: 1,
            handshakes_ok: 4,
            handshakes_failed: 5,
            reconnects: 1,
            called_now: 1,
            called: 7,
            served: 8,
            sent_bytes: 1000,
            received_bytes: 2000,
            sessions_refused: 9,
            ..ClusterMetrics::default()
        }
    }

    fn counted() -> Counted {
        let managed = ClusterMetrics { alias: "home".into(), ..ClusterMetrics::default() };
        Counted {
            version: "0.1.0".into(),
            panics: 3,
            executor_panics: 1,
            lost_log_lines: 5,
            clusters: vec![company(), managed],
        }
    }

    #[test]
    fn the_text_is_as_prometheus_reads_it() {
        let text = exposition(&counted());
        let company: Vec<_> = text.lines().filter(|line| !line.contains("home")).collect();
        insta::assert_snapshot!(company.join("\n"), @r#"
        # HELP malai_build_info The version of the daemon.
        # TYPE malai_build_info gauge
        malai_build_info{version="0.1.0"} 1
        # HELP malai_panics_total Faults of malai itself; the daemon's log has the details.
        # TYPE malai_panics_total counter
        malai_panics_total{process="daemon"} 3
        malai_panics_total{process="executor"} 1
        # HELP malai_log_lines_lost_total Lines missing in the logs of the daemon and its executor.
        # TYPE malai_log_lines_lost_total counter
        malai_log_lines_lost_total 5
        # HELP malai_connections Open connections to other machines.
        # TYPE malai_connections gauge
        malai_connections{cluster="company"} 2
        # HELP malai_connections_total Connections to other machines, by the side that dialled.
        # TYPE malai_connections_total counter
        malai_connections_total{cluster="company",direction="dialed"} 3
        malai_connections_total{cluster="company",direction="accepted"} 1
        # HELP malai_handshakes_total Handshakes of connections, in both directions.
        # TYPE malai_handshakes_total counter
        malai_handshakes_total{cluster="company",result="ok"} 4
        malai_handshakes_total{cluster="company",result="failed"} 5
        # HELP malai_reconnects_total Connections to a machine after all earlier ones were lost.
        # TYPE malai_reconnects_total counter
        malai_reconnects_total{cluster="company"} 1
        # HELP malai_sessions Running sessions: followed from this machine, and on this machine.
        # TYPE malai_sessions gauge
        malai_sessions{cluster="company",role="caller"} 1
        malai_sessions{cluster="company",role="target"} 0
        # HELP malai_sessions_total Commands sent from this machine, and commands started on it.
        # TYPE malai_sessions_total counter
        malai_sessions_total{cluster="company",role="caller"} 7
        malai_sessions_total{cluster="company",role="target"} 8
        # HELP malai_refusals_total Connections of strangers, and commands, that this machine refused.
        # TYPE malai_refusals_total counter
        malai_refusals_total{cluster="company",what="connection"} 0
        malai_refusals_total{cluster="company",what="session"} 9
        # HELP malai_sent_bytes_total Bytes sent over connections, including what QUIC adds.
        # TYPE malai_sent_bytes_total counter
        malai_sent_bytes_total{cluster="company"} 1000
        # HELP malai_received_bytes_total Bytes received over connections, including what QUIC adds.
        # TYPE malai_received_bytes_total counter
        malai_received_bytes_total{cluster="company"} 2000
        # HELP malai_config_generation Generation of the config that this machine holds.
        # TYPE malai_config_generation gauge
        malai_config_generation{cluster="company"} 12
        # HELP malai_link_up Whether the link to the cluster manager is up; the manager itself has no link.
        # TYPE malai_link_up gauge
        malai_link_up{cluster="company"} 1
        "#);
        // A manager has no link, and everything else that a machine has.
        let lines = |alias: &str| text.lines().filter(|line| line.contains(alias)).count();
        assert_eq!(lines("\"home\""), lines("\"company\"") - 1);
    }

    #[test]
    fn a_label_cannot_end_its_quotes() {
        assert_eq!(label("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}

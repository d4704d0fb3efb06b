//! `malai metrics`.

use std::fmt::Write as _;

use malai_protocol::failure::Failure;
use malai_protocol::local::{ClusterMetrics, Metrics as Counted, Request, Response};

use super::Context;
use crate::client::{self, Otherwise};

/// Show what the daemon has counted since it started, as Prometheus text
///
/// Totals never go back while the daemon runs. Needs a daemon.
#[derive(Debug, clap::Args)]
pub(crate) struct Metrics;

impl Metrics {
    /// # Errors
    /// What went wrong, or that no daemon runs here.
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        let Response::Metrics(counted) = client::request(&cx.home, Request::Metrics, Otherwise::Disk, cx.out)? else {
            return Err(client::unexpected());
        };
        if cx.out.json {
            cx.out.document(&counted)?;
        } else {
            cx.out.data(&exposition(&counted))?;
        }
        Ok(0)
    }
}

/// One number of a family: its labels besides the cluster, and where it is found.
type Number = (&'static str, fn(&ClusterMetrics) -> Option<u64>);

/// A family of numbers.
struct Family {
    name: &'static str,
    /// `gauge` or `counter`.
    kind: &'static str,
    help: &'static str,
    numbers: &'static [Number],
}

const FAMILIES: &[Family] = &[
    Family {
        name: "malai_connections",
        kind: "gauge",
        help: "Connections to other machines that are there now.",
        numbers: &[("", |m| Some(m.connections))],
    },
    Family {
        name: "malai_connections_total",
        kind: "counter",
        help: "Connections to other machines, by who dialled.",
        numbers: &[("direction=\"dialed\"", |m| Some(m.dialed)), ("direction=\"accepted\"", |m| Some(m.accepted))],
    },
    Family {
        name: "malai_handshakes_total",
        kind: "counter",
        help: "Handshakes of connections, in both directions.",
        numbers: &[("result=\"ok\"", |m| Some(m.handshakes_ok)), ("result=\"failed\"", |m| Some(m.handshakes_failed))],
    },
    Family {
        name: "malai_reconnects_total",
        kind: "counter",
        help: "Connections to a machine to which all earlier ones were lost.",
        numbers: &[("", |m| Some(m.reconnects))],
    },
    Family {
        name: "malai_sessions",
        kind: "gauge",
        help: "Sessions now: followed from here, and on this machine.",
        numbers: &[("role=\"caller\"", |m| Some(m.called_now)), ("role=\"target\"", |m| Some(m.served_now))],
    },
    Family {
        name: "malai_sessions_total",
        kind: "counter",
        help: "Commands that were sent from here, and that were started on this machine.",
        numbers: &[("role=\"caller\"", |m| Some(m.called)), ("role=\"target\"", |m| Some(m.served))],
    },
    Family {
        name: "malai_refusals_total",
        kind: "counter",
        help: "Connections of strangers, and commands, that were refused here.",
        numbers: &[
            ("what=\"connection\"", |m| Some(m.connections_refused)),
            ("what=\"session\"", |m| Some(m.sessions_refused)),
        ],
    },
    Family {
        name: "malai_sent_bytes_total",
        kind: "counter",
        help: "Bytes sent over connections, with all that QUIC adds.",
        numbers: &[("", |m| Some(m.sent_bytes))],
    },
    Family {
        name: "malai_received_bytes_total",
        kind: "counter",
        help: "Bytes received over connections, with all that QUIC adds.",
        numbers: &[("", |m| Some(m.received_bytes))],
    },
    Family {
        name: "malai_config_generation",
        kind: "gauge",
        help: "Generation of the config that is held.",
        numbers: &[("", |m| Some(m.generation))],
    },
    Family {
        name: "malai_link_up",
        kind: "gauge",
        help: "Whether there is a connection to the cluster manager; the manager itself has none.",
        numbers: &[("", |m| m.link_up.map(u64::from))],
    },
];

/// The text format of Prometheus, version 0.0.4.
fn exposition(counted: &Counted) -> String {
    let mut text = String::new();
    let version = label(&counted.version);
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "# HELP malai_build_info The version of the daemon.\n# TYPE malai_build_info gauge\n\
         malai_build_info{{version=\"{version}\"}} 1\n\
         # HELP malai_panics_total Faults of malai itself; the daemon's log tells what and where.\n\
         # TYPE malai_panics_total counter\n\
         malai_panics_total{{process=\"daemon\"}} {}\nmalai_panics_total{{process=\"executor\"}} {}\n\
         # HELP malai_log_lines_lost_total Lines that the log of the daemon lacks, and that of its executor.\n\
         # TYPE malai_log_lines_lost_total counter\nmalai_log_lines_lost_total {}\n",
        counted.panics, counted.executor_panics, counted.lost_log_lines
    );
    for Family { name, kind, help, numbers } in FAMILIES {
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

/// The value of a label.
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
        # HELP malai_panics_total Faults of malai itself; the daemon's log tells what and where.
        # TYPE malai_panics_total counter
        malai_panics_total{process="daemon"} 3
        malai_panics_total{process="executor"} 1
        # HELP malai_log_lines_lost_total Lines that the log of the daemon lacks, and that of its executor.
        # TYPE malai_log_lines_lost_total counter
        malai_log_lines_lost_total 5
        # HELP malai_connections Connections to other machines that are there now.
        # TYPE malai_connections gauge
        malai_connections{cluster="company"} 2
        # HELP malai_connections_total Connections to other machines, by who dialled.
        # TYPE malai_connections_total counter
        malai_connections_total{cluster="company",direction="dialed"} 3
        malai_connections_total{cluster="company",direction="accepted"} 1
        # HELP malai_handshakes_total Handshakes of connections, in both directions.
        # TYPE malai_handshakes_total counter
        malai_handshakes_total{cluster="company",result="ok"} 4
        malai_handshakes_total{cluster="company",result="failed"} 5
        # HELP malai_reconnects_total Connections to a machine to which all earlier ones were lost.
        # TYPE malai_reconnects_total counter
        malai_reconnects_total{cluster="company"} 1
        # HELP malai_sessions Sessions now: followed from here, and on this machine.
        # TYPE malai_sessions gauge
        malai_sessions{cluster="company",role="caller"} 1
        malai_sessions{cluster="company",role="target"} 0
        # HELP malai_sessions_total Commands that were sent from here, and that were started on this machine.
        # TYPE malai_sessions_total counter
        malai_sessions_total{cluster="company",role="caller"} 7
        malai_sessions_total{cluster="company",role="target"} 8
        # HELP malai_refusals_total Connections of strangers, and commands, that were refused here.
        # TYPE malai_refusals_total counter
        malai_refusals_total{cluster="company",what="connection"} 0
        malai_refusals_total{cluster="company",what="session"} 9
        # HELP malai_sent_bytes_total Bytes sent over connections, with all that QUIC adds.
        # TYPE malai_sent_bytes_total counter
        malai_sent_bytes_total{cluster="company"} 1000
        # HELP malai_received_bytes_total Bytes received over connections, with all that QUIC adds.
        # TYPE malai_received_bytes_total counter
        malai_received_bytes_total{cluster="company"} 2000
        # HELP malai_config_generation Generation of the config that is held.
        # TYPE malai_config_generation gauge
        malai_config_generation{cluster="company"} 12
        # HELP malai_link_up Whether there is a connection to the cluster manager; the manager itself has none.
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

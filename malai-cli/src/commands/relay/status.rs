//! `malai relay status`.

use malai_daemon::relay::status::{self, ClusterStatus, Status as Told};
use malai_protocol::failure::Failure;

use crate::commands::Context;
use crate::output;

/// Show the relay that runs on this host; exits with 0 if one does, else with 1
#[derive(Debug, clap::Args)]
pub(super) struct Status;

impl Status {
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        let told = status::status(&cx.home)?;
        if cx.out.json {
            cx.out.document(&serde_json::json!({ "relay": told }))?;
        } else {
            match &told {
                Some(told) => cx.out.rows(describe(told))?,
                None => cx.out.row("no relay runs here")?,
            }
        }
        Ok(u8::from(told.is_none()))
    }
}

fn describe(told: &Told) -> Vec<String> {
    let Told { pid, version, url, id52, sha256, clusters, connected, by_ticket, refused, let_go, unheard } = told;
    let mut lines = vec![
        format!("relay {url}, pid {pid}, malai {version}"),
        format!("id52 {id52}, certificate sha256 {sha256}"),
        format!("connected: {connected}, of them newcomers with a ticket: {by_ticket}"),
        format!("since its start refused: {refused}, disconnected: {let_go}, closed unheard: {unheard}"),
    ];
    lines.extend(output::table(["CLUSTER", "GENERATION", "MACHINES", "ID52"], clusters.iter().map(row)));
    let alarm = |cluster: &ClusterStatus| Some(format!("alarm: {}: {}", cluster.name, cluster.alarm.as_ref()?));
    lines.extend(clusters.iter().filter_map(alarm));
    lines
}

fn row(cluster: &ClusterStatus) -> [String; 4] {
    let generation = cluster.generation.map_or_else(|| "none yet".to_owned(), |generation| generation.to_string());
    [cluster.name.clone(), generation, cluster.machines.to_string(), cluster.id52.to_string()]
}

//! `malai doctor`: finds what is broken on this machine, and says how to fix it.
//!
//! It looks at the disk with or without a daemon. A running daemon tries the rest for real: its machines, relays and
//! discovery services, all at once, each within a few seconds. It contacts only what the cluster's config names, and uses
//! the machine's key only towards the cluster's own machines.

mod accounts;
mod files;
mod network;
mod peers;
mod proxy;

use std::sync::Arc;

use malai_protocol::home::Home;
use malai_protocol::local::{Checkup, Finding, LostLines};
use malai_protocol::plan::Tree;
use tokio::task::JoinSet;

use crate::clusters::host::Host;
use crate::clusters::membership::Membership;
use crate::clusters::{Cluster, Clusters};
use crate::requests::metrics;
use crate::runtime::blocking::blocking;
use crate::runtime::duty;
use crate::store::lock;

/// Looks at this home's files, where no daemon runs.
pub(crate) fn offline(home: &Home) -> Checkup {
    let mut findings = files::look(home);
    findings.push(match lock::find_holder(home) {
        Ok(Some(holder)) if !holder.agent => {
            let failure = holder.unreachable(home);
            Finding::broken("daemon", failure.message, failure.hint.unwrap_or_default())
        }
        Ok(_) => {
            let text = "no daemon runs here: no other machine reaches this one, and the network was not tried";
            Finding::broken("daemon", text, "malai daemon")
        }
        Err(failure) => Finding::broken("daemon", failure.message, failure.hint.unwrap_or_default()),
    });
    Checkup { findings }
}

/// Looks at the files, the daemon, the network and the machines, all at once.
pub(crate) async fn checkup(clusters: &Clusters) -> Checkup {
    let host = clusters.host();
    let home = host.home.clone();
    let mut findings = match blocking(move || Ok(files::look(&home))).await {
        Ok(findings) => findings,
        Err(failure) => vec![Finding::broken("files", failure.message, "malai doctor")],
    };
    findings.extend(daemon(host).await);
    let mut looks = JoinSet::new();
    for (index, (alias, cluster)) in clusters.all().into_iter().enumerate() {
        looks.spawn(async move {
            let found: Vec<_> =
                of_cluster(&alias, cluster).await.into_iter().map(|finding| finding.of(&alias)).collect();
            (index, found)
        });
    }
    let mut found = looks.join_all().await;
    found.sort_by_key(|(index, _)| *index);
    findings.extend(found.into_iter().flat_map(|(_, findings)| findings));
    Checkup { findings }
}

/// Looks at the daemon itself, and at its executor.
async fn daemon(host: &Host) -> Vec<Finding> {
    if host.agent {
        let text = "only an agent runs here: commands can be sent, and no other machine reaches this one";
        return vec![Finding::note("daemon", text).mend("malai daemon")];
    }
    let mut found = vec![Finding::ok("daemon", format!("malai {}, pid {}", crate::VERSION, std::process::id()))];
    if let panics @ 1.. = duty::panics() + metrics::executor_panics(host).await {
        let text = format!(
            "{panics} tasks of daemon and executor failed by faults in malai, and began again where they have to"
        );
        found.push(Finding::note("faults", text).mend("grep 'a fault in malai' in the daemon's log, and report it"));
    }
    if let Some(LostLines { lines, why }) = host.lost_log().await {
        let text = format!("{lines} lines were not written since the daemon, or its executor, was started: {why}");
        let home = host.home.root().display();
        found.push(Finding::note("log", text).mend(format!("df -h {home}; ls -l {}", host.home.log().display())));
    }
    let Some(executor) = host.executor.current() else {
        found.push(Finding::broken("executor", "it does not run, and no command starts here", "malai daemon restart"));
        return found;
    };
    let pid = executor.pid().map(|pid| format!(", pid {pid}")).unwrap_or_default();
    found.push(Finding::ok("executor", format!("answers, speaks version {}{pid}", executor.version())));
    found.push(match executor.tree() {
        Tree::Cgroup => Finding::ok("cgroups", "used: a command leaves no process behind"),
        Tree::Marker => Finding::note(
            "cgroups",
            "not used: a process that clears its environment, leaves its process group and loses its parent outlives the \
             end of its command",
        )
        .mend("start the daemon as root, or by a systemd unit with Delegate=yes (docs/malai.service)"),
    });
    found
}

async fn of_cluster(alias: &str, cluster: Cluster) -> Vec<Finding> {
    match cluster {
        Cluster::Ready(served) => ready(&served.membership).await,
        Cluster::Waiting(waiting) => vec![
            Finding::note("config", waiting.what())
                .mend(format!("on the cluster manager: malai cluster approve {alias} {} --name NAME", waiting.me)),
        ],
        Cluster::Broken(failure) => {
            let mend = failure.hint.unwrap_or_else(|| "see the daemon's log; then: malai daemon restart".into());
            vec![Finding::broken("config", failure.message, mend)]
        }
    }
}

async fn ready(membership: &Arc<Membership>) -> Vec<Finding> {
    let looks = (accounts::look(membership), peers::look(membership), network::look(membership));
    let (accounts, peers, network) = tokio::join!(looks.0, looks.1, looks.2);
    accounts.into_iter().chain(peers).chain(network).collect()
}

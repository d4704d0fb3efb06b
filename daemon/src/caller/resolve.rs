//! From a target's name to a machine of a cluster.

use std::sync::Arc;

use malai_protocol::config::{self, Name};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::MachineId;
use malai_protocol::local::SessionTarget;

use crate::clusters::membership::Membership;
use crate::clusters::{Cluster, Clusters};

/// Returns the machine that the target names.
///
/// # Errors
/// [`Failure`]: no cluster here, no such cluster, not configured yet, no such machine, or more than one.
pub(crate) fn resolve(clusters: &Clusters, target: &SessionTarget) -> Result<(Arc<Membership>, MachineId), Failure> {
    let found = match &target.cluster {
        Some(alias) => in_cluster(clusters, alias, &target.machine),
        None => anywhere(clusters, &target.machine),
    };
    if let Ok((membership, _)) = &found {
        membership.peers.nudge();
    }
    found
}

fn in_cluster(clusters: &Clusters, alias: &str, machine: &str) -> Result<(Arc<Membership>, MachineId), Failure> {
    let membership = match clusters.get(alias) {
        Some(Cluster::Ready(served)) => Arc::clone(&served.membership),
        Some(Cluster::Waiting(waiting)) => return Err(not_yet(alias, &waiting.what())),
        Some(Cluster::Broken(failure)) => {
            let text = format!("cluster {alias} cannot be used on this machine: {}", failure.message);
            return Err(Failure { message: text, ..failure.clone() });
        }
        None => return Err(no_cluster(clusters, alias)),
    };
    match membership.config.machine(machine) {
        Some((id, _)) => Ok((membership, id)),
        None => {
            let near =
                nearest(&membership, machine).map_or_else(String::new, |name| format!("; is it {name}.{alias}?"));
            Err(Failure::new(Kind::UnknownTarget, format!("cluster {alias} has no machine {machine}{near}"))
                .hint("`malai status` lists the machines"))
        }
    }
}

fn anywhere(clusters: &Clusters, machine: &str) -> Result<(Arc<Membership>, MachineId), Failure> {
    let ready = clusters.ready();
    if ready.is_empty() {
        return match clusters.waiting() {
            Some((alias, what)) => Err(not_yet(&alias, &what)),
            None => Err(no_cluster(clusters, machine)),
        };
    }
    let found: Vec<_> =
        ready.iter().filter_map(|m| m.config.machine(machine).map(|(id, _)| (Arc::clone(m), id))).collect();
    match <[_; 1]>::try_from(found) {
        Ok([one]) => Ok(one),
        Err(found) if found.is_empty() => {
            let near =
                ready.iter().find_map(|m| nearest(m, machine).map(|name| format!("; is it {name}.{}?", m.alias)));
            let text = format!("no cluster here has a machine {machine}{}", near.unwrap_or_default());
            Err(Failure::new(Kind::UnknownTarget, text).hint("`malai status` lists the machines"))
        }
        Err(found) => {
            let names: Vec<String> = found.iter().map(|(m, _)| format!("{machine}.{}", m.alias)).collect();
            let text = format!("{machine} is a machine of more than one cluster: {}", names.join(", "));
            Err(Failure::new(Kind::AmbiguousTarget, text).hint(format!("name the cluster too: `malai {} …`", names[0])))
        }
    }
}

fn not_yet(alias: &str, what: &str) -> Failure {
    Failure::new(Kind::NotConfigured, format!("cluster {alias} has no config here yet: {what}"))
        .hint("`malai status` shows what it waits for")
}

fn no_cluster(clusters: &Clusters, name: &str) -> Failure {
    let known = clusters.aliases();
    if known.is_empty() {
        return Failure::new(Kind::NotConfigured, "this machine is in no cluster")
            .hint("`malai machine join <token>` joins one, `malai cluster init <name>` makes one");
    }
    Failure::new(Kind::UnknownTarget, format!("there is no cluster {name} here; here are: {}", known.join(", ")))
        .hint("`malai status` lists clusters and machines")
}

/// Returns the machine that was probably meant.
fn nearest(membership: &Membership, name: &str) -> Option<String> {
    let held = membership.held();
    config::nearest(name, held.config.machines.keys().map(Name::as_str)).map(str::to_owned)
}

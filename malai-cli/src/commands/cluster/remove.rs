//! `malai cluster remove`.

use malai_protocol::failure::Failure;
use malai_protocol::local::{CameBy, Request};

use crate::commands::Context;
use crate::output::Output;
use crate::timestamp;

/// Take a machine out of a cluster
///
/// Then the machine can run nothing in the cluster, and the cluster runs nothing on it. If the invite with which it joined
/// is still open, the command says so: a holder of the token could come back with another key.
#[derive(Debug, clap::Args)]
pub(super) struct Remove {
    /// The cluster's alias
    cluster: String,
    /// The machine's name
    machine: String,
    /// Also end the invites with which the machine joined, in one change
    #[arg(long)]
    revoke_invite: bool,
}

impl Remove {
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        let Self { cluster, machine, revoke_invite } = self;
        let request = Request::ClusterRemove { cluster: cluster.clone(), machine, revoke_invite };
        let changed = super::change(cx, &cluster, request, "removed")?;
        changed.invites.iter().for_each(|invite| show(cx.out, &cluster, &changed.machine, invite));
        if revoke_invite && changed.invites.is_empty() {
            cx.out.note(&format!("{} joined with no invite that is still open", changed.machine));
        }
        Ok(0)
    }
}

fn show(out: Output, cluster: &str, machine: &str, invite: &CameBy) {
    let CameBy { id, uses_left, expires_ms, revoked } = invite;
    if *revoked {
        out.note(&format!("revoked the invite {id}, with which {machine} joined; {uses_left} uses were left"));
        return;
    }
    let uses = if *uses_left == 1 { "use is" } else { "uses are" };
    let until = timestamp::utc(*expires_ms);
    out.note(&format!("{machine} joined with the invite {id}; {uses_left} {uses} left until {until}"));
    out.hint(&format!("a holder of its token can come back; to end it: malai cluster revoke {cluster} {id}"));
}

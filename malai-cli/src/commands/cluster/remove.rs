//! `malai cluster remove`.

use malai_protocol::failure::Failure;
use malai_protocol::local::{CameBy, Request};

use crate::commands::Context;
use crate::output::Output;
use crate::timestamp;

/// Take a machine out of a cluster
///
/// From then on the machine can run nothing, and nothing is run on it. The command says when the invite by which the
/// machine came still lets others in: a holder of its token could come back with another key.
#[derive(Debug, clap::Args)]
pub(super) struct Remove {
    /// The cluster's alias
    cluster: String,
    /// The machine's name
    machine: String,
    /// Also end the invites by which the machine came: both, or neither
    #[arg(long)]
    revoke_invite: bool,
}

impl Remove {
    /// # Errors
    /// What went wrong.
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        let Self { cluster, machine, revoke_invite } = self;
        let request = Request::ClusterRemove { cluster: cluster.clone(), machine, revoke_invite };
        let changed = super::change(cx, &cluster, request, "removed")?;
        changed.invites.iter().for_each(|invite| tell(cx.out, &cluster, &changed.machine, invite));
        if revoke_invite && changed.invites.is_empty() {
            cx.out.note(&format!("no invite by which {} came was open", changed.machine));
        }
        Ok(0)
    }
}

fn tell(out: Output, cluster: &str, machine: &str, invite: &CameBy) {
    let CameBy { id, uses_left, expires_ms, revoked } = invite;
    if *revoked {
        out.note(&format!("the invite {id}, by which {machine} came, is revoked; {uses_left} of its uses were left"));
        return;
    }
    let uses = if *uses_left == 1 { "use" } else { "uses" };
    let until = timestamp::utc(*expires_ms);
    out.note(&format!("{machine} came by the invite {id}, which has {uses_left} {uses} left until {until}"));
    out.hint(&format!("a holder of its token can come back; to end it: malai cluster revoke {cluster} {id}"));
}

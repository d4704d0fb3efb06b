//! `malai cluster revoke`.

use malai_protocol::failure::Failure;
use malai_protocol::local::Request;

use crate::commands::Context;

/// End an invite: no machine can join with it any more
///
/// Machines that joined with it stay. Its token is then refused like a wrong one.
#[derive(Debug, clap::Args)]
pub(super) struct Revoke {
    /// The cluster's alias
    cluster: String,
    /// The invite's id, or enough of its first characters to name only one
    id: String,
}

impl Revoke {
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        let Self { cluster, id } = self;
        let request = Request::ClusterRevoke { cluster: cluster.clone(), id };
        let invite = ask!(cx, Disk, request => Revoked);
        if cx.out.json {
            cx.out.document(&invite)?;
        }
        cx.out.note(&format!("{cluster}: revoked the invite {}; {} uses were left", invite.id, invite.uses_left));
        let there: Vec<&str> =
            invite.redeemed.iter().filter(|one| !one.removed).map(|one| one.machine.as_str()).take(20).collect();
        if !there.is_empty() {
            cx.out.note(&format!("machines that joined with it stay: {}", there.join(", ")));
        }
        Ok(0)
    }
}

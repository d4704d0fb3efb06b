//! `malai cluster revoke`.

use malai_protocol::failure::Failure;
use malai_protocol::local::{Request, Response};

use crate::client::{self, Otherwise};
use crate::commands::Context;

/// End an invite, so that no machine joins by it any more
///
/// The machines that came by it stay. From now on its token is refused as a wrong one is.
#[derive(Debug, clap::Args)]
pub(super) struct Revoke {
    /// The cluster's alias
    cluster: String,
    /// The invite's id, or as many of its first characters as only one invite has
    id: String,
}

impl Revoke {
    /// # Errors
    /// What went wrong.
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        let Self { cluster, id } = self;
        let request = Request::ClusterRevoke { cluster: cluster.clone(), id };
        let Response::Revoked(invite) = client::request(&cx.home, request, Otherwise::Disk, cx.out)? else {
            return Err(client::unexpected());
        };
        if cx.out.json {
            cx.out.document(&invite)?;
        }
        cx.out.note(&format!(
            "{cluster}: the invite {} is revoked; {} of its uses were left",
            invite.id, invite.uses_left
        ));
        let there: Vec<&str> =
            invite.redeemed.iter().filter(|one| !one.removed).map(|one| one.machine.as_str()).take(20).collect();
        if !there.is_empty() {
            cx.out.note(&format!("machines that came by it stay: {}", there.join(", ")));
        }
        Ok(0)
    }
}

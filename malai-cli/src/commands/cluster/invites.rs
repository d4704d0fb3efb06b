//! `malai cluster invites`.

use malai_protocol::failure::Failure;
use malai_protocol::local::{InviteEntry, InviteState, Redemption, Request, Response};

use crate::client::{self, Otherwise};
use crate::commands::Context;
use crate::{output, timestamp};

/// How many machines one row names.
const MAX_NAMED_MACHINES: usize = 8;

/// List the invites of a cluster: their ids, what they give, and which machines came by each
///
/// A used-up or expired invite is listed until a day after it expires, a revoked one until a day after its revocation.
#[derive(Debug, clap::Args)]
pub(super) struct Invites {
    /// The cluster's alias
    cluster: String,
}

impl Invites {
    /// # Errors
    /// What went wrong.
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        let request = Request::ClusterInvites { cluster: self.cluster.clone() };
        let Response::Invites(list) = client::request(&cx.home, request, Otherwise::Disk, cx.out)? else {
            return Err(client::unexpected());
        };
        if cx.out.json {
            cx.out.document(&list)?;
            return Ok(0);
        }
        if list.is_empty() {
            cx.out.note(&format!("{} has no invites", self.cluster));
            return Ok(0);
        }
        let now = timestamp::now_ms();
        let heads = ["ID", "USES LEFT", "EXPIRES", "NAME", "GROUPS", "USERNAME", "REDEEMED BY"];
        let mut rows = vec![heads.map(String::from).to_vec()];
        rows.extend(list.iter().map(|invite| row(invite, now)));
        output::table(&rows).iter().try_for_each(|line| cx.out.row(line))?;
        if list.iter().any(|invite| invite.state == InviteState::Open) {
            cx.out.hint(&format!("end one: malai cluster revoke {} ID", self.cluster));
        }
        Ok(0)
    }
}

fn row(invite: &InviteEntry, now: u64) -> Vec<String> {
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    let expires = match (invite.state, invite.revoked_ms) {
        (InviteState::Revoked, at) => format!("revoked {} ago", timestamp::ago(at.unwrap_or(now), now)),
        _ if invite.expires_ms <= now => format!("expired {} ago", timestamp::ago(invite.expires_ms, now)),
        _ => format!("in {}", timestamp::ago(now, invite.expires_ms)),
    };
    vec![
        invite.id.clone(),
        format!("{} of {}", invite.uses_left, invite.uses),
        expires,
        or_dash(invite.name.as_deref().unwrap_or_default()),
        or_dash(&invite.groups.join(", ")),
        or_dash(invite.username.as_deref().unwrap_or_default()),
        or_dash(&named(&invite.redeemed)),
    ]
}

fn named(redeemed: &[Redemption]) -> String {
    let name = |one: &Redemption| match one.removed {
        true => format!("{} (removed)", one.machine),
        false => one.machine.clone(),
    };
    let mut names: Vec<String> = redeemed.iter().take(MAX_NAMED_MACHINES).map(name).collect();
    if let Some(more) = redeemed.len().checked_sub(MAX_NAMED_MACHINES).filter(|more| *more > 0) {
        names.push(format!("and {more} more"));
    }
    names.join(", ")
}

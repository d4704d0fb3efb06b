//! `malai cluster invites`.

use malai_protocol::failure::Failure;
use malai_protocol::local::{InviteEntry, InviteState, Redemption, Request};

use crate::commands::Context;
use crate::{output, timestamp};

/// Bounds how many machines one row names.
const MAX_NAMED_MACHINES: usize = 8;

/// List the invites of a cluster: their ids, what each gives, and which machines joined with it
///
/// An invite stays in the list until a day after it expires or is revoked.
#[derive(Debug, clap::Args)]
pub(super) struct Invites {
    /// The cluster's alias
    cluster: String,
}

impl Invites {
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        let request = Request::ClusterInvites { cluster: self.cluster.clone() };
        let list = ask!(cx, Disk, request => Invites);
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
        cx.out.rows(output::table(heads, list.iter().map(|invite| row(invite, now))))?;
        if list.iter().any(|invite| invite.state == InviteState::Open) {
            cx.out.hint(&format!("end one: malai cluster revoke {} ID", self.cluster));
        }
        Ok(0)
    }
}

fn row(invite: &InviteEntry, now: u64) -> [String; 7] {
    let list = |text: String| output::or_dash(Some(text).filter(|text| !text.is_empty()));
    let expires = match (invite.state, invite.revoked_ms) {
        (InviteState::Revoked, at) => format!("revoked {} ago", timestamp::ago(at.unwrap_or(now), now)),
        _ if invite.expires_ms <= now => format!("expired {} ago", timestamp::ago(invite.expires_ms, now)),
        _ => format!("in {}", timestamp::ago(now, invite.expires_ms)),
    };
    [
        invite.id.clone(),
        format!("{} of {}", invite.uses_left, invite.uses),
        expires,
        output::or_dash(invite.name.as_ref()),
        list(invite.groups.join(", ")),
        output::or_dash(invite.username.as_ref()),
        list(named(&invite.redeemed)),
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

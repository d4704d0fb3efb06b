//! `malai cluster invite`.

use std::time::Duration;

use malai_protocol::failure::Failure;
use malai_protocol::local::{ClusterInvite, Invited, Request, Response};

use crate::client::{self, Otherwise};
use crate::commands::Context;
use crate::{duration, timestamp};

/// Make an invite: a token that lets a machine join
///
/// Prints the token, alone, on standard output. Whoever has it can join until it is used up or expired.
#[derive(Debug, clap::Args)]
pub(super) struct Invite {
    /// The cluster's alias
    cluster: String,
    /// The newcomer's name; default: its host name
    #[arg(long)]
    name: Option<String>,
    /// How many machines may join with it; a fixed name means one
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    uses: u32,
    /// For how long it is good
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, default_value = "1h")]
    expires: Duration,
    /// A group that the newcomer becomes a member of. May be repeated
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    /// The user that commands run as there; default when root asks: root
    #[arg(long, value_name = "USER")]
    username: Option<String>,
}

impl Invite {
    /// # Errors
    /// What went wrong.
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        let Self { cluster, name, uses, expires, groups, username } = self;
        let username = super::username(username);
        // Never shorter than asked for, and never zero.
        let expires_s = duration::millis(expires).div_ceil(1000);
        let request = Request::ClusterInvite(ClusterInvite { cluster, name, uses, expires_s, groups, username });
        let Response::Invited(invited) = client::request(&cx.home, request, Otherwise::Disk, cx.out)? else {
            return Err(client::unexpected());
        };
        let Invited { token, expires_ms, join_addresses } = &invited;
        if cx.out.json {
            cx.out.document(&invited)?;
        } else {
            cx.out.row(token)?;
        }
        cx.out.note(&format!("expires {}", timestamp::utc(*expires_ms)));
        if join_addresses.is_empty() {
            cx.out.note("no daemon runs here, so nobody can join yet");
            cx.out.hint("start one: malai daemon");
        } else {
            cx.out.note(&format!("newcomers reach this machine at {}", join_addresses.join(", ")));
        }
        cx.out.hint("on the newcomer: malai machine join TOKEN; malai daemon");
        Ok(0)
    }
}

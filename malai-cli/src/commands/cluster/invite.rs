//! `malai cluster invite`.

use std::time::Duration;

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::invite::Invite as Token;
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
    /// The user that commands run as there; default: `username` of `[defaults]`, else the account of the newcomer's daemon,
    /// but never root
    #[arg(long, value_name = "USER")]
    username: Option<String>,
    /// For the host of a relay: the token names the cluster, holds no secret, and lets nobody in
    #[arg(long, conflicts_with_all = ["name", "uses", "expires", "groups", "username"])]
    relay: bool,
}

impl Invite {
    /// # Errors
    /// What went wrong.
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        let Self { cluster, name, uses, expires, groups, username, relay } = self;
        if relay {
            return for_relay(cx, &cluster);
        }
        let is_named = username.is_some();
        // Never shorter than asked for, and never zero.
        let expires_s = duration::millis(expires).div_ceil(1000);
        let request = Request::ClusterInvite(ClusterInvite { cluster, name, uses, expires_s, groups, username });
        let Response::Invited(invited) = client::request(&cx.home, request, Otherwise::Disk, cx.out)? else {
            return Err(client::unexpected());
        };
        let Invited { id, token, expires_ms, join_addresses } = &invited;
        if cx.out.json {
            cx.out.document(&invited)?;
        } else {
            cx.out.row(token)?;
        }
        cx.out.note(&format!("invite {id}, expires {}", timestamp::utc(*expires_ms)));
        if join_addresses.is_empty() {
            cx.out.note("no daemon runs here, so nobody can join yet");
            cx.out.hint("start one: malai daemon");
        } else {
            cx.out.note(&format!("newcomers reach this machine at {}", join_addresses.join(", ")));
        }
        if !is_named {
            cx.out.note(
                "no --username: commands there run as `username` of [defaults] says, else as the account of the \
                 newcomer's daemon; a daemon that is root then refuses them",
            );
        }
        cx.out.hint("on the newcomer: malai machine join TOKEN; malai daemon");
        Ok(0)
    }
}

/// The token for a relay: what every machine of the cluster knows anyway.
fn for_relay(cx: &Context, alias: &str) -> Result<u8, Failure> {
    let Response::Clusters(clusters) = client::request(&cx.home, Request::ClusterList, Otherwise::Disk, cx.out)? else {
        return Err(client::unexpected());
    };
    let found = clusters.iter().find(|cluster| cluster.alias == alias).and_then(|cluster| cluster.cluster);
    let id = found.ok_or_else(|| {
        Failure::new(Kind::NotConfigured, format!("there is no cluster {alias} here"))
            .hint("see which there are: malai cluster list")
    })?;
    let token = Token::for_relay(id, alias.to_owned()).to_token();
    if cx.out.json {
        cx.out.document(&serde_json::json!({ "token": token }))?;
    } else {
        cx.out.row(&token)?;
    }
    cx.out.hint("on the relay's host: malai relay init TOKEN --url https://HOST:7443");
    Ok(0)
}

//! `malai cluster invite`.

use std::time::Duration;

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::invite::Invite as Token;
use malai_protocol::local::{ClusterInvite, Invited, Request};

use crate::commands::Context;
use crate::{duration, timestamp};

/// Make an invite: a token that lets a machine join
///
/// Prints the token, alone, on standard output. Anyone who has it can join, until it is used up or expires.
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
    /// How long it is valid
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, default_value = "1h")]
    expires: Duration,
    /// A group that the newcomer becomes a member of. May be repeated
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    /// The user that commands run as there; default: `username` of `[defaults]`, else the account of the newcomer's daemon,
    /// but never root
    #[arg(long, value_name = "USER")]
    username: Option<String>,
    /// Make a token for a relay's host: it names the cluster, holds no secret, and lets no machine in
    #[arg(long, conflicts_with_all = ["name", "uses", "expires", "groups", "username"])]
    relay: bool,
}

impl Invite {
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        let Self { cluster, name, uses, expires, groups, username, relay } = self;
        if relay {
            return for_relay(cx, &cluster);
        }
        let is_named = username.is_some();
        // Never shorter than asked for, and never zero.
        let expires_s = duration::millis(expires).div_ceil(1000);
        let request = Request::ClusterInvite(ClusterInvite { cluster, name, uses, expires_s, groups, username });
        let invited = ask!(cx, Disk, request => Invited);
        let Invited { id, token, expires_ms, join_addresses } = &invited;
        if cx.out.json {
            cx.out.document(&invited)?;
        } else {
            cx.out.row(token)?;
        }
        cx.out.note(&format!("invite {id}, expires {}", timestamp::utc(*expires_ms)));
        if join_addresses.is_empty() {
            cx.out.note("no daemon runs here, so no machine can join yet");
            cx.out.hint("start one: malai daemon");
        } else {
            cx.out.note(&format!("newcomers reach this machine at {}", join_addresses.join(", ")));
        }
        if !is_named {
            cx.out.note(
                "no --username: commands run as `username` of [defaults]; without that, as the account of the newcomer's \
                 daemon, and a daemon that is root refuses them",
            );
        }
        cx.out.hint("on the newcomer: malai machine join TOKEN; malai daemon");
        Ok(0)
    }
}

/// Prints the token for a relay. It holds what every machine of the cluster knows anyway.
fn for_relay(cx: &Context, alias: &str) -> Result<u8, Failure> {
    let clusters = ask!(cx, Disk, Request::ClusterList => Clusters);
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

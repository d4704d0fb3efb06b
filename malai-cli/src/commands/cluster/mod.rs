//! `malai cluster`.

mod approve;
mod init;
mod invite;
mod invites;
mod list;
mod pending;
mod remove;
mod revoke;

use malai_protocol::failure::Failure;
use malai_protocol::local::{Changed, Request};

use super::{Context, publication};

/// Make clusters, and let machines in and out
#[derive(Debug, clap::Args)]
pub(crate) struct Cluster {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Init(init::Init),
    List(list::List),
    Invite(invite::Invite),
    Invites(invites::Invites),
    Revoke(revoke::Revoke),
    Pending(pending::Pending),
    Approve(approve::Approve),
    Remove(remove::Remove),
}

impl Cluster {
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        match self.what {
            What::Init(init) => init.run(cx),
            What::List(list) => list.run(cx),
            What::Invite(invite) => invite.run(cx),
            What::Invites(invites) => invites.run(cx),
            What::Revoke(revoke) => revoke.run(cx),
            What::Pending(pending) => pending.run(cx),
            What::Approve(approve) => approve.run(cx),
            What::Remove(remove) => remove.run(cx),
        }
    }
}

/// Makes a change to the machines of a cluster, and shows what came of it.
fn change(cx: &Context, cluster: &str, request: Request, done: &str) -> Result<Changed, Failure> {
    let changed = ask!(cx, Disk, request => Changed);
    if cx.out.json {
        cx.out.document(&changed)?;
    }
    let Changed { machine, id, publication, warning, .. } = &changed;
    cx.out.note(&format!("{machine}.{cluster} {done}, id52 {id}"));
    warning.iter().for_each(|words| cx.out.note(&format!("warning: {words}")));
    publication::show(cx.out, cluster, publication);
    Ok(changed)
}

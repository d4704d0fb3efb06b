//! `malai machine join`.

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::local::{Joined, Request};

use crate::commands::Context;
use crate::commands::token::read_token;

/// Join a cluster by invite
#[derive(Debug, clap::Args)]
pub(super) struct Join {
    /// The token that `malai cluster invite` printed; `-` reads it from standard input
    #[arg(env = "MALAI_INVITE", hide_env_values = true)]
    token: String,
    /// The cluster's name on this machine; default: its own name
    #[arg(long)]
    alias: Option<String>,
}

impl Join {
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        let (token, invite) = read_token(self.token, "make one on the manager: malai cluster invite company")?;
        if !invite.lets_in() {
            let message = format!("this token is for a relay of {}; no machine can join with it", invite.name);
            let hint = format!("make one on the manager: malai cluster invite {}, without --relay", invite.name);
            return Err(Failure::new(Kind::Usage, message).hint(hint));
        }
        let request = Request::MachineJoin { token, alias: self.alias };
        let joined = ask!(cx, Agent, request => Joined);
        if cx.out.json {
            cx.out.document(&joined)?;
        }
        let Joined { alias, machine, machine_id, generation, account, .. } = &joined;
        cx.out.note(&format!("joined {alias} as {machine}.{alias}, id52 {machine_id}, generation {generation}"));
        if let Some(why) = account {
            cx.out.note(&format!("warning: no command will run on this machine: {}", why.message));
            why.hint.iter().for_each(|hint| cx.out.hint(hint));
        }
        cx.out.hint("start a daemon here, so that other machines reach this one: malai daemon");
        Ok(0)
    }
}

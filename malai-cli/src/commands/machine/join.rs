//! `malai machine join`.

use std::io::Read;

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::invite::{Invite, MAX_TOKEN, TokenError};
use malai_protocol::local::{Joined, Request, Response};

use crate::client::{self, Otherwise};
use crate::commands::Context;
use crate::stdio::Descriptor;

/// Join a cluster by invite
#[derive(Debug, clap::Args)]
pub(super) struct Join {
    /// The token that `malai cluster invite` printed; `-` reads it from standard input
    #[arg(env = "MALAI_INVITE", hide_env_values = true)]
    token: String,
    /// What the cluster is called here; default: its name
    #[arg(long)]
    alias: Option<String>,
}

impl Join {
    /// # Errors
    /// What went wrong.
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        let token = if self.token == "-" { read_token()? } else { self.token };
        let token = token.trim().to_owned();
        let invite: Invite = token.parse().map_err(|e: TokenError| {
            Failure::new(Kind::Usage, e.to_string()).hint("make one on the manager: malai cluster invite company")
        })?;
        if !invite.lets_in() {
            let message = format!("this token is for the host of a relay of {}, and lets no machine in", invite.name);
            let hint = format!("make one on the manager: malai cluster invite {}, without --relay", invite.name);
            return Err(Failure::new(Kind::Usage, message).hint(hint));
        }
        let request = Request::MachineJoin { token, alias: self.alias };
        let Response::Joined(joined) = client::request(&cx.home, request, Otherwise::Agent, cx.out)? else {
            return Err(client::unexpected());
        };
        if cx.out.json {
            cx.out.document(&joined)?;
        }
        let Joined { alias, machine, machine_id, generation, account, .. } = &joined;
        cx.out.note(&format!("joined {alias} as {machine}.{alias}, id52 {machine_id}, generation {generation}"));
        if let Some(why) = account {
            cx.out.note(&format!("warning: no command will run on this machine: {}", why.message));
            why.hint.iter().for_each(|hint| cx.out.hint(hint));
        }
        cx.out.hint("to be reached by others, a daemon has to run here: malai daemon");
        Ok(0)
    }
}

/// The token on standard input.
///
/// # Errors
/// When it cannot be read.
pub(in crate::commands) fn read_token() -> Result<String, Failure> {
    let fail =
        |e: std::io::Error| Failure::new(Kind::Usage, format!("the token cannot be read from standard input: {e}"));
    let mut token = String::new();
    // One byte more than a token may have, so that a longer one is told from the longest.
    let most = MAX_TOKEN as u64 + 2;
    Descriptor::of(&std::io::stdin()).map_err(fail)?.take(most).read_to_string(&mut token).map_err(fail)?;
    Ok(token)
}

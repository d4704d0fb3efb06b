//! `malai can`.

use std::ffi::OsString;

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::local::{Can as Asked, Request, Response};
use malai_protocol::target::Target;

use super::Context;
use crate::client::{self, Otherwise};

/// Explain whether a machine may run a command on a target
///
/// The answer comes from the config held here, by the code that the target decides with. Exits with 0 when it is
/// allowed, with 1 when not.
#[derive(Debug, clap::Args)]
#[command(override_usage = "malai can [OPTIONS] <WHO> <TARGET> [--] [ARGV]...")]
pub(crate) struct Can {
    /// The machine that would call, by its name
    who: String,
    /// The machine: web01.company, or deploy@web01.company
    target: String,
}

impl Can {
    /// # Errors
    /// Why there is no answer.
    pub(super) fn run(self, cx: &Context, literal: bool, words: Vec<OsString>) -> Result<u8, Failure> {
        let Target { user, machine, cluster } = self.target.parse()?;
        let not_text = |word: OsString| {
            Failure::new(Kind::Usage, format!("`{}` is not UTF-8, and cannot be asked about", word.display()))
        };
        let words = words.into_iter().map(|w| w.into_string().map_err(not_text)).collect::<Result<_, _>>()?;
        let asked = Asked { who: self.who, machine, cluster, user, words, literal };
        let Response::Verdict(verdict) = client::request(&cx.home, Request::Can(asked), Otherwise::Disk, cx.out)?
        else {
            return Err(client::unexpected());
        };
        if cx.out.json {
            cx.out.document(&verdict)?;
        } else {
            cx.out.row(if verdict.allowed { "allowed" } else { "denied" })?;
            verdict.steps.iter().try_for_each(|step| cx.out.row(&format!("  {step}")))?;
        }
        verdict.hint.iter().for_each(|hint| cx.out.hint(hint));
        Ok(u8::from(!verdict.allowed))
    }
}

//! `malai can`.

use std::ffi::OsString;

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::local::{Can as Asked, Request};
use malai_protocol::target::Target;

use super::Context;

/// Explain whether a machine may run a command on a target
///
/// The answer comes from the config that this machine holds, by the same code that decides on the target. Exits with 0 when
/// it is allowed, else with 1.
#[derive(Debug, clap::Args)]
#[command(override_usage = "malai can [OPTIONS] <WHO> <TARGET> [--] [ARGV]...")]
pub(crate) struct Can {
    /// The calling machine's name
    who: String,
    /// The machine: web01.company, or deploy@web01.company
    target: String,
}

impl Can {
    pub(super) fn run(self, cx: &Context, literal: bool, words: Vec<OsString>) -> Result<u8, Failure> {
        let Target { user, machine, cluster } = self.target.parse()?;
        let not_text = |word: OsString| {
            Failure::new(Kind::Usage, format!("cannot ask about `{}`: it is not UTF-8", word.display()))
        };
        let words = words.into_iter().map(|w| w.into_string().map_err(not_text)).collect::<Result<_, _>>()?;
        let asked = Asked { who: self.who, machine, cluster, user, words, literal };
        let verdict = ask!(cx, Disk, Request::Can(asked) => Verdict);
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

//! `malai agent`: what a CLI starts when no daemon runs here.

use malai_protocol::failure::Failure;

use super::Context;
use crate::service::daemon;

/// Call for this user while no daemon runs
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub(crate) struct Agent;

impl Agent {
    /// Runs until no request came for a while, or a daemon takes over.
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        daemon::serve_in_background(&cx.home, true)
    }
}

//! `malai agent`: what a CLI starts when no daemon runs here.

use malai_protocol::failure::Failure;

use super::{Context, daemon};
use crate::background;

/// Call for this user while no daemon runs
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub(crate) struct Agent;

impl Agent {
    /// Runs until nobody needed it for a while, or a daemon takes over.
    ///
    /// # Errors
    /// Why it could not run.
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        background::detach()?;
        daemon::serve_in_background(&cx.home, true)
    }
}

//! `malai machine`.

mod init;
mod join;
mod leave;

pub(super) use join::read_token;
use malai_protocol::failure::Failure;

use super::Context;

/// Have this machine join and leave clusters
#[derive(Debug, clap::Args)]
pub(crate) struct Machine {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Init(init::Init),
    Join(join::Join),
    Leave(leave::Leave),
}

impl Machine {
    /// # Errors
    /// What went wrong.
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        match self.what {
            What::Init(init) => init.run(cx),
            What::Join(join) => join.run(cx),
            What::Leave(leave) => leave.run(cx),
        }
    }
}

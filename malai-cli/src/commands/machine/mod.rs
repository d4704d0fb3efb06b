//! `malai machine`.

mod init;
mod join;
mod leave;

use malai_protocol::failure::Failure;

use super::Context;

/// Join and leave clusters with this machine
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
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        match self.what {
            What::Init(init) => init.run(cx),
            What::Join(join) => join.run(cx),
            What::Leave(leave) => leave.run(cx),
        }
    }
}

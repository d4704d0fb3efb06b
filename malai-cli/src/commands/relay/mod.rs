//! `malai relay`.

mod init;
mod run;
mod status;

use malai_protocol::failure::Failure;

use super::Context;

/// Run a relay for the machines of a cluster; its host need not be a machine of the cluster
#[derive(Debug, clap::Args)]
pub(crate) struct Relay {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Init(init::Init),
    Run(run::Run),
    Status(status::Status),
}

impl Relay {
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        match self.what {
            What::Init(init) => init.run(cx),
            What::Run(run) => run.run(cx),
            What::Status(status) => status.run(cx),
        }
    }
}

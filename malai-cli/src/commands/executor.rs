//! `malai executor`: what the daemon starts to own sessions.

use std::path::PathBuf;

use malai_daemon::runtime::logging::Log;
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::Home;

use super::Context;
use crate::{logging, service};

/// Own sessions for the daemon
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub(crate) struct Executor {
    /// The daemon's home
    #[arg(long)]
    home: PathBuf,
}

impl Executor {
    pub(super) fn run(self, _: &Context) -> Result<u8, Failure> {
        let home = Home::new(self.home);
        // Its standard descriptors are /dev/null. What is wrong with the filter the daemon has said.
        let log = Log::to_file(&home);
        logging::start(&log, logging::LOG_DEFAULT_FILTER);
        let ended = service::with_log(&log, || malai_daemon::executor::main(home, Some(log.clone())));
        service::flush(&log);
        ended.map(|()| 0).map_err(|e| Failure::new(Kind::Internal, format!("the executor failed: {e:#}")))
    }
}

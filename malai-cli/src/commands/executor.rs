//! `malai executor`: what the daemon starts to own sessions.

use std::ffi::OsString;
use std::path::PathBuf;

use malai_daemon::runtime::logging::Log;
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::Home;

use super::Context;
use super::daemon::{LOG_FLUSH_TIMEOUT, LastLines};
use crate::{background, logging};

/// Own sessions for the daemon
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub(crate) struct Executor {
    /// The daemon's home
    #[arg(long)]
    home: PathBuf,
}

impl Executor {
    /// Program and arguments that start an executor for this home.
    ///
    /// # Errors
    /// When it is not known where this program is.
    pub(super) fn program(home: &Home) -> Result<(PathBuf, Vec<OsString>), Failure> {
        Ok((background::program()?, vec!["executor".into(), "--home".into(), home.root().into()]))
    }

    /// # Errors
    /// Why it could not do its work.
    pub(super) fn run(self, _: &Context) -> Result<u8, Failure> {
        let home = Home::new(self.home);
        // Its standard descriptors are /dev/null. What is wrong with the filter the daemon has said.
        let log = Log::to_file(&home);
        logging::start(&log);
        let _last_lines = LastLines(&log);
        malai_daemon::runtime::duty::watch_panics();
        let ended = malai_daemon::executor::main(home, Some(log.clone()));
        log.flush(LOG_FLUSH_TIMEOUT);
        ended.map(|()| 0).map_err(|e| Failure::new(Kind::Internal, format!("the executor failed: {e:#}")))
    }
}

//! `malai executor`: what the daemon starts to own sessions.

use std::ffi::OsString;
use std::path::PathBuf;

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::Home;

use super::Context;
use crate::background;

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
        // Its standard descriptors are /dev/null. A log that cannot be written must not keep sessions from running.
        if let Ok(log) = background::open_log(&home) {
            background::log(std::sync::Mutex::new(log));
        }
        malai_daemon::duty::watch_panics();
        malai_daemon::executor::main(home)
            .map(|()| 0)
            .map_err(|e| Failure::new(Kind::Internal, format!("the executor failed: {e:#}")))
    }
}

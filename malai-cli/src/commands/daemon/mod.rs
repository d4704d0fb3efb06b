//! `malai daemon`.

mod status;
mod stop;

use malai_protocol::failure::{Failure, Kind};

use super::Context;
use crate::background::{Child, Report};
use crate::client;
use crate::service::daemon;

pub(super) use status::describe;

/// Run the daemon of all clusters of this home
///
/// Checks everything, goes to the background, and says when it is ready; its log is daemon.log in $MALAI_HOME.
///
/// MALAI_LOG sets what is logged: a level (off, error, warn, info, debug, trace), or parts of the program, each with its
/// level, such as warn,malai_daemon=debug. On SIGHUP the daemon opens its log again. On SIGTERM it ends; the next daemon
/// takes over its sessions.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Daemon {
    /// Stay in the foreground and log to standard error: for a service manager
    #[arg(long)]
    foreground: bool,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// End all sessions, then the daemon, and wait until it has ended
    Stop {
        /// Let the sessions go on: the next daemon takes them over
        #[arg(long)]
        keep_sessions: bool,
    },
    /// Replace the daemon by a new one in the background; the sessions go on
    ///
    /// If a service manager started it, use that: systemctl restart malai.
    Restart,
    /// Show whether a daemon is ready; exits with 0 if so, else with 1
    Status,
    /// What `malai daemon` starts
    #[command(hide = true)]
    Detached,
}

impl Daemon {
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        match self.what {
            None if self.foreground => Ok(daemon::serve_in_foreground(&cx.home, cx.out)),
            None => start(cx),
            Some(What::Stop { keep_sessions }) => stop::stop(cx, keep_sessions),
            Some(What::Restart) => {
                stop::leave_sessions(cx)?;
                start(cx)
            }
            Some(What::Status) => status::status(cx),
            Some(What::Detached) => daemon::serve_in_background(&cx.home, false),
        }
    }
}

/// Starts a detached daemon, and shows what it reports until it is ready.
fn start(cx: &Context) -> Result<u8, Failure> {
    client::block_on(async {
        let mut child = Child::start(&cx.home, &["daemon", "detached"])?;
        while let Some(report) = child.next().await {
            match report {
                Report::Warning(words) => cx.out.note(&format!("warning: {words}")),
                Report::Failed(failure) => return Err(failure),
                Report::Ready { pid } => {
                    cx.out.note(&format!("daemon ready, pid {pid}"));
                    if cx.out.json {
                        cx.out.document(&serde_json::json!({ "ready": true, "pid": pid }))?;
                    }
                    return Ok(0);
                }
            }
        }
        Err(Failure::new(Kind::Internal, "the daemon ended before it was ready")
            .hint(format!("see what it says: malai daemon --foreground, or {}", cx.home.log().display())))
    })
}

//! `malai relay run`.

use std::time::Duration;

use malai_daemon::relay::{ADDRESS_DISCOVERY_PORT, Options, Relay};
use malai_daemon::runtime::logging::Log;
use malai_protocol::failure::{Failure, Kind};
use sd_notify::NotifyState;
use tokio::time::timeout;

use crate::commands::Context;
use crate::commands::daemon::{LastLines, Said, Signals};
use crate::logging;

/// How long a shutdown may take before the process ends without it.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// Run the relay of this host, in the foreground: for a service manager
///
/// Checks everything, says when it is ready, and logs to standard error what MALAI_LOG says, as with malai daemon. SIGHUP
/// does not end it.
#[derive(Debug, clap::Args)]
pub(super) struct Run;

impl Run {
    /// # Errors
    /// Why it does not run.
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        let log = Log::to_stderr();
        // What is wrong with the filter is in that log.
        logging::start_relay(&log);
        let _last_lines = LastLines(&log);
        malai_daemon::runtime::secrecy::begin();
        malai_daemon::runtime::duty::watch_panics();
        let says = Said { log: &log, out: cx.out };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|e| Failure::new(Kind::Internal, format!("the event loop cannot start: {e}")))?;
        let outcome = runtime.block_on(serve(cx, &says));
        // The process ends next, and with it whoever has not said yet who it is.
        std::mem::forget(runtime);
        Ok(says.end(outcome))
    }
}

async fn serve(cx: &Context, says: &Said<'_>) -> Result<u8, Failure> {
    let cannot =
        |e: std::io::Error| Failure::new(Kind::Internal, format!("the relay cannot tell that it is ready: {e}"));
    let signals = Signals::listen().map_err(cannot)?;
    let options = Options { home: cx.home.clone(), address_discovery: ADDRESS_DISCOVERY_PORT };
    let mut relay = Relay::bind(options).await?;
    let watch = tokio::spawn(signals.follow(relay.stop_token(), says.log.clone()));
    says.note(&format!("relay ready at {}, pid {}", relay.address(), std::process::id()));
    let served = match sd_notify::notify(&[NotifyState::Ready]) {
        Ok(()) => relay.run().await,
        Err(e) => Err(cannot(e)),
    };
    if let Err(e) = sd_notify::notify(&[NotifyState::Stopping]) {
        tracing::warn!(error = %e, "the service manager cannot be told");
    }
    let shut = timeout(SHUTDOWN, relay.shutdown()).await;
    watch.abort();
    served?;
    shut.map(|()| 0).map_err(|_| {
        let message = format!("the shutdown took longer than {} s and was cut short", SHUTDOWN.as_secs());
        Failure::new(Kind::Internal, message)
    })
}

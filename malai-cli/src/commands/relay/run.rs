//! `malai relay run`.

use std::time::Duration;

use malai_daemon::relay::{ADDRESS_DISCOVERY_PORT, Options, Relay};
use malai_protocol::failure::{Failure, Kind};
use sd_notify::NotifyState;
use tokio::time::timeout;

use crate::background;
use crate::commands::Context;
use crate::commands::daemon::Stops;

/// How long a shutdown may take before the process ends without it.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// Run the relay of this host, in the foreground: for a service manager
///
/// Checks everything, says when it is ready, and logs to standard error.
#[derive(Debug, clap::Args)]
pub(super) struct Run;

impl Run {
    /// # Errors
    /// Why it does not run.
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        background::log_relay(std::io::stderr);
        malai_daemon::secrecy::begin();
        malai_daemon::duty::watch_panics();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|e| Failure::new(Kind::Internal, format!("the event loop cannot start: {e}")))?;
        let outcome = runtime.block_on(serve(cx));
        // The process ends next, and with it whoever has not said yet who it is.
        std::mem::forget(runtime);
        outcome
    }
}

async fn serve(cx: &Context) -> Result<u8, Failure> {
    let cannot =
        |e: std::io::Error| Failure::new(Kind::Internal, format!("the relay cannot tell that it is ready: {e}"));
    let signals = Stops::listen().map_err(cannot)?;
    let options = Options { home: cx.home.clone(), address_discovery: ADDRESS_DISCOVERY_PORT };
    let mut relay = Relay::bind(options).await?;
    let watch = tokio::spawn(signals.cancel(relay.stop_token()));
    cx.out.note(&format!("relay ready at {}, pid {}", relay.address(), std::process::id()));
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

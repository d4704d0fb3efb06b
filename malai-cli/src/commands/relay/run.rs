//! `malai relay run`.

use malai_daemon::relay::{ADDRESS_DISCOVERY_PORT, Options, Relay};
use malai_daemon::runtime::logging::Log;
use malai_protocol::failure::{Failure, Kind};
use sd_notify::NotifyState;

use crate::commands::Context;
use crate::logging;
use crate::service::{self, ForegroundVoice, ServiceSignals};

/// Run the relay of this host, in the foreground: for a service manager
///
/// Checks everything, says when it is ready, and logs to standard error what MALAI_LOG says, as with malai daemon. SIGHUP
/// does not end it.
#[derive(Debug, clap::Args)]
pub(super) struct Run;

impl Run {
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        let log = Log::to_stderr();
        // What is wrong with the filter is in that log.
        logging::start(&log, logging::LOG_RELAY_FILTER);
        let voice = ForegroundVoice { log: &log, out: cx.out };
        Ok(voice.end(service::run(&log, serve(cx, &voice))))
    }
}

async fn serve(cx: &Context, voice: &ForegroundVoice<'_>) -> Result<u8, Failure> {
    let cannot = |e: std::io::Error| Failure::new(Kind::Internal, format!("cannot report how the relay starts: {e}"));
    let signals = ServiceSignals::listen().map_err(cannot)?;
    let options = Options { home: cx.home.clone(), address_discovery: ADDRESS_DISCOVERY_PORT };
    let mut relay = Relay::bind(options).await?;
    let watch = tokio::spawn(signals.follow(relay.stop_token(), voice.log.clone()));
    voice.note(&format!("relay ready at {}, pid {}", relay.address(), std::process::id()));
    let served = match sd_notify::notify(&[NotifyState::Ready]) {
        Ok(()) => relay.run().await,
        Err(e) => Err(cannot(e)),
    };
    let shut = service::shut_down(relay.shutdown()).await;
    watch.abort();
    served?;
    shut.map(|()| 0)
}

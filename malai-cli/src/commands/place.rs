//! The session that a command is about, as it is typed.

use std::time::Duration;

use malai_protocol::failure::Failure;
use malai_protocol::id::MachineId;

use super::Context;
use crate::session::{self, SessionName, TypedSessionName};
use crate::{client, duration};

/// Holds `[TARGET] SESSION`.
#[derive(Debug, clap::Args)]
pub(super) struct SessionPlace {
    /// How long to wait for the machine's answer
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, default_value = "10s")]
    pub(super) connect_timeout: Duration,
    /// The machine; needed when SESSION is only an id
    target: Option<String>,
    /// The session: TARGET/ID as malai printed it; the first 4 digits of the id are enough
    pub(super) session: String,
}

impl SessionPlace {
    /// Reads what was typed.
    pub(super) fn typed(&self) -> Result<TypedSessionName, Failure> {
        TypedSessionName::parse(self.target.as_deref(), &self.session)
    }

    /// Asks the machine which session that is, and which machine owns it.
    ///
    /// # Errors
    /// When it cannot be asked, or has none or several that begin so.
    pub(super) async fn find(
        &self,
        cx: &Context,
        typed: &TypedSessionName,
    ) -> Result<(SessionName, Option<MachineId>), Failure> {
        let mut dialler = client::dialler(&cx.home, cx.out);
        typed.find(&session::list(&mut dialler, &typed.target, self.connect_timeout).await?)
    }
}

//! `malai wait`.

use std::time::Duration;

use malai_protocol::failure::Failure;
use malai_protocol::id::SessionId;
use malai_protocol::session::ExitRecord;
use serde::Serialize;

use super::Context;
use super::explain::explain;
use super::place::SessionPlace;
use crate::session::{self, WaitLimits};
use crate::{client, duration};

/// Wait until a session ends, and exit with its command's code
///
/// For another machine's session, this machine must be in the target's `allow_sessions` or `allow_control`.
#[derive(Debug, clap::Args)]
#[command(allow_missing_positional = true)]
pub(crate) struct Wait {
    /// After the connection is lost, how long to try to ask again
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, default_value = "10m")]
    lost_after: Duration,
    #[command(flatten)]
    place: SessionPlace,
}

/// Is the answer of `malai wait --json`.
#[derive(Serialize)]
struct Ended<'a> {
    session: String,
    target: String,
    id: SessionId,
    /// What `malai` exits with.
    code: u8,
    record: &'a ExitRecord,
}

impl Wait {
    /// Waits, and returns the command's exit code.
    ///
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        let typed = self.place.typed()?;
        let limits = WaitLimits::new(self.place.connect_timeout, self.lost_after);
        let (name, record) = client::block_on(async {
            let (name, owner) = self.place.find(cx, &typed).await?;
            let mut dialler = client::dialler(&cx.home, cx.out);
            let record = session::wait(&mut dialler, &name, owner, limits, |text| cx.out.note(text)).await?;
            Ok((name, record))
        })?;
        let (target, code) = (name.target.to_string(), record.exit_code());
        explain(cx.out, &target, &record, None, false);
        if cx.out.json {
            cx.out.document(&Ended { session: name.to_string(), target, id: name.id, code, record: &record })?;
        }
        Ok(code)
    }
}

//! What the programs that serve on hosts of the lab have in common: they say in one line of JSON that they are ready,
//! and end with their standard input, which the lab holds.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use serde_json::Value;
use tokio::io::AsyncReadExt as _;

/// The `main` of such a program: serves, and says on standard error under this name what went wrong.
pub fn main(name: &str, serve: impl Future<Output = Result<()>>) -> ExitCode {
    let served = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")
        .and_then(|runtime| runtime.block_on(serve));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to be told when standard error is closed.
            drop(writeln!(std::io::stderr(), "{name}: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Says that it is ready, and what the lab has to know.
///
/// # Errors
/// When standard output cannot be written.
pub fn ready(line: &Value) -> Result<()> {
    writeln!(std::io::stdout(), "{line}").context("cannot tell that it is ready")
}

/// Waits until the lab lets go.
///
/// # Errors
/// When standard input cannot be read.
pub async fn released() -> Result<()> {
    tokio::io::stdin().read_to_end(&mut Vec::new()).await.context("cannot read standard input")?;
    Ok(())
}

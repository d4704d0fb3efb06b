//! Runs what blocks beside the event loop.

use malai_protocol::failure::{Failure, Kind};

/// Runs disk work away from the tasks of the network.
///
/// # Errors
/// What the work says.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Failure::new(Kind::Internal, format!("the task ended early: {error}"))),
    }
}

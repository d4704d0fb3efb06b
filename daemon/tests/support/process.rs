//! What tests of the executor wait for.

use std::future::Future;
use std::time::Duration;

/// Waits, but not for ever: a test that hangs says where.
pub(crate) async fn within<F: Future>(what: &'static str, future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(30), future).await.unwrap_or_else(|_| panic!("never: {what}"))
}

/// Waits until `state` holds.
pub(crate) async fn until(what: &'static str, state: impl Fn() -> bool) {
    within(what, async {
        while !state() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// Whether this process lives: a zombie does not.
pub(crate) fn lives(pid: u32) -> bool {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    let stat = String::from_utf8_lossy(&stat).into_owned();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z') && !rest.starts_with('X'))
}

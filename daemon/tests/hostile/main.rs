//! Peers and local processes that break the rules: what they began ends, and everybody else is served.

#[path = "../support/mod.rs"]
mod support;

mod attach;
mod desk;
mod directory;
mod erase;
mod flood;
mod gone;
mod handshakes;
mod hearsay;
mod keys;
mod knock;
mod member;
mod pace;
mod pulls;
mod refused;
mod removed;
mod socket;
mod stranger;
mod twins;
mod undecided;
mod versions;
mod visit;

/// One wait for all of them.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_says_half_of_something_and_stops_is_ended_after_ten_seconds() -> anyhow::Result<()> {
    tokio::try_join!(member::late(), desk::late(), socket::late())?;
    Ok(())
}

//! An HTTP proxy on one of the lab's hosts.

use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::Result;

use super::disk::PROXY_PROGRAM;
use super::{Child, Cmd, Host};

/// How long it may take to be ready.
const DEADLINE: Duration = Duration::from_secs(20);
/// The port at which it listens.
const PORT: u16 = 3128;
/// What a client with the right name and password shows.
const AUTHORIZATION: &str = "Basic bGFiOnMzY3JldA==";

/// A running proxy that wants a name and a password; dropping it kills it.
#[derive(Debug)]
pub struct Proxy {
    at: SocketAddrV4,
    process: Child,
}

impl Proxy {
    /// The password in its URL.
    pub const PASSWORD: &str = "s3cret";

    /// Starts it on a host and waits until it is ready.
    ///
    /// # Errors
    ///
    /// When it does not start, or is not ready in time.
    pub fn start(host: &Host) -> Result<Self> {
        let at = SocketAddrV4::new(host.ip(), PORT);
        let process = host.spawn(Cmd::new([PROXY_PROGRAM, &at.to_string(), AUTHORIZATION]).stdin_open())?;
        process.wait_for_line("ready", DEADLINE)?;
        Ok(Self { at, process })
    }

    /// Where it listens.
    #[must_use]
    pub fn at(&self) -> SocketAddrV4 {
        self.at
    }

    /// Its URL, with this password.
    #[must_use]
    pub fn url(&self, password: &str) -> String {
        format!("http://lab:{password}@{}", self.at)
    }

    /// What it was asked for so far: status, method and target of each request.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        let lines = self.process.stdout();
        String::from_utf8_lossy(&lines).lines().skip(1).map(str::to_owned).collect()
    }
}

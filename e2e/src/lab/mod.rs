//! The lab: hosts, segments, wires and routers on one machine.
//!
//! ```no_run
//! use malai_e2e::lab::{Lab, Wire};
//!
//! # fn main() -> anyhow::Result<()> {
//! let lab = Lab::new("example")?;
//! let lan = lab.segment("lan")?;
//! let laptop = lab.host("laptop").on(&lan).boot()?;
//! let web01 = lab.host("web01").on(&lan).via(&Wire::delay_ms(25)).boot()?;
//! laptop.run(["ping", "-c", "1", &web01.ip().to_string()])?.success()?;
//! # Ok(())
//! # }
//! ```

mod account;
mod child;
mod command;
mod disk;
mod group;
mod host;
mod machine;
mod netns;
pub mod peers;
mod port;
mod proxy;
pub mod requirements;
mod router;
mod segment;
mod services;
mod stale;
mod traffic;
mod wait;
mod wire;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};

pub use child::{Arrival, Child};
pub use command::{Cmd, Output};
pub use host::{Host, HostBuilder};
pub use port::Family;
pub use proxy::Proxy;
pub use router::{Nat, Router, RouterBuilder};
pub use segment::Segment;
pub use services::Services;
pub use traffic::{Flow, Prefix};
pub use wait::{wait_for, wait_until};
pub use wire::Wire;

use netns::NetNs;

/// One topology. Labs share nothing, so that tests run side by side.
#[derive(Debug)]
pub struct Lab {
    shared: Arc<Shared>,
}

/// What the parts of one lab share; it goes with the last of them.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Unique on this machine: names directories and control groups.
    id: String,
    /// Where the hosts' disks are.
    directory: PathBuf,
    /// The namespace that holds every segment's bridge.
    switch: NetNs,
    names: AtomicU32,
}

impl Lab {
    /// An empty lab; `name` shows up in error messages and directory names.
    ///
    /// # Errors
    ///
    /// When this machine cannot make namespaces: see [`requirements::missing`].
    pub fn new(name: &str) -> Result<Self> {
        static LABS: AtomicU32 = AtomicU32::new(0);
        stale::clean_once();
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}{}-{number}-{name}", stale::PREFIX, std::process::id());
        let directory = std::env::temp_dir().join(&id);
        fs::create_dir(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let switch = NetNs::new().with_context(|| format!("cannot make the lab {name}"))?;
        let shared = Shared { id, directory, switch, names: AtomicU32::new(1) };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// A segment with private addresses (10.N.0.0/24). What is sent out of it, where no router leads on, is lost.
    ///
    /// # Errors
    ///
    /// When the bridge cannot be made.
    pub fn segment(&self, name: &str) -> Result<Segment> {
        let number = self.shared.next_name();
        Segment::new(&self.shared, name, [10, u8::try_from(number).context("too many segments")?, 0])
    }

    /// A segment with public addresses (198.51.N.0/24) that stands for the internet.
    ///
    /// # Errors
    ///
    /// When the bridge cannot be made.
    pub fn internet(&self) -> Result<Segment> {
        let number = self.shared.next_name();
        Segment::new(&self.shared, "internet", [198, 51, u8::try_from(number).context("too many segments")?])
    }

    /// Begins a host; [`HostBuilder::boot`] starts it.
    #[must_use]
    pub fn host(&self, name: &str) -> HostBuilder {
        HostBuilder::new(Arc::clone(&self.shared), name)
    }

    /// Begins a router; [`RouterBuilder::start`] starts it.
    #[must_use]
    pub fn router(&self, name: &str) -> RouterBuilder {
        RouterBuilder::new(Arc::clone(&self.shared), name)
    }
}

impl Shared {
    fn next_name(&self) -> u32 {
        self.names.fetch_add(1, Ordering::Relaxed)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            tracing::warn!(directory = %self.directory.display(), %error, "the lab's directory is left behind");
        }
    }
}

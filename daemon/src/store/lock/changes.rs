//! The lock under which files of clusters are changed.

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::Home;

use super::holder::holder;
use super::releases::Releases;
use super::{open, release, try_lock};
use crate::store::{self, disk_failure};

/// Bounds how long a change waits for another one: longer than any takes on a working disk.
const CHANGES_TIMEOUT: Duration = Duration::from_secs(5);

/// Is the right to change files of clusters, until it is dropped: for short work on the disk, and nothing else.
#[derive(Debug)]
#[must_use = "the lock is released when this is dropped"]
pub struct Changes {
    home: Home,
    pub(super) file: File,
}

impl Changes {
    /// Waits for the lock, at most 5 s. Blocks the thread.
    ///
    /// # Errors
    /// [`Kind::Busy`] when another change does not end, else what the disk says.
    pub fn begin(home: &Home) -> Result<Self, Failure> {
        store::prepare(home)?;
        let path = home.changes_lock();
        let fail = |e: io::Error| disk_failure("lock", &path, &e);
        let file = open(&path).map_err(fail)?;
        if !try_lock(&file).map_err(fail)? {
            let releases = Releases::watch(&path);
            let deadline = Instant::now() + CHANGES_TIMEOUT;
            while !try_lock(&file).map_err(fail)? {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    let message = "another malai command is changing the clusters and does not end";
                    return Err(Failure::new(Kind::Busy, message)
                        .hint(format!("see which process it is: fuser {}", path.display())));
                }
                releases.wait(left);
            }
        }
        Ok(Self { home: home.clone(), file })
    }

    /// Returns the home whose files may be changed.
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// Refuses when a daemon holds the home: it has in memory what would change on the disk. An agent reads the disk again.
    ///
    /// # Errors
    /// [`Kind::Conflict`] with the daemon's pid, else what the disk says.
    pub fn refuse_beside_a_daemon(&self) -> Result<(), Failure> {
        let path = self.home.lock();
        let fail = |e: io::Error| disk_failure("lock", &path, &e);
        let file = open(&path).map_err(fail)?;
        if try_lock(&file).map_err(fail)? {
            release(&file);
            return Ok(());
        }
        let holder = holder(&self.home);
        if holder.agent { Ok(()) } else { Err(holder.conflict(&self.home)) }
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        release(&self.file);
    }
}

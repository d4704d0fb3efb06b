//! Compares in memory what strangers show at the desk. A stranger that guesses invites must not hold up the manager's
//! lock, or make it load the cluster.
//!
//! The books are read again when their file has changed: every change, by any process, replaces the file. No lock is
//! needed for that, since the file is whole at any time. The books only ever serve to refuse. A newcomer that may
//! redeem an invite by them does so under the lock, by the file as it is then.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use malai_protocol::failure::Failure;
use malai_protocol::id::MachineId;
use parking_lot::Mutex;

use super::enrol::{for_newcomer, unknown_invite};
use super::invites::Invites;
use crate::store::disk_failure;

/// Sets how old a change has to be for its times to be trusted: the clock of a file system ticks every few
/// milliseconds, so a file that changed just now may change once more with the same times.
const STAMP_CERTAIN_AFTER: Duration = Duration::from_millis(200);

/// Holds the books of one cluster, as they were read last.
#[derive(Debug)]
pub(crate) struct Shown {
    path: PathBuf,
    read: Mutex<Option<Read>>,
}

#[derive(Debug)]
struct Read {
    stamp: Stamp,
    /// Says that every change since the stamp was taken shows in another stamp.
    certain: bool,
    invites: Arc<Invites>,
}

/// Distinguishes one state of a file from another; `None` where there is no file.
type Stamp = Option<[i64; 7]>;

/// Says what the books have about an invite that is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// The invite may be redeemed.
    May,
    /// Its holder is in the cluster already.
    IsMember,
}

impl Shown {
    /// Compares with the books in this file.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, read: Mutex::default() }
    }

    /// Looks up the invite with this secret, shown by this key. Blocks on the disk.
    ///
    /// # Errors
    /// The refusal, the same as [`crate::admin::manager::Manager::redeem`] has.
    pub(crate) fn look(
        &self,
        secret: &[u8; 32],
        key: &MachineId,
        is_member: bool,
        now_ms: u64,
    ) -> Result<Look, Failure> {
        let invites = self.current(now_ms).map_err(for_newcomer)?;
        let promise = invites.get(secret).filter(|promise| !promise.is_forgotten(now_ms)).ok_or_else(unknown_invite)?;
        // Whether it has ended hangs on what is signed.
        if promise.ends_with.is_some() {
            return Ok(Look::May);
        }
        if is_member {
            return Ok(Look::IsMember);
        }
        if !promise.redeemed.contains_key(key) {
            promise.refuse_newcomer(now_ms)?;
        }
        Ok(Look::May)
    }

    fn current(&self, now_ms: u64) -> Result<Arc<Invites>, Failure> {
        let mut read = self.read.lock();
        let fail = |e: io::Error| disk_failure("look at", &self.path, &e);
        let stamp = stamp(&self.path).map_err(fail)?;
        if let Some(read) = read.as_ref()
            && read.certain
            && read.stamp == stamp
        {
            return Ok(Arc::clone(&read.invites));
        }
        let certain = is_certain(stamp, SystemTime::now());
        let invites = Arc::new(Invites::load(&self.path, now_ms)?);
        *read = Some(Read { stamp, certain, invites: Arc::clone(&invites) });
        Ok(invites)
    }
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    let meta = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        meta => meta?,
    };
    let [device, inode, length] = [meta.dev(), meta.ino(), meta.len()].map(u64::cast_signed);
    Ok(Some([device, inode, length, meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()]))
}

/// Says whether a file that is changed from now on gets another stamp than this one.
fn is_certain(stamp: Stamp, now: SystemTime) -> bool {
    let Some([.., seconds, nanoseconds]) = stamp else { return true };
    let (Ok(seconds), Ok(nanoseconds)) = (u64::try_from(seconds), u32::try_from(nanoseconds)) else { return false };
    let changed = UNIX_EPOCH + Duration::new(seconds, nanoseconds);
    now.duration_since(changed).is_ok_and(|since| since >= STAMP_CERTAIN_AFTER)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use malai_protocol::failure::Kind;

    use super::super::invites::{Binding, Promise};
    use super::*;
    use crate::admin::manager::tests::machine;

    const HOUR_MS: u64 = 3_600_000;

    fn books(path: &Path, of: &[([u8; 32], Promise)]) {
        let mut books = Invites::default();
        for (secret, promise) in of {
            books.add(secret, promise.clone()).expect("room");
        }
        books.save(path).expect("written");
    }

    #[test]
    fn an_invite_is_known_from_the_moment_it_is_in_the_file_and_unknown_when_it_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("invites");
        let shown = Shown::new(path.clone());
        let key = machine();
        // As fast as it goes: the times of the file are the same for some of these.
        for number in 0..200u8 {
            let secret = [number; 32];
            assert_eq!(shown.look(&secret, &key, false, 1).expect_err("not there yet").kind, Kind::Denied);
            books(&path, &[(secret, Promise::new(1, HOUR_MS))]);
            assert_eq!(shown.look(&secret, &key, false, 1), Ok(Look::May));
        }
        fs::remove_file(&path).expect("removed");
        assert_eq!(shown.look(&[199; 32], &key, false, 1), Err(unknown_invite()));
    }

    #[test]
    fn the_file_is_read_once_for_any_number_of_guesses() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("invites");
        books(&path, &[([1; 32], Promise::new(1, HOUR_MS))]);
        std::thread::sleep(2 * STAMP_CERTAIN_AFTER);
        let shown = Shown::new(path);
        let first = shown.current(1).expect("reads");
        for _ in 0..1000 {
            assert_eq!(shown.look(&[9; 32], &machine(), false, 1), Err(unknown_invite()));
        }
        assert!(Arc::ptr_eq(&first, &shown.current(1).expect("reads")));
    }

    #[test]
    fn what_is_used_up_expired_or_long_forgotten_is_refused_as_the_manager_does() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("invites");
        let (bound, other) = (machine(), machine());
        let binding = |enrolled| Binding { name: "web01".into(), enrolled, at_ms: None };
        let used = Promise { redeemed: BTreeMap::from([(bound, binding(false))]), ..Promise::new(0, HOUR_MS) };
        let ending = Promise { ends_with: Some(other), ..Promise::new(1, HOUR_MS) };
        books(&path, &[([1; 32], used), ([2; 32], Promise::new(1, HOUR_MS)), ([3; 32], ending)]);
        let shown = Shown::new(path);
        let refused = shown.look(&[1; 32], &other, false, 1).expect_err("used up");
        assert!(refused.message.contains("by another machine"), "{refused}");
        assert_eq!(shown.look(&[1; 32], &bound, false, 1), Ok(Look::May), "a lost reply does not burn it");
        assert_eq!(shown.look(&[1; 32], &bound, true, 1), Ok(Look::IsMember));
        let refused = shown.look(&[2; 32], &other, false, HOUR_MS).expect_err("expired");
        assert!(refused.message.contains("has expired"), "{refused}");
        assert_eq!(shown.look(&[2; 32], &other, false, 48 * HOUR_MS), Err(unknown_invite()));
        assert_eq!(shown.look(&[3; 32], &other, true, 1), Ok(Look::May), "what is signed decides");
    }
}

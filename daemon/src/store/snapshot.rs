//! Stores the last accepted snapshot, as CBOR of [`Signed`]. What is read is verified again: a disk is not trusted more
//! than a peer. A [`Place`] has its [`reserve`] as well, for a disk that is full.

use std::fs;
use std::path::{Path, PathBuf};

use malai_protocol::codec::MAX_SNAPSHOT;
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::ClusterId;
use malai_protocol::snapshot::{Header, Order, Signed, Snapshot, SnapshotError, order};

use super::{disk_failure, reserve};

/// Names the two files that one cluster's snapshot may be in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Is the snapshot's own file.
    pub file: PathBuf,
    /// Is the file that it goes into when the disk is full.
    pub reserve: PathBuf,
}

/// Holds what is found in a [`Place`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Is the newest snapshot that verifies, in either file.
    pub newest: Option<Snapshot>,
    /// Is the header of the one in its own file.
    pub filed: Option<Header>,
}

impl Place {
    /// Finds the newest snapshot. When the file is damaged, the one in the reserve counts, unless the file's header still
    /// shows that the file had a later one.
    ///
    /// # Errors
    /// As [`load()`].
    pub fn load(&self, cluster: &ClusterId) -> Result<Found, Failure> {
        let reserved = reserve::load(&self.reserve, cluster);
        let newer = |than: Option<&Header>| {
            reserved.as_ref().is_some_and(|reserved| order(reserved.header(), than) == Order::Newer)
        };
        match load(&self.file, cluster) {
            Ok(stored) => {
                let filed = stored.as_ref().map(|stored| *stored.header());
                let newest = if newer(filed.as_ref()) { reserved } else { stored };
                Ok(Found { newest, filed })
            }
            Err(failure) if failure.kind == Kind::BadConfig && newer(self.shown(cluster).as_ref()) => {
                tracing::error!("{failure}; the one in {} counts", self.reserve.display());
                Ok(Found { newest: reserved, filed: None })
            }
            Err(failure) => Err(failure),
        }
    }

    /// Says whether this snapshot, or a later one, is in its own file.
    pub fn has(&self, snapshot: &Snapshot) -> bool {
        let there = load(&self.file, &snapshot.header().cluster).ok().flatten();
        there.is_some_and(|there| matches!(order(snapshot.header(), Some(there.header())), Order::Same | Order::Older))
    }

    /// Stores a verified snapshot in its own file, unless that or a later one is there. A file that is damaged is set
    /// aside first, as the trace of what happened; that of another cluster, which took this one's place, stays.
    ///
    /// # Errors
    /// What the disk says; [`Kind::BadConfig`] when the place is another cluster's.
    pub fn save(&self, snapshot: &Snapshot) -> Result<(), Failure> {
        if self.has(snapshot) {
            return Ok(());
        }
        match load(&self.file, &snapshot.header().cluster) {
            Err(failure) if failure.kind == Kind::BadConfig && self.is_of_another(&snapshot.header().cluster) => {
                return Err(failure);
            }
            Err(failure) if failure.kind == Kind::BadConfig => {
                let mut aside = self.file.clone().into_os_string();
                aside.push(".broken");
                tracing::error!("{failure}; it is kept as {}", aside.display());
                fs::rename(&self.file, &aside).map_err(|e| disk_failure("set aside", &self.file, &e))?;
            }
            Ok(_) | Err(_) => {}
        }
        save(&self.file, snapshot)
    }

    /// Stores a verified snapshot in the reserve.
    ///
    /// # Errors
    /// As [`reserve::save`].
    pub fn save_in_reserve(&self, snapshot: &Snapshot) -> Result<(), Failure> {
        reserve::save(&self.reserve, snapshot)
    }

    /// Empties the reserve, since this snapshot is in its own file, and makes it ready for the next one.
    ///
    /// # Errors
    /// As [`reserve::prepare`].
    pub fn prepare_reserve(&self, stored: &Snapshot) -> Result<(), Failure> {
        reserve::prepare(&self.reserve, encode(stored)?.len())
    }

    /// Says whether the file has a whole snapshot of another cluster.
    fn is_of_another(&self, cluster: &ClusterId) -> bool {
        let verified_for = |cluster: &ClusterId| {
            let bytes = super::read(&self.file, MAX_SNAPSHOT).ok()??;
            Some(decode(&self.file, &bytes).ok()?.verify(cluster))
        };
        match verified_for(cluster) {
            Some(Err(SnapshotError::OtherCluster(other))) => matches!(verified_for(&other), Some(Ok(_))),
            _ => false,
        }
    }

    /// Reads the header of a file that does not verify as a whole.
    fn shown(&self, cluster: &ClusterId) -> Option<Header> {
        let bytes = super::read(&self.file, MAX_SNAPSHOT).ok()??;
        decode(&self.file, &bytes).ok()?.signed.verify(cluster).ok()
    }
}

/// Reads the snapshot in this file; `None` when there is none.
///
/// # Errors
/// [`Kind::BadConfig`] when it is damaged or not signed by `cluster`: it is reported and left as it is, since it may be
/// the only trace of what happened.
pub fn load(path: &Path, cluster: &ClusterId) -> Result<Option<Snapshot>, Failure> {
    super::read(path, MAX_SNAPSHOT)?.map(|bytes| verified(path, &bytes, cluster)).transpose()
}

/// Stores a verified snapshot in place of what is there.
///
/// # Errors
/// What the disk says.
pub fn save(path: &Path, snapshot: &Snapshot) -> Result<(), Failure> {
    super::write(path, &encode(snapshot)?)
}

/// Stores a verified snapshot if it is newer than what is there, and returns the order of the two: only [`Order::Newer`] was
/// stored.
///
/// # Errors
/// As [`load`] and [`save`]: what cannot be compared is not replaced.
pub fn save_newer(path: &Path, snapshot: &Snapshot) -> Result<Order, Failure> {
    let held = load(path, &snapshot.header().cluster)?;
    let found = order(snapshot.header(), held.as_ref().map(Snapshot::header));
    if found == Order::Newer {
        save(path, snapshot)?;
    }
    Ok(found)
}

/// Returns the bytes of a snapshot as they are stored.
pub(super) fn encode(snapshot: &Snapshot) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    ciborium::into_writer(&snapshot.to_signed(), &mut bytes)
        .map_err(|e| Failure::new(Kind::Internal, format!("a snapshot does not encode: {e}")))?;
    Ok(bytes)
}

/// Decodes and verifies the bytes of a file.
pub(super) fn verified(path: &Path, bytes: &[u8], cluster: &ClusterId) -> Result<Snapshot, Failure> {
    decode(path, bytes)?.verify(cluster).map_err(|e| broken(path, &e.to_string()))
}

fn decode(path: &Path, bytes: &[u8]) -> Result<Signed, Failure> {
    let mut rest = bytes;
    let signed = ciborium::de::from_reader_with_recursion_limit(&mut rest, 16)
        .map_err(|_| broken(path, "it does not decode"))?;
    if rest.is_empty() { Ok(signed) } else { Err(broken(path, "extra bytes follow its end")) }
}

fn broken(path: &Path, why: &str) -> Failure {
    let shown = path.display();
    Failure::new(Kind::BadConfig, format!("the stored snapshot {shown} is broken: {why}"))
        .hint(format!("keep it for later inspection, and go on without it: mv {shown} {shown}.broken"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::keys::ClusterKey;

    #[test]
    fn a_stored_snapshot_is_verified_when_it_is_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("snapshot");
        let key = ClusterKey::generate().expect("randomness");
        let snapshot = key.sign(5, 1, "[cluster]\n".into()).expect("signs");
        save(&path, &snapshot).expect("stored");
        assert_eq!(load(&path, &key.id()).expect("reads"), Some(snapshot));
        let other = ClusterKey::generate().expect("randomness");
        assert!(load(&path, &other.id()).expect_err("another key").message.contains("another cluster"));
    }

    #[test]
    fn a_damaged_snapshot_is_reported_and_not_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("snapshot");
        let key = ClusterKey::generate().expect("randomness");
        let snapshot = key.sign(5, 1, "[cluster]\n".into()).expect("signs");
        save(&path, &snapshot).expect("stored");
        let whole = std::fs::read(&path).expect("reads");
        for (damaged, why) in [
            (whole[..whole.len() - 1].to_vec(), "does not decode"),
            ([&whole[..], b"x"].concat(), "extra bytes"),
            ([&whole[..whole.len() - 2], b"?\n"].concat(), "differs from the signed one"),
            (Vec::new(), "does not decode"),
        ] {
            std::fs::write(&path, &damaged).expect("damaged");
            assert!(load(&path, &key.id()).expect_err("broken").message.contains(why));
            let newer = key.sign(6, 1, String::new()).expect("signs");
            assert_eq!(save_newer(&path, &newer).expect_err("broken").kind, Kind::BadConfig);
            assert_eq!(std::fs::read(&path).expect("still there"), damaged);
        }
    }

    struct Lab {
        _dir: tempfile::TempDir,
        key: ClusterKey,
        place: Place,
    }

    impl Lab {
        /// A place with this generation in the file, and that one in the reserve.
        fn with(filed: u64, reserved: u64) -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            let place = Place { file: dir.path().join("snapshot"), reserve: dir.path().join("snapshot.reserve") };
            let lab = Self { key: ClusterKey::generate().expect("randomness"), place, _dir: dir };
            lab.place.save(&lab.sign(filed)).expect("stored");
            lab.place.prepare_reserve(&lab.sign(filed)).expect("prepared");
            if reserved > 0 {
                lab.place.save_in_reserve(&lab.sign(reserved)).expect("stored");
            }
            lab
        }

        fn sign(&self, generation: u64) -> Snapshot {
            self.key.sign(generation, 1, format!("# {generation}\n")).expect("signs")
        }

        fn found(&self) -> Result<(Option<u64>, Option<u64>), Failure> {
            let found = self.place.load(&self.key.id())?;
            Ok((found.newest.map(|newest| newest.header().generation), found.filed.map(|filed| filed.generation)))
        }

        fn damage(&self, keep: impl FnOnce(&mut Vec<u8>)) {
            let mut bytes = fs::read(&self.place.file).expect("reads");
            keep(&mut bytes);
            fs::write(&self.place.file, bytes).expect("damaged");
        }
    }

    #[test]
    fn the_newest_counts_wherever_it_is() {
        for (filed, reserved, newest) in [(5, 0, 5), (5, 6, 6), (5, 4, 5), (5, 5, 5)] {
            assert_eq!(Lab::with(filed, reserved).found().expect("reads"), (Some(newest), Some(filed)));
        }
        let lab = Lab::with(5, 6);
        fs::remove_file(&lab.place.file).expect("removed");
        assert_eq!(lab.found().expect("reads"), (Some(6), None));
    }

    #[test]
    fn a_damaged_file_is_followed_by_the_reserve_only_where_that_is_not_known_to_be_older() {
        type Damage = fn(&mut Vec<u8>);
        let last: Damage = |bytes| bytes.iter_mut().next_back().into_iter().for_each(|last| *last = !*last);
        let most: Damage = |bytes| bytes.truncate(20);
        let table =
            [(5, 0, last, None), (5, 6, last, Some(6)), (5, 4, last, None), (5, 5, last, None), (5, 6, most, Some(6))];
        for (filed, reserved, damage, newest) in table {
            let lab = Lab::with(filed, reserved);
            lab.damage(damage);
            let found = lab.found();
            match newest {
                Some(newest) => assert_eq!(found.expect("the reserve is whole"), (Some(newest), None)),
                None => assert_eq!(found.expect_err("nothing newer is known").kind, Kind::BadConfig),
            }
        }
    }

    #[test]
    fn a_damaged_file_is_set_aside_before_another_takes_its_name() {
        let lab = Lab::with(5, 6);
        lab.damage(|bytes| bytes.truncate(20));
        let damaged = fs::read(&lab.place.file).expect("reads");
        lab.place.save(&lab.sign(6)).expect("stored");
        assert_eq!(lab.found().expect("reads"), (Some(6), Some(6)));
        assert_eq!(fs::read(lab.place.file.with_extension("broken")).expect("is kept"), damaged);
    }

    #[test]
    fn the_snapshot_of_another_cluster_that_took_the_place_stays() {
        let (lab, other) = (Lab::with(5, 0), Lab::with(7, 0));
        fs::copy(&other.place.file, &lab.place.file).expect("copied");
        assert_eq!(lab.place.save(&lab.sign(6)).expect_err("it is another's").kind, Kind::BadConfig);
        assert_eq!(load(&lab.place.file, &other.key.id()).expect("reads"), Some(other.sign(7)));
        assert!(!lab.place.file.with_extension("broken").exists());
    }

    #[test]
    fn a_later_snapshot_in_the_file_stays() {
        let lab = Lab::with(5, 0);
        for (generation, left) in [(4, 5), (5, 5), (6, 6)] {
            lab.place.save(&lab.sign(generation)).expect("stored");
            assert_eq!(lab.found().expect("reads"), (Some(left), Some(left)));
        }
    }

    #[test]
    fn only_a_newer_snapshot_is_stored() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("snapshot");
        let key = ClusterKey::generate().expect("randomness");
        let sign = |generation, text: &str| key.sign(generation, 1, text.into()).expect("signs");
        let table = [
            (5, "a", Order::Newer),
            (5, "a", Order::Same),
            (5, "b", Order::Fork),
            (4, "c", Order::Older),
            (7, "d", Order::Newer),
        ];
        for (generation, text, wanted) in table {
            assert_eq!(save_newer(&path, &sign(generation, text)).expect("compares"), wanted);
        }
        assert_eq!(load(&path, &key.id()).expect("reads"), Some(sign(7, "d")));
    }
}

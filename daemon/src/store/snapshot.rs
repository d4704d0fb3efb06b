//! The last accepted signed snapshot, as CBOR of [`Signed`]. What is read is verified again: a disk is not trusted
//! more than a peer.

use std::path::Path;

use malai_protocol::codec::MAX_SNAPSHOT;
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::ClusterId;
use malai_protocol::snapshot::{Order, Signed, Snapshot, order};

/// The snapshot in this file, `None` when there is none.
///
/// # Errors
/// [`Kind::BadConfig`] when it is damaged or not signed by `cluster`: it is reported and left as it is, since it may be
/// the only trace of what happened.
pub fn load(path: &Path, cluster: &ClusterId) -> Result<Option<Snapshot>, Failure> {
    let Some(bytes) = super::read(path, MAX_SNAPSHOT)? else { return Ok(None) };
    let signed = decode(path, &bytes)?;
    signed.verify(cluster).map(Some).map_err(|e| broken(path, &e.to_string()))
}

/// Stores a verified snapshot in place of whatever is there.
///
/// # Errors
/// What the disk says.
pub fn save(path: &Path, snapshot: &Snapshot) -> Result<(), Failure> {
    let mut bytes = Vec::new();
    ciborium::into_writer(&snapshot.to_signed(), &mut bytes)
        .map_err(|e| Failure::new(Kind::Internal, format!("a snapshot does not encode: {e}")))?;
    super::write(path, &bytes)
}

/// Stores a verified snapshot if it is newer than what is there, and tells how the two stand: only [`Order::Newer`]
/// was stored.
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

fn decode(path: &Path, bytes: &[u8]) -> Result<Signed, Failure> {
    let mut rest = bytes;
    let signed = ciborium::de::from_reader_with_recursion_limit(&mut rest, 16)
        .map_err(|_| broken(path, "it does not decode"))?;
    if rest.is_empty() { Ok(signed) } else { Err(broken(path, "bytes follow its end")) }
}

fn broken(path: &Path, why: &str) -> Failure {
    let shown = path.display();
    Failure::new(Kind::BadConfig, format!("the stored snapshot {shown} is broken: {why}"))
        .hint(format!("keep it for the inquiry and go on without it: mv {shown} {shown}.broken"))
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
            ([&whole[..], b"x"].concat(), "bytes follow"),
            ([&whole[..whole.len() - 2], b"?\n"].concat(), "not the one that was signed"),
            (Vec::new(), "does not decode"),
        ] {
            std::fs::write(&path, &damaged).expect("damaged");
            assert!(load(&path, &key.id()).expect_err("broken").message.contains(why));
            let newer = key.sign(6, 1, String::new()).expect("signs");
            assert_eq!(save_newer(&path, &newer).expect_err("broken").kind, Kind::BadConfig);
            assert_eq!(std::fs::read(&path).expect("still there"), damaged);
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

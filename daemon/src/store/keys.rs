//! Keeps secret keys on disk: 64 lowercase hexadecimal digits and a newline, the 32 bytes of an ed25519 seed (RFC 8032).
//!
//! A key file is made once, with mode 0600, and never overwritten. One that others can read is refused, since it may
//! no longer be a secret.

use std::fmt;
use std::fs::{Metadata, OpenOptions};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use data_encoding::HEXLOWER;
use ed25519_dalek::SigningKey;
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::{ClusterId, MachineId};
use malai_protocol::snapshot::Snapshot;
use malai_protocol::ticket::Ticket;
use zeroize::Zeroizing;

use super::disk_failure;
use super::owners::Trusted;
use super::secret::{SECRET_BYTES, SIGNING_STACK_BYTES, Secret, wiped};
use crate::runtime::random::random;

/// Bounds a key file, in bytes: the digits, a newline, and some white space of a careless copy.
const MAX_KEY_FILE_BYTES: u64 = 128;

macro_rules! secret_key {
    ($(#[$doc:meta])* $name:ident, $id:ident, $what:literal) => {
        $(#[$doc])*
        pub struct $name {
            secret: Secret,
            id: $id,
        }

        impl $name {
            /// Makes a random key.
            ///
            /// # Errors
            /// When the system gives no random bytes.
            pub fn generate() -> Result<Self, Failure> {
                Secret::random().and_then(Self::from_secret)
            }

            /// Writes the key to a file that must not be there yet.
            ///
            /// # Errors
            /// As [`super::create`].
            pub fn create(&self, path: &Path) -> Result<(), Failure> {
                write_seed(path, self.secret.bytes())
            }

            /// Reads the key in this file; `None` when there is none.
            ///
            /// # Errors
            /// [`Kind::BadConfig`] when it is not a key or others can read it, else what the disk says.
            pub fn load(path: &Path) -> Result<Option<Self>, Failure> {
                read_seed(path, $what)?.map(Self::from_secret).transpose()
            }

            fn from_secret(secret: Secret) -> Result<Self, Failure> {
                let public = wiped::<SIGNING_STACK_BYTES, _>(|| {
                    SigningKey::from_bytes(secret.bytes()).verifying_key().to_bytes()
                });
                let id = $id::from_bytes(public)
                    .map_err(|e| Failure::new(Kind::BadConfig, format!("the {} cannot be used: {e}", $what)))?;
                Ok(Self { secret, id })
            }

            /// Returns the public key.
            pub fn id(&self) -> $id {
                self.id
            }

            /// Returns the secret, for the endpoint that proves to have this key.
            pub fn secret(&self) -> &Secret {
                &self.secret
            }

            /// Returns a copy of the secret 32 bytes, at the place that the caller gives it.
            pub fn secret_bytes(&self) -> Zeroizing<[u8; 32]> {
                Zeroizing::new(*self.secret.bytes())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(…)"))
            }
        }
    };
}

secret_key! {
    /// Holds the secret key of a cluster, which signs and answers `malai-join/1`; nothing is executed by it. Zeroes itself.
    ClusterKey, ClusterId, "cluster key"
}

secret_key! {
    /// Holds the secret key of this machine in one cluster. Zeroes itself.
    MachineKey, MachineId, "machine key"
}

secret_key! {
    /// Holds the secret key of the relay on this host. Zeroes itself.
    RelayKey, MachineId, "relay key"
}

impl ClusterKey {
    /// Signs a text as this generation.
    ///
    /// # Errors
    /// [`Kind::BadConfig`] when the text is over 4 MiB.
    pub fn sign(&self, generation: u64, issued_ms: u64, text: String) -> Result<Snapshot, Failure> {
        self.signing(|key| Snapshot::sign(key, generation, issued_ms, text))
            .map_err(|e| Failure::new(Kind::BadConfig, format!("the config cannot be signed: {e}")))
    }

    /// Signs a ticket for the cluster's relays, good until `expires_ms`, milliseconds since the epoch.
    ///
    /// # Errors
    /// [`Kind::Internal`] when the system gives no random bytes.
    pub fn ticket(&self, expires_ms: u64) -> Result<Ticket, Failure> {
        let random = random::<16>()?;
        self.signing(|key| Ticket::sign(key, expires_ms, random))
            .map_err(|e| Failure::new(Kind::Internal, format!("a relay ticket cannot be signed: {e}")))
    }

    /// Lends the key in the form that signs, and wipes the stack afterwards.
    fn signing<T>(&self, sign: impl FnOnce(&SigningKey) -> T) -> T {
        wiped::<SIGNING_STACK_BYTES, _>(|| sign(&SigningKey::from_bytes(self.secret.bytes())))
    }
}

fn write_seed(path: &Path, seed: &[u8; SECRET_BYTES]) -> Result<(), Failure> {
    let mut text = Zeroizing::new(String::with_capacity(65));
    HEXLOWER.encode_append(seed, &mut text);
    text.push('\n');
    super::create(path, text.as_bytes())
}

fn read_seed(path: &Path, what: &str) -> Result<Option<Secret>, Failure> {
    let opened = Trusted::own().open_owned(path, OpenOptions::new().read(true))?;
    let Some((file, meta)) = opened else { return Ok(None) };
    refuse_readable_by_others(&meta, path, what)?;
    let mut text = Zeroizing::new(Vec::with_capacity(MAX_KEY_FILE_BYTES as usize));
    file.take(MAX_KEY_FILE_BYTES).read_to_end(&mut text).map_err(|e| disk_failure("read", path, &e))?;
    // `decode_mut` wants exactly as many digits as the seed needs.
    let digits = text.trim_ascii();
    let decoded = Secret::filled(|seed| match digits.len() {
        64 => HEXLOWER.decode_mut(digits, seed).map(drop).map_err(drop),
        _ => Err(()),
    });
    if let Ok(secret) = decoded {
        return Ok(Some(secret));
    }
    let message = format!("{} is not a {what}: it should be 64 hexadecimal digits", path.display());
    Err(Failure::new(Kind::BadConfig, message).hint("restore it from a backup: it cannot be made again"))
}

fn refuse_readable_by_others(meta: &Metadata, path: &Path, what: &str) -> Result<(), Failure> {
    let shown = path.display();
    if meta.mode() & 0o077 != 0 {
        let message = format!("the {what} {shown} can be read by other users (mode {:04o})", meta.mode() & 0o7777);
        return Err(Failure::new(Kind::BadConfig, message).hint(format!("chmod 600 {shown}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_survives_the_disk_and_is_private_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("machine.key");
        let key = MachineKey::generate().expect("randomness");
        key.create(&path).expect("written");
        assert_eq!(std::fs::metadata(&path).expect("there").mode() & 0o7777, 0o600);
        let again = MachineKey::load(&path).expect("reads").expect("is there");
        assert_eq!(again.id(), key.id());
        assert_eq!(std::fs::read_dir(dir.path()).expect("lists").count(), 1);
    }

    #[test]
    fn a_key_is_never_overwritten() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("cluster.key");
        let first = ClusterKey::generate().expect("randomness");
        first.create(&path).expect("written");
        let refused = ClusterKey::generate().expect("randomness").create(&path).expect_err("is there");
        assert_eq!(refused.kind, Kind::Conflict);
        assert_eq!(ClusterKey::load(&path).expect("reads").expect("is there").id(), first.id());
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_with_the_command_that_mends_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("machine.key");
        MachineKey::generate().expect("randomness").create(&path).expect("written");
        for mode in [0o640, 0o604, 0o620] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("chmod");
            let refused = MachineKey::load(&path).expect_err("readable by others");
            assert_eq!(refused.hint, Some(format!("chmod 600 {}", path.display())));
        }
    }

    #[test]
    fn what_is_not_a_key_is_refused_without_being_shown() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("machine.key");
        for content in ["", "secret", &"a".repeat(63), &"a".repeat(66), &"A".repeat(64)] {
            super::super::write(&path, content.as_bytes()).expect("written");
            let refused = MachineKey::load(&path).expect_err("not a key");
            assert!(content.is_empty() || !refused.message.contains(content), "{refused}");
        }
    }

    #[test]
    fn a_key_does_not_show_itself() {
        let key = ClusterKey::generate().expect("randomness");
        assert_eq!(format!("{key:?}"), "ClusterKey(…)");
    }
}

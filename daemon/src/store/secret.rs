//! Keeps a secret key at one place of the heap, which never moves, and is zeroed when its last user lets go.
//!
//! Values hold only a pointer to the key, because a value that is moved leaves its bytes behind. What signing, or
//! binding an endpoint, leaves on the stack is wiped (`wiped`).

use std::fmt;
use std::sync::Arc;

use malai_protocol::failure::Failure;
use zeroize::Zeroizing;

use crate::runtime::random::fill_randomly;

/// Sets the length of a secret key: an ed25519 seed (RFC 8032).
pub(crate) const SECRET_BYTES: usize = 32;
/// Sets how much of the stack is wiped after work with a key: several times what a signature takes in a debug build.
pub(crate) const SIGNING_STACK_BYTES: usize = 64 * 1024;

/// Holds a secret key. A clone is another pointer to the same place.
#[derive(Clone)]
pub struct Secret {
    place: Arc<Zeroizing<[u8; SECRET_BYTES]>>,
}

impl Secret {
    /// Makes a place, and lets `fill` write a key into it.
    pub(crate) fn filled<E>(fill: impl FnOnce(&mut [u8; SECRET_BYTES]) -> Result<(), E>) -> Result<Self, E> {
        let mut place = Arc::new(Zeroizing::new([0; SECRET_BYTES]));
        // This always succeeds: the place has no other owner yet.
        if let Some(bytes) = Arc::get_mut(&mut place) {
            fill(bytes)?;
        }
        Ok(Self { place })
    }

    /// Makes a random key.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub(crate) fn random() -> Result<Self, Failure> {
        Self::filled(|bytes| fill_randomly(bytes))
    }

    /// Copies a key from where it is.
    pub(crate) fn copied(from: &[u8; SECRET_BYTES]) -> Self {
        let mut place = Arc::new(Zeroizing::new([0; SECRET_BYTES]));
        if let Some(bytes) = Arc::get_mut(&mut place) {
            bytes.copy_from_slice(from);
        }
        Self { place }
    }

    /// Returns the key. Copy it only inside [`wiped`].
    pub(crate) fn bytes(&self) -> &[u8; SECRET_BYTES] {
        &self.place
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Does work that puts a key on the stack, then wipes `STACK_BYTES` of the stack. What the work returns must not
/// contain the key.
pub(crate) fn wiped<const STACK_BYTES: usize, T>(work: impl FnOnce() -> T) -> T {
    let done = below(work);
    zeroize::zeroize_stack::<STACK_BYTES>();
    done
}

/// Does the work in a frame of its own, below that of its caller.
#[inline(never)]
fn below<T>(work: impl FnOnce() -> T) -> T {
    work()
}

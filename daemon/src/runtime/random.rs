//! Random bytes from the system.

use malai_protocol::failure::{Failure, Kind};

/// Returns random bytes.
///
/// # Errors
/// [`Kind::Internal`] when the system gives none.
pub fn random<const N: usize>() -> Result<[u8; N], Failure> {
    let mut bytes = [0; N];
    fill_randomly(&mut bytes)?;
    Ok(bytes)
}

/// Fills a place with random bytes, for what must not be anywhere else: a secret.
///
/// # Errors
/// [`Kind::Internal`] when the system gives none.
pub(crate) fn fill_randomly(bytes: &mut [u8]) -> Result<(), Failure> {
    getrandom::fill(bytes).map_err(|e| Failure::new(Kind::Internal, format!("the system gives no random bytes: {e}")))
}

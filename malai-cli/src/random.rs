//! Random ids.

use malai_protocol::failure::{Failure, Kind};

/// Returns 16 random bytes, which are an id that nothing else has.
pub(crate) fn random_id() -> Result<[u8; 16], Failure> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|e| Failure::new(Kind::Internal, format!("the system gives no random bytes: {e}")))?;
    Ok(bytes)
}

//! The token of an invite, as it is given on the command line.

use std::io::Read;

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::invite::{Invite, MAX_TOKEN, TokenError};

use crate::stdio::Descriptor;

/// Returns a token, and what it says; `-` stands for standard input. `hint` says where to get a sound one.
///
/// # Errors
/// When it cannot be read, or is no token.
pub(super) fn read_token(typed: String, hint: &str) -> Result<(String, Invite), Failure> {
    let token = if typed == "-" { read_stdin()? } else { typed }.trim().to_owned();
    let invite = token.parse().map_err(|e: TokenError| Failure::new(Kind::Usage, e.to_string()).hint(hint))?;
    Ok((token, invite))
}

fn read_stdin() -> Result<String, Failure> {
    let fail =
        |e: std::io::Error| Failure::new(Kind::Usage, format!("the token cannot be read from standard input: {e}"));
    let mut token = String::new();
    // A line's end and one byte more than a token may have, so that one which is too long is not cut to a sound one.
    let most = MAX_TOKEN as u64 + 2;
    Descriptor::of(&std::io::stdin()).map_err(fail)?.take(most).read_to_string(&mut token).map_err(fail)?;
    Ok(token)
}

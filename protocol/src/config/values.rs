//! Values with a form of their own: durations, URLs, certificates.

use std::time::Duration;

/// Bounds a duration: a command that runs longer without its caller is a service, and needs a service manager.
const MAX_DURATION: Duration = Duration::from_secs(30 * 24 * 3600);
/// Bounds the URL of a relay or server, in bytes.
const MAX_URL_BYTES: usize = 1024;

/// Parses a duration: a whole number and `s`, `m`, `h` or `d`.
pub(super) fn duration(text: &str) -> Result<Duration, &'static str> {
    let form = "must be a whole number and s, m, h or d, from \"1s\" to \"30d\"";
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => 24 * 3600,
        _ => return Err(form),
    };
    let digits = text.get(..text.len() - 1).unwrap_or_default();
    if digits.is_empty() || digits.len() > 9 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(form);
    }
    let number: u64 = digits.parse().map_err(|_| form)?;
    let duration = Duration::from_secs(number.saturating_mul(unit));
    if duration.is_zero() || duration > MAX_DURATION { Err(form) } else { Ok(duration) }
}

/// Checks that this is the URL of a relay or a server. Its parts are looked at where it is used.
pub(super) fn url(text: &str) -> Result<(), &'static str> {
    let form = "must be a URL such as \"https://relay.example.com\"";
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).ok_or(form)?;
    let host = rest.split('/').next().unwrap_or_default();
    if text.len() > MAX_URL_BYTES || host.is_empty() || !text.bytes().all(|b| b.is_ascii_graphic()) {
        Err(form)
    } else if host.contains('@') {
        Err("must be a URL without a user or password: the config goes to every machine")
    } else {
        Ok(())
    }
}

/// Parses the SHA-256 of a certificate.
pub(super) fn sha256(text: &str) -> Result<[u8; 32], &'static str> {
    let form = "must be 64 hexadecimal digits without colons";
    let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).map_err(|_| form)?;
    bytes.try_into().map_err(|_| form)
}

/// Checks that this is one or more certificates in PEM, and no key.
pub(super) fn certificates(text: &str) -> Result<(), &'static str> {
    if text.contains("PRIVATE KEY-----") {
        Err("has a private key in it: the config goes to every machine, so put the certificates only")
    } else if text.contains("-----BEGIN CERTIFICATE-----") && text.contains("-----END CERTIFICATE-----") {
        Ok(())
    } else {
        Err("must be one or more certificates in PEM, from -----BEGIN CERTIFICATE----- on")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit_and_bounds() {
        assert_eq!(duration("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(duration("30d"), Ok(MAX_DURATION));
        for bad in ["", "m", "10", "10 m", "-1m", "1.5h", "0s", "31d", "999999999d", "9999999999s", "1é", "m10"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn urls_have_a_scheme_and_a_host_and_no_password() {
        for good in ["https://relay.example.com", "http://[::1]:3340", "https://192.0.2.1:443/pkarr"] {
            assert_eq!(url(good), Ok(()), "{good}");
        }
        for bad in
            ["", "relay.example.com", "https://", "https:///x", "https://a b", "https://u:p@h", "ftp://h", "https://ü"]
        {
            assert!(url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_private_key_is_never_taken_for_a_certificate() {
        let certificate = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";
        assert_eq!(certificates(certificate), Ok(()));
        assert!(certificates(&format!("{certificate}-----BEGIN PRIVATE KEY-----\n")).is_err());
        assert!(certificates("").is_err());
    }
}

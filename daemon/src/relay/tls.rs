//! The relay's certificate: one that it makes and that its clusters pin, or one that was given.

use std::path::Path;

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::RelayDir;
use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};

use super::settings::Settings;
use crate::store;

/// Bounds a file in PEM: a chain of certificates with their texts, or a key.
const MAX_PEM_BYTES: usize = 256 * 1024;

/// Holds the certificate that a relay shows.
#[derive(Debug)]
pub(crate) struct Certificate {
    /// Is the SHA-256 (FIPS 180-4) of its DER: what clusters pin.
    pub(crate) sha256: [u8; 32],
    /// For the servers.
    pub(crate) config: rustls::ServerConfig,
}

/// Makes a certificate for this host, signed by itself, and stores it, unless there is one.
///
/// # Errors
/// A host that no certificate can name, or what the disk says.
pub(crate) fn make(dir: &RelayDir, host: &str) -> Result<(), Failure> {
    if dir.certificate().exists() && dir.certificate_key().exists() {
        return Ok(());
    }
    let fail = |e: rcgen::Error| Failure::new(Kind::Usage, format!("no certificate can be made for `{host}`: {e}"));
    let mut params = CertificateParams::new(vec![host.to_owned()]).map_err(fail)?;
    params.distinguished_name.push(DnType::CommonName, "malai relay");
    let key = KeyPair::generate().map_err(fail)?;
    let certificate = params.self_signed(&key).map_err(fail)?;
    // The key first: without the certificate it is not used, and the next attempt replaces it.
    store::write(&dir.certificate_key(), key.serialize_pem().as_bytes())?;
    store::write(&dir.certificate(), certificate.pem().as_bytes())
}

/// Loads the certificate that the settings name, or the relay's own.
///
/// # Errors
/// [`Kind::BadConfig`] when a file is missing or is not what it should be, or the two do not belong together.
pub(crate) fn load(dir: &RelayDir, settings: &Settings) -> Result<Certificate, Failure> {
    let certificate = settings.certificate.clone().unwrap_or_else(|| dir.certificate());
    let key = settings.certificate_key.clone().unwrap_or_else(|| dir.certificate_key());
    read(&certificate, &key)
}

/// Reads a certificate (PEM, the end entity's first) and its key (PEM).
///
/// # Errors
/// As [`load`].
pub(crate) fn read(certificate: &Path, key: &Path) -> Result<Certificate, Failure> {
    let bad =
        |path: &Path, why: String| Failure::new(Kind::BadConfig, format!("the relay's {}: {why}", path.display()));
    let text = |path: &Path| {
        store::read_given(path, MAX_PEM_BYTES)?.ok_or_else(|| bad(path, "there is no such file".to_owned()))
    };
    let (chain, secret) = (text(certificate)?, zeroize::Zeroizing::new(text(key)?));
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&chain).collect();
    let chain = chain.map_err(|e| bad(certificate, format!("not certificates in PEM: {e}")))?;
    let Some(own) = chain.first() else { return Err(bad(certificate, "it contains no certificate in PEM".to_owned())) };
    let sha256 = Sha256::digest(own).into();
    let secret = PrivateKeyDer::from_pem_slice(&secret).map_err(|e| bad(key, format!("not a key in PEM: {e}")))?;
    let provider = rustls::crypto::ring::default_provider();
    let config = rustls::ServerConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, secret))
        .map_err(|e| bad(certificate, format!("cannot be used with {}: {e}", key.display())))?;
    Ok(Certificate { sha256, config })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use malai_protocol::home::Home;

    use super::*;

    #[test]
    fn a_certificate_is_made_once_for_a_name_or_an_address_and_its_key_is_private() {
        for host in ["relay.example.com", "203.0.113.5", "2001:db8::1"] {
            let home = tempfile::tempdir().expect("a directory");
            let dir = Home::new(home.path()).relay();
            store::make_dir(dir.root()).expect("made");
            make(&dir, host).expect("made");
            let first = read(&dir.certificate(), &dir.certificate_key()).expect("usable").sha256;
            assert_eq!(std::fs::metadata(dir.certificate_key()).expect("there").mode() & 0o7777, 0o600);
            make(&dir, host).expect("there already");
            assert_eq!(read(&dir.certificate(), &dir.certificate_key()).expect("usable").sha256, first);
        }
    }

    #[test]
    fn files_that_are_missing_or_do_not_belong_together_are_named() {
        let homes = [tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory")];
        let [one, other] = homes.each_ref().map(|home| Home::new(home.path()).relay());
        let missing = read(&one.certificate(), &one.certificate_key()).expect_err("nothing is there").message;
        assert!(missing.contains("certificate.pem: there is no such file"), "{missing}");
        for dir in [&one, &other] {
            store::make_dir(dir.root()).expect("made");
            make(dir, "a.example").expect("made");
        }
        let crossed = read(&one.certificate(), &other.certificate_key()).expect_err("two relays'").message;
        assert!(crossed.contains("cannot be used with"), "{crossed}");
        let swapped = read(&one.certificate_key(), &one.certificate()).expect_err("swapped").message;
        assert!(swapped.contains("it contains no certificate in PEM"), "{swapped}");
    }
}

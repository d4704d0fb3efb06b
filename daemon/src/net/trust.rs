//! Whom relays and discovery servers are believed to be: one verifier over a set of pins that may change while an endpoint
//! lives.
//!
//! A pin is the SHA-256 of a certificate and holds for a host, since a verifier sees no port. A server whose host has a pin
//! is known by exactly that certificate, whatever dates and names stand in it: the signed config vouches for it. That the
//! server has its key is checked as always. Every other server is known by `[network] ca`, else by the web's roots.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use iroh::tls::CaTlsConfig;
use malai_protocol::config::Network;
use malai_protocol::failure::{Failure, Kind};
use parking_lot::{Mutex, MutexGuard};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, OtherError, SignatureScheme};
use sha2::{Digest, Sha256};
use url::{Host, Url};

/// Holds the pins of one cluster's relays, and what came of the last look at each relay's certificate.
#[derive(Debug, Default)]
pub(crate) struct Trust {
    hosts: Mutex<BTreeMap<String, Known>>,
}

/// Says what is known of a host that relays are on.
#[derive(Debug, Default)]
struct Known {
    /// Holds its certificates; empty = any that is vouched for.
    pins: BTreeSet<[u8; 32]>,
    /// Says why it was not believed the last time.
    doubt: Option<String>,
}

impl Trust {
    /// Trust in what a config names.
    pub(crate) fn new(network: &Network) -> Arc<Self> {
        let trust = Arc::new(Self::default());
        trust.replace(network);
        trust
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        self.hosts.lock()
    }

    /// Takes the pins of another config in place of those there are. It holds from the next handshake on.
    pub(crate) fn replace(&self, network: &Network) {
        let mut pins: BTreeMap<String, BTreeSet<[u8; 32]>> = BTreeMap::new();
        for relay in network.relays.iter().flatten() {
            if let Some(host) = host(&relay.url) {
                pins.entry(host).or_default().extend(relay.sha256);
            }
        }
        let mut hosts = self.lock();
        let mut before = std::mem::take(&mut *hosts);
        *hosts = pins
            .into_iter()
            .map(|(host, pins)| {
                let known = before.remove(&host).filter(|known| known.pins == pins);
                (host, known.unwrap_or(Known { pins, doubt: None }))
            })
            .collect();
    }

    /// Returns why the server of this URL was not believed to be what it says, the last time it was asked.
    pub(crate) fn doubt(&self, url: &str) -> Option<String> {
        self.lock().get(&host(url)?)?.doubt.clone()
    }

    /// Trust as iroh takes it; `ca` is `[network] ca`.
    ///
    /// # Errors
    /// [`Failure`] of kind `bad-config` when `ca` has no certificate that can be used.
    pub(crate) fn tls(self: &Arc<Self>, ca: Option<&str>) -> Result<CaTlsConfig, Failure> {
        let vouched = match ca {
            Some(ca) => CaTlsConfig::custom_roots(certificates(ca)?),
            None => CaTlsConfig::embedded(),
        };
        let trust = Arc::clone(self);
        Ok(CaTlsConfig::custom_server_cert_verifier(Arc::new(move |provider| {
            let vouched = vouched.server_cert_verifier(Arc::clone(&provider))?;
            Ok(Arc::new(Verifier { trust: Arc::clone(&trust), vouched, provider }))
        })))
    }

    /// Whether this is the certificate that the host is known by; `None` when the host has no pin.
    fn is_pinned(&self, host: &str, certificate: &CertificateDer<'_>) -> Option<Result<(), NotPinned>> {
        let hosts = self.lock();
        let pins = &hosts.get(host).filter(|known| !known.pins.is_empty())?.pins;
        let shown: [u8; 32] = Sha256::digest(certificate).into();
        Some(if pins.contains(&shown) {
            Ok(())
        } else {
            Err(NotPinned { shown, pinned: pins.iter().copied().collect() })
        })
    }

    /// Notes what came of a look at a certificate. Hosts that no relay of the config is on are not kept.
    fn note(&self, host: &str, doubt: Option<String>) {
        if let Some(known) = self.lock().get_mut(host) {
            known.doubt = doubt;
        }
    }
}

/// A relay has another certificate than its pin says.
#[derive(Debug, thiserror::Error)]
#[error(
    "its certificate has the SHA-256 {shown}, and `[network] relays` has {pinned}",
    shown = hex(shown),
    pinned = pinned.iter().map(hex).collect::<Vec<_>>().join(" or ")
)]
struct NotPinned {
    shown: [u8; 32],
    pinned: Vec<[u8; 32]>,
}

fn hex(pin: &[u8; 32]) -> String {
    data_encoding::HEXLOWER.encode(pin)
}

/// Looks at the certificates of relays and discovery servers.
#[derive(Debug)]
struct Verifier {
    trust: Arc<Trust>,
    /// For hosts without a pin.
    vouched: Arc<dyn ServerCertVerifier>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let name = server_name.to_str();
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let (verified, doubt) = match self.trust.is_pinned(&name, end_entity) {
            Some(Ok(())) => (Ok(ServerCertVerified::assertion()), None),
            Some(Err(other)) => {
                let doubt = other.to_string();
                (Err(CertificateError::Other(OtherError(Arc::new(other))).into()), Some(doubt))
            }
            None => {
                let vouched =
                    self.vouched.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
                let doubt = vouched.as_ref().err().map(ToString::to_string);
                (vouched, doubt)
            }
        };
        self.trust.note(&name, doubt);
        verified
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Returns the host of a URL as a server name has it: lower case, an IPv6 address without brackets.
fn host(url: &str) -> Option<String> {
    match url.parse::<Url>().ok()?.host()? {
        Host::Domain(name) => Some(name.trim_end_matches('.').to_ascii_lowercase()),
        Host::Ipv4(ip) => Some(ip.to_string()),
        Host::Ipv6(ip) => Some(ip.to_string()),
    }
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let bad = |e: String| Failure::new(Kind::BadConfig, format!("[network] ca is not a list of PEM certificates: {e}"));
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let found = found.map_err(|e| bad(e.to_string()))?;
    if found.is_empty() { Err(bad("no certificate in it".into())) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use malai_protocol::config::Relay;

    use super::*;

    /// Self-made, for 192.0.2.5 and relay.example.com, good from November to December 2026.
    const FIRST: &str = include_str!("trust/first.pem");
    /// Is the same with another key.
    const SECOND: &str = include_str!("trust/second.pem");
    /// An authority of the same time, and a certificate by it for 192.0.2.6 and vouched.example.com.
    const CA: &str = include_str!("trust/ca.pem");
    const VOUCHED: &str = include_str!("trust/vouched.pem");
    /// 2026-12-01 and 2030-01-01, in seconds since the epoch.
    const VALID: u64 = 1_796_083_200;
    const EXPIRED: u64 = 1_893_456_000;

    fn der(pem: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }

    fn relay(url: &str, pin: Option<&str>) -> Relay {
        Relay { sha256: pin.map(|pem| Sha256::digest(der(pem)).into()), ..Relay::at(url) }
    }

    fn network(relays: Vec<Relay>) -> Network {
        Network { relays: Some(relays), ..Network::default() }
    }

    fn verifier(trust: &Arc<Trust>, ca: Option<&str>) -> Arc<dyn ServerCertVerifier> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        trust.tls(ca).unwrap().server_cert_verifier(provider).unwrap()
    }

    fn believed(verifier: &Arc<dyn ServerCertVerifier>, name: &str, shown: &str, at: u64) -> Result<(), String> {
        let (name, now) = (name.to_owned().try_into().unwrap(), UnixTime::since_unix_epoch(Duration::from_secs(at)));
        verifier.verify_server_cert(&der(shown), &[], &name, &[], now).map(drop).map_err(|e| e.to_string())
    }

    #[test]
    fn a_pinned_host_is_known_by_its_certificate_alone_whatever_its_dates_and_names() {
        let relays = vec![relay("https://192.0.2.9:7443", Some(FIRST)), relay("https://R.example.com", Some(VOUCHED))];
        let verifier = verifier(&Trust::new(&network(relays)), Some(CA));
        for at in [VALID, EXPIRED] {
            assert_eq!(believed(&verifier, "192.0.2.9", FIRST, at), Ok(()), "its names are not looked at");
            assert_eq!(believed(&verifier, "r.example.com", VOUCHED, at), Ok(()));
            assert!(believed(&verifier, "192.0.2.9", SECOND, at).is_err());
        }
        // What the authority vouches for is not good enough where there is a pin.
        assert!(believed(&verifier, "192.0.2.9", VOUCHED, VALID).is_err());
    }

    #[test]
    fn other_hosts_are_known_by_the_authority_and_by_dates_and_names_as_ever() {
        let verifier = verifier(&Trust::new(&network(vec![relay("https://192.0.2.9", Some(FIRST))])), Some(CA));
        assert_eq!(believed(&verifier, "vouched.example.com", VOUCHED, VALID), Ok(()));
        assert_eq!(believed(&verifier, "192.0.2.6", VOUCHED, VALID), Ok(()));
        let refused = [
            ("vouched.example.com", VOUCHED, EXPIRED, "certificate expired"),
            ("relay.example.com", VOUCHED, VALID, "not valid for name"),
            ("relay.example.com", FIRST, VALID, "CaUsedAsEndEntity"),
        ];
        for (name, shown, at, why) in refused {
            let error = believed(&verifier, name, shown, at).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn without_an_authority_of_its_own_a_cluster_believes_the_webs_and_not_a_private_one() {
        let verifier = verifier(&Trust::new(&Network::default()), None);
        assert!(believed(&verifier, "vouched.example.com", VOUCHED, VALID).is_err());
    }

    #[test]
    fn two_relays_on_one_host_may_have_a_certificate_each() {
        let relays =
            vec![relay("https://[2001:db8::5]:1", Some(FIRST)), relay("https://[2001:DB8::5]:2", Some(SECOND))];
        let verifier = verifier(&Trust::new(&network(relays)), None);
        assert_eq!(believed(&verifier, "2001:db8::5", FIRST, VALID), Ok(()));
        assert_eq!(believed(&verifier, "2001:db8::5", SECOND, VALID), Ok(()));
        assert!(believed(&verifier, "2001:db8::5", VOUCHED, VALID).is_err());
    }

    #[test]
    fn pins_that_are_replaced_hold_from_the_next_handshake_on() {
        let trust = Trust::new(&network(vec![relay("https://192.0.2.5", Some(FIRST))]));
        let verifier = verifier(&trust, None);
        assert_eq!(believed(&verifier, "192.0.2.5", FIRST, VALID), Ok(()));
        trust.replace(&network(vec![relay("https://192.0.2.5", Some(SECOND))]));
        assert!(believed(&verifier, "192.0.2.5", FIRST, VALID).is_err());
        assert_eq!(believed(&verifier, "192.0.2.5", SECOND, VALID), Ok(()));
        trust.replace(&network(Vec::new()));
        assert!(believed(&verifier, "192.0.2.5", SECOND, VALID).is_err(), "the web's roots do not vouch for it");
    }

    #[test]
    fn a_wrong_certificate_is_told_with_both_hashes_until_the_right_one_is_shown() {
        let (url, wrong) = ("https://192.0.2.5:7443/", relay("https://x", Some(SECOND)).sha256.unwrap());
        let trust = Trust::new(&network(vec![relay(url, Some(FIRST))]));
        let verifier = verifier(&trust, None);
        assert_eq!(trust.doubt(url), None);
        assert!(believed(&verifier, "192.0.2.5", SECOND, VALID).is_err());
        let doubt = trust.doubt(url).unwrap();
        let pinned = relay(url, Some(FIRST)).sha256.unwrap();
        assert!(doubt.contains(&hex(&wrong)) && doubt.contains(&hex(&pinned)), "{doubt}");
        trust.replace(&network(vec![relay(url, Some(FIRST)), relay("https://other", None)]));
        assert!(trust.doubt(url).is_some(), "nothing changed for this host");
        assert_eq!(believed(&verifier, "192.0.2.5", FIRST, VALID), Ok(()));
        assert_eq!(trust.doubt(url), None);
        // Of hosts that are no relays nothing is kept: others name them.
        assert!(believed(&verifier, "elsewhere.example.com", FIRST, VALID).is_err());
        assert_eq!(trust.lock().len(), 2);
    }
}

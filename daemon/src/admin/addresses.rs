//! Finds where newcomers will reach the join endpoint of a manager whose daemon does not run at the moment.

use std::net::{IpAddr, SocketAddr};

use malai_protocol::failure::Failure;
use malai_protocol::home::Home;
use malai_protocol::peer::MAX_ADDRESSES;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;

use crate::store::ports;
use crate::store::settings::Settings;

/// Returns the addresses of the join endpoint as far as the settings and the last start fix them; empty when nothing does.
///
/// # Errors
/// [`malai_protocol::failure::Kind::BadConfig`] when `malai.toml` is broken.
pub fn join_addresses(home: &Home, alias: &str) -> Result<Vec<String>, Failure> {
    let fixed = Settings::load(home)?.join_listen(alias);
    let kept = ports::load(&home.cluster(alias).ports()).join;
    let port = fixed.map(|address| address.port()).filter(|port| *port != 0).or(kept);
    let Some(port) = port else { return Ok(Vec::new()) };
    let ips = match fixed.map(|address| address.ip()).filter(|ip| !ip.is_unspecified()) {
        Some(ip) => vec![ip],
        None => own_ips(),
    };
    Ok(ips.into_iter().take(MAX_ADDRESSES).map(|ip| SocketAddr::new(ip, port).to_string()).collect())
}

/// Returns this host's addresses that others can use; its loopback ones when it has no others.
fn own_ips() -> Vec<IpAddr> {
    let addresses = match getifaddrs() {
        Ok(addresses) => addresses,
        Err(error) => {
            tracing::warn!(%error, "cannot list this host's addresses");
            return Vec::new();
        }
    };
    let mut ips: Vec<IpAddr> = addresses.filter_map(|one| one.address.as_ref().and_then(ip)).collect();
    ips.sort_unstable();
    ips.dedup();
    let (loopback, others): (Vec<IpAddr>, Vec<IpAddr>) = ips.into_iter().partition(IpAddr::is_loopback);
    if others.is_empty() { loopback } else { others }
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(IpAddr::V4(v4.ip()));
    }
    // A link-local address means nothing without its interface.
    address.as_sockaddr_in6().map(|v6| v6.ip()).filter(|ip| !ip.is_unicast_link_local()).map(IpAddr::V6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store;

    #[test]
    fn an_address_is_told_only_when_its_port_is_fixed() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home::new(dir.path());
        assert_eq!(join_addresses(&home, "company"), Ok(Vec::new()));
        store::make_dir(home.cluster("company").root()).expect("made");
        let kept = ports::Ports { machine: None, join: Some(4002) };
        ports::save(&home.cluster("company").ports(), &kept).expect("stored");
        let told = join_addresses(&home, "company").expect("settings are in order");
        assert!(told.iter().all(|address| address.ends_with(":4002")), "{told:?}");
        assert!(!told.is_empty());
        store::write(&home.settings(), b"join_listen = \"192.0.2.7:5000\"\n").expect("written");
        assert_eq!(join_addresses(&home, "company"), Ok(vec!["192.0.2.7:5000".to_owned()]));
    }
}

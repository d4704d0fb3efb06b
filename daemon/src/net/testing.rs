//! For tests: two endpoints on this host that are connected.

use std::net::Ipv4Addr;

use iroh::endpoint::Connection;
use iroh::{Endpoint, EndpointAddr};
use malai_protocol::config::Network;
use malai_protocol::peer::ALPN;

use super::endpoint::{Options, bind, bound_port};
use crate::store::secret::Secret;

/// Is a connection as both sides have it.
#[derive(Debug)]
pub(crate) struct Connected {
    /// As the side has it that accepted.
    pub(crate) accepted: Connection,
    /// As the side has it that dialled.
    pub(crate) dialled: Connection,
    /// With them it would end.
    _endpoints: [Endpoint; 2],
}

impl Connected {
    /// Returns a new one, over loopback, and by no other way.
    pub(crate) async fn new() -> Self {
        let network = Network { relays: Some(Vec::new()), discovery: Some(Vec::new()), ..Network::default() };
        let options =
            |key| Options { alpns: vec![ALPN.to_vec()], ..Options::caller(Secret::copied(&[key; 32]), &network) };
        let ours = bind(&options(1)).await.expect("an endpoint").endpoint;
        let theirs = bind(&options(2)).await.expect("an endpoint").endpoint;
        let port = bound_port(&ours).expect("a port");
        let address = EndpointAddr::new(ours.id()).with_ip_addr((Ipv4Addr::LOCALHOST, port).into());
        let accepted = async { ours.accept().await.expect("an endpoint").await.expect("a handshake") };
        let (accepted, dialled) = tokio::join!(accepted, theirs.connect(address, ALPN));
        Self { accepted, dialled: dialled.expect("a handshake"), _endpoints: [ours, theirs] }
    }
}

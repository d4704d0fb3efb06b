//! The newcomer's side: show an invite or knock, and wait for the snapshot on the same connection.

use std::time::Duration;

use iroh::{EndpointAddr, TransportAddr};
use malai_protocol::codec::{Frame, Kind, MAX_SNAPSHOT};
use malai_protocol::config::Config;
use malai_protocol::failure::{Failure, Kind as FailureKind};
use malai_protocol::home::Home;
use malai_protocol::id::ClusterId;
use malai_protocol::peer::{Announce, JOIN_ALPN, Knock, MAX_ADDRESSES, Redeem, VERSION};
use malai_protocol::snapshot::{Signed, Snapshot};
use serde_bytes::ByteArray;

use crate::admin;
use crate::net::endpoint::{Bound, parse_address};
use crate::net::{FrameError, Frames, endpoint_id, send};
use crate::runtime::blocking::blocking;
use crate::runtime::clock::now_ms;
use crate::store;
use crate::store::lock::Changes;

/// Bounds one attempt to reach the manager.
const DESK_DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Bounds the manager's answer to an invite, signing and writing to a slow disk included.
const DESK_ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Sets how long a knock waits for its approval before it is repeated: a manager that forgot it learns of it again.
const KNOCK_REPEAT_INTERVAL: Duration = Duration::from_secs(30);

/// Says what a newcomer has to show.
#[derive(Debug, Clone)]
pub(crate) enum Ask {
    /// An invite's secret.
    Redeem(ByteArray<32>),
    /// Nothing: an administrator has to approve.
    Knock,
}

/// Says what came of one attempt.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Enrolled.
    Enrolled(Box<Enrolled>),
    /// The manager said no; asking again makes no difference.
    Refused(Failure),
    /// The manager was not reached, or the connection was lost: ask again.
    Again(String),
}

/// Says what an enrolled newcomer gets.
#[derive(Debug)]
pub(crate) struct Enrolled {
    /// Is the verified snapshot.
    pub(crate) snapshot: Snapshot,
    /// Is where the manager's machine key can be reached.
    pub(crate) manager: Vec<String>,
}

impl Enrolled {
    /// Stores the snapshot, and where to find the manager for the link.
    ///
    /// # Errors
    /// What [`admin::join_finish`] says.
    pub(crate) async fn store(self, home: &Home, alias: &str) -> Result<(), Failure> {
        let (home, alias) = (home.clone(), alias.to_owned());
        blocking(move || {
            admin::join_finish(&Changes::begin(&home)?, &alias, &self.snapshot)?;
            if let Err(failure) = self.remember_manager(&home, &alias) {
                // Only a cache: without it discovery has to find the manager.
                tracing::warn!("the manager's addresses were not kept: {failure}");
            }
            Ok(())
        })
        .await
    }

    fn remember_manager(&self, home: &Home, alias: &str) -> Result<(), Failure> {
        let Ok(config) = Config::read(self.snapshot.text()) else { return Ok(()) };
        let Some(manager) = config.machines.get(&config.cluster.manager) else { return Ok(()) };
        let path = home.cluster(alias).peers();
        let mut peers = store::peers::load(&path);
        let known = store::peers::Peer { addresses: self.manager.clone(), seen_ms: now_ms() };
        peers.insert(manager.id, known);
        store::peers::save(&path, &peers)
    }
}

/// Asks once, and calls `waiting` when the manager noted a knock.
pub(crate) async fn ask(
    bound: &Bound,
    cluster: &ClusterId,
    addresses: &[String],
    ask: &Ask,
    waiting: impl Fn(String),
) -> Answer {
    match attempt(bound, cluster, addresses, ask, waiting).await {
        Ok(answer) => answer,
        Err(error) => Answer::Again(format!("{error:#}")),
    }
}

async fn attempt(
    bound: &Bound,
    cluster: &ClusterId,
    addresses: &[String],
    ask: &Ask,
    waiting: impl Fn(String),
) -> anyhow::Result<Answer> {
    let Some(key) = endpoint_id(cluster.as_bytes()) else {
        let text = "the cluster's id52 is not a key that can be dialled";
        return Ok(Answer::Refused(Failure::new(FailureKind::Usage, text)));
    };
    let Bound { endpoint, relays } = bound;
    let told = addresses.iter().filter_map(|text| parse_address(text));
    let addr = EndpointAddr::from_parts(key, told.chain(relays.urls().into_iter().map(TransportAddr::Relay)));
    let tried = || tried(addresses) + &relays.failures(endpoint);
    let conn = match tokio::time::timeout(DESK_DIAL_TIMEOUT, endpoint.connect(addr, JOIN_ALPN)).await {
        Ok(Ok(conn)) => conn,
        Ok(Err(error)) => anyhow::bail!("the cluster manager was not reached{}: {error:#}", tried()),
        Err(_) => {
            anyhow::bail!("the cluster manager did not answer within {} s{}", DESK_DIAL_TIMEOUT.as_secs(), tried())
        }
    };
    let (mut send_half, recv) = conn.open_bi().await?;
    let hostname = crate::admin::hostname();
    let (frame, limit) = match ask {
        Ask::Redeem(secret) => (
            Frame::control(Kind::Redeem, &Redeem { version: VERSION, secret: *secret, hostname })?,
            DESK_ANSWER_TIMEOUT,
        ),
        Ask::Knock => (Frame::control(Kind::Knock, &Knock { version: VERSION, hostname })?, KNOCK_REPEAT_INTERVAL),
    };
    send(&mut send_half, frame).await?;
    let mut frames = Frames::new(recv, MAX_SNAPSHOT);
    let mut manager = Vec::new();
    let answer = loop {
        let frame = match frames.next(limit).await {
            Ok(frame) => frame,
            Err(FrameError::Ended) => anyhow::bail!("the cluster manager closed the connection"),
            Err(error) => return Err(error.into()),
        };
        match frame.kind {
            Kind::Waiting => {
                waiting("the cluster manager noted the knock; an administrator has to approve it".to_owned())
            }
            Kind::Announce => {
                let announce: Announce = frame.decode()?;
                manager = announce.addresses.into_iter().take(MAX_ADDRESSES).collect();
            }
            Kind::Refused => break Answer::Refused(frame.decode()?),
            _ => {
                let signed: Signed = frame.expect(Kind::Snapshot, "Snapshot, Waiting or Refused")?;
                break Answer::Enrolled(Box::new(Enrolled { snapshot: signed.verify(cluster)?, manager }));
            }
        }
    };
    crate::net::close(&conn, malai_protocol::peer::Close::Done, "thank you");
    Ok(answer)
}

fn tried(addresses: &[String]) -> String {
    if addresses.is_empty() {
        " by discovery".to_owned()
    } else {
        format!(" at {} or by discovery", addresses.join(", "))
    }
}

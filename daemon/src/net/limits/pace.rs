//! How often one key, or one address, may do something here, whatever connections it does it over.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use iroh::EndpointId;
use iroh::endpoint::IncomingAddr;
use parking_lot::Mutex;
use tokio::time::Instant;

/// Between two streams of one machine on average: its commands take longer than that to start.
const STREAM: Duration = Duration::from_millis(1);
/// As many streams of one machine may come at once: a connection's worth of sessions that attach anew.
const STREAMS: u32 = 1024;
/// Handshakes that one address may begin at once, a whole site that comes back behind one router for instance, and the
/// time to each further one. A handshake costs the processor up to a millisecond before it is known whose it is.
const HANDSHAKES: u32 = 512;
const HANDSHAKE: Duration = Duration::from_millis(10);
/// Keys or addresses that are remembered.
const REMEMBERED: usize = 1024;
/// The same, at a server that anybody may find.
const PUBLIC: usize = 16 * 1024;

/// Counts against a rate: the time at which all that was counted is paid for.
#[derive(Debug, Clone, Copy, Default)]
struct Debt(Option<Instant>);

impl Debt {
    /// Counts one more, and returns how long it has to wait when `burst` may come at once and then one in `each`.
    fn add(&mut self, now: Instant, each: Duration, burst: u32) -> Duration {
        let paid = self.0.map_or(now, |paid| paid.max(now)) + each;
        self.0 = Some(paid);
        paid.duration_since(now).saturating_sub(each * burst)
    }

    /// Whether nothing of it is left.
    fn is_paid(self, now: Instant) -> bool {
        self.0.is_none_or(|paid| paid <= now)
    }
}

/// The pace of one machine's streams.
#[derive(Debug, Default)]
pub(crate) struct Pace(Mutex<Debt>);

impl Pace {
    /// That of a machine whose next turn comes in a minute.
    #[cfg(test)]
    pub(crate) fn exhausted() -> Self {
        Self(Mutex::new(Debt(Some(Instant::now() + Duration::from_secs(61)))))
    }

    /// Waits until the next stream may be served. What is opened meanwhile waits in QUIC, at its sender.
    pub(crate) async fn turn(&self) {
        let wait = self.0.lock().add(Instant::now(), STREAM, STREAMS);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

/// Keys or addresses that nobody vouches for, each of which may come so many times at once and then once in a while.
#[derive(Debug)]
pub(crate) struct Visits<K> {
    each: Duration,
    burst: u32,
    /// As many are remembered.
    most: usize,
    /// Whether those may come that are too many to be remembered.
    overflow: bool,
    seen: Mutex<HashMap<K, Debt>>,
}

impl<K: Hash + Eq> Visits<K> {
    /// Nobody came yet.
    pub(crate) fn new(each: Duration, burst: u32) -> Self {
        Self { each, burst, most: REMEMBERED, overflow: false, seen: Mutex::default() }
    }

    /// Whether this one may come now. When it may not, that counts for nothing.
    pub(crate) fn may_come(&self, who: K) -> bool {
        let mut seen = self.seen.lock();
        let now = Instant::now();
        if seen.len() >= self.most {
            seen.retain(|_, debt| !debt.is_paid(now));
        }
        if seen.len() >= self.most && !seen.contains_key(&who) {
            return self.overflow;
        }
        let mut debt = seen.get(&who).copied().unwrap_or_default();
        let comes = debt.add(now, self.each, self.burst).is_zero();
        if comes {
            seen.insert(who, debt);
        }
        comes
    }
}

/// Where a connection comes from, as far as that is known before its handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Origin {
    /// An address.
    V4(Ipv4Addr),
    /// The first 64 bits of an address: whoever has one of them has all.
    V6(u64),
    /// A key, by a relay.
    Key(EndpointId),
    /// Anything else.
    Other,
}

impl From<&IncomingAddr> for Origin {
    fn from(addr: &IncomingAddr) -> Self {
        match addr {
            IncomingAddr::Ip(addr) => addr.ip().into(),
            IncomingAddr::Relay { endpoint_id, .. } => Self::Key(*endpoint_id),
            _ => Self::Other,
        }
    }
}

impl From<IpAddr> for Origin {
    fn from(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self::V4(ip),
            IpAddr::V6(ip) => Self::V6((ip.to_bits() >> 64) as u64),
        }
    }
}

impl Visits<Origin> {
    /// At a server that anybody may find: of more addresses than are remembered none is let in.
    pub(crate) fn public(each: Duration, burst: u32) -> Self {
        Self { most: PUBLIC, ..Self::new(each, burst) }
    }

    /// The handshakes at one endpoint. That an address is not remembered is nobody's fault.
    pub(crate) fn handshakes() -> Self {
        Self { overflow: true, ..Self::new(HANDSHAKE, HANDSHAKES) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_machine_opens_a_burst_of_streams_at_once_and_then_one_at_a_time() {
        let (pace, begun) = (Pace::default(), Instant::now());
        for _ in 0..STREAMS {
            pace.turn().await;
        }
        assert_eq!(begun.elapsed(), Duration::ZERO);
        for _ in 0..100 {
            pace.turn().await;
        }
        assert_eq!(begun.elapsed(), STREAM * 100);
        // A pause gives back as much as it lasts, and no more than all.
        tokio::time::sleep(STREAM * STREAMS * 2).await;
        let again = Instant::now();
        for _ in 0..STREAMS {
            pace.turn().await;
        }
        assert_eq!(again.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_comes_too_early_is_sent_away_and_another_is_not() {
        let visits = Visits::new(Duration::from_secs(1), 2);
        let came: Vec<bool> = (0..4).map(|_| visits.may_come(1)).collect();
        assert_eq!(came, [true, true, false, false]);
        assert!(visits.may_come(2));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!([visits.may_come(1), visits.may_come(1)], [true, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn more_keys_than_are_remembered_are_too_early_until_the_first_have_had_their_time() {
        let visits = Visits::new(Duration::from_secs(1), 1);
        assert!((0..REMEMBERED).all(|number| visits.may_come(number)));
        assert!(!visits.may_come(REMEMBERED));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(visits.may_come(REMEMBERED));
        assert_eq!(visits.seen.lock().len(), 1, "those that had their time are forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn a_public_server_remembers_a_bounded_number_of_addresses_and_lets_no_other_in() {
        let visits = Visits::public(Duration::from_secs(1), 1);
        let came = (0..2 * PUBLIC as u32).filter(|n| visits.may_come(Origin::V4(Ipv4Addr::from_bits(*n)))).count();
        assert_eq!(came, PUBLIC);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(visits.may_come(Origin::V4(Ipv4Addr::LOCALHOST)), "those that had their time are forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn handshakes_of_one_address_are_counted_and_addresses_beyond_those_remembered_are_let_in() {
        let handshakes = Visits::handshakes();
        let from = |text: &str| Origin::from(&IncomingAddr::Ip(text.parse().unwrap()));
        // Other ports, and other addresses of one network, are the same origin.
        assert_eq!(from("192.0.2.1:1"), from("[::ffff:192.0.2.1]:2"));
        assert_eq!(from("[2001:db8::1]:1"), from("[2001:db8::ffff:2]:1"));
        assert_ne!(from("[2001:db8::1]:1"), from("[2001:db8:0:1::1]:1"));
        let begun = (0..HANDSHAKES + 10).filter(|_| handshakes.may_come(from("192.0.2.1:1"))).count();
        assert_eq!(begun, HANDSHAKES as usize);
        let others: Vec<Origin> = (0..2 * REMEMBERED as u32).map(|n| Origin::V4(Ipv4Addr::from_bits(n))).collect();
        assert!(others.iter().all(|origin| handshakes.may_come(*origin)));
        assert!(handshakes.seen.lock().len() <= REMEMBERED);
        assert!(!handshakes.may_come(from("192.0.2.1:1")), "it is still remembered");
        tokio::time::sleep(HANDSHAKE).await;
        assert!(handshakes.may_come(from("192.0.2.1:1")));
    }
}

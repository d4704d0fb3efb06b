//! Limits how often one key or one address may do something here, over all of its connections together.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use iroh::EndpointId;
use iroh::endpoint::IncomingAddr;
use malai_protocol::id::MachineId;
use parking_lot::Mutex;
use tokio::time::Instant;

/// Sets the pace of one machine's streams. Its commands take longer than that to start.
const STREAM_INTERVAL: Duration = Duration::from_millis(1);
/// Sets how many streams one machine may open at once: as many as the sessions of one connection that attach again.
const MAX_STREAM_BURST: u32 = 1024;
/// Set how many handshakes one address may begin at once, for instance a whole site behind one router, and the pace after
/// that. A handshake costs the processor up to a millisecond before its key is known.
const MAX_HANDSHAKE_BURST: u32 = 512;
const HANDSHAKE_INTERVAL: Duration = Duration::from_millis(10);
/// Bounds the keys or addresses that a limit remembers.
const MAX_REMEMBERED: usize = 1024;
/// Bounds the addresses that a server remembers which anybody may find.
const MAX_REMEMBERED_PUBLIC: usize = 16 * 1024;

/// Counts against a rate: holds the time at which all that was counted is paid for.
#[derive(Debug, Clone, Copy, Default)]
struct Debt(Option<Instant>);

impl Debt {
    /// Counts `units` more, and returns how long they have to wait when `burst` may come at once and then one in `each`.
    fn add(&mut self, now: Instant, units: u32, each: Duration, burst: u32) -> Duration {
        let paid = self.0.map_or(now, |paid| paid.max(now)) + each * units;
        self.0 = Some(paid);
        paid.duration_since(now).saturating_sub(each * burst)
    }

    /// Returns whether nothing is left to pay.
    fn is_paid(self, now: Instant) -> bool {
        self.0.is_none_or(|paid| paid <= now)
    }
}

/// Keeps one machine's streams at their pace.
#[derive(Debug, Default)]
pub(crate) struct StreamPace(Mutex<Debt>);

impl StreamPace {
    /// Makes one whose next turn comes in a minute.
    #[cfg(test)]
    pub(crate) fn exhausted() -> Self {
        Self(Mutex::new(Debt(Some(Instant::now() + Duration::from_secs(61)))))
    }

    /// Waits until the next stream may be served. What the machine opens meanwhile waits in QUIC, at its sender.
    pub(crate) async fn turn(&self) {
        let wait = self.0.lock().add(Instant::now(), 1, STREAM_INTERVAL, MAX_STREAM_BURST);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

/// Limits each key or address to a burst of units at once, and then to one unit in each interval.
#[derive(Debug)]
pub(crate) struct RateLimit<K> {
    each: Duration,
    burst: u32,
    /// Bounds how many are remembered.
    most: usize,
    /// Whether those are allowed that are too many to be remembered.
    overflow: bool,
    seen: Mutex<HashMap<K, Debt>>,
}

impl<K: Hash + Eq> RateLimit<K> {
    /// Makes a limit of which nothing is used yet. Of more than are remembered none is allowed.
    pub(crate) fn new(each: Duration, burst: u32) -> Self {
        Self { each, burst, most: MAX_REMEMBERED, overflow: false, seen: Mutex::default() }
    }

    /// Returns whether this one may come now, and counts it then.
    pub(crate) fn allows(&self, who: K) -> bool {
        self.allows_units(who, 1)
    }

    /// Returns whether this one may use this many units now, and counts them then.
    pub(crate) fn allows_units(&self, who: K, units: u32) -> bool {
        let mut seen = self.seen.lock();
        let now = Instant::now();
        if seen.len() >= self.most {
            seen.retain(|_, debt| !debt.is_paid(now));
        }
        if seen.len() >= self.most && !seen.contains_key(&who) {
            return self.overflow;
        }
        let mut debt = seen.get(&who).copied().unwrap_or_default();
        let comes = debt.add(now, units, self.each, self.burst).is_zero();
        if comes {
            seen.insert(who, debt);
        }
        comes
    }
}

/// Says where a connection comes from, as far as that is known before its handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Origin {
    /// Is an address.
    V4(Ipv4Addr),
    /// Is the first 64 bits of an address: a host that has one of them has all.
    V6(u64),
    /// Is a key that a relay proved.
    Key(EndpointId),
    /// Is any other kind of address.
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

impl RateLimit<MachineId> {
    /// Makes a limit for members: more than are remembered are let in, since the config bounds them.
    pub(crate) fn members(each: Duration, burst: u32) -> Self {
        Self { overflow: true, ..Self::new(each, burst) }
    }
}

impl RateLimit<Origin> {
    /// Makes a limit for a server that anybody may find: of more addresses than are remembered none is let in.
    pub(crate) fn public(each: Duration, burst: u32) -> Self {
        Self { most: MAX_REMEMBERED_PUBLIC, ..Self::new(each, burst) }
    }

    /// Makes the limit of the handshakes at one endpoint. An address that cannot be remembered is let in.
    pub(crate) fn handshakes() -> Self {
        Self { overflow: true, ..Self::new(HANDSHAKE_INTERVAL, MAX_HANDSHAKE_BURST) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_machine_opens_a_burst_of_streams_at_once_and_then_one_at_a_time() {
        let (pace, begun) = (StreamPace::default(), Instant::now());
        for _ in 0..MAX_STREAM_BURST {
            pace.turn().await;
        }
        assert_eq!(begun.elapsed(), Duration::ZERO);
        for _ in 0..100 {
            pace.turn().await;
        }
        assert_eq!(begun.elapsed(), STREAM_INTERVAL * 100);
        // A pause gives back as much as it lasts, and no more than all.
        tokio::time::sleep(STREAM_INTERVAL * MAX_STREAM_BURST * 2).await;
        let again = Instant::now();
        for _ in 0..MAX_STREAM_BURST {
            pace.turn().await;
        }
        assert_eq!(again.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_comes_too_early_is_sent_away_and_another_is_not() {
        let visits = RateLimit::new(Duration::from_secs(1), 2);
        let came: Vec<bool> = (0..4).map(|_| visits.allows(1)).collect();
        assert_eq!(came, [true, true, false, false]);
        assert!(visits.allows(2));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!([visits.allows(1), visits.allows(1)], [true, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn more_keys_than_are_remembered_are_too_early_until_the_first_have_had_their_time() {
        let visits = RateLimit::new(Duration::from_secs(1), 1);
        assert!((0..MAX_REMEMBERED).all(|number| visits.allows(number)));
        assert!(!visits.allows(MAX_REMEMBERED));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(visits.allows(MAX_REMEMBERED));
        assert_eq!(visits.seen.lock().len(), 1, "those that had their time are forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn a_public_server_remembers_a_bounded_number_of_addresses_and_lets_no_other_in() {
        let visits = RateLimit::public(Duration::from_secs(1), 1);
        let came = (0..2 * MAX_REMEMBERED_PUBLIC as u32)
            .filter(|n| visits.allows(Origin::V4(Ipv4Addr::from_bits(*n))))
            .count();
        assert_eq!(came, MAX_REMEMBERED_PUBLIC);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(visits.allows(Origin::V4(Ipv4Addr::LOCALHOST)), "those that had their time are forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn handshakes_of_one_address_are_counted_and_addresses_beyond_those_remembered_are_let_in() {
        let handshakes = RateLimit::handshakes();
        let from = |text: &str| Origin::from(&IncomingAddr::Ip(text.parse().unwrap()));
        // Other ports, and other addresses of one network, are the same origin.
        assert_eq!(from("192.0.2.1:1"), from("[::ffff:192.0.2.1]:2"));
        assert_eq!(from("[2001:db8::1]:1"), from("[2001:db8::ffff:2]:1"));
        assert_ne!(from("[2001:db8::1]:1"), from("[2001:db8:0:1::1]:1"));
        let begun = (0..MAX_HANDSHAKE_BURST + 10).filter(|_| handshakes.allows(from("192.0.2.1:1"))).count();
        assert_eq!(begun, MAX_HANDSHAKE_BURST as usize);
        let others: Vec<Origin> = (0..2 * MAX_REMEMBERED as u32).map(|n| Origin::V4(Ipv4Addr::from_bits(n))).collect();
        assert!(others.iter().all(|origin| handshakes.allows(*origin)));
        assert!(handshakes.seen.lock().len() <= MAX_REMEMBERED);
        assert!(!handshakes.allows(from("192.0.2.1:1")), "it is still remembered");
        tokio::time::sleep(HANDSHAKE_INTERVAL).await;
        assert!(handshakes.allows(from("192.0.2.1:1")));
    }
}

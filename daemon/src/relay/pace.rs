//! How often one address may come: a bucket of tokens for each, of a bounded number of addresses.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Addresses that are remembered. While so many are busy at once, further ones are turned away.
const REMEMBERED: usize = 16 * 1024;

/// How often addresses may come.
#[derive(Debug)]
pub(crate) struct Pace {
    burst: u32,
    every: Duration,
    /// For each address the time at which its bucket is full again.
    full_at: Mutex<HashMap<IpAddr, Instant>>,
}

impl Pace {
    /// So many at once, and then one every so often.
    pub(crate) fn new(burst: u32, every: Duration) -> Self {
        Self { burst, every, full_at: Mutex::default() }
    }

    /// Whether this address may come now; that counts as having come.
    pub(crate) fn admits(&self, address: IpAddr) -> bool {
        let (now, key) = (Instant::now(), network(address));
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        if full_at.len() >= REMEMBERED && !full_at.contains_key(&key) {
            full_at.retain(|_, at| *at > now);
            if full_at.len() >= REMEMBERED {
                return false;
            }
        }
        let at = full_at.get(&key).copied().unwrap_or(now).max(now) + self.every;
        let admitted = at.duration_since(now) <= self.every * self.burst;
        if admitted {
            full_at.insert(key, at);
        }
        admitted
    }
}

/// What stands for an address: with IPv6 one host has a whole /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & !u128::from(u64::MAX)).into()),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_address_comes_in_a_burst_and_then_at_its_pace_and_others_do_not_feel_it() {
        let pace = Pace::new(3, Duration::from_secs(1));
        let [one, other]: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()];
        assert_eq!([(); 4].map(|()| pace.admits(one)), [true, true, true, false]);
        assert!(pace.admits(other));
        assert!(pace.admits("::ffff:192.0.2.2".parse().unwrap()) && pace.admits(other) && !pace.admits(other));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!([pace.admits(one), pace.admits(one)], [true, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn all_addresses_of_a_v6_network_count_as_one_and_what_is_remembered_is_bounded() {
        let pace = Pace::new(1, Duration::from_secs(1));
        assert!(pace.admits("2001:db8::1".parse().unwrap()) && !pace.admits("2001:db8::2".parse().unwrap()));
        let admitted = (0..2 * REMEMBERED as u32).filter(|n| pace.admits(IpAddr::V4((*n).into()))).count();
        assert_eq!(admitted, REMEMBERED - 1);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(pace.admits("198.51.100.1".parse().unwrap()), "those that went are forgotten");
    }
}

//! How much may be under way on a path: Cubic (RFC 9438), which on a line that loses much at random still sends what a new
//! connection would.
//!
//! Cubic takes each loss for a full queue. On a line that loses every fifth packet, its window is soon the smallest that
//! there is, two packets; when both are lost, nothing moves until a timer expires, each time later, and a session is silent
//! for seconds on a line that carries four of five packets. So the window is no smaller than the initial one, ten packets
//! (RFC 9002, section 7.2), as long as at least half of what is sent arrives (docs/decisions/0016).

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use iroh::endpoint::{Controller, ControllerFactory, ControllerMetrics};
use noq_proto::RttEstimator;
use noq_proto::congestion::CubicConfig;

/// Bytes whose arrival or loss is remembered in full; what came before counts half, and what came before that a quarter.
const REMEMBERED: u64 = 64 * 1024;

/// Makes a controller for each path.
#[derive(Debug, Default)]
pub(crate) struct Floored;

impl ControllerFactory for Floored {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        let cubic = Arc::new(CubicConfig::default()).build(now, mtu);
        Box::new(Floor { cubic, fate: Fate::default() })
    }
}

/// Cubic with a floor.
#[derive(Debug)]
struct Floor {
    cubic: Box<dyn Controller>,
    fate: Fate,
}

impl Controller for Floor {
    fn on_sent(&mut self, now: Instant, bytes: u64, largest: u64) {
        self.cubic.on_sent(now, bytes, largest);
    }

    fn on_packet_sent(&mut self, now: Instant, bytes: u16, pn: u64) {
        self.cubic.on_packet_sent(now, bytes, pn);
    }

    fn on_cwnd_limited(&mut self) {
        self.cubic.on_cwnd_limited();
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, pn: u64, app_limited: bool, rtt: &RttEstimator) {
        self.fate.arrived(bytes);
        self.cubic.on_ack(now, sent, bytes, pn, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        self.cubic.on_end_acks(now, in_flight, app_limited, largest);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent: bool,
        is_ecn: bool,
        lost_bytes: u64,
        largest_lost: u64,
    ) {
        if is_ecn {
            self.fate.refused();
        } else {
            self.fate.lost(lost_bytes);
        }
        self.cubic.on_congestion_event(now, sent, is_persistent, is_ecn, lost_bytes, largest_lost);
    }

    fn on_packet_lost(&mut self, bytes: u16, pn: u64, now: Instant) {
        self.cubic.on_packet_lost(bytes, pn, now);
    }

    fn on_spurious_congestion_event(&mut self) {
        self.cubic.on_spurious_congestion_event();
    }

    fn on_mtu_update(&mut self, mtu: u16) {
        self.cubic.on_mtu_update(mtu);
    }

    fn on_ack_frequency_update(&mut self, threshold: u64, max_delay: Duration) {
        self.cubic.on_ack_frequency_update(threshold, max_delay);
    }

    fn window(&self) -> u64 {
        let window = self.cubic.window();
        if self.fate.most_arrives() { window.max(self.cubic.initial_window()) } else { window }
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = self.cubic.metrics();
        metrics.congestion_window = self.window();
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { cubic: self.cubic.clone_box(), fate: self.fate })
    }

    fn initial_window(&self) -> u64 {
        self.cubic.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// Says what became of the bytes that were sent of late.
#[derive(Debug, Clone, Copy, Default)]
struct Fate {
    arrived: u64,
    lost: u64,
}

impl Fate {
    fn arrived(&mut self, bytes: u64) {
        self.arrived += bytes;
        self.forget();
    }

    fn lost(&mut self, bytes: u64) {
        self.lost += bytes;
        self.forget();
    }

    /// Reacts to a router that says its queue is full, which is believed at once.
    fn refused(&mut self) {
        *self = Self { arrived: 0, lost: REMEMBERED / 2 };
    }

    fn forget(&mut self) {
        if self.arrived + self.lost > REMEMBERED {
            (self.arrived, self.lost) = (self.arrived / 2, self.lost / 2);
        }
    }

    /// At least half of it arrived.
    fn most_arrives(self) -> bool {
        self.lost <= self.arrived
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MTU: u16 = 1200;

    /// Returns a controller, and what Cubic alone starts with.
    fn controller() -> (Floor, u64) {
        let cubic = Arc::new(CubicConfig::default()).build(Instant::now(), MTU);
        let initial = cubic.window();
        (Floor { cubic, fate: Fate::default() }, initial)
    }

    /// Makes this many losses of a packet, each in a round trip of its own, with this many packets that arrive in between.
    fn lose(floor: &mut Floor, losses: u32, arrivals: u32) {
        for _ in 0..losses {
            floor.fate.arrived(u64::from(arrivals) * u64::from(MTU));
            // Later than the last recovery began, or it would be one loss to Cubic.
            let sent = Instant::now() + Duration::from_secs(1);
            floor.on_congestion_event(sent, sent, false, false, MTU.into(), 0);
        }
    }

    #[test]
    fn where_every_fifth_packet_is_lost_the_window_stays_as_large_as_the_first_one() {
        let (mut floor, initial) = controller();
        lose(&mut floor, 100, 4);
        assert!(floor.cubic.window() < initial, "Cubic's own is smaller");
        assert_eq!(floor.window(), initial);
        assert_eq!(floor.metrics().congestion_window, initial);
        assert_eq!(floor.clone_box().window(), initial);
    }

    #[test]
    fn where_most_packets_are_lost_the_window_is_cubics() {
        let (mut floor, initial) = controller();
        lose(&mut floor, 100, 0);
        assert_eq!(floor.window(), floor.cubic.window());
        assert_eq!(floor.window(), 2 * u64::from(MTU));
        floor.fate.arrived(REMEMBERED);
        assert_eq!(floor.window(), initial, "what was lost is forgotten when as much has arrived");
    }

    #[test]
    fn a_router_that_says_that_its_queue_is_full_is_believed_at_once() {
        let (mut floor, initial) = controller();
        floor.fate.arrived(REMEMBERED);
        let now = Instant::now();
        floor.on_congestion_event(now, now, false, true, 0, 0);
        assert!(floor.window() < initial);
        assert_eq!(floor.window(), floor.cubic.window());
        floor.fate.arrived(REMEMBERED);
        assert_eq!(floor.window(), initial);
    }
}

//! Bounds how often the log says the same thing. The first lines of one kind about one peer are written. Further ones
//! within the same minute are counted, and when it is over one line says how many there were.
//!
//! So a peer that hammers, or strangers with a new key for every attempt, cost the log some lines a minute, not one for
//! each attempt. Lines below `info` are not counted: a user who asks for them wants all of them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use malai_daemon::runtime::logging::Log;
use parking_lot::{Condvar, Mutex};
use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::layer::Context;

use crate::escape;

/// Sets the time over which lines of one kind are counted together.
const REPEATS_PERIOD: Duration = Duration::from_secs(60);
/// Bounds the lines of one kind about one peer in a period: enough to see how things go on after the first one.
const REPEATS_MAX_LINES_PER_PEER: u64 = 5;
/// Bounds the lines of one kind about all peers in a period.
const REPEATS_MAX_LINES_PER_KIND: u64 = 60;
/// Bounds the words that a count repeats, in bytes.
const REPEATS_WORDS_MAX_BYTES: usize = 300;
/// Lists the fields that say which peer a line is about.
const PEER_FIELDS: [&str; 4] = ["peer", "machine", "relay", "uid"];

/// Is the layer that leaves lines out.
#[derive(Debug, Clone)]
pub(super) struct Repeats {
    log: Log,
    counts: Arc<Mutex<Counts>>,
    /// Wakes the thread when something is counted.
    begun: Arc<Condvar>,
}

/// Counts the lines of the current period: one entry for each kind, and at most [`REPEATS_MAX_LINES_PER_KIND`] more for
/// its peers.
#[derive(Debug, Default)]
struct Counts {
    kinds: HashMap<Identifier, Kind>,
}

#[derive(Debug)]
struct Kind {
    since: Instant,
    written: u64,
    /// Lines left out about peers that have no entry.
    left_out: u64,
    level: Level,
    words: String,
    peers: HashMap<String, Peer>,
}

#[derive(Debug, Default)]
struct Peer {
    written: u64,
    left_out: u64,
    words: String,
}

/// Holds a count that is to be written.
#[derive(Debug, PartialEq, Eq)]
struct Count {
    level: Level,
    left_out: u64,
    words: String,
}

impl Repeats {
    /// Returns the layer, and starts the thread that writes its counts.
    pub(super) fn start(log: &Log) -> Self {
        let repeats = Self { log: log.clone(), counts: Arc::default(), begun: Arc::default() };
        let ticking = repeats.clone();
        let tick = move || {
            loop {
                ticking.wait();
                // Nothing is due before the first period is over.
                std::thread::sleep(REPEATS_PERIOD);
                let over = ticking.counts.lock().over(Instant::now());
                ticking.tell(&over);
            }
        };
        // Without the thread, counts are written when the next line of their kind comes.
        drop(std::thread::Builder::new().name("log-counts".into()).spawn(tick));
        repeats
    }

    /// Waits until something is counted: a process that says nothing does not wake up for it.
    fn wait(&self) {
        self.begun.wait_while(&mut self.counts.lock(), |counts| counts.kinds.is_empty());
    }

    /// Writes counts straight into the log: their lines were wanted there.
    fn tell(&self, counts: &[Count]) {
        for Count { level, left_out, words } in counts {
            let mut line = String::new();
            // Writing to a String cannot fail.
            let _time = SystemTime.format_time(&mut Writer::new(&mut line));
            // The words of strangers are among them, and this does not go by what makes other lines harmless.
            let words = escape::line(words.trim_end());
            let _rest = writeln!(line, " {level:>5} malai: {left_out} more in the last minute: {words}");
            self.log.say(line.as_bytes());
        }
    }
}

impl<S: Subscriber> Layer<S> for Repeats {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let meta = event.metadata();
        if *meta.level() > Level::INFO {
            return true;
        }
        let mut about = About::default();
        event.record(&mut about);
        // Of malai's own lines, those about no peer differ by what they say. What libraries say about their attempts is
        // different every time and means the same.
        if about.peer.is_empty() && meta.target().starts_with("malai") {
            about.peer.clone_from(&about.words);
        }
        let (is_written, over) = self.counts.lock().say(meta.callsite(), *meta.level(), about, Instant::now());
        self.begun.notify_one();
        self.tell(&over);
        is_written
    }
}

impl Counts {
    /// Counts a line. Returns whether it is written, and the counts that are due because its kind's period is over.
    fn say(&mut self, id: Identifier, level: Level, about: About, now: Instant) -> (bool, Vec<Count>) {
        let fresh =
            || Kind { since: now, written: 0, left_out: 0, level, words: about.words.clone(), peers: HashMap::new() };
        let mut due = Vec::new();
        let kind = match self.kinds.entry(id) {
            Entry::Vacant(place) => place.insert(fresh()),
            Entry::Occupied(place) => {
                let kind = place.into_mut();
                if now.saturating_duration_since(kind.since) >= REPEATS_PERIOD {
                    due = std::mem::replace(kind, fresh()).counts();
                }
                kind
            }
        };
        (kind.say(about), due)
    }

    /// Takes the counts of all periods that are over.
    fn over(&mut self, now: Instant) -> Vec<Count> {
        let is_over = |kind: &Kind| now.saturating_duration_since(kind.since) >= REPEATS_PERIOD;
        self.kinds.extract_if(|_, kind| is_over(kind)).flat_map(|(_, kind)| kind.counts()).collect()
    }
}

impl Kind {
    fn say(&mut self, about: About) -> bool {
        let is_full = self.written >= REPEATS_MAX_LINES_PER_KIND;
        let peer = match self.peers.entry(about.peer) {
            Entry::Occupied(place) => place.into_mut(),
            Entry::Vacant(_) if is_full => {
                self.left_out += 1;
                return false;
            }
            Entry::Vacant(place) => place.insert(Peer { words: about.words, ..Peer::default() }),
        };
        if is_full || peer.written >= REPEATS_MAX_LINES_PER_PEER {
            peer.left_out += 1;
            return false;
        }
        peer.written += 1;
        self.written += 1;
        true
    }

    fn counts(self) -> Vec<Count> {
        let level = self.level;
        let of = |left_out, words| (left_out > 0).then_some(Count { level, left_out, words });
        let peers = self.peers.into_values().filter_map(|peer| of(peer.left_out, peer.words));
        peers.chain(of(self.left_out, self.words)).collect()
    }
}

/// Collects what a line says, and about which peer.
#[derive(Debug, Default)]
struct About {
    peer: String,
    words: String,
}

impl Visit for About {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let peer = PEER_FIELDS.contains(&field.name());
        // Writing into it fails only when it is full.
        let mut words = Bounded(&mut self.words);
        let _is_full = match field.name() {
            "message" => write!(words, "{value:?} "),
            name => write!(words, "{name}={value:?} "),
        };
        if peer {
            let _is_full = write!(Bounded(&mut self.peer), "{value:?} ");
        }
    }
}

/// Takes no more than [`REPEATS_WORDS_MAX_BYTES`].
struct Bounded<'a>(&'a mut String);

impl fmt::Write for Bounded<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = REPEATS_WORDS_MAX_BYTES.saturating_sub(self.0.len());
        let cut = text.floor_char_boundary(room);
        self.0.push_str(text.get(..cut).unwrap_or_default());
        if cut < text.len() { Err(fmt::Error) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    /// A log in memory.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is logged meanwhile, and the counts that are due after a period.
    fn logged(say: impl FnOnce()) -> (Vec<String>, Vec<Count>) {
        let written = Written::default();
        let repeats = Repeats { log: Log::to_stderr(), counts: Arc::default(), begun: Arc::default() };
        let writer = written.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(Level::DEBUG)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish()
            .with(repeats.clone());
        tracing::subscriber::with_default(subscriber, say);
        let text = String::from_utf8(written.0.lock().clone()).expect("text");
        let over = repeats.counts.lock().over(Instant::now() + REPEATS_PERIOD);
        (text.lines().map(ToOwned::to_owned).collect(), over)
    }

    #[test]
    fn one_that_hammers_is_counted_and_says_nothing_about_another() {
        let refuse = |peer: &str| tracing::warn!(peer, "refused");
        let (lines, over) = logged(|| {
            (0..10_000).for_each(|_| refuse("abc"));
            refuse("def");
        });
        let of = |peer: &str| lines.iter().filter(|line| line.contains(peer)).count();
        assert_eq!((of("abc"), of("def")), (5, 1), "{lines:?}");
        assert_eq!(over, [Count { level: Level::WARN, left_out: 9_995, words: "refused peer=\"abc\" ".into() }]);
    }

    #[test]
    fn strangers_with_a_new_key_each_are_counted_together() {
        let (lines, over) = logged(|| {
            for number in 0..10_000 {
                tracing::info!(peer = %format!("k{number}"), "connection refused");
            }
        });
        assert_eq!(lines.len(), 60);
        assert_eq!(over.iter().map(|count| count.left_out).sum::<u64>(), 9_940);
        assert_eq!(over.len(), 1, "one line tells: {over:?}");
    }

    #[test]
    fn lines_about_no_peer_are_told_apart_by_what_they_say_unless_a_library_says_them() {
        let (lines, over) = logged(|| {
            for number in 0..10 {
                tracing::error!(cluster = number, "does not work");
                tracing::warn!(target: "iroh", "attempt {number} failed");
                tracing::warn!("the same");
            }
        });
        let of = |words: &str| lines.iter().filter(|line| line.contains(words)).count();
        assert_eq!((of("does not work"), of("iroh"), of("the same")), (10, 5, 5), "{lines:?}");
        assert_eq!(over.len(), 2, "{over:?}");
    }

    #[test]
    fn lines_that_somebody_asked_for_are_all_there() {
        let (lines, over) = logged(|| (0..1000).for_each(|_| tracing::debug!("said")));
        assert_eq!((lines.len(), over.len()), (1000, 0));
    }

    #[test]
    fn after_a_period_it_begins_again_and_the_count_comes_first() {
        let (mut counts, now) = (Counts::default(), Instant::now());
        let id = || tracing::callsite!(name: "x", kind: tracing::metadata::Kind::EVENT, fields: x);
        let id = tracing::callsite::Callsite::metadata(id()).callsite();
        let mut say = |now| counts.say(id.clone(), Level::INFO, About::default(), now);
        let said: Vec<_> = (0..7).map(|_| say(now).0).collect();
        assert_eq!(said, [true, true, true, true, true, false, false]);
        let (is_written, due) = say(now + REPEATS_PERIOD);
        assert!(is_written);
        assert_eq!(due, [Count { level: Level::INFO, left_out: 2, words: String::new() }]);
    }

    #[test]
    fn words_of_another_machine_are_bounded() {
        let long = "x".repeat(1_000_000);
        let (_, over) = logged(|| (0..6).for_each(|_| tracing::info!(peer = %long, "{long}")));
        assert!(over.iter().all(|count| count.words.len() <= REPEATS_WORDS_MAX_BYTES), "{}", over.len());
        assert_eq!(over.len(), 1);
    }
}

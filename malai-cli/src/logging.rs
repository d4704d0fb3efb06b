//! Decides which lines every process of malai logs. [`malai_daemon::runtime::logging`] decides where they go, and what
//! happens to a line that cannot be written.

mod repeats;

use malai_daemon::runtime::logging::Log;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;

use repeats::Repeats;

/// Names the variable that says what is logged, in the syntax of `tracing_subscriber::EnvFilter`.
const LOG_VARIABLE: &str = "MALAI_LOG";
/// Sets what is logged without the variable.
pub(crate) const LOG_DEFAULT_FILTER: &str = "warn,malai=info,malai_daemon=info";
/// Sets what a relay logs without the variable: iroh's server has a line for every stranger that breaks the protocol.
pub(crate) const LOG_RELAY_FILTER: &str = "warn,malai=info,malai_daemon=info,iroh_relay=off";
/// Lists parts of other crates that may log the URL of a proxy, or what is sent to it. They stay at `info`, whatever
/// `MALAI_LOG` says.
const LOG_CAPPED_TARGETS: [&str; 4] = [
    "iroh_relay::client::tls=info",
    "reqwest::connect=info",
    "hyper_util::client::proxy=info",
    "hyper_util::client::legacy::connect=info",
];
/// Lists the levels, as words.
const LOG_LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Starts to log as `MALAI_LOG` says. Where it is wrong, uses the default, and returns what is wrong.
pub(crate) fn start(log: &Log, default: &str) -> Option<String> {
    let (filter, wrong) = match std::env::var_os(LOG_VARIABLE).filter(|words| !words.is_empty()) {
        None => (EnvFilter::new(default), None),
        Some(words) => match parse(&words.to_string_lossy()) {
            Ok(filter) => (filter, None),
            Err(why) => {
                let shown = words.to_string_lossy();
                let text = format!(
                    "{LOG_VARIABLE}={shown} is not understood, and `{default}` counts: {why}; examples: debug; \
                     warn,malai_daemon=debug"
                );
                (EnvFilter::new(default), Some(text))
            }
        },
    };
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(capped(filter))
        .with_ansi(false)
        // An error of the log itself would be printed to standard error, which may be that log.
        .log_internal_errors(false)
        .with_writer(move || writer.clone())
        .finish();
    // It was done before when this fails, and then that counts.
    drop(tracing::subscriber::set_global_default(subscriber.with(Repeats::start(log))));
    log_panics(log);
    if let Some(wrong) = &wrong {
        tracing::warn!("{wrong}");
    }
    wrong
}

/// Leaves out what would show a proxy's password.
fn capped(filter: EnvFilter) -> EnvFilter {
    let directives = LOG_CAPPED_TARGETS.iter().filter_map(|directive| directive.parse().ok());
    directives.fold(filter, EnvFilter::add_directive)
}

/// Parses what a person wrote. A single word is a level. As the name of a part of the program, which it could be too,
/// it would turn off everything else.
fn parse(words: &str) -> Result<EnvFilter, String> {
    for word in words.split(',').map(str::trim) {
        let is_plain = !word.contains(['=', '[', ':']);
        if is_plain && !LOG_LEVELS.iter().any(|level| word.eq_ignore_ascii_case(level)) {
            return Err(format!(
                "`{word}` is no level ({}); for a part of the program: {word}=debug",
                LOG_LEVELS.join(", ")
            ));
        }
    }
    EnvFilter::builder().parse(words).map_err(|error| error.to_string())
}

/// Logs panics too. Rust's own hook would wait for a standard error that nobody reads.
fn log_panics(log: &Log) {
    let log = log.clone();
    std::panic::set_hook(Box::new(move |info| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("unnamed");
        log.say(format!("malai: a fault in the program, in thread {name}: {info}\n").as_bytes());
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_a_level_or_has_parts_of_the_program_with_theirs() {
        for good in
            ["debug", "off", "WARN", "warn,malai_daemon=debug", "malai_daemon::net=trace, info", LOG_RELAY_FILTER]
        {
            parse(good).unwrap_or_else(|why| panic!("{good}: {why}"));
        }
        for (bad, says) in [
            ("inof", "`inof` is no level"),
            ("warn,malai_daemon", "malai_daemon=debug"),
            ("malai=inof", "level filter"),
            ("malai_daemon=debug,,", "`` is no level"),
            ("[x{", "invalid"),
        ] {
            let why = parse(bad).expect_err(bad);
            assert!(why.contains(says), "{bad}: {why}");
        }
    }

    #[test]
    fn no_filter_shows_what_is_sent_to_a_proxy() {
        for wanted in [LOG_DEFAULT_FILTER, LOG_RELAY_FILTER, "trace", "iroh_relay=trace,reqwest=debug"] {
            let shown = capped(parse(wanted).expect(wanted)).to_string();
            assert!(LOG_CAPPED_TARGETS.iter().all(|capped| shown.contains(capped)), "{wanted}: {shown}");
        }
        assert!(capped(parse("trace").expect("a level")).to_string().contains("trace"));
    }
}

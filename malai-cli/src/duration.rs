//! Spans of time as they are typed: `500ms`, `5`, `5s`, `1.5m`, `1h`, `7d`.

use std::time::Duration;

/// Lists the units with their length in milliseconds; the longer name first where one ends with another.
const DURATION_UNITS: &[(&str, f64)] = &[("ms", 1.0), ("s", 1e3), ("m", 60e3), ("h", 3600e3), ("d", 86_400e3)];
/// Bounds a span: about a hundred years, far from any overflow.
const MAX_SPAN_MS: f64 = 100.0 * 365.25 * 86_400e3;

/// Reads a span; a bare number is seconds.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let (number, unit) = DURATION_UNITS
        .iter()
        .find_map(|(name, length)| text.strip_suffix(name).map(|number| (number, *length)))
        .unwrap_or((text, 1e3));
    // `f64` would also read `inf`, `1e9` and a sign.
    if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return Err("a span of time is a number and ms, s, m, h or d; a bare number is seconds".into());
    }
    let number: f64 = number.parse().map_err(|_| format!("`{number}` is not a number"))?;
    let ms = number * unit;
    if ms > MAX_SPAN_MS {
        return Err("longer than a hundred years".into());
    }
    if ms < 1.0 {
        return Err("must be at least 1ms".into());
    }
    Ok(Duration::from_secs_f64(ms / 1e3))
}

/// Returns a span in whole milliseconds.
pub(crate) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// Writes a span for people, in the largest unit that needs no fraction.
pub(crate) fn words(span: Duration) -> String {
    match millis(span) {
        ms if ms % 3_600_000 == 0 && ms > 0 => format!("{} h", ms / 3_600_000),
        ms if ms % 60_000 == 0 && ms > 0 => format!("{} min", ms / 60_000),
        ms if ms % 1000 == 0 => format!("{} s", ms / 1000),
        ms => format!("{ms} ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_a_unit_or_is_seconds() {
        for (text, ms) in [("5", 5000), ("5s", 5000), ("250ms", 250), ("1.5m", 90_000), ("1h", 3_600_000)] {
            assert_eq!(parse(text).map(millis), Ok(ms), "{text}");
        }
        assert_eq!(parse("2d").map(millis), Ok(172_800_000));
    }

    #[test]
    fn nonsense_and_zero_are_refused() {
        for text in ["", "s", "-1", "+1", "inf", "1e3", "1 s", "1w", "0", "0.1ms", "1.2.3", "9999999999h"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_span_in_words_has_no_fraction() {
        let cases = [(0, "0 s"), (1500, "1500 ms"), (90_000, "90 s"), (600_000, "10 min"), (7_200_000, "2 h")];
        for (ms, text) in cases {
            assert_eq!(words(Duration::from_millis(ms)), text);
        }
    }
}

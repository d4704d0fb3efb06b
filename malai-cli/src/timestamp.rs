//! Points in time: milliseconds since the epoch, as people write and read them. All in UTC.

pub(crate) use malai_daemon::runtime::clock::now_ms;
use time::{Date, Month, PrimitiveDateTime, Time, UtcDateTime};

/// Writes `2026-01-31T23:59:59Z`. A time after the year 9999, which no clock has and another machine may claim, stays a
/// number.
pub(crate) fn utc(ms: u64) -> String {
    let at = i64::try_from(ms / 1000).ok().and_then(|seconds| UtcDateTime::from_unix_timestamp(seconds).ok());
    let Some(at) = at else { return format!("{ms} ms") };
    let ((year, month, day), (hour, minute, second)) = (at.date().to_calendar_date(), at.time().as_hms());
    format!("{year:04}-{:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z", u8::from(month))
}

/// Writes how long ago that was, roughly: `12 s`, `5 min`, `3 h`, `9 d`. A time in the future is `0 s` ago: clocks differ.
pub(crate) fn ago(ms: u64, now_ms: u64) -> String {
    let seconds = now_ms.saturating_sub(ms) / 1000;
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Reads `2026-01-31`, `2026-01-31T23:59` or `2026-01-31T23:59:59`, with or without a final `Z`.
pub(crate) fn parse(text: &str) -> Option<u64> {
    let text = text.strip_suffix('Z').unwrap_or(text);
    let (date, time) = text.split_once('T').unwrap_or((text, "00:00:00"));
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = if time.len() == 5 {
        let [hour, minute] = numbers(time, ':', [2, 2])?;
        [hour, minute, 0]
    } else {
        numbers(time, ':', [2, 2, 2])?
    };
    let byte = |number: u16| u8::try_from(number).ok();
    let date = Date::from_calendar_date(year.into(), Month::try_from(byte(month)?).ok()?, byte(day)?).ok()?;
    let time = Time::from_hms(byte(hour)?, byte(minute)?, byte(second)?).ok()?;
    let seconds = PrimitiveDateTime::new(date, time).assume_utc().unix_timestamp();
    Some(u64::try_from(seconds).ok()? * 1000)
}

fn numbers<const N: usize>(text: &str, between: char, widths: [usize; N]) -> Option<[u16; N]> {
    let mut out = [0; N];
    let mut parts = text.split(between);
    for (slot, width) in out.iter_mut().zip(widths) {
        let part = parts.next().filter(|p| p.len() == width && p.bytes().all(|b| b.is_ascii_digit()))?;
        *slot = part.parse().ok()?;
    }
    parts.next().is_none().then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_points_in_time_are_written_and_read() {
        let known = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_164_799, "2024-02-28T23:59:59Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
            (1_767_225_600, "2026-01-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ];
        for (seconds, text) in known {
            assert_eq!(utc(seconds * 1000), text);
            assert_eq!(parse(text), Some(seconds * 1000));
        }
        assert_eq!(utc(u64::MAX), format!("{} ms", u64::MAX));
        assert_eq!(parse("2026-01-01"), Some(1_767_225_600_000));
        assert_eq!(parse("2026-01-01T00:01"), Some(1_767_225_660_000));
    }

    #[test]
    fn every_day_of_five_centuries_round_trips() {
        for day in 0..182_621 {
            let ms = day * 86_400_000;
            assert_eq!(parse(&utc(ms)), Some(ms));
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in
            ["", "2026", "2026-13-01", "2026-02-29", "2026-1-1", "2026-01-01T25:00", "1969-12-31", "2026-01-01Z1"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn ago_is_rough() {
        assert_eq!(ago(5_000, 10_000), "5 s");
        assert_eq!(ago(10_000, 5_000), "0 s");
        assert_eq!(ago(0, 300_000), "5 min");
        assert_eq!(ago(0, 86_400_000), "24 h");
        assert_eq!(ago(0, 864_000_000), "10 d");
    }
}

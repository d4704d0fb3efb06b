//! Points in time: milliseconds since the epoch, as people write and read them. All in UTC.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAY_S: u64 = 86_400;

/// Milliseconds since the epoch, now.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    crate::duration::millis(since)
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_in_year(year: u64) -> u64 {
    if is_leap(year) { 366 } else { 365 }
}

fn days_in_month(year: u64, month: u64) -> u64 {
    match month {
        2 => 28 + u64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from the epoch to the first of January of this year; counts leap years in closed form.
fn days_before_year(year: u64) -> u64 {
    let leaps = |y: u64| y / 4 - y / 100 + y / 400;
    (year - 1970) * 365 + leaps(year - 1) - leaps(1969)
}

/// `2026-01-31T23:59:59Z`.
pub(crate) fn utc(ms: u64) -> String {
    let seconds = ms / 1000;
    let mut day = seconds / DAY_S;
    // An average year never overshoots by more than one.
    let mut year = 1970 + day * 400 / 146_097;
    while days_before_year(year) > day {
        year -= 1;
    }
    while day - days_before_year(year) >= days_in_year(year) {
        year += 1;
    }
    day -= days_before_year(year);
    let mut month = 1;
    while day >= days_in_month(year, month) {
        day -= days_in_month(year, month);
        month += 1;
    }
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", day + 1)
}

/// How long ago, roughly: `12 s`, `5 min`, `3 h`, `9 d`. A time in the future is `0 s` ago: clocks differ.
pub(crate) fn ago(ms: u64, now_ms: u64) -> String {
    let seconds = now_ms.saturating_sub(ms) / 1000;
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / DAY_S),
    }
}

/// Reads `2026-01-31`, `2026-01-31T23:59` or `2026-01-31T23:59:59`, with or without a final `Z`.
pub(crate) fn parse(text: &str) -> Option<u64> {
    let text = text.strip_suffix('Z').unwrap_or(text);
    let (date, time) = text.split_once('T').unwrap_or((text, "00:00:00"));
    let date = numbers::<3>(date, '-', [4, 2, 2])?;
    let time = if time.len() == 5 {
        let [hour, minute] = numbers::<2>(time, ':', [2, 2])?;
        [hour, minute, 0]
    } else {
        numbers::<3>(time, ':', [2, 2, 2])?
    };
    let ([year, month, day], [hour, minute, second]) = (date, time);
    let sound = year >= 1970 && (1..=12).contains(&month) && hour < 24 && minute < 60 && second < 60;
    if !sound || day == 0 || day > days_in_month(year, month) {
        return None;
    }
    let days = days_before_year(year) + (1..month).map(|m| days_in_month(year, m)).sum::<u64>() + day - 1;
    Some((days * DAY_S + hour * 3600 + minute * 60 + second) * 1000)
}

fn numbers<const N: usize>(text: &str, between: char, widths: [usize; N]) -> Option<[u64; N]> {
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
        assert_eq!(parse("2026-01-01"), Some(1_767_225_600_000));
        assert_eq!(parse("2026-01-01T00:01"), Some(1_767_225_660_000));
    }

    #[test]
    fn every_day_of_five_centuries_round_trips() {
        for day in 0..182_621 {
            let ms = day * DAY_S * 1000;
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

//! The time of day. Clocks are wrong now and then, before 1970 or beyond the calendar, and no result depends on them.

use std::time::{SystemTime, UNIX_EPOCH};

use chrono::{DateTime, Datelike as _, Local, Utc};

/// The time, as a date.
pub(crate) fn now() -> DateTime<Utc> {
    date(SystemTime::now())
}

/// The date of a time: the first or the last of the calendar where the time is beyond it.
pub(crate) fn date(time: SystemTime) -> DateTime<Utc> {
    let (seconds, nanoseconds) = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => (i64::try_from(after.as_secs()).unwrap_or(i64::MAX), after.subsec_nanos()),
        Err(before) => {
            let before = before.duration();
            // Nanoseconds count forwards from a second, on this side, too.
            let up = u32::from(before.subsec_nanos() > 0);
            let seconds = i64::try_from(before.as_secs()).unwrap_or(i64::MAX).saturating_add(i64::from(up));
            (seconds.saturating_neg(), (1_000_000_000 * up).saturating_sub(before.subsec_nanos()))
        }
    };
    let end = if seconds < 0 { DateTime::<Utc>::MIN_UTC } else { DateTime::<Utc>::MAX_UTC };
    DateTime::from_timestamp(seconds, nanoseconds).unwrap_or(end)
}

/// Seconds by which local time is ahead of UTC at `time`; 0 where the rules of time zones do not reach.
pub(crate) fn offset(time: SystemTime) -> i32 {
    let date = date(time);
    match date.year() {
        0..=9999 => date.with_timezone(&Local).offset().local_minus_utc(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use chrono::SecondsFormat;

    use super::*;

    #[test]
    fn any_time_is_a_date() {
        let text = |time: SystemTime| date(time).to_rfc3339_opts(SecondsFormat::Millis, true);
        let seconds = Duration::from_secs;
        assert_eq!(text(UNIX_EPOCH), "1970-01-01T00:00:00.000Z");
        assert_eq!(text(UNIX_EPOCH + Duration::from_millis(1500)), "1970-01-01T00:00:01.500Z");
        assert_eq!(text(UNIX_EPOCH - Duration::from_millis(1)), "1969-12-31T23:59:59.999Z");
        assert_eq!(text(UNIX_EPOCH - seconds(86_400)), "1969-12-31T00:00:00.000Z");
        for far in [1 << 43, 1 << 53, i64::MAX.unsigned_abs()] {
            for time in [UNIX_EPOCH.checked_add(seconds(far)), UNIX_EPOCH.checked_sub(seconds(far))] {
                assert!(time.is_none_or(|time| !text(time).is_empty() && offset(time) == 0));
            }
        }
    }
}

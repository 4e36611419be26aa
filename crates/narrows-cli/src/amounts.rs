//! Numbers for people: durations, and things that are counted.

/// `1 file`, `2 files`.
pub(crate) fn count(n: usize, thing: &str) -> String {
    let s = if n == 1 { "" } else { "s" };
    format!("{n} {thing}{s}")
}

/// A number of parameters: `1.1 billion`, `4.98 million`.
pub(crate) fn parameters(n: u64) -> String {
    match n as f64 {
        n if n >= 1e9 => format!("{:.1} billion", n / 1e9),
        n => format!("{:.2} million", n / 1e6),
    }
}

/// A duration in at most three digits: predictions are no better than that.
pub(crate) fn seconds(seconds: f64) -> String {
    const MINUTE: f64 = 60.0;
    const HOUR: f64 = 60.0 * MINUTE;
    const DAY: f64 = 24.0 * HOUR;
    // The limits below are where the next unit's rounding begins.
    let two = |unit: f64, name: &str, part: f64, part_name: &str| {
        let parts = (seconds / part).round();
        let (whole, rest) = ((parts * part / unit).floor(), parts % (unit / part));
        if rest > 0.0 {
            format!("{whole:.0} {name} {rest:.0} {part_name}")
        } else {
            format!("{whole:.0} {name}")
        }
    };
    match seconds {
        ..0.000_999_5 => format!("{} us", digits(seconds * 1e6)),
        ..0.999_5 => format!("{} ms", digits(seconds * 1e3)),
        ..59.5 => format!("{} s", digits(seconds)),
        ..3599.5 => two(MINUTE, "min", 1.0, "s"),
        ..86_370.0 => two(HOUR, "h", MINUTE, "min"),
        _ => two(DAY, "d", HOUR, "h"),
    }
}

/// The time that a token takes.
pub(crate) fn per_token(time: f64) -> String {
    match time {
        // Rates are compared in one unit.
        59.5..600.0 => format!("{time:.0} s/token"),
        _ => format!("{}/token", seconds(time)),
    }
}

/// Two digits, or three where the number has them before its point.
fn digits(value: f64) -> String {
    if value < 9.95 { format!("{value:.1}") } else { format!("{value:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_people_say_them() {
        for (time, text) in [
            (0.0, "0.0 us"),
            (0.000_536_4, "536 us"),
            (0.000_999_9, "1.0 ms"),
            (0.0015, "1.5 ms"),
            (0.048, "48 ms"),
            (0.9999, "1.0 s"),
            (3.18, "3.2 s"),
            (40.05, "40 s"),
            (70.27, "1 min 10 s"),
            (3599.7, "1 h"),
            (4500.0, "1 h 15 min"),
            (7200.0, "2 h"),
            (90_000.0, "1 d 1 h"),
        ] {
            assert_eq!(seconds(time), text, "{time}");
        }
        assert_eq!((count(1, "file"), count(2, "file")), ("1 file".to_owned(), "2 files".to_owned()));
    }
}

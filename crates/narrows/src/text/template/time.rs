//! `strftime` as Python has it on Linux, of a local time without a name.

use std::time::{SystemTime, UNIX_EPOCH};

use chrono::{DateTime, Datelike, NaiveDateTime, Timelike};

/// A moment, and how many seconds the local clock is ahead of UTC.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    seconds: i64,
    local: NaiveDateTime,
}

impl Now {
    pub(super) fn new(at: SystemTime, offset: i32) -> Self {
        let (seconds, nanos) = match at.duration_since(UNIX_EPOCH) {
            Ok(after) => (i64::try_from(after.as_secs()).unwrap_or(i64::MAX), after.subsec_nanos()),
            Err(before) => {
                let before = before.duration();
                let seconds = -i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
                match before.subsec_nanos() {
                    0 => (seconds, 0),
                    nanos => (seconds.saturating_sub(1), 1_000_000_000 - nanos),
                }
            }
        };
        let local = DateTime::from_timestamp(seconds.saturating_add(offset.into()), nanos);
        Self { seconds, local: local.unwrap_or_default().naive_utc() }
    }

    /// The time in the form of `format`.
    pub(super) fn format(&self, format: &str) -> String {
        const MAX_WIDTH: usize = 1000;
        let mut out = String::new();
        let mut chars = format.chars().peekable();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let mut written = String::from('%');
            let (mut pad, mut case, mut width) = (None, None, 0);
            while let Some(flag) = chars.next_if(|c| matches!(c, '-' | '_' | '0' | '^' | '#')) {
                written.push(flag);
                match flag {
                    '^' | '#' => case = Some(flag),
                    flag => pad = Some(flag),
                }
            }
            while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                written.push(digit);
                width = (width * 10 + digit.to_digit(10).unwrap_or(0) as usize).min(MAX_WIDTH);
            }
            while let Some(modifier) = chars.next_if(|c| matches!(c, 'E' | 'O')) {
                written.push(modifier);
            }
            let Some(code) = chars.next() else {
                out.push_str(&written);
                break;
            };
            written.push(code);
            match self.field(code, pad, width) {
                Some(text) => match case {
                    Some('^') => out.push_str(&text.to_uppercase()),
                    Some(_) if code == 'p' => out.push_str(&text.to_lowercase()),
                    Some(_) => out.push_str(&text.to_uppercase()),
                    None => out.push_str(&text),
                },
                None => out.push_str(&written),
            }
        }
        out
    }

    fn field(&self, code: char, pad: Option<char>, width: usize) -> Option<String> {
        const DAYS: [&str; 7] =
            ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
        const MONTHS: [&str; 12] = [
            "January",
            "February",
            "March",
            "April",
            "May",
            "June",
            "July",
            "August",
            "September",
            "October",
            "November",
            "December",
        ];
        let t = &self.local;
        let number = |n: i64, digits: usize, with: char| {
            let digits = digits.max(width);
            match pad.unwrap_or(with) {
                '-' => n.to_string(),
                '_' => format!("{n:digits$}"),
                _ => format!("{n:0digits$}"),
            }
        };
        let text = |text: &str| Some(format!("{text:>width$}"));
        let zero = |n: u32, digits| Some(number(n.into(), digits, '0'));
        let (year, hour) = (i64::from(t.year()), t.hour());
        let hour12 = if hour % 12 == 0 { 12 } else { hour % 12 };
        let (weekday, day) = (t.weekday().num_days_from_sunday(), t.ordinal0());
        let half = if hour < 12 { "AM" } else { "PM" };
        match code {
            'a' => text(&DAYS[weekday as usize][..3]),
            'A' => text(DAYS[weekday as usize]),
            'b' | 'h' => text(&MONTHS[t.month0() as usize][..3]),
            'B' => text(MONTHS[t.month0() as usize]),
            'c' => text(&self.format("%a %b %e %H:%M:%S %Y")),
            'C' => Some(number(year.div_euclid(100), 2, '0')),
            'd' => zero(t.day(), 2),
            'D' | 'x' => text(&self.format("%m/%d/%y")),
            'e' => Some(number(t.day().into(), 2, '_')),
            'f' => Some(format!("{:06}", t.nanosecond() / 1000)),
            'F' => text(&self.format("%Y-%m-%d")),
            'g' => Some(number(i64::from(t.iso_week().year()).rem_euclid(100), 2, '0')),
            'G' => Some(number(t.iso_week().year().into(), 1, '0')),
            'H' => zero(hour, 2),
            'I' => zero(hour12, 2),
            'j' => zero(t.ordinal(), 3),
            'k' => Some(number(hour.into(), 2, '_')),
            'l' => Some(number(hour12.into(), 2, '_')),
            'm' => zero(t.month(), 2),
            'M' => zero(t.minute(), 2),
            'n' => Some("\n".to_owned()),
            'p' => text(half),
            'P' => text(&half.to_lowercase()),
            'r' => text(&self.format("%I:%M:%S %p")),
            'R' => text(&self.format("%H:%M")),
            's' => Some(number(self.seconds, 1, '0')),
            'S' => zero(t.second(), 2),
            't' => Some("\t".to_owned()),
            'T' | 'X' => text(&self.format("%H:%M:%S")),
            'u' => zero(t.weekday().number_from_monday(), 1),
            'U' => zero((day + 7 - weekday) / 7, 2),
            'V' => zero(t.iso_week().week(), 2),
            'w' => zero(weekday, 1),
            'W' => zero((day + 7 - (weekday + 6) % 7) / 7, 2),
            'y' => Some(number(year.rem_euclid(100), 2, '0')),
            'Y' => Some(number(year, 1, '0')),
            'z' | 'Z' => Some(String::new()),
            '%' => Some("%".to_owned()),
            _ => None,
        }
    }
}

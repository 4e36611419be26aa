//! The configuration, from environment variables that begin with `NARROWS_SOFTGPU_`.

use std::path::PathBuf;

use thiserror::Error;

/// Prefix of every environment variable of the driver.
pub(crate) const PREFIX: &str = "NARROWS_SOFTGPU_";

/// What the stand-in is to be.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) vram: u64,
    pub(crate) link: f64,
    pub(crate) mem: f64,
    pub(crate) seed: u64,
    pub(crate) report: Option<PathBuf>,
    pub(crate) arch: (u32, u32),
    pub(crate) context: u64,
    pub(crate) devices: u32,
    pub(crate) driver: i32,
    pub(crate) fail_launch: Option<u64>,
    pub(crate) fail_copy: Option<u64>,
    pub(crate) fail_record: Option<u64>,
    pub(crate) fail_pinned: Option<u64>,
    pub(crate) steal: Option<(u64, u64)>,
}

/// A variable that says nothing.
#[derive(Debug, Error)]
#[error("{PREFIX}{name}={value}: {expected}")]
pub(crate) struct BadValue {
    name: &'static str,
    value: String,
    expected: &'static str,
}

impl Config {
    pub(crate) fn from_environment() -> Result<Self, BadValue> {
        let size = "expected a size in bytes, K, M, G or T (MiB, GiB ...)";
        let positive = "expected gigabytes per second, above zero";
        let speed = |text: &str| text.parse::<f64>().ok().filter(|v| v.is_finite() && *v > 0.0);
        Ok(Self {
            vram: read("VRAM", size, parse_size)?.unwrap_or(4 << 30),
            link: read("LINK", positive, speed)?.unwrap_or(25.0) * 1e9,
            mem: read("MEM", positive, speed)?.unwrap_or(1000.0) * 1e9,
            seed: read("SEED", "expected a whole number", |text| text.parse().ok())?.unwrap_or(0),
            report: read("REPORT", "expected a path", |text| Some(PathBuf::from(text)))?,
            arch: read("ARCH", "expected a compute capability such as 9.0", parse_arch)?.unwrap_or((9, 0)),
            context: read("CONTEXT", size, parse_size)?.unwrap_or(512 << 10),
            devices: read("DEVICES", "expected 0 to 8", |text| text.parse().ok().filter(|n| *n <= 8))?
                .unwrap_or(1),
            driver: read("DRIVER", "expected a version such as 13000", |text| {
                text.parse().ok().filter(|version| *version > 0)
            })?
            .unwrap_or(13000),
            fail_launch: read("FAIL_LAUNCH", "expected the number of a launch", parse_ordinal)?,
            fail_copy: read("FAIL_COPY", "expected the number of a copy", parse_ordinal)?,
            fail_record: read("FAIL_RECORD", "expected the number of a record", parse_ordinal)?,
            fail_pinned: read("FAIL_PINNED", size, parse_size)?,
            steal: read("STEAL", "expected BYTES@N", |text| {
                let (bytes, after) = text.split_once('@')?;
                Some((parse_size(bytes)?, after.parse().ok()?))
            })?,
        })
    }
}

fn read<T>(
    name: &'static str,
    expected: &'static str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, BadValue> {
    let Some(value) = std::env::var_os(format!("{PREFIX}{name}")) else { return Ok(None) };
    let value = value.to_string_lossy().into_owned();
    match parse(&value) {
        Some(parsed) => Ok(Some(parsed)),
        None => Err(BadValue { name, value, expected }),
    }
}

/// `256M` is 256 MiB.
pub(crate) fn parse_size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        "T" | "TIB" => 40,
        _ => return None,
    };
    let value: f64 = digits.parse().ok()?;
    let bytes = value * (1u64 << shift) as f64;
    (value >= 0.0 && bytes < 1e15).then_some(bytes as u64)
}

fn parse_arch(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok().filter(|minor| *minor < 10)?))
}

fn parse_ordinal(text: &str) -> Option<u64> {
    text.parse().ok().filter(|number| *number > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary() {
        assert_eq!(parse_size("256M"), Some(256 << 20));
        assert_eq!(parse_size("1.5G"), Some(3 << 29));
        assert_eq!(parse_size("512"), Some(512));
        assert_eq!(parse_size("12Q"), None);
        assert_eq!(parse_size("-1"), None);
        assert_eq!(parse_size(""), None);
    }
}

//! Values of flags.

use std::num::NonZeroUsize;

use super::{Device, Ram};

/// More threads than any machine has; a system that runs out of them half-way would end the program.
const MOST_THREADS: usize = 1024;

pub(super) fn device(text: &str) -> Result<Device, String> {
    match text {
        "auto" => Ok(Device::Auto),
        "cpu" => Ok(Device::Cpu),
        _ => text
            .strip_prefix("cuda:")
            .and_then(|n| n.parse().ok())
            .map(Device::Cuda)
            .ok_or_else(|| "not one of auto, cpu, cuda:0, cuda:1 ...".to_owned()),
    }
}

pub(super) fn size(text: &str) -> Result<narrows::Bytes, String> {
    match text.parse() {
        Ok(narrows::Bytes(0)) => Err("0 is no size".to_owned()),
        Ok(size) => Ok(size),
        Err(error) => Err(error.to_string()),
    }
}

/// Bytes per second: `25G`, `25GB/s`. Units are decimal, as those of speeds are everywhere.
pub(super) fn rate(text: &str) -> Result<f64, String> {
    let bad = || "not a rate such as 25G, 25GB/s or 1.5T".to_owned();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
    let (number, unit) = text.split_at(end);
    let unit = unit.to_ascii_lowercase();
    let factor = match unit.strip_suffix("/s").unwrap_or(&unit) {
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "t" | "tb" => 1e12,
        _ => return Err(bad()),
    };
    let rate = number.parse::<f64>().map_err(|_| bad())? * factor;
    // Outside of this nothing is; times stay numbers.
    if (1e3..=1e18).contains(&rate) { Ok(rate) } else { Err(bad()) }
}

pub(super) fn ram(text: &str) -> Result<Ram, String> {
    if text == "auto" {
        return Ok(Ram::Auto);
    }
    match text.strip_suffix('%') {
        Some(share) => match share.parse() {
            Ok(share) if share > 0.0 && share <= 100.0 => Ok(Ram::Percent(share)),
            _ => Err("not a share of more than 0 and at most 100 %".to_owned()),
        },
        None => match size(text)? {
            narrows::Bytes(n) if n < 1 << 20 && text.bytes().all(|b| b.is_ascii_digit()) => {
                Err(format!("{n} bytes are too few; did you mean {n}M?"))
            }
            size => Ok(Ram::Size(size)),
        },
    }
}

pub(super) fn context(text: &str) -> Result<narrows::Context, String> {
    if text == "auto" {
        return Ok(narrows::Context::Auto);
    }
    match text.parse::<NonZeroUsize>() {
        Ok(n) => Ok(narrows::Context::Positions(n.get())),
        Err(_) => Err("neither `auto` nor a number of positions".to_owned()),
    }
}

pub(super) fn encoding(text: &str) -> Result<narrows::Encoding, String> {
    narrows::Encoding::PLAIN
        .into_iter()
        .find(|encoding| encoding.name() == text)
        .ok_or_else(|| "not one of f32, bf16, f16".to_owned())
}

pub(super) fn threads(text: &str) -> Result<NonZeroUsize, String> {
    match text.parse::<NonZeroUsize>() {
        Ok(n) if n.get() <= MOST_THREADS => Ok(n),
        Ok(_) => Err(format!("more than the {MOST_THREADS} that are allowed")),
        Err(_) => Err("not a number of threads".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_decimal_and_have_a_unit() {
        for (text, value) in
            [("25G", 25e9), ("25GB/s", 25e9), ("25gb/s", 25e9), ("1.5T", 1.5e12), ("800MB/s", 8e8)]
        {
            assert_eq!(rate(text), Ok(value), "{text}");
        }
        for text in
            ["", "25", "G", "0G", "-1G", "25GiB/s", "1e3G", "inf", "nan", "25 G", "99999999999T", "..G"]
        {
            assert!(rate(text).is_err(), "{text}");
        }
    }
}

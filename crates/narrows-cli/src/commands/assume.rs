//! What a plan assumes of a machine: of a GPU that is not here, and of a disk.

use narrows::{AssumedDevice, Bytes, EngineBuilder, Speed};

use super::on_device;
use crate::args::{Assume, Compute, Device, Output, Ram};
use crate::failure::{Failure, Result};
use crate::output::say;

/// As [`on_device`], for a plan: of a GPU that is not here, or that the flags describe, the memory is `--vram`.
pub(super) fn device(
    output: &Output,
    args: &Compute,
    assume: &Assume,
    builder: EngineBuilder,
) -> Result<EngineBuilder> {
    let described = assume.context.is_some() || assume.link.is_some() || assume.bandwidth.is_some();
    if described && args.device != Device::Auto {
        let what = "--assume-context, --assume-link and --assume-bandwidth are of a GPU that is not here: drop \
                    --device, or drop them";
        return Err(Failure::Usage(what.to_owned()));
    }
    let why = if described {
        if named(args.vram).is_none() {
            let what = "--vram: of a GPU that is not here give the size, as in --vram 4G";
            return Err(Failure::Usage(what.to_owned()));
        }
        "described by flags".to_owned()
    } else {
        match on_device(output, args, builder.clone()) {
            Err(Failure::NoDevice { why, .. }) => why,
            Err(Failure::Model(error)) if error.is_device() && args.vram.is_some() => {
                return Err(Failure::NamedDevice(error));
            }
            result => return result,
        }
    };
    let Some(vram) = named(args.vram) else { return Err(Failure::NoDevice { why, vram: None }) };
    let mut device = AssumedDevice::new(vram);
    device.context = assume.context.unwrap_or(device.context);
    device.link = assume.link.map_or(device.link, Speed::assumed);
    device.bandwidth = assume.bandwidth.map_or(device.bandwidth, Speed::assumed);
    let AssumedDevice { memory, context, link, bandwidth, .. } = device;
    let rate = |speed: Speed| format!("{} GB/s", speed.bytes_per_second / 1e9);
    say(
        output,
        &format!(
            "device: assumed ({why}): {memory} read at {}, {context} of it the driver's; link {}",
            rate(bandwidth),
            rate(link)
        ),
    );
    Ok(builder.assume_device(device).vram(vram))
}

/// The memory that `--vram` names, for a hint.
pub(super) fn named(vram: Option<Ram>) -> Option<Bytes> {
    match vram {
        Some(Ram::Size(size)) => Some(size),
        _ => None,
    }
}

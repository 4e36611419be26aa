//! The speeds that a prediction is made with, and where they are from.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use narrows::{Bytes, EngineBuilder, Model, Plan, Speed, Speeds};
use narrows_bench::io::glance;
use narrows_bench::{Disk, Entry, Figure, Machine};

use super::doctor::largest_weights;
use crate::args::{Compute, Io, SpeedsFrom};
use crate::failure::Result;
use crate::figures;
use crate::interrupt::Interrupt;

/// What is read of a disk where no model lies yet, and for how long.
const READ: Bytes = Bytes::mib(256);
const READ_TIME: Duration = Duration::from_secs(1);

/// Speeds, and the figure that the disk's is from if it was not measured now.
pub(super) struct Known {
    pub(super) speeds: Speeds,
    pub(super) disk: Option<Figure>,
}

impl Known {
    /// As the flag says. A short look at the disk as it is now is nearer to the truth than a careful one
    /// of last week: disks that others use too change by a third between minutes. What is remembered is of the way in
    /// which weights are read by default. What the disk is `assumed` to do, it does.
    pub(super) fn of(
        builder: &EngineBuilder,
        args: &Compute,
        model: &Model,
        plan: &Plan,
        assumed: Option<Speed>,
    ) -> Result<Self> {
        if let Some(known) = Self::unmeasured(builder, args, model, plan, assumed)? {
            return Ok(known);
        }
        let wanted =
            args.speeds == SpeedsFrom::Remembered && args.io == Io::Auto && !plan.stream.all_resident();
        let disk = if wanted && !model.is_made() { remembered(model.dir()) } else { None };
        let speed = disk.as_ref().map(|figure| Speed::measured(figure.bytes_per_second));
        Ok(Self { speeds: builder.measure(model, plan, speed)?, disk })
    }

    /// The same for a model of which there are no files, as if it lay in `dir`: nothing is written there unless the
    /// flag asks for measuring.
    pub(super) fn without_files(
        builder: &EngineBuilder,
        args: &Compute,
        model: &Model,
        plan: &Plan,
        dir: &Path,
        assumed: Option<Speed>,
    ) -> Result<Self> {
        if let Some(known) = Self::unmeasured(builder, args, model, plan, assumed)? {
            return Ok(known);
        }
        let figure = if args.speeds == SpeedsFrom::Measured { None } else { remembered(dir) };
        let there = largest_weights(dir);
        let speed = match &figure {
            Some(figure) => Speed::measured(figure.bytes_per_second),
            None if args.speeds == SpeedsFrom::Measured || there.is_some() => {
                measured(&there.unwrap_or_else(|| dir.to_owned()))?
            }
            None => Speeds::default().disk,
        };
        Ok(Self { speeds: builder.measure(model, plan, Some(speed))?, disk: figure })
    }

    /// Where nothing is asked of the disk: all is assumed, or the disk is.
    fn unmeasured(
        builder: &EngineBuilder,
        args: &Compute,
        model: &Model,
        plan: &Plan,
        disk: Option<Speed>,
    ) -> Result<Option<Self>> {
        let speeds = match (args.speeds, disk) {
            (SpeedsFrom::Assumed, _) => {
                let mut speeds = builder.assumed_speeds();
                speeds.disk = disk.unwrap_or(speeds.disk);
                speeds
            }
            (_, Some(_)) => builder.measure(model, plan, disk)?,
            _ => return Ok(None),
        };
        Ok(Some(Self { speeds, disk: None }))
    }

    /// Where the speed of the disk is from, for people.
    pub(super) fn disk_source(&self) -> String {
        match &self.disk {
            Some(figure) => format!("remembered of {}", day(figure)),
            None => source(self.speeds.disk).to_owned(),
        }
    }
}

/// The day of a figure.
fn day(figure: &Figure) -> &str {
    figure.date.split('T').next().unwrap_or_default()
}

pub(super) fn source(speed: Speed) -> &'static str {
    if speed.measured { "measured" } else { "assumed" }
}

/// What is remembered of the disk behind a directory.
fn remembered(dir: &Path) -> Option<Figure> {
    let disk = Disk::behind(dir)?;
    figures::read().disk(&Machine::here(), &disk).cloned()
}

/// Reads a file of weights, or one that is made in a directory and gone afterwards.
fn measured(path: &Path) -> Result<Speed> {
    let interrupt = Interrupt::listen();
    let mut go_on = || if interrupt.came() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    let read = glance(path, READ, READ_TIME, &mut go_on);
    interrupt.check()?;
    match read?.result {
        Entry::Io(result) => Ok(Speed::measured(result.bandwidth.bytes_per_second.max(1.0))),
        _ => Ok(Speeds::default().disk),
    }
}

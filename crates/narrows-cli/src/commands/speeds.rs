//! The speeds that a prediction is made with, and where they are from.

use narrows::{EngineBuilder, Model, Plan, Speed, Speeds};
use narrows_bench::{Disk, Figure, Machine};

use crate::args::{Compute, Io, SpeedsFrom};
use crate::failure::Result;
use crate::figures;

/// Speeds, and the figure that the disk's is from if it was not measured now.
pub(super) struct Known {
    pub(super) speeds: Speeds,
    pub(super) disk: Option<Figure>,
}

impl Known {
    /// As the flag says; what is remembered is of the way in which weights are read by default.
    pub(super) fn of(builder: &EngineBuilder, args: &Compute, model: &Model, plan: &Plan) -> Result<Self> {
        if args.speeds == SpeedsFrom::Assumed {
            return Ok(Self { speeds: Speeds::default(), disk: None });
        }
        let wanted = args.speeds == SpeedsFrom::Auto && args.io == Io::Auto && !plan.stream.all_resident();
        let disk = if wanted { remembered(model) } else { None };
        let speed = disk.as_ref().map(|figure| Speed::measured(figure.bytes_per_second));
        Ok(Self { speeds: builder.measure(model, plan, speed)?, disk })
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

/// What is remembered of the disk that a model lies on.
fn remembered(model: &Model) -> Option<Figure> {
    let disk = Disk::behind(model.dir())?;
    figures::read().disk(&Machine::here(), &disk).cloned()
}

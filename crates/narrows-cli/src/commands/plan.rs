//! `narrows plan`, and the line by which every computing command begins.

use std::fmt::Write as _;

use narrows::{Bytes, Context, Model, Plan, Workload};
use serde::Serialize;

use super::{SCHEMA_VERSION, builder};
use crate::args::{Output, Plan as Args};
use crate::failure::{Failure, Result};
use crate::output::{write, write_json};

/// Positions that a plan is made for where `--ctx` does not say.
const POSITIONS: usize = 512;

#[derive(Serialize)]
struct Report<'a> {
    schema_version: u32,
    weight_bytes: u64,
    budget_bytes: u64,
    planned_bytes: u64,
    minimum_bytes: u64,
    all_resident_at_bytes: u64,
    resident_bytes: u64,
    bytes_per_pass: u64,
    disk_bytes_per_pass: u64,
    tile_bytes: u64,
    slots: usize,
    positions: usize,
    needs: Vec<NeedReport<'a>>,
    disk: SpeedReport,
    compute: SpeedReport,
    seconds_per_token: f64,
    bound: String,
    changes: Vec<String>,
}

#[derive(Serialize)]
struct NeedReport<'a> {
    what: &'a str,
    bytes: u64,
}

#[derive(Serialize)]
struct SpeedReport {
    bytes_per_second: f64,
    measured: bool,
    seconds_per_pass: f64,
}

pub(crate) fn plan(output: &Output, args: &Args) -> Result<()> {
    if args.compute.trace.is_some() {
        return Err(Failure::Usage("--trace: a plan runs nothing that could be traced".to_owned()));
    }
    let model = Model::open(&args.compute.model)?;
    let positions = match args.compute.ctx {
        Context::Positions(n) => n,
        Context::Auto => Context::Auto.positions(model.architecture()).min(POSITIONS),
    };
    let workload = Workload { sequences: 1, positions, step_rows: 1, wanted_rows: 1 };
    let builder = builder(&args.compute)?.workload(workload);
    let assumed = builder.plan(&model)?;
    let speeds = builder.measure(&model, &assumed)?;
    let builder = builder.speeds(speeds);
    let plan = builder.plan(&model)?;
    let report = Report {
        schema_version: SCHEMA_VERSION,
        weight_bytes: model.weight_bytes().get(),
        budget_bytes: plan.budget.get(),
        planned_bytes: plan.stream.total().get(),
        minimum_bytes: plan.stream.minimum.get(),
        all_resident_at_bytes: plan.stream.all_resident_at.get(),
        resident_bytes: plan.stream.resident.get(),
        bytes_per_pass: plan.stream.walked.get(),
        disk_bytes_per_pass: plan.stream.disk_bytes_per_pass.get(),
        tile_bytes: plan.tile.get(),
        slots: plan.stream.slots,
        positions,
        needs: plan
            .stream
            .needs
            .iter()
            .map(|need| NeedReport { what: &need.what, bytes: need.bytes.get() })
            .collect(),
        disk: SpeedReport {
            bytes_per_second: speeds.disk.bytes_per_second,
            measured: speeds.disk.measured,
            seconds_per_pass: plan.stream.disk_seconds,
        },
        compute: SpeedReport {
            bytes_per_second: speeds.compute.bytes_per_second,
            measured: speeds.compute.measured,
            seconds_per_pass: plan.stream.compute_seconds,
        },
        seconds_per_token: plan.seconds_per_token(),
        bound: plan.stream.bound.to_string(),
        changes: changes(&plan),
    };
    if output.json {
        return write_json(&report);
    }
    write(&table(&model, &plan, &report))
}

/// What to expect, in one line.
pub(super) fn line(model: &Model, plan: &Plan) -> String {
    let s = &plan.stream;
    let weights = format!("{} in {} layers", model.pass_bytes(), model.architecture().layers);
    let ram = format!("RAM {} of {}", s.total(), plan.budget);
    let speed = format!("~{} (bound by {})", per_token(plan.seconds_per_token()), s.bound);
    if s.all_resident() {
        return format!("plan: {weights}, all of it resident; {ram}; {speed}");
    }
    let share = 100.0 * s.resident.get() as f64 / s.walked.get().max(1) as f64;
    format!(
        "plan: {weights}, {share:.0} % resident; {ram}; {} a pass from disk at {:.2} GB/s; {speed}",
        s.disk_bytes_per_pass,
        s.disk_bytes_per_pass.get() as f64 / s.disk_seconds.max(1e-9) / 1e9,
    )
}

fn per_token(seconds: f64) -> String {
    if seconds < 0.1 { format!("{:.1} ms/token", seconds * 1e3) } else { format!("{seconds:.2} s/token") }
}

/// What would make it faster.
fn changes(plan: &Plan) -> Vec<String> {
    let s = &plan.stream;
    let mut changes = Vec::new();
    if !s.all_resident() {
        changes.push(format!(
            "--ram {}M would keep all weights in memory: ~{}",
            s.all_resident_at.get().div_ceil(1 << 20),
            per_token(s.compute_seconds)
        ));
        if s.disk_seconds > s.compute_seconds {
            let gain = (1_u64 << 30) as f64 / s.disk_bytes_per_pass.get().max(1) as f64 * s.disk_seconds;
            changes.push(format!("each GiB more of RAM would save ~{gain:.2} s a token, until all is there"));
            changes.push("several sequences at a time would share each pass over the weights".to_owned());
        }
    }
    changes
}

fn table(model: &Model, plan: &Plan, report: &Report<'_>) -> String {
    let mut t = format!("{}\n", line(model, plan));
    for need in &report.needs {
        let _ = writeln!(t, "  {:<24} {:>10}", need.what, Bytes(need.bytes).to_string());
    }
    let speed = |speed: &SpeedReport| {
        let how = if speed.measured { "measured" } else { "assumed" };
        format!("{:.2} GB/s ({how}), {:.3} s a pass", speed.bytes_per_second / 1e9, speed.seconds_per_pass)
    };
    let _ = writeln!(t, "disk: {}\ncompute: {}", speed(&report.disk), speed(&report.compute));
    let _ = writeln!(t, "smallest budget: {}", plan.stream.minimum);
    for change in &report.changes {
        let _ = writeln!(t, "{change}");
    }
    t
}

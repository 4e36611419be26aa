//! `narrows plan`, and the line by which every computing command begins.

use std::fmt::Write as _;
use std::path::Path;

use narrows::{Bound, Bytes, Context, Model, Plan, Quantisation, Speed, TierPlan, Workload};
use narrows_bench::Figure;
use schemars::JsonSchema;
use serde::Serialize;

use super::speeds::{Known, source};
use super::{SCHEMA_VERSION, assume, builder, given, open_or_shape, tuned};
use crate::amounts::{self, count, per_token, seconds};
use crate::args::{Output, Plan as Args, QuantPart};
use crate::failure::{Failure, Result};
use crate::output::{write, write_json};

/// Positions that a plan is made for where `--ctx` does not say.
const POSITIONS: usize = 512;

#[derive(JsonSchema, Serialize)]
pub(super) struct Report<'a> {
    schema_version: u32,
    /// The directory, or the name of a shape.
    model: String,
    /// Whether there are files; else all is from the architecture.
    files: bool,
    parameters: u64,
    weight_bytes: u64,
    /// Absent where nothing limits it.
    budget_bytes: Option<u64>,
    planned_bytes: u64,
    minimum_bytes: u64,
    all_resident_at_bytes: u64,
    resident_bytes: u64,
    bytes_per_pass: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    experts: Option<ExpertsReport>,
    disk_bytes_per_pass: u64,
    /// Absent where matrices are not cut.
    tile_bytes: Option<u64>,
    slots: usize,
    positions: usize,
    needs: Vec<NeedReport<'a>>,
    disk: SpeedReport,
    compute: SpeedReport,
    /// Of keys and values.
    attention: SpeedReport,
    device: Option<DeviceReport<'a>>,
    seconds_per_token: f64,
    bound: String,
    changes: Vec<String>,
}

/// The experts of all layers.
#[derive(JsonSchema, Serialize)]
struct ExpertsReport {
    count: usize,
    /// How many of a layer's a token goes to.
    per_token: usize,
    /// Size of one.
    bytes: u64,
    /// How many have memory to stay in.
    staying: usize,
}

#[derive(JsonSchema, Serialize)]
struct DeviceReport<'a> {
    /// Whether it is a GPU that is not on this machine, or is described by flags.
    assumed: bool,
    budget_bytes: u64,
    planned_bytes: u64,
    minimum_bytes: u64,
    all_resident_at_bytes: u64,
    resident_bytes: u64,
    h2d_bytes_per_pass: u64,
    slots: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    experts: Option<ExpertsReport>,
    needs: Vec<NeedReport<'a>>,
    h2d: SpeedReport,
}

#[derive(JsonSchema, Serialize)]
struct NeedReport<'a> {
    what: &'a str,
    bytes: u64,
}

#[derive(JsonSchema, Serialize)]
struct SpeedReport {
    bytes_per_second: f64,
    /// Whether it was measured here, now or some time ago.
    measured: bool,
    /// `measured` now, `remembered`, or `assumed`.
    source: &'static str,
    /// When it was measured, if it is remembered.
    #[serde(skip_serializing_if = "Option::is_none")]
    date: Option<String>,
    seconds_per_pass: f64,
}

impl SpeedReport {
    fn new(speed: Speed, seconds_per_pass: f64, figure: Option<&Figure>) -> Self {
        Self {
            bytes_per_second: speed.bytes_per_second,
            measured: speed.measured,
            source: if figure.is_some() { "remembered" } else { source(speed) },
            date: figure.map(|figure| figure.date.clone()),
            seconds_per_pass,
        }
    }
}

pub(crate) fn plan(output: &Output, args: &Args) -> Result<()> {
    if args.compute.trace.is_some() {
        return Err(Failure::Usage("--trace: a plan runs nothing that could be traced".to_owned()));
    }
    let quantisation = Quantisation::all(args.quant.and_then(QuantPart::encoding));
    let mut model = open_or_shape(&args.compute.model, &quantisation, None)?;
    if args.quant.is_some() && !model.is_made() {
        model = model.packed_as(&quantisation)?;
    }
    let described = model.files().is_err();
    if args.path.is_some() && !described {
        return Err(Failure::Usage("--path: the model lies on the disk where it is".to_owned()));
    }
    let lies = if model.is_made() { Path::new(".") } else { model.dir() };
    let dir = args.path.as_deref().unwrap_or(lies);
    if !dir.is_dir() {
        return Err(Failure::Usage(format!("--path: {} is no directory", dir.display())));
    }
    let positions = match args.compute.ctx {
        Context::Positions(n) => n,
        _ => Context::Auto.positions(model.program()).min(POSITIONS),
    };
    let workload = Workload::new(1, positions, 1, 1);
    let builder =
        assume::device(output, &args.compute, &args.assume, builder(&args.compute)?)?.workload(workload);
    let assumed = builder.plan(&model).map_err(|error| tuned(&args.compute, error))?;
    let disk = args.assume.disk.map(Speed::assumed);
    let known = match described {
        true => Known::without_files(&builder, &args.compute, &model, &assumed, dir, disk)?,
        false => Known::of(&builder, &args.compute, &model, &assumed, disk)?,
    };
    let speeds = known.speeds;
    let builder = builder.speeds(speeds);
    let plan = builder.plan(&model)?;
    // Of what a device keeps the host walks nothing.
    let computed = plan.device.as_ref().map_or(&plan.stream, |device| &device.stream);
    let report = Report {
        schema_version: SCHEMA_VERSION,
        model: model.dir().display().to_string(),
        files: !described,
        parameters: parameters(&model),
        weight_bytes: model.weight_bytes().get(),
        budget_bytes: given(plan.budget),
        planned_bytes: plan.stream.total().get(),
        minimum_bytes: plan.stream.minimum.get(),
        all_resident_at_bytes: plan.stream.all_resident_at.get(),
        resident_bytes: plan.stream.resident.get(),
        bytes_per_pass: (computed.walked + computed.demanded_per_pass).get(),
        experts: experts(&model, &plan.stream),
        disk_bytes_per_pass: plan.stream.disk_bytes_per_pass.get(),
        tile_bytes: given(plan.tile),
        slots: plan.stream.slots,
        positions,
        needs: needs(&plan.stream),
        disk: SpeedReport::new(speeds.disk, plan.stream.disk_seconds, known.disk.as_ref()),
        compute: SpeedReport::new(speeds.compute, plan.compute_seconds() - plan.kv_seconds, None),
        attention: SpeedReport::new(speeds.attention, plan.kv_seconds, None),
        device: plan.device.as_ref().map(|device| DeviceReport {
            assumed: device.assumed,
            budget_bytes: device.budget.get(),
            planned_bytes: device.stream.total().get(),
            minimum_bytes: device.stream.minimum.get(),
            all_resident_at_bytes: device.stream.all_resident_at.get(),
            resident_bytes: device.stream.resident.get(),
            h2d_bytes_per_pass: device.stream.disk_bytes_per_pass.get(),
            slots: device.stream.slots,
            experts: experts(&model, &device.stream),
            needs: needs(&device.stream),
            h2d: SpeedReport::new(speeds.link, plan.link_seconds(), None),
        }),
        seconds_per_token: plan.seconds_per_token(),
        bound: plan.bound().to_string(),
        changes: changes(&plan),
    };
    if output.json {
        return write_json(&report);
    }
    write(&table(&model, &plan, &report, &known))
}

/// Elements of all weights.
pub(super) fn parameters(model: &Model) -> u64 {
    model.tensors().map(|(_, tensor)| tensor.shape.iter().product::<usize>() as u64).sum()
}

fn needs(plan: &TierPlan) -> Vec<NeedReport<'_>> {
    plan.needs.iter().map(|need| NeedReport { what: &need.what, bytes: need.bytes.get() }).collect()
}

fn experts(model: &Model, plan: &TierPlan) -> Option<ExpertsReport> {
    let router = model.program().routers().next()?;
    let bytes = model.expert_bytes().get() / plan.groups.len().max(1) as u64;
    let (count, staying) = (plan.groups.len(), plan.frames);
    Some(ExpertsReport { count, per_token: router.per_token, bytes, staying })
}

/// How many experts stay, where there are some.
fn staying(plan: &TierPlan) -> String {
    match plan.groups.len() {
        0 => String::new(),
        all => format!(" and {} of {all} experts", plan.frames),
    }
}

/// What to expect, in one line, where weights come `from`; of `tokens` new ones together, where their number is known.
pub(super) fn line(model: &Model, plan: &Plan, known: &Known, from: &str, tokens: usize) -> String {
    let s = &plan.stream;
    let layers = count(model.program().dims.layers, "layer");
    let mut line = format!("plan: {} in {layers}", model.pass_bytes());
    if let Some(device) = &plan.device {
        let d = &device.stream;
        let share = share(d.resident, d.walked);
        let experts = staying(d);
        let which = if device.assumed { "an assumed" } else { "the" };
        line += &format!(", {share}{experts} on {which} device; VRAM {} of {}", d.total(), device.budget);
        if !d.all_resident() {
            line += &format!("; {} ({})", flow(d, "to it"), source(known.speeds.link));
        }
    }
    let what = if plan.device.is_some() { " in RAM" } else { " resident" };
    match &plan.device {
        Some(device) if device.stream.all_resident() => {}
        _ => line += &format!(", {}{}{what}", share(s.resident, s.walked), staying(s)),
    }
    line +=
        &format!("; RAM {} of {} and {} for the program", s.total(), plan.budget, narrows::memory::PROGRAM);
    if !s.all_resident() {
        line += &format!("; {} ({})", flow(s, from), known.disk_source());
    }
    line += &format!("; ~{} (bound by {})", per_token(plan.seconds_per_token()), plan.bound());
    if tokens > 0 {
        let all = tokens as f64 * plan.seconds_per_token();
        line += &format!("; {}: about {}", count(tokens, "token"), seconds(all));
    }
    line
}

fn share(part: Bytes, whole: Bytes) -> String {
    if part == whole {
        return "all of it".to_owned();
    }
    format!("{:.0} %", 100.0 * part.get() as f64 / whole.get().max(1) as f64)
}

/// What comes in each pass, and how fast.
fn flow(s: &TierPlan, from: &str) -> String {
    let speed = s.disk_bytes_per_pass.get() as f64 / s.disk_seconds.max(1e-9) / 1e9;
    format!("{} a pass {from} at {speed:.2} GB/s", s.disk_bytes_per_pass)
}

/// What would make it faster.
fn changes(plan: &Plan) -> Vec<String> {
    let s = &plan.stream;
    let mut changes = Vec::new();
    if let Some(device) = plan.device.as_ref().filter(|device| !device.stream.all_resident()) {
        changes.push(format!(
            "--vram {}M would keep all weights on the device: ~{}",
            device.stream.all_resident_at.get().div_ceil(1 << 20),
            per_token(plan.compute_seconds())
        ));
    }
    if !s.all_resident() {
        changes.push(format!(
            "--ram {}M would keep all weights in memory: ~{}",
            s.all_resident_at.get().div_ceil(1 << 20),
            per_token(plan.compute_seconds().max(plan.link_seconds()))
        ));
        if plan.bound() == Bound::Disk {
            const GIB: u64 = 1 << 30;
            if s.disk_bytes_per_pass.get() > GIB {
                let gain = GIB as f64 / s.disk_bytes_per_pass.get() as f64 * s.disk_seconds;
                changes.push(format!(
                    "each GiB more of RAM would save ~{} a token, until all is there",
                    seconds(gain)
                ));
            }
            changes.push("several sequences at a time would share each pass over the weights".to_owned());
        }
    }
    changes
}

fn table(model: &Model, plan: &Plan, report: &Report<'_>, known: &Known) -> String {
    let mut t = String::new();
    if !report.files {
        let Report { model: name, parameters, .. } = report;
        let _ = writeln!(
            t,
            "{name}: {} parameters in {}; no files were read",
            amounts::parameters(*parameters),
            Bytes(report.weight_bytes)
        );
    }
    let _ = writeln!(t, "{}", line(model, plan, known, "from disk", 0));
    if let Some(experts) = &report.experts {
        let each = format!("{} of a layer for a token, {} each", experts.per_token, Bytes(experts.bytes));
        let _ = writeln!(t, "  {:<24} {:>10} ({each})", "experts", experts.count);
    }
    for need in &report.needs {
        let _ = writeln!(t, "  {:<24} {:>10}", need.what, Bytes(need.bytes).to_string());
    }
    let speed = |speed: &SpeedReport| {
        let day = speed.date.as_deref().and_then(|date| date.split('T').next());
        let how = speed.source.to_owned() + &day.map_or(String::new(), |day| format!(" of {day}"));
        let pass = seconds(speed.seconds_per_pass);
        format!("{:.2} GB/s ({how}), {pass} a pass", speed.bytes_per_second / 1e9)
    };
    let _ = writeln!(t, "disk: {}\ncompute: {}", speed(&report.disk), speed(&report.compute));
    let _ = writeln!(t, "attention: {} at {} positions", speed(&report.attention), report.positions);
    let _ = writeln!(t, "smallest budget: {}", plan.stream.minimum);
    if let Some(device) = &report.device {
        t += if device.assumed { "on an assumed device:\n" } else { "on the device:\n" };
        for need in &device.needs {
            let _ = writeln!(t, "  {:<24} {:>10}", need.what, Bytes(need.bytes).to_string());
        }
        let _ = writeln!(t, "h2d: {}\nsmallest budget: {}", speed(&device.h2d), Bytes(device.minimum_bytes));
    }
    for change in &report.changes {
        let _ = writeln!(t, "{change}");
    }
    t
}

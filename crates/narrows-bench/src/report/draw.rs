//! A chart as SVG.

use std::ops::Range;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint};
use plotters::prelude::*;
use plotters::series::DashedLineSeries;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::chart::{Axis, Chart, Line, Scale, Series};
use crate::{Error, Result};

const WIDTH: u32 = 880;
const HEIGHT: u32 = 400;
/// To the right of the axes, for the legend.
const LEGEND: i32 = 205;

/// The colours of everything but series, and what each becomes on a dark page. No series has one of these.
const PAPER: RGBColor = RGBColor(255, 255, 255);
const INK: RGBColor = RGBColor(31, 35, 40);
const FAINT: RGBColor = RGBColor(89, 99, 110);
const GRID: RGBColor = RGBColor(222, 227, 232);
const DARK: [(RGBColor, &str); 4] =
    [(PAPER, "#0d1117"), (INK, "#e6edf3"), (FAINT, "#9198a1"), (GRID, "#2b3138")];

/// Neither dark nor light, so that they are seen on both pages, and told apart by those who see red as green
/// (after Okabe and Ito 2008).
const COLOURS: [RGBColor; 7] = [
    RGBColor(31, 119, 204),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(194, 80, 150),
    RGBColor(176, 136, 0),
    RGBColor(76, 160, 200),
    RGBColor(137, 96, 200),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The charts, one below the other.
pub(super) fn svg(charts: &[Chart]) -> Result<String> {
    let mut text = String::new();
    {
        let height = HEIGHT * u32::try_from(charts.len()).unwrap_or(u32::MAX / HEIGHT);
        let root = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
        draw(&root, charts)
            .map_err(|error| Error::Picture { what: "of the results", why: error.to_string() })?;
    }
    Ok(with_dark_twin(&text))
}

fn draw(root: &Area<'_>, charts: &[Chart]) -> Drawn<()> {
    root.fill(&PAPER)?;
    for (area, chart) in root.split_evenly((charts.len(), 1)).iter().zip(charts) {
        one(area, chart)?;
    }
    root.present()?;
    Ok(())
}

fn font(size: i32, colour: RGBColor) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&colour)
}

/// An axis with its ends and ticks, in steps: values, or their logarithms.
struct Ruler {
    scale: Scale,
    low: f64,
    high: f64,
    ticks: Vec<f64>,
}

impl Ruler {
    fn new(axis: &Axis, values: impl Iterator<Item = f64>) -> Self {
        let values: Vec<_> = values.filter(|value| value.is_finite()).collect();
        let high = values.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let low = values.iter().copied().filter(|&value| value > 0.0).fold(high, f64::min);
        if axis.scale == Scale::Linear {
            let step = round_step(high / 5.0);
            let count = (high * 1.05 / step).ceil().max(1.0);
            let ticks = (0..=count as usize).map(|i| i as f64 * step).collect();
            return Self { scale: axis.scale, low: 0.0, high: count * step, ticks };
        }
        let (first, last) = (steps(axis.scale, low).floor() as i32, steps(axis.scale, high).ceil() as i32);
        // As many as can be read.
        let every = (last - first).div_euclid(12) + 1;
        let ticks = (first..=last).filter(|i| (i - first) % every == 0).map(f64::from).collect();
        // Points do not sit on the frame.
        let margin = f64::from((last - first).max(1)) * 0.02;
        Self { scale: axis.scale, low: f64::from(first) - margin, high: f64::from(last) + margin, ticks }
    }
}

fn steps(scale: Scale, value: f64) -> f64 {
    match scale {
        Scale::Linear => value,
        Scale::Log2 => value.max(f64::MIN_POSITIVE).log2(),
        Scale::Log10 => value.max(f64::MIN_POSITIVE).log10(),
    }
}

impl Ranged for Ruler {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let share = (steps(self.scale, *value) - self.low) / (self.high - self.low);
        from + (f64::from(to - from) * share).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _hint: Hint) -> Vec<f64> {
        let value = |&tick: &f64| match self.scale {
            Scale::Linear => tick,
            Scale::Log2 => tick.exp2(),
            Scale::Log10 => 10_f64.powf(tick),
        };
        self.ticks.iter().map(value).collect()
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

/// 1, 2 or 5 times a power of ten, not below `step`.
fn round_step(step: f64) -> f64 {
    let power = 10_f64.powf(step.max(1e-12).log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|n| n * power).find(|&round| round >= step * 0.999).unwrap_or(power)
}

fn one(area: &Area<'_>, chart: &Chart) -> Drawn<()> {
    let (width, _) = area.dim_in_pixel();
    let width = i32::try_from(width)?;
    area.draw(&Text::new(chart.title.clone(), (24, 18), font(20, INK)))?;
    area.draw(&Text::new(chart.subtitle.clone(), (24, 44), font(15, FAINT)))?;
    let points = || chart.series.iter().flat_map(|series| &series.points);
    let (x, y) = (Ruler::new(&chart.x, points().map(|p| p.0)), Ruler::new(&chart.y, points().map(|p| p.1)));
    let (plot, legend) = area.margin(68, 14, 10, 16).split_horizontally(width - 26 - LEGEND);
    let mut drawn = ChartBuilder::on(&plot)
        .x_label_area_size(46)
        .y_label_area_size(56)
        .margin_right(14)
        .margin_top(6)
        .build_cartesian_2d(x, y)?;
    drawn
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(GRID)
        .label_style(font(15, FAINT))
        .axis_desc_style(font(16, INK))
        .x_label_formatter(&|at| (chart.x.label)(*at))
        .y_label_formatter(&|at| (chart.y.label)(*at))
        .x_desc(chart.x.title.clone())
        .y_desc(chart.y.title.clone())
        .draw()?;
    // Bounds first: what is measured lies on them.
    let bounds = chart.series.iter().filter(|series| series.line == Line::Bound);
    for series in bounds.chain(chart.series.iter().filter(|series| series.line != Line::Bound)) {
        let at = || series.points.iter().copied();
        let style = style(series);
        match series.line {
            Line::Solid | Line::Bound => _ = drawn.draw_series(LineSeries::new(at(), style))?,
            Line::Dashed => {
                _ = drawn.draw_series(DashedLineSeries::new(at().collect::<Vec<_>>(), 6, 4, style))?
            }
            Line::Marks => {}
        }
        if series.line != Line::Bound {
            drawn.draw_series(at().map(|point| Circle::new(point, 4, style.filled())))?;
        }
    }
    let anchor = font(15, INK).pos(Pos::new(HPos::Left, VPos::Center));
    // Rows of the legend move together before they leave the picture.
    let rows = i32::try_from(chart.series.len()).unwrap_or(i32::MAX);
    let pitch = 24.min((i32::try_from(legend.dim_in_pixel().1)? - 16) / rows.max(1));
    for (series, row) in chart.series.iter().zip(0..) {
        let (at, style) = (16 + pitch * row, style(series));
        match series.line {
            Line::Marks => {}
            Line::Dashed => {
                legend.draw(&PathElement::new([(2, at), (9, at)], style))?;
                legend.draw(&PathElement::new([(23, at), (30, at)], style))?;
            }
            Line::Solid | Line::Bound => legend.draw(&PathElement::new([(2, at), (30, at)], style))?,
        }
        if series.line != Line::Bound {
            legend.draw(&Circle::new((16, at), 4, style.filled()))?;
        }
        legend.draw(&Text::new(series.label.clone(), (36, at), anchor.clone()))?;
    }
    Ok(())
}

fn style(series: &Series) -> ShapeStyle {
    match series.line {
        Line::Bound => FAINT.stroke_width(2),
        _ => COLOURS[series.colour % COLOURS.len()].stroke_width(2),
    }
}

/// Makes the picture follow the page that it is shown on. Colours stand in attributes, which any rule overrides.
fn with_dark_twin(svg: &str) -> String {
    let hex = |RGBColor(r, g, b): RGBColor| format!("#{r:02X}{g:02X}{b:02X}");
    let rule = |(light, dark): (RGBColor, &str)| {
        let light = hex(light);
        format!("[fill=\"{light}\"]{{fill:{dark}}}[stroke=\"{light}\"]{{stroke:{dark}}}")
    };
    let rules: String = DARK.into_iter().map(rule).collect();
    let style = format!("<style>@media (prefers-color-scheme:dark){{{rules}}}</style>\n");
    match svg.find('>') {
        Some(end) => format!("{}\n{style}{}", &svg[..=end], svg[end + 1..].trim_start()),
        None => svg.to_owned(),
    }
}

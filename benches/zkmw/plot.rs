//! Curves as SVG: axes, ticks, units, medians with their spread. Pure; must not know where the numbers come from.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::stats::{Samples, human};

/// Size of the picture, and of the margins around the curves.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = 48.0;
const TOP: f64 = 78.0;
const BOTTOM: f64 = 62.0;

/// Colours of the curves, distinct for the colour-blind too.
const COLOURS: [&str; 5] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9"];

/// An axis goes so much further than the numbers on it.
const HEADROOM: f64 = 1.05;

/// A curve with more points has no dots.
const DOTS_MAX: usize = 40;

/// Ticks that an axis is to have, about.
const TICKS: f64 = 6.0;

/// One curve: for each x the measurements there.
pub struct Curve {
    pub name: String,
    pub points: Vec<(f64, Samples)>,
    /// Not measured: a bound, drawn with dashes.
    pub is_bound: bool,
}

impl Curve {
    /// The measurements.
    pub fn measured(name: impl Into<String>, points: Vec<(f64, Samples)>) -> Curve {
        Curve { name: name.into(), points, is_bound: false }
    }

    /// The budget's bound: each median times a factor.
    pub fn bound(name: impl Into<String>, points: &[(f64, Samples)], factor: f64) -> Curve {
        let scaled = |(x, y): &(f64, Samples)| (*x, Samples(vec![factor * y.median()]));
        Curve { name: name.into(), points: points.iter().map(scaled).collect(), is_bound: true }
    }
}

/// How an axis is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// From zero.
    Linear,
    /// By powers of ten.
    Logarithmic,
}

/// A picture.
pub struct Plot {
    /// Of the file, without `.svg`.
    pub name: &'static str,
    pub title: String,
    pub below: String,
    pub x: (String, Scale),
    pub y: (String, Scale),
    pub curves: Vec<Curve>,
}

/// One axis: the values at its ends, and where those are in the picture.
struct Axis {
    scale: Scale,
    from: f64,
    to: f64,
    start: f64,
    end: f64,
}

impl Axis {
    fn over(numbers: &[f64], scale: Scale, start: f64, end: f64) -> Axis {
        let low = numbers.iter().copied().fold(f64::INFINITY, f64::min);
        let high = numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let (from, to) = match scale {
            Scale::Linear => (0.0, if high > 0.0 { high * HEADROOM } else { 1.0 }),
            Scale::Logarithmic => {
                let (from, to) = (low.max(1e-9).log10().floor(), high.max(1e-9).log10().ceil());
                (from, if to > from { to } else { from + 1.0 })
            }
        };
        Axis { scale, from, to, start, end }
    }

    fn at(&self, number: f64) -> f64 {
        let number = match self.scale {
            Scale::Linear => number,
            Scale::Logarithmic => number.max(1e-9).log10(),
        };
        self.start + (number - self.from) / (self.to - self.from) * (self.end - self.start)
    }

    fn ticks(&self) -> Vec<f64> {
        match self.scale {
            Scale::Logarithmic => {
                let next = |power: &f64| Some(power + 1.0);
                std::iter::successors(Some(self.from), next)
                    .take_while(|power| *power <= self.to + 1e-9)
                    .map(|power| 10_f64.powf(power))
                    .collect()
            }
            Scale::Linear => {
                let rough = (self.to - self.from) / TICKS;
                let power = 10_f64.powf(rough.log10().floor());
                let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
                let step = step.into_iter().find(|step| *step >= rough).unwrap_or(rough);
                std::iter::successors(Some(0.0), |tick| Some(tick + step))
                    .take_while(|tick| *tick <= self.to)
                    .collect()
            }
        }
    }
}

impl Plot {
    /// The numbers, for `bench.json`.
    pub fn json(&self) -> Value {
        let point = |(x, y): &(f64, Samples)| json!({"x": x, "y": y.json()});
        let curve = |curve: &Curve| {
            let points: Vec<Value> = curve.points.iter().map(point).collect();
            json!({"name": curve.name, "points": points})
        };
        let curves: Vec<Value> = self.curves.iter().map(curve).collect();
        json!({"name": self.name, "title": self.title, "x": self.x.0, "y": self.y.0, "curves": curves})
    }

    /// The picture.
    pub fn draw(&self) -> String {
        let points = || self.curves.iter().flat_map(|curve| &curve.points);
        let xs: Vec<f64> = points().map(|(x, _)| *x).collect();
        let ys: Vec<f64> = points().flat_map(|(_, y)| [y.low(), y.high()]).collect();
        let across = Axis::over(&xs, self.x.1, LEFT, WIDTH - RIGHT);
        let up = Axis::over(&ys, self.y.1, HEIGHT - BOTTOM, TOP);
        let mut text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
             height=\"{HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
        );
        put(&mut text, LEFT, 26.0, "font-size=\"16\" font-weight=\"bold\"", &self.title);
        put(&mut text, LEFT, 44.0, "fill=\"#555\"", &self.below);
        self.axes(&mut text, &across, &up);
        for (number, curve) in self.curves.iter().enumerate() {
            draw_curve(&mut text, curve, COLOURS[number % COLOURS.len()], &across, &up);
        }
        self.legend(&mut text);
        text.push_str("</svg>\n");
        text
    }

    fn axes(&self, text: &mut String, across: &Axis, up: &Axis) {
        let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
        for tick in up.ticks() {
            let y = up.at(tick);
            line(text, (LEFT, y), (right, y), "#e2e6ea");
            put(text, LEFT - 8.0, y + 4.0, "fill=\"#333\" text-anchor=\"end\"", &short(tick));
        }
        for tick in across.ticks() {
            let x = across.at(tick);
            line(text, (x, TOP), (x, bottom), "#eef1f4");
            line(text, (x, bottom), (x, bottom + 5.0), "#777");
            put(text, x, bottom + 20.0, "fill=\"#333\" text-anchor=\"middle\"", &short(tick));
        }
        line(text, (LEFT, bottom), (right, bottom), "#777");
        line(text, (LEFT, TOP), (LEFT, bottom), "#777");
        let middle = f64::midpoint(LEFT, right);
        put(text, middle, HEIGHT - 16.0, "text-anchor=\"middle\"", &self.x.0);
        let middle = f64::midpoint(TOP, bottom);
        let turned = format!("text-anchor=\"middle\" transform=\"rotate(-90 20 {middle:.1})\"");
        put(text, 20.0, middle, &turned, &self.y.0);
    }

    fn legend(&self, text: &mut String) {
        if self.curves.len() < 2 {
            return;
        }
        let mut x = LEFT;
        for (number, curve) in self.curves.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            let _ =
                writeln!(text, "<rect x=\"{x:.1}\" y=\"55\" width=\"14\" height=\"4\" fill=\"{colour}\"/>");
            put(text, x + 20.0, 62.0, "fill=\"#333\"", &curve.name);
            // Letters are about so wide.
            x += 44.0 + 6.4 * f64::from(u32::try_from(curve.name.chars().count()).unwrap_or(0));
        }
    }
}

fn draw_curve(text: &mut String, curve: &Curve, colour: &str, across: &Axis, up: &Axis) {
    let point = |(x, y): &(f64, Samples)| format!("{:.1},{:.1}", across.at(*x), up.at(y.median()));
    let path: Vec<String> = curve.points.iter().map(point).collect();
    let dashes = if curve.is_bound { " stroke-dasharray=\"6 4\"" } else { "" };
    let _ = writeln!(
        text,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dashes}/>",
        path.join(" ")
    );
    // Of a curve with many points every one is a single number, and dots would hide it.
    if curve.points.len() > DOTS_MAX || curve.is_bound {
        return;
    }
    for (x, y) in &curve.points {
        let (left, middle) = (across.at(*x), up.at(y.median()));
        let (low, high) = (up.at(y.low()), up.at(y.high()));
        line(text, (left, low), (left, high), colour);
        for end in [low, high] {
            line(text, (left - 4.0, end), (left + 4.0, end), colour);
        }
        let _ = writeln!(
            text,
            "<circle cx=\"{left:.1}\" cy=\"{middle:.1}\" r=\"3.5\" fill=\"{colour}\"><title>{} {}: {} ({} to {})\
             </title></circle>",
            escaped(&curve.name),
            human(*x),
            human(y.median()),
            human(y.low()),
            human(y.high())
        );
    }
}

/// A number on an axis.
fn short(number: f64) -> String {
    if number >= 1.0 || number == 0.0 {
        let text = human(number);
        let cut = text.contains('.');
        return if cut { text.trim_end_matches('0').trim_end_matches('.').to_string() } else { text };
    }
    format!("{number:.6}").trim_end_matches('0').to_string()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

fn put(text: &mut String, x: f64, y: f64, extra: &str, words: &str) {
    let _ = writeln!(text, "<text x=\"{x:.1}\" y=\"{y:.1}\" {extra}>{}</text>", escaped(words));
}

fn line(text: &mut String, from: (f64, f64), to: (f64, f64), stroke: &str) {
    let ((x1, y1), (x2, y2)) = (from, to);
    let _ = writeln!(
        text,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{stroke}\"/>"
    );
}

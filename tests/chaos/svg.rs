//! The timeline of a run as a picture: bands of three minutes below each other, in each a row for every host with the
//! faults as coloured bars, the leader of the masters, and below it the outcomes. Reads a run, judges nothing.

use std::fmt::Write as _;

use crate::Run;
use crate::check::name_in;
use crate::history::Note;
use crate::hosts::{ELECTORS, HOSTS, MASTERS, OBSERVER, WORKERS};
use crate::load::host_of;
use crate::report::{Figures, figures};

/// Seconds of one band.
const BAND_SECS: f64 = 180.0;

/// Pixels of a second, a row, the labels on the left, the part below the rows, and all around.
const SECOND: f64 = 7.5;
const ROW: f64 = 17.0;
const LABELS: f64 = 92.0;
const BELOW: f64 = 92.0;
const MARGIN: f64 = 20.0;
const HEAD: f64 = 92.0;

/// Outcomes are counted over so many seconds.
const STEP_SECS: f64 = 2.0;

/// Words for the legend, colour, and the beginnings of the kinds that have it.
const COLOURS: [(&str, &str, &[&str]); 8] = [
    ("killed", "#d62728", &["kill"]),
    ("stopped (SIGSTOP)", "#9467bd", &["stop", "freeze"]),
    ("asked to end (SIGTERM)", "#1f77b4", &["restart", "term"]),
    ("cut off", "#3d3d3d", &["cut", "isolate"]),
    ("loses packets", "#ff9f1c", &["lossy"]),
    ("delays packets", "#e7cf3a", &["slow"]),
    ("ended by itself", "#ff00aa", &["ended"]),
    ("an attempt, an elector's command, or a user's command runs", "#8fd19e", &[]),
];

const RUNNING: &str = "#8fd19e";
const LEADS: &str = "#2ca02c";
const OUTCOMES: &str = "#4c9be8";

struct Picture<'a> {
    run: &'a Run,
    text: String,
    length: f64,
}

/// The picture of a run.
pub fn draw(run: &Run) -> String {
    let length = (run.rested - run.begin).max(1.0);
    let mut picture = Picture { run, text: String::new(), length };
    let figures = figures(run);
    let bands = picture.bands();
    let height = HEAD + picture.band_height() * f64::from(bands) + MARGIN;
    let width = LABELS + BAND_SECS.min(length) * SECOND + 2.0 * MARGIN;
    let width = width.max(1_100.0);
    let _ = writeln!(
        picture.text,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>"
    );
    picture.head();
    for band in 0..bands {
        picture.band(band, &figures);
    }
    picture.text.push_str("</svg>\n");
    picture.text
}

impl Picture<'_> {
    fn bands(&self) -> u32 {
        (1..).find(|bands| f64::from(*bands) * BAND_SECS >= self.length).unwrap_or(1)
    }

    fn band_height(&self) -> f64 {
        rows() * ROW + BELOW + 34.0
    }

    fn put(&mut self, x: f64, y: f64, extra: &str, text: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        let _ = writeln!(self.text, "<text x=\"{x:.1}\" y=\"{y:.1}\" {extra}>{text}</text>");
    }

    fn bar(&mut self, x: f64, y: f64, width: f64, height: f64, fill: &str, title: &str) {
        let title = title.replace('&', "&amp;").replace('<', "&lt;");
        let _ = writeln!(
            self.text,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{fill}\">\
             <title>{title}</title></rect>"
        );
    }

    fn line(&mut self, from: (f64, f64), to: (f64, f64), stroke: &str) {
        let ((x1, y1), (x2, y2)) = (from, to);
        let _ = writeln!(
            self.text,
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{stroke}\"/>"
        );
    }

    fn head(&mut self) {
        let title = format!(
            "Chaos, seed {}: {:.1} minutes of faults, then healed",
            self.run.seed,
            self.run.length.as_secs_f64() / 60.0
        );
        self.put(MARGIN, MARGIN + 8.0, "font-size=\"17\" font-weight=\"bold\"", &title);
        let mut position = (MARGIN, MARGIN + 28.0);
        for (word, colour, _) in COLOURS {
            self.legend(&mut position, word, colour);
        }
        self.legend(&mut position, "leads the masters (a triangle: takes over)", LEADS);
        self.legend(&mut position, "outcomes a second", OUTCOMES);
    }

    fn legend(&mut self, position: &mut (f64, f64), word: &str, colour: &str) {
        // Letters are about so wide.
        let width = 26.0 + 6.2 * f64::from(u32::try_from(word.len()).unwrap_or(0));
        if position.0 + width > 1_080.0 {
            *position = (MARGIN, position.1 + 19.0);
        }
        self.bar(position.0, position.1, 14.0, 11.0, colour, word);
        self.put(position.0 + 19.0, position.1 + 9.5, "", word);
        position.0 += width + 12.0;
    }

    fn band(&mut self, band: u32, figures: &Figures) {
        let top = HEAD + self.band_height() * f64::from(band);
        let first = BAND_SECS * f64::from(band);
        let last = (first + BAND_SECS).min(self.length);
        let frame = Frame { top, first, last };
        self.rows(&frame);
        self.work(&frame);
        self.leaders(&frame, figures);
        self.faults(&frame);
        self.outcomes(&frame, figures);
        let healed = self.run.healed - self.run.begin;
        if let Some(x) = frame.x(healed) {
            let bottom = top + rows() * ROW + BELOW;
            self.line((x, top - 4.0), (x, bottom), "#2ca02c");
            self.put(
                x + 4.0,
                frame.row(OBSERVER) + 14.0,
                "fill=\"#2ca02c\" font-weight=\"bold\"",
                "all healed",
            );
        }
    }

    fn rows(&mut self, frame: &Frame) {
        let right = frame.right();
        for (row, name) in HOSTS.iter().take(OBSERVER).enumerate() {
            let y = frame.row(row);
            let background = if row % 2 == 0 { "#f3f5f8" } else { "#fafbfc" };
            self.bar(MARGIN + LABELS, y, right - MARGIN - LABELS, ROW, background, name);
            let what = match &name[..1] {
                "s" => "server",
                "m" => "master",
                "w" => "worker",
                "e" => "elector",
                _ => "clients",
            };
            self.put(MARGIN, y + 12.5, "fill=\"#333\"", &format!("{what} {name}"));
        }
        let bottom = frame.row(OBSERVER) + BELOW;
        let mut at = frame.first;
        while at <= frame.last {
            let x = frame.clamped(at);
            self.line((x, frame.top), (x, bottom), "#d5dae0");
            self.put(x, bottom + 13.0, "fill=\"#555\" text-anchor=\"middle\"", &clock(at));
            at += 15.0;
        }
    }

    /// The runs on each host: thin bars at the foot of the rows.
    fn work(&mut self, frame: &Frame) {
        let run = self.run;
        for (name, notes) in &run.evidence.notes {
            for (index, note) in notes.iter().enumerate().filter(|(_, note)| note.what == "start") {
                let Some(row) = WORKERS.into_iter().find(|host| HOSTS[*host] == note.worker) else {
                    continue;
                };
                let until = end_of(run, name, notes, index);
                self.thin(
                    frame,
                    row,
                    note.at - run.begin,
                    until - run.begin,
                    &format!("{name} {}", note.attempt),
                );
            }
        }
        for record in &run.evidence.records {
            let title = format!("{} {:?}", record.label, record.deed);
            self.thin(
                frame,
                host_of(record.number),
                record.from - run.begin,
                record.until - run.begin,
                &title,
            );
        }
        let leads = &run.evidence.leads;
        for (index, lead) in leads.iter().enumerate().filter(|(_, lead)| lead.what == "start") {
            let Some(row) = ELECTORS.into_iter().find(|host| HOSTS[*host] == lead.name) else { continue };
            let until = leads.get(index + 1).map_or(run.rested, |next| next.at);
            self.thin(frame, row, lead.at - run.begin, until - run.begin, &format!("token {}", lead.token));
        }
    }

    fn thin(&mut self, frame: &Frame, row: usize, from: f64, until: f64, title: &str) {
        if let Some((x, width)) = frame.span(from, until) {
            self.bar(x, frame.row(row) + ROW - 6.0, width, 4.5, RUNNING, title);
        }
    }

    fn leaders(&mut self, frame: &Frame, figures: &Figures) {
        for (index, (at, name)) in figures.terms.iter().enumerate() {
            let Some(row) = MASTERS.into_iter().find(|host| HOSTS[*host] == name) else { continue };
            let until = figures.terms.get(index + 1).map_or(self.run.rested, |next| next.0);
            let (from, until) = (at - self.run.begin, until - self.run.begin);
            let y = frame.row(row);
            if let Some((x, width)) = frame.span(from, until) {
                self.bar(x, y + ROW - 6.0, width, 4.5, LEADS, &format!("{name} leads"));
            }
            if let Some(x) = frame.x(from) {
                let (left, right, foot) = (x - 5.0, x + 5.0, y + 10.0);
                let _ = writeln!(
                    self.text,
                    "<path d=\"M{left:.1} {y:.1} L{right:.1} {y:.1} L{x:.1} {foot:.1} Z\" fill=\"{LEADS}\"/>"
                );
            }
        }
    }

    fn faults(&mut self, frame: &Frame) {
        let run = self.run;
        for deed in &run.history.deeds {
            let colour = COLOURS
                .iter()
                .find(|(_, _, kinds)| kinds.iter().any(|kind| deed.kind.starts_with(kind)))
                .map_or("#000000", |(_, colour, _)| *colour);
            // Faults of the network are drawn above faults of the process.
            let network = crate::plan::needs_net(&deed.kind);
            let (offset, height) = if network { (1.0, 4.0) } else { (5.0, 6.0) };
            for row in deed.hosts.iter().filter(|host| **host < OBSERVER) {
                if let Some((x, width)) = frame.span(deed.from - run.begin, deed.until - run.begin) {
                    let title = format!("{}: {}", deed.kind, deed.text);
                    self.bar(x, frame.row(*row) + offset, width, height, colour, &title);
                }
            }
        }
    }

    /// Outcomes a second, as columns below the rows.
    fn outcomes(&mut self, frame: &Frame, figures: &Figures) {
        let begin = self.run.begin;
        let base = frame.row(OBSERVER) + BELOW - 4.0;
        let steps: Vec<(f64, f64)> = steps(self.length)
            .into_iter()
            .map(|from| {
                let within = |at: &&f64| **at - begin >= from && **at - begin < from + STEP_SECS;
                let count = figures.outcomes.iter().filter(within).count();
                (from, f64::from(u32::try_from(count).unwrap_or(0)) / STEP_SECS)
            })
            .collect();
        let most = steps.iter().map(|(_, rate)| *rate).fold(1.0, f64::max);
        let room = BELOW - 18.0;
        self.put(MARGIN, base - room + 10.0, "fill=\"#333\"", &format!("{most:.0} a second"));
        self.put(MARGIN, base, "fill=\"#333\"", "outcomes");
        for (from, rate) in steps {
            if let Some((x, width)) = frame.span(from, from + STEP_SECS)
                && rate > 0.0
                && from >= frame.first
            {
                let height = room * rate / most;
                self.bar(
                    x,
                    base - height,
                    (width - 1.0).max(1.0),
                    height,
                    OUTCOMES,
                    &format!("{rate} a second"),
                );
            }
        }
        self.line((MARGIN + LABELS, base), (frame.right(), base), "#9aa3ad");
    }
}

/// When an attempt was over, as far as is known.
fn end_of(run: &Run, name: &str, notes: &[Note], index: usize) -> f64 {
    let attempt = notes[index].attempt;
    if let Some(next) = notes.get(index + 1) {
        return next.at;
    }
    let life = run.evidence.lives.values().find(|life| name_in(life) == Some(name));
    let over = life.into_iter().flat_map(|life| &life.written);
    let mut over = over.filter(|written| written.task.attempt > attempt || written.task.outcome.is_some());
    over.next().map_or(notes[index].at, |written| written.at.max(notes[index].at))
}

/// Every step's beginning.
fn steps(length: f64) -> Vec<f64> {
    std::iter::successors(Some(0.0), |at| Some(at + STEP_SECS)).take_while(|at| *at < length).collect()
}

fn rows() -> f64 {
    f64::from(u32::try_from(OBSERVER).unwrap_or(0))
}

fn clock(at: f64) -> String {
    let minutes = (at / 60.0).floor();
    format!("{minutes:.0}:{:02.0}", at - minutes * 60.0)
}

/// The position and the time of a band.
struct Frame {
    top: f64,
    first: f64,
    last: f64,
}

impl Frame {
    fn row(&self, row: usize) -> f64 {
        self.top + ROW * f64::from(u32::try_from(row).unwrap_or(0))
    }

    fn clamped(&self, at: f64) -> f64 {
        MARGIN + LABELS + (at.clamp(self.first, self.last) - self.first) * SECOND
    }

    fn right(&self) -> f64 {
        self.clamped(self.last)
    }

    fn x(&self, at: f64) -> Option<f64> {
        (at >= self.first && at < self.last).then(|| self.clamped(at))
    }

    /// The left edge and the width of a bar. A very short one is drawn wide enough to be seen.
    fn span(&self, from: f64, until: f64) -> Option<(f64, f64)> {
        let seen = until >= self.first && from < self.last;
        seen.then(|| (self.clamped(from), (self.clamped(until) - self.clamped(from)).max(1.5)))
    }
}

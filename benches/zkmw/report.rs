//! The results of a run: rows of a table, lines of the budget, curves; as text, as `bench.json` and as pictures. Must
//! not measure anything.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};
use zkmw::contract::{MAX_CHILDREN_TOLERATED, MAX_DATA_BYTES};

use crate::plot::Plot;
use crate::stats::{Samples, human};

/// One line of the table.
pub struct Row {
    pub case: String,
    pub what: String,
    pub unit: &'static str,
    pub samples: Samples,
    pub remark: String,
}

/// Which way a bound of the budget goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// One line of the budget, and its measurements.
pub struct Line {
    pub what: &'static str,
    pub bound: Bound,
    pub measured: Option<(Samples, String)>,
}

/// Names of the budget's lines.
pub mod budget {
    pub const BATCH: &str = "lines a second that do nothing, one batch, end to end, over W";
    pub const THROUGHPUT: &str = "tasks a second that do nothing, each its own znode, over W/3";
    pub const XARGS: &str = "`true` as a process, 2 slots, a second, over xargs -P2 -n1 sh -c true";
    pub const GEARMAN: &str = "the same over Gearman's command line with two workers";
    pub const PARALLEL: &str = "the same over GNU parallel -j2";
    pub const SLOTS: &str = "the same with 16 slots, over with 2";
    pub const GROUPS: &str = "the same with control groups and without, the better over the other";
    pub const ALONE: &str = "median from a process task's create to its outcome, over one quorum write's";
    pub const COMMAND: &str =
        "median of `zkmw submit true` from start to exit, less 15 ms, over one quorum write's";
    pub const BALANCE: &str = "makespan of lines of mixed length, over an ideal list schedule";
    pub const FLAT: &str = "lines a second beside 1,000,000 lines pending, over beside 1,000";
    pub const LATENCY: &str = "median from create to outcome, over one quorum write's";
    pub const TAKEOVER: &str = "takeover after SIGTERM with 1,000,000 lines pending, over with 100";
    pub const EXPIRY: &str = "the same after SIGKILL, from the end of the leader's session";
    pub const IDLE: &str = "an idle role's writes a minute";
    pub const LINE_MEMORY: &str = "bytes of a leader's and a standby's resident memory per pending line";
    pub const TASK_MEMORY: &str = "KiB of a leader's and a standby's resident memory per pending single task";
    // Asked for by the guarantee that everything is bounded (G8).
    pub const CHILDREN: &str = "most children of any znode below the root";
    pub const BYTES: &str = "most bytes of any znode below the root";
}

/// All results of a run.
pub struct Report {
    pub rows: Vec<Row>,
    pub lines: Vec<Line>,
    pub plots: Vec<Plot>,
    pub notes: Vec<String>,
    /// Cases that could not be finished, and why.
    pub broken: Vec<String>,
    pub facts: Map<String, Value>,
}

impl Report {
    /// Nothing yet.
    pub fn new() -> Report {
        let line = |what, bound| Line { what, bound, measured: None };
        let lines = vec![
            line(budget::BATCH, Bound::AtLeast(2.5)),
            line(budget::THROUGHPUT, Bound::AtLeast(0.4)),
            line(budget::XARGS, Bound::AtLeast(0.8)),
            line(budget::GEARMAN, Bound::AtLeast(1.0)),
            line(budget::PARALLEL, Bound::AtLeast(4.0)),
            line(budget::SLOTS, Bound::AtLeast(1.0)),
            line(budget::GROUPS, Bound::AtMost(1.1)),
            line(budget::ALONE, Bound::AtMost(6.0)),
            line(budget::COMMAND, Bound::AtMost(8.0)),
            line(budget::BALANCE, Bound::AtMost(1.15)),
            line(budget::FLAT, Bound::AtLeast(0.9)),
            line(budget::LATENCY, Bound::AtMost(6.0)),
            line(budget::TAKEOVER, Bound::AtMost(1.5)),
            line(budget::EXPIRY, Bound::AtMost(1.5)),
            line(budget::IDLE, Bound::AtMost(0.0)),
            line(budget::LINE_MEMORY, Bound::AtMost(64.0)),
            line(budget::TASK_MEMORY, Bound::AtMost(1.0)),
            line(budget::CHILDREN, Bound::AtMost(f64::from(MAX_CHILDREN_TOLERATED))),
            line(budget::BYTES, Bound::AtMost(MAX_DATA_BYTES as f64)),
        ];
        Report { rows: vec![], lines, plots: vec![], notes: vec![], broken: vec![], facts: Map::new() }
    }

    /// Adds a line to the table.
    pub fn row(
        &mut self,
        case: &str,
        what: impl Into<String>,
        unit: &'static str,
        samples: Samples,
        remark: &str,
    ) {
        let (case, remark) = (case.to_string(), remark.to_string());
        self.rows.push(Row { case, what: what.into(), unit, samples, remark });
    }

    /// A line of the budget was measured; `how` says the sizes.
    pub fn measured(&mut self, what: &str, ratios: Samples, how: String) {
        let line = self.lines.iter_mut().find(|line| line.what == what).expect("a line of the budget");
        line.measured = Some((ratios, how));
    }

    /// A znode was seen with so many children and bytes.
    pub fn seen(&mut self, children: f64, bytes: f64) {
        for (what, number) in [(budget::CHILDREN, children), (budget::BYTES, bytes)] {
            let line = self.lines.iter_mut().find(|line| line.what == what).expect("a line of the budget");
            let before = line.measured.as_ref().map_or(0.0, |(most, _)| most.high());
            let how = "the most that was seen in the cases pending and million".to_string();
            line.measured = Some((Samples(vec![before.max(number)]), how));
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let head = ["case", "what", "median", "low", "high", "unit", "remark"].map(str::to_string);
        let row = |row: &Row| {
            let numbers = [row.samples.median(), row.samples.low(), row.samples.high()].map(human);
            let [median, low, high] = numbers;
            [row.case.clone(), row.what.clone(), median, low, high, row.unit.into(), row.remark.clone()]
        };
        let cells: Vec<[String; 7]> = std::iter::once(head).chain(self.rows.iter().map(row)).collect();
        let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..7).map(width).collect();
        for row in &cells {
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                let _ = match column {
                    2..=4 => write!(text, "{cell:>width$}  "),
                    6 => write!(text, "{cell}"),
                    _ => write!(text, "{cell:<width$}  "),
                };
            }
            text.truncate(text.trim_end().len());
            text.push('\n');
        }
        text.push_str("\nBudget: the median decides; the spread is in brackets.\n");
        for line in &self.lines {
            let _ = writeln!(text, "  {}", line.text());
        }
        for note in &self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        for broken in &self.broken {
            let _ = writeln!(text, "NOT FINISHED: {broken}");
        }
        text
    }

    fn json(&self) -> Value {
        let row = |row: &Row| {
            json!({"case": row.case, "what": row.what, "unit": row.unit, "remark": row.remark,
                   "samples": row.samples.json()})
        };
        json!({
            "v": 1,
            "facts": self.facts,
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
            "budget": self.lines.iter().map(Line::json).collect::<Vec<_>>(),
            "plots": self.plots.iter().map(Plot::json).collect::<Vec<_>>(),
            "notes": self.notes,
            "not_finished": self.broken,
        })
    }

    /// Writes `bench.json`, `bench.txt` and the pictures.
    pub fn write(&self, folder: &Path) {
        let put =
            |name: &str, text: String| fs::write(folder.join(name), text).expect("the report is written");
        put("bench.json", format!("{:#}\n", self.json()));
        put("bench.txt", self.text());
        for plot in &self.plots {
            put(&format!("{}.svg", plot.name), plot.draw());
        }
    }
}

impl Line {
    fn holds(&self) -> Option<bool> {
        let (ratios, _) = self.measured.as_ref()?;
        Some(self.bound.allows(ratios.median()))
    }

    fn text(&self) -> String {
        let bound = match self.bound {
            Bound::AtLeast(bound) => format!("≥ {}", human(bound)),
            Bound::AtMost(bound) => format!("≤ {}", human(bound)),
        };
        let Some((ratios, how)) = &self.measured else {
            return format!("not measured  {} ({bound})", self.what);
        };
        let word = if self.holds() == Some(true) { "holds" } else { "falls short" };
        let sometimes = self.bound.allows(ratios.low()) != self.bound.allows(ratios.high());
        let sometimes = if sometimes { ", but not every repeat agrees" } else { "" };
        let [median, low, high] = [ratios.median(), ratios.low(), ratios.high()].map(human);
        format!("{word:<12}  {}: {median} ({low} to {high}), must be {bound}{sometimes}; {how}", self.what)
    }

    fn json(&self) -> Value {
        let (kind, bound) = match self.bound {
            Bound::AtLeast(bound) => ("at_least", bound),
            Bound::AtMost(bound) => ("at_most", bound),
        };
        let ratios = self.measured.as_ref().map(|(ratios, _)| ratios.json());
        let how = self.measured.as_ref().map(|(_, how)| how);
        json!({"what": self.what, kind: bound, "holds": self.holds(), "ratio": ratios, "how": how})
    }
}

impl Bound {
    fn allows(self, number: f64) -> bool {
        match self {
            Bound::AtLeast(bound) => number >= bound,
            Bound::AtMost(bound) => number <= bound,
        }
    }
}

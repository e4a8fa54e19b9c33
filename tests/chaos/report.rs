//! The report of a run, for people: its faults, its results, and whether all checks held. Judges nothing itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use zkmw::contract::TaskId;

use crate::check::{story, terms};
use crate::load::Deed;
use crate::{Run, judge, svg};

/// Violations that are shown for each check. The number of all is shown as well.
const MAX_SHOWN: usize = 20;

/// Tasks whose whole story is shown.
const MOST_STORIES: usize = 20;

/// Numbers of a run.
pub struct Figures {
    /// Outcomes, at the times when they were written.
    pub outcomes: Vec<f64>,
    /// Longest time without one while users were at work: from, until.
    pub longest_gap: (f64, f64),
    /// Leaders, by name, from when on.
    pub terms: Vec<(f64, String)>,
    /// Longest time between an attempt that was lost and the start of the next.
    pub longest_recovery: f64,
}

/// Computes the numbers from the records.
pub fn figures(run: &Run) -> Figures {
    let mut outcomes: Vec<f64> = Vec::new();
    for life in run.evidence.lives.values() {
        let ended = life.written.iter().filter(|written| written.task.outcome.is_some());
        outcomes.extend(ended.map(|written| written.at));
    }
    outcomes.sort_by(f64::total_cmp);
    let within = outcomes.iter().copied().filter(|at| *at >= run.begin && *at <= run.healed);
    let mut marks: Vec<f64> = vec![run.begin];
    marks.extend(within);
    marks.push(run.healed);
    let gaps = marks.windows(2).map(|pair| (pair[0], pair[1]));
    let longest_gap = gaps.max_by(|a, b| (a.1 - a.0).total_cmp(&(b.1 - b.0))).unwrap_or((0.0, 0.0));
    let mut longest_recovery: f64 = 0.0;
    for notes in run.evidence.notes.values() {
        for pair in notes.windows(2) {
            if pair[0].what == "start" && pair[1].what == "start" {
                longest_recovery = longest_recovery.max(pair[1].at - pair[0].at);
            }
        }
    }
    let terms = terms(&run.evidence.log, &run.evidence.layout);
    let terms = terms.into_iter().map(|(_, id, ms)| (run.clock.of_wall(ms), id)).collect();
    Figures { outcomes, longest_gap, terms, longest_recovery }
}

/// Writes `chaos.md`, `chaos.svg` and `history.txt`; gives the violations, and the stories of their tasks.
pub fn write(folder: &Path, run: &Run) -> Vec<String> {
    let figures = figures(run);
    let judged = judge(&run.evidence);
    let mut broken = Vec::new();
    let mut stories = BTreeSet::new();
    for (name, found) in &judged {
        for violation in found.iter().take(MAX_SHOWN) {
            broken.push(format!("[{name}] {}", violation.what));
            stories.extend(violation.task.clone());
        }
        if found.len() > MAX_SHOWN {
            broken.push(format!("[{name}] and {} more", found.len() - MAX_SHOWN));
        }
    }
    let shown: Vec<&TaskId> = stories.iter().take(MOST_STORIES).collect();
    broken
        .extend(shown.iter().map(|id| format!("{id}:\n{}", story(&run.evidence, id, run.clock).join("\n"))));
    let text = markdown(run, &figures, &judged, &broken);
    fs::write(folder.join("chaos.md"), text).expect("the report can be written");
    fs::write(folder.join("chaos.svg"), svg::draw(run)).expect("the picture can be written");
    fs::write(folder.join("history.txt"), deeds(run)).expect("the history can be written");
    broken
}

fn deeds(run: &Run) -> String {
    let mut text = String::new();
    for deed in &run.history.deeds {
        let (from, until) = (deed.from - run.begin, deed.until - run.begin);
        let _ = writeln!(text, "{from:9.2} {until:9.2}  {:<20} {}", deed.kind, deed.text);
    }
    text
}

fn markdown(
    run: &Run,
    figures: &Figures,
    judged: &[(&str, Vec<crate::check::Violation>)],
    broken: &[String],
) -> String {
    let mut text = String::new();
    let verdict = if broken.is_empty() { "everything held" } else { "SOMETHING BROKE" };
    let minutes = run.length.as_secs_f64() / 60.0;
    let _ = writeln!(text, "# Chaos, seed {}: {verdict}\n", run.seed);
    let _ = writeln!(
        text,
        "{minutes} minutes of faults on three ZooKeeper servers, three masters, four workers, three electors and \
         seven users at a time. Again: `scripts/chaos --minutes {minutes} --seed {}`{}.\n",
        run.seed,
        if run.without.iter().all(String::is_empty) {
            String::new()
        } else {
            format!(" `--without {}`", run.without.join(","))
        }
    );
    let network = if run.separate {
        "Every host had a network namespace of its own; a switch in user space cut, lost and delayed packets."
    } else {
        "**Everything ran on loopback: network namespaces are not permitted here. There were no partitions, no \
         losses and no delays.**"
    };
    let _ = writeln!(text, "{network}\n\n![what happened when](chaos.svg)\n");
    checks(&mut text, judged);
    if !broken.is_empty() {
        let _ = writeln!(text, "## What broke\n\n```text\n{}\n```\n", broken.join("\n"));
    }
    write_figures(&mut text, run, figures);
    faults(&mut text, run);
    tasks(&mut text, run);
    text
}

fn checks(text: &mut String, judged: &[(&str, Vec<crate::check::Violation>)]) {
    let _ = writeln!(text, "## Checks\n\n| check | result |\n|---|---|");
    for (name, found) in judged {
        let result =
            if found.is_empty() { "held".to_string() } else { format!("**broken {} times**", found.len()) };
        let _ = writeln!(text, "| {name} | {result} |");
    }
    let _ = writeln!(text);
}

fn write_figures(text: &mut String, run: &Run, figures: &Figures) {
    let during = figures.outcomes.iter().filter(|at| **at >= run.begin && **at <= run.healed).count();
    // Far fewer than a float can count.
    #[allow(clippy::cast_precision_loss)]
    let rate = during as f64 / ((run.healed - run.begin) / 60.0);
    let (from, until) = figures.longest_gap;
    let since = from - run.begin;
    let [forwarded, cut, dropped, delayed] = run.packets;
    let leaders = figures.terms.len();
    let names: BTreeSet<&str> = figures.terms.iter().map(|(_, name)| name.as_str()).collect();
    let _ = writeln!(text, "## Figures\n\n| what | |\n|---|---|");
    let each = by_minute(run, figures).iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let _ = writeln!(text, "| in each minute | {each} |");
    let _ = writeln!(text, "| outcomes during the faults | {during}, {rate:.1} a minute |");
    let _ =
        writeln!(text, "| longest time without an outcome | {:.1} s, from {since:.1} s on |", until - from);
    let _ = writeln!(
        text,
        "| longest time from the start of an attempt that was lost to the start of the next | {:.1} s |",
        figures.longest_recovery
    );
    let _ = writeln!(text, "| terms of leaders | {leaders}, of {} masters |", names.len());
    let _ = writeln!(text, "| from the healing until all was done | {:.1} s |", run.rested - run.healed);
    let _ = writeln!(text, "| packets carried | {forwarded} |");
    let _ = writeln!(text, "| packets cut off, lost, delayed | {cut}, {dropped}, {delayed} |\n");
}

/// Outcomes in each minute from the beginning until all was done.
fn by_minute(run: &Run, figures: &Figures) -> Vec<usize> {
    let minutes =
        std::iter::successors(Some(run.begin), |at| Some(at + 60.0)).take_while(|at| *at < run.rested);
    let within = |from: f64| figures.outcomes.iter().filter(|at| **at >= from && **at < from + 60.0).count();
    minutes.map(within).collect()
}

fn faults(text: &mut String, run: &Run) {
    let mut kinds: BTreeMap<&str, (usize, f64)> = BTreeMap::new();
    for deed in &run.history.deeds {
        let kind = kinds.entry(&deed.kind).or_default();
        *kind = (kind.0 + 1, kind.1 + deed.until - deed.from);
    }
    let done: usize = kinds.values().map(|(count, _)| count).sum();
    let _ = writeln!(text, "## Faults\n\n{} planned, {done} events in all.\n", run.planned);
    let _ = writeln!(text, "| kind | how often | seconds in all |\n|---|---|---|");
    for (kind, (count, secs)) in kinds {
        let _ = writeln!(text, "| {kind} | {count} | {secs:.1} |");
    }
    let _ = writeln!(text);
}

fn tasks(text: &mut String, run: &Run) {
    let evidence = &run.evidence;
    let mut states: BTreeMap<String, usize> = BTreeMap::new();
    let mut attempts: BTreeMap<u32, usize> = BTreeMap::new();
    for life in evidence.lives.values() {
        let Some(last) = life.written.last() else { continue };
        let state = last.task.outcome.as_ref().map_or("pending".to_string(), |outcome| {
            let reason = outcome.reason.map_or(String::new(), |reason| format!(" ({reason:?})"));
            format!("{}{reason}", outcome.state.as_str())
        });
        *states.entry(state).or_default() += 1;
        *attempts.entry(last.task.attempt).or_default() += 1;
    }
    let started: usize = evidence.notes.values().flatten().filter(|note| note.what == "start").count();
    let (all, commands) = (evidence.lives.len(), evidence.records.len());
    let _ = writeln!(
        text,
        "## Tasks\n\n{all} tasks by {commands} commands of users; {started} attempts started.\n"
    );
    let _ = writeln!(text, "| state | tasks |\n|---|---|");
    for (state, count) in states {
        let _ = writeln!(text, "| {state} | {count} |");
    }
    let _ = writeln!(text, "\n| attempts | tasks |\n|---|---|");
    for (attempt, count) in attempts {
        let _ = writeln!(text, "| {attempt} | {count} |");
    }
    let _ = writeln!(text, "\n| commands of users | how often | ended by the nemesis |\n|---|---|---|");
    let deeds = [
        Deed::Single,
        Deed::Detached,
        Deed::Batch,
        Deed::DetachedBatch,
        Deed::Keyed,
        Deed::Wait,
        Deed::Cancel,
        Deed::Retry,
    ];
    for deed in deeds {
        let of = || evidence.records.iter().filter(move |record| record.deed == deed);
        let _ = writeln!(text, "| {deed:?} | {} | {} |", of().count(), of().filter(|r| r.hurt).count());
    }
    let leads = evidence.leads.iter().filter(|lead| lead.what == "start").count();
    let _ = writeln!(text, "\nThe electors' command was started {leads} times.");
}

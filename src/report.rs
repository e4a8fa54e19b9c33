//! The view: turns what client roles report into text or JSON lines, and keeps a progress bar.
//!
//! It owns the format, never the meaning: reports come typed, with exit codes and words decided by the
//! roles. Results go to standard output and everything about them to standard error. Each report is flushed
//! before `show` returns, since the next action may delete the task that the report is about.

mod json;
mod table;
mod text;

use std::io::{self, BufWriter, IsTerminal as _, Stderr, Stdout, Write};
use std::sync::OnceLock;

use indicatif::{ProgressBar, ProgressStyle};

pub use crate::roles::client::ClientReport;
use crate::roles::client::{ListColumn, Progress};

/// How reports are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Format {
    /// One JSON object a line.
    pub json: bool,
    /// With a progress bar on standard error, drawn by [`indicatif`] whatever `err` is.
    pub progress: bool,
}

/// How a list is printed as text.
#[derive(Debug, Default)]
pub struct ListForm {
    /// The columns; the default ones if there are none.
    columns: Vec<ListColumn>,
    /// The most characters of a line, if there is a limit.
    width: Option<usize>,
    /// The heading was printed.
    headed: bool,
}

/// Shows reports on two streams.
#[derive(Debug)]
pub struct ReportPrinter<O: Write, E: Write> {
    /// Buffered, since a report may have a thousand lines; a report is flushed as a whole.
    out: BufWriter<O>,
    err: BufWriter<E>,
    json: bool,
    list: ListForm,
    /// The terminal is cleared before each report.
    clears: bool,
    bar: Option<ProgressBar>,
}

/// The process's progress bar, for those who write to the same terminal.
static BAR: OnceLock<ProgressBar> = OnceLock::new();

/// Standard error, above the progress bar if there is one: where logs go.
#[derive(Debug)]
pub struct StderrAboveBar;

impl Write for StderrAboveBar {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match BAR.get() {
            Some(bar) => bar.suspend(|| io::stderr().write(bytes)),
            None => io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl ReportPrinter<Stdout, Stderr> {
    /// A view on the process's own streams; a bar only where there is a terminal to draw it on.
    pub fn of_process(json: bool, progress: bool) -> ReportPrinter<Stdout, Stderr> {
        let (out, err) = (io::stdout(), io::stderr());
        let progress = progress && !json && err.is_terminal();
        let view = ReportPrinter::new(out, err, Format { json, progress });
        if let Some(bar) = &view.bar {
            BAR.get_or_init(|| bar.clone());
        }
        view
    }

    /// The same for reports that replace each other: a terminal is cleared before each one.
    pub fn redrawing(mut self) -> ReportPrinter<Stdout, Stderr> {
        self.clears = !self.json && io::stdout().is_terminal();
        self
    }

    /// The same with these columns of a list. On a terminal its lines are cut to the terminal's width.
    pub fn with_columns(mut self, columns: Vec<ListColumn>) -> ReportPrinter<Stdout, Stderr> {
        let width = io::stdout().is_terminal().then(|| usize::from(console::Term::stdout().size().1));
        self.list = ListForm { columns, width, ..self.list };
        self
    }
}

impl<O: Write, E: Write> ReportPrinter<O, E> {
    /// A view on these streams.
    pub fn new(out: O, err: E, format: Format) -> ReportPrinter<O, E> {
        let bar = format.progress.then(|| ProgressBar::no_length().with_style(style()));
        let (out, err) = (BufWriter::new(out), BufWriter::new(err));
        ReportPrinter { out, err, json: format.json, list: ListForm::default(), clears: false, bar }
    }

    /// Shows a report.
    ///
    /// # Errors
    /// If it could not be written, or not be flushed; it must then count as not shown.
    pub fn show(&mut self, report: ClientReport) -> io::Result<()> {
        match report {
            ClientReport::Progress(progress) => {
                self.move_bar(&progress);
                return Ok(());
            }
            ClientReport::Summary(_) | ClientReport::Detached { .. } => {
                if let Some(bar) = &self.bar {
                    bar.finish_and_clear();
                }
            }
            ClientReport::Submitted { detached: false, .. } => return Ok(()),
            _ => {}
        }
        // Both streams may be the terminal that the bar is drawn on.
        let written = match self.bar.clone() {
            Some(bar) => bar.suspend(|| self.write(&report)),
            None => self.write(&report),
        };
        written.map_err(|error| match report.what_stays() {
            Some(words) => io::Error::new(error.kind(), format!("{error}; {words}")),
            None => error,
        })
    }

    fn write(&mut self, report: &ClientReport) -> io::Result<()> {
        if self.clears {
            console::Term::stdout().clear_screen()?;
        }
        if self.json {
            json::write(report, &mut self.out, &mut self.err)?;
        } else {
            text::write(report, &mut self.out, &mut self.err, &mut self.list)?;
        }
        self.out.flush()?;
        self.err.flush()
    }

    fn move_bar(&self, progress: &Progress) {
        let Some(bar) = &self.bar else { return };
        if progress.total > 0 {
            bar.set_length(progress.total);
        }
        bar.set_position(progress.done + progress.failed);
        bar.set_message(match progress.failed {
            0 => format!("{} submitted", progress.submitted),
            failed => format!("{} submitted, {failed} failed", progress.submitted),
        });
    }
}

fn style() -> ProgressStyle {
    // The template is a constant, and the default does where it is found wrong.
    ProgressStyle::with_template("{wide_bar} {human_pos}/{human_len} ended, {msg} [{elapsed_precise}]")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests;

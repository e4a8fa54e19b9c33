//! The service manager (systemd): what a daemon reports to it, and what it asks for. For other processes, and without
//! a service manager, nothing happens.
//!
//! It owns the times at which the watchdog is fed and a stop is extended. It decides nothing about the role.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use sd_notify::NotifyState;

use crate::exit;
use crate::machine::Instant;

/// How long the service manager is asked to wait, again and again while the process ends. Longer than any turn takes;
/// short, because a process that hangs in its end is killed only after it.
const EXTENSION: Duration = Duration::from_secs(15);

/// The extension is renewed this often, so that a late renewal still comes before its end.
const EXTEND_EVERY: Duration = Duration::from_secs(5);

/// A process that fails sooner than this after its start most probably fails again when it is restarted.
const SOON: Duration = Duration::from_secs(60);

/// Before the first restart of such a process; doubled for each that follows.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The longest pause: shorter than the 90 s after which systemd gives up a start.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Notes in `$RUNTIME_DIRECTORY`, which outlives restarts, how many starts failed in a row.
const FAILED_STARTS: &str = "failed-starts";

/// What this process reports to the service manager.
pub struct Service {
    daemon: bool,
    watchdog: Option<Duration>,
    fed: Instant,
    /// Since the stop was asked for: when it was last extended.
    extended: Option<Instant>,
}

impl Service {
    /// Of a daemon, or of a process that reports nothing.
    pub fn new(daemon: bool) -> Service {
        let watchdog = if daemon { sd_notify::watchdog_enabled() } else { None };
        Service { daemon, watchdog, fed: Instant::default(), extended: None }
    }

    /// The process runs. That it waits for an ensemble must not keep a machine's boot waiting, too.
    pub fn ready(&self, status: &str) {
        self.notify(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// One line about how the process is.
    pub fn status(&self, text: &str) {
        // A line's end would begin another variable.
        self.notify(&[NotifyState::Status(&text.replace(['\n', '\r'], " "))]);
    }

    /// A stop was asked for. From now on the service manager is asked for more time.
    pub fn stopping(&mut self, now: Instant) {
        if self.extended.is_none() {
            self.extended = Some(now);
            self.extend(Duration::ZERO);
        }
    }

    /// The loop has ended; what follows takes at most so long.
    pub fn ending(&self, at_most: Duration) {
        self.notify(&[NotifyState::Stopping]);
        self.extend(at_most);
    }

    /// Does what is due: called from within the main loop, so that a loop that hangs is noticed.
    pub fn tick(&mut self, now: Instant) {
        if self.watchdog.is_some_and(|limit| self.fed + limit / 3 <= now) {
            self.fed = now;
            self.notify(&[NotifyState::Watchdog]);
        }
        if self.extended.is_some_and(|at| at + EXTEND_EVERY <= now) {
            self.extended = Some(now);
            self.extend(Duration::ZERO);
        }
    }

    /// When `tick` has something to do.
    pub fn next_tick(&self) -> Option<Instant> {
        let feed = self.watchdog.map(|limit| self.fed + limit / 3);
        let extend = self.extended.map(|at| at + EXTEND_EVERY);
        feed.into_iter().chain(extend).min()
    }

    fn extend(&self, more: Duration) {
        let micros = (EXTENSION + more).as_micros();
        self.notify(&[NotifyState::ExtendTimeoutUsec(u32::try_from(micros).unwrap_or(u32::MAX))]);
    }

    fn notify(&self, states: &[NotifyState<'_>]) {
        if self.daemon
            && let Err(error) = sd_notify::notify(states)
        {
            log::debug!("cannot notify the service manager: {error}");
        }
    }
}

/// Whether standard error is the journal, which has times of its own and takes `<N>` before a line for its priority.
pub fn logs_to_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    rustix::fs::fstat(rustix::stdio::stderr()).is_ok_and(|stat| is_stream(&stream, stat.st_dev, stat.st_ino))
}

/// Whether `DEVICE:INODE` names that file. A process that inherited the variable may write elsewhere.
fn is_stream(text: &str, device: u64, inode: u64) -> bool {
    let numbers = text.split_once(':').map(|(device, inode)| (device.parse(), inode.parse()));
    matches!(numbers, Some((Ok(d), Ok(i))) if (d, i) == (device, inode))
}

/// A record as lines for the journal, each with its priority.
pub fn journal_lines(level: log::Level, text: &str) -> String {
    // As in syslog.
    let priority = match level {
        log::Level::Error => 3,
        log::Level::Warn => 4,
        log::Level::Info => 6,
        log::Level::Debug | log::Level::Trace => 7,
    };
    text.lines().map(|line| format!("<{priority}>{line}\n")).collect()
}

/// Waits before a daemon that failed soon after its start ends, longer each time: systemd restarts it after a second,
/// for ever, and before version 254 has no growing pause of its own. Without a service manager nobody waits.
pub fn back_off(code: i32, lived: Duration, signals: &Receiver<i32>) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let note = note();
    let failed =
        note.as_ref().and_then(|note| fs::read_to_string(note).ok()?.trim().parse().ok()).unwrap_or(0);
    let Some(pause) = pause_before_restart(code, lived, failed) else {
        if let Some(note) = note {
            // Most times there is none.
            let _ = fs::remove_file(note);
        }
        return;
    };
    if let Some(note) = note
        && let Err(error) = fs::write(&note, failed.saturating_add(1).to_string())
    {
        log::debug!("{}: {error}; the pauses before restarts do not grow", note.display());
    }
    wait(code, pause, signals);
}

/// None if the process may be restarted at once, or is not restarted at all.
fn pause_before_restart(code: i32, lived: Duration, failed: u32) -> Option<Duration> {
    let is_restarted = !matches!(code, exit::OK | exit::USAGE | exit::CONFIG) && code <= exit::SIGNAL_BASE;
    (is_restarted && lived < SOON)
        .then(|| FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(failed)).min(LONGEST_PAUSE))
}

fn wait(code: i32, pause: Duration, signals: &Receiver<i32>) {
    let mut service = Service::new(true);
    log::info!(target: "zkmw", "ends with code {code} in {} s, so that it is not restarted too often", pause.as_secs());
    service.status(&format!("failed with code {code}; restarts in {} s; the log says why", pause.as_secs()));
    let until = crate::clock::now() + pause;
    loop {
        let now = crate::clock::now();
        service.tick(now);
        if until <= now {
            return;
        }
        let next = service.next_tick().map_or(until, |at| at.min(until));
        match signals.recv_timeout(next.since(now)) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(_) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn note() -> Option<PathBuf> {
    let dirs = std::env::var("RUNTIME_DIRECTORY").ok()?;
    // systemd gives several directories with colons between them.
    let dir = dirs.split(':').next().filter(|dir| dir.starts_with('/'))?;
    Some(PathBuf::from(dir).join(FAILED_STARTS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_stream_itself_is_the_journal() {
        assert!(is_stream("8:4711", 8, 4711));
        for other in ["8:4712", "9:4711", "8", "", "8:", "8:4711:1", "x:4711"] {
            assert!(!is_stream(other, 8, 4711), "{other}");
        }
    }

    #[test]
    fn every_line_for_the_journal_has_its_priority() {
        assert_eq!(journal_lines(log::Level::Warn, "one\ntwo\n"), "<4>one\n<4>two\n");
        let first = |level| journal_lines(level, "x").chars().nth(1);
        let priorities = log::Level::iter().map(first).collect::<Option<String>>();
        assert_eq!(priorities.as_deref(), Some("34677"));
    }

    #[test]
    fn the_pause_before_a_restart_grows_to_a_minute() {
        let delays: Vec<_> = [0, 1, 2, 5, 6, 40]
            .into_iter()
            .map(|failed| pause_before_restart(exit::NOT_PERMITTED, Duration::ZERO, failed))
            .collect();
        let seconds = [1, 2, 4, 32, 60, 60].map(|s| Some(Duration::from_secs(s)));
        assert_eq!(delays, seconds);
    }

    #[test]
    fn what_is_not_restarted_or_worked_for_a_minute_ends_at_once() {
        for code in [exit::OK, exit::USAGE, exit::CONFIG, exit::SIGNAL_BASE + 15] {
            assert_eq!(pause_before_restart(code, Duration::ZERO, 3), None, "{code}");
        }
        assert_eq!(pause_before_restart(exit::NOT_PERMITTED, SOON, 3), None);
    }

    #[test]
    fn a_stop_is_extended_again_and_again() {
        let mut service = Service::new(false);
        let start = Instant::default() + Duration::from_secs(100);
        assert_eq!(service.next_tick(), None);
        service.stopping(start);
        assert_eq!(service.next_tick(), Some(start + EXTEND_EVERY));
        service.stopping(start + Duration::from_secs(1));
        service.tick(start + EXTEND_EVERY);
        assert_eq!(service.next_tick(), Some(start + EXTEND_EVERY * 2));
        assert!(EXTEND_EVERY < EXTENSION);
    }
}

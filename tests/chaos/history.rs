//! The records of a run, and how they are read back: the nemesis' actions, the notes of tasks and electors, the
//! servers' transaction logs. Judges nothing: that is for `check`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rustix::time::{ClockId, clock_gettime};
use zkmw::contract::task::Task;
use zkmw::contract::{Layout, TaskId};

use crate::harness::history::read_folder;
use crate::harness::{Ensemble, LIMIT, Op, Tree, Txn, eventually, wall_clock_ms};

/// Seconds since the run began, from the machine's three clocks.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    boot_secs: f64,
    wall_ms: i64,
}

impl Clock {
    pub fn start() -> Clock {
        Clock { boot_secs: boot_secs(), wall_ms: wall_clock_ms() }
    }

    pub fn now(&self) -> f64 {
        boot_secs() - self.boot_secs
    }

    /// From a time in `/proc/uptime`.
    pub fn of_uptime(&self, secs: f64) -> f64 {
        secs - self.boot_secs
    }

    /// From a time that a server wrote.
    pub fn of_wall(&self, ms: i64) -> f64 {
        // Milliseconds of a run are few enough for any float.
        #[allow(clippy::cast_precision_loss)]
        let since = (ms - self.wall_ms) as f64;
        since / 1_000.0
    }
}

fn boot_secs() -> f64 {
    let now = clock_gettime(ClockId::Boottime);
    std::time::Duration::try_from(now).expect("a time after boot").as_secs_f64()
}

/// Something that was done to a host, or happened on it.
#[derive(Clone, Debug, PartialEq)]
pub struct Deed {
    pub from: f64,
    pub until: f64,
    /// The rows of the timeline that show it.
    pub hosts: Vec<usize>,
    pub kind: String,
    pub text: String,
}

/// All deeds of a run.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub deeds: Vec<Deed>,
}

impl History {
    /// Something without a duration.
    pub fn moment(&mut self, at: f64, host: usize, kind: &str, text: &str) {
        self.deeds.push(Deed {
            from: at,
            until: at,
            hosts: vec![host],
            kind: kind.to_string(),
            text: text.to_string(),
        });
    }
}

/// A line that a task wrote.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    /// `start`, `end` or `overlap`.
    pub what: String,
    pub attempt: u32,
    pub at: f64,
    pub worker: String,
    pub token: i64,
    pub code: Option<i32>,
}

/// A line that an elector's command wrote.
#[derive(Clone, Debug, PartialEq)]
pub struct Lead {
    pub what: String,
    pub token: i64,
    pub at: f64,
    pub name: String,
}

fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

/// The notes of all tasks, by the tasks' names.
pub fn notes(folder: &Path, clock: Clock) -> BTreeMap<String, Vec<Note>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("the tasks' folder").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".lock") {
            continue;
        }
        let text = fs::read_to_string(entry.path()).expect("notes are text");
        let note = |line: &str| {
            let [what, attempt, at, _pid, worker, token, code] = words(line)[..] else { return None };
            Some(Note {
                what: what.to_string(),
                attempt: attempt.parse().ok()?,
                at: clock.of_uptime(at.parse().ok()?),
                worker: worker.to_string(),
                token: token.parse().ok()?,
                code: code.parse().ok(),
            })
        };
        let read: Vec<Note> = text
            .lines()
            .map(|line| note(line).unwrap_or_else(|| panic!("{name}: no note: {line}")))
            .collect();
        all.insert(name, read);
    }
    all
}

/// The notes of the electors' commands, in order.
pub fn leads(file: &Path, clock: Clock) -> Vec<Lead> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let lead = |line: &str| {
        let [what, token, at, _pid, name] = words(line)[..] else { return None };
        let (token, at) = (token.parse().ok()?, clock.of_uptime(at.parse().ok()?));
        Some(Lead { what: what.to_string(), token, at, name: name.to_string() })
    };
    text.lines().map(|line| lead(line).unwrap_or_else(|| panic!("no note: {line}"))).collect()
}

/// The servers' logs, put together; and whether any write is missing in the middle.
pub fn log(ensemble: &Ensemble, tree: &Tree, servers: u32) -> (Vec<Txn>, bool) {
    let now = tree.sync();
    let mut best: Option<Vec<Txn>> = None;
    let mut all: BTreeMap<i64, Txn> = BTreeMap::new();
    for server in 1..=servers {
        let folder = ensemble.dir.join(server.to_string()).join("data/version-2");
        let read = eventually(LIMIT, "a server's log has our own write", || {
            let read = read_folder(&folder);
            read.last().is_some_and(|last| last.zxid >= now).then_some(read)
        });
        if best.is_none() && !has_gap(&read) {
            best = Some(read.clone());
        }
        all.extend(read.into_iter().map(|txn| (txn.zxid, txn)));
    }
    let put_together: Vec<Txn> = all.into_values().collect();
    let gap = best.is_none() && has_gap(&put_together);
    (best.unwrap_or(put_together), gap)
}

/// A server that got a snapshot instead of the writes that it had missed has no record of those.
pub fn has_gap(log: &[Txn]) -> bool {
    log.windows(2).any(|pair| {
        let (before, after) = (pair[0].zxid, pair[1].zxid);
        let same_epoch = before >> 32 == after >> 32;
        if same_epoch { after != before + 1 } else { after & 0xffff_ffff != 1 }
    })
}

/// A task as it was written, once.
#[derive(Clone, Debug)]
pub struct Written {
    pub zxid: i64,
    pub at: f64,
    pub task: Task,
}

/// All that the log has of one task.
#[derive(Clone, Debug, Default)]
pub struct Life {
    /// How often the znode was created.
    pub created: u32,
    /// The first is the creation.
    pub written: Vec<Written>,
    pub deleted: Option<f64>,
    /// Writes that could not be decoded.
    pub unreadable: u32,
}

/// The lives of all tasks, by id.
pub fn lives(log: &[Txn], layout: &Layout, clock: Clock) -> BTreeMap<TaskId, Life> {
    let mut all: BTreeMap<TaskId, Life> = BTreeMap::new();
    for txn in log {
        let Some(id) = txn.path().and_then(|path| layout.task_at(path)) else { continue };
        let life = all.entry(id).or_default();
        let at = clock.of_wall(txn.time_ms);
        match &txn.op {
            Op::Create { data, .. } | Op::Set { data, .. } => {
                if matches!(txn.op, Op::Create { .. }) {
                    life.created += 1;
                }
                match Task::decode(data) {
                    Ok(task) => life.written.push(Written { zxid: txn.zxid, at, task }),
                    Err(_) => life.unreadable += 1,
                }
            }
            Op::Delete { .. } => life.deleted = Some(at),
            Op::SessionBegins | Op::SessionEnds | Op::Refused { .. } | Op::Other { .. } => {}
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(zxid: i64) -> Txn {
        Txn { zxid, session: 1, time_ms: 0, op: Op::SessionBegins }
    }

    #[test]
    fn a_gap_in_the_log_is_detected() {
        let epoch = 1 << 32;
        assert!(!has_gap(&[at(epoch + 1), at(epoch + 2), at(2 * epoch + 1)]));
        assert!(has_gap(&[at(epoch + 1), at(epoch + 3)]));
        assert!(has_gap(&[at(epoch + 1), at(2 * epoch + 2)]));
    }
}

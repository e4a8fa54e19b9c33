//! How much of the machine each run may have: limits of its control group. Without the group's controllers there are
//! none, and an error says why: limits of processes (`setrlimit`) count for each user or each process,
//! and so bound no run.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::machine::Ended;

/// Where the worker, its keeper and its slots go where its own group is to have controllers for its children: the
/// kernel lets such a group have no processes itself. By this name it is known again.
pub(super) const LEAF: &str = "zkmw-worker";
/// The time, in microseconds, in which a run may use its share of the processors; the kernel's own default.
const CPU_PERIOD_US: u64 = 100_000;
/// What [`RunLimits::cpu_millis`] counts in.
const MILLIS: u64 = 1_000;
/// Most processes named in a message.
const MOST_NAMED: usize = 5;

/// How much a run may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunLimits {
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
    /// Thousandths of a processor's time.
    pub cpu_millis: Option<u32>,
    /// Processes and threads.
    pub processes: Option<u64>,
}

/// Why this machine, or this process, cannot limit runs.
#[derive(Debug)]
pub struct Unavailable(pub(super) String);

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unavailable {}

/// What a group has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Hits {
    /// How often it reached its limit of memory, and nothing could be reclaimed.
    pub(super) out_of_memory: u64,
    /// How many of it were killed for want of memory.
    pub(super) killed: u64,
    /// How often it was refused a process.
    pub(super) refused: u64,
}

/// A file of a group, and what is written to it.
#[derive(Debug, PartialEq, Eq)]
struct Knob {
    file: &'static str,
    text: String,
    /// Kernels without it have nothing that it could limit.
    optional: bool,
}

impl RunLimits {
    /// Nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == RunLimits::default()
    }

    /// The controllers that they need, each with the setting that asks for it.
    fn controllers(&self) -> Vec<(&'static str, &'static str)> {
        let all = [
            (self.memory_bytes.is_some(), ("memory", "task-memory")),
            (self.cpu_millis.is_some(), ("cpu", "task-cpus")),
            (self.processes.is_some(), ("pids", "task-pids")),
        ];
        all.into_iter().filter(|(asked, _)| *asked).map(|(_, controller)| controller).collect()
    }

    /// The settings that ask for them.
    pub(super) fn settings(&self) -> String {
        let settings: Vec<_> = self.controllers().into_iter().map(|(_, setting)| setting).collect();
        settings.join(", ")
    }

    fn knobs(&self) -> Vec<Knob> {
        let knob = |file, text: String| Knob { file, text, optional: false };
        let mut knobs = Vec::new();
        if let Some(bytes) = self.memory_bytes {
            knobs.push(knob("memory.max", bytes.to_string()));
            // What does not fit is not moved to a disk.
            knobs.push(Knob { optional: true, ..knob("memory.swap.max", "0".to_owned()) });
            // A run of which a part was killed is of no use.
            knobs.push(knob("memory.oom.group", "1".to_owned()));
        }
        if let Some(millis) = self.cpu_millis {
            let quota = u64::from(millis) * CPU_PERIOD_US / MILLIS;
            knobs.push(knob("cpu.max", format!("{quota} {CPU_PERIOD_US}")));
        }
        if let Some(processes) = self.processes {
            knobs.push(knob("pids.max", processes.to_string()));
        }
        knobs
    }

    /// RunLimits what this group has.
    pub(super) fn apply(&self, group: &Path) -> io::Result<()> {
        for Knob { file, text, optional } in self.knobs() {
            let path = group.join(file);
            if optional && !path.exists() {
                continue;
            }
            let named =
                |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
            write(&path, &text).map_err(named)?;
        }
        Ok(())
    }

    /// Gives the groups in `base`, which is in `home`, the controllers that they need. This process goes to a leaf of
    /// `home` if that prevents it.
    pub(super) fn enable(&self, home: &Path, base: &Path) -> Result<(), Unavailable> {
        let controllers = self.controllers();
        let available = fs::read_to_string(home.join("cgroup.controllers")).unwrap_or_default();
        let is_there = |name: &str| available.split_whitespace().any(|found| found == name);
        if let Some((controller, setting)) = controllers.iter().find(|(name, _)| !is_there(name)) {
            return Err(Unavailable(explain_missing(controller, setting, home, &available)));
        }
        let wanted: Vec<String> = controllers.iter().map(|(name, _)| format!("+{name}")).collect();
        let wanted = wanted.join(" ");
        let control = home.join("cgroup.subtree_control");
        let enabled = match write(&control, &wanted) {
            Err(error) if is_busy(&error) => {
                enter_leaf(home).map_err(|error| self.refused(&home.join(LEAF), &error))?;
                write(&control, &wanted)
            }
            other => other,
        };
        enabled.map_err(|error| match is_busy(&error) {
            true => Unavailable(explain_others(&self.settings(), home)),
            false => self.refused(&control, &error),
        })?;
        let control = base.join("cgroup.subtree_control");
        write(&control, &wanted).map_err(|error| self.refused(&control, &error))
    }

    fn refused(&self, what: &Path, error: &io::Error) -> Unavailable {
        Unavailable(format!(
            "{}: this process may not change {} ({error}); run the worker as root, or as a service with Delegate=yes",
            self.settings(),
            what.display()
        ))
    }

    /// What a group with these limits has counted.
    pub(super) fn hits(&self, group: &Path) -> Hits {
        let count = |asked: bool, file: &str, key: &str| {
            let text = asked.then(|| fs::read_to_string(group.join(file)).unwrap_or_default());
            text.as_deref().and_then(|text| value(text, key)).unwrap_or(0)
        };
        let memory = self.memory_bytes.is_some();
        Hits {
            out_of_memory: count(memory, "memory.events", "oom"),
            killed: count(memory, "memory.events", "oom_kill"),
            refused: count(self.processes.is_some(), "pids.events", "max"),
        }
    }

    /// Whether what a run has left in a group, where nothing lives, counts against the next: killed processes, and
    /// files in memory. (The kernel's count of these may lag by 256 KiB for each processor.)
    pub(super) fn are_strained(&self, group: &Path) -> bool {
        if self.memory_bytes.is_none() {
            return false;
        }
        let files = fs::read_to_string(group.join("memory.stat"));
        let files = files.ok().as_deref().and_then(|text| value(text, "shmem"));
        files != Some(0) || self.hits(group).killed > 0
    }

    /// The detail of a run that ended so, in a cgroup that has counted this.
    pub(super) fn explain(&self, ended: Ended, hits: Hits) -> Option<String> {
        if ended == Ended::Exit(0) {
            return None;
        }
        match (hits, self.memory_bytes, self.processes) {
            (Hits { killed: 1.., out_of_memory: 1.., .. }, Some(bytes), _) => Some(format!(
                "killed by the kernel, for it needed more memory than a task may have here: {} (--task-memory)",
                in_words(bytes)
            )),
            (Hits { killed: 1.., .. }, Some(_), _) => Some(
                "killed by the kernel for want of memory, with less than a task may have here".to_owned(),
            ),
            (Hits { refused: 1.., .. }, _, Some(processes)) => Some(format!(
                "it was refused another process or thread: a task may have {processes} here (--task-pids)"
            )),
            _ => None,
        }
    }
}

/// Writes without making anything.
fn write(path: &Path, text: &str) -> io::Result<()> {
    io::Write::write_all(&mut fs::OpenOptions::new().write(true).open(path)?, text.as_bytes())
}

fn is_busy(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::BUSY.raw_os_error())
}

/// Moves this process, and with it its future children.
fn enter_leaf(home: &Path) -> io::Result<()> {
    let leaf = home.join(LEAF);
    match fs::create_dir(&leaf) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        Ok(()) | Err(_) => write(&leaf.join("cgroup.procs"), "0"),
    }
}

fn explain_missing(controller: &str, setting: &str, home: &Path, available: &str) -> String {
    let has = match available.trim() {
        "" => "none".to_owned(),
        some => some.to_owned(),
    };
    format!(
        "{setting}: the control group {} has no controller {controller} of version 2 (it has: {has}); run the worker \
         as a service with Delegate=yes, on a machine that has its controllers in version 2 \
         (systemd.unified_cgroup_hierarchy=1), or leave the setting out",
        home.display()
    )
}

fn explain_others(settings: &str, home: &Path) -> String {
    let text = fs::read_to_string(home.join("cgroup.procs")).unwrap_or_default();
    let others: Vec<&str> = text.lines().take(MOST_NAMED).collect();
    format!(
        "{settings}: the worker's control group {} has other processes in it ({}), so it cannot be divided; give the \
         worker one of its own: a service with Delegate=yes, or systemd-run --scope -p Delegate=yes",
        home.display(),
        others.join(", ")
    )
}

/// The number after this word, in a text with a word and a number a line.
fn value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?.trim().parse().ok()
}

/// Bytes in the largest unit in which they are whole.
fn in_words(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let whole = units.into_iter().find(|(shift, _)| bytes >= 1 << shift && bytes.trailing_zeros() >= *shift);
    whole.map_or(format!("{bytes}B"), |(shift, unit)| format!("{}{unit}", bytes >> shift))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: RunLimits =
        RunLimits { memory_bytes: Some(64 << 20), cpu_millis: Some(1_500), processes: Some(32) };

    /// A folder that has the files of a group with these texts.
    fn group(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, text)| fs::write(dir.path().join(name), text).unwrap());
        dir
    }

    #[test]
    fn each_limit_is_written_to_its_file() {
        let names = ["memory.max", "memory.oom.group", "cpu.max", "pids.max"];
        let dir = group(&names.map(|name| (name, "")));
        ALL.apply(dir.path()).unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(names.map(read), ["67108864", "1", "150000 100000", "32"]);
        assert!(!dir.path().join("memory.swap.max").exists(), "a kernel without swap has no such file");
        fs::write(dir.path().join("memory.swap.max"), "").unwrap();
        ALL.apply(dir.path()).unwrap();
        assert_eq!(read("memory.swap.max"), "0");
        let why = ALL.apply(group(&[]).path()).unwrap_err().to_string();
        assert!(why.contains("memory.max"), "what cannot be limited is named: {why}");
        RunLimits::default().apply(Path::new("/nonexistent")).unwrap();
    }

    #[test]
    fn controllers_are_enabled_or_the_missing_one_is_named() {
        let (home, base) = (group(&[("cgroup.controllers", "cpu memory pids\n")]), group(&[]));
        let why = ALL.enable(home.path(), base.path()).unwrap_err().to_string();
        assert!(why.starts_with("task-memory, task-cpus, task-pids: this process may not change"), "{why}");
        for dir in [&home, &base] {
            fs::write(dir.path().join("cgroup.subtree_control"), "").unwrap();
        }
        ALL.enable(home.path(), base.path()).unwrap();
        for dir in [&home, &base] {
            let enabled = fs::read_to_string(dir.path().join("cgroup.subtree_control")).unwrap();
            assert_eq!(enabled, "+memory +cpu +pids");
        }
        fs::write(home.path().join("cgroup.controllers"), "hugetlb cpu\n").unwrap();
        let why = ALL.enable(home.path(), base.path()).unwrap_err().to_string();
        assert!(why.starts_with("task-memory: ") && why.contains("it has: hugetlb cpu"), "{why}");
        let cpu = RunLimits { cpu_millis: Some(500), ..RunLimits::default() };
        cpu.enable(home.path(), base.path()).unwrap();
    }

    #[test]
    fn what_a_limit_has_done_to_a_run_is_said() {
        let says = |ended, events: &str, pids: &str| {
            let dir = group(&[("memory.events", events), ("pids.events", pids)]);
            ALL.explain(ended, ALL.hits(dir.path()))
        };
        let killed = Ended::Signal(9);
        let its_own = says(killed, "low 0\noom 1\noom_kill 3\noom_group_kill 1\n", "max 0\n").unwrap();
        assert!(its_own.ends_with("than a task may have here: 64MiB (--task-memory)"), "{its_own}");
        let others = says(killed, "oom 0\noom_kill 1\n", "max 0\n").unwrap();
        assert!(others.contains("want of memory"), "{others}");
        let refused = says(Ended::Exit(2), "oom 0\noom_kill 0\n", "max 7\n").unwrap();
        assert!(refused.ends_with("a task may have 32 here (--task-pids)"), "{refused}");
        assert_eq!(says(Ended::Exit(0), "oom 1\noom_kill 1\n", "max 7\n"), None, "it went well all the same");
        assert_eq!(says(killed, "oom 0\noom_kill 0\n", "max 0\n"), None);
        assert_eq!(says(killed, "", ""), None);
    }

    #[test]
    fn what_is_left_in_memory_counts_against_the_next_run() {
        let strained = |stat: &str, events: &str| {
            let dir = group(&[("memory.stat", stat), ("memory.events", events)]);
            [ALL, RunLimits { memory_bytes: None, ..ALL }].map(|limits| limits.are_strained(dir.path()))
        };
        assert_eq!(strained("anon 9\nshmem 0\nshmem_thp 5\n", "oom_kill 0\n"), [false, false]);
        assert_eq!(strained("anon 0\nshmem 4096\n", "oom_kill 0\n"), [true, false]);
        assert_eq!(strained("shmem 0\n", "oom_kill 1\n"), [true, false]);
        assert_eq!(strained("", ""), [true, false], "what is not known");
    }

    #[test]
    fn sizes_are_said_in_whole_units() {
        assert_eq!([1, 1 << 10, 3 << 19, 5 << 30].map(in_words), ["1B", "1KiB", "1536KiB", "5GiB"]);
    }
}

//! The leader's summary, so that asking how things are costs the ensemble one read.

use serde::{Deserialize, Serialize};

use super::{Extra, Labels, MAX_DATA_BYTES, Malformed, VERSION, is_default, version};

/// Most workers that are listed one by one; of the others only the number is given.
pub const MAX_WORKERS_LISTED: usize = 500;

/// Most ends of workers that the leader remembers.
pub const MAX_ENDED_WORKERS: usize = 20;

/// Who leads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeaderStatus {
    /// The master's id.
    pub id: String,
    /// The machine it runs on.
    pub host: String,
    /// Its process there.
    pub pid: u32,
    /// The czxid of its contender.
    pub epoch: i64,
}

/// One worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct WorkerRow {
    pub id: String,
    pub host: String,
    pub pid: u32,
    pub slots: u32,
    /// Tasks that have slots of it.
    #[serde(default)]
    pub running: u32,
    /// Tasks that wait there for a slot.
    pub assigned: u32,
    #[serde(default)]
    pub draining: bool,
    /// Tasks that it can run at a time for now, if fewer than `slots`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usable: Option<u32>,
    /// Why it could not start a task, until it can again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unhealthy: Option<String>,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

/// The end of a worker's incarnation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedWorker {
    /// The worker's id.
    pub id: String,
    /// When the leader saw it, in ms since 1970 by the ensemble's clock.
    pub at_ms: i64,
    /// It had announced its end, and gave its tasks back. Otherwise its session ended, or somebody deleted its
    /// registration.
    #[serde(default, skip_serializing_if = "is_default")]
    pub drained: bool,
}

/// How many tasks are in which state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Counts {
    /// Waiting for a worker (those that wait for their time included).
    pub pending: u64,
    /// With a worker, and with slots of it.
    #[serde(default)]
    pub running: u64,
    /// With a worker, and waiting there for a slot.
    pub assigned: u64,
    /// Ended, and not collected yet.
    pub done: u64,
    pub failed: u64,
    pub cancelled: u64,
    pub expired: u64,
    /// Not readable as tasks, and left alone.
    pub malformed: u64,
    /// Quarantined because their outcome can't be written.
    #[serde(rename = "aside", default)]
    pub quarantined: u64,
}

/// The load besides the number of tasks, and the limits: a submitter checks them before it adds tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    /// Bytes of data of all existing tasks, with an outcome or without.
    pub bytes: u64,
    /// The most tasks that may exist without an outcome.
    pub max_pending: u64,
    /// The most bytes of data that all tasks may have.
    pub max_pending_bytes: u64,
}

/// The leader's summary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    #[serde(default = "version")]
    v: u32,
    /// Who wrote it.
    pub leader: LeaderStatus,
    /// Registered workers.
    pub workers: u32,
    /// Their slots.
    pub slots: u32,
    /// The first of them by name, at most [`MAX_WORKERS_LISTED`].
    #[serde(default)]
    pub worker_list: Vec<WorkerRow>,
    /// Tasks.
    pub tasks: Counts,
    /// What is admitted; leaders of before there were limits don't say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admission: Option<Admission>,
    /// The last workers that ended in this leader's term, the latest first; at most [`MAX_ENDED_WORKERS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ended_workers: Vec<EndedWorker>,
    /// Set while the leader is still reading the tasks in the ensemble.
    #[serde(default)]
    pub loading: bool,
    #[serde(flatten)]
    extra: Extra,
}

impl Status {
    /// A summary, so far without what is admitted.
    pub fn new(leader: LeaderStatus, worker_list: Vec<WorkerRow>, tasks: Counts, loading: bool) -> Status {
        let slots = worker_list.iter().map(|worker| worker.slots).sum();
        let workers = u32::try_from(worker_list.len()).unwrap_or(u32::MAX);
        let mut worker_list = worker_list;
        worker_list.truncate(MAX_WORKERS_LISTED);
        let extra = Extra::new();
        Status {
            v: VERSION,
            leader,
            workers,
            slots,
            worker_list,
            tasks,
            admission: None,
            ended_workers: Vec::new(),
            loading,
            extra,
        }
    }

    /// Tasks without an outcome. Quarantined tasks do not count: an operator has to handle them.
    pub fn pending(&self) -> u64 {
        self.tasks.pending.saturating_add(self.tasks.running).saturating_add(self.tasks.assigned)
    }

    /// Reads a summary.
    pub fn decode(data: &[u8]) -> Result<Status, Malformed> {
        super::decode(data)
    }

    /// Writes a summary; with fewer workers listed if it would not fit a znode.
    pub fn encode(&self) -> Vec<u8> {
        self.encode_within(MAX_DATA_BYTES)
    }

    /// The same with so few workers listed that it takes no more than this, if that is enough.
    pub fn encode_within(&self, max_bytes: usize) -> Vec<u8> {
        let mut data = super::encode(self);
        let mut shorter = self.clone();
        while data.len() > max_bytes && !shorter.worker_list.is_empty() {
            shorter.worker_list.truncate(shorter.worker_list.len() / 2);
            data = super::encode(&shorter);
        }
        data
    }
}

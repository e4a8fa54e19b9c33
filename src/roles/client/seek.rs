//! Seek: what a name like `BATCH/7` means. It names a task if that task exists, else a line of a batch. Every part of
//! the batch says how many lines each task has, so the line's number gives its task.

use crate::contract::line::{LineName, batch_of};
use crate::contract::task::Job;
use crate::contract::{Layout, TaskId};
use crate::machine::{Call, Refusal, Reply, if_exists};

/// A task that a walk has reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The task.
    pub id: TaskId,
    /// The user named the task itself, or a line of it, so it should be there.
    pub named: bool,
    /// The position in it of the line that is meant, and the name by which the user knows it; else the whole is meant.
    pub line: Option<(usize, LineName)>,
}

/// A name whose meaning is sought.
#[derive(Debug)]
pub struct Seek {
    id: TaskId,
    name: LineName,
    ask: Ask,
}

/// What is asked next.
#[derive(Debug)]
enum Ask {
    /// Whether there is a task of that name.
    Task,
    /// What this part of the batch says.
    Part(String),
    /// Which parts there are: the first may be gone, for all of it was collected.
    Parts,
}

impl Seek {
    /// What this name means; `None` if it can only be a task's.
    pub fn new(id: &TaskId) -> Option<Seek> {
        let name = LineName::of(id)?;
        Some(Seek { id: id.clone(), name, ask: Ask::Task })
    }

    /// The next question.
    pub fn call(&self, layout: &Layout) -> Call {
        match &self.ask {
            Ask::Task => Call::Exists { path: layout.task(&self.id), watch: false },
            Ask::Part(dir) => Call::Get { path: layout.job(dir), watch: false },
            Ask::Parts => Call::Children { path: layout.tasks() },
        }
    }

    /// Takes in the answer: what was found, if that is known now; else the next question, or the same, is to be asked.
    ///
    /// # Errors
    /// Another refusal than that nothing is there.
    pub fn on_answer(&mut self, answer: Result<&Reply, Refusal>) -> Result<Option<Found>, Refusal> {
        let reply = if_exists(answer)?;
        let as_task = Found { id: self.id.clone(), named: true, line: None };
        self.ask = match (&self.ask, reply) {
            (Ask::Task, Some(_)) => return Ok(Some(as_task)),
            (Ask::Task, None) => Ask::Part(format!("{}~0000", self.name.batch)),
            (Ask::Part(_), Some(Reply::Data { data, .. })) => {
                let size = Job::decode(data).ok().and_then(|job| job.chunk).unwrap_or(1);
                let (id, position) = self.name.task(size);
                return Ok(Some(Found { id, named: true, line: Some((position, self.name.clone())) }));
            }
            (Ask::Part(_), _) => Ask::Parts,
            (Ask::Parts, Some(Reply::Children(names))) => {
                match names.iter().find(|dir| batch_of(dir) == Some(&*self.name.batch)) {
                    Some(dir) => Ask::Part(dir.clone()),
                    None => return Ok(Some(as_task)),
                }
            }
            (Ask::Parts, _) => return Ok(Some(as_task)),
        };
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::task::Options;
    use crate::machine::Stat;

    /// Asks until it is known, of a service with these directories and no tasks but this one.
    fn seek(name: &str, parts: &[&str], task: Option<&str>) -> (Found, Vec<String>) {
        let (layout, mut asked) = (Layout::new("/z"), Vec::new());
        let mut seek = Seek::new(&TaskId::parse(name).expect("an id")).expect("a line's");
        loop {
            let call = seek.call(&layout);
            asked.push(call.path().to_string());
            let below = call.path().strip_prefix("/z/tasks/");
            let reply = match below {
                None => Reply::Children(parts.iter().map(|part| (*part).to_string()).collect()),
                Some(id) if task == Some(id) => Reply::Stat(Stat::default()),
                Some(dir) if parts.contains(&dir) => {
                    let mut job = Job::new(Options::default());
                    job.chunk = Some(10);
                    Reply::Data { data: job.encode(), stat: Stat::default() }
                }
                Some(_) => {
                    assert_eq!(seek.on_answer(Err(Refusal::NoNode)), Ok(None));
                    continue;
                }
            };
            if let Some(found) = seek.on_answer(Ok(&reply)).expect("no refusal") {
                return (found, asked);
            }
        }
    }

    #[test]
    fn a_line_is_found_by_what_a_part_says() {
        let (found, asked) = seek("J~b/24", &["J~b~0000"], None);
        assert_eq!((found.id.as_str(), found.line.map(|line| line.0)), ("J~b~0000/0000020", Some(3)));
        assert_eq!(asked, ["/z/tasks/J~b/24", "/z/tasks/J~b~0000"]);
        let (found, _) = seek("b/40001", &["_00", "b~x~0000", "b~0007"], None);
        assert_eq!(found.id.as_str(), "b~0001/0040000", "the first part is gone");
    }

    #[test]
    fn a_task_of_that_name_comes_first_and_is_the_default() {
        for (parts, task) in [(&["b~0000"][..], Some("b/7")), (&["c~0000"], None)] {
            let (found, _) = seek("b/7", parts, task);
            assert_eq!((found.id.as_str(), found.line), ("b/7", None));
        }
    }
}

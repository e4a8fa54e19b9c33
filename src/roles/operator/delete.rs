//! Which outcomes are deleted, and by whom. A task that has a key, or is so young that a create may still be on its
//! way, is marked, and the leader deletes it when no late request can do harm any more: see
//! docs/decisions/0034-who-deletes-outcomes.md.

use super::decide::{Decision, Lines, meant};
use crate::contract::TaskId;
use crate::contract::task::{State, Task};
use crate::exit;
use crate::machine::Stat;

/// Which outcomes are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deletion {
    /// Those of these states; of all if there are none.
    pub states: Vec<State>,
    /// Those that came before this, by the ensemble's clock, in ms since 1970.
    pub before_ms: Option<i64>,
    /// What was made later may still be made once more by a request that is on its way.
    pub settled_ms: i64,
}

/// Deletes the task with its outcome, or has its leader do that.
pub fn delete(id: &TaskId, mut task: Task, stat: &Stat, lines: &Lines, wish: &Deletion) -> Decision {
    let mut decision = Decision::default();
    let names = meant(id, &task, lines).into_iter().map(|(_, name)| name);
    // Others would go that were not named.
    let is_part = !lines.is_empty() && !task.positions().all(|(position, _)| lines.contains_key(&position));
    let left = match &task.outcome {
        _ if is_part => {
            let why = "cannot be deleted by itself: it is stored with other lines. Name the BATCH to delete all of it";
            Some((Some(exit::USAGE), why.to_string()))
        }
        None => {
            let why = "has not ended yet, so there is nothing to delete: zkmw cancel ends it";
            Some((Some(exit::FAILED), why.to_string()))
        }
        Some(outcome) if !wish.states.is_empty() && !wish.states.contains(&outcome.state) => {
            Some((None, format!("stays: it ended as {}", outcome.state.as_str())))
        }
        Some(_) if wish.before_ms.is_some_and(|before| stat.mtime_ms > before) => {
            Some((None, "stays: it ended later than that".to_string()))
        }
        Some(_) if task.delete => Some((None, "is being deleted by the leader".to_string())),
        Some(_) => None,
    };
    if let Some((problem, message)) = left {
        names.for_each(|name| decision.leave(name, problem, message.clone()));
        return decision;
    }
    let by_leader = task.keyed || stat.ctime_ms > wish.settled_ms;
    let words = if by_leader { "will be deleted by the leader" } else { "was deleted" };
    decision.changed = names.map(|name| (name, words.to_string())).collect();
    decision.deletes = !by_leader;
    task.delete = true;
    decision.write = Some(Box::new(task));
    decision
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::line::LineName;
    use crate::contract::task::{Options, Outcome, Payload};

    fn task(state: Option<State>) -> Task {
        let mut task = Task::new(Payload::Shell("x".into()), Options::default());
        task.outcome = state.map(|state| Outcome::unrun(state, None, "", 1));
        task
    }

    fn decide(task: Task, wish: &Deletion) -> Decision {
        let stat = Stat { ctime_ms: 100, mtime_ms: 200, ..Stat::default() };
        delete(&TaskId::new("J", "1"), task, &stat, &Lines::new(), wish)
    }

    #[test]
    fn only_what_has_an_outcome_is_deleted_and_what_was_asked_for() {
        let wish = Deletion { settled_ms: 150, ..Deletion::default() };
        let done = decide(task(Some(State::Done)), &wish);
        assert!(done.deletes && done.changed == [("J/1".to_string(), "was deleted".to_string())]);
        let open = decide(task(None), &wish);
        assert!(open.write.is_none() && open.left[0].problem == Some(exit::FAILED));
        for left in [
            Deletion { states: vec![State::Failed], ..wish.clone() },
            Deletion { before_ms: Some(199), ..wish.clone() },
        ] {
            let decision = decide(task(Some(State::Done)), &left);
            assert!(decision.write.is_none() && decision.left[0].problem.is_none(), "{decision:?}");
        }
        let old = Deletion { states: vec![State::Done], before_ms: Some(200), ..wish };
        assert!(decide(task(Some(State::Done)), &old).deletes);
    }

    #[test]
    fn what_has_a_key_or_is_young_is_left_to_the_leader() {
        let mut keyed = task(Some(State::Failed));
        keyed.keyed = true;
        for (task, settled_ms) in [(keyed, 150), (task(Some(State::Failed)), 99)] {
            let decision = decide(task, &Deletion { settled_ms, ..Deletion::default() });
            assert!(!decision.deletes && decision.write.as_ref().is_some_and(|task| task.delete));
            let again = decide(*decision.write.expect("marked"), &Deletion::default());
            assert!(again.write.is_none() && again.left[0].message.contains("is being deleted"));
        }
    }

    #[test]
    fn a_line_goes_only_with_those_that_are_stored_with_it() {
        let commands = ["a", " ", "c"].map(str::to_string).to_vec();
        let mut chunk = Task::new(Payload::Chunk { first_line: 0, commands }, Options::default());
        chunk.end(Outcome::unrun(State::Failed, None, "", 1));
        let line = |line: u64| (line as usize, LineName { batch: "b".into(), line });
        let go = |lines: &[u64]| {
            let lines: Lines = lines.iter().copied().map(line).collect();
            let wish = Deletion { settled_ms: 1, ..Deletion::default() };
            delete(&TaskId::new("b~0000", "0000000"), chunk.clone(), &Stat::default(), &lines, &wish)
        };
        assert_eq!(go(&[0]).left.iter().map(|left| left.problem).collect::<Vec<_>>(), [Some(exit::USAGE)]);
        let names =
            |decision: Decision| decision.changed.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(
            (names(go(&[0, 2])), names(go(&[]))),
            (vec!["b/1".into(), "b/3".into()], vec!["b/1".into(), "b/3".into()])
        );
    }
}

//! Chunks: a task of several commands, and what became of each of them.
//!
//! A chunk costs the ensemble what one task costs. Its commands are lines of a batch, in order. A
//! [`CommandResult`] says what became of each, in the same order. The results are in the task while it has no outcome
//! (from earlier attempts, or as a checkpoint), and in its outcome afterwards.

use super::outcome::Outcome;
use super::result::State;
use super::result::shorten_outputs;
pub use super::result::{CHUNK_OUTPUT_BYTES, CommandResult, Results, bound_outputs, succeeded, trim};
pub use super::task::MAX_CHUNK_COMMANDS;
use super::task::Task;

impl Task {
    /// What became of command `at` of a chunk, as the outcome of a task of its own: its result, or what became of the
    /// whole if that ended without one. `None` if the command is blank, or not over.
    pub fn command_outcome(&self, at: usize) -> Option<Outcome> {
        let command = self.commands.as_ref()?.get(at)?;
        if command.trim().is_empty() {
            return None;
        }
        let whole = self.outcome.as_ref();
        let Some(result) = self.all_results().get(at).and_then(Option::as_ref) else {
            return whole.map(Outcome::bare);
        };
        let mut outcome = result.outcome(whole.and_then(|whole| whole.worker.as_ref()));
        if self.digest.is_some() {
            outcome.note_dropped();
        }
        Some(outcome)
    }

    /// The results of a chunk, wherever they are.
    fn all_results(&self) -> &Results {
        self.outcome.as_ref().map_or(&self.results, |whole| &whole.results)
    }

    /// The positions of the commands of a chunk that are not blank, each with its line in the batch, from 0.
    pub fn positions(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        let commands = self.commands.as_deref().unwrap_or_default().iter().enumerate();
        let first = self.first_line;
        commands
            .filter(|(_, command)| !command.trim().is_empty())
            .map(move |(at, _)| (at, first.saturating_add(at as u64)))
    }

    /// How command `at` of a chunk ended; `None` if it is blank, or not over.
    pub fn command_state(&self, at: usize) -> Option<State> {
        let line = self.commands.as_ref()?.get(at)?;
        let result = self.all_results().get(at).and_then(Option::as_ref).map(CommandResult::state);
        let whole = self.outcome.as_ref().map(|whole| whole.state);
        result.or(whole).filter(|_| !line.trim().is_empty())
    }

    /// How many lines of a chunk are how far; any other task counts as one.
    pub fn line_counts(&self) -> LineCounts {
        let mut counts = LineCounts::default();
        if self.commands.is_none() {
            counts.add(self.outcome.as_ref().map(|outcome| outcome.state));
        }
        for (at, _) in self.positions() {
            counts.add(self.command_state(at));
        }
        counts
    }

    /// Removes the outcome of the whole. Each line then has a result with all that the outcome has of it. A line
    /// without a result in the outcome ended as the whole did.
    pub(super) fn reopen(&mut self) {
        let lines: Vec<usize> = self.positions().map(|(position, _)| position).collect();
        let Some(mut whole) = self.outcome.take() else { return };
        let mut results = std::mem::take(&mut whole.results);
        results.resize(self.commands.as_ref().map_or(0, Vec::len), None);
        for position in lines {
            results[position].get_or_insert_with(|| CommandResult::of(whole.bare()));
        }
        for result in results.iter_mut().flatten() {
            result.worker = result.worker.take().or_else(|| whole.worker.clone());
        }
        self.results = results;
    }

    /// How many commands it has to run: 1 for a task that is no chunk.
    pub fn width(&self) -> u32 {
        let commands = self.commands.as_deref().unwrap_or_default();
        let over = |at: usize| self.results.get(at).is_some_and(Option::is_some);
        let open = commands.iter().enumerate().filter(|(at, line)| !line.trim().is_empty() && !over(*at));
        u32::try_from(open.count()).unwrap_or(u32::MAX).max(1)
    }

    /// Leaves of the outputs in its outcome what fits a znode beside all else; false if there is nothing left to cut.
    pub(super) fn shorten_results(&mut self) -> bool {
        let both = [Some(&mut self.results), self.outcome.as_mut().map(|outcome| &mut outcome.results)];
        let mut shortened = false;
        for results in both.into_iter().flatten() {
            let kept: usize = results.iter().flatten().map(CommandResult::output_bytes).sum();
            if kept > 0 {
                shorten_outputs(results, kept / 2);
                shortened = true;
            } else {
                // Words are the last to go, for codes and signals say the same; and then who ran it, and when.
                let worded =
                    results.iter_mut().flatten().filter_map(|result| result.detail.take()).count() > 0;
                let mut forget =
                    || results.iter_mut().flatten().fold(false, |any, result| result.forget_run() | any);
                shortened |= worded || forget();
            }
        }
        shortened
    }
}

/// How many lines are how far: a few numbers for each task, so that a master can count a million lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LineCounts {
    /// They are to be run, or run.
    pub open: u16,
    /// They ended as done.
    pub done: u16,
    /// They failed.
    pub failed: u16,
    /// They were cancelled.
    pub cancelled: u16,
    /// They expired.
    pub expired: u16,
}

impl LineCounts {
    /// One more of what ended so; `None` has not ended.
    pub fn add(&mut self, state: Option<State>) {
        *match state {
            None => &mut self.open,
            Some(State::Done) => &mut self.done,
            Some(State::Failed) => &mut self.failed,
            Some(State::Cancelled) => &mut self.cancelled,
            Some(State::Expired) => &mut self.expired,
        } += 1;
    }

    /// Those that ended otherwise than as done.
    pub fn ended_badly(&self) -> u64 {
        u64::from(self.failed) + u64::from(self.cancelled) + u64::from(self.expired)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::Incarnation;
    use crate::contract::MAX_DATA_BYTES;
    use crate::contract::output::Output;
    use crate::contract::result::Reason;
    use crate::contract::task::{Options, Payload};
    use crate::machine::Captured;

    fn chunk(commands: &[&str]) -> Task {
        let commands = commands.iter().map(|line| (*line).to_string()).collect();
        Task::new(Payload::Chunk { first_line: 7, commands }, Options::default())
    }

    fn printed(bytes: usize) -> CommandResult {
        let head = vec![b'x'; bytes];
        CommandResult {
            stdout: Output::new(&Captured { head, omitted: 0, tail: Vec::new() }),
            ..CommandResult::default()
        }
    }

    #[test]
    fn the_smallest_result_is_nothing_but_braces() {
        let mut outcome = Outcome::unrun(State::Done, None, "", 3);
        (outcome.detail, outcome.exit_code) = (None, Some(0));
        let mut result = CommandResult::of(outcome.clone());
        assert_eq!(result.outcome(None), outcome);
        result.attempt = None;
        assert_eq!(serde_json::to_string(&result).expect("json"), "{}");
    }

    #[test]
    fn a_command_is_shown_as_a_task_of_its_own() {
        let mut task = chunk(&["a", " ", "b", "c"]);
        assert_eq!((task.width(), task.command_outcome(0)), (3, None));
        let failed =
            CommandResult { reason: Some(Reason::Exit), exit_code: Some(4), ..CommandResult::default() };
        task.results = vec![Some(failed)];
        assert_eq!(task.width(), 2);
        assert_eq!(task.command_outcome(0).map(|o| (o.state, o.exit_code)), Some((State::Failed, Some(4))));
        let mut whole = Outcome::unrun(State::Cancelled, None, "so it was wished", 1);
        whole.results = std::mem::take(&mut task.results);
        task.outcome = Some(whole);
        let states: Vec<_> = (0..5).map(|at| task.command_outcome(at).map(|o| o.state)).collect();
        let expected = [Some(State::Failed), None, Some(State::Cancelled), Some(State::Cancelled), None];
        assert_eq!(states, expected);
    }

    #[test]
    fn lines_without_results_share_the_outcome_of_their_chunk() {
        let mut task = chunk(&["a", " ", "b", "c"]);
        task.flush(1, &[(0, CommandResult::default())].into(), 1);
        task.end(Outcome::unrun(State::Expired, None, "it was late", 1));
        assert!(task.rerun(&[3]) && task.all_shares().len() == 1, "the other is in no share");
        let states: Vec<_> = (0..4).map(|position| task.command_state(position)).collect();
        assert_eq!(states, [Some(State::Done), None, Some(State::Expired), None]);
        assert!(Task::decode(&task.encode()).is_ok());
        task.flush(2, &[(3, CommandResult::default())].into(), 1);
        assert_eq!(task.outcome.as_ref().map(|outcome| outcome.state), Some(State::Expired));
        assert_eq!(task.command_outcome(2).and_then(|line| line.detail).as_deref(), Some("it was late"));
        let counts = LineCounts { done: 2, expired: 1, ..LineCounts::default() };
        assert_eq!((task.line_counts(), counts.ended_badly()), (counts, 1));
    }

    #[test]
    fn the_longest_outputs_are_cut_first() {
        let mut results = vec![Some(printed(1_000)), None, Some(printed(90_000)), Some(printed(80_000))];
        shorten_outputs(&mut results, 60_000);
        let kept: Vec<_> = results.iter().flatten().map(CommandResult::output_bytes).collect();
        assert!(kept.iter().sum::<usize>() <= 60_000 && kept[0] == 1_000, "{kept:?}");
        let omitted = results[2].as_ref().map(|r| r.stdout.captured().omitted);
        assert_eq!(omitted, Some(90_000 - kept[1] as u64));
    }

    #[test]
    fn a_chunk_with_too_much_output_fits_a_znode_in_the_end() {
        let mut task = chunk(&vec!["x"; MAX_CHUNK_COMMANDS]);
        let mut outcome = Outcome::unrun(State::Done, None, "", 1);
        outcome.results = vec![Some(printed(3_000)); MAX_CHUNK_COMMANDS];
        task.outcome = Some(outcome);
        let data = task.encode_to_fit();
        assert!(data.len() <= MAX_DATA_BYTES && data.len() > MAX_DATA_BYTES / 4, "{}", data.len());
        assert!(Task::decode(&data).is_ok());
    }

    #[test]
    fn a_chunk_of_which_nothing_could_be_started_fits_too() {
        let line = "x".repeat(240);
        let mut task = chunk(&vec![line.as_str(); MAX_CHUNK_COMMANDS]);
        let failed = Outcome::unrun(State::Failed, Some(Reason::NotStarted), &"\"".repeat(400), 1);
        let mut outcome = Outcome::unrun(State::Failed, Some(Reason::Exit), "all failed", 1);
        let by = Some(Incarnation::new(&"w".repeat(128), 1));
        let result = CommandResult { worker: by, started_ms: Some(i64::MAX), ..CommandResult::of(failed) };
        outcome.results = vec![Some(result); MAX_CHUNK_COMMANDS];
        task.outcome = Some(outcome);
        assert!(task.encode().len() > MAX_DATA_BYTES);
        assert!(task.encode_to_fit().len() <= MAX_DATA_BYTES);
    }
}

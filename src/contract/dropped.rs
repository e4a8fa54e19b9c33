//! What is dropped of a task with a key when too much has ended badly: all but how it ended. Its key must stay taken,
//! or who submits it again would run it once more. So a digest stays, by which the same request is known.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::{Digest as _, Sha256};

use super::chunk::CommandResult;
use super::outcome::Outcome;
use super::output::Output;
use super::task::{Options, Task};
use super::{MAX_WORDS_BYTES, shortened};

/// The text that replaces a command. No shell finds such a program, should a foreign client have it run again.
const DROPPED: &str = "(dropped)";

const WHY: &str = "its command and output were dropped, for too much had ended badly";

impl Task {
    /// Whether both ask for the same thing: what was set by submitters is equal.
    pub fn same_request(&self, other: &Task) -> bool {
        self.request_digest() == other.request_digest()
    }

    /// The digest of a new task that asks for the same.
    fn request_digest(&self) -> String {
        let anew = || {
            // Who waits for it is not part of what is asked for.
            let options = Options { orphan_of: None, ..self.options.clone() };
            BASE64.encode(Sha256::digest(Task::new(self.payload(), options).encode()))
        };
        self.digest.clone().unwrap_or_else(anew)
    }

    /// Drops what was asked for and what was printed; false if it has no outcome, no key, or was so already.
    pub fn drop_request(&mut self) -> bool {
        let digest = self.request_digest();
        let Some(outcome) = self.outcome.as_mut().filter(|_| self.keyed && self.digest.is_none()) else {
            return false;
        };
        let lines = self.commands.iter_mut().flatten().chain(&mut self.command);
        lines.for_each(|line| *line = if line.trim().is_empty() { String::new() } else { DROPPED.into() });
        self.argv = self.argv.take().map(|_| vec![DROPPED.into()]);
        (self.options, self.digest) = (Options::default(), Some(digest));
        (self.avoid, self.history) = (Vec::new(), Vec::new());
        (outcome.stdout, outcome.stderr) = (Output::default(), Output::default());
        for result in outcome.results.iter_mut().flatten() {
            let CommandResult { reason, exit_code, signal, attempt, .. } = *result;
            *result = CommandResult { reason, exit_code, signal, attempt, ..CommandResult::default() };
        }
        outcome.note_dropped();
        true
    }
}

impl Outcome {
    /// Notes in the detail that the request and the outputs were dropped.
    pub(super) fn note_dropped(&mut self) {
        let before = self.detail.as_ref().map(|detail| format!("; {detail}")).unwrap_or_default();
        self.detail = Some(shortened(&format!("{WHY}{before}"), MAX_WORDS_BYTES));
    }

    /// Whether the detail says so.
    pub fn is_dropped(&self) -> bool {
        self.detail.as_ref().is_some_and(|detail| detail.starts_with(WHY))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::task::{Payload, Reason, State};
    use crate::machine::Captured;

    fn output() -> Output {
        Output::new(&Captured { head: vec![b'x'; 1_000], omitted: 0, tail: Vec::new() })
    }

    fn asked(payload: Payload) -> Task {
        let env = [("A".to_string(), "x".repeat(1_000))].into();
        let options = Options {
            env: Some(env),
            orphan_of: Some("O".into()),
            max_attempts: Some(2),
            ..Options::default()
        };
        let mut task = Task::new(payload, options);
        task.keyed = true;
        task
    }

    fn ended(payload: Payload) -> Task {
        let mut task = asked(payload);
        let mut outcome = Outcome::unrun(State::Failed, Some(Reason::Exit), "too bad", 1);
        (outcome.exit_code, outcome.stdout) = (Some(3), output());
        task.next_attempt(None, "its worker died");
        task.end(outcome);
        task
    }

    #[test]
    fn a_dropped_request_is_small_and_recognised_by_its_digest() {
        let line = || Payload::Shell("echo hi".into());
        let program = |last: &str| Payload::Program(vec!["./train".into(), last.into()]);
        let chunk = |first_line| Payload::Chunk { first_line, commands: vec!["a".into(), "b".repeat(500)] };
        for payload in [line(), program("x"), chunk(7)] {
            let mut task = ended(payload.clone());
            assert!(task.drop_request() && !task.drop_request());
            let data = task.encode();
            assert!(data.len() < 400, "{}", String::from_utf8_lossy(&data));
            let read = Task::decode(&data).expect("a task");
            assert!(
                read.outcome
                    .as_ref()
                    .is_some_and(|outcome| outcome.is_dropped() && outcome.exit_code == Some(3))
            );
            for same in [line(), program("x"), program("y"), chunk(7), chunk(8)] {
                assert_eq!(read.same_request(&asked(same.clone())), same == payload, "{same:?} {payload:?}");
            }
            let mut other = asked(payload);
            other.options.orphan_of = None;
            assert!(read.same_request(&other), "who waits is not asked for");
            other.options.max_attempts = Some(3);
            assert!(!read.same_request(&other));
        }
    }

    #[test]
    fn lines_keep_how_they_ended() {
        let commands = ["a", " ", "b", "c"].map(str::to_string).to_vec();
        let mut task = asked(Payload::Chunk { first_line: 0, commands });
        let failed = CommandResult {
            reason: Some(Reason::Exit),
            exit_code: Some(4),
            attempt: Some(2),
            stdout: output(),
            ..CommandResult::default()
        };
        let good = CommandResult { stdout: output(), ended_ms: Some(1), ..CommandResult::default() };
        task.results = vec![Some(failed), None, Some(good)];
        task.end(Outcome::unrun(State::Expired, None, "it was late", 1));
        let states = |task: &Task| (0..4).map(|position| task.command_state(position)).collect::<Vec<_>>();
        let before = (states(&task), task.line_counts());
        assert!(task.drop_request());
        assert_eq!((states(&task), task.line_counts()), before);
        let line = |position| task.command_outcome(position).expect("an outcome");
        assert_eq!((line(0).exit_code, line(0).attempt, line(0).stdout.is_empty()), (Some(4), 2, true));
        assert!([0, 2, 3].iter().all(|position| line(*position).is_dropped()), "each line says so");
        assert_eq!(task.commands.as_deref().map(|all| all.concat()), Some("(dropped)".repeat(3)));
    }

    #[test]
    fn nothing_is_dropped_of_what_has_no_key_or_no_outcome() {
        let mut open = asked(Payload::Shell("x".into()));
        let mut plain = ended(Payload::Shell("x".into()));
        plain.keyed = false;
        assert!(!open.drop_request() && !plain.drop_request());
        let mut again = ended(Payload::Shell("x".into()));
        assert!(again.drop_request());
        again.outcome = None;
        let why = Task::decode(&again.encode()).expect_err("it cannot run").to_string();
        assert!(why.contains("its command was dropped"), "{why}");
    }
}

//! Shares: which lines of a chunk are whose. A chunk is one register under compare-and-set; everything that happens to its
//! lines is one write of that znode, and no name is ever made.
//!
//! A line is *open* while it has no result. Each open line is in exactly one share, and a chunk has an outcome if and only
//! if none is open. A share has a *number*, which is given to one incarnation, ever: so an entry that names chunk and number
//! is void as soon as the number is gone. Numbers only grow, and the lines of a number only get fewer.
//!
//! The *window* of a share are its first `ahead` open lines, or all. Its holder starts lines in their order, and only those
//! in the window. Lines behind it can be given to others without asking anybody, even if the holder stands still. That this
//! holds however replies are lost and writes come late was searched: `src/recipes/tests/shares.rs`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::chunk::{CommandResult, Results, trim};
use super::outcome::{Outcome, Reason, State};
use super::task::Task;
use super::{Incarnation, is_zero};

/// Most shares of one chunk.
pub const MAX_SHARES: usize = 16;

/// Places of lines in a chunk, as ranges without their ends, in order, none touching the next.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lines(Vec<(u32, u32)>);

/// A part of a chunk's open lines.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Share {
    /// Its number.
    pub attempt: u32,
    /// Its lines; those that have a result count no more.
    pub lines: Lines,
    /// How many of its open lines the holder may have started; absent before it has said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ahead: Option<u32>,
    /// Workers that died while these lines may have run there.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub deaths: u32,
    /// The incarnation that vouches that nothing of it runs there any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released_by: Option<Incarnation>,
}

impl Lines {
    /// These places, in any order.
    pub fn of(places: impl IntoIterator<Item = usize>) -> Lines {
        let mut places: Vec<u32> = places.into_iter().filter_map(|place| u32::try_from(place).ok()).collect();
        places.sort_unstable();
        places.dedup();
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for place in places {
            match ranges.last_mut() {
                Some((_, end)) if *end == place => *end += 1,
                _ => ranges.push((place, place + 1)),
            }
        }
        Lines(ranges)
    }

    /// The places, in order.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().flat_map(|(from, to)| *from as usize..*to as usize)
    }

    /// Whether the place is one of them.
    pub fn has(&self, place: usize) -> bool {
        self.0.iter().any(|(from, to)| (*from as usize..*to as usize).contains(&place))
    }

    /// Without these.
    fn without(&self, gone: &[usize]) -> Lines {
        Lines::of(self.iter().filter(|place| !gone.contains(place)))
    }
}

impl Share {
    fn new(attempt: u32, places: &[usize], deaths: u32) -> Share {
        Share { attempt, lines: Lines::of(places.iter().copied()), ahead: None, deaths, released_by: None }
    }
}

/// Who gives the lines of a share to others, and what that says of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move<'a> {
    /// Its holder has died: what it may have started is suspected.
    Death {
        /// So many deaths end a line.
        limit: u32,
    },
    /// Its holder vouches that it runs nothing of it.
    Release {
        /// The holder.
        by: &'a Incarnation,
    },
    /// It was taken back, and is known to be dead.
    Revoked,
}

impl Task {
    /// Whether the line at this place has to be run.
    pub fn is_open(&self, place: usize) -> bool {
        let line = self.commands.as_ref().and_then(|commands| commands.get(place));
        let over = self.results.get(place).is_some_and(Option::is_some);
        self.outcome.is_none() && !over && line.is_some_and(|line| !line.trim().is_empty())
    }

    /// The shares of a chunk; none if it has an outcome.
    pub fn all_shares(&self) -> Vec<Share> {
        if self.outcome.is_some() {
            return Vec::new();
        }
        if !self.shares.is_empty() {
            return self.shares.clone();
        }
        let places = 0..self.commands.as_ref().map_or(0, Vec::len);
        vec![Share::new(self.attempt, &places.collect::<Vec<_>>(), 0)]
    }

    /// The share of this number.
    pub fn share(&self, number: u32) -> Option<Share> {
        self.all_shares().into_iter().find(|share| share.attempt == number)
    }

    /// The open lines of a share, in their order.
    pub fn open_lines(&self, share: &Share) -> Vec<usize> {
        share.lines.iter().filter(|place| self.is_open(*place)).collect()
    }

    /// Those of them that its holder may start.
    pub fn window(&self, share: &Share) -> Vec<usize> {
        let mut open = self.open_lines(share);
        if let Some(ahead) = share.ahead {
            open.truncate(ahead as usize);
        }
        open
    }

    /// Gives the last lines of a share that are behind its window, at most so many, a number of their own. False if
    /// there are none; never without a window that the holder wrote, for it may be starting any line.
    pub fn cut(&mut self, number: u32, most: usize) -> bool {
        let mut shares = self.all_shares();
        if shares.len() >= MAX_SHARES {
            return false;
        }
        let Some(share) = shares.iter_mut().find(|share| share.attempt == number) else { return false };
        let Some(ahead) = share.ahead else { return false };
        let open = self.open_lines(share);
        let behind = open.get(ahead as usize..).unwrap_or_default();
        let gone = &behind[behind.len() - most.min(behind.len())..];
        if gone.is_empty() {
            return false;
        }
        share.lines = share.lines.without(gone);
        let deaths = share.deaths;
        self.attempt = self.attempt.saturating_add(1);
        shares.push(Share::new(self.attempt, gone, deaths));
        self.shares = shares;
        true
    }

    /// Takes in results of lines of a share, and how far its holder may be. Lines that are not open, or not of this number
    /// any more, keep what they have.
    pub fn flush(&mut self, number: u32, results: &BTreeMap<usize, CommandResult>, ahead: u32) {
        let mut shares = self.all_shares();
        let Some(share) = shares.iter_mut().find(|share| share.attempt == number) else { return };
        share.ahead = Some(ahead);
        for (place, result) in results {
            if share.lines.has(*place) && self.is_open(*place) {
                self.put_result(*place, Some(result.clone()));
            }
        }
        self.close(shares);
    }

    /// Gives all lines of a share new numbers. What it may have started is suspected after a death: it gets a share of its
    /// own, whose lines run one at a time. A line that is suspected for the last time ends as poison.
    pub fn move_on(&mut self, number: u32, how: Move<'_>) -> bool {
        let mut shares = self.all_shares();
        let Some(at) = shares.iter().position(|share| share.attempt == number) else { return false };
        let share = shares.remove(at);
        let open = self.open_lines(&share);
        let (suspects, rest) = match how {
            Move::Death { .. } => open.split_at(self.window(&share).len()),
            Move::Release { .. } | Move::Revoked => (&open[..0], &open[..]),
        };
        let poisoned = matches!(how, Move::Death { limit } if share.deaths + 1 >= limit);
        if poisoned {
            for place in suspects {
                self.put_result(*place, Some(poison(share.deaths + 1)));
            }
        } else if !suspects.is_empty() {
            self.attempt = self.attempt.saturating_add(1);
            let alone = Share::new(self.attempt, suspects, share.deaths + 1);
            shares.push(Share { ahead: Some(1), ..alone });
        }
        if !rest.is_empty() {
            self.attempt = self.attempt.saturating_add(1);
            let mut moved = Share::new(self.attempt, rest, share.deaths);
            if let Move::Release { by } = how {
                moved.released_by = Some(by.clone());
            }
            shares.push(moved);
        }
        self.close(shares);
        true
    }

    /// Has the line at this place run once more, whatever became of it. False if it is open, or blank.
    pub fn rerun(&mut self, place: usize) -> bool {
        let line = self.commands.as_ref().and_then(|commands| commands.get(place));
        if self.is_open(place) || line.is_none_or(|line| line.trim().is_empty()) {
            return false;
        }
        let mut shares = self.all_shares();
        if let Some(outcome) = self.outcome.take() {
            self.results = outcome.results;
        }
        self.put_result(place, None);
        trim(&mut self.results);
        for share in &mut shares {
            share.lines = share.lines.without(&[place]);
        }
        self.attempt = self.attempt.saturating_add(1);
        shares.push(Share::new(self.attempt, &[place], 0));
        self.close(shares);
        true
    }

    fn put_result(&mut self, place: usize, result: Option<CommandResult>) {
        if self.results.len() <= place {
            self.results.resize(place + 1, None);
        }
        self.results[place] = result;
    }

    /// These shares are left: those without open lines go, and with the last of them the chunk ends.
    fn close(&mut self, mut shares: Vec<Share>) {
        shares.retain(|share| !self.open_lines(share).is_empty());
        self.shares = shares;
        if self.shares.is_empty() {
            let results = std::mem::take(&mut self.results);
            self.outcome = Some(whole(results, self.attempt));
        }
    }
}

/// What became of a line with which as many workers died as may.
fn poison(deaths: u32) -> CommandResult {
    CommandResult {
        reason: Some(Reason::Poison),
        detail: Some(format!("{deaths} workers died while it ran")),
        ..CommandResult::default()
    }
}

/// The outcome of a chunk of which every line has a result.
fn whole(results: Results, attempt: u32) -> Outcome {
    let failed = results.iter().flatten().filter(|result| !result.succeeded()).count();
    let all = results.iter().flatten().count();
    let state = if failed == 0 { State::Done } else { State::Failed };
    let reason = (failed > 0).then_some(Reason::Exit);
    let detail = if failed == 0 { String::new() } else { format!("{failed} of {all} commands failed") };
    let mut outcome = Outcome::unrun(state, reason, &detail, attempt);
    outcome.detail = Some(detail).filter(|detail| !detail.is_empty());
    outcome.exit_code = Some(i32::from(failed > 0));
    outcome.started_ms = results.iter().flatten().filter_map(|result| result.started_ms).min();
    outcome.ended_ms = results.iter().flatten().filter_map(|result| result.ended_ms).max();
    outcome.results = results;
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::task::{Options, Payload};

    fn chunk(lines: usize) -> Task {
        let commands = vec!["x".to_string(); lines];
        Task::new(Payload::Chunk { first_line: 0, commands }, Options::default())
    }

    fn good(places: &[usize]) -> BTreeMap<usize, CommandResult> {
        places.iter().map(|place| (*place, CommandResult::default())).collect()
    }

    /// Numbers, lines, windows and deaths.
    fn shares(task: &Task) -> Vec<(u32, Vec<usize>, Option<u32>, u32)> {
        let share = |share: &Share| (share.attempt, task.open_lines(share), share.ahead, share.deaths);
        task.all_shares().iter().map(share).collect()
    }

    #[test]
    fn a_chunk_begins_as_one_share_and_is_never_cut_before_its_window_is_known() {
        let mut task = chunk(4);
        task.commands.as_mut().expect("a chunk")[1] = " ".into();
        assert_eq!(shares(&task), [(1, vec![0, 2, 3], None, 0)]);
        assert!(!task.cut(1, 9) && !task.cut(2, 9) && task.shares.is_empty());
        task.flush(1, &good(&[]), 1);
        assert!(task.cut(1, 1));
        assert_eq!(shares(&task), [(1, vec![0, 2], Some(1), 0), (2, vec![3], None, 0)]);
        assert!(task.cut(1, 9) && !task.cut(1, 9), "only what is behind the window");
        assert_eq!(shares(&task), [(1, vec![0], Some(1), 0), (2, vec![3], None, 0), (3, vec![2], None, 0)]);
    }

    #[test]
    fn results_count_for_open_lines_of_the_number_alone_and_the_last_share_ends_the_chunk() {
        let mut task = chunk(3);
        task.flush(1, &good(&[]), 1);
        task.cut(1, 1);
        let bad =
            CommandResult { reason: Some(Reason::Exit), exit_code: Some(3), ..CommandResult::default() };
        task.flush(2, &good(&[0, 1]), 1);
        assert_eq!(task.results.iter().flatten().count(), 0, "they are not its own");
        task.flush(2, &[(2, bad.clone())].into(), 1);
        task.flush(2, &good(&[2]), 1);
        assert_eq!((task.results[2].clone(), shares(&task).len()), (Some(bad), 1));
        task.flush(1, &good(&[0, 1]), 1);
        let outcome = task.outcome.clone().expect("it is over");
        assert_eq!((outcome.state, outcome.exit_code, task.shares.len()), (State::Failed, Some(1), 0));
        assert_eq!(outcome.detail.as_deref(), Some("1 of 3 commands failed"));
        assert!(Task::decode(&task.encode()).is_ok());
    }

    #[test]
    fn after_a_death_what_may_have_run_is_suspected_and_the_rest_is_not() {
        let mut task = chunk(4);
        task.flush(1, &good(&[0]), 1);
        assert!(task.move_on(1, Move::Death { limit: 3 }) && !task.move_on(1, Move::Death { limit: 3 }));
        assert_eq!(shares(&task), [(2, vec![1], Some(1), 1), (3, vec![2, 3], None, 0)]);
        assert!(task.move_on(2, Move::Death { limit: 3 }));
        assert!(task.move_on(4, Move::Death { limit: 3 }));
        assert_eq!(task.results[1].as_ref().and_then(|result| result.reason), Some(Reason::Poison));
        assert_eq!(shares(&task), [(3, vec![2, 3], None, 0)], "its neighbours ended as if nothing had been");
        let mut unknown = chunk(2);
        unknown.move_on(1, Move::Death { limit: 1 });
        assert!(unknown.outcome.is_some(), "none may run twice, and any may have been started");
    }

    #[test]
    fn what_is_released_or_taken_back_is_not_suspected() {
        let (mut task, by) = (chunk(2), Incarnation::new("w", 1));
        task.flush(1, &good(&[]), 2);
        task.move_on(1, Move::Release { by: &by });
        assert_eq!(shares(&task), [(2, vec![0, 1], None, 0)]);
        assert_eq!(task.shares[0].released_by, Some(by));
        task.move_on(2, Move::Revoked);
        assert_eq!(
            (shares(&task), task.shares[0].released_by.clone()),
            (vec![(3, vec![0, 1], None, 0)], None)
        );
    }

    #[test]
    fn a_line_that_is_run_once_more_leaves_its_old_share() {
        let mut task = chunk(2);
        task.flush(1, &good(&[0]), 1);
        assert!(task.rerun(0) && !task.rerun(0) && !task.rerun(7));
        assert_eq!(shares(&task), [(1, vec![1], Some(1), 0), (2, vec![0], None, 0)]);
        assert!(!task.shares[0].lines.has(0), "or two would have it");
        task.flush(1, &good(&[1]), 1);
        task.flush(2, &good(&[0]), 1);
        assert!(task.outcome.is_some() && task.rerun(1));
        assert_eq!((shares(&task), task.results.len()), (vec![(3, vec![1], None, 0)], 1));
    }

    #[test]
    fn there_are_only_so_many_shares() {
        let mut task = chunk(40);
        task.flush(1, &good(&[]), 1);
        assert_eq!((0..40).filter(|_| task.cut(1, 1)).count(), MAX_SHARES - 1);
    }
}

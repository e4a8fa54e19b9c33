//! The writes on the shares of a chunk. Each changes the whole task at once, and keeps the rules of
//! [`share`](super::share).

use std::collections::BTreeMap;

use super::Incarnation;
use super::outcome::Outcome;
use super::result::{CommandResult, Reason, Results, State, trim};
use super::share::{Ending, Lines, MAX_SHARES, Move, Release, Rest, Share};
use super::task::Task;

impl Task {
    /// Whether the line at this position has to be run.
    pub fn is_open(&self, position: usize) -> bool {
        let line = self.commands.as_ref().and_then(|commands| commands.get(position));
        let over = self.results.get(position).is_some_and(Option::is_some);
        self.outcome.is_none() && !over && line.is_some_and(|line| !line.trim().is_empty())
    }

    fn line_count(&self) -> usize {
        self.commands.as_ref().map_or(0, Vec::len)
    }

    /// The shares of a chunk; none if it has an outcome, or is no chunk.
    pub fn all_shares(&self) -> Vec<Share> {
        if self.outcome.is_some() || self.commands.is_none() {
            return Vec::new();
        }
        if !self.shares.is_empty() {
            return self.shares.clone();
        }
        vec![Share { attempt: self.attempt, lines: Lines::of(0..self.line_count()), ..Share::default() }]
    }

    /// The share of this number.
    pub fn share(&self, number: u32) -> Option<Share> {
        self.all_shares().into_iter().find(|share| share.attempt == number)
    }

    /// The open lines of a share, in their order.
    pub fn open_lines(&self, share: &Share) -> Vec<usize> {
        share.lines.below(self.line_count()).filter(|position| self.is_open(*position)).collect()
    }

    /// Those of them that its holder may start.
    pub fn window(&self, share: &Share) -> Vec<usize> {
        let mut open = self.open_lines(share);
        if let Some(ahead) = share.ahead {
            open.truncate(ahead as usize);
        }
        open
    }

    /// Whether somebody wants this line cancelled.
    pub fn is_cancelled(&self, position: usize) -> bool {
        self.cancel || self.cancel_lines.has(position)
    }

    /// Whether each open line is in exactly one share, and the shares are no more than that.
    pub(super) fn check_shares(&self) -> Result<(), &'static str> {
        let lines = self.line_count();
        if !self.cancel_lines.is_sound(lines) {
            return Err("its cancel_lines are no ranges of its lines");
        }
        if self.shares.is_empty() {
            return Ok(());
        }
        if self.outcome.is_some() || self.shares.len() > lines {
            return Err("it has more shares than it has open lines");
        }
        let mut owners = vec![0_u32; lines];
        let mut numbers = Vec::new();
        for share in &self.shares {
            if !share.lines.is_sound(lines) || share.attempt == 0 || share.attempt > self.attempt {
                return Err("one of its shares has lines or a number that cannot be");
            }
            numbers.push(share.attempt);
            share
                .lines
                .below(lines)
                .for_each(|position| owners[position] += u32::from(self.is_open(position)));
        }
        numbers.sort_unstable();
        if numbers.windows(2).any(|two| two[0] == two[1]) {
            return Err("two of its shares have one number");
        }
        let is_one = |(position, owners): (usize, &u32)| *owners == u32::from(self.is_open(position));
        if owners.iter().enumerate().all(is_one) { Ok(()) } else { Err("an open line is not in one share") }
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
        let behind = open.len().saturating_sub(ahead as usize).min(most);
        if behind == 0 {
            return false;
        }
        let (stays, gone) = open.split_at(open.len() - behind);
        share.lines = Lines::of(stays.iter().copied());
        self.attempt = self.attempt.saturating_add(1);
        let cut = Share::of(self.attempt, gone, share);
        shares.push(cut);
        self.shares = shares;
        true
    }

    /// Takes in results of lines of a share, and how far its holder may be. Lines that are not open, or not of this
    /// number any more, keep what they have.
    pub fn flush(&mut self, number: u32, results: &BTreeMap<usize, CommandResult>, ahead: u32) {
        let mut shares = self.all_shares();
        let Some(share) = shares.iter_mut().find(|share| share.attempt == number) else { return };
        share.ahead = Some(ahead);
        let share = share.clone();
        self.put_results(&share, results);
        self.close(shares);
    }

    fn put_results(&mut self, share: &Share, results: &BTreeMap<usize, CommandResult>) {
        for (position, result) in results {
            if share.lines.has(*position) && self.is_open(*position) {
                self.put_result(*position, Some(result.clone()));
            }
        }
    }

    /// Its holder runs nothing of a share any more. `mtime_ms` is that of the version that is replaced. False if that
    /// changes nothing.
    pub fn end_share(&mut self, number: u32, ending: &Ending, by: &Incarnation, mtime_ms: i64) -> bool {
        let mut shares = self.all_shares();
        let Some(at) = shares.iter().position(|share| share.attempt == number) else { return false };
        let ended = |task: &Task| task.results.iter().flatten().count();
        let before = (ended(self), self.attempt);
        let mut share = shares.remove(at);
        self.put_results(&share, &ending.results);
        for position in self.open_lines(&share) {
            if self.is_cancelled(position) {
                let cancelled = || share.unrun(Reason::Cancelled, "it was cancelled");
                self.put_result(
                    position,
                    Some(ending.again.get(&position).cloned().unwrap_or_else(cancelled)),
                );
            }
        }
        let is_again = |position: &usize| ending.again.contains_key(position);
        let (again, rest): (Vec<usize>, Vec<usize>) = self.open_lines(&share).into_iter().partition(is_again);
        if !again.is_empty() {
            let why = format!("{} of its lines failed", again.len());
            let release = Release { why, delay_ms: Some(ending.again_ms), avoid: false };
            let moved = self.hand_back(&share, &again, by, &release, mtime_ms);
            shares.push(Share { failures: share.failures.saturating_add(1), ..moved });
        }
        match &ending.rest {
            _ if rest.is_empty() => {}
            Some(Rest::Release(release)) => shares.push(self.hand_back(&share, &rest, by, release, mtime_ms)),
            Some(Rest::Cancel) | None => {
                share.lines = Lines::of(rest);
                shares.push(share);
            }
        }
        let after = (ended(self), self.attempt);
        self.close(shares);
        before != after || self.outcome.is_some()
    }

    /// These lines of a share under a number of their own, given back by its holder.
    fn hand_back(
        &mut self,
        share: &Share,
        positions: &[usize],
        by: &Incarnation,
        release: &Release,
        mtime_ms: i64,
    ) -> Share {
        if release.avoid {
            self.avoid(by);
        }
        self.attempt = self.attempt.saturating_add(1);
        self.remark(share.attempt, Some(by.clone()), &release.why);
        Share {
            earlier: share.earlier.saturating_add(1),
            delay_ms: release.delay_ms,
            since_ms: release.delay_ms.map(|_| mtime_ms),
            released_by: Some(by.clone()),
            ..Share::of(self.attempt, positions, share)
        }
    }

    /// Gives all lines of a share new numbers. What it may have started is suspected after a death: it gets a share
    /// of its own, whose lines run one at a time. A line that is suspected for the last time ends as poison. False if
    /// there is no such share.
    pub fn move_on(&mut self, number: u32, by: Option<&Incarnation>, how: &Move) -> bool {
        let mut shares = self.all_shares();
        let Some(at) = shares.iter().position(|share| share.attempt == number) else { return false };
        let share = shares.remove(at);
        let open = self.open_lines(&share);
        let (suspects, rest) = match how {
            Move::Death { .. } => open.split_at(self.window(&share).len()),
            Move::Revoked => (&open[..0], &open[..]),
        };
        let deaths = share.deaths.saturating_add(1);
        let why = if suspects.is_empty() { "handed back" } else { "its worker died" };
        self.remark(number, by.cloned(), why);
        if matches!(how, Move::Death { limit } if deaths >= *limit) {
            for position in suspects {
                let why = format!("its worker died {deaths} times while it had this line");
                let result = share.unrun(Reason::Poison, &why);
                self.put_result(*position, Some(CommandResult { worker: by.cloned(), ..result }));
            }
        } else if !suspects.is_empty() {
            self.attempt = self.attempt.saturating_add(1);
            let earlier = share.earlier.saturating_add(1);
            let alone = Share::of(self.attempt, suspects, &share);
            shares.push(Share { ahead: Some(1), deaths, earlier, ..alone });
        }
        if !rest.is_empty() {
            self.attempt = self.attempt.saturating_add(1);
            shares.push(Share::of(self.attempt, rest, &share));
        }
        self.close(shares);
        true
    }

    /// Ends lines that nobody runs: those of all shares but these numbers; of a cancel only those that somebody wants
    /// cancelled. False if there are none.
    pub fn end_unheld(&mut self, held: &[u32], reason: Reason, why: &str) -> bool {
        let shares = self.all_shares();
        let mut some = false;
        for share in shares.iter().filter(|share| !held.contains(&share.attempt)) {
            for position in self.open_lines(share) {
                if reason != Reason::Cancelled || self.is_cancelled(position) {
                    self.put_result(position, Some(share.unrun(reason, why)));
                    some = true;
                }
            }
        }
        self.close(shares);
        // A chunk of blank lines ends too.
        some || self.outcome.is_some()
    }

    /// Marks the line at this position as to be cancelled. False if it is over, blank, or marked already.
    pub fn cancel_line(&mut self, position: usize) -> bool {
        if !self.is_open(position) || self.is_cancelled(position) {
            return false;
        }
        self.cancel_lines = Lines::of(self.cancel_lines.below(self.line_count()).chain([position]));
        true
    }

    /// Makes the lines at these positions run once more, whatever became of them. False if none of them is over.
    pub fn rerun(&mut self, positions: &[usize]) -> bool {
        let was_cancelled = self.cancel && self.outcome.is_some();
        let mut shares = self.all_shares();
        let is_over = |position: &usize| self.command_state(*position).is_some();
        let positions: Vec<usize> = positions.iter().copied().filter(is_over).collect();
        if positions.is_empty() {
            return false;
        }
        self.reopen();
        self.cancel &= !was_cancelled;
        let runs =
            |position: &usize| self.results[*position].as_ref().map_or(0, |over| over.attempt.unwrap_or(1));
        let earlier = positions.iter().map(runs).max().unwrap_or(0);
        for position in &positions {
            self.put_result(*position, None);
        }
        trim(&mut self.results);
        for share in &mut shares {
            let stays = |position: &usize| !positions.contains(position);
            share.lines = Lines::of(share.lines.below(self.line_count()).filter(stays));
        }
        self.attempt = self.attempt.saturating_add(1);
        shares.push(Share {
            attempt: self.attempt,
            lines: Lines::of(positions),
            earlier,
            ..Share::default()
        });
        self.close(shares);
        true
    }

    fn put_result(&mut self, position: usize, result: Option<CommandResult>) {
        if self.results.len() <= position {
            self.results.resize(position + 1, None);
        }
        self.results[position] = result;
    }

    /// These shares are left: those without open lines go, and with the last of them the chunk ends.
    fn close(&mut self, mut shares: Vec<Share>) {
        shares.retain(|share| !self.open_lines(share).is_empty());
        self.shares = shares;
        let wanted = self.cancel_lines.below(self.line_count()).filter(|position| self.is_open(*position));
        self.cancel_lines = Lines::of(wanted.collect::<Vec<_>>());
        if self.shares.is_empty() {
            let results = std::mem::take(&mut self.results);
            self.outcome = Some(whole(results, self.attempt));
        }
    }
}

/// The outcome of a chunk of which every line has a result.
fn whole(mut results: Results, attempt: u32) -> Outcome {
    let all = results.iter().flatten().count();
    let ended = |state: State| results.iter().flatten().filter(|result| result.state() == state).count();
    let states = [
        (State::Failed, "failed", Some(Reason::Exit), Some(1)),
        (State::Expired, "expired", None, None),
        (State::Cancelled, "were cancelled", None, None),
    ];
    let worst = states.into_iter().map(|state| (ended(state.0), state)).find(|(count, _)| *count > 0);
    let mut outcome = match worst {
        Some((count, (state, word, reason, exit_code))) => {
            let detail = format!("{count} of {all} commands {word}");
            Outcome { exit_code, ..Outcome::unrun(state, reason, &detail, attempt) }
        }
        None => {
            Outcome { exit_code: Some(0), detail: None, ..Outcome::unrun(State::Done, None, "", attempt) }
        }
    };
    outcome.started_ms = results.iter().flatten().filter_map(|result| result.started_ms).min();
    outcome.ended_ms = results.iter().flatten().filter_map(|result| result.ended_ms).max();
    // Mostly one worker has run all of it.
    outcome.worker = results.iter().flatten().rev().find_map(|result| result.worker.clone());
    for result in results.iter_mut().flatten() {
        result.worker = result.worker.take().filter(|by| Some(by) != outcome.worker.as_ref());
    }
    outcome.results = results;
    outcome
}

#[cfg(test)]
mod tests;

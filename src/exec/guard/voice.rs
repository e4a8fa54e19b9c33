//! What the guard says, said by a thread of its own: nobody may read standard error, or its terminal may stand
//! still, and that must not keep the guard from killing. It is often the very reason why the worker hangs.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::Context;
use crossbeam_channel::{Receiver, Sender, bounded};

use crate::threads;

/// Lines that may wait; further ones are lost.
const WAITING_LINES: usize = 64;
/// How long the end of the guard waits for each step of its last words.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(1);

/// What the thread is given.
#[derive(Debug)]
enum Line {
    Text(Vec<u8>),
    /// All before it is said: to be answered.
    Last(Sender<()>),
}

/// Where the guard's log goes.
#[derive(Clone, Debug)]
pub struct Voice {
    lines: Sender<Line>,
}

impl Voice {
    /// Starts the thread that writes to standard error.
    ///
    /// # Errors
    ///
    /// If there is no room for it.
    pub fn start() -> anyhow::Result<Voice> {
        let (lines, waiting) = bounded(WAITING_LINES);
        threads::spawn("guard-voice", move || say(&waiting)).context("cannot start a thread")?;
        Ok(Voice { lines })
    }

    /// Waits until all is said, for a while.
    pub fn finish(&self) {
        let (said, heard) = bounded(1);
        if self.lines.send_timeout(Line::Last(said), LAST_WORDS_WITHIN).is_ok() {
            let _ = heard.recv_timeout(LAST_WORDS_WITHIN);
        }
    }
}

impl Write for Voice {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        // What does not fit is lost: to wait is what must not happen.
        let _ = self.lines.try_send(Line::Text(text.to_vec()));
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn say(waiting: &Receiver<Line>) {
    for line in waiting {
        match line {
            // Nobody listens: so be it.
            Line::Text(text) => drop(io::stderr().write_all(&text)),
            Line::Last(said) => drop(said.send(())),
        }
    }
}

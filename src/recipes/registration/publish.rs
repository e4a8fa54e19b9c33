//! What the registration says, kept up to date as long as it exists.

use super::{Purpose, Registrar, State, Step};
use crate::contract::worker::Registration;
use crate::machine::{Actions, Call, Instant, Level, Refusal, Reply};

impl Registrar {
    pub(super) fn flush<R>(&mut self, out: &mut Actions<R>) {
        let path = self.path(self.life.n);
        let State::Registered { version, written, writing } = &mut self.state else { return };
        // `since` alone is not worth a write: a first registration's own czxid says the same.
        let mut like_written = self.body.clone();
        like_written.since = written.since;
        let same = **written == like_written;
        if *writing || same {
            return;
        }
        *writing = true;
        let call = Call::Set { path, data: self.body.encode(), version: *version };
        self.calls.issue(out, call, Purpose::Publish(Box::new(self.body.clone())));
    }

    /// The own registration was seen at this version. A foreign write does not change what we do, but a leader
    /// that cannot read it gives out no tasks.
    pub(super) fn mend<R>(&mut self, seen: i32, out: &mut Actions<R>) {
        let path = self.path(self.life.n);
        let State::Registered { version, writing, .. } = &mut self.state else { return };
        // A write of ours that is under way finds the change.
        if *writing || seen <= *version {
            return;
        }
        out.log(Level::Warn, format!("{path} was changed by someone else: writing it again"));
        *version = seen;
        *writing = true;
        let call = Call::Set { path, data: self.body.encode(), version: seen };
        self.calls.issue(out, call, Purpose::Publish(Box::new(self.body.clone())));
    }

    pub(super) fn on_published<R>(
        &mut self,
        body: Box<Registration>,
        result: Result<&Reply, Refusal>,
        now: Instant,
        out: &mut Actions<R>,
    ) -> Step {
        let State::Registered { version, written, writing } = &mut self.state else { return Step::Pending };
        match result {
            Ok(Reply::Stat(stat)) => {
                *version = stat.version;
                *written = body;
                *writing = false;
                self.retry.done(out);
                self.flush(out);
                Step::Pending
            }
            Err(Refusal::NoNode) => self.die("its registration was deleted"),
            Err(Refusal::BadVersion) => self.die("its registration was changed by someone else"),
            // It exists with its earlier content.
            Ok(_) | Err(_) => {
                *writing = false;
                let refusal = result.err().unwrap_or(Refusal::Other(0));
                if refusal == Refusal::TooLarge && self.shorten() {
                    self.flush(out);
                } else {
                    let what = self.with_size(self.path(self.life.n), refusal);
                    self.retry.refused(&what, refusal, now, out);
                }
                Step::Pending
            }
        }
    }

    /// Leaves out what can be left out of a registration that the servers find too long; whether there was anything.
    /// A quarantined task that is not named takes up a slot, and that is all.
    pub(super) fn shorten(&mut self) -> bool {
        let quarantined = self.body.quarantined.len();
        self.body.quarantined.truncate(quarantined / 2);
        quarantined > 0
    }

    /// Adds how long the registration is, and what can be done about that, if it is too long.
    pub(super) fn with_size(&self, what: String, refusal: Refusal) -> String {
        if refusal != Refusal::TooLarge {
            return what;
        }
        let bytes = self.body.encode().len();
        format!("{what} would have {bytes} bytes; fewer or shorter labels take less")
    }
}

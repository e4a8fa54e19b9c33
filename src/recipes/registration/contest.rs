//! Other processes that have our name: checks before we register, waits for them, and checks again after that.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Purpose, RIVAL_GRACE, Registrar, Rivals, State, Step};
use crate::contract::parse_registration;
use crate::contract::worker::{Assignment, Registration};
use crate::machine::{Actions, Call, CreateMode, Instant, Level, Refusal, Reply};

impl Registrar {
    pub(super) fn list<R>(&mut self, recheck: bool, out: &mut Actions<R>) {
        self.calls.clear();
        self.state = State::Listing { recheck, found: BTreeMap::new() };
        self.calls.issue(out, Call::Children { path: self.layout.workers() }, Purpose::List);
    }

    pub(super) fn on_listing<R>(
        &mut self,
        purpose: Purpose,
        result: Result<&Reply, Refusal>,
        now: Instant,
        out: &mut Actions<R>,
    ) -> Step {
        let State::Listing { found, .. } = &mut self.state else { return Step::Pending };
        match (purpose, result) {
            (Purpose::List, Ok(Reply::Children(names))) => {
                for name in names {
                    let Some((incarnation, _)) = parse_registration(name) else { continue };
                    if incarnation.worker() != self.worker || incarnation == self.life.incarnation {
                        continue;
                    }
                    let path = format!("{}/{name}", self.layout.workers());
                    if self.earlier.contains(&incarnation) {
                        self.calls.issue(out, Call::Delete { path, version: None }, Purpose::RemoveEarlier);
                    } else {
                        found.insert(name.clone(), None);
                        self.calls.issue(out, Call::Get { path, watch: false }, Purpose::Read(name.clone()));
                    }
                }
            }
            // A live process has its name by an ephemeral: no process has this one.
            (Purpose::Read(name), Ok(Reply::Data { stat, .. })) if stat.ephemeral_owner == 0 => {
                found.remove(&name);
            }
            (Purpose::Read(name), Ok(Reply::Data { data, stat })) => {
                if let Ok(registration) = Registration::decode(data) {
                    let since = registration.since.unwrap_or(stat.czxid);
                    found.insert(name, Some((registration, since)));
                }
            }
            (Purpose::Read(name), Err(Refusal::NoNode)) => {
                found.remove(&name);
            }
            (_, Err(refusal)) => {
                let path = self.layout.workers();
                self.refused(&path, refusal, now, out);
                return Step::Pending;
            }
            (_, Ok(_)) => {}
        }
        let reads = self.calls.purposes().filter(|p| matches!(p, Purpose::Read(_) | Purpose::List)).count();
        if reads > 0 { Step::Pending } else { self.on_listed(now, out) }
    }

    /// Everyone with our name is known.
    fn on_listed<R>(&mut self, now: Instant, out: &mut Actions<R>) -> Step {
        let State::Listing { recheck, found } = &self.state else { return Step::Pending };
        let found = found.clone();
        if *recheck {
            return self.on_rechecked(&found, out);
        }
        if found.is_empty() {
            self.rivals = None;
            self.state = State::Assigning;
            let path = self.layout.assignment(&self.life.incarnation);
            let data = Assignment::new(0, Vec::new()).encode();
            self.calls.issue(out, Call::Create { path, data, mode: CreateMode::Persistent }, Purpose::Assign);
            return Step::Pending;
        }
        let gone = found.iter().find(|(_, read)| {
            read.as_ref()
                .is_some_and(|(registration, _)| Some(&registration.process) == self.predecessor.as_ref())
        });
        if let Some((name, _)) = gone {
            out.log(
                Level::Info,
                format!("removing the registration {name}: its process is proven to be gone"),
            );
            let path = format!("{}/{name}", self.layout.workers());
            self.calls.issue(out, Call::Delete { path, version: None }, Purpose::RemovePredecessor);
            return Step::Pending;
        }
        self.wait(&found, now, out)
    }

    /// Waits for those who have our name, unless they show that they live.
    fn wait<R>(
        &mut self,
        found: &BTreeMap<String, Option<(Registration, i64)>>,
        now: Instant,
        out: &mut Actions<R>,
    ) -> Step {
        let names: BTreeSet<String> = found.keys().cloned().collect();
        let known = found.values().flatten().next();
        let host = known.map_or_else(|| "an unknown host".to_string(), |(r, _)| r.process.host.clone());
        let pid = known.map_or(0, |(r, _)| r.process.pid);
        if let Some(rivals) = &self.rivals {
            // A dead worker makes no new registration.
            if now >= rivals.until || !names.is_subset(&rivals.names) {
                self.state = State::Yielded;
                return Step::Taken { host, pid };
            }
        } else {
            let longest = found.values().flatten().map(|(r, _)| r.session_timeout_ms).max().unwrap_or(0);
            let until = now + Duration::from_millis(longest) + RIVAL_GRACE;
            let what = format!("{host}, process {pid}");
            out.log(
                Level::Warn,
                format!(
                    "worker {} is still registered by {what}; waiting up to {} s for that session to end",
                    self.worker,
                    until.since(now).as_secs()
                ),
            );
            self.rivals = Some(Rivals { names: names.clone(), until });
        }
        self.state = State::Waiting;
        for name in names {
            let path = format!("{}/{name}", self.layout.workers());
            self.calls.issue(out, Call::Exists { path, watch: true }, Purpose::WatchRival);
        }
        Step::Pending
    }

    /// We are registered; if another of our name was registered before us, it keeps the name.
    fn on_rechecked<R>(
        &mut self,
        found: &BTreeMap<String, Option<(Registration, i64)>>,
        out: &mut Actions<R>,
    ) -> Step {
        let own = self.body.since.unwrap_or(i64::MAX);
        let senior = found.values().flatten().find(|(_, since)| *since < own);
        let Some((senior, _)) = senior else {
            return self.finish(out);
        };
        let (host, pid) = (senior.process.host.clone(), senior.process.pid);
        for path in [self.path(self.life.n), self.layout.assignment(&self.life.incarnation)] {
            self.calls.issue(out, Call::Delete { path, version: Some(0) }, Purpose::Leave);
        }
        self.state = State::Yielded;
        Step::Taken { host, pid }
    }
}

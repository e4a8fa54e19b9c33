//! How the service is: the leader's summary, checked against who leads.
//!
//! The summary outlives its writer. So the contenders are read first and the summary after them: a summary by the
//! first contender is then the present; one by an earlier leader shows that the first has not begun to lead; one
//! by a later leader shows that the contenders changed in between, and they are read again.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::contract::Layout;
use crate::contract::contender::Contender;
use crate::contract::status::Status;
use crate::exit;
use crate::machine::{
    Action, Actions, Call, CallId, CallResult, Calls, Event, Instant, Level, Reply, Role, Routed, if_exists,
};
use crate::roles::client::{ClientReport, INTERRUPTED, StatusReport, refusal_code};

/// Contenders whose ids are read; of the others the names of their znodes have to do.
const MAX_CONTENDERS_READ: usize = 10;

/// How often everything is read again because the leader changed meanwhile.
const MAX_ROUNDS: u32 = 5;

/// The parameters of a question for the status.
#[derive(Clone, Debug, PartialEq)]
pub struct StatusParams {
    /// The paths.
    pub layout: Layout,
    /// What is reported.
    pub form: StatusForm,
    /// The time between two reports; only one report if it is absent.
    pub every: Option<Duration>,
}

/// What is reported of the state of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusForm {
    /// All of it.
    Summary,
    /// The workers.
    Workers,
}

/// A question for the status.
#[derive(Debug)]
pub struct StatusOf {
    layout: Layout,
    form: StatusForm,
    every: Option<Duration>,
    /// When the next report is due, after the last one.
    next: Option<Instant>,
    online: bool,
    rounds: u32,
    over: bool,
    /// Names of all contenders, first the first.
    names: Vec<String>,
    /// What the first few of them say: when they were created, and their ids; by their position.
    read: BTreeMap<usize, (i64, String)>,
    calls: Calls<Purpose>,
}

#[derive(Debug)]
enum Purpose {
    Contenders,
    Contender(usize),
    Status,
}

impl StatusOf {
    /// A question for the status.
    pub fn new(params: StatusParams) -> StatusOf {
        StatusOf {
            layout: params.layout,
            form: params.form,
            every: params.every,
            next: None,
            online: false,
            rounds: 0,
            over: false,
            names: Vec::new(),
            read: BTreeMap::new(),
            calls: Calls::default(),
        }
    }

    fn start(&mut self, out: &mut Actions<ClientReport>) {
        self.calls.clear();
        self.names.clear();
        self.read.clear();
        self.calls.issue(out, Call::Children { path: self.layout.master() }, Purpose::Contenders);
    }

    fn fail(&mut self, code: i32, why: String, out: &mut Actions<ClientReport>) {
        self.over = true;
        out.fail(code, why);
    }

    fn on_reply(&mut self, id: CallId, result: &CallResult, now: Instant, out: &mut Actions<ClientReport>) {
        // Without an answer the connection is gone; everything is read again on the next.
        let Routed::Mine((purpose, Some(answer))) = self.calls.route(id, result) else { return };
        let reply = match if_exists(answer) {
            Ok(reply) => reply,
            Err(refusal) => {
                let why = format!("cannot read the status below {}: {refusal}", self.layout.root());
                return self.fail(refusal_code(refusal), why, out);
            }
        };
        match (purpose, reply) {
            (Purpose::Contenders, Some(Reply::Children(names))) => self.on_contenders(names, out),
            (Purpose::Contenders, None) => self.on_contenders(&[], out),
            (Purpose::Contender(position), Some(Reply::Data { data, stat })) => {
                let id = String::from_utf8_lossy(data).into_owned();
                self.read.insert(position, (stat.czxid, id));
                self.read_status(out);
            }
            // It is gone since the listing.
            (Purpose::Contender(_), None) => self.read_status(out),
            (Purpose::Status, Some(Reply::Data { data, .. })) => match Status::decode(data) {
                Ok(status) => self.answer(Some(status), now, out),
                Err(malformed) => {
                    let path = self.layout.status();
                    out.log(Level::Warn, format!("the znode {path} can't be read as a status: {malformed}"));
                    self.answer(None, now, out);
                }
            },
            (Purpose::Status, None) => self.answer(None, now, out),
            (purpose, Some(reply)) => {
                self.fail(exit::BUG, format!("status: {reply:?} answers {purpose:?}"), out);
            }
        }
    }

    fn on_contenders(&mut self, names: &[String], out: &mut Actions<ClientReport>) {
        // A name that another library made is not in this election's order.
        let mut placed: Vec<Contender<'_>> = names.iter().filter_map(|name| Contender::parse(name)).collect();
        placed.sort_unstable();
        self.names = placed.into_iter().map(|contender| contender.name.to_string()).collect();
        for (position, name) in self.names.iter().take(MAX_CONTENDERS_READ).enumerate() {
            let path = format!("{}/{name}", self.layout.master());
            self.calls.issue(out, Call::Get { path, watch: false }, Purpose::Contender(position));
        }
        self.read_status(out);
    }

    fn read_status(&mut self, out: &mut Actions<ClientReport>) {
        if self.calls.is_empty() {
            self.calls.issue(out, Call::Get { path: self.layout.status(), watch: false }, Purpose::Status);
        }
    }

    fn answer(&mut self, status: Option<Status>, now: Instant, out: &mut Actions<ClientReport>) {
        let first = self.read.values().next().map(|(czxid, _)| *czxid);
        let written = status.as_ref().map(|status| status.leader.epoch);
        self.rounds += 1;
        if written > first && self.rounds < MAX_ROUNDS && first.is_some() {
            return self.start(out);
        }
        let contenders = self.names.iter().enumerate();
        let contenders = contenders.filter_map(|(position, name)| match self.read.get(&position) {
            Some((_, id)) => Some(id.clone()),
            None if position < MAX_CONTENDERS_READ => None,
            None => Some(name.clone()),
        });
        let report = StatusReport {
            current: first.is_some() && written == first,
            contenders: contenders.collect(),
            status,
        };
        let form = match self.form {
            StatusForm::Summary => ClientReport::Status,
            StatusForm::Workers => ClientReport::Workers,
        };
        out.push(Action::Report(form(Box::new(report))));
        self.rounds = 0;
        self.next = self.every.map(|every| now + every);
        if self.next.is_none() {
            self.over = true;
            out.push(Action::Exit(exit::OK));
        }
    }
}

impl Role for StatusOf {
    type Report = ClientReport;

    fn step(&mut self, now: Instant, event: Event, out: &mut Actions<ClientReport>) {
        if self.over {
            return;
        }
        match event {
            Event::Connected { .. } => {
                (self.online, self.next) = (true, None);
                self.start(out);
            }
            Event::Lost { .. } => {
                (self.online, self.next) = (false, None);
                self.calls.clear();
            }
            Event::Reply { id, result } => self.on_reply(id, &result, now, out),
            // That is how its user ends it.
            Event::Stop { .. } if self.every.is_some() => {
                self.over = true;
                out.push(Action::Exit(INTERRUPTED));
            }
            Event::Stop { .. } => self.fail(INTERRUPTED, "interrupted".to_string(), out),
            Event::Changed { .. }
            | Event::Wake
            | Event::Started { .. }
            | Event::NotStarted { .. }
            | Event::Ended { .. }
            | Event::SlotsLost { .. }
            | Event::Lines(_) => {}
        }
        if self.online && self.next.is_some_and(|next| next <= now) {
            self.next = None;
            self.start(out);
        }
    }

    fn next_wake(&self) -> Option<Instant> {
        self.next
    }

    fn assert_invariants(&self) {
        assert!(self.read.len() <= MAX_CONTENDERS_READ, "too many contenders read");
    }
}

//! Which elections there are, and who leads each: the masters' election, and those of electors below `elections`.
//!
//! An election is a directory with contenders, or an empty one. Any directory may have further elections in it.

use std::collections::BTreeMap;

use crate::contract::Layout;
use crate::contract::contender::Contender;
use crate::exit;
use crate::machine::{
    Action, Actions, Call, CallId, CallResult, Calls, Event, Instant, Level, Refusal, Reply, Role, Routed,
    if_exists,
};
use crate::roles::client::{ClientReport, ElectionRow, FirstContender, INTERRUPTED, Tally, refusal_code};

/// Directories that are read at a time.
const MAX_READS: usize = 64;

/// Most directories that are read. There is one for each service that an elector guards.
const MAX_DIRS: usize = 10_000;

/// What a directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The masters' election, which has no others in it.
    Masters,
    /// The directory of all others.
    Top,
    /// An election, or a directory of elections.
    Inner,
    /// It is beside contenders, so it may be one of another library.
    BesideContenders,
}

/// The parameters of a question for the elections.
#[derive(Clone, Debug, PartialEq)]
pub struct ElectionsParams {
    /// The paths.
    pub layout: Layout,
}

/// A question for the elections.
#[derive(Debug)]
pub struct Elections {
    layout: Layout,
    over: bool,
    /// Directories to be read.
    unread: BTreeMap<String, Kind>,
    /// Directories whose read was begun.
    begun: usize,
    rows: BTreeMap<String, ElectionRow>,
    calls: Calls<Purpose>,
    tally: Tally,
}

#[derive(Debug)]
enum Purpose {
    Dir(String, Kind),
    First(ElectionRow),
}

impl Elections {
    /// A question for the elections.
    pub fn new(params: ElectionsParams) -> Elections {
        Elections {
            layout: params.layout,
            over: false,
            unread: BTreeMap::new(),
            begun: 0,
            rows: BTreeMap::new(),
            calls: Calls::default(),
            tally: Tally::default(),
        }
    }

    fn start(&mut self, out: &mut Actions<ClientReport>) {
        *self = Elections::new(ElectionsParams { layout: self.layout.clone() });
        self.unread = [(self.layout.master(), Kind::Masters), (self.layout.elections(), Kind::Top)].into();
        self.pump(out);
    }

    fn on_reply(&mut self, id: CallId, result: &CallResult, out: &mut Actions<ClientReport>) {
        // Without an answer the connection is gone; everything is read again on the next.
        let Routed::Mine((purpose, Some(answer))) = self.calls.route(id, result) else { return };
        match (purpose, if_exists(answer)) {
            (Purpose::Dir(path, kind), Ok(Some(Reply::Children(names)))) => {
                self.on_names(path, kind, names, out);
            }
            (Purpose::First(mut row), Ok(reply)) => {
                // Else it is gone since its directory was listed, and who leads is not known.
                if let Some(Reply::Data { data, stat }) = reply {
                    let id = String::from_utf8_lossy(data).into_owned();
                    row.first = Some(FirstContender { id, created_ms: stat.ctime_ms, epoch: stat.czxid });
                }
                self.rows.insert(row.path.clone(), row);
            }
            (Purpose::Dir(..), Ok(_)) => {}
            (Purpose::Dir(path, _) | Purpose::First(ElectionRow { path, .. }), Err(refusal)) => {
                self.on_unreadable(&path, refusal, out);
            }
        }
        self.pump(out);
    }

    fn on_names(&mut self, path: String, kind: Kind, names: &[String], out: &mut Actions<ClientReport>) {
        let contenders = names.iter().filter_map(|name| Contender::parse(name));
        let row =
            ElectionRow { path: path.clone(), first: None, contenders: contenders.clone().count() as u64 };
        let below = if row.contenders > 0 { Kind::BesideContenders } else { Kind::Inner };
        if kind != Kind::Masters {
            let others = names.iter().filter(|name| Contender::parse(name).is_none());
            self.unread.extend(others.map(|name| (format!("{path}/{name}"), below)));
        }
        if let Some(first) = contenders.min() {
            let call = Call::Get { path: format!("{path}/{}", first.name), watch: false };
            self.calls.issue(out, call, Purpose::First(row));
        } else if kind == Kind::Masters || (kind == Kind::Inner && names.is_empty()) {
            self.rows.insert(path, row);
        }
    }

    fn on_unreadable(&mut self, path: &str, refusal: Refusal, out: &mut Actions<ClientReport>) {
        out.log(Level::Warn, format!("cannot read the election {path}: {refusal}"));
        self.tally.wrong(refusal_code(refusal));
    }

    /// Reads further directories; at the end reports all.
    fn pump(&mut self, out: &mut Actions<ClientReport>) {
        while self.calls.len() < MAX_READS && self.begun < MAX_DIRS {
            let Some((path, kind)) = self.unread.pop_first() else { break };
            self.begun += 1;
            self.calls.issue(out, Call::Children { path: path.clone() }, Purpose::Dir(path, kind));
        }
        if !self.calls.is_empty() {
            return;
        }
        if !self.unread.is_empty() {
            let left = self.unread.len();
            out.log(Level::Warn, format!("{left} directories of elections and more were not read"));
            self.tally.wrong(exit::FAILED);
        }
        self.over = true;
        for (_, row) in std::mem::take(&mut self.rows) {
            out.push(Action::Report(ClientReport::Election(Box::new(row))));
        }
        out.push(Action::Exit(self.tally.code()));
    }
}

impl Role for Elections {
    type Report = ClientReport;

    fn step(&mut self, _now: Instant, event: Event, out: &mut Actions<ClientReport>) {
        if self.over {
            return;
        }
        match event {
            Event::Connected { .. } => self.start(out),
            Event::Lost { .. } => self.calls.clear(),
            Event::Reply { id, result } => self.on_reply(id, &result, out),
            Event::Stop { .. } => {
                self.over = true;
                out.fail(INTERRUPTED, "interrupted".to_string());
            }
            Event::Changed { .. }
            | Event::Wake
            | Event::Started { .. }
            | Event::NotStarted { .. }
            | Event::Ended { .. }
            | Event::SlotsLost { .. }
            | Event::Lines(_) => {}
        }
    }

    fn next_wake(&self) -> Option<Instant> {
        None
    }

    fn assert_invariants(&self) {
        assert!(self.calls.len() <= MAX_READS && self.begun <= MAX_DIRS, "too many elections are read");
    }
}

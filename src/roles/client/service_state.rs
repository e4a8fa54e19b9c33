//! The state of the service as a client sees it: who leads, and the leader's summary.
//!
//! The order of the reads matters. The contenders are read first, then the first of them, and the summary last. So a
//! summary of the first contender is the present, and so is one of a later leader: then the contenders have changed
//! since they were read.

use crate::contract::Layout;
use crate::contract::contender::Contender;
use crate::contract::status::Status;
use crate::machine::{Actions, Call, CallId, CallResult, Calls, Refusal, Reply, Routed, if_exists};

/// The state of the service.
#[derive(Clone, Debug, PartialEq)]
pub enum ServiceState {
    /// It may not be read.
    Unreadable(Refusal),
    /// There is no contender.
    NoMaster,
    /// The first contender has written no summary.
    NoLeader,
    /// The leader's summary.
    Led(Box<Status>),
}

/// Reads the state of the service: three reads, one after the other.
#[derive(Debug)]
pub struct ServiceReader {
    layout: Layout,
    calls: Calls<Purpose>,
}

#[derive(Debug)]
enum Purpose {
    Contenders,
    /// When the first contender was created: by that it is known whether the summary is its own.
    First,
    Status {
        first: i64,
    },
}

impl ServiceReader {
    /// For this service.
    pub fn new(layout: &Layout) -> ServiceReader {
        ServiceReader { layout: layout.clone(), calls: Calls::default() }
    }

    /// Begins the reads, on a connection that is up.
    pub fn start<R>(&mut self, out: &mut Actions<R>) {
        self.calls.clear();
        self.calls.issue(out, Call::Children { path: self.layout.master() }, Purpose::Contenders);
    }

    /// Whether a reply is awaited.
    pub fn is_reading(&self) -> bool {
        !self.calls.is_empty()
    }

    /// Nothing is awaited any more.
    pub fn clear(&mut self) {
        self.calls.clear();
    }

    /// Takes in a reply; gives the state after the last one. If the connection breaks, nothing follows.
    pub fn on_reply<R>(
        &mut self,
        id: CallId,
        result: &CallResult,
        out: &mut Actions<R>,
    ) -> Routed<Option<ServiceState>> {
        self.calls.route(id, result).map(|(purpose, answer)| match if_exists(answer?) {
            Ok(reply) => self.go_on(purpose, reply, out),
            Err(refusal) => Some(ServiceState::Unreadable(refusal)),
        })
    }

    fn go_on<R>(
        &mut self,
        purpose: Purpose,
        reply: Option<&Reply>,
        out: &mut Actions<R>,
    ) -> Option<ServiceState> {
        match (purpose, reply) {
            (Purpose::Contenders, Some(Reply::Children(names))) => {
                let Some(first) = names.iter().filter_map(|name| Contender::parse(name)).min() else {
                    return Some(ServiceState::NoMaster);
                };
                let path = format!("{}/{}", self.layout.master(), first.name);
                self.calls.issue(out, Call::Exists { path, watch: false }, Purpose::First);
                None
            }
            (Purpose::Contenders, _) => Some(ServiceState::NoMaster),
            (Purpose::First, Some(Reply::Stat(stat))) => {
                let call = Call::Get { path: self.layout.status(), watch: false };
                self.calls.issue(out, call, Purpose::Status { first: stat.czxid });
                None
            }
            (Purpose::Status { first }, Some(Reply::Data { data, .. })) => Some(match Status::decode(data) {
                Ok(status) if status.leader.epoch >= first => ServiceState::Led(Box::new(status)),
                Ok(_) | Err(_) => ServiceState::NoLeader,
            }),
            (Purpose::First | Purpose::Status { .. }, _) => Some(ServiceState::NoLeader),
        }
    }
}

//! What a submitter does on each session before it creates anything. With credentials, it checks whether the service
//! can use what is created with them. Then it creates its mark, if it needs one.
//!
//! What we make with credentials is for these alone. In a service that works without, masters could not read our task,
//! and a shared job that we were the first to need would be closed to everybody else for ever.
//!
//! The mark of a waiting submitter is an ephemeral. By its end the leader learns that the tasks are orphaned. Each
//! session makes a mark of its own, under a number that was never used; the mark of the session before may still exist
//! then, so there is no gap that only the leader's patience covers. A mark that somebody deletes is made again, under a
//! new number.
//!
//! A submitter with a key has the same id in each life, since the id follows from the key. So a repeated submit adopts
//! the tasks of an earlier life, and as long as one of them waits nothing is orphaned.

use crate::contract::Layout;
use crate::machine::{
    Actions, Call, CallId, CallResult, Calls, ChangeKind, CreateMode, Level, Refusal, Reply, Routed,
    WatchMode,
};
use crate::recipes::ensure::{self, Ensure};

/// One submitter's mark, or the absence of one.
#[derive(Debug)]
pub struct Mark {
    layout: Layout,
    credentials: Credentials,
    /// Who we are, if we may have a mark.
    id: Option<String>,
    /// What makes the numbers of this life differ from those of any other with the same id.
    life: String,
    n: u64,
    need: Need,
    ensure: Ensure,
    calls: Calls<Purpose>,
    /// A mark was created in this session, so its submitter waits for none.
    made: bool,
}

/// Whether the service can use what is created with our credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Credentials {
    /// We have some, and this is not known yet.
    Unchecked,
    /// It can, or we have none.
    Usable,
}

/// Whether a mark has to exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// No task names it.
    None,
    /// A task of an earlier life names it. It is created on each session.
    Adopted,
    /// Our own tasks name it. It is created on each session.
    Ours,
}

#[derive(Debug)]
enum Purpose {
    /// Reads who may create below this.
    ReadAcl(String),
    Create,
    Watch,
}

/// What a reply meant for [`Mark`] led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// More replies are awaited, or the connection is gone.
    Pending,
    /// Others may begin: the mark exists, or there is none to create.
    Ready,
    /// The service works without credentials; why that will not do, and what will.
    Unfit(String),
    /// The mark can't be made.
    Refused(Refusal),
}

impl Mark {
    /// The mark of a submitter in the life of this ULID. What follows from its key, if it has one, is its id. It is
    /// made if it is asked for, or if a task that was submitted before turns out to name it.
    pub fn new(layout: &Layout, ulid: &str, key: Option<String>, asked_for: bool, credentials: bool) -> Mark {
        let life = if key.is_some() { format!("{ulid}.") } else { String::new() };
        Mark {
            layout: layout.clone(),
            credentials: if credentials { Credentials::Unchecked } else { Credentials::Usable },
            id: key.or_else(|| asked_for.then(|| ulid.to_string())),
            life,
            n: 0,
            need: if asked_for { Need::Ours } else { Need::None },
            ensure: Ensure::new([layout.submitters()]),
            calls: Calls::default(),
            made: false,
        }
    }

    /// What our tasks have to name, if they are to be cancelled when we are gone.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref().filter(|_| self.need == Need::Ours)
    }

    /// A task that we wait for names this submitter: if it is an earlier life of ours, it must not count as gone.
    pub fn adopt<R>(&mut self, submitter: Option<&String>, out: &mut Actions<R>) {
        if self.need == Need::None && submitter.is_some() && submitter == self.id.as_ref() {
            self.need = Need::Adopted;
            self.n += 1;
            self.create(out);
        }
    }

    /// A new session is up: checks the ACL, and creates the mark.
    pub fn on_connected<R>(&mut self, out: &mut Actions<R>) -> Step {
        self.on_lost();
        if self.credentials == Credentials::Unchecked {
            self.read_acl(self.layout.tasks(), out);
            return Step::Pending;
        }
        self.begin(out)
    }

    fn read_acl<R>(&mut self, path: String, out: &mut Actions<R>) {
        self.calls.issue(out, Call::Acl { path: path.clone() }, Purpose::ReadAcl(path));
    }

    fn on_acl<R>(&mut self, path: &str, answer: Result<&Reply, Refusal>, out: &mut Actions<R>) -> Step {
        match answer {
            Ok(Reply::Acl { open: true }) => {
                return Step::Unfit(format!(
                    "anybody may create tasks below {path}, so this service works without credentials: its masters \
                     and workers could not read what is made with --auth. Nothing was submitted. Leave out --auth \
                     (also ZKMW_AUTH, or auth in the file), or give all masters, workers and clients the same"
                ));
            }
            Err(Refusal::NoNode) if path != self.layout.root() => {
                self.read_acl(self.layout.root().to_string(), out);
                return Step::Pending;
            }
            // A submitter that may not read the ACL may not create either, and learns that when it tries. Without a
            // root, the first submitter creates it.
            Ok(_) | Err(_) => self.credentials = Credentials::Usable,
        }
        self.begin(out)
    }

    /// Makes the mark, if there is one to make.
    fn begin<R>(&mut self, out: &mut Actions<R>) -> Step {
        if self.need == Need::None {
            return Step::Ready;
        }
        self.n += 1;
        self.create(out);
        Step::Pending
    }

    /// The session is gone.
    pub fn on_lost(&mut self) {
        self.calls.clear();
        self.ensure.reset();
        self.made = false;
    }

    /// Takes in a change of a watched znode.
    pub fn on_changed<R>(&mut self, path: &str, kind: ChangeKind, out: &mut Actions<R>) -> Routed<()> {
        if self.path().as_deref() != Some(path) {
            return Routed::NotMine;
        }
        if kind == ChangeKind::Deleted {
            out.log(Level::Warn, format!("{path} was deleted by someone else: making another"));
            self.n += 1;
            self.create(out);
        }
        Routed::Mine(())
    }

    /// Takes in a reply.
    pub fn on_reply<R>(&mut self, id: CallId, result: &CallResult, out: &mut Actions<R>) -> Routed<Step> {
        if let Routed::Mine(step) = self.ensure.on_reply(id, result, out) {
            return Routed::Mine(self.on_ensured(step, out));
        }
        self.calls.route(id, result).map(|(purpose, answer)| match (purpose, answer) {
            (_, None) => Step::Pending,
            (Purpose::ReadAcl(path), Some(answer)) => self.on_acl(&path, answer, out),
            (Purpose::Create, Some(Ok(_))) => self.on_created(out),
            (Purpose::Watch, Some(Ok(_))) => Step::Pending,
            (Purpose::Create | Purpose::Watch, Some(Err(refusal))) => self.on_refused(refusal, out),
        })
    }

    fn on_ensured<R>(&mut self, step: ensure::Step, out: &mut Actions<R>) -> Step {
        match step {
            ensure::Step::Pending => Step::Pending,
            ensure::Step::Done => {
                self.create(out);
                Step::Pending
            }
            ensure::Step::Refused(_, refusal) => Step::Refused(refusal),
        }
    }

    fn on_created<R>(&mut self, out: &mut Actions<R>) -> Step {
        let Some(path) = self.path() else { return Step::Pending };
        self.calls.issue(out, Call::Watch { path, mode: WatchMode::Tree }, Purpose::Watch);
        if std::mem::replace(&mut self.made, true) { Step::Pending } else { Step::Ready }
    }

    fn on_refused<R>(&mut self, refusal: Refusal, out: &mut Actions<R>) -> Step {
        if refusal == Refusal::NoNode {
            self.ensure.start(out);
            return Step::Pending;
        }
        if !self.made {
            return Step::Refused(refusal);
        }
        // Its submitter waits already: the leader cancels what it waits for, if nobody mends that.
        let path = self.path().unwrap_or_default();
        out.log(Level::Warn, format!("{path}: {refusal}; the leader takes this submitter for gone"));
        Step::Pending
    }

    fn create<R>(&mut self, out: &mut Actions<R>) {
        if let Some(path) = self.path() {
            let call = Call::Create { path, data: Vec::new(), mode: CreateMode::Ephemeral };
            self.calls.issue(out, call, Purpose::Create);
        }
    }

    fn path(&self) -> Option<String> {
        Some(self.layout.submitter(self.id.as_ref()?, &format!("{}{}", self.life, self.n)))
    }
}

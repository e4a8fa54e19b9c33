//! Whether what was seen on real servers is what the model says, up to the names of transactions and sessions.

use std::collections::BTreeMap;
use std::fmt::Debug;

use zkmw::machine::{Reply, Stat};

use super::script::{Script, Seen};

/// The first difference, if there is one.
pub fn compare(script: &Script, real: &[Seen]) -> Result<(), String> {
    let mut names = Names::default();
    for (at, (step, (model, real))) in script.steps.iter().zip(script.seen.iter().zip(real)).enumerate() {
        if let Err(why) = names.same(model, real) {
            let before: Vec<_> = script.steps[at.saturating_sub(8)..at].iter().collect();
            return Err(format!(
                "step {at} {step:?}: {why}\n  model: {model:?}\n  real:  {real:?}\n  before: {before:?}"
            ));
        }
    }
    Ok(())
}

/// The real number for each number of the model's.
#[derive(Default)]
struct Names {
    zxids: BTreeMap<i64, i64>,
    times: BTreeMap<i64, i64>,
    sessions: BTreeMap<i64, i64>,
}

fn equal<T: PartialEq + Debug>(what: &str, model: T, real: T) -> Result<(), String> {
    if model == real { Ok(()) } else { Err(format!("{what}: the model has {model:?}, the servers {real:?}")) }
}

/// Each number of the model's has one real number, and in the same order. With `ties`, different numbers of the model's
/// may have the same one.
fn ordered(
    what: &str,
    pairs: &mut BTreeMap<i64, i64>,
    model: i64,
    real: i64,
    ties: bool,
) -> Result<(), String> {
    let before = pairs.range(..model).next_back();
    let after = pairs.range(model + 1..).next();
    let fits = |lower: i64, higher: i64| lower < higher || (ties && lower == higher);
    if before.is_some_and(|(_, other)| !fits(*other, real))
        || after.is_some_and(|(_, other)| !fits(real, *other))
    {
        return Err(format!(
            "{what} {real:#x} is not where the model has {model:#x}: {before:x?}, {after:x?}"
        ));
    }
    equal(what, *pairs.entry(model).or_insert(real), real)
}

impl Names {
    fn same(&mut self, model: &Seen, real: &Seen) -> Result<(), String> {
        match (model, real) {
            (Seen::Reply(Ok(model)), Seen::Reply(Ok(real))) => self.same_reply(model, real),
            (model, real) => equal("outcome", model, real),
        }
    }

    fn same_reply(&mut self, model: &Reply, real: &Reply) -> Result<(), String> {
        match (model, real) {
            (Reply::Stat(model), Reply::Stat(real)) => self.same_stat(model, real),
            (Reply::Data { data, stat }, Reply::Data { data: real, stat: real_stat }) => {
                equal("data", data, real)?;
                self.same_stat(stat, real_stat)
            }
            (Reply::Children(model), Reply::Children(real)) => {
                let (mut model, mut real) = (model.clone(), real.clone());
                model.sort();
                real.sort();
                equal("children", model, real)
            }
            (model, real) => equal("reply", model, real),
        }
    }

    fn same_stat(&mut self, model: &Stat, real: &Stat) -> Result<(), String> {
        equal("version", model.version, real.version)?;
        equal("length", model.data_length, real.data_length)?;
        equal("number of children", model.num_children, real.num_children)?;
        for (what, model, real) in [
            ("czxid", model.czxid, real.czxid),
            ("mzxid", model.mzxid, real.mzxid),
            ("pzxid", model.pzxid, real.pzxid),
        ] {
            ordered(what, &mut self.zxids, model, real, false)?;
        }
        ordered("ctime", &mut self.times, model.ctime_ms, real.ctime_ms, true)?;
        ordered("mtime", &mut self.times, model.mtime_ms, real.mtime_ms, true)?;
        self.same_session(model.ephemeral_owner, real.ephemeral_owner)
    }

    fn same_session(&mut self, model: i64, real: i64) -> Result<(), String> {
        equal("whether it is ephemeral", model == 0, real == 0)?;
        if self.sessions.iter().any(|(other, named)| *other != model && *named == real) {
            return Err(format!("session {real:#x} is two"));
        }
        equal("session", *self.sessions.entry(model).or_insert(real), real)
    }
}

//! Tests of the configuration as a whole, without the process's arguments, environment or files.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::assemble::{Host, load_on};
use super::*;
use crate::exit;

mod arguments;
mod layers;
mod values;

/// What a call of `zkmw` would find.
#[derive(Default)]
struct World {
    args: Vec<OsString>,
    env: BTreeMap<String, OsString>,
    file: Option<tempfile::NamedTempFile>,
    uid: u32,
}

/// A call with these arguments, cut at spaces.
fn zkmw(args: &str) -> World {
    let words = args.split(' ').filter(|w| !w.is_empty()).map(OsString::from);
    World { args: std::iter::once("zkmw".into()).chain(words).collect(), uid: 1000, ..World::default() }
}

impl World {
    fn arg(mut self, arg: impl Into<OsString>) -> World {
        self.args.push(arg.into());
        self
    }

    fn env(mut self, name: &str, value: impl Into<OsString>) -> World {
        self.env.insert(name.to_owned(), value.into());
        self
    }

    fn file(mut self, text: &str) -> World {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(text.as_bytes()).expect("a written file");
        self.file = Some(file);
        self
    }

    fn path(&self) -> &Path {
        self.file.as_ref().map_or(Path::new("/nonexistent/zkmw.toml"), |f| f.path())
    }

    fn load(&self) -> Result<Config, ConfigError> {
        let host = Host { name: "host7".to_owned(), pid: 42, uid: self.uid, cores: 6 };
        load_on(&host, self.args.iter().cloned(), &|name| self.env.get(name).cloned(), self.path())
    }

    #[track_caller]
    fn ok(&self) -> Config {
        self.load().unwrap_or_else(|e| panic!("{:?}: {e}", self.args))
    }

    /// The exit code and the message, with the file's path as FILE.
    #[track_caller]
    fn err(&self) -> (i32, String) {
        match self.load() {
            Ok(config) => panic!("{:?} is taken for {config:?}", self.args),
            Err(e) => {
                assert!(!e.to_stdout);
                assert!(e.message.starts_with("zkmw: "), "{e}");
                (e.exit_code, e.message.replace(&*self.path().to_string_lossy(), "FILE"))
            }
        }
    }

    #[track_caller]
    fn fails(&self, exit_code: i32, message: &str) {
        assert_eq!(self.err(), (exit_code, message.to_owned()));
    }

    /// As `fails`, for messages that begin so.
    #[track_caller]
    fn fails_with(&self, exit_code: i32, part: &str) {
        let (code, message) = self.err();
        assert!(message.contains(part), "{message:?} does not contain {part:?}");
        assert_eq!(code, exit_code, "{message}");
    }

    #[track_caller]
    fn worker(&self) -> WorkerConfig {
        match self.ok().command {
            Command::Worker(worker) => worker,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn submit(&self) -> SubmitConfig {
        match self.ok().command {
            Command::Submit(submit) => submit,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn elector(&self) -> ElectorConfig {
        match self.ok().command {
            Command::Elector(elector) => elector,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn list(&self) -> ListConfig {
        match self.ok().command {
            Command::List(list) => list,
            other => panic!("{other:?}"),
        }
    }
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
}

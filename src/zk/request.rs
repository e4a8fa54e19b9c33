//! One call: checked before the crate sees it, made, and its answer put into our own words.
//!
//! Pure but for [`make`], which blocks until the server answers or the connection is killed.

use std::panic::{AssertUnwindSafe, catch_unwind};

use zookeeper::{Acl, Permission, ZkError};

use super::PATH_MAX;
use super::client::Client;
use crate::machine::{Call, CallError, CallResult, CreateMode, Refusal, Reply, Stat, WatchMode};

/// More data than this is refused. A server's own limit (`jute.maxbuffer`) is 1,048,575 bytes for the whole
/// request, and it answers a larger one by hanging up, which fails every other call in flight.
pub const DATA_MAX: usize = 1_000_000;

/// What a request has besides the path below the chroot and the data: its header, the lengths, the ACL, the flags.
const OVERHEAD: usize = 64;
/// A write of less is not suspected of having cost a connection: no server has so low a limit.
const SUSPECT_MIN: usize = 4 * 1024;

/// A write that is so long that a server may have a limit below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LargeWrite {
    /// The length of its request; no less than it is.
    pub length: usize,
    /// The znode.
    pub path: String,
}

impl LargeWrite {
    /// The call as one, if it is.
    pub fn of(call: &Call, chroot_length: usize) -> Option<LargeWrite> {
        let (Call::Create { path, data, .. } | Call::Set { path, data, .. }) = call else { return None };
        let length = chroot_length + path.len() + data.len() + OVERHEAD;
        (length >= SUSPECT_MIN).then(|| LargeWrite { length, path: path.clone() })
    }
}

/// Refuses what would harm the connection, or escape the chroot.
pub fn check(call: &Call) -> Result<(), Refusal> {
    if !is_valid_path(call.path()) {
        return Err(Refusal::BadArguments);
    }
    match call {
        Call::Create { data, .. } | Call::Set { data, .. } if data.len() > DATA_MAX => Err(Refusal::TooLarge),
        // ZooKeeper takes -1 as "any version". We never mean that.
        Call::Set { version, .. } | Call::Delete { version: Some(version), .. } if *version < 0 => {
            Err(Refusal::BadArguments)
        }
        Call::Create { path, .. } | Call::Delete { path, .. } if path == "/" => Err(Refusal::BadArguments),
        // The crate's client loses the events of a recursive watch on the root.
        Call::Watch { path, mode: WatchMode::Tree } if path == "/" => Err(Refusal::BadArguments),
        _ => Ok(()),
    }
}

/// ZooKeeper's own rules (`PathUtils.validatePath`), and a length.
pub fn is_valid_path(path: &str) -> bool {
    if path == "/" {
        return true;
    }
    let Some(components) = path.strip_prefix('/') else { return false };
    path.len() <= PATH_MAX
        && path.chars().all(is_valid_char)
        && components.split('/').all(|component| !matches!(component, "" | "." | ".."))
}

fn is_valid_char(char: char) -> bool {
    // Java sees UTF-16: what lies beyond U+FFFF are surrogates there (U+D800 to U+DFFF), which are forbidden.
    !matches!(char, '\0'..='\x1f' | '\x7f'..='\u{9f}' | '\u{e000}'..='\u{f8ff}' | '\u{fff0}'..)
}

/// Why a call has no answer, and its connection can't be trusted any more.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    #[error("a call failed: {0:?}")]
    Failed(ZkError),
    #[error("a call panicked: malformed answer")]
    Panicked,
}

/// Makes the call and waits for its end.
pub fn make(client: &Client, call: Call) -> Result<CallResult, Unanswered> {
    let is_watch = matches!(call, Call::Watch { .. });
    // The crate unwraps what it reads from the server, on the caller's thread too.
    let came = catch_unwind(AssertUnwindSafe(|| perform(client, call)));
    client.came_back();
    match came {
        Ok(Ok(reply)) => Ok(Ok(reply)),
        Ok(Err(error)) => match refusal(error, is_watch) {
            Some(refusal) => Ok(Err(CallError::Refused(refusal))),
            None => Err(Unanswered::Failed(error)),
        },
        Err(_) => Err(Unanswered::Panicked),
    }
}

fn perform(client: &Client, call: Call) -> Result<Reply, ZkError> {
    let zk = client.zookeeper();
    Ok(match call {
        Call::Create { path, data, mode } => {
            Reply::Created { path: zk.create(&path, data, client.acl.clone(), crate_mode(mode))? }
        }
        Call::Set { path, data, version } => {
            Reply::Stat(stat_from(&zk.set_data(&path, data, Some(version))?))
        }
        Call::Delete { path, version } => {
            zk.delete(&path, version)?;
            Reply::Deleted
        }
        Call::Get { path, watch } => {
            let (data, stat) = zk.get_data(&path, watch && !client.is_watched(&path))?;
            Reply::Data { data, stat: stat_from(&stat) }
        }
        Call::Exists { path, watch } => {
            let stat = zk.exists(&path, watch && !client.is_watched(&path))?.ok_or(ZkError::NoNode)?;
            Reply::Stat(stat_from(&stat))
        }
        Call::Children { path } => Reply::Children(zk.get_children(&path, false)?),
        Call::Acl { path } => {
            let (acl, _) = zk.get_acl(&path)?;
            let for_all = |entry: &Acl| entry.scheme == "world" && entry.perms.can(Permission::CREATE);
            Reply::Acl { open: acl.iter().any(for_all) }
        }
        Call::Watch { path, mode } => {
            client.watch(&path, mode)?;
            Reply::Watching
        }
    })
}

fn crate_mode(mode: CreateMode) -> zookeeper::CreateMode {
    match mode {
        CreateMode::Persistent => zookeeper::CreateMode::Persistent,
        CreateMode::Ephemeral => zookeeper::CreateMode::Ephemeral,
        CreateMode::EphemeralSequential => zookeeper::CreateMode::EphemeralSequential,
    }
}

fn stat_from(stat: &zookeeper::Stat) -> Stat {
    Stat {
        czxid: stat.czxid,
        mzxid: stat.mzxid,
        ctime_ms: stat.ctime,
        mtime_ms: stat.mtime,
        version: stat.version,
        ephemeral_owner: stat.ephemeral_owner,
        data_length: stat.data_length,
        num_children: stat.num_children,
        pzxid: stat.pzxid,
    }
}

/// Whether it is an answer of the server's, and no sign that the connection is broken.
pub fn is_answer(error: ZkError) -> bool {
    refusal(error, false).is_some()
}

/// What the server refused; `None` if the error says nothing about the call, but that the connection is broken.
fn refusal(error: ZkError, is_watch: bool) -> Option<Refusal> {
    Some(match error {
        ZkError::NoNode => Refusal::NoNode,
        ZkError::NodeExists => Refusal::NodeExists,
        ZkError::BadVersion => Refusal::BadVersion,
        ZkError::NotEmpty => Refusal::NotEmpty,
        ZkError::NoAuth => Refusal::NoAuth,
        ZkError::NoChildrenForEphemerals => Refusal::NoChildrenForEphemerals,
        ZkError::BadArguments => Refusal::BadArguments,
        // The crate also says this for every code that it does not know (a quota that is exceeded, a request
        // that was throttled). Only watches are newer than the oldest server that we meet.
        ZkError::Unimplemented if is_watch => Refusal::Unimplemented,
        ZkError::Unimplemented
        | ZkError::AuthFailed
        | ZkError::InvalidACL
        | ZkError::EphemeralOnLocalSession
        | ZkError::NotReadOnly
        | ZkError::NoWatcher => Refusal::Other(error as i32),
        ZkError::ConnectionLoss
        | ZkError::SessionExpired
        | ZkError::SessionMoved
        | ZkError::MarshallingError
        | ZkError::OperationTimeout
        | ZkError::SystemError
        | ZkError::RuntimeInconsistency
        | ZkError::DataInconsistency
        | ZkError::APIError
        | ZkError::InvalidCallback => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_zookeeper() {
        for good in ["/", "/a", "/a/b", "/a b/ü/中", "/a/..b/.c./..."] {
            assert!(is_valid_path(good), "{good:?}");
        }
        let long = format!("/{}", "x".repeat(PATH_MAX));
        for bad in [
            "",
            "a",
            "a/b",
            "//",
            "/a/",
            "/a//b",
            "/.",
            "/a/..",
            "/../a",
            "/./a",
            "/a\0",
            "/a\n",
            "/a\u{7f}",
            "/a\u{85}",
            "/\u{e000}",
            "/\u{fffd}",
            "/😀",
            &long,
        ] {
            assert!(!is_valid_path(bad), "{bad:?}");
        }
    }

    #[test]
    fn what_would_harm_is_refused() {
        let set = |size, version| check(&Call::Set { path: "/a".into(), data: vec![0; size], version });
        assert_eq!(set(DATA_MAX, 0), Ok(()));
        assert_eq!(set(DATA_MAX + 1, 0), Err(Refusal::TooLarge));
        assert_eq!(set(0, -1), Err(Refusal::BadArguments));
        let watch = |path: &str, mode| check(&Call::Watch { path: path.into(), mode });
        assert_eq!(watch("/", WatchMode::Tree), Err(Refusal::BadArguments));
        assert_eq!(watch("/", WatchMode::Node), Ok(()));
        assert_eq!(watch("/a", WatchMode::Tree), Ok(()));
    }

    #[test]
    fn a_code_that_the_crate_does_not_know_is_no_missing_feature() {
        assert_eq!(refusal(ZkError::Unimplemented, true), Some(Refusal::Unimplemented));
        assert_eq!(refusal(ZkError::Unimplemented, false), Some(Refusal::Other(-6)));
        assert_eq!(refusal(ZkError::MarshallingError, false), None);
    }
}

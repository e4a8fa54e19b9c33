//! Calls and replies as `Debug` shows them: in a line, without their data. It may be large, and users have secrets in
//! it; and what is shown when something is broken is read by more people than may read those.

use std::fmt;

use super::{Call, Reply};

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Call::Create { path, data, mode } => write!(f, "Create {path} ({mode:?}, {} bytes)", data.len()),
            Call::Set { path, data, version } => {
                write!(f, "Set {path} (over version {version}, {} bytes)", data.len())
            }
            Call::Delete { path, version } => write!(f, "Delete {path} (version {version:?})"),
            Call::Get { path, watch } => write!(f, "Get {path} (watch: {watch})"),
            Call::Exists { path, watch } => write!(f, "Exists {path} (watch: {watch})"),
            Call::Children { path } => write!(f, "Children {path}"),
            Call::Acl { path } => write!(f, "Acl {path}"),
            Call::Watch { path, mode } => write!(f, "Watch {path} ({mode:?})"),
        }
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reply::Created { path } => write!(f, "Created {path}"),
            Reply::Stat(stat) => stat.fmt(f),
            Reply::Deleted => f.write_str("Deleted"),
            Reply::Data { data, stat } => write!(f, "Data ({} bytes, {stat:?})", data.len()),
            Reply::Children(names) => write!(f, "Children ({} of them)", names.len()),
            Reply::Acl { open } => write!(f, "Acl (open: {open})"),
            Reply::Watching => f.write_str("Watching"),
        }
    }
}

//! Why a text is not a value of a setting.
//!
//! Each reason completes the sentence "'VALUE' is not valid: …". It never repeats the value, which may be a secret.

use thiserror::Error;

use crate::contract::MAX_ID_BYTES;

/// The most bytes a task's command may have: Linux takes no single argument over 128 KiB, and `/bin/sh -c` gets
/// the whole line as one. Of a program and its arguments it is the sum, with one more byte for each.
pub const MAX_COMMAND_BYTES: usize = 120 * 1024;
/// The most bytes a path may have that is given as a setting.
pub const MAX_PATH_BYTES: usize = 512;
/// The most bytes that a task's variables may have in sum.
pub const MAX_ENV_BYTES: usize = 16 * 1024;
/// The most servers in a connect string.
pub const MAX_SERVERS: usize = 64;

/// Why one text is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum Invalid {
    /// It has another form than this.
    #[error("must be {0}")]
    Form(&'static str),
    #[error("must be UTF-8")]
    NotUtf8,
    #[error("must be between {min} and {max}")]
    OutOfRange { min: String, max: String },
    #[error("must be a whole number between {min} and {max}")]
    NotANumber { min: String, max: String },
    #[error("needs a unit, such as 500ms, 10s, 5m, 24h or 7d")]
    NoUnit,
    #[error("{0}; or none")]
    NorNone(Box<Invalid>),
    #[error(transparent)]
    Id(#[from] InvalidId),
    #[error(transparent)]
    Item(#[from] InvalidItem),
    #[error(transparent)]
    Server(#[from] InvalidServer),
    #[error("the chroot {0}")]
    Chroot(InvalidPath),
    #[error(transparent)]
    Path(#[from] InvalidPath),
    #[error(transparent)]
    Command(#[from] InvalidCommand),
    #[error(transparent)]
    Conflict(#[from] Conflict),
}

/// Why a text is no id.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidId {
    /// It is empty or too long.
    #[error("must have 1 to {MAX_ID_BYTES} characters")]
    Length,
    /// It has this character.
    #[error("{0} is not allowed; an id is made of ASCII letters, digits and . _ - : @ + = , %")]
    Character(String),
    /// It is `.` or `..`.
    #[error("'.' and '..' are no names in ZooKeeper")]
    Dots,
    /// It begins with `-`.
    #[error("must not begin with '-', as it would be taken for a flag")]
    Dash,
    /// It may be the name of a shared job.
    #[error("must not begin with '_': _00 to _ff are the jobs that all single tasks share")]
    SharedJob,
}

/// Why an item of a list is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidItem {
    /// The list has this key with another value.
    #[error("'{0}' is given twice, with different values")]
    GivenTwice(String),
    /// The list has more items than it may have.
    #[error("is one too many: at most {0} are allowed")]
    TooMany(usize),
    /// It is no label.
    #[error("key and value must each be 1 to 63 ASCII letters, digits, '.', '_' or '-'")]
    Label,
    /// The name before `=` is no variable's.
    #[error("the name must be of ASCII letters, digits and '_', and not begin with a digit")]
    VariableName,
    /// Each task gets this variable from its worker.
    #[error("{0} is set by the worker")]
    SetByWorker(String),
    /// No variable can have a NUL byte.
    #[error("the value has a NUL byte in it")]
    Nul,
    /// All variables are too long.
    #[error("together the variables have {0} bytes; at most {MAX_ENV_BYTES} are allowed")]
    Variables(usize),
    /// A credential of the scheme digest has no colon.
    #[error("the credential of the scheme digest must be USER:PASSWORD")]
    Digest,
}

/// Why a text does not name servers.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidServer {
    /// Between two commas there is nothing.
    #[error("a server's name is missing; must be HOST:PORT,HOST:PORT,…[/chroot]")]
    Missing,
    /// A bracket is not closed.
    #[error("a ']' is missing")]
    Bracket,
    /// The text in brackets is no address.
    #[error("the text in brackets must be an IPv6 address")]
    NotIpv6,
    /// There is more after the bracket.
    #[error("after ']' there may only be :PORT")]
    AfterBracket,
    /// An address with colons has no brackets.
    #[error("an IPv6 address must be in brackets, such as [::1]:2181")]
    NoBrackets,
    /// The host is no name and no address.
    #[error("a server must be HOST:PORT, with a host name or an address")]
    Host,
    /// The port is none.
    #[error("the port must be a number between 1 and 65535")]
    Port,
    /// There are more than a client can use.
    #[error("names more than {MAX_SERVERS} servers")]
    TooMany,
    /// Each server has a chroot.
    #[error("the chroot comes once, after the last server, and is that of all: HOST:PORT,HOST:PORT/chroot")]
    ChrootTwice,
}

/// Why a text is no path of a znode.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidPath {
    /// It is relative.
    #[error("must begin with '/'")]
    Relative,
    /// It is `/`.
    #[error("must not be '/' itself")]
    Root,
    /// It ends with a slash.
    #[error("must not end with '/'")]
    SlashAtEnd,
    /// It is too long.
    #[error("must have at most {MAX_PATH_BYTES} bytes")]
    Length,
    /// It has an empty name.
    #[error("must not have '//' in it")]
    EmptyName,
    /// It has a relative name.
    #[error("must not have '.' or '..' as a name in it")]
    Dots,
    /// It has this character.
    #[error("must not have {0} in it")]
    Character(String),
    /// It is in the directory of the servers.
    #[error("must not be in /zookeeper, which is ZooKeeper's own")]
    Reserved,
}

/// Why a command cannot be stored and run.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidCommand {
    /// It has so many bytes.
    #[error(
        "has {0} bytes; at most {MAX_COMMAND_BYTES} (120 KiB) are possible. Put the data in a file or an object store \
         that the workers can read, and its name in the task"
    )]
    Length(usize),
    /// No argument can have a NUL byte.
    #[error("has a NUL byte in it, which no command can have")]
    Nul,
    /// It cannot be stored as JSON.
    #[error("is not UTF-8, and so can't be stored; encode it, or put it into a file")]
    NotUtf8,
    /// It has this control character.
    #[error("has the control character {0:?} in it")]
    Control(char),
}

/// Why a value is wrong together with others.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Conflict {
    /// The election is among the service's own znodes.
    #[error("below the root {0} elections may only be in {0}/elections")]
    ElectionInRoot(String),
    /// Nobody waits for the task.
    #[error(
        "with --detach nobody stays to wait, so the task would be cancelled at once; say --orphan keep or --no-detach"
    )]
    OrphanAtOnce,
    /// There is no batch to divide.
    #[error("only the lines of a batch can be put together; say --from-file FILE")]
    NoBatch,
}

/// Why a list is wrong, and at which of its items.
#[derive(Debug, PartialEq)]
pub struct BadItem {
    /// Which item, from 0.
    pub index: usize,
    /// What is wrong with it.
    pub reason: Invalid,
}

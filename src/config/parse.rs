//! From text to value: one pure function for each kind of setting, which gives the reason if the text is wrong.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::time::Duration;

use crate::contract::task::State;
use crate::contract::{Labels, MAX_ID_BYTES, TaskId, is_component};
use crate::roles::client::walk::Target;
use crate::roles::client::{ListColumn, TaskStatus};

use super::invalid::{BadItem, Invalid, InvalidCommand, InvalidId, InvalidItem, InvalidPath, InvalidServer};
pub use super::invalid::{MAX_COMMAND_BYTES, MAX_ENV_BYTES, MAX_PATH_BYTES, MAX_SERVERS};
use super::{Auth, Moment, Orphan, Secret, ZkAddress};

/// The most bytes of one stream's output that may be kept with an outcome.
pub const MAX_OUTPUT_BYTES: usize = 96 * 1024;
/// The highest limit for the data of all tasks: 1 TiB.
pub const MAX_MAX_PENDING_BYTES: u64 = 1 << 40;
/// The highest limit for what is kept of what tasks print: 1 PiB, which no disk has.
const MAX_LOG_BYTES: u64 = 1 << 50;
/// The most labels of a worker, or of what a task requires.
pub const MAX_LABELS: usize = 32;
/// The most variables that a task may bring.
pub const MAX_ENV_VARS: usize = 64;
/// The most credentials of a session.
pub const MAX_AUTH: usize = 16;
/// The most bytes of a name below `tasks`: `JOB~BATCH~PART`, and some.
const MAX_SEGMENT_BYTES: usize = 2 * MAX_ID_BYTES + 32;
/// ZooKeeper's port.
pub const DEFAULT_PORT: u16 = 2181;

/// All states, in the order of a task's life.
pub const STATES: [TaskStatus; 8] = [
    TaskStatus::Pending,
    TaskStatus::Assigned,
    TaskStatus::Running,
    TaskStatus::Cancelling,
    TaskStatus::Ended(State::Done),
    TaskStatus::Ended(State::Failed),
    TaskStatus::Ended(State::Cancelled),
    TaskStatus::Ended(State::Expired),
];

type Parsed<T> = Result<T, Invalid>;
type ParsedList<T> = Result<T, BadItem>;

// --- plain values

pub fn boolean(text: &str) -> Parsed<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Ok(true),
        "false" | "no" | "off" | "0" => Ok(false),
        _ => Err(Invalid::Form("true or false (or yes/no, on/off, 1/0)")),
    }
}

/// How often `-v` or `-q` was given.
pub fn count(text: &str) -> Parsed<i8> {
    if let Ok(on) = boolean(text) {
        return Ok(i8::from(on));
    }
    number(text, 0, 9)
}

pub fn number<T>(text: &str, min: T, max: T) -> Parsed<T>
where
    T: std::str::FromStr + PartialOrd + std::fmt::Display,
{
    match text.parse::<T>() {
        Ok(n) if n >= min && n <= max => Ok(n),
        Ok(_) | Err(_) => {
            let is_number = text.parse::<i128>().is_ok();
            let (min, max) = (min.to_string(), max.to_string());
            Err(if is_number { Invalid::OutOfRange { min, max } } else { Invalid::NotANumber { min, max } })
        }
    }
}

pub fn orphan(text: &str) -> Parsed<Orphan> {
    match text {
        "keep" => Ok(Orphan::Keep),
        "cancel" => Ok(Orphan::Cancel),
        _ => Err(Invalid::Form("keep or cancel")),
    }
}

pub fn output_limit_bytes(text: &str) -> Parsed<usize> {
    let bytes = size(text).and_then(|bytes| usize::try_from(bytes).ok());
    bytes
        .filter(|bytes| *bytes <= MAX_OUTPUT_BYTES)
        .ok_or(Invalid::Form("a size between 0 and 96KiB, such as 500B, 64KiB or 65536 (bytes)"))
}

pub fn max_pending_bytes(text: &str) -> Parsed<u64> {
    size(text)
        .filter(|bytes| (1..=MAX_MAX_PENDING_BYTES).contains(bytes))
        .ok_or(Invalid::Form("a size between 1B and 1TiB, such as 512MiB, 1GiB or 1073741824 (bytes)"))
}

/// How much a worker keeps of what a task prints, or all tasks do; 0 is nothing.
pub fn log_bytes(text: &str) -> Parsed<u64> {
    size(text)
        .filter(|bytes| *bytes <= MAX_LOG_BYTES)
        .ok_or(Invalid::Form("a size between 0 and 1024TiB, such as 100MiB, 1GiB or 1073741824 (bytes)"))
}

/// With less than that no program starts.
const MIN_TASK_MEMORY: u64 = 1 << 20;
const MAX_TASK_MEMORY: u64 = 1 << 50;

pub fn task_memory(text: &str) -> Parsed<u64> {
    size(text)
        .filter(|bytes| (MIN_TASK_MEMORY..=MAX_TASK_MEMORY).contains(bytes))
        .ok_or(Invalid::Form("a size between 1MiB and 1PiB, such as 512MiB or 2GiB"))
}

/// The kernel gives no less than a hundredth of a processor.
const MIN_TASK_CPU_MILLIS: u32 = 10;
const MAX_TASK_CPU_MILLIS: u32 = 1_000_000;

/// Thousandths of a processor.
pub fn task_cpus(text: &str) -> Parsed<u32> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let millis = (is_number(whole) && is_number(part) && part.len() <= 3)
        .then(|| {
            whole.parse::<u32>().ok()?.checked_mul(1000)?.checked_add(format!("{part:0<3}").parse().ok()?)
        })
        .flatten();
    millis.filter(|millis| (MIN_TASK_CPU_MILLIS..=MAX_TASK_CPU_MILLIS).contains(millis)).ok_or(Invalid::Form(
        "a number of processors between 0.01 and 1000, such as 0.5 or 2, in thousandths at most",
    ))
}

fn size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let factor = match text[digits.len()..].trim_start() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "PiB" => 1 << 50,
        _ => return None,
    };
    // A number's own parser would take a sign.
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<u64>().ok()?.checked_mul(factor))?
}

// --- times

pub fn duration(text: &str, min: Duration, max: Duration) -> Parsed<Duration> {
    let between = || Err(Invalid::OutOfRange { min: show(min), max: show(max) });
    if text.parse::<f64>().is_ok() && text != "0" {
        return Err(Invalid::NoUnit);
    }
    // In humantime `5M` is five months, which nobody means.
    if text.contains('M') || text.contains("month") || text.replace("day", "").contains('y') {
        return Err(Invalid::Form("a time such as 500ms, 10s, 5m, 24h or 7d (no months or years)"));
    }
    match humantime::parse_duration(text) {
        Ok(d) if d >= min && d <= max => Ok(d),
        Ok(_) => between(),
        Err(humantime::DurationError::NumberOverflow) => between(),
        Err(_) => Err(Invalid::Form("a time such as 500ms, 10s, 5m, 24h or 7d")),
    }
}

/// The longest time ago that a user may name: 100 years.
const LONGEST_AGO: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A time that a user names: how long ago, or an instant in RFC 3339.
pub fn moment(text: &str) -> Parsed<Moment> {
    const FORM: &str = "a time ago such as 10m, 2h or 7d, or an instant such as 2026-01-31T12:00:00Z";
    if !text.contains(['-', ':']) {
        return duration(text, Duration::ZERO, LONGEST_AGO).map(Moment::Ago);
    }
    let at = humantime::parse_rfc3339_weak(text).map_err(|_| Invalid::Form(FORM))?;
    let since = at.duration_since(std::time::UNIX_EPOCH).map_err(|_| Invalid::Form(FORM))?;
    i64::try_from(since.as_millis()).map(Moment::At).map_err(|_| Invalid::Form(FORM))
}

/// A duration in the words of the help text: `365d`, not `11months 30days`.
fn show(d: Duration) -> String {
    let (secs, millis) = (d.as_secs(), d.subsec_millis());
    match secs {
        _ if millis > 0 => format!("{}ms", d.as_millis()),
        0 => "0s".to_owned(),
        s if s % (24 * 3600) == 0 => format!("{}d", s / (24 * 3600)),
        s if s % 3600 == 0 => format!("{}h", s / 3600),
        s if s % 60 == 0 => format!("{}m", s / 60),
        s => format!("{s}s"),
    }
}

/// A time of a tenth of a second or more, or none.
pub fn time_or_none(text: &str, max: Duration) -> Parsed<Option<Duration>> {
    match text {
        "none" => Ok(None),
        text => {
            let time = duration(text, Duration::from_millis(100), max);
            time.map(Some).map_err(|reason| Invalid::NorNone(Box::new(reason)))
        }
    }
}

// --- ids

/// A name that becomes (part of) a znode's: see [`InvalidId`]. `~` separates the parts of our znodes' names, and
/// whitespace and quotes would make ids awkward in shells.
pub fn id(text: &str) -> Parsed<String> {
    if text.is_empty() || text.len() > MAX_ID_BYTES {
        return Err(InvalidId::Length.into());
    }
    if let Some(c) = text.chars().find(|c| !is_id_char(*c)) {
        return Err(InvalidId::Character(describe(c)).into());
    }
    if text == "." || text == ".." {
        return Err(InvalidId::Dots.into());
    }
    if text.starts_with('-') {
        return Err(InvalidId::Dash.into());
    }
    Ok(text.to_owned())
}

fn is_id_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "._-:@+=,%".contains(c)
}

fn describe(c: char) -> String {
    match c {
        ' ' => "a space".to_owned(),
        c if c.is_control() => format!("the control character U+{:04X}", u32::from(c)),
        c => format!("'{}'", c.escape_debug()),
    }
}

/// What a host is called, made fit for an id.
pub fn id_from_host_name(host: &str) -> String {
    let fit: String = host.chars().take(100).map(|c| if is_id_char(c) { c } else { '-' }).collect();
    let fit = fit.trim_start_matches(['-', '.']);
    if fit.is_empty() { "host".to_owned() } else { fit.to_owned() }
}

pub fn job(text: &str) -> Parsed<String> {
    let name = id(text)?;
    if name.starts_with('_') {
        return Err(InvalidId::SharedJob.into());
    }
    Ok(name)
}

/// An id as `zkmw` prints it, `JOB/TASK`, or a job as a whole.
pub fn target(text: &str) -> Parsed<Target> {
    match text.split_once('/') {
        None => Ok(Target::Job(segment(text)?)),
        Some((job, task)) => Ok(Target::Task(TaskId::new(&segment(job)?, &segment(task)?))),
    }
}

/// A znode's name below `tasks`: one that we made of several parts, or any that a client in another language
/// chose, so this is wider than what `id` allows.
pub fn segment(text: &str) -> Parsed<String> {
    if !is_component(text) || text.len() > MAX_SEGMENT_BYTES {
        return Err(Invalid::Form("JOB/TASK, as printed by submit and list, or JOB"));
    }
    Ok(text.to_owned())
}

pub fn states(items: &[String]) -> ParsedList<Vec<TaskStatus>> {
    let mut states = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let state = STATES.into_iter().find(|s| s.as_str() == item).ok_or(BadItem {
            index,
            reason: Invalid::Form(
                "pending, assigned, running, cancelling, done, failed, cancelled or expired",
            ),
        })?;
        if !states.contains(&state) {
            states.push(state);
        }
    }
    Ok(states)
}

/// Columns of a list, in the order in which they are printed.
pub fn columns(items: &[String]) -> ParsedList<Vec<ListColumn>> {
    const NAMES: &str = "id, state, exit, attempt, priority, worker, age, duration or command";
    let column = |(index, item): (usize, &String)| {
        ListColumn::from_name(item).ok_or(BadItem { index, reason: Invalid::Form(NAMES) })
    };
    items.iter().enumerate().map(column).collect()
}

/// The states of what is over.
pub fn ended_states(items: &[String]) -> ParsedList<Vec<State>> {
    let reason = "done, failed, cancelled or expired: a task that has not ended cannot be deleted";
    let ended = |(index, state)| match state {
        TaskStatus::Ended(state) => Ok(state),
        TaskStatus::Pending | TaskStatus::Assigned | TaskStatus::Running | TaskStatus::Cancelling => {
            Err(BadItem { index, reason: Invalid::Form(reason) })
        }
    };
    states(items)?.into_iter().enumerate().map(ended).collect()
}

// --- labels and variables

fn pairs(
    items: &[String],
    max: usize,
    form: &'static str,
    check: impl Fn(&str, &str) -> Parsed<()>,
) -> ParsedList<BTreeMap<String, String>> {
    let mut map = BTreeMap::new();
    for (index, item) in items.iter().enumerate() {
        let bad = |reason: Invalid| BadItem { index, reason };
        let (k, v) = item.split_once('=').ok_or_else(|| bad(Invalid::Form(form)))?;
        check(k, v).map_err(bad)?;
        if let Some(old) = map.insert(k.to_owned(), v.to_owned())
            && old != v
        {
            return Err(bad(InvalidItem::GivenTwice(k.to_owned()).into()));
        }
        if map.len() > max {
            return Err(bad(InvalidItem::TooMany(max).into()));
        }
    }
    Ok(map)
}

pub fn labels(items: &[String]) -> ParsedList<Labels> {
    pairs(items, MAX_LABELS, "KEY=VALUE, such as gpu=yes", |k, v| {
        let fits = |s: &str| {
            (1..=63).contains(&s.len())
                && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        };
        if fits(k) && fits(v) { Ok(()) } else { Err(InvalidItem::Label.into()) }
    })
}

pub fn env(items: &[String]) -> ParsedList<BTreeMap<String, String>> {
    let vars = pairs(items, MAX_ENV_VARS, "NAME=VALUE, such as LANG=C", |name, value| {
        let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !starts || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(InvalidItem::VariableName.into());
        }
        if is_set_by_worker(name) {
            return Err(InvalidItem::SetByWorker(name.to_owned()).into());
        }
        if value.contains('\0') {
            return Err(InvalidItem::Nul.into());
        }
        Ok(())
    })?;
    let bytes: usize = vars.iter().map(|(k, v)| k.len() + v.len() + 2).sum();
    if bytes > MAX_ENV_BYTES {
        let reason = InvalidItem::Variables(bytes).into();
        return Err(BadItem { index: items.len() - 1, reason });
    }
    Ok(vars)
}

/// Variables by which zkmw describes a task to itself. They are never read as settings, since a task may well
/// call `zkmw submit`.
pub fn is_set_by_worker(name: &str) -> bool {
    matches!(name, "ZKMW_TASK" | "ZKMW_LINE" | "ZKMW_ATTEMPT" | "ZKMW_EPOCH" | "ZKMW_WORKER" | "ZKMW_BIN")
        || name == "ZKMW_OWNER"
        || name.starts_with("ZKMW_ENSEMBLE")
}

pub fn auth(items: &[String]) -> ParsedList<Vec<Auth>> {
    let mut list = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let bad = |reason: Invalid| BadItem { index, reason };
        if index == MAX_AUTH {
            return Err(bad(InvalidItem::TooMany(MAX_AUTH).into()));
        }
        let (scheme, credential) = item
            .split_once(':')
            .filter(|(s, c)| {
                !c.is_empty() && !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            })
            .ok_or_else(|| bad(Invalid::Form("SCHEME:CREDENTIAL, such as digest:USER:PASSWORD")))?;
        if scheme == "digest" && !credential.contains(':') {
            return Err(bad(InvalidItem::Digest.into()));
        }
        list.push(Auth { scheme: scheme.to_owned(), credential: Secret::new(credential) });
    }
    Ok(list)
}

// --- paths and servers

/// `HOST:PORT,…[/chroot]`, as ZooKeeper's own clients take it.
pub fn zk(text: &str) -> Parsed<ZkAddress> {
    let (hosts, chroot) = match text.find('/') {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    // Where another server follows the chroot, or the chroot comes again, each server was given one.
    if let Some((first, others)) = chroot.split_once(',')
        && others.split(',').any(|item| item.contains(':') || item.ends_with(first))
    {
        return Err(InvalidServer::ChrootTwice.into());
    }
    let chroot = match chroot {
        "" | "/" => None,
        path => Some(checked_path(path).map_err(Invalid::Chroot)?),
    };
    let mut servers = Vec::new();
    for item in hosts.split(',') {
        servers.push(server(item.trim())?);
    }
    if servers.len() > MAX_SERVERS {
        return Err(InvalidServer::TooMany.into());
    }
    Ok(ZkAddress { servers, chroot })
}

fn server(text: &str) -> Result<(String, u16), InvalidServer> {
    if text.is_empty() {
        return Err(InvalidServer::Missing);
    }
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or(InvalidServer::Bracket)?;
        if host.parse::<Ipv6Addr>().is_err() {
            return Err(InvalidServer::NotIpv6);
        }
        match rest.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if rest.is_empty() => (host, None),
            None => return Err(InvalidServer::AfterBracket),
        }
    } else if text.parse::<Ipv6Addr>().is_ok() {
        return Err(InvalidServer::NoBrackets);
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    let is_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if host.is_empty() || host.len() > 253 || !(host.contains(':') || host.bytes().all(is_name)) {
        return Err(InvalidServer::Host);
    }
    let port = match port {
        None => DEFAULT_PORT,
        Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => {
            number(port, 1, u16::MAX).map_err(|_| InvalidServer::Port)?
        }
        Some(_) => return Err(InvalidServer::Port),
    };
    Ok((host.to_owned(), port))
}

/// An absolute path of a znode other than `/`, by the rules of ZooKeeper's `PathUtils.validatePath`.
pub fn znode_path(text: &str) -> Parsed<String> {
    Ok(checked_path(text)?)
}

fn checked_path(text: &str) -> Result<String, InvalidPath> {
    if !text.starts_with('/') {
        return Err(InvalidPath::Relative);
    }
    if text == "/" {
        return Err(InvalidPath::Root);
    }
    if text.ends_with('/') {
        return Err(InvalidPath::SlashAtEnd);
    }
    if text.len() > MAX_PATH_BYTES {
        return Err(InvalidPath::Length);
    }
    for name in text[1..].split('/') {
        match name {
            "" => return Err(InvalidPath::EmptyName),
            "." | ".." => return Err(InvalidPath::Dots),
            _ => {}
        }
        if let Some(c) = name.chars().find(|c| is_refused_by_zookeeper(*c)) {
            return Err(InvalidPath::Character(describe(c)));
        }
    }
    if text == "/zookeeper" || text.starts_with("/zookeeper/") {
        return Err(InvalidPath::Reserved);
    }
    Ok(text.to_owned())
}

/// ZooKeeper checks UTF-16 units and refuses surrogates, so everything beyond U+FFFF is refused too.
fn is_refused_by_zookeeper(c: char) -> bool {
    matches!(u32::from(c), 0..=0x1f | 0x7f..=0x9f | 0xd800..=0xf8ff | 0xfff0..)
}

/// A directory that means the same wherever the daemon is started from.
pub fn absolute_dir(text: &OsStr) -> Parsed<PathBuf> {
    let dir = PathBuf::from(text);
    if dir.is_absolute() { Ok(dir) } else { Err(Invalid::Form("an absolute path")) }
}

/// The name of a user. Only the host knows whether there is one.
pub fn user(text: &str) -> Parsed<String> {
    if text.is_empty() || text.contains([':', '/']) || text.contains(char::is_control) {
        return Err(Invalid::Form("the name of a user"));
    }
    Ok(text.to_owned())
}

/// A shell command line that stays on this machine.
pub fn handler(text: &str) -> Parsed<String> {
    if text.trim().is_empty() {
        return Err(Invalid::Form("a shell command line"));
    }
    check_command_line(text)?;
    if let Some(c) = text.chars().find(|c| c.is_control() && !matches!(c, '\t' | '\n')) {
        return Err(InvalidCommand::Control(c).into());
    }
    Ok(text.to_owned())
}

/// Whether a shell command line can be stored and run as a task; for the lines of a batch as for a single one.
pub fn check_command_line(line: &str) -> Result<(), InvalidCommand> {
    check_command_bytes(line.len())?;
    if line.contains('\0') { Err(InvalidCommand::Nul) } else { Ok(()) }
}

/// Whether a command is short enough.
pub fn check_command_bytes(bytes: usize) -> Result<(), InvalidCommand> {
    if bytes > MAX_COMMAND_BYTES { Err(InvalidCommand::Length(bytes)) } else { Ok(()) }
}

//! The user of `--run-as`. The worker reads the user's entry when it starts, and each program becomes that user between
//! clone and exec.

use std::ffi::{CStr, CString, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::ptr;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// Bytes for the texts of an entry in the list of users, at first.
const FIRST_TEXT_BYTES: usize = 1 << 10;
/// The most: an entry that needs more is broken.
const MOST_TEXT_BYTES: usize = 1 << 20;
/// Groups of a user that there is room for at first. The kernel takes 65,536.
const FIRST_GROUPS: libc::c_int = 64;
const MOST_GROUPS: libc::c_int = 1 << 16;

/// The capabilities that a process needs to run programs as other users, and to signal and limit them; from
/// `linux/capability.h`.
const NEEDED: [(u32, &str); 5] = [
    (0, "CAP_CHOWN"),
    (5, "CAP_KILL"),
    (6, "CAP_SETGID"),
    (7, "CAP_SETUID"),
    // A successor reads the environment of what was left behind.
    (19, "CAP_SYS_PTRACE"),
];

/// A user of this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// What it is called.
    pub name: String,
    /// Its number.
    pub uid: u32,
    /// The number of its own group.
    pub gid: u32,
    /// All its groups.
    pub groups: Vec<u32>,
    home: OsString,
    shell: OsString,
}

/// Why programs cannot run as a user.
#[derive(Debug, thiserror::Error)]
pub enum NoUser {
    /// The machine has no user of this name.
    #[error("there is no user {0:?} on this machine; make one, or name another")]
    Unknown(String),
    /// The machine's list of users cannot be read.
    #[error("cannot find the user {name:?}: {error}")]
    Unreadable {
        /// The name of the user.
        name: String,
        /// What the system says.
        error: io::Error,
    },
    /// The user is root.
    #[error("{0} is root: name a user who may do less")]
    Root(String),
    /// The user's groups cannot be read.
    #[error("cannot find the groups of the user {0:?}")]
    Groups(String),
    /// This process is not root's.
    #[error("only a worker that root has started can run tasks as another user")]
    NotRoot,
    /// This process lacks capabilities.
    #[error(
        "this worker is root's, but lacks {} to run tasks as another user; give it that (CapabilityBoundingSet= of \
         its unit, or the container's settings)",
        .0.join(", ")
    )]
    Lacks(Vec<&'static str>),
}

impl User {
    /// The user of this name.
    ///
    /// # Errors
    ///
    /// If there is none, if it is root, or if this process may not run programs as others.
    pub fn find(name: &str) -> Result<User, NoUser> {
        refuse_unable()?;
        let unknown = || NoUser::Unknown(name.to_owned());
        let text = CString::new(name).map_err(|_| unknown())?;
        let mut user = entry(&text)
            .map_err(|error| NoUser::Unreadable { name: name.to_owned(), error })?
            .ok_or_else(unknown)?;
        if user.uid == 0 {
            return Err(NoUser::Root(name.to_owned()));
        }
        user.groups = groups(&text, user.gid).ok_or_else(|| NoUser::Groups(name.to_owned()))?;
        Ok(user)
    }

    /// The variables that name a program's user.
    pub(super) fn variables(&self) -> [(OsString, OsString); 4] {
        let name = || OsString::from(&self.name);
        [
            ("HOME".into(), self.home.clone()),
            ("USER".into(), name()),
            ("LOGNAME".into(), name()),
            ("SHELL".into(), self.shell.clone()),
        ]
    }

    /// Makes this process the user's, for good: no program that it executes gives it more rights. For the child between
    /// clone and exec: bare system calls only, and not the library's, which speak to all threads that it knows.
    pub(super) fn become_it(&self) -> Result<(), Errno> {
        // SAFETY: system calls about this process, with a list that lives.
        unsafe {
            check(libc::syscall(libc::SYS_setgroups, self.groups.len(), self.groups.as_ptr()))?;
            check(libc::syscall(libc::SYS_setresgid, self.gid, self.gid, self.gid))?;
            check(libc::syscall(libc::SYS_setresuid, self.uid, self.uid, self.uid))?;
            check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).into())
        }
    }
}

fn check(result: libc::c_long) -> Result<(), Errno> {
    match result {
        0.. => Ok(()),
        _ => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}

/// Refuses if this process cannot run programs as others.
fn refuse_unable() -> Result<(), NoUser> {
    if !rustix::process::geteuid().is_root() {
        return Err(NoUser::NotRoot);
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let lacks = missing(&status);
    if lacks.is_empty() { Ok(()) } else { Err(NoUser::Lacks(lacks)) }
}

/// What is needed and is not in the text of a `status` file.
fn missing(status: &str) -> Vec<&'static str> {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    NEEDED.iter().filter(|(bit, _)| effective & (1 << bit) == 0).map(|(_, name)| *name).collect()
}

/// What the machine's list says of a user, without the groups; `None` if it has no such user.
fn entry(name: &CStr) -> io::Result<Option<User>> {
    let mut texts: Vec<libc::c_char> = vec![0; FIRST_TEXT_BYTES];
    loop {
        // SAFETY: all zeros are a valid value of it.
        let mut found: libc::passwd = unsafe { std::mem::zeroed() };
        let mut result = ptr::null_mut();
        // SAFETY: the name ends with a null, and the buffer has the length that is said.
        let error = unsafe {
            let (into, bytes) = (texts.as_mut_ptr(), texts.len());
            libc::getpwnam_r(name.as_ptr(), &raw mut found, into, bytes, &raw mut result)
        };
        match error {
            0 if result.is_null() => return Ok(None),
            0 => {
                // SAFETY: the call has made them point to texts in the buffer, or to nothing.
                let text = |at: *const libc::c_char| match at.is_null() {
                    true => Vec::new(),
                    false => unsafe { CStr::from_ptr(at) }.to_bytes().to_vec(),
                };
                return Ok(Some(User {
                    name: String::from_utf8_lossy(&text(found.pw_name)).into_owned(),
                    uid: found.pw_uid,
                    gid: found.pw_gid,
                    groups: Vec::new(),
                    home: OsString::from_vec(text(found.pw_dir)),
                    shell: OsString::from_vec(text(found.pw_shell)),
                }));
            }
            libc::ERANGE if texts.len() < MOST_TEXT_BYTES => texts.resize(texts.len() * 2, 0),
            libc::EINTR => {}
            // Some sources of users report an unknown user so.
            libc::ENOENT | libc::ESRCH => return Ok(None),
            error => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

/// All groups of a user who has this one; `None` if they are too many.
fn groups(name: &CStr, own: u32) -> Option<Vec<u32>> {
    let mut room = FIRST_GROUPS;
    loop {
        let mut groups = vec![0; usize::try_from(room).ok()?];
        let mut count = room;
        // SAFETY: the name ends with a null, and the list has the room that is said.
        let all = unsafe { libc::getgrouplist(name.as_ptr(), own, groups.as_mut_ptr(), &raw mut count) };
        if all >= 0 {
            groups.truncate(usize::try_from(count).ok()?);
            return Some(groups);
        }
        if room >= MOST_GROUPS {
            return None;
        }
        room *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_in_the_list_is_found() {
        let root = entry(c"root").unwrap().unwrap();
        assert_eq!((root.name.as_str(), root.uid, root.gid), ("root", 0, 0));
        assert!(root.home.to_str().is_some_and(|home| home.starts_with('/')));
        assert!(groups(c"root", 0).unwrap().contains(&0));
        assert_eq!(entry(c"no such user").unwrap(), None);
    }

    #[test]
    fn what_a_process_lacks_is_named() {
        assert!(missing("Name:\tx\nCapEff:\t000001ffffffffff\n").is_empty());
        assert_eq!(missing("CapEff:\t00000000000000c1\n"), ["CAP_KILL", "CAP_SYS_PTRACE"]);
        assert_eq!(missing("").len(), NEEDED.len());
    }
}

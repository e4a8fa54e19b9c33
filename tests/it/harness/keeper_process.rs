//! The keeper of a worker, as a process. tests/exec includes this file too, so it must not use the rest of the
//! harness.

/// The pid of a worker's keeper, if there is one: the child that `zkmw slots` names. An ended process has no command
/// line, so it is not found.
pub fn keeper_of(worker: u32) -> Option<u32> {
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let parent: u32 = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
        let command = std::fs::read(entry.path().join("cmdline")).ok()?;
        let is_keeper = command.split(|byte| *byte == 0).nth(1) == Some(b"slots");
        (parent == worker && is_keeper).then_some(pid)
    })
}

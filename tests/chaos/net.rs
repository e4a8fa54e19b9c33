//! Hosts with a network of their own: a namespace each, with one TUN device, and a switch in this process that
//! carries packets from one to the other, or does not. Owns the namespaces, the devices and the state of every link.
//! Knows nothing of servers, roles or faults; must not touch the machine's own network.
//!
//! The kernel's own ways (`tc netem`, packet filters) are modules that a kernel may lack, and they know no links in
//! one direction between two of many hosts. This needs `/dev/net/tun` and the right to make namespaces, no more.
//! The namespaces have no name. Each lives as long as a process or a descriptor in it, so nothing is left of them
//! when the processes are gone, whatever ended this one, and two runs can't meet.

use std::collections::BinaryHeap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use zkmw::machine::Prng;

/// Packets may be large: fewer of them for a switch that is one thread.
const MTU: usize = 8_000;

/// Packets taken from one host before the next has its turn.
const BURST: usize = 64;

/// Most packets that are held back at a time; more are dropped, as a router would.
const MAX_DELAYED: usize = 50_000;

/// How long the switch sleeps at most before it checks whether it must end.
const IDLE: Duration = Duration::from_millis(50);

/// `TUNSETIFF`, and the flags of a device for IP packets without a header before them.
const TUNSETIFF: u32 = 0x4004_54ca;
const IFF_TUN_NO_PI: u16 = 0x0001 | 0x1000;

/// The treatment of the packets of one link, in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Impaired {
    pub cut: bool,
    pub drop_permille: u64,
    pub delay_ms: u64,
    /// At most so much is added to the delay, by chance: packets overtake each other.
    pub jitter_ms: u64,
}

/// From one host to another, by their numbers.
pub type Link = (usize, usize);

/// The packets that the switch has handled, by their treatment.
#[derive(Debug, Default)]
pub struct Counts {
    pub forwarded: AtomicU64,
    pub cut: AtomicU64,
    pub dropped: AtomicU64,
    pub delayed: AtomicU64,
}

/// One host: its address, and its namespace where it has one.
#[derive(Clone, Debug)]
pub struct Host {
    pub address: String,
    namespace: Option<Arc<OwnedFd>>,
}

impl Host {
    /// Has the command run on this host.
    pub fn enter(&self, command: &mut Command) {
        let Some(namespace) = self.namespace.clone() else { return };
        // SAFETY: one system call, between fork and exec.
        unsafe {
            command.pre_exec(move || {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok(())
            });
        }
    }

    /// The calling thread, and its future children, live on this host from now on.
    pub fn enter_thread(&self) {
        if let Some(namespace) = &self.namespace {
            let entered = move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network));
            entered.expect("a namespace of our own can be entered");
        }
    }

    /// Where others can open the namespace, as long as this process lives.
    pub fn namespace_path(&self) -> Option<PathBuf> {
        let descriptor = self.namespace.as_ref()?.as_raw_fd();
        Some(PathBuf::from(format!("/proc/{}/fd/{descriptor}", std::process::id())))
    }
}

/// The hosts and the links between them.
pub struct Net {
    pub hosts: Vec<Host>,
    pub counts: Arc<Counts>,
    /// Row: from. Empty without namespaces.
    links: Arc<Mutex<Vec<Vec<Impaired>>>>,
    ends: Arc<AtomicBool>,
    switch: Option<std::thread::JoinHandle<()>>,
}

impl Net {
    /// A namespace for each host.
    ///
    /// # Errors
    /// If that is not permitted here.
    pub fn separate(names: &[&'static str], seed: u64) -> io::Result<Net> {
        let mut hosts = Vec::new();
        let mut devices = Vec::new();
        for number in 0..names.len() {
            let address = format!("10.77.0.{}", number + 1);
            let (namespace, device) = host(&address)?;
            hosts.push(Host { address, namespace: Some(Arc::new(namespace)) });
            devices.push(device);
        }
        let links = Arc::new(Mutex::new(vec![vec![Impaired::default(); names.len()]; names.len()]));
        let (counts, ends) = (Arc::new(Counts::default()), Arc::new(AtomicBool::new(false)));
        let mut switch = Switch {
            devices,
            links: Arc::clone(&links),
            counts: Arc::clone(&counts),
            chance: Prng::new(seed),
            delayed: BinaryHeap::new(),
            taken: 0,
        };
        let must_end = Arc::clone(&ends);
        let switch = std::thread::spawn(move || switch.run(&must_end));
        Ok(Net { hosts, counts, links, ends, switch: Some(switch) })
    }

    /// All hosts are this one: nothing can be cut.
    pub fn shared(names: &[&'static str]) -> Net {
        let host = |_: &&'static str| Host { address: "127.0.0.1".into(), namespace: None };
        Net {
            hosts: names.iter().map(host).collect(),
            counts: Arc::default(),
            links: Arc::default(),
            ends: Arc::default(),
            switch: None,
        }
    }

    pub fn is_separate(&self) -> bool {
        self.switch.is_some()
    }

    /// Impairs these links, and makes all others whole. If several items name a link, the worst of each value holds.
    pub fn impair(&self, what: &[(Vec<Link>, Impaired)]) {
        let mut links = self.links.lock().expect("no panic");
        links.iter_mut().flatten().for_each(|link| *link = Impaired::default());
        for (which, impaired) in what {
            for (from, to) in which {
                let Some(link) = links.get_mut(*from).and_then(|row| row.get_mut(*to)) else { continue };
                *link = Impaired {
                    cut: link.cut || impaired.cut,
                    drop_permille: link.drop_permille.max(impaired.drop_permille),
                    delay_ms: link.delay_ms.max(impaired.delay_ms),
                    jitter_ms: link.jitter_ms.max(impaired.jitter_ms),
                };
            }
        }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        if let Some(switch) = self.switch.take() {
            let _ = switch.join();
        }
    }
}

/// A new namespace, and the device in it. On a thread of its own, which ends in it.
fn host(address: &str) -> io::Result<(OwnedFd, File)> {
    let address = address.to_string();
    let made = std::thread::spawn(move || {
        // SAFETY: this flag leaves the thread's descriptors and memory alone.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
        let namespace = OwnedFd::from(File::open("/proc/thread-self/ns/net")?);
        let device = device("z0")?;
        configure(&format!(
            "address add {address}/24 dev z0\nlink set z0 mtu {MTU} txqueuelen 5000 up\nlink set lo up\n"
        ))?;
        Ok((namespace, device))
    });
    made.join().unwrap_or_else(|_| Err(io::Error::other("the thread of a namespace has panicked")))
}

/// The argument of `TUNSETIFF`: an `ifreq` with a name and flags.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

fn device(name: &str) -> io::Result<File> {
    let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file =
        fs::OpenOptions::new().read(true).write(true).custom_flags(nonblocking).open("/dev/net/tun")?;
    let mut request = Request { name: [0; 16], flags: IFF_TUN_NO_PI, rest: [0; 22] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the kernel reads an `ifreq`, 40 bytes long, and writes the name back into it at most.
    unsafe {
        let set = rustix::ioctl::Setter::<{ TUNSETIFF as rustix::ioctl::Opcode }, Request>::new(request);
        rustix::ioctl::ioctl(&file, set)?;
    }
    Ok(file)
}

fn configure(batch: &str) -> io::Result<()> {
    let mut ip =
        Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    ip.stdin.take().expect("a pipe").write_all(batch.as_bytes())?;
    if ip.wait()?.success() { Ok(()) } else { Err(io::Error::other("`ip` has failed")) }
}

/// Links to the hosts' namespaces, `<folder>/1` and so on, for programs that enter by a path.
pub fn link_namespaces(hosts: &[Host], folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for (number, host) in hosts.iter().enumerate() {
        if let Some(path) = host.namespace_path() {
            std::os::unix::fs::symlink(path, folder.join((number + 1).to_string()))?;
        }
    }
    Ok(())
}

/// A packet that is held back. The earliest is the greatest.
#[derive(PartialEq, Eq)]
struct Delayed {
    due: Instant,
    order: u64,
    to: usize,
    packet: Vec<u8>,
}

impl Ord for Delayed {
    fn cmp(&self, other: &Delayed) -> std::cmp::Ordering {
        (other.due, other.order).cmp(&(self.due, self.order))
    }
}

impl PartialOrd for Delayed {
    fn partial_cmp(&self, other: &Delayed) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

struct Switch {
    devices: Vec<File>,
    links: Arc<Mutex<Vec<Vec<Impaired>>>>,
    counts: Arc<Counts>,
    chance: Prng,
    delayed: BinaryHeap<Delayed>,
    taken: u64,
}

impl Switch {
    fn run(&mut self, ends: &AtomicBool) {
        let mut buffer = vec![0; MTU + 100];
        while !ends.load(Ordering::SeqCst) {
            self.release();
            for from in self.readable() {
                self.take(from, &mut buffer);
            }
        }
    }

    /// Waits for packets, no longer than until one is due.
    fn readable(&self) -> Vec<usize> {
        let due = self.delayed.peek().map_or(IDLE, |next| next.due.saturating_duration_since(Instant::now()));
        let wait = Timespec::try_from(due.min(IDLE)).expect("a short time");
        let mut ready: Vec<_> =
            self.devices.iter().map(|device| PollFd::new(device, PollFlags::IN)).collect();
        if poll(&mut ready, Some(&wait)).is_err() {
            return Vec::new();
        }
        ready
            .iter()
            .enumerate()
            .filter(|(_, fd)| !fd.revents().is_empty())
            .map(|(number, _)| number)
            .collect()
    }

    fn take(&mut self, from: usize, buffer: &mut [u8]) {
        for _ in 0..BURST {
            let mut device = &self.devices[from];
            let length = match device.read(buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            // IPv4 from 10.77.0.0/24 to there; nothing else leaves a host.
            let packet = &buffer[..length];
            if length >= 20 && packet[0] >> 4 == 4 && packet[16..19] == [10, 77, 0] {
                let to = usize::from(packet[19]).wrapping_sub(1);
                if to < self.devices.len() {
                    self.carry(from, to, packet);
                }
            }
        }
    }

    fn carry(&mut self, from: usize, to: usize, packet: &[u8]) {
        let link = self.links.lock().expect("no panic")[from][to];
        if link.cut {
            self.counts.cut.fetch_add(1, Ordering::Relaxed);
        } else if link.drop_permille > 0 && self.chance.next_u64() % 1_000 < link.drop_permille {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        } else if link.delay_ms > 0 && self.delayed.len() < MAX_DELAYED {
            self.counts.delayed.fetch_add(1, Ordering::Relaxed);
            let delay = Duration::from_millis(link.delay_ms + self.chance.next_u64() % (link.jitter_ms + 1));
            self.taken += 1;
            let (due, order) = (Instant::now() + delay, self.taken);
            self.delayed.push(Delayed { due, order, to, packet: packet.to_vec() });
        } else {
            self.deliver(to, packet);
        }
    }

    fn release(&mut self) {
        let now = Instant::now();
        while self.delayed.peek().is_some_and(|next| next.due <= now) {
            let next = self.delayed.pop().expect("it was there");
            self.deliver(next.to, &next.packet);
        }
    }

    /// A device that takes no more loses the packet, as any network may.
    fn deliver(&self, to: usize, packet: &[u8]) {
        let mut device = &self.devices[to];
        if device.write(packet).is_ok() {
            self.counts.forwarded.fetch_add(1, Ordering::Relaxed);
        }
    }
}

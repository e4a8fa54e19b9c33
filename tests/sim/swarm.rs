//! The numbers of one seed: how large the cluster is, how fast everything is, and which faults come how often. It
//! decides nothing later: all that happens afterwards follows from these numbers and the seed's dice.

use zkmw::machine::Prng;

/// A microsecond, in the simulator's nanoseconds.
pub const US: u64 = 1_000;
/// A millisecond.
pub const MS: u64 = 1_000 * US;
/// A second.
pub const SECOND: u64 = 1_000 * MS;

/// Servers of the ensemble.
pub const SERVERS: usize = 3;

/// Draws from a seed.
#[derive(Clone, Debug)]
pub struct Dice(Prng);

impl Dice {
    /// The dice of a seed.
    pub fn new(seed: u64) -> Dice {
        Dice(Prng::new(seed))
    }

    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// 0 to `limit` - 1.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0.next_u64() % limit.max(1)
    }

    /// `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// True so many times in a thousand.
    pub fn per_mille(&mut self, part: u64) -> bool {
        part > 0 && self.below(1_000) < part
    }

    /// One of them.
    pub fn pick<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        if all.is_empty() { None } else { all.get(self.below(all.len() as u64) as usize) }
    }

    /// About `mean`, from a tenth of it to three times it, small ones more often.
    pub fn around(&mut self, mean: u64) -> u64 {
        let (a, b) = (self.below(1_000), self.below(1_000));
        mean / 10 + mean * a * b / 345_000
    }
}

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A process is killed (-9) and started again later.
    CrashMaster,
    /// Likewise.
    CrashWorker,
    /// Likewise.
    CrashElector,
    /// A user's process is killed for good.
    CrashClient,
    /// A process, or its machine, is suspended for a while.
    Stop,
    /// A connection breaks.
    Break,
    /// A member and a server do not hear each other, or one does not hear the other.
    CutLink,
    /// A member hears no server, or is heard by none.
    CutMember,
    /// A server is cut off from the quorum.
    CutServer,
    /// A server dies, and comes back.
    CrashServer,
    /// The next server in turn is restarted, if all others serve. Not drawn: a fault for a test of its own.
    RestartNext,
    /// So many servers die that no quorum is left.
    LoseQuorum,
    /// A server learns late of commits.
    Lag,
    /// A member takes long over everything.
    Slow,
    /// Somebody ends a daemon in good order; sometimes he asks twice.
    Term,
    /// Somebody interrupts a user's process; sometimes twice.
    Interrupt,
    /// A second worker is started with a name that is taken.
    Double,
    /// The keeper of a worker or elector dies.
    LoseKeeper,
    /// An outsider writes data that nobody can read.
    Garbage,
    /// No master may write an assignment, for a while (a quota), or not even read or delete it (an ACL).
    Refuse,
    /// A server throttles requests: it refuses some reads and deletes for a moment.
    Throttle,
    /// An outsider deletes some of our znodes, but none that proves that a process lives.
    Vanish,
}

const FAULTS: &[Fault] = &[
    Fault::CrashMaster,
    Fault::CrashWorker,
    Fault::CrashElector,
    Fault::CrashClient,
    Fault::Stop,
    Fault::Break,
    Fault::CutLink,
    Fault::CutMember,
    Fault::CutServer,
    Fault::CrashServer,
    Fault::LoseQuorum,
    Fault::Lag,
    Fault::Slow,
    Fault::Term,
    Fault::Interrupt,
    Fault::Double,
    Fault::LoseKeeper,
    Fault::Garbage,
    Fault::Refuse,
];

/// The numbers of a seed.
#[derive(Clone, Debug)]
pub struct Swarm {
    pub masters: u64,
    pub workers: u64,
    pub electors: u64,
    /// The session timeout, in ns.
    pub timeout: u64,
    /// How long faults and users go on, in ns.
    pub safety: u64,
    /// The mean time between two users, in ns.
    pub user_every: u64,
    /// Most tasks that users ask for.
    pub tasks: u64,
    /// Most lines of a batch. If there are many, their commands are short, and tasks wait at workers.
    pub lines: u64,
    /// How many batches are in chunks, in thousandths.
    pub chunked: u64,
    /// The kinds of faults that come, each with the mean time between two.
    pub faults: Vec<(Fault, u64)>,
    /// How long a packet takes, at least and at most.
    pub latency: (u64, u64),
    /// How often a packet takes a hundred times as long.
    pub spikes: u64,
    /// How often the connection breaks round a write.
    pub break_writes: u64,
    /// How often a process dies between two actions.
    pub die_in_turn: u64,
    /// How long a follower takes to learn of a commit, at most.
    pub apply: u64,
    /// The clocks' largest drift, in parts per million.
    pub drift: u64,
    /// How long runs take on average.
    pub run_for: u64,
    /// How often a run kills its worker, in thousandths: poison.
    pub poison: u64,
    /// How often users pass others by and use names of their own.
    pub keyed: u64,
    pub result_ttl: u64,
    pub job_ttl: u64,
    /// Tasks that the leader admits.
    pub max_pending: u64,
    /// Commands that ended badly which it keeps.
    pub max_failed: u64,
    pub grace: u64,
}

impl Swarm {
    /// Draws the numbers of a seed.
    pub fn new(seed: u64) -> Swarm {
        let mut dice = Dice::new(seed ^ 0x5a5a_1234_8765_a5a5);
        let mut faults = Vec::new();
        let part = dice.between(1, 6);
        for fault in FAULTS {
            if dice.below(10) < part {
                let (low, high) = match fault {
                    Fault::CrashClient | Fault::Interrupt => (1, 4),
                    Fault::LoseQuorum => (10, 40),
                    _ => (2, 15),
                };
                faults.push((*fault, dice.between(low * 1_000, high * 1_000) * MS));
            }
        }
        let one_of = |dice: &mut Dice, all: &[u64]| all[dice.below(all.len() as u64) as usize];
        let latency = one_of(&mut dice, &[200, 500, 2_000, 10_000]) * US;
        let faulty = !faults.is_empty();
        let lines = one_of(&mut dice, &[6, 6, 6, 6, 24, 100]);
        let mut swarm = Swarm {
            masters: dice.between(1, 3),
            workers: dice.between(1, 3),
            electors: one_of(&mut dice, &[0, 0, 2, 3]),
            timeout: one_of(&mut dice, &[6, 10, 10]) * SECOND,
            safety: dice.between(25, 50) * SECOND,
            user_every: dice.between(500, 2_500) * MS,
            tasks: dice.between(8, 30).max(2 * lines),
            lines,
            chunked: one_of(&mut dice, &[0, 0, 300, 1_000]),
            latency: (latency / 4, latency),
            spikes: one_of(&mut dice, &[0, 0, 5, 30]),
            break_writes: if faulty { one_of(&mut dice, &[0, 0, 5, 20, 60]) } else { 0 },
            die_in_turn: if faulty { one_of(&mut dice, &[0, 0, 0, 1]) } else { 0 },
            apply: one_of(&mut dice, &[1, 5, 50, 400]) * MS,
            drift: one_of(&mut dice, &[0, 1_000, 10_000]),
            run_for: one_of(&mut dice, if lines > 6 { &[2, 20, 50, 500] } else { &[50, 500, 2_000, 6_000] })
                * MS,
            poison: if faulty { one_of(&mut dice, &[0, 0, 0, 60]) } else { 0 },
            keyed: one_of(&mut dice, &[50, 200, 400]),
            result_ttl: dice.between(5, 30) * SECOND,
            job_ttl: dice.between(4, 20) * SECOND,
            grace: one_of(&mut dice, &[500, 2_000, 8_000]) * MS,
            max_pending: one_of(&mut dice, &[2, 1_000, 1_000, 1_000]),
            max_failed: 1_000,
            faults,
        };
        // Last, so that all other numbers of a seed stay the same.
        if dice.below(10) < part {
            swarm.faults.push((Fault::Vanish, dice.between(1_000, 10_000) * MS));
        }
        if dice.below(10) < part {
            swarm.faults.push((Fault::Throttle, dice.between(2_000, 15_000) * MS));
        }
        swarm.max_failed = one_of(&mut dice, &[0, 1, 3, 1_000, 1_000]);
        swarm
    }

    /// The same cluster and users, with no fault at all.
    pub fn calm(seed: u64) -> Swarm {
        Swarm { faults: Vec::new(), break_writes: 0, die_in_turn: 0, poison: 0, ..Swarm::new(seed) }
    }
}

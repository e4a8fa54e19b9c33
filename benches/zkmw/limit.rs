//! W: how many quorum writes a second the ensemble does when nothing but writing is asked of it. Creates, sets and
//! deletes in the sizes of a small task's, through the project's own session layer. Must not know the service.

use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use zkmw::machine::Call;

use crate::client::{Client, create};
use crate::stats::Samples;

/// Quorum writes that a task costs, and that each znode of a measurement goes through: made, set, deleted.
pub const WRITES: usize = 3;

/// Sessions, and calls in flight on each.
pub type Shape = (usize, usize);

/// Shapes that are tried; the best counts.
pub const SHAPES: [Shape; 5] = [(1, 64), (2, 64), (4, 32), (6, 32), (6, 128)];

/// How often each is tried, in turn; its median counts.
const ROUNDS: usize = 3;

/// Most znodes of one session at a time: no directory may have more than the service's own would.
const ROUND: usize = 4_000;

/// The data that a submitter writes for the task `true`.
const TASK: &[u8] = br#"{"v":1,"command":"true","attempt":1}"#;

/// The data that its worker writes in its stead.
const ENDED: &[u8] = b"{\"v\":1,\"command\":\"true\",\"attempt\":1,\
    \"outcome\":{\"state\":\"done\",\"exit_code\":0,\"attempt\":1,\"worker\":\"w1~0123456789abcdef\",\
    \"started_ms\":1767225600000,\"ended_ms\":1767225600001}}";

/// The requests for each znode of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Steps {
    /// Made, set, deleted.
    Writes,
    /// The same, and read before it is set and before it is deleted.
    Task,
}

/// The ensemble's limit, and how it is found.
pub struct Limit {
    connect: String,
    /// Writes of one measurement.
    pub writes: usize,
    /// With which W is measured.
    pub shape: Shape,
    /// Every shape that was tried, with what it gave.
    pub tried: Vec<(Shape, Samples)>,
    /// Every measurement at the best shape, in order.
    pub all: Vec<f64>,
    count: usize,
}

impl Limit {
    /// Warms the servers up (their code is compiled while it runs), and finds the best shape.
    pub fn find(connect: &str, writes: usize, warm_up: usize) -> Limit {
        let connect = connect.to_string();
        let mut limit = Limit { connect, writes, shape: SHAPES[0], tried: vec![], all: vec![], count: 0 };
        limit.run(SHAPES[2], warm_up, Steps::Writes);
        limit.tried = SHAPES.map(|shape| (shape, Samples::default())).to_vec();
        for _ in 0..ROUNDS {
            for (at, shape) in SHAPES.into_iter().enumerate() {
                let rate = limit.run(shape, writes, Steps::Writes);
                limit.tried[at].1.0.push(rate);
            }
        }
        let best = limit.tried.iter().max_by(|a, b| a.1.median().total_cmp(&b.1.median()));
        limit.shape = best.expect("some were tried").0;
        limit
    }

    /// W now.
    pub fn measure(&mut self) -> f64 {
        let rate = self.run(self.shape, self.writes, Steps::Writes);
        self.all.push(rate);
        rate
    }

    /// Tasks a second if a task were its five requests and nothing else: made, read by its worker, set, read by its
    /// submitter, deleted; nobody is notified, and nobody decides anything. No service that reads each task can surpass
    /// it.
    pub fn five_requests(&mut self) -> f64 {
        self.run(self.shape, self.writes, Steps::Task) / WRITES as f64
    }

    /// Writes a second, over all sessions together.
    fn run(&mut self, (sessions, in_flight): Shape, writes: usize, steps: Steps) -> f64 {
        self.count += 1;
        let root = format!("/limit-{}", self.count);
        let each = (writes / WRITES / sessions).max(1);
        let mut clients: Vec<Client> =
            (0..sessions).map(|_| Client::connect(&self.connect, in_flight)).collect();
        clients[0].ensure(&root, b"");
        let start = Barrier::new(sessions);
        let times: Vec<(Instant, Instant)> = thread::scope(|scope| {
            let mut handles = Vec::new();
            for (number, client) in clients.iter_mut().enumerate() {
                let (dir, start) = (format!("{root}/{number}"), &start);
                handles.push(scope.spawn(move || write(client, &dir, each, in_flight, start, steps)));
            }
            handles.into_iter().map(|handle| handle.join().expect("no panic")).collect()
        });
        let first = times.iter().map(|(from, _)| *from).min().expect("a session");
        let last = times.iter().map(|(_, to)| *to).max().expect("a session");
        for number in 0..sessions {
            clients[0].must(Call::Delete { path: format!("{root}/{number}"), version: None });
        }
        clients[0].must(Call::Delete { path: root, version: None });
        let done = (each * sessions * WRITES) as f64;
        done / last.duration_since(first).as_secs_f64()
    }
}

/// One session's share: so many znodes made, set and deleted, in rounds.
fn write(
    client: &mut Client,
    dir: &str,
    count: usize,
    in_flight: usize,
    start: &Barrier,
    steps: Steps,
) -> (Instant, Instant) {
    client.ensure(dir, b"");
    start.wait();
    let from = Instant::now();
    let mut done = 0;
    while done < count {
        let numbers = done..(done + ROUND).min(count);
        let path = |number: usize| format!("{dir}/{number:07}");
        let get = |number| Call::Get { path: path(number), watch: false };
        let read = |client: &mut Client| match steps {
            Steps::Writes => {}
            Steps::Task => client.pipeline(in_flight, numbers.clone().map(get)),
        };
        client.pipeline(in_flight, numbers.clone().map(|number| create(&path(number), TASK)));
        read(client);
        let set = |number| Call::Set { path: path(number), data: ENDED.to_vec(), version: 0 };
        client.pipeline(in_flight, numbers.clone().map(set));
        read(client);
        let delete = |number| Call::Delete { path: path(number), version: Some(1) };
        client.pipeline(in_flight, numbers.clone().map(delete));
        done = numbers.end;
    }
    (from, Instant::now())
}

/// How long one write takes that is alone: what a session waits for that has nothing else to do.
pub fn one_write(client: &mut Client, path: &str, version: &mut i32) -> f64 {
    let from = Instant::now();
    client.must(Call::Set { path: path.into(), data: ENDED.to_vec(), version: *version });
    *version += 1;
    from.elapsed().as_secs_f64()
}

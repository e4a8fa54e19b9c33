//! zkmw: a task service on the ZooKeeper ensemble that you already run.
//!
//! ```text
//! main ─ start ─ roles ─ recipes ─ contract ─ machine        pure: events and the time in, actions out
//!          └──── shell ─ { zk, exec }                        the world: channels, threads, sockets, processes
//! ```
//!
//! [`config`] makes one [`config::Config`] of flags, variables and the file; [`start`] makes a role of it and hands
//! that to [`shell`], the one loop. There [`machine::turn`] gives the role one event, and the actions that come out
//! are carried out in order: calls by [`zk`], processes by [`exec`], reports by [`report`].
//!
//! What holds everywhere:
//!
//! - `machine`, `contract`, `recipes` and `roles` are pure. They know no thread, clock, file, process, random number,
//!   or map with random order, and nothing of the other modules; clippy and `tests/purity` see to it.
//! - There is one caller of `step` and one `select!`. After every turn the role's invariants are asserted, in
//!   release builds too.
//! - Only [`zk`] names the `zookeeper` crate. A connection is a session; calls are answered exactly once.
//! - Every write is create-only or checked against a version, and correct for any writer: safety never rests on
//!   who leads.
//! - Every queue, retry, wait and buffer has a limit, named where it is used.
//!
//! `ARCHITECTURE.md` has the rest, and links to a page for each topic (`docs/design`) and for each decision
//! (`docs/decisions`).

pub mod batch;
pub mod clock;
pub mod config;
#[cfg_attr(not(test), deny(clippy::disallowed_macros, clippy::disallowed_methods, clippy::disallowed_types))]
pub mod contract;
pub mod exec;
pub mod exit;
#[cfg_attr(not(test), deny(clippy::disallowed_macros, clippy::disallowed_methods, clippy::disallowed_types))]
pub mod machine;
#[cfg_attr(not(test), deny(clippy::disallowed_macros, clippy::disallowed_methods, clippy::disallowed_types))]
pub mod recipes;
pub mod report;
pub mod resource_check;
#[cfg_attr(not(test), deny(clippy::disallowed_macros, clippy::disallowed_methods, clippy::disallowed_types))]
pub mod roles;
pub mod service;
pub mod shell;
pub mod start;
pub mod threads;
pub mod zk;

//! The integration tests: real ZooKeeper servers (`scripts/ensemble`) and real processes of the real binary.
//! `harness/mod.rs` says at its top what they share, and how to write one.

mod bad_input;
mod budget;
mod cluster;
mod confined;
mod conformance;
mod election;
mod foreign;
mod handover;
mod keeper;
// The harness may have a helper that no test needs today.
#[allow(dead_code)]
mod harness;
mod limits;
mod operations;
mod plain;
mod refused;
mod rewind;
mod rolling;
mod scenarios;
mod shortage;
mod throttled;
mod vanish;

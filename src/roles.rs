//! Roles: what a process of zkmw can be, each a pure state machine made of recipes.

pub mod client;
pub mod elector;
pub mod inspector;
pub mod master;
pub mod operator;
pub mod submitter;
pub mod waiter;
pub mod worker;

#[cfg(test)]
mod testing;

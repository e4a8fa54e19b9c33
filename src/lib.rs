//! zkmw: a task service on the ZooKeeper ensemble that you already run.

pub mod batch;
pub mod config;
pub mod contract;
pub mod exec;
pub mod exit;
pub mod machine;
pub mod recipes;
pub mod report;
pub mod roles;
pub mod shell;
pub mod start;
pub mod zk;

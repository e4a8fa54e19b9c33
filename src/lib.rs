//! zkmw: a task service on the ZooKeeper ensemble that you already run.

pub mod batch;
pub mod contract;
pub mod exit;
pub mod machine;
pub mod recipes;
pub mod report;
pub mod roles;

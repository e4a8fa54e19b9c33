//! zkmw: a task service on the ZooKeeper ensemble that you already run.

pub mod exec;
pub mod machine;

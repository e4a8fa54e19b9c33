//! zkmw: a task service on the ZooKeeper ensemble that you already run.

pub mod machine;

#[path = "../sim/ensemble.rs"]
mod ensemble;

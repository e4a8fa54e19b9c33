#[allow(dead_code)]
#[path = "../sim/ensemble.rs"]
mod ensemble;

//! Faults of users, programs and machines: each gets a clear message and the right exit code, and harms nobody else.

mod arguments;
mod batches;
mod names;
mod permissions;
mod runs;
mod values;
mod znodes;

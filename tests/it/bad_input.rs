//! What users, programs and machines do wrong: a clear message, the right exit code, and no harm to anybody else.

mod arguments;
mod batches;
mod names;
mod permissions;
mod runs;
mod values;
mod znodes;

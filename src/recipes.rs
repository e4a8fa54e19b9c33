//! Recipes: the protocols that roles are made of, as pure code over [`crate::machine`].
//!
//! A recipe makes calls, is shown every event, says which were meant for it, and returns to its role what follows.
//! None of them decides what happens to the process. They know nothing of threads, clocks or randomness.

pub mod assignment;
pub mod election;
pub mod ensure;
pub mod holder;
pub mod lease;
pub mod mirror;
pub mod past;
pub mod queue;
pub mod registration;
pub mod retry;

#[cfg(test)]
mod tests;

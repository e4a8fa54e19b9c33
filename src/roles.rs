//! The roles, as pure state machines made of the recipes.

pub mod master;
pub mod worker;

//! Roles: what a zkmw process can be, as pure state machines made of [`crate::recipes`].

pub mod elector;

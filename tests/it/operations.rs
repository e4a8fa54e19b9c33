//! The user's side of a service that works.

mod admission;
mod attempts;
mod batches;
mod chunks;
mod clients;
mod config;
mod drains;
mod ends;
mod handlers;
mod leftovers;
mod lines;
mod logs;
mod names;
mod order;
mod shares;
mod submits;
mod terminal;
mod views;
mod waiting;
mod why;

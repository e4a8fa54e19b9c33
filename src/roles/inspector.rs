//! Inspector: shows the state of the service and its workers ([`StatusOf`]), the elections ([`Elections`]), which tasks
//! there are ([`List`]) and all about one of them ([`Show`]).
//!
//! It never writes; each session starts the question again, or goes on where it was.

mod elections;
mod list;
mod running;
mod show;
mod status;

pub use elections::{Elections, ElectionsParams};
pub use list::{List, ListParams};
pub use show::{Show, ShowParams};
pub use status::{StatusForm, StatusOf, StatusParams};

#[cfg(test)]
mod tests;

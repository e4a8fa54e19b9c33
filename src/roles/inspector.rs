//! Inspector: tells how the service is ([`StatusOf`]), which tasks there are ([`List`]) and all about one of them
//! ([`Show`]). It never writes, and each session starts the question anew or goes on where it was.

mod status;

pub use status::{StatusOf, StatusParams};

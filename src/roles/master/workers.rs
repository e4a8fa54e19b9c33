//! Which incarnations of workers are registered, and what they offer.

use std::collections::BTreeMap;

use crate::contract::worker::Registration;
use crate::contract::{Incarnation, parse_registration};

/// The registered incarnations: their registrations by number, each with its content if that is readable.
#[derive(Debug, Default)]
pub struct Workers {
    registered: BTreeMap<Incarnation, BTreeMap<u64, Option<Registration>>>,
}

/// The end of an incarnation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone {
    /// Whose registrations are gone.
    pub incarnation: Incarnation,
    /// Its last registration said that it drains.
    pub drained: bool,
}

impl Workers {
    /// Notes that a registration exists; its content may follow. False if that is not the name of a registration.
    pub fn appeared(&mut self, name: &str) -> bool {
        let Some((incarnation, n)) = parse_registration(name) else { return false };
        self.registered.entry(incarnation).or_default().entry(n).or_insert(None);
        true
    }

    /// Takes in a registration that was read. Gives its incarnation.
    pub fn seen(&mut self, name: &str, registration: Option<Registration>) -> Option<Incarnation> {
        let (incarnation, n) = parse_registration(name)?;
        self.registered.entry(incarnation.clone()).or_default().insert(n, registration);
        Some(incarnation)
    }

    /// Notes that a registration is gone. Gives the incarnation if that was its last: then it is dead.
    pub fn gone(&mut self, name: &str) -> Option<Gone> {
        let (incarnation, n) = parse_registration(name)?;
        let registrations = self.registered.get_mut(&incarnation)?;
        let last = registrations.remove(&n).flatten();
        let is_dead = registrations.is_empty();
        is_dead.then(|| {
            self.registered.remove(&incarnation);
            Gone { incarnation, drained: last.is_some_and(|registration| registration.draining) }
        })
    }

    /// Whether the incarnation is registered.
    pub fn is_alive(&self, incarnation: &Incarnation) -> bool {
        self.registered.contains_key(incarnation)
    }

    /// What the incarnation's newest readable registration says.
    pub fn get(&self, incarnation: &Incarnation) -> Option<&Registration> {
        self.registered.get(incarnation)?.values().rev().flatten().next()
    }

    /// The registered incarnations that can be read.
    pub fn iter(&self) -> impl Iterator<Item = (&Incarnation, &Registration)> {
        self.registered.keys().filter_map(|incarnation| Some((incarnation, self.get(incarnation)?)))
    }

    /// The registered incarnations.
    pub fn incarnations(&self) -> impl Iterator<Item = &Incarnation> {
        self.registered.keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_incarnation_lives_while_any_registration_exists() {
        let mut workers = Workers::default();
        assert!(workers.appeared("w~1~0") && workers.appeared("w~1~1") && !workers.appeared("junk"));
        assert_eq!(workers.gone("w~1~0"), None);
        assert_eq!(workers.gone("w~1~0"), None);
        assert_eq!(workers.gone("w~1~1").map(|gone| gone.incarnation.to_string()).as_deref(), Some("w~1"));
        assert_eq!(workers.incarnations().count(), 0);
    }
}

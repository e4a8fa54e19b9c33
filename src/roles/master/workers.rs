//! Which incarnations of workers live, and what they offer.

use std::collections::BTreeMap;

use crate::contract::worker::Registration;
use crate::contract::{Incarnation, parse_registration};

/// The living incarnations: their registrations by number, each with what it says if that is readable.
#[derive(Debug, Default)]
pub struct Workers {
    lives: BTreeMap<Incarnation, BTreeMap<u64, Option<Registration>>>,
}

impl Workers {
    /// A registration stands; what it says may follow. False if the name is none of a registration.
    pub fn appeared(&mut self, name: &str) -> bool {
        let Some((incarnation, n)) = parse_registration(name) else { return false };
        self.lives.entry(incarnation).or_default().entry(n).or_insert(None);
        true
    }

    /// A registration was read. Gives its incarnation.
    pub fn seen(&mut self, name: &str, registration: Option<Registration>) -> Option<Incarnation> {
        let (incarnation, n) = parse_registration(name)?;
        self.lives.entry(incarnation.clone()).or_default().insert(n, registration);
        Some(incarnation)
    }

    /// A registration is gone. Gives the incarnation if that was its last: then it is dead.
    pub fn gone(&mut self, name: &str) -> Option<Incarnation> {
        let (incarnation, n) = parse_registration(name)?;
        let registrations = self.lives.get_mut(&incarnation)?;
        registrations.remove(&n);
        let is_dead = registrations.is_empty();
        is_dead.then(|| {
            self.lives.remove(&incarnation);
            incarnation
        })
    }

    /// Whether the incarnation is registered.
    pub fn is_alive(&self, incarnation: &Incarnation) -> bool {
        self.lives.contains_key(incarnation)
    }

    /// What the incarnation's newest readable registration says.
    pub fn get(&self, incarnation: &Incarnation) -> Option<&Registration> {
        self.lives.get(incarnation)?.values().rev().flatten().next()
    }

    /// The living incarnations that can be read.
    pub fn iter(&self) -> impl Iterator<Item = (&Incarnation, &Registration)> {
        self.lives.keys().filter_map(|incarnation| Some((incarnation, self.get(incarnation)?)))
    }

    /// The living incarnations.
    pub fn incarnations(&self) -> impl Iterator<Item = &Incarnation> {
        self.lives.keys()
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
        assert_eq!(workers.gone("w~1~1").map(|i| i.to_string()).as_deref(), Some("w~1"));
        assert_eq!(workers.incarnations().count(), 0);
    }
}

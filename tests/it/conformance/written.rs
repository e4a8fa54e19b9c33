//! Scripts written by hand.

use zkmw::machine::Call;

use super::script::Step;

pub fn scripts() -> Vec<(&'static str, Vec<Step>)> {
    vec![("one", vec![Step::Call { by: 0, call: Call::Exists { path: "/none".into(), watch: false } }])]
}

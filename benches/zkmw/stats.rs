//! Medians and spreads. Pure; must not know what the numbers measure.

use serde_json::{Value, json};

/// Numbers that were measured, in the order in which they were.
#[derive(Clone, Debug, Default)]
pub struct Samples(pub Vec<f64>);

impl Samples {
    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    /// The value below which this share of them lies; no number if there are none.
    pub fn quantile(&self, share: f64) -> f64 {
        let sorted = self.sorted();
        if sorted.is_empty() {
            return f64::NAN;
        }
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let (low, rest) = {
            let position = share * (sorted.len() - 1) as f64;
            (position.floor() as usize, position.fract())
        };
        let high = (low + 1).min(sorted.len() - 1);
        sorted[low] + (sorted[high] - sorted[low]) * rest
    }

    /// The middle one.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The smallest.
    pub fn low(&self) -> f64 {
        self.quantile(0.0)
    }

    /// The largest.
    pub fn high(&self) -> f64 {
        self.quantile(1.0)
    }

    /// Each divided by its partner, which was measured next to it.
    pub fn over(&self, other: &Samples) -> Samples {
        Samples(self.0.iter().zip(&other.0).map(|(mine, its)| mine / its).collect())
    }

    /// For `bench.json`.
    pub fn json(&self) -> Value {
        json!({"median": self.median(), "low": self.low(), "high": self.high(), "all": self.0})
    }
}

/// A number as a person reads it: three digits that count.
pub fn human(number: f64) -> String {
    match number.abs() {
        _ if number.is_nan() => "-".to_string(),
        size if size >= 1_000.0 || number.fract() == 0.0 => thousands(number),
        size if size >= 100.0 => format!("{number:.0}"),
        size if size >= 10.0 => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}

fn thousands(number: f64) -> String {
    let digits = format!("{:.0}", number.abs());
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if number < 0.0 { format!("-{text}") } else { text }
}

//! Defects that are known and not mended yet: the worlds in which they show.
//!
//! Whoever mends one takes its worlds out. Nothing else is let pass: a world that violates something
//! that is not listed for it fails every test run.

/// Worlds of the first tier, and what they violate.
const TIER_1: [(&str, &[u64]); 0] = [];

/// Worlds of the second tier, and what they violate.
const TIER_2: [(&str, &[u64]); 0] = [];

/// Whether it is known that the world of a seed violates this in the first tier.
pub fn in_tier_1(seed: u64, check: &str) -> bool {
    is_listed(&TIER_1, seed, check)
}

/// Whether it is known that the world of a seed violates this in the second tier.
pub fn in_tier_2(seed: u64, check: &str) -> bool {
    is_listed(&TIER_2, seed, check)
}

fn is_listed(known: &[(&str, &[u64])], seed: u64, check: &str) -> bool {
    known.iter().any(|(name, seeds)| *name == check && seeds.contains(&seed))
}

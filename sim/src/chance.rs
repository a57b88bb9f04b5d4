//! Chance without entropy: draws that depend on nothing but their arguments.

/// A small generator (SplitMix64). Equal seeds give equal sequences on every machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chance(u64);

impl Chance {
    /// The sequence of `seed`.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A sequence for one purpose, independent of how much any other has drawn.
    pub const fn of(seed: u64, purpose: &str) -> Self {
        let mut h = seed ^ 0xcbf2_9ce4_8422_2325;
        let bytes = purpose.as_bytes();
        let mut i = 0;
        while i < bytes.len() {
            h = (h ^ bytes[i] as u64).wrapping_mul(0x0000_0100_0000_01b3);
            i += 1;
        }
        Self(mix(h))
    }

    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// A number below `n`; zero if `n` is.
    pub const fn below(&mut self, n: u64) -> u64 {
        scale(self.next(), n)
    }

    /// A number from `low` to `high`, both included.
    pub const fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low).saturating_add(1))
    }

    /// True `permille` times in a thousand.
    pub const fn permille(&mut self, permille: u64) -> bool {
        self.below(1_000) < permille
    }

    /// One of `items`.
    ///
    /// # Panics
    /// If there are none.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize]
    }

    /// A duration whose mean is `mean`, as between events that know nothing of each other; at
    /// most eight times `mean`.
    pub fn waiting(&mut self, mean: u64) -> u64 {
        // Inversion in fixed point: -ln(u) by 64ths of the mean, so that no float can differ
        // between machines.
        let u = (self.next() >> 48) as usize; // 16 bits
        let zeros = (u as u16).leading_zeros().min(11) as u64;
        // -ln(u/2^16) is between zeros*ln2 and (zeros+1)*ln2; linear in between.
        let fraction = (self.next() >> 58) & 63;
        let ln2_in_64ths = 44;
        (mean * (zeros * ln2_in_64ths + fraction * ln2_in_64ths / 64)) / 64
    }
}

/// A number that depends on its arguments alone: the `n`th draw under `salt`.
pub const fn draw(salt: u64, n: u64) -> u64 {
    mix(mix(salt ^ GOLDEN).wrapping_add(n.wrapping_mul(GOLDEN)))
}

/// Maps a draw to a number below `n`.
pub const fn scale(draw: u64, n: u64) -> u64 {
    ((draw as u128 * n as u128) >> 64) as u64
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_give_equal_sequences_and_purposes_differ() {
        let (mut a, mut b) = (Chance::of(7, "x"), Chance::of(7, "x"));
        assert!((0..100).all(|_| a.next() == b.next()));
        assert_ne!(Chance::of(7, "x").next(), Chance::of(7, "y").next());
    }

    #[test]
    fn ranges_hold_and_are_used_to_their_ends() {
        let mut c = Chance::new(1);
        let seen: std::collections::BTreeSet<u64> = (0..1_000).map(|_| c.between(3, 6)).collect();
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [3, 4, 5, 6]);
        assert_eq!(c.below(0), 0);
    }

    #[test]
    fn waiting_times_have_about_the_mean_asked_for() {
        let mut c = Chance::new(3);
        let sum: u64 = (0..10_000).map(|_| c.waiting(1_000)).sum();
        assert!((9_000_000..11_000_000).contains(&sum), "{sum}");
    }
}

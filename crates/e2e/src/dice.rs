//! Seeded chance: the same seed gives the same numbers on every machine.

use std::ops::Range;

/// A `SplitMix64` generator: small, even, and good enough to choose moments with.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// The generator of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number in `range`, which must not be empty.
    pub fn within(&mut self, range: Range<u64>) -> u64 {
        // The bias of the remainder is below 2^-50 for every range that we use.
        range.start + self.next() % (range.end - range.start).max(1)
    }

    /// True in so many of a hundred cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.within(0..100) < percent
    }

    /// The numbers from 0 to `count`, in any order.
    pub fn shuffled(&mut self, count: usize) -> Vec<usize> {
        let mut numbers: Vec<usize> = (0..count).collect();
        for last in (1..count).rev() {
            let other = self.within(0..last as u64 + 1);
            numbers.swap(last, usize::try_from(other).unwrap_or(last));
        }
        numbers
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::Dice;

    #[test]
    fn a_seed_gives_the_numbers_of_the_reference_implementation() {
        let mut dice = Dice::new(1_234_567);
        assert_eq!([dice.next(), dice.next()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }

    #[test]
    fn numbers_stay_within_their_range_and_shuffles_lose_none() {
        let mut dice = Dice::new(7);
        assert!((0..1000).all(|_| (3..9).contains(&dice.within(3..9))));
        let mut shuffled = dice.shuffled(100);
        assert!(shuffled.windows(2).any(|pair| pair[0] > pair[1]));
        shuffled.sort_unstable();
        assert!(shuffled.into_iter().eq(0..100));
    }
}

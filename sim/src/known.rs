//! Defects that are known and not mended yet: the worlds in which they show.
//!
//! Whoever mends one takes its worlds out. Nothing else is let pass: a world that violates something
//! that is not listed for it fails every test run.

/// Worlds of the first tier, and what they violate.
const TIER_1: [(&str, &[u64]); 8] = [
    (
        "L1",
        &[
            49, 173, 195, 326, 440, 591, 888, 1007, 1024, 1050, 1166, 1313, 1397, 1515, 1705, 1750,
            1890, 1892, 1904, 1909, 1931, 1942,
        ],
    ),
    ("L5", &[1383]),
    (
        "L6",
        &[
            29, 80, 135, 172, 195, 403, 509, 515, 542, 628, 678, 699, 874, 909, 916, 924, 980,
            1022, 1093, 1166, 1216, 1254, 1352, 1385, 1417, 1425, 1449, 1467, 1502, 1520, 1687,
            1802, 1939,
        ],
    ),
    ("S1", &[322]),
    ("S2", &[322]),
    ("S4", &[312, 447, 1119, 1174, 1203, 1220, 1348, 1379, 1839]),
    ("S5", &[16, 523, 580, 1277, 1588, 1709, 1983]),
    ("S9", &[724, 1119]),
];

/// Worlds of the second tier, and what they violate.
const TIER_2: [(&str, &[u64]); 3] =
    [("L1", &[49, 173, 195]), ("L6", &[31, 45, 80, 150, 172, 195]), ("S5", &[16, 118])];

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

//! Properties of the core, tried on random inputs: see `tests/`.
//!
//! Each property runs 256 cases, or as many as the environment variable `PROPTEST_CASES` says.
//! Inputs that once failed are kept in `proptest-regressions/` and are tried first.

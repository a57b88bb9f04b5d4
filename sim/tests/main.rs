//! Whole worlds.

mod tier1;

//! The command, as a real process.

#[test]
fn placeholder_for_the_build() {}

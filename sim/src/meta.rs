//! Whether a seed says all there is to say: two processes, one seed, the same trace byte for byte.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::swarm;
use crate::trace::Trace;
use crate::world::World;

/// What came of comparing two processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// They differ, from this byte on
    DifferAt(u64),
    /// They are equal, and so long
    Equal(u64),
}

/// Writes everything that happens in the world of a seed.
///
/// # Errors
/// Those of writing.
pub fn write_trace(seed: u64, out: &mut impl Write) -> io::Result<()> {
    let world = World::new(swarm::scenario(seed), Trace::recording()).map_err(io::Error::other)?;
    let (report, trace) = world.run();
    let mut line = String::new();
    for (at, entry) in trace.entries() {
        line.clear();
        writeln!(line, "{} {entry:?}", at.0).map_err(io::Error::other)?;
        out.write_all(line.as_bytes())?;
    }
    writeln!(out, "{report:?}")?;
    out.flush()
}

/// Runs a seed in two processes of `program`, which is to write the seed's trace when called as
/// `program trace --seed N`.
///
/// # Errors
/// If one cannot be started or read, or fails.
pub fn compare(program: &Path, seed: u64) -> io::Result<Comparison> {
    let spawn = || {
        Command::new(program)
            .args(["trace", "--seed", &seed.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
    };
    let mut children = [spawn()?, spawn()?];
    let compared = {
        let [a, b] = &mut children;
        let outputs = (a.stdout.as_mut(), b.stdout.as_mut());
        let (Some(a), Some(b)) = outputs else {
            return Err(io::Error::other("a child without output"));
        };
        compare_streams(a, b)
    };
    if !matches!(compared, Ok(Comparison::Equal(_))) {
        // They may wait for somebody to read the rest.
        for child in &mut children {
            child.kill()?;
        }
    }
    let mut statuses = Vec::new();
    for child in &mut children {
        statuses.push(child.wait()?);
    }
    let compared = compared?;
    match statuses.iter().find(|status| !status.success()) {
        Some(status) if matches!(compared, Comparison::Equal(_)) => {
            Err(io::Error::other(format!("the process for seed {seed} ended with {status}")))
        }
        _ => Ok(compared),
    }
}

/// Compares two streams to the end of both.
///
/// # Errors
/// Those of reading.
pub fn compare_streams(a: &mut impl Read, b: &mut impl Read) -> io::Result<Comparison> {
    let (mut left, mut right) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut same = 0;
    loop {
        let (l, r) = (fill(a, &mut left)?, fill(b, &mut right)?);
        let differ = left[..l].iter().zip(&right[..r]).position(|(x, y)| x != y);
        if let Some(at) = differ {
            return Ok(Comparison::DifferAt(same + at as u64));
        }
        same += l.min(r) as u64;
        if l != r {
            return Ok(Comparison::DifferAt(same));
        }
        if l == 0 {
            return Ok(Comparison::Equal(same));
        }
    }
}

fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_equal_or_differ_somewhere() {
        let compare = |a: &[u8], b: &[u8]| compare_streams(&mut &*a, &mut &*b).unwrap();
        assert_eq!(compare(b"", b""), Comparison::Equal(0));
        assert_eq!(compare(b"abc", b"abc"), Comparison::Equal(3));
        assert_eq!(compare(b"abc", b"abd"), Comparison::DifferAt(2));
        assert_eq!(compare(b"abc", b"ab"), Comparison::DifferAt(2));
        let long = vec![7; 200_000];
        let mut other = long.clone();
        other[150_000] = 8;
        assert_eq!(compare(&long, &long), Comparison::Equal(200_000));
        assert_eq!(compare(&long, &other), Comparison::DifferAt(150_000));
    }
}

//! Files with `NAME=value` lines, as shells, systemd and Docker know them.

use std::collections::BTreeMap;
use std::path::Path;

/// Reads a file; a missing one is empty.
///
/// # Errors
/// Says which lines cannot be read, or why the file cannot.
pub(crate) fn read(path: &Path) -> Result<BTreeMap<String, String>, String> {
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text).map_err(|lines| {
            let lines = lines.iter().map(|(n, why)| format!("\n  - line {n} {why}"));
            format!("{} cannot be read:{}", path.display(), lines.collect::<String>())
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// Comments, blank lines, `export` and quotes are understood; nothing is expanded. Fails with the
/// numbers of the lines that cannot be read, and why.
fn parse(text: &str) -> Result<BTreeMap<String, String>, Vec<(usize, &'static str)>> {
    let mut values = BTreeMap::new();
    let mut bad = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let parts = line.split_once('=').map(|(name, value)| (name.trim(), value.trim()));
        match parts.filter(|(name, _)| !name.is_empty() && name.chars().all(plain)) {
            None => bad.push((number, "is not NAME=value")),
            Some((name, value)) => match unquoted(value) {
                Some(value) => drop(values.insert(name.to_owned(), value)),
                None => bad.push((number, "has a quote that does not end")),
            },
        }
    }
    if bad.is_empty() { Ok(values) } else { Err(bad) }
}

fn unquoted(value: &str) -> Option<String> {
    if let Some(rest) = value.strip_prefix('\'') {
        return rest.strip_suffix('\'').map(str::to_owned);
    }
    let Some(rest) = value.strip_prefix('"') else {
        return Some(value.split(" #").next().unwrap_or_default().trim_end().to_owned());
    };
    let mut out = String::new();
    let mut chars = rest.strip_suffix('"')?.chars();
    while let Some(c) = chars.next() {
        out.push(match c {
            '\\' => match chars.next()? {
                'n' => '\n',
                other => other,
            },
            c => c,
        });
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_quotes_and_exports_are_understood() {
        let text = "# c\n\nA=1\nexport B = two # note\nC='a # b'\nD=\"x\\n\\\"y\\\"\"\nE=\n";
        let values = parse(text).unwrap();
        let value = |name: &str| values[name].as_str();
        assert_eq!((value("A"), value("B"), value("C")), ("1", "two", "a # b"));
        assert_eq!((value("D"), value("E")), ("x\n\"y\"", ""));
    }

    #[test]
    fn bad_lines_are_named_all_at_once() {
        let plain = "is not NAME=value";
        let text = "A=1\nnonsense\nA B=1\nB=2\nC='x\n";
        let bad = [(2, plain), (3, plain), (5, "has a quote that does not end")];
        assert_eq!(parse(text), Err(bad.to_vec()));
    }
}

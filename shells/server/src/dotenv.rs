//! Files with `NAME=value` lines, as shells, systemd and Docker know them.

use std::collections::BTreeMap;
use std::path::Path;

/// Reads a file; a missing one is empty.
///
/// # Errors
/// Says which line cannot be read, or why the file cannot.
pub(crate) fn read(path: &Path) -> Result<BTreeMap<String, String>, String> {
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text)
            .map_err(|line| format!("{}: line {line} is not NAME=value", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// Comments, blank lines, `export` and quotes are understood; nothing is expanded. Fails with the
/// number of the line that cannot be read.
fn parse(text: &str) -> Result<BTreeMap<String, String>, usize> {
    let mut values = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        let (name, value) = line.split_once('=').ok_or(number + 1)?;
        let name = name.trim();
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || !name.chars().all(plain) {
            return Err(number + 1);
        }
        values.insert(name.to_owned(), unquoted(value.trim()).ok_or(number + 1)?);
    }
    Ok(values)
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
    fn a_bad_line_is_named() {
        assert_eq!(parse("A=1\nnonsense"), Err(2));
        assert_eq!(parse("A B=1"), Err(1));
        assert_eq!(parse("A='x"), Err(1));
    }
}

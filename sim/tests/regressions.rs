//! Scenarios that once failed: none may again, and those found with a known bug still show it.

use std::fs;
use std::path::Path;

use sim::campaign::outcome;
use sim::properties::PROPERTIES;
use sim::regression::Regression;
use sim::variant::Variant;

#[test]
fn what_was_found_once_is_not_found_again() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
    let mut paths: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    for path in paths {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).unwrap();
        let Regression { check, bug, scenario, .. } =
            Regression::from_json(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(PROPERTIES.iter().any(|property| property.name == check), "{name}: {check}");
        let violations = outcome(scenario.clone(), None).violations;
        assert!(violations.is_empty(), "{name}: {violations:#?}");
        if let Some(bug) = bug {
            let variant = Variant::named(&bug).unwrap_or_else(|| panic!("{name}: no bug {bug}"));
            let violations = outcome(scenario, Some(variant)).violations;
            assert!(
                violations.iter().any(|violation| violation.check == check),
                "{name}: {bug} does not violate {check} any more, but {violations:?}"
            );
        }
    }
}

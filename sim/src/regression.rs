//! Scenarios that once failed, kept as files and run again by every test run.

use serde::{Deserialize, Serialize};

use crate::scenario::Scenario;

/// A scenario with what it once violated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Regression {
    /// The property, as violations call it
    pub check: String,
    /// The wrong rule that was switched on, if one was: with it the scenario has to violate the
    /// property, and in any case it must not without
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bug: Option<String>,
    /// What was seen
    pub found: String,
    /// The world
    pub scenario: Scenario,
}

impl Regression {
    /// The regression as text.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("it has only plain data");
        text.push('\n');
        text
    }

    /// Reads a regression, or a bare scenario as one that violates nothing.
    ///
    /// # Errors
    /// Where the text is neither.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text).or_else(|error| {
            let scenario = Scenario::from_json(text).map_err(|of_scenario| {
                // Whichever the text meant to be.
                if text.contains("\"scenario\"") { error } else { of_scenario }
            })?;
            let (check, found) = (String::new(), String::new());
            Ok(Self { check, bug: None, found, scenario })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swarm;

    #[test]
    fn it_is_read_as_it_was_written_and_a_bare_scenario_too() {
        let scenario = swarm::scenario(3);
        let regression = Regression {
            check: "S1".into(),
            bug: Some("no-renewal".into()),
            found: "something".into(),
            scenario: scenario.clone(),
        };
        assert_eq!(Regression::from_json(&regression.to_json()).unwrap(), regression);
        assert_eq!(Regression::from_json(&scenario.to_json()).unwrap().scenario, scenario);
    }

    #[test]
    fn an_error_says_what_is_missing() {
        let error = Regression::from_json("{\"seed\": 1}").unwrap_err().to_string();
        assert!(error.contains("regime"), "{error}");
        let error = Regression::from_json("{\"check\": \"S1\", \"scenario\": {}}").unwrap_err();
        assert!(error.to_string().contains("seed") || error.to_string().contains("found"));
    }
}

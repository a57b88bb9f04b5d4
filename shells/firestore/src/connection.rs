//! Where the database is, and who asks.

use std::fmt;
use std::time::Duration;

use backfill_driver::port::StoreError;
use firestore::errors::FirestoreError;
use firestore::gcloud_sdk::google_cloud_auth::credentials::{
    CacheableResource, Credentials as AuthCredentials, CredentialsProvider, EntityTag,
};
use firestore::gcloud_sdk::google_cloud_auth::errors::CredentialsError;
use firestore::gcloud_sdk::tonic::codegen::http::{Extensions, HeaderMap, HeaderValue, header};
use firestore::gcloud_sdk::{GCP_DEFAULT_SCOPES, GoogleAuthHeaders};
use firestore::{FirestoreDb, FirestoreDbOptions};

const GOOGLE: &str = "https://firestore.googleapis.com";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Which database, and with which credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The Google Cloud project
    pub project: String,
    /// How to authenticate, which also says where the database is
    pub credentials: Credentials,
}

/// How to authenticate.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// What the host offers: `GOOGLE_APPLICATION_CREDENTIALS`, gcloud's file, the metadata server
    ApplicationDefault,
    /// An emulator at `host:port`, which asks for nothing
    Emulator(String),
    /// The JSON of a service account's key
    ServiceAccount(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ApplicationDefault => f.write_str("ApplicationDefault"),
            Self::Emulator(host) => f.debug_tuple("Emulator").field(host).finish(),
            Self::ServiceAccount(_) => f.write_str("ServiceAccount(…)"),
        }
    }
}

/// Why the environment names no database.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// The service account's key is not JSON
    #[error("FIREBASE_SERVICE_ACCOUNT_JSON is not JSON")]
    Key,
    /// The service account's key lacks something
    #[error("the service account's key has no `{field}`")]
    KeyField {
        /// What it lacks
        field: &'static str,
    },
    /// No project is named
    #[error("no project: set GOOGLE_CLOUD_PROJECT, or a service account key that names one")]
    Project,
}

impl Options {
    /// The database that the environment names, given a way to look a variable up.
    ///
    /// `FIRESTORE_EMULATOR_HOST` goes before every credential; `FIREBASE_SERVICE_ACCOUNT_JSON`
    /// before `GOOGLE_APPLICATION_CREDENTIALS`. The project is `GOOGLE_CLOUD_PROJECT` or else the
    /// one of the key.
    ///
    /// # Errors
    /// [`OptionsError`] if the key cannot be read or no project is named.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Self, OptionsError> {
        let var = |name: &str| var(name).filter(|value| !value.trim().is_empty());
        let project = var("GOOGLE_CLOUD_PROJECT");
        let (credentials, key) = if let Some(host) = var("FIRESTORE_EMULATOR_HOST") {
            (Credentials::Emulator(host), None)
        } else if let Some(key) = var("FIREBASE_SERVICE_ACCOUNT_JSON") {
            let parsed = parse_key(&key).ok_or(OptionsError::Key)?;
            for field in ["client_email", "private_key"] {
                let text = parsed.get(field).and_then(serde_json::Value::as_str);
                text.ok_or(OptionsError::KeyField { field })?;
            }
            (Credentials::ServiceAccount(key.clone()), Some(key))
        } else {
            let file = var("GOOGLE_APPLICATION_CREDENTIALS");
            let key = file.and_then(|file| std::fs::read_to_string(file).ok());
            (Credentials::ApplicationDefault, key)
        };
        let named = || {
            let key = parse_key(&key?)?;
            key.get("project_id")?.as_str().map(str::to_owned)
        };
        let project = project.or_else(named).ok_or(OptionsError::Project)?;
        Ok(Self { project, credentials })
    }
}

pub(crate) async fn connect(options: &Options) -> Result<FirestoreDb, StoreError> {
    // Signing and TLS use the process's provider; one that is already there serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let scopes = || GCP_DEFAULT_SCOPES.clone();
    let (url, auth) = match &options.credentials {
        Credentials::ApplicationDefault => {
            let auth = GoogleAuthHeaders::from_adc_with_scopes(scopes()).await;
            (GOOGLE.to_owned(), auth.map_err(unusable)?)
        }
        Credentials::Emulator(host) => {
            let url = if host.contains("://") { host.clone() } else { format!("http://{host}") };
            (url, GoogleAuthHeaders::from(AuthCredentials::from(Owner::default())))
        }
        Credentials::ServiceAccount(key) => {
            let key = parse_key(key).ok_or_else(|| unusable(OptionsError::Key))?;
            let auth = GoogleAuthHeaders::from_service_account_key(key, scopes()).await;
            (GOOGLE.to_owned(), auth.map_err(unusable)?)
        }
    };
    let db = FirestoreDbOptions::new(options.project.clone()).with_firebase_api_url(url);
    match tokio::time::timeout(CONNECT_TIMEOUT, FirestoreDb::with_options_auth(db, auth)).await {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(FirestoreError::InvalidParametersError(e))) => {
            Err(StoreError::Invalid { reason: e.to_string() })
        }
        Ok(Err(e)) => Err(StoreError::Unavailable(Some(Box::new(e)))),
        Err(e) => Err(StoreError::Unavailable(Some(Box::new(e)))),
    }
}

fn parse_key(key: &str) -> Option<serde_json::Value> {
    serde_json::from_str(key).ok()
}

fn unusable(e: impl std::error::Error + Send + Sync + 'static) -> StoreError {
    StoreError::Denied(Some(Box::new(e)))
}

/// What the emulator knows as its owner: it bypasses security rules.
#[derive(Debug, Default)]
struct Owner {
    tag: EntityTag,
}

impl CredentialsProvider for Owner {
    async fn headers(
        &self,
        extensions: Extensions,
    ) -> Result<CacheableResource<HeaderMap>, CredentialsError> {
        if extensions.get::<EntityTag>() == Some(&self.tag) {
            return Ok(CacheableResource::NotModified);
        }
        let bearer = (header::AUTHORIZATION, HeaderValue::from_static("Bearer owner"));
        Ok(CacheableResource::New {
            entity_tag: self.tag.clone(),
            data: HeaderMap::from_iter([bearer]),
        })
    }

    async fn universe_domain(&self) -> Option<String> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(vars: &[(&str, &str)]) -> Result<Options, OptionsError> {
        Options::from_vars(|name| {
            vars.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned())
        })
    }

    #[test]
    fn the_emulator_goes_before_credentials_and_the_project_may_come_from_the_key() {
        let key = r#"{"project_id":"from-key","client_email":"a@b","private_key":"k"}"#;
        let key = ("FIREBASE_SERVICE_ACCOUNT_JSON", key);
        let project = ("GOOGLE_CLOUD_PROJECT", "named");
        let emulator = ("FIRESTORE_EMULATOR_HOST", "127.0.0.1:9");
        assert_eq!(options(&[key]).unwrap().project, "from-key");
        assert_eq!(options(&[key, project]).unwrap().project, "named");
        let both = options(&[key, project, emulator]).unwrap();
        assert_eq!(both.credentials, Credentials::Emulator("127.0.0.1:9".into()));
        assert_eq!(
            options(&[project, ("FIREBASE_SERVICE_ACCOUNT_JSON", " ")]).unwrap().credentials,
            Credentials::ApplicationDefault
        );
        assert_eq!(options(&[emulator]), Err(OptionsError::Project));
        assert_eq!(options(&[("FIREBASE_SERVICE_ACCOUNT_JSON", "x")]), Err(OptionsError::Key));
        let lacking = r#"{"project_id":"from-key","client_email":"a@b"}"#;
        let field = "private_key";
        assert_eq!(
            options(&[("FIREBASE_SERVICE_ACCOUNT_JSON", lacking)]),
            Err(OptionsError::KeyField { field })
        );
    }

    #[test]
    fn keys_are_not_shown() {
        let shown = format!("{:?}", Credentials::ServiceAccount("secret".into()));
        assert!(!shown.contains("secret"));
    }
}

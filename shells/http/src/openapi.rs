//! The API's description, made from the code, and a page that shows it.

use axum::response::Html;
use axum::routing::get;
use axum::{Json, Router};
use utoipa::OpenApi;
use utoipa::openapi::Response;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};

use crate::access::Caller;
use crate::app::App;

/// The description of every path.
#[derive(OpenApi)]
#[openapi(
    info(title = "wa-backfill", description = "Errors are JSON: `{success:false, error, message, requestId}`."),
    paths(
        crate::accounts::add,
        crate::accounts::backfill,
        crate::accounts::list,
        crate::accounts::qr_page,
        crate::accounts::regenerate,
        crate::accounts::remove,
        crate::console::overview,
        crate::console::sync,
        crate::health::diag,
        crate::health::health,
        crate::health::metrics,
        crate::health::ready,
        crate::health::root,
        crate::send::send,
        crate::threads::inbox,
        crate::threads::messages,
        crate::threads::threads,
    ),
    modifiers(&Security)
)]
struct Description;

struct Security;

impl utoipa::Modify for Security {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        let components = api.components.get_or_insert_default();
        for name in ["admin", "firebase"] {
            let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
            components.add_security_scheme(name, scheme);
        }
        let paths = api.paths.paths.values_mut();
        for operation in paths.flat_map(|path| [&mut path.get, &mut path.post, &mut path.delete]) {
            let Some(operation) = operation.as_mut().filter(|o| o.security.is_some()) else {
                continue;
            };
            for (status, about) in OF_ALL_WITH_CREDENTIALS {
                let about = Response::builder().description(about).build();
                let responses = &mut operation.responses.responses;
                responses.entry(status.to_owned()).or_insert(about.into());
            }
        }
    }
}

/// What every path that needs credentials may answer.
const OF_ALL_WITH_CREDENTIALS: [(&str, &str); 3] = [
    ("401", "`unauthorized`: no credentials, or wrong ones"),
    ("403", "`forbidden`: these credentials do not allow it; `csrf` for a browser's"),
    ("429", "`rate_limited`: too many requests; `Retry-After` says when to come back"),
];

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/openapi.json", get(async |_: Caller| Json(Description::openapi())))
        .route("/docs", get(async || Html(include_str!("../assets/docs.html"))))
        .route("/docs.js", get(async || crate::console::script(include_str!("../assets/docs.js"))))
}

//! The API's description, made from the code, and a page that shows it.

use axum::response::Html;
use axum::routing::get;
use axum::{Json, Router};
use utoipa::OpenApi;
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
    }
}

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/openapi.json", get(async |_: Caller| Json(Description::openapi())))
        .route("/docs", get(async || Html(include_str!("../assets/docs.html"))))
        .route("/docs.js", get(async || crate::console::script(include_str!("../assets/docs.js"))))
}

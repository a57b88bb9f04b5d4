//! The picture a phone scans, and the page around it.

use crate::health::status;
use backfill_core::doc::{Fields, Value};

/// The page about an account. It loads itself anew until the account is connected.
pub(crate) fn page(fields: &Fields) -> String {
    let text = |name: &str| fields.get(name).and_then(Value::as_str);
    let status = status(fields);
    let picture = text("qrCode").filter(|code| code.starts_with("data:image/"));
    let code = text("pairingCode").filter(|code| !code.is_empty());
    let body = match (picture, code) {
        _ if status == "connected" => "<p>The account is connected.</p>".to_owned(),
        (None, None) => {
            "<p>There is no QR code at the moment. This page looks again by itself.</p>".to_owned()
        }
        (picture, code) => {
            let picture = picture.map_or(String::new(), |picture| {
                let picture = escaped(picture);
                format!(
                    "<p><img class=qr alt=\"QR code to link this account\" src=\"{picture}\"></p>"
                )
            });
            let code = code.map_or(String::new(), |code| {
                format!("<p>Or type this code on the phone: <code>{}</code></p>", escaped(code))
            });
            format!("{picture}{code}<p>On the phone: Settings, Linked devices, Link a device.</p>")
        }
    };
    let refresh = if status == "connected" { "" } else { "<meta http-equiv=refresh content=5>" };
    let name = escaped(text("name").unwrap_or("Account"));
    let status = escaped(status);
    whole(
        &format!("{refresh}<title>{name}</title>"),
        &format!("<h1>{name}</h1><p class=status>{status}</p>{body}"),
    )
}

/// There is no such account.
pub(crate) fn missing() -> String {
    whole("<title>Not found</title>", "<h1>Not found</h1><p>There is no such account.</p>")
}

fn whole(head: &str, body: &str) -> String {
    format!(
        "<!doctype html><html lang=en><head><meta charset=utf-8>\
         <meta name=viewport content=\"width=device-width, initial-scale=1\">{head}\
         <link rel=stylesheet href=/console/console.css></head><body class=page>\
         <main>{body}<p><a href=/console>Console</a></p></main></body></html>"
    )
}

/// Text as HTML shows it.
pub(crate) fn escaped(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(c),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_bring_markup() {
        let fields = Fields::from([
            ("name".into(), "<script>alert(1)</script>".into()),
            ("qrCode".into(), "data:image/png;base64,\"><script>".into()),
            ("status".into(), "qr_ready".into()),
        ]);
        let page = page(&fields);
        assert!(!page.contains("<script"), "{page}");
        assert!(page.contains("http-equiv=refresh"));
    }
}

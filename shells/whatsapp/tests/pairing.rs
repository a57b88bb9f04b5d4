//! Linking a device.

use backfill_core::io::{CloseReason, GatewayEvent};
use waproto::whatsapp as wa;
use whatsapp_double::Seen;

use crate::harness::World;

#[tokio::test(start_paused = true)]
async fn a_device_is_linked_by_its_picture() {
    let world = World::new().await;
    let contact = world.account.contact("15550000002", "102");
    let process = world.start().await;
    world.until_status("qr_ready").await;
    let account = world.document(world.id.path().as_str()).await.unwrap();
    let code = world.code_on_show().await;
    assert!(qr::shows(account.str("qrCode").unwrap(), &code));
    assert_eq!(account.str("pairingCode"), None, "there is no number to send it to");
    world.account.scan(&code).unwrap();
    process.opened(1).await;
    world.until_status("connected").await;

    let events = process.seen.events();
    let paired = events.iter().filter(|event| matches!(event, GatewayEvent::Paired { .. }));
    assert_eq!(paired.count(), 1);
    assert!(!events.iter().any(|event| matches!(event, GatewayEvent::Closed { .. })));
    let account = world.document(world.id.path().as_str()).await.unwrap();
    assert!(account.value("qrCode").is_none_or(|value| value.as_str().is_none()));
    let props = world
        .account
        .wait("a linked device", |seen| match seen {
            Seen::Paired { props, .. } => Some(props.clone()),
            _ => None,
        })
        .await;
    assert_eq!(props.require_full_sync, Some(true));
    assert_eq!(props.history_sync_config.on_demand_ready, Some(true));
    assert!(props.history_sync_config.full_sync_days_limit > Some(365));

    // Nobody can write to a device without keys.
    world
        .account
        .wait("keys", |seen| matches!(seen, Seen::KeysUploaded { .. }).then_some(()))
        .await;
    let id = contact.text("welcome");
    world.until_message("15550000002@s.whatsapp.net", &id).await;
    world.account.wait_drained().await;
    process.stop().await;
    let process = world.start().await;
    process.opened(1).await;
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn who_wants_no_long_history_says_so_when_linking() {
    let world = World::new().await;
    let mut options = world.options();
    options.full_history = false;
    let process = world.start_with(world.store.clone(), options, world.settings()).await;
    world.until_status("qr_ready").await;
    let account = world.document(world.id.path().as_str()).await.unwrap();
    let chrome = wa::device_props::PlatformType::CHROME;
    let code = world.code_of(chrome).await;
    assert!(qr::shows(account.str("qrCode").unwrap(), &code));
    world.account.scan(&code).unwrap();
    process.opened(1).await;
    let props = world.account.wait("a linked device", |seen| match seen {
        Seen::Paired { props, .. } => Some(props.clone()),
        _ => None,
    });
    let props = props.await;
    assert_eq!(props.require_full_sync, Some(false));
    assert_eq!(props.platform_type, Some(chrome));
    assert_eq!(props.history_sync_config.on_demand_ready, Some(true));
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_account_with_a_number_gets_a_code_to_type_in() {
    let world = World::new().await;
    world.put_account("connecting", &[("phoneE164", "+15550000001")]).await;
    let process = world.start().await;
    let code = world
        .until("a pairing code", async || {
            let account = world.document(world.id.path().as_str()).await?;
            assert!(account.str("pairingCode").is_none() || account.str("qrCode").is_some());
            account.str("pairingCode").map(str::to_owned)
        })
        .await;
    world.account.enter_code(&code).unwrap();
    process.opened(1).await;
    world.until_status("connected").await;
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn codes_that_nobody_scans_expire() {
    for phone in [None, Some("+15550000001")] {
        let world = World::new().await;
        if let Some(phone) = phone {
            world.put_account("connecting", &[("phoneE164", phone)]).await;
        }
        let process = world.start().await;
        world.until_status("qr_ready").await;
        assert_eq!(process.closed().await, CloseReason::PairingExpired);
        world.until_status("needs_qr").await;
        let shown = process.seen.events().into_iter().filter_map(|event| match event {
            GatewayEvent::Pairing { qr, .. } => qr,
            _ => None,
        });
        let mut shown: Vec<_> = shown.collect();
        shown.dedup();
        assert_eq!(shown.len(), 6);
        process.stop().await;
    }
}

mod qr {
    //! Reads the pictures that the gateway draws: no distortion, one dot size.

    use std::io::Read;

    use base64::Engine;
    use qrcode::{Color, EcLevel, QrCode};

    /// Whether a picture is that of a text.
    pub(crate) fn shows(url: &str, text: &str) -> bool {
        let png = url.strip_prefix("data:image/png;base64,").unwrap();
        let png = base64::engine::general_purpose::STANDARD.decode(png).unwrap();
        let side = u32::from_be_bytes(png[16..20].try_into().unwrap()) as usize;
        let from = png.windows(4).position(|w| w == b"IDAT").unwrap() + 4;
        let mut rows = Vec::new();
        flate2::read::ZlibDecoder::new(&png[from..]).read_to_end(&mut rows).unwrap();
        let stride = side.div_ceil(8) + 1;
        let dark = |x: usize, y: usize| rows[y * stride + 1 + x / 8] >> (7 - x % 8) & 1 == 0;
        let quiet = (0..side).find(|n| dark(*n, *n)).unwrap();
        // The finder pattern begins with seven dark modules.
        let scale = (quiet..side).take_while(|x| dark(*x, quiet)).count() / 7;
        let width = (side - 2 * quiet) / scale;
        let code = QrCode::with_error_correction_level(text, EcLevel::L).unwrap();
        width == code.width()
            && (0..width * width).all(|n| {
                let (x, y) = (n % width, n / width);
                dark(quiet + x * scale, quiet + y * scale) == (code[(x, y)] == Color::Dark)
            })
    }
}

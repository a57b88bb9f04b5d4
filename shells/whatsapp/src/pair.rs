//! What it takes to show somebody how to link a device.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::ZlibEncoder;
use qrcode::{Color, EcLevel, QrCode};
use smol_str::{SmolStr, format_smolstr};
use std::io::Write;

/// The picture of a QR code as a `data:` URL; `None` if the text is too long for one.
pub(crate) fn picture(code: &str) -> Option<SmolStr> {
    let qr = QrCode::with_error_correction_level(code, EcLevel::L).ok()?;
    let width = qr.width();
    let side = (width + 2 * QUIET) * SCALE;
    let dark = |x: usize, y: usize| {
        let at = |n: usize| (n / SCALE).checked_sub(QUIET).filter(|n| *n < width);
        matches!((at(x), at(y)), (Some(x), Some(y)) if qr[(x, y)] == Color::Dark)
    };
    let mut rows = Vec::with_capacity(side * (side / 8 + 2));
    for y in 0..side {
        // No filter; eight dots to the byte, white is 1.
        rows.push(0);
        for x in (0..side).step_by(8) {
            let bits = (0..8).map(|bit| !(x + bit < side && dark(x + bit, y)));
            rows.push(bits.fold(0_u8, |byte, white| byte << 1 | u8::from(white)));
        }
    }
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
    zlib.write_all(&rows).ok()?;
    let data = zlib.finish().ok()?;

    let side = u32::try_from(side).ok()?.to_be_bytes();
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    // One bit per dot, shades of grey.
    let header = [&side[..], &side, &[1, 0, 0, 0, 0]].concat();
    for (kind, content) in [(b"IHDR", &header), (b"IDAT", &data), (b"IEND", &Vec::new())] {
        png.extend(u32::try_from(content.len()).ok()?.to_be_bytes());
        let from = png.len();
        png.extend(kind);
        png.extend(content);
        let mut crc = flate2::Crc::new();
        crc.update(&png[from..]);
        png.extend(crc.sum().to_be_bytes());
    }
    Some(format_smolstr!("data:image/png;base64,{}", STANDARD.encode(png)))
}

/// The digits of a phone number with its country code; `None` if it has none.
pub(crate) fn digits(phone: &str) -> Option<String> {
    let digits: String = phone.chars().filter(char::is_ascii_digit).collect();
    // What people write without country code cannot be linked by number.
    (phone.trim_start().starts_with('+') && digits.len() >= 7).then_some(digits)
}

/// Dots per module of the code.
const SCALE: usize = 6;
/// Modules of white around the code, as the standard wants.
const QUIET: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_a_small_png_of_the_code() {
        let url = picture(&"2@".repeat(120)).unwrap();
        let png = STANDARD.decode(url.strip_prefix("data:image/png;base64,").unwrap()).unwrap();
        assert!(png.starts_with(b"\x89PNG\r\n\x1a\n"));
        assert!(png.len() < 4_000, "{}", png.len());
        let side = u32::from_be_bytes(png[16..20].try_into().unwrap()) as usize;
        assert_eq!(side % SCALE, 0);
        // The corner of the finder pattern is dark, the quiet zone white.
        let from = png.windows(4).position(|w| w == b"IDAT").unwrap() + 4;
        let len = u32::from_be_bytes(png[from - 8..from - 4].try_into().unwrap()) as usize;
        let mut rows = Vec::new();
        let mut zlib = flate2::read::ZlibDecoder::new(&png[from..from + len]);
        std::io::Read::read_to_end(&mut zlib, &mut rows).unwrap();
        let stride = side.div_ceil(8) + 1;
        assert_eq!(rows.len(), stride * side);
        let dot = |x: usize, y: usize| rows[y * stride + 1 + x / 8] >> (7 - x % 8) & 1;
        assert_eq!(dot(0, 0), 1);
        assert_eq!(dot(QUIET * SCALE, QUIET * SCALE), 0);
    }

    #[test]
    fn a_number_needs_its_country_code() {
        assert_eq!(digits("+40 712-345.678").as_deref(), Some("40712345678"));
        assert_eq!(digits("0712345678"), None);
        assert_eq!(digits("+"), None);
    }
}

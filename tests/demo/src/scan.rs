//! A phone's camera: from the picture of a QR code to what it says.

use anyhow::{Context, Result, ensure};
use base64::prelude::{BASE64_STANDARD, Engine};

/// Reads the QR code in a PNG given as a data URL, as `accounts/{id}.qrCode` holds it.
///
/// # Errors
/// It is no such picture, or nobody can read it.
pub fn read(data_url: &str) -> Result<String> {
    let encoded = data_url.strip_prefix("data:image/png;base64,");
    let png = BASE64_STANDARD.decode(encoded.context("it is no PNG as a data URL")?)?;
    let mut decoder = png::Decoder::new(std::io::Cursor::new(png));
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info()?;
    let mut pixels = vec![0; reader.output_buffer_size().context("the picture is too large")?];
    let frame = reader.next_frame(&mut pixels)?;
    let (width, samples) = (frame.width as usize, frame.color_type.samples());
    let grey = |x: usize, y: usize| pixels[(y * width + x) * samples];
    let mut image = rqrr::PreparedImage::prepare_from_greyscale(width, frame.height as usize, grey);
    let grids = image.detect_grids();
    ensure!(grids.len() == 1, "there are {} codes in the picture", grids.len());
    let (_, content) = grids[0].decode()?;
    Ok(content)
}

//! WhatsApp as the driver's gateway, over the real client.

//! One client connection: prologue, handshake, then encrypted stanzas in both directions.
//!
//! The bytes come and go through channels, so the same code serves the in-memory transport and the
//! WebSocket.

use std::collections::VecDeque;

use anyhow::{Context, Result, ensure};
use bytes::{Buf, Bytes, BytesMut};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use wacore_binary::Node;
use wacore_binary::consts::WA_CONN_HEADER;
use wacore_binary::marshal::{marshal, unmarshal_ref};
use wacore_binary::util::unpack;
use wacore_noise::framing::{FrameDecoder, encode_frame};
use whatsapp_rust::transport::DisconnectReason;

use crate::Double;
use crate::noise::{self, Reply, Session};

/// What the server does with a connection
pub(crate) enum Command {
    /// End it; nothing queued before is lost
    Close(DisconnectReason),
    /// Write a stanza
    Send(Node),
}

/// What a transport carries to the client
pub(crate) enum Outgoing {
    Closed(DisconnectReason),
    Data(Bytes),
}

/// Serves one connection until either side ends it.
pub(crate) async fn serve(
    double: Double,
    mut incoming: UnboundedReceiver<Bytes>,
    outgoing: UnboundedSender<Outgoing>,
) {
    let mut frames = Frames::default();
    let session = match handshake(&double, &mut frames, &mut incoming, &outgoing).await {
        Ok(session) => session,
        Err(error) => {
            double.with(|state| state.abandoned += 1);
            let reason = DisconnectReason::ReadError(format!("handshake refused: {error:#}"));
            let _ = outgoing.send(Outgoing::Closed(reason));
            return;
        }
    };
    let reason = exchange(&double, session, frames, incoming, &outgoing).await;
    let _ = outgoing.send(Outgoing::Closed(reason));
}

async fn handshake(
    double: &Double,
    frames: &mut Frames,
    incoming: &mut UnboundedReceiver<Bytes>,
    outgoing: &UnboundedSender<Outgoing>,
) -> Result<Session> {
    let hello = frames.next(incoming).await?;
    let (static_key, forged) = double.identity();
    match noise::answer_hello(&static_key, forged, &hello)? {
        Reply::Finished(answer, session) => {
            outgoing.send(Outgoing::Data(encode_frame(&answer, None)?.into()))?;
            Ok(*session)
        }
        Reply::Pending(answer, pending) => {
            outgoing.send(Outgoing::Data(encode_frame(&answer, None)?.into()))?;
            pending.finish(&frames.next(incoming).await?)
        }
    }
}

async fn exchange(
    double: &Double,
    mut session: Session,
    mut frames: Frames,
    mut incoming: UnboundedReceiver<Bytes>,
    outgoing: &UnboundedSender<Outgoing>,
) -> DisconnectReason {
    let (commands, mut queue) = unbounded_channel();
    let id = double.connected(&session, commands);
    let reason = loop {
        tokio::select! {
            command = queue.recv() => match command {
                Some(Command::Send(node)) => {
                    let written = write(&mut session, &node);
                    if !written.is_ok_and(|bytes| outgoing.send(Outgoing::Data(bytes)).is_ok()) {
                        break DisconnectReason::StreamEnded;
                    }
                }
                Some(Command::Close(reason)) => break reason,
                None => break DisconnectReason::StreamEnded,
            },
            frame = frames.next(&mut incoming) => {
                let Ok(frame) = frame else { break DisconnectReason::StreamEnded };
                match read(&mut session, frame) {
                    Ok(node) => double.received(id, &node),
                    Err(error) => break DisconnectReason::ReadError(format!("{error:#}")),
                }
            }
        }
    };
    double.disconnected(id);
    reason
}

fn write(session: &mut Session, node: &Node) -> Result<Bytes> {
    Ok(encode_frame(&session.seal(&marshal(node)?)?, None)?.into())
}

fn read(session: &mut Session, frame: Vec<u8>) -> Result<Node> {
    let plaintext = session.open(frame)?;
    Ok(unmarshal_ref(&unpack(&plaintext)?)?.to_owned())
}

/// Splits the client's byte stream into frames, after its prologue
#[derive(Default)]
struct Frames {
    prologue: BytesMut,
    opened: bool,
    decoder: FrameDecoder,
    ready: VecDeque<Vec<u8>>,
}

impl Frames {
    /// Cancel safe: bytes already taken from the channel stay here.
    async fn next(&mut self, incoming: &mut UnboundedReceiver<Bytes>) -> Result<Vec<u8>> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return Ok(frame);
            }
            let bytes = incoming.recv().await.context("the client closed the connection")?;
            self.feed(&bytes)?;
        }
    }

    fn feed(&mut self, bytes: &[u8]) -> Result<()> {
        if self.opened {
            self.decoder.feed(bytes);
        } else {
            self.prologue.extend_from_slice(bytes);
            self.open()?;
        }
        while let Some(frame) = self.decoder.decode_frame() {
            self.ready.push_back(frame.to_vec());
        }
        Ok(())
    }

    /// Skips `"ED\0\1" len3 routing` if present, and the connection header.
    fn open(&mut self) -> Result<()> {
        let buffered = &self.prologue;
        let routing = match buffered.as_ref() {
            [b'E', b'D', 0, 1, a, b, c, ..] => {
                7 + usize::from(*a) * 65_536 + usize::from(*b) * 256 + usize::from(*c)
            }
            [b'E', ..] if buffered.len() < 7 => return Ok(()),
            _ => 0,
        };
        if buffered.len() < routing + WA_CONN_HEADER.len() {
            return Ok(());
        }
        self.prologue.advance(routing);
        ensure!(self.prologue.starts_with(&WA_CONN_HEADER), "not a WhatsApp connection header");
        self.prologue.advance(WA_CONN_HEADER.len());
        self.opened = true;
        self.decoder.feed(&self.prologue.split());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_split_of_the_stream() {
        let mut stream = b"ED\0\x01\0\0\x02xy".to_vec();
        stream.extend_from_slice(&WA_CONN_HEADER);
        stream.extend(encode_frame(b"first", None).unwrap());
        stream.extend(encode_frame(b"second", None).unwrap());
        for size in 1..=stream.len() {
            let mut frames = Frames::default();
            for piece in stream.chunks(size) {
                frames.feed(piece).unwrap();
            }
            assert_eq!(frames.ready, [b"first".to_vec(), b"second".to_vec()], "pieces of {size}");
        }
    }

    #[test]
    fn a_foreign_prologue_is_refused() {
        assert!(Frames::default().feed(b"GET / HTTP/1.1\r\n").is_err());
    }
}

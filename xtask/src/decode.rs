//! Turns what the image writes to its console into lines: plain text as it is, log frames decoded
//! with the very image that wrote them.

use defmt_decoder::{DecodeError, Locations, Table};
use std::path::Path;

/// Announces a log frame; the frame ends with a 0.
const FRAME_START: u8 = 1;
const FRAME_END: u8 = 0;
/// A longer frame is none.
const FRAME_MAX: usize = 4096;

/// A piece of the console's stream.
#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Frame(Vec<u8>),
}

/// Takes the stream apart.
#[derive(Default)]
struct Splitter {
    held: Vec<u8>,
    in_frame: bool,
}

impl Splitter {
    fn take(&mut self, byte: u8) -> Option<Piece> {
        match (self.in_frame, byte) {
            (true, FRAME_END) => {
                self.in_frame = false;
                self.held.push(byte);
                Some(Piece::Frame(std::mem::take(&mut self.held)))
            }
            (true, _) => {
                self.held.push(byte);
                (self.held.len() > FRAME_MAX).then(|| {
                    self.in_frame = false;
                    self.text()
                })
            }
            (false, FRAME_START) => {
                self.in_frame = true;
                (!self.held.is_empty()).then(|| self.text())
            }
            (false, b'\n') => Some(self.text()),
            (false, b'\r' | FRAME_END) => None,
            (false, _) => {
                self.held.push(byte);
                None
            }
        }
    }

    fn text(&mut self) -> Piece {
        Piece::Text(String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned())
    }
}

/// Decodes the console of one run of an image.
pub(crate) struct Decoder {
    table: Table,
    locations: Locations,
    splitter: Splitter,
}

impl Decoder {
    /// A decoder for the image with this content.
    pub(crate) fn new(elf: &[u8]) -> Result<Decoder, String> {
        let table = Table::parse(elf).map_err(|error| error.to_string())?;
        let table = table.ok_or("the image has no log strings")?;
        let locations = table.get_locations(elf).map_err(|error| error.to_string())?;
        if !table.indices().all(|index| locations.contains_key(&(index as u64))) {
            return Err("the image has no debug information for its log".into());
        }
        Ok(Decoder { table, locations, splitter: Splitter::default() })
    }

    /// The lines that these bytes complete.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Vec<String> {
        let pieces: Vec<Piece> =
            bytes.iter().filter_map(|&byte| self.splitter.take(byte)).collect();
        pieces.into_iter().map(|piece| self.line(piece)).collect()
    }

    fn line(&self, piece: Piece) -> String {
        let bytes = match piece {
            Piece::Text(text) => return text,
            Piece::Frame(bytes) => bytes,
        };
        let mut stream = self.table.new_stream_decoder();
        stream.received(&bytes);
        let frame = match stream.decode() {
            Ok(frame) => frame,
            Err(DecodeError::UnexpectedEof | DecodeError::Malformed) => {
                return format!("(a log frame of {} bytes that can't be decoded)", bytes.len());
            }
        };
        let at = self.locations.get(&frame.index()).map_or_else(String::new, |location| {
            let file = Path::new(&location.file);
            let names: Vec<_> = file.components().rev().take(2).collect();
            let file: std::path::PathBuf = names.into_iter().rev().collect();
            format!(" ({}:{})", file.display(), location.line)
        });
        format!("{}{at}", frame.display(false))
    }
}

#[cfg(test)]
mod tests {
    use super::{Piece, Splitter};

    fn split(bytes: &[u8]) -> Vec<Piece> {
        let mut splitter = Splitter::default();
        bytes.iter().filter_map(|&byte| splitter.take(byte)).collect()
    }

    #[test]
    fn text_and_frames_are_told_apart() {
        let text = |text: &str| Piece::Text(text.into());
        assert_eq!(
            split(b"one\r\n\x01ab\0\x01c\0two\r\nhalf\x01d\0"),
            [
                text("one"),
                Piece::Frame(b"ab\0".into()),
                Piece::Frame(b"c\0".into()),
                text("two"),
                text("half"),
                Piece::Frame(b"d\0".into()),
            ]
        );
    }

    #[test]
    fn a_frame_that_was_cut_off_does_not_swallow_the_text_behind_it() {
        let pieces = split(b"\x01ab\0outrider: panicked\r\n");
        assert_eq!(pieces[1], Piece::Text("outrider: panicked".into()));
        let mut endless = vec![1];
        endless.extend([b'x'; 5000]);
        endless.push(b'\n');
        assert_eq!(split(&endless).len(), 2);
    }
}

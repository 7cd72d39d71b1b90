//! An object as UTF-8 text: unpacked and transcoded while it streams, in blocks of bounded size. Called by the import's
//! owner, for its look at the head and for its scan.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_compression::tokio::bufread::{BzDecoder, GzipDecoder, XzDecoder, ZstdDecoder};
use bytes::Bytes;
use futures::stream::{Stream, StreamExt};
use tokio::io::{AsyncBufRead, AsyncRead, AsyncReadExt};
use tokio_util::io::StreamReader;

use longshore_domain::{Compression, Encoding, EncodingErrors, Format};
use longshore_parse::Transcoder;

use super::ObjectError;

/// What is unpacked at once, in bytes.
const BLOCK: usize = 64 * 1024;
/// A packed file may hold this many times its own size: what people pack stays far below, and bombs are far above.
const MOST_RATIO: u64 = 1_000;
/// Up to this many bytes, the ratio says nothing.
const RATIO_FROM: u64 = 256 << 20;
/// What a packed file may hold at most, in bytes: 16 TiB.
const MOST_DECODED: u64 = 16 << 40;
/// Memory that a stream of xz may ask for, by the size of its dictionary: `xz -9` needs 65 MiB. (zstd's windows end at as much.)
const XZ_MEMORY: u64 = 128 << 20;

/// Why an object gives no more text.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The object cannot be had.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// It is not what it seems: broken, cut off, or far too large when unpacked. Reading it again changes nothing.
    #[error("{0}")]
    Data(String),
}

/// How an object becomes text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decoding {
    /// Resolved: never [`Compression::Auto`].
    pub compression: Compression,
    /// The encoding of what is unpacked.
    pub encoding: Encoding,
    /// What bytes that are not the encoding become.
    pub errors: EncodingErrors,
}

impl Decoding {
    /// Of a resolved format.
    #[must_use]
    pub fn of(format: &Format) -> Self {
        Self { compression: format.compression, encoding: format.encoding, errors: format.encoding_errors }
    }
}

/// A stream of text.
pub struct TextReader {
    reader: Pin<Box<dyn AsyncRead + Send>>,
    compression: Compression,
    transcoder: Transcoder,
    consumed: Arc<AtomicU64>,
    unpacked: u64,
    buffer: Vec<u8>,
    ended: bool,
}

impl TextReader {
    /// Reads the text of an object whose bytes come from `blocks`, from its first byte on.
    pub fn new(blocks: impl Stream<Item = Result<Bytes, ObjectError>> + Send + 'static, decoding: Decoding) -> Self {
        let consumed = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&consumed);
        let blocks = blocks.map(move |block| {
            // Counted when it is handed over: at most a block ahead of what was unpacked.
            block
                .inspect(|block| {
                    counter.fetch_add(block.len() as u64, Ordering::Relaxed);
                })
                .map_err(io::Error::other)
        });
        Self {
            reader: unpacked(StreamReader::new(Box::pin(blocks)), decoding.compression),
            compression: decoding.compression,
            transcoder: Transcoder::new(decoding.encoding, decoding.errors),
            consumed,
            unpacked: 0,
            buffer: vec![0; BLOCK],
            ended: false,
        }
    }

    /// The object's bytes that the text so far was made of.
    #[must_use]
    pub fn consumed(&self) -> u64 {
        self.consumed.load(Ordering::Relaxed)
    }

    /// Appends the next text to `text`; `false` behind the last.
    ///
    /// # Errors
    /// [`TextError`]
    pub async fn next(&mut self, text: &mut Vec<u8>) -> Result<bool, TextError> {
        if self.ended {
            return Ok(false);
        }
        let read = self.reader.read(&mut self.buffer).await.map_err(|error| self.error(error))?;
        self.unpacked += read as u64;
        self.check_size()?;
        self.ended = read == 0;
        self.transcoder.feed(&self.buffer[..read], self.ended, text);
        Ok(true)
    }

    fn check_size(&self) -> Result<(), TextError> {
        if self.compression == Compression::None {
            return Ok(());
        }
        let most = self.consumed().saturating_mul(MOST_RATIO).clamp(RATIO_FROM, MOST_DECODED);
        if self.unpacked <= most {
            return Ok(());
        }
        Err(TextError::Data(format!(
            "the file unpacks to more than {most} bytes ({MOST_RATIO} times what was read of it, {MOST_DECODED} bytes at \
             most): it is no table that anybody packed; upload it unpacked"
        )))
    }

    /// The storage's errors pass through the decoder as they are; everything else is the decoder's own.
    fn error(&self, error: io::Error) -> TextError {
        let name = name(self.compression);
        let cut_off = error.kind() == io::ErrorKind::UnexpectedEof;
        match error.downcast::<ObjectError>() {
            Ok(error) => TextError::Object(error),
            Err(_) if cut_off => TextError::Data(format!(
                "the file ends in the middle of its {name} stream, behind {} bytes of text: it was cut off; upload it whole",
                self.unpacked
            )),
            Err(error) => TextError::Data(format!(
                "the file is no sound {name} stream behind {} bytes of text ({error}); pack it again",
                self.unpacked
            )),
        }
    }
}

fn name(compression: Compression) -> &'static str {
    match compression {
        Compression::Auto | Compression::None => "plain",
        Compression::Gzip => "gzip",
        Compression::Zstd => "zstd",
        Compression::Bzip2 => "bzip2",
        Compression::Xz => "xz",
    }
}

/// Several streams one behind the other are one file (RFC 1952, section 2.2; RFC 8878, section 3.1; likewise the others).
fn unpacked(
    packed: impl AsyncBufRead + Send + Unpin + 'static,
    compression: Compression,
) -> Pin<Box<dyn AsyncRead + Send>> {
    macro_rules! members {
        ($decoder:ident) => {
            members!($decoder::new(packed))
        };
        ($decoder:expr) => {{
            let mut decoder = $decoder;
            decoder.multiple_members(true);
            Box::pin(decoder)
        }};
    }
    match compression {
        Compression::Auto | Compression::None => Box::pin(packed),
        Compression::Gzip => members!(GzipDecoder),
        Compression::Zstd => members!(ZstdDecoder),
        Compression::Bzip2 => members!(BzDecoder),
        Compression::Xz => members!(XzDecoder::with_mem_limit(packed, XZ_MEMORY)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_compression::tokio::write::{BzEncoder, GzipEncoder, XzEncoder, ZstdEncoder};
    use futures::stream;
    use tokio::io::AsyncWriteExt as _;

    const PACKED: [Compression; 4] = [Compression::Gzip, Compression::Zstd, Compression::Bzip2, Compression::Xz];

    async fn pack(compression: Compression, text: &[u8]) -> Vec<u8> {
        macro_rules! packed {
            ($encoder:ident) => {{
                let mut encoder = $encoder::new(Vec::new());
                encoder.write_all(text).await.unwrap();
                encoder.shutdown().await.unwrap();
                encoder.into_inner()
            }};
        }
        match compression {
            Compression::Gzip => packed!(GzipEncoder),
            Compression::Zstd => packed!(ZstdEncoder),
            Compression::Bzip2 => packed!(BzEncoder),
            Compression::Xz => packed!(XzEncoder),
            Compression::Auto | Compression::None => text.to_vec(),
        }
    }

    fn reader(bytes: &[u8], block: usize, compression: Compression) -> TextReader {
        let blocks: Vec<_> = bytes.chunks(block).map(|block| Ok(Bytes::copy_from_slice(block))).collect();
        let decoding = Decoding { compression, encoding: Encoding::Utf8, errors: EncodingErrors::Reject };
        TextReader::new(stream::iter(blocks), decoding)
    }

    async fn read(mut reader: TextReader) -> Result<Vec<u8>, TextError> {
        let mut text = Vec::new();
        while reader.next(&mut text).await? {}
        Ok(text)
    }

    async fn failure(reader: TextReader) -> TextError {
        read(reader).await.map(|text| text.len()).expect_err("it is no sound stream")
    }

    #[tokio::test]
    async fn streams_one_behind_the_other_are_one_text() {
        for compression in PACKED {
            let mut bytes = pack(compression, b"a,b\n1,").await;
            bytes.extend(pack(compression, b"2\n3,4\n").await);
            for block in [1, 7, 4096] {
                let mut reader = reader(&bytes, block, compression);
                let mut text = Vec::new();
                while reader.next(&mut text).await.unwrap() {}
                assert_eq!(text, b"a,b\n1,2\n3,4\n", "{compression:?}");
                assert_eq!(reader.consumed(), bytes.len() as u64, "{compression:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_stream_that_is_cut_off_or_broken_is_no_text() {
        let text: Vec<u8> =
            (0..20_000_u32).flat_map(|n| format!("{n},{}\n", n.wrapping_mul(2_654_435_761)).into_bytes()).collect();
        for compression in PACKED {
            let bytes = pack(compression, &text).await;
            for end in [bytes.len() - 1, bytes.len() / 2, 5] {
                let error = failure(reader(&bytes[..end], 1000, compression)).await;
                assert!(
                    matches!(&error, TextError::Data(text) if text.contains("cut off")),
                    "{compression:?} {end}: {error}"
                );
            }
            let mut broken = bytes.clone();
            broken[bytes.len() / 2] ^= 0x55;
            // The checksum of zstd is optional, and this encoder writes none.
            if compression != Compression::Zstd {
                let error = failure(reader(&broken, 1000, compression)).await;
                assert!(matches!(error, TextError::Data(_)), "{compression:?}: {error}");
            }
            let mut followed = bytes;
            followed.extend_from_slice(b"no stream");
            let error = failure(reader(&followed, 1000, compression)).await;
            assert!(matches!(error, TextError::Data(_)), "{compression:?}: {error}");
        }
    }

    #[tokio::test]
    async fn a_bomb_stops_at_a_bound() {
        let bomb = pack(Compression::Zstd, &vec![b'a'; 300 << 20]).await;
        assert!(bomb.len() < 100_000);
        let mut reader = reader(&bomb, 4096, Compression::Zstd);
        let mut most = 0;
        let error = loop {
            let mut text = Vec::new();
            match reader.next(&mut text).await {
                Ok(true) => most = most.max(text.len()),
                Ok(false) => panic!("all of it was unpacked"),
                Err(error) => break error,
            }
        };
        assert!(error.to_string().contains("times"), "{error}");
        assert!(most <= BLOCK, "{most}");
    }

    #[tokio::test]
    async fn a_dictionary_that_would_take_half_a_gigabyte_is_refused() {
        // `lzma.compress(b"n\n1\n", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 29}], check=lzma.CHECK_CRC32)` in Python
        let bytes =
            b"\xfd7zXZ\x00\x00\x01i\"\xde6\x02\x00!\x01\"\x00\x00\x00\x82@\xac\xdc\x01\x00\x03n\n1\n\x00V4\xa2\xd1\
            \x00\x01\x18\x04k\xe9\xf0\xa5\x90B\x99\r\x01\x00\x00\x00\x00\x01YZ";
        let error = failure(reader(bytes, 1000, Compression::Xz)).await;
        assert!(matches!(&error, TextError::Data(text) if text.to_lowercase().contains("mem")), "{error}");
    }

    #[tokio::test]
    async fn the_storage_being_away_is_no_fault_of_the_file() {
        let bytes = pack(Compression::Gzip, b"a,b\n").await;
        let away = ObjectError::Unavailable { endpoint: "x".into(), reason: "y".into() };
        let blocks = stream::iter([Ok(Bytes::copy_from_slice(&bytes[..12])), Err(away)]);
        let decoding =
            Decoding { compression: Compression::Gzip, encoding: Encoding::Utf8, errors: EncodingErrors::Reject };
        let error = failure(TextReader::new(blocks, decoding)).await;
        assert!(matches!(error, TextError::Object(ObjectError::Unavailable { .. })), "{error}");
    }
}

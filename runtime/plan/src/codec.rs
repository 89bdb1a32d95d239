//! The binary form: the text form, compressed, with a digest.
//!
//! | bytes | content |
//! |---|---|
//! | 6 | magic `VPLAN` and a zero byte |
//! | 4 | [`FORMAT_VERSION`], little-endian |
//! | 8 | length of the text in bytes, little-endian |
//! | 32 | SHA-256 of the text |
//! | rest | the text, raw deflate (RFC 1951) |
//!
//! One encoding of what a plan means, so the two forms cannot drift apart.

use crate::parse::{ParseError, parse_plan};
use crate::plan::{FORMAT_VERSION, Plan};
use flate2::Compression;
use flate2::bufread::DeflateDecoder;
use flate2::write::DeflateEncoder;
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use vdnn_ir::Bytes;

const MAGIC: &[u8; 6] = b"VPLAN\0";
const HEAD: usize = 6 + 4 + 8 + 32;

/// Longest text that is read.
pub const MAX_TEXT: Bytes = Bytes(256 << 20);

/// Why bytes are not a plan.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Neither the magic of the binary form nor text.
    #[error("not a plan: neither the binary form nor UTF-8 text")]
    NotAPlan,
    /// The binary form of another version.
    #[error("the plan has format version {found}; this program reads version {FORMAT_VERSION}")]
    Version {
        /// In the file.
        found: u32,
    },
    /// More text than [`MAX_TEXT`].
    #[error("the plan's text is {0}, over the limit of {MAX_TEXT}")]
    TooLarge(Bytes),
    /// The file ends early, goes on too long, or its content does not match its digest.
    #[error("the plan file is damaged: {0}; compile the plan again")]
    Damaged(&'static str),
    /// The text is not a plan.
    #[error("the plan does not parse: {0}")]
    Parse(#[from] ParseError),
}

/// The binary form of a plan.
pub fn encode(plan: &Plan) -> Vec<u8> {
    let text = plan.to_string();
    let mut out = Vec::with_capacity(HEAD + text.len() / 4);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(&Sha256::digest(text.as_bytes()));
    let mut deflate = DeflateEncoder::new(out, Compression::default());
    deflate.write_all(text.as_bytes()).expect("writing to memory");
    deflate.finish().expect("writing to memory")
}

/// Reads either form. The caller runs [`crate::check()`] on the result.
///
/// # Errors
/// If the bytes are not a plan, are damaged, or are over the limits.
pub fn load(bytes: &[u8]) -> Result<Plan, LoadError> {
    let text = match bytes.strip_prefix(MAGIC) {
        Some(_) => inflate(bytes)?,
        None => {
            let size = Bytes(bytes.len() as u64);
            if size > MAX_TEXT {
                return Err(LoadError::TooLarge(size));
            }
            let text = std::str::from_utf8(bytes).map_err(|_| LoadError::NotAPlan)?;
            return Ok(parse_plan(text)?);
        }
    };
    let text = String::from_utf8(text).map_err(|_| LoadError::Damaged("its text is not UTF-8"))?;
    Ok(parse_plan(&text)?)
}

fn inflate(bytes: &[u8]) -> Result<Vec<u8>, LoadError> {
    let (head, body) = bytes.split_at_checked(HEAD).ok_or(LoadError::Damaged("it ends in its header"))?;
    let word = |at: usize, n: usize| {
        head[at..at + n].iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte))
    };
    let version = word(6, 4) as u32;
    if version != FORMAT_VERSION {
        return Err(LoadError::Version { found: version });
    }
    let length = Bytes(word(10, 8));
    if length > MAX_TEXT {
        return Err(LoadError::TooLarge(length));
    }
    let mut decoder = DeflateDecoder::new(body);
    // The stated length is not trusted for the allocation: the vector grows as data comes.
    let mut text = Vec::new();
    (&mut decoder)
        .take(length.0)
        .read_to_end(&mut text)
        .map_err(|_| LoadError::Damaged("its data does not decompress"))?;
    if text.len() as u64 != length.0 {
        return Err(LoadError::Damaged("it ends early"));
    }
    // Reaching the end also verifies that the stream is complete.
    match decoder.read(&mut [0]) {
        Ok(0) => {}
        Ok(_) => return Err(LoadError::Damaged("it holds more than it states")),
        Err(_) => return Err(LoadError::Damaged("it ends early")),
    }
    if decoder.total_in() != body.len() as u64 {
        return Err(LoadError::Damaged("bytes follow its end"));
    }
    if Sha256::digest(&text)[..] != head[18..HEAD] {
        return Err(LoadError::Damaged("its digest does not match"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::sound;

    #[test]
    fn both_forms_load() {
        let plan = sound();
        assert_eq!(load(plan.to_string().as_bytes()).unwrap(), plan);
        let binary = encode(&plan);
        assert_eq!(load(&binary).unwrap(), plan);
        assert!(binary.len() < plan.to_string().len());
    }

    #[test]
    fn every_truncation_is_refused() {
        let binary = encode(&sound());
        for n in 0..binary.len() {
            assert!(load(&binary[..n]).is_err(), "{n} bytes");
        }
    }

    #[test]
    fn every_flipped_byte_is_refused() {
        let binary = encode(&sound());
        for i in 0..binary.len() {
            let mut damaged = binary.clone();
            damaged[i] ^= 1;
            // A flip may yield another deflate stream of the same text, never another plan.
            if let Ok(plan) = load(&damaged) {
                assert_eq!(plan, sound(), "byte {i}");
            }
        }
    }

    #[test]
    fn lies_about_the_length_are_refused() {
        let binary = encode(&sound());
        let with_length = |n: u64| {
            let mut b = binary.clone();
            b[10..18].copy_from_slice(&n.to_le_bytes());
            load(&b).unwrap_err()
        };
        let n = sound().to_string().len() as u64;
        assert!(matches!(with_length(u64::MAX), LoadError::TooLarge(_)));
        assert!(matches!(with_length(MAX_TEXT.0), LoadError::Damaged(_)));
        assert!(matches!(with_length(n + 1), LoadError::Damaged(_)));
        assert!(matches!(with_length(n - 1), LoadError::Damaged(_)));
        let mut longer = binary.clone();
        longer.push(0);
        assert!(matches!(load(&longer), Err(LoadError::Damaged("bytes follow its end"))));
    }

    #[test]
    fn other_files_are_not_plans() {
        assert!(matches!(load(&[0xff, 0xfe, 0, 1]), Err(LoadError::NotAPlan)));
        assert!(matches!(load(b""), Err(LoadError::Parse(_))));
        let mut newer = encode(&sound());
        newer[6] = 9;
        assert!(matches!(load(&newer), Err(LoadError::Version { found: 9 })));
    }
}

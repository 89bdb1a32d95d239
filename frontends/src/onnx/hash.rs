//! The identity of a model's content.

use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

/// SHA-256 of the files' contents one after the other; of a single file what `sha256sum`
/// prints. Read in pieces, not mapped, so that hashing leaves no weights resident.
///
/// # Errors
/// If a file cannot be read.
pub fn content_sha256(files: &[PathBuf]) -> io::Result<[u8; 32]> {
    let mut hash = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    for path in files {
        let mut file = File::open(path)?;
        loop {
            match file.read(&mut piece) {
                Ok(0) => break,
                Ok(n) => hash.update(&piece[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_hash_as_their_concatenation() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let (a, b, ab) = (file("a", "a"), file("b", "bc"), file("ab", "abc"));
        // FIPS 180-4, example for "abc".
        let want = [0xba, 0x78, 0x16, 0xbf];
        assert_eq!(content_sha256(&[ab]).unwrap()[..4], want);
        assert_eq!(content_sha256(&[a, b]).unwrap()[..4], want);
        assert!(content_sha256(&[dir.path().join("c")]).is_err());
    }
}

//! Files mapped read-only, so that weights are never copied.

use bytes::Bytes;
use memmap2::Mmap;
use std::fs::File;
use std::io;
use std::path::Path;

/// Maps a whole regular file. The mapping lives as long as any slice of the result.
///
/// A file that shrinks while it is mapped ends the process with SIGBUS on the next access;
/// files are replaced by renaming (see [`crate::safe_file`]), which leaves a mapping intact.
///
/// # Errors
/// If the file cannot be opened or mapped, is not a regular file, or is empty.
#[expect(unsafe_code, reason = "mapping a file is unsafe because other processes may write to it")]
pub fn map(path: &Path) -> io::Result<Bytes> {
    // Asked before opening: opening a pipe would wait for a writer.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let file = File::open(path)?;
    if file.metadata()?.len() == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is empty"));
    }
    // SAFETY: the mapping is private and read-only, so this process cannot write through it.
    // Another process that changes the file in place could change bytes under a `&[u8]`; all
    // readers treat the bytes as untrusted data copied out element by element, and nothing
    // (no length, no UTF-8 check) is trusted again after it was checked on a copy.
    let map = unsafe { Mmap::map(&file)? };
    Ok(Bytes::from_owner(map))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_mapped_whole_and_an_empty_one_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, b"abc").unwrap();
        assert_eq!(&map(&path).unwrap()[..], b"abc");
        std::fs::write(&path, b"").unwrap();
        assert_eq!(map(&path).unwrap_err().to_string(), "the file is empty");
        assert_eq!(map(dir.path()).unwrap_err().to_string(), "not a regular file");
        assert_eq!(map(&dir.path().join("y")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}

//! Files mapped read-only, so that weights are never copied.

use bytes::Bytes;
use memmap2::Mmap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// The mappings that are alive, for [`release`].
static MAPS: Mutex<Vec<Weak<Mmap>>> = Mutex::new(Vec::new());

/// What keeps a mapping alive in a [`Bytes`].
struct Owner(Arc<Mmap>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

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
    let map = Arc::new(unsafe { Mmap::map(&file)? });
    let mut maps = MAPS.lock().unwrap_or_else(PoisonError::into_inner);
    maps.retain(|m| m.strong_count() > 0);
    maps.push(Arc::downgrade(&map));
    Ok(Bytes::from_owner(Owner(map)))
}

/// Lets the pages behind `bytes` leave memory until they are next read, if `bytes` are of a
/// file mapped by [`map`]; otherwise does nothing. What they hold does not change. Meant for
/// weights that were copied out: without it a process counts them twice.
pub fn release(bytes: &[u8]) {
    let start = bytes.as_ptr() as usize;
    let maps = MAPS.lock().unwrap_or_else(PoisonError::into_inner);
    let found = maps.iter().filter_map(Weak::upgrade).find_map(|map| {
        let at = start.checked_sub(map.as_ptr() as usize)?;
        (bytes.len() <= map.len().checked_sub(at)?).then_some((map, at))
    });
    if let Some((map, at)) = found
        && !bytes.is_empty()
    {
        discard(&map, at, bytes.len());
    }
}

#[cfg(unix)]
#[expect(unsafe_code, reason = "dropping pages is unsafe for mappings that were written to")]
fn discard(map: &Mmap, at: usize, len: usize) {
    // SAFETY: `DontNeed` changes what a mapping holds only where it was written to or has no
    // file. This one is read-only and of a file, so that every page dropped comes back from
    // that file as it was, whoever still borrows it.
    let done = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, at, len) };
    // A refusal costs memory, nothing else.
    drop(done);
}

#[cfg(not(unix))]
fn discard(_map: &Mmap, _at: usize, _len: usize) {}

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
    #[test]
    fn released_bytes_are_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let content: Vec<u8> = (0..1_000_000_u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let map = map(&path).unwrap();
        assert_eq!(map[..], content[..]);
        release(&map[1..]);
        release(&map[5000..5001]);
        release(&map[7..7]);
        // Bytes of no mapping are left alone.
        release(&content);
        assert_eq!(map[..], content[..]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn released_pages_leave_memory() {
        const SIZE: usize = 4 << 20;
        let resident = |map: &[u8]| {
            let range = map.as_ptr() as usize;
            let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let mut lines = smaps.lines().skip_while(|l| !l.starts_with(&format!("{range:x}-")));
            let rss = lines.find_map(|l| l.strip_prefix("Rss:")).unwrap();
            rss.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        File::create(&path).unwrap().set_len(SIZE as u64).unwrap();
        let map = map(&path).unwrap();
        assert_eq!(map.iter().map(|&b| u64::from(b)).sum::<u64>(), 0);
        assert_eq!(resident(&map), SIZE);
        release(&map[..SIZE / 2]);
        assert!(resident(&map) <= SIZE / 2, "{}", resident(&map));
    }
}

//! External tensor data: files beside the model, mapped once, confined to its folder.

use super::mmap;
use super::proto::TensorProto;
use bytes::Bytes as Buf;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// The files that hold the external data of one model.
#[derive(Debug)]
pub(super) struct ExternalFiles {
    folder: Option<PathBuf>,
    maps: BTreeMap<PathBuf, Buf>,
}

impl ExternalFiles {
    /// `folder` is where the model lies; without one, external data is refused.
    pub(super) fn new(folder: Option<&Path>) -> Self {
        Self { folder: folder.map(Path::to_owned), maps: BTreeMap::new() }
    }

    /// The files read so far, sorted.
    pub(super) fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.maps.keys()
    }

    /// The bytes of a tensor stored externally; `expected` is its size by type and shape.
    pub(super) fn load(&mut self, tensor: &TensorProto, expected: u64) -> Result<Buf, String> {
        let entry = |key: &str| {
            let found = tensor.external_data.iter().find(|e| e.key() == key);
            found.map(|e| e.value().to_owned())
        };
        let number = |key: &str| match entry(key) {
            Some(text) => text
                .trim()
                .parse::<u64>()
                .map(Some)
                .map_err(|_| format!("external data {key} `{text}` is not a size in bytes")),
            None => Ok(None),
        };
        let location = entry("location").ok_or("external data without a location")?;
        let offset = number("offset")?.unwrap_or(0);
        let length = number("length")?;
        if let Some(n) = length
            && n != expected
        {
            return Err(format!("its external data has {n} bytes, its type and shape need {expected}"));
        }
        let file = self.open(&location)?;
        let range = offset
            .checked_add(expected)
            .filter(|&end| end <= file.len() as u64)
            .map(|end| offset as usize..end as usize)
            .ok_or_else(|| {
                format!(
                    "external data `{location}` has {} bytes, but {expected} bytes at offset {offset} are wanted",
                    file.len()
                )
            })?;
        Ok(file.slice(range))
    }

    fn open(&mut self, location: &str) -> Result<Buf, String> {
        let Some(folder) = &self.folder else {
            return Err(format!(
                "external data `{location}` cannot be found for a model not read from a file"
            ));
        };
        let relative = Path::new(location);
        let inside = relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
        if location.is_empty() || !inside {
            return Err(format!("external data `{location}` is outside the model's folder"));
        }
        let path = folder.join(relative);
        if let Some(map) = self.maps.get(&path) {
            return Ok(map.clone());
        }
        let missing =
            |e: std::io::Error| format!("external data file {} cannot be read: {e}", path.display());
        // Canonical paths, so that a symbolic link cannot lead out of the folder.
        let real = path.canonicalize().map_err(missing)?;
        let home = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let home = home.canonicalize().map_err(missing)?;
        if !real.starts_with(&home) {
            return Err(format!("external data `{location}` links to a file outside the model's folder"));
        }
        let map = mmap::map(&real).map_err(missing)?;
        self.maps.insert(path, map.clone());
        Ok(map)
    }
}

//! Tensor files: NumPy `.npy` and `.npz`, `.safetensors`, and the IDX files of MNIST.
//!
//! Readers give [`vdnn_ir::Tensor`]s in the element type of the file; converting (pixels to
//! f32, say) is the caller's. A size claimed by a header is checked against the length of the
//! file before anything of that size is allocated, so a small damaged file cannot exhaust the
//! memory. Writers replace files as a whole ([`crate::safe_file`]).

pub mod idx;
pub mod npy;
pub mod npz;
pub mod safetensors;

use crate::safe_file::SafeFileError;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use vdnn_ir::{Tensor, TensorType};

/// A tensor file that cannot be read or written: which one, why, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum TensorFileError {
    /// The system refused.
    #[error("cannot read {}: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The bytes are not what the format says they must be.
    #[error("{file} is damaged: {problem}; fetch or write it again")]
    Damaged {
        /// The file, with the member of an archive.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// A sound file with something this reader does not take.
    #[error("{file}: {problem}; {fix}")]
    Unsupported {
        /// The file, with the member of an archive.
        file: String,
        /// What is not taken.
        problem: String,
        /// What to do instead.
        fix: String,
    },
    /// The file could not be written.
    #[error(transparent)]
    Write(#[from] SafeFileError),
}

/// The most a deflate stream can grow: 258 bytes from two bits is 1032 to one (RFC 1951, 3.2.5).
const DEFLATE_GROWTH: u64 = 1032;

/// Names a file in messages and builds its errors.
#[derive(Clone)]
struct Source {
    path: PathBuf,
    member: Option<String>,
}

impl Source {
    fn file(path: &Path) -> Self {
        Self { path: path.to_owned(), member: None }
    }
    fn member(&self, name: &str) -> Self {
        Self { path: self.path.clone(), member: Some(name.to_owned()) }
    }
    fn label(&self) -> String {
        match &self.member {
            Some(member) => format!("{} (`{member}`)", self.path.display()),
            None => self.path.display().to_string(),
        }
    }
    fn damaged(&self, problem: impl Into<String>) -> TensorFileError {
        TensorFileError::Damaged { file: self.label(), problem: problem.into() }
    }
    fn unsupported(&self, problem: impl Into<String>, fix: impl Into<String>) -> TensorFileError {
        TensorFileError::Unsupported { file: self.label(), problem: problem.into(), fix: fix.into() }
    }
    /// An error while reading: running out of bytes or a bad stream is the file's fault.
    fn io(&self, source: io::Error) -> TensorFileError {
        match source.kind() {
            io::ErrorKind::UnexpectedEof => self.damaged("it ends too early"),
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => self.damaged(source.to_string()),
            _ => TensorFileError::Io { file: self.path.clone(), source },
        }
    }
    /// Opens the file; also gives its length in bytes.
    fn open(&self) -> Result<(File, u64), TensorFileError> {
        let file =
            File::open(&self.path).map_err(|e| TensorFileError::Io { file: self.path.clone(), source: e })?;
        let metadata = file.metadata().map_err(|e| self.io(e))?;
        if !metadata.is_file() {
            return Err(self.unsupported("this is not a regular file", "name a file"));
        }
        if metadata.len() == 0 {
            return Err(self.damaged("it is empty"));
        }
        Ok((file, metadata.len()))
    }
    /// Size in bytes of a tensor of this type, checked to be at most `available`.
    fn sized(&self, ty: &TensorType, available: u64) -> Result<u64, TensorFileError> {
        let bytes = ty.checked_elements().and_then(|n| n.checked_mul(ty.dtype.bytes()));
        match bytes {
            Some(bytes) if bytes <= available => Ok(bytes),
            Some(bytes) => Err(self.damaged(format!(
                "its header claims {bytes} bytes for {ty}, but at most {available} follow"
            ))),
            None => Err(self.damaged("the size its header claims is beyond 64 bits")),
        }
    }
    /// Reads a tensor of this type, whose size was checked by [`Source::sized`].
    fn fill(&self, ty: TensorType, reader: &mut impl io::Read) -> Result<Tensor, TensorFileError> {
        let mut tensor = Tensor::zeros(ty);
        reader.read_exact(tensor.bytes_mut()).map_err(|e| self.io(e))?;
        Ok(tensor)
    }
    /// Fails if anything is left to read. Reading to the end also checks the stream's checksum.
    fn at_end(&self, reader: &mut impl io::Read) -> Result<(), TensorFileError> {
        match reader.read(&mut [0]).map_err(|e| self.io(e))? {
            0 => Ok(()),
            _ => Err(self.damaged("bytes follow the end of the data")),
        }
    }
}

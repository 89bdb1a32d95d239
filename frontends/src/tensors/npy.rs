//! NumPy's `.npy`: one array.
//!
//! Format: `numpy.lib.format`, versions 1 to 3: the magic `\x93NUMPY`, two version bytes, the
//! header length (u16, or u32 from version 2), a Python dict literal with `descr`,
//! `fortran_order` and `shape`, then the elements.

use super::{Source, TensorFileError};
use crate::safe_file;
use std::fmt::Write as _;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;
use vdnn_ir::{DType, Dims, Tensor, TensorType};

const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// Longest header read: numpy itself refuses longer than 10,000 bytes by default.
const HEADER_LIMIT: usize = 1 << 16;

/// Reads an array; Fortran order is transposed into row-major.
///
/// # Errors
/// Names the file and what is wrong: big-endian or other element types, damage, short files.
pub fn read(path: &Path) -> Result<Tensor, TensorFileError> {
    let source = Source::file(path);
    let (file, length) = source.open()?;
    read_from(&source, &mut BufReader::new(file), length)
}

/// Writes an array in row-major order, format version 1 (2 if the header needs it).
///
/// # Errors
/// If the file cannot be written, or the element type is bf16, which NumPy lacks.
pub fn write(path: &Path, tensor: &Tensor) -> Result<(), TensorFileError> {
    let header = header(&Source::file(path), tensor.ty())?;
    safe_file::write_atomic(path, |w| {
        w.write_all(&header)?;
        w.write_all(tensor.bytes())
    })?;
    Ok(())
}

/// Reads an array from a stream of at most `available` bytes.
pub(super) fn read_from(
    source: &Source,
    reader: &mut impl Read,
    available: u64,
) -> Result<Tensor, TensorFileError> {
    let (text, header_bytes) = read_header(source, reader)?;
    let header = Parser::new(&text).header().map_err(|problem| source.damaged(problem))?;
    let ty = TensorType::new(dtype(source, &header.descr)?, header.shape);
    source.sized(&ty, available.saturating_sub(header_bytes))?;
    let mut tensor = if header.fortran && ty.rank() > 1 {
        let reversed = TensorType::new(ty.dtype, ty.dims.iter().rev().copied());
        from_fortran(ty, &source.fill(reversed, reader)?)
    } else {
        source.fill(ty, reader)?
    };
    source.at_end(reader)?;
    if tensor.ty().dtype == DType::Bool {
        tensor.bytes_mut().iter_mut().for_each(|b| *b = u8::from(*b != 0));
    }
    Ok(tensor)
}

/// The bytes before the elements, padded so that these start at a multiple of 64.
pub(super) fn header(source: &Source, ty: &TensorType) -> Result<Vec<u8>, TensorFileError> {
    let descr = match ty.dtype {
        DType::F32 => "<f4",
        DType::F64 => "<f8",
        DType::F16 => "<f2",
        DType::I32 => "<i4",
        DType::I64 => "<i8",
        DType::U8 => "|u1",
        DType::Bool => "|b1",
        DType::BF16 => return Err(source.unsupported("NumPy has no bf16", "convert the tensor to f32 first")),
    };
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (");
    for d in &ty.dims {
        // Formatting into a String cannot fail.
        let _ = write!(text, "{d}, ");
    }
    // Python: `()`, `(3,)`, `(3, 4)`.
    match ty.rank() {
        0 => {}
        1 => text.truncate(text.len() - 1),
        _ => text.truncate(text.len() - 2),
    }
    text.push_str("), }");
    let long = text.len() + 1 + 10 + 63 > usize::from(u16::MAX);
    let before = MAGIC.len() + 2 + if long { 4 } else { 2 };
    let padded = (before + text.len() + 1).next_multiple_of(64) - before;
    text.extend(std::iter::repeat_n(' ', padded - text.len() - 1));
    text.push('\n');
    let mut bytes = MAGIC.to_vec();
    let length =
        u32::try_from(padded).map_err(|_| source.unsupported("too many dimensions", "reshape it"))?;
    if long {
        bytes.extend([2, 0]);
        bytes.extend(length.to_le_bytes());
    } else {
        bytes.extend([1, 0]);
        bytes.extend(&length.to_le_bytes()[..2]);
    }
    bytes.extend(text.as_bytes());
    Ok(bytes)
}

/// The header's text and the bytes read so far.
fn read_header(source: &Source, reader: &mut impl Read) -> Result<(String, u64), TensorFileError> {
    let mut start = [0; 8];
    reader.read_exact(&mut start).map_err(|e| source.io(e))?;
    if &start[..6] != MAGIC {
        return Err(source.damaged("it does not start like a .npy file"));
    }
    let length_bytes = match start[6] {
        1 => 2,
        2 | 3 => 4,
        v => {
            return Err(source.unsupported(
                format!(".npy format version {v}"),
                "save it with numpy.save of NumPy 1.9 or newer",
            ));
        }
    };
    let mut length = [0; 4];
    reader.read_exact(&mut length[..length_bytes]).map_err(|e| source.io(e))?;
    let length = u32::from_le_bytes(length) as usize;
    if length > HEADER_LIMIT {
        return Err(source.damaged(format!("its header claims {length} bytes")));
    }
    let mut text = vec![0; length];
    reader.read_exact(&mut text).map_err(|e| source.io(e))?;
    let text = String::from_utf8(text).map_err(|_| source.damaged("its header is not text"))?;
    Ok((text, (8 + length_bytes + length) as u64))
}

fn dtype(source: &Source, descr: &str) -> Result<DType, TensorFileError> {
    const TAKEN: &str = "save it as float32, float64, float16, int32, int64, uint8 or bool (x.astype(...))";
    let (order, kind) = descr.split_at_checked(1).unwrap_or(("", ""));
    let dtype = match kind {
        "f4" => DType::F32,
        "f8" => DType::F64,
        "f2" => DType::F16,
        "i4" => DType::I32,
        "i8" => DType::I64,
        "u1" => DType::U8,
        "b1" => DType::Bool,
        _ => return Err(source.unsupported(format!("element type `{descr}`"), TAKEN)),
    };
    match order {
        "<" | "|" => Ok(dtype),
        ">" if dtype.bytes() == 1 => Ok(dtype),
        ">" => Err(source.unsupported(
            format!("big-endian elements (`{descr}`)"),
            "save it with x.astype(x.dtype.newbyteorder('<'))",
        )),
        _ => Err(source.unsupported(format!("element type `{descr}`"), TAKEN)),
    }
}

/// Row-major `ty` from `stored`, whose row-major layout has the axes reversed.
fn from_fortran(ty: TensorType, stored: &Tensor) -> Tensor {
    let width = ty.dtype.bytes() as usize;
    // Stride, in elements of `stored`, of each axis of the result.
    let mut strides = vec![1usize; ty.rank()];
    for axis in 1..ty.rank() {
        strides[axis] = strides[axis - 1] * ty.dims[axis - 1] as usize;
    }
    let dims: Vec<usize> = ty.dims.iter().map(|&d| d as usize).collect();
    let mut result = Tensor::zeros(ty);
    let from = stored.bytes();
    let mut index = vec![0usize; dims.len()];
    let mut offset = 0;
    for element in result.bytes_mut().chunks_exact_mut(width) {
        element.copy_from_slice(&from[offset * width..][..width]);
        for axis in (0..dims.len()).rev() {
            index[axis] += 1;
            offset += strides[axis];
            if index[axis] < dims[axis] {
                break;
            }
            offset -= strides[axis] * dims[axis];
            index[axis] = 0;
        }
    }
    result
}

struct Header {
    descr: String,
    fortran: bool,
    shape: Dims,
}

/// Reads the subset of Python literals that NumPy writes in headers.
struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Self {
        Self { rest: text }
    }

    fn header(mut self) -> Result<Header, String> {
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        self.expect('{')?;
        while !self.eat('}') {
            let key = self.string()?;
            self.expect(':')?;
            match key.as_str() {
                "descr" => descr = Some(self.descr()?),
                "fortran_order" => fortran = Some(self.boolean()?),
                "shape" => shape = Some(self.tuple()?),
                _ => return Err(format!("unknown header key `{key}`")),
            }
            if !self.eat(',') {
                self.expect('}')?;
                break;
            }
        }
        if !self.rest.trim().is_empty() {
            return Err("text follows its header".to_owned());
        }
        match (descr, fortran, shape) {
            (Some(descr), Some(fortran), Some(shape)) => Ok(Header { descr, fortran, shape }),
            _ => Err("its header lacks `descr`, `fortran_order` or `shape`".to_owned()),
        }
    }

    fn eat(&mut self, c: char) -> bool {
        self.rest = self.rest.trim_start();
        match self.rest.strip_prefix(c) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, c: char) -> Result<(), String> {
        if self.eat(c) { Ok(()) } else { Err(format!("its header lacks a `{c}`")) }
    }

    fn string(&mut self) -> Result<String, String> {
        let quote = if self.eat('\'') {
            '\''
        } else {
            self.expect('"')?;
            '"'
        };
        let (text, rest) = self.rest.split_once(quote).ok_or("its header has an open string")?;
        self.rest = rest;
        Ok(text.to_owned())
    }

    /// A type string; a record type comes back as its source text, which no type matches.
    fn descr(&mut self) -> Result<String, String> {
        self.rest = self.rest.trim_start();
        if !self.rest.starts_with('[') {
            return self.string();
        }
        let mut depth = 0;
        let closing = self.rest.char_indices().find(|&(_, c)| {
            depth += i32::from(c == '[') - i32::from(c == ']');
            depth == 0
        });
        let (end, _) = closing.ok_or("its header has an open list")?;
        let (text, rest) = self.rest.split_at(end + 1);
        self.rest = rest;
        Ok(text.to_owned())
    }

    fn boolean(&mut self) -> Result<bool, String> {
        self.rest = self.rest.trim_start();
        for (word, value) in [("True", true), ("False", false)] {
            if let Some(rest) = self.rest.strip_prefix(word) {
                self.rest = rest;
                return Ok(value);
            }
        }
        Err("`fortran_order` is neither True nor False".to_owned())
    }

    fn tuple(&mut self) -> Result<Dims, String> {
        let mut dims = Dims::new();
        self.expect('(')?;
        while !self.eat(')') {
            self.rest = self.rest.trim_start();
            let end = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
            let (digits, rest) = self.rest.split_at(end);
            dims.push(digits.parse().map_err(|_| "its `shape` is not a tuple of sizes")?);
            // Python 2 wrote long integers with an L.
            self.rest = rest.strip_prefix('L').unwrap_or(rest);
            if !self.eat(',') {
                self.expect(')')?;
                break;
            }
        }
        Ok(dims)
    }
}

/// Writes an array to a stream: what [`write()`] puts in a file.
pub(super) fn write_to(writer: &mut impl io::Write, header: &[u8], tensor: &Tensor) -> io::Result<()> {
    writer.write_all(header)?;
    writer.write_all(tensor.bytes())
}

#[cfg(test)]
#[path = "npy_tests.rs"]
mod tests;

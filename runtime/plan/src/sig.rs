//! Terms: what a buffer holds, as a hash of the computation that produced it.
//!
//! A term is a structural hash: an input or parameter by name, a literal by its bytes, a
//! result by op, operand terms with the types they are read as, and output index. Copies
//! and views keep the term. Two buffers with equal terms hold equal bytes. The planner
//! states the term every output and every updated parameter must have, computed from the
//! graph before any memory or stream decision; the checker computes the term each buffer
//! really gets by executing the plan symbolically.

use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;
use vdnn_ir::{DType, Op, TensorType};

/// 128 bits of SHA-256 over a canonical encoding of the term.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sig(pub [u8; 16]);

impl Sig {
    fn digest(parts: &[&[u8]]) -> Self {
        let mut h = Sha256::new();
        for p in parts {
            h.update((p.len() as u64).to_le_bytes());
            h.update(p);
        }
        let full = h.finalize();
        let mut out = [0u8; 16];
        out.copy_from_slice(&full[..16]);
        Self(out)
    }
    /// The packed form ([`vdnn_ir::packed`]) of what this is the term of, as elements of a type.
    #[must_use]
    pub fn packed(self, dtype: DType) -> Self {
        Self::digest(&[b"packed", &self.0, dtype.name().as_bytes()])
    }
    /// A caller-bound input.
    pub fn input(name: &str) -> Self {
        Self::digest(&[b"input", name.as_bytes()])
    }
    /// The content of a parameter when the step starts.
    pub fn param(name: &str) -> Self {
        Self::digest(&[b"param", name.as_bytes()])
    }
    /// Output `index` of `op` applied to operands. Each operand is its term *and* the type
    /// it is read as: a reshape keeps the term, so the term alone does not tell
    /// `softmax(x as f32[2,8])` from `softmax(x as f32[4,4])`.
    ///
    /// Ops that move no data ([`Op::views`]) and copies keep their operand's term: do not
    /// call this for them.
    pub fn apply(op: &Op, operands: &[(Sig, &TensorType)], index: usize) -> Self {
        Self::apply_text(&op.to_string(), operands, index)
    }
    /// [`Sig::apply`] for an op whose text is at hand.
    pub fn apply_text(op: &str, operands: &[(Sig, &TensorType)], index: usize) -> Self {
        let mut all = Vec::with_capacity(operands.len() * 64);
        for (sig, ty) in operands {
            all.extend_from_slice(&sig.0);
            all.extend_from_slice(ty.dtype.name().as_bytes());
            all.extend_from_slice(&(ty.rank() as u64).to_le_bytes());
            for d in &ty.dims {
                all.extend_from_slice(&d.to_le_bytes());
            }
        }
        Self::digest(&[b"op", op.as_bytes(), &all, &(index as u64).to_le_bytes()])
    }
}

impl fmt::Display for Sig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Sig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Sig {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let error = || format!("`{s}` is not a term of 32 hex digits");
        if s.len() != 32 || !s.is_ascii() {
            return Err(error());
        }
        let mut out = [0u8; 16];
        for (i, b) in out.iter_mut().enumerate() {
            *b = u8::from_str_radix(&s[2 * i..2 * i + 2], 16).map_err(|_| error())?;
        }
        Ok(Self(out))
    }
}

//! The CUDA C++ texts and the kernels made of them.

/// A text with kernels, or with templates that a line behind it instantiates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    Pointwise,
    Program,
    Update,
    Movement,
    Pieces,
    Reduce,
    Softmax,
    Loss,
    PoolPlanes,
    PoolLast,
    PoolMax,
    PoolPatch,
    BatchNormSums,
    BatchNormCoefficients,
    BatchNormApply,
    Lrn,
    Proof,
    /// All of it is in the line.
    Pyramid,
    Dropout,
    Cast,
    Pack,
    Sparse,
    SparseConv,
    SparseGather,
    SparseBlocks,
    SparseTwoFour,
    SparseInput,
}

/// The files that sources include, with their names.
pub(super) const HEADERS: [(&str, &str); 9] = [
    ("common.cuh", include_str!("source/common.cuh")),
    ("functions.cuh", include_str!("source/functions.cuh")),
    ("packed.cuh", include_str!("source/packed.cuh")),
    ("pool.cuh", include_str!("source/pool.cuh")),
    ("batchnorm.cuh", include_str!("source/batchnorm.cuh")),
    ("pieces.cuh", include_str!("source/pieces.cuh")),
    ("planes.cuh", include_str!("source/planes.cuh")),
    ("tiles.cuh", include_str!("source/tiles.cuh")),
    ("entries.cuh", include_str!("source/entries.cuh")),
];

impl Source {
    /// File name, for messages and cache files.
    pub(super) fn name(self) -> &'static str {
        self.file().0
    }

    /// The text.
    pub(super) fn text(self) -> &'static str {
        self.file().1
    }

    fn file(self) -> (&'static str, &'static str) {
        match self {
            Self::Pointwise => ("pointwise.cu", include_str!("source/pointwise.cu")),
            Self::Program => ("program.cu", include_str!("source/program.cu")),
            Self::Update => ("update.cu", include_str!("source/update.cu")),
            Self::Movement => ("movement.cu", include_str!("source/movement.cu")),
            Self::Pieces => ("pieces.cu", include_str!("source/pieces.cu")),
            Self::Reduce => ("reduce.cu", include_str!("source/reduce.cu")),
            Self::Softmax => ("softmax.cu", include_str!("source/softmax.cu")),
            Self::Loss => ("loss.cu", include_str!("source/loss.cu")),
            Self::PoolPlanes => ("pool_planes.cu", include_str!("source/pool_planes.cu")),
            Self::PoolLast => ("pool_last.cu", include_str!("source/pool_last.cu")),
            Self::PoolMax => ("pool_max.cu", include_str!("source/pool_max.cu")),
            Self::PoolPatch => ("pool_patch.cu", include_str!("source/pool_patch.cu")),
            Self::BatchNormSums => ("batchnorm_sums.cu", include_str!("source/batchnorm_sums.cu")),
            Self::BatchNormCoefficients => {
                ("batchnorm_coefficients.cu", include_str!("source/batchnorm_coefficients.cu"))
            }
            Self::BatchNormApply => ("batchnorm_apply.cu", include_str!("source/batchnorm_apply.cu")),
            Self::Lrn => ("lrn.cu", include_str!("source/lrn.cu")),
            Self::Proof => ("proof.cu", include_str!("source/proof.cu")),
            Self::Pyramid => ("pyramid.cu", ""),
            Self::Dropout => ("dropout.cu", include_str!("source/dropout.cu")),
            Self::Cast => ("cast.cu", include_str!("source/cast.cu")),
            Self::Pack => ("pack.cu", include_str!("source/pack.cu")),
            Self::Sparse => ("sparse.cu", include_str!("source/sparse.cu")),
            Self::SparseConv => ("sparse_conv.cu", include_str!("source/sparse_conv.cu")),
            Self::SparseGather => ("sparse_gather.cu", include_str!("source/sparse_gather.cu")),
            Self::SparseBlocks => ("sparse_blocks.cu", include_str!("source/sparse_blocks.cu")),
            Self::SparseTwoFour => ("sparse_two_four.cu", include_str!("source/sparse_two_four.cu")),
            Self::SparseInput => ("sparse_input.cu", include_str!("source/sparse_input.cu")),
        }
    }
}

/// A kernel: a text and perhaps a line that instantiates one of its templates.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kernel {
    pub(super) source: Source,
    /// Appended to the text; empty for kernels that the text holds as they are.
    pub(super) line: String,
    /// Name of the function.
    pub(super) name: String,
    /// The one architecture that it is for, such as `sm_90a`; else any will do.
    pub(super) target: Option<&'static str>,
}

impl Kernel {
    /// A kernel that the text holds.
    pub(super) fn fixed(source: Source, name: &str) -> Self {
        Self { source, line: String::new(), name: name.to_owned(), target: None }
    }

    /// The kernel that `MACRO(name, arguments)` makes. The name is the macro's and the
    /// arguments', so it tells the instance in a profile.
    pub(super) fn instance(source: Source, r#macro: &str, arguments: &str) -> Self {
        let mut name = r#macro.to_lowercase();
        for word in arguments.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty()) {
            name.push('_');
            name.push_str(&word.to_lowercase());
        }
        let comma = if arguments.is_empty() { "" } else { ", " };
        Self { source, line: format!("{macro}({name}{comma}{arguments})\n"), name, target: None }
    }

    /// The complete text to compile.
    pub(super) fn text(&self) -> String {
        format!("{}{}", self.source.text(), self.line)
    }
}

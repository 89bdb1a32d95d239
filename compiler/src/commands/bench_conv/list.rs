//! Lists of convolutions as comma-separated values: a header, then one layer a line, in the
//! columns of DeepBench and of µ-cuDNN's benchmarks.

use crate::measuring::Kernel;
use vdnn_ir::op::ConvAttrs;
use vdnn_ir::op::infer::infer;
use vdnn_ir::{DType, Layout, Op, Precision, TensorType};

/// One layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// The list's own name for a part of it; empty if it has none.
    pub set: String,
    /// What the layer is called, or its line.
    pub name: String,
    /// Images.
    pub n: u64,
    /// Input channels.
    pub c: u64,
    /// Output channels.
    pub k: u64,
    /// Height and width of the input.
    pub image: [u64; 2],
    /// Height and width of the filter.
    pub filter: [u64; 2],
    /// Padding on either side.
    pub pad: [u64; 2],
    /// Strides.
    pub stride: [u64; 2],
    /// Dilations.
    pub dilation: [u64; 2],
    /// Groups.
    pub groups: u64,
}

/// Names a column goes by, lower case.
const COLUMNS: [(&str, &[&str]); 17] = [
    ("set", &["set"]),
    ("idx", &["idx", "index"]),
    ("source", &["source", "layer", "name"]),
    ("n", &["n", "batch"]),
    ("c", &["c", "c_in"]),
    ("k", &["k", "c_out"]),
    ("h", &["h"]),
    ("w", &["w"]),
    ("filter_h", &["filter_h", "kernel_h", "r"]),
    ("filter_w", &["filter_w", "kernel_w", "s"]),
    ("pad_h", &["pad_h"]),
    ("pad_w", &["pad_w"]),
    ("stride_h", &["stride_h"]),
    ("stride_w", &["stride_w"]),
    ("dilation_h", &["dilation_h"]),
    ("dilation_w", &["dilation_w"]),
    ("groups", &["groups"]),
];

/// Reads a list. Columns that are not known are passed over.
///
/// # Errors
/// With the line, if a column is missing or a value is no number.
pub fn read(text: &str) -> Result<Vec<Layer>, String> {
    let mut lines = text.trim_start_matches('\u{feff}').lines().enumerate();
    let (_, head) = lines.next().ok_or("the list is empty")?;
    let head: Vec<String> = head.split(',').map(|h| clean(h).to_ascii_lowercase()).collect();
    let column = |name: &str| {
        let (_, names) = COLUMNS.iter().find(|c| c.0 == name)?;
        head.iter().position(|h| names.contains(&h.as_str()))
    };
    let mut layers = Vec::new();
    for (i, line) in lines.filter(|(_, line)| !line.trim().is_empty()) {
        let fields: Vec<&str> = line.split(',').map(clean).collect();
        let text = |name: &str| column(name).and_then(|at| fields.get(at)).copied().unwrap_or("");
        let number = |name: &str, default: Option<u64>| -> Result<u64, String> {
            match (text(name), default) {
                ("", Some(value)) => Ok(value),
                ("", None) => Err(format!("line {}: no column `{name}`, or nothing in it", i + 1)),
                (value, _) => {
                    value.parse().map_err(|_| format!("line {}: {name} is `{value}`, not a number", i + 1))
                }
            }
        };
        let two = |h: &str, w: &str, default| Ok::<_, String>([number(h, default)?, number(w, default)?]);
        let index = if text("idx").is_empty() { i.to_string() } else { text("idx").to_owned() };
        layers.push(Layer {
            set: text("set").to_owned(),
            name: format!("{index} {}", text("source")).trim().to_owned(),
            n: number("n", None)?,
            c: number("c", None)?,
            k: number("k", None)?,
            image: two("h", "w", None)?,
            filter: two("filter_h", "filter_w", None)?,
            pad: two("pad_h", "pad_w", Some(0))?,
            stride: two("stride_h", "stride_w", Some(1))?,
            dilation: two("dilation_h", "dilation_w", Some(1))?,
            groups: number("groups", Some(1))?,
        });
    }
    Ok(layers)
}

fn clean(field: &str) -> &str {
    field.trim().trim_matches('"').trim()
}

/// Direction names on the command line, in the order of [`Layer::kernels`].
pub const DIRECTIONS: [&str; 3] = ["fprop", "dgrad", "wgrad"];

impl Layer {
    /// Shape for people: `256x64x27x27 -> 192, 5x5`.
    pub fn shape(&self) -> String {
        let ([h, w], [r, s]) = (self.image, self.filter);
        let mut text = format!("{}x{}x{h}x{w} -> {}, {r}x{s}", self.n, self.c, self.k);
        if self.stride != [1, 1] {
            text += &format!(" /{}", self.stride[0]);
        }
        if self.dilation != [1, 1] {
            text += &format!(" dil {}", self.dilation[0]);
        }
        if self.groups != 1 {
            text += &format!(" g{}", self.groups);
        }
        text
    }

    /// True for a fully connected layer.
    pub fn is_product(&self) -> bool {
        self.image == [1, 1] && self.filter == [1, 1] && self.groups == 1
    }

    /// The forward pass and both gradients, as a training step has them.
    ///
    /// # Errors
    /// If the layer is no convolution.
    pub fn kernels(&self, precision: Precision, layout: Layout) -> Result<[Kernel; 3], String> {
        let list = |v: [u64; 2]| v.as_slice().into();
        let attrs = ConvAttrs {
            kernel: list(self.filter),
            strides: list(self.stride),
            before: list(self.pad),
            after: list(self.pad),
            dilations: list(self.dilation),
            groups: self.groups,
        };
        let element = if precision == Precision::Bf16 { DType::BF16 } else { DType::F32 };
        let ty = |dims: [u64; 4]| TensorType::new(element, dims).in_layout(layout);
        let x = ty([self.n, self.c, self.image[0], self.image[1]]);
        let per_group = self.c.checked_div(self.groups).ok_or("no groups")?;
        let w = ty([self.k, per_group, self.filter[0], self.filter[1]]);
        let conv = Op::Conv(attrs.clone());
        let y = infer(&conv, &[&x, &w], 1).map_err(|e| e.0)?;
        let y = y.first().cloned().ok_or("a convolution without result")?;
        let dgrad = Op::ConvDgrad { conv: attrs.clone(), x_dims: x.dims.clone() };
        let wgrad = Op::ConvWgrad { conv: attrs, w_dims: w.dims.clone() };
        // A convolution's operands are of one type; training steps convert dw behind it.
        let dw = w.clone();
        let kernel = |op: Op, inputs: [&TensorType; 2], output: &TensorType| Kernel {
            op,
            inputs: inputs.map(Clone::clone).to_vec(),
            outputs: vec![output.clone()],
        };
        Ok([kernel(conv, [&x, &w], &y), kernel(dgrad, [&y, &w], &x), kernel(wgrad, [&x, &y], &dw)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_lists_are_read() {
        let ours = "set,idx,source,w,h,c,n,k,filter_w,filter_h,pad_w,pad_h,stride_w,stride_h,out_w,dup_of\n\
                    deep,3,DeepSpeech,700,161,1,4,32,20,5,0,0,2,2,341,\n";
        let seed = "\u{feff}source,W,H,C_in,N,C_out,kernel_w,kernel_h,pad_w,pad_h,stride_w,stride_h\n\
                    DeepSpeech,700,161,1,4,32,20,5,0,0,2,2";
        let layers = [read(ours).expect("a list"), read(seed).expect("a list")];
        assert_eq!((layers[0][0].set.as_str(), layers[0][0].name.as_str()), ("deep", "3 DeepSpeech"));
        for list in &layers {
            let [layer] = list.as_slice() else { panic!("{list:?}") };
            assert_eq!((layer.image, layer.filter, layer.stride), ([161, 700], [5, 20], [2, 2]));
            assert_eq!(layer.shape(), "4x1x161x700 -> 32, 5x20 /2");
            let [y, ..] = layer.kernels(Precision::F32, Layout::RowMajor).expect("a convolution");
            assert_eq!(y.outputs[0], TensorType::f32([4, 32, 79, 341]));
        }
        assert!(read("").is_err() && read("w,h\n1,2").unwrap_err().contains("line 2"));
        assert!(read("n,c,k,w,h,r,s\n1,2,3,4,x,1,1").unwrap_err().contains("`x`"));
    }

    #[test]
    fn strides_that_do_not_divide_round_down_and_nonsense_is_refused() {
        // A 1x1 filter with padding 3 and stride 2, as DeepBench has two of.
        let list = read("n,c,k,w,h,r,s,pad_w,pad_h,stride_w,stride_h\n8,64,64,56,56,1,1,3,3,2,2\n");
        let mut layer = list.expect("a list").remove(0);
        let [_, dx, dw] = layer.kernels(Precision::Bf16, Layout::ChannelsLast).expect("a convolution");
        assert_eq!(dx.inputs[0].dims[..], [8, 64, 31, 31]);
        assert_eq!((dx.outputs[0].dtype, dw.outputs[0].dtype), (DType::BF16, DType::BF16));
        layer.groups = 0;
        assert!(layer.kernels(Precision::F32, Layout::RowMajor).is_err());
        (layer.groups, layer.filter) = (1, [99, 99]);
        assert!(layer.kernels(Precision::F32, Layout::RowMajor).is_err());
    }
}

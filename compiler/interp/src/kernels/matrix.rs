//! Matrix products.

use super::dims;
use super::walk::{broadcast, rows};
use vdnn_ir::kernel::{TensorMut, TensorRef};

/// A matrix in memory, maybe transposed.
#[derive(Clone, Copy)]
struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_step: usize,
    column_step: usize,
}

impl<'a> Matrix<'a> {
    /// The last two of `dims` over `data`, swapped if `transposed`.
    fn new(data: &'a [f32], dims: &[usize], transposed: bool) -> Self {
        let (rows, columns) = (dims[dims.len() - 2], dims[dims.len() - 1]);
        if transposed {
            Self { data, rows: columns, columns: rows, row_step: 1, column_step: columns }
        } else {
            Self { data, rows, columns, row_step: columns, column_step: 1 }
        }
    }
    fn at(self, row: usize, column: usize) -> f64 {
        f64::from(self.data[row * self.row_step + column * self.column_step])
    }
}

/// Calls `put(i, products)` with row i of a*b for each row.
fn product(a: Matrix<'_>, b: Matrix<'_>, mut put: impl FnMut(usize, &[f64])) {
    let mut acc = vec![0.0; b.columns];
    for i in 0..a.rows {
        acc.fill(0.0);
        if b.column_step == 1 {
            for k in 0..a.columns {
                let x = a.at(i, k);
                let row = &b.data[k * b.row_step..][..b.columns];
                for (s, &y) in acc.iter_mut().zip(row) {
                    *s += x * f64::from(y);
                }
            }
        } else {
            for (j, s) in acc.iter_mut().enumerate() {
                *s = (0..a.columns).map(|k| a.at(i, k) * b.at(k, j)).sum();
            }
        }
        put(i, &acc);
    }
}

/// `alpha * op(a) op(b) + beta * c`.
pub(super) fn gemm(
    trans_a: bool,
    trans_b: bool,
    alpha: f32,
    beta: f32,
    operands: &[TensorRef<'_>],
    y: &mut TensorMut<'_>,
) {
    let a = Matrix::new(operands[0].f32(), &dims(operands[0].ty), trans_a);
    let b = Matrix::new(operands[1].f32(), &dims(operands[1].ty), trans_b);
    let c = operands.get(2).map(|c| (c.f32(), broadcast(&dims(c.ty), 2)));
    let y = y.f32();
    product(a, b, |i, row| {
        for (j, &p) in row.iter().enumerate() {
            let added = c.as_ref().map_or(0.0, |(c, s)| {
                f64::from(beta) * f64::from(c[(i as isize * s[0] + j as isize * s[1]) as usize])
            });
            y[i * b.columns + j] = (f64::from(alpha) * p + added) as f32;
        }
    });
}

/// numpy matmul: batch dimensions broadcast.
pub(super) fn matmul(trans_a: bool, trans_b: bool, operands: &[TensorRef<'_>], y: &mut TensorMut<'_>) {
    let (da, db, dy) = (dims(operands[0].ty), dims(operands[1].ty), dims(y.ty));
    let batch = &dy[..dy.len() - 2];
    let (sa, sb) = (broadcast(&da[..da.len() - 2], batch.len()), broadcast(&db[..db.len() - 2], batch.len()));
    let size = |d: &[usize]| d[d.len() - 2] * d[d.len() - 1];
    let (data_a, data_b) = (operands[0].f32(), operands[1].f32());
    let size_y = size(&dy);
    let y = y.f32();
    let mut at_y = 0;
    rows(batch, [&sa, &sb], [0, 0], |at, n, steps| {
        for k in 0..n as isize {
            let [from_a, from_b] = [0, 1].map(|i| (at[i] + k * steps[i]) as usize);
            let a = Matrix::new(&data_a[from_a * size(&da)..], &da, trans_a);
            let b = Matrix::new(&data_b[from_b * size(&db)..], &db, trans_b);
            let y = &mut y[at_y..at_y + size_y];
            product(a, b, |i, row| {
                for (j, &p) in row.iter().enumerate() {
                    y[i * row.len() + j] = p as f32;
                }
            });
            at_y += size_y;
        }
    });
}

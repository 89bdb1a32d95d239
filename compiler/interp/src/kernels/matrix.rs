//! Matrix products.

use super::dims;
use super::element::{Element, get, put};
use super::walk::{broadcast, rows};
use vdnn_ir::kernel::{TensorMut, TensorRef};

/// A matrix in memory, maybe transposed.
#[derive(Clone, Copy)]
struct Matrix<'a, E> {
    data: &'a [E],
    rows: usize,
    columns: usize,
    row_step: usize,
    column_step: usize,
}

impl<'a, E: Element> Matrix<'a, E> {
    /// The last two of `dims` over `data`, swapped if `transposed`.
    fn new(data: &'a [E], dims: &[usize], transposed: bool) -> Self {
        let (rows, columns) = (dims[dims.len() - 2], dims[dims.len() - 1]);
        if transposed {
            Self { data, rows: columns, columns: rows, row_step: 1, column_step: columns }
        } else {
            Self { data, rows, columns, row_step: columns, column_step: 1 }
        }
    }
    fn at(self, row: usize, column: usize) -> f64 {
        self.data[row * self.row_step + column * self.column_step].wide()
    }
}

/// Calls `put(i, products)` with row i of a*b for each row.
fn product<E: Element>(a: Matrix<'_, E>, b: Matrix<'_, E>, mut put: impl FnMut(usize, &[f64])) {
    let mut acc = vec![0.0; b.columns];
    for i in 0..a.rows {
        acc.fill(0.0);
        if b.column_step == 1 {
            for k in 0..a.columns {
                let x = a.at(i, k);
                let row = &b.data[k * b.row_step..][..b.columns];
                for (s, &y) in acc.iter_mut().zip(row) {
                    *s += x * y.wide();
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
pub(super) fn gemm<E: Element>(
    trans_a: bool,
    trans_b: bool,
    alpha: f32,
    beta: f32,
    operands: &[TensorRef<'_>],
    y: &mut TensorMut<'_>,
) {
    let a = Matrix::new(get::<E>(operands[0]), &dims(operands[0].ty), trans_a);
    let b = Matrix::new(get::<E>(operands[1]), &dims(operands[1].ty), trans_b);
    let c = operands.get(2).map(|c| (get::<E>(*c), broadcast(&dims(c.ty), 2)));
    let y = put::<E>(y);
    product(a, b, |i, row| {
        for (j, &p) in row.iter().enumerate() {
            let added = c.as_ref().map_or(0.0, |(c, s)| {
                f64::from(beta) * c[(i as isize * s[0] + j as isize * s[1]) as usize].wide()
            });
            y[i * b.columns + j] = E::round(f64::from(alpha) * p + added);
        }
    });
}

/// numpy matmul: batch dimensions broadcast.
pub(super) fn matmul<E: Element>(
    trans_a: bool,
    trans_b: bool,
    operands: &[TensorRef<'_>],
    y: &mut TensorMut<'_>,
) {
    let (da, db, dy) = (dims(operands[0].ty), dims(operands[1].ty), dims(y.ty));
    let batch = &dy[..dy.len() - 2];
    let (sa, sb) = (broadcast(&da[..da.len() - 2], batch.len()), broadcast(&db[..db.len() - 2], batch.len()));
    let size = |d: &[usize]| d[d.len() - 2] * d[d.len() - 1];
    let (data_a, data_b) = (get::<E>(operands[0]), get::<E>(operands[1]));
    let size_y = size(&dy);
    let y = put::<E>(y);
    let mut at_y = 0;
    rows(batch, [&sa, &sb], [0, 0], |at, n, steps| {
        for k in 0..n as isize {
            let [from_a, from_b] = [0, 1].map(|i| (at[i] + k * steps[i]) as usize);
            let a = Matrix::new(&data_a[from_a * size(&da)..], &da, trans_a);
            let b = Matrix::new(&data_b[from_b * size(&db)..], &db, trans_b);
            let y = &mut y[at_y..at_y + size_y];
            product(a, b, |i, row| {
                for (j, &p) in row.iter().enumerate() {
                    y[i * row.len() + j] = E::round(p);
                }
            });
            at_y += size_y;
        }
    });
}

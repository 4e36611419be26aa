//! What is measured: operations of models by encoding, shape and rows. Data, the same for every backend.

use narrows_shard::Encoding;

use super::Settings;

/// An operation of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Activations times a matrix of weights, as it is stored.
    Linear,
    /// A quantised matrix to bf16.
    Dequantise,
    /// Rows of queries over the positions of a cache.
    Attention,
    /// Root mean square norm.
    RmsNorm,
    /// The same of the residual, after something was added to it; one kernel of a device.
    AddRmsNorm,
    /// The same of each head for itself.
    HeadNorm,
    /// Rotary embedding.
    Rope,
    /// The gate of an MLP.
    Swiglu,
    /// The residual.
    Add,
    /// Every other row of activations, as an expert of a mixture gets them.
    GatherRows,
    /// What an expert computed, added to every other row.
    ScatterAdd,
    /// Keys and values to the cache; a kernel of a device.
    KvWrite,
    /// The greatest of the logits.
    Argmax,
    /// The experts of a row, and the first 50 of the logits; a kernel of a device.
    TopK,
}

impl Operation {
    /// All there are.
    pub const ALL: [Self; 14] = [
        Self::Linear,
        Self::Dequantise,
        Self::Attention,
        Self::RmsNorm,
        Self::AddRmsNorm,
        Self::HeadNorm,
        Self::Rope,
        Self::Swiglu,
        Self::Add,
        Self::GatherRows,
        Self::ScatterAdd,
        Self::KvWrite,
        Self::Argmax,
        Self::TopK,
    ];

    /// Its name on the command line and in results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Dequantise => "dequantise",
            Self::Attention => "attention",
            Self::RmsNorm => "rms_norm",
            Self::AddRmsNorm => "add_rms_norm",
            Self::HeadNorm => "head_norm",
            Self::Rope => "rope",
            Self::Swiglu => "swiglu",
            Self::Add => "add",
            Self::GatherRows => "gather_rows",
            Self::ScatterAdd => "scatter_add",
            Self::KvWrite => "kv_write",
            Self::Argmax => "argmax",
            Self::TopK => "top_k",
        }
    }

    /// What its weights, its cache or, on a device, its result may be stored as; none where a backend has no such
    /// operation. All other activations are float32.
    const fn encodings(self, backend: Kind) -> &'static [Encoding] {
        use Encoding::{Bf16, F16, F32, Nf4, Q8};
        match (self, backend) {
            (Self::Linear, _) => &[F32, Bf16, F16, Q8, Nf4],
            (Self::Dequantise, _) => &[Q8, Nf4],
            (Self::Attention, _)
            | (
                Self::RmsNorm | Self::AddRmsNorm | Self::Swiglu | Self::GatherRows | Self::KvWrite,
                Kind::Device,
            ) => &[F32, Bf16, F16],
            (Self::AddRmsNorm | Self::KvWrite | Self::TopK, Kind::Cpu) => &[],
            _ => &[F32],
        }
    }

    /// What it works on of a model: `[rows, cols]` of weights, `[heads, kv_heads, head_dim, positions]` of attention,
    /// `[heads, head_dim]` of what is done to heads, `[elements, k]` of searches for k, a width of the rest.
    fn shapes(self, shape: &Shape, positions: usize) -> Vec<Vec<usize>> {
        let Shape { hidden, intermediate, heads, kv_heads, head_dim, vocabulary, .. } = *shape;
        match self {
            Self::Linear | Self::Dequantise => shape.matrices.iter().map(|matrix| matrix.to_vec()).collect(),
            Self::Attention => vec![vec![heads, kv_heads, head_dim, positions]],
            Self::Rope | Self::HeadNorm => vec![vec![heads, head_dim]],
            Self::KvWrite => vec![vec![kv_heads, head_dim]],
            Self::Swiglu => vec![vec![intermediate]],
            Self::RmsNorm | Self::AddRmsNorm | Self::Add | Self::GatherRows | Self::ScatterAdd => {
                vec![vec![hidden]]
            }
            Self::Argmax => vec![vec![vocabulary]],
            Self::TopK => {
                let experts = shape.experts.map(|(count, chosen)| vec![count, chosen]);
                experts.into_iter().chain([vec![vocabulary, vocabulary.min(50)]]).collect()
            }
        }
    }
}

/// What a model's operations work on.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Each shape of its matrices, `[rows, cols]`.
    pub matrices: Vec<[usize; 2]>,
    /// Width of the residual.
    pub hidden: usize,
    /// Width of an MLP, or of an expert.
    pub intermediate: usize,
    /// Query heads.
    pub heads: usize,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Logits of a row.
    pub vocabulary: usize,
    /// Of a mixture, how many experts there are and how many compute a row.
    pub experts: Option<(usize, usize)>,
}

/// What kind of thing computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Cpu,
    Device,
}

impl Kind {
    /// What goes into a matrix product, or comes from an operation before one, is stored as.
    pub(super) const fn operand(self, encoding: Encoding) -> Encoding {
        match self {
            Self::Cpu => Encoding::F32,
            Self::Device => encoding.operand(),
        }
    }
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Case {
    pub(super) operation: Operation,
    pub(super) encoding: Encoding,
    /// As [`Operation::shapes`] says.
    pub(super) shape: Vec<usize>,
    /// Of activations; none where the operation has none.
    pub(super) rows: usize,
}

impl Case {
    /// Bytes of its weights, or of its cache; `None` on overflow.
    pub(super) fn weights(&self) -> Option<usize> {
        match (self.operation, &self.shape[..]) {
            (Operation::Linear | Operation::Dequantise, &[out, cols]) => {
                self.encoding.row_bytes(cols)?.checked_mul(out)
            }
            (Operation::Attention, &[_, kv_heads, head_dim, positions]) => {
                self.encoding.row_bytes(head_dim)?.checked_mul(2 * kv_heads)?.checked_mul(positions)
            }
            _ => Some(0),
        }
    }

    /// Elements of a row of activations.
    pub(super) fn width(&self) -> usize {
        match (self.operation, &self.shape[..]) {
            (Operation::Attention | Operation::Rope | Operation::HeadNorm | Operation::KvWrite, shape) => {
                // Query heads, by the elements of a head.
                shape[0] * if shape.len() == 4 { shape[2] } else { shape[1] }
            }
            (_, shape) => shape[0],
        }
    }

    /// Bytes that a call reads and writes at least; `None` on overflow.
    pub(super) fn bytes(&self, backend: Kind) -> Option<f64> {
        use Operation as O;
        let (rows, width) = (self.rows, self.width());
        let elements = (rows * width) as f64;
        let operand = backend.operand(self.encoding).row_bytes(1)? as f64;
        let weights = self.weights()? as f64;
        Some(match (self.operation, &self.shape[..]) {
            (O::Linear, &[out, cols]) => weights + operand * (rows * cols) as f64 + 4.0 * (rows * out) as f64,
            (O::Dequantise, &[out, cols]) => weights + 2.0 * (out * cols) as f64,
            (O::Attention, _) => weights + (4.0 + operand) * elements,
            (O::RmsNorm, _) => (4.0 + operand) * elements + 4.0 * width as f64,
            (O::AddRmsNorm, _) => (12.0 + operand) * elements + 4.0 * width as f64,
            (O::HeadNorm, &[_, head_dim]) => 8.0 * elements + 4.0 * head_dim as f64,
            (O::Rope, &[_, head_dim]) => 8.0 * elements + 4.0 * (rows * head_dim) as f64,
            (O::Swiglu, _) => (8.0 + operand) * elements,
            (O::Add, _) => 12.0 * elements,
            (O::GatherRows, _) => 2.0 * operand * elements + 4.0 * rows as f64,
            (O::ScatterAdd, _) => 12.0 * elements + 8.0 * rows as f64,
            (O::KvWrite, _) => (8.0 + 2.0 * operand) * elements,
            (O::Argmax, _) => 4.0 * elements + 4.0 * rows as f64,
            (O::TopK, &[_, k]) => 4.0 * elements + 8.0 * (rows * k) as f64,
            _ => return None,
        })
    }

    /// Multiplications, additions, divisions and comparisons of a call; an exponential is one.
    pub(super) fn flops(&self) -> f64 {
        use Operation as O;
        let (rows, width) = (self.rows as f64, self.width() as f64);
        match (self.operation, &self.shape[..]) {
            (O::Linear, &[out, cols]) => 2.0 * rows * cols as f64 * out as f64,
            (O::Dequantise, &[out, cols]) => out as f64 * cols as f64,
            (O::Attention, &[_, _, _, positions]) => {
                // The rows are the last positions, and each sees those up to its own.
                let seen = rows * (positions as f64 - rows) + rows * (rows + 1.0) / 2.0;
                4.0 * width * seen
            }
            (O::RmsNorm | O::HeadNorm, _) => 4.0 * rows * width,
            (O::AddRmsNorm | O::Swiglu, _) => 5.0 * rows * width,
            (O::Rope, _) => 3.0 * rows * width,
            (O::ScatterAdd, _) => 2.0 * rows * width,
            (O::Add | O::Argmax, _) => rows * width,
            (O::TopK, &[_, k]) => rows * width * k as f64,
            _ => 0.0,
        }
    }
}

/// The cases of all shapes, each once. What there is no memory for is cut, or left out, and `notes` say so.
pub(super) fn cases(settings: &Settings, backend: Kind, notes: &mut Vec<String>) -> Vec<Case> {
    let mut cases = Vec::new();
    for shape in &settings.shapes {
        for &operation in &settings.operations {
            // Weights are dequantised whatever is computed with them.
            let rows = if operation == Operation::Dequantise { &[0][..] } else { &settings.rows };
            let encodings = || operation.encodings(backend).iter().filter(|e| settings.encodings.contains(e));
            for index in 0..operation.shapes(shape, 0).len() {
                for (&encoding, &rows) in encodings().flat_map(|e| rows.iter().map(move |rows| (e, rows))) {
                    let positions = settings.positions.max(rows);
                    let shape = operation.shapes(shape, positions).swap_remove(index);
                    let case = Case { operation, encoding, shape, rows };
                    let Some(case) = fitting(case, settings.spread.get() as usize, notes) else { continue };
                    if !cases.contains(&case) {
                        cases.push(case);
                    }
                }
            }
        }
    }
    cases
}

/// As many rows of a matrix, or positions of a cache, as there is memory for.
fn fitting(mut case: Case, spread: usize, notes: &mut Vec<String>) -> Option<Case> {
    let of = match case.operation {
        Operation::Linear | Operation::Dequantise => 0,
        Operation::Attention => 3,
        _ => return Some(case),
    };
    let unit = case.weights()? / case.shape[of].max(1);
    let most = spread / unit.max(1);
    if case.shape[of] > most {
        let Case { operation, encoding, shape, .. } = &case;
        let what = format!("{} {encoding} {shape:?}", operation.name());
        // Rows of queries are the last positions.
        let left_out = most == 0 || of == 3 && most < case.rows;
        let note = match left_out {
            true => format!("{what}: left out, the memory for weights holds {most}"),
            false => format!("{what}: cut to {most}, which is what the memory for weights holds"),
        };
        if !notes.contains(&note) {
            notes.push(note);
        }
        case.shape[of] = most;
        return (!left_out).then_some(case);
    }
    Some(case)
}

#[cfg(test)]
mod tests {
    use narrows_bytes::Bytes;

    use super::*;

    #[test]
    fn what_is_too_large_is_cut_and_said() {
        let mut settings = super::super::tests::settings();
        settings.spread = Bytes::mib(8);
        settings.shapes[0].matrices = vec![[1 << 20, 128]];
        settings.operations = vec![Operation::Linear];
        settings.encodings = vec![Encoding::F32];
        let mut notes = Vec::new();
        let cut = cases(&settings, Kind::Cpu, &mut notes);
        assert_eq!(cut[0].shape, [(8 << 20) / 512, 128]);
        assert_eq!(cut.len(), settings.rows.len());
        assert!(notes.len() == 1 && notes[0].contains("cut to 16384"), "{notes:?}");
        // Rows of queries follow each other: there are as many positions.
        settings.operations = vec![Operation::Attention];
        settings.rows = vec![1, 100, 1 << 15];
        notes.clear();
        let cut = cases(&settings, Kind::Cpu, &mut notes);
        let positions: Vec<_> = cut.iter().map(|case| (case.rows, case.shape[3])).collect();
        assert_eq!(positions, [(1, 40), (100, 100)]);
        assert!(notes.len() == 1 && notes[0].contains("left out"), "{notes:?}");
    }

    #[test]
    fn what_moves_and_what_is_computed() {
        let case = |operation, encoding, shape: &[usize], rows| Case {
            operation,
            encoding,
            shape: shape.to_vec(),
            rows,
        };
        let linear = case(Operation::Linear, Encoding::Bf16, &[4096, 128], 3);
        let weights = 4096.0 * 128.0 * 2.0;
        assert_eq!(linear.bytes(Kind::Cpu), Some(weights + 3.0 * 4.0 * (128.0 + 4096.0)));
        assert_eq!(linear.bytes(Kind::Device), Some(weights + 3.0 * (2.0 * 128.0 + 4.0 * 4096.0)));
        assert_eq!(linear.flops(), 2.0 * 3.0 * 4096.0 * 128.0);
        // Three rows at positions 37, 38 and 39 see 38 + 39 + 40.
        let attention = case(Operation::Attention, Encoding::Bf16, &[4, 2, 32, 40], 3);
        assert_eq!(attention.weights(), Some(2 * 2 * 40 * 64));
        assert_eq!(attention.flops(), 4.0 * 128.0 * 117.0);
        for operation in Operation::ALL {
            let shape = super::super::tests::settings().shapes.remove(0);
            for shape in operation.shapes(&shape, 40) {
                let case = case(operation, Encoding::Bf16, &shape, 2);
                assert!(case.bytes(Kind::Device).unwrap() > 0.0, "{case:?}");
                // Copies compute nothing.
                let copies = matches!(operation, Operation::GatherRows | Operation::KvWrite);
                assert_eq!(case.flops() == 0.0, copies, "{case:?}");
            }
        }
    }
}

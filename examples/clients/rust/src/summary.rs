//! What an answer holds, short enough to print.

use serde_json::{json, Value};

use crate::assemble::Answer;
use crate::resolve::axes;
use crate::tensor::Tensor;

pub fn of_answer(answer: &Answer) -> Value {
    let header = &answer.header;
    json!({
        "model": header.model,
        "token_count": header.token_ids.len(),
        // Absent, not 0, if no loss was asked for.
        "loss": header.loss.map(|loss| format!("{:016x}", loss.to_bits())),
        "byte_count": answer.trailer.byte_count,
        "tensors": answer.tensors.iter().map(of_tensor).collect::<Vec<_>>(),
    })
}

fn of_tensor(tensor: &Tensor) -> Value {
    let (info, values) = (&tensor.info, &tensor.values);
    let (mut largest, mut smallest) = (None, None);
    for (i, value) in values.iter().enumerate().filter(|(_, value)| value.is_finite()) {
        if largest.map_or(true, |best: usize| *value > values[best]) {
            largest = Some(i);
        }
        if smallest.map_or(true, |best: usize| *value < values[best]) {
            smallest = Some(i);
        }
    }
    let entry = |i: usize| json!({"at": tensor.at(i), "bits": bits(values[i])});
    json!({
        "dst": info.dst().as_str_name(),
        "pass_type": info.pass_type().as_str_name(),
        "layer_index": info.layer_index,
        "axes": axes(&info.axes),
        "element_type": info.element_type().as_str_name(),
        "encoding": info.encoding().as_str_name(),
        "nonzero_count": info.nonzero_count,
        "checksum": tensor.checksum,
        "minus_infinities": values.iter().filter(|value| **value == f32::NEG_INFINITY).count(),
        "largest": largest.map(entry),
        "smallest": smallest.map(entry),
    })
}

pub fn bits(value: f32) -> String {
    format!("{:08x}", value.to_bits())
}

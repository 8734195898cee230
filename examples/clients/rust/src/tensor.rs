//! Tensors: from the bytes of the wire, which are little-endian, row-major and without padding, to numbers.

use crate::proto::dst::v1::{TensorElementType, TensorEncoding, TensorInfo};

pub struct Tensor {
    pub info: TensorInfo,
    /// Every element in row-major order or, of a sparse tensor, the nonzero ones.
    pub values: Vec<f32>,
    /// Of a sparse tensor the position of each value, one number per axis.
    pub coordinates: Option<Vec<u32>>,
    pub checksum: u32,
}

impl Tensor {
    pub fn decode(info: TensorInfo, data: &[u8], checksum: u32) -> Self {
        let element_type = info.element_type();
        let sparse = info.encoding() == TensorEncoding::SparseLatents;
        // Of a sparse tensor the values come first, then their coordinates.
        let width = byte_width(element_type).unwrap_or(1);
        let split = if sparse { info.nonzero_count() as usize * width } else { data.len() };
        let (values, coordinates) = data.split_at(split);
        Self {
            values: values.chunks_exact(width).map(|bytes| element(bytes, element_type)).collect(),
            coordinates: sparse.then(|| coordinates.chunks_exact(4).map(u32_of).collect()),
            info,
            checksum,
        }
    }

    /// Row-major position, in the whole tensor, of one of the values.
    pub fn at(&self, value: usize) -> u64 {
        let coordinates = match &self.coordinates {
            Some(coordinates) => coordinates,
            None => return value as u64,
        };
        let rank = self.info.axes.len();
        let position = coordinates[value * rank..].iter().zip(&self.info.axes);
        position.fold(0, |offset, (at, axis)| offset * axis.size + u64::from(*at))
    }

    /// Whether every coordinate lies on its axis.
    pub fn in_bounds(&self) -> bool {
        let axes = self.info.axes.iter().cycle();
        self.coordinates.iter().flatten().zip(axes).all(|(at, axis)| u64::from(*at) < axis.size)
    }

    /// Every element in row-major order, zeros included.
    pub fn dense(&self) -> Vec<f32> {
        if self.coordinates.is_none() {
            return self.values.clone();
        }
        let size = self.info.axes.iter().map(|axis| axis.size).product::<u64>();
        let mut elements = vec![0.0; size as usize];
        for (i, value) in self.values.iter().enumerate() {
            elements[self.at(i) as usize] = *value;
        }
        elements
    }
}

/// Bytes of an element of the types that an answer may have.
pub fn byte_width(element_type: TensorElementType) -> Option<usize> {
    match element_type {
        TensorElementType::Float32 => Some(4),
        TensorElementType::Float16 | TensorElementType::Bfloat16 => Some(2),
        _ => None,
    }
}

fn element(bytes: &[u8], element_type: TensorElementType) -> f32 {
    match element_type {
        TensorElementType::Float16 => float16(u16_of(bytes)),
        // The upper half of a float32.
        TensorElementType::Bfloat16 => f32::from_bits(u32::from(u16_of(bytes)) << 16),
        _ => f32::from_bits(u32_of(bytes)),
    }
}

fn u16_of(bytes: &[u8]) -> u16 {
    u16::from_le_bytes([bytes[0], bytes[1]])
}

fn u32_of(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// Reads IEEE 754 binary16: 1 sign bit, 5 of exponent, 10 of fraction.
fn float16(bits: u16) -> f32 {
    let sign = u32::from(bits >> 15) << 31;
    let exponent = u32::from(bits >> 10 & 0x1f);
    let fraction = u32::from(bits & 0x3ff);
    let magnitude = match exponent {
        0 => (fraction as f32 / (1 << 24) as f32).to_bits(), // subnormal
        0x1f => 0xff << 23 | fraction << 13,                 // infinity, NaN
        _ => (exponent + 127 - 15) << 23 | fraction << 13,
    };
    f32::from_bits(sign | magnitude)
}

//! Frames -> tensors. Each tensor's memory is allocated once, from the header, and nothing is believed unchecked: order,
//! offsets, lengths and checksums.

use std::fmt;

use crc32fast::Hasher;
use prost::Message;

use crate::proto::dst::v1::derive_frame::Frame as Kind;
use crate::proto::dst::v1::{DeriveFrame, Header, TensorChunk, TensorEncoding, TensorInfo, Trailer};
use crate::tensor::{byte_width, Tensor};

/// How much an answer may announce: memory is taken before anything else has come.
const MAX_BYTES: u64 = 8 << 30;

/// A whole, undamaged answer.
pub struct Answer {
    pub header: Header,
    pub tensors: Vec<Tensor>,
    pub trailer: Trailer,
}

/// The frames are not those of one whole, undamaged answer.
#[derive(Debug)]
pub enum DamagedAnswer {
    /// They end before the trailer.
    Truncated,
    /// They contradict themselves.
    Corrupt(String),
}

impl fmt::Display for DamagedAnswer {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Truncated => write!(f, "the answer is truncated: it ended without a trailer"),
            Self::Corrupt(problem) => write!(f, "the answer is corrupt: {problem}"),
        }
    }
}

impl std::error::Error for DamagedAnswer {}

pub fn damaged<T>(problem: impl ToString) -> Result<T, DamagedAnswer> {
    Err(DamagedAnswer::Corrupt(problem.to_string()))
}

/// Adds a piece of a message: lists are joined. Messages in a row are one message, by the rules of protobuf.
pub fn joined<M: Message>(whole: &mut M, piece: &M) {
    whole.merge(piece.encode_to_vec().as_slice()).expect("what was encoded can be decoded");
}

/// A tensor on its way.
struct Buffer {
    data: Vec<u8>,
    length: usize,
    checksum: Hasher,
}

/// The frames of one request go in, in order; its answer comes out.
#[derive(Default)]
pub struct Assembler {
    /// Of all pieces: that of many tensors or tokens comes in several frames, all but the last of them partial.
    header: Option<Header>,
    /// Whether the last of them has come.
    complete: bool,
    announced: u64,
    buffers: Vec<Buffer>,
    /// The tensor being filled.
    current: usize,
    trailer: Option<Trailer>,
}

impl Assembler {
    /// Takes the next frame. Kinds that this client does not know are ignored.
    pub fn add(&mut self, frame: DeriveFrame) -> Result<(), DamagedAnswer> {
        match frame.frame {
            Some(Kind::Header(piece)) => self.begin(piece, frame.partial),
            Some(Kind::Chunk(chunk)) => self.fill(&chunk),
            Some(Kind::Trailer(trailer)) => self.end(trailer),
            Some(Kind::Error(_)) => damaged("an error in place of the trailer; only DeriveStream sends those"),
            None => Ok(()),
        }
    }

    /// Gives the answer. One without its trailer is truncated, even if the call's status is OK.
    pub fn finish(self) -> Result<Answer, DamagedAnswer> {
        let (header, trailer) = match (self.header, self.trailer) {
            (Some(header), Some(trailer)) => (header, trailer),
            _ => return Err(DamagedAnswer::Truncated),
        };
        let infos = header.tensors.iter().zip(&trailer.checksums);
        let tensors: Vec<_> = infos
            .zip(&self.buffers)
            .map(|((info, checksum), buffer)| Tensor::decode(info.clone(), &buffer.data, *checksum))
            .collect();
        if !tensors.iter().all(Tensor::in_bounds) {
            return damaged("coordinates outside of their axes");
        }
        Ok(Answer { tensors, header, trailer })
    }

    fn begin(&mut self, piece: Header, partial: bool) -> Result<(), DamagedAnswer> {
        let differs = |header: &Header| !piece.model.is_empty() && piece.model != header.model;
        if self.complete || self.header.as_ref().map_or(false, differs) {
            return damaged("a second header");
        }
        self.complete = !partial;
        for info in &piece.tensors {
            let id = self.buffers.len();
            if info.tensor_id as usize != id {
                return damaged(format!("tensor {id} is numbered {}", info.tensor_id));
            }
            if info.byte_length > MAX_BYTES - self.announced {
                return damaged(format!("more than {MAX_BYTES} bytes announced"));
            }
            check_length(info)?;
            self.announced += info.byte_length;
            let length = info.byte_length as usize;
            self.buffers.push(Buffer { data: Vec::with_capacity(length), length, checksum: Hasher::new() });
        }
        joined(self.header.get_or_insert_with(Header::default), &piece);
        self.skip_full();
        Ok(())
    }

    fn fill(&mut self, chunk: &TensorChunk) -> Result<(), DamagedAnswer> {
        if !self.complete || self.trailer.is_some() {
            return damaged("a chunk outside of header and trailer");
        }
        let current = self.current;
        let buffer = match self.buffers.get_mut(current) {
            Some(buffer) if chunk.tensor_id as usize == current && chunk.offset == buffer.data.len() as u64 => buffer,
            _ => return damaged(format!("a chunk of tensor {} at {} out of order", chunk.tensor_id, chunk.offset)),
        };
        if chunk.data.len() > buffer.length - buffer.data.len() {
            return damaged(format!("too many bytes for tensor {current}"));
        }
        buffer.data.extend_from_slice(&chunk.data);
        buffer.checksum.update(&chunk.data);
        self.skip_full();
        Ok(())
    }

    /// Moves on to the next tensor that lacks bytes; an empty tensor has no chunks.
    fn skip_full(&mut self) {
        let full = |buffer: &Buffer| buffer.data.len() == buffer.length;
        while self.buffers.get(self.current).map_or(false, full) {
            self.current += 1;
        }
    }

    fn end(&mut self, trailer: Trailer) -> Result<(), DamagedAnswer> {
        if !self.complete || self.trailer.is_some() {
            return damaged("a trailer without header, or a second one");
        }
        if self.current < self.buffers.len() {
            return damaged(format!("the trailer came before the end of tensor {}", self.current));
        }
        let bytes: usize = self.buffers.iter().map(|buffer| buffer.length).sum();
        if trailer.tensor_count as usize != self.buffers.len() || trailer.byte_count != bytes as u64 {
            return damaged("the trailer does not count what came");
        }
        let checksums: Vec<u32> = self.buffers.iter().map(|buffer| buffer.checksum.clone().finalize()).collect();
        if trailer.checksums != checksums {
            return damaged("the checksums differ");
        }
        self.trailer = Some(trailer);
        Ok(())
    }
}

/// The number of bytes announced must be what the sizes come to.
fn check_length(info: &TensorInfo) -> Result<(), DamagedAnswer> {
    let width = match byte_width(info.element_type()) {
        Some(width) => width,
        None => return damaged(format!("no decoder for {}", info.element_type().as_str_name())),
    };
    // Whatever the sizes, an f64 does not overflow; up to 2^53 it is exact.
    let expected = match info.encoding() {
        TensorEncoding::Dense => info.axes.iter().map(|axis| axis.size as f64).product::<f64>() * width as f64,
        TensorEncoding::SparseLatents => info.nonzero_count() as f64 * (width + 4 * info.axes.len()) as f64,
        other => return damaged(format!("no decoder for {}", other.as_str_name())),
    };
    if info.byte_length as f64 != expected {
        let (id, length) = (info.tensor_id, info.byte_length);
        return damaged(format!("tensor {id}: {length} bytes announced, its sizes make {expected}"));
    }
    Ok(())
}

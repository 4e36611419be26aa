//! A SentencePiece model as it is stored: a protobuf message (`sentencepiece_model.proto`), whose fields are known here
//! by number.

use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use super::super::pieces::Pieces;
use super::super::{Failed, table};

/// Bytes of a piece, as the package has it.
const MAX_PIECE: usize = 8000;

/// Bytes that stand for an unknown piece in a text; the package has five.
const MAX_SURFACE: usize = 256;

/// What a piece is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl Kind {
    const fn of(number: i32) -> Option<Self> {
        Some(match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }

    /// Whether text can become such a piece.
    pub(super) const fn is_text(self) -> bool {
        matches!(self, Self::Normal | Self::UserDefined | Self::Unused)
    }
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, optional, tag = "1")]
    piece: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

/// `TrainerSpec`, of which the rest is about training.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Trainer {
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
    #[prost(bool, optional, tag = "24")]
    pub(super) treat_whitespace_as_suffix: Option<bool>,
    #[prost(bool, optional, tag = "35")]
    byte_fallback: Option<bool>,
    #[prost(string, optional, tag = "44")]
    pub(super) unk_surface: Option<String>,
    #[prost(string, optional, tag = "46")]
    pub(super) bos_piece: Option<String>,
    #[prost(string, optional, tag = "47")]
    pub(super) eos_piece: Option<String>,
}

/// `NormalizerSpec`; flags are true unless it says otherwise.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Normalizing {
    #[prost(bytes = "vec", optional, tag = "2")]
    pub(super) precompiled_charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3")]
    pub(super) add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    pub(super) remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    pub(super) escape_whitespaces: Option<bool>,
}

/// How text is cut into pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cutting {
    Unigram,
    BytePairs,
}

/// A model, read and checked as the package checks it.
#[derive(Debug)]
pub(super) struct File {
    pub(super) pieces: Pieces,
    pub(super) kinds: Vec<Kind>,
    pub(super) scores: Vec<f32>,
    pub(super) unknown: u32,
    /// The piece of each byte, where text that has none becomes bytes.
    pub(super) bytes: Option<Box<[u32; 256]>>,
    pub(super) cutting: Cutting,
    pub(super) trainer: Trainer,
    pub(super) normalizing: Normalizing,
}

/// What a model takes in memory, before it is made.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    pieces: usize,
    piece_bytes: usize,
    controls: usize,
    control_bytes: usize,
    other_bytes: usize,
}

impl Sizes {
    pub(super) fn of(bytes: &[u8]) -> Result<Self, Failed> {
        let mut sizes = Self::default();
        fields(bytes, |tag, inside| {
            if tag != 1 {
                sizes.other_bytes += inside.len();
                return Ok(());
            }
            let piece = Piece::decode(inside)?;
            let len = piece.piece.map_or(0, |piece| piece.len());
            sizes.pieces += 1;
            sizes.piece_bytes += len;
            if piece.kind == Some(3) {
                sizes.controls += 1;
                sizes.control_bytes += len;
            }
            Ok(())
        })?;
        if sizes.controls > table::MAX_SPECIALS || sizes.control_bytes > table::MAX_SPECIAL_BYTES {
            return Err(format!("{} control pieces of {} bytes", sizes.controls, sizes.control_bytes).into());
        }
        Ok(sizes)
    }

    /// Bytes that the model takes at most.
    pub(super) fn memory(&self) -> usize {
        // Kinds, scores, and the sorted numbers, which are collected in one list and stay in it.
        let lists = self.pieces * (1 + 4 + 4 + 4);
        let specials = table::specials_memory(self.controls, self.control_bytes);
        Pieces::memory(self.pieces, self.piece_bytes) + lists + specials + 2 * self.other_bytes
    }
}

/// Hands the fields of a message that have a length to `each`, with their numbers.
fn fields(mut bytes: &[u8], mut each: impl FnMut(u32, &[u8]) -> Result<(), Failed>) -> Result<(), Failed> {
    while !bytes.is_empty() {
        let (tag, wire) = decode_key(&mut bytes)?;
        if wire != WireType::LengthDelimited {
            skip_field(wire, tag, &mut bytes, DecodeContext::default())?;
            continue;
        }
        let len = usize::try_from(decode_varint(&mut bytes)?).unwrap_or(usize::MAX);
        let (inside, rest) = bytes.split_at_checked(len).ok_or("a field goes beyond the end")?;
        each(tag, inside)?;
        bytes = rest;
    }
    Ok(())
}

impl File {
    /// Reads a model.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Failed> {
        let sizes = Sizes::of(bytes)?;
        let mut file = Self {
            pieces: Pieces::with_capacity(sizes.pieces, sizes.piece_bytes),
            kinds: Vec::with_capacity(sizes.pieces),
            scores: Vec::with_capacity(sizes.pieces),
            unknown: 0,
            bytes: None,
            cutting: Cutting::Unigram,
            trainer: Trainer::default(),
            normalizing: Normalizing::default(),
        };
        fields(bytes, |tag, inside| match tag {
            1 => file.piece(&Piece::decode(inside)?),
            2 => Ok(file.trainer.merge(inside)?),
            3 => Ok(file.normalizing.merge(inside)?),
            5 if Normalizing::decode(inside)?.precompiled_charsmap.is_some_and(|map| !map.is_empty()) => {
                Err(table::Unsupported("a SentencePiece model with a denormalizer").into())
            }
            _ => Ok(()),
        })?;
        file.cutting = match file.trainer.model_type.unwrap_or(1) {
            1 => Cutting::Unigram,
            2 => Cutting::BytePairs,
            3 => return Err(table::Unsupported("a SentencePiece model of words").into()),
            4 => return Err(table::Unsupported("a SentencePiece model of characters").into()),
            other => return Err(format!("model type {other} is not known").into()),
        };
        let mut unknown = (0..).zip(&file.kinds).filter(|(_, kind)| **kind == Kind::Unknown);
        file.unknown = match (unknown.next(), unknown.next()) {
            (Some((id, _)), None) => id,
            (None, _) => return Err("there is no unknown piece".into()),
            _ => return Err("there are two unknown pieces".into()),
        };
        file.bytes = file.byte_pieces()?;
        if file.trainer.unk_surface.as_ref().is_some_and(|surface| surface.len() > MAX_SURFACE) {
            return Err(format!("an unknown piece is shown as more than {MAX_SURFACE} bytes").into());
        }
        Ok(file)
    }

    fn piece(&mut self, piece: &Piece) -> Result<(), Failed> {
        let number = self.pieces.len();
        let text = piece.piece.as_deref().unwrap_or_default();
        if text.is_empty() || text.len() >= MAX_PIECE || text.contains('\0') {
            return Err(format!("piece {number} is empty, too long or has a zero in it").into());
        }
        let kind = piece.kind.unwrap_or(1);
        let kind = Kind::of(kind).ok_or_else(|| format!("piece {number} is of unknown type {kind}"))?;
        // Minus zero is zero.
        let score = piece.score.unwrap_or(0.0) + 0.0;
        if score.is_nan() {
            return Err(format!("the score of piece {number} is not a number").into());
        }
        if !self.pieces.push(text.as_bytes()) {
            return Err(format!("piece {number} is there twice: {text:?}").into());
        }
        self.kinds.push(kind);
        self.scores.push(score);
        Ok(())
    }

    fn byte_pieces(&self) -> Result<Option<Box<[u32; 256]>>, Failed> {
        let is_byte = |id: u32| self.kinds.get(id as usize) == Some(&Kind::Byte);
        if !self.trainer.byte_fallback.unwrap_or(false) {
            return match self.kinds.contains(&Kind::Byte) {
                true => Err("pieces of bytes, but no fallback to them".into()),
                false => Ok(None),
            };
        }
        let mut ids = Box::new([0; 256]);
        for (byte, id) in (0_u8..=255).zip(ids.iter_mut()) {
            let found = self.pieces.find(format!("<0x{byte:02X}>").as_bytes()).filter(|id| is_byte(*id));
            *id = found.ok_or_else(|| format!("there is no piece for the byte {byte}"))?;
        }
        match self.kinds.iter().filter(|kind| **kind == Kind::Byte).count() {
            256 => Ok(Some(ids)),
            more => Err(format!("{more} pieces of bytes").into()),
        }
    }
}

//! SentencePiece models written field by field, also such as no trainer would.
#![allow(dead_code, missing_docs, unreachable_pub)]

/// What pieces are for, as files have it.
pub const NORMAL: u64 = 1;
pub const UNKNOWN: u64 = 2;
pub const CONTROL: u64 = 3;
pub const USER_DEFINED: u64 = 4;
pub const UNUSED: u64 = 5;
pub const BYTE: u64 = 6;

pub fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// A field of a number.
pub fn number(out: &mut Vec<u8>, tag: u64, n: u64) {
    varint(out, tag << 3);
    varint(out, n);
}

/// A field of bytes, which a message is, too.
pub fn bytes(out: &mut Vec<u8>, tag: u64, inside: &[u8]) {
    varint(out, tag << 3 | 2);
    varint(out, inside.len() as u64);
    out.extend_from_slice(inside);
}

/// Adds a piece to a model.
pub fn piece(model: &mut Vec<u8>, text: &[u8], score: f32, kind: u64) {
    let mut inside = Vec::new();
    bytes(&mut inside, 1, text);
    inside.push(2 << 3 | 5);
    inside.extend(score.to_le_bytes());
    number(&mut inside, 3, kind);
    bytes(model, 1, &inside);
}

/// A model of `<unk>`, `<s>` and `</s>`, of these words and of all bytes; `model_type` is 1 where it is a unigram, 2 where
/// pairs are merged.
pub fn model(model_type: u64, words: impl IntoIterator<Item = (String, u64)>) -> Vec<u8> {
    let mut model = Vec::new();
    piece(&mut model, b"<unk>", 0.0, UNKNOWN);
    piece(&mut model, b"<s>", 0.0, CONTROL);
    piece(&mut model, b"</s>", 0.0, CONTROL);
    for byte in 0..=255 {
        piece(&mut model, format!("<0x{byte:02X}>").as_bytes(), 0.0, BYTE);
    }
    for (n, (word, kind)) in words.into_iter().enumerate() {
        piece(&mut model, word.as_bytes(), -(n as f32), kind);
    }
    let mut trainer = Vec::new();
    number(&mut trainer, 3, model_type);
    number(&mut trainer, 35, 1);
    bytes(&mut model, 2, &trainer);
    let mut normalizer = Vec::new();
    // Extra spaces stay, as they do in language models.
    number(&mut normalizer, 4, 0);
    bytes(&mut model, 3, &normalizer);
    model
}

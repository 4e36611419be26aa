//! Tables of tiktoken: a token in base64 and its rank on each line. The rank is the token's id, and the pair that
//! becomes the token of the lowest rank is merged first.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use narrows_shard::Bytes;

use super::Failed;
use super::merge::Symbols;
use super::pieces::Pieces;
use super::table::specials_memory;

/// A table, ready to cut and join.
#[derive(Debug)]
pub(super) struct Ranks {
    pieces: Pieces,
    /// The rank of each piece, ascending.
    ranks: Vec<u32>,
}

/// The tokens of a table in base64, and their ranks; `None` for a line that is neither empty nor such.
fn lines(bytes: &[u8]) -> impl Iterator<Item = Option<(&[u8], u32)>> {
    let lines = bytes.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
    lines.map(|line| {
        let (token, rank) = line.split_at(line.iter().position(|byte| *byte == b' ')?);
        let rank = std::str::from_utf8(rank.trim_ascii()).ok()?;
        Some((token, rank.parse().ok()?))
    })
}

/// Whether a file is a table: whether its first line is one of a table.
pub(super) fn is_table(bytes: &[u8]) -> bool {
    let start = &bytes[..bytes.len().min(1 << 16)];
    let first = lines(start).next().flatten();
    first.is_some_and(|(token, _)| STANDARD.decode(token).is_ok())
}

impl Ranks {
    /// Reads a table.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Failed> {
        let (count, size) = sizes(bytes);
        let mut ranks = Self { pieces: Pieces::with_capacity(count, size), ranks: Vec::with_capacity(count) };
        let mut token = Vec::new();
        for line in lines(bytes) {
            let number = ranks.ranks.len() + 1;
            let (base64, rank) = line.ok_or_else(|| format!("entry {number} is not a token and its rank"))?;
            token.clear();
            let decoded = STANDARD.decode_vec(base64, &mut token);
            decoded.map_err(|e| format!("the token of rank {rank} is not base64: {e}"))?;
            if ranks.ranks.last().is_some_and(|last| *last >= rank) || rank > i32::MAX as u32 {
                return Err(format!("rank {rank} of entry {number} is out of order").into());
            }
            if token.is_empty() || !ranks.pieces.push(&token) {
                return Err(format!("the token of rank {rank} is empty or there twice").into());
            }
            ranks.ranks.push(rank);
        }
        match (0..=255).find(|byte| ranks.pieces.find(&[*byte]).is_none()) {
            None => Ok(ranks),
            Some(byte) => Err(format!("there is no token for the byte {byte}").into()),
        }
    }

    /// What a table takes in memory at most, without its file.
    pub(super) fn memory(bytes: &[u8]) -> Bytes {
        let (count, size) = sizes(bytes);
        Bytes((Pieces::memory(count, size) + 4 * count + specials_memory(0, 0)) as u64)
    }

    /// One more than the greatest rank.
    pub(super) fn len(&self) -> usize {
        self.ranks.last().map_or(0, |last| *last as usize + 1)
    }

    /// The bytes of a token.
    pub(super) fn token(&self, id: u32) -> Option<&[u8]> {
        self.pieces.get(u32::try_from(self.ranks.binary_search(&id).ok()?).ok()?)
    }

    pub(super) fn find(&self, token: &[u8]) -> Option<u32> {
        self.ranks.get(self.pieces.find(token)? as usize).copied()
    }

    /// The tokens of a part of a text.
    pub(super) fn cut(&self, part: &[u8]) -> Result<Vec<u32>, Failed> {
        if let Some(rank) = self.find(part) {
            return Ok(vec![rank]);
        }
        let mut symbols = Symbols::with_capacity(part.len());
        if !part.iter().all(|_| symbols.push(1, false)) {
            return Err("the text is too long".into());
        }
        symbols.merge(|start, _, end| Some(u32::MAX - self.find(&part[start..end])?));
        Ok(symbols.ranges().filter_map(|range| self.find(&part[range])).collect())
    }
}

/// Tokens of a table, and bytes of all of them at most.
fn sizes(bytes: &[u8]) -> (usize, usize) {
    lines(bytes)
        .flatten()
        .fold((0, 0), |(count, size), (token, _)| (count + 1, size + token.len() / 4 * 3 + 3))
}

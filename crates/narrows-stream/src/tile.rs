//! What is streamed: opaque runs of bytes, by number.

use crate::Bytes;

/// The number of a tile: its place in the list of tiles that the plan was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TileId(pub u32);

impl TileId {
    /// The number as an index.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// The number of a group: tiles that are demanded together, as the matrices of an expert are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group(pub u32);

impl Group {
    /// The number as an index.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Bytes that are moved as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tile {
    /// The payload.
    pub len: Bytes,
    /// The memory that its source needs to read it into: the payload, rounded out to blocks.
    pub capacity: Bytes,
    /// When it is fetched.
    pub access: Access,
}

impl Tile {
    /// A tile of `len` bytes, for which its source needs `capacity` bytes of memory.
    #[must_use]
    pub const fn new(len: Bytes, capacity: Bytes, access: Access) -> Self {
        Self { len, capacity, access }
    }
}

/// When a tile is fetched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Access {
    /// In each pass.
    #[default]
    Walked,
    /// In the first pass only: from then on it lives elsewhere.
    Once,
    /// When its group is asked for.
    Demanded(Group),
}

impl Access {
    /// The group of a tile that is demanded.
    #[must_use]
    pub const fn group(self) -> Option<Group> {
        match self {
            Self::Demanded(group) => Some(group),
            Self::Walked | Self::Once => None,
        }
    }
}

//! Which tiles stay in memory: a fixed set, spread evenly through the pass.
//!
//! A walk is cyclic, so a cache of the last used tiles would always have dropped the one that comes next. A fixed
//! set saves its own bytes in every pass. Spread evenly, it never leaves the disk with a long run of tiles to read
//! while the computation has nothing to do, nor the other way round.
//!
//! Small tiles stay first. A slot is as big as the biggest tile and takes one tile, whatever its size: slots full of
//! small ones hold too few bytes on their way to keep the disk busy.

/// How finely shares are tried, in steps per tile: finer fills the room better where sizes differ.
const STEPS_PER_TILE: usize = 8;

/// A tile as residency sees it: the bytes that it takes in memory, and those that it saves per pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weight {
    pub(crate) region: u64,
    pub(crate) len: u64,
}

/// The resident ones among `tiles`, which take at most `room` bytes.
///
/// Of a series of shares that does not depend on the room, the spread that saves most is taken among those that
/// fit, so more room never saves less. Spreads that cannot fit, or cannot be better, are not looked at.
pub(crate) fn choose(tiles: &[Weight], room: u64) -> Vec<bool> {
    let spread = Spread::new(tiles);
    let total: u128 = spread.totals.iter().sum();
    let steps = (tiles.len() * STEPS_PER_TILE) as u128;
    // A spread misses its share by at most half a tile (see `Spread::resident`) and the rounding of a division.
    let miss = u128::from(spread.biggest) / 2 + 1;
    let highest = match total {
        0 => 0,
        _ => steps.min((u128::from(room) + miss + 1).saturating_mul(steps) / total),
    };

    let mut best = 0;
    let mut chosen = vec![false; tiles.len()];
    for step in (0..=highest).rev() {
        let share = step * total / steps.max(1);
        if share + miss < best {
            break;
        }
        let resident = spread.resident(share);
        let (mut region, mut len) = (0, 0);
        for (tile, _) in tiles.iter().zip(&resident).filter(|(_, resident)| **resident) {
            region += u128::from(tile.region);
            len += u128::from(tile.len);
        }
        // Of equals the lowest share: the higher ones are those that would have kept more, had it fitted.
        if region <= u128::from(room) && len >= best {
            (best, chosen) = (len, resident);
        }
    }
    chosen
}

/// Tiles by size: those more than half as big as the biggest, those more than a quarter as big, ...
struct Spread<'a> {
    tiles: &'a [Weight],
    biggest: u64,
    /// Of each tile, 0 for the biggest ones.
    classes: Vec<usize>,
    /// The bytes of each class.
    totals: Vec<u128>,
}

impl<'a> Spread<'a> {
    fn new(tiles: &'a [Weight]) -> Self {
        let biggest = tiles.iter().map(|tile| tile.region).max().unwrap_or(0);
        let class = |tile: &Weight| (biggest / tile.region.max(1)).max(1).ilog2() as usize;
        let classes: Vec<_> = tiles.iter().map(class).collect();
        let mut totals = vec![0; 64];
        for (tile, class) in tiles.iter().zip(&classes) {
            totals[*class] += u128::from(tile.region);
        }
        Self { tiles, biggest, classes, totals }
    }

    /// Keeps `wanted` bytes: all of the smallest classes, and of one a share. Walking its tiles with that share of
    /// the bytes so far in mind, each is kept that brings the resident bytes closer to it: after every tile they
    /// are within half the biggest tile of it.
    fn resident(&self, mut wanted: u128) -> Vec<bool> {
        let mut shares = vec![0; self.totals.len()];
        for (share, total) in shares.iter_mut().zip(&self.totals).rev() {
            *share = wanted.min(*total);
            wanted -= *share;
        }
        let (mut walked, mut resident) = (vec![0; shares.len()], vec![0; shares.len()]);
        let keep = |(tile, &class): (&Weight, &usize)| {
            let region = u128::from(tile.region);
            walked[class] += region;
            let wanted = walked[class] * shares[class] / self.totals[class].max(1);
            let keep = 2 * wanted > 2 * resident[class] + region;
            resident[class] += if keep { region } else { 0 };
            keep
        };
        self.tiles.iter().zip(&self.classes).map(keep).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(tiles: &[Weight], room: u64) -> String {
        choose(tiles, room).iter().map(|&resident| if resident { '#' } else { '.' }).collect()
    }

    #[test]
    fn equal_tiles_alternate() {
        let tiles = [Weight { region: 10, len: 9 }; 8];
        assert_eq!(shown(&tiles, 0), "........");
        assert_eq!(shown(&tiles, 10), ".......#");
        assert_eq!(shown(&tiles, 49), ".#.#.#.#");
        assert_eq!(shown(&tiles, 79), "##.#####");
        assert_eq!(shown(&tiles, 80), "########");
    }

    /// Each big one that is streamed passes through a slot that a small one would leave almost empty.
    #[test]
    fn small_tiles_stay_first() {
        let [big, small] = [100, 5].map(|len| Weight { region: len, len });
        let tiles = [big, small, small].repeat(4);
        assert_eq!(shown(&tiles, 10), "....#......#");
        assert_eq!(shown(&tiles, 40), ".##.##.##.##");
        assert_eq!(shown(&tiles, 139), ".##.##.##.##");
        assert_eq!(shown(&tiles, 240), ".#####.#####");
        assert_eq!(shown(&tiles, 440), "############");
    }

    #[test]
    fn no_tiles() {
        assert!(choose(&[], 100).is_empty());
    }
}

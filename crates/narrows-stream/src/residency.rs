//! Which tiles stay in memory: a fixed set, spread evenly through the pass.
//!
//! A walk is cyclic, so a cache of the last used tiles would always have dropped the one that comes next. A fixed
//! set saves its own bytes in every pass. Spread evenly, it never leaves the disk with a long run of tiles to read
//! while the computation has nothing to do, nor the other way round.

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
    let total: u128 = tiles.iter().map(|tile| u128::from(tile.region)).sum();
    let biggest = tiles.iter().map(|tile| u128::from(tile.region)).max().unwrap_or(0);
    let steps = (tiles.len() * STEPS_PER_TILE) as u128;
    // A spread misses its share by at most half a tile (see `spread`) and the rounding of a division.
    let miss = biggest / 2 + 1;
    let highest = match total {
        0 => 0,
        _ => steps.min((u128::from(room) + miss + 1).saturating_mul(steps) / total),
    };

    let mut best = 0;
    let mut chosen = vec![false; tiles.len()];
    for step in (0..=highest).rev() {
        if step * total / steps.max(1) + miss < best {
            break;
        }
        let resident = spread(tiles, step, steps);
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

/// Walks the tiles with `step / steps` of the bytes so far in mind, and keeps each tile that brings the resident
/// bytes closer to that: after every tile they are within half the biggest tile of it.
fn spread(tiles: &[Weight], step: u128, steps: u128) -> Vec<bool> {
    let (mut walked, mut resident) = (0, 0);
    let keep = |tile: &Weight| {
        let region = u128::from(tile.region);
        walked += region;
        let wanted = walked * step / steps.max(1);
        let keep = 2 * wanted > 2 * resident + region;
        resident += if keep { region } else { 0 };
        keep
    };
    tiles.iter().map(keep).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_tiles_alternate() {
        let tiles = [Weight { region: 10, len: 9 }; 8];
        let shown =
            |room| choose(&tiles, room).iter().map(|&r| if r { '#' } else { '.' }).collect::<String>();
        assert_eq!(shown(0), "........");
        assert_eq!(shown(10), ".......#");
        assert_eq!(shown(49), ".#.#.#.#");
        assert_eq!(shown(79), "##.#####");
        assert_eq!(shown(80), "########");
    }

    #[test]
    fn no_tiles() {
        assert!(choose(&[], 100).is_empty());
    }
}

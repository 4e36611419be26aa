//! An outside program that streams tensors of its own through a memory much smaller than they are.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use narrows_stream::staging::{Arena, ArenaOptions, Budget, Filling, Free, Slot};
use narrows_stream::{
    Access, Bytes, Completed, Options, Request, Slots, SourceError, Stream, Tile, TileId, TileSource, plan,
};

const TENSORS: u32 = 64;
const TENSOR: usize = 1 << 20;

/// Tensors "over the network".
struct Network(VecDeque<Completed>);

impl TileSource for Network {
    fn capacity(&self, _: TileId) -> usize {
        TENSOR
    }

    fn submit(&mut self, tile: TileId, slot: Slot<Filling>) -> Result<(), (SourceError, Slot<Free>)> {
        let (tag, submitted) = (slot.tag(), Instant::now());
        let filled = slot.fill_with(|bytes| {
            bytes.fill(tile.0 as u8);
            Ok::<_, SourceError>(0..TENSOR)
        });
        self.0.push_back(Completed::now(filled, tag, Bytes(TENSOR as u64), submitted));
        Ok(())
    }

    fn wait(&mut self, _: Option<Duration>) -> Option<Completed> {
        self.0.pop_front()
    }

    fn in_flight(&self) -> usize {
        self.0.len()
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let size = Bytes(TENSOR as u64);
    let tiles = vec![Tile::new(size, size, Access::Walked); TENSORS as usize];
    let budget = Budget::new(Bytes::mib(16));
    let plan = plan(&Request::new(&tiles, budget.cap()).slots(Slots::Exactly(4)))?;
    assert_eq!((plan.slots, plan.resident), (4, Bytes::mib(12)));
    let arena = Arena::new(&budget, "tensors", plan.arena, ArenaOptions::default())?;
    let mut stream = Stream::start(&plan, &arena, Network(VecDeque::new()), Options::default())?;
    for _ in 0..3 {
        let mut pass = stream.pass();
        for tile in 0..TENSORS {
            let held = pass.next()?;
            assert!(held.bytes().len() == TENSOR && held.bytes().iter().all(|byte| *byte == tile as u8));
        }
    }
    assert_eq!(budget.peak(), Bytes::mib(16));
    Ok(())
}

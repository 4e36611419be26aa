//! Another engine streams tensors of its own through a memory much smaller than they are.
//!
//! ```text
//! cargo run --release -p narrows-stream --example tensors -- [FILE [TRACE.json]]
//! ```
//!
//! It makes a file of 64 "tensors" (256 MiB), walks them three times in 64 MiB, and sums up their bytes as they
//! come. A trace that is asked for opens in <https://ui.perfetto.dev>.
#![allow(clippy::print_stdout, reason = "an example prints")]

use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use narrows_stream::staging::{Arena, ArenaOptions, Budget, IoMode, Read, Reader, ReaderOptions};
use narrows_stream::{
    Access, Bytes, FileSource, Need, Options, Request, Slots, Speed, StageStats, Stream, Tile, TileId, Trace,
    plan,
};

const TENSORS: usize = 64;
const TENSOR: usize = 4 << 20;
const PASSES: usize = 3;
const TRACE_EVENTS: usize = 10_000;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let path = args.next().unwrap_or_else(|| std::env::temp_dir().join("narrows-tensors.bin"));
    let trace = args.next();
    let expected = write_tensors(&path)?;

    // Where the tensors lie, in the order in which they are computed on.
    let ranges: Vec<Read> =
        (0..TENSORS).map(|n| Read { file: 0, offset: (n * TENSOR) as u64, len: TENSOR }).collect();
    let tiles: Vec<Tile> = ranges.iter().map(|range| FileSource::tile(range, Access::Walked)).collect();

    let budget = Budget::new(Bytes::mib(64));
    let plan = plan(
        &Request::new(&tiles, budget.cap())
            .grain(narrows_staging::ALIGNMENT)
            .needs(&[Need::new("trace", Trace::memory(TRACE_EVENTS))])
            .slots(Slots::Exactly(6))
            .demand(Slots::Auto, 0, Bytes(0))
            .extra_per_pass(Bytes(0))
            .speeds(Speed::assumed(2e9), Speed::assumed(10e9)),
    )?;
    for need in &plan.needs {
        println!("{:>10}  {}", need.bytes.to_string(), need.what);
    }
    let milliseconds = plan.seconds_per_pass() * 1e3;
    println!("{milliseconds:.0} ms per pass expected, bound by {}", plan.bound);
    println!("all of it would fit into {}", plan.all_resident_at);

    let arena = Arena::new(&budget, "weights", plan.arena, ArenaOptions::default())?;
    let options = ReaderOptions { arenas: vec![arena.clone()], ..ReaderOptions::default() };
    let reader = Reader::open(std::slice::from_ref(&path), IoMode::Auto, options)?;
    println!("read by {}", reader.method().name());
    let source = FileSource::new(reader, ranges);
    let options = Options::default()
        .describe(|tile: TileId| format!("tensor {}", tile.0))
        .trace(Trace::new(&budget, TRACE_EVENTS)?);

    let mut stream = Stream::start(&plan, &arena, source, options)?;
    for number in 0..PASSES {
        let before = stream.stats();
        let mut pass = stream.pass();
        let mut sum = 0;
        while pass.remaining() > 0 {
            sum += checksum(pass.next()?.bytes());
        }
        drop(pass);
        assert_eq!(sum, expected, "streamed bytes are the bytes of the file");
        let stats = stream.stats().since(&before);
        println!("pass {number}: {} from slots, {} resident", stats.streamed, stats.resident);
    }

    let stats = stream.stats();
    show("disk", &stats.disk);
    show("compute", &stats.compute);
    println!("peak {} of {}", budget.peak(), budget.cap());
    if let Some(path) = trace {
        stream.write_trace(File::create(path)?)?;
    }
    Ok(())
}

fn show(stage: &str, stats: &StageStats) {
    println!(
        "{stage:>8}: {}, {:.2} GB/s, busy {:.0?}, stalled {:.0?}",
        stats.bytes,
        stats.bytes_per_second() / 1e9,
        stats.busy,
        stats.stall
    );
}

fn write_tensors(path: &Path) -> Result<u64, std::io::Error> {
    let mut file = BufWriter::new(File::create(path)?);
    let mut sum = 0;
    for n in 0..TENSORS {
        let tensor: Vec<u8> = (0..TENSOR).map(|i| (i.wrapping_mul(n + 7) >> 3) as u8).collect();
        sum += checksum(&tensor);
        file.write_all(&tensor)?;
    }
    file.flush()?;
    file.get_ref().sync_all()?;
    Ok(sum)
}

fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().map(|&byte| u64::from(byte)).sum()
}

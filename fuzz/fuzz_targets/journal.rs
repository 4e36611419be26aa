//! Any bytes as narrows.journal, as they are and with the checksum that they should have: refused, or taken up, and
//! nothing beside the pack is changed.
#![no_main]

use std::fs;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use narrows_shard::{Checksum, Layout, PackOptions, ShardLayout, open_source, pack};

fuzz_target!(|bytes: &[u8]| {
    let dir = std::env::temp_dir().join(format!("narrows-fuzz-journal-{}", std::process::id()));
    let source = dir.join("source");
    let _ = fs::create_dir_all(&source);
    let header = br#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let weights = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 8]].concat();
    fs::write(source.join("model.safetensors"), &weights).unwrap();
    take_up(&dir, &source, bytes);
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    take_up(&dir, &source, &[line, format!("\n{}\n", Checksum::of(line)).as_bytes()].concat());
    // Never consumed: nobody asked for it.
    assert_eq!(fs::read(source.join("model.safetensors")).unwrap(), weights);
});

fn take_up(dir: &Path, source: &Path, journal: &[u8]) {
    let out = dir.join("out");
    let _ = fs::remove_dir_all(&out);
    fs::create_dir(&out).unwrap();
    fs::write(out.join("narrows.journal"), journal).unwrap();
    let shard = ShardLayout { name: "all".into(), tensors: vec!["a".into()] };
    let layout = Layout { architecture: "x".into(), shards: vec![shard], ..Layout::default() };
    if let Ok(files) = open_source(source, &out) {
        let _ = pack(&files, &layout, &out, &PackOptions::default(), &mut |_| {});
    }
}

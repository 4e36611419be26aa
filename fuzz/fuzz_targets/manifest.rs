//! Any bytes as narrows.json, as they are and with the checksum that they should have: refused, or a manifest of which
//! every file lies in its directory.
#![no_main]

use libfuzzer_sys::fuzz_target;
use narrows_shard::{Checksum, MANIFEST, Manifest, WeightFiles, verify};

fuzz_target!(|bytes: &[u8]| {
    let dir = std::env::temp_dir().join(format!("narrows-fuzz-manifest-{}", std::process::id()));
    let _ = std::fs::create_dir(&dir);
    open(&dir, bytes);
    // What the checksum hides from the fuzzer.
    if let Ok(mut manifest) = serde_json::from_slice::<Manifest>(bytes) {
        manifest.checksum = Checksum(0);
        manifest.checksum = Checksum::of(&spelled(&manifest));
        open(&dir, &spelled(&manifest));
    }
});

fn spelled(manifest: &Manifest) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(manifest).unwrap();
    bytes.push(b'\n');
    bytes
}

fn open(dir: &std::path::Path, bytes: &[u8]) {
    std::fs::write(dir.join(MANIFEST), bytes).unwrap();
    let _ = verify(dir, &mut |_| {});
    if let Ok(files) = WeightFiles::open(dir) {
        let manifest = files.manifest().unwrap();
        assert!(manifest.packed_files().all(|file| !file.name.contains('/') && file.name != ".."));
    }
}

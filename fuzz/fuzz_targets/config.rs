//! Any bytes as a config.json: refused, or an architecture whose sizes and angles make sense.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use narrows::Architecture;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(a) = Architecture::parse(Path::new("config.json"), bytes) {
        assert!(a.heads % a.kv_heads == 0 && a.head_dim % 2 == 0 && a.windows.len() == a.layers);
        assert!(a.rope.inverse_frequencies(a.max_positions.unwrap_or(1 << 20)).iter().all(|f| f.is_finite()));
        assert!(a.weights().take(64).all(|spec| spec.shape.iter().all(|&n| n > 0)));
    }
});

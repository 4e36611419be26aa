//! Any bytes as a config.json: refused, or a program whose sizes and angles make sense.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use narrows::Program;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(program) = Program::parse(Path::new("config.json"), bytes) {
        let d = &program.dims;
        assert!(d.heads % d.kv_heads == 0 && d.head_dim % 2 == 0 && program.layers.len() == d.layers);
        for rope in &program.ropes {
            let angles = rope.inverse_frequencies(d.max_positions.unwrap_or(1 << 20));
            assert!(angles.iter().all(|f| f.is_finite()));
        }
        assert!(program.weights.iter().take(64).all(|spec| spec.shape.iter().all(|&n| n > 0)));
    }
});

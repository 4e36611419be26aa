//! Whatever an index says, the files that it names stay in its directory.
#![no_main]

use std::path::{Component, Path};

use libfuzzer_sys::fuzz_target;
use narrows_shard::parse_index;

fuzz_target!(|json: &[u8]| {
    if let Ok(weight_map) = parse_index(Path::new("fuzz"), json) {
        for name in weight_map.values() {
            let components: Vec<_> = Path::new(name).components().collect();
            assert!(matches!(components[..], [Component::Normal(only)] if only == name.as_str()), "{name:?}");
        }
    }
});

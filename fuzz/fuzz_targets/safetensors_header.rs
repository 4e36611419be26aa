//! Whatever bytes a file begins with, its header is refused or lies within the file, and whatever we accept the
//! safetensors crate accepts too.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use narrows_shard::parse_header;
use safetensors::SafeTensors;

fuzz_target!(|json: &[u8]| {
    // The length in front is right, so that the fuzzer spends its time on the JSON; then the raw bytes.
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend(json);
    // A header this small can only describe as much data as it says; offer what it asks for, within reason.
    for data in [0, 1, 4, 16, 64, 256] {
        let mut file = file.clone();
        file.resize(file.len() + data, 0);
        check(&file);
    }
    check(json);
});

fn check(file: &[u8]) {
    if let Ok(header) = parse_header(Path::new("fuzz"), file, file.len() as u64) {
        assert!(SafeTensors::deserialize(file).is_ok());
        for tensor in header.tensors.values() {
            assert!(tensor.range.start <= tensor.range.end && tensor.range.end <= file.len() as u64);
        }
    }
}

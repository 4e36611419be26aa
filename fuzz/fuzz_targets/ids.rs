//! Any bytes as a file of token ids: refused, or prompts that are not empty.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/narrows-cli/src/ids.rs"]
mod ids;

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    // The length in front is right, so that the fuzzer spends its time on the JSON.
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let mut file = (end as u64).to_le_bytes().to_vec();
    file.extend(&bytes[..end]);
    file.extend(bytes.get(end + 1..).unwrap_or_default());
    check(&file);
});

fn check(bytes: &[u8]) {
    if let Ok(ids) = ids::parse(bytes) {
        let tokens: usize = ids.rows.iter().map(Vec::len).sum();
        assert!(ids.rows.iter().all(|row| !row.is_empty()) && tokens <= bytes.len());
        let _ = ids.padded;
    }
}

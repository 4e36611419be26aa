//! Any bytes as generation_config.json: refused, or settings that sampling takes or refuses.
#![no_main]

use libfuzzer_sys::fuzz_target;
use narrows::GenerationDefaults;

fuzz_target!(|bytes: &[u8]| {
    let dir = std::env::temp_dir().join(format!("narrows-fuzz-generation-{}", std::process::id()));
    let _ = std::fs::create_dir(&dir);
    std::fs::write(dir.join("generation_config.json"), bytes).unwrap();
    if let Ok(defaults) = GenerationDefaults::read(&dir) {
        let _ = defaults.sampling(7).check();
        assert!(defaults.eos_token_ids.len() <= bytes.len() && defaults.not_done.len() <= bytes.len());
    }
});

//! Any bytes as tokenizer.json and as the files beside it, each behind a zero: refused, or a tokenizer that encodes
//! and decodes, or says why it does not.
#![no_main]

use libfuzzer_sys::fuzz_target;
use narrows::Text;

fuzz_target!(|bytes: &[u8]| {
    let dir = std::env::temp_dir().join(format!("narrows-fuzz-tokenizer-{}", std::process::id()));
    let _ = std::fs::create_dir(&dir);
    let names = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"];
    let mut parts = bytes.split(|byte| *byte == 0);
    for name in names {
        let path = dir.join(name);
        match parts.next() {
            Some(part) => drop(std::fs::write(path, part)),
            None => drop(std::fs::remove_file(path)),
        }
    }
    let alone = Text::stop_tokens_of(&dir);
    let memory = Text::memory_of(&dir);
    if let Ok(text) = Text::read(&dir) {
        assert_eq!(alone.unwrap(), text.stop_tokens());
        assert_eq!(memory.unwrap(), text.memory());
        for special in [true, false] {
            if let Ok(ids) = text.encode("hello <s> a\n\n12 é", special) {
                let _ = text.decode(&ids);
            }
        }
        let _ = text.decode(&[0, 1, 2, 300, u32::MAX]);
    }
});

//! A model directory with a table.

use narrows::Text;

/// Reads a tokenizer from the file `name`, which has what follows the first zero of `bytes`; before it is a model_type.
pub fn check(target: &str, name: &str, bytes: &[u8]) {
    let dir = std::env::temp_dir().join(format!("narrows-fuzz-{target}-{}", std::process::id()));
    let _ = std::fs::create_dir(&dir);
    let Some(end) = bytes.iter().position(|byte| *byte == 0) else { return };
    let config = serde_json::json!({"model_type": String::from_utf8_lossy(&bytes[..end])});
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    std::fs::write(dir.join(name), &bytes[end + 1..]).unwrap();
    let alone = Text::stop_tokens_of(&dir);
    let memory = Text::memory_of(&dir);
    if let Ok(text) = Text::read(&dir) {
        assert_eq!(alone.unwrap(), text.stop_tokens());
        assert_eq!(memory.unwrap(), text.memory());
        for special in [true, false] {
            if let Ok(ids) = text.encode("hello <s> a\n\n12 é \u{2581} of  the", special) {
                text.decode(&ids).unwrap();
            }
        }
        let _ = text.decode(&[0, 1, 2, 300, u32::MAX]);
    }
}

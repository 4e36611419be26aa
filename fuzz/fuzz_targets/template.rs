//! Any text as a chat template: refused, or rendered within bounds.
#![no_main]

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use libfuzzer_sys::fuzz_target;
use narrows::{ChatOptions, ChatTemplate, Message};

fuzz_target!(|source: &str| {
    let template = ChatTemplate::new("template".into(), source.to_owned(), BTreeMap::new());
    let messages = [Message::new("system", "Be brief."), Message::new("user", " What is <that>?\n")];
    let start = Instant::now();
    if let Ok(text) = template.render(&messages, &ChatOptions::new(SystemTime::UNIX_EPOCH, 0)) {
        assert!(text.len() < 32 << 20);
    }
    assert!(start.elapsed() < Duration::from_secs(60));
});

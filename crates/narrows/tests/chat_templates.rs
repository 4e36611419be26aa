//! Chat templates render as Hugging Face transformers renders them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use narrows::{ChatOptions, ChatTemplate, Message};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    name: String,
    template: String,
    messages: Vec<Message>,
    add_generation_prompt: bool,
    variables: BTreeMap<String, serde_json::Value>,
    special_tokens: BTreeMap<String, String>,
    /// `None` where the template raises an exception.
    expected: Option<String>,
}

#[test]
fn as_transformers_renders_them() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/chat-templates.json");
    let cases: Vec<Case> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert!(cases.len() > 60);
    let now = chrono::NaiveDate::from_ymd_opt(2026, 2, 3).unwrap().and_hms_opt(4, 5, 6).unwrap();
    for case in cases {
        let path = PathBuf::from(&case.name);
        let template = ChatTemplate::new(path, case.template, case.special_tokens);
        let Case { add_generation_prompt, variables, .. } = case;
        let rendered =
            template.render(&case.messages, &ChatOptions { add_generation_prompt, now, variables });
        match case.expected {
            Some(expected) => assert_eq!(rendered.unwrap(), expected, "{}", case.name),
            None => {
                assert!(rendered.unwrap_err().to_string().contains("roles must alternate"), "{}", case.name)
            }
        }
    }
}

#[test]
fn templates_that_do_not_end_are_stopped() {
    let source = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}".to_owned();
    let template = ChatTemplate::new("t".into(), source, BTreeMap::new());
    let options = ChatOptions {
        add_generation_prompt: true,
        now: chrono::NaiveDateTime::default(),
        variables: BTreeMap::new(),
    };
    assert!(template.render(&[], &options).is_err());
    let unparsed = ChatTemplate::new("t".into(), "{% if %}".to_owned(), BTreeMap::new());
    assert!(unparsed.render(&[], &options).is_err());
}

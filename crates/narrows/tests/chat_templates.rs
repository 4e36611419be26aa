//! Chat templates render as Hugging Face transformers renders them, and take no more than they may.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use narrows::{ChatOptions, ChatTemplate, Message};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Case {
    name: String,
    template: String,
    messages: Vec<Message>,
    add_generation_prompt: bool,
    variables: BTreeMap<String, Value>,
    special_tokens: BTreeMap<String, String>,
    /// `None` where the template raises an exception.
    expected: Option<String>,
}

fn data(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data").join(name)).unwrap()
}

/// 2026-02-03 04:05:06, as in the goldens.
fn options() -> ChatOptions {
    ChatOptions::new(SystemTime::UNIX_EPOCH + Duration::from_secs(1_770_091_506), 0)
}

#[test]
fn as_transformers_renders_them() {
    let cases: Vec<Case> = serde_json::from_slice(&data("chat-templates.json")).unwrap();
    assert!(cases.len() > 60);
    for case in cases {
        let path = PathBuf::from(&case.name);
        let template = ChatTemplate::new(path, case.template, case.special_tokens);
        let mut options = options();
        options.add_generation_prompt = case.add_generation_prompt;
        options.variables = case.variables;
        let rendered = template.render(&case.messages, &options);
        match case.expected {
            Some(expected) => assert_eq!(rendered.unwrap(), expected, "{}", case.name),
            None => {
                assert!(rendered.unwrap_err().to_string().contains("roles must alternate"), "{}", case.name)
            }
        }
    }
}

/// What is refused, although Python's Jinja renders it, and the word by which it is.
const REFUSED: [(&str, &str); 12] = [
    ("{{ +n }}", "unexpected `+`"),
    ("{{ d.é.x }}", "unexpected character"),
    ("{{ 'é'.encode('utf-8') }}", "encode"),
    ("{{ 'one two three four'|wordwrap(9) }}", "wordwrap"),
    ("{{ d|pprint }}", "pprint"),
    ("{{ 'a\\\nb' }}", "a string over several lines"),
    ("{{ self }}", "self"),
    ("{{ 'http://a.b c'|urlize }}", "urlize"),
    ("{% autoescape true %}{{ '<' }}{% endautoescape %}", "autoescape"),
    ("{% set a = [1, 2, 3] %}{{ a[0], a[1] }}", "unexpected `,`"),
    ("{{ 1, 2 }}", "unexpected `,`"),
    ("{% for x in 1, 2, 3 %}{{ x }}{% endfor %}", "unexpected `,`"),
];

#[test]
fn as_python_renders_them_or_refused_by_name() {
    #[derive(Deserialize)]
    struct Goldens {
        context: BTreeMap<String, Value>,
        cases: Vec<(String, Option<String>)>,
    }
    let Goldens { context, cases } = serde_json::from_slice(&data("template-semantics.json")).unwrap();
    assert!(cases.len() > 700);
    let messages: Vec<Message> = serde_json::from_value(context["messages"].clone()).unwrap();
    let mut options = options();
    options.variables = context;
    assert!(REFUSED.iter().all(|(known, _)| cases.iter().any(|(source, _)| source == known)));
    let mut wrong = Vec::new();
    for (source, right) in cases {
        let template = ChatTemplate::new("t".into(), source.clone(), BTreeMap::new());
        let got = template.render(&messages, &options).map_err(|e| e.to_string());
        let refused = REFUSED.iter().find(|(known, _)| *known == source);
        let as_it_should = match (&got, &right, refused) {
            (Ok(got), Some(right), None) => got == right,
            (Err(why), Some(_), Some((_, word))) => why.contains(word),
            // More than Python takes is no harm.
            (_, None, None) => got.is_err() || source == "{{ 1. }}",
            _ => false,
        };
        if !as_it_should {
            wrong.push(format!("{source}\n    {got:?}\n    right is {right:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn render(source: &str) -> narrows::Result<String> {
    let template = ChatTemplate::new("t".into(), source.to_owned(), BTreeMap::new());
    template.render(&[Message::new("user", "hi")], &options())
}

#[test]
fn templates_that_take_too_much_are_stopped() {
    let grow = |step: &str| {
        format!(
            "{{% set ns = namespace(x='aaaaaaaaaaaaaaaa', l=[1], t=(1,)) %}}{{% for i in range(180) %}}{step}{{% endfor %}}"
        )
    };
    let nested = |end: &str| {
        format!(
            "{{% set ns = namespace(x=[1], y=[1], t=(1,)) %}}{{% for i in range(150) %}}{{% set ns.x = [ns.x, ns.x] %}}{{% set ns.y = [ns.y, ns.y] %}}{{% set ns.t = (ns.t, ns.t) %}}{{% endfor %}}{end}"
        )
    };
    let often = |what: &str| {
        format!(
            "{{% set s = 'ab '*300000 %}}{{% set l = range(90000)|list %}}{{% for i in range(90000) %}}{{% set y = {what} %}}{{% endfor %}}"
        )
    };
    let deep = |wrap: &str| {
        format!(
            "{{% set ns = namespace(l=[1]) %}}{{% for i in range(90000) %}}{{% set ns.l = {wrap} %}}{{% endfor %}}"
        )
    };
    let many = |before: &str, part: &str, after: &str| format!("{before}{}{after}", part.repeat(200_000));
    let bombs = [
        grow("{% set ns.x = ns.x ~ ns.x %}"),
        grow("{% set ns.x = ns.x + ns.x %}"),
        grow("{% set ns.x = ns.x * 2 %}"),
        grow("{% set ns.l = ns.l + ns.l %}"),
        grow("{% set ns.l = ns.l * 9 %}"),
        grow("{% set ns.x = ns.x|replace('a', 'aaaaaaaaaa') %}"),
        grow("{% set ns.x = ns.x.replace('', ns.x) %}"),
        grow("{% set ns.x = ns.x.join([ns.x, ns.x, ns.x]) %}"),
        grow("{% set ns.x = [ns.x, ns.x]|join(ns.x) %}"),
        grow("{% set ns.x = '%s%s'|format(ns.x, ns.x) %}"),
        grow("{% set ns.x = '{0}{0}'.format(ns.x) %}"),
        grow("{% set ns.x = ns.l|string ~ ns.x|tojson ~ ns.x|e ~ ns.x %}"),
        nested("{{ ns.x }}"),
        nested("{{ ns.x|tojson }}"),
        nested("{{ ns.x == ns.y }}"),
        nested("{{ ns.x < ns.y }}"),
        nested("{{ {ns.t: 1} }}"),
        nested("{{ {1: 2}[ns.t] }}{{ ns.x }}"),
        nested("{{ [ns.x]|unique|list }}"),
        deep("[ns.l]"),
        deep("(ns.l,)"),
        deep("{'a': ns.l}"),
        deep("[ns.l.count]"),
        deep("cycler(ns.l)"),
        often("s|replace('a', 'b')"),
        often("l|sort"),
        often("'x' in l"),
        often("s.split()"),
        often("s|upper"),
        often("s|striptags"),
        often("s.count('ab ab x')"),
        often("s.strip('xyz'*9999)"),
        often("s[-1]"),
        often("s|length"),
        many("{{ ", "not ", "1 }}"),
        many("{{ 1", "+1", " }}"),
        many("{{ messages", "[0]", " }}"),
        many("{{ 1", "|e", " }}"),
        many("{{ ", "(", ""),
        many("{{ ", "-", "1 }}"),
        many("", "{% if 1 %}", ""),
        many("{% if 0 %}", "{% elif 0 %}", "{% endif %}"),
        "{{ messages|tojson(indent=99999999999999999) }}".to_owned(),
        "{{ 'x'|indent(99999999999) }}".to_owned(),
        "{{ '%99999999999d'|format(1) }}".to_owned(),
        "{{ '%.99999999999f'|format(1) }}".to_owned(),
        "{{ '%*d' % (99999999999, 1) }}".to_owned(),
        "{{ '{:>99999999999}'.format(1) }}".to_owned(),
        "{{ 'x'.center(99999999999) }}{{ 'x'.zfill(99999999999) }}".to_owned(),
        "{{ '\\t'.expandtabs(99999999999) }}".to_owned(),
        "{{ [1, 2]|slice(99999999999)|list }}".to_owned(),
        "{{ [1, 2]|batch(99999999999, 'x')|list }}".to_owned(),
        "{{ range(99999999999)|list }}".to_owned(),
        "{{ 10 ** 99999 }}".to_owned(),
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}".to_owned(),
        "{% set s = 'x'*1000000 %}{% for i in range(99999) %}{{ s }}{% endfor %}".to_owned(),
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}".to_owned(),
        "{% macro f(x) %}{% if x %}{{ f(x-1) }}{{ f(x-1) }}{% endif %}{% endmacro %}{{ f(60) }}".to_owned(),
        "{% macro f(x=f()) %}{% endmacro %}{{ f() }}".to_owned(),
        "{% macro f() %}{% call f() %}{{ caller() }}{% endcall %}{% endmacro %}{{ f() }}".to_owned(),
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}".to_owned(),
        "{% block a %}{{ self.a() }}{% endblock %}".to_owned(),
        "{% set ns = namespace(l=1) %}{% set ns.l = ns %}{{ ns }}".to_owned(),
        "x".repeat(2 << 20),
    ];
    for bomb in bombs {
        let head: String = bomb.chars().take(200).collect();
        assert!(render(&bomb).is_err(), "{head}");
    }
}

#[test]
fn chains_and_circles_of_namespaces_come_apart() {
    let chain = "{% set ns = namespace(l=1) %}{% for i in range(90000) %}{% set ns.l = namespace(x=ns.l) %}{% endfor %}ok";
    assert_eq!(render(chain).unwrap(), "ok");
    let circle = "{% set a = namespace() %}{% set b = namespace() %}{% set a.x = [b] %}{% set b.x = [a] %}{{ a.x == b.x }}";
    assert_eq!(render(circle).unwrap(), "False");
    let macros = "{% set ns = namespace(m=1) %}{% for i in range(50000) %}{% set p = ns.m %}{% macro f() %}{{ p }}{% endmacro %}{% set ns.m = f %}{% endfor %}ok";
    assert_eq!(render(macros).unwrap(), "ok");
}

#[test]
fn a_long_chat_is_rendered() {
    let source = "{% set ns = namespace(n=0) %}{% for m in messages %}<{{ m.role }}>{{ m.content|trim }}{% if 'x' in m.content.split(' ') %}{% set ns.n = ns.n + 1 %}{% endif %}\n{% endfor %}{{ ns.n }}";
    let template = ChatTemplate::new("t".into(), source.to_owned(), BTreeMap::new());
    let messages: Vec<_> = (0..2000).map(|_| Message::new("user", "word x ".repeat(500))).collect();
    let text = template.render(&messages, &options()).unwrap();
    assert!(text.ends_with("2000") && text.len() > 7_000_000);
}

#[test]
fn the_time_is_local_and_may_be_long_ago() {
    let at = |now: SystemTime, offset| {
        let template = ChatTemplate::new(
            "t".into(),
            "{{ strftime_now('%Y-%m-%d %H:%M:%S %s') }}".to_owned(),
            BTreeMap::new(),
        );
        template.render(&[], &ChatOptions::new(now, offset)).unwrap()
    };
    let epoch = SystemTime::UNIX_EPOCH;
    assert_eq!(at(epoch, 3600), "1970-01-01 01:00:00 0");
    assert_eq!(at(epoch - Duration::from_secs(86_400), -3600), "1969-12-30 23:00:00 -86400");
    assert_eq!(at(epoch - Duration::from_millis(500), 0), "1969-12-31 23:59:59 -1");
}

//! Any bytes as a SentencePiece tokenizer.model, behind the model_type and a zero: refused, or a tokenizer that encodes and
//! decodes, or says why it does not.
#![no_main]

mod table;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| table::check("sentencepiece", "tokenizer.model", bytes));

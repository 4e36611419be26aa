//! Tokenizers of model directories that have no tokenizer.json: of the table that the model was trained with, and of
//! what its tokenizer's code adds to it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use narrows_shard::Bytes;
use serde_json::json;
use tokenizers::{AddedToken, PostProcessorWrapper, TokenizerImpl};

use super::class::Class;
use super::model::{Model, Names};
use super::parts::{Normalizer, PreTokenizer};
use super::ranks::{self, Ranks};
use super::sentencepiece::SentencePiece;
use super::sidecars::{Sidecars, SpecialTokens};
use super::{Failed, Inner, Tokenizer, guarded, model};
use crate::error::{Error, Result};
use crate::json;
use crate::text::family::{Family, Format};

/// Special tokens of a file at most.
pub(super) const MAX_SPECIALS: usize = 1 << 16;

/// Bytes of all of them at most.
pub(super) const MAX_SPECIAL_BYTES: usize = 1 << 20;

/// Far above any real table (the largest known has 6 MB).
const MAX_FILE: Bytes = Bytes::mib(64);

/// The files that hold a table, in the order in which they are looked for.
const NAMES: [&str; 3] = ["tokenizer.model", "qwen.tiktoken", "tiktoken.model"];

/// Why a table is no tokenizer here, although there is nothing wrong with it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unsupported(pub(super) &'static str);

/// Bytes that special tokens of a file take at most, with what any tokenizer takes.
pub(super) const fn specials_memory(count: usize, bytes: usize) -> usize {
    (1 << 20) + 600 * count + 60 * bytes
}

/// The file of a table, read.
#[derive(Debug)]
pub(in crate::text) struct TableFile {
    path: PathBuf,
    bytes: Vec<u8>,
    format: Format,
}

impl TableFile {
    /// The table of a model directory; `None` where there is none.
    ///
    /// # Errors
    /// A file cannot be read.
    pub(in crate::text) fn find(dir: &Path) -> Result<Option<Self>> {
        for name in NAMES {
            let path = dir.join(name);
            if let Some(bytes) = json::read_within(&path, MAX_FILE)? {
                // The one name stands for both.
                let is_ranks = name != NAMES[0] || ranks::is_table(&bytes);
                let format = if is_ranks { Format::Ranks } else { Format::SentencePiece };
                return Ok(Some(Self { path, bytes, format }));
            }
        }
        Ok(None)
    }

    /// Whether a model directory has one.
    pub(in crate::text) fn is_in(dir: &Path) -> bool {
        NAMES.iter().any(|name| dir.join(name).exists())
    }

    fn what(&self) -> &'static str {
        match self.format {
            Format::Ranks => "tiktoken table",
            _ => "SentencePiece model",
        }
    }

    fn invalid(&self, why: &Failed) -> Error {
        if let Some(Unsupported(what)) = why.downcast_ref() {
            return Error::unsupported(&self.path, *what);
        }
        Error::invalid(&self.path, format!("not a {}: {why}", self.what()))
    }

    /// What the tokenizer takes in memory at most, while it is read and after.
    ///
    /// # Errors
    /// The file is malformed.
    pub(in crate::text) fn memory(&self) -> Result<Bytes> {
        let table = match self.format {
            Format::Ranks => Ok(Ranks::memory(&self.bytes)),
            _ => guarded(|| SentencePiece::memory(&self.bytes)).and_then(|made| made),
        };
        Ok(Bytes(self.bytes.len() as u64) + table.map_err(|e| self.invalid(&e))?)
    }

    /// Makes the tokenizer of the model directory that this is the table of.
    ///
    /// # Errors
    /// A file is malformed; [`Error::Unsupported`] where it is of a kind, or of a family, that is not known.
    pub(in crate::text) fn tokenizer(self, dir: &Path) -> Result<Tokenizer> {
        let sidecars = Sidecars::read(dir)?;
        let family = Family::of(&sidecars, self.format, dir)?;
        let table = guarded(|| self.table(Spaces::of(&sidecars).any))
            .and_then(|made| made)
            .map_err(|e| self.invalid(&e))?;
        let unigram = matches!(&table, model::Table::Pieces(model) if model.is_unigram());
        let made = guarded(|| make(table, &sidecars, family.as_ref())).and_then(|made| made);
        let made = match made {
            Err(why) if why.is::<Unsupported>() => return Err(self.invalid(&why)),
            made => made,
        };
        let (inner, specials) = made.map_err(|e| Error::invalid(&self.path, format!("no tokenizer: {e}")))?;
        Ok(Tokenizer::new(self.path, inner, &specials, &sidecars, !unigram, family))
    }

    fn table(&self, spaces: bool) -> std::result::Result<model::Table, Failed> {
        Ok(match self.format {
            Format::Ranks => model::Table::Ranks(Arc::new(Ranks::read(&self.bytes)?)),
            _ => {
                let mut model = SentencePiece::read(&self.bytes)?;
                if !spaces {
                    model.leave_out_prefix();
                }
                model::Table::Pieces(Arc::new(model))
            }
        })
    }
}

fn make(
    table: model::Table,
    sidecars: &Sidecars,
    family: Option<&Family>,
) -> std::result::Result<(Inner, SpecialTokens), Failed> {
    let class = Class::of(sidecars, false);
    let special = |text: &str| AddedToken::from(text, true);
    let mut first: Vec<(u64, AddedToken)> = Vec::new();
    let mut defaults = Vec::new();
    if let model::Table::Pieces(model) = &table {
        first.extend(model.controls().map(|(id, text)| (u64::from(id), special(text))));
        let text = |text: Option<&str>| text.map(str::to_owned);
        defaults = vec![("bos_token", text(model.bos())), ("eos_token", text(model.eos()))];
    }
    let mut names = Names::new();
    if let Some(family) = family {
        let given = family.defaults().iter().map(|(name, text)| (*name, Some((*text).to_owned())));
        defaults.splice(0..0, given);
        for (text, id) in family.tokens(table.len()) {
            first.push((u64::from(id), special(&text)));
            names.insert(text, id);
        }
        for id in family.role_ids() {
            let text = table.token(id).ok_or_else(|| format!("there is no token {id}, of a role"))?;
            first.push((u64::from(id), special(&text)));
        }
    }
    for (id, token) in sidecars.added_tokens() {
        let id = u32::try_from(*id).ok().filter(|id| *id <= i32::MAX as u32);
        let id = id.ok_or_else(|| format!("the id of {:?} is too great", token.content))?;
        names.insert(token.content.clone(), id);
    }
    let specials = sidecars.special_tokens(class, &first, None, &defaults);
    let spaces = Spaces::of(sidecars);
    let pre_tokenizer = match (&table, family) {
        (model::Table::Pieces(model), _) => PreTokenizer::pieces(Arc::clone(model), spaces.first_only),
        (model::Table::Ranks(_), family) => {
            let cut = family.and_then(Family::cut);
            let why = "a tiktoken table of another family than ChatGLM (GLM-4), Qwen and Kimi";
            PreTokenizer::cut(cut.ok_or(Unsupported(why))?)?
        }
    };
    let adds_bos = match &table {
        model::Table::Pieces(model) => sidecars.adds_bos().unwrap_or(model.bos().is_some()),
        model::Table::Ranks(_) => sidecars.adds_bos().unwrap_or(false),
    };
    let mut made = TokenizerImpl::new(Model::Table(table, names));
    if family.is_some_and(Family::composes) {
        made.with_normalizer(Normalizer::new(json!({"type": "NFC"}))?)?;
    }
    made.with_pre_tokenizer(Some(pre_tokenizer));
    let first: Vec<_> = first.into_iter().map(|(_, token)| token).collect();
    let there: Vec<_> = first.iter().map(|token| token.content.as_str()).collect();
    let additions = specials.additions(&there);
    made.add_tokens(first)?;
    made.add_tokens(additions)?;
    let named = |name: &str, wanted: bool| wanted.then(|| specials.text(name)).flatten();
    let before: Vec<&str> = match family.map(Family::prefix) {
        Some(prefix) if !prefix.is_empty() => prefix.to_vec(),
        _ => named("bos_token", adds_bos).into_iter().collect(),
    };
    let behind = named("eos_token", sidecars.adds_eos().unwrap_or(false));
    let around = super::around(&before, behind, &made)?;
    super::parts::check_post_processor(&around)?;
    made.with_post_processor(Some(serde_json::from_value::<PostProcessorWrapper>(around)?));
    made.set_encode_special_tokens(sidecars.flag("split_special_tokens").flatten().unwrap_or(false));
    Ok((made, specials))
}

/// What a class makes of its settings about the space that SentencePiece puts in front of a text.
struct Spaces {
    /// Whether there is one at all.
    any: bool,
    /// Whether it comes at the beginning alone, and not behind special tokens, too: there most tokenizers' code has one,
    /// which hands SentencePiece the text between them part by part.
    first_only: bool,
}

impl Spaces {
    /// `LlamaTokenizer` has settings; all others have none.
    fn of(sidecars: &Sidecars) -> Self {
        let class = sidecars.declared.as_deref().unwrap_or_default();
        let is_llama =
            matches!(class.strip_suffix("Fast").unwrap_or(class), "LlamaTokenizer" | "CodeLlamaTokenizer");
        let flag = |key| sidecars.flag(key).flatten();
        Self {
            any: !is_llama || flag("add_prefix_space").unwrap_or(true),
            first_only: is_llama && !flag("legacy").unwrap_or(false),
        }
    }
}

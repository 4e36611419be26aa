//! What cuts text into tokens: a model of the crate, or one of ours behind its interface.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokenizers::models::bpe::BpeTrainer;
use tokenizers::models::{ModelWrapper, TrainerWrapper};
use tokenizers::{Result, Token};

use super::ranks::Ranks;
use super::sentencepiece::SentencePiece;

/// A model of tokens.
#[derive(Debug)]
pub(super) enum Model {
    /// Of a tokenizer.json.
    Crate(Box<ModelWrapper>),
    /// Of a table.
    Table(Table, Names),
}

/// A table of tokens.
#[derive(Clone, Debug)]
pub(super) enum Table {
    Pieces(Arc<SentencePiece>),
    Ranks(Arc<Ranks>),
}

/// Ids of tokens that a table does not have, or has under another name.
pub(super) type Names = BTreeMap<String, u32>;

impl Table {
    /// One more than the greatest id.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Pieces(model) => model.len(),
            Self::Ranks(model) => model.len(),
        }
    }

    pub(super) fn find(&self, token: &str) -> Option<u32> {
        match self {
            Self::Pieces(model) => model.find(token),
            Self::Ranks(model) => model.find(token.as_bytes()),
        }
    }

    pub(super) fn token(&self, id: u32) -> Option<String> {
        match self {
            Self::Pieces(model) => model.piece(id).map(str::to_owned),
            Self::Ranks(model) => model.token(id).map(|token| String::from_utf8_lossy(token).into_owned()),
        }
    }

    /// The text of tokens.
    pub(super) fn join(&self, ids: &[u32]) -> String {
        match self {
            Self::Pieces(model) => model.join(ids),
            Self::Ranks(model) => {
                let bytes: Vec<u8> =
                    ids.iter().filter_map(|id| model.token(*id)).flatten().copied().collect();
                String::from_utf8_lossy(&bytes).into_owned()
            }
        }
    }
}

impl tokenizers::Model for Model {
    type Trainer = TrainerWrapper;

    fn tokenize(&self, text: &str) -> Result<Vec<Token>> {
        let ids = match self {
            Self::Crate(model) => return model.tokenize(text),
            Self::Table(Table::Pieces(model), _) => model.cut(text)?,
            Self::Table(Table::Ranks(model), _) => model.cut(text.as_bytes())?,
        };
        // Where a token stands is not asked for.
        Ok(ids.into_iter().map(|id| Token::new(id, String::new(), (0, 0))).collect())
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        match self {
            Self::Crate(model) => model.token_to_id(token),
            Self::Table(table, names) => names.get(token).copied().or_else(|| table.find(token)),
        }
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        match self {
            Self::Crate(model) => model.id_to_token(id),
            Self::Table(table, _) => table.token(id),
        }
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        match self {
            Self::Crate(model) => model.get_vocab(),
            Self::Table(table, _) => {
                (0..table.len() as u32).filter_map(|id| Some((table.token(id)?, id))).collect()
            }
        }
    }

    fn get_vocab_size(&self) -> usize {
        match self {
            Self::Crate(model) => model.get_vocab_size(),
            Self::Table(table, _) => table.len(),
        }
    }

    fn save(&self, folder: &Path, prefix: Option<&str>) -> Result<Vec<PathBuf>> {
        match self {
            Self::Crate(model) => model.save(folder, prefix),
            Self::Table(..) => Err("a table is not written".into()),
        }
    }

    fn get_trainer(&self) -> TrainerWrapper {
        match self {
            Self::Crate(model) => model.get_trainer(),
            Self::Table(..) => BpeTrainer::default().into(),
        }
    }
}

//! `narrows schema`: JSON schemas of the documents that `--json` prints.

use schemars::{JsonSchema, Schema, schema_for};

use super::{doctor, eval, inspect, logits, pack, plan, run, synth, verify};
use crate::args::{DocumentName, Schema as Args};
use crate::failure::{ErrorReport, Failure, Result};
use crate::output::write;

pub(crate) fn schema(args: &Args) -> Result<()> {
    let schema = match args.document {
        DocumentName::Bench => of::<narrows_bench::Record>(),
        DocumentName::Doctor => of::<doctor::Report>(),
        DocumentName::Error => of::<ErrorReport>(),
        DocumentName::Eval => of::<eval::Report>(),
        DocumentName::Inspect => of::<inspect::Report<'_>>(),
        DocumentName::Logits => of::<logits::Report<'_>>(),
        DocumentName::Pack => of::<pack::Report<'_>>(),
        DocumentName::Plan => of::<plan::Report<'_>>(),
        DocumentName::Run => of::<run::Report>(),
        DocumentName::Synth => of::<synth::Report<'_>>(),
        DocumentName::Verify => of::<verify::Report<'_>>(),
    };
    let text = serde_json::to_string_pretty(&schema).map_err(|e| Failure::Other(format!("JSON: {e}")))?;
    write(&(text + "\n"))
}

fn of<T: JsonSchema>() -> Schema {
    schema_for!(T)
}

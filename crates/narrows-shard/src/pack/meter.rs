//! Telling the caller how far things have come.

use crate::Bytes;

/// What is being done to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It is being written.
    Writing,
    /// It is being read back and compared.
    Verifying,
    /// The source is being compared with a pack that is there already.
    Comparing,
}

/// How far a [`pack`](crate::pack()) or [`verify`](crate::verify()) has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// What is being done.
    pub step: Step,
    /// To which file.
    pub file: &'a str,
    /// Bytes done, in all files.
    pub done: Bytes,
    /// Bytes to do in all.
    pub total: Bytes,
}

/// Counts bytes and reports them.
pub(crate) struct Meter<'a> {
    report: &'a mut dyn FnMut(Progress<'_>),
    done: Bytes,
    total: Bytes,
}

impl<'a> Meter<'a> {
    pub(crate) fn new(report: &'a mut dyn FnMut(Progress<'_>), total: Bytes) -> Self {
        Self { report, done: Bytes(0), total }
    }

    pub(crate) fn add(&mut self, step: Step, file: &str, bytes: u64) {
        self.done += Bytes(bytes);
        (self.report)(Progress { step, file, done: self.done, total: self.total });
    }

    pub(crate) fn total(&self) -> Bytes {
        self.total
    }
}

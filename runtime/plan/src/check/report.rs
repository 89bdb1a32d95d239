//! All errors of one check.

use super::error::PlanError;
use crate::plan::{CmdId, Plan};
use crate::print::command_text;
use std::collections::BTreeSet;
use std::fmt;
use vdnn_ir::id::EntityId;

/// Everything found wrong with a plan; `Display` draws the commands concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanErrors {
    /// The errors, structure first; at most [`Self::LIMIT`].
    pub errors: Vec<PlanError>,
    /// How many more there were.
    pub suppressed: u64,
    drawn: Vec<(CmdId, String)>,
}

impl PlanErrors {
    /// How many errors are kept.
    pub const LIMIT: usize = 100;
}

impl std::error::Error for PlanErrors {}

impl fmt::Display for PlanErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the plan is not sound:")?;
        for e in &self.errors {
            write!(f, "\n- {e}")?;
            for c in e.commands() {
                if let Ok(i) = self.drawn.binary_search_by_key(&c, |(id, _)| *id) {
                    write!(f, "\n    {}", self.drawn[i].1)?;
                }
            }
        }
        if self.suppressed > 0 {
            write!(f, "\n- and {} more", self.suppressed)?;
        }
        Ok(())
    }
}

/// Collects errors up to the limit.
#[derive(Debug, Default)]
pub(super) struct Report {
    errors: Vec<PlanError>,
    suppressed: u64,
}

impl Report {
    pub(super) fn push(&mut self, error: PlanError) {
        if self.errors.len() < PlanErrors::LIMIT {
            self.errors.push(error);
        } else {
            self.suppressed += 1;
        }
    }

    pub(super) fn is_clean(&self) -> bool {
        self.errors.is_empty()
    }

    pub(super) fn finish(self, plan: &Plan) -> Result<(), PlanErrors> {
        if self.is_clean() {
            return Ok(());
        }
        let ids: BTreeSet<CmdId> = self.errors.iter().flat_map(PlanError::commands).collect();
        let drawn = ids
            .into_iter()
            .filter_map(|id| Some((id, command_text(id, plan.commands.get(id.index())?))))
            .collect();
        Err(PlanErrors { errors: self.errors, suppressed: self.suppressed, drawn })
    }
}

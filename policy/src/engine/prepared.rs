//! A program with the data that its evaluations share.

use super::functions::Document;
use super::{EngineError, Evaluation, Program, outcome};

/// A program that has its data: adding data makes the interpreter analyse the whole text again, which takes longer than most evaluations,
/// so it is done once.
#[derive(Clone)]
pub struct Prepared {
    name: String,
    engine: regorus::Engine,
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prepared").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Program {
    /// With data, for many evaluations.
    ///
    /// # Errors
    /// When the documents contradict each other or are no objects.
    pub fn prepare(&self, data: &[Document]) -> Result<Prepared, EngineError> {
        let convert =
            |message: String| EngineError::Convert { name: self.name.clone(), what: "data", message };
        let mut engine = self.engine.clone();
        for document in data {
            engine.add_data(document.0.clone()).map_err(|e| convert(e.to_string()))?;
        }
        engine.eval_query("true".to_owned(), false).map_err(|e| convert(e.to_string()))?;
        Ok(Prepared { name: self.name.clone(), engine })
    }
}

impl Prepared {
    /// Evaluates the rule at `path` (`data.policy.allow`). Nothing of it stays for the next evaluation.
    ///
    /// # Errors
    /// See [`EngineError::Evaluate`].
    pub fn evaluate(&mut self, path: &str, input: &Document) -> Result<Evaluation, EngineError> {
        self.engine.set_input(input.0.clone());
        let result = self.engine.eval_rule(path.to_owned());
        outcome(&self.name, path, result, &mut self.engine)
    }
}

//! The Common Expression Language, with the functions and the bounds that Kubernetes gives it.
//!
//! ```text
//!  text ─► lex ─► parse ─► ast ─► check (undeclared names, unknown fields, cost at worst)
//!                           └───► eval (values are JSON in place; every step is paid from a budget)
//! ```
//!
//! Values from outside are JSON with the schema that describes them, read in place: nothing is converted before an
//! expression looks at it. An expression cannot run for ever: it has no loops but over values, and each step,
//! character and element costs.

mod ast;
mod check;
mod eval;
mod functions;
mod kubernetes;
mod lex;
mod parse;
mod value;

pub use check::{Declared, Estimate, check};
pub use eval::{Bindings, EvalError, Limits};
pub use value::{Host, Node, Value};

/// A parsed expression.
#[derive(Clone, Debug)]
pub struct Program {
    text: String,
    root: ast::Expr,
}

/// Why a text is no expression, in the form of Kubernetes' compiler.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", shown(.0))]
pub struct CompileError(pub Vec<Fault>);

/// One fault, with what is needed to point at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What is wrong.
    pub message: String,
    /// The line it is in, counted from 1, and its text.
    pub line: (usize, String),
    /// The character of the line, counted from 0.
    pub column: usize,
}

impl Fault {
    fn new(text: &str, offset: usize, message: impl Into<String>) -> Self {
        let before: String = text.chars().take(offset).collect();
        let number = before.matches('\n').count();
        let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count());
        let line = text.split('\n').nth(number).unwrap_or_default().to_owned();
        Self { message: message.into(), line: (number + 1, line), column }
    }
}

fn shown(faults: &[Fault]) -> String {
    let one = |fault: &Fault| {
        let (number, line) = &fault.line;
        let dots = ".".repeat(fault.column);
        format!("ERROR: <input>:{number}:{}: {}\n | {line}\n | {dots}^", fault.column + 1, fault.message)
    };
    faults.iter().map(one).collect::<Vec<_>>().join("\n")
}

impl Program {
    /// Parses an expression.
    pub fn parse(text: &str) -> Result<Self, CompileError> {
        let root = parse::parse(text).map_err(|(offset, why)| CompileError(vec![Fault::new(text, offset, why)]))?;
        Ok(Self { text: text.to_owned(), root })
    }

    /// The text it was parsed from.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Evaluates it; what that costs is taken from the limits.
    pub fn run<'a>(&'a self, bindings: &Bindings<'a>, limits: &Limits) -> Result<Value<'a>, EvalError> {
        eval::run(&self.root, bindings, limits)
    }

    /// Whether a variable is used anywhere.
    pub fn uses(&self, name: &str) -> bool {
        self.root.uses(name)
    }
}

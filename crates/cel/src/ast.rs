//! Expressions as trees.

/// A node and where its text begins, in characters.
#[derive(Clone, Debug)]
pub struct Expr {
    pub at: usize,
    pub kind: Kind,
}

#[derive(Clone, Debug)]
pub enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(String),
    Bytes(Vec<u8>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    Or,
    And,
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    In,
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

impl Operator {
    /// The name under which errors know it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Or => "_||_",
            Self::And => "_&&_",
            Self::Equal => "_==_",
            Self::NotEqual => "_!=_",
            Self::Less => "_<_",
            Self::LessEqual => "_<=_",
            Self::Greater => "_>_",
            Self::GreaterEqual => "_>=_",
            Self::In => "@in",
            Self::Add => "_+_",
            Self::Subtract => "_-_",
            Self::Multiply => "_*_",
            Self::Divide => "_/_",
            Self::Remainder => "_%_",
        }
    }
}

/// What a macro makes of the elements it visits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Macro {
    All,
    Exists,
    ExistsOne,
    Filter,
    Map,
    TransformList,
    TransformMap,
}

#[derive(Clone, Debug)]
pub enum Kind {
    Literal(Literal),
    Ident(String),
    /// `base.field`, `base.?field`, `has(base.field)`
    Select {
        base: Box<Expr>,
        field: String,
        optional: bool,
        test: bool,
    },
    Index {
        base: Box<Expr>,
        index: Box<Expr>,
        optional: bool,
    },
    Call {
        target: Option<Box<Expr>>,
        function: String,
        arguments: Vec<Expr>,
    },
    /// Elements; those marked are left out where they are none.
    List(Vec<(Expr, bool)>),
    Map(Vec<(Expr, Expr, bool)>),
    Not(Box<Expr>),
    Negate(Box<Expr>),
    Binary(Operator, Box<Expr>, Box<Expr>),
    Conditional(Box<Expr>, Box<Expr>, Box<Expr>),
    Comprehend {
        kind: Macro,
        range: Box<Expr>,
        variables: Vec<String>,
        condition: Option<Box<Expr>>,
        body: Box<Expr>,
    },
    /// `optMap` and `optFlatMap`: the body sees what the target holds, if it holds something.
    Optional {
        target: Box<Expr>,
        variable: String,
        body: Box<Expr>,
        flat: bool,
    },
}

impl Expr {
    pub fn new(at: usize, kind: Kind) -> Self {
        Self { at, kind }
    }

    /// The expressions directly below this one.
    pub fn children(&self) -> Vec<&Expr> {
        match &self.kind {
            Kind::Literal(_) | Kind::Ident(_) => Vec::new(),
            Kind::Select { base, .. } => vec![base],
            Kind::Index { base, index, .. } => vec![base, index],
            Kind::Call { target, arguments, .. } => target.iter().map(|t| &**t).chain(arguments).collect(),
            Kind::List(items) => items.iter().map(|(item, _)| item).collect(),
            Kind::Map(items) => items.iter().flat_map(|(key, value, _)| [key, value]).collect(),
            Kind::Not(inner) | Kind::Negate(inner) => vec![inner],
            Kind::Binary(_, left, right) => vec![left, right],
            Kind::Conditional(condition, yes, no) => vec![condition, yes, no],
            Kind::Comprehend { range, condition, body, .. } => {
                std::iter::once(&**range).chain(condition.as_deref()).chain(std::iter::once(&**body)).collect()
            }
            Kind::Optional { target, body, .. } => vec![target, body],
        }
    }

    /// Whether a name stands for itself anywhere below.
    pub fn uses(&self, name: &str) -> bool {
        matches!(&self.kind, Kind::Ident(ident) if ident == name) || self.children().iter().any(|c| c.uses(name))
    }
}

//! Tokens to trees: precedence climbing, and macros as nodes of their own.

use crate::ast::{Expr, Kind, Literal, Macro, Operator};
use crate::lex::{Fault, Token, tokens};

/// Nesting beyond this is refused, so that no text can exhaust the stack.
const DEPTH_MAX: usize = 100;
/// The longest expression.
const CHARS_MAX: usize = 100_000;

/// Identifiers that the language keeps for itself.
pub(crate) const RESERVED: [&str; 16] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
];

/// Parses a text.
pub fn parse(text: &str) -> Result<Expr, Fault> {
    if text.chars().count() > CHARS_MAX {
        return Err((0, format!("expression code point size exceeds limit: size: {}, limit {CHARS_MAX}", text.len())));
    }
    let mut parser = Parser { tokens: tokens(text)?, at: 0, depth: 0 };
    let expr = parser.expression()?;
    match parser.peek() {
        Token::End => Ok(expr),
        _ => Err(parser.unexpected("<EOF>")),
    }
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn peek(&self) -> &Token {
        &self.tokens[self.at].1
    }

    fn place(&self) -> usize {
        self.tokens[self.at].0
    }

    fn advance(&mut self) -> Token {
        let token = self.tokens[self.at].1.clone();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    fn eat(&mut self, sign: &str) -> bool {
        let found = matches!(self.peek(), Token::Sign(s) if *s == sign);
        if found {
            self.advance();
        }
        found
    }

    fn expect(&mut self, sign: &'static str) -> Result<(), Fault> {
        if self.eat(sign) { Ok(()) } else { Err(self.unexpected(&format!("'{sign}'"))) }
    }

    fn unexpected(&self, wanted: &str) -> Fault {
        let found = match self.peek() {
            Token::End => "<EOF>".to_owned(),
            Token::Sign(sign) => (*sign).to_owned(),
            Token::Ident(name) => name.clone(),
            Token::Literal(_) => "a literal".to_owned(),
        };
        (self.place(), format!("Syntax error: mismatched input '{found}' expecting {wanted}"))
    }

    fn expression(&mut self) -> Result<Expr, Fault> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err((self.place(), format!("expression recursion limit exceeded: {DEPTH_MAX}")));
        }
        let at = self.place();
        let condition = self.binary(0)?;
        let expr = if self.eat("?") {
            let yes = self.binary(0)?;
            self.expect(":")?;
            let no = self.expression()?;
            Expr::new(at, Kind::Conditional(condition.into(), yes.into(), no.into()))
        } else {
            condition
        };
        self.depth -= 1;
        Ok(expr)
    }

    fn operator(&self) -> Option<(usize, Operator)> {
        let Token::Sign(sign) = self.peek() else { return None };
        Some(match *sign {
            "||" => (0, Operator::Or),
            "&&" => (1, Operator::And),
            "==" => (2, Operator::Equal),
            "!=" => (2, Operator::NotEqual),
            "<" => (2, Operator::Less),
            "<=" => (2, Operator::LessEqual),
            ">" => (2, Operator::Greater),
            ">=" => (2, Operator::GreaterEqual),
            "in" => (2, Operator::In),
            "+" => (3, Operator::Add),
            "-" => (3, Operator::Subtract),
            "*" => (4, Operator::Multiply),
            "/" => (4, Operator::Divide),
            "%" => (4, Operator::Remainder),
            _ => return None,
        })
    }

    fn binary(&mut self, lowest: usize) -> Result<Expr, Fault> {
        let mut left = self.unary()?;
        // A chain of operators grows a tree to the left, whose depth evaluation follows.
        let mut chain = 0;
        while let Some((precedence, operator)) = self.operator().filter(|(precedence, _)| *precedence >= lowest) {
            chain += 1;
            if chain > 4 * DEPTH_MAX {
                return Err((self.place(), format!("expression recursion limit exceeded: {DEPTH_MAX}")));
            }
            let at = self.place();
            self.advance();
            let right = self.binary(precedence + 1)?;
            left = Expr::new(at, Kind::Binary(operator, left.into(), right.into()));
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<Expr, Fault> {
        let at = self.place();
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err((at, format!("expression recursion limit exceeded: {DEPTH_MAX}")));
        }
        let expr = if self.eat("!") {
            Expr::new(at, Kind::Not(self.unary()?.into()))
        } else if self.eat("-") {
            match self.peek().clone() {
                Token::Literal(Literal::Int(number)) => {
                    self.advance();
                    self.postfix(Expr::new(at, Kind::Literal(Literal::Int(number.wrapping_neg()))))?
                }
                Token::Literal(Literal::Double(number)) => {
                    self.advance();
                    self.postfix(Expr::new(at, Kind::Literal(Literal::Double(-number))))?
                }
                _ => Expr::new(at, Kind::Negate(self.unary()?.into())),
            }
        } else {
            let primary = self.primary()?;
            self.postfix(primary)?
        };
        self.depth -= 1;
        Ok(expr)
    }

    fn primary(&mut self) -> Result<Expr, Fault> {
        let at = self.place();
        // The leading dot of a name only says that it is not relative to a container; there is none.
        self.eat(".");
        let unexpected = self.unexpected(
            "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, \
             IDENTIFIER}",
        );
        match self.advance() {
            Token::Literal(Literal::Int(i64::MIN)) => Err((at, "Syntax error: invalid int literal".to_owned())),
            Token::Literal(literal) => Ok(Expr::new(at, Kind::Literal(literal))),
            Token::Ident(name) => {
                if RESERVED.contains(&name.as_str()) {
                    return Err((at, format!("Syntax error: reserved identifier: {name}")));
                }
                if self.eat("(") { self.call(at, None, name) } else { Ok(Expr::new(at, Kind::Ident(name))) }
            }
            Token::Sign("(") => {
                let inner = self.expression()?;
                self.expect(")")?;
                Ok(inner)
            }
            Token::Sign("[") => self.list(at, false),
            Token::Sign("[?") => self.list(at, true),
            Token::Sign("{") => self.map(at, false),
            Token::Sign("{?") => self.map(at, true),
            _ => Err(unexpected),
        }
    }

    fn list(&mut self, at: usize, mut optional: bool) -> Result<Expr, Fault> {
        let mut items = Vec::new();
        while optional || !self.eat("]") {
            items.push((self.expression()?, optional));
            if !self.eat(",") {
                self.expect("]")?;
                break;
            }
            optional = self.eat("?");
        }
        Ok(Expr::new(at, Kind::List(items)))
    }

    fn map(&mut self, at: usize, mut optional: bool) -> Result<Expr, Fault> {
        let mut items = Vec::new();
        while optional || !self.eat("}") {
            let key = self.expression()?;
            self.expect(":")?;
            items.push((key, self.expression()?, optional));
            if !self.eat(",") {
                self.expect("}")?;
                break;
            }
            optional = self.eat("?");
        }
        Ok(Expr::new(at, Kind::Map(items)))
    }

    fn postfix(&mut self, mut base: Expr) -> Result<Expr, Fault> {
        let mut links = 0;
        loop {
            links += 1;
            if links > 2 * DEPTH_MAX {
                return Err((self.place(), format!("expression recursion limit exceeded: {DEPTH_MAX}")));
            }
            let at = self.place();
            let optional_field = self.eat(".?");
            if optional_field || self.eat(".") {
                let (name_at, unexpected) = (self.place(), self.unexpected("IDENTIFIER"));
                let name = match self.advance() {
                    Token::Ident(name) => name,
                    Token::Sign("in") => "in".to_owned(),
                    _ => return Err(unexpected),
                };
                base = if !optional_field && self.eat("(") {
                    self.call(name_at.saturating_sub(1), Some(base), name)?
                } else {
                    let field = name;
                    Expr::new(at, Kind::Select { base: base.into(), field, optional: optional_field, test: false })
                };
                continue;
            }
            let optional = self.eat("[?");
            if !optional && !self.eat("[") {
                return Ok(base);
            }
            let index = self.expression()?.into();
            self.expect("]")?;
            base = Expr::new(at, Kind::Index { base: base.into(), index, optional });
        }
    }

    fn call(&mut self, at: usize, target: Option<Expr>, function: String) -> Result<Expr, Fault> {
        let mut arguments = Vec::new();
        while !self.eat(")") {
            arguments.push(self.expression()?);
            if !self.eat(",") {
                self.expect(")")?;
                break;
            }
        }
        // The namespaces of functions read like values.
        let (target, function) = match target {
            Some(Expr { kind: Kind::Ident(space), .. })
                if matches!(space.as_str(), "optional" | "sets" | "format" | "strings" | "math" | "ip") =>
            {
                (None, format!("{space}.{function}"))
            }
            target => (target, function),
        };
        expand(at, target, function, arguments)
    }
}

/// Macros become nodes; everything else is a call.
fn expand(at: usize, target: Option<Expr>, function: String, mut arguments: Vec<Expr>) -> Result<Expr, Fault> {
    let count = arguments.len();
    match (target, function.as_str(), count) {
        (None, "has", 1) => match arguments.remove(0) {
            Expr { kind: Kind::Select { base, field, .. }, .. } => {
                Ok(Expr::new(at, Kind::Select { base, field, optional: false, test: true }))
            }
            other => Err((other.at, "invalid argument to has() macro".to_owned())),
        },
        (Some(target), "optMap" | "optFlatMap", 2) => {
            let body = arguments.remove(1);
            let variable = name(&arguments[0])?;
            let flat = function == "optFlatMap";
            Ok(Expr::new(at, Kind::Optional { target: target.into(), variable, body: body.into(), flat }))
        }
        (Some(target), _, 2..=4) => match comprehension(&function, count) {
            Some((kind, variables)) => {
                let body = arguments.pop();
                let condition = (arguments.len() > variables).then(|| arguments.pop()).flatten().map(Box::new);
                let names = arguments.iter().map(name).collect::<Result<Vec<_>, _>>()?;
                let Some(body) = body.map(Box::new) else { return Err((at, "Syntax error".to_owned())) };
                Ok(Expr::new(at, Kind::Comprehend { kind, range: target.into(), variables: names, condition, body }))
            }
            None => Ok(Expr::new(at, Kind::Call { target: Some(target.into()), function, arguments })),
        },
        (target, _, _) => Ok(Expr::new(at, Kind::Call { target: target.map(Box::new), function, arguments })),
    }
}

/// The macro of a name and number of arguments, and how many of those are variables.
fn comprehension(function: &str, arguments: usize) -> Option<(Macro, usize)> {
    Some(match (function, arguments) {
        ("all", 2 | 3) => (Macro::All, arguments - 1),
        ("exists", 2 | 3) => (Macro::Exists, arguments - 1),
        ("exists_one" | "existsOne", 2 | 3) => (Macro::ExistsOne, arguments - 1),
        ("filter", 2) => (Macro::Filter, 1),
        ("map", 2 | 3) => (Macro::Map, 1),
        ("transformList", 3 | 4) => (Macro::TransformList, 2),
        ("transformMap", 3 | 4) => (Macro::TransformMap, 2),
        _ => return None,
    })
}

fn name(expr: &Expr) -> Result<String, Fault> {
    match &expr.kind {
        Kind::Ident(name) => Ok(name.clone()),
        _ => Err((expr.at, "argument must be a simple name".to_owned())),
    }
}
